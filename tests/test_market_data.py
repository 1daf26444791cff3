"""The trading story of examples/market_data, from the origin's moods to the table."""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

for needed in ("fastapi", "httpx", "uvicorn"):
    pytest.importorskip(needed, reason="the example needs the extra `examples`")

import httpx

from async_safe_cache import AsyncSafeCache, race_safe_cached
from examples.market_data.compare import DAY, Row, conclude
from examples.market_data.measure import Sample, ask, draw, fetch, percentile, steadily
from examples.market_data.origin import Origin, candles
from examples.market_data.prices import (
    OTHERS,
    POPULAR,
    TIMEFRAMES,
    Candles,
    Freshness,
    NotListedError,
    OriginClient,
    OriginError,
)
from examples.market_data.process import HOST, child
from examples.market_data.service import Service
from examples.market_data.service_plain import plain_app
from examples.market_data.warming import MarketDataWarming

from .virtual import VirtualClock, run_virtual

ROOT = Path(__file__).parents[1]
CALLS = len(POPULAR + OTHERS) * len(TIMEFRAMES)


# ---- the origin, over sockets


@asynccontextmanager
async def origin_in(mood: str) -> AsyncIterator[int]:
    """Serve the origin in this process; yield its port."""
    async with await asyncio.start_server(Origin().serve, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await fetch(port, f"/mood/{mood}", "POST") == (200, {"mood": mood})
        yield port


@asynccontextmanager
async def client_of(port: int, name: str = "test") -> AsyncIterator[OriginClient]:
    client = OriginClient(f"http://{HOST}:{port}", name=name)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.mark.parametrize(("mood", "least"), [("normal", 0.02), ("slow", 0.3)])
async def test_the_origin_answers_after_a_while(mood: str, least: float) -> None:
    async with origin_in(mood) as port, client_of(port) as client:
        begun = time.monotonic()
        answer = await client.candles("AAPL", "5m")
        assert least <= time.monotonic() - begun < least + 1
        assert (answer.symbol, answer.timeframe, len(answer.candles)) == ("AAPL", "5m", 20)
        assert abs(time.time() - answer.as_of) < 1


async def test_a_failing_origin_gives_errors_and_resets_by_turns() -> None:
    async with origin_in("failing") as port, client_of(port) as client:
        for _ in range(2):
            with pytest.raises(OriginError, match="500 Internal Server Error"):
                await client.candles("AAPL", "1m")
            with pytest.raises(OriginError, match="ReadError"):
                await client.candles("AAPL", "1m")


async def test_a_hanging_origin_says_nothing() -> None:
    async with origin_in("hanging") as port:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await fetch(port, "/candles/AAPL/1m")


async def test_a_dripping_origin_says_something_at_every_read() -> None:
    async with origin_in("dripping") as port:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"GET /candles/AAPL/1m HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(5):
            assert [await reader.read(100) for _ in range(4)] == [b"H", b"T", b"T", b"P"]
        writer.close()
        await writer.wait_closed()


async def test_the_origin_lists_what_it_knows_and_counts_who_asked() -> None:
    async with origin_in("normal") as port:
        async with client_of(port, "one") as one, client_of(port, "other") as other:
            await asyncio.gather(one.candles("AAPL", "1m"), one.candles("AAPL", "1m"))
            with pytest.raises(NotListedError):
                await other.candles("nothing", "1m")
        assert await fetch(port, "/counts") == (200, {"one": 2, "other": 1})
        assert (await fetch(port, "/mood/cheerful"))[0] == 404
        assert (await fetch(port, "/"))[0] == 404


def test_candles_follow_each_other_and_stay_what_they_were() -> None:
    rows: Any = candles("AAPL", "1m", 60_000)["candles"]
    later: Any = candles("AAPL", "1m", 60_060)["candles"]
    assert [row[0] for row in rows] == list(range(60_000 - 19 * 60, 60_001, 60))
    assert later[:-1] == rows[1:]
    assert all(low <= min(begin, end) <= max(begin, end) <= high
               for _, begin, high, low, end, _ in rows)  # fmt: skip


# ---- a fake origin


class FakeOrigin:
    """Answers as the origin does, by the clock of the test; fails while it is told to."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.failing = False
        self.seconds = 0.02
        self.asked: Counter[tuple[str, str]] = Counter()
        self.client = OriginClient("http://origin", transport=httpx.MockTransport(self.answer))

    async def answer(self, request: httpx.Request) -> httpx.Response:
        _, _, symbol, timeframe = request.url.path.split("/")
        self.asked[symbol, timeframe] += 1
        await asyncio.sleep(self.seconds)
        if self.failing:
            return httpx.Response(500)
        if not symbol.isupper() or symbol.startswith("NO"):
            return httpx.Response(404)
        return httpx.Response(200, json=candles(symbol, timeframe, self.clock()))


@pytest.fixture
def origin(clock: VirtualClock) -> FakeOrigin:
    return FakeOrigin(clock)


@pytest.fixture
def run(clock: VirtualClock) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    return lambda main: run_virtual(main, clock)


Run = Callable[[Coroutine[Any, Any, Any]], Any]


# ---- warming


class Market:
    """A cache, a function of candles that counts its calls, and their warming."""

    def __init__(self, origin: FakeOrigin) -> None:
        self.service = Service(origin.client, clock=origin.clock)
        self.cache = self.service.cache
        self.get_candles = self.service.get_candles
        self.warming = self.service.warming


def test_the_popular_symbols_are_fetched_every_thirty_seconds(
    origin: FakeOrigin, clock: VirtualClock, run: Run
) -> None:
    """Nobody waits, and no value is older than the loop and its jitter allow."""

    async def main() -> None:
        market = Market(origin)
        async with market.cache:
            await market.warming.warm_popular_symbols()
            await market.warming.start_background_refresh()
            begun, before = clock(), market.cache.stats()
            for second in range(1, 301):
                await asyncio.sleep(begun + second - clock())
                asked = clock()
                for symbol in POPULAR:
                    answer = await market.get_candles(symbol, "1m")
                    assert clock() == asked, "a hit, at once"
                    assert asked - answer.as_of <= 34
            assert (market.cache.stats() - before).misses == 0
            fetched = origin.asked.copy()
            assert len(fetched) == CALLS
            assert {fetched[symbol, "5m"] for symbol in POPULAR} <= {10, 11, 12}
            assert {fetched[symbol, "5m"] for symbol in OTHERS} <= {1, 2}
            await market.warming.stop()
            await asyncio.sleep(600)
            assert origin.asked == fetched, "stopped"

    run(main())


def test_warming_fetches_what_is_not_fresh(origin: FakeOrigin, run: Run) -> None:
    async def main() -> None:
        market = Market(origin)
        async with market.cache:
            await market.get_candles("AAPL", "1m")
            first = await market.warming.warm_popular_symbols()
            assert (len(first.loaded), len(first.skipped), len(first.failed)) == (CALLS - 1, 1, 0)
            second = await market.warming.warm_popular_symbols()
            assert (len(second.loaded), len(second.skipped)) == (0, CALLS)
            assert set(origin.asked.values()) == {1}

    run(main())


def test_warming_reports_each_failure(origin: FakeOrigin, run: Run) -> None:
    async def main() -> None:
        market = Market(origin)
        origin.failing = True
        async with market.cache:
            report = await market.warming.warm_popular_symbols()
            assert len(report.failed) == CALLS
            assert {type(error) for error in report.failed.values()} == {OriginError}

    run(main())


def test_other_symbols_can_be_watched(clock: VirtualClock, run: Run) -> None:
    calls: Counter[tuple[str, str]] = Counter()

    async def get_candles(symbol: str, timeframe: str) -> Candles:
        calls[symbol, timeframe] += 1
        return Candles(symbol, timeframe, clock(), ())  # type: ignore[arg-type]

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)
        cached = race_safe_cached(cache, "candles", ttl=60)(get_candles)
        warming = MarketDataWarming(cache, cached, popular=["SHEL"], others=[], every=10)
        async with cache:
            await warming.warm_popular_symbols()
            assert calls == {("SHEL", timeframe): 1 for timeframe in TIMEFRAMES}
            await warming.start_background_refresh()
            await asyncio.sleep(95)
            await warming.stop()
            assert min(calls.values()) >= 9

    run(main())


# ---- the service


@asynccontextmanager
async def users_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Begin *app* as a server does; yield a client of it."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as users,
    ):
        yield users


def test_users_get_candles_from_the_cache(origin: FakeOrigin, run: Run) -> None:
    async def main() -> None:
        async with users_of(Service(origin.client, clock=origin.clock).app()) as users:
            answers = await asyncio.gather(*(users.get("/candles/SHEL/5m") for _ in range(100)))
            assert {answer.status_code for answer in answers} == {200}
            (body,) = {answer.text for answer in answers}
            assert origin.asked["SHEL", "5m"] == 1
            value = answers[0].json()
            assert (value["symbol"], value["timeframe"], len(value["candles"])) == (
                "SHEL", "5m", 20,
            )  # fmt: skip
            assert body == (await users.get("/candles/SHEL/5m")).text

    run(main())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/candles/NOTHING/1m", 404),
        ("/candles/AAPL/2m", 422),
        ("/candles/aapl/1m", 422),
        ("/candles/ABCDEFGHI/1m", 422),
        ("/candles/AAPL%2F1m/1m", 404),
        ("/candles/..%2Fmood/slow", 404),
    ],
)
def test_what_is_no_symbol_never_reaches_the_origin_twice(
    path: str, status: int, origin: FakeOrigin, run: Run
) -> None:
    async def main() -> None:
        async with users_of(Service(origin.client, clock=origin.clock).app()) as users:
            await users.get("/ready")
            for _ in range(3):
                assert (await users.get(path)).status_code == status
            asked = {call: count for call, count in origin.asked.items()
                     if call[0] not in POPULAR + OTHERS}  # fmt: skip
            assert asked == ({("NOTHING", "1m"): 1} if "NOTHING" in path else {})

    run(main())


def test_users_see_no_error_while_the_origin_fails(
    origin: FakeOrigin, clock: VirtualClock, run: Run
) -> None:
    """For an hour past its ttl a value is better than none; the origin is hardly asked."""

    async def main() -> None:
        async with users_of(Service(origin.client, clock=clock).app()) as users:
            old = (await users.get("/candles/SHEL/1m")).json()
            origin.failing = True
            begun = clock()
            while clock() < begun + 600:
                await asyncio.sleep(10)
                asked = clock()
                answer = await users.get("/candles/SHEL/1m")
                assert (answer.status_code, answer.json()) == (200, old)
                assert clock() - asked <= 0.1
            assert 1 <= origin.asked["SHEL", "1m"] <= 61
            origin.failing = False
            await asyncio.sleep(60)
            await users.get("/candles/SHEL/1m")  # the last of the old ones, perhaps
            await asyncio.sleep(1)
            answer = (await users.get("/candles/SHEL/1m")).json()
            assert answer["as_of"] > begun + 600

    run(main())


def test_users_wait_little_for_an_origin_that_hangs(
    origin: FakeOrigin, clock: VirtualClock, run: Run
) -> None:
    """A tenth of a second when there is an older value, one second when there is none."""

    async def main() -> None:
        async with users_of(Service(origin.client, clock=clock).app()) as users:
            old = (await users.get("/candles/SHEL/1m")).json()
            origin.seconds = 3600
            await asyncio.sleep(100)
            asked = clock()
            answer = await users.get("/candles/SHEL/1m")
            assert (answer.status_code, answer.json()) == (200, old)
            assert clock() - asked == pytest.approx(0.1)
            asked = clock()
            assert (await users.get("/candles/SHEL/5m")).status_code == 503
            assert clock() - asked == pytest.approx(1)
            origin.seconds = 0.02
            await asyncio.sleep(10)
            asked = clock()
            assert (await users.get("/candles/SHEL/1m")).json()["as_of"] > asked - 10
            assert clock() - asked <= 0.1, "the request that hung was given up"

    run(main())


def test_without_a_value_at_hand_the_failure_is_told(origin: FakeOrigin, run: Run) -> None:
    async def main() -> None:
        origin.failing = True
        async with users_of(Service(origin.client, clock=origin.clock).app()) as users:
            answer = await users.get("/candles/SHEL/1m")
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert answer.json() == {"detail": "no candles now"}

    run(main())


def test_the_service_is_ready_when_it_is_warm(
    origin: FakeOrigin, clock: VirtualClock, run: Run
) -> None:
    async def main() -> None:
        origin.failing = True
        async with users_of(Service(origin.client, clock=clock).app()) as users:
            answer = await users.get("/ready")
            assert (answer.status_code, answer.json()) == (503, {"ready": False})
            origin.failing = False
            await asyncio.sleep(120)
            answer = await users.get("/ready")
            assert (answer.status_code, answer.json()) == (200, {"ready": True})

    run(main())


# The hot set is read and written in a thread, for which virtual time does not wait: real time.


async def until_ready(users: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while (await users.get("/ready")).status_code != 200:
            pass  # it waits before it says no


async def test_the_next_run_begins_with_what_the_last_one_was_asked_for(tmp_path: Path) -> None:
    hot_set = tmp_path / "hot"
    first, second = FakeOrigin(time.monotonic), FakeOrigin(time.monotonic)
    async with users_of(Service(first.client, hot_set=hot_set).app()) as users:
        await until_ready(users)
        for _ in range(10):
            await users.get("/candles/SHEL/15m")
    assert hot_set.exists()
    async with users_of(Service(second.client, hot_set=hot_set).app()) as users:
        await until_ready(users)
        assert second.asked["SHEL", "15m"] == 1
        assert (await users.get("/candles/SHEL/15m")).status_code == 200
        assert second.asked["SHEL", "15m"] == 1, "it was there"


async def test_an_unreadable_hot_set_is_told_and_the_service_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hot_set = tmp_path / "hot"
    hot_set.write_bytes(b"half a file")
    with caplog.at_level(logging.WARNING):
        service = Service(FakeOrigin(time.monotonic).client, hot_set=hot_set)
        async with users_of(service.app()) as users:
            await until_ready(users)
    assert "the hot set is unreadable" in caplog.text
    assert hot_set.stat().st_size > 20, "replaced at the end"


# ---- its health


def test_health_is_status_metrics_and_timestamp(origin: FakeOrigin, run: Run) -> None:
    async def main() -> None:
        async with users_of(Service(origin.client, clock=origin.clock).app()) as users:
            await asyncio.sleep(5)
            health = (await users.get("/cache/health")).json()
            assert set(health) == {"status", "metrics", "timestamp"}
            assert health["status"] == "healthy"
            assert health["metrics"]["entries"] == CALLS
            age = datetime.now(UTC) - datetime.fromisoformat(health["timestamp"])
            assert abs(age.total_seconds()) < 60

    run(main())


def test_health_is_degraded_under_seventy_percent_of_hits(origin: FakeOrigin, run: Run) -> None:
    async def main() -> None:
        service = Service(origin.client, clock=origin.clock)
        async with users_of(service.app()) as users:
            await asyncio.sleep(5)

            async def ask(hits: int, misses: int) -> tuple[str, float]:
                for _ in range(hits):
                    await service.cache.get(
                        service.cache.key_for(service.get_candles, "AAPL", "1m")
                    )
                for _ in range(misses):
                    await service.cache.get("not there")
                health = (await users.get("/cache/health")).json()
                return health["status"], health["metrics"]["hit_rate"]

            assert await ask(700, 300) == ("healthy", 70.0)
            status, rate = await ask(0, 1)
            assert status == "degraded"
            assert rate < 70
            assert (await ask(100, 0))[0] == "healthy"

    run(main())


def test_health_warns_above_ninety_percent_of_memory(origin: FakeOrigin, run: Run) -> None:
    async def main() -> None:
        service = Service(origin.client, clock=origin.clock, max_memory_bytes=1024**2)
        async with users_of(service.app()) as users:
            await asyncio.sleep(5)
            room = 1024**2 - service.cache.memory_bytes

            async def usage(size: int) -> tuple[str, float]:
                await service.cache.set("large", b"x" * size)
                health = (await users.get("/cache/health")).json()
                return health["status"], health["metrics"]["memory_usage"]

            status, used = await usage(room - 120_000)
            assert (status, 85 < used <= 90) == ("healthy", True)
            status, used = await usage(room - 90_000)
            assert (status, used > 90) == ("warning", True)
            assert service.cache.stats().evictions == 0

    run(main())


# ---- without the library


def test_the_plain_service_answers_the_same(origin: FakeOrigin, run: Run) -> None:
    async def main() -> None:
        async with users_of(plain_app(origin.client, Freshness())) as users:
            assert (await users.get("/ready")).json() == {"ready": True}
            first, second = [await users.get("/candles/SHEL/5m") for _ in range(2)]
            assert first.json() == second.json()
            assert origin.asked["SHEL", "5m"] == 1
            await asyncio.gather(*(users.get("/candles/AAPL/5m") for _ in range(100)))
            assert origin.asked["AAPL", "5m"] == 100, "everybody loads"
            origin.failing = True
            assert (await users.get("/candles/MSFT/5m")).status_code == 503
            assert (await users.get("/candles/NOTHING/5m")).status_code == 503

    run(main())


# ---- the measure


def test_a_percentile_is_what_so_many_did_not_exceed() -> None:
    samples = [Sample(seconds, 0) for seconds in range(100, 0, -1)]
    assert [percentile(samples, percent) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile(samples[:1], 50) == 100


def test_the_popular_symbols_are_asked_for_most() -> None:
    paths = draw(3_000)
    assert paths == draw(3_000)
    symbols = Counter(path.split("/")[2] for path in paths)
    assert symbols.most_common(1)[0][0] == POPULAR[0]
    assert len(symbols) > len(POPULAR)


async def test_users_come_when_it_is_their_turn_and_do_not_wait_for_each_other() -> None:
    """Ten requests in a tenth of a second, to an origin that takes thrice that for each."""
    async with origin_in("slow") as port:
        begun = time.monotonic()
        async with asyncio.TaskGroup() as users:
            (asked,) = await steadily([port], ["/candles/AAPL/1m"] * 10, 100, users)
            assert time.monotonic() - begun < 0.29
        samples = [task.result() for task in asked]
        assert all(sample.age is not None and sample.seconds < 1.5 for sample in samples)


async def test_an_error_is_a_request_without_a_value() -> None:
    async with origin_in("failing") as port:
        answers = [await ask(port, "/candles/AAPL/1m", time.monotonic()) for _ in range(2)]
        assert [answer.age for answer in answers] == [None, None]
    nobody = await ask(port, "/candles/AAPL/1m", time.monotonic() - 1)
    assert nobody.age is None
    assert nobody.seconds >= 1, "counted from its turn"


def test_a_row_tells_errors_and_the_oldest_value() -> None:
    row = Row("slow", "with", [Sample(0.004, 2.0), Sample(0.004, 7.5), Sample(3, None)], 12)
    assert row.errors == 1
    assert str(row).split() == [
        "slow", "with", "3", "33.3%", "4", "ms", "3,000", "ms", "3,000", "ms", "7.5", "s", "12",
    ]  # fmt: skip


@pytest.mark.parametrize(("failing", "status"), [("without", 0), ("with", 1)])
def test_an_error_for_users_of_the_library_is_the_exit_status(
    failing: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        Row("failing", side, [Sample(0.1, None if side == failing else 1.0)], 0)
        for side in ("without", "with")
    ]
    assert conclude(rows) == status
    assert f"{status} errors for the users of the library" in capsys.readouterr().out


# ---- the whole story, as processes


def story(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "examples.market_data", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_the_story_is_told_without_an_error_for_users_of_the_library() -> None:
    with story("--seconds=5", "--rate=30") as told:
        shown, progress = told.communicate(timeout=50)
    lines = [line.split() for line in shown.splitlines() if line]
    assert told.returncode == 0, shown + progress
    assert [line[:2] for line in lines[1:-1]] == [
        [phase, side] for phase, _ in DAY for side in ("without", "with")
    ]
    errors = {(line[0], line[1]): line[3] for line in lines[1:-1]}
    assert {rate for (_, side), rate in errors.items() if side == "with"} == {"0.0%"}
    assert errors["hanging", "without"] != "0.0%"
    assert progress.splitlines()[1:6] == [
        f"[{number}/5] the origin is {phase} ..." for number, (phase, _) in enumerate(DAY, start=1)
    ]
    assert len(progress.splitlines()) == 7, progress


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_process_outlives_the_story(number: int, status: int) -> None:
    with story() as told:
        assert told.stderr
        while not re.match(r"\[1/", told.stderr.readline()):
            pass
        processes = children(told.pid)
        assert len(processes) == 3
        told.send_signal(number)
        _, rest = told.communicate(timeout=20)
        assert told.returncode == status, rest
        assert "Traceback" not in rest
    until = time.monotonic() + 10
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, processes))


def test_a_process_that_does_not_start_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"serve.py did not start"), child("serve", "--nonsense"):
        pass
