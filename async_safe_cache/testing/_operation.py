"""One operation of a history: its two numbers, what it asked and what it answered.

A record keeps tokens, not objects: what tells a value or an error apart from others,
without the frames that an exception would hold alive.
"""

import asyncio
import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, final

from async_safe_cache._keys import Key, canonical

__all__ = [
    "NEVER",
    "Act",
    "Fresh",
    "Operation",
    "Outcome",
    "error_token",
    "label",
    "table",
    "text",
    "token",
]

NEVER: Final = math.inf
"""The number of an event that did not happen."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Fresh:
    """A value like no other of its history; it knows its key.

    Attributes:
        key: The key, as text.
        number: Unique in its history.
    """

    key: str
    number: int

    def __repr__(self) -> str:
        return f"{self.key}#{self.number}"


class Act(Enum):
    """What an operation does to its key."""

    READ = auto()  # sees the value
    USE = auto()  # tells whether there is a value (touch)
    CALL = auto()  # sees the value, or joins or begins a load
    REFRESH = auto()  # joins or begins a load, whatever the value
    WRITE = auto()
    REMOVE = auto()
    CLEAR = auto()  # a removal of every key, or of every key of one function
    LOAD = auto()  # one run of a loader


class Outcome(Enum):
    """How an operation ended."""

    OPEN = auto()
    VALUE = auto()
    MISS = auto()
    DONE = auto()
    ERROR = auto()
    CANCELLED = auto()


@final
class Operation:
    """One operation: its two numbers and what it answered. Written by one thread, once.

    Attributes:
        name: As it is called: "get", "delete", "load".
        begin: Number of its call.
        end: Number of its return; infinity as long as it did not return.
        outcome: How it ended.
        result: The token of the value or of the error; for a removal how many it removed.
    """

    __slots__ = (
        "_tick", "act", "begin", "end", "given", "key", "leader", "loop", "name", "outcome",
        "result", "scope",
    )  # fmt: skip

    def __init__(
        self, tick: Callable[[], int], name: str, act: Act, key: Hashable, given: object = None
    ) -> None:
        self._tick = tick
        self.name = name
        self.act = act
        self.key = key
        self.given = given
        self.scope: object = None
        self.leader: Operation | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.outcome = Outcome.OPEN
        self.result: Any = None
        self.end: float = NEVER
        self.begin: float = tick()

    def returned(self, outcome: Outcome, result: object = None) -> None:
        """Note the return."""
        self.result = result
        self.outcome = outcome
        self.end = self._tick()

    def raised(self, error: BaseException) -> None:
        """Note that it ended with *error*; no reference to it is kept."""
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self.returned(Outcome.CANCELLED)
        else:
            self.returned(Outcome.ERROR, error_token(error))

    def __repr__(self) -> str:
        given = "" if self.given is None else f" {self.given!r}"
        end = "-" if self.end == NEVER else f"{self.end:g}"
        return f"{self.name}{given} [{self.begin:g}..{end}]"

    @property
    def answer(self) -> str:
        """What it answered, for people."""
        match self.outcome:
            case Outcome.OPEN:
                return "..."
            case Outcome.MISS:
                return "miss"
            case Outcome.CANCELLED:
                return "cancelled"
            case Outcome.ERROR:
                return f"raised {_error_text(self.result)}"
            case Outcome.VALUE:
                return repr(self.result)
            case Outcome.DONE:
                return "done" if self.result is None else str(self.result)


# -- names of keys, values and errors


def label(key: object) -> Hashable:
    """Return what tells *key* apart: 1, True and 1.0 are three keys."""
    return key if type(key) is Key else canonical(key, "key", raw=True)


def text(key: object) -> str:
    if isinstance(key, Key):
        return f"{key.name}({key.data!r})"
    return key if isinstance(key, str) else repr(key)


@final
class _Held:
    """An object that cannot be hashed, by identity; holds it, so that no other gets its id."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return repr(self.value)


def token(value: object) -> Hashable:
    """Return what tells *value* apart from others; equal for a copy of a fresh one."""
    return value if isinstance(value, Fresh) else _Held(value)


def error_token(error: BaseException) -> Hashable:
    """Return what an error and its twin have in common, without holding its frames."""
    try:
        hash(error.args)
    except TypeError:
        return (type(error), repr(error.args))
    return (type(error), error.args)


def _error_text(token: Any) -> str:
    kind, args = token
    return f"{kind.__name__}{args}"


def table(operations: Iterable[Operation], mark: Operation | None = None) -> str:
    """Return *operations* as a table for people, *mark* marked."""
    rows = [("", "call", "return", "operation", "answer")]
    for each in operations:
        given = "" if each.given is None else f" {each.given!r}"
        end = "-" if each.end == NEVER else f"{each.end:g}"
        by = "" if each.leader is None else f" for {each.leader.name} [{each.leader.begin:g}]"
        rows.append(
            (
                ">" if each is mark else "",
                f"{each.begin:g}",
                end,
                f"{each.name}{given}{by}",
                each.answer,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in (1, 2) else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
