"""What an invalidation promises to those who read after it."""

import asyncio
from typing import Any, Final

from .peers import Peer
from .story import Source, answer, ask, row, seen, settle

INVALIDATION: Final = "Invalidation"


@row(
    INVALIDATION,
    "invalidated while it loads: a later read is",
    given="a load that has read the old state",
    when="the state changes, the key is invalidated, and the load ends",
    must="a later read does not see the old state",
    right="fresh",
    telling=True,
)
async def invalidated_while_loading(peer: Peer) -> str:
    source = Source()
    source.value = "stale"

    fn = peer.cached(source.loader())
    first = ask(fn, 1)
    await settle()
    source.value = "fresh"
    await peer.invalidate(fn, 1)
    source.gate.set()
    await seen(first)
    return await seen(ask(fn, 1))


@row(
    INVALIDATION,
    "asked after the invalidation, while the old load runs",
    given="a load that has read the old state",
    when="the key is invalidated, and a new caller asks before the load ends",
    must="it does not get the old state",
    right="fresh",
    telling=True,
)
async def asked_after_invalidation(peer: Peer) -> str:
    source = Source()
    source.value = "stale"

    fn = peer.cached(source.loader())
    first = ask(fn, 1)
    await settle()
    source.value = "fresh"
    await peer.invalidate(fn, 1)
    second = ask(fn, 1)
    await settle()
    source.gate.set()
    await seen(first)
    return await seen(second)


@row(
    INVALIDATION,
    "cleared while it loads: a later read is",
    given="a load that has read the old state",
    when="everything is cleared, and the load ends",
    must="a later read does not see the old state",
    right="fresh",
)
async def cleared_while_loading(peer: Peer) -> str:
    source = Source()
    source.value = "stale"

    fn = peer.cached(source.loader())
    first = ask(fn, 1)
    await settle()
    source.value = "fresh"
    await peer.clear(fn)
    source.gate.set()
    await seen(first)
    return await seen(ask(fn, 1))


@row(
    INVALIDATION,
    "an invalidated load fails late: its successor's value is",
    given="a load that was invalidated and still runs, and a newer one that has ended",
    when="the older one fails",
    must="the newer value stays",
    right="kept",
)
async def invalidated_load_fails_late(peer: Peer) -> str:
    source = Source()
    fail = asyncio.Event()

    async def load(x: int) -> Any:
        source.loads += 1
        if source.loads == 1:
            await fail.wait()
            raise ValueError
        return "value"

    fn = peer.cached(load)
    older = ask(fn, 1)
    await settle()
    await peer.invalidate(fn, 1)
    newer = ask(fn, 1)
    await settle()
    fail.set()
    await seen(older)
    if (got := await seen(newer)) != "value":
        return got
    await settle()
    await seen(ask(fn, 1))
    return "kept" if source.loads == 2 else "lost"


@row(
    INVALIDATION,
    "why is there no value?",
    given="a key never loaded, one invalidated, one cleared",
    when="each is looked up",
    must="three reasons",
    right="ABSENT, DELETED, CLEARED",
)
async def reason_of_a_miss(peer: Peer) -> str:
    async def load(x: int) -> Any:
        return x

    fn = peer.cached(load)
    reasons = [await peer.reason(fn, 1)]
    await answer(fn, 1)
    await peer.invalidate(fn, 1)
    reasons.append(await peer.reason(fn, 1))
    await answer(fn, 1)
    await peer.clear(fn)
    reasons.append(await peer.reason(fn, 1))
    return ", ".join(reasons)
