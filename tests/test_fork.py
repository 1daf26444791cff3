"""A cache in a forked child: real processes, real threads."""

import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    CacheClosedError,
    MissReason,
    RecursiveLoadError,
    _fork,
    _registry,
    get_async_safe_cache,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, VirtualLoop, run_virtual, settle

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

PATIENCE = 5.0
"""Seconds after which a child that still runs is killed, and its test fails."""


def fork() -> int:
    """Fork, without the word that newer Pythons have on threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Child:
    """A forked child that runs *action*; its result, or its traceback, comes back as JSON."""

    def __init__(self, action: Callable[[], Any], forking: Callable[[], int] = fork) -> None:
        self._ours, theirs = os.pipe()
        self.pid = forking()
        if self.pid == 0:
            try:
                answer = {"returned": action()}
            except BaseException:
                answer = {"raised": traceback.format_exc()}
            try:
                os.write(theirs, json.dumps(answer).encode())
            finally:
                os._exit(0)
        os.close(theirs)

    def result(self) -> Any:
        give_up = time.monotonic() + PATIENCE
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > give_up:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                os.close(self._ours)
                raise AssertionError("the child hangs")
            time.sleep(0.0005)
        text = b""
        while part := os.read(self._ours, 65_536):
            text += part
        os.close(self._ours)
        answer = json.loads(text)
        assert "raised" not in answer, answer["raised"]
        return answer["returned"]


def in_child(action: Callable[[], Any]) -> Any:
    return Child(action).result()


@contextlib.contextmanager
def in_thread(action: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run *action* beside the block, and wait for its end."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it hangs"


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.0005)


# -- what a child inherits


def test_a_child_keeps_the_entries_and_counts_from_zero(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_entries=50, max_memory_bytes=5 * 1024**2, clock=clock)

    @race_safe_cached(cache, ttl=10)
    async def f(x: int) -> list[int]:
        clock.advance(0.01)
        return [x]

    @race_safe_cached(cache)
    def g(x: int) -> str:
        if x == 13:
            raise ValueError(x)
        return str(x)

    async def warm() -> None:
        for x in range(20):
            await f(x)
            await f(x)
        for x in range(20, 61):
            with contextlib.suppress(ValueError):
                g(x % 47)
        f.cache_clear()  # type: ignore[attr-defined]
        await f(1)
        await f(1)
        await cache.set("raw", ("a", "b"))
        await cache.delete("raw")
        await cache.delete("absent")
        await cache.set("kept", 1)

    @race_safe_cached(cache)
    def forgotten() -> list[str]:
        return ["x" * n for n in range(1_000)]

    asyncio.run(warm())
    forgotten()
    del forgotten
    gc.collect()
    asyncio.run(cache.set("kept", 1))
    asyncio.run(cache.set("huge", bytes(6 * 1024**2)))
    cache._engine.flights.overlapping = 3
    stats = cache.stats()
    assert min(stats.estimated_weights, cache._engine.retired.misses, stats.rejected) > 0
    assert cache.health()["cache_stats"]["response_time_ms"] > 0
    before = [len(cache), cache.memory_bytes, f.cache_info().currsize]  # type: ignore[attr-defined]
    assert min(stats.hits, stats.misses, stats.loads, stats.load_errors, stats.evictions) > 0
    assert f.cache_info()[:2] == (1, 1)  # type: ignore[attr-defined]

    def child() -> list[Any]:
        zero = cache.stats()
        assert zero.calls == zero.loads == zero.load_errors == zero.evictions == 0
        assert zero.rejected == zero.overlapping_loads == zero.estimated_weights == 0
        for counts in (zero.misses_by_reason, zero.removals_by_cause, zero.evictions_by_cause):
            assert counts
            assert not any(counts.values())
        assert cache.stats(window=60).calls == 0
        health = cache.health()
        assert health["status"] == "healthy"
        assert health["cache_stats"]["response_time_ms"] == 0
        assert health["cache_stats"]["eviction_rate"] == 0
        assert f.cache_info()[:2] == g.cache_info()[:2] == (0, 0)  # type: ignore[attr-defined]
        assert cache.info(f).loads == 0
        now = [len(cache), cache.memory_bytes, f.cache_info().currsize]  # type: ignore[attr-defined]

        async def use() -> None:
            assert await f(1) == [1]
            assert (await cache.lookup("raw")).reason is MissReason.DELETED
            assert await cache.get("kept") == 1
            clock.advance(10)
            assert await f(1) == [1]

        asyncio.run(use())
        assert g(40) == "40"
        assert f.cache_info()[:2] == (1, 1)  # type: ignore[attr-defined]
        assert g.cache_info()[:2] == (1, 0)  # type: ignore[attr-defined]
        counted = cache.stats()
        assert (counted.hits, counted.misses, counted.loads) == (3, 2, 1)
        assert counted.misses_by_reason["EXPIRED"] == counted.misses_by_reason["DELETED"] == 1
        cache.check()
        return now

    assert in_child(child) == before
    assert cache.stats() == stats, "the parent goes on counting"
    assert cache.peek("kept") == 1


def test_entries_of_instances_live_on_with_their_instances() -> None:
    cache = AsyncSafeCache()

    class Shop:
        @race_safe_cached(cache)
        def price(self, x: int) -> int:
            return x

    shop, gone = Shop(), Shop()
    assert (shop.price(1), gone.price(1)) == (1, 1)
    assert len(cache) == 2
    gone_too = [gone]
    del gone
    gone_too.clear()  # its clean-up is put off until the next write, which the child does

    def child() -> int:
        assert shop.price(1) == 1
        assert cache.info(shop.price).hits == 1
        shop.price(2)
        cache.check()
        return len(cache)

    assert in_child(child) == 2


def test_what_a_child_writes_is_its_own_and_a_grandchild_inherits_it() -> None:
    cache = AsyncSafeCache()
    asyncio.run(cache.set("key", "parent"))

    def child() -> Any:
        asyncio.run(cache.set("key", "child"))
        return in_child(lambda: [cache.peek("key"), cache.stats().calls])

    assert in_child(child) == ["child", 0]
    assert cache.peek("key") == "parent"


def test_forked_workers_serve_what_was_preloaded() -> None:
    """As a preloading server does: import, warm up, fork four workers."""
    cache = AsyncSafeCache("shop")
    loads: list[int] = []

    @race_safe_cached(cache, "price", ttl=3600)
    async def price(x: int) -> float:
        loads.append(x)
        await asyncio.sleep(0.001)
        return x / 2

    async def preload() -> None:
        async with asyncio.TaskGroup() as group:
            for x in range(100):
                group.create_task(price(x))

    asyncio.run(preload())
    assert len(loads) == 100

    def work(number: int) -> list[Any]:
        loads.clear()

        async def main() -> None:
            await cache.start()
            assert [await price(x) for x in range(100)] == [x / 2 for x in range(100)]
            assert loads == [], "they were warm"
            own = 1_000 + number
            assert await asyncio.gather(*(price(own) for _ in range(10))) == [own / 2] * 10
            await cache.set("worker", number)
            assert await cache.get("worker") == number
            assert (await cache.get_health_info())["status"] == "healthy"
            await cache.aclose()

        asyncio.run(main())
        stats = cache.stats()
        return [loads, stats.hits, stats.misses, stats.coalesced]

    children = [Child(lambda number=number: work(number)) for number in range(4)]  # type: ignore[misc]
    answers = [child.result() for child in children]
    assert answers == [[[1_000 + number], 101, 1, 9] for number in range(4)]
    assert cache.peek("worker") is MISSING
    assert not cache.closed


# -- flights


def test_a_child_joins_no_load_of_its_parent(clock: VirtualClock) -> None:
    """The parent's loop is not there to end it."""
    cache = AsyncSafeCache(clock=clock)
    loop = VirtualLoop(clock)
    load = Loader("parent", seconds=5)
    calls = [loop.create_task(cache.get_or_load("key", load)) for _ in range(3)]
    loop.run_until_complete(settle())
    (flight,) = cache._engine.flights.running
    task, ready = flight.task, loop._ready  # type: ignore[attr-defined]

    def child() -> list[Any]:
        assert cache.health()["cache_stats"]["in_flight"] == 0
        value = asyncio.run(cache.get_or_load("key", Loader("child")))
        for call in calls:
            coroutine: Any = call.get_coro()
            coroutine.close()  # as the collector might
        asyncio.run(cache.set("other", 1))
        assert task is not None
        assert (task.cancelling(), list(ready)) == (0, []), "it touched the parent's loop"
        return [value, cache.peek("key"), cache.stats().coalesced]

    assert in_child(child) == ["child", "child", 0]
    assert loop.run_until_complete(asyncio.gather(*calls)) == ["parent"] * 3
    loop.close()


