"""What a caller gets in each state of a value, whatever its load does: the table, and its rules."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    LoadTimeoutError,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, run_virtual, settle

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
