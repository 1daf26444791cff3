"""What a caller gets in each state of a value, whatever its load does: the table, and its rules."""

import asyncio
import itertools
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    CacheClosedError,
    LoadTimeoutError,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, begin_tasks_later, run_virtual, settle

Calling = Callable[[], Awaitable[Any]]

TTL = 10.0
OPTIONS: dict[str, Any] = {
    "ttl": TTL,
    "refresh_ahead": 0.8,
    "stale_while_revalidate": 5,
    "stale_if_error": 10,
    "soft_timeout": 2,
    "hard_timeout": 4,
    "load_timeout": 6,
}

AGES = {
    "fresh": 1.0,
    "fresh, past refresh_ahead": 9.0,
    "stale, within stale_while_revalidate": 12.0,
    "stale, within stale_if_error": 17.0,
    "stale, beyond both": 25.0,
    "absent": None,
}

LOADS = ("ok", "slow", "hung", "failing")


class Down(Exception):
    """What the origin raises."""


class Origin:
    """A loader whose mode says what each call does."""

    def __init__(self) -> None:
        self.mode = "instant"
        self.value = "old"
        self.calls = 0
        self.running = 0
        self.cancelled = 0

    async def __call__(self) -> str:
        self.calls += 1
        self.running += 1
        try:
            if self.mode == "hung":
                await asyncio.get_running_loop().create_future()
            if self.mode != "instant":
                await asyncio.sleep(3 if self.mode == "slow" else 1)
            if self.mode == "failing":
                raise Down
            return self.value
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


class Outcome(NamedTuple):
    """The whole outcome of one cell.

    Attributes:
        answer: The value, or the name of the exception.
        waited: Virtual seconds that the caller waited for it.
        loads: Loads begun.
        left: What is stored when all loads are over: "new", "old", or nothing.
        counted: As what the call was counted: "hit" or "miss"; "stale" if it was served so.
    """

    answer: str
    waited: float
    loads: int
    left: str
    counted: str


AT_ONCE = Outcome("old", 0, 0, "old", "hit")
BEHIND = Outcome("old", 0, 1, "new", "hit")
BEHIND_IN_VAIN = Outcome("old", 0, 1, "old", "hit")
LOADED = Outcome("new", 1, 1, "new", "miss")
LOADED_SLOWLY = Outcome("new", 3, 1, "new", "miss")
TIMED_OUT = Outcome("LoadTimeoutError", 4, 1, "", "miss")
FAILED = Outcome("Down", 1, 1, "", "miss")

TABLE: dict[str, tuple[Outcome, Outcome, Outcome, Outcome]] = {
    "fresh": (AT_ONCE, AT_ONCE, AT_ONCE, AT_ONCE),
    "fresh, past refresh_ahead": (BEHIND, BEHIND, BEHIND_IN_VAIN, BEHIND_IN_VAIN),
    "stale, within stale_while_revalidate": (
        BEHIND._replace(counted="hit, stale"),
        BEHIND._replace(counted="hit, stale"),
        BEHIND_IN_VAIN._replace(counted="hit, stale"),
        BEHIND_IN_VAIN._replace(counted="hit, stale"),
    ),
    "stale, within stale_if_error": (
        LOADED,
        Outcome("old", 2, 1, "new", "miss, stale"),
        Outcome("old", 2, 1, "", "miss, stale"),
        Outcome("old", 1, 1, "", "miss, stale"),
    ),
    "stale, beyond both": (LOADED, LOADED_SLOWLY, TIMED_OUT, FAILED),
    "absent": (LOADED, LOADED_SLOWLY, TIMED_OUT, FAILED),
}
"""By state: what happens if the load is ok, slow, hung, failing."""

CELLS = [
    pytest.param(state, load, outcome, id=f"{state}, load {load}")
    for state, row in TABLE.items()
    for load, outcome in zip(LOADS, row, strict=True)
]


def calling(
    cache: AsyncSafeCache, origin: Calling, how: str, **options: Any
) -> tuple[Calling, Any]:
    """Return a call of *origin* through the cache, and the key of its value."""
    if how == "get_or_load":
        return lambda: cache.get_or_load("key", origin, **options), "key"

    @race_safe_cached(cache, **options)
    async def f(x: int) -> str:
        return await origin()

    return lambda: f(1), cache.key_for(f, 1)


HOW = pytest.mark.parametrize("how", ["get_or_load", "decorated"])


# -- the table


