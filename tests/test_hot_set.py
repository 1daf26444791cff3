"""Warm starts: what was popular is loaded again after a restart, and a service knows when."""

import asyncio
import stat
from collections.abc import Callable
from contextvars import ContextVar
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    CacheClosedError,
    CacheWarmingStrategy,
    HotSetError,
    race_safe_cached,
)
from async_safe_cache._hot_set import HotCall, read_hot_set, write_hot_set

from .test_warming import Origin, conclusions, reads_of
from .virtual import VirtualClock, run_virtual, settle


@pytest.fixture
def origin(clock: VirtualClock) -> Origin:
    return Origin(clock, seconds=0.25)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hot"


class App:
    """A process: a cache, its functions, and a strategy."""

    def __init__(self, clock: VirtualClock, origin: Origin, name: str = "app", **how: Any) -> None:
        self.cache = cache = AsyncSafeCache(name, clock=clock, default_ttl=300)
        self.warming = CacheWarmingStrategy(cache, **how)

        @race_safe_cached(cache, "price")
        async def price(symbol: str, day: date | None = None) -> str:
            return await origin.load((symbol, day))

        @race_safe_cached(cache, "report")
        async def report(*parts: Any, **options: Any) -> str:
            return await origin.load(f"{parts} {options}", 2)

        @race_safe_cached(cache, "rule")
        def rule(names: list[str]) -> str:
            origin.asked.append(list(names))
            return "-".join(names)

        self.price, self.report, self.rule = price, report, rule

    async def use(self) -> None:
        for _ in range(20):
            await self.price("A")
        for _ in range(4):
            await self.price("B", date(2026, 3, 2))
            await self.report("x", 1, [2.5], deep=True)
        for _ in range(3):
            self.rule(["r", "s"])
        await self.price("C")


