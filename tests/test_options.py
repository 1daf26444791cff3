"""Every wrong option is refused where it is given, and nothing is broken by it."""

import math
from datetime import timedelta
from typing import Any

import pytest

from async_safe_cache import AlertThresholds, AsyncSafeCache, race_safe_cached

from .virtual import VirtualClock, at_once

BAD_TTLS = [
    (0, ValueError),
    (-1, ValueError),
    (0.0, ValueError),
    (math.nan, ValueError),
    (-math.inf, ValueError),
    (timedelta(0), ValueError),
    (timedelta(seconds=-1), ValueError),
    (True, TypeError),
    (False, TypeError),
    ("3", TypeError),
    ([3], TypeError),
]


@pytest.mark.parametrize(("ttl", "error"), BAD_TTLS, ids=repr)
def test_a_wrong_ttl_is_refused_everywhere(ttl: Any, error: type[Exception]) -> None:
    cache = AsyncSafeCache()
    with pytest.raises(error, match="default_ttl"):
        AsyncSafeCache(default_ttl=ttl)
    with pytest.raises(error, match="ttl"):
        race_safe_cached(cache, ttl=ttl)
    with pytest.raises(error, match="ttl"):
        at_once(cache.set("key", 1, ttl=ttl))
    with pytest.raises(error, match="ttl"):
        at_once(cache.get_or_load("key", lambda: 1, ttl=ttl))
    with pytest.raises(error, match="ttl"):
        at_once(cache.touch("key", ttl))
    assert len(cache) == cache.stats().calls == 0


@pytest.mark.parametrize("ttl", [None, math.inf, 1e18, 10**400])
def test_for_ever_and_very_long_do_not_overflow(ttl: Any, clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set("key", 1, ttl=ttl))
    clock.advance(1e9)
    assert cache.peek("key") == 1
    cache._engine.sweep(clock(), 100)
    assert cache.peek("key") == 1


def test_a_very_short_ttl_expires(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)
    at_once(cache.set("key", 1, ttl=1e-9))
    clock.advance(1e-8)
    assert cache.peek("key", None) is None


def test_a_timedelta_is_a_ttl(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock, default_ttl=timedelta(minutes=1))
    at_once(cache.set("key", 1))
    assert at_once(cache.lookup("key")).ttl_left == 60


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("max_entries", -1, ValueError),
        ("max_entries", 1.5, TypeError),
        ("max_entries", True, TypeError),
        ("max_entries", "10", TypeError),
        ("max_memory_bytes", -1, ValueError),
        ("max_memory_bytes", 1e6, TypeError),
        ("sweep_interval", 0, ValueError),
        ("sweep_interval", math.inf, ValueError),
        ("sweep_interval", "1", TypeError),
        ("jitter", 1.5, ValueError),
        ("jitter", -0.1, ValueError),
        ("jitter", math.nan, ValueError),
        ("jitter", True, TypeError),
        ("jitter", timedelta(seconds=0.5), TypeError),
        ("on_abandon", "keep", ValueError),
        ("on_abandon", None, TypeError),
        ("cancel_grace", -1, ValueError),
        ("cancel_grace", "5", TypeError),
        ("cancel_grace", math.inf, ValueError),
        ("negative", {KeyError: 0}, ValueError),
        ("negative", {KeyError: "1"}, TypeError),
        ("negative", {"KeyError": 1}, TypeError),
        ("negative", {BaseException: 1}, TypeError),
        ("negative", [KeyError], TypeError),
        ("after_close", "ignore", ValueError),
        ("policy", "random", ValueError),
        ("weigher", 5, TypeError),
        ("clock", 5, TypeError),
        ("thresholds", {"hit_rate_low": 1}, TypeError),
        ("name", "", ValueError),
        ("name", 5, TypeError),
    ],
)
def test_a_wrong_option_of_the_cache_names_itself(
    option: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=option):
        AsyncSafeCache(**{option: value})


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("hit_rate_low", -1, ValueError),
        ("hit_rate_low", 101, ValueError),
        ("response_time_high", "200", TypeError),
        ("eviction_rate_high", True, TypeError),
        ("error_rate_high", math.nan, ValueError),
    ],
)
def test_a_wrong_threshold_names_itself(option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=option):
        AlertThresholds(**{option: value})


