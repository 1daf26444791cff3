"""Virtual time for tests: a real asyncio loop whose clock jumps when nothing is ready."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting for a timer, moves the clock to it."""

    def __init__(self, clock: "VirtualClock") -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            # Only another thread can wake this loop; give it a moment of real time.
            ready = super().select(5)
            if not ready:
                raise RuntimeError("deadlock: the loop has nothing to run and no timer")
            return ready
        if timeout > 0:
            self._clock.now += timeout
        return []


class VirtualClock:
    """A clock that moves when told, or when a loop of `run` would have waited."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self, clock: VirtualClock) -> None:
        self._virtual = clock
        super().__init__(_JumpingSelector(clock))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual.now


def run_virtual(main: Coroutine[Any, Any, Any], clock: VirtualClock | None = None) -> Any:
    """Run *main* as asyncio.run does, in virtual time: sleeping costs nothing."""
    virtual = clock or VirtualClock()
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(virtual)) as runner:
        return runner.run(main)


async def settle(turns: int = 10) -> None:
    """Let everything that is ready run."""
    for _ in range(turns):
        await asyncio.sleep(0)


class Loader:
    """A scripted loader: counts its calls, waits for a time, gives or raises.

    Each call takes the next result; the last one repeats. An exception is raised.
    """

    def __init__(self, *results: object, seconds: float = 0.0) -> None:
        self.results = results or ("value",)
        self.seconds = seconds
        self.calls = 0
        self.ended = 0
        self.cancelled = 0

    async def __call__(self) -> Any:
        place = min(self.calls, len(self.results) - 1)
        self.calls += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1
        result = self.results[place]
        if isinstance(result, BaseException):
            raise result
        return result


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that must not wait for anything, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("it waited")


def begin_tasks_later() -> None:
    """Let no task of the running loop run its first step while it is made."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, coro, **kwargs: asyncio.Task(coro, loop=loop, **kwargs))
