"""The helpers for users' tests: a loader that obeys, and loads that are counted."""

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, LoadContext, race_safe_cached
from async_safe_cache.testing import explore
from async_safe_cache.testing._helpers import (
    ScriptedLoader,
    after,
    assert_loads,
    assert_one_load,
)

from .virtual import VirtualClock, run_virtual, settle


def counts(loader: ScriptedLoader) -> tuple[int, int, int, int, int]:
    """Calls, then what became of them; the calls are the sum of the others, always."""
    parts = (loader.running, loader.returned, loader.raised, loader.cancelled)
    assert loader.calls == sum(parts) == len(loader.arguments)
    return loader.calls, *parts


# -- the script


async def test_runs_answer_by_the_script_and_the_last_line_repeats() -> None:
    loader = ScriptedLoader("a", KeyError, "b", ValueError("down"))
    assert await loader() == "a"
    with pytest.raises(KeyError):
        await loader()
    assert await loader() == "b"
    for _ in range(2):
        with pytest.raises(ValueError, match="down"):
            await loader()
    assert counts(loader) == (5, 0, 2, 3, 0)


async def test_without_a_script_every_run_gives_value() -> None:
    loader = ScriptedLoader()
    assert [await loader(), await loader()] == ["value", "value"]


async def test_none_and_false_and_classes_are_values() -> None:
    loader = ScriptedLoader(None, False, int, 0)
    assert [await loader() for _ in range(4)] == [None, False, int, 0]


def test_lines_take_their_own_time_and_the_others_the_loaders() -> None:
    clock = VirtualClock()
    loader = ScriptedLoader("a", after(5, "b"), after(0.5, KeyError()), seconds=2)
    ended: list[float] = []

    async def story() -> None:
        for expected in ("a", "b", KeyError):
            began = clock.now
            if expected is KeyError:
                with pytest.raises(KeyError):
                    await loader()
            else:
                assert await loader() == expected
            ended.append(clock.now - began)

    run_virtual(story(), clock)
    assert ended == pytest.approx([2, 5, 0.5])


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, "1"])
def test_seconds_are_finite_numbers_from_zero(seconds: Any) -> None:
    for make in (lambda: ScriptedLoader(seconds=seconds), lambda: after(seconds, 1)):
        with pytest.raises((TypeError, ValueError), match="seconds"):
            make()


async def test_one_exception_object_raised_again_and_again_does_not_grow() -> None:
    error = ValueError("down")
    loader = ScriptedLoader(error)
    depths: set[int] = set()
    for _ in range(5):
        with pytest.raises(ValueError, match="down") as caught:
            await loader()
        depths.add(len(caught.traceback))
    assert caught.value is error
    assert len(depths) == 1


