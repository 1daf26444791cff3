"""What follows what, and whether it was worth saying: alone, beside plain models."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_safe_cache import _successors
from async_safe_cache._successors import Scores, Successors


def learned(sequence: Iterable[Any], **bounds: int) -> Successors[Any]:
    """Return a model of *sequence*, whose neighbours follow each other."""
    model: Successors[Any] = Successors(**bounds)
    for before, after in pairwise(sequence):
        model.learn(before, after)
    model.check()
    return model


def everything(model: Successors[Any], state: Any) -> dict[Any, float]:
    return dict(model.likely(state, least=0.0, limit=1_000, support=1))


# ---- what is likely


def test_who_follows_more_often_is_named_first_with_its_share() -> None:
    model = learned("abacababa")
    assert model.likely("a") == [("b", 0.75), ("c", 0.25)]
    assert model.likely("b") == [("a", 1.0)]
    assert model.likely("z") == []


def test_equals_are_named_in_the_order_they_came() -> None:
    assert learned("acabacaba").likely("a") == [("c", 0.5), ("b", 0.5)]


def test_no_more_are_named_than_asked_for() -> None:
    model = learned("abacadad")
    assert model.likely("a", limit=1) == [("d", 0.5)]
    assert model.likely("a", limit=2) == [("d", 0.5), ("b", 0.25)]
    assert model.likely("a", limit=3) == [("d", 0.5), ("b", 0.25), ("c", 0.25)]


def test_the_least_probability_is_still_named() -> None:
    model = learned("abacacac")
    assert model.likely("a", least=0.25) == [("c", 0.75), ("b", 0.25)]
    assert model.likely("a", least=0.26) == [("c", 0.75)]
    assert model.likely("a", least=0.76) == []


def test_what_was_seen_too_rarely_says_nothing() -> None:
    model = learned("abab")
    assert model.likely("a") == []
    assert model.likely("a", support=2) == [("b", 1.0)]
    model.learn("a", "b")
    assert model.likely("a") == [("b", 1.0)]


def test_a_state_that_is_read_again_does_not_follow_itself() -> None:
    model = learned("aaaaaa")
    assert len(model) == 0
    assert learned("aabbaabbaabb").likely("a") == [("b", 1.0)]


def test_asking_changes_nothing() -> None:
    """Not even which state leaves next: a question is no observation."""
    model = learned("abcd", states=3)
    for _ in range(5):
        model.likely("a", support=1)
    model.learn("d", "a")
    assert model.likely("a", support=1) == []
    assert model.likely("z") == []
    assert len(model) == 3


@given(st.lists(st.integers(0, 7), max_size=60))
def test_a_short_life_is_counted_as_it_was(sequence: list[int]) -> None:
    """Within all bounds the model is a table of counts."""
    model = learned(sequence)
    counts: dict[int, Counter[int]] = {}
    for before, after in pairwise(sequence):
        if before != after:
            counts.setdefault(before, Counter())[after] += 1
    assert len(model) == len(counts)
    for state in range(8):
        row = counts.get(state, Counter())
        total = row.total()
        wanted = [(each, count / total) for each, count in row.most_common()]
        for least in (0.1, 0.25, 0.5):
            enough = [pair for pair in wanted if pair[1] >= least]
            assert model.likely(state, least=least) == (enough[:2] if total >= 3 else [])


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


def test_what_follows_no_more_is_not_likely_soon_after() -> None:
    model = learned("ab" * 1_000)
    for _ in range(3 * 64):
        model.learn("a", "c")
    assert model.likely("a") == [("c", everything(model, "a")["c"])]
    for _ in range(5 * 64):
        model.learn("a", "c")
    assert everything(model, "a") == {"c": 1.0}


def test_counts_are_halved_rounded_down_when_the_total_reaches_the_memory() -> None:
    model = learned("abacabacabacabad", memory=9)  # b 4, c 3, d 1
    assert everything(model, "a") == {"b": 4 / 8, "c": 3 / 8, "d": 1 / 8}
    model.learn("a", "c")  # the ninth: b 4, c 4, d 1
    assert everything(model, "a") == {"b": 2 / 4, "c": 2 / 4}
    model.learn("a", "d")
    assert everything(model, "a") == {"b": 2 / 5, "c": 2 / 5, "d": 1 / 5}


def test_other_states_keep_their_counts_at_a_halving() -> None:
    model = learned("babababa", memory=100)
    for _ in range(99):
        model.learn("x", "y")
    before = everything(model, "a"), everything(model, "b")
    for _ in range(200):
        model.learn("x", "z")
    assert (everything(model, "a"), everything(model, "b")) == before


@pytest.mark.parametrize("memory", [1, 2, 3])
def test_a_memory_shorter_than_the_support_says_nothing(memory: int) -> None:
    model = Successors[str](memory=memory)
    for _ in range(20):
        model.learn("a", "b")
        assert model.likely("a") == []
    assert len(model) == 1
    assert model.likely("a", support=0) == [("b", 1.0)][: memory - 1]


# ---- bounds


def test_the_rarest_makes_way_for_a_newcomer_that_takes_its_count() -> None:
    model = learned("abababacacad", fan_out=2)  # b 3, then d in the place of c with 2 + 1
    assert everything(model, "a") == {"b": 3 / 6, "d": 3 / 6}
    model.learn("a", "e")  # both have 3: b came first
    assert everything(model, "a") == {"d": 3 / 7, "e": 4 / 7}


@pytest.mark.parametrize("turn", [2, 3, 5])
def test_a_heavy_successor_stays_among_noise(turn: int) -> None:
    """Every second to fifth is the same one, all others come once, and there is room for eight."""
    model = Successors[Any]()
    for number in range(20_000):
        model.learn("a", "heavy" if number % turn == 0 else number)
        assert "heavy" in everything(model, "a")
    ((first, share),) = model.likely("a", limit=1, least=0.0)
    assert first == "heavy"
    assert abs(share - 1 / turn) < 0.1


def test_noise_alone_is_never_likely() -> None:
    """Past the first few observations, which cannot tell."""
    model = Successors[Any]()
    for number in range(10_000):
        model.learn("a", number)
        assert model.likely("a", support=5) == []


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
    row = {after: round(share * total) for after, share in everything(model, "a").items()}
    for after, count in row.items():
        assert truth[after] <= count <= truth[after] + total / fan_out
    assert {after for after, count in truth.items() if count > total / fan_out} <= set(row)


def test_the_state_not_learned_from_for_longest_leaves_first() -> None:
    model = Successors[str](states=2)
    for before in "aabab":  # now a is older than b
        model.learn(before, "x")
    model.learn("c", "x")
    assert len(model) == 2
    assert everything(model, "a") == {}
    assert everything(model, "b") == {"x": 1.0}
    model.learn("b", "x")
    model.learn("d", "x")
    assert everything(model, "b") == {"x": 1.0}
    assert everything(model, "c") == {}


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
    assert sum(len(everything(model, state)) for state in range(2_000)) <= 500 * 5


class PlainModel:
    """The same within small bounds, told as lists that are looked through each time."""

    def __init__(self, states: int, fan_out: int, memory: int) -> None:
        self.bounds = states, fan_out, memory
        self.rows: list[tuple[int, list[tuple[int, int]]]] = []  # the oldest first

    def learn(self, before: int, after: int) -> None:
        states, fan_out, memory = self.bounds
        if before == after:
            return
        row = next((row for state, row in self.rows if state == before), [])
        self.rows = [each for each in self.rows if each[0] != before][-states + 1 :]
        if after in [state for state, _ in row]:
            row = [(state, count + (state == after)) for state, count in row]
        elif len(row) < fan_out:
            row = [*row, (after, 1)]
        else:
            rarest = min(row, key=lambda each: each[1])
            row = [*(each for each in row if each != rarest), (after, rarest[1] + 1)]
        if sum(count for _, count in row) >= memory:
            row = [(state, count // 2) for state, count in row if count > 1]
        self.rows = [*self.rows, (before, row)] if states > 1 else [(before, row)]

    def shares(self, state: int) -> dict[int, float]:
        row = next((row for each, row in self.rows if each == state), [])
        total = sum(count for _, count in row)
        return {each: count / total for each, count in row}


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
            assert everything(model, state) == plain.shares(state)


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


def row_of(model: Successors[Any]) -> Any:
    return model._rows["a"]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda model: model._rows.update({n: _successors._Row() for n in range(9)}),
        lambda model: row_of(model).counts.update(dict.fromkeys(range(5), 0)),
        lambda model: row_of(model).counts.update({"b": 0, "c": 4}),
        lambda model: row_of(model).counts.update({"b": 9}),
        lambda model: setattr(row_of(model), "total", 5),
        lambda model: (row_of(model).counts.update({"b": 19}), setattr(row_of(model), "total", 20)),
        lambda model: (row_of(model).counts.update({"a": 1}), setattr(row_of(model), "total", 5)),
    ],
)
def test_a_broken_invariant_is_noticed(break_it: Callable[[Any], object]) -> None:
    model = learned("abacabab", states=9, fan_out=4, memory=20)
    break_it(model)
    with pytest.raises(AssertionError, match="broken invariant"):
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
