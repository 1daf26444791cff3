"""Many keys, one load: `get_or_load_many`.

A caller of many keys goes round by round until no key is open:

    enter   under the lock, for each open key: a hit? a flight to join? one to wait out?
            else a flight of its own; those of one round are a group
    run     the group's loader, once, in a task of the cache's own
    land    under the lock, all keys in one step: each is stored only if the registry
            still holds its flight
    answer  whoever waits for any of them

To a flight the caller is a waiter like any: at each it leaves a `Share`, which has the
methods of a future. So joining, fencing, leaving and closing know nothing of many keys,
but that flights of a `Group` share a task. All that is refused is refused before the
first flight of a round is opened.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from inspect import isawaitable
from typing import Any, Final, cast, final

from ._engine import State, cancel, check_value
from ._entries import Entry, Namespace
from ._flights import Failure, Flight, Group, Loop, Outcome, Place, current_flight, wake
from ._journal import Journal
from ._keys import DataKey
from ._landing import MANY, trimmed
from ._loads import Loads, Step
from ._tasks import start
from .errors import CacheClosedError, LoadCancelledError
from .options import CacheOptions

__all__ = ["Asked", "Bulk", "Placing"]

_log = logging.getLogger("async_safe_cache")

Asked = dict[Place, tuple[Any, object]]
"""By place: the key as the caller gave it, and its kind."""

Placing = Callable[[object], tuple[Namespace, DataKey, object]]
"""Where a key is stored, and its kind; raises for what cannot be a key."""

LoadMany = Callable[[list[Any]], Any]


@final
class _Round:
    """What one caller waits for now: all its shares, or the first of them that fails."""

    __slots__ = ("future", "left")

    def __init__(self, loop: Loop) -> None:
        self.future: asyncio.Future[Outcome | None] = loop.create_future()
        self.left = 0

    def hear(self, outcome: Outcome | None) -> None:
        """One share was answered."""
        self.left -= 1
        if outcome is not None and outcome.failure is not None:
            self.future.set_result(outcome)
        elif not self.left:
            self.future.set_result(None)


@final
class Share:
    """A caller of many keys, as the waiter of one flight."""

    __slots__ = ("_round", "answered", "flight", "outcome", "place", "step")

    def __init__(self, turn: _Round, place: Place, flight: Flight, step: Step) -> None:
        self._round = turn
        turn.left += 1
        self.place = place
        self.flight = flight
        self.step = step
        self.answered = False
        self.outcome: Outcome | None = None

    def done(self) -> bool:
        """Tell whether it needs no answer any more."""
        return self.answered or self._round.future.done()

    def set_result(self, outcome: Outcome | None, /) -> None:
        """Take the answer of its flight."""
        self.answered = True
        self.outcome = outcome
        self._round.hear(outcome)

    def cancel(self) -> None:
        """Cancel the caller."""
        self._round.future.cancel()


def _release(shares: Iterable[Share]) -> None:
    for share in shares:
        if not share.done():
            share.set_result(None)


@final
class _Run:
    """One run of a loader of many keys, and the flights that it answers.

    Attributes:
        omitted: Of the flights, those whose keys it did not give.
        journal: What changed since it began, if more than what was asked for is stored.
    """

    __slots__ = ("call", "flights", "group", "journal", "keys", "omitted", "options", "placing")

    def __init__(
        self, call: LoadMany, options: CacheOptions, placing: Placing, group: Group
    ) -> None:
        self.call = call
        self.options = options
        self.placing = placing
        self.group = group
        self.keys: list[Any] = []
        self.flights: dict[Place, Flight] = {}
        self.omitted: set[Flight] = set()
        self.journal: Journal | None = None

    @property
    def lead(self) -> Flight:
        """The first of the flights: what the loader's tasks are part of."""
        return next(iter(self.flights.values()))


Extra = tuple[Namespace, DataKey, object, object]
"""A value that nobody asked for: where it belongs, the kind of its key, the value."""


