"""A history: what was asked of a cache and what it answered, and whether that can be right.

Every call, return, begin of a load and end of a load takes the next number of one
counter. An operation took effect at one moment between its two numbers; `check`
looks for such moments, key by key, in which the cache is the plain machine that
the contract describes:

    value    what the key holds, or nothing
    load     the load that callers may join now, or none

    set      value := its value            load := none (a fence)
    delete   value := nothing              load := none (expire, clear, invalidations alike)
    begin    only if load is none          load := this one
    end      only if load is this one      value := its value, load := none
    call     sees the value, or joins the load and gets what that gives
    read     sees the value; a miss sees nothing

If no choice of moments makes every answer one of the machine's, the history is
illegal, and `HistoryError` shows the operations of that key and where the search
got stuck. If there is one, the history is linearizable for that key; and because
linearizability is local, keys are decided one by one.

Values should be unique, one per write or load: use `History.fresh`. How an order is
searched for stands in `_verdict`.

Source: Herlihy & Wing, "Linearizability" (1990).
"""

import inspect
import itertools
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, final

from async_safe_cache._cache import AsyncSafeCache
from async_safe_cache._entries import Namespace
from async_safe_cache._flights import running_loop
from async_safe_cache._function import function_of
from async_safe_cache._keys import Key
from async_safe_cache.outcomes import MISSING, Lookup

from ._operation import Act, Fresh, Operation, Outcome, label, text, token
from ._verdict import HistoryError, Verdict

__all__ = ["Fresh", "History", "HistoryError", "Operation", "WatchedCache", "WatchedFunction"]

_caller: ContextVar[Operation | None] = ContextVar("async_safe_cache_history", default=None)
"""The operation that this code is part of: a load begun for it inherits it."""


@final
class History:
    """Records what is done with caches, and decides whether the answers can be right.

    Recording takes a number and an append for each event, reads no clock and is
    safe from any thread. A history is checked when what it watched has come to rest.

    Args:
        lossless: Nothing may vanish by itself: no ttl runs out, no bound evicts. A
            miss that no removal explains is then illegal.
        negative: Failures are remembered: a call may get the failure of an earlier load.
    """

    def __init__(self, *, lossless: bool = False, negative: bool = False) -> None:
        self.lossless = lossless
        self.negative = negative
        self.operations: list[Operation] = []  # grows with what is recorded
        self._tick: Callable[[], int] = itertools.count(1).__next__  # one step under the GIL
        self._number: Callable[[], int] = itertools.count(1).__next__
        self._watched: dict[AsyncSafeCache, int] = {}

    # -- recording

    def fresh(self, key: object) -> Fresh:
        """Return a value that no other write or load of this history has."""
        return Fresh(text(key), self._number())

    def begin(self, name: str, act: Act, key: object, given: object = MISSING) -> Operation:
        """Note a call; the operation's `returned` or `raised` notes its end."""
        value = None if given is MISSING else token(given)
        operation = Operation(self._tick, name, act, label(key), value)
        self.operations.append(operation)
        return operation

    def watch(self, cache: AsyncSafeCache) -> "WatchedCache":
        """Return a view of *cache* whose calls are recorded."""
        self._watched.setdefault(cache, cache.stats().overlapping_loads)
        return WatchedCache(self, cache)

    def function(self, fn: Callable[..., Any]) -> "WatchedFunction":
        """Return the decorated *fn*, `def` or `async def`, with its calls recorded."""
        return WatchedFunction(self, fn)

    def loader(
        self, key: object, body: Callable[[], Awaitable[object]] | None = None
    ) -> Callable[[], Awaitable[Fresh]]:
        """Return a loader of *key* whose runs are recorded; each gives a fresh value.

        Args:
            key: What is loaded: a raw key, or the `Key` of a call.
            body: Awaited on the way; what it raises, the load raises.
        """

        async def load() -> Fresh:
            operation, value = self._begin_load(key)
            try:
                if body is not None:
                    await body()
            except BaseException as error:
                operation.raised(error)
                raise
            operation.returned(Outcome.VALUE, token(value))
            return value

        return load

    def loader_here(
        self, key: object, body: Callable[[], object] | None = None
    ) -> Callable[[], Fresh]:
        """Return the same as a plain function, for a `def`."""

        def load() -> Fresh:
            operation, value = self._begin_load(key)
            try:
                if body is not None:
                    body()
            except BaseException as error:
                operation.raised(error)
                raise
            operation.returned(Outcome.VALUE, token(value))
            return value

        return load

    def _begin_load(self, key: object) -> tuple[Operation, Fresh]:
        value = self.fresh(key)
        operation = self.begin("load", Act.LOAD, key, value)
        caller = _caller.get()
        if caller is not None and caller.key == operation.key and caller._tick is self._tick:
            operation.leader = caller
        operation.loop = running_loop()
        return operation, value

    # -- deciding

    def check(self, *, overlapping: int | None = None) -> None:
        """Raise HistoryError unless every answer can be right.

        Args:
            overlapping: How many loads may have begun beside one that was cancelled
                and did not end in time; default: what the watched caches counted.

        Raises:
            HistoryError: No legal order exists for some key.
            ValueError: Two writes or loads of one key gave equal values, which
                leaves open what a read saw: use `fresh`.
            RuntimeError: So many changes of one key are concurrent that a million
                states did not decide it.

        Complexity: O(operations x concurrent ones), as a rule; exponential in the
            concurrent *changes* of one key at worst.
        """
        if overlapping is None:
            overlapping = sum(
                cache.stats().overlapping_loads - before for cache, before in self._watched.items()
            )
        operations = sorted(self.operations, key=lambda each: each.begin)
        by_key: dict[Hashable, list[Operation]] = {}
        origins: dict[Any, Operation] = {}
        for each in operations:
            if each.act is not Act.CLEAR:
                by_key.setdefault(each.key, []).append(each)
            if each.act is Act.WRITE or each.act is Act.LOAD:
                origins.setdefault(each.given, each)
                if each.act is Act.LOAD and each.outcome is Outcome.ERROR:
                    origins.setdefault(each.result, each)
        clears = [each for each in operations if each.act is Act.CLEAR]
        for key, mine in by_key.items():
            mine += [each for each in clears if each.scope is None or each.scope is _scope(key)]
            mine.sort(key=lambda each: each.begin)
            verdict = Verdict(
                key, mine, lossless=self.lossless, negative=self.negative, elsewhere=origins
            )
            overlapping -= verdict.decide(overlapping)


