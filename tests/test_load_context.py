"""What a load sees of its caller, what its caller pins, and what its loader is told and may say."""

import asyncio
import gc
import sys
import weakref
from contextvars import ContextVar
from typing import Any

import pytest

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    LoadContext,
    LoadTimeoutError,
    MissReason,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, run_virtual, settle

request: ContextVar[Any] = ContextVar("request")
language: ContextVar[str] = ContextVar("language", default="en")


class Request:
    """What a web framework puts into a context variable; can be watched."""


# -- a load that nobody waits for


BEHIND = pytest.mark.parametrize(
    ("options", "age"),
    [
        pytest.param(
            {"stale_while_revalidate": 1000, "load_timeout": 500}, 11, id="stale_while_revalidate"
        ),
        pytest.param({"refresh_ahead": 0.5, "load_timeout": 500}, 6, id="refresh_ahead"),
    ],
)


@BEHIND
def test_a_load_behind_pins_no_request(
    clock: VirtualClock, options: dict[str, Any], age: float
) -> None:
    """The callback at the end of its task held the context of the caller, and so the request."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(seconds=100)

        @race_safe_cached(cache, ttl=10, **options)
        async def f(x: int) -> Any:
            return await load()

        await f(1)
        clock.advance(age)
        requests: list[weakref.ref[Request]] = []

        async def handler() -> None:
            of_this_call = Request()
            request.set(of_this_call)
            requests.append(weakref.ref(of_this_call))
            assert await f(1) == "value"

        await asyncio.create_task(handler())
        await settle()
        assert (load.calls, load.ended) == (2, 1), "it runs"
        gc.collect()
        assert [each() for each in requests] == [None]

    run_virtual(main(), clock)


def test_an_isolated_load_pins_no_request(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(seconds=100)
        requests: list[weakref.ref[Request]] = []
        options: dict[str, Any] = {
            "context": "isolated",
            "on_abandon": "finish",
            "load_timeout": 500,
        }

        async def handler() -> None:
            of_this_call = Request()
            request.set(of_this_call)
            requests.append(weakref.ref(of_this_call))
            try:
                async with asyncio.timeout(1):
                    await cache.get_or_load("key", load, **options)
            except TimeoutError:
                pass

        await asyncio.create_task(handler())
        await settle()
        assert (load.calls, load.ended) == (1, 0), "it runs"
        gc.collect()
        assert [each() for each in requests] == [None]

    run_virtual(main(), clock)


@BEHIND
def test_a_load_behind_begins_when_its_caller_has_the_value(
    clock: VirtualClock, options: dict[str, Any], age: float
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        happened: list[str] = []

        @race_safe_cached(cache, ttl=10, **options)
        async def f(x: int) -> int:
            happened.append("load")
            return x

        await f(1)
        clock.advance(age)
        await f(1)
        happened.append("value")
        await settle()
        assert happened == ["load", "value", "load"]

    run_virtual(main(), clock)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks that begin at once are of 3.12")
@BEHIND
def test_a_load_behind_waits_where_all_tasks_begin_at_once(
    clock: VirtualClock, options: dict[str, Any], age: float
) -> None:
    """With asyncio.eager_task_factory it ran inside of the caller, who had no value yet."""

    async def main() -> None:
        factory: Any = vars(asyncio)["eager_task_factory"]
        asyncio.get_running_loop().set_task_factory(factory)
        cache = AsyncSafeCache(clock=clock)
        happened: list[str] = []

        @race_safe_cached(cache, ttl=10, **options)
        async def f(x: int) -> int:
            happened.append("load")
            return x

        await f(1)
        clock.advance(age)
        await f(1)
        happened.append("value")
        await settle()
        assert happened == ["load", "value", "load"]
        assert cache.stats().loads == 2

        clock.advance(age)
        await f(1)
        await cache.aclose()  # before it has begun
        assert happened == ["load", "value", "load"]

    run_virtual(main(), clock)
