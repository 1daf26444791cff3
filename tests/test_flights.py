"""Many callers, one load: who gets what when callers, loads and loops come and go."""

import asyncio
import gc
import logging
import random
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    LoadCancelledError,
    MissReason,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, VirtualLoop, begin_tasks_later, run_virtual, settle

FOLLOWERS = 5


def assert_nothing_runs(cache: AsyncSafeCache) -> None:
    """No load, no place in the registry, no task but the test's own."""
    assert cache._engine.flights.running == {}
    assert cache._engine.flights._registry == {}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def outcomes(tasks: list["asyncio.Task[Any]"]) -> list[Any]:
    """Return the value of each task, or the type of what it raised."""
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(each) if isinstance(each, BaseException) else each for each in answers]


class Watched:
    """A loader of several steps that tells whether two of its runs ever overlapped.

    Each run gives its number. A cancelled one needs `clean_up` loop turns and
    then `seconds_to_clean` to end.
    """

    def __init__(self, *, steps: int = 3, clean_up: int = 0, seconds_to_clean: float = 0) -> None:
        self.steps = steps
        self.clean_up = clean_up
        self.seconds_to_clean = seconds_to_clean
        self.calls = 0
        self.running = 0
        self.most = 0

    async def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await turns(self.steps)
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            await turns(self.clean_up)
            if self.seconds_to_clean:
                await asyncio.sleep(self.seconds_to_clean)
            raise
        finally:
            self.running -= 1
        return number


# -- coalescing


