"""The benchmarks run, judge honestly, and their pages say what was measured. Nothing is timed."""

import asyncio
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import __main__ as program
from benchmarks import hitcost, peers, runner, tables
from benchmarks.peers import OURS, PEERS, Contestant
from benchmarks.runner import Case, Goal, Question, Run, Spread, compared, spread

ROOT = Path(__file__).parent.parent

QUIET = Run(rounds=3, scale=0.01, quiet=True)

ASKED = Question(
    name="asked",
    question="Does it work?",
    workload="nothing",
    rivals="async-lru",
    floor="",
    not_measured="all the rest",
    rounds=3,
)


def slow(run: Run) -> list[Case]:
    """Be a question whose answer is twice what it should be."""
    times = {OURS: [2.0, 2.0, 2.0], "async-lru": [1.0, 1.0, 1.0]}
    return [compared("a job", "ns", times).against("async-lru", "<=", 1.0, aim=0.5)]


def answer(scale: float = 1.0) -> dict[str, Any]:
    return runner.run(ASKED, slow, quiet=True, scale=scale)


# ---- numbers


def test_the_spread_is_the_median_between_its_quartiles() -> None:
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(2.0, 3.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_ratio_is_taken_per_round_and_not_of_the_medians() -> None:
    """A machine that gets slower in the middle: each round says 1/2, the medians 1/6 and worse."""
    ours, theirs = [1.0, 10.0, 100.0], [2.0, 20.0, 200.0]
    assert runner.ratio_of(ours, theirs) == Spread(0.5, 0.5, 0.5)
    assert runner.ratio_of([1.0, 1.0, 9.0], [1.0, 2.0, 3.0]).median == 1.0
    case = compared("", "", {OURS: [1.0, 1.0, 9.0], "async-lru": [1.0, 2.0, 3.0]})
    assert case.ratios["async-lru"].median == 1.0
    assert case.figures[OURS].median / case.figures["async-lru"].median == 0.5


@pytest.mark.parametrize(
    ("sense", "observed", "met"),
    [
        ("<=", 0.5, True),
        ("<=", 0.51, False),
        (">=", 0.5, True),
        (">=", 0.49, False),
        ("==", 0.5, True),
        ("==", 0.4, False),
        ("<=", None, None),
    ],
)
def test_a_goal_is_met_at_its_limit_and_not_beyond(
    sense: Any, observed: float | None, met: bool | None
) -> None:
    assert Goal("ms", sense, 0.5, observed).met is met


def test_a_goal_whose_rival_is_missing_is_not_met_by_default() -> None:
    case = compared("a job", "ns", {OURS: [1.0]}).against("async-lru", "<=", 1.0)
    facts = {"name": "asked", "cases": [runner._case(case)]}
    assert case.goals[0].met is None
    assert runner.unmet(facts) == ["asked, a job: <= 1 × async-lru"]
    assert runner.verdict(facts["cases"][0]["goals"][0]) == "not measured"


def test_an_aim_is_shown_and_fails_nothing() -> None:
    case = compared("a job", "ns", {OURS: [2.0], "bare": [1.0]}).against("bare", "<=", None, 1.3)
    facts = {"name": "asked", "cases": [runner._case(case)]}
    assert runner.unmet(facts) == []
    assert runner.verdict(facts["cases"][0]["goals"][0]) == "not reached"


def test_a_failing_goal_is_reported_and_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["asked"])
    assert runner.main(ASKED, slow) == 0
    lines = capsys.readouterr().out.splitlines()
    goal = next(line for line in lines if line.lstrip().startswith("goal"))
    assert goal.split() == ["goal", "<=", "1", "×", "async-lru", "2", "NOT", "MET", "(aim:", "0.5)"]
    monkeypatch.setattr(sys, "argv", ["asked", "--check"])
    assert runner.main(ASKED, slow) == 1


