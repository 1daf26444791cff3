"""update and increment: no update is lost. lock: a section of the user's own."""

import asyncio
import threading
from typing import Any

import pytest

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    LockDeadlockError,
    TransactionConflictError,
    race_safe_cached,
)

from .virtual import VirtualClock, run_virtual


async def plus_slowly(value: int) -> int:
    await asyncio.sleep(0.001)
    return value + 1


def test_a_thousand_increments_at_once_are_a_thousand(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await asyncio.gather(
            *(cache.increment("n") for _ in range(500)),
            *(cache.update("n", plus_slowly, default=0) for _ in range(500)),
        )
        assert await cache.get("n") == 1_000
        assert not cache._updates.locks._places

    run_virtual(main(), clock)


def test_increments_of_two_threads_with_loops_of_their_own_all_count() -> None:
    cache = AsyncSafeCache()

    async def many() -> None:
        for _ in range(500):
            await cache.increment("n")

    threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.peek("n") == 1_000


def test_a_set_in_between_is_not_lost(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    seen: list[int] = []

    async def plus(value: int) -> int:
        seen.append(value)
        await asyncio.sleep(1)
        return value + 1

    async def main() -> None:
        await cache.set("n", 1)
        task = asyncio.create_task(cache.update("n", plus))
        await asyncio.sleep(0.5)
        await cache.set("n", 100)
        assert await task == 101
        assert seen == [1, 100]
        assert await cache.get("n") == 101

    run_virtual(main(), clock)


def test_a_load_under_way_does_not_undo_an_update(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def load() -> int:
        await asyncio.sleep(1)
        return 7

    async def main() -> None:
        early = asyncio.create_task(cache.get_or_load("n", load))
        await asyncio.sleep(0.5)
        assert await cache.increment("n", by=2) == 2
        assert await early == 7
        assert await cache.get("n") == 2

    run_virtual(main(), clock)


def test_the_deadline_the_tags_and_the_sources_stay_unless_given(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await cache.set("n", 1, ttl=10, tags="t", depends_on="source")
        clock.advance(4)
        await cache.increment("n")
        assert (await cache.lookup("n")).ttl_left == pytest.approx(6)
        assert (await cache.explain("n")).tags == ("t",)
        await cache.delete("source")
        assert await cache.get("n") is None
        await cache.set("n", 1, ttl=10, tags="t")
        await cache.update("n", lambda value: value, ttl=None, tags="other")
        assert (await cache.explain("n")).tags == ("other",)
        assert (await cache.explain("n")).ttl_left is None

    run_virtual(main(), clock)


def test_a_function_that_fails_changes_nothing_and_missing_removes(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await cache.set("n", 1)

        def fail(_: object) -> int:
            raise OSError

        with pytest.raises(OSError):
            await cache.update("n", fail)
        with pytest.raises(TypeError, match="only once"):
            await cache.update("n", lambda _: iter(()))
        with pytest.raises(TypeError, match="fn must be"):
            await cache.update("n", 5)  # type: ignore[arg-type]
        assert await cache.get("n") == 1
        assert await cache.update("n", lambda _: MISSING) is MISSING
        assert (await cache.lookup("n")).reason == "DELETED"
        assert await cache.update("n", lambda value: value) is MISSING
        await cache.set("text", "x")
        with pytest.raises(TypeError, match="needs a number, not str"):
            await cache.increment("text")
        with pytest.raises(TypeError, match="by must be a number"):
            await cache.increment("n", by=True)

    run_virtual(main(), clock)


def test_a_function_that_deletes_or_writes_its_own_key_ends(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def deletes(value: Any) -> int:
        await cache.delete("n")
        return 0 if value is MISSING else value + 1

    async def writes(_: Any) -> int:
        await cache.set("n", 5)
        return 6

    async def updates(_: Any) -> int:
        return await cache.update("n", plus_slowly)

    async def main() -> None:
        await cache.set("n", 1)
        assert await cache.update("n", deletes) == 0
        with pytest.raises(TransactionConflictError, match="an update"):
            await cache.update("n", writes)
        assert await cache.get("n") == 5
        with pytest.raises(LockDeadlockError):
            await cache.update("n", updates)
        assert await cache.increment("n") == 6

    run_virtual(main(), clock)


# -- lock


def test_a_lock_is_exclusive_per_key_and_shared_by_readers(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    @race_safe_cached(cache, "f")
    async def f(x: int) -> int:
        return x

    key = f.cache_key(1)  # type: ignore[attr-defined]

    async def hold(mode: Any, *keys: object) -> float:
        async with cache.lock(*keys, mode=mode):
            await asyncio.sleep(1)
            return clock.now

    async def main() -> None:
        begun = clock.now
        ends = await asyncio.gather(
            hold("writer", "a", key),
            hold("writer", key, "a"),
            hold("reader", "b"),
            hold("reader", "b"),
            hold("writer", "b"),
        )
        assert [end - begun for end in ends] == pytest.approx([1, 2, 1, 1, 2])
        assert await cache.get("a") is None, "a lock is no entry"
        assert cache.health()["cache_stats"]["lock_waits"] == 2
        with pytest.raises(ValueError, match="mode"):
            cache.lock("a", mode="both")  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            cache.lock()
        async with cache.lock("a"):
            with pytest.raises(LockDeadlockError):
                async with cache.lock("a"):
                    raise AssertionError

    run_virtual(main(), clock)


def test_tags_alone_are_given_and_the_sources_stay(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await cache.set("n", 1, tags="old", depends_on="source")
        await cache.update("n", lambda value: value + 1, tags="new")
        assert await cache.invalidate_tags("old") == 0
        assert (await cache.explain("n")).depends_on == 1
        await cache.update("n", lambda value: value + 1, depends_on="another")
        assert (await cache.explain("n")).tags == ("new",)
        await cache.set("source", 1)
        assert await cache.get("n") == 3
        await cache.set("another", 1)
        assert await cache.get("n") is None

    run_virtual(main(), clock)


def test_a_deadline_does_not_move_while_an_update_waits(clock: VirtualClock) -> None:
    """A counter of ten seconds, incremented all the time beside readers, ends after ten."""
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        begun = clock.now
        await cache.set("n", 0, ttl=10)
        for _ in range(20):
            async with cache.reading():
                await asyncio.create_task(cache.increment("n"))  # waits for this section
        assert clock.now - begun == pytest.approx(2)
        assert (await cache.lookup("n")).ttl_left == pytest.approx(8)

        async def touched(value: int) -> int:
            await cache.touch("n", 100)
            return value

        await cache.update("n", touched)
        assert (await cache.lookup("n")).ttl_left == pytest.approx(100)

    run_virtual(main(), clock)


def test_functions_that_only_return_an_awaitable_queue_too(clock: VirtualClock) -> None:
    """More of them than an update has attempts, each as slow as the others."""
    cache = AsyncSafeCache(clock=clock)
    calls = 0

    class Plus:
        async def __call__(self, value: int) -> int:
            nonlocal calls
            calls += 1
            await asyncio.sleep(1)
            return value + 1

    async def main() -> None:
        await asyncio.gather(*[cache.update("n", Plus(), default=0) for _ in range(1_200)])
        assert await cache.get("n") == 1_200
        assert calls < 2 * 1_200

        async def inner(value: int) -> int:
            return value + await cache.update("n", Plus())

        with pytest.raises(TransactionConflictError):
            await cache.update("n", lambda value: inner(value))

    run_virtual(main(), clock)
