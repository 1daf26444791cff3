"""The store against a plain model, and its promises one by one."""

import asyncio
import gc
import random
import tracemalloc
from collections import OrderedDict
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_safe_cache import AsyncSafeCache, MissReason, RemovalCause
from async_safe_cache._store import ENTRY_OVERHEAD

from .virtual import VirtualClock, at_once


class Model:
    """A plain cache: LRU, ttl and max_entries, and the reason of every miss."""

    def __init__(self, clock: VirtualClock, bound: int) -> None:
        self.clock = clock
        self.bound = bound
        self.live: OrderedDict[int, tuple[int, float]] = OrderedDict()
        self.reasons: dict[int, MissReason] = {}

    def expire(self) -> None:
        for key, (_, deadline) in list(self.live.items()):
            if deadline <= self.clock.now:
                self.drop(key, MissReason.EXPIRED)

    def drop(self, key: int, reason: MissReason) -> bool:
        if self.live.pop(key, None) is None:
            return False
        self.reasons[key] = reason
        return True

    def set(self, key: int, value: int, ttl: float | None) -> None:
        self.expire()
        self.live.pop(key, None)
        if not self.bound:
            self.reasons[key] = MissReason.REJECTED
            return
        while len(self.live) >= self.bound:
            self.drop(next(iter(self.live)), MissReason.EVICTED)
        self.live[key] = (value, float("inf") if ttl is None else self.clock.now + ttl)

    def get(self, key: int) -> int | MissReason:
        self.expire()
        if key in self.live:
            self.live.move_to_end(key)
            return self.live[key][0]
        return self.reasons.get(key, MissReason.ABSENT)


STEP = st.tuples(
    st.sampled_from(
        ["set", "set", "get", "get", "delete", "expire", "touch", "clear", "wait", "sweep"]
    ),
    st.integers(0, 7),
    st.sampled_from([None, 0.25, 0.5, 1, 1.5, 3]),
)


def play(clock: VirtualClock, bound: int, steps: list[tuple[str, int, float | None]]) -> None:
    """Do the same with the cache and with the model; every answer must agree."""
    cache = AsyncSafeCache(max_entries=bound, max_memory_bytes=None, clock=clock)
    model = Model(clock, bound)
    for number, (step, key, ttl) in enumerate(steps):
        if step == "set":
            at_once(cache.set(key, number, ttl=ttl))
            model.set(key, number, ttl)
        elif step == "get":
            found = at_once(cache.lookup(key))
            assert (found.value if found.hit else found.reason) == model.get(key)
        elif step in ("delete", "expire"):
            reason = MissReason.DELETED if step == "delete" else MissReason.EXPIRED
            model.expire()
            assert at_once(getattr(cache, step)(key)) == model.drop(key, reason)
        elif step == "touch":
            model.expire()
            assert at_once(cache.touch(key, ttl)) == (key in model.live)
            if key in model.live:
                value, _ = model.live.pop(key)
                model.live[key] = (value, float("inf") if ttl is None else clock.now + ttl)
        elif step == "clear":
            model.expire()
            at_once(cache.clear())
            for each in list(model.live):
                model.drop(each, MissReason.CLEARED)
        elif step == "wait":
            clock.advance(ttl or 0.1)
        else:
            cache._engine.sweep(clock(), 100)
        model.expire()
        assert len(cache) == len(model.live)
        cache.check()


@given(st.integers(0, 5), st.lists(STEP, max_size=60))
def test_the_store_answers_as_a_plain_model_does(bound: int, steps: Any) -> None:
    play(VirtualClock(), bound, steps)


def test_the_store_answers_as_a_plain_model_does_over_many_operations() -> None:
    chance = random.Random(7)
    ttls = [None, 0.25, 0.5, 1, 1.5, 3, 20]
    kinds = ["set"] * 5 + ["get"] * 8 + ["delete", "expire", "touch", "wait", "sweep"]
    for bound in (0, 1, 2, 25):
        steps = [
            (chance.choice(kinds), chance.randrange(50), chance.choice(ttls)) for _ in range(3_000)
        ]
        play(VirtualClock(), bound, steps)


def test_the_least_recently_used_entry_of_the_whole_cache_leaves_first(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_entries=3, clock=clock)
    for key in ("a", "b", "c"):
        at_once(cache.set(key, key))
    at_once(cache.get("a"))
    at_once(cache.set("d", "d"))
    assert at_once(cache.get_many(["a", "b", "c", "d"])) == {"a": "a", "c": "c", "d": "d"}
    assert at_once(cache.lookup("b")).reason is MissReason.EVICTED


def test_peek_changes_neither_recency_nor_statistics(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_entries=2, clock=clock)
    at_once(cache.set("a", 1))
    at_once(cache.set("b", 2))
    assert cache.peek("a") == 1
    at_once(cache.set("c", 3))
    assert cache.peek("a", default=None) is None
    assert cache.stats().calls == 0


