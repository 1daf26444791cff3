"""A failing load: one for all, as it was, and nothing left of it."""

import asyncio
import gc
import logging
import traceback
import weakref
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    LoadCancelledError,
    MissReason,
    UnsupportedKeyError,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, at_once, run_virtual, settle


async def burst(cache: AsyncSafeCache, loader: Any, callers: int = 5) -> list[Any]:
    """Return what each of several callers at once gets, answer or exception."""
    calls = (cache.get_or_load("key", loader) for _ in range(callers))
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_a_failing_load_costs_one_load_for_the_whole_burst() -> None:
    cache = AsyncSafeCache()
    error = ValueError("no")
    load = Loader(error, "value")
    assert await burst(cache, load, 100) == [error] * 100
    assert load.calls == 1
    assert (cache.stats().load_errors, cache.stats().calls) == (1, 100)
    assert await cache.get_or_load("key", load) == "value"


class Exotic(Exception):
    """Needs three arguments, forbids attributes and copies."""

    def __init__(self, a: int, b: int, c: int) -> None:
        super().__init__(a)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def __reduce__(self) -> Any:
        raise TypeError("no copies")


@pytest.mark.parametrize(
    "error",
    [Exotic(1, 2, 3), ExceptionGroup("two", [ValueError(1), KeyError(2)]), BaseException("base")],
    ids=["exotic", "group", "base"],
)
async def test_every_waiter_gets_the_very_exception(error: BaseException) -> None:
    assert all(answer is error for answer in await burst(AsyncSafeCache(), Loader(error)))


async def test_nothing_grows_when_a_load_fails_again_and_again() -> None:
    cache = AsyncSafeCache()

    async def fails() -> None:
        raise ValueError("no")

    async def caller() -> int:
        try:
            raise KeyError("the caller's own")
        except KeyError:
            try:
                await cache.get_or_load("key", fails)
            except ValueError as caught:
                return len(traceback.extract_tb(caught.__traceback__))
        return 0

    lengths = [set(await asyncio.gather(*(caller() for _ in range(5)))) for _ in range(200)]
    assert all(length == lengths[0] for length in lengths)
    assert max(lengths[0]) <= 10
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(300):
        await asyncio.gather(*(caller() for _ in range(5)))
    gc.collect()
    assert len(gc.get_objects()) - before < 100


async def test_an_exception_begins_at_the_loader_and_keeps_its_cause() -> None:
    cache = AsyncSafeCache()

    async def fails() -> None:
        try:
            raise KeyError("cause")
        except KeyError as cause:
            raise ValueError("effect") from cause

    for answer in await burst(cache, fails):
        assert type(answer.__cause__) is KeyError
        assert traceback.extract_tb(answer.__traceback__)[-1].name == "fails"


@pytest.mark.parametrize("callers", [1, 5])
def test_no_frame_outlives_the_handlers(callers: int, clock: VirtualClock) -> None:
    class Large:
        pass

    held: list[weakref.ref[Large]] = []

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def fails() -> None:
            large = Large()
            held.append(weakref.ref(large))
            await asyncio.sleep(1)
            raise ValueError("no")

        async def caller() -> None:
            try:
                await cache.get_or_load("key", fails)
            except ValueError:
                pass

        await asyncio.gather(*(caller() for _ in range(callers)))
        await settle()
        assert held[-1]() is None

        @race_safe_cached(cache)
        def plain(x: int) -> None:
            large = Large()
            held.append(weakref.ref(large))
            raise ValueError("no")

        try:
            plain(1)
        except ValueError:
            pass
        assert held[-1]() is None

    gc.collect()
    gc.disable()
    try:
        run_virtual(main(), clock)
    finally:
        gc.enable()


async def test_a_load_cancelled_from_inside_is_no_cancellation_of_its_callers() -> None:
    cache = AsyncSafeCache("cache")
    load = Loader(asyncio.CancelledError(), "value")
    answers = await burst(cache, load)
    assert [type(answer) for answer in answers] == [LoadCancelledError] * 5
    assert load.calls == 1
    assert cache.stats().load_errors == 1
    assert await cache.get_or_load("key", load) == "value"


async def test_stop_iteration_becomes_a_runtime_error() -> None:
    cache = AsyncSafeCache()

    def stops(*_: Any) -> None:
        raise StopIteration("value")

    (answer,) = await burst(cache, stops, 1)
    assert type(answer) is RuntimeError
    assert type(answer.__cause__) is StopIteration
    with pytest.raises(RuntimeError):
        race_safe_cached(cache)(stops)()


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_load_ends_the_program_as_usual(interrupt: type[BaseException]) -> None:
    cache = AsyncSafeCache()
    ends: list[BaseException | None] = []

    async def interrupted() -> None:
        await asyncio.sleep(0)
        raise interrupt("now")

    async def waiter() -> None:
        try:
            await cache.get_or_load("key", interrupted)
        except BaseException as error:
            ends.append(error)
            raise

    async def main() -> None:
        await asyncio.gather(*(waiter() for _ in range(3)))

    with pytest.raises(interrupt):
        asyncio.run(main())
    assert len(ends) == 3
    assert all(isinstance(end, (asyncio.CancelledError, LoadCancelledError)) for end in ends)
    assert not cache._engine.flights.running
    assert asyncio.run(cache.get_or_load("key", Loader("value"))) == "value"
    with pytest.raises(interrupt):
        race_safe_cached(cache)(lambda: (_ for _ in ()).throw(interrupt("now")))()
    assert not cache._engine.flights.running


