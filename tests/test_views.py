"""Views: reads of one generation, and the writers who wait for them."""

import asyncio
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, MissReason, ReadOnlySectionError, ScopeError

from .virtual import Loader, VirtualClock, run_virtual, settle


@pytest.mark.parametrize("change", ["set", "set_many", "update", "transaction", "load"])
def test_what_is_stored_after_a_view_opened_is_a_miss_in_it(
    change: str, clock: VirtualClock
) -> None:
    """Never a mix: a of before beside b of after."""
    cache = AsyncSafeCache(clock=clock)

    async def write() -> None:
        if change == "set":
            await cache.set("b", 2)
        elif change == "set_many":
            await cache.set_many({"b": 2})
        elif change == "update":
            await cache.update("b", lambda _: 2)
        elif change == "transaction":
            async with cache.transaction() as tx:
                tx.set("b", 2)
        else:
            await cache.delete("b")
            await cache.get_or_load("b", Loader(2))

    async def main() -> None:
        await cache.set_many({"a": 1, "b": 1})
        async with cache.reading() as view:
            await asyncio.create_task(write())
            assert await cache.get("b") == 2, "it did not wait for ever"
            assert await view.get_many("ab") == {"a": 1}
            assert (await view.lookup("b")).reason is MissReason.ABSENT
            async with cache.reading() as later:
                assert await later.get_many("ab") == {"a": 1, "b": 2}
            assert await view.get("b") is None

    run_virtual(main(), clock)


def test_a_load_that_ends_inside_a_section_lands_and_is_not_in_its_view(
    clock: VirtualClock,
) -> None:
    """The section waits for the load, which writes: nobody waits for the other."""
    cache = AsyncSafeCache(clock=clock)

    async def load() -> int:
        await asyncio.sleep(1)
        await cache.set("by the load", 1)
        await cache.delete("a")
        return 1

    async def main() -> None:
        await cache.set("a", 1)
        begun = clock.now
        async with cache.reading() as view:
            assert await cache.get_or_load("key", load) == 1
            assert clock.now - begun == pytest.approx(1), "its writes did not wait"
            assert await view.get_many(["key", "by the load", "a"]) == {}
        assert await cache.get_many(["key", "by the load", "a"]) == {"key": 1, "by the load": 1}
        assert cache.health()["cache_stats"]["lock_waits"] == 0

    run_virtual(main(), clock)


@pytest.mark.parametrize("wait", [0.0, 0.1, 3.0])
def test_a_writer_waits_for_a_section_no_longer_than_it_is_told(
    wait: float, clock: VirtualClock
) -> None:
    cache = AsyncSafeCache(clock=clock, section_wait=wait)

    async def main() -> None:
        begun = clock.now
        async with cache.reading():
            writer = asyncio.create_task(cache.set("a", 1))
            await asyncio.sleep(1)
            assert writer.done() == (wait < 1)
        await writer
        assert clock.now - begun == pytest.approx(1)
        stats = cache.health()["cache_stats"]
        assert stats["lock_waits"] == (wait > 0)
        assert stats["longest_lock_wait_seconds"] == pytest.approx(min(wait, 1))

    run_virtual(main(), clock)


def test_sections_nest_and_the_outer_one_still_binds(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        async with cache.reading():
            async with cache.reading():
                writer = asyncio.create_task(cache.set("a", 1))
                await settle()
            with pytest.raises(ReadOnlySectionError):
                await cache.set("a", 2)
            assert not writer.done()
        await cache.set("b", 1)
        await writer
        assert await cache.get_many("ab") == {"a": 1, "b": 1}

    run_virtual(main(), clock)


def test_a_view_whose_opening_was_cancelled_was_never_open(clock: VirtualClock) -> None:
    """It waited behind a writer, who waited for another section."""
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        view: Any = cache.reading()

        async def read() -> None:
            async with view:
                raise AssertionError("it was cancelled before")

        async with cache.reading():
            writer = asyncio.create_task(cache.set("a", 1))
            await settle()
            reader = asyncio.create_task(read())
            await settle()
            reader.cancel()
            await settle()
            assert reader.cancelled()
            with pytest.raises(ScopeError, match="not open"):
                await view.get("a")
        await writer
        await cache.set("a", 2)
        assert cache.peek("a") == 2

    run_virtual(main(), clock)


def test_each_read_of_a_view_is_one_call(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await cache.set_many({"a": 1, "b": 1})
        before = cache.stats()
        async with cache.reading() as view:
            await asyncio.create_task(cache.set("b", 2))
            await view.get("a")
            await view.lookup("b")
            await view.get_many("abc")
        counted = cache.stats() - before
        assert (counted.hits, counted.misses) == (2, 3)
        assert sum(counted.misses_by_reason.values()) == counted.misses

    run_virtual(main(), clock)
