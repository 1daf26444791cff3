"""Scenarios for the explorer: a few tasks at one cache, and what must hold in every order.

Each states its assertion in its docstring, and in `kills` the planted bugs (tests/mutants)
that it must notice. They are run by tests/test_scenarios.py, a share of the schedules each;
by `make explore`, many more; and by `make mutants`, against the planted bugs.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from anyio._backends._asyncio import CancelScope

from async_safe_cache import AsyncSafeCache, MissReason
from async_safe_cache.testing import FakeClock, pause
from async_safe_cache.testing._loop import ScheduleLoop

__all__ = ["SCENARIOS", "Lab", "Scenario", "scenario"]

MODULES = (
    *("coalescing", "fences", "cancellation", "memory", "recursion", "lifecycle", "functions"),
    *("bulk", "consistency", "freshness", "warming"),
)


class Lab:
    """What a scenario works with: caches in virtual time, a source of truth, tasks by name."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.caches: list[AsyncSafeCache] = []
        self.loads = 0  # begun
        self.running = 0
        self.most = 0  # loads that ran at the same time
        self._numbers = itertools.count(1)

    def cache(self, **options: Any) -> AsyncSafeCache:
        """Make a cache on the scenario's clock; its invariants are checked at the end."""
        made = AsyncSafeCache(f"cache-{len(self.caches)}", clock=self.clock, **options)
        self.caches.append(made)
        return made

    def fresh(self) -> int:
        """Return a number that nothing else has."""
        return next(self._numbers)

    def loader(
        self,
        value: Callable[[], Any] | None = None,
        *,
        longest: float = 0.0,
        clean_up: int = 0,
        error: BaseException | None = None,
    ) -> Callable[[], Awaitable[Any]]:
        """Return a loader that reads its value first, waits, and then returns it (or raises).

        Args:
            value: What it reads when it begins; a fresh number without it.
            longest: Seconds that its wait may take.
            clean_up: Turns of the loop that it takes to end when it is cancelled.
            error: Raised instead.
        """

        async def load() -> Any:
            self.loads += 1
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                read = self.fresh() if value is None else value()
                await pause(longest)
                if error is not None:
                    raise error
                return read
            except asyncio.CancelledError:
                for _ in range(clean_up):
                    await asyncio.sleep(0)
                raise
            finally:
                self.running -= 1

        return load

    async def together(self, **callers: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        """Run each in a task of its name, arriving in any order; return value or exception."""

        async def arrive(caller: Callable[[], Awaitable[Any]]) -> Any:
            await pause()
            return await caller()

        tasks = {
            name: asyncio.create_task(arrive(caller), name=name) for name, caller in callers.items()
        }
        await asyncio.wait(tasks.values())
        return {
            name: asyncio.CancelledError()
            if task.cancelled()
            else task.exception() or task.result()
            for name, task in tasks.items()
        }

    def finish(self) -> None:
        """Check what holds after every scenario."""
        for cache in self.caches:
            cache.check()
            assert not cache._engine.flights.running, "a flight is left"
            assert not cache._engine.flights._registry, "a registered flight is left"
            stats = cache.stats()
            assert stats.inconsistent_reads == 0, "a read met what should have been gone"
            assert stats.misses == sum(stats.misses_by_reason.values())
            assert stats.misses_by_reason[MissReason.BYPASSED] == 0
        assert not self.running, "a loader is left"


@dataclass(frozen=True)
class Scenario:
    """One scenario, ready for `explore`."""

    body: Callable[[Lab], Awaitable[None]]
    kills: tuple[str, ...]
    cancel: tuple[str, ...]
    two_tasks: bool

    @property
    def name(self) -> str:
        """Its sentence."""
        return self.body.__name__

    async def __call__(self, clock: FakeClock) -> None:
        """Run it once, and check what always holds."""
        random.seed(0)  # chance, too, is the same whenever a schedule is run again
        lab = Lab(clock)
        await self.body(lab)
        await asyncio.sleep(60)  # whatever is still ready runs first, as abandoned loads do
        lab.finish()


def _numbered(scope: object) -> int:
    """Hash a scope of anyio, in the explorer, by its number in this run.

    A task group cancels its tasks in the order of a set of these, which by their addresses
    would be another one in each run.
    """
    loop: Any = asyncio.get_running_loop()
    if not isinstance(loop, ScheduleLoop):
        return object.__hash__(scope)
    scopes: dict[int, tuple[int, object]] = vars(loop).setdefault("_scopes", {})
    return scopes.setdefault(id(scope), (len(scopes), scope))[0]


CancelScope.__hash__ = _numbered  # type: ignore[method-assign, assignment]

SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *, kills: tuple[str, ...], cancel: tuple[str, ...] = (), two_tasks: bool = False
) -> Callable[[Callable[[Lab], Awaitable[None]]], Callable[[Lab], Awaitable[None]]]:
    """Register a scenario.

    Args:
        kills: Names of planted bugs that it must notice.
        cancel: Names of tasks that are cancelled at every await, in further runs.
        two_tasks: Small enough to be run in every order.
    """

    def register(body: Callable[[Lab], Awaitable[None]]) -> Callable[[Lab], Awaitable[None]]:
        assert body.__name__ not in SCENARIOS, f"two scenarios are called {body.__name__}"
        assert body.__doc__, f"{body.__name__} must state what it asserts"
        SCENARIOS[body.__name__] = Scenario(body, kills, cancel, two_tasks)
        return body

    return register


for _module in MODULES:
    import_module(f"{__name__}.{_module}")
