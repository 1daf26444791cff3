"""race_safe_cached on everything that can be decorated."""

import asyncio
import gc
import inspect
import linecache
import pickle
import traceback
import weakref
from typing import Any

import pytest

import async_safe_cache
from async_safe_cache import (
    AsyncSafeCache,
    CacheClosedError,
    MissReason,
    UnsupportedKeyError,
    get_async_safe_cache,
    race_safe_cached,
)

from .virtual import VirtualClock, at_once, run_virtual


async def test_equal_calls_share_one_load_however_they_are_written() -> None:
    cache = AsyncSafeCache()
    calls = []

    @race_safe_cached(cache)
    async def f(x, y=2, *, z=3):
        calls.append((x, y, z))
        return len(calls)

    answers = {await f(1), await f(1, 2), await f(x=1), await f(y=2, x=1), await f(1, z=3)}
    assert answers == {1}
    assert calls == [(1, 2, 3)]


async def test_values_of_other_types_are_other_calls() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache)
    async def f(x):
        return type(x)

    @race_safe_cached(cache)
    async def g(x, y):
        return type(x), type(y)

    for _ in range(2):
        for value in (1, 1.0, True, "1", b"1", None, (1,), (True,), [1], {1: 1}, frozenset({1})):
            assert await f(value) is type(value)
            for other in (1, 1.0, True, "1"):
                assert await g(value, other) == (type(value), type(other))


SIGNATURES: list[tuple[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]] = [
    ("", [((), {})]),
    ("a", [((1,), {}), ((), {"a": 1})]),
    ("a, /, b", [((1, 2), {}), ((1,), {"b": 2})]),
    ("a, /", [((1,), {})]),
    ("a, *, b", [((1,), {"b": 2}), ((), {"a": 1, "b": 2})]),
    ("*, a=1", [((), {}), ((), {"a": 1})]),
    ("a, b=2, /, c=3, *, d=4", [((1,), {}), ((1, 2, 3), {"d": 4}), ((1,), {"c": 3})]),
    ("*args", [((1, 2), {})]),
    ("a, *args, b=2, **kwargs", [((1, 5), {"c": 3}), ((1, 5), {"c": 3, "b": 2})]),
    ("**kwargs", [((), {"a": 1, "self": 2}), ((), {"self": 2, "a": 1})]),
    ("type, id, v, f, wrapper", [((1, 2, 3, 4, 5), {})]),
    ("a=[], b={}", [((), {}), (([], {}), {})]),
]


