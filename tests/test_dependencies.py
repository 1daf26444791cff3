"""depends_on=: whatever changes a source invalidates what was computed from it."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, MissReason, race_safe_cached
from async_safe_cache._links import Link, Links

from .virtual import VirtualClock, run_virtual, settle


def nodes_of(cache: AsyncSafeCache) -> Any:
    return cache._engine.store.links.nodes


def _changes() -> dict[str, Callable[[AsyncSafeCache], Any]]:
    async def commit(cache: AsyncSafeCache) -> None:
        async with cache.transaction() as tx:
            tx.set("a", 2)

    return {
        "set": lambda cache: cache.set("a", 2),
        "set_many": lambda cache: cache.set_many({"a": 2}),
        "delete": lambda cache: cache.delete("a"),
        "expire": lambda cache: cache.expire("a"),
        "tag": lambda cache: cache.invalidate_tags("t"),
        "clear": lambda cache: cache.clear(),
        "update": lambda cache: cache.update("a", lambda _: 2),
        "commit": commit,
    }


@pytest.mark.parametrize("change", sorted(_changes()))
def test_a_change_reaches_everything_behind_it(change: str, clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await cache.set("a", 1, tags="t")
        await cache.set("b", 1, depends_on="a")
        await cache.set("c", 1, depends_on=["b", "other"])
        await cache.set("d", 1, depends_on="unrelated")
        await _changes()[change](cache)
        assert await cache.get_many("bcd") == ({} if change == "clear" else {"d": 1})
        if change != "clear":
            assert (await cache.lookup("c")).reason is MissReason.DELETED
        assert cache.stats().inconsistent_reads == 0
        await cache.clear()
        await asyncio.sleep(0)
        assert not nodes_of(cache)

    run_virtual(main(), clock)


def test_calls_and_keys_can_be_named(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    class Service:
        @race_safe_cached(cache)
        async def price(self, symbol: str) -> str:
            return symbol

    service = Service()

    @race_safe_cached(cache, "rates")
    async def rates() -> int:
        return 1

    @race_safe_cached(
        cache, "view", depends_on=lambda s: [(service.price, s), rates, ("raw", s), f"row:{s}"]
    )
    async def view(symbol: str) -> str:
        return f"{await service.price(symbol)} {await rates()}"

    async def main() -> None:
        assert "current()" in view.cache_source  # type: ignore[attr-defined]
        assert "current()" not in rates.cache_source  # type: ignore[attr-defined]
        for change in (
            lambda: cache.invalidate(service.price, "x"),
            lambda: cache.invalidate(rates),
            lambda: cache.delete(("raw", "x")),
            lambda: cache.delete("row:x"),
        ):
            assert await view("x") == await view("x") == "x 1"
            assert await cache.get(view.cache_key("x")) == "x 1"  # type: ignore[attr-defined]
            await change()
            assert not view.cache_contains("x")  # type: ignore[attr-defined]
        info = view.cache_info()  # type: ignore[attr-defined]
        assert (info.hits, info.misses) == (8, 4)
        await view("y")
        await cache.invalidate(service.price, "x")
        assert view.cache_contains("y")  # type: ignore[attr-defined]

    run_virtual(main(), clock)


def test_a_change_fences_the_load_of_what_depends_on_it(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    source = [1]

    async def load() -> int:
        value = source[0]
        await asyncio.sleep(1)
        return value

    async def read() -> int:
        return await cache.get_or_load("b", load, depends_on="a")

    async def main() -> None:
        early = asyncio.create_task(read())
        await settle()
        source[0] = 2
        await cache.delete("a")
        newcomer = asyncio.create_task(read())
        assert await early == 1
        assert await newcomer == await cache.get("b") == 2

    run_virtual(main(), clock)


def test_expiry_eviction_and_loads_of_a_source_are_no_change(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    calls: list[int] = []

    @race_safe_cached(cache, "source", ttl=1)
    async def source() -> int:
        calls.append(1)
        return len(calls)

    @race_safe_cached(cache, "view", depends_on=source)
    async def view() -> int:
        return await source()

    async def main() -> None:
        assert await view() == 1
        clock.advance(2)
        assert await view() == 1
        await cache._sweep()
        assert await source() == 2
        assert await view() == 1
        assert await cache.refresh(source) == 3, "a refresh that replaces a fresh value is one"
        assert await view() == 3

    run_virtual(main(), clock)


def test_a_load_that_refreshes_its_own_source_is_stored(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    calls: list[int] = []

    @race_safe_cached(cache, "source")
    async def source() -> int:
        calls.append(1)
        return len(calls)

    @race_safe_cached(cache, "view", depends_on=source)
    async def view() -> int:
        return await cache.refresh(source)

    async def main() -> None:
        await source()
        assert await view() == await view() == 2
        await cache.invalidate(source)
        assert await view() == 3

    run_virtual(main(), clock)


def test_a_change_passes_through_what_was_evicted(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, max_entries=1)

    async def main() -> None:
        await cache.set("b", 1, depends_on="a")
        await cache.set("c", 1, depends_on="b")
        assert await cache.get("b") is None
        await cache.delete("a")
        assert await cache.get("c") is None
        assert not nodes_of(cache)

    run_virtual(main(), clock)


def test_cycles_end_where_they_began(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, max_entries=3)

    async def main() -> None:
        for key, source in ("ab", "bc", "ca"):
            await cache.get_or_load(key, lambda: 1, depends_on=source)
        assert len(cache) == 3
        await cache.delete("b")
        assert len(cache) == 0
        for key, source in ("ab", "bc", "ca"):
            await cache.get_or_load(key, lambda: 1, depends_on=source)
        for number in range(3):
            await cache.set(number, 1)
        assert not nodes_of(cache), "a cycle that no value holds is gone"

    run_virtual(main(), clock)


def test_beyond_the_bound_the_oldest_place_counts_as_changed(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_safe_cache._links.MOST_KEPT", 10)
    cache = AsyncSafeCache(clock=clock, max_entries=20)

    async def main() -> None:
        for number in range(1, 200):
            await cache.set(number, 1, depends_on=number - 1)
            assert len(nodes_of(cache)) <= 40
        await cache.delete(195)
        assert await cache.get_many(range(196, 200)) == {}
        assert cache.stats().inconsistent_reads == 0

    run_virtual(main(), clock)


def test_an_edge_that_is_missed_is_noticed_by_who_reads(clock: VirtualClock) -> None:
    """Health shows a fault of this library; nobody is served the older value."""
    cache = AsyncSafeCache(clock=clock)
    calls: list[int] = []

    @race_safe_cached(cache, "view", depends_on="a")
    async def view() -> int:
        calls.append(1)
        return len(calls)

    async def main() -> None:
        await view()
        await cache.set("raw", 1, depends_on="a")
        store = cache._engine.store
        store.generation += 1
        nodes_of(cache)[cache._raw, "a"].changed = store.generation
        assert await view() == 2
        assert cache.peek("raw") is not 1  # noqa: F632
        assert await cache.get("raw") is None
        assert cache.health()["cache_stats"]["inconsistent_reads"] == 2
        assert await view() == 2

    run_virtual(main(), clock)


def test_what_cannot_be_a_dependency_is_refused(clock: VirtualClock) -> None:
    cache, other = AsyncSafeCache(clock=clock), AsyncSafeCache("other", clock=clock)

    @race_safe_cached(other, "f")
    async def f(x: int) -> int:
        return x

    @race_safe_cached(cache, "own", depends_on=lambda x: (own, x))
    async def own(x: int) -> int:
        return x

    async def main() -> None:
        await cache.set("a", 1)
        with pytest.raises(ValueError, match="itself"):
            await cache.set("a", 2, depends_on=["b", "a"])
        with pytest.raises(ValueError, match="itself"):
            await own(1)
        with pytest.raises(ValueError, match="another cache"):
            await cache.set("b", 2, depends_on=[(f, 1)])
        with pytest.raises(TypeError):
            await cache.set("b", 2, depends_on=[own])  # it takes an argument
        with pytest.raises(TypeError):
            await cache.set("b", 2, depends_on=[object()])
        with pytest.raises(ValueError, match="at most 64"):
            await cache.set("b", 2, depends_on=list(range(65)))
        assert await cache.get_many("ab") == {"a": 1}

    run_virtual(main(), clock)


def test_dependencies_are_paid_for_inside_the_bound(clock: VirtualClock) -> None:
    import tracemalloc

    async def fill(cache: AsyncSafeCache, *, linked: bool) -> int:
        tracemalloc.start()
        begin = tracemalloc.get_traced_memory()[0]
        for number in range(3_000):
            await cache.set(number, None, depends_on=f"row {number}" if linked else ())
        used = tracemalloc.get_traced_memory()[0] - begin
        tracemalloc.stop()
        return used

    async def main() -> None:
        plain, linked = AsyncSafeCache(clock=clock), AsyncSafeCache(clock=clock)
        more = -(await fill(plain, linked=False)) + await fill(linked, linked=True)
        assert linked.memory_bytes - plain.memory_bytes >= more

    run_virtual(main(), clock)


def test_a_random_life_of_links_is_a_plain_graph() -> None:
    chance = random.Random(3)
    links = Links()
    living: list[Link] = []
    generation = 1
    for _ in range(3_000):
        action = chance.randrange(10)
        if action < 5:
            place = chance.randrange(12)
            sources = {chance.randrange(12) for _ in range(2)} - {place}
            living.append(links.declare(place, sources, generation))
        elif action < 9 and living:
            links.release(living.pop(chance.randrange(len(living))))
        else:
            place = chance.randrange(12)
            behind, waiting = {place}, [place]
            while waiting:
                each = waiting.pop()
                for link in living:
                    names = {node.place for node in link.sources}
                    if each in names and link.node.place not in behind:
                        behind.add(link.node.place)
                        waiting.append(link.node.place)
            generation += 1
            found = set(links.change(place, generation))
            assert found >= behind - {place}, "what is alive is always reached"
            for link in [each for each in living if each.node.place in {place, *found}]:
                living.remove(link)
                links.release(link)
            assert all(each.current() for each in living)
        links.check(living)
    while living:
        links.release(living.pop())
    assert not links.nodes


# -- version and explain


def test_a_value_of_another_version_is_a_miss(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    calls: list[int] = []

    async def load() -> int:
        calls.append(1)
        value = len(calls)
        await asyncio.sleep(1)
        return value

    async def read(version: Any) -> int:
        return await cache.get_or_load("a", load, version=version)

    async def main() -> None:
        assert await read(1) == await read(1) == 1
        assert await read(2) == 2
        assert await cache.get("a") == 2, "who names no version reads any"
        assert cache.stats().misses_by_reason["VERSION_MISMATCH"] == 1
        got = await asyncio.gather(read(3), read(4), read(4))
        assert got == [3, 4, 4], "a load of another version is not joined"
        with pytest.raises(TypeError, match="version"):
            await read(1.5)

    run_virtual(main(), clock)


def test_a_function_of_another_version_says_so_when_it_replaces_one(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        def define(version: int, code: str) -> Any:
            space: dict[str, Any] = {"__name__": "shop"}
            exec(f"async def price(x):\n    return {code}", space)
            return race_safe_cached(cache, "price", version=version)(space["price"])

        first = define(1, "x")
        assert await first(1) == 1
        second = define(2, "x + 1")
        assert (await cache.lookup(second.cache_key(1))).reason is MissReason.VERSION_MISMATCH
        assert await second(1) == 2
        await cache.set(second.cache_key(5), "set")
        assert await second(5) == "set"

    run_virtual(main(), clock)


def test_explain_tells_what_is_known_of_a_key(clock: VirtualClock) -> None:
    cache = AsyncSafeCache("prices", clock=clock)

    async def fail() -> int:
        await asyncio.sleep(1)
        raise OSError("secret")

    async def main() -> None:
        nothing = await cache.explain("a")
        assert (nothing.hit, nothing.reason, nothing.age) == (False, MissReason.ABSENT, None)
        await cache.set("a", "secret", ttl=10, tags="t", depends_on="b")
        clock.advance(4)
        known = await cache.explain("a")
        assert (known.hit, known.age, known.ttl_left) == (True, 4, 6)
        assert (known.tags, known.depends_on) == (("t",), 1)
        assert (await cache.explain("b")).dependents == 1
        await cache.set("a", "secret")
        newer = await cache.explain("a")
        assert newer.generation > known.generation  # type: ignore[operator]
        await cache.delete("a")
        task = asyncio.create_task(cache.get_or_load("a", fail))
        await settle()
        running = await cache.explain("a")
        assert (running.in_flight, running.waiters) == ("running", 1)
        assert running.last_removal is MissReason.DELETED
        with pytest.raises(OSError):
            await task
        failed = await cache.explain("a")
        assert (failed.in_flight, failed.last_load_error) == (None, "OSError")
        for each in (known, newer, running, failed):
            assert "secret" not in f"{each} {each!r}"
        assert cache.stats().calls == 1

    run_virtual(main(), clock)
