"""What does a hit cost?

python -m benchmarks.hit [--rounds N] [--json PATH] [--check]
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from .peers import OURS, S3FIFO, Contestant, NoMeansError, installed
from .runner import Case, Question, Run, above, compared, main, of_its_own, take_turns, unpinned

QUESTION: Final = Question(
    name="hit",
    question="What does a hit cost, awaited and from a def?",
    workload="CPU time of one call, over 10,000 calls for 100 warm str keys in turn; the value is "
    "a float; ttl, where there is one, an hour",
    rivals="async-lru, cachebox (LRUCache, or TTLCache with a ttl), theine (Memoize), "
    "functools.lru_cache; a bound of 1,024 entries, the keys that each makes itself",
    floor="bare: the function itself. honest: make a key of the arguments, read a dict, and "
    "nothing else",
    not_measured="keys that are long, nested or of a class of your own; a cache so large that its "
    "entries are not in the processor's own memory (growth); uvloop; copies of mutable values, "
    "which cachebox makes on a hit",
    rounds=41,
)

CALLS: Final = 10_000
LONG: Final = 3600.0
THREADS: Final = 8
KEYS: Final = [f"SYMBOL-{number}" for number in range(100)]

ASYNC: Final = (OURS, S3FIFO, "async-lru", "cachebox", "theine", "bare", "honest")
PLAIN: Final = (OURS, S3FIFO, "functools.lru_cache", "cachebox", "theine", "bare")


# ---- the functions that are cached; a bare call of one returns at once


async def price(symbol: str) -> float:
    return 1.5


async def quote(symbol: str, side: str, *, venue: str = "XNYS") -> float:
    return 1.5


def plain_price(symbol: str) -> float:
    return 1.5


# ---- the loops that are timed; each contestant has a copy of its own


async def _one(call: Callable[..., Any], keys: Sequence[str]) -> float:
    begin = time.process_time_ns()
    for key in keys:
        await call(key)
    return (time.process_time_ns() - begin) / len(keys)


async def _three(call: Callable[..., Any], keys: Sequence[str]) -> float:
    begin = time.process_time_ns()
    for key in keys:
        await call(key, "buy", venue="XLON")
    return (time.process_time_ns() - begin) / len(keys)


async def _plain(call: Callable[..., Any], keys: Sequence[str]) -> float:
    begin = time.process_time_ns()
    for key in keys:
        call(key)
    return (time.process_time_ns() - begin) / len(keys)


def _turns(
    names: Sequence[str],
    loop: Callable[..., Any],
    decorate: Callable[[Contestant], Callable[..., Any]],
    keys: Sequence[str],
) -> dict[str, Callable[[], Any]]:
    turns = {}
    for name, peer in installed(names).items():
        try:
            call = decorate(peer)
        except NoMeansError:
            continue
        timed = of_its_own(loop)
        turns[name] = lambda timed=timed, call=call: timed(call, keys)
    return turns


def measure(run: Run) -> list[Case]:
    """Return a case for each shape of a call."""
    keys = KEYS * max(1, run.size(CALLS) // len(KEYS))

    def case(name: str, names: Sequence[str], loop: Any, decorate: Any) -> Case:
        turns = _turns(names, loop, decorate, keys)
        with asyncio.Runner(debug=False) as runner:
            times = runner.run(take_turns(turns, run, name))
        return compared(name, "ns CPU a call", times)

    return [
        case("awaited, 1 argument, no ttl", ASYNC, _one, lambda peer: peer.cached(price))
        .against("async-lru", "<=", 0.30)
        .against("cachebox", "<=", 0.40)
        .against("honest", "<=", 1.0)
        .against("bare", "<=", None, aim=1.3),
        case("awaited, 1 argument, ttl", ASYNC, _one, lambda peer: peer.cached(price, ttl=LONG))
        .against(
            "async-lru",
            "<=",
            above({(3, 11): 0.32, (3, 12): 0.40}),
            aim=above({(3, 11): 0.25, (3, 12): 0.34}),
        )
        .against("cachebox", "<=", 0.42)
        .against("honest", "<=", 1.4),
        case(
            "awaited, 2 arguments and a keyword, ttl",
            ASYNC,
            _three,
            lambda peer: peer.cached(quote, ttl=LONG),
        )
        .against("async-lru", "<=", 0.28, aim=0.22)
        .against("cachebox", "<=", 0.45),
        case(
            "def, 1 argument, no ttl", PLAIN, _plain, lambda peer: peer.plain(plain_price)
        ).against("functools.lru_cache", "<=", 3.0, aim=2.0),
        case("def, 1 argument, ttl", PLAIN, _plain, lambda peer: peer.plain(plain_price, ttl=LONG)),
        threads(run),
    ]


# ---- eight threads


def _rush(call: Callable[[str], Any], keys: Sequence[str], wrong: list[int]) -> None:
    bad = 0
    for key in keys:
        if call(key) != key:
            bad += 1
    wrong.append(bad)


def _wall(call: Callable[[str], Any], keys: Sequence[str], threads: int, wrong: list[int]) -> float:
    rush = of_its_own(_rush)
    workers = [threading.Thread(target=rush, args=(call, keys, wrong)) for _ in range(threads)]
    begin = time.perf_counter()
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    return time.perf_counter() - begin


def threads(run: Run) -> Case:
    """Eight threads at once beside one thread eight times, in wall time, on all cores.

    Each key's value is the key itself, so that a value of another key is seen.
    """
    name = f"def, {THREADS} threads at once"
    run.say(f"{name}: {run.rounds} rounds")
    keys = KEYS * max(1, run.size(5 * CALLS) // len(KEYS))
    calls = {}
    for title, peer in installed((OURS, "functools.lru_cache")).items():
        calls[title] = peer.plain(lambda symbol: symbol)
        for key in KEYS:
            calls[title](key)
    alone: dict[str, list[float]] = {title: [] for title in calls}
    together: dict[str, list[float]] = {title: [] for title in calls}
    wrong: list[int] = []
    with unpinned():
        for _ in range(max(1, run.rounds // 4)):
            for title, call in calls.items():
                alone[title].append(sum(_wall(call, keys, 1, wrong) for _ in range(THREADS)))
                together[title].append(_wall(call, keys, THREADS, wrong))
    count = THREADS * len(keys)
    case = compared(
        name,
        "ns wall a call",
        {title: [1e9 * each / count for each in times] for title, times in together.items()},
    )
    for title in calls:
        ratio = compared("", "", {OURS: together[title], "alone": alone[title]}).ratios["alone"]
        what = "together / one thread's time × 8"
        if title == OURS:
            case.fact(what, ratio.median, "<=", 1.3)
        else:
            case.facts[f"{what}, {title}"] = ratio.median
    return case.fact("wrong values", sum(wrong), "==", 0)


if __name__ == "__main__":
    sys.exit(main(QUESTION, measure))