def test_a_child_waits_for_no_thread_of_its_parent() -> None:
    cache = AsyncSafeCache()
    finish = threading.Event()

    @race_safe_cached(cache)
    def f(x: int) -> str:
        if threading.current_thread() is not threading.main_thread():
            assert finish.wait(PATIENCE)
            return "parent"
        return "child"

    answers: list[str] = []
    with (
        in_thread(lambda: answers.append(f(1))),
        in_thread(lambda: answers.append(f(1))),
    ):
        until(lambda: cache.stats().coalesced == 1)
        try:
            assert in_child(lambda: [f(1), f(1), cache.stats().hits]) == ["child", "child", 1]
        finally:
            finish.set()
    assert answers == ["parent", "parent"]


def test_a_child_does_not_wait_for_what_its_parent_does_in_the_background(
    clock: VirtualClock,
) -> None:
    """Neither for its threads, nor for what it watches in other loops."""
    cache = AsyncSafeCache()
    finish = threading.Event()

    @race_safe_cached(cache)
    def f(x: int) -> str:
        assert finish.wait(PATIENCE)
        return "value"

    loop = VirtualLoop(clock)
    loop.create_task(cache.get_or_load("key", Loader("never", seconds=60)))
    loop.run_until_complete(settle())

    def child() -> float:
        assert cache._engine.workers == set()
        assert cache._engine.guards._guards == {}
        begun = time.monotonic()
        asyncio.run(cache.aclose(drain=True))
        return time.monotonic() - begun

    async def main() -> None:
        call = asyncio.create_task(cache.refresh(f, 1))
        far = asyncio.create_task(cache.get_or_load("key", Loader("value")))
        await settle()
        assert len(cache._engine.workers) == len(cache._engine.guards._guards) == 1
        assert in_child(child) < 1
        finish.set()
        assert await asyncio.gather(call, far) == ["value", "value"]

    asyncio.run(main())
    loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop)))
    loop.close()


