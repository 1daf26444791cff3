"""One hundred callers ask for the same price; it is loaded once.

python examples/quickstart.py
"""

import asyncio

from async_safe_cache import AsyncSafeCache, race_safe_cached

cache = AsyncSafeCache("prices", max_memory_bytes=10_000_000)


@race_safe_cached(cache, "price", ttl=30)
async def get_price(symbol: str) -> float:
    await asyncio.sleep(0.1)  # a slow origin
    return 189.5


async def main() -> None:
    prices = await asyncio.gather(*(get_price("AAPL") for _ in range(100)))
    print(f"callers={len(prices)} loads={cache.stats().loads}")


if __name__ == "__main__":
    asyncio.run(main())
