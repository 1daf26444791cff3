"""How many bytes does an entry take, above its key and its value?

python -m benchmarks.memory [--rounds N] [--json PATH] [--check]
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from .peers import OURS, PEERS, S3FIFO, NoMeansError, Ours, installed
from .runner import ROOT, Case, Question, Run, main, spread, unpinned

QUESTION: Final = Question(
    name="memory",
    question="How many bytes does an entry take, above its key and its value?",
    workload="str keys and one shared value, all made before; a cache without a bound that it "
    "could reach is filled to 1,000,000 entries with a ttl of an hour, and looked at on the way "
    "at 17 sizes from 10,000 on, each a third larger than the one before: the tables of dicts "
    "grow in jumps, so one size alone says little. Each filling in a process of its own, which "
    "sees its allocations (tracemalloc) or its resident memory",
    rivals="async-lru, cachebox (TTLCache), theine (Cache): resident memory only, as native code "
    "takes memory that Python does not see. Their bound is 2,000,000 entries from the start "
    "(async-lru: none), so what one sizes by its bound weighs on its figures at small sizes",
    floor="dict: the same keys in a dict of (value, deadline) tuples",
    not_measured="what the allocator keeps after many entries have come and gone; tags, removal "
    "records and statistics, which have bounds of their own (docs/memory.md)",
    rounds=1,
)

SMALLEST: Final = 10_000
SIZES: Final = 17
"""Sizes from the smallest to a hundred times that."""

SHOWN: Final = {0: "10,000", 8: "100,000", 16: "1,000,000"}
DICT: Final = "dict"
LONG: Final = 3600.0
LIMITS: Final = {OURS: (300, 220), S3FIFO: (220, 130)}

Put = Callable[[str, object], Awaitable[None]]


class Way(NamedTuple):
    """One filling: by whom, and how it is looked at."""

    title: str
    traced: bool


# ---- inside its process


def _ours(title: str, entries: int) -> Put:
    cache = cast("Ours", PEERS[title]).cache(
        max_memory_bytes=1 << 40, max_entries=2 * entries, default_ttl=LONG
    )

    async def put(key: str, value: object, cache: Any = cache) -> None:
        await cache.set(key, value)

    return put


def _putter(title: str, entries: int) -> Put:
    if title in (OURS, S3FIFO):
        return _ours(title, entries)
    if title == "async-lru":
        from async_lru import alru_cache

        shared: list[object] = [None]

        @alru_cache(maxsize=None, ttl=LONG)
        async def value_of(key: str) -> object:
            return shared[0]

        async def call(key: str, value: object) -> None:
            shared[0] = value
            await value_of(key)

        return call
    known: Any
    if title == "cachebox":
        import cachebox

        known = cachebox.TTLCache(2 * entries, LONG)
        put_one = known.insert
    elif title == "theine":
        from datetime import timedelta

        from theine import Cache

        known, hour = Cache(2 * entries), timedelta(hours=1)

        def put_one(key: str, value: object) -> None:
            known.set(key, value, hour)
    else:
        known = {}

        def put_one(key: str, value: object) -> None:
            known[key] = value, float(len(known))

    async def put(key: str, value: object) -> None:
        put_one(key, value)

    return put


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def _fill(title: str, *, traced: bool, smallest: int) -> list[float]:
    """Return the bytes an entry at each size."""
    sizes = [round(smallest * 10 ** (step / 8)) for step in range(SIZES)]
    keys = [f"user:{number:09}" for number in range(sizes[-1])]
    value = "a value"
    put = _putter(title, sizes[-1])
    gc.collect()
    gc.disable()  # it would walk what grows again and again; it frees nothing that counts here
    if traced:
        tracemalloc.start()
    used = (lambda: tracemalloc.get_traced_memory()[0]) if traced else _resident
    before, found, begin = used(), [], 0
    for size in sizes:
        for number in range(begin, size):
            await put(keys[number], value)
        begin = size
        gc.collect()
        gc.freeze()  # the next collection walks only what is new
        found.append((used() - before) / size)
    return found


def child(title: str, kind: str, smallest: str) -> None:
    """Be the process of one filling."""
    try:
        with asyncio.Runner(debug=False) as runner:
            found = runner.run(_fill(title, traced=kind == "traced", smallest=int(smallest)))
            print(json.dumps(found), flush=True)
            os._exit(0)  # freeing a million entries takes seconds and says nothing
    except NoMeansError as error:
        sys.exit(f"{title}: {error}")


# ---- all of them


def _filled(way: Way, smallest: int) -> list[float] | None:
    kind = "traced" if way.traced else "resident"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--child", way.title, kind, str(smallest)],
        cwd=ROOT,
        # Freed tables go back to the system at once, whatever size the last one had.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"    left out: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    return cast("list[float]", json.loads(done.stdout))


def measure(run: Run) -> list[Case]:
    """Return the bytes by tracemalloc, and by resident memory."""
    smallest = run.size(SMALLEST, 20)
    ours = [title for title in (OURS, S3FIFO) if title in installed((OURS, S3FIFO))]
    ways = [Way(title, traced=True) for title in (*ours, DICT)]
    if Path("/proc/self/statm").exists():
        others = installed(("async-lru", "cachebox", "theine"))
        ways += [Way(title, traced=False) for title in (*ours, *others, DICT)]
    else:
        run.say("resident memory is left out: this system has no /proc")
    run.say(f"{len(ways)} fillings up to {smallest * 100:,} entries: {', '.join(ours)} and others")
    with unpinned(), ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1))) as pool:
        found = dict(zip(ways, pool.map(lambda way: _filled(way, smallest), ways), strict=True))
    cases = []
    for traced, name in ((True, "allocated (tracemalloc)"), (False, "resident memory")):
        case = Case(f"{name}, over 17 sizes", "bytes an entry", 1)
        for way, sizes in found.items():
            if way.traced is not traced or sizes is None:
                continue
            case.figures[way.title] = spread(sizes)
            mean = sum(sizes) / len(sizes)
            what = f"bytes an entry, mean of all sizes, {way.title}"
            if traced and way.title in LIMITS:
                limit, aim = LIMITS[way.title]
                case.fact(what, mean, "<=", limit, aim)
            else:
                case.facts[what] = mean
            for place, size in SHOWN.items():
                case.facts[f"at {size}, {way.title}"] = sizes[place]
        if case.figures:
            cases.append(case)
    return cases


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    sys.exit(main(QUESTION, measure))