async def test_a_scripted_cancellation_is_raised_and_not_counted_as_one() -> None:
    """A loader that raises CancelledError itself was not cancelled by anybody."""
    loader = ScriptedLoader(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await loader()
    assert counts(loader) == (1, 0, 0, 1, 0)


# -- its three ways to be called


async def test_it_is_a_loader_of_nothing_of_arguments_and_of_a_context() -> None:
    cache = AsyncSafeCache()
    loader = ScriptedLoader("a", "b", "c", "d")

    @race_safe_cached(cache, "f")
    async def f(x: int, *, y: int = 0) -> Any:
        return await loader(x, y=y)

    @race_safe_cached(cache, "plain")
    def plain(x: int) -> Any:
        return loader.sync(x)

    assert await cache.get_or_load("k", loader) == "a"
    assert await f(1, y=2) == "b"
    assert await cache.get_or_load("with", loader.with_context) == "c"
    assert plain(3) == "d"
    assert loader.arguments[0] == ((), {})
    assert loader.arguments[1] == ((1,), {"y": 2})
    (context,), _ = loader.arguments[2]
    assert (type(context), context.key) == (LoadContext, "with")
    assert loader.arguments[3] == ((3,), {})


def test_the_sync_form_takes_real_time_and_raises() -> None:
    loader = ScriptedLoader(after(0.001, KeyError()), "v")
    with pytest.raises(KeyError):
        loader.sync()
    assert loader.sync() == "v"
    assert counts(loader) == (2, 0, 1, 1, 0)


# -- what it counts


def test_it_knows_how_many_ran_at_once_and_how_many_run() -> None:
    loader = ScriptedLoader(seconds=1)

    async def story() -> None:
        tasks = [asyncio.create_task(loader()) for _ in range(3)]
        await settle()
        assert counts(loader) == (3, 3, 0, 0, 0)
        tasks[0].cancel()
        await asyncio.wait(tasks)
        assert counts(loader) == (3, 0, 2, 0, 1)
        await loader()

    run_virtual(story())
    assert loader.most_at_once == 3


def test_a_run_whose_loop_died_is_cancelled() -> None:
    loader = ScriptedLoader(seconds=1)

    async def begun() -> Any:
        run = loader()
        run.send(None)
        return run

    run = asyncio.run(begun())
    assert counts(loader) == (1, 1, 0, 0, 0)
    run.close()  # as the collector does
    assert counts(loader) == (1, 0, 0, 0, 1)


async def test_its_repr_shows_counts_and_no_values() -> None:
    loader = ScriptedLoader("secret")
    await loader("token=abc")
    assert repr(loader) == "<ScriptedLoader: 1 calls, 0 running>"


# -- the gate


async def test_held_runs_go_on_when_they_are_let_go_the_longest_held_first() -> None:
    loader = ScriptedLoader("a", "b", "c")
    loader.hold()
    tasks = [asyncio.create_task(loader(), name=name) for name in "abc"]
    await loader.held(3)
    assert not any(task.done() for task in tasks)
    assert loader.let_go(1) == 1
    assert await tasks[0] == "a"
    await settle()
    assert [task.done() for task in tasks] == [True, False, False]
    assert loader.let_go() == 2
    assert await asyncio.gather(*tasks) == ["a", "b", "c"]
    assert await loader() == "c"  # and the gate stays open


async def test_the_gate_stays_closed_when_some_are_let_go() -> None:
    loader = ScriptedLoader()
    loader.hold()
    first = asyncio.create_task(loader())
    await loader.held()
    assert loader.let_go(1) == 1
    assert await first == "value"
    second = asyncio.create_task(loader())
    await loader.held()
    await settle()
    assert not second.done()
    loader.let_go()
    assert await second == "value"


async def test_who_waits_for_held_runs_is_woken_when_there_are_enough() -> None:
    loader = ScriptedLoader()
    loader.hold()
    two = asyncio.create_task(loader.held(2))
    tasks = [asyncio.create_task(loader())]
    await loader.held(1)
    await settle()
    assert not two.done()
    tasks.append(asyncio.create_task(loader()))
    await two
    loader.let_go()
    await asyncio.gather(*tasks)


async def test_a_run_cancelled_at_the_gate_leaves_it() -> None:
    loader = ScriptedLoader("a", "b")
    loader.hold()
    tasks = [asyncio.create_task(loader()) for _ in range(2)]
    await loader.held(2)
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    assert loader.let_go(1) == 1  # the one that is there, not the one that left
    assert await tasks[1] == "b"
    assert counts(loader) == (2, 0, 1, 0, 1)


def test_threads_are_held_and_let_go() -> None:
    loader = ScriptedLoader("a", "b")
    loader.hold()
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(loader.sync())) for _ in range(2)]
    for thread in threads:
        thread.start()
    loader.held_here(2)
    assert (results, loader.most_at_once) == ([], 2)
    assert loader.let_go() == 2
    for thread in threads:
        thread.join(5)
    assert sorted(results) == ["a", "b"]


def test_a_thread_that_waits_in_vain_is_told_what_to_do() -> None:
    loader = ScriptedLoader()
    with pytest.raises(TimeoutError, match=r"after 0.01 s 0 runs are held, not 1: call hold\(\)"):
        loader.held_here(timeout=0.01)


def test_runs_of_two_loops_are_held_at_one_gate() -> None:
    loader = ScriptedLoader("a", "b")
    loader.hold()
    results: list[Any] = []

    def work() -> None:
        results.append(asyncio.run(loader()))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    loader.held_here(2)
    loader.let_go()
    for thread in threads:
        thread.join(5)
    assert sorted(results) == ["a", "b"]


def test_the_gate_works_in_every_schedule() -> None:
    async def scenario() -> None:
        cache = AsyncSafeCache()
        loader = ScriptedLoader("v")
        loader.hold()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(cache.get_or_load("k", loader)) for _ in range(3)]
            await loader.held()
            assert loader.let_go() == 1
        assert [task.result() for task in tasks] == ["v"] * 3
        assert counts(loader) == (1, 0, 1, 0, 0)

    explore(scenario, schedules=150)


