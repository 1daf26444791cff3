"""A cancelled caller leaves alone, and a cancelled load is out of the way before the next."""

import asyncio
from functools import partial
from typing import Any

from async_safe_cache import LoadCancelledError, race_safe_cached
from async_safe_cache.testing import pause
from tests.virtual import begin_tasks_later

from . import Lab, scenario
from .coalescing import calls_of, ended
from .fences import Database


def _uncancelled() -> bool:
    """Tell whether this task has no cancellation that nobody has answered."""
    task = asyncio.current_task()
    assert task is not None
    return not task.cancelling()


@scenario(
    kills=(
        "abandoned-load-counted-as-an-error",
        "join-starts-another-load",
        "late-hit-not-seen",
        "other-waiters-not-counted",
    ),
    cancel=("one", "two"),
)
async def a_cancelled_caller_leaves_alone(lab: Lab) -> None:
    """Cancelled at any await, leader or not, it takes nobody along: one value for all others."""
    cache = lab.cache()
    call = partial(cache.get_or_load, "a", lab.loader(longest=0.4))
    names = ("one", "two", "three", "four")
    got = await ended(lab, victims=names, **dict.fromkeys(names, call))
    assert len(set(got.values())) == 1
    assert await cache.get("a") == got["four"]
    # A second load only if the one who was cancelled was alone with the first.
    assert lab.loads in ((1,) if len(got) == 4 else (1, 2))
    assert lab.most == 1
    stats = cache.stats()
    assert (stats.loads, stats.load_errors, stats.overlapping_loads) == (1, 0, 0)


@scenario(
    kills=(
        "caller-counted-twice",
        "join-not-counted",
        "join-starts-another-load",
        "join-while-cancelling",
        "late-hit-not-seen",
        "other-waiters-not-counted",
    ),
    cancel=("leaving", "arriving"),
    two_tasks=True,
)
async def nobody_joins_a_load_that_is_being_cancelled(lab: Lab) -> None:
    """Who comes while an abandoned load cleans up waits for that, and has a load of his own."""
    cache = lab.cache()
    load = lab.loader(clean_up=2)
    calls = 0

    async def call() -> Any:
        nonlocal calls
        calls += 1
        return await cache.get_or_load("a", load)

    got = await ended(lab, victims=("leaving", "arriving"), leaving=call, arriving=call)
    assert calls_of(cache.stats(), calls=calls), "a call that had to wait counts once, too"
    assert len(set(got.values())) == 1
    assert await cache.get("a") == next(iter(got.values()))
    assert lab.loads in ((1,) if len(got) == 2 else (1, 2))
    assert lab.most == 1, "a second load beside the one that cleans up"
    assert cache.stats().overlapping_loads == 0


@scenario(
    kills=(
        "abandoned-load-counted-as-an-error",
        "abandoned-load-runs-on",
        "cancelled-waiter-still-counted",
        "join-starts-another-load",
        "late-hit-not-seen",
    ),
    cancel=("crowd",),
)
async def when_all_leave_the_load_is_cancelled(lab: Lab) -> None:
    """Three callers leave together: their load is cancelled, and stores nothing."""
    cache = lab.cache()
    ends: list[int] = []
    ends_when_they_had_left: list[int] = ends

    async def load() -> int:
        value = await lab.loader(longest=0.3, clean_up=1)()
        ends.append(value)
        return value

    async def crowd() -> list[Any]:
        nonlocal ends_when_they_had_left
        try:
            async with asyncio.TaskGroup() as group:
                call = partial(cache.get_or_load, "a", load)
                tasks = [group.create_task(call(), name=f"caller-{n}") for n in range(3)]
        finally:
            ends_when_they_had_left = list(ends)
        return [task.result() for task in tasks]

    got = await ended(lab, victims=("crowd",), crowd=crowd)
    await asyncio.sleep(1)  # for the clean-up
    assert ends == ends_when_they_had_left, "a load that nobody waited for went on"
    assert lab.running == 0
    assert lab.loads <= 1
    assert await cache.get("a") == (ends[0] if ends else None)
    if got:
        assert got["crowd"] == ends * 3
    stats = cache.stats()
    assert (stats.loads, stats.load_errors) == (len(ends), 0)
    assert await cache.get_or_load("a", lab.loader(lambda: "next")) == (ends or ["next"])[0]


