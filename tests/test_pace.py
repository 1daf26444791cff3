"""A budget of loads: never more at once, never faster, in order, and no slot ever lost."""

import asyncio
import contextlib
import gc
import json
import math
import random
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_safe_cache._pace import Pace, Turn
from async_safe_cache.testing import FakeClock, explore, pause

from .virtual import VirtualClock, run_virtual, settle

PATIENCE = 10.0
"""Seconds after which a test of threads gives up; none of them waits for any."""

Story = Callable[[Pace], Coroutine[Any, Any, Any]]


def unused(pace: Pace) -> bool:
    """Tell whether nobody holds or waits for anything."""
    return not (pace._turns or pace._line or pace._running or pace._round or pace._left)


def run(story: Story, *, concurrency: int = 1, rate: float | None = None) -> Pace:
    """Run *story* in virtual time; afterwards every slot is free and nothing remembered."""
    clock = VirtualClock()
    pace = Pace(concurrency=concurrency, rate=rate, clock=clock)

    async def main() -> None:
        await story(pace)
        await settle()
        assert unused(pace)

    run_virtual(main(), clock)
    return pace


def task(coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    return asyncio.get_running_loop().create_task(coroutine)


async def load(pace: Pace, seconds: float = 0.0, *, good: bool = True) -> None:
    async with pace.turn() as turn:
        await asyncio.sleep(seconds)
        if not good:
            turn.failed()


async def hold(pace: Pace, end: asyncio.Event, *, good: bool = True) -> None:
    async with pace.turn() as turn:
        await end.wait()
        if not good:
            turn.failed()


def assert_rate_kept(starts: list[float], rate: float) -> None:
    """Over no window of T seconds begin more than rate * T + max(1, rate / 10)."""
    burst = max(1.0, rate / 10)
    # Of windows that hold as many starts, the one from the first to the last is the shortest:
    # nth <= rate * (time - first) + burst for each pair, so the highest excess stays under it.
    lowest = math.inf
    for nth, time in enumerate(starts):
        lowest = min(lowest, nth - rate * time)
        assert nth + 1 - rate * time - lowest <= burst + 1e-6 * rate


# ---- loads at once


def test_no_more_loads_run_than_the_limit() -> None:
    """Ten thousand loads of random length, a third of them cancelled at a random moment."""

    async def story(pace: Pace) -> None:
        chance = random.Random(5)
        inside = most = done = 0

        async def one() -> None:
            nonlocal inside, most, done
            async with pace.turn() as turn:
                assert inside + 1 <= pace.limit, "one too many was let in"
                inside += 1
                most = max(most, inside)
                assert inside == pace.running
                try:
                    await asyncio.sleep(chance.random())
                    if chance.random() < 0.05:
                        turn.failed()
                finally:
                    inside -= 1
                done += 1

        async def ask(victim: bool) -> None:
            await asyncio.sleep(chance.random() * 600)
            each = task(one())
            if victim:
                await asyncio.sleep(chance.random() * 3)
                each.cancel()
            await asyncio.wait([each])
            assert each.cancelled() or each.exception() is None

        await asyncio.gather(*[ask(chance.random() < 0.33) for _ in range(10_000)])
        assert (inside, most, pace.running, pace.waiting) == (0, 8, 0, 0)
        assert done > 6_000

    run(story, concurrency=8)


def test_turns_come_in_the_order_of_the_asking() -> None:
    async def story(pace: Pace) -> None:
        order: list[int] = []

        async def one(number: int) -> None:
            async with pace.turn():
                order.append(number)
                await asyncio.sleep(1)

        tasks = [task(one(number)) for number in range(6)]
        await asyncio.sleep(0.5)
        assert (pace.running, pace.waiting) == (2, 4)
        tasks[3].cancel()
        await asyncio.sleep(0)  # who asks while the next one is just woken queues behind it
        tasks.append(task(one(6)))
        await asyncio.wait(tasks)
        assert order == [0, 1, 2, 4, 5, 6]

    run(story, concurrency=2)


def test_a_newcomer_does_not_overtake_who_was_just_woken() -> None:
    async def story(pace: Pace) -> None:
        order: list[str] = []

        async def one(name: str) -> None:
            async with pace.turn():
                order.append(name)

        async with pace.turn():
            waits = task(one("waits"))
            await settle()
        assert (pace.running, pace.waiting) == (0, 1)
        await one("comes")  # begins in the very step in which the slot became free
        await waits
        assert order == ["waits", "comes"]

    run(story)


def test_a_turn_that_is_free_is_taken_without_waiting() -> None:
    async def story(pace: Pace) -> None:
        turn = pace.turn()
        with contextlib.suppress(StopIteration):
            turn.__aenter__().send(None)
            pytest.fail("it waited")
        assert pace.running == 1
        await turn.__aexit__(None)

    run(story)


@pytest.mark.parametrize("ticks", range(8))
def test_a_cancellation_at_any_tick_around_the_wake_up_loses_nothing(ticks: int) -> None:
    """The slot became free, the first in the line was woken, and is gone before it runs."""

    async def story(pace: Pace) -> None:
        end = asyncio.Event()
        holder = task(hold(pace, end))
        await settle()
        first, second = task(load(pace, 1)), task(load(pace, 1))
        await settle()
        end.set()
        await settle(ticks)
        first.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait([holder, first, second])
        assert first.cancelled()
        assert second.exception() is None

    run(story)


def in_turns(rate: float | None, concurrency: int) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return a scenario: three tasks, each with its turn."""

    async def scenario(clock: FakeClock) -> None:
        pace = Pace(concurrency=concurrency, rate=rate, clock=clock)
        inside = 0
        starts: list[float] = []

        async def one() -> None:
            nonlocal inside
            await pause()
            async with pace.turn():
                inside += 1
                starts.append(clock())
                assert inside <= pace.limit
                try:
                    await pause(0.3)
                finally:
                    inside -= 1

        tasks = [asyncio.create_task(one(), name=name) for name in ("one", "two", "three")]
        await asyncio.wait(tasks)
        for each in tasks:
            if not each.cancelled():
                each.result()
        assert unused(pace)
        if rate:
            assert_rate_kept(starts, rate)

    return scenario


BUDGETS = {
    "a slot": in_turns(None, 1),
    "two slots": in_turns(None, 2),
    "a rate": in_turns(2.0, 3),
    "a slot and a rate": in_turns(2.0, 1),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_holds_in_all_orders(name: str) -> None:
    explore(BUDGETS[name], schedules=200)
    explore(BUDGETS[name], schedules=200, policy="exhaustive")


@pytest.mark.parametrize("victim", ["one", "two", "three"])
@pytest.mark.parametrize("name", BUDGETS)
def test_a_task_cancelled_at_any_await_leaves_nothing_behind(name: str, victim: str) -> None:
    assert explore(BUDGETS[name], schedules=150, cancel=victim).cancel_points > 10


# ---- starts per second


@pytest.mark.parametrize("rate", [0.25, 1, 3, 10, 50, 1000])
def test_no_more_loads_begin_in_any_window_than_the_rate_allows(rate: float) -> None:
    """Loads come in crowds and alone, and a fifth of those in the line are cancelled."""
    starts: list[float] = []

    async def story(pace: Pace) -> None:
        chance = random.Random(rate)
        clock: Any = pace._clock

        async def one() -> None:
            async with pace.turn():
                starts.append(clock())
                await asyncio.sleep(chance.random() / rate)

        tasks: list[asyncio.Task[Any]] = []
        for _ in range(40):
            tasks += [task(one()) for _ in range(chance.choice((1, 3, 40)))]
            for each in chance.sample(tasks, len(tasks) // 20):
                each.cancel()
            await asyncio.sleep(chance.choice((0, 1, 40)) * chance.random() / rate)
        await asyncio.wait(tasks)

    run(story, concurrency=100, rate=rate)
    assert len(starts) > 100
    assert_rate_kept(starts, rate)


@pytest.mark.parametrize("rate", [0.5, 4, 200])
def test_the_whole_rate_is_used_while_loads_wait(rate: float) -> None:
    async def story(pace: Pace) -> None:
        clock: Any = pace._clock
        begin = clock()
        await asyncio.gather(*[load(pace) for _ in range(400)])
        # The burst comes at once; each further load when its token is there.
        assert clock() - begin == pytest.approx((400 - max(1, rate / 10)) / rate, abs=1e-4)

    run(story, concurrency=1, rate=rate)


def test_tokens_that_nobody_took_add_up_to_the_burst_and_no_more() -> None:
    starts: list[float] = []

    async def story(pace: Pace) -> None:
        clock: Any = pace._clock

        async def one() -> None:
            async with pace.turn():
                starts.append(clock())

        await asyncio.sleep(1_000)
        await asyncio.gather(*[one() for _ in range(8)])

    run(story, concurrency=100, rate=40)
    begin = starts[0]
    expected = [0, 0, 0, 0, 0.025, 0.05, 0.075, 0.1]
    assert [each - begin for each in starts] == pytest.approx(expected, abs=1e-5)


def test_a_loop_that_stood_still_begins_no_more_than_the_burst_afterwards() -> None:
    """A turn counted before the stall must not begin after it, beside those of the burst."""
    starts: list[float] = []

    async def story(pace: Pace) -> None:
        clock: Any = pace._clock

        async def one() -> None:
            async with pace.turn():
                starts.append(clock())

        tasks = [task(one()) for _ in range(12)]
        for _ in range(5):
            await asyncio.sleep(0.21)
            clock.advance(3)  # the loop is busy
        await asyncio.wait(tasks)

    run(story, concurrency=100, rate=5)
    assert len(starts) == 12
    assert_rate_kept(starts, 5)


def test_who_is_cancelled_while_it_waits_for_a_token_takes_none() -> None:
    async def story(pace: Pace) -> None:
        clock: Any = pace._clock
        begin = clock()
        await load(pace)
        first, second = task(load(pace)), task(load(pace))
        await asyncio.sleep(6)
        first.cancel()
        await second
        assert clock() - begin == pytest.approx(10)
        assert pace.running == 0

    run(story, concurrency=4, rate=0.1)


@pytest.mark.parametrize("rate", [1e-12, 1e-300, 5e-324])
def test_a_rate_near_nothing_waits_and_can_be_cancelled(rate: float) -> None:
    async def story(pace: Pace) -> None:
        await load(pace)
        second = task(load(pace))
        await asyncio.sleep(1e6)
        assert pace.waiting == 1
        second.cancel()

    run(story, concurrency=4, rate=rate)


def test_who_is_cancelled_while_it_waits_for_a_token_leaves_no_timer() -> None:
    async def story(pace: Pace) -> None:
        await load(pace)
        loop: Any = asyncio.get_running_loop()
        waits = task(load(pace))
        await settle()
        assert [each for each in loop._scheduled if not each.cancelled()]
        waits.cancel()
        await settle()
        assert not [each for each in loop._scheduled if not each.cancelled()]

    run(story, rate=0.001)


def test_who_was_cancelled_in_the_line_is_not_remembered_by_the_loop() -> None:
    """A cancelled timer may lie in the loop for long: it must not pin a request."""

    class Request:
        pass

    request_of: ContextVar[Request] = ContextVar("request")
    seen: list[weakref.ref[Request]] = []

    async def story(pace: Pace) -> None:
        async def one() -> None:
            request = Request()
            seen.append(weakref.ref(request))
            request_of.set(request)
            del request
            await load(pace)

        await load(pace)
        earlier = asyncio.get_running_loop().call_later(500, print)  # else its loop drops it
        waits = task(one())
        await settle()
        waits.cancel()
        await asyncio.wait([waits])
        del waits
        await settle()
        gc.collect()
        assert seen[0]() is None
        earlier.cancel()

    run(story, rate=0.001)


def test_a_clock_that_stands_still_makes_no_busy_loop() -> None:
    """The loop's time goes on; the budget's clock does not, and no token comes."""
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return 7.0

    async def main() -> None:
        pace = Pace(concurrency=1, rate=2, clock=clock)
        await load(pace)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(100):
                await load(pace)

    run_virtual(main())
    assert looks < 210


# ---- the limit


def test_an_error_halves_the_limit_and_good_loads_raise_it_again() -> None:
    limits: list[float] = []

    async def story(pace: Pace) -> None:
        for good in (True, False, False, False, False, True, True, True, *[True] * 40):
            await load(pace, good=good)
            limits.append(pace.limit)

    pace = run(story, concurrency=8)
    assert limits[:5] == [8, 4, 2, 1, 1]
    assert limits[5:8] == [2, 2.5, 2.5 + 1 / 2.5]
    for before, after in pairwise(limits[4:]):
        assert after == min(before + 1 / before, 8)
    assert limits[-1] == 8
    assert pace.report()["errors"] == 4


def test_only_as_many_run_as_the_halved_limit_allows() -> None:
    async def story(pace: Pace) -> None:
        for _ in range(2):
            await load(pace, good=False)
        assert pace.limit == 2.5
        end = asyncio.Event()
        tasks = [task(hold(pace, end)) for _ in range(5)]
        await settle()
        assert (pace.running, pace.waiting) == (2, 3)
        end.set()
        await asyncio.wait(tasks)

    run(story, concurrency=10)


def test_the_limit_falls_once_while_the_loads_of_that_moment_run() -> None:
    """Eight loads meet one failing origin: that is one piece of news, not eight."""

    async def story(pace: Pace) -> None:
        ends = [asyncio.Event() for _ in range(8)]
        tasks = [task(hold(pace, end, good=False)) for end in ends]
        await settle()
        limits: list[float] = []
        for place, end in enumerate(ends):
            end.set()
            await tasks[place]
            limits.append(pace.limit)
            if place == 5:
                await load(pace, good=False)  # begun since, while others of that round run
                limits.append(pace.limit)
        await load(pace, good=False)
        limits.append(pace.limit)
        assert limits == [4] * 9 + [2]

    assert run(story, concurrency=8).report()["errors"] == 10


def test_a_load_slower_than_twice_the_usual_halves_the_limit() -> None:
    async def story(pace: Pace) -> None:
        for _ in range(8):
            await load(pace, 1)
        await load(pace, 2)  # twice is not slower than twice
        assert pace.limit == 8
        await load(pace, 2 * pace._usual + 1e-6)
        assert pace.limit == 4
        assert pace.report()["slowed"] == 1
        assert pace.report()["errors"] == 0

    run(story, concurrency=8)


def test_the_first_eight_loads_only_tell_what_is_usual() -> None:
    async def story(pace: Pace) -> None:
        for seconds in (1, 100, 1, 1, 1, 50, 1, 1):
            await load(pace, seconds)
        assert pace.limit == 8
        assert pace._usual == pytest.approx(156 / 8)
        await load(pace, 40)
        assert pace.limit == 4

    run(story, concurrency=8)


def test_errors_do_not_tell_what_is_usual() -> None:
    async def story(pace: Pace) -> None:
        for _ in range(8):
            await load(pace, 1)
        for _ in range(20):
            await load(pace, 0, good=False)
            await load(pace, 30, good=False)
        assert pace._usual == 1

    run(story, concurrency=8)


def test_an_origin_that_became_slow_for_good_is_usual_after_a_while() -> None:
    async def story(pace: Pace) -> None:
        for _ in range(8):
            await load(pace, 1)
        for _ in range(100):
            await load(pace, 10)
        slowed = pace.report()["slowed"]
        assert isinstance(slowed, int)
        assert 5 < slowed < 20
        assert pace.limit == 8

    run(story, concurrency=8)


def test_one_hung_load_does_not_make_slow_ones_usual() -> None:
    async def story(pace: Pace) -> None:
        for _ in range(8):
            await load(pace, 1)
        await load(pace, 1e6)
        await load(pace, 3)
        assert pace.report()["slowed"] == 2

    run(story, concurrency=8)


def test_loads_of_no_length_do_not_make_any_load_slow() -> None:
    """Twice nothing is nothing: a busy loop alone takes longer."""

    async def story(pace: Pace) -> None:
        for _ in range(20):
            await load(pace, 0)
        await load(pace, 0.009)
        assert pace.limit == 8
        await load(pace, 0.1)
        assert pace.limit == 4

    run(story, concurrency=8)


def test_an_exception_counts_as_an_error_and_reaches_the_caller() -> None:
    async def story(pace: Pace) -> None:
        with pytest.raises(ZeroDivisionError):
            async with pace.turn():
                raise ZeroDivisionError
        assert (pace.limit, pace.report()["errors"]) == (4, 1)

    run(story, concurrency=8)


def test_a_cancelled_load_is_neither_good_nor_bad() -> None:
    async def story(pace: Pace) -> None:
        await load(pace, good=False)
        each = task(load(pace, 5))
        await settle()
        each.cancel()
        await asyncio.wait([each])
        assert each.cancelled()
        assert (pace.limit, pace.report()["errors"], pace._measured) == (4, 1, 0)

    run(story, concurrency=8)


def test_a_load_that_was_said_to_fail_counts_though_it_is_then_cancelled() -> None:
    async def story(pace: Pace) -> None:
        async def one() -> None:
            async with pace.turn() as turn:
                turn.failed()
                turn.failed()
                await asyncio.sleep(5)

        each = task(one())
        await settle()
        each.cancel()
        await asyncio.wait([each])
        assert (pace.limit, pace.report()["errors"]) == (4, 1)

    run(story, concurrency=8)


# ---- nothing leaks


Step = tuple[float, float, float | None, str]

steps = st.tuples(
    st.floats(0, 3),  # asks when
    st.floats(0, 2),  # loads for how long
    st.none() | st.floats(0, 6),  # is cancelled when
    st.sampled_from(["good", "failed", "raises", "cancels itself"]),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(steps, max_size=25),
    st.integers(1, 4),
    st.none() | st.sampled_from([0.5, 2.0, 7.0, 100.0]),
)
def test_whatever_is_cancelled_no_slot_is_lost(
    plan: list[Step], concurrency: int, rate: float | None
) -> None:
    starts: list[float] = []

    async def story(pace: Pace) -> None:
        clock: Any = pace._clock

        async def one(wait: float, seconds: float, end: str) -> None:
            await asyncio.sleep(wait)
            async with pace.turn() as turn:
                assert pace.running <= pace.limit
                starts.append(clock())
                await asyncio.sleep(seconds)
                if end == "failed":
                    turn.failed()
                if end == "raises":
                    raise ZeroDivisionError
                if end == "cancels itself":
                    raise asyncio.CancelledError

        tasks: list[asyncio.Task[Any]] = []
        for wait, seconds, cancelled, end in plan:
            each = task(one(wait, seconds, end))
            tasks.append(each)
            if cancelled is not None:
                asyncio.get_running_loop().call_later(cancelled, each.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert unused(pace)
        # Every slot can be had again, all at once.
        while pace.limit < concurrency:
            await load(pace)
        end = asyncio.Event()
        tasks = [task(hold(pace, end)) for _ in range(concurrency)]
        await asyncio.sleep(concurrency / (rate or math.inf) + 10)
        assert pace.running == concurrency
        end.set()
        await asyncio.wait(tasks)

    run(story, concurrency=concurrency, rate=rate)
    if rate:
        assert_rate_kept(starts, rate)


def test_a_clock_that_fails_costs_no_slot() -> None:
    broken = False

    def clock() -> float:
        if broken:
            raise ZeroDivisionError
        return 0.0

    async def main() -> None:
        nonlocal broken
        pace = Pace(concurrency=1, rate=None, clock=clock)
        with pytest.raises(ZeroDivisionError):
            async with pace.turn():
                broken = True
        with pytest.raises(ZeroDivisionError):
            await load(pace)
        broken = False
        assert unused(pace)
        await load(pace)

    run_virtual(main())


def test_a_turn_is_entered_once() -> None:
    async def story(pace: Pace) -> None:
        turn = pace.turn()
        async with turn:
            with pytest.raises(RuntimeError, match="entered before"):
                await turn.__aenter__()
            assert pace.running == 1
        with pytest.raises(RuntimeError, match="entered before"):
            await turn.__aenter__()

    run(story, concurrency=2)


# ---- loops and threads


def test_it_serves_one_loop_after_the_other() -> None:
    pace = Pace(concurrency=2, rate=None, clock=VirtualClock())

    async def main() -> None:
        await asyncio.gather(*[load(pace, 1) for _ in range(5)])
        task(load(pace, 100))  # cancelled as the loop ends, as are those that wait
        await asyncio.gather(*[task(load(pace, 1)) for _ in range(3)])
        for _ in range(4):
            task(load(pace, 100))
        await settle()

    for _ in range(3):
        run_virtual(main())
        assert unused(pace)


@contextlib.contextmanager
def stopped_loop(pace: Pace, loads: int) -> Iterator[asyncio.AbstractEventLoop]:
    """Yield a loop that stopped in the middle of its loads; in the end its tasks are dropped."""
    with ThreadPoolExecutor(1) as other:  # this one may run a loop

        def start() -> tuple[asyncio.AbstractEventLoop, list[asyncio.Task[None]]]:
            loop = asyncio.new_event_loop()
            tasks = [loop.create_task(load(pace, 100)) for _ in range(loads)]
            loop.run_until_complete(asyncio.sleep(0))
            return loop, tasks

        loop, tasks = other.submit(start).result(PATIENCE)
    yield loop
    loop.close()
    for each in tasks:
        each._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutine = each.get_coro()
        assert coroutine is not None
        coroutine.close()  # as the collector does


def test_what_a_dead_loop_held_or_waited_for_blocks_nobody() -> None:
    """A loop is closed in the middle: its tasks never get to leave."""
    clock = VirtualClock()
    pace = Pace(concurrency=2, rate=None, clock=clock)
    with stopped_loop(pace, 5) as dead:
        assert (pace.running, pace.waiting) == (2, 3)
        dead.close()

        async def main() -> None:
            begin = clock()
            await asyncio.gather(*[load(pace, 1) for _ in range(4)])
            assert clock() - begin == pytest.approx(2)

        run_virtual(main(), clock)
        assert unused(pace)
    assert unused(pace)
    assert pace.report()["errors"] == 0


def test_a_loop_that_dies_while_others_wait_behind_it_is_noticed() -> None:
    clock = VirtualClock()
    pace = Pace(concurrency=1, rate=None, clock=clock)

    async def main() -> None:
        with stopped_loop(pace, 1) as dying:
            begin = clock()
            asyncio.get_running_loop().call_later(5.5, dying.close)
            await asyncio.gather(*[load(pace) for _ in range(3)])
            assert clock() - begin == pytest.approx(6)  # they look each second

    run_virtual(main(), clock)
    assert unused(pace)


def test_who_comes_and_finds_a_dead_loop_wakes_who_waited_behind_it() -> None:
    clock = VirtualClock()
    pace = Pace(concurrency=1, rate=None, clock=clock)

    async def main() -> None:
        with stopped_loop(pace, 1) as dying:
            begin = clock()
            waits = task(load(pace))
            await asyncio.sleep(0.25)
            dying.close()
            comes = task(load(pace))
            await waits
            assert clock() - begin == 0.25
            await comes

    run_virtual(main(), clock)
    assert unused(pace)


def test_who_ends_before_a_waiter_of_a_dead_loop_wakes_who_comes_after_it() -> None:
    clock = VirtualClock()
    pace = Pace(concurrency=1, rate=None, clock=clock)

    async def main() -> None:
        first = task(load(pace, 0.5))  # before the next look of who waits
        await settle()
        with stopped_loop(pace, 1) as dead:
            waits = task(load(pace))
            await settle()
            dead.close()
            await first  # tries to wake the one in the dead loop, and is none the worse for it
            await waits

    run_virtual(main(), clock)
    assert unused(pace)


def test_the_collector_may_close_a_block_while_the_lock_is_held() -> None:
    """A block that nobody holds any more is closed wherever the collector runs."""
    pace = Pace(concurrency=1, rate=None, clock=VirtualClock())

    async def main() -> None:
        turn = load(pace, 1)
        loop = asyncio.get_running_loop()
        each: Any = loop.create_task(turn)
        waits = task(load(pace))
        await settle()
        assert (pace.running, pace.waiting) == (1, 1)
        with pace._lock:
            pace._leave(next(iter(pace._running)))  # must not wait for the lock
        assert pace.running == 1
        other = task(load(pace))  # who comes next takes it out, and wakes who is first
        async with asyncio.timeout(0.5):
            await asyncio.gather(waits, other)
        await each

    run_virtual(main())
    assert unused(pace)


def test_who_leaves_while_another_looks_is_taken_out_by_it() -> None:
    """The lock is held in that moment, and who leaves does not wait for it."""

    async def story(pace: Pace) -> None:
        original = pace._wait

        def wait(turn: Turn, now: float) -> float:
            for each in list(pace._running):
                pace._leave(each)
            return original(turn, now)

        ended = task(load(pace, 1))
        await settle()
        waits = task(load(pace))
        await settle()
        pace._wait = wait  # type: ignore[method-assign]
        comes = task(load(pace))
        await asyncio.sleep(0)
        pace._wait = original  # type: ignore[method-assign]
        async with asyncio.timeout(0.5):
            await asyncio.gather(waits, comes)
        await ended

    run(story)


def test_two_loops_in_two_threads_share_one_budget() -> None:
    pace = Pace(concurrency=3, rate=None, clock=lambda: 0.0)
    guard = threading.Lock()
    inside = 0
    done: list[int] = []
    errors: list[BaseException] = []

    async def one(chance: random.Random) -> None:
        nonlocal inside
        async with pace.turn():
            with guard:
                inside += 1
                assert inside <= 3
            try:
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
            finally:
                with guard:
                    inside -= 1

    async def main(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(20):
            tasks = [task(one(chance)) for _ in range(50)]
            await asyncio.sleep(0)
            for each in chance.sample(tasks, 10):
                each.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended
        done.append(seed)

    def body(seed: int) -> None:
        try:
            asyncio.run(asyncio.wait_for(main(seed), PATIENCE * 3))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(seed,)) for seed in (1, 2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE * 4)
    assert not errors
    assert sorted(done) == [1, 2]
    assert unused(pace)


def test_it_holds_no_loop_that_has_no_turn() -> None:
    pace = Pace(concurrency=1, rate=None, clock=VirtualClock())
    run_virtual(load(pace, 1))
    gc.collect()
    assert not [each for each in gc.get_referrers(pace) if isinstance(each, Turn)]
    assert not pace._turns


# ---- report and options


def test_its_report_is_json_and_tells_its_state() -> None:
    async def story(pace: Pace) -> None:
        assert pace.report() == {
            "concurrency": 2,
            "limit": 2.0,
            "running": 0,
            "waiting": 0,
            "rate": 10.0,
            "errors": 0,
            "slowed": 0,
        }
        tasks = [task(load(pace, 1, good=False)) for _ in range(4)]
        await asyncio.sleep(0.5)
        assert json.loads(json.dumps(pace.report())) == pace.report()
        assert (pace.report()["running"], pace.report()["waiting"]) == (2, 2)
        await asyncio.wait(tasks)
        assert pace.report()["errors"] == 4

    run(story, concurrency=2, rate=10)


@pytest.mark.parametrize(
    ("concurrency", "error"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), ("3", TypeError), (2.0, TypeError)],
    ids=repr,
)
def test_a_wrong_concurrency_is_refused(concurrency: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"concurrency.* must be an int from 1") as told:
        Pace(concurrency=concurrency, rate=None, clock=VirtualClock())
    if error is ValueError:
        assert f"concurrency={concurrency}" in str(told.value)


@pytest.mark.parametrize(
    ("rate", "error"),
    [
        (0, ValueError),
        (-0.5, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (10**400, ValueError),
        (True, TypeError),
        ("3", TypeError),
        (timedelta(seconds=1), TypeError),
    ],
    ids=repr,
)
def test_a_wrong_rate_is_refused(rate: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"rate.* must be a finite number of load starts per second"):
        Pace(concurrency=1, rate=rate, clock=VirtualClock())


def test_a_concurrency_beyond_all_numbers_is_as_good_as_none() -> None:
    async def story(pace: Pace) -> None:
        await asyncio.gather(*[load(pace, 1) for _ in range(100)])

    run(story, concurrency=10**400)
