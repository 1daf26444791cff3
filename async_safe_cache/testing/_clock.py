"""A clock that moves when told: seconds pass only by `advance`, or by a loop that jumps."""

import math
from typing import final

__all__ = ["FakeClock"]


@final
class FakeClock:
    """Monotonic seconds for tests, to be given as `clock=` to a cache.

    Attributes:
        now: The present moment, in seconds.
    """

    __slots__ = ("now",)

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the present moment, in seconds."""
        return self.now

    def __repr__(self) -> str:
        return f"<FakeClock at {self.now:g} s>"

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass.

        Raises:
            ValueError: *seconds* is negative, infinite or NaN: a monotonic clock does neither.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"advance({seconds!r}): a monotonic clock moves forward, by seconds")
        self.now += seconds