# -- what records by itself


@final
class WatchedCache:
    """A cache whose calls are recorded; the same names and arguments."""

    def __init__(self, history: History, cache: AsyncSafeCache) -> None:
        self.history = history
        self.cache = cache

    async def get(self, key: object, default: object = None) -> Any:
        """Record `AsyncSafeCache.get`."""
        operation = self.history.begin("get", Act.READ, key)
        with _Ended(operation):
            value = await self.cache.get(key, MISSING)
            _found(operation, value)
        return default if value is MISSING else value

    async def lookup(self, key: object) -> Lookup[Any]:
        """Record `AsyncSafeCache.lookup`."""
        operation = self.history.begin("lookup", Act.READ, key)
        with _Ended(operation):
            answer = await self.cache.lookup(key)
            _found(operation, answer.value)
        return answer

    def peek(self, key: object, default: object = MISSING) -> Any:
        """Record `AsyncSafeCache.peek`."""
        operation = self.history.begin("peek", Act.READ, key)
        with _Ended(operation):
            value = self.cache.peek(key)
            _found(operation, value)
        return default if value is MISSING else value

    async def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """Record `AsyncSafeCache.get_many`, as one read of each key."""
        asked = list(keys)
        operations = [self.history.begin("get_many", Act.READ, key) for key in asked]
        with _Ended(*operations):
            answer = await self.cache.get_many(asked)
            for key, operation in zip(asked, operations, strict=True):
                _found(operation, answer.get(key, MISSING))
        return answer

    async def get_or_load(self, key: object, loader: Callable[..., Any], **options: Any) -> Any:
        """Record `AsyncSafeCache.get_or_load`; *loader* should be one of `History.loader`."""
        operation = self.history.begin("get_or_load", Act.CALL, key)
        with _Ended(operation, calls=True):
            value = await self.cache.get_or_load(key, loader, **options)
            operation.returned(Outcome.VALUE, token(value))
        return value

    async def set(self, key: object, value: object, **options: Any) -> None:
        """Record `AsyncSafeCache.set`."""
        operation = self.history.begin("set", Act.WRITE, key, value)
        with _Ended(operation):
            await self.cache.set(key, value, **options)
            operation.returned(Outcome.DONE)

    async def delete(self, *keys: object) -> int:
        """Record `AsyncSafeCache.delete`, as one removal of each key."""
        return await self._remove("delete", keys, self.cache.delete)

    async def expire(self, *keys: object) -> int:
        """Record `AsyncSafeCache.expire`, as one removal of each key."""
        return await self._remove("expire", keys, self.cache.expire)

    async def touch(self, key: object, ttl: float | timedelta | None) -> bool:
        """Record `AsyncSafeCache.touch`."""
        operation = self.history.begin("touch", Act.USE, key)
        with _Ended(operation):
            found = await self.cache.touch(key, ttl)
            operation.returned(Outcome.DONE, found)
        return found

    async def clear(self) -> None:
        """Record `AsyncSafeCache.clear`, as a removal of every key."""
        operation = self.history.begin("clear", Act.CLEAR, None)
        with _Ended(operation):
            await self.cache.clear()
            operation.returned(Outcome.DONE)

    async def aclose(self, **options: Any) -> None:
        """Record `AsyncSafeCache.aclose`, as a removal of every key."""
        operation = self.history.begin("aclose", Act.CLEAR, None)
        with _Ended(operation):
            await self.cache.aclose(**options)
            operation.returned(Outcome.DONE)

    async def invalidate(self, fn: Any, *args: Any, **kwargs: Any) -> bool:
        """Record `AsyncSafeCache.invalidate` of a decorated or watched function."""
        plain = fn.fn if isinstance(fn, WatchedFunction) else fn
        key = self.cache.key_for(plain, *args, **kwargs)
        operation = self.history.begin("invalidate", Act.REMOVE, key)
        with _Ended(operation):
            removed = await self.cache.invalidate(plain, *args, **kwargs)
            operation.returned(Outcome.DONE, removed)
        return removed

    async def refresh(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Record `AsyncSafeCache.refresh` of a decorated or watched function."""
        plain = fn.fn if isinstance(fn, WatchedFunction) else fn
        key = self.cache.key_for(plain, *args, **kwargs)
        operation = self.history.begin("refresh", Act.REFRESH, key)
        with _Ended(operation, calls=True):
            value = await self.cache.refresh(plain, *args, **kwargs)
            operation.returned(Outcome.VALUE, token(value))
        return value

    async def _remove(
        self, name: str, keys: tuple[object, ...], call: Callable[..., Awaitable[int]]
    ) -> int:
        operations = [self.history.begin(name, Act.REMOVE, key) for key in keys]
        with _Ended(*operations):
            removed = await call(*keys)
            for operation in operations:
                operation.returned(Outcome.DONE, removed if len(keys) == 1 else None)
        return removed


@final
class WatchedFunction:
    """A decorated function whose calls are recorded; `async def` or `def`.

    Its loads are recorded by the function itself: let its body return what
    `await history.loader(fn.cache_key(x), ...)()` gives.
    """

    def __init__(self, history: History, fn: Any) -> None:
        self.history = history
        self.fn = fn
        self._is_async = inspect.iscoroutinefunction(fn)

    def key(self, *args: Any, **kwargs: Any) -> Key:
        """Return the `Key` of one call."""
        key: Key = self.fn.cache_key(*args, **kwargs)
        return key

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; a coroutine if it is an `async def`."""
        key = self.key(*args, **kwargs)
        return (self._later if self._is_async else self._here)(key, args, kwargs)

    async def _later(self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operation = self.history.begin("call", Act.CALL, key)
        with _Ended(operation, calls=True):
            value = await self.fn(*args, **kwargs)
            operation.returned(Outcome.VALUE, token(value))
        return value

    def _here(self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operation = self.history.begin("call", Act.CALL, key)
        with _Ended(operation, calls=True):
            value = self.fn(*args, **kwargs)
            operation.returned(Outcome.VALUE, token(value))
        return value

    def cache_invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """Record `cache_invalidate` of the function."""
        operation = self.history.begin("cache_invalidate", Act.REMOVE, self.key(*args, **kwargs))
        with _Ended(operation):
            removed: bool = self.fn.cache_invalidate(*args, **kwargs)
            operation.returned(Outcome.DONE, removed)
        return removed

    def cache_contains(self, *args: Any, **kwargs: Any) -> bool:
        """Record `cache_contains` of the function."""
        operation = self.history.begin("cache_contains", Act.USE, self.key(*args, **kwargs))
        with _Ended(operation):
            found: bool = self.fn.cache_contains(*args, **kwargs)
            operation.returned(Outcome.DONE, found)
        return found

    def cache_clear(self) -> None:
        """Record `cache_clear` of the function, as a removal of each of its keys."""
        operation = self.history.begin("cache_clear", Act.CLEAR, None)
        operation.scope = function_of(self.fn)[0].counters
        with _Ended(operation):
            self.fn.cache_clear()
            operation.returned(Outcome.DONE)


@final
class _Ended:
    """Notes the error that ends operations; with *calls* their loads know who began them."""

    __slots__ = ("_before", "_calls", "_operations")

    def __init__(self, *operations: Operation, calls: bool = False) -> None:
        self._operations = operations
        self._calls = calls
        self._before: Operation | None = None

    def __enter__(self) -> None:
        if self._calls:
            self._before = _caller.get()
            _caller.set(self._operations[0])

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._calls:
            # Not reset(token): the collector closes a coroutine in another context.
            _caller.set(self._before)
        if error is not None:
            for operation in self._operations:
                operation.raised(error)


def _found(operation: Operation, value: object) -> None:
    if value is MISSING:
        operation.returned(Outcome.MISS)
    else:
        operation.returned(Outcome.VALUE, token(value))


def _scope(key: Hashable) -> object:
    """Return what the keys of one function have in common, over all its instances."""
    if isinstance(key, Key) and isinstance(key.space, Namespace):
        return key.space.counters
    return None
