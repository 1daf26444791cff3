"""The store: entries in namespaces, bounded, with one door in and one door out.

Synchronous and without a lock of its own user code could meet: every method
but `touch` and the lookups of `Namespace.data` is called with `Store.lock`
held, awaits nothing and runs no user code. What it removes it appends to the
caller's `dropped` list, which dies after the lock was released: a value's
`__del__` is user code too.

    put     retire old -> free what is due -> evict until it fits -> publish
    remove  only if the namespace still holds *this* entry

While caching is switched off the door in lets nothing pass, so that every hit
misses without being told to.

`bytes` is changed in `_link` and `_unlink` only. A reader without the lock (a
hit) relies on the GIL and on that order: an entry is complete before it is
published and is never changed into another one afterwards.
"""

import threading
from collections import Counter
from collections.abc import Callable, Collection
from math import inf
from typing import ClassVar, Final, cast, final
from weakref import ref

from ._eviction import Order, PolicyName, order_of
from ._expiry import ExpiryIndex
from ._keys import DataKey, digest
from ._removals import MOST, RemovalRecord
from .outcomes import MissReason, RemovalCause

__all__ = ["ENTRY_OVERHEAD", "Counters", "Entry", "Namespace", "Store"]

ENTRY_OVERHEAD: Final = 704
"""Bytes of the library's own per entry: its slots, its places in the dict of its
namespace, in the recency order and in the expiry index, and one removal record."""

PER_WRITE: Final = 4
"""Due entries that one write frees on its way."""

SMALL_KEY: Final = 48

_REASON_OF: Final = {
    RemovalCause.EXPIRED: MissReason.EXPIRED,
    RemovalCause.EVICTED: MissReason.EVICTED,
    RemovalCause.DELETED: MissReason.DELETED,
    RemovalCause.CLEARED: MissReason.CLEARED,
    RemovalCause.REJECTED: MissReason.REJECTED,
}


