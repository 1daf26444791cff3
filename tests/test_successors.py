"""What follows what, and whether it was worth saying: alone, beside plain models."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_safe_cache import _successors
from async_safe_cache._successors import Scores, Successors
from benchmarks import prediction
from benchmarks.hit_ratios import ours
from benchmarks.prediction import Trace, measured, play, traces, verdicts, walks
from benchmarks.traces import Trace as PlainTrace


def learned(sequence: Iterable[Any], **bounds: int) -> Successors[Any]:
    """Return a model of *sequence*, whose neighbours follow each other."""
    model: Successors[Any] = Successors(**bounds)
    for before, after in pairwise(sequence):
        model.learn(before, after)
    model.check()
    return model


def counts(model: Successors[Any], state: Any) -> dict[Any, int]:
    row = model._rows.get(state)
    return {} if row is None else row.counts


# ---- what is likely


def test_who_follows_more_often_is_named_first_with_its_share() -> None:
    model = learned("abacabacababa")
    assert model.likely("a") == [("b", 4 / 6), ("c", 2 / 6)]
    assert model.likely("b") == [("a", 1.0)]
    assert model.likely("z") == []


def test_equals_are_named_in_the_order_they_came() -> None:
    assert learned("acabacaba").likely("a") == [("c", 0.5), ("b", 0.5)]


def test_no_more_are_named_than_asked_for() -> None:
    model = learned("abacabacadadada")
    b, c, d = ("b", 2 / 7), ("c", 2 / 7), ("d", 3 / 7)
    assert model.likely("a", limit=1) == [d]
    assert model.likely("a") == [d, b]
    assert model.likely("a", limit=3) == [d, b, c]


def test_the_least_probability_is_still_named() -> None:
    model = learned("abacacabacacacac")  # b 2, c 6
    assert model.likely("a", least=0.25) == [("c", 0.75), ("b", 0.25)]
    assert model.likely("a", least=0.26) == [("c", 0.75)]
    assert model.likely("a", least=0.76) == []


def test_a_state_that_was_seen_too_rarely_says_nothing() -> None:
    model = learned("abab")
    assert model.likely("a") == []
    assert model.likely("a", support=2) == [("b", 1.0)]
    model.learn("a", "b")
    assert model.likely("a") == [("b", 1.0)]


def test_what_followed_once_followed_by_chance() -> None:
    """Three different ones have a third each, and none of them is worth a load."""
    model = learned("abacad")
    assert model.likely("a") == []
    model.learn("a", "c")
    assert model.likely("a", least=0.0) == [("c", 0.5)]


def test_a_state_that_is_read_again_does_not_follow_itself() -> None:
    model = learned("aaaaaa")
    assert len(model) == 0
    assert learned("aabbaabbaabb").likely("a") == [("b", 1.0)]


def test_asking_changes_nothing() -> None:
    """Not even which state leaves next: a question is no observation."""
    model = learned("abcd", states=3)
    for _ in range(5):
        model.likely("a", support=0)
        model.likely("z", support=0)
    assert len(model) == 3
    model.learn("d", "a")
    assert [counts(model, state) for state in "ab"] == [{}, {"c": 1}]


@given(st.lists(st.integers(0, 7), max_size=60))
def test_a_short_life_is_counted_as_it_was(sequence: list[int]) -> None:
    """Within all bounds the model is a table of counts."""
    model = learned(sequence)
    table: dict[int, Counter[int]] = {}
    for before, after in pairwise(sequence):
        if before != after:
            table.setdefault(before, Counter())[after] += 1
    assert len(model) == len(table)
    for state in range(8):
        row = table.get(state, Counter())
        total = row.total()
        wanted = [(each, n / total) for each, n in row.most_common() if n > 1 and total >= 3]
        for least in (0.1, 0.25, 0.5):
            enough = [pair for pair in wanted if pair[1] >= least]
            assert model.likely(state, least=least) == enough[:2]


# ---- a changed workload


@pytest.mark.parametrize("memory", [8, 64])
def test_change_the_workload_and_the_prediction_changes(memory: int) -> None:
    """A thousand times b, then c: before `memory` observations more, c is the likely one."""
    for past in range(1_000, 1_000 + memory):  # wherever the last halving was
        model = Successors[str](memory=memory)
        for _ in range(past):
            model.learn("a", "b")
        assert model.likely("a") == [("b", 1.0)]
        for _ in range(memory - 1):
            model.learn("a", "c")
        model.check()
        assert model.likely("a", limit=1)[0][0] == "c"


def test_what_follows_no_more_is_forgotten() -> None:
    model = learned("ab" * 1_000)
    for _ in range(3 * 64):
        model.learn("a", "c")
    assert [after for after, _ in model.likely("a")] == ["c"]
    for _ in range(3 * 64):
        model.learn("a", "c")
    assert list(counts(model, "a")) == ["c"]


def test_counts_are_halved_rounded_down_when_the_total_reaches_the_memory() -> None:
    model = learned("abacabacabacabad", memory=9)
    assert counts(model, "a") == {"b": 4, "c": 3, "d": 1}
    model.learn("a", "b")  # the ninth
    assert counts(model, "a") == {"b": 2, "c": 1}
    model.learn("a", "b")
    assert model.likely("a") == [("b", 0.75)]  # 3 of 4: the total is what is left


def test_other_states_keep_their_counts_at_a_halving() -> None:
    model = learned("babababa", memory=100)
    before = dict(counts(model, "a")), dict(counts(model, "b"))
    for _ in range(300):
        model.learn("x", "y")
    assert (counts(model, "a"), counts(model, "b")) == before


@pytest.mark.parametrize("memory", [1, 2, 3])
def test_a_memory_shorter_than_the_support_says_nothing(memory: int) -> None:
    model = Successors[str](memory=memory)
    for _ in range(20):
        model.learn("a", "b")
        model.check()
        assert model.likely("a") == []
        assert model.likely("a", support=0) in ([], [("b", 1.0)])
    assert len(model) == 1


# ---- bounds


def test_the_rarest_makes_way_for_a_newcomer_that_takes_its_count() -> None:
    model = learned("abababacacad", fan_out=2)
    assert counts(model, "a") == {"b": 3, "d": 2 + 1}
    model.learn("a", "e")  # of those who are equally rare, b came first
    assert counts(model, "a") == {"d": 3, "e": 3 + 1}


@pytest.mark.parametrize("turn", [2, 3, 5])
def test_a_heavy_successor_stays_among_noise(turn: int) -> None:
    """Every second to fifth is the same one, all others come once, and there is room for eight."""
    model = Successors[Any]()
    for number in range(20_000):
        model.learn("a", "heavy" if number % turn == 0 else number)
        assert "heavy" in counts(model, "a")
    ((first, share),) = model.likely("a", limit=1, least=0.0)
    assert first == "heavy"
    assert abs(share - 1 / turn) < 0.1


def test_noise_alone_is_never_likely() -> None:
    model = Successors[Any]()
    for number in range(10_000):
        model.learn("a", number)
        assert model.likely("a") == []


@given(st.lists(st.integers(0, 9), max_size=200), st.integers(1, 6))
def test_a_count_is_never_too_low_nor_too_high_by_more_than_its_share(
    successors: list[int], fan_out: int
) -> None:
    """The bounds of Space-Saving: an error of total / fan_out, and all who are above it kept."""
    model = Successors[Any](fan_out=fan_out, memory=1_000)
    for after in successors:
        model.learn("a", after)
    model.check()
    truth, total = Counter(successors), len(successors)
    row = counts(model, "a")
    for after, count in row.items():
        assert truth[after] <= count <= truth[after] + total / fan_out
    assert {after for after, count in truth.items() if count > total / fan_out} <= set(row)


def test_the_state_not_learned_from_for_longest_leaves_first() -> None:
    model = Successors[str](states=2)
    for before in "aabab":
        model.learn(before, "x")
    model.learn("c", "x")
    assert [len(counts(model, state)) for state in "abc"] == [0, 1, 1]
    model.learn("b", "x")
    model.learn("d", "x")
    assert [len(counts(model, state)) for state in "abcd"] == [0, 1, 0, 1]
    assert len(model) == 2


def test_a_million_random_transitions_stay_within_the_bounds() -> None:
    random = Random(7)
    model = Successors[int](states=500, fan_out=5, memory=32)
    before = 0
    for number in range(1_000_000):
        after = int(random.random() ** 3 * 2_000)
        model.learn(before, after)
        before = after
        if number % 100_000 == 0:
            model.check()
    model.check()
    assert len(model) == 500
    assert 500 < sum(len(counts(model, state)) for state in range(2_000)) <= 500 * 5


class PlainModel:
    """The same within small bounds, told as lists that are looked through each time."""

    def __init__(self, states: int, fan_out: int, memory: int) -> None:
        self.bounds = states, fan_out, memory
        self.rows: list[tuple[int, list[tuple[int, int]]]] = []  # the oldest first

    def learn(self, before: int, after: int) -> None:
        states, fan_out, memory = self.bounds
        if before == after:
            return
        row = self.row(before)
        if after in [state for state, _ in row]:
            row = [(state, count + (state == after)) for state, count in row]
        elif len(row) < fan_out:
            row = [*row, (after, 1)]
        else:
            rarest = min(row, key=lambda each: each[1])
            row = [*(each for each in row if each != rarest), (after, rarest[1] + 1)]
        if sum(count for _, count in row) >= memory:
            row = [(state, count // 2) for state, count in row if count > 1]
        others = [each for each in self.rows if each[0] != before]
        self.rows = [*others, (before, row)][-states:]

    def row(self, state: int) -> list[tuple[int, int]]:
        return next((row for each, row in self.rows if each == state), [])


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=80),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 12),
)
def test_within_small_bounds_it_does_what_the_rules_say(
    pairs: list[tuple[int, int]], states: int, fan_out: int, memory: int
) -> None:
    model = Successors[int](states=states, fan_out=fan_out, memory=memory)
    plain = PlainModel(states, fan_out, memory)
    for before, after in pairs:
        model.learn(before, after)
        plain.learn(before, after)
        model.check()
        assert len(model) == len(plain.rows)
        for state in range(6):
            assert list(counts(model, state).items()) == plain.row(state)


# ---- forgetting


def test_a_forgotten_state_starts_anew() -> None:
    model = learned("abcabcabcabc")
    model.forget("a")
    model.forget("never seen")
    model.check()
    assert len(model) == 2
    assert model.likely("a") == []
    assert model.likely("c") == [("a", 1.0)]  # what it followed is known still
    for _ in range(3):
        model.learn("a", "z")
    assert model.likely("a") == [("z", 1.0)]


def test_cleared_it_knows_nothing() -> None:
    model = learned("abcabcabcabc")
    model.clear()
    model.check()
    assert len(model) == 0
    assert model.likely("a") == []


# ---- the check itself


def spoil(model: Successors[Any], total: int, **row: int) -> None:
    model._rows["a"].counts, model._rows["a"].total = row, total


@pytest.mark.parametrize(
    ("spoilt", "invariant"),
    [
        (lambda model: model._rows.update(dict.fromkeys(range(9))), "no more rows"),
        (lambda model: spoil(model, 5, b=1, c=1, d=1, e=1, f=1), "no longer"),
        (lambda model: spoil(model, 4, b=4, c=0), "was seen"),
        (lambda model: spoil(model, 5, b=4), "sum of its counts"),
        (lambda model: spoil(model, 20, b=20), "in time"),
        (lambda model: spoil(model, 4, a=4), "follows itself"),
    ],
)
def test_a_broken_invariant_is_noticed(spoilt: Callable[[Any], object], invariant: str) -> None:
    model = learned("abacabab", states=9, fan_out=4, memory=20)
    spoilt(model)
    with pytest.raises(AssertionError, match=invariant):
        model.check()


# ---- scores


def figures(scores: Scores) -> tuple[int, int, int]:
    return scores.predictions, scores.useful, scores.wasted


def test_before_the_first_prediction_all_scores_are_0() -> None:
    assert Scores().as_dict() == {
        "predictions": 0,
        "useful": 0,
        "wasted": 0,
        "misses": 0,
        "precision": 0.0,
        "recall": 0.0,
    }


def test_the_first_read_of_a_predicted_state_is_useful_and_the_second_is_a_read() -> None:
    scores = Scores()
    scores.predicted("a")
    assert not scores.read("b")
    assert scores.read("a")
    assert not scores.read("a")
    assert figures(scores) == (1, 1, 0)
    assert scores.precision == 1.0


def test_a_pending_prediction_is_not_judged() -> None:
    scores = Scores()
    scores.predicted("a")
    scores.predicted("b")
    assert figures(scores) == (2, 0, 0)
    assert scores.precision == 0.0
    scores.read("b")
    assert figures(scores) == (2, 1, 0)
    assert scores.precision == 1.0


def test_a_read_at_the_horizon_is_useful_and_one_beyond_it_is_not() -> None:
    scores = Scores(horizon=3)
    for state in ("in time", "late"):
        scores.predicted(state)
    assert [scores.read(state) for state in ("x", "x", "in time", "late")] == [0, 0, 1, 0]
    assert figures(scores) == (2, 1, 1)
    assert scores.precision == 0.5


def test_a_prediction_is_wasted_as_soon_as_the_horizon_has_passed() -> None:
    scores = Scores(horizon=3)
    scores.predicted("a")
    for wasted in (0, 0, 1, 1):
        scores.read("x")
        assert scores.wasted == wasted
    assert not scores.read("a")
    assert figures(scores) == (1, 0, 1)


def test_the_horizon_counts_from_each_prediction() -> None:
    scores = Scores(horizon=3)
    scores.predicted("a")
    scores.read("x")
    scores.read("x")
    scores.predicted("b")
    scores.read("x")
    assert figures(scores) == (2, 0, 1)
    assert scores.read("b")
    assert figures(scores) == (2, 1, 1)


def test_the_horizon_is_a_thousand_reads_unless_said() -> None:
    for between, useful in ((999, True), (1_000, False)):
        scores = Scores()
        scores.predicted("a")
        for _ in range(between):
            scores.read("x")
        assert scores.read("a") is useful


def test_loaded_ahead_a_second_time_the_first_time_was_for_nothing() -> None:
    scores = Scores(horizon=3)
    scores.predicted("a")
    scores.predicted("b")
    scores.read("x")
    scores.read("x")
    scores.predicted("a")
    assert figures(scores) == (3, 0, 1)
    scores.read("x")  # the horizon of b, and of the first a
    assert figures(scores) == (3, 0, 2)
    assert scores.read("a")
    assert figures(scores) == (3, 1, 2)


def test_beyond_the_bound_the_oldest_prediction_counts_as_never_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _successors.PENDING == 10_000
    monkeypatch.setattr(_successors, "PENDING", 3)
    scores = Scores()
    for state in "abcd":
        scores.predicted(state)
    assert figures(scores) == (4, 0, 1)
    assert not scores.read("a")
    assert all(scores.read(state) for state in "bcd")
    assert figures(scores) == (4, 3, 1)


def test_a_lost_value_is_judged_at_once() -> None:
    """It left the cache before it was read: the read that comes later has to load."""
    scores = Scores()
    scores.predicted("a")
    scores.lost("a")
    scores.lost("never predicted")
    assert figures(scores) == (1, 0, 1)
    assert not scores.read("a")
    scores.predicted("b")
    scores.read("b")
    scores.lost("b")
    assert figures(scores) == (2, 1, 1)


def test_recall_is_the_part_of_the_needed_loads_that_was_predicted() -> None:
    scores = Scores()
    for _ in range(3):
        scores.missed()
    assert scores.misses == 3
    assert scores.recall == 0.0
    scores.predicted("a")
    scores.read("a")
    scores.read("b")  # a hit that needed no prediction
    assert scores.recall == 0.25
    assert scores.as_dict() == {
        "predictions": 1,
        "useful": 1,
        "wasted": 0,
        "misses": 3,
        "precision": 1.0,
        "recall": 0.25,
    }


@given(st.lists(st.tuples(st.sampled_from(["predict", "read", "lose"]), st.integers(0, 3))))
def test_each_prediction_gets_one_verdict(steps: list[tuple[str, int]]) -> None:
    """Beside the same, told as a list of predictions that is looked through each time."""
    scores, reads = Scores(horizon=4), 0
    predictions: list[list[Any]] = []  # state, reads before it, verdict
    for step, state in steps:
        pending = [each for each in predictions if each[2] is None]
        mine = [each for each in pending if each[0] == state]
        if step == "predict":
            scores.predicted(state)
            for each in mine:
                each[2] = "wasted"
            predictions.append([state, reads, None])
        elif step == "read":
            reads += 1
            assert scores.read(state) is bool(mine)
            for each in mine:
                each[2] = "useful"
        else:
            scores.lost(state)
            for each in mine:
                each[2] = "wasted"
        for each in predictions:
            if each[2] is None and reads - each[1] >= 4:
                each[2] = "wasted"
        verdicts = Counter(each[2] for each in predictions)
        assert figures(scores) == (len(predictions), verdicts["useful"], verdicts["wasted"])


# ---- the benchmark


def test_without_prediction_the_benchmark_plays_an_lru() -> None:
    requests, _ = walks(3_000, 50)
    for bound in (4, 30, 300):
        played = play(Trace("", requests), bound)
        assert played.hits == ours("lru")(PlainTrace("", requests), bound)
        assert played.scores.misses == 3_000 - played.hits
        assert played.ahead == played.scores.predictions == 0


@pytest.mark.parametrize("hot", [True, False])
def test_every_load_ahead_of_the_benchmark_is_scored(hot: bool) -> None:
    requests, visitors = walks(10_000, 5)
    played = play(Trace("", requests, visitors), 40, 0.25, hot=hot)
    assert played.ahead == played.scores.predictions > 100
    assert played.scores.useful + played.scores.wasted <= played.ahead
    assert played.scores.misses == 10_000 - played.hits
    assert played.hits > play(Trace("", requests), 40).hits + 100


def test_a_loop_is_foreseen_once_it_was_seen_often_enough() -> None:
    """LRU finds nothing in it; in the fourth turn, all but the first is there before it is read."""
    played = play(Trace("", list(range(100)) * 10), 10, 0.5)
    assert played.hits == played.scores.useful == 1_000 - 301
    assert played.ahead == 700  # the last one names what nobody comes to read
    assert played.scores.precision == 1.0


def test_visitors_are_foreseen_when_they_are_told_apart() -> None:
    requests, visitors = walks(10_000, 20)
    mingled, apart = (play(Trace("", requests, by), 100, 0.25) for by in (None, visitors))
    assert apart.hits > mingled.hits + 500


def test_the_benchmark_runs_and_says_where_prediction_does_not_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["prediction", "--length", "3000", "--json", str(path)])
    prediction.main()
    facts = json.loads(path.read_text(encoding="utf-8"))
    names = [trace.name for trace in traces(3_000, None)]
    assert [row["trace"] for row in facts["rows"]] == [name for name in names for _ in range(4)]
    assert "shop walk, 50 at once" in facts["verdicts"]["does not help"]
    assert "loop" in facts["verdicts"]["helps"]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  shop walk ") for line in lines) == 4
    assert any(line.startswith("  does not help: ") for line in lines)


def test_the_cost_of_a_prediction_is_counted_in_loads() -> None:
    """Each turn of the loop ends with a stranger, and some loads ahead are for nothing."""
    loop = [key for turn in range(10) for key in (*range(100), 1_000 + turn % 2)]
    row = next(measured(Trace("loop", loop)))
    assert row["entries"] == 4
    assert row["hit_ratio_without"] == 0.0
    hits, ahead = round(row["hit_ratio_with"] * 1_010), row["loaded_ahead"]
    assert row["points"] == pytest.approx(100 * hits / 1_010)
    assert row["loads"] == pytest.approx((1_010 - hits + ahead) / 1_010)
    assert row["extra_loads_per_saved_miss"] == pytest.approx(ahead / hits - 1)
    assert ahead > hits > 600


def test_a_trace_is_helped_by_a_point_or_not() -> None:
    points = {"a": [1.0, 5.0], "b": [0.9, 1.0], "c": [0.99, -3.0]}
    rows = [{"trace": name, "points": each} for name, two in points.items() for each in two]
    assert verdicts(rows) == {"helps": ["a"], "helps at times": ["b"], "does not help": ["c"]}
