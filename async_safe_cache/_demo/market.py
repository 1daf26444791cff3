"""Part b: 100 coroutines ask one slow origin for prices, over real HTTP on loopback.

The origin (`origin.py`) is a process of its own, takes 100 ms per answer and
keeps a log; how often it was asked is read there. What was served (hit or not,
how old, how late) is counted by the callers, from the prices they receive.

The symbols are drawn by Zipf's law with a fixed seed: a few are asked for all
the time, most hardly ever. The first calls are the same without and with the
library; with it, more follow, until the cache is full and its bound at work.
"""

import asyncio
import ipaddress
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from async_safe_cache import AsyncSafeCache, race_safe_cached

from .client import Client
from .report import Measure, Progress, Promise, Report, milliseconds


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the part is; tests make it smaller.

    Attributes:
        symbols: Different symbols of the market.
        exponent: Of Zipf's law: the n-th symbol is asked for 1 / n**exponent as often as the first.
        callers: Coroutines that ask at once.
        calls: Calls made without and again with the library.
        more_calls: Calls made after those, with the library only.
        delay: Seconds the origin takes for an answer.
        ttl: Seconds a price may be served again.
        jitter: Fraction of ttl left to chance: what was loaded together expires one by one.
        max_memory_bytes: Bound of the cache: less than all symbols need.
    """

    symbols: int = 5_000
    exponent: float = 1.4
    callers: int = 100
    calls: int = 4_000
    more_calls: int = 76_000
    delay: float = 0.1
    ttl: float = 5.0
    jitter: float = 0.5
    max_memory_bytes: int = 800_000


SCALE = Scale()

FASTER = 10.0  # times, in the mean
HIT_RATE = 92.0  # percent
STEADY = 7.0  # percent around the steady value


@dataclass(frozen=True, slots=True)
class Quote:
    """A price as it arrived.

    Attributes:
        symbol: What it is the price of.
        price: The price.
        version: Grows with every change of the price.
        clock: When it was the price, by the origin's clock.
        received: When it arrived, by our clock.
        load_seconds: From the request to the answer.
    """

    symbol: str
    price: float
    version: int
    clock: float
    received: float
    load_seconds: float


Ask = Callable[[str], Coroutine[Any, Any, Quote]]
Address = tuple[str, int]


class Market:
    """The origin, as its client sees it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._origin_zero = 0.0

    async def synchronise(self) -> None:
        """Learn when, by our clock, the origin's clock was 0 or earlier.

        The origin reads its clock after we read ours, so an age computed from
        this is never too small.
        """
        before = time.monotonic()
        self._origin_zero = before - cast("float", (await self._client.get("/clock"))["clock"])

    async def price(self, symbol: str) -> Quote:
        """Ask the origin for the price of *symbol*."""
        begun = time.monotonic()
        answer = await self._client.get(f"/price/{symbol}")
        received = time.monotonic()
        return Quote(
            symbol,
            cast("float", answer["price"]),
            cast("int", answer["version"]),
            cast("float", answer["clock"]),
            received,
            received - begun,
        )

    def age(self, quote: Quote, now: float) -> float:
        """Return how many seconds before *now* the origin quoted this price."""
        return now - self._origin_zero - quote.clock

    async def log(self) -> dict[str, object]:
        """Return the origin's own record of what it was asked."""
        return await self._client.get("/log")


