"""The way of a call: hit, join, load, land, answer.

Composes the store and the flights, which know nothing of each other, under the
store's one lock. Everything is decided synchronously under that lock and awaited
afterwards; loaders, weighers, clocks and finalisers of values run outside it.

    enter   under the lock: a hit? a flight to join? one to wait out? else open one
    run     in a task of the cache's own (async def) or in the first thread (def)
    land    under the lock: stored only if the registry still holds *this* flight
    answer  every waiter, outside the lock

The collector may run a finaliser at any allocation, also while this thread
holds the lock, and that finaliser may call the cache. So the lock is
re-entrant, and a write that finds it held by its own thread is put off until
the interrupted one is complete (`later`).
"""

import asyncio
import logging
import math
import random
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextvars import copy_context
from enum import Enum, auto
from inspect import isawaitable, iscoroutine
from typing import Any, Final, Literal, final

from ._flights import (
    Failure,
    Flight,
    Flights,
    Loop,
    Outcome,
    ThreadWaiter,
    Waiter,
    current_flight,
    running_loop,
    wake,
)
from ._health import Recent
from ._keys import DataKey
from ._protocols import Clock, Weigher
from ._store import ENTRY_OVERHEAD, Counters, Entry, Namespace, Store
from ._weight import weigh, weigh_key
from .errors import CacheClosedError, LoadCancelledError, RecursiveLoadError
from .options import UNSET, CacheOptions, Unset
from .outcomes import CacheStats, MissReason, RemovalCause

__all__ = ["Engine", "Load", "one_shot"]

_log = logging.getLogger("async_safe_cache")

FAILURE_WEIGHT: Final = 1024
"""Bytes accounted for a remembered exception, whose own are unknown."""

SLICE: Final = 1_000
"""Members of a cleared container freed between two turns of the loop."""


_FOR_EVER: Final = 1e9  # seconds; a loop cannot wait until infinity


class State(Enum):
    """Where a cache is in its life."""

    OPEN = auto()
    DRAINING = auto()
    CLOSED = auto()


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


def one_shot(value: object) -> bool:
    """Tell whether *value* can be used only once, so that a second caller would get nothing."""
    kind = type(value)
    return (
        hasattr(kind, "__next__") or hasattr(kind, "__await__") or hasattr(kind, "__anext__")
    )


def check_value(name: str, value: object) -> None:
    """Raise TypeError for an awaitable, a generator or an iterator."""
    if not one_shot(value):
        return
    if iscoroutine(value):
        value.close()
    raise TypeError(
        f"{name} gave a value of type {type(value).__name__}, which can be used only once: "
        "a second caller would find it used up; await it, or make a list of it, before it is cached"
    )


