"""Part a: four threads read and parse the same 53 files, with a plain `def`.

The files are real: modules of the standard library of the running Python. How
often each was opened is told by the interpreter (an audit hook on `open`), not
by the library.
"""

import sys
import sysconfig
import threading
import time
import tokenize
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from async_safe_cache import AsyncSafeCache, race_safe_cached

from .report import Measure, Progress, Promise, Report

FILES = 53
THREADS = 4


@dataclass(frozen=True, slots=True)
class Rule:
    """A definition that a file contains: of what kind, its name, on which line."""

    kind: str
    name: str
    line: int


Rules = tuple[Rule, ...]


def load_rules(path: str) -> Rules:
    """Read one source file and list the functions and classes in it."""
    # Tokens and not a syntax tree: Python 3.11 cannot build two trees in two threads at once
    # without a SystemError now and then.
    with open(path, encoding="utf-8") as file:
        return tuple(
            Rule(token.string, following.string, token.start[0])
            for token, following in pairwise(tokenize.generate_tokens(file.readline))
            if token.type == tokenize.NAME and token.string in {"def", "class"}
        )


def source_files(count: int) -> list[str]:
    """Return the first *count* modules of the standard library of 8 to 60 kB, by name."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in folder.glob("*.py") if 8_000 < path.stat().st_size < 60_000]
    if len(paths) < count:
        raise FileNotFoundError(f"{count} source files wanted, {folder} holds {len(paths)}")
    return [str(path) for path in sorted(paths)[:count]]


class _Opened:
    """Counts how often the watched files are opened, by the interpreter's own report."""

    def __init__(self) -> None:
        self._watched: frozenset[str] = frozenset()
        self._paths: list[str] = []  # append is atomic; bounded by one half of this part
        self._installed = False

    def watch(self, paths: list[str]) -> None:
        """Begin to count opens of *paths*, from zero."""
        if not self._installed:  # a hook stays for the life of the process: add one only
            sys.addaudithook(self._hear)
            self._installed = True
        self._paths = []
        self._watched = frozenset(paths)

    def stop(self) -> int:
        """Stop counting and return how many opens there were."""
        self._watched = frozenset()
        return len(self._paths)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open" and self._watched and args[0] in self._watched:
            self._paths.append(str(args[0]))


_OPENED = _Opened()


@dataclass(frozen=True, slots=True)
class _Half:
    opened: int
    seconds: list[float]
    results: list[list[Rules]]


def _four_threads(load: Callable[[str], Rules], paths: list[str]) -> _Half:
    """Let every thread ask for every file, all starting at the same moment."""
    barrier = threading.Barrier(THREADS)

    def work() -> tuple[float, list[Rules]]:
        barrier.wait()
        begun = time.perf_counter()
        rules = [load(path) for path in paths]
        return time.perf_counter() - begun, rules

    _OPENED.watch(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(work) for _ in range(THREADS)]
    opened = _OPENED.stop()
    finished = [each.result() for each in running]
    return _Half(opened, [seconds for seconds, _ in finished], [rules for _, rules in finished])


def run(progress: Progress) -> Report:
    """Measure four threads that each need the rules of all files."""
    paths = source_files(FILES)
    progress("without the library")
    plain = _four_threads(load_rules, paths)
    progress("with the library")
    cache = AsyncSafeCache("rules")
    cached = _four_threads(race_safe_cached(cache, "rules")(load_rules), paths)

    wanted = plain.results[0]
    same = wanted != [] and all(rules == wanted for rules in plain.results + cached.results)
    rules = sum(len(rules) for rules in wanted)
    rows = (
        Promise(
            "times a file was opened (audit hook)",
            f"{plain.opened}",
            f"{cached.opened}",
            plain.opened == THREADS * FILES and cached.opened == FILES,
        ),
        Promise(
            f"the {rules:,} rules, thread by thread",
            "identical" if same else "different",
            "identical" if same else "different",
            same,
        ),
        *(
            Measure(f"time of thread {number}", f"{before:.2f} s", f"{after:.2f} s")
            for number, (before, after) in enumerate(
                zip(plain.seconds, cached.seconds, strict=True), start=1
            )
        ),
    )
    return Report(
        "a",
        f"{THREADS} threads, {FILES} files: modules of the standard library, parsed into rules",
        "every thread opens and parses every file for itself",
        "the first thread to ask for a file parses it, the others wait for its result",
        rows,
        {
            "files": FILES,
            "threads": THREADS,
            "rules": rules,
            "opened_without": plain.opened,
            "opened_with": cached.opened,
            "identical": same,
            "seconds_without": plain.seconds,
            "seconds_with": cached.seconds,
        },
    )
