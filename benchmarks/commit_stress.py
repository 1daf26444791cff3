"""Does a thread that reads a, then b, ever see the new a beside the old b?

    python -m benchmarks.commit_stress [--seconds N]

One thread commits a and b together, as fast as it can. The others read a, then b,
without a lock: by `peek`, and by hits of a decorated function. A reader that finds a
of one commit and b of an earlier one has seen half a commit. Threads change places
every 10 us instead of every 5 ms. Prints the counts; exits with 1 if there was a mix.
A control writes a and b by two calls, and has to show mixes, or the program proves nothing.
"""

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from async_safe_cache import AsyncSafeCache, race_safe_cached

SWITCH: Final = 1e-5


class Counts(NamedTuple):
    """What was done, and seen."""

    commits: int
    pairs: int
    misses: int
    mixes: int


def stress(seconds: float, *, together: bool = True) -> dict[str, Counts]:
    """Commit and read for *seconds*; return the counts by the way of reading."""
    cache = AsyncSafeCache("stress")

    @race_safe_cached(cache, "f")
    def f(name: str) -> int:
        del name
        return -1  # a miss: the load of a plain function, as the first value or never stored

    keys = [cache.key_for(f, "a"), cache.key_for(f, "b")]
    over = threading.Event()
    seen: dict[str, list[int]] = {"peek": [0, 0, 0], "hit": [0, 0, 0]}

    def read(name: str, one: Callable[[int], Any]) -> None:
        pairs = misses = mixes = 0
        while not over.is_set():
            first = one(0)
            second = one(1)
            pairs += 1
            misses += first < 0 or second < 0
            mixes += 0 <= second < first
        seen[name][:] = pairs, misses, mixes

    async def write() -> int:
        number = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number += 1
            if together:
                async with cache.transaction() as tx:
                    tx.set(keys[0], number)
                    tx.set(keys[1], number)
            else:
                await cache.set(keys[0], number)
                await cache.set(keys[1], number)
        return number

    readers = [
        threading.Thread(target=read, args=("peek", lambda at: cache.peek(keys[at], -1))),
        threading.Thread(target=read, args=("hit", lambda at: f("ab"[at]))),
    ]
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        for reader in readers:
            reader.start()
        try:
            commits = asyncio.run(write())
        finally:
            over.set()
            for reader in readers:
                reader.join()
    finally:
        sys.setswitchinterval(before)
    cache.check()
    return {name: Counts(commits, *counts) for name, counts in seen.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run both; return 1 if a commit was seen half done, or the control saw nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of the two parts")
    seconds: float = parser.parse_args(arguments).seconds
    mixes = {}
    for title, together in (("transaction", True), ("two sets (control)", False)):
        found = stress(seconds, together=together)
        for way, (commits, pairs, misses, mixed) in found.items():
            print(
                f"{title}, read by {way}: {commits:,} commits, {pairs:,} pairs, "
                f"{misses:,} with a miss, {mixed:,} mixed"
            )
        mixes[together] = sum(counts.mixes for counts in found.values())
    return int(mixes[True] > 0 or not mixes[False])


if __name__ == "__main__":
    sys.exit(main())
