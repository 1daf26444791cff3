"""The background refresher: popular keys stay fresh, nothing else is loaded, within a budget."""

import asyncio
import gc
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    CacheClosedError,
    CacheWarmingStrategy,
    _refresher,
    race_safe_cached,
)
from async_safe_cache._backoff import CHANCE
from async_safe_cache._popularity import PopularCall
from async_safe_cache._refresher import QUEUE, SLICE, Refresher
from async_safe_cache._target import Target

from .test_fork import Child, in_child
from .test_lifecycle import run_program
from .test_warming import Origin
from .virtual import VirtualClock, run_virtual, settle


@pytest.fixture
def origin(clock: VirtualClock) -> Origin:
    return Origin(clock, seconds=0.5)


def refresher_of(cache: AsyncSafeCache, name: str = "refresher") -> dict[str, Any]:
    state: dict[str, Any] = cache.health()["background"][name]
    return state


def alerts(cache: AsyncSafeCache) -> list[str]:
    return [alert["name"] for alert in cache.health()["alerts"]]


async def reading(call: Callable[[], Awaitable[object]], seconds: float, step: float = 1.0) -> None:
    """Read again and again for so many seconds."""
    for _ in range(round(seconds / step)):
        await call()
        await asyncio.sleep(step)


class Wall:
    """A wall clock that goes as the virtual one does, from noon on."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.begin = clock()
        self.off = timedelta(0)

    def __call__(self) -> datetime:
        seconds = timedelta(seconds=self.clock() - self.begin)
        return datetime(2026, 3, 2, 12, tzinfo=UTC) + seconds + self.off


# -- popular keys


def test_what_is_read_stays_fresh_and_what_is_not_is_loaded_once_more(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=10)
        async def price(symbol: str) -> str:
            return await origin.load(symbol)

        warming = CacheWarmingStrategy(cache)
        await warming.start_background_refresh()
        await price("left")
        await price("left")
        await price("never read again")
        await reading(lambda: price("A"), 300)
        loads = Counter(origin.asked)
        assert cache.stats().misses == 3, "each missed once, the first time"
        assert 300 / 10 <= loads["A"] <= 300 / 6
        assert loads["left"] == 2, "it was read once more, so it was loaded once more"
        assert loads["never read again"] == 1
        state = refresher_of(cache)
        assert (state["refreshed"], state["failed"]) == (len(origin.asked) - 3 - origin.running, 0)
        asked = len(origin.asked)
        await asyncio.sleep(300)
        assert len(origin.asked) <= asked + 1, "nobody reads any more, so nobody loads"
        assert len(cache) == 0
        await cache.aclose()

    run_virtual(main(), clock)


def test_what_was_warmed_before_its_first_read_is_kept_fresh_like_what_was_not(
    clock: VirtualClock, origin: Origin
) -> None:
    """All reads of it were hits, so it was not known to be popular, and expired meanwhile."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=10)
        async def price(symbol: str) -> str:
            return await origin.load(symbol)

        warming = CacheWarmingStrategy(cache)
        warming.register(price, [("A",)])
        await warming.warm()
        await warming.start_background_refresh()
        await reading(lambda: price("A"), 100)
        await cache.refresh(price, "B")
        await reading(lambda: price("B"), 100)
        assert cache.stats().misses == 0
        await cache.aclose()

    run_virtual(main(), clock)


def test_methods_and_plain_functions_are_kept_fresh_too() -> None:
    async def main() -> None:
        cache = AsyncSafeCache()

        class Shop:
            @race_safe_cached(cache, ttl=0.2)
            async def price(self, symbol: str) -> str:
                return symbol

        @race_safe_cached(cache, ttl=0.2)
        def rule(name: str) -> str:
            threads.add(threading.get_ident())
            return name

        async def read() -> None:
            await shop.price("A")
            rule("R")

        threads: set[int] = set()
        shop = Shop()
        warming = CacheWarmingStrategy(cache, stagger=0)
        await warming.start_background_refresh(interval=0.02)
        await reading(read, 1.2, 0.01)
        assert refresher_of(cache)["refreshed"] >= 8
        assert len(threads) > 1
        assert cache.stats().misses <= 4, "2, but on a machine that stands still"
        await cache.aclose()
        assert not [each for each in threading.enumerate() if "load of" in each.name]

    asyncio.run(main())


