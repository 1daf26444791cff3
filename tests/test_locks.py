"""Locks per key: exclusion, order, no deadlock, nothing left behind; in tasks, loops, threads."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from async_safe_cache import LockDeadlockError, LockGrant
from async_safe_cache._flights import Flight, current_flight
from async_safe_cache._locks import Locks
from async_safe_cache.testing import explore, pause

from .virtual import at_once, run_virtual, settle

PATIENCE = 10.0
"""Seconds after which a test of threads gives up; none of them waits for any."""


def empty(locks: Locks) -> bool:
    locks.check()
    return not (locks._places or locks._requests or locks._left)


def with_locks(main: Callable[[Locks], Coroutine[Any, Any, Any]]) -> None:
    """Run *main* in virtual time; afterwards nothing is held and nothing remembered."""
    locks = Locks()

    async def body() -> None:
        await main(locks)
        await settle()
        assert empty(locks)

    run_virtual(body())


class Story:
    """Who entered and left, in order; tells when two are inside that must not be."""

    def __init__(self, locks: Locks) -> None:
        self.locks = locks
        self.events: list[str] = []
        self.inside: list[tuple[str, bool]] = []
        self.tokens: dict[tuple[str, bool], int] = {}

    async def hold(self, name: str, *keys: str, shared: bool = False, seconds: float = 1) -> None:
        async with self.locks.holding(keys, shared=shared) as grant:
            self.enter(name, keys, shared, grant)
            try:
                await asyncio.sleep(seconds)
            finally:
                self.leave(name, keys, shared)

    def enter(self, name: str, keys: tuple[str, ...], shared: bool, grant: LockGrant) -> None:
        self.locks.check()
        for key in keys:
            beside = [alike for other, alike in self.inside if other == key]
            assert not beside or (shared and all(beside)), f"{name} is not alone with {key}"
            self.inside.append((key, shared))
            # Readers beside each other may wake in any order.
            for alike in (False,) if shared else (False, True):
                assert grant.token > self.tokens.get((key, alike), 0), f"{name} is late at {key}"
            self.tokens[key, shared] = max(grant.token, self.tokens.get((key, shared), 0))
        self.events.append(f"+{name}")

    def leave(self, name: str, keys: tuple[str, ...], shared: bool) -> None:
        for key in keys:
            self.inside.remove((key, shared))
        self.events.append(f"-{name}")


def task(coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    return asyncio.get_running_loop().create_task(coroutine)


async def results(*tasks: "asyncio.Task[Any]") -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 3600)


# -- one key


def test_an_uncontended_lock_takes_no_turn_of_the_loop() -> None:
    async def main(locks: Locks) -> None:
        block = locks.holding(["a"])
        entering = block.__aenter__()
        with pytest.raises(StopIteration) as stop:
            entering.send(None)
        assert stop.value.value == LockGrant(token=1, ttl=None)
        await block.__aexit__(None, None, None)
        assert locks.waits.count == 0

    with_locks(main)


def test_writers_of_a_key_are_alone_and_enter_in_the_order_of_asking() -> None:
    async def main(locks: Locks) -> None:
        story = Story(locks)
        await results(*(task(story.hold(f"{n}", "a")) for n in range(4)))
        assert story.events == ["+0", "-0", "+1", "-1", "+2", "-2", "+3", "-3"]
        assert locks.waits.count == 3
        assert (locks.waits.total, locks.waits.longest) == (1 + 2 + 3, 3)

    with_locks(main)


def test_readers_share_a_key_and_a_writer_is_alone() -> None:
    async def main(locks: Locks) -> None:
        story = Story(locks)
        await results(
            task(story.hold("r1", "a", shared=True)),
            task(story.hold("r2", "a", shared=True)),
            task(story.hold("w", "a")),
        )
        assert story.events == ["+r1", "+r2", "-r1", "-r2", "+w", "-w"]

    with_locks(main)


def test_readers_of_a_key_come_after_the_writer_that_waits_and_together() -> None:
    """Neither starves: overlapping readers leave a gap for a writer, and writers for readers."""

    async def main(locks: Locks) -> None:
        story = Story(locks)
        await results(
            task(story.hold("r1", "a", shared=True)),
            task(story.hold("w1", "a")),
            task(story.hold("r2", "a", shared=True)),
            task(story.hold("r3", "a", shared=True)),
            task(story.hold("w2", "a")),
            task(story.hold("r4", "a", shared=True)),
        )
        assert [each for each in story.events if each[0] == "+"] == [
            "+r1", "+w1", "+r2", "+r3", "+w2", "+r4",
        ]  # fmt: skip

    with_locks(main)


def test_other_keys_do_not_wait() -> None:
    async def main(locks: Locks) -> None:
        story = Story(locks)
        await results(task(story.hold("one", "a")), task(story.hold("two", "b")))
        assert story.events[:2] == ["+one", "+two"]

    with_locks(main)


# -- several keys


def test_several_keys_are_held_together_each_once() -> None:
    async def main(locks: Locks) -> None:
        story = Story(locks)
        async with locks.holding(["a", "b", "a"]):
            tasks = [task(story.hold(key, key)) for key in "abc"]
            await settle()
            assert story.events == ["+c"]
        await results(*tasks)

    with_locks(main)


def test_lock_a_b_and_lock_b_a_do_not_deadlock() -> None:
    """Keys of any kind, that have no order of their own."""

    async def main(locks: Locks) -> None:
        story = Story(locks)
        keys: list[Any] = ["a", 1, None, (2.0, b"x"), frozenset({1})]
        await results(
            *(task(story.hold(f"{n}", *keys[n % 5 :], *keys[: n % 5])) for n in range(10))
        )
        assert len(story.events) == 20

    with_locks(main)


def test_a_request_for_several_keys_is_not_overtaken_for_ever() -> None:
    """Both keys are never free together unless those who come later wait for it."""

    async def main(locks: Locks) -> None:
        story = Story(locks)
        tasks = [task(story.hold("a0", "a", seconds=2))]
        await asyncio.sleep(1)
        tasks += [task(story.hold("b0", "b", seconds=2)), task(story.hold("both", "a", "b"))]
        tasks += [task(story.hold(f"{key}{n}", key)) for n in range(1, 9) for key in "ab"]
        await results(*tasks)
        assert story.events.index("+both") == 4  # after those who were there before

    with_locks(main)


def test_a_lock_of_nothing_is_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        Locks().holding([])


# -- who would wait for himself


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_a_task_that_asks_for_what_it_holds_is_told(first: bool, second: bool) -> None:
    """An upgrade from reader to writer, too; and whether somebody waits or not."""

    async def main(locks: Locks) -> None:
        async with locks.holding(["a"], shared=first):
            with pytest.raises(LockDeadlockError) as caught:
                async with locks.holding(["b", "a"], shared=second):
                    pytest.fail("it entered")
            assert caught.value.held
            async with locks.holding(["b"]):
                pass
        async with locks.holding(["a"]):
            pass

    with_locks(main)


def test_a_load_that_asks_for_what_its_caller_holds_is_told() -> None:
    """The caller waits for it. A plain child task is only another task, which waits."""

    async def main(locks: Locks) -> None:
        async def load() -> None:
            current_flight.set(Flight((None, "key"), "load", asyncio.get_running_loop()))
            async with locks.holding(["b"]), locks.holding(["a"]):
                pytest.fail("it entered")

        async def child() -> str:
            async with locks.holding(["a"]):
                return "later"

        async with locks.holding(["a"]):
            with pytest.raises(LockDeadlockError):
                await task(load())
            waiting = task(child())
            await settle()
        assert await waiting == "later"

    with_locks(main)


def test_a_load_whose_caller_left_may_ask() -> None:
    async def main(locks: Locks) -> None:
        async def load() -> str:
            current_flight.set(Flight((None, "key"), "load", asyncio.get_running_loop()))
            await asyncio.sleep(1)
            async with locks.holding(["a"]):
                return "loaded"

        async with locks.holding(["a"]):
            loading = task(load())
        assert await loading == "loaded"

    with_locks(main)


async def ring(locks: Locks, size: int, *, shared: bool = False) -> list[Any]:
    """Each task holds its key and asks for that of the next."""
    ready = asyncio.Barrier(size)

    async def one(place: int) -> str:
        async with locks.holding([place], shared=shared):
            await ready.wait()
            async with locks.holding([(place + 1) % size]):
                return "both"

    return await results(*(task(one(place)) for place in range(size)))


@pytest.mark.parametrize("size", [2, 3, 10])
@pytest.mark.parametrize("shared", [True, False])
def test_a_cycle_of_nested_blocks_is_broken_by_one_error(size: int, shared: bool) -> None:
    async def main(locks: Locks) -> None:
        ended = await ring(locks, size, shared=shared)
        errors = [each for each in ended if each != "both"]
        assert len(errors) == 1
        assert isinstance(errors[0], LockDeadlockError)
        assert not errors[0].held

    with_locks(main)


def test_a_cycle_through_a_queue_is_found() -> None:
    """A reader waits behind a writer, which waits for a reader, which asks for the first's key."""

    async def main(locks: Locks) -> None:
        story = Story(locks)

        async def first() -> None:
            async with locks.holding(["b"]):
                await asyncio.sleep(1)
                await story.hold("first", "a", shared=True)

        async def second() -> None:
            async with locks.holding(["a"], shared=True):
                await asyncio.sleep(2)
                await story.hold("second", "b")

        one, two = task(first()), task(second())
        await settle()
        writer = task(story.hold("writer", "a"))
        ended = await results(one, two, writer)
        assert [type(each) for each in ended] == [type(None), LockDeadlockError, type(None)]
        assert story.events[0] == "+writer"

    with_locks(main)


