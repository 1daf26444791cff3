"""The removal record: why a key that was here is gone.

A miss asks it for the true reason, whatever the sweeper or the evictor did a
moment before. It remembers the last removals, in segments that are dropped as a
whole, the oldest first: to remember is one write into a dict, to forget costs
nothing for each. It costs no memory of its own account: every live entry's
overhead pays in advance for the records that it may leave.

    add     into the newest segment; a full one is closed and another begun
    drop    the oldest segment, once the others hold as much as is promised

    promised at any time: the last max(256, entries held) removals, 65,536 at most
    held at any time:     half as many more; after a clear, what that removed, until
                          some 256 later removals push it out

A key may stand in several segments: the newest one that knows it tells the reason.
A small key is recorded as itself, a large one by its digest, or the record of a few
giants would weigh more than the cache.
"""

from collections.abc import Hashable, Iterator
from typing import Any, Final, final

from ._keys import DataKey, digest
from .outcomes import MissReason

__all__ = ["LEAST", "MOST", "RemovalRecord", "Segment"]

LEAST: Final = 256
MOST: Final = 65_536

SETTLED: Final = 4_096
"""Removals of a segment that are looked for in the older ones. More would be a stall of
milliseconds; then a key that was removed again and again may count several times."""

SMALL_KEY: Final = 48
_SMALL_INT: Final = 1 << 8 * SMALL_KEY


def _is_small(key: Any) -> bool:
    """Tell whether a removal record may hold *key* itself."""
    kind = type(key)  # pyright: ignore[reportUnknownVariableType]  # isinstance costs twice as much
    if kind is int:
        small: bool = -_SMALL_INT < key < _SMALL_INT
        return small
    if kind is str or kind is bytes:
        return len(key) <= SMALL_KEY
    if kind is tuple:
        return len(key) <= 8 and all(map(_is_small, key))
    return key is None or isinstance(key, (type, bool, float))


def _mark(key: DataKey) -> Any:
    """Return what a record knows *key* by: itself, or its digest when large."""
    return key if _is_small(key) else digest(key)


def _marks(keys: list[Any]) -> list[Any]:
    """Do the same for many; for keys of one plain kind, without a look at each."""
    kinds = set(map(type, keys))
    if len(kinds) == 1:
        kind = kinds.pop()
        if (kind is str or kind is bytes) and max(map(len, keys)) <= SMALL_KEY:
            return keys
        if kind is int and min(keys) > -_SMALL_INT and max(keys) < _SMALL_INT:
            return keys
    return [_mark(key) for key in keys]


@final
class Segment:
    """The removals of one stretch of time, by space and key.

    Attributes:
        size: Removals that it stands for.
        room: How many of them are still to be written down.
    """

    __slots__ = ("gone", "room", "size")

    def __init__(self, size: int = 0) -> None:
        self.size = self.room = size
        self.gone: dict[Hashable, dict[Hashable, MissReason]] = {}  # bounded by RemovalRecord

    def add_many(self, space: Hashable, keys: list[DataKey], reason: MissReason) -> int:
        """Write down *keys*; return how many of them are new here."""
        known = self.gone.get(space)
        if known is None:
            known = self.gone[space] = {}
        before = len(known)
        known.update(dict.fromkeys(_marks(keys), reason))
        return len(known) - before


@final
class RemovalRecord:
    """(space, key) -> reason, of the last removals.

    Complexity: O(1); once in max(128, held / 2) removals it frees as many.
    """

    __slots__ = ("_newest", "_quota", "_segments")

    def __init__(self) -> None:
        self._newest = Segment()
        # Oldest first. Bounded by _drop(): three, a few while the store grows, and one for
        # each clear of many; the newest is never full.
        self._segments: list[Segment] = [self._newest]
        self._quota = LEAST // 2  # of the newest

    def add(self, space: Hashable, key: DataKey, reason: MissReason, live: int) -> None:
        """Remember why *key* is gone; *live* entries were held a moment before."""
        if not _is_small(key):
            key = digest(key)
        newest = self._newest
        known = newest.gone.get(space)
        if known is None:
            newest.gone[space] = {key: reason}
        elif key in known:
            known[key] = reason
            return
        else:
            known[key] = reason
        newest.size += 1
        if newest.size >= self._quota:
            self._rotate(live)

    def add_many(self, space: Hashable, keys: list[DataKey], reason: MissReason, live: int) -> None:
        """Do the same for a few *keys* at once."""
        self._newest.size += self._newest.add_many(space, keys, reason)
        if self._newest.size >= self._quota:
            self._rotate(live)

    def foresee(self, size: int, live: int) -> Segment:
        """Return a segment for *size* removals of this moment, which are written down later."""
        if self._newest.size:
            self._rotate(live)
        segment = Segment(min(size, MOST))
        self._segments.insert(-1, segment)
        self._drop(live)
        self._quota = LEAST // 2  # what is left to pay for records decides soon
        return segment

    def _rotate(self, live: int) -> None:
        """Close the newest segment."""
        self.settle(self._newest)
        self._quota = min(max(LEAST, live), MOST) // 2
        self._newest = Segment()
        self._segments.append(self._newest)
        self._drop(live)

    def settle(self, segment: Segment) -> None:
        """Take out of the segments before *segment*, which is complete, what it tells anew.

        So what happens to the same few keys again and again pushes nothing else out.
        """
        if segment.size > SETTLED or segment not in self._segments:
            return
        for older in self._segments[: self._segments.index(segment)]:
            for space, known in segment.gone.items():
                before = older.gone.get(space)
                if before:
                    again = before.keys() & known.keys()
                    for mark in again:
                        del before[mark]
                    older.size -= len(again)

    def _drop(self, live: int) -> None:
        keep = min(max(LEAST, live), MOST)
        segments = self._segments
        while len(segments) > 1 and len(self) - segments[0].size >= keep:
            # Whoever has still to write into it may; nobody reads it any more.
            del segments[0]

    def reason(self, space: Hashable, key: DataKey) -> MissReason:
        """Return why *key* is gone; ABSENT when nothing is known."""
        mark = key if _is_small(key) else digest(key)
        for segment in reversed(self._segments):
            known = segment.gone.get(space)
            if known is not None:
                reason = known.get(mark)
                if reason is not None:
                    return reason
        return MissReason.ABSENT

    def forget(self) -> None:
        """Drop every record, also those that are still to be written down."""
        self._newest = Segment()
        self._segments = [self._newest]

    def __iter__(self) -> Iterator[tuple[Hashable, Hashable]]:
        for segment in self._segments:
            for space, known in segment.gone.items():
                for key in known:
                    yield space, key

    def __len__(self) -> int:
        return sum(segment.size for segment in self._segments)