@HOW
@pytest.mark.parametrize("callers", [1, 3])
@pytest.mark.parametrize(("state", "load", "outcome"), CELLS)
def test_what_a_caller_gets(
    clock: VirtualClock, state: str, load: str, outcome: Outcome, callers: int, how: str
) -> None:
    """Each cell in full: answer, wait, loads, what is left in the cache, what is counted."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        origin = Origin()
        call, key = calling(cache, origin, how, **OPTIONS)
        age = AGES[state]
        if age is not None:
            assert await call() == "old"
            clock.advance(age)
        before = cache.stats()
        origin.calls, origin.mode, origin.value = 0, load, "new"

        async def caller() -> tuple[str, float]:
            begun = clock.now
            try:
                answer = await call()
            except (Down, LoadTimeoutError) as error:
                answer = type(error).__name__
            return answer, clock.now - begun

        answers = await asyncio.gather(*(caller() for _ in range(callers)))
        assert answers == [(outcome.answer, outcome.waited)] * callers
        stats = cache.stats() - before
        await asyncio.sleep(7)  # whatever goes on behind is over; the new value is still fresh
        assert origin.calls == outcome.loads
        assert origin.running == 0
        left = await cache.lookup(key)
        assert (left.value if left.hit or left.stale else "") == outcome.left
        hits, misses = (callers, 0) if outcome.counted.startswith("hit") else (0, 1)
        assert (stats.hits, stats.misses, stats.coalesced) == (
            hits,
            misses,
            callers - hits - misses,
        )
        assert stats.calls == callers
        assert stats.stale_served == (callers if outcome.counted.endswith("stale") else 0)
        ended = cache.stats() - before
        cancelled_unasked = outcome is TIMED_OUT  # nobody waits for it any more: that is none
        assert ended.loads == (0 if cancelled_unasked else outcome.loads)
        in_vain = load in {"hung", "failing"} and not cancelled_unasked
        assert ended.load_errors == (outcome.loads if in_vain else 0)
        assert ended.load_timeouts == (outcome.loads if in_vain and load == "hung" else 0)

    run_virtual(main(), clock)


# -- refresh_ahead


@HOW
def test_refresh_ahead_auto_begins_the_sooner_the_longer_a_load_takes(
    clock: VirtualClock, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XFetch: at `now - seconds * ln(chance) >= deadline`; ln(0.5) is about -0.693."""
    monkeypatch.setattr(random, "random", lambda: 0.5)

    async def main() -> None:
        for seconds in (1.0, 5.0):
            cache = AsyncSafeCache(clock=clock)
            load = Loader("value", seconds=seconds)
            call = calling(cache, load, how, ttl=10, refresh_ahead="auto")[0]
            await call()
            stored = clock.now
            while load.calls == 1:
                clock.advance(0.01)
                await call()
                await settle(2)
            assert clock.now - stored == pytest.approx(10 - 0.693 * seconds, abs=0.02)
            await asyncio.sleep(10)

    run_virtual(main(), clock)


def test_what_a_refresh_ahead_needs_to_know_is_in_the_weight_of_the_value(
    clock: VirtualClock,
) -> None:
    """It was taken beside the bound, by the first hit past the fraction."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.get_or_load("key", lambda: "value", ttl=10, refresh_ahead=0.5)
        before = cache.memory_bytes
        plain = AsyncSafeCache(clock=clock)
        await plain.get_or_load("key", lambda: "value", ttl=10)
        assert before > plain.memory_bytes

    run_virtual(main(), clock)


@pytest.mark.parametrize("key", [None, lambda x: x], ids=["fast lookup", "key="])
def test_a_touched_value_is_refreshed_after_the_fraction_of_its_new_ttl(
    clock: VirtualClock, key: Any
) -> None:
    """Where there is no fast lookup, it was refreshed by the fraction of its whole life."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader()

        @race_safe_cached(cache, ttl=100, refresh_ahead=0.8, key=key)
        async def f(x: int) -> Any:
            return await load()

        await f(1)
        clock.advance(70)
        assert await cache.touch(cache.key_for(f, 1), 10)
        begun = []
        for _ in range(19):  # up to 79.5
            begun.append((clock.now - 1000, load.calls))
            await f(1)
            await settle()
            clock.advance(0.5)
        assert [after for after, calls in begun if calls == 1][-1] == 78.0, begun

    run_virtual(main(), clock)


# -- load_timeout


async def timed_out(call: Any, option: str) -> float:
    """Return the virtual time at which *call* raised the LoadTimeoutError of *option*."""
    with pytest.raises(LoadTimeoutError) as raised:
        await call
    assert raised.value.option == option
    return asyncio.get_running_loop().time()


def test_a_load_that_timed_out_can_be_an_answer(clock: VirtualClock) -> None:
    """Where `negative` names it: it is remembered as any other failure; it was not."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "late", "new", seconds=5)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100}
        await cache.get_or_load("key", load, **options)
        clock.advance(11)
        options |= {"load_timeout": 1, "negative": {TimeoutError: 60}}
        begun = clock.now
        for seconds in (1, 1, 1):  # the load's, then its memory at once
            assert await timed_out(cache.get_or_load("key", load, **options), "load_timeout") == (
                begun + seconds
            )
        assert load.calls == 2
        clock.advance(60)
        assert await cache.get_or_load("key", load, ttl=10) == "new"
        stats = cache.stats()
        assert (stats.loads, stats.load_errors, stats.load_timeouts) == (3, 1, 1)

    run_virtual(main(), clock)


def test_a_load_that_timed_out_is_told_of_once(clock: VirtualClock) -> None:
    """One that ended with a value in spite of its cancellation was told as loaded, too."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        events: list[Any] = []
        for name in ("loaded", "load_failed"):
            cache.on(name, events.append)  # type: ignore[call-overload]

        async def stubborn() -> str:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                pass
            return "late"

        await timed_out(cache.get_or_load("key", stubborn, load_timeout=1), "load_timeout")
        await settle()
        assert [type(each).__name__ for each in events] == ["LoadFailed"]
        assert cache.stats().loads == 1
        assert len(cache) == 0

    run_virtual(main(), clock)