def test_a_load_that_fails_with_nobody_waiting_is_counted_and_logs_nothing(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, on_abandon="finish")
        caller = asyncio.create_task(cache.get_or_load("key", Loader(ValueError("no"), seconds=1)))
        await settle()
        caller.cancel()
        await asyncio.sleep(2)
        assert cache.stats().load_errors == 1
        del caller
        gc.collect()

    with caplog.at_level(logging.DEBUG):
        run_virtual(main(), clock)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_remembered_failure_is_raised_again_for_its_time(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(KeyError("k"), ValueError("v"), "value")
        lengths = set()

        async def call() -> Any:
            try:
                return await cache.get_or_load("key", load, negative={KeyError: 1})
            except (KeyError, ValueError) as error:
                lengths.add(len(traceback.extract_tb(error.__traceback__)))
                return type(error)

        assert [await call() for _ in range(5)] == [KeyError] * 5
        assert load.calls == 1
        assert (cache.stats().hits, cache.stats().misses) == (4, 1)
        assert max(lengths) <= 10
        assert await cache.get("key", "absent") == "absent"
        assert (await cache.lookup("key")).reason is MissReason.ABSENT
        assert await cache.get_many(["key"]) == {}
        clock.advance(1)
        assert [await call(), await call(), await call()] == [ValueError, "value", "value"]

    run_virtual(main(), clock)


async def test_the_most_specific_class_decides_how_long_a_failure_is_remembered() -> None:
    def broken(error: Exception) -> float:
        raise RuntimeError("broken")

    negative = {LookupError: 1, KeyError: lambda error: error.args[0], OSError: broken}
    cache = AsyncSafeCache(negative=negative)  # type: ignore[arg-type]
    for error, remembered in [
        (IndexError(5), True),
        (KeyError(7), True),
        (KeyError(0), False),
        (OSError("no"), False),
        (ValueError("no"), False),
    ]:
        load = Loader(error)
        key = repr(error)
        for _ in range(2):
            with pytest.raises(type(error)):
                await cache.get_or_load(key, load)
        assert load.calls == (1 if remembered else 2), error
    assert len(cache) == 2


def numbers() -> Any:
    yield 1


async def coroutine() -> int:
    return 1


@pytest.mark.parametrize(
    "make", [numbers, lambda: iter([1]), lambda: map(str, [1]), lambda: reversed([1])]
)
async def test_a_result_that_can_be_used_once_is_refused(make: Any) -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache)
    def plain():
        return make()

    @race_safe_cached(cache)
    async def task():
        return make()

    for call in (cache.get_or_load("key", make), cache.set("key", make()), task()):
        with pytest.raises(TypeError, match="only once"):
            await call
    with pytest.raises(TypeError, match="only once"):
        plain()
    assert len(cache) == 0


async def test_an_awaitable_result_is_refused_and_warns_of_nothing() -> None:
    cache = AsyncSafeCache()

    async def nested():
        return coroutine()

    with pytest.raises(TypeError, match="coroutine"):
        await cache.get_or_load("key", nested)
    with pytest.raises(TypeError, match="coroutine"):
        race_safe_cached(cache)(lambda: coroutine())()
    with pytest.raises(TypeError, match="coroutine"):
        await cache.set("key", coroutine())
    gc.collect()


async def test_a_failing_weigher_fails_the_call_and_stores_nothing() -> None:
    def weigher(value: object) -> float:
        raise OSError("scales broken")

    cache = AsyncSafeCache(weigher=weigher)
    load = Loader("value")
    answers = await burst(cache, load)
    assert [type(answer) for answer in answers] == [OSError] * 5
    with pytest.raises(OSError, match="scales"):
        await cache.set("key", 1)
    assert len(cache) == cache.memory_bytes == 0
    assert (await cache.lookup("key")).reason is MissReason.REJECTED
    assert not cache._engine.flights.running


def test_a_failing_clock_strands_nobody() -> None:
    fail = False

    def clock() -> float:
        if fail:
            raise OSError("clock broken")
        return 1.0

    async def main() -> None:
        nonlocal fail
        cache = AsyncSafeCache(clock=clock)
        go = asyncio.Event()

        async def load() -> str:
            await go.wait()
            return "value"

        callers = [asyncio.create_task(cache.get_or_load("key", load, ttl=5)) for _ in range(3)]
        await settle()
        fail = True
        go.set()
        assert await asyncio.gather(*callers) == ["value"] * 3
        with pytest.raises(OSError, match="clock"):
            await cache.get("key")
        fail = False
        assert await cache.get("key") is None
        cache.check()

    asyncio.run(main())


def test_a_refused_key_is_no_call_and_no_load() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache)
    def f(x):
        raise AssertionError("not to be called")

    with pytest.raises(UnsupportedKeyError):
        f(object())
    assert cache.stats().calls == 0
    assert at_once(cache.get("x")) is None


async def test_a_mock_is_a_value() -> None:
    cache = AsyncSafeCache()
    for mock in (Mock(), MagicMock(), AsyncMock()):
        await cache.set("mock", mock)
        assert await cache.get("mock") is mock
