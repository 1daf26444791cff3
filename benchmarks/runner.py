"""How every question is measured: turns, ratios, spread, goals, JSON.

All contestants take turns in one process, one round after another; whoever begins
moves on by one each round. The ratio is taken per round, and the median of those
ratios, with its quartiles, is the answer: a machine that changes its speed changes
both sides. What is timed is CPU time of the process unless a case says otherwise.
The process is held to one core where that is possible; asyncio's own loop, debug
off; the collector runs before each turn and stays on during it unless a question
says otherwise.

A goal compares one number with a limit and says whether it is met. It is *not
measured* where a contestant is missing: a goal is never met by default.
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, final

from .peers import OURS, PEERS

__all__ = [
    "ROOT",
    "Case",
    "Goal",
    "Question",
    "Run",
    "Spread",
    "Ticker",
    "above",
    "compared",
    "forget_collections",
    "main",
    "of_its_own",
    "ratio_of",
    "run",
    "spread",
    "take_turns",
    "unpinned",
]

ROOT: Final = Path(__file__).parents[1]
FORMAT: Final = 1

Turn = Callable[[], Awaitable[float]]
Sense = Literal["<=", ">=", "=="]


# ---- numbers


class Spread(NamedTuple):
    """A median between its quartiles."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the lower quartile, the median and the upper quartile of *values*."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, statistics.median(values), high)


def ratio_of(mine: Sequence[float], others: Sequence[float]) -> Spread:
    """Return the spread of the ratios per round: of the ratios, not the ratio of the medians."""
    return spread([one / other for one, other in zip(mine, others, strict=True)])


@final
@dataclass(frozen=True)
class Goal:
    """What a number should be.

    Attributes:
        of: What is compared: "× async-lru", "ms", "loads".
        sense: "<=", ">=" or "==".
        limit: What it must reach; None if nothing must be.
        observed: The number; None if it could not be measured.
        aim: What would be better still.
    """

    of: str
    sense: Sense
    limit: float | None
    observed: float | None
    aim: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the limit is reached; None if nothing was measured, or nothing must be."""
        return self._reaches(self.limit)

    @property
    def aim_met(self) -> bool | None:
        """Whether the aim is reached; None if nothing was measured, or there is none."""
        return self._reaches(self.aim)

    def _reaches(self, limit: float | None) -> bool | None:
        if self.observed is None or limit is None:
            return None
        if self.sense == "==":
            return self.observed == limit
        return self.observed <= limit if self.sense == "<=" else self.observed >= limit


@final
@dataclass
class Case:
    """One table of a question.

    Attributes:
        name: What is done.
        unit: Of the figures.
        figures: The spread of each contestant's own numbers.
        ratios: Ours over each other one's, per round.
        facts: Single numbers that are not of a contestant's speed.
        goals: What should come out.
    """

    name: str
    unit: str
    rounds: int = 1
    figures: dict[str, Spread] = field(default_factory=dict)
    ratios: dict[str, Spread] = field(default_factory=dict)
    facts: dict[str, float | str] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)

    def against(
        self, rival: str, sense: Sense, limit: float | None, aim: float | None = None
    ) -> "Case":
        """Add a goal for the ratio of ours to *rival*'s; return the case."""
        ratio = self.ratios.get(rival)
        observed = None if ratio is None else ratio.median
        self.goals.append(Goal(f"× {rival}", sense, limit, observed, aim))
        return self

    def fact(
        self, name: str, value: float, sense: Sense, limit: float, aim: float | None = None
    ) -> "Case":
        """Add a number and a goal for it; return the case."""
        self.facts[name] = value
        self.goals.append(Goal(name, sense, limit, value, aim))
        return self


def compared(name: str, unit: str, times: Mapping[str, Sequence[float]]) -> Case:
    """Return the case of what each contestant took in each round."""
    ours = times.get(OURS)
    return Case(
        name=name,
        unit=unit,
        rounds=max(map(len, times.values()), default=0),
        figures={each: spread(values) for each, values in times.items()},
        ratios={}
        if ours is None
        else {
            each: ratio_of(ours, values)
            for each, values in times.items()
            if each != OURS and len(values) == len(ours)
        },
    )


# ---- what is asked