def test_a_cycle_through_a_load_is_found() -> None:
    """P holds a and waits for its load, which asks for b; Q holds b and asks for a."""

    async def main(locks: Locks) -> None:
        story = Story(locks)

        async def load() -> None:
            current_flight.set(Flight((None, "key"), "load", asyncio.get_running_loop()))
            await story.hold("load", "b")

        async def caller() -> None:
            async with locks.holding(["a"]):
                await asyncio.sleep(1)
                await task(load())

        async def other() -> None:
            async with locks.holding(["b"]):
                await asyncio.sleep(2)
                await story.hold("other", "a")

        ended = await results(task(caller()), task(other()))
        assert [type(each) for each in ended] == [type(None), LockDeadlockError]
        assert story.events == ["+load", "-load"]

    with_locks(main)


def test_waiting_from_inside_a_block_is_no_deadlock_by_itself() -> None:
    """Two readers of one key beside each other, and a chain that has an end."""

    async def main(locks: Locks) -> None:
        story = Story(locks)

        async def nested(outer: str, inner: str, seconds: float) -> None:
            async with locks.holding([outer], shared=True):
                await asyncio.sleep(seconds)
                await story.hold(outer + inner, inner, shared=True)

        ended = await results(
            task(story.hold("end", "d", seconds=9)),
            task(nested("a", "b", 1)),
            task(nested("b", "a", 1)),
            task(nested("c", "d", 1)),
            task(story.hold("writer", "a", "d")),
        )
        assert ended == [None] * 5

    with_locks(main)


