"""The decorated functions of one cache: who has which name, and how one ends."""

import asyncio
import math
from collections.abc import Callable
from itertools import islice
from types import CodeType
from typing import Any, final
from weakref import ref

from ._closing import Closing
from ._engine import Engine
from ._entries import Entry, Namespace
from ._flights import Flight
from ._function import ATTRIBUTE, CachedFunction
from ._marks import Place
from ._popularity import Popularity
from ._removals import MOST
from ._store import SEEN
from ._wrapper import count_reads
from .outcomes import RemovalCause

__all__ = ["Functions"]


@final
class Functions:
    """The decorated functions of one cache that are alive, by name.

    Holds them weakly: a cache keeps no function, and so no closure, alive.
    """

    def __init__(self, engine: Engine, closing: Closing) -> None:
        self.engine = engine
        self.closing = closing
        # Weak references by their id, by name; both bounded by the live functions.
        self._names: dict[str, dict[int, ref[Any]]] = {}
        self._replaced: dict[int, ref[Any]] = {}

    def register(self, function: CachedFunction, wrapper: object) -> None:
        """Take in a newly decorated function."""
        engine, name = self.engine, function.name
        counters, space, instances = function.counters, function.space, function.instances

        def retire(dropped: list[object]) -> None:
            engine.counters.pop(counters, None)
            engine.retired.add(counters)
            for each in (space, *tuple(instances.values())):
                each.counters = engine.retired  # a Key of it may still be used
                engine.drop(each, dropped)

        def gone(reference: ref[Any]) -> None:
            # The function was collected: no place to take a lock.
            engine.later.append(retire)
            engine.later.append(lambda _: self._discard(name, reference))

        with engine.store.lock:
            replaced = self._add(function, wrapper, gone)
            engine.counters[counters] = None
        for older in replaced:
            keys = list(islice(older.space.data, MOST))
            engine.remove_spaces(older.spaces, RemovalCause.CLEARED)
            if keys and older.options.version != function.options.version:
                with engine.store.lock:
                    engine.store.supersede(space, keys)

    def measure_popularity(self, limit: int) -> None:
        """Count the reads of each call from now on, of at most *limit* calls."""
        store = self.engine.store
        now = self.engine.moment()
        with store.lock:
            if store.popularity is None:
                store.measure(Popularity(limit, now))
            elif limit > store.popularity.limit:
                store.popularity.limit = limit
        self.count_reads(seen=SEEN in store.names)
        self._note_held(limit)

    def _note_held(self, limit: int) -> None:
        """Let the calls be known whose values are held: their hits alone do not tell.

        Of those that the fast lookup finds: the others come the long way, and are noted there.
        """
        store = self.engine.store
        owners: dict[Namespace, CachedFunction] = {}
        for wrapper in self._living():
            function: CachedFunction = getattr(wrapper, ATTRIBUTE)
            owners.update(dict.fromkeys(function.spaces(), function))
        with store.lock:
            for entry in store.order.newest(limit):
                space = entry.space
                known = owners.get(space)
                if known is not None and entry.kind is not None and store.popularity is not None:
                    single = len(known.parameters) - known.is_method == 1
                    values: Any = (entry.key,) if single else entry.key
                    store.popularity.note((space, entry.key), ref(known), space.owner, values)

    def _living(self) -> list[Any]:
        """Return the wrappers of all functions that are alive."""
        with self.engine.store.lock:
            known = [*self._names.values(), self._replaced]
            wrappers = [_alive(each) for named in known for each in named.values()]
        return [wrapper for wrapper in wrappers if wrapper is not None]

    def show_reads(
        self,
        hit: Callable[[Entry], object] | None,
        read: Callable[[Place, bool, float], object] | None,
    ) -> None:
        """Show each hit of the fast lookup, and each other read, from now on; None: no more."""
        store = self.engine.store
        if store.popularity is None:
            return
        store.popularity.observer = read
        if hit is not None:
            store.names[SEEN] = hit
        self.count_reads(seen=hit is not None)
        if hit is None:
            store.names.pop(SEEN, None)  # a call that is under way goes the long way

    def count_reads(self, *, seen: bool) -> None:
        """Let each live function count the hits of each entry, and show them if *seen*."""
        for wrapper in self._living():
            function: CachedFunction = getattr(wrapper, ATTRIBUTE)
            function.count_reads()
            wrapper.cache_source = function.counting(seen)
            count_reads(wrapper, wrapper.cache_source)

    def named(self, name: str) -> Any:
        """Return the newest live function of *name*; None if there is none."""
        with self.engine.store.lock:
            wrappers = list(map(_alive, self._names.get(name, {}).values()))
        return next((each for each in reversed(wrappers) if each is not None), None)

    async def close(self, function: CachedFunction, *, wait: bool) -> None:
        engine, closing = self.engine, self.closing
        loop = asyncio.get_running_loop()
        self._shut(function)
        if wait:
            await closing.ended(self.flights_of(function), math.inf, threads=True)
        engine.remove_spaces(function.spaces, RemovalCause.CLEARED)
        closing.dismiss(self.flights_of(function), function.name)
        deadline = loop.time() + function.options.cancel_grace
        await closing.ended(self.flights_of(function), deadline, threads=False)

    def close_here(self, function: CachedFunction, *, wait: bool) -> None:
        self._shut(function)
        if wait:
            self.closing.ended_here(self.flights_of(function))
        self.engine.remove_spaces(function.spaces, RemovalCause.CLEARED)
        self.closing.dismiss(self.flights_of(function), function.name)

    def _shut(self, function: CachedFunction) -> None:
        """Let nobody in any more, those neither who wait for a clean-up and then would load."""
        with self.engine.store.lock:
            function.closed = True
            for space in function.spaces():
                space.closed = True

    def flights_of(self, function: CachedFunction) -> Callable[[], list[Flight]]:
        def flights() -> list[Flight]:
            spaces = set(function.spaces())
            return [each for each in self.engine.flights.running if each.key[0] in spaces]

        return flights

    def _add(
        self, function: CachedFunction, wrapper: Any, gone: Callable[["ref[Any]"], object]
    ) -> list[CachedFunction]:
        """Take *function* in; return those that it replaces.

        A function of the same module and qualified name but with another code
        object is a newer version: a reload, or a notebook cell run again.

        Raises:
            ValueError: Another live function has the same explicit prefix.
        """
        module, qualname, code = function.identity
        reference = ref(wrapper, gone)
        named = self._names.setdefault(function.name, {})
        newest = next(reversed(named.values()), None)
        known = None if newest is None else newest()
        same_code = known is not None and getattr(known, ATTRIBUTE).identity[2] is code
        if same_code and not function.explicit:
            # Another closure of the same code: each has its own entries.
            named[id(reference)] = reference
            return []
        living = [
            getattr(each, ATTRIBUTE) for each in map(_alive, named.values()) if each is not None
        ]
        older = [
            each
            for each in living
            if each.identity[:2] == (module, qualname)
            and each.identity[2] is not code
            and not qualname.endswith("<lambda>")
            and isinstance(code, CodeType)
        ]
        others = [each for each in living if each not in older and each.explicit]
        if function.explicit and others:
            first = ".".join(others[0].identity[:2])
            raise ValueError(
                f"prefix={function.name!r} names the entries of {first} already; it cannot name "
                f"those of {module}.{qualname} too: give each function a prefix of its own"
            )
        if older:
            # No longer known by name, but still to be cleaned up after.
            self._replaced.update(named)
            named.clear()
        named[id(reference)] = reference
        return older

    def _discard(self, name: str, wrapper: "ref[Any]") -> None:
        """Forget a function that is gone."""
        self._replaced.pop(id(wrapper), None)
        named = self._names.get(name, {})
        named.pop(id(wrapper), None)
        if not named:
            self._names.pop(name, None)


def _alive(wrapper: "ref[Any]") -> Any:
    return wrapper()
