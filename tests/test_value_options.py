"""What is stored and what is handed out: skip, copy, vary_on; and options that make no sense."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    LoadContext,
    MissReason,
    UnsupportedKeyError,
    race_safe_cached,
)

from .virtual import Loader, VirtualClock, run_virtual, settle


def is_partial(value: Any) -> bool:
    return str(value).startswith("part")


# -- skip


@pytest.mark.parametrize("how", ["skip=", "ctx.skip", "decorated", "def"])
def test_what_is_skipped_is_returned_to_all_and_not_stored(clock: VirtualClock, how: str) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("part", "part", "whole", seconds=1)

        async def choosing(told: LoadContext) -> Any:
            value = await load()
            return told.skip(value) if is_partial(value) else value

        @race_safe_cached(cache, skip=is_partial)
        async def f(x: int) -> Any:
            return await load()

        @race_safe_cached(cache, skip=is_partial)
        def plain(x: int) -> Any:
            load.calls += 1
            return load.results[load.calls - 1]

        async def call() -> Any:
            if how == "def":
                return plain(1)
            if how == "decorated":
                return await f(1)
            if how == "skip=":
                return await cache.get_or_load("key", load, skip=is_partial)
            return await cache.get_or_load("key", choosing)

        callers = 1 if how == "def" else 3
        for calls, value in enumerate(("part", "part", "whole"), start=1):
            answers = await asyncio.gather(*(call() for _ in range(callers)))
            assert (answers, load.calls) == ([value] * callers, calls)
            assert len(cache) == (value == "whole")
        assert await call() == "whole"
        assert load.calls == 3
        stats = cache.stats()
        assert (stats.rejected, stats.loads, stats.load_errors) == (2, 3, 0)
        assert stats.misses_by_reason["REJECTED"] == 2

    run_virtual(main(), clock)


@pytest.mark.parametrize("swept", [False, True])
def test_what_was_skipped_is_the_reason_of_the_next_miss_whoever_swept(
    clock: VirtualClock, swept: bool
) -> None:
    """Over an expired value that was not freed yet the reason was EXPIRED, and nothing counted."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        await cache.set("key", "whole", ttl=1)
        clock.advance(2)
        if swept:
            await cache._sweep()
        assert await cache.get_or_load("key", lambda: "part", skip=is_partial) == "part"
        assert (await cache.lookup("key")).reason is MissReason.REJECTED
        assert cache.stats().rejected == 1

    run_virtual(main(), clock)


def test_what_is_held_stays_when_a_refresh_is_skipped(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("whole", "part")

        @race_safe_cached(cache, ttl=10, skip=is_partial, stale_while_revalidate=100)
        async def f(x: int) -> Any:
            return await load()

        assert await f(1) == "whole"
        assert await cache.refresh(f, 1) == "part"
        assert await f(1) == "whole", "it is fresh still"
        clock.advance(11)
        for calls, seconds in ((3, 0.5), (3, 0.7), (4, 0)):
            # One refresh that brings nothing, then none for a second.
            assert await f(1) == "whole"
            await settle()
            assert load.calls == calls
            clock.advance(seconds)
        assert cache.stats().stale_served == 3

    run_virtual(main(), clock)


def test_a_skipped_value_is_no_failure_that_an_older_one_stands_in_for(
    clock: VirtualClock,
) -> None:
    """The caller after one that had the newer value was given the older one, for a second."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        load = Loader("whole", OSError("down"), "part 1", "part 2")
        attempts: list[int] = []

        async def noting(told: LoadContext) -> Any:
            attempts.append(told.attempt)
            return await load()

        def call() -> Any:
            return cache.get_or_load(
                "key", noting, ttl=10, stale_if_error=100, skip=is_partial, error_backoff=1
            )

        answers = []
        for seconds in (11, 0.5, 1, 0.1, 0):
            answers.append(await call())
            clock.advance(seconds)
        assert answers == ["whole", "whole", "whole", "part 1", "part 2"]
        assert cache.stats().stale_served == 2, "in place of the failure, and until the next try"
        assert attempts == [1, 1, 2, 1], "a value in between ends the row of failures"

    run_virtual(main(), clock)


# -- copy


class NoCopy:
    """Cannot be copied."""

    def __init__(self) -> None:
        self.tries = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self.tries += 1
        raise RuntimeError("not to be copied")


@pytest.mark.parametrize("counted", [False, True], ids=["", "reads are counted"])
def test_a_hit_that_cannot_be_copied_is_one_hit(clock: VirtualClock, counted: bool) -> None:
    """Its caller gets the error; where reads are counted for each entry, it was counted twice."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        if counted:
            cache._functions.measure_popularity(10)
        value = NoCopy()

        @race_safe_cached(cache, copy="deep")
        async def f(x: int) -> NoCopy:
            return value

        for _ in range(3):
            with pytest.raises(RuntimeError, match="not to be copied"):
                await f(1)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.loads, stats.load_errors) == (2, 1, 1, 0)
        if counted:
            (entry,) = cache._engine.store.order.newest()
            assert entry.used == 2

    run_virtual(main(), clock)


