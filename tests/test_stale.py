"""Values that are kept past their ttl: where they may be seen, and what takes them away."""

import asyncio
import math
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_safe_cache import MISSING, AsyncSafeCache, MissReason, race_safe_cached

from .virtual import Loader, VirtualClock, VirtualLoop, run_virtual, settle


class Down(Exception):
    """What the origin raises."""


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


# -- what takes it away, again


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


# -- bounds, again


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


# -- several loops


@pytest.fixture
def other(clock: VirtualClock) -> Iterator[VirtualLoop]:
    """Return a loop that runs when it is told to, and is left without a clean-up."""
    loop = VirtualLoop(clock)
    yield loop
    if not loop.is_closed():
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(settle())
        loop.close()


def abandon(loop: VirtualLoop) -> None:
    """Close *loop* as nobody should: its tasks neither end nor are cancelled."""
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


BEHIND = pytest.mark.parametrize(
    ("options", "age"),
    [
        pytest.param({"stale_while_revalidate": math.inf}, 12, id="stale_while_revalidate"),
        pytest.param({"refresh_ahead": 0.01}, 1, id="refresh_ahead"),
    ],
)


@BEHIND
@pytest.mark.parametrize("end", ["closed", "stopped", "in turns"])
def test_a_load_behind_in_a_loop_that_died_is_begun_again_elsewhere(
    clock: VirtualClock, other: VirtualLoop, options: dict[str, Any], age: float, end: str
) -> None:
    """Nobody waits for it, so nobody looked if its loop was alive: the value stayed for ever.

    A loop that runs in short turns, though, is not dead.
    """
    cache = AsyncSafeCache(clock=clock)
    load = Loader("old", "behind", "new", seconds=0)

    @race_safe_cached(cache, ttl=1000, **options)
    async def f(x: int) -> Any:
        return await load()

    async def begin() -> None:
        await f(1)
        clock.advance(1000 if "refresh_ahead" not in options else 100)
        load.seconds = 5000
        assert await f(1) == "old"
        await settle()
        load.seconds = 0

    other.run_until_complete(begin())
    assert load.calls == 2
    if end == "closed":
        abandon(other)

    async def main() -> None:
        answers = []
        for _ in range(8):
            answers.append(await f(1))
            await settle()
            clock.advance(0.5)
            if end == "in turns":
                turn = threading.Thread(target=other.run_until_complete, args=(settle(1),))
                turn.start()
                turn.join(30)
        if end == "in turns":
            assert (set(answers), load.calls) == ({"old"}, 2)
            return
        assert answers[-1] == "new"
        assert load.calls == 3
        # Closed: at once, or when a hit looks again; stopped: at the second look, a second later.
        assert 1 <= answers.index("new") <= (3 if end == "closed" else 6)
        assert cache._engine.flights.running == {}
        assert cache.stats().overlapping_loads == 0

    run_virtual(main(), clock)


@BEHIND
def test_a_stale_read_in_one_loop_leaves_the_refresh_to_another(
    clock: VirtualClock, options: dict[str, Any], age: float
) -> None:
    """Two threads, each with a loop of its own: one load, and both see what it brings."""
    cache = AsyncSafeCache(clock=clock)
    inside, go_on = threading.Event(), threading.Event()
    loads = 0

    @race_safe_cached(cache, ttl=10, **options)
    async def f(x: int) -> int:
        nonlocal loads
        loads += 1
        if loads == 2:
            inside.set()
            while not go_on.is_set():
                await asyncio.sleep(0.001)
        return loads

    async def first() -> int:
        assert await f(1) == 1
        await asyncio.to_thread(go_on.wait, 30)
        while cache.stats().loads < 2:
            await asyncio.sleep(0.001)
        return await f(1)

    asyncio.run(f(1))  # type: ignore[arg-type]
    clock.advance(age)
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(first())))
    thread.start()
    assert inside.wait(30)

    async def second() -> None:
        assert [await f(1) for _ in range(3)] == [1, 1, 1]
        assert loads == 2
        go_on.set()
        while cache.stats().loads < 2:
            await asyncio.sleep(0.001)
        assert await f(1) == 2

    asyncio.run(second())
    thread.join(30)
    assert answers == [2]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.coalesced, loads) == (6, 1, 0, 2)


# -- a plain model


