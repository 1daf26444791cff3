"""What both services have in common: the route that their users call."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path

from .prices import Candles, GetCandles, NotListedError, OriginError, Timeframe

Symbol = Annotated[str, Path(pattern="^[A-Z]{1,8}$")]  # it becomes a key, and part of a URL


def candles_route(get_candles: GetCandles) -> APIRouter:
    """Return `GET /candles/{symbol}/{timeframe}`; its 503 says that there is nothing to serve."""
    router = APIRouter()

    @router.get("/candles/{symbol}/{timeframe}")
    async def read_candles(symbol: Symbol, timeframe: Timeframe) -> Candles:
        try:
            return await get_candles(symbol, timeframe)
        except NotListedError:
            raise HTTPException(404, "not listed") from None
        except (OriginError, TimeoutError):
            raise HTTPException(503, "no candles now", {"Retry-After": "1"}) from None

    return router