def test_an_update_is_given_a_copy(clock: VirtualClock) -> None:
    """It was given the stored object, and what it did to it stayed when it failed."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, copy="deep")
        await cache.set("key", ["old"])

        def fails(value: list[str]) -> Any:
            value.append("half")
            raise KeyError

        with pytest.raises(KeyError):
            await cache.update("key", fails)
        assert await cache.get("key") == ["old"]
        assert await cache.update("key", lambda value: [*value, "new"]) == ["old", "new"]

    run_virtual(main(), clock)


class Box:
    """A value with something inside: a shallow copy shares it, a deep one does not."""

    def __init__(self) -> None:
        self.inside = ["as loaded"]


@pytest.mark.parametrize("how", ["none", "shallow", "deep"])
@pytest.mark.parametrize("level", ["cache", "function"])
def test_every_way_to_a_value_hands_out_a_copy(clock: VirtualClock, how: Any, level: str) -> None:
    """Leader, waiters, hits fast and slow, reads of every kind, fresh and stale."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, **({"copy": how} if level == "cache" else {}))
        stored = Box()
        mode = "ok"
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 20, "stale_if_error": 40}
        if level == "function":
            options["copy"] = how

        @race_safe_cached(cache, **options, soft_timeout=1, error_backoff=0)
        async def f(x: int) -> Box:
            await asyncio.sleep(0 if mode == "ok" else 0.5 if mode == "failing" else 5)
            if mode == "failing":
                raise OSError
            return stored

        def check(*values: Any) -> None:
            assert values
            for value in values:
                assert type(value) is Box
                assert (value is stored) == (how == "none")
                assert (value.inside is stored.inside) == (how in {"none", "shallow"})

        check(*await asyncio.gather(*(f(1) for _ in range(3))))
        key = cache.key_for(f, 1)
        check(await f(1), await cache.refresh(f, 1))
        check(await cache.get(key), cache.peek(key), (await cache.lookup(key)).value)
        check(*(await cache.get_many([key])).values())
        async with cache.reading() as view:
            check(await view.get(key), (await view.lookup(key)).value)
            check(*(await view.get_many([key])).values())
        async with cache.transaction() as tx:
            check(await tx.get(key), *(await tx.get_many([key])).values())
        handed: list[Any] = []
        await cache.update(key, lambda value: handed.append(value) or stored)
        check(*handed)
        if level == "cache":
            check(await cache.get_or_load(key, lambda: stored))
            check(*(await cache.get_or_load_many([key, "b"], lambda _: {"b": stored})).values())
        clock.advance(10)
        mode = "failing"
        check(await f(1), (await cache.lookup(key)).value)  # at once
        await asyncio.sleep(20)
        check(await f(1))  # in place of a failure
        mode = "slow"
        check(*await asyncio.gather(*(f(1) for _ in range(3))))  # after soft_timeout
        assert cache.stats().stale_served == 5

    run_virtual(main(), clock)


@pytest.mark.parametrize("how", ["none", "shallow", "deep"])
def test_a_def_and_a_single_call_hand_out_copies_too(clock: VirtualClock, how: Any) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        stored = Box()
        failing = False

        @race_safe_cached(cache, ttl=10, stale_if_error=100, copy=how)
        def f(x: int) -> Box:
            if failing:
                raise OSError
            return stored

        call = cache.get_or_load("key", lambda: stored, copy=how)
        answers = [f(1), f(1), await call]
        answers.append(await cache.get_or_load("key", lambda: stored, copy=how))
        clock.advance(10)
        failing = True
        answers.append(f(1))
        for answer in answers:
            assert (answer is stored) == (how == "none")
            assert (answer.inside is stored.inside) == (how in {"none", "shallow"})
        assert cache.peek("key") is stored, "that was an option of the call"

    run_virtual(main(), clock)


def test_a_failure_is_never_copied(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, copy="deep", negative={LookupError: 60})
        error = LookupError("no such user")
        for _ in range(2):
            with pytest.raises(LookupError, match="no such user"):
                await cache.get_or_load("key", Loader(error))
        assert cache.stats().load_errors == 1

    run_virtual(main(), clock)


