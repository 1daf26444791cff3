"""How long a key that fails is left alone: twice as long after each failure in a row.

    failures in a row   1      2      3  ...  6 and more
    seconds         first  2 first  4 first  32 first      each shortened by up to a tenth

Chance only shortens: what is stated is the longest wait. It parts keys that failed
together, so that they do not come back together.

Source: exponential backoff of Ethernet (Metcalfe, Boggs 1976), truncated, with jitter.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from datetime import timedelta
from math import inf
from typing import Final, Generic, TypeVar, final

from .options import check_seconds

__all__ = ["Backoffs", "delay"]

DOUBLINGS: Final = 5
"""A delay grows to 2 ** 5 = 32 times the first one."""

CHANCE: Final = 0.1
"""How much of a delay chance may cut off."""

K = TypeVar("K", bound=Hashable)


def delay(first: float, failures: int, random: Callable[[], float] = random.random) -> float:
    """Return the seconds to wait after so many *failures* in a row; 0 after none.

    Args:
        first: Seconds after the first one, at most.
        failures: In a row.
        random: Returns a number from 0 to below 1.
    """
    if failures < 1:
        return 0.0
    return first * 2.0 ** min(failures - 1, DOUBLINGS) * (1 - CHANCE * random())


@final
class Backoffs(Generic[K]):
    """The keys that fail, and when each may be tried again. Its owner guards it.

    A key that is forgotten, as the one whose last failure is the oldest when there are
    too many, may be tried at once. Every method O(1).

    Args:
        first: Seconds (or timedelta) after a first failure; 0: no key ever waits.
        limit: Keys that are remembered.
        random: Returns a number from 0 to below 1.
    """

    __slots__ = ("_failing", "_random", "first", "limit")

    def __init__(
        self,
        first: float | timedelta,
        *,
        limit: int = 10_000,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.first = check_seconds("first", first, zero=True)
        self.limit = limit
        self._random = random
        # Failures in a row and the time of the next try; oldest failure first, bounded by limit.
        self._failing: OrderedDict[K, tuple[int, float]] = OrderedDict()

    def failed(self, key: K, now: float) -> float:
        """Note that *key* failed *now*, and return when it may be tried again."""
        failures = self.failures(key) + 1
        again = now + delay(self.first, failures, self._random)
        self._failing[key] = (failures, again)
        self._failing.move_to_end(key)
        if len(self._failing) > self.limit:
            self._failing.popitem(last=False)
        return again

    def succeeded(self, key: K) -> None:
        """Forget the failures of *key*."""
        self._failing.pop(key, None)

    def ready(self, key: K, now: float) -> bool:
        """Tell whether *key* may be tried *now*."""
        return now >= self._failing.get(key, (0, -inf))[1]

    def failures(self, key: K) -> int:
        """Return how often *key* failed in a row."""
        return self._failing.get(key, (0, -inf))[0]

    def __len__(self) -> int:
        return len(self._failing)
