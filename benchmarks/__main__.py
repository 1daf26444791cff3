"""All questions, or some, each in a process of its own; the answers go into one file.

    python -m benchmarks [QUESTION ...] [--rounds N] [--scale X] [--json PATH] [--check]

Without --json the answers go to benchmarks/results/<Python's version>.json; those of
other questions that are there already stay. A trial (--scale) writes only where --json
says. Tables and plots are made from these files: `make plots`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from .runner import FORMAT, ROOT, arguments, goal_text, number, unmet, verdict

QUESTIONS: Final = (
    "hit",
    "stampede",
    "miss",
    "mixed",
    "sweep",
    "clear",
    "memory",
    "growth",
    "gc_pause",
    "freshness",
)

RESULTS: Final = ROOT / "benchmarks" / "results"


def results_path() -> Path:
    """Return where the answers of this Python go."""
    return RESULTS / "{}.{}.json".format(*sys.version_info[:2])


def merged(before: dict[str, Any] | None, answers: dict[str, Any]) -> dict[str, Any]:
    """Return *answers* beside those of other questions that *before* holds."""
    known = {} if before is None or before.get("format") != FORMAT else before["questions"]
    together = {**known, **answers}
    names = [name for name in QUESTIONS if name in together]
    return {"format": FORMAT, "questions": {name: together[name] for name in names}}


def write(target: Path, answers: dict[str, Any]) -> None:
    """Put *answers* into the file *target*, beside those of other questions."""
    target.parent.mkdir(exist_ok=True)
    before = json.loads(target.read_text(encoding="utf-8")) if target.exists() else None
    text = json.dumps(merged(before, answers), indent=1, ensure_ascii=False)
    target.write_text(text + "\n", encoding="utf-8")


def goals(answers: dict[str, Any]) -> list[str]:
    """Return one line for each goal."""
    lines = []
    for name, facts in answers.items():
        for case in facts["cases"]:
            for goal in case["goals"]:
                what = f"{name}: {case['name']}"
                lines.append(
                    f"{what:60.60} {goal_text(goal):36.36} {number(goal['observed']):>9}  "
                    f"{verdict(goal)}"
                )
    return lines


def main() -> int:
    """Ask, print, write."""
    parser = arguments("python -m benchmarks", "Speed and memory beside others.")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    options = parser.parse_args()
    if unknown := [name for name in options.questions if name not in QUESTIONS]:
        parser.error(f"{', '.join(unknown)}: not a question; there are {', '.join(QUESTIONS)}")
    chosen = [name for name in QUESTIONS if name in (options.questions or QUESTIONS)]
    target = Path(options.json) if options.json else results_path() if options.scale == 1 else None
    answers: dict[str, Any] = {}
    failed: list[str] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for place, name in enumerate(chosen, 1):
            print(f"[{place}/{len(chosen)}] {name}", file=sys.stderr, flush=True)
            path = Path(folder) / name
            command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path)]
            command += ["--scale", str(options.scale)]
            if options.rounds is not None:
                command += ["--rounds", str(options.rounds)]
            # A seed of its own, the same for all runs: which keys of a dict collide is luck.
            env = {**os.environ, "PYTHONHASHSEED": "0"}
            done = subprocess.run(command, cwd=ROOT, check=False, env=env)
            print(flush=True)
            if done.returncode or not path.exists():
                failed.append(name)
                continue
            answers[name] = json.loads(path.read_text(encoding="utf-8"))
            if target is not None:
                write(target, answers)  # now: a run that is interrupted keeps what it has
    spent = os.times()
    cpu = spent.children_user + spent.children_system
    print(f"\nGoals ({time.monotonic() - begin:.0f} s in all, {cpu:.0f} s of CPU time)")
    print("\n".join(goals(answers)))
    for name in failed:
        print(f"error: {name} failed; run python -m benchmarks.{name}", file=sys.stderr)
    if target is not None and answers:
        print(f"written to {target}")
    missed = [each for facts in answers.values() for each in unmet(facts)]
    return int(bool(failed) or (options.check and bool(missed)))


if __name__ == "__main__":
    sys.exit(main())
