"""What does a miss cost whose load ends at once, in a cache that is full?

python -m benchmarks.miss [--rounds N] [--json PATH] [--check]
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final, cast

from .peers import OURS, PEERS, S3FIFO, Honest, NoMeansError, Ours, installed
from .runner import Case, Question, Run, above, compared, main, of_its_own, take_turns

QUESTION: Final = Question(
    name="miss",
    question="What does a miss cost whose load ends at once, in a cache that is full?",
    workload="CPU time of one awaited call of a new int key, 2,000 a round, at a bound of 10,000 "
    "entries: a load, a value stored, the oldest one out. The value is 100 new bytes, or a new "
    "dict of 20 str keys and floats; no ttl. Ours weighs each value against its bound of 200 MB",
    rivals="async-lru, cachebox (LRUCache), theine (Memoize); none of them weighs values",
    floor="bare: the load itself. honest: the same with a dict in front, of which the oldest "
    "entry is dropped; no coalescing. least: the least Python that shares a load among tasks and "
    "threads, weighs each value against a bound and evicts the oldest; nothing else",
    not_measured="loads that wait for something (stampede, mixed); values that take long to weigh",
    rounds=25,
)

MISSES: Final = 2_000
BOUND: Final = 10_000
RIVALS: Final = (OURS, S3FIFO, "async-lru", "cachebox", "theine", "bare", "honest", "least")
FIELDS: Final = [f"field_{number}" for number in range(20)]


async def hundred_bytes(key: int) -> bytes:
    return b"%100d" % key


async def twenty_keys(key: int) -> dict[str, float]:
    return {name: key + place / 2 for place, name in enumerate(FIELDS)}


async def _misses(call: Callable[[int], Awaitable[Any]], keys: "count[int]", misses: int) -> float:
    begin = time.process_time_ns()
    for _ in range(misses):
        await call(next(keys))
    return (time.process_time_ns() - begin) / 1_000 / misses


async def _case(run: Run, name: str, load: Callable[[int], Awaitable[Any]]) -> Case:
    misses, bound = run.size(MISSES), run.size(BOUND)
    turns = {}
    for title, peer in installed(RIVALS).items():
        try:
            if title == "honest":
                call: Any = cast("Honest", peer).bounded(load, bound)
            else:
                call = peer.cached(load, entries=bound)
        except NoMeansError:
            run.say(f"{title} is left out: it cannot do this")
            continue
        timed, keys = of_its_own(_misses), count()
        await timed(call, keys, bound)
        turns[title] = lambda timed=timed, call=call, keys=keys: timed(call, keys, misses)
    case = compared(name, "us CPU a call", await take_turns(turns, run, name))
    return case.against("async-lru", "<=", above({(3, 11): 1.0, (3, 12): 0.35})).against(
        "cachebox", "<=", None, aim=0.5
    )


async def _weighing(run: Run) -> Case:
    """What of it is weighing: ours with and without a weigher of the user's own."""
    misses, bound = run.size(MISSES), run.size(BOUND)
    turns = {}
    for title, weigher in ((OURS, None), ("a weigher that says 2,000", lambda value: 2_000)):
        from async_safe_cache import race_safe_cached

        cache = cast("Ours", PEERS[OURS]).cache(max_entries=bound, weigher=weigher)
        call = race_safe_cached(cache)(twenty_keys)
        timed, keys = of_its_own(_misses), count()
        await timed(call, keys, bound)
        turns[title] = lambda timed=timed, call=call, keys=keys: timed(call, keys, misses)
    name = "ours, a dict of 20 keys: weighed by its walk, or by a constant"
    return compared(name, "us CPU a call", await take_turns(turns, run, name))


def measure(run: Run) -> list[Case]:
    """Return a case for each kind of value."""
    with asyncio.Runner(debug=False) as runner:
        return [
            runner.run(_case(run, "value of 100 bytes", hundred_bytes)),
            runner.run(_case(run, "value is a dict of 20 keys", twenty_keys)),
            runner.run(_weighing(run)),
        ]


if __name__ == "__main__":
    sys.exit(main(QUESTION, measure))
