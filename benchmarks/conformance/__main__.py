"""Who keeps which promise? The same stories for this library and its peers.

    python -m benchmarks.conformance [--only ROW-OR-LIBRARY ...] [--markdown | --readme]
                                     [--write PATH] [--json PATH] [--check] [--list]
                                     [--jobs PROCESSES] [--hang SECONDS]

Question: what do callers see, in each of the stories of rows.py?
Method: every cell runs in a process of its own, so that no story meets what
another one left behind. A story that has not ended after 5 seconds (--hang)
"hangs". A library without documented means for a story has "-" there.
Not measured: speed, memory per entry, anything behind a network.
"""

import argparse
import asyncio
import inspect
import json
import os
import platform
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Final, final

from .peers import DEFAULT, OURS, PEERS, NoMeansError
from .rows import ROWS, Row

ROOT: Final = Path(__file__).parents[2]

LOST: Final = 60.0
"""Seconds beyond the limit of its story after which a process that says nothing is ended."""

BEGIN: Final = "<!-- conformance: begin -->"
END: Final = "<!-- conformance: end -->"
"""Between these lines of a file --write puts its table."""


@final
@dataclass(frozen=True)
class Cell:
    """What one library did in one story; `passed` is None where nobody is judged."""

    row: str
    peer: str
    seen: str
    passed: bool | None
    note: str = ""

    @property
    def text(self) -> str:
        """What was seen, with its verdict."""
        return {True: "✓ ", False: "✗ ", None: ""}[self.passed] + self.seen


@final
@dataclass(frozen=True)
class Results:
    """All cells of one run, with what is needed to read them."""

    rows: Sequence[Row]
    peers: Sequence[str]
    cells: Sequence[Cell]
    versions: dict[str, str]
    python: str
    date: str
    hang: float

    def cell(self, row: Row, peer: str) -> Cell:
        """Return what *peer* did in *row*."""
        return next(each for each in self.cells if (each.row, each.peer) == (row.name, peer))

    def unkept(self, peer: str) -> list[str]:
        """Return the rows that *peer* fails or has no means for."""
        cells = [cell for cell in self.cells if cell.peer == peer]
        return [cell.row for cell in cells if cell.passed is False or cell.seen == "-"]

    def score(self, peer: str) -> str:
        """Return how many of its judged stories *peer* passes."""
        judged = [cell for cell in self.cells if cell.peer == peer and cell.passed is not None]
        return f"{sum(cell.passed is True for cell in judged)} of {len(judged)}"

    def head(self, peer: str) -> str:
        """Return the head of *peer*'s column."""
        return f"{PEERS[peer].title} {self.versions[peer]}".strip()


# ---- one cell, inside its process


def play(row: Row, peer: str, hang: float) -> None:
    """Play one story, print what was seen, and end the process with all that still runs in it."""
    first = threading.Lock()

    def tell(seen: str, note: str = "") -> None:
        first.acquire()  # and never given back: who comes second has nothing to say
        passed = None if row.right is None or seen == "-" else row.right(seen)
        print(json.dumps(asdict(Cell(row.name, peer, seen, passed, note))), flush=True)
        os._exit(0)

    async def in_a_loop(story: Any) -> None:
        # Told from inside: closing the loop would wait for what the library left in it.
        try:
            tell(await story)
        except NoMeansError as error:
            tell("-", str(error))
        except BaseException as error:
            tell(f"{type(error).__name__} raised", traceback.format_exc())

    watch = threading.Timer(hang, tell, ("hangs",))
    watch.daemon = True
    watch.start()
    try:
        story = row.story(PEERS[peer]())
        if inspect.iscoroutine(story):
            asyncio.run(in_a_loop(story))
        else:
            tell(str(story))
    except NoMeansError as error:
        tell("-", str(error))
    except BaseException as error:
        tell(f"{type(error).__name__} raised", traceback.format_exc())


# ---- all cells


