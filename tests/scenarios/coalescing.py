"""Many callers of one key, one load: what each of them gets, in every order."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from async_safe_cache import CacheStats, LoadCancelledError, race_safe_cached
from async_safe_cache.testing import pause

from . import Lab, scenario
from .fences import Database

Caller = Callable[[], Awaitable[Any]]


async def ended(
    lab: Lab,
    *,
    allowed: tuple[type[BaseException], ...] = (),
    victims: tuple[str, ...] = (),
    **callers: Caller,
) -> dict[str, Any]:
    """Run callers together; return what those got who were not cancelled.

    An exception that is not *allowed* fails the scenario, and so does a cancellation of
    anybody but the *victims*, of whom at most one is cancelled.
    """
    got = await lab.together(**callers)
    lost = [name for name, each in got.items() if isinstance(each, asyncio.CancelledError)]
    assert len(lost) <= 1, f"cancelled: {lost}"
    assert set(lost) <= set(victims), f"nobody cancelled {lost}"
    for name in lost:
        del got[name]
    for each in got.values():
        if isinstance(each, BaseException) and not isinstance(each, allowed):
            raise each
    return got


def calls_of(stats: CacheStats, *, calls: int) -> bool:
    """Tell whether all *calls* were counted, each once."""
    return stats.hits + stats.misses + stats.coalesced == calls


@scenario(
    kills=(
        "join-not-counted",
        "join-starts-another-load",
        "late-hit-not-seen",
    )
)
async def callers_of_one_key_share_one_load(lab: Lab) -> None:
    """Five callers, in any order: one load, one value for all, stored; one miss, four others."""
    cache = lab.cache()
    call = partial(cache.get_or_load, "a", lab.loader(longest=0.4))
    got = await ended(lab, one=call, two=call, three=call, four=call, five=call)
    assert list(got.values()) == [1] * 5
    assert lab.loads == 1
    stats = cache.stats()
    assert (stats.loads, stats.load_errors, stats.misses) == (1, 0, 1)
    assert calls_of(stats, calls=5)
    assert await cache.get("a") == 1


@scenario(
    kills=(
        "join-starts-another-load",
        "late-hit-not-seen",
    ),
    two_tasks=True,
)
async def two_callers_share_one_load(lab: Lab) -> None:
    """Two callers share one load, and an empty answer is a value like any other."""
    cache = lab.cache()
    call = partial(cache.get_or_load, "a", lab.loader(lambda: None))
    got = await ended(lab, one=call, two=call)
    assert got == {"one": None, "two": None}
    assert lab.loads == 1
    assert (await cache.lookup("a")).hit
    assert (await cache.get_or_load("a", lab.loader())) is None


@scenario(
    kills=(
        "join-starts-another-load",
        "late-hit-not-seen",
    )
)
async def each_of_many_keys_is_loaded_once(lab: Lab) -> None:
    """Callers of two keys in two caches: one load for each place, and no value strays."""
    first, second = lab.cache(), lab.cache()
    places = {"a1": (first, "a"), "b1": (first, "b"), "a2": (second, "a")}
    begun = dict.fromkeys(places, 0)

    def load(place: str) -> str:
        begun[place] += 1
        return place

    def caller(place: str) -> Caller:
        cache, key = places[place]
        return partial(cache.get_or_load, key, lab.loader(lambda: load(place), longest=0.2))

    once = {place: caller(place) for place in places}
    again = {f"{place}_again": caller(place) for place in places}
    got = await ended(lab, **once, **again)
    for name, value in got.items():
        assert value == name[:2]
    assert begun == dict.fromkeys(places, 1)
    for place, (cache, key) in places.items():
        assert await cache.get(key) == place
    assert (len(first), len(second)) == (2, 1)


async def _a_burst_of_one_failure(
    lab: Lab, fail: Callable[[], Any], expected: type[Exception]
) -> list[Exception]:
    """The first load fails as *fail* does, later ones answer 2; return what the callers got."""
    cache = lab.cache()

    async def load() -> Any:
        lab.loads += 1
        number = lab.loads
        await pause(0.3)
        return await fail() if number == 1 else 2

    call = partial(cache.get_or_load, "a", load)
    got = await ended(lab, allowed=(expected,), one=call, two=call, three=call)
    failures = [each for each in got.values() if type(each) is expected]
    values = [each for each in got.values() if type(each) is not expected]
    assert failures, "the first load failed, and nobody was told"
    # Whoever came after it began, and so did not get its failure, had the next one.
    assert values == [2] * len(values)
    assert lab.loads == 1 + bool(values)
    assert all(each is failures[0] for each in failures), "one load, two exception objects"
    stats = cache.stats()
    assert (stats.loads, stats.load_errors) == (lab.loads, 1)
    assert calls_of(stats, calls=3)
    assert await cache.get("a") == (2 if values else None)
    assert await call() == 2
    assert lab.loads == 2
    return failures


@scenario(
    kills=(
        "each-waiter-gets-a-copy",
        "failure-is-kept",
        "join-not-counted",
        "join-starts-another-load",
        "late-hit-not-seen",
        "traceback-grows",
    )
)
async def a_failing_load_fails_its_burst_and_nobody_else(lab: Lab) -> None:
    """All who waited get the loader's own exception, with no other caller's frames in it."""

    async def fail() -> None:
        raise ValueError("no")

    (error, *_) = await _a_burst_of_one_failure(lab, fail, ValueError)
    frames: list[str] = []
    step = error.__traceback__
    while step is not None:
        frames.append(step.tb_frame.f_code.co_name)
        step = step.tb_next
    assert frames.count("arrive") == 1, frames
    assert frames.count("fail") == 1, frames
    assert error.__context__ is None


@scenario(
    kills=(
        "each-waiter-gets-a-copy",
        "failure-is-kept",
        "inner-cancellation-passed-on",
        "join-not-counted",
        "join-starts-another-load",
        "late-hit-not-seen",
    )
)
async def a_load_that_cancels_itself_cancels_nobody(lab: Lab) -> None:
    """Waiters of a loader that was cancelled from inside get LoadCancelledError; then it loads."""

    async def fail() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await pause()

    await _a_burst_of_one_failure(lab, fail, LoadCancelledError)


@scenario(
    kills=(
        "each-waiter-gets-a-copy",
        "failure-is-kept",
        "inner-cancellation-passed-on",
        "join-not-counted",
        "join-starts-another-load",
        "late-hit-not-seen",
    )
)
async def a_load_whose_inner_task_was_cancelled_cancels_nobody(lab: Lab) -> None:
    """A CancelledError that the loader met in a task of its own is a LoadCancelledError for all."""

    async def fail() -> None:
        inner = asyncio.create_task(pause(), name="inner")
        inner.cancel()
        await inner

    await _a_burst_of_one_failure(lab, fail, LoadCancelledError)


@scenario(
    kills=(
        "each-waiter-gets-a-copy",
        "failure-is-kept",
        "join-not-counted",
        "join-starts-another-load",
        "late-hit-not-seen",
        "one-shot-value-stored",
    )
)
async def a_value_for_one_use_is_refused_to_all(lab: Lab) -> None:
    """An iterator would be used up by the first caller: all get TypeError, and nothing is kept."""

    async def fail() -> Iterator[int]:
        return iter([1, 2])

    await _a_burst_of_one_failure(lab, fail, TypeError)


@scenario(
    kills=(
        "each-waiter-gets-a-copy",
        "failure-is-kept",
        "stop-iteration-as-it-is",
    ),
    two_tasks=True,
)
async def a_stop_iteration_reaches_every_waiter_as_a_runtime_error(lab: Lab) -> None:
    """StopIteration would end a coroutine in silence: both get RuntimeError, caused by it."""
    cache = lab.cache()

    def load() -> int:
        # A plain function that gives no awaitable: its StopIteration meets the cache itself.
        lab.loads += 1
        raise StopIteration

    call = partial(cache.get_or_load, "a", load)
    got = await ended(lab, allowed=(RuntimeError,), one=call, two=call)
    for each in got.values():
        assert type(each) is RuntimeError
        assert isinstance(each.__cause__, StopIteration)
    assert len(set(map(id, got.values()))) == lab.loads, "one load, two exception objects"
    assert cache.stats().load_errors == lab.loads
    assert await cache.get("a") is None


@scenario(
    kills=(
        "decrement-forgotten",
        "expired-at-ttl-still-found-by-loads",
        "join-starts-another-load",
        "late-hit-not-seen",
        "remembered-failure-is-a-value",
    )
)
async def a_remembered_failure_costs_one_load_while_it_lasts(lab: Lab) -> None:
    """Four callers get an equal failure of one load; it is no value to readers, and has an end."""
    cache = lab.cache()
    fail = lab.loader(longest=0.4, error=KeyError("nobody"))
    call = partial(cache.get_or_load, "a", fail, negative={KeyError: 10})
    got = await ended(lab, allowed=(KeyError,), one=call, two=call, three=call, four=call)
    assert [each.args for each in got.values()] == [("nobody",)] * 4
    assert lab.loads == 1
    assert cache.peek("a", None) is None
    look = await cache.lookup("a")
    assert (look.hit, look.reason) == (False, "ABSENT")
    assert await cache.delete("b") == 0
    lab.clock.advance(10)
    assert await cache.get_or_load("a", lab.loader(lambda: "somebody")) == "somebody"


@scenario(
    kills=(
        "decrement-forgotten",
        "delete-without-fence",
        "end-without-identity-check",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "join-starts-another-load",
        "late-hit-not-seen",
        "other-waiters-not-counted",
    ),
    cancel=("one",),
)
async def a_delete_makes_a_remembered_failure_forgotten(lab: Lab) -> None:
    """After the source has the answer and a delete returned, nobody is told the old failure."""
    cache, source = lab.cache(), Database()

    async def load() -> int:
        lab.loads += 1
        missing = source.version == 1
        await pause(0.3)
        if missing:
            raise KeyError("not there yet")
        return 2

    call = partial(cache.get_or_load, "a", load, negative={KeyError: 3600})

    async def create() -> Any:
        source.version = 2
        assert await cache.delete("a") == 0  # a failure is no value
        return await call()

    got = await ended(
        lab, allowed=(KeyError,), victims=("one",), one=call, two=call, three=call, creator=create
    )
    assert got.pop("creator") == 2
    for each in got.values():
        assert each == 2 or isinstance(each, KeyError)
    assert await cache.get("a") == 2
    # The failure was remembered: before the delete one load, after it one more. A load
    # that its only caller gave up counts, too.
    assert lab.loads <= 2 + (len(got) == 2)


@scenario(
    kills=(
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "late-hit-not-seen",
        "retire-skipped",
    ),
    cancel=("setter",),
)
async def a_set_beats_a_failure_that_would_be_remembered(lab: Lab) -> None:
    """A failing load that began before a set never hides what was set."""
    cache = lab.cache()
    fail = lab.loader(error=KeyError("nobody"), longest=0.3)
    call = partial(cache.get_or_load, "a", fail, negative={KeyError: 3600})

    async def put() -> Any:
        await cache.set("a", "set")
        return await call()

    got = await ended(lab, allowed=(KeyError,), victims=("setter",), one=call, two=call, setter=put)
    if "setter" in got:
        assert got.pop("setter") == "set"
        assert await cache.get("a") == "set"
    for each in got.values():
        assert each == "set" or isinstance(each, KeyError)


@scenario(
    kills=(
        "hit-of-many-not-counted",
        "join-not-counted",
        "join-starts-another-load",
        "late-hit-not-seen",
    )
)
async def a_bulk_read_sees_hits_only_and_disturbs_no_load(lab: Lab) -> None:
    """get_many among two loads: what has landed by then, and each key counted as one call."""
    cache = lab.cache()
    landed: dict[str, int] = {}

    def caller(key: str) -> Caller:
        async def load() -> int:
            lab.loads += 1
            await pause(0.4)
            # It lands in this very step.
            landed[key] = lab.fresh()
            return landed[key]

        return partial(cache.get_or_load, key, load)

    async def read() -> None:
        for _ in range(3):
            assert await cache.get_many(["b", "a", "b"]) == landed
            await pause()

    a, b = caller("a"), caller("b")
    got = await ended(lab, a=a, b=b, also_a=a, also_b=b, reader=read)
    assert (got["a"], got["b"]) == (got["also_a"], got["also_b"]) == (landed["a"], landed["b"])
    assert lab.loads == 2
    assert calls_of(cache.stats(), calls=4 + 3 * 2)
    assert list(await cache.get_many(["b", "a"])) == ["b", "a"]


@scenario(
    kills=(
        "decrement-forgotten",
        "expired-at-ttl-still-found-by-loads",
        "expired-at-ttl-still-served",
        "join-starts-another-load",
        "ttl-counted-from-the-start",
        "unswept-says-absent",
    )
)
async def a_ttl_counts_from_the_end_of_its_load(lab: Lab) -> None:
    """However long the load takes, its value is fresh for its whole ttl after it, and no longer."""
    cache = lab.cache(default_ttl=1)
    ends: list[float] = []

    async def load() -> int:
        await pause(4.0)
        ends.append(lab.clock.now)
        return len(ends)

    async def call() -> Any:
        begun = lab.clock.now
        value = await cache.get_or_load("a", load)
        assert ends[value - 1] + 1 > begun, "it was expired when it was asked for"
        look = await cache.lookup("a")
        if lab.clock.now >= ends[-1] + 1:
            assert (look.hit, look.reason) == (False, "EXPIRED")
        else:
            assert (look.value, look.age) == (len(ends), lab.clock.now - ends[-1])
            assert look.ttl_left == ends[-1] + 1 - lab.clock.now

    async def time() -> None:
        for _ in range(3):
            lab.clock.advance(0.5)
            await pause()

    await ended(lab, one=call, two=call, three=call, time=time)
    assert len(ends) == cache.stats().loads


@scenario(
    kills=(
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "join-starts-another-load",
        "land-without-identity-check",
        "late-hit-not-seen",
        "retire-skipped",
        "set-without-fence",
    ),
    cancel=("setter",),
)
async def values_of_one_call_go_to_all_under_one_key(lab: Lab) -> None:
    """A function's calls, its refresh and its Key meet in one entry: two loads at most beside."""
    cache = lab.cache()

    @race_safe_cached(cache, "number")
    async def number(base: int, step: int = 1) -> int:
        lab.loads += 1
        read = base + step
        await pause(0.3)
        return read

    key = cache.key_for(number, 1)

    async def put() -> Any:
        await cache.set(key, "set")
        return await number(base=1, step=1)

    got = await ended(
        lab,
        victims=("setter",),
        one=partial(number, 1),
        two=partial(number, base=1),
        three=partial(cache.get_or_load, key, lab.loader(lambda: "loaded")),
        setter=put,
    )
    set_ = got.pop("setter", None)
    assert set_ in ("set", None)
    assert set(got.values()) <= {2, "loaded", "set"}
    assert lab.most <= 1
    if set_:
        assert await number(1) == cache.peek(key) == "set"
    else:
        assert len(set(got.values())) == 1, "nobody wrote, and two values were seen"
    assert cache.info(number).entries == 1
