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
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar, final

__all__ = ["ExpiryIndex"]

PARTIAL: Final = 64


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

    def due(self, now: float, limit: int) -> list[E]:
        """Return up to *limit* entries of the earliest second that are due.

        The caller removes them and asks again until nothing comes back.
        """
        seconds = self._seconds
        while seconds and seconds[0] not in self._buckets:
            heapq.heappop(seconds)
        found: list[E] = []
        if seconds and seconds[0] - 1 < now:
            bucket = self._buckets[seconds[0]]
            if bucket.last <= now:
                found.extend(islice(bucket.entries, limit))
            elif bucket.first <= now:
                self._due_in_part(bucket, now, limit, found)
        return found

    def count_due(self, now: float) -> int:
        """Return how many entries are past their deadline.

        Complexity: O(seconds that are due + entries of the one that is due in part).
        """
        total = 0
        counted: set[int] = set()
        places = [0]  # in the heap: what lies below a second that is not due is not due
        while places:
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
            else:
                total += sum(entry.deadline <= now for entry in bucket.entries)
        return total

    def _due_in_part(self, bucket: _Bucket[E], now: float, limit: int, found: list[E]) -> None:
        """Add what is due among the first entries of a bucket that is half due."""
        earliest = math.inf
        for walked, entry in enumerate(bucket.entries):
            if walked == PARTIAL:
                return
            if entry.deadline <= now:
                found.append(entry)
                if len(found) == limit:
                    return
            else:
                earliest = min(earliest, entry.deadline)
        if earliest < math.inf:
            # Walked to its end: whatever is due was found and is about to leave.
            bucket.first = earliest

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
