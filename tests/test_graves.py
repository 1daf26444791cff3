"""What a large clear leaves behind: gone for everybody at once, freed little by little.

A clear takes the dict of a namespace away; its entries keep their places in the
recency order and in the expiry index until a write or a sweep gets to them.
"""

import asyncio
import random
import weakref
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_safe_cache import AsyncSafeCache, MissReason, race_safe_cached
from async_safe_cache._closing import SLICE
from async_safe_cache._removals import LEAST, MOST
from async_safe_cache._store import PER_WRITE, Store

from .virtual import VirtualClock, at_once, run_virtual

FEW = 64
MANY = 4 * FEW


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a clear of many begin where tests are still quick."""
    monkeypatch.setattr("async_safe_cache._store.FEW", FEW)


class Pair:
    """A cache of two functions, and what it must hold, in one plain ordered dict."""

    def __init__(self, clock: VirtualClock, bound: int) -> None:
        self.clock = clock
        self.bound = bound
        self.cache = AsyncSafeCache(
            max_entries=bound, max_memory_bytes=None, weigher=lambda value: value, clock=clock
        )
        self.functions: list[Any] = [
            race_safe_cached(self.cache, name)(lambda x: x) for name in ("one", "two")
        ]
        # (function, key) -> (value, deadline), the least recently used first
        self.live: OrderedDict[tuple[int, int], tuple[int, float]] = OrderedDict()
        self.removals: list[MissReason] = []
        self.last: dict[tuple[int, int], int] = {}  # the place of its last removal in there

    @property
    def store(self) -> Store:
        return self.cache._engine.store

    def gone(self, place: tuple[int, int], reason: MissReason) -> None:
        del self.live[place]
        self.last[place] = len(self.removals)
        self.removals.append(reason)

    def expire(self) -> None:
        for place in [p for p, held in self.live.items() if held[1] <= self.clock.now]:
            self.gone(place, MissReason.EXPIRED)

    def key(self, place: tuple[int, int]) -> Any:
        return self.cache.key_for(self.functions[place[0]], place[1])

    def set(self, place: tuple[int, int], value: int, ttl: float | None) -> None:
        self.expire()
        at_once(self.cache.set(self.key(place), value, ttl=ttl))
        self.live.pop(place, None)
        while len(self.live) >= self.bound:
            self.gone(next(iter(self.live)), MissReason.EVICTED)
        deadline = float("inf") if ttl is None else self.clock.now + ttl
        self.live[place] = value, deadline

    def delete(self, place: tuple[int, int]) -> None:
        self.expire()
        assert at_once(self.cache.delete(self.key(place))) == (place in self.live)
        if place in self.live:
            self.gone(place, MissReason.DELETED)

    def reason(self, place: tuple[int, int]) -> MissReason:
        return self.removals[self.last[place]] if place in self.last else MissReason.ABSENT

    def remembers(self, place: tuple[int, int]) -> bool:
        """Tell whether its removal is surely one of the last 256: what expired is removed late."""
        last = self.last.get(place, 0)
        late = sum(reason is MissReason.EXPIRED for reason in self.removals[-512:last])
        return len(self.removals) - last + late <= LEAST

    def clear(self, function: int) -> None:
        self.expire()
        self.functions[function].cache_clear()
        for place in [place for place in self.live if place[0] == function]:
            self.gone(place, MissReason.CLEARED)

    def get(self, place: tuple[int, int]) -> None:
        self.expire()
        found = at_once(self.cache.lookup(self.key(place)))
        if place in self.live:
            self.live.move_to_end(place)
            assert found.value == self.live[place][0]
        else:
            assert found.reason == self.reason(place) or (
                found.reason is MissReason.ABSENT and not self.remembers(place)
            )

    def compare(self) -> None:
        self.expire()
        assert len(self.cache) == len(self.live)
        assert sum(f.cache_info().currsize for f in self.functions) == self.store.count
        self.cache.check()


def play(pair: Pair, chance: random.Random, steps: int, keys: int) -> None:
    for number in range(steps):
        place = chance.randrange(2), chance.randrange(keys)
        step = chance.choices(
            ["set", "get", "delete", "clear", "wait", "sweep"], [60, 20, 5, 1, 4, 10]
        )[0]
        if step == "set":
            pair.set(place, 1 + number, chance.choice([None, None, 1, 5, 40.5]))
        elif step == "clear":
            pair.clear(place[0])
        elif step == "wait":
            pair.clock.advance(chance.choice([0.25, 0.5, 1]))
        elif step == "sweep":
            pair.cache._engine.sweep(pair.clock(), chance.choice([1, 7, 40]))
        else:
            getattr(pair, step)(place)
        if number % 25 == 0:
            pair.compare()
    pair.compare()


@pytest.mark.parametrize("bound", [FEW + 10, 3 * FEW, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_a_cleared_function_is_gone_at_once_whatever_is_freed_when(bound: int, seed: int) -> None:
    """Filled, cleared, filled again while the dead are still there: nobody meets them."""
    chance = random.Random(f"{bound}.{seed}")
    pair = Pair(VirtualClock(), bound)
    for _ in range(4):
        for key in range(2 * FEW):
            pair.set((chance.randrange(2), key), key + 1, chance.choice([None, 5, 30]))
        play(pair, chance, 250, 2 * FEW)
        pair.clear(0)
        pair.compare()


@given(
    st.integers(1, MANY),
    st.lists(
        st.tuples(
            st.sampled_from(["set", "get", "delete", "clear", "wait", "sweep"]),
            st.integers(0, MANY),
        ),
        max_size=25,
    ),
)
def test_after_a_clear_of_many_every_answer_is_that_of_a_plain_model(
    bound: int, steps: list[tuple[str, int]]
) -> None:
    pair = Pair(VirtualClock(), bound)
    for key in range(MANY):
        pair.set((key % 2, key), 1, 2 if key % 3 == 0 else None)
    pair.clear(0)
    pair.compare()
    for step, key in steps:
        if step == "set":
            pair.set((key % 2, key), 2, 1 if key % 5 == 0 else None)
        elif step == "clear":
            pair.clear(key % 2)
        elif step == "wait":
            pair.clock.advance(1)
        elif step == "sweep":
            pair.cache._engine.sweep(pair.clock(), key)
        else:
            getattr(pair, step)((key % 2, key))
        pair.compare()


def filled(clock: VirtualClock, count: int, **options: Any) -> tuple[AsyncSafeCache, Any]:
    cache = AsyncSafeCache(clock=clock, **options)

    @race_safe_cached(cache, "price")
    def price(number: int) -> int:
        return number

    for number in range(count):
        at_once(cache.set(cache.key_for(price, number), number, ttl=60))
    return cache, price


def test_clearing_a_large_function_frees_nothing_by_itself(clock: VirtualClock) -> None:
    """Whoever clears waits for none of it; bytes and entries are exact all the same."""
    cache, price = filled(clock, MANY)
    at_once(cache.set("other", 1))
    other = cache._raw.bytes
    price.cache_clear()
    store = cache._engine.store
    assert len(store.order) == MANY + 1
    assert (len(cache), cache.memory_bytes, price.cache_info().currsize) == (1, other, 0)
    cache.check()


def test_each_write_frees_a_few_of_the_dead(clock: VirtualClock) -> None:
    cache, price = filled(clock, MANY)
    price.cache_clear()
    for number in range(1, 11):
        at_once(cache.set("same", number))
        assert len(cache._engine.store.order) == MANY - number * PER_WRITE + 1
    cache.check()


def test_a_sweep_frees_the_dead_in_slices(clock: VirtualClock) -> None:
    async def main() -> None:
        cache, price = filled(clock, 3_000)
        price.cache_clear()
        sweep = asyncio.create_task(cache._sweep())
        seen = []
        while not sweep.done():
            seen.append(len(cache._engine.store.order))
            await asyncio.sleep(0)
        assert max(before - after for before, after in pairwise(seen)) <= SLICE
        assert len(cache._engine.store.order) == 0
        assert cache.stats().removals_by_cause["CLEARED"] == 3_000

    run_virtual(main(), clock)


@pytest.mark.parametrize("end", ["clear", "aclose"])
def test_the_end_of_everything_frees_in_slices(end: str, clock: VirtualClock) -> None:
    async def main() -> None:
        cache, _ = filled(clock, 5_000)
        dead = []
        ending = asyncio.create_task(getattr(cache, end)())
        while not ending.done():
            dead.append(cache._engine.store._dead)
            await asyncio.sleep(0)
        assert max(before - after for before, after in pairwise(dead[1:])) <= SLICE
        assert len(dead) >= 5_000 // SLICE
        assert not cache._engine.store._graves

    run_virtual(main(), clock)


def test_the_dead_are_inside_the_bounds(clock: VirtualClock) -> None:
    """What needs room takes that of the dead first, and only then of the living."""
    cache, price = filled(clock, MANY, max_memory_bytes=MANY * 1_200, max_entries=MANY + 1)
    store = cache._engine.store
    at_once(cache.set("living", 1))
    price.cache_clear()
    for number in range(MANY):
        at_once(cache.set(number, b"x" * 100))
        assert store.bytes + store._dead_bytes <= store.max_bytes
        assert store.count + store._dead <= store.max_entries
    assert cache.stats().evictions == 0
    assert cache.peek("living") == 1


def test_one_large_value_takes_the_room_of_the_dead_at_once(clock: VirtualClock) -> None:
    cache, price = filled(clock, MANY, max_memory_bytes=MANY * 1_200)
    price.cache_clear()
    at_once(cache.set("large", b"x" * (MANY * 1_000)))
    assert cache._engine.store._dead_bytes < MANY * 200
    assert cache.stats().evictions == 0
    cache.check()


def test_a_dead_value_lives_until_it_is_freed_and_no_longer(clock: VirtualClock) -> None:
    class Value:
        pass

    cache, price = filled(clock, MANY)
    value = Value()
    known = weakref.ref(value)
    at_once(cache.set(cache.key_for(price, -1), value))
    del value
    price.cache_clear()
    while cache._engine.sweep(clock(), 10):
        pass
    assert known() is None


def test_reasons_after_a_clear_are_those_of_the_dead_until_something_newer(
    clock: VirtualClock,
) -> None:
    cache, price = filled(clock, MANY)
    keys = [cache.key_for(price, number) for number in range(4)]
    at_once(cache.touch(keys[1], 5))
    clock.advance(5)
    price.cache_clear()
    at_once(cache.set(keys[2], 1))
    at_once(cache.delete(keys[2]))

    def reasons() -> list[MissReason | None]:
        return [at_once(cache.lookup(key)).reason for key in keys]

    told = [MissReason.CLEARED, MissReason.EXPIRED, MissReason.DELETED, MissReason.CLEARED]
    assert reasons() == told
    while cache._engine.sweep(clock(), 10):
        pass
    assert reasons() == told
    cache.check()


def test_the_record_of_a_clear_of_very_many_keeps_its_bound(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_memory_bytes=None, weigher=lambda _: 1, clock=clock)
    held = MOST + 3_000
    for key in range(held):
        at_once(cache.set(key, None))
    asyncio.run(cache.clear())
    record = cache._engine.store._record
    assert MOST <= len(record) <= MOST * 3 // 2
    assert len(list(record)) == len(record)
    for key in range(2_000):
        at_once(cache.set(("new", key), None))
        at_once(cache.delete(("new", key)))
    assert len(record) <= 384


def test_a_closed_cache_tells_nothing_of_before(clock: VirtualClock) -> None:
    async def main() -> None:
        cache, price = filled(clock, MANY)
        key = cache.key_for(price, 1)
        price.cache_clear()
        await cache.aclose()
        await cache.start()
        assert (await cache.lookup(key)).reason is MissReason.ABSENT
        await cache.aclose()

    run_virtual(main(), clock)


def test_an_instance_that_is_gone_leaves_its_many_entries_to_later_writes(
    clock: VirtualClock,
) -> None:
    cache = AsyncSafeCache(clock=clock)

    class Shop:
        @race_safe_cached(cache)
        def price(self, number: int) -> int:
            return number

    shop = Shop()
    for number in range(MANY):
        shop.price(number)
    del shop
    at_once(cache.set("other", 1))
    assert len(cache) == 1
    assert cache._engine.store._dead > 0
    for number in range(MANY):
        at_once(cache.set("other", number))
    assert cache._engine.store._dead == 0
    assert cache.stats().removals_by_cause["COLLECTED"] == MANY


def test_clearing_a_method_of_many_instances_is_one_clear(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    class Shop:
        @race_safe_cached(cache)
        def price(self, number: int) -> int:
            return number

    shops = [Shop() for _ in range(MANY // 2)]
    for shop in shops:
        for number in range(3):
            shop.price(number)
    keys = [cache.key_for(shop.price, 2) for shop in shops]
    at_once(cache.set("other", 1))
    at_once(cache.invalidate(shops[0].price, 0))
    for shop in shops:
        shop.price.cache_clear()  # type: ignore[attr-defined]
    assert len(cache) == 1
    assert {at_once(cache.lookup(key)).reason for key in keys} == {MissReason.CLEARED}
    assert len(cache._engine.store._record._segments) <= 4
    cache.check()
