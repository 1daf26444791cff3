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
    await price(5)
    await price("a", hour=1)
    await Service().get("1")
    text: str = await price("a")
    await cache.invalidate(price, 5)
    await cache.invalidate(price)
    await cache.refresh(Service().get, "1")
    cache.key_for(price, "a", hour=1)
    number: int = await cache.refresh(price, "a")
    AsyncSafeCache(policy="random")
    AsyncSafeCache(max_entries="10")
    race_safe_cached(cache, ttl="30")
    race_safe_cached(cache, on_abandon="keep")
    print(text, number)
