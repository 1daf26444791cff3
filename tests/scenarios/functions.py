"""Decorated functions: which calls are one, and every write against every way to read."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from async_safe_cache import MISSING, AsyncSafeCache, Key, race_safe_cached
from async_safe_cache.testing import pause

from . import Lab, scenario
from .coalescing import calls_of, ended
from .fences import Database

# -- every write against every read: a function's entry is found by its Key as well


class Price:
    """One cached function, its source, and the Key that every keyed method takes."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.cache: AsyncSafeCache = lab.cache()
        self.source = Database()
        load = lab.loader(self.source.read, longest=0.4)

        @race_safe_cached(self.cache, "price")
        async def price() -> Any:
            return await load()

        self.call: Any = price
        self.key: Key = self.cache.key_for(price)
        self.loader = load


async def _set(price: Price) -> None:
    await price.cache.set(price.key, price.source.version)


async def _delete(price: Price) -> None:
    await price.cache.delete(price.key)


async def _expire(price: Price) -> None:
    await price.cache.expire(price.key)


async def _clear(price: Price) -> None:
    await price.cache.clear()


async def _invalidate(price: Price) -> None:
    await price.cache.invalidate(price.call)


async def _cache_invalidate(price: Price) -> None:
    price.call.cache_invalidate()


async def _cache_clear(price: Price) -> None:
    price.call.cache_clear()


WRITES: dict[str, tuple[Callable[[Price], Awaitable[None]], str | None]] = {
    # write: what it does, and why a read after it misses; None: it does not
    "a_set": (_set, None),
    "a_delete": (_delete, "DELETED"),
    "an_expire": (_expire, "EXPIRED"),
    "a_clear": (_clear, "CLEARED"),
    "an_invalidate": (_invalidate, "DELETED"),
    "a_cache_invalidate": (_cache_invalidate, "DELETED"),
    "a_cache_clear": (_cache_clear, "CLEARED"),
}


async def _look(price: Price) -> Any:
    """Read in every way that starts no load, in one step: all must agree; None is a miss."""
    cache, key = price.cache, price.key
    seen = cache.peek(key)
    assert price.call.cache_contains() == (seen is not MISSING)
    assert await cache.get(key, MISSING) == seen
    assert await cache.get_many([key]) == ({} if seen is MISSING else {key: seen})
    look = await cache.lookup(key)
    assert (look.hit, look.value) == (seen is not MISSING, seen)
    return look.reason if seen is MISSING else seen


async def _ask(price: Price) -> Any:
    """Read through, by the Key."""
    return await price.cache.get_or_load(price.key, price.loader)


async def _call(price: Price) -> Any:
    """Call the function."""
    return await price.call()


READS: dict[str, Callable[[Price], Awaitable[Any]]] = {
    "every_look": _look,
    "get_or_load": _ask,
    "a_call": _call,
}


def _one_write_against_one_read(write: str, read: str) -> None:
    change, reason = WRITES[write]
    look = READS[read]

    async def body(lab: Lab) -> None:
        price = Price(lab)
        written = began = False

        async def early() -> Any:
            nonlocal began
            began = began or not written
            return await price.call()

        async def update() -> None:
            nonlocal written
            price.source.version = 2
            await change(price)
            written = True
            await after()

        async def after() -> None:
            seen = await look(price)
            if isinstance(seen, str):
                assert reason is not None, "a set value is missing"
                assert seen == (reason if began else "ABSENT")
            else:
                assert seen == 2

        async def reader() -> None:
            nonlocal began
            for _ in range(2):
                if written:
                    await after()
                else:
                    began = began or look is not _look
                    seen = await look(price)
                    # It may have waited meanwhile; and an absent value has not been loaded yet.
                    assert seen in (1, 2, "ABSENT")
                await pause()

        await ended(lab, early=early, writer=update, reader=reader)
        assert await price.call() == 2
        assert price.cache.peek(price.key) == 2
        assert price.cache.stats().load_errors == 0

    body.__name__ = f"{write}_is_seen_by_{read}"
    body.__doc__ = (
        f"After {write} returned, {read} finds the new value, or nothing and the true reason, "
        "whatever load was under way; before it, the old one at most."
    )
    body.__module__ = __name__
    scenario(kills=KILLS[body.__name__])(body)


