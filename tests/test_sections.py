"""Read sections: who writes in a loop waits for them, a while; and each fault of aiorwlock."""

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from async_safe_cache import ReadOnlySectionError
from async_safe_cache._flights import Flight, current_flight
from async_safe_cache._rwlock import Sections
from async_safe_cache.testing import explore, pause

from .virtual import at_once, run_virtual, settle

WAIT = 0.1


def with_sections(main: Callable[[Sections], Coroutine[Any, Any, Any]], wait: float = WAIT) -> None:
    """Run *main* in virtual time; afterwards no section is open and nobody waits."""
    sections = Sections(wait)

    async def body() -> None:
        await main(sections)
        await settle()
        sections.check()
        assert sections.open == 0
        assert nobody_is_in_the_gate(sections)

    run_virtual(body())


def nobody_is_in_the_gate(sections: Sections) -> bool:
    """The frames of a cancelled task, kept by its exception, may hold the gate, empty."""
    gate = sections._gate(asyncio.get_running_loop())
    return gate is None or not (gate.holders or gate.writers or gate.readers or gate.writing)


def now() -> float:
    return asyncio.get_running_loop().time()


class Story:
    """What happened, in order; and tasks that read or write after some seconds."""

    def __init__(self, sections: Sections) -> None:
        self.sections = sections
        self.begin = now()
        self.events: list[tuple[str, float]] = []

    def tell(self, what: str) -> None:
        self.sections.check()
        self.events.append((what, round(now() - self.begin, 6)))

    async def read(self, name: str, seconds: float, after: float = 0) -> None:
        await asyncio.sleep(after)
        async with self.sections.reading():
            self.tell(f"{name} opens")
            await asyncio.sleep(seconds)
        self.tell(f"{name} closed")

    async def write(self, name: str, after: float = 0) -> None:
        await asyncio.sleep(after)
        async with self.sections.writing():
            self.tell(f"{name} writes")


async def together(*coroutines: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for coroutine in coroutines:
            group.create_task(coroutine)


# -- the writer's side


def test_without_a_section_a_write_takes_no_step_and_needs_no_loop() -> None:
    sections = Sections(WAIT)

    async def write() -> str:
        async with sections.writing():
            return "written"

    assert at_once(write()) == "written"
    sections.refuse()
    assert (sections.open, sections.waits.count) == (0, 0)


def test_a_writer_waits_until_the_last_section_closes() -> None:
    async def main(sections: Sections) -> None:
        story = Story(sections)
        await together(
            story.read("one", 0.02), story.read("two", 0.05), story.write("writer", after=0.01)
        )
        assert story.events[2:] == [
            ("one closed", 0.02), ("two closed", 0.05), ("writer writes", 0.05),
        ]  # fmt: skip
        assert sections.waits.count == 1
        assert sections.waits.total == sections.waits.longest == pytest.approx(0.04)

    with_sections(main)


def test_a_writer_waits_no_longer_than_section_wait() -> None:
    async def main(sections: Sections) -> None:
        story = Story(sections)
        await together(story.read("reader", 60), story.write("writer"))
        assert story.events[1] == ("writer writes", WAIT)

    with_sections(main)


def test_with_a_wait_of_zero_nobody_waits() -> None:
    async def main(sections: Sections) -> None:
        story = Story(sections)
        await together(story.read("reader", 60), story.write("writer"), story.read("late", 1))
        assert story.events[:3] == [("reader opens", 0), ("writer writes", 0), ("late opens", 0)]
        assert sections.waits.count == 0

    with_sections(main, wait=0)


def test_a_section_of_another_loop_holds_up_nobody() -> None:
    sections = Sections(WAIT)
    opened, done = threading.Event(), threading.Event()

    async def read() -> None:
        async with sections.reading():
            opened.set()
            while not done.is_set():
                await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: asyncio.run(read()))
    thread.start()
    assert opened.wait(10)

    async def write() -> None:
        sections.refuse()
        async with sections.writing():
            assert sections.open == 1

    async def both() -> None:
        at_once_here = write()
        with pytest.raises(StopIteration):
            at_once_here.send(None)  # not one suspension

    asyncio.run(both())
    done.set()
    thread.join()
    assert (sections.open, sections.waits.count) == (0, 0)
    sections.check()