@pytest.mark.parametrize(("signature", "calls"), SIGNATURES, ids=[each[0] for each in SIGNATURES])
@pytest.mark.parametrize("keyword", ["async def", "def"])
async def test_every_kind_of_signature_is_bound_as_python_binds_it(
    signature: str, calls: Any, keyword: str
) -> None:
    scope: dict[str, Any] = {}
    exec(f"{keyword} original({signature}): return dict(locals())", scope)
    original = scope["original"]
    cache = AsyncSafeCache()
    cached = race_safe_cached(cache)(original)
    assert inspect.signature(cached) == inspect.signature(original)
    assert inspect.iscoroutinefunction(cached) == (keyword == "async def")

    async def result(function: Any, args: Any, kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    for args, kwargs in calls:
        assert await result(cached, args, kwargs) == await result(original, args, kwargs)
        assert cached.cache_contains(*args, **kwargs)
    assert cache.stats().misses == 1
    assert cache.stats().hits == len(calls) - 1
    if "*args" not in signature:
        with pytest.raises(TypeError):
            await result(cached, (1,) * 9, {"unknown_parameter": 1})


async def test_the_wrapper_looks_like_the_original() -> None:
    @race_safe_cached(AsyncSafeCache())
    async def documented(x: int) -> str:
        """Say x."""
        return str(x)

    assert documented.__name__ == "documented"
    assert documented.__qualname__.endswith("<locals>.documented")
    assert documented.__doc__ == "Say x."
    assert documented.__annotations__ == {"x": int, "return": str}
    assert await documented.__wrapped__(5) == "5"
    assert documented.cache_parameters()["tasks"] == 0


async def test_the_attributes_of_functools_and_async_lru() -> None:
    cache = AsyncSafeCache(max_entries=10)

    @race_safe_cached(cache, ttl=60)
    async def f(x, y=2):
        return x * y

    await asyncio.gather(f(1), f(1), f(2))
    await f(1)
    assert f.cache_info() == (2, 2, 10, 2), "the join counts as a hit"
    assert f.cache_contains(1, y=2)
    assert not f.cache_contains(3)
    assert f.cache_key(1) == f.cache_key(x=1) == cache.key_for(f, 1, 2)
    assert await cache.get(f.cache_key(1)) == 2
    assert f.cache_invalidate(1, 2) is True
    assert f.cache_invalidate(1, 2) is False
    assert (await cache.lookup(f.cache_key(1))).reason is MissReason.DELETED
    expected = {"maxsize": 10, "typed": True, "ttl": 60, "tasks": 0, "closed": False}
    assert f.cache_parameters() == expected
    f.cache_clear()
    assert f.cache_info() == (0, 0, 10, 0)
    assert cache.stats().calls == 6, "the cache's own counters go on"
    await f(1)
    await f.cache_close()
    with pytest.raises(CacheClosedError):
        await f(1)
    await cache.set("key", 1)
    assert await cache.get("key") == 1, "only the function is closed"


def test_the_attributes_on_a_plain_def() -> None:
    cache = AsyncSafeCache()

    @race_safe_cached(cache)
    def f(x):
        return [x]

    assert f(1) is f(1)
    assert f.cache_info()[:2] == (1, 1)
    f.cache_close(wait=True)
    with pytest.raises(CacheClosedError):
        f(1)


async def test_the_typed_controls() -> None:
    cache = AsyncSafeCache()
    calls = []

    @race_safe_cached(cache, "numbered")
    async def f(x):
        calls.append(x)
        return len(calls)

    assert await f(1) == 1
    assert await cache.refresh(f, 1) == 2
    assert await f(1) == 2
    assert await cache.invalidate(f, x=1) is True
    assert await cache.invalidate(f, 1) is False
    assert await f(1) == 3
    info = cache.info(f)
    assert (info.name, info.hits, info.misses, info.loads, info.entries) == ("numbered", 1, 2, 3, 1)
    key = cache.key_for(f, 1)
    assert await cache.delete(key) == 1
    await cache.set(key, "set")
    assert await f(1) == "set"
    assert await cache.touch(key, 5)
    assert await cache.get_many([key]) == {key: "set"}
    assert await cache.get_or_load(key, lambda: "other") == "set"
    with pytest.raises(ValueError, match="another cache"):
        await AsyncSafeCache("other").get(key)
    with pytest.raises(ValueError, match="another cache"):
        await AsyncSafeCache("other").invalidate(f, 1)
    with pytest.raises(TypeError, match="not decorated"):
        await cache.invalidate(len, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        cache.key_for(f, 1, 2, 3)
    with pytest.raises(TypeError):
        pickle.dumps(key)


class Service:
    cache = AsyncSafeCache("service")

    def __init__(self, name: str) -> None:
        self.name = name

    @race_safe_cached(cache)
    async def get(self, x):
        return self.name, x

    @race_safe_cached(cache)
    def read(self, x):
        return self.name, x

    @classmethod
    @race_safe_cached(cache)
    async def of_class(cls, x):
        return cls, x

    @race_safe_cached(cache)
    @classmethod
    async def of_class_too(cls, x):
        return cls, x

    @staticmethod
    @race_safe_cached(cache)
    async def plain(x):
        return [x]

    @race_safe_cached(cache, key=lambda self, x: (self.name, x))
    async def by_name(self, x):
        return [self.name, x]


async def test_methods_keep_a_namespace_per_instance() -> None:
    a, b = Service("a"), Service("b")
    for _ in range(2):
        assert (await a.get(1), await b.get(1)) == (("a", 1), ("b", 1))
        assert (a.read(1), b.read(1)) == (("a", 1), ("b", 1))
    assert Service.get.cache_info()[:2] == (2, 2)
    assert await Service.cache.invalidate(a.get, 1)
    assert not Service.get.cache_contains(a, 1)
    assert Service.get.cache_contains(b, 1)
    assert Service.get.cache_invalidate(b, 1)
    assert Service.cache.info(a.get).entries == 0
    assert await Service.cache.refresh(a.get, 2) == ("a", 2)
    assert await Service.cache.refresh(b.read, 2) == ("b", 2)


async def test_class_and_static_methods() -> None:
    class Child(Service):
        pass

    for _ in range(2):
        assert await Service.of_class(1) == (Service, 1)
        assert await Child.of_class(1) == (Child, 1)
        assert await Child("x").of_class_too(1) == (Child, 1)
        assert await Service.plain(1) is await Service("x").plain(1)


async def test_key_chooses_what_a_call_is_found_by() -> None:
    assert await Service("same").by_name(1) is await Service("same").by_name(1)
    assert await Service("same").by_name(1) != await Service("other").by_name(1)
    cache = AsyncSafeCache()

    @race_safe_cached(cache, key=lambda request, **_: request["id"])
    async def f(request, *, trace=None):
        return [request["id"]]

    assert await f({"id": 1, "noise": 2}, trace=object()) is await f({"id": 1})
    with pytest.raises(KeyError):
        await f({})
    with pytest.raises(UnsupportedKeyError):
        await f({"id": [1]})
    assert len(cache) == 1


async def test_an_instance_is_held_weakly_and_takes_its_entries_along() -> None:
    cache = AsyncSafeCache()

    class Thing:
        @race_safe_cached(cache)
        async def get(self, x):
            return x

    thing = Thing()
    await thing.get(1)
    gone = weakref.ref(thing)
    await asyncio.sleep(0)  # the load's task ends
    del thing
    gc.collect()
    assert gone() is None
    assert await Thing().get(2) == 2
    assert len(cache) == 1
    assert len(Thing.get.__async_safe_cache__.instances) <= 1
    assert cache.stats().removals_by_cause["COLLECTED"] == 1


async def test_an_instance_that_cannot_be_held_weakly_is_refused() -> None:
    class Slotted:
        __slots__ = ()

        @race_safe_cached(AsyncSafeCache())
        async def get(self, x):
            return x

    with pytest.raises(UnsupportedKeyError, match="self of type Slotted"):
        await Slotted().get(1)


def named(name: str, body: str = "return x", scope: dict[str, Any] | None = None) -> Any:
    """Return a new function `name`, compiled as if its module was loaded again."""
    scope = {"__name__": "some.module"} if scope is None else scope
    exec(f"async def {name}(x): {body}", scope)
    return scope[name]


async def test_two_live_functions_cannot_have_one_prefix() -> None:
    cache = AsyncSafeCache()
    one = race_safe_cached(cache, "same")(named("one"))
    with pytest.raises(ValueError, match=r"some\.module\.one.*some\.module\.two"):
        race_safe_cached(cache, "same")(named("two"))
    race_safe_cached(AsyncSafeCache(), "same")(named("two"))
    del one
    gc.collect()
    assert race_safe_cached(cache, "same")(named("two"))


async def test_two_closures_of_one_code_object() -> None:
    cache = AsyncSafeCache()

    def make(n: int, *prefix: str) -> Any:
        @race_safe_cached(cache, *prefix)
        async def f(x):
            return n * x

        return f

    double, triple = make(2), make(3)
    assert (await double(1), await triple(1)) == (2, 3), "without a prefix each has its own entries"
    first = make(2, "p")
    with pytest.raises(ValueError, match="'p'"):
        make(3, "p")
    assert await first(1) == 2


@pytest.mark.parametrize("prefix", [(), ("p",)])
async def test_a_reloaded_function_replaces_the_older_one_and_clears_it(
    prefix: tuple[str, ...],
) -> None:
    cache = AsyncSafeCache()
    old = race_safe_cached(cache, *prefix)(named("f", "return 'old'"))
    assert await old(1) == "old"
    new = race_safe_cached(cache, *prefix)(named("f", "return 'new'"))
    assert len(cache) == 0
    assert await new(1) == "new"
    assert await old(1) == "old", "whoever still holds the old one gets what it computes"


async def test_a_function_that_is_gone_leaves_its_counts_and_nothing_else() -> None:
    cache = AsyncSafeCache()

    def make() -> Any:
        @race_safe_cached(cache)
        async def f(x):
            return f.__name__, x  # its closure holds the wrapper itself

        return f

    for _ in range(50):
        await make()(1)
        await asyncio.sleep(0)
    gc.collect()
    await cache.set("key", 1)
    gc.collect()
    await cache.set("key", 1)
    assert cache.stats().calls == 50
    assert len(cache._engine.counters) <= 3
    assert len(cache) <= 2


async def test_an_argument_with_an_evil_hash_is_not_mistaken_for_a_miss() -> None:
    cache = AsyncSafeCache()

    class Evil:
        def __hash__(self) -> int:
            raise KeyError("evil")

        def __eq__(self, other: object) -> bool:
            return True

    @race_safe_cached(cache)
    async def f(x):
        return x

    await f(1)
    with pytest.raises(UnsupportedKeyError, match=r"x of type .*Evil"):
        await f(Evil())

    class Same:
        def __hash__(self) -> int:
            return hash("a")

        def __eq__(self, other: object) -> bool:
            return True

        def __cache_key__(self) -> str:
            return "b"

    await f("a")
    assert type(await f(Same())) is Same


async def test_a_traceback_shows_the_wrapper_and_the_function() -> None:
    @race_safe_cached(AsyncSafeCache())
    async def failing(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as raised:
        await failing(1)
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert frames[-1].name == "failing"
    wrapper = next(frame for frame in frames if "async_safe_cache wrapper" in frame.filename)
    assert "_asc_miss" in (wrapper.line or "")
    assert linecache.getline(wrapper.filename, 1).startswith("def bind")
    assert "exec" not in failing.cache_source


async def test_the_bare_form_uses_the_default_cache() -> None:
    @race_safe_cached
    async def bare(x):
        return [x]

    @race_safe_cached()
    async def called(x):
        return [x]

    assert await bare(1) is await bare(1)
    assert await called(1) is await called(1)
    cache = await get_async_safe_cache()
    assert cache.info(bare).hits == 1
    await cache.aclose()
    assert await (await get_async_safe_cache()).get("x") is None
    assert not cache.closed
    await cache.aclose()
    await cache.start()
    cache._sweeper.wanted = False


def test_every_public_name_is_there_and_documented() -> None:
    for name in async_safe_cache.__all__:
        value = getattr(async_safe_cache, name)
        assert name == "MISSING" or inspect.getdoc(value), name


def test_a_default_ttl_and_the_options_of_each_level(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(default_ttl=10, clock=clock)

    @race_safe_cached(cache)
    def inherits(x):
        return x

    @race_safe_cached(cache, ttl=None)
    def for_ever(x):
        return x

    inherits(1)
    for_ever(1)
    at_once(cache.set("cache", 1))
    at_once(cache.set("call", 1, ttl=20))
    left = [
        at_once(cache.lookup(key)).ttl_left
        for key in (cache.key_for(inherits, 1), cache.key_for(for_ever, 1), "cache", "call")
    ]
    assert left == [10, None, 10, 20]


def test_a_hit_of_a_decorated_function_ends_with_its_ttl(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    calls = []

    @race_safe_cached(cache, ttl=30)
    def f(x):
        calls.append(x)
        return len(calls)

    @race_safe_cached(cache, ttl=30)
    def g(x, y):
        return f(x)

    assert (f(1), g(1, 2)) == (1, 1)
    clock.now = 1029.999
    assert (f(1), g(1, 2)) == (1, 1)
    clock.now = 1030.0
    assert f(1) == 2
    assert g(1, 2) == 2


@pytest.mark.parametrize("own_ttl", [None, 3600])
def test_a_deadline_that_somebody_else_gave_ends_a_hit_too(
    clock: VirtualClock, own_ttl: float | None
) -> None:
    """The template of a function without a ttl does not look at deadlines.

    So an entry of it that has one all the same must not be found by it.
    """
    cache = AsyncSafeCache(clock=clock)
    loads = 0

    @race_safe_cached(cache, ttl=own_ttl)
    async def f(x: int, y: int = 0) -> int:
        nonlocal loads
        loads += 1
        return loads

    assert ("_asc_clock" in f.cache_source) == (own_ttl is not None)

    async def main() -> None:
        key = cache.key_for(f, 1)
        await cache.set(key, "given", ttl=5)
        assert (await f(1), loads) == ("given", 0)
        clock.advance(4.999)
        assert (await f(1), loads) == ("given", 0)
        clock.advance(0.001)
        assert (await f(1), loads) == (1, 1)
        assert await cache.touch(key, 5)
        assert (await f(1), loads) == (1, 1)
        clock.advance(5)
        assert (await f(1), loads) == (2, 2)
        assert await cache.touch(key, None)
        clock.advance(1e9)
        assert (await f(1), loads) == (2, 2)
        assert cache.stats().hits == 4

    run_virtual(main(), clock)


async def test_a_new_instance_at_the_address_of_an_old_one_finds_nothing() -> None:
    cache = AsyncSafeCache()

    class Thing:
        def __init__(self, name: str) -> None:
            self.name = name

        @race_safe_cached(cache)
        async def get(self, x):
            return self.name

    old, new = Thing("old"), Thing("new")
    assert await old.get(1) == "old"
    function = Thing.get.__async_safe_cache__
    function.instances[id(new)] = function.instances[id(old)]  # as if the id was used again
    assert await new.get(1) == "new"
    assert await old.get(1) == "old"


async def test_a_refresh_that_joins_a_load_is_no_call() -> None:
    cache = AsyncSafeCache()
    go = asyncio.Event()

    @race_safe_cached(cache)
    async def f(x):
        await go.wait()
        return [x]

    call = asyncio.create_task(f(1))
    await asyncio.sleep(0)
    refresh = asyncio.create_task(cache.refresh(f, 1))
    await asyncio.sleep(0)
    go.set()
    assert await call is await refresh
    stats = cache.stats()
    assert (stats.calls, stats.loads, stats.misses) == (1, 1, 1)


async def test_a_refresh_keeps_the_older_value_until_it_ends_and_when_it_fails() -> None:
    cache = AsyncSafeCache()
    results: list[Any] = [1, 2, OSError("origin down")]
    go = asyncio.Event()

    @race_safe_cached(cache)
    async def f(x):
        await go.wait()
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    go.set()
    assert await f(1) == 1
    go.clear()
    refresh = asyncio.create_task(cache.refresh(f, 1))
    await asyncio.sleep(0)
    assert await f(1) == 1
    go.set()
    assert await refresh == 2
    assert await f(1) == 2
    with pytest.raises(OSError, match="origin down"):
        await cache.refresh(f, 1)
    assert await f(1) == 2


async def test_a_delete_during_a_refresh_drops_its_result() -> None:
    cache = AsyncSafeCache()
    go = asyncio.Event()
    go.set()

    @race_safe_cached(cache)
    async def f(x):
        await go.wait()
        return [x]

    await f(1)
    go.clear()
    refresh = asyncio.create_task(cache.refresh(f, 1))
    await asyncio.sleep(0)
    assert await cache.invalidate(f, 1)
    go.set()
    assert await refresh == [1]
    assert not f.cache_contains(1)


def test_short_lived_instances_at_one_address_leave_no_entries() -> None:
    """Each dies before the next write, and its id is used again at once."""
    cache = AsyncSafeCache()

    class Thing:
        @race_safe_cached(cache)
        def get(self, x):
            return x

    for number in range(500):
        thing = Thing()
        assert thing.get(number) == number
        del thing
    at_once(cache.set("key", 1))
    assert len(cache) <= 2
    assert len(Thing.get.__async_safe_cache__.instances) <= 1


async def test_a_refresh_that_fails_with_a_failure_to_remember_keeps_the_older_value() -> None:
    cache = AsyncSafeCache(negative={KeyError: 60})
    results: list[Any] = ["older", KeyError("gone")]

    @race_safe_cached(cache)
    async def f(x):
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    assert await f(1) == "older"
    with pytest.raises(KeyError):
        await cache.refresh(f, 1)
    assert await f(1) == "older"
