"""What a row of the table is, and what its story is made of.

A story is written once and told to every library through its adapter. It
returns what was seen, in a word or two; the row says which words are right.
Stories are steered by events and turns of the loop, not by times, except where
time is the subject.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, final

from .peers import Peer

__all__ = [
    "REGISTERED",
    "Row",
    "Source",
    "all_seen",
    "answer",
    "ask",
    "count",
    "is_error",
    "row",
    "seen",
    "settle",
]

Story = Callable[[Peer], Awaitable[str] | str]

TURNS: Final = 60
"""Turns of the loop after which every library has come to its next wait."""


@final
@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: For the command line.
        group: Heading that it stands under.
        title: Head of the line; the cells complete it.
        given: The state that the story begins in.
        when: What happens.
        must: What has to be seen, for people.
        right: Whether what was seen is that; None: the row tells, and judges nobody.
        story: Plays it: an `async def` in a loop of its own, or a `def`.
        telling: Whether the README shows it.
    """

    name: str
    group: str
    title: str
    given: str
    when: str
    must: str
    right: Callable[[str], bool] | None
    story: Story
    telling: bool


REGISTERED: Final[dict[str, Row]] = {}
"""Every row that `row` made, by name."""


def row(
    group: str,
    title: str,
    *,
    given: str,
    when: str,
    must: str,
    right: str | Callable[[str], bool] | None,
    telling: bool = False,
) -> Callable[[Story], Story]:
    """Add a story to the table."""

    def add(story: Story) -> Story:
        name = story.__name__.replace("_", "-")
        judge = (lambda seen: seen == right) if isinstance(right, str) else right
        REGISTERED[name] = Row(name, group, title, given, when, must, judge, story, telling)
        return story

    return add


# ---- what stories are made of


class Source:
    """What a loader reads. A read sees the value of its first moment and ends at the gate."""

    def __init__(self) -> None:
        self.value: object = "value"
        self.error: type[BaseException] | None = None
        self.loads = 0
        self.running = 0
        self.most = 0
        self.gate = asyncio.Event()

    async def read(self) -> Any:
        self.loads += 1
        self.running += 1
        self.most = max(self.most, self.running)
        value, error = self.value, self.error
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if error is not None:
            raise error
        return value

    def loader(self) -> Callable[[int], Awaitable[Any]]:
        """Return a function to cache."""

        async def load(x: int) -> Any:
            return await self.read()

        return load


async def answer(fn: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """Call *fn*; some libraries return an awaitable that no task can be made of."""
    return await fn(*args, **kwargs)


def ask(fn: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(answer(fn, *args, **kwargs))


async def settle() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def seen(asked: Awaitable[Any]) -> str:
    """Return the value as text, or the name of the exception."""
    try:
        return str(await asked)
    except BaseException as error:
        return type(error).__name__


async def all_seen(asked: Iterable[Awaitable[Any]]) -> str:
    """Return what all of them got, each different thing once."""
    return " / ".join(dict.fromkeys([await seen(each) for each in asked]))


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def is_error(found: str) -> bool:
    """Tell whether *found* names exceptions that callers can handle, and nothing else."""
    return all(name.endswith("Error") and name != "CancelledError" for name in found.split(" / "))
