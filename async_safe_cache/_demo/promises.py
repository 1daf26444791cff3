"""Parts c, d and e: three promises that a dict and a lock do not keep.

Each part is one story, a coroutine that knows nothing of who answers it. It is
told to the usual hand-written solution first, and to the library second.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from async_safe_cache import AsyncSafeCache, MissReason, RemovalCause, race_safe_cached

from .report import Figure, Measure, Progress, Promise, Report

CALLERS = 100
KEYS = 50

Price = Callable[[str], Coroutine[Any, Any, float]]


# ---- c: the cancelled leader


@dataclass(frozen=True, slots=True)
class Burst:
    """What became of the callers of one key."""

    leader_timed_out: bool
    failed: int
    answered: int
    loads: int


def shared_task(load: Price) -> Price:
    """Share one task per symbol, as many services do: whoever comes first starts it."""
    running: dict[str, asyncio.Task[float]] = {}

    async def ask(symbol: str) -> float:
        if symbol not in running:
            running[symbol] = asyncio.create_task(load(symbol))
            running[symbol].add_done_callback(lambda _: running.pop(symbol))
        return await running[symbol]  # cancelling one caller cancels what all await

    return ask


async def leader_times_out(decorate: Callable[[Price], Price]) -> Burst:
    """Let many callers ask for one price, and the first one run out of patience."""
    loads = 0
    answer = asyncio.Event()

    async def get_price(symbol: str) -> float:
        nonlocal loads
        loads += 1
        await answer.wait()
        return float(len(symbol))

    ask = decorate(get_price)

    async def leader() -> float:
        async with asyncio.timeout(0.05):
            return await ask("AAPL")

    first = asyncio.create_task(leader())
    others = [asyncio.create_task(ask("AAPL")) for _ in range(CALLERS - 1)]
    await asyncio.wait([first])
    answer.set()
    results = await asyncio.gather(*others, return_exceptions=True)
    return Burst(
        leader_timed_out=isinstance(first.exception(), TimeoutError),
        failed=sum(isinstance(result, BaseException) for result in results),
        answered=sum(result == 4.0 for result in results),
        loads=loads,
    )


def run_cancelled_leader(progress: Progress) -> Report:
    """Count the callers that fail because another one gave up."""
    progress("without and with the library")
    before = asyncio.run(leader_times_out(shared_task))
    after = asyncio.run(leader_times_out(race_safe_cached(AsyncSafeCache("leader"), "price")))
    others = CALLERS - 1
    rows = (
        Promise(
            "the others that fail with it",
            f"{before.failed} of {others}",
            f"{after.failed} of {others}",
            before.failed == others
            and after.leader_timed_out
            and after.failed == 0
            and after.answered == others,
        ),
        Promise("loads", f"{before.loads}", f"{after.loads}", after.loads == 1),
    )
    return Report(
        "c",
        f"The cancelled leader: {CALLERS} callers of one key, the first one times out",
        "all share the first caller's task, and are cancelled with it",
        "nobody owns the load: who gives up leaves alone",
        rows,
        {
            "callers": CALLERS,
            "failed_without": before.failed,
            "failed_with": after.failed,
            "loads_with": after.loads,
        },
    )


# ---- d: the stale write


class ReadThrough(Protocol):
    """As much of a cache as the story of the stale write needs."""

    async def get_or_load(self, key: str, loader: Callable[[], Awaitable[int]], /) -> int:
        """Return the value of *key*, loading it when it is absent."""
        ...

    async def set(self, key: str, value: int, /) -> None:
        """Store *value*."""
        ...

    async def delete(self, key: str, /) -> int:
        """Remove *key*."""
        ...


class NaiveReadThrough:
    """A read-through cache as it is usually written: look, load, store."""

    def __init__(self) -> None:
        self._data: dict[str, int] = {}

    async def get_or_load(self, key: str, loader: Callable[[], Awaitable[int]]) -> int:
        """Return the value of *key*, loading it when it is absent."""
        if key not in self._data:
            self._data[key] = await loader()  # stores what was true before the await
        return self._data[key]

    async def set(self, key: str, value: int) -> None:
        """Store *value*."""
        self._data[key] = value

    async def delete(self, key: str) -> int:
        """Remove *key*."""
        return 0 if self._data.pop(key, None) is None else 1


OLD, NEW = 100, 101


async def update_during_a_load(cache: ReadThrough, *, delete: bool) -> int:
    """Change the database while a load is running; return what the next reader sees."""
    database = {"AAPL": OLD}
    has_read, answer = asyncio.Event(), asyncio.Event()

    async def load() -> int:
        price = database["AAPL"]
        has_read.set()
        await answer.wait()
        return price

    early = asyncio.create_task(cache.get_or_load("AAPL", load))
    await has_read.wait()
    database["AAPL"] = NEW
    if delete:
        await cache.delete("AAPL")
    else:
        await cache.set("AAPL", NEW)
    answer.set()
    await early
    return await cache.get_or_load("AAPL", load)


def run_stale_write(progress: Progress) -> Report:
    """Show what is read after an update that overtook a load."""
    progress("without and with the library")
    rows: list[Measure] = []
    figures: dict[str, Figure] = {"old": OLD, "new": NEW}
    for delete in (True, False):
        before = asyncio.run(update_during_a_load(NaiveReadThrough(), delete=delete))
        after = asyncio.run(update_during_a_load(AsyncSafeCache("stale"), delete=delete))
        way = "delete(key)" if delete else "set(key, new)"
        rows.append(
            Promise(
                f"the next reader, after {way}",
                _price(before),
                _price(after),
                before == OLD and after == NEW,
            )
        )
        name = "delete" if delete else "set"
        figures |= {f"{name}_without": before, f"{name}_with": after}
    return Report(
        "d",
        f"The stale write: a price changes from {OLD} to {NEW} while it is being loaded",
        "the load ends after the update and stores the old price over it, for ever",
        "a load that began before an update never stores its value",
        tuple(rows),
        figures,
    )


def _price(price: int) -> str:
    return f"{price} ({'old' if price == OLD else 'new'})"


# ---- e: expired, evicted, deleted, never there


class ManualClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


@dataclass(frozen=True, slots=True)
class Answers:
    """What the misses said.

    Attributes:
        reasons: For each true reason, how often each reason was reported.
        live: Live keys that were found.
        swept: Expired entries that the sweeper had freed before anyone asked.
    """

    reasons: dict[str, Counter[str]]
    live: int
    swept: int


def _keys(state: str) -> list[str]:
    return [f"{state}-{number}" for number in range(KEYS)]


def _freed(cache: AsyncSafeCache) -> int:
    """Return how many expired entries have left the memory."""
    return cache.stats().removals_by_cause[RemovalCause.EXPIRED]


_MISSED = ("expired", "evicted", "deleted", "absent")


async def ask_for_what_is_gone() -> Answers:
    """Lose entries in every way there is, with the sweeper running, then ask for them."""
    clock = ManualClock()
    cache = AsyncSafeCache(
        "orders", max_entries=2 * KEYS, default_ttl=3600, sweep_interval=0.01, clock=clock
    )
    async with cache:
        for key in _keys("deleted"):
            await cache.set(key, key)
        await cache.delete(*_keys("deleted"))
        for key in _keys("evicted"):
            await cache.set(key, key)
        for key in _keys("expired"):
            await cache.set(key, key, ttl=60)
        for key in _keys("live"):  # no room: those not used for longest have to go
            await cache.set(key, key)
        clock.advance(61)
        async with asyncio.timeout(5):
            while _freed(cache) < KEYS:  # noqa: ASYNC110 - nobody tells when a sweep is done
                await asyncio.sleep(0.001)
        swept = _freed(cache)
        reasons = {
            state: Counter([str((await cache.lookup(key)).reason) for key in _keys(state)])
            for state in _MISSED
        }
        live = sum([(await cache.lookup(key)).hit for key in _keys("live")])
    return Answers(reasons, live, swept)


def ask_a_dict() -> dict[str, Counter[str]]:
    """Ask a dict, out of which other code removed the same entries."""
    data = {key: key for key in _keys("live")}
    return {state: Counter(str(data.get(key)) for key in _keys(state)) for state in _MISSED}


def run_miss_reasons(progress: Progress) -> Report:
    """Compare why entries are gone with what each miss reports."""
    progress("without and with the library")
    before = ask_a_dict()
    after = asyncio.run(ask_for_what_is_gone())
    truth = {
        "expired": MissReason.EXPIRED,
        "evicted": MissReason.EVICTED,
        "deleted": MissReason.DELETED,
        "absent": MissReason.ABSENT,
    }
    names = {
        "expired": "expired, and swept since",
        "evicted": "evicted to hold max_entries",
        "deleted": "deleted",
        "absent": "never there",
    }
    rows = tuple(
        Promise(
            f"{KEYS} keys {names[state]}",
            _counts(before[state]),
            _counts(after.reasons[state]),
            after.reasons[state] == {str(reason): KEYS}
            and (state != "expired" or after.swept == KEYS),
        )
        for state, reason in truth.items()
    )
    return Report(
        "e",
        "Expired, evicted, deleted, never there: the reason each miss reports",
        "a dict says None, whatever the cause",
        "every miss reports its true reason, even after the sweeper has freed the entry",
        (
            *rows,
            Promise(
                f"{KEYS} live keys that are still found",
                f"{KEYS}",
                f"{after.live}",
                after.live == KEYS,
            ),
        ),
        {
            "keys": KEYS,
            "swept": after.swept,
            "live": after.live,
            **{f"{state}_reported": dict(counts) for state, counts in after.reasons.items()},
        },
    )


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} x {count}" for name, count in counts.most_common())
