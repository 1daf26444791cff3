"""Reads and writes of one cache: the store and the flights under one lock.

The two know nothing of each other; here every operation is composed of both and
decided in one step: a write fences the load of its key and changes the entry
under the same lock. What user code is concerned (weighers, clocks, values that
are dropped) runs outside it.

The collector may run a finaliser at any allocation, also while this thread
holds the lock, and that finaliser may call the cache. So the lock is
re-entrant, and a write that finds it held by its own thread is put off until
the interrupted one is complete (`later`).
"""

import logging
import math
import random
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager
from enum import Enum, auto
from inspect import iscoroutine
from typing import Any, Final, cast, final
from weakref import ref

from ._dead_loops import Guards
from ._entries import Counters, Entry, Namespace
from ._flights import Failure, Flight, Flights, current_flight
from ._health import Recent
from ._journal import Journal
from ._keys import DataKey
from ._protocols import Clock, Weigher
from ._store import ENTRY_OVERHEAD, Store
from ._weight import weigh, weigh_key
from .errors import CacheClosedError
from .options import CacheOptions
from .outcomes import CacheStats, MissReason, RemovalCause

__all__ = ["Engine", "State", "bypass", "cancel", "check_value", "one_shot"]

_log = logging.getLogger("async_safe_cache")

_engines: Final["set[ref[Engine]]"] = set()  # bounded by the live caches


class State(Enum):
    """Where a cache is in its life."""

    OPEN = auto()
    DRAINING = auto()
    CLOSED = auto()


def one_shot(value: object) -> bool:
    """Tell whether *value* can be used only once, so that a second caller would get nothing."""
    kind = type(value)
    # By identity, not `in`: that would hash a class, which its metaclass may forbid.
    if kind is dict or kind is str or kind is bytes or kind is list or kind is tuple:
        return False
    return (
        hasattr(kind, "__await__")
        or (hasattr(kind, "__next__") and _is_its_own(iter, value))
        or (hasattr(kind, "__anext__") and _is_its_own(aiter, value))
    )


def _is_its_own(iterator_of: Callable[[Any], object], value: object) -> bool:
    """Tell whether *value* is an iterator over itself; one that only has the method is none."""
    try:
        return iterator_of(value) is value
    except Exception:  # noqa: BLE001 - whatever it is, it can not be used up
        return False


def check_value(source: str, name: str, value: object) -> None:
    """Raise TypeError for an awaitable, a generator or an iterator; *source* of *name* gave it."""
    if not one_shot(value):
        return
    if iscoroutine(value):
        value.close()
    raise TypeError(
        f"{source} of {name!r} gave a value of type {type(value).__name__}, which can be used only "
        "once: a second caller would find it used up; await it, or make a list of it, before it is "
        "cached"
    )


