"""Does an operation cost more when the cache is a thousand times larger?

python -m benchmarks.growth [--rounds N] [--json PATH] [--check]
"""

import asyncio
import gc
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, cast

from .peers import OURS, PEERS, Ours
from .runner import Case, Question, Run, compared, forget_collections, main, of_its_own, spread

QUESTION: Final = Question(
    name="growth",
    question="Does an operation cost more when the cache is a thousand times larger, beyond what "
    "Python's own dict costs more on the same keys?",
    workload="caches of 1,000, 10,000, 100,000 and 1,000,000 entries of one decorated function, "
    "str keys, ttl, filled in order and asked in random order, 2,000 keys a round: hit (awaited "
    "call), set (over an entry), delete, evict (set of a new key in a full cache). Growth: the "
    "time at a size over the time at 1,000, in the same round. CPU time; the collector of cycles "
    "is off (gc)",
    rivals="none",
    floor="dict: d[key] with a value of (value, deadline), d[key] = it, d.pop(key), and "
    "d[new] = it with d.pop(old)",
    not_measured="keys that share no processor cache line with others because they were made long "
    "ago; a machine whose memory is full",
    rounds=9,
)

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
CALLS: Final = 2_000
OPERATIONS: Final = ("hit", "set", "delete", "evict")
LIMIT: Final = 1.2
DICT: Final = "dict"


# ---- what is timed: (contestant, operation) -> ns a call


async def _hit(fn: Any, keys: Sequence[str]) -> int:
    begin = time.process_time_ns()
    for key in keys:
        await fn(key)
    return time.process_time_ns() - begin


async def _set(cache: Any, keys: Sequence[Any]) -> int:
    begin = time.process_time_ns()
    for key in keys:
        await cache.set(key, 1)
    return time.process_time_ns() - begin


async def _delete(cache: Any, keys: Sequence[Any]) -> int:
    begin = time.process_time_ns()
    for key in keys:
        await cache.delete(key)
    return time.process_time_ns() - begin


def _dict_hit(known: dict[str, Any], keys: Sequence[str]) -> int:
    begin = time.process_time_ns()
    for key in keys:
        known[key]
    return time.process_time_ns() - begin


def _dict_set(known: dict[str, Any], keys: Sequence[str]) -> int:
    begin = time.process_time_ns()
    for key in keys:
        known[key] = 1, 2.5
    return time.process_time_ns() - begin


def _dict_delete(known: dict[str, Any], keys: Sequence[str]) -> int:
    begin = time.process_time_ns()
    for key in keys:
        known.pop(key)
    return time.process_time_ns() - begin


def _dict_evict(known: dict[str, Any], keys: Sequence[str], old: Sequence[str]) -> int:
    begin = time.process_time_ns()
    for key, oldest in zip(keys, old, strict=True):
        known[key] = 1, 2.5
        known.pop(oldest)
    return time.process_time_ns() - begin