@final
class Bulk:
    """The loads of many keys of one cache."""

    def __init__(self, loads: Loads) -> None:
        self.loads = loads
        self.engine = loads.engine
        self.flights = loads.flights
        self.store = loads.store
        self.landing = loads.landing
        self._lock = loads.engine.store.lock

    async def load(
        self,
        asked: Asked,
        call: LoadMany,
        options: CacheOptions,
        placing: Placing,
        *,
        store_extras: bool,
    ) -> dict[Place, Any]:
        """Return the values at the places of *asked*, but of those that *call* omits."""
        answers: dict[Place, Any] = {}
        still_open = asked
        counted = False
        while still_open:
            failure = await self._round(
                still_open, answers, call, options, placing, store_extras, counted
            )
            if failure is not None:
                try:
                    failure.throw()
                finally:
                    del failure
            still_open = {place: each for place, each in still_open.items() if place not in answers}
            counted = True
        return {place: value for place, value in answers.items() if value is not _OMITTED}

    async def _round(
        self,
        asked: Asked,
        answers: dict[Place, Any],
        call: LoadMany,
        options: CacheOptions,
        placing: Placing,
        store_extras: bool,
        counted: bool,
    ) -> Failure | None:
        """Add to *answers* what one round gives; return the first failure, if there is one."""
        loop = asyncio.get_running_loop()
        current = current_flight.get()
        turn = _Round(loop)
        shares: list[Share] = []
        begun = self.engine.clock()
        run = _Run(call, options, placing, Group(None))
        failed = self._enter(
            asked, answers, run, turn, shares, current, loop, begun, counted, store_extras
        )
        if failed is not None or not shares:
            return failed
        slow = [share for share in shares if share.step is Step.CLEAN_UP]
        timer = None
        try:
            if run.flights:
                self._start(run, loop)
            if slow:
                timer = loop.call_later(options.cancel_grace, _release, slow)
            with self._guarding(shares, loop):
                first = await turn.future
        except GeneratorExit:
            # The collector closes a coroutine whose loop died: no place to take a lock.
            self.engine.later.append(lambda _: self._leave(current, shares))
            raise
        except BaseException:
            self._leave(current, shares)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if first is not None:
            self._leave(current, shares)
            if first.ended is not None:
                self.engine.recent.fresh.append(first.ended - begun)
            return first.failure
        if current is not None:
            for share in shares:
                current.waits_on.pop(share, None)
        if slow:
            self._overtake(slow, options.cancel_grace)
        for share in shares:
            outcome = share.outcome
            if outcome is not None:
                answers[share.place] = outcome.value
                if outcome.ended is not None:
                    self.engine.recent.fresh.append(outcome.ended - begun)
            elif share.step is Step.LEAD:
                if share.flight in run.omitted:
                    answers[share.place] = _OMITTED
                elif not share.flight.cancelling:
                    raise LoadCancelledError(share.flight.name)  # something stopped its very end
        return None

    def _enter(
        self,
        asked: Asked,
        answers: dict[Place, Any],
        run: _Run,
        turn: _Round,
        shares: list[Share],
        current: Flight | None,
        loop: Loop,
        now: float,
        counted: bool,
        store_extras: bool,
    ) -> Failure | None:
        """Decide, in one step, what this caller does at each key; a remembered failure ends it."""
        engine, flights = self.engine, self.flights
        failure: Failure | None = None
        dropped: list[object]
        with self._lock:
            if engine.later:
                dropped = []  # dies after the lock
                engine.catch_up(dropped)
            if engine.state is not State.OPEN:
                engine.admit()
            engine.recent.roll(now, engine.stats)
            hits, others = self._look(asked, current, loop, now)
            for entry in hits:
                entry.space.counters.other_hits += not counted
                value = entry.value
                if type(value) is not Failure:
                    answers[entry.space, entry.key] = value
                elif failure is None:
                    failure = value
            if failure is not None:
                return failure
            alone = self.store.bypassed
            for place, found in others:
                space, key = place
                flight = found
                if flight is None or flight.done:
                    flight = self._open(place, asked[place], run, current, loop, alone)
                    step = Step.LEAD
                elif flight.cancelling:
                    step = Step.CLEAN_UP
                else:
                    step = Step.JOIN
                if not counted:
                    if step is Step.JOIN:
                        space.counters.coalesced += 1
                    else:
                        engine.miss(space, key)
                share = Share(turn, place, flight, step)
                shares.append(share)
                if step is Step.CLEAN_UP:
                    flights.watch(flight, share, loop)
                else:
                    flight.waiters[share] = loop
                if current is not None:
                    current.wait_for(flight, share)
            if store_extras and run.flights:
                run.journal = Journal()
                engine.journals.add(run.journal)
        return None

    def _look(
        self, asked: Asked, current: Flight | None, loop: Loop, now: float
    ) -> tuple[list[Entry], list[tuple[Place, Flight | None]]]:
        """Locked. Return the hits, and what is registered at the other places.

        Refuses what could never end, before anything is changed.
        """
        store, flights = self.store, self.flights
        hits: list[Entry] = []
        others: list[tuple[Place, Flight | None]] = []
        seen: set[Flight | Group] = set()
        for place in asked:
            space, key = place
            if space.closed:
                raise CacheClosedError(space.name)
            if key in space.data:
                entry = store.find(space, key, now)
                if entry is not None:
                    hits.append(entry)
                    continue
            flight = flights.get(place, loop)
            if current is not None:
                if flight is None:
                    if store.bypassed:
                        self.loads._refuse_recursion(current, place)
                elif (flight.group or flight) not in seen:
                    seen.add(flight.group or flight)
                    self.loads._refuse_deadlock(current, flight, loop)
            others.append((place, flight))
        return hits, others

    def _open(
        self,
        place: Place,
        asked: tuple[Any, object],
        run: _Run,
        current: Flight | None,
        loop: Loop,
        alone: bool,
    ) -> Flight:
        """Locked. Open a flight of the caller's own, in the group of *run*."""
        given, kind = asked
        name = place[0].name
        opened = self.flights.open_alone if alone else self.flights.open
        flight = opened(place, name, loop)
        flight.load = kind, run.call, (), run.options
        if current is not None:
            flight.depth = current.depth + 1
        if run.options.on_abandon == "finish":
            flight.keep = True
        if not run.flights:
            run.group.counters = place[0].counters
        run.group.add(flight)
        run.flights[place] = flight
        run.keys.append(given)
        return flight

    @contextmanager
    def _guarding(self, shares: list[Share], loop: Loop) -> Generator[None, None, None]:
        """Look after the other loops that *shares* wait for: one flight stands for its loop."""
        far = {share.flight.loop: share.flight for share in shares if share.flight.loop is not loop}
        if not far:
            yield
            return
        with ExitStack() as stack:
            for flight in far.values():
                stack.enter_context(self.engine.guards.guarding(flight, loop))
            yield

    def _leave(self, current: Flight | None, shares: list[Share]) -> None:
        """Take *shares* out of their flights; cancel the loads that nobody needs any more."""
        doomed: list[Flight] = []
        with self._lock:
            for share in shares:
                if current is not None:
                    current.waits_on.pop(share, None)
                left = None if share.flight.done else self.flights.leave(share.flight, share)
                if left is not None:
                    doomed.append(left)
        cancel(doomed)

    def _overtake(self, slow: list[Share], grace: float) -> None:
        """Go on beside the flights that are still in the way: one load, whatever the keys."""
        with self._lock:
            before = self.flights.overlapping
            watching = [self.flights.give_up(share.flight) for share in slow]
            overtaken = self.flights.overlapping > before
            self.flights.overlapping = before + overtaken
        for each in watching:
            wake(each, None)
        if overtaken:
            _log.warning(
                "the cancelled load of keys of %s is not cleaned up after %s s; another starts "
                "beside it",
                slow[0].flight.name,
                grace,
            )

    # -- the load

    def _start(self, run: _Run, loop: Loop) -> None:
        """Run the loader in a task of the cache's own, which no caller owns."""
        lead = run.lead
        context = copy_context()
        context.run(current_flight.set, lead)
        running = self._run(run)
        try:
            # Not at once: one turn of the loop is nothing beside many keys.
            name = f"load of keys of {lead.name}"
            task = start(loop, running, name=name, context=context, eager=False)
        except BaseException as error:
            running.close()
            self._end(run, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            return
        for flight in run.flights.values():
            if not flight.done:
                flight.task = task
        task.add_done_callback(lambda _: self._task_done(run))
        if run.group.stopping:
            lead.cancel()

    def _task_done(self, run: _Run) -> None:
        """End the flights of a task that was cancelled before its first step."""
        if not all(flight.done for flight in run.flights.values()):
            self._end(run, asyncio.CancelledError())

    async def _run(self, run: _Run) -> None:
        """Run the loader; what comes of it goes to the waiters, never into the task."""
        lead = run.lead
        result: Any = None
        error: BaseException | None = None
        values: dict[Flight, Any] = {}
        extras: list[Extra] = []
        try:
            if lead.task is None:  # some task factories begin at once
                await asyncio.sleep(0)
            result = run.call(list(run.keys))
            if isawaitable(result):
                result = await result
            values, extras = _sorted(run, result)
        except GeneratorExit:
            self.engine.later.append(lambda _: self._drop(run))
            raise
        except BaseException as caught:  # noqa: BLE001 - every waiter gets it
            error = trimmed(caught)
        try:
            if error is None:
                try:
                    self._land(run, values, extras)
                except Exception as broken:  # noqa: BLE001 - a bug: nobody may wait for ever
                    self._end(run, trimmed(broken))
            else:
                self._end(run, error)
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    task = asyncio.current_task()
                    if task is not None:  # raised where it belongs; nobody else asks for it
                        task.add_done_callback(lambda task: task.cancelled() or task.exception())
                    raise error
        finally:
            self._drop(run)
            # The loader's frames, which the error holds, lead back to this one.
            del error, result, values, extras

    def _land(self, run: _Run, values: dict[Flight, Any], extras: list[Extra]) -> None:
        """Store and tell all that was loaded, in one step; a value that is refused fails alone."""
        engine, store, flights = self.engine, self.store, self.flights
        options = run.options
        now = engine.moment_or_none()
        good: list[tuple[Flight, object, int]] = []
        bad: list[tuple[Flight, Exception, bool]] = []
        for flight, value in values.items():
            rejected = False
            try:
                check_value("load_many", flight.name, value)
                rejected = True
                good.append((flight, value, engine.measure(flight.key[1], value)))
            except Exception as caught:  # noqa: BLE001 - who waits for it gets it
                bad.append((flight, cast("Exception", trimmed(caught)), rejected))
        weighed = self._weighed(extras)
        told: list[tuple[Any, Outcome | None]] = []
        dropped: list[object] = []
        try:
            with self._lock:
                engine.catch_up(dropped)
                if len(engine.recent.fresh) > MANY:
                    engine.recent.count_waits()
                run.group.count(failed=False)
                # First, or they might evict what was asked for.
                self._store_extras(run, weighed, now, dropped)
                for flight, value, weight in good:
                    space, key = flight.key
                    if flights.land(flight):
                        if now is None:
                            store.reject(space, key, -math.inf, dropped)
                        else:
                            ttl = engine.shortened(options)
                            kind = (flight.load or (None,))[0]
                            store.put(space, key, kind, value, weight, ttl, now, dropped)
                    told.append((flights.end(flight), Outcome(value, None, now)))
                for flight in run.flights.values():
                    if flight not in values:
                        run.omitted.add(flight)
                        told.append((flights.end(flight), None))
        finally:
            for waiting, outcome in told:
                wake(waiting, outcome, run.lead.loop)
        for flight, error, rejected in bad:
            self.landing.fail((flight,), error, rejected, now)

    def _weighed(self, extras: list[Extra]) -> list[tuple[Extra, int]]:
        weighed: list[tuple[Extra, int]] = []
        for extra in extras:
            space, key, _, value = extra
            try:
                check_value("load_many", space.name, value)
                weighed.append((extra, self.engine.measure(key, value)))
            except Exception as error:  # noqa: BLE001 - nobody asked for it, nobody is told
                _log.warning("a value that nobody asked for: %s", type(error).__name__)
        return weighed

    def _store_extras(
        self,
        run: _Run,
        weighed: list[tuple[Extra, int]],
        now: float | None,
        dropped: list[object],
    ) -> None:
        """Locked. Store each where nothing happened since the load began, and nothing is."""
        journal = run.journal
        # Closed, or of a loop that was found dead: it stores nothing any more.
        over = all(flight.done or flight.cancelling for flight in run.flights.values())
        if journal is None or now is None or over:
            return
        for (space, key, kind, value), weight in weighed:
            taken = space.closed or self.store.holds(space, key, now)
            if taken or journal.changed((space, key)) or self.flights.get((space, key), None):
                continue
            ttl = self.engine.shortened(run.options)
            self.store.put(space, key, kind, value, weight, ttl, now, dropped)

    def _end(self, run: _Run, error: BaseException) -> None:
        """Fail every key of *run*."""
        try:
            flights = [flight for flight in run.flights.values() if not flight.done]
            if flights:
                self.landing.fail(flights, error, False, self.engine.moment_or_none())
        finally:
            self._drop(run)
            del error

    def _drop(self, run: _Run) -> None:
        """Let go of *run*; if anything broke on the way to its end, wake who still waits."""
        if run.journal is not None:
            self.engine.journals.discard(run.journal)
        with self._lock:
            left = [self.flights.end(each) for each in run.flights.values() if not each.done]
            run.group.members.clear()
        for each in left:
            wake(each, None)


def _sorted(run: _Run, result: Any) -> tuple[dict[Flight, Any], list[Extra]]:
    """Return the values of *result* by the flights that wait for them, and what is left over.

    Raises:
        TypeError: *result* is no mapping.
    """
    if not isinstance(result, Mapping):
        raise TypeError(
            f"load_many of {run.lead.name!r} must return a mapping of keys to values, "
            f"not {type(result).__name__}"
        )
    values: dict[Flight, Any] = {}
    extras: list[Extra] = []
    mapping: Mapping[Any, Any] = result  # pyright: ignore[reportUnknownVariableType]
    for key, value in mapping.items():
        try:
            # Not by `==`: the answer for True is none for 1.
            space, data, kind = run.placing(key)
        except Exception:  # noqa: BLE001, S112 - what cannot be a key was not asked for
            continue
        flight = run.flights.get((space, data))
        if flight is not None:
            values[flight] = value
        elif run.journal is not None:
            extras.append((space, data, kind, value))
    return values, extras


@final
class _Omitted:
    """Stands for the value of a key that the loader did not give."""


_OMITTED: Final = _Omitted()
