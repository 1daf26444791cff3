"""The explorer: run a scenario in many orders, and show the shortest one that fails.

    explore   schedule after schedule, each on a loop of its own, until one fails
    shrink    leave out choices as long as the run still fails in the same way
    replay    run one recorded schedule again

What it is not: a proof. It sees one thread, chooses only where coroutines give up
control, and says how many different schedules it has run and whether that was all.
Outside asyncio's own order (policy "fifo") a failing schedule is one that asyncio's
promises about order may rule out; read its timeline before you believe it.
"""

import asyncio
import inspect
import re
import socket
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast, final

from async_safe_cache._flights import running_loop

from ._clock import FakeClock
from ._loop import Chooser, Kind, ScheduleLoop, Trouble, leaves, location
from ._policies import Exhaustive, Policy, PolicyName, Recorded, alternating

__all__ = ["Exploration", "ExplorationError", "ScheduleMismatchError", "explore", "replay"]

Scenario = (
    Callable[[], Coroutine[Any, Any, object]] | Callable[[FakeClock], Coroutine[Any, Any, object]]
)
_SHOWN: Final = 60  # lines of a timeline; the last are the telling ones
_SHORTEST: Final = "the shortest failing schedule that was found"
_BARREN: Final = 8  # runs after which a cancellation that was never delivered is not tried again


@final
@dataclass(frozen=True, slots=True)
class Exploration:
    """What was explored, without a failure.

    Attributes:
        schedules: Runs of the scenario.
        distinct: Runs that differed in who ran when.
        exhausted: Whether these are all that the policies can choose (within their bound).
        cancel_points: Runs in which the chosen task was cancelled at one of its awaits.
        steps: Callbacks run in all.
        longest: Callbacks of the longest run.
        fingerprint: Depends on every step of every run: equal for equal explorations.
    """

    schedules: int
    distinct: int
    exhausted: bool
    cancel_points: int
    steps: int
    longest: int
    fingerprint: int

    def __str__(self) -> str:
        cancelled = f", {self.cancel_points:,} cancellations" if self.cancel_points else ""
        return (
            f"explored {self.schedules:,} schedules, {self.distinct:,} distinct{cancelled}, "
            f"exhausted: {'yes' if self.exhausted else 'no'}"
        )


class ExplorationError(AssertionError):
    """A schedule under which the scenario fails.

    Attributes:
        kind: "error", "deadlock", "livelock", "leak", "unretrieved" or "real world".
        cause: The exception behind it, if there is one.
        schedule: The shortest failing schedule that was found, for `replay`.
        timeline: Who ran when, in that schedule.
        explored: Schedules run until the first that failed, this one included.
    """

    def __init__(
        self, trouble: Trouble, name: str, schedule: str, timeline: str, explored: int, how: str
    ) -> None:
        self.kind = str(trouble.kind)
        self.cause = trouble.cause
        self.schedule = schedule
        self.timeline = timeline
        self.explored = explored
        super().__init__(
            f"{name} fails ({trouble.kind}): {trouble}\n"
            f"found {how}:\n\n"
            f"{timeline}\n\n"
            f"to run it again:  replay({name}, {schedule!r})"
        )


class ScheduleMismatchError(ValueError):
    """A recorded schedule does not fit the scenario any more."""


