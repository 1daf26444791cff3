"""Tags and dependencies, attacked: what they leave behind, and who is spared."""

import asyncio
import logging
import os
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import pytest

from async_safe_cache import AsyncSafeCache, LoadContext, _links, race_safe_cached

from .virtual import Loader, VirtualClock, at_once, run_virtual, settle

NOTHING = (0, 0, 0, 0)


def left_in(cache: AsyncSafeCache) -> tuple[int, int, int, int]:
    """Return what is held besides values: tags, nodes, kept edges, entries with facts."""
    store = cache._engine.store
    return len(store.tags._tagged), len(store.links.nodes), store.links._edges, store.tagged


async def _overwrite(cache: AsyncSafeCache, _: VirtualClock) -> None:
    for key in range(700):
        await cache.set(key, 2)


async def _expire(cache: AsyncSafeCache, clock: VirtualClock) -> None:
    clock.advance(11)
    await cache._sweep()


async def _evict(cache: AsyncSafeCache, _: VirtualClock) -> None:
    for number in range(1_000):
        await cache.set(f"other-{number}", 1)


async def _delete(cache: AsyncSafeCache, _: VirtualClock) -> None:
    await cache.delete(*reversed(range(700)))


async def _change(cache: AsyncSafeCache, _: VirtualClock) -> None:
    assert len(cache) == 700
    await cache.set("source", 2)
    assert len(cache) == 1


async def _commit(cache: AsyncSafeCache, _: VirtualClock) -> None:
    async with cache.transaction() as tx:
        tx.invalidate_tags("all")


