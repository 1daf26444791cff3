"""Successors: which call follows which, learned from those of one process.

A first-order Markov model, bounded in every direction: a *state* is any hashable
object, a *row* counts what followed it.

    learn    before, after: one more in the row of *before*
    likely   count / total of the row, where both are more than chance

A full row is a Space-Saving summary: a newcomer takes the place of the rarest, and its
count. So the counts of a row add up to its total, and whoever follows more often than
one time in `fan_out` is in it; a count is too high by one time in `fan_out` at most.
Counts are halved whenever a total reaches `memory`, so what was learned fades, and a
changed workload changes the prediction. Halves are rounded down: what was seen once is
then gone.

`Scores` judges: how many of the predictions were read, how many of the reads predicted.

Source: Joseph and Grunwald, "Prefetching using Markov predictors", ISCA 1997; Metwally,
Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements in data
streams", ICDT 2005 (Space-Saving); the halving: Einziger, Friedman and Manes, "TinyLFU",
ACM ToS 2017.
"""

from collections import OrderedDict
from collections.abc import Hashable
from operator import itemgetter
from typing import Final, Generic, TypeVar, final

__all__ = ["PENDING", "Scores", "Successors"]

PENDING: Final = 10_000
"""Predictions that wait for their read; beyond them the oldest counts as never read."""

S = TypeVar("S", bound=Hashable)

_share: Final = itemgetter(1)


