"""Values that are kept past their ttl: where they may be seen, and what takes them away."""

import asyncio
import math
from typing import Any

import pytest

from async_safe_cache import MISSING, AsyncSafeCache, MissReason, race_safe_cached

from .fickle import Down
from .virtual import Loader, VirtualClock, run_virtual, settle


async def kept(cache: AsyncSafeCache, key: object, value: object = "old", **options: Any) -> None:
    """Store a value that is fresh for 10 s and kept for 20 s more."""
    given: dict[str, Any] = {"ttl": 10, "stale_if_error": 20, **options}
    await cache.get_or_load(key, lambda: value, **given)


async def seen(cache: AsyncSafeCache, key: object) -> object:
    """Return the value that is held, fresh or stale, or why there is none."""
    found = await cache.lookup(key)
    return found.value if found.hit or found.stale else found.reason


# -- for how long


def test_a_value_may_be_kept_for_ever(clock: VirtualClock) -> None:
    """Its index of deadlines holds finite ones: an infinite one broke every write and sweep."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await kept(cache, "key", stale_if_error=math.inf)
        clock.advance(1e9)
        await cache.set("other", 1)
        await cache._sweep()
        assert (await cache.explain("key")).stale_left == math.inf
        failing = Loader(Down())
        answer = cache.get_or_load("key", failing, ttl=10, stale_if_error=math.inf)
        assert await answer == "old"
        assert len(cache) == 1
        assert await cache.delete("key") == 0
        assert await seen(cache, "key") is MissReason.DELETED

    run_virtual(main(), clock)


# -- who sees it


def test_nobody_sees_it_who_does_not_load(clock: VirtualClock) -> None:
    """`lookup` shows it, and says that it is a miss; nothing else does."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await kept(cache, "key")
        await cache.set("fresh", 1)
        clock.advance(12)
        before = cache.stats()
        assert await cache.get("key") is None
        assert cache.peek("key") is MISSING
        assert await cache.get_many(["key", "fresh"]) == {"fresh": 1}
        async with cache.reading() as view:
            assert await view.get("key") is None
            assert (await view.lookup("key")).reason is MissReason.EXPIRED
            assert await view.get_many(["key"]) == {}
        async with cache.transaction() as tx:
            assert await tx.get("key") is None
            assert await tx.get_many(["key"]) == {}
        assert not await cache.touch("key", 10)
        assert await cache.update("other", lambda value: value, default="default") == "default"
        assert await cache.update("key", lambda value: f"not {value}", default="it") == "not it"
        await cache.delete("key", "other")
        await kept(cache, "key")
        clock.advance(12)
        found = await cache.lookup("key")
        assert (found.hit, found.stale, found.value) == (False, True, "old")
        assert (found.reason, found.age, found.ttl_left) == (MissReason.EXPIRED, 12, 0)
        assert "old" not in repr(found)
        assert len(cache) == 1
        assert cache.health()["cache_stats"]["entries"] == 1
        await cache._sweep()
        assert len(cache) == 1, "however it is indexed"
        told = await cache.explain("key")
        assert (told.hit, told.reason, told.stale_left) == (False, MissReason.EXPIRED, 18)
        stats = cache.stats() - before
        assert (stats.hits, stats.stale_served) == (1, 0)

    run_virtual(main(), clock)


def test_a_decorated_function_says_that_it_has_no_fresh_value(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=10, stale_if_error=20)
        async def f(x: int) -> int:
            return x

        await f(1)
        clock.advance(12)
        functions: Any = f
        assert not functions.cache_contains(1)
        assert not await cache.invalidate(f, 1), "no fresh one"
        assert await seen(cache, cache.key_for(f, 1)) is MissReason.DELETED

    run_virtual(main(), clock)


# -- what takes it away


