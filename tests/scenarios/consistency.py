"""Many keys change as one: tags, transactions, views, updates, dependencies, locks."""

import asyncio
from functools import partial
from typing import Any

from async_safe_cache import AsyncSafeCache, LoadContext, TransactionConflictError, race_safe_cached
from async_safe_cache.testing import pause

from . import Lab, scenario
from .fences import Database


def consistent(cache: AsyncSafeCache) -> None:
    """No read has ever met an entry older than what it depends on."""
    assert cache.stats().inconsistent_reads == 0


def is_late(got: Any) -> bool:
    return isinstance(got, asyncio.CancelledError)


@scenario(kills=("tags-fence-no-loads",), cancel=("early", "writer"))
async def an_invalidated_tag_keeps_an_older_load_out(lab: Lab) -> None:
    """After invalidate_tags() returned, a read of a tagged key sees the new version."""
    cache, source = lab.cache(), Database()
    read = partial(cache.get_or_load, "a", lab.loader(source.read, longest=0.3), tags="t")

    async def update() -> Any:
        source.version = 2
        await cache.invalidate_tags("t")
        return await read()

    got = await lab.together(early=read, other=read, writer=update)
    assert got["writer"] == 2 or is_late(got["writer"])
    if not is_late(got["writer"]):
        assert await cache.get("a", 2) == 2


@scenario(kills=("late-tags-not-held-back",))
async def a_tag_that_the_loader_adds_last_keeps_it_out(lab: Lab) -> None:
    """A load that adds the invalidated tag when it ends is not stored."""
    cache, source = lab.cache(), Database()

    async def load(ctx: LoadContext) -> int:
        version = source.read()
        await pause(0.3)
        ctx.add_tags("t")
        return version

    async def update() -> Any:
        source.version = 2
        await cache.invalidate_tags("t")

    await lab.together(early=partial(cache.get_or_load, "a", load), writer=update)
    assert await cache.get("a", 2) == 2


@scenario(kills=("late-tags-stay-joinable",), cancel=("early", "writer"))
async def a_tag_that_the_loader_adds_last_is_fenced_too(lab: Lab) -> None:
    """A load that adds the invalidated tag when it ends is not stored, nor joined by newcomers."""
    cache, source = lab.cache(), Database()

    async def load(ctx: LoadContext) -> int:
        version = source.read()
        await pause(0.3)
        ctx.add_tags("t")
        return version

    async def update() -> Any:
        source.version = 2
        await cache.invalidate_tags("t")
        return await cache.get_or_load("a", load)

    read = partial(cache.get_or_load, "a", load)
    got = await lab.together(early=read, writer=update)
    assert got["writer"] == 2 or is_late(got["writer"])
    if not is_late(got["writer"]):
        assert await cache.get("a", 2) == 2


@scenario(kills=("set-apart-is-fenced",))
async def a_load_without_the_invalidated_tag_is_stored(lab: Lab) -> None:
    """A load that could still add tags, and adds others than those invalidated, is kept."""
    cache = lab.cache()

    async def load(ctx: LoadContext) -> int:
        await pause(0.3)
        ctx.add_tags("mine")
        return 1

    await lab.together(
        reader=partial(cache.get_or_load, "a", load), writer=partial(cache.invalidate_tags, "other")
    )
    assert await cache.get("a") == 1


@scenario(kills=("commit-in-two-steps",), cancel=("writer",))
async def a_commit_is_seen_whole_or_not_at_all(lab: Lab) -> None:
    """get_many and a view see both values of one commit, or neither; loads do not undo it."""
    cache, source = lab.cache(), Database()
    await cache.set_many({"a": 1, "b": 1})

    async def commit() -> None:
        async with cache.transaction() as tx:
            source.version = 2
            tx.set("a", 2)
            await pause()
            tx.set("b", 2)

    async def both() -> Any:
        return tuple((await cache.get_many(["a", "b"])).values())

    async def viewed() -> Any:
        async with cache.reading() as view:
            first = await view.get("a")
            await pause(0.3)
            return first, await view.get("b")

    got = await lab.together(writer=commit, reader=both, viewer=viewed)
    assert got["reader"] in ((1, 1), (2, 2))
    assert got["viewer"] in ((1, 1), (2, 2), (1, None))
    if is_late(got["writer"]):
        assert await both() in ((1, 1), (2, 2))
    else:
        assert await both() == (2, 2)


@scenario(kills=("commit-does-not-fence",))
async def a_commit_beats_an_older_load(lab: Lab) -> None:
    """What a transaction wrote is not overwritten by a load that began before the commit."""
    cache, source = lab.cache(), Database()
    read = partial(cache.get_or_load, "a", lab.loader(source.read, longest=0.3))

    async def commit() -> Any:
        source.version = 2
        async with cache.transaction() as tx:
            tx.set("a", 2)
        return await cache.get("a")

    got = await lab.together(early=read, writer=commit)
    assert got["writer"] == 2
    assert await cache.get("a") == 2


@scenario(kills=(), cancel=("one", "two"))
async def two_transactions_in_opposite_order_both_end(lab: Lab) -> None:
    """No deadlock, and what is left is of one of the two."""
    cache = lab.cache()

    async def commit(value: int, *keys: str) -> None:
        async with cache.transaction() as tx:
            for key in keys:
                await tx.get(key)
                await pause()
                tx.set(key, value)

    got = await lab.together(one=partial(commit, 1, "a", "b"), two=partial(commit, 2, "b", "a"))
    left = (await cache.get("a"), await cache.get("b"))
    assert left in ((1, 1), (2, 2)) or any(map(is_late, got.values()))
    assert left[0] == left[1]