@final
@dataclass(frozen=True, slots=True)
class _Schedule:
    """The decisions of one run, and what it takes to repeat them."""

    reorders: bool
    cancel: tuple[str, int] | None
    decisions: tuple[tuple[int, int], ...]
    trace: int | None = None

    def __str__(self) -> str:
        words = ["order" if self.reorders else "delays"]
        if self.cancel is not None:
            words.append(f"{urllib.parse.quote(self.cancel[0])}@{self.cancel[1]}")
        last, times = "", 0
        for choice, options in (*self.decisions, (-1, -1)):
            word = f"{choice}/{options}"
            if word == last:
                times += 1
                continue
            if times:
                words.append(last if times == 1 else f"{last}*{times}")
            last, times = word, 1
        if self.trace is not None:
            words.append(f"#{self.trace:016x}")
        return " ".join(words)

    @staticmethod
    def parse(text: str) -> "_Schedule":
        mode, *words = text.split() or [""]
        cancel: tuple[str, int] | None = None
        decisions: list[tuple[int, int]] = []
        trace: int | None = None
        for word in words:
            if found := re.fullmatch(r"(\d+)/(\d+)(?:\*(\d+))?", word):
                decision = (int(found[1]), int(found[2]))
                decisions += [decision] * int(found[3] or 1)
            elif found := re.fullmatch(r"#([0-9a-f]+)", word):
                trace = int(found[1], 16)
            elif found := re.fullmatch(r"(\S+)@(\d+)", word):
                cancel = (urllib.parse.unquote(found[1]), int(found[2]))
            else:
                raise ValueError(f"{word!r} is no part of a schedule; pass what explore() printed")
        if mode not in ("order", "delays"):
            raise ValueError(
                f"a schedule begins with 'order' or 'delays', not {mode!r}; "
                "pass what explore() printed"
            )
        return _Schedule(mode == "order", cancel, tuple(decisions), trace)


def _digest(trace: Sequence[int]) -> int:
    return hash(tuple(trace)) & 0xFFFF_FFFF_FFFF_FFFF  # ints only: the same in every process


@final
class _Runner:
    """Runs one scenario, as often as asked."""

    def __init__(self, scenario: Scenario, max_steps: int) -> None:
        self._scenario: Any = scenario
        self._takes_clock = _takes_clock(scenario)
        self._max_steps = max_steps

    def run(
        self,
        chooser: Chooser,
        cancel: tuple[str, int] | None,
        watch: Callable[[ScheduleLoop, asyncio.Handle, int], None] | None = None,
    ) -> tuple[ScheduleLoop, Trouble | None]:
        clock = FakeClock()
        loop = ScheduleLoop(chooser, clock, max_steps=self._max_steps, cancel=cancel, watch=watch)
        return loop, loop.run(self._scenario(clock) if self._takes_clock else self._scenario())

    def again(
        self, schedule: _Schedule, watch: Any = None, *, strict: bool = False
    ) -> tuple[ScheduleLoop, Trouble | None, Recorded]:
        chooser = Recorded(schedule.decisions, reorders=schedule.reorders, strict=strict)
        loop, trouble = self.run(chooser, schedule.cancel, watch)
        return loop, trouble, chooser


def _takes_clock(scenario: Any) -> bool:
    called: Any = getattr(cast("Any", type(scenario)), "__call__", None)  # noqa: B004 - an object may be one, too
    if not inspect.iscoroutinefunction(scenario) and not inspect.iscoroutinefunction(called):
        raise TypeError(
            f"scenario must be a coroutine function (async def), not {type(scenario).__name__}: "
            "it is called anew for every schedule"
        )
    try:
        signature = inspect.signature(scenario)
        wanted = [
            each
            for each in signature.parameters.values()
            if each.default is each.empty
            and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        ]
        signature.bind(*wanted[:1])
    except TypeError:
        raise TypeError(
            f"scenario {scenario!r} must take nothing, or the run's FakeClock alone"
        ) from None
    return len(wanted) == 1


def _name(scenario: Any) -> str:
    name = getattr(scenario, "__qualname__", None) or getattr(scenario, "name", None)
    return str(name or type(scenario).__name__).rpartition("<locals>.")[2]


