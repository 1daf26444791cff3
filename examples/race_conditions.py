"""Three classic races of hand-written caches, and why they cannot happen here.

Nearly everything a cache does is a *check* followed by an *act*: is the key
there? then move it to the end; does the value fit? then add its size to the
sum; which entries are due? then delete them. If anything else runs between the
two, the act works on what is no longer so. In asyncio every `await` lets other
tasks run; with threads, any two instructions may be far apart.

Each story is told twice. First in a naive cache of a few lines; those that
matter are marked CHECK and ACT. What runs between them is forced, so the race
is lost every time, not once a month. Then the same callers do the same things
to an `AsyncSafeCache`.

    python examples/race_conditions.py
"""

import asyncio
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass

from async_safe_cache import AsyncSafeCache, RemovalCause


@dataclass(frozen=True)
class Outcome:
    """How one telling ended: whether the race did its damage, and what was seen."""

    failed: bool
    seen: str


@dataclass(frozen=True)
class Race:
    """One story: its two lines, and how both tellings ended."""

    title: str
    check: str
    act: str
    without: Outcome
    with_library: Outcome


async def others_run() -> None:
    """Let every other task run once, as any `await` may: for a metric, a log line, a query."""
    await asyncio.sleep(0)


# ==========================================================================================
# 1. An entry is deleted between the check and the move
#
# An LRU cache keeps its entries in the order of their use. A hit therefore moves the entry
# to the end. Before that, the cache has to see that the entry is there.
# ==========================================================================================


class NaiveLru:
    """Entries in the order of their use."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, int] = OrderedDict()

    async def set(self, key: str, value: int) -> None:
        self._entries[key] = value

    async def delete(self, key: str) -> None:
        self._entries.pop(key, None)

    async def get(self, key: str) -> int | None:
        if key in self._entries:  # CHECK: it is there
            await others_run()  # a hit is counted somewhere; meanwhile somebody deletes it
            self._entries.move_to_end(key)  # ACT: it is not
            return self._entries[key]
        return None


async def move_naive() -> Outcome:
    """A reader is past its check when the entry is deleted."""
    cache = NaiveLru()
    await cache.set("AAPL", 189)
    reader = asyncio.create_task(cache.get("AAPL"))
    await others_run()  # the reader has checked, and waits
    await cache.delete("AAPL")
    try:
        await reader
    except KeyError:
        return Outcome(failed=True, seen="KeyError")
    return Outcome(failed=False, seen="no error")


async def move_with_library() -> Outcome:
    """The reader gets the value or a miss, whenever the deletion comes.

    A hit has no `await` in it: lookup and move are one step, and so is a
    deletion. One of the two is first, and the other one finds it done. The
    deletion comes after no, one, two... turns of the loop, so that no order is
    left out.
    """
    answers: list[int | None] = []
    for turns in range(10):
        cache = AsyncSafeCache("lru")
        await cache.set("AAPL", 189)
        reader = asyncio.create_task(cache.get("AAPL"))
        for _ in range(turns):
            await others_run()
        await cache.delete("AAPL")
        try:
            answers.append(await reader)
        except Exception as error:
            return Outcome(failed=True, seen=type(error).__name__)
    hits, misses = answers.count(189), answers.count(None)
    # Both orders were seen, and nothing else.
    failed = hits == 0 or misses == 0 or hits + misses < len(answers)
    return Outcome(failed, seen=f"hit {hits}, miss {misses}")


# ==========================================================================================
# 2. The memory grows over its bound, through a stale sum
#
# A bounded cache keeps the sum of the sizes it holds. Who stores a value reads the sum to
# see whether the value fits, and writes the sum with the value added. Whoever stores in
# between is forgotten: its value stays, its size does not.
# ==========================================================================================

SIZE = 100_000
BOUND = 550_000  # five values and what a cache needs beside them
WRITERS = 10


class NaiveBounded:
    """Values, and the sum of their sizes."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.total = 0

    async def set(self, key: str, value: bytes) -> None:
        total = self.total + len(value)  # CHECK: the sum to be, and whether the value fits
        while total > BOUND:
            oldest = next(iter(self.values))
            total -= len(self.values.pop(oldest))
        await others_run()  # the value is compressed; meanwhile others read the same sum
        self.values[key] = value
        self.total = total  # ACT: writes a sum that knows nothing of the others' values


async def sum_naive() -> Outcome:
    """Ten tasks store at once, and all of them see an empty cache."""
    cache = NaiveBounded()
    writers = (cache.set(f"key-{number}", bytes(SIZE)) for number in range(WRITERS))
    await asyncio.gather(*writers)
    held = sum(len(value) for value in cache.values.values())
    return Outcome(
        failed=held > BOUND >= cache.total,  # it believes that all is well
        seen=f"{held // 1000:,} of {BOUND // 1000} kB",
    )