@pytest.mark.parametrize("how", ["def", "async def"])
def test_a_child_born_inside_a_load_is_no_part_of_it(how: str) -> None:
    """Its own call of the same key is no recursion; what it returns from there is not stored."""
    cache = AsyncSafeCache()
    children: list[Child] = []

    def child(call: Callable[[], Any]) -> Callable[[], Any]:
        def action() -> Any:
            try:
                return call()
            except RecursiveLoadError:
                return "recursion"

        return action

    if how == "def":

        @race_safe_cached(cache)
        def f(x: int) -> str:
            if os.getpid() == parent:
                children.append(Child(child(lambda: f(1))))
                return "parent"
            return "child"

        def call() -> str:
            return f(1)
    else:

        @race_safe_cached(cache)
        async def g(x: int) -> str:
            await asyncio.sleep(0)
            if os.getpid() == parent:
                children.append(Child(child(lambda: asyncio.run(g(1)))))
                return "parent"
            return "child"

        def call() -> str:
            return asyncio.run(g(1))

    parent = os.getpid()
    assert call() == "parent"
    assert [each.result() for each in children] == ["child"]


def test_a_load_that_goes_on_in_the_child_answers_its_caller_alone() -> None:
    """The `def` that forked returns in the child too, from a load that the child has dropped."""
    cache = AsyncSafeCache()
    pipe = os.pipe()
    forked: list[int] = []

    @race_safe_cached(cache)
    def f(x: int) -> str:
        forked.append(fork())
        return "child" if forked[0] == 0 else "parent"

    try:
        answer = f(1)
        if forked[0] == 0:
            missing = cache.peek(f.cache_key(1)) is MISSING  # type: ignore[attr-defined]
            cache.check()
            os.write(pipe[1], f"{answer} {missing} {cache._engine.flights.running}".encode())
    finally:
        if forked[0] == 0:
            os._exit(0)
    os.waitpid(forked[0], 0)
    os.close(pipe[1])
    assert os.read(pipe[0], 100) == b"child True {}"
    os.close(pipe[0])
    assert answer == "parent"
    assert cache.peek(f.cache_key(1)) == "parent"  # type: ignore[attr-defined]


