"""The explorer itself: it finds known races, tells what failed, and repeats what it ran.

It drives asyncio through private attributes, so all of this runs on each Python version.
"""

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from async_safe_cache.testing import (
    Exhaustive,
    Exploration,
    ExplorationError,
    FakeClock,
    RealWorldError,
    ScheduleMismatchError,
    explore,
    pause,
    replay,
)

# -- self-check: small programs with known races, each found within a stated number of schedules


async def check_then_act() -> None:
    """Two callers see that nothing is there, and both load."""
    cache: dict[str, int] = {}
    loads = 0

    async def get(key: str) -> int:
        nonlocal loads
        if key not in cache:
            await pause()
            loads += 1
            cache[key] = loads
        return cache[key]

    await asyncio.gather(get("a"), get("a"))
    assert loads == 1


async def lock_dropped_too_early() -> None:
    """A lock per key is thrown away by the first who leaves, while others wait for it."""
    locks: dict[str, asyncio.Lock] = {}
    inside = 0

    async def use(key: str) -> None:
        nonlocal inside
        await pause()
        async with locks.setdefault(key, asyncio.Lock()):
            inside += 1
            assert inside == 1
            await pause()
            inside -= 1
            locks.pop(key, None)

    async with asyncio.TaskGroup() as group:
        for each in range(3):
            group.create_task(use("a"), name=f"user-{each}")


async def stale_set_after_delete() -> None:
    """A load that began before a delete stores its value after it."""
    cache: dict[str, int] = {}
    source = 1

    async def load() -> None:
        value = source
        await pause()
        cache["a"] = value

    async def update() -> None:
        nonlocal source
        await pause()
        source = 2
        cache.pop("a", None)

    await asyncio.gather(load(), update())
    assert cache.get("a") in (None, 2)


async def lost_increment() -> None:
    """Read, wait, write: the other's increment is overwritten."""
    total = 0

    async def add() -> None:
        nonlocal total
        seen = total
        await pause()
        total = seen + 1

    await asyncio.gather(add(), add())
    assert total == 2


async def waiter_woken_by_nobody() -> None:
    """The flag is looked at, then awaited: a set in between wakes nobody."""
    waiting: asyncio.Future[None] | None = None
    done = False

    async def wait() -> None:
        nonlocal waiting
        if not done:
            await pause()
            waiting = asyncio.get_running_loop().create_future()
            await waiting

    async def finish() -> None:
        nonlocal done
        await pause()
        done = True
        if waiting is not None:
            waiting.set_result(None)

    await asyncio.gather(wait(), finish())


async def counted_by_the_cancelled() -> None:
    """A counter is decremented after an await that a cancellation never comes back from."""
    running = 0

    async def job() -> None:
        nonlocal running
        running += 1
        await pause()
        await pause()
        running -= 1

    task = asyncio.create_task(job(), name="job")
    await asyncio.wait([task])
    assert running == 0


async def timer_against_answer() -> None:
    """A time-out and the answer fall together; whoever is first must not be undone."""
    state = "waiting"

    async def answer() -> None:
        nonlocal state
        await asyncio.sleep(1.0)
        await pause(0.3)
        state = "answered"

    async def give_up() -> None:
        nonlocal state
        await asyncio.sleep(1.1)
        if state == "waiting":
            await pause(0.3)
            state = "given up"

    await asyncio.gather(answer(), give_up())
    assert state == "answered"


RACES: list[tuple[Any, str, int, str | None]] = [
    # program, policy, within how many schedules, task to cancel
    (check_then_act, "fifo", 1, None),
    (check_then_act, "random", 10, None),
    (check_then_act, "exhaustive", 1, None),
    (lock_dropped_too_early, "fifo", 30, None),
    (lock_dropped_too_early, "random", 60, None),
    (lock_dropped_too_early, "pct", 200, None),
    (lock_dropped_too_early, "exhaustive", 200, None),
    (stale_set_after_delete, "fifo", 10, None),
    (stale_set_after_delete, "random", 10, None),
    (stale_set_after_delete, "pct", 10, None),
    (stale_set_after_delete, "exhaustive", 10, None),
    (lost_increment, "fifo", 1, None),
    (lost_increment, "random", 5, None),
    (waiter_woken_by_nobody, "fifo", 10, None),
    (waiter_woken_by_nobody, "random", 10, None),
    (waiter_woken_by_nobody, "exhaustive", 10, None),
    (counted_by_the_cancelled, "fifo", 10, "job"),
    (counted_by_the_cancelled, "random", 5, "job"),
    (timer_against_answer, "fifo", 400, None),
]


