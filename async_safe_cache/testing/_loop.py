"""An event loop in virtual time that asks a chooser which ready callback runs next.

    order   whenever several callbacks are ready, the chooser picks one
    delays  asyncio's own order; the chooser says how long a step takes before it sets a
            timer, and how many turns a `pause` takes: each such run is a real asyncio run

The clock jumps to the next timer when nothing is ready. Whatever is decided is
recorded, so that the run can be repeated. There is no selector: a scenario that
asks for sockets, threads, processes or signals is refused by name.

It drives `BaseEventLoop` through the attributes `_ready` and `_scheduled`, which
are private to asyncio; tests/test_explorer.py holds them to each Python version.
"""

import asyncio
import heapq
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from enum import StrEnum
from typing import Any, Final, Protocol, cast, final

from ._clock import FakeClock

__all__ = ["Chooser", "Kind", "RealWorldError", "ScheduleLoop", "Trouble", "pause"]

_TURNS: Final = (1, 2, 3, 5)  # of the loop, that a pause takes
_SECONDS: Final = (0.25, 0.5, 1.0)  # of its longest, that a pause with a length takes
_SLOWNESS: Final = (0.0, 0.1, 0.3, 0.6)  # of a timer's delay, that passes before it is set


class Kind(StrEnum):
    """What is wrong with a run."""

    ERROR = "error"
    DEADLOCK = "deadlock"
    LIVELOCK = "livelock"
    LEAK = "leak"
    UNRETRIEVED = "unretrieved"
    REAL_WORLD = "real world"


