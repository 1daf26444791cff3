"""The way of a call that is no hit: join, load, land, answer.

    enter   under the lock: a hit? a flight to join? one to wait out? else open one
    run     in a task of the cache's own (async def) or in the first thread (def)
    land    under the lock: stored only if the registry still holds *this* flight
    answer  every waiter, outside the lock

Everything is decided synchronously under the engine's lock and awaited
afterwards. A load never waits for a lock, and no caller owns one.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Callable
from contextvars import copy_context
from enum import Enum, auto
from inspect import isawaitable
from types import CoroutineType
from typing import Any, Final, cast, final

from ._engine import Engine, State
from ._entries import Entry, Namespace
from ._flights import (
    Failure,
    Flight,
    Loop,
    Outcome,
    Place,
    ThreadWaiter,
    Waiter,
    current_flight,
    release,
    running_loop,
    wake,
)
from ._keys import DataKey
from ._landing import Landing, Load, trimmed
from ._marks import Marks
from ._tasks import start
from .errors import CacheClosedError, LoadCancelledError, RecursiveLoadError
from .options import CacheOptions
from .outcomes import MissReason

__all__ = ["Loads"]

_log = logging.getLogger("async_safe_cache")

NESTED: Final = 8
"""Loads that begin inside each other's first step, at most: they share one stack, with all
the calls that the user's loaders make on the way."""

_Future: Final[Any] = asyncio.Future
_Coroutine: Final[Any] = CoroutineType


class Step(Enum):
    """What `enter` decided for one caller, if it is no hit."""

    JOIN = auto()
    LEAD = auto()
    CLEAN_UP = auto()


Turn = tuple[Step, Flight, float, Any]
"""What to do, with which flight, when it began, and the waiter of this caller."""

# Looked up once: an Enum's members cost a call each before 3.12.
_OPEN: Final = State.OPEN
_JOIN: Final = Step.JOIN
_LEAD: Final = Step.LEAD
_CLEAN_UP: Final = Step.CLEAN_UP