class Model:
    """What must be seen of kept values, in plain Python: one row a key, expiry by comparison."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, float, float]] = {}  # value, deadline, window
        self.gone: dict[str, MissReason] = {}

    def see(self, key: str, now: float) -> tuple[str, object]:
        """Return "fresh" or "stale" with the value, or "gone" with the reason."""
        value, deadline, window = self.rows.get(key, (0, 0.0, -math.inf))
        if now < deadline:
            return "fresh", value
        if now < deadline + window:
            return "stale", value
        if key in self.rows:
            return "gone", MissReason.EXPIRED
        return "gone", self.gone.get(key, MissReason.ABSENT)

    def store(self, key: str, value: int, ttl: float | None, window: float, now: float) -> None:
        self.rows[key] = value, math.inf if ttl is None else now + ttl, window

    def remove(self, key: str, reason: MissReason, now: float) -> bool:
        state = self.see(key, now)[0]
        if self.rows.pop(key, None) is not None:
            self.gone[key] = MissReason.EXPIRED if state == "gone" else reason
        return state == "fresh"

    def expire(self, key: str, now: float) -> bool:
        value, deadline, window = self.rows.get(key, (0, 0.0, 0.0))
        if now < deadline < math.inf and window:
            self.rows[key] = value, now, window
            return True
        return self.see(key, now)[0] == "fresh" and self.remove(key, MissReason.EXPIRED, now)

    def touch(self, key: str, ttl: float | None, now: float) -> bool:
        state = self.see(key, now)[0]
        if state == "fresh":
            value, _, window = self.rows[key]
            self.store(key, value, ttl, window, now)
        return state == "fresh"


keys = st.sampled_from("abc")
ttls = st.sampled_from([None, 0.5, 1.0, 3.0, 8.0])
windows = st.sampled_from([0.0, 0.5, 2.0, 6.0, math.inf])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("load"), keys, ttls, windows, st.booleans()),
        st.tuples(st.just("set"), keys, ttls),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("expire"), keys),
        st.tuples(st.just("touch"), keys, ttls),
        st.tuples(st.just("invalidate")),
        st.tuples(st.just("clear")),
        st.tuples(st.just("advance"), st.sampled_from([0.25, 0.5, 1.0, 3.0, 9.0])),
        st.tuples(st.just("sweep"), st.sampled_from([1, 2, 500])),
    ),
    max_size=30,
)


async def both(caches: list[AsyncSafeCache], call: Any) -> list[Any]:
    return [await call(cache) for cache in caches]


@settings(max_examples=120, deadline=None)
@given(steps)
def test_kept_values_are_seen_as_a_plain_model_says_whoever_sweeps_when(
    script: list[tuple[Any, ...]],
) -> None:
    """Two caches: one is swept as the script says, the other never. Both agree with the model."""
    clock = VirtualClock()
    model = Model()
    numbers = iter(range(10_000))

    async def main() -> None:
        caches = [AsyncSafeCache(clock=clock) for _ in range(2)]
        for step in script:
            name, now = step[0], clock.now
            key = step[1] if len(step) > 1 else ""
            if name == "advance":
                clock.advance(step[1])
            elif name == "sweep":
                caches[0]._engine.sweep(now, step[1])
            elif name == "load":
                ttl, window, succeeds = step[2:]
                value = next(numbers)
                state, held = model.see(key, now)
                options: dict[str, Any] = {"tags": "tag", "error_backoff": 0}
                if ttl is not None and window:
                    options["stale_if_error"] = window
                own = window if ttl is not None else 0.0
                expected: object = held
                if state != "fresh":
                    fits = state == "stale" and now < model.rows[key][1] + own
                    if succeeds:
                        model.store(key, expected := value, ttl, own, now)
                    elif not fits:
                        expected = "Down"

                async def load(value: object = value if succeeds else Down()) -> object:
                    if isinstance(value, Down):
                        raise value
                    return value

                for cache in caches:
                    try:
                        answer: object = await cache.get_or_load(key, load, ttl=ttl, **options)
                    except Down:
                        answer = "Down"
                    assert answer == expected, step
            elif name == "set":
                value = next(numbers)
                for cache in caches:
                    await cache.set(key, value, ttl=step[2])
                model.store(key, value, step[2], 0.0, now)
            elif name == "delete":
                removed = model.remove(key, MissReason.DELETED, now)
                assert await both(caches, lambda cache: cache.delete(key)) == [removed] * 2
            elif name == "expire":
                expired = model.expire(key, now)
                assert await both(caches, lambda cache: cache.expire(key)) == [expired] * 2
            elif name == "touch":
                touched = model.touch(key, step[2], now)
                assert await both(caches, lambda cache: cache.touch(key, step[2])) == [touched] * 2
            elif name == "invalidate":
                tagged = [each for each in model.rows if "tag" in tags_of(caches[1], each)]
                for each in tagged:
                    model.remove(each, MissReason.TAG_INVALIDATED, now)
                for cache in caches:
                    await cache.invalidate_tags("tag")
            else:
                for each in list(model.rows):
                    fresh = model.see(each, now)[0] == "fresh"
                    reason = MissReason.CLEARED if fresh else MissReason.EXPIRED
                    model.remove(each, reason, now)
                for cache in caches:
                    await cache.clear()
            for cache in caches:
                cache.check()
                assert len(cache) == sum(
                    model.see(each, clock.now)[0] == "fresh" for each in model.rows
                )
                for each in "abc":
                    found = await cache.lookup(each)
                    state = "fresh" if found.hit else "stale" if found.stale else "gone"
                    answer = found.reason if state == "gone" else found.value
                    assert (state, answer) == model.see(each, clock.now), (step, each)

    run_virtual(main(), clock)


def tags_of(cache: AsyncSafeCache, key: str) -> tuple[str, ...]:
    entry = cache._raw.data.get(key)
    return () if entry is None else entry.tags


@pytest.mark.parametrize("policy", ["lru", "s3fifo"])
@pytest.mark.parametrize("bounds", [{"max_entries": 12}, {"max_memory_bytes": 15_000}])
def test_bounds_hold_whatever_is_kept(
    clock: VirtualClock, policy: Any, bounds: dict[str, int]
) -> None:
    """Stale and fresh values, written, read, expired and cleared by chance; swept now and then."""
    chance = random.Random(7)

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, policy=policy, **bounds)
        load, stale = Loader("value", "value", Down()), 0
        for step in range(1500):
            key = chance.randrange(30)
            if chance.random() < 0.7:
                window = chance.choice([None, 1, 5, 20])
                load.calls = chance.randrange(3)
                try:
                    await cache.get_or_load(
                        key, load, ttl=chance.choice([1, 3, 9]), stale_while_revalidate=window
                    )
                except Down:
                    pass
            elif chance.random() < 0.5:
                await cache.expire(key)
            elif chance.random() < 0.5:
                await cache._sweep()
            elif chance.random() < 0.05:
                await cache.clear()
            clock.advance(chance.random())
            store = cache._engine.store
            assert store.count <= bounds.get("max_entries", 1000)
            assert cache.memory_bytes <= bounds.get("max_memory_bytes", 10**9)
            stale = max(stale, store.stale)
            if step % 25 == 0:
                cache.check()
        assert stale > 3, "or nothing was shown"
        clock.advance(100)
        await cache._sweep()
        assert (len(cache), cache.memory_bytes, cache._engine.store.stale) == (0, 0, 0)

    run_virtual(main(), clock)


def test_threads_with_loops_of_their_own_share_one_load_behind() -> None:
    """Real time and real threads: never two loads of a key at once, each call counted once."""
    cache = AsyncSafeCache()
    running: dict[int, int] = dict.fromkeys(range(3), 0)
    most = loads = 0

    @race_safe_cached(cache, ttl=0.002, stale_while_revalidate=math.inf, on_abandon="finish")
    async def f(x: int) -> int:
        nonlocal most, loads
        running[x] += 1
        most = max(most, running[x])
        loads += 1
        await asyncio.sleep(0.001)
        running[x] -= 1
        return x

    async def main() -> None:
        for number in range(300):
            assert await f(number % 3) == number % 3
            if number % 10 == 0:
                await asyncio.sleep(0.001)
        while cache._engine.flights.running:  # a loop that ends would end its loads
            await asyncio.sleep(0.001)

    failures: list[BaseException] = []

    def thread() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert failures == []
    assert most == 1
    stats = cache.stats()
    assert stats.calls == 1200
    assert stats.loads == loads
    assert (stats.overlapping_loads, stats.load_errors) == (0, 0)
    assert stats.stale_served > 0