@final
class _Row(Generic[S]):
    """What followed one state, and how often."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: dict[S, int] = {}  # bounded by fan_out
        self.total = 0  # the sum of the counts


@final
class Successors(Generic[S]):
    """The model. Not thread safe: the caller holds a lock.

    Args:
        states: Rows at most; the one that has not been learned from for longest leaves.
        fan_out: Successors kept for each state. A `least` of 1 / fan_out or less
            cannot tell a successor from chance.
        memory: Observations of a state at which its counts are halved.

    All are at least 1. Complexity: O(states × fan_out) memory.
    """

    __slots__ = ("_fan_out", "_memory", "_rows", "_states")

    def __init__(self, *, states: int = 10_000, fan_out: int = 8, memory: int = 64) -> None:
        self._states = states
        self._fan_out = fan_out
        self._memory = memory
        self._rows: OrderedDict[S, _Row[S]] = OrderedDict()  # bounded by states; the oldest first

    def __len__(self) -> int:
        return len(self._rows)

    def learn(self, before: S, after: S) -> None:
        """Note that *after* followed *before*; nothing if they are equal.

        Complexity: O(1) for a known successor, O(fan_out) for a new one and for a halving.
        """
        if before == after:
            return  # a state that is read again is there: nothing to load ahead
        rows = self._rows
        row = rows.get(before)
        if row is None:
            if len(rows) >= self._states:
                rows.popitem(last=False)
            row = rows[before] = _Row()
        else:
            rows.move_to_end(before)
        counts = row.counts
        count = counts.get(after)
        if count is None:
            count = 0
            if len(counts) >= self._fan_out:
                count = min(counts.values())
                for rarest, seen in counts.items():
                    if seen == count:  # the first of several: the one that came longest ago
                        del counts[rarest]
                        break
        counts[after] = count + 1
        row.total += 1
        if row.total >= self._memory:
            row.counts = {state: half for state, count in counts.items() if (half := count >> 1)}
            row.total = sum(row.counts.values())

    def likely(
        self, state: S, *, least: float = 0.25, limit: int = 2, support: int = 3
    ) -> list[tuple[S, float]]:
        """Return what follows *state* with a probability of at least *least*.

        The most likely first, and no more than *limit*; none that is remembered to have
        followed only once, and none at all unless *support* observations of *state* are
        remembered (about half of them are, after a halving). Asking changes nothing.
        O(fan_out).
        """
        row = self._rows.get(state)
        if row is None or row.total < support:
            return []
        found: list[tuple[S, float]] = []
        for after, count in row.counts.items():
            share = count / row.total
            # Once is chance: of three different successors each would have a third.
            if share >= least and count > 1:
                found.append((after, share))
        if len(found) > 1:
            found.sort(key=_share, reverse=True)
        return found[:limit]

    def forget(self, state: S) -> None:
        """Forget what follows *state*, not what it follows: those rows fade by themselves. O(1)."""
        self._rows.pop(state, None)

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()

    def check(self) -> None:
        """Recompute every invariant; raise AssertionError at the first broken one."""
        _claim(len(self._rows) <= self._states, "there are no more rows than the bound")
        for state, row in self._rows.items():
            counts = row.counts.values()
            _claim(len(counts) <= self._fan_out, "a row is no longer than the bound")
            _claim(all(count > 0 for count in counts), "who is in a row was seen")
            _claim(row.total == sum(counts), "a total is the sum of its counts")
            _claim(row.total < self._memory, "a row is halved in time")
            _claim(state not in row.counts, "nothing follows itself")


@final
class Scores:
    """How good predictions are, in loads and reads.

    Not thread safe: the caller holds a lock, to ask for a figure too (asking judges).

    A prediction is pending until it is judged: useful with its first read, wasted if
    none came within *horizon* reads (of anything), if its value was lost before, or if
    it was loaded a second time. Every method is O(1), amortised.
    """

    __slots__ = ("_horizon", "_pending", "_predictions", "_reads", "misses", "useful")

    def __init__(self, *, horizon: int = 1_000) -> None:
        self._horizon = horizon
        self._reads = 0
        self._predictions = 0
        self.useful = 0
        self.misses = 0
        # State -> number of reads before it; the oldest first; bounded by PENDING.
        self._pending: OrderedDict[Hashable, int] = OrderedDict()

    def predicted(self, state: Hashable) -> None:
        """Note that *state* is loaded ahead because it was predicted."""
        self._predictions += 1
        self._pending[state] = self._reads
        self._pending.move_to_end(state)
        if len(self._pending) > PENDING:
            self._pending.popitem(last=False)

    def read(self, state: Hashable) -> bool:
        """Note a read of *state*; tell whether it is the first one that was predicted."""
        self._reads += 1
        before = self._pending.pop(state, None)
        if before is None or self._reads - before > self._horizon:
            return False
        self.useful += 1
        return True

    def missed(self) -> None:
        """Note a read that had to load: nobody predicted it."""
        self.misses += 1

    def lost(self, state: Hashable) -> None:
        """Note that the value of *state* is gone: read or not, its prediction helps nobody now."""
        self._pending.pop(state, None)

    @property
    def predictions(self) -> int:
        """All so far, pending ones included."""
        return self._predictions

    @property
    def wasted(self) -> int:
        """Predictions that were judged and not useful."""
        return self._judged() - self.useful

    @property
    def precision(self) -> float:
        """Useful of the judged predictions; 0.0 before the first."""
        judged = self._judged()
        return self.useful / judged if judged else 0.0

    @property
    def recall(self) -> float:
        """Useful of the reads that would have had to load; 0.0 before the first."""
        needed = self.useful + self.misses
        return self.useful / needed if needed else 0.0

    def as_dict(self) -> dict[str, float]:
        """Return all figures by name."""
        return {
            "predictions": self._predictions,
            "useful": self.useful,
            "wasted": self.wasted,
            "misses": self.misses,
            "precision": self.precision,
            "recall": self.recall,
        }

    def _judged(self) -> int:
        self._settle()
        return self._predictions - len(self._pending)

    def _settle(self) -> None:
        """Let go of what was not read in time: whatever is not pending any more is judged."""
        pending = self._pending
        while pending:
            state, before = next(iter(pending.items()))
            if self._reads - before < self._horizon:
                return
            del pending[state]


def _claim(holds: bool, invariant: str) -> None:
    if not holds:
        raise AssertionError(f"broken invariant of the successors: {invariant}")
