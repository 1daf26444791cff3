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
import random
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from enum import Enum, auto
from inspect import isawaitable
from time import monotonic
from types import CoroutineType
from typing import Any, Final, cast, final

from ._engine import Engine, State
from ._entries import Entry, Facts, Namespace
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
from ._landing import ENDED, Landing, Load, trimmed
from ._loader import LoadContext, isolated
from ._marks import Marks
from ._tasks import start
from .errors import CacheClosedError, LoadCancelledError, LoadTimeoutError, RecursiveLoadError
from .options import AUTO, CacheOptions
from .outcomes import MISSING, MissReason

__all__ = ["Loads"]

_log = logging.getLogger("async_safe_cache")

NESTED: Final = 8
"""Loads that begin inside each other's first step, at most: they share one stack, with all
the calls that the user's loaders make on the way."""

AGAIN: Final = 1.0
"""Seconds after which a hit looks again whether the load that a hit before it began still runs."""

_RANG: Final = Outcome(None, None, None)
"""What a caller is woken with when a time is up for which it waits at most."""

_Future: Final[Any] = asyncio.Future
_Coroutine: Final[Any] = CoroutineType


class Step(Enum):
    """What `enter` decided for one caller, if it is no hit."""

    JOIN = auto()
    LEAD = auto()
    CLEAN_UP = auto()
    BEHIND = auto()
    """Take the value at hand, and start the load that was opened behind it."""


Turn = tuple[Step, Flight, float, Any, Entry | None]
"""What to do, with which flight, when it began, the waiter of this caller, and the entry whose
value it takes (behind which the load begins), or may take if it is stale."""

