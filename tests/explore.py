"""The long exploration, on demand: `python -m tests.explore` (`make explore`).

Every scenario under many schedules, every small one in every order, cancellations at
every await, random programs whose histories are checked, and the store's model. Ends with
a table of what was run; exit status 1 if anything failed.
"""

import argparse
import asyncio
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from async_safe_cache.testing import Exhaustive, ExplorationError, explore

from .scenarios import SCENARIOS

CHUNK = 4_000  # schedules of one job
Job = tuple[str, Any]
Result = tuple[Job, Counter[str], str | None]

GOALS = {
    "schedules": 2_000_000,
    "cancellations": 100_000,
    "histories": 10_000,
    "model steps": 1_000_000,
}


def jobs(schedules: int, cancellations: int, histories: int, steps: int) -> Iterator[Job]:
    """Yield what is to be run, in an order that mixes the kinds."""
    for name, each in SCENARIOS.items():
        if each.two_tasks:
            yield "exhaustive", name
    for seed, begin in enumerate(range(0, histories, 500)):
        yield "programs", (seed, min(500, histories - begin))
    for seed, begin in enumerate(range(0, steps, 100_000)):
        yield "model", (seed, min(100_000, steps - begin))
    victims = [(name, task) for name, each in SCENARIOS.items() for task in each.cancel]
    for name, task in victims:
        # About two of five such schedules deliver their cancellation.
        share = cancellations * 3 // len(victims) + 1
        for seed, begin in enumerate(range(0, share, CHUNK)):
            yield "cancel", (name, task, seed, min(CHUNK, share - begin))
    share = schedules // len(SCENARIOS) + 1
    for seed, begin in enumerate(range(0, share, CHUNK)):
        for name in SCENARIOS:
            yield "explore", (name, seed, min(CHUNK, share - begin))


def run(job: Job) -> Result:
    """Run one job in this process."""
    kind, what = job
    logging.getLogger("async_safe_cache").setLevel(logging.ERROR)  # overlaps are subjects here
    counts: Counter[str] = Counter()
    try:
        if kind == "explore":
            name, seed, share = what
            result = explore(SCENARIOS[name], schedules=share, seed=seed)
            counts.update(schedules=result.schedules, distinct=result.distinct, steps=result.steps)
        elif kind == "cancel":
            name, task, seed, share = what
            result = explore(SCENARIOS[name], schedules=share, seed=seed, cancel=task)
            counts.update(schedules=result.schedules, distinct=result.distinct, steps=result.steps)
            counts["cancellations"] += result.cancel_points
        elif kind == "exhaustive":
            result = explore(SCENARIOS[what], schedules=200_000, policy=Exhaustive(None))
            if not result.exhausted:
                result = explore(SCENARIOS[what], schedules=200_000, policy=Exhaustive(3))
                counts["exhausted within three pre-emptions"] += result.exhausted
            else:
                counts["exhausted"] += 1
            counts.update(schedules=result.schedules, distinct=result.distinct, steps=result.steps)
            if not result.exhausted:
                return job, counts, f"{what} is too large to be run in every order"
        elif kind == "programs":
            from .programs import check_programs

            counts["histories"] += check_programs(*what)
        else:
            from .model_steps import play

            seed, steps = what
            asyncio.run(play(steps, seed), debug=False)
            counts["model steps"] += steps
    except ExplorationError as error:
        return job, counts, str(error)
    except Exception as error:
        return job, counts, f"{type(error).__name__}: {error}"
    return job, counts, None


def main() -> int:
    """Run all, print progress and a table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.explore", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the goals; 0.01 is a trial")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    goals = {name: max(1, int(goal * options.scale)) for name, goal in GOALS.items()}
    todo = list(jobs(*goals.values()))
    total: Counter[str] = Counter()
    failures: list[tuple[Job, str]] = []
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for number, (job, counts, failure) in enumerate(pool.imap_unordered(run, todo), 1):
            total.update(counts)
            if failure is not None:
                failures.append((job, failure))
                print(f"\n{job} FAILED\n{failure}\n", flush=True)
            if sys.stderr.isatty() or number % 50 == 0:
                seconds = time.monotonic() - began
                print(
                    f"\r{number:5} of {len(todo)} jobs, {total['schedules']:11,} schedules, "
                    f"{len(failures)} failures, {seconds:6.0f} s, about "
                    f"{seconds / number * (len(todo) - number):6.0f} s left ",
                    end="" if sys.stderr.isatty() else "\n",
                    file=sys.stderr,
                    flush=True,
                )
    print(f"\n{len(SCENARIOS)} scenarios, {time.monotonic() - began:.0f} s")
    for name in (*GOALS, *sorted(set(total) - set(GOALS))):
        goal = f"   (goal {goals[name]:,})" if name in goals else ""
        print(f"{total[name]:14,}  {name}{goal}")
    short = [name for name, goal in goals.items() if total[name] < goal]
    if short:
        print(f"short of the goal: {', '.join(short)}")
    print(f"{len(failures):14,}  failures")
    return bool(failures or short)


if __name__ == "__main__":
    sys.exit(main())
