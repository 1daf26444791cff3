"""Which entries are due, in O(due).

Entries lie in dicts by the second in which they expire, and a heap holds those
seconds. A second that is over is due as a whole: freeing it costs its entries and
nothing else, however many live ones there are. The one second that is half gone
is looked through only while it holds few entries; a crowded one waits for its end.

    bucket k holds deadlines in (k - 1, k]
    soonest  no look finds anything before: a write compares one number

A dict, not a list: an entry that is removed leaves its bucket at once, or its value
would live on until its deadline.
"""

import heapq
from collections.abc import Callable, Iterator
from math import ceil, inf
from typing import Final, Generic, Protocol, TypeVar, final

__all__ = ["ExpiryIndex"]

PARTIAL: Final = 256


class Expiring(Protocol):
    """Anything with a deadline in the clock's seconds."""

    deadline: float


E = TypeVar("E", bound=Expiring)


@final
class ExpiryIndex(Generic[E]):
    """Finite deadlines of entries, found when due.

    Complexity: add and discard O(1) plus O(log seconds) for a new second;
    take_due() O(what it returns), and O(PARTIAL) when something in a second that
    is half gone may be due.

    Attributes:
        soonest: Nothing can be taken before this time.
    """

    __slots__ = ("_buckets", "_seconds", "soonest")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[E, None]] = {}  # bounded by the entries: none is empty
        self._seconds: list[int] = []  # heap; may name emptied buckets, compacted in _forget()
        self.soonest = inf

    def add(self, entry: E) -> None:
        """Take *entry* in; its deadline is finite and does not change while it is here."""
        deadline = entry.deadline
        second = ceil(deadline)
        bucket = self._buckets.get(second)
        if bucket is None:
            self._buckets[second] = {entry: None}
            heapq.heappush(self._seconds, second)
        else:
            bucket[entry] = None
        self.soonest = min(self.soonest, deadline)

    def discard(self, entry: E) -> None:
        """Forget *entry*, if it is here."""
        if entry.deadline == inf:
            return
        second = ceil(entry.deadline)
        bucket = self._buckets.get(second)
        if bucket is not None:
            bucket.pop(entry, None)
            if not bucket:
                self._forget(second)

    def take_due(self, now: float, limit: int) -> list[E]:
        """Take out up to *limit* entries of the earliest second that are due, and return them.

        The caller asks again until nothing comes back.
        """
        seconds = self._seconds
        while seconds and seconds[0] not in self._buckets:
            heapq.heappop(seconds)
        if not seconds or seconds[0] - 1 >= now:
            self.soonest = seconds[0] - 1 if seconds else inf
            return []
        second = seconds[0]
        bucket = self._buckets[second]
        if second > now:
            return self._due_in_part(second, bucket, now, limit)
        if len(bucket) <= limit:
            del self._buckets[second]
            return list(bucket)
        # popitem() goes on where it left off; walking from the start would be quadratic.
        take = bucket.popitem
        return [take()[0] for _ in range(limit)]

    def _due_in_part(self, second: int, bucket: dict[E, None], now: float, limit: int) -> list[E]:
        """Take out what is due in a second that is half gone, unless it is crowded."""
        if len(bucket) > PARTIAL:
            self.soonest = second
            return []
        found = [entry for entry in bucket if entry.deadline <= now][:limit]
        if len(found) < limit:
            later = (entry.deadline for entry in bucket if entry.deadline > now)
            self.soonest = min(later, default=second)
        if len(found) == len(bucket):
            self._forget(second)
        elif found:
            # Anew, or the next look would step over the places of all that ever left.
            taken = set(found)
            self._buckets[second] = {entry: None for entry in bucket if entry not in taken}
        return found

    def _forget(self, second: int) -> None:
        """Drop an emptied bucket."""
        del self._buckets[second]
        if len(self._seconds) > 2 * len(self._buckets) + 64:
            self._seconds = list(self._buckets)
            heapq.heapify(self._seconds)

    def count_due(
        self, now: float, work: float = inf, holds: Callable[[E], bool] | None = None
    ) -> int:
        """Return how many entries are past their deadline; of those that it *holds*, if given.

        With *work*, look at about so many seconds and entries, and count the
        others as not due.

        Complexity: O(seconds that are due + entries of the one that is due in part);
        with *holds*, O(entries that are due).
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
            if bucket is None or second in counted:
                continue
            counted.add(second)
            if second <= now and holds is None:
                total += len(bucket)
            elif len(bucket) <= work:
                work -= len(bucket)
                due = [entry for entry in bucket if entry.deadline <= now]
                total += len(due) if holds is None else sum(map(holds, due))
        return total

    def __iter__(self) -> Iterator[E]:
        for bucket in self._buckets.values():
            yield from bucket

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def spoils(self) -> dict[int, dict[E, None]]:
        """Return the containers themselves, to be emptied in slices once this index is replaced."""
        return self._buckets

    def check(self) -> None:
        """Raise AssertionError unless every bucket is sound and can be found."""
        named = set(self._seconds)
        for second, bucket in self._buckets.items():
            if not bucket or second not in named:
                raise AssertionError("broken invariant of the expiry index: a lost or empty bucket")
            if self.soonest > second:
                raise AssertionError("broken invariant of the expiry index: found too late")
            for entry in bucket:
                if not second - 1 < entry.deadline <= second:
                    raise AssertionError("broken invariant of the expiry index: a deadline outside")
