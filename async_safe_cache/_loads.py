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
from typing import Any, Final, Literal, final

from ._engine import Engine, check_value
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
from ._store import ENTRY_OVERHEAD, Entry, Namespace
from ._weight import weigh_key
from .errors import CacheClosedError, LoadCancelledError, RecursiveLoadError
from .options import UNSET, CacheOptions, Unset
from .outcomes import MissReason

__all__ = ["Load", "Loads"]

_log = logging.getLogger("async_safe_cache")

FAILURE_WEIGHT: Final = 1024
"""Bytes accounted for a remembered exception, whose own are unknown."""


class Step(Enum):
    """What `enter` decided for one caller."""

    HIT = auto()
    JOIN = auto()
    LEAD = auto()
    CLEAN_UP = auto()


@final
class Load:
    """What is to be loaded: an address in the store, the call, its options."""

    __slots__ = ("call", "key", "kind", "options", "space")

    def __init__(
        self,
        space: Namespace,
        key: DataKey,
        kind: object,
        call: Callable[[], Any],
        options: CacheOptions,
    ) -> None:
        self.space = space
        self.key = key
        self.kind = kind
        self.call = call
        self.options = options


@final
class Loads:
    """The loads of one cache."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.flights = engine.flights
        self.store = engine.store
        self._lock = engine.store.lock

    async def load(self, load: Load, *, refresh: bool = False, in_thread: bool = False) -> Any:
        """Return the value of *load*, by a hit, by joining its flight, or by a new one.

        With *refresh* a fresh value is no hit, and nothing is counted as a call.
        """
        loop = asyncio.get_running_loop()
        counted = refresh
        while True:
            waiter: asyncio.Future[Outcome | None] = loop.create_future()
            step, what, begun = self._enter(load, waiter, loop, refresh, counted, in_thread)
            if isinstance(what, Entry):
                result: object = what.value
                del what
                try:
                    return opened(result)
                finally:
                    del result
            counted = True
            if step is Step.CLEAN_UP:
                timer = loop.call_later(load.options.cancel_grace, release, waiter)
                try:
                    await self._wait(what, waiter, loop)
                finally:
                    timer.cancel()
                self._overtake(what, load.options.cancel_grace)
                continue
            if step is Step.LEAD:
                start = self._start_thread if in_thread else self._start_task
                start(what, load)
            outcome = await self._wait(what, waiter, loop)
            if outcome is None:
                continue  # nobody answered: its loop died
            if not refresh:
                self._waited(begun, outcome)
            result = outcome.value if outcome.failure is None else outcome.failure
            del outcome, waiter, what
            try:
                return opened(result)
            finally:
                del result

    def load_here(self, load: Load) -> Any:
        """Do the same for a plain `def`: load in this thread, or block until another one has."""
        if self.engine.reentered:
            # A finaliser in the middle of a write: it may not wait for anything.
            load.space.counters.misses += 1
            self.engine.misses_by_reason[MissReason.BYPASSED] += 1
            return load.call()
        counted = False
        while True:
            waiter = ThreadWaiter()
            step, what, begun = self._enter(load, waiter, None, False, counted, False)
            if isinstance(what, Entry):
                result: object = what.value
                del what
                try:
                    return opened(result)
                finally:
                    del result
            counted = True
            grace = load.options.cancel_grace
            current = current_flight.get()
            outcome: Outcome | None
            try:
                if step is Step.LEAD:
                    outcome = self._lead(what, load)
                else:
                    seconds = grace if step is Step.CLEAN_UP else math.inf
                    self.engine.guards.wait_here(what, waiter, seconds)
                    outcome = waiter.outcome
            finally:
                self._forget(current, what, waiter)
            if step is Step.CLEAN_UP:
                self._overtake(what, grace)
                continue
            if outcome is None:
                continue
            self._waited(begun, outcome)
            result = outcome.value if outcome.failure is None else outcome.failure
            del outcome, waiter, what
            try:
                return opened(result)
            finally:
                del result

    def _waited(self, begun: float, outcome: Outcome) -> None:
        if outcome.ended is not None:
            self.engine.recent.waited(outcome.ended - begun)

    def _enter(
        self,
        load: Load,
        waiter: Waiter,
        loop: Loop | None,
        refresh: bool,
        counted: bool,
        in_thread: bool,
    ) -> tuple[Literal[Step.HIT], Entry, float] | tuple[Step, Flight, float]:
        """Decide, in one step, what this caller does."""
        now = self.engine.clock()
        space, key = load.space, load.key
        current = current_flight.get()
        dropped: list[object] = []
        with self._lock:
            self.engine.catch_up(dropped)
            self.engine.admit()
            if space.closed:
                raise CacheClosedError(space.name)
            self.engine.recent.roll(now, self.engine.stats)
            if not refresh:
                entry = self.store.find(space, key, now)
                if entry is not None:
                    space.counters.other_hits += not counted
                    return Step.HIT, entry, now
            flight = self.flights.get((space, key))
            if flight is None:
                alone = self.store.bypassed
                if alone:
                    self._refuse_recursion(current, (space, key))
                if not counted:
                    self.engine.miss(space, key)
                keep = load.options.on_abandon == "finish"
                owner = None if in_thread else loop
                flight = self.flights.open((space, key), space.name, owner, keep=keep, alone=alone)
                if loop is None:
                    flight.thread = threading.get_ident()
                else:
                    self.flights.join(flight, waiter, loop)
                step = Step.LEAD
            else:
                self._refuse_deadlock(current, flight, loop)
                if flight.cancelling:
                    if not counted:
                        self.engine.miss(space, key)
                    self.flights.watch(flight, waiter, loop)
                    step = Step.CLEAN_UP
                else:
                    space.counters.coalesced += not counted
                    self.flights.join(flight, waiter, loop)
                    step = Step.JOIN
            if current is not None:
                current.waits_on[waiter] = flight
            return step, flight, now

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

    async def _wait(
        self, flight: Flight, waiter: "asyncio.Future[Outcome | None]", loop: Loop
    ) -> Outcome | None:
        """Wait for the outcome; leave the flight when the caller is cancelled."""
        current = current_flight.get()
        try:
            if flight.loop is loop:
                outcome = await waiter
            else:
                with self.engine.guards.guarding(flight, loop):
                    outcome = await waiter
        except GeneratorExit:
            # The collector closes a coroutine whose loop died: no place to take a lock.
            self.engine.later.append(lambda _: self._forget(current, flight, waiter))
            raise
        except BaseException:
            self._forget(current, flight, waiter)
            raise
        if current is not None:
            current.waits_on.pop(waiter, None)
        return outcome

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

    def _start_task(self, flight: Flight, load: Load) -> None:
        """Run *load* in a task of the cache's own, which no caller owns."""
        context = copy_context()
        context.run(current_flight.set, flight)
        running = self._run(flight, load)
        try:
            loop = asyncio.get_running_loop()
            task = loop.create_task(running, name=f"load of {flight.name}", context=context)
        except BaseException as error:
            running.close()
            if not flight.done:
                self._conclude(flight, load, None, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise  # an eager task factory ran the load here and now
            return
        if flight.done:
            return  # an eager task factory ran it to its end
        flight.task = task
        task.add_done_callback(lambda _: self._task_done(flight, load))
        if flight.cancelling:
            flight.cancel()

    def _task_done(self, flight: Flight, load: Load) -> None:
        """Clean up after a task that was cancelled before its first step: it ran nothing."""
        if not flight.done:
            self._conclude(flight, load, None, asyncio.CancelledError())

    def _start_thread(self, flight: Flight, load: Load) -> None:
        """Run the *load* of a plain `def` in a thread of the cache's own."""

        def work() -> None:
            flight.thread = threading.get_ident()
            try:
                self._lead(flight, load)
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
            self._conclude(flight, load, None, error)

    async def _run(self, flight: Flight, load: Load) -> None:
        """Run the loader; its outcome goes to the waiters, never into the task."""
        value: object = None
        error: BaseException | None = None
        try:
            value = load.call()
            if isawaitable(value):
                value = await value
        except GeneratorExit:
            self.engine.later.append(lambda _: wake(self.flights.end(flight), None))
            raise
        except BaseException as caught:  # noqa: BLE001 - every waiter gets it
            error = _trimmed(caught)
        try:
            self._conclude(flight, load, value, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                task = asyncio.current_task()
                if task is not None:  # it is raised where it belongs; nobody else asks for it
                    task.add_done_callback(lambda task: task.cancelled() or task.exception())
                raise error
        finally:
            # The loader's frames, which the error holds, lead back to this one.
            del error, value

    def _lead(self, flight: Flight, load: Load) -> Outcome:
        """Run the loader of a plain `def` in this thread."""
        value: object = None
        error: BaseException | None = None
        token = current_flight.set(flight)
        try:
            value = load.call()
        except BaseException as caught:  # noqa: BLE001 - every waiter gets it
            error = _trimmed(caught)
        finally:
            current_flight.reset(token)
        try:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                self._conclude(flight, load, value, error)
                raise error
            return self._conclude(flight, load, value, error)
        finally:
            del error, value

    def _conclude(
        self, flight: Flight, load: Load, value: object, error: BaseException | None
    ) -> Outcome:
        """Land *flight* and answer its waiters, whatever happens on the way."""
        try:
            return self._land(flight, load, value, error)
        except BaseException:
            # An interrupt, or a bug: nobody may wait for ever. Who waits tries again.
            with self._lock:
                waiting = self.flights.end(flight)
            wake(waiting, None)
            raise
        finally:
            del error, value

    def _land(
        self, flight: Flight, load: Load, value: object, error: BaseException | None
    ) -> Outcome:
        weight = 0
        now = self.engine.moment_or_none()
        rejected = False
        interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
        cancelled = interrupted or isinstance(error, asyncio.CancelledError)
        stopped_from_outside = (
            cancelled and flight.task is not None and flight.task.cancelling() > 0
        )
        remember: float | None | Unset = UNSET
        if error is None:
            try:
                check_value(f"the loader of {flight.name!r}", value)
                rejected = True
                weight = self.engine.measure(load.key, value)
                rejected = False
            except Exception as caught:  # noqa: BLE001 - every waiter gets it
                error = _trimmed(caught)
        elif cancelled:
            stopped_by, error = error, LoadCancelledError(flight.name)
            error.__cause__ = stopped_by
        elif isinstance(error, StopIteration):
            stopped = RuntimeError(f"the loader of {flight.name!r} raised StopIteration")
            stopped.__cause__ = error
            error = stopped
        failure = None if error is None else Failure(error, error.__traceback__)
        if error is not None and not cancelled and load.options.negative:
            remember = self._remember(load.options, error)
        ttl = self.engine.shortened(load.options)
        dropped: list[object] = []
        with self._lock:
            self.engine.catch_up(dropped)
            counters = load.space.counters
            # A load that was only stopped is none, unless somebody is told that it failed.
            ended = not (cancelled and flight.cancelling) and (
                not stopped_from_outside or any(_is_near(w, flight) for w in flight.waiters.items())
            )
            counters.loads += ended
            counters.load_errors += ended and failure is not None
            if not self.flights.land(flight):
                pass
            elif rejected or (now is None and failure is None):
                self.store.reject(load.space, load.key, -math.inf if now is None else now, dropped)
            elif now is None:
                pass
            elif failure is None:
                self.store.put(load.space, load.key, load.kind, value, weight, ttl, now, dropped)
            elif remember is not UNSET and not self.store.holds(load.space, load.key, now):
                size = ENTRY_OVERHEAD + FAILURE_WEIGHT + weigh_key(load.key)
                memory = failure.remembered()
                self.store.put(load.space, load.key, None, memory, size, remember, now, dropped)
            waiting = self.flights.end(flight)
        if interrupted:
            # The program ends: its own tasks are cancelled, as asyncio.run is about to do.
            waiting = dict(each for each in waiting.items() if not _cancelled(each, flight))
        if stopped_from_outside:
            # asyncio.run ends its loop so. To who waits elsewhere that is no answer: load again.
            wake(dict(each for each in waiting.items() if not _is_near(each, flight)), None)
            waiting = dict(each for each in waiting.items() if _is_near(each, flight))
        outcome = Outcome(value, failure, now)
        wake(waiting, outcome)
        try:
            return outcome
        finally:
            del error, failure, outcome

    def _remember(self, options: CacheOptions, error: BaseException) -> float | None | Unset:
        try:
            return options.negative_ttl(error)
        except Exception as caught:  # noqa: BLE001 - the caller must get the load's own error
            _log.warning(
                "negative= failed with %s for a %s, which is therefore not remembered",
                type(caught).__name__,
                type(error).__name__,
            )
            return UNSET


def _trimmed(error: BaseException) -> BaseException:
    """Take the catching frame out of the traceback of *error*: it holds what holds the error."""
    traceback = error.__traceback__
    return BaseException.with_traceback(error, traceback.tb_next if traceback else None)


def _is_near(waiting: tuple[Waiter, Loop | None], flight: Flight) -> bool:
    """Tell whether somebody still waits in the loop of *flight*, which is the running one."""
    waiter, loop = waiting
    near = loop is not None and loop is flight.loop
    return near and not isinstance(waiter, ThreadWaiter) and not waiter.done()


def _cancelled(waiting: tuple[Waiter, Loop | None], flight: Flight) -> bool:
    """Cancel a waiter in the loop of *flight*; tell whether it is one."""
    waiter, loop = waiting
    if isinstance(waiter, ThreadWaiter) or loop is None or loop is not flight.loop:
        return False
    waiter.cancel()
    return True


def opened(value: object) -> Any:
    """Return *value*, or raise it if it is a failure; no frame keeps that failure."""
    if type(value) is not Failure:
        return value
    try:
        value.throw()
    finally:
        del value