def test_a_stale_value_that_cannot_be_copied_is_still_one_call(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        value = NoCopy()

        @race_safe_cached(cache, ttl=10, stale_while_revalidate=100, copy="deep")
        async def f(x: int) -> NoCopy:
            return value

        for age, calls in ((0, 1), (10, 2)):
            clock.advance(age)
            with pytest.raises(RuntimeError, match="not to be copied"):
                await f(1)
            await settle()
            stats = cache.stats()
            assert (stats.calls, stats.loads) == (calls, calls), "the load behind it began"

    run_virtual(main(), clock)


# -- skip, again


@pytest.mark.parametrize("stale", [False, True])
def test_a_skip_that_raises_is_an_error_of_the_load(clock: VirtualClock, stale: bool) -> None:
    """Which a stale value stands in for, as for any other."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        def fails(value: object) -> bool:
            raise KeyError("skip")

        options: dict[str, Any] = {"ttl": 10, "stale_if_error": 100}
        if stale:
            await cache.get_or_load("key", lambda: "old", **options)
            clock.advance(10)
            assert await cache.get_or_load("key", lambda: "new", skip=fails, **options) == "old"
        else:
            with pytest.raises(KeyError, match="skip"):
                await cache.get_or_load("key", lambda: "new", skip=fails, **options)
            assert (await cache.lookup("key")).reason is MissReason.REJECTED
        stats = cache.stats()
        assert (stats.load_errors, stats.rejected) == (1, 1)

    run_virtual(main(), clock)


def test_what_is_skipped_is_not_weighed(clock: VirtualClock) -> None:
    async def main() -> None:
        def weigher(value: object) -> float:
            raise RuntimeError("not asked")

        cache = AsyncSafeCache(clock=clock, weigher=weigher)
        assert await cache.get_or_load("key", lambda: 1, skip=lambda value: value == 1) == 1
        with pytest.raises(RuntimeError, match="not asked"):
            await cache.get_or_load("key", lambda: 2, skip=lambda value: value == 1)

    run_virtual(main(), clock)


def test_a_loader_may_skip_what_the_option_would_keep(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        asked: list[object] = []

        def skip(value: object) -> bool:
            asked.append(value)
            return False

        async def load(told: LoadContext) -> str:
            return told.skip("value")

        assert await cache.get_or_load("key", load, skip=skip) == "value"
        assert (len(cache), asked) == (0, [])

    run_virtual(main(), clock)


def test_a_load_of_many_skips_as_the_cache_says(clock: VirtualClock) -> None:
    """It stored what was to be skipped."""

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, skip=is_partial)
        values = {"a": "part", "b": "whole", "c": "part", "d": "whole"}

        def load(keys: list[str]) -> dict[str, str]:
            return values

        answers = await cache.get_or_load_many(["a", "b"], load, store_extras=True)
        assert answers == {"a": "part", "b": "whole"}
        assert await cache.get_many("abcd") == {"b": "whole", "d": "whole"}
        assert cache.stats().rejected == 1

    run_virtual(main(), clock)


# -- vary_on

tenant: ContextVar[Any] = ContextVar("tenant")
language: ContextVar[str] = ContextVar("language", default="en")


class Service:
    """Has a cached method."""

    def __init__(self, cache: AsyncSafeCache) -> None:
        self.calls = 0
        self.get = race_safe_cached(cache, vary_on=tenant)(self._get)

    async def _get(self, x: int) -> tuple[Any, int]:
        self.calls += 1
        return tenant.get(None), x


def of_every_form(cache: AsyncSafeCache) -> dict[str, Callable[[int], Any]]:
    """Return functions of every form, each varying on the tenant, that say whose value it is."""

    @race_safe_cached(cache, vary_on=tenant)
    async def one(x: int) -> tuple[Any, int]:
        return tenant.get(None), x

    @race_safe_cached(cache, vary_on=[tenant, language])
    async def two(x: int, y: str = "") -> tuple[Any, int]:
        return tenant.get(None), x

    @race_safe_cached(cache, vary_on=tenant)
    async def several(*numbers: int, **more: int) -> tuple[Any, int]:
        return tenant.get(None), numbers[0]

    @race_safe_cached(cache, vary_on=tenant, key=lambda x: x % 10)
    async def by_key(x: int) -> tuple[Any, int]:
        return tenant.get(None), x

    @race_safe_cached(cache, vary_on=tenant)
    async def none() -> tuple[Any, int]:
        return tenant.get(None), 1

    @race_safe_cached(cache, vary_on=tenant, context="isolated")
    async def isolated(x: int) -> tuple[Any, int]:
        return tenant.get(None), x

    @race_safe_cached(cache, vary_on=tenant)
    def plain(x: int) -> tuple[Any, int]:
        return tenant.get(None), x

    class Methods:
        @race_safe_cached(cache, vary_on=tenant)
        async def method(self, x: int) -> tuple[Any, int]:
            return tenant.get(None), x

    async def of_plain(x: int) -> tuple[Any, int]:
        return plain(x)

    methods = Methods()
    return {
        "one": one,
        "two": two,
        "several": several,
        "key=": by_key,
        "none": lambda x: none(),
        "isolated": isolated,
        "def": of_plain,
        "method": methods.method,
    }


@pytest.mark.parametrize(
    "form", ["one", "two", "several", "key=", "none", "isolated", "def", "method"]
)
def test_a_value_is_served_to_those_alone_whose_context_it_varies_on(
    clock: VirtualClock, form: str
) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        call = of_every_form(cache)[form]

        async def caller(name: Any) -> Any:
            if name is not None:
                tenant.set(name)
            return await call(1)

        for _ in range(3):
            for name in (None, "a", "b", 1, 1.0, True, "1", ("a", "b")):
                answer = await asyncio.create_task(caller(name))
                assert (answer, type(answer[0])) == ((name, 1), type(name))
        stats = cache.stats()
        assert (stats.misses, stats.hits) == (8, 16)

    run_virtual(main(), clock)


def test_controls_of_a_varying_function_are_of_the_callers_context(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        loads: list[Any] = []

        @race_safe_cached(cache, vary_on=tenant)
        async def f(x: int) -> Any:
            loads.append(tenant.get())
            return tenant.get()

        function: Any = f

        async def within(name: str, action: Callable[[], Any]) -> Any:
            tenant.set(name)
            result = action()
            return await result if asyncio.iscoroutine(result) else result

        async def as_(name: str, action: Callable[[], Any]) -> Any:
            return await asyncio.create_task(within(name, action))

        for name in ("a", "b"):
            await as_(name, lambda: f(1))
        assert loads == ["a", "b"]
        assert await as_("a", lambda: cache.refresh(f, 1)) == "a"
        key = await as_("b", lambda: cache.key_for(f, 1))
        assert await cache.get(key) == "b", "a Key knows whose it is"
        assert await as_("a", lambda: cache.invalidate(f, 1))
        assert await as_("b", lambda: function.cache_contains(1))
        assert not await as_("a", lambda: function.cache_contains(1))
        assert await as_("b", lambda: function.cache_invalidate(1))
        assert len(cache) == 0
        assert loads == ["a", "b", "a"]

    run_virtual(main(), clock)


def test_raw_keys_vary_where_the_cache_says_so(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock, vary_on=tenant)

        async def as_(name: str) -> None:
            tenant.set(name)
            assert await cache.get("key") is None
            await cache.set("key", name)
            assert await cache.get_or_load("other", lambda: name) == name
            assert await cache.get_many(["key", "other"]) == {"key": name, "other": name}
            async with cache.transaction() as tx:
                tx.set("third", name)
            assert await cache.delete("third") == 1

        for name in ("a", "b"):
            await asyncio.create_task(as_(name))
        assert len(cache) == 4
        assert await cache.get("key") is None, "outside of both"

    run_virtual(main(), clock)


def test_what_cannot_be_part_of_a_key_is_named(clock: VirtualClock) -> None:
    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        @race_safe_cached(cache, vary_on=tenant)
        async def f(x: int) -> None: ...

        tenant.set(object())
        with pytest.raises(UnsupportedKeyError, match="tenant"):
            await f(1)
        varied = AsyncSafeCache(clock=clock, vary_on=tenant)
        with pytest.raises(UnsupportedKeyError):
            await varied.get("key")
        assert cache.stats().calls == varied.stats().calls == 0

    run_virtual(main(), clock)


# -- options that make no sense


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(
        ({"ttl": 10, name: value}, error, name)
        for name in ("stale_while_revalidate", "stale_if_error")
        for value, error in [
            (0, ValueError),
            (-1, ValueError),
            (float("nan"), ValueError),
            (timedelta(0), ValueError),
            ("5", TypeError),
            (True, TypeError),
        ]
    ),
    *(
        ({"ttl": 10, "stale_if_error": 10, name: value}, error, name)
        for name in ("soft_timeout", "hard_timeout", "load_timeout")
        for value, error in [
            (0, ValueError),
            (-1, ValueError),
            (float("inf"), ValueError),
            (float("nan"), ValueError),
            ("5", TypeError),
            (True, TypeError),
        ]
    ),
    *(
        ({"ttl": 10, "refresh_ahead": value}, error, "refresh_ahead")
        for value, error in [
            (0, ValueError),
            (1, ValueError),
            (1.5, ValueError),
            (-0.1, ValueError),
            (float("nan"), ValueError),
            ("soon", ValueError),
            (True, TypeError),
            (timedelta(seconds=1), TypeError),
            ([], TypeError),
        ]
    ),
    ({"stale_while_revalidate": 5}, ValueError, "stale_while_revalidate needs a ttl"),
    ({"stale_if_error": 5}, ValueError, "stale_if_error needs a ttl"),
    ({"refresh_ahead": 0.5}, ValueError, "refresh_ahead needs a ttl"),
    ({"refresh_ahead": "auto"}, ValueError, "refresh_ahead needs a ttl"),
    (
        {"ttl": 10, "stale_if_error": 5, "soft_timeout": 3, "hard_timeout": 2},
        ValueError,
        "soft_timeout=3.* must not be above hard_timeout=2",
    ),
    (
        {"ttl": 10, "stale_if_error": 5, "soft_timeout": 3, "load_timeout": 2},
        ValueError,
        "soft_timeout=3.* must not be above load_timeout=2",
    ),
    ({"error_backoff": -1}, ValueError, "error_backoff"),
    ({"error_backoff": float("inf")}, ValueError, "error_backoff"),
    ({"error_backoff": True}, TypeError, "error_backoff"),
    ({"copy": "yes"}, ValueError, "copy='yes' must be 'none' or 'shallow' or 'deep'"),
    ({"copy": True}, TypeError, "copy"),
    ({"copy": None}, TypeError, "copy"),
    ({"skip": 5}, TypeError, "skip must be a callable"),
    ({"context": "none"}, ValueError, "context='none' must be 'caller' or 'isolated'"),
    ({"context": None}, TypeError, "context"),
    ({"propagate": "tenant"}, TypeError, "propagate must be a ContextVar"),
    ({"propagate": [tenant, "tenant"]}, TypeError, "one of them is of type str"),
    ({"propagate": 5}, TypeError, "propagate"),
    ({"vary_on": "tenant"}, TypeError, "vary_on must be a ContextVar"),
    ({"vary_on": [tenant, 5]}, TypeError, "one of them is of type int"),
    ({"vary_on": None}, TypeError, "vary_on"),
    ({"stale": 5}, TypeError, "stale"),
]


@pytest.mark.parametrize(("options", "error", "says"), WRONG)
@pytest.mark.parametrize("level", ["call", "function", "cache"])
def test_options_that_make_no_sense_are_refused_where_they_are_given(
    clock: VirtualClock, options: dict[str, Any], error: type[Exception], says: str, level: str
) -> None:
    """A cache's defaults may need what a function or a call gives; else they are refused, too."""

    async def load(x: int = 5) -> int:
        return x

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        if level == "cache" and ("needs" in says or "above" in says):
            return
        with pytest.raises(error, match=says if level != "call" else None):
            if level == "call":
                await cache.get_or_load("key", load, **options)
            elif level == "function":
                race_safe_cached(cache, **options)
            else:
                AsyncSafeCache(**{name: each for name, each in options.items() if name != "ttl"})
        assert cache.stats().calls == 0

    run_virtual(main(), clock)


@pytest.mark.parametrize("option", ["vary_on", "after_close", "default", "nothing"])
def test_what_is_no_option_of_a_call_or_a_cache_is_not_ignored(
    clock: VirtualClock, option: str
) -> None:
    """One that only a function or a cache has was taken by a call, and did nothing."""

    async def main() -> None:
        given: dict[str, Any] = {option: tenant}
        cache = AsyncSafeCache(clock=clock)
        with pytest.raises(TypeError, match=option):
            await cache.get_or_load("key", Loader(), **given)
        if option not in {"vary_on", "after_close"}:
            with pytest.raises(TypeError, match=option):
                AsyncSafeCache(**given)
        with pytest.raises(TypeError, match="tags"):
            AsyncSafeCache(tags="tag")  # type: ignore[call-arg]

    run_virtual(main(), clock)


def test_every_time_may_be_a_timedelta(clock: VirtualClock) -> None:
    second = timedelta(seconds=1)
    cache = AsyncSafeCache(clock=clock)
    race_safe_cached(
        cache,
        ttl=10 * second,
        stale_while_revalidate=second,
        stale_if_error=2 * second,
        soft_timeout=second,
        hard_timeout=2 * second,
        load_timeout=3 * second,
        error_backoff=0 * second,
    )
