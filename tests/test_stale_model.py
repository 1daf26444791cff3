"""Values that are kept past their ttl, held against a plain model, and against the bounds."""

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_safe_cache import AsyncSafeCache, MissReason

from .fickle import Down
from .virtual import Loader, VirtualClock, run_virtual


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
                assert [await cache.delete(key) for cache in caches] == [removed] * 2
            elif name == "expire":
                expired = model.expire(key, now)
                assert [await cache.expire(key) for cache in caches] == [expired] * 2
            elif name == "touch":
                touched = model.touch(key, step[2], now)
                assert [await cache.touch(key, step[2]) for cache in caches] == [touched] * 2
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