def test_a_value_that_expires_twice_is_still_kept(clock: VirtualClock) -> None:
    """Two webhooks say the same: the second one found a stale value, and removed it."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await kept(cache, "key")
        assert await cache.expire("key") == 1
        clock.advance(5)
        assert await cache.expire("key") == 0, "it is stale already"
        assert await seen(cache, "key") == "old"
        clock.advance(15)  # 20 s after the first time
        assert await seen(cache, "key") is MissReason.EXPIRED

    run_virtual(main(), clock)


async def delete(cache: AsyncSafeCache) -> None:
    assert await cache.delete("key") == 0


async def invalidate_tags(cache: AsyncSafeCache) -> None:
    assert await cache.invalidate_tags("tag") == 0


async def change_what_it_depends_on(cache: AsyncSafeCache) -> None:
    await cache.set("source", "changed")


async def delete_what_it_depends_on(cache: AsyncSafeCache) -> None:
    await cache.delete("source")


async def transaction(cache: AsyncSafeCache) -> None:
    async with cache.transaction() as tx:
        tx.delete("key")


async def transaction_of_tags(cache: AsyncSafeCache) -> None:
    async with cache.transaction() as tx:
        tx.invalidate_tags("tag")


async def clear(cache: AsyncSafeCache) -> None:
    await cache.clear()


REMOVERS: dict[Any, MissReason] = {
    delete: MissReason.DELETED,
    invalidate_tags: MissReason.TAG_INVALIDATED,
    change_what_it_depends_on: MissReason.DELETED,
    delete_what_it_depends_on: MissReason.DELETED,
    transaction: MissReason.DELETED,
    transaction_of_tags: MissReason.TAG_INVALIDATED,
    clear: MissReason.EXPIRED,  # which it was, before
}


@pytest.mark.parametrize("swept", [False, True], ids=["", "swept"])
@pytest.mark.parametrize("remove", REMOVERS, ids=lambda each: each.__name__)
def test_what_removes_a_fresh_value_removes_a_stale_one(
    clock: VirtualClock, remove: Any, swept: bool
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.set("source", 1)
        options: dict[str, Any] = {"tags": "tag", "depends_on": "source"}
        await kept(cache, "key", **options)
        clock.advance(12)
        if swept:
            await cache._sweep()
        assert await seen(cache, "key") == "old"
        await remove(cache)
        assert await seen(cache, "key") is REMOVERS[remove]
        with pytest.raises(Down):
            await cache.get_or_load("key", Loader(Down()), ttl=10, stale_if_error=100)
        assert cache._engine.store.stale == 0

    run_virtual(main(), clock)


@pytest.mark.parametrize("remove", REMOVERS, ids=lambda each: each.__name__)
def test_what_removes_a_stale_value_shuts_out_the_load_behind_it(
    clock: VirtualClock, remove: Any
) -> None:
    """Which began before: no later read sees what it brings."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "behind", "new", seconds=0)
        options: dict[str, Any] = {
            "ttl": 10,
            "stale_while_revalidate": 100,
            "tags": "tag",
            "depends_on": "source",
        }
        await cache.set("source", 1)
        await cache.get_or_load("key", load, **options)
        clock.advance(12)
        load.seconds = 5
        assert await cache.get_or_load("key", load, **options) == "old"
        await settle()
        assert load.calls == 2
        await remove(cache)
        begun = clock.now
        assert (await cache.get_or_load("key", load, **options), clock.now) == ("new", begun + 5)
        await asyncio.sleep(5)
        assert cache.peek("key") == "new"
        assert load.cancelled == 1, "nobody waits for it"

    run_virtual(main(), clock)


def test_a_set_replaces_a_stale_value_and_what_is_loaded_behind_it(clock: VirtualClock) -> None:
    async def main() -> None:
        for how in ("set", "set_many", "transaction"):
            cache = AsyncSafeCache(clock=clock)
            load = Loader("old", "behind", seconds=0)
            options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 100}
            await cache.get_or_load("key", load, **options)
            clock.advance(12)
            load.seconds = 5
            assert await cache.get_or_load("key", load, **options) == "old"
            await settle()
            if how == "set":
                await cache.set("key", "set")
            elif how == "set_many":
                await cache.set_many({"key": "set"})
            else:
                async with cache.transaction() as tx:
                    tx.set("key", "set")
            await asyncio.sleep(6)
            assert await cache.get_or_load("key", load, **options) == "set"
            assert (load.calls, load.cancelled) == (2, 1)

    run_virtual(main(), clock)


def test_a_value_of_another_version_is_not_served_stale(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await kept(cache, "key", "first", version=1)
        clock.advance(12)
        failing = Loader(Down())
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100, "error_backoff": 0}
        with pytest.raises(Down):
            await cache.get_or_load("key", failing, version=2, **options)
        assert await cache.get_or_load("key", failing, version=1, **options) == "first"
        assert await cache.get_or_load("key", failing, **options) == "first", "any will do"

    run_virtual(main(), clock)


def test_what_depends_on_a_stale_value_does_not_change_by_its_refresh(clock: VirtualClock) -> None:
    """As after any expiry: no change was made by anybody."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new")
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 100}
        await cache.get_or_load("source", load, **options)
        await cache.set("derived", 1, depends_on="source")
        clock.advance(12)
        assert await cache.get_or_load("source", load, **options) == "old"
        await settle()
        assert await cache.get("source") == "new"
        assert await cache.get("derived") == 1
        await cache.delete("source")
        assert await cache.get("derived") is None

    run_virtual(main(), clock)


def test_who_waits_in_place_of_a_value_that_was_removed_gets_what_it_began_with(
    clock: VirtualClock,
) -> None:
    """Its read began before the delete; no later one sees the value."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await kept(cache, "key")
        clock.advance(12)
        load = Loader(Down(), seconds=2)

        def call() -> Any:
            return cache.get_or_load("key", load, ttl=10, stale_if_error=100)

        before = asyncio.ensure_future(call())
        await settle()
        await cache.delete("key")
        after = asyncio.ensure_future(call())
        assert await before == "old"
        with pytest.raises(Down):
            await after
        assert load.calls == 2

    run_virtual(main(), clock)


