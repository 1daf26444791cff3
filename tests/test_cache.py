"""The calls of AsyncSafeCache, one by one."""

import logging
import random
from typing import Any

import pytest

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    Lookup,
    MissReason,
    UnsupportedKeyError,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, at_once, run_virtual, settle


def test_at_ttl_exactly_a_value_is_expired_for_every_read(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set("key", 1, ttl=30))
    clock.advance(29.999)
    assert at_once(cache.get("key")) == 1
    assert at_once(cache.lookup("key")).hit
    assert at_once(cache.get_many(["key"])) == {"key": 1}
    assert cache.peek("key") == 1
    assert len(cache) == 1
    clock.now = 1030.0
    assert at_once(cache.get("key")) is None
    assert at_once(cache.lookup("key")).reason is MissReason.EXPIRED
    assert at_once(cache.get_many(["key"])) == {}
    assert cache.peek("key") is MISSING
    assert len(cache) == 0


def test_lookup_tells_age_and_time_left(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set("key", None, ttl=30))
    clock.advance(10)
    assert at_once(cache.lookup("key")) == Lookup(True, None, None, 10.0, 20.0)
    at_once(cache.set("key", 5))
    assert at_once(cache.lookup("key")) == Lookup(True, 5, None, 0.0, None)
    assert at_once(cache.lookup("no")) == Lookup(False, MISSING, MissReason.ABSENT, None, None)


@pytest.mark.parametrize("value", [None, False, 0, "", [], float("nan")], ids=repr)
async def test_empty_values_are_values(value: Any) -> None:
    cache = AsyncSafeCache()
    load = Loader(value)
    assert await cache.get_or_load("key", load) is value
    assert await cache.get_or_load("key", load) is value
    assert load.calls == 1
    assert await cache.get("key", default="absent") is value
    assert cache.peek("key") is value
    assert (await cache.lookup("key")).hit


@pytest.mark.parametrize("write", ["delete", "set", "expire", "clear"])
@pytest.mark.parametrize("read", ["get", "lookup", "get_or_load", "get_many", "peek"])
def test_after_a_write_no_read_sees_what_was_loaded_before_it(
    clock: VirtualClock, write: str, read: str
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        old, new = Loader("old", seconds=10), Loader("new")
        import asyncio

        early = asyncio.create_task(cache.get_or_load("key", old))
        await settle()
        if write == "set":
            await cache.set("key", "new")
        elif write == "clear":
            await cache.clear()
        else:
            await getattr(cache, write)("key")
        reads = {
            "get": lambda: cache.get("key"),
            "lookup": lambda: cache.lookup("key"),
            "get_or_load": lambda: cache.get_or_load("key", new),
            "get_many": lambda: cache.get_many(["key"]),
        }
        for _ in range(2):  # while the old load runs, and after it ended
            found = cache.peek("key", None) if read == "peek" else await reads[read]()
            assert "old" not in (found, getattr(found, "value", None))
            assert found != {"key": "old"}
            await asyncio.sleep(20)
        assert await early == "old", "who asked before the write has its answer"
        assert cache.peek("key", None) in (None, "new")

    run_virtual(main(), clock)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        ("delete", MissReason.DELETED),
        ("expire", MissReason.EXPIRED),
        ("clear", MissReason.CLEARED),
    ],
)
def test_fencing_the_load_of_an_absent_key_leaves_its_reason(
    clock: VirtualClock, write: str, reason: MissReason
) -> None:
    async def main() -> None:
        import asyncio

        cache = AsyncSafeCache(clock=clock)
        early = asyncio.create_task(cache.get_or_load("key", Loader(seconds=1)))
        await settle()
        await (cache.clear() if write == "clear" else getattr(cache, write)("key"))
        assert (await cache.lookup("key")).reason is reason
        await early
        assert (await cache.lookup("key")).reason is reason

    run_virtual(main(), clock)


def test_ttl_counts_from_the_end_of_the_load(clock: VirtualClock) -> None:
    async def main() -> None:
        import asyncio

        cache = AsyncSafeCache(clock=clock)
        assert await cache.get_or_load("key", Loader("v", seconds=5), ttl=1) == "v"
        assert cache.peek("key") == "v"
        await asyncio.sleep(0.99)
        assert cache.peek("key") == "v"
        await asyncio.sleep(0.01)
        assert cache.peek("key") is MISSING

    run_virtual(main(), clock)


def test_jitter_spreads_expiry_and_never_lengthens_it(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, jitter=0.1)
    for key in range(2_000):
        at_once(cache.set(key, key, ttl=100))
    left = [at_once(cache.lookup(key)).ttl_left or 0 for key in range(2_000)]
    assert 90 <= min(left) < 91
    assert 99 < max(left) <= 100


def test_touch_renews_what_is_fresh_and_nothing_else(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set("key", 1, ttl=10))
    clock.advance(9)
    assert at_once(cache.touch("key", 10)) is True
    clock.advance(9)
    assert cache.peek("key") == 1
    assert at_once(cache.touch("key", None)) is True
    clock.advance(1e6)
    assert cache.peek("key") == 1
    assert at_once(cache.touch("key", 5)) is True
    clock.advance(5)
    assert at_once(cache.touch("key", 5)) is False
    assert at_once(cache.touch("never", 5)) is False
    assert cache.peek("key") is MISSING