class Trouble(Exception):  # noqa: N818 - carried inside the error that people see
    """A run that must not be: its kind, and the exception behind it."""

    def __init__(self, kind: Kind, text: str, cause: BaseException | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.cause = cause


class RealWorldError(RuntimeError):
    """The scenario asked for something that the explorer can neither see nor repeat."""


class Chooser(Protocol):
    """Decides one run. `reorders` chooses between the two modes above."""

    reorders: bool

    def pick(self, ready: Sequence[asyncio.Handle]) -> int:
        """Return which of at least two ready callbacks runs next."""
        ...

    def vary(self, options: int) -> int:
        """Return one of *options*, 0 being the plain one."""
        ...


@final
class _Task(asyncio.Task[Any]):
    """A task with a number, which is its hash: a set of tasks has one order in all runs."""

    ordinal = 0
    steps = 0

    def __hash__(self) -> int:
        return self.ordinal


def _owner(handle: Any) -> Any:
    return getattr(handle._callback, "__self__", None)


def owner_number(handle: asyncio.Handle) -> int:
    """Return the number of the task that *handle* runs; -1 for a plain callback."""
    owner = _owner(handle)
    return owner.ordinal if type(owner) is _Task else -1


class ScheduleLoop(asyncio.BaseEventLoop):
    """One run of one scenario.

    Args:
        chooser: Decides; see the module.
        clock: The virtual time.
        max_steps: More are a livelock.
        cancel: A task's name, and at which of its awaits it is cancelled; 0 is before it begins.
        watch: Called after each step with the loop, the label of who ran and how many were ready.

    Attributes:
        decisions: What was chosen, and of how many.
        trace: Who ran, step by step: a task's number, or that of a callback's name.
        cancelled: Whether the cancellation was delivered.
    """

    def __init__(
        self,
        chooser: Chooser,
        clock: FakeClock,
        *,
        max_steps: int,
        cancel: tuple[str, int] | None = None,
        watch: "Callable[[ScheduleLoop, asyncio.Handle, int], None] | None" = None,
    ) -> None:
        self._active = False
        super().__init__()
        self.set_debug(False)
        self.chooser = chooser
        self.clock = clock
        self.decisions: list[tuple[int, int]] = []
        self.trace: list[int] = []
        self.tasks: list[_Task] = []
        self.cancelled = False
        self.watch = watch
        self._reorders = chooser.reorders
        self._delays = not chooser.reorders
        self._cancel = cancel or ("", -1)
        self._victim: _Task | None = None
        self._names: dict[str, int] = {}
        self._max_steps = max_steps
        self._thread = threading.get_ident()
        private: Any = self
        self._queue: deque[asyncio.Handle] = private._ready
        self._timers: list[asyncio.TimerHandle] = private._scheduled
        self._trouble: Trouble | None = None

    # -- running

    def run(self, main: Coroutine[Any, Any, Any]) -> Trouble | None:
        """Run *main* to its end, and what it leaves ready; return what is wrong, if anything."""
        hooks, private = sys.get_asyncgen_hooks(), cast("Any", self)
        asyncio._set_running_loop(self)
        self._active = True
        sys.set_asyncgen_hooks(
            firstiter=private._asyncgen_firstiter_hook,
            finalizer=private._asyncgen_finalizer_hook,
        )
        task: asyncio.Task[Any] | None = None
        try:
            try:
                task = self.create_task(main, name="scenario")
                self._run_until(task)
                self._reorders = self._delays = False  # the scenario is over: no more choices
                self._run_ready()
                return self._verdict(task)
            except Trouble as trouble:
                return self._trouble or trouble
        finally:
            self._end()
            self._active = False
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(None)
            self.close()

    def _run_until(self, task: "asyncio.Task[Any]") -> None:
        ready = self._queue
        timers = self._timers
        done, pick, decisions, trace = task.done, self.chooser.pick, self.decisions, self.trace
        turn = 0  # callbacks left of this turn of the loop
        while not done():
            if not turn:
                if timers and (not ready or timers[0].when() <= self.clock.now):
                    self._take_due()
                turn = len(ready)
                if not turn:
                    raise self._deadlock()
            turn -= 1
            count = len(ready)
            if count == 1 or not self._reorders:
                handle = ready.popleft()
            else:
                choice = pick(ready)
                decisions.append((choice, count))
                handle = ready[choice]
                del ready[choice]
            if handle._cancelled:
                continue
            if len(trace) >= self._max_steps:
                raise self._livelock()
            self._step(handle, count)

    def _step(self, handle: asyncio.Handle, count: int) -> None:
        owner = _owner(handle)
        if type(owner) is _Task:
            self.trace.append(owner.ordinal)
            if not owner.steps:
                self._meet(owner)
            owner.steps += 1
            handle._run()
            if owner is self._victim and not self.cancelled:
                self._deliver(owner)
        else:
            self.trace.append(self._number(handle))
            handle._run()
        if self.watch is not None:
            self.watch(self, handle, count)

    def _number(self, handle: Any) -> int:
        callback = handle._callback
        name = getattr(callback, "__qualname__", type(callback).__name__)
        return -1 - self._names.setdefault(name, len(self._names))

    def _run_ready(self) -> None:
        """Run what is ready, but no timers."""
        ready = self._queue
        while ready:
            handle = ready.popleft()
            if not handle._cancelled:
                if len(self.trace) >= 2 * self._max_steps:
                    raise self._livelock()
                self._step(handle, 1)

    def _take_due(self) -> None:
        """Move the timers that are due among the ready; jump to the next if nothing is ready."""
        ready = self._queue
        timers = self._timers
        while timers and timers[0].cancelled():
            _pop(timers)
        if timers and not ready:
            self.clock.now = max(self.clock.now, timers[0].when())
        while timers and timers[0].when() <= self.clock.now:
            timer = _pop(timers)
            if not timer.cancelled():
                ready.append(timer)

    # -- cancelling

    def _meet(self, task: _Task) -> None:
        """Find the victim, by its name, before its first step."""
        if self._victim is None and task.get_name() == self._cancel[0]:
            self._victim = task
            if not self._cancel[1]:
                self.cancelled = True
                task.cancel()

    def _deliver(self, victim: _Task) -> None:
        """Have *victim* cancelled while it waits for the chosen time, or before its waking runs."""
        if victim.steps == self._cancel[1] and not victim.done():
            self.cancelled = True
            self._cancel_after(victim, _TURNS[self._varied(len(_TURNS))])

    def _cancel_after(self, victim: _Task, turns: int) -> None:
        if turns <= 1:
            self.call_soon(_cancel, victim)
        else:
            self.call_soon(self._cancel_after, victim, turns - 1)

    # -- deciding

    def _varied(self, options: int) -> int:
        if not self._delays:
            return 0
        choice = self.chooser.vary(options)
        self.decisions.append((choice, options))
        return choice

    def pausing(self, longest: float) -> tuple[int, float]:
        """Return how many turns of the loop a pause takes, or else how many seconds."""
        place = self._varied(len(_TURNS) + len(_SECONDS) * (longest > 0))
        if place < len(_TURNS):
            return _TURNS[place], 0.0
        return 0, longest * _SECONDS[place - len(_TURNS)]

    # -- judging

    def _verdict(self, main: "asyncio.Task[Any]") -> Trouble | None:
        error = asyncio.CancelledError() if main.cancelled() else main.exception()
        if self._trouble is not None and self._trouble.kind is Kind.REAL_WORLD:
            return self._trouble
        if error is not None:
            return Trouble(Kind.ERROR, told(error), error)
        left = [task for task in self.tasks if not task.done()]
        if left:
            return Trouble(
                Kind.LEAK,
                f"the scenario ended and left {len(left)} running: {self.waiting(left)}; "
                "await or cancel what it starts, and close the cache",
            )
        for task in self.tasks:
            if not task.cancelled() and task._log_traceback:
                error = task.exception()
                return Trouble(
                    Kind.UNRETRIEVED,
                    f"nobody asked for the exception of {task.get_name()}: {error!r}",
                    error,
                )
        return self._trouble

    def waiting(self, tasks: "list[_Task]") -> str:
        """Name the pending *tasks* and where each waits."""
        return "; ".join(f"{task.get_name()} at {location(task)}" for task in tasks)

    def _deadlock(self) -> Trouble:
        pending = [task for task in self.tasks if not task.done()]
        return Trouble(
            Kind.DEADLOCK,
            f"nothing is ready, no timer is set, and {len(pending)} wait: {self.waiting(pending)}",
        )

    def _livelock(self) -> Trouble:
        last = dict.fromkeys(reversed(self.trace[-100:]))
        names = ", ".join(self.label(number) for number in last)
        return Trouble(
            Kind.LIVELOCK,
            f"the scenario has not ended after {self._max_steps} steps; the last were of {names}. "
            "It loops for ever, or needs a larger max_steps=",
        )

    def label(self, number: int) -> str:
        """Return the name behind a number of the trace."""
        if number >= 0:
            return self.tasks[number].get_name()
        return f"{list(self._names)[-1 - number]}()"

    def _end(self) -> None:
        """Leave nothing behind: no running task, no message at collection."""
        self._reorders = self._delays = False
        self.watch = None
        self._max_steps += len(self.trace)
        for _ in range(3):  # a task may refuse twice
            pending = [task for task in self.tasks if not task.done()]
            if not pending:
                break
            for task in pending:
                task.cancel()
            try:
                self._run_ready()
            except Trouble:
                break
        for task in self.tasks:
            silenced: Any = task
            if task.done():
                silenced._log_traceback = False
            else:
                silenced._log_destroy_pending = False

    # -- what asyncio asks of a loop

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self.clock.now

    def is_running(self) -> bool:
        """Return whether a run is on."""
        return self._active

    def create_task(
        self, coro: Any, *, eager_start: bool = False, **kwargs: Any
    ) -> "asyncio.Task[Any]":
        """Start a task with a number, and a name that is the same in each run."""
        if eager_start:
            kwargs["eager_start"] = True
        if self.get_task_factory() is not None:
            return super().create_task(coro, **kwargs)
        number = len(self.tasks)
        name: str | None = kwargs.pop("name", None)
        # Known before it is made: one with eager_start runs its first step while it is.
        task = _Task.__new__(_Task)
        task.ordinal = number
        self.tasks.append(task)
        task.__init__(coro, loop=self, name=name or f"task-{number}", **kwargs)
        return task

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Set a timer; the step that does so may have taken a while."""
        if delay > 0:
            self.clock.now += delay * _SLOWNESS[self._varied(len(_SLOWNESS))]
        return self.call_at(self.clock.now + delay, callback, *args, context=context)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Do as call_soon, from this thread."""
        if threading.get_ident() != self._thread:
            raise self.refused("another thread (call_soon_threadsafe)")
        return self.call_soon(callback, *args, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Take what would be logged as trouble."""
        if self._trouble is None:
            error = context.get("exception")
            text = str(context.get("message"))
            self._trouble = Trouble(
                Kind.UNRETRIEVED, f"{text}: {error!r}" if error else text, error
            )

    def _process_events(self, event_list: Any) -> None:
        """There is no selector."""

    def _write_to_self(self) -> None:
        """Nothing sleeps that must be woken."""

    # -- what the explorer can neither see nor repeat

    def refused(self, what: str) -> RealWorldError:
        """Return the error that names *what*; the run has failed, whoever catches it."""
        text = (
            f"the scenario uses {what}, which the explorer can neither see nor repeat: "
            "put a double in its place, whose waiting is asyncio.sleep or pause()"
        )
        error = RealWorldError(text)
        self._trouble = Trouble(Kind.REAL_WORLD, text, error)
        return error


def _refuse(name: str, what: str) -> None:
    def refused(self: ScheduleLoop, *_: Any, **__: Any) -> Any:
        __tracebackhide__ = True
        raise self.refused(f"{what} (loop.{name})")

    setattr(ScheduleLoop, name, refused)


for _what, _methods in {
    "a thread": ("run_in_executor",),
    "name resolution": ("getaddrinfo", "getnameinfo"),
    "a socket": (
        "create_connection", "create_server", "create_unix_connection", "create_unix_server",
        "create_datagram_endpoint", "connect_accepted_socket", "start_tls", "sendfile",
        "sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into", "sock_sendall",
        "sock_sendto", "sock_connect", "sock_accept", "sock_sendfile",
    ),
    "a file descriptor": ("add_reader", "add_writer", "connect_read_pipe", "connect_write_pipe"),
    "a process": ("subprocess_exec", "subprocess_shell"),
    "signals": ("add_signal_handler",),
}.items():  # fmt: skip
    for _method in _methods:
        _refuse(_method, _what)


def _cancel(victim: "asyncio.Task[Any]") -> None:
    victim.cancel()


def _pop(timers: list[asyncio.TimerHandle]) -> asyncio.TimerHandle:
    timer = heapq.heappop(timers)
    cast("Any", timer)._scheduled = False
    return timer


async def pause(longest: float = 0.0) -> None:
    """Wait as for an answer from outside, which comes some turns of the loop later.

    Under the explorer's delays the number of turns varies, and with *longest*, in seconds, it
    may take up to so much virtual time instead. Elsewhere it is one turn.
    """
    loop = asyncio.get_running_loop()
    turns, seconds = loop.pausing(longest) if isinstance(loop, ScheduleLoop) else (1, 0.0)
    for _ in range(turns):
        await asyncio.sleep(0)
    if seconds:
        future = loop.create_future()
        loop.call_at(loop.time() + seconds, _answer, future)
        await future


def _answer(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions inside a group, or the one that is none."""
    inside: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for each in inside for leaf in leaves(each)]


def told(error: BaseException) -> str:
    """Return type and message of *error*, of each inside it if it is a group."""
    return "; ".join(f"{type(leaf).__name__}: {leaf}".rstrip(": ") for leaf in leaves(error))


_MACHINERY: Final = (asyncio.__path__[0], __file__)


def location(task: "asyncio.Task[Any]") -> str:
    """Return where *task* waits: in the innermost frame that is not machinery."""
    coro: Any = task.get_coro()
    best: Any = None
    while coro is not None:
        frame = next(
            (
                f
                for f in (getattr(coro, n, None) for n in ("cr_frame", "gi_frame", "ag_frame"))
                if f
            ),
            None,
        )
        if frame is None:
            break
        if best is None or not frame.f_code.co_filename.startswith(_MACHINERY):
            best = frame
        awaited = (getattr(coro, n, None) for n in ("cr_await", "gi_yieldfrom", "ag_await"))
        coro = next((each for each in awaited if each is not None), None)
    if best is None:
        return "its begin"
    code = best.f_code
    return f"{code.co_filename.rpartition('/')[2]}:{best.f_lineno} in {code.co_qualname}"
