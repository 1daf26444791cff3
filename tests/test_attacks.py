"""What an attack on the whole has found: each test is one that got through."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from async_safe_cache import AsyncSafeCache, CacheWarmingStrategy, race_safe_cached

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


class Finaliser:
    """A cycle whose finaliser calls *hook*, wherever the collector happens to run."""

    def __init__(self, hook: Callable[[], object]) -> None:
        self.hook = hook
        self.itself = self

    def __del__(self) -> None:
        self.hook()


@contextmanager
def collected_after(allocations: int) -> Iterator[None]:
    """Let the collector run after so many *allocations* in this block."""
    before = gc.get_threshold()
    gc.freeze()  # or each collection would walk through all that the tests hold
    gc.set_threshold(allocations, 1_000, 1_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.collect()
        gc.unfreeze()


# -- finalisers


def test_a_finaliser_inside_a_call_leaves_the_popular_calls_sound() -> None:
    """It took in a call of its own while another was taken in: one more than the limit."""
    cache = AsyncSafeCache()
    strategy = CacheWarmingStrategy(cache, popular=8)
    calls = 0

    @race_safe_cached(cache, "call")
    def call(numbers: tuple[int]) -> int:
        return numbers[0]

    def read() -> None:
        """Hit by the long way, which no load belongs to: a tuple is no plain argument."""
        nonlocal calls
        calls += 1
        call((calls % 50,))

    for _ in range(50):
        read()
    for _ in range(3):
        for allocations in range(1, 60):
            with collected_after(allocations):
                Finaliser(read)
                read()
            cache.check()
    assert strategy.stats()["registered"] == 0
