"""Tags: complete when invalidate_tags() returns, and nothing left behind."""

import asyncio
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_safe_cache import (
    AsyncSafeCache,
    LoadContext,
    MissReason,
    race_safe_cached,
)
from async_safe_cache._tags import MOST_FENCES, TagFences, TagIndex

from .virtual import VirtualClock, run_virtual


def index_of(cache: AsyncSafeCache) -> dict[str, Any]:
    return cache._engine.store.tags._tagged


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_invalidate_tags_removes_exactly_what_has_one_of_them(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        await cache.set("a", 1, tags="x")
        await cache.set("b", 2, tags=["x", "y"])
        await cache.set("c", 3, tags=("y",))
        await cache.set("d", 4)
        assert await cache.invalidate_tags("x", "unknown") == 2
        assert await cache.get_many("abcd") == {"c": 3, "d": 4}
        assert (await cache.lookup("a")).reason is MissReason.TAG_INVALIDATED
        assert cache.stats().removals_by_cause["TAG_INVALIDATED"] == 2
        assert await cache.invalidate_tags("x") == 0
        assert await cache.invalidate_tags() == 0

    run_virtual(main(), clock)


@pytest.mark.parametrize("way", ["overwrite", "expire", "evict", "delete", "clear", "close"])
def test_nothing_is_left_of_a_tag_when_its_entries_are_gone(way: str, clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_entries=1_000, clock=clock)

    async def main() -> None:
        for number in range(700):  # more than a clear removes one by one
            await cache.set(number, 1, ttl=10, tags=[f"tag-{number}", "all"])
        assert len(index_of(cache)) == 701
        if way == "overwrite":
            for number in range(700):
                await cache.set(number, 2)
        elif way == "expire":
            clock.advance(11)
            await cache._sweep()
        elif way == "evict":
            for number in range(1_000):
                await cache.set(f"other-{number}", 1)
        elif way == "delete":
            await cache.delete(*range(700))
        elif way == "clear":
            await cache.clear()
        else:
            await cache.aclose()
        assert not index_of(cache)
        assert cache._engine.store.tagged == 0

    run_virtual(main(), clock)


def test_tags_are_paid_for_inside_the_bound() -> None:
    """A million unique tags must not be memory that nobody counts."""
    plain, tagged = AsyncSafeCache(), AsyncSafeCache()

    async def fill(cache: AsyncSafeCache, *, tags: bool) -> int:
        before = cache.memory_bytes
        tracemalloc.start()
        begin = tracemalloc.get_traced_memory()[0]
        for number in range(3_000):
            await cache.set(number, None, tags=[f"tag of {number}"] if tags else ())
        used = tracemalloc.get_traced_memory()[0] - begin
        tracemalloc.stop()
        assert cache.memory_bytes - before >= used
        return used

    async def main() -> None:
        without = await fill(plain, tags=False)
        with_tags = await fill(tagged, tags=True)
        accounted = tagged.memory_bytes - plain.memory_bytes
        assert accounted >= with_tags - without

    asyncio.run(main())


def test_the_bound_on_bytes_holds_with_tags(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(max_memory_bytes=100_000, clock=clock)

    async def main() -> None:
        for number in range(500):
            await cache.set(number, number, tags=[f"{number}-{each}" for each in range(3)])
            assert cache.memory_bytes <= 100_000
        cache.check()

    run_virtual(main(), clock)


def test_a_decorated_calls_tags_are_computed_from_its_arguments(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    @race_safe_cached(cache, "user", tags=lambda user, *_: [f"user:{user}", "users"])
    async def load(user: int, detail: str = "all") -> str:
        return f"{user} {detail}"

    @race_safe_cached(cache, "fixed", tags="users")
    def plain(user: int) -> int:
        return user

    async def main() -> None:
        await load(1), await load(1, "name"), await load(2), plain(1)
        assert await cache.invalidate_tags("user:1") == 2
        assert await cache.invalidate_tags("users") == 2
        assert len(cache) == 0

    run_virtual(main(), clock)


def test_a_tag_function_that_fails_fails_its_caller_alone(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    def tags(user: int) -> Any:
        return {1: "ok", 2: 5}[user]

    @race_safe_cached(cache, "user", tags=tags)
    async def load(user: int) -> int:
        return user

    async def main() -> None:
        with pytest.raises(KeyError):
            await load(3)
        with pytest.raises(TypeError, match="tags must be a str"):
            await load(2)
        assert await load(1) == 1
        assert len(cache) == 1

    run_virtual(main(), clock)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_load_under_way_is_fenced_by_its_tag(fixed: bool, clock: VirtualClock) -> None:
    """Also if the loader adds the tag in its last step."""
    cache = AsyncSafeCache(clock=clock)
    values = iter(range(1, 9))

    async def load_fixed() -> int:
        value = next(values)
        await asyncio.sleep(1)
        return value

    async def load_late(ctx: LoadContext) -> int:
        value = next(values)
        await asyncio.sleep(1)
        ctx.add_tags("t")
        return value

    async def main() -> None:
        async def read() -> int:
            if fixed:
                return await cache.get_or_load("a", load_fixed, tags="t")
            return await cache.get_or_load("a", load_late)

        early = asyncio.create_task(read())
        await settle()
        assert await cache.invalidate_tags("t") == 0
        newcomer = asyncio.create_task(read())
        assert await early == 1
        assert await newcomer == 2, "nobody joins what was invalidated"
        assert await cache.get("a") == 2
        assert await cache.invalidate_tags("t") == 1

    run_virtual(main(), clock)


def test_a_fenced_load_leaves_the_reason(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def load(ctx: LoadContext) -> int:
        await asyncio.sleep(1)
        ctx.add_tags("t")
        return 1

    async def main() -> None:
        task = asyncio.create_task(cache.get_or_load("a", load))
        await settle()
        await cache.invalidate_tags("t")
        assert await task == 1
        assert (await cache.lookup("a")).reason is MissReason.TAG_INVALIDATED

    run_virtual(main(), clock)


@pytest.mark.parametrize("meanwhile", ["nothing", "delete", "set"])
def test_a_load_set_apart_is_stored_unless_its_key_was_written(
    meanwhile: str, clock: VirtualClock
) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def load(ctx: LoadContext) -> str:
        await asyncio.sleep(1)
        ctx.add_tags("mine")
        return "loaded"

    async def main() -> None:
        task = asyncio.create_task(cache.get_or_load("a", load))
        await settle()
        await cache.invalidate_tags("other")
        if meanwhile == "delete":
            await cache.delete("a")
        elif meanwhile == "set":
            await cache.set("a", "set")
        assert await task == "loaded"
        expected = {"nothing": "loaded", "delete": None, "set": "set"}
        assert await cache.get("a") == expected[meanwhile]

    run_virtual(main(), clock)


def test_beyond_its_bound_a_fence_holds_back_every_tag() -> None:
    fences = TagFences()
    fences.put_up(map(str, range(MOST_FENCES)), 5)
    assert not fences.hold_back(["other"], 4)
    fences.put_up(["one more"], 6)
    assert fences.hold_back(["other"], 5)
    assert not fences.hold_back(["other"], 6)
    assert not fences.hold_back([], 5)
    fences.take_down()
    assert not fences.hold_back(["other"], 0)


def test_what_is_stored_after_the_call_began_survives_its_slices(clock: VirtualClock) -> None:
    """And who is cancelled between two slices leaves nothing half done."""
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        for number in range(2_000):
            await cache.set(number, "old", tags="t")
        task = asyncio.create_task(cache.invalidate_tags("t"))
        await asyncio.sleep(0)
        assert 0 < len(cache) < 2_000, "it goes on in slices"
        await cache.set(1, "new", tags="t")
        await cache.set("other", "new", tags="t")
        assert await task in (1_999, 2_000)
        assert await cache.get_many([1, 2, "other"]) == {1: "new", "other": "new"}
        for number in range(2_000):
            await cache.set(number, "old", tags="t")
        task = asyncio.create_task(cache.invalidate_tags("t"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(cache) == 0

    run_virtual(main(), clock)


def test_two_invalidations_at_once_count_their_own(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        for number in range(2_000):
            await cache.set(number, 1, tags="many")
        for number in range(10):
            await cache.set(f"few-{number}", 1, tags="few")
        got = await asyncio.gather(cache.invalidate_tags("many"), cache.invalidate_tags("few"))
        assert got == [2_000, 10]

    run_virtual(main(), clock)


def test_a_remembered_failure_goes_with_its_tag(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    calls = 0

    async def load() -> int:
        nonlocal calls
        calls += 1
        raise KeyError

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(KeyError):
                await cache.get_or_load("a", load, negative={KeyError: 60}, tags="t")
        assert calls == 1
        assert await cache.invalidate_tags("t") == 0, "a failure is no value"
        with pytest.raises(KeyError):
            await cache.get_or_load("a", load, negative={KeyError: 60}, tags="t")
        assert calls == 2

    run_virtual(main(), clock)


@pytest.mark.parametrize(
    ("tags", "error", "says"),
    [
        (5, TypeError, "int"),
        (b"x", TypeError, "bytes"),
        (["a", 5], TypeError, "one of them is of type int"),
        ("", ValueError, "has 0"),
        (["secret" * 50], ValueError, "has 300"),
        ([str(n) for n in range(65)], ValueError, "at most 64 tags, not 65"),
        (iter("ab"), TypeError, "str_ascii_iterator|str_iterator"),
    ],
)
def test_bad_tags_are_refused_at_the_door(tags: Any, error: Any, says: str) -> None:
    cache = AsyncSafeCache()

    async def load() -> int:
        raise AssertionError

    async def main() -> None:
        await cache.set("a", 1, tags="t")
        for call in (
            lambda: cache.set("a", 2, tags=tags),
            lambda: cache.set_many({"a": 2}, tags=tags),
            lambda: cache.get_or_load("b", load, tags=tags),
            lambda: cache.get_or_load_many(["b"], load, tags=tags),
        ):
            with pytest.raises(error, match=says) as caught:
                await call()
            assert "secret" not in str(caught.value)
        assert await cache.get("a") == 1

    asyncio.run(main())


def test_tags_given_to_a_loader_that_cannot_be_computed_there_are_refused() -> None:
    cache = AsyncSafeCache()

    async def main() -> None:
        with pytest.raises(TypeError, match="decorated call only"):
            await cache.get_or_load("a", lambda: 1, tags=lambda: "t")  # type: ignore[arg-type]

    asyncio.run(main())


def test_bulk_loads_have_tags_and_their_fences(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def load_many(keys: list[str]) -> dict[str, int]:
        await asyncio.sleep(1)
        return {**dict.fromkeys(keys, 1), "extra": 1}

    async def main() -> None:
        got = await cache.get_or_load_many("ab", load_many, tags="t", store_extras=True)
        assert got == {"a": 1, "b": 1}
        assert await cache.invalidate_tags("t") == 3
        task = asyncio.create_task(
            cache.get_or_load_many("ab", load_many, tags="t", store_extras=True)
        )
        await settle()
        await cache.invalidate_tags("t")
        assert await task == {"a": 1, "b": 1}
        assert await cache.get_many(["a", "b", "extra"]) == {}

    run_virtual(main(), clock)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sets(st.sampled_from("abc")), st.booleans()), max_size=40
    )
)
def test_the_index_is_what_a_plain_model_is(steps: list[tuple[int, set[str], bool]]) -> None:
    index: TagIndex[int] = TagIndex()
    model: dict[int, set[str]] = {}
    for entry, tags, removes in steps:
        if removes:
            pool = index.condemn(tags)
            assert set(pool) == {each for each, has in model.items() if has & tags}
            while pool:
                for each in index.take(pool, 2):
                    index.discard(each, model.pop(each))
        else:
            index.discard(entry, model.pop(entry, ()))
            index.add(entry, tags)
            model[entry] = tags
        index.check((each, has) for each, has in model.items())


def test_a_random_life_with_tags_keeps_every_invariant(clock: VirtualClock) -> None:
    chance = random.Random(7)
    cache = AsyncSafeCache(max_entries=30, clock=clock)

    async def main() -> None:
        model: dict[int, set[str]] = {}
        for _ in range(2_000):
            key, tags = chance.randrange(25), {chance.choice("abcd") for _ in range(2)}
            action = chance.randrange(10)
            if action < 6:
                await cache.set(key, key, tags=tags)
                model[key] = tags
            elif action < 8:
                assert await cache.delete(key) == (key in model)
                model.pop(key, None)
            elif action == 8:
                gone = [each for each, has in model.items() if "a" in has]
                assert await cache.invalidate_tags("a") == len(gone)
                for each in gone:
                    del model[each]
            else:
                assert set(await cache.get_many(range(25))) == set(model)
                cache.check()

    run_virtual(main(), clock)
