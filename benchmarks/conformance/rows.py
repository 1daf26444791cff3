"""All rows, in the order of the table."""

from collections.abc import Mapping
from typing import Final

from . import (
    stories_failures,
    stories_invalidation,
    stories_time,
    stories_together,
    stories_values,
)
from .story import REGISTERED, Row

__all__ = ["ROWS", "Row"]

_ORDER = (
    stories_together,
    stories_failures,
    stories_invalidation,
    stories_values,
    stories_time,
)

ROWS: Final[Mapping[str, Row]] = {
    name: row
    for module in _ORDER
    for name, row in REGISTERED.items()
    if row.story.__module__ == module.__name__
}
