"""What does it cost when a thousand ask for one absent key at once?

python -m benchmarks.stampede [--rounds N] [--json PATH] [--check]
"""

import asyncio
import inspect
import sys
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any, Final

from .peers import OURS, installed
from .runner import Case, Question, Run, compared, main, of_its_own, spread, take_turns

QUESTION: Final = Question(
    name="stampede",
    question="What does it cost when a thousand ask for one absent key at once, and what happens "
    "when some of them leave?",
    workload="CPU time of a task for each waiter, from its creation to the end of all; each burst "
    "asks for a new key; the load suspends once. Memory: what tracemalloc sees while all wait, "
    "less what as many tasks take that wait for one bare future. Leaving: 10,000 waiters, of "
    "which the first and 100 others are cancelled while the load runs",
    rivals="async-lru, cachebox, theine; a bound of 1,024 entries, no ttl",
    floor="one bare future: as many tasks that await the same future, with no cache at all",
    not_measured="callers in several threads or event loops; loads that fail; memory that native "
    "code takes outside Python's allocator",
    rounds=31,
)

WAITERS: Final = 1_000
CROWD: Final = 10_000
LEAVERS: Final = 100
RIVALS: Final = (OURS, "async-lru", "cachebox", "theine")
FUTURE: Final = "one bare future"


class Burst:
    """One contestant's function, which is asked for a new key each time."""

    def __init__(self, decorate: Callable[..., Any]) -> None:
        self.key = 0
        self.loads = 0
        self.gate: asyncio.Future[None] | None = None
        cached = decorate(self.load)
        self.call: Callable[[int], Coroutine[Any, Any, int]] = cached
        if not inspect.iscoroutine(probe := cached(0)):
            # No task can be made of what it returns: a caller awaits it, as its users must.
            async def call(key: int) -> int:
                return await cached(key)

            self.call = call
        else:
            probe.close()

    async def load(self, key: int) -> int:
        self.loads += 1
        if self.gate is None:
            await asyncio.sleep(0)
        else:
            await self.gate
        return key

    def new(self) -> tuple[Callable[[int], Coroutine[Any, Any, int]], int]:
        self.key += 1
        return self.call, self.key


class Bare(Burst):
    """Tasks that wait for one future, which is answered in the next turn."""

    def __init__(self) -> None:
        super().__init__(lambda load: load)
        self.call = self.wait
        self.future: asyncio.Future[int] | None = None

    async def wait(self, key: int) -> int:
        assert self.future is not None
        return await self.future

    def new(self) -> tuple[Callable[[int], Coroutine[Any, Any, int]], int]:
        loop = asyncio.get_running_loop()
        self.loads += 1
        self.key += 1
        self.future = loop.create_future()
        if self.gate is None:
            loop.call_soon(loop.call_soon, _answer, self.future, self.key)
        else:
            self.gate.add_done_callback(lambda _, future=self.future: _answer(future, self.key))
        return self.call, self.key


def _answer(future: "asyncio.Future[int]", value: int) -> None:
    if not future.done():
        future.set_result(value)


async def _burst(burst: Burst, waiters: int) -> float:
    """Return the CPU time of one burst, in us a waiter."""
    loads, loop = burst.loads, asyncio.get_running_loop()
    begin = time.process_time_ns()
    call, key = burst.new()
    tasks = [loop.create_task(call(key)) for _ in range(waiters)]
    # One by one: gather() would add a callback of its own to each.
    values = [await task for task in tasks]
    end = time.process_time_ns()
    assert values == [key] * waiters
    assert burst.loads == loads + 1, f"{burst.loads - loads} loads"
    return (end - begin) / 1_000 / waiters