# -- locks


def test_a_fork_waits_for_a_write_of_another_thread() -> None:
    """Otherwise the child has half a write, and a lock that nobody opens."""
    first, cache = AsyncSafeCache("first"), AsyncSafeCache("second")
    store = cache._engine.store
    link = store._link
    linking = threading.Event()

    def slow(entry: Any) -> None:
        linking.set()
        time.sleep(0.1)
        link(entry)

    store._link = slow  # type: ignore[method-assign]

    def child() -> Any:
        cache.check()
        value = cache.peek("key")
        asyncio.run(cache.set("key", "child"))
        asyncio.run(first.set("key", "child"))
        return value

    with in_thread(lambda: asyncio.run(cache.set("key", "parent"))):
        assert linking.wait(PATIENCE)
        assert in_child(child) == "parent"
    asyncio.run(cache.set("other", 1))


def test_a_cache_whose_lock_cannot_be_had_starts_the_child_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread that waits for something else than the fork must not stop it for ever."""
    monkeypatch.setattr(_fork, "PATIENCE", 0.05)
    cache, bystander = AsyncSafeCache(), AsyncSafeCache()
    store = cache._engine.store
    holding, finish = threading.Event(), threading.Event()

    @race_safe_cached(cache)
    def f(x: int) -> int:
        return x

    def hold() -> None:
        with store.lock:
            (entry,) = (each for each in store.order.newest() if each.key == "half")
            del entry.space.data[entry.key]  # in the middle of its removal
            store.bytes -= 1
            holding.set()
            assert finish.wait(PATIENCE)
            entry.space.data[entry.key] = entry
            store.bytes += 1

    f(1)
    asyncio.run(cache.set("half", 1))
    asyncio.run(bystander.set("key", 1))
    f(2)

    def child() -> list[Any]:
        found = [f.cache_info().currsize, len(cache), cache.memory_bytes]  # type: ignore[attr-defined]
        assert f(1) == f(1) == 1
        asyncio.run(cache.set("half", 2))
        cache.check()
        return [*found, cache.peek("half"), cache.stats().hits, bystander.peek("key")]

    with in_thread(hold):
        assert holding.wait(PATIENCE)
        try:
            answer = in_child(child)
        finally:
            finish.set()
    assert answer[0] == answer[1] == answer[2] == 0
    assert answer[3:] == [2, 1, 1]
    assert f.cache_info().currsize == 2  # type: ignore[attr-defined]


def test_a_cache_made_in_the_middle_of_a_fork_works_in_the_child() -> None:
    """The fork waits for the lock of one cache; another one is made, and written to, meanwhile."""
    cache = AsyncSafeCache()
    caches: list[AsyncSafeCache] = []
    holding, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with cache._engine.store.lock:
            holding.set()
            time.sleep(0.1)
            caches.append(AsyncSafeCache())
            asyncio.run(caches[0].set("key", "parent"))
            caches[0]._engine.store.lock.acquire()
        assert forked.wait(PATIENCE)
        caches[0]._engine.store.lock.release()

    def child() -> Any:
        asyncio.run(caches[0].set("other", "child"))
        caches[0].check()
        return [caches[0].peek("other"), cache.stats().calls]

    with in_thread(hold):
        assert holding.wait(PATIENCE)
        try:
            assert in_child(child) == ["child", 0]
        finally:
            forked.set()
    assert caches[0].peek("key") == "parent"


def test_a_thread_may_fork_inside_the_lock() -> None:
    """A finaliser can run there, and may start a process."""
    caches = [AsyncSafeCache() for _ in range(3)]
    asyncio.run(caches[1].set("key", 1))

    def forked_inside() -> int:
        with caches[1]._engine.store.lock:
            return fork()

    def child() -> list[Any]:
        for cache in caches:
            asyncio.run(cache.set("other", 2))
            cache.check()
            with in_thread(lambda: asyncio.run(cache.set("third", 3))):  # noqa: B023
                pass
        return [caches[1].peek("key"), caches[2].peek("other")]

    assert Child(child, forked_inside).result() == [1, 2]
    with in_thread(lambda: asyncio.run(caches[1].set("key", 2))):
        pass
    assert caches[1].peek("key") == 2


def test_two_threads_that_fork_inside_different_locks_do_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_fork, "PATIENCE", 0.1)
    caches = [AsyncSafeCache(), AsyncSafeCache()]
    both = threading.Barrier(2)

    def child() -> str:
        for cache in caches:
            asyncio.run(cache.set("key", "child"))
            cache.check()
        return "alive"

    answers: list[Any] = []

    def work(mine: int) -> None:
        def inside() -> int:
            with caches[mine]._engine.store.lock:
                both.wait(PATIENCE)
                return fork()

        answers.append(Child(child, inside).result())

    with in_thread(lambda: work(0)), in_thread(lambda: work(1)):
        pass
    assert answers == ["alive", "alive"]
    for cache in caches:
        with in_thread(lambda: asyncio.run(cache.set("key", "parent"))):  # noqa: B023
            pass


def test_a_child_can_make_keys_of_new_classes() -> None:
    """The lock of the key registry is held across the fork as well."""
    from async_safe_cache import _keys, register_key_type

    holding, finish = threading.Event(), threading.Event()

    def hold() -> None:
        with _keys._registering:
            holding.set()
            finish.wait(0.1)

    class New:
        pass

    def child() -> str:
        register_key_type(New, lambda _: 1)
        return "done"

    with in_thread(hold):
        assert holding.wait(PATIENCE)
        assert in_child(child) == "done"


def test_the_registry_of_forks_keeps_no_cache_alive() -> None:
    gc.collect()
    before = len(_fork._heirs)
    caches = [AsyncSafeCache() for _ in range(10)]
    assert len(_fork._heirs) == before + 10
    caches.clear()
    gc.collect()
    assert len(_fork._heirs) == before
    assert _fork._forks.held == []


# -- background work, start and end


def test_the_sweeper_starts_again_in_the_child(clock: VirtualClock) -> None:
    """As after any loop that died: by itself at the next miss, or by start()."""
    cache = AsyncSafeCache(clock=clock)
    loop = VirtualLoop(clock)
    loop.run_until_complete(cache.start())
    parents = cache._sweeper._task
    assert parents is not None
    sweeper = cache._sweeper
    sweeper.errors, sweeper.last_error, sweeper.last_success = 3, "OSError", clock()

    def child(begin: str) -> list[Any]:
        assert cache._sweeper._task is None
        health = cache.health()["background"]["sweeper"]
        assert (health["running"], health["wanted"]) == (False, True)
        assert (health["errors"], health["failing"]) == (0, 0)
        assert health["last_error"] is health["last_success_age"] is None

        async def main() -> list[Any]:
            if begin == "start":
                await cache.start()
            else:
                assert await cache.get("absent") is None
            await cache.set("key", 1, ttl=1)
            await asyncio.sleep(2.5)
            swept = cache.memory_bytes
            health = cache.health()
            await cache.aclose()
            return [swept, health["status"], len(asyncio.all_tasks())]

        return run_virtual(main(), clock)  # type: ignore[no-any-return]

    for begin in ("start", "miss"):
        holding, finish = threading.Event(), threading.Event()

        def hold() -> None:
            with sweeper._lock:  # somebody starts it at this very moment
                holding.set()  # noqa: B023
                finish.wait(PATIENCE)  # noqa: B023

        with in_thread(hold):
            assert holding.wait(PATIENCE)
            try:
                assert in_child(lambda: child(begin)) == [0, "healthy", 1]  # noqa: B023
            finally:
                finish.set()
    assert cache._sweeper._task is parents
    assert cache._sweeper.running
    loop.run_until_complete(cache.aclose())
    assert parents.cancelled()
    loop.close()


def test_a_child_closes_its_own_cache_only() -> None:
    cache = AsyncSafeCache()

    async def main() -> None:
        async with cache:
            call = asyncio.create_task(cache.get_or_load("key", Loader("value", seconds=0.2)))
            await settle()

            def child() -> str:
                asyncio.run(cache.aclose())
                with pytest.raises(CacheClosedError):
                    asyncio.run(cache.get("key"))
                asyncio.run(cache.start())
                return "open" if not cache.closed else "closed"

            assert in_child(child) == "open"
            assert await call == "value"

    asyncio.run(main())


def test_a_cache_that_is_being_closed_is_closed_and_empty_in_the_child(
    clock: VirtualClock,
) -> None:
    """Who drains it stays in the parent."""
    cache = AsyncSafeCache(clock=clock)
    loop = VirtualLoop(clock)
    asyncio.run(cache.set("kept", 1))
    call = loop.create_task(cache.get_or_load("key", Loader("value", seconds=5)))
    loop.run_until_complete(settle())
    closing = loop.create_task(cache.aclose(drain=True, timeout=60))
    loop.run_until_complete(settle())
    assert not closing.done()
    assert len(cache) == 1

    def child() -> list[Any]:
        with pytest.raises(CacheClosedError):
            asyncio.run(cache.get("kept"))
        status, closed = cache.health()["status"], repr(cache).split(",")[0]
        asyncio.run(cache.start())
        found = asyncio.run(cache.lookup("kept"))
        return [closed, status, len(cache), str(found.reason)]

    assert in_child(child) == [
        f"<AsyncSafeCache {cache.name!r} closed",
        "closed",
        0,
        "ABSENT",
    ]
    loop.run_until_complete(closing)
    assert call.result() == "value"
    loop.close()


def test_a_named_cache_is_the_inherited_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_caches", {})

    async def parent() -> AsyncSafeCache:
        cache = await get_async_safe_cache("shop", max_entries=10)
        await cache.set("key", 1)
        return cache

    cache = asyncio.run(parent())

    async def child() -> list[Any]:
        again = await get_async_safe_cache("shop", max_entries=10)
        return [again is cache, await again.get("key"), (await again.get_health_info())["status"]]

    assert in_child(lambda: asyncio.run(child())) == [True, 1, "healthy"]
    asyncio.run(cache.aclose())


def test_multiprocessing_with_fork_needs_nothing_else() -> None:
    cache = AsyncSafeCache()
    asyncio.run(cache.set("key", "parent"))
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()

    def work(number: int) -> None:
        async def main() -> Any:
            async with cache:
                return await cache.get("key"), await cache.get_or_load("own", lambda: number)

        results.put(asyncio.run(main()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        workers = [context.Process(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode == 0
    assert sorted(results.get() for _ in workers) == [("parent", number) for number in range(3)]
    results.close()


# -- silence


def run_program(program: str) -> "subprocess.CompletedProcess[str]":
    quiet = "ignore:This process:DeprecationWarning"  # what newer Pythons say of any fork
    command = [sys.executable, "-X", "dev", "-W", "error", "-W", quiet, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("where", "end"),
    [
        ("in the loop", "os._exit(0)"),
        ("beside the loop", "os._exit(0)"),
        ("after the loop", "os._exit(0)"),
        ("after the loop", "sys.exit(0)"),
    ],
)
def test_a_child_leaves_the_parents_tasks_alone_and_says_nothing(where: str, end: str) -> None:
    """No clean-up code of the parent's loads runs twice: it would end the parent's business."""
    done = run_program(f"""
