"""Closing, draining and opening again, of a cache and of one function, among calls and writes."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from async_safe_cache import MISSING, AsyncSafeCache, CacheClosedError, race_safe_cached
from async_safe_cache.testing import pause

from . import Lab, scenario
from .coalescing import Caller, ended
from .fences import Database


def _sweepers() -> int:
    """Return how many sweepers run in this loop."""
    return sum("sweeper" in task.get_name() for task in asyncio.all_tasks())


async def _refuses_everything(cache: AsyncSafeCache) -> None:
    """Check that a closed cache raises CacheClosedError at every door, and holds nothing."""
    uses: list[Callable[[], Awaitable[Any]]] = [
        partial(cache.get, "a"),
        partial(cache.lookup, "a"),
        partial(cache.get_many, ["a"]),
        partial(cache.set, "a", 1),
        partial(cache.delete, "a"),
        partial(cache.expire, "a"),
        partial(cache.touch, "a", 1),
        partial(cache.clear),
        partial(cache.get_or_load, "a", lambda: 1),
    ]
    for use in uses:
        try:
            await use()
        except CacheClosedError:
            continue
        raise AssertionError(f"a closed cache answers {use}")
    try:
        cache.peek("a")
    except CacheClosedError:
        assert (len(cache), cache.memory_bytes, cache.closed) == (0, 0, True)
        return
    raise AssertionError("a closed cache answers peek()")


@scenario(
    kills=(
        "abandoned-load-counted-as-an-error",
        "close-answers-nobody",
        "join-starts-another-load",
        "late-hit-not-seen",
        "load-admitted-after-the-end",
        "set-admitted-after-the-end",
    ),
    cancel=("one", "closer"),
)
async def closing_answers_everybody_and_ends_every_load(lab: Lab) -> None:
    """Each caller has the value, or CacheClosedError; when aclose() returned no load runs."""
    cache = lab.cache()
    await cache.start()
    call = partial(cache.get_or_load, "a", lab.loader(longest=0.4, clean_up=2))

    async def close() -> None:
        await cache.aclose()
        assert lab.running == 0, "a load has outlived aclose()"
        assert _sweepers() == 0
        await _refuses_everything(cache)

    got = await ended(
        lab,
        allowed=(CacheClosedError,),
        victims=("one", "closer"),
        one=call,
        two=call,
        closer=close,
        three=call,
    )
    closed = "closer" in got or cache.closed
    got.pop("closer", None)
    values = {each for each in got.values() if not isinstance(each, CacheClosedError)}
    assert len(values) <= 1
    assert closed or len(values) == 1
    await cache.aclose()
    await _refuses_everything(cache)
    assert lab.running == 0
    assert lab.most <= 1
    stats = cache.stats()
    assert len(values) <= stats.loads <= 1
    assert stats.load_errors == 0, "a load that was ended is no failure"


@scenario(
    kills=(
        "drain-refuses-its-own-loads",
        "join-starts-another-load",
        "late-hit-not-seen",
        "load-admitted-after-the-end",
        "load-does-not-know-itself",
        "set-admitted-after-the-end",
    )
)
async def draining_gives_everybody_inside_the_value(lab: Lab) -> None:
    """Who called before gets the value, nested loads included; who calls later is refused."""
    cache = lab.cache()
    closing = False

    async def load() -> Any:
        await pause(0.4)
        return "outer", await cache.get_or_load("b", lab.loader(lambda: "inner", longest=0.3))

    async def call() -> None:
        late = closing
        try:
            assert await cache.get_or_load("a", load) == ("outer", "inner")
            assert not late
        except CacheClosedError:
            assert late

    async def close() -> None:
        nonlocal closing
        closing = True
        await cache.aclose(drain=True)
        assert lab.running == 0
        await _refuses_everything(cache)

    await ended(lab, one=call, two=call, three=call, closer=close)
    assert lab.loads <= 1
    assert cache.stats().load_errors == 0


@scenario(
    kills=(
        "close-answers-nobody",
        "flights-counted-as-entries",
        "load-admitted-after-the-end",
        "set-admitted-after-the-end",
    )
)
async def draining_ends_at_its_timeout(lab: Lab) -> None:
    """A load that never ends is cancelled then, its waiters are told, and aclose() returns."""
    cache = lab.cache()
    closing: float | None = None

    async def load() -> None:
        await asyncio.Event().wait()  # for ever

    async def call() -> str:
        try:
            await cache.get_or_load("a", load)
        except CacheClosedError:
            assert closing is not None
            return "closed"
        raise AssertionError("a load that never ends gave a value")

    async def close() -> float:
        nonlocal closing
        await pause(1.0)
        closing = lab.clock.now
        await cache.aclose(drain=True, timeout=2)
        return lab.clock.now - closing

    got = await ended(lab, one=call, two=call, closer=close)
    assert got == {"one": "closed", "two": "closed", "closer": got["closer"]}
    # At once if nobody had called yet; else at its end, but for what a step of others may take.
    assert got["closer"] == 0 or 2 <= got["closer"] < 4
    await _refuses_everything(cache)


@scenario(
    kills=(
        "close-answers-nobody",
        "join-starts-another-load",
        "late-hit-not-seen",
        "load-admitted-after-the-end",
        "other-waiters-not-counted",
        "set-admitted-after-the-end",
    ),
    cancel=("one", "drainer"),
)
async def a_drain_that_is_cancelled_closes_at_once(lab: Lab) -> None:
    """Nothing is left half closed: who waits is told, loads end, and the memory is free."""
    cache = lab.cache()
    draining = False

    async def drain() -> None:
        nonlocal draining
        draining = True
        await cache.aclose(drain=True)

    call = partial(cache.get_or_load, "a", lab.loader(longest=0.4, clean_up=1))
    got = await ended(
        lab,
        allowed=(CacheClosedError,),
        victims=("one", "drainer"),
        one=call,
        two=call,
        drainer=drain,
    )
    assert cache.closed == draining
    got.pop("drainer", None)
    for each in got.values():
        assert isinstance(each, CacheClosedError) or each == lab.loads
    if draining:
        await _refuses_everything(cache)
    await cache.aclose()
    assert lab.running == 0
    await _refuses_everything(cache)


@scenario(
    kills=(
        "close-answers-nobody",
        "join-starts-another-load",
        "late-hit-not-seen",
        "load-admitted-after-the-end",
        "second-close-does-not-wait",
        "set-admitted-after-the-end",
    ),
    cancel=("drainer", "closer"),
)
async def a_second_close_ends_the_first_one_s_patience(lab: Lab) -> None:
    """aclose() while another one drains: both return, callers have the value or are told."""
    cache = lab.cache()
    await cache.start()
    call = partial(cache.get_or_load, "a", lab.loader(longest=0.4, clean_up=1))
    close, drain = cache.aclose, partial(cache.aclose, drain=True)
    got = await ended(
        lab,
        allowed=(CacheClosedError,),
        victims=("drainer", "closer"),
        one=call,
        drainer=drain,
        closer=close,
        two=call,
    )
    for name in ("one", "two"):
        assert got[name] == 1 or isinstance(got[name], CacheClosedError)
    assert cache.closed
    await cache.aclose()
    assert lab.running == _sweepers() == 0
    assert lab.loads <= 1
    await _refuses_everything(cache)


@scenario(
    kills=(
        "close-answers-nobody",
        "load-admitted-after-the-end",
        "set-admitted-after-the-end",
    ),
    cancel=("user",),
)
async def a_cache_in_a_block_is_closed_after_it(lab: Lab) -> None:
    """However the block ends: closed, nothing running, and who is still inside is told."""
    cache = lab.cache()
    entered = False

    async def user() -> None:
        nonlocal entered
        async with cache:
            entered = True
            assert _sweepers() == 1
            await cache.get_or_load("a", lab.loader(longest=0.3, clean_up=1))
            await pause()
        assert lab.running == _sweepers() == 0

    call = partial(cache.get_or_load, "b", lab.loader(longest=0.6))
    got = await ended(lab, allowed=(CacheClosedError,), victims=("user",), user=user, other=call)
    assert cache.closed == entered
    assert isinstance(got["other"], (int, CacheClosedError))
    if not entered:
        assert got["other"] == 1
    await cache.aclose()
    assert lab.running == _sweepers() == 0
    await _refuses_everything(cache)


@scenario(
    kills=(
        "close-answers-nobody",
        "end-without-identity-check",
        "flights-counted-as-entries",
        "load-admitted-after-the-end",
        "load-lands-after-the-end",
    )
)
async def a_cache_opened_again_is_empty_and_sees_no_load_of_before(lab: Lab) -> None:
    """A load of before that ends late, with a value, answers nobody and is not stored."""
    cache, source = lab.cache(), Database()

    async def load() -> int:
        version = source.read()
        try:
            await pause(0.5)
        except asyncio.CancelledError:
            await pause(1.0)  # late, and with a value all the same
        return version

    async def reopen() -> Any:
        await cache.aclose(timeout=0)
        source.version = 2
        await cache.start()
        assert len(cache) == 0
        return await cache.get_or_load("a", load)

    call = partial(cache.get_or_load, "a", load)
    got = await ended(lab, allowed=(CacheClosedError,), one=call, two=call, opener=reopen)
    assert got["opener"] == 2
    for name in ("one", "two"):
        assert got[name] in (1, 2) or isinstance(got[name], CacheClosedError)
    assert await cache.get("a") == 2
    await asyncio.sleep(5)
    assert await cache.get("a") == 2
    assert _sweepers() == 1
    await cache.aclose()


async def _the_last_word_counts(lab: Lab, *, drain: bool) -> None:
    """Open and close at once; whoever came last decides whether it is open."""
    cache = lab.cache()
    words: list[str] = []

    async def close() -> None:
        words.append("close")
        await cache.aclose(drain=drain)

    async def start() -> None:
        words.append("start")
        await cache.start()
        await cache.start()  # a second one adds nothing

    async def call() -> Any:
        admitted = not cache.closed
        try:
            value = await cache.get_or_load("a", lab.loader(longest=0.4, clean_up=1))
            assert admitted
            return value
        except CacheClosedError:
            # A drain lets everybody inside have the value.
            assert not (admitted and drain)
            return None

    got = await ended(lab, one=call, closer=close, opener=start)
    assert got["one"] in (1, None)
    if words[-1] == "close":
        assert _sweepers() == 0
        await _refuses_everything(cache)
    else:
        assert not cache.closed
        assert _sweepers() == 1
        assert await cache.get_or_load("b", lambda: "open") == "open"
    await cache.aclose()
    assert lab.running == _sweepers() == 0


@scenario(
    kills=(
        "close-answers-nobody",
        "load-admitted-after-the-end",
        "set-admitted-after-the-end",
    )
)
async def start_during_a_close_opens_the_cache(lab: Lab) -> None:
    """The last word counts: open, with one sweeper, or closed, with none."""
    await _the_last_word_counts(lab, drain=False)


@scenario(
    kills=(
        "close-shuts-what-was-opened-again",
        "load-admitted-after-the-end",
        "set-admitted-after-the-end",
    )
)
async def start_during_a_drain_keeps_the_cache_open(lab: Lab) -> None:
    """The last word counts, and a drain that was called off disturbs no load."""
    await _the_last_word_counts(lab, drain=True)


@scenario(
    kills=(
        "close-answers-nobody",
        "fence-cancels-those-who-waited",
        "load-admitted-after-the-end",
        "set-admitted-after-the-end",
    )
)
async def every_use_is_before_the_close_or_refused(lab: Lab) -> None:
    """Each kind of use, at any moment: refused if and only if the cache is closed at that time."""
    cache = lab.cache()
    await cache.set("a", 1)

    @race_safe_cached(cache, "number")
    async def number() -> int:
        await pause(0.2)
        return 1

    async def at_once(*uses: Caller) -> None:
        for use in uses:
            closed = cache.closed
            try:
                await use()
                assert not closed, f"{use} of a closed cache"
            except CacheClosedError:
                assert closed, f"{use} of an open cache is refused"
            await pause()

    async def slowly(use: Caller) -> None:
        closed = cache.closed
        try:
            assert await use() == 1
            assert not closed
        except CacheClosedError:
            assert cache.closed

    await ended(
        lab,
        reads=partial(
            at_once,
            partial(cache.lookup, "a"),
            partial(cache.get, "b"),
            partial(cache.get_many, ["a", "b"]),
        ),
        writes=partial(
            at_once,
            partial(cache.set, "b", 2),
            partial(cache.touch, "a", 10),
            partial(cache.invalidate, number),
        ),
        call=partial(slowly, number),
        refresh=partial(slowly, partial(cache.refresh, number)),
        closer=cache.aclose,
    )
    await _refuses_everything(cache)
    for use in (number, partial(cache.refresh, number), partial(cache.invalidate, number)):
        await slowly(use) if use is number else await at_once(use)


@scenario(kills=("close-answers-nobody",))
async def a_function_that_runs_on_is_never_refused_after_the_close(lab: Lab) -> None:
    """after_close="call": later calls run the original, uncached; only who waited may be told."""
    cache = lab.cache()

    @race_safe_cached(cache, "number", after_close="call")
    async def number() -> int:
        return await lab.loader(longest=0.3)()

    async def call() -> int:
        closed = cache.closed
        try:
            return await number()
        except CacheClosedError:
            assert not closed, "the closed cache refused a call"
            return 0

    got = await ended(lab, one=call, two=call, three=call, closer=cache.aclose)
    del got["closer"]
    assert all(0 <= each <= lab.loads for each in got.values())
    assert await number() == lab.loads
    assert len(cache) == 0


async def _one_function_ends(lab: Lab, *, wait: bool) -> None:
    """Close one function among its calls and those of another; the other one notices nothing."""
    cache = lab.cache()
    closing = landed = in_time = False

    @race_safe_cached(cache, "ending")
    async def ending() -> int:
        nonlocal landed
        value: int = await lab.loader(lambda: 1, longest=0.4, clean_up=1)()
        landed = True
        return value

    @race_safe_cached(cache, "staying")
    async def staying() -> int:
        return await lab.loader(lambda: 2, longest=0.4)()

    async def call() -> int | None:
        late = closing
        loads = lab.loads
        try:
            assert await ending() == 1
            # With wait=True its entries go when its loads have ended: until then a call may hit.
            assert not late or (wait and lab.loads == loads)
            assert wait or not closing or in_time, "a load of a closed function went on"
            return 1
        except CacheClosedError:
            assert late or (closing and not wait), "told without need"
            return None

    async def close() -> None:
        nonlocal closing, in_time
        closing, in_time = True, landed
        await ending.cache_close(wait=wait)  # type: ignore[attr-defined]
        assert cache.info(ending).in_flight == 0
        assert cache.info(ending).entries == 0

    got = await ended(lab, one=call, two=call, other=staying, closer=close)
    assert got["other"] == 2
    assert await call() is None
    try:
        await cache.refresh(ending)
        raise AssertionError("a closed function was refreshed")
    except CacheClosedError:
        pass
    assert cache.info(ending).entries == 0
    assert cache.peek(cache.key_for(ending)) is MISSING
    assert cache.peek(cache.key_for(staying)) == 2
    assert not cache.closed
    assert len(cache) == 1


@scenario(
    kills=(
        "close-answers-nobody",
        "closed-function-still-loads",
        "decrement-forgotten",
    )
)
async def one_function_ends_and_its_callers_are_told(lab: Lab) -> None:
    """cache_close(): who waits or comes later gets CacheClosedError; the other function stays."""
    await _one_function_ends(lab, wait=False)


@scenario(
    kills=(
        "clean-up-wakes-nobody",
        "decrement-forgotten",
    )
)
async def one_function_ends_when_its_callers_are_answered(lab: Lab) -> None:
    """cache_close(wait=True): who called before has the value; who comes later is refused."""
    await _one_function_ends(lab, wait=True)


@scenario(
    kills=(
        "close-answers-nobody",
        "closed-function-loads-after-a-clean-up",
        "decrement-forgotten",
        "other-waiters-not-counted",
    ),
    cancel=("leaving",),
)
async def a_call_held_up_by_a_clean_up_does_not_outlive_its_function(lab: Lab) -> None:
    """Who waits for an abandoned load's clean-up while the function is closed loads nothing."""
    cache = lab.cache()
    closed = False

    @race_safe_cached(cache, "f")
    async def f() -> int:
        lab.loads += 1
        assert not closed, "a load of a closed function began"
        try:
            await pause(0.3)
        except asyncio.CancelledError:
            await pause(0.4)
            raise
        return 1

    async def close() -> None:
        nonlocal closed
        await pause(0.3)
        await f.cache_close()  # type: ignore[attr-defined]
        closed = True

    got = await ended(
        lab,
        allowed=(CacheClosedError,),
        victims=("leaving",),
        leaving=f,
        arriving=f,
        closer=close,
    )
    assert got["arriving"] == 1 or isinstance(got["arriving"], CacheClosedError)
    assert cache.info(f).entries == 0
    assert len(cache) == 0


