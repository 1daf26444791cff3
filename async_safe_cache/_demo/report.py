"""What a part of the demo hands back: rows of a table, some of them promises.

A *measure* is shown and promises nothing; a *promise* holds or is broken.
Every row has the number without the library beside the number with it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

Progress = Callable[[str], None]
"""Called by a part with what it does next, for people who wait."""

Figure = bool | int | float | str | list[float] | dict[str, int]
"""A number of the JSON report."""

_TEXT, _SIDE = 44, 20


@dataclass(frozen=True, slots=True)
class Measure:
    """One row: what was measured, without and with the library."""

    text: str
    without: str
    with_library: str


@dataclass(frozen=True, slots=True)
class Promise(Measure):
    """A row that must hold, or the demo fails."""

    holds: bool


@dataclass(frozen=True, slots=True)
class Report:
    """One part: its story in two sentences, its rows, and its numbers for machines."""

    letter: str
    title: str
    without: str
    with_library: str
    rows: tuple[Measure, ...]
    figures: Mapping[str, Figure] = field(default_factory=dict[str, Figure])
    seconds: float = 0.0

    @property
    def promises(self) -> tuple[Promise, ...]:
        """The rows that must hold."""
        return tuple(row for row in self.rows if isinstance(row, Promise))

    @property
    def holds(self) -> bool:
        """Whether every promise holds; a part without one proves nothing."""
        return bool(self.promises) and all(promise.holds for promise in self.promises)

    def as_json(self) -> dict[str, object]:
        """Return the part as a JSON object; `holds` of a mere measure is null."""
        return {
            "part": self.letter,
            "title": self.title,
            "without": self.without,
            "with": self.with_library,
            "holds": self.holds,
            "seconds": round(self.seconds, 3),
            "rows": [
                {
                    "text": row.text,
                    "without": row.without,
                    "with": row.with_library,
                    "holds": row.holds if isinstance(row, Promise) else None,
                }
                for row in self.rows
            ],
            "figures": {name: _plain(figure) for name, figure in self.figures.items()},
        }

    def lines(self) -> Iterator[str]:
        """Yield the part as lines for people."""
        yield f"{self.letter}. {self.title}"
        yield f"   without: {self.without}"
        yield f"   with:    {self.with_library}"
        yield ""
        yield f"   {'':{_TEXT}}{'without':>{_SIDE}}{'with':>{_SIDE}}"
        for row in self.rows:
            verdict = ("holds" if row.holds else "BROKEN") if isinstance(row, Promise) else ""
            sides = f"{row.without:>{_SIDE}}{row.with_library:>{_SIDE}}"
            yield f"   {row.text:{_TEXT}}{sides}   {verdict}".rstrip()
        yield ""


def _plain(figure: Figure) -> Figure | None:
    """Return what JSON can say: it has no infinity."""
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure


def milliseconds(seconds: float) -> str:
    """Return a duration as text, in ms."""
    return f"{seconds * 1e3:,.2f} ms" if seconds < 0.01 else f"{seconds * 1e3:,.0f} ms"
