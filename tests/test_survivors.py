"""Promises that a planted bug broke unnoticed: each of these tests is its answer."""

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime, time, timedelta, timezone
from typing import Any

import pytest

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    MissReason,
    RemovalCause,
    race_safe_cached,
)
from async_safe_cache._keys import canonical
from async_safe_cache._removals import MOST
from async_safe_cache._store import ENTRY_OVERHEAD
from async_safe_cache.errors import CacheClosedError

from .virtual import VirtualClock, at_once, run_virtual, settle

_request: ContextVar[str] = ContextVar("request", default="none")


# -- whose context a load has


def test_a_load_sees_the_first_callers_context_and_changes_nobodys(clock: VirtualClock) -> None:
    """The load gets a copy: what it sets stays in it, and who joins keeps his own."""
    cache = AsyncSafeCache(clock=clock)
    seen: list[str] = []

    async def load() -> str:
        seen.append(_request.get())
        _request.set("of the load")
        await asyncio.sleep(1)
        return _request.get()

    async def call(name: str) -> tuple[str, str]:
        _request.set(name)
        value = await cache.get_or_load("key", load)
        return value, _request.get()

    async def main() -> list[tuple[str, str]]:
        first = asyncio.create_task(call("first"))
        await settle(1)
        return list(await asyncio.gather(first, call("second")))

    assert run_virtual(main(), clock) == [("of the load", "first"), ("of the load", "second")]
    assert seen == ["first"]


def test_a_refresh_of_a_def_in_a_thread_sees_its_callers_context() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache, "whose")
    def whose() -> tuple[str, int]:
        return _request.get(), threading.get_ident()

    async def main() -> tuple[str, int]:
        _request.set("refresher")
        return await cache.refresh(whose)

    name, thread = asyncio.run(main())
    assert name == "refresher"
    assert thread != threading.get_ident()


# -- fences


@pytest.mark.parametrize("invalidate", ["cache_clear", "cache_invalidate", "invalidate"])
def test_a_cache_clear_during_a_load_keeps_its_value_out(
    invalidate: str, clock: VirtualClock
) -> None:
    """All that invalidates a function fences its loads; those of other functions it leaves."""
    cache = AsyncSafeCache(clock=clock)
    version = 1

    def reading(prefix: str) -> Callable[..., Any]:
        @race_safe_cached(cache, prefix)
        async def read(key: str) -> int:
            seen = version
            await asyncio.sleep(1)
            return seen

        return read

    mine, others = reading("mine"), reading("others")

    async def main() -> None:
        nonlocal version
        early = [asyncio.create_task(each("key")) for each in (mine, others)]
        await settle()
        version = 2
        if invalidate == "cache_clear":
            mine.cache_clear()  # type: ignore[attr-defined]
        elif invalidate == "cache_invalidate":
            mine.cache_invalidate("key")  # type: ignore[attr-defined]
        else:
            await cache.invalidate(mine, "key")
        late = asyncio.create_task(mine("key"))
        assert await asyncio.gather(*early) == [1, 1], "who asked before has its answer"
        assert await late == 2
        assert await mine("key") == 2
        assert await others("key") == 1

    run_virtual(main(), clock)
    assert cache.info(mine).loads == 2
    assert cache.info(others).loads == 1


@pytest.mark.parametrize("write", ["set", "delete", "expire"])
def test_a_write_of_one_key_leaves_the_loads_of_others_alone(
    write: str, clock: VirtualClock
) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def load() -> str:
        await asyncio.sleep(1)
        return "loaded"

    async def main() -> None:
        task = asyncio.create_task(cache.get_or_load("one", load))
        await settle()
        await (cache.set("other", 1) if write == "set" else getattr(cache, write)("other"))
        assert await task == "loaded"
        assert cache.peek("one") == "loaded"

    run_virtual(main(), clock)


# -- opening and closing at one time


