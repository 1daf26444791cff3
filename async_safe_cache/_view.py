"""Views: reads of one generation, inside a read section.

The section asks the writers of its loop to come later; the generation makes sure of
what the section cannot promise: whatever was written after the view opened, by anybody
in any thread, is a miss in it.
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, final

from ._engine import Engine
from ._entries import Entry
from ._marks import Place
from ._places import Places
from ._rwlock import Section
from .errors import ScopeError
from .outcomes import MISSING, Lookup, MissReason

__all__ = ["View", "lookup_of"]

D = TypeVar("D")
K = TypeVar("K")


@final
class View:
    """The cache as it was when the block began, less what has gone since.

    Made by `AsyncSafeCache.reading`; serves one block. Each read is one call.
    """

    def __init__(self, engine: Engine, places: Places, section: Section) -> None:
        self._engine = engine
        self._places = places
        self._section = section
        self._generation: int | None = None
        self._over = False

    def __repr__(self) -> str:
        state = "over" if self._over else "not entered" if self._generation is None else "open"
        return f"<View {state}>"

    async def __aenter__(self) -> Self:
        if self._generation is not None:
            raise ScopeError("view", "entered twice")
        self._engine.admit()
        await self._section.__aenter__()
        self._generation = self._engine.observe()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        await self._section.__aexit__(kind, error, traceback)

    async def get(self, key: object, default: D | None = None) -> Any | D | None:
        """Return the value of *key*, or *default*.

        Raises:
            ScopeError: Outside of the block.
            UnsupportedKeyError: *key* cannot be a key.
            CacheClosedError: The cache is closed.
        """
        found = self._read([self._places.of(key)[:2]], self._engine.clock())[0]
        return found.handed if isinstance(found, Entry) else default

    async def lookup(self, key: object) -> Lookup[Any]:
        """Return the value of *key* with its age, or why there is none; ABSENT if it is younger.

        Raises:
            ScopeError: Outside of the block.
            UnsupportedKeyError: *key* cannot be a key.
            CacheClosedError: The cache is closed.
        """
        now = self._engine.clock()
        return lookup_of(self._read([self._places.of(key)[:2]], now)[0], now)

    async def get_many(self, keys: Iterable[K]) -> dict[K, Any]:
        """Return the values of *keys*, hits only, by the keys as given, in first-seen order.

        Raises:
            ScopeError: Outside of the block.
            ValueError: Python holds two of *keys* equal and the cache does not.
            UnsupportedKeyError: A key cannot be one.
            CacheClosedError: The cache is closed.
        """
        places = self._places.several("get_many", keys)
        found = self._read([place[:2] for place in places.values()], self._engine.clock())
        return {
            key: entry.handed
            for key, entry in zip(places, found, strict=True)
            if isinstance(entry, Entry)
        }

    def _read(self, places: list[Place], now: float) -> list[Entry | MissReason]:
        if self._over:
            raise ScopeError("view", "over")
        if self._generation is None:
            raise ScopeError("view", "not entered")
        return self._engine.read_as_of(places, now, self._generation)


def lookup_of(found: Entry | MissReason, now: float, stale: Entry | None = None) -> Lookup[Any]:
    """Return what was *found* as users see it; *stale* is what is kept in its place."""
    if isinstance(found, MissReason):
        if stale is not None:
            return Lookup(
                hit=False, value=stale.handed, reason=found, age=max(0.0, now - stale.born),
                ttl_left=0.0, stale=True,
            )  # fmt: skip
        return Lookup(hit=False, value=MISSING, reason=found, age=None, ttl_left=None)
    left = None if found.deadline == float("inf") else found.deadline - now
    age = max(0.0, now - found.born)
    return Lookup(hit=True, value=found.handed, reason=None, age=age, ttl_left=left)