# -- hard_timeout


def test_a_caller_who_waits_no_longer_ends_no_load_that_was_to_finish(
    clock: VirtualClock,
) -> None:
    """It cancelled the load of one who had asked for on_abandon="finish" and left."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(seconds=10)
        leader = asyncio.ensure_future(cache.get_or_load("key", load, on_abandon="finish"))
        await settle()
        other = asyncio.ensure_future(cache.get_or_load("key", load, hard_timeout=1))
        await settle()
        leader.cancel()
        await timed_out(other, "hard_timeout")
        await asyncio.sleep(10)
        assert (cache.peek("key"), load.cancelled) == ("value", 0)

    run_virtual(main(), clock)


def test_a_caller_waits_no_longer_than_its_hard_timeout_and_the_others_do(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache("prices", clock=clock)
        load = Loader(seconds=10)
        begun = clock.now
        calls = [
            cache.get_or_load("key", load, **options)
            for options in ({"hard_timeout": 1}, {}, {"hard_timeout": 2}, {"hard_timeout": 20})
        ]
        first, second, third, fourth = (asyncio.ensure_future(call) for call in calls)
        assert await timed_out(first, "hard_timeout") == begun + 1
        assert await timed_out(third, "hard_timeout") == begun + 2
        assert (await second, await fourth, clock.now) == ("value", "value", begun + 10)
        error = first.exception()
        assert isinstance(error, LoadTimeoutError)
        assert isinstance(error, TimeoutError)
        assert (error.name, error.seconds) == ("prices", 1)
        assert "prices" in str(error)
        assert "key" not in str(error)
        assert (load.calls, load.cancelled) == (1, 0)
        stats = cache.stats()
        assert (stats.loads, stats.load_errors, stats.load_timeouts) == (1, 0, 0)

    run_virtual(main(), clock)


def test_a_load_that_nobody_waits_for_any_more_is_cancelled_and_the_key_is_free(
    clock: VirtualClock,
) -> None:
    """The last caller's hard_timeout ends also what a soft_timeout had left to go on."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "hangs", "new", seconds=0)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 6, "soft_timeout": 1}
        await cache.get_or_load("key", load, **options)
        clock.advance(14)
        load.seconds = 1000
        assert await cache.get_or_load("key", load, **options) == "old"
        assert load.ended == 1, "it goes on"
        load.seconds = 0
        await timed_out(cache.get_or_load("key", load, ttl=10, hard_timeout=3), "hard_timeout")
        await settle()
        assert (load.calls, load.cancelled) == (2, 1)
        assert await cache.get_or_load("key", load, ttl=10) == "new"
        assert cache.stats().overlapping_loads == 0

    run_virtual(main(), clock)


@pytest.mark.parametrize("option", ["soft_timeout", "hard_timeout"])
@pytest.mark.parametrize("outer", [0.5, 1.0, 1.5])
def test_a_timeout_leaves_the_cancellations_of_its_task_alone(
    clock: VirtualClock, option: str, outer: float
) -> None:
    """Inside asyncio.timeout and a task group; also when both are due at one moment."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 10, option: 1}
        await cache.get_or_load("key", load, **options)
        clock.advance(11)
        load.seconds = 60
        results: list[object] = []

        async def caller() -> None:
            task = asyncio.current_task()
            assert task is not None
            try:
                async with asyncio.timeout(outer) as scope:
                    results.append(await cache.get_or_load("key", load, **options))
            except TimeoutError as error:
                results.append(type(error).__name__)
                assert scope.expired()
            assert task.cancelling() == 0
            await asyncio.sleep(1)  # nothing is left that would end it

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(caller())
        assert len(results) == 3
        expected = {"TimeoutError"} if outer < 1 else {"old"}
        if outer == 1:
            expected |= {"TimeoutError"}
        assert set(map(str, results)) <= expected

    run_virtual(main(), clock)


def test_a_caller_that_is_cancelled_as_its_time_is_up_is_cancelled(clock: VirtualClock) -> None:
    """And nothing of it stays behind: no waiter, no timer."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        for late in (False, True):
            cache = AsyncSafeCache(clock=clock)
            load = Loader(seconds=60)
            caller = asyncio.ensure_future(cache.get_or_load("key", load, hard_timeout=1))
            await settle()
            if late:  # the timer has rung, the caller has not run yet
                loop.call_at(loop.time() + 1, caller.cancel)
            else:
                loop.call_at(loop.time() + 1 - 1e-6, caller.cancel)
            with pytest.raises(asyncio.CancelledError):
                await caller
            await settle()
            assert (load.calls, load.cancelled) == (1, 1)
            assert [each for each in loop._scheduled if not each.cancelled()] == []

    run_virtual(main(), clock)


