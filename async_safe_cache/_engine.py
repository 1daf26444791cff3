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
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from inspect import iscoroutine
from typing import Any, Final, NamedTuple, cast, final
from weakref import ref

from ._dead_loops import Guards
from ._entries import Counters, Entry, Facts, Namespace
from ._flights import Failure, Flight, Flights, current_flight
from ._health import Recent
from ._journal import Journal
from ._keys import DataKey
from ._links import Link
from ._loader import NotModified, Skipped
from ._marks import Marks, Place
from ._protocols import Clock, Weigher
from ._store import ENTRY_OVERHEAD, Store
from ._weight import weigh, weigh_key
from .errors import CacheClosedError
from .options import CacheOptions
from .outcomes import CacheStats, Explanation, MissReason, RemovalCause

__all__ = ["Engine", "State", "bypass", "cancel", "check_value", "one_shot", "shortened"]

_log = logging.getLogger("async_safe_cache")

_engines: Final["set[ref[Engine]]"] = set()  # bounded by the live caches


MOST_ERRORS: Final = 256
"""Keys of which the last load error is remembered, for `explain`."""


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
        kind is NotModified
        or kind is Skipped
        or hasattr(kind, "__await__")
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
    """Raise TypeError for an awaitable, a generator or an iterator; *source* of *name* gave it.

    Likewise for what a `LoadContext` gave to a loader that was called without one.
    """
    if not one_shot(value):
        return
    if isinstance(value, (NotModified, Skipped)):
        raise TypeError(
            f"{source} of {name!r} gave what the LoadContext of another load returned, and means "
            "nothing here: return it from the loader that was given that context"
        )
    if iscoroutine(value):
        value.close()
    raise TypeError(
        f"{source} of {name!r} gave a value of type {type(value).__name__}, which can be used only "
        "once: a second caller would find it used up; await it, or make a list of it, before it is "
        "cached"
    )


class Write(NamedTuple):
    """One staged write, checked and weighed; with *marks* None to be nothing but removed."""

    kind: object
    value: object
    weight: int
    ttl: float | None
    marks: Marks | None


