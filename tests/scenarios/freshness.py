"""A value that is stale, or soon will be, is refreshed behind who reads it; and nobody waits long.

What runs behind a read is fenced as any other load, runs once, and is tried again no sooner
than its backoff says. A load that hangs holds up neither its callers nor its key.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from typing import Any

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    CacheClosedError,
    LoadContext,
    LoadTimeoutError,
    race_safe_cached,
)
from async_safe_cache.testing import pause

from . import Lab, scenario
from .cancellation import _uncancelled
from .coalescing import calls_of, ended
from .consistency import is_late
from .fences import Database

TTL = 10
STALE = 15  # seconds after which it is past its ttl, and still kept
SOON = 8  # seconds after which it is fresh, and about to be refreshed
WINDOW = 1_000

Change = Callable[[AsyncSafeCache], Awaitable[Any]]


async def committed(cache: AsyncSafeCache) -> None:
    async with cache.transaction() as tx:
        tx.set("a", 2)


async def _after_a_write_nothing_older(lab: Lab, change: Change, **options: Any) -> None:
    """Read what is due for a refresh, while somebody changes the source, writes, and reads.

    A load that is fenced and that nobody waits for is cancelled; here it gives its value
    all the same.
    """
    source = Database()
    cache = lab.cache(default_ttl=TTL, **options)

    async def load() -> int:
        version = source.read()
        try:
            await pause()
        except asyncio.CancelledError:
            pass
        return version

    read = partial(cache.get_or_load, "a", load, tags="t")
    assert await read() == 1
    lab.clock.advance(SOON if "refresh_ahead" in options else STALE)

    async def update() -> Any:
        source.version = 2
        await change(cache)
        return await read()

    got = await lab.together(early=read, other=read, writer=update)
    assert got["writer"] == 2 or is_late(got["writer"])
    for name in ("early", "other"):
        assert got[name] in (1, 2) or is_late(got[name])
    await asyncio.sleep(1)  # for what runs behind
    if not is_late(got["writer"]):
        assert await cache.get("a", 2) == 2
    assert await read() in (1, 2)


@scenario(kills=(), cancel=("early", "writer"))
async def a_refresh_behind_does_not_undo_a_delete(lab: Lab) -> None:
    """After delete() returned, no read sees the stale value, nor what its refresh has loaded."""
    await _after_a_write_nothing_older(
        lab, lambda cache: cache.delete("a"), stale_while_revalidate=WINDOW
    )


@scenario(kills=(), cancel=("writer",))
async def a_refresh_behind_does_not_undo_a_set(lab: Lab) -> None:
    """After set() returned, no read sees the stale value, nor what its refresh has loaded."""
    await _after_a_write_nothing_older(
        lab, lambda cache: cache.set("a", 2), stale_while_revalidate=WINDOW
    )


@scenario(kills=(), cancel=("writer",))
async def a_refresh_behind_does_not_undo_a_commit(lab: Lab) -> None:
    """After a commit, no read sees the stale value, nor what its refresh has loaded."""
    await _after_a_write_nothing_older(lab, committed, stale_while_revalidate=WINDOW)


@scenario(kills=(), cancel=("writer",))
async def a_refresh_behind_does_not_undo_an_invalidation(lab: Lab) -> None:
    """After invalidate_tags(), no read sees the stale value, nor what its refresh has loaded."""
    await _after_a_write_nothing_older(
        lab, lambda cache: cache.invalidate_tags("t"), stale_while_revalidate=WINDOW
    )


@scenario(kills=(), cancel=("writer",))
async def a_refresh_behind_does_not_undo_a_clear(lab: Lab) -> None:
    """After clear() returned, no read sees the stale value, nor what its refresh has loaded."""
    await _after_a_write_nothing_older(
        lab, lambda cache: cache.clear(), stale_while_revalidate=WINDOW
    )


@scenario(kills=(), cancel=("early", "writer"))
async def a_refresh_ahead_does_not_undo_a_delete(lab: Lab) -> None:
    """After delete() returned, no read sees what a load ahead of the expiry has brought."""
    await _after_a_write_nothing_older(lab, lambda cache: cache.delete("a"), refresh_ahead=0.5)


@scenario(kills=(), cancel=("writer",))
async def a_refresh_ahead_does_not_undo_a_set(lab: Lab) -> None:
    """After set() returned, no read sees what a load ahead of the expiry has brought."""
    await _after_a_write_nothing_older(lab, lambda cache: cache.set("a", 2), refresh_ahead=0.5)


@scenario(kills=(), cancel=("writer",))
async def a_refresh_ahead_does_not_undo_a_commit(lab: Lab) -> None:
    """After a commit, no read sees what a load ahead of the expiry has brought."""
    await _after_a_write_nothing_older(lab, committed, refresh_ahead=0.5)


@scenario(kills=(), cancel=("early", "writer"))
async def an_expired_value_stays_stale_until_a_newer_load(lab: Lab) -> None:
    """After expire() what was held is stale, once or twice expired; an older load is not stored."""
    source = Database()
    cache = lab.cache(default_ttl=TTL, stale_while_revalidate=WINDOW)
    read = partial(cache.get_or_load, "a", lab.loader(source.read))
    assert await read() == 1
    lab.clock.advance(STALE)

    async def update() -> None:
        source.version = 2
        await cache.expire("a")
        assert (await cache.lookup("a")).value in (1, 2), "there is nothing to be served"
        assert cache.peek("a", 2) == 2, "a load that is older than the expiry was stored"
        await cache.expire("a")
        assert await read() in (1, 2)

    got = await ended(lab, victims=("early", "writer"), early=read, other=read, writer=update)
    await asyncio.sleep(1)
    assert got["other"] in (1, 2)
    if "writer" in got:
        assert await cache.get("a") == 2
    assert cache.stats().misses_by_reason["EXPIRED"] <= 2, "a reader waited for a load"


@scenario(kills=(), cancel=("early", "closer"))
async def a_refresh_behind_ends_with_the_cache(lab: Lab) -> None:
    """When aclose() returned no load runs; opened again, the cache knows nothing of before."""
    cache = lab.cache(default_ttl=TTL, stale_while_revalidate=WINDOW)
    read = partial(cache.get_or_load, "a", lab.loader(longest=0.4, clean_up=2))
    assert await read() == 1
    lab.clock.advance(STALE)

    async def close() -> None:
        await cache.aclose()
        assert lab.running == 0, "a refresh has outlived aclose()"

    got = await ended(
        lab,
        allowed=(CacheClosedError,),
        victims=("early", "closer"),
        early=read,
        closer=close,
        other=read,
    )
    await cache.aclose()
    assert lab.running == 0
    await cache.start()
    assert await cache.get("a") is None
    await cache.aclose()
    for name in ("early", "other"):
        assert name not in got or isinstance(got[name], CacheClosedError) or got[name] in (1, 2)
    assert lab.most == 1


@scenario(kills=())
async def draining_waits_for_the_refresh_behind(lab: Lab) -> None:
    """aclose(drain=True) lets what runs behind end, and then closes."""
    cache = lab.cache(default_ttl=TTL, stale_while_revalidate=WINDOW)
    loads: list[int] = []

    async def load() -> int:
        number = lab.fresh()
        await pause(0.4)
        loads.append(number)
        return number

    read = partial(cache.get_or_load, "a", load)
    assert await read() == 1
    lab.clock.advance(STALE)
    got = await ended(
        lab,
        allowed=(CacheClosedError,),
        early=read,
        closer=partial(cache.aclose, drain=True),
    )
    assert lab.fresh() == len(loads) + 1, "a load was begun and not ended"
    assert got["early"] == 1 or isinstance(got["early"], CacheClosedError)
    assert len(loads) == 1 + (got["early"] == 1)


# -- one at a time


@scenario(kills=(), cancel=("one",))
async def several_stale_readers_begin_one_refresh(lab: Lab) -> None:
    """Whoever reads what is stale has it at once, and one load behind brings the next."""
    source = Database()
    cache = lab.cache(default_ttl=TTL, stale_while_revalidate=WINDOW)
    read = partial(cache.get_or_load, "a", lab.loader(source.read))
    assert await read() == 1
    lab.clock.advance(STALE)
    source.version = 2

    got = await ended(lab, victims=("one",), one=read, two=read, three=read, four=read)
    await asyncio.sleep(1)
    assert lab.loads == 2
    assert lab.most == 1
    assert set(got.values()) <= {1, 2}
    assert await cache.get("a") == 2
    stats = cache.stats()
    assert (stats.misses, stats.coalesced, stats.loads) == (1, 0, 2), "somebody waited"
    assert stats.stale_served >= sum(value == 1 for value in got.values())


@scenario(kills=(), two_tasks=True)
async def two_stale_readers_begin_one_refresh(lab: Lab) -> None:
    """The same for two."""
    cache = lab.cache(default_ttl=TTL, stale_while_revalidate=WINDOW)
    read = partial(cache.get_or_load, "a", lab.loader())
    assert await read() == 1
    lab.clock.advance(STALE)
    got = await ended(lab, one=read, two=read)
    await asyncio.sleep(1)
    assert lab.loads == 2
    assert 1 in got.values()
    assert await cache.get("a") == 2


@scenario(kills=(), cancel=("one",))
async def several_readers_begin_one_refresh_ahead(lab: Lab) -> None:
    """Past the fraction of its ttl a value is read at once, and one load brings the next."""
    source = Database()
    cache = lab.cache()
    loader = lab.loader(source.read)

    @race_safe_cached(cache, "read", ttl=TTL, refresh_ahead=0.5)
    async def read() -> Any:
        return await loader()

    raw = partial(cache.get_or_load, cache.key_for(read), loader, ttl=TTL, refresh_ahead=0.5)
    assert await read() == 1
    lab.clock.advance(SOON)
    source.version = 2
    got = await ended(lab, victims=("one",), one=read, two=raw, three=read, four=raw)
    await asyncio.sleep(1)
    assert lab.loads == 2
    assert lab.most == 1
    assert set(got.values()) <= {1, 2}
    assert await read() == 2
    assert cache.stats().misses == 1


@scenario(kills=(), two_tasks=True)
async def two_readers_of_a_raw_key_begin_one_refresh_ahead(lab: Lab) -> None:
    """The same where no function says how far ahead to look."""
    cache = lab.cache(default_ttl=TTL, refresh_ahead=0.5)
    read = partial(cache.get_or_load, "a", lab.loader())
    assert await read() == 1
    lab.clock.advance(SOON)
    got = await ended(lab, one=read, two=read)
    await asyncio.sleep(1)
    assert lab.loads == 2
    assert 1 in got.values()
    assert await cache.get("a") == 2
    assert cache.stats().misses == 1


@scenario(kills=(), cancel=("many",))
async def a_bulk_caller_waits_for_the_refresh_behind(lab: Lab) -> None:
    """Who asks for many keys gets no stale value: he joins the load behind it, or begins it."""
    cache = lab.cache(default_ttl=TTL, stale_while_revalidate=WINDOW)
    load = lab.loader()
    read = partial(cache.get_or_load, "a", load)

    many: list[list[str]] = []

    async def load_many(absent: list[str]) -> dict[str, int]:
        many.append(absent)
        return {key: await load() for key in absent}

    assert await read() == 1
    lab.clock.advance(STALE)
    got = await ended(
        lab,
        victims=("many",),
        one=read,
        many=partial(cache.get_or_load_many, ["a"], load_many, ttl=TTL),
        two=read,
    )
    await asyncio.sleep(1)
    assert lab.most == 1
    if "many" in got:
        assert got["many"] == {"a": 2}
        assert lab.loads == 2
    if "many" in got or (lab.loads == 2 and not many):
        assert await cache.get("a") == 2, "the refresh left with one who had joined it"
    assert lab.loads <= 3
    assert {got["one"], got["two"]} <= {1, 2, 3}


# -- when loads fail


@scenario(kills=(), cancel=("one",))
async def a_failing_refresh_is_not_tried_again_at_once(lab: Lab) -> None:
    """While its backoff lasts readers have the stale value, and nothing is loaded."""
    backoff = 100.0
    cache = lab.cache(default_ttl=TTL, stale_while_revalidate=10**6, error_backoff=backoff)
    begun: list[float] = []

    async def load() -> int:
        begun.append(lab.clock.now)
        await pause(0.4)
        if len(begun) > 1:
            raise OSError("the origin")
        return 1

    async def follow() -> None:
        for _ in range(4):
            assert await cache.get_or_load("a", load) == 1
            await pause(60.0)
        assert _uncancelled()

    assert await cache.get_or_load("a", load) == 1
    lab.clock.advance(STALE)
    for _ in range(2):
        await ended(lab, victims=("one",), one=follow, two=follow, three=follow)
        await asyncio.sleep(1)
        lab.clock.advance(backoff)
    for failures, (before, after) in enumerate(pairwise(begun[1:])):
        # Chance shortens a delay by up to a tenth.
        assert after - before >= backoff * 2.0**failures * 0.9, begun
    assert len(begun) >= 2
    stats = cache.stats()
    assert (stats.loads, stats.load_errors) == (len(begun), len(begun) - 1)
    assert stats.misses == 1, "somebody waited"


@scenario(kills=(), cancel=("one", "two"))
async def a_stale_value_stands_in_for_a_failing_load(lab: Lab) -> None:
    """With stale_if_error all who wait for a load that fails have the value from before it."""
    cache = lab.cache(default_ttl=TTL, stale_if_error=WINDOW, error_backoff=100)
    fail = lab.loader(longest=0.4, error=OSError("the origin"))

    async def read() -> Any:
        value = await cache.get_or_load("a", fail)
        assert _uncancelled()
        return value

    assert await cache.get_or_load("a", lab.loader(longest=0.4)) == 1
    lab.clock.advance(STALE)
    got = await ended(lab, victims=("one", "two"), one=read, two=read, three=read)
    assert set(got.values()) == {1}
    assert lab.loads <= 2 + (len(got) < 3), "tried again within the backoff"
    assert (await cache.lookup("a")).stale
    stats = cache.stats()
    assert stats.load_errors == 1
    assert stats.stale_served >= 2
    assert calls_of(stats, calls=1 + 3 + 1) or len(got) < 3


@scenario(kills=(), cancel=("early",))
async def a_stale_value_that_was_deleted_stands_in_for_nothing(lab: Lab) -> None:
    """A load that fails after a delete fails for all who asked after it, too."""
    cache = lab.cache(default_ttl=TTL, stale_if_error=WINDOW, error_backoff=0)
    read = partial(cache.get_or_load, "a", lab.loader(longest=0.4, error=OSError("the origin")))
    assert await cache.get_or_load("a", lab.loader()) == 1
    lab.clock.advance(STALE)

    async def update() -> Any:
        await cache.delete("a")
        return await read()

    got = await ended(
        lab,
        allowed=(OSError,),
        victims=("early",),
        early=read,
        other=read,
        writer=update,
    )
    assert isinstance(got["writer"], OSError), "what was deleted was served"
    for name in {"early", "other"} & set(got):
        assert isinstance(got[name], OSError) or got[name] == 1
    assert (await cache.lookup("a")).value is MISSING


@scenario(kills=(), cancel=("one",))
async def what_is_not_modified_is_not_written_over_what_is(lab: Lab) -> None:
    """A loader that confirms the value it was shown undoes no delete and no set since."""
    cache = lab.cache(default_ttl=TTL, stale_while_revalidate=WINDOW)
    source = Database()

    async def load(ctx: LoadContext) -> Any:
        version = source.read()
        held = ctx.stale_value
        await pause(0.4)
        return ctx.not_modified() if held == version else version

    read = partial(cache.get_or_load, "a", load)
    assert await read() == 1
    lab.clock.advance(STALE)

    async def replace() -> Any:
        source.version = 3
        await cache.set("a", 3)
        seen = await read()
        assert seen == 3, f"{seen} after the set"

    async def update() -> Any:
        source.version = 2
        await cache.delete("a")
        seen = await read()
        assert seen in (2, 3), f"{seen} after the delete"
        await replace()

    got = await ended(lab, victims=("one",), one=read, two=read, writer=update)
    await asyncio.sleep(1)
    assert await cache.get("a") == 3
    assert {got.get("one", 1), got["two"]} <= {1, 2, 3}


@scenario(kills=(), cancel=("one",))
async def a_value_that_is_skipped_leaves_what_is_held(lab: Lab) -> None:
    """ctx.skip() answers who waits and stores nothing; what is held is served until it is over."""
    cache = lab.cache(default_ttl=TTL, stale_if_error=WINDOW, error_backoff=100)

    async def load(ctx: LoadContext) -> Any:
        lab.loads += 1
        await pause(0.4)
        return 1 if ctx.stale_value is MISSING else ctx.skip(2)

    read = partial(cache.get_or_load, "a", load)
    assert await read() == 1
    lab.clock.advance(STALE)
    got = await ended(lab, victims=("one",), one=read, two=read, three=read)
    assert set(got.values()) == {2}
    assert 2 <= lab.loads <= 1 + 3
    look = await cache.lookup("a")
    assert (look.hit, look.stale, look.value) == (False, True, 1)


# -- nobody waits long


@scenario(kills=(), cancel=("one", "newcomer"))
async def a_load_that_hangs_holds_up_neither_its_callers_nor_its_key(lab: Lab) -> None:
    """At load_timeout all are told; the next load waits for its end, at most cancel_grace."""
    cache = lab.cache(load_timeout=1, cancel_grace=2)
    begun: list[float] = []
    over_at: dict[int, float] = {}

    async def load() -> int:
        begun.append(lab.clock.now)
        number = len(begun)
        lab.running += 1
        lab.most = max(lab.most, lab.running)
        try:
            if number > 1:
                await pause()
                return number
            await asyncio.Event().wait()  # for ever
        except asyncio.CancelledError:
            await pause(8.0)  # a clean-up within the grace, or beyond it
            raise
        finally:
            over_at[number] = lab.clock.now
            lab.running -= 1
        raise AssertionError("it goes on")

    told: list[float] = []

    async def call() -> Any:
        try:
            value = await cache.get_or_load("a", load)
        except LoadTimeoutError as error:
            assert error.option == "load_timeout"
            told.append(lab.clock.now)
            assert len(told) == 1 or len(begun) == 1
            value = "late"
        assert _uncancelled()
        return value

    async def come_later() -> Any:
        await pause(6.0)
        return await call()

    got = await ended(lab, victims=("one", "newcomer"), one=call, two=call, newcomer=come_later)
    await asyncio.sleep(20)
    stats = cache.stats()
    if len(got) == 3 or told:
        assert told, "nobody was told"
        # Under the explorer a timer is set a while after the step that sets it began.
        assert set(told) == {told[0]}
        assert begun[0] + 1 <= told[0] <= begun[0] + 1.6
        assert stats.load_timeouts == 1
    assert bool(told) <= stats.loads <= len(begun)  # one that everybody left is none
    assert stats.load_errors == stats.load_timeouts
    if len(begun) > 1:
        # Who is told that the grace is over goes on, though it ended in that very moment.
        assert lab.most - 1 <= stats.overlapping_loads <= 1
        if lab.most == 1:
            assert begun[1] >= over_at[1]
        elif told:
            assert begun[1] >= told[0] + 2, "beside a load that is within its grace"
        assert await cache.get("a") == 2 or "newcomer" not in got
    assert set(got.values()) <= {"late", 2}


@scenario(kills=(), cancel=("newcomer",))
async def what_a_hung_load_brings_in_the_end_goes_nowhere(lab: Lab) -> None:
    """A load that is told to end and gives a value all the same answers nobody, stores nothing."""
    cache = lab.cache(load_timeout=1, cancel_grace=60)
    begun: list[float] = []

    async def load() -> str:
        begun.append(lab.clock.now)
        if len(begun) > 1:
            await pause()
            return "next"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await pause(8.0)
        return "swallowed"

    async def call() -> Any:
        try:
            return await cache.get_or_load("a", load)
        except LoadTimeoutError:
            return "late"

    async def come_later() -> Any:
        await pause(6.0)
        return await call()

    got = await ended(lab, victims=("newcomer",), one=call, newcomer=come_later)
    await asyncio.sleep(20)
    assert set(got.values()) <= {"late", "next"}
    late = "late" in got.values()
    assert late or "newcomer" not in got
    assert await cache.get("a") in (None, "next")
    assert await call() == "next"
    stats = cache.stats()
    assert (stats.load_errors, stats.load_timeouts) == (late, late)
    assert 1 + late <= stats.loads <= len(begun)
    assert stats.overlapping_loads == 0


@scenario(kills=(), cancel=("one",))
async def a_refresh_that_hangs_holds_up_nobody(lab: Lab) -> None:
    """Readers have the stale value while it hangs, while it is ended, and until the next one."""
    cache = lab.cache(
        default_ttl=TTL,
        stale_while_revalidate=10**6,
        load_timeout=5,
        cancel_grace=1,
        error_backoff=30,
    )
    begun: list[float] = []

    async def load() -> int:
        begun.append(lab.clock.now)
        if len(begun) > 1:
            try:
                await asyncio.Event().wait()
            finally:
                await pause(8.0)
        return 1

    async def follow() -> None:
        for _ in range(4):
            assert await cache.get_or_load("a", load) == 1
            await pause(20.0)

    assert await cache.get_or_load("a", load) == 1
    lab.clock.advance(STALE)
    got = await ended(lab, victims=("one",), one=follow, two=follow)
    await asyncio.sleep(30)
    assert len(got) >= 1
    for failures, (before, after) in enumerate(pairwise(begun[1:])):
        assert after - before >= 5 + 30 * 2.0**failures * 0.9, begun
    stats = cache.stats()
    assert stats.load_timeouts == stats.load_errors == len(begun) - 1
    assert stats.loads == len(begun)
    assert (stats.misses, stats.coalesced) == (1, 0), "a reader waited"


@scenario(kills=(), cancel=("one", "two"))
async def nobody_waits_beyond_his_hard_timeout(lab: Lab) -> None:
    """Each has the value, or LoadTimeoutError at his time; the last one takes the load along."""
    grace = 0.5
    cache = lab.cache(hard_timeout=1, cancel_grace=grace)
    load = lab.loader(longest=4.0, clean_up=2)

    async def call() -> Any:
        begun = lab.clock.now
        try:
            value = await cache.get_or_load("a", load)
        except LoadTimeoutError as error:
            assert (error.option, error.seconds) == ("hard_timeout", 1.0)
            assert lab.clock.now >= begun + 1
            value = "late"
        # Under the explorer a step that waits for a clean-up takes a part of the grace itself.
        assert lab.clock.now <= begun + 1 + 2 * grace
        assert _uncancelled()
        return value

    async def come_later() -> Any:
        await pause(1.0)
        return await call()

    got = await ended(lab, victims=("one", "two"), one=call, two=call, newcomer=come_later)
    await asyncio.sleep(10)
    assert lab.most == 1
    values = set(got.values()) - {"late"}
    assert len(values) <= 1
    assert values <= {await cache.get("a")}
    assert not lab.running


@scenario(kills=(), two_tasks=True)
async def a_cancellation_at_the_moment_the_time_is_up_is_not_lost(lab: Lab) -> None:
    """Cancelled as his alarm rings and his answer comes he is cancelled, and leaves once."""
    cache = lab.cache()

    async def load() -> int:
        lab.loads += 1
        number = lab.loads
        await asyncio.sleep(1)
        return number

    async def hasty() -> Any:
        try:
            return await cache.get_or_load("a", load, hard_timeout=1)
        except LoadTimeoutError:
            return "late"

    victim = asyncio.create_task(hasty(), name="victim")
    patient = asyncio.create_task(cache.get_or_load("a", load), name="patient")
    await asyncio.sleep(1)
    struck = victim.cancel()
    await asyncio.wait([victim])
    assert victim.cancelled() if struck else victim.result() in ("late", 1), "it is lost"
    flights = [*cache._engine.flights.running]
    assert all(len(flight.waiters) <= 1 for flight in flights), "he is still waited for"
    # A second load only if he was alone with the first.
    assert await patient == lab.loads <= 2
    assert cache.stats().load_errors == 0


@scenario(kills=(), cancel=("one", "two"))
async def a_stale_value_is_taken_when_the_load_is_slow(lab: Lab) -> None:
    """At soft_timeout each takes what is stale; the load goes on for the next one, and lands."""
    source = Database()
    cache = lab.cache(
        default_ttl=TTL,
        stale_if_error=WINDOW,
        soft_timeout=0.5,
        hard_timeout=3,
        cancel_grace=0.25,
    )
    load = lab.loader(source.read, longest=4.0)

    async def call() -> Any:
        begun = lab.clock.now
        value = await cache.get_or_load("a", load)
        # Under the explorer a step that waits for a clean-up takes a part of the grace itself.
        assert lab.clock.now <= begun + 0.5 + 2 * 0.25, "longer than he would"
        assert _uncancelled()
        return value

    assert await cache.get_or_load("a", lab.loader(source.read)) == 1
    lab.clock.advance(STALE)
    source.version = 2
    got = await ended(lab, victims=("one", "two"), one=call, two=call, three=call)
    assert set(got.values()) <= {1, 2}
    await asyncio.sleep(4)
    assert await cache.get("a") == 2, "the load was given up"
    # A second one only if the first was left by one who was alone with it, and cancelled.
    assert lab.loads <= 2 + 1 * (len(got) < 3)
    assert lab.most == 1


@scenario(kills=(), cancel=("one",))
async def nobody_sees_an_error_while_something_stale_is_allowed(lab: Lab) -> None:
    """Slow, hung or failing: each caller has a value, within his time; newcomers, too."""
    cache = lab.cache(
        default_ttl=TTL,
        stale_if_error=10**6,
        soft_timeout=0.5,
        hard_timeout=3,
        cancel_grace=0.25,
        error_backoff=0,
    )
    kinds = [OSError("reset"), None, LookupError("500")]

    async def load() -> int:
        number = lab.fresh()
        if number > 1:
            kind = kinds[number % 3]
            if kind is None:
                await asyncio.Event().wait()
            await pause(4.0)
            if kind is not None:
                raise kind
        return 1

    async def follow() -> None:
        for _ in range(3):
            begun = lab.clock.now
            assert await cache.get_or_load("a", load) == 1
            # Under the explorer a step that waits for a clean-up takes a part of the grace itself.
            assert lab.clock.now <= begun + 0.5 + 2 * 0.25
            await pause(4.0)
        assert _uncancelled()

    assert await cache.get_or_load("a", load) == 1
    lab.clock.advance(STALE)
    await ended(lab, victims=("one",), one=follow, two=follow)
    await cache.aclose()
