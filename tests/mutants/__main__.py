"""Plant every bug of the catalogue on a copy of its own, and see who notices.

    python -m tests.mutants                  all; exit status 1 unless each is found
    python -m tests.mutants --only NAME      some
    python -m tests.mutants --search         whole test modules, where nobody is named or finds
    python -m tests.mutants --matrix         every scenario against every bug
    python -m tests.mutants --markdown       the table for docs/reliability.md

First the explorer runs the scenarios that claim to notice the bug, then all the others for
a short while; then the named tests run. Before anything, the copy without a bug must pass.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.scenarios import SCENARIOS

from .catalogue import MUTANTS, Mutant, StalePatchError
from .copies import BrokenCopyError, Find, copied

__all__ = ["main"]

CLAIMED = 1_200  # schedules of a scenario that claims to notice the bug; as in the suite
OTHERS = 30  # of each of the others
MATRIX = 150

# What a search runs: the tests of the promises, the quick ones first.
MODULES = (
    *("cache", "load_errors", "store", "sweeper", "options", "recursion", "cancellation"),
    *("flights", "failures", "decorator", "health", "lifecycle", "survivors", "fork"),
    *("dead_loops", "keys", "weight", "storm", "threads"),
)


@dataclass
class Result:
    """What became of one bug."""

    mutant: Mutant
    finds: list[Find] = field(default_factory=list)
    broken: str = ""
    false_claims: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether it was planted and found, by all that claim to."""
        return bool(self.finds) and not self.broken and not self.false_claims


def claiming(mutant: Mutant) -> list[str]:
    """Return the scenarios that claim to notice *mutant*, those of the catalogue first."""
    kills = [name for name, each in SCENARIOS.items() if mutant.name in each.kills]
    return list(dict.fromkeys((*mutant.scenarios, *kills)))


def tried(mutant: Mutant, base: Path, *, search: bool) -> Result:
    """Plant *mutant* and let everybody look who may notice it."""
    began = time.monotonic()
    result = Result(mutant)
    try:
        with copied(mutant, base) as copy:
            claims = claiming(mutant)
            if claims:
                result.finds = copy.explored(claims, CLAIMED, all_of_them=True)
                found = {find.by for find in result.finds}
                result.false_claims = [name for name in claims if name not in found]
            elif search:
                others = [name for name in SCENARIOS if name not in claims]
                result.finds = copy.explored(others, OTHERS)
            if mutant.tests and not result.finds:
                find = copy.tested(mutant.tests)
                result.finds = [] if find is None else [find]
            if search and not any("::" in find.by for find in result.finds):
                modules = [f"tests/test_{name}.py" for name in MODULES]
                modules = [each for each in modules if (base / each).exists()]
                find = copy.tested(modules)
                result.finds += [] if find is None else [find]
    except (StalePatchError, BrokenCopyError) as error:
        result.broken = str(error)
    result.seconds = time.monotonic() - began
    return result