@final
class Watch:
    """Which of the places that its owner has looked at were changed since by somebody else.

    Attributes:
        watched: What it looked at; bounded by its reads.
        changed: Whether any of it was written, or invalidated. Expiry and eviction are
            no change: what was read is still what was written last.
    """

    __slots__ = ("__weakref__", "changed", "watched")

    def __init__(self) -> None:
        self.watched: set[Place] = set()
        self.changed = False


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
        self.flights = Flights(self._unlink)
        self.inconsistent_reads = 0
        self.load_timeouts = 0
        self.stale_served = 0
        self.load_errors: dict[Place, str] = {}  # the last MOST_ERRORS
        self.watches: set[ref[Watch]] = set()  # bounded by the open transactions
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
        self._is_mine = store.is_mine
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
            if self.store.links.nodes:
                self.trim(now, dropped, doomed)
        cancel(doomed)
        if self.store.events is not None:
            del dropped  # its values are gone before anybody is told
            self.tell()
        return result

    def settle(self) -> None:
        """Do what was put off, where no write follows."""
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
        del dropped
        self.tell()

    def tell(self) -> None:
        """Let the listeners, if there are any, know what this thread has done."""
        events = self.store.events
        if events is not None:
            events.deliver()

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

    def miss_unfit(self, space: Namespace, reason: MissReason) -> MissReason:
        """Locked. Count one miss of a fresh entry that may not be served.

        An entry older than what it depends on should have been removed: that one is
        still here is a fault of this library, which health shows.
        """
        space.counters.misses += 1
        self.misses_by_reason[reason] += 1
        self.inconsistent_reads += reason is MissReason.DELETED
        return reason

    def shortened(self, options: CacheOptions) -> float | None:
        """Return the ttl of one entry, shortened by chance."""
        return shortened(options.ttl, options.jitter)

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
        if type(entry.facts) is Facts and self.unfit(entry, space.version) is not None:
            return None
        return entry

    def unfit(self, entry: Entry, version: object) -> MissReason | None:
        """Return why a fresh *entry* is not for who reads under *version*; None: it is."""
        if version is not None and entry.version != version:
            return MissReason.VERSION_MISMATCH
        link = entry.link
        return None if link is None or link.current() else MissReason.DELETED

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
        if type(entry.facts) is Facts:
            reason = self.unfit(entry, space.version)
            if reason is not None:
                return self.miss_unfit(space, reason)
        if type(entry.value) is Failure:
            # A remembered failure is no value: only a load may raise it.
            space.counters.misses += 1
            self.misses_by_reason[MissReason.ABSENT] += 1
            return MissReason.ABSENT
        space.counters.other_hits += 1
        return entry

    def stale(self, space: Namespace, key: DataKey, now: float, version: object) -> Entry | None:
        """Return the entry of *key* if it is past its ttl and kept; no recency, no statistics."""
        entry = space.data.get(key)
        if entry is None or entry.deadline > now or type(entry.value) is Failure:
            return None
        if entry.kept(now) is None:
            return None
        return None if self.unfit(entry, version) is not None else entry

    def explain(self, space: Namespace, key: DataKey) -> Explanation:
        """Return everything known about *key*; no statistics, no recency."""
        now = self.moment()
        with self._lock:
            entry = space.data.get(key)
            fresh = None if entry is None or entry.deadline <= now else entry
            stale_left = None
            if entry is not None and fresh is None and entry.kept(now) is not None:
                stale_left = entry.deadline + cast("Facts", entry.facts).window - now
            reason: MissReason | None
            if fresh is None:
                reason = self.store.reason(space, key)
            else:
                failed = type(fresh.value) is Failure
                reason = MissReason.ABSENT if failed else self.unfit(fresh, space.version)
            left = None if fresh is None or fresh.deadline == math.inf else fresh.deadline - now
            link = None if fresh is None else fresh.link
            node = self.store.links.nodes.get((space, key))
            flight = self.flights.registered_at((space, key))
            self.store.observe()  # whatever is written from here on has a greater generation
            failure = None if fresh is None or type(fresh.value) is not Failure else fresh.value
            return Explanation(
                name=space.name,
                hit=reason is None,
                reason=reason,
                age=None if fresh is None else max(0.0, now - fresh.born),
                ttl_left=left,
                stale_left=stale_left,
                weight=None if fresh is None else fresh.weight,
                tags=() if fresh is None else fresh.tags,
                depends_on=0 if link is None else len(link.sources),
                dependents=0 if node is None else len(node.dependents),
                generation=None if fresh is None else fresh.generation,
                version=space.version if fresh is None else fresh.version,
                remembered_failure=None if failure is None else type(failure.error).__name__,
                last_removal=self.store.last_removal(space, key),
                last_load_error=self.load_errors.get((space, key)),
                in_flight=None
                if flight is None
                else "cancelling"
                if flight.cancelling
                else "running",
                waiters=0 if flight is None else len(flight.waiters),
            )

    def failed(self, place: Place, error: BaseException) -> None:
        """Locked. Remember, by its type, why the last load of *place* failed."""
        self.load_errors.pop(place, None)
        self.load_errors[place] = type(error).__name__
        if len(self.load_errors) > MOST_ERRORS:
            del self.load_errors[next(iter(self.load_errors))]

    def read_many(
        self, places: Iterable[tuple[Namespace, DataKey]], now: float
    ) -> list[Entry | None]:
        """Return the fresh entries of one moment; one counted call each."""
        with self._lock:
            self.admit()
            found = [self._read_locked(space, key, now) for space, key in places]
        return [entry if isinstance(entry, Entry) else None for entry in found]

    def read_as_of(
        self, places: Iterable[Place], now: float, generation: int
    ) -> list[Entry | MissReason]:
        """Return those of the fresh entries of one moment that are not younger than *generation*.

        One counted call each. A younger one is a miss, as if it were not there.
        """
        found: list[Entry | MissReason] = []
        with self._lock:
            self.admit()
            for space, key in places:
                entry = space.data.get(key)
                if entry is not None and entry.generation > generation and entry.deadline > now:
                    self.recent.roll(now, self.stats)
                    space.counters.misses += 1
                    self.misses_by_reason[MissReason.ABSENT] += 1
                    found.append(MissReason.ABSENT)
                else:
                    found.append(self._read_locked(space, key, now))
        return found

    def observe(self) -> int:
        """Return the generation of what is stored at this moment."""
        with self._lock:
            return self.store.observe()

    # -- writing

    def stage(
        self, source: str, key: DataKey, kind: object, value: object, ttl: float | None,
        marks: Marks | None,
    ) -> Write:  # fmt: skip
        """Check and weigh a value that is to be written; runs the user's weigher."""
        check_value(source, self.name, value)
        weight = self.measure(key, value)
        if marks is not None:
            weight += marks.weight()
        return Write(kind, value, weight, ttl, marks)

    def put(self, space: Namespace, key: DataKey, write: Write) -> None:
        """Store a value and fence the load of its key."""

        def action(now: float, dropped: list[object], doomed: list[Flight]) -> int:
            self.admit()
            self._fence(space, key, doomed)
            self._change(((space, key),), now, dropped, doomed)
            self._publish(space, key, write, now, dropped)
            return 0

        self.write(action)

    def swap(
        self, space: Namespace, key: DataKey, before: Entry | None, write: Write | None,
        *, keep: bool,
    ) -> bool:  # fmt: skip
        """Write, or with None remove, if the fresh entry is still *before*; tell whether it was.

        With *keep* the deadline of *before*, if there is one, remains.
        """

        def action(now: float, dropped: list[object], doomed: list[Flight]) -> int:
            self.admit()
            if self.peek(space, key, now) is not before:
                return False
            self._fence(space, key, doomed)
            if write is None:
                self.store.remove(space, key, RemovalCause.DELETED, now, dropped)
                self._note(space, key)
            self._change(((space, key),), now, dropped, doomed)
            if write is not None:
                kept = write
                if keep and before is not None:
                    left = before.deadline - now
                    kept = write._replace(ttl=None if left == math.inf else left)
                self._publish(space, key, kept, now, dropped)
            return True

        return bool(self.write(action))

    def commit(
        self, writes: Mapping[Place, Write | None], tags: Collection[str], watch: Watch | None
    ) -> bool:
        """Apply all of it in one step; False, and nothing, if *watch* knows of a change.

        Every old value is retired before any new one is published: who sees, without
        the lock, one new value can see no old one any more.
        """

        def action(now: float, dropped: list[object], doomed: list[Flight]) -> int:
            self.admit()
            if watch is not None and watch.changed:
                return False
            removed = 0
            gone: list[Place] = []
            for (space, key), write in writes.items():
                fenced = self._fence(space, key, doomed)
                if write is not None:
                    self.store.retire(space, key, now, dropped)
                else:
                    cause = RemovalCause.DELETED
                    removed += self.store.remove(space, key, cause, now, dropped, fenced=fenced)
                    self._note(space, key)
                    gone.append((space, key))
            if tags:
                pool = self._condemn(tags, now, dropped, doomed)
                removed += self._remove_tagged(pool, math.inf, now, dropped, doomed)
            self._change(writes, now, dropped, doomed)
            for (space, key), write in writes.items():
                if write is not None:
                    self._publish(space, key, write, now, dropped)
            if self.store.events is not None and (gone or tags):
                cause = RemovalCause.DELETED if gone else RemovalCause.TAG_INVALIDATED
                self.store.events.invalidated(cause, removed, tuple(gone), tuple(tags))
            return True

        return bool(self.write(action))

    def _publish(
        self, space: Namespace, key: DataKey, write: Write, now: float, dropped: list[object]
    ) -> None:
        """Locked. Store what was staged."""
        kind, value, weight, ttl, marks = write
        facts = None if marks is None else self._facts(marks, space, key)
        self.store.put(space, key, kind, value, weight, ttl, now, dropped, facts)
        self._note(space, key)

    def _facts(self, marks: Marks, space: Namespace, key: DataKey) -> Facts:
        """Locked. Return the facts of an entry that is about to be stored."""
        return marks.facts(self.store.generation, self.link(marks, (space, key)))

    def link(self, marks: Marks, place: Place) -> Link | None:
        """Locked. Declare what a value depends on that begins to be computed now."""
        if not marks.sources:
            return None
        return self.store.links.declare(place, marks.sources, self.store.generation)

    def _unlink(self, link: Link) -> None:
        self.store.links.release(link)

    def _note(self, space: Namespace, key: DataKey) -> None:
        """Locked. Tell the open transactions of a change."""
        if self.watches:
            self.alert(lambda watch: (space, key) in watch.watched)

    def changed(self, place: Place) -> None:
        """Locked. Tell the open transactions that a load has stored a value nobody asked for."""
        self._note(*place)

    def alert(self, concerns: Callable[[Watch], bool]) -> None:
        """Locked. Tell those transactions of a change that it concerns."""
        for reference in tuple(self.watches):
            watch = reference()
            if watch is None:
                self.watches.discard(reference)  # its transaction was forgotten
            elif not watch.changed and concerns(watch):
                watch.changed = True

    def behind(
        self, places: Collection[Place], tags: Collection[str], now: float
    ) -> Collection[object]:
        """Return what a change of *places*, and of what has one of *tags*, would remove with them.

        Complexity: O(entries with one of the tags + edges behind all of them).
        """
        store = self.store
        if not (store.links.nodes and (places or tags)):
            return ()
        with self._lock:
            tagged = [
                (entry.space, entry.key)
                for entry in store.tags.carrying(tags)
                if entry.deadline > now
            ]
            return store.links.behind([*places, *tagged])

    def look_after(self, watch: Watch, places: Collection[Place]) -> None:
        """Let *watch* know when *places* change from now on."""
        with self._lock:
            watch.watched.update(places)
            self.watches.add(ref(watch))

    def look_away(self, watch: Watch) -> None:
        """Tell *watch* nothing any more."""
        with self._lock:
            self.watches.discard(ref(watch))

    def _change(
        self,
        places: Collection[Place],
        now: float,
        dropped: list[object],
        doomed: list[Flight],
        landed: Flight | None = None,
    ) -> None:
        """Locked. Remove everything that depends on *places*, which are being changed.

        A load that waits for *landed*, whose value is the change, is going to see that
        value: it is not fenced.
        """
        store = self.store
        links = store.links
        if not links.nodes:
            return
        store.generation += 1
        for place in places:
            behind = links.change(place, store.generation, keep=landed is not None)
            for found in cast("list[Place]", behind):
                space, key = found
                flight = None if landed is None else self.flights.registered_at(found)
                if flight is not None and self.flights.cycle(landed, flight):
                    fenced = False
                    if flight.link is not None:
                        flight.link.generation = store.generation
                else:
                    fenced = self._fence(space, key, doomed)
                store.remove(space, key, RemovalCause.DELETED, now, dropped, fenced=fenced)
                self._note(space, key)

    def trim(self, now: float, dropped: list[object], doomed: list[Flight]) -> None:
        """Locked. Hold the bound of the dependencies that are kept for entries that are gone."""
        while (excess := cast("Place | None", self.store.links.excess())) is not None:
            self._change((excess,), now, dropped, doomed)

    def replaced(
        self, flight: Flight, now: float, dropped: list[object], doomed: list[Flight]
    ) -> None:
        """Locked. Tell who must know that a load is about to store its value.

        It is a change if it replaces a fresh one: a refresh. The first value of a key,
        and the next one after an expiry or an eviction, are none for who depends on it.
        """
        space, key = flight.key
        if self.store.links.nodes and self.store.holds(space, key, now):
            self._change((flight.key,), now, dropped, doomed, landed=flight)
        self._note(space, key)

    def held_back(self, flight: Flight, tags: tuple[str, ...]) -> bool:
        """Locked. Tell whether a tag of the value that *flight* has loaded was invalidated."""
        return bool(tags) and self.store.fences.hold_back(tags, flight.generation)

    def invalidate_tags(self, tags: tuple[str, ...], limit: int) -> tuple[int, dict[Entry, None]]:
        """Begin to remove what has one of *tags*, and fence the loads of such.

        Returns how many fresh values were removed, and the pool of what is to follow.
        """
        pool: dict[Entry, None] = {}
        # A finaliser's call is put off, and nobody goes on with it.
        most = math.inf if self.reentered else limit

        def action(now: float, dropped: list[object], doomed: list[Flight]) -> int:
            nonlocal pool
            self.admit()
            pool = self._condemn(tags, now, dropped, doomed)
            removed = self._remove_tagged(pool, most, now, dropped, doomed)
            if self.store.events is not None:
                cause = RemovalCause.TAG_INVALIDATED
                self.store.events.invalidated(cause, removed + len(pool), (), tags)
            return removed

        return self.write(action), pool

    def go_on(self, pool: dict[Entry, None], limit: float) -> int:
        """Remove up to *limit* entries of *pool*; return how many were fresh."""

        def action(now: float, dropped: list[object], doomed: list[Flight]) -> int:
            return self._remove_tagged(pool, limit, now, dropped, doomed)

        return self.write(action)

    def _condemn(
        self, tags: Collection[str], now: float, dropped: list[object], doomed: list[Flight]
    ) -> dict[Entry, None]:
        """Locked. Condemn what is stored under *tags*; fence what is loaded under them.

        A load that may still add tags is joined by nobody any more, and is stored only
        if in the end it has none of them.
        """
        store, flights = self.store, self.flights
        pool = store.tags.condemn(tags)
        self.note_all()
        marked = flights.marked()
        if not any(flight.marks.added is not None for flight in marked):
            store.fences.take_down()
        if not marked:
            return pool
        store.generation += 1
        open_ended = False
        for flight in marked:
            if not set(tags).isdisjoint(flight.marks.all_tags()):
                space, key = flight.key
                cause = RemovalCause.TAG_INVALIDATED
                if self._fence(space, key, doomed):
                    store.remove(space, key, cause, now, dropped, fenced=True)
            elif flight.marks.added is not None:
                open_ended = True
                flights.set_apart(flight.key)
        if open_ended:
            store.fences.put_up(tags, store.generation)
        return pool

    def _remove_tagged(
        self,
        pool: dict[Entry, None],
        limit: float,
        now: float,
        dropped: list[object],
        doomed: list[Flight],
    ) -> int:
        """Locked. Remove condemned entries and their dependents; return how many were fresh."""
        removed = self.store.remove_tagged(pool, now, limit, dropped)
        places = [(entry.space, entry.key) for entry in removed]
        self._change(places, now, dropped, doomed)
        for place in places if self.watches else ():
            self._note(*place)
        return sum([type(entry.value) is not Failure for entry in removed])

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
                self._note(space, key)
            self._change(places, now, dropped, doomed)
            if self.store.events is not None and places:
                self.store.events.invalidated(cause, removed, tuple(places))
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
            if self.watches:
                self.alert(lambda watch: any(space in gone for space, _ in watch.watched))
            if self.store.links.nodes:
                places = cast("list[Place]", self.store.links.within(gone))
                self._change(places, now, dropped, doomed)
            removed = self.store.clear_spaces(gone, cause, now, dropped)
            if self.store.events is not None:
                self.store.events.invalidated(cause, removed, function=next(iter(gone)).name)
            return removed

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
            if self.store.events is not None:
                self.store.events.invalidated(RemovalCause.CLEARED, self.store.count)
            self.alert(lambda watch: bool(watch.watched))
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
        doomed: list[Flight] = []
        with self._lock:
            self.catch_up(dropped)
            self.recent.roll(now, self.stats)
            more = self.store.free(now, limit, dropped) == limit
            if self.store.links.nodes:
                self.trim(now, dropped, doomed)
        cancel(doomed)
        del dropped
        self.tell()
        return more

    def bury(self, limit: int) -> bool:
        """Free up to *limit* cleared entries; tell whether there may be more."""
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            more = self.store.free(-math.inf, limit, dropped) == limit
        del dropped
        self.tell()
        return more

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
            load_timeouts=self.load_timeouts,
            stale_served=self.stale_served,
            overlapping_loads=self.flights.overlapping,
            evictions=sum(store.evictions.values()),
            rejected=store.rejected,
            estimated_weights=self.estimated,
            inconsistent_reads=self.inconsistent_reads,
            misses_by_reason={str(reason): n for reason, n in self.misses_by_reason.items()},
            removals_by_cause={str(cause): store.removals[cause] for cause in RemovalCause},
            evictions_by_cause=dict(store.evictions),
        )

    def leave_behind(self, *, torn: bool) -> list[Flight]:
        """Locked, in a forked child. Keep the entries; let go of all else, and return the flights.

        What is *torn* in the middle of a write is emptied too.
        """
        flights = self.flights.leave_behind(torn=torn)
        self.watches = set()
        self.load_errors = {}
        self.inconsistent_reads = self.load_timeouts = self.stale_served = 0
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
            links = [entry.link for entry in self.store.described()]
            links += [flight.link for flight in self.flights.running]
            if self.store.popularity is not None:
                self.store.popularity.check()
            self.store.links.check(link for link in links if link is not None)


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


def shortened(ttl: float | None, jitter: float) -> float | None:
    """Return *ttl*, shortened by chance by up to the fraction *jitter*."""
    if ttl is None or not jitter:
        return ttl
    return ttl * (1 - jitter * random.random())  # noqa: S311 - spreads load, hides nothing


def cancel(flights: Iterable[Flight]) -> None:
    """Ask the tasks of *flights* to end; outside the lock."""
    for flight in flights:
        flight.cancel()
