"""Part f: the three classic races, told by `examples/race_conditions.py`.

The example stands on its own, for readers. In a wheel it lies beside this
module; in a checkout, in the folder of the examples.
"""

import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

from .report import Progress, Promise, Report

_HERE = Path(__file__).parent
_PLACES = (_HERE, _HERE.parents[1] / "examples")
_NAME = f"{__package__}.race_conditions"


class Outcome(Protocol):
    """How one telling of a story ended."""

    @property
    def failed(self) -> bool:
        """Whether the race did its damage."""
        ...

    @property
    def seen(self) -> str:
        """What was seen, in a few words."""
        ...


class Race(Protocol):
    """One story, told without and with the library."""

    @property
    def title(self) -> str:
        """What goes wrong."""
        ...

    @property
    def without(self) -> Outcome:
        """The naive cache."""
        ...

    @property
    def with_library(self) -> Outcome:
        """The library."""
        ...


@cache
def example() -> ModuleType:
    """Return `race_conditions.py` as a module, loaded once."""
    path = next((place / "race_conditions.py" for place in _PLACES
                 if (place / "race_conditions.py").is_file()), None)  # fmt: skip
    spec = spec_from_file_location(_NAME, path) if path else None
    if spec is None or spec.loader is None:
        raise FileNotFoundError("race_conditions.py is missing from this installation")
    module = module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


def run(progress: Progress) -> Report:
    """Let every story happen, in the naive cache and in the library."""
    progress("without and with the library")
    races = cast("tuple[Race, ...]", example().run())
    return Report(
        "f",
        "The three classic races, forced (examples/race_conditions.py)",
        "something else runs between the check and the act, every time",
        "check and act are one step: nothing can run between them",
        tuple(
            Promise(
                race.title,
                race.without.seen,
                race.with_library.seen,
                # A story in which the naive cache survives would prove nothing.
                race.without.failed and not race.with_library.failed,
            )
            for race in races
        ),
        {
            "races": len(races),
            "failed_without": sum(race.without.failed for race in races),
            "failed_with": sum(race.with_library.failed for race in races),
        },
    )