def test_two_loops_read_and_write_at_once_and_the_count_stays_true() -> None:
    sections = Sections(0.001)

    async def work() -> None:
        async def one() -> None:
            for _ in range(60):
                async with sections.reading():
                    await asyncio.sleep(0)
                async with sections.writing():
                    pass

        await together(*(one() for _ in range(5)))

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sections.open == 0
    sections.check()


def test_a_write_of_the_task_that_holds_the_section_is_refused() -> None:
    async def main(sections: Sections) -> None:
        async with sections.reading():
            async with sections.reading():
                pass
            with pytest.raises(ReadOnlySectionError):
                sections.refuse()
            with pytest.raises(ReadOnlySectionError):
                async with sections.writing():
                    pytest.fail("it wrote")
            asyncio.get_running_loop().call_soon(sections.refuse)  # no task: nothing
            await settle()
        sections.refuse()
        async with sections.writing():
            pass

    with_sections(main)


def test_a_child_task_is_another_task() -> None:
    """Its write is not refused; its parent awaits it, so it waits as long as any, and goes on."""

    async def main(sections: Sections) -> None:
        story = Story(sections)

        async def child() -> None:
            sections.refuse()
            await story.write("child")

        async with sections.reading():
            await asyncio.create_task(child())
        assert story.events == [("child writes", WAIT)]

    with_sections(main)


def test_a_load_never_waits() -> None:
    """Neither to write beside a section, nor to open one behind a writer."""

    async def main(sections: Sections) -> None:
        story = Story(sections)

        async def load() -> None:
            current_flight.set(Flight((None, "key"), "load", asyncio.get_running_loop()))
            await story.write("load", after=0.01)
            await story.read("load", 0.5)

        await together(story.read("reader", 1), story.write("writer"), load())
        assert story.events[:4] == [
            ("reader opens", 0), ("load writes", 0.01), ("load opens", 0.01),
            ("writer writes", WAIT),
        ]  # fmt: skip

    with_sections(main)


def test_a_load_that_ended_waits_as_others_do() -> None:
    async def main(sections: Sections) -> None:
        story = Story(sections)

        async def leftover() -> None:
            flight = Flight((None, "key"), "load", asyncio.get_running_loop())
            flight.done = True
            current_flight.set(flight)
            await story.write("leftover")

        await together(story.read("reader", 1), leftover())
        assert ("leftover writes", WAIT) in story.events

    with_sections(main)


def test_a_plain_load_in_the_task_of_a_section_may_write() -> None:
    """It runs in its caller's task, and is no part of the section; one of its own binds it."""

    async def main(sections: Sections) -> None:
        async with sections.reading():
            token = current_flight.set(Flight((None, "key"), "load", None))
            sections.refuse()
            async with sections.reading():
                with pytest.raises(ReadOnlySectionError):
                    sections.refuse()
            sections.refuse()
            current_flight.reset(token)
            with pytest.raises(ReadOnlySectionError):
                sections.refuse()

    with_sections(main)


# -- the reader's side


def test_a_new_section_lets_the_waiting_writers_go_first() -> None:
    async def main(sections: Sections) -> None:
        story = Story(sections)
        await together(
            story.read("early", 0.05),
            story.write("one", after=0.01),
            story.write("two", after=0.02),
            story.read("late", 0, after=0.03),
        )
        assert [what for what, _ in story.events] == [
            "early opens", "early closed", "one writes", "two writes", "late opens", "late closed",
        ]  # fmt: skip
        assert sections.waits.count == 3

    with_sections(main)


def test_readers_under_back_to_back_writers_do_not_starve() -> None:
    """The fault: with a writer always waiting, a reader of aiorwlock never gets in."""

    async def main(sections: Sections) -> None:
        story = Story(sections)
        stop = False

        async def writers() -> None:
            while not stop:
                await asyncio.sleep(0.001)
                asyncio.get_running_loop().create_task(story.write("writer"))

        busy = asyncio.create_task(writers())
        await story.read("early", 0.05)
        begin = now()
        # Sections that overlap, so that writers wait always.
        readers = [asyncio.create_task(story.read(f"{n}", 0.05, n * 0.02)) for n in range(50)]
        await asyncio.wait(readers)
        stop = True
        await busy
        await asyncio.sleep(2 * WAIT)
        opened = dict(story.events)
        late = [opened[f"{n} opens"] - (begin - story.begin + n * 0.02) for n in range(50)]
        assert max(late) <= WAIT + 1e-6
        assert sections.waits.longest <= WAIT + 1e-6

    with_sections(main)


