"""What does a hit cost, beside async-lru and beside the floor?

    python benchmarks/hit_ratio.py [--rounds 40] [--json PATH]

Question: CPU time of one awaited hit of a decorated `async def` with one str
argument and a ttl.
Method: all contestants take turns in one process, one round after another; the
ratio is taken per round, and the median of those ratios is the answer, so that
a machine that changes its speed changes both sides. One core, if it can be pinned.
Floors: `bare`, awaiting an empty coroutine; `honest`, a wrapper that makes a key
of its arguments and reads a dict, and nothing else.
Not measured: misses, several threads, contention, other key types, memory.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from async_lru import alru_cache

from async_safe_cache import AsyncSafeCache, race_safe_cached

CALLS = 5_000
Call = Callable[[str], Awaitable[Any]]


def contestants() -> dict[str, Call]:
    """Return what takes turns, each warm for the key "AAPL"."""
    cache = AsyncSafeCache("benchmark")
    known = {("AAPL",): 1.0}

    async def bare(symbol: str) -> None:
        pass

    async def honest(*args: Any, **kwargs: Any) -> Any:
        return known[args if not kwargs else (args, tuple(kwargs.items()))]

    @race_safe_cached(cache, "price", ttl=3600)
    async def ours(symbol: str) -> float:
        return 1.0

    @alru_cache(maxsize=1024, ttl=3600)
    async def async_lru(symbol: str) -> float:
        return 1.0

    return {"bare": bare, "honest": honest, "async_safe_cache": ours, "async-lru": async_lru}


async def nanoseconds(call: Call) -> float:
    """Return the CPU time of one call, in ns."""
    begin = time.process_time_ns()
    for _ in range(CALLS):
        await call("AAPL")
    return (time.process_time_ns() - begin) / CALLS


async def measured(rounds: int) -> dict[str, list[float]]:
    """Return what each contestant took in each round."""
    calls = contestants()
    for call in calls.values():
        await nanoseconds(call)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(await nanoseconds(call))
    return times


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description="The cost of a hit as a ratio.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    times = asyncio.run(measured(options.rounds))
    ours = times["async_safe_cache"]
    versions = {"async-lru": version("async-lru")}
    facts: dict[str, Any] = {
        "question": "What does a hit cost, beside async-lru and beside the floor?",
        "workload": "CPU time of one awaited hit of an async def, one str argument, ttl",
        "floors": "bare: an empty coroutine; honest: make a key of the arguments, read a dict",
        "not_measured": "misses, threads, contention, other key types, memory",
        "python": sys.version.split()[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
        "rounds": options.rounds,
        "calls_per_round": CALLS,
        "nanoseconds": {name: quartiles(values) for name, values in times.items()},
        "ratio": {
            name: quartiles([mine / other for mine, other in zip(ours, values, strict=True)])
            for name, values in times.items()
            if name != "async_safe_cache"
        },
    }
    print(facts["question"])
    for name in ("workload", "floors", "not_measured"):
        print(f"  {name.replace('_', ' ')}: {facts[name]}")
    print(f"  Python {facts['python']}, {facts['machine']}, {facts['date']}; {versions}")
    print(f"  {options.rounds} rounds of {CALLS} calls in turns; median (quartiles)")
    for name, (low, middle, high) in facts["nanoseconds"].items():
        print(f"  {name:18} {middle:7.0f} ns   ({low:.0f} to {high:.0f})")
    for name, (low, middle, high) in facts["ratio"].items():
        print(f"  async_safe_cache / {name:10} {middle:6.3f}   ({low:.3f} to {high:.3f})")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=2)


if __name__ == "__main__":
    main()
