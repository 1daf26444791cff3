"""Right uses: both type checkers accept every line."""

from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, assert_type

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    CacheWarmingStrategy,
    FunctionInfo,
    Key,
    LoadContext,
    Lookup,
    WarmingReport,
    get_async_safe_cache,
    race_safe_cached,
)

tenant: ContextVar[str] = ContextVar("tenant")

cache = AsyncSafeCache("typing", default_ttl=timedelta(minutes=1), max_entries=10)


@race_safe_cached
async def bare(symbol: str) -> float:
    return float(len(symbol))


@race_safe_cached()
async def called(symbol: str) -> float:
    return float(len(symbol))


@race_safe_cached(cache, "price", ttl=30, jitter=0.1, negative={KeyError: 1})
async def price(symbol: str, *, day: int = 0) -> float:
    return float(len(symbol) + day)


def row_key(connection: object, number: int) -> int:
    return number


@race_safe_cached(cache, "row", key=row_key)
async def row(connection: object, number: int) -> tuple[int, ...]:
    return (number,)


@race_safe_cached(
    cache,
    "quote",
    ttl=30,
    stale_while_revalidate=timedelta(minutes=5),
    stale_if_error=3600,
    refresh_ahead="auto",
    soft_timeout=0.1,
    hard_timeout=1,
    load_timeout=5,
    copy="deep",
    skip=lambda value: value is None,
    vary_on=[tenant],
    context="isolated",
)
async def quote(symbol: str) -> float | None:
    return float(len(symbol))


@race_safe_cached
def bare_rules(folder: str) -> list[str]:
    return [folder]


@race_safe_cached(cache, "rules")
def rules(folder: str) -> list[str]:
    return [folder]


class Service:
    @race_safe_cached(cache)
    async def get(self, number: int) -> str:
        return str(number)

    @race_safe_cached
    async def bare(self, number: int) -> str:
        return str(number)

    @race_safe_cached(cache, ttl=30)
    def here(self, number: int) -> str:
        return str(number)

    @classmethod
    @race_safe_cached(cache)
    async def of_class(cls, number: int) -> str:
        return cls.__name__ + str(number)

    @staticmethod
    @race_safe_cached(cache)
    def plain(number: int) -> str:
        return str(number)


async def fetch_many(absent: list[str]) -> dict[str, int]:
    return dict.fromkeys(absent, 1)


def fetch_many_here(absent: list[str]) -> Mapping[str, bytes]:
    return dict.fromkeys(absent, b"")


async def fetch() -> int:
    return 1


def fetch_here() -> bytes:
    return b""


async def fetch_with(context: LoadContext) -> bytes:
    return repr(context.key).encode()


async def main() -> None:
    assert_type(await bare("a"), float)
    assert_type(await called("a"), float)
    assert_type(await price("a", day=1), float)
    assert_type(await row(None, 1), tuple[int, ...])
    assert_type(rules("a"), list[str])
    assert_type(bare_rules(folder="a"), list[str])
    typed: Callable[[str], Coroutine[Any, Any, float]] = price  # a coroutine function still
    assert_type(await typed("a"), float)
    service = Service()
    assert_type(await service.get(1), str)
    assert_type(await service.bare(number=1), str)
    assert_type(service.here(1), str)
    assert_type(await Service.get(service, 1), str)
    assert_type(await Service.of_class(1), str)
    assert_type(Service.plain(1), str)
    assert_type(await cache.invalidate(price, "a", day=1), bool)
    assert_type(await cache.invalidate(service.get, 1), bool)
    assert_type(await cache.invalidate(Service.of_class, number=1), bool)
    assert_type(await cache.invalidate(Service.plain, 1), bool)
    assert_type(await cache.refresh(price, "a"), float)
    assert_type(await cache.refresh(rules, "a"), list[str])
    assert_type(await cache.refresh(service.get, 1), str)
    assert_type(await cache.refresh(service.here, 1), str)
    assert_type(await cache.refresh(Service.of_class, 1), str)
    assert_type(await cache.refresh(Service.plain, 1), str)
    assert_type(cache.key_for(price, symbol="a"), Key)
    assert_type(cache.key_for(service.here, 1), Key)
    assert_type(cache.info(price), FunctionInfo)
    assert_type(cache.info(service.get), FunctionInfo)
    assert_type(await cache.get_or_load("key", fetch, ttl=None), int)
    assert_type(await cache.get_or_load("key", fetch_with), bytes)
    assert_type(await cache.get_or_load("key", fetch_here, ttl=5), bytes)
    assert_type(await cache.get_or_load("key", lambda: price("a")), float)
    assert_type(await cache.get_many(["a", "b"]), dict[str, Any])
    assert_type(await cache.get_or_load_many(["a", "b"], fetch_many), dict[str, int])
    assert_type(await cache.get_or_load_many({"a"}, fetch_many_here, ttl=5), dict[str, bytes])
    assert_type(
        await cache.get_or_load_many([1], lambda absent: dict.fromkeys(absent, 1.5)),
        dict[int, float],
    )
    assert_type(
        await cache.get_or_load(
            "key", fetch, ttl=30, stale_if_error=60, refresh_ahead=0.8, propagate=tenant
        ),
        int,
    )
    assert_type(await quote("a"), float | None)
    warming = CacheWarmingStrategy(cache, concurrency=4, rate=10)
    assert_type(warming.register(price, [("a",), {"symbol": "b"}], every=30, jitter=0.1), int)
    warming.register(["a", "b"], fetch_with, at=["09:30", "16:00"], ttl=60, stale_if_error=600)
    report = await warming.warm(progress=lambda done, total: print(done, total))
    assert_type(report, WarmingReport)
    print(report.loaded, report.skipped.items(), report.failed.items(), report.seconds)
    assert_type(await cache.wait_warm(min_ratio=0.9, timeout=timedelta(seconds=5)), bool)
    found = await cache.lookup("key")
    assert_type(found, Lookup[Any])
    if found.value is not MISSING:
        print(found.age)
    cache.on("loaded", lambda event: print(event.seconds, event.stored))
    cache.on("removed", lambda event: print(event.cause.name))
    assert_type(cache.on("invalidated", print), Callable[[], None])
    shared = await get_async_safe_cache("shared", max_entries=5)
    async with shared:
        await shared.set("key", 1, ttl=timedelta(seconds=5))
