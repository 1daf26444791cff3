"""Callers at the same time: who shares a load, and who suffers when one of them leaves."""

import asyncio
from typing import Any, Final

from .peers import Peer
from .story import Source, all_seen, answer, ask, count, row, seen, settle

TOGETHER: Final = "Callers at the same time"


@row(
    TOGETHER,
    "50 cold callers: loads",
    given="an empty cache",
    when="50 callers ask for one key at once",
    must="one load answers all of them",
    right="1 load",
    telling=True,
)
async def one_load_for_a_burst(peer: Peer) -> str:
    source = Source()

    fn = peer.cached(source.loader())
    callers = [ask(fn, 1) for _ in range(50)]
    await settle()
    source.gate.set()
    got = await all_seen(callers)
    return count(source.loads, "load") if got == "value" else got


@row(
    TOGETHER,
    "the first caller is cancelled: the others get",
    given="a load that six callers wait for",
    when="the one that came first is cancelled",
    must="the others get the value, at the price of one more load at most",
    right="value",
    telling=True,
)
async def first_caller_cancelled(peer: Peer) -> str:
    source = Source()

    fn = peer.cached(source.loader())
    first, *others = [ask(fn, 1) for _ in range(6)]
    await settle()
    first.cancel()
    await settle()
    source.gate.set()
    got = await all_seen(others)
    more = source.loads - 1
    return f"{got}, {more} more loads" if more > 1 else got


@row(
    TOGETHER,
    "one waiter is cancelled: the others get",
    given="a load that six callers wait for",
    when="one of those that joined is cancelled",
    must="the others get the value, at the price of one more load at most",
    right="value",
    telling=True,
)
async def one_waiter_cancelled(peer: Peer) -> str:
    source = Source()

    fn = peer.cached(source.loader())
    callers = [ask(fn, 1) for _ in range(6)]
    await settle()
    callers.pop(3).cancel()
    await settle()
    source.gate.set()
    got = await all_seen(callers)
    more = source.loads - 1
    return f"{got}, {more} more loads" if more > 1 else got


@row(
    TOGETHER,
    "one waiter's timeout: the others get",
    given="a load that takes longer than one of its waiters has patience for",
    when="that waiter's asyncio.timeout ends",
    must="it gets TimeoutError, the others get the value",
    right="value",
)
async def one_waiters_timeout(peer: Peer) -> str:
    source = Source()

    fn = peer.cached(source.loader())

    async def impatient() -> Any:
        async with asyncio.timeout(0.02):
            return await fn(1)

    first = ask(fn, 1)
    await settle()
    hasty = asyncio.create_task(impatient())
    await settle()
    last = ask(fn, 1)
    if (got := await seen(hasty)) != "TimeoutError":
        return f"{got} instead of TimeoutError"
    await settle()
    source.gate.set()
    return await all_seen([first, last])


@row(
    TOGETHER,
    "another request's task group fails: a waiter gets",
    given="a load begun inside a task group, and a waiter in a group of its own",
    when="a sibling of the first caller fails, so that its group is cancelled",
    must="the waiter gets its value",
    right="value",
    telling=True,
)
async def task_group_of_another_request(peer: Peer) -> str:
    source = Source()

    fn = peer.cached(source.loader())
    fail = asyncio.Event()

    async def sibling() -> None:
        await fail.wait()
        raise ValueError

    async def one_request() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(answer(fn, 1))
            group.create_task(sibling())

    async def another_request() -> str:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(answer(fn, 1))
        return "no value, no error" if task.cancelled() else str(task.result())

    one = asyncio.create_task(one_request())
    await settle()
    another = asyncio.create_task(another_request())
    await settle()
    fail.set()
    await seen(one)
    source.gate.set()
    return await seen(another)


@row(
    TOGETHER,
    "everybody cancelled: the next callers get",
    given="a load whose three callers were all cancelled",
    when="three more ask, one after the other",
    must="they get the value",
    right="value",
    telling=True,
)
async def everybody_cancelled(peer: Peer) -> str:
    source = Source()

    fn = peer.cached(source.loader())
    callers = [ask(fn, 1) for _ in range(3)]
    await settle()
    for caller in callers:
        caller.cancel()
    await all_seen(callers)
    source.gate.set()
    await settle()
    got = [await seen(ask(fn, 1)) for _ in range(3)]
    if got[0] == "value":
        return "value" if len(set(got)) == 1 else " / ".join(got)
    return f"{got[0]} {'once' if got[1] == 'value' else 'for ever'}"


@row(
    TOGETHER,
    "a cancelled load is slow to clean up: the next caller gets",
    given="a load that was cancelled with its only caller and still cleans up",
    when="a new caller asks",
    must="it gets the value, and two loads of one key never run at once",
    right="value",
    telling=True,
)
async def slow_clean_up(peer: Peer) -> str:
    source = Source()
    cleaned = asyncio.Event()

    async def load(x: int) -> Any:
        source.loads += 1
        source.running += 1
        source.most = max(source.most, source.running)
        try:
            await source.gate.wait()
            return source.value
        except asyncio.CancelledError:
            await cleaned.wait()
            raise
        finally:
            source.running -= 1

    fn = peer.cached(load)
    first = ask(fn, 1)
    await settle()
    first.cancel()
    await settle()
    source.gate.set()
    second = ask(fn, 1)
    await settle()
    cleaned.set()
    got = await seen(second)
    return got if source.most == 1 else f"{got}, {source.most} loads at once"


@row(
    TOGETHER,
    "a running load is pushed out by other keys: loads",
    given="a bound of one entry and a load that runs",
    when="another key is loaded, then a second caller asks for the first key",
    must="it joins the load that runs",
    right="1 load",
)
async def running_load_evicted(peer: Peer) -> str:
    source = Source()

    async def load(x: int) -> Any:
        return await source.read() if x == 1 else "other"

    fn = peer.cached(load, max_entries=1)
    first = ask(fn, 1)
    await settle()
    for other in range(2, 5):
        await answer(fn, other)
    second = ask(fn, 1)
    await settle()
    source.gate.set()
    got = await all_seen([first, second])
    return count(source.loads, "load") if got == "value" else got
