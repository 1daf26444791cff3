"""Single flight: many callers of one key, one running load.

A *flight* is one running load of one key. The registry maps a key to the
flight that callers may join **now**:

    join   the registry holds a running flight -> wait with a waiter of your own
    fence  an invalidation takes it out        -> it answers its waiters, nothing is stored
    land   the registry holds *this* flight    -> take it out, store; otherwise only answer
    leave  the last waiter is gone             -> cancel it; it stays registered while it
                                                  cleans up, and nobody may join it

The flights of one load of many keys are a `Group`: one task runs them, and it is
cancelled when nobody needs any of them.

A waiter belongs to one caller: an asyncio future of the caller's own loop, what acts
like one, or a `ThreadWaiter`. It receives one `Outcome`, and the caller raises from it, so no
future ever carries an exception that somebody must retrieve.

The methods marked *locked* are called with the owner's lock held; they decide
and return what is to be done outside. Nothing here awaits.

Source: golang.org/x/sync/singleflight (`if g.m[key] == c` before delete).
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from itertools import islice
from types import TracebackType
from typing import Any, Final, NoReturn, Protocol, final

from ._twin import twin

__all__ = [
    "Failure",
    "Flight",
    "Flights",
    "Group",
    "Outcome",
    "Place",
    "ThreadWaiter",
    "Waiter",
    "current_flight",
    "release",
    "running_loop",
    "wake",
]

Loop = asyncio.AbstractEventLoop

Place = tuple[Any, Any]
"""What a flight is registered under: a namespace, by identity, and a key in it."""

_set_traceback: Final = BaseException.with_traceback
# The descriptors themselves: a class may forbid setting attributes on its exceptions.
_context: Final = BaseException.__dict__["__context__"]
_cause: Final = BaseException.__dict__["__cause__"]
_suppress: Final = BaseException.__dict__["__suppress_context__"]


@final
class Failure:
    """An exception as it was when its load ended; raised once per waiter.

    The object is the loader's own. Each raise first restores what Python adds
    to a raised exception, so nothing grows and no caller's frames reach another.
    """

    __slots__ = ("_cause", "_context", "_remembered", "_suppress", "_traceback", "error")

    def __init__(self, error: BaseException, traceback: TracebackType | None) -> None:
        self.error = error
        self._remembered = False
        self._traceback = traceback
        self._context = error.__context__
        self._cause = error.__cause__
        self._suppress = error.__suppress_context__
        _set_traceback(error, traceback)

    def throw(self) -> NoReturn:
        """Raise the exception, or a twin of a remembered one."""
        error = twin(self.error) if self._remembered else self.error
        _set_traceback(error, self._traceback)
        _context.__set__(error, self._context)
        if not self._remembered:
            _cause.__set__(error, self._cause)
        _suppress.__set__(error, self._suppress)
        try:
            raise error
        finally:
            # This frame becomes part of the traceback: it must not hold what holds the traceback.
            del self, error

    def remembered(self) -> "Failure":
        """Return an equal failure to be kept for a while, which holds no frames."""
        kept = Failure(twin(self.error), None)
        kept._context = None
        kept._remembered = True
        return kept


@final
class Outcome:
    """What a flight ended with: a value, or a failure; and when, if the clock told."""

    __slots__ = ("ended", "failure", "value")

    def __init__(self, value: object, failure: Failure | None, ended: float | None) -> None:
        self.value = value
        self.failure = failure
        self.ended = ended


@final
class ThreadWaiter:
    """Waits in a thread, as a future waits in a loop."""

    __slots__ = ("_lock", "outcome")

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float = -1) -> bool:
        """Block until woken; False when *timeout* seconds passed first."""
        return self._lock.acquire(timeout=timeout)

    def set(self, outcome: Outcome | None) -> None:
        """Wake the thread, once."""
        self.outcome = outcome
        self._lock.release()


class LoopWaiter(Protocol):
    """What is asked of who waits in a loop: an asyncio future is one."""

    def done(self) -> bool:
        """Tell whether it needs no answer any more."""
        ...

    def set_result(self, outcome: Outcome | None, /) -> None:
        """Answer it, in its own loop, once."""
        ...

    def cancel(self) -> object:
        """Cancel its caller."""
        ...


Waiter = LoopWaiter | ThreadWaiter

_NOBODY: Final[dict[Any, Any]] = {}  # stands for an empty dict of a flight; nothing gets in


@final
class Flight:
    """One running load.

    What few flights need is a default of the class: a flight is made for every miss.

    Attributes:
        key: What it is registered under.
        name: Of the function or cache, for messages.
        loop: Where its task runs; None for a load in a thread.
        load: What is to be loaded and how, for whoever opened it.
        keep: Whether it goes on when its last waiter leaves.
        depth: Loads that started each other down to this one.
        refresh: Whether it was opened by a refresh, which no call waits for.
        heat: Reads that its value is worth, if nobody waits for it who would read it: it is
            not stored in the place of one that is read more. None: somebody reads it.
        begun: When it was opened.
        told: What its loader is told and may say, if it asks for that.
        alarm: What ends it when it takes too long.
        timed_out: Its waiters were told that it took too long.
        waiters: Who waits for the outcome, and in which loop: to join is to be here.
            Bounded by the callers.
        watchers: Who waits for the clean-up. Bounded by the callers.
        waits_on: Flights that this load waits for itself, by waiter.
        marks: What is to be stored besides the value, if anything.
        link: What that value depends on; its entry takes it over.
        generation: When it began, for those that have marks.
        fenced: An invalidation came; the result must not be stored.
        cancelling: It is being cancelled; nobody may join.
        pulse: Tells who does not wait for it whether its loop is alive, as of `looked`.
        outcome: What it ended with, while those who wait are yet to be told.
        group: Of the flights that end with it, if its task runs many.
        done: It answered, or was given up.
    """

    task: "asyncio.Task[None] | None" = None
    thread: int | None = None
    load: Any = None
    marks: Any = None
    link: Any = None
    generation = 0
    depth = 0
    refresh = False
    heat: float | None = None
    begun = 0.0
    told: Any = None
    alarm: "asyncio.TimerHandle | None" = None
    timed_out = False
    keep = False
    fenced = False
    cancelling = False
    done = False
    pulse: Any = None
    looked = 0.0
    outcome: "Outcome | None" = None
    group: "Group | None" = None
    watchers: "dict[Waiter, Loop | None]" = _NOBODY
    waits_on: "dict[Waiter, Flight]" = _NOBODY

    def __init__(self, key: Place, name: str, loop: Loop | None) -> None:
        self.key = key
        self.name = name
        self.loop = loop
        self.waiters: dict[Waiter, Loop | None] = {}

    def __repr__(self) -> str:
        states = ("done", "cancelling", "fenced")
        state = next((state for state in states if getattr(self, state)), "running")
        return f"<Flight of {self.name}, {state}, {len(self.waiters)} waiters>"

    def seconds(self, now: float | None) -> float | None:
        """Return how long it took until *now*, if that is known."""
        return None if now is None else max(0.0, now - self.begun)

    def wait_for(self, flight: "Flight", waiter: Waiter) -> None:
        """Locked. Note that this load waits for *flight*, until `waits_on` forgets *waiter*."""
        if self.waits_on is _NOBODY:
            self.waits_on = {}
        self.waits_on[waiter] = flight

    def cancel(self) -> None:
        """Ask the load's task to end; from any thread, outside the lock."""
        task, loop = self.task, self.loop
        if task is None or loop is None:
            return
        if self.group is not None and not self.group.may_cancel():
            return
        if loop is running_loop():
            task.cancel()
            return
        try:
            loop.call_soon_threadsafe(task.cancel)
        except RuntimeError:
            pass  # its loop is closed: the task can never run again