def explore(
    scenario: Scenario,
    *,
    schedules: int = 500,
    seed: int = 0,
    policy: PolicyName | Exhaustive | Sequence[PolicyName | Exhaustive] = ("fifo", "random", "pct"),
    cancel: str | None = None,
    max_steps: int = 10_000,
    max_shrinks: int = 1_000,
) -> Exploration:
    """Run *scenario* under many schedules; raise at the first that fails.

    Args:
        scenario: A coroutine function of nothing, or of the run's `FakeClock`. It is called
            anew for each schedule, makes all it uses, and asserts what must hold. It runs in
            virtual time: sleeping costs nothing.
        schedules: How many runs, at most.
        seed: The same seed gives the same runs, within one version of Python and of this library.
        policy: "fifo": asyncio's own order, in which pauses and the time before a timer is set
            vary, so each failure is a real one. "random": any order. "pct": random priorities.
            "exhaustive", or `Exhaustive(preemptions=2)`: every order with so many departures
            from asyncio's. A sequence is alternated.
        cancel: The name of a task that the scenario starts: it is cancelled at each of its
            awaits, and before it begins; at one of them per schedule.
        max_steps: A run of more callbacks is a livelock.
        max_shrinks: Runs spent to find a shorter failing schedule.

    Raises:
        ExplorationError: A schedule failed: an exception, a deadlock, a livelock, tasks left
            running, an exception that nobody retrieved, or the real world (sockets, threads,
            processes, `time.sleep`) was asked for. The same scenario run twice in the same
            order must also take the same steps.
        TypeError: *scenario* is no coroutine function, or an option has a wrong type.
        ValueError: An option is out of its range, or no task is named *cancel*.
        RuntimeError: A loop is running in this thread.

    Complexity: each run costs what its steps cost; about 10 us a step and 50 us a run.
    """
    _check_count("schedules", schedules)
    _check_count("max_steps", max_steps)
    _check_count("max_shrinks", max_shrinks, least=0)
    if isinstance(seed, bool) or not isinstance(seed, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"seed must be an int, not {type(seed).__name__}")
    if cancel is not None and not (cancel and isinstance(cancel, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"cancel must be the name of a task, or None, not {cancel!r}")
    runner = _Runner(scenario, max_steps)
    policies = alternating(policy)
    name = _name(scenario)
    with _alone():
        return _explore(runner, name, policies, schedules, seed, cancel, max_shrinks, policy)


def _explore(
    runner: _Runner,
    name: str,
    policies: list[Policy],
    schedules: int,
    seed: int,
    cancel: str | None,
    max_shrinks: int,
    policy: object,
) -> Exploration:
    # A lane is a policy, with the await at which the victim is cancelled. Round robin.
    lanes: deque[tuple[Policy, int | None, list[int]]] = deque((p, None, [0]) for p in policies)
    furthest = -1
    if cancel is not None:
        lanes.extend((each, 0, [0]) for each in alternating(policy))
        furthest = 0
    seen: set[int] = set()
    count = steps = longest = cancel_points = fingerprint = 0
    while lanes and count < schedules:
        policy_now, point, runs = lanes.popleft()
        target = None if cancel is None or point is None else (cancel, point)
        loop, trouble = runner.run(policy_now.chooser(count, seed), target)
        count += 1
        taken = len(loop.trace)
        steps += taken
        longest = max(longest, taken)
        digest = _digest(loop.trace)
        fingerprint = hash((fingerprint, digest))
        seen.add(digest)
        found = _Schedule(loop.chooser.reorders, target, tuple(loop.decisions), digest)
        if trouble is not None:
            how = f"by policy {policy_now.name!r}, seed {seed}, at schedule {count:,}; {_SHORTEST}"
            raise _failure(runner, name, found, trouble, max_shrinks, count, how) from trouble.cause
        if count == 1:
            _require_repeatable(runner, name, found)
        policy_now.learn(loop.decisions, taken)
        runs[0] += 1
        if point is not None:
            cancel_points += loop.cancelled
            if not point and not loop.cancelled:
                names = ", ".join(task.get_name() for task in loop.tasks[1:]) or "none"
                raise ValueError(
                    f"no task named {cancel!r} was started; the scenario's are: {names}"
                )
            if loop.cancelled and point == furthest:
                furthest += 1
                lanes.extend((each, furthest, [0]) for each in alternating(policy))
            barren = not loop.cancelled and runs[0] >= _BARREN and point == furthest
        else:
            barren = False
        if not policy_now.exhausted and not barren:
            lanes.append((policy_now, point, runs))
    return Exploration(
        schedules=count,
        distinct=len(seen),
        exhausted=not lanes,
        cancel_points=cancel_points,
        steps=steps,
        longest=longest,
        fingerprint=fingerprint & 0xFFFF_FFFF_FFFF_FFFF,
    )


def replay(scenario: Scenario, schedule: str, *, max_steps: int = 10_000) -> None:
    """Run *scenario* once, under a schedule that `explore` printed.

    Raises:
        ExplorationError: It fails, as it did.
        ScheduleMismatchError: The schedule does not fit the scenario any more; the message
            says where it departs. What went wrong after that is the `__cause__`.
        ValueError: *schedule* is none.
    """
    runner = _Runner(scenario, max_steps)
    recorded = _Schedule.parse(schedule)
    name = _name(scenario)
    with _alone():
        watch = _Timeline()
        loop, trouble, chooser = runner.again(recorded, watch, strict=True)
    cause = None if trouble is None else trouble.cause or trouble
    where = None
    if chooser.departed is not None:
        place, of, options = chooser.departed
        where = f"at choice {place + 1}, one of {options} where it was one of {of}"
    elif len(loop.decisions) < len(recorded.decisions):
        where = (
            f"after {len(loop.decisions)} choices, where the run ended; "
            f"there were {len(recorded.decisions)}"
        )
    elif recorded.cancel is not None and not loop.cancelled:
        where = f"at {recorded.cancel[0]}@{recorded.cancel[1]}: there is no such await any more"
    elif recorded.trace is not None and recorded.trace != _digest(loop.trace):
        where = "in who ran: each choice was among as many, but other tasks took the steps"
    if where is not None:
        raise ScheduleMismatchError(
            f"the schedule does not fit {name} any more: the run departs {where}. The scenario, or "
            f"what it calls, has changed; explore it again. This run:\n\n{watch.text()}"
        ) from cause
    if trouble is not None:
        how = "by a replay"
        raise ExplorationError(trouble, name, schedule, watch.text(), 1, how) from trouble.cause


# -- a failure


def _failure(
    runner: _Runner,
    name: str,
    schedule: _Schedule,
    trouble: Trouble,
    budget: int,
    explored: int,
    how: str,
) -> ExplorationError:
    best = _shrunk(runner, schedule, trouble, budget)
    watch = _Timeline()
    loop, last, _ = runner.again(best, watch)
    if last is None or not _alike(last, trouble):
        # It failed, and does not fail again: something outlives the run. Show what there is.
        best, last = schedule, trouble
    final_schedule = _Schedule(best.reorders, best.cancel, best.decisions, _digest(loop.trace))
    return ExplorationError(last, name, str(final_schedule), watch.text(), explored, how)


def _alike(one: Trouble, other: Trouble) -> bool:
    return one.kind is other.kind and _types(one.cause) == _types(other.cause)


def _types(error: BaseException | None) -> set[type]:
    return set() if error is None else {type(leaf) for leaf in leaves(error)}


def _shrunk(runner: _Runner, schedule: _Schedule, trouble: Trouble, budget: int) -> _Schedule:
    """Leave out choices, many at a time and then few, while the run still fails alike."""
    best = list(schedule.decisions)

    def fails(decisions: list[tuple[int, int]]) -> bool:
        nonlocal best, budget
        if budget <= 0:
            return False
        budget -= 1
        tried = _Schedule(schedule.reorders, schedule.cancel, tuple(decisions))
        loop, again, _ = runner.again(tried)
        if again is None or not _alike(again, trouble):
            return False
        # As it was really run: bounds may have changed, and trailing plain choices say nothing.
        best = loop.decisions
        while best and not best[-1][0]:
            best.pop()
        return True

    if fails([]):
        return _Schedule(schedule.reorders, schedule.cancel, tuple(best))
    size = max(1, len(best) // 2)
    while budget > 0:
        before = list(best)
        for start in range(0, len(best), size):
            if any(choice for choice, _ in best[start : start + size]):
                rest = best[start + size :]
                plain = [(0, options) for _, options in best[start : start + size]]
                if not fails([*best[:start], *plain, *rest]):
                    fails([*best[:start], *rest])
        if size == 1 and best == before:
            break
        size = max(1, size // 2)
    for place in range(len(best)):
        if place < len(best) and best[place][0] > 1:
            fails([*best[:place], (1, best[place][1]), *best[place + 1 :]])
    return _Schedule(schedule.reorders, schedule.cancel, tuple(best))


def _require_repeatable(runner: _Runner, name: str, first: _Schedule) -> None:
    """Run the first schedule again: its steps must be the same."""
    loop, trouble, _ = runner.again(first)
    if trouble is None and _digest(loop.trace) == first.trace:
        return
    kind = Kind.ERROR if trouble is None else trouble.kind
    told = Trouble(
        kind,
        "the same schedule, run twice, took different steps"
        + ("" if trouble is None else f" ({trouble})")
        + ": something outlives the scenario (a module's cache, a global), or it looks at real "
        "time, at random numbers or at addresses; make all it uses inside it",
        None if trouble is None else trouble.cause,
    )
    watch = _Timeline()
    runner.again(first, watch)
    raise ExplorationError(told, name, str(first), watch.text(), 2, "by running it twice")


@final
class _Timeline:
    """Who ran when, and what each did until it gave up control."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_SHOWN)
        self._steps = 0

    def __call__(self, loop: ScheduleLoop, handle: asyncio.Handle, ready: int) -> None:
        """Note one step."""
        number = loop.trace[-1]
        self._steps += 1
        who, what = loop.label(number), ""
        if number >= 0:
            what = _state(loop.tasks[number])
        of = f"  (1 of {ready} ready)" if ready > 1 else ""
        self._lines.append(
            f"{self._steps:6}  {loop.clock.now:8.3f}  {who:<16}  {what}{of}".rstrip()
        )

    def text(self) -> str:
        """Return the table; the last steps of it, if there are many."""
        lines = ["  step   seconds  who               runs, and then"]
        if self._steps > len(self._lines):
            lines.append(f"        ... {self._steps - len(self._lines)} steps before")
        return "\n".join((*lines, *self._lines))


def _state(task: "asyncio.Task[Any]") -> str:
    if not task.done():
        return f"waits at {location(task)}"
    if task.cancelled():
        return "is cancelled"
    error = task._exception  # task.exception() would hide that nobody asked for it
    return "ends" if error is None else f"raises {type(error).__name__}"


# -- the real world


@contextmanager
def _alone() -> Generator[None]:
    """Keep threads, sockets and real sleeping out of this thread while schedules run."""
    if running_loop() is not None:
        raise RuntimeError(
            "explore() and replay() run loops of their own: call them from a plain function, "
            "outside any coroutine"
        )
    here = threading.get_ident()
    replaced: list[tuple[Any, str, Any, bool]] = []

    def refuse(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            loop = running_loop() if threading.get_ident() == here else None
            if isinstance(loop, ScheduleLoop):
                raise loop.refused(what)
            return original(*args, **kwargs)

        replaced.append((owner, name, original, name in vars(owner)))
        setattr(owner, name, guarded)

    refuse(time, "sleep", "real time (time.sleep)")
    refuse(threading.Thread, "start", "a thread (threading.Thread)")
    for method in ("connect", "connect_ex", "bind", "sendto"):
        refuse(socket.socket, method, f"a socket (socket.{method})")
    try:
        yield
    finally:
        for owner, name, original, own in replaced:
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)


def _check_count(name: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")