def test_a_value_larger_than_the_bound_is_not_stored_and_evicts_nothing(
    clock: VirtualClock,
) -> None:
    cache = AsyncSafeCache(max_memory_bytes=1024**2, clock=clock)
    at_once(cache.set("other", "kept"))
    at_once(cache.set("large", "small for now"))
    at_once(cache.set("large", b"x" * 2 * 1024**2))
    assert at_once(cache.lookup("large")).reason is MissReason.REJECTED
    assert at_once(cache.get("other")) == "kept"
    assert len(cache) == 1
    assert cache.stats().rejected == 1
    assert cache.stats().evictions == 0


async def test_a_loaded_value_larger_than_the_bound_is_returned() -> None:
    cache = AsyncSafeCache(max_memory_bytes=10_000)
    value = await cache.get_or_load("large", lambda: b"x" * 20_000)
    assert len(value) == 20_000
    assert (await cache.lookup("large")).reason is MissReason.REJECTED


async def test_a_bound_of_0_stores_nothing_and_still_coalesces() -> None:
    for cache in (AsyncSafeCache(max_entries=0), AsyncSafeCache(max_memory_bytes=0)):
        await cache.set("a", 1)
        assert await cache.get_or_load("a", lambda: 2) == 2
        assert len(cache) == cache.memory_bytes == 0


def test_accounted_bytes_stay_exact_over_many_overwrites(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, max_memory_bytes=2_000_000)
    chance = random.Random(1)
    for number in range(20_000):
        at_once(
            cache.set("key", b"x" * chance.randrange(10_000), ttl=chance.choice([None, 5, 3600]))
        )
        if number % 1_000 == 0:
            cache.check()
    cache.check()
    at_once(cache.clear())
    assert cache.memory_bytes == 0


def test_the_memory_bound_holds_after_every_operation(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, max_memory_bytes=50_000)
    chance = random.Random(2)
    for _ in range(3_000):
        at_once(cache.set(chance.randrange(100), b"x" * chance.randrange(20_000)))
        assert cache.memory_bytes <= 50_000
    assert cache.stats().evictions > 0


def test_expired_entries_leave_before_live_ones(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_entries=10, clock=clock)
    for key in range(5):
        at_once(cache.set(("live", key), key))
    for key in range(5):
        at_once(cache.set(("short", key), key, ttl=0.5))
    clock.advance(0.6)
    for key in range(5):
        at_once(cache.set(("new", key), key))
    assert cache.stats().evictions == 0
    assert all(cache.peek(("live", key)) == key for key in range(5))


def test_an_eviction_among_expired_entries_of_one_half_gone_second(clock: VirtualClock) -> None:
    clock.now = 100.0
    cache = AsyncSafeCache(max_entries=40, clock=clock)
    for number in range(40):
        at_once(cache.set(number, number, ttl=0.1 + 0.02 * number))
    clock.advance(0.5)
    expired = 40 - len(cache)
    assert 0 < expired < 40
    for number in range(expired):
        at_once(cache.set(("new", number), 0))
    assert cache.stats().evictions == 0
    at_once(cache.set("one more", 0))
    assert cache.stats().evictions == 1


