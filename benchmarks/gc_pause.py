"""How long does one full collection of cycles take over a million entries?

    python -m benchmarks.gc_pause [--rounds N] [--json PATH] [--check]

What to do about it is in docs/benchmarks.md: a program that fills its cache at the
start calls gc.freeze() after it, and one that does not raises the third threshold.
"""

import asyncio
import gc
import sys
import time
from collections import OrderedDict
from typing import Any, Final

from .clear import full
from .peers import OURS, installed
from .runner import Case, Question, Run, forget_collections, main, spread

QUESTION: Final = Question(
    name="gc_pause",
    question="How long does one full collection of cycles take over a million entries, and what "
    "is left of it after gc.freeze()?",
    workload="gc.collect() with 1,000,000 entries of int keys and int values with a ttl; the same "
    "after gc.freeze(); CPU time. The values themselves hold nothing that the collector walks",
    rivals="cachebox (LRUCache); dicts of as many lists, and of as many tuples in an OrderedDict",
    floor="nothing: a collection of the same process without any entries",
    not_measured="how often a program's own objects make a full collection happen: by default "
    "when those made since the last one are a quarter of all",
    rounds=3,
)

ENTRIES: Final = 1_000_000


def _collect() -> float:
    begin = time.process_time_ns()
    gc.collect()
    return (time.process_time_ns() - begin) / 1e6


def _measured(run: Run, name: str, fill: Any, figures: dict[str, Any], facts: Any) -> None:
    run.say(name)
    gc.collect()  # what the one before left behind
    with forget_collections():
        before = len(gc.get_objects())
        kept = fill()
    facts[f"objects that the collector walks, per entry, {name}"] = (
        len(gc.get_objects()) - before
    ) / run.size(ENTRIES, 100)
    figures[name] = spread([_collect() for _ in range(run.rounds)])
    gc.freeze()
    figures[f"{name}, frozen"] = spread([_collect() for _ in range(run.rounds)])
    gc.unfreeze()
    del kept


def measure(run: Run) -> list[Case]:
    """Return the pauses."""
    entries = run.size(ENTRIES, 100)
    case = Case("one gc.collect()", "ms CPU", run.rounds)
    gc.collect()
    case.figures["nothing"] = spread([_collect() for _ in range(run.rounds)])
    with asyncio.Runner(debug=False) as runner:
        _measured(run, OURS, lambda: runner.run(full(entries)), case.figures, case.facts)
    if installed(["cachebox"]):
        _measured(run, "cachebox", lambda: _cachebox(entries), case.figures, case.facts)
    for name, fill in (
        ("dict of lists", lambda: {key: [key] for key in range(entries)}),
        (
            "OrderedDict of tuples",
            lambda: OrderedDict((key, (key, [key])) for key in range(entries)),
        ),
    ):
        _measured(run, name, fill, case.figures, case.facts)
    return [case]


def _cachebox(entries: int) -> Any:
    import cachebox

    known: Any = cachebox.LRUCache(entries)
    for key in range(entries):
        known[key] = key
    return known


if __name__ == "__main__":
    sys.exit(main(QUESTION, measure))
