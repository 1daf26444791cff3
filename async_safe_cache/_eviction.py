"""Recency orders: which entry leaves first when a bound is reached.

A policy knows entries by identity only; it never looks inside one. `touch` is
the one method on the path of a hit, and must run no Python code of its own.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Generic, TypeVar, final

__all__ = ["LeastRecentlyUsed"]

E = TypeVar("E")


@final
class LeastRecentlyUsed(Generic[E]):
    """Exact LRU: an OrderedDict hashed by identity.

    `touch` is the C method `move_to_end` itself: atomic under the GIL, and a
    KeyError for an entry that another thread has just removed.

    Complexity: O(1) each.
    """

    __slots__ = ("_order", "touch")

    def __init__(self) -> None:
        self._order: OrderedDict[E, None] = OrderedDict()  # bounded by the store's entries
        self.touch: Callable[[E], None] = self._order.move_to_end

    def add(self, entry: E) -> None:
        """Take *entry* in as the most recently used one."""
        self._order[entry] = None

    def discard(self, entry: E) -> None:
        """Forget *entry*."""
        self._order.pop(entry, None)

    def discard_many(self, entries: Iterable[E]) -> None:
        """Forget *entries*."""
        pop = self._order.pop
        for entry in entries:
            pop(entry, None)

    def take_oldest(self) -> E | None:
        """Take out the entry that should leave next, and return it.

        One C call: between an iterator's start and its first step another
        thread's hit may move an entry.
        """
        try:
            return self._order.popitem(last=False)[0]
        except KeyError:
            return None

    def newest(self, limit: int | None = None) -> list[E]:
        """Return the entries, the most recently used one first."""
        while True:
            try:
                return list(islice(reversed(self._order), limit))
            except RuntimeError:
                continue  # a hit came in before the first step, as above

    def spoils(self) -> OrderedDict[E, None]:
        """Return the container itself, to be emptied in slices once this order is replaced."""
        return self._order

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, entry: object) -> bool:
        return entry in self._order
