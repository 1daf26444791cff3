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


# -- what a loader is told


def told_of(
    cache: AsyncSafeCache, *results: object, seconds: float = 0.0
) -> tuple[Any, list[tuple[Any, ...]]]:
    """Return a loader that notes what it is told: value, reason, attempt, seconds left."""
    load = Loader(*results, seconds=seconds)
    notes: list[tuple[Any, ...]] = []

    async def noting(told: LoadContext) -> Any:
        assert told.key == "key"
        left = told.deadline
        if left is not None:
            left -= asyncio.get_running_loop().time()
        notes.append((told.stale_value, told.reason, told.attempt, left))
        return await load()

    return noting, notes


def test_a_loader_is_told_what_is_held_why_it_runs_and_how_often_it_failed(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load, notes = told_of(cache, "1", "2", OSError("3"), OSError("4"), "5")

        async def call(**options: Any) -> Any:
            given: dict[str, Any] = {"ttl": 10, "stale_if_error": 100, **options}
            try:
                value = await cache.get_or_load("key", load, **given)
            except OSError:
                value = None
            await settle()
            return value

        assert await call() == "1"
        clock.advance(9)
        assert await call(refresh_ahead=0.5) == "1"
        clock.advance(11)
        assert await call(load_timeout=7) == "2"
        clock.advance(2)
        assert await call(load_timeout=7) == "2"
        clock.advance(3)
        assert await call() == "5"
        await cache.delete("key")
        assert await call() == "5"
        assert notes == [
            (MISSING, MissReason.ABSENT, 1, None),
            ("1", None, 1, None),
            ("2", MissReason.EXPIRED, 1, 7),
            ("2", MissReason.EXPIRED, 2, 7),
            ("2", MissReason.EXPIRED, 3, None),
            (MISSING, MissReason.DELETED, 1, None),
        ]

    run_virtual(main(), clock)


def test_a_value_of_another_version_is_not_told(clock: VirtualClock) -> None:
    """not_modified() would have stored it again, under a version that it is not of."""

    async def main() -> None:
        for ttl, age in ((None, 1), (10, 11)):
            cache = AsyncSafeCache(clock=clock)
            load, notes = told_of(cache, "1", "2")
            options: dict[str, Any] = {} if ttl is None else {"stale_if_error": 100}
            await cache.get_or_load("key", load, ttl=ttl, version=1, **options)
            clock.advance(age)
            await cache.get_or_load("key", load, ttl=ttl, version=2, **options)
            assert [each[0] for each in notes] == [MISSING, MISSING]
            clock.advance(age)
            await cache.get_or_load("key", load, ttl=ttl, version=2, **options)
            assert [each[0] for each in notes] == [MISSING, MISSING, "2"][: len(notes)]

    run_virtual(main(), clock)


# -- what a loader may say


def test_what_is_not_modified_is_stored_again_with_a_new_ttl_and_its_tags(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        value = ["the very object"]

        async def load(told: LoadContext) -> Any:
            if told.stale_value is MISSING:
                told.add_tags("first")
                return value
            told.add_tags("second")
            return told.not_modified()

        def call() -> Any:
            return cache.get_or_load("key", load, ttl=10, stale_if_error=100, tags="given")

        await call()
        clock.advance(11)
        assert await call() is value
        found = await cache.lookup("key")
        assert (found.hit, found.value is value, found.age, found.ttl_left) == (True, True, 0, 10)
        tags = (await cache.explain("key")).tags
        assert set(tags) == {"given", "first", "second"}
        assert len(tags) == 3
        assert await cache.invalidate_tags("first") == 1

    run_virtual(main(), clock)


def test_not_modified_is_not_stored_when_a_tag_of_the_held_value_was_invalidated(
    clock: VirtualClock,
) -> None:
    """The tag is known of this load only when it ends."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def load(told: LoadContext) -> Any:
            if told.stale_value is MISSING:
                told.add_tags("user 7")
                return "value"
            await asyncio.sleep(1)
            return told.not_modified()

        def call() -> Any:
            return cache.get_or_load("key", load, ttl=10, stale_if_error=100)

        await call()
        clock.advance(11)
        waiting = asyncio.ensure_future(call())
        await settle()
        await cache.invalidate_tags("user 7")
        assert await waiting == "value", "who asked before has its answer"
        assert (await cache.lookup("key")).reason is MissReason.TAG_INVALIDATED

    run_virtual(main(), clock)


@pytest.mark.parametrize("loader", ["told", "not told", "bulk", "set"])
def test_not_modified_means_nothing_in_another_load(clock: VirtualClock, loader: str) -> None:
    """It was stored itself, or MISSING in its place."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        kept: list[LoadContext] = []

        async def keeping(told: LoadContext) -> Any:
            kept.append(told)
            return "value"

        await cache.set("other", "value", ttl=10)
        await cache.get_or_load("other", keeping, ttl=10, refresh_ahead=0.1)
        clock.advance(5)
        await cache.get_or_load("other", keeping, ttl=10, refresh_ahead=0.1)
        await settle()
        answer = kept[-1].not_modified()

        async def told(of_this: LoadContext) -> Any:
            return answer

        with pytest.raises(TypeError, match="another load"):
            if loader == "told":
                await cache.get_or_load("key", told)
            elif loader == "not told":
                await cache.get_or_load("key", lambda: answer)
            elif loader == "bulk":
                await cache.get_or_load_many(["key"], lambda keys: dict.fromkeys(keys, answer))
            else:
                await cache.set("key", answer)
        assert cache.peek("key") is MISSING

    run_virtual(main(), clock)


def test_not_modified_of_nothing_is_an_error_of_the_loader(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def load(told: LoadContext) -> Any:
            return told.not_modified()

        with pytest.raises(ValueError, match="there is none"):
            await cache.get_or_load("key", load)
        assert cache.stats().load_errors == 1

    run_virtual(main(), clock)
