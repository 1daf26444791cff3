"""Values that are kept past their ttl: where they may be seen, and what takes them away."""

import math
from typing import Any

from async_safe_cache import AsyncSafeCache, MissReason

from .virtual import Loader, VirtualClock, run_virtual


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
