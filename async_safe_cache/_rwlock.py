"""Read sections: who writes in a loop waits a while for those who read there.

A *section* is held by a task. Reads take no lock at all; a section only asks the
tasks of its own loop that write to come after it, and they do, for `wait` seconds.
aiorwlock holds the state; a gate in front of it decides when it is asked:

    open    nobody queues           -> the reader lock, at once
            writers queue           -> those who queue now go first, once; at most `wait`
    write   no section in this loop -> go on at once: no lock, no suspension
            a section of this task  -> ReadOnlySectionError
            part of a load          -> go on
            else                    -> queue, at most `wait`; in time: the writer lock, at once
    close   the last one            -> wake every writer; the last of them wakes the readers

aiorwlock is asked only for what it grants at once (asserted), so nobody ever sleeps
in it, and none of its faults can be met: readers asleep behind a cancelled writer,
readers starving, a child task waiting for its parent for ever. Every wait ends after
`wait` seconds, so nothing here can be a part of a deadlock.

A load runs in a task of its own, and a section belongs to a task: a load's context
carries no section. A plain `def` loads in the very task of its caller; each section
therefore remembers of which load it was opened as a part, and binds that code alone.

A nested section costs a list's append. The first one of a task costs aiorwlock's
search through those who hold one: O(tasks with a section in this loop), 16 us at 250.

Whatever belongs to a loop is reached from the mapping weakly and is held by the
frames that use it: it ends with the last section, or with the loop.

Source: aiorwlock (fast=True); writers before readers, as in its own queues.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Final, final
from weakref import WeakKeyDictionary, ref

from aiorwlock import RWLock

from ._flights import Flight, Loop, current_flight, release, running_loop
from ._waits import Waits, part_of_a_load
from .errors import ReadOnlySectionError

__all__ = ["Section", "Sections", "Writing"]

Task = asyncio.Task[Any]


def _at_once(asked: Coroutine[Any, Any, object]) -> None:
    """Have aiorwlock grant what it must grant without a wait."""
    try:
        asked.send(None)
    except StopIteration:
        return
    asked.close()
    raise AssertionError("broken invariant of the sections: aiorwlock was asked too early")


@final
class _Ticket:
    """One wait in a gate."""

    __slots__ = ("behind", "expired", "future")

    def __init__(self, behind: int, loop: Loop) -> None:
        self.behind = behind  # a reader's: the last writer that goes before it
        self.expired = False
        self.future: asyncio.Future[Any] = loop.create_future()

    def expire(self) -> None:
        """Wake who waits, in vain."""
        self.expired = True
        release(self.future)


@final
class _Gate:
    """The sections of one loop, and who waits. All of it happens in the thread of that loop.

    Only a section whose task can run no more is closed wherever the collector finds it.

    Attributes:
        holders: Who holds sections, and of which load each was opened as a part.
        inside: Which of them hold aiorwlock's reader lock.
        writers: Who writes after a wait, or waits to, by number, in order. Bounded by the tasks.
        readers: Who waits behind writers, in order. Bounded by the tasks.
        writing: Who holds aiorwlock's writer lock.
        stuck: Somebody left from elsewhere, of which aiorwlock cannot be told.
        gone: It belongs to the parent of a forked child.
    """

    __slots__ = (
        "__weakref__", "gone", "holders", "inside", "lock", "loop", "newest", "readers",
        "stuck", "writers", "writing",
    )  # fmt: skip

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.lock = RWLock(fast=True)
        self.holders: dict[Task, list[Flight | None]] = {}
        self.inside: set[Task] = set()
        self.writers: OrderedDict[int, _Ticket] = OrderedDict()
        self.readers: OrderedDict[_Ticket, None] = OrderedDict()
        self.writing: Task | None = None
        self.newest = 0
        self.stuck = False
        self.gone = False

    def at_home(self, task: Task) -> bool:
        """Tell whether this is *task* that runs, in the loop of this gate."""
        return running_loop() is self.loop and asyncio.current_task(self.loop) is task

    def refuse(self, task: Task) -> None:
        """Raise if this code of *task* is inside a section."""
        if current_flight.get() in self.holders.get(task, ()):
            raise ReadOnlySectionError

    def renew(self) -> None:
        """Take a new lock in place of one that is stuck, when nobody has it any more."""
        if self.stuck and not self.inside and self.writing is None:
            self.lock, self.stuck = RWLock(fast=True), False

    def wake_writers(self) -> None:
        """Wake every writer if no section is open; they leave the queue when they have written."""
        if not self.holders:
            for ticket in self.writers.values():
                release(ticket.future)

    def wake_readers(self) -> None:
        """Wake the readers that wait behind no writer any more. O(woken)."""
        oldest = next(iter(self.writers), None)
        while self.readers:
            ticket = next(iter(self.readers))
            if oldest is not None and oldest <= ticket.behind:
                return
            del self.readers[ticket]
            release(ticket.future)


@final
class Sections:
    """The read sections of one cache, in all its loops; bound to none.

    Args:
        wait: Seconds that a writer waits for sections, and a section for writers; 0: never.

    Attributes:
        open: Sections open in the process. While it is 0, nothing here has anything to say.
        waits: How long writers and readers waited.
    """

    def __init__(self, wait: float) -> None:
        self.wait: Final = wait
        self.open = 0
        self.waits = Waits()
        # Re-entrant: the collector may close a section whose loop died while this thread is inside.
        self._lock = threading.RLock()
        # Weak on both sides: a gate holds its loop. Bounded by the loops alive.
        self._gates: WeakKeyDictionary[Loop, ref[_Gate]] = WeakKeyDictionary()

    def reading(self) -> "Section":
        """Return a section, to be entered once, with `async with`."""
        return Section(self)

    def writing(self) -> "Writing":
        """Return what an asynchronous write enters, and acts in, without an await.

        Raises, when entered:
            ReadOnlySectionError: the task holds a section.
        """
        return Writing(self)

    def refuse(self) -> None:
        """Raise if the task that runs here holds a section: a synchronous write asks this.

        Raises:
            ReadOnlySectionError: it does.
        """
        if not self.open:
            return
        loop = running_loop()
        gate = None if loop is None else self._gate(loop)
        task = None if gate is None else asyncio.current_task(gate.loop)
        if gate is not None and task is not None:
            gate.refuse(task)

    def forget(self) -> None:
        """In a forked child. Let go of the parent's sections: those who are in them hold none."""
        gates = [gate for reference in self._gates.values() if (gate := reference())]
        for gate in gates:
            gate.gone = True
        self.open = 0
        self.waits = Waits()
        self._lock = threading.RLock()
        self._gates = WeakKeyDictionary()

    def check(self) -> None:
        """Recompute what must hold, in no thread but the loop's. O(sections).

        Raises:
            AssertionError: it does not.
        """
        with self._lock:
            gates = [gate for reference in self._gates.values() if (gate := reference())]
            count = 0
            for gate in gates:
                count += sum(map(len, gate.holders.values()))
                behind = [ticket.behind for ticket in gate.readers]
                sound = (
                    all(gate.holders.values())
                    and gate.inside <= gate.holders.keys()
                    and list(gate.writers) == sorted(gate.writers)
                    and behind == sorted(behind)
                    # Nobody waits for nothing.
                    and (not behind or any(number <= behind[0] for number in gate.writers))
                    and gate.lock.writer.locked == (gate.writing is not None)
                    and (gate.stuck or gate.lock.reader.locked == bool(gate.inside))
                )
                if not sound:
                    raise AssertionError("broken invariant of the sections: of a gate")
            if count != self.open:
                raise AssertionError(f"broken invariant of the sections: {count}, not {self.open}")

    def _gate(self, loop: Loop) -> _Gate | None:
        """Return the gate of *loop*, if it is in use."""
        with self._lock:
            reference = self._gates.get(loop)
        return None if reference is None else reference()

    def _make_gate(self, loop: Loop) -> _Gate:
        """Return the gate of *loop*, which lives as long as the caller holds it."""
        gate = self._gate(loop)
        if gate is None:
            gate = _Gate(loop)
            with self._lock:
                self._gates[loop] = ref(gate)
        return gate

    async def _sleep(self, gate: _Gate, ticket: _Ticket, *, until_none_open: bool) -> None:
        """Wait until woken, or for `wait` seconds."""
        loop = gate.loop
        begin = loop.time()
        # A context of its own: a timer pins no request.
        timer = loop.call_later(self.wait, ticket.expire, context=Context())
        try:
            await ticket.future
            # A load, or who has waited long enough, may have opened one since the last closed.
            while until_none_open and gate.holders and not ticket.expired:
                ticket.future = loop.create_future()
                await ticket.future
        finally:
            timer.cancel()
            with self._lock:
                self.waits.add(loop.time() - begin)