@final
class Group:
    """Flights of one load of many keys: one task runs them all.

    A flight that nobody waits for stays as it is, and may be joined, as long as
    somebody needs another one: its value comes anyhow.

    Attributes:
        members: The one found to be needed last in front. Bounded by the caller's keys.
        waits_on: What the load waits for itself, in all its flights the same dict.
        counters: Where the load was counted, once for all its keys.
        failed: Its failure was counted, or that of some of its values.
        stopping: Nobody needs any of them: they are being cancelled.
    """

    __slots__ = ("_asked", "counters", "failed", "members", "stopping", "waits_on")

    def __init__(self) -> None:
        self.members: deque[Flight] = deque()
        self.waits_on: dict[Waiter, Flight] = {}
        self.counters: Any = None
        self.failed = False
        self.stopping = False
        self._asked = False

    def add(self, flight: Flight) -> None:
        """Locked. Let *flight* be one of them."""
        flight.group = self
        flight.waits_on = self.waits_on
        self.members.append(flight)

    def count(self, counters: Any, *, failed: bool) -> None:
        """Locked. Count the load in *counters*, and its failure, unless that was done."""
        if self.counters is None:
            self.counters = counters
            counters.loads += 1
        if failed and not self.failed:
            self.failed = True
            self.counters.load_errors += 1

    def needed(self) -> bool:
        """Locked. Tell whether anybody needs any of them. O(1) amortised, while they are left."""
        members = self.members
        for _ in range(len(members)):
            first = members[0]
            waited_for = first.waiters or (first.keep and not first.fenced)
            if waited_for and not first.cancelling:
                return True
            members.rotate(-1)
        return False

    def abandoned(self) -> bool:
        """Locked. Tell whether nobody needs them; from then on they are being cancelled."""
        if self.stopping or self.needed():
            return False
        self.stopping = True
        for flight in self.members:
            flight.cancelling = True
        return True

    def may_cancel(self) -> bool:
        """Tell whether its task is to be cancelled now: once, and not for one key alone."""
        if self._asked or not self.stopping:
            return False
        self._asked = True
        return True


