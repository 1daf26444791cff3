"""How long callers wait and loads run: soft_timeout, hard_timeout, load_timeout."""

import asyncio
import gc
import itertools
import weakref
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, LoadContext, LoadTimeoutError
from async_safe_cache._flights import Flight

from .fickle import Down, timed_out
from .virtual import Loader, VirtualClock, begin_tasks_later, run_virtual, settle

# -- soft_timeout


def test_who_would_wait_in_vain_takes_the_stale_value_at_once(clock: VirtualClock) -> None:
    """The load that runs has outlived his patience already; a more patient one waits on."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)
        begun = clock.now

        async def read(soft: float | None) -> tuple[Any, float]:
            value = await cache.get_or_load(
                "key", load, ttl=10, stale_if_error=100, soft_timeout=soft
            )
            return value, clock.now - begun

        await read(1)
        clock.advance(11)
        begun, load.seconds = clock.now, 10
        assert await read(1) == ("old", 1)
        assert await read(1) == ("old", 1), "at once"
        assert await read(1.5) == ("old", 2.5), "1.5 s later: it has outlived no 1.5 s yet"
        assert await read(1.5) == ("old", 2.5), "at once"
        assert await read(None) == ("new", 10)
        assert await read(1) == ("new", 10)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.coalesced) == (3, 2, 2)
        assert (stats.stale_served, stats.loads, load.calls) == (4, 2, 2)

    run_virtual(main(), clock)


@pytest.mark.parametrize("kept", [10, 100])
def test_a_stale_value_that_grows_too_old_while_its_caller_waits_is_not_taken(
    clock: VirtualClock, kept: float
) -> None:
    """The caller's window ends at 10 s; its patience, too late, at 12."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, default_ttl=10, stale_if_error=kept)
        load = Loader("old", "new", seconds=0)
        options: dict[str, Any] = {"stale_if_error": 10, "soft_timeout": 4}
        await cache.get_or_load("key", load)
        clock.advance(18)
        begun, load.seconds = clock.now, 6
        assert (await cache.get_or_load("key", load, **options), clock.now) == ("new", begun + 6)
        load.seconds = 0
        await cache.expire("key")
        await cache.get_or_load("key", load)
        clock.advance(18)
        load.results, load.seconds = (*load.results, Down()), 6
        with pytest.raises(Down):
            await cache.get_or_load("key", load, **options)
        assert (load.calls, cache.stats().stale_served) == (4, 0)
        assert cache.stats().calls == 4

    run_virtual(main(), clock)


# -- hard_timeout


def test_a_caller_who_waits_no_longer_ends_no_load_that_was_to_finish(
    clock: VirtualClock,
) -> None:
    """It cancelled the load of one who had asked for on_abandon="finish" and left."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader(seconds=10)
        leader = asyncio.ensure_future(cache.get_or_load("key", load, on_abandon="finish"))
        await settle()
        other = asyncio.ensure_future(cache.get_or_load("key", load, hard_timeout=1))
        await settle()
        leader.cancel()
        await timed_out(other, "hard_timeout")
        await asyncio.sleep(10)
        assert (cache.peek("key"), load.cancelled) == ("value", 0)

    run_virtual(main(), clock)


def test_a_caller_waits_no_longer_than_its_hard_timeout_and_the_others_do(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache("prices", clock=clock)
        load = Loader(seconds=10)
        begun = clock.now
        calls = [
            cache.get_or_load("key", load, **options)
            for options in ({"hard_timeout": 1}, {}, {"hard_timeout": 2}, {"hard_timeout": 20})
        ]
        first, second, third, fourth = (asyncio.ensure_future(call) for call in calls)
        assert await timed_out(first, "hard_timeout") == begun + 1
        assert await timed_out(third, "hard_timeout") == begun + 2
        assert (await second, await fourth, clock.now) == ("value", "value", begun + 10)
        error = first.exception()
        assert isinstance(error, LoadTimeoutError)
        assert isinstance(error, TimeoutError)
        assert (error.name, error.seconds) == ("prices", 1)
        assert "prices" in str(error)
        assert "key" not in str(error)
        assert (load.calls, load.cancelled) == (1, 0)
        stats = cache.stats()
        assert (stats.loads, stats.load_errors, stats.load_timeouts) == (1, 0, 0)

    run_virtual(main(), clock)


def test_a_load_that_nobody_waits_for_any_more_is_cancelled_and_the_key_is_free(
    clock: VirtualClock,
) -> None:
    """The last caller's hard_timeout ends also what a soft_timeout had left to go on."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "hangs", "new", seconds=0)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 6, "soft_timeout": 1}
        await cache.get_or_load("key", load, **options)
        clock.advance(14)
        load.seconds = 1000
        assert await cache.get_or_load("key", load, **options) == "old"
        assert load.ended == 1, "it goes on"
        load.seconds = 0
        await timed_out(cache.get_or_load("key", load, ttl=10, hard_timeout=3), "hard_timeout")
        await settle()
        assert (load.calls, load.cancelled) == (2, 1)
        assert await cache.get_or_load("key", load, ttl=10) == "new"
        assert cache.stats().overlapping_loads == 0

    run_virtual(main(), clock)