@final
@dataclass(frozen=True)
class Question:
    """What one file of this folder asks, and how it is to be read.

    Attributes:
        name: Of its module.
        question: One sentence.
        workload: What is done, and how often.
        rivals: Who else does it, and how they are set up.
        floor: What nobody can go below, or "".
        not_measured: What the answer does not say.
        rounds: How many there are unless others are asked for.
    """

    name: str
    question: str
    workload: str
    rivals: str
    floor: str
    not_measured: str
    rounds: int


@final
@dataclass(frozen=True)
class Run:
    """How much is to be measured, and who watches.

    Attributes:
        rounds: Turns of each contestant.
        scale: 1 for the real sizes; smaller to try a program, whose figures then say nothing.
    """

    rounds: int
    scale: float = 1.0
    quiet: bool = False

    def size(self, real: int, least: int = 10) -> int:
        """Return *real*, or what is left of it in a trial."""
        return max(least, round(real * self.scale))

    def say(self, what: str) -> None:
        """Show how far it is, on stderr."""
        if not self.quiet:
            print(f"    {what}", file=sys.stderr, flush=True)


Measure = Callable[[Run], list[Case]]


# ---- measuring


def of_its_own(function: Any) -> Any:
    """Return a copy of *function* whose code is its own.

    The interpreter specialises the calls inside a function to whom they call.
    Contestants that share one loop would spoil that for each other, as no program
    does where a call stands in one place.
    """
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


async def take_turns(turns: Mapping[str, Turn], run: Run, what: str) -> dict[str, list[float]]:
    """Return what each of *turns* gave in each round, after one that does not count."""
    run.say(f"{what}: {run.rounds} rounds of {', '.join(turns)}")
    names = list(turns)
    for name in names:
        await turns[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(run.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            times[name].append(await turns[name]())
    return times


@final
class Ticker:
    """The longest time that the running loop took for one turn, with all that ran in it.

    A callback that asks to be called again in the next turn. `wall` is what a
    request would have waited; `cpu`, the process's own CPU time in that turn, is the
    same on a machine that does nothing else. Both in ms.
    """

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.turns = 0
        self._on = False

    async def __aenter__(self) -> "Ticker":
        self._loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        self._on = True
        self._then = time.perf_counter_ns(), time.process_time_ns()
        self._loop.call_soon(self._tick)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)  # the turn that ends here counts too
        await asyncio.sleep(0)
        self._on = False

    def _tick(self) -> None:
        if not self._on:
            return
        wall, cpu = now = time.perf_counter_ns(), time.process_time_ns()
        self.wall = max(self.wall, (wall - self._then[0]) / 1e6)
        self.cpu = max(self.cpu, (cpu - self._then[1]) / 1e6)
        self._then = now
        self.turns += 1
        self._loop.call_soon(self._tick)


@contextmanager
def forget_collections() -> Iterator[None]:
    """Fill something large without the collector walking it again and again; walk it once after."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


def above(limits: Mapping[tuple[int, int], float]) -> float:
    """Return the limit for this Python: that of the newest version that is not above it."""
    known = [limit for least, limit in sorted(limits.items()) if sys.version_info[:2] >= least]
    return known[-1]


# ---- the machine


_cores: set[int] = set()


@contextmanager
def _pinned() -> Iterator[int | None]:
    """Hold the process to one core, the last one it may use; give its number."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    _cores.update(before)
    core = max(before)
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        core = None
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)
        _cores.clear()


@contextmanager
def unpinned() -> Iterator[None]:
    """Let a part use all cores: threads, and processes of its own."""
    if not _cores:
        yield
        return
    held = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, held)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


# ---- one question


