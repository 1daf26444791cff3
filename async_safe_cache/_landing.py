"""The end of a load: its value is stored, or its failure told, and everybody answered.

    land     under the lock: stored only if the registry still holds *this* flight
    answer   every waiter, outside the lock, whatever happened on the way

A load that ends in the first step of its task, and leaves nothing in the store, is
answered a turn of the loop later: who calls in the same turn still shares it. A failure
of that step is even told a turn later, when its frames no longer lead to the caller's.

User code (weigher, clock, `negative=`) runs before the lock is taken.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from typing import Any, Final, cast, final

from ._backoff import delay
from ._engine import Engine, cancel, check_value, shortened
from ._entries import Facts
from ._flights import Failure, Flight, Loop, Outcome, ThreadWaiter, Waiter, wake
from ._loader import LoadContext
from ._marks import Marks
from ._store import ENTRY_OVERHEAD
from ._weight import weigh_key
from .errors import LoadCancelledError, LoadTimeoutError
from .options import UNSET, CacheOptions, Unset
from .outcomes import RemovalCause

__all__ = ["ENDED", "MANY", "NOT_KEPT", "Landing", "Load", "trimmed"]

_log = logging.getLogger("async_safe_cache")

MANY: Final = 256
"""Callers that waited and are not counted yet, until a landing counts them."""

NOT_KEPT: Final = -1 << 62
"""The weight of a value that is returned and not stored, with any marks."""

BEHIND: Final = 1.0
"""Seconds in which, after a failed load, none begins behind the value, unless options say else:
nobody waits for such loads, so nothing else would keep them apart."""

FAILURE_WEIGHT: Final = 1024
"""Bytes accounted for a remembered exception, whose own are unknown."""


Load = tuple[object, Callable[..., Any], tuple[Any, ...], CacheOptions]
"""What `Flight.load` is: the kind of the key, the call, its arguments, its options."""

ENDED: Final[Load] = (None, type(None), (), CacheOptions())  # of a flight that was given up


@final
class Landing:
    """How the loads of one cache end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.flights = engine.flights
        self.store = engine.store
        self._lock = engine.store.lock

    def conclude(
        self, flight: Flight, value: object, error: BaseException | None
    ) -> Outcome | None:
        """Land *flight* and answer its waiters, whatever happens on the way.

        None: nothing was done; to be called again when the first step is over.
        """
        outcome: Outcome | None = None
        try:
            return self._landed(flight, value, error)
        except BaseException as broken:
            # An interrupt, too deep a stack, or a bug: nobody may wait for ever.
            if isinstance(broken, Exception):
                outcome = Outcome(None, Failure(broken, trimmed(broken).__traceback__), None)
            with self._lock:
                waiting = self.flights.end(flight)
            wake(waiting, outcome)
            if outcome is None:
                raise
            return outcome
        finally:
            del error, value, outcome

    def answer(self, flight: Flight, outcome: Outcome) -> None:
        """Tell those who wait for *flight* what it ended with."""
        with self._lock:
            waiting = self.flights.end(flight)
        wake(waiting, outcome)
        self.engine.tell()

    def _landed(self, flight: Flight, value: object, error: BaseException | None) -> Outcome | None:
        now = self.engine.moment_or_none()
        rejected = False
        if error is None:
            try:
                keep = True
                if flight.told is not None:
                    value, keep = flight.told.unwrap(value)
                check_value("the loader", flight.name, value)
                rejected = True
                skip = (flight.load or ENDED)[3].skip
                if skip is not None and keep:
                    keep = not skip(value)
                weight = self.engine.measure(flight.key[1], value) if keep else NOT_KEPT
                if flight.marks is not None:
                    weight += flight.marks.weight()
            except Exception as caught:  # noqa: BLE001 - every waiter gets it
                if self.flights.in_first_step(flight):
                    return None
                error = trimmed(caught)
            else:
                return self._keep(flight, value, weight, now)
        try:
            return self.fail((flight,), error, rejected, now)
        finally:
            del error

    def _keep(self, flight: Flight, value: object, weight: int, now: float | None) -> Outcome:
        """End *flight* with *value*; store it, unless the flight was shut out."""
        engine = self.engine
        space = flight.key[0]
        dropped: list[object] = []
        doomed: list[Flight] = []
        with self._lock:
            if engine.later:
                engine.catch_up(dropped)
            if len(engine.recent.fresh) > MANY:
                engine.recent.count_waits()
            if not flight.timed_out:
                space.counters.loads += 1
            stored = self.store_value(flight, value, weight, now, dropped, doomed)
            shared = stored is not False
            outcome = Outcome(value, None, now)
            if not shared and not doomed and self.flights.in_first_step(flight):
                flight.outcome = outcome
                return outcome
            waiting = self.flights.end(flight)
        wake(waiting, outcome, flight.loop)
        if doomed:
            cancel(doomed)
        if self.store.events is not None:
            del dropped  # its values are gone before anybody is told
            engine.tell()
        return outcome

    def store_value(
        self,
        flight: Flight,
        value: object,
        weight: int,
        now: float | None,
        dropped: list[object],
        doomed: list[Flight],
    ) -> bool | None:
        """Locked. Store what *flight* has loaded; None if it was shut out, False if refused.

        A negative *weight* is that of a value that is not to be stored.
        """
        engine, store = self.engine, self.store
        space, key = flight.key
        kind, _, _, options = flight.load or ENDED
        stored: bool | None = None
        allowed = self.flights.land(flight)
        if flight.marks is not None and allowed:
            allowed = self._unfenced(flight, now, dropped)
        if not allowed:
            pass
        elif weight < 0:
            stored = False
            store.reject(space, key, -math.inf if now is None else now, dropped)
            self._back_off(flight, options, now, failed=False)
        elif now is None:
            store.reject(space, key, -math.inf, dropped)
            stored = False
        elif flight.heat is not None and not store.makes_room(
            space, key, weight, flight.heat, now, dropped
        ):
            stored = False
        else:
            told: LoadContext | None = flight.told
            ttl = options.ttl if told is None or told.ttl is UNSET else told.ttl
            if options.jitter:
                ttl = shortened(ttl, options.jitter)
            if store.links.nodes or engine.watches:
                engine.replaced(flight, now, dropped, doomed)
            facts = None if flight.marks is None else self._facts(flight, now)
            stored = store.put(space, key, kind, value, weight, ttl, now, dropped, facts)
            if space.counted and store.popularity is not None:
                store.popularity.took((space, key), max(0.0, now - flight.begun))
            if store.links.nodes:
                engine.trim(now, dropped, doomed)
        if store.events is not None and not flight.timed_out:
            seconds, refresh = flight.seconds(now), flight.refresh
            store.events.loaded(space, key, kind, seconds, stored=bool(stored), refresh=refresh)
        return stored

    def _unfenced(self, flight: Flight, now: float | None, dropped: list[object]) -> bool:
        """Locked. Tell whether no tag that the value turned out to have was invalidated."""
        if not self.engine.held_back(flight, flight.marks.all_tags()):
            return True
        space, key = flight.key
        cause = RemovalCause.TAG_INVALIDATED
        self.store.remove(
            space, key, cause, -math.inf if now is None else now, dropped, fenced=True
        )
        return False

    def _facts(self, flight: Flight, now: float) -> Facts:
        """Locked. Return the facts of the entry that *flight* leaves; it takes over the link."""
        link, flight.link = flight.link, None
        marks: Marks = flight.marks
        facts = marks.facts(self.store.generation, link)
        facts.seconds = max(0.0, now - flight.begun)
        return facts

    def _back_off(
        self, flight: Flight, options: CacheOptions, now: float | None, *, failed: bool = True
    ) -> None:
        """Locked. Let what is held at the key of *flight*, which brought nothing, stand a while.

        A load that has not *failed* brought something to its callers: the next one that must
        wait for a load, does.
        """
        space, key = flight.key
        entry = space.data.get(key)
        facts = None if entry is None else entry.facts
        if entry is None or now is None or not isinstance(facts, Facts):
            return
        facts.failures = facts.failures + 1 if failed else 0
        first = BEHIND if options.error_backoff is None else options.error_backoff
        facts.retry = now + delay(first, max(1, facts.failures))
        self.store.look_again(entry, facts.retry)

    def _note(
        self,
        flight: Flight,
        options: CacheOptions,
        failure: Failure,
        remember: float | None | Unset,
        now: float | None,
        dropped: list[object],
    ) -> None:
        """Locked. Store *failure* as the answer that it is, or let what is held stand a while."""
        space, key = flight.key
        if now is None or remember is UNSET or self.store.holds(space, key, now):
            self._back_off(flight, options, now)
            return
        size = ENTRY_OVERHEAD + FAILURE_WEIGHT + weigh_key(key)
        facts: Facts | None = None
        if flight.marks is not None:
            size += flight.marks.weight()
            facts = self._facts(flight, now)
            facts.window = 0.0  # an answer of its own: nobody is served it past its time
        memory = failure.remembered()
        self.store.put(space, key, None, memory, size, remember, now, dropped, facts)

    def time_out(self, flight: Flight, seconds: float) -> None:
        """End *flight*, which has taken *seconds*, for those who wait; then cancel its task."""
        engine = self.engine
        now = engine.moment_or_none()
        error = LoadTimeoutError(flight.name, seconds, "load_timeout")
        failure = Failure(error, None)
        outcome = Outcome(None, failure, now)
        options = (flight.load or ENDED)[3]
        remember = self._remember(options, error) if options.negative else UNSET
        dropped: list[object] = []
        with self._lock:
            allowed = self.flights.land(flight)
            waiting = self.flights.time_out(flight)
            if waiting is None:
                return
            kind = (flight.load or ENDED)[0]
            space, key = flight.key
            engine.load_timeouts += 1
            space.counters.loads += 1
            space.counters.load_errors += 1
            engine.failed(flight.key, error)
            if flight.marks is not None and allowed:
                allowed = self._unfenced(flight, now, dropped)
            if allowed:
                self._note(flight, options, failure, remember, now, dropped)
            if self.store.events is not None:
                self.store.events.load_failed(space, key, kind, type(error).__name__)
        flight.cancel()
        wake(waiting, outcome)
        del dropped  # its values are gone before anybody is told
        engine.tell()

    def fail(
        self,
        flights: Collection[Flight],
        error: BaseException,
        rejected: bool,
        now: float | None,
    ) -> Outcome:
        """End *flights*, which one load was to answer, with *error*; remember it, if asked to."""
        flight = next(iter(flights))
        _, _, _, options = flight.load or ENDED
        interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
        cancelled = interrupted or isinstance(error, asyncio.CancelledError)
        stopped_from_outside = (
            cancelled and flight.task is not None and flight.task.cancelling() > 0
        )
        if cancelled:
            stopped_by, error = error, LoadCancelledError(flight.name)
            error.__cause__ = stopped_by
        elif isinstance(error, StopIteration):
            stopped = RuntimeError(f"the loader of {flight.name!r} raised StopIteration")
            stopped.__cause__ = error
            error = stopped
        failure = Failure(error, error.__traceback__)
        remember: float | None | Unset = UNSET
        if not cancelled and not rejected and options.negative:
            remember = self._remember(options, error)
        # One failure for all: once the first is told, its exception may be raised, and change.
        outcome = Outcome(None, failure, now)
        for each in flights:
            self._tell(each, outcome, remember, rejected, cancelled, stopped_from_outside)
        return outcome

    def _tell(
        self,
        flight: Flight,
        outcome: Outcome,
        remember: float | None | Unset,
        rejected: bool,
        cancelled: bool,
        stopped_from_outside: bool,
    ) -> None:
        """End *flight* with the failure in *outcome*."""
        engine, now = self.engine, outcome.ended
        space, key = flight.key
        options = (flight.load or ENDED)[3]
        failure = cast("Failure", outcome.failure)
        stopped_by = failure.error.__cause__ if cancelled else None
        interrupted = isinstance(stopped_by, (KeyboardInterrupt, SystemExit))
        dropped: list[object] = []
        with self._lock:
            engine.catch_up(dropped)
            if len(engine.recent.fresh) > MANY:
                engine.recent.count_waits()
            counters = space.counters
            # A load that was only stopped is none, unless somebody is told that it failed.
            ended = (
                not flight.timed_out
                and not (cancelled and flight.cancelling)
                and (
                    not stopped_from_outside
                    or any(_is_near(w, flight) for w in flight.waiters.items())
                )
            )
            if flight.group is None:
                counters.loads += ended
                counters.load_errors += ended
            elif ended:
                flight.group.count(counters, failed=True)
            if ended:
                engine.failed(flight.key, failure.error)
            allowed = self.flights.land(flight)
            if flight.marks is not None and allowed:
                allowed = self._unfenced(flight, now, dropped)
            if not allowed:
                pass
            elif rejected:
                self._back_off(flight, options, now)
                self.store.reject(space, key, -math.inf if now is None else now, dropped)
            elif ended:
                self._note(flight, options, failure, remember, now, dropped)
            events = self.store.events
            if events is not None and ended:
                kind = (flight.load or ENDED)[0]
                events.load_failed(space, key, kind, type(failure.error).__name__)
            waiting = self.flights.end(flight)
        if interrupted:
            # The program ends: its own tasks are cancelled, as asyncio.run is about to do.
            waiting = dict(each for each in waiting.items() if not _cancelled(each, flight))
        if stopped_from_outside:
            # asyncio.run ends its loop so. To who waits elsewhere that is no answer: load again.
            wake(dict(each for each in waiting.items() if not _is_near(each, flight)), None)
            waiting = dict(each for each in waiting.items() if _is_near(each, flight))
        wake(waiting, outcome)
        if events is not None:
            del dropped  # its values are gone before anybody is told
            events.deliver()

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


def trimmed(error: BaseException) -> BaseException:
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