@final
class Loads:
    """The loads of one cache."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.flights = engine.flights
        self.store = engine.store
        self.landing = Landing(engine)
        self._lock = engine.store.lock

    async def load(
        self,
        space: Namespace,
        key: DataKey,
        kind: object,
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: CacheOptions,
        marks: Marks | None = None,
        *,
        refresh: bool = False,
        in_thread: bool = False,
    ) -> Any:
        """Return the value at *key*, by a hit, by joining its flight, or by a new one.

        With *refresh* a fresh value is no hit, and nothing is counted as a call.
        """
        loop = asyncio.get_running_loop()
        current = current_flight.get()
        owner = None if in_thread else loop
        counted = refresh
        while True:
            turn = self._enter(space, key, options, current, loop, owner, refresh, counted, marks)
            if type(turn) is Entry:
                result = turn.value
                del turn
                try:
                    return opened(result)
                finally:
                    del result
            step, flight, begun, waiter = turn
            counted = True
            timer = None
            try:
                if step is _LEAD:
                    flight.load = kind, call, arguments, options
                    if in_thread:
                        self._start_thread(flight)
                    else:
                        self._start_task(flight, loop)
                elif step is _CLEAN_UP:
                    timer = loop.call_later(options.cancel_grace, release, waiter)
                outcome: Outcome | None
                if flight.loop is loop:
                    outcome = await waiter
                else:
                    with self.engine.guards.guarding(flight, loop):
                        outcome = await waiter
            except GeneratorExit:
                # The collector closes a coroutine whose loop died: no place to take a lock.
                self._forget_later(current, flight, waiter)
                raise
            except BaseException:
                self._forget(current, flight, waiter)
                raise
            finally:
                if timer is not None:
                    timer.cancel()
            if current is not None:
                current.waits_on.pop(waiter, None)
            if step is _CLEAN_UP:
                self._overtake(flight, options.cancel_grace)
                continue
            if outcome is None:
                if step is _LEAD and not flight.cancelling:
                    raise LoadCancelledError(flight.name)  # something stopped its very end
                continue  # nobody answered: its loop died
            if not refresh and outcome.ended is not None:
                self.engine.recent.fresh.append(outcome.ended - begun)
            failure = outcome.failure
            if failure is None:
                return outcome.value
            del outcome, waiter, flight, turn
            try:
                failure.throw()
            finally:
                del failure

    def load_here(
        self,
        space: Namespace,
        key: DataKey,
        kind: object,
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: CacheOptions,
        marks: Marks | None = None,
    ) -> Any:
        """Do the same for a plain `def`: load in this thread, or block until another one has."""
        if self.engine.reentered:
            # A finaliser in the middle of a write: it may not wait for anything.
            space.counters.misses += 1
            self.engine.misses_by_reason[MissReason.BYPASSED] += 1
            return call(*arguments)
        current = current_flight.get()
        counted = False
        while True:
            turn = self._enter(space, key, options, current, None, None, False, counted, marks)
            if type(turn) is Entry:
                result = turn.value
                del turn
                try:
                    return opened(result)
                finally:
                    del result
            step, flight, begun, waiter = turn
            counted = True
            outcome: Outcome | None
            try:
                if step is _LEAD:
                    flight.load = kind, call, arguments, options
                    outcome = self._lead(flight)
                else:
                    seconds = options.cancel_grace if step is _CLEAN_UP else math.inf
                    self.engine.guards.wait_here(flight, waiter, seconds)
                    outcome = waiter.outcome
            finally:
                self._forget(current, flight, waiter)
            if step is _CLEAN_UP:
                self._overtake(flight, options.cancel_grace)
                continue
            if outcome is None:
                continue
            if outcome.ended is not None:
                self.engine.recent.fresh.append(outcome.ended - begun)
            failure = outcome.failure
            if failure is None:
                return outcome.value
            del outcome, waiter, flight, turn
            try:
                failure.throw()
            finally:
                del failure

    def _enter(
        self,
        space: Namespace,
        key: DataKey,
        options: CacheOptions,
        current: Flight | None,
        loop: Loop | None,
        owner: Loop | None,
        refresh: bool,
        counted: bool,
        marks: Marks | None,
    ) -> Entry | Turn:
        """Decide, in one step, what this caller does; *owner* is the loop of a load of its own."""
        engine, store, flights = self.engine, self.store, self.flights
        now = engine.clock()
        if engine.later:
            engine.settle()
        unfit: MissReason | None = None
        with self._lock:
            if engine.state is not _OPEN:
                engine.admit()
            if space.closed:
                raise CacheClosedError(space.name)
            recent = engine.recent
            if now < recent.next:
                recent.last = now
            else:
                recent.roll(now, engine.stats)
            if not refresh and key in space.data:
                entry = store.find(space, key, now)
                if entry is not None:
                    if marks is not None or type(entry.facts) is not int:
                        version = space.version if marks is None else marks.version
                        unfit = engine.unfit(entry, version)
                    if unfit is None:
                        space.counters.other_hits += not counted
                        return entry
            place = space, key
            flight = flights.get(place, loop)
            if flight is not None and not flight.cancelling:
                if marks is not None:
                    flight = self._of_version(flight, marks.version)
                elif flight.marks is not None:
                    flight = self._of_version(flight, space.version)
            if flight is None:
                if store.bypassed:
                    self._refuse_recursion(current, place)
                    flight = flights.open_alone(place, space.name, owner)
                else:
                    flight = flights.open(place, space.name, owner)
                if not counted:
                    if unfit is None:
                        engine.miss(space, key)
                    else:
                        engine.miss_unfit(space, unfit)
                elif refresh:
                    flight.refresh = True
                if marks is not None:
                    flight.marks = marks
                    flight.generation = store.generation
                    flight.link = engine.link(marks, place)
                if store.events is not None:
                    flight.begun = now
                if current is not None:
                    flight.depth = current.depth + 1
                if options.on_abandon == "finish":
                    flight.keep = True
                step = _LEAD
                if loop is None:
                    flight.thread = threading.get_ident()
                    waiter: Any = ThreadWaiter()
                else:
                    waiter = _Future(loop=loop)
                    flight.waiters[waiter] = loop
            else:
                if current is not None or loop is None:
                    self._refuse_deadlock(current, flight, loop)
                waiter = ThreadWaiter() if loop is None else _Future(loop=loop)
                if flight.cancelling:
                    if not counted:
                        engine.miss(space, key)
                    flights.watch(flight, waiter, loop)
                    step = _CLEAN_UP
                else:
                    if not counted:
                        space.counters.coalesced += 1
                    flight.waiters[waiter] = loop
                    step = _JOIN
            if current is not None:
                current.wait_for(flight, waiter)
            return step, flight, now, waiter

    def _of_version(self, flight: Flight, version: object) -> Flight | None:
        """Locked. Return *flight* if it loads a value of *version*; otherwise shut it out."""
        space, key = flight.key
        other: Marks | None = flight.marks
        if version is None or version == (space.version if other is None else other.version):
            return flight
        _, abandoned = self.flights.fence((space, key))
        if abandoned is not None:
            abandoned.cancel()
        return None

    def _refuse_deadlock(self, current: Flight | None, flight: Flight, loop: Loop | None) -> None:
        """Locked. Raise RecursiveLoadError if waiting for *flight* could never end."""
        chain = self.flights.cycle(current, flight)
        if chain:
            raise RecursiveLoadError(chain)
        if loop is None:
            here = running_loop()
            if flight.thread == threading.get_ident() or (here and flight.loop is here):
                caller = current.name if current else flight.name
                raise RecursiveLoadError((caller, flight.name), blocking_loop=True)

    def _refuse_recursion(self, current: Flight | None, place: Place) -> None:
        """Locked. Raise RecursiveLoadError if a load of *place* that joins nothing never ended."""
        chain = self.flights.recursion(current, place)
        if chain:
            raise RecursiveLoadError(chain)

    def _forget_later(self, current: Flight | None, flight: Flight, waiter: Waiter) -> None:
        self.engine.later.append(lambda _: self._forget(current, flight, waiter))

    def _forget(self, current: Flight | None, flight: Flight, waiter: Waiter) -> None:
        """Take *waiter* out of *flight*; cancel the load when it was the last."""
        if current is not None:
            current.waits_on.pop(waiter, None)
        if flight.done:
            return
        with self._lock:
            doomed = self.flights.leave(flight, waiter)
        if doomed is not None:
            doomed.cancel()

    def _overtake(self, flight: Flight, grace: float) -> None:
        """Go on beside *flight* if it is still in the way when the grace is over."""
        with self._lock:
            before = self.flights.overlapping
            watchers = self.flights.give_up(flight)
            overtaken = self.flights.overlapping > before
        wake(watchers, None)
        if overtaken:
            _log.warning(
                "the cancelled load of %s is not cleaned up after %s s; another starts beside it",
                flight.name,
                grace,
            )

    def _start_task(self, flight: Flight, loop: Loop) -> None:
        """Run *load* in a task of the cache's own, which no caller owns."""
        context = copy_context()
        context.run(current_flight.set, flight)
        running = self._run(flight)
        try:
            eager = flight.depth % NESTED != NESTED - 1
            name = f"load of {flight.name}"
            task = start(loop, running, name=name, context=context, eager=eager)
        except BaseException as error:
            running.close()
            if not flight.done:
                self.landing.conclude(flight, None, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise  # an eager task ran the load here and now
            return
        if flight.done:
            return  # it needed no await
        flight.task = task
        task.add_done_callback(lambda _: self._task_done(flight))
        if flight.cancelling:
            flight.cancel()

    def _task_done(self, flight: Flight) -> None:
        """End the flight of a task that is over, if it is not ended."""
        if flight.done:
            return
        if flight.outcome is not None:
            self.landing.answer(flight, flight.outcome)
        else:  # cancelled before its first step: it ran nothing
            self.landing.conclude(flight, None, asyncio.CancelledError())

    def _start_thread(self, flight: Flight) -> None:
        """Run the *load* of a plain `def` in a thread of the cache's own."""

        def work() -> None:
            flight.thread = threading.get_ident()
            try:
                self._lead(flight)
            finally:
                self.engine.workers.discard(threading.current_thread())

        context = copy_context()
        thread = threading.Thread(
            target=context.run, args=(work,), name=f"load of {flight.name}", daemon=True
        )
        self.engine.workers.add(thread)
        try:
            thread.start()
        except BaseException as error:  # noqa: BLE001 - the waiters get it
            self.engine.workers.discard(thread)
            self.landing.conclude(flight, None, error)

    async def _run(self, flight: Flight) -> None:
        """Run the loader; its outcome goes to the waiters, never into the task."""
        if flight.done:
            return  # given up before its first step
        load: Load = flight.load
        _, call, arguments, _ = load
        value: Any = None
        error: BaseException | None = None
        try:
            value = call(*arguments)
            if isinstance(value, _Coroutine) or isawaitable(value):
                value = await value
        except GeneratorExit:
            self.engine.later.append(lambda _: wake(self.flights.end(flight), None))
            raise
        except BaseException as caught:  # noqa: BLE001 - every waiter gets it
            error = trimmed(caught)
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        try:
            if error is not None and flight.task is None and not stopped:
                await self._first_step_over(flight)
            if self.landing.conclude(flight, value, error) is None:
                await self._first_step_over(flight)
                self.landing.conclude(flight, value, error)
            if stopped:
                task = asyncio.current_task()
                if task is not None:  # it is raised where it belongs; nobody else asks for it
                    task.add_done_callback(lambda task: task.cancelled() or task.exception())
                raise cast("BaseException", error)
        finally:
            # The loader's frames, which the error holds, lead back to this one.
            del error, value

    async def _first_step_over(self, flight: Flight) -> None:
        """Wait for a turn of the loop's own: until then all frames lead back to the caller's."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            pass  # the loader has ended: only its end is still to be told
        except GeneratorExit:
            self.engine.later.append(lambda _: wake(self.flights.end(flight), None))
            raise

    def _lead(self, flight: Flight) -> Outcome | None:
        """Run the loader of a plain `def` in this thread."""
        load: Load = flight.load
        _, call, arguments, _ = load
        value: object = None
        error: BaseException | None = None
        token = current_flight.set(flight)
        try:
            value = call(*arguments)
        except BaseException as caught:  # noqa: BLE001 - every waiter gets it
            error = trimmed(caught)
        finally:
            current_flight.reset(token)
        try:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                self.landing.conclude(flight, value, error)
                raise error
            return self.landing.conclude(flight, value, error)
        finally:
            del error, value


def opened(value: object) -> Any:
    """Return *value*, or raise it if it is a failure; no frame keeps that failure."""
    if type(value) is not Failure:
        return value
    try:
        value.throw()
    finally:
        del value
