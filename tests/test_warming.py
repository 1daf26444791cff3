"""Warming: what is loaded before it is asked for, in which order, and what became of each."""

import asyncio
import gc
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    CacheClosedError,
    CacheWarmingStrategy,
    UnsupportedKeyError,
    race_safe_cached,
)
from async_safe_cache._popularity import HALF_LIFE
from async_safe_cache._store import ENTRY_OVERHEAD
from async_safe_cache.outcomes import WarmingReport

from .virtual import VirtualClock, at_once, run_virtual, settle


class Origin:
    """Where values come from: notes what was asked for, and when; takes its time; can fail."""

    def __init__(self, clock: VirtualClock, seconds: float = 1.0) -> None:
        self.clock = clock
        self.seconds = seconds
        self.asked: list[Any] = []
        self.begun: list[float] = []
        self.running = 0
        self.most = 0
        self.errors: dict[Any, Exception] = {}

    async def load(self, key: Any, seconds: float | None = None) -> str:
        self.asked.append(key)
        self.begun.append(self.clock())
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds if seconds is None else seconds)
        finally:
            self.running -= 1
        if key in self.errors:
            raise self.errors[key]
        return f"value of {key}"


@pytest.fixture
def origin(clock: VirtualClock) -> Origin:
    return Origin(clock)


def conclusions(report: WarmingReport) -> dict[Any, str]:
    """Return what became of each key; a key is in one place alone."""
    found = [(key, "loaded") for key in report.loaded]
    found += report.skipped.items()
    found += [(key, type(error).__name__) for key, error in report.failed.items()]
    assert len(dict(found)) == len(found), "a key has two conclusions"
    return dict(found)


# -- what is to be warm


def test_calls_are_registered_as_tuples_or_mappings_and_warmed(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache)
        async def price(symbol: str, day: int = 1) -> str:
            return await origin.load((symbol, day))

        warming = CacheWarmingStrategy(cache)
        assert warming.register(price, [("A",), ("B", 2), {"symbol": "C"}]) == 3
        assert warming.register(price, iter([{"symbol": "D", "day": 4}])) == 1
        assert repr(warming) == "<CacheWarmingStrategy of 'default', 4 calls, idle>"
        report = await warming.warm()
        assert set(report.loaded) == {
            cache.key_for(price, "A"),
            cache.key_for(price, "B", 2),
            cache.key_for(price, "C"),
            cache.key_for(price, "D", 4),
        }
        assert (report.skipped, report.failed, report.unknown) == ({}, {}, 0)
        assert report.seconds == 1
        assert str(report) == "4 loaded, 0 skipped, 0 failed in 1.0 s"
        assert sorted(origin.asked) == [("A", 1), ("B", 2), ("C", 1), ("D", 4)]
        assert await price("D", day=4) == "value of ('D', 4)"
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.calls, stats.loads) == (1, 0, 1, 4)

    run_virtual(main(), clock)


def test_keys_are_registered_with_their_loader(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, default_ttl=1_000)

        async def load(context: Any) -> str:
            context.tags.append("added")
            return await origin.load(context.key)

        warming = CacheWarmingStrategy(cache, stagger=0)
        assert warming.register(["rates", "rules", 3], load, ttl=60, tags="given") == 3
        assert warming.register(["plain"], lambda: "made", ttl=None) == 1
        report = await warming.warm()
        assert len(report.loaded) == 4
        assert origin.asked == ["rates", "rules", 3]
        assert await cache.get_many(["rates", 3, "plain"]) == {
            "rates": "value of rates",
            3: "value of 3",
            "plain": "made",
        }
        told = await cache.explain("rules")
        assert (told.tags, told.ttl_left) == (("given", "added"), 60)
        assert (await cache.explain("plain")).ttl_left is None
        assert await cache.invalidate_tags("given") == 3

    run_virtual(main(), clock)


