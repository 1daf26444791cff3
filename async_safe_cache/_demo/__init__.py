"""The demo: six parts, each told without and with the library, each measured.

It ends with exit status 1 if any promise is broken. What is counted is counted
outside the library: by the interpreter, by the origin, by the callers.
"""

import json
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from . import files, market, promises, races
from .report import Progress, Promise, Report

__all__ = ["PARTS", "Part", "main"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part, before it has run."""

    letter: str
    title: str
    run: Callable[[Progress], Report]


PARTS = (
    Part("a", "four threads, one set of files", files.run),
    Part("b", "100 coroutines, one origin (about 10 seconds)", market.run),
    Part("c", "the cancelled leader", promises.run_cancelled_leader),
    Part("d", "the stale write", promises.run_stale_write),
    Part("e", "the reason of every miss", promises.run_miss_reasons),
    Part("f", "the three classic races", races.run),
)


class _Progress:
    """Says on standard error what is being done; on a terminal, in one line that goes again."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Show *text* until the next one, or as a line of its own."""
        if self._terminal:
            text = f"\r\x1b[K{text} ..."
        else:
            text = f"{text}\n"
        sys.stderr.write(text)
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away, if it is one that can go."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _run(part: Part, number: int, of: int, progress: _Progress) -> Report:
    """Run one part; an error in it is a broken promise, and the next part runs."""
    begun = time.perf_counter()
    try:
        report = part.run(lambda doing: progress.say(f"[{number}/{of}] {part.title}: {doing}"))
    except Exception as error:  # noqa: BLE001 - whatever it is, the report has to name it
        progress.clear()
        traceback.print_exc()
        broken = Promise("the part runs to its end", "-", type(error).__name__, holds=False)
        report = Report(part.letter, part.title, "-", "it could not be told", (broken,))
    progress.clear()
    return replace(report, seconds=time.perf_counter() - begun)


def main(*, version: str, as_json: bool = False) -> int:
    """Run every part, print the report, return the exit status: 1 if a promise is broken."""
    begun = time.perf_counter()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    progress = _Progress()
    reports: list[Report] = []
    if not as_json:
        print(f"async-safe-cache {version} on {python}: every story without, then with the library")
        print(flush=True)
    for number, part in enumerate(PARTS, start=1):
        report = _run(part, number, len(PARTS), progress)
        reports.append(report)
        if not as_json:
            print("\n".join(report.lines()), flush=True)
    seconds = time.perf_counter() - begun
    made = [promise for report in reports for promise in report.promises]
    kept = sum(promise.holds for promise in made)
    holds = bool(reports) and all(report.holds for report in reports)
    if as_json:
        document = {
            "version": version,
            "python": python,
            "holds": holds,
            "promises": len(made),
            "kept": kept,
            "seconds": round(seconds, 3),
            "parts": [report.as_json() for report in reports],
        }
        print(json.dumps(document, indent=2))
    else:
        verdict = "every promise holds" if holds else f"{len(made) - kept} BROKEN"
        print(f"{kept} of {len(made)} promises hold, in {seconds:.1f} s: {verdict}")
        for report in reports:
            for promise in report.promises:
                if not promise.holds:
                    print(f"   BROKEN in {report.letter}: {promise.text}")
    return 0 if holds else 1
