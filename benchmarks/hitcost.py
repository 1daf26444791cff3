"""How many instructions does a hit take?

    python -m benchmarks.hitcost [--json PATH] [--update] [--tool callgrind|perf]

Question: instructions of one hit, for each template that wrappers are compiled from.
Method: `perf stat` where the machine lets it count, else `valgrind --tool=callgrind`.
One run with N hits of every template, and one run for each template with N more of
it: the difference is its hits alone, because all else in the two runs is the same
(PYTHONHASHSEED is fixed, and no event loop runs). Unlike a time, it does not depend
on what else the machine does, so that a regression of a few instructions is seen.
The written results (benchmarks/hitcost.json, one per minor release of Python) are
compared with: status 1 if a template takes more than 3 % more, or is missing there.
Floor: bare, awaiting an empty coroutine.
Not measured: what the instructions cost: cache misses, wrong branch predictions.
Instructions of another build of the same Python differ; --update writes yours.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from .runner import ROOT

HITS: Final = 5_000
TOLERANCE: Final = 0.03
WRITTEN: Final = ROOT / "benchmarks" / "hitcost.json"
LONG: Final = 3600.0

NO_TOOL: Final = (
    "error: nothing here counts instructions: install valgrind (Debian, Ubuntu, Fedora: the "
    "package valgrind), or perf on a machine that lets it count (the package linux-perf or "
    "linux-tools, and /proc/sys/kernel/perf_event_paranoid at 2 or below)"
)


# ---- inside the process that is counted


def _of(fn: Any, ttl: float | None = None) -> Any:
    from async_safe_cache import AsyncSafeCache, race_safe_cached

    return race_safe_cached(AsyncSafeCache("hitcost"), ttl=ttl)(fn)


async def _one(call: Callable[..., Any], hits: int) -> None:
    for _ in range(hits):
        await call("AAPL")


async def _three(call: Callable[..., Any], hits: int) -> None:
    for _ in range(hits):
        await call("AAPL", 100, venue="XLON")


async def _plain(call: Callable[..., Any], hits: int) -> None:
    for _ in range(hits):
        call("AAPL")


async def _bare() -> Any:
    async def price(symbol: str) -> float:
        return 1.5

    return price


async def _no_ttl() -> Any:
    async def price(symbol: str) -> float:
        return 1.5

    return _of(price)


async def _ttl() -> Any:
    async def price(symbol: str) -> float:
        return 1.5

    return _of(price, LONG)


async def _keyword() -> Any:
    async def quote(symbol: str, amount: int, *, venue: str = "XNYS") -> float:
        return 1.5

    return _of(quote, LONG)


async def _def() -> Any:
    def price(symbol: str) -> float:
        return 1.5

    return _of(price)


async def _ahead() -> Any:
    from async_safe_cache import AsyncSafeCache, CacheWarmingStrategy, race_safe_cached

    cache = AsyncSafeCache("hitcost")
    CacheWarmingStrategy(cache)

    async def price(symbol: str) -> float:
        return 1.5

    return race_safe_cached(cache, ttl=LONG, refresh_ahead=0.8)(price)


class Desk:
    """Who has a cached method."""

    async def price(self, symbol: str) -> float:
        return 1.5


async def _method() -> Any:
    Desk.price = _of(Desk.price, LONG)  # type: ignore[method-assign]
    return Desk().price


TEMPLATES: Final[dict[str, tuple[Callable[[], Any], Callable[..., Any]]]] = {
    "bare": (_bare, _one),
    "1 argument, no ttl": (_no_ttl, _one),
    "1 argument, ttl": (_ttl, _one),
    "2 arguments and a keyword, ttl": (_keyword, _three),
    "def, 1 argument, no ttl": (_def, _plain),
    "method, 1 argument, ttl": (_method, _one),
    "1 argument, ttl, refreshed ahead and counted": (_ahead, _one),
}


def probe(hits: list[int]) -> None:
    """Make every template's function, and call each so many times."""

    async def warm() -> list[tuple[Any, Any]]:
        made = []
        for make, loop in TEMPLATES.values():
            call = await make()
            await loop(call, 1)
            made.append((call, loop))
        return made

    with asyncio.Runner(debug=False) as runner:
        made = runner.run(warm())
    for (call, loop), count in zip(made, hits, strict=True):
        try:
            loop(call, count).send(None)  # a hit never waits, so it needs no event loop
        except StopIteration:
            continue
        raise AssertionError("a hit waited")
    os._exit(0)


# ---- counting


def _command(hits: list[int]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.hitcost", "--probe", *map(str, hits)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False
    )


