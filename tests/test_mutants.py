"""The catalogue of planted bugs is in order: each fits the code, and who finds it exists.

That each is found is what `python -m tests.mutants` (`make mutants`) shows, in minutes; here
a few are, in seconds, and that the machinery can tell a find from none.
"""

import ast
import dataclasses
import functools
import re
from pathlib import Path

import pytest

from .mutants import __main__ as program
from .mutants.catalogue import MUTANTS, PROMISES, ROOT, Mutant, StalePatchError, patched
from .mutants.copies import BrokenCopyError, copied
from .mutants.sample import EQUIVALENT, TESTS, changes
from .scenarios import SCENARIOS

BY_NAME = {each.name: each for each in MUTANTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=BY_NAME)
def test_every_patch_fits_the_code(mutant: Mutant) -> None:
    """Where the code has changed, a patch that says nothing any more must be written anew."""
    original = (ROOT / "async_safe_cache" / mutant.file).read_text(encoding="utf-8")
    assert patched(mutant) != original


def test_names_are_unique_and_lines_are_sentences() -> None:
    assert len(BY_NAME) == len(MUTANTS)
    for each in MUTANTS:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", each.name), each.name
        assert re.fullmatch(r"[A-Z`\[a-z].*\.", each.what), each.name
        assert "|" not in each.what, f"{each.name}: a bar would end the cell of the table"


def test_every_promise_that_is_built_has_a_planted_bug() -> None:
    assert {each.line for each in MUTANTS} == set(PROMISES)
    assert len(MUTANTS) >= 45


@functools.cache
def _tests_of(path: str) -> frozenset[str]:
    """Return the node ids, without parameters, of the tests in one module."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{path}::{node.name}" if isinstance(node, ast.ClassDef) else path
        found |= {
            f"{prefix}::{each.name}"
            for each in inner
            if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))
            and each.name.startswith("test_")
        }
    return frozenset(found)


@pytest.mark.parametrize("mutant", MUTANTS, ids=BY_NAME)
def test_whoever_finds_it_exists(mutant: Mutant) -> None:
    assert mutant.found_by, "nobody finds it: a test is missing"
    assert [name for name in mutant.scenarios if name not in SCENARIOS] == []
    for test in mutant.tests:
        assert test in _tests_of(test.partition("::")[0]), test


def test_what_scenarios_claim_to_notice_is_in_the_catalogue() -> None:
    """And the other way: who is named in the catalogue claims it, once it claims anything."""
    for name, each in SCENARIOS.items():
        assert [kill for kill in each.kills if kill not in BY_NAME] == [], name
        for kill in each.kills:
            assert BY_NAME[kill].scenarios, f"{kill} is claimed by {name}, but no scenario finds it"
        named = {mutant.name for mutant in MUTANTS if name in mutant.found_by}
        assert not each.kills or named <= set(each.kills), name


def test_the_table_in_the_docs_lists_the_catalogue() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (§[\d.]+) \|", page, re.MULTILINE)
    assert rows == [(each.name, each.line) for each in MUTANTS]
    assert re.findall(r"^\| (§[\d.]+) \| (.*?) \|", page, re.MULTILINE) == [
        (line, promise) for line, promise in PROMISES.items()
    ]
    assert "**nothing**" not in page


@pytest.mark.parametrize(
    "name",
    [
        "delete-without-fence",
        "other-waiters-not-counted",
        "own-key-not-noticed",
        "retire-skipped",
    ],
)
def test_the_explorer_finds_a_planted_bug(name: str) -> None:
    with copied(BY_NAME[name]) as copy:
        finds = copy.explored(BY_NAME[name].scenarios, 300)
    assert finds
    assert finds[0].schedule


# -- the machinery can fail


FENCE = BY_NAME["delete-without-fence"].old


def _planted(old: str, new: str, **others: object) -> Mutant:
    known = BY_NAME["delete-without-fence"]
    return dataclasses.replace(known, name="a-trial", old=old, new=new, **others)  # type: ignore[arg-type]


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(StalePatchError, match=r"occurs 0 times in _engine\.py"):
        patched(_planted("no such text", "pass"))
    with pytest.raises(StalePatchError, match=r"occurs \d+ times in _engine\.py"):
        patched(_planted("self", "me"))
    with pytest.raises(StalePatchError, match=r"is no Python"):
        patched(_planted(FENCE, "fenced ="))


def test_a_bug_that_changes_nothing_is_found_by_nobody() -> None:
    harmless = _planted(
        FENCE,
        FENCE.replace("self._fence(space, key, doomed)", "bool(self._fence(space, key, doomed))"),
        found_by=("tests/test_store.py::test_peek_changes_neither_recency_nor_statistics",),
    )
    result = program.tried(harmless, ROOT, search=False)
    assert not result.broken
    assert result.finds == []
    assert not result.good


def test_a_scenario_that_claims_what_it_does_not_notice_is_named() -> None:
    claimed = dataclasses.replace(
        BY_NAME["jitter-lengthens"], found_by=("many_keys_are_fenced_one_by_one",)
    )
    result = program.tried(claimed, ROOT, search=False)
    assert result.false_claims == ["many_keys_are_fenced_one_by_one"]
    assert not result.good


def test_a_crash_at_import_is_no_find() -> None:
    crash = _planted("_log = logging", "_log = no_such_name")
    with copied(crash) as copy:
        with pytest.raises(BrokenCopyError, match="no_such_name"):
            copy.explored(["many_keys_are_fenced_one_by_one"], 10)
        with pytest.raises(BrokenCopyError, match="no_such_name"):
            copy.tested(["tests/test_store.py"])


# -- the sample


def test_every_equivalent_change_is_still_one_of_the_code() -> None:
    names = {
        each.name
        for file in TESTS
        for each in changes(file, (ROOT / "async_safe_cache" / file).read_text(encoding="utf-8"))
    }
    assert sorted(set(EQUIVALENT) - names) == []


def test_changes_are_small_and_each_is_another_one() -> None:
    source = "def f(a: int) -> int:\n    if not a == 1:\n        a += 2\n    return a and 0\n"
    found = {(each.old, each.new) for each in changes("x.py", source)}
    assert found == {
        ("not a == 1", "True"),
        ("not a == 1", "False"),
        ("not a == 1", "a == 1"),
        ("a == 1", "a != 1"),
        ("1", "2"),
        ("1", "0"),
        ("a += 2", "a -= 2"),
        ("a += 2", "pass"),
        ("2", "3"),
        ("2", "1"),
        ("return a and 0", "return"),
        ("a and 0", "a or 0"),
        ("0", "1"),
        ("0", "-1"),
    }
    assert all(each.text != source for each in changes("x.py", source))
    assert all(len(each.text.splitlines()) == 4 for each in changes("x.py", source))


def test_the_tests_of_the_sample_exist() -> None:
    for names in TESTS.values():
        for name in names:
            assert Path(ROOT / "tests" / f"test_{name}.py").exists(), name
