"""An origin that is slow, hangs or fails when it is told to, and calls of it through a cache."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, LoadTimeoutError, race_safe_cached

__all__ = ["HOW", "Calling", "Down", "Origin", "calling", "timed_out"]

Calling = Callable[[], Awaitable[Any]]

HOW = pytest.mark.parametrize("how", ["get_or_load", "decorated"])


class Down(Exception):
    """What the origin raises."""


class Origin:
    """A loader whose mode says what each call does."""

    def __init__(self) -> None:
        self.mode = "instant"
        self.value = "old"
        self.calls = 0
        self.running = 0
        self.cancelled = 0

    async def __call__(self) -> str:
        self.calls += 1
        self.running += 1
        try:
            if self.mode == "hung":
                await asyncio.get_running_loop().create_future()
            if self.mode != "instant":
                await asyncio.sleep(3 if self.mode == "slow" else 1)
            if self.mode == "failing":
                raise Down
            return self.value
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def calling(
    cache: AsyncSafeCache, origin: Calling, how: str, **options: Any
) -> tuple[Calling, Any]:
    """Return a call of *origin* through the cache, and the key of its value."""
    if how == "get_or_load":
        return lambda: cache.get_or_load("key", origin, **options), "key"

    @race_safe_cached(cache, **options)
    async def f(x: int) -> str:
        return await origin()

    return lambda: f(1), cache.key_for(f, 1)


async def timed_out(call: Any, option: str) -> float:
    """Return the virtual time at which *call* raised the LoadTimeoutError of *option*."""
    with pytest.raises(LoadTimeoutError) as raised:
        await call
    assert raised.value.option == option
    return asyncio.get_running_loop().time()
