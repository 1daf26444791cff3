"""The same service without the library: the candles in a dict, each with a deadline.

It is what one writes first, and it is right as long as the origin is well.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from .api import candles_route
from .prices import Freshness, OriginClient, plain_candles


def plain_app(origin: OriginClient, freshness: Freshness) -> FastAPI:
    """Return the application; its values are fresh for the same time."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await origin.aclose()

    app = FastAPI(title="Market data, plain", lifespan=lifespan)
    app.include_router(candles_route(plain_candles(origin, freshness.ttl)))

    @app.get("/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}  # it knows of nothing to wait for

    return app