def test_a_thousand_tasks_that_hold_and_wait_for_one_key_are_looked_through_fast() -> None:
    """Each ask looks through those who wait once, not each of them for each other."""
    locks = Locks()

    async def main() -> None:
        async def one(number: int) -> None:
            async with locks.holding([number]), locks.holding(["all"]):
                pass

        async with locks.holding(["all"]):
            tasks = [task(one(number)) for number in range(1000)]
            begin = time.process_time()
            await settle(2)
            spent = time.process_time() - begin
        await asyncio.gather(*tasks)
        assert spent < 5  # 0.2 s; 100 s when each looks through the queue of each

    asyncio.run(main())
    assert empty(locks)


# -- leaving


def test_a_cancelled_waiter_lets_those_behind_it_in() -> None:
    async def main(locks: Locks) -> None:
        story = Story(locks)
        reader = task(story.hold("r1", "a", shared=True))
        await settle()
        writer = task(story.hold("w", "a", "b"))
        await settle()
        behind = [task(story.hold("r2", "a", shared=True)), task(story.hold("b", "b"))]
        await settle()
        assert story.events == ["+r1"]
        writer.cancel()
        await settle()
        assert story.events == ["+r1", "+r2", "+b"]
        await results(reader, writer, *behind)
        assert writer.cancelled()

    with_locks(main)


def test_a_grant_that_meets_a_cancellation_is_given_back() -> None:
    async def main(locks: Locks) -> None:
        story = Story(locks)
        async with locks.holding(["a"]):
            waiting = task(story.hold("gone", "a"))
            await settle()
        waiting.cancel()  # it is granted, and has not run
        await results(waiting)
        assert story.events == []
        await story.hold("next", "a")

    with_locks(main)


def test_an_exception_inside_the_block_gives_the_lock_back() -> None:
    async def main(locks: Locks) -> None:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                async with locks.holding(["a"]):
                    raise ZeroDivisionError

    with_locks(main)