@dataclass(slots=True)
class Callers:
    """Many coroutines that ask for prices, and what they see.

    Attributes:
        market: Tells how old a price is.
        ask: The function under test.
        ttl: Seconds a price may be served again.
        memory: Reads the accounted memory.
        waits: Seconds every call took.
        errors: Calls that raised.
        hits: Calls whose price was there before they asked.
        wrong: Prices older than ttl and load, or older than one served before the call.
        updates: Prices newer than any seen of that symbol.
        oldest: Largest age of a served price, in seconds.
        samples: Accounted memory after every call.
    """

    market: Market
    ask: Ask
    ttl: float
    memory: Callable[[], int]
    waits: list[float] = field(default_factory=list[float])
    errors: int = 0
    hits: int = 0
    wrong: int = 0
    updates: int = 0
    oldest: float = 0.0
    samples: list[int] = field(default_factory=list[int])
    _newest: dict[str, int] = field(default_factory=dict[str, int])

    async def ask_for(self, symbols: list[str], callers: int) -> None:
        """Let *callers* coroutines ask for all *symbols*, each taking the next one."""
        pending = iter(symbols)

        async def caller() -> None:
            for symbol in pending:
                await self._call(symbol)
                await asyncio.sleep(0)  # a service does something else between two calls

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())

    async def _call(self, symbol: str) -> None:
        known = self._newest.get(symbol, -1)
        begun = time.monotonic()
        try:
            quote = await self.ask(symbol)
        except Exception:  # noqa: BLE001 - an error of any kind is what is counted
            self.errors += 1
            return
        ended = time.monotonic()
        self.waits.append(ended - begun)
        self.samples.append(self.memory())
        self.hits += quote.received <= begun
        age = self.market.age(quote, ended)
        self.oldest = max(self.oldest, age)
        self.wrong += (
            quote.symbol != symbol or age > self.ttl + quote.load_seconds or quote.version < known
        )
        if quote.version > self._newest.get(symbol, -1):
            self.updates += known >= 0
            self._newest[symbol] = quote.version

    @property
    def mean(self) -> float:
        """Mean seconds of a call; infinite when none succeeded."""
        return statistics.fmean(self.waits) if self.waits else float("inf")

    @property
    def p95(self) -> float:
        """Seconds that 95 of 100 calls did not exceed; infinite when none succeeded."""
        ordered = sorted(self.waits)
        return ordered[len(ordered) * 95 // 100] if ordered else float("inf")


@dataclass(frozen=True, slots=True)
class Half:
    """What was measured in one half.

    Attributes:
        callers: What the callers saw.
        first_mean: Mean seconds of the first calls.
        first_requests: Requests that the origin got for the first calls.
        requests: Requests that the origin got for all calls.
        peers: Addresses that the origin was asked from.
        seconds: The whole half.
    """

    callers: Callers
    first_mean: float
    first_requests: int
    requests: int
    peers: list[str]
    seconds: float


def draw(scale: Scale) -> list[str]:
    """Return the symbols asked for, in order: the same list at every run."""
    names = [f"S{number:04d}" for number in range(scale.symbols)]
    weights = accumulate(1 / (rank**scale.exponent) for rank in range(1, scale.symbols + 1))
    chance = random.Random(20)  # noqa: S311 - no secret, and the same at every run
    return chance.choices(names, cum_weights=list(weights), k=scale.calls + scale.more_calls)


def environment() -> dict[str, str]:
    """Return an environment in which a new Python finds this very package."""
    search = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))}


@contextmanager
def origin_process(delay: float) -> Generator[Address]:
    """Start the origin, yield where it listens, and end it whatever happens.

    It ends when its standard input is closed, which the system does for us if
    this process dies, and is killed if it has not ended 5 s later.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "async_safe_cache._demo.origin", "--delay", str(delay)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        start_new_session=True,  # Ctrl-C is for us: we end it in order
    )
    try:
        announced = process.stdout.readline() if process.stdout else b""
        if not announced:
            raise RuntimeError("the origin process did not start")
        host, port = announced.decode().split()
        yield host, int(port)
    finally:
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


async def _measure(
    address: Address,
    scale: Scale,
    symbols: list[str],
    decorate: Callable[[Ask], Ask],
    memory: Callable[[], int],
) -> Half:
    """Make the first calls, read the origin's log, make the other calls, read it again."""
    async with Client(*address) as client:
        market = Market(client)
        await market.synchronise()

        async def get_price(symbol: str) -> Quote:
            return await market.price(symbol)

        callers = Callers(market, decorate(get_price), scale.ttl, memory)
        begun = time.monotonic()
        await callers.ask_for(symbols[: scale.calls], scale.callers)
        first_mean = callers.mean
        first = await market.log()
        await callers.ask_for(symbols[scale.calls :], scale.callers)
        seconds = time.monotonic() - begun
        log = await market.log()
    return Half(
        callers,
        first_mean,
        cast("int", first["requests"]),
        cast("int", log["requests"]),
        cast("list[str]", log["peers"]),
        seconds,
    )


def _undecorated(ask: Ask) -> Ask:
    return ask


async def _without(address: Address, scale: Scale, symbols: list[str]) -> Half:
    return await _measure(address, scale, symbols[: scale.calls], _undecorated, lambda: 0)


@dataclass(frozen=True, slots=True)
class Library:
    """What the library says about itself."""

    loads: int
    evictions: int
    hit_rate: float


async def _with(address: Address, scale: Scale, symbols: list[str]) -> tuple[Half, Library]:
    cache = AsyncSafeCache("market", max_memory_bytes=scale.max_memory_bytes)
    async with cache:
        decorate = race_safe_cached(cache, "price", ttl=scale.ttl, jitter=scale.jitter)
        half = await _measure(address, scale, symbols, decorate, lambda: cache.memory_bytes)
        stats = cache.stats()
        health = await cache.get_health_info()
    return half, Library(stats.loads, stats.evictions, health["cache_stats"]["hit_rate"])