def test_an_instance_whose_method_is_warmed_is_held_weakly(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        class Shop:
            @race_safe_cached(cache)
            async def price(self, symbol: str) -> str:
                return await origin.load(symbol)

            @classmethod
            @race_safe_cached(cache)
            async def rate(cls, symbol: str) -> str:
                return await origin.load((cls.__name__, symbol))

        shop, other = Shop(), Shop()
        warming = CacheWarmingStrategy(cache)
        warming.register(shop.price, [("A",), {"symbol": "B"}])
        warming.register(Shop.price, [(other, "A")])
        warming.register(Shop.rate, [("A",)])
        alive = weakref.ref(other)
        del other
        gc.collect()
        assert alive() is None
        report = await warming.warm()
        assert sorted(conclusions(report).values()) == ["gone", "loaded", "loaded", "loaded"]
        assert sorted(map(str, origin.asked)) == ["('Shop', 'A')", "A", "B"]
        assert await shop.price("B") == "value of B"
        assert await Shop.rate("A") == "value of ('Shop', 'A')"
        assert cache.stats().misses == 0
        cache._engine.settle()  # let go of the collected instance's entries

    run_virtual(main(), clock)


def test_a_registration_is_taken_whole_or_not_at_all(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache)
        async def price(symbol: str) -> str:
            return await origin.load(symbol)

        warming = CacheWarmingStrategy(cache, wall_clock=broken)
        with pytest.raises(TypeError):
            warming.register(price, [("A",), ("B", "C")], every=30)
        with pytest.raises(UnsupportedKeyError):
            warming.register(price, [("A",), (object(),)], every=30)
        with pytest.raises(UnsupportedKeyError):
            warming.register(["a", object()], lambda: 1)
        with pytest.raises(OSError, match="no time"):
            warming.register(price, [("A",)], at="09:30")
        assert repr(warming) == "<CacheWarmingStrategy of 'default', 0 calls, idle>"
        assert conclusions(await warming.warm()) == {}
        assert await cache.wait_warm(timeout=0)

    def broken() -> Any:
        raise OSError("no time")

    run_virtual(main(), clock)


def test_what_is_registered_again_is_replaced(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=1)
        warming.register(["a", "b"], lambda: "old", every=10, priority=2)
        assert warming.register(["b", "b"], lambda: "new", priority=1) == 1
        assert len(warming._scheduled) == 1
        assert repr(warming) == "<CacheWarmingStrategy of 'default', 2 calls, idle>"
        told: list[tuple[int, int]] = []
        report = await warming.warm(progress=lambda *done: told.append(done))
        assert told == [(1, 2), (2, 2)]
        assert report.loaded == (*[cache_key(cache, key) for key in ("a", "b")],)
        assert await cache.get_many(["a", "b"]) == {"a": "old", "b": "new"}
        warming.register(["b"], lambda: "newest", every=5)
        assert len(warming._scheduled) == 2
        assert await cache.wait_warm(timeout=0), "what was warm once, stays so"

    run_virtual(main(), clock)


def cache_key(cache: AsyncSafeCache, key: Any) -> Any:
    """Return the `Key` of a raw key, as a report shows it."""
    from async_safe_cache import Key

    return Key(*cache._place(key), cache.name)


CASES: list[tuple[str, Callable[[Any], Any], type[Exception], str]] = [
    # a registered call that cannot be bound
    ("too many", lambda w: w.f([("A", 1, 2)]), TypeError, "call of f cannot be bound: takes from"),
    ("missing", lambda w: w.f([()]), TypeError, "cannot be bound: missing 1 required .* 'symbol'"),
    ("unknown name", lambda w: w.f([{"day": 1}]), TypeError, "f cannot be bound: missing"),
    ("wrong name", lambda w: w.f([{"no": 1}]), TypeError, "unexpected keyword argument 'no'"),
    ("no str as name", lambda w: w.f([{1: 1}]), TypeError, "f cannot be bound: its arguments"),
    ("no key", lambda w: w.f([(object(),)]), UnsupportedKeyError, "symbol of type object cannot"),
    ("a str", lambda w: w.f(["A"]), TypeError, r"tuple of arguments, as in \[\('AAPL',\).*not str"),
    ("a list", lambda w: w.f([["A"]]), TypeError, "mapping of keyword arguments, not list"),
    ("one str", lambda w: w.f("AB"), TypeError, "tuple of arguments"),
    ("no calls", lambda w: w.f(5), TypeError, "an iterable of tuples of arguments, not int"),
    ("a loader", lambda w: w.f(print), TypeError, "must be an iterable of tuples .* not builtin"),
    # every= of 0, and the like
    ("every 0", lambda w: w.f(every=0), ValueError, "every=0 must be finite seconds above 0"),
    ("every -1", lambda w: w.f(every=-1), ValueError, "every=-1 must be finite seconds above 0"),
    ("every inf", lambda w: w.f(every=float("inf")), ValueError, "every=inf must be finite"),
    ("every none", lambda w: w.f(every=timedelta(0)), ValueError, "every=.* must be finite"),
    ("every true", lambda w: w.f(every=True), TypeError, "every must be finite .* not bool"),
    ("every str", lambda w: w.f(every="30"), TypeError, "every must be .* not str"),
    ("at 25", lambda w: w.f(at="25:00"), ValueError, "at='25:00' must be times of day from 00:00"),
    ("at none", lambda w: w.f(at=[]), ValueError, r"at=\[\] must be .* one at least"),
    ("at 9", lambda w: w.f(at=9), TypeError, "at must be times of day .* not int"),
    ("at timedelta", lambda w: w.f(at=[timedelta(1)]), TypeError, "one of them is of type timede"),
    ("jitter 2", lambda w: w.f(jitter=2), ValueError, "jitter=2 must be between 0 and 1: how much"),
    ("jitter", lambda w: w.f(every=1, jitter=-1), ValueError, "jitter=-1 must be between 0 and 1"),
    ("priority", lambda w: w.f(priority="9"), TypeError, "priority must be a number, not str"),
    ("priority true", lambda w: w.f(priority=True), TypeError, "priority must be .* not bool"),
    ("priority nan", lambda w: w.f(priority=float("nan")), ValueError, "priority=nan must be a"),
    # contradicting options
    (
        "stale without ttl",
        lambda w: w.k(stale_if_error=9),
        ValueError,
        "stale_if_error needs a ttl: a value without one is fresh for ever",
    ),
    ("ahead", lambda w: w.k(ttl=9, refresh_ahead=2), ValueError, "refresh_ahead=2 must be between"),
    (
        "soft above hard",
        lambda w: w.k(ttl=9, stale_if_error=9, soft_timeout=2, hard_timeout=1),
        ValueError,
        "soft_timeout=2.0 must not be above hard_timeout=1.0",
    ),
    ("ttl 0", lambda w: w.k(ttl=0), ValueError, "ttl=0 must be seconds above 0"),
    ("computed tags", lambda w: w.k(tags=lambda x: "t"), TypeError, "tags can be computed from"),
    ("own ttl", lambda w: w.f(ttl=5), TypeError, "ttl is an option of keys: .* race_safe_cached"),
    ("own skip", lambda w: w.f(skip=bool), TypeError, "skip is an option of keys"),
    # what is no target
    ("plain", lambda w: w.t(sorted, []), TypeError, "sorted is not decorated .* nothing keeps"),
    ("key str", lambda w: w.t("AB", w.load), TypeError, "iterable of keys, not str"),
    ("key int", lambda w: w.t(5, w.load), TypeError, "iterable of keys, not int"),
    ("no loader", lambda w: w.t(["a"], "b"), TypeError, "loader must be a callable .* not str"),
    ("two", lambda w: w.t(["a"], lambda x, y: 1), TypeError, "loader needs 2 arguments"),
    ("bad key", lambda w: w.t([[1]], w.load), UnsupportedKeyError, "a raw key is a hashable"),
    ("other", lambda w: w.t(w.foreign, [()]), ValueError, "belongs to another cache than 'mine'"),
]


class _Registering:
    """What the cases above are tried on."""

    def __init__(self) -> None:
        self.cache = AsyncSafeCache("mine")
        other = AsyncSafeCache("other")
        self.warming = CacheWarmingStrategy(self.cache)
        self.t: Any = self.warming.register

        async def f(symbol: str, day: int = 1) -> str:
            return symbol

        f.__qualname__ = "f"
        self.function: Any = race_safe_cached(self.cache)(f)
        self.foreign: Any = race_safe_cached(other)(f)

    def f(self, calls: Any = (("A",),), **options: Any) -> None:
        self.t(self.function, calls, **options)

    def k(self, **options: Any) -> None:
        self.t(["a"], self.load, **options)

    def load(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [case[1:] for case in CASES],
    ids=[case[0].replace(" ", "-") for case in CASES],
)
def test_what_cannot_be_kept_warm_is_refused_where_it_is_registered(
    attempt: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    there = _Registering()
    with pytest.raises(error, match=message):
        attempt(there)
    assert there.warming._targets == {}
    assert there.warming._scheduled == {}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"concurrency": 0}, ValueError, "concurrency=0 must be an int from 1"),
        ({"concurrency": None}, TypeError, "concurrency must be an int from 1: how many loads"),
        ({"rate": 0}, ValueError, "rate=0"),
        ({"popular": -1}, ValueError, "popular=-1 must be"),
        ({"popular": None}, TypeError, "popular must be an int from 0: how many calls"),
        ({"popular": 1.5}, TypeError, "popular must be an int"),
        ({"stagger": 1.5}, ValueError, "stagger=1.5 must be between 0 and 1: how much of a ttl"),
        ({"load_timeout": 0}, ValueError, "load_timeout=0 must be finite seconds above 0"),
        ({"load_timeout": None}, TypeError, "load_timeout must be finite seconds"),
        ({"wall_clock": 5}, TypeError, "wall_clock must be a callable that returns the local"),
        ({"cache": "mine"}, TypeError, "cache must be an AsyncSafeCache, not str"),
    ],
)
def test_options_of_a_strategy_are_checked(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    cache = AsyncSafeCache()
    with pytest.raises(error, match=message):
        CacheWarmingStrategy(**{"cache": cache, **options})
    assert cache._engine.store.popularity is None
    assert cache._warmths == []


# -- how it is loaded


def test_the_highest_priority_is_loaded_first(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=1)
        for key, priority in (("b", 1), ("a", 7), ("d", -2), ("c", 0), ("e", 7)):
            warming.register([key], lambda context: origin.load(context.key), priority=priority)
        report = await warming.warm()
        assert origin.asked == ["a", "e", "b", "c", "d"]
        assert report.loaded == tuple(cache_key(cache, key) for key in "aebcd")
        assert report.seconds == 5

    run_virtual(main(), clock)


def test_no_more_loads_run_at_once_than_its_concurrency(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=3)
        warming.register(range(10), lambda context: origin.load(context.key))
        first, second = await asyncio.gather(warming.warm(), warming.warm())
        assert origin.most == 3
        assert len(origin.asked) == 10, "two that warm at once load nothing twice"
        assert sorted({*conclusions(first).values(), *conclusions(second).values()}) == [
            "fresh",
            "loaded",
        ]
        assert first.seconds == 4

    run_virtual(main(), clock)


def test_no_more_loads_begin_in_a_second_than_its_rate(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=50, rate=5)
        warming.register(range(20), lambda context: origin.load(context.key))
        await warming.warm()
        assert min(later - earlier for earlier, later in pairwise(origin.begun)) >= 0.199
        assert 3.7 <= origin.begun[-1] - origin.begun[0] <= 3.9

    run_virtual(main(), clock)


def test_what_the_time_does_not_suffice_for_is_skipped(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=2)
        warming.register(range(10), lambda context: origin.load(context.key))
        report = await warming.warm(timeout=timedelta(seconds=2.5))
        found = conclusions(report)
        assert report.seconds == 2.5
        assert [found[cache_key(cache, key)] for key in range(10)] == ["loaded"] * 4 + ["time"] * 6
        assert origin.running == 0, "what was begun was ended"
        assert not await cache.wait_warm(timeout=0)
        assert await cache.wait_warm(min_ratio=0.4, timeout=0)
        report = await warming.warm(timeout=0)
        assert set(conclusions(report).values()) == {"fresh", "time"}
        found = conclusions(await warming.warm())
        assert [found[cache_key(cache, key)] for key in range(10)] == ["fresh"] * 4 + ["loaded"] * 6
        for wrong in (-1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="timeout"):
                await warming.warm(timeout=wrong)

    run_virtual(main(), clock)


def test_the_progress_is_told_after_each_call(
    clock: VirtualClock, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=2)
        warming.register(range(4), lambda context: origin.load(context.key))
        origin.errors[1] = OSError("down")
        await cache.set(3, "known")
        told: list[tuple[int, int]] = []
        await warming.warm(progress=lambda *done: told.append(done))
        assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]

        def broken(done: int, total: int) -> None:
            raise KeyError(done)

        report = await warming.warm(progress=broken)
        assert sorted(conclusions(report).values()) == ["OSError", "fresh", "fresh", "fresh"]
        with pytest.raises(TypeError, match=r"progress must be a callable\(done, total\), or True"):
            await warming.warm(progress=5)  # type: ignore[arg-type]

    with caplog.at_level(logging.WARNING, "async_safe_cache"):
        run_virtual(main(), clock)
    assert caplog.messages == ["progress failed with KeyError: it is told no more"]


