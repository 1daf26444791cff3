"""What an attack on the whole has found: each test is one that got through."""

import asyncio
import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    CacheClosedError,
    CacheWarmingStrategy,
    LoadCancelledError,
    LoadContext,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, run_virtual, settle

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


class Finaliser:
    """A cycle whose finaliser calls *hook*, wherever the collector happens to run."""

    def __init__(self, hook: Callable[[], object]) -> None:
        self.hook = hook
        self.itself = self

    def __del__(self) -> None:
        self.hook()


@contextmanager
def collected_after(allocations: int) -> Generator[None]:
    """Let the collector run after so many *allocations* in this block."""
    before = gc.get_threshold()
    gc.freeze()  # or each collection would walk through all that the tests hold
    gc.set_threshold(allocations, 1_000, 1_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.collect()
        gc.unfreeze()


# -- finalisers


def test_a_finaliser_inside_a_call_leaves_the_popular_calls_sound() -> None:
    """It took in a call of its own while another was taken in: one more than the limit."""
    cache = AsyncSafeCache()
    strategy = CacheWarmingStrategy(cache, popular=8)
    calls = 0

    @race_safe_cached(cache, "call")
    def call(numbers: tuple[int]) -> int:
        return numbers[0]

    def read() -> None:
        """Hit by the long way, which no load belongs to: a tuple is no plain argument."""
        nonlocal calls
        calls += 1
        call((calls % 50,))

    for _ in range(50):
        read()
    for _ in range(3):
        for allocations in range(1, 60):
            with collected_after(allocations):
                Finaliser(read)
                read()
            cache.check()
    assert strategy.stats()["registered"] == 0


@pytest.mark.timeout(60)
def test_a_finaliser_inside_a_prediction_does_not_wait_for_it() -> None:
    """Its call was a hit, which waited for the lock that its own thread held: for ever."""

    async def main() -> None:
        cache = AsyncSafeCache()
        strategy = CacheWarmingStrategy(cache)

        @race_safe_cached(cache, "call")
        def call(number: int) -> int:
            return number

        for number in range(9):
            call(number)
        await strategy.start_background_refresh(predictive=True)
        for allocations in range(1, 40):
            for number in random.Random(allocations).choices(range(9), k=40):
                with collected_after(allocations):
                    Finaliser(lambda: call(1))
                    call(number)
        await strategy.stop()
        await cache.aclose()

    run_virtual(main())


# -- forks


@needs_fork
def test_a_child_born_in_the_middle_of_a_prediction_does_not_wait_for_it() -> None:
    """Another thread of the parent held its lock then, and is not there to let it go."""
    cache = AsyncSafeCache()
    strategy = CacheWarmingStrategy(cache)
    started, ended = threading.Event(), threading.Event()

    @race_safe_cached(cache, "call")
    def call(number: int) -> int:
        return number

    async def predict() -> None:
        await strategy.start_background_refresh(predictive=True)
        started.set()
        while not ended.is_set():
            await asyncio.sleep(0.001)
        await strategy.stop()
        await cache.aclose()

    def read() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            call(number % 50)

    threads = [threading.Thread(target=work) for work in (lambda: asyncio.run(predict()), read)]
    interval = sys.getswitchinterval()
    threads[0].start()
    started.wait()
    threads[1].start()
    sys.setswitchinterval(1e-5)
    try:
        codes = [_forked(lambda: call(1)) for _ in range(30)]
    finally:
        sys.setswitchinterval(interval)
        ended.set()
        for thread in threads:
            thread.join()
    assert set(codes) == {0}


def _forked(work: Callable[[], Any]) -> int:
    """Run *work* in a child, for 10 s at most; return its exit code."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- the end


async def _its_tasks() -> list[str]:
    """Return the names of the tasks that are left, but for the test's own."""
    await asyncio.sleep(10)
    return [task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}]


def test_a_cache_that_a_load_closes_refreshes_nothing_any_more(clock: VirtualClock) -> None:
    """The load is cancelled with all others: so was the closing, before the refresher ended."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await CacheWarmingStrategy(cache).start_background_refresh()
        with pytest.raises(CacheClosedError):
            await cache.get_or_load("key", cache.aclose)
        assert await _its_tasks() == []
        assert not cache.health()["background"]["refresher"]["wanted"]

    run_virtual(main(), clock)


def test_who_is_cancelled_while_draining_ends_the_background_work_too(
    clock: VirtualClock,
) -> None:
    """The cache was closed then, and its sweeper and refresher ran on."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await CacheWarmingStrategy(cache).start_background_refresh()
        caller = asyncio.create_task(cache.get_or_load("key", Loader(seconds=60)))
        await settle()
        closing = asyncio.create_task(cache.aclose(drain=True, timeout=60))
        await settle()
        closing.cancel()
        with pytest.raises(CacheClosedError):
            await caller
        assert await _its_tasks() == []
        assert not cache.health()["background"]["sweeper"]["wanted"]

    run_virtual(main(), clock)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
