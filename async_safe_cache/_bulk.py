"""Many keys, one load: `get_or_load_many`.

A caller of many keys goes round by round until no key is open:

    enter   under the lock, for each open key: a hit? a flight to join? one to wait out?
            else a flight of its own; those of one round are one load, see `_bulk_load`
    wait    for all of them, or for the first that fails

To a flight the caller is a waiter like any: at each it leaves a `Share`, which has the
methods of a future. So joining, fencing, leaving and closing know nothing of many keys,
but that flights of a `Group` share a task. All that is refused is refused before the
first flight of a round is opened.
"""

import asyncio
import logging
import math
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from contextvars import Context
from typing import Any, Final, final

from ._bulk_load import BulkLoad, LoadMany, Placing
from ._engine import State, cancel
from ._entries import Entry
from ._flights import Failure, Flight, Group, Loop, Outcome, Place, current_flight, wake
from ._loads import Loads, Step
from .errors import CacheClosedError, LoadCancelledError, LoadTimeoutError
from .options import CacheOptions

__all__ = ["Asked", "Bulk"]

_log = logging.getLogger("async_safe_cache")

Asked = dict[Place, tuple[Any, object]]
"""By place: the key as the caller gave it, and its kind."""


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
        if self.step is not Step.CLEAN_UP:  # what a cancelled load ends with is no answer
            self.outcome = outcome
        self._round.hear(self.outcome)

    def cancel(self) -> None:
        """Cancel the caller."""
        self._round.future.cancel()


def _release(shares: Iterable[Share]) -> None:
    for share in shares:
        if not share.done():
            share.set_result(None)


@final
class Bulk:
    """The loads of many keys of one cache."""

    def __init__(self, loads: Loads) -> None:
        self.loads = loads
        self.engine = loads.engine
        self.flights = loads.flights
        self.store = loads.store
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
        patience = options.hard_timeout
        last = math.inf if patience is None else asyncio.get_running_loop().time() + patience
        still_open = asked
        counted = False
        while still_open:
            failure = await self._round(
                still_open, answers, call, options, placing, store_extras, counted, last
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
        last: float,
    ) -> Failure | None:
        """Add to *answers* what one round gives; return the first failure, if there is one.

        At *last*, in the time of the loop, the caller waits no longer.
        """
        loop = asyncio.get_running_loop()
        current = current_flight.get()
        turn = _Round(loop)
        shares: list[Share] = []
        begun = self.engine.clock()
        run = BulkLoad(self.loads.landing, call, options, placing)
        failed = self._enter(
            asked, answers, run, turn, shares, current, loop, begun, counted, store_extras
        )
        if failed is not None or not shares:
            return failed
        slow = [share for share in shares if share.step is Step.CLEAN_UP]
        timer = alarm = None
        try:
            if last < math.inf:
                alarm = loop.call_at(last, self._time_is_up, turn, options, context=Context())
            if run.flights:
                run.start(loop)
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
            if alarm is not None:
                alarm.cancel()
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

    def _time_is_up(self, turn: _Round, options: CacheOptions) -> None:
        """Let the caller of *turn* wait no longer."""
        if not turn.future.done():
            error = LoadTimeoutError(self.engine.name, options.hard_timeout or 0.0, "hard_timeout")
            ended = self.engine.moment_or_none()
            turn.future.set_result(Outcome(None, Failure(error, None), ended))

    def _enter(
        self,
        asked: Asked,
        answers: dict[Place, Any],
        run: BulkLoad,
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
                    opened = flights.open_alone if alone else flights.open
                    flight = opened(place, space.name, loop)
                    flight.begun = now
                    run.add(flight, *asked[place])
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
                run.keep_journal()
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
                if entry is not None and self.engine.unfit(entry, space.version) is None:
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


@final
class _Omitted:
    """Stands for the value of a key that the loader did not give."""


_OMITTED: Final = _Omitted()