def test_a_block_is_entered_once_by_a_task_and_left_by_the_same() -> None:
    async def main(locks: Locks) -> None:
        block = locks.holding(["a"])
        with pytest.raises(RuntimeError, match="not entered"):
            await block.__aexit__(None, None, None)
        async with block:
            with pytest.raises(RuntimeError, match="by no other"):
                await task(block.__aexit__(None, None, None))
            waiting = task(Story(locks).hold("next", "a"))
            await settle()
            assert not waiting.done()
        with pytest.raises(RuntimeError, match="entered before"):
            await block.__aenter__()
        await waiting

        answers: list[BaseException] = []

        def no_task() -> None:
            try:
                at_once(locks.holding(["a"]).__aenter__())
            except RuntimeError as error:
                answers.append(error)

        asyncio.get_running_loop().call_soon(no_task)
        await settle()
        assert "belongs to a task" in str(answers)

    with_locks(main)


@pytest.mark.parametrize("ended", [True, False])
def test_a_generator_closed_in_another_task_gives_the_lock_back(ended: bool) -> None:
    """By aclose, or to its end when the task that began it is over (a fixture of a test)."""

    async def main(locks: Locks) -> None:
        async def rows() -> Any:
            async with locks.holding(["a"]):
                yield 1

        generator = rows()
        await task(anext(generator)) if ended else await anext(generator)
        if ended:
            with pytest.raises(StopAsyncIteration):
                await anext(generator)
        else:
            await task(generator.aclose())
        async with locks.holding(["a"]):
            pass

    with_locks(main)


def test_the_grant_is_frozen_and_tokens_grow() -> None:
    async def main(locks: Locks) -> None:
        tokens = []
        for key in "abab":
            async with locks.holding([key], shared=key == "b") as grant:
                tokens.append(grant.token)
        assert tokens == sorted(set(tokens))
        with pytest.raises(FrozenInstanceError):
            grant.token = 0  # type: ignore[misc]

    with_locks(main)


# -- loops and threads


def test_loops_in_threads_exclude_each_other() -> None:
    locks = Locks()
    inside, most, entered = 0, 0, 0

    async def work() -> None:
        nonlocal inside, most, entered

        async def one(place: int) -> None:
            nonlocal inside, most, entered
            keys = ["a", "b"] if place % 2 else ["b", "a"]
            for _ in range(40):
                async with locks.holding(keys):
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0)
                    entered += 1
                    inside -= 1

        await asyncio.gather(*(one(place) for place in range(4)))

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (inside, most, entered) == (0, 1, 480)
    assert empty(locks)


