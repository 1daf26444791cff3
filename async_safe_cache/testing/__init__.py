"""Tools for testing code whose tasks interleave: an explorer of schedules, and doubles.

    explore      run an async scenario in many orders; print the shortest that fails
    replay       run one of them again
    pause        stands for an answer from outside, in a scenario
    FakeClock    seconds that pass when told

Needs nothing but the standard library. The pytest plugin is `testing.plugin`.
"""

from ._clock import FakeClock
from ._explore import Exploration, ExplorationError, ScheduleMismatchError, explore, replay
from ._loop import RealWorldError, pause
from ._policies import Exhaustive

__all__ = [
    "Exhaustive",
    "Exploration",
    "ExplorationError",
    "FakeClock",
    "RealWorldError",
    "ScheduleMismatchError",
    "explore",
    "pause",
    "replay",
]
