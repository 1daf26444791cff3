"""Who leaves, leaves alone: cancellation at every step, abandonment, clean-up, grace."""

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, CacheClosedError, RecursiveLoadError, race_safe_cached

from .virtual import Loader, VirtualClock, begin_tasks_later, run_virtual, settle

Main = Callable[[AsyncSafeCache], Coroutine[Any, Any, None]]


def with_cache(main: Main, clock: VirtualClock, **options: Any) -> None:
    """Run *main* in virtual time; whatever the loop's exception handler gets is a failure."""
    complaints: list[dict[str, Any]] = []

    async def body() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, fact: complaints.append(fact))
        cache = AsyncSafeCache(clock=clock, **options)
        await main(cache)
        await settle()
        assert not cache._engine.flights.running
        assert not cache._engine.flights._registry
        assert len(asyncio.all_tasks()) == 1
        cache.check()

    run_virtual(body(), clock)
    assert complaints == []


@pytest.mark.parametrize("step", range(8))
def test_a_leader_cancelled_at_any_step_takes_nobody_along(step: int, clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = Loader("value", seconds=0 if step % 2 else 1)
        leader = asyncio.create_task(cache.get_or_load("key", load))
        followers = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(5)]
        await settle(step)
        leader.cancel()
        assert await asyncio.gather(*followers) == ["value"] * 5
        with pytest.raises(asyncio.CancelledError):
            await leader
            raise asyncio.CancelledError  # it had ended before: nothing to cancel
        assert load.calls == 1

    with_cache(main, clock)


@pytest.mark.parametrize("step", range(6))
def test_when_all_leave_the_load_is_cancelled(step: int, clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = Loader("value", seconds=60)
        callers = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(6)]
        await settle(step)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await settle()
        assert load.cancelled == load.calls
        assert len(cache) == 0
        assert cache.stats().load_errors == 0
        assert await cache.get_or_load("key", Loader("next")) == "next"

    with_cache(main, clock)


@pytest.mark.parametrize("step", range(6))
def test_with_finish_an_abandoned_load_ends_and_stores(step: int, clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = Loader("value", seconds=60)
        callers = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(3)]
        await settle(1 + step)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await asyncio.sleep(61)
        assert await cache.get("key") == "value"
        assert load.cancelled == 0

    with_cache(main, clock, on_abandon="finish")


