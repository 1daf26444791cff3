"""Tools for testing code whose tasks interleave: an explorer of schedules, and doubles.

    explore           run an async scenario in many orders; print the shortest that fails
    replay            run one of them again
    pause             stands for an answer from outside, in a scenario
    FakeClock         seconds that pass when told
    ScriptedLoader    a loader that does what its script says, and counts
    assert_one_load   exactly one load happened in this block
    caching_disabled  in this block every call is a load
    History           records what was asked and answered, and decides whether that can be right

The pytest plugin is the module `async_safe_cache_pytest`, outside the package: pytest
imports it in every run, and it imports the package when it is used.
"""

from ._clock import FakeClock
from ._explore import Exploration, ExplorationError, ScheduleMismatchError, explore, replay
from ._helpers import ScriptedLoader, after, assert_loads, assert_one_load, caching_disabled
from ._history import History, HistoryError
from ._loop import RealWorldError, pause
from ._policies import Exhaustive

__all__ = [
    "Exhaustive",
    "Exploration",
    "ExplorationError",
    "FakeClock",
    "History",
    "HistoryError",
    "RealWorldError",
    "ScheduleMismatchError",
    "ScriptedLoader",
    "after",
    "assert_loads",
    "assert_one_load",
    "caching_disabled",
    "explore",
    "pause",
    "replay",
]
