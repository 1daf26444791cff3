"""One cache for all threads and event loops of the process."""

import asyncio
import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import async_safe_cache
from async_safe_cache import MISSING, AsyncSafeCache, race_safe_cached

from .virtual import at_once

PATIENCE = 10.0
"""Seconds after which a test gives up; none of them waits for any."""


@pytest.fixture
def _often() -> Iterator[None]:
    """Let threads change places as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def until(condition: Callable[[], object]) -> None:
    """Let other threads run until *condition* holds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0)


async def until_async(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        await asyncio.sleep(0)


def in_threads(*actions: Callable[[], Any]) -> list[Any]:
    """Run the actions in threads that begin together; return what they return or raise."""
    answers: list[Any] = [None] * len(actions)
    begin = threading.Barrier(len(actions))

    def run(place: int) -> None:
        begin.wait(PATIENCE)
        try:
            answers[place] = actions[place]()
        except BaseException as error:
            answers[place] = error

    threads = [threading.Thread(target=run, args=[n], daemon=True) for n in range(len(actions))]
    for thread in threads:
        thread.start()
    give_up = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, give_up - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return answers


# -- plain functions


def test_eight_threads_that_call_a_def_at_once_share_one_load() -> None:
    cache = AsyncSafeCache()
    loaded_in: list[int] = []

    @race_safe_cached(cache)
    def f(x: int) -> list[int]:
        loaded_in.append(threading.get_ident())
        until(lambda: cache.stats().coalesced == 7)
        return [x]

    callers: list[int] = []

    def caller() -> Any:
        callers.append(threading.get_ident())
        return f(1)

    answers = in_threads(*[caller] * 8)
    assert answers[0] == [1]
    assert {id(answer) for answer in answers} == {id(answers[0])}
    assert len(loaded_in) == 1
    assert loaded_in[0] in callers, "the first caller loads in its own thread"
    stats = cache.stats()
    assert (stats.misses, stats.coalesced, stats.hits, stats.loads) == (1, 7, 0, 1)
    assert cache._engine.flights.running == {}


def test_a_def_that_fails_raises_the_same_error_in_every_thread() -> None:
    cache = AsyncSafeCache()
    results: list[Any] = [ValueError("expected"), "value"]

    @race_safe_cached(cache)
    def f(x: int) -> Any:
        result = results.pop(0)
        if isinstance(result, ValueError):
            until(lambda: cache.stats().coalesced == 7)
            raise result
        return result

    answers = in_threads(*[lambda: f(1)] * 8)
    assert isinstance(answers[0], ValueError)
    assert {id(answer) for answer in answers} == {id(answers[0])}
    assert f(1) == "value"


def test_an_invalidation_by_another_thread_shuts_out_the_load_of_a_def() -> None:
    cache = AsyncSafeCache()
    loading, go_on = threading.Event(), threading.Event()
    versions = iter(["old", "new"])

    @race_safe_cached(cache)
    def f(x: int) -> str:
        version = next(versions)
        if version == "old":
            loading.set()
            assert go_on.wait(PATIENCE)
        return version

    early: list[str] = []
    thread = threading.Thread(target=lambda: early.append(f(1)), daemon=True)
    thread.start()
    assert loading.wait(PATIENCE)
    f.cache_invalidate(1)  # type: ignore[attr-defined]
    assert f(1) == "new", "who comes later does not wait for the old load"
    go_on.set()
    thread.join(PATIENCE)
    assert early == ["old"]
    assert f(1) == "new"


@pytest.mark.usefixtures("_often")
def test_every_call_is_a_hit_a_miss_or_a_join_under_threads() -> None:
    """The callers count their own calls."""
    cache = AsyncSafeCache(max_entries=12)

    @race_safe_cached(cache)
    def f(key: int) -> int:
        if key == 13:
            raise ValueError(key)
        return key

    @race_safe_cached(cache)
    async def g(key: int) -> int:
        await asyncio.sleep(0)
        return key

    def calls_of_defs(seed: int) -> int:
        chance = random.Random(seed)
        calls = 0
        for _ in range(1_500):
            key = chance.randrange(16)
            what = chance.randrange(20)
            if what == 0:
                f.cache_invalidate(key)  # type: ignore[attr-defined]
            elif what == 1:
                cache.peek(key)
            else:
                calls += 1
                try:
                    assert f(key) == key
                except ValueError:
                    assert key == 13
        return calls

    def calls_of_coroutines(seed: int) -> int:
        chance = random.Random(seed)

        async def caller() -> int:
            calls = 0
            for _ in range(150):
                key = chance.randrange(16)
                what = chance.randrange(20)
                if what == 0:
                    await cache.delete(cache.key_for(g, key))
                elif what < 3:
                    calls += 3
                    await cache.get_many([key, key + 1, key + 2])
                elif what < 5:
                    calls += 1
                    await cache.get(cache.key_for(f, key))
                else:
                    calls += 1
                    assert await g(key) == key
            return calls

        async def main() -> int:
            return sum(await asyncio.gather(*(caller() for _ in range(4))))

        return asyncio.run(main())

    actions = [lambda seed=seed: calls_of_defs(seed) for seed in range(4)]
    actions += [lambda seed=seed: calls_of_coroutines(seed) for seed in range(3)]
    counted = in_threads(*actions)
    assert [each for each in counted if not isinstance(each, int)] == []
    stats = cache.stats()
    assert stats.calls == sum(counted)
    assert stats.hits + stats.misses + stats.coalesced == stats.calls
    assert sum(stats.misses_by_reason.values()) == stats.misses
    assert min(stats.hits, stats.misses, stats.evictions, stats.load_errors) > 0
    assert cache._engine.flights.running == {}
    cache.check()


PACKAGE = str(Path(async_safe_cache.__file__).parent)


class AtStep:
    """Does *action* once, before the given step that the package takes in this thread.

    A step is one instruction of the interpreter: between two of them another
    thread may run.
    """

    def __init__(self, step: int, action: Callable[[], Any]) -> None:
        self.left = step
        self.action = action
        self.done = False

    def trace(self, frame: Any, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not self.done:
            self.left -= 1
            if self.left < 0:
                self.done = True
                self.action()
        return self.trace

    def __enter__(self) -> Self:
        self.before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # 3.12 asks for it before it traces any
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)


def evict_by_a_write(cache: AsyncSafeCache, _: Any) -> None:
    at_once(cache.set("new", "value"))


def evict_by_a_load(_: AsyncSafeCache, f: Any) -> None:
    assert f(100) == 100


def remove(cache: AsyncSafeCache, f: Any) -> None:
    at_once(cache.delete(cache.key_for(f, 0), cache.key_for(f, 1)))


def renew(cache: AsyncSafeCache, f: Any) -> None:
    at_once(cache.touch(cache.key_for(f, 1), 5))


def clear(cache: AsyncSafeCache, _: Any) -> None:
    at_once(cache.clear())


def forget(_: AsyncSafeCache, f: Any) -> None:
    f.cache_clear()


@pytest.mark.parametrize("write", [evict_by_a_write, evict_by_a_load, remove, renew, clear, forget])
def test_a_hit_of_another_thread_at_any_step_of_a_write_breaks_nothing(write: Any) -> None:
    """A hit takes no lock, and it moves its entry in the order that a write walks."""

    def hit_at(step: int) -> bool:
        cache = AsyncSafeCache(max_entries=4)
        f = race_safe_cached(cache)(lambda x: x)
        for x in range(4):
            f(x)

        def hit() -> None:
            for x in (0, 1):  # the oldest ones: these are moved
                if f.cache_contains(x):
                    assert f(x) == x

        with AtStep(step, hit) as trace:
            write(cache, f)
        cache.check()
        assert len(cache) <= 4
        assert cache._engine.flights.running == {}
        return trace.done

    step = 0
    while hit_at(step):
        step += 1
    assert step > 100


# -- several loops


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run *main* in a loop that refuses what another thread may not do to it."""
    return asyncio.run(main, debug=True)


def test_two_loops_share_one_load() -> None:
    cache = AsyncSafeCache()
    loads: list[int] = []

    @race_safe_cached(cache)
    async def f(x: int) -> list[int]:
        loads.append(threading.get_ident())
        await until_async(lambda: cache.stats().coalesced == 9)
        return [x]

    async def main() -> list[Any]:
        return await asyncio.gather(*(f(1) for _ in range(5)))

    one, two = in_threads(lambda: run(main()), lambda: run(main()))
    assert one[0] == [1]
    assert {id(answer) for answer in one + two} == {id(one[0])}
    assert len(loads) == 1
    assert cache.stats().misses == 1
    assert cache._engine.flights.running == {}


def test_the_last_waiter_may_leave_from_another_loop() -> None:
    """The load runs in one loop; its cancellation comes from the other."""
    cache = AsyncSafeCache()
    cancelled, joined = threading.Event(), threading.Event()

    async def load() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def leader() -> None:
        call = asyncio.create_task(cache.get_or_load("key", load))
        await until_async(joined.is_set)
        call.cancel()
        await until_async(cancelled.is_set)
        await until_async(lambda: not cache._engine.flights.running)

    async def follower() -> None:
        await until_async(lambda: cache.stats().misses == 1)
        call = asyncio.create_task(cache.get_or_load("key", load))
        await until_async(lambda: cache.stats().coalesced == 1)
        joined.set()
        (flight,) = cache._engine.flights.running
        await until_async(lambda: len(flight.waiters) == 1)
        assert not cancelled.is_set(), "this one still waits"
        call.cancel()
        await asyncio.wait([call])

    assert in_threads(lambda: run(leader()), lambda: run(follower())) == [None] * 2
    assert cancelled.is_set()
    assert cache._engine.flights.running == {}


def test_a_thread_may_wait_for_a_load_of_a_loop_and_a_loop_for_that_of_a_thread() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache)
    def f(x: str) -> str:
        until(lambda: cache.stats().coalesced == 2)
        return "by the thread"

    async def by_the_loop() -> str:
        await until_async(lambda: cache.stats().coalesced == 1)
        return "by the loop"

    async def leader() -> Any:
        return await cache.get_or_load(cache.key_for(f, "loop"), by_the_loop)

    def joiner() -> Any:
        until(lambda: cache.stats().misses == 1)
        return f("loop")

    assert in_threads(lambda: run(leader()), joiner) == ["by the loop"] * 2

    async def late() -> Any:
        await until_async(lambda: cache.stats().misses == 2)
        return await cache.get_or_load(cache.key_for(f, "thread"), by_the_loop)

    assert in_threads(lambda: f("thread"), lambda: run(late())) == ["by the thread"] * 2
    assert cache.stats().loads == 2
    assert cache._engine.flights.running == {}


@pytest.mark.usefixtures("_often")
def test_two_loops_load_every_key_once() -> None:
    cache = AsyncSafeCache()
    loaded: list[int] = []

    @race_safe_cached(cache)
    async def f(key: int) -> str:
        loaded.append(key)
        await asyncio.sleep(0)
        return f"value of {key}"

    async def main(seed: int) -> bool:
        chance = random.Random(seed)
        for _ in range(30):
            keys = [chance.randrange(200) for _ in range(20)]
            answers = await asyncio.gather(*(f(key) for key in keys))
            assert answers == [f"value of {key}" for key in keys]
        return True

    assert in_threads(*[lambda n=n: asyncio.run(main(n)) for n in range(3)]) == [True] * 3
    assert len(loaded) == len(set(loaded))
    assert cache._engine.flights.running == {}


def test_a_cache_outlives_asyncio_run() -> None:
    cache = AsyncSafeCache()
    calls = 0

    @race_safe_cached(cache)
    async def f(x: int) -> list[int]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return [x, calls]

    async def main(*keys: int) -> list[Any]:
        await cache.start()
        return await asyncio.gather(*(f(key) for key in keys))

    first = asyncio.run(main(1, 2))
    second = asyncio.run(main(2, 3))
    assert first[1] is second[0]
    assert calls == 3
    assert cache.stats().loads == 3
    assert cache._engine.flights.running == {}


@pytest.mark.parametrize("negative", [None, {KeyError: None}], ids=["", "failures remembered"])
def test_two_hundred_loops_leave_nothing_of_themselves(negative: Any) -> None:
    cache = AsyncSafeCache(negative=negative)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    @race_safe_cached(cache)
    async def f(x: int) -> int:
        await asyncio.sleep(0)
        if x % 10 == 0:
            raise KeyError(x)
        return x

    async def main(number: int) -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await cache.start()
        await asyncio.gather(f(number), f(0), f(number), return_exceptions=True)
        abandoned = asyncio.create_task(f(-number))
        await asyncio.sleep(0)
        abandoned.cancel()

    for number in range(1, 201):
        asyncio.run(main(number))
    assert cache._engine.flights.running == {}
    del main
    cache._sweeper._task = None  # the last loop's: replaced by the next loop's
    gc.collect()
    assert [each() for each in loops] == [None] * 200


def test_importing_making_and_decorating_need_no_loop_and_start_nothing() -> None:
    program = """
import threading
from async_safe_cache import AsyncSafeCache, race_safe_cached
cache = AsyncSafeCache(default_ttl=5)
@race_safe_cached(cache)
async def f(x): return x
@race_safe_cached
async def g(x): return x
@race_safe_cached(cache)
def h(x): return x
assert h(1) == 1 and len(cache) == 1 and cache.health()["status"] == "healthy"
assert threading.active_count() == 1
assert not cache.health()["background"]["sweeper"]["running"]
import asyncio
assert asyncio.run(f(1)) == 1 and asyncio.run(g(1)) == 1
assert threading.active_count() == 1
print("done")
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_sixteen_threads_with_a_loop_and_a_cache_each_do_not_meet() -> None:
    def program(number: int) -> Any:
        cache = AsyncSafeCache(f"cache {number}")

        @race_safe_cached(cache, "same prefix")
        async def f(x: int) -> tuple[int, int]:
            await asyncio.sleep(0)
            return number, x

        async def main() -> bool:
            async with cache:
                for x in range(50):
                    assert await asyncio.gather(f(x), f(x)) == [(number, x)] * 2
                stats = cache.stats()
                assert (stats.misses, stats.coalesced, stats.loads) == (50, 50, 50)
                assert len(cache) == 50
            cache.check()
            return True

        return asyncio.run(main())

    assert in_threads(*[lambda n=n: program(n) for n in range(16)]) == [True] * 16


# -- threads of the cache's own


async def test_refreshing_a_def_runs_in_a_thread_and_leaves_none() -> None:
    before = set(threading.enumerate())
    cache = AsyncSafeCache()
    loaded_in: list[threading.Thread] = []

    @race_safe_cached(cache)
    def f(x: int) -> int:
        loaded_in.append(threading.current_thread())
        if len(loaded_in) == 2:
            until(lambda: served)  # the loop goes on meanwhile
        return len(loaded_in)

    served: list[int] = []
    assert f(1) == 1
    refreshes = [asyncio.create_task(cache.refresh(f, 1)) for _ in range(3)]
    await until_async(lambda: len(loaded_in) == 2)
    served.append(f(1))
    assert await asyncio.gather(*refreshes) == [2, 2, 2]
    assert served == [1], "until it ends, others get the older value"
    assert f(1) == 2
    assert loaded_in[0] is threading.main_thread()
    assert loaded_in[1] is not threading.main_thread()
    assert cache.stats().calls == 3, "a refresh is no call"
    await cache.aclose()
    assert cache._engine.workers == set()
    assert set(threading.enumerate()) <= before


async def test_a_failing_refresh_of_a_def_reports_to_its_caller_alone() -> None:
    cache = AsyncSafeCache()
    results: list[Any] = [1, OSError("down")]

    @race_safe_cached(cache)
    def f() -> Any:
        result = results.pop(0)
        if isinstance(result, OSError):
            raise result
        return result

    assert f() == 1
    with pytest.raises(OSError, match="down"):
        await cache.refresh(f)
    assert f() == 1
    await cache.aclose()
    assert cache._engine.workers == set()


async def test_a_refresh_of_a_def_that_its_caller_left_ends_and_stores() -> None:
    """A thread cannot be cancelled."""
    cache = AsyncSafeCache()
    go_on = threading.Event()

    @race_safe_cached(cache)
    def f() -> str:
        assert go_on.wait(PATIENCE)
        return "value"

    call = asyncio.create_task(cache.refresh(f))
    await until_async(lambda: cache._engine.workers)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    go_on.set()
    await until_async(lambda: not cache._engine.workers)
    assert cache.peek(cache.key_for(f)) == "value"


# -- finalisers


INSIDE = ["store.free", "store._link", "store._unlink", "flights.land", "flights.end"]


@pytest.mark.parametrize("place", INSIDE)
def test_a_finaliser_may_call_the_cache_in_the_middle_of_a_write(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector runs it wherever it likes, also in a thread that holds the cache's lock."""
    cache = AsyncSafeCache(max_entries=8)
    engine = cache._engine
    inside = 0
    counted = 0
    errors: list[BaseException] = []

    @race_safe_cached(cache)
    def f(key: int) -> int:
        return key

    @race_safe_cached(cache)
    async def g(key: int) -> int:
        await asyncio.sleep(0)
        return key

    class Nosy:
        """In a cycle, so that the collector finds it; then it calls the cache back."""

        def __init__(self, number: int) -> None:
            self.number = number
            self.cycle = self

        def __del__(self) -> None:
            nonlocal inside, counted
            inside += engine.reentered
            counted += 1
            try:
                f.cache_invalidate(self.number)  # type: ignore[attr-defined]
                f.cache_clear()  # type: ignore[attr-defined]
                cache.peek(self.number, None)
                len(cache)
                cache.health()
                assert f(self.number) == self.number
            except BaseException as error:
                errors.append(error)

    owner, name = place.split(".")
    owner = getattr(engine, owner)
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: (gc.collect(0), original(*args))[1])

    def program() -> int:
        async def main() -> int:
            calls = 0
            for number in range(40):
                key = number % 12
                Nosy(key)
                await cache.set(key, number)
                Nosy(key)
                await cache.delete(key, key + 1)
                Nosy(key)
                assert f(key) == key
                Nosy(key)
                assert await asyncio.gather(g(key), g(key)) == [key, key]
                calls += 3
            await cache.clear()
            return calls

        return asyncio.run(main())

    gc.disable()
    try:
        (calls,) = in_threads(program)
    finally:
        gc.enable()
    gc.collect()
    assert errors == []
    assert inside >= 20, "finalisers ran inside writes"
    assert cache.stats().calls == calls + counted
    cache.check()
    assert engine.flights.running == {}
    assert not engine.later, "what was put off is done"


@pytest.mark.parametrize("write", [evict_by_a_write, renew, clear])
def test_a_write_of_a_finaliser_at_any_step_of_a_write_breaks_nothing(write: Any) -> None:
    def written_at(step: int) -> bool:
        cache = AsyncSafeCache(max_entries=4)
        f = race_safe_cached(cache)(lambda x: x)
        for x in range(4):
            f(x)

        def finaliser() -> None:
            f.cache_invalidate(1)
            f.cache_clear()
            at_once(cache.set("nested", 1))
            at_once(cache.delete("nested"))
            assert f(0) == 0

        with AtStep(step, finaliser) as trace:
            write(cache, f)
        cache.check()
        at_once(cache.set("last", 1))
        assert not cache._engine.later, "what was put off is done"
        assert at_once(cache.get("nested")) is None
        cache.check()
        assert cache._engine.flights.running == {}
        return trace.done

    step = 0
    while written_at(step):
        step += 1
    assert step > 100


def test_a_value_is_dropped_after_the_lock_is_released() -> None:
    """Its finaliser is user code: another thread must be able to use the cache meanwhile."""
    cache = AsyncSafeCache()
    served: list[bool] = []

    class Slow:
        def __del__(self) -> None:
            def elsewhere() -> None:
                with cache._engine.store.lock:
                    served.append(True)

            thread = threading.Thread(target=elsewhere, daemon=True)
            thread.start()
            thread.join(2)
            if not served:
                served.append(False)

    def dropped(write: Callable[[], Any]) -> list[bool]:
        served.clear()
        asyncio.run(write())
        return list(served)

    async def replace() -> None:
        await cache.set("key", Slow())
        await cache.set("key", 1)

    async def delete() -> None:
        await cache.set("key", Slow())
        await cache.delete("key")

    async def clear() -> None:
        await cache.set("key", Slow())
        await cache.clear()

    for write in (replace, delete, clear):
        assert dropped(write) == [True]


def test_a_value_that_is_being_replaced_is_never_missing() -> None:
    """A write takes the old value out before it publishes the new one; nobody may see the gap."""
    cache = AsyncSafeCache()

    at_once(cache.set("k", 0))
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            at_once(cache.set("k", 1))

    writer = threading.Thread(target=write)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    writer.start()
    try:
        missed, end = 0, time.monotonic() + 0.7
        while time.monotonic() < end:
            missed += sum(cache.peek("k") is MISSING for _ in range(200))
    finally:
        over.set()
        writer.join()
        sys.setswitchinterval(before)
    assert missed == 0
