"""Every cache made in a test is checked from scratch when the test is over."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache

from .virtual import VirtualClock

_made: "weakref.WeakSet[AsyncSafeCache]" = weakref.WeakSet()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the explorer's self-check first: what it finds nothing in is told by it."""
    items.sort(key=lambda item: item.path.name != "test_explorer.py")  # stable


@pytest.fixture(autouse=True)
def _check_every_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recompute the invariants of every cache after every test."""
    original = AsyncSafeCache.__init__

    def init(self: AsyncSafeCache, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _made.add(self)

    monkeypatch.setattr(AsyncSafeCache, "__init__", init)
    yield
    for cache in list(_made):
        cache.check()


@pytest.fixture
def clock() -> VirtualClock:
    """Return a clock that moves when told."""
    return VirtualClock()