@final
class Engine:
    """Loads, reads and writes of one cache; bound to no loop."""

    def __init__(
        self,
        name: str,
        store: Store,
        clock: Clock,
        weigher: Weigher | None,
    ) -> None:
        self.name = name
        self.store = store
        self.flights = Flights()
        self.clock = clock
        self.weigher = weigher
        self.state = State.OPEN
        self.counters: dict[Counters, None] = {}  # bounded by the decorated functions
        self.retired = Counters()
        self.misses_by_reason = dict.fromkeys(MissReason, 0)
        self.estimated = 0
        self.recent = Recent(clock())
        self.workers: set[threading.Thread] = set()  # bounded by the loads in threads
        # What finalisers asked for; bounded by what was collected since the last write.
        self.later: deque[Callable[[list[object]], object]] = deque()
        self._lock = store.lock

    # -- small parts

    def admit(self) -> None:
        """Raise CacheClosedError unless the caller may go on.

        While the cache drains, the loads that it waits for may still use it.
        """
        if self.state is State.OPEN:
            return
        flight = current_flight.get()
        if self.state is State.CLOSED or flight is None or flight.done:
            raise CacheClosedError(self.name)

    @property
    def reentered(self) -> bool:
        """Whether this very thread is inside the lock: this is a finaliser's call."""
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def write(self, action: Callable[[float, list[object]], int]) -> int:
        """Run *action(now, dropped)* under the lock; put it off inside a finaliser."""
        now = self.clock()
        if self.reentered:
            self.later.append(lambda dropped: action(now, dropped))
            return 0
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            return action(now, dropped)

    def catch_up(self, dropped: list[object]) -> None:
        """Locked. Do what was put off."""
        while self.later:
            self.later.popleft()(dropped)

    def drop(self, space: Namespace, dropped: list[object]) -> None:
        """Locked. Remove everything in *space*, whose owner is gone."""
        for key in self.flights.keys():
            if key[0] is space:
                # Whoever still waits keeps the load alive; nobody new can ask for it.
                self.flights.fence(key)
        self.store.clear_space(space, RemovalCause.COLLECTED, dropped)

    def measure(self, load_key: DataKey, value: object) -> int:
        """Return the bytes of an entry, overhead included; runs the user's weigher."""
        if self.weigher is None:
            size, estimated = weigh(value)
            self.estimated += estimated
        else:
            size = self._checked_weight(self.weigher(value))
        return size + weigh_key(load_key) + ENTRY_OVERHEAD

    def _checked_weight(self, weight: object) -> int:
        meaning = "the weigher must return bytes: a number from 0"
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise TypeError(f"{meaning}, not {type(weight).__name__}; nothing was stored")
        if not weight >= 0:
            raise ValueError(f"{meaning}, not {weight!r}; nothing was stored")
        return 1 << 62 if math.isinf(weight) else math.ceil(weight)

    def _miss(self, space: Namespace, key: DataKey) -> MissReason:
        """Locked. Count one miss."""
        reason = self.store.reason(space, key)
        space.counters.misses += 1
        self.misses_by_reason[reason] += 1
        return reason

    # -- reading

    def peek(self, space: Namespace, key: DataKey, now: float) -> Entry | None:
        """Return the fresh entry of *key*; no lock, no recency, no statistics."""
        entry = space.data.get(key)
        if entry is None or entry.deadline <= now or type(entry.value) is Failure:
            return None
        return entry

    def read(self, space: Namespace, key: DataKey, now: float) -> Entry | MissReason:
        """Return the fresh entry of *key*, or why there is none; one counted call."""
        self.admit()
        entry = self.peek(space, key, now)
        if entry is not None:
            try:
                self.store.order.touch(entry)
            except KeyError:
                pass  # removed by another thread a moment ago: it was there when we looked
            space.counters.hits += 1
            return entry
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            return self._read_locked(space, key, now)

    def _read_locked(self, space: Namespace, key: DataKey, now: float) -> Entry | MissReason:
        self.recent.roll(now, self.stats)
        entry = self.store.find(space, key, now)
        if entry is None:
            return self._miss(space, key)
        if type(entry.value) is Failure:
            # A remembered failure is no value: only a load may raise it.
            space.counters.misses += 1
            self.misses_by_reason[MissReason.ABSENT] += 1
            return MissReason.ABSENT
        space.counters.hits += 1
        return entry

    def read_many(self, places: Iterable[tuple[Namespace, DataKey]], now: float) -> list[Entry | None]:
        """Return the fresh entries of one moment; one counted call each."""
        dropped: list[object] = []
        with self._lock:
            self.admit()
            self.catch_up(dropped)
            found = [self._read_locked(space, key, now) for space, key in places]
        return [entry if isinstance(entry, Entry) else None for entry in found]

    # -- writing

    def put(
        self, space: Namespace, key: DataKey, kind: object, value: object, ttl: float | None
    ) -> None:
        """Store *value* and fence the load of its key."""
        check_value(f"set() of {self.name!r}", value)
        weight = self.measure(key, value)
        doomed: list[Flight] = []

        def action(now: float, dropped: list[object]) -> int:
            self.admit()
            self._fence(space, key, doomed)
            return self.store.put(space, key, kind, value, weight, ttl, now, dropped)

        self.write(action)
        cancel(doomed)

    def remove(self, places: Collection[tuple[Namespace, DataKey]], cause: RemovalCause) -> int:
        """Remove entries and fence their loads; return how many were fresh."""
        doomed: list[Flight] = []

        def action(now: float, dropped: list[object]) -> int:
            removed = 0
            for space, key in places:
                fenced = self._fence(space, key, doomed)
                removed += self.store.remove(space, key, cause, now, dropped, fenced=fenced)
            return removed

        removed = self.write(action)
        cancel(doomed)
        return removed

    def remove_spaces(self, spaces: Callable[[], Iterable[Namespace]], cause: RemovalCause) -> int:
        """Remove everything in the namespaces, as they are then, and fence their loads."""
        doomed: list[Flight] = []

        def action(now: float, dropped: list[object]) -> int:
            gone = set(spaces())
            for space, key in self.flights.keys():
                if space in gone and self._fence(space, key, doomed):
                    self.store.remove(space, key, cause, now, dropped, fenced=True)
            return sum(self.store.clear_space(space, cause, dropped) for space in gone)

        removed = self.write(action)
        cancel(doomed)
        return removed

    def clear(self) -> list[Collection[object]]:
        """Remove everything and fence every load; return what is to be freed in slices."""
        doomed: list[Flight] = []
        wreck: list[Collection[object]] = []

        def action(now: float, dropped: list[object]) -> int:
            for space, key in self.flights.keys():
                if self._fence(space, key, doomed):
                    self.store.remove(space, key, RemovalCause.CLEARED, now, dropped, fenced=True)
            wreck.extend(self.store.clear())
            return 0

        self.write(action)
        cancel(doomed)
        return wreck

    def retime(self, space: Namespace, key: DataKey, ttl: float | None) -> bool:
        """Give the fresh entry of *key* a new time to live; False if there is none."""

        def action(now: float, dropped: list[object]) -> int:
            self.admit()
            entry = self.peek(space, key, now)
            if entry is not None:
                self.store.retime(entry, ttl, now)
            return entry is not None

        return bool(self.write(action))

    def sweep(self, now: float, limit: int) -> bool:
        """Free up to *limit* due entries; tell whether there may be more."""
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            self.recent.roll(now, self.stats)
            return self.store.free(now, limit, dropped) == limit

    def _fence(self, space: Namespace, key: DataKey, doomed: list[Flight]) -> bool:
        fenced, abandoned = self.flights.fence((space, key))
        if abandoned is not None:
            doomed.append(abandoned)
        return fenced

    # -- loading

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
                return opened(what.value)
            counted = True
            if step is Step.CLEAN_UP:
                timer = loop.call_later(load.options.cancel_grace, _release, waiter)
                try:
                    await self._wait(what, waiter)
                finally:
                    timer.cancel()
                self._overtake(what, load.options.cancel_grace)
                continue
            if step is Step.LEAD:
                start = self._start_thread if in_thread else self._start_task
                start(what, load)
            outcome = await self._wait(what, waiter)
            if outcome is None:
                continue  # nobody answered: its loop died, or it was given up
            if not refresh:
                self.recent.waited(outcome.ended - begun)
            result = outcome.failure or outcome.value
            del outcome, waiter, what
            try:
                return opened(result)
            finally:
                del result

    def load_here(self, load: Load) -> Any:
        """Do the same for a plain `def`: load in this thread, or block until another one has."""
        if self.reentered:
            # A finaliser in the middle of a write: it may not wait for anything.
            load.space.counters.misses += 1
            self.misses_by_reason[MissReason.BYPASSED] += 1
            return load.call()
        counted = False
        while True:
            waiter = ThreadWaiter()
            step, what, begun = self._enter(load, waiter, None, False, counted, False)
            if isinstance(what, Entry):
                return opened(what.value)
            counted = True
            grace = load.options.cancel_grace
            current = current_flight.get()
            outcome: Outcome | None
            try:
                if step is Step.LEAD:
                    outcome = self._lead(what, load)
                else:
                    waiter.wait(grace if step is Step.CLEAN_UP else -1)
                    outcome = waiter.outcome
            finally:
                self._forget(current, what, waiter)
            if step is Step.CLEAN_UP:
                self._overtake(what, grace)
                continue
            if outcome is None:
                continue
            self.recent.waited(outcome.ended - begun)
            result = outcome.failure or outcome.value
            del outcome, waiter, what
            try:
                return opened(result)
            finally:
                del result

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
        now = self.clock()
        space, key = load.space, load.key
        current = current_flight.get()
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            self.admit()
            self.recent.roll(now, self.stats)
            if not refresh:
                entry = self.store.find(space, key, now)
                if entry is not None:
                    space.counters.hits += not counted
                    return Step.HIT, entry, now
            flight = self.flights.get((space, key))
            if flight is None:
                if not counted:
                    self._miss(space, key)
                keep = load.options.on_abandon == "finish"
                owner = None if in_thread else loop
                flight = self.flights.open((space, key), space.name, owner, keep=keep)
                if loop is None:
                    flight.thread = threading.get_ident()
                else:
                    self.flights.join(flight, waiter, loop)
                step = Step.LEAD
            else:
                self._refuse_deadlock(current, flight, loop)
                if flight.cancelling:
                    if not counted:
                        self._miss(space, key)
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

    async def _wait(self, flight: Flight, waiter: "asyncio.Future[Outcome | None]") -> Outcome | None:
        """Wait for the outcome; leave the flight when the caller is cancelled."""
        current = current_flight.get()
        try:
            outcome = await waiter
        except GeneratorExit:
            # The collector closes a coroutine whose loop died: no place to take a lock.
            self.later.append(lambda _: self._forget(current, flight, waiter))
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
                "the cancelled load of %s is not cleaned up after %s s; another load starts beside it",
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
            flight.task = loop.create_task(running, name=f"load of {flight.name}", context=context)
        except BaseException as error:  # noqa: BLE001 - the waiters get it
            running.close()
            self._conclude(flight, load, None, error)
            return
        flight.task.add_done_callback(lambda task: self._task_done(flight, load, task))
        if flight.cancelling:
            flight.cancel()

    def _task_done(self, flight: Flight, load: Load, task: "asyncio.Task[None]") -> None:
        """Clean up after a task that was cancelled before its first step: it ran nothing."""
        if not flight.done:
            self._conclude(flight, load, None, asyncio.CancelledError())
        if not task.cancelled():
            task.exception()  # an interrupt was raised where it belongs; nobody else asks for it

    def _start_thread(self, flight: Flight, load: Load) -> None:
        """Run the *load* of a plain `def` in a thread of the cache's own."""

        def work() -> None:
            flight.thread = threading.get_ident()
            try:
                self._lead(flight, load)
            finally:
                self.workers.discard(threading.current_thread())

        context = copy_context()
        thread = threading.Thread(
            target=context.run, args=(work,), name=f"load of {flight.name}", daemon=True
        )
        self.workers.add(thread)
        try:
            thread.start()
        except BaseException as error:  # noqa: BLE001 - the waiters get it
            self.workers.discard(thread)
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
            self.later.append(lambda _: wake(self.flights.end(flight), None))
            raise
        except BaseException as caught:  # noqa: BLE001 - every waiter gets it
            error = _trimmed(caught)
        self._conclude(flight, load, value, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            try:
                raise error
            finally:
                del error

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
        outcome = self._conclude(flight, load, value, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            try:
                raise error
            finally:
                del error, outcome
        return outcome

    def _conclude(
        self, flight: Flight, load: Load, value: object, error: BaseException | None
    ) -> Outcome:
        """Land *flight* and answer its waiters."""
        weight = 0
        now = self._time_or_zero()
        rejected = False
        cancelled = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, SystemExit))
        remember: float | None | Unset = UNSET
        if error is None:
            try:
                check_value(f"the loader of {flight.name!r}", value)
                rejected = True
                weight = self.measure(load.key, value)
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
        ttl = self.shortened(load.options)
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            counters = load.space.counters
            counters.loads += not (cancelled and flight.cancelling)
            counters.load_errors += failure is not None and not (cancelled and flight.cancelling)
            if self.flights.land(flight):
                if failure is None:
                    self.store.put(
                        load.space, load.key, load.kind, value, weight, ttl, now, dropped
                    )
                elif remember is not UNSET:
                    size = ENTRY_OVERHEAD + FAILURE_WEIGHT + weigh_key(load.key)
                    self.store.put(
                        load.space, load.key, None, failure.remembered(), size, remember, now, dropped
                    )
                elif rejected:
                    self.store.reject(load.space, load.key)
            waiting = self.flights.end(flight)
        outcome = Outcome(value, failure, now)
        wake(waiting, outcome)
        return outcome

    def shortened(self, options: CacheOptions) -> float | None:
        """Return the ttl of one entry, shortened by chance."""
        ttl = options.ttl
        if ttl is None or not options.jitter:
            return ttl
        return ttl * (1 - options.jitter * random.random())  # noqa: S311 - spreads load, hides nothing

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

    def _time_or_zero(self) -> float:
        """Read the clock where an error of the clock's own must not strand the waiters."""
        try:
            return self.clock()
        except Exception as error:  # noqa: BLE001 - see above
            _log.warning("the clock failed with %s while a load ended", type(error).__name__)
            return -math.inf  # with a ttl: born expired

    # -- the end

    def reopen(self) -> None:
        """Admit callers."""
        with self._lock:
            self.state = State.OPEN

    def shut(self, *, drain: bool) -> None:
        """Admit nobody any more."""
        with self._lock:
            if self.state is State.OPEN:
                self.state = State.DRAINING if drain else State.CLOSED

    def finish(self) -> list[Collection[object]]:
        """Close for good, unless reopened meanwhile; return what is to be freed in slices."""
        with self._lock:
            if self.state is State.OPEN:
                return []
            self.state = State.CLOSED
            wreck = self.store.clear()
            self.store.forget_removals()
        self.dismiss(lambda: self.flights.running, self.name)
        return wreck

    async def workers_ended(self, deadline: float) -> None:
        """Wait until the cache's own threads are gone, not only their loads."""
        loop = asyncio.get_running_loop()
        while any(thread.is_alive() for thread in tuple(self.workers)) and loop.time() < deadline:
            await asyncio.sleep(0.001)

    def dismiss(self, flights: Callable[[], Iterable[Flight]], name: str) -> None:
        """Answer the waiters of *flights* with CacheClosedError and cancel the loads."""
        with self._lock:
            chosen = list(flights())
            waiting = [self.flights.dismiss(flight) for flight in chosen]
        if any(waiting):
            outcome = Outcome(None, Failure(CacheClosedError(name), None), self._time_or_zero())
            for each in waiting:
                wake(each, outcome)
        cancel(chosen)

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
                ours = {thread.ident for thread in self.workers}
                pending = next(
                    (
                        flight
                        for flight in flights()
                        if flight is not current
                        and not (flight.loop is not None and flight.loop.is_closed())
                        and (threads or flight.loop is not None or flight.thread in ours)
                    ),
                    None,
                )
                if pending is None:
                    return True
                self.flights.watch(pending, waiter, loop)
            timer = loop.call_at(min(deadline, loop.time() + _FOR_EVER), _release, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._forget(None, pending, waiter)
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
                waiter.wait()
            finally:
                self._forget(None, pending, waiter)

    # -- counting

    def stats(self) -> CacheStats:
        """Return the counters of this moment. O(decorated functions)."""
        total = Counters()
        total.add(self.retired)
        for counters in tuple(self.counters):
            total.add(counters)
        store = self.store
        return CacheStats(
            hits=total.hits,
            misses=total.misses,
            coalesced=total.coalesced,
            loads=total.loads,
            load_errors=total.load_errors,
            overlapping_loads=self.flights.overlapping,
            evictions=sum(store.evictions.values()),
            rejected=store.rejected,
            estimated_weights=self.estimated,
            misses_by_reason={str(reason): n for reason, n in self.misses_by_reason.items()},
            removals_by_cause={str(cause): store.removals[cause] for cause in RemovalCause},
            evictions_by_cause=dict(store.evictions),
        )

    def check(self) -> None:
        """Recompute every invariant from scratch; raise AssertionError at a broken one."""
        dropped: list[object] = []
        with self._lock:
            self.catch_up(dropped)
            self.store.check()
            self.flights.check()


def _trimmed(error: BaseException) -> BaseException:
    """Take the catching frame out of the traceback of *error*: it holds what holds the error."""
    traceback = error.__traceback__
    return BaseException.with_traceback(error, traceback.tb_next if traceback else None)


def _release(waiter: "asyncio.Future[Outcome | None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def opened(value: object) -> Any:
    """Return *value*, or raise it if it is a failure; no frame keeps that failure."""
    if type(value) is Failure:
        try:
            value.throw()
        finally:
            del value
    return value


def cancel(flights: Iterable[Flight]) -> None:
    """Ask the tasks of *flights* to end; outside the lock."""
    for flight in flights:
        flight.cancel()


async def emptied(wreck: list[Collection[object]]) -> None:
    """Free cleared containers in slices, so that no turn of the loop takes long."""
    budget = SLICE
    while wreck:
        container = wreck[-1]
        take = getattr(container, "popitem", None) or container.pop  # type: ignore[attr-defined]
        while container:
            take()
            budget -= 1
            if not budget:
                await asyncio.sleep(0)
                budget = SLICE
        wreck.pop()