# -- expire


@pytest.mark.parametrize("way", ["swr", "sie", "plain"])
def test_expire_makes_a_value_stale_now(clock: VirtualClock, way: str) -> None:
    """Its windows count from this moment; one that is not kept is gone."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)
        options: dict[str, Any] = {
            "swr": {"stale_while_revalidate": 20},
            "sie": {"stale_if_error": 20},
            "plain": {},
        }[way]
        options["ttl"] = 10

        @race_safe_cached(cache, **options)
        async def f(x: int) -> Any:
            return await load()

        await f(1)
        key = cache.key_for(f, 1)
        clock.advance(4)
        assert await cache.expire(key) == 1
        found = await cache.lookup(key)
        if way == "plain":
            assert (found.stale, found.reason) == (False, MissReason.EXPIRED)
        else:
            assert (found.stale, found.value, found.age) == (True, "old", 4)
            assert (await cache.explain(key)).stale_left == 20
        assert len(cache) == 0
        load.seconds = 1
        assert await f(1) == ("old" if way == "swr" else "new")
        await asyncio.sleep(1.1)
        assert (await f(1), load.calls) == ("new", 2)

    run_virtual(main(), clock)


def test_expire_shuts_out_the_load_that_runs(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "behind", "new", seconds=0)
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 100}
        await cache.get_or_load("key", load, **options)
        clock.advance(12)
        load.seconds = 5
        assert await cache.get_or_load("key", load, **options) == "old"
        await settle()
        await cache.expire("key")
        assert await cache.get_or_load("key", load, **options) == "old", "stale, as it was"
        await asyncio.sleep(5.1)
        assert await cache.get_or_load("key", load, **options) == "new"
        assert (load.calls, load.cancelled) == (3, 1)

    run_virtual(main(), clock)


def test_a_value_that_expires_at_the_moment_it_was_stored_is_stale(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await kept(cache, "key")
        assert await cache.expire("key") == 1
        found = await cache.lookup("key")
        assert (found.stale, found.age) == (True, 0)
        clock.advance(20)
        assert not (await cache.lookup("key")).stale

    run_virtual(main(), clock)


# -- touch


def test_a_touched_value_is_kept_from_its_new_deadline_on(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        for key in ("long", "short", "for ever"):
            await kept(cache, key)
        clock.advance(5)
        assert await cache.touch("long", 100)
        assert await cache.touch("short", 1)
        assert await cache.touch("for ever", None)
        clock.advance(1)
        assert (await cache.lookup("short")).stale
        clock.advance(19.5)
        assert (await cache.lookup("short")).stale
        clock.advance(0.5)
        assert await seen(cache, "short") is MissReason.EXPIRED
        assert (await cache.lookup("long")).hit
        clock.advance(79)
        assert (await cache.lookup("long")).stale
        clock.advance(20)
        assert await seen(cache, "long") is MissReason.EXPIRED
        assert await cache.get("for ever") == "old"
        assert await cache.expire("for ever") == 1
        assert await seen(cache, "for ever") is MissReason.EXPIRED, "it had no deadline to pass"

    run_virtual(main(), clock)


# -- bounds


def test_what_is_kept_no_more_leaves_before_what_is_fresh(clock: VirtualClock) -> None:
    """One write needs the room of many: it freed four, then evicted fresh ones."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_memory_bytes=60_000, weigher=lambda value: value)
        for number in range(10):
            await cache.set(("fresh", number), 1_000)
        for number in range(15):
            await kept(cache, ("kept", number), 1_000)
        clock.advance(15)
        await cache._sweep()  # they are stale, and kept
        clock.advance(20)
        await cache.set("large", 25_000)
        stats = cache.stats()
        assert stats.evictions == 0
        assert len(cache) == 11

    run_virtual(main(), clock)