@final
class Section:
    """One read section of the task that enters it."""

    __slots__ = ("_flight", "_gate", "_sections", "_task")

    def __init__(self, sections: Sections) -> None:
        self._sections = sections
        self._gate: _Gate | None = None
        self._task: Task | None = None
        self._flight: Flight | None = None

    async def __aenter__(self) -> None:
        if self._task is not None:
            raise RuntimeError("this section was entered before; open another one")
        loop = asyncio.get_running_loop()
        self._task = task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a read section belongs to a task, and none runs here")
        sections = self._sections
        gate = sections._make_gate(loop)
        if gate.writers and sections.wait and not self._must_not_wait(gate, task):
            ticket = _Ticket(gate.newest, loop)
            gate.readers[ticket] = None
            try:
                await sections._sleep(gate, ticket, until_none_open=False)
            finally:
                gate.readers.pop(ticket, None)
        self._flight = current_flight.get()
        with sections._lock:
            stack = gate.holders.get(task)
            if stack is None:
                if gate.writing is None:  # else: it waited long enough for one who awaits
                    _at_once(gate.lock.reader.acquire())
                    gate.inside.add(task)
                stack = gate.holders[task] = []
            stack.append(self._flight)
            sections.open += 1
        self._gate = gate

    @staticmethod
    def _must_not_wait(gate: _Gate, task: Task) -> bool:
        """Tell whether writers wait for this task, or may do so."""
        return task in gate.holders or gate.writing is task or part_of_a_load()

    async def __aexit__(self, *_: object) -> None:
        gate, task, self._gate = self._gate, self._task, None
        if gate is None or task is None:
            return
        sections = self._sections
        with sections._lock:
            if gate.gone:
                return
            stack = gate.holders[task]
            stack.remove(self._flight)
            sections.open -= 1
            if stack:
                return
            del gate.holders[task]
            if task in gate.inside:
                gate.inside.remove(task)
                if gate.at_home(task):
                    gate.lock.reader.release()
                else:
                    gate.stuck = True  # a generator closed in another task, or a loop that died
            gate.renew()
        if gate.holders or not gate.writers:
            return
        if running_loop() is gate.loop:
            gate.wake_writers()
            return
        try:
            gate.loop.call_soon_threadsafe(gate.wake_writers)
        except RuntimeError:
            pass  # that loop is closed: nobody waits there any more


