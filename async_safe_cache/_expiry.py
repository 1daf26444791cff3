"""Which entries are due, in O(due).

Entries lie in sets by the second in which they expire, and a heap holds those
seconds. A bucket whose latest deadline has come is due as a whole: freeing it
costs its entries and nothing else, however many live ones there are. The one
bucket that is due in part is walked only when something in it is due, and then
at most `PARTIAL` entries of it.

    bucket k holds deadlines in (k - 1, k]
"""

import heapq
import math
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar, final

__all__ = ["ExpiryIndex"]

PARTIAL: Final = 256


class Expiring(Protocol):
    """Anything with a deadline in the clock's seconds."""

    deadline: float


E = TypeVar("E", bound=Expiring)


@final
class _Bucket(Generic[E]):
    """Entries of one second, with the bounds of their deadlines.

    The bounds may be wider than the members after a removal, never narrower.
    """

    __slots__ = ("entries", "first", "last")

    def __init__(self) -> None:
        self.entries: set[E] = set()
        self.first = math.inf
        self.last = -math.inf

    def add(self, entry: E) -> None:
        self.entries.add(entry)
        self.first = min(self.first, entry.deadline)
        self.last = max(self.last, entry.deadline)


@final
class ExpiryIndex(Generic[E]):
    """Finite deadlines of entries, found when due.

    Complexity: add and discard O(1) plus O(log seconds) for a new second;
    due() O(what it returns).
    """

    __slots__ = ("_buckets", "_seconds")

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket[E]] = {}  # bounded by the entries: none is empty
        self._seconds: list[int] = []  # heap; may name emptied buckets, compacted in discard()

    def add(self, entry: E) -> None:
        """Take *entry* in; its deadline is finite and does not change while it is here."""
        second = math.ceil(entry.deadline)
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = _Bucket()
            heapq.heappush(self._seconds, second)
        bucket.add(entry)

    def discard(self, entry: E) -> None:
        """Forget *entry*, if it is here."""
        if entry.deadline == math.inf:
            return
        second = math.ceil(entry.deadline)
        bucket = self._buckets.get(second)
        if bucket is None:
            return
        bucket.entries.discard(entry)
        if not bucket.entries:
            del self._buckets[second]
            if len(self._seconds) > 2 * len(self._buckets) + 64:
                self._seconds = list(self._buckets)
                heapq.heapify(self._seconds)

    def take_due(self, now: float, limit: int) -> list[E]:
        """Take out up to *limit* entries of the earliest second that are due, and return them.

        The caller asks again until nothing comes back.
        """
        seconds = self._seconds
        while seconds and seconds[0] not in self._buckets:
            heapq.heappop(seconds)
        if not seconds or seconds[0] - 1 >= now:
            return []
        bucket = self._buckets[seconds[0]]
        entries = bucket.entries
        if bucket.last <= now:
            # pop() goes on where it left off; walking from the start would be quadratic.
            found = [entries.pop() for _ in range(min(limit, len(entries)))]
        elif bucket.first <= now:
            found = self._due_in_part(bucket, now, limit)
            entries.difference_update(found)
        else:
            return []
        if not entries:
            del self._buckets[seconds[0]]
        return found

    def count_due(self, now: float, work: float = math.inf) -> int:
        """Return how many entries are past their deadline.

        With *work*, look at about so many seconds and entries, and count the
        others as not due.

        Complexity: O(seconds that are due + entries of the one that is due in part).
        """
        total = 0
        counted: set[int] = set()
        places = [0]  # in the heap: what lies below a second that is not due is not due
        while places and work > 0:
            work -= 1
            place = places.pop()
            if place >= len(self._seconds) or self._seconds[place] - 1 >= now:
                continue
            places += (2 * place + 1, 2 * place + 2)
            second = self._seconds[place]
            bucket = self._buckets.get(second)
            if bucket is None or second in counted or bucket.first > now:
                continue
            counted.add(second)
            if bucket.last <= now:
                total += len(bucket.entries)
            elif len(bucket.entries) <= work:
                work -= len(bucket.entries)
                total += sum(entry.deadline <= now for entry in bucket.entries)
        return total

    def _due_in_part(self, bucket: _Bucket[E], now: float, limit: int) -> list[E]:
        """Return what is due among the first entries of a bucket that is half due."""
        found: list[E] = []
        earliest = math.inf
        for walked, entry in enumerate(bucket.entries):
            if walked == PARTIAL:
                return found
            if entry.deadline <= now:
                found.append(entry)
                if len(found) == limit:
                    return found
            else:
                earliest = min(earliest, entry.deadline)
        # Walked to its end: whatever is due was found and is about to leave.
        bucket.first = earliest
        return found

    def __iter__(self) -> Iterator[E]:
        for bucket in self._buckets.values():
            yield from bucket.entries

    def __len__(self) -> int:
        return sum(len(bucket.entries) for bucket in self._buckets.values())

    def spoils(self) -> list[set[E]]:
        """Return the containers themselves, to be emptied in slices once this index is replaced."""
        return [bucket.entries for bucket in self._buckets.values()]

    def check(self) -> None:
        """Raise AssertionError unless every bucket is sound and can be found."""
        for second, bucket in self._buckets.items():
            if not bucket.entries or second not in self._seconds:
                raise AssertionError("broken invariant of the expiry index: a lost or empty bucket")
            for entry in bucket.entries:
                inside = second - 1 < entry.deadline <= second
                if not (inside and bucket.first <= entry.deadline <= bucket.last):
                    raise AssertionError("broken invariant of the expiry index: a deadline outside")
