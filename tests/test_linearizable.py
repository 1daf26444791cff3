"""Random concurrent use, every answer of which must fit a legal order.

The same operations are chosen by seed, in real threads (plain functions, and loops
of their own) and in the tasks of one loop. The history is checked afterwards: what a
read may see, who may join which load, and that no two loads of one key run at once.
"""

import asyncio
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, race_safe_cached
from async_safe_cache.testing._history import History, WatchedCache, WatchedFunction

from .virtual import at_once

PATIENCE = 20.0
"""Seconds after which a test gives up; none of them waits for any."""

KEYS = ("a", "b", "c")


class OriginError(Exception):
    """A load that fails, with a number of its own."""


@pytest.fixture
def _often() -> Iterator[None]:
    """Let threads change places as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class World:
    """One cache with two functions, and everything about it recorded."""

    def __init__(self, seed: int, **options: Any) -> None:
        self.chance = random.Random(seed)
        self.cache = AsyncSafeCache(**options)
        lossless = not (options.get("max_entries") or options.get("max_memory_bytes"))
        self.history = history = History(lossless=lossless)
        self.watched: WatchedCache = history.watch(self.cache)
        self.failures = 0

        @race_safe_cached(self.cache, "here")
        def here(x: str) -> Any:
            return history.loader_here(here.cache_key(x), self.work_here)()  # type: ignore[attr-defined]

        @race_safe_cached(self.cache, "later")
        async def later(x: str) -> Any:
            return await history.loader(later.cache_key(x), self.work)()  # type: ignore[attr-defined]

        self.here: WatchedFunction = history.function(here)
        self.later: WatchedFunction = history.function(later)

    def fail_sometimes(self) -> None:
        if self.chance.random() < 0.1:
            self.failures += 1
            raise OriginError(self.failures, self.chance.random())

    async def work(self) -> None:
        try:
            for _ in range(self.chance.randrange(5)):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            for _ in range(self.chance.randrange(6)):  # a clean-up that takes its time
                await asyncio.sleep(0)
            raise
        self.fail_sometimes()

    def work_here(self) -> None:
        for _ in range(self.chance.randrange(3)):
            time.sleep(0)  # lets another thread run
        self.fail_sometimes()

    def written(self, key: str) -> Any:
        return self.history.fresh(key)

    async def abandoned(self, call: Awaitable[Any], chance: random.Random) -> None:
        """Begin a call and cancel it after some turns of the loop."""
        task = asyncio.ensure_future(call)
        for _ in range(chance.randrange(5)):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass

    def finish(self) -> None:
        """Check the history, and that nothing was left over."""
        self.history.check()
        self.cache.check()
        assert self.cache._engine.flights.running == {}
        stats = self.cache.stats()
        assert stats.hits + stats.misses + stats.coalesced == stats.calls


async def anything(world: World, chance: random.Random, functions: list[WatchedFunction]) -> None:
    """Do one thing, chosen by chance."""
    watched, history = world.watched, world.history
    key = chance.choice(KEYS)
    fn = chance.choice(functions)
    load = history.loader(key, world.work)
    choice = chance.randrange(17)
    if choice < 3:
        await watched.get_or_load(key, load)
    elif choice < 6:
        value = fn(key)
        if fn is world.later:
            await value
    elif choice == 6:
        await watched.set(key, world.written(key))
    elif choice == 7:
        await watched.get(key)
    elif choice == 8:
        await watched.delete(key)
    elif choice == 9:
        await watched.invalidate(fn, key)
    elif choice == 10:
        await watched.get_many(KEYS)
    elif choice == 11:
        await watched.touch(key, None)
    elif choice == 12:
        watched.peek(key)
        fn.cache_contains(key)
    elif choice == 13:
        await world.abandoned(watched.get_or_load(key, load), chance)
    elif choice == 14:
        await world.abandoned(world.later(key), chance)
    elif choice == 15:
        await watched.refresh(fn, key)
    elif chance.random() < 0.3:
        await watched.clear()
    else:
        fn.cache_clear()


async def client(
    world: World, chance: random.Random, count: int, functions: list[WatchedFunction]
) -> None:
    for _ in range(count):
        try:
            await anything(world, chance, functions)
        except OriginError:
            pass
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)


# -- tasks of one loop


async def in_tasks(world: World, seed: int, tasks: int, count: int) -> None:
    clients = [
        client(world, random.Random(f"{seed}.{task}"), count, [world.later])
        for task in range(tasks)
    ]
    await asyncio.gather(*clients)
    while world.cache._engine.flights.running:
        await asyncio.sleep(0)


@pytest.mark.parametrize("bounds", [{}, {"max_entries": 2}, {"max_memory_bytes": 2_000}])
def test_random_tasks_of_one_loop_see_a_legal_history(bounds: dict[str, Any]) -> None:
    for seed in range(40):
        world = World(seed, **bounds)
        with asyncio.Runner(debug=False) as runner:
            runner.run(in_tasks(world, seed, tasks=6, count=25))
        world.finish()
        assert world.cache.stats().overlapping_loads == 0


def test_random_tasks_that_do_not_wait_for_a_clean_up_overlap_only_as_counted() -> None:
    counted = 0
    for seed in range(20):
        world = World(seed, cancel_grace=0, max_entries=2 if seed % 2 else None)
        with asyncio.Runner(debug=False) as runner:
            runner.run(in_tasks(world, seed, tasks=6, count=25))
        world.finish()
        counted += world.cache.stats().overlapping_loads
    assert counted > 0


# -- threads: plain functions, and event loops of their own


def in_threads(*actions: Callable[[], None]) -> None:
    """Run the actions in threads that begin together; raise the first error."""
    begin = threading.Barrier(len(actions))
    errors: list[BaseException] = []

    def run(action: Callable[[], None]) -> None:
        begin.wait(PATIENCE)
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[each], daemon=True) for each in actions]
    for thread in threads:
        thread.start()
    give_up = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, give_up - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def plain(world: World, chance: random.Random, count: int) -> None:
    """Use the cache from a thread without a loop."""
    watched, here = world.watched, world.here
    for _ in range(count):
        key = chance.choice(KEYS)
        choice = chance.randrange(12)
        try:
            if choice < 5:
                here(key)
            elif choice == 5:
                here.cache_invalidate(key)
            elif choice == 6:
                here.cache_contains(key)
            elif choice == 7:
                at_once(watched.set(key, world.written(key)))
            elif choice == 8:
                at_once(watched.delete(key))
            elif choice == 9:
                at_once(watched.get_many(KEYS))
            elif choice == 10:
                watched.peek(key)
            elif chance.random() < 0.3:
                here.cache_clear()
        except OriginError:
            pass


def looping(world: World, seed: str, count: int, functions: list[WatchedFunction]) -> None:
    """Use the cache from two tasks of a loop of this thread."""

    async def both() -> None:
        await asyncio.gather(
            *(client(world, random.Random(f"{seed}.{task}"), count, functions) for task in (0, 1))
        )
        while world.cache._engine.flights.running:
            await asyncio.sleep(0)

    with asyncio.Runner(debug=False) as runner:
        runner.run(both())


def replacing(world: World, chance: random.Random, count: int) -> None:
    """Nothing but writes and reads of one key."""
    for _ in range(count):
        at_once(world.watched.set("a", world.written("a")))
        at_once(world.watched.get("a"))
        world.watched.peek("a")
        if chance.random() < 0.2:
            at_once(world.watched.delete("a"))


def in_threads_and_loops(world: World, seed: int) -> None:
    plain_ones = [partial(plain, world, random.Random(f"{seed}.{n}"), 25) for n in range(3)]
    both = [world.here, world.later]
    loops = [partial(looping, world, f"{seed}.{n}", 12, both) for n in "xy"]
    in_threads(*plain_ones, *loops)


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize("bounds", [{}, {"max_entries": 3}])
def test_random_threads_and_event_loops_see_a_legal_history(bounds: dict[str, Any]) -> None:
    for seed in range(25):
        world = World(seed, **bounds)
        in_threads_and_loops(world, seed)
        world.finish()


@pytest.mark.usefixtures("_often")
def test_random_threads_that_replace_one_value_see_a_legal_history() -> None:
    for seed in range(15):
        world = World(seed)
        in_threads(*(partial(replacing, world, random.Random(f"{seed}.{n}"), 20) for n in range(4)))
        world.finish()