@pytest.mark.parametrize("fence_first", [True, False])
def test_a_fenced_load_that_nobody_waits_for_is_cancelled_even_with_finish(
    fence_first: bool, clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = Loader("old", seconds=60)
        caller = asyncio.create_task(cache.get_or_load("key", load))
        await settle()
        for act in ("fence", "leave") if fence_first else ("leave", "fence"):
            if act == "fence":
                await cache.delete("key")
            else:
                caller.cancel()
                await settle()
        await settle()
        assert load.cancelled == 1
        assert await cache.get("key") is None

    with_cache(main, clock, on_abandon="finish")


def slow_to_clean_up(seconds: float, log: list[str]) -> Callable[[], Any]:
    async def load() -> str:
        log.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(seconds)
            log.append("cleaned up")
        return "never"

    return load


@pytest.mark.parametrize("turns", range(5))
def test_a_newcomer_waits_for_the_clean_up_and_then_loads_afresh(
    turns: int, clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        log: list[str] = []
        first = asyncio.create_task(cache.get_or_load("key", slow_to_clean_up(2, log)))
        await settle()
        first.cancel()
        await settle(turns)

        async def fresh() -> str:
            log.append("begun again")
            return "fresh"

        begin = clock.now
        answers = await asyncio.gather(*(cache.get_or_load("key", fresh) for _ in range(3)))
        assert answers == ["fresh"] * 3
        assert log == ["begun", "cleaned up", "begun again"]
        assert clock.now - begin == pytest.approx(2)
        stats = cache.stats()
        assert (stats.overlapping_loads, stats.calls) == (0, 4)

    with_cache(main, clock)


def test_after_the_grace_one_newcomer_loads_beside_the_clean_up(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        log: list[str] = []
        first = asyncio.create_task(cache.get_or_load("key", slow_to_clean_up(30, log)))
        await settle()
        first.cancel()
        await settle()
        begin = clock.now
        load = Loader("fresh", seconds=1)
        early = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(3)]
        await asyncio.sleep(4)
        late = asyncio.create_task(cache.get_or_load("key", load))
        assert await asyncio.gather(*early, late) == ["fresh"] * 4
        assert load.calls == 1
        assert clock.now - begin == pytest.approx(6), (
            "5 s of grace and 1 s of load, for the late one too"
        )
        assert cache.stats().overlapping_loads == 1
        assert cache.stats().calls == 5
        await asyncio.sleep(60)
        assert log == ["begun", "cleaned up"]
        assert await cache.get("key") == "fresh", "the older load stored nothing"

    with caplog.at_level(logging.WARNING):
        with_cache(main, clock)
    assert len([record for record in caplog.records if "another starts" in record.message]) == 1


def test_a_load_that_swallows_its_cancellation_stores_nothing(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def stubborn() -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
            return "swallowed"

        first = asyncio.create_task(cache.get_or_load("key", stubborn))
        await settle()
        first.cancel()
        await settle()
        assert await cache.get_or_load("key", Loader("fresh")) == "fresh"
        assert await cache.get("key") == "fresh"

    with_cache(main, clock)


def test_a_newcomer_cancelled_while_it_waits_for_a_clean_up(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        first = asyncio.create_task(cache.get_or_load("key", slow_to_clean_up(2, [])))
        await settle()
        first.cancel()
        await settle()
        newcomer = asyncio.create_task(cache.get_or_load("key", Loader()))
        await settle()
        newcomer.cancel()
        await settle()
        assert cache.stats().calls == 2
        assert newcomer.cancelled()
        await asyncio.sleep(3)

    with_cache(main, clock)


def test_a_follower_that_times_out_leaves_alone(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = Loader("value", seconds=1)

        async def impatient() -> float:
            begin = clock.now
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await cache.get_or_load("key", load)
            return clock.now - begin

        leader = asyncio.create_task(cache.get_or_load("key", load))
        await settle(1)
        others = [asyncio.create_task(cache.get_or_load("key", load)) for _ in range(3)]
        assert await impatient() == pytest.approx(0.1)
        assert await asyncio.gather(leader, *others) == ["value"] * 4
        assert load.calls == 1

    with_cache(main, clock)


def test_a_waiter_in_a_task_group_whose_sibling_fails(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = Loader("value", seconds=1)
        outside = asyncio.create_task(cache.get_or_load("key", load))
        await settle()

        async def fail() -> None:
            raise ValueError("sibling")

        async def cancelling_after(sibling: Coroutine[Any, Any, Any]) -> int:
            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(sibling)
                    group.create_task(fail())
            this = asyncio.current_task()
            assert this is not None
            return this.cancelling()

        plain = asyncio.create_task(cancelling_after(asyncio.sleep(60)))
        cached = asyncio.create_task(cancelling_after(cache.get_or_load("key", load)))
        assert await plain == await cached
        assert await outside == "value"

    with_cache(main, clock)


def test_ten_thousand_callers_that_time_out_leave_nothing_behind(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = Loader("value", seconds=1)

        async def caller(number: int) -> bool:
            try:
                async with asyncio.timeout(0.1 + number % 100 / 50):
                    return await cache.get_or_load("key", load) == "value"
            except TimeoutError:
                return False

        answers = await asyncio.gather(*(caller(number) for number in range(10_000)))
        assert 4_000 < sum(answers) < 6_000
        assert load.calls == 1

    with_cache(main, clock)


def test_a_newcomer_is_never_joined_to_a_load_that_is_being_cancelled(clock: VirtualClock) -> None:
    """The last waiter leaves in the very turn in which another arrives."""

    async def main(cache: AsyncSafeCache) -> None:
        for steps in range(6):
            load = Loader("value", seconds=1)
            last = asyncio.create_task(cache.get_or_load(steps, load))
            await settle()
            last.cancel()
            await settle(steps)
            assert await cache.get_or_load(steps, load) == "value"
            assert load.calls == (2 if steps else 1), (
                "before the last one heard of it, it is joined"
            )
            assert load.ended == load.calls
            assert load.cancelled == load.calls - 1
        assert cache.stats().overlapping_loads == 0

    with_cache(main, clock)


def test_a_delete_during_a_clean_up_lets_no_newcomer_in_earlier(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        log: list[str] = []
        first = asyncio.create_task(cache.get_or_load("key", slow_to_clean_up(2, log)))
        await settle()
        first.cancel()
        await settle()
        await cache.delete("key")
        begin = clock.now
        assert await cache.get_or_load("key", Loader("fresh")) == "fresh"
        assert clock.now - begin == pytest.approx(2)
        assert cache.stats().overlapping_loads == 0

    with_cache(main, clock)


def test_the_end_of_an_overtaken_load_leaves_its_successor_joinable(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        first = asyncio.create_task(cache.get_or_load("key", slow_to_clean_up(10, [])))
        await settle()
        first.cancel()
        await settle()
        load = Loader("fresh", seconds=20)
        early = asyncio.create_task(cache.get_or_load("key", load))
        await asyncio.sleep(15)  # overtaken after 5 s, cleaned up after 10 s
        late = asyncio.create_task(cache.get_or_load("key", load))
        assert await asyncio.gather(early, late) == ["fresh", "fresh"]
        assert load.calls == 1

    with_cache(main, clock)


@pytest.mark.parametrize("turns", range(4))
def test_closing_answers_a_load_that_has_not_begun(turns: int, clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        begin_tasks_later()
        caller = asyncio.create_task(cache.get_or_load("key", Loader(seconds=60)))
        await settle(turns)
        begin = clock.now
        await cache.aclose()
        assert clock.now == begin
        with pytest.raises(CacheClosedError):
            await caller

    with_cache(main, clock)


def test_draining_lets_loads_use_the_cache_to_their_end(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def outer() -> str:
            await asyncio.sleep(1)
            return "outer " + await cache.get_or_load("inner", Loader("inner", seconds=1))

        caller = asyncio.create_task(cache.get_or_load("outer", outer))
        await settle()
        closing = asyncio.create_task(cache.aclose(drain=True))
        await settle()
        with pytest.raises(CacheClosedError):
            await cache.get_or_load("new", Loader())
        assert await caller == "outer inner"
        await closing
        with pytest.raises(CacheClosedError):
            await cache.get("outer")

    with_cache(main, clock)


# -- every public coroutine, cancelled at every step


def operations(cache: AsyncSafeCache) -> dict[str, Callable[[], Coroutine[Any, Any, Any]]]:
    cached = race_safe_cached(cache, "cached")(Loader("value", seconds=1).__call__)
    return {
        "get": lambda: cache.get("a"),
        "lookup": lambda: cache.lookup("a"),
        "get_many": lambda: cache.get_many(["a", "b"]),
        "get_or_load": lambda: cache.get_or_load("new", Loader("value", seconds=1)),
        "get_or_load_many": lambda: cache.get_or_load_many(
            ["a", "new", "beside"], lambda absent: dict.fromkeys(absent, 1)
        ),
        "set": lambda: cache.set("a", 2),
        "delete": lambda: cache.delete("a"),
        "expire": lambda: cache.expire("a"),
        "touch": lambda: cache.touch("a", 5),
        "clear": lambda: cache.clear(),
        "invalidate": lambda: cache.invalidate(cached),
        "refresh": lambda: cache.refresh(cached),
        "call": lambda: cached(),
        "cache_close": lambda: cached.cache_close(wait=True),
        "start": lambda: cache.start(),
        "aclose": lambda: cache.aclose(),
        "drain": lambda: cache.aclose(drain=True),
        "health": lambda: cache.get_health_info(),
    }


@pytest.mark.parametrize("name", list(operations(AsyncSafeCache())))
def test_an_operation_cancelled_at_any_step_breaks_nothing(name: str, clock: VirtualClock) -> None:
    async def once(step: int) -> bool:
        cache = AsyncSafeCache(clock=clock)
        await cache.start()
        for number in range(3_000):
            await cache.set(number, number)
        await cache.set("a", 1)
        beside = asyncio.create_task(cache.get_or_load("beside", Loader("beside", seconds=2)))
        await settle()
        task = asyncio.create_task(operations(cache)[name]())
        await settle(step)
        ended = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        cache.check()
        (answer,) = await asyncio.gather(beside, return_exceptions=True)
        assert answer == "beside" or isinstance(answer, CacheClosedError)
        await cache.start()
        assert await cache.get_or_load("next", Loader("next")) == "next"
        await cache.aclose()
        cache.check()
        assert not cache._engine.flights.running
        assert len(asyncio.all_tasks()) == 1
        return ended

    async def main() -> None:
        step = 0
        while not await once(step):
            step += 1
            if step > 40:
                break

    run_virtual(main(), clock)


# -- cycles


def test_a_load_that_awaits_its_own_key_is_refused(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        @race_safe_cached(cache, "secret-free")
        async def itself(x: str, how: str) -> str:
            if how == "directly":
                return await itself(x, how)
            if how == "task":
                return await asyncio.create_task(itself(x, how))
            return (await asyncio.gather(asyncio.sleep(0), itself(x, how)))[1]

        for how in ("directly", "task", "gather"):
            calls = [asyncio.create_task(itself("token", how)) for _ in range(3)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            for answer in answers:
                assert isinstance(answer, RecursiveLoadError)
                assert answer.chain == ("secret-free", "secret-free")
                assert "token" not in str(answer)

    with_cache(main, clock)


@pytest.mark.parametrize("delays", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)])
@pytest.mark.parametrize("apart", range(4))
def test_a_cycle_of_two_loads_ends_in_an_error(
    delays: tuple[int, int], apart: int, clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def a() -> str:
            await asyncio.sleep(delays[0])
            return await cache.get_or_load("b", b)

        async def b() -> str:
            await asyncio.sleep(delays[1])
            return await cache.get_or_load("a", a)

        first = asyncio.create_task(cache.get_or_load("a", a))
        await settle(apart)
        second = asyncio.create_task(cache.get_or_load("b", b))
        answers = await asyncio.gather(first, second, return_exceptions=True)
        assert all(isinstance(answer, RecursiveLoadError) for answer in answers)

    with_cache(main, clock)


def test_a_chain_of_five_hundred_loads_is_no_cycle(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        @race_safe_cached(cache)
        async def down(n: int) -> int:
            return 0 if n == 0 else 1 + await down(n - 1)

        assert await down(500) == 500

    with_cache(main, clock)


def test_two_loads_that_wait_for_a_third_are_no_cycle(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        shared = Loader("shared", seconds=1)

        async def one() -> str:
            return await cache.get_or_load("shared", shared)

        async def both() -> list[str]:
            return await asyncio.gather(
                cache.get_or_load("one", one), cache.get_or_load("shared", shared)
            )

        assert await cache.get_or_load("both", both) == ["shared", "shared"]
        assert shared.calls == 1

    with_cache(main, clock)


def test_a_clean_up_that_awaits_its_own_key_does_not_hang(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        seen: list[BaseException] = []

        async def load() -> str:
            try:
                await asyncio.sleep(60)
            finally:
                try:
                    await cache.get_or_load("key", load)
                except RecursiveLoadError as error:
                    seen.append(error)
            return "never"

        caller = asyncio.create_task(cache.get_or_load("key", load))
        await settle()
        caller.cancel()
        await settle()
        assert len(seen) == 1

    with_cache(main, clock)


# -- callers and loops that end without a word


def test_a_caller_whose_coroutine_is_closed_leaves_at_the_next_write(clock: VirtualClock) -> None:
    """The collector does so to a coroutine that nobody will ever resume."""

    async def main(cache: AsyncSafeCache) -> None:
        load = Loader("value", seconds=60)
        caller = cache.get_or_load("key", load)
        caller.send(None)
        await settle()
        caller.close()
        await cache.set("other", 1)
        await settle()
        assert load.cancelled == 1

    with_cache(main, clock)


def test_a_load_whose_loop_was_closed_over_it_is_loaded_anew() -> None:
    cache = AsyncSafeCache()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # its tasks are destroyed while pending
    dead = loop.create_task(cache.get_or_load("key", Loader("never", seconds=60)))
    loop.run_until_complete(settle())
    loop.close()
    assert cache._engine.flights.running
    again = Loader("fresh")

    async def impatient() -> Any:
        async with asyncio.timeout(5):
            return await cache.get_or_load("key", again)

    assert asyncio.run(impatient()) == "fresh"
    assert not cache._engine.flights.running
    del dead
    gc.collect()
    asyncio.run(cache.set("other", 1))
    cache.check()
