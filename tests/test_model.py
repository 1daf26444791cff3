"""The whole cache against a plain model, step by step; see tests/model_steps.py."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from async_safe_cache import AsyncSafeCache, MissReason

from .model_steps import (
    FENCES,
    FIRST,
    KEYS,
    RANGE,
    SIZES,
    SPACES,
    TTLS,
    UNWEIGHABLE,
    Broken,
    Pair,
    Refused,
    Settings,
    StepError,
    main,
    play,
    play_round,
)
from .virtual import at_once

PLACES = st.one_of(
    st.tuples(st.sampled_from(SPACES), st.sampled_from(KEYS)),
    st.tuples(st.just("raw"), st.integers(FIRST, FIRST + RANGE - 1)),
)
SOME = st.lists(PLACES, max_size=4)
WEIGHTS = st.sampled_from(SIZES)
LIVES = st.sampled_from(TTLS)
LOADED = st.sampled_from([*SIZES, UNWEIGHABLE])
FAILURES = st.sampled_from([None, None, Refused, Broken])
SETTINGS = st.builds(
    Settings,
    max_entries=st.sampled_from([None, 0, 1, 2, 5]),
    max_memory_bytes=st.sampled_from([None, 0, 1_000, 3_000, 10_000]),
    default_ttl=st.sampled_from([None, 1.5]),
    housekeeping=st.sampled_from(["before", "after", "never"]),
)


class CacheMachine(RuleBasedStateMachine):
    """Every public operation, in any order, swept before, after or never."""

    @initialize(chosen=SETTINGS)
    def begin(self, chosen: Settings) -> None:
        self.pair = Pair(chosen)
        self.runner = asyncio.Runner(debug=False)

    def take(self, step: Coroutine[Any, Any, None]) -> None:
        self.runner.run(step)

    @rule(place=PLACES)
    def get(self, place: Any) -> None:
        self.take(self.pair.get(place))

    @rule(place=PLACES)
    def lookup(self, place: Any) -> None:
        self.take(self.pair.lookup(place))

    @rule(place=PLACES)
    def peek(self, place: Any) -> None:
        self.take(self.pair.peek(place))

    @rule(places=SOME)
    def get_many(self, places: Any) -> None:
        self.take(self.pair.get_many(places))

    @rule(place=PLACES, size=WEIGHTS, ttl=LIVES, default_ttl=st.booleans())
    def set(self, place: Any, size: int, ttl: Any, default_ttl: bool) -> None:
        self.take(self.pair.set(place, size, ttl, default_ttl))

    @rule(first=st.integers(0, RANGE - 10), count=st.integers(1, 10), ttl=LIVES)
    def fill(self, first: int, count: int, ttl: Any) -> None:
        self.take(self.pair.fill(FIRST + first, count, ttl))

    @rule(place=PLACES)
    def set_unweighable(self, place: Any) -> None:
        self.take(self.pair.set_unweighable(place))

    @rule(
        place=PLACES,
        size=LOADED,
        failure=FAILURES,
        ttl=LIVES,
        in_call=st.booleans(),
        callers=st.integers(1, 4),
    )
    def get_or_load(
        self, place: Any, size: int, failure: Any, ttl: Any, in_call: bool, callers: int
    ) -> None:
        self.take(self.pair.get_or_load(place, size, failure, ttl, in_call, callers))

    @rule(
        place=PLACES,
        size=LOADED,
        failure=FAILURES,
        fence=st.sampled_from(FENCES),
        fence_size=WEIGHTS,
    )
    def fenced_load(self, place: Any, size: int, failure: Any, fence: str, fence_size: int) -> None:
        self.take(self.pair.fenced_load(place, size, failure, fence, fence_size))

    @rule(key=st.sampled_from(KEYS), size=LOADED, failure=FAILURES)
    def refresh(self, key: Any, size: int, failure: Any) -> None:
        self.take(self.pair.refresh(("later", key), size, failure))

    @rule(places=SOME)
    def delete(self, places: Any) -> None:
        self.take(self.pair.delete(places))

    @rule(places=SOME)
    def expire(self, places: Any) -> None:
        self.take(self.pair.expire(places))

    @rule(place=PLACES, synchronous=st.booleans())
    def invalidate(self, place: Any, synchronous: bool) -> None:
        self.take(self.pair.invalidate(place, synchronous))

    @rule(place=PLACES, ttl=LIVES)
    def touch(self, place: Any, ttl: Any) -> None:
        self.take(self.pair.touch(place, ttl))

    @rule(space=st.sampled_from(SPACES))
    def clear(self, space: str) -> None:
        self.take(self.pair.clear(space))

    @rule(seconds=st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.take(self.pair.wait(seconds))

    @invariant()
    def every_invariant_holds(self) -> None:
        if hasattr(self, "pair"):
            self.pair.compare_all()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("seed", range(4))
def test_the_cache_answers_as_its_model_does_over_many_random_steps(seed: int) -> None:
    with asyncio.Runner(debug=False) as runner:
        runner.run(play(5_000, seed))


def test_a_disagreement_names_the_seed_and_the_step_that_show_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model's own proof: a cache that says DELETED instead of EXPIRED is found out."""
    honest = AsyncSafeCache.lookup

    async def lookup(self: AsyncSafeCache, key: object) -> Any:
        found = await honest(self, key)
        if found.reason is MissReason.EXPIRED:
            object.__setattr__(found, "reason", MissReason.DELETED)
        return found

    monkeypatch.setattr(AsyncSafeCache, "lookup", lookup)
    with asyncio.Runner(debug=False) as runner:
        with pytest.raises(StepError) as caught:
            runner.run(play(5_000, 0))
        first = caught.value
        with pytest.raises(StepError) as caught:
            runner.run(play_round(first.seed, first.steps + 1))
    assert caught.value.steps == first.steps
    assert isinstance(caught.value.__cause__, AssertionError)


def test_the_command_line_tells_how_far_it_got_and_what_it_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["model_steps", "--steps", "600", "--seed", "3"])
    assert main() == 0
    assert "agree over 600 steps (seed 3)" in capsys.readouterr().out
    monkeypatch.setattr(AsyncSafeCache, "__len__", lambda _: -1)
    assert main() == 1
    assert "disagree at step 0 of the round with seed '3.0'" in capsys.readouterr().err


# -- what the model found


def answers_whenever_swept(*steps: Callable[[Pair], Coroutine[Any, Any, None]]) -> None:
    """Take the same steps swept before, after and never."""
    for housekeeping in ("before", "after", "never"):
        pair = Pair(Settings(max_memory_bytes=2_000, housekeeping=housekeeping))
        for step in steps:
            at_once(step(pair))
        pair.compare_all()


def test_an_expired_entry_in_the_way_of_a_value_too_large_is_told_as_rejected() -> None:
    answers_whenever_swept(
        lambda pair: pair.set(("raw", "a"), 10, 1.0, False),
        lambda pair: pair.wait(1.0),
        lambda pair: pair.set(("raw", "a"), 3_000, None, False),
        lambda pair: pair.lookup(("raw", "a")),
    )


def test_an_expired_entry_in_the_way_of_a_load_that_is_rejected_is_told_as_rejected() -> None:
    """The reason was EXPIRED or REJECTED, depending on whether a sweep had come between."""
    answers_whenever_swept(
        lambda pair: pair.set(("here", 0), 10, 1.0, False),
        lambda pair: pair.wait(1.0),
        lambda pair: pair.get_or_load(("here", 0), UNWEIGHABLE, None, None, True),
        lambda pair: pair.lookup(("here", 0)),
    )
