"""What a load sees of its caller, what its caller pins, and what its loader is told and may say."""

import asyncio
import functools
import gc
import sys
import weakref
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    LoadContext,
    MissReason,
    RecursiveLoadError,
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


@pytest.mark.parametrize(
    ("ttl", "left"), [(5, 5), (None, None), (float("inf"), None), (timedelta(minutes=1), 60)]
)
def test_a_loader_chooses_how_long_its_value_stays_fresh(
    clock: VirtualClock, ttl: Any, left: float | None
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, default_ttl=100)

        async def load(told: LoadContext) -> str:
            told.ttl = ttl
            return "value"

        await cache.get_or_load("key", load, ttl=10, stale_if_error=20)
        assert (await cache.lookup("key")).ttl_left == left
        if left is not None:
            clock.advance(left + 19)
            assert (await cache.lookup("key")).stale

    run_virtual(main(), clock)


@pytest.mark.parametrize(
    ("ttl", "error"), [(0, ValueError), (-1, ValueError), ("5", TypeError), (True, TypeError)]
)
def test_a_loader_is_told_that_its_ttl_makes_no_sense(
    clock: VirtualClock, ttl: Any, error: type[Exception]
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def load(told: LoadContext) -> str:
            told.ttl = ttl
            return "value"

        with pytest.raises(error, match="ttl"):
            await cache.get_or_load("key", load)
        assert cache.peek("key") is MISSING

    run_virtual(main(), clock)


def test_the_tags_of_a_loader_are_checked_and_each_is_there_once(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def load(told: LoadContext) -> str:
            told.tags = ["a", "b"]
            told.add_tags("b", "c")
            for wrong in (5, [""], [5], b"x"):
                with pytest.raises((TypeError, ValueError)):
                    told.tags = wrong  # type: ignore[assignment]
            assert told.tags == ["a", "b", "c"]
            return "value"

        await cache.get_or_load("key", load, tags="a")
        assert (await cache.explain("key")).tags == ("a", "b", "c")

    run_virtual(main(), clock)


def test_a_loader_knows_when_its_time_is_up(clock: VirtualClock) -> None:
    """In the time of its loop, so that it can end in order."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        begun = clock.now

        async def load(told: LoadContext) -> str:
            assert told.deadline is not None
            try:
                async with asyncio.timeout_at(told.deadline - 1):
                    await asyncio.sleep(1000)
            except TimeoutError:
                return told.skip("the half of it")
            return "all of it"

        assert await cache.get_or_load("key", load, load_timeout=5) == "the half of it"
        assert clock.now == begun + 4
        assert (len(cache), cache.stats().load_timeouts) == (0, 0)

    run_virtual(main(), clock)


class Loading:
    """A loader of every form."""

    async def method(self, told: LoadContext) -> object:
        return told.key

    def __call__(self, told: LoadContext) -> object:
        return told.key

    @staticmethod
    async def static(told: LoadContext, *rest: object, more: int = 5) -> object:
        assert (rest, more) == ((), 5)
        return told.key

    async def nothing(self, told: LoadContext | None = None) -> object:
        return told


@pytest.mark.parametrize(
    ("loader", "told"),
    [
        (Loading().method, True),
        (Loading(), True),
        (Loading.static, True),
        (functools.partial(Loading.static, more=5), True),
        (lambda told: told.key, True),
        (Loading().nothing, False),
        (lambda *told: told or None, False),
        (lambda told=None: told, False),
        (type(None), False),
    ],
)
def test_a_loader_is_told_if_it_has_a_parameter_without_a_default(
    clock: VirtualClock, loader: Any, told: bool
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        assert await cache.get_or_load(("a", 5), loader) == (("a", 5) if told else None)

    run_virtual(main(), clock)


@pytest.mark.parametrize("loader", [lambda a, b: 1, lambda *, told: 1, 5, "load"])
def test_what_cannot_be_called_so_is_refused_before_anything_begins(
    clock: VirtualClock, loader: Any
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        with pytest.raises(TypeError, match="loader"):
            await cache.get_or_load("key", loader)
        assert cache.stats().calls == 0

    run_virtual(main(), clock)


# -- what a load sees


async def at_ease() -> tuple[object, str]:
    """Return what the context of a load says."""
    await asyncio.sleep(1)
    return request.get(None), language.get()


@pytest.mark.parametrize(
    ("options", "sees"),
    [
        ({}, ("first", "de")),
        ({"context": "caller"}, ("first", "de")),
        ({"context": "isolated"}, (None, "en")),
        ({"context": "isolated", "propagate": language}, (None, "de")),
        ({"context": "isolated", "propagate": [language, request]}, ("first", "de")),
        ({"propagate": language}, ("first", "de")),
    ],
)
@pytest.mark.parametrize("how", ["get_or_load", "decorated", "def"])
def test_a_load_sees_the_context_of_its_first_caller_or_what_it_is_allowed_to(
    clock: VirtualClock, options: dict[str, Any], sees: tuple[object, str], how: str
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        decorated = race_safe_cached(cache, **options)(at_ease)

        @race_safe_cached(cache, **options)
        def plain() -> tuple[object, str]:
            request_seen = request.get(None), language.get()
            request.set("changed by the load")
            return request_seen

        async def caller(name: str, spoken: str) -> Any:
            request.set(name)
            language.set(spoken)
            if how == "def":
                answer: Any = plain()
            elif how == "decorated":
                answer = await decorated()
            else:
                answer = await cache.get_or_load("key", at_ease, **options)
            isolated = "isolated" in options.values()
            untouched = how != "def" or isolated or name != "first"
            assert request.get() == (name if untouched else "changed by the load")
            return answer

        first = asyncio.create_task(caller("first", "de"))
        await asyncio.sleep(0)
        second = asyncio.create_task(caller("second", "fr"))
        assert [await first, await second] == [sees, sees]
        assert cache.stats().loads == 1

    run_virtual(main(), clock)


def test_a_load_of_many_is_isolated_as_the_cache_says(clock: VirtualClock) -> None:
    """It saw the context of its caller."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, context="isolated", propagate=language)
        request.set("of the caller")
        language.set("de")

        async def load(keys: list[str]) -> dict[str, Any]:
            return dict.fromkeys(keys, await at_ease())

        assert await cache.get_or_load_many(["key"], load) == {"key": (None, "de")}

    run_virtual(main(), clock)


@BEHIND
def test_a_load_behind_sees_what_is_part_of_its_key_and_what_is_propagated(
    clock: VirtualClock, options: dict[str, Any], age: float
) -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    trace: ContextVar[str] = ContextVar("trace")

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        seen: list[tuple[Any, ...]] = []

        @race_safe_cached(cache, ttl=10, vary_on=tenant, propagate=trace, **options)
        async def f(x: int) -> None:
            seen.append((tenant.get(None), trace.get(None), request.get(None)))

        async def caller(name: str, traced: str) -> None:
            tenant.set(name)
            trace.set(traced)
            request.set(traced)
            await f(1)

        for each in (("a", "1"), ("b", "2")):
            await asyncio.create_task(caller(*each))
        clock.advance(age)
        for each in (("b", "3"), ("a", "4")):
            await asyncio.create_task(caller(*each))
        await settle()
        assert seen == [("a", "1", "1"), ("b", "2", "2"), ("b", "3", None), ("a", "4", None)]
        assert (cache.stats().hits, cache.stats().misses) == (2, 2)

    run_virtual(main(), clock)


def test_a_load_behind_is_part_of_no_section_and_no_load(clock: VirtualClock) -> None:
    """It may write where its caller may not, and wait for what its caller's load waits for."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, section_wait=0)

        @race_safe_cached(cache, ttl=10, stale_while_revalidate=100)
        async def source() -> int:
            await cache.set("written", 1)
            return 1

        @race_safe_cached(cache, ttl=10, stale_while_revalidate=100)
        async def derived() -> int:
            return await source()

        await derived()
        clock.advance(11)
        async with cache.reading():
            assert await derived() == 1
            await settle()
        assert await cache.get("written") == 1
        assert cache.stats().load_errors == 0
        assert cache.stats().loads == 4

    run_virtual(main(), clock)


def test_a_load_that_reads_its_own_stale_value_gets_it(clock: VirtualClock) -> None:
    """Within stale_while_revalidate: it need not wait for itself. Otherwise it would."""

    async def answers(**options: Any) -> list[object]:
        cache = AsyncSafeCache(clock=clock)
        answers: list[object] = []
        again = False

        @race_safe_cached(cache, ttl=10, **options)
        async def f(x: int) -> str:
            if not again:
                return "old"
            try:
                answers.append(await f(x))
            except RecursiveLoadError as error:
                answers.append(type(error))
            return "new"

        await f(1)
        clock.advance(11)
        again = True
        answers.append(await f(1))
        await settle()
        return answers

    async def main() -> None:
        assert await answers(stale_while_revalidate=100) == ["old", "old"]
        assert await answers(stale_if_error=100) == [RecursiveLoadError, "new"]

    run_virtual(main(), clock)
