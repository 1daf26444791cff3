"""Transactions, set_many and views: many keys as one."""

import asyncio
import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_safe_cache import (
    AsyncSafeCache,
    CacheClosedError,
    MissReason,
    ReadOnlySectionError,
    ScopeError,
    TransactionConflictError,
    race_safe_cached,
)

from .virtual import VirtualClock, run_virtual


def elsewhere(call: Callable[[], Any]) -> Any:
    """Run *call* in another thread; a worker pool's end would hang virtual time."""
    done: list[Any] = []

    def work() -> None:
        try:
            done.append(call())
        except Exception as error:
            done.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return done[0]


def test_a_commit_applies_everything_at_once(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await cache.set_many({"a": 1, "b": 1})
        await cache.set("tagged", 1, tags="t")
        async with cache.transaction() as tx:
            tx.set("a", 2, ttl=10, tags="mine")
            tx.delete("b")
            tx.invalidate_tags("t")
            assert await cache.get_many(["a", "b", "tagged"]) == {"a": 1, "b": 1, "tagged": 1}
            assert await tx.get_many(["a", "b", "tagged"]) == {"a": 2}
            assert await tx.get("b", "gone") == "gone"
        assert await cache.get_many(["a", "b", "tagged"]) == {"a": 2}
        assert (await cache.lookup("b")).reason is MissReason.DELETED
        assert (await cache.lookup("a")).ttl_left == 10
        assert await cache.invalidate_tags("mine") == 1

    run_virtual(main(), clock)


def test_what_is_staged_before_an_invalidation_goes_with_it(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        async with cache.transaction() as tx:
            tx.set("before", 1, tags="t")
            tx.invalidate_tags("t")
            tx.set("after", 1, tags="t")
            assert await tx.get("before") is None
        assert await cache.get_many(["before", "after"]) == {"after": 1}

    run_virtual(main(), clock)


@pytest.mark.parametrize("how", ["error", "cancelled"])
def test_what_fails_inside_leaves_nothing(how: str, clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await cache.set("a", 1, tags="t")

        async def block() -> None:
            async with cache.transaction(on_conflict="raise") as tx:
                tx.set("a", 2)
                tx.set("b", 2)
                tx.invalidate_tags("t")
                await tx.get("c")
                await asyncio.sleep(1)
                raise OSError

        task = asyncio.create_task(block())
        await asyncio.sleep(0.5)
        if how == "cancelled":
            task.cancel()
        with pytest.raises((OSError, asyncio.CancelledError)):
            await task
        assert await cache.get_many(["a", "b"]) == {"a": 1}
        assert not cache._engine.watches

    run_virtual(main(), clock)


def test_a_commit_cancelled_while_it_waits_for_a_section_leaves_nothing(
    clock: VirtualClock,
) -> None:
    cache = AsyncSafeCache(clock=clock, section_wait=10)

    async def main() -> None:
        async def block() -> None:
            async with cache.transaction() as tx:
                tx.set("a", 2)

        async with cache.reading():
            task = asyncio.create_task(block())
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(20)
        assert await cache.get("a") is None

    run_virtual(main(), clock)


def test_every_old_value_is_retired_before_a_new_one_is_published(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sees the new a, without the lock, finds no old b any more."""
    cache = AsyncSafeCache(clock=clock)
    store = cache._engine.store
    link = type(store)._link
    seen: list[set[Any]] = []

    def watching(self: Any, entry: Any) -> None:
        link(self, entry)
        if entry.value == "new":
            seen.append({each.value for each in entry.space.data.values()})

    async def main() -> None:
        await cache.set_many({"a": "old", "b": "old", "c": "old"})
        await cache.set("d", "old", depends_on="a")
        await cache.set("e", "old", tags="t")
        monkeypatch.setattr(type(store), "_link", watching)
        async with cache.transaction() as tx:
            tx.set("a", "new")
            tx.set("b", "new")
            tx.delete("c")
            tx.invalidate_tags("t")

    run_virtual(main(), clock)
    assert seen == [{"new"}, {"new"}]


def test_in_two_threads_a_new_value_is_never_beside_an_old_one() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache, "f")
    def f(name: str) -> int:
        return -1

    a, b = f.cache_key("a"), f.cache_key("b")  # type: ignore[attr-defined]
    stop = threading.Event()
    mixed: list[tuple[Any, Any]] = []
    reads = 0

    def read() -> None:
        nonlocal reads
        while not stop.is_set():
            first = f("a")
            second = f("b")
            if -1 < second < first:
                mixed.append((first, second))
            first, second = cache.peek(a, -1), cache.peek(b, -1)
            if -1 < second < first:
                mixed.append((first, second))
            reads += 1

    async def write() -> None:
        for number in range(3_000):
            async with cache.transaction() as tx:
                tx.set(a, number)
                tx.set(b, number)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        asyncio.run(write())
    finally:
        stop.set()
        thread.join()
    assert reads
    assert mixed == []


def test_a_load_under_way_does_not_undo_a_commit(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def load() -> int:
        await asyncio.sleep(1)
        return 1

    async def main() -> None:
        early = [asyncio.create_task(cache.get_or_load(key, load)) for key in "abc"]
        await asyncio.sleep(0.5)
        async with cache.transaction() as tx:
            tx.set("a", 2)
            tx.delete("b")
        await cache.set_many({"c": 2})
        assert await asyncio.gather(*early) == [1, 1, 1]
        assert await cache.get_many("abc") == {"a": 2, "c": 2}

    run_virtual(main(), clock)


def _changes() -> dict[str, Callable[[AsyncSafeCache], Any]]:
    async def commit(cache: AsyncSafeCache) -> None:
        async with cache.transaction() as tx:
            tx.set("a", 9)

    async def load(cache: AsyncSafeCache) -> None:
        await cache.get_or_load("absent", lambda: 1)

    return {
        "set": lambda cache: cache.set("a", 9),
        "set_many": lambda cache: cache.set_many({"a": 9}),
        "update": lambda cache: cache.update("a", lambda _: 9),
        "delete": lambda cache: cache.delete("a"),
        "expire": lambda cache: cache.expire("a"),
        "clear": lambda cache: cache.clear(),
        "tag": lambda cache: cache.invalidate_tags("t"),
        "source": lambda cache: cache.delete("source"),
        "commit": commit,
        "load": load,
    }


@pytest.mark.parametrize("change", sorted(_changes()))
@pytest.mark.parametrize("on_conflict", ["last", "raise"])
def test_a_change_of_what_was_read_is_a_conflict(
    change: str, on_conflict: Any, clock: VirtualClock
) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await cache.set("a", 1, tags="t", depends_on="source")

        async def block() -> None:
            async with cache.transaction(on_conflict=on_conflict) as tx:
                await tx.get_many(["a", "absent"])
                await _changes()[change](cache)
                tx.set("mine", 1)

        if on_conflict == "raise":
            with pytest.raises(TransactionConflictError):
                await block()
            assert await cache.get("mine") is None
        else:
            await block()
            assert await cache.get("mine") == 1
        assert not cache._engine.watches

    run_virtual(main(), clock)


def test_expiry_eviction_and_own_writes_are_no_conflict(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, max_entries=2)

    async def main() -> None:
        await cache.set("a", 1, ttl=1)
        await cache.set("b", 1)
        async with cache.transaction(on_conflict="raise") as tx:
            assert await tx.get_many("ab") == {"a": 1, "b": 1}
            clock.advance(2)
            await cache._sweep()
            await cache.set("x", 1)
            await cache.set("y", 1)
            tx.set("a", 2)
            assert await tx.get("a") == 2
        assert await cache.get("a") == 2

    run_virtual(main(), clock)


def test_a_forgotten_transaction_blocks_nobody_and_is_forgotten(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        tx = cache.transaction(on_conflict="raise")
        await tx.__aenter__()
        await tx.get("a")
        tx.set("a", 1)
        del tx
        gc.collect()
        await cache.set("a", 2)
        assert await cache.get("a") == 2
        assert not cache._engine.watches

    run_virtual(main(), clock)


def test_a_transaction_is_for_its_block_and_task_only(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        tx = cache.transaction()
        with pytest.raises(ScopeError, match="is not open yet"):
            tx.set("a", 1)
        async with tx:
            tx.set("a", 1)

            async def child() -> None:
                tx.set("a", 2)

            with pytest.raises(ScopeError, match="belongs to the task"):
                await asyncio.create_task(child())
            assert isinstance(elsewhere(partial(tx.delete, "a")), ScopeError)
        for use in (
            partial(tx.set, "a", 3),
            partial(tx.delete, "a"),
            partial(tx.invalidate_tags, "t"),
        ):
            with pytest.raises(ScopeError, match="has ended"):
                use()
        with pytest.raises(ScopeError, match="has ended"):
            await tx.get("a")
        with pytest.raises(ScopeError, match="entered before"):
            await tx.__aenter__()
        assert await cache.get("a") == 1
        with pytest.raises(ValueError, match="on_conflict"):
            cache.transaction(on_conflict="first")  # type: ignore[arg-type]

    run_virtual(main(), clock)


def test_a_cache_closed_meanwhile_takes_nothing(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        with pytest.raises(CacheClosedError):
            async with cache.transaction() as tx:
                tx.set("a", 1)
                await cache.aclose()
        await cache.start()
        assert len(cache) == 0
        await cache.aclose()
        with pytest.raises(CacheClosedError):
            async with cache.transaction():
                raise AssertionError

    run_virtual(main(), clock)


def test_what_cannot_be_staged_is_refused_and_the_rest_goes_on(clock: VirtualClock) -> None:
    def weigher(value: object) -> float:
        return {"heavy": 1e9, "light": 1.0}[str(value)]

    cache = AsyncSafeCache(clock=clock, weigher=weigher, max_memory_bytes=10_000)

    async def main() -> None:
        await cache.set("a", "light")
        async with cache.transaction() as tx:
            with pytest.raises(KeyError):
                tx.set("a", "unknown")
            with pytest.raises(TypeError, match="only once"):
                tx.set("a", iter(()))
            tx.set("b", "light")
        assert await cache.get_many("ab") == {"a": "light", "b": "light"}
        await cache.set_many({"a": "heavy", "c": "light"})
        assert await cache.get_many("abc") == {"b": "light", "c": "light"}
        assert (await cache.lookup("a")).reason is MissReason.REJECTED
        with pytest.raises(KeyError):
            await cache.set_many({"b": "light", "c": "unknown"})
        with pytest.raises(TypeError, match="mapping"):
            await cache.set_many([("a", 1)])  # type: ignore[arg-type]

    run_virtual(main(), clock)


step = st.tuples(
    st.sampled_from(["set", "delete", "tag", "get"]), st.integers(0, 3), st.integers(0, 1)
)


@given(st.lists(st.tuples(st.lists(step, max_size=6), st.booleans()), max_size=8))
def test_transactions_answer_as_a_copied_dict_does(
    blocks: list[tuple[list[tuple[str, int, int]], bool]],
) -> None:
    cache = AsyncSafeCache()
    model: dict[int, int] = {}  # a value's tag is its parity

    async def main() -> None:
        nonlocal model
        for steps, commits in blocks:
            copy = dict(model)
            try:
                async with cache.transaction() as tx:
                    for action, key, value in steps:
                        if action == "set":
                            tx.set(key, value, tags=f"{value}")
                            copy[key] = value
                        elif action == "delete":
                            tx.delete(key)
                            copy.pop(key, None)
                        elif action == "tag":
                            tx.invalidate_tags(f"{value}")
                            copy = {k: v for k, v in copy.items() if v != value}
                        assert await tx.get_many(range(4)) == copy
                        assert await cache.get_many(range(4)) == model
                    if not commits:
                        raise OSError
            except OSError:
                continue
            model = copy
            cache.check()
        assert await cache.get_many(range(4)) == model

    asyncio.run(main())


# -- views


def test_a_view_sees_what_was_there_and_nothing_newer(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, section_wait=0.1)

    @race_safe_cached(cache, "f")
    def f(x: int) -> int:
        return x

    async def main() -> None:
        await cache.set_many({"a": 1, "b": 1, "c": 1, "d": 1})
        async with cache.reading() as view:
            assert await view.get("a") == 1
            begun = clock.now
            await asyncio.create_task(cache.set("a", 2))
            assert clock.now - begun == pytest.approx(0.1)
            await asyncio.create_task(cache.delete("b"))
            elsewhere(lambda: asyncio.run(cache.set("c", 2)))
            assert await cache.get_or_load("e", lambda: 1) == 1
            assert f(1) == 1
            assert await view.get_many("abcde") == {"d": 1}
            assert (await view.lookup("a")).reason is MissReason.ABSENT
            assert (await view.lookup("b")).reason is MissReason.DELETED
            assert (await view.lookup("d")).value == 1
            assert await view.get(f.cache_key(1), "newer") == "newer"  # type: ignore[attr-defined]
        assert await cache.get_many("abcde") == {"a": 2, "c": 2, "d": 1, "e": 1}
        stats = cache.health()["cache_stats"]
        assert stats["lock_waits"] == 2
        assert stats["longest_lock_wait_seconds"] == pytest.approx(0.1)
        assert stats["hits"] + stats["misses"] + stats["coalesced"] == stats["calls"]
        with pytest.raises(ScopeError, match="has ended"):
            await view.get("a")
        with pytest.raises(ScopeError, match="entered before"):
            await view.__aenter__()
        with pytest.raises(ScopeError, match="not open"):
            await cache.reading().get("a")

    run_virtual(main(), clock)


def test_nobody_writes_in_a_section_of_his_own(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    @race_safe_cached(cache, "f")
    async def f(x: int) -> int:
        await cache.set("written by a load", 1)
        return x

    clear: Any = f

    async def commit() -> None:
        async with cache.transaction() as tx:
            tx.set("a", 2)

    async def main() -> None:
        await cache.set("a", 1)
        async with cache.reading() as view:
            for write in (
                lambda: cache.set("a", 2),
                lambda: cache.set_many({"a": 2}),
                lambda: cache.delete("a"),
                lambda: cache.expire("a"),
                lambda: cache.touch("a", 5),
                lambda: cache.clear(),
                lambda: cache.invalidate_tags("t"),
                lambda: cache.invalidate(f, 1),
                lambda: cache.update("a", lambda value: value),
                lambda: cache.increment("a"),
                commit,
            ):
                with pytest.raises(ReadOnlySectionError):
                    await write()
            for call in (lambda: clear.cache_invalidate(1), clear.cache_clear):
                with pytest.raises(ReadOnlySectionError):
                    call()
            begun = clock.now
            assert await f(1) == 1, "a load may write, and waits for nobody"
            async with cache.reading() as inner:
                assert await inner.get("written by a load") == 1
            assert clock.now == begun
            assert await view.get("a") == 1
        await cache.set("a", 2)

    run_virtual(main(), clock)