# -- load_timeout, again


def test_who_waits_for_a_load_that_takes_too_long_is_told_at_once(clock: VirtualClock) -> None:
    """Its clean-up takes 3 s: those who waited do not wait for that, newcomers do."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        begun, calls = clock.now, 0

        async def load() -> str:
            nonlocal calls
            calls += 1
            if calls > 1:
                return "new"
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(3)
            return "never"

        def call(grace: float) -> Any:
            return cache.get_or_load("key", load, load_timeout=2, cancel_grace=grace)

        first, second = asyncio.ensure_future(call(5)), asyncio.ensure_future(call(5))
        assert await timed_out(first, "load_timeout") == begun + 2
        assert await timed_out(second, "load_timeout") == begun + 2
        assert (await cache.explain("key")).in_flight == "cancelling"
        assert (await call(5), clock.now, calls) == ("new", begun + 5, 2)
        stats = cache.stats()
        assert (stats.loads, stats.load_errors, stats.load_timeouts) == (2, 1, 1)
        assert stats.overlapping_loads == 0

    run_virtual(main(), clock)


def test_a_clean_up_that_takes_longer_than_the_grace_is_overtaken(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        begun, calls = clock.now, 0

        async def load() -> str:
            nonlocal calls
            calls += 1
            if calls > 1:
                return "new"
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(100)
            return "never"

        def call() -> Any:
            return cache.get_or_load("key", load, load_timeout=2, cancel_grace=1)

        await timed_out(call(), "load_timeout")
        assert (await call(), clock.now) == ("new", begun + 3)
        assert cache.stats().overlapping_loads == 1
        assert "not cleaned up" in caplog.text
        await asyncio.sleep(200)
        assert cache.peek("key") == "new", "what ends late stores nothing"

    run_virtual(main(), clock)


def test_a_load_that_ends_in_time_leaves_no_alarm(clock: VirtualClock) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        cache = AsyncSafeCache(clock=clock)
        for seconds, later in itertools.product((0.0, 1.0), (False, True)):
            if later:
                begin_tasks_later()
            load = Loader(seconds=seconds)
            options: dict[str, Any] = {"load_timeout": 5, "hard_timeout": 5}
            assert await cache.get_or_load((seconds, later), load, **options) == "value"
            await settle()
            assert [each for each in loop._scheduled if not each.cancelled()] == []

    run_virtual(main(), clock)


# -- stale_while_revalidate, stale_if_error


def test_a_value_is_kept_for_the_longer_window_and_each_reader_has_its_own(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 5, "stale_if_error": 30}
        await cache.get_or_load("key", lambda: "old", **options)
        clock.advance(20)  # 10 s past its ttl, kept for 30
        failing = Loader(Down())

        async def read(**own: Any) -> Any:
            """Return what is read under *own* options, by a caller who is told of no failure."""
            own.setdefault("error_backoff", 0)
            try:
                return await cache.get_or_load("key", failing, ttl=10, **own)
            except Down:
                return "failed"

        assert await read() == "failed"
        assert await read(stale_while_revalidate=5) == "failed"
        assert await read(stale_if_error=10) == "failed", "10 s are over at 10 s"
        assert await read(stale_if_error=10.001) == "old"
        assert (await read(stale_if_error=500), failing.calls) == ("old", 5)
        assert (await read(stale_while_revalidate=500), failing.calls) == ("old", 5)
        await settle()
        assert failing.calls == 6, "behind"
        clock.advance(19.999)
        assert await read(stale_if_error=500) == "old"
        clock.advance(0.001)
        assert await read(stale_if_error=500) == "failed", "it is kept no more"

    run_virtual(main(), clock)


def test_a_reader_that_wants_no_stale_value_waits_for_the_refresh_that_runs(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=1)
        await cache.get_or_load("key", load, ttl=10, stale_while_revalidate=30)
        clock.advance(11)
        assert await cache.get_or_load("key", load, ttl=10, stale_while_revalidate=30) == "old"
        begun = clock.now
        assert (await cache.get_or_load("key", load, ttl=10), clock.now) == ("new", begun + 1)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.coalesced, load.calls) == (1, 1, 1, 2)

    run_virtual(main(), clock)


def test_a_failure_that_is_an_answer_is_no_failure_to_stand_in_for(clock: VirtualClock) -> None:
    """The user is gone: that is the newest that is known, and the older one is gone, too."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", LookupError("no such user"), "new")
        options: dict[str, Any] = {
            "ttl": 10,
            "stale_if_error": 100,
            "negative": {LookupError: 5},
        }
        await cache.get_or_load("key", load, **options)
        clock.advance(11)
        for seconds in (0, 4, 0.9):
            clock.advance(seconds)
            with pytest.raises(LookupError, match="no such user"):
                await cache.get_or_load("key", load, **options)
        assert load.calls == 2
        clock.advance(0.1)
        assert await cache.get_or_load("key", load, **options) == "new"
        assert cache.stats().stale_served == 0

    run_virtual(main(), clock)


