"""Does it help a cache to load what is likely to be asked for next?

    python benchmarks/prediction.py [--traces FOLDER] [--end hot|cold] [--json PATH]

Question: the share of reads that find their key, and the loads it takes, without and
with `Successors`, which learns from every read and names what is likely after it.
Workload: seeded synthetic traces and the first requests of the real ones in FOLDER; an
LRU of 1 and 10 % of the keys of a trace. The shop walk comes three times: one visitor
after the other; fifty at once, in the order in which the shop sees them; and the same
fifty told apart, where what follows is what the same visitor asks for next. Real traces
do not say who asked.
A load ahead is there before the next read: the best case. It enters at the hot end,
like every load of a cache. (`--end cold`: where the next to leave is, so that a wrong
one costs no more than one entry; but there a right one is gone, too, before its visitor
comes again.)
Not measured: time, what the loads ahead do to the origin, expiry.

A prediction saves no load: at best it moves one to before its read. `loads` are those
with prediction over those without, `extra` is what each avoided miss costs in loads
beyond the one that it moves. Precision and recall are those of `Scores`: loads ahead
that were read (within 1,000 reads, and before they left), misses that were avoided so.
"""

import argparse
import json
import platform
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

if __name__ == "__main__":  # from anywhere, without installing the benchmarks
    sys.path.insert(0, str(Path(__file__).parent.parent))

from async_safe_cache._successors import Scores, Successors
from benchmarks.traces import real, synthetic

SIZES = (0.01, 0.1)
LEAST = (0.25, 0.5)
FIRST = 400_000
"""Requests taken of a real trace."""


class Trace(NamedTuple):
    """Requests, and who made each of them if that is known."""

    name: str
    requests: Sequence[int]
    visitors: Sequence[int] | None = None


class Played(NamedTuple):
    """What came of a trace."""

    hits: int
    ahead: int
    scores: Scores


def play(trace: Trace, bound: int, least: float | None = None, *, hot: bool = True) -> Played:
    """Play *trace* through an LRU of *bound* entries; load ahead from probability *least* on."""
    held: OrderedDict[int, None] = OrderedDict()  # the next to leave first
    model, scores = Successors[int](), Scores()
    last: dict[int, int] = {}
    hits = ahead = 0

    def make_room(wanted: int) -> None:
        while len(held) > bound - wanted:
            scores.lost(held.popitem(last=False)[0])

    for number, key in enumerate(trace.requests):
        scores.read(key)
        if key in held:
            hits += 1
            held.move_to_end(key)
        else:
            scores.missed()
            make_room(1)
            held[key] = None
        if least is None:
            continue
        visitor = trace.visitors[number] if trace.visitors else 0
        if visitor in last:
            model.learn(last[visitor], key)
        last[visitor] = key
        absent = [each for each, _ in model.likely(key, least=least) if each not in held]
        make_room(len(absent))
        for each in absent[::-1]:  # the most likely one last: it is the last of them to leave
            ahead += 1
            scores.predicted(each)
            held[each] = None
        if not hot:
            for each in absent:
                held.move_to_end(each, last=False)
    return Played(hits, ahead, scores)


def walks(length: int, visitors: int) -> tuple[list[int], list[int]]:
    """Return requests to a shop and who made each: a list, some items of it, their reviews."""
    random = Random(1)
    lists, items = length // 300, 15

    def skewed(among: int, power: int) -> int:
        return int(random.random() ** power * among)

    def visits() -> Iterator[int]:
        while True:
            shelf = skewed(lists, 2)
            yield shelf
            for _ in range(1 + skewed(4, 2)):
                item = lists + shelf * items + skewed(items, 3)
                yield item
                if random.random() < 0.7:
                    yield item + lists * items

    walking = [visits() for _ in range(visitors)]
    turns = [random.randrange(visitors) for _ in range(length)]
    return [next(walking[turn]) for turn in turns], turns