class Filled:
    """A cache and a dict of one size, with the keys that are in them, the oldest first."""

    def __init__(self, size: int) -> None:
        from async_safe_cache import race_safe_cached

        self.size = size
        self.number = size
        self.random = random.Random(size)
        self.known: dict[str, Any] = {}
        self.order: OrderedDict[str, None] = OrderedDict()  # what the cache should hold
        self.cache: Any = cast("Ours", PEERS[OURS]).cache(
            max_entries=size, max_memory_bytes=1 << 40
        )

        @race_safe_cached(self.cache, ttl=3600)
        async def fn(key: str) -> int:
            raise AssertionError("a hit was expected")

        self.fn: Any = fn
        self.loops = {name: of_its_own(loop) for name, loop in LOOPS.items()}

    async def fill(self) -> None:
        for number in range(self.size):
            key = f"user:{self.size}:{number:09}"
            await self.cache.set(self.place(key), 1)
            self.order[key] = None
            self.known[key] = 1, 2.5

    def place(self, key: str) -> Any:
        return self.cache.key_for(self.fn, key)

    async def round(self, calls: int) -> dict[tuple[str, str], float]:
        """Return ns a call of each contestant and operation; leave as many entries as before."""
        count, loops, draw = min(calls, max(1, self.size // 2)), self.loops, self.random.sample
        mine, others = list(self.order), list(self.known)
        took: dict[tuple[str, str], float] = {}
        for operation in OPERATIONS:
            # Each with keys of its own, after others were read: what is small is in the
            # processor's own memory then, and what is large is not, as in a program.
            warm, keys, theirs = draw(mine, count), draw(mine, count), draw(others, count)
            if operation == "evict":
                self.number += count
                keys = [f"user:{self.size}:{self.number - place:09}" for place in range(count)]
                theirs = [f"{key}:" for key in keys]
            await loops["hit"](self.fn, warm)
            target = self.fn if operation == "hit" else self.cache
            places = keys if operation == "hit" else [self.place(key) for key in keys]
            took[OURS, operation] = await loops[operation](target, places)
            loops["dict hit"](self.known, draw(others, count))
            old = (others[:count],) if operation == "evict" else ()
            took[DICT, operation] = loops[f"dict {operation}"](self.known, theirs, *old)
            if operation == "delete":
                await loops["set"](self.cache, places)
                loops["dict set"](self.known, theirs)
            for key in (*warm, *keys):
                self.order[key] = None
                self.order.move_to_end(key)
        while len(self.order) > self.size:
            self.order.popitem(last=False)
        assert self.fn.cache_info().currsize == self.size == len(self.known)
        return {each: time_ / count for each, time_ in took.items()}


LOOPS: Final[dict[str, Any]] = {
    "hit": _hit,
    "set": _set,
    "delete": _delete,
    "evict": _set,
    "dict hit": _dict_hit,
    "dict set": _dict_set,
    "dict delete": _dict_delete,
    "dict evict": _dict_evict,
}


async def _measured(run: Run) -> list[Case]:
    sizes = [run.size(size, 10 + place) for place, size in enumerate(SIZES)]
    with forget_collections():
        filled = [Filled(size) for size in sizes]
        for each in filled:
            run.say(f"filling {each.size:,} entries")
            await each.fill()
    calls = run.size(CALLS)
    seen: list[list[dict[tuple[str, str], float]]] = []
    run.say(f"{run.rounds} rounds of {calls} calls at each size")
    gc.disable()
    try:
        for number in range(run.rounds + 1):
            found = [await each.round(calls) for each in filled]
            if number:
                seen.append(found)
    finally:
        gc.enable()
    cases = []
    for operation in OPERATIONS:

        def times(who: str, place: int, operation: str = operation) -> list[float]:
            return [found[place][who, operation] for found in seen]

        def growth(who: str, operation: str = operation) -> list[float]:
            first, last = times(who, 0, operation), times(who, -1, operation)
            return [large / small for large, small in zip(last, first, strict=True)]

        case = Case(operation, "ns CPU a call", run.rounds)
        for who in (OURS, DICT):
            for place, size in enumerate(SIZES):
                case.figures[f"{who}, {size:,}"] = spread(times(who, place))
        both = compared("", "", {OURS: growth(OURS), DICT: growth(DICT)})
        case.facts["growth from 1,000 to 1,000,000"] = both.figures[OURS].median
        case.facts["growth from 1,000 to 1,000,000, dict"] = both.figures[DICT].median
        what = "× a dict's own growth"
        case.fact(what, both.ratios[DICT].median, "<=", LIMIT)
        cases.append(case)
    return cases


def measure(run: Run) -> list[Case]:
    """Return a case for each operation."""
    with asyncio.Runner(debug=False) as runner:
        return runner.run(_measured(run))


if __name__ == "__main__":
    sys.exit(main(QUESTION, measure))