def test_a_refresh_behind_that_ends_with_an_answer_ends_the_stale_value(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", LookupError("no such user"))
        options: dict[str, Any] = {
            "ttl": 10,
            "stale_while_revalidate": 100,
            "negative": {LookupError: 5},
        }
        await cache.get_or_load("key", load, **options)
        clock.advance(11)
        assert await cache.get_or_load("key", load, **options) == "old"
        await settle()
        with pytest.raises(LookupError, match="no such user"):
            await cache.get_or_load("key", load, **options)
        assert load.calls == 2

    run_virtual(main(), clock)


def test_a_closed_cache_serves_nothing_stale(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100, "soft_timeout": 5}
        await cache.get_or_load("key", load, **options)
        clock.advance(11)
        load.seconds = 60
        waiting = asyncio.ensure_future(cache.get_or_load("key", load, **options))
        await settle()
        await cache.aclose()
        with pytest.raises(CacheClosedError):
            await waiting
        with pytest.raises(CacheClosedError):
            await cache.get_or_load("key", load, **options)
        assert cache.stats().stale_served == 0

    run_virtual(main(), clock)


def test_closing_ends_a_refresh_behind(clock: VirtualClock) -> None:
    """No task is left, and what it was to bring is not stored when the cache opens again."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 100, "load_timeout": 90}
        await cache.get_or_load("key", load, **options)
        for drain, calls, cancelled in ((False, 2, 1), (True, 4, 1)):
            clock.advance(11)
            load.seconds = 2
            assert await cache.get_or_load("key", load, **options) in {"old", "new"}
            await settle()
            assert load.calls == calls
            await cache.aclose(drain=drain, timeout=5)
            assert load.cancelled == cancelled
            assert len(asyncio.all_tasks()) == 1
            await cache.start()
            assert len(cache) == 0
            load.seconds = 0
            await cache.get_or_load("key", load, **options)
        await cache.aclose()

    run_virtual(main(), clock)


# -- soft_timeout


def test_who_would_wait_in_vain_takes_the_stale_value_at_once(clock: VirtualClock) -> None:
    """The load that runs has outlived his patience already; a more patient one waits on."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)
        begun = clock.now

        async def read(soft: float | None) -> tuple[Any, float]:
            value = await cache.get_or_load(
                "key", load, ttl=10, stale_if_error=100, soft_timeout=soft
            )
            return value, clock.now - begun

        await read(1)
        clock.advance(11)
        begun, load.seconds = clock.now, 10
        assert await read(1) == ("old", 1)
        assert await read(1) == ("old", 1), "at once"
        assert await read(1.5) == ("old", 2.5), "1.5 s later: it has outlived no 1.5 s yet"
        assert await read(1.5) == ("old", 2.5), "at once"
        assert await read(None) == ("new", 10)
        assert await read(1) == ("new", 10)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.coalesced) == (3, 2, 2)
        assert (stats.stale_served, stats.loads, load.calls) == (4, 2, 2)

    run_virtual(main(), clock)


@pytest.mark.parametrize("kept", [10, 100])
def test_a_stale_value_that_grows_too_old_while_its_caller_waits_is_not_taken(
    clock: VirtualClock, kept: float
) -> None:
    """The caller's window ends at 10 s; its patience, too late, at 12."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, default_ttl=10, stale_if_error=kept)
        load = Loader("old", "new", seconds=0)
        options: dict[str, Any] = {"stale_if_error": 10, "soft_timeout": 4}
        await cache.get_or_load("key", load)
        clock.advance(18)
        begun, load.seconds = clock.now, 6
        assert (await cache.get_or_load("key", load, **options), clock.now) == ("new", begun + 6)
        load.seconds = 0
        await cache.expire("key")
        await cache.get_or_load("key", load)
        clock.advance(18)
        load.results, load.seconds = (*load.results, Down()), 6
        with pytest.raises(Down):
            await cache.get_or_load("key", load, **options)
        assert (load.calls, cache.stats().stale_served) == (4, 0)
        assert cache.stats().calls == 4

    run_virtual(main(), clock)


# -- error_backoff


@HOW
def test_who_waits_tries_again_at_once_unless_told_otherwise(clock: VirtualClock, how: str) -> None:
    """An origin that is back is noticed by the next caller."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", Down(), Down(), "new")
        call = calling(cache, load, how, ttl=10, stale_if_error=1000)[0]
        await call()
        clock.advance(10)
        assert [await call(), await call(), await call()] == ["old", "old", "new"]
        assert load.calls == 4

    run_virtual(main(), clock)


