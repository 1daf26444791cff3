"""Which entry leaves first when a bound is reached: exact LRU, or S3-FIFO.

Both have one small protocol, `Order`. All but `touch` is called under the store's
lock, and none of it runs user code. `touch` is called by hits, without the lock,
at any moment: it is one step under the GIL.

Sources: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023;
the moving border between the two queues is that of Megiddo & Modha, "ARC", FAST 2003.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, islice, pairwise, repeat
from typing import Any, Final, Generic, Literal, Protocol, TypeVar, final

__all__ = ["LeastRecentlyUsed", "Member", "Order", "PolicyName", "S3Fifo", "exhaust", "order_of"]

PolicyName = Literal["lru", "s3fifo"]

CHUNK: Final = 85
"""Entries in one piece of a queue: what a dict of 128 slots holds before it grows."""

SPARSE: Final = 21
"""A piece with so few entries is united with a neighbour, if both have twice as many at most."""

LEAST_SMALL: Final = 32
"""Entries that the small queue may keep in any case, up to half of all."""

SHARE: Final = (0.1, 0.8)
"""Least and most of all weight that the small queue is meant to have; it begins with the least."""

GROW: Final = 4
SHRINK: Final = 6
"""Weights of the entry that came back by which that share moves. A larger GROW learns sooner;
a SHRINK below GROW loses on real traces, one far above it where keys are read just twice."""

CHANCES: Final = 128
"""Marked entries that one eviction passes over: about 0.1 ms. Then a marked one leaves, too,
which shows only in a full cache of which nearly everything is in use."""

LEAST_GHOSTS: Final = 64
NOBODY: Final = 2**32 - 1
PRIME: Final = 2**30 - 35  # one digit of CPython's: twice as fast as the next larger one


exhaust: Final = deque[Any](maxlen=0).extend
"""Runs an iterator to its end, and keeps nothing."""


class Member(Protocol):
    """What S3-FIFO needs of an entry.

    Attributes:
        weight: Above 0; does not change while the entry is held.
        space: With `key`, what an entry is known by after it has left.
        key: Hashable without running user code.
        used: Set by hits; read and taken back by the policy.
        place: The policy's own: where the entry is, or None.
    """

    used: int
    place: Any

    @property
    def weight(self) -> int: ...
    @property
    def space(self) -> object: ...
    @property
    def key(self) -> object: ...


E = TypeVar("E")
M = TypeVar("M", bound=Member)


@final
class LeastRecentlyUsed(Generic[E]):
    """Exact LRU: an OrderedDict hashed by identity.

    `touch` is the C method `move_to_end` itself: atomic under the GIL, and a
    KeyError for an entry that another thread has just removed.

    Complexity: O(1) each.
    """

    __slots__ = ("_order", "add", "touch")

    def __init__(self) -> None:
        self._order: OrderedDict[E, None] = OrderedDict()  # bounded by the store's entries
        self.touch: Callable[[E], None] = self._order.move_to_end
        # Takes one in that is not here, as the most recently used one.
        self.add: Callable[[E], None] = self._order.setdefault

    def discard(self, entry: E) -> None:
        """Forget *entry*."""
        self._order.pop(entry, None)

    def discard_many(self, entries: Iterable[E]) -> None:
        """Forget *entries*."""
        exhaust(map(self._order.pop, entries, repeat(None)))

    def take_oldest(self) -> E | None:
        """Take out the entry that should leave next, and return it.

        One C call: between an iterator's start and its first step another
        thread's hit may move an entry.
        """
        try:
            return self._order.popitem(last=False)[0]
        except KeyError:
            return None

    def oldest(self) -> E | None:
        """Return the entry that would leave next."""
        while True:
            try:
                return next(iter(self._order), None)
            except RuntimeError:
                continue  # as below

    def newest(self, limit: int | None = None) -> list[E]:
        """Return the entries, the most recently used one first."""
        while True:
            try:
                return list(islice(reversed(self._order), limit))
            except RuntimeError:
                continue  # a hit came in before the first step, as with `take_oldest`

    def spoils(self) -> list[Collection[E]]:
        """Return the containers, to be emptied in slices once this order is replaced."""
        return [self._order]

    def check(self) -> None:
        """Nothing is kept twice here."""

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, entry: object) -> bool:
        return entry in self._order


class _Chunk(dict[M, None]):
    """A piece of a queue, in its order, and its place in the chain."""

    __slots__ = ("newer", "older", "queue")

    def __init__(self, queue: "_Queue[M]", older: "_Chunk[M] | None") -> None:
        self.queue = queue
        self.older = older
        self.newer: _Chunk[M] | None = None


@final
class _Queue(Generic[M]):
    """A FIFO that an entry can leave from anywhere: a chain of small dicts.

    Not a deque that skips what was removed: it would keep removed values alive,
    outside the bound, and to take a value away from an entry would take it from the
    reader that has just found that entry. Not an OrderedDict: 130 bytes an entry
    where this takes 27. Not one large dict: its first member is found by walking
    over all that were removed before it.

    Two neighbours that hold little become one, so that no chunk is nearly empty for
    long: any two hold more than SPARSE entries, but for the oldest, which is used up.

    Complexity: O(1); at most half a chunk is moved at a time.
    """

    __slots__ = ("count", "newest", "oldest", "weight")

    def __init__(self) -> None:
        self.count = 0
        self.weight = 0
        self.oldest: _Chunk[M] = _Chunk(self, None)
        self.newest = self.oldest

    def push(self, entry: M) -> None:
        """Take *entry* in as the newest."""
        chunk = self.newest
        if len(chunk) >= CHUNK:
            chunk.newer = self.newest = chunk = _Chunk(self, chunk)
        chunk[entry] = None
        entry.place = chunk
        self.count += 1
        self.weight += entry.weight

    def remove(self, entry: M) -> None:
        """Take out *entry*, which is here."""
        chunk: _Chunk[M] = entry.place
        del chunk[entry]
        entry.place = None
        self.count -= 1
        self.weight -= entry.weight
        if len(chunk) <= SPARSE and (not chunk or chunk is not self.oldest):
            self._join(chunk)

    def _join(self, chunk: _Chunk[M]) -> None:
        """Unite *chunk* with a neighbour, if the two are small enough."""
        older, newer = chunk.older, chunk.newer
        if newer is not None and len(chunk) + len(newer) <= 2 * SPARSE:
            self._absorb(chunk, newer)
        elif older is not None and len(older) + len(chunk) <= 2 * SPARSE:
            self._absorb(older, chunk)
        elif not chunk and newer is not None:
            newer.older = older
            if older is None:
                self.oldest = newer
            else:
                older.newer = newer
        elif not chunk and older is not None:
            older.newer = None
            self.newest = older

    def _absorb(self, older: _Chunk[M], newer: _Chunk[M]) -> None:
        for entry in newer:
            older[entry] = None
            entry.place = older
        older.newer = newer.newer
        if newer.newer is None:
            self.newest = older
        else:
            newer.newer.older = older

    def chunks(self) -> Iterator[_Chunk[M]]:
        """Yield the chunks, the newest first."""
        chunk: _Chunk[M] | None = self.newest
        while chunk is not None:
            yield chunk
            chunk = chunk.older

    def clear(self) -> "list[_Chunk[M]]":
        """Give the chunks away, without links: a chain would be left to the collector."""
        chunks = [*self.chunks()]
        for chunk in chunks:
            chunk.older = chunk.newer = None
        self.count = self.weight = 0
        self.oldest = self.newest = _Chunk(self, None)
        return chunks

    def check(self) -> None:
        """Recompute every invariant; raise AssertionError at the first broken one."""
        chunks = list(self.chunks())[::-1]
        entries = [entry for chunk in chunks for entry in chunk]
        _claim(chunks[0] is self.oldest, "the chain begins with the oldest chunk")
        _claim(self.newest.newer is None, "the chain ends with the newest chunk")
        _claim(
            all(older.newer is newer for older, newer in pairwise(chunks)),
            "the chain has two directions",
        )
        _claim(all(chunk.queue is self for chunk in chunks), "a chunk knows its queue")
        _claim(
            all(entry.place is chunk for chunk in chunks for entry in chunk),
            "an entry knows its chunk",
        )
        _claim(self.count == len(entries), "count = number of entries")
        _claim(self.weight == sum(entry.weight for entry in entries), "weight = sum of weights")
        _claim(all(len(chunk) <= CHUNK for chunk in chunks), "chunks within their bound")
        _claim(
            all(len(older) + len(newer) > SPARSE for older, newer in pairwise(chunks[1:])),
            "no two neighbours are nearly empty",
        )


@final
class S3Fifo(Generic[M]):
    """Two queues and a memory of what left them: what is read once does not displace.

        add     was it here of late?   no: into small    yes: into main
        hit     mark it, nothing else
        evict   small has more than its share?  its oldest:  marked: into main, mark taken back
                                                             else: it leaves
                otherwise                       main's oldest: marked: around again, mark taken back
                                                             else: it leaves

    What leaves is remembered as a *ghost*. When a ghost of small comes back, small was
    too short, and its share grows; when one of main comes back, the share shrinks.
    Without that, keys that are read twice, farther apart than small is long, would
    never be hit.

    A ghost is 32 bits in a table that has at least as many places as there are entries
    (at most 4 times as many): 4 to 8 bytes each, 16 after entries became few. One that
    falls on another's place replaces it, so ghosts last for about as many evictions as
    there are places. One in 2**30 is another's twin: an entry is then taken into main
    that was never here.

    Complexity: O(1) each; an eviction looks at up to CHANCES marked entries.
    """

    __slots__ = ("_ghosts", "_main", "_share", "_small", "spend")

    def __init__(self) -> None:
        self._small: _Queue[M] = _Queue()
        self._main: _Queue[M] = _Queue()
        self._share = SHARE[0]
        self._ghosts = array("I", [NOBODY]) * LEAST_GHOSTS  # bounded by take_oldest()
        # Is given what an entry's mark says, where that is a count, before it is taken back.
        self.spend: Callable[[M], object] | None = None

    @staticmethod
    def touch(entry: M) -> None:
        """Mark *entry* as used; its mark may be a count. A caller in a hurry does so itself."""
        entry.used += 1

    def add(self, entry: M) -> None:
        """Take *entry* in."""
        mark = hash((entry.space, entry.key))
        ghosts = self._ghosts
        place = mark & (len(ghosts) - 1)
        back = ghosts[place] - mark % PRIME
        if back and back != PRIME:
            self._small.push(entry)
            return
        ghosts[place] = NOBODY
        self._main.push(entry)
        step = entry.weight / (self._small.weight + self._main.weight)
        if back:
            self._share = max(SHARE[0], self._share - SHRINK * step)
        else:
            self._share = min(SHARE[1], self._share + GROW * step)

    def discard(self, entry: M) -> None:
        """Forget *entry*."""
        if entry.place is not None:
            entry.place.queue.remove(entry)

    def discard_many(self, entries: Iterable[M]) -> None:
        """Forget *entries*."""
        for entry in entries:
            self.discard(entry)

    def take_oldest(self) -> M | None:
        """Take out the entry that should leave next, and return it.

        A hit that marks it meanwhile comes too late, or is spent: no order depends on it.
        """
        small, main = self._small, self._main
        count = small.count + main.count
        if not count:
            return None
        keep = LEAST_SMALL if count > 2 * LEAST_SMALL else count // 2
        most = self._share * (small.weight + main.weight)
        chances = CHANCES
        while True:
            queue = main
            if not main.count or (small.weight > most and small.count >= keep):
                queue = small
            entry = next(iter(queue.oldest))
            queue.remove(entry)
            if not entry.used or not chances:
                break
            chances -= 1
            if self.spend is not None:
                self.spend(entry)
            entry.used = False
            main.push(entry)
        ghosts = self._ghosts
        if not count <= len(ghosts) <= 4 * count:
            self._resize(count)
        mark = hash((entry.space, entry.key))
        ghosts[mark & (len(ghosts) - 1)] = mark % PRIME + (PRIME if queue is main else 0)
        return entry

    def oldest(self) -> M | None:
        """Return an entry that would leave soon; None if those that would were used since."""
        small, main = self._small, self._main
        for queue in (small, main):
            entry = next(iter(queue.oldest), None) if queue.count else None
            if entry is not None and not entry.used:
                return entry
        return None

    def _resize(self, count: int) -> None:
        """Make the table fit *count* entries.

        By doubling and halving: a ghost is found by the last bits of its mark, so it
        is where it should be in both halves of a table that was doubled.
        """
        ghosts = self._ghosts
        while len(ghosts) < count:
            ghosts *= 2
        while len(ghosts) > max(LEAST_GHOSTS, 4 * count):
            del ghosts[len(ghosts) // 2 :]

    def newest(self, limit: int | None = None) -> list[M]:
        """Return the entries, roughly the one that would leave last first: main, then small."""
        chunks = chain(self._main.chunks(), self._small.chunks())
        return list(islice((entry for chunk in chunks for entry in reversed(chunk)), limit))

    def spoils(self) -> list[Collection[M]]:
        """Return the containers, to be emptied in slices once this order is replaced."""
        return [*self._main.clear(), *self._small.clear()]

    def check(self) -> None:
        """Recompute every invariant from scratch; raise AssertionError at the first broken one."""
        self._small.check()
        self._main.check()
        _claim(SHARE[0] <= self._share <= SHARE[1], "the share of small is within its bounds")
        _claim(len(self._ghosts).bit_count() == 1, "the ghosts' table is a power of two")

    def __len__(self) -> int:
        return self._small.count + self._main.count

    def __contains__(self, entry: object) -> bool:
        chunk = getattr(entry, "place", None)
        return chunk is not None and chunk.queue in (self._small, self._main)


Order = LeastRecentlyUsed[M] | S3Fifo[M]


def order_of(policy: PolicyName) -> Callable[[], Order[Any]]:
    """Return what makes an empty order of *policy*."""
    return S3Fifo if policy == "s3fifo" else LeastRecentlyUsed


def _claim(holds: bool, invariant: str) -> None:
    if not holds:
        raise AssertionError(f"broken invariant of the eviction order: {invariant}")
