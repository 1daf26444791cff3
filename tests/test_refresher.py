"""The background refresher: popular keys stay fresh, nothing else is loaded, within a budget."""

import asyncio
import gc
import json
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    CacheWarmingStrategy,
    _refresher,
    race_safe_cached,
)
from async_safe_cache._backoff import CHANCE
from async_safe_cache._popularity import PopularCall
from async_safe_cache._refresher import QUEUE, SLICE, Refresher
from async_safe_cache._target import Target

from .test_warming import Origin
from .virtual import VirtualClock, run_virtual


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
        assert (state["refreshed"], state["failed"]) == (len(origin.asked) - 3, 0)
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
        seconds = {"often": 0.1, "slow": 4.0, "both": 1.0, "rare": 0.1}

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
        await asyncio.sleep(61.5)
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
        warming = CacheWarmingStrategy(
            cache, popular=many, concurrency=4, rate=1_000_000, stagger=0
        )
        running = most = 0
        stored = False

        @race_safe_cached(cache, ttl=100)
        async def price(symbol: int) -> int:
            nonlocal running, most
            if stored:
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                running -= 1
            return symbol

        for symbol in range(many):
            await price(symbol)
            await price(symbol)
        stored = True
        clock.advance(60)
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
