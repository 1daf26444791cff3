"""Everything at once, at random: nothing hangs, nothing is left, nothing is stale."""

import asyncio
import random
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, CacheClosedError, LoadCancelledError, race_safe_cached

from .virtual import VirtualClock, run_virtual


async def storm(seed: int, clock: VirtualClock) -> None:
    """Load, read, write, cancel and fail over few keys; check every value that is served."""
    chance = random.Random(seed)
    cache = AsyncSafeCache(
        clock=clock,
        max_entries=chance.choice([None, 0, 2, 5]),
        on_abandon=chance.choice(["cancel", "finish"]),
        cancel_grace=chance.choice([0, 0.3, 5]),
        negative={KeyError: 0.5},
    )
    truth = dict.fromkeys(range(4), 0)  # the origin: key -> version
    floor = dict.fromkeys(range(4), 0)  # no read that begins now may see an older version
    begun = 0

    async def origin(key: int) -> tuple[int, int]:
        nonlocal begun
        begun += 1
        version = truth[key]
        try:
            await asyncio.sleep(chance.random())
        except asyncio.CancelledError:
            await asyncio.sleep(chance.choice([0, 0, 0.2, 1]))  # a clean-up of its own
            raise
        what = chance.random()
        if what < 0.1:
            raise ValueError(key)
        if what < 0.2:
            raise KeyError(key)
        if what < 0.23:
            raise asyncio.CancelledError
        return key, version

    cached = race_safe_cached(cache, "origin", ttl=chance.choice([None, 0.7]))(origin)

    def see(key: int, least: int, found: Any) -> None:
        assert found[0] == key, "a value of another key"
        assert found[1] >= least, "an old value came back after an update"

    async def act() -> None:
        key = chance.randrange(4)
        least = floor[key]
        what = chance.randrange(12)
        if what < 7:
            try:
                see(key, least, await cached(key))
            except (ValueError, KeyError, LoadCancelledError):
                pass
        elif what < 8:
            found = await cache.get(cache.key_for(cached, key))
            if found is not None:
                see(key, least, found)
        elif what < 9:
            try:
                see(key, least, await cache.refresh(cached, key))
            except (ValueError, KeyError, LoadCancelledError):
                pass
        else:
            truth[key] += 1
            version = truth[key]
            place = cache.key_for(cached, key)
            if what == 9:
                await cache.delete(place)
            elif what == 10:
                await cache.set(place, (key, version))
            else:
                cached.cache_invalidate(key)
            floor[key] = max(floor[key], version)

    async def caller() -> None:
        for _ in range(12):
            task = asyncio.create_task(act())
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * chance.choice([0, 1]))
                task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass
            cache.check()
            await asyncio.sleep(chance.random() * 0.3)

    async with asyncio.timeout(1_000):
        await asyncio.gather(*(caller() for _ in range(8)))
        await asyncio.sleep(10)
    assert begun > 0
    assert not cache._engine.flights.running
    assert not cache._engine.flights._registry
    assert len(asyncio.all_tasks()) == 1
    cache.check()


@pytest.mark.parametrize("seed", range(150))
def test_a_storm_of_loads_writes_failures_and_cancellations(seed: int, clock: VirtualClock) -> None:
    run_virtual(storm(seed, clock), clock)


@pytest.mark.parametrize("drain", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_closing_in_the_middle_of_a_storm(seed: int, drain: bool, clock: VirtualClock) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        cache = AsyncSafeCache(clock=clock)
        await cache.start()

        async def load(key: int) -> Any:
            async def loader() -> int:
                await asyncio.sleep(chance.random())
                if key % 3 == 0:
                    await cache.get_or_load(key + 1, loader_of_other)
                return key

            async def loader_of_other() -> int:
                await asyncio.sleep(chance.random())
                return key + 1

            await asyncio.sleep(chance.random())
            return await cache.get_or_load(key, loader)

        calls = [asyncio.create_task(load(key % 10)) for key in range(60)]
        await asyncio.sleep(0.5)
        await cache.aclose(drain=drain)
        assert cache.closed
        assert not cache._engine.flights.running
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for number, answer in enumerate(answers):
            assert answer == number % 10 or isinstance(answer, CacheClosedError)
        assert len(asyncio.all_tasks()) == 1
        cache.check()
        await cache.start()
        assert len(cache) == 0
        assert await cache.get_or_load("again", lambda: 1) == 1
        await cache.aclose()

    run_virtual(main(), clock)
