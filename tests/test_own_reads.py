"""What a transaction sees of its own writes, and what it is told of those of others."""

import asyncio
from typing import Any

import pytest

from async_safe_cache import MISSING, AsyncSafeCache, MissReason, TransactionConflictError
from benchmarks.commit_stress import stress

from .virtual import Loader, VirtualClock, run_virtual, settle


def test_own_reads_miss_what_depends_on_own_writes_at_any_distance(clock: VirtualClock) -> None:
    """a -> b -> c -> d, and c is evicted: what the commit removes is gone for its own reads."""

    async def main(change: str) -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.set("a", 1, tags="t")
        await cache.set("b", 1, depends_on="a")
        await cache.set("c", 1, depends_on="b", ttl=5)
        await cache.set("d", 1, depends_on="c")
        await cache.set("other", 1, depends_on="elsewhere")
        clock.advance(5)
        assert await cache.get("c") is None
        async with cache.transaction() as tx:
            assert await tx.get("d") == 1
            if change == "set":
                tx.set("a", 2)
            elif change == "delete":
                tx.delete("a")
            else:
                tx.invalidate_tags("t")
            own = await tx.get_many(["a", "b", "d", "other"])
            assert await cache.get("d") == 1, "nobody else sees it yet"
        assert own == await cache.get_many(["a", "b", "d", "other"])
        assert own == ({"a": 2, "other": 1} if change == "set" else {"other": 1})
        cache.check()

    for change in ("set", "delete", "tag"):
        run_virtual(main(change), clock)


def test_a_tag_that_has_expired_takes_nothing_with_it(clock: VirtualClock) -> None:
    """An expired source is no change for who depends on it, in own reads neither."""
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await cache.set("a", 1, tags="t", ttl=5)
        await cache.set("b", 1, depends_on="a")
        clock.advance(5)
        async with cache.transaction() as tx:
            tx.invalidate_tags("t")
            own = await tx.get("b")
        assert own == await cache.get("b") == 1

    run_virtual(main(), clock)


@pytest.mark.parametrize("change", ["update", "transaction"])
def test_the_removal_by_an_update_or_a_commit_is_a_conflict(
    change: str, clock: VirtualClock
) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def remove() -> None:
        if change == "update":
            await cache.update("a", lambda _: MISSING)
        else:
            async with cache.transaction() as other:
                other.delete("a")

    async def main() -> None:
        await cache.set("a", 1)
        with pytest.raises(TransactionConflictError):
            async with cache.transaction(on_conflict="raise") as tx:
                tx.set("b", await tx.get("a"))
                await asyncio.create_task(remove())
        assert await cache.get_many("ab") == {}

    run_virtual(main(), clock)


def test_a_block_that_loads_what_it_has_missed_is_told_so(clock: VirtualClock) -> None:
    """A load is the cache's, not the transaction's: what was read has changed."""
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        with pytest.raises(TransactionConflictError):
            async with cache.transaction(on_conflict="raise") as tx:
                assert await tx.get("a") is None
                assert await cache.get_or_load("a", Loader(1)) == 1
                tx.set("b", 1)
        async with cache.transaction(on_conflict="raise") as tx:
            assert await cache.get_or_load("a", Loader(2)) == await tx.get("a") == 1
            tx.set("b", 1)
        assert await cache.get("b") == 1

    run_virtual(main(), clock)


def test_a_value_too_large_leaves_the_rest_of_its_commit(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, max_memory_bytes=4_000)

    async def main() -> None:
        await cache.set_many({"a": 1, "b": 1, "c": 1})
        async with cache.transaction() as tx:
            tx.set("a", 2)
            tx.set("b", "x" * 10_000)
        assert await cache.get_many("abc") == {"a": 2, "c": 1}
        assert (await cache.lookup("b")).reason is MissReason.REJECTED
        assert cache.memory_bytes <= 4_000

    run_virtual(main(), clock)


def test_opposite_orders_end_and_the_last_commit_wins(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def write(keys: str, mark: int, seconds: float) -> None:
        async with cache.transaction() as tx:
            for key in keys:
                tx.set(key, mark)
                await asyncio.sleep(seconds)

    async def main() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(write("ab", 1, 2), write("ba", 2, 1))
        assert await cache.get_many("ab") == {"a": 1, "b": 1}

    run_virtual(main(), clock)


@pytest.mark.parametrize("turn", range(6))
def test_a_cancellation_at_any_await_leaves_all_or_nothing(turn: int, clock: VirtualClock) -> None:
    """A section is open, so that the commit waits too."""
    cache = AsyncSafeCache(clock=clock)

    async def block() -> None:
        async with cache.transaction() as tx:
            tx.set("a", 2)
            await asyncio.sleep(0)
            await tx.get("a")
            tx.delete("b")
            await asyncio.sleep(0)
            tx.invalidate_tags("t")

    async def main() -> None:
        await cache.set_many({"a": 1, "b": 1})
        await cache.set("c", 1, tags="t")
        before: dict[str, Any] = await cache.get_many("abc")
        async with cache.reading():
            task = asyncio.create_task(block())
            await settle(turn)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
        assert await cache.get_many("abc") == before
        await block()
        assert await cache.get_many("abc") == {"a": 2}

    run_virtual(main(), clock)


def test_readers_without_a_lock_see_no_half_of_a_commit() -> None:
    """In other threads, by peek and by hits; two single writes instead show what they would see."""
    for counts in stress(0.5).values():
        assert counts.commits
        assert counts.pairs
        assert counts.mixes == 0
    assert any(counts.mixes for counts in stress(0.5, together=False).values())