WAYS: dict[str, Callable[[AsyncSafeCache, VirtualClock], Awaitable[None]]] = {
    "overwrite": _overwrite,
    "expire": _expire,
    "evict": _evict,
    "delete": _delete,
    "clear": lambda cache, _: cache.clear(),
    "change": _change,
    "commit": _commit,
    "close": lambda cache, _: cache.aclose(),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_of_edges_in_chains_that_are_cycles(way: str, clock: VirtualClock) -> None:
    """Each entry depends on one source, and on its neighbour in a ring of a hundred."""
    cache = AsyncSafeCache(clock=clock, max_entries=1_000)

    async def main() -> None:
        for number in range(700):
            ring, place = divmod(number, 100)
            sources = ["source", ring * 100 + (place + 1) % 100]
            tags = ["all", f"{number}"]
            await cache.get_or_load(number, Loader(), ttl=10, depends_on=sources, tags=tags)
        cache.check()
        assert left_in(cache) == (701, 701, 0, 700)
        await WAYS[way](cache, clock)
        cache.check()
        assert left_in(cache) == NOTHING

    run_virtual(main(), clock)


def test_an_invalidation_by_a_finaliser_inside_a_write_is_complete_after_it(
    clock: VirtualClock,
) -> None:
    """It is put off, and nobody comes back for a second slice."""
    cache = AsyncSafeCache(clock=clock)
    for number in range(1_200):
        at_once(cache.set(number, 1, tags="t"))
    with cache._engine.store.lock:  # as if the collector ran in the middle of a write
        assert at_once(cache.invalidate_tags("t")) == 0
    at_once(cache.set("any write", 1))
    assert len(cache) == 1


def test_a_cancelled_invalidation_is_complete_all_the_same(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        for number in range(3_000):
            await cache.set(number, 1, tags="t", depends_on="source" if number % 2 else ())
        task = asyncio.create_task(cache.invalidate_tags("t"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 0 < len(cache) < 3_000, "it is between two slices"
        await cache.set("new", 1, tags="t")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cache.peek("new") == 1
        assert len(cache) == 1

    run_virtual(main(), clock)


def test_a_plain_def_has_tags_and_dependencies_too(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    calls: list[str] = []

    @race_safe_cached(cache, "row", tags=lambda x: f"row:{x}")
    def row(x: int) -> int:
        calls.append("row")
        return x

    @race_safe_cached(cache, "page", depends_on=lambda x: (row, x))
    def page(x: int) -> str:
        calls.append("page")
        return f"page {row(x)}"

    for _ in range(2):
        assert page(1) == "page 1"
    assert calls == ["page", "row"]
    row.cache_invalidate(1)  # type: ignore[attr-defined]
    page(1)
    assert at_once(cache.invalidate_tags("row:1")) == 1
    page(1)
    assert calls == ["page", "row"] * 3
    assert "current()" in page.cache_source  # type: ignore[attr-defined]
    assert "current()" not in row.cache_source  # type: ignore[attr-defined]
    assert cache.stats().inconsistent_reads == 0


def test_a_load_of_another_version_is_not_joined_by_who_gives_none(clock: VirtualClock) -> None:
    """Who gives no version reads under that of the function, or of the cache."""
    cache = AsyncSafeCache(clock=clock, version=1)

    @race_safe_cached(cache, "f", version="v1")
    async def f(x: int) -> str:
        return "own"

    async def raw(_: int) -> Any:
        return await cache.get_or_load("raw", Loader("own"))

    async def main() -> None:
        reads: list[tuple[Callable[[int], Awaitable[str]], object]] = [
            (f, cache.key_for(f, 1)),
            (raw, "raw"),
        ]
        for read, key in reads:
            load = cache.get_or_load(key, Loader("other", seconds=5), version="other")
            other = asyncio.create_task(load)
            await settle()
            assert await read(1) == "own"
            assert await other == "other", "who asked for it has it"
            assert await read(1) == "own", "and it replaced nothing"

    run_virtual(main(), clock)


@pytest.mark.parametrize("on_abandon", ["cancel", "finish"])
def test_an_abandoned_load_that_is_set_apart_leaves_nothing_else(
    on_abandon: Literal["cancel", "finish"], clock: VirtualClock
) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def load(ctx: LoadContext) -> str:
        await asyncio.sleep(5)
        return "value"

    async def main() -> None:
        first = asyncio.create_task(
            cache.get_or_load("key", load, on_abandon=on_abandon, depends_on="source")
        )
        await settle()
        await cache.invalidate_tags("other")
        first.cancel()
        await settle()
        cache.check()
        await asyncio.sleep(10)
        assert await cache.delete("key") == (on_abandon == "finish")
        assert left_in(cache) == NOTHING
        assert not cache._engine.flights._apart

    run_virtual(main(), clock)


def test_kept_edges_stay_within_their_bound_when_a_sweep_takes_the_middle(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_links, "MOST_KEPT", 10)
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        for number in range(50):
            await cache.set(f"b{number}", 1, ttl=10, depends_on=f"a{number}")
            await cache.set(f"c{number}", 1, depends_on=f"b{number}")
        clock.advance(11)
        await cache._sweep()
        assert cache._engine.store.links._edges == 10
        alive = [number for number in range(50) if await cache.get(f"c{number}")]
        assert len(alive) == 10, "the others are gone: too much is allowed"
        for number in alive:
            await cache.delete(f"a{number}")
            assert await cache.get(f"c{number}") is None, "too little never"
        assert left_in(cache) == NOTHING
        assert cache.stats().inconsistent_reads == 0

    run_virtual(main(), clock)


@pytest.mark.parametrize("end", ["aclose", "drain", "fail", "cancel"])
def test_a_load_with_edges_leaves_none_however_it_ends(end: str, clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    load = Loader(OSError() if end == "fail" else 1, seconds=1)

    async def main() -> None:
        task = asyncio.create_task(
            cache.get_or_load("b", load, depends_on=["a", "c"], tags=["x", "y"])
        )
        await settle()
        assert left_in(cache)[1] == 3
        if end == "cancel":
            task.cancel()
        elif end != "fail":
            await cache.aclose(drain=end == "drain")
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(2)
        assert left_in(cache) == NOTHING

    run_virtual(main(), clock)


def test_no_tag_shows_in_logs_errors_or_reprs(
    caplog: pytest.LogCaptureFixture, clock: VirtualClock
) -> None:
    caplog.set_level(logging.DEBUG)
    cache = AsyncSafeCache("safe", clock=clock)
    shown: list[str] = []

    async def load(ctx: LoadContext) -> int:
        ctx.add_tags("secret-1")
        shown.append(repr(ctx))
        return 1

    async def main() -> None:
        await cache.set("key", 1, tags=["secret-2"], depends_on="secret-3")
        await cache.get_or_load("other", load, tags="secret-4")
        shown.append(repr(await cache.explain("key")))
        shown.append(f"{cache!r} {cache.health()} {cache.stats()!r}")
        bad: list[Any] = [["secret-5", 5], ["secret-6" * 99], [f"secret{n}" for n in range(65)]]
        for tags in (*bad, b"secret"):
            with pytest.raises((TypeError, ValueError)) as refused:
                await cache.set("key", 1, tags=tags)
            shown.append(str(refused.value))
        for sources in (["secret-7", object()], ["key"]):
            with pytest.raises((TypeError, ValueError)) as refused:
                await cache.set("key", 1, depends_on=sources)
            shown.append(str(refused.value))
        await cache.invalidate_tags("secret-2")
        await cache.aclose()

    run_virtual(main(), clock)
    shown += [record.getMessage() for record in caplog.records]
    assert not [text for text in shown if "secret" in text]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_keeps_tags_and_edges_of_entries_and_none_of_loads(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    def child() -> bool:
        cache.check()
        gone = at_once(cache.invalidate_tags("t")) == 1
        at_once(cache.delete("a"))
        return gone and not at_once(cache.get_many("bc")) and left_in(cache) == NOTHING

    async def main() -> None:
        await cache.set("b", 1, depends_on="a")
        await cache.set("c", 1, depends_on="b", tags="t")
        load = cache.get_or_load("d", Loader(seconds=1), depends_on="a", tags="t")
        task = asyncio.create_task(load)
        await settle()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if child() else 1)
            finally:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        await task
        assert await cache.get_many("bcd") == {"b": 1, "c": 1, "d": "value"}

    run_virtual(main(), clock)