def test_a_collected_instance_is_refreshed_no_more(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        class Shop:
            @race_safe_cached(cache, ttl=10)
            async def price(self, symbol: str) -> str:
                return await origin.load(symbol)

        shop = Shop()
        warming = CacheWarmingStrategy(cache)
        warming.register(shop.price, [("S",)], every=5)
        await warming.start_background_refresh()
        await shop.price("A")
        await shop.price("A")
        await asyncio.sleep(7)
        asked = len(origin.asked)
        assert "S" in origin.asked
        del shop
        gc.collect()
        await asyncio.sleep(60)
        assert len(origin.asked) == asked
        state = refresher_of(cache)
        assert (state["failed"], state["due"], state["lag_seconds"]) == (0, 0, 0)
        await cache.aclose()

    run_virtual(main(), clock)


def test_the_most_valuable_is_refreshed_first(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        seconds = {"often": 0.01, "slow": 0.4, "both": 0.1, "rare": 0.01}

        @race_safe_cached(cache, ttl=100)
        async def price(symbol: str) -> str:
            return await origin.load(symbol, seconds[symbol])

        warming = CacheWarmingStrategy(cache, concurrency=1, stagger=0)
        await asyncio.gather(*map(price, seconds))
        for symbol, reads in (("often", 40), ("slow", 3), ("both", 10), ("rare", 2)):
            for _ in range(reads):
                await price(symbol)
        warming.register(["later", "first"], lambda context: origin.load(context.key), every=90)
        warming.register(["first"], lambda context: origin.load(context.key), every=90, priority=1)
        origin.asked.clear()
        await warming.start_background_refresh(interval=95)
        await asyncio.sleep(99.9)
        assert origin.asked[:6] == ["first", "later", "slow", "both", "often", "rare"]
        assert cache.stats().misses == 4
        await warming.stop()

    run_virtual(main(), clock)


def test_of_more_than_the_queue_holds_the_most_valuable_are_taken(
    clock: VirtualClock, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_refresher, "QUEUE", 3)

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=100)
        async def price(symbol: int) -> str:
            return await origin.load(symbol, 0)

        warming = CacheWarmingStrategy(cache, concurrency=1, stagger=0)
        reads = {symbol: (symbol * 7) % 10 + 2 for symbol in range(10)}
        for symbol, times in reads.items():
            for _ in range(times):
                await price(symbol)
        origin.asked.clear()
        origin.seconds = 0
        await warming.start_background_refresh(interval=95)
        await asyncio.sleep(95.5)
        best = sorted(reads, key=lambda symbol: -reads[symbol])
        assert origin.asked == best[:3]
        state = refresher_of(cache)
        assert (state["due"], state["lag_seconds"]) == (10, pytest.approx(45, abs=0.1))
        await warming.stop()

    run_virtual(main(), clock)


def test_a_call_is_refreshed_once_at_a_time(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        at_once: Counter[str] = Counter()
        most: Counter[str] = Counter()

        @race_safe_cached(cache, ttl=10)
        async def price(symbol: str) -> str:
            at_once[symbol] += 1
            most[symbol] = max(most[symbol], at_once[symbol])
            await origin.load(symbol, 4)
            at_once[symbol] -= 1
            return symbol

        warming = CacheWarmingStrategy(cache)
        warming.register(price, [("A",), ("B",)], every=1)
        other = CacheWarmingStrategy(cache)
        other.register(price, [("A",)], every=1)
        await warming.start_background_refresh(interval=0.5)
        await other.start_background_refresh(interval=0.7)
        await reading(lambda: price("A"), 60)
        assert most == {"A": 1, "B": 1}
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_refresh_longer_than_its_interval_is_not_stacked(
    clock: VirtualClock, origin: Origin
) -> None:
    """The next time counts from the end of the load, whose value lands."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        warming.register(["slow"], lambda context: origin.load(context.key, 25), every=10)
        await warming.start_background_refresh()
        await asyncio.sleep(40)
        assert await cache.get("slow") == "value of slow"
        await asyncio.sleep(160)
        assert [later - earlier for earlier, later in pairwise(origin.begun)] == [
            pytest.approx(35, abs=1.01)
        ] * 5
        await cache.aclose()

    run_virtual(main(), clock)


def test_what_was_renewed_while_it_was_in_the_queue_is_not_loaded_again(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=30)
        async def price(symbol: str) -> str:
            return await origin.load(symbol, 3)

        warming = CacheWarmingStrategy(cache, concurrency=1, stagger=0)
        for _ in range(2):
            await asyncio.gather(*map(price, "ABC"))
        origin.asked.clear()
        await warming.start_background_refresh()
        while not origin.running:
            await asyncio.sleep(0.5)
        assert refresher_of(cache)["queued"] + refresher_of(cache)["working"] == 3
        for symbol in "ABC":
            if symbol not in origin.asked:
                await cache.set(cache.key_for(price, symbol), "newer", ttl=100)
        await asyncio.sleep(15)
        assert len(origin.asked) == 1
        assert refresher_of(cache)["refreshed"] == 1
        await cache.aclose()

    run_virtual(main(), clock)


# -- at times


def test_a_schedule_is_kept_whether_anybody_reads_or_not(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        load = lambda context: origin.load(context.key, 0)  # noqa: E731
        warming.register(["seconds"], load, every=30)
        warming.register(["delta"], load, every=timedelta(minutes=1))
        await warming.start_background_refresh()
        await asyncio.sleep(301)
        loads = Counter(origin.asked)
        assert loads == {"seconds": 10, "delta": 5}
        await cache.aclose()

    run_virtual(main(), clock)


def test_times_begin_when_the_refresher_does(clock: VirtualClock, origin: Origin) -> None:
    """Not when they were registered, or all of them would be due at once."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        warming.register(range(10), lambda context: origin.load(context.key, 0), every=30)
        await asyncio.sleep(100)
        await warming.warm()
        await warming.start_background_refresh()
        await asyncio.sleep(29)
        assert len(origin.asked) == 10
        await asyncio.sleep(3)
        assert len(origin.asked) == 20
        await cache.aclose()

    run_virtual(main(), clock)


def test_jitter_spreads_a_schedule_and_never_lengthens_it(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=100)
        times: dict[int, list[float]] = {key: [clock()] for key in range(50)}

        def load(context: Any) -> int:
            times[context.key].append(clock())
            return 1

        warming.register(range(50), load, every=100, jitter=0.3)
        await warming.start_background_refresh(interval=0.25)
        await asyncio.sleep(1_000)
        gaps = [b - a for each in times.values() for a, b in pairwise(each)]
        assert 70 <= min(gaps) < 74
        assert 96 < max(gaps) <= 100.26
        await cache.aclose()

    run_virtual(main(), clock)


def test_times_of_day_are_those_of_the_wall_clock(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        wall = Wall(clock)
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, wall_clock=wall)
        load = lambda context: origin.load((context.key, f"{wall():%d %H:%M}"), 0)  # noqa: E731
        warming.register(["opening"], load, at="12:30")
        warming.register(["both"], load, at=["13:00", "12:15:30"])
        await warming.start_background_refresh(interval=10)
        await asyncio.sleep(7_200)
        assert origin.asked == [("both", "02 12:15"), ("opening", "02 12:30"), ("both", "02 13:00")]
        origin.asked.clear()
        wall.off = timedelta(hours=20)  # the clock is put forward by that
        await asyncio.sleep(30)
        assert origin.asked == [], "14:00 became 10:00: no time of day was passed but yesterday's"
        await asyncio.sleep(3 * 3_600)
        assert origin.asked == [("both", "03 12:15"), ("opening", "03 12:30"), ("both", "03 13:00")]
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_time_of_day_that_failed_once_is_not_loaded_at_every_look(
    clock: VirtualClock, origin: Origin
) -> None:
    """The time of its next try stayed for ever, and was always past."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, wall_clock=Wall(clock))
        warming.register(["key"], lambda context: origin.load(context.key, 0), at="12:01")
        origin.errors["key"] = OSError("down")
        await warming.start_background_refresh()
        await asyncio.sleep(60.5)
        origin.errors.clear()
        await asyncio.sleep(3_600)
        assert origin.asked == ["key", "key"], "once in vain, once again soon, then tomorrow"
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_wall_clock_that_fails_is_counted_and_named(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        broken = False

        def wall() -> datetime:
            if broken:
                raise OSError("no time")
            return Wall(clock)()

        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, wall_clock=wall)
        warming.register(["key"], lambda context: origin.load(context.key, 0), at="12:01")
        warming.register(["often"], lambda context: origin.load(context.key, 0), every=20)
        await warming.start_background_refresh()
        broken = True
        await asyncio.sleep(10.5)
        state = refresher_of(cache)
        assert state["errors"] == state["failing"] >= 4
        assert state["last_error"] == "OSError"
        assert alerts(cache) == ["refresher"]
        broken = False
        await asyncio.sleep(12)
        assert origin.asked == ["often"], "a failure does not put the schedule off"
        assert refresher_of(cache)["failing"] == 0
        assert alerts(cache) == []
        await cache.aclose()

    run_virtual(main(), clock)


# -- failures and the budget


def test_a_key_that_fails_is_left_alone_for_longer_each_time(
    clock: VirtualClock, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    """And its readers have the old value, until it expires."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=1_000)
        async def price(symbol: str) -> str:
            return await origin.load(symbol, 0)

        warming = CacheWarmingStrategy(cache, stagger=0)
        await price("A")
        await price("A")
        origin.errors["A"] = OSError("down")
        origin.begun.clear()
        await warming.start_background_refresh()
        while cache.stats().misses < 2:
            try:
                await price("A")
            except OSError:
                break
            await asyncio.sleep(0.5)
        gaps = [later - earlier for earlier, later in pairwise(origin.begun[:-1])]
        waits = [2.0**place for place in range(6)]  # and the look comes up to a second later
        assert len(gaps) >= 6
        for gap, wait in zip(gaps, waits, strict=False):
            assert wait * (1 - CHANCE) <= gap <= wait + 1
        assert max(gaps) <= 33
        state = refresher_of(cache)
        assert state["failed"] == len(origin.begun) - 1
        assert (state["backing_off"], state["errors"]) == (1, 0)
        assert cache.stats().load_errors == len(origin.begun)
        origin.errors.clear()
        await price("A")
        assert cache.stats().misses == 3
        await cache.aclose()

    with caplog.at_level(logging.WARNING, "async_safe_cache"):
        run_virtual(main(), clock)
    assert len(caplog.messages) == 1, "a streak is told once"
    assert caplog.messages[0].endswith("failed with OSError; it is tried again later")
    assert "'A'" not in caplog.text


def test_a_remembered_failure_is_not_refreshed(clock: VirtualClock, origin: Origin) -> None:
    """It is an answer for its time, however often it is read."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=10, negative={KeyError: 10})
        async def price(symbol: str) -> str:
            return await origin.load(symbol, 0)

        async def read() -> None:
            with pytest.raises(KeyError):
                await price("A")

        origin.errors["A"] = KeyError("A")
        warming = CacheWarmingStrategy(cache)
        await warming.start_background_refresh()
        await reading(read, 50)
        assert len(origin.asked) == 5
        assert refresher_of(cache)["failed"] == 0
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_schedule_that_fails_is_tried_again_before_its_next_time(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        warming.register(["key"], lambda context: origin.load(context.key, 0), every=600)
        origin.errors["key"] = OSError("down")
        await warming.start_background_refresh(interval=0.1)
        await asyncio.sleep(600 + 1 + 2 + 4 + 3)
        assert len(origin.asked) == 4
        origin.errors.clear()
        await asyncio.sleep(6)
        assert len(origin.asked) == 5
        assert refresher_of(cache)["backing_off"] == 0
        await asyncio.sleep(590)
        assert len(origin.asked) == 5
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_loader_that_uses_a_closed_cache_is_a_failure_like_any_other(
    clock: VirtualClock, origin: Origin
) -> None:
    """It looked like the end of the cache itself, and was tried again at every look."""

    async def main() -> None:
        cache, other = AsyncSafeCache(clock=clock), AsyncSafeCache("other", clock=clock)

        async def load(context: Any) -> object:
            origin.asked.append(context.key)
            return await other.get(context.key)

        warming = CacheWarmingStrategy(cache)
        warming.register(["key"], load, every=60)
        await other.aclose()
        await warming.start_background_refresh()
        await asyncio.sleep(119)
        state = refresher_of(cache)
        assert state["failed"] == len(origin.asked) == 6
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_hung_load_is_ended_and_does_not_hold_up_the_others(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=20)
        async def price(symbol: str) -> str:
            first = symbol not in origin.asked
            return await origin.load(symbol, 1e6 if symbol == "hangs" and not first else 0)

        warming = CacheWarmingStrategy(cache, concurrency=2, load_timeout=5, stagger=0)
        await warming.start_background_refresh()
        for symbol in ("hangs", "A", "hangs"):
            await price(symbol)
        await reading(lambda: price("A"), 100)
        assert cache.stats().misses == 2
        state = refresher_of(cache)
        assert state["failed"] >= 1
        assert (state["working"], cache.health()["cache_stats"]["in_flight"]) == (0, 0)
        await cache.aclose()

    run_virtual(main(), clock)


def test_errors_halve_the_budget_and_health_shows_it(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=8, rate=100)
        warming.register(range(40), lambda context: origin.load(context.key, 1), every=10)
        await warming.start_background_refresh()
        budget = refresher_of(cache)["budget"]
        assert budget == {
            "concurrency": 8, "limit": 8.0, "running": 0, "waiting": 0,
            "rate": 100.0, "errors": 0, "slowed": 0,
        }  # fmt: skip
        origin.errors = dict.fromkeys(range(40), OSError("down"))
        await asyncio.sleep(20)
        down = refresher_of(cache)["budget"]
        assert (down["limit"], down["errors"]) == (1, refresher_of(cache)["failed"])
        assert refresher_of(cache)["backing_off"] > 8
        origin.errors.clear()
        await asyncio.sleep(120)
        up = refresher_of(cache)
        assert up["budget"]["limit"] == 8
        assert (up["backing_off"], up["budget"]["errors"]) == (0, down["errors"])
        assert json.loads(json.dumps(cache.health())) == cache.health()
        await cache.aclose()

    run_virtual(main(), clock)


def test_slow_loads_lower_the_budget_too(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=8)
        warming.register(range(40), lambda context: origin.load(context.key), every=30)
        await warming.start_background_refresh()
        await asyncio.sleep(36)
        assert refresher_of(cache)["budget"]["limit"] == 8
        origin.seconds = 2.5
        await asyncio.sleep(30)
        state = refresher_of(cache)["budget"]
        assert state["slowed"] > 0
        assert state["limit"] < 8
        await cache.aclose()

    run_virtual(main(), clock)


def test_the_refresher_and_warming_share_one_budget(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=3)
        warming.register(range(30), lambda context: origin.load(context.key, 1), every=5)
        await warming.start_background_refresh()
        await asyncio.sleep(6)
        await cache.clear()
        await warming.warm()
        assert origin.most == 3
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_hundred_thousand_due_keys_stay_within_the_budget_and_let_others_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No step looks at more than its slice, whatever is due; the stall is measured elsewhere."""
    many = 100_000
    steps: Counter[int] = Counter()
    made: Counter[int] = Counter()
    ticks = 0
    look, make = Refresher._look_at, Target.of_popular.__func__  # type: ignore[attr-defined]

    def looked(self: Refresher, call: PopularCall, now: float) -> Any:
        steps[ticks] += 1
        return look(self, call, now)

    def of_popular(cls: Any, call: PopularCall, jitter: float = 0.0) -> Any:
        made[ticks] += 1
        return make(cls, call, jitter)

    monkeypatch.setattr(Refresher, "_look_at", looked)
    monkeypatch.setattr(Target, "of_popular", classmethod(of_popular))

    async def main() -> None:
        nonlocal ticks
        clock = VirtualClock()  # stands still but when told
        cache = AsyncSafeCache(clock=clock, max_memory_bytes=None)
        running = most = 0

        @race_safe_cached(cache, ttl=100)
        async def price(symbol: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            return symbol

        await cache.set_many({cache.key_for(price, symbol): 1 for symbol in range(many)}, ttl=100)
        warming = CacheWarmingStrategy(
            cache, popular=many, concurrency=4, rate=1_000_000, stagger=0
        )
        for entry in cache._engine.store.order.newest():
            entry.used += 1  # a hit
        clock.advance(92)
        loads = cache.stats().loads
        await warming.start_background_refresh(interval=0.01)
        while cache.stats().loads < loads + 2 * QUEUE:
            ticks += 1
            clock.advance(0.0001)
            await asyncio.sleep(0)
        assert most == 4
        assert max(steps.values()) == SLICE
        assert max(made.values()) <= SLICE
        assert sum(made.values()) <= 4 * QUEUE, "only of what is taken a target is made"
        assert refresher_of(cache)["due"] > 90_000
        assert refresher_of(cache)["queued"] <= QUEUE
        await cache.aclose()

    asyncio.run(main())


def test_more_turns_than_the_queue_is_long_are_no_more_workers(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=10**12)
        await warming.start_background_refresh()
        await asyncio.sleep(1.5)
        assert len(asyncio.all_tasks()) <= QUEUE + 3
        await cache.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main(), clock)


# -- its life


def test_it_stops_in_silence_and_starts_again(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        warming.register(["key"], lambda context: origin.load(context.key, 5), every=10)
        await warming.stop()
        await warming.start_background_refresh()
        assert repr(warming) == "<CacheWarmingStrategy of 'default', 1 calls, refreshing>"
        await asyncio.sleep(12)
        assert origin.running == 1
        await warming.stop()
        await warming.stop()
        await settle()
        assert origin.running == 0, "nobody else waits for the load"
        assert "refresher" not in cache.health()["background"]
        assert repr(warming) == "<CacheWarmingStrategy of 'default', 1 calls, idle>"
        assert [task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}] == [
            "async_safe_cache sweeper"
        ]
        await asyncio.sleep(60)
        assert len(origin.asked) == 1
        await warming.start_background_refresh()
        await asyncio.sleep(17)
        assert await cache.get("key") == "value of key"
        await cache.aclose()
        await warming.stop()

    run_virtual(main(), clock)


def test_a_load_that_somebody_waits_for_goes_on_when_it_stops(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=10)
        async def price(symbol: str) -> str:
            return await origin.load(symbol, 5)

        warming = CacheWarmingStrategy(cache)
        warming.register(price, [("A",)], every=10)
        await warming.start_background_refresh()
        await asyncio.sleep(12)
        caller = asyncio.create_task(price("A"))
        await asyncio.sleep(1)
        await warming.stop()
        assert await caller == "value of A"
        assert len(origin.asked) == 1
        await cache.aclose()

    run_virtual(main(), clock)


def test_who_starts_it_twice_has_one(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        warming.register(["key"], lambda context: origin.load(context.key, 0), every=10)
        await warming.start_background_refresh()
        await asyncio.sleep(1.5)
        await asyncio.gather(*(warming.start_background_refresh(interval=2) for _ in range(3)))
        background = cache.health()["background"]
        assert list(background) == ["sweeper", "refresher"]
        assert background["refresher"]["interval"] == 2
        tasks = [task.get_name() for task in asyncio.all_tasks()]
        assert tasks.count("async_safe_cache refresher") == 1
        await asyncio.sleep(100)
        assert 8 <= len(origin.asked) <= 10
        await cache.aclose()

    run_virtual(main(), clock)


def test_who_starts_it_while_somebody_closes_the_cache_does_not_open_it_again(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        await warming.start_background_refresh()
        await asyncio.sleep(1.5)
        starting = asyncio.create_task(warming.start_background_refresh())
        await asyncio.gather(cache.aclose(), asyncio.wait([starting]))
        with pytest.raises(CacheClosedError):
            starting.result()
        assert cache.closed
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main(), clock)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"interval": 0}, ValueError, "interval=0 must be finite seconds above 0"),
        ({"interval": None}, TypeError, "interval must be finite seconds"),
        ({"least": 1.5}, ValueError, "least=1.5 must be between 0 and 1: the probability from"),
        ({"fan_out": 0}, ValueError, "fan_out=0 must be an int from 1: calls after one read"),
        ({"fan_out": None}, ValueError, "fan_out=None must be an int from 1"),
        ({"fan_out": 1.5}, TypeError, "fan_out must be an int"),
    ],
)
async def test_its_options_are_checked(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    cache = AsyncSafeCache()
    warming = CacheWarmingStrategy(cache)
    with pytest.raises(error, match=message):
        await warming.start_background_refresh(**options)
    with pytest.raises(ValueError, match="timeout=-1"):
        await warming.stop(timeout=-1)
    assert list(cache.health()["background"]) == ["sweeper"]


def test_it_ends_with_the_cache_and_leaves_no_task(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=10)
        async def price(symbol: int) -> str:
            return await origin.load(symbol, 5)

        warming = CacheWarmingStrategy(cache, concurrency=4, rate=1)
        warming.register(price, [(symbol,) for symbol in range(100)], every=10)
        await warming.start_background_refresh()
        await asyncio.sleep(14)
        assert origin.running == 4
        caller = asyncio.create_task(price(0))
        await settle()
        begin = clock()
        await cache.aclose(timeout=1)
        assert clock() == begin
        with pytest.raises(CacheClosedError):
            await caller
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert origin.running == 0
        assert (warming._pace.running, warming._pace.waiting) == (0, 0)
        assert cache.health()["status"] == "closed"
        assert alerts(cache) == []
        asked = len(origin.asked)
        await cache.start()
        await price(0)
        await asyncio.sleep(100)
        assert len(origin.asked) == asked + 1, "what was stopped with the cache is not started"
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_program_that_closes_while_it_refreshes_leaves_nothing() -> None:
    done = run_program("""
import asyncio, gc, threading
from async_safe_cache import AsyncSafeCache, CacheWarmingStrategy, race_safe_cached
cache = AsyncSafeCache()

@race_safe_cached(cache, ttl=0.05)
async def f(x):
    await asyncio.sleep(0.001 if x % 2 else 60)
    if x % 3 == 0:
        raise ValueError(x)
    return x

@race_safe_cached(cache, ttl=0.05)
def g(x):
    return x

async def main(close):
    await cache.start()
    warming = CacheWarmingStrategy(cache, concurrency=4, load_timeout=0.02)
    warming.register(f, [(x,) for x in range(50)], every=0.01)
    warming.register(g, [(x,) for x in range(10)], every=0.01)
    await warming.start_background_refresh(interval=0.005, predictive=True)
    x = 0
    while x < 40 or not cache.health()["background"]["refresher"]["refreshed"]:
        await f(1 + 4 * (x % 3 == 2)) if x % 3 != 1 else g(1)
        await asyncio.sleep(0.005)
        x += 1
    if close:
        await cache.aclose(timeout=1)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not [each for each in threading.enumerate() if "load of" in each.name]

asyncio.run(main(True))
asyncio.run(main(False))
gc.collect()
print("done")
""")
    assert "is tried again later" in done.stderr
    # On a busy machine a turn of the loop takes long, which asyncio tells of.
    known = "is tried again later", "Executing <"
    other = [line for line in done.stderr.splitlines() if not any(each in line for each in known)]
    assert (done.returncode, done.stdout, other) == (0, "done\n", [])


def test_a_job_that_raises_is_counted_and_runs_again(
    clock: VirtualClock, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=2)
        warming.register(["key"], lambda context: origin.load(context.key, 5), every=10)
        await warming.start_background_refresh()
        await asyncio.sleep(12)
        collect = Refresher._collect

        async def broken(self: Refresher, now: float) -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(Refresher, "_collect", broken)
        await asyncio.sleep(3)
        state = refresher_of(cache)
        assert state["errors"] == state["failing"] >= 2
        assert (state["running"], state["last_error"]) == (True, "RuntimeError")
        (alert,) = cache.health()["alerts"]
        assert (alert["name"], alert["unit"]) == ("refresher", "failed runs")
        assert "what was kept warm is loaded when it is asked for" in alert["advice"]
        monkeypatch.setattr(Refresher, "_collect", collect)
        await asyncio.sleep(12)
        assert await cache.get("key") == "value of key"
        assert alerts(cache) == []
        assert refresher_of(cache)["errors"] == state["errors"]
        await cache.aclose()

    run_virtual(main(), clock)


def test_one_that_is_cancelled_from_outside_is_named_and_starts_again(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        warming.register(["key"], lambda context: origin.load(context.key, 0), every=10)
        await warming.start_background_refresh()
        await asyncio.sleep(3)
        for task in asyncio.all_tasks():
            if task.get_name() == "async_safe_cache refresher":
                task.cancel()
        await settle()
        assert alerts(cache) == ["refresher"]
        await cache.get_health_info()
        assert alerts(cache) == []
        await asyncio.sleep(20)
        assert len(origin.asked) == 2
        await cache.aclose()

    run_virtual(main(), clock)


def test_one_whose_loop_ended_goes_on_in_the_next(clock: VirtualClock, origin: Origin) -> None:
    cache = AsyncSafeCache(clock=clock)
    warming = CacheWarmingStrategy(cache, concurrency=1)

    async def first() -> None:
        warming.register(["key"], lambda context: origin.load(context.key, 3), every=10)
        await warming.start_background_refresh()
        await asyncio.sleep(12)  # in the middle of a load

    async def second(revive: Callable[[], Awaitable[object]]) -> None:
        assert alerts(cache) == ["sweeper", "refresher"]
        await revive()
        assert alerts(cache) == []
        asked = len(origin.asked)
        await asyncio.sleep(12)
        assert asked < len(origin.asked) <= asked + 2
        assert refresher_of(cache)["budget"]["running"] <= 1

    run_virtual(first(), clock)
    run_virtual(second(lambda: cache.get_or_load("other", lambda: 1)), clock)
    run_virtual(second(cache.get_health_info), clock)
    run_virtual(cache.aclose(), clock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_refreshes_by_itself_and_not_with_the_parents_task() -> None:
    cache = AsyncSafeCache()
    asked: list[int] = []

    @race_safe_cached(cache, ttl=1)
    async def price(symbol: int) -> int:
        asked.append(os.getpid())
        return symbol

    warming = CacheWarmingStrategy(cache, concurrency=1)
    warming.register(price, [(1,)], every=0.02)

    async def parent() -> Any:
        await warming.start_background_refresh(interval=0.01, predictive=True)
        await asyncio.sleep(0.1)
        child = Child(in_the_child)
        await asyncio.sleep(0.2)
        return await asyncio.to_thread(child.result)

    def in_the_child() -> list[Any]:
        # The running loop is the parent's; who goes on in a child makes one of his own.
        asyncio.events._set_running_loop(None)
        found: list[Any] = []

        async def child() -> None:
            begin = len(asked)
            state = refresher_of(cache)
            found.append(state["running"])
            await asyncio.sleep(0.05)
            found.append(len(asked) - begin)
            await price(2)
            await asyncio.sleep(0.2)
            state = refresher_of(cache)
            found.append(state["running"] and state["failing"] == 0)
            found.append(len(asked) - begin > 1)
            await asyncio.wait_for(cache.aclose(), 2)

        asyncio.run(child())
        return found

    async def main() -> None:
        assert await parent() == [False, 0, True, True]
        assert set(asked) == {os.getpid()}
        before = len(asked)
        await asyncio.sleep(0.1)
        assert len(asked) > before, "the parent's goes on"
        await cache.aclose()

    asyncio.run(main())


# -- a refresh, and what happens meanwhile


def change_delete(cache: AsyncSafeCache, price: Any) -> Awaitable[object]:
    return cache.delete(cache.key_for(price, "A"))


def change_set(cache: AsyncSafeCache, price: Any) -> Awaitable[object]:
    return cache.set(cache.key_for(price, "A"), "newer")


def change_tags(cache: AsyncSafeCache, price: Any) -> Awaitable[object]:
    return cache.invalidate_tags("prices")


async def change_transaction(cache: AsyncSafeCache, price: Any) -> None:
    async with cache.transaction() as tx:
        tx.set(cache.key_for(price, "A"), "newer")


def change_clear(cache: AsyncSafeCache, price: Any) -> Awaitable[object]:
    return cache.clear()


async def change_cache_clear(cache: AsyncSafeCache, price: Any) -> None:
    price.cache_clear()


def change_cache_close(cache: AsyncSafeCache, price: Any) -> Awaitable[object]:
    return price.cache_close()


def change_aclose(cache: AsyncSafeCache, price: Any) -> Awaitable[object]:
    return cache.aclose()


def change_source(cache: AsyncSafeCache, price: Any) -> Awaitable[object]:
    return cache.set("source", 2)


@pytest.mark.parametrize(
    "change",
    [
        change_delete,
        change_set,
        change_tags,
        change_transaction,
        change_clear,
        change_cache_clear,
        change_cache_close,
        change_aclose,
        change_source,
    ],
    ids=lambda change: change.__name__.removeprefix("change_"),
)
@pytest.mark.parametrize("how", ["popular", "every", "warm"])
def test_what_is_loaded_when_something_changes_is_not_stored(
    clock: VirtualClock, origin: Origin, change: Any, how: str
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=60, tags="prices", depends_on="source")
        async def price(symbol: str) -> str:
            loads.append(clock())
            return await origin.load(symbol, 5 if len(loads) > (how != "warm") else 0)

        loads: list[float] = []
        warming = CacheWarmingStrategy(cache, stagger=0)
        if how != "warm":
            await price("A")
            await price("A")
            if how == "every":
                warming.register(price, [("A",)], every=50)
            await warming.start_background_refresh()
        else:
            warming.register(price, [("A",)])
            running = asyncio.create_task(warming.warm())
        while not origin.running:
            await asyncio.sleep(0.5)
        await asyncio.sleep(2)
        await change(cache, price)
        at_once = cache._engine.store.count
        await asyncio.sleep(4)
        held = [entry.value for entry in cache._engine.store.order.newest()]
        assert "value of A" not in held or len(loads) > 2
        assert len(held) <= at_once
        if change in (change_set, change_transaction):
            assert await price("A") == "newer"
        if how == "warm":
            report = await running
            assert report.loaded == ()
        elif change is not change_aclose:
            state = refresher_of(cache)
            assert state["refreshed"] == 0
            assert state["failing"] == state["failed"] == 0
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_deleted_key_is_not_brought_back_by_its_popularity(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=10)
        async def price(symbol: str) -> str:
            return await origin.load(symbol, 0)

        warming = CacheWarmingStrategy(cache)
        await warming.start_background_refresh()
        await reading(lambda: price("A"), 5)
        await cache.invalidate(price, "A")
        await asyncio.sleep(30)
        assert len(origin.asked) == 1
        await cache.aclose()

    run_virtual(main(), clock)


# -- several of them, and other loops


def test_two_strategies_of_one_cache_have_budgets_and_health_of_their_own(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = lambda context: origin.load(context.key, 1)  # noqa: E731
        first = CacheWarmingStrategy(cache, concurrency=1)
        second = CacheWarmingStrategy(cache, concurrency=2)
        first.register(range(10), load, every=10)
        second.register(range(10, 20), load, every=10)
        await first.start_background_refresh()
        await second.start_background_refresh(interval=2)
        await asyncio.sleep(60)
        assert origin.most == 3
        assert set(origin.asked) == set(range(20))
        background = cache.health()["background"]
        assert list(background) == ["sweeper", "refresher", "refresher 2"]
        assert [background[name]["interval"] for name in background] == [1, 1, 2]
        await first.stop()
        assert list(cache.health()["background"]) == ["sweeper", "refresher 2"]
        origin.asked.clear()
        await asyncio.sleep(30)
        assert min(origin.asked) == 10
        third = CacheWarmingStrategy(cache)
        await third.start_background_refresh()
        assert list(cache.health()["background"]) == ["sweeper", "refresher 2", "refresher"]
        await cache.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main(), clock)


@pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")
def test_it_runs_in_the_loop_of_uvloop_too() -> None:
    import uvloop

    async def main() -> None:
        cache = AsyncSafeCache()
        loads: Counter[str] = Counter()

        @race_safe_cached(cache, ttl=0.2)
        async def price(symbol: str) -> str:
            loads[symbol] += 1
            return symbol

        warming = CacheWarmingStrategy(cache, stagger=0)
        warming.register(["key"], lambda: loads.update(["key"]), every=0.05)
        await warming.start_background_refresh(interval=0.02)
        await price("left")
        await reading(lambda: price("A"), 1, 0.01)
        assert loads["A"] >= 4
        assert loads["left"] == 1
        assert loads["key"] >= 5
        await cache.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    uvloop.run(main())


# -- predictions


async def walk(call: Callable[[str], Awaitable[object]], path: str) -> None:
    """One visitor, in a context of his own."""
    for page in path:
        await call(page)
        await asyncio.sleep(1)


def test_what_is_likely_to_be_read_next_is_loaded_before_it_is(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=30)
        async def page(name: str) -> str:
            return await origin.load(name, 0.25)

        async def visit(path: str) -> tuple[int, int, int]:
            before = cache.stats()
            await asyncio.create_task(walk(page, path))
            change = cache.stats() - before
            await asyncio.sleep(60)  # everything expires
            return change.hits, change.misses, change.loads

        warming = CacheWarmingStrategy(cache, stagger=0)
        await warming.start_background_refresh(predictive=True)
        for _ in range(5):
            await visit("abc")
        assert await visit("abc") == (2, 1, 3), "only a was not foreseen"
        for _ in range(20):  # the workload changes, and the prediction with it
            await visit("acd")
        assert await visit("acd") == (2, 1, 3), "and b is foreseen no more"
        scores = refresher_of(cache)["prediction"]
        assert set(scores) == {
            "predictions", "useful", "wasted", "misses", "precision", "recall", "states",
        }  # fmt: skip
        assert 0 < scores["useful"] <= scores["predictions"]
        assert 0.5 < scores["precision"] <= 1
        assert 0.4 < scores["recall"] < 1
        assert scores["states"] == 3
        assert json.loads(json.dumps(cache.health())) == cache.health()
        await cache.aclose()

    run_virtual(main(), clock)


def test_nothing_is_learned_from_the_mixture_of_several_visitors(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=30)
        async def page(name: str) -> str:
            return await origin.load(name, 0)

        warming = CacheWarmingStrategy(cache)
        await warming.start_background_refresh(predictive=True)
        predictor = warming._predictor
        assert predictor is not None
        for _ in range(20):
            visitors = [asyncio.create_task(walk(page, path)) for path in ("ab", "cd", "ef")]
            await asyncio.gather(*visitors)
        for first, then in ("ab", "cd", "ef"):
            likely = predictor.model.likely(cache._place(cache.key_for(page, first))[:2])
            assert [place[1] for place, _ in likely] == [then]
        await cache.aclose()

    run_virtual(main(), clock)


@pytest.mark.parametrize("policy", ["lru", "s3fifo"])
def test_to_predict_no_more_restores_the_wrappers_and_all_counts_stay_exact(
    clock: VirtualClock, origin: Origin, policy: Any
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, policy=policy)

        @race_safe_cached(cache, ttl=60)
        async def page(name: str) -> str:
            return name

        @race_safe_cached(cache)
        def rule(name: str) -> str:
            return name

        plain = page.cache_source, rule.cache_source  # type: ignore[attr-defined]
        warming = CacheWarmingStrategy(cache)
        counting = page.cache_source, rule.cache_source  # type: ignore[attr-defined]
        assert counting != plain
        calls = 0

        async def read() -> None:
            nonlocal calls
            for _ in range(5):
                for name in "abc":
                    assert (await page(name), rule(name)) == (name, name)
                    calls += 2

        await read()
        for _ in range(3):
            await warming.start_background_refresh(predictive=True)
            seeing = page.cache_source, rule.cache_source  # type: ignore[attr-defined]
            assert seeing not in (plain, counting)

            @race_safe_cached(cache)
            def newer(name: str) -> str:
                return name

            assert "_asc_seen" in newer.cache_source  # type: ignore[attr-defined]
            await read()
            await warming.stop()
            now = page.cache_source, rule.cache_source  # type: ignore[attr-defined]
            assert now == counting
            assert "_asc_seen" not in newer.cache_source  # type: ignore[attr-defined]
            await read()
        popularity = cache._engine.store.popularity
        assert popularity is not None
        assert popularity.observer is None
        stats = cache.stats()
        assert (stats.misses, stats.hits) == (6, calls - 6)
        reads = [popularity.worth(call.place, clock()) for call in popularity]
        assert reads == [calls / 6] * 6
        await cache.aclose()

    run_virtual(main(), clock)


def test_one_strategy_that_stops_predicting_leaves_the_other_one_its_predictions(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=60)
        async def page(name: str) -> str:
            return name

        first, second = CacheWarmingStrategy(cache), CacheWarmingStrategy(cache)
        await first.start_background_refresh(predictive=True)
        await second.start_background_refresh(predictive=True)
        await first.stop()
        for _ in range(3):
            await walk(page, "ab")
        assert refresher_of(cache, "refresher 2")["prediction"]["states"] == 2
        await second.stop()
        assert "_asc_seen" not in page.cache_source  # type: ignore[attr-defined]
        await cache.aclose()

    run_virtual(main(), clock)


def test_a_finaliser_that_reads_while_a_read_is_learned_from_does_not_wait(
    clock: VirtualClock, origin: Origin
) -> None:
    """The collector may run it anywhere: the lock of the predictions was waited for for ever."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=60)
        def page(name: str) -> str:
            return name

        warming = CacheWarmingStrategy(cache)
        await warming.start_background_refresh(predictive=True)
        predictor = warming._predictor
        assert predictor is not None
        page("a")
        with predictor._lock:  # as in the middle of a read
            page("a")
            page("b")
            health = cache.health()
        assert health["background"]["refresher"]["prediction"]["states"] == 0
        page("c")
        assert refresher_of(cache)["prediction"]["states"] == 1
        assert cache.stats().hits == 1
        await cache.aclose()

    run_virtual(main(), clock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_while_a_read_is_learned_from_goes_on(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=60)
        def page(name: str) -> str:
            return name

        warming = CacheWarmingStrategy(cache)
        await warming.start_background_refresh(predictive=True)
        predictor = warming._predictor
        assert predictor is not None
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with predictor._lock:
                held.set()
                done.wait(0.2)

        def child() -> list[Any]:
            page("a")
            page("b")
            state = refresher_of(cache)
            return [state["prediction"]["states"], cache.stats().misses]

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            assert in_child(child) == [1, 2]
        finally:
            done.set()
            thread.join()
        await cache.aclose()

    run_virtual(main(), clock)
