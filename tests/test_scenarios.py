"""Every scenario, in many orders: together at least 50,000 distinct schedules."""

import pytest

from async_safe_cache.testing import Exhaustive, explore

from .scenarios import SCENARIOS, Scenario

SHARE = 500  # schedules of each scenario; and two fifths of it for each task to be cancelled
SMALL = {name: each for name, each in SCENARIOS.items() if each.two_tasks}
_distinct: dict[str, int] = {}


@pytest.mark.parametrize("each", SCENARIOS.values(), ids=SCENARIOS)
def test_in_every_order(each: Scenario) -> None:
    results = [explore(each, schedules=SHARE)]
    results += [explore(each, schedules=SHARE * 2 // 5, cancel=name) for name in each.cancel]
    _distinct[each.name] = sum(result.distinct for result in results)


@pytest.mark.parametrize("each", SMALL.values(), ids=SMALL)
def test_in_each_order_there_is(each: Scenario) -> None:
    """Small scenarios, with up to two departures from asyncio's order: all of those."""
    result = explore(each, schedules=20_000, policy=Exhaustive(2))
    assert result.exhausted
    _distinct[f"{each.name}, exhaustive"] = result.distinct


def test_that_was_enough() -> None:
    """The promise is 50,000 distinct schedules in each run of the suite."""
    if len(_distinct) < len(SCENARIOS) + len(SMALL):
        pytest.skip("only some of the scenarios were chosen for this run")
    assert sum(_distinct.values()) >= 50_000