def control(mutants: Sequence[Mutant], base: Path) -> str | None:
    """Run what is about to judge on a copy without a bug; return what is wrong with it."""
    scenarios = list(dict.fromkeys(name for each in mutants for name in claiming(each)))
    tests = sorted({test for each in mutants for test in each.tests})
    try:
        with copied(None, base) as copy:
            finds = copy.explored(scenarios, CLAIMED // 4, all_of_them=True, seconds=600)
            failed = copy.tested(tests, seconds=600) if tests else None
    except BrokenCopyError as error:
        return str(error)
    finds += [] if failed is None else [failed]
    return "\n".join(f"{find} ({find.how})" for find in finds) or None


def run(mutants: Sequence[Mutant], base: Path, *, search: bool, processes: int) -> list[Result]:
    """Try all, some at a time, and tell how it goes."""
    results: list[Result] = []
    began = time.monotonic()
    with ThreadPoolExecutor(processes) as pool:
        todo = [pool.submit(tried, each, base, search=search) for each in mutants]
        for number, done in enumerate(as_completed(todo), 1):
            result = done.result()
            results.append(result)
            said = "BROKEN" if result.broken else "; ".join(map(str, result.finds)) or "NOT FOUND"
            print(
                f"{number:4} of {len(mutants)} {time.monotonic() - began:5.0f} s  "
                f"{result.mutant.name}: {said}",
                file=sys.stderr,
                flush=True,
            )
    places = {each.name: place for place, each in enumerate(mutants)}
    return sorted(results, key=lambda result: places[result.mutant.name])


def table(results: Sequence[Result]) -> str:
    """Return the results for a terminal."""
    rows = [("mutant", "found by", "at schedule")]
    for result in results:
        find = result.finds[0] if result.finds else None
        by = "BROKEN" if result.broken else "NOTHING" if find is None else find.by
        at = "" if find is None or find.schedule is None else f"{find.schedule:,}"
        rows.append((result.mutant.name, by, at))
    wide = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{a:{wide[0]}}  {b:{wide[1]}}  {c:>{wide[2]}}" for a, b, c in rows)


def markdown(results: Sequence[Result]) -> str:
    """Return the results for docs/reliability.md."""
    lines = ["| planted bug | breaks | what a user would see | found by | at schedule |"]
    lines.append("|---|---|---|---|---:|")
    for result in results:
        find = result.finds[0] if result.finds else None
        by = "**nothing**" if find is None else find.by.removeprefix("tests/").replace("_", " ")
        if find is not None and "::" in find.by:
            module, _, test = find.by.removeprefix("tests/").partition(".py::")
            by = f"{module.removeprefix('test_')}: {test.split('::')[-1].removeprefix('test_')}"
            by = by.replace("_", " ")
        at = f"{find.schedule:,}" if find is not None and find.schedule else "test"
        mutant = result.mutant
        lines.append(f"| `{mutant.name}` | {mutant.line} | {mutant.what} | {by} | {at} |")
    return "\n".join(lines)


def noticed(mutant: Mutant | None, base: Path, scenarios: Sequence[str]) -> list[str]:
    """Return which of *scenarios* notice *mutant*; None is no bug at all."""
    name = "no bug" if mutant is None else mutant.name
    try:
        with copied(mutant, base) as copy:
            finds = copy.explored(scenarios, MATRIX, all_of_them=True, seconds=1200)
    except (StalePatchError, BrokenCopyError) as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return []
    print(f"{name}: {len(finds)} scenarios", file=sys.stderr, flush=True)
    return [find.by for find in finds]


def matrix(mutants: Sequence[Mutant], base: Path, *, processes: int) -> dict[str, list[str]]:
    """Run every scenario against every bug; return what each notices.

    A scenario that fails without a bug proves nothing, and is left out.
    """
    crying = noticed(None, base, list(SCENARIOS))
    kills: dict[str, list[str]] = {name: [] for name in SCENARIOS if name not in crying}
    with ThreadPoolExecutor(processes) as pool:
        found = pool.map(partial(noticed, base=base, scenarios=list(kills)), mutants)
        for mutant, scenarios in zip(mutants, found, strict=True):
            for each in scenarios:
                kills[each].append(mutant.name)
    return kills


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAME", nargs="+", action="extend", default=[])
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--matrix", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result here")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    unknown = set(options.only) - {each.name for each in MUTANTS}
    if unknown:
        parser.error(f"no planted bug is called {', '.join(sorted(unknown))}")
    mutants = [each for each in MUTANTS if not options.only or each.name in options.only]
    late = [each.name for each in mutants if sys.version_info < each.since]
    if late:
        print(f"they change nothing in this Python: {', '.join(late)}", file=sys.stderr)
        mutants = [each for each in mutants if each.name not in late]
    # One copy of the tree as it is now, to make all others of: somebody may be working on it.
    with copied() as base:
        if options.matrix:
            return tell_matrix(mutants, base.folder, options)
        return tell(mutants, base.folder, options)


def tell_matrix(mutants: Sequence[Mutant], base: Path, options: argparse.Namespace) -> int:
    """Print which scenario notices which bugs."""
    kills = matrix(mutants, base, processes=options.processes)
    if options.json:
        options.json.write_text(json.dumps(kills, indent=1))
    for name, killed in kills.items():
        print(f"{name}\n    {', '.join(killed) or 'NOTHING'}")
    crying = [name for name in SCENARIOS if name not in kills]
    if crying:
        print(f"\nleft out, for they fail without a bug: {', '.join(crying)}")
    return 1 if crying else 0


def tell(mutants: Sequence[Mutant], base: Path, options: argparse.Namespace) -> int:
    """Print who found which bug; return the exit status."""
    wrong = control(mutants, base)
    if wrong:
        print(f"the copy without a bug does not pass, so nothing can be judged:\n{wrong}")
        return 1
    print("the copy without a bug passes", file=sys.stderr, flush=True)
    began = time.monotonic()
    results = run(mutants, base, search=options.search, processes=options.processes)
    if options.json:
        finds = {r.mutant.name: [[f.by, f.schedule, f.how] for f in r.finds] for r in results}
        options.json.write_text(json.dumps(finds, indent=1))
    print(markdown(results) if options.markdown else table(results))
    for result in results:
        if result.broken:
            print(f"\n{result.mutant.name}: BROKEN\n{result.broken}", file=sys.stderr)
        if result.false_claims:
            print(
                f"\n{result.mutant.name}: not noticed by {', '.join(result.false_claims)}, "
                "which claim to",
                file=sys.stderr,
            )
    bad = sum(not result.good for result in results)
    explored = sum(any(find.schedule for find in result.finds) for result in results)
    print(
        f"\n{len(results)} planted bugs, {len(results) - bad} found ({explored} by the explorer), "
        f"{bad} not; {time.monotonic() - began:.0f} s",
        file=sys.stderr,
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