def test_writers_under_overlapping_readers_do_not_starve() -> None:
    async def main(sections: Sections) -> None:
        story = Story(sections)
        readers = [story.read(f"{n}", 0.03, n * 0.01) for n in range(50)]
        await together(*readers, story.write("writer", after=0.105))
        # Not after the wait, but when those who read before it have closed.
        assert dict(story.events)["writer writes"] == pytest.approx(0.13)

    with_sections(main)


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_readers_asleep_behind_a_writer_that_gives_up_wake_at_once(how: str) -> None:
    """The fault: they stay asleep until the reader that holds the lock leaves."""

    async def main(sections: Sections) -> None:
        story = Story(sections)
        early = asyncio.create_task(story.read("early", 60))
        await asyncio.sleep(0)
        writer = asyncio.create_task(story.write("writer"))
        late = asyncio.create_task(story.read("late", 0, after=0.05))
        await asyncio.sleep(0.06)
        if how == "cancelled":
            writer.cancel()
        await late
        opened = dict(story.events)["late opens"]
        assert opened == pytest.approx(0.06 if how == "cancelled" else WAIT)
        await asyncio.wait([early, writer])

    with_sections(main)


def test_a_child_that_reads_under_its_parents_write_does_not_deadlock() -> None:
    """The fault: the child waits for the writer lock of the parent, which waits for the child."""

    async def main(sections: Sections) -> None:
        story = Story(sections)

        async def parent() -> None:
            await asyncio.sleep(0.005)
            async with sections.writing():
                await asyncio.create_task(story.read("child", 0))
                async with sections.reading():  # nor does the parent itself
                    story.tell("parent reads")

        await together(story.read("early", 0.01), parent())
        assert story.events[2:] == [
            ("child opens", 0.01 + WAIT), ("child closed", 0.01 + WAIT),
            ("parent reads", 0.01 + WAIT),
        ]  # fmt: skip

    with_sections(main)


def test_a_child_that_reads_inside_its_parents_section_does_not_deadlock() -> None:
    """A writer waits for the parent, the child for the writer, the parent for the child."""

    async def main(sections: Sections) -> None:
        story = Story(sections)
        async with sections.reading():
            writer = asyncio.create_task(story.write("writer"))
            await asyncio.sleep(0.02)
            await asyncio.create_task(story.read("child", 0))
        await writer
        assert story.events[0] == ("writer writes", WAIT)
        assert story.events[1] == ("child opens", WAIT)

    with_sections(main)


def test_a_nested_section_waits_for_no_writer() -> None:
    async def main(sections: Sections) -> None:
        story = Story(sections)
        async with sections.reading():
            writer = asyncio.create_task(story.write("writer"))
            await asyncio.sleep(0.02)
            await story.read("nested", 0)
            assert story.events == [("nested opens", 0.02), ("nested closed", 0.02)]
        await writer

    with_sections(main)


def test_many_readers_ask_aiorwlock_once_per_task() -> None:
    """The fault: its cost grows with what is held. A nested section is not held there again."""

    async def main(sections: Sections) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(1000):
                await stack.enter_async_context(sections.reading())
            gate = sections._gate(asyncio.get_running_loop())
            assert gate is not None
            assert len(gate.lock.reader._lock._owning) == 1
            assert sections.open == 1000

    with_sections(main)


def test_a_section_is_entered_once_and_by_a_task() -> None:
    async def main(sections: Sections) -> None:
        section = sections.reading()
        async with section:
            pass
        with pytest.raises(RuntimeError, match="entered before"):
            await section.__aenter__()
        answers: list[BaseException] = []

        def no_task() -> None:
            try:
                at_once(sections.reading().__aenter__())
            except RuntimeError as error:
                answers.append(error)

        asyncio.get_running_loop().call_soon(no_task)
        await settle()
        assert "belongs to a task" in str(answers)

    with_sections(main)


