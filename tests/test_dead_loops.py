"""Loads whose event loop died under them, and the callers who waited elsewhere.

Where one thread tells the whole story, two loops of one virtual clock take turns.
"""

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    LoadCancelledError,
    _background,
    _dead_loops,
    race_safe_cached,
)
from async_safe_cache._dead_loops import Pulse

from .virtual import Loader, VirtualClock, VirtualLoop, run_virtual, settle

PATIENCE = 10.0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a loop be dead after a tenth of a second."""
    monkeypatch.setattr(_dead_loops, "LOOK", 0.1)
    monkeypatch.setattr(_background, "LOOK", 0.1)


@pytest.fixture
def other(clock: VirtualClock) -> Iterator[VirtualLoop]:
    """Return a loop that runs when it is told to, and is left without a clean-up."""
    loop = VirtualLoop(clock)
    yield loop
    if not loop.is_closed():
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(settle())
        loop.close()


def begin(loop: VirtualLoop, call: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """Run *call* in *loop* until it waits; then the loop stands still."""
    task = loop.create_task(call)
    loop.run_until_complete(settle())
    assert not task.done()
    return task


def abandon(loop: VirtualLoop) -> None:
    """Close *loop* as nobody should: its tasks neither end nor are cancelled."""
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.001)


class Elsewhere:
    """A thread, with what it returns or raises."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.answer: Any = None
        self.seconds = 0.0
        self._action = action
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        begun = time.monotonic()
        try:
            self.answer = self._action()
        except BaseException as error:
            self.answer = error
        self.seconds = time.monotonic() - begun

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it hangs"
        return self.answer


# -- who is told


def test_a_joiner_sees_at_once_that_the_loop_is_closed(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    cache = AsyncSafeCache(clock=clock)
    call = begin(other, cache.get_or_load("key", Loader("never", seconds=60)))
    abandon(other)

    async def main() -> None:
        begun = clock()
        assert await cache.get_or_load("key", Loader("value")) == "value"
        assert clock() == begun, "it waited for nothing"
        assert (cache.stats().misses, cache.stats().coalesced) == (2, 0), "it joined nothing"
        assert cache._engine.flights.running == {}

    run_virtual(main(), clock)
    assert not call.done()


@pytest.mark.parametrize("end", ["closed", "stopped"])
def test_who_waits_elsewhere_takes_over_from_a_dead_loop(
    clock: VirtualClock, other: VirtualLoop, end: str
) -> None:
    """Ten waiters, one new load; found dead at the first or second look, a second apart."""
    cache = AsyncSafeCache(clock=clock)
    begin(other, cache.get_or_load("key", Loader("never", seconds=60)))
    load = Loader("value", seconds=0.25)

    async def main() -> None:
        begun = clock()
        calls = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(10)]
        await settle()
        assert cache.stats().coalesced == 10
        if end == "closed":
            abandon(other)
        assert await asyncio.gather(*calls) == ["value"] * 10
        assert clock() == pytest.approx(begun + 1.25)
        assert load.calls == 1
        stats = cache.stats()
        assert (stats.misses, stats.coalesced, stats.hits) == (1, 10, 0), "each is one call"
        assert cache._engine.flights.running == {}
        assert cache._engine.guards._guards == {}

    run_virtual(main(), clock)