def test_delete_and_expire_count_what_was_fresh(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    for key in ("a", "b"):
        at_once(cache.set(key, 1))
    at_once(cache.set("old", 1, ttl=1))
    clock.advance(1)
    assert at_once(cache.delete("a", "a", "old", "never")) == 1
    assert at_once(cache.expire("b", "never")) == 1
    assert at_once(cache.delete()) == 0
    assert at_once(cache.lookup("old")).reason is MissReason.EXPIRED
    assert at_once(cache.lookup("never")).reason is MissReason.ABSENT


def test_get_many_answers_hits_in_first_seen_order_and_counts_each_key_once() -> None:
    cache = AsyncSafeCache()
    for key in range(5):
        at_once(cache.set(key, key * 10))
    found = at_once(cache.get_many([4, 9, 2, 4, 0, 9]))
    assert list(found.items()) == [(4, 40), (2, 20), (0, 0)]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.calls) == (3, 1, 4)


def test_get_many_refuses_keys_that_one_dict_cannot_tell_apart() -> None:
    cache = AsyncSafeCache()
    at_once(cache.set(1, "int"))
    at_once(cache.set(True, "bool"))
    at_once(cache.set(1.0, "float"))
    assert [at_once(cache.get(key)) for key in (1, True, 1.0)] == ["int", "bool", "float"]
    with pytest.raises(ValueError, match="get_many"):
        at_once(cache.get_many([1, True]))
    assert at_once(cache.get_many([1, 1])) == {1: "int"}


async def test_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    cache = AsyncSafeCache(default_ttl=1000)
    await cache.set("key", 1)
    real = time.time
    for years in (-1, 1):
        monkeypatch.setattr(time, "time", lambda: real() + years * 365 * 86_400)  # noqa: B023
        assert await cache.get("key") == 1


async def test_keys_that_imitate_each_other_do_not_meet() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache, "a:b")
    async def one(x):
        return "one"

    @race_safe_cached(cache, "a")
    async def two(x):
        return "two"

    keys = ["a:b", "a", "a:b:c", "c", "a\r\nb", "a\0b", "*", "a*", "", ("a", "b"), ("a:b",), b"a"]
    for key in keys:
        await cache.set(key, f"raw {key!r}")
    assert (await one("c"), await two("b:c"), await two("c")) == ("one", "two", "two")
    for key in keys:
        assert await cache.get(key) == f"raw {key!r}"


async def test_no_key_and_no_value_shows_in_logs_errors_or_reprs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    async with AsyncSafeCache("safe", negative={KeyError: 1}) as cache:

        @race_safe_cached(cache, "login")
        async def login(token):
            return "secret"

        await login("token=abc")
        await cache.set("token=abc", "secret")
        shown += [repr(cache), repr(cache.key_for(login, "token=abc"))]
        shown += [repr(await cache.lookup("token=abc")), str(cache.health()), repr(cache.stats())]
        shown.append(repr(cache.info(login)))
        for bad in (["token=abc"], {"token=abc": "secret"}):
            with pytest.raises(UnsupportedKeyError) as refused:
                await cache.get(bad)
            shown.append(str(refused.value))

        class Token:
            def __repr__(self) -> str:
                return "token=abc"

        with pytest.raises(UnsupportedKeyError) as refused:
            await login(Token())
        shown.append(str(refused.value))
        with pytest.raises(TypeError) as wrong:
            await cache.set("token=abc", iter(["secret"]))
        shown.append(str(wrong.value))
    shown += [record.getMessage() for record in caplog.records]
    assert not [text for text in shown if "token=abc" in text or "secret" in text]


def test_stats_can_be_subtracted(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.get("a"))
    before = cache.stats()
    at_once(cache.set("a", 1))
    at_once(cache.get("a"))
    at_once(cache.get("b"))
    change = cache.stats() - before
    assert (change.hits, change.misses, change.calls) == (1, 1, 2)
    assert change.misses_by_reason["ABSENT"] == 1
    assert change.hit_rate == 50


def test_hits_misses_and_joins_are_all_calls(clock: VirtualClock) -> None:
    chance = random.Random(3)

    async def main() -> None:
        import asyncio

        cache = AsyncSafeCache(clock=clock, max_entries=20)
        calls = 0

        async def caller() -> None:
            nonlocal calls
            for _ in range(40):
                key = chance.randrange(40)
                calls += 1
                kind = chance.randrange(6)
                if kind == 0:
                    await cache.get(key)
                elif kind == 1:
                    await cache.lookup(key)
                elif kind == 2:
                    calls += 2
                    await cache.get_many([key, key + 1, key + 2])
                elif kind == 3:
                    calls -= 1
                    await chance.choice([cache.delete, cache.expire])(key)
                else:
                    try:
                        async with asyncio.timeout(chance.choice([0.5, 5])):
                            await cache.get_or_load(key, Loader(seconds=chance.random()), ttl=3)
                    except TimeoutError:
                        pass
                await asyncio.sleep(chance.random())
                stats = cache.stats()
                assert stats.hits + stats.misses + stats.coalesced == stats.calls
                assert sum(stats.misses_by_reason.values()) == stats.misses

        await asyncio.gather(*(caller() for _ in range(30)))
        assert cache.stats().calls == calls

    run_virtual(main(), clock)