# Measured, as all `kills`.
KILLS: dict[str, tuple[str, ...]] = {
    "a_cache_clear_is_seen_by_a_call": (
        "cache-clear-without-fence",
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_cache_clear_is_seen_by_every_look": (
        "cache-clear-without-fence",
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fence-of-an-absent-key-records-nothing",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_cache_clear_is_seen_by_get_or_load": (
        "cache-clear-without-fence",
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_cache_invalidate_is_seen_by_a_call": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_cache_invalidate_is_seen_by_every_look": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fence-of-an-absent-key-records-nothing",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_cache_invalidate_is_seen_by_get_or_load": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_clear_is_seen_by_a_call": (
        "clear-without-fence",
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_clear_is_seen_by_every_look": (
        "clear-records-nothing",
        "clear-without-fence",
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fence-of-an-absent-key-records-nothing",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_clear_is_seen_by_get_or_load": (
        "clear-without-fence",
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_delete_is_seen_by_a_call": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_delete_is_seen_by_every_look": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fence-of-an-absent-key-records-nothing",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_delete_is_seen_by_get_or_load": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "a_set_is_seen_by_a_call": (
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
        "retire-skipped",
        "set-without-fence",
    ),
    "a_set_is_seen_by_every_look": (
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
        "retire-skipped",
        "set-without-fence",
    ),
    "a_set_is_seen_by_get_or_load": (
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
        "retire-skipped",
        "set-without-fence",
    ),
    "an_expire_is_seen_by_a_call": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "an_expire_is_seen_by_every_look": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fence-of-an-absent-key-records-nothing",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "an_expire_is_seen_by_get_or_load": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "an_invalidate_is_seen_by_a_call": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "an_invalidate_is_seen_by_every_look": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fence-of-an-absent-key-records-nothing",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
    "an_invalidate_is_seen_by_get_or_load": (
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    ),
}

for _write in WRITES:
    for _read in READS:
        _one_write_against_one_read(_write, _read)


@scenario(
    kills=(
        "decrement-forgotten",
        "join-starts-another-load",
        "join-while-cancelling",
        "late-hit-not-seen",
        "other-waiters-not-counted",
        "refresh-counted-as-a-call",
        "retire-skipped",
    ),
    cancel=("refresher",),
)
async def a_refresh_is_seen_by_every_read_after_it(lab: Lab) -> None:
    """Before it ends others have the older value without waiting; after it what it returned."""
    price = Price(lab)
    assert await price.call() == 1
    price.source.version = 2
    refreshed = False

    async def refresh() -> None:
        nonlocal refreshed
        assert await price.cache.refresh(price.call) == 2
        refreshed = True
        assert await _look(price) == 2

    async def reader() -> None:
        for read in (_look, _ask, _call):
            late, loads = refreshed, lab.loads
            seen = await read(price)
            assert seen == 2 or (seen == 1 and not late)
            assert lab.loads == loads, "a reader waited for a load"
            await pause()

    got = await ended(lab, victims=("refresher",), refresher=refresh, also=refresh, reader=reader)
    assert "also" in got
    assert await price.call() == 2
    assert lab.most == 1
    assert price.cache.stats().misses == 1


@scenario(
    kills=(
        "decrement-forgotten",
        "join-starts-another-load",
        "late-hit-not-seen",
        "touched-entry-still-swept",
    )
)
async def a_touch_changes_the_time_and_nothing_else(lab: Lab) -> None:
    """It fences no load and stores no value: a fresh one stays the same object, for longer."""
    price = Price(lab)
    cache, key = price.cache, price.key

    async def touch() -> None:
        for _ in range(3):
            seen = cache.peek(key)
            assert await cache.touch(key, 100) == (seen is not MISSING)
            assert cache.peek(key) is seen
            look = await cache.lookup(key)
            assert look.ttl_left == (None if seen is MISSING else 100)
            await pause(0.4)

    got = await ended(
        lab, one=price.call, two=partial(_ask, price), toucher=touch, early=price.call
    )
    assert (got["one"], got["two"], got["early"]) == (1, 1, 1)
    assert lab.loads == 1
    assert await _look(price) == 1
    assert cache.stats().misses_by_reason["ABSENT"] == cache.stats().misses


# -- which calls are one


@scenario(
    kills=(
        "decrement-forgotten",
        "join-starts-another-load",
        "types-of-several-not-confirmed",
    )
)
async def equal_calls_are_one_and_different_ones_are_not(lab: Lab) -> None:
    """Positional, by name, by default: one load; 1, True and "1" are three calls."""
    cache = lab.cache()
    begun: list[tuple[Any, Any]] = []

    @race_safe_cached(cache, "pair")
    async def pair(first: object, second: object = 2) -> tuple[object, object]:
        begun.append((first, second))
        await pause(0.4)
        return first, second

    got = await ended(
        lab,
        plain=partial(pair, 1),
        named=partial(pair, second=2, first=1),
        truth=partial(pair, True),
        text=partial(pair, "1"),
        other=partial(pair, 2, 1),
    )
    assert got["plain"] is got["named"]
    assert repr(sorted(begun, key=repr)) == repr([("1", 2), (1, 2), (2, 1), (True, 2)])
    assert [repr(got[name]) for name in ("plain", "truth", "text", "other")] == [
        "(1, 2)", "(True, 2)", "('1', 2)", "(2, 1)"
    ]  # fmt: skip
    assert cache.info(pair).entries == 4


@scenario(
    kills=(
        "decrement-forgotten",
        "delete-without-fence",
        "end-without-identity-check",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "join-starts-another-load",
        "land-without-identity-check",
    )
)
async def each_instance_has_entries_of_its_own(lab: Lab) -> None:
    """One load per instance and call; an invalidation of one instance leaves the other alone."""
    cache = lab.cache()

    class Service:
        def __init__(self, name: str) -> None:
            self.name = name
            self.source = Database()

        @race_safe_cached(cache, "answer", method=True)
        async def answer(self, number: int) -> tuple[str, int, int]:
            version = await lab.loader(self.source.read, longest=0.4)()
            return self.name, number, version

    left, right = Service("left"), Service("right")

    async def update() -> Any:
        left.source.version = 2
        await cache.invalidate(left.answer, 1)
        return await left.answer(1)

    got = await ended(
        lab,
        left=partial(left.answer, 1),
        right=partial(right.answer, 1),
        other=partial(right.answer, 1),
        writer=update,
    )
    assert got["writer"] == await left.answer(1) == ("left", 1, 2)
    assert got["left"] in (("left", 1, 1), ("left", 1, 2))
    assert got["right"] is got["other"] is await right.answer(1)
    assert got["right"] == ("right", 1, 1)
    assert lab.loads in (2, 3)
    assert cache.info(left.answer).entries == 2


@scenario(
    kills=(
        "collected-instance-leaves-entries",
        "decrement-forgotten",
        "method-holds-its-instance",
        "retire-skipped",
        "set-fences-every-load",
    )
)
async def an_instance_takes_its_entries_along(lab: Lab) -> None:
    """Collected after its calls, it leaves neither entry nor bytes, whoever wrote meanwhile."""
    cache = lab.cache()

    class Service:
        @race_safe_cached(cache, "answer", method=True)
        async def answer(self) -> int:
            return await lab.loader(lambda: 1, longest=0.4)()

    kept = Service()

    async def brief() -> None:
        service = Service()
        assert await service.answer() == 1
        await pause()
        assert service.answer.cache_contains(service)  # type: ignore[attr-defined]

    async def write() -> None:
        for number in range(2):
            await cache.set("a", number)
            await pause(0.4)

    got = await ended(lab, one=brief, two=brief, kept=kept.answer, writer=write)
    assert got["kept"] == 1
    await asyncio.sleep(0.1)  # the loads' tasks, which hold the calls, are gone
    await cache.set("a", 2)  # a write does what the collector put off
    assert cache.info(kept.answer).entries == 1
    assert len(cache) == 2
    assert cache.stats().removals_by_cause["COLLECTED"] == 2
    assert lab.loads == 3


@scenario(
    kills=(
        "join-not-counted",
        "join-starts-another-load",
        "late-hit-not-seen",
    )
)
async def the_key_hook_says_which_calls_are_one(lab: Lab) -> None:
    """Calls with one key share a load, whatever else they are given; a failing hook fails one."""
    cache = lab.cache()

    def place(symbol: str, trace: object) -> str:
        if trace is None:
            raise LookupError("no trace")
        return symbol.upper()

    @race_safe_cached(cache, "quote", key=place)
    async def quote(symbol: str, trace: object) -> Any:
        return symbol.upper(), await lab.loader(longest=0.4)()

    got = await ended(
        lab,
        allowed=(LookupError,),
        one=partial(quote, "a", 1),
        two=partial(quote, "A", []),  # no key by itself
        broken=partial(quote, "a", None),
        other=partial(quote, "b", 1),
    )
    assert isinstance(got["broken"], LookupError)
    assert got["one"] is got["two"]
    assert sorted((got["one"][0], got["other"][0])) == ["A", "B"]
    assert sorted((got["one"][1], got["other"][1])) == [1, 2]
    assert calls_of(cache.stats(), calls=3)
    assert cache.info(quote).entries == lab.loads == 2


@scenario(
    kills=(
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "join-not-counted",
    )
)
async def the_info_counts_every_call_once_also_across_a_clear(lab: Lab) -> None:
    """cache_info() counts from 0 after cache_clear(), the cache's own counters go on."""
    cache = lab.cache()
    begun = since = 0

    @race_safe_cached(cache, "number")
    async def number(which: int) -> int:
        return await lab.loader(lambda: which, longest=0.4)()

    info: Callable[[], Any] = number.cache_info  # type: ignore[attr-defined]

    async def call(which: int) -> None:
        nonlocal begun, since
        for _ in range(2):
            begun += 1
            since += 1
            assert await number(which) == which
            await pause()

    async def clear() -> None:
        nonlocal since
        for _ in range(2):
            number.cache_clear()  # type: ignore[attr-defined]
            since = 0
            assert info() == (0, 0, None, 0)
            await pause(0.4)

    async def watch() -> None:
        for _ in range(3):
            hits, misses, _, size = info()
            assert hits + misses == since
            assert 0 <= size <= 2
            await pause()

    await ended(
        lab, one=partial(call, 1), two=partial(call, 2), both=partial(call, 1),
        clearer=clear, watcher=watch,
    )  # fmt: skip
    hits, misses, _, size = info()
    assert (hits + misses, begun) == (since, 6)
    assert calls_of(cache.stats(), calls=6)
    counts = cache.info(number)
    assert (counts.misses, counts.loads, counts.in_flight) == (lab.loads, lab.loads, 0)
    assert counts.entries == size == len(cache)


@scenario(
    kills=("remembered-failure-replaces-a-value",),
    cancel=("one",),
    two_tasks=True,
)
async def a_failing_refresh_leaves_the_older_value(lab: Lab) -> None:
    """The refresher is told; readers have the older value, also when the failure is an answer."""
    cache = lab.cache()

    @race_safe_cached(cache, "number", negative={KeyError: 100})
    async def number() -> int:
        lab.loads += 1
        first = lab.loads == 1
        await pause()
        if not first:
            raise KeyError("gone")
        return 1

    assert await number() == 1
    got = await ended(
        lab, allowed=(KeyError,), victims=("one",), one=partial(cache.refresh, number), two=number
    )
    assert got["two"] == 1
    assert isinstance(got.get("one", KeyError()), KeyError)
    assert await number() == 1
    assert lab.loads <= 2
