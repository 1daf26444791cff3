"""Read, modify, write: no update is lost, whoever else writes meanwhile.

    read    the fresh entry, or none
    compute fn(value), outside every lock, however long it takes
    swap    if the entry is still the one that was read: write; otherwise begin again

Updates of one key by async functions come one after the other, so that they do not
make each other begin again; a plain function cannot be interrupted by its own loop.
"""

import inspect
from collections.abc import Callable
from typing import Any, Final, final

from ._engine import Engine
from ._entries import Entry, Facts
from ._locks import Locks
from ._marks import Marks, Place
from ._places import Places
from ._rwlock import Sections
from .errors import TransactionConflictError
from .options import UNSET, CacheOptions
from .outcomes import MISSING

__all__ = ["Updates"]

MOST_ATTEMPTS: Final = 1_000
"""An update that somebody else was faster than so often gives up: its own fn writes the key."""

_LOST: Final = object()


@final
class Updates:
    """The updates of one cache."""

    def __init__(self, engine: Engine, places: Places, sections: Sections) -> None:
        self.engine = engine
        self.places = places
        self.sections = sections
        self.locks = Locks()

    async def update(
        self, key: object, fn: Callable[[Any], Any], default: object, given: dict[str, Any],
        options: CacheOptions,
    ) -> Any:  # fmt: skip
        """Replace the value of *key* by fn(value); return the new value."""
        space, data, kind = self.places.of(key)
        place = space, data
        if inspect.iscoroutinefunction(fn):
            async with self.locks.holding([place]):
                return await self._replace(place, kind, fn, default, given, options)
        value = await self._replace(place, kind, fn, default, given, options, queued=False)
        if value is not _LOST:
            return value
        async with self.locks.holding([place]):
            return await self._replace(place, kind, fn, default, given, options)

    async def _replace(
        self, place: Place, kind: object, fn: Callable[[Any], Any], default: object,
        given: dict[str, Any], options: CacheOptions, *, queued: bool = True,
    ) -> Any:  # fmt: skip
        engine, (space, key) = self.engine, place
        options = options.but(**given)
        own_marks = self.places.marks(options, place)
        for _ in range(MOST_ATTEMPTS):
            engine.admit()
            now = engine.moment()
            before = engine.look(space, key, now)
            value = fn(default if before is None else before.handed)
            awaited = inspect.isawaitable(value)
            if awaited:
                value = await value
            if value is MISSING:
                write = None
            else:
                ttl = engine.shortened(options)
                marks = own_marks if before is None else _kept(before, own_marks, given)
                write = engine.stage("update()", key, kind, value, ttl, marks)
            async with self.sections.writing():
                if engine.swap(space, key, before, write, keep=given["ttl"] is UNSET):
                    return value
            if awaited and not queued:
                return _LOST  # it did not look like an async function, and must queue like one
        raise TransactionConflictError(engine.name, what="an update")


def _kept(entry: Entry, own: Marks | None, given: dict[str, Any]) -> Marks | None:
    """Return what was *given* of an update, and for the rest what *entry* had."""
    facts, tags, sources = entry.facts, given["tags"], given["depends_on"]
    if not isinstance(facts, Facts):
        return None if tags is UNSET and sources is UNSET else own
    nodes: Any = () if facts.link is None else facts.link.sources
    own = own or Marks()
    return Marks(
        facts.tags if tags is UNSET else own.tags,
        tuple([node.place for node in nodes]) if sources is UNSET else own.sources,
        facts.version,
        window=facts.window,
    )
