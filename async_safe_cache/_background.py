"""Supervised background work: it never dies silently and ends with the cache.

A job that fails is counted, named in health and run again at its next turn; one
whose loop died is `lost` until somebody with a live loop starts it again. Nothing
the cache promises depends on it.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import final

import anyio

from ._dead_loops import LOOK, Pulse
from ._flights import Outcome, release

__all__ = ["Background"]

_log = logging.getLogger("async_safe_cache")


@final
class Background:
    """One periodic job of a cache, in the loop that started it.

    Attributes:
        errors: Runs that failed, ever.
        failing: Runs that failed since the last good one.
        last_error: Type name of the last failure.
        last_success: Clock's time of the last good run.
        wanted: Whether it was started and not stopped.
        followers: Jobs that are looked after together with this one, which runs while any does.
        advice: What it means for people that it fails, or has stopped.
    """

    def __init__(
        self,
        name: str,
        job: Callable[[], Awaitable[None]],
        interval: float,
        clock: Callable[[], float],
        advice: str = "",
        details: Callable[[], dict[str, object]] | None = None,
    ) -> None:
        self.name = name
        self.advice = advice
        self.followers: list[Background] = []  # bounded by who adds one
        self._details = details
        self.interval = interval
        self.errors = 0
        self.failing = 0
        self.last_error: str | None = None
        self.last_success: float | None = None
        self._job = job
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._ending: list[asyncio.Task[None]] = []  # stopped, not yet ended; bounded by stop()
        self.wanted = False
        self._pulse: Pulse | None = None  # of the job's loop, while that stands still
        self._looked = 0.0
        self._lock = threading.RLock()  # several loops may start it at once

    @property
    def running(self) -> bool:
        """Whether the job's task is alive in a loop that is not closed."""
        task = self._task
        return task is not None and not task.done() and not task.get_loop().is_closed()

    def revive(self) -> None:
        """Start the job in the running loop if it should run and its loop is dead."""
        if self.followers:
            for job in tuple(self.followers):
                job.revive()
        if not self.wanted:
            return
        task = self._task
        if task is not None and not task.done():
            if not self._stands_still(task.get_loop()):
                return
            with self._lock:
                if self._task is task:
                    self._task = None
            _cancel(task)  # should that loop ever run again
        self.start()

    def _stands_still(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether *loop* is dead, as seen by whoever passes; at most one look a second."""
        if loop.is_running():
            return False
        now = self._clock()
        pulse = self._pulse
        if pulse is None or pulse.loop is not loop:
            pulse = self._pulse = Pulse(loop)
        elif now - self._looked < LOOK and not loop.is_closed():
            return False
        self._looked = now
        return pulse.stopped()

    def start(self) -> None:
        """Run the job in the running loop, unless it runs already."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self.wanted = True
            if not self.running:
                self._pulse = None
                # A context of its own: the job pins and sees no request.
                self._task = loop.create_task(
                    self._repeat(), name=f"async_safe_cache {self.name}", context=Context()
                )

    def leave_behind(self) -> list[asyncio.Task[None] | None]:
        """Forget, in a forked child, the tasks in the parent's loops, and return them.

        The next miss starts the job again, as after any loop that died.
        """
        tasks = [self._task, *self._ending]
        self._task, self._ending, self._pulse = None, [], None
        self._lock = threading.RLock()  # another thread may have held it
        self.errors = self.failing = 0
        self.last_error = self.last_success = None
        return tasks

    def succeeded(self) -> None:
        """Note a good run, of a job that goes on."""
        self.last_success = self._clock()
        self.failing = 0

    def dismiss(self) -> None:
        """Let the job end, in this very step; `stop` waits for that."""
        with self._lock:
            self.wanted = False
            task, self._task = self._task, None
            if task is not None:
                self._ending.append(task)
        if task is not None:
            _cancel(task)

    async def stop(self, timeout: float) -> None:
        """End the job; return when its task has ended, at most *timeout* seconds later.

        So does a second caller: the first may have been cancelled while it waited.
        """
        self.dismiss()
        with self._lock:
            self._ending = [
                each for each in self._ending if not (each.done() or each.get_loop().is_closed())
            ]
            ending = tuple(self._ending)
        for task in ending:
            await self._end(task, timeout)

    async def _end(self, task: asyncio.Task[None], timeout: float) -> None:
        here = asyncio.get_running_loop()
        if task.get_loop() is here:
            task.cancel()
            await asyncio.wait([task], timeout=timeout)
            return
        ended: asyncio.Future[Outcome | None] = here.create_future()

        def tell(_: object) -> None:
            here.call_soon_threadsafe(release, ended)

        def cancel() -> None:
            task.add_done_callback(tell)
            task.cancel()

        try:
            task.get_loop().call_soon_threadsafe(cancel)
        except RuntimeError:
            return  # closed in this very moment
        pulse = Pulse(task.get_loop())
        while timeout > 0 and not ended.done() and not pulse.stopped():
            await asyncio.wait([ended], timeout=min(timeout, LOOK))
            timeout -= LOOK

    async def _repeat(self) -> None:
        while True:
            await anyio.sleep(self.interval)
            try:
                await self._job()
                self.succeeded()
            except Exception as error:  # noqa: BLE001 - whatever fails, the job must go on
                self.errors += 1
                self.failing += 1
                self.last_error = type(_cause(error)).__name__
                if self.failing == 1:
                    _log.warning(
                        "the %s failed with %s; it is tried again in %s s",
                        self.name,
                        self.last_error,
                        self.interval,
                    )

    def report(self, now: float) -> dict[str, object]:
        """Return its state, JSON-ready."""
        success = self.last_success
        details = {} if self._details is None else self._details()
        return {
            "running": self.running,
            "wanted": self.wanted,
            "interval": self.interval,
            "errors": self.errors,
            "failing": self.failing,
            "last_error": self.last_error,
            "last_success_age": None if success is None else max(0.0, now - success),
            **details,
        }


def _cause(error: Exception) -> Exception:
    """Return what failed first of what a task group tells of."""
    cause: BaseException = error
    while isinstance(cause, BaseExceptionGroup):
        members: tuple[BaseException, ...] = cause.exceptions  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        cause = members[0]
    return cause if isinstance(cause, Exception) else error


def _cancel(task: asyncio.Task[None]) -> None:
    """End *task*, as soon as its loop runs."""
    try:
        task.get_loop().call_soon_threadsafe(task.cancel)
    except RuntimeError:
        pass  # it is closed, and never will