def test_a_thousand_callers_of_one_key_share_one_load(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        calls = 0

        @race_safe_cached(cache)
        async def f(x: int) -> list[int]:
            nonlocal calls
            calls += 1
            await asyncio.sleep(1)
            return [x]

        answers = await asyncio.gather(*(f(7) for _ in range(1_000)))
        assert calls == 1
        assert answers[0] == [7]
        assert {id(answer) for answer in answers} == {id(answers[0])}
        assert clock.now == 1001.0, "nobody waited for a second load"
        stats = cache.stats()
        assert (stats.misses, stats.coalesced, stats.hits, stats.loads) == (1, 999, 0, 1)
        assert cache.health()["cache_stats"]["in_flight"] == 0
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_hundred_keys_are_loaded_once_each_and_never_mixed_up(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        loaded: list[int] = []

        @race_safe_cached(cache)
        async def f(key: int) -> str:
            loaded.append(key)
            await asyncio.sleep(1 + key % 7)
            return f"value of {key}"

        answers = await asyncio.gather(*(f(number % 100) for number in range(1_000)))
        assert answers == [f"value of {number % 100}" for number in range(1_000)]
        assert sorted(loaded) == list(range(100))
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_load_longer_than_its_ttl_answers_its_waiters_and_is_not_born_expired(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("value", seconds=5)
        calls = [cache.get_or_load("key", load, ttl=1) for _ in range(3)]
        assert await asyncio.gather(*calls) == ["value"] * 3
        found = await cache.lookup("key")
        assert (found.value, found.age, found.ttl_left) == ("value", 0.0, 1.0)
        await asyncio.sleep(1)
        assert (await cache.lookup("key")).reason is MissReason.EXPIRED
        assert load.calls == 1

    run_virtual(main(), clock)


def test_clearing_during_a_hundred_loads_answers_all_and_stores_none(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        def loader(key: int) -> Callable[[], Coroutine[Any, Any, int]]:
            async def load() -> int:
                await asyncio.sleep(1 + key / 100)
                return key

            return load

        calls = [asyncio.create_task(cache.get_or_load(key, loader(key))) for key in range(100)]
        await asyncio.sleep(1.495)  # half of them have ended and are stored
        assert len(cache) == 50
        await cache.clear()
        assert len(cache) == 0
        assert await asyncio.gather(*calls) == list(range(100))
        assert len(cache) == 0
        assert await cache.get_many(range(100)) == {}
        assert cache.memory_bytes == 0
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_who_comes_after_a_delete_does_not_join_the_load_before_it(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        old, new = Loader("old", seconds=10), Loader("new", seconds=1)
        early = asyncio.create_task(cache.get_or_load("key", old))
        await settle()
        await cache.delete("key")
        late = [asyncio.create_task(cache.get_or_load("key", new)) for _ in range(3)]
        assert await asyncio.gather(*late) == ["new"] * 3
        assert clock.now == 1001.0, "they did not wait for the old load"
        assert await early == "old"
        assert await cache.get("key") == "new"
        assert (old.calls, new.calls) == (1, 1)
        assert cache.stats().overlapping_loads == 0, "a fence is no overrun clean-up"
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_an_old_load_that_ends_leaves_the_newer_one_joinable(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        old, new = Loader("old", seconds=1), Loader("new", seconds=5)
        early = asyncio.create_task(cache.get_or_load("key", old))
        await settle()
        await cache.delete("key")
        late = asyncio.create_task(cache.get_or_load("key", new))
        assert await early == "old"
        assert await cache.get_or_load("key", Loader("third")) == "new"
        assert await late == "new"
        assert (old.calls, new.calls) == (1, 1)
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


# -- cancellation: the caller's own


def test_the_leader_may_be_cancelled_at_any_step_and_the_others_have_the_value(
    clock: VirtualClock,
) -> None:
    async def cancelled_after(step: int) -> bool:
        """Cancel the first caller after so many loop turns; tell whether that was in time."""
        cache = AsyncSafeCache(clock=clock)
        calls = 0

        @race_safe_cached(cache)
        async def f(x: int) -> int:
            nonlocal calls
            calls += 1
            await turns(4)
            return x + 1

        leader, *others = [asyncio.create_task(f(1)) for _ in range(1 + FOLLOWERS)]
        await turns(step)
        in_time = leader.cancel()
        assert await outcomes([leader, *others]) == [
            asyncio.CancelledError if in_time else 2,
            *[2] * FOLLOWERS,
        ]
        assert calls == 1
        assert cache.peek(cache.key_for(f, 1)) == 2
        assert cache.stats().loads == 1
        assert_nothing_runs(cache)
        return in_time

    async def main() -> None:
        step = 0
        while await cancelled_after(step):
            step += 1
        assert step >= 6, "the load took several steps, and each was tried"

    run_virtual(main(), clock)


def test_when_all_callers_are_cancelled_the_load_is_too(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(seconds=1)
        calls = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(6)]
        for call in calls:
            await settle()
            assert load.cancelled == 0, "somebody still waits"
            call.cancel()
        await settle()
        assert await outcomes(calls) == [asyncio.CancelledError] * 6
        assert (load.calls, load.cancelled) == (1, 1)
        assert clock.now == 1000.0
        assert cache.peek("key") is MISSING
        stats = cache.stats()
        assert (stats.loads, stats.load_errors) == (0, 0), "nobody's failure"
        assert_nothing_runs(cache)
        gc.collect()

    run_virtual(main(), clock)
    assert caplog.records == []


def test_finish_lets_an_abandoned_load_end_and_store(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, on_abandon="finish")
        load = Loader("value", seconds=1)
        calls = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(6)]
        await settle()
        for call in calls:
            call.cancel()
        assert await outcomes(calls) == [asyncio.CancelledError] * 6
        late = asyncio.create_task(cache.get_or_load("key", load))
        await asyncio.sleep(0.5)
        late.cancel()
        await asyncio.sleep(0.5)
        await settle()
        assert (load.calls, load.cancelled) == (1, 0), "the late caller joined it, and left it"
        assert cache.peek("key") == "value"
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_fenced_load_is_cancelled_when_nobody_waits_even_if_it_may_finish(
    clock: VirtualClock,
) -> None:
    """What it gives could go nowhere: neither to a caller nor into the cache."""

    async def main() -> None:
        for abandon_first in (True, False):
            cache = AsyncSafeCache(clock=clock, on_abandon="finish")
            load = Loader(seconds=60)
            call = asyncio.create_task(cache.get_or_load("key", load))
            await settle()
            if abandon_first:
                call.cancel()
                await settle()
                await cache.delete("key")
            else:
                await cache.delete("key")
                await settle()
                assert load.cancelled == 0
                call.cancel()
            await settle()
            assert load.cancelled == 1
            assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_caller_that_times_out_leaves_the_others_alone(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("value", seconds=1)
        others = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(3)]
        await settle()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await cache.get_or_load("key", load)
        assert clock.now == pytest.approx(1000.1)
        assert await asyncio.gather(*others) == ["value"] * 3
        assert clock.now == pytest.approx(1001.0)
        assert (load.calls, load.cancelled) == (1, 0)

    run_virtual(main(), clock)


def test_who_gave_up_on_a_load_may_ask_again(clock: VirtualClock) -> None:
    """It began the load and is no part of it: it joins, and is told of no recursion."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(seconds=2)

        async def hasty() -> Any:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await cache.get_or_load("key", load)
            return await cache.get_or_load("key", load)

        answers = await asyncio.gather(hasty(), cache.get_or_load("key", load))
        assert answers == ["value", "value"]
        assert load.calls == 1
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_waiter_whose_sibling_fails_leaves_alone(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("value", seconds=1)
        counts: list[int] = []

        async def fail() -> None:
            await asyncio.sleep(0.5)
            raise OSError("sibling")

        async def user() -> Any:
            task = asyncio.current_task()
            assert task is not None
            with pytest.raises(ExceptionGroup) as raised:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
                    await cache.get_or_load("key", load)
            counts.append(task.cancelling())
            assert [type(each) for each in raised.value.exceptions] == [OSError]
            return await cache.get_or_load("key", load)

        others = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(5)]
        users = [asyncio.create_task(user()) for _ in range(3)]
        assert await asyncio.gather(*others, *users) == ["value"] * 8
        assert counts == [0, 0, 0]
        assert (load.calls, load.cancelled) == (1, 0)
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_cancelled_task_counts_each_cancellation_once(clock: VirtualClock) -> None:
    """A cancellation passes through the cache exactly once; a task that forgives it goes on."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("value", seconds=1)
        seen: list[int] = []

        async def stubborn() -> Any:
            task = asyncio.current_task()
            assert task is not None
            try:
                await cache.get_or_load("key", load)
            except asyncio.CancelledError:
                seen.append(task.cancelling())
                seen.append(task.uncancel())
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await cache.get_or_load("key", load)
                seen.append(task.cancelling())
            return await cache.get_or_load("key", load)

        keeper = asyncio.create_task(cache.get_or_load("key", load))
        task = asyncio.create_task(stubborn())
        await settle()
        task.cancel()
        assert await asyncio.gather(keeper, task) == ["value", "value"]
        assert seen == [1, 0, 0, 0, 0]
        assert task.cancelling() == 0

    run_virtual(main(), clock)


@pytest.mark.parametrize(("on_abandon", "callers"), [("cancel", 10_000), ("finish", 2_000)])
def test_a_storm_of_timeouts_leaves_nothing_behind(
    clock: VirtualClock, on_abandon: Any, callers: int
) -> None:
    chance = random.Random(14)

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, on_abandon=on_abandon)

        @race_safe_cached(cache)
        async def f(key: int) -> int:
            await asyncio.sleep(1)
            return key

        async def caller(key: int, begin: float, patience: float) -> Any:
            await asyncio.sleep(begin)
            if key % 2:
                return await asyncio.wait_for(f(key), patience)
            async with asyncio.timeout(patience):
                return await f(key)

        keys = [chance.randrange(50) for _ in range(callers)]
        calls = [
            asyncio.create_task(caller(key, chance.random() / 2, 1.2 * chance.random()))
            for key in keys
        ]
        answers = await outcomes(calls)
        allowed = [{key, TimeoutError} for key in keys]
        assert all(answer in each for answer, each in zip(answers, allowed, strict=True))
        assert callers / 4 < answers.count(TimeoutError) < callers
        await asyncio.sleep(2)
        assert_nothing_runs(cache)
        assert await f(7) == 7
        assert cache.stats().calls == callers + 1

    run_virtual(main(), clock)


# -- cancellation: the load's


def test_a_newcomer_during_the_clean_up_waits_for_it_and_loads_afresh(
    clock: VirtualClock,
) -> None:
    """Whatever step of the unwinding it arrives at."""

    async def arriving_after(step: int) -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Watched(clean_up=5)
        calls = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(6)]
        await turns(4)
        for call in calls:
            call.cancel()
        await turns(step)
        newcomer = asyncio.create_task(cache.get_or_load("key", load))
        answer = await newcomer
        assert await outcomes(calls) == [asyncio.CancelledError] * 6
        assert load.most == 1, "two loads of one key ran at a time"
        assert answer == 2, "it got the value of a fresh load"
        assert cache.peek("key") == 2
        assert cache.stats().overlapping_loads == 0
        assert cache.stats().calls == 7
        assert load.calls == 2
        assert_nothing_runs(cache)

    async def main() -> None:
        for step in range(12):
            await arriving_after(step)

    run_virtual(main(), clock)


def test_a_newcomer_before_the_last_caller_has_left_joins(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Watched()
        call = asyncio.create_task(cache.get_or_load("key", load))
        await turns(3)
        newcomer = asyncio.create_task(cache.get_or_load("key", load))
        call.cancel()  # arrives one step after the newcomer's first
        assert await newcomer == 1
        assert load.calls == 1
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_newcomers_wait_for_a_slow_clean_up_and_share_one_fresh_load(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, cancel_grace=5)
        load = Watched(seconds_to_clean=3)
        call = asyncio.create_task(cache.get_or_load("key", load))
        await settle()
        call.cancel()
        newcomers = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(10)]
        assert await asyncio.gather(*newcomers) == [2] * 10
        assert clock.now == pytest.approx(1004.0), "3 s of clean-up, 1 s of load"
        assert (load.calls, load.most) == (2, 1)
        assert cache.stats().overlapping_loads == 0
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_after_cancel_grace_a_newcomer_overtakes_and_it_is_counted_and_logged(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "async_safe_cache")

    async def main() -> None:
        cache = AsyncSafeCache("prices", clock=clock, cancel_grace=5)
        load = Watched(seconds_to_clean=60)
        call = asyncio.create_task(cache.get_or_load("key", load))
        await settle()
        call.cancel()
        await settle()
        newcomers = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(10)]
        await asyncio.sleep(4.9)
        assert load.calls == 1
        assert await asyncio.gather(*newcomers) == [2] * 10
        assert clock.now == pytest.approx(1006.0), "5 s of grace, 1 s of load"
        assert (load.calls, load.most) == (2, 2)
        assert cache.stats().overlapping_loads == 1
        assert cache.health()["cache_stats"]["in_flight"] == 1, "the overtaken load still runs"
        await asyncio.sleep(60)
        assert cache.peek("key") == 2
        assert_nothing_runs(cache)

    run_virtual(main(), clock)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "prices" in record.getMessage()
    assert "key" not in record.getMessage()


def test_who_would_wait_longer_joins_the_load_of_who_overtook(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Watched(seconds_to_clean=60)
        call = asyncio.create_task(cache.get_or_load("key", load))
        await settle()
        call.cancel()
        await settle()
        newcomers = [
            asyncio.create_task(cache.get_or_load("key", load, cancel_grace=grace))
            for grace in (30, 2)
        ]
        assert await asyncio.gather(*newcomers) == [2, 2]
        assert clock.now == pytest.approx(1003.0), "2 s of grace, 1 s of load"
        await asyncio.sleep(60)
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_loader_that_swallows_its_cancellation_stores_nothing(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        calls = 0

        async def stubborn() -> int:
            nonlocal calls
            calls += 1
            number = calls
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
            return number

        call = asyncio.create_task(cache.get_or_load("key", stubborn))
        await settle()
        call.cancel()
        await settle()
        newcomer = asyncio.create_task(cache.get_or_load("key", stubborn))
        await asyncio.sleep(1)
        await settle()
        assert cache.peek("key") is MISSING, "what it gave after its cancellation is not stored"
        assert await newcomer == 2
        assert cache.peek("key") == 2
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_newcomer_that_leaves_during_the_clean_up_starts_nothing(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Watched(seconds_to_clean=3)
        call = asyncio.create_task(cache.get_or_load("key", load))
        await settle()
        call.cancel()
        await settle()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await cache.get_or_load("key", load)
        assert clock.now == pytest.approx(1001.0)
        await asyncio.sleep(10)
        assert load.calls == 1
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


@pytest.mark.parametrize("how", ["raised", "inner task"])
def test_a_load_cancelled_from_inside_does_not_cancel_those_who_wait(
    clock: VirtualClock, how: str
) -> None:
    """A bare CancelledError would end their task group as if somebody had cancelled them."""

    async def main() -> None:
        cache = AsyncSafeCache("prices", clock=clock)
        calls = 0

        async def load() -> str:
            nonlocal calls
            calls += 1
            await asyncio.sleep(1)
            if calls > 1:
                return "value"
            if how == "inner task":
                inner = asyncio.create_task(asyncio.sleep(60))
                asyncio.get_running_loop().call_soon(inner.cancel)
                await inner
            raise asyncio.CancelledError("from inside")

        async def waiter() -> Any:
            return await cache.get_or_load("key", load)

        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(waiter()) for _ in range(5)]
        assert [type(each) for each in raised.value.exceptions] == [LoadCancelledError] * 5
        assert not any(task.cancelled() for task in tasks)
        assert {each.name for each in raised.value.exceptions} == {"prices"}
        assert calls == 1
        assert cache.peek("key") is MISSING
        assert cache.stats().load_errors == 1
        assert await waiter() == "value"
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def _of_any_size(value: object) -> int:
    return 10_000


def _failing(value: object) -> int:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        ({}, "value", None),
        ({}, KeyError("failed"), MissReason.ABSENT),
        ({}, asyncio.CancelledError(), MissReason.ABSENT),
        ({"negative": {KeyError: 5}}, KeyError("remembered"), MissReason.ABSENT),
        ({"max_entries": 0}, "value", MissReason.REJECTED),
        ({"max_memory_bytes": 5_000, "weigher": _of_any_size}, "value", MissReason.REJECTED),
        ({"weigher": _failing}, "value", MissReason.REJECTED),
    ],
)
def test_a_burst_of_one_turn_shares_a_load_that_needs_no_await(
    clock: VirtualClock, options: dict[str, Any], answer: Any, reason: MissReason | None
) -> None:
    """Where a task begins at once, such a load is over before the second caller asks.

    If it left no value in the store, that one would load again, and so on for all of them.
    """
    calls = 0

    async def load() -> str:
        nonlocal calls
        calls += 1
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, **options)
        burst = [cache.get_or_load("key", load) for _ in range(100)]
        answers = await asyncio.gather(*burst, return_exceptions=True)
        assert calls == 1
        assert len({id(each) for each in answers}) == 1 or "negative" in options
        assert len({type(each) for each in answers}) == 1
        stats = cache.stats()
        assert (stats.calls, stats.loads) == (100, 1)
        assert (await cache.lookup("key")).reason is reason
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


class _HandsOn(VirtualLoop):
    """A loop whose tasks are its own: it hands on whatever it is given."""

    def create_task(self, coro: Any, **kwargs: Any) -> Any:
        return super().create_task(coro, **kwargs)


def test_a_loop_that_hands_options_on_or_is_watched_makes_the_tasks_of_loads(
    clock: VirtualClock,
) -> None:
    made: list[str] = []

    async def one() -> None:
        assert await AsyncSafeCache().get_or_load("key", Loader("value")) == "value"

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        loop: Any = asyncio.get_running_loop()
        ordinary = loop.create_task

        def seen(coro: Any, **kwargs: Any) -> Any:
            made.append(kwargs["name"])
            return ordinary(coro, **kwargs)

        loop.create_task = seen
        assert await cache.get_or_load("other", Loader("value")) == "value"
        del loop.create_task
        assert made == ["load of default"]

    with asyncio.Runner(loop_factory=lambda: _HandsOn(clock)) as runner:
        runner.run(one())
    run_virtual(main(), clock)  # one loop of which somebody watches the tasks


class _Request:
    """What a caller holds, and nobody else may."""


def test_a_failure_without_an_await_shows_nothing_of_the_callers(clock: VirtualClock) -> None:
    """A load may begin on its first caller's stack; what that caller handles is its own."""
    handled: list[BaseException | None] = []

    async def load() -> str:
        handled.append(sys.exc_info()[1])
        raise KeyError("failed")

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def leader(request: _Request) -> None:
            try:
                raise PermissionError("token=abc")
            except PermissionError:
                await cache.get_or_load("key", load)

        async def plain(request: _Request) -> None:
            await cache.get_or_load("plain", load)

        for call, key in ((leader, "key"), (plain, "plain")):
            request = _Request()
            gone = weakref.ref(request)
            first = asyncio.create_task(call(request))
            del request
            follower = asyncio.create_task(_error_of(cache.get_or_load(key, load)))
            await asyncio.wait([first])
            assert isinstance(first.exception(), KeyError)
            error = await follower
            assert isinstance(error, KeyError)
            assert error.__context__ is None
            del first
            gc.collect()
            assert gone() is None, "a follower's exception keeps the leader's frames"
        assert handled == [None, None]
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


async def _error_of(call: Coroutine[Any, Any, Any]) -> BaseException | None:
    try:
        await call
    except BaseException as error:
        return error
    return None


class _Stop(BaseException):
    pass


def test_a_landing_that_is_stopped_ends_its_call(clock: VirtualClock) -> None:
    """Asked again, it would be stopped again, and the loop would never run anything else."""
    calls = 0

    def stop(value: object) -> int:
        raise _Stop

    async def load() -> str:
        nonlocal calls
        calls += 1
        return "value"

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, weigher=stop)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        error = await _error_of(cache.get_or_load("key", load))
        assert isinstance(error, (LoadCancelledError, _Stop))
        assert calls == 1
        assert_nothing_runs(cache)

    run_virtual(main(), clock)
    gc.collect()


