"""Events: who is told what, when, in which thread, and that it harms nobody."""

import asyncio
import contextvars
import gc
import logging
import os
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    CacheClosedError,
    Invalidated,
    Key,
    Loaded,
    LoadFailed,
    Refreshed,
    RemovalCause,
    Removed,
    race_safe_cached,
)
from async_safe_cache._events import EVENTS

from .test_fork import in_child, in_thread
from .virtual import Loader, VirtualClock, at_once, run_virtual, settle

PATIENCE = 5.0

CLEARED, COLLECTED, DELETED = RemovalCause.CLEARED, RemovalCause.COLLECTED, RemovalCause.DELETED
EVICTED, EXPIRED = RemovalCause.EVICTED, RemovalCause.EXPIRED
REJECTED, REPLACED = RemovalCause.REJECTED, RemovalCause.REPLACED


def told(cache: AsyncSafeCache, *events: str) -> list[Any]:
    """Return the list that every event of *cache* is put on from now on."""
    seen: list[Any] = []
    on: Any = cache.on
    for event in events or EVENTS:
        on(event, seen.append)
    return seen


# -- what is told


def test_each_write_tells_what_it_removed(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    seen = told(cache)
    at_once(cache.set("a", 1))
    assert seen == [], "a write is no event: who wrote knows"
    at_once(cache.set("a", 2))
    at_once(cache.delete("a", "b"))
    at_once(cache.set("a", 3))
    at_once(cache.expire("a"))
    assert seen == [
        Removed("a", REPLACED),
        Removed("a", DELETED),
        Invalidated(DELETED, ("a", "b"), (), None, 1),
        Removed("a", EXPIRED),
        Invalidated(EXPIRED, ("a",), (), None, 1),
    ]


def test_a_load_tells_how_long_it_took_and_whether_its_value_is_kept(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, max_memory_bytes=5_000)
    seen = told(cache, "loaded", "load_failed", "refreshed")

    async def main() -> None:
        await cache.get_or_load("kept", Loader("value", seconds=2.0))
        await cache.get_or_load("kept", Loader("other"))
        await cache.get_or_load("large", Loader("x" * 10_000, seconds=0.5))

        async def at_once() -> str:
            return "x" * 10_000

        await cache.get_or_load("large at once", at_once)
        assert len(seen) == 3, "it is told before its caller goes on, or just after"
        late = asyncio.create_task(cache.get_or_load("fenced", Loader("old", seconds=1.0)))
        await settle()
        await cache.delete("fenced")
        assert await late == "old"

    run_virtual(main(), clock)
    assert seen == [
        Loaded("kept", 2.0, True),
        Loaded("large", 0.5, False),
        Loaded("large at once", 0.0, False),
        Loaded("fenced", 1.0, False),
    ]


def test_a_failed_load_is_told_by_its_type_alone(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    seen = told(cache, "loaded", "load_failed", "refreshed")

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        for loader in (
            Loader(ValueError("a secret"), seconds=1.0),
            Loader(ValueError("a secret")),
            Loader(iter(())),
            cancelled,
        ):
            with pytest.raises(Exception, match=r"."):
                await cache.get_or_load("key", loader)

    run_virtual(main(), clock)
    assert seen == [
        LoadFailed("key", "ValueError"),
        LoadFailed("key", "ValueError"),
        LoadFailed("key", "TypeError"),
        LoadFailed("key", "LoadCancelledError"),
    ]
    assert "secret" not in repr(seen)
    assert cache.stats().load_errors == len(seen)


def test_a_load_that_is_given_up_is_neither_loaded_nor_failed(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    seen = told(cache)

    async def main() -> None:
        caller = asyncio.create_task(cache.get_or_load("key", Loader(seconds=9.0)))
        await settle()
        caller.cancel()
        await settle()
        caller = asyncio.create_task(cache.get_or_load("key", Loader(seconds=9.0)))
        await settle()
        await cache.aclose()
        with pytest.raises(CacheClosedError):
            await caller

    run_virtual(main(), clock)
    assert seen == []


def test_a_refresh_is_told_as_one(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    loader = Loader("value", seconds=1.0)

    @race_safe_cached(cache)
    async def f(x: int) -> object:
        return await loader()

    seen = told(cache)
    key = cache.key_for(f, 1)

    async def main() -> None:
        await f(1)
        await cache.refresh(f, 1)
        loader.results = (OSError(),)
        with pytest.raises(OSError):
            await cache.refresh(f, 1)

    run_virtual(main(), clock)
    assert seen == [
        Loaded(key, 1.0, True),
        Removed(key, REPLACED),
        Refreshed(key, 1.0, True),
        LoadFailed(key, "OSError"),
    ]


def test_a_load_that_began_before_anybody_listened_has_its_length_too(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> list[Any]:
        caller = asyncio.create_task(cache.get_or_load("key", Loader(seconds=1.0)))
        await settle()
        seen = told(cache)
        await caller
        return seen

    assert run_virtual(main(), clock) == [Loaded("key", 1.0, True)]


def test_a_plain_def_tells_in_the_thread_that_loaded() -> None:
    cache = AsyncSafeCache()
    threads: list[int] = []
    cache.on("loaded", lambda _: threads.append(threading.get_ident()))
    f = race_safe_cached(cache)(lambda x: x)
    f(1)
    with in_thread(lambda: f(2)) as thread:
        pass
    assert threads == [threading.get_ident(), thread.ident]


# -- every way out of the store


def test_every_removal_that_is_counted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the way: one by one, in bulk, from a grave, in a clear, at the end."""
    monkeypatch.setattr("async_safe_cache._store.FEW", 20)
    ways: set[str] = set()
    for seed in range(20):
        told_as, counted = _random_life(random.Random(seed))
        assert told_as == counted
        ways |= set(told_as)
    assert ways == {str(cause) for cause in RemovalCause}, "each way was taken"


def _random_life(chance: random.Random) -> tuple[dict[str, int], dict[str, int]]:
    clock = VirtualClock()
    cache = AsyncSafeCache(
        max_entries=100, max_memory_bytes=200_000, weigher=lambda value: value, clock=clock
    )
    causes: Counter[str] = Counter()
    cache.on("removed", lambda event: causes.update([str(event.cause)]))

    class Owner:
        @race_safe_cached(cache)
        def method(self, x: int) -> int:
            return x

    async def main() -> None:
        def f(x: int) -> int:
            return x

        owner = Owner()
        functions = [race_safe_cached(cache, "f")(f), race_safe_cached(cache, "g", ttl=3)(f)]
        for _ in range(1_000):
            key = chance.randrange(130)
            action = chance.randrange(100)
            if action < 70:
                chance.choice([*functions, owner.method])(key)
            elif action < 80:
                size = 300_000 if action < 73 else key
                await cache.set(
                    key % 10, size, ttl=chance.choice([None, 0.1, 2]), tags=str(key % 3)
                )
            elif action < 90:
                await chance.choice([cache.delete, cache.expire])(key % 10)
            elif action == 90:
                clock.advance(4)
            elif action == 91:
                await cache._sweep()
            elif action < 94:
                chance.choice(functions).cache_clear()  # type: ignore[attr-defined]
            elif action == 94:
                owner = Owner()
                gc.collect()
            elif action == 95:
                await cache.clear()
            elif action == 96:
                await cache.invalidate_tags("1")
        await cache.aclose()

    run_virtual(main(), clock)
    counted = {cause: n for cause, n in cache.stats().removals_by_cause.items() if n}
    return dict(causes), counted


@pytest.mark.parametrize("many", [3, 600])
def test_a_clear_tells_at_once_and_its_entries_as_they_are_freed(
    many: int, clock: VirtualClock
) -> None:
    cache = AsyncSafeCache(clock=clock)

    @race_safe_cached(cache, "f")
    def f(x: int) -> int:
        return x

    clear: Any = f
    for x in range(many):
        f(x)
    seen = told(cache, "invalidated", "removed")
    clear.cache_clear()
    assert Invalidated(CLEARED, (), (), "f", many) in seen
    clear.cache_close()
    f2: Any = race_safe_cached(cache, "f2")(lambda x: x)
    f2(1)
    run_virtual(cache.clear(), clock)
    assert [each for each in seen if isinstance(each, Invalidated)] == [
        Invalidated(CLEARED, (), (), "f", many),
        Invalidated(CLEARED, (), (), "f", 0),
        Invalidated(CLEARED, (), (), None, 1),
    ]
    removed = Counter(each for each in seen if isinstance(each, Removed))
    assert removed == Counter(
        [Removed(cache.key_for(f, x), CLEARED) for x in range(many)]
        + [Removed(cache.key_for(f2, 1), CLEARED)]
    )


def test_closing_tells_every_entry_and_keeps_the_subscriptions(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    seen = told(cache)

    async def main() -> None:
        await cache.set("a", 1)
        await cache.aclose()
        assert seen == [Removed("a", CLEARED)]
        await cache.start()
        await cache.set("b", 1)
        await cache.delete("b")
        await cache.aclose()

    run_virtual(main(), clock)
    assert seen[1:] == [Removed("b", DELETED), Invalidated(DELETED, ("b",), (), None, 1)]


def test_an_invalidation_is_told_once_and_names_what_was_asked_for(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    f: Any = race_safe_cached(cache, "f")(lambda x: x)
    key = cache.key_for(f, 1)
    seen = told(cache, "invalidated")
    f(1)
    assert f.cache_invalidate(1)
    assert not at_once(cache.invalidate(f, 1))
    at_once(cache.delete())
    assert seen == [
        Invalidated(DELETED, (key,), (), None, 1),
        Invalidated(DELETED, (key,), (), None, 0),
    ]


# -- keys and records


@pytest.mark.parametrize("key", ["a", 1, b"a", None])
def test_a_plain_raw_key_is_told_as_itself(key: object) -> None:
    cache = AsyncSafeCache()
    seen = told(cache, "removed")
    at_once(cache.set(key, 1))
    at_once(cache.delete(key))
    assert seen[0].key == key
    assert type(seen[0].key) is type(key)


def test_any_other_key_is_told_as_one_that_every_keyed_method_takes() -> None:
    cache = AsyncSafeCache()
    f = race_safe_cached(cache, "f")(lambda x: x)

    class C:
        @race_safe_cached(cache)
        def method(self, x: int) -> int:
            return x

    instance = C()
    seen = told(cache)
    f("a")
    instance.method(1)
    at_once(cache.set(("a", 1.5), 0))
    at_once(cache.delete(("a", 1.5)))
    keys = [each.key for each in seen[:3]]
    assert [type(key) for key in keys] == [Key, Key, Key]
    assert seen[3].keys == (keys[2],)
    assert keys[:2] == [cache.key_for(f, "a"), cache.key_for(instance.method, 1)]
    assert at_once(cache.get(keys[0])) == "a"
    assert at_once(cache.get(keys[1])) == 1
    assert at_once(cache.set(keys[2], 7)) is None
    assert at_once(cache.get(("a", 1.5))) == 7
    assert at_once(cache.delete(*keys)) == 3


def test_a_record_is_frozen_and_shows_neither_key_nor_tag() -> None:
    records: list[Any] = [
        Loaded("secret", 1.0, True),
        Refreshed("secret", 1.0, True),
        LoadFailed("secret", "KeyError"),
        Removed("secret", DELETED),
        Invalidated(DELETED, ("secret",), ("secret",), None, 1),
    ]
    for record in records:
        assert "secret" not in repr(record)
        with pytest.raises(FrozenInstanceError):
            setattr(record, fields(record)[0].name, "other")


def test_events_keep_no_removed_value_alive() -> None:
    class Value:
        pass

    cache = AsyncSafeCache(weigher=lambda _: 1)
    seen = told(cache)
    alive: list[object] = []
    value = Value()
    there = weakref.ref(value)
    cache.on("removed", lambda _: alive.append(there()))
    at_once(cache.set("key", value))
    del value
    at_once(cache.delete("key"))
    assert (alive, there()) == ([None], None), "it is gone before anybody is told"
    assert len(seen) == 2


# -- callbacks


def test_a_callback_runs_outside_the_lock_when_the_operation_is_over() -> None:
    cache = AsyncSafeCache(max_entries=1)
    f = race_safe_cached(cache, "f")(lambda x: x)
    checked: list[object] = []

    def look(event: object) -> None:
        with in_thread(cache.check):  # takes the lock
            pass
        checked.append(event)

    on: Any = cache.on
    for event in EVENTS:
        unsubscribe = on(event, look)
        f(1)
        at_once(cache.set("key", 1))
        at_once(cache.delete("key", "other"))
        run_virtual(cache.refresh(f, 2))
        for worker in tuple(cache._engine.workers):
            worker.join(10)  # it wakes its caller first, and then tells the listeners
        with pytest.raises(KeyError):
            run_virtual(cache.get_or_load("key", Loader(KeyError())))
        run_virtual(cache.clear())
        unsubscribe()
    assert {type(each) for each in checked} == {
        Loaded,
        LoadFailed,
        Refreshed,
        Removed,
        Invalidated,
    }


def test_what_a_callback_causes_is_told_after_what_waits_and_without_recursion() -> None:
    cache = AsyncSafeCache()
    seen: list[object] = []
    depth = deepest = 0

    def more(event: Removed) -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        seen.append(event.key)
        number = int(str(event.key))
        if number < 100:
            at_once(cache.set(str(number + 10), 1))
            at_once(cache.delete(str(number + 10)))
            seen.append("returned")
        depth -= 1

    cache.on("removed", more)
    at_once(cache.set("1", 1))
    at_once(cache.set("2", 1))
    at_once(cache.delete("1", "2"))
    assert deepest == 1
    order = [each for each in seen if each != "returned"]
    assert order == [str(n + x) for n in range(0, 101, 10) for x in (1, 2) if n + x <= 110][:22]
    assert seen[1] == "returned", "it waits for nothing that it caused"


def test_a_callback_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    cache = AsyncSafeCache()

    def broken(_: object) -> None:
        raise ValueError("a secret")

    cache.on("invalidated", broken)
    cache.on("invalidated", lambda _: asyncio.sleep(0))  # nobody would await it
    seen = told(cache, "invalidated")
    with caplog.at_level(logging.WARNING):
        assert at_once(cache.delete("key")) == 0
    assert len(seen) == 1
    stats = cache.health()["cache_stats"]
    assert (stats["listener_errors"], stats["events_dropped"]) == (2, 0)
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [
        "a listener failed with ValueError at Invalidated",
        "a listener failed with TypeError at Invalidated",
    ]


def test_a_callback_that_raises_does_not_fail_the_load(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    def broken(_: object) -> None:
        raise ValueError

    cache.on("loaded", broken)
    assert run_virtual(cache.get_or_load("key", Loader("value")), clock) == "value"
    f = race_safe_cached(cache)(lambda x: x)
    assert f(1) == 1
    assert cache.health()["cache_stats"]["listener_errors"] == 2


def test_an_interrupt_of_a_callback_goes_through_and_loses_nothing() -> None:
    cache = AsyncSafeCache()
    interrupt = True

    def interrupted(_: object) -> None:
        if interrupt:
            raise KeyboardInterrupt

    cache.on("removed", interrupted)
    seen = told(cache, "removed", "invalidated")
    at_once(cache.set("a", 1))
    with pytest.raises(KeyboardInterrupt):
        at_once(cache.delete("a"))
    interrupt = False
    assert cache.peek("a", None) is None, "the operation is complete"
    with in_thread(lambda: at_once(cache.set("b", 1))):
        pass  # no lock stayed locked
    assert seen == []
    at_once(cache.set("c", 1))
    assert seen == [Invalidated(DELETED, ("a",), (), None, 1)]
    assert cache.health()["cache_stats"]["listener_errors"] == 0


def test_a_callback_may_end_its_own_and_other_subscriptions() -> None:
    cache = AsyncSafeCache()
    calls: list[str] = []

    def first(_: object) -> None:
        calls.append("first")
        end_first()
        end_second()

    end_first = cache.on("invalidated", first)
    end_second = cache.on("invalidated", lambda _: calls.append("second"))
    cache.on("invalidated", lambda _: calls.append("third"))
    at_once(cache.delete("key"))
    at_once(cache.delete("key"))
    assert calls == ["first", "third", "third"]


def test_who_subscribes_is_told_only_of_what_comes_after() -> None:
    cache = AsyncSafeCache()
    late: list[object] = []

    def subscribe(_: object) -> None:
        cache.on("invalidated", late.append)

    cache.on("removed", subscribe)
    at_once(cache.set("a", 1))
    at_once(cache.delete("a"))
    assert late == []
    at_once(cache.delete("a"))
    assert len(late) == 1


def test_two_subscriptions_of_one_callback_are_two_and_end_one_by_one() -> None:
    cache = AsyncSafeCache()
    seen: list[object] = []
    ends = [cache.on("invalidated", seen.append), cache.on("invalidated", seen.append)]
    at_once(cache.delete("key"))
    assert len(seen) == 2
    ends[0]()
    ends[0]()
    at_once(cache.delete("key"))
    assert len(seen) == 3
    ends[1]()
    at_once(cache.delete("key"))
    assert len(seen) == 3


def test_nothing_is_kept_of_an_ended_subscription() -> None:
    class Callback:
        def __call__(self, _: object) -> None:
            pass

    cache = AsyncSafeCache()
    callback = Callback()
    there = weakref.ref(callback)
    end = cache.on("removed", callback)
    del callback
    assert there() is not None, "the cache holds what listens"
    end()
    assert there() is None
    assert cache._engine.store.events is None, "no operation looks any further"


def test_a_callback_sees_no_context_of_its_cause(clock: VirtualClock) -> None:
    """A load is shared: its first caller's context would be as good as any other."""
    request = contextvars.ContextVar("request", default="none")
    cache = AsyncSafeCache(clock=clock)
    seen: list[str] = []
    cache.on("loaded", lambda _: seen.append(request.get()))

    async def main() -> None:
        request.set("mine")
        await cache.get_or_load("key", Loader())

    run_virtual(main(), clock)
    assert seen == ["none"]


def test_a_callback_may_start_a_task_that_loads_the_same_key(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    loader = Loader("value", seconds=1.0)
    tasks: list[asyncio.Task[Any]] = []

    def again(event: Invalidated) -> None:
        loop = asyncio.get_running_loop()
        tasks.append(loop.create_task(cache.get_or_load(event.keys[0], loader)))

    cache.on("invalidated", again)

    async def main() -> None:
        await cache.get_or_load("key", loader)
        await cache.delete("key")
        assert await tasks[0] == "value"

    run_virtual(main(), clock)
    assert loader.calls == 2


@pytest.mark.parametrize(
    ("event", "callback", "error", "words"),
    [
        ("evicted", print, ValueError, "'loaded' or .* or 'invalidated'"),
        (5, print, TypeError, "event of type int must be"),
        ("removed", 5, TypeError, "callback must be a callable"),
    ],
)
def test_a_subscription_that_cannot_work_is_refused(
    event: Any, callback: Any, error: type[Exception], words: str
) -> None:
    cache = AsyncSafeCache()
    with pytest.raises(error, match=words):
        cache.on(event, callback)
    assert cache._engine.store.events is None


def test_a_coroutine_function_is_refused_and_told_what_to_do() -> None:
    class Callback:
        async def __call__(self, _: object) -> None:
            pass

        async def method(self, _: object) -> None:
            pass

    cache = AsyncSafeCache()
    callbacks: list[Callable[[object], object]] = [Callback(), Callback().method]
    for callback in callbacks:
        with pytest.raises(TypeError, match=r"asyncio\.Queue"):
            cache.on("removed", callback)


# -- bounds and threads


def test_what_waits_is_bounded_and_what_is_dropped_counted(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualClock
) -> None:
    monkeypatch.setattr("async_safe_cache._events.MOST", 10)
    cache = AsyncSafeCache(clock=clock)
    seen = told(cache, "removed")
    for x in range(25):
        at_once(cache.set(x, x))
    at_once(cache.delete(*range(25)))
    assert seen == [Removed(x, DELETED) for x in range(10)], "the newest are dropped"
    assert cache.health()["cache_stats"]["events_dropped"] == 15


def test_a_thread_does_not_wait_for_the_listener_of_another() -> None:
    cache = AsyncSafeCache()
    at_once(cache.set("slow", 1))
    at_once(cache.set("quick", 1))
    entered, leave = threading.Event(), threading.Event()
    seen: list[tuple[object, int]] = []

    def listener(event: Removed) -> None:
        if event.key == "slow":
            entered.set()
            assert leave.wait(PATIENCE)
        seen.append((event.key, threading.get_ident()))

    cache.on("removed", listener)
    with in_thread(lambda: at_once(cache.delete("slow"))) as slow:
        assert entered.wait(PATIENCE)
        at_once(cache.delete("quick"))
        here = threading.get_ident()
        assert seen == [("quick", here)], "each thread tells of its own"
        leave.set()
    assert seen == [("quick", here), ("slow", slow.ident)]


def test_many_threads_lose_no_event() -> None:
    cache = AsyncSafeCache()
    seen = told(cache, "removed")

    def work(name: str) -> None:
        for x in range(200):
            at_once(cache.set(f"{name}{x}", x))
            at_once(cache.delete(f"{name}{x}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "abcd":
        mine = [each.key for each in seen if each.key[0] == name]
        assert mine == [f"{name}{x}" for x in range(200)], "each thread's in their order"
    assert len(seen) == 800


@pytest.mark.parametrize("by", ["write", "load"])
def test_what_a_finaliser_asked_for_is_told_with_the_next_write_or_load(
    by: str, clock: VirtualClock
) -> None:
    cache = AsyncSafeCache(clock=clock)
    f: Any = race_safe_cached(cache, "f")(lambda x: x)
    f(1)
    at_once(cache.set("hit", 1))
    seen = told(cache, "removed", "invalidated")
    with cache._engine.store.lock:  # as in the middle of a write of this thread
        f.cache_invalidate(1)
    assert seen == []
    if by == "write":
        at_once(cache.set("other", 1))
    else:
        run_virtual(cache.get_or_load("hit", Loader()), clock)
    key = cache.key_for(f, 1)
    assert seen == [Removed(key, DELETED), Invalidated(DELETED, (key,), (), None, 1)]


def test_a_callback_does_not_run_inside_a_write_of_its_thread() -> None:
    cache = AsyncSafeCache()
    seen = told(cache, "removed")
    at_once(cache.set("a", 1))
    engine = cache._engine
    with engine.store.lock:
        engine.store.events.removed(cache._raw, "a", str, DELETED)  # type: ignore[union-attr]
        engine.tell()
        assert seen == []
    engine.tell()
    assert len(seen) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_is_told_nothing_of_the_parent_and_keeps_the_subscriptions() -> None:
    cache = AsyncSafeCache()
    seen: list[object] = []
    answers: list[Any] = []

    def child() -> list[object]:
        before = cache.health()["cache_stats"]["listener_errors"]
        at_once(cache.set("a", 1))
        at_once(cache.delete("a"))
        # What the callback that forked caused comes after it: let it end.
        return [before, len(cache._events._here.pending)]

    def forking(event: Removed) -> None:
        if event.key == "first":
            answers.append(in_child(child))
            raise ValueError
        seen.append(event.key)

    cache.on("removed", forking)
    at_once(cache.set("x", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache._events, "errors", 3)
        at_once(cache.set("first", 1))
        at_once(cache.set("second", 1))
        at_once(cache.delete("first", "second"))
    assert answers == [[0, 1]], "only what the child did itself waits there"
    assert seen == ["second"], "the parent is told as ever"
