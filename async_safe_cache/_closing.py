"""The end of a cache, or of one function in it: answer waiters, end loads, free memory.

    open -> draining (with drain=True) -> closed -> open again

Closing is decided in one step that cannot be interrupted; only waiting for what
must end, and freeing memory in slices, awaits.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, final

from ._engine import Engine, State, cancel
from ._flights import (
    Failure,
    Flight,
    Loop,
    Outcome,
    ThreadWaiter,
    Waiter,
    current_flight,
    release,
    wake,
)
from .errors import CacheClosedError

__all__ = ["Closing", "emptied"]

SLICE: Final = 1_000
"""Members of a cleared container, or cleared entries, freed between two turns of the loop."""

_FOR_EVER: Final = 1e9  # seconds; a loop cannot wait until infinity


@final
class Closing:
    """The life of one cache's engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.flights = engine.flights
        self._lock = engine.store.lock

    def reopen(self) -> None:
        """Admit callers."""
        with self._lock:
            self.engine.state = State.OPEN

    def shut(self, *, drain: bool) -> None:
        """Admit nobody any more."""
        with self._lock:
            if self.engine.state is State.OPEN:
                self.engine.state = State.DRAINING if drain else State.CLOSED

    def finish(self) -> list[Any]:
        """Close for good, unless reopened meanwhile; return what is to be freed in slices."""
        with self._lock:
            if self.engine.state is State.OPEN:
                return []
            # One step: a load that lands later finds neither its flight nor an open cache.
            self.engine.state = State.CLOSED
            flights = list(self.flights.running)
            waiting = [self.flights.dismiss(flight) for flight in flights]
            wreck = self.engine.store.clear(-math.inf)
            self.engine.store.forget_removals()
        self._answer(flights, waiting, self.engine.name)
        return wreck

    async def workers_ended(self, deadline: float) -> None:
        """Wait until the cache's own threads are gone, not only their loads."""
        loop = asyncio.get_running_loop()
        alive = self.engine.workers
        # Their loads have ended, so this is over in a turn or two; a thread tells no loop.
        while alive and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def dismiss(self, flights: Callable[[], Iterable[Flight]], name: str) -> None:
        """Answer the waiters of *flights* with CacheClosedError and cancel the loads."""
        with self._lock:
            chosen = list(flights())
            waiting = [self.flights.dismiss(flight) for flight in chosen]
        self._answer(chosen, waiting, name)

    def _answer(
        self, flights: list[Flight], waiting: list[dict[Waiter, Loop | None]], name: str
    ) -> None:
        if any(waiting):
            failure = Failure(CacheClosedError(name), None)
            outcome = Outcome(None, failure, self.engine.moment_or_none())
            for each in waiting:
                wake(each, outcome)
        cancel(flights)

    async def ended(
        self, flights: Callable[[], Iterable[Flight]], deadline: float, *, threads: bool
    ) -> bool:
        """Wait until *flights* have ended; False when the loop's time reached *deadline* first.

        Complexity: O(flights) for each that ends. Loads in threads of the
        user's own are waited for with *threads* only: nobody can cancel them.
        """
        loop = asyncio.get_running_loop()
        current = current_flight.get()
        while True:
            waiter: asyncio.Future[Outcome | None] = loop.create_future()
            with self._lock:
                ours = {thread.ident for thread in self.engine.workers}
                pending = next(
                    (
                        flight
                        for flight in flights()
                        if flight is not current
                        and (threads or flight.loop is not None or flight.thread in ours)
                    ),
                    None,
                )
                if pending is None:
                    return True
                self.flights.watch(pending, waiter, loop)
            timer = loop.call_at(min(deadline, loop.time() + _FOR_EVER), release, waiter)
            try:
                with self.engine.guards.guarding(pending, loop):
                    await waiter
            finally:
                timer.cancel()
                self._unwatch(pending, waiter)
            if loop.time() >= deadline:
                return False

    def ended_here(self, flights: Callable[[], Iterable[Flight]]) -> None:
        """Block until *flights* have ended, but for those of this very thread."""
        while True:
            waiter = ThreadWaiter()
            with self._lock:
                me = threading.get_ident()
                pending = next((flight for flight in flights() if flight.thread != me), None)
                if pending is None:
                    return
                self.flights.watch(pending, waiter, None)
            try:
                self.engine.guards.wait_here(pending, waiter)
            finally:
                self._unwatch(pending, waiter)

    def _unwatch(self, flight: Flight, waiter: Waiter) -> None:
        with self._lock:
            self.flights.leave(flight, waiter)


async def emptied(wreck: list[Any], bury: Callable[[int], bool]) -> None:
    """Free what was cleared in slices, so that no turn of the loop takes long."""
    while bury(SLICE):  # noqa: ASYNC110 - not waiting: working
        await asyncio.sleep(0)
    budget = SLICE
    while wreck:
        container = wreck.pop()
        while container:
            _, part = container.popitem()
            if part is not None:
                wreck.append(part)  # a container of containers
            budget -= 1
            if not budget:
                await asyncio.sleep(0)
                budget = SLICE
