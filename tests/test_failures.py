"""A load that fails: one load for the whole burst, one error for all, and nothing left of it."""

import asyncio
import dataclasses
import gc
import logging
import threading
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    LoadCancelledError,
    MissReason,
    UnsupportedKeyError,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, at_once, run_virtual, settle

pytestmark = pytest.mark.usefixtures("_nothing_is_logged_as_never_retrieved")


@pytest.fixture
def _nothing_is_logged_as_never_retrieved(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What nobody awaited is reported when it is collected, to the log of asyncio."""
    yield
    gc.collect()
    assert [each.getMessage() for each in caplog.records if each.name == "asyncio"] == []


@contextmanager
def no_collector() -> Iterator[None]:
    """Let only reference counts free objects."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def depth(error: BaseException) -> int:
    return len(traceback.extract_tb(error.__traceback__))


def functions_of(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


class Local:
    """Something that a loader's frame holds, and that can be watched."""


# -- one failure for all


def test_a_hundred_waiters_get_one_failure_of_one_load_and_the_next_call_loads_again(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        error = ValueError("expected")
        load = Loader(error, "value", seconds=1)
        calls = [cache.get_or_load("key", load) for _ in range(100)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(answer is error for answer in answers), "the object that the loader raised"
        assert load.calls == 1
        assert cache.peek("key") is MISSING
        stats = cache.stats()
        assert (stats.loads, stats.load_errors, stats.misses, stats.coalesced) == (1, 1, 1, 99)
        assert await cache.get_or_load("key", load) == "value"
        assert load.calls == 2

    run_virtual(main(), clock)


def test_a_refresh_that_fails_raises_and_leaves_the_older_value(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        results: list[Any] = ["old", OSError("down")]

        @race_safe_cached(cache)
        async def f(x: int) -> Any:
            result = results.pop(0)
            if isinstance(result, OSError):
                raise result
            return result

        assert await f(1) == "old"
        with pytest.raises(OSError, match="down"):
            await cache.refresh(f, 1)
        assert await f(1) == "old"

    run_virtual(main(), clock)


class ThreeArguments(Exception):
    def __init__(self, one: int, two: int, three: int) -> None:
        super().__init__(one)
        self.facts = (one, two, three)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Untouchable(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def __reduce__(self) -> Any:
        raise TypeError("not to be copied")

    def __copy__(self) -> Any:
        raise TypeError("not to be copied")


@pytest.mark.parametrize(
    "error",
    [
        ThreeArguments(1, 2, 3),
        Frozen(5),
        Untouchable("x"),
        ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError(2)])]),
        StopAsyncIteration("async"),
        TimeoutError("the loader's own"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_kind_of_exception_reaches_every_waiter_as_it_is(
    clock: VirtualClock, error: Exception
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(error, seconds=1)
        before = (error.args, dict(vars(error)))
        for calls in (1, 2):
            answers = await asyncio.gather(
                *(cache.get_or_load("key", load) for _ in range(5)), return_exceptions=True
            )
            assert all(answer is error for answer in answers)
            assert load.calls == calls
        assert (error.args, dict(vars(error))) == before

    run_virtual(main(), clock)


def test_an_exception_group_can_be_split_by_every_waiter(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(ExceptionGroup("several", [ValueError(1), KeyError(2)]), seconds=1)

        async def waiter() -> list[str]:
            caught = []
            try:
                await cache.get_or_load("key", load)
            except* ValueError as group:
                caught += [type(each).__name__ for each in group.exceptions]
            except* KeyError as group:
                caught += [type(each).__name__ for each in group.exceptions]
            return caught

        assert (
            await asyncio.gather(*(waiter() for _ in range(5))) == [["ValueError", "KeyError"]] * 5
        )

    run_virtual(main(), clock)


@pytest.mark.parametrize("how", ["async def", "callable", "def"])
def test_stop_iteration_becomes_a_runtime_error(clock: VirtualClock, how: str) -> None:
    async def coroutine() -> None:
        raise StopIteration("end")

    def plain() -> None:
        raise StopIteration("end")

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        with pytest.raises(RuntimeError, match="StopIteration") as raised:
            if how == "def":
                race_safe_cached(cache)(plain)()
            else:
                await cache.get_or_load("key", coroutine if how == "async def" else plain)
        assert isinstance(raised.value.__cause__, StopIteration)
        assert cache.stats().load_errors == 1

    run_virtual(main(), clock)


def test_a_cancelled_load_says_what_cancelled_it(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache("prices", clock=clock)
        load = Loader(asyncio.CancelledError("inner"), seconds=1)
        with pytest.raises(LoadCancelledError, match="prices") as raised:
            await cache.get_or_load("secret key", load)
        assert raised.value.name == "prices"
        assert isinstance(raised.value.__cause__, asyncio.CancelledError)
        assert "secret key" not in str(raised.value)

    run_virtual(main(), clock)


# -- tracebacks and memory


def test_every_waiter_sees_its_own_frames_and_the_loaders(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def the_loader() -> None:
            await asyncio.sleep(1)
            raise ValueError("expected")

        async def first() -> list[str]:
            try:
                await cache.get_or_load("key", the_loader)
            except ValueError as error:
                return functions_of(error)
            return []

        async def second() -> list[str]:
            try:
                await cache.get_or_load("key", the_loader)
            except ValueError as error:
                return functions_of(error)
            return []

        frames = await asyncio.gather(first(), second(), first())
        assert [names[0] for names in frames] == ["first", "second", "first"]
        assert [names[-1] for names in frames] == ["the_loader"] * 3
        assert "second" not in frames[2], "no caller's frames reach another"
        assert {len(names) for names in frames} == {len(frames[0])}

    run_virtual(main(), clock)


def test_what_one_caller_was_handling_does_not_show_in_anothers_failure(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(ValueError("expected"), seconds=1)

        async def busy() -> list[BaseException | None]:
            try:
                raise KeyError("the caller's own trouble")
            except KeyError:
                try:
                    await cache.get_or_load("key", load)
                except ValueError as error:
                    return [error.__context__, error.__cause__]
            return []

        async def translating() -> list[BaseException | None]:
            try:
                raise OSError("another")
            except OSError as trouble:
                try:
                    try:
                        await cache.get_or_load("key", load)
                    except ValueError as error:
                        raise error from trouble
                except ValueError as error:
                    return [error.__context__, error.__cause__]
            return []

        async def idle() -> list[BaseException | None]:
            try:
                await cache.get_or_load("key", load)
            except ValueError as error:
                return [error.__context__, error.__cause__]
            return []

        seen = await asyncio.gather(busy(), translating(), idle())
        assert [[type(each) for each in pair] for pair in seen] == [
            [KeyError, type(None)],
            [OSError, OSError],
            [type(None), type(None)],
        ]
        assert load.calls == 1

    run_virtual(main(), clock)


def test_what_the_loader_was_handling_shows_to_everyone(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def load() -> None:
            await asyncio.sleep(1)
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise ValueError("outer") from error

        calls = [cache.get_or_load("key", load) for _ in range(3)]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, ValueError)
            assert isinstance(answer.__cause__, KeyError)
            assert answer.__suppress_context__

    run_virtual(main(), clock)


def test_a_note_of_one_waiter_reaches_the_others_and_nothing_else_does(
    clock: VirtualClock,
) -> None:
    """All share the one object, so a note is for all; a traceback is not."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(ValueError("expected"), seconds=1)

        async def waiter(note: str) -> tuple[list[str], int]:
            try:
                await cache.get_or_load("key", load)
            except ValueError as error:
                error.add_note(note)
                return list(error.__notes__), depth(error)
            return [], 0

        seen = await asyncio.gather(waiter("one"), waiter("two"))
        assert [notes for notes, _ in seen] == [["one"], ["one", "two"]]
        assert seen[0][1] == seen[1][1]

    run_virtual(main(), clock)


@pytest.mark.parametrize("waiters", [1, 2, 7])
@pytest.mark.parametrize("how", ["raw", "decorated"])
def test_no_frame_of_a_failed_load_outlives_the_handlers(
    clock: VirtualClock, waiters: int, how: str
) -> None:
    """Reference counts alone free it: a cycle would keep a request alive until a collection."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        locals_: list[weakref.ref[Local]] = []
        seen: list[str] = []

        async def fail(local: Local) -> None:
            await asyncio.sleep(1)
            raise ValueError("expected")

        @race_safe_cached(cache)
        async def decorated() -> None:
            local = Local()
            locals_.append(weakref.ref(local))
            await fail(local)

        async def waiter() -> None:
            own = Local()
            locals_.append(weakref.ref(own))
            try:
                if how == "raw":
                    await cache.get_or_load("key", decorated.__wrapped__)  # type: ignore[attr-defined]
                else:
                    await decorated()
            except ValueError as error:
                seen.append(functions_of(error)[-1])

        with no_collector():
            await asyncio.gather(*(waiter() for _ in range(waiters)))
            await settle()
            assert seen == ["fail"] * waiters
            assert len(locals_) == waiters + 1
            assert [each() for each in locals_] == [None] * (waiters + 1)

    run_virtual(main(), clock)


def test_no_frame_of_a_failed_def_outlives_the_handlers() -> None:
    cache = AsyncSafeCache()
    locals_: list[weakref.ref[Local]] = []

    @race_safe_cached(cache)
    def f(threads: int) -> None:
        local = Local()
        locals_.append(weakref.ref(local))
        while cache.stats().coalesced < threads - 1:
            pass
        raise ValueError("expected")

    def caller() -> None:
        try:
            f(4)
        except ValueError:
            pass

    with no_collector():
        threads = [threading.Thread(target=caller, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert [each() for each in locals_] == [None]


def test_a_thousand_failures_leave_no_objects_and_no_longer_tracebacks(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        depths: set[int] = set()
        calls = 0

        async def load() -> None:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0)
            raise ValueError("expected")

        async def waiter() -> None:
            try:
                await cache.get_or_load("key", load)
            except ValueError as caught:
                depths.add(depth(caught))

        async def rounds(count: int) -> None:
            for _ in range(count):
                await asyncio.gather(waiter(), waiter())
            await settle()

        await rounds(20)
        with no_collector():
            before = len(gc.get_objects())
            await rounds(1_000)
            growth = len(gc.get_objects()) - before
        assert growth < 100
        assert len(depths) == 1
        assert max(depths) <= 10
        assert calls == 1_020

    run_virtual(main(), clock)


def test_a_failure_that_nobody_waits_for_is_counted_and_not_reported(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context)
        )
        cache = AsyncSafeCache(clock=clock, on_abandon="finish")
        load = Loader(ValueError("expected"), seconds=1)
        call = asyncio.create_task(cache.get_or_load("key", load))
        await settle()
        call.cancel()
        await asyncio.sleep(2)
        assert load.ended == 1
        assert cache.health()["cache_stats"]["load_errors"] == 1
        gc.collect()

    run_virtual(main(), clock)
    gc.collect()
    assert reported == []
    assert caplog.records == []


def test_a_clean_up_that_fails_is_nobodys_business(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[dict[str, Any]] = []

    async def fail() -> str:
        try:
            await asyncio.sleep(1)
        finally:
            raise OSError("while cleaning up")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context)
        )
        cache = AsyncSafeCache(clock=clock)
        call = asyncio.create_task(cache.get_or_load("key", fail))
        await settle()
        call.cancel()
        await settle()
        newcomer = Loader("value")
        assert await cache.get_or_load("key", newcomer) == "value"
        assert cache.stats().load_errors == 1
        gc.collect()

    run_virtual(main(), clock)
    gc.collect()
    assert reported == []
    assert caplog.records == []


# -- errors of the user's other functions


def test_a_key_function_that_fails_is_the_callers_error_and_no_call(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        calls = 0

        @race_safe_cached(cache, key=lambda x: 1 / x)
        async def f(x: int) -> int:
            nonlocal calls
            calls += 1
            return x

        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await f(0)
        stats = cache.stats()
        assert (calls, stats.calls, stats.loads, len(cache)) == (0, 0, 0, 0)
        assert await f(1) == 1

    run_virtual(main(), clock)


def test_an_argument_that_cannot_be_a_key_is_refused_before_any_load(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader()
        with pytest.raises(UnsupportedKeyError):
            await cache.get_or_load(object(), load)
        assert (load.calls, cache.stats().calls) == (0, 0)

    run_virtual(main(), clock)


@pytest.mark.parametrize(
    ("weight", "error"),
    [(ZeroDivisionError("weigher"), ZeroDivisionError), (-1, ValueError), ("heavy", TypeError)],
    ids=["raises", "negative", "no number"],
)
def test_a_weigher_that_fails_fails_the_load_for_all_and_stores_nothing(
    clock: VirtualClock, weight: Any, error: type[Exception]
) -> None:
    broken = True

    def weigher(value: object) -> Any:
        if broken and isinstance(weight, Exception):
            raise weight
        return weight if broken else 10

    async def main() -> None:
        nonlocal broken
        cache = AsyncSafeCache(clock=clock, weigher=weigher)
        load = Loader("value", seconds=1)
        answers = await asyncio.gather(
            *(cache.get_or_load("key", load) for _ in range(5)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [error] * 5
        assert load.calls == 1
        assert (len(cache), cache.memory_bytes) == (0, 0)
        assert (await cache.lookup("key")).reason is MissReason.REJECTED
        stats = cache.stats()
        assert (stats.rejected, stats.load_errors) == (1, 1)
        broken = False
        assert await cache.get_or_load("key", load) == "value"
        assert cache.peek("key") == "value"

    run_virtual(main(), clock)


# -- results that can be used only once


async def a_coroutine() -> int:
    return 1


async def an_async_generator() -> Any:
    yield 1


class Awaitable:
    def __await__(self) -> Any:
        yield


ONE_SHOT = [
    pytest.param(a_coroutine, id="coroutine"),
    pytest.param(lambda: (n for n in range(3)), id="generator"),
    pytest.param(an_async_generator, id="async generator"),
    pytest.param(lambda: iter([1]), id="iterator"),
    pytest.param(lambda: map(str, [1]), id="map"),
    pytest.param(Awaitable, id="awaitable"),
]


@pytest.mark.parametrize("make", ONE_SHOT)
@pytest.mark.parametrize("how", ["get_or_load", "async def", "def", "set"])
def test_a_result_that_can_be_used_only_once_is_refused(
    clock: VirtualClock, make: Any, how: str
) -> None:
    """The second caller would find it used up."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def result() -> Any:
            return make()

        with pytest.raises(TypeError, match="used only once"):
            if how == "get_or_load":
                await cache.get_or_load("key", result)
            elif how == "async def":
                await race_safe_cached(cache)(result)()
            elif how == "def":
                race_safe_cached(cache)(lambda: make())()
            else:
                await cache.set("key", make())
        assert (len(cache), cache.memory_bytes) == (0, 0)
        assert cache.stats().load_errors == (how != "set")
        assert cache._engine.flights.running == {}

    run_virtual(main(), clock)


def test_a_plain_loader_may_return_an_awaitable_once(clock: VirtualClock) -> None:
    """`lambda: fetch(symbol)` is a loader; a coroutine inside its result is not."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        assert await cache.get_or_load("key", lambda: a_coroutine()) == 1
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_result("from a future")
        assert await cache.get_or_load("future", lambda: future) == "from a future"

    run_virtual(main(), clock)


# -- negative: failures that are answers


def test_only_a_named_failure_is_remembered_and_only_for_its_time(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, negative={KeyError: 1})
        depths: set[int] = set()
        unknown = KeyError("unknown")
        load = Loader(unknown, ValueError("down"), "value")

        async def attempt() -> Any:
            try:
                return await cache.get_or_load("key", load)
            except Exception as error:
                depths.add(depth(error))
                return error

        assert await attempt() is unknown
        for _ in range(50):
            again = await attempt()
            assert (type(again), again.args) == (KeyError, ("unknown",))
        assert load.calls == 1
        await asyncio.sleep(0.999)
        assert isinstance(await attempt(), KeyError)
        await asyncio.sleep(0.001)
        assert isinstance(await attempt(), ValueError)
        assert load.calls == 2
        assert await attempt() == "value", "a ValueError is not remembered"
        assert load.calls == 3
        assert max(depths) <= 10

    run_virtual(main(), clock)


def test_a_remembered_failure_is_no_value(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, negative={KeyError: 60})
        load = Loader(KeyError("unknown"), "value")
        with pytest.raises(KeyError):
            await cache.get_or_load("key", load)
        assert await cache.get("key", "default") == "default"
        assert cache.peek("key") is MISSING
        assert (await cache.lookup("key")).reason is MissReason.ABSENT
        assert await cache.get_many(["key"]) == {}
        await cache.delete("key")
        assert await cache.get_or_load("key", load) == "value", "a delete forgets it"

    run_virtual(main(), clock)


def test_a_remembered_failure_is_raised_again_with_no_ones_frames(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, negative={KeyError: 60})
        load = Loader(KeyError("unknown"))

        async def first() -> None:
            await cache.get_or_load("key", load)

        async def second() -> None:
            await cache.get_or_load("key", load)

        depths = []
        for call in (first, second, second, second):
            with pytest.raises(KeyError) as raised:
                await call()
            depths.append(depth(raised.value))
            assert ("first" in functions_of(raised.value)) == (call is first)
            assert raised.value.__context__ is None
        assert len(set(depths[1:])) == 1
        assert load.calls == 1

    run_virtual(main(), clock)


@pytest.mark.parametrize("how", ["plain", "with a cause", "a class of the user's"])
def test_a_remembered_failure_keeps_no_frame_alive(clock: VirtualClock, how: str) -> None:
    """It may be remembered for hours; a request must not live as long."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, negative={Exception: 3600})
        locals_: list[weakref.ref[Local]] = []

        async def load() -> None:
            local = Local()
            locals_.append(weakref.ref(local))
            try:
                raise KeyError("unknown")
            except KeyError as error:
                if how == "plain":
                    raise
                if how == "with a cause":
                    raise ValueError("unknown") from error
                raise ThreeArguments(1, 2, 3) from None

        async def request() -> None:
            own = Local()
            locals_.append(weakref.ref(own))
            try:
                await cache.get_or_load("key", load)
            except Exception:
                pass

        with no_collector():
            await request()
            await request()
            await settle()
            assert len(locals_) == 3, "the second one was told what is remembered"
            assert [each() for each in locals_] == [None] * 3

    run_virtual(main(), clock)


def test_a_note_on_a_remembered_failure_stays_with_its_caller(clock: VirtualClock) -> None:
    """Each would add its own, for hours."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, negative={KeyError: 60})
        error = KeyError("unknown")
        error.add_note("by the loader")
        load = Loader(error)
        seen = []
        for number in range(4):
            with pytest.raises(KeyError) as raised:
                await cache.get_or_load("key", load)
            raised.value.add_note(f"by caller {number}")
            seen.append(raised.value.__notes__)
        assert seen[1:] == [["by the loader", f"by caller {number}"] for number in (1, 2, 3)]

    run_virtual(main(), clock)


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__("slotted")
        self.code = code


def missing_file() -> OSError:
    with pytest.raises(FileNotFoundError) as raised:
        Path("/no/such/file").read_text()
    return raised.value


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (ThreeArguments(1, 2, 3), ["facts"]),
        (Frozen(5), ["code"]),
        (Untouchable("x"), []),
        (Slotted(5), ["code"]),
        (missing_file(), ["errno", "strerror", "filename", "filename2"]),
        (ConnectionError("reset"), ["errno"]),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ["object", "start", "end", "reason"]),
        (ImportError("no", name="module", path="place"), ["msg", "name", "path"]),
        (ExceptionGroup("several", [ValueError(1), KeyError(2)]), ["message"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_remembered_failure_tells_what_the_first_one_told(
    clock: VirtualClock, error: Exception, attributes: list[str]
) -> None:
    def told(each: BaseException) -> Any:
        facts = [getattr(each, name) for name in attributes]
        return type(each), str(each), repr(each), repr(each.args), vars(each), facts

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, negative={Exception: 60})
        load = Loader(error)
        expected = told(error)
        for _ in range(3):
            (raised,) = await asyncio.gather(cache.get_or_load("key", load), return_exceptions=True)
            assert told(raised) == expected
        assert load.calls == 1

    run_virtual(main(), clock)


class Unknown(KeyError):
    pass


def test_the_most_specific_class_decides_how_long_a_failure_is_remembered(
    clock: VirtualClock,
) -> None:
    async def seconds_of(error: Exception) -> float:
        cache = AsyncSafeCache(
            clock=clock, negative={Exception: 1, LookupError: 2, KeyError: 3, Unknown: 4}
        )
        load = Loader(error)
        begin = clock.now
        while load.calls < 2:
            with pytest.raises(type(error)):
                await cache.get_or_load("key", load)
            clock.advance(0.5)
        return clock.now - 0.5 - begin

    async def main() -> None:
        errors = [Unknown(), KeyError(), IndexError(), ValueError()]
        assert [await seconds_of(error) for error in errors] == [4, 3, 2, 1]

    run_virtual(main(), clock)


def test_a_callable_says_how_long_this_failure_is_remembered(clock: VirtualClock) -> None:
    async def main() -> None:
        class RetryLater(Exception):
            def __init__(self, seconds: float) -> None:
                super().__init__("busy")
                self.seconds = seconds

        cache = AsyncSafeCache(clock=clock, negative={RetryLater: lambda error: error.seconds})
        for seconds in (2, 7):
            load = Loader(RetryLater(seconds), seconds)
            with pytest.raises(RetryLater):
                await cache.get_or_load(seconds, load)
            clock.advance(seconds - 0.5)
            with pytest.raises(RetryLater):
                await cache.get_or_load(seconds, load)
            clock.advance(0.5)
            assert await cache.get_or_load(seconds, load) == seconds

    run_virtual(main(), clock)


@pytest.mark.parametrize("answer", [ZeroDivisionError(), 0, -1, "soon", True], ids=repr)
def test_a_negative_callable_that_fails_is_logged_and_the_caller_gets_the_loads_error(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    caplog.set_level(logging.WARNING, "async_safe_cache")

    def how_long(_: Exception) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, negative={KeyError: how_long})
        load = Loader(KeyError("secret"), "value")
        with pytest.raises(KeyError, match="secret") as raised:
            await cache.get_or_load("key", load)
        assert raised.value.__context__ is None
        assert await cache.get_or_load("key", load) == "value", "it is not remembered"

    run_virtual(main(), clock)
    (record,) = caplog.records
    assert "negative" in record.getMessage()
    assert "KeyError" in record.getMessage()
    assert "secret" not in record.getMessage()


def test_a_remembered_failure_is_a_hit_for_loads_and_counts_as_one_call(
    clock: VirtualClock,
) -> None:
    cache = AsyncSafeCache(clock=clock, negative={KeyError: 60})

    @race_safe_cached(cache)
    def f(x: int) -> None:
        raise KeyError(x)

    for _ in range(3):
        with pytest.raises(KeyError):
            f(1)
    assert at_once(cache.get(cache.key_for(f, 1))) is None
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.loads, stats.load_errors) == (2, 2, 1, 1)