def _steady(samples: list[int]) -> tuple[int, float]:
    """Return the median of the later half and the largest distance from it in percent."""
    later = samples[len(samples) // 2 :]
    steady = statistics.median_low(later) if later else 0
    if not steady:
        return 0, float("inf")
    return steady, 100 * max(steady - min(later), max(later) - steady) / steady


def run(progress: Progress) -> Report:
    """Measure both halves, each against an origin of its own."""
    scale = SCALE
    symbols = draw(scale)
    progress("without the library")
    with origin_process(scale.delay) as address:
        plain = asyncio.run(_without(address, scale, symbols))
    progress("with the library")
    with origin_process(scale.delay) as address:
        cached, library = asyncio.run(_with(address, scale, symbols))
    return told(scale, plain, cached, library)


def told(scale: Scale, plain: Half, cached: Half, library: Library) -> Report:
    """Compare both halves with what is promised."""
    before, after = plain.callers, cached.callers
    total = scale.calls + scale.more_calls
    by_callers = 100 * after.hits / total
    peak = max(after.samples, default=0)
    steady, swing = _steady(after.samples)
    bound = scale.max_memory_bytes
    peers = sorted({*plain.peers, *cached.peers})
    rows = (
        Measure("calls", f"{scale.calls:,}", f"{total:,}"),
        Measure(
            f"requests to the origin, first {scale.calls:,} calls",
            f"{plain.first_requests:,}",
            f"{cached.first_requests:,}",
        ),
        Promise(
            "requests to the origin (its log) = loads",
            f"{plain.requests:,}",
            f"{cached.requests:,}",
            plain.requests == scale.calls
            and cached.requests == library.loads
            and cached.first_requests < plain.first_requests,
        ),
        Promise(
            f"mean response time, {FASTER:.0f} times better",
            milliseconds(before.mean),
            milliseconds(after.mean),
            before.mean >= FASTER * after.mean,
        ),
        Measure(
            f"the same, first {scale.calls:,} calls (cache empty)",
            milliseconds(plain.first_mean),
            milliseconds(cached.first_mean),
        ),
        Measure("95 % of the calls within", milliseconds(before.p95), milliseconds(after.p95)),
        Promise(
            "errors",
            f"{100 * before.errors / scale.calls:.1f} %",
            f"{100 * after.errors / total:.1f} %",
            before.errors == after.errors == 0,
        ),
        Promise(
            f"hit rate >= {HIT_RATE:.0f} %, counted by the callers",
            f"{100 * before.hits / scale.calls:.1f} %",
            f"{by_callers:.1f} %",
            by_callers >= HIT_RATE,
        ),
        Promise(
            "hit rate by get_health_info(), the same",
            "-",
            f"{library.hit_rate:.1f} %",
            library.hit_rate >= HIT_RATE and abs(library.hit_rate - by_callers) < 0.5,
        ),
        Promise(
            "prices too old, or older than one before",
            f"{before.wrong}",
            f"{after.wrong}",
            before.wrong == after.wrong == 0,
        ),
        Measure(
            f"oldest price served (ttl {scale.ttl:g} s + load)",
            f"{before.oldest:.2f} s",
            f"{after.oldest:.2f} s",
        ),
        Measure("new prices that reached a caller", f"{before.updates:,}", f"{after.updates:,}"),
        Promise(
            f"memory always under {bound / 1e6:g} MB, by evicting",
            "no bound",
            f"{peak / 1e6:.3f} MB",
            0 < peak <= bound and library.evictions > 0,
        ),
        Promise(
            f"memory within {STEADY:.0f} % of its steady value",
            "-",
            f"{steady / 1e6:.3f} MB +-{swing:.1f} %",
            swing <= STEADY,
        ),
        Measure("entries evicted to hold the bound", "-", f"{library.evictions:,}"),
        Promise(
            "peers the origin saw: loopback only",
            ", ".join(plain.peers),
            ", ".join(cached.peers),
            bool(peers) and all(ipaddress.ip_address(peer).is_loopback for peer in peers),
        ),
    )
    return Report(
        "b",
        f"{scale.callers} coroutines, one origin: prices over HTTP, "
        f"{milliseconds(scale.delay)} per answer, {scale.symbols:,} symbols",
        "every call is a request to the origin and waits for its answer",
        "one request for all who ask at once; the rest comes from bounded memory",
        rows,
        {
            "symbols": scale.symbols,
            "zipf_exponent": scale.exponent,
            "callers": scale.callers,
            "ttl_seconds": scale.ttl,
            "jitter": scale.jitter,
            "calls_without": scale.calls,
            "calls_with": total,
            "origin_requests_without": plain.requests,
            "origin_requests_with": cached.requests,
            "origin_requests_with_first_calls": cached.first_requests,
            "loads": library.loads,
            "mean_seconds_without": before.mean,
            "mean_seconds_with": after.mean,
            "mean_seconds_with_first_calls": cached.first_mean,
            "p95_seconds_without": before.p95,
            "p95_seconds_with": after.p95,
            "errors_without": before.errors,
            "errors_with": after.errors,
            "hit_rate_by_callers": by_callers,
            "hit_rate_by_health": library.hit_rate,
            "wrong_prices_without": before.wrong,
            "wrong_prices_with": after.wrong,
            "oldest_seconds_with": after.oldest,
            "memory_bound_bytes": bound,
            "memory_peak_bytes": peak,
            "memory_steady_bytes": steady,
            "memory_swing_percent": swing,
            "evictions": library.evictions,
            "seconds_without": plain.seconds,
            "seconds_with": cached.seconds,
        },
    )
