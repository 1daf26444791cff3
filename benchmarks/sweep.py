"""How long does the event loop stand still while half a million expired entries are freed?

python -m benchmarks.sweep [--rounds N] [--json PATH] [--check]
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import anyio

from .peers import OURS, PEERS, S3FIFO, NoMeansError, Ours, installed
from .runner import Case, Question, Run, Ticker, forget_collections, main, spread

QUESTION: Final = Question(
    name="sweep",
    question="How long does the event loop stand still while half a million expired entries of a "
    "million are freed, and what does that take?",
    workload="1,000,000 int keys, every second one expired, all stored in one moment and so due in "
    "one moment; then the freeing of all that are expired, by each one's own means, in a running "
    "loop. The stall is the longest turn of that loop, seen by a callback that runs in every "
    "turn: in CPU time of the process, and beside it in wall time, which on a shared machine "
    "holds what others took",
    rivals="async-lru (its timer per entry), cachebox (VTTLCache.expire()), theine (its own "
    "maintenance thread); each filled once, ours in every round",
    floor="",
    not_measured="the collector of cycles: it ran before, is on, and has nothing to do here (gc); "
    "reads of expired keys, which miss by the clock whether they are swept or not",
    rounds=2,
)

ENTRIES: Final = 1_000_000
RIVALS: Final = (OURS, S3FIFO, "async-lru", "cachebox", "theine")
WAIT: Final = 120.0
"""Seconds after which a contestant that has not freed everything is given up."""

Ready = tuple[Callable[[], Awaitable[None]], Callable[[], int]]
"""What starts the freeing, and how many entries are left."""


# ---- each contestant, full, with every second entry expired


async def _ours(entries: int, title: str = OURS) -> Ready:
    now = 0.0
    cache = cast("Ours", PEERS[title]).cache(
        max_memory_bytes=None, clock=lambda: now, sweep_interval=0.001
    )
    for key in range(entries):
        await cache.set(key, key, ttl=10 + (key & 1) * 10_000)
    now = 20.0

    async def end() -> None:
        await cache.start()

    def left() -> int:
        if cache.stats().removals_by_cause["EXPIRED"] < (entries + 1) // 2:
            return entries
        return entries // 2

    return end, left


def _by_real_time(seconds: float, fill: Callable[[float], Any]) -> tuple[float, Any]:
    """Return the moment at which half of them expire, and what is full before it.

    For those whose clock cannot be set. *fill* gets the moment; *seconds* are enough on a
    machine that has nothing else to do.
    """
    for patience in (1, 4, 16):
        end_of = time.monotonic() + patience * seconds
        known = fill(end_of)
        if time.monotonic() < end_of:
            return end_of, known
    raise NoMeansError("filling it took longer than its entries live: the machine is too busy")


async def _cachebox(entries: int) -> Ready:
    import cachebox

    def fill(end_of: float) -> Any:
        cache: Any = cachebox.VTTLCache(entries + 1)
        for key in range(entries):
            if key & 1:
                cache.insert(key, key)
            else:
                cache.insert(key, key, max(0.001, end_of - time.monotonic()))
        return cache

    end_of, cache = _by_real_time(1.0 + entries / 200_000, fill)
    await asyncio.sleep(max(0.0, end_of - time.monotonic()) + 0.01)

    async def end() -> None:
        cache.expire()

    return end, lambda: len(cache)


async def _theine(entries: int) -> Ready:
    from datetime import timedelta

    from theine import Cache

    def fill(end_of: float) -> Any:
        cache: Any = Cache(2 * entries + 100)
        for key in range(entries):
            left = timedelta(seconds=max(0.001, end_of - time.monotonic()))
            cache.set(key, key, timedelta(days=1) if key & 1 else left)
        return cache

    end_of, cache = _by_real_time(2.0 + entries / 50_000, fill)

    async def end() -> None:
        await asyncio.sleep(max(0.0, end_of - time.monotonic()))

    return end, lambda: len(cache)


async def _async_lru(entries: int) -> Ready:
    from async_lru import alru_cache

    loop = cast("FrozenLoop", asyncio.get_running_loop())
    ttl = 1_000.0

    async def value(key: int) -> int:
        return key

    short: Any = alru_cache(maxsize=None, ttl=ttl)(value)
    lasting: Any = alru_cache(maxsize=None)(value)
    loop.stopped = loop.time()
    for key in range(0, entries, 2):
        await short(key)
        await lasting(key + 1)
    loop.stopped = None

    async def end() -> None:
        loop.ahead = ttl + 1

    return end, lambda: short.cache_info().currsize + entries // 2


class FrozenLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, whose clock can stand still: so that all timers are due together."""

    stopped: float | None = None
    ahead = 0.0

    def time(self) -> float:
        return self.stopped if self.stopped is not None else super().time() + self.ahead


READY: Final[dict[str, Callable[[int], Awaitable[Ready]]]] = {
    OURS: _ours,
    S3FIFO: lambda entries: _ours(entries, S3FIFO),
    "async-lru": _async_lru,
    "cachebox": _cachebox,
    "theine": _theine,
}


async def _swept(title: str, entries: int) -> tuple[float, float, float]:
    """Fill, expire and free; return the longest stall (CPU, wall) and all CPU time, in ms."""
    await anyio.sleep(0)  # it imports its other half at the first use: not what is asked here
    with forget_collections():
        end, left = await READY[title](entries)
    async with Ticker() as ticker:
        begin = time.process_time_ns()
        last = time.monotonic() + WAIT
        await end()
        while left() > entries // 2 and time.monotonic() < last:
            await asyncio.sleep(0.002)
        cpu = (time.process_time_ns() - begin) / 1e6
    if left() > entries // 2:
        raise NoMeansError(f"freed too little in {WAIT:g} s")
    return ticker.cpu, ticker.wall, cpu


def measure(run: Run) -> list[Case]:
    """Return the stalls, and the CPU time of all of it."""
    entries = run.size(ENTRIES, 100)
    seen: dict[str, list[tuple[float, float, float]]] = {}
    for title in installed(RIVALS):
        for number in range(run.rounds if title in (OURS, S3FIFO) else 1):
            run.say(f"{title}: {entries:,} entries, round {number + 1}")
            try:
                with asyncio.Runner(debug=False, loop_factory=FrozenLoop) as runner:
                    seen.setdefault(title, []).append(runner.run(_swept(title, entries)))
            except NoMeansError as error:
                run.say(f"{title} is left out: {error}")
                break

    def case(name: str, unit: str, part: int, titles: list[str]) -> Case:
        figures = {title: spread([each[part] for each in seen[title]]) for title in titles}
        return Case(name, unit, run.rounds, figures)

    titles = [title for title in seen if seen[title]]
    stall = case("longest stall, CPU", "ms CPU in one turn of the loop", 0, titles)
    stall.fact("ms, longest stall", stall.figures[OURS].median, "<=", 5, aim=2)
    wall = case("longest stall, wall", "ms wall in one turn of the loop", 1, titles)
    # What theine's thread does goes on beside a loop that waits: there is no end to time.
    whole = case("all of it", "ms CPU", 2, [title for title in titles if title != "theine"])
    whole.fact("ms CPU", whole.figures[OURS].median, "<=", 200)
    return [stall, wall, whole]


if __name__ == "__main__":
    sys.exit(main(QUESTION, measure))