class Elsewhere:
    """A loop that another loop's test drives, in this thread, and may let die."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.task: Any = None

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.task = self.loop.create_task(coroutine)
        self.run()

    def run(self) -> None:
        self.loop.run_until_complete(settle())

    def die(self) -> None:
        """Close the loop without ending its tasks."""
        self.task._log_destroy_pending = False
        self.loop.close()


def test_a_holder_whose_loop_is_closed_is_gone() -> None:
    """Whoever asks next takes over at once; what the dead one held besides is free, too."""
    locks, story = Locks(), Story(Locks())
    story.locks = locks
    elsewhere = Elsewhere()

    async def for_ever() -> None:
        async with locks.holding(["a"]), locks.holding(["b"]):
            await asyncio.get_running_loop().create_future()

    elsewhere.start(for_ever())
    elsewhere.die()
    run_virtual(story.hold("heir", "a", "b"))
    assert story.events == ["+heir", "-heir"]
    assert empty(locks)
    del elsewhere
    gc.collect()  # the dead one's frames are closed now, and give nothing back twice
    assert empty(locks)


def test_who_waits_for_a_loop_that_dies_takes_over_within_a_second() -> None:
    locks, story = Locks(), Story(Locks())
    story.locks = locks
    elsewhere = Elsewhere()
    elsewhere.start(Story(locks).hold("dead", "a", seconds=3600))

    async def main() -> None:
        begin = asyncio.get_running_loop().time()
        tasks = [task(story.hold("one", "a", seconds=0)), task(story.hold("two", "a", seconds=0))]
        await asyncio.sleep(1.5)
        assert story.events == []
        elsewhere.die()
        await results(*tasks)
        assert asyncio.get_running_loop().time() - begin == pytest.approx(2)
        assert story.events == ["+one", "-one", "+two", "-two"]

    run_virtual(main())
    assert empty(locks)


def test_what_a_dead_loop_left_behind_goes_when_the_next_loop_comes() -> None:
    """A key that nobody asks for again does not stay for ever."""
    locks = Locks()
    elsewhere = Elsewhere()
    elsewhere.start(Story(locks).hold("dead", "a", seconds=3600))
    elsewhere.die()
    assert locks._places
    run_virtual(Story(locks).hold("other", "b"))
    assert empty(locks)


def test_a_block_that_the_collector_closes_inside_the_lock_blocks_nobody() -> None:
    """It hands over its request to whoever has the lock, be it this very thread."""
    locks = Locks()
    elsewhere = Elsewhere()
    elsewhere.start(Story(locks).hold("lost", "a", seconds=3600))
    with locks._changing():
        elsewhere.task.cancel()
        elsewhere.run()  # leaves here
        assert locks._places
    assert empty(locks)
    elsewhere.loop.close()


def test_a_forked_child_holds_nothing() -> None:
    async def main(locks: Locks) -> None:
        async with locks.holding(["a"]) as before:
            locks.forget()
            async with locks.holding(["a"]) as after:
                assert after.token > before.token
            assert empty(locks)

    with_locks(main)


def test_check_finds_what_must_not_be() -> None:
    async def main(locks: Locks) -> None:
        async with locks.holding(["a"]):
            place = locks._places["a"]
            held = dict(place.held)
            for wrong in ({}, {**held, object(): None}):
                place.held = wrong  # type: ignore[assignment]
                with pytest.raises((AssertionError, AttributeError)):
                    locks.check()
            place.held = held

    with_locks(main)


# -- all orders

NAMES = ("one", "two", "three")


def program(*asks: tuple[tuple[str, ...], bool]) -> Callable[[], Coroutine[Any, Any, None]]:
    """Return a scenario: each task holds its keys for a while."""

    async def scenario() -> None:
        locks = Locks()
        story = Story(locks)

        async def one(name: str, keys: tuple[str, ...], shared: bool) -> None:
            await pause()
            async with locks.holding(keys, shared=shared) as grant:
                story.enter(name, keys, shared, grant)
                try:
                    await pause(0.3)
                finally:
                    story.leave(name, keys, shared)

        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(one(name, *ask), name=name)
            for name, ask in zip(NAMES, asks, strict=True)
        ]
        await asyncio.wait(tasks)
        for each in tasks:
            if not each.cancelled():
                each.result()
        assert empty(locks)

    return scenario


PROGRAMS = {
    "one key": program((("a",), False), (("a",), False), (("a",), False)),
    "readers and a writer": program((("a",), True), (("a",), False), (("a",), True)),
    "a b and b a": program((("a", "b"), False), (("b", "a"), False), (("b",), True)),
    "a ring of pairs": program((("a", "b"), False), (("b", "c"), True), (("c", "a"), False)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_locks_hold_in_all_orders(name: str) -> None:
    explore(PROGRAMS[name], schedules=300)
    explore(PROGRAMS[name], schedules=300, policy="exhaustive")


@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_task_cancelled_at_any_await_leaves_nothing_behind(name: str, victim: str) -> None:
    assert explore(PROGRAMS[name], schedules=150, cancel=victim).cancel_points > 20


async def nested_both_ways() -> None:
    """Two tasks nest their blocks in opposite orders: nobody hangs, at most one is told."""
    locks = Locks()
    story = Story(locks)

    async def one(outer: str, inner: str) -> None:
        await pause()
        async with locks.holding([outer]):
            await pause()
            async with locks.holding([inner]) as grant:
                story.enter(outer, (outer, inner), False, grant)
                await pause()
                story.leave(outer, (outer, inner), False)

    ended = await asyncio.gather(one("a", "b"), one("b", "a"), return_exceptions=True)
    told = [each for each in ended if each is not None]
    assert len(told) <= 1
    assert all(isinstance(each, LockDeadlockError) for each in told)
    assert empty(locks)


def test_nested_blocks_in_opposite_orders_never_hang() -> None:
    explore(nested_both_ways, schedules=400)
    explore(nested_both_ways, schedules=400, policy="exhaustive")


def test_many_keys_and_modes_at_random_from_nested_blocks_never_hang() -> None:
    """Whatever is nested: each ends, with its lock or with the error."""
    import random

    for seed in range(60):
        chance = random.Random(seed)

        async def main(locks: Locks, chance: random.Random = chance) -> None:
            async def one() -> None:
                async with AsyncExitStack() as stack:
                    for _ in range(chance.randint(1, 4)):
                        keys = chance.sample("abcde", chance.randint(1, 2))
                        shared = chance.random() < 0.4
                        with contextlib.suppress(LockDeadlockError):
                            await stack.enter_async_context(locks.holding(keys, shared=shared))
                        locks.check()
                        await asyncio.sleep(chance.random())

            tasks = [task(one()) for _ in range(12)]
            await asyncio.sleep(2 * chance.random())
            for each in chance.sample(tasks, 3):
                each.cancel()
            ended = await results(*tasks)
            assert {type(each) for each in ended} <= {type(None), asyncio.CancelledError}

        with_locks(main)