@pytest.mark.parametrize(
    ("program", "policy", "within", "cancel"),
    RACES,
    ids=[f"{each[0].__name__}-{each[1]}" for each in RACES],
)
def test_a_known_race_is_found(program: Any, policy: Any, within: int, cancel: str | None) -> None:
    with pytest.raises(ExplorationError) as caught:
        explore(program, policy=policy, schedules=within, cancel=cancel)
    assert caught.value.explored <= within
    with pytest.raises(ExplorationError) as again:
        replay(program, caught.value.schedule)
    assert again.value.kind == caught.value.kind
    assert again.value.timeline == caught.value.timeline


@pytest.mark.parametrize("program", [stale_set_after_delete, waiter_woken_by_nobody])
def test_asyncios_plain_order_does_not_show_it(program: Any) -> None:
    """The explorer is worth its while: running the program as it is finds nothing."""
    asyncio.run(asyncio.wait_for(program(), 5))


async def right() -> None:
    """Three tasks, one lock: nothing is wrong."""
    lock = asyncio.Lock()
    total = 0

    async def add() -> None:
        nonlocal total
        async with lock:
            seen = total
            await pause()
            total = seen + 1

    async with asyncio.TaskGroup() as group:
        adders = [group.create_task(add(), name=f"adder-{each}") for each in range(3)]
    assert total == 3 - sum(adder.cancelled() for adder in adders)


@pytest.mark.parametrize("policy", ["fifo", "random", "pct", ("fifo", "random", "pct")])
def test_a_right_program_passes_and_the_result_counts(policy: Any) -> None:
    result = explore(right, schedules=150, policy=policy)
    assert result.schedules == 150
    assert 1 <= result.distinct <= 150
    assert not result.exhausted
    assert result.cancel_points == 0
    assert str(result) == f"explored 150 schedules, {result.distinct} distinct, exhausted: no"


def test_reordering_gives_many_distinct_schedules() -> None:
    assert explore(right, schedules=300, policy="random").distinct > 150


# -- exhaustive


async def two_by_two() -> None:
    """Two tasks of two steps each."""

    async def step() -> None:
        await asyncio.sleep(0)

    one, two = asyncio.create_task(step(), name="one"), asyncio.create_task(step(), name="two")
    while not (one.done() and two.done()):
        await asyncio.sleep(0)


def test_exhaustive_says_when_that_was_all() -> None:
    bounded = [explore(right, policy=Exhaustive(n), schedules=100_000) for n in (0, 1, 2)]
    assert [each.exhausted for each in bounded] == [True, True, True]
    assert bounded[0].schedules == bounded[0].distinct == 1
    assert bounded[0].schedules < bounded[1].schedules < bounded[2].schedules
    assert not explore(right, policy="exhaustive", schedules=10).exhausted


def test_exhaustive_runs_every_order_of_independent_steps() -> None:
    """Three tasks of one step after a gate: 3! orders in which they can finish."""
    orders: set[str] = set()

    async def scenario() -> None:
        order: list[str] = []

        async def step(name: str) -> None:
            order.append(name)

        await asyncio.gather(*(step(name) for name in "abc"))
        orders.add("".join(order))

    result = explore(scenario, policy=Exhaustive(None), schedules=10_000)
    assert result.exhausted
    assert orders == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_a_program_without_a_choice_is_exhausted_at_once() -> None:
    async def scenario() -> None:
        await asyncio.sleep(0)

    result = explore(scenario)
    assert (result.exhausted, result.distinct) == (True, 1)
    assert result.schedules <= 3


# -- the same seed, the same runs


@pytest.mark.parametrize("policy", ["fifo", "random", "pct", "exhaustive"])
def test_the_same_seed_gives_the_same_runs(policy: Any) -> None:
    first, second = (explore(right, schedules=60, policy=policy, seed=7) for _ in range(2))
    assert first == second