@HOW
@pytest.mark.parametrize("option", ["stale_while_revalidate", "stale_if_error", "refresh_ahead"])
def test_a_failing_origin_is_left_alone_longer_after_each_failure(
    clock: VirtualClock, how: str, option: str
) -> None:
    """Asked eight times a second: 1, 2, 4 ... 32 s between tries, a tenth less at the least."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", *[Down()] * 10, "new")
        options: dict[str, Any] = {"ttl": 10, option: 1000}
        if option == "refresh_ahead":
            options = {"ttl": 1000, option: 0.01}
        if option == "stale_if_error":
            options["error_backoff"] = 1
        call = calling(cache, load, how, **options)[0]
        await call()
        clock.advance(10)
        begun: list[float] = []
        while load.calls < 12:
            before = load.calls
            answer = await call()
            await settle(3)
            if load.calls > before:
                begun.append(clock.now)
            assert answer == "old" or load.calls == 12
            clock.advance(0.125)
        waits = [later - earlier for earlier, later in itertools.pairwise(begun)]
        seconds = [1, 2, 4, 8, 16, 32, 32, 32, 32, 32]
        for most, wait in zip(seconds, waits, strict=True):
            assert 0.9 * most <= wait < most + 0.125, waits
        assert await call() == "new"

    run_virtual(main(), clock)


def test_a_success_ends_the_row_of_failures(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("1", Down(), Down(), Down(), "2", Down(), Down(), "3")
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 1000, "error_backoff": 4}
        await cache.get_or_load("key", load, **options)
        # Tries after 4, 8 and 16 s; then a value for 10 s; then after 4 and 8 s.
        for seconds, calls in ((10, 2), (4, 3), (8, 4), (16, 5), (10, 6), (3.5, 6), (0.5, 7)):
            clock.advance(seconds)
            await cache.get_or_load("key", load, **options)
            assert load.calls == calls, (seconds, calls)

    run_virtual(main(), clock)


def test_without_a_value_or_a_backoff_each_call_tries(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(Down())
        for calls in (1, 2, 3):
            with pytest.raises(Down):
                await cache.get_or_load("key", load, ttl=10, stale_if_error=100)
            assert load.calls == calls
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100, "error_backoff": 0}
        await cache.get_or_load("other", lambda: "old", **options)
        clock.advance(10)
        for calls in (4, 5, 6):
            assert await cache.get_or_load("other", load, **options) == "old"
            assert load.calls == calls

    run_virtual(main(), clock)


def test_within_the_backoff_a_reader_that_wants_no_stale_value_tries(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100, "error_backoff": 60}
        for wanted in ({}, {"stale_if_error": 5}, {"stale_while_revalidate": 5}):
            load = Loader("old", Down(), "new")
            await cache.get_or_load("key", load, **options)
            clock.advance(15)
            assert await cache.get_or_load("key", load, **options) == "old"
            assert await cache.get_or_load("key", load, **options) == "old"
            assert await cache.get_or_load("key", load, ttl=10, **wanted) == "new"
            await cache.delete("key")

    run_virtual(main(), clock)


# -- refresh_ahead, again


@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_a_refresh_that_takes_longer_than_the_ttl_is_not_stacked(
    clock: VirtualClock, chance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read once a second for two minutes: one load at a time, each lands."""
    monkeypatch.setattr(random, "random", lambda: chance)

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        running = most = loads = 0

        @race_safe_cached(cache, ttl=10, refresh_ahead=0.5, stale_while_revalidate=60)
        async def f(x: int) -> int:
            nonlocal running, most, loads
            loads += 1
            number = loads
            running += 1
            most = max(most, running)
            await asyncio.sleep(0 if number == 1 else 20)
            running -= 1
            return number

        values = []
        for _ in range(130):
            values.append(await f(1))
            await asyncio.sleep(1)
        assert most == 1
        assert values == sorted(values)
        # Each is stored 20 s after it began, and refreshed 5 s after it was stored.
        assert [values.count(number) for number in range(1, 7)] == [25, 25, 25, 25, 25, 5]
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.overlapping_loads) == (129, 1, 0)

    run_virtual(main(), clock)


def test_while_a_refresh_runs_hits_are_fast_and_look_again_after_a_second(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)

        @race_safe_cached(cache, ttl=100, refresh_ahead=0.5)
        async def f(x: int) -> Any:
            return await load()

        counters: Any = vars(f)["__async_safe_cache__"].counters

        async def slow_hits(reads: int) -> int:
            before = counters.other_hits
            for _ in range(reads):
                await f(1)
            slow: int = counters.other_hits - before
            return slow

        await f(1)
        assert await slow_hits(5) == 0
        clock.advance(50)
        load.seconds = 10
        assert await slow_hits(5) == 1, "the one that begins the refresh"
        await asyncio.sleep(0.9)
        assert await slow_hits(5) == 0
        await asyncio.sleep(0.1)
        assert await slow_hits(5) == 1, "it still runs: look again in a second"
        assert load.calls == 2
        await asyncio.sleep(9)
        assert await f(1) == "new"
        assert await slow_hits(5) == 0

    run_virtual(main(), clock)