def test_a_stale_value_counts_against_the_bounds_and_leaves_as_the_least_recently_used(
    clock: VirtualClock,
) -> None:
    """A stale read is a use of it."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_entries=3)
        for key in ("a", "b", "c"):
            await kept(cache, key)
        clock.advance(12)
        failing = Loader(Down())
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 100}
        assert await cache.get_or_load("a", failing, **options) == "old"
        await cache.set("d", "fresh")
        assert [await seen(cache, key) for key in "abcd"] == [
            "old",
            MissReason.EXPIRED,
            "old",
            "fresh",
        ]
        assert len(cache) == 1
        await cache.set("e", "fresh")
        await cache.set("f", "fresh")
        assert [await seen(cache, key) for key in "acdef"] == [
            MissReason.EXPIRED,
            MissReason.EXPIRED,
            "fresh",
            "fresh",
            "fresh",
        ]
        stats = cache.stats()
        assert stats.evictions == 0, "what is stale had expired before"
        assert stats.removals_by_cause["EXPIRED"] == 3

    run_virtual(main(), clock)


def test_a_value_that_is_too_large_removes_the_stale_one(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_memory_bytes=10_000, weigher=lambda value: value)
        await kept(cache, "key", 100)
        clock.advance(12)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100}
        assert await cache.get_or_load("key", lambda: 10_001, **options) == 10_001
        assert await seen(cache, "key") is MissReason.REJECTED
        with pytest.raises(Down):
            await cache.get_or_load("key", Loader(Down()), **options)

    run_virtual(main(), clock)


def test_the_window_of_a_value_is_in_its_weight(clock: VirtualClock) -> None:
    """A thousand of them fit where their accounts say so, stale or not."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, max_memory_bytes=200_000)
        for number in range(1000):
            await kept(cache, number)
            if number == 500:
                clock.advance(12)
        assert cache.memory_bytes <= 200_000
        one = AsyncSafeCache(clock=clock)
        await one.get_or_load("key", lambda: "old", ttl=10)
        plain = one.memory_bytes
        await one.clear()
        await kept(one, "key")
        assert one.memory_bytes >= plain + 288

    run_virtual(main(), clock)


# -- graves


@pytest.mark.parametrize("swept", [False, True], ids=["", "swept"])
def test_a_large_clear_buries_stale_values_too(clock: VirtualClock, swept: bool) -> None:
    """They are stale in the index of what is kept, and due in none when they are dug out."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, ttl=10, stale_if_error=20)
        async def f(x: int) -> int:
            return x

        function: Any = f
        for number in range(400):
            await f(number)
        clock.advance(12)
        for number in range(400, 700):
            await f(number)
        if swept:
            await cache._sweep()
        assert len(cache) == 300
        function.cache_clear()
        assert len(cache) == 0
        cache.check()
        assert await seen(cache, cache.key_for(f, 1)) is MissReason.EXPIRED
        assert await seen(cache, cache.key_for(f, 500)) is MissReason.CLEARED
        for number in range(100):
            await f(number)
        clock.advance(12)
        assert len(cache) == 0
        assert [await seen(cache, cache.key_for(f, each)) for each in (1, 650)] == [
            1,
            MissReason.CLEARED,
        ]
        cache.check()
        await cache._sweep()
        cache.check()
        assert cache._engine.store.stale == 100
        clock.advance(20)
        await cache._sweep()
        assert cache._engine.store.stale == 0
        assert cache.memory_bytes == 0

    run_virtual(main(), clock)


def test_a_clear_of_everything_leaves_nothing_stale(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        for number in range(1200):
            await kept(cache, number)
        clock.advance(12)
        await cache._sweep()
        await kept(cache, "fresh")
        clearing = asyncio.ensure_future(cache.clear())
        await asyncio.sleep(0)
        assert len(cache) == 0, "before they are dug out"
        cache.check()
        await kept(cache, 7)
        clock.advance(12)
        assert await seen(cache, 7) == "old"
        await clearing
        assert cache._engine.store.stale in {0, 1}
        assert await seen(cache, 7) == "old"
        assert len(cache) == 0

    run_virtual(main(), clock)


# -- whatever stored it


@pytest.mark.parametrize(
    "how", ["set", "set_many", "transaction", "update", "many", "extra", "loaded", "function"]
)
def test_a_value_is_kept_as_the_cache_says_whatever_stored_it(
    clock: VirtualClock, how: str
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, default_ttl=10, stale_if_error=20)
        key: Any = "key"
        if how == "set":
            await cache.set(key, "old")
        elif how == "set_many":
            await cache.set_many({key: "old"})
        elif how == "transaction":
            async with cache.transaction() as tx:
                tx.set(key, "old")
        elif how == "update":
            await cache.set(key, "older")
            await cache.update(key, lambda value: "old")
        elif how == "many":
            await cache.get_or_load_many([key], lambda keys: dict.fromkeys(keys, "old"))
        elif how == "extra":
            await cache.get_or_load_many(
                ["other"], lambda keys: {"other": 1, key: "old"}, store_extras=True
            )
        elif how == "loaded":
            await cache.get_or_load(key, lambda: "old")
        else:

            @race_safe_cached(cache)
            async def f(x: int) -> str:
                return "old"

            await f(1)
            key = cache.key_for(f, 1)
        clock.advance(29)
        assert await seen(cache, key) == "old"
        assert await cache.get_or_load(key, Loader(Down())) == "old"
        clock.advance(1)
        assert await seen(cache, key) is MissReason.EXPIRED

    run_virtual(main(), clock)
