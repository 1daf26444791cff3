"""The seams: what users may put in, as types."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["Clock", "Loader", "Weigher"]

T = TypeVar("T")

Clock = Callable[[], float]
"""Monotonic seconds, from any starting point."""

Weigher = Callable[[object], float]
"""Bytes of one value; called outside every lock."""

Loader = Callable[[], Awaitable[T]] | Callable[[], T]
"""Computes an absent value; async or plain."""