async def sum_with_library() -> Outcome:
    """Ten threads are stopped where the naive cache went wrong, then all go on at once.

    The library asks for the size of a value first, and holds no lock meanwhile:
    here the weigher waits until all ten writers have come as far. Then adding
    to the sum, storing, and evicting what no longer fits are one step.
    """
    all_weighed = threading.Barrier(WRITERS)

    def weigh(value: object) -> int:
        all_weighed.wait(timeout=10)
        return len(value) if isinstance(value, bytes) else 0

    cache = AsyncSafeCache("bounded", max_memory_bytes=BOUND, weigher=weigh)
    keys = [f"key-{number}" for number in range(WRITERS)]

    def write(key: str) -> None:
        asyncio.run(cache.set(key, bytes(SIZE)))  # every thread has an event loop of its own

    threads = [threading.Thread(target=write, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # blocks this loop, which has nothing else to do
    values = [cache.peek(key, None) for key in keys]
    held = sum(len(value) for value in values if isinstance(value, bytes))
    return Outcome(
        # Full as far as it goes, within the bound, and the sum knows of every value.
        failed=held != 5 * SIZE or not held <= cache.memory_bytes <= BOUND,
        seen=f"{held // 1000:,} of {BOUND // 1000} kB",
    )


# ==========================================================================================
# 3. The dict is changed while it is swept
#
# A sweeper walks over all entries to find those that have expired. A large sweep must not
# hold up the event loop, so it lets others run now and then. One of them stores a value.
# ==========================================================================================

EXPIRED = 5_000
NEW = 200


class NaiveSwept:
    """Entries with a deadline, and a sweeper."""

    def __init__(self) -> None:
        self.deadlines: dict[str, float] = {}

    async def set(self, key: str, deadline: float) -> None:
        self.deadlines[key] = deadline

    async def sweep(self, now: float) -> None:
        due: list[str] = []
        for key, deadline in self.deadlines.items():  # CHECK: which entries are due
            if deadline <= now:
                due.append(key)
            await others_run()  # so that the loop is not held up; meanwhile somebody stores
        for key in due:
            del self.deadlines[key]  # ACT: never reached


async def sweep_naive() -> Outcome:
    """A writer stores one value during a sweep, and the sweeper dies of it."""
    cache = NaiveSwept()
    for number in range(EXPIRED):
        await cache.set(f"old-{number}", deadline=1)
    sweeper = asyncio.create_task(cache.sweep(now=2))
    await others_run()  # the sweeper has begun
    await cache.set("new", deadline=3)
    try:
        await sweeper
    except RuntimeError:  # dictionary changed size during iteration
        # Nothing was freed, and nothing ever will be: the task is dead.
        return Outcome(failed=len(cache.deadlines) > EXPIRED, seen="RuntimeError")
    return Outcome(failed=False, seen="no error")


async def sweep_with_library() -> Outcome:
    """Writers store all through the sweep; every old entry goes, every new one stays.

    The library does not walk over its entries. It keeps an index of what
    expires when, takes from it what is due, in small slices, and removes an
    entry only if it is still the very entry that was due.
    """
    time = 0.0
    cache = AsyncSafeCache("swept", sweep_interval=0.01, clock=lambda: time)
    for number in range(EXPIRED):
        await cache.set(f"old-{number}", number, ttl=1)

    async def write(writer: str) -> None:
        for number in range(NEW // 2):
            await cache.set(f"{writer}-{number}", number)
            await others_run()

    def freed() -> int:
        return cache.stats().removals_by_cause[RemovalCause.EXPIRED]

    async with cache:  # the sweeper runs
        time = 2.0  # every old entry is due
        thread = threading.Thread(target=lambda: asyncio.run(write("thread")))
        thread.start()
        await write("task")
        async with asyncio.timeout(10):
            while thread.is_alive() or freed() < EXPIRED:
                await asyncio.sleep(0.001)
        thread.join()
        new = [f"{writer}-{number}" for writer in ("thread", "task") for number in range(NEW // 2)]
        kept = len(await cache.get_many(new))
    return Outcome(failed=kept != NEW or freed() != EXPIRED, seen=f"{freed():,} swept")


# ==========================================================================================


def run() -> tuple[Race, ...]:
    """Tell all three stories, each without and with the library."""
    return (
        Race(
            "an entry is deleted between check and move",
            "if key in entries",
            "entries.move_to_end(key)",
            asyncio.run(move_naive()),
            asyncio.run(move_with_library()),
        ),
        Race(
            "the memory grows over its bound",
            "total = self.total + len(value)",
            "self.total = total",
            asyncio.run(sum_naive()),
            asyncio.run(sum_with_library()),
        ),
        Race(
            "a dict is changed while it is swept",
            "for key, deadline in deadlines.items()",
            "del deadlines[key]",
            asyncio.run(sweep_naive()),
            asyncio.run(sweep_with_library()),
        ),
    )


def main() -> int:
    """Print the stories; return 1 unless every one ends as told."""
    as_told = True
    for number, race in enumerate(run(), start=1):
        print(f"{number}. {race.title}")
        print(f"   check    {race.check}")
        print(f"   act      {race.act}")
        print(f"   naive    {'fails' if race.without.failed else 'survives'}: {race.without.seen}")
        print(f"   library  {'FAILS' if race.with_library.failed else 'holds'}: "
              f"{race.with_library.seen}\n")  # fmt: skip
        as_told = as_told and race.without.failed and not race.with_library.failed
    return 0 if as_told else 1


if __name__ == "__main__":
    sys.exit(main())
