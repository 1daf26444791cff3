"""Random programs under the explorer: a few tasks of random operations, their history checked.

A program is chosen by a number: which operations its tasks do, on which keys, with which
loader, and who is cancelled. Each is run in a few orders; each run is one checked history.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from async_safe_cache import AsyncSafeCache, race_safe_cached
from async_safe_cache.testing import FakeClock, explore, pause
from async_safe_cache.testing._history import History

KEYS = ("a", "b")
ORDERS = 4  # runs of each program
CANCELLED = 24  # runs of one whose first task is cancelled, at one await after the other
Step = tuple[str, str, bool]  # operation, key, whether its loader fails

WEIGHTS = {
    "get_or_load": 8,
    "call": 6,
    "get": 2,
    "lookup": 2,
    "get_many": 2,
    "peek": 1,
    "set": 2,
    "delete": 2,
    "expire": 1,
    "invalidate": 2,
    "refresh": 1,
    "clear": 1,
    "cache_clear": 1,
    "pause": 3,
}


class _LoadError(Exception):
    """A load that fails; equal to no other."""


class Program:
    """One random program, as a scenario for `explore`."""

    def __init__(self, number: int) -> None:
        chance = random.Random(number)
        self.name = f"program_{number}"
        operations, weights = list(WEIGHTS), list(WEIGHTS.values())

        def script() -> list[Step]:
            chosen = chance.choices(operations, weights, k=chance.randint(2, 5))
            return [(each, chance.choice(KEYS), chance.random() < 0.1) for each in chosen]

        self.scripts = {f"task-{place}": script() for place in range(chance.randint(2, 4))}
        self.victim = "task-0" if chance.random() < 0.4 else None
        self.options: dict[str, Any] = chance.choice(
            [{}, {}, {"default_ttl": 0.5}, {"max_entries": 1}, {"max_entries": 0}]
        )
        self.on_abandon = chance.choice(["cancel", "cancel", "finish"])
        self.clean_up = chance.choice([0, 0, 3])
        self.swallows = chance.random() < 0.2  # loaders give their value though they are cancelled

    async def __call__(self, clock: FakeClock) -> None:
        """Run it once, and check what was recorded."""
        run = _Run(self, clock)
        tasks = [
            asyncio.create_task(run.follow(script), name=name)
            for name, script in self.scripts.items()
        ]
        await asyncio.wait(tasks)
        await asyncio.sleep(60)  # abandoned loads end
        run.cache.check()
        assert not run.cache._engine.flights.running
        run.history.check()
        for task in tasks:
            if not task.cancelled():
                task.result()


class _Run:
    """One run of a program: a cache, a decorated function, and their history."""

    def __init__(self, program: Program, clock: FakeClock) -> None:
        self.program = program
        self.history = history = History(lossless=not program.options)
        self.cache = cache = AsyncSafeCache("random", clock=clock, **program.options)
        self.watched = history.watch(cache)
        self.failing = False

        @race_safe_cached(cache, "call", on_abandon=program.on_abandon)
        async def call(key: str) -> Any:
            return await history.loader(call.cache_key(key), self.body(self.failing))()  # type: ignore[attr-defined]

        self.call = history.function(call)

    def body(self, failing: bool) -> Callable[[], Awaitable[None]]:
        """Return what a load does on its way."""

        async def work() -> None:
            try:
                await pause(0.3)
                if failing:
                    raise _LoadError
                await pause()
            except asyncio.CancelledError:
                for _ in range(self.program.clean_up):
                    await asyncio.sleep(0)
                if not self.program.swallows:
                    raise

        return work

    async def follow(self, script: list[Step]) -> None:
        """Do the operations of one task."""
        await pause()
        for operation, key, failing in script:
            try:
                await self.step(operation, key, failing)
            except _LoadError:
                pass

    async def step(self, operation: str, key: str, failing: bool) -> None:
        """Do one operation."""
        watched, call = self.watched, self.call
        self.failing = failing
        if operation == "get_or_load":
            await watched.get_or_load(key, self.history.loader(key, self.body(failing)))
        elif operation == "call":
            await call(key)
        elif operation == "get_many":
            await watched.get_many(KEYS)
        elif operation == "peek":
            watched.peek(key)
        elif operation == "set":
            await watched.set(key, self.history.fresh(key))
        elif operation == "invalidate":
            await watched.invalidate(call, key)
        elif operation == "refresh":
            await watched.refresh(call, key)
        elif operation == "clear":
            await watched.clear()
        elif operation == "cache_clear":
            call.cache_clear()
        elif operation == "pause":
            await pause(0.6)
        else:
            await getattr(watched, operation)(key)


def programs(seed: int, many: int) -> Iterator[Program]:
    """Yield *many* programs; other seeds give others."""
    yield from map(Program, range(seed * 1_000_000, seed * 1_000_000 + many))


def check_programs(seed: int, histories: int) -> int:
    """Run programs until *histories* runs were checked; return how many were."""
    checked = 0
    for program in programs(seed, histories):
        if checked >= histories:
            break
        runs = CANCELLED if program.victim else ORDERS
        result = explore(
            program, schedules=runs, policy=("random", "fifo"), cancel=program.victim, seed=seed
        )
        checked += result.schedules
    return checked