@scenario(kills=("task-cancelled-before-its-first-step",), cancel=("one",))
async def a_load_that_has_not_begun_ends_with_its_last_caller(lab: Lab) -> None:
    """Where no task begins at once: a load that was left before it began frees its key."""
    cache = lab.cache()

    async def one() -> Any:
        begin_tasks_later()
        return await cache.get_or_load("a", lab.loader(longest=0.3))

    got = await ended(lab, victims=("one",), one=one)
    await asyncio.sleep(1)  # for the clean-up
    stored = await cache.get("a", "next")
    assert await cache.get_or_load("a", lab.loader(lambda: "next")) == stored
    assert got.get("one", stored) == stored
    assert cache.stats().overlapping_loads == 0
    assert lab.running == 0


@scenario(
    kills=(
        "finish-is-cancelled-too",
        "join-starts-another-load",
        "late-hit-not-seen",
    ),
    cancel=("one", "two"),
)
async def an_abandoned_load_that_may_finish_is_stored(lab: Lab) -> None:
    """With on_abandon="finish" whoever leaves, one load is enough: it ends and is stored."""
    cache = lab.cache(on_abandon="finish")
    call = partial(cache.get_or_load, "a", lab.loader(longest=0.4))
    got = await ended(lab, victims=("one", "two"), one=call, two=call)
    await asyncio.sleep(1)
    assert lab.loads == 1
    assert set(got.values()) == {1}
    assert await cache.get("a") == 1


@scenario(
    kills=(
        "abandoned-load-runs-on",
        "cancelled-waiter-still-counted",
        "delete-without-fence",
        "end-without-identity-check",
        "fence-cancels-those-who-waited",
        "fenced-load-of-nobody-goes-on",
        "fenced-load-stays-joinable",
        "finish-outlives-a-fence",
    ),
    cancel=("alone",),
)
async def a_finishing_load_that_was_fenced_and_left_is_cancelled(lab: Lab) -> None:
    """on_abandon="finish" is for a value that will be stored; a fenced load ends with its last."""
    cache, source = lab.cache(on_abandon="finish"), Database()
    ever: list[str] = []

    async def load() -> int:
        version = source.read()
        if version == 1:
            try:
                await asyncio.Event().wait()  # for ever
            except asyncio.CancelledError:
                ever.append("cancelled")
                raise
        await pause()  # long enough for the older load to end beside it
        return version

    async def alone() -> Any:
        try:
            async with asyncio.timeout(1):
                return await cache.get_or_load("a", load)
        except TimeoutError:
            return None

    async def write() -> Any:
        await pause(2.0)
        source.version = 2
        await cache.delete("a")
        return await cache.get_or_load("a", load)

    got = await ended(lab, victims=("alone",), alone=alone, writer=write)
    await asyncio.sleep(1)
    assert got["writer"] == 2
    assert await cache.get("a") == 2
    assert got.get("alone") in (None, 2)
    assert len(ever) <= 1
    if "alone" in got and got["alone"] is None:
        assert ever == ["cancelled"]


