"""Predictive warming: what is likely to be read next is loaded before it is.

Of every read the one before it, in the same task or thread, is looked up: a sequence that
mixes many users' says nothing. What follows often is asked for, if it is not fresh.

    read    learn (before -> this); judge the predictions of this; predict what follows

Off unless asked for: each hit then costs a call more.
"""

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, final

from ._entries import Entry
from ._fork import inherit
from ._marks import Place
from ._successors import Scores, Successors

__all__ = ["Predictor"]

PATIENCE: Final = 0.1
"""Seconds that a report waits for reads, which take microseconds to be learned from."""

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
        states: Calls whose successors are remembered.
        least: Probability from which a successor is asked for.
        limit: Successors that are asked for after one read.
    """

    def __init__(
        self,
        ask: Callable[[Place], object],
        clock: Callable[[], float],
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
        self._reported: dict[str, object] = {**self.scores.as_dict(), "states": 0}
        self._lock = threading.Lock()
        inherit(self._forked, self._lock)

    def hit(self, entry: Entry) -> None:
        """See a hit; called by the compiled wrapper."""
        self.read((entry.space, entry.key), True, self._clock())

    def read(self, place: Place, hit: bool, now: float) -> None:
        """See a read of *place*. Runs no user code: it may be called under the store's lock."""
        before = _last.get()
        _last.set((self, place))
        # Not waited for: this may be a finaliser in the middle of a read of its own thread.
        if not self._lock.acquire(blocking=False):
            return
        try:
            if before is not None and before[0] is self:
                self.model.learn(before[1], place)
            useful = self.scores.read(place)
            if not hit and not useful:
                self.scores.missed()
            likely = self.model.likely(place, least=self._least, limit=self._limit)
            wanted = [state for state, _ in likely if not _fresh(state, now)]
            for state in wanted:
                self.scores.predicted(state)
        finally:
            self._lock.release()
        for state in wanted:
            self._ask(state)

    def report(self) -> dict[str, object]:
        """Return how good the predictions are, JSON-ready; what was told last if they are busy."""
        if self._lock.acquire(timeout=PATIENCE):
            try:
                self._reported = {**self.scores.as_dict(), "states": len(self.model)}
            finally:
                self._lock.release()
        return dict(self._reported)

    def _forked(self, torn: bool) -> tuple[object, ...]:
        """Forget, in a forked child, what another thread had half learned."""
        if torn:
            self.model.clear()
            self.scores = Scores()
        return ()


def _fresh(place: Place, now: float) -> bool:
    space, key = place
    entry = space.data.get(key)
    return entry is not None and entry.deadline > now