@final
class Engine:
    """Loads, reads and writes of one cache; bound to no loop."""

    def __init__(
        self,
        name: str,
        store: Store,
        clock: Clock,
        weigher: Weigher | None,
    ) -> None:
        self.name = name
        self.store = store
        self.flights = Flights()
        self.clock = clock
        self.weigher = weigher
        self.state = State.OPEN
        self.counters: dict[Counters, None] = {}  # bounded by the decorated functions
        self.retired = Counters()
        self.misses_by_reason = dict.fromkeys(MissReason, 0)
        self.estimated = 0
        self.recent = Recent(clock())
        self.workers: set[threading.Thread] = set()  # bounded by the loads in threads
        # What finalisers asked for; bounded by what was collected since the last write.
        self.later: deque[Callable[[list[object]], object]] = deque()
        self._lock = store.lock
        self.journals: set[Journal] = set()  # bounded by the loads that ask for one
        self.guards = Guards(self.flights, store.lock)
        # Not in the stubs, but what threading.Condition asks every RLock.
        self._is_mine: Callable[[], bool] = cast("Any", store.lock)._is_owned
        _engines.add(ref(self, _engines.discard))

    # -- small parts

    def admit(self) -> None:
        """Raise CacheClosedError unless the caller may go on.

        While the cache drains, the loads that it waits for may still use it.
        """
        if not self.admits:
            raise CacheClosedError(self.name)

    @property
    def admits(self) -> bool:
        """Whether the caller may go on."""
        if self.state is State.OPEN:
            return True
        flight = current_flight.get()
        return self.state is State.DRAINING and flight is not None and not flight.done

    @property
    def reentered(self) -> bool:
        """Whether this very thread is inside the lock: this is a finaliser's call."""
        return self._is_mine()

    def write(self, action: Callable[[float, list[object], list[Flight]], int]) -> int:
        """Run *action(now, dropped, doomed)* under the lock; put it off inside a finaliser.

        What it puts into `dropped` dies after the lock, the loads that it puts
        into `doomed` are cancelled after it.
        """
        now = self.moment()
        doomed: list[Flight] = []
        if self.reentered:

            def postponed(dropped: list[object]) -> None:
                action(now, dropped, doomed)
                cancel(doomed)

            self.later.append(postponed)
            return 0
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            self.recent.roll(now, self.stats)
            result = action(now, dropped, doomed)
        cancel(doomed)
        return result

    def catch_up(self, dropped: list[object]) -> None:
        """Locked. Do what was put off; not from a read, which may itself be a finaliser's."""
        while self.later:
            action = self.later.popleft()
            try:
                action(dropped)
            except Exception as error:  # noqa: BLE001 - not the error of whoever happens to write
                _log.warning("a write put off by a finaliser failed with %s", type(error).__name__)

    def drop(self, space: Namespace, dropped: list[object]) -> None:
        """Locked. Remove everything in *space*, whose owner is gone."""
        for key in self.flights.registered():
            if key[0] is space:
                # Whoever still waits keeps the load alive; nobody new can ask for it.
                self.flights.fence(key)
        self.note_all()
        self.store.clear_spaces((space,), RemovalCause.COLLECTED, -math.inf, dropped)

    def measure(self, load_key: DataKey, value: object) -> int:
        """Return the bytes of an entry, overhead included; runs the user's weigher."""
        if self.weigher is None:
            size, estimated = weigh(value)
            self.estimated += estimated
        else:
            size = self._checked_weight(self.weigher(value))
        return size + weigh_key(load_key) + ENTRY_OVERHEAD

    def _checked_weight(self, weight: object) -> int:
        meaning = "the weigher must return bytes: a number from 0"
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise TypeError(f"{meaning}, not {type(weight).__name__}; nothing was stored")
        if not weight >= 0:
            raise ValueError(f"{meaning}, not {weight!r}; nothing was stored")
        # Above any bound, whatever the bound: infinity, and an int that no float can hold.
        return 1 << 62 if weight > 1 << 62 else math.ceil(weight)

    def miss(self, space: Namespace, key: DataKey) -> MissReason:
        """Locked. Count one miss."""
        reason = self.store.reason(space, key)
        space.counters.misses += 1
        self.misses_by_reason[reason] += 1
        return reason

    def shortened(self, options: CacheOptions) -> float | None:
        """Return the ttl of one entry, shortened by chance."""
        ttl = options.ttl
        if ttl is None or not options.jitter:
            return ttl
        return ttl * (1 - options.jitter * random.random())  # noqa: S311 - spreads load, hides nothing

    def moment(self) -> float:
        """Read the clock for a write.

        Raises:
            ValueError: It returned no finite number.
            Exception: Whatever it raised.
        """
        now = self.clock()
        if not -math.inf < now < math.inf:
            raise ValueError(f"the clock of {self.name!r} must return finite seconds, not {now!r}")
        return now

    def moment_or_none(self) -> float | None:
        """Read the clock where its failure must not strand those who wait."""
        try:
            return self.moment()
        except Exception as error:  # noqa: BLE001 - see above
            _log.warning("the clock failed with %s while a load ended", type(error).__name__)
            return None

    # -- reading

    def peek(self, space: Namespace, key: DataKey, now: float) -> Entry | None:
        """Return the fresh entry of *key*; no lock, no recency, no statistics."""
        entry = space.data.get(key)
        if entry is None or entry.deadline <= now or type(entry.value) is Failure:
            return None
        return entry

    def look(self, space: Namespace, key: DataKey, now: float) -> Entry | None:
        """Return the fresh entry of *key*; no recency, no statistics.

        A write takes the old entry out before it publishes the new one, so what
        seems to be absent is looked for again under the lock.
        """
        entry = self.peek(space, key, now)
        if entry is None:
            with self._lock:
                entry = self.peek(space, key, now)
        return entry

    def read(self, space: Namespace, key: DataKey, now: float) -> Entry | MissReason:
        """Return the fresh entry of *key*, or why there is none; one counted call."""
        self.admit()
        entry = self.peek(space, key, now)
        if entry is not None:
            try:
                self.store.order.touch(entry)
            except KeyError:
                pass  # removed by another thread a moment ago: it was there when we looked
            space.counters.other_hits += 1
            return entry
        with self._lock:
            return self._read_locked(space, key, now)

    def _read_locked(self, space: Namespace, key: DataKey, now: float) -> Entry | MissReason:
        self.recent.roll(now, self.stats)
        entry = self.store.find(space, key, now)
        if entry is None:
            return self.miss(space, key)
        if type(entry.value) is Failure:
            # A remembered failure is no value: only a load may raise it.
            space.counters.misses += 1
            self.misses_by_reason[MissReason.ABSENT] += 1
            return MissReason.ABSENT
        space.counters.other_hits += 1
        return entry

    def read_many(
        self, places: Iterable[tuple[Namespace, DataKey]], now: float
    ) -> list[Entry | None]:
        """Return the fresh entries of one moment; one counted call each."""
        with self._lock:
            self.admit()
            found = [self._read_locked(space, key, now) for space, key in places]
        return [entry if isinstance(entry, Entry) else None for entry in found]

    # -- writing

    def put(
        self, space: Namespace, key: DataKey, kind: object, value: object, ttl: float | None
    ) -> None:
        """Store *value* and fence the load of its key."""
        check_value("set()", self.name, value)
        weight = self.measure(key, value)

        def action(now: float, dropped: list[object], doomed: list[Flight]) -> int:
            self.admit()
            self._fence(space, key, doomed)
            return self.store.put(space, key, kind, value, weight, ttl, now, dropped)

        self.write(action)

    def remove(self, places: Collection[tuple[Namespace, DataKey]], cause: RemovalCause) -> int:
        """Remove entries and fence their loads; return how many were fresh."""

        def action(now: float, dropped: list[object], doomed: list[Flight]) -> int:
            removed = 0
            for space, key in places:
                fenced = self._fence(space, key, doomed)
                entry = space.data.get(key)
                failure = entry is not None and type(entry.value) is Failure
                fresh = self.store.remove(space, key, cause, now, dropped, fenced=fenced)
                removed += fresh and not failure
            return removed

        return self.write(action)

    def remove_spaces(self, spaces: Callable[[], Iterable[Namespace]], cause: RemovalCause) -> int:
        """Remove everything in the namespaces, as they are then, and fence their loads."""

        def action(now: float, dropped: list[object], doomed: list[Flight]) -> int:
            gone = set(spaces())
            self.note_all()
            for space, key in self.flights.registered():
                if space in gone and self._fence(space, key, doomed):
                    self.store.remove(space, key, cause, now, dropped, fenced=True)
            return self.store.clear_spaces(gone, cause, now, dropped)

        return self.write(action)

    def clear(self) -> list[Any]:
        """Remove everything and fence every load; return what is to be freed in slices.

        The entries themselves are freed by `sweep`, if by no later write.
        """
        wreck: list[Any] = []

        def action(now: float, dropped: list[object], doomed: list[Flight]) -> int:
            self.note_all()
            for space, key in self.flights.registered():
                if self._fence(space, key, doomed):
                    self.store.remove(space, key, RemovalCause.CLEARED, now, dropped, fenced=True)
            wreck.extend(self.store.clear(now))
            return 0

        self.write(action)
        return wreck

    def retime(self, space: Namespace, key: DataKey, ttl: float | None) -> bool:
        """Give the fresh entry of *key* a new time to live; False if there is none."""

        def action(now: float, dropped: list[object], doomed: list[Flight]) -> int:
            self.admit()
            entry = self.peek(space, key, now)
            if entry is not None:
                self.store.retime(entry, ttl, now)
            return entry is not None

        return bool(self.write(action))

    def sweep(self, now: float, limit: int) -> bool:
        """Free up to *limit* entries that are cleared or due; tell whether there may be more."""
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            self.recent.roll(now, self.stats)
            return self.store.free(now, limit, dropped) == limit

    def bury(self, limit: int) -> bool:
        """Free up to *limit* cleared entries; tell whether there may be more."""
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            return self.store.free(-math.inf, limit, dropped) == limit

    def note_all(self) -> None:
        """Locked. Note in every journal that anything may have changed."""
        for journal in tuple(self.journals):  # a copy: a load that is over takes out its own
            journal.note_all()

    def _fence(self, space: Namespace, key: DataKey, doomed: list[Flight]) -> bool:
        for journal in tuple(self.journals) if self.journals else ():
            journal.note((space, key))
        fenced, abandoned = self.flights.fence((space, key))
        if abandoned is not None:
            doomed.append(abandoned)
        return fenced

    # -- counting

    def stats(self) -> CacheStats:
        """Return the counters of this moment. O(decorated functions)."""
        total = Counters()
        total.add(self.retired)
        for counters in tuple(self.counters):
            total.add(counters)
        store = self.store
        return CacheStats(
            hits=total.hits,
            misses=total.misses,
            coalesced=total.coalesced,
            loads=total.loads,
            load_errors=total.load_errors,
            overlapping_loads=self.flights.overlapping,
            evictions=sum(store.evictions.values()),
            rejected=store.rejected,
            estimated_weights=self.estimated,
            misses_by_reason={str(reason): n for reason, n in self.misses_by_reason.items()},
            removals_by_cause={str(cause): store.removals[cause] for cause in RemovalCause},
            evictions_by_cause=dict(store.evictions),
        )

    def leave_behind(self, *, torn: bool) -> list[Flight]:
        """Locked, in a forked child. Keep the entries; let go of all else, and return the flights.

        What is *torn* in the middle of a write is emptied too.
        """
        flights = self.flights.leave_behind()
        self.guards.forget()
        self.workers.clear()
        self.journals.clear()
        if self.state is State.DRAINING:
            self.state = State.CLOSED  # whoever was closing it is not here to do the rest
        if torn or self.state is State.CLOSED:
            self.store.clear(-math.inf)
            self.store.forget_removals()
            self.store.forget_graves()
        for counters in (self.retired, *self.counters):
            counters.forget()
        self.misses_by_reason = dict.fromkeys(MissReason, 0)
        self.estimated = 0
        self.store.forget_counts()
        self.recent = Recent(self.recent.last)
        return flights

    def check(self) -> None:
        """Recompute every invariant from scratch; raise AssertionError at a broken one."""
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            self.store.check()
            self.flights.check()


@contextmanager
def bypass(engine: Engine | None) -> Generator[None]:
    """Switch caching off for the block: for one cache, or (None) for all of the process.

    First nothing gets in any more, then everything is taken out and the loads
    that run are fenced: so every hit misses, and pays nothing to do so.
    """
    # `x += 1` on an attribute is one step under the GIL, as with Counters.hits.
    if engine is None:
        Store.off_everywhere += 1
    else:
        engine.store.off += 1
    try:
        _clear(engine)
        yield
    finally:
        if engine is None:
            Store.off_everywhere -= 1
        else:
            engine.store.off -= 1


def _clear(engine: Engine | None) -> None:
    # tuple(a set) is one step too: no cache of another thread comes in between.
    engines = [each() for each in tuple(_engines)] if engine is None else [engine]
    for each in engines:
        if each is not None:
            each.clear()


def cancel(flights: Iterable[Flight]) -> None:
    """Ask the tasks of *flights* to end; outside the lock."""
    for flight in flights:
        flight.cancel()
