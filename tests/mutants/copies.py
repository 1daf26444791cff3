"""A copy of the tree with one bug in it, and what the explorer and the suite say about it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .catalogue import ROOT, Mutant, patched

__all__ = ["BrokenCopyError", "Copy", "Find", "copied"]

COPIED = ("async_safe_cache", "async_safe_cache_pytest.py", "benchmarks", "tests", "pyproject.toml")
HANG = 40  # seconds that one test may take: many times what the slowest takes, on a busy machine


class BrokenCopyError(Exception):
    """The copy cannot be imported or collected: a bad patch, and no find."""


@dataclass(frozen=True)
class Find:
    """Who noticed a bug.

    Attributes:
        by: The scenario, or the node id of the test.
        schedule: At which schedule of the explorer.
        how: What was seen.
    """

    by: str
    schedule: int | None = None
    how: str = ""

    def __str__(self) -> str:
        at = "" if self.schedule is None else f" at schedule {self.schedule:,}"
        return f"{self.by}{at}"


class Copy:
    """A copy of the package and its tests in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def explored(
        self,
        scenarios: Sequence[str],
        schedules: int,
        *,
        seconds: float = 300,
        all_of_them: bool = False,
    ) -> list[Find]:
        """Explore *scenarios* in a process; return the first find, or all.

        A process that takes too long has found what it has said until then.

        Raises:
            BrokenCopyError: It cannot be imported.
        """
        options = ["--all-of-them"] * all_of_them
        command = ["-m", "tests.mutants.hunt", *options, str(schedules), *scenarios]
        status, output, errors = self._run(command, seconds)
        lines: list[dict[str, Any]] = []
        for line in output.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # the last one, cut off, or what the code under test prints
        if not any("ready" in line for line in lines) or (status and status > 0):
            raise BrokenCopyError(errors.strip()[-2000:] or f"exit status {status}, no output")
        return [
            Find(line["scenario"], line["schedule"], f"{line['kind']}, {line['error']}")
            for line in lines
            if line.get("schedule")
        ]

    def tested(self, tests: Sequence[str], *, seconds: float = 600) -> Find | None:
        """Run *tests* in a process; return the first that fails. A hang counts if a test has it.

        Raises:
            BrokenCopyError: They cannot be collected, or are not there.
        """
        command = [
            *("-m", "pytest", "-x", "-v", "--tb=no", "-rfE", "-p", "no:cacheprovider"),
            # From a thread: a loop under test may swallow the exception of a signal.
            *("-o", f"timeout={HANG}", "-o", "timeout_method=thread"),
            *("--hypothesis-seed=0", "--color=no", *tests),
        ]
        status, output, errors = self._run(command, seconds)
        failed = re.search(r"^(?:FAILED|ERROR) ([^\s:]+::[^\s\[]+)(.*)$", output, re.MULTILINE)
        if failed is not None:
            return Find(failed[1], None, failed[2].rpartition(" - ")[2][:160])
        if "+ Timeout +" in output + errors:
            running = re.findall(r"^(tests/[^\s:]+::[^\s\[]+)", output, re.MULTILINE)
            if running:
                return Find(running[-1], None, f"hangs: {HANG} s")
        if status == 0 or status is None:
            return None
        raise BrokenCopyError((output + errors).strip()[-2000:])

    def _run(self, command: Sequence[str], seconds: float) -> tuple[int | None, str, str]:
        """Run Python; return exit status (None: it took too long), output and errors."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PYTHONHASHSEED": "0",
            "COLUMNS": "300",  # or pytest cuts the lines that are read here
        }
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                process.kill()
                process.wait()
            output.seek(0)
            errors.seek(0)
            return status, output.read(), errors.read()


@contextmanager
def copied(mutant: Mutant | None = None, source: Path = ROOT) -> Iterator[Copy]:
    """Copy the tree at *source*, with *mutant* in it, into a folder that goes away again.

    Raises:
        StalePatchError: The patch does not fit.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in COPIED:
            if (source / part).is_dir():
                # What is compiled already is copied, too: it belongs to the files by their times.
                shutil.copytree(source / part, folder / part)
            else:
                shutil.copy2(source / part, folder / part)
        if mutant is not None:
            target = folder / "async_safe_cache" / mutant.file
            target.write_text(patched(mutant, source), encoding="utf-8")
            for stale in target.parent.glob(f"__pycache__/{target.stem}.*"):
                stale.unlink()
        yield Copy(folder)
