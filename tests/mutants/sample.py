"""A random sample of small changes to the core, each against the tests of its module.

    python -m tests.mutants.sample                    the sample that docs/reliability.md tells of
    python -m tests.mutants.sample --size 50 --seed 7 another one

The catalogue says that the guards somebody thought of are tested; a sample says how much is
tested that nobody thought of. Survivors that change nothing anybody can see are listed in
`EQUIVALENT`, each with its reason; any other survivor is a test that is missing.

Not mutmut or cosmic-ray: the first calls each function through one of its own, whose frames
fail the tests that no frame outlives a failed load before anything is changed; both change
strings and annotations, of which no promise is made.
"""

import argparse
import ast
import copy
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from .copies import BrokenCopyError, Copy, Find, copied

__all__ = ["EQUIVALENT", "Change", "changes"]

SIZE = 150
SEED = 1
GOAL = 90.0  # percent

# The quick and telling ones first.
TESTS = {
    "_flights.py": (
        *("survivors", "flights", "load_errors", "recursion", "failures", "cancellation"),
        *("dead_loops", "lifecycle", "threads"),
    ),
    "_store.py": ("survivors", "cache", "sweeper", "decorator", "bypass", "store"),
    "_keys.py": ("survivors", "keys"),
}

# Place and change of each survivor that nobody can tell from the original -> why that is so.
EQUIVALENT: dict[str, str] = {
    "_keys.py canonical: cls is str or cls is int or cls is bytes or (value is None) -> False": (
        "the walk gives the same form; this is its short way"
    ),
    "_keys.py _plan_of: plans[cls] = plan -> pass": (
        "a plan that is made anew each time is the same plan, only slower"
    ),
    "_keys.py _plan_of: plan is not None -> True": "None is what is found where nothing is kept",
    "_keys.py _plan_of: plan is not None -> plan is None": (
        "a plan that is made anew each time is the same plan, only slower"
    ),
    "_keys.py call_key: True -> False": "there are as many names as values: strict= never speaks",
    "_keys.py call_key: 0 -> -1": "the first of one is its last, too",
}

_FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OTHER: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


@dataclass(frozen=True)
class Change:
    """One small change of one module."""

    file: str
    function: str
    line: int
    kind: str
    old: str
    new: str
    text: str  # the whole module, changed

    @property
    def name(self) -> str:
        """What it is, whatever line it stands in."""
        return f"{self.file} {self.function}: {self.old} -> {self.new}"


def _variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield what may stand in the place of *node*."""
    new: ast.AST
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _FLIPPED:
        new = copy.deepcopy(node)
        new.ops = [_FLIPPED[type(node.ops[0])]()]
        yield "comparison", new
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not", node.operand
    elif isinstance(node, ast.BoolOp):
        new = copy.deepcopy(node)
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and/or", new
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield "constant", ast.Constant(node.value + 1)
        yield "constant", ast.Constant(node.value - 1)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _OTHER:
        new = copy.deepcopy(node)
        new.op = _OTHER[type(node.op)]()
        yield "operator", new
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield "return", ast.Return(None)
    elif isinstance(node, ast.Break):
        yield "loop", ast.Continue()
    elif isinstance(node, ast.Continue):
        yield "loop", ast.Break()
    elif isinstance(node, ast.IfExp):
        yield "condition", node.body
        yield "condition", node.orelse
    elif isinstance(node, ast.If):
        for value in (True, False):
            new = copy.deepcopy(node)
            new.test = ast.Constant(value)
            yield "condition", new
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete, ast.Raise)) or (
        isinstance(node, ast.Expr) and not isinstance(node.value, (ast.Constant, ast.Await))
    ):
        yield "statement", ast.Pass()


def _inside(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of *function* that run: no annotations, no docstrings, no messages."""
    todo: list[ast.AST] = list(getattr(function, "body", []))
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue  # visited on its own
        yield node
        for name, value in ast.iter_fields(node):
            if name == "annotation" or (isinstance(node, ast.Raise) and name == "exc"):
                continue
            children = value if isinstance(value, list) else [value]
            todo += [each for each in children if isinstance(each, ast.AST)]


def _spliced(lines: list[bytes], node: ast.AST, new: ast.AST) -> str:
    """Return the module with *new* in the place of *node*; all else keeps its line."""
    at: tuple[int, int, int, int] = (
        node.lineno - 1,  # type: ignore[attr-defined]
        node.col_offset,  # type: ignore[attr-defined]
        node.end_lineno - 1,  # type: ignore[attr-defined]
        node.end_col_offset,  # type: ignore[attr-defined]
    )
    first, column, last, end = at
    if isinstance(node, ast.If):
        test, told = node.test, ast.unparse(new.test)  # type: ignore[attr-defined]
        first, column = test.lineno - 1, test.col_offset
        last, end = (test.end_lineno or 0) - 1, test.end_col_offset or 0
    else:
        told = ast.unparse(new)
        told = f"({told})" if isinstance(new, ast.expr) else told
    before = b"".join(lines[:first]) + lines[first][:column]
    after = lines[last][end:] + b"".join(lines[last + 1 :])
    return (before + told.encode() + after).decode()


