"""Candles, and the two ways to cache them: with the library, and as a dict with a ttl.

`cached_candles` is the whole of what the library asks for: one decorator. Its
options say how old a value may be, and how long anybody waits for a new one.
"""

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, get_args

import httpx

from async_safe_cache import AsyncSafeCache, race_safe_cached

Timeframe = Literal["1m", "5m", "15m"]
TIMEFRAMES: tuple[Timeframe, ...] = get_args(Timeframe)
POPULAR = ("AAPL", "MSFT", "NVDA", "AMZN", "GOOG", "META", "TSLA", "JPM", "XOM", "BTC")
OTHERS = tuple(f"S{letter}" for letter in "ABCDEFGHIJKLMNOPQRST")  # the rest of the list


class Candle(NamedTuple):
    """Prices of one interval; *begin* in seconds since 1970."""

    begin: float
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True, slots=True)
class Candles:
    """What the origin answers; immutable, for a cache hands out the object that it stores."""

    symbol: str
    timeframe: Timeframe
    as_of: float
    candles: tuple[Candle, ...]


GetCandles = Callable[[str, Timeframe], Coroutine[Any, Any, Candles]]


class NotListedError(LookupError):
    """The origin does not know the symbol: an answer, not a failure."""


class OriginError(Exception):
    """The origin failed: no answer, or not one."""


class OriginClient:
    """Asks the origin. Its timeouts are those of single reads: they do not bound a whole load."""

    def __init__(
        self, url: str, *, name: str = "", transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers={"X-Client": name}, timeout=2.0, transport=transport
        )

    async def candles(self, symbol: str, timeframe: Timeframe) -> Candles:
        """Return the candles of this moment.

        Raises:
            NotListedError: there is no such symbol.
            OriginError: anything else.
        """
        try:
            answer = await self._http.get(f"/candles/{symbol}/{timeframe}")
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise NotListedError(symbol)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise OriginError(f"{type(error).__name__}: {error}") from error
        fields = answer.json()
        rows = tuple(Candle(*row) for row in fields["candles"])
        return Candles(symbol, timeframe, fields["as_of"], rows)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old candles may be, how often they are fetched, how long one waits. In seconds.

    Attributes:
        ttl: A value is fresh for so long.
        every: The popular ones are fetched so often: before they expire.
        stale: Past its ttl, a value is served for so long while the next one is fetched.
        rescue: Past its ttl, a value is served for so long when the origin fails.
        soft_timeout: A caller takes an older value rather than wait longer.
        hard_timeout: Nobody waits longer, value or not.
        load_timeout: A request to the origin is given up.
        error_backoff: After a failure, the origin is left alone for so long, and ever longer.
    """

    ttl: float = 45.0
    every: float = 30.0
    stale: float = 45.0
    rescue: float = 3600.0
    soft_timeout: float = 0.1
    hard_timeout: float = 1.0
    load_timeout: float = 2.0
    error_backoff: float = 1.0

    def faster(self, times: float) -> Self:
        """Return the same day in fewer seconds: values age faster, nobody waits shorter."""
        ages = ("ttl", "every", "stale", "rescue", "error_backoff")
        return replace(self, **{name: getattr(self, name) / times for name in ages})


def cached_candles(cache: AsyncSafeCache, origin: OriginClient, freshness: Freshness) -> GetCandles:
    """Return a `get_candles` that asks the cache, and the origin when it has to."""

    @race_safe_cached(
        cache,
        "candles",
        ttl=freshness.ttl,
        stale_while_revalidate=freshness.stale,
        stale_if_error=freshness.rescue,
        refresh_ahead="auto",
        soft_timeout=freshness.soft_timeout,
        hard_timeout=freshness.hard_timeout,
        load_timeout=freshness.load_timeout,
        error_backoff=freshness.error_backoff,
        negative={NotListedError: 60},
    )
    async def get_candles(symbol: str, timeframe: Timeframe) -> Candles:
        return await origin.candles(symbol, timeframe)

    return get_candles


def plain_candles(origin: OriginClient, ttl: float) -> GetCandles:
    """Return a `get_candles` as it is usually written: a dict of values and their deadlines."""
    values: dict[tuple[str, Timeframe], tuple[Candles, float]] = {}

    async def get_candles(symbol: str, timeframe: Timeframe) -> Candles:
        known = values.get((symbol, timeframe))
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        value = await origin.candles(symbol, timeframe)
        values[symbol, timeframe] = value, time.monotonic() + ttl
        return value

    return get_candles