current_flight: ContextVar[Flight | None] = ContextVar("async_safe_cache_flight", default=None)
"""The load that this code is part of, inherited by the tasks it starts."""


@final
class Flights:
    """The futures registry of one cache. Complexity: O(1) each, unless said otherwise."""

    def __init__(self, unlink: Callable[[Any], object]) -> None:
        self._unlink = unlink  # lets go of what a flight depended on
        self._registry: dict[Place, Flight] = {}  # bounded by the running loads
        self._apart: dict[Place, Flight] = {}  # likewise
        self.running: dict[Flight, None] = {}  # every load not ended, fenced ones too
        self.overlapping = 0
        self.hung = 0  # of those running: were told to end because they took too long

    def get(self, key: Place, here: Loop | None) -> Flight | None:
        """Locked. Return the flight registered for *key*, which may be cancelling.

        *here* is the loop of the caller: it is not closed.
        """
        flight = self._registry.get(key)
        if flight is None or flight.loop is here:
            return flight
        if flight.loop is not None and flight.loop.is_closed():
            # Its loop died without ending its tasks: whoever waits loads for himself.
            wake(self.bury(flight.loop)[0], None)
            return None
        return flight

    def open(self, key: Place, name: str, loop: Loop | None) -> Flight:
        """Locked. Register a new flight; none may be registered for *key*.

        Until it has a task or a thread, nobody cancels it.
        """
        if self._apart:
            self._apart.pop(key, None)
        self._registry[key] = flight = Flight(key, name, loop)
        self.running[flight] = None
        return flight

    def open_alone(self, key: Place, name: str, loop: Loop | None) -> Flight:
        """Locked. Return a new flight that is not registered.

        Nobody joins it, and it stores nothing, as if it had been fenced at once.
        """
        flight = Flight(key, name, loop)
        flight.fenced = True
        self.running[flight] = None
        return flight

    def watch(self, flight: Flight, waiter: Waiter, loop: Loop | None) -> None:
        """Locked. Add *waiter* to those who wait until *flight* is out of the way."""
        if flight.watchers is _NOBODY:
            flight.watchers = {}
        flight.watchers[waiter] = loop

    def leave(self, flight: Flight, waiter: Waiter) -> Flight | None:
        """Locked. Take *waiter* out; return the flight if it must now be cancelled."""
        flight.watchers.pop(waiter, None)
        if flight.waiters.pop(waiter, flight) is flight or flight.waiters or flight.done:
            return None
        if flight.cancelling or (flight.keep and not flight.fenced):
            return None
        if flight.group is not None:
            return flight if flight.group.abandoned() else None
        flight.cancelling = flight.task is not None
        return flight

    def fence(self, key: Place) -> tuple[bool, Flight | None]:
        """Locked. Shut out the load of *key*.

        Returns whether there was one, and the flight if nobody waits for it
        any more, to be cancelled. One that is being cancelled stays: it stores
        nothing, and newcomers must wait for its clean-up.
        """
        apart = self._apart.pop(key, None) if self._apart else None
        if apart is not None:
            apart.fenced = True
        flight = self._registry.get(key)
        if flight is None or flight.cancelling:
            return apart is not None, None
        del self._registry[key]
        flight.fenced = True
        if flight.waiters or flight.task is None:
            return True, None
        if flight.group is not None:
            return True, flight if flight.group.abandoned() else None
        flight.cancelling = True
        return True, flight

    def set_apart(self, key: Place) -> None:
        """Locked. Let nobody join the load of *key* any more; it may still be stored.

        Unless the key is fenced, or loaded again, before it ends.
        """
        flight = self._registry.get(key)
        if flight is not None and not flight.cancelling:
            del self._registry[key]
            self._apart[key] = flight

    def registered(self) -> list[Place]:
        """Locked. Return the keys with a flight that may be stored. O(flights)."""
        return [*self._registry, *self._apart]

    def marked(self) -> list[Flight]:
        """Locked. Return the flights with marks that may be stored. O(flights)."""
        flights = (*self._registry.values(), *self._apart.values())
        return [flight for flight in flights if flight.marks is not None]

    def registered_at(self, key: Place) -> Flight | None:
        """Locked. Return the flight of *key* that may be stored."""
        return self._registry.get(key) or self._apart.get(key)

    def land(self, flight: Flight) -> bool:
        """Locked. Tell whether the result of *flight* may be stored."""
        registered = self._registry.get(flight.key) is flight or (
            bool(self._apart) and self._apart.get(flight.key) is flight
        )
        return registered and not flight.cancelling

    def in_first_step(self, flight: Flight) -> bool:
        """Locked. Tell whether the task of *flight* is just being made, and has begun at once."""
        return flight.task is None and flight.loop is not None

    def end(self, flight: Flight) -> dict[Waiter, Loop | None]:
        """Locked. Take *flight* out for good; return everybody to be woken."""
        registry, key = self._registry, flight.key
        if registry.get(key) is flight:
            del registry[key]
        if flight.marks is not None:
            self._unmark(flight)
        self.running.pop(flight, None)
        if flight.timed_out and not flight.done:
            self.hung -= 1
        flight.done = True
        flight.load = None  # whoever inherited the flight holds no arguments
        if flight.told is not None:
            flight.told = None
        flight.task = None  # its context holds the flight: a cycle that only the collector ends
        if flight.outcome is not None:
            flight.outcome = None
        return self._everybody(flight)

    def _unmark(self, flight: Flight) -> None:
        """Locked. Let go of the marks of *flight*, which has ended."""
        if self._apart.get(flight.key) is flight:
            del self._apart[flight.key]
        link, flight.link, flight.marks = flight.link, None, None
        if link is not None:
            self._unlink(link)

    def give_up(self, flight: Flight) -> dict[Waiter, Loop | None]:
        """Locked. Let others load beside *flight*, whose clean-up takes too long.

        Returns its watchers, to be woken; empty when somebody was faster.
        """
        if self._registry.get(flight.key) is not flight:
            return {}
        del self._registry[flight.key]
        self.overlapping += 1
        watchers, flight.watchers = flight.watchers, _NOBODY
        return watchers

    def dismiss(self, flight: Flight) -> dict[Waiter, Loop | None]:
        """Locked. Answer its waiters at once, and let *flight* be cancelled; nobody may join.

        It counts as running until its task has ended.
        """
        if self._registry.get(flight.key) is flight:
            del self._registry[flight.key]
        if self._apart.get(flight.key) is flight:
            del self._apart[flight.key]
        flight.cancelling = True
        waiting = self._everybody(flight)
        if flight.group is not None:
            flight.group.abandoned()
        return waiting

    def time_out(self, flight: Flight) -> dict[Waiter, Loop | None] | None:
        """Locked. Take out who waits for *flight*, which has taken too long and is to be cancelled.

        Nobody may join, and a newcomer waits for its clean-up. None: it was over before.
        """
        if flight.done or flight.cancelling or flight.outcome is not None:
            return None
        flight.cancelling = flight.timed_out = True
        self.hung += 1
        waiting, flight.waiters = flight.waiters, {}
        return waiting

    @staticmethod
    def _everybody(flight: Flight) -> dict[Waiter, Loop | None]:
        """Locked. Take out and return who waits for *flight*, in whatever way."""
        waiting = flight.waiters
        if flight.watchers:
            waiting |= flight.watchers
        flight.waiters, flight.watchers = {}, _NOBODY
        return waiting

    def bury(self, loop: Loop) -> tuple[dict[Waiter, Loop | None], list[asyncio.Task[None]]]:
        """Locked. Take out every flight of *loop*, which is dead: a late result answers nobody.

        Returns everybody to be woken, and the tasks to be cancelled should that
        loop ever run again. O(flights).
        """
        waiting: dict[Waiter, Loop | None] = {}
        tasks: list[asyncio.Task[None]] = []
        for flight in [each for each in self.running if each.loop is loop]:
            if flight.task is not None:
                tasks.append(flight.task)
            flight.cancelling = True
            waiting |= self.end(flight)
        return waiting, list(dict.fromkeys(tasks))

    def leave_behind(self, *, torn: bool) -> list[Flight]:
        """Locked, in a forked child. Let go of the parent's flights, and return them.

        They are marked and no more: their tasks and futures belong to the
        parent's loops, of which the child must touch nothing.
        """
        flights = list(self.running)
        for flight in flights:
            flight.done = True
            if torn:
                flight.link = None  # nobody knows what it is worth
            if flight.marks is not None:
                self._unmark(flight)
        self._registry, self._apart, self.running = {}, {}, {}
        self.overlapping = self.hung = 0
        return flights

    def oldest(self, now: float) -> float:
        """Locked. Return for how long the oldest load runs."""
        first = next(iter(self.running), None)
        return 0.0 if first is None else max(0.0, now - first.begun)

    def most_waiters(self, work: int) -> int:
        """Locked. Return the most callers that wait for one of the *work* oldest loads."""
        return max((len(each.waiters) for each in islice(self.running, work)), default=0)

    def cycle(self, current: Flight | None, target: Flight) -> tuple[str, ...]:
        """Locked. Return the names of the cycle that waiting for *target* would close.

        Complexity: O(loads that *target* waits for, directly or not).
        """
        if current is None or current.done:
            return ()
        me = current.group or current
        if (target.group or target) is me:
            return (current.name, target.name)
        paths: list[tuple[Flight, tuple[str, ...]]] = [(target, (current.name, target.name))]
        seen: set[Flight | Group] = {target.group or target}
        while paths:
            flight, names = paths.pop()
            for waited in tuple(flight.waits_on.values()):
                run = waited.group or waited
                if run is me:
                    return (*names, current.name)
                if run not in seen and not waited.done:
                    seen.add(run)
                    paths.append((waited, (*names, waited.name)))
        return ()

    def recursion(self, current: Flight | None, key: Place) -> tuple[str, ...]:
        """Locked. Return the names of the cycle of a load of *key* that would start itself again.

        For loads that join nothing; a cycle of those that do is found by `cycle`.
        Complexity: O(running loads).
        """
        same = (flight for flight in self.running if flight.key == key)
        return next(filter(None, (self.cycle(current, flight) for flight in same)), ())

    def check(self) -> None:
        """Locked. Raise AssertionError unless the registry is sound. O(flights)."""
        for key, flight in self._registry.items():
            sound = flight.key == key and not flight.done and not flight.fenced
            if not sound or flight not in self.running:
                raise AssertionError(f"broken invariant of the flights: {flight} is registered")
        for key, flight in self._apart.items():
            if flight.key != key or flight.fenced or flight not in self.running:
                raise AssertionError(f"broken invariant of the flights: {flight} is apart")
        if self.hung != sum(flight.timed_out for flight in self.running):
            raise AssertionError("broken invariant of the flights: what hangs is miscounted")
        if _NOBODY:
            raise AssertionError("broken invariant of the flights: somebody is nobody")
        for flight in self.running:
            abandoned = not (flight.waiters or flight.cancelling or flight.keep)
            if abandoned and flight.group is not None:
                abandoned = not (flight.group.stopping or flight.group.needed())
            if flight.done or (abandoned and flight.task is not None):
                raise AssertionError(f"broken invariant of the flights: {flight} is running")


def running_loop() -> Loop | None:
    """Return the loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _resolve(waiters: Iterable[LoopWaiter], outcome: Outcome | None) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(outcome)


def wake(
    waiting: dict[Waiter, Loop | None], outcome: Outcome | None, here: Loop | None = None
) -> None:
    """Hand *outcome* to every waiter, in its own loop or thread; outside the lock.

    *here* is the running loop, where it is known.
    """
    if not waiting:
        return
    here = here or running_loop()
    far: dict[Loop, list[LoopWaiter]] | None = None
    for waiter, loop in waiting.items():
        if isinstance(waiter, ThreadWaiter):
            waiter.set(outcome)
        elif loop is here or loop is None:
            if not waiter.done():  # else: its caller was cancelled a moment ago
                waiter.set_result(outcome)
        else:
            far = {} if far is None else far
            far.setdefault(loop, []).append(waiter)
    for loop, waiters in far.items() if far else ():
        try:
            loop.call_soon_threadsafe(_resolve, waiters, outcome)
        except RuntimeError:
            pass  # that loop is closed: nobody waits there any more


def release(waiter: "asyncio.Future[Outcome | None]") -> None:
    """Wake *waiter* without an outcome, unless it is done."""
    if not waiter.done():
        waiter.set_result(None)