def test_who_looks_again_and_again_does_not_starve_what_he_waits_for() -> None:
    """As anyio does, when it cancels a group until all its tasks have ended."""
    assert explore(two_by_two, schedules=100, policy="pct").schedules == 100


def test_another_seed_gives_other_runs() -> None:
    prints = {explore(right, schedules=60, policy="random", seed=n).fingerprint for n in range(4)}
    assert len(prints) == 4


def test_the_same_seed_gives_the_same_runs_in_another_process() -> None:
    code = (
        "from tests.test_explorer import right\n"
        "from async_safe_cache.testing import explore\n"
        "print(explore(right, schedules=60, seed=7, cancel='adder-1').fingerprint)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert printed == {str(explore(right, schedules=60, seed=7, cancel="adder-1").fingerprint)}


def test_cancellations_in_a_group_come_in_the_same_order() -> None:
    """A task group cancels its tasks in the order of a set; addresses must not decide it."""

    async def scenario() -> None:
        order: list[int] = []

        async def one(number: int) -> None:
            try:
                await asyncio.sleep(10)
            finally:
                order.append(number)

        async def fail() -> None:
            await asyncio.sleep(1)
            raise KeyError

        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(one(number))
                group.create_task(fail())

    assert explore(scenario, schedules=40, seed=1) == explore(scenario, schedules=40, seed=1)


# -- cancellation at every await


def test_the_chosen_task_is_cancelled_at_each_of_its_awaits() -> None:
    reached: set[int] = set()

    async def scenario() -> None:
        progress = 0

        async def job() -> None:
            nonlocal progress
            for progress in (1, 2, 3, 4):  # noqa: B007
                await asyncio.sleep(0)
            progress = 5

        task = asyncio.create_task(job(), name="job")
        await asyncio.wait([task])
        reached.add(progress)

    result = explore(scenario, cancel="job", schedules=60, policy=("fifo", "random"))
    assert reached == {0, 1, 2, 3, 4, 5}
    assert result.cancel_points >= 10


def test_exhaustive_cancellation_ends() -> None:
    async def scenario() -> None:
        async def job() -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        await asyncio.wait([asyncio.create_task(job(), name="job")])

    result = explore(scenario, cancel="job", policy="exhaustive", schedules=1_000)
    assert result.exhausted
    assert result.cancel_points >= 3


def test_a_task_to_cancel_that_nobody_starts_is_named() -> None:
    with pytest.raises(ValueError, match=r"no task named 'leader'.*adder-0, adder-1, adder-2"):
        explore(right, cancel="leader")


# -- what is wrong with a run


def found(scenario: Any, **options: Any) -> ExplorationError:
    with pytest.raises(ExplorationError) as caught:
        explore(scenario, **options)
    return caught.value


def test_a_deadlock_names_who_waits_where() -> None:
    async def scenario() -> None:
        one, two = asyncio.Lock(), asyncio.Lock()

        async def take(first: asyncio.Lock, second: asyncio.Lock) -> None:
            async with first:
                await pause()
                async with second:
                    pass

        async with asyncio.TaskGroup() as group:
            group.create_task(take(one, two), name="forwards")
            group.create_task(take(two, one), name="backwards")

    error = found(scenario)
    assert error.kind == "deadlock"
    assert "3 wait" in str(error)
    assert re.search(r"forwards at test_explorer\.py:\d+ in .*take", str(error))
    assert "backwards at" in str(error)


def test_a_scenario_that_never_ends_is_a_livelock() -> None:
    async def scenario() -> None:
        async def spin() -> None:
            while True:
                await asyncio.sleep(0)

        await asyncio.create_task(spin(), name="spinner")

    error = found(scenario, max_steps=500)
    assert error.kind == "livelock"
    assert "500 steps" in str(error)
    assert "spinner" in str(error)


def test_a_timer_loop_that_never_ends_is_a_livelock() -> None:
    async def scenario() -> None:
        while True:
            await asyncio.sleep(1)

    assert found(scenario, max_steps=200).kind == "livelock"


def test_tasks_left_behind_are_a_leak() -> None:
    async def scenario() -> None:
        async def forgotten() -> None:
            await asyncio.sleep(100)

        scenario.kept = asyncio.create_task(forgotten(), name="forgotten")  # type: ignore[attr-defined]

    error = found(scenario)
    assert error.kind == "leak"
    assert "forgotten at " in str(error)


def test_a_task_that_refuses_to_be_cancelled_ends_with_the_run() -> None:
    async def scenario() -> None:
        async def stubborn() -> None:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(100)

        scenario.kept = asyncio.create_task(stubborn(), name="stubborn")  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    assert found(scenario).kind == "leak"


def test_what_is_ready_when_the_scenario_ends_may_still_run() -> None:
    async def scenario() -> None:
        async def short() -> None:
            await asyncio.sleep(0)

        scenario.kept = asyncio.create_task(short())  # type: ignore[attr-defined]

    explore(scenario)


def test_an_exception_that_nobody_asked_for_is_unretrieved() -> None:
    async def scenario() -> None:
        async def fail() -> None:
            raise KeyError("lost")

        task = asyncio.create_task(fail(), name="failing")
        await asyncio.sleep(1)
        del task

    error = found(scenario)
    assert error.kind == "unretrieved"
    assert "failing" in str(error)
    assert isinstance(error.cause, KeyError)


def test_an_exception_in_a_callback_is_unretrieved() -> None:
    async def scenario() -> None:
        def callback() -> None:
            raise KeyError("in a callback")

        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)

    assert found(scenario).kind == "unretrieved"


