"""The budget of background loads: how many run at once, and how many start in a second.

A *turn* is one load's share of it. Turns wait in one line, and only its head asks:

    look    first in the line, and a slot and a token free -> takes both and begins; wake the next
    leave   a load that ended, or one in the line that was cancelled -> out; wake the first

Slot and token are taken in the step in which the load begins. So who is cancelled
before has nothing to give back, and a loop that stood still cannot begin late what
was counted early. Woken and gone in one moment: who leaves wakes the next.

    slots   limit, from 1 to concurrency. A good load adds 1 / limit; an error, or a load
            slower than twice its usual time, halves it, once per round: not again until
            the loads that ran beside it have ended, for they met the same trouble
    tokens  one theoretical arrival time: over T seconds at most rate x T + max(1, rate / 10)

The internal lock is held for a few steps, and nothing waits while it is. Who leaves does
not even wait for it: the collector may close a block of a dead loop in any thread, in the
middle of anything. It hands its turn to `_left`; who holds the lock takes it out.

Source: TCP's congestion avoidance (Jacobson 1988): AIMD once per window, smoothing by an
eighth; GCRA of ATM (ITU-T I.371), a token bucket in one number.
"""

import asyncio
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from contextvars import Context
from datetime import timedelta
from math import inf
from os import getpid
from typing import Final, Self, final

from .options import _number

__all__ = ["Pace", "Turn"]

Loop = asyncio.AbstractEventLoop

SMOOTH: Final = 8
"""Good loads that the usual time is the mean of; before, none is called slow."""

QUICK: Final = 0.01
"""Seconds in which no load is slow: a busy loop alone may cost as much."""

LOOK: Final = 1.0
"""Seconds between two looks of a waiter whether the loop of another one is closed."""


@final
class Pace:
    """A budget of loads, for the tasks of any loop, bound to none.

    Args:
        concurrency: Loads at once, at most.
        rate: Load starts per second, at most; None: no limit.
        clock: Returns monotonic seconds.

    Raises:
        TypeError: *concurrency* is no int, or *rate* no number.
        ValueError: One of them is outside its range.
    """

    def __init__(self, *, concurrency: int, rate: float | None, clock: Callable[[], float]) -> None:
        self.concurrency = _check_concurrency(concurrency)
        self.rate = _check_rate(rate)
        self._clock = clock
        self._step = 1 / self.rate if self.rate else 0.0  # seconds of one token
        self._ahead = max(0.0, 0.1 - self._step)  # how early a token may be taken: the burst
        self._next = -inf  # theoretical arrival time of the next load
        self._limit = float(self.concurrency)
        self._usual = 0.0  # seconds of a good load, smoothed
        self._measured = 0  # good loads, up to SMOOTH
        self._errors = 0
        self._slowed = 0
        # Every turn is in the dict of its loop, and either in the line or running.
        self._turns: dict[Loop, dict[Turn, None]] = {}
        self._line: OrderedDict[Turn, None] = OrderedDict()  # bounded by the tasks that wait
        self._running: dict[Turn, None] = {}  # bounded by concurrency
        self._round: set[Turn] = set()  # of _running: what ran at the last halving
        self._left: deque[Turn] = deque()  # bounded by the turns: drained with each change
        self._lock = threading.Lock()
        self._process = getpid()

    def turn(self) -> "Turn":
        """Return a block for one load: `async with pace.turn() as turn:`."""
        return Turn(self)

    @property
    def limit(self) -> float:
        """How many loads may run at once now; its whole part counts."""
        return self._limit

    @property
    def running(self) -> int:
        """How many loads run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many loads wait for their turn."""
        return len(self._line)

    def report(self) -> dict[str, object]:
        """Return its state, JSON-ready."""
        return {
            "concurrency": self.concurrency,
            "limit": self._limit,
            "running": len(self._running),
            "waiting": len(self._line),
            "rate": self.rate,
            "errors": self._errors,
            "slowed": self._slowed,
        }

    def _look(self, turn: "Turn", loop: Loop) -> float:
        """Begin *turn* if it may, and return 0; or return for how many seconds to wait."""
        now = self._clock()
        if self._process != getpid():
            self._leave_behind()
        with self._lock:
            changed = self._take_out()
            if turn not in self._turns.setdefault(loop, {}):
                self._turns[loop][turn] = self._line[turn] = None
            several = len(self._turns) > 1
            if several:
                changed |= self._bury()
            seconds = self._wait(turn, now)
            if seconds <= 0:
                del self._line[turn]
                self._running[turn] = None
                self._next = max(self._next, now) + self._step
                turn.begun = now
                changed = True
            else:
                turn.waiter = loop.create_future()
            first = self._first() if changed else None
        if first is not None:
            first.wake()
        self._drain()
        return min(seconds, LOOK) if several else seconds

    def _leave_behind(self) -> None:
        """Forget, in a forked child, the turns of the parent."""
        self._lock = threading.Lock()  # another thread may have held it
        self._turns, self._line, self._running, self._round = {}, OrderedDict(), {}, set()
        self._left.clear()
        self._process = getpid()

    def _free(self) -> bool:
        """Locked. Tell whether one more load may run."""
        return len(self._running) + 1 <= self._limit

    def _first(self) -> "Turn | None":
        """Locked. Return the head of the line, if there is a slot for it."""
        return next(iter(self._line), None) if self._free() else None

    def _wait(self, turn: "Turn", now: float) -> float:
        """Locked. Return the seconds until there is a token for *turn*; inf: it will be woken."""
        if turn is not self._first():
            return inf
        return self._next - self._ahead - now if self._step else 0.0

    def _bury(self) -> bool:
        """Locked. Take out the turns of loops that are closed. O(loops + taken out)."""
        for loop in [each for each in self._turns if each.is_closed()]:
            self._left.extend(self._turns[loop])
        return self._take_out()

    def _take_out(self) -> bool:
        """Locked. Take out all that left, and tell whether any did."""
        changed = bool(self._left)
        while self._left:
            turn = self._left.popleft()
            loop = turn.loop
            if loop is None or turn not in self._turns.get(loop, ()):
                continue  # it left before it was in, or was buried
            del self._turns[loop][turn]
            if not self._turns[loop]:
                del self._turns[loop]
            if turn in self._line:
                del self._line[turn]
            else:
                del self._running[turn]
                self._learn(turn)
        return changed

    def _learn(self, turn: "Turn") -> None:
        """Locked. Let what *turn*, which ran, met change the limit."""
        met_before = turn in self._round
        self._round.discard(turn)
        if turn.failing:
            self._errors += 1
        elif turn.seconds is None:
            return  # cancelled: tells nothing of the origin
        else:
            bound = max(2 * self._usual, QUICK) if self._measured == SMOOTH else inf
            # An outlier counts as the bound: the usual time follows an origin that became
            # slow for good, step by step, and no hung load makes the next slow ones usual.
            self._measured = min(self._measured + 1, SMOOTH)
            self._usual += (min(turn.seconds, bound) - self._usual) / self._measured
            if turn.seconds <= bound:
                self._limit = min(self._limit + 1 / self._limit, float(self.concurrency))
                return
            self._slowed += 1
        if not met_before and not self._round:
            self._limit = max(1.0, self._limit / 2)
            self._round.update(self._running)

    def _leave(self, turn: "Turn") -> None:
        """Take *turn* out, whether it waits or runs; from anywhere, at any moment."""
        self._left.append(turn)
        self._drain()

    def _drain(self) -> None:
        """Take out what left, unless somebody else has the lock, who will."""
        while self._left and self._lock.acquire(blocking=False):
            try:
                self._take_out()
                first = self._first()
            finally:
                self._lock.release()
            if first is not None:
                first.wake()


