"""When the next load begins: refresh_ahead, and error_backoff after a failure."""

import asyncio
import itertools
import random
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, race_safe_cached

from .fickle import HOW, Down, Origin, calling
from .virtual import Loader, VirtualClock, run_virtual, settle

# -- refresh_ahead


@HOW
def test_refresh_ahead_auto_begins_the_sooner_the_longer_a_load_takes(
    clock: VirtualClock, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XFetch: at `now - seconds * ln(chance) >= deadline`; ln(0.5) is about -0.693."""
    monkeypatch.setattr(random, "random", lambda: 0.5)

    async def main() -> None:
        for seconds in (1.0, 5.0):
            cache = AsyncSafeCache(clock=clock)
            load = Loader("value", seconds=seconds)
            call = calling(cache, load, how, ttl=10, refresh_ahead="auto")[0]
            await call()
            stored = clock.now
            while load.calls == 1:
                clock.advance(0.01)
                await call()
                await settle(2)
            assert clock.now - stored == pytest.approx(10 - 0.693 * seconds, abs=0.02)
            await asyncio.sleep(10)

    run_virtual(main(), clock)


def test_what_a_refresh_ahead_needs_to_know_is_in_the_weight_of_the_value(
    clock: VirtualClock,
) -> None:
    """It was taken beside the bound, by the first hit past the fraction."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.get_or_load("key", lambda: "value", ttl=10, refresh_ahead=0.5)
        before = cache.memory_bytes
        plain = AsyncSafeCache(clock=clock)
        await plain.get_or_load("key", lambda: "value", ttl=10)
        assert before > plain.memory_bytes

    run_virtual(main(), clock)


@pytest.mark.parametrize("key", [None, lambda x: x], ids=["fast lookup", "key="])
def test_a_touched_value_is_refreshed_after_the_fraction_of_its_new_ttl(
    clock: VirtualClock, key: Any
) -> None:
    """Where there is no fast lookup, it was refreshed by the fraction of its whole life."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader()

        @race_safe_cached(cache, ttl=100, refresh_ahead=0.8, key=key)
        async def f(x: int) -> Any:
            return await load()

        await f(1)
        clock.advance(70)
        assert await cache.touch(cache.key_for(f, 1), 10)
        begun = []
        for _ in range(19):  # up to 79.5
            begun.append((clock.now - 1000, load.calls))
            await f(1)
            await settle()
            clock.advance(0.5)
        assert [after for after, calls in begun if calls == 1][-1] == 78.0, begun

    run_virtual(main(), clock)


@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_a_refresh_that_takes_longer_than_the_ttl_is_not_stacked(
    clock: VirtualClock, chance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read once a second for two minutes: one load at a time, each lands."""
    monkeypatch.setattr(random, "random", lambda: chance)

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        running = most = loads = 0

        @race_safe_cached(cache, ttl=10, refresh_ahead=0.5, stale_while_revalidate=60)
        async def f(x: int) -> int:
            nonlocal running, most, loads
            loads += 1
            number = loads
            running += 1
            most = max(most, running)
            await asyncio.sleep(0 if number == 1 else 20)
            running -= 1
            return number

        values = []
        for _ in range(130):
            values.append(await f(1))
            await asyncio.sleep(1)
        assert most == 1
        assert values == sorted(values)
        # Each is stored 20 s after it began, and refreshed 5 s after it was stored.
        assert [values.count(number) for number in range(1, 7)] == [25, 25, 25, 25, 25, 5]
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.overlapping_loads) == (129, 1, 0)

    run_virtual(main(), clock)


