"""Which policy keeps what will be asked for again?

    python benchmarks/hit_ratios.py [--traces FOLDER] [--json PATH]

Question: the share of requests that find their key, with caches of several sizes.
Workload: seeded synthetic traces (benchmarks/traces.py), and the real ones in FOLDER;
caches of 1, 5, 10 and 20 % of the keys of a trace (of their weight, if weighted).
Rivals: LRU and S3-FIFO of ours, driven without a cache around them; theine (W-TinyLFU)
and cachebox's TTLCache, where they are installed: `pip install theine==2.0.0 cachebox==6.2.10`.
Ceiling: Belady's optimum, which knows the future. For weighted traces there is no
affordable optimum, so there the same rule (the farthest next use leaves first) stands in.
Not measured: time, memory, expiry, concurrency.
"""

import argparse
import heapq
import json
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

if __name__ == "__main__":  # from anywhere, without installing the benchmarks
    sys.path.insert(0, str(Path(__file__).parent.parent))

from async_safe_cache._eviction import order_of
from benchmarks.traces import Trace, real, synthetic

SIZES = (0.01, 0.05, 0.1, 0.2)
LARGE = 500
"""Entries from which on a cache counts for the mean share of the optimum."""

Player = Callable[[Trace, int], int]


class Item:
    """What a policy needs of an entry, and nothing else."""

    __slots__ = ("key", "place", "space", "used", "weight")

    def __init__(self, key: int, weight: int) -> None:
        self.key = key
        self.space = 0
        self.weight = weight
        self.used = False
        self.place: object = None


def ours(policy: Any) -> Player:
    """Return what plays a trace through one of our policies and returns the hits."""

    def play(trace: Trace, bound: int) -> int:
        order: Any = order_of(policy)()
        held: dict[int, Item] = {}
        hits, free = 0, bound
        for key in trace.requests:
            item = held.get(key)
            if item is not None:
                hits += 1
                order.touch(item)
                continue
            item = Item(key, trace.weight(key) if trace.weight else 1)
            if item.weight > bound:
                continue
            while free < item.weight:
                victim = order.take_oldest()
                del held[victim.key]
                free += victim.weight
            order.add(item)
            held[key] = item
            free -= item.weight
        order.check()
        return hits

    return play


def optimum(trace: Trace, bound: int) -> int:
    """Return the hits when what is used again latest leaves first (Belady, 1966)."""
    requests = trace.requests
    never = len(requests)
    following = [never] * never
    seen: dict[int, int] = {}
    for place in range(never - 1, -1, -1):
        following[place] = seen.get(requests[place], never)
        seen[requests[place]] = place
    next_use: dict[int, int] = {}
    latest: list[tuple[int, int]] = []  # may name what was used since: skipped
    hits, free = 0, bound
    for key, use in zip(requests, following, strict=True):
        weight = trace.weight(key) if trace.weight else 1
        if key in next_use:
            hits += 1
        elif use == never or weight > bound:
            continue  # not kept: it is not asked for again
        else:
            free -= weight
        next_use[key] = use
        heapq.heappush(latest, (-use, key))
        while free < 0:
            last, victim = heapq.heappop(latest)
            if next_use.get(victim) == -last:
                del next_use[victim]
                free += trace.weight(victim) if trace.weight else 1
    return hits


def rivals() -> dict[str, Player]:
    """Return those that are installed; name those that are not."""
    found: dict[str, Player] = {}
    try:
        from theine import Cache

        def theine(trace: Trace, bound: int) -> int:
            cache = Cache(bound)
            hits = 0
            for key in trace.requests:
                if cache.get(key)[1]:
                    hits += 1
                else:
                    cache.set(key, key)
            cache.close()
            return hits

        found["theine"] = theine
    except ImportError:
        print("theine is not installed: left out", file=sys.stderr)
    try:
        from cachebox import TTLCache

        def cachebox(trace: Trace, bound: int) -> int:
            cache: Any = TTLCache(bound, 3600)
            hits = 0
            for key in trace.requests:
                if cache.get(key) is not None:
                    hits += 1
                else:
                    cache[key] = key
            return hits

        found["cachebox"] = cachebox
    except ImportError:
        print("cachebox is not installed: left out", file=sys.stderr)
    return found


