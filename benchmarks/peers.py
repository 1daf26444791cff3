"""Who takes part: this library, its rivals at pinned releases, and the floors.

Every contestant is used as the first page of its documentation shows for an
`async def`, with a bound on the number of entries where it asks for one, and with
its own keys. Typed keys (1, 1.0 and True apart) are off where they are an option,
because untyped ones are faster; ours are always typed. A contestant is imported
when it is first asked for something; one that is not installed is named and left
out.

Floors cache nothing or promise nothing; they say how much of a figure is Python's:

    bare     the function itself
    honest   make a key of *args and **kwargs, read a dict, and nothing else
    least    share a load, weigh its value, evict the oldest: the least that does so
"""

import asyncio
import sys
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextvars import copy_context
from datetime import timedelta
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, final

__all__ = ["OURS", "PEERS", "S3FIFO", "Contestant", "NoMeansError", "installed"]

Function = Callable[..., Awaitable[Any]]
Plain = Callable[..., Any]

OURS: Final = "async_safe_cache"
S3FIFO: Final = "async_safe_cache, s3fifo"


@final
class NoMeansError(Exception):
    """The contestant cannot take part in this case; says why."""


class Contestant:
    """One who takes part.

    Attributes:
        title: Its name in tables.
        distribution: Its name on the package index; "" for no package.
        pinned: The release whose results are written down.
        floor: Whether it is no cache but a lower bound.
    """

    title: str
    distribution = ""
    pinned = ""
    floor = False

    def version(self) -> str | None:
        """Return the installed version, "" for no package, None if it is not installed."""
        if not self.distribution:
            return ""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    def cached(self, fn: Function, *, ttl: float | None = None, entries: int = 1024) -> Function:
        """Decorate the `async def` *fn*."""
        raise NoMeansError("caches no async def")

    def plain(self, fn: Plain, *, ttl: float | None = None, entries: int = 1024) -> Plain:
        """Decorate the `def` *fn*."""
        raise NoMeansError("caches no def")


class Ours(Contestant):
    title = OURS
    distribution = "async-safe-cache"
    policy = "lru"

    def version(self) -> str | None:
        # Run from the sources when it is not installed: it is there in any case.
        return super().version() or "sources"

    def cache(self, **options: Any) -> Any:
        """Return a cache of this policy; exact LRU is the default and is not named."""
        from async_safe_cache import AsyncSafeCache

        if self.policy == "lru":
            return AsyncSafeCache("benchmark", **options)
        options["policy"] = self.policy
        try:
            return AsyncSafeCache("benchmark", **options)
        except ValueError as error:
            raise NoMeansError(f"has no such policy: {error}") from error

    def cached(self, fn: Function, *, ttl: float | None = None, entries: int = 1024) -> Function:
        from async_safe_cache import race_safe_cached

        return race_safe_cached(self.cache(max_entries=entries), ttl=ttl)(fn)

    def plain(self, fn: Plain, *, ttl: float | None = None, entries: int = 1024) -> Plain:
        from async_safe_cache import race_safe_cached

        return race_safe_cached(self.cache(max_entries=entries), ttl=ttl)(fn)


@final
class OursS3Fifo(Ours):
    title = S3FIFO
    policy = "s3fifo"


@final
class AsyncLru(Contestant):
    title = "async-lru"
    distribution = "async-lru"
    pinned = "2.4.0"

    def cached(self, fn: Function, *, ttl: float | None = None, entries: int = 1024) -> Function:
        from async_lru import alru_cache

        return alru_cache(maxsize=entries, ttl=ttl)(fn)


@final
class Cachebox(Contestant):
    title = "cachebox"
    distribution = "cachebox"
    pinned = "6.2.10"

    def cached(self, fn: Function, *, ttl: float | None = None, entries: int = 1024) -> Function:
        import cachebox

        known = cachebox.LRUCache(entries) if ttl is None else cachebox.TTLCache(entries, ttl)
        return cachebox.cached(known)(fn)

    plain = cached


@final
class Theine(Contestant):
    title = "theine"
    distribution = "theine"
    pinned = "2.0.0"

    def cached(self, fn: Function, *, ttl: float | None = None, entries: int = 1024) -> Function:
        from theine import Memoize

        return Memoize(entries, None if ttl is None else timedelta(seconds=ttl))(fn)

    plain = cached


