"""Loads that fail, and loads that wait for each other."""

import asyncio
import gc
from typing import Any, Final

from .peers import Peer
from .story import Source, all_seen, ask, count, is_error, row, seen, settle

# ---- failures

FAILURES: Final = "Failures"


@row(
    FAILURES,
    "the load fails, 5 callers: loads",
    given="five callers of one key",
    when="the load raises ValueError",
    must="one load; each gets the ValueError; the next caller loads anew",
    right="1 load",
    telling=True,
)
async def failing_burst(peer: Peer) -> str:
    source = Source()
    source.error = ValueError

    fn = peer.cached(source.loader())
    callers = [ask(fn, 1) for _ in range(5)]
    await settle()
    source.gate.set()
    got = await all_seen(callers)
    loads = source.loads
    source.error = None
    after = await seen(ask(fn, 1))
    if got != "ValueError":
        return got
    return count(loads, "load") if after == "value" else f"{count(loads, 'load')}, then {after}"


@row(
    FAILURES,
    "the loader was cancelled from inside: waiters get",
    given="three waiters in a task group",
    when="the load itself ends with CancelledError (a driver that closes its connection)",
    must="an exception: a bare CancelledError would end the group without value or error",
    right=is_error,
)
async def loader_cancelled_inside(peer: Peer) -> str:
    source = Source()
    source.error = asyncio.CancelledError

    fn = peer.cached(source.loader())
    callers = [ask(fn, 1) for _ in range(3)]
    await settle()
    source.gate.set()
    return await all_seen(callers)


@row(
    FAILURES,
    "1,000 waiters of one failure: its traceback",
    given="a load that 1,000 callers wait for",
    when="it fails, and each caller handles the exception",
    must="the last one sees no more than 10 frames above what the first one saw",
    right=lambda found: found == "as it was",
)
async def traceback_of_a_burst(peer: Peer) -> str:
    source = Source()
    source.error = ValueError
    depths: list[int] = []

    fn = peer.cached(source.loader())

    async def caller() -> None:
        try:
            await fn(1)
        except ValueError as error:
            depths.append(depth(error))

    callers = [asyncio.create_task(caller()) for _ in range(1_000)]
    await settle()
    source.gate.set()
    await asyncio.gather(*callers)
    growth = depths[-1] - depths[0]
    return "as it was" if growth <= 10 else f"+{growth} frames"


@row(
    FAILURES,
    "a remembered failure raised 1,000 times",
    given="a failure that is an answer (no such user), to be remembered for a while",
    when="1,000 callers ask one after the other",
    must="one load, and no traceback that grows",
    right="1 load",
)
async def remembered_failure(peer: Peer) -> str:
    loads, depths = 0, list[int]()

    async def load(x: int) -> Any:
        nonlocal loads
        loads += 1
        raise KeyError(x)

    fn = peer.cached(load, remember=KeyError)
    for _ in range(1_000):
        try:
            await fn(1)
        except KeyError as error:
            depths.append(depth(error))
    growth = depths[-1] - depths[0]
    return count(loads, "load") + (f", +{growth} frames" if growth > 10 else "")


@row(
    FAILURES,
    "a failure that nobody waits for",
    given="a load that fails for its one caller; another that fails while it cleans up "
    "after its callers have left",
    when="all of it is collected",
    must="the event loop reports nothing as never retrieved",
    right="quiet",
)
async def failure_nobody_waits_for(peer: Peer) -> str:
    reports: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reports.append(context["message"]))
    forever = asyncio.Event()

    async def load(x: int) -> Any:
        if x == 1:
            raise ValueError
        try:
            await forever.wait()
        finally:
            raise ValueError

    fn = peer.cached(load)
    await seen(ask(fn, 1))
    callers = [ask(fn, 2) for _ in range(3)]
    await settle()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    callers.clear()
    del caller
    await settle()
    gc.collect()
    await settle()
    return "quiet" if not reports else count(len(reports), "report")


def depth(error: BaseException) -> int:
    frames, traceback = 0, error.__traceback__
    while traceback is not None:
        frames, traceback = frames + 1, traceback.tb_next
    return frames


# ---- loads that wait for loads

CYCLES: Final = "Loads that wait for loads"


@row(
    CYCLES,
    "a load awaits its own key",
    given="a cached function that calls itself with the same arguments",
    when="it is called",
    must="an exception: nothing can ever answer it",
    right=is_error,
    telling=True,
)
async def load_awaits_itself(peer: Peer) -> str:
    async def load(x: int) -> Any:
        return await fn(x)

    fn = peer.cached(load)
    return await seen(ask(fn, 1))


@row(
    CYCLES,
    "two loads await each other",
    given="two cached functions, each of which calls the other",
    when="both are called at once",
    must="exceptions: nothing can ever answer them",
    right=is_error,
)
async def two_loads_await_each_other(peer: Peer) -> str:
    async def load_a(x: int) -> Any:
        await asyncio.sleep(0)
        return await b(x)

    async def load_b(x: int) -> Any:
        await asyncio.sleep(0)
        return await a(x)

    a, b = peer.cached(load_a), peer.cached(load_b)
    return await all_seen([ask(a, 1), ask(b, 1)])