def run_cell(row: Row, peer: str, hang: float) -> Cell:
    """Play one story in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.conformance", "--cell", row.name, peer]
    command += ["--hang", str(hang)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=hang + LOST, check=False
        )
    except subprocess.TimeoutExpired:
        return Cell(row.name, peer, "hangs", None if row.right is None else False)
    try:
        return Cell(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        note = done.stderr[-2_000:]
        return Cell(row.name, peer, f"exit {done.returncode}", False, note)


def run(rows: Sequence[Row], peers: Sequence[str], jobs: int, hang: float) -> Results:
    """Play *rows* for *peers*, *jobs* processes at a time."""
    places = [(row, peer) for row in rows for peer in peers]
    with ThreadPoolExecutor(jobs) as pool:
        cells = list(pool.map(lambda place: run_cell(*place, hang), places))
    return Results(
        rows=rows,
        peers=peers,
        cells=cells,
        versions={peer: PEERS[peer]().version() or "" for peer in peers},
        python=platform.python_version(),
        date=datetime.now(UTC).date().isoformat(),
        hang=hang,
    )


# ---- tables


def terminal(results: Results) -> Iterator[str]:
    """Yield the table for a terminal."""
    left, wide = 44, 17

    def lines(title: str, cells: Iterable[str]) -> Iterator[str]:
        columns = [textwrap.wrap(title, left) or [""]]
        columns += [textwrap.wrap(cell, wide - 1) or [""] for cell in cells]
        for number in range(max(map(len, columns))):
            parts = [column[number] if number < len(column) else "" for column in columns]
            yield "".join(
                part.ljust(left + 2 if place == 0 else wide) for place, part in enumerate(parts)
            ).rstrip()

    yield f"CPython {results.python}, {results.date}"
    yield ""
    yield from lines("", map(results.head, results.peers))
    for group, rows in groupby(results.rows, lambda row: row.group):
        yield ""
        yield f"== {group}"
        for row in rows:
            yield from lines(row.title, (results.cell(row, peer).text for peer in results.peers))
    yield ""
    yield from lines("passed, of those with a verdict", map(results.score, results.peers))
    for cell in results.cells:
        if cell.note and cell.passed is False:
            yield f"\n{cell.row}, {cell.peer}:\n{cell.note}"


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_table(results: Results, rows: Iterable[Row]) -> Iterator[str]:
    yield _markdown_line(["", *map(results.head, results.peers)])
    yield "|---" * (len(results.peers) + 1) + "|"
    for row in rows:
        yield _markdown_line([row.title, *(results.cell(row, peer).text for peer in results.peers)])


def markdown(results: Results) -> Iterator[str]:
    """Yield one table per group, each with what its rows mean."""
    yield f"CPython {results.python}, {results.date}."
    for group, members in groupby(results.rows, lambda row: row.group):
        rows = list(members)
        yield f"\n### {group}\n"
        yield from _markdown_table(results, rows)
        yield ""
        for row in rows:
            yield f"- *{row.title}*: given {row.given}; when {row.when}; must: {row.must}."
    yield "\n### Totals\n"
    yield _markdown_line(["", *map(results.head, results.peers)])
    yield "|---" * (len(results.peers) + 1) + "|"
    yield _markdown_line(["passed, of those with a verdict", *map(results.score, results.peers)])
    missing: dict[str, list[str]] = {}
    for cell in results.cells:
        if cell.seen == "-":
            reasons = missing.setdefault(PEERS[cell.peer].title, [])
            if cell.note not in reasons:
                reasons.append(cell.note)
    if missing:
        yield "\nWhat a `-` stands for:\n"
        for title, reasons in missing.items():
            yield f"- {title}: {'; '.join(reasons)}."


def readme(results: Results) -> Iterator[str]:
    """Yield the short table: the rows that tell most, the libraries that have a name."""
    named = replace(results, peers=[peer for peer in results.peers if PEERS[peer].distribution])
    yield from _markdown_table(named, [row for row in results.rows if row.telling])


def written_into(text: str, table: str) -> str:
    """Return *text* with *table* between its two marks.

    Raises:
        ValueError: A mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the file must hold the lines {BEGIN} and {END}: the table goes between")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def to_json(results: Results) -> dict[str, Any]:
    """Return everything, ready for JSON."""
    return {
        "question": "What do callers see, in each of the stories?",
        "method": f"each cell in a process of its own; it hangs after {results.hang:g} seconds",
        "not_measured": "speed, memory per entry, anything behind a network",
        "python": results.python,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": results.date,
        "versions": {PEERS[peer].title: results.versions[peer] for peer in results.peers},
        "rows": [
            {
                "name": row.name,
                "group": row.group,
                "title": row.title,
                "given": row.given,
                "when": row.when,
                "must": row.must,
                "cells": {peer: asdict(results.cell(row, peer)) for peer in results.peers},
            }
            for row in results.rows
        ],
    }


# ---- the command


def chosen(only: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Return the rows and libraries that *only* names; all of a kind of which it names none."""
    unknown = [name for name in only if name not in ROWS and name not in PEERS]
    if unknown:
        raise SystemExit(
            f"error: {', '.join(unknown)}: neither a row nor a library; --list shows all names"
        )
    rows = [row for name, row in ROWS.items() if name in only] or list(ROWS.values())
    peers = [name for name in PEERS if name in only] or list(DEFAULT)
    return rows, peers


def installed(peers: Iterable[str]) -> list[str]:
    """Return those of *peers* that can run; say which cannot, and which are another release."""
    present = []
    for peer in peers:
        adapter = PEERS[peer]()
        version = adapter.version()
        if version is None:
            print(
                f"{peer} is not installed, so its column is left out: "
                "pip install -e '.[conformance]'",
                file=sys.stderr,
            )
            continue
        if adapter.pinned and version != adapter.pinned:
            print(
                f"{peer} {version} is not the release of the written table, {adapter.pinned}",
                file=sys.stderr,
            )
        present.append(peer)
    return present


def main() -> int:
    """Run, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conformance",
        description="The same stories for this library and its peers.",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows and libraries")
    parser.add_argument("--markdown", action="store_true", help="print the tables of the docs")
    parser.add_argument("--readme", action="store_true", help="print the table of the README")
    parser.add_argument("--write", metavar="PATH", help="put the table into a Markdown file")
    parser.add_argument("--json", metavar="PATH", help="write everything there")
    parser.add_argument("--check", action="store_true", help="status 1 unless ours pass all rows")
    parser.add_argument("--list", action="store_true", help="print all names and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--hang", type=float, default=5.0, help="seconds until a story hangs")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        play(ROWS[options.cell[0]], options.cell[1], options.hang)
    if options.list:
        print("\n".join([*PEERS, "", *ROWS]))
        return 0
    rows, peers = chosen(options.only)
    results = run(rows, installed(peers), options.jobs, options.hang)
    form = markdown if options.markdown else readme if options.readme else terminal
    table = "\n".join(form(results))
    print(table)
    if options.write:
        path = Path(options.write)
        path.write_text(written_into(path.read_text(encoding="utf-8"), table), encoding="utf-8")
    if options.json:
        Path(options.json).write_text(json.dumps(to_json(results), indent=2), encoding="utf-8")
    if not options.check:
        return 0
    unkept = results.unkept(OURS) if OURS in results.peers else ["it did not run"]
    if unkept:
        print(f"error: {OURS} does not keep its promises: {', '.join(unkept)}", file=sys.stderr)
    return 1 if unkept else 0


if __name__ == "__main__":
    sys.exit(main())