def test_each_write_frees_up_to_four_due_entries(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    for key in range(10):
        at_once(cache.set(key, key, ttl=1))
    clock.advance(1)
    assert len(cache) == 0
    held = cache.memory_bytes
    at_once(cache.set("new", 1))
    assert cache.stats().removals_by_cause["EXPIRED"] == 4
    assert cache.memory_bytes < held


@pytest.mark.parametrize("swept", [False, True])
def test_every_miss_tells_the_true_reason(clock: VirtualClock, swept: bool) -> None:
    cache = AsyncSafeCache(max_entries=4, clock=clock)
    at_once(cache.set("expired", 1, ttl=1))
    at_once(cache.set("evicted", 1))
    for key in ("a", "b", "c"):
        at_once(cache.set(key, 1))
        at_once(cache.get("expired"))
    clock.advance(1)
    at_once(cache.set("deleted", 1))
    assert at_once(cache.delete("deleted")) == 1
    if swept:
        cache._engine.sweep(clock(), 100)
    reasons = {
        key: at_once(cache.lookup(key)).reason for key in ("expired", "evicted", "deleted", "never")
    }
    assert reasons == {
        "expired": MissReason.EXPIRED,
        "evicted": MissReason.EVICTED,
        "deleted": MissReason.DELETED,
        "never": MissReason.ABSENT,
    }
    at_once(cache.clear())
    assert at_once(cache.lookup("c")).reason is MissReason.CLEARED


def test_the_reason_of_a_large_key_is_remembered_by_digest(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    key = "k" * 1024**2
    at_once(cache.set(key, 1))
    at_once(cache.delete(key))
    assert at_once(cache.lookup(key)).reason is MissReason.DELETED
    assert [len(cast("bytes", mark)) for _, mark in cache._engine.store._record] == [16]


def test_the_last_256_removals_are_remembered_and_not_many_more(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    for key in range(1_000):
        at_once(cache.set(key, key))
        at_once(cache.delete(key))
    assert all(at_once(cache.lookup(key)).reason is MissReason.DELETED for key in range(744, 1_000))
    assert at_once(cache.lookup(0)).reason is MissReason.ABSENT
    assert 256 <= len(cache._engine.store._record) <= 384


def test_a_million_distinct_keys_leave_nothing_behind(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_entries=1_000, clock=clock)
    for key in range(100_000):
        at_once(cache.set(key, key, ttl=3600))
        clock.now += 0.01
    store = cache._engine.store
    assert len(store.order) == 1_000
    assert 1_000 <= len(store._record) <= 1_500
    assert len(store._expiry._buckets) <= 12
    assert len(store._expiry._seconds) <= 2 * 12 + 64


def test_the_overhead_accounted_per_entry_covers_what_is_used(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_entries=20_000, max_memory_bytes=None, clock=clock)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for key in range(1_000_000, 1_040_000):
        at_once(cache.set(key, None, ttl=100 + key % 7))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    per_entry = used / 20_000
    assert 0.6 * ENTRY_OVERHEAD < per_entry < ENTRY_OVERHEAD + 60


def test_a_finaliser_of_a_removed_value_may_use_the_cache(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    seen: list[Any] = []

    class Value:
        def __del__(self) -> None:
            seen.append(cache.peek("other"))
            at_once(cache.delete("other"))

    at_once(cache.set("other", 1))
    at_once(cache.set("value", Value()))
    at_once(cache.set("value", 2))
    assert seen == [1]
    assert cache.peek("other", None) is None


def test_removing_an_entry_that_was_replaced_leaves_its_successor(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set("key", "old"))
    store, space = cache._engine.store, cache._raw
    old = space.data["key"]
    at_once(cache.set("key", "new"))
    dropped: list[object] = []
    store._unlink(old, RemovalCause.EVICTED, dropped)
    assert cache.peek("key") == "new"
    assert dropped == []


def test_one_large_value_takes_the_place_of_many_expired_ones(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_memory_bytes=100_000, clock=clock)
    at_once(cache.set("live", b"x" * 1_000))
    for key in range(20):
        at_once(cache.set(key, b"x" * 3_000, ttl=1))
    clock.advance(1)
    at_once(cache.set("large", b"x" * 90_000))
    assert cache.stats().evictions == 0
    assert at_once(cache.get_many(["live", "large"])).keys() == {"live", "large"}


def test_seconds_that_came_and_went_leave_nothing_in_the_expiry_index(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    for ttl in range(1, 5_000):
        at_once(cache.set("key", ttl, ttl=10_000 + ttl))
    index = cache._engine.store._expiry
    assert len(index._buckets) == 1
    assert len(index._seconds) <= 66


def test_a_removal_that_happens_again_is_the_latest(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    for key in ["first", *range(200), "first", *range(1_000, 1_200)]:
        at_once(cache.set(key, 1))
        at_once(cache.delete(key))
    assert at_once(cache.lookup("first")).reason is MissReason.DELETED


def test_later_removals_push_what_was_cleared_out_of_the_record(clock: VirtualClock) -> None:
    """Few entries are left to pay for it; a quarter of a thousand removals are enough."""
    cache = AsyncSafeCache(clock=clock)
    for key in range(1_000):
        at_once(cache.set(key, key))
    asyncio.run(cache.clear())  # in slices
    assert all(at_once(cache.lookup(key)).reason is MissReason.CLEARED for key in range(1_000))
    for key in range(2_000, 2_300):
        at_once(cache.set(key, key))
        at_once(cache.delete(key))
    record = cache._engine.store._record
    assert 256 <= len(record) <= 384
    assert at_once(cache.lookup(999)).reason is MissReason.ABSENT


def test_what_happened_last_to_a_key_is_told(clock: VirtualClock) -> None:
    """Also when it happened before, and many other removals lie in between."""
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set("key", 1))
    at_once(cache.delete("key"))
    for key in range(150):
        at_once(cache.set(key, 1))
        at_once(cache.delete(key))
    at_once(cache.set("key", 1))
    at_once(cache.expire("key"))
    assert at_once(cache.lookup("key")).reason is MissReason.EXPIRED


def test_an_expired_entry_that_is_evicted_tells_that_it_expired(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_safe_cache._expiry.PARTIAL", 0)  # as if its second were crowded
    clock.now = 100.0
    cache = AsyncSafeCache(max_entries=2, clock=clock)
    at_once(cache.set("due", 1, ttl=0.1))
    at_once(cache.set("live", 1, ttl=0.9))
    clock.advance(0.5)
    at_once(cache.set("new", 1))
    assert at_once(cache.lookup("due")).reason is MissReason.EXPIRED
    assert cache.stats().evictions == 0