# Looked up once: an Enum's members cost a call each before 3.12.
_OPEN: Final = State.OPEN
_JOIN: Final = Step.JOIN
_LEAD: Final = Step.LEAD
_CLEAN_UP: Final = Step.CLEAN_UP
_BEHIND: Final = Step.BEHIND


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
        told: LoadContext | None = None,
        *,
        refresh: bool = False,
        in_thread: bool = False,
        heat: float | None = None,
    ) -> Any:
        """Return the value at *key*, by a hit, by joining its flight, or by a new one.

        *told* is what the loader asks for. With *refresh* a fresh value is no hit, and
        nothing is counted as a call. With *heat* it is done for nobody: see `Flight.heat`;
        the load is isolated.
        """
        loop = asyncio.get_running_loop()
        current = current_flight.get()
        owner = None if in_thread else loop
        counted = refresh
        soft, hard = math.inf, math.inf
        if not options.plain:
            soft, hard = _limits(options, loop)
        while True:
            turn = self._enter(
                space, key, options, current, loop, owner, refresh, counted, marks, told
            )
            if type(turn) is Entry:
                result = turn.value
                del turn
                try:
                    return opened(result) if options.copier is None else _copied(result, options)
                finally:
                    del result
            step, flight, begun, waiter, stale = turn
            counted = True
            timer = alarm = None
            if step is _BEHIND:
                flight.load = kind, call, arguments, options
                self._start_task(flight, loop, behind=True)
                return _copied(cast("Entry", stale).value, options)
            at = hard if stale is None else min(soft, hard)
            if refresh and heat is None and step is _JOIN:
                flight.heat = None  # somebody wants it, whatever is read more
            try:
                if at < math.inf:
                    alarm = loop.call_at(at, _ring, waiter, context=Context())
                if step is _LEAD:
                    flight.load = kind, call, arguments, options
                    flight.heat = heat
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
                if alarm is not None:
                    alarm.cancel()
            if outcome is _RANG:
                if self._time_is_up(current, flight, waiter, stale, options, begun, at >= hard):
                    return _copied(cast("Entry", stale).value, options)
                soft = math.inf  # what could have been taken then has become too old
                continue
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
                return outcome.value if options.copier is None else options.copier(outcome.value)
            if stale is not None and self._stands_in(stale, failure, options):
                return _copied(stale.value, options)
            del outcome, waiter, flight, turn, stale
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
        hard = options.hard_timeout
        began = 0.0 if hard is None else monotonic()
        while True:
            turn = self._enter(
                space, key, options, current, None, None, False, counted, marks, None
            )
            if type(turn) is Entry:
                result = turn.value
                del turn
                try:
                    return opened(result) if options.copier is None else _copied(result, options)
                finally:
                    del result
            step, flight, begun, waiter, stale = turn
            counted = True
            outcome: Outcome | None
            try:
                if step is _LEAD:
                    flight.load = kind, call, arguments, options
                    outcome = self._lead(flight)
                else:
                    seconds = options.cancel_grace if step is _CLEAN_UP else math.inf
                    if hard is not None:
                        seconds = min(seconds, max(0.0, began + hard - monotonic()))
                    self.engine.guards.wait_here(flight, waiter, seconds)
                    outcome = waiter.outcome
            finally:
                self._forget(current, flight, waiter)
            if outcome is None and hard is not None and step is not _LEAD:
                over = monotonic() >= began + hard
                if over and self._given_up(flight, stale, options, begun, hard):
                    return _copied(cast("Entry", stale).value, options)
            if step is _CLEAN_UP:
                self._overtake(flight, options.cancel_grace)
                continue
            if outcome is None:
                continue
            if outcome.ended is not None:
                self.engine.recent.fresh.append(outcome.ended - begun)
            failure = outcome.failure
            if failure is None:
                return outcome.value if options.copier is None else options.copier(outcome.value)
            if stale is not None and self._stands_in(stale, failure, options):
                return _copied(stale.value, options)
            del outcome, waiter, flight, turn, stale
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
        told: LoadContext | None,
    ) -> Entry | Turn:
        """Decide, in one step, what this caller does; *owner* is the loop of a load of its own."""
        engine, store, flights = self.engine, self.store, self.flights
        now = engine.clock()
        if engine.later:
            engine.settle()
        unfit: MissReason | None = None
        stale: Entry | None = None
        reason: MissReason | None = None
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
                        if options.refresh_ahead is None and not space.counted:
                            return entry
                        return self._fresh(entry, options, loop, now, marks, told, counted)
                elif not options.plain:
                    stale = self._stale(space, key, options, now, marks)
                    if stale is not None:
                        turn = self._at_once(stale, options, loop, now, marks, told, counted)
                        if turn is not None:
                            return turn
            place = space, key
            if space.counted and not counted and store.popularity is not None:
                store.popularity.see(place, False, now)
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
                        reason = engine.miss(space, key)
                    else:
                        reason = engine.miss_unfit(space, unfit)
                elif refresh:
                    flight.refresh = True
                flight.begun = now
                if marks is not None:
                    self._mark(flight, marks)
                if told is not None:
                    self._brief(flight, told, options, loop, reason)
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
                        flight.heat = None
                    flight.waiters[waiter] = loop
                    step = _JOIN
            if current is not None:
                current.wait_for(flight, waiter)
            return step, flight, now, waiter, stale

    # -- values at hand, and loads behind them

    def _fresh(
        self,
        entry: Entry,
        options: CacheOptions,
        loop: Loop | None,
        now: float,
        marks: Marks | None,
        told: LoadContext | None,
        counted: bool,
    ) -> Entry | Turn:
        """Locked. Take a fresh *entry*; open a load behind it if it is time to refresh it."""
        if entry.space.counted and not counted:
            self._count_hit(entry, now)
        if options.refresh_ahead is None or loop is None or not _is_soon(entry, options, now):
            return entry
        if type(entry.value) is Failure:
            return entry
        self.store.facts_of(entry)  # where a failure is remembered
        self.store.look_again(entry, now + AGAIN)  # hits have nothing to do meanwhile
        if self._running(entry, loop, now) is not None:
            return entry
        return self._open_behind(entry, options, loop, now, marks, told)

    def _stale(
        self,
        space: Namespace,
        key: DataKey,
        options: CacheOptions,
        now: float,
        marks: Marks | None,
    ) -> Entry | None:
        """Locked. Return the stale entry of *key* that this caller may be given."""
        version = space.version if marks is None else marks.version
        entry = self.engine.stale(space, key, now, version)
        return entry if entry is not None and now < entry.deadline + options.window else None

    def _at_once(
        self,
        entry: Entry,
        options: CacheOptions,
        loop: Loop | None,
        now: float,
        marks: Marks | None,
        told: LoadContext | None,
        counted: bool,
    ) -> Entry | Turn | None:
        """Locked. Take a stale *entry* if there is nothing to wait for; None: there is.

        It is being revalidated; or the last load failed a moment ago; or the load that
        runs has outlived this caller's patience already.
        """
        facts = cast("Facts", entry.facts)
        flight = self._running(entry, loop, now)
        revalidating = now < entry.deadline + options.stale_while_revalidate
        slow = (
            flight is not None
            and not flight.cancelling
            and options.soft_timeout is not None
            and now - flight.begun >= options.soft_timeout
        )
        failing = options.error_backoff is not None and facts.failures > 0 and now < facts.retry
        if not (revalidating or slow or failing):
            return None
        entry.space.counters.other_hits += not counted
        if entry.space.counted and not counted:
            self._count_hit(entry, now)
        self.engine.stale_served += 1
        self.store.order.touch(entry)
        if not revalidating or flight is not None or now < facts.retry:
            return entry
        return self._open_behind(entry, options, loop, now, marks, told)

    def _running(self, entry: Entry, loop: Loop | None, now: float) -> Flight | None:
        """Locked. Return the flight at the key of *entry*, unless its loop is dead."""
        flight = self.flights.get((entry.space, entry.key), loop)
        if flight is None or flight.loop is loop:
            return flight
        return None if self.engine.guards.glance(flight, now) else flight

    def _count_hit(self, entry: Entry, now: float) -> None:
        """Locked. Count a hit that did not come by the fast lookup."""
        if self.store.policy == "lru":  # else the order has counted it
            entry.used += 1
        if self.store.popularity is not None:
            self.store.popularity.see((entry.space, entry.key), True, now)

    def _open_behind(
        self,
        entry: Entry,
        options: CacheOptions,
        loop: Loop | None,
        now: float,
        marks: Marks | None,
        told: LoadContext | None,
    ) -> Turn:
        """Locked. Open the flight of a load that nobody waits for."""
        place = entry.space, entry.key
        flight = self.flights.open(place, entry.space.name, loop)
        flight.refresh = flight.keep = True
        flight.begun = now
        if marks is not None:
            self._mark(flight, marks)
        if told is not None:
            reason = MissReason.EXPIRED if entry.deadline <= now else None
            self._brief(flight, told, options, loop, reason)
        return _BEHIND, flight, now, None, entry

    def _mark(self, flight: Flight, marks: Marks) -> None:
        """Locked. Let *flight* store *marks* with its value."""
        flight.marks = marks
        flight.generation = self.store.generation
        flight.link = self.engine.link(marks, flight.key)

    def _brief(
        self,
        flight: Flight,
        told: LoadContext,
        options: CacheOptions,
        loop: Loop | None,
        reason: MissReason | None,
    ) -> None:
        """Locked. Tell the loader of *flight* what it may know."""
        space, key = flight.key
        flight.told = told
        version = space.version if flight.marks is None else flight.marks.version
        fresh = self.engine.peek(space, key, flight.begun)
        if fresh is not None and self.engine.unfit(fresh, version) is not None:
            fresh = None  # of another version: it may not be stored again under this one
        held = fresh or self.engine.stale(space, key, flight.begun, version)
        if reason is None and fresh is None:
            reason = self.store.reason(space, key)
        if held is None:
            told.brief(reason, MISSING, (), 0)
        else:
            facts = held.facts
            failures = facts.failures if isinstance(facts, Facts) else 0
            told.brief(reason, held.value, held.tags, failures)
        if options.load_timeout is not None and loop is not None:
            told.deadline = loop.time() + options.load_timeout

    def _stands_in(self, entry: Entry, failure: Failure, options: CacheOptions) -> bool:
        """Tell whether a stale *entry* is an answer in place of *failure*, and count it as one."""
        error = failure.error
        if isinstance(error, CacheClosedError) or options.is_answer(error):
            return False
        return self._may_stand_in(entry, options)

    def _may_stand_in(self, entry: Entry, options: CacheOptions) -> bool:
        now = self.engine.moment_or_none()
        with self._lock:
            allowed = (
                now is not None
                and now < entry.deadline + options.window
                and entry.kept(now) is not None
            )
            self.engine.stale_served += allowed
        return allowed

    def _time_is_up(
        self,
        current: Flight | None,
        flight: Flight,
        waiter: Waiter,
        stale: Entry | None,
        options: CacheOptions,
        begun: float,
        last: bool,
    ) -> bool:
        """Leave *flight*, which takes too long; tell whether the stale value is taken.

        Raises:
            LoadTimeoutError: There is none, and it was the *last* time.
        """
        taken = stale is not None and self._may_stand_in(stale, options)
        if taken or not last:
            flight.keep = True  # what is taken now is stale: the next one is on its way
        elif (flight.load or ENDED)[3].on_abandon == "cancel":
            flight.keep = False  # a load that hangs is in nobody's interest any more
        self._forget(current, flight, waiter)
        now = self.engine.moment_or_none()
        if now is not None and (taken or last):
            self.engine.recent.fresh.append(now - begun)
        if last and not taken:
            raise LoadTimeoutError(flight.name, options.hard_timeout or 0.0, "hard_timeout")
        return taken

    def _given_up(
        self,
        flight: Flight,
        stale: Entry | None,
        options: CacheOptions,
        begun: float,
        seconds: float,
    ) -> bool:
        """Do the same for a thread that has left."""
        now = self.engine.moment_or_none()
        if now is not None:
            self.engine.recent.fresh.append(now - begun)
        if stale is None or not self._may_stand_in(stale, options):
            raise LoadTimeoutError(flight.name, seconds, "hard_timeout")
        return True

    # -- what is refused, and who leaves

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

    def _start_task(self, flight: Flight, loop: Loop, *, behind: bool = False) -> None:
        """Run *load* in a task of the cache's own, which no caller owns.

        One *behind* a value pins and sees no request, and does not begin before its
        caller has that value.
        """
        options: CacheOptions = flight.load[3]
        alone = behind or flight.heat is not None or options.context == "isolated"
        context = isolated(options) if alone else copy_context()
        context.run(current_flight.set, flight)
        running = self._run(flight, behind=behind)
        try:
            eager = not behind and flight.depth % NESTED != NESTED - 1
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
        if options.load_timeout is not None:
            seconds = options.load_timeout
            end = self.landing.time_out
            flight.alarm = loop.call_later(seconds, end, flight, seconds, context=Context())
        # In its own context: a callback pins the one that it is given, here the caller's.
        task.add_done_callback(lambda _: self._task_done(flight), context=context)
        if flight.cancelling:
            flight.cancel()

    def _task_done(self, flight: Flight) -> None:
        """End the flight of a task that is over, if it is not ended."""
        if flight.alarm is not None:
            flight.alarm.cancel()
            flight.alarm = None
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

        # `_lead` isolates what is to be isolated, but for what is loaded for nobody.
        context = copy_context() if flight.heat is None else isolated(flight.load[3])
        thread = threading.Thread(
            target=context.run, args=(work,), name=f"load of {flight.name}", daemon=True
        )
        self.engine.workers.add(thread)
        try:
            thread.start()
        except BaseException as error:  # noqa: BLE001 - the waiters get it
            self.engine.workers.discard(thread)
            self.landing.conclude(flight, None, error)

    async def _run(self, flight: Flight, *, behind: bool = False) -> None:
        """Run the loader; its outcome goes to the waiters, never into the task."""
        if flight.done:
            return  # given up before its first step
        load: Load = flight.load
        _, call, arguments, _ = load
        value: Any = None
        error: BaseException | None = None
        try:
            if behind and flight.task is None:  # some task factories begin at once
                await asyncio.sleep(0)
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
        _, call, arguments, options = load
        value: object = None
        error: BaseException | None = None
        token = current_flight.set(flight)
        try:
            if options.context == "isolated":
                context = isolated(options)
                context.run(current_flight.set, flight)
                value = context.run(call, *arguments)
            else:
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


