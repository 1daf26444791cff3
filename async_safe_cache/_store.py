"""The store: entries in namespaces, bounded, with one door in and one door out.

Synchronous and without a lock of its own user code could meet: every method
but `touch` and the lookups of `Namespace.data` is called with `Store.lock`
held, awaits nothing and runs no user code. What it removes it appends to the
caller's `dropped` list, which dies after the lock was released: a value's
`__del__` is user code too.

    put     retire old -> free what is due -> evict until it fits -> publish
    remove  only if the namespace still holds *this* entry
    commit  retire every old entry -> publish every new one
    clear   take the namespace's dict away: a *grave*, which is dug over in slices

While caching is switched off the door in lets nothing pass, so that every hit
misses without being told to.

`bytes` and `count` change in `_link`, `_unlink` and `_unlink_due`, and by whole
namespaces in `_entomb`. A reader without the lock (a hit) relies on the GIL and on
that order: an entry is complete before it is published and is never changed into
another one afterwards.

An entry in a grave is dead: no read, no count and no eviction meets it. It still
has its place in the recency order and in the expiry index, and its memory; so
whatever needs room, or frees what is due, digs the graves over first.
"""

import builtins
import sys
import threading
from collections.abc import Callable, Collection
from math import inf
from operator import attrgetter
from typing import Any, ClassVar, Final, cast, final

from ._entries import Entry, Facts, Kept, Namespace
from ._events import Events
from ._eviction import Order, PolicyName, S3Fifo, exhaust, order_of
from ._expiry import ExpiryIndex
from ._keys import DataKey
from ._links import Links
from ._popularity import Popularity
from ._removals import MOST, RemovalRecord, Segment
from ._tags import TagFences, TagIndex
from .options import AUTO
from .outcomes import MissReason, RemovalCause

__all__ = ["ENTRY_OVERHEAD", "SEEN", "TOUCH", "Store"]

ENTRY_OVERHEAD: Final = 672
"""Bytes of the library's own per entry: its slots, its places in the dict of its
namespace, in the recency order and in the expiry index, and one and a half removal
records with their keys. Measured: see docs/memory.md."""

TOUCH: Final = "_asc_touch"
"""The name by which a compiled wrapper knows `order.touch`."""

LOAD_TIMES: Final = 8.0
"""How many times its load an entry may be refreshed by chance before it expires: sooner, the
chance is below 1 in 2,980 a read, and not worth a look."""

SEEN: Final = "_asc_seen"
"""The name by which it knows who is shown each hit."""

PER_WRITE: Final = 4
"""Dead or due entries that one write frees on its way."""

FEW: Final = 500
"""Entries that a clear of functions removes one by one; more of them get a grave."""

FAR: Final = sys.float_info.max
"""The deadline of what is kept for ever: the index of these holds finite ones."""

COMMON: Final = 1_024
"""Weights that are kept to be shared by the entries that have the same."""

# By name: a class's attribute costs a write more than it looks.
_EXPIRED: Final = RemovalCause.EXPIRED
_EVICTED: Final = RemovalCause.EVICTED
_REPLACED: Final = RemovalCause.REPLACED

_SPACE: Final = attrgetter("space")
_KEY: Final = attrgetter("key")
_WEIGHT: Final = attrgetter("weight")

_REASON_OF: Final = {
    RemovalCause.EXPIRED: MissReason.EXPIRED,
    RemovalCause.EVICTED: MissReason.EVICTED,
    RemovalCause.DELETED: MissReason.DELETED,
    RemovalCause.TAG_INVALIDATED: MissReason.TAG_INVALIDATED,
    RemovalCause.CLEARED: MissReason.CLEARED,
    RemovalCause.REJECTED: MissReason.REJECTED,
}


@final
class _Grave:
    """The dict that was taken from a namespace: all of it dead, to be freed in slices."""

    __slots__ = ("bytes", "cause", "data", "moment", "placed", "records")

    def __init__(
        self,
        space: Namespace,
        cause: RemovalCause,
        moment: float,
        records: Segment | None,
        *,
        placed: bool,
    ) -> None:
        self.data = space.data
        self.bytes = space.bytes
        self.cause = cause
        self.moment = moment  # of the clear: what was due by then had expired
        self.records = records  # where to write down what is dug out, if anywhere
        self.placed = placed  # whether the recency order and the expiry index still know them


