"""No cycle of loads hangs, and what is no cycle is not taken for one."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from async_safe_cache import AsyncSafeCache, CacheClosedError, RecursiveLoadError, race_safe_cached
from async_safe_cache.testing import pause

from . import Lab, scenario
from .coalescing import Caller, calls_of, ended
from .fences import Database

Body = Callable[[], Awaitable[Any]]


def _function(lab: Lab, cache: AsyncSafeCache, name: str, body: Body) -> Caller:
    """Return a cached function of that name whose loads are counted by the lab."""

    @race_safe_cached(cache, name)
    async def load() -> Any:
        lab.loads += 1
        lab.running += 1
        try:
            return await body()
        finally:
            lab.running -= 1

    return load


def _is_cycle(error: BaseException, *names: str) -> bool:
    """Tell whether *error* names a closed chain of exactly these functions."""
    assert isinstance(error, RecursiveLoadError)
    first, last = error.chain[0], error.chain[-1]
    return first == last and sorted(error.chain[1:]) == sorted(names) and not error.blocking_loop


@scenario(
    kills=(
        "abandoned-load-counted-as-an-error",
        "failure-is-kept",
        "join-starts-another-load",
        "load-does-not-know-itself",
        "other-waiters-not-counted",
        "own-key-not-noticed",
    ),
    cancel=("one",),
)
async def a_load_of_its_own_key_is_told_so(lab: Lab) -> None:
    """f calls f, directly: all who wait get RecursiveLoadError, nobody hangs, nothing is stored."""
    cache = lab.cache()

    async def body() -> Any:
        await pause(0.3)
        return await call()

    call = _function(lab, cache, "f", body)
    got = await ended(
        lab, allowed=(RecursiveLoadError,), victims=("one",), one=call, two=call, three=call
    )
    assert all(_is_cycle(each, "f") for each in got.values())
    assert len(cache) == 0
    assert cache.stats().load_errors == cache.stats().loads


@scenario(
    kills=(
        "failure-is-kept",
        "join-starts-another-load",
        "load-does-not-know-itself",
        "other-waiters-not-counted",
        "own-key-not-noticed",
    ),
    cancel=("one",),
)
async def a_load_of_its_own_key_through_tasks_is_told_so(lab: Lab) -> None:
    """f calls f in tasks that its load has started: as if it had called itself."""
    cache = lab.cache()

    async def deeper() -> Any:
        return await asyncio.create_task(call(), name="deepest")

    async def body() -> Any:
        return await asyncio.gather(pause(0.2), deeper())

    call = _function(lab, cache, "f", body)
    got = await ended(lab, allowed=(RecursiveLoadError,), victims=("one",), one=call, two=call)
    assert all(_is_cycle(each, "f") for each in got.values())
    assert len(cache) == 0


@scenario(
    kills=(
        "decrement-forgotten",
        "load-does-not-know-itself",
        "own-key-not-noticed",
        "retire-skipped",
    )
)
async def a_refresh_inside_its_own_load_is_told_so(lab: Lab) -> None:
    """A load that refreshes its own call gets the error, and may answer in spite of it."""
    cache = lab.cache()

    told: list[BaseException] = []

    async def body() -> Any:
        try:
            return await cache.refresh(call)
        except RecursiveLoadError as error:
            told.append(error)
            return "without"

    call = _function(lab, cache, "f", body)
    got = await ended(lab, one=call, two=call, refresher=partial(cache.refresh, call))
    assert set(got.values()) == {"without"}
    assert lab.loads == len(told) in (1, 2)  # the refresh may have come after the calls
    assert all(_is_cycle(each, "f") for each in told)
    assert await call() == "without"


async def _a_circle(lab: Lab, first: AsyncSafeCache, second: AsyncSafeCache) -> None:
    """Let a wait for b, and b for a, asked for by two callers each."""

    async def a_body() -> Any:
        await pause(0.2)
        return await b()

    async def b_body() -> Any:
        await pause(0.2)
        return await a()

    a, b = _function(lab, first, "a", a_body), _function(lab, second, "b", b_body)
    got = await ended(lab, allowed=(RecursiveLoadError,), victims=("one",), one=a, two=b, three=a)
    assert all(_is_cycle(each, "a", "b") for each in got.values())
    assert len(first) == len(second) == 0


@scenario(
    kills=(
        "cycle-of-two-not-noticed",
        "failure-is-kept",
        "flights-counted-as-entries",
        "join-starts-another-load",
        "join-while-cancelling",
        "load-does-not-know-itself",
        "other-waiters-not-counted",
        "what-a-load-waits-for-not-noted",
    ),
    cancel=("one",),
)
async def two_loads_that_wait_for_each_other_are_told_so(lab: Lab) -> None:
    """a waits for b and b for a, whoever asked first: all get the error with the chain."""
    cache = lab.cache()
    await _a_circle(lab, cache, cache)


@scenario(
    kills=(
        "cycle-of-two-not-noticed",
        "failure-is-kept",
        "flights-counted-as-entries",
        "join-starts-another-load",
        "join-while-cancelling",
        "load-does-not-know-itself",
        "other-waiters-not-counted",
        "what-a-load-waits-for-not-noted",
    ),
    cancel=("one",),
)
async def loads_of_two_caches_that_wait_for_each_other_are_told_so(lab: Lab) -> None:
    """The same circle through two caches: each knows only its own loads, and yet none hangs."""
    await _a_circle(lab, lab.cache(), lab.cache())


@scenario(
    kills=(
        "cycle-of-two-not-noticed",
        "failure-is-kept",
        "join-starts-another-load",
        "load-does-not-know-itself",
        "longer-cycle-not-followed",
        "what-a-load-waits-for-not-noted",
    )
)
async def three_loads_in_a_circle_are_told_so(lab: Lab) -> None:
    """a waits for b, b for c, c for a, each asked for by a caller of its own."""
    cache = lab.cache()
    calls: dict[str, Caller] = {}

    def part(name: str, following: str) -> None:
        async def body() -> Any:
            await pause(0.2)
            return await calls[following]()

        calls[name] = _function(lab, cache, name, body)

    part("a", "b")
    part("b", "c")
    part("c", "a")
    got = await ended(lab, allowed=(RecursiveLoadError,), **calls)
    assert all(_is_cycle(each, "a", "b", "c") for each in got.values())
    assert len(cache) == 0


@scenario(
    kills=(
        "cycle-of-two-not-noticed",
        "load-does-not-know-itself",
        "what-a-load-waits-for-not-noted",
    ),
    two_tasks=True,
)
async def one_of_two_loads_may_break_their_circle(lab: Lab) -> None:
    """Each can do without the other: exactly one has to, and both callers are answered."""
    cache = lab.cache()
    told: list[BaseException] = []

    def part(name: str, other: Callable[[], Caller]) -> Caller:
        async def body() -> Any:
            try:
                return name, await other()()
            except RecursiveLoadError as error:
                told.append(error)
                return name

        return _function(lab, cache, name, body)

    a = part("a", lambda: b)
    b = part("b", lambda: a)
    got = await ended(lab, a=a, b=b)
    assert (got["a"], got["b"]) in ((("a", "b"), "b"), ("a", ("b", "a")))
    assert lab.loads == 2
    assert len(told) == 1
    assert _is_cycle(told[0], "a", "b")
    assert (await a(), await b()) == (got["a"], got["b"])


@scenario(
    kills=(
        "abandoned-load-counted-as-an-error",
        "decrement-forgotten",
        "join-starts-another-load",
        "join-while-cancelling",
        "other-waiters-not-counted",
    ),
    cancel=("one", "low"),
)
async def a_diamond_is_no_circle(lab: Lab) -> None:
    """top waits for left and right, both for low, which others ask for, too: one load of each."""
    cache = lab.cache()
    begun: list[str] = []

    def part(name: str, *below: Caller) -> Caller:
        async def body() -> Any:
            begun.append(name)
            await pause(0.2)
            return name, *await asyncio.gather(*(each() for each in below))

        return _function(lab, cache, name, body)

    low = part("low")
    left, right = part("left", low), part("right", low)
    top = part("top", left, right)
    got = await ended(lab, victims=("one", "low"), one=top, two=top, low=low)
    answers = {"one": top, "two": top, "low": low}
    expected = ("top", ("left", ("low",)), ("right", ("low",)))
    for name, value in got.items():
        assert value == (("low",) if answers[name] is low else expected)
    assert len(cache) == 4
    if len(got) == 3:
        assert sorted(begun) == ["left", "low", "right", "top"]
    assert cache.stats().load_errors == 0


@scenario(
    kills=(
        "decrement-forgotten",
        "join-not-counted",
        "join-starts-another-load",
    )
)
async def a_chain_of_loads_is_no_circle(lab: Lab) -> None:
    """a waits for b, b for c; each has a caller of its own; c, whose end all need, is read last."""
    cache = lab.cache()

    async def c_body() -> Any:
        await pause(0.4)
        return ["c"]

    async def b_body() -> Any:
        return ["b", *await c()]

    async def a_body() -> Any:
        await pause(0.2)
        return ["a", *await b(), *await c()]

    c = _function(lab, cache, "c", c_body)
    b = _function(lab, cache, "b", b_body)
    a = _function(lab, cache, "a", a_body)
    got = await ended(lab, a=a, b=b, c=c)
    assert got == {"a": ["a", "b", "c", "c"], "b": ["b", "c"], "c": ["c"]}
    assert lab.loads == 3
    assert calls_of(cache.stats(), calls=3 + 3)


@scenario(
    kills=(
        "cycle-of-two-not-noticed",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "join-starts-another-load",
        "land-without-identity-check",
        "load-does-not-know-itself",
        "what-a-load-waits-for-not-noted",
    )
)
async def a_circle_that_is_broken_at_the_source_succeeds_after_a_delete(lab: Lab) -> None:
    """Once the source has no circle and both were deleted, the next call succeeds and is kept."""
    cache, source = lab.cache(), Database()

    async def a_body() -> Any:
        await pause(0.2)
        return "a", await b()

    async def b_body() -> Any:
        version = source.version
        await pause(0.2)
        return await a() if version == 1 else "b"

    a, b = _function(lab, cache, "a", a_body), _function(lab, cache, "b", b_body)

    async def update() -> Any:
        source.version = 2
        await cache.delete(cache.key_for(a), cache.key_for(b))
        return await a()

    got = await ended(lab, allowed=(RecursiveLoadError,), one=a, two=b, writer=update)
    assert got["writer"] == ("a", "b")
    # Loads that began before may have waited for newer ones, and are not stored.
    older = ("a", ("a", "b")), ("a", "b")
    assert isinstance(got["one"], RecursiveLoadError) or got["one"] in older
    assert isinstance(got["two"], RecursiveLoadError) or got["two"] in ("b", ("a", "b"))
    assert (await a(), await b()) == (("a", "b"), "b")


@scenario(kills=("join-starts-another-load",))
async def a_task_that_outlives_its_load_may_load_again(lab: Lab) -> None:
    """While its load runs, a task it left behind is told of the circle; after it, it has a hit."""
    cache = lab.cache()
    left: list[asyncio.Task[Any]] = []

    async def later() -> Any:
        await pause(0.3)
        return await call()

    async def body() -> Any:
        if not left:
            left.append(asyncio.create_task(later(), name="later"))
        await pause(0.2)
        return "value"

    call = _function(lab, cache, "f", body)
    got = await ended(lab, one=call, two=call)
    assert got == {"one": "value", "two": "value"}
    await asyncio.wait(left)
    error = left[0].exception()
    assert _is_cycle(error, "f") if error else left[0].result() == "value"
    assert lab.loads == 1


@scenario(
    kills=(
        "decrement-forgotten",
        "join-starts-another-load",
        "other-waiters-not-counted",
    ),
    cancel=("outer",),
)
async def a_cancelled_load_leaves_those_it_waits_for(lab: Lab) -> None:
    """The outer caller gives up: the inner load goes on for its own caller, or ends with it."""
    cache = lab.cache()

    async def inner_body() -> Any:
        await pause(0.4)
        return lab.fresh()

    async def outer_body() -> Any:
        return "outer", await inner()

    inner = _function(lab, cache, "inner", inner_body)
    outer = _function(lab, cache, "outer", outer_body)
    got = await ended(lab, victims=("outer",), outer=outer, inner=inner)
    if "outer" in got:
        assert got["outer"] == ("outer", got["inner"])
        assert lab.loads == 2
    await asyncio.sleep(1)
    assert lab.running == 0
    assert await inner() == got["inner"]
    assert await outer() == ("outer", got["inner"])


@scenario(
    kills=(
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
        "other-waiters-not-counted",
        "set-without-fence",
    ),
    cancel=("one",),
)
async def a_load_that_writes_its_own_key_is_fenced_by_that(lab: Lab) -> None:
    """What it sets stands; what it returns goes to those who wait, and is not stored over it."""
    cache = lab.cache()

    async def load() -> str:
        await pause(0.2)
        await cache.set("a", "written")
        await pause(0.2)
        return "returned"

    call = partial(cache.get_or_load, "a", load)
    got = await ended(lab, victims=("one",), one=call, two=call, three=call)
    assert set(got.values()) <= {"written", "returned"}
    assert await cache.get("a") == "written"
    await asyncio.sleep(1)
    assert await cache.get("a") == "written"


@scenario(
    kills=(
        "close-answers-nobody",
        "load-lands-after-the-end",
        "other-waiters-not-counted",
    ),
    cancel=("one",),
)
async def a_load_may_close_its_cache(lab: Lab) -> None:
    """It does not wait for itself: callers get CacheClosedError, and nothing is left running."""
    cache = lab.cache()

    async def load() -> str:
        await pause(0.2)
        await cache.aclose()
        return "never stored"

    call = partial(cache.get_or_load, "a", load)
    got = await ended(
        lab, allowed=(CacheClosedError,), victims=("one",), one=call, two=call, three=call
    )
    assert all(isinstance(each, CacheClosedError) for each in got.values())
    assert cache.closed
    await cache.start()
    assert (await cache.lookup("a")).hit is False
    await cache.aclose()


@scenario(
    kills=(
        "clean-up-wakes-nobody",
        "close-answers-nobody",
        "close-waits-for-its-own-load",
        "join-starts-another-load",
        "late-hit-not-seen",
        "load-admitted-after-the-end",
        "load-does-not-know-itself",
    )
)
async def a_load_may_drain_its_cache(lab: Lab) -> None:
    """It waits for the loads of others, which end and answer, but not for itself."""
    cache = lab.cache()
    closing = False

    async def drain() -> str:
        nonlocal closing
        await pause(0.2)
        closing = True
        await cache.aclose(drain=True, timeout=1000)
        return "never stored"

    async def other() -> None:
        late = closing
        try:
            value = await cache.get_or_load("b", lab.loader(longest=0.4))
            assert (value, late) == (1, False)
        except CacheClosedError:
            assert late, "the drain did not wait for this one"

    call = partial(cache.get_or_load, "a", drain)
    got = await ended(
        lab, allowed=(CacheClosedError,), one=call, two=call, other=other, also_other=other
    )
    assert isinstance(got["one"], CacheClosedError)
    assert isinstance(got["two"], CacheClosedError)
    assert cache.closed
    assert lab.clock.now < 10, "it waited for itself"
    assert lab.loads <= 1
