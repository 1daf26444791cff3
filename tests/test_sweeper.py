"""The sweeper frees memory; reads never need it."""

import asyncio
from itertools import pairwise

from async_safe_cache import AsyncSafeCache
from async_safe_cache._cache import SWEEP_SLICE

from .virtual import VirtualClock, at_once, run_virtual, settle


def test_the_sweeper_frees_what_is_due(clock: VirtualClock) -> None:
    async def main() -> None:
        async with AsyncSafeCache(clock=clock) as cache:
            for key in range(5 * SWEEP_SLICE):
                await cache.set(key, key, ttl=5)
            await cache.set("kept", 1, ttl=60)
            await asyncio.sleep(7)
            assert cache.stats().removals_by_cause["EXPIRED"] == 5 * SWEEP_SLICE
            assert cache.memory_bytes < 2_000
            assert len(cache) == 1

    run_virtual(main(), clock)


def test_a_sweep_lets_others_run_between_its_slices(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        for key in range(3_000):
            await cache.set(key, key, ttl=5)
        clock.advance(10)
        sweep = asyncio.create_task(cache._sweep())
        seen = []
        while not sweep.done():
            seen.append(len(cache._engine.store.order))
            await asyncio.sleep(0)
        steps = [before - after for before, after in pairwise(seen)]
        assert max(steps) <= SWEEP_SLICE
        assert len(cache._engine.store.order) == 0

    run_virtual(main(), clock)


def test_a_sweep_against_writes_of_the_same_keys(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        for key in range(500):
            await cache.set(key, "old", ttl=5)
        clock.advance(5)
        sweep = asyncio.create_task(cache._sweep())
        for key in range(500):
            await cache.set(key, "new", ttl=5)
            if key % 50 == 0:
                await asyncio.sleep(0)
        await sweep
        assert len(cache) == 500
        assert set((await cache.get_many(range(500))).values()) == {"new"}

    run_virtual(main(), clock)


def test_reads_are_right_without_any_sweep(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set("key", 1, ttl=5))
    clock.advance(1e6)
    assert at_once(cache.get("key")) is None
    assert len(cache) == 0
    assert cache.health()["cache_stats"]["entries"] == 0


def test_a_failing_sweep_is_counted_shown_and_tried_again(clock: VirtualClock) -> None:
    async def main() -> None:
        async with AsyncSafeCache(clock=clock) as cache:
            cache._sweeper._job = broken  # the supervisor must outlive any job
            await asyncio.sleep(3.5)
            health = cache.health()
            state = health["background"]["sweeper"]
            assert (state["errors"], state["failing"], state["last_error"]) == (3, 3, "OSError")
            assert health["status"] == "degraded"
            assert [alert["name"] for alert in health["alerts"]] == ["sweeper"]
            cache._sweeper._job = cache._sweep
            await cache.set("key", 1, ttl=1)
            await asyncio.sleep(2.5)
            health = cache.health()
            assert health["status"] == "healthy"
            assert health["background"]["sweeper"]["errors"] == 3
            assert health["background"]["sweeper"]["last_success_age"] <= 1
            assert len(cache._engine.store.order) == 0

    async def broken() -> None:
        raise OSError("broken")

    run_virtual(main(), clock)


def test_a_sweeper_cancelled_from_outside_is_named_and_starts_again(clock: VirtualClock) -> None:
    async def main() -> None:
        async with AsyncSafeCache(clock=clock) as cache:
            assert cache._sweeper._task is not None
            cache._sweeper._task.cancel()
            await settle()
            assert [alert["name"] for alert in cache.health()["alerts"]] == ["sweeper"]
            await cache.get_or_load("key", lambda: 1)
            assert cache.health()["status"] == "healthy"

    run_virtual(main(), clock)


def test_a_sweeper_whose_loop_ended_starts_again_in_the_next(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def first() -> None:
        await cache.start()

    async def second() -> None:
        assert [alert["name"] for alert in cache.health()["alerts"]] == ["sweeper"]
        await cache.get_or_load("key", lambda: 1, ttl=1)
        assert cache.health()["status"] == "healthy"
        await asyncio.sleep(3)
        assert len(cache._engine.store.order) == 0
        await cache.aclose()

    run_virtual(first(), clock)
    run_virtual(second(), clock)