async def _held(burst: Burst, waiters: int) -> float:
    """Return the bytes that tracemalloc sees for each waiter while all wait."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[int]] = []
    tracemalloc.start()
    try:
        burst.gate = loop.create_future()
        call, key = burst.new()
        before, _ = tracemalloc.get_traced_memory()
        tasks = [loop.create_task(call(key)) for _ in range(waiters)]
        for _ in range(5):
            await asyncio.sleep(0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    burst.gate.set_result(None)
    await asyncio.gather(*tasks)
    burst.gate = None
    return (held - before) / waiters


async def _leave(burst: Burst, waiters: int, leavers: int) -> tuple[int, int]:
    """Cancel the first of *waiters* and *leavers* others; return loads, and who got no value."""
    loop = asyncio.get_running_loop()
    loads = burst.loads
    burst.gate = loop.create_future()
    call, key = burst.new()
    tasks = [loop.create_task(call(key)) for _ in range(waiters)]
    for _ in range(5):
        await asyncio.sleep(0)
    gone = {0, *range(waiters // 2, waiters // 2 + leavers)}
    for place in gone:
        tasks[place].cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    if not burst.gate.done():
        burst.gate.set_result(None)
    await asyncio.wait(tasks, timeout=30)
    without = 0
    for place, task in enumerate(tasks):
        if not task.done():
            task.cancel()
            without += 1
        elif task.cancelled() or task.exception() is not None or task.result() != key:
            without += place not in gone
    burst.gate = None
    return burst.loads - loads, without


async def _measured(run: Run) -> list[Case]:
    peers = installed(RIVALS)
    bursts: dict[str, Burst] = {name: Burst(peer.cached) for name, peer in peers.items()}
    bursts[FUTURE] = Bare()
    waiters = run.size(WAITERS)
    turns = {}
    for name, burst in bursts.items():
        timed = of_its_own(_burst)
        turns[name] = lambda timed=timed, burst=burst: timed(burst, waiters)
    times = await take_turns(turns, run, f"{waiters} waiters")
    bursts_run = run.rounds + 1
    cpu = (
        compared("1,000 waiters on one key", "us CPU a waiter", times)
        .against("async-lru", "<=", 0.75)
        .against(FUTURE, "<=", None, aim=1.25)
    )
    cpu.fact("loads a burst", bursts[OURS].loads / bursts_run, "==", 1)

    run.say(f"memory of {waiters} waiters")
    held: dict[str, list[float]] = {name: [] for name in bursts}
    for _ in range(min(run.rounds, 5)):
        for name, burst in bursts.items():
            held[name].append(await _held(burst, waiters) / 1_000)
    memory = Case(
        "memory while 1,000 wait",
        "kB a waiter, its task included",
        rounds=min(run.rounds, 5),
        figures={name: spread(values) for name, values in held.items()},
    )
    floor = memory.figures[FUTURE].median
    over = {name: memory.figures[name].median - floor for name in peers}
    for name in peers:
        if name == OURS:
            memory.fact("kB a waiter over the bare tasks", over[name], "<=", 2.0)
        else:
            memory.facts[f"kB a waiter over the bare tasks, {name}"] = over[name]

    crowd, leavers = run.size(CROWD, 40), run.size(LEAVERS, 5)
    leave = Case(f"{CROWD:,} waiters, the first and {LEAVERS} others cancelled", "")
    for name, peer in peers.items():
        run.say(f"{crowd} waiters, {leavers + 1} of them leave: {name}")
        loads, without = await _leave(Burst(peer.cached), crowd, leavers)
        if name == OURS:
            leave.fact("loads", loads, "==", 1)
            leave.fact("waiters without the value", without, "==", 0)
        else:
            leave.facts[f"loads, {name}"] = loads
            leave.facts[f"waiters without the value, {name}"] = without
    return [cpu, memory, leave]


def measure(run: Run) -> list[Case]:
    """Return CPU, memory, and what the others get when some leave."""
    with asyncio.Runner(debug=False) as runner:
        # Some contestants leave a failed task behind that nobody asks any more.
        runner.get_loop().set_exception_handler(lambda *_: None)
        return runner.run(_measured(run))


if __name__ == "__main__":
    sys.exit(main(QUESTION, measure))
