"""Health tells the truth at any time, and what to do."""

import asyncio
import json
import math
import threading
from typing import Any

import pytest

from async_safe_cache import (
    AlertThresholds,
    AsyncSafeCache,
    CacheWarmingStrategy,
    LoadTimeoutError,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, at_once, run_virtual, settle

STATS = {
    "hit_rate", "memory_mb", "memory_usage", "entries", "hits", "misses", "coalesced", "calls",
    "loads", "load_errors", "overlapping_loads", "evictions", "eviction_rate", "error_rate",
    "response_time_ms", "misses_by_reason", "evictions_by_cause",
}  # fmt: skip


def names(health: dict[str, Any]) -> list[str]:
    return [alert["name"] for alert in health["alerts"]]


def test_health_of_a_cache_that_did_nothing(clock: VirtualClock) -> None:
    cache = AsyncSafeCache("new", clock=clock)
    health = at_once(cache.get_health_info())
    assert health["status"] == "healthy"
    assert health["alerts"] == []
    assert set(health["cache_stats"]) >= STATS
    numbers = [value for value in health["cache_stats"].values() if not isinstance(value, dict)]
    assert numbers == [0] * len(numbers)
    assert set(health["cache_stats"]["misses_by_reason"]) >= {"ABSENT", "EXPIRED", "EVICTED"}
    assert set(health["cache_stats"]["misses_by_reason"].values()) == {0}
    assert json.loads(json.dumps(health)) == health


def test_health_counts_what_is_there(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, max_memory_bytes=1024**2)
    at_once(cache.set("a", b"x" * 1024))
    at_once(cache.set("b", 1, ttl=1))
    at_once(cache.get("a"))
    at_once(cache.get("no"))
    clock.advance(1)
    stats = cache.health()["cache_stats"]
    assert (stats["entries"], stats["hits"], stats["misses"], stats["calls"]) == (1, 1, 1, 2)
    assert stats["hit_rate"] == 50
    assert stats["memory_bytes"] == cache.memory_bytes > 1024
    assert stats["memory_mb"] == pytest.approx(cache.memory_bytes / 1024**2, abs=1e-6)
    assert stats["memory_usage"] == pytest.approx(100 * cache.memory_bytes / 1024**2, abs=1e-3)


def test_a_low_hit_rate_alerts_after_a_thousand_calls(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    for key in range(999):
        at_once(cache.get(key))
    assert cache.health()["status"] == "healthy"
    at_once(cache.get("one more"))
    health = cache.health()
    assert (health["status"], names(health)) == ("degraded", ["hit_rate"])
    (alert,) = health["alerts"]
    assert (alert["observed"], alert["threshold"], alert["unit"]) == (0, 70, "%")
    assert alert["advice"]
    off = AsyncSafeCache(clock=clock, thresholds=AlertThresholds(hit_rate_low=None))
    for key in range(2_000):
        at_once(off.get(key))
    assert off.health()["status"] == "healthy"


def test_failing_loads_alert(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    @race_safe_cached(cache)
    def load(x):
        if x == 1:
            raise ValueError("no")
        return x

    with pytest.raises(ValueError, match="no"):
        load(1)
    assert load(2) == 2
    health = cache.health()
    assert health["cache_stats"]["error_rate"] == 50
    assert (health["status"], names(health)) == ("degraded", ["error_rate"])


@pytest.mark.parametrize("result", ["value", KeyError("failed")])
def test_what_callers_waited_is_not_kept_one_by_one(clock: VirtualClock, result: object) -> None:
    """However many loads end at one time, in whatever way."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(result)
        for key in range(2_000):
            try:
                await cache.get_or_load(key, load)
            except KeyError:
                pass
            assert len(cache._engine.recent.fresh) < 300

    run_virtual(main(), clock)


def test_response_time_is_the_p95_of_what_callers_waited(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.get_or_load("slow", Loader(seconds=0.3))
        response = cache.health()["cache_stats"]["response_time_ms"]
        assert 300 <= response <= 330
        assert names(cache.health()) == ["response_time"]
        for _ in range(30):
            await cache.get("slow")
        assert cache.health()["cache_stats"]["response_time_ms"] == 0, "a hit counts 0"
        await cache.get_or_load("slower", Loader(seconds=2))
        await cache.get_or_load("slowest", Loader(seconds=4))
        assert cache.health()["cache_stats"]["response_time_ms"] > 300
        clock.advance(400)
        await cache.get("no")
        clock.advance(400)
        assert cache.health()["cache_stats"]["response_time_ms"] == 0, "5 minutes are over"

    run_virtual(main(), clock)


def test_evictions_alert_and_full_memory_makes_it_a_warning(clock: VirtualClock) -> None:
    by_entries = AsyncSafeCache(clock=clock, max_entries=10)
    for key in range(200):
        at_once(by_entries.set(key, key))
    health = by_entries.health()
    assert (health["status"], names(health)) == ("degraded", ["eviction_rate"])
    assert health["cache_stats"]["eviction_rate"] == 190
    assert health["cache_stats"]["evictions_by_cause"] == {
        "max_entries": 190,
        "max_memory_bytes": 0,
    }
    by_memory = AsyncSafeCache(clock=clock, max_memory_bytes=50_000)
    for key in range(500):
        at_once(by_memory.set(key, key))
    health = by_memory.health()
    assert (health["status"], names(health)) == ("warning", ["eviction_rate", "memory_usage"])
    clock.advance(130)
    at_once(by_memory.get("no"))
    assert by_memory.health()["status"] == "healthy", "a full cache is what a cache should be"


def test_stats_of_a_window(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    for _ in range(10):
        at_once(cache.get("no"))
        clock.advance(10)
    assert cache.stats().misses == 10
    assert cache.stats(30).misses == 2
    assert cache.stats(300).misses == 10
    for wrong in (0, -1, 301):
        with pytest.raises(ValueError, match="window"):
            cache.stats(wrong)


def test_health_works_closed_and_from_any_thread(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.start()
        await cache.aclose()
        assert cache.health()["status"] == "closed"
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(cache.health()))
        thread.start()
        thread.join()
        assert found[0]["status"] == "closed"

    run_virtual(main(), clock)


def test_what_a_broken_clock_makes_of_a_wait_is_none(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    recent = cache._engine.recent
    recent.fresh += [0.001, math.inf, -math.inf, math.nan, 5e-324, 0.0, -1.0]
    assert 1 <= cache.health()["cache_stats"]["response_time_ms"] <= 1.2
    assert recent.fresh == []


def test_the_oldest_load_and_the_longest_queue_are_shown(clock: VirtualClock) -> None:
    async def main() -> None:
        quiet = AlertThresholds(response_time_high=None)
        cache = AsyncSafeCache(clock=clock, thresholds=quiet)
        long, short = Loader(seconds=100), Loader(seconds=20)

        async def load_many(keys: list[Any]) -> dict[Any, int]:
            await asyncio.sleep(50)
            return dict.fromkeys(keys, 1)

        first = asyncio.create_task(cache.get_or_load("long", long))
        await asyncio.sleep(10)
        others = [asyncio.create_task(cache.get_or_load("short", short)) for _ in range(5)]
        many = asyncio.create_task(cache.get_or_load_many(range(9), load_many))
        await asyncio.sleep(5)
        stats = cache.health()["cache_stats"]
        assert (stats["oldest_load_seconds"], stats["most_waiters"]) == (15, 5)
        assert stats["in_flight"] == 11
        await asyncio.sleep(45)
        assert all(task.done() for task in others)
        stats = cache.health()["cache_stats"]
        assert (stats["oldest_load_seconds"], stats["most_waiters"]) == (60, 1)
        assert names(cache.health()) == [], "as long as is allowed"
        await asyncio.sleep(5)
        health = cache.health()
        assert health["status"] == "degraded"
        (alert,) = health["alerts"]
        assert (alert["name"], alert["observed"]) == ("oldest_load", 65)
        assert (alert["threshold"], alert["unit"]) == (60, "s")
        assert "give load_timeout=" in alert["advice"]
        first.cancel()
        await many
        await asyncio.wait([first])
        stats = cache.health()["cache_stats"]
        assert (stats["oldest_load_seconds"], stats["most_waiters"], stats["hung_loads"]) == (
            0,
        ) * 3
        assert "oldest_load" not in names(cache.health())

    run_virtual(main(), clock)


@pytest.mark.parametrize(("high", "alerts"), [(5, True), (5.5, False), (0, True), (None, False)])
def test_how_old_a_load_may_be_is_an_option(
    clock: VirtualClock, high: float | None, alerts: bool
) -> None:
    async def main() -> None:
        thresholds = AlertThresholds(oldest_load_high=high)
        cache = AsyncSafeCache(clock=clock, thresholds=thresholds)
        task = asyncio.create_task(cache.get_or_load("key", Loader(seconds=100)))
        await asyncio.sleep(5.25)
        assert (names(cache.health()) == ["oldest_load"]) is alerts
        task.cancel()

    run_virtual(main(), clock)


def test_what_oldest_load_high_can_be() -> None:
    for wrong, error in ((-1, ValueError), (math.nan, ValueError), ("60", TypeError)):
        with pytest.raises(error, match="oldest_load_high"):
            AlertThresholds(oldest_load_high=wrong)  # type: ignore[arg-type]


def test_a_load_that_does_not_end_when_it_is_told_to_is_hung(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, thresholds=AlertThresholds(error_rate_high=None))
        end = asyncio.Event()

        async def stubborn() -> int:
            while not end.is_set():
                try:
                    await end.wait()
                except asyncio.CancelledError:
                    pass
            return 1

        with pytest.raises(LoadTimeoutError):
            await cache.get_or_load("key", stubborn, load_timeout=5)
        health = cache.health()
        assert health["cache_stats"]["load_timeouts"] == 1
        assert health["cache_stats"]["hung_loads"] == 1
        assert health["status"] == "degraded"
        (alert,) = [each for each in health["alerts"] if each["name"] == "hung_loads"]
        assert (alert["observed"], alert["threshold"], alert["unit"]) == (1, 0, "loads")
        assert "swallows its cancellation" in alert["advice"]
        end.set()
        await settle()
        health = cache.health()
        assert (health["cache_stats"]["hung_loads"], health["cache_stats"]["load_timeouts"]) == (
            0,
            1,
        )
        assert "hung_loads" not in names(health)

    run_virtual(main(), clock)


def test_stale_values_that_were_served_are_counted(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        for _ in range(3):
            await cache.get_or_load("key", Loader(1), ttl=5, stale_while_revalidate=60)
            await asyncio.sleep(6)
        assert cache.health()["cache_stats"]["stale_served"] == 2

    run_virtual(main(), clock)


def test_a_refresher_tells_what_it_does_and_is_gone_when_it_has_stopped(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=2)
        warming.register(["a", "b", "c"], Loader(seconds=30), every=10)
        assert list(cache.health()["background"]) == ["sweeper"]
        await warming.start_background_refresh()
        await asyncio.sleep(15)
        health = cache.health()
        state = health["background"]["refresher"]
        assert set(state) == {
            "running", "wanted", "interval", "errors", "failing", "last_error",
            "last_success_age", "refreshed", "failed", "not_stored", "backing_off", "due",
            "queued", "working", "lag_seconds", "budget", "prediction",
        }  # fmt: skip
        assert (state["due"], state["queued"], state["working"]) == (3, 1, 2)
        assert state["lag_seconds"] == pytest.approx(5, abs=1.01)
        assert (state["running"], state["wanted"], state["prediction"]) == (True, True, None)
        assert state["budget"]["running"] == 2
        assert json.loads(json.dumps(health)) == health
        await asyncio.sleep(60)
        assert cache.health()["background"]["refresher"]["refreshed"] == 3
        await warming.stop()
        assert list(cache.health()["background"]) == ["sweeper"]
        await cache.aclose()

    run_virtual(main(), clock)
