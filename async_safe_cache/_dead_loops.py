"""Loads whose event loop died, and those who wait for them elsewhere.

A loop is dead when it is closed, or did not run for a whole second. Nobody says
so: who waits in another loop, or blocks a thread, looks once a second; who waits
in the load's own loop stands still with it, and needs no look.

    look     not running? -> leave a callback in that loop; still there at the next look?
             then it did not run in between: dead
    bury     end every flight of that loop, cancel their tasks should it ever run
             again, wake all who wait: they ask again, and one of them loads

The second is one of the looker's own time: a virtual one in a loop of virtual time.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import Context
from typing import Final, final

from ._flights import Flight, Flights, Loop, ThreadWaiter, wake

__all__ = ["Guards", "Pulse"]

LOOK: Final = 1.0
"""Seconds between two looks: how long a loop must stand still to be dead."""


@final
class Pulse:
    """Tells whether one loop ran since the last look."""

    __slots__ = ("_still", "loop")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._still = False

    def stopped(self) -> bool:
        """Look: tell whether the loop is closed, or stood still since the last look."""
        if self.loop.is_running():
            self._still = False
        elif self._still:
            return True
        else:
            self._still = True
            try:
                # A loop that runs only now and then proves by this that it lives.
                self.loop.call_soon_threadsafe(self._beat, context=Context())
            except RuntimeError:
                return True  # closed
        return False

    def _beat(self) -> None:
        self._still = False


@final
class _Guard:
    """Looks after one flight for all who wait for it in one other loop: one timer."""

    __slots__ = ("_bury", "_loop", "_pulse", "_timer", "waiting")

    def __init__(self, owner: Loop, loop: Loop, bury: Callable[[Loop], None]) -> None:
        self.waiting = 0
        self._pulse = Pulse(owner)
        self._loop = loop
        self._bury = bury
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        if self._pulse.stopped():
            self._bury(self._pulse.loop)
        else:
            # A context of its own: a timer pins no request.
            self._timer = self._loop.call_later(LOOK, self.look, context=Context())

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


@final
class Guards:
    """The looks of one cache."""

    def __init__(self, flights: Flights, lock: "threading.RLock") -> None:
        self._flights = flights
        self._lock = lock
        self._guards: dict[tuple[Flight, Loop], _Guard] = {}  # bounded by the waiters

    @contextmanager
    def guarding(self, flight: Flight, loop: Loop) -> Generator[None, None, None]:
        """Look after *flight* as long as the caller waits for it in *loop*, another one.

        All of this runs in the thread of *loop*: no lock.
        """
        if flight.loop is None:
            yield  # it runs in a thread, which ends with the process
            return
        place = flight, loop
        guard = self._guards.get(place)
        if guard is None:
            guard = self._guards[place] = _Guard(flight.loop, loop, self.bury)
            guard.look()
        guard.waiting += 1
        try:
            yield
        finally:
            guard.waiting -= 1
            if not guard.waiting:
                guard.end()
                self._guards.pop(place, None)

    def wait_here(self, flight: Flight, waiter: ThreadWaiter, seconds: float = math.inf) -> None:
        """Block this thread until *waiter* is woken, at most *seconds*, and look after *flight*."""
        pulse = None if flight.loop is None else Pulse(flight.loop)
        if pulse is not None and pulse.stopped():
            self.bury(pulse.loop)
        while pulse is not None and seconds > LOOK:
            if waiter.wait(LOOK):
                return
            seconds -= LOOK
            if pulse.stopped():
                self.bury(pulse.loop)
        waiter.wait(-1 if seconds == math.inf else min(seconds, threading.TIMEOUT_MAX))

    def glance(self, flight: Flight, now: float) -> bool:
        """Locked. Tell whether the loop of *flight* is dead, for one who does not wait for it.

        The first one looks, and who comes a second later looks again; then it is buried.
        """
        if flight.loop is None:
            return False
        if flight.pulse is None:
            flight.pulse, flight.looked = Pulse(flight.loop), -math.inf
        if now < flight.looked + LOOK:
            return False
        flight.looked = now
        if not flight.pulse.stopped():
            return False
        self.bury(flight.loop)
        return True

    def bury(self, loop: Loop) -> None:
        """End every flight of *loop*, which is dead, and wake who waits for them. O(flights)."""
        with self._lock:
            waiting, tasks = self._flights.bury(loop)
        for task in tasks:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:
                break  # it is closed: they can never run again
        wake(waiting, None)

    def bury_closed(self) -> None:
        """Do so for every loop that is closed. O(flights)."""
        with self._lock:
            closed = {
                flight.loop
                for flight in self._flights.running
                if flight.loop is not None and flight.loop.is_closed()
            }
        for loop in closed:
            self.bury(loop)

    def forget(self) -> None:
        """Look after nothing any more: in a forked child nobody waits."""
        self._guards = {}