@final
class Turn:
    """One load's share of a pace: a block that waits, then runs. Entered once.

    Attributes:
        loop: Of the task that entered it.
        waiter: What that task waits for, while the turn is in the line.
        begun: Clock's time at which the load began.
        failing: Whether the load counts as an error.
        skipped: Whether there was no load.
        seconds: Of the load, once it has ended by itself.
    """

    __slots__ = ("_pace", "begun", "failing", "loop", "seconds", "skipped", "waiter")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.loop: Loop | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.begun = 0.0
        self.failing = False
        self.skipped = False
        self.seconds: float | None = None

    def failed(self) -> None:
        """Count the load as an error, though no exception leaves the block."""
        self.failing = True

    def skip(self) -> None:
        """Count it as no load at all: it turned out not to be needed."""
        self.skipped = True

    def wake(self) -> None:
        """Let the task that waits look again; from any thread."""
        if self.loop is not None and self.waiter is not None:
            try:
                self.loop.call_soon_threadsafe(_release, self.waiter)
            except RuntimeError:
                pass  # the loop is closed: who comes next buries the turn

    async def __aenter__(self) -> Self:
        if self.loop is not None:
            raise RuntimeError("this turn was entered before; call turn() for each load")
        self.loop = loop = asyncio.get_running_loop()
        try:
            while (seconds := self._pace._look(self, loop)) > 0:
                await self._sleep(loop, seconds)
        except BaseException:
            self._pace._leave(self)
            raise
        return self

    async def _sleep(self, loop: Loop, seconds: float) -> None:
        """Wait until woken, at most so many *seconds*."""
        waiter, timer = self.waiter, None
        if waiter is None:
            return
        if seconds < inf:
            # A context of its own: a cancelled timer may stay in the loop until its time.
            timer = loop.call_later(seconds, _release, waiter, context=Context())
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.failing = True
        try:
            if kind is None and not self.skipped:
                self.seconds = self._pace._clock() - self.begun
        finally:
            self._pace._leave(self)


def _release(waiter: "asyncio.Future[None]") -> None:
    """Wake *waiter*, unless it is done."""
    if not waiter.done():
        waiter.set_result(None)


def _check_concurrency(value: object) -> int:
    meaning = "an int from 1: how many loads may run at once"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"concurrency must be {meaning}, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"concurrency={value} must be {meaning}")
    return min(value, sys.maxsize)  # a float holds it, and it is as good as no bound


def _check_rate(value: object) -> float | None:
    if value is None:
        return None
    meaning = "a finite number of load starts per second above 0, or None for no limit"
    if isinstance(value, timedelta):
        raise TypeError(f"rate must be {meaning}, not timedelta")
    rate = _number("rate", value, meaning)
    if not 0 < rate < inf:
        raise ValueError(f"rate={value!r} must be {meaning}")
    return rate