def _by_perf(hits: list[int]) -> int | None:
    command = ["perf", "stat", "-x", ";", "-e", "instructions:u", "--", *_command(hits)]
    found = re.search(r"^(\d+);[^;]*;instructions", _run(command).stderr, re.MULTILINE)
    return int(found[1]) if found else None


def _by_callgrind(hits: list[int]) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        done = _run(["valgrind", *options, *_command(hits)])
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None or done.returncode:
        print(done.stderr[-2_000:], file=sys.stderr)
        return None
    return int(found[1])


TOOLS: Final[dict[str, tuple[str, Callable[[list[int]], int | None]]]] = {
    "perf": ("perf", _by_perf),
    "callgrind": ("valgrind", _by_callgrind),
}


def usable(only: str | None) -> str | None:
    """Return the tool that can count here, perf first; None if there is none."""
    for name, (program, count) in TOOLS.items():
        if only not in (None, name) or shutil.which(program) is None:
            continue
        if name == "perf" and count([1] * len(TEMPLATES)) is None:
            continue  # it is there, and the machine does not let it count
        return name
    return None


def measured(tool: str, hits: int = HITS) -> dict[str, float]:
    """Return the instructions of one hit of each template."""
    count = TOOLS[tool][1]
    first = [hits] * len(TEMPLATES)
    runs = [first]
    for place in range(len(TEMPLATES)):
        runs.append([*first[:place], 2 * hits, *first[place + 1 :]])
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        counts = list(pool.map(count, runs))
    if None in counts:
        raise SystemExit(f"error: {tool} counted nothing; run it by hand: {_command(first)}")
    known = [number for number in counts if number is not None]
    return {
        name: round((number - known[0]) / hits, 1)
        for name, number in zip(TEMPLATES, known[1:], strict=True)
    }


# ---- the written results


def judged(
    found: dict[str, float], written: dict[str, float] | None
) -> list[tuple[str, float, float | None, str]]:
    """Return each template with what was found, what is written, and a verdict."""
    rows = []
    for name, instructions in found.items():
        before = None if written is None else written.get(name)
        if before is None:
            verdict = "NOT WRITTEN"
        elif instructions > before * (1 + TOLERANCE):
            verdict = "MORE"
        elif instructions < before * (1 - TOLERANCE):
            verdict = "fewer"
        else:
            verdict = "same"
        rows.append((name, instructions, before, verdict))
    return rows


def main() -> int:
    """Count, compare, print; write if asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hitcost", description="Instructions of a hit."
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures there")
    parser.add_argument("--update", action="store_true", help="write them as what is right")
    parser.add_argument("--tool", choices=list(TOOLS), help="instead of the first that works")
    parser.add_argument("--probe", nargs="+", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        probe(options.probe)
    tool = usable(options.tool)
    if tool is None:
        print(NO_TOOL, file=sys.stderr)
        return 2
    begin = time.monotonic()
    found = measured(tool)
    minor = "{}.{}".format(*sys.version_info[:2])
    everything = json.loads(WRITTEN.read_text(encoding="utf-8")) if WRITTEN.exists() else {}
    written = everything.get(minor)
    facts = {
        "build": f"{platform.python_version()} {platform.python_compiler()}",
        "machine": platform.machine(),
        "tool": tool,
        "hits": HITS,
        "instructions": found,
    }
    rows = judged(found, None if written is None else written["instructions"])
    print(f"Instructions of one hit, by {tool}; CPython {facts['build']}, {facts['machine']}")
    print(f"{'':34}{'now':>9}{'written':>9}")
    for name, now, before, verdict in rows:
        was = "-" if before is None else f"{before:.0f}"
        change = "" if before is None else f" ({now / before - 1:+.1%})"
        print(f"{name:34}{now:9.0f}{was:>9}   {verdict}{change}")
    print(f"({time.monotonic() - begin:.0f} s)")
    if options.json:
        text = json.dumps(facts, indent=1)
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    if options.update:
        everything[minor] = facts
        text = json.dumps(dict(sorted(everything.items())), indent=1)
        WRITTEN.write_text(text + "\n", encoding="utf-8")
        print(f"written to {WRITTEN}")
        return 0
    bad = [name for name, _, _, verdict in rows if verdict in ("MORE", "NOT WRITTEN")]
    if bad:
        print(f"error: a hit takes more than is written: {', '.join(bad)}", file=sys.stderr)
        for each in ("build", "machine", "tool"):
            if written is not None and written[each] != facts[each]:
                print(
                    f"  the written results are of another {each}, {written[each]}: compare with "
                    "an unchanged checkout first",
                    file=sys.stderr,
                )
        print(
            "  if that is right: make hitcost ARGS=--update, and say why in the commit",
            file=sys.stderr,
        )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