def test_a_trial_says_that_its_figures_say_nothing() -> None:
    assert any("TRIAL" in line for line in runner.report(answer(scale=0.5)))
    assert not any("TRIAL" in line for line in runner.report(answer()))


# ---- turns


def test_contestants_take_turns_and_the_first_one_changes() -> None:
    order: list[str] = []

    def turn(name: str) -> Any:
        async def take() -> float:
            order.append(name)
            return float(len(order))

        return take

    times = asyncio.run(runner.take_turns({name: turn(name) for name in "abc"}, QUIET, ""))
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert times == {"a": [4.0, 9.0, 11.0], "b": [5.0, 7.0, 12.0], "c": [6.0, 8.0, 10.0]}


def test_a_loop_of_its_own_shares_no_code() -> None:
    def loop(x: int, *, y: int = 2) -> int:
        return x + y

    copy = runner.of_its_own(loop)
    assert copy.__code__ is not loop.__code__
    assert copy(1) == 3


def test_the_ticker_sees_the_longest_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """By clocks that only the callbacks of the loop move: 7 ms of work, 3 ms taken by others."""
    now = SimpleNamespace(wall=0, cpu=0)
    clocks = SimpleNamespace(perf_counter_ns=lambda: now.wall, process_time_ns=lambda: now.cpu)
    monkeypatch.setattr(runner, "time", clocks)

    def work(milliseconds: int, others: int) -> None:
        now.cpu += milliseconds * 10**6
        now.wall += (milliseconds + others) * 10**6

    async def main() -> runner.Ticker:
        async with runner.Ticker() as ticker:
            for milliseconds in (1, 7, 2):
                work(milliseconds, 3)
                await asyncio.sleep(0)
        work(100, 0)
        await asyncio.sleep(0)
        return ticker

    ticker = asyncio.run(main())
    assert (ticker.cpu, ticker.wall) == (7.0, 10.0)


def test_the_core_is_given_back() -> None:
    os = pytest.importorskip("os")
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")
    before = os.sched_getaffinity(0)
    held = []

    def measure(run: Run) -> list[Case]:
        held.append(os.sched_getaffinity(0))
        with runner.unpinned():
            held.append(os.sched_getaffinity(0))
        return []

    runner.run(ASKED, measure, quiet=True)
    assert held == [{max(before)}, before]
    assert os.sched_getaffinity(0) == before


# ---- peers


def test_a_peer_that_is_not_installed_is_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Absent(Contestant):
        title = "absent"
        distribution = "a-distribution-that-does-not-exist"
        pinned = "1.0"

    monkeypatch.setitem(PEERS, "absent", Absent())
    monkeypatch.setattr(peers, "_told", set())
    assert list(peers.installed(["absent", "bare"])) == ["bare"]
    assert "absent is not installed, so it is left out" in capsys.readouterr().err


def test_the_extra_installs_the_pinned_releases() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pinned = {f"{each.distribution}=={each.pinned}" for each in PEERS.values() if each.pinned}
    assert {each for each in extras["benchmarks"] if "==" in each} == pinned
    assert pinned <= set(extras["conformance"])


# ---- the questions


@pytest.mark.parametrize("name", program.QUESTIONS)
def test_a_question_runs_and_gives_what_is_documented(name: str) -> None:
    """At a thousandth of its size: it says nothing, but everything is there."""
    module = importlib.import_module(f"benchmarks.{name}")
    facts = runner.run(module.QUESTION, module.measure, rounds=1, scale=0.001, quiet=True)
    facts = json.loads(json.dumps(facts))
    assert facts["name"] == name
    for key in ("question", "workload", "rivals", "not_measured", "python", "machine", "date"):
        assert isinstance(facts[key], str)
        assert facts[key]
    assert facts["scale"] == 0.001
    assert facts["versions"][OURS]
    assert facts["cases"]
    absent = [each for each, peer in PEERS.items() if peer.version() is None]
    for case in facts["cases"]:
        assert case["figures"] or case["facts"]
        for figure in (*case["figures"].values(), *case["ratios"].values()):
            assert figure["low"] <= figure["median"] <= figure["high"]
        for goal in case["goals"]:
            assert goal["observed"] is not None or goal["of"].removeprefix("× ") in absent
    assert list(runner.report(facts))