@HOW
def test_a_refresh_ahead_that_hangs_is_not_for_ever(clock: VirtualClock, how: str) -> None:
    """Its load_timeout ends it; the value that is held is still fresh, and tried again."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        origin = Origin()
        options: dict[str, Any] = {"ttl": 100, "refresh_ahead": 0.5, "load_timeout": 5}
        call = calling(cache, origin, how, **options)[0]
        await call()
        clock.advance(50)
        origin.mode = "hung"
        assert await call() == "old"
        await asyncio.sleep(5)
        assert (origin.calls, origin.cancelled) == (2, 1)
        assert await call() == "old"
        assert origin.calls == 2, "error_backoff"
        await asyncio.sleep(1)
        origin.mode, origin.value = "instant", "new"
        assert await call() == "old"
        await settle()
        assert await call() == "new"
        assert cache.stats().load_timeouts == 1

    run_virtual(main(), clock)


@pytest.mark.parametrize("options", [{"ttl": None}, {"ttl": 10, "refresh_ahead": None}])
def test_a_value_that_is_fresh_for_ever_is_never_refreshed_ahead(
    clock: VirtualClock, options: dict[str, Any]
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, default_ttl=10, refresh_ahead=0.01)
        load = Loader()
        for how in ("get_or_load", "decorated"):
            call = calling(cache, load, how, **options)[0]
            before = load.calls
            for _ in range(9):
                await call()
                await settle(3)
                clock.advance(1)
            assert load.calls == before + 1

    run_virtual(main(), clock)


# -- each level of options


def test_a_call_overrules_a_function_and_a_function_its_cache(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(
            clock=clock, default_ttl=10, stale_while_revalidate=100, hard_timeout=1
        )
        load = Loader("old", "new", seconds=0)
        await cache.get_or_load("key", load)
        clock.advance(10)
        load.seconds = 0.5
        assert await cache.get_or_load("key", load) == "old", "by the cache's options"
        assert await cache.get_or_load("key", load, stale_while_revalidate=None) == "new"

        load = Loader("old", "new", seconds=0)

        @race_safe_cached(cache, stale_while_revalidate=None, hard_timeout=None, ttl=5)
        async def f(x: int) -> Any:
            return await load()

        await f(1)
        clock.advance(5)
        load.seconds = 7
        assert await f(1) == "new", "after 7 s, and not before"
        await cache.set("other", "old")
        clock.advance(10)
        assert (await cache.lookup("other")).stale, "what is set is kept, too"

    run_virtual(main(), clock)


# -- a plain def


def test_a_def_serves_what_is_stale_in_place_of_a_failure(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    results: list[Any] = ["old", Down(), Down(), "new"]

    @race_safe_cached(cache, ttl=10, stale_if_error=100, error_backoff=4)
    def f(x: int) -> Any:
        result = results.pop(0)
        if isinstance(result, Down):
            raise result
        return result

    assert f(1) == "old"
    # It fails, is left alone for 4 s, fails, is left alone for 8 s, and is back.
    for seconds, left, value in (
        (10, 2, "old"),
        (3.5, 2, "old"),
        (0.5, 1, "old"),
        (7, 1, "old"),
        (1, 0, "new"),
    ):
        clock.advance(seconds)
        assert (f(1), len(results)) == (value, left)
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stale_served) == (2, 4, 4)
    assert (stats.loads, stats.load_errors) == (4, 2)
    clock.advance(120)
    results.append(Down())
    with pytest.raises(Down):
        f(1)


def test_a_def_that_waits_for_another_thread_does_so_no_longer_than_its_hard_timeout(
    clock: VirtualClock,
) -> None:
    """With a stale value at hand it takes that; whoever loads in his own thread cannot stop."""
    cache = AsyncSafeCache(clock=clock)
    inside, go_on = threading.Event(), threading.Event()
    loads = 0

    @race_safe_cached(cache, ttl=10, stale_if_error=100, hard_timeout=0.05)
    def f(x: int) -> int:
        nonlocal loads
        loads += 1
        if loads > 1:
            inside.set()
            assert go_on.wait(30)
        return loads

    def loading() -> None:
        leaders.append(f(1))

    leaders: list[int] = []
    for age, stale in ((10, True), (200, False)):
        assert loads in {0, 2}
        loads = 0
        f.cache_clear()  # type: ignore[attr-defined]
        assert f(1) == 1
        clock.advance(age)
        inside.clear()
        go_on.clear()
        thread = threading.Thread(target=loading)
        thread.start()
        assert inside.wait(30)
        if stale:
            assert f(1) == 1
        else:
            with pytest.raises(LoadTimeoutError) as raised:
                f(1)
            assert (raised.value.option, raised.value.seconds) == ("hard_timeout", 0.05)
        go_on.set()
        thread.join(30)
    assert leaders == [2, 2]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.coalesced, stats.stale_served) == (0, 4, 2, 1)


@pytest.mark.parametrize(
    "option",
    ["stale_while_revalidate", "refresh_ahead", "soft_timeout", "load_timeout", "on_abandon"],
)
def test_what_needs_a_task_is_refused_for_a_def_and_no_default_of_a_cache_is(
    clock: VirtualClock, option: str
) -> None:
    value: Any = {"on_abandon": "finish", "refresh_ahead": 0.5}.get(option, 1)
    given: dict[str, Any] = {option: value}
    with pytest.raises(TypeError, match=f"{option} needs a task .* plain `def`"):

        @race_safe_cached(AsyncSafeCache(clock=clock), ttl=10, stale_if_error=5, **given)
        def refused(x: int) -> None: ...

    cache = AsyncSafeCache(clock=clock, default_ttl=10, **given)
    calls = 0

    @race_safe_cached(cache)
    def f(x: int) -> int:
        nonlocal calls
        calls += 1
        return calls

    assert f(1) == 1
    clock.advance(9.5)
    assert f(1) == 1
    clock.advance(0.5)
    assert f(1) == 2, "it waits for its load, as if the option were not there"


# -- the page


def in_words(outcome: Outcome) -> str:
    """Return a cell as docs/freshness.md says it."""
    answer = "its error" if outcome.answer == "Down" else outcome.answer
    when = f"after {outcome.waited:g} s" if outcome.waited else "at once"
    changed = outcome.left == "new" and outcome.answer == "old"
    return f"{answer} {when}{', then new' if changed else ''}"


def test_the_page_says_what_each_caller_gets() -> None:
    page = (Path(__file__).parent.parent / "docs" / "freshness.md").read_text(encoding="utf-8")
    section = page.partition("## What each caller gets")[2].partition("\n- **")[0]
    for name, value in OPTIONS.items():
        assert f"{name}={value:g}" in section
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    told = {row[0].replace("`", ""): tuple(row[1:]) for row in rows[2:]}
    assert told == {state: tuple(map(in_words, row)) for state, row in TABLE.items()}


# -- all of it at once


@pytest.mark.parametrize("seed", range(8))
def test_in_a_storm_nobody_waits_too_long_or_gets_what_is_too_old(
    clock: VirtualClock, seed: int
) -> None:
    """Callers with options of all kinds, and an origin that is slow, fails and hangs by chance."""
    chance = random.Random(seed)

    async def origin() -> float:
        """Return when it ended: the age of what a caller gets can be told."""
        whim = chance.random()
        if whim < 0.1:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(chance.choice([0, 0.5, 3, 12]))
        if whim < 0.4:
            raise Down
        return clock.now

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, load_timeout=20)
        served = errors = 0

        async def caller() -> None:
            nonlocal served, errors
            await asyncio.sleep(chance.uniform(0, 300))
            key = chance.randrange(4)
            options: dict[str, Any] = {
                name: value
                for name, value in (
                    ("stale_while_revalidate", chance.choice([None, 5, 40])),
                    ("stale_if_error", chance.choice([None, 10, 100])),
                    ("refresh_ahead", chance.choice([None, 0.5, "auto"])),
                    ("hard_timeout", chance.choice([None, 2, 6])),
                    ("on_abandon", chance.choice([None, "finish", "cancel"])),
                )
                if value is not None
            }
            window = max(options.get("stale_while_revalidate", 0), options.get("stale_if_error", 0))
            if window and chance.random() < 0.5:
                options["soft_timeout"] = 1
            held = (await cache.lookup(key)).value
            begun = clock.now
            try:
                value = await cache.get_or_load(key, origin, ttl=10, **options)
            except (Down, LoadTimeoutError):
                errors += 1
                left = await cache.lookup(key)
                assert not (left.stale and clock.now < left.value + 10 + window), "it is held"
            else:
                served += 1
                assert clock.now < value + 10 + window, "too old"
                assert value >= (held if isinstance(held, float) else 0), "older than was known"
            assert clock.now - begun < options.get("hard_timeout", 60) + 0.001

        async with asyncio.TaskGroup() as group:
            for _ in range(400):
                group.create_task(caller())
        assert served + errors == 400
        assert served > 200
        stats = cache.stats()
        assert stats.calls == 800 + errors, "each lookup is one, too"
        assert min(stats.stale_served, stats.load_timeouts, stats.load_errors, stats.hits) > 0
        assert stats.overlapping_loads == 0
        await asyncio.sleep(30)
        assert cache._engine.flights.running == {}
        assert len(asyncio.all_tasks()) == 1
        loop: Any = asyncio.get_running_loop()
        assert [each for each in loop._scheduled if not each.cancelled()] == []

    run_virtual(main(), clock)
