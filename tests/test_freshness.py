"""What a caller gets in each state of a value, whatever its load does: the table, and its rules."""

import asyncio
import random
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from async_safe_cache import AsyncSafeCache, CacheClosedError, LoadTimeoutError, race_safe_cached

from .fickle import HOW, Down, Origin, calling
from .virtual import Loader, VirtualClock, run_virtual, settle

TTL = 10.0
OPTIONS: dict[str, Any] = {
    "ttl": TTL,
    "refresh_ahead": 0.8,
    "stale_while_revalidate": 5,
    "stale_if_error": 10,
    "soft_timeout": 2,
    "hard_timeout": 4,
    "load_timeout": 6,
}

AGES = {
    "fresh": 1.0,
    "fresh, past refresh_ahead": 9.0,
    "stale, within stale_while_revalidate": 12.0,
    "stale, within stale_if_error": 17.0,
    "stale, beyond both": 25.0,
    "absent": None,
}

LOADS = ("ok", "slow", "hung", "failing")


class Outcome(NamedTuple):
    """The whole outcome of one cell.

    Attributes:
        answer: The value, or the name of the exception.
        waited: Virtual seconds that the caller waited for it.
        loads: Loads begun.
        left: What is stored when all loads are over: "new", "old", or nothing.
        counted: As what the call was counted: "hit" or "miss"; "stale" if it was served so.
    """

    answer: str
    waited: float
    loads: int
    left: str
    counted: str


AT_ONCE = Outcome("old", 0, 0, "old", "hit")
BEHIND = Outcome("old", 0, 1, "new", "hit")
BEHIND_IN_VAIN = Outcome("old", 0, 1, "old", "hit")
LOADED = Outcome("new", 1, 1, "new", "miss")
LOADED_SLOWLY = Outcome("new", 3, 1, "new", "miss")
TIMED_OUT = Outcome("LoadTimeoutError", 4, 1, "", "miss")
FAILED = Outcome("Down", 1, 1, "", "miss")

TABLE: dict[str, tuple[Outcome, Outcome, Outcome, Outcome]] = {
    "fresh": (AT_ONCE, AT_ONCE, AT_ONCE, AT_ONCE),
    "fresh, past refresh_ahead": (BEHIND, BEHIND, BEHIND_IN_VAIN, BEHIND_IN_VAIN),
    "stale, within stale_while_revalidate": (
        BEHIND._replace(counted="hit, stale"),
        BEHIND._replace(counted="hit, stale"),
        BEHIND_IN_VAIN._replace(counted="hit, stale"),
        BEHIND_IN_VAIN._replace(counted="hit, stale"),
    ),
    "stale, within stale_if_error": (
        LOADED,
        Outcome("old", 2, 1, "new", "miss, stale"),
        Outcome("old", 2, 1, "", "miss, stale"),
        Outcome("old", 1, 1, "", "miss, stale"),
    ),
    "stale, beyond both": (LOADED, LOADED_SLOWLY, TIMED_OUT, FAILED),
    "absent": (LOADED, LOADED_SLOWLY, TIMED_OUT, FAILED),
}
"""By state: what happens if the load is ok, slow, hung, failing."""

CELLS = [
    pytest.param(state, load, outcome, id=f"{state}, load {load}")
    for state, row in TABLE.items()
    for load, outcome in zip(LOADS, row, strict=True)
]


# -- the table