import asyncio, gc, os, sys, threading
from async_safe_cache import AsyncSafeCache, race_safe_cached
cache = AsyncSafeCache()
here, where = os.getpid(), {where!r}

@race_safe_cached(cache)
async def f(x):
    try:
        await asyncio.sleep(0.05 if x else 60)
    finally:
        if os.getpid() != here and x != 7:
            os.write(2, b"clean-up in the child")
    return x

def child():
    gc.collect()
    assert not cache._engine.flights.running
    async def use():
        async with cache:
            assert await f(7) == 7
    asyncio.run(use())
    gc.collect()
    os.write(1, b"child ")

def fork():
    pid = os.fork()
    if not pid:
        child()
        {end}
    assert os.waitpid(pid, 0)[1] == 0

async def main():
    await cache.start()
    loads = [asyncio.create_task(f(x)) for x in (0, 1, 1, 2)]
    await asyncio.sleep(0.01)
    if where == "in the loop":
        fork()
    elif where == "beside the loop":
        await asyncio.to_thread(fork)
    else:
        return loads
    assert await asyncio.gather(*loads[1:]) == [1, 1, 2]
    loads[0].cancel()
    await asyncio.sleep(0)
    await cache.aclose()

loop = asyncio.new_event_loop()
loop.slow_callback_duration = 60
loads = loop.run_until_complete(main())
if where == "after the loop":
    for load in loads:
        load._log_destroy_pending = False  # they are the program's own
    fork()
    assert loop.run_until_complete(asyncio.gather(*loads[1:])) == [1, 1, 2]
    loads[0].cancel()
    loop.run_until_complete(cache.aclose())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print("done")