def test_a_bar_is_drawn_where_rich_is_installed(
    clock: VirtualClock, origin: Origin, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        warming.register(range(4), lambda context: origin.load(context.key))
        assert len((await warming.warm(progress=True)).loaded) == 4

    run_virtual(main(), clock)
    shown = capsys.readouterr().out
    assert "warming" in shown
    assert "100%" in shown


def test_without_rich_a_bar_is_refused_by_the_name_of_the_extra(
    clock: VirtualClock, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        warming.register([1], lambda context: origin.load(context.key))
        with pytest.raises(ImportError, match=r"pip install 'async-safe-cache\[progress\]'"):
            await warming.warm(progress=True)
        assert origin.asked == []
        assert len((await warming.warm(progress=False)).loaded) == 1

    run_virtual(main(), clock)


def test_every_call_is_in_one_list_of_the_report(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, skip=lambda value: value == "value of skipped")
        async def price(symbol: str) -> str:
            return await origin.load(symbol, 100 if symbol == "hangs" else None)

        @race_safe_cached(cache)
        async def closed() -> str:
            return await origin.load("closed")

        async def invalidate() -> None:
            await asyncio.sleep(0.5)
            await cache.invalidate(price, "deleted")

        warming = CacheWarmingStrategy(cache, load_timeout=10)
        names = ["good", "bad", "skipped", "deleted", "hangs", "cached"]
        warming.register(price, [(name,) for name in names])
        warming.register(closed, [()])
        await closed.cache_close()  # type: ignore[attr-defined]
        await cache.set(cache.key_for(price, "cached"), "known")
        origin.errors["bad"] = OSError("down")
        report, _ = await asyncio.gather(warming.warm(), invalidate())
        assert conclusions(report) == {
            cache.key_for(price, "good"): "loaded",
            cache.key_for(price, "bad"): "OSError",
            cache.key_for(price, "skipped"): "not stored",
            cache.key_for(price, "deleted"): "not stored",
            cache.key_for(price, "hangs"): "TimeoutError",
            cache.key_for(price, "cached"): "fresh",
            cache.key_for(closed): "gone",
        }
        assert report.failed[cache.key_for(price, "bad")] is origin.errors["bad"]
        assert report.seconds == 10
        assert str(report) == "1 loaded, 4 skipped, 2 failed in 10.0 s"
        assert origin.running == 0
        assert cache.health()["cache_stats"]["in_flight"] == 0

    run_virtual(main(), clock)


def test_a_value_that_was_set_meanwhile_is_not_overwritten(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        warming.register(["key", "other"], lambda context: origin.load(context.key))
        running = asyncio.create_task(warming.warm())
        await asyncio.sleep(0.5)
        await cache.set("key", "newer")
        report = await running
        assert await cache.get("key") == "newer"
        assert conclusions(report) == {
            cache_key(cache, "key"): "fresh",
            cache_key(cache, "other"): "loaded",
        }
        assert await cache.wait_warm(timeout=0)

    run_virtual(main(), clock)


def test_a_load_that_already_runs_is_joined(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache)
        async def price(symbol: str) -> str:
            return await origin.load(symbol)

        warming = CacheWarmingStrategy(cache)
        warming.register(price, [("A",), ("B",)])
        caller = asyncio.create_task(price("A"))
        await asyncio.sleep(0.5)
        running = asyncio.create_task(warming.warm())
        await asyncio.sleep(0.1)
        assert await price("B") == "value of B"
        assert len((await running).loaded) == 2
        assert await caller == "value of A"
        assert sorted(origin.asked) == ["A", "B"]

    run_virtual(main(), clock)


def test_a_caller_who_joins_stays_when_the_time_for_warming_is_over(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache)
        async def price(symbol: str) -> str:
            return await origin.load(symbol, 5)

        warming = CacheWarmingStrategy(cache, load_timeout=3)
        warming.register(price, [("A",), ("B",)])
        running = asyncio.create_task(warming.warm(timeout=2))
        await asyncio.sleep(1)
        assert await price("A") == "value of A"
        assert set(conclusions(await running).values()) == {"time"}
        assert cache.health()["cache_stats"]["in_flight"] == 0
        assert len(cache) == 1

    run_virtual(main(), clock)


@pytest.mark.parametrize("policy", ["lru", "s3fifo"])
@pytest.mark.parametrize("bound", ["max_entries", "max_memory_bytes"])
def test_nothing_that_is_read_makes_room_for_what_nobody_has_read(
    clock: VirtualClock, origin: Origin, policy: Any, bound: str
) -> None:
    async def main() -> None:
        limits = {"max_entries": 8, "max_memory_bytes": 8 * weight_of_one() + ENTRY_OVERHEAD - 1}
        cache = AsyncSafeCache(clock=clock, policy=policy, **{bound: limits[bound]})
        warming = CacheWarmingStrategy(cache)

        @race_safe_cached(cache)
        async def price(symbol: int) -> str:
            return await origin.load(symbol, 0)

        for symbol in range(8):
            await price(symbol)
        warming.register(range(100, 105), lambda context: origin.load(context.key))
        warming.register(price, [(symbol,) for symbol in range(200, 205)])
        origin.asked.clear()
        report = await warming.warm()
        assert set(conclusions(report).values()) == {"no room"}
        assert origin.asked == [], "nor is anything loaded that there is no room for"
        assert len(cache) == 8
        assert cache.stats().evictions == 0

    def weight_of_one() -> int:
        cache = AsyncSafeCache(clock=clock)
        at_once(cache.set(1, "value of 1"))
        return cache.memory_bytes

    run_virtual(main(), clock)


def test_what_turns_out_to_be_too_large_for_the_room_is_not_stored(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_memory_bytes=10_000)
        warming = CacheWarmingStrategy(cache)

        @race_safe_cached(cache)
        async def page(name: str) -> bytes:
            return bytes(6_000)

        await page("read")
        warming.register(page, [("warmed",)])
        assert set(conclusions(await warming.warm()).values()) == {"not stored"}
        assert page.cache_contains("read")  # type: ignore[attr-defined]
        assert cache.stats().evictions == 0

    run_virtual(main(), clock)


def test_what_expired_makes_room(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_entries=2)
        warming = CacheWarmingStrategy(cache)
        await cache.set("short", 1, ttl=5)
        await cache.set("long", 1)
        warming.register(["a", "b"], lambda context: origin.load(context.key))
        assert set(conclusions(await warming.warm()).values()) == {"no room"}
        clock.advance(5)
        assert sorted(conclusions(await warming.warm()).values()) == ["loaded", "no room"]
        assert await cache.get("long") == 1

    run_virtual(main(), clock)


def test_a_full_cache_is_no_obstacle_to_a_value_in_place_of_its_own(
    clock: VirtualClock, origin: Origin
) -> None:
    """It is past its ttl, but kept for errors: what replaces it needs no room."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_entries=2)
        warming = CacheWarmingStrategy(cache)

        @race_safe_cached(cache, ttl=5, stale_if_error=60)
        async def price(symbol: str) -> str:
            return await origin.load(symbol, 0)

        await price("A")
        await cache.set("other", 1)
        warming.register(price, [("A",)])
        clock.advance(5)
        await cache.set("other", 2)
        assert set(conclusions(await warming.warm()).values()) == {"loaded"}
        assert await cache.get("other") == 2

    run_virtual(main(), clock)


def test_what_is_read_more_makes_room_for_itself(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_entries=2)
        warming = CacheWarmingStrategy(cache)

        @race_safe_cached(cache)
        async def price(symbol: str) -> str:
            return await origin.load(symbol, 0)

        for symbol, reads in (("hot", 9), ("warm", 5), ("cold", 2)):
            for _ in range(reads):
                await price(symbol)
        assert not price.cache_contains("hot")  # type: ignore[attr-defined]
        warming.register(price, [("hot",), ("unknown",)])
        report = await warming.warm()
        assert conclusions(report) == {
            cache.key_for(price, "hot"): "loaded",
            cache.key_for(price, "unknown"): "no room",
        }
        assert cache.stats().evictions == 2
        held = [price.cache_contains(each) for each in ("hot", "warm", "cold")]  # type: ignore[attr-defined]
        assert held == [True, False, True], "the oldest of those that are read less has left"

    run_virtual(main(), clock)


def test_of_what_nobody_counts_the_reads_nothing_makes_room(
    clock: VirtualClock, origin: Origin
) -> None:
    """A raw key may be read a thousand times a second: nothing is known of it."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_entries=2)
        warming = CacheWarmingStrategy(cache)

        @race_safe_cached(cache)
        async def price(symbol: str) -> str:
            return await origin.load(symbol, 0)

        for _ in range(9):
            await price("hot")
        await cache.set("a", 1)
        await cache.set("b", 2)
        assert set(conclusions(await warming.warm_popular()).values()) == {"no room"}
        assert await cache.get_many("ab") == {"a": 1, "b": 2}

    run_virtual(main(), clock)


def test_what_is_loaded_together_does_not_expire_together(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=100)
        async def price(symbol: int) -> str:
            return await origin.load(symbol)

        @race_safe_cached(cache, ttl=100, jitter=0.5)
        async def other(symbol: int) -> str:
            return await origin.load(symbol)

        warming = CacheWarmingStrategy(cache, concurrency=1_000, stagger=0.2)
        warming.register(price, [(symbol,) for symbol in range(200)])
        warming.register(other, [(symbol,) for symbol in range(200)])
        warming.register(range(200), lambda context: origin.load(context.key), ttl=100)
        warming.register(range(200, 400), lambda: 1, ttl=100, jitter=0.4)
        await warming.warm()

        async def left(keys: list[Any]) -> list[float]:
            return [(await cache.explain(key)).ttl_left or 0 for key in keys]

        for keys, least in (
            ([cache.key_for(price, symbol) for symbol in range(200)], 80),
            ([cache.key_for(other, symbol) for symbol in range(200)], 50),
            (list(range(200)), 80),
            (list(range(200, 400)), 59),  # loaded a second before the others ended
        ):
            times = await left(keys)
            assert least <= min(times) < least + (100 - least) / 10
            assert 100 - (100 - least) / 10 < max(times) <= 100
            assert len(set(times)) == 200

    run_virtual(main(), clock)


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
request: ContextVar[str] = ContextVar("request", default="none")
trace: ContextVar[str] = ContextVar("trace", default="none")


def test_a_load_sees_nothing_of_who_warms_but_what_is_part_of_its_key(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        seen: list[tuple[str, str, str]] = []

        @race_safe_cached(cache, vary_on=tenant, propagate=trace)
        async def price(symbol: str) -> str:
            seen.append((tenant.get(), request.get(), trace.get()))
            return f"{symbol} for {tenant.get()}"

        @race_safe_cached(cache, vary_on=tenant)
        def rule(name: str) -> str:
            seen.append((tenant.get(), request.get(), trace.get()))
            return f"{name} for {tenant.get()}"

        warming = CacheWarmingStrategy(cache)
        for name in ("ann", "bob"):
            tenant.set(name)
            warming.register(price, [("A",)])
            warming.register(rule, [("R",)])
        tenant.set("eve")
        request.set("GET /")
        trace.set("span")
        assert len((await warming.warm()).loaded) == 4
        assert tenant.get() == "eve"
        assert sorted(seen) == [
            ("ann", "none", "none"),
            ("ann", "none", "span"),
            ("bob", "none", "none"),
            ("bob", "none", "span"),
        ]
        tenant.set("bob")
        assert (await price("A"), rule("R")) == ("A for bob", "R for bob")
        assert cache.stats().misses == 0

    run_virtual(main(), clock)


def test_a_key_of_a_cache_that_varies_is_loaded_for_whom_it_was_registered(
    clock: VirtualClock,
) -> None:
    """The loader saw the tenant of who warmed, and its value was stored for the other one."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, vary_on=tenant)
        warming = CacheWarmingStrategy(cache)
        for name in ("ann", "bob"):
            tenant.set(name)
            warming.register(["rates"], lambda: f"rates of {tenant.get()}")
        tenant.set("eve")
        assert len((await warming.warm()).loaded) == 2
        tenant.set("ann")
        assert await cache.get("rates") == "rates of ann"

    run_virtual(main(), clock)


def test_the_wait_of_a_caller_is_no_limit_for_warming(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=60, hard_timeout=0.2)
        async def price(symbol: str) -> str:
            return await origin.load(symbol)

        warming = CacheWarmingStrategy(cache)
        warming.register(price, [("A",)])
        assert len((await warming.warm()).loaded) == 1
        assert await price("A") == "value of A"

    run_virtual(main(), clock)


def test_nobody_is_handed_a_copy_where_nobody_asks(clock: VirtualClock) -> None:
    class Value:
        copies = 0

        def __deepcopy__(self, memo: object) -> "Value":
            Value.copies += 1
            return self

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, copy="deep")
        async def value() -> Value:
            return Value()

        warming = CacheWarmingStrategy(cache)
        warming.register(value, [()])
        assert len((await warming.warm()).loaded) == 1
        assert Value.copies == 0
        await value()
        assert Value.copies == 1

    run_virtual(main(), clock)


def test_a_plain_function_is_loaded_in_a_thread_of_its_own() -> None:
    async def main() -> None:
        cache = AsyncSafeCache()
        here = threading.get_ident()
        threads: set[int] = set()

        @race_safe_cached(cache)
        def rule(name: str) -> str:
            threads.add(threading.get_ident())
            return name

        warming = CacheWarmingStrategy(cache)
        warming.register(rule, [("a",), ("b",), ("c",)])
        assert len((await warming.warm()).loaded) == 3
        assert here not in threads
        assert rule("b") == "b"
        assert cache.stats().loads == 3
        await cache.aclose()
        assert not [each for each in threading.enumerate() if "load of" in each.name]

    asyncio.run(main())


def test_a_closed_cache_is_not_warmed(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=1)
        warming.register(["a", "b", "c"], lambda context: origin.load(context.key))
        running = asyncio.create_task(warming.warm())
        await asyncio.sleep(1.5)
        await cache.aclose()
        found = conclusions(await running)
        assert list(found.values()) == ["loaded", "CacheClosedError", "CacheClosedError"]
        assert origin.asked == ["a", "b"]
        for attempt in (
            warming.warm,
            warming.warm_popular,
            warming.start_background_refresh,
            cache.wait_warm,
            lambda: warming.replay_hot_set("no file"),
        ):
            with pytest.raises(CacheClosedError):
                await attempt()
        await cache.start()
        assert len((await warming.warm()).loaded) == 3
        await cache.aclose()

    run_virtual(main(), clock)


def test_who_is_cancelled_while_warming_leaves_nothing(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=3, rate=100)
        warming.register(range(10), lambda context: origin.load(context.key))
        running = asyncio.create_task(warming.warm())
        await asyncio.sleep(0.5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await settle()
        assert origin.running == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert (warming._pace.running, warming._pace.waiting) == (0, 0)
        assert len(cache) == 0
        assert len((await warming.warm()).loaded) == 10

    run_virtual(main(), clock)


def test_errors_and_slow_loads_lower_the_budget_for_a_while(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=8)
        warming.register(range(8), lambda context: origin.load(context.key))
        origin.errors = {key: OSError("down") for key in range(8)}
        await warming.warm()
        assert warming._pace.limit == 4
        origin.errors = {}
        origin.most = 0
        await warming.warm()
        assert origin.most == 4

    run_virtual(main(), clock)


def test_a_list_that_its_caller_uses_again_is_not_what_is_warmed(
    clock: VirtualClock, origin: Origin
) -> None:
    """It was kept as it is: the value of what is in it now was stored as that of before."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=10)
        async def total(numbers: list[int], more: Any = ()) -> str:
            found = str((*numbers, *more))
            numbers.clear()  # its own, whatever it does
            return await origin.load(found)

        warming = CacheWarmingStrategy(cache)
        numbers, more = [1, 2], {"a": [1], "b": {2}}
        warming.register(total, [(numbers, (more,))])
        await total(numbers)
        numbers.append(3)
        more["a"].clear()  # type: ignore[union-attr]
        clock.advance(10)
        assert len((await warming.warm()).loaded) == 1
        assert len((await warming.warm_popular()).loaded) == 1
        assert origin.asked == ["(1, 2)", "(1, 2, {'a': [1], 'b': {2}})", "(1, 2)"]
        clock.advance(10)
        assert len((await warming.warm()).loaded) == 1
        assert len((await warming.warm_popular()).loaded) == 1
        assert origin.asked[3:] == origin.asked[1:3]
        assert await total([1, 2]) == "value of (1, 2)"
        assert await total([3]) == "value of (3,)"

    run_virtual(main(), clock)


# -- what is popular


def reads_of(cache: AsyncSafeCache) -> dict[Any, float]:
    """Return the reads of each known call by its key, at this moment."""
    popularity = cache._engine.store.popularity
    assert popularity is not None
    now = cache._engine.clock()
    return {call.place[1]: popularity.worth(call.place, now) for call in popularity}


def test_the_popular_are_loaded_by_reads_times_load_time(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=1)
        seconds = {"often": 1.0, "slow": 40.0, "both": 14.0, "rare": 1.0, "never again": 0.5}

        @race_safe_cached(cache, ttl=300, jitter=0)
        async def price(symbol: str) -> str:
            return await origin.load(symbol, seconds[symbol])

        for symbol, reads in (("often", 30), ("slow", 4), ("both", 10), ("rare", 2)):
            for _ in range(reads):
                await price(symbol)
        await price("never again")
        assert conclusions(await warming.warm_popular()) == {}, "all of them are fresh"
        clock.advance(300)
        origin.asked.clear()
        report = await warming.warm_popular(limit=4)
        assert origin.asked == ["slow", "both", "often", "rare"]
        assert report.loaded == tuple(cache.key_for(price, each) for each in origin.asked)
        await cache.clear()
        assert conclusions(await warming.warm_popular(0)) == {}
        found = conclusions(await warming.warm_popular(limit=10, timeout=1.2, progress=None))
        assert sorted(found.values()) == ["time"] * 5
        for wrong, error in ((-1, ValueError), (2.5, TypeError)):
            with pytest.raises(error, match="limit"):
                await warming.warm_popular(wrong)  # type: ignore[arg-type]

    run_virtual(main(), clock)


@pytest.mark.parametrize("policy", ["lru", "s3fifo"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ttl": 60},
        {"ttl": 60, "refresh_ahead": 0.9},
        {"ttl": 60, "stale_while_revalidate": 60},
        {"tags": "t"},
        {"copy": "deep"},
        {"vary_on": tenant},
        {"key": lambda symbol, day: (symbol, day)},
        {"depends_on": "source"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_each_read_is_counted_once(
    clock: VirtualClock, policy: Any, options: dict[str, Any]
) -> None:
    """Whatever template its wrapper was compiled from, before or after the strategy was made."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, policy=policy)

        def price(symbol: str, day: int) -> str:
            return f"{symbol} {day}"

        async def price_async(symbol: str, day: int) -> str:
            return f"{symbol} {day}"

        synchronous = race_safe_cached(cache, "def", **only_sync(options))(price)
        before = race_safe_cached(cache, "before", **options)(price_async)
        source = before.cache_source  # type: ignore[attr-defined]
        CacheWarmingStrategy(cache)
        assert before.cache_source != source or "key" in options  # type: ignore[attr-defined]
        after = race_safe_cached(cache, "after", **options)(price_async)
        for _ in range(6):
            for symbol, reads in (("A", 1), ("B", 3)):
                for _ in range(reads):
                    assert await before(symbol, 1) == f"{symbol} 1"
                    assert await after(symbol, 1) == f"{symbol} 1"
                    assert synchronous(symbol, day=1) == f"{symbol} 1"
        popularity = cache._engine.store.popularity
        assert popularity is not None
        found = sorted(
            (call.place[0].name, popularity.worth(call.place, clock())) for call in popularity
        )
        assert found == [
            ("after", 6), ("after", 18), ("before", 6), ("before", 18), ("def", 6), ("def", 18),
        ]  # fmt: skip
        stats = cache.stats()
        assert (stats.hits, stats.misses) == (66, 6)
        await cache.clear()
        assert sum(reads_of(cache).values()) <= 72

    def only_sync(options: dict[str, Any]) -> dict[str, Any]:
        return {
            k: v for k, v in options.items() if k not in {"refresh_ahead", "stale_while_revalidate"}
        }

    run_virtual(main(), clock)


def test_each_read_of_a_method_and_of_a_generic_function_is_counted_once(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        class Shop:
            @race_safe_cached(cache)
            async def price(self, symbol: str) -> str:
                return symbol

        shop, other = Shop(), Shop()
        await shop.price("A")

        @race_safe_cached(cache)
        async def several(*symbols: str, **options: int) -> str:
            return f"{symbols} {options}"

        await several("A", day=1)
        CacheWarmingStrategy(cache)
        for _ in range(5):
            assert await shop.price("A") == "A"
            assert await other.price("A") == "A"
            assert await several("A", day=1) == "('A',) {'day': 1}"
            assert await several("B") == "('B',) {}"
        popularity = cache._engine.store.popularity
        assert popularity is not None
        reads = [popularity.worth(call.place, clock()) for call in popularity]
        assert reads == [5, 5, 5, 5]
        assert cache.stats().hits == 18

    run_virtual(main(), clock)


def test_reads_are_counted_exactly_however_a_value_leaves(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_entries=2)
        CacheWarmingStrategy(cache)

        @race_safe_cached(cache, ttl=10)
        async def price(symbol: str) -> str:
            return symbol

        async def read(times: int) -> None:
            for _ in range(times):
                await price("A")

        await read(3)
        await cache.delete(cache.key_for(price, "A"))
        await read(3)
        await cache.set(cache.key_for(price, "A"), "B")
        await read(3)
        await cache.refresh(price, "A")
        await read(3)
        await cache.expire(cache.key_for(price, "A"))
        await read(3)
        for key in range(2):  # evict it
            await cache.set(key, key)
        await read(3)
        await cache.clear()
        await read(3)
        price.cache_clear()  # type: ignore[attr-defined]
        await read(3)
        assert reads_of(cache) == {"A": 24}

    run_virtual(main(), clock)


def test_callers_who_share_a_load_are_each_a_read(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        CacheWarmingStrategy(cache)

        @race_safe_cached(cache)
        async def price(symbol: str) -> str:
            return await origin.load(symbol)

        await asyncio.gather(*(price("A") for _ in range(7)))
        assert reads_of(cache) == {"A": pytest.approx(7, rel=0.01)}

    run_virtual(main(), clock)


def test_what_is_no_read_is_not_counted(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)

        @race_safe_cached(cache, ttl=10)
        async def price(symbol: str) -> str:
            return await origin.load(symbol)

        warming.register(price, [("A",)])
        await warming.warm()
        await cache.refresh(price, "A")
        cache.peek(cache.key_for(price, "A"))
        price.cache_contains("A")  # type: ignore[attr-defined]
        assert reads_of(cache) == {"A": 0}
        clock.advance(10)
        await warming.warm_popular()
        assert reads_of(cache) == {"A": 0}

    run_virtual(main(), clock)


def test_a_read_counts_half_after_its_half_life(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache, concurrency=1)

        @race_safe_cached(cache, ttl=10)
        async def price(symbol: str) -> str:
            return await origin.load(symbol)

        for _ in range(16):
            await price("past")
        clock.advance(10)
        cache._engine.sweep(clock(), 10)
        clock.advance(2 * HALF_LIFE - 10)
        for _ in range(5):
            await price("present")
        assert reads_of(cache) == {
            "past": pytest.approx(4, rel=0.02),
            "present": pytest.approx(5, rel=0.01),
        }
        clock.advance(10)
        report = await warming.warm_popular(1)
        assert report.loaded == (cache.key_for(price, "present"),)

    run_virtual(main(), clock)


def test_the_table_of_calls_is_bounded_and_keeps_the_popular(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_entries=20)
        CacheWarmingStrategy(cache, popular=30)

        @race_safe_cached(cache)
        async def price(symbol: int) -> int:
            return symbol

        for symbol in range(1_000):
            await price(symbol)
            for popular in range(5):
                await price(popular)
        found = reads_of(cache)
        assert len(found) == 30
        assert set(found) >= set(range(5))
        CacheWarmingStrategy(cache, popular=10)
        assert cache._engine.store.popularity.limit == 30  # type: ignore[union-attr]

    run_virtual(main(), clock)


def test_a_strategy_that_counts_nothing_changes_no_wrapper(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache)
        async def price(symbol: str) -> str:
            return symbol

        source = price.cache_source  # type: ignore[attr-defined]
        warming = CacheWarmingStrategy(cache, popular=0)
        assert price.cache_source == source  # type: ignore[attr-defined]
        await price("A")
        assert (await warming.warm_popular()).loaded == ()
        with pytest.raises(ValueError, match="predictive=True needs popular above 0"):
            await warming.start_background_refresh(predictive=True)

    run_virtual(main(), clock)


def test_a_popular_call_that_cannot_be_made_again_is_left_out(
    clock: VirtualClock, origin: Origin
) -> None:
    """An exception of `key=` ended the warming of all others."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)
        broken = False

        def key(symbol: str) -> str:
            if broken:
                raise OSError("broken")
            return symbol

        class Shop:
            @race_safe_cached(cache)
            async def price(self, symbol: str) -> str:
                return await origin.load(symbol)

        @race_safe_cached(cache, key=key)
        async def keyed(symbol: str) -> str:
            return await origin.load(symbol)

        @race_safe_cached(cache)
        async def closed(symbol: str) -> str:
            return await origin.load(symbol)

        @race_safe_cached(cache)
        async def good(symbol: str) -> str:
            return await origin.load(symbol)

        shop = Shop()
        for call in (shop.price, keyed, closed, good):
            await call("A")
        del shop, call
        gc.collect()
        broken = True
        await closed.cache_close()  # type: ignore[attr-defined]
        await cache.clear()
        report = await warming.warm_popular()
        assert conclusions(report) == {cache.key_for(good, "A"): "loaded"}

    run_virtual(main(), clock)


def test_nothing_that_is_counted_holds_an_instance(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)

        class Shop:
            @race_safe_cached(cache)
            async def price(self, symbol: str) -> str:
                return await origin.load(symbol)

            @race_safe_cached(cache, key=lambda self, symbol: symbol)
            async def keyed(self, symbol: str) -> str:
                return await origin.load(symbol)

        shop = Shop()
        await shop.price("A")
        await shop.keyed("A")
        warming.register(shop.keyed, [("B",)])
        assert len((await warming.warm()).loaded) == 1
        await cache.clear()
        assert len((await warming.warm_popular()).loaded) == 3
        alive = weakref.ref(shop)
        del shop
        gc.collect()
        assert alive() is None
        await cache.clear()
        assert conclusions(await warming.warm_popular()) == {}
        assert list(conclusions(await warming.warm()).values()) == ["gone"]

    run_virtual(main(), clock)


def test_an_instance_that_cannot_be_held_weakly_is_not_counted_and_not_registered(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        warming = CacheWarmingStrategy(cache)

        class Shop:
            __slots__ = ()

            @race_safe_cached(cache, key=lambda self, symbol: symbol)
            async def price(self, symbol: str) -> str:
                return symbol

        assert await Shop().price("A") == "A"
        assert reads_of(cache) == {}
        with pytest.raises(TypeError, match="weak reference"):
            warming.register(Shop().price, [("A",)])

    run_virtual(main(), clock)


def test_a_strategy_counts_what_was_cached_before_it_was_made(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=10)
        async def price(symbol: str) -> str:
            return await origin.load(symbol)

        await price("A")
        warming = CacheWarmingStrategy(cache)
        for _ in range(4):
            await price("A")
        assert reads_of(cache) == {"A": 4}
        clock.advance(10)
        assert len((await warming.warm_popular()).loaded) == 1

    run_virtual(main(), clock)