def changes(file: str, source: str) -> list[Change]:
    """Return every small change of the module *source*, in the order of its lines."""
    tree = ast.parse(source)
    lines = source.encode().splitlines(keepends=True)
    found: list[Change] = []

    def visit(node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                visit(child, f"{path}{child.name}.")
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                look(child, f"{path}{child.name}")
                visit(child, f"{path}{child.name}.")
            else:
                visit(child, path)

    def look(function: ast.AST, name: str) -> None:
        if name.endswith(("__repr__", "_display_name")):
            return  # for people
        for node in _inside(function):
            for kind, new in _variants(node):
                text = _spliced(lines, node, new)
                shown = (node.test, new.test) if isinstance(node, ast.If) else (node, new)  # type: ignore[attr-defined]
                old_text, new_text = (" ".join(ast.unparse(each).split()) for each in shown)
                compile(text, file, "exec")
                line: int = node.lineno  # type: ignore[attr-defined]
                found.append(Change(file, name, line, kind, old_text, new_text, text))

    visit(tree, "")
    return sorted(found, key=lambda each: (each.line, each.name))


def _judged(change: Change, copy_: Copy) -> Find | None:
    """Return which test fails under *change*."""
    target = copy_.folder / "async_safe_cache" / change.file
    original = target.read_text(encoding="utf-8")
    target.write_text(change.text, encoding="utf-8")
    try:
        for stale in target.parent.glob(f"__pycache__/{target.stem}.*"):
            stale.unlink()
        tests = [f"tests/test_{name}.py" for name in TESTS[change.file]]
        return copy_.tested(tests)
    except BrokenCopyError:
        return Find("the import")
    finally:
        target.write_text(original, encoding="utf-8")
        for stale in target.parent.glob(f"__pycache__/{target.stem}.*"):
            stale.unlink()


def main() -> int:
    """Draw the sample, judge it, print what survived; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", action="store_true", help="only the survivors that are listed")
    options = parser.parse_args()
    began = time.monotonic()
    with copied() as base:
        package = base.folder / "async_safe_cache"
        every = [
            each
            for file in TESTS
            for each in changes(file, Path(package / file).read_text(encoding="utf-8"))
        ]
        rng = random.Random(options.seed)
        drawn = rng.sample(every, min(options.size, len(every)))
        if options.again:
            drawn = [each for each in every if each.name in EQUIVALENT]
        survivors = _run(drawn, base, options.processes)
    killed = len(drawn) - len(survivors)
    telling = [each for each in survivors if each.name not in EQUIVALENT]
    counts = Counter(each.file for each in drawn)
    print(
        f"{len(drawn)} of {len(every)} changes, seed {options.seed} "
        f"({', '.join(f'{file} {count}' for file, count in sorted(counts.items()))}): "
        f"{killed} killed, {100 * killed / max(1, len(drawn)):.1f} %; {len(survivors)} survived, "
        f"{len(survivors) - len(telling)} of them equivalent; {time.monotonic() - began:.0f} s"
    )
    for each in sorted(survivors, key=lambda each: (each.file, each.line)):
        reason = EQUIVALENT.get(each.name, "A TEST IS MISSING")
        print(f"  {each.file}:{each.line} {each.kind}: {each.name}\n      {reason}")
    return 1 if telling or 100 * killed < GOAL * len(drawn) else 0


def _run(drawn: list[Change], base: Copy, processes: int) -> list[Change]:
    survivors: list[Change] = []
    free: SimpleQueue[Copy] = SimpleQueue()

    def judge(change: Change) -> tuple[Change, Find | None]:
        copy_ = free.get()
        try:
            return change, _judged(change, copy_)
        finally:
            free.put(copy_)

    def prepared(count: int) -> Iterator[None]:
        if not count:
            yield
            return
        with copied(None, base.folder) as copy_:
            free.put(copy_)
            yield from prepared(count - 1)

    for _ in prepared(processes):
        with ThreadPoolExecutor(processes) as pool:
            for number, (change, find) in enumerate(pool.map(judge, drawn), 1):
                if find is None:
                    survivors.append(change)
                print(
                    f"{number:4} of {len(drawn)}  {change.file}:{change.line} {change.old} -> "
                    f"{change.new}: {find or 'SURVIVED'}",
                    file=sys.stderr,
                    flush=True,
                )
    return survivors


if __name__ == "__main__":
    sys.exit(main())
