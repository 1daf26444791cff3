"""Warming for market data: the candles of known symbols, before anybody asks.

The popular symbols are fetched every 30 seconds, before they expire: who asks
for them never waits. The others are fetched at the start and ten times less
often: a request may find them stale, but when the origin fails there is a value
to fall back on. What users ask for beyond the list is learnt from their reads:
see the hot set in `service.py`.
"""

from collections.abc import Sequence
from itertools import product

from async_safe_cache import AsyncSafeCache, CacheWarmingStrategy, WarmingReport

from .prices import OTHERS, POPULAR, TIMEFRAMES, GetCandles


class MarketDataWarming(CacheWarmingStrategy):
    """Keeps the candles of all listed symbols at hand, those of the popular ones fresh."""

    def __init__(
        self,
        cache: AsyncSafeCache,
        get_candles: GetCandles,
        *,
        popular: Sequence[str] = POPULAR,
        others: Sequence[str] = OTHERS,
        every: float = 30.0,
    ) -> None:
        super().__init__(cache, concurrency=8)
        # Jitter: by up to a tenth earlier, so that they are not all fetched in one moment.
        for symbols, seconds, priority in ((popular, every, 2), (others, 10 * every, 1)):
            calls = list(product(symbols, TIMEFRAMES))
            self.register(get_candles, calls, every=seconds, jitter=0.1, priority=priority)

    async def warm_popular_symbols(self, timeout: float = 10.0) -> WarmingReport:
        """Fetch what is not fresh, the popular symbols first, and report on each call."""
        return await self.warm(timeout=timeout)
