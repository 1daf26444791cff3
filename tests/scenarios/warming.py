"""Values are loaded before anybody asks: once, in the background, and never over what is newer."""

import asyncio
import itertools
from functools import partial
from typing import Any

from async_safe_cache import (
    AsyncSafeCache,
    CacheClosedError,
    CacheWarmingStrategy,
    LoadContext,
    WarmingReport,
    race_safe_cached,
)
from async_safe_cache.testing import pause

from . import Lab, scenario
from .coalescing import ended
from .fences import Database
from .freshness import Change, committed

KEYS = ("a", "b", "c")


def strategy(cache: AsyncSafeCache, **options: Any) -> CacheWarmingStrategy:
    return CacheWarmingStrategy(cache, stagger=0.0, **options)


def idle(warming: CacheWarmingStrategy) -> None:
    """Check that nothing of it runs or waits."""
    pace = warming._pace
    assert (pace.running, pace.waiting) == (0, 0), "a share of the budget is lost"
    assert not pace._turns
    assert not pace._left


def refreshers() -> int:
    """Return how many tasks of background refreshes there are."""
    return sum("efresher" in task.get_name() for task in asyncio.all_tasks())


def accounted(report: WarmingReport, keys: int) -> None:
    """Check that each key is in the report, once."""
    named = [*report.loaded, *report.skipped, *report.failed]
    assert len(named) == len(set(named)) == keys, report


# -- once


@scenario(kills=(), cancel=("warmer",))
async def warming_accounts_for_every_key_and_overwrites_nothing(lab: Lab) -> None:
    """Each key is loaded, skipped or failed; what was set meanwhile stays; each loads once."""
    cache = lab.cache()
    warming = strategy(cache, concurrency=1)  # so one waits for its turn while another loads
    begun: list[object] = []

    async def load(ctx: LoadContext) -> str:
        begun.append(ctx.key)
        await pause(0.4)
        if ctx.key == "c":
            raise OSError("the origin")
        return "loaded"

    warming.register(KEYS, load)

    async def put() -> None:
        await cache.set("b", "set")
        await pause()
        await cache.set("a", "set")

    got = await ended(
        lab,
        victims=("warmer",),
        warmer=warming.warm,
        writer=put,
        other=warming.warm,
        reader=partial(cache.get_or_load, "b", load),
    )
    await asyncio.sleep(1)
    idle(warming)
    for report in (got.get("warmer"), got["other"]):
        if report is not None:
            accounted(report, 3)
            assert {type(error) for error in report.failed.values()} <= {OSError}
            assert set(report.skipped.values()) <= {"fresh"}
    assert got["other"].failed or "c" in begun
    assert got["reader"] in ("set", "loaded")
    if "warmer" in got:  # else a load that was left, and cleaned up, is begun once more
        assert await cache.get_many(["a", "b"]) == {"a": "set", "b": "set"}
        assert begun.count("a") <= 1


@scenario(kills=(), cancel=("warmer",))
async def warming_does_not_undo_a_delete(lab: Lab) -> None:
    """What was loaded for warming before a delete is not there after it."""
    cache, source = lab.cache(), Database()
    warming = strategy(cache, concurrency=1)
    warming.register(KEYS, lab.loader(source.read, longest=0.4), tags="t")

    async def update() -> None:
        source.version = 2
        await cache.delete("a")
        assert await cache.get("a", 2) == 2
        await cache.invalidate_tags("t")
        assert set((await cache.get_many(KEYS)).values()) <= {2}

    await ended(lab, victims=("warmer",), warmer=warming.warm, writer=update)
    await asyncio.sleep(1)
    assert set((await cache.get_many(KEYS)).values()) <= {2}
    idle(warming)


@scenario(kills=(), cancel=("one", "two"))
async def two_that_warm_the_same_load_each_key_once(lab: Lab) -> None:
    """One joins the loads of the other, or finds them fresh; cancelled, it takes none along."""
    cache = lab.cache()
    warming = strategy(cache, concurrency=2)
    warming.register(KEYS, lab.loader(longest=0.4))
    other = strategy(cache, concurrency=1)
    other.register(KEYS, lab.loader(longest=0.4))
    got = await ended(lab, victims=("one", "two"), one=warming.warm, two=other.warm)
    await asyncio.sleep(1)
    for report in got.values():
        accounted(report, 3)
        assert not report.failed
    assert set(await cache.get_many(KEYS)) == set(KEYS)
    assert lab.loads == 3 or len(got) < 2
    assert lab.loads <= 5
    idle(warming)
    idle(other)