def _copied(value: object, options: CacheOptions) -> Any:
    """Return what a caller is handed for *value*: itself or a copy; raise it if it is a failure."""
    try:
        result = opened(value)
        return result if options.copier is None else options.copier(result)
    finally:
        del value


def _limits(options: CacheOptions, loop: Loop) -> tuple[float, float]:
    """Return when a caller takes what is stale, and when it waits no longer."""
    now, soft, hard = loop.time(), options.soft_timeout, options.hard_timeout
    return (
        math.inf if soft is None else now + soft,
        math.inf if hard is None else now + hard,
    )


def _ring(waiter: "asyncio.Future[Outcome | None]") -> None:
    """Wake *waiter*, unless it is done: its time is up."""
    if not waiter.done():
        waiter.set_result(_RANG)


def _is_soon(entry: Entry, options: CacheOptions, now: float) -> bool:
    """Tell whether a read of *entry*, which is fresh, is to begin the next load.

    By chance, it is the sooner the longer a load takes, so that on many machines one
    after the other begins: XFetch (Vattani et al., "Optimal Probabilistic Cache Stampede
    Prevention", VLDB 2015), with beta 1.
    """
    facts = entry.facts
    known = facts if isinstance(facts, Facts) else None
    if entry.deadline == math.inf or (known is not None and now < known.retry):
        return False
    if entry.space.ahead is not None and now < entry.since:
        return False  # as the fast lookup says, where there is one
    if options.refresh_ahead == AUTO:
        seconds = 0.0 if known is None else known.seconds
        return now - seconds * math.log(1.0 - random.random()) >= entry.deadline  # noqa: S311
    if entry.space.ahead is not None:
        return True
    return now >= entry.deadline - entry.since * (1 - (options.refresh_ahead or 0.0))
