"""Every scenario, in many orders: together at least 50,000 distinct schedules."""

import pytest

from async_safe_cache.testing import Exhaustive, explore

from .scenarios import SCENARIOS, Scenario

SHARE = 1_200  # schedules of each scenario; and a third of it for each task to be cancelled
_distinct: dict[str, int] = {}


@pytest.mark.parametrize("each", SCENARIOS.values(), ids=SCENARIOS)
def test_in_every_order(each: Scenario) -> None:
    results = [explore(each, schedules=SHARE)]
    results += [explore(each, schedules=SHARE // 3, cancel=name) for name in each.cancel]
    _distinct[each.name] = sum(result.distinct for result in results)