def run(
    question: Question,
    measure: Measure,
    *,
    rounds: int | None = None,
    scale: float = 1.0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure *question*; return everything, ready for JSON."""
    how = Run(question.rounds if rounds is None else rounds, scale, quiet)
    begin = time.perf_counter()
    with _pinned() as core:
        cases = measure(how)
    return {
        "format": FORMAT,
        **asdict(question),
        "rounds": how.rounds,
        "scale": scale,
        "python": platform.python_version(),
        "build": sys.version,
        "machine": f"{_processor()}, {platform.machine()}, {os.cpu_count()} cores",
        "system": platform.system(),
        "core": core,
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - begin, 1),
        "versions": {name: found for name, peer in PEERS.items() if (found := peer.version())},
        "cases": [_case(each) for each in cases],
    }


def _case(case: Case) -> dict[str, Any]:
    facts = asdict(case)
    facts["figures"] = {name: value._asdict() for name, value in case.figures.items()}
    facts["ratios"] = {name: value._asdict() for name, value in case.ratios.items()}
    facts["goals"] = [
        {**asdict(goal), "met": goal.met, "aim_met": goal.aim_met} for goal in case.goals
    ]
    return facts


def number(value: float | str | None) -> str:
    """Return *value* with three significant digits or more, as people read it."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    size = abs(value)
    if size == int(size) or size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


VERDICTS: Final = {True: "met", False: "NOT MET", None: "not measured"}


def goal_text(goal: Mapping[str, Any]) -> str:
    """Return what should be reached: `<= 0.32 × async-lru`."""
    sense = {"<=": "<= ", ">=": ">= ", "==": ""}[goal["sense"]]
    if goal["limit"] is None:
        return f"{sense}{goal['aim']:g} {goal['of']}"
    return f"{sense}{goal['limit']:g} {goal['of']}"


def verdict(goal: Mapping[str, Any]) -> str:
    """Return whether it was."""
    if goal["limit"] is None:
        return {True: "reached", False: "not reached", None: "not measured"}[goal["aim_met"]]
    return VERDICTS[goal["met"]]


def report(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the answer for a terminal."""
    yield f"{facts['name']}: {facts['question']}"
    for name in ("workload", "rivals", "floor", "not_measured"):
        if facts[name]:
            yield f"  {name.replace('_', ' ')}: {facts[name]}"
    core = "no core" if facts["core"] is None else f"core {facts['core']}"
    yield f"  CPython {facts['python']}, {facts['machine']}, {core}, {facts['date']}"
    if facts["scale"] != 1:
        yield f"  A TRIAL at {facts['scale']:g} of the real size: the figures say nothing."
    for case in facts["cases"]:
        yield ""
        yield f"  {case['name']}"
        if case["figures"]:
            yield f"    {'':26}{case['unit']:>28}    ours / this one, of {case['rounds']} rounds"
        for name, figure in case["figures"].items():
            line = f"    {name:26}{_spread_text(figure):>28}"
            if name in case["ratios"]:
                line += f"    {_spread_text(case['ratios'][name])}"
            yield line
        for name, fact in case["facts"].items():
            yield f"    {name}: {number(fact)}"
        for goal in case["goals"]:
            kind = "goal" if goal["limit"] is not None else "aim"
            better = goal["limit"] is not None and goal["aim"] is not None
            aim = f"   (aim: {goal['aim']:g})" if better else ""
            yield (
                f"    {kind:4} {goal_text(goal):40} {number(goal['observed']):>10}"
                f"   {verdict(goal)}{aim}"
            )


def _spread_text(value: Mapping[str, float]) -> str:
    low, middle, high = (number(value[each]) for each in ("low", "median", "high"))
    return middle if low == middle == high else f"{middle} ({low} to {high})"


def arguments(prog: str, description: str) -> argparse.ArgumentParser:
    """Return the options that all programs share."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--rounds", type=int, help="instead of each question's own number")
    parser.add_argument("--scale", type=float, default=1.0, help="below 1: a trial")
    parser.add_argument("--json", metavar="PATH", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="status 1 unless each goal is met")
    return parser


def unmet(facts: Mapping[str, Any]) -> list[str]:
    """Return the goals that are not met or not measured."""
    return [
        f"{facts['name']}, {case['name']}: {goal_text(goal)}"
        for case in facts["cases"]
        for goal in case["goals"]
        if goal["limit"] is not None and goal["met"] is not True
    ]


def main(question: Question, measure: Measure) -> int:
    """Be the program of one question."""
    parser = arguments(f"python -m benchmarks.{question.name}", question.question)
    options = parser.parse_args()
    facts = run(question, measure, rounds=options.rounds, scale=options.scale)
    print("\n".join(report(facts)))
    if options.json:
        text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
        Path(options.json).write_text(text, encoding="utf-8")
    return int(options.check and bool(unmet(facts)))