def test_what_was_popular_is_loaded_again_after_a_restart(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    async def main() -> None:
        before = App(clock, origin)
        await before.use()
        assert await before.warming.save_hot_set(path) == 5
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        text = path.read_text()
        assert "value of" not in text, "names and arguments, no values"
        assert '"A"' in text
        await before.cache.aclose()

        after = App(clock, origin, concurrency=1)
        origin.asked.clear()
        report = await after.warming.replay_hot_set(str(path))
        assert set(conclusions(report).values()) == {"loaded"}
        assert (len(report.loaded), report.unknown) == (5, 0)
        assert origin.asked == [
            "('x', 1, [2.5]) {'deep': True}",
            ("A", None),
            ("B", date(2026, 3, 2)),
            ("C", None),
            ["r", "s"],
        ], "by reads x load time"
        await after.use()
        stats = after.cache.stats()
        assert (stats.misses, stats.hits) == (0, 32)
        await after.cache.aclose()

    run_virtual(main(), clock)


def test_what_was_replayed_is_as_popular_as_it_was(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    """So it is kept fresh, makes room for itself, and is saved again, before anybody reads it."""

    async def main() -> None:
        before = App(clock, origin)
        await before.use()
        await before.warming.save_hot_set(path)
        after = App(clock, origin)
        await after.warming.replay_hot_set(path)
        assert sorted(reads_of(after.cache).values()) == [
            pytest.approx(each, rel=0.02) for each in (1, 3, 4, 4, 20)
        ]
        await after.warming.save_hot_set(path)
        found = [(call.function, round(call.reads)) for call in read_hot_set(path, "app")]
        assert found == [("report", 4), ("price", 20), ("price", 4), ("price", 1), ("rule", 3)]

    run_virtual(main(), clock)


def test_only_the_most_read_calls_are_saved(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    async def main() -> None:
        app = App(clock, origin)
        await app.use()
        assert await app.warming.save_hot_set(path, limit=2) == 2
        reads = [round(call.reads) for call in read_hot_set(path, "app")]
        assert sorted(reads) == [4, 20]
        assert await app.warming.save_hot_set(path, limit=0) == 0
        assert read_hot_set(path, "app") == []
        report = await app.warming.replay_hot_set(path)
        assert conclusions(report) == {}
        for wrong, error in ((-1, ValueError), ("2", TypeError)):
            with pytest.raises(error, match="limit"):
                await app.warming.save_hot_set(path, limit=wrong)  # type: ignore[arg-type]

    run_virtual(main(), clock)


tenant: ContextVar[str] = ContextVar("tenant")


def test_methods_and_what_cannot_be_written_are_left_out(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    """And take no place from what can."""

    class Symbol:
        def __init__(self, name: str) -> None:
            self.name = name

        def __cache_key__(self) -> str:
            return self.name

    async def main() -> None:
        app = App(clock, origin)

        class Shop:
            @race_safe_cached(app.cache, "method")
            async def price(self, symbol: str) -> str:
                return await origin.load(symbol)

            @race_safe_cached(app.cache, "keyed", key=lambda self, symbol: symbol)
            async def keyed(self, symbol: str) -> str:
                return await origin.load(symbol)

        @race_safe_cached(app.cache, "object")
        async def of_object(symbol: Any) -> str:
            return await origin.load(symbol.name)

        @race_safe_cached(app.cache, "varying", vary_on=tenant)
        async def varying(symbol: str) -> str:
            return await origin.load((symbol, tenant.get("nobody")))

        shop = Shop()
        for _ in range(9):
            await shop.price("A")
            await shop.keyed("A")
        await of_object(Symbol("A"))
        await varying("nobody's")
        tenant.set("ann")
        for _ in range(3):
            await varying("A")
        await app.price("A")
        assert await app.warming.save_hot_set(path, limit=4) == 2
        tenant.set("eve")
        await app.cache.clear()
        origin.asked.clear()
        report = await app.warming.replay_hot_set(path)
        assert len(report.loaded) == 2
        assert origin.asked == [("A", "ann"), ("A", None)]

    run_virtual(main(), clock)


def test_calls_that_cannot_be_made_any_more_are_counted(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    def hot(function: str, *arguments: object) -> HotCall:
        return HotCall(function, arguments, 5.0, 1.0)

    async def main() -> None:
        app = App(clock, origin)

        @race_safe_cached(app.cache, "keyed", key=lambda symbol: symbol.upper())
        async def keyed(symbol: Any) -> str:
            return await origin.load(symbol)

        class Shop:
            @race_safe_cached(app.cache, "method")
            async def price(self, symbol: str) -> str:
                return await origin.load(symbol)

        @race_safe_cached(app.cache, "strict")
        async def strict(symbol: Any) -> str:
            return str(symbol.real)

        calls = [
            hot("gone", "A"),
            hot("price", "A"),  # it took one argument then
            hot("price", "A", None, 3),
            hot("price", "A", None),
            hot("keyed", 5),  # of which `key=` makes nothing
            hot("keyed", "b"),
            hot("method", frozenset(), "A"),  # it was a function then
            hot("strict", "no number"),
        ]
        write_hot_set(path, "app", calls)
        report = await app.warming.replay_hot_set(path)
        assert report.unknown == 5
        assert conclusions(report) == {
            app.cache.key_for(app.price, "A"): "loaded",
            app.cache.key_for(keyed, "b"): "loaded",
            app.cache.key_for(strict, "no number"): "AttributeError",
        }
        assert str(report) == "2 loaded, 0 skipped, 1 failed in 0.2 s, 5 unknown"
        assert Shop.price.cache_info().currsize == 0  # type: ignore[attr-defined]

    run_virtual(main(), clock)


def test_a_call_that_is_in_the_file_twice_is_one(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    """As of two closures of one name: the key had two places in the report."""

    async def main() -> None:
        cache = AsyncSafeCache("app", clock=clock)
        warming = CacheWarmingStrategy(cache)

        def make(number: int) -> Any:
            @race_safe_cached(cache)
            async def price(symbol: str) -> str:
                return await origin.load((number, symbol))

            return price

        first, second = make(1), make(2)
        for price in (first, second):
            await price("A")
        assert await warming.save_hot_set(path) == 2
        await cache.clear()
        report = await warming.replay_hot_set(path)
        assert conclusions(report) == {cache.key_for(second, "A"): "loaded"}

    run_virtual(main(), clock)


def test_what_is_registered_keeps_its_times_when_it_is_replayed(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    """The usual start: register, replay, refresh. The call of the file took the schedule away."""

    async def main() -> None:
        before = App(clock, origin)
        await before.use()
        await before.warming.save_hot_set(path)
        app = App(clock, origin)
        app.warming.register(app.price, [("A",)], every=10, priority=3)
        await app.warming.replay_hot_set(path)
        await app.warming.start_background_refresh()
        origin.asked.clear()
        await asyncio.sleep(61)
        assert 5 <= origin.asked.count(("A", None)) <= 6
        assert app.warming._targets[
            app.cache._place(app.cache.key_for(app.price, "A"))[:2]
        ].priority
        await app.cache.aclose()

    run_virtual(main(), clock)


def truncated(text: bytes) -> bytes:
    return text[:-3]


def altered(text: bytes) -> bytes:
    return text.replace(b'"A"', b'"Z"')


def of_another_version(text: bytes) -> bytes:
    return text.replace(b'"version":1', b'"version":99')


def something_else(text: bytes) -> bytes:
    return b"name,value\n"


@pytest.mark.parametrize(
    ("change", "problem", "message"),
    [
        (truncated, "truncated", "ends too early, as after a copy that was interrupted"),
        (altered, "altered", "is not as it was written.*start without it, and save it anew"),
        (of_another_version, "version", "version of the format that this library does not read"),
        (something_else, "not a hot set", "is not a hot set"),
    ],
)
def test_of_a_file_that_is_not_as_it_was_saved_nothing_is_loaded(
    clock: VirtualClock,
    origin: Origin,
    path: Path,
    change: Callable[[bytes], bytes],
    problem: str,
    message: str,
) -> None:
    async def main() -> None:
        app = App(clock, origin)
        await app.use()
        await app.warming.save_hot_set(path)
        path.write_bytes(change(path.read_bytes()))
        await app.cache.clear()
        origin.asked.clear()
        with pytest.raises(HotSetError, match=message) as caught:
            await app.warming.replay_hot_set(path)
        assert (caught.value.problem, caught.value.path) == (problem, str(path))
        assert origin.asked == []
        assert repr(app.warming) == "<CacheWarmingStrategy of 'app', 0 calls, idle>"
        assert await app.cache.wait_warm(timeout=0)

    run_virtual(main(), clock)


def test_the_file_of_another_application_is_refused(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    async def main() -> None:
        other = App(clock, origin, "other")
        await other.use()
        await other.warming.save_hot_set(path)
        app = App(clock, origin)
        with pytest.raises(HotSetError, match="saved by another application"):
            await app.warming.replay_hot_set(path)
        with pytest.raises(FileNotFoundError):
            await app.warming.replay_hot_set(path.with_name("none"))
        assert len(app.cache) == 0

    run_virtual(main(), clock)


def test_a_file_that_cannot_be_written_stays_as_it_was(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    async def main() -> None:
        app = App(clock, origin)
        await app.use()
        with pytest.raises(OSError, match="none"):
            await app.warming.save_hot_set(path.parent / "none" / "hot")
        assert list(path.parent.iterdir()) == []

    run_virtual(main(), clock)


def test_a_hot_set_is_replayed_within_the_budget_and_the_time(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    async def main() -> None:
        calls = [HotCall("price", (str(n), None), 100.0 - n, 1.0) for n in range(20)]
        write_hot_set(path, "app", calls)
        app = App(clock, origin, concurrency=2)
        told: list[tuple[int, int]] = []
        report = await app.warming.replay_hot_set(
            path, timeout=1.1, progress=lambda *done: told.append(done)
        )
        assert origin.most == 2
        assert [key[0] for key in origin.asked[:8]] == [str(n) for n in range(8)]
        found = list(conclusions(report).values())
        assert (found.count("time"), len(found)) == (12, 20)
        assert told[-1] == (8, 20)
        assert not await app.cache.wait_warm(timeout=0)
        assert await app.cache.wait_warm(min_ratio=0.4, timeout=0)
        assert len((await app.warming.warm()).loaded) == 12

    run_virtual(main(), clock)


def test_a_large_hot_set_does_not_hold_up_the_loop(
    clock: VirtualClock, origin: Origin, path: Path
) -> None:
    write_hot_set(path, "app", [HotCall("price", (str(n), None), 2.0, 1.0) for n in range(2_000)])

    async def main() -> None:
        app = App(clock, origin, concurrency=1)
        steps: list[int] = []
        seen = 0

        async def watch() -> None:
            nonlocal seen
            while True:
                steps.append(len(app.warming._targets) - seen)
                seen = len(app.warming._targets)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        await app.warming.replay_hot_set(path, timeout=0)
        watching.cancel()
        assert sum(steps) == 2_000
        assert max(steps) <= 50
        await settle()

    run_virtual(main(), clock)


# -- the readiness probe


def test_a_cache_is_warm_when_all_that_is_wanted_was_loaded_once(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        app = App(clock, origin, concurrency=1)
        cache, warming = app.cache, app.warming
        begin = clock()
        assert await cache.wait_warm()
        assert clock() == begin, "there is nothing to wait for"
        warming.register(app.price, [(symbol,) for symbol in "ABCD"])
        assert not await cache.wait_warm(timeout=0)
        assert not await cache.wait_warm(timeout=0.5)
        assert clock() == begin + 0.5
        assert await cache.wait_warm(min_ratio=0, timeout=0)
        waiting = {
            ratio: asyncio.create_task(waited(cache, ratio)) for ratio in (0.25, 0.5, 0.6, 1.0)
        }
        await asyncio.sleep(0.01)
        begin = clock()
        report, _ = await asyncio.gather(warming.warm(), asyncio.wait(waiting.values()))
        assert len(report.loaded) == 4
        ends = {ratio: task.result() - begin for ratio, task in waiting.items()}
        assert ends == {
            ratio: pytest.approx(seconds, abs=0.06)
            for ratio, seconds in ((0.25, 0.25), (0.5, 0.5), (0.6, 0.75), (1.0, 1.0))
        }
        clock.advance(300)
        assert len(cache) == 0
        assert await cache.wait_warm(timeout=0), "what was loaded once, may expire"

    async def waited(cache: AsyncSafeCache, ratio: float) -> float:
        assert await cache.wait_warm(min_ratio=ratio, timeout=60)
        return clock()

    run_virtual(main(), clock)


def test_what_is_found_fresh_is_warm_and_what_fails_is_not(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        app = App(clock, origin)
        app.warming.register(app.price, [(symbol,) for symbol in "ABC"])
        origin.errors["C", None] = OSError("down")
        await app.price("A")
        await app.warming.warm()
        assert await app.cache.wait_warm(min_ratio=0.66, timeout=0)
        assert not await app.cache.wait_warm(timeout=0)
        origin.errors.clear()
        await app.price("C")
        assert not await app.cache.wait_warm(timeout=0), "nobody has looked since"
        await app.warming.warm()
        assert await app.cache.wait_warm(timeout=0)

    run_virtual(main(), clock)


def test_what_was_loaded_is_warm_though_whoever_asked_is_cancelled_then(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        app = App(clock, origin)
        app.warming.register(app.price, [("A",)])
        running = asyncio.create_task(app.warming.warm(progress=lambda *_: running.cancel()))
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(app.cache) == 1
        assert await app.cache.wait_warm(timeout=0)

    run_virtual(main(), clock)


def test_a_probe_counts_the_calls_of_every_strategy_alive(
    clock: VirtualClock, origin: Origin
) -> None:
    async def main() -> None:
        app = App(clock, origin)
        app.warming.register(app.price, [("A",)])
        other = CacheWarmingStrategy(app.cache)
        other.register(app.price, [("B",), ("C",), ("D",)])
        await app.warming.warm()
        assert await app.cache.wait_warm(min_ratio=0.25, timeout=0)
        assert not await app.cache.wait_warm(min_ratio=0.26, timeout=0)
        waiting = asyncio.create_task(app.cache.wait_warm(timeout=60))
        await asyncio.sleep(1)
        app.warming.register(app.price, [("E",)])  # later
        await other.warm()
        await asyncio.sleep(1)
        assert not waiting.done()
        await app.warming.warm()
        assert await waiting
        app.warming.register(app.price, [("F",)])
        assert not await app.cache.wait_warm(timeout=0)
        app.warming = other  # the other one is gone
        assert await app.cache.wait_warm(timeout=0)

    run_virtual(main(), clock)


def test_the_background_refresh_warms_too(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        app = App(clock, origin)
        app.warming.register(app.price, [("A",), ("B",)], every=10)
        await app.warming.start_background_refresh()
        begin = clock()
        assert await app.cache.wait_warm(timeout=60)
        assert 10 <= clock() - begin <= 12
        await app.cache.aclose()

    run_virtual(main(), clock)


def test_who_waits_for_a_cache_that_is_closed_is_told(clock: VirtualClock, origin: Origin) -> None:
    async def main() -> None:
        app = App(clock, origin)
        app.warming.register(app.price, [("A",)])
        waiting = asyncio.create_task(app.cache.wait_warm())
        await asyncio.sleep(1)
        await app.cache.aclose()
        with pytest.raises(CacheClosedError):
            await waiting
        with pytest.raises(CacheClosedError):
            await app.cache.wait_warm(min_ratio=0)

    run_virtual(main(), clock)


def test_what_is_gone_is_not_waited_for(clock: VirtualClock, origin: Origin) -> None:
    """A function that was closed, an instance that was collected: it never became warm."""

    async def main() -> None:
        app = App(clock, origin)
        app.warming.register(app.price, [("A",)])
        app.warming.register(app.report, [("B",)])
        await app.report.cache_close()  # type: ignore[attr-defined]
        report = await app.warming.warm()
        assert sorted(conclusions(report).values()) == ["gone", "loaded"]
        assert await app.cache.wait_warm(timeout=0)
        assert len(conclusions(await app.warming.warm())) == 1
        app.warming.register(app.report, [("C",)], every=5)
        assert not await app.cache.wait_warm(timeout=0)
        await app.warming.start_background_refresh()
        assert await app.cache.wait_warm(timeout=10)
        await app.cache.aclose()

    run_virtual(main(), clock)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_ratio": 1.5}, ValueError, "min_ratio=1.5 must be between 0 and 1: how much must"),
        ({"min_ratio": "all"}, TypeError, "min_ratio must be between 0 and 1"),
        ({"timeout": -1}, ValueError, "timeout=-1 must be finite seconds from 0"),
    ],
)
async def test_a_probe_is_checked(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await AsyncSafeCache().wait_warm(**options)