def test_while_a_refresh_runs_hits_are_fast_and_look_again_after_a_second(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)

        @race_safe_cached(cache, ttl=100, refresh_ahead=0.5)
        async def f(x: int) -> Any:
            return await load()

        counters: Any = vars(f)["__async_safe_cache__"].counters

        async def slow_hits(reads: int) -> int:
            before = counters.other_hits
            for _ in range(reads):
                await f(1)
            slow: int = counters.other_hits - before
            return slow

        await f(1)
        assert await slow_hits(5) == 0
        clock.advance(50)
        load.seconds = 10
        assert await slow_hits(5) == 1, "the one that begins the refresh"
        await asyncio.sleep(0.9)
        assert await slow_hits(5) == 0
        await asyncio.sleep(0.1)
        assert await slow_hits(5) == 1, "it still runs: look again in a second"
        assert load.calls == 2
        await asyncio.sleep(9)
        assert await f(1) == "new"
        assert await slow_hits(5) == 0

    run_virtual(main(), clock)


@HOW
def test_a_refresh_ahead_that_hangs_is_not_for_ever(clock: VirtualClock, how: str) -> None:
    """Its load_timeout ends it; the value that is held is still fresh, and tried again."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        origin = Origin()
        options: dict[str, Any] = {"ttl": 100, "refresh_ahead": 0.5, "load_timeout": 5}
        call = calling(cache, origin, how, **options)[0]
        await call()
        clock.advance(50)
        origin.mode = "hung"
        assert await call() == "old"
        await asyncio.sleep(5)
        assert (origin.calls, origin.cancelled) == (2, 1)
        assert await call() == "old"
        assert origin.calls == 2, "error_backoff"
        await asyncio.sleep(1)
        origin.mode, origin.value = "instant", "new"
        assert await call() == "old"
        await settle()
        assert await call() == "new"
        assert cache.stats().load_timeouts == 1

    run_virtual(main(), clock)


@pytest.mark.parametrize("options", [{"ttl": None}, {"ttl": 10, "refresh_ahead": None}])
def test_a_value_that_is_fresh_for_ever_is_never_refreshed_ahead(
    clock: VirtualClock, options: dict[str, Any]
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, default_ttl=10, refresh_ahead=0.01)
        load = Loader()
        for how in ("get_or_load", "decorated"):
            call = calling(cache, load, how, **options)[0]
            before = load.calls
            for _ in range(9):
                await call()
                await settle(3)
                clock.advance(1)
            assert load.calls == before + 1

    run_virtual(main(), clock)


# -- error_backoff


@HOW
def test_who_waits_tries_again_at_once_unless_told_otherwise(clock: VirtualClock, how: str) -> None:
    """An origin that is back is noticed by the next caller."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", Down(), Down(), "new")
        call = calling(cache, load, how, ttl=10, stale_if_error=1000)[0]
        await call()
        clock.advance(10)
        assert [await call(), await call(), await call()] == ["old", "old", "new"]
        assert load.calls == 4

    run_virtual(main(), clock)


