"""Loads that wait for loads: a cycle is an error at once, everything else works."""

import asyncio
import contextvars
import itertools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, RecursiveLoadError, race_safe_cached

from .virtual import Loader, VirtualClock, run_virtual, settle


def assert_nothing_runs(cache: AsyncSafeCache) -> None:
    assert cache._engine.flights.running == {}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def directly(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


async def in_a_task(call: Callable[[], Awaitable[Any]]) -> Any:
    return await asyncio.ensure_future(call())


async def in_a_task_of_a_task(call: Callable[[], Awaitable[Any]]) -> Any:
    return await asyncio.create_task(in_a_task(call))


async def in_gather(call: Callable[[], Awaitable[Any]]) -> Any:
    return (await asyncio.gather(call(), asyncio.sleep(0)))[0]


async def in_a_group(call: Callable[[], Awaitable[Any]]) -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(call())  # type: ignore[arg-type]
    except* RecursiveLoadError as several:
        raise several.exceptions[0] from None
    return task.result()


HOWS = [directly, in_a_task, in_a_task_of_a_task, in_gather, in_a_group]


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.__name__)
def test_a_load_that_awaits_its_own_key_fails_at_once_for_all_who_wait(
    clock: VirtualClock, how: Any
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        calls = 0

        @race_safe_cached(cache, "factorial")
        async def f(x: int) -> int:
            nonlocal calls
            calls += 1
            return await how(lambda: f(x))

        answers = await asyncio.gather(f(1), f(1), f(1), return_exceptions=True)
        assert [type(answer) for answer in answers] == [RecursiveLoadError] * 3
        (error,) = {id(answer): answer for answer in answers}.values()
        assert isinstance(error, RecursiveLoadError)
        assert error.chain == ("factorial", "factorial")
        assert not error.blocking_loop
        assert (calls, clock.now) == (1, 1000.0)
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_recursion_with_other_arguments_is_no_cycle(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        calls = 0

        @race_safe_cached(cache)
        async def fibonacci(n: int) -> int:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0.1)
            if n < 2:
                return n
            return sum(await asyncio.gather(fibonacci(n - 1), fibonacci(n - 2)))

        assert await fibonacci(20) == 6765
        assert calls == 21
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_loads_that_meet_in_a_third_are_no_cycle(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        needs = {"top": ["left", "right"], "left": ["end"], "right": ["left", "end"], "end": []}

        @race_safe_cached(cache)
        async def build(name: str) -> str:
            await asyncio.sleep(1)
            parts = await asyncio.gather(*(build(each) for each in needs[name]))
            return f"{name}({' '.join(parts)})"

        answers = await asyncio.gather(*(build(name) for name in needs))
        assert answers[0] == "top(left(end()) right(left(end()) end()))"
        assert cache.stats().loads == 4
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_chain_of_five_hundred_loads_works(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache)
        async def count(n: int) -> int:
            return 0 if n == 0 else 1 + await count(n - 1)

        assert await count(500) == 500
        assert cache.stats().loads == 501
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


async def pause_turns(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("before_a", "before_b", "b_starts"),
    list(itertools.product(range(4), range(4), range(4))),
)
def test_two_loads_that_wait_for_each_other_never_hang(
    clock: VirtualClock, before_a: int, before_b: int, b_starts: int
) -> None:
    """One of them is told; the other one, which waited for it, gets that answer or its own."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, "load a")
        async def a(x: str) -> str:
            await pause_turns(before_a)
            return "a" + await b(x)

        @race_safe_cached(cache, "load b")
        async def b(x: str) -> str:
            await pause_turns(before_b)
            return "b" + await a(x)

        first = asyncio.create_task(a("secret"))
        await pause_turns(b_starts)
        second = asyncio.create_task(b("secret"))
        errors = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(each) for each in errors] == [RecursiveLoadError] * 2
        for error in errors:
            assert isinstance(error, RecursiveLoadError)
            assert error.chain in {
                ("load a", "load b", "load a"),
                ("load b", "load a", "load b"),
            }
            assert " -> ".join(error.chain) in str(error)
            assert "secret" not in str(error)
        assert clock.now == 1000.0
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


@pytest.mark.parametrize("length", [3, 4, 10])
@pytest.mark.parametrize("together", [False, True])
def test_a_longer_cycle_names_its_whole_chain(
    clock: VirtualClock, length: int, together: bool
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        functions: list[Any] = []

        def make(number: int) -> Any:
            @race_safe_cached(cache, f"load {number}")
            async def load() -> Any:
                await asyncio.sleep(1)
                return await functions[(number + 1) % length]()

            return load

        functions += [make(number) for number in range(length)]
        callers = functions if together else functions[:1]
        answers = await asyncio.gather(*(each() for each in callers), return_exceptions=True)
        names = [f"load {number}" for number in range(length)]
        for error in answers:
            assert isinstance(error, RecursiveLoadError)
            chain = list(error.chain)
            assert chain[0] == chain[-1]
            begin = names.index(chain[0])
            assert chain[:-1] == names[begin:] + names[:begin]
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_loader_can_catch_the_error_and_break_the_cycle(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache)
        async def a() -> str:
            return "a" + await b()

        @race_safe_cached(cache)
        async def b() -> str:
            await asyncio.sleep(1)
            try:
                return "b" + await a()
            except RecursiveLoadError:
                return "b"

        assert await asyncio.gather(a(), b()) == ["ab", "b"]
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_load_is_known_to_wait_only_for_what_it_waits_for_now(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def load() -> int:
            for key in range(50):
                await cache.get_or_load(key, Loader(seconds=1))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await cache.get_or_load(("slow", key), Loader(seconds=1))
            await settle()  # what was abandoned ends
            (flight,) = cache._engine.flights.running
            return len(flight.waits_on)

        assert await cache.get_or_load("all", load) == 0
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_task_that_outlives_its_load_may_ask_for_the_key(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        tasks: list[asyncio.Task[Any]] = []

        async def later() -> Any:
            await asyncio.sleep(1)
            await cache.delete("key")
            return await cache.get_or_load("key", Loader("second"))

        async def load() -> str:
            tasks.append(asyncio.create_task(later()))
            return "first"

        assert await cache.get_or_load("key", load) == "first"
        assert await tasks[0] == "second"
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_load_may_read_write_and_delete_its_own_key(clock: VirtualClock) -> None:
    """Only waiting for it can never end."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def load() -> list[Any]:
            seen = [await cache.get("key"), cache.peek("key", None)]
            await cache.set("key", "set by the load")
            seen.append(await cache.get("key"))
            await cache.delete("key")
            return seen

        assert await cache.get_or_load("key", load) == [None, None, "set by the load"]
        assert await cache.get("key") is None, "its own delete fenced it"
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_clean_up_that_awaits_its_own_key_is_told_so_at_once(clock: VirtualClock) -> None:
    """It would wait for itself until cancel_grace is over."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, cancel_grace=60)
        told: list[RecursiveLoadError] = []

        async def load() -> str:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                try:
                    await cache.get_or_load("key", load)
                except RecursiveLoadError as error:
                    told.append(error)
                raise
            return "value"

        call = asyncio.create_task(cache.get_or_load("key", load))
        await settle()
        call.cancel()
        await settle()
        assert await cache.get_or_load("key", load) == "value"
        assert [error.chain for error in told] == [("default", "default")]
        assert clock.now == 1001.0
        assert cache.stats().overlapping_loads == 0
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_two_clean_ups_that_await_each_others_key_never_hang(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, cancel_grace=60)
        told: list[str] = []

        def loader(mine: str, other: str) -> Callable[[], Awaitable[str]]:
            async def load() -> str:
                try:
                    await asyncio.sleep(1)
                except asyncio.CancelledError:
                    try:
                        await cache.get_or_load(other, Loader("other"))
                    except RecursiveLoadError:
                        told.append(mine)
                    raise
                return mine

            return load

        calls = [
            asyncio.create_task(cache.get_or_load(mine, loader(mine, other)))
            for mine, other in ("ab", "ba")
        ]
        await settle()
        for call in calls:
            call.cancel()
        await settle()
        assert len(told) == 1
        assert clock.now == 1000.0
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


# -- plain functions and threads


def test_a_def_that_calls_itself_with_its_own_arguments_is_told_so() -> None:
    cache = AsyncSafeCache()
    calls = 0

    @race_safe_cached(cache, "rules")
    def f(folder: str) -> Any:
        nonlocal calls
        calls += 1
        return f(folder)

    with pytest.raises(RecursiveLoadError, match="rules -> rules") as raised:
        f("/secret")
    assert raised.value.chain == ("rules", "rules")
    assert "/secret" not in str(raised.value)
    assert calls == 1
    assert cache._engine.flights.running == {}


def test_a_cycle_of_defs_is_told_so_and_other_recursion_works() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache, "a")
    def a(n: int) -> int:
        return b(n)

    @race_safe_cached(cache, "b")
    def b(n: int) -> int:
        return a(n)

    @race_safe_cached(cache)
    def factorial(n: int) -> int:
        return n * factorial(n - 1) if n else 1

    with pytest.raises(RecursiveLoadError) as raised:
        a(1)
    assert raised.value.chain == ("b", "a", "b")
    assert factorial(20) == 2432902008176640000
    assert cache._engine.flights.running == {}


def test_two_threads_whose_defs_wait_for_each_other_never_hang() -> None:
    cache = AsyncSafeCache()
    both = threading.Barrier(2)
    answers: dict[str, Any] = {}

    @race_safe_cached(cache, "load")
    def f(key: str) -> Any:
        both.wait(5)  # each thread leads its own load
        return f("b" if key == "a" else "a")

    def caller(key: str) -> None:
        try:
            answers[key] = f(key)
        except RecursiveLoadError as error:
            answers[key] = error.chain

    threads = [threading.Thread(target=caller, args=key, daemon=True) for key in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert answers == {"a": ("load", "load", "load"), "b": ("load", "load", "load")}
    assert cache._engine.flights.running == {}


def test_loads_of_two_loops_that_wait_for_each_other_never_hang() -> None:
    cache = AsyncSafeCache()
    both = threading.Barrier(2)
    answers: dict[str, Any] = {}

    @race_safe_cached(cache, "load")
    async def f(key: str) -> Any:
        both.wait(5)  # each loop leads its own load
        return await f("b" if key == "a" else "a")

    def caller(key: str) -> None:
        try:
            answers[key] = asyncio.run(f(key))
        except RecursiveLoadError as error:
            answers[key] = error.chain

    threads = [threading.Thread(target=caller, args=key, daemon=True) for key in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert answers == {"a": ("load", "load", "load"), "b": ("load", "load", "load")}
    assert cache._engine.flights.running == {}


def test_a_def_that_would_block_the_loop_that_loads_its_value_is_told_so(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, "rules")
        def f(folder: str) -> str:
            return "by the def"

        key = cache.key_for(f, "/secret")
        early = asyncio.create_task(cache.get_or_load(key, Loader("by the loop", seconds=1)))
        await settle()
        with pytest.raises(RecursiveLoadError, match="block") as raised:
            f("/secret")
        assert raised.value.blocking_loop
        assert raised.value.chain == ("rules", "rules")
        assert "/secret" not in str(raised.value)
        assert await early == "by the loop"
        assert f("/secret") == "by the loop"
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_def_that_would_block_its_own_thread_is_told_so() -> None:
    """Also where the load's context is lost: the thread itself is known."""
    cache = AsyncSafeCache()

    @race_safe_cached(cache, "rules")
    def f(folder: str) -> Any:
        return contextvars.Context().run(f, folder)

    with pytest.raises(RecursiveLoadError) as raised:
        f("x")
    assert raised.value.blocking_loop
    assert cache._engine.flights.running == {}


def test_a_loaders_blocking_call_back_into_its_own_cache_works_for_other_keys(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache)
        def inner(x: int) -> int:
            return x + 1

        @race_safe_cached(cache)
        async def outer(x: int) -> int:
            await asyncio.sleep(1)
            return inner(x) * 10

        assert await asyncio.gather(outer(1), outer(1), outer(2)) == [20, 20, 30]
        assert cache.stats().loads == 4
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_long_chain_of_loads_that_need_no_await_has_room_for_the_users_own_calls() -> None:
    """Loads that begin inside each other share one stack, with the calls in between."""
    cache = AsyncSafeCache()

    async def through(calls: int, number: int) -> int:
        return await (through(calls - 1, number) if calls else link(number))

    @race_safe_cached(cache)
    async def link(number: int) -> int:
        return await through(50, number - 1) + 1 if number else 0

    assert asyncio.run(link(200)) == 200