@scenario(
    kills=(
        "abandoned-load-runs-on",
        "cancelled-waiter-still-counted",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "join-starts-another-load",
        "late-hit-not-seen",
        "other-waiters-not-counted",
    )
)
async def a_fenced_load_ends_with_the_last_who_waits_for_it(lab: Lab) -> None:
    """One who leaves a fenced load leaves it to the other; when both have left it is cancelled."""
    cache, source = lab.cache(), Database()
    began = asyncio.Event()
    left: list[str] = []

    async def load() -> int:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.append("load")
            raise
        raise AssertionError("nothing sets it")

    async def waiter(name: str, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                await cache.get_or_load("a", load)
        except TimeoutError:
            assert "load" not in left, "cancelled while somebody waited"
            left.append(name)
            assert _uncancelled()

    async def write() -> Any:
        await began.wait()
        await pause()
        source.version = 2
        await cache.delete("a")
        return await cache.get_or_load("a", lab.loader(source.read))

    # A waiter who comes after the delete finds what the writer loaded, or joins it.
    got = await ended(
        lab, one=partial(waiter, "one", 1), two=partial(waiter, "two", 2), writer=write
    )
    await asyncio.sleep(1)
    assert got["writer"] == 2
    assert await cache.get("a") == 2
    assert left in (["one", "load"], ["two", "load"], ["one", "two", "load"])


@scenario(
    kills=(
        "grace-skipped",
        "join-starts-another-load",
        "late-hit-not-seen",
        "other-waiters-not-counted",
    ),
    cancel=("leaving", "one"),
)
async def newcomers_wait_for_a_slow_clean_up(lab: Lab) -> None:
    """A clean-up of some seconds, within cancel_grace: no second load runs beside it."""
    cache = lab.cache(cancel_grace=1000)

    async def load() -> int:
        try:
            return await lab.loader(longest=0.5, clean_up=1)()
        except asyncio.CancelledError:
            lab.running += 1
            await asyncio.sleep(2)
            lab.running -= 1
            raise

    call = partial(cache.get_or_load, "a", load)
    got = await ended(lab, victims=("leaving", "one"), leaving=call, one=call, two=call)
    await asyncio.sleep(10)
    assert lab.most == 1
    assert len(set(got.values())) == 1
    assert await cache.get("a") == got["two"]
    assert cache.stats().overlapping_loads == 0
    assert lab.loads in ((1,) if len(got) == 3 else (1, 2))


@scenario(
    kills=(
        "grace-never-over",
        "join-starts-another-load",
        "late-hit-not-seen",
        "other-waiters-not-counted",
        "overlap-not-counted",
        "overtake-without-identity-check",
    ),
    cancel=("leaving",),
)
async def a_load_too_slow_to_clean_up_is_overtaken_once(lab: Lab) -> None:
    """After cancel_grace one load starts beside it, counted; the late value goes nowhere."""
    cache = lab.cache(cancel_grace=1)
    begun: list[float] = []
    ends: list[str] = []

    async def load() -> int:
        lab.loads += 1
        number = lab.loads
        begun.append(lab.clock.now)
        try:
            await pause(0.5)
        except asyncio.CancelledError:
            cancelled = lab.clock.now
            await asyncio.sleep(20)  # swallowed, and a value all the same
            ends.append("late")
            assert len(begun) == 1 or begun[1] >= cancelled + 1
        else:
            ends.append("in time")
        return number

    call = partial(cache.get_or_load, "a", load)
    got = await ended(lab, victims=("leaving",), leaving=call, one=call, two=call)
    await asyncio.sleep(40)
    assert got["one"] == got["two"] == await cache.get("a")
    assert got.get("leaving", got["one"]) == got["one"]
    if "late" in ends:
        assert ends == ["in time", "late"]
        assert got["one"] == 2
        assert cache.stats().overlapping_loads == 1
    else:
        assert ends == ["in time"]
        assert cache.stats().overlapping_loads == 0
    assert cache.stats().loads == len(ends)


@scenario(
    kills=(
        "join-starts-another-load",
        "land-while-cancelling",
        "late-hit-not-seen",
        "other-waiters-not-counted",
    ),
    cancel=("leaving",),
)
async def a_value_that_came_in_spite_of_a_cancellation_goes_nowhere(lab: Lab) -> None:
    """A loader that swallows its cancellation after all have left: its value is not stored."""
    cache = lab.cache()
    swallowed: list[int] = []

    async def load() -> int:
        value = lab.fresh()
        try:
            await pause(0.3)
        except asyncio.CancelledError:
            swallowed.append(value)
            await pause()
        return value

    call = partial(cache.get_or_load, "a", load)
    got = await ended(lab, victims=("leaving",), leaving=call, arriving=call)
    assert got["arriving"] not in swallowed
    assert await cache.get("a") == got["arriving"]
    assert set(got.values()) == {got["arriving"]}


@scenario(
    kills=(
        "join-starts-another-load",
        "join-while-cancelling",
        "other-waiters-not-counted",
    )
)
async def a_caller_with_a_timeout_leaves_alone(lab: Lab) -> None:
    """Who cannot wait gets TimeoutError at his time; the patient one the value; tasks are clean."""
    cache = lab.cache()

    async def load() -> int:
        lab.loads += 1
        number = lab.loads
        await asyncio.sleep(1)
        return number

    async def hasty() -> Any:
        begun = lab.clock.now
        try:
            async with asyncio.timeout(0.25):
                return await cache.get_or_load("a", load)
        except TimeoutError:
            assert lab.clock.now >= begun + 0.25
            return "late"
        finally:
            assert _uncancelled()

    got = await ended(
        lab, hasty=hasty, also_hasty=hasty, patient=partial(cache.get_or_load, "a", load)
    )
    assert got["patient"] == await cache.get("a") == lab.loads
    assert {got["hasty"], got["also_hasty"]} <= {"late", got["patient"]}
    # Those with no patience may have begun, and given up, loads of their own before.
    assert lab.loads <= 3
    assert cache.stats().loads == 1


@scenario(
    kills=(
        "grace-skipped",
        "join-starts-another-load",
        "join-while-cancelling",
        "late-hit-not-seen",
        "other-waiters-not-counted",
    ),
    cancel=("inside",),
)
async def a_failing_sibling_takes_only_its_own_group_along(lab: Lab) -> None:
    """A waiter in a task group that breaks leaves; one outside the group has the value."""
    cache = lab.cache()
    call = partial(cache.get_or_load, "a", lab.loader(longest=0.4, clean_up=1))

    async def fail() -> None:
        await pause(0.4)
        raise ValueError("the sibling's own")

    async def group() -> Any:
        lost: tuple[BaseException, ...] = ()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(call(), name="inside")
                tasks.create_task(fail(), name="sibling")
        except* ValueError as errors:
            lost = errors.exceptions
        assert len(lost) == 1, "more than the sibling has failed"

    got = await ended(lab, group=group, outside=call)
    assert await cache.get("a") == got["outside"]
    assert lab.loads in (1, 2)
    assert got["outside"] == lab.loads
    assert lab.most == 1


@scenario(
    kills=(
        "failure-is-kept",
        "inner-cancellation-passed-on",
        "join-starts-another-load",
        "late-hit-not-seen",
        "other-waiters-not-counted",
    ),
    cancel=("one",),
)
async def a_stranger_who_cancels_a_load_cancels_no_caller(lab: Lab) -> None:
    """A load's task cancelled from outside: its waiters get LoadCancelledError, the next loads."""
    cache = lab.cache()
    tasks: list[asyncio.Task[Any]] = []

    async def load() -> int:
        lab.loads += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await pause(0.4)
        return lab.loads

    async def strike() -> None:
        for task in tasks:
            task.cancel()

    call = partial(cache.get_or_load, "a", load)
    got = await ended(
        lab,
        allowed=(LoadCancelledError,),
        victims=("one",),
        one=call,
        two=call,
        three=call,
        stranger=strike,
    )
    del got["stranger"]
    stored = await cache.get("a")
    values = {each for each in got.values() if not isinstance(each, LoadCancelledError)}
    assert values <= {stored}
    errors = len(got) - sum(each == stored for each in got.values())
    assert cache.stats().load_errors <= 1
    if errors:
        assert cache.stats().load_errors == 1
    assert await call() == lab.loads


@scenario(
    kills=(
        "decrement-forgotten",
        "refresh-counted-as-a-call",
        "retire-skipped",
    ),
    cancel=("refresher",),
)
async def a_cancelled_refresh_leaves_a_value_behind(lab: Lab) -> None:
    """Older or newer, there is always a value, and readers have it without any load of theirs."""
    cache, source = lab.cache(), Database()

    @race_safe_cached(cache, "read")
    async def read() -> int:
        return await lab.loader(source.read, longest=0.4, clean_up=1)()

    assert await read() == 1
    source.version = 2

    async def follow() -> list[int]:
        seen = []
        for _ in range(3):
            seen.append(await read())
            await pause()
        return seen

    got = await ended(
        lab, victims=("refresher",), refresher=partial(cache.refresh, read), one=follow
    )
    assert got["one"] == sorted(got["one"])
    assert lab.loads <= 2, "a reader loaded"
    assert await read() == 2 or "refresher" not in got
    assert got.get("refresher", 2) == 2
    assert lab.most == 1
    assert calls_of(cache.stats(), calls=1 + 3 + 1)
    assert cache.stats().misses == 1


@scenario(
    kills=(
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "join-starts-another-load",
        "land-without-identity-check",
        "late-hit-not-seen",
        "other-waiters-not-counted",
        "retire-skipped",
        "set-without-fence",
    ),
    cancel=("one", "newcomer"),
)
async def a_write_over_an_abandoned_load_is_what_newcomers_see(lab: Lab) -> None:
    """A set while a cancelled load cleans up stands, whoever waits for that clean-up."""
    cache = lab.cache()
    call = partial(cache.get_or_load, "a", lab.loader(lambda: "loaded", clean_up=3))

    async def put() -> Any:
        await cache.set("a", "set")
        return await call()

    got = await ended(lab, victims=("one", "newcomer"), one=call, newcomer=call, setter=put)
    assert got.pop("setter") == "set"
    assert await cache.get("a") == "set"
    assert set(got.values()) <= {"loaded", "set"}
    assert lab.most <= 1