@scenario(
    kills=(
        "cache-clear-without-fence",
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
        "reload-keeps-the-older-values",
    )
)
async def a_newer_function_never_sees_what_the_older_one_loaded(lab: Lab) -> None:
    """Decorated again under its name: the older one's entries are gone, and none of it is mixed."""
    cache = lab.cache()

    replaced = False

    def decorated(value: str) -> Any:
        if value == "older":

            async def f() -> str:
                return await lab.loader(lambda: "older", longest=0.4)()

        else:

            async def f() -> str:
                return await lab.loader(lambda: "newer", longest=0.4)()

        # As after a reload of its module: the same name, and another body.
        f.__qualname__ = "f"
        return race_safe_cached(cache, "f")(f)

    old = decorated("older")
    late: list[bool] = []

    async def call() -> Any:
        late.append(replaced)
        return await old()

    async def reload() -> Any:
        nonlocal replaced
        new = decorated("newer")
        replaced = True
        assert not old.cache_contains()
        value = await new()
        assert new.cache_info() == (0, 1, None, 1)
        return value

    got = await ended(lab, one=call, two=call, reloader=reload)
    assert got.pop("reloader") == "newer"
    assert set(got.values()) == {"older"}
    if not any(late):
        assert not old.cache_contains()
    assert lab.loads in (2, 3)
    assert cache.stats().load_errors == 0
