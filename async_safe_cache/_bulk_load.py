"""One run of a loader of many keys, and the flights that it answers.

    run     the loader, once, in a task of the cache's own
    land    under the lock, all keys in one step: each is stored only if the registry
            still holds its flight
    answer  whoever waits for any of them

A key that the loader omits ends its flight without an outcome: who waits for that key
alone asks again, and loads for himself. A value that is refused fails its key alone.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextvars import copy_context
from inspect import isawaitable
from typing import Any, cast, final

from ._engine import cancel, check_value
from ._entries import Namespace
from ._flights import Flight, Group, Loop, Outcome, Place, current_flight, wake
from ._journal import Journal
from ._keys import DataKey
from ._landing import MANY, NOT_KEPT, Landing, trimmed
from ._loader import isolated
from ._marks import Marks
from ._tasks import start
from .options import CacheOptions

__all__ = ["BulkLoad", "LoadMany", "Placing"]

_log = logging.getLogger("async_safe_cache")

Placing = Callable[[object], tuple[Namespace, DataKey, object]]
"""Where a key is stored, and its kind; raises for what cannot be a key."""

LoadMany = Callable[[list[Any]], Any]
"""The user's loader: the absent keys, to a mapping or to an awaitable of one."""

Extra = tuple[Namespace, DataKey, object, object]
"""A value that nobody asked for: where it belongs, the kind of its key, the value."""


