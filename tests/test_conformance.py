"""The conformance table: this library keeps every row, and the written table is the program's."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.conformance.__main__ import Cell, Results, readme, written_into
from benchmarks.conformance.peers import DEFAULT, OURS, PEERS
from benchmarks.conformance.rows import ROWS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")


def conformance(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.conformance", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def cells_of(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what was seen, by row and library."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {(row["name"], peer): cell for row in rows for peer, cell in row["cells"].items()}


class Line(NamedTuple):
    """One line of the written tables."""

    group: str
    title: str
    cells: dict[str, str]


def written() -> list[Line]:
    """Read the tables of the page."""
    lines: list[Line] = []
    group, head = "", list[str]()
    for line in PAGE.splitlines():
        if line.startswith("### "):
            group = line.removeprefix("### ")
        elif line.startswith("|") and not line.startswith("|---"):
            first, *rest = [cell.strip() for cell in line.strip("|").split(" | ")]
            if not first:
                head = rest
            elif head and group != "Totals":
                lines.append(Line(group, first, dict(zip(head, rest, strict=True))))
    return lines


def test_this_library_keeps_every_row(tmp_path: Path) -> None:
    """In a process per row, as the table is made; a row without a verdict shows what it says."""
    path = tmp_path / "results.json"
    done = conformance("--only", OURS, "--check", "--json", str(path))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    cells = cells_of(path)
    assert list(cells) == [(name, OURS) for name in ROWS]
    verdicts = {name: cells[name, OURS]["passed"] for name in ROWS}
    assert [name for name, passed in verdicts.items() if passed is not True] == [
        "context-of-the-first-caller"
    ]
    assert cells["context-of-the-first-caller", OURS]["seen"] == "first user's"


def test_the_written_table_has_the_rows_of_the_program() -> None:
    assert [(line.group, line.title) for line in written()] == [
        (row.group, row.title) for row in ROWS.values()
    ]
    for row in ROWS.values():
        meaning = f"- *{row.title}*: given {row.given}; when {row.when}; must: {row.must}."
        assert meaning in PAGE


def test_the_written_table_names_the_pinned_releases() -> None:
    heads = list(written()[0].cells)
    assert [PEERS[peer].title for peer in DEFAULT] == [
        head.split(" ")[0] for head in heads[:-1]
    ] + [heads[-1]]
    pinned = {f"{PEERS[peer].title} {PEERS[peer].pinned}" for peer in DEFAULT if PEERS[peer].pinned}
    assert set(heads[1:-1]) == pinned


def test_the_written_table_shows_that_this_library_keeps_every_row() -> None:
    ours = {line.title: next(iter(line.cells.values())) for line in written()}
    assert [title for title, cell in ours.items() if not cell.startswith("✓ ")] == [
        row.title for row in ROWS.values() if row.right is None
    ]


def test_every_row_can_fail(tmp_path: Path) -> None:
    """Some library fails it in the written table, or a function that is not cached at all does."""
    failed = {
        line.title
        for line in written()
        if any(cell.startswith("✗ ") for cell in line.cells.values())
    }
    rest = [name for name, row in ROWS.items() if row.right is not None and row.title not in failed]
    assert len(rest) < 6
    path = tmp_path / "results.json"
    assert conformance("--only", "no-cache", *rest, "--json", str(path)).returncode == 0
    assert [name for (name, _), cell in cells_of(path).items() if cell["passed"] is not False] == []


def test_a_story_that_does_not_end_hangs(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    conformance(
        "--only", "dict", "two-loads-await-each-other", "--hang", "0.3", "--json", str(path)
    )
    assert [(cell["seen"], cell["passed"]) for cell in cells_of(path).values()] == [
        ("hangs", False)
    ]


def test_a_library_without_the_means_is_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    conformance("--only", "dict", "bound-of-bytes", "--json", str(path))
    (cell,) = cells_of(path).values()
    assert (cell["seen"], cell["passed"], cell["note"]) == ("-", None, "no bound in bytes")


def test_the_check_fails_when_this_library_does_not_run() -> None:
    done = conformance("--only", "dict", "none-is-a-value", "--check")
    assert done.returncode == 1
    assert "it did not run" in done.stderr


def test_a_name_that_is_neither_a_row_nor_a_library_is_refused() -> None:
    done = conformance("--only", OURS, "no-such-row")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: no-such-row: neither a row nor a library; --list shows all names\n"
    )


def results_of(*cells: Cell) -> Results:
    return Results(
        rows=[ROWS[name] for name in dict.fromkeys(cell.row for cell in cells)],
        peers=list(dict.fromkeys(cell.peer for cell in cells)),
        cells=cells,
        versions={cell.peer: "1.0" for cell in cells},
        python="3.11.0",
        date="2026-11-20",
        hang=5.0,
    )


def test_a_row_that_fails_and_one_without_means_are_both_unkept() -> None:
    results = results_of(
        Cell("types-apart", OURS, "3 apart", passed=False),
        Cell("none-is-a-value", OURS, "1 load", passed=True),
        Cell("bound-of-bytes", OURS, "-", passed=None, note="no bound"),
        Cell("context-of-the-first-caller", OURS, "first user's", passed=None),
        Cell("types-apart", "dict", "2 apart", passed=False),
    )
    assert results.unkept(OURS) == ["types-apart", "bound-of-bytes"]
    assert results.score(OURS) == "1 of 2"


def test_the_readme_shows_at_most_16_rows_of_libraries_with_a_name() -> None:
    cells = [Cell(name, peer, "x", passed=True) for name in ROWS for peer in (OURS, "dict")]
    head, _, *lines = readme(results_of(*cells))
    assert head == "|  | async_safe_cache 1.0 |"
    assert 10 <= len(lines) <= 16


def test_a_table_is_written_between_its_marks_alone() -> None:
    begin, end = re.findall(r"<!-- conformance: \w+ -->", PAGE)
    assert written_into(f"a\n{begin}\nold\n{end}\nb", "new") == f"a\n{begin}\n\nnew\n\n{end}\nb"
    with pytest.raises(ValueError, match="must hold the lines"):
        written_into(f"a\n{begin}\n", "new")


def test_the_extra_installs_the_pinned_releases() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {f"{each.distribution}=={each.pinned}" for each in PEERS.values() if each.pinned}
    assert set(project["optional-dependencies"]["conformance"]) == pinned
