"""One cache per name and process, race-free from tasks and threads."""

import inspect
from typing import Any

from ._cache import AsyncSafeCache

__all__ = ["default_cache", "get_async_safe_cache"]

DEFAULT = "default"

_DEFAULTS = {
    name: each.default for name, each in inspect.signature(AsyncSafeCache).parameters.items()
}

_caches: dict[str, tuple[AsyncSafeCache, dict[str, Any]]] = {}  # bounded by the names in use


def _cache_named(name: str, options: dict[str, Any]) -> AsyncSafeCache:
    known = _caches.get(name)
    if known is None:
        # setdefault is one step under the GIL: of two that make it at once, one is kept. No
        # lock: making a cache runs the user's clock, and a forked child cannot find it locked.
        known = _caches.setdefault(name, (AsyncSafeCache(name, **options), options))
    cache, made_with = known
    other = sorted(
        option
        for option, value in options.items()
        if made_with.get(option, _DEFAULTS.get(option)) != value
    )
    if other:
        raise ValueError(
            f"the cache {name!r} exists already with other options ({', '.join(other)}): "
            "pass the options once, where it is made, or choose another name"
        )
    return cache


def default_cache() -> AsyncSafeCache:
    """Return the process's default cache, which the bare decorator uses."""
    return _cache_named(DEFAULT, {})


async def get_async_safe_cache(name: str = DEFAULT, **options: Any) -> AsyncSafeCache:
    """Return the one cache of that name in this process, open and started.

    Args:
        name: Its name.
        options: As for `AsyncSafeCache`; they count for the call that makes it.

    Raises:
        ValueError: The cache exists already with other options.
        TypeError: An option is unknown or of a wrong type.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    cache = _cache_named(name, options)
    await cache.start()
    return cache
