"""Warming for market data: the popular symbols, in all timeframes, before anybody asks.

The symbols that are always watched are known, so they are named; they are
fetched at the start and every 30 seconds. What else the users ask for is learnt
from their reads: see `warm_popular` and the hot set of `CacheWarmingStrategy`.
"""

from collections.abc import Sequence
from itertools import product

from async_safe_cache import AsyncSafeCache, CacheWarmingStrategy, WarmingReport

from .prices import POPULAR, TIMEFRAMES, GetCandles


class MarketDataWarming(CacheWarmingStrategy):
    """Keeps the candles of some symbols warm, in all timeframes."""

    def __init__(
        self,
        cache: AsyncSafeCache,
        get_candles: GetCandles,
        *,
        symbols: Sequence[str] = POPULAR,
        every: float = 30.0,
    ) -> None:
        super().__init__(cache, concurrency=8)
        # Within `every` by up to a tenth, so that they are not all fetched in one moment.
        self.register(
            get_candles, list(product(symbols, TIMEFRAMES)), every=every, jitter=0.1, priority=1
        )

    async def warm_popular_symbols(self, timeout: float = 10.0) -> WarmingReport:
        """Fetch what is not fresh of the popular symbols, and report on each call."""
        return await self.warm(timeout=timeout)