@HOW
@pytest.mark.parametrize("option", ["stale_while_revalidate", "stale_if_error", "refresh_ahead"])
def test_a_failing_origin_is_left_alone_longer_after_each_failure(
    clock: VirtualClock, how: str, option: str
) -> None:
    """Asked eight times a second: 1, 2, 4 ... 32 s between tries, a tenth less at the least."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", *[Down()] * 10, "new")
        options: dict[str, Any] = {"ttl": 10, option: 1000}
        if option == "refresh_ahead":
            options = {"ttl": 1000, option: 0.01}
        if option == "stale_if_error":
            options["error_backoff"] = 1
        call = calling(cache, load, how, **options)[0]
        await call()
        clock.advance(10)
        begun: list[float] = []
        while load.calls < 12:
            before = load.calls
            answer = await call()
            await settle(3)
            if load.calls > before:
                begun.append(clock.now)
            assert answer == "old" or load.calls == 12
            clock.advance(0.125)
        waits = [later - earlier for earlier, later in itertools.pairwise(begun)]
        seconds = [1, 2, 4, 8, 16, 32, 32, 32, 32, 32]
        for most, wait in zip(seconds, waits, strict=True):
            assert 0.9 * most <= wait < most + 0.125, waits
        assert await call() == "new"

    run_virtual(main(), clock)


def test_a_success_ends_the_row_of_failures(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("1", Down(), Down(), Down(), "2", Down(), Down(), "3")
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 1000, "error_backoff": 4}
        await cache.get_or_load("key", load, **options)
        # Tries after 4, 8 and 16 s; then a value for 10 s; then after 4 and 8 s.
        for seconds, calls in ((10, 2), (4, 3), (8, 4), (16, 5), (10, 6), (3.5, 6), (0.5, 7)):
            clock.advance(seconds)
            await cache.get_or_load("key", load, **options)
            assert load.calls == calls, (seconds, calls)

    run_virtual(main(), clock)


def test_without_a_value_or_a_backoff_each_call_tries(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(Down())
        for calls in (1, 2, 3):
            with pytest.raises(Down):
                await cache.get_or_load("key", load, ttl=10, stale_if_error=100)
            assert load.calls == calls
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100, "error_backoff": 0}
        await cache.get_or_load("other", lambda: "old", **options)
        clock.advance(10)
        for calls in (4, 5, 6):
            assert await cache.get_or_load("other", load, **options) == "old"
            assert load.calls == calls

    run_virtual(main(), clock)


def test_within_the_backoff_a_reader_that_wants_no_stale_value_tries(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100, "error_backoff": 60}
        for wanted in ({}, {"stale_if_error": 5}, {"stale_while_revalidate": 5}):
            load = Loader("old", Down(), "new")
            await cache.get_or_load("key", load, **options)
            clock.advance(15)
            assert await cache.get_or_load("key", load, **options) == "old"
            assert await cache.get_or_load("key", load, **options) == "old"
            answer = cache.get_or_load("key", load, ttl=10, error_backoff=60, **wanted)
            assert await answer == "new"
            await cache.delete("key")

    run_virtual(main(), clock)


def test_the_fraction_is_that_of_the_ttl_as_chance_has_shortened_it(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the windows begin at its end."""
    monkeypatch.setattr(random, "random", lambda: 0.5)

    async def main() -> None:
        for how in ("get_or_load", "decorated"):
            cache = AsyncSafeCache(clock=clock)
            load = Loader("old", "new")
            options = {"ttl": 100, "jitter": 0.4, "refresh_ahead": 0.5, "stale_if_error": 10}
            call, key = calling(cache, load, how, **options)
            await call()
            assert (await cache.lookup(key)).ttl_left == 80
            clock.advance(39)
            await call()
            await settle()
            assert load.calls == 1
            clock.advance(1)
            assert await call() == "old"
            await settle()
            assert load.calls == 2
            clock.advance(80)
            assert (await cache.lookup(key)).stale
            clock.advance(10)
            assert not (await cache.lookup(key)).stale

    run_virtual(main(), clock)


def test_what_was_set_took_no_time_and_is_not_refreshed_by_chance(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, default_ttl=10, refresh_ahead="auto")
        load = Loader(seconds=5)

        @race_safe_cached(cache)
        async def f(x: int) -> Any:
            return await load()

        for key in ("key", cache.key_for(f, 1)):
            await cache.set(key, "set")
        for _ in range(99):
            clock.advance(0.1)
            assert await cache.get_or_load("key", load) == await f(1) == "set"
            await settle(2)
        assert load.calls == 0

    run_virtual(main(), clock)


@HOW
def test_a_remembered_failure_is_not_refreshed_ahead(clock: VirtualClock, how: str) -> None:
    """It is an answer, and good for as long as it says."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(Down())
        options: dict[str, Any] = {"ttl": 10, "refresh_ahead": 0.5, "negative": {Down: 10}}
        call = calling(cache, load, how, **options)[0]
        for _ in range(10):
            with pytest.raises(Down):
                await call()
            await settle(3)
            clock.advance(1)
        assert load.calls == 1
        with pytest.raises(Down):
            await call()
        assert load.calls == 2

    run_virtual(main(), clock)
