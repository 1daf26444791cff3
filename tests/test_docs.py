"""The documentation runs: every python block of the README and of docs/ is a test.

A page gets a fresh module; `await` is allowed at the top level of its blocks. A block marked
```` ```python no-run ```` is skipped and must be listed in UNRUN, with its reason.
"""

import ast
import asyncio
import inspect
import re
import sys
import textwrap
import types
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

# (page, first line of the block): why it cannot run
UNRUN: dict[tuple[str, str], str] = {}


class Block(NamedTuple):
    page: str
    line: int  # of the block's first line of code, from 1
    language: str
    mark: str
    code: str


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    fence = re.compile(
        r"^(?P<indent> *)```(?P<language>\w+)(?P<mark>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$",
        re.MULTILINE | re.DOTALL,
    )
    return [
        Block(
            page=path.relative_to(ROOT).as_posix(),
            line=text.count("\n", 0, found.start("code")) + 1,
            language=found["language"],
            mark=found["mark"].strip(),
            code=textwrap.dedent(found["code"]),
        )
        for found in fence.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language in {"python", "py", "python3"}]


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_the_blocks_of_a_page_run_from_top_to_bottom(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reader meets them: each block knows what the ones above it defined."""
    name = re.sub(r"\W", "_", page)
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    with asyncio.Runner(debug=True) as runner:
        for block in PYTHON:
            if block.page != page or block.mark == "no-run":
                continue
            code = compile(
                "\n" * (block.line - 1) + block.code,  # a traceback names the line of the page
                ROOT / block.page,
                "exec",
                flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                dont_inherit=True,
            )
            run = types.FunctionType(code, module.__dict__)
            if code.co_flags & inspect.CO_COROUTINE:
                runner.run(run())
            else:
                run()


def test_the_docs_have_blocks_to_run() -> None:
    """Or the test above would pass by running nothing."""
    assert [block for block in PYTHON if block.page == "README.md" and block.mark != "no-run"]
    assert len(BLOCKS) >= sum(
        len(re.findall(r"^ *```\w", page.read_text(encoding="utf-8"), re.MULTILINE))
        for page in PAGES
    )


def test_the_blocks_that_do_not_run_are_few_and_listed() -> None:
    marked = {(block.page, block.code.partition("\n")[0]) for block in PYTHON if block.mark}
    assert marked == set(UNRUN)
    assert {block.mark for block in PYTHON} <= {"", "no-run"}
    assert len(UNRUN) <= 3


def test_the_readme_starts_with_the_two_commands() -> None:
    console = next(block for block in BLOCKS if block.language in {"console", "sh", "bash"})
    commands = [line.removeprefix("$ ") for line in console.code.splitlines() if line]
    assert (console.page, commands) == ("README.md", ["make demo", "make test"])
