"""Caching switched off for a while: every call is a load of its own, and nothing is kept."""

import asyncio
import gc
import threading
import time
from typing import Any

import pytest

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    MissReason,
    RecursiveLoadError,
    get_async_safe_cache,
    race_safe_cached,
)
from async_safe_cache._engine import bypass
from async_safe_cache.testing._helpers import caching_disabled

from .virtual import Loader, VirtualClock, run_virtual, settle


def bypassed(cache: AsyncSafeCache) -> int:
    return cache.stats().misses_by_reason[str(MissReason.BYPASSED)]


async def test_calls_at_one_time_load_once_each_and_nothing_is_stored() -> None:
    """Also when they are equal: coalescing is off, as if there were no cache."""
    cache = AsyncSafeCache(clock=VirtualClock())
    running = most = 0

    @race_safe_cached(cache, "f")
    async def f(x: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return x

    with caching_disabled():
        assert await asyncio.gather(*(f(7) for _ in range(5))) == [7] * 5
        assert await f(7) == 7
        cache.check()
        assert (len(cache), cache.memory_bytes) == (0, 0)
    stats = cache.stats()
    assert (most, stats.loads, stats.misses, bypassed(cache)) == (5, 6, 6, 6)
    assert (stats.hits, stats.coalesced, stats.rejected) == (0, 0, 0)
    assert await f(7) == 7 == await f(7)
    assert (cache.stats().loads, cache.stats().hits) == (7, 1)


async def test_what_was_stored_before_is_neither_served_nor_there_afterwards() -> None:
    cache = AsyncSafeCache(clock=VirtualClock())
    loader = Loader(1, 2, 3)

    @race_safe_cached(cache, "f")
    async def f(x: int) -> Any:
        return await loader()

    await cache.set("raw", 1)
    assert await f(1) == 1
    with caching_disabled(cache):
        assert await f(1) == 2
        assert (await cache.get("raw"), cache.peek("raw")) == (None, MISSING)
    assert await f(1) == 3
    found = await cache.lookup("raw")
    assert (found.hit, found.reason) == (False, MissReason.CLEARED)


async def test_every_read_misses_with_the_reason_bypassed() -> None:
    cache = AsyncSafeCache(clock=VirtualClock())
    with caching_disabled(cache):
        await cache.set("k", 1)
        assert await cache.get("k") is None
        assert (await cache.lookup("k")).reason is MissReason.BYPASSED
        assert await cache.get_many(["k", "l"]) == {}
        assert await cache.get_or_load("k", Loader(5)) == 5
        assert cache.peek("k") is MISSING
        assert (await cache.delete("k"), await cache.touch("k", 5)) == (0, False)
        assert bypassed(cache) == cache.stats().misses == 5
    assert (await cache.lookup("k")).reason is MissReason.ABSENT


async def test_a_load_that_runs_when_the_block_begins_answers_and_is_not_stored() -> None:
    cache = AsyncSafeCache(clock=VirtualClock())
    gate = asyncio.Event()

    async def load() -> str:
        await gate.wait()
        return "old"

    before = asyncio.create_task(cache.get_or_load("k", load))
    await settle()
    with caching_disabled(cache):
        assert await cache.get_or_load("k", Loader("own")) == "own"
        gate.set()
        assert await before == "old"
        assert len(cache) == 0
    assert cache.peek("k") is MISSING


async def test_a_load_of_the_block_that_ends_after_it_is_not_stored_and_not_joined() -> None:
    cache = AsyncSafeCache(clock=VirtualClock())
    gate = asyncio.Event()

    async def load() -> str:
        await gate.wait()
        return "of the block"

    with caching_disabled(cache):
        late = asyncio.create_task(cache.get_or_load("k", load))
        await settle()
    assert await cache.get_or_load("k", Loader("new")) == "new"
    gate.set()
    assert await late == "of the block"
    assert cache.peek("k") == "new"


async def test_one_cache_is_switched_off_and_no_other() -> None:
    one, other = AsyncSafeCache("one"), AsyncSafeCache("other")
    await other.set("k", 1)
    with caching_disabled(one):
        await one.set("k", 1)
        assert (await one.get("k"), await other.get("k")) == (None, 1)


async def test_without_a_cache_all_are_switched_off_also_those_made_in_the_block() -> None:
    named = await get_async_safe_cache("bypassed")
    old = AsyncSafeCache("old")
    await old.set("k", 1)
    with caching_disabled():
        young = AsyncSafeCache("young")
        for cache in (named, old, young):
            await cache.set("k", 2)
            assert await cache.get("k") is None
    for cache in (named, old, young):
        await cache.set("k", 3)
        assert await cache.get("k") == 3
    await named.aclose()


@pytest.mark.parametrize("everywhere", [False, True])
async def test_blocks_that_overlap_end_when_the_last_one_does(everywhere: bool) -> None:
    cache = AsyncSafeCache()
    first, second = (bypass(None if everywhere else cache._engine) for _ in range(2))
    first.__enter__()
    second.__enter__()
    for block in (first, second):  # not in the order of a stack: they may belong to two tasks
        await cache.set("k", 1)
        assert await cache.get("k") is None
        block.__exit__(None, None, None)
    await cache.set("k", 1)
    assert await cache.get("k") == 1


async def test_an_exception_in_the_block_switches_caching_on_again() -> None:
    cache = AsyncSafeCache()
    for one in (cache, None):
        with pytest.raises(KeyError), caching_disabled(one):
            raise KeyError
    await cache.set("k", 1)
    assert await cache.get("k") == 1


def test_a_clock_that_fails_at_the_begin_leaves_caching_on() -> None:
    def broken() -> float:
        if fails:
            raise OSError
        return 1.0

    fails = False
    cache = AsyncSafeCache(clock=broken)
    fails = True
    with pytest.raises(OSError), caching_disabled(cache):
        raise AssertionError("not reached")
    fails = False
    assert not cache._engine.store.bypassed


def test_a_cancelled_caller_cancels_its_own_load_and_no_other(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        loader = Loader("v", seconds=1)
        with caching_disabled(cache):
            tasks = [asyncio.create_task(cache.get_or_load("k", loader)) for _ in range(3)]
            await settle()
            tasks[0].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert (results[1:], loader.calls, loader.cancelled) == (["v", "v"], 3, 1)

    run_virtual(main(), clock)


async def test_a_load_that_should_be_finished_is_cancelled_for_nothing_would_keep_its_value() -> (
    None
):
    cache = AsyncSafeCache(clock=VirtualClock(), on_abandon="finish")
    loader = Loader("v", seconds=3600)
    with caching_disabled(cache):
        task = asyncio.create_task(cache.get_or_load("k", loader))
        await settle()
        task.cancel()
        await settle()
    assert (loader.calls, loader.cancelled) == (1, 1)
    cache.check()


async def test_a_failing_load_raises_and_is_not_remembered() -> None:
    cache = AsyncSafeCache(clock=VirtualClock(), negative={KeyError: 60})
    loader = Loader(KeyError("gone"))
    with caching_disabled(cache):
        for _ in range(2):
            with pytest.raises(KeyError, match="gone"):
                await cache.get_or_load("k", loader)
    assert (loader.calls, len(cache)) == (2, 0)


async def test_a_load_that_asks_for_its_own_key_is_refused() -> None:
    """Without a flight to join it would start itself again for ever."""
    cache = AsyncSafeCache()

    @race_safe_cached(cache, "a")
    async def a(x: int) -> int:
        return await asyncio.create_task(b(x))

    @race_safe_cached(cache, "b")
    async def b(x: int) -> int:
        return await a(x)

    @race_safe_cached(cache, "down")
    async def down(x: int) -> int:
        return x and await down(x - 1)

    with caching_disabled():
        with pytest.raises(RecursiveLoadError, match="b -> a -> b"):
            await asyncio.wait_for(a(1), 5)
        assert await down(50) == 0
    stats = cache.stats()
    assert stats.calls == stats.hits + stats.misses + stats.coalesced
    assert stats.misses == 53
    cache.check()


def test_a_plain_function_that_calls_itself_is_refused_and_runs_otherwise() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache, "f")
    def f(x: int) -> int:
        return f(x) if x else 0

    with caching_disabled(cache):
        with pytest.raises(RecursiveLoadError):
            f(1)
        assert f(0) == 0 == f(0)
    assert (cache.stats().loads, len(cache)) == (3, 0)


def test_threads_do_not_wait_for_each_other() -> None:
    cache = AsyncSafeCache()
    both = threading.Barrier(2, timeout=5)

    @race_safe_cached(cache, "f")
    def f(x: int) -> int:
        both.wait()
        return x

    results: list[int] = []
    with caching_disabled(cache):
        threads = [threading.Thread(target=lambda: results.append(f(1))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
    assert results == [1, 1]


async def test_a_refresh_loads_and_stores_nothing() -> None:
    cache = AsyncSafeCache()
    threads: set[int] = set()

    @race_safe_cached(cache, "slow")
    async def slow(x: int) -> int:
        return x

    @race_safe_cached(cache, "plain")
    def plain(x: int) -> int:
        threads.add(threading.get_ident())
        return x

    with caching_disabled(cache):
        assert await cache.refresh(slow, 1) == await cache.refresh(plain, 1) == 1
    assert (len(cache), cache.stats().misses, cache.stats().loads) == (0, 0, 2)
    assert threading.get_ident() not in threads
    await cache.aclose()


async def test_closing_answers_those_who_wait_for_a_load_of_their_own() -> None:
    cache = AsyncSafeCache()
    loader = Loader(seconds=3600)
    with caching_disabled(cache):
        waiting = asyncio.create_task(cache.get_or_load("k", loader))
        await settle()
        await cache.aclose()
        with pytest.raises(Exception, match="closed"):
            await waiting
    assert loader.cancelled == 1


def test_a_hit_pays_nothing_for_the_switch() -> None:
    """The wrapper of a function does not know of it."""

    @race_safe_cached(AsyncSafeCache(), "f")
    async def f(x: int) -> int:
        return x

    source: str = f.cache_source  # type: ignore[attr-defined]
    assert "bypass" not in source
    assert "off" not in source


def test_the_switch_keeps_no_cache_alive() -> None:
    from async_safe_cache import _engine

    gc.collect()
    before = len(_engine._engines)
    caches = [AsyncSafeCache() for _ in range(10)]
    with caching_disabled():
        assert len(_engine._engines) == before + 10
    del caches
    gc.collect()
    assert len(_engine._engines) == before


def test_no_value_slips_in_while_threads_write_and_the_switch_is_thrown() -> None:
    cache = AsyncSafeCache(max_entries=64)
    stop = threading.Event()

    @race_safe_cached(cache, "f")
    def f(x: int) -> int:
        return x

    def work() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            f(n % 128)
            asyncio.run(cache.set(n % 16, n)) if n % 50 == 0 else None

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            with caching_disabled(cache):
                for _ in range(5):
                    assert (len(cache._engine.store.order), cache.memory_bytes) == (0, 0)
                    time.sleep(0.0005)
            time.sleep(0.0005)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert cache.stats().hits > 0  # between the blocks it was a cache


async def test_what_is_no_cache_cannot_be_switched_off() -> None:
    message = "cache must be an AsyncSafeCache or None, not str"
    with pytest.raises(TypeError, match=message), caching_disabled("prices"):  # type: ignore[arg-type]
        pass


def test_the_switch_works_in_virtual_time_and_in_the_next_loop() -> None:
    clock = VirtualClock()
    cache = AsyncSafeCache(clock=clock)
    loader = Loader(1, 2, seconds=30)

    async def call() -> Any:
        return await cache.get_or_load("k", loader)

    with caching_disabled(cache):
        assert [run_virtual(call(), clock), run_virtual(call(), clock)] == [1, 2]
    assert loader.calls == 2
