"""What the two kinds of locks share: how long was waited, and who must not wait.

A load never waits for a read section: callers wait for it, and one of them may hold
the section. So what asks here is whether this code is part of a load that goes on.
"""

from collections.abc import Iterable
from typing import final

from ._flights import current_flight

__all__ = ["Waits", "part_of_a_load", "summary"]


@final
class Waits:
    """How often and how long was waited for locks; whoever owns it guards it.

    Attributes:
        count: Waits that ended, in whatever way.
        total: Seconds of all of them.
        longest: Seconds of the longest one.
    """

    __slots__ = ("count", "longest", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Locked. Count one wait."""
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)


def summary(several: Iterable[Waits]) -> tuple[int, float, float]:
    """Return count, total and longest of *several* together."""
    each = list(several)
    count, total = sum(one.count for one in each), sum(one.total for one in each)
    return count, total, max(one.longest for one in each)


def part_of_a_load() -> bool:
    """Tell whether this code is part of a load that has not ended."""
    flight = current_flight.get()
    return flight is not None and not flight.done
