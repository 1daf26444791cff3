"""Who runs next: the policies of the explorer.

A *policy* makes one chooser per schedule, and learns from each run. A chooser
picks among the ready callbacks (`reorders`), or varies delays in asyncio's own
order; see `_loop`.

Sources: PCT, Burckhardt et al., "A randomized scheduler with probabilistic
guarantees of finding bugs" (2010); delay bounding, Emmi et al. (2011), of which
the bound of `Exhaustive` is a form; fairness, Musuvathi and Qadeer, "Fair stateless
model checking" (2008).
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Final, Literal, Protocol, final

from ._loop import Chooser, owner_number

__all__ = ["Exhaustive", "Policy", "PolicyName", "Recorded", "alternating"]

PolicyName = Literal["fifo", "random", "pct", "exhaustive"]

Decisions = Sequence[tuple[int, int]]

SPIN: Final = 50
"""Times in a row that one goes before others who are ready: then it is what waits for them."""


class Policy(Protocol):
    """Chooses run after run.

    Attributes:
        name: For people.
        exhausted: Whether every run that it could choose has been run.
    """

    name: str
    exhausted: bool

    def chooser(self, number: int, seed: int) -> Chooser:
        """Return what decides the run *number*; the same for the same seed."""
        ...

    def learn(self, decisions: Decisions, steps: int) -> None:
        """Take note of what the last run decided."""
        ...


def _random(number: int, seed: int) -> random.Random:
    return random.Random(seed * 1_000_003 + number)  # noqa: S311 - chooses orders, guards nothing


@final
class _Delays:
    reorders = False

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random

    def pick(self, ready: Sequence[asyncio.Handle]) -> int:
        return 0 if ready else -1

    def vary(self, options: int) -> int:
        return int(self._random() * options)


@final
class Fifo:
    """asyncio's own order; pauses and the time that steps take are random.

    Each failure is one that a plain asyncio program can meet.
    """

    name = "fifo"

    def __init__(self) -> None:
        self.exhausted = False

    def chooser(self, number: int, seed: int) -> Chooser:
        """Return random delays."""
        return _Delays(_random(number, seed))

    def learn(self, decisions: Decisions, steps: int) -> None:
        """Without anything to vary there is but one run."""
        self.exhausted = self.exhausted or not (decisions and steps)


@final
class _Uniform:
    reorders = True

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random

    def pick(self, ready: Sequence[asyncio.Handle]) -> int:
        return int(self._random() * len(ready))

    def vary(self, options: int) -> int:
        return options * 0


@final
class Uniform:
    """Any ready callback may run next, each with the same chance."""

    name = "random"

    def __init__(self) -> None:
        self.exhausted = False

    def chooser(self, number: int, seed: int) -> Chooser:
        """Return uniform choices."""
        return _Uniform(_random(number, seed))

    def learn(self, decisions: Decisions, steps: int) -> None:
        """Without a choice there is but one run."""
        self.exhausted = self.exhausted or not (decisions and steps)


@final
class _Priorities:
    reorders = True

    def __init__(self, rng: random.Random, changes: set[int]) -> None:
        self._random = rng
        self._changes = changes
        self._of: dict[int, float] = {}  # bounded by the tasks of the run
        self._picks = 0
        self._last = -1
        self._in_a_row = 0

    def pick(self, ready: Sequence[asyncio.Handle]) -> int:
        of = self._of
        best, highest, owner = 0, -1e9, -1
        for place, handle in enumerate(ready):
            number = owner_number(handle)
            priority = of.get(number)
            if priority is None:
                priority = of[number] = self._random.random()
            if priority > highest:
                best, highest, owner = place, priority, number
        self._picks += 1
        self._in_a_row = self._in_a_row + 1 if owner == self._last else 1
        self._last = owner
        if self._picks in self._changes or self._in_a_row >= SPIN:
            of[owner] = -float(self._picks)
            self._in_a_row = 0
        return best

    def vary(self, options: int) -> int:
        return options * 0


@final
class Pct:
    """Tasks have random priorities, which change at up to *changes* random moments.

    A bug that needs d orderings is found with probability >= 1 / (tasks * choices ** (d-1)).
    """

    name = "pct"

    def __init__(self, changes: int = 4) -> None:
        self.exhausted = False
        self._changes = changes
        self._choices = 30

    def chooser(self, number: int, seed: int) -> Chooser:
        """Return random priorities, with some changes among the choices of a run."""
        rng = _random(number, seed)
        many = 1 + int(rng.random() * self._changes)
        changes = {1 + int(rng.random() * self._choices) for _ in range(many)}
        return _Priorities(rng, changes)

    def learn(self, decisions: Decisions, steps: int) -> None:
        """Spread the changes over as many choices as the last run had."""
        self.exhausted = self.exhausted or not (decisions and steps)
        self._choices = max(2, len(decisions))


@final
class Recorded:
    """Repeats decisions; the plain choice, 0, after their end.

    Args:
        decisions: What to choose, and of how many.
        reorders: The mode they were recorded in.
        strict: Note where a run departs from them, instead of choosing what is nearest.
    """

    def __init__(self, decisions: Decisions, *, reorders: bool, strict: bool = False) -> None:
        self.reorders = reorders
        self.departed: tuple[int, int, int] | None = None
        self._decisions = decisions
        self._strict = strict
        self._place = 0

    def pick(self, ready: Sequence[asyncio.Handle]) -> int:
        """Return the next recorded choice."""
        return self.vary(len(ready))

    def vary(self, options: int) -> int:
        """Return the next recorded choice."""
        place = self._place
        self._place = place + 1
        if place >= len(self._decisions):
            return 0
        choice, of = self._decisions[place]
        if self._strict and of != options and self.departed is None:
            self.departed = (place, of, options)
        return min(choice, options - 1)


@final
class Exhaustive:
    """Every order, one after the other, in depth-first order.

    Args:
        preemptions: How many times a run may choose another callback than asyncio would;
            None: any number, which is feasible for small scenarios only.
    """

    name = "exhaustive"

    def __init__(self, preemptions: int | None = 2) -> None:
        if preemptions is not None and (isinstance(preemptions, bool) or preemptions < 0):
            raise ValueError(
                f"preemptions={preemptions!r} must be a number from 0, or None for no bound"
            )
        self.exhausted = False
        self.preemptions = preemptions
        self._prefix: list[tuple[int, int]] = []

    def chooser(self, number: int, seed: int) -> Chooser:
        """Return the next unexplored prefix; number and seed do not matter."""
        del number, seed
        return Recorded(self._prefix, reorders=True)

    def learn(self, decisions: Decisions, steps: int) -> None:
        """Find the deepest choice with an alternative that is left."""
        del steps
        spent = sum(choice > 0 for choice, _ in decisions)
        for place in range(len(decisions) - 1, -1, -1):
            choice, options = decisions[place]
            spent -= choice > 0
            if choice + 1 < options and (self.preemptions is None or spent < self.preemptions):
                self._prefix = [*decisions[:place], (choice + 1, options)]
                return
        self.exhausted = True


_NAMED: Final[dict[str, type[Fifo | Uniform | Pct | Exhaustive]]] = {
    "fifo": Fifo,
    "random": Uniform,
    "pct": Pct,
    "exhaustive": Exhaustive,
}


def alternating(policy: object) -> list[Policy]:
    """Return the policies that *policy* names: one, or a sequence to be alternated.

    Raises:
        ValueError: A name is unknown, or there is none.
        TypeError: It is neither a name, nor a policy, nor a sequence of them.
    """
    given: Sequence[object]
    if isinstance(policy, (str, Exhaustive)):
        given = (policy,)
    elif isinstance(policy, Sequence):
        given = policy  # pyright: ignore[reportUnknownVariableType]
    else:
        raise TypeError(
            f"policy must be a name ({', '.join(_NAMED)}), Exhaustive(...), or a sequence of them, "
            f"not {type(policy).__name__}"
        )
    chosen: list[Policy] = []
    for each in given:
        if isinstance(each, Exhaustive):
            chosen.append(Exhaustive(each.preemptions))
        elif isinstance(each, str) and each in _NAMED:
            chosen.append(_NAMED[each]())
        else:
            raise ValueError(f"policy={each!r} is unknown: choose among {', '.join(_NAMED)}")
    if not chosen:
        raise ValueError("policy=() names no policy: choose among " + ", ".join(_NAMED))
    return chosen