@pytest.mark.parametrize("option", ["soft_timeout", "hard_timeout"])
@pytest.mark.parametrize("outer", [0.5, 1.0, 1.5])
def test_a_timeout_leaves_the_cancellations_of_its_task_alone(
    clock: VirtualClock, option: str, outer: float
) -> None:
    """Inside asyncio.timeout and a task group; also when both are due at one moment."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "new", seconds=0)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 10, option: 1}
        await cache.get_or_load("key", load, **options)
        clock.advance(11)
        load.seconds = 60
        results: list[object] = []

        async def caller() -> None:
            task = asyncio.current_task()
            assert task is not None
            try:
                async with asyncio.timeout(outer) as scope:
                    results.append(await cache.get_or_load("key", load, **options))
            except TimeoutError as error:
                results.append(type(error).__name__)
                assert scope.expired()
            assert task.cancelling() == 0
            await asyncio.sleep(1)  # nothing is left that would end it

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(caller())
        assert len(results) == 3
        expected = {"TimeoutError"} if outer < 1 else {"old"}
        if outer == 1:
            expected |= {"TimeoutError"}
        assert set(map(str, results)) <= expected

    run_virtual(main(), clock)


def test_a_caller_that_is_cancelled_as_its_time_is_up_is_cancelled(clock: VirtualClock) -> None:
    """And nothing of it stays behind: no waiter, no timer."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        for late in (False, True):
            cache = AsyncSafeCache(clock=clock)
            load = Loader(seconds=60)
            caller = asyncio.ensure_future(cache.get_or_load("key", load, hard_timeout=1))
            await settle()
            if late:  # the timer has rung, the caller has not run yet
                loop.call_at(loop.time() + 1, caller.cancel)
            else:
                loop.call_at(loop.time() + 1 - 1e-6, caller.cancel)
            with pytest.raises(asyncio.CancelledError):
                await caller
            await settle()
            assert (load.calls, load.cancelled) == (1, 1)
            assert [each for each in loop._scheduled if not each.cancelled()] == []

    run_virtual(main(), clock)


# -- load_timeout


def test_a_load_that_timed_out_can_be_an_answer(clock: VirtualClock) -> None:
    """Where `negative` names it: it is remembered as any other failure; it was not."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("old", "late", "new", seconds=5)
        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100}
        await cache.get_or_load("key", load, **options)
        clock.advance(11)
        options |= {"load_timeout": 1, "negative": {TimeoutError: 60}}
        begun = clock.now
        for seconds in (1, 1, 1):  # the load's, then its memory at once
            assert await timed_out(cache.get_or_load("key", load, **options), "load_timeout") == (
                begun + seconds
            )
        assert load.calls == 2
        clock.advance(60)
        assert await cache.get_or_load("key", load, ttl=10) == "new"
        stats = cache.stats()
        assert (stats.loads, stats.load_errors, stats.load_timeouts) == (3, 1, 1)

    run_virtual(main(), clock)


def test_a_load_that_timed_out_is_told_of_once(clock: VirtualClock) -> None:
    """One that ended with a value in spite of its cancellation was told as loaded, too."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        events: list[Any] = []
        for name in ("loaded", "load_failed"):
            cache.on(name, events.append)  # type: ignore[call-overload]

        async def stubborn() -> str:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                pass
            return "late"

        await timed_out(cache.get_or_load("key", stubborn, load_timeout=1), "load_timeout")
        await settle()
        assert [type(each).__name__ for each in events] == ["LoadFailed"]
        assert cache.stats().loads == 1
        assert len(cache) == 0

    run_virtual(main(), clock)