""")
    # What the child of a loop that never closed it says of that loop is not ours to silence.
    said = [line for line in done.stderr.splitlines() if "unclosed event loop" not in line]
    said = [line for line in said if "ResourceWarning" not in line and "_warn(" not in line]
    assert (done.returncode, done.stdout, said) == (0, "child done\n", []), done.stderr


# -- all of it at once


def test_two_hundred_forks_under_load_leave_no_child_behind() -> None:
    """Four threads read, write, load and sweep; every child can do the same, at once."""
    caches = [AsyncSafeCache(f"cache {n}", max_entries=64) for n in range(2)]
    stop = threading.Event()
    failures: list[BaseException] = []

    functions: list[tuple[Any, Any]] = []
    for cache in caches:

        @race_safe_cached(cache, ttl=0.01)
        async def f(x: int) -> int:
            await asyncio.sleep(0)
            return x

        @race_safe_cached(cache)
        def g(x: int) -> int:
            return x

        functions.append((f, g))

    async def use(rng: random.Random) -> None:
        for _ in range(10):
            which = rng.randrange(2)
            cache, (f, g) = caches[which], functions[which]
            key = rng.randrange(100)
            assert await f(key) == g(key) == key
            await cache.set(key, key, ttl=rng.choice([None, 0.001]))
            assert await cache.get(key) in (key, None)
            match rng.randrange(20):
                case 0:
                    await cache.clear()
                case 1:
                    await cache.start()
                case 2:
                    f.cache_clear()
                case 3:
                    AsyncSafeCache(f"new {key}")

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                asyncio.run(use(rng))
        except BaseException as error:
            failures.append(error)

    def child() -> str:
        asyncio.run(use(random.Random(0)))
        for cache in caches:
            cache.check()
            stats = cache.stats()
            assert stats.hits + stats.misses + stats.coalesced == stats.calls < 100
        return "done"

    threads = [threading.Thread(target=work, args=[seed], daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        children: list[Child] = []
        for _ in range(200):
            children.append(Child(child))
            if len(children) == 4:
                assert children.pop(0).result() == "done"
        assert [each.result() for each in children] == ["done"] * 3
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert failures == []