@final
class Store:
    """All entries of one cache.

    Complexity: every operation O(1) amortised, plus what it evicts or frees;
    `clear` and `clear_spaces` O(namespaces); `check` O(entries).

    Attributes:
        count: Entries held, expired ones that nobody freed yet included.
        bytes: What they weigh.
        generation: The cache's one counter. It grows when somebody begins who must tell
            what comes after from what was before: a change others depend on, a view, a
            load with tags. To whoever looks it has grown with every write.
        tagged: Entries held, dead ones included, with more facts than a generation.
        stale: Entries held, dead ones included, past their deadline and kept still.
        is_mine: Tells whether this very thread is inside the lock.
        off: Blocks that are open now, in which nothing is stored here.
        off_everywhere: Blocks that are open now, in which no store stores anything.
        popularity: Where reads are counted, call by call; None as long as nobody asks.
        events: Whom to tell what is removed; None as long as nobody listens.
    """

    off_everywhere: ClassVar[int] = 0

    def __init__(
        self, max_entries: int | None, max_bytes: int | None, policy: PolicyName = "lru"
    ) -> None:
        # Re-entrant: the collector may run a finaliser that calls the cache
        # back in the middle of a write; see AsyncSafeCache._guarded.
        self.lock = threading.RLock()
        # Not in the stubs, but what threading.Condition asks every RLock.
        self.is_mine: Callable[[], bool] = cast("Any", self.lock)._is_owned
        self.max_entries: float = inf if max_entries is None else max_entries
        self.max_bytes: float = inf if max_bytes is None else max_bytes
        self.policy: PolicyName = policy
        self._new_order: Callable[[], Order[Entry]] = order_of(policy)
        self.order = self._new_order()
        # What compiled wrappers call by name: one dict for all of them, so that a new
        # order reaches them at once and a hit looks up no attribute.
        self.names = {**vars(builtins), TOUCH: self.order.touch}
        self.count = 0
        self.bytes = 0
        self.generation = 1
        self.tagged = 0
        self.stale = 0
        self.tags: TagIndex[Entry] = TagIndex()
        self.fences = TagFences()
        self.links = Links()
        self.rejected = 0
        self.off = 0
        self.events: Events | None = None
        self.popularity: Popularity | None = None
        self.removals = dict.fromkeys(RemovalCause, 0)
        self.evictions = {"max_entries": 0, "max_memory_bytes": 0}
        self._expiry: ExpiryIndex[Entry] = ExpiryIndex()
        self._kept: ExpiryIndex[Kept] = ExpiryIndex()  # of the stale ones
        self._record = RemovalRecord()
        self._occupied: dict[Namespace, None] = {}  # those with entries: bounded by them
        # The youngest last. Bounded by what was held when the clears came.
        self._graves: dict[Namespace, list[_Grave]] = {}
        self._dead = 0  # entries in graves
        self._dead_bytes = 0
        self._weights: dict[int, int] = {}  # each one to itself; bounded by COMMON

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
        if self.off or Store.off_everywhere:
            return MissReason.BYPASSED
        if key in space.data:
            return MissReason.EXPIRED
        if self._graves:
            for grave in reversed(self._graves.get(space, ())):
                entry = grave.data.get(key)
                if entry is not None and grave.records is not None:
                    expired = entry.deadline <= grave.moment
                    return MissReason.EXPIRED if expired else _REASON_OF[grave.cause]
        return self._record.reason(space, key)

    def last_removal(self, space: Namespace, key: DataKey) -> MissReason | None:
        """Return why an earlier entry of *key* was removed, if that is remembered."""
        reason = self._record.reason(space, key)
        return None if reason is MissReason.ABSENT else reason

    def live(self, now: float, work: float = inf) -> int:
        """Return the number of entries that are not expired.

        With *work*, look at so many at the most; what was not looked at counts as live.
        """
        due = self._expiry.count_due(now, work, _in_place if self._graves else None)
        stale = self.stale
        if stale and self._graves:
            stale = sum([_keeper(kept) is not None for kept in self._kept])
        return self.count - due - stale

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
        facts: Facts | None = None,
    ) -> bool:
        """Store *value* of *weight* bytes (key and overhead included); False if it cannot fit.

        A value that cannot fit removes the older one of its key: what it
        replaced is not true any more. Takes over the link in *facts*.
        """
        if self.off or Store.off_everywhere:
            self._forgo(facts)
            return False
        old = space.data.get(key)
        if weight > self.max_bytes or self.max_entries < 1:
            if old is not None and (old.deadline > now or old.kept(now) is not None):
                self._unlink(old, RemovalCause.REJECTED, dropped)
            self.reject(space, key, now, dropped)
            self._forgo(facts)
            return False
        if old is not None:
            expired = old.deadline <= now
            self._unlink(old, _EXPIRED if expired else _REPLACED, dropped)
        # Most of the time `free` and `_make_room` have nothing to do, and are not asked.
        if self._graves or now >= self._expiry.soonest or now >= self._kept.soonest:
            self.free(now, PER_WRITE, dropped)
        if self._graves or self.count >= self.max_entries or self.bytes + weight > self.max_bytes:
            self._make_room(weight, now, dropped)
        entry = Entry()
        entry.space = space
        entry.key = key
        entry.kind = kind
        entry.value = value
        entry.weight = self._weights.get(weight) or self._common(weight)
        if ttl is None:
            entry.since = now
            entry.deadline = inf
        else:
            entry.since = ttl
            entry.deadline = now + ttl
            if not space.timed:
                entry.kind = None
        # A write to what is there is a use of it, but no read.
        entry.used = old is not None and not space.counted
        if facts is None and not space.described:
            entry.facts = self.generation
        else:
            self._describe(entry, facts, ttl, now)
        self._link(entry)
        return True

    def retire(self, space: Namespace, key: DataKey, now: float, dropped: list[object]) -> None:
        """Take out the entry of *key*, for which a newer one is about to be put."""
        old = space.data.get(key)
        if old is not None:
            self._unlink(old, _EXPIRED if old.deadline <= now else _REPLACED, dropped)

    def remove_tagged(
        self, pool: dict[Entry, None], now: float, limit: float, dropped: list[object]
    ) -> list[Entry]:
        """Remove up to *limit* entries that were condemned; return the fresh ones."""
        removed: list[Entry] = []
        for entry in self.tags.take(pool, limit):
            if entry.space.data.get(entry.key) is entry:
                fresh = entry.deadline > now
                held = fresh or entry.kept(now) is not None
                self._unlink(entry, RemovalCause.TAG_INVALIDATED if held else _EXPIRED, dropped)
                if fresh:
                    removed.append(entry)
        return removed

    def observe(self) -> int:
        """Return the generation of what is stored now: what follows has a greater one."""
        generation = self.generation
        self.generation = generation + 1
        return generation

    def reject(self, space: Namespace, key: DataKey, now: float, dropped: list[object]) -> None:
        """Remember that a value of *key* was returned and not stored."""
        old = space.data.get(key)
        if old is not None and old.deadline <= now and old.kept(now) is None:
            # First, or the reason of the next miss would depend on who swept when.
            self._unlink(old, RemovalCause.EXPIRED, dropped)
        self.rejected += 1
        self._remember(space, key, MissReason.REJECTED, dropped)

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

        One that only expires, and is kept past its ttl, becomes stale, or stays so. With
        *fenced*, a load of *key* was just shut out: the cause is remembered even if there
        was no entry.
        """
        self.free(now, PER_WRITE, dropped)
        entry = space.data.get(key)
        if entry is not None:
            fresh = entry.deadline > now
            kept = entry.kept(now) is not None
            if kept and cause is _EXPIRED:
                if fresh:
                    self._lapse(entry, now)
                return fresh
            held = fresh or kept
            self._unlink(entry, cause if held else _EXPIRED, dropped)
            if fresh:
                return True
        if fenced:
            self._remember(space, key, _REASON_OF[cause], dropped)
        return False

    def supersede(self, space: Namespace, keys: list[DataKey]) -> None:
        """Remember that values of *keys* were held under another version."""
        records = self._record.foresee(len(keys), len(keys))
        records.room = 0
        records.add_many(space, keys, MissReason.VERSION_MISMATCH)

    def makes_room(
        self, space: Namespace, key: DataKey, weight: int, heat: float, now: float,
        dropped: list[object],
    ) -> bool:  # fmt: skip
        """Tell whether *key* may have an entry of *weight* that is worth *heat* reads.

        Frees what is dead or due for it, and evicts what was read less; nothing else.
        """
        while True:
            old = space.data.get(key)
            count = self.count + self._dead - (old is not None)
            size = self.bytes + self._dead_bytes - (0 if old is None else old.weight)
            over_bytes = size + weight > self.max_bytes
            if not over_bytes and count < self.max_entries:
                return True
            if weight > self.max_bytes or self.max_entries < 1:
                return True  # `put` refuses it, and says why
            due = self._graves or now >= self._expiry.soonest or now >= self._kept.soonest
            if due and self.free(now, 1, dropped):
                continue
            victim = self.order.oldest()
            if victim is None or victim is old or not self._reads(victim) < heat:
                return False
            self.evictions["max_memory_bytes" if over_bytes else "max_entries"] += 1
            self._unlink(victim, _EVICTED, dropped)

    def crowded(self, space: Namespace, key: DataKey, now: float) -> bool:
        """Tell whether a value of *key* that nobody waits for would find no room.

        By a look: a large value may find none though this says that it would.
        """
        if key in space.data:
            return False
        full = self.count + self._dead >= self.max_entries or (
            self.bytes + self._dead_bytes + ENTRY_OVERHEAD > self.max_bytes
        )
        if not full or self._graves or now >= self._expiry.soonest or now >= self._kept.soonest:
            return False
        victim = self.order.oldest()
        return victim is not None and not self._reads(victim) < self.heat(space, key)

    def heat(self, space: Namespace, key: DataKey) -> float:
        """Return how often *key* was read lately; 0 where nobody counts."""
        popularity = self.popularity
        return 0.0 if popularity is None else popularity.worth((space, key), popularity.now)

    def _reads(self, entry: Entry) -> float:
        """Return how often *entry* was read lately; inf where nobody counts."""
        if not entry.space.counted:
            return inf
        return self.heat(entry.space, entry.key)

    def retime(self, entry: Entry, ttl: float | None, now: float) -> None:
        """Give a fresh *entry* a new time to live from now, as its latest use."""
        born = entry.born
        self._expiry.discard(entry)
        if not entry.space.timed:
            entry.kind = None  # for good: the fast lookup would not see the deadline
        if ttl is None:
            entry.since, entry.deadline = born, inf
        else:
            deadline = now + ttl
            entry.since, entry.deadline = deadline - born, deadline
            self._expiry.add(entry)
        if isinstance(entry.facts, Facts):
            self._time(entry, entry.facts, ttl, born)
        self.order.touch(entry)

    def facts_of(self, entry: Entry) -> Facts:
        """Return the facts of *entry*, which is in its namespace; it has some from now on."""
        facts = entry.facts
        if not isinstance(facts, Facts):
            facts = Facts(facts, (), None, entry.space.version)
            entry.facts = facts
            self.tagged += 1
        return facts

    def measure(self, popularity: Popularity) -> None:
        """Count the reads of calls in *popularity* from now on."""
        self.popularity = popularity
        self._let_spend()

    def _let_spend(self) -> None:
        if self.popularity is not None and isinstance(self.order, S3Fifo):
            self.order.spend = self.hand_over

    def look_again(self, entry: Entry, moment: float) -> None:
        """Let hits of *entry* look again at *moment* whether there is more to do."""
        if entry.space.ahead is not None:
            entry.since = min(entry.deadline, moment)

    def _time(self, entry: Entry, facts: Facts, ttl: float | None, born: float) -> None:
        """Note what follows from the deadline of *entry*, and its time to live."""
        deadline, ahead = entry.deadline, entry.space.ahead
        if ahead is not None:
            facts.born, entry.since = born, deadline
            if ttl is not None:
                early = LOAD_TIMES * facts.seconds if ahead == AUTO else ttl * (1 - ahead)
                entry.since = deadline - min(ttl, early)
        facts.kept = None
        if facts.window and ttl is not None:
            facts.kept = Kept(min(deadline + facts.window, FAR), entry.space, entry.key)

    def _lapse(self, entry: Entry, now: float) -> None:
        """Let a fresh *entry* be stale from now on."""
        born, facts = entry.born, entry.facts
        self._expiry.discard(entry)
        entry.since, entry.deadline = now - born, now
        if isinstance(facts, Facts):
            self._time(entry, facts, now - born, born)
            self.look_again(entry, now)
            self._let_be(entry, facts)

    def _let_be(self, entry: Entry, facts: Facts) -> bool:
        """Keep *entry*, which has just left the expiry index, past its deadline, if it is to be."""
        kept = facts.kept
        if kept is None or not _in_place(entry):
            return False
        kept.stale = True
        self.stale += 1
        self._kept.add(kept)
        return True

    def free(self, now: float, limit: int, dropped: list[object]) -> int:
        """Free up to *limit* entries that are dead or due; return how many."""
        freed = self._dig(limit, dropped) if self._graves else 0
        while freed < limit and now >= self._expiry.soonest:
            due = self._expiry.take_due(now, limit - freed)
            if not due:
                break
            freed += len(due)
            if self.tagged:
                due = [entry for entry in due if not self._stays(entry)]
            self._unlink_due(due, dropped)
        while freed < limit and now >= self._kept.soonest:
            over = self._kept.take_due(now, limit - freed)
            if not over:
                break
            freed += len(over)
            self.stale -= len(over)
            for kept in over:
                kept.stale = False
                entry = _keeper(kept)
                if entry is not None:
                    self._unlink(entry, _EXPIRED, dropped)
        return freed

    def _stays(self, entry: Entry) -> bool:
        facts = entry.facts
        return isinstance(facts, Facts) and self._let_be(entry, facts)

    def clear_spaces(
        self,
        spaces: Collection[Namespace],
        cause: RemovalCause,
        now: float,
        dropped: list[object],
    ) -> int:
        """Remove every entry of *spaces*; the memory of many is freed later, in slices."""
        held = sum([len(space.data) for space in spaces])
        if held <= FEW:
            for space in spaces:
                for entry in list(space.data.values()):
                    expired = entry.deadline <= now
                    self._unlink(entry, _EXPIRED if expired else cause, dropped)
            return held
        records = self._record.foresee(held, self.count) if cause in _REASON_OF else None
        for space in spaces:
            if space.data:
                self._entomb(space, cause, now, records, placed=True)
                del self._occupied[space]
        return held

    def clear(self, now: float) -> list[Any]:
        """Remove everything; return the old containers, to be emptied in slices.

        The entries themselves lie in graves, which are freed as in `clear_spaces`.
        """
        records = self._record.foresee(self.count, self.count) if self.count else None
        for graves in self._graves.values():
            for grave in graves:
                grave.placed = False
        for space in self._occupied:
            self._entomb(space, RemovalCause.CLEARED, now, records, placed=False)
        self._occupied = {}
        wreck: list[Any] = [self._expiry.spoils(), *self.order.spoils(), self.tags.spoils()]
        wreck.append(self._kept.spoils())
        self.tags = TagIndex()
        self.order = self._new_order()
        self._let_spend()
        self.names[TOUCH] = self.order.touch
        self._expiry = ExpiryIndex()
        self._kept = ExpiryIndex()
        self.count = 0
        self.bytes = 0
        return wreck

    def forget_counts(self) -> None:
        """Count removals from 0 again."""
        self.rejected = 0
        self.removals = dict.fromkeys(RemovalCause, 0)
        self.evictions = dict.fromkeys(self.evictions, 0)

    def forget_removals(self) -> None:
        """Drop every removal record."""
        self._record.forget()
        for graves in self._graves.values():
            for grave in graves:
                grave.records = None

    # -- the two doors

    def _link(self, entry: Entry) -> None:
        space = entry.space
        data = space.data
        if not data:
            self._occupied[space] = None
        weight = entry.weight
        space.bytes += weight
        self.bytes += weight
        self.count += 1
        self.order.add(entry)
        if entry.deadline != inf:
            self._expiry.add(entry)
        data[entry.key] = entry  # last: from here on a hit may find it

    def _describe(self, entry: Entry, facts: Facts | None, ttl: float | None, now: float) -> None:
        """Give *entry*, which is about to be linked, its facts."""
        space = entry.space
        if facts is None:
            facts = Facts(self.generation, (), None, space.version, space.window)
        entry.facts = facts
        self._time(entry, facts, ttl, now)
        if facts.version != space.version or (facts.link is not None and not space.linked):
            entry.kind = None  # so that no lookup finds it that does not look at this
        self.tagged += 1
        self.tags.add(entry, facts.tags)

    def _strip(self, entry: Entry) -> None:
        """Let go of the facts of *entry*, which leaves."""
        facts = entry.facts
        if isinstance(facts, Facts):
            self.tagged -= 1
            self.tags.discard(entry, facts.tags)
            self._forgo(facts)
            kept = facts.kept
            if kept is not None and kept.stale:
                kept.stale = False
                self.stale -= 1
                self._kept.discard(kept)

    def hand_over(self, entry: Entry) -> None:
        """Let the popularity of its call have the hits counted at *entry*."""
        used = entry.used
        if used and entry.space.counted and self.popularity is not None:
            self.popularity.read((entry.space, entry.key), used)

    def _forgo(self, facts: Facts | None) -> None:
        if facts is not None and facts.link is not None:
            self.links.release(facts.link)

    def _unlink(
        self, entry: Entry, cause: RemovalCause, dropped: list[object], ordered: bool = True
    ) -> None:
        """Take *entry* out, if it is still in; the recency order knows it if *ordered*."""
        space, key = entry.space, entry.key
        data = space.data
        if data.get(key) is not entry:
            return
        del data[key]  # first: from here on no hit finds it
        weight = entry.weight
        space.bytes -= weight
        self.bytes -= weight
        if not data:
            del self._occupied[space]
        if ordered:
            self.order.discard(entry)
        if entry.deadline != inf:
            self._expiry.discard(entry)
        if self.tagged:
            self._strip(entry)
        if self.popularity is not None:
            self.hand_over(entry)
        self.removals[cause] += 1
        dropped.append(entry)
        reason = _REASON_OF.get(cause)
        if reason is not None:
            if self._graves:
                self._exhume(space, key, dropped)
            self._record.add(space, key, reason, self.count)
        self.count -= 1
        if self.events is not None:
            self.events.removed(space, key, entry.kind, cause)

    def _unlink_due(self, entries: list[Entry], dropped: list[object]) -> None:
        """Do the same for entries that just left the expiry index: a slice at a time."""
        if len(entries) <= PER_WRITE or self._graves:
            for entry in entries:
                self._unlink(entry, RemovalCause.EXPIRED, dropped)
            return
        # Whole steps in C: a sweep of half a million entries is one of these for each.
        spaces: dict[Namespace, list[Entry]] = {}
        if len(set(map(_SPACE, entries))) == 1:
            spaces[entries[0].space] = entries
        else:
            for entry in entries:
                spaces.setdefault(entry.space, []).append(entry)
        for space, group in spaces.items():
            keys = list(map(_KEY, group))
            data = space.data
            exhaust(map(data.__delitem__, keys))
            weight = sum(map(_WEIGHT, group))
            space.bytes -= weight
            self.bytes -= weight
            if not data:
                del self._occupied[space]
            self._record.add_many(space, keys, MissReason.EXPIRED, self.count)
        self.order.discard_many(entries)
        if self.tagged:
            for entry in entries:
                self._strip(entry)
        if self.popularity is not None:
            for entry in entries:
                self.hand_over(entry)
        self.removals[RemovalCause.EXPIRED] += len(entries)
        self.count -= len(entries)
        dropped.extend(entries)
        if self.events is not None:
            for entry in entries:
                self.events.removed(entry.space, entry.key, entry.kind, _EXPIRED)

    def _make_room(self, weight: int, now: float, dropped: list[object]) -> None:
        """Free what is dead or due, then evict, until one entry of *weight* fits."""
        take_oldest = self.order.take_oldest
        while True:
            over_bytes = self.bytes + self._dead_bytes + weight > self.max_bytes
            if not over_bytes and self.count + self._dead < self.max_entries:
                return
            due = self._graves or now >= self._expiry.soonest or now >= self._kept.soonest
            if due and self.free(now, 1, dropped):
                continue
            victim = take_oldest()
            if victim is None:
                return
            if victim.deadline <= now:
                self._unlink(victim, _EXPIRED, dropped, False)
                continue
            self.evictions["max_memory_bytes" if over_bytes else "max_entries"] += 1
            self._unlink(victim, _EVICTED, dropped, False)

    def _remember(
        self, space: Namespace, key: DataKey, reason: MissReason, dropped: list[object]
    ) -> None:
        """Record why *key*, which has no entry, is not to be had."""
        if self._graves:
            self._exhume(space, key, dropped)
        self._record.add(space, key, reason, self.count)

    def _common(self, weight: int) -> int:
        """Return an int equal to *weight* that entries of this weight share: 28 bytes less each."""
        if len(self._weights) >= COMMON:
            self._weights.clear()
        return self._weights.setdefault(weight, weight)

    # -- graves

    def _entomb(
        self,
        space: Namespace,
        cause: RemovalCause,
        now: float,
        records: Segment | None,
        *,
        placed: bool,
    ) -> None:
        """Take its entries from *space* in one step: from here on no hit finds them."""
        held = len(space.data)
        grave = _Grave(space, cause, now, records, placed=placed)
        space.data = {}
        self._graves.setdefault(space, []).append(grave)
        self.count -= held
        self.bytes -= space.bytes
        self._dead += held
        self._dead_bytes += space.bytes
        space.bytes = 0

    def _exhume(self, space: Namespace, key: DataKey, dropped: list[object]) -> None:
        """Free a dead entry of *key*: something else has become of that key since."""
        for grave in self._graves.get(space, ()):
            entry = grave.data.pop(key, None)
            if entry is not None:
                self._dead_end(grave, [entry], dropped)
                if grave.records is not None and grave.records.room:
                    grave.records.room -= 1
                    grave.records.size -= 1

    def _dig(self, limit: int, dropped: list[object]) -> int:
        """Free up to *limit* dead entries; return how many."""
        dug = 0
        while self._graves and dug < limit:
            space = next(reversed(self._graves))
            grave = self._graves[space][-1]
            take = grave.data.popitem
            entries = [take()[1] for _ in range(min(limit - dug, len(grave.data)))]
            dug += len(entries)
            self._write_down(grave, space, entries)
            self._dead_end(grave, entries, dropped)
            if not grave.data:
                if grave.records is not None:
                    self._record.settle(grave.records)
                self._graves[space].pop()
                if not self._graves[space]:
                    del self._graves[space]
        return dug

    def _write_down(self, grave: _Grave, space: Namespace, entries: list[Entry]) -> None:
        """Record what is dug out, as far as the record still has room for that clear."""
        records = grave.records
        if records is None or not records.room:
            return
        entries = entries[: records.room]
        records.room -= len(entries)
        expired = [entry.key for entry in entries if entry.deadline <= grave.moment]
        cleared = [entry.key for entry in entries if entry.deadline > grave.moment]
        for keys, cause in ((expired, RemovalCause.EXPIRED), (cleared, grave.cause)):
            if keys:
                records.add_many(space, keys, _REASON_OF[cause])

    def _dead_end(self, grave: _Grave, entries: list[Entry], dropped: list[object]) -> None:
        """Let go of *entries* that were just taken out of *grave*."""
        self._dead -= len(entries)
        self._dead_bytes -= sum([entry.weight for entry in entries])
        expired = sum([entry.deadline <= grave.moment for entry in entries])
        self.removals[RemovalCause.EXPIRED] += expired
        self.removals[grave.cause] += len(entries) - expired
        if self.tagged:
            for entry in entries:
                self._strip(entry)
        if self.popularity is not None:
            for entry in entries:
                self.hand_over(entry)
        if grave.placed:
            self.order.discard_many(entries)
            for entry in entries:
                self._expiry.discard(entry)
        dropped.extend(entries)
        if self.events is not None:
            for entry in entries:
                cause = _EXPIRED if entry.deadline <= grave.moment else grave.cause
                self.events.removed(entry.space, entry.key, entry.kind, cause)

    def forget_graves(self) -> None:
        """Drop all graves at once, and all that was known of what is in them."""
        self._graves = {}
        self._dead = self._dead_bytes = 0
        self.tagged = self.stale = 0
        self.tags = TagIndex()
        self._kept = ExpiryIndex()
        self.links = Links()

    # -- proof

    def described(self) -> list[Entry]:
        """Return the entries, dead ones included, with more facts than a generation. O(entries)."""
        spaces = [space.data for space in self._occupied]
        graves = [grave.data for graves in self._graves.values() for grave in graves]
        held = (entry for data in (*spaces, *graves) for entry in data.values())
        return [entry for entry in held if isinstance(entry.facts, Facts)]

    def check(self) -> None:
        """Recompute every invariant from scratch; raise AssertionError at the first broken one."""
        ordered = self.order.newest()
        entries = [entry for entry in ordered if _in_place(entry)]
        graves = [grave for graves in self._graves.values() for grave in graves]
        dead = [entry for grave in graves for entry in grave.data.values()]
        placed = {entry for grave in graves if grave.placed for entry in grave.data.values()}
        _claim(sum(entry.weight for entry in entries) == self.bytes, "bytes = sum of weights")
        _claim(self.bytes <= self.max_bytes, "bytes within the bound")
        _claim(len(entries) <= self.max_entries, "entries within the bound")
        _claim(len(entries) == self.count, "every counted entry is ordered")
        _claim(
            set(ordered) == {*entries, *placed},
            "what is ordered is in its namespace under its key, or in a grave",
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
            all(
                space.bytes == sum(entry.weight for entry in space.data.values())
                for space in self._occupied
            ),
            "bytes of each namespace",
        )
        stale = {
            entry: facts.kept
            for entry in self.described()
            if isinstance(facts := entry.facts, Facts) and facts.kept and facts.kept.stale
        }
        placed_or_live = {*entries, *placed}
        _claim(
            set(self._expiry)
            == {entry for entry in ordered if entry.deadline != inf and entry not in stale},
            "the expiry index holds exactly the ordered entries with a deadline that are not kept",
        )
        _claim(
            set(self._kept) == {kept for entry, kept in stale.items() if entry in placed_or_live},
            "the other index holds exactly what is kept past its deadline",
        )
        _claim(len(stale) == self.stale, "everything stale is counted")
        _claim(
            all(_keeper(kept) is entry for entry, kept in stale.items() if _in_place(entry)),
            "what is kept is in its namespace",
        )
        self._expiry.check()
        self._kept.check()
        self.order.check()
        _claim(not any(map(_in_place, dead)), "the dead are in no namespace")
        _claim(len(dead) == self._dead, "every dead entry is counted")
        _claim(sum(entry.weight for entry in dead) == self._dead_bytes, "bytes of the dead")
        _claim(
            self.bytes + self._dead_bytes <= self.max_bytes
            and self.count + self._dead <= self.max_entries,
            "the dead within the bounds, too",
        )
        described = self.described()
        _claim(len(described) == self.tagged, "every entry with facts is counted")
        self.tags.check(
            (entry, entry.tags)
            for entry in described
            if _in_place(entry) or entry in placed  # a clear of everything begins a new index
        )
        _claim(
            all(
                entry.kind is None or entry.space.linked
                for entry in entries
                if entry.link is not None
            ),
            "no fast lookup finds an entry with dependencies unseen",
        )
        _claim(len(self._record) <= 2 * MOST, "removal records within their bound")


def _keeper(kept: Kept) -> Entry | None:
    """Return the entry that *kept* keeps, if it is in its namespace."""
    entry = kept.space.data.get(kept.key)
    facts = None if entry is None else entry.facts
    return entry if isinstance(facts, Facts) and facts.kept is kept else None


def _in_place(entry: Entry) -> bool:
    return entry.space.data.get(entry.key) is entry


def _claim(holds: bool, invariant: str) -> None:
    if not holds:
        raise AssertionError(f"broken invariant of the store: {invariant}")