def test_who_waits_for_a_load_that_takes_too_long_is_told_at_once(clock: VirtualClock) -> None:
    """Its clean-up takes 3 s: those who waited do not wait for that, newcomers do."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        begun, calls = clock.now, 0

        async def load() -> str:
            nonlocal calls
            calls += 1
            if calls > 1:
                return "new"
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(3)
            return "never"

        def call(grace: float) -> Any:
            return cache.get_or_load("key", load, load_timeout=2, cancel_grace=grace)

        first, second = asyncio.ensure_future(call(5)), asyncio.ensure_future(call(5))
        assert await timed_out(first, "load_timeout") == begun + 2
        assert await timed_out(second, "load_timeout") == begun + 2
        assert (await cache.explain("key")).in_flight == "cancelling"
        assert (await call(5), clock.now, calls) == ("new", begun + 5, 2)
        stats = cache.stats()
        assert (stats.loads, stats.load_errors, stats.load_timeouts) == (2, 1, 1)
        assert stats.overlapping_loads == 0

    run_virtual(main(), clock)


def test_a_clean_up_that_takes_longer_than_the_grace_is_overtaken(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        begun, calls = clock.now, 0

        async def load() -> str:
            nonlocal calls
            calls += 1
            if calls > 1:
                return "new"
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(100)
            return "never"

        def call() -> Any:
            return cache.get_or_load("key", load, load_timeout=2, cancel_grace=1)

        await timed_out(call(), "load_timeout")
        assert (await call(), clock.now) == ("new", begun + 3)
        assert cache.stats().overlapping_loads == 1
        assert "not cleaned up" in caplog.text
        await asyncio.sleep(200)
        assert cache.peek("key") == "new", "what ends late stores nothing"

    run_virtual(main(), clock)


def test_a_load_that_ends_in_time_leaves_no_alarm(clock: VirtualClock) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        cache = AsyncSafeCache(clock=clock)
        for seconds, later in itertools.product((0.0, 1.0), (False, True)):
            if later:
                begin_tasks_later()
            load = Loader(seconds=seconds)
            options: dict[str, Any] = {"load_timeout": 5, "hard_timeout": 5}
            assert await cache.get_or_load((seconds, later), load, **options) == "value"
            await settle()
            assert [each for each in loop._scheduled if not each.cancelled()] == []

    run_virtual(main(), clock)


@pytest.mark.parametrize("many", [False, True], ids=["", "many"])
def test_a_load_that_is_being_cancelled_is_not_timed_out_as_well(
    clock: VirtualClock, many: bool
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, hard_timeout=1, load_timeout=2)

        async def load(*keys: list[str]) -> Any:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(5)

        if many:
            await timed_out(cache.get_or_load_many(["a", "b"], load), "hard_timeout")
        else:
            await timed_out(cache.get_or_load("key", load), "hard_timeout")
        await asyncio.sleep(10)
        stats = cache.stats()
        assert (stats.loads, stats.load_errors, stats.load_timeouts) == (0, 0, 0)

    run_virtual(main(), clock)


@pytest.mark.parametrize("negative", [None, {TimeoutError: 60}])
def test_a_load_that_was_shut_out_and_takes_too_long_ends_for_those_who_wait(
    clock: VirtualClock, negative: Any
) -> None:
    """It leaves nothing at the key that was written meanwhile, neither a memory nor a back-off."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("never", "new", seconds=1000)
        options: dict[str, Any] = {"ttl": 10, "load_timeout": 5, "negative": negative}
        waiting = asyncio.ensure_future(cache.get_or_load("key", load, **options))
        await settle()
        await cache.set("key", "set", ttl=1)
        await timed_out(waiting, "load_timeout")
        assert load.cancelled == 1
        load.seconds = 0
        assert await cache.get_or_load("key", load, stale_if_error=100, **options) == "new"
        assert cache.stats().load_timeouts == 1

    run_virtual(main(), clock)


