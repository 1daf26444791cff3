"""Freshness: what the explorer has found, told with its schedule, and what it cannot show."""

import asyncio
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    CacheWarmingStrategy,
    LoadTimeoutError,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, run_virtual, settle


def refreshers() -> int:
    """Return how many tasks of background refreshes there are."""
    return sum("refresher" in task.get_name() for task in asyncio.all_tasks())


def slow_to_end(turns: int = 5) -> Any:
    """Return a loader that never gives anything, and takes some turns of the loop to end."""

    async def load() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            await settle(turns)
        return 0

    return load


async def refreshing(cache: AsyncSafeCache, *, loading: bool = True) -> CacheWarmingStrategy:
    """Return a strategy whose background refresh waits, or is in the middle of a load."""
    warming = CacheWarmingStrategy(cache, concurrency=1)
    warming.register(["key"], slow_to_end(), every=1 if loading else 60)
    await warming.start_background_refresh(interval=0.5)
    await asyncio.sleep(2.25)
    assert len(cache._engine.flights.running) == loading
    return warming


# -- what the explorer has found


def test_a_close_beside_a_stop_waits_for_the_refresh_too(clock: VirtualClock) -> None:
    """stop() waits for its task; aclose() comes, looks for background work, and returns.

    The first step of stop() took the refresher out of what aclose() waits for:
    stop | aclose, to its end | the refresher's task, still ending.
    """

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = await refreshing(cache, loading=False)
        await cache._sweeper.stop(1)  # in that schedule it ended a step before the refresher
        stopping = asyncio.create_task(warming.stop())
        await asyncio.sleep(0)
        await cache.aclose()
        assert not refreshers()
        await stopping

    run_virtual(main(), clock)


def test_a_stop_that_is_cancelled_leaves_the_rest_to_the_next(clock: VirtualClock) -> None:
    """The second caller, or a close, waits for the end that the first one has asked for."""

    async def main() -> None:
        for end in ("stop", "aclose"):
            cache = AsyncSafeCache(clock=clock)
            warming = await refreshing(cache)
            stopping = asyncio.create_task(warming.stop())
            await asyncio.sleep(0)
            stopping.cancel()
            await (warming.stop() if end == "stop" else cache.aclose())
            assert not refreshers()
            assert stopping.cancelled()
            await cache.aclose()

    run_virtual(main(), clock)


def test_a_close_that_is_cancelled_ends_the_refresh_all_the_same(clock: VirtualClock) -> None:
    """It waits for the sweeper first: cancelled there, it had told the refresher nothing."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await refreshing(cache)
        closing = asyncio.create_task(cache.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await settle(20)
        assert closing.cancelled()
        assert not refreshers(), "it runs on in a closed cache"

    run_virtual(main(), clock)


# -- what it cannot show


def test_who_waits_for_a_clean_up_first_waits_no_longer_for_that(clock: VirtualClock) -> None:
    """hard_timeout counts from the call, whatever it waits for: an end, then a load."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def hang() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(4)

        gone = asyncio.create_task(cache.get_or_load("key", hang))
        await asyncio.sleep(1)
        gone.cancel()
        await asyncio.sleep(0)
        begun = clock.now
        load = Loader("late", seconds=10)
        with pytest.raises(LoadTimeoutError):
            await cache.get_or_load("key", load, hard_timeout=6, cancel_grace=30)
        assert load.calls == 1, "it did not wait for the clean-up, but for nothing else"
        assert clock.now == pytest.approx(begun + 6)
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_hit_during_a_refresh_ahead_keeps_to_the_ttl(clock: VirtualClock) -> None:
    """While a load runs hits look for it once a second, and at the deadline in any case."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("first", "second", seconds=3)

        @race_safe_cached(cache, ttl=10, refresh_ahead=0.5)
        async def f(x: int) -> Any:
            return await load()

        assert await f(1) == "first"
        clock.advance(9.5)
        assert await f(1) == "first"
        await settle()
        clock.advance(0.4)
        assert await f(1) == "first"
        clock.advance(0.2)  # a tenth past its ttl, less than a second after the last look
        assert await f(1) == "second"
        assert load.calls == 2

    run_virtual(main(), clock)
