"""Wrong uses: both type checkers refuse every marked line, and complain if one is accepted."""

from async_safe_cache import AsyncSafeCache, race_safe_cached

cache = AsyncSafeCache("typing")


@race_safe_cached(cache, "price")
async def price(symbol: str, *, day: int = 0) -> float:
    return float(len(symbol) + day)


class Service:
    @race_safe_cached(cache)
    async def get(self, number: int) -> str:
        return str(number)


async def main() -> None:
    await price(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await price("a", hour=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await Service().get("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    text: str = await price("a")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await cache.invalidate(price, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await cache.invalidate(price)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await cache.refresh(Service().get, "1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    cache.key_for(price, "a", hour=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    number: int = await cache.refresh(price, "a")  # type: ignore[call-overload]  # pyright: ignore[reportAssignmentType]
    AsyncSafeCache(policy="random")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncSafeCache(max_entries="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    race_safe_cached(cache, ttl="30")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    race_safe_cached(cache, on_abandon="keep")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    print(text, number)