@final
class BulkLoad:
    """The flights that one caller opened in one step, and the load that answers them.

    Attributes:
        flights: By place, in the order of the keys. Bounded by the caller's keys.
        omitted: Those of them whose keys the loader did not give.
        journal: What changed since it began, if more than what was asked for is stored.
    """

    __slots__ = (
        "_call",
        "_engine",
        "_group",
        "_keys",
        "_landing",
        "_lock",
        "_options",
        "_placing",
        "_tags",
        "flights",
        "journal",
        "omitted",
    )

    def __init__(
        self,
        landing: Landing,
        call: LoadMany,
        options: CacheOptions,
        placing: Placing,
    ) -> None:
        self._landing = landing
        self._engine = landing.engine
        self._lock = landing.store.lock
        self._call = call
        self._options = options
        self._placing = placing
        self._tags = () if callable(options.tags) else options.tags
        self._group = Group()
        self._keys: list[Any] = []
        self.flights: dict[Place, Flight] = {}
        self.omitted: set[Flight] = set()
        self.journal: Journal | None = None

    @property
    def lead(self) -> Flight:
        """The first of the flights: what the loader's own calls are part of."""
        return next(iter(self.flights.values()))

    def add(self, flight: Flight, given: object, kind: object) -> None:
        """Locked. Let *flight*, new and of the key as *given*, be answered by this load."""
        flight.load = kind, self._call, (), self._options
        flight.marks = self._marks(flight.key[0])
        flight.generation = self._engine.store.generation
        flight.keep = self._options.on_abandon == "finish"
        self._group.add(flight)
        self.flights[flight.key] = flight
        self._keys.append(given)

    def keep_journal(self) -> None:
        """Locked. From now on note what changes, to store what nobody asked for."""
        self.journal = Journal()
        self._engine.journals.add(self.journal)

    def start(self, loop: Loop) -> None:
        """Run the loader in a task of the cache's own, which no caller owns."""
        lead = self.lead
        options = self._options
        context = isolated(options) if options.context == "isolated" else copy_context()
        context.run(current_flight.set, lead)
        running = self._run()
        try:
            # Not at once: one turn of the loop is nothing beside many keys.
            name = f"load of keys of {lead.name}"
            task = start(loop, running, name=name, context=context, eager=False)
        except BaseException as error:
            running.close()
            self._fail(error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            return
        for flight in self.flights.values():
            if not flight.done:
                flight.task = task
        task.add_done_callback(self._task_done, context=context)
        if self._group.stopping:
            lead.cancel()

    def _task_done(self, _: object) -> None:
        """End the flights of a task that was cancelled before its first step."""
        self._fail(asyncio.CancelledError())

    async def _run(self) -> None:
        """Run the loader; what comes of it goes to the waiters, never into the task."""
        result: Any = None
        error: BaseException | None = None
        values: dict[Flight, Any] = {}
        extras: list[Extra] = []
        try:
            if self.lead.task is None:  # some task factories begin at once
                await asyncio.sleep(0)
            result = self._call(self._keys)
            if isawaitable(result):
                result = await result
            values, extras = self._sorted(result)
        except GeneratorExit:
            # The collector closes it, its loop is gone: no place to take a lock.
            self._engine.later.append(lambda _: self._let_go())
            raise
        except BaseException as caught:  # noqa: BLE001 - every waiter gets it
            error = trimmed(caught)
        try:
            if error is None:
                self._land(values, extras)
                return
            self._fail(error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                task = asyncio.current_task()
                if task is not None:  # it is raised where it belongs; nobody else asks for it
                    task.add_done_callback(lambda task: task.cancelled() or task.exception())
                raise error
        except Exception as broken:  # noqa: BLE001 - a bug: but nobody may wait for ever
            self._fail(trimmed(broken))
        finally:
            self._let_go()
            # The loader's frames, which the error holds, lead back to this one.
            del error, result, values, extras

    def _sorted(self, result: object) -> tuple[dict[Flight, Any], list[Extra]]:
        """Return the values of *result* by the flights that they answer, and what is left over.

        Raises:
            TypeError: *result* is no mapping.
        """
        if not isinstance(result, Mapping):
            raise TypeError(
                f"load_many of {self.lead.name!r} must return a mapping of keys to values, "
                f"not {type(result).__name__}"
            )
        values: dict[Flight, Any] = {}
        extras: list[Extra] = []
        mapping: Mapping[Any, Any] = result  # pyright: ignore[reportUnknownVariableType]
        for key, value in mapping.items():
            try:
                # Not by `==`: the answer for True is none for 1.
                space, data, kind = self._placing(key)
            except Exception:  # noqa: BLE001, S112 - what cannot be a key was not asked for
                continue
            flight = self.flights.get((space, data))
            if flight is not None:
                values[flight] = value
            elif self.journal is not None:
                extras.append((space, data, kind, value))
        return values, extras

    def _land(self, values: dict[Flight, Any], extras: list[Extra]) -> None:
        """Store and tell all that was loaded, in one step."""
        engine, landing = self._engine, self._landing
        flights = landing.flights
        now = engine.moment_or_none()
        good: list[tuple[Flight, object, int]] = []
        bad: list[tuple[Flight, Exception, bool]] = []
        skip = self._options.skip
        for flight, value in values.items():
            rejected = False
            try:
                check_value("load_many", flight.name, value)
                rejected = True
                skipped = skip is not None and skip(value)
                weight = NOT_KEPT if skipped else self._weight(*flight.key, value)
                good.append((flight, value, weight))
            except Exception as caught:  # noqa: BLE001 - who waits for it gets it
                bad.append((flight, cast("Exception", trimmed(caught)), rejected))
        weighed = self._weighed(extras)
        told: list[tuple[Any, Outcome | None]] = []
        dropped: list[object] = []
        doomed: list[Flight] = []
        try:
            with self._lock:
                engine.catch_up(dropped)
                if len(engine.recent.fresh) > MANY:
                    engine.recent.count_waits()
                self._group.count(self.lead.key[0].counters, failed=False)
                # First, or they might evict what was asked for.
                self._store_extras(weighed, now, dropped)
                for flight, value, weight in good:
                    landing.store_value(flight, value, weight, now, dropped, doomed)
                    told.append((flights.end(flight), Outcome(value, None, now)))
                for flight in self.flights.values():
                    if flight not in values:
                        self.omitted.add(flight)
                        told.append((flights.end(flight), None))
        finally:
            for waiting, outcome in told:
                wake(waiting, outcome, self.lead.loop)
            cancel(doomed)
        del dropped
        engine.tell()
        for flight, error, rejected in bad:
            landing.fail((flight,), error, rejected, now)

    def _weight(self, space: Namespace, key: DataKey, value: object) -> int:
        marks = self._marks(space)
        return self._engine.measure(key, value) + (0 if marks is None else marks.weight())

    def _marks(self, space: Namespace) -> Marks | None:
        window = max(self._options.window, space.window)
        if not (self._tags or space.described or window or self._options.ahead):
            return None
        return Marks(self._tags, (), space.version, window=window)

    def _weighed(self, extras: list[Extra]) -> list[tuple[Extra, int]]:
        weighed: list[tuple[Extra, int]] = []
        skip = self._options.skip
        for extra in extras:
            space, key, _, value = extra
            try:
                check_value("load_many", space.name, value)
                if skip is None or not skip(value):
                    weighed.append((extra, self._weight(space, key, value)))
            except Exception as error:  # noqa: BLE001 - nobody asked for it, nobody is told
                _log.warning(
                    "load_many of %s gave a value that nobody asked for and that cannot be "
                    "stored: %s",
                    self.lead.name,
                    type(error).__name__,
                )
        return weighed

    def _store_extras(
        self, weighed: list[tuple[Extra, int]], now: float | None, dropped: list[object]
    ) -> None:
        """Locked. Store each where nothing happened since the load began, and nothing is."""
        landing, journal = self._landing, self.journal
        # Closed, or of a loop that was found dead: it stores nothing any more.
        over = all(flight.done or flight.cancelling for flight in self.flights.values())
        if journal is None or now is None or over:
            return
        for (space, key, kind, value), weight in weighed:
            place = space, key
            taken = landing.store.holds(space, key, now) or landing.flights.get(place, None)
            if taken or space.closed or journal.changed(place):
                continue
            ttl = self._engine.shortened(self._options)
            marks = self._marks(space)
            facts = None if marks is None else marks.facts(landing.store.generation, None)
            landing.store.put(space, key, kind, value, weight, ttl, now, dropped, facts)
            self._engine.changed(place)

    def _fail(self, error: BaseException) -> None:
        """End whatever has not ended with *error*."""
        try:
            left = [flight for flight in self.flights.values() if not flight.done]
            if left:
                self._landing.fail(left, error, False, self._engine.moment_or_none())
        finally:
            del error

    def _let_go(self) -> None:
        """Hold nothing any more; if anything broke on the way here, wake who still waits."""
        if self.journal is not None:
            self._engine.journals.discard(self.journal)
        end = self._landing.flights.end
        with self._lock:
            left = [end(flight) for flight in self.flights.values() if not flight.done]
            self._group.members.clear()
        for waiting in left:
            wake(waiting, None)