@final
class Writing:
    """One asynchronous write: entered, it acts, in one step."""

    __slots__ = ("_gate", "_number", "_sections", "_task")

    def __init__(self, sections: Sections) -> None:
        self._sections = sections
        self._gate: _Gate | None = None  # only if it holds the writer lock
        self._task: Task | None = None
        self._number = 0

    async def __aenter__(self) -> None:
        sections = self._sections
        if not sections.open:
            return
        loop = asyncio.get_running_loop()
        gate, task = sections._gate(loop), asyncio.current_task(loop)
        if gate is None or task is None or not gate.holders:
            return
        gate.refuse(task)
        if not sections.wait or part_of_a_load():
            return
        ticket = _Ticket(0, loop)
        gate.newest += 1
        number = gate.newest
        gate.writers[number] = ticket
        granted = False
        try:
            await sections._sleep(gate, ticket, until_none_open=True)
            granted = not gate.holders and gate.writing is None
            if granted:
                _at_once(gate.lock.writer.acquire())
                gate.writing = task
                self._gate, self._task, self._number = gate, task, number
        finally:
            if not granted:
                del gate.writers[number]
                gate.wake_readers()

    async def __aexit__(self, *_: object) -> None:
        gate, task, self._gate = self._gate, self._task, None
        if gate is None or task is None:
            return
        gate.writing = None
        if gate.at_home(task):
            gate.lock.writer.release()
        else:
            gate.stuck = True
        gate.renew()
        gate.writers.pop(self._number, None)
        gate.wake_readers()