def traces(length: int, folder: Path | None) -> Iterator[Trace]:
    """Yield the synthetic traces, and those of *folder*."""
    yield Trace("shop walk", walks(length, 1)[0])
    requests, visitors = walks(length, 50)
    yield Trace("shop walk, 50 at once", requests)
    yield Trace("shop walk, 50 told apart", requests, visitors)
    for trace in synthetic(length):
        if trace.name in ("zipf 1.0", "scans and zipf", "loop"):
            yield Trace(trace.name, trace.requests)
    if folder is not None:
        for trace in real(folder):
            yield Trace(trace.name, trace.requests[:FIRST])


def measured(trace: Trace, *, hot: bool = True) -> Iterator[dict[str, Any]]:
    """Yield a row for each size of the cache and each least probability."""
    reads, keys = len(trace.requests), len(set(trace.requests))
    for size in SIZES:
        bound = max(4, int(size * keys))
        without = play(trace, bound)
        for least in LEAST:
            played = play(trace, bound, least, hot=hot)
            saved = played.hits - without.hits
            yield {
                "trace": trace.name,
                "requests": reads,
                "keys": keys,
                "entries": bound,
                "least": least,
                "hit_ratio_without": without.hits / reads,
                "hit_ratio_with": played.hits / reads,
                "points": 100 * saved / reads,
                "loaded_ahead": played.ahead,
                "loads": (reads - played.hits + played.ahead) / (reads - without.hits),
                "extra_loads_per_saved_miss": (played.ahead - saved) / saved if saved > 0 else None,
                **played.scores.as_dict(),
            }


HEADS = ("entries", "least", "without", "with", "points", "precision", "recall", "loads", "extra")


def line(row: dict[str, Any]) -> str:
    """Return *row* as it is printed."""
    extra = row["extra_loads_per_saved_miss"]
    return (
        f"  {row['trace']:24}{row['entries']:>10}{row['least']:>10}"
        f"{row['hit_ratio_without']:>10.4f}{row['hit_ratio_with']:>10.4f}{row['points']:>+10.2f}"
        f"{row['precision']:>10.3f}{row['recall']:>10.3f}{row['loads']:>9.2f}x"
        + (f"{'none saved':>11}" if extra is None else f"{extra:>11.2f}")
    )


def verdicts(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the traces by what prediction does for them; a point of hit ratio is help."""
    found: dict[str, list[str]] = {"helps": [], "helps at times": [], "does not help": []}
    for name in dict.fromkeys(row["trace"] for row in rows):
        helped = [row["points"] >= 1 for row in rows if row["trace"] == name]
        verdict = "helps" if all(helped) else "helps at times" if any(helped) else "does not help"
        found[verdict].append(name)
    return found


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description="Hit ratios without and with prediction.")
    parser.add_argument("--traces", metavar="FOLDER", type=Path, help="real traces, too")
    parser.add_argument("--length", type=int, default=60_000, help="of a synthetic trace")
    parser.add_argument("--end", choices=("hot", "cold"), default="hot", help="for loads ahead")
    parser.add_argument("--json", metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    facts: dict[str, Any] = {
        "question": "Does it help a cache to load what is likely to be asked for next?",
        "workload": "seeded synthetic traces" + (", real traces" if options.traces else ""),
        "end": f"loads ahead enter at the {options.end} end and are there before the next read",
        "not_measured": "time, what the loads ahead do to the origin, expiry",
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "rows": [],
    }
    print(facts["question"])
    for name in ("workload", "end", "not_measured"):
        print(f"  {name.replace('_', ' ')}: {facts[name]}")
    print(f"  Python {facts['python']}, {facts['date']}")
    print(f"  {'trace':24}" + "".join(f"{head:>10}" for head in HEADS[:-1]) + f"{HEADS[-1]:>11}")
    for trace in traces(options.length, options.traces):
        for row in measured(trace, hot=options.end == "hot"):
            facts["rows"].append(row)
            print(line(row), flush=True)
    facts["verdicts"] = verdicts(facts["rows"])
    for verdict, names in facts["verdicts"].items():
        print(f"  {verdict}: {'; '.join(names)}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=2)


if __name__ == "__main__":
    main()
