"""What does it cost to keep values fresh, and what does it bring after a restart?

python -m benchmarks.freshness [--rounds N] [--json PATH] [--check]
"""

import asyncio
import gc
import random
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import anyio

from async_safe_cache import AsyncSafeCache, CacheWarmingStrategy, race_safe_cached
from async_safe_cache.testing import FakeClock

from .hit import CALLS, KEYS, LONG, _one
from .peers import OURS
from .runner import (
    Case,
    Question,
    Run,
    Ticker,
    compared,
    forget_collections,
    main,
    of_its_own,
    take_turns,
)

QUESTION: Final = Question(
    name="freshness",
    question="What does a hit cost while reads are counted and refreshed ahead; does the "
    "refresher keep to its budget; how warm is a replayed cache?",
    workload="hit: as in `hit`, with a ttl. Due: 100,000 popular calls whose ttl is nearly over, "
    "a budget of 8 loads at once, real time. Restart: 10,000 keys, zipf 1.0, 500 calls a second, "
    "loads of 50 ms, a ttl of 60 s, 5 minutes, then 1,000 calls replayed by 8 at once; simulated "
    "time",
    rivals="the same function without; the same cache, cold",
    floor="bare: awaiting the function itself",
    not_measured="a refresh itself, which is a miss that nobody waits for",
    rounds=41,
)

DUE: Final = 100_000
BUDGET: Final = 8
POPULAR: Final = 1_000
RATE: Final = 500
STEADY: Final = 300
FIRST: Final = 10


async def price(symbol: str) -> float:
    return 1.5


def hit(run: Run) -> Case:
    """A hit with both on, one of them, and none."""
    keys = KEYS * max(1, run.size(CALLS) // len(KEYS))

    def made(*, ahead: bool, counted: bool) -> Callable[..., Any]:
        cache = AsyncSafeCache("hit")
        if counted:
            CacheWarmingStrategy(cache)
        options: dict[str, Any] = {"refresh_ahead": 0.8} if ahead else {}
        return race_safe_cached(cache, ttl=LONG, **options)(of_its_own(price))

    calls: dict[str, Callable[..., Any]] = {
        OURS: made(ahead=True, counted=True),
        "without": made(ahead=False, counted=False),
        "refresh_ahead alone": made(ahead=True, counted=False),
        "reads counted alone": made(ahead=False, counted=True),
        "bare": of_its_own(price),
    }
    turns = {}
    for name, call in calls.items():
        timed = of_its_own(_one)
        turns[name] = lambda timed=timed, call=call: timed(call, keys)
    name = "hit, refreshed ahead and its reads counted"
    with asyncio.Runner(debug=False) as runner:
        times = runner.run(take_turns(turns, run, name))
    return compared(name, "ns CPU a call", times).against("without", "<=", 1.15)


def due(run: Run) -> Case:
    """Very many calls that are due at once."""
    count = run.size(DUE)
    run.say(f"due: {count} calls")
    clock = FakeClock()
    most = running = done = 0

    async def measured() -> Ticker:
        nonlocal most, running, done
        cache = AsyncSafeCache("due", max_memory_bytes=None, clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=BUDGET, popular=count)
        refreshing = False

        @race_safe_cached(cache, "quote", ttl=100)
        async def quote(number: int) -> int:
            nonlocal most, running, done
            if refreshing:
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                running -= 1
                done += 1
            return number

        with forget_collections():
            for number in range(count):
                await quote(number)
                await quote(number)  # read since it was stored: popular
        gc.freeze()  # what a full collection costs is a question of its own: gc_pause
        await anyio.sleep(0)  # what is imported when anyio is used first is none of ours
        clock.advance(95)
        refreshing = True
        async with Ticker() as ticker:
            await warming.start_background_refresh(interval=0.05)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                clock.advance(0.0001)
                await asyncio.sleep(0.001)
        gc.unfreeze()
        await cache.aclose()
        return ticker

    with asyncio.Runner(debug=False) as runner:
        ticker = runner.run(measured())
    case = Case(name=f"{count:,} due calls, a budget of {BUDGET}", unit="")
    case.facts["refreshed in 3 s"] = done
    case.facts["longest turn of the loop, ms wall"] = ticker.wall
    return case.fact("loads at once, at most", most, "<=", BUDGET).fact(
        "longest turn of the loop, ms CPU", ticker.cpu, "<=", 5.0
    )


def restart(run: Run) -> Case:
    """The hit rate of the first seconds: cold, and after a replay."""
    steady_seconds = run.size(STEADY, least=20)
    run.say(f"restart: {steady_seconds} s of {RATE} calls a second")
    weights = list(accumulate(1 / (rank + 1) for rank in range(10_000)))
    chance = random.Random(1)
    clock = FakeClock()

    async def served(cache: AsyncSafeCache, seconds: int, quote: Any) -> float:
        """Return the hits in percent; loads take 50 ms of simulated time."""
        before = cache.stats()
        for _ in range(seconds * RATE):
            rank = bisect_left(weights, chance.random() * weights[-1])
            await quote(rank)
            clock.advance(1 / RATE)
        return (cache.stats() - before).hit_rate

    def made() -> tuple[AsyncSafeCache, CacheWarmingStrategy, Any]:
        cache = AsyncSafeCache("shop", max_memory_bytes=None, clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=BUDGET)

        @race_safe_cached(cache, "quote", ttl=60, jitter=0.1)
        async def quote(rank: int) -> int:
            return rank

        return cache, warming, quote

    async def measured() -> tuple[float, float, float, int]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "hot"
            cache, warming, quote = made()
            cold = await served(cache, FIRST, quote)
            await served(cache, steady_seconds - FIRST, quote)
            steady = await served(cache, FIRST, quote)
            await warming.save_hot_set(path, limit=POPULAR)
            await cache.aclose()
            cache, warming, quote = made()
            report = await warming.replay_hot_set(path)
            clock.advance(len(report.loaded) * 0.05 / BUDGET)
            warm = await served(cache, FIRST, quote)
            await cache.aclose()
            return cold, steady, warm, len(report.loaded)

    with asyncio.Runner(debug=False) as runner:
        cold, steady, warm, loaded = runner.run(measured())
    case = Case(name="restart", unit="")
    case.facts["hit rate of the first 10 s, cold, %"] = cold
    case.facts["hit rate, steady, %"] = steady
    case.facts["hit rate of the first 10 s, replayed, %"] = warm
    case.facts["cold / steady"] = cold / steady
    case.facts["calls replayed"] = loaded
    return case.fact("replayed / steady", warm / steady, ">=", 0.8)


def measure(run: Run) -> list[Case]:
    """Return the three cases."""
    return [hit(run), due(run), restart(run)]


if __name__ == "__main__":
    sys.exit(main(QUESTION, measure))
