"""Predictive warming: what is likely to be read next is loaded before it is.

Of every read the one before it, in the same task or thread, is looked up: a sequence that
mixes many users' says nothing. What follows often is asked for, if it is not fresh.

    read    learn (before -> this); judge the predictions of this; predict what follows

Off unless asked for: each hit then costs a call more.
"""

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, final

from ._entries import Entry
from ._marks import Place
from ._successors import Scores, Successors

__all__ = ["Predictor"]

_last: ContextVar[tuple[object, Place] | None] = ContextVar(
    "async_safe_cache_last_read", default=None
)
"""Which predictor saw which read last, in this context."""


@final
class Predictor:
    """Learns which calls follow which, and asks for the likely ones.

    Args:
        ask: Called with the place of what is likely to be read next.
        clock: Returns the cache's time.
        lock: The store's, which is held over a fork: a child never finds it taken.
        states: Calls whose successors are remembered.
        least: Probability from which a successor is asked for.
        limit: Successors that are asked for after one read.
    """

    def __init__(
        self,
        ask: Callable[[Place], object],
        clock: Callable[[], float],
        lock: "threading.RLock",
        *,
        states: int,
        least: float,
        limit: int,
    ) -> None:
        self.model: Successors[Any] = Successors(states=states)
        self.scores = Scores()
        self._ask = ask
        self._clock = clock
        self._least = least
        self._limit = limit
        self._lock = lock
        self._reading = False

    def hit(self, entry: Entry) -> None:
        """See a hit; called by the compiled wrapper."""
        now = self._clock()
        with self._lock:
            self.read((entry.space, entry.key), True, now)

    def read(self, place: Place, hit: bool, now: float) -> None:
        """Locked. See a read of *place*. Runs no user code."""
        if self._reading:
            return  # a finaliser's, in the middle of another one
        self._reading = True
        try:
            before = _last.get()
            _last.set((self, place))
            if before is not None and before[0] is self:
                self.model.learn(before[1], place)
            useful = self.scores.read(place)
            if not hit and not useful:
                self.scores.missed()
            likely = self.model.likely(place, least=self._least, limit=self._limit)
            for state, _ in likely:
                if not _fresh(state, now):
                    self.scores.predicted(state)
                    self._ask(state)
        finally:
            self._reading = False

    def report(self) -> dict[str, object]:
        """Return how good the predictions are, JSON-ready."""
        with self._lock:
            return {**self.scores.as_dict(), "states": len(self.model)}


def _fresh(place: Place, now: float) -> bool:
    space, key = place
    entry = space.data.get(key)
    return entry is not None and entry.deadline > now