@final
class Functools(Contestant):
    title = "functools.lru_cache"

    def plain(self, fn: Plain, *, ttl: float | None = None, entries: int = 1024) -> Plain:
        if ttl is not None:
            raise NoMeansError("has no ttl")
        return lru_cache(maxsize=entries)(fn)


@final
class Bare(Contestant):
    """The function itself: what Python takes for the call, whoever caches."""

    title = "bare"
    floor = True

    def cached(self, fn: Function, *, ttl: float | None = None, entries: int = 1024) -> Function:
        return fn

    plain = cached


@final
class Honest(Contestant):
    """A key made of the arguments and a dict, and nothing else: no ttl, no coalescing, no lock."""

    title = "honest"
    floor = True

    def cached(self, fn: Function, *, ttl: float | None = None, entries: int = 1024) -> Function:
        # An OrderedDict is read more slowly, so it is one only where something must leave.
        known: dict[Any, Any] = {}

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            key = args if not kwargs else (args, tuple(kwargs.items()))
            try:
                return known[key]
            except KeyError:
                value = known[key] = await fn(*args, **kwargs)
                return value

        return wrapper

    def bounded(self, fn: Function, entries: int) -> Function:
        """Decorate *fn* so that the oldest entry leaves when there are too many."""
        known: OrderedDict[Any, Any] = OrderedDict()

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            key = args if not kwargs else (args, tuple(kwargs.items()))
            if key in known:
                return known[key]
            value = known[key] = await fn(*args, **kwargs)
            if len(known) > entries:
                known.popitem(last=False)
            return value

        return wrapper


@final
class Least(Contestant):
    """The least Python that shares a load and holds a bound in bytes, across threads.

    One load per key, in a task of its own that begins at once where it can; each value
    weighed by this library's walk; exact LRU; one lock. No cancellation, no fences, no
    reasons, no errors, no statistics, no ttl.
    """

    title = "least"
    floor = True

    def cached(self, fn: Function, *, ttl: float | None = None, entries: int = 1024) -> Function:
        if ttl is not None:
            raise NoMeansError("it has no ttl")
        from async_safe_cache._entries import Entry
        from async_safe_cache._tasks import start
        from async_safe_cache._weight import weigh

        data: dict[Any, Entry] = {}
        order: OrderedDict[Entry, None] = OrderedDict()
        flights: dict[Any, list[asyncio.Future[Any]]] = {}
        lock = threading.RLock()
        held = 0

        async def load(key: Any) -> None:
            nonlocal held
            value = await fn(key)
            entry = Entry()
            entry.key, entry.kind, entry.value = key, type(key), value
            entry.weight = weigh(value)[0]
            with lock:
                if len(order) >= entries:
                    oldest = order.popitem(last=False)[0]
                    del data[oldest.key]
                    held -= oldest.weight
                held += entry.weight
                order[entry] = None
                data[key] = entry
                waiters = flights.pop(key)
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(value)

        async def wrapper(key: Any) -> Any:
            entry = data.get(key)
            if entry is not None and type(key) is entry.kind:
                order.move_to_end(entry)
                return entry.value
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[Any] = asyncio.Future(loop=loop)
            with lock:
                waiters = flights.setdefault(key, [])
                waiters.append(waiter)
            if len(waiters) == 1:
                start(loop, load(key), name="load", context=copy_context(), eager=True)
            return await waiter

        return wrapper


PEERS: Final[dict[str, Contestant]] = {
    each.title: each
    for each in (
        Ours(),
        OursS3Fifo(),
        AsyncLru(),
        Cachebox(),
        Theine(),
        Functools(),
        Bare(),
        Honest(),
        Least(),
    )
}

_told: set[str] = set()


def installed(names: Iterable[str]) -> dict[str, Contestant]:
    """Return those of *names* that can run; say once which cannot, and which are others."""
    present: dict[str, Contestant] = {}
    for name in names:
        peer = PEERS[name]
        found = peer.version()
        if found is None:
            _tell(f"{name} is not installed, so it is left out: pip install -e '.[benchmarks]'")
            continue
        if peer.pinned and found != peer.pinned:
            _tell(f"{name} {found} is not the release of the written results, {peer.pinned}")
        present[name] = peer
    return present


def _tell(what: str) -> None:
    if what not in _told:
        _told.add(what)
        print(what, file=sys.stderr)
