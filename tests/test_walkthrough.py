"""docs/testing-your-code.md, as its reader follows it: the race, its schedule, the fix."""

import re
import shlex
from pathlib import Path

import pytest

import async_safe_cache_pytest as plugin

from .test_docs import Block, blocks_of

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parent.parent / "docs" / "testing-your-code.md"
BLOCKS = blocks_of(PAGE)


def block(language: str, begin: str) -> Block:
    """Return the one block of the page that has *begin* in it."""
    found = [each for each in BLOCKS if each.language == language and begin in each.code]
    assert len(found) == 1, (language, begin)
    return found[0]


RACY = block("python", "self._known = {}").code
TEST = block("python", "async def test_a_change_is_seen").code
FIXED = block(
    "python",
    "class Prices:\n    def __init__(self, ask):\n        self._ask = ask\n        self._cache",
).code
SHOWN = block("text", "the schedule that fails").code


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]\nfilterwarnings = error")
    pytester.plugins = []
    return pytester


def told(run: pytest.Pytester, code: str, *args: str) -> str:
    """Write the reader's file, run pytest on it, and return what it prints."""
    run.makepyfile(test_prices=code)
    result = run.runpytest_inprocess("-p", "no:cacheprovider", "-p", plugin.__name__, *args)
    return result.stdout.str()


def replay_line(text: str) -> list[str]:
    return shlex.split(text.partition("to run it again:  pytest ")[2].partition("\n")[0])


def test_the_race_fails_as_the_page_shows(run: pytest.Pytester) -> None:
    """Line by line: the page shows what its reader sees."""
    text = told(run, RACY + "\n" + TEST, "-q", "test_prices.py")
    assert SHOWN in text
    assert "1 failed" in text


def test_the_printed_line_fails_again_with_the_same_timeline(run: pytest.Pytester) -> None:
    line = replay_line(SHOWN)
    text = told(run, RACY + "\n" + TEST, *line)
    timeline = SHOWN.partition("  step ")[2]
    assert timeline in text
    assert "found by a replay" in text
    assert "1 failed" in text


def test_the_fix_passes_every_schedule_and_says_how_many(run: pytest.Pytester) -> None:
    text = told(run, FIXED + "\n" + TEST, "-v", "test_prices.py")
    assert "1 passed" in text
    assert block("text", "explored 500 schedules").code in text
    for said in re.findall(
        r"explored 500 schedules, \d+ distinct, exhausted: \w+", PAGE.read_text()
    ):
        assert said in text


def test_the_old_schedule_does_not_fit_the_fix(run: pytest.Pytester) -> None:
    text = told(run, FIXED + "\n" + TEST, *replay_line(SHOWN))
    assert "the schedule does not fit test_a_change_is_seen any more" in text
    assert "1 failed" in text


def test_the_other_tests_of_the_page_pass(run: pytest.Pytester) -> None:
    blocks = [
        each.code
        for each in BLOCKS
        if each.language == "python" and "\nasync def test_a_c" in each.code
    ]
    code = "\n".join(
        (FIXED, *blocks, block("python", "half_a_minute").code.partition("\nclock =")[0])
    )
    text = told(run, code, "test_prices.py")
    assert "3 passed" in text