def test_a_landing_that_fails_is_the_error_of_all_who_wait(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one for which the stack is too deep."""
    calls = 0

    async def load() -> str:
        nonlocal calls
        calls += 1
        return "value"

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        def fail(*_: Any) -> Any:
            raise RecursionError

        with monkeypatch.context() as patch:
            patch.setattr(type(cache._engine.store), "put", fail)
            burst = [_error_of(cache.get_or_load("key", load)) for _ in range(3)]
            errors = await asyncio.gather(*burst)
        assert {type(error) for error in errors} == {RecursionError}
        assert calls <= 3
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_load_cancelled_before_its_first_step_ran_nothing_and_leaves_nothing(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        begin_tasks_later()
        cache = AsyncSafeCache(clock=clock)
        load = Loader("value")
        call = cache.get_or_load("key", load)
        call.send(None)  # the load's task exists, and has not run
        with pytest.raises(asyncio.CancelledError):
            call.throw(asyncio.CancelledError())
        newcomer = asyncio.create_task(cache.get_or_load("key", load))
        assert await newcomer == "value"
        assert load.calls == 1, "the cancelled one never began"
        assert cache.stats().overlapping_loads == 0
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_task_factory_makes_the_tasks_of_loads(clock: VirtualClock) -> None:
    """Who made one wants them to be of its kind; it may not know how to begin one at once."""

    class Traced(asyncio.Task[Any]):
        pass

    async def load() -> type:
        return type(asyncio.current_task())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro, **kwargs: Traced(coro, loop=loop, **kwargs))
        cache = AsyncSafeCache(clock=clock)
        assert await cache.get_or_load("key", load) is Traced
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_load_that_cannot_begin_fails_for_all_who_wait(clock: VirtualClock) -> None:
    def factory(loop: Any, coro: Any, **kwargs: Any) -> Any:
        if coro.__qualname__ == "Loads._run":
            raise RuntimeError("no more tasks")
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("value")
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        calls = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(3)]
        async with asyncio.timeout(1):
            assert await outcomes(calls) == [RuntimeError] * 3
        loop.set_task_factory(None)
        assert await cache.get_or_load("key", load) == "value"
        assert load.calls == 1
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


@pytest.mark.parametrize("eager", [False, True])
def test_a_loop_that_makes_its_own_tasks_makes_those_of_loads(
    clock: VirtualClock, eager: bool
) -> None:
    """It may know how to begin one at once, or not: it was written before tasks could."""
    made: list[str] = []

    class Older(VirtualLoop):
        def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
            made.append(name)
            return super().create_task(coro, name=name, context=context)

    class Newer(VirtualLoop):
        def create_task(self, coro: Any, **kwargs: Any) -> Any:
            made.append(kwargs.get("name"))
            return asyncio.Task(coro, loop=self, **kwargs)

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        assert await cache.get_or_load("key", Loader("value")) == "value"
        assert "load of default" in made
        assert_nothing_runs(cache)

    with asyncio.Runner(loop_factory=lambda: (Newer if eager else Older)(clock)) as runner:
        runner.run(main())


def test_a_loop_that_ends_in_the_tick_a_load_begins_leaves_the_key_free(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    cache = AsyncSafeCache(clock=clock)
    load = Loader("value")

    async def hasty() -> None:
        begin_tasks_later()
        asyncio.create_task(cache.get_or_load("key", load))

    async def main() -> None:
        assert await cache.get_or_load("key", load) == "value"
        assert_nothing_runs(cache)

    run_virtual(hasty(), clock)
    assert cache._engine.flights.running == {}
    assert load.calls == 0
    run_virtual(main(), clock)
    gc.collect()
    assert caplog.records == []


# -- interrupts


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_load_ends_the_program_and_leaves_the_cache_whole(
    interrupt: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    cache = AsyncSafeCache()
    woken: list[type[BaseException]] = []

    async def interrupted() -> None:
        await asyncio.sleep(0)
        raise interrupt

    async def waiter() -> None:
        try:
            await cache.get_or_load("key", interrupted)
        except BaseException as error:
            woken.append(type(error))
            raise

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(waiter())

    async def again() -> None:
        assert await cache.get_or_load("key", lambda: "value") == "value"
        assert_nothing_runs(cache)

    with pytest.raises(interrupt):
        asyncio.run(main())
    assert len(woken) == 5
    assert set(woken) <= {asyncio.CancelledError, LoadCancelledError}
    assert cache._engine.flights.running == {}
    assert cache.peek("key") is MISSING
    asyncio.run(again())
    gc.collect()
    assert caplog.records == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_plain_def_reaches_its_caller_and_frees_the_key(
    interrupt: type[BaseException],
) -> None:
    cache = AsyncSafeCache()
    results: list[Any] = [interrupt, "value"]

    @race_safe_cached(cache)
    def f(x: int) -> Any:
        result = results.pop(0)
        if result is interrupt:
            raise interrupt
        return result

    with pytest.raises(interrupt):
        f(1)
    assert cache._engine.flights.running == {}
    assert f(1) == "value"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_a_waiter_in_another_loop_is_told_that_the_load_was_interrupted(
    interrupt: type[BaseException],
) -> None:
    cache = AsyncSafeCache()
    joined = threading.Event()
    raised: list[type[BaseException]] = []

    async def interrupted() -> None:
        while cache.stats().coalesced < 1:
            await asyncio.sleep(0)
        raise interrupt

    def elsewhere() -> None:
        async def main() -> None:
            joined.set()
            await cache.get_or_load("key", interrupted)

        try:
            asyncio.run(main())
        except BaseException as error:
            raised.append(type(error))

    async def main() -> None:
        call = asyncio.create_task(cache.get_or_load("key", interrupted))
        await asyncio.sleep(0)
        other.start()
        await call

    other = threading.Thread(target=elsewhere, daemon=True)
    with pytest.raises(interrupt):
        asyncio.run(main())
    other.join(5)
    assert raised == [LoadCancelledError]
    assert cache._engine.flights.running == {}


# -- eager tasks

eager = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")


def run_eager(main: Coroutine[Any, Any, Any], clock: VirtualClock) -> Any:
    """Run *main* in a loop whose tasks take their first step when they are made."""

    async def wrapper() -> Any:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        return await main

    return run_virtual(wrapper(), clock)


@eager
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_eager_tasks_share_loads_too(clock: VirtualClock, steps: int) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        calls = 0

        async def load() -> str:
            nonlocal calls
            calls += 1
            await turns(steps)
            return "value"

        assert (
            await asyncio.gather(*(cache.get_or_load("key", load) for _ in range(5)))
            == ["value"] * 5
        )
        assert calls == 1

        async def fail() -> None:
            await turns(steps)
            raise ValueError("expected")

        answers = await asyncio.gather(
            *(cache.get_or_load("bad", fail) for _ in range(5)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [ValueError] * 5
        assert_nothing_runs(cache)

    run_eager(main(), clock)


@eager
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_an_eager_load_ends_the_program(
    clock: VirtualClock, steps: int, interrupt: type[BaseException]
) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def interrupted() -> None:
        await turns(steps)
        raise interrupt

    async def main() -> None:
        await cache.get_or_load("key", interrupted)

    with pytest.raises(interrupt):
        run_eager(main(), clock)
    assert cache._engine.flights.running == {}
    assert cache.stats().loads == 1
