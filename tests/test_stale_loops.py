"""Loads behind a value, and who reads it in other loops and threads."""

import asyncio
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, race_safe_cached

from .virtual import Loader, VirtualClock, VirtualLoop, run_virtual, settle


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


def abandon(loop: VirtualLoop) -> None:
    """Close *loop* as nobody should: its tasks neither end nor are cancelled."""
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


BEHIND = pytest.mark.parametrize(
    ("options", "age"),
    [
        pytest.param({"stale_while_revalidate": math.inf}, 12, id="stale_while_revalidate"),
        pytest.param({"refresh_ahead": 0.01}, 1, id="refresh_ahead"),
    ],
)


@BEHIND
@pytest.mark.parametrize("end", ["closed", "stopped", "in turns"])
def test_a_load_behind_in_a_loop_that_died_is_begun_again_elsewhere(
    clock: VirtualClock, other: VirtualLoop, options: dict[str, Any], age: float, end: str
) -> None:
    """Nobody waits for it, so nobody looked if its loop was alive: the value stayed for ever.

    A loop that runs in short turns, though, is not dead.
    """
    cache = AsyncSafeCache(clock=clock)
    load = Loader("old", "behind", "new", seconds=0)

    @race_safe_cached(cache, ttl=1000, **options)
    async def f(x: int) -> Any:
        return await load()

    async def begin() -> None:
        await f(1)
        clock.advance(1000 if "refresh_ahead" not in options else 100)
        load.seconds = 5000
        assert await f(1) == "old"
        await settle()
        load.seconds = 0

    other.run_until_complete(begin())
    assert load.calls == 2
    if end == "closed":
        abandon(other)

    async def main() -> None:
        answers = []
        for _ in range(8):
            answers.append(await f(1))
            await settle()
            clock.advance(0.5)
            if end == "in turns":
                turn = threading.Thread(target=other.run_until_complete, args=(settle(1),))
                turn.start()
                turn.join(30)
        if end == "in turns":
            assert (set(answers), load.calls) == ({"old"}, 2)
            return
        assert answers[-1] == "new"
        assert load.calls == 3
        # Closed: at once, or when a hit looks again; stopped: at the second look, a second later.
        assert 1 <= answers.index("new") <= (3 if end == "closed" else 6)
        assert cache._engine.flights.running == {}
        assert cache.stats().overlapping_loads == 0

    run_virtual(main(), clock)


@BEHIND
def test_a_stale_read_in_one_loop_leaves_the_refresh_to_another(
    clock: VirtualClock, options: dict[str, Any], age: float
) -> None:
    """Two threads, each with a loop of its own: one load, and both see what it brings."""
    cache = AsyncSafeCache(clock=clock)
    inside, go_on = threading.Event(), threading.Event()
    loads = 0

    @race_safe_cached(cache, ttl=10, **options)
    async def f(x: int) -> int:
        nonlocal loads
        loads += 1
        if loads == 2:
            inside.set()
            while not go_on.is_set():
                await asyncio.sleep(0.001)
        return loads

    async def first() -> int:
        assert await f(1) == 1
        await asyncio.to_thread(go_on.wait, 30)
        while cache.stats().loads < 2:
            await asyncio.sleep(0.001)
        return await f(1)

    asyncio.run(f(1))  # type: ignore[arg-type]
    clock.advance(age)
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(first())))
    thread.start()
    assert inside.wait(30)

    async def second() -> None:
        assert [await f(1) for _ in range(3)] == [1, 1, 1]
        assert loads == 2
        go_on.set()
        while cache.stats().loads < 2:
            await asyncio.sleep(0.001)
        assert await f(1) == 2

    asyncio.run(second())
    thread.join(30)
    assert answers == [2]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.coalesced, loads) == (6, 1, 0, 2)


def test_threads_with_loops_of_their_own_share_one_load_behind() -> None:
    """Real time and real threads: never two loads of a key at once, each call counted once."""
    cache = AsyncSafeCache()
    running: dict[int, int] = dict.fromkeys(range(3), 0)
    most = loads = 0

    @race_safe_cached(cache, ttl=0.002, stale_while_revalidate=math.inf, on_abandon="finish")
    async def f(x: int) -> int:
        nonlocal most, loads
        running[x] += 1
        most = max(most, running[x])
        loads += 1
        await asyncio.sleep(0.001)
        running[x] -= 1
        return x

    async def main() -> None:
        for number in range(300):
            assert await f(number % 3) == number % 3
            if number % 10 == 0:
                await asyncio.sleep(0.001)
        while cache._engine.flights.running:  # a loop that ends would end its loads
            await asyncio.sleep(0.001)

    failures: list[BaseException] = []

    def thread() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert failures == []
    assert most == 1
    stats = cache.stats()
    assert stats.calls == 1200
    assert stats.loads == loads
    assert (stats.overlapping_loads, stats.load_errors) == (0, 0)
    assert stats.stale_served > 0
