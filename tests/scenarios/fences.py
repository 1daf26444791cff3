"""After a write returned, no read that begins later sees a value whose load began before it."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from async_safe_cache import AsyncSafeCache
from async_safe_cache.testing import pause

from . import Lab, scenario


class Database:
    """The source of truth: one number that grows."""

    def __init__(self) -> None:
        self.version = 1

    def read(self) -> int:
        """Return the present version."""
        return self.version


Invalidate = Callable[[AsyncSafeCache], Awaitable[Any]]


async def _after_a_write_nothing_older(lab: Lab, invalidate: Invalidate) -> None:
    """Update the source, invalidate, read: the reader after it must see the update."""
    cache, source = lab.cache(), Database()
    read = partial(cache.get_or_load, "a", lab.loader(source.read))

    async def update() -> Any:
        source.version = 2
        await invalidate(cache)
        return await read()

    got = await lab.together(early=read, other=read, writer=update)
    assert got["writer"] == 2 or isinstance(got["writer"], asyncio.CancelledError)
    for name in ("early", "other"):
        assert got[name] in (1, 2) or isinstance(got[name], asyncio.CancelledError)
    if not isinstance(got["writer"], asyncio.CancelledError):
        assert await cache.get("a", 2) == 2


@scenario(
    kills=(
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "join-while-cancelling",
        "land-without-identity-check",
        "other-waiters-not-counted",
    ),
    cancel=("early", "writer"),
)
async def a_delete_keeps_an_older_load_out(lab: Lab) -> None:
    """After delete() returned, a read sees the new version, whatever load was under way."""
    await _after_a_write_nothing_older(lab, lambda cache: cache.delete("a"))


@scenario(
    kills=(
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
        "other-waiters-not-counted",
    ),
    cancel=("early",),
)
async def an_expire_keeps_an_older_load_out(lab: Lab) -> None:
    """After expire() returned, a read sees the new version, whatever load was under way."""
    await _after_a_write_nothing_older(lab, lambda cache: cache.expire("a"))


@scenario(
    kills=(
        "clear-without-fence",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "join-while-cancelling",
        "land-without-identity-check",
        "other-waiters-not-counted",
    ),
    cancel=("early", "writer"),
)
async def a_clear_keeps_an_older_load_out(lab: Lab) -> None:
    """After clear() returned, a read sees the new version, whatever load was under way."""
    await _after_a_write_nothing_older(lab, lambda cache: cache.clear())


@scenario(
    kills=(
        "decrement-forgotten",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
        "late-hit-not-seen",
        "retire-skipped",
        "set-without-fence",
    ),
    cancel=("loader", "setter"),
)
async def a_set_beats_an_older_load(lab: Lab) -> None:
    """A value that was set is not overwritten by a load that began before it."""
    cache = lab.cache()

    async def put() -> None:
        await cache.set("a", "set")

    got = await lab.together(
        loader=partial(cache.get_or_load, "a", lab.loader(lambda: "loaded")),
        setter=put,
        reader=partial(cache.get_or_load, "a", lab.loader(lambda: "loaded")),
    )
    if not isinstance(got["setter"], asyncio.CancelledError):
        # A load that began after the set would have found it.
        assert await cache.get("a") == "set"


@scenario(
    kills=(
        "decrement-forgotten",
        "delete-without-fence",
        "fence-cancels-those-who-waited",
        "fence-of-an-absent-key-records-nothing",
        "fenced-load-stays-joinable",
    ),
    two_tasks=True,
)
async def a_delete_of_what_is_absent_fences_too(lab: Lab) -> None:
    """A delete that finds nothing stored still shuts out the load under way, and says DELETED."""
    cache, source = lab.cache(), Database()
    began = asyncio.Event()

    async def load() -> int:
        began.set()
        return await lab.loader(source.read)()

    async def update() -> Any:
        await began.wait()
        source.version = 2
        await cache.delete("a")
        return (await cache.lookup("a")), await cache.get_or_load("a", lab.loader(source.read))

    got = await lab.together(reader=partial(cache.get_or_load, "a", load), writer=update)
    look, value = got["writer"]
    assert value == 2
    assert not look.hit
    assert str(look.reason) == "DELETED"
    assert got["reader"] == 1


@scenario(
    kills=(
        "decrement-forgotten",
        "delete-without-fence",
        "end-without-identity-check",
        "fence-cancels-those-who-waited",
        "fenced-load-stays-joinable",
        "join-starts-another-load",
        "land-without-identity-check",
        "other-waiters-not-counted",
    ),
    cancel=("first",),
)
async def a_fenced_load_leaves_its_successor_alone(lab: Lab) -> None:
    """A load that was fenced ends, in any order, without touching the one after it."""
    cache, source = lab.cache(), Database()

    async def update() -> Any:
        source.version += 1
        await cache.delete("a")
        return await cache.get_or_load("a", lab.loader(source.read, longest=0.1))

    read = partial(cache.get_or_load, "a", lab.loader(source.read, longest=0.3))
    got = await lab.together(first=read, one=update, two=update, last=read)
    assert max(each for each in got.values() if isinstance(each, int)) == 3
    stored = await cache.get("a")
    assert stored in (3, None)
    # The load after the last update was fenced by nobody: it is there.
    assert stored == 3
    assert got["one"] in (2, 3)
    assert got["two"] in (2, 3)
    assert 3 in (got["one"], got["two"])


@scenario(
    kills=(
        "decrement-forgotten",
        "delete-without-fence",
        "fenced-load-stays-joinable",
        "join-while-cancelling",
        "land-without-identity-check",
        "other-waiters-not-counted",
        "retire-skipped",
    ),
    cancel=("refresher",),
)
async def a_refresh_does_not_undo_a_delete(lab: Lab) -> None:
    """A refresh that began before a delete stores nothing after it."""
    cache, source = lab.cache(), Database()

    async def fetch() -> int:
        return await lab.loader(source.read)()

    from async_safe_cache import race_safe_cached

    cached = race_safe_cached(cache, "fetch")(fetch)
    assert await cached() == 1

    async def update() -> Any:
        source.version = 2
        await cache.invalidate(cached)
        return await cached()

    got = await lab.together(refresher=lambda: cache.refresh(cached), writer=update, reader=cached)
    assert got["writer"] == 2
    assert await cached() == 2
    assert got["reader"] in (1, 2)


@scenario(
    kills=(
        "decrement-forgotten",
        "fence-cancels-those-who-waited",
        "land-without-identity-check",
    ),
    cancel=("writer",),
)
async def readers_of_one_key_never_go_back(lab: Lab) -> None:
    """Who has seen a version never sees an older one afterwards."""
    cache, source = lab.cache(), Database()
    load = lab.loader(source.read)

    async def write() -> None:
        for _ in range(2):
            source.version += 1
            await cache.delete("a")
            await pause()

    async def follow() -> list[int]:
        seen = []
        for _ in range(3):
            seen.append(await cache.get_or_load("a", load))
            await pause()
        return seen

    got = await lab.together(writer=write, one=follow, two=follow)
    for name in ("one", "two"):
        assert got[name] == sorted(got[name]), got[name]


@scenario(
    kills=(
        "decrement-forgotten",
        "delete-without-fence",
        "fenced-load-stays-joinable",
        "land-without-identity-check",
    )
)
async def many_keys_are_fenced_one_by_one(lab: Lab) -> None:
    """A delete of one key does not disturb the load of another."""
    cache, source = lab.cache(), Database()
    await_b = partial(cache.get_or_load, "b", lab.loader(source.read))

    async def update() -> int:
        source.version = 2
        return await cache.delete("a", "c")

    got = await lab.together(
        a=partial(cache.get_or_load, "a", lab.loader(source.read)),
        b=await_b,
        writer=update,
    )
    assert await cache.get("b") == got["b"]
    assert await cache.get("a", 2) == 2


@scenario(
    kills=(
        "decrement-forgotten",
        "retire-skipped",
    ),
    two_tasks=True,
)
async def what_is_read_in_one_step_is_of_one_moment(lab: Lab) -> None:
    """get_many sees both values of a writer that sets two keys, in its order."""
    cache = lab.cache()

    async def write() -> None:
        for number in (1, 2, 3):
            await cache.set("first", number)
            await pause()
            await cache.set("second", number)

    async def read() -> list[dict[str, int]]:
        seen = []
        for _ in range(4):
            seen.append(await cache.get_many(["second", "first"]))
            await pause()
        return seen

    got = await lab.together(writer=write, reader=read)
    for found in got["reader"]:
        assert found.get("first", 0) - found.get("second", 0) in (0, 1)