def test_a_cache_opened_while_it_drains_stays_open(clock: VirtualClock) -> None:
    """Whoever opened it relies on it: the close that was still waiting must not end it."""
    cache = AsyncSafeCache(clock=clock)

    async def load() -> str:
        await asyncio.sleep(1)
        return "loaded"

    async def main() -> None:
        task = asyncio.create_task(cache.get_or_load("key", load))
        await settle()
        closing = asyncio.create_task(cache.aclose(drain=True))
        await settle()
        assert cache.closed
        await cache.start()
        await closing
        assert not cache.closed
        assert await task == "loaded"
        assert await cache.get("key") == "loaded"
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_load_that_swallows_its_cancellation_stores_nothing_in_a_closed_cache(
    clock: VirtualClock,
) -> None:
    """Opened again, the cache is empty, whatever a load of before thinks of its cancellation."""
    cache = AsyncSafeCache(clock=clock)

    async def stubborn() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
        return "too late"

    async def main() -> None:
        task = asyncio.create_task(cache.get_or_load("key", stubborn))
        await settle()
        await cache.aclose()
        with pytest.raises(CacheClosedError):
            await task
        assert cache.memory_bytes == 0
        await cache.start()
        assert cache.peek("key") is MISSING
        assert (await cache.lookup("key")).reason is MissReason.ABSENT
        await cache.aclose()

    run_virtual(main(), clock)


# -- cycles that are none


def test_what_a_load_that_has_ended_started_may_load_what_waited_for_it(
    clock: VirtualClock,
) -> None:
    """When a load has just ended, who waited for it is not awake yet: no cycle all the same."""
    cache = AsyncSafeCache(clock=clock)
    ending: list[asyncio.Event] = []
    children: list[asyncio.Task[str]] = []

    async def child() -> str:
        await ending[0].wait()
        return str(await cache.get_or_load("outer", outer))

    async def inner() -> str:
        ending.append(asyncio.Event())
        children.append(asyncio.create_task(child()))
        await asyncio.sleep(1)
        ending[0].set()  # the child runs next, before whoever waits for this load
        return "inner"

    async def outer() -> str:
        return "outer of " + str(await cache.get_or_load("inner", inner))

    async def main() -> None:
        assert await cache.get_or_load("outer", outer) == "outer of inner"
        assert await children[0] == "outer of inner"

    run_virtual(main(), clock)


# -- counting


