"""What users see of the types: right uses pass both checkers, each wrong line fails both.

typing/wrong.py marks its lines with the errors that are expected there. It is
checked twice: as it is, where a mark that is not needed is an error itself; and
without its marks, where exactly the marked lines must be refused.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
MARKS = re.compile(r"(  # (type|pyright): ignore\[[\w, -]+\])+$", re.MULTILINE)
STRICT = {
    "typeCheckingMode": "strict",
    "pythonVersion": "3.11",
    "extraPaths": [str(ROOT)],
    "enableTypeIgnoreComments": False,
    "reportUnnecessaryTypeIgnoreComment": "error",
}

pytestmark = pytest.mark.timeout(300)  # a checker that knows nothing yet reads the whole stdlib


class Files(NamedTuple):
    folder: Path
    marked: set[int]
    """Lines of wrong.py that must be refused, from 1."""

    @property
    def paths(self) -> list[str]:
        return [str(path) for path in sorted(self.folder.glob("*.py"))]

    def errors(self, lines: set[int]) -> set[tuple[str, int]]:
        return {("unmarked.py", line) for line in lines}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    for name in ("right.py", "wrong.py"):
        shutil.copy(ROOT / "tests" / "typing" / name, tmp_path)
    wrong = (tmp_path / "wrong.py").read_text(encoding="utf-8")
    (tmp_path / "unmarked.py").write_text(MARKS.sub("", wrong), encoding="utf-8")
    marked = {place for place, line in enumerate(wrong.splitlines(), 1) if MARKS.search(line)}
    return Files(tmp_path, marked)


def test_each_wrong_line_is_marked_for_both_checkers(files: Files) -> None:
    lines = (files.folder / "wrong.py").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert ("# type: ignore[" in line) == ("# pyright: ignore[" in line), line
    assert len(files.marked) >= 20
    assert "ignore" not in (files.folder / "unmarked.py").read_text(encoding="utf-8")
    assert "ignore" not in (files.folder / "right.py").read_text(encoding="utf-8")


@pytest.mark.skipif(not find_spec("mypy"), reason="check tools not installed")
def test_mypy_accepts_the_right_uses_and_refuses_each_wrong_line(files: Files) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--output=json", *files.paths],
        cwd=ROOT,  # its settings, and what it remembers of the last run
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    reports = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    errors = {
        (Path(report["file"]).name, report["line"])
        for report in reports
        if report["severity"] == "error"
    }
    assert errors == files.errors(files.marked), run.stdout + run.stderr


@pytest.mark.skipif(not find_spec("basedpyright"), reason="check tools not installed")
def test_basedpyright_accepts_the_right_uses_and_refuses_each_wrong_line(files: Files) -> None:
    (files.folder / "pyrightconfig.json").write_text(json.dumps(STRICT), encoding="utf-8")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "basedpyright", "--outputjson"),
            *("--pythonpath", sys.executable, "--project", str(files.folder)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    errors = {
        (Path(report["file"]).name, report["range"]["start"]["line"] + 1)
        for report in json.loads(run.stdout)["generalDiagnostics"]
        if report["severity"] == "error"
    }
    assert errors == files.errors(files.marked), run.stdout + run.stderr
