"""AsyncSafeCache: the public face of one cache. Holds no mechanism of its own."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Literal, ParamSpec, Self, TypeVar, Unpack, final, get_args, overload
from weakref import ref

import anyio

from ._background import Background
from ._bulk import Asked, Bulk
from ._closing import Closing, emptied
from ._engine import Engine, State, Write
from ._entries import Counters, Entry, Namespace
from ._events import Events
from ._eviction import PolicyName
from ._fork import hold, inherit
from ._function import CachedFunction, function_of
from ._functions import Functions
from ._health import report
from ._keys import DataKey, Key, _registering
from ._loader import LoadContext, call_of
from ._loads import Loads
from ._locks import Holding, Locks
from ._marks import Marks, Place
from ._places import Places
from ._protocols import Clock, Weigher
from ._rwlock import Sections
from ._store import Store
from ._transaction import Transaction
from ._update import Updates
from ._view import View, lookup_of
from ._waits import summary
from ._warmth import Warmth
from .errors import CacheClosedError
from .options import (
    UNSET,
    AlertThresholds,
    CacheOptions,
    Dependencies,
    KeyOptions,
    LoadOptions,
    NegativeTtl,
    Tags,
    Ttl,
    Unset,
    check_bound,
    check_callable,
    check_choice,
    check_fraction,
    check_known,
    check_seconds,
    check_tags,
    check_ttl,
)
from .outcomes import (
    MISSING,
    CacheStats,
    Explanation,
    FunctionInfo,
    Invalidated,
    Loaded,
    LoadFailed,
    Lookup,
    Missing,
    MissReason,
    Refreshed,
    RemovalCause,
    Removed,
)

__all__ = ["AsyncSafeCache"]

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")
V = TypeVar("V")
K = TypeVar("K")

SWEEP_SLICE: Final = 500
"""Entries that the sweeper frees between two turns of the loop: about 0.5 ms."""

TAG_SLICE: Final = 500
"""Entries that an invalidation of tags removes between two turns of the loop."""

WARM_LOOK: Final = 0.05
"""Seconds between two looks at how much is warm."""

HEALTH_WORK: Final = 1_000
"""Expired entries and seconds that health looks at; the rest it counts as live."""

hold(_registering)  # or a child might find it locked for ever


@final
class AsyncSafeCache:
    """A bounded cache in which concurrent loads of one key become one.

    Can be made anywhere: it needs no running loop, starts no task and belongs
    to no loop. It serves every thread and every event loop of the process.

    Args:
        name: For people: health, errors, logs.
        max_memory_bytes: Bound on keys, values and the library's own overhead,
            held after every operation; 0 stores nothing, None is no bound.
        max_entries: Bound on the number of entries; 0 stores nothing, None is no bound.
        default_ttl: Seconds or timedelta that a value stays fresh; None: for ever.
        policy: Which entry leaves first: "lru", the least recently used, or
            "s3fifo", see docs/eviction.md.
        weigher: Bytes of a value; None measures it, see docs/memory.md.
        sweep_interval: Seconds between two sweeps, once started.
        thresholds: Where health begins to complain.
        clock: Returns monotonic seconds.
        jitter: See `CacheOptions`, as for the options that follow.
        on_abandon: "cancel" or "finish".
        cancel_grace: Seconds.
        negative: Failures to remember.
        after_close: "error" or "call".
        version: What values are stored under; a value of another version is a miss.
        section_wait: Seconds that a write waits for read sections of its loop, at most.
        freshness: stale_while_revalidate, stale_if_error, refresh_ahead, soft_timeout,
            hard_timeout, load_timeout, error_backoff, copy, skip, vary_on, context,
            propagate: see `CacheOptions`.

    Raises:
        TypeError: An option is of a type that it cannot have.
        ValueError: An option is outside its range.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        max_memory_bytes: int | None = 200 * 1024**2,
        max_entries: int | None = None,
        default_ttl: Ttl = None,
        policy: PolicyName = "lru",
        weigher: Weigher | None = None,
        sweep_interval: float | timedelta = 1.0,
        thresholds: AlertThresholds | None = None,
        clock: Clock = time.monotonic,
        jitter: float = 0.0,
        on_abandon: Literal["cancel", "finish"] = "cancel",
        cancel_grace: float | timedelta = 5.0,
        negative: Mapping[type[Exception], NegativeTtl] | None = None,
        after_close: Literal["error", "call"] = "error",
        version: str | int | None = None,
        section_wait: float | timedelta = 0.1,
        **freshness: Unpack[KeyOptions],
    ) -> None:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        if not name:
            raise ValueError("name='' must not be empty: it is what health and errors show")
        check_choice("policy", policy, get_args(PolicyName))
        check_callable("clock", clock, "a callable that returns monotonic seconds")
        if weigher is not None:
            check_callable("weigher", weigher, "a callable(value) that returns bytes")
        thresholds = AlertThresholds() if thresholds is None else thresholds
        if not isinstance(thresholds, AlertThresholds):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"thresholds must be AlertThresholds, not {type(thresholds).__name__}")
        check_known("AsyncSafeCache", freshness, KeyOptions)
        self._options = CacheOptions().but(
            ttl=_named_ttl(default_ttl),
            jitter=jitter,
            on_abandon=on_abandon,
            cancel_grace=cancel_grace,
            negative=negative,
            after_close=after_close,
            version=version,
            **freshness,
            default=True,
        )
        store = Store(
            check_bound("max_entries", max_entries),
            check_bound("max_memory_bytes", max_memory_bytes),
            policy,
        )
        self._name = name
        self._thresholds = thresholds
        self._engine = Engine(name, store, clock, weigher)
        self._loads = Loads(self._engine)
        self._bulk = Bulk(self._loads)
        self._closing = Closing(self._engine)
        raw = Counters()
        self._engine.counters[raw] = None
        self._raw = Namespace(store, name, raw)
        self._raw.version = self._options.version
        self._raw.copier = self._options.copier
        self._places = Places(name, store, self._raw, self._options.vary_on)
        self._sections = Sections(check_seconds("section_wait", section_wait, zero=True))
        self._locks = Locks()
        self._updates = Updates(self._engine, self._places, self._sections)
        self._events = Events(store, self._raw)
        self._functions = Functions(self._engine, self._closing)
        self._sweeper = Background(
            "sweeper",
            self._sweep,
            check_seconds("sweep_interval", sweep_interval),
            clock,
            "reads stay right, but expired entries keep their memory until a write frees them; "
            "await start() in a running loop",
        )
        self._warmths: list[ref[Warmth]] = []  # bounded by the strategies that are alive
        inherit(self._forked, store.lock)

    def __repr__(self) -> str:
        store, state = self._engine.store, self._engine.state.name.lower()
        size = f"{store.count} entries, {store.bytes} bytes"
        return f"<AsyncSafeCache {self._name!r} {state}, {size}>"

    # -- what it is

    @property
    def name(self) -> str:
        """The cache's name."""
        return self._name

    @property
    def closed(self) -> bool:
        """Whether it refuses calls."""
        return self._engine.state is not State.OPEN

    @property
    def memory_bytes(self) -> int:
        """Bytes accounted for: keys, values, overhead; never above the bound."""
        return self._engine.store.bytes

    def __len__(self) -> int:
        """Return the number of entries that are not expired. O(seconds that are due)."""
        store = self._engine.store
        now = self._engine.clock()
        with store.lock:
            return store.live(now)

    def __bool__(self) -> bool:
        # An empty cache is still a cache: `cache or default` must not replace it.
        return True

    # -- reading

    async def get(self, key: object, default: D | None = None) -> Any | D | None:
        """Return the fresh value of *key*, or *default*.

        Args:
            key: An accepted raw key, or a `Key` of a call.
            default: What a miss gives.

        Returns:
            The very object that is stored: copy it before you change it.

        Raises:
            UnsupportedKeyError: *key* cannot be a key.
            CacheClosedError: The cache is closed.

        Complexity: O(1); a hit takes no lock.
        """
        engine = self._engine
        space, data, _ = self._place(key)
        found = engine.read(space, data, engine.clock())
        self._revive()
        return found.handed if isinstance(found, Entry) else default

    async def lookup(self, key: object) -> Lookup[Any]:
        """Return the fresh value of *key* with its age, or the reason why there is none.

        A stale value is shown, but it is a miss: the load behind it needs a loader.

        Raises:
            UnsupportedKeyError: *key* cannot be a key.
            CacheClosedError: The cache is closed.
        """
        engine = self._engine
        space, data, _ = self._place(key)
        now = engine.clock()
        found = engine.read(space, data, now)
        stale = None
        if isinstance(found, MissReason):
            stale = engine.stale(space, data, now, space.version)
            self._revive()
        return lookup_of(found, now, stale)

    def peek(self, key: object, default: D | Missing = MISSING) -> Any | D | Missing:
        """Return the fresh value of *key*, or *default*: no statistics, no recency, no waiting.

        Raises:
            UnsupportedKeyError: *key* cannot be a key.
            CacheClosedError: The cache is closed.
        """
        self._engine.admit()
        space, data, _ = self._place(key)
        entry = self._engine.look(space, data, self._engine.clock())
        return default if entry is None else entry.handed

    async def get_many(self, keys: Iterable[K]) -> dict[K, Any]:
        """Return the fresh values of *keys*, hits only, all of one moment.

        Args:
            keys: Raw keys or `Key`s; one asked for twice is answered and counted once.

        Returns:
            By the keys as given, in first-seen order.

        Raises:
            ValueError: Two keys that Python holds equal and the cache does not
                (1 and True): one dict cannot tell them apart.
            UnsupportedKeyError: A key cannot be one.
            CacheClosedError: The cache is closed.
        """
        places = self._places.several("get_many", keys)
        found = self._engine.read_many(
            [place[:2] for place in places.values()], self._engine.clock()
        )
        return {
            key: entry.handed for key, entry in zip(places, found, strict=True) if entry is not None
        }

    @overload
    async def get_or_load(
        self,
        key: object,
        loader: Callable[[], Awaitable[V]] | Callable[[LoadContext], Awaitable[V]],
        *,
        ttl: Ttl | Unset = ...,
        jitter: float | Unset = ...,
        on_abandon: Literal["cancel", "finish"] | Unset = ...,
        cancel_grace: float | timedelta | Unset = ...,
        negative: Mapping[type[Exception], NegativeTtl] | None | Unset = ...,
        tags: Tags | Unset = ...,
        depends_on: Dependencies | Unset = ...,
        version: str | int | None | Unset = ...,
        **freshness: Unpack[LoadOptions],
    ) -> V: ...
    @overload
    async def get_or_load(
        self,
        key: object,
        loader: Callable[[], V] | Callable[[LoadContext], V],
        *,
        ttl: Ttl | Unset = ...,
        jitter: float | Unset = ...,
        on_abandon: Literal["cancel", "finish"] | Unset = ...,
        cancel_grace: float | timedelta | Unset = ...,
        negative: Mapping[type[Exception], NegativeTtl] | None | Unset = ...,
        tags: Tags | Unset = ...,
        depends_on: Dependencies | Unset = ...,
        version: str | int | None | Unset = ...,
        **freshness: Unpack[LoadOptions],
    ) -> V: ...
    async def get_or_load(
        self,
        key: object,
        loader: Callable[..., Any],
        *,
        ttl: Ttl | Unset = UNSET,
        jitter: float | Unset = UNSET,
        on_abandon: Literal["cancel", "finish"] | Unset = UNSET,
        cancel_grace: float | timedelta | Unset = UNSET,
        negative: Mapping[type[Exception], NegativeTtl] | None | Unset = UNSET,
        tags: Tags | Unset = UNSET,
        depends_on: Dependencies | Unset = UNSET,
        version: str | int | None | Unset = UNSET,
        **freshness: Unpack[LoadOptions],
    ) -> Any:
        """Return the fresh value of *key*, loading it once for all who ask.

        Args:
            key: Equal keys share one load.
            loader: Called once per flight, in a task of the cache's own; takes
                nothing, or one `LoadContext`.
            ttl: Seconds (or timedelta) from the end of the load; None: for ever.
            jitter: Shortens ttl by up to this fraction.
            on_abandon: "cancel" or "finish" the load when nobody waits any more.
            cancel_grace: Seconds to wait for the clean-up of a cancelled load.
            negative: Failures to remember.
            tags: Of the value; the loader may add more, by its `LoadContext`.
            depends_on: Keys and calls whose change invalidates the value.
            version: A value stored under another version is loaded again.
            freshness: stale_while_revalidate, stale_if_error, refresh_ahead, soft_timeout,
                hard_timeout, load_timeout, error_backoff, copy, skip, context, propagate:
                see `CacheOptions`, and docs/freshness.md for what they do together.

        Returns:
            The very object that is stored: copy it before you change it.

        Raises:
            RecursiveLoadError: *loader* waits, directly or not, for *key*.
            LoadCancelledError: *loader* was cancelled from inside.
            LoadTimeoutError: This call waited hard_timeout, or the load took load_timeout.
            CacheClosedError: The cache is closed.
            UnsupportedKeyError: *key* cannot be a key.
            TypeError: *loader* cannot be called so, or gave an awaitable,
                generator or iterator.
            Exception: Whatever *loader* raised; nothing is stored.

        Complexity: O(1) plus the load.
        """
        call, context = call_of(loader, key)
        if freshness:
            check_known("get_or_load", freshness, LoadOptions)
        options = self._options
        given = not (
            ttl is jitter is on_abandon is cancel_grace is negative is tags is depends_on is UNSET
        )
        if given or freshness or version is not UNSET:
            options = self._options.but(
                ttl=ttl,
                jitter=jitter,
                on_abandon=on_abandon,
                cancel_grace=cancel_grace,
                negative=negative,
                tags=tags,
                depends_on=depends_on,
                version=version,
                **freshness,
            )
        space, data, kind = self._place(key)
        added = None if context is None else context.tags
        own = space.version if version is UNSET else options.version
        marks = self._places.marks(options, (space, data), added=added, version=own)
        self._sweeper.revive()
        return await self._loads.load(space, data, kind, call, (), options, marks, context)

    @overload
    async def get_or_load_many(
        self,
        keys: Iterable[K],
        load_many: Callable[[list[K]], Awaitable[Mapping[K, V]]],
        *,
        ttl: Ttl | Unset = ...,
        jitter: float | Unset = ...,
        on_abandon: Literal["cancel", "finish"] | Unset = ...,
        cancel_grace: float | timedelta | Unset = ...,
        negative: Mapping[type[Exception], NegativeTtl] | None | Unset = ...,
        tags: Tags | Unset = ...,
        store_extras: bool = ...,
    ) -> dict[K, V]: ...
    @overload
    async def get_or_load_many(
        self,
        keys: Iterable[K],
        load_many: Callable[[list[K]], Mapping[K, V]],
        *,
        ttl: Ttl | Unset = ...,
        jitter: float | Unset = ...,
        on_abandon: Literal["cancel", "finish"] | Unset = ...,
        cancel_grace: float | timedelta | Unset = ...,
        negative: Mapping[type[Exception], NegativeTtl] | None | Unset = ...,
        tags: Tags | Unset = ...,
        store_extras: bool = ...,
    ) -> dict[K, V]: ...
    async def get_or_load_many(
        self,
        keys: Iterable[K],
        load_many: Callable[[list[K]], Any],
        *,
        ttl: Ttl | Unset = UNSET,
        jitter: float | Unset = UNSET,
        on_abandon: Literal["cancel", "finish"] | Unset = UNSET,
        cancel_grace: float | timedelta | Unset = UNSET,
        negative: Mapping[type[Exception], NegativeTtl] | None | Unset = UNSET,
        tags: Tags | Unset = UNSET,
        store_extras: bool = False,
    ) -> dict[K, Any]:
        """Return the fresh values of *keys*, loading all that are absent with one call.

        A key that is being loaded, alone or by another such call, is joined; a
        single call joins a key that is loaded here.

        Args:
            keys: Raw keys or `Key`s; one asked for twice is answered and counted once.
            load_many: Called with a list of the distinct absent keys, as given and in
                first-seen order; returns a mapping. A function or an `async def`;
                runs in a task of the cache's own.
            ttl: Seconds (or timedelta) from the end of the load; None: for ever.
            jitter: Shortens the ttl of each value by up to this fraction.
            on_abandon: "cancel" or "finish" the load when nobody waits for any of its keys.
            cancel_grace: Seconds to wait for the clean-up of a cancelled load.
            negative: Failures to remember, at each key of the load.
            tags: Of each value.
            store_extras: Store values of keys that nobody asked for, too, unless
                something happened at that key meanwhile; otherwise they are dropped.

        Returns:
            By the keys as given, in first-seen order, without those that *load_many*
            omitted. The very objects that are stored: copy one before you change it.

        Raises:
            RecursiveLoadError: *load_many* waits, directly or not, for one of its keys.
            LoadCancelledError: *load_many*, or a load that was joined, was cancelled
                from inside.
            LoadTimeoutError: This call waited the cache's hard_timeout, or a load took its
                load_timeout.
            CacheClosedError: The cache is closed.
            UnsupportedKeyError: A key cannot be one.
            ValueError: Two keys that Python holds equal and the cache does not (1 and
                True): one dict cannot tell them apart.
            TypeError: *load_many* is not callable, gave no mapping, or a value that can
                be used only once.
            Exception: Whatever *load_many*, or the first joined load that failed,
                raised; or a failure remembered at one of the keys.

        Complexity: O(keys) plus the load.
        """
        check_callable("load_many", load_many, "a callable(absent keys) that returns a mapping")
        options = self._options.but(
            ttl=ttl,
            jitter=jitter,
            on_abandon=on_abandon,
            cancel_grace=cancel_grace,
            negative=negative,
            tags=tags,
        )
        if callable(options.tags):
            raise TypeError("tags of get_or_load_many must be given: each value has all of them")
        places = self._places.several("get_or_load_many", keys)
        asked: Asked = {}
        for key, (space, data, kind) in places.items():
            asked.setdefault((space, data), (key, kind))
        if not asked:
            self._engine.admit()
            return {}
        self._sweeper.revive()
        found = await self._bulk.load(
            asked, load_many, options, self._place, store_extras=store_extras
        )
        values = {key: found[place[:2]] for key, place in places.items() if place[:2] in found}
        if options.copier is None:
            return values
        return {key: options.copier(value) for key, value in values.items()}

    # -- writing

    async def set(
        self,
        key: object,
        value: object,
        *,
        ttl: Ttl | Unset = UNSET,
        jitter: float | Unset = UNSET,
        tags: Tags = (),
        depends_on: Dependencies = (),
    ) -> None:
        """Store *value*; a load of *key* that runs now will not overwrite it.

        A value larger than max_memory_bytes is counted and not stored, and the
        older value of *key* is removed.

        Args:
            key: An accepted raw key, or a `Key` of a call.
            value: Any object that can be used more than once.
            ttl: Seconds (or timedelta) from now; None: for ever.
            jitter: Shortens ttl by up to this fraction.
            tags: Names to invalidate it by, together with others.
            depends_on: Keys and calls whose change invalidates it.

        Raises:
            TypeError: *value* is an awaitable, a generator or an iterator.
            ValueError: *ttl* is not above 0, or *key* depends on itself.
            ReadOnlySectionError: This task is inside `reading()`.
            UnsupportedKeyError: *key* cannot be a key.
            CacheClosedError: The cache is closed.
            Exception: Whatever the weigher raised; nothing was changed.

        Complexity: O(1) amortised, plus weighing and what is evicted.
        """
        options = self._options.but(ttl=ttl, jitter=jitter, tags=tags, depends_on=depends_on)
        space, data, kind = self._place(key)
        marks = self._places.marks(options, (space, data))
        ttl_now = self._engine.shortened(options)
        write = self._engine.stage("set()", data, kind, value, ttl_now, marks)
        async with self._sections.writing():
            self._engine.put(space, data, write)

    async def set_many(
        self,
        values: Mapping[Any, object],
        *,
        ttl: Ttl | Unset = UNSET,
        jitter: float | Unset = UNSET,
        tags: Tags = (),
        depends_on: Dependencies = (),
    ) -> None:
        """Store all of *values* in one step: no reader sees some new and some old.

        Args:
            values: By key, as for `set`.
            ttl: Seconds (or timedelta) from now, of each; None: for ever.
            jitter: Shortens ttl by up to this fraction, each by its own chance.
            tags: Of each of them.
            depends_on: Of each of them.

        Raises:
            TypeError: *values* is no mapping, or a value can be used only once.
            ValueError: *ttl* is not above 0, or a key depends on itself.
            ReadOnlySectionError: This task is inside `reading()`.
            UnsupportedKeyError: A key cannot be one.
            CacheClosedError: The cache is closed.
            Exception: Whatever the weigher raised. Nothing was changed, whatever failed.
        """
        if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"values must be a mapping of keys, not {type(values).__name__}")
        engine = self._engine
        options = self._options.but(ttl=ttl, jitter=jitter, tags=tags, depends_on=depends_on)
        writes: dict[Place, Write | None] = {}
        for key, value in values.items():
            space, data, kind = self._place(key)
            marks = self._places.marks(options, (space, data))
            writes[space, data] = engine.stage(
                "set_many()", data, kind, value, engine.shortened(options), marks
            )
        async with self._sections.writing():
            engine.commit(writes, (), None)

    async def update(
        self,
        key: object,
        fn: Callable[[Any], Any],
        *,
        default: object = MISSING,
        ttl: Ttl | Unset = UNSET,
        tags: Tags | Unset = UNSET,
        depends_on: Dependencies | Unset = UNSET,
    ) -> Any:
        """Replace the value of *key* by fn(value) and return that; no update is ever lost.

        When somebody else changed the value while *fn* ran, *fn* is called again with
        the newer one: it should do nothing but compute.

        Args:
            key: An accepted raw key, or a `Key` of a call.
            fn: Takes the value and returns the new one, or `MISSING` to remove it;
                plain or async. Must not write *key* itself.
            default: What *fn* is given when there is no fresh value.
            ttl: Seconds (or timedelta) from now; not given: the deadline stays as it is.
            tags: Of the new value; not given, like depends_on: those of the old one.
            depends_on: Keys and calls whose change invalidates the new value.

        Raises:
            TypeError: *fn* is not callable, or its result can be used only once.
            TransactionConflictError: *fn* itself writes *key*, each time.
            LockDeadlockError: *fn* itself updates *key*.
            ReadOnlySectionError: This task is inside `reading()`.
            UnsupportedKeyError: *key* cannot be a key.
            CacheClosedError: The cache is closed.
            Exception: Whatever *fn* raised; nothing was changed.
        """
        check_callable("fn", fn, "a callable that takes the value and returns the new one")
        self._sections.refuse()
        given = {"ttl": ttl, "tags": tags, "depends_on": depends_on}
        return await self._updates.update(key, fn, default, given, self._options)

    async def increment(self, key: object, by: float = 1) -> Any:
        """Add *by* to the number at *key* and return the sum; an absent one counts as 0.

        Raises:
            TypeError: *by*, or the value, is no number.
            ReadOnlySectionError: This task is inside `reading()`.
            UnsupportedKeyError: *key* cannot be a key.
            CacheClosedError: The cache is closed.
        """
        if isinstance(by, bool) or not isinstance(by, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"by must be a number, not {type(by).__name__}")

        def plus(value: Any) -> Any:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"increment() needs a number, not {type(value).__name__}")
            return value + by

        return await self.update(key, plus, default=0)

    async def delete(self, *keys: object) -> int:
        """Remove *keys*; return how many held a fresh value.

        When it returned, no later read sees a value whose load began before.

        Raises:
            UnsupportedKeyError: A key cannot be one; nothing was removed.
            CacheClosedError: The cache is closed.
        """
        places = self._admitted(keys)
        async with self._sections.writing():
            return self._engine.remove(places, RemovalCause.DELETED)

    async def expire(self, *keys: object) -> int:
        """Make *keys* expired now; return how many were fresh. Fences loads, as `delete` does.

        Raises:
            UnsupportedKeyError: A key cannot be one; nothing was changed.
            CacheClosedError: The cache is closed.
        """
        places = self._admitted(keys)
        async with self._sections.writing():
            return self._engine.remove(places, RemovalCause.EXPIRED)

    async def invalidate_tags(self, *tags: str) -> int:
        """Remove everything that has one of *tags*; return how many fresh values that were.

        Complete when it returns: also loads that run now and turn out to have one of
        them are not stored. What is stored with one of them by a load or a `set` that
        began later, stays. Many entries are removed in slices.

        Raises:
            TypeError: A tag is no str.
            ValueError: A tag is empty or too long.
            ReadOnlySectionError: This task is inside `reading()`.
            CacheClosedError: The cache is closed.

        Complexity: O(entries with one of the tags + loads running now).
        """
        named = check_tags("tags", tags)
        self._engine.admit()
        if not named:
            return 0
        async with self._sections.writing():
            removed, pool = self._engine.invalidate_tags(named, TAG_SLICE)
        try:
            while pool:
                await asyncio.sleep(0)
                removed += self._engine.go_on(pool, TAG_SLICE)
        finally:
            if pool:  # cancelled: what has begun is finished, at the price of a stall
                self._engine.go_on(pool, math.inf)
        return removed

    async def touch(self, key: object, ttl: Ttl) -> bool:
        """Give a fresh value a new ttl from now; False if there is none.

        Raises:
            ValueError: *ttl* is not above 0.
            UnsupportedKeyError: *key* cannot be a key.
            CacheClosedError: The cache is closed.
        """
        seconds = check_ttl("ttl", ttl)
        space, data, _ = self._place(key)
        async with self._sections.writing():
            return self._engine.retime(space, data, seconds)

    async def clear(self) -> None:
        """Remove everything. Loads that run answer their waiters and store nothing.

        Everything is gone at once; its memory is freed in slices before this returns.

        Raises:
            CacheClosedError: The cache is closed.
        """
        self._engine.admit()
        async with self._sections.writing():
            wreck = self._engine.clear()
        await emptied(wreck, self._engine.bury)

    # -- many keys as one

    def transaction(self, *, on_conflict: Literal["last", "raise"] = "last") -> Transaction:
        """Return a block of writes that become visible together, or not at all.

            async with cache.transaction() as tx:
                tx.set("a", 1)
                tx.delete("b")

        Args:
            on_conflict: What happens when something that the block has read was changed
                by somebody else before it ends: the "last" commit wins, or "raise".

        Raises:
            TransactionConflictError: By the end of the block; nothing was applied.
            ReadOnlySectionError: This task is inside `reading()`.
            CacheClosedError: The cache is closed.
        """
        watching = check_choice("on_conflict", on_conflict, ("last", "raise")) == "raise"
        return Transaction(
            self._engine, self._places, self._sections, self._options, watching=watching
        )

    def reading(self) -> View:
        """Return a block of reads that sees the cache of one moment.

            async with cache.reading() as view:
                await view.get("a"), await view.get("b")

        What was written or removed after it opened is a miss in it: it may see a miss,
        never a mix. Tasks of this loop that write wait for the block, `section_wait`
        seconds at most; loads, other threads and synchronous calls never do. Writing in
        it raises ReadOnlySectionError. Loads and decorated calls are no part of it.

        Raises:
            CacheClosedError: The cache is closed.
        """
        return View(self._engine, self._places, self._sections.reading())

    def lock(self, *keys: object, mode: Literal["writer", "reader"] = "writer") -> Holding:
        """Return an exclusive section of your own, per key, in this process.

            async with cache.lock("user:7"):
                ...  # update the database and the cache together

        Reads, writes and loads of the cache do not ask for it. Serves all loops and
        threads; first come, first served; several keys are one request, so two blocks
        of this kind cannot wait for each other.

        Args:
            keys: Raw keys or `Key`s.
            mode: "reader" shares the section with other readers.

        Raises:
            ValueError: No key is given, or *mode* is neither.
            LockDeadlockError: On entering: this block could never be granted.
            UnsupportedKeyError: A key cannot be one.
        """
        shared = check_choice("mode", mode, ("writer", "reader")) == "reader"
        return self._locks.holding([self._place(key)[:2] for key in keys], shared=shared)

    # -- decorated functions

    async def invalidate(self, fn: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the value of the call *fn(*args, **kwargs)*; tell whether there was one.

        Args:
            fn: A function decorated for this cache, or a bound method of one.
            args: The call's arguments.
            kwargs: The call's keyword arguments.

        Raises:
            TypeError: *fn* is not decorated, or cannot be called so.
            ValueError: *fn* belongs to another cache.
            CacheClosedError: The cache is closed.
        """
        self._engine.admit()
        function, values = self._bound(fn, args, kwargs)
        space, data, _ = function.address(values)
        async with self._sections.writing():
            return self._engine.remove([(space, data)], RemovalCause.DELETED) > 0

    @overload
    async def refresh(
        self, fn: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    async def refresh(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def refresh(self, fn: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Load the call *fn(*args, **kwargs)* now, fresh or not, and return its value.

        Until it ends, others still get the older value. Joins a load of that
        call which already runs. A plain `def` runs in a worker thread. Counts
        as a load, not as a call.

        Raises:
            TypeError: *fn* is not decorated, or cannot be called so.
            ValueError: *fn* belongs to another cache.
            CacheClosedError: The cache is closed.
            Exception: Whatever the function raised; the older value stays.
        """
        function, values = self._bound(fn, args, kwargs)
        if function.closed:
            raise CacheClosedError(function.name)
        space, data, kind = function.address(values)
        function.note(space, data, values)
        self._sweeper.revive()
        return await self._loads.load(
            space,
            data,
            kind,
            function.invoke,
            (values,),
            function.options,
            self._marks_of(function, values, (space, data)),
            refresh=True,
            in_thread=not function.is_async,
        )

    def key_for(self, fn: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Key:
        """Return the `Key` of the call *fn(*args, **kwargs)*; every keyed method takes it.

        Raises:
            TypeError: *fn* is not decorated, or cannot be called so.
            ValueError: *fn* belongs to another cache.
        """
        function, values = self._bound(fn, args, kwargs)
        return Key(*function.address(values), function.name)

    async def explain(self, key: object) -> Explanation:
        """Return everything known about *key*, for people: print it. Counts as no call.

        Raises:
            UnsupportedKeyError: *key* cannot be a key.
        """
        space, data, _ = self._place(key)
        return self._engine.explain(space, data)

    def info(self, fn: Callable[..., Any]) -> FunctionInfo:
        """Return the counters of one decorated function. O(loads running now + instances).

        Raises:
            TypeError: *fn* is not decorated.
            ValueError: *fn* belongs to another cache.
        """
        function, _ = self._function(fn)
        counts = function.counters
        spaces = list(function.spaces())
        with self._engine.store.lock:
            running = len(self._functions.flights_of(function)())
        return FunctionInfo(
            name=function.name,
            hits=counts.hits,
            misses=counts.misses,
            coalesced=counts.coalesced,
            loads=counts.loads,
            load_errors=counts.load_errors,
            entries=sum(len(space.data) for space in spaces),
            in_flight=running,
        )

    # -- health

    def stats(self, window: float | timedelta | None = None) -> CacheStats:
        """Return the counters; with *window*, of about the last so many seconds (at most 300).

        Raises:
            ValueError: *window* is not above 0 or above 300.
        """
        engine = self._engine
        now = engine.clock()
        with engine.store.lock:
            stats = engine.stats()
            if window is None:
                return stats
            seconds = check_seconds("window", window)
            if seconds > 300:
                raise ValueError(f"window={window!r} must be at most 300 seconds")
            engine.recent.roll(now, engine.stats)
            return stats - engine.recent.since(now, seconds)[1]

    def health(self) -> dict[str, Any]:
        """Return what is known of the cache's state, ready for JSON.

        Works at any time, in any state, from any thread. `status` is "closed",
        "warning", "degraded" or "healthy"; each alert has name, observed,
        threshold, unit and advice. See docs/health.md for every key.

        Complexity: O(decorated functions); independent of the entries.
        """
        engine, store = self._engine, self._engine.store
        now = engine.clock()
        with store.lock:
            engine.recent.roll(now, engine.stats)
            stats = engine.stats()
            return report(
                name=self._name,
                closed=self.closed,
                stats=stats,
                entries=store.live(now, HEALTH_WORK),
                in_flight=len(engine.flights.running),
                memory_bytes=store.bytes,
                max_memory_bytes=store.max_bytes,
                eviction_rate=engine.recent.eviction_rate(now, stats),
                response_time=engine.recent.response_time(now, stats),
                listener_errors=self._events.errors,
                events_dropped=self._events.dropped,
                lock_waits=summary([self._sections.waits, self._locks.waits]),
                background={job.name: job.report(now) for job in self._jobs()},
                advice={job.name: job.advice for job in self._jobs()},
                loads=(
                    engine.flights.oldest(now),
                    engine.flights.most_waiters(HEALTH_WORK),
                    engine.flights.hung,
                ),
                thresholds=self._thresholds,
            )

    async def get_health_info(self) -> dict[str, Any]:
        """Return `health()`; a sweeper whose loop died runs again in this one from here on."""
        self._revive()
        return self.health()

    @overload
    def on(
        self, event: Literal["loaded"], callback: Callable[[Loaded], object]
    ) -> Callable[[], None]: ...
    @overload
    def on(
        self, event: Literal["load_failed"], callback: Callable[[LoadFailed], object]
    ) -> Callable[[], None]: ...
    @overload
    def on(
        self, event: Literal["refreshed"], callback: Callable[[Refreshed], object]
    ) -> Callable[[], None]: ...
    @overload
    def on(
        self, event: Literal["removed"], callback: Callable[[Removed], object]
    ) -> Callable[[], None]: ...
    @overload
    def on(
        self, event: Literal["invalidated"], callback: Callable[[Invalidated], object]
    ) -> Callable[[], None]: ...
    def on(self, event: str, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Call *callback* with every *event* from now on; return the function that ends that.

        It runs in the thread whose operation caused the event, when that operation
        is complete, outside every lock and outside of the caller's context; it may
        call the cache. What it raises is logged by type and counted in
        `listener_errors`. A subscription lasts through `aclose`. See docs/events.md.

        Args:
            event: "loaded", "load_failed", "refreshed", "removed" or "invalidated".
            callback: A plain function; it is given a `Loaded`, `LoadFailed`,
                `Refreshed`, `Removed` or `Invalidated`.

        Raises:
            ValueError: There is no such event.
            TypeError: *callback* cannot be called, or is a coroutine function.
        """
        return self._events.subscribe(event, callback)

    async def wait_warm(
        self, *, min_ratio: float = 1.0, timeout: float | timedelta | None = None
    ) -> bool:
        """Wait until so much of what is to be kept warm was loaded; for readiness probes.

        What is to be warm are the calls registered with, or replayed by, a
        `CacheWarmingStrategy` of this cache. With none, the answer is True at once.

        Args:
            min_ratio: Fraction of these calls that were loaded, or found fresh, once.
            timeout: Seconds to wait at most; None: as long as it takes.

        Returns:
            Whether they are; False when *timeout* has passed first.

        Raises:
            ValueError: *min_ratio* is not between 0 and 1.
            CacheClosedError: The cache is closed.
        """
        least = check_fraction("min_ratio", min_ratio, "how much must be warm")
        seconds = None if timeout is None else check_seconds("timeout", timeout, zero=True)
        with anyio.move_on_after(seconds):
            while True:
                self._engine.admit()
                if self._warm_ratio() >= least:
                    return True
                await anyio.sleep(WARM_LOOK)
        return self._warm_ratio() >= least

    def _warm_ratio(self) -> float:
        alive = [warmth for each in self._warmths if (warmth := each()) is not None]
        wanted = sum(warmth.wanted for warmth in alive)
        return sum(warmth.warm for warmth in alive) / wanted if wanted else 1.0

    def check(self) -> None:
        """Recompute every invariant from scratch; for tests. O(entries + loads).

        Raises:
            AssertionError: An invariant is broken: a bug of this library.
        """
        self._engine.check()
        self._locks.check()
        self._updates.locks.check()

    # -- its life

    async def start(self) -> None:
        """Open the cache, if it is closed, and sweep expired entries in this loop from now on."""
        self._closing.reopen()
        self._sweeper.start()

    async def aclose(self, *, drain: bool = False, timeout: float | timedelta = 5.0) -> None:
        """Close the cache: end its loads and its background work, free its memory.

        Idempotent; leaves no task and no thread of the cache's own, unless a
        load does not end in time.

        Args:
            drain: Let running loads end, and their waiters have the values;
                otherwise these get `CacheClosedError` at once.
            timeout: Seconds that all of it may take.
        """
        engine, closing = self._engine, self._closing
        loop = asyncio.get_running_loop()
        deadline = loop.time() + check_seconds("timeout", timeout, zero=True)
        closing.shut(drain=drain)
        try:
            if drain:
                await closing.ended(lambda: engine.flights.running, deadline, threads=True)
        finally:
            # Also when the caller is cancelled: a cache half closed would be worse.
            wreck = closing.finish()
            if self.closed:
                for job in self._jobs():
                    job.dismiss()
        if not self.closed:
            return  # somebody opened it again meanwhile
        for job in self._jobs():
            await job.stop(max(0.0, deadline - loop.time()))
        await closing.ended(lambda: engine.flights.running, deadline, threads=False)
        await closing.workers_ended(deadline)
        await emptied(wreck, engine.bury)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- inside

    def _place(self, key: object) -> tuple[Namespace, DataKey, object]:
        return self._places.of(key)

    def _admitted(self, keys: tuple[object, ...]) -> list[Place]:
        self._engine.admit()
        return [self._place(key)[:2] for key in keys]

    def _marks_of(
        self, function: CachedFunction, values: tuple[Any, ...], place: Place
    ) -> Marks | None:
        """Return what is stored besides the value of one call of *function*."""
        options = function.options
        if not (options.tags or options.depends_on):
            described = place[0].described
            return self._places.marks(options, place) if described else None
        return self._places.marks(options, place, lambda option: function.compute(option, values))

    def _jobs(self) -> list[Background]:
        """Return the background work."""
        return [self._sweeper, *self._sweeper.followers]

    def _revive(self) -> None:
        """Start the sweeper again if its loop died."""
        self._sweeper.revive()

    def _forked(self, torn: bool) -> list[object]:
        """Let go, in a forked child, of what belongs to the parent's threads and loops."""
        flights = self._engine.leave_behind(torn=torn)
        self._events.forget()
        self._sections.forget()
        self._locks.forget()
        self._updates.locks.forget()
        functions = self._functions
        for named in (*functions._names.values(), functions._replaced):
            for wrapper in (reference() for reference in named.values()):
                if wrapper is not None:
                    function_of(wrapper)[0].forgotten = (0, 0)
        tasks = [task for job in self._jobs() for task in job.leave_behind()]
        return [*flights, *tasks]

    def _function(self, fn: object) -> tuple[CachedFunction, tuple[object, ...]]:
        function, instance = function_of(fn)
        if function.store is not self._engine.store:
            raise ValueError(f"{function.name} belongs to another cache than {self._name!r}")
        return function, instance

    def _bound(
        self, fn: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[CachedFunction, tuple[Any, ...]]:
        function, instance = self._function(fn)
        return function, function.bind(*instance, *args, **kwargs)

    async def _sweep(self) -> None:
        """Free what is cleared or due now, in slices."""
        self._engine.guards.bury_closed()  # nobody may ever ask for their keys again
        now = self._engine.clock()
        while self._engine.sweep(now, SWEEP_SLICE):  # noqa: ASYNC110 - not waiting: working
            await asyncio.sleep(0)


def _named_ttl(default_ttl: Ttl) -> float | None:
    return check_ttl("default_ttl", default_ttl)