@pytest.mark.parametrize("many", [False, True])
def test_a_loader_that_raises_generator_exit_fails_in_silence(
    clock: VirtualClock, seconds: float, many: bool
) -> None:
    """It was told as an exception of a task that was never retrieved."""

    async def main() -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        cache = AsyncSafeCache(clock=clock)

        async def load(_: object = None) -> Any:
            if seconds:
                await asyncio.sleep(seconds)
            raise GeneratorExit

        with pytest.raises(LoadCancelledError):
            if many:
                await cache.get_or_load_many(["key"], load)
            else:
                await cache.get_or_load("key", load)
        await settle()
        gc.collect()
        return told

    assert run_virtual(main(), clock) == []


# -- freshness


def test_a_refresh_that_fails_brings_the_next_load_no_nearer(clock: VirtualClock) -> None:
    """From then on each read of a value that was all but new began a load behind it."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        origin = Loader("old", ValueError("down"), "new")

        @race_safe_cached(cache, "call", ttl=100, refresh_ahead=0.8)
        async def call() -> Any:
            return await origin()

        await call()
        clock.advance(10)
        with pytest.raises(ValueError, match="down"):
            await cache.refresh(call)
        clock.advance(10)
        assert await call() == "old"
        await settle()
        assert origin.calls == 2
        clock.advance(70)
        await call()
        await settle()
        assert origin.calls == 3

    run_virtual(main(), clock)


def test_who_waits_on_after_soft_timeout_and_leaves_cancels_the_load(clock: VirtualClock) -> None:
    """What was stale became too old meanwhile; the load was to go on though nobody was served."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 5}
        await cache.get_or_load("key", lambda: "old", **options)
        clock.advance(14)
        origin = Loader("new", seconds=60)
        caller = asyncio.create_task(cache.get_or_load("key", origin, soft_timeout=2, **options))
        await asyncio.sleep(5)
        assert (origin.calls, origin.ended) == (1, 0), "it joined again the load that it left"
        caller.cancel()
        await settle()
        assert origin.cancelled == 1

    run_virtual(main(), clock)


@pytest.mark.parametrize("longer", ["hard_timeout", "load_timeout"])
def test_a_cache_refuses_timeouts_that_contradict_each_other(longer: str) -> None:
    """Nothing that was given later had to do with them, so nothing ever told."""
    options: dict[str, Any] = {"soft_timeout": 5, longer: 3}
    with pytest.raises(ValueError, match=f"soft_timeout=5.0 must not be above {longer}=3.0"):
        AsyncSafeCache(**options)


@pytest.mark.parametrize("option", ["vary_on", "version", "after_close", "depends_on"])
def test_registering_takes_no_option_that_get_or_load_does_not_warm_by(option: str) -> None:
    """Each was taken; vary_on changed no key."""
    strategy = CacheWarmingStrategy(AsyncSafeCache())
    given: dict[str, Any] = {option: "call" if option == "after_close" else ()}
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        strategy.register(["key"], lambda: 1, **given)


# -- warming


class Stop(BaseException):
    """What some frameworks raise to end what they called."""


def test_a_loader_that_raises_no_exception_fails_alone(clock: VirtualClock) -> None:
    """Nobody caught that: the other calls were not warmed, and the refresher was dead."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        strategy = CacheWarmingStrategy(cache, concurrency=1)
        origin = Loader("value")

        def load(context: LoadContext) -> Any:
            if context.key == "bad":
                raise Stop
            return origin()

        strategy.register(["bad", "good"], load, every=5)
        report = await strategy.warm()
        assert [type(error.__cause__) for error in report.failed.values()] == [Stop]
        assert len(report.loaded) == origin.calls == 1
        await strategy.start_background_refresh()
        await asyncio.sleep(17)
        assert origin.calls == 1 + 3
        refresher = cache.health()["background"]["refresher"]
        assert refresher["running"]
        assert refresher["errors"] == 0
        await cache.aclose()

    run_virtual(main(), clock)