@scenario(kills=("conflict-not-noticed",), cancel=("one",))
async def a_conflict_is_raised_and_nothing_applied(lab: Lab) -> None:
    """Two counters in transactions never lose an increment that they report as done."""
    cache = lab.cache()
    await cache.set("n", 0)

    async def add() -> bool:
        try:
            async with cache.transaction(on_conflict="raise") as tx:
                value = await tx.get("n")
                await pause()
                tx.set("n", value + 1)
        except TransactionConflictError:
            return False
        return True

    got = await lab.together(one=add, two=add)
    done = sum(value is True for value in got.values())
    assert await cache.get("n") == done or is_late(got["one"])
    assert not cache._engine.watches


@scenario(kills=("swap-without-compare",), cancel=("one",))
async def no_update_is_lost(lab: Lab) -> None:
    """Updates by async functions, an increment and a set in between: each one counts."""
    cache = lab.cache()
    await cache.set("n", 0)

    async def plus(value: int) -> int:
        await pause(0.2)
        return value + 1

    async def reset() -> None:
        await cache.set("n", 100)

    got = await lab.together(
        one=partial(cache.update, "n", plus),
        two=partial(cache.update, "n", plus),
        three=partial(cache.increment, "n"),
        four=reset,
    )
    left = await cache.get("n")
    after_the_set = {100, 101, 102, 103}
    assert left in after_the_set
    others = [got[name] for name in ("one", "two", "three") if not is_late(got[name])]
    assert len(set(others)) == len(others), "two updates began from the same value"


@scenario(kills=("view-without-generation",), cancel=("writer",))
async def a_view_sees_a_miss_and_never_a_mix(lab: Lab) -> None:
    """Whoever waits, gives up or does not wait at all: the view is of one moment."""
    cache = lab.cache(section_wait=0.1)
    await cache.set_many({"a": 1, "b": 1})

    async def viewed() -> Any:
        async with cache.reading() as view:
            first = await view.get("a")
            await pause(0.3)
            return first, await view.get("b")

    got = await lab.together(
        viewer=viewed, other=viewed, writer=partial(cache.set_many, {"a": 2, "b": 2})
    )
    for name in ("viewer", "other"):
        assert got[name] in ((1, 1), (2, 2), (1, None))
    assert not cache._sections.open


@scenario(kills=("lock-released-early",), cancel=("one", "two"))
async def a_lock_keeps_others_out_until_its_end(lab: Lab) -> None:
    """Sections of one key never overlap, in whatever order their keys are named."""
    cache = lab.cache()
    inside: list[str] = []

    async def section(name: str, *keys: str) -> None:
        async with cache.lock(*keys):
            assert not inside, f"{name} is beside {inside}"
            inside.append(name)
            try:
                await pause(0.2)
            finally:
                inside.remove(name)

    got = await lab.together(
        one=partial(section, "one", "a", "b"),
        two=partial(section, "two", "b", "a"),
        three=partial(section, "three", "a"),
    )
    assert all(value is None or is_late(value) for value in got.values()), got


@scenario(kills=("dependency-edge-dropped", "cascade-does-not-fence"), cancel=("early",))
async def a_change_reaches_everything_that_depends_on_it(lab: Lab) -> None:
    """After a delete returned, no read sees what was computed before it, at any distance."""
    cache, source = lab.cache(), Database()

    async def middle() -> Any:
        return await cache.get_or_load("b", lab.loader(source.read), depends_on="a")

    async def last() -> Any:
        return await cache.get_or_load("c", middle, depends_on="b")

    async def update() -> Any:
        source.version = 2
        await cache.delete("a")
        return await last()

    got = await lab.together(early=last, writer=update)
    assert got["writer"] == 2
    assert await cache.get("b", 2) == await cache.get("c", 2) == 2
    consistent(cache)


@scenario(kills=("kept-edges-dropped",))
async def a_change_passes_through_what_was_evicted(lab: Lab) -> None:
    """a -> b -> c, and b is evicted: a change of a still reaches c."""
    cache = lab.cache(max_entries=1)

    async def write() -> None:
        await cache.set("b", 1, depends_on="a")
        await cache.set("c", 1, depends_on="b")  # evicts b

    async def change() -> None:
        await cache.delete("a")

    await write()
    await lab.together(writer=change, reader=partial(cache.get, "c"))
    assert await cache.get("c") is None
    consistent(cache)


@scenario(kills=("refresh-fences-who-waits-for-it",), cancel=("reader",))
async def a_refresh_of_a_source_by_its_dependent_spares_it(lab: Lab) -> None:
    """A load that refreshes its own source sees the new value, and is stored."""
    cache = lab.cache()

    async def number() -> int:
        await pause()
        return lab.fresh()

    source = race_safe_cached(cache, "source")(number)

    async def load() -> Any:
        return await cache.refresh(source)

    await source()
    read = partial(cache.get_or_load, "b", load, depends_on=source)
    got = await lab.together(reader=read, other=read)
    assert got["other"] >= 2
    assert await cache.get("b") == await source() == got["other"]
    consistent(cache)