def test_a_late_result_answers_nobody_and_stores_nothing(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    """The loop was taken for dead, and runs again; even a loader that will not be cancelled."""
    cache = AsyncSafeCache(clock=clock)
    finish = asyncio.Event()
    cancelled = 0

    async def stubborn() -> str:
        nonlocal cancelled
        while not finish.is_set():
            try:
                await finish.wait()
            except asyncio.CancelledError:
                cancelled += 1
        return "late"

    early = begin(other, cache.get_or_load("key", stubborn))

    async def main() -> None:
        assert await cache.get_or_load("key", Loader("value")) == "value"

    run_virtual(main(), clock)
    assert not early.done()
    other.run_until_complete(settle())
    assert cancelled == 1, "nobody needs it any more"
    assert early.result() == "value", "who waited in that loop gets what is true now"
    finish.set()
    other.run_until_complete(settle())
    assert cache.peek("key") == "value"
    assert asyncio.all_tasks(other) == set()
    assert cache._engine.flights.running == {}
    stats = cache.stats()
    assert (stats.misses, stats.coalesced) == (1, 1)


def test_the_late_end_of_a_load_leaves_its_successor_alone(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    """Its clean-up ends while the load that took over still runs."""
    cache = AsyncSafeCache(clock=clock)
    early = begin(other, cache.get_or_load("key", Loader("never", seconds=60)))

    async def main() -> None:
        load = Loader("value", seconds=2)
        call = asyncio.create_task(cache.get_or_load("key", load))
        await asyncio.sleep(1.5)
        assert load.calls == 1
        thread = Elsewhere(lambda: other.run_until_complete(settle()))
        thread.result()
        (flight,) = cache._engine.flights.running
        assert cache._engine.flights.get(flight.key, None) is flight
        assert not early.done(), "it asked again, and joined the successor"
        assert len(flight.waiters) == 2
        assert await cache.get_or_load("key", load) == "value"
        assert await call == "value"
        assert load.calls == 1

    run_virtual(main(), clock)
    assert other.run_until_complete(early) == "value"
    assert (cache.stats().loads, cache.stats().load_errors) == (1, 0), "what was stopped is none"


def test_a_loop_that_runs_now_and_then_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands still at every look; that it ran in between, it proves by itself."""
    monkeypatch.setattr(_dead_loops, "LOOK", 0.25)
    cache = AsyncSafeCache()
    loop = asyncio.new_event_loop()
    finish = asyncio.Event()
    loads: list[str] = []

    async def slow() -> str:
        loads.append("slow")
        await finish.wait()
        return "slow"

    async def join() -> Any:
        return await cache.get_or_load("key", lambda: loads.append("taken over"))

    early = loop.create_task(cache.get_or_load("key", slow))
    loop.run_until_complete(settle())
    thread = Elsewhere(lambda: asyncio.run(join()))
    until(lambda: cache.stats().coalesced == 1)
    for _ in range(20):  # 0.8 s: four looks
        time.sleep(0.04)
        loop.run_until_complete(asyncio.sleep(0))
    finish.set()
    assert loop.run_until_complete(early) == "slow"
    assert thread.result() == "slow"
    assert loads == ["slow"]
    loop.close()


@pytest.mark.usefixtures("quick")
def test_a_loop_that_somebody_blocks_is_not_dead() -> None:
    """It runs, although it answers nothing for a while."""
    cache = AsyncSafeCache()

    async def slow() -> str:
        await asyncio.sleep(0.001)
        time.sleep(0.5)
        return "slow"

    async def main() -> str:
        call = asyncio.create_task(cache.get_or_load("key", slow))
        await settle()
        threads.append(Elsewhere(lambda: asyncio.run(cache.get_or_load("key", Loader("never")))))
        until(lambda: cache.stats().coalesced == 1)
        return await call

    threads: list[Elsewhere] = []
    assert asyncio.run(main()) == "slow"
    assert threads[0].result() == "slow"


def test_it_takes_a_second_of_standing_still() -> None:
    """The one test that waits for the second itself."""
    cache = AsyncSafeCache()
    loop = asyncio.new_event_loop()
    call = loop.create_task(cache.get_or_load("key", Loader("never", seconds=60)))
    loop.run_until_complete(settle())

    async def join() -> Any:
        return await cache.get_or_load("key", Loader("value"))

    thread = Elsewhere(lambda: asyncio.run(join()))
    assert thread.result() == "value"
    assert 0.99 < thread.seconds < 1.9
    assert loop.run_until_complete(call) == "value"
    loop.close()


# -- asyncio.run ends its loads


def test_the_end_of_asyncio_run_is_not_the_cancellation_of_who_waits_elsewhere() -> None:
    cache = AsyncSafeCache()
    joined = threading.Event()
    answers: list[Any] = []
    load = Loader("value")

    async def join() -> Any:
        return await asyncio.gather(*(cache.get_or_load("key", load) for _ in range(5)))

    async def near() -> None:
        try:
            answers.append(await cache.get_or_load("key", load))
        except BaseException as error:
            answers.append(type(error))
            raise

    async def main() -> None:
        tasks = [asyncio.create_task(near())]
        tasks.append(asyncio.create_task(cache.get_or_load("key", Loader("never", seconds=60))))
        await settle()
        joined.set()
        while cache.stats().coalesced < 6:
            await asyncio.sleep(0.001)

    async def first() -> None:
        leader = asyncio.create_task(cache.get_or_load("key", Loader("never", seconds=60)))
        await settle()
        await main()
        assert not leader.done()

    def elsewhere() -> Any:
        assert joined.wait(PATIENCE)
        return asyncio.run(join())

    thread = Elsewhere(elsewhere)
    asyncio.run(first())
    assert thread.result() == ["value"] * 5
    assert thread.seconds < 0.9, "it was told at once"
    assert answers == [asyncio.CancelledError], "who waited in that loop ends with it"
    assert load.calls == 1
    assert cache._engine.flights.running == {}
    assert cache.stats().load_errors == 0, "the end of a loop is no failure of the origin"


@pytest.mark.parametrize("started", [False, True], ids=["before its first step", "running"])
def test_a_load_that_a_stranger_cancels_is_told_so_in_its_own_loop(
    clock: VirtualClock, started: bool
) -> None:
    """Waiters in a living loop get an error; it would be theirs to retry."""
    cache = AsyncSafeCache("prices", clock=clock)

    async def main() -> None:
        calls = [
            asyncio.create_task(cache.get_or_load("key", Loader("value", seconds=5)))
            for _ in range(3)
        ]
        while not cache._engine.flights.running:
            await asyncio.sleep(0)
        if started:
            await settle()
        (flight,) = cache._engine.flights.running
        assert flight.task is not None
        flight.task.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [LoadCancelledError] * 3
        assert cache._engine.flights.running == {}
        assert cache.stats().load_errors == 1

    run_virtual(main(), clock)


def test_a_load_that_is_cancelled_with_its_waiters_did_not_fail(clock: VirtualClock) -> None:
    """As asyncio.run cancels all tasks at once, in any order."""
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        calls = [asyncio.create_task(cache.get_or_load("key", Loader(seconds=5))) for _ in range(3)]
        await settle()
        (flight,) = cache._engine.flights.running
        assert flight.task is not None
        flight.task.cancel()
        for call in calls:
            call.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 3
        assert (cache.stats().loads, cache.stats().load_errors) == (0, 0)

    run_virtual(main(), clock)


def test_a_load_that_cancels_itself_is_told_so_elsewhere_too() -> None:
    """Its loop lives on: to load again would end in the same way."""
    cache = AsyncSafeCache()

    async def load() -> None:
        until(lambda: cache.stats().coalesced == 1)
        raise asyncio.CancelledError

    async def main() -> None:
        call = asyncio.create_task(cache.get_or_load("key", load))
        threads.append(Elsewhere(lambda: asyncio.run(later())))
        with pytest.raises(LoadCancelledError):
            await call

    async def later() -> None:
        until(lambda: cache._engine.flights.running)
        await cache.get_or_load("key", Loader("never"))

    threads: list[Elsewhere] = []
    asyncio.run(main())
    assert type(threads[0].result()) is LoadCancelledError


def test_a_thread_takes_over_when_asyncio_run_ends_the_load_it_waits_for() -> None:
    cache = AsyncSafeCache()
    loads: list[str] = []

    @race_safe_cached(cache)
    def f(x: int) -> str:
        loads.append("here")
        return "here"

    async def main() -> None:
        key = f.cache_key(1)  # type: ignore[attr-defined]
        call = asyncio.create_task(cache.get_or_load(key, Loader("never", seconds=60)))
        await settle()
        threads.append(Elsewhere(lambda: f(1)))
        while cache.stats().coalesced < 1:
            await asyncio.sleep(0.001)
        assert not call.done()

    threads: list[Elsewhere] = []
    asyncio.run(main())
    assert threads[0].result() == "here"
    assert loads == ["here"]


@pytest.mark.parametrize("end", ["closed", "stopped"])
@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_thread_takes_over_from_a_dead_loop(
    end: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dead_loops, "LOOK", 0.5)
    cache = AsyncSafeCache()
    loop = asyncio.new_event_loop()

    @race_safe_cached(cache)
    def f(x: int) -> str:
        return "here"

    key = f.cache_key(1)  # type: ignore[attr-defined]
    call = loop.create_task(cache.get_or_load(key, Loader("never", seconds=60)))
    loop.run_until_complete(settle())
    if end == "closed" and moment == "before":
        abandon(loop)  # type: ignore[arg-type]
    thread = Elsewhere(lambda: f(1))
    if end == "closed" and moment == "while":
        until(lambda: cache.stats().coalesced == 1)
        abandon(loop)  # type: ignore[arg-type]
    assert thread.result() == "here"
    assert thread.seconds < 0.95, "the first look is at once, the second after 0.5 s"
    assert cache._engine.flights.running == {}
    if end == "stopped":
        assert loop.run_until_complete(call) == "here"
        loop.close()


# -- every way to wait


def test_the_waiters_of_a_fenced_load_are_taken_over_too(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    """It is in no registry any more, but somebody waits for it."""
    cache = AsyncSafeCache(clock=clock)
    begin(other, cache.get_or_load("key", Loader("never", seconds=60)))

    async def main() -> None:
        call = asyncio.create_task(cache.get_or_load("key", Loader("value")))
        await settle()
        await cache.delete("key")
        assert await call == "value"

    run_virtual(main(), clock)
    assert cache._engine.flights.running == {}


def test_nobody_waits_out_the_clean_up_of_a_dead_loop(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    """Its last caller left, and its loop stands still in the middle of the cancellation."""
    cache = AsyncSafeCache(clock=clock, cancel_grace=60)

    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(60)

    call = begin(other, cache.get_or_load("key", slow_to_end))
    call.cancel()
    other.run_until_complete(settle())
    (flight,) = cache._engine.flights.running
    assert flight.cancelling

    async def main() -> None:
        begun = clock()
        assert await cache.get_or_load("key", Loader("value")) == "value"
        assert clock() == pytest.approx(begun + 1)
        assert cache.stats().overlapping_loads == 0

    run_virtual(main(), clock)


def test_all_loads_of_a_dead_loop_are_taken_over_at_once(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def many(load: Loader) -> list[Any]:
        return await asyncio.gather(*(cache.get_or_load(key, load) for key in range(100)))

    begin(other, many(Loader("never", seconds=60)))

    async def main() -> None:
        begun = clock()
        assert await many(Loader("value", seconds=0.5)) == ["value"] * 100
        assert clock() == pytest.approx(begun + 1.5)

    run_virtual(main(), clock)
    assert cache._engine.flights.running == {}


def test_waiting_in_the_loads_own_loop_needs_no_timer(clock: VirtualClock) -> None:
    """A stampede in one loop pays nothing; one from elsewhere pays one timer for all."""
    cache = AsyncSafeCache()
    finish = threading.Event()

    def timers() -> int:
        scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        return sum(not each.cancelled() for each in scheduled)

    async def slow() -> str:
        while not finish.is_set():
            await asyncio.sleep(0)
        return "value"

    async def callers() -> list[int]:
        calls = [asyncio.create_task(cache.get_or_load("key", slow)) for _ in range(1_000)]
        await settle()
        most = timers()
        guards = len(cache._engine.guards._guards)
        finish.set()
        assert await asyncio.gather(*calls) == ["value"] * 1_000
        return [most, guards, timers()]

    assert asyncio.run(callers()) == [0, 0, 0]
    run_virtual(cache.delete("key"), clock)
    finish.clear()

    async def first() -> list[int]:
        call = asyncio.create_task(cache.get_or_load("key", slow))
        await settle()
        thread = Elsewhere(lambda: asyncio.run(callers()))
        await call
        return thread.result()  # type: ignore[no-any-return]

    assert asyncio.run(first()) == [1, 1, 0]
    assert cache._engine.guards._guards == {}


def test_the_last_to_leave_ends_the_look_out(clock: VirtualClock, other: VirtualLoop) -> None:
    cache = AsyncSafeCache(clock=clock)
    begin(other, cache.get_or_load("key", Loader("never", seconds=60)))

    async def main() -> None:
        calls = [asyncio.create_task(cache.get_or_load("key", Loader())) for _ in range(3)]
        await settle()
        assert len(cache._engine.guards._guards) == 1
        calls.pop().cancel()
        await settle()
        assert len(cache._engine.guards._guards) == 1
        for call in calls:
            call.cancel()
        await settle()
        assert cache._engine.guards._guards == {}
        await asyncio.sleep(5)
        assert len(cache._engine.flights.running) == 1, "its own loop still waits for it"

    run_virtual(main(), clock)


# -- the end of a cache


@pytest.mark.parametrize("drain", [False, True])
@pytest.mark.parametrize("end", ["closed", "stopped"])
def test_closing_does_not_wait_for_the_dead(
    clock: VirtualClock, other: VirtualLoop, drain: bool, end: str
) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def many() -> None:
        await cache.start()
        await asyncio.gather(
            *(cache.get_or_load(key, Loader(seconds=60)) for key in range(20)),
            return_exceptions=True,
        )

    begin(other, many())
    if end == "closed":
        abandon(other)

    async def main() -> None:
        begun = clock()
        await cache.aclose(drain=drain, timeout=10)
        assert clock() - begun <= 3, "a second for the loads, one for the sweeper"
        assert cache._engine.flights.running == {}
        await cache.start()
        assert await cache.get_or_load(1, Loader("value")) == "value"
        await cache.aclose()

    run_virtual(main(), clock)


@pytest.mark.parametrize("end", ["closed", "stopped"])
def test_closing_a_function_that_waits_does_not_wait_for_the_dead(
    clock: VirtualClock, other: VirtualLoop, end: str
) -> None:
    cache = AsyncSafeCache(clock=clock)

    @race_safe_cached(cache)
    async def f(x: int) -> None:
        await asyncio.sleep(60)

    begin(other, f(1))
    if end == "closed":
        abandon(other)

    async def main() -> None:
        begun = clock()
        await f.cache_close(wait=True)  # type: ignore[attr-defined]
        assert clock() - begun <= 1
        assert cache._engine.flights.running == {}

    run_virtual(main(), clock)


@pytest.mark.usefixtures("quick")
def test_closing_a_def_that_waits_does_not_wait_for_the_dead(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    cache = AsyncSafeCache(clock=clock)

    @race_safe_cached(cache)
    def f(x: int) -> None:
        raise AssertionError

    key = f.cache_key(1)  # type: ignore[attr-defined]
    begin(other, cache.get_or_load(key, Loader("never", seconds=60)))
    thread = Elsewhere(lambda: f.cache_close(wait=True))  # type: ignore[attr-defined]
    assert thread.result() is None
    assert cache._engine.flights.running == {}


# -- what nobody asks for again


def test_a_sweep_forgets_the_loads_of_closed_loops(
    clock: VirtualClock, other: VirtualLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits, nobody ever asks for the key; the loop and its task must not stay."""
    cache = AsyncSafeCache(clock=clock)
    begin(other, cache.get_or_load("key", Loader("never", seconds=60)))
    abandon(other)

    async def main() -> None:
        async with cache:
            assert cache.health()["cache_stats"]["in_flight"] == 1
            await asyncio.sleep(1.5)
            assert cache.health()["cache_stats"]["in_flight"] == 0

    run_virtual(main(), clock)
    gc.collect()
    assert caplog.records == []


def test_a_sweeper_whose_loop_stands_still_moves_to_a_living_one(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    """There is one again, not two, when the first loop runs on."""
    cache = AsyncSafeCache(clock=clock)
    other.run_until_complete(cache.start())
    (before,) = asyncio.all_tasks(other)

    async def main() -> None:
        assert await cache.get("key") is None
        assert cache._sweeper._task is before, "one look says nothing"
        clock.advance(0.5)
        assert await cache.get("key") is None
        assert cache._sweeper._task is before
        clock.advance(0.5)
        assert await cache.get("key") is None
        assert cache._sweeper._task in asyncio.all_tasks()
        assert cache._sweeper.running
        await cache.set("due", 1, ttl=1)
        await asyncio.sleep(2.5)
        assert cache.memory_bytes == 0, "it sweeps"
        await cache.aclose()

    run_virtual(main(), clock)
    other.run_until_complete(settle())
    assert before.cancelled()


def test_a_sweeper_stays_with_a_loop_that_runs_now_and_then(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    cache = AsyncSafeCache(clock=clock)
    other.run_until_complete(cache.start())
    (before,) = asyncio.all_tasks(other)
    for _ in range(5):
        run_virtual(cache.get("key"), clock)
        clock.advance(0.9)
        other.run_until_complete(asyncio.sleep(0))
        clock.advance(0.9)
    assert cache._sweeper._task is before
    other.run_until_complete(cache.aclose())


def test_a_sweeper_moves_at_once_when_its_loop_is_closed(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    """Also a moment after somebody looked."""
    cache = AsyncSafeCache(clock=clock)
    other.run_until_complete(cache.start())

    async def main() -> None:
        assert await cache.get("key") is None
        assert cache._sweeper._task not in asyncio.all_tasks()
        abandon(other)
        assert await cache.get("key") is None
        assert cache._sweeper._task in asyncio.all_tasks()
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_pulse_is_taken_in_the_loop_itself(clock: VirtualClock, other: VirtualLoop) -> None:
    pulse = Pulse(other)
    assert not pulse.stopped()
    other.run_until_complete(settle())
    assert not pulse.stopped(), "it ran since"
    assert pulse.stopped()
    other.close()
    assert Pulse(other).stopped()


# -- all of it at once


@pytest.mark.usefixtures("quick")
def test_loops_that_come_and_go_never_leave_a_caller_behind() -> None:
    """Four threads, one asyncio.run after the other, each ended in the middle of its loads."""
    cache = AsyncSafeCache(max_entries=4)
    ends: set[type] = set()
    stop = time.monotonic() + 1.5

    def work(seed: int) -> int:
        rng = random.Random(seed)
        runs = 0

        async def load() -> str:
            await asyncio.sleep(rng.random() * 0.01)
            return "value"

        async def call(key: int) -> None:
            try:
                assert await cache.get_or_load(key, load) == "value"
            except BaseException as error:
                ends.add(type(error))
                raise

        async def main() -> None:
            calls = [asyncio.create_task(call(rng.randrange(8))) for _ in range(20)]
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.01)
            else:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.gather(*calls)

        while time.monotonic() < stop:
            asyncio.run(main())
            runs += 1
        return runs

    threads = [Elsewhere(lambda seed=seed: work(seed)) for seed in range(4)]  # type: ignore[misc]
    runs = [thread.result() for thread in threads]
    assert all(isinstance(count, int) and count > 5 for count in runs), runs
    assert ends <= {asyncio.CancelledError}
    assert cache._engine.flights.running == {}
    assert cache._engine.guards._guards == {}