def test_what_must_be_exact_is_exact_at_any_size() -> None:
    from benchmarks import hit, stampede

    cases = [*stampede.measure(QUIET), hit.threads(QUIET)]
    exact = {goal.of: goal.met for case in cases for goal in case.goals if goal.sense == "=="}
    assert exact == {
        "loads a burst": True,
        "loads": True,
        "waiters without the value": True,
        "wrong values": True,
    }


def test_answers_of_other_questions_stay() -> None:
    before = {"format": runner.FORMAT, "questions": {"miss": {"old": 1}, "hit": {"old": 1}}}
    together = program.merged(before, {"hit": {"new": 1}})
    assert together["questions"] == {"hit": {"new": 1}, "miss": {"old": 1}}
    assert list(together["questions"]) == ["hit", "miss"]
    before["format"] = 0
    assert program.merged(before, {"hit": {"new": 1}})["questions"] == {"hit": {"new": 1}}


def test_an_unknown_question_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "hits"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "hits: not a question; there are hit, stampede," in done.stderr


# ---- tables and plots


RATIOS = {
    "python": "3.11.7",
    "date": "2026-11-20",
    "versions": {"theine": "2.0.0"},
    "workload": "seeded",
    "rows": [
        {"trace": "loop", "hit_ratio": {"lru": 0.2, "s3fifo": 0.4, "theine": 0.3, "optimum": 0.6}},
        {"trace": "loop", "hit_ratio": {"lru": 0.4, "s3fifo": 0.6, "theine": 0.5, "optimum": 0.8}},
        {"trace": "weighted", "hit_ratio": {"lru": 0.5, "s3fifo": 0.6, "optimum": 0.7}},
    ],
    "share_of_optimum_synthetic": {"lru": 0.4, "s3fifo": 0.7},
    "least_points_over_lru_synthetic": -0.5,
}


def results() -> dict[str, dict[str, Any]]:
    return {"3.11": {"hit": answer(), "sweep": answer()}, "3.13": {"hit": answer()}}


def test_the_table_of_goals_says_what_is_not_met() -> None:
    head, _, first, second = tables.goals(results())
    assert head == "| question | job | goal (aim) | 3.11 | 3.13 |"
    assert first == (
        "| hit | a job | <= 1 × async-lru (aim: 0.5) | 2, **NOT MET** | 2, **NOT MET** |"
    )
    assert second.endswith("| 2, **NOT MET** | - |")


def test_where_a_rival_is_better_is_written_without_being_asked() -> None:
    line = "- hit, a job: async-lru is better by a factor of 2 on 3.11, 2 on 3.13."
    assert line in tables.losses(results())
    case = results()
    for answers in case.values():
        for facts in answers.values():
            facts["cases"][0]["unit"] = tables.HIGHER[0]
    assert list(tables.losses(case)) == ["Nowhere, in what is measured here."]


def test_hit_ratios_are_shown_as_means_and_shares() -> None:
    lines = list(tables.ratios(RATIOS))
    assert "| synthetic | 0.400 | 0.700 | - | - | -0.50 |" in lines
    assert "| loop | 0.300 | 0.500 | 0.400 | 0.700 |" in lines
    assert "| weighted | 0.500 | 0.600 | - | 0.700 |" in lines


def test_the_same_results_give_the_same_tables() -> None:
    once, again = results(), json.loads(json.dumps(results()))
    for part in (tables.goals, tables.details, tables.losses, tables.heading, tables.readme):
        assert list(part(once)) == list(part(again))
        assert list(part(once))