@HOW
@pytest.mark.parametrize("callers", [1, 3])
@pytest.mark.parametrize(("state", "load", "outcome"), CELLS)
def test_what_a_caller_gets(
    clock: VirtualClock, state: str, load: str, outcome: Outcome, callers: int, how: str
) -> None:
    """Each cell in full: answer, wait, loads, what is left in the cache, what is counted."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        origin = Origin()
        call, key = calling(cache, origin, how, **OPTIONS)
        age = AGES[state]
        if age is not None:
            assert await call() == "old"
            clock.advance(age)
        before = cache.stats()
        origin.calls, origin.mode, origin.value = 0, load, "new"

        async def caller() -> tuple[str, float]:
            begun = clock.now
            try:
                answer = await call()
            except (Down, LoadTimeoutError) as error:
                answer = type(error).__name__
            return answer, clock.now - begun

        answers = await asyncio.gather(*(caller() for _ in range(callers)))
        assert answers == [(outcome.answer, outcome.waited)] * callers
        stats = cache.stats() - before
        await asyncio.sleep(7)  # whatever goes on behind is over; the new value is still fresh
        assert origin.calls == outcome.loads
        assert origin.running == 0
        left = await cache.lookup(key)
        assert (left.value if left.hit or left.stale else "") == outcome.left
        hits, misses = (callers, 0) if outcome.counted.startswith("hit") else (0, 1)
        assert (stats.hits, stats.misses, stats.coalesced) == (
            hits,
            misses,
            callers - hits - misses,
        )
        assert stats.calls == callers
        assert stats.stale_served == (callers if outcome.counted.endswith("stale") else 0)
        ended = cache.stats() - before
        cancelled_unasked = outcome is TIMED_OUT  # nobody waits for it any more: that is none
        assert ended.loads == (0 if cancelled_unasked else outcome.loads)
        in_vain = load in {"hung", "failing"} and not cancelled_unasked
        assert ended.load_errors == (outcome.loads if in_vain else 0)
        assert ended.load_timeouts == (outcome.loads if in_vain and load == "hung" else 0)

    run_virtual(main(), clock)


# -- the page


def in_words(outcome: Outcome) -> str:
    """Return a cell as docs/freshness.md says it."""
    answer = "its error" if outcome.answer == "Down" else outcome.answer
    when = f"after {outcome.waited:g} s" if outcome.waited else "at once"
    changed = outcome.left == "new" and outcome.answer == "old"
    return f"{answer} {when}{', then new' if changed else ''}"


def test_the_page_says_what_each_caller_gets() -> None:
    page = (Path(__file__).parent.parent / "docs" / "freshness.md").read_text(encoding="utf-8")
    section = page.partition("## What each caller gets")[2].partition("\n- **")[0]
    for name, value in OPTIONS.items():
        assert f"{name}={value:g}" in section
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    told = {row[0].replace("`", ""): tuple(row[1:]) for row in rows[2:]}
    assert told == {state: tuple(map(in_words, row)) for state, row in TABLE.items()}


# -- stale_while_revalidate, stale_if_error


def test_a_value_is_kept_for_the_longer_window_and_each_reader_has_its_own(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 5, "stale_if_error": 30}
        await cache.get_or_load("key", lambda: "old", **options)
        clock.advance(20)  # 10 s past its ttl, kept for 30
        failing = Loader(Down())

        async def read(**own: Any) -> Any:
            """Return what is read under *own* options, by a caller who is told of no failure."""
            own.setdefault("error_backoff", 0)
            try:
                return await cache.get_or_load("key", failing, ttl=10, **own)
            except Down:
                return "failed"

        assert await read() == "failed"
        assert await read(stale_while_revalidate=5) == "failed"
        assert await read(stale_if_error=10) == "failed", "10 s are over at 10 s"
        assert await read(stale_if_error=10.001) == "old"
        assert (await read(stale_if_error=500), failing.calls) == ("old", 5)
        assert (await read(stale_while_revalidate=500), failing.calls) == ("old", 5)
        await settle()
        assert failing.calls == 6, "behind"
        clock.advance(19.999)
        assert await read(stale_if_error=500) == "old"
        clock.advance(0.001)
        assert await read(stale_if_error=500) == "failed", "it is kept no more"

    run_virtual(main(), clock)


def test_a_reader_that_wants_no_stale_value_waits_for_the_refresh_that_runs(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=1)
        await cache.get_or_load("key", load, ttl=10, stale_while_revalidate=30)
        clock.advance(11)
        assert await cache.get_or_load("key", load, ttl=10, stale_while_revalidate=30) == "old"
        begun = clock.now
        assert (await cache.get_or_load("key", load, ttl=10), clock.now) == ("new", begun + 1)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.coalesced, load.calls) == (1, 1, 1, 2)

    run_virtual(main(), clock)


def test_a_failure_that_is_an_answer_is_no_failure_to_stand_in_for(clock: VirtualClock) -> None:
    """The user is gone: that is the newest that is known, and the older one is gone, too."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", LookupError("no such user"), "new")
        options: dict[str, Any] = {
            "ttl": 10,
            "stale_if_error": 100,
            "negative": {LookupError: 5},
        }
        await cache.get_or_load("key", load, **options)
        clock.advance(11)
        for seconds in (0, 4, 0.9):
            clock.advance(seconds)
            with pytest.raises(LookupError, match="no such user"):
                await cache.get_or_load("key", load, **options)
        assert load.calls == 2
        clock.advance(0.1)
        assert await cache.get_or_load("key", load, **options) == "new"
        assert cache.stats().stale_served == 0

    run_virtual(main(), clock)


