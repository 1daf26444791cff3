"""What can be a value, what can be a key, and whose method it is."""

import asyncio
import contextvars
import gc
import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

from .peers import Peer
from .story import ask, count, is_error, row, seen, settle

# ---- values

VALUES: Final = "Values"


@row(
    VALUES,
    "None is cached: loads of 2 calls",
    given="a function that returns None",
    when="it is called twice",
    must="one load: None is a value",
    right="1 load",
    telling=True,
)
async def none_is_a_value(peer: Peer) -> str:
    loads = 0

    async def load(x: int) -> None:
        nonlocal loads
        loads += 1

    fn = peer.cached(load)
    for _ in range(2):
        await fn(1)
    return count(loads, "load")


@row(
    VALUES,
    "the function returns a generator",
    given="a function whose result can be used only once",
    when="two callers go through it, one after the other",
    must="both see all of it, or it is refused",
    right=lambda found: found == "whole twice" or is_error(found),
)
async def result_is_a_generator(peer: Peer) -> str:
    async def load(x: int) -> Any:
        return (number for number in range(3))

    fn = peer.cached(load)
    try:
        got = [list(await fn(1)) for _ in range(2)]
    except Exception as error:
        return type(error).__name__
    return "whole twice" if got[1] == got[0] else f"{len(got[0])} items, then {len(got[1])}"


@row(
    VALUES,
    "a user's context variable in the load",
    given="a function whose result depends on a context variable, not on its arguments",
    when="a second user asks",
    must="nothing: every cache shares it, so make it an argument",
    right=None,
)
async def context_of_the_first_caller(peer: Peer) -> str:
    user = contextvars.ContextVar("user", default="nobody")

    async def load(x: int) -> Any:
        return user.get()

    fn = peer.cached(load)
    user.set("first user's")
    await seen(ask(fn, 1))
    user.set("own")
    return await seen(ask(fn, 1))


# ---- keys

KEYS: Final = "Keys, as the library makes them"


async def apart(peer: Peer, values: Iterable[object]) -> str:
    loads = 0

    async def load(x: object) -> Any:
        nonlocal loads
        loads += 1
        return loads

    fn = peer.cached(load)
    for value in values:
        await fn(value)
    return f"{loads} apart"


@row(
    KEYS,
    '1, 1.0, True, "1" kept apart',
    given="four arguments that compare or print alike",
    when="each is asked for",
    must="four values",
    right="4 apart",
    telling=True,
)
async def types_apart(peer: Peer) -> str:
    return await apart(peer, [1, 1.0, True, "1"])


@row(
    KEYS,
    "(1,), (1.0,), (True,) kept apart",
    given="the same inside tuples",
    when="each is asked for",
    must="three values",
    right="3 apart",
)
async def nested_types_apart(peer: Peer) -> str:
    return await apart(peer, [(1,), (1.0,), (True,)])


@row(
    KEYS,
    "f(1), f(x=1), f(1, y=default): loads",
    given="def f(x, y=2)",
    when="it is called as f(1), f(x=1) and f(1, y=2)",
    must="one load: it is one call",
    right="1 load",
    telling=True,
)
async def forms_of_one_call(peer: Peer) -> str:
    loads = 0

    async def load(x: int, y: int = 2) -> Any:
        nonlocal loads
        loads += 1
        return x

    fn = peer.cached(load)
    await fn(1)
    await fn(x=1)
    await fn(1, y=2)
    return count(loads, "load")


@row(
    KEYS,
    "strings that hold separators kept apart",
    given="f(x, y) and strings such as user input may hold",
    when='("a:y:b", "c") and ("a", "b:y:c") are asked for, and the same with _ and with -',
    must="six values",
    right="6 apart",
)
async def strings_with_separators(peer: Peer) -> str:
    loads = 0

    async def load(x: str, y: str) -> Any:
        nonlocal loads
        loads += 1
        return loads

    fn = peer.cached(load)
    for separator in ":_-":
        inside = f"{separator}y{separator}"
        await fn(f"a{inside}b", "c")
        await fn("a", f"b{inside}c")
    return f"{loads} apart"


@row(
    KEYS,
    "a list as an argument: loads of 2 equal calls",
    given="a function of a list",
    when="it is called with two equal lists",
    must="one load",
    right="1 load",
)
async def list_as_an_argument(peer: Peer) -> str:
    loads = 0

    async def load(x: list[int]) -> Any:
        nonlocal loads
        loads += 1
        return sum(x)

    fn = peer.cached(load)
    try:
        await fn([1, 2])
        await fn([1, 2])
    except Exception as error:
        return type(error).__name__
    return count(loads, "load")


class Query:
    """An argument without an `__eq__` of its own."""

    def __init__(self, name: str) -> None:
        self.name = name


@row(
    KEYS,
    "short-lived objects as arguments: each gets",
    given="arguments that are plain objects, without __eq__ or __repr__",
    when="a hundred of them are asked for and dropped, and a hundred new ones follow",
    must="its own value, or a refusal",
    right=lambda found: found == "its own value" or is_error(found),
)
async def short_lived_arguments(peer: Peer) -> str:
    async def load(query: Query) -> Any:
        return query.name

    fn = peer.cached(load)
    try:
        for generation in "ab":
            queries = [Query(f"{generation}{number}") for number in range(100)]
            if any([await fn(query) != query.name for query in queries]):
                return "a dead one's"
            del queries
            await settle()
    except Exception as error:
        return type(error).__name__
    return "its own value"


# ---- methods

METHODS: Final = "Methods"


def service_of(peer: Peer) -> Callable[[str], Any]:
    """Return a class with a cached method, as the library wants it written."""

    class Service:
        def __init__(self, tenant: str) -> None:
            self.tenant = tenant
            peer.prepare(self)

        @peer.method
        async def user(self, x: int) -> Any:
            return self.tenant

    return Service


@row(
    METHODS,
    "an instance whose method was cached is",
    given="an object with a cached method that was called",
    when="the last reference to the object goes",
    must="it is collected",
    right="collected",
    telling=True,
)
async def instance_of_a_method(peer: Peer) -> str:
    make = service_of(peer)  # the class stays, as classes do
    service = make("a")
    await service.user(1)
    alive = weakref.ref(service)
    del service
    await settle()
    gc.collect()
    return "collected" if alive() is None else "kept alive"


@row(
    METHODS,
    "short-lived instances (one per request): each gets",
    given="a class with a cached method",
    when="a hundred instances are used and dropped, and a hundred new ones follow",
    must="its own value",
    right="its own value",
)
async def short_lived_instances(peer: Peer) -> str:
    make = service_of(peer)
    for generation in "ab":
        services = [make(f"{generation}{number}") for number in range(100)]
        if any([await service.user(1) != service.tenant for service in services]):
            return "a dead one's"
        del services
        await settle()
    return "its own value"


@row(
    METHODS,
    "a cached async def is still a coroutine function",
    given="a decorated async def",
    when="a framework asks inspect.iscoroutinefunction, and a task is made of a call",
    must="both work",
    right="yes",
)
async def real_coroutine_function(peer: Peer) -> str:
    async def load(x: int) -> Any:
        return x

    fn: Any = peer.cached(load)
    try:
        await asyncio.create_task(fn(1))
    except TypeError:
        return "no task of it"
    return "yes" if inspect.iscoroutinefunction(fn) else "not seen"
