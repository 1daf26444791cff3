"""How much work does a cache do in a second when many tasks ask for few keys often?

python -m benchmarks.mixed [--rounds N] [--json PATH] [--check]
"""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate
from typing import Any, Final

from .peers import OURS, S3FIFO, NoMeansError, installed
from .runner import Case, Question, Run, compared, main, of_its_own, take_turns

QUESTION: Final = Question(
    name="mixed",
    question="How many calls does a CPU second serve when 100 tasks ask for keys as people do?",
    workload="20,000 calls a round by 100 tasks at once; keys by Zipf's law (exponent 1) of "
    "100,000 ints, seeded, the same for all; room for 10,000; no ttl; the value is 100 new "
    "bytes. The load ends at once, or suspends for one turn of the loop",
    rivals="async-lru, cachebox (LRUCache), theine (Memoize)",
    floor="bare: the load itself, for every call",
    not_measured="what a better hit ratio saves beyond the load's own CPU time: loads are cheap "
    "here, and a database is not (hit_ratios); several threads",
    rounds=15,
)

TASKS: Final = 100
CALLS: Final = 20_000
KEYS: Final = 100_000
ROOM: Final = 10_000
RIVALS: Final = (OURS, S3FIFO, "async-lru", "cachebox", "theine", "bare")

Call = Callable[[int], Awaitable[Any]]


def zipf(keys: int, calls: int, seed: int) -> list[int]:
    """Return *calls* keys below *keys*, number n as often as 1 / (n + 1)."""
    weights = list(accumulate(1 / (rank + 1) for rank in range(keys)))
    names = list(range(keys))
    random.Random(seed).shuffle(names)
    return random.Random(seed + 1).choices(names, cum_weights=weights, k=calls)


class Load:
    """A load that counts itself."""

    def __init__(self, *, suspends: bool) -> None:
        self.loads = 0
        self.suspends = suspends

    def function(self) -> Callable[[int], Awaitable[bytes]]:
        async def ends_at_once(key: int) -> bytes:
            self.loads += 1
            return b"%100d" % key

        async def suspends_once(key: int) -> bytes:
            self.loads += 1
            await asyncio.sleep(0)
            return b"%100d" % key

        return suspends_once if self.suspends else ends_at_once


async def _ask(call: Call, keys: Sequence[int]) -> None:
    for key in keys:
        await call(key)


async def _round(ask: Callable[..., Any], call: Call, keys: Sequence[int]) -> float:
    """Return calls per CPU second."""
    share = max(1, len(keys) // TASKS)
    parts = [keys[begin : begin + share] for begin in range(0, len(keys), share)]
    begin = time.process_time_ns()
    async with asyncio.TaskGroup() as group:
        for part in parts:
            group.create_task(ask(call, part))
    return len(keys) * 1e9 / (time.process_time_ns() - begin)


async def _case(run: Run, name: str, *, suspends: bool) -> Case:
    calls, keys, room = run.size(CALLS, TASKS), run.size(KEYS, 100), run.size(ROOM)
    trace = zipf(keys, (run.rounds + 1) * calls, 20)
    warm = zipf(keys, 4 * room, 10)
    turns, loads = {}, {}
    for title, peer in installed(RIVALS).items():
        load = Load(suspends=suspends)
        try:
            call = peer.cached(load.function(), entries=room)
        except NoMeansError:
            run.say(f"{title} is left out: it cannot do this")
            continue
        ask, parts = of_its_own(_ask), iter(range(0, len(trace), calls))
        await _round(ask, call, warm)
        load.loads, loads[title] = 0, load

        def turn(ask: Any = ask, call: Any = call, parts: Any = parts) -> Awaitable[float]:
            begin = next(parts)
            return _round(ask, call, trace[begin : begin + calls])

        turns[title] = turn
    times = await take_turns(turns, run, name)
    case = compared(name, "calls a CPU second", times).against("async-lru", ">=", 1.4, aim=3.0)
    for title, load in loads.items():
        if title != "bare":
            case.facts[f"hit ratio, {title}"] = 1 - load.loads / len(trace)
    return case


def measure(run: Run) -> list[Case]:
    """Return a case for loads that end at once, and one for loads that suspend."""
    with asyncio.Runner(debug=False) as runner:
        return [
            runner.run(_case(run, "the load ends at once", suspends=False)),
            runner.run(_case(run, "the load suspends once", suspends=True)),
        ]


if __name__ == "__main__":
    sys.exit(main(QUESTION, measure))
