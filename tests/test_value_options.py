"""What is stored and what is handed out: skip, copy, vary_on; and options that make no sense."""

import asyncio
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    LoadContext,
    MissReason,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, run_virtual, settle


def is_partial(value: Any) -> bool:
    return str(value).startswith("part")


# -- skip


@pytest.mark.parametrize("how", ["skip=", "ctx.skip", "decorated", "def"])
def test_what_is_skipped_is_returned_to_all_and_not_stored(clock: VirtualClock, how: str) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("part", "part", "whole", seconds=1)

        async def choosing(told: LoadContext) -> Any:
            value = await load()
            return told.skip(value) if is_partial(value) else value

        @race_safe_cached(cache, skip=is_partial)
        async def f(x: int) -> Any:
            return await load()

        @race_safe_cached(cache, skip=is_partial)
        def plain(x: int) -> Any:
            load.calls += 1
            return load.results[load.calls - 1]

        async def call() -> Any:
            if how == "def":
                return plain(1)
            if how == "decorated":
                return await f(1)
            if how == "skip=":
                return await cache.get_or_load("key", load, skip=is_partial)
            return await cache.get_or_load("key", choosing)

        callers = 1 if how == "def" else 3
        for calls, value in enumerate(("part", "part", "whole"), start=1):
            answers = await asyncio.gather(*(call() for _ in range(callers)))
            assert (answers, load.calls) == ([value] * callers, calls)
            assert len(cache) == (value == "whole")
        assert await call() == "whole"
        assert load.calls == 3
        stats = cache.stats()
        assert (stats.rejected, stats.loads, stats.load_errors) == (2, 3, 0)
        assert stats.misses_by_reason["REJECTED"] == 2

    run_virtual(main(), clock)


@pytest.mark.parametrize("swept", [False, True])
def test_what_was_skipped_is_the_reason_of_the_next_miss_whoever_swept(
    clock: VirtualClock, swept: bool
) -> None:
    """Over an expired value that was not freed yet the reason was EXPIRED, and nothing counted."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.set("key", "whole", ttl=1)
        clock.advance(2)
        if swept:
            await cache._sweep()
        assert await cache.get_or_load("key", lambda: "part", skip=is_partial) == "part"
        assert (await cache.lookup("key")).reason is MissReason.REJECTED
        assert cache.stats().rejected == 1

    run_virtual(main(), clock)


def test_what_is_held_stays_when_a_refresh_is_skipped(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("whole", "part")

        @race_safe_cached(cache, ttl=10, skip=is_partial, stale_while_revalidate=100)
        async def f(x: int) -> Any:
            return await load()

        assert await f(1) == "whole"
        assert await cache.refresh(f, 1) == "part"
        assert await f(1) == "whole", "it is fresh still"
        clock.advance(11)
        for calls, seconds in ((3, 0.5), (3, 0.7), (4, 0)):
            # One refresh that brings nothing, then none for a second.
            assert await f(1) == "whole"
            await settle()
            assert load.calls == calls
            clock.advance(seconds)
        assert cache.stats().stale_served == 3

    run_virtual(main(), clock)


def test_a_skipped_value_is_no_failure_that_an_older_one_stands_in_for(
    clock: VirtualClock,
) -> None:
    """The caller after one that had the newer value was given the older one, for a second."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("whole", OSError("down"), "part 1", "part 2")
        attempts: list[int] = []

        async def noting(told: LoadContext) -> Any:
            attempts.append(told.attempt)
            return await load()

        def call() -> Any:
            return cache.get_or_load(
                "key", noting, ttl=10, stale_if_error=100, skip=is_partial, error_backoff=1
            )

        answers = []
        for seconds in (11, 0.5, 1, 0.1, 0):
            answers.append(await call())
            clock.advance(seconds)
        assert answers == ["whole", "whole", "whole", "part 1", "part 2"]
        assert cache.stats().stale_served == 2, "in place of the failure, and until the next try"
        assert attempts == [1, 1, 2, 1], "a value in between ends the row of failures"

    run_virtual(main(), clock)


# -- copy


class NoCopy:
    """Cannot be copied."""

    def __init__(self) -> None:
        self.tries = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self.tries += 1
        raise RuntimeError("not to be copied")


@pytest.mark.parametrize("counted", [False, True], ids=["", "reads are counted"])
def test_a_hit_that_cannot_be_copied_is_one_hit(clock: VirtualClock, counted: bool) -> None:
    """Its caller gets the error; where reads are counted for each entry, it was counted twice."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        if counted:
            cache._functions.measure_popularity(10)
        value = NoCopy()

        @race_safe_cached(cache, copy="deep")
        async def f(x: int) -> NoCopy:
            return value

        for _ in range(3):
            with pytest.raises(RuntimeError, match="not to be copied"):
                await f(1)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.loads, stats.load_errors) == (2, 1, 1, 0)
        if counted:
            (entry,) = cache._engine.store.order.newest()
            assert entry.used == 2

    run_virtual(main(), clock)


def test_an_update_is_given_a_copy(clock: VirtualClock) -> None:
    """It was given the stored object, and what it did to it stayed when it failed."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, copy="deep")
        await cache.set("key", ["old"])

        def fails(value: list[str]) -> Any:
            value.append("half")
            raise KeyError

        with pytest.raises(KeyError):
            await cache.update("key", fails)
        assert await cache.get("key") == ["old"]
        assert await cache.update("key", lambda value: [*value, "new"]) == ["old", "new"]

    run_virtual(main(), clock)