@final
class Counters:
    """What is counted per function.

    `hits` grows without the lock: `x.hits += 1` on a slot is one step under the
    GIL, because CPython changes threads at calls and backward jumps only. The
    others grow under the store's lock.
    """

    __slots__ = ("coalesced", "hits", "load_errors", "loads", "misses")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.coalesced = 0
        self.loads = 0
        self.load_errors = 0

    def forget(self) -> None:
        """Count from 0 again."""
        for name in self.__slots__:
            setattr(self, name, 0)

    def add(self, other: "Counters") -> None:
        """Add the counts of *other*."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@final
class Namespace:
    """The entries of one function, of one instance of a method, or of all raw keys.

    Attributes:
        closed: Its function was closed: no load of it may begin.
    """

    __slots__ = ("__weakref__", "closed", "counters", "data", "name", "owner", "store")

    def __init__(
        self, store: "Store", name: str, counters: Counters, owner: "ref[object] | None" = None
    ) -> None:
        self.store = store
        self.name = name
        self.counters = counters
        self.owner = owner
        self.closed = False
        self.data: dict[DataKey, Entry] = {}  # bounded by the store


@final
class Entry:
    """One stored value. Only `deadline` changes after it was published.

    Attributes:
        used: Set by a hit; for the order alone.
        place: Where the order keeps it; for the order alone.
    """

    __slots__ = (
        "born",
        "deadline",
        "generation",
        "key",
        "kind",
        "place",
        "space",
        "used",
        "value",
        "weight",
    )

    def __init__(
        self,
        space: Namespace,
        key: DataKey,
        kind: object,
        value: object,
        weight: int,
        born: float,
        deadline: float,
        generation: int,
    ) -> None:
        self.space = space
        self.key = key
        self.kind = kind
        self.value = value
        self.weight = weight
        self.born = born
        self.deadline = deadline
        self.generation = generation
        self.used = False
        self.place: object = None


def _is_small(key: object) -> bool:
    """Tell whether a removal record may hold *key* itself."""
    if isinstance(key, (str, bytes)):
        return len(key) <= SMALL_KEY
    if isinstance(key, int):
        return key.bit_length() <= 8 * SMALL_KEY
    if isinstance(key, tuple):
        parts = cast("tuple[object, ...]", key)
        return len(parts) <= 8 and all(_is_small(part) for part in parts)
    return key is None or isinstance(key, (type, float))


def _mark(space: Namespace, key: DataKey) -> tuple[Namespace, object]:
    """Return what a removal record knows *key* by: itself, or its digest when large."""
    return space, key if _is_small(key) else digest(key)


@final
class Store:
    """All entries of one cache.

    Complexity: every operation O(1) amortised, plus what it evicts or frees;
    `clear` O(namespaces + removal records); `check` O(entries).

    Attributes:
        off: Blocks that are open now, in which nothing is stored here.
        off_everywhere: Blocks that are open now, in which no store stores anything.
    """

    off_everywhere: ClassVar[int] = 0

    def __init__(
        self, max_entries: int | None, max_bytes: int | None, policy: PolicyName = "lru"
    ) -> None:
        # Re-entrant: the collector may run a finaliser that calls the cache
        # back in the middle of a write; see AsyncSafeCache._guarded.
        self.lock = threading.RLock()
        self.max_entries: float = inf if max_entries is None else max_entries
        self.max_bytes: float = inf if max_bytes is None else max_bytes
        self._new_order: Callable[[], Order[Entry]] = order_of(policy)
        self.order = self._new_order()
        self.bytes = 0
        self.generation = 0
        self.rejected = 0
        self.off = 0
        self.removals: Counter[RemovalCause] = Counter()  # bounded by RemovalCause
        self.evictions = {"max_entries": 0, "max_memory_bytes": 0}
        self._expiry: ExpiryIndex[Entry] = ExpiryIndex()
        self._record = RemovalRecord()
        self._occupied: dict[Namespace, None] = {}  # those with entries: bounded by them

    # -- reading

    @property
    def bypassed(self) -> bool:
        """Whether caching is switched off: nothing gets in, and every read misses."""
        return self.off > 0 or Store.off_everywhere > 0

    def find(self, space: Namespace, key: DataKey, now: float) -> Entry | None:
        """Return the fresh entry of *key*, as the most recently used one."""
        entry = space.data.get(key)
        if entry is None or entry.deadline <= now:
            return None
        self.order.touch(entry)
        return entry

    def holds(self, space: Namespace, key: DataKey, now: float) -> bool:
        """Tell whether *key* has a fresh entry; not a use of it."""
        entry = space.data.get(key)
        return entry is not None and entry.deadline > now

    def reason(self, space: Namespace, key: DataKey) -> MissReason:
        """Return why *key* has no fresh entry."""
        if self.bypassed:
            return MissReason.BYPASSED
        if key in space.data:
            return MissReason.EXPIRED
        return self._record.reason(_mark(space, key))

    def live(self, now: float, work: float = inf) -> int:
        """Return the number of entries that are not expired.

        With *work*, look at so many at the most; what was not looked at counts as live.
        """
        return len(self.order) - self._expiry.count_due(now, work)

    # -- writing

    def put(
        self,
        space: Namespace,
        key: DataKey,
        kind: object,
        value: object,
        weight: int,
        ttl: float | None,
        now: float,
        dropped: list[object],
    ) -> bool:
        """Store *value* of *weight* bytes (key and overhead included); False if it cannot fit.

        A value that cannot fit removes the older one of its key: what it
        replaced is not true any more.
        """
        if self.bypassed:
            return False
        self.generation += 1
        old = space.data.get(key)
        if weight > self.max_bytes or self.max_entries < 1:
            if old is not None and old.deadline > now:
                self._unlink(old, RemovalCause.REJECTED, dropped)
            self.reject(space, key, now, dropped)
            return False
        if old is not None:
            expired = old.deadline <= now
            self._unlink(old, RemovalCause.EXPIRED if expired else RemovalCause.REPLACED, dropped)
        self.free(now, PER_WRITE, dropped)
        self._make_room(weight, now, dropped)
        deadline = inf if ttl is None else now + ttl
        entry = Entry(space, key, kind, value, weight, now, deadline, self.generation)
        entry.used = old is not None  # a write to what is there is a use of it
        self._link(entry)
        return True

    def reject(self, space: Namespace, key: DataKey, now: float, dropped: list[object]) -> None:
        """Remember that a value of *key* was returned and not stored."""
        old = space.data.get(key)
        if old is not None and old.deadline <= now:
            # First, or the reason of the next miss would depend on who swept when.
            self._unlink(old, RemovalCause.EXPIRED, dropped)
        self.rejected += 1
        self._record.add(_mark(space, key), MissReason.REJECTED, len(self.order))

    def remove(
        self,
        space: Namespace,
        key: DataKey,
        cause: RemovalCause,
        now: float,
        dropped: list[object],
        *,
        fenced: bool = False,
    ) -> bool:
        """Remove the entry of *key*; tell whether there was a fresh one.

        With *fenced*, a load of *key* was just shut out: the cause is
        remembered even if there was no entry.
        """
        self.generation += 1
        self.free(now, PER_WRITE, dropped)
        entry = space.data.get(key)
        if entry is not None:
            fresh = entry.deadline > now
            self._unlink(entry, cause if fresh else RemovalCause.EXPIRED, dropped)
            if fresh:
                return True
        if fenced:
            self._record.add(_mark(space, key), _REASON_OF[cause], len(self.order))
        return False

    def retime(self, entry: Entry, ttl: float | None, now: float) -> None:
        """Give a fresh *entry* a new time to live from now, as its latest use."""
        self.generation += 1
        self._expiry.discard(entry)
        entry.deadline = inf if ttl is None else now + ttl
        if ttl is not None:
            self._expiry.add(entry)
        self.order.touch(entry)

    def free(self, now: float, limit: int, dropped: list[object]) -> int:
        """Remove up to *limit* entries that are due; return how many."""
        freed = 0
        while freed < limit:
            due = self._expiry.take_due(now, limit - freed)
            if not due:
                break
            for entry in due:
                self._unlink(entry, RemovalCause.EXPIRED, dropped)
            freed += len(due)
        return freed

    def clear_space(
        self, space: Namespace, cause: RemovalCause, now: float, dropped: list[object]
    ) -> int:
        """Remove every entry of *space*."""
        self.generation += 1
        entries = list(space.data.values())
        for entry in entries:
            self._unlink(entry, RemovalCause.EXPIRED if entry.deadline <= now else cause, dropped)
        return len(entries)

    def clear(self, now: float) -> list[Collection[object]]:
        """Remove everything; return the old containers, to be emptied in slices."""
        self.generation += 1
        held, due = len(self.order), self._expiry.count_due(now)
        for entry in reversed(self.order.newest(MOST)):
            reason = MissReason.EXPIRED if entry.deadline <= now else MissReason.CLEARED
            self._record.add(_mark(entry.space, entry.key), reason, held)
        wreck: list[Collection[object]] = [*self._expiry.spoils(), *self.order.spoils()]
        for space in self._occupied:
            wreck.append(space.data)
            space.data = {}
        self._occupied = {}
        self.order = self._new_order()
        self._expiry = ExpiryIndex()
        self.removals[RemovalCause.EXPIRED] += due
        self.removals[RemovalCause.CLEARED] += held - due
        self.bytes = 0
        return wreck

    def forget_counts(self) -> None:
        """Count removals from 0 again."""
        self.rejected = 0
        self.removals = Counter()
        self.evictions = dict.fromkeys(self.evictions, 0)

    def forget_removals(self) -> None:
        """Drop every removal record."""
        self._record.forget()

    # -- the two doors

    def _link(self, entry: Entry) -> None:
        self._record.shrink(len(self.order))
        self.bytes += entry.weight
        self.order.add(entry)
        if entry.deadline != inf:
            self._expiry.add(entry)
        self._occupied[entry.space] = None
        entry.space.data[entry.key] = entry  # last: from here on a hit may find it

    def _unlink(self, entry: Entry, cause: RemovalCause, dropped: list[object]) -> None:
        space = entry.space
        if space.data.get(entry.key) is not entry:
            return
        held = len(self.order)
        del space.data[entry.key]  # first: from here on no hit finds it
        if not space.data:
            del self._occupied[space]
        self.order.discard(entry)
        self._expiry.discard(entry)
        self.bytes -= entry.weight
        self.removals[cause] += 1
        reason = _REASON_OF.get(cause)
        if reason is not None:
            self._record.add(_mark(space, entry.key), reason, held)
        dropped.append(entry)

    def _make_room(self, weight: int, now: float, dropped: list[object]) -> None:
        """Free what is due, then evict, until one entry of *weight* fits."""
        while True:
            over_bytes = self.bytes + weight > self.max_bytes
            if not over_bytes and len(self.order) < self.max_entries:
                return
            if self.free(now, 1, dropped):
                continue
            victim = self.order.take_oldest()
            if victim is None:
                return
            if victim.deadline <= now:
                self._unlink(victim, RemovalCause.EXPIRED, dropped)
                continue
            self.evictions["max_memory_bytes" if over_bytes else "max_entries"] += 1
            self._unlink(victim, RemovalCause.EVICTED, dropped)

    # -- proof

    def check(self) -> None:
        """Recompute every invariant from scratch; raise AssertionError at the first broken one."""
        entries = self.order.newest()
        _claim(sum(entry.weight for entry in entries) == self.bytes, "bytes = sum of weights")
        _claim(self.bytes <= self.max_bytes, "bytes within the bound")
        _claim(len(entries) <= self.max_entries, "entries within the bound")
        _claim(
            all(entry.space.data.get(entry.key) is entry for entry in entries),
            "every ordered entry is in its namespace under its key",
        )
        _claim(
            sum(len(space.data) for space in self._occupied) == len(entries),
            "every entry of a namespace is ordered",
        )
        _claim(all(space.data for space in self._occupied), "no occupied namespace is empty")
        _claim(
            set(self._occupied) == {entry.space for entry in entries},
            "the occupied namespaces are those of the entries",
        )
        _claim(
            set(self._expiry) == {entry for entry in entries if entry.deadline != inf},
            "the expiry index holds exactly the entries with a deadline",
        )
        self._expiry.check()
        self.order.check()
        _claim(all(entry.generation <= self.generation for entry in entries), "generations grow")
        _claim(len(self._record) <= MOST, "removal records within their bound")


def _claim(holds: bool, invariant: str) -> None:
    if not holds:
        raise AssertionError(f"broken invariant of the store: {invariant}")