# -- counted loads


async def _one(cache: AsyncSafeCache, loader: ScriptedLoader) -> None:
    await asyncio.gather(*(cache.get_or_load("k", loader) for _ in range(5)))


async def test_one_load_for_many_callers_is_one_load() -> None:
    cache, loader = AsyncSafeCache(), ScriptedLoader()
    with assert_one_load(loader), assert_one_load(cache):
        await _one(cache, loader)
    with assert_loads(0, loader), assert_loads(0, cache):
        await _one(cache, loader)


async def test_too_many_loads_are_told_with_what_the_calls_met() -> None:
    cache, loader = AsyncSafeCache("prices"), ScriptedLoader()

    async def story() -> None:
        await cache.get_or_load("k", loader)
        await cache.delete("k")
        await cache.get_or_load("k", loader)
        await cache.get("k")

    message = (
        "2 loads of the cache 'prices' in the block, 1 expected (hits 1, misses 2, "
        "ABSENT 1, DELETED 1): calls share a load when they are equal and the load still runs, "
        "or its value is stored and fresh"
    )
    with pytest.raises(AssertionError, match=re.escape(message)), assert_one_load(cache):
        await story()
    await cache.clear()
    message = "2 loads of the loader in the block, 1 expected (runs 2): "
    with pytest.raises(AssertionError, match=re.escape(message)), assert_one_load(loader):
        await story()


async def test_too_few_loads_are_told_with_what_the_calls_met() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache, "f")
    async def f(x: int) -> int:
        return x

    await f(1)
    message = (
        "0 loads of f in the block, 1 expected (hits 2): a value that was stored before the "
        "block, or a load that ran already, needs no load"
    )
    with pytest.raises(AssertionError, match=re.escape(message)), assert_one_load(f):
        await f(1)
        await f(1)
    message = "0 loads of f in the block, 2 expected (no call at all)"
    with pytest.raises(AssertionError, match=re.escape(message)), assert_loads(2, f):
        pass


async def test_loads_of_a_function_are_counted_and_not_those_of_others() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache, "f")
    async def f(x: int) -> int:
        return x

    @race_safe_cached(cache, "g")
    def g(x: int) -> int:
        return x

    class Service:
        @race_safe_cached(cache, "method")
        async def method(self, x: int) -> int:
            return x

    one, other = Service(), Service()
    with (
        assert_loads(2, f),
        assert_one_load(g),
        assert_loads(2, one.method),
        assert_loads(5, cache),
    ):
        await asyncio.gather(f(1), f(1), f(2))
        g(1)
        await one.method(1)
        await other.method(1)


@pytest.mark.parametrize("kind", ["loader", "function", "cache"])
async def test_a_load_that_still_runs_when_the_block_ends_began_in_it(kind: str) -> None:
    cache, loader = AsyncSafeCache(), ScriptedLoader()

    @race_safe_cached(cache, "f")
    async def f() -> Any:
        return await loader()

    of: Any = {"loader": loader, "function": f, "cache": cache}[kind]
    loader.hold()
    with assert_one_load(of):
        task = asyncio.create_task(f())
        await loader.held()
    with assert_loads(0, of):
        joined = asyncio.create_task(f())
        await settle()
        loader.let_go()
        assert [await task, await joined] == ["value", "value"]


async def test_a_failing_load_is_a_load() -> None:
    cache = AsyncSafeCache()
    with assert_one_load(cache), pytest.raises(KeyError):
        await cache.get_or_load("k", ScriptedLoader(KeyError()))


async def test_the_blocks_own_exception_goes_through() -> None:
    with pytest.raises(KeyError), assert_one_load(AsyncSafeCache()):
        raise KeyError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: assert_one_load(len), "of a ScriptedLoader, a function decorated with"),
        (lambda: assert_one_load(object()), "not of object"),
        (lambda: assert_loads(1.0, AsyncSafeCache()), "loads must be an int, not float"),  # type: ignore[arg-type]
        (lambda: assert_loads(True, AsyncSafeCache()), "loads must be an int, not bool"),
        (lambda: assert_loads(-1, AsyncSafeCache()), "loads=-1 must not be negative"),
    ],
)
def test_what_cannot_be_counted_is_refused_before_the_block(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message), make():
        raise AssertionError("not reached")