def test_a_refresh_behind_that_ends_with_an_answer_ends_the_stale_value(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", LookupError("no such user"))
        options: dict[str, Any] = {
            "ttl": 10,
            "stale_while_revalidate": 100,
            "negative": {LookupError: 5},
        }
        await cache.get_or_load("key", load, **options)
        clock.advance(11)
        assert await cache.get_or_load("key", load, **options) == "old"
        await settle()
        with pytest.raises(LookupError, match="no such user"):
            await cache.get_or_load("key", load, **options)
        assert load.calls == 2

    run_virtual(main(), clock)


def test_a_closed_cache_serves_nothing_stale(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100, "soft_timeout": 5}
        await cache.get_or_load("key", load, **options)
        clock.advance(11)
        load.seconds = 60
        waiting = asyncio.ensure_future(cache.get_or_load("key", load, **options))
        await settle()
        await cache.aclose()
        with pytest.raises(CacheClosedError):
            await waiting
        with pytest.raises(CacheClosedError):
            await cache.get_or_load("key", load, **options)
        assert cache.stats().stale_served == 0

    run_virtual(main(), clock)


def test_closing_ends_a_refresh_behind(clock: VirtualClock) -> None:
    """No task is left, and what it was to bring is not stored when the cache opens again."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 100, "load_timeout": 90}
        await cache.get_or_load("key", load, **options)
        for drain, calls, cancelled in ((False, 2, 1), (True, 4, 1)):
            clock.advance(11)
            load.seconds = 2
            assert await cache.get_or_load("key", load, **options) in {"old", "new"}
            await settle()
            assert load.calls == calls
            await cache.aclose(drain=drain, timeout=5)
            assert load.cancelled == cancelled
            assert len(asyncio.all_tasks()) == 1
            await cache.start()
            assert len(cache) == 0
            load.seconds = 0
            await cache.get_or_load("key", load, **options)
        await cache.aclose()

    run_virtual(main(), clock)


# -- each level of options


def test_a_call_overrules_a_function_and_a_function_its_cache(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(
            clock=clock, default_ttl=10, stale_while_revalidate=100, hard_timeout=1
        )
        load = Loader("old", "new", seconds=0)
        await cache.get_or_load("key", load)
        clock.advance(10)
        load.seconds = 0.5
        assert await cache.get_or_load("key", load) == "old", "by the cache's options"
        assert await cache.get_or_load("key", load, stale_while_revalidate=None) == "new"

        load = Loader("old", "new", seconds=0)

        @race_safe_cached(cache, stale_while_revalidate=None, hard_timeout=None, ttl=5)
        async def f(x: int) -> Any:
            return await load()

        await f(1)
        clock.advance(5)
        load.seconds = 7
        assert await f(1) == "new", "after 7 s, and not before"
        await cache.set("other", "old")
        clock.advance(10)
        assert (await cache.lookup("other")).stale, "what is set is kept, too"

    run_virtual(main(), clock)


# -- a plain def


def test_a_def_serves_what_is_stale_in_place_of_a_failure(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    results: list[Any] = ["old", Down(), Down(), "new"]

    @race_safe_cached(cache, ttl=10, stale_if_error=100, error_backoff=4)
    def f(x: int) -> Any:
        result = results.pop(0)
        if isinstance(result, Down):
            raise result
        return result

    assert f(1) == "old"
    # It fails, is left alone for 4 s, fails, is left alone for 8 s, and is back.
    for seconds, left, value in (
        (10, 2, "old"),
        (3.5, 2, "old"),
        (0.5, 1, "old"),
        (7, 1, "old"),
        (1, 0, "new"),
    ):
        clock.advance(seconds)
        assert (f(1), len(results)) == (value, left)
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stale_served) == (2, 4, 4)
    assert (stats.loads, stats.load_errors) == (4, 2)
    clock.advance(120)
    results.append(Down())
    with pytest.raises(Down):
        f(1)


def test_a_def_that_waits_for_another_thread_does_so_no_longer_than_its_hard_timeout(
    clock: VirtualClock,
) -> None:
    """With a stale value at hand it takes that; whoever loads in his own thread cannot stop."""
    cache = AsyncSafeCache(clock=clock)
    inside, go_on = threading.Event(), threading.Event()
    loads = 0

    @race_safe_cached(cache, ttl=10, stale_if_error=100, hard_timeout=0.05)
    def f(x: int) -> int:
        nonlocal loads
        loads += 1
        if loads > 1:
            inside.set()
            assert go_on.wait(30)
        return loads

    def loading() -> None:
        leaders.append(f(1))

    leaders: list[int] = []
    for age, stale in ((10, True), (200, False)):
        assert loads in {0, 2}
        loads = 0
        f.cache_clear()  # type: ignore[attr-defined]
        assert f(1) == 1
        clock.advance(age)
        inside.clear()
        go_on.clear()
        thread = threading.Thread(target=loading)
        thread.start()
        assert inside.wait(30)
        if stale:
            assert f(1) == 1
        else:
            with pytest.raises(LoadTimeoutError) as raised:
                f(1)
            assert (raised.value.option, raised.value.seconds) == ("hard_timeout", 0.05)
        go_on.set()
        thread.join(30)
    assert leaders == [2, 2]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.coalesced, stats.stale_served) == (0, 4, 2, 1)


@pytest.mark.parametrize(
    "option",
    ["stale_while_revalidate", "refresh_ahead", "soft_timeout", "load_timeout", "on_abandon"],
)
def test_what_needs_a_task_is_refused_for_a_def_and_no_default_of_a_cache_is(
    clock: VirtualClock, option: str
) -> None:
    value: Any = {"on_abandon": "finish", "refresh_ahead": 0.5}.get(option, 1)
    given: dict[str, Any] = {option: value}
    with pytest.raises(TypeError, match=f"{option} needs a task .* plain `def`"):

        @race_safe_cached(AsyncSafeCache(clock=clock), ttl=10, stale_if_error=5, **given)
        def refused(x: int) -> None: ...

    cache = AsyncSafeCache(clock=clock, default_ttl=10, **given)
    calls = 0

    @race_safe_cached(cache)
    def f(x: int) -> int:
        nonlocal calls
        calls += 1
        return calls

    assert f(1) == 1
    clock.advance(9.5)
    assert f(1) == 1
    clock.advance(0.5)
    assert f(1) == 2, "it waits for its load, as if the option were not there"


# -- all of it at once


@pytest.mark.parametrize("seed", range(8))
def test_in_a_storm_nobody_waits_too_long_or_gets_what_is_too_old(
    clock: VirtualClock, seed: int
) -> None:
    """Callers with options of all kinds, and an origin that is slow, fails and hangs by chance."""
    chance = random.Random(seed)

    async def origin() -> float:
        """Return when it ended: the age of what a caller gets can be told."""
        whim = chance.random()
        if whim < 0.1:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(chance.choice([0, 0.5, 3, 12]))
        if whim < 0.4:
            raise Down
        return clock.now

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, load_timeout=20)
        served = errors = 0

        async def caller() -> None:
            nonlocal served, errors
            await asyncio.sleep(chance.uniform(0, 300))
            key = chance.randrange(4)
            options: dict[str, Any] = {
                name: value
                for name, value in (
                    ("stale_while_revalidate", chance.choice([None, 5, 40])),
                    ("stale_if_error", chance.choice([None, 10, 100])),
                    ("refresh_ahead", chance.choice([None, 0.5, "auto"])),
                    ("hard_timeout", chance.choice([None, 2, 6])),
                    ("on_abandon", chance.choice([None, "finish", "cancel"])),
                )
                if value is not None
            }
            window = max(options.get("stale_while_revalidate", 0), options.get("stale_if_error", 0))
            if window and chance.random() < 0.5:
                options["soft_timeout"] = 1
            held = (await cache.lookup(key)).value
            begun = clock.now
            try:
                value = await cache.get_or_load(key, origin, ttl=10, **options)
            except (Down, LoadTimeoutError):
                errors += 1
                left = await cache.lookup(key)
                assert not (left.stale and clock.now < left.value + 10 + window), "it is held"
            else:
                served += 1
                assert clock.now < value + 10 + window, "too old"
                assert value >= (held if isinstance(held, float) else 0), "older than was known"
            assert clock.now - begun < options.get("hard_timeout", 60) + 0.001

        async with asyncio.TaskGroup() as group:
            for _ in range(400):
                group.create_task(caller())
        assert served + errors == 400
        assert served > 200
        stats = cache.stats()
        assert stats.calls == 800 + errors, "each lookup is one, too"
        assert min(stats.stale_served, stats.load_timeouts, stats.load_errors, stats.hits) > 0
        assert stats.overlapping_loads == 0
        await asyncio.sleep(30)
        assert cache._engine.flights.running == {}
        assert len(asyncio.all_tasks()) == 1
        loop: Any = asyncio.get_running_loop()
        assert [each for each in loop._scheduled if not each.cancelled()] == []

    run_virtual(main(), clock)