def test_a_load_that_everybody_left_is_neither_a_load_nor_an_error(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def load() -> None:
        await asyncio.sleep(100)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await cache.get_or_load("key", load)
        await settle()

    run_virtual(main(), clock)
    stats = cache.stats()
    assert (stats.calls, stats.misses, stats.loads, stats.load_errors) == (1, 1, 0, 0)


def test_who_waits_out_a_clean_up_and_then_loads_is_one_call(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)

    async def load() -> str:
        return "new"

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await cache.get_or_load("key", slow_to_end)
        assert await cache.get_or_load("key", load) == "new"

    run_virtual(main(), clock)
    stats = cache.stats()
    assert (stats.calls, stats.hits, stats.misses, stats.coalesced) == (2, 0, 2, 0)
    assert stats.loads == 1


# -- time


def test_a_failure_to_remember_takes_the_place_of_a_value_that_expires_at_that_moment(
    clock: VirtualClock,
) -> None:
    """At ttl exactly a value is expired: it keeps nothing out."""
    cache = AsyncSafeCache(clock=clock)
    calls = 0

    @race_safe_cached(cache, "flaky", ttl=10, negative={KeyError: 5})
    async def flaky() -> str:
        nonlocal calls
        calls += 1
        if calls > 1:
            await asyncio.sleep(10)
            raise KeyError
        return "fresh"

    async def main() -> None:
        assert await flaky() == "fresh"
        with pytest.raises(KeyError):
            await cache.refresh(flaky)
        with pytest.raises(KeyError):
            await flaky()

    run_virtual(main(), clock)
    assert calls == 2, "the failure was remembered"


# -- bounds


@pytest.mark.parametrize("policy", ["lru", "s3fifo"])
def test_a_hit_of_a_decorated_function_saves_its_entry_from_the_evictor(
    clock: VirtualClock, policy: Any
) -> None:
    """Before a clear and after it, which gives the store a new order."""
    cache = AsyncSafeCache(max_entries=2, clock=clock, policy=policy)

    @race_safe_cached(cache, "square")
    def square(number: int) -> int:
        return number * number

    for begin in (0, 10):
        for number in (1, 2, 1, 3):  # 1 is hit, so that 2 is the oldest when 3 comes
            square(begin + number)
        assert square.cache_contains(begin + 1)  # type: ignore[attr-defined]
        assert not square.cache_contains(begin + 2)  # type: ignore[attr-defined]
        assert cache.stats().hits == begin / 10 + 1
        asyncio.run(cache.clear())


def test_key_and_overhead_are_inside_the_memory_bound(clock: VirtualClock) -> None:
    """Small values under large keys: what the library and the keys take counts, too."""
    cache = AsyncSafeCache(max_memory_bytes=100_000, clock=clock)
    at_once(cache.set("k" * 10_000, None))
    assert 10_000 + ENTRY_OVERHEAD < cache.memory_bytes < 10_200 + ENTRY_OVERHEAD
    for number in range(1_000):
        at_once(cache.set(number, None))
    assert len(cache) < 100_000 // ENTRY_OVERHEAD
    assert cache.memory_bytes <= 100_000


@pytest.mark.parametrize("due", [3, 4, 5, 10])
def test_a_write_in_the_middle_of_a_second_frees_four_due_entries_and_no_more(
    due: int, clock: VirtualClock
) -> None:
    """A write must not pay for a whole second that is half over."""
    clock.now = 100.0
    cache = AsyncSafeCache(clock=clock)
    for number in range(due):
        at_once(cache.set(number, 1, ttl=0.25))
    for number in range(10):
        at_once(cache.set(("live", number), 1, ttl=0.75))
    clock.advance(0.5)
    at_once(cache.set("new", 1))
    assert cache.stats().removals_by_cause["EXPIRED"] == min(due, 4)
    assert len(cache) == 11
    cache.check()


def test_counts_that_are_forgotten_begin_at_zero(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_entries=1, max_memory_bytes=10_000, clock=clock)
    for number in range(3):
        at_once(cache.set(number, 1))
    at_once(cache.set("large", b"x" * 20_000))
    before = cache.stats()
    assert (before.evictions, before.rejected) == (2, 1)
    cache._engine.store.forget_counts()
    after = cache.stats()
    assert (after.evictions, after.rejected) == (0, 0)
    assert set(after.evictions_by_cause.values()) == {0}
    assert set(after.removals_by_cause.values()) == {0}
    assert after.evictions_by_cause.keys() == before.evictions_by_cause.keys()


def test_the_store_says_whether_it_kept_a_value(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_memory_bytes=10_000, clock=clock)
    store, dropped = cache._engine.store, list[object]()
    with store.lock:
        kept = [
            store.put(cache._raw, "key", str, "value", weight, None, clock(), dropped)
            for weight in (10_000, 10_001)
        ]
    assert kept == [True, False]


def test_seconds_beyond_the_first_leave_nothing_in_the_expiry_index(clock: VirtualClock) -> None:
    """One entry keeps the earliest second alive while thousands of later ones come and go."""
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set("first", 1, ttl=1_000))
    for ttl in range(1, 2_000):
        at_once(cache.set("key", ttl, ttl=10_000 + ttl))
    index = cache._engine.store._expiry
    assert len(index._buckets) == 2
    assert len(index._seconds) <= 2 * 2 + 64
    clock.advance(1_000)
    assert len(cache) == 1
    cache.check()


# -- reasons


def test_an_expired_entry_that_nobody_freed_is_a_miss_by_expiry(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set("key", 1, ttl=1))
    clock.advance(1)
    assert cache.memory_bytes > 0, "nobody freed it"
    assert at_once(cache.lookup("key")).reason is MissReason.EXPIRED
    assert at_once(cache.get_many(["key"])) == {}
    assert cache.stats().misses_by_reason["EXPIRED"] == 2


@pytest.mark.parametrize("clear", ["clear", "cache_clear"])
def test_what_had_expired_when_it_was_cleared_had_expired(clear: str, clock: VirtualClock) -> None:
    """Also what expires at that very moment."""
    cache = AsyncSafeCache(clock=clock)

    @race_safe_cached(cache, "price")
    def price(symbol: str) -> str:
        return symbol

    price("fresh")
    keys = {name: cache.key_for(price, name) for name in ("fresh", "due", "past")}
    at_once(cache.set(keys["past"], 1, ttl=1))
    at_once(cache.set(keys["due"], 1, ttl=5))
    clock.advance(5)
    if clear == "clear":
        at_once(cache.clear())
    else:
        price.cache_clear()  # type: ignore[attr-defined]
    assert {name: at_once(cache.lookup(key)).reason for name, key in keys.items()} == {
        "fresh": MissReason.CLEARED,
        "due": MissReason.EXPIRED,
        "past": MissReason.EXPIRED,
    }


