"""A journal of what changed while something ran: one side notes, the other asks.

For values that have no flight which an invalidation could fence. To count too much as
changed is allowed, too little never: past its bound a journal knows only *anything*.
"""

from collections.abc import Hashable
from typing import Final, final

__all__ = ["Journal"]

MOST: Final = 1_024
"""Places that a journal keeps apart."""


@final
class Journal:
    """The places that changed since it was opened. Every method O(1), under the owner's lock."""

    __slots__ = ("_all", "_places")

    def __init__(self) -> None:
        self._places: set[Hashable] = set()  # bounded by MOST
        self._all = False

    def note(self, place: Hashable) -> None:
        """Locked. Note that *place* changed."""
        if self._all:
            return
        if len(self._places) >= MOST and place not in self._places:
            self.note_all()
            return
        self._places.add(place)

    def note_all(self) -> None:
        """Locked. Note that any place may have changed."""
        self._all = True
        self._places.clear()

    def changed(self, place: Hashable) -> bool:
        """Locked. Tell whether *place* may have changed."""
        return self._all or place in self._places