def test_a_part_is_written_between_its_marks_alone() -> None:
    text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb"
    new = "a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb"
    assert tables.written_into(text, "x", "new") == new
    assert tables.written_into(new, "x", "new") == new
    with pytest.raises(ValueError, match="must hold the lines"):
        tables.written_into("a", "x", "new")


def test_the_pages_are_what_the_committed_results_say() -> None:
    for path, text in tables.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run make plots"


def test_every_plot_that_the_page_shows_is_there() -> None:
    shown = re.findall(r"\]\((plots/[^)]+)\)", tables.PAGE.read_text(encoding="utf-8"))
    assert {f"plots/{name}.svg" for name in ("hit", "stampede", "sweep")} <= set(shown)
    assert [name for name in shown if not (tables.PAGE.parent / name).exists()] == []


def test_the_committed_results_answer_every_question_at_full_size() -> None:
    committed = tables.load()
    assert {"3.11", "3.13"} <= set(committed)
    for answers in committed.values():
        assert list(answers) == list(program.QUESTIONS)
        for facts in answers.values():
            assert (facts["format"], facts["scale"]) == (runner.FORMAT, 1)
            for name, peer in PEERS.items():
                if peer.pinned:
                    assert facts["versions"][name] == peer.pinned


def test_the_same_results_give_the_same_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import plots

    paths = plots.draw(tables.load(), RATIOS, tmp_path / "once")
    assert [path.name for path in paths] == [
        "hit.svg",
        "stampede.svg",
        "sweep.svg",
        "hit_ratio.svg",
    ]
    for path in plots.draw(tables.load(), RATIOS, tmp_path / "again"):
        assert path.read_bytes() == (tmp_path / "once" / path.name).read_bytes()
        assert b"<dc:date>" not in path.read_bytes()


# ---- instructions


def test_more_instructions_than_the_tolerance_are_a_regression() -> None:
    found = {"a": 1031.0, "b": 1030.0, "c": 960.0, "d": 1.0}
    written = {"a": 1000.0, "b": 1000.0, "c": 1000.0}
    verdicts = [verdict for *_, verdict in hitcost.judged(found, written)]
    assert verdicts == ["MORE", "same", "fewer", "NOT WRITTEN"]


def test_instructions_are_the_difference_of_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = [10 * (place + 1) for place in range(len(hitcost.TEMPLATES))]

    def count(hits: list[int]) -> int:
        return 10**9 + sum(cost * each for cost, each in zip(costs, hits, strict=True))

    monkeypatch.setitem(hitcost.TOOLS, "fake", ("fake", count))
    assert list(hitcost.measured("fake", hits=100).values()) == costs


def test_the_regression_is_status_1_and_update_accepts_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = dict.fromkeys(hitcost.TEMPLATES, 100.0)
    monkeypatch.setattr(hitcost, "WRITTEN", tmp_path / "hitcost.json")
    monkeypatch.setattr(hitcost, "usable", lambda only: "callgrind")
    monkeypatch.setattr(hitcost, "measured", lambda tool: dict(now))

    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["hitcost", *options])
        return hitcost.main()

    assert run() == 1  # nothing is written yet
    assert run("--update") == 0
    assert run() == 0
    now["1 argument, ttl"] = 104.0
    capsys.readouterr()
    assert run() == 1
    assert "a hit takes more than is written: 1 argument, ttl" in capsys.readouterr().err
    assert run("--update") == 0
    assert run() == 0


def test_no_tool_is_an_error_that_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hitcost.shutil, "which", lambda program: None)
    monkeypatch.setattr(sys, "argv", ["hitcost"])
    assert hitcost.main() == 2
    assert "install valgrind" in capsys.readouterr().err


def test_every_template_can_be_counted() -> None:
    done = subprocess.run(
        hitcost._command([2] * len(hitcost.TEMPLATES)), cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads(hitcost.WRITTEN.read_text(encoding="utf-8"))
    assert {"3.11", "3.13"} <= set(written)
    for facts in written.values():
        assert list(facts["instructions"]) == list(hitcost.TEMPLATES)
