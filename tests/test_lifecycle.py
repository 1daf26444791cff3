"""A cache from its start to its end, and through every interruption in between."""

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    CacheClosedError,
    MissReason,
    _registry,
    get_async_safe_cache,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, VirtualLoop, at_once, run_virtual, settle

PATIENCE = 10.0


@pytest.fixture
def _no_named_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test a process without named caches."""
    monkeypatch.setattr(_registry, "_caches", {})


def assert_nothing_runs(cache: AsyncSafeCache) -> None:
    assert cache._engine.flights.running == {}
    assert cache._engine.flights._registry == {}
    assert cache._engine.workers == set()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def until_async(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        await asyncio.sleep(0)


# -- every operation, cancelled at every step

Operation = Callable[[AsyncSafeCache, Any], Coroutine[Any, Any, Any]]


async def in_a_section(cache: AsyncSafeCache, f: Any) -> None:
    async with cache:
        await cache.set("inside", 1)
        await f(99)


OPERATIONS: dict[str, Operation] = {
    "get": lambda cache, _: cache.get(1),
    "lookup": lambda cache, _: cache.lookup(1),
    "get_many": lambda cache, _: cache.get_many(range(5)),
    "get_or_load, hit": lambda cache, _: cache.get_or_load(1, Loader()),
    "get_or_load, lead": lambda cache, _: cache.get_or_load("new", Loader("loaded", seconds=1)),
    "get_or_load, join": lambda cache, _: cache.get_or_load("slow", Loader()),
    "get_or_load, clean-up": lambda cache, _: cache.get_or_load("dying", Loader("loaded")),
    "decorated, lead": lambda _, f: f(50),
    "decorated, join": lambda _, f: f(7),
    "refresh, lead": lambda cache, f: cache.refresh(f, 1),
    "refresh, join": lambda cache, f: cache.refresh(f, 7),
    "set": lambda cache, _: cache.set(1, "new"),
    "set during a load": lambda cache, _: cache.set("slow", "new"),
    "delete": lambda cache, _: cache.delete(1, 2, "slow", "dying"),
    "expire": lambda cache, _: cache.expire(1, 2, "slow", "dying"),
    "touch": lambda cache, _: cache.touch(1, 60),
    "clear": lambda cache, _: cache.clear(),
    "invalidate": lambda cache, f: cache.invalidate(f, 7),
    "cache_close": lambda _, f: f.cache_close(),
    "cache_close, waiting": lambda _, f: f.cache_close(wait=True),
    "start": lambda cache, _: cache.start(),
    "aclose": lambda cache, _: cache.aclose(),
    "aclose, draining": lambda cache, _: cache.aclose(drain=True),
    "async with": in_a_section,
    "get_health_info": lambda cache, _: cache.get_health_info(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_cancelled_at_any_step_leaves_the_cache_whole(
    clock: VirtualClock, name: str
) -> None:
    async def dying() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(1)  # a slow clean-up
        return "never"

    async def cancelled_after(step: int) -> bool:
        cache = AsyncSafeCache(clock=clock)
        # Where memory is freed in slices, several of them.
        for key in range(1_100 if name.startswith(("clear", "aclose", "async")) else 5):
            at_once(cache.set(key, key))

        @race_safe_cached(cache)
        async def f(x: int) -> int:
            await asyncio.sleep(2)
            return x

        await cache.start()
        others = [
            asyncio.create_task(cache.get_or_load("slow", Loader("loaded", seconds=3))),
            asyncio.create_task(f(7)),
        ]
        abandoned = asyncio.create_task(cache.get_or_load("dying", dying))
        await settle()
        abandoned.cancel()
        await settle()

        operation = asyncio.create_task(OPERATIONS[name](cache, f))  # type: ignore[arg-type]
        for _ in range(step):
            await asyncio.sleep(0)
        in_time = operation.cancel()
        await asyncio.wait([operation])
        assert operation.cancelled() == in_time
        assert not cache._engine.store.lock._is_owned()  # type: ignore[attr-defined]
        cache.check()
        stats = cache.stats()
        assert stats.hits + stats.misses + stats.coalesced == stats.calls

        for answer in await asyncio.gather(*others, return_exceptions=True):
            assert answer in ("loaded", 7) or isinstance(answer, CacheClosedError)
        await asyncio.sleep(10)
        assert cache._engine.flights.running == {}
        if cache.closed:
            await cache.aclose()
            assert (len(cache), cache.memory_bytes) == (0, 0)
            await cache.start()
        await cache.set("next", 1)
        assert await cache.get("next") == 1
        assert await cache.get_or_load("next load", Loader("loaded", seconds=1)) == "loaded"
        await cache.aclose()
        cache.check()
        assert_nothing_runs(cache)
        return in_time

    async def main() -> None:
        step = 0
        while await cancelled_after(step):
            step += 1
            if step == 20:
                break  # it waits for time to pass: every later step is the same one
        assert step >= 1

    run_virtual(main(), clock)


# -- the end


@pytest.mark.parametrize("drain", [False, True])
def test_closing_with_a_hundred_loads_answers_everybody_in_time(
    clock: VirtualClock, drain: bool
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache("prices", clock=clock)
        await cache.start()
        load = Loader("value", seconds=2)
        calls = [asyncio.create_task(cache.get_or_load(key, load)) for key in range(100)]
        joins = [asyncio.create_task(cache.get_or_load(key, load)) for key in range(100)]
        await settle()
        begin = clock.now
        await cache.aclose(drain=drain, timeout=5)
        assert clock.now == begin + (2 if drain else 0)
        assert cache.closed
        assert cache._engine.flights.running == {}
        answers = await asyncio.gather(*calls, *joins, return_exceptions=True)
        if drain:
            assert answers == ["value"] * 200
        else:
            assert [type(answer) for answer in answers] == [CacheClosedError] * 200
            assert {answer.name for answer in answers} == {"prices"}
        assert load.cancelled == (0 if drain else 100)
        assert (len(cache), cache.memory_bytes) == (0, 0)
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


@pytest.mark.parametrize("drain", [False, True])
def test_closing_ends_within_its_timeout_whatever_a_loader_does(
    clock: VirtualClock, drain: bool
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        end = asyncio.Event()

        async def stubborn() -> str:
            while not end.is_set():
                try:
                    await end.wait()
                except asyncio.CancelledError:
                    pass
            return "late"

        call = asyncio.create_task(cache.get_or_load("key", stubborn))
        await settle()
        await cache.aclose(drain=drain, timeout=3)
        assert clock.now == pytest.approx(1003)
        with pytest.raises(CacheClosedError):
            await call
        await cache.start()
        assert await cache.get_or_load("key", Loader("new")) == "new"
        end.set()
        await settle()
        assert cache.peek("key") == "new", "what was loaded before the end is not stored after it"
        await cache.aclose()
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_loads_that_need_the_cache_can_end_while_it_drains(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def outer() -> str:
            await asyncio.sleep(1)
            inner = await cache.get_or_load("inner", Loader("inner", seconds=1))
            await cache.set("noted", 1)
            return f"outer of {inner}"

        call = asyncio.create_task(cache.get_or_load("outer", outer))
        await settle()
        closing = asyncio.create_task(cache.aclose(drain=True))
        await settle()
        with pytest.raises(CacheClosedError):
            await cache.get_or_load("stranger", Loader())
        await closing
        assert await call == "outer of inner"
        assert len(cache) == 0
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


async def _aclose_in_a_load(cache: AsyncSafeCache, drain: bool) -> None:
    async def load() -> str:
        await cache.aclose(drain=drain, timeout=3)
        return "value"

    other = asyncio.create_task(cache.get_or_load("other", Loader("other", seconds=1)))
    call = asyncio.create_task(cache.get_or_load("key", load))
    answers = await asyncio.gather(call, other, return_exceptions=True)
    if drain:
        assert isinstance(answers[0], CacheClosedError)
        assert answers[1] == "other"
    else:
        assert [type(answer) for answer in answers] == [CacheClosedError] * 2


@pytest.mark.parametrize("drain", [False, True])
def test_closing_from_inside_a_load_does_not_wait_for_that_load(
    clock: VirtualClock, drain: bool
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.start()
        await _aclose_in_a_load(cache, drain)
        assert cache.closed
        await settle()
        assert clock.now == (1001 if drain else 1000)
        assert len(cache) == 0
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_load_in_whose_first_step_its_cache_is_closed_is_cancelled(clock: VirtualClock) -> None:
    """Where tasks begin at once, it has no task yet that the close could cancel."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        cancelled = 0

        async def load() -> None:
            nonlocal cancelled
            await cache.aclose()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1
                raise

        with pytest.raises(CacheClosedError):
            await cache.get_or_load("key", load)
        await settle()
        assert cancelled == 1
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_who_is_cancelled_while_draining_has_closed_the_cache(clock: VirtualClock) -> None:
    """A cache half closed would be worse: its callers get CacheClosedError now."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.start()
        await cache.set("key", 1)
        load = Loader("value", seconds=60)
        call = asyncio.create_task(cache.get_or_load("slow", load))
        await settle()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await cache.aclose(drain=True, timeout=30)
        with pytest.raises(CacheClosedError):
            await call
        assert load.cancelled == 1
        assert clock.now == pytest.approx(1001)
        assert (len(cache), cache.memory_bytes) == (0, 0)
        await cache.aclose()
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_closing_twice_is_closing_once(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.start()
        load = Loader("value", seconds=1)
        call = asyncio.create_task(cache.get_or_load("key", load))
        await settle()
        await asyncio.gather(cache.aclose(), cache.aclose(), cache.aclose(drain=True))
        await cache.aclose()
        assert cache.closed
        with pytest.raises(CacheClosedError):
            await call
        assert clock.now == 1000
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_a_cache_that_never_started_can_be_closed(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.set("key", 1)
        await cache.aclose()
        assert cache.health()["status"] == "closed"
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_closing_from_another_loop_ends_what_runs_in_this_one() -> None:
    cache = AsyncSafeCache()
    loading = threading.Event()
    cancelled = threading.Event()
    answers: list[Any] = []

    async def load() -> None:
        try:
            loading.set()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def home() -> None:
        await cache.start()
        calls = [cache.get_or_load("key", load) for _ in range(5)]
        answers.extend(await asyncio.gather(*calls, return_exceptions=True))
        await until_async(lambda: len(asyncio.all_tasks()) == 1)

    async def elsewhere() -> None:
        await until_async(lambda: cache.stats().coalesced == 4)
        await cache.aclose()
        assert cancelled.is_set()
        assert cache._engine.flights.running == {}
        assert not cache.health()["background"]["sweeper"]["running"]

    thread = threading.Thread(target=lambda: asyncio.run(home()), daemon=True)
    thread.start()
    assert loading.wait(PATIENCE)
    asyncio.run(elsewhere())
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert [type(answer) for answer in answers] == [CacheClosedError] * 5


def test_a_thread_that_waits_is_woken_by_the_end() -> None:
    """Its leader cannot be cancelled: it gets its value, and the others CacheClosedError."""
    cache = AsyncSafeCache()
    go_on = threading.Event()
    answers: list[Any] = []

    @race_safe_cached(cache)
    def f(x: int) -> str:
        assert go_on.wait(PATIENCE)
        return "value"

    def caller() -> None:
        try:
            answers.append(f(1))
        except CacheClosedError as error:
            answers.append(type(error))

    async def main() -> None:
        await until_async(lambda: cache.stats().coalesced == 3)
        await cache.aclose()
        await until_async(lambda: len(answers) == 3)
        assert answers == [CacheClosedError] * 3
        go_on.set()

    threads = [threading.Thread(target=caller, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    asyncio.run(main())
    for thread in threads:
        thread.join(PATIENCE)
    assert answers[3:] in (["value"], [CacheClosedError])
    assert len(cache) == 0
    assert cache._engine.flights.running == {}


AFTER: dict[str, Operation] = {
    "get": lambda cache, _: cache.get(1),
    "lookup": lambda cache, _: cache.lookup(1),
    "get_many": lambda cache, _: cache.get_many([1, 2]),
    "get_or_load": lambda cache, _: cache.get_or_load(1, Loader()),
    "set": lambda cache, _: cache.set(1, 1),
    "delete": lambda cache, _: cache.delete(1),
    "delete nothing": lambda cache, _: cache.delete(),
    "expire": lambda cache, _: cache.expire(1),
    "touch": lambda cache, _: cache.touch(1, 5),
    "clear": lambda cache, _: cache.clear(),
    "invalidate": lambda cache, f: cache.invalidate(f, 1),
    "refresh": lambda cache, f: cache.refresh(f, 1),
    "decorated": lambda _, f: f(1),
}


@pytest.mark.parametrize("name", AFTER)
def test_use_after_the_end_is_an_error_at_once(clock: VirtualClock, name: str) -> None:
    async def main() -> None:
        cache = AsyncSafeCache("prices", clock=clock)

        @race_safe_cached(cache)
        async def f(x: int) -> int:
            return x

        assert await f(1) == 1
        await cache.set(1, 1)
        before = cache.stats()
        await cache.aclose()
        with pytest.raises(CacheClosedError, match="prices") as raised:
            at_once(AFTER[name](cache, f))
        assert raised.value.name == "prices"
        assert cache.stats().calls == before.calls, "a refused call is none"
        with pytest.raises(CacheClosedError):
            cache.peek(1)
        assert (len(cache), cache.memory_bytes) == (0, 0)
        assert cache.health()["status"] == "closed"

    run_virtual(main(), clock)


def test_start_opens_a_closed_cache_again_empty(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.set("key", 1)
        await cache.set("deleted", 1)
        await cache.delete("deleted")
        for _ in range(3):
            await cache.aclose()
            await cache.start()
            assert not cache.closed
            assert cache.peek("key") is MISSING
            assert (await cache.lookup("deleted")).reason is MissReason.ABSENT
            assert (len(cache), cache.memory_bytes) == (0, 0)
            assert cache.health()["background"]["sweeper"]["running"]
            assert await cache.get_or_load("key", Loader("loaded")) == "loaded"
        await cache.aclose()
        assert_nothing_runs(cache)

    run_virtual(main(), clock)


def test_after_close_call_runs_the_original_uncached(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, after_close="call")
        calls: list[str] = []

        @race_safe_cached(cache)
        async def f(x: int, y: int = 2) -> int:
            calls.append("f")
            return x * y

        @race_safe_cached(cache)
        def g(x: int) -> int:
            calls.append("g")
            return x

        @race_safe_cached(cache, after_close="error")
        async def h() -> None: ...

        assert (await f(1), g(1)) == (2, 1)
        await cache.aclose()
        assert (await f(1), await f(1, y=5), g(1)) == (2, 5, 1)
        assert calls == ["f", "g", "f", "f", "g"]
        with pytest.raises(CacheClosedError):
            await h()
        assert len(cache) == 0
        await cache.start()
        assert (await f(1), await f(1)) == (2, 2)
        assert len(calls) == 6
        await cache.aclose()

    run_virtual(main(), clock)


# -- background work and health


def test_a_sweep_that_fails_is_named_and_tried_again(clock: VirtualClock) -> None:
    broken = False

    def fragile() -> float:
        if broken and asyncio.current_task() is cache._sweeper._task:
            raise OSError("no time")
        return clock.now

    async def main() -> None:
        nonlocal broken
        async with cache:
            await cache.set("key", 1, ttl=1)
            broken = True
            await asyncio.sleep(2.5)
            health = cache.health()
            (alert,) = health["alerts"]
            assert (health["status"], alert["name"], alert["observed"]) == (
                "degraded",
                "sweeper",
                2,
            )
            state = health["background"]["sweeper"]
            assert (state["running"], state["last_error"]) == (True, "OSError")
            assert await cache.get("key") is None, "reads need no sweeper"
            broken = False
            await asyncio.sleep(1)
            assert cache.health()["status"] == "healthy"
            assert cache.memory_bytes == 0

    cache = AsyncSafeCache(clock=fragile)
    run_virtual(main(), clock)


def test_a_sweeper_whose_loop_was_closed_under_it_is_named_and_starts_again(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop closed without ending its tasks: nobody tells the sweeper."""
    cache = AsyncSafeCache(clock=clock)
    loop = VirtualLoop(clock)
    loop.run_until_complete(cache.start())
    loop.close()
    (alert,) = cache.health()["alerts"]
    assert (alert["name"], alert["unit"]) == ("sweeper", "stopped")
    assert cache.health()["status"] == "degraded"

    async def main() -> None:
        assert await cache.get_or_load("key", Loader("value")) == "value"
        assert cache.health()["status"] == "healthy"
        await cache.aclose()
        assert_nothing_runs(cache)

    run_virtual(main(), clock)
    del loop
    gc.collect()
    assert [each.getMessage().split("\n")[0] for each in caplog.records] == [
        "Task was destroyed but it is pending!"
    ], "asyncio's own word on who closes a loop so"


