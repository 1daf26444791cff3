"""Runs inside a copy of the tree: the explorer over some scenarios, a line of JSON for each.

    python -m tests.mutants.hunt [--all-of-them] SCHEDULES NAME...

Each task that a scenario names to be cancelled gets a third of the schedules of its own.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import async_safe_cache
from async_safe_cache.testing import ExplorationError, explore
from tests.scenarios import SCENARIOS, Scenario

__all__ = ["hunted"]


def hunted(each: Scenario, schedules: int) -> dict[str, Any]:
    """Explore *each*; return how it failed and at which schedule, or that it did not."""
    count = 0
    for task in (*each.cancel, None):
        share = schedules if task is None else max(20, schedules // 3)
        try:
            count += explore(each, schedules=share, cancel=task, max_shrinks=0).schedules
        except ExplorationError as error:
            told = str(error.cause or error).partition("\n")[0][:120]
            return {
                "scenario": each.name,
                "schedule": count + error.explored,
                "kind": error.kind,
                "cancel": task,
                "error": f"{type(error.cause or error).__name__}: {told}",
            }
    return {"scenario": each.name, "schedule": None, "explored": count}


def main() -> None:
    """Explore what the command line names, until the first that fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.hunt", description=__doc__)
    parser.add_argument("--all-of-them", action="store_true", help="go on after the first find")
    parser.add_argument("schedules", type=int)
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    here = Path.cwd().resolve()
    if not Path(async_safe_cache.__file__).resolve().is_relative_to(here):
        sys.exit(f"the package is not that of {here}: the bug would not be in it")
    print(json.dumps({"ready": len(SCENARIOS)}), flush=True)
    for name in options.names:
        result = hunted(SCENARIOS[name], options.schedules)
        print(json.dumps(result), flush=True)
        if result["schedule"] and not options.all_of_them:
            break


if __name__ == "__main__":
    main()