def test_what_is_written_while_a_clear_frees_in_slices_stays(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    for number in range(5_000):
        at_once(cache.set(number, "old"))
    clearing = cache.clear()
    clearing.send(None)  # the first slice
    assert len(cache) == 0
    at_once(cache.set(4_999, "new"))
    at_once(cache.set("other", "new"))
    with pytest.raises(StopIteration):
        while True:
            clearing.send(None)
    assert at_once(cache.get_many([1, 4_999, "other"])) == {4_999: "new", "other": "new"}
    cache.check()


def test_of_very_many_removals_the_last_65536_are_remembered(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_memory_bytes=None, weigher=lambda _: 1, clock=clock)
    held = MOST + 1_000
    for key in range(held):
        at_once(cache.set(key, None))
    asyncio.run(cache.clear())  # in slices
    record = cache._engine.store._record
    assert len(record) == MOST
    cache.check()
    for key, reason in [(0, MissReason.ABSENT), (held - 1, MissReason.CLEARED)]:
        assert at_once(cache.lookup(key)).reason is reason


def test_a_value_too_large_for_an_absent_key_leaves_its_reason(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_memory_bytes=10_000, clock=clock)
    at_once(cache.set("key", b"x" * 20_000))
    assert at_once(cache.lookup("key")).reason is MissReason.REJECTED
    assert cache.stats().rejected == 1


@pytest.mark.parametrize(
    "large",
    [
        lambda n: "k" * 1_000 + str(n),
        lambda n: b"k" * 1_000 + bytes([n]),
        lambda n: (n, *range(20)),
        lambda n: ("k" * 100, n),
        lambda n: (1 << 1_000) + n,
        lambda n: frozenset({n, "k"}),
    ],
    ids=["str", "bytes", "long tuple", "tuple of a long str", "int", "frozenset"],
)
def test_each_large_key_has_a_record_of_its_own(
    large: Callable[[int], Any], clock: VirtualClock
) -> None:
    cache = AsyncSafeCache(clock=clock)
    for number in range(3):
        at_once(cache.set(large(number), 1))
    at_once(cache.delete(large(0)))
    at_once(cache.expire(large(1)))
    reasons = [at_once(cache.lookup(large(number))).reason for number in range(4)]
    assert reasons == [MissReason.DELETED, MissReason.EXPIRED, None, MissReason.ABSENT]
    for _, mark in cache._engine.store._record:
        assert isinstance(mark, bytes)
        assert len(mark) == 16


@pytest.mark.parametrize(
    "small",
    ["k" * 48, b"k" * 48, (1, "a", None, 2.5), (1 << 383), None, True, tuple(range(7))],
    ids=str,
)
def test_a_small_key_is_its_own_record(small: Any, clock: VirtualClock) -> None:
    """Making a digest would cost more than the key itself does."""
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set(small, 1))
    at_once(cache.delete(small))
    assert at_once(cache.lookup(small)).reason is MissReason.DELETED
    assert [mark for _, mark in cache._engine.store._record] == [canonical(small, "x")]


# -- keys


def test_one_instant_is_one_key_whatever_the_zone_counts_in() -> None:
    """Days, hours, minutes, seconds and microseconds of an offset all count, both ways."""
    for offset in (
        timedelta(hours=14),
        timedelta(hours=-12),
        timedelta(hours=5, minutes=30),
        timedelta(hours=5, minutes=45),
        timedelta(hours=-3, minutes=-30),
        timedelta(minutes=19, seconds=32),
        timedelta(seconds=1, microseconds=1),
    ):
        here = datetime(2026, 3, 1, 23, 59, 58, 7, UTC)
        there = here.astimezone(timezone(offset))
        assert here == there
        assert canonical(there, "x") == canonical(here, "x"), offset
        assert canonical(there.replace(tzinfo=UTC), "x") != canonical(here, "x")
        # A time of day counts from its own midnight, wherever that is in UTC.
        assert canonical(time(23, 59, 58, 7, timezone(offset)), "x") == (
            *(time, "utc"),
            ((23 * 60 + 59) * 60 + 58) * 1_000_000 + 7 - offset // timedelta(microseconds=1),
        )


# -- what never runs under the lock


