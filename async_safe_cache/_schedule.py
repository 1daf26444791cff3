"""When something is due: every so many seconds, or at times of day.

`Every` counts in the seconds of a monotonic clock, `At` in moments of a wall clock.
A time of day means one moment of each day, whatever the zone does on it:

    exists once     that moment
    exists twice    the first of them           (clocks go back)
    does not exist  the first one after the gap (clocks go forward)

Source: PEP 495, by whose `fold` a local time is told to be in a gap.
"""

import random
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any, Final, final

from .options import check_fraction, check_seconds

__all__ = ["At", "Every"]

DAY: Final = timedelta(days=1)
SECOND: Final = timedelta(seconds=1)

TimeOfDay = str | time
"""HH:MM or HH:MM:SS; or a datetime.time, meant in its own zone if it has one."""

_MEANING: Final = 'times of day from 00:00 to 23:59:59, each "HH:MM", "HH:MM:SS" or a datetime.time'


@final
class Every:
    """Due again and again.

    Args:
        seconds: Between two times, above 0; or a timedelta.
        jitter: Shortens them by up to this fraction, at random; never lengthens them.
        random: Returns a number from 0 to below 1.

    Raises:
        TypeError: An argument is of a type that it cannot have.
        ValueError: An argument is outside its range.
    """

    __slots__ = ("_random", "jitter", "seconds")

    def __init__(
        self,
        seconds: float | timedelta,
        jitter: float = 0.0,
        *,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.seconds = check_seconds("every", seconds)
        self.jitter = check_fraction("jitter", jitter, "how much of every chance may cut off")
        self._random = random

    def next(self, now: float) -> float:
        """Return the clock's time that is due after *now*."""
        return now + self.seconds * (1 - self.jitter * self._random())


@final
class At:
    """Due at times of day, each once a day.

    Args:
        times: One or several, as "HH:MM", "HH:MM:SS" or datetime.time. A time with a zone is
            meant there, any other in the zone of the wall clock that is given to `next`.

    Raises:
        TypeError: *times* is of a type that it cannot have.
        ValueError: There is none, or one is no time of day.
    """

    __slots__ = ("times",)

    def __init__(self, times: TimeOfDay | Sequence[TimeOfDay]) -> None:
        several: Any = (times,) if isinstance(times, (str, time)) else times
        if not isinstance(several, Sequence):
            raise TypeError(f"at must be {_MEANING}, not {type(times).__name__}")
        if not several:
            raise ValueError(f"at={times!r} must be {_MEANING}, and one at least")
        # Not each once: 09:00 in Berlin and 09:00 in Tokyo are equal to Python.
        given: Sequence[object] = several  # pyright: ignore[reportUnknownVariableType]
        self.times = tuple(map(_time_of_day, given))

    def next(self, wall: datetime) -> datetime:
        """Return the first moment after *wall* that is due, in UTC.

        In UTC, because in any other zone `later - earlier` is what the clock shows, not the
        hours that pass while it is put forward or back. So the time to wait is
        `at.next(wall) - wall` (`- wall.astimezone()` where *wall* has no zone).

        Args:
            wall: The time now; without a zone it is this machine's local time.

        Complexity: O(times).
        """
        now = wall.astimezone(UTC)
        return min(_next(now, each, each.tzinfo or wall.tzinfo) for each in self.times)


def _time_of_day(value: object) -> time:
    if isinstance(value, time):
        return value
    if not isinstance(value, str):
        raise TypeError(f"at must be {_MEANING}; one of them is of type {type(value).__name__}")
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?", value, re.ASCII):
        raise ValueError(f"at={value!r} must be {_MEANING}")
    return time.fromisoformat(value)


def _next(now: datetime, at: time, zone: tzinfo | None) -> datetime:
    """Return the first moment after *now* at which it is *at* in *zone*."""
    day = now.astimezone(zone).date()
    while (moment := _moment(datetime.combine(day, at.replace(tzinfo=None)), zone)) <= now:
        day += DAY
    return moment


def _moment(local: datetime, zone: tzinfo | None) -> datetime:
    """Return when it is *local*, which has no zone, in *zone*."""

    def shown(moment: datetime) -> datetime:
        return moment.astimezone(zone).replace(tzinfo=None)

    folds = [local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
    if shown(folds[0]) == local:
        return folds[0]
    # In a gap: one was counted by the offset before it, which is too late, and one by the
    # offset after it, which is too early. Transitions are at whole seconds.
    early, late = (each.replace(microsecond=0) for each in sorted(folds))
    while late - early > SECOND:
        middle = early + (late - early) // 2 // SECOND * SECOND
        early, late = (early, middle) if shown(middle) > local else (middle, late)
    return late