def measured(trace: Trace, players: dict[str, Player]) -> list[dict[str, Any]]:
    """Return a row per size of the cache."""
    keys = set(trace.requests)
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        bound = int(size * (sum(map(trace.weight, keys)) if trace.weight else len(keys)))
        hits = {
            name: play(trace, bound) / len(trace.requests)
            for name, play in players.items()
            if not trace.weight or name in ("lru", "s3fifo", "optimum")  # ours can weigh
        }
        rows.append(
            {
                "trace": trace.name,
                "requests": len(trace.requests),
                "keys": len(keys),
                "size": size,
                "entries": None if trace.weight else bound,
                "hit_ratio": hits,
                "points_over_lru": 100 * (hits["s3fifo"] - hits["lru"]),
            }
        )
    return rows


def shares(rows: list[dict[str, Any]], names: list[str]) -> dict[str, float]:
    """Return the mean share of the optimum, of caches of LARGE entries and more."""
    large = [row["hit_ratio"] for row in rows if (row["entries"] or 0) >= LARGE]
    return {name: fmean(hits[name] / hits["optimum"] for hits in large) for name in names if large}


def installed(package: str) -> str | None:
    """Return the version of *package*, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description="Hit ratios of eviction policies.")
    parser.add_argument("--traces", metavar="FOLDER", type=Path, help="real traces, too")
    parser.add_argument("--length", type=int, default=60_000, help="of a synthetic trace")
    parser.add_argument("--json", metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    players = {"lru": ours("lru"), "s3fifo": ours("s3fifo"), **rivals(), "optimum": optimum}
    names = list(players)
    versions = {name: installed(name) for name in ("theine", "cachebox") if name in players}
    facts: dict[str, Any] = {
        "question": "Which policy keeps what will be asked for again?",
        "workload": "seeded synthetic traces" + (", real traces" if options.traces else ""),
        "ceiling": "Belady's optimum (weighted: the farthest next use leaves first, no optimum)",
        "not_measured": "time, memory, expiry, concurrency",
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
        "rows": [],
    }
    print(facts["question"])
    for name in ("workload", "ceiling", "not_measured"):
        print(f"  {name.replace('_', ' ')}: {facts[name]}")
    print(f"  Python {facts['python']}, {facts['date']}; {versions}")
    print(f"  {'trace':24} {'entries':>8}" + "".join(f"{name:>10}" for name in names), end="")
    print(f"{'share':>8}{'over lru':>10}")
    groups = {"synthetic": synthetic(options.length)}
    if options.traces:
        groups["real"] = real(options.traces)
    for group, traces in groups.items():
        rows: list[dict[str, Any]] = []
        for trace in traces:
            for row in measured(trace, players):
                rows.append(row)
                hits = row["hit_ratio"]
                entries = f"{row['entries'] or format(row['size'], '.0%')}"
                print(f"  {row['trace']:24} {entries:>8}", end="")
                print(
                    "".join(f"{hits[n]:10.4f}" if n in hits else f"{'-':>10}" for n in names),
                    end="",
                )
                share = hits["s3fifo"] / hits["optimum"] if hits["optimum"] else 1.0
                print(f"{share:8.3f}{row['points_over_lru']:+10.2f}", flush=True)
        facts["rows"] += rows
        facts[f"share_of_optimum_{group}"] = shares(rows, names)
        facts[f"least_points_over_lru_{group}"] = min(row["points_over_lru"] for row in rows)
        print(f"  {group}: mean share of the optimum, caches of {LARGE} entries and more: ", end="")
        print(", ".join(f"{n} {v:.3f}" for n, v in facts[f"share_of_optimum_{group}"].items()))
        print(f"  {group}: s3fifo against lru, least: ", end="")
        print(f"{facts[f'least_points_over_lru_{group}']:+.2f} points")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=2)


if __name__ == "__main__":
    main()