class _Watched:
    """A cache whose user code asks, at every call, whether another thread gets into the cache."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: set[str] = set()
        self.shut_out: list[str] = []
        self.cache = AsyncSafeCache(clock=self.clock, weigher=self.weigh)

    def ask(self, what: str) -> None:
        if threading.current_thread() is not threading.main_thread() or self.shut_out:
            return
        self.asked.add(what)
        other = threading.Thread(target=lambda: self.cache.stats(), daemon=True)
        other.start()
        other.join(2)
        if other.is_alive():
            self.shut_out.append(what)

    def clock(self) -> float:
        if hasattr(self, "cache"):
            self.ask("clock")
        return self.now

    def weigh(self, value: object) -> int:
        self.ask("weigher")
        return 1

    def remember(self, error: Exception) -> float:
        self.ask("negative")
        return 1.0


async def _written(watched: _Watched) -> None:
    await watched.cache.set("key", 1, ttl=1)
    await watched.cache.touch("key", 5)
    await watched.cache.delete("key")


async def _loaded(watched: _Watched) -> None:
    async def load() -> int:
        watched.ask("loader")
        return 1

    await watched.cache.get_or_load("key", load, ttl=1)


async def _failed(watched: _Watched) -> None:
    def load() -> int:
        watched.ask("loader")
        raise KeyError

    with pytest.raises(KeyError):
        await watched.cache.get_or_load("key", load, negative={KeyError: watched.remember})


async def _called(watched: _Watched) -> None:
    def key_of(argument: int) -> int:
        watched.ask("key")
        return argument

    @race_safe_cached(watched.cache, "called", key=key_of)
    def called(argument: int) -> int:
        watched.ask("loader")
        return argument

    assert called(1) == 1
    assert called(1) == 1


@pytest.mark.parametrize(
    ("story", "asked"),
    [
        (_written, {"clock", "weigher"}),
        (_loaded, {"clock", "weigher", "loader"}),
        (_failed, {"clock", "negative", "loader"}),
        (_called, {"clock", "weigher", "loader", "key"}),
    ],
    ids=["written", "loaded", "failed", "called"],
)
def test_while_the_users_code_runs_another_thread_gets_into_the_cache(
    story: Callable[[_Watched], Any], asked: set[str]
) -> None:
    """User code under a lock would stop every thread for as long as it takes, or for ever."""
    watched = _Watched()
    asyncio.run(story(watched))
    assert watched.shut_out == []
    assert watched.asked == asked


# -- the prover


def _lost_bytes(cache: AsyncSafeCache) -> None:
    cache._engine.store.bytes += 1


def _too_many_bytes(cache: AsyncSafeCache) -> None:
    cache._engine.store.max_bytes = 1


def _too_many_entries(cache: AsyncSafeCache) -> None:
    cache._engine.store.max_entries = 1


def _unordered_entry(cache: AsyncSafeCache) -> None:
    store = cache._engine.store
    entry = store.order.newest()[0]
    store.order.discard(entry)
    store.bytes -= entry.weight


def _entry_under_another_key(cache: AsyncSafeCache) -> None:
    data = cache._raw.data
    data["a"], data["b"] = data["b"], data["a"]


def _occupied_by_nothing(cache: AsyncSafeCache) -> None:
    other = AsyncSafeCache("other")
    cache._engine.store._occupied[other._raw] = None


def _not_occupied(cache: AsyncSafeCache) -> None:
    cache._engine.store._occupied.clear()


def _no_deadline_kept(cache: AsyncSafeCache) -> None:
    store = cache._engine.store
    store._expiry.discard(cache._raw.data["a"])


def _deadline_moved(cache: AsyncSafeCache) -> None:
    cache._raw.data["a"].deadline += 100


def _second_lost(cache: AsyncSafeCache) -> None:
    cache._engine.store._expiry._seconds.clear()


def _found_too_late(cache: AsyncSafeCache) -> None:
    cache._engine.store._expiry.soonest += 100


def _uncounted_entry(cache: AsyncSafeCache) -> None:
    cache._engine.store.count -= 1


def _bytes_of_a_namespace(cache: AsyncSafeCache) -> None:
    cache._raw.bytes += 1


def _grave_of(cache: AsyncSafeCache) -> Any:
    store = cache._engine.store
    store._entomb(cache._raw, RemovalCause.CLEARED, 0.0, None, placed=True)
    store._occupied.clear()
    cache.check()
    return store._graves[cache._raw][0]


def _uncounted_dead(cache: AsyncSafeCache) -> None:
    _grave_of(cache).data.popitem()


def _dead_and_alive(cache: AsyncSafeCache) -> None:
    cache._raw.data = _grave_of(cache).data


def _lost_bytes_of_the_dead(cache: AsyncSafeCache) -> None:
    _grave_of(cache)
    cache._engine.store._dead_bytes += 1


def _registered_and_done(cache: AsyncSafeCache) -> None:
    cache._engine.flights.open((cache._raw, "x"), "x", None).done = True


def _registered_and_fenced(cache: AsyncSafeCache) -> None:
    cache._engine.flights.open((cache._raw, "x"), "x", None).fenced = True


def _registered_under_another_key(cache: AsyncSafeCache) -> None:
    cache._engine.flights.open((cache._raw, "x"), "x", None).key = (cache._raw, "y")


def _registered_and_not_running(cache: AsyncSafeCache) -> None:
    flights = cache._engine.flights
    flights.running.pop(flights.open((cache._raw, "x"), "x", None))


def _running_and_done(cache: AsyncSafeCache) -> None:
    flights = cache._engine.flights
    flight = flights.open((cache._raw, "x"), "x", None)
    flights.end(flight)
    flights.running[flight] = None


def _running_for_nobody(cache: AsyncSafeCache) -> None:
    flight = cache._engine.flights.open((cache._raw, "x"), "x", None)
    flight.task = object()  # type: ignore[assignment]


@pytest.mark.parametrize(
    "broken",
    [
        _lost_bytes,
        _too_many_bytes,
        _too_many_entries,
        _unordered_entry,
        _entry_under_another_key,
        _occupied_by_nothing,
        _not_occupied,
        _no_deadline_kept,
        _deadline_moved,
        _second_lost,
        _found_too_late,
        _uncounted_entry,
        _bytes_of_a_namespace,
        _uncounted_dead,
        _dead_and_alive,
        _lost_bytes_of_the_dead,
        _registered_and_done,
        _registered_and_fenced,
        _registered_under_another_key,
        _registered_and_not_running,
        _running_and_done,
        _running_for_nobody,
    ],
    ids=lambda broken: broken.__name__.lstrip("_"),
)
async def test_check_sees_every_broken_invariant(
    broken: Callable[[AsyncSafeCache], None],
) -> None:
    """The check that ends every test and every scenario must itself be able to fail."""
    cache = AsyncSafeCache(max_entries=10, max_memory_bytes=1_000_000)
    await cache.set("a", 1, ttl=10)
    await cache.set("b", 2)
    cache.check()
    broken(cache)
    with pytest.raises(AssertionError, match="broken invariant"):
        cache.check()
    cache._engine.check = lambda: None  # type: ignore[method-assign]  # broken, and known to be


async def test_a_load_that_may_finish_or_is_cancelled_already_may_have_no_waiter() -> None:
    """The check must not cry either."""
    cache = AsyncSafeCache()
    flights = cache._engine.flights
    for number in range(3):
        flight = flights.open((cache._raw, number), "x", None)
        flight.keep = number == 0
        if number != 2:
            flight.task = object()  # type: ignore[assignment]
        flight.cancelling = number == 1
    cache.check()
    flights.running.clear()
    flights._registry.clear()


# -- what a random change showed


def test_while_a_clear_frees_in_slices_no_read_finds_anything(clock: VirtualClock) -> None:
    """Clearing is one step; only the memory is given back bit by bit."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_memory_bytes=None)
        for key in range(5_000):
            await cache.set(key, key)
        clearing = asyncio.create_task(cache.clear())
        await asyncio.sleep(0)
        assert not clearing.done(), "there is more than one slice"
        assert await cache.get_many(range(5_000)) == {}
        assert [cache.peek(key) for key in (0, 2_500, 4_999)] == [MISSING] * 3
        await clearing

    run_virtual(main(), clock)


def test_a_class_that_gains_a_cache_key_after_it_was_refused_is_accepted() -> None:
    """A refusal is not remembered."""

    class Late:
        pass

    with pytest.raises(TypeError):
        canonical(Late(), "key", raw=True)
    Late.__cache_key__ = lambda self: 7  # type: ignore[attr-defined]
    assert canonical(Late(), "key", raw=True) == canonical(Late(), "key", raw=True)


async def test_what_replaces_an_expired_value_removes_it_as_expired(clock: VirtualClock) -> None:
    """Whether a sweep came first must not show in the counts."""
    cache = AsyncSafeCache(clock=clock)
    await cache.set("swept", 1, ttl=1)
    await cache.set("kept", 1)
    clock.advance(2)
    await cache.set("swept", 2)
    await cache.set("kept", 2)
    removals = cache.stats().removals_by_cause
    assert (removals["EXPIRED"], removals["REPLACED"]) == (1, 1)
