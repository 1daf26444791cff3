"""Transactions: writes that are staged, and applied in one step.

    stage    a write goes into a buffer: nobody else can see it, nothing is locked
    read     the buffer first, then the cache as it is at that moment
    commit   all of it in one locked step: retire every old value, publish every new one
    leave    by an exception or a cancellation: the buffer is dropped

Nothing is held between these steps, so two transactions cannot wait for each other,
and one that was forgotten is in nobody's way. With on_conflict="raise" a watch notes
whether somebody else changed what was read.
"""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self, TypeVar, final

from ._engine import Engine, Watch, Write
from ._marks import Place
from ._places import Places
from ._rwlock import Sections
from .errors import ScopeError, TransactionConflictError
from .options import UNSET, CacheOptions, Dependencies, Tags, Ttl, Unset, check_tags

__all__ = ["Transaction"]

D = TypeVar("D")
K = TypeVar("K")

_REMOVED: Final = None  # what is staged at a place that is to be empty


@final
class Transaction:
    """Writes that become visible together, or not at all. Made by `AsyncSafeCache.transaction`.

    Belongs to the task that enters it; serves one block.
    """

    def __init__(
        self,
        engine: Engine,
        places: Places,
        sections: Sections,
        options: CacheOptions,
        *,
        watching: bool,
    ) -> None:
        self._engine = engine
        self._places = places
        self._sections = sections
        self._options = options
        self._watch = Watch() if watching else None
        self._task: asyncio.Task[Any] | None = None
        self._over = False
        self._writes: dict[Place, Write | None] = {}  # bounded by the user's block, as its tags
        self._tags: dict[str, None] = {}

    def __repr__(self) -> str:
        state = "over" if self._over else "open" if self._task else "not entered"
        return f"<Transaction {state}, {len(self._writes)} writes>"

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise ScopeError("transaction", "entered twice")
        self._sections.refuse()
        self._engine.admit()
        self._task = asyncio.current_task()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._check()
                async with self._sections.writing():
                    self._commit()
        finally:
            if self._watch is not None:
                self._engine.look_away(self._watch)
            self._over = True
            self._writes, self._tags, self._watch = {}, {}, None

    def _commit(self) -> None:
        if not (self._writes or self._tags or self._watch):
            return
        if not self._engine.commit(self._writes, tuple(self._tags), self._watch):
            raise TransactionConflictError(self._engine.name)

    def _check(self) -> None:
        """Raise unless this is the inside of the block."""
        if self._over:
            raise ScopeError("transaction", "over")
        if self._task is None:
            raise ScopeError("transaction", "not entered")
        if _current_task() is not self._task:
            raise ScopeError("transaction", "another task")

    def set(
        self,
        key: object,
        value: object,
        *,
        ttl: Ttl | Unset = UNSET,
        jitter: float | Unset = UNSET,
        tags: Tags = (),
        depends_on: Dependencies = (),
    ) -> None:
        """Stage a write of *value*; its ttl counts from the commit.

        Raises:
            ScopeError: Outside of the block, or in another task.
            TypeError: *value* is an awaitable, a generator or an iterator.
            ValueError: *ttl* is not above 0.
            UnsupportedKeyError: *key* cannot be a key.
            Exception: Whatever the weigher raised; nothing was staged.
        """
        self._check()
        options = self._options.but(ttl=ttl, jitter=jitter, tags=tags, depends_on=depends_on)
        space, data, kind = self._places.of(key)
        marks = self._places.marks(options, (space, data))
        write = self._engine.stage(
            "Transaction.set()", data, kind, value, self._engine.shortened(options), marks
        )
        self._writes[space, data] = write

    def delete(self, *keys: object) -> None:
        """Stage the removal of *keys*.

        Raises:
            ScopeError: Outside of the block, or in another task.
            UnsupportedKeyError: A key cannot be one; nothing was staged.
        """
        self._check()
        for place in [self._places.of(key)[:2] for key in keys]:
            self._writes[place] = _REMOVED

    def invalidate_tags(self, *tags: str) -> None:
        """Stage the removal of what has one of *tags* by then, and of what was staged with one.

        What is staged after this call stays.

        Raises:
            ScopeError: Outside of the block, or in another task.
            TypeError: A tag is no str.
            ValueError: A tag is empty or too long.
        """
        self._check()
        named = check_tags("tags", tags)
        self._tags |= dict.fromkeys(named)
        for place, write in self._writes.items():
            if write and write.marks and not set(named).isdisjoint(write.marks.tags):
                self._writes[place] = _REMOVED

    async def get(self, key: object, default: D | None = None) -> Any | D | None:
        """Return the value of *key* as this transaction has left it, or *default*.

        Counts as one call only if the cache is asked.

        Raises:
            ScopeError: Outside of the block, or in another task.
            UnsupportedKeyError: *key* cannot be a key.
            CacheClosedError: The cache is closed.
        """
        self._check()
        place = self._places.of(key)[:2]
        return self._read([place]).get(place, default)

    async def get_many(self, keys: Iterable[K]) -> dict[K, Any]:
        """Return the values of *keys* as this transaction has left them, hits only.

        What comes from the cache is of one moment.

        Raises:
            ScopeError: Outside of the block, or in another task.
            ValueError: Python holds two of *keys* equal and the cache does not.
            UnsupportedKeyError: A key cannot be one.
            CacheClosedError: The cache is closed.
        """
        self._check()
        places = {key: place[:2] for key, place in self._places.several("get_many", keys).items()}
        values = self._read(list(places.values()))
        return {key: values[place] for key, place in places.items() if place in values}

    def _read(self, places: list[Place]) -> dict[Place, Any]:
        """Return what each of *places* holds, if anything."""
        engine = self._engine
        asked = [place for place in places if place not in self._writes]
        if self._watch is not None and asked:
            engine.look_after(self._watch, asked)
        now = engine.clock()
        entries = engine.read_many(asked, now)
        behind = engine.behind(self._writes, self._tags, now)
        tags = self._tags.keys()
        values = {
            place: entry.handed
            for place, entry in zip(asked, entries, strict=True)
            if entry is not None and place not in behind and tags.isdisjoint(entry.tags)
        }
        for place in places:
            write = self._writes.get(place)
            if write is not None:
                values[place] = write.value
        return values


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # no loop runs in this thread