def test_a_group_fails_as_what_is_inside() -> None:
    async def scenario() -> None:
        async def fail() -> None:
            raise KeyError("inside")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    error = found(scenario)
    assert error.kind == "error"
    assert "KeyError: 'inside'" in str(error)


def test_a_scenario_that_is_cancelled_from_inside_has_failed() -> None:
    async def scenario() -> None:
        raise asyncio.CancelledError

    assert found(scenario).kind == "error"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_ends_the_exploration(interrupt: type[BaseException]) -> None:
    async def scenario() -> None:
        raise interrupt

    with pytest.raises(interrupt):
        explore(scenario)
    assert asyncio._get_running_loop() is None


# -- the message


def test_the_message_has_the_cause_the_timeline_and_the_replay_line() -> None:
    error = found(lock_dropped_too_early, policy="random")
    text = str(error)
    assert text.startswith("lock_dropped_too_early fails (error): AssertionError")
    assert f"replay(lock_dropped_too_early, {error.schedule!r})" in text
    assert re.search(r"user-\d +waits at test_explorer\.py:\d+ in \S*use", text)
    assert "raises AssertionError" in text
    assert "seed 0" in text


def test_the_schedule_is_shrunk() -> None:
    """Twenty irrelevant tasks beside the race leave no choice in the schedule that is shown."""

    async def scenario() -> None:
        async def idle() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(idle())
            group.create_task(stale_set_after_delete())

    error = found(scenario, policy="random", schedules=2_000)
    choices = re.findall(r" ([1-9]\d*)/\d+", error.schedule)
    unshrunk = found(scenario, policy="random", schedules=2_000, max_shrinks=0)
    assert len(choices) <= 3
    assert len(re.findall(r" ([1-9]\d*)/\d+", unshrunk.schedule)) > 10


def test_a_long_timeline_shows_its_end() -> None:
    async def scenario() -> None:
        for _ in range(200):
            await asyncio.sleep(0)
        raise KeyError

    error = found(scenario)
    assert "... 141 steps before" in error.timeline
    assert len(error.timeline.splitlines()) == 62


# -- replay


def test_a_schedule_that_does_not_fit_any_more_says_where_it_departs() -> None:
    error = found(lock_dropped_too_early, policy="random")

    async def changed() -> None:
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(7)))

    with pytest.raises(ScheduleMismatchError, match="departs at choice 1, one of 7 where it was"):
        replay(changed, error.schedule)

    async def without_choices() -> None:
        await asyncio.sleep(0)

    with pytest.raises(ScheduleMismatchError, match="departs after 0 choices"):
        replay(without_choices, error.schedule)


def test_a_schedule_whose_steps_are_others_departs_in_who_ran() -> None:
    error = found(lost_increment, policy="random")
    with pytest.raises(ScheduleMismatchError, match="who ran"):
        replay(right, error.schedule.replace("/2", "/3") + "a" * 0 or "order")


