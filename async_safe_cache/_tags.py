"""Tags: which entries carry one, and which were invalidated while a load ran.

    index   tag -> the entries that carry it; an entry leaves it when it leaves the store
    fence   a load may add tags when it ends, so an invalidation is remembered while
            such a load runs:  tag -> generation; the load is fenced if it is older

Beyond 1,024 remembered tags one generation stands for all of them: fencing too much
is allowed, too little never.
"""

from collections.abc import Hashable, Iterable
from typing import Final, Generic, TypeVar, final

__all__ = ["MOST_FENCES", "TagFences", "TagIndex"]

MOST_FENCES: Final = 1_024

E = TypeVar("E", bound=Hashable)


@final
class TagIndex(Generic[E]):
    """Entries by tag. Complexity: add and discard O(tags of the entry)."""

    __slots__ = ("_condemned", "_tagged")

    def __init__(self) -> None:
        # Bounded by the entries and the tags that each may have: none is empty.
        self._tagged: dict[str, dict[E, None]] = {}
        # Of invalidated tags, to be removed, a pool for each invalidation; likewise.
        self._condemned: list[dict[E, None]] = []

    def add(self, entry: E, tags: Iterable[str]) -> None:
        """Take *entry* in under each of *tags*."""
        for tag in tags:
            known = self._tagged.get(tag)
            if known is None:
                self._tagged[tag] = {entry: None}
            else:
                known[entry] = None

    def discard(self, entry: E, tags: Iterable[str]) -> None:
        """Forget *entry*, as far as it is here."""
        for tag in tags:
            known = self._tagged.get(tag)
            if known is not None:
                known.pop(entry, None)
                if not known:
                    del self._tagged[tag]
        for pool in self._condemned:
            pool.pop(entry, None)

    def condemn(self, tags: Iterable[str]) -> dict[E, None]:
        """Set apart what carries any of *tags* now, and return it: to be taken, piece by piece.

        What leaves the store meanwhile leaves that pool too.
        """
        pool: dict[E, None] = {}
        for tag in tags:
            known = self._tagged.pop(tag, None)
            if known is not None:
                # The smaller into the larger: many tags at once would be copied again and again.
                if len(known) > len(pool):
                    pool, known = known, pool
                pool.update(known)
        if pool:
            self._condemned.append(pool)
        return pool

    def carrying(self, tags: Iterable[str]) -> list[E]:
        """Return what carries any of *tags* now; what carries two of them, twice."""
        return [entry for tag in tags for entry in self._tagged.get(tag, ())]

    def take(self, pool: dict[E, None], limit: float) -> list[E]:
        """Return up to *limit* entries of *pool*; the caller removes them."""
        take = pool.popitem
        taken = [take()[0] for _ in range(int(min(limit, len(pool))))]
        if not pool:
            self._condemned = [each for each in self._condemned if each]
        return taken

    def spoils(self) -> dict[str, dict[E, None]]:
        """Return the containers themselves, to be emptied in slices once this is replaced."""
        return self._tagged

    def check(self, entries: Iterable[tuple[E, Iterable[str]]]) -> None:
        """Raise AssertionError unless *entries*, with their tags, are what is held."""
        expected: dict[str, set[E]] = {}
        for entry, tags in entries:
            for tag in tags:
                condemned = any(entry in pool for pool in self._condemned)
                if condemned and entry not in self._tagged.get(tag, ()):
                    continue
                expected.setdefault(tag, set()).add(entry)
        if {tag: set(known) for tag, known in self._tagged.items()} != expected:
            raise AssertionError("broken invariant of the tags: not exactly the tagged entries")


@final
class TagFences:
    """When each tag was invalidated last, as far as a running load may still ask."""

    __slots__ = ("_floor", "_raised")

    def __init__(self) -> None:
        self._raised: dict[str, int] = {}  # bounded by MOST_FENCES
        self._floor = 0

    def put_up(self, tags: Iterable[str], generation: int) -> None:
        """Fence the loads of *tags* that began before *generation*."""
        for tag in tags:
            self._raised[tag] = generation
        if len(self._raised) > MOST_FENCES:
            self._floor = generation
            self._raised.clear()

    def hold_back(self, tags: Iterable[str], generation: int) -> bool:
        """Tell whether a load of *tags* that began at *generation* must not be stored."""
        if generation < self._floor:
            return bool(tuple(tags))
        return any(generation < self._raised.get(tag, 0) for tag in tags)

    def take_down(self) -> None:
        """Forget all: no load runs that could ask."""
        self._raised.clear()
        self._floor = 0