@pytest.mark.parametrize("negative", [None, {TimeoutError: 60}])
def test_a_load_whose_tag_was_invalidated_and_takes_too_long_is_not_remembered(
    clock: VirtualClock, negative: Any
) -> None:
    """The tag became known only later: the load was set apart, not shut out."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def load(told: LoadContext) -> str:
            if told.attempt == 1 and told.deadline is not None:
                told.add_tags("early")
                await asyncio.sleep(2)
                told.add_tags("late")
                await asyncio.sleep(1000)
            return "new"

        call = cache.get_or_load("key", load, load_timeout=5, negative=negative)
        waiting = asyncio.ensure_future(call)
        await asyncio.sleep(1)
        await cache.invalidate_tags("late")
        await timed_out(waiting, "load_timeout")
        await settle()
        assert await cache.get_or_load("key", load) == "new"

    run_virtual(main(), clock)


def test_a_caller_of_one_key_waits_for_a_load_of_many_no_longer_than_it_may(
    clock: VirtualClock,
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        begun = clock.now
        await cache.get_or_load("a", lambda: "old", ttl=10, stale_if_error=100)
        clock.advance(11)

        async def load_many(keys: list[str]) -> dict[str, str]:
            await asyncio.sleep(10)
            return dict.fromkeys(keys, "many")

        many = asyncio.ensure_future(cache.get_or_load_many(["a", "b"], load_many))
        await settle()
        begun = clock.now
        one = Loader()
        stale = cache.get_or_load("a", one, ttl=10, stale_if_error=100, soft_timeout=1)
        assert (await stale, clock.now) == ("old", begun + 1)
        call = cache.get_or_load("b", one, hard_timeout=3)
        assert await timed_out(call, "hard_timeout") == begun + 4
        assert (await many, clock.now) == ({"a": "many", "b": "many"}, begun + 10)
        assert one.calls == 0

    run_virtual(main(), clock)


# -- many keys


def test_a_load_of_many_that_takes_too_long_ends_for_all_who_wait(clock: VirtualClock) -> None:
    """One load, one timeout; newcomers wait for its clean-up. Nothing ended it."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, load_timeout=5)
        begun, calls, cancelled = clock.now, 0, 0

        async def load_many(keys: list[str]) -> dict[str, str]:
            nonlocal calls, cancelled
            calls += 1
            if calls == 1:
                try:
                    await asyncio.sleep(1000)
                finally:
                    cancelled += 1
                    await asyncio.sleep(2)
            return dict.fromkeys(keys, "new")

        first = asyncio.ensure_future(cache.get_or_load_many(["a", "b"], load_many))
        await settle()
        second = asyncio.ensure_future(cache.get_or_load_many(["b", "c"], load_many))
        single = asyncio.ensure_future(cache.get_or_load("a", Loader()))
        for call in (first, single):
            assert await timed_out(call, "load_timeout") == begun + 5
        assert cancelled == 1
        with pytest.raises(LoadTimeoutError):
            await second
        stats = cache.stats()
        assert (stats.load_timeouts, stats.load_errors) == (1, 1)
        values = await cache.get_or_load_many(["a", "b", "c"], load_many)
        assert values == dict.fromkeys("abc", "new")
        assert clock.now == begun + 7
        stats = cache.stats()
        assert (stats.loads, stats.load_errors, stats.overlapping_loads) == (3, 1, 0)
        await asyncio.sleep(20)
        loop: Any = asyncio.get_running_loop()
        assert [each for each in loop._scheduled if not each.cancelled()] == []

    run_virtual(main(), clock)


def test_a_caller_of_many_waits_no_longer_than_the_cache_says(clock: VirtualClock) -> None:
    """It waited as long as the load took. Who gives up first, and who last, and what then?"""

    async def main() -> None:
        cache = AsyncSafeCache("prices", clock=clock, hard_timeout=2)
        begun, ended = clock.now, 0

        async def load_many(keys: list[str]) -> dict[str, str]:
            nonlocal ended
            try:
                await asyncio.sleep(4)
            finally:
                ended += 1
            return dict.fromkeys(keys, "many")

        calls = [
            asyncio.ensure_future(cache.get_or_load_many(["a", "b"], load_many)),
            asyncio.ensure_future(cache.get_or_load_many(["b", "a"], load_many)),
            asyncio.ensure_future(cache.get_or_load("b", Loader(), hard_timeout=None)),
        ]
        for call in calls[:2]:
            assert await timed_out(call, "hard_timeout") == begun + 2
            assert ended == 0, "somebody waits for it"
        assert (await calls[2], clock.now) == ("many", begun + 4)
        assert await cache.get_many("ab") == {"a": "many", "b": "many"}
        ended = 0
        await timed_out(cache.get_or_load_many(["c"], load_many), "hard_timeout")
        await settle()
        assert ended == 1, "the last one has left"
        assert cache.stats().load_errors == 0

    run_virtual(main(), clock)


# -- what is left


class Local:
    """Something that a frame holds, and that can be watched."""


@pytest.mark.parametrize("option", ["soft_timeout", "hard_timeout", "load_timeout"])
@pytest.mark.parametrize("stale", [False, True], ids=["", "stale"])
def test_a_timeout_leaves_nothing_for_the_collector(
    clock: VirtualClock, option: str, stale: bool
) -> None:
    """The frames of caller and loader, the flight, its timers: all go when they are over."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, default_ttl=10)
        locals_of: list[weakref.ref[Local]] = []

        def local() -> Local:
            made = Local()
            locals_of.append(weakref.ref(made))
            return made

        def flights() -> int:
            found = [each for each in gc.get_objects() if type(each) is Flight]
            return len([each for each in found if each.key[0] is cache._raw])

        async def load() -> Any:
            inside = local()
            if stale and len(locals_of) == 1:
                return "old"
            await asyncio.sleep(5)
            return inside and "new"

        async def caller() -> None:
            own = local()
            options: dict[str, Any] = {"stale_if_error": 100, option: 1}
            try:
                await cache.get_or_load("key", load, **options)
            except LoadTimeoutError:
                pass
            assert own

        if stale:
            await cache.get_or_load("key", load, stale_if_error=100)
            clock.advance(11)
        gc.collect()
        gc.disable()
        try:
            await caller()
            await asyncio.sleep(6)
            assert [each() for each in locals_of] == [None] * (3 if stale else 2)
            assert flights() == 0
        finally:
            gc.enable()

    run_virtual(main(), clock)