@scenario(kills=())
async def warming_ends_at_its_time(lab: Lab) -> None:
    """At its timeout what is under way is given up, and everything left is reported as skipped."""
    cache = lab.cache()
    warming = strategy(cache, concurrency=2)
    warming.register(KEYS, lab.loader(longest=4.0, clean_up=1))

    async def warm() -> WarmingReport:
        begun = lab.clock.now
        report = await warming.warm(timeout=1.5)
        assert lab.clock.now <= begun + 1.5
        return report

    got = await ended(lab, warmer=warm, reader=partial(cache.get, "a"))
    report = got["warmer"]
    accounted(report, 3)
    assert set(report.skipped.values()) <= {"time"}
    assert not report.failed
    await asyncio.sleep(1)
    assert len(await cache.get_many(KEYS)) == len(report.loaded)
    idle(warming)


@scenario(kills=(), cancel=("closer", "warmer"))
async def warming_ends_with_the_cache(lab: Lab) -> None:
    """A cache that closes ends what warms it: with a report, or told that it is closed."""
    cache = lab.cache()
    warming = strategy(cache, concurrency=2)
    warming.register(KEYS, lab.loader(longest=0.4, clean_up=1))
    got = await ended(
        lab,
        allowed=(CacheClosedError,),
        victims=("closer", "warmer"),
        warmer=warming.warm,
        closer=cache.aclose,
    )
    report = got.get("warmer")
    if isinstance(report, WarmingReport):
        accounted(report, 3)
        assert {type(error) for error in report.failed.values()} <= {CacheClosedError}
    await cache.aclose()
    assert lab.running == 0
    idle(warming)


@scenario(kills=(), cancel=("warmer",))
async def warming_takes_the_place_of_nothing_that_is_read_more(lab: Lab) -> None:
    """In a full cache what is read stays, whatever is warmed, and however its reads fall."""
    cache = lab.cache(max_entries=2)
    loads: list[str] = []

    @race_safe_cached(cache, "read")
    async def read(key: str) -> str:
        loads.append(key)
        await pause(0.2)
        return key

    warming = strategy(cache, concurrency=2)
    warming.register(read, [("cold",), ("colder",)])

    async def follow() -> None:
        for _ in range(3):
            assert await read("hot") == "hot"
            assert await read("warm") == "warm"
            await pause(0.3)

    await follow()
    got = await ended(lab, victims=("warmer",), reader=follow, warmer=warming.warm)
    assert loads == ["hot", "warm"], "what nobody reads was loaded for nothing, or evicted these"
    if "warmer" in got:
        accounted(got["warmer"], 2)
        assert set(got["warmer"].skipped.values()) == {"no room"}
    idle(warming)


# -- in the background


async def _background_undoes_nothing(lab: Lab, change: Change) -> None:
    """Change the source and the cache, while a key is loaded again and again."""
    cache, source = lab.cache(default_ttl=1_000), Database()
    load = lab.loader(source.read, longest=0.4)
    warming = strategy(cache, concurrency=1, popular=0)
    warming.register(["a"], load, every=1.0, tags="t")
    await warming.start_background_refresh(interval=0.25)

    async def update() -> int:
        await pause(4.0)
        source.version = 2
        await change(cache)
        seen: int = await cache.get_or_load("a", load, tags="t")
        return seen

    got = await ended(
        lab,
        victims=("writer",),
        writer=update,
        reader=partial(cache.get_or_load, "a", load, tags="t"),
    )
    if "writer" in got:
        assert got["writer"] == 2
        assert await cache.get("a", 2) == 2
    await asyncio.sleep(4)
    assert await cache.get("a") == source.version
    assert lab.most <= 2, "more than the fenced load and its successor"
    await warming.stop()
    assert not refreshers()
    idle(warming)
    await cache.aclose()


@scenario(kills=(), cancel=("writer",))
async def a_background_refresh_does_not_undo_a_delete(lab: Lab) -> None:
    """After delete() returned, no read sees what a scheduled load has brought."""
    await _background_undoes_nothing(lab, lambda cache: cache.delete("a"))


@scenario(kills=(), cancel=("writer",))
async def a_background_refresh_does_not_undo_a_set(lab: Lab) -> None:
    """After set() returned, no read sees what a scheduled load has brought."""
    await _background_undoes_nothing(lab, lambda cache: cache.set("a", 2))


@scenario(kills=())
async def a_background_refresh_does_not_undo_a_commit(lab: Lab) -> None:
    """After a commit, no read sees what a scheduled load has brought."""
    await _background_undoes_nothing(lab, committed)


@scenario(kills=())
async def a_background_refresh_does_not_undo_an_invalidation(lab: Lab) -> None:
    """After invalidate_tags(), no read sees what a scheduled load has brought."""
    await _background_undoes_nothing(lab, lambda cache: cache.invalidate_tags("t"))


