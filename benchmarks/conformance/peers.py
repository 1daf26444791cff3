"""One adapter per library: how a reader of its documentation would do what a row asks for.

An adapter has one configuration for all rows, the one that its documentation
recommends for an `async def` called concurrently; options that make keys typed
are on. What a library offers no documented means for raises `NoMeansError`: the
cell is "-", not a failure. Imports wait until they are needed: a cell loads one
library only.
"""

import asyncio
import sys
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, final

__all__ = ["DEFAULT", "OURS", "PEERS", "NoMeansError", "Peer"]

Function = Callable[..., Awaitable[Any]]

LONG: Final = 3600.0
"""Seconds: a ttl that never ends here, for a library that insists on one."""


@final
class NoMeansError(Exception):
    """The library has no documented means for what the row asks; says which is missing."""


class Peer:
    """What a row may ask of a library.

    Attributes:
        title: Head of the column.
        distribution: Its name on the package index; "" for no package.
        pinned: The release whose results are written down.
        native_clock: Its clock is native code, out of a test's reach.
    """

    title: str
    distribution = ""
    pinned = ""
    native_clock = False

    def version(self) -> str | None:
        """Return the installed version, "" for no package, None if it is not installed."""
        if not self.distribution:
            return ""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    def cached(
        self,
        fn: Function,
        *,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        remember: type[Exception] | None = None,
    ) -> Function:
        """Decorate the `async def` *fn*; *remember* is a failure to remember for a while."""
        raise NotImplementedError

    def plain(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a plain `def`."""
        raise NoMeansError("caches async functions only")

    def method(self, fn: Function) -> Function:
        """Decorate the method user(self, x) of a class whose instances differ in `tenant`."""
        return self.cached(fn)

    def prepare(self, instance: Any) -> None:
        """Do in `__init__` what the library wants done there for cached methods."""

    async def invalidate(self, fn: Function, *args: Any) -> None:
        """Remove the value of one call."""
        raise NoMeansError("no documented way to remove the value of one call")

    async def clear(self, fn: Function) -> None:
        """Remove every value of *fn*."""
        raise NoMeansError("no documented way to remove the values of a function")

    async def reason(self, fn: Function, *args: Any) -> str:
        """Return why one call has no value."""
        raise NoMeansError("does not say why a value is missing")


@final
class Ours(Peer):
    title = "async_safe_cache"
    distribution = "async-safe-cache"

    def version(self) -> str | None:
        installed = super().version()
        if installed is not None:
            return installed
        # Run from the sources, not installed.
        path = Path(__file__).parents[2] / "pyproject.toml"
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        return str(project["version"])

    def __init__(self) -> None:
        self.caches: dict[Function, Any] = {}

    def cached(
        self,
        fn: Function,
        *,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        remember: type[Exception] | None = None,
    ) -> Function:
        from async_safe_cache import AsyncSafeCache, race_safe_cached

        cache = AsyncSafeCache(
            max_entries=max_entries,
            max_memory_bytes=200 * 1024**2 if max_bytes is None else max_bytes,
        )
        negative = None if remember is None else {remember: LONG}
        wrapper = race_safe_cached(cache, ttl=ttl, negative=negative)(fn)
        self.caches[wrapper] = cache
        return wrapper

    def plain(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        from async_safe_cache import AsyncSafeCache, race_safe_cached

        return race_safe_cached(AsyncSafeCache())(fn)

    async def invalidate(self, fn: Function, *args: Any) -> None:
        await self.caches[fn].invalidate(fn, *args)

    async def clear(self, fn: Function) -> None:
        await self.caches[fn].clear()

    async def reason(self, fn: Function, *args: Any) -> str:
        cache = self.caches[fn]
        found = await cache.lookup(cache.key_for(fn, *args))
        return "hit" if found.hit else str(found.reason.name)


@final
class AsyncLru(Peer):
    title = "async-lru"
    distribution = "async-lru"
    pinned = "2.4.0"

    def cached(
        self,
        fn: Function,
        *,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        remember: type[Exception] | None = None,
    ) -> Function:
        from async_lru import alru_cache

        _refuse(max_bytes=max_bytes, remember=remember)
        return alru_cache(maxsize=max_entries, typed=True, ttl=ttl)(fn)

    async def invalidate(self, fn: Any, *args: Any) -> None:
        fn.cache_invalidate(*args)

    async def clear(self, fn: Any) -> None:
        fn.cache_clear()


@final
class Aiocache(Peer):
    title = "aiocache"
    distribution = "aiocache"
    pinned = "0.12.3"

    def __init__(self) -> None:
        self.decorators: dict[Function, tuple[Any, Function]] = {}

    def cached(
        self,
        fn: Function,
        *,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        remember: type[Exception] | None = None,
    ) -> Function:
        from aiocache import cached_stampede

        _refuse(max_bytes=max_bytes, remember=remember, max_entries=max_entries)
        decorator = cached_stampede() if ttl is None else cached_stampede(ttl=ttl)
        wrapper: Function = decorator(fn)
        self.decorators[wrapper] = decorator, fn
        return wrapper

    async def invalidate(self, fn: Any, *args: Any) -> None:
        decorator, original = self.decorators[fn]
        await fn.cache.delete(decorator.get_cache_key(original, args, {}))

    async def clear(self, fn: Any) -> None:
        await fn.cache.clear()


class Cashews(Peer):
    title = "cashews"
    distribution = "cashews"
    pinned = "7.6.0"
    options: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.caches: dict[Function, tuple[Any, Function]] = {}

    def cached(
        self,
        fn: Function,
        *,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        remember: type[Exception] | None = None,
        key: str | None = None,
    ) -> Function:
        from cashews import Cache, with_exceptions

        _refuse(max_bytes=max_bytes)
        cache = Cache()
        if max_entries is None:
            cache.setup("mem://")
        else:
            cache.setup("mem://", size=max_entries)
        condition = None if remember is None else with_exceptions(remember)
        wrapper: Function = cache(
            ttl=LONG if ttl is None else ttl, key=key, condition=condition, **self.options
        )(fn)
        self.caches[wrapper] = cache, fn
        return wrapper

    def method(self, fn: Function) -> Function:
        # One of the ways it names for methods; without it, keys hold the instance's address.
        return self.cached(fn, key="user:{self.tenant}:{x}")

    async def invalidate(self, fn: Function, *args: Any) -> None:
        from cashews.key import get_cache_key, get_cache_key_template

        cache, original = self.caches[fn]
        await cache.delete(get_cache_key(original, get_cache_key_template(original), args))

    async def clear(self, fn: Function) -> None:
        await self.caches[fn][0].clear()


@final
class CashewsLock(Cashews):
    """Its lock instead of its shared task: not what its documentation begins with."""

    title = "cashews, lock"
    options: Mapping[str, Any] = {"lock": True, "protected": False}


@final
class Cachebox(Peer):
    title = "cachebox"
    distribution = "cachebox"
    pinned = "6.2.10"
    native_clock = True

    def cached(
        self,
        fn: Function,
        *,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        remember: type[Exception] | None = None,
    ) -> Function:
        import cachebox

        _refuse(remember=remember)
        size, bound = None, max_entries or 0
        if max_bytes is not None:
            size, bound = _size_of_value, max_bytes
        cache = (
            cachebox.LRUCache(bound, getsizeof=size)
            if ttl is None
            else cachebox.TTLCache(bound, ttl, getsizeof=size)
        )
        return cachebox.cached(cache, key_maker=cachebox.make_typed_key)(fn)

    def plain(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        import cachebox

        return cachebox.cached(cachebox.LRUCache(0), key_maker=cachebox.make_typed_key)(fn)

    def method(self, fn: Function) -> Function:
        import cachebox

        return cachebox.cached(lambda self: self._cache, key_maker=cachebox.make_typed_key)(fn)

    def prepare(self, instance: Any) -> None:
        import cachebox

        instance._cache = cachebox.LRUCache(0)

    async def invalidate(self, fn: Any, *args: Any) -> None:
        import cachebox

        fn.cache.pop(cachebox.make_typed_key(*args), None)

    async def clear(self, fn: Any) -> None:
        fn.cache_clear()


@final
class Theine(Peer):
    title = "theine"
    distribution = "theine"
    pinned = "2.0.0"

    def cached(
        self,
        fn: Function,
        *,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        remember: type[Exception] | None = None,
    ) -> Function:
        from theine import Memoize

        _refuse(max_bytes=max_bytes, remember=remember)
        lifetime = None if ttl is None else timedelta(seconds=ttl)
        return Memoize(max_entries or 10_000, lifetime, typed=True)(fn)

    def method(self, fn: Function) -> Function:
        wrapper: Any = self.cached(fn)
        wrapper.key(lambda self, x: f"{self.tenant}:{x}")  # the way that it recommends
        return wrapper

    def plain(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        from theine import Memoize

        return Memoize(10_000, None, typed=True)(fn)


@final
class HandWritten(Peer):
    """What one writes first: a dict of values and a dict of running tasks."""

    title = "a dict of tasks"

    def __init__(self) -> None:
        self.values: dict[Function, dict[Any, Any]] = {}

    def cached(
        self,
        fn: Function,
        *,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        remember: type[Exception] | None = None,
    ) -> Function:
        _refuse(max_bytes=max_bytes, remember=remember, max_entries=max_entries)
        values: dict[Any, Any] = {}
        running: dict[Any, asyncio.Task[Any]] = {}

        async def load(key: Any, args: Any, kwargs: Any) -> Any:
            try:
                value = values[key] = await fn(*args, **kwargs)
                if ttl is not None:
                    asyncio.get_running_loop().call_later(ttl, values.pop, key, None)
                return value
            finally:
                del running[key]

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            key = args, tuple(sorted(kwargs.items()))
            if key in values:
                return values[key]
            if key not in running:
                running[key] = asyncio.create_task(load(key, args, kwargs))
            return await running[key]

        self.values[wrapper] = values
        return wrapper

    async def invalidate(self, fn: Function, *args: Any) -> None:
        self.values[fn].pop((args, ()), None)

    async def clear(self, fn: Function) -> None:
        self.values[fn].clear()


@final
class NoCache(Peer):
    """The function itself: what a row that it passes does not show."""

    title = "no cache"

    def cached(
        self,
        fn: Function,
        *,
        ttl: float | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        remember: type[Exception] | None = None,
    ) -> Function:
        return fn

    def plain(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return fn

    async def invalidate(self, fn: Function, *args: Any) -> None:
        pass

    async def clear(self, fn: Function) -> None:
        pass

    async def reason(self, fn: Function, *args: Any) -> str:
        return "ABSENT"


def _size_of_value(_key: object, value: object) -> int:
    return sys.getsizeof(value)


_MISSING: Final = {
    "max_bytes": "no bound in bytes",
    "max_entries": "no bound on the number of entries",
    "remember": "cannot remember a failure",
}


def _refuse(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise NoMeansError(_MISSING[name])


OURS: Final = "async_safe_cache"

PEERS: Final[Mapping[str, type[Peer]]] = {
    OURS: Ours,
    "async-lru": AsyncLru,
    "aiocache": Aiocache,
    "cashews": Cashews,
    "cachebox": Cachebox,
    "theine": Theine,
    "dict": HandWritten,
    "cashews-lock": CashewsLock,
    "no-cache": NoCache,
}

DEFAULT: Final = tuple(name for name in PEERS if name not in {"cashews-lock", "no-cache"})
"""The columns of the table; the rest runs when it is asked for."""
