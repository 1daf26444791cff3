"""What leaves the memory, when, and why: bounds, expiry, sweeps, and the reasons of misses."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from async_safe_cache import MISSING, AsyncSafeCache, race_safe_cached
from async_safe_cache.testing import pause

from . import Lab, scenario
from .coalescing import calls_of, ended


def _passing(lab: Lab, *steps: float) -> Callable[[], Awaitable[None]]:
    """Return a caller that lets so many seconds pass, step by step."""

    async def time() -> None:
        for seconds in steps:
            lab.clock.advance(seconds)
            await pause()

    return time


class Removals:
    """Why each key is gone, watched from outside: who took it while it was fresh."""

    def __init__(self, cache: AsyncSafeCache) -> None:
        self.cache = cache
        self.taken: dict[str, str] = {}

    async def watch(self, cause: str, write: Awaitable[Any], keys: tuple[str, ...]) -> None:
        """Do one write; what was fresh before it and is not afterwards is gone by *cause*."""
        before = {key for key in keys if self.cache.peek(key) is not MISSING}
        await write
        for key in keys:
            if self.cache.peek(key) is not MISSING:
                self.taken.pop(key, None)
            elif key in before:
                self.taken[key] = cause

    async def tell_the_truth(self, *keys: str) -> None:
        """Check the reason of each miss; what nobody took has expired."""
        for key in keys:
            look = await self.cache.lookup(key)
            if not look.hit:
                assert look.reason == self.taken.get(key, "EXPIRED"), key


@scenario(
    kills=(
        "retire-skipped",
        "sweep-records-nothing",
        "touched-entry-still-swept",
    )
)
async def a_sweep_never_takes_what_was_written_again(lab: Lab) -> None:
    """Rewritten or touched, in time or too late, before or after the sweep: the new time counts."""
    cache = lab.cache(sweep_interval=1)
    async with cache:
        for key in ("rewritten", "touched", "left"):
            await cache.set(key, "old", ttl=1)

        async def rewrite() -> bool:
            await asyncio.sleep(0.75)
            await pause(0.5)
            fresh = lab.clock.now < 1
            await cache.set("rewritten", "new", ttl=100)
            await pause(1.0)
            assert cache.peek("rewritten") == "new"
            return fresh

        async def touch() -> bool:
            await asyncio.sleep(0.75)
            await pause(0.5)
            fresh = lab.clock.now < 1
            assert await cache.touch("touched", 100) == fresh
            return fresh

        got = await ended(lab, rewriter=rewrite, toucher=touch)
        await asyncio.sleep(3)
        assert await cache.get("rewritten") == "new"
        assert await cache.get("touched") == ("old" if got["toucher"] else None)
        assert (await cache.lookup("left")).reason == "EXPIRED"
        assert len(cache) == 1 + got["toucher"]
        gone = cache.stats().removals_by_cause
        assert gone["REPLACED"] == got["rewriter"]
        assert gone["EXPIRED"] == 3 - got["toucher"] - got["rewriter"]


@scenario(
    kills=(
        "decrement-forgotten",
        "flights-counted-as-entries",
        "newest-evicted",
        "one-entry-too-many",
    )
)
async def the_bound_on_entries_holds_while_loads_land(lab: Lab) -> None:
    """Four loads into two places: never three entries, the last two landed stay, two evicted."""
    cache = lab.cache(max_entries=2)
    landed: list[str] = []

    async def call(key: str) -> Any:
        async def load() -> str:
            await pause(0.4)
            landed.append(key)  # it lands in this very step
            return key

        value = await cache.get_or_load(key, load)
        assert len(cache) == min(2, len(landed))
        return value

    got = await ended(lab, **{key: partial(call, key) for key in "abcd"})
    assert got == {key: key for key in "abcd"}
    for key in "abcd":
        look = await cache.lookup(key)
        if key in landed[2:]:
            assert look.value == key
        else:
            assert (look.hit, look.reason) == (False, "EVICTED")
    stats = cache.stats()
    assert stats.evictions_by_cause == {"max_entries": 2, "max_memory_bytes": 0}


@scenario(
    kills=(
        "decrement-forgotten",
        "memory-bound-checked-afterwards",
        "set-fences-every-load",
    )
)
async def the_bound_on_bytes_holds_while_values_land(lab: Lab) -> None:
    """Sets, loads and a value of twice the size: never a byte above, and everybody is answered."""
    probe = lab.cache(weigher=len)
    await probe.set("a", "x" * 1000)
    one = probe.memory_bytes
    bound = 2 * one
    cache = lab.cache(weigher=len, max_memory_bytes=bound)

    async def put(key: str, size: int) -> None:
        await cache.set(key, "x" * size)
        assert cache.peek(key) == "x" * size, "the newest value was evicted"
        assert cache.memory_bytes <= bound

    async def call(key: str) -> Any:
        value = await cache.get_or_load(key, lab.loader(lambda: key * 1000, longest=0.3))
        assert cache.memory_bytes <= bound
        return value

    await ended(
        lab,
        one=partial(put, "a", 1000),
        large=partial(put, "b", 1000 + one),
        load=partial(call, "c"),
        two=partial(put, "d", 1000),
    )
    stats = cache.stats()
    assert stats.evictions == stats.evictions_by_cause["max_memory_bytes"] == 4 - len(cache)
    held = await cache.get_many("abcd")
    assert cache.memory_bytes == len(held) * one + ("b" in held) * one
    # Alone if it was last or only one came after it and pushed it out; else the last two.
    assert len(held) in ((1,) if "b" in held else (1, 2))
    for key in set("abcd") - held.keys():
        assert (await cache.lookup(key)).reason == "EVICTED"


@scenario(
    kills=(
        "decrement-forgotten",
        "join-starts-another-load",
        "late-hit-not-seen",
        "too-large-empties-the-cache",
        "too-large-keeps-the-previous-value",
    )
)
async def a_value_too_large_removes_the_older_one_and_nothing_else(lab: Lab) -> None:
    """What it replaced is not true any more; its neighbour stays; a load after it is stored."""
    cache = lab.cache(weigher=len, max_memory_bytes=20_000)
    await cache.set("a", "old")
    await cache.set("b", "neighbour")

    async def put() -> None:
        await cache.set("a", "x" * 30_000)
        assert (await cache.lookup("a")).reason == "REJECTED"

    call = partial(cache.get_or_load, "a", lab.loader(lambda: "small", longest=0.3))
    got = await ended(lab, large=put, one=call, two=call)
    assert {got["one"], got["two"]} <= {"old", "small"}
    look = await cache.lookup("a")
    if "small" in got.values():
        assert look.value == "small"
        assert lab.loads == 1
    else:
        assert (look.reason, lab.loads) == ("REJECTED", 0)
    assert await cache.get("b") == "neighbour"
    assert cache.stats().rejected == 1
    assert cache.stats().removals_by_cause["REJECTED"] == 1


@scenario(
    kills=(
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "join-starts-another-load",
        "land-without-identity-check",
        "late-hit-not-seen",
        "rejection-not-recorded",
        "set-without-fence",
        "too-large-empties-the-cache",
    ),
    cancel=("setter",),
)
async def a_load_too_large_answers_all_and_undoes_nothing_newer(lab: Lab) -> None:
    """Returned to all who waited, not stored, REJECTED; a set in between is not removed by it."""
    cache = lab.cache(weigher=len, max_memory_bytes=20_000)
    large = "x" * 30_000
    call = partial(cache.get_or_load, "a", lab.loader(lambda: large, longest=0.3))

    async def put() -> Any:
        await cache.set("a", "set")
        return await call()

    got = await ended(lab, victims=("setter",), one=call, two=call, setter=put)
    look = await cache.lookup("a")
    if "setter" in got:
        assert got.pop("setter") == "set"
        assert look.value == "set"
    else:
        assert look.reason == "REJECTED"
    assert {"one", "two"} == got.keys()
    assert set(got.values()) <= {large, "set"}
    assert cache.stats().rejected <= lab.loads <= 2
    assert lab.most <= 1


@scenario(
    kills=(
        "join-not-counted",
        "join-starts-another-load",
        "rejection-not-recorded",
    )
)
async def without_room_callers_still_share_a_load(lab: Lab) -> None:
    """A bound of 0 stores nothing and coalesces: one load at a time, and each has a value of it."""
    cache = lab.cache(max_entries=0)
    call = partial(cache.get_or_load, "a", lab.loader(longest=0.3))
    got = await ended(lab, one=call, two=call, three=call, four=call)
    assert lab.most == 1
    assert set(got.values()) == set(range(1, lab.loads + 1))
    stats = cache.stats()
    assert (stats.misses, stats.coalesced) == (lab.loads, 4 - lab.loads)
    assert (len(cache), cache.memory_bytes, stats.rejected) == (0, 0, lab.loads)
    assert (await cache.lookup("a")).reason == "REJECTED"


@scenario(
    kills=(
        "decrement-forgotten",
        "retire-skipped",
    )
)
async def a_weigher_that_fails_fails_the_call_alone(lab: Lab) -> None:
    """A load whose value cannot be weighed raises to all who wait; the value before it stays."""

    def weigh(value: object) -> int:
        if value == "bad":
            raise ArithmeticError("no weight")
        return 100

    cache = lab.cache(weigher=weigh)
    answers = iter(["old", "bad", "new"])

    @race_safe_cached(cache, "answer")
    async def answer() -> str:
        lab.loads += 1
        read = next(answers)
        await pause(0.3)
        return read

    assert await answer() == "old"

    async def follow() -> None:
        for _ in range(3):
            assert await answer() in ("old", "new")
            await pause()

    refresh = partial(cache.refresh, answer)
    got = await ended(lab, allowed=(ArithmeticError,), one=refresh, two=refresh, reader=follow)
    errors = [each for each in (got["one"], got["two"]) if isinstance(each, ArithmeticError)]
    assert len(errors) == 2 if lab.loads == 2 else len(errors) == 1
    assert await answer() == ("old" if lab.loads == 2 else "new")
    assert cache.stats().load_errors == 1
    assert len(cache) == 1


@scenario(
    kills=(
        "expired-at-ttl-still-found-by-loads",
        "expired-at-ttl-still-served",
        "retire-skipped",
        "sweep-records-nothing",
        "touched-entry-still-swept",
        "unswept-says-absent",
    )
)
async def every_read_keeps_to_the_clock(lab: Lab) -> None:
    """At its ttl exactly a value is expired, to every read alike, whoever set, touched, expired."""
    cache = lab.cache(sweep_interval=0.5)
    await cache.start()
    until = -1.0  # when the value expires, by what was written
    value = 0

    async def set_() -> None:
        nonlocal until, value
        for ttl in (1.0, 0.5):
            value += 1
            await cache.set("a", value, ttl=ttl)
            until = lab.clock.now + ttl
            await pause(1.0)

    async def touch() -> None:
        nonlocal until
        for ttl in (0.75, 0.25):
            await pause(1.0)
            fresh = lab.clock.now < until
            assert await cache.touch("a", ttl) == fresh
            if fresh:
                until = lab.clock.now + ttl

    async def expire() -> None:
        nonlocal until
        await pause(1.0)
        fresh = lab.clock.now < until
        assert await cache.expire("a") == fresh
        until = min(until, lab.clock.now)

    async def read() -> None:
        for _ in range(3):
            fresh = lab.clock.now < until
            expected = value if fresh else None
            assert cache.peek("a", None) == expected
            assert await cache.get("a") == expected
            assert await cache.get_many(["a"]) == ({"a": value} if fresh else {})
            assert len(cache) == fresh
            look = await cache.lookup("a")
            assert look.hit == fresh
            if fresh:
                assert (look.value, look.ttl_left) == (value, until - lab.clock.now)
            else:
                assert look.reason in ("EXPIRED", "ABSENT")
                assert (look.reason == "ABSENT") == (value == 0)
            await pause(1.0)

    time = _passing(lab, 0.25, 0.5, 0.25)
    await ended(lab, setter=set_, toucher=touch, expirer=expire, reader=read, time=time)
    await cache.aclose()


@scenario(
    kills=(
        "decrement-forgotten",
        "expired-at-ttl-still-found-by-loads",
        "expired-at-ttl-still-hit",
        "expired-at-ttl-still-served",
        "join-not-counted",
        "join-starts-another-load",
        "ttl-counted-from-the-start",
    )
)
async def nothing_expired_is_revived(lab: Lab) -> None:
    """Past its ttl a value is not touched, deleted or joined back to life; calls load anew."""
    cache = lab.cache()
    ends: list[float] = []

    @race_safe_cached(cache, "now", ttl=1)
    async def now() -> int:
        lab.loads += 1
        await pause()
        ends.append(lab.clock.now)
        return len(ends)

    key = cache.key_for(now)

    def fresh() -> bool:
        return bool(ends) and lab.clock.now < ends[-1] + 1

    async def call() -> None:
        for _ in range(2):
            begun, hit, last = lab.loads, fresh(), len(ends)
            value = await now()
            if hit:
                assert (value, lab.loads) == (last, begun), "a hit that was none"
            else:
                assert value > last, "a value that had expired"
            await pause()

    async def look() -> None:
        for _ in range(3):
            assert (cache.peek(key) is not MISSING) == fresh()
            assert now.cache_contains() == fresh()  # type: ignore[attr-defined]
            await pause()

    time = _passing(lab, 0.5, 0.5, 1.0)
    await ended(lab, one=call, two=call, looker=look, time=time)
    assert len(ends) == lab.loads == cache.info(now).loads
    assert calls_of(cache.stats(), calls=4)


@scenario(
    kills=(
        "clear-records-nothing",
        "deleting-the-expired-says-deleted",
        "expired-at-ttl-still-served",
        "sweep-records-nothing",
        "whole-second-swept",
    )
)
async def a_miss_tells_the_truth_whoever_freed_the_memory(lab: Lab) -> None:
    """EXPIRED, EVICTED, DELETED or CLEARED: as it was, whatever sweeper and evictor did since."""
    cache = lab.cache(max_entries=8, sweep_interval=0.5)
    removals, keys = Removals(cache), ("brief", "plain", "long")
    await cache.start()
    await cache.set("brief", 1, ttl=1)
    await cache.set("plain", 2)
    for number in range(5):  # more than one write frees on its way
        await cache.set(f"old-{number}", 0, ttl=0.5)
    await cache.set("long", 3, ttl=2)

    async def delete() -> None:
        await removals.watch("DELETED", cache.delete("brief", "plain"), keys)

    async def crowd() -> None:
        for number in range(4):
            await removals.watch("EVICTED", cache.set(f"new-{number}", number), keys)
            await pause(1.0)

    async def clear() -> None:
        await pause(2.0)
        await removals.watch("CLEARED", cache.clear(), keys)

    time = _passing(lab, 0.5, 0.5, 1.5)
    await ended(lab, deleter=delete, crowd=crowd, clearer=clear, time=time)
    await removals.tell_the_truth(*keys)
    await cache.aclose()


@scenario(
    kills=(
        "decrement-forgotten",
        "join-starts-another-load",
        "live-evicted-before-expired",
        "memory-bound-checked-afterwards",
        "newest-evicted",
        "overhead-not-counted",
        "sweep-records-nothing",
        "unswept-says-absent",
    )
)
async def expired_entries_leave_before_live_ones(lab: Lab) -> None:
    """A load that needs much room takes what is expired, or else what was used longest ago."""
    probe = lab.cache(weigher=len)
    await probe.set("l", "")
    one = probe.memory_bytes
    cache = lab.cache(weigher=len, max_memory_bytes=7 * one)
    await cache.set("l", "")  # lives on, and was used longest ago
    for key in "abcdef":
        await cache.set(key, "", ttl=1)
    large = "x" * (5 * one)  # with its entry, six places of seven
    landed: list[float] = []

    async def load() -> str:
        await pause(1.0)
        landed.append(lab.clock.now)
        return large

    call = partial(cache.get_or_load, "n", load)
    await ended(lab, one=call, two=call, time=_passing(lab, 0.5, 0.5, 0.5))
    evicted = landed[0] < 1
    assert cache.stats().evictions == (6 if evicted else 0)
    assert cache.peek("l", None) == (None if evicted else "")
    assert cache.peek("n") is large
    lab.clock.advance(2)
    for key in "abcde":
        assert (await cache.lookup(key)).reason == ("EVICTED" if evicted else "EXPIRED")
    assert (await cache.lookup("f")).reason == "EXPIRED"
    assert (await cache.lookup("l")).reason == ("EVICTED" if evicted else None)


@scenario(
    kills=(
        "decrement-forgotten",
        "get-is-no-use",
        "newest-evicted",
        "one-entry-too-many",
    )
)
async def a_hit_saves_an_entry_from_the_evictor(lab: Lab) -> None:
    """Exact LRU over reads, calls and writes: who was used longest ago leaves."""
    cache = lab.cache(max_entries=2)
    order: list[str] = []  # the least recently used first

    async def put(key: str) -> None:
        await cache.set(key, key)
        if key in order:
            order.remove(key)
        order.append(key)
        del order[:-2]

    async def read(key: str) -> None:
        assert await cache.get(key) == (key if key in order else None)
        if key in order:
            order.remove(key)
            order.append(key)

    async def turns(key: str) -> None:
        await put(key)
        await pause()
        cache.peek("a")  # no use
        await read("a")
        await pause()
        await read("b")

    await ended(lab, **{key: partial(turns, key) for key in "abc"})
    assert [key for key in "abc" if cache.peek(key) is not MISSING] == sorted(order)


@scenario(
    kills=(
        "clear-records-nothing",
        "clear-without-fence",
        "fence-cancels-those-who-waited",
        "fence-of-an-absent-key-records-nothing",
        "fenced-load-stays-joinable",
        "flights-counted-as-entries",
        "land-without-identity-check",
    )
)
async def a_clear_keeps_every_older_load_out(lab: Lab) -> None:
    """After clear() returned only loads begun after it are stored; the rest is gone as CLEARED."""
    cache = lab.cache()
    await cache.set("kept", 0)
    early: dict[str, bool] = {}
    cleared = False

    async def call(key: str) -> Any:
        early[key] = not cleared
        return await cache.get_or_load(key, lab.loader(lambda: key, longest=0.3))

    async def clear() -> None:
        nonlocal cleared
        await cache.clear()
        cleared = True
        assert (len(cache), cache.memory_bytes) == (0, 0)

    got = await ended(lab, clearer=clear, **{key: partial(call, key) for key in "abc"})
    assert {key: got[key] for key in "abc"} == {key: key for key in "abc"}
    for key in ("kept", *"abc"):
        look = await cache.lookup(key)
        if early.get(key, True):
            assert (look.hit, look.reason) == (False, "CLEARED")
        else:
            assert look.value == key
    assert lab.loads == 3