@pytest.mark.parametrize(
    ("weight", "error"),
    [(-1, ValueError), (math.nan, ValueError), ("5", TypeError), (None, TypeError)],
)
def test_a_weigher_that_answers_nonsense_changes_nothing(
    weight: Any, error: type[Exception]
) -> None:
    weights = [10, weight]
    cache = AsyncSafeCache(weigher=lambda _: weights.pop(0))
    at_once(cache.set("key", "old"))
    held = cache.memory_bytes
    with pytest.raises(error, match="weigher"):
        at_once(cache.set("key", "new"))
    assert cache.peek("key") == "old"
    assert cache.memory_bytes == held


def test_a_weight_of_infinity_is_larger_than_any_bound() -> None:
    cache = AsyncSafeCache(weigher=lambda _: math.inf)
    at_once(cache.set("key", 1))
    assert len(cache) == 0
    assert cache.stats().rejected == 1


@pytest.mark.parametrize("loader", [None, 5, "load", lambda a, b: 1, lambda *, a: 1])
def test_a_loader_that_cannot_be_called_is_refused_before_anything_runs(loader: Any) -> None:
    cache = AsyncSafeCache()
    with pytest.raises(TypeError, match="loader"):
        at_once(cache.get_or_load("key", loader))
    assert cache.stats().calls == 0
    assert not cache._engine.flights.running


async def test_a_loader_that_declares_a_parameter_gets_the_key() -> None:
    cache = AsyncSafeCache()
    assert await cache.get_or_load("key", lambda context: context.key) == "key"
    assert await cache.get_or_load("other", lambda a=1, *b, **c: a) == 1


def test_a_class_or_a_generator_function_cannot_be_decorated() -> None:
    cache = AsyncSafeCache()
    with pytest.raises(TypeError, match="class"):

        @race_safe_cached(cache)
        class Thing:
            pass

    with pytest.raises(TypeError, match="generator"):

        @race_safe_cached(cache)
        def numbers():
            yield 1

    with pytest.raises(TypeError, match="generator"):

        @race_safe_cached(cache)
        async def more_numbers():
            yield 1

    with pytest.raises(TypeError):
        race_safe_cached(cache)(5)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="AsyncSafeCache"):
        race_safe_cached("prices", "price")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("option", "value"),
    [("on_abandon", "finish"), ("cancel_grace", 1)],
    ids=["on_abandon", "grace"],
)
def test_an_option_that_needs_a_task_is_refused_on_a_plain_def(option: str, value: Any) -> None:
    cache = AsyncSafeCache()
    with pytest.raises(TypeError, match=option):

        @race_safe_cached(cache, **{option: value})
        def plain(x):
            return x


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("",), {}, ValueError),
        ((5,), {}, TypeError),
        ((), {"key": 5}, TypeError),
        ((), {"method": "yes"}, TypeError),
        ((), {"unknown": 1}, TypeError),
    ],
)
def test_a_wrong_option_of_the_decorator_is_refused_at_decoration(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        race_safe_cached(AsyncSafeCache(), *arguments, **options)


async def test_a_key_of_a_mebibyte_is_a_key() -> None:
    cache = AsyncSafeCache()
    key = "k" * 1024**2
    await cache.set(key, 1)
    assert await cache.get(key) == 1
    assert cache.memory_bytes > 1024**2


async def test_unhashable_and_exotic_keys_are_refused_and_nothing_is_stored() -> None:
    cache = AsyncSafeCache()
    for key in ([1], {1}, {"a": 1}, object(), math.nan, (1, [2]), lambda: 1):
        for call in (cache.get, cache.lookup, cache.delete, cache.expire):
            with pytest.raises(TypeError, match="key"):
                await call(key)
        with pytest.raises(TypeError):
            await cache.set(key, 1)
        with pytest.raises(TypeError):
            await cache.get_or_load(key, lambda: 1)
        with pytest.raises(TypeError):
            cache.peek(key)
    assert len(cache) == cache.stats().calls == 0
