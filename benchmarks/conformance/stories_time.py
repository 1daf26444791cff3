"""What surrounds a call: time, event loops, threads, memory."""

import asyncio
import gc
import threading
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from unittest import mock

from .peers import NoMeansError, Peer
from .story import answer, count, row, seen, settle

# ---- time

TIME: Final = "Time"


@row(
    TIME,
    "a load that takes longer than its ttl: loads of 2 calls",
    given="a ttl of 0.3 s and a load of 0.35 s",
    when="the key is asked for again as soon as it is loaded",
    must="it is a hit: the ttl counts from the end of the load",
    right="1 load",
)
async def ttl_counts_from_the_end(peer: Peer) -> str:
    loads = 0

    async def load(x: int) -> Any:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.35)
        return x

    fn = peer.cached(load, ttl=0.3)
    await fn(1)
    await fn(1)
    return count(loads, "load")


@row(
    TIME,
    "past its ttl, in a loop that was busy: a read is",
    given="a value with a ttl of 0.1 s",
    when="something blocks the event loop for 0.2 s, and the value is read at once",
    must="it is expired",
    right="fresh",
    telling=True,
)
async def expired_in_a_busy_loop(peer: Peer) -> str:
    value = "stale"

    async def load(x: int) -> Any:
        return value

    fn = peer.cached(load, ttl=0.1)
    await fn(1)
    value = "fresh"
    time.sleep(0.2)
    return str(await fn(1))


@row(
    TIME,
    "the wall clock is set: ttl holds",
    given="a value with a ttl of a minute, and one of 0.1 s",
    when="the wall clock jumps an hour ahead; then an hour back, and 0.2 s pass",
    must="the first is still there, the second is expired",
    right="yes",
)
async def wall_clock_is_set(peer: Peer) -> str:
    if peer.native_clock:
        raise NoMeansError("its clock is native code, which this cannot set")
    loads: list[int] = []

    async def load(x: int) -> Any:
        loads.append(x)
        return x

    long, short = peer.cached(load, ttl=60), peer.cached(load, ttl=0.1)
    real = time.time
    await long(1)
    with mock.patch("time.time", side_effect=lambda: real() + 3600):
        await long(1)
    if loads != [1]:
        return "expired early"
    await short(2)
    with mock.patch("time.time", side_effect=lambda: real() - 3600):
        await asyncio.sleep(0.2)
        await short(2)
    return "yes" if loads == [1, 2, 2] else "lived on"


# ---- loops and threads

THREADS: Final = "Event loops and threads"


@row(
    THREADS,
    "asyncio.run twice: loads of 2 calls",
    given="a cached function at module level",
    when="two asyncio.run, one after the other, call it",
    must="the second run finds the value, without a warning",
    right="1 load",
)
def two_runs(peer: Peer) -> str:
    loads = 0

    async def load(x: int) -> Any:
        nonlocal loads
        loads += 1
        return "value"

    fn = peer.cached(load, ttl=60)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            if (got := asyncio.run(seen(answer(fn, 1)))) != "value":
                return got
    return count(loads, "load") + (" and a warning" if warned else "")


@row(
    THREADS,
    "two threads with a loop each: loads",
    given="two threads, each with an event loop",
    when="both ask for one key at the same time",
    must="both get the value of one load",
    right="1 load",
    telling=True,
)
def two_loops(peer: Peer) -> str:
    loads = 0
    together = threading.Barrier(2)

    async def load(x: int) -> Any:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.2)
        return "value"

    fn = peer.cached(load)

    async def caller() -> str:
        together.wait()
        return await seen(answer(fn, 1))

    with ThreadPoolExecutor(2) as pool:
        got = set(pool.map(lambda _: asyncio.run(caller()), range(2)))
    return count(loads, "load") if got == {"value"} else " / ".join(sorted(got))


@row(
    THREADS,
    "a plain def in 4 threads: loads",
    given="a cached plain def",
    when="four threads call it at once",
    must="one of them runs it, the others wait",
    right="1 load",
)
def plain_def_in_threads(peer: Peer) -> str:
    loads = 0
    together = threading.Barrier(4)

    def load(x: int) -> Any:
        nonlocal loads
        loads += 1
        time.sleep(0.2)
        return "value"

    fn = peer.plain(load)

    def caller(_: int) -> Any:
        together.wait()
        return fn(1)

    with ThreadPoolExecutor(4) as pool:
        got = set(pool.map(caller, range(4)))
    return count(loads, "load") if got == {"value"} else f"{got}"


@row(
    THREADS,
    "a plain def fails in 4 threads: loads",
    given="a cached plain def",
    when="four threads call it at once, and it raises ValueError",
    must="one run; each gets the ValueError; the next call runs it anew",
    right="1 load",
)
def plain_def_fails_in_threads(peer: Peer) -> str:
    loads, broken = 0, True
    together = threading.Barrier(4)

    def load(x: int) -> Any:
        nonlocal loads
        loads += 1
        if broken:
            time.sleep(0.2)
            raise ValueError
        return "value"

    fn = peer.plain(load)

    def outcome() -> str:
        try:
            return str(fn(1))
        except Exception as error:
            return type(error).__name__

    def caller(_: int) -> str:
        together.wait()
        return outcome()

    with ThreadPoolExecutor(4) as pool:
        got = set(pool.map(caller, range(4)))
    ran, broken = loads, False
    after = outcome()
    if got != {"ValueError"}:
        return " / ".join(sorted(got))
    return count(ran, "load") if after == "value" else f"{count(ran, 'load')}, then {after}"


# ---- memory

MEMORY: Final = "Memory"


class Blob(bytearray):
    """A value that can be counted while it lives."""

    living: "weakref.WeakSet[Blob]" = weakref.WeakSet()
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, size: int) -> None:
        super().__init__(size)
        Blob.living.add(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __copy__(self) -> "Blob":
        # A cache that stores copies is as welcome: each is counted once.
        return self


async def most_blobs(fn: Callable[[int], Awaitable[Any]], keys: int) -> int:
    """Return how many values were held at most, looked at every tenth key."""
    most = 0
    for key in range(keys):
        await fn(key)
        if key % 10 == 9:
            await settle()
            gc.collect()
            most = max(most, len(Blob.living))
    return most


@row(
    MEMORY,
    "a bound of 10 entries, 100 keys: held",
    given="a bound of 10 entries",
    when="100 keys are loaded",
    must="10 values are held at most, looked at after every tenth key",
    right="10 values",
)
async def bound_of_entries(peer: Peer) -> str:
    async def load(x: int) -> Any:
        return Blob(100)

    return count(await most_blobs(peer.cached(load, max_entries=10), 100), "value")


@row(
    MEMORY,
    "a bound of 1 MB, 50 values of 100 kB: held",
    given="a bound of 1,000,000 bytes",
    when="50 keys with values of 100,000 bytes are loaded",
    must="1 MB of values is held at most, looked at after every tenth key; and more than half",
    right=lambda found: found.endswith(" kB") and 500 < int(found.split()[0]) <= 1_000,
)
async def bound_of_bytes(peer: Peer) -> str:
    async def load(x: int) -> Any:
        return Blob(100_000)

    held = await most_blobs(peer.cached(load, max_bytes=1_000_000), 50)
    return f"{held * 100} kB"