def test_a_cancellation_that_is_never_reached_is_a_mismatch() -> None:
    async def scenario() -> None:
        await asyncio.create_task(asyncio.sleep(0), name="job")

    with pytest.raises(ScheduleMismatchError, match="job@7"):
        replay(scenario, "order job@7")


def test_a_repaired_scenario_replays_without_a_failure() -> None:
    async def scenario() -> None:
        assert not scenario.broken  # type: ignore[attr-defined]

    scenario.broken = True  # type: ignore[attr-defined]
    schedule = found(scenario).schedule
    scenario.broken = False  # type: ignore[attr-defined]
    replay(scenario, schedule)


@pytest.mark.parametrize("schedule", ["", "order what", "sideways 1/2", "1/2"])
def test_what_is_no_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(ValueError, match="explore"):
        replay(right, schedule)


def test_a_task_name_with_blanks_survives_in_a_schedule() -> None:
    async def scenario() -> None:
        async def job() -> None:
            await asyncio.sleep(0)

        task = asyncio.create_task(job(), name="the job @ work")
        await asyncio.wait([task])
        assert not task.cancelled()

    error = found(scenario, cancel="the job @ work")
    with pytest.raises(ExplorationError):
        replay(scenario, error.schedule)


# -- virtual time


def test_sleeping_costs_nothing_and_the_clock_is_the_scenarios() -> None:
    times: list[float] = []

    async def scenario(clock: FakeClock) -> None:
        loop = asyncio.get_running_loop()
        assert clock() == loop.time() == 0
        async with asyncio.timeout(86_400):
            await asyncio.sleep(3_600)
        assert clock() == loop.time() >= 3_600
        times.append(clock())

    began = time.perf_counter()
    explore(scenario, policy="random")
    assert set(times) == {3_600}
    explore(scenario, policy="fifo", schedules=30)
    assert max(times) > 3_600  # the step that set the timer took a while
    assert time.perf_counter() - began < 10


def test_a_timeout_comes_in_virtual_time() -> None:
    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()

    explore(scenario, schedules=30)


def test_timers_fire_in_order_and_never_early() -> None:
    async def scenario(clock: FakeClock) -> None:
        fired: list[tuple[float, float]] = []
        loop = asyncio.get_running_loop()
        begin = clock()
        for delay in (3.0, 1.0, 2.0):
            loop.call_at(begin + delay, lambda due=begin + delay: fired.append((due, clock())))
        loop.call_later(0.5, fired.clear).cancel()
        await asyncio.sleep(10)
        assert [due for due, _ in fired] == [1.0, 2.0, 3.0]
        assert all(due <= when for due, when in fired)

    explore(scenario, policy="fifo", schedules=40)


# -- bad input


@pytest.mark.parametrize("scenario", [lambda: None, 5, asyncio.sleep(0), "right"])
def test_what_is_no_coroutine_function_is_refused(scenario: Any) -> None:
    with pytest.raises(TypeError, match="coroutine function"):
        explore(scenario)
    if asyncio.iscoroutine(scenario):
        scenario.close()


def test_a_scenario_with_parameters_of_its_own_is_refused() -> None:
    async def scenario(one: object, two: object) -> None: ...

    with pytest.raises(TypeError, match="FakeClock"):
        explore(scenario)  # type: ignore[arg-type]


def test_an_object_with_an_async_call_is_a_scenario() -> None:
    class Scenario:
        async def __call__(self, clock: FakeClock) -> None:
            assert clock() == 0

    explore(Scenario())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"schedules": 0}, ValueError),
        ({"schedules": True}, TypeError),
        ({"schedules": 1.5}, TypeError),
        ({"seed": "x"}, TypeError),
        ({"max_steps": 0}, ValueError),
        ({"max_shrinks": -1}, ValueError),
        ({"policy": "lifo"}, ValueError),
        ({"policy": ()}, ValueError),
        ({"policy": 5}, TypeError),
        ({"policy": ["random", 5]}, ValueError),
        ({"cancel": 5}, TypeError),
        ({"cancel": ""}, TypeError),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        explore(right, **options)


