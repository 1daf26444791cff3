"""What our own hit, miss, stampede and sweep cost, with pytest-benchmark.

Absolute times of one machine: good for seeing a change before and after, not
for a claim. Ratios against others are in docs/benchmarks.md.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, race_safe_cached

Benchmark = Any


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return a loop that is not in debug mode."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_a_thousand_hits(benchmark: Benchmark, loop: asyncio.AbstractEventLoop) -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache, ttl=3600)
    async def price(symbol: str) -> float:
        return 1.0

    async def hits() -> None:
        for _ in range(1_000):
            await price("AAPL")

    benchmark(lambda: loop.run_until_complete(hits()))
    assert cache.stats().misses == 1


def test_a_thousand_hits_of_a_plain_def(benchmark: Benchmark) -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache, ttl=3600)
    def price(symbol: str) -> float:
        return 1.0

    def hits() -> None:
        for _ in range(1_000):
            price("AAPL")

    benchmark(hits)
    assert cache.stats().misses == 1


def test_a_thousand_misses_with_eviction(
    benchmark: Benchmark, loop: asyncio.AbstractEventLoop
) -> None:
    cache = AsyncSafeCache(max_entries=10_000)
    number = 0

    @race_safe_cached(cache, ttl=3600)
    async def value(key: int) -> bytes:
        return b"x" * 100

    async def misses(count: int) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            await value(number)

    loop.run_until_complete(misses(10_000))
    benchmark(lambda: loop.run_until_complete(misses(1_000)))
    assert cache.stats().hits == 0


def test_a_stampede_of_a_thousand(benchmark: Benchmark, loop: asyncio.AbstractEventLoop) -> None:
    cache = AsyncSafeCache(max_entries=100)
    bursts = 0

    async def load() -> int:
        await asyncio.sleep(0)
        return 1

    async def stampede() -> None:
        nonlocal bursts
        bursts += 1
        await asyncio.gather(*(cache.get_or_load(bursts, load) for _ in range(1_000)))

    benchmark(lambda: loop.run_until_complete(stampede()))
    assert cache.stats().loads == bursts


def test_a_sweep_of_a_hundred_thousand_due_among_twice_as_many(
    benchmark: Benchmark, loop: asyncio.AbstractEventLoop
) -> None:
    now = 0.0

    def filled() -> tuple[tuple[AsyncSafeCache], dict[str, Any]]:
        nonlocal now
        now = 0.0
        cache = AsyncSafeCache(max_memory_bytes=None, clock=lambda: now)

        async def fill() -> None:
            for key in range(200_000):
                await cache.set(key, key, ttl=10 + (key & 1) * 1_000)

        loop.run_until_complete(fill())
        now = 20.0
        return (cache,), {}

    def sweep(cache: AsyncSafeCache) -> None:
        loop.run_until_complete(cache._sweep())
        assert cache.stats().removals_by_cause["EXPIRED"] == 100_000

    benchmark.pedantic(sweep, setup=filled, rounds=3)