# -- what ends otherwise


def test_a_section_closed_by_another_task_stays_closed() -> None:
    """A generator that is dropped inside its section is closed by a task of the loop."""

    async def main(sections: Sections) -> None:
        story = Story(sections)

        async def rows() -> Any:
            async with sections.reading():
                yield 1
                yield 2

        generator = rows()
        assert await anext(generator) == 1
        writer = asyncio.create_task(story.write("writer"))
        await asyncio.sleep(0.01)
        await asyncio.create_task(generator.aclose())
        await writer
        assert story.events == [("writer writes", 0.01)]
        assert sections.open == 0
        await together(story.read("next", 0.01), story.write("writer", after=0.005))
        assert story.events[-1] == ("writer writes", 0.02)

    with_sections(main)


def test_a_section_whose_loop_died_is_let_go() -> None:
    """Nothing holds the loop, and nobody pays for its sections any more."""
    sections = Sections(WAIT)
    loop = asyncio.new_event_loop()
    seen = weakref.ref(loop)

    async def read() -> None:
        async with sections.reading():
            await asyncio.get_running_loop().create_future()

    task: Any = loop.create_task(read())
    loop.run_until_complete(asyncio.sleep(0.001))
    assert sections.open == 1
    task._log_destroy_pending = False
    loop.close()
    del task, loop
    gc.collect()
    assert seen() is None
    assert sections.open == 0
    sections.check()


def test_a_lock_lives_no_longer_than_the_sections_of_its_loop() -> None:
    sections = Sections(WAIT)

    async def read() -> Any:
        async with sections.reading():
            gate = sections._gate(asyncio.get_running_loop())
            assert gate is not None
            return weakref.ref(gate)

    assert asyncio.run(read())() is None
    asyncio.run(read())
    gc.collect()
    assert len(sections._gates) == 0


def test_a_forked_child_holds_no_section() -> None:
    async def main(sections: Sections) -> None:
        async with sections.reading():
            sections.forget()
            sections.refuse()
            assert sections.open == 0
            async with sections.reading():
                with pytest.raises(ReadOnlySectionError):
                    sections.refuse()
        assert sections.open == 0

    with_sections(main)


def test_check_finds_a_section_that_nobody_holds() -> None:
    sections = Sections(WAIT)
    sections.open = 1
    with pytest.raises(AssertionError, match="broken invariant"):
        sections.check()


# -- all orders

READERS = ("reader-0", "reader-1")
WRITERS = ("writer-0", "writer-1")
LATEST = 1.0 + 4 * 0.6  # the wait, and each step that sets a timer may be a slow one


async def sections_and_writers() -> None:
    """No write is made inside a section, but by who waited for its whole time; none is late."""
    sections = Sections(1.0)
    loop = asyncio.get_running_loop()
    reading = 0

    async def read() -> None:
        nonlocal reading
        await pause()
        begin = loop.time()
        async with sections.reading():
            assert loop.time() - begin <= LATEST
            reading += 1
            try:
                await pause(0.4)
                with pytest.raises(ReadOnlySectionError):
                    sections.refuse()
            finally:
                reading -= 1
        sections.check()

    async def write() -> None:
        await pause()
        begin = loop.time()
        async with sections.writing():
            waited = loop.time() - begin
            assert not reading or waited >= 1.0 - 1e-6
            assert waited <= LATEST
        sections.check()

    tasks = [loop.create_task(read(), name=name) for name in READERS]
    tasks += [loop.create_task(write(), name=name) for name in WRITERS]
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
    assert sections.open == 0
    sections.check()
    assert nobody_is_in_the_gate(sections)


def test_sections_hold_in_all_orders() -> None:
    explore(sections_and_writers, schedules=400)
    explore(sections_and_writers, schedules=400, policy="exhaustive")


@pytest.mark.parametrize("victim", ["reader-0", "reader-1", "writer-0", "writer-1"])
def test_a_task_cancelled_at_any_await_leaves_the_sections_sound(victim: str) -> None:
    found = explore(sections_and_writers, schedules=300, cancel=victim)
    assert found.cancel_points > 20