def test_two_loops_that_start_a_cache_at_once_leave_one_sweeper() -> None:
    """Both found none running, and the one that was forgotten could never be stopped."""
    cache = AsyncSafeCache()
    both = threading.Barrier(2)
    end = threading.Event()
    left: list[str] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        if "Background" in coroutine.__qualname__:
            try:
                both.wait(0.2)  # the other one is between its look and its task, if it can be
            except threading.BrokenBarrierError:
                pass
        return asyncio.Task(coroutine, loop=loop, **options)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        await cache.start()
        started.release()
        await until_async(end.is_set)
        left.extend(task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()})

    async def close() -> None:
        await cache.aclose()

    started = threading.Semaphore(0)
    threads = [threading.Thread(target=lambda: asyncio.run(main()), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert started.acquire(timeout=PATIENCE)
    asyncio.run(close())
    end.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert left == []


@pytest.mark.parametrize("state", ["never started", "open", "closed", "failing"])
def test_health_knows_the_state_of_the_cache(clock: VirtualClock, state: str) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        if state != "never started":
            await cache.start()
        if state == "failing":
            with pytest.raises(ValueError, match="expected"):
                await cache.get_or_load("key", Loader(ValueError("expected")))
        if state == "closed":
            await cache.aclose()
        expected = {"failing": "degraded", "closed": "closed"}.get(state, "healthy")
        health = await cache.get_health_info()
        assert health["status"] == expected
        assert [each["name"] for each in health["alerts"]] == (
            ["error_rate"] if state == "failing" else []
        )
        assert health["background"]["sweeper"]["running"] == (state in ("open", "failing"))
        await cache.aclose()
        assert cache.health()["status"] == "closed"

    run_virtual(main(), clock)


# -- one cache per name


@pytest.mark.usefixtures("_no_named_caches")
def test_tasks_and_threads_that_ask_at_once_get_one_cache_per_name() -> None:
    caches: list[AsyncSafeCache] = []
    made: list[int] = []
    begin = threading.Barrier(8)

    def counting_clock() -> float:
        made.append(1)
        time.sleep(0)  # let the others in, in the middle of the making
        return time.monotonic()

    async def main() -> None:
        caches.extend(
            await asyncio.gather(
                *(get_async_safe_cache("shared", clock=counting_clock) for _ in range(20)),
                *(get_async_safe_cache("other") for _ in range(5)),
            )
        )

    def program() -> None:
        begin.wait(PATIENCE)
        asyncio.run(main())

    threads = [threading.Thread(target=program, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(caches) == 200
    assert {cache.name for cache in caches} == {"shared", "other"}
    assert len({id(cache) for cache in caches}) == 2
    asyncio.run(caches[0].aclose())


@pytest.mark.usefixtures("_no_named_caches")
async def test_a_named_cache_is_opened_again_by_asking_for_it() -> None:
    cache = await get_async_safe_cache("shared", max_entries=5)
    await cache.set("key", 1)
    await cache.aclose()
    assert await get_async_safe_cache("shared") is cache
    assert not cache.closed
    assert await cache.get("key") is None
    assert cache.health()["background"]["sweeper"]["running"]
    await cache.aclose()


@pytest.mark.usefixtures("_no_named_caches")
async def test_a_named_cache_cannot_be_had_with_other_options() -> None:
    cache = await get_async_safe_cache("shared", max_entries=5, default_ttl=60)
    assert await get_async_safe_cache("shared", max_entries=5) is cache
    others: list[dict[str, Any]] = [{"max_entries": 6}, {"jitter": 0.5}, {"default_ttl": None}]
    for other in others:
        with pytest.raises(ValueError, match=f"'shared'.*{next(iter(other))}"):
            await get_async_safe_cache("shared", **{"max_entries": 5} | other)
    with pytest.raises(TypeError):
        await get_async_safe_cache("new", no_such_option=1)
    with pytest.raises(TypeError):
        await get_async_safe_cache(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_entries"):
        await get_async_safe_cache("new", max_entries=-1)
    assert await get_async_safe_cache("new", max_entries=1) is not cache
    for name in ("shared", "new"):
        await (await get_async_safe_cache(name)).aclose()


# -- whole programs


def run_program(program: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_program_that_closes_its_cache_leaves_nothing() -> None:
    done = run_program("""
import asyncio, gc, threading
from async_safe_cache import AsyncSafeCache, CacheClosedError, race_safe_cached
cache = AsyncSafeCache()

@race_safe_cached(cache, ttl=5)
async def f(x):
    await asyncio.sleep(0.001 if x % 2 else 60)
    if x % 3 == 0:
        raise ValueError(x)
    return x

@race_safe_cached(cache)
def g(x):
    return x

async def main(drain):
    await cache.start()
    quick = await asyncio.gather(*(f(x) for x in range(1, 100, 2)), return_exceptions=True)
    assert [type(each) for each in quick[:3]] == [int, ValueError, int]
    assert await cache.refresh(g, 1) == 1
    slow = [asyncio.create_task(f(x)) for x in range(0, 100, 2)]
    await asyncio.sleep(0.01)
    slow[0].cancel()
    await cache.aclose(drain=drain, timeout=0.05)
    assert asyncio.all_tasks() - set(slow) == {asyncio.current_task()}
    for answer in await asyncio.gather(*slow, return_exceptions=True):
        assert isinstance(answer, (CacheClosedError, asyncio.CancelledError)), answer

for drain in (False, True):
    asyncio.run(main(drain))
gc.collect()
print("done")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_program_that_never_closes_its_cache_ends_in_silence_too() -> None:
    done = run_program("""
import asyncio
from async_safe_cache import AsyncSafeCache, race_safe_cached
cache = AsyncSafeCache()

@race_safe_cached(cache, on_abandon="finish")
async def f(x):
    await asyncio.sleep(60 if x else 0)
    return x

async def main():
    await cache.start()
    assert await f(0) == 0
    tasks = [asyncio.create_task(f(x)) for x in range(1, 50)]
    await asyncio.sleep(0.01)

asyncio.run(main())
asyncio.run(main())
print("done")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_an_interrupt_from_the_keyboard_ends_a_program_with_a_hundred_loads() -> None:
    program = """
import asyncio
from async_safe_cache import AsyncSafeCache, race_safe_cached
cache = AsyncSafeCache()

@race_safe_cached(cache)
async def f(x):
    if x == 99:
        print("loading", flush=True)
    await asyncio.sleep(60)

async def main():
    async with cache:
        await asyncio.gather(*(f(x % 100) for x in range(300)))

try:
    asyncio.run(main())
finally:
    assert cache._engine.flights.running == {}
    cache.check()
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "loading\n"
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=PATIENCE)[1]
            assert time.monotonic() - begin < 2
            assert process.returncode == -signal.SIGINT
            assert errors.rstrip().endswith("KeyboardInterrupt")
            assert "never retrieved" not in errors
            assert "Warning" not in errors
        finally:
            process.kill()
