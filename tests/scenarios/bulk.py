"""Many keys, one load: callers of many and of single keys share it, in every order."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from async_safe_cache import RecursiveLoadError
from async_safe_cache.testing import pause

from . import Lab, scenario
from .coalescing import ended
from .fences import Database


def loader_of_many(
    lab: Lab,
    value: Callable[[str], Any] = str,
    *,
    longest: float = 0.3,
    omits: str = "",
    extras: str = "",
    clean_up: int = 0,
) -> Callable[[list[str]], Awaitable[dict[str, Any]]]:
    """Return a loader that reads its values first, waits, and then returns them."""

    async def load(absent: list[str]) -> dict[str, Any]:
        assert len(absent) == len(set(absent)) > 0
        lab.loads += 1
        lab.running += 1
        lab.most = max(lab.most, lab.running)
        try:
            read = {key: value(key) for key in [*absent, *extras] if key not in omits}
            await pause(longest)
            return read
        except asyncio.CancelledError:
            for _ in range(clean_up):
                await asyncio.sleep(0)
            raise
        finally:
            lab.running -= 1

    return load


@scenario(
    kills=("bulk-needed-for-one-key",),
    cancel=("first", "single"),
)
async def callers_of_many_and_of_one_share_each_key(lab: Lab) -> None:
    """Two that overlap in both orders, and a single caller: no key is loaded twice at a time."""
    cache = lab.cache()
    under_way: set[str] = set()

    async def load(absent: list[str]) -> dict[str, str]:
        assert not under_way & set(absent), "a key is loaded twice at a time"
        under_way.update(absent)
        try:
            await pause(0.3)
            return {key: key for key in absent}
        finally:
            under_way.difference_update(absent)

    async def load_one() -> str:
        return (await load(["b"]))["b"]

    got = await ended(
        lab,
        victims=("first", "single"),
        first=partial(cache.get_or_load_many, "abc", load),
        second=partial(cache.get_or_load_many, "dcb", load),
        single=partial(cache.get_or_load, "b", load_one),
    )
    everybody = len(got) == 3
    assert got.pop("single", "b") == "b"
    assert got.pop("first", {"a": "a", "b": "b", "c": "c"}) == {"a": "a", "b": "b", "c": "c"}
    second = got.pop("second")
    assert (list(second), second) == (list("dcb"), {"d": "d", "c": "c", "b": "b"})
    stats = cache.stats()
    assert stats.calls == 7 or not everybody
    assert stats.load_errors == 0
    assert await cache.get_many("dcb") == second


@scenario(
    kills=("bulk-stores-what-was-fenced", "bulk-extras-without-journal"),
    cancel=("early",),
)
async def a_delete_keeps_an_older_load_of_many_out(lab: Lab) -> None:
    """After a delete returned, no read sees what was read before it, asked for or not."""
    cache, source = lab.cache(), Database()
    load = loader_of_many(lab, lambda _: source.read(), extras="x")

    async def update() -> Any:
        source.version = 2
        await cache.delete("a", "x")
        extra = await cache.get("x", 2)
        return extra, await cache.get_or_load("a", lab.loader(source.read))

    got = await ended(
        lab,
        victims=("early",),
        early=partial(cache.get_or_load_many, "ab", load, store_extras=True),
        writer=update,
    )
    assert got["writer"] == (2, 2)
    assert await cache.get("a") == 2
    assert await cache.get("x", 2) == 2


@scenario(kills=("bulk-tells-clean-up-as-an-answer", "bulk-needed-for-one-key"), cancel=("first",))
async def an_abandoned_load_of_many_is_waited_out(lab: Lab) -> None:
    """When all leave it is cancelled, and nobody loads one of its keys beside its clean-up."""
    cache = lab.cache()
    load = loader_of_many(lab, clean_up=3)

    async def impatient() -> Any:
        try:
            async with asyncio.timeout(0.1):
                return await cache.get_or_load_many("ab", load)
        except TimeoutError:
            return {"a": "a", "b": "b"}

    got = await ended(
        lab,
        victims=("first",),
        first=impatient,
        second=impatient,
        single=partial(cache.get_or_load, "b", lab.loader(lambda: "b")),
        late=partial(cache.get_or_load_many, "ba", loader_of_many(lab)),
    )
    assert got.pop("single") == "b"
    assert all(each == {"a": "a", "b": "b"} for each in got.values())
    assert cache.stats().overlapping_loads == 0
    assert cache.stats().load_errors == 0


@scenario(kills=("bulk-omitted-key-answered",), two_tasks=True)
async def an_omitted_key_is_loaded_by_who_has_it(lab: Lab) -> None:
    """The caller of many does without it; the single caller has its own loader's value."""
    cache = lab.cache()
    got = await ended(
        lab,
        many=partial(cache.get_or_load_many, "ab", loader_of_many(lab, omits="b")),
        single=partial(cache.get_or_load, "b", lab.loader(lambda: "own")),
    )
    assert got["single"] == "own"
    assert got["many"] in ({"a": "a"}, {"a": "a", "b": "own"})
    assert await cache.get("b") == "own"


@scenario(kills=("bulk-of-its-own-key-waits",), cancel=("one",))
async def loads_of_many_that_wait_for_each_other_are_told_so(lab: Lab) -> None:
    """A circle through any of their keys: at least one gets the error, and nobody hangs."""
    cache = lab.cache()

    async def first(absent: list[str]) -> dict[str, Any]:
        await pause(0.1)
        got = await cache.get_or_load_many("d", second)
        return dict.fromkeys(absent, got)

    async def second(absent: list[str]) -> dict[str, Any]:
        await pause(0.1)
        got = await cache.get_or_load_many("b", first)
        return dict.fromkeys(absent, got)

    got = await ended(
        lab,
        allowed=(RecursiveLoadError,),
        victims=("one",),
        one=partial(cache.get_or_load_many, "ab", first),
        two=partial(cache.get_or_load_many, "cd", second),
    )
    assert all(isinstance(each, RecursiveLoadError) for each in got.values())
