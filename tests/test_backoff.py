"""A key that fails is left alone, twice as long each time, and never longer than stated."""

import math
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_safe_cache._backoff import Backoffs, delay


def never() -> float:
    """Chance that cuts nothing off."""
    return 0.0


def test_each_failure_in_a_row_doubles_the_delay_up_to_32_times_the_first() -> None:
    delays = [delay(0.5, failures, never) for failures in range(1, 9)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 16, 16]
    assert delay(0.5, 10**9, never) == 16


@pytest.mark.parametrize("failures", [0, -1])
def test_after_no_failure_nothing_waits(failures: int) -> None:
    assert delay(5, failures) == 0.0


@given(st.floats(1e-3, 1e6), st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_chance_shortens_by_a_tenth_at_most_and_never_lengthens(
    first: float, failures: int, chance: float
) -> None:
    longest = delay(first, failures, never)
    assert longest * 0.9 <= delay(first, failures, lambda: chance) <= longest


def test_keys_that_failed_together_come_back_apart() -> None:
    backoffs = Backoffs[int](10)
    again = {backoffs.failed(key, 0.0) for key in range(100)}
    assert len(again) > 90
    assert 9 <= min(again) < max(again) <= 10


def test_a_key_waits_for_its_own_failures_until_exactly_then() -> None:
    backoffs = Backoffs[str](3, random=never)
    assert backoffs.ready("a", -math.inf)
    assert backoffs.failed("a", 100.0) == 103
    assert not backoffs.ready("a", math.nextafter(103, 0))
    assert backoffs.ready("a", 103)
    assert backoffs.ready("b", 100)
    assert backoffs.failed("a", 103.0) == 109
    assert (backoffs.failures("a"), backoffs.failures("b"), len(backoffs)) == (2, 0, 1)


def test_a_good_load_forgets_the_failures_before_it() -> None:
    backoffs = Backoffs[str](3, random=never)
    backoffs.failed("a", 0.0)
    backoffs.failed("a", 3.0)
    backoffs.succeeded("a")
    backoffs.succeeded("never failed")
    assert backoffs.ready("a", 3.0)
    assert (backoffs.failures("a"), len(backoffs)) == (0, 0)
    assert backoffs.failed("a", 4.0) == 7


def test_the_key_whose_last_failure_is_oldest_leaves_first() -> None:
    backoffs = Backoffs[str](3, limit=2, random=never)
    for key in ("a", "b", "a", "c"):
        backoffs.failed(key, 0.0)
    assert [backoffs.failures(key) for key in "abc"] == [2, 0, 1]
    assert backoffs.ready("b", 0.0)
    assert len(backoffs) == 2


def test_many_failing_keys_leave_ten_thousand_behind() -> None:
    backoffs = Backoffs[int](3)
    for key in range(100_000):
        backoffs.failed(key, 0.0)
    assert len(backoffs) == 10_000


def test_a_first_delay_of_0_holds_nobody_up_and_still_counts() -> None:
    backoffs = Backoffs[str](0)
    assert backoffs.failed("a", 7.0) == 7
    assert backoffs.ready("a", 7.0)
    assert backoffs.failures("a") == 1


def test_keys_come_and_go_as_in_a_plain_count() -> None:
    chance = random.Random(7)
    backoffs = Backoffs[int](2, limit=1_000, random=never)
    counts: dict[int, int] = {}
    tries: dict[int, float] = {}
    now = 0.0
    for _ in range(20_000):
        now += chance.random()
        key = chance.randrange(50)
        assert backoffs.failures(key) == counts.get(key, 0)
        assert backoffs.ready(key, now) == (now >= tries.get(key, 0))
        if chance.random() < 0.7:
            counts[key] = counts.get(key, 0) + 1
            tries[key] = now + 2 * min(2 ** (counts[key] - 1), 32)
            assert backoffs.failed(key, now) == tries[key]
        else:
            backoffs.succeeded(key)
            counts.pop(key, None)
            tries.pop(key, None)
    assert len(backoffs) == len(counts)


def test_a_timedelta_is_taken_as_seconds() -> None:
    assert Backoffs[str](timedelta(minutes=1), random=never).failed("a", 0.0) == 60


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (-1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (timedelta(seconds=-1), ValueError),
        (True, TypeError),
        ("3", TypeError),
        (None, TypeError),
    ],
    ids=repr,
)
def test_a_wrong_first_delay_is_refused(first: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="first"):
        Backoffs[str](first)