@scenario(kills=(), cancel=("stopper", "closer"))
async def a_background_refresh_ends_when_it_is_stopped(lab: Lab) -> None:
    """When stop() or aclose() returned none of its tasks is left, and none of its loads."""
    cache = lab.cache(default_ttl=1_000)
    warming = strategy(cache, concurrency=2)
    warming.register(KEYS, lab.loader(longest=0.4, clean_up=2), every=0.5)
    await warming.start_background_refresh(interval=0.25)

    async def stop() -> None:
        await pause(2.0)
        await warming.stop()
        assert not refreshers(), "stop() left a task"
        idle(warming)

    async def close() -> None:
        await pause(2.0)
        await cache.aclose()
        assert not refreshers(), "aclose() left a task"
        assert lab.running == 0
        assert not cache._engine.flights.running
        idle(warming)

    await ended(lab, victims=("stopper", "closer"), stopper=stop, closer=close)
    await warming.stop()
    await cache.aclose()
    assert not refreshers()
    idle(warming)


@scenario(kills=(), cancel=("one", "two"))
async def a_background_refresh_that_is_started_twice_runs_once(lab: Lab) -> None:
    """Whoever starts it, and however often, one runs, and one stop() ends it."""
    cache = lab.cache(default_ttl=1_000)
    warming = strategy(cache, concurrency=1)
    warming.register(["a"], lab.loader(longest=0.4, clean_up=1), every=0.5)
    await warming.start_background_refresh(interval=0.25)
    await pause(1.0)
    start = partial(warming.start_background_refresh, interval=0.25)
    await ended(lab, victims=("one", "two"), one=start, two=start)
    assert lab.most <= 1
    await asyncio.sleep(2)
    assert lab.most <= 1
    await warming.stop()
    assert not refreshers(), "one runs on"
    assert len(cache._jobs()) == 1
    idle(warming)
    await cache.aclose()


@scenario(kills=(), cancel=("starter", "closer"))
async def a_refresh_that_is_started_as_the_cache_closes_leaves_it_closed(lab: Lab) -> None:
    """It is refused, or closed with the cache: it does not open it again."""
    cache = lab.cache(default_ttl=1_000)
    warming = strategy(cache, concurrency=1)
    warming.register(["a"], lab.loader(longest=0.4, clean_up=1), every=0.5)
    await warming.start_background_refresh(interval=0.25)
    await pause(1.0)
    got = await ended(
        lab,
        allowed=(CacheClosedError,),
        victims=("starter", "closer"),
        starter=partial(warming.start_background_refresh, interval=0.25),
        closer=cache.aclose,
    )
    assert cache.closed or "closer" not in got
    await asyncio.sleep(1)
    if cache.closed:
        assert not refreshers(), "it runs on in a closed cache"
    await warming.stop()
    await cache.aclose()
    assert not refreshers()
    idle(warming)


@scenario(kills=(), cancel=("asker",))
async def one_load_of_a_key_at_a_time_whoever_wants_it(lab: Lab) -> None:
    """Scheduled, warmed, asked for anew and read: loads of one key never run beside each other."""
    cache = lab.cache()
    running: dict[str, int] = {}

    @race_safe_cached(cache, "read", ttl=2.0)
    async def read(key: str) -> str:
        running[key] = running.get(key, 0) + 1
        assert running[key] == 1, "two loads of one key"
        try:
            await pause(0.4)
            return key
        finally:
            running[key] -= 1

    warming = strategy(cache, concurrency=2)
    warming.register(read, [("a",), ("b",)], every=1.0)
    await warming.start_background_refresh(interval=0.25)

    async def ask() -> None:
        for key in ("a", "b", "a"):
            await cache.refresh(read, key)
            await pause(1.0)

    async def follow() -> None:
        for _ in range(4):
            assert await read("a") == "a"
            await pause(1.0)

    await ended(lab, victims=("asker",), asker=ask, reader=follow, warmer=warming.warm)
    await warming.stop()
    assert not refreshers()
    idle(warming)
    await cache.aclose()


@scenario(kills=())
async def a_failing_key_is_left_alone_for_longer_each_time(lab: Lab) -> None:
    """The background refresh tries it again after its backoff, and the others all the while."""
    cache = lab.cache()
    begun: dict[object, list[float]] = {"good": [], "bad": []}

    async def load(ctx: LoadContext) -> int:
        begun[ctx.key].append(lab.clock.now)
        await pause(0.2)
        if ctx.key == "bad":
            raise OSError("the origin")
        return 1

    warming = strategy(cache, concurrency=1)
    warming.register(["good", "bad"], load, every=0.25)
    await warming.start_background_refresh(interval=0.25)
    await asyncio.sleep(8)
    await warming.stop()
    await cache.aclose()
    times = begun["bad"]
    for failures, (before, after) in enumerate(itertools.pairwise(times)):
        assert after - before >= 2.0**failures * 0.9, times
    assert len(times) >= 2
    assert len(begun["good"]) > len(times)
    idle(warming)
