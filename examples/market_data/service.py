"""The service: FastAPI, with one cache that begins and ends with it.

    GET /candles/{symbol}/{timeframe}   what the users want
    GET /cache/health                   {status, metrics, timestamp}
    GET /ready                          200 once it is warm, 503 before

At the start it replays the hot set of its last run, fetches the popular symbols
and keeps them fresh; it serves meanwhile, and is not ready until they are there.
At the end it saves the hot set, which names calls and holds no values.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response

from async_safe_cache import AlertThresholds, AsyncSafeCache, HotSetError

from .api import candles_route
from .prices import Freshness, OriginClient, cached_candles
from .warming import MarketDataWarming

THRESHOLDS = AlertThresholds(hit_rate_low=70, memory_usage_high=90)


class Service:
    """The parts of the service, each made without a running loop.

    Attributes:
        cache: The one cache.
        warming: Fetches before anybody asks.
    """

    def __init__(
        self,
        origin: OriginClient,
        freshness: Freshness | None = None,
        hot_set: Path | None = None,
        *,
        max_memory_bytes: int = 64 * 1024**2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        freshness = freshness or Freshness()
        self.cache = AsyncSafeCache(
            "market-data", max_memory_bytes=max_memory_bytes, thresholds=THRESHOLDS, clock=clock
        )
        self.get_candles = cached_candles(self.cache, origin, freshness)
        self.warming = MarketDataWarming(self.cache, self.get_candles, every=freshness.every)
        self._origin = origin
        self._hot_set = hot_set

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Begin with the application, and end with it."""
        async with self.cache:
            warm_up = asyncio.create_task(self._warm_up())
            try:
                yield
            finally:
                warm_up.cancel()
                with suppress(asyncio.CancelledError):
                    await warm_up
                if self._hot_set:
                    await self.warming.save_hot_set(self._hot_set)
                await self.warming.stop()
                await self._origin.aclose()

    async def _warm_up(self) -> None:
        if self._hot_set and self._hot_set.exists():
            try:
                await self.warming.replay_hot_set(self._hot_set)
            except (OSError, HotSetError):
                logging.getLogger(__name__).warning("the hot set is unreadable", exc_info=True)
        await self.warming.warm_popular_symbols()
        await self.warming.start_background_refresh()

    async def health(self) -> dict[str, object]:
        """Return {status, metrics, timestamp}; a degraded cache still answers rightly."""
        metrics: Any = await self.cache.get_health_info()
        status = metrics["status"]
        # A full cache is nothing bad in itself, and the library waits for evictions to say so.
        # Here all symbols are known and fit: above the threshold, somebody stores other things.
        if metrics["cache_stats"]["memory_usage"] > (THRESHOLDS.memory_usage_high or 100):
            status = "warning"
        return {
            "status": status,
            "metrics": metrics["cache_stats"],
            "timestamp": datetime.now(UTC).isoformat(),
        }

    def app(self) -> FastAPI:
        """Return the application."""
        app = FastAPI(title="Market data", lifespan=self.lifespan)
        app.include_router(candles_route(self.get_candles))
        app.add_api_route("/cache/health", self.health)

        @app.get("/ready")
        async def ready(response: Response) -> dict[str, bool]:
            warm = await self.cache.wait_warm(min_ratio=0.9, timeout=0.5)
            response.status_code = 200 if warm else 503
            return {"ready": warm}

        return app