@pytest.mark.parametrize("preemptions", [-1, True])
def test_a_wrong_bound_is_named(preemptions: Any) -> None:
    with pytest.raises(ValueError, match="preemptions"):
        Exhaustive(preemptions)


def test_inside_a_running_loop_it_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="plain function"):
            explore(right)

    asyncio.run(main())


def connect() -> None:
    with socket.socket() as plug:
        plug.connect(("127.0.0.1", 9))


REAL: dict[str, Any] = {
    "run_in_executor": lambda: asyncio.to_thread(int),
    "threading.Thread": lambda: threading.Thread(target=int).start(),
    "time.sleep": lambda: time.sleep(0.001),
    "socket.connect": connect,
    "create_connection": lambda: asyncio.open_connection("127.0.0.1", 9),
    "getaddrinfo": lambda: asyncio.get_running_loop().getaddrinfo("localhost", 9),
    "subprocess_exec": lambda: asyncio.create_subprocess_exec("true"),
    "add_reader": lambda: asyncio.get_running_loop().add_reader(0, int),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_world_is_refused_by_name_even_if_the_error_is_caught(name: str) -> None:
    caught: list[Exception] = []

    async def scenario() -> None:
        try:
            answer = REAL[name]()
            if asyncio.iscoroutine(answer):
                await answer
        except RealWorldError as error:
            caught.append(error)

    error = found(scenario)
    assert error.kind == "real world"
    assert name in str(error)
    assert caught


def test_other_threads_may_sleep_meanwhile() -> None:
    """What is refused is refused in this thread, and only while it explores."""
    slept: list[bool] = []
    go = threading.Event()

    def other() -> None:
        go.wait(5)
        time.sleep(0.001)
        slept.append(True)

    thread = threading.Thread(target=other)
    thread.start()

    async def scenario() -> None:
        go.set()
        while not slept:
            await asyncio.sleep(0)

    with contextlib.suppress(ExplorationError):  # the second run takes other steps, of course
        explore(scenario, schedules=1, max_steps=100_000_000)
    thread.join()
    assert slept
    time.sleep(0)
    assert time.sleep.__module__ == "time"
    assert "start" in vars(threading.Thread)
    assert "connect" not in vars(socket.socket)


def test_a_wake_from_another_thread_is_refused() -> None:
    refused: list[Exception] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        def other() -> None:
            try:
                loop.call_soon_threadsafe(int)
            except RealWorldError as error:
                refused.append(error)

        requests.append(other)
        while not refused:
            await asyncio.sleep(0)

    requests: list[Any] = []
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            while requests:
                requests.pop()()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        assert found(scenario, max_steps=100_000_000, max_shrinks=0).kind == "real world"
    finally:
        stop.set()
        thread.join()


def test_state_that_outlives_the_scenario_is_noticed() -> None:
    seen: list[int] = []

    async def scenario() -> None:
        seen.append(1)
        for _ in seen:
            await asyncio.sleep(0)

    error = found(scenario)
    assert "run twice" in str(error)


def test_nothing_is_left_in_the_thread() -> None:
    explore(right, schedules=5)
    assert asyncio._get_running_loop() is None
    assert sys.get_asyncgen_hooks() == (None, None)
    asyncio.run(right())


def test_an_abandoned_async_generator_is_closed_in_its_loop() -> None:
    closed: list[bool] = []

    async def scenario() -> None:
        async def numbers() -> Any:
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                closed.append(True)

        async for _ in numbers():
            break
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    explore(scenario, schedules=3)
    assert closed


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks exist from Python 3.12 on")
def test_eager_tasks_may_be_used() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        ran: list[int] = []

        async def eager() -> None:
            ran.append(1)
            await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(eager())
            assert ran

    explore(scenario, schedules=20)


def test_an_exploration_is_a_frozen_record() -> None:
    result = explore(right, schedules=3)
    assert isinstance(result, Exploration)
    with pytest.raises(AttributeError):
        result.schedules = 5  # type: ignore[misc]


def test_a_clock_goes_forward_only() -> None:
    clock = FakeClock(5)
    clock.advance(2.5)
    assert clock() == clock.now == 7.5
    for wrong in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="forward"):
            clock.advance(wrong)
    assert repr(clock) == "<FakeClock at 7.5 s>"
