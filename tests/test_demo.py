"""The demo tells the truth: it passes with the library, and fails without it.

Every part is run twice here. As it is, scaled down: each promise holds. Then
with the library taken out (the decorator does nothing, or the naive cache is
in its place): the exit status is 1.
"""

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from async_safe_cache import MISSING, AsyncSafeCache, Lookup, MissReason, __main__, _demo
from async_safe_cache._demo import client, files, market, promises, races, report

ROOT = Path(__file__).parents[1]
LETTERS = "abcdef"

SMALL = market.Scale(
    symbols=200,
    callers=20,
    calls=200,
    more_calls=4_800,
    delay=0.02,
    max_memory_bytes=100_000,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "SCALE", SMALL)
    monkeypatch.setattr(files, "FILES", 5)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Leave one part of the demo."""

    def leave(letter: str) -> None:
        parts = tuple(part for part in _demo.PARTS if part.letter == letter)
        monkeypatch.setattr(_demo, "PARTS", parts)

    return leave


def run_json(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    status = __main__.main(["demo", "--json"])
    return status, json.loads(capsys.readouterr().out)


def broken(document: dict[str, Any]) -> list[str]:
    rows = [row for part in document["parts"] for row in part["rows"]]
    return [row["text"] for row in rows if row["holds"] is False]


def undecorated(*_: object, **__: object) -> Callable[[Any], Any]:
    """Stand in for `race_safe_cached(...)` and do nothing."""
    return lambda function: function


# ---- with the library


def test_every_part_holds_and_the_json_report_is_complete(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, document = run_json(capsys)
    assert broken(document) == []
    assert status == 0
    assert document["holds"] is True
    assert [part["part"] for part in document["parts"]] == list(LETTERS)
    promised = 0
    for part in document["parts"]:
        assert part["holds"] is True
        assert part["seconds"] >= 0
        assert all(part[name] for name in ("title", "without", "with", "figures"))
        for row in part["rows"]:
            assert set(row) == {"text", "without", "with", "holds"}
            assert all(row[name] for name in ("text", "without", "with"))
        promised += sum(row["holds"] is not None for row in part["rows"])
    assert document["promises"] == document["kept"] == promised
    figures = {part["part"]: part["figures"] for part in document["parts"]}
    assert (figures["a"]["opened_without"], figures["a"]["opened_with"]) == (20, 5)
    assert figures["b"]["origin_requests_with"] == figures["b"]["loads"]
    assert (figures["c"]["failed_without"], figures["c"]["failed_with"]) == (99, 0)
    assert (figures["d"]["delete_without"], figures["d"]["delete_with"]) == (100, 101)
    assert figures["e"]["swept"] == 50
    assert (figures["f"]["failed_without"], figures["f"]["failed_with"]) == (3, 0)


@pytest.mark.parametrize("letter", ["c", "d", "e", "f"])
def test_the_report_is_a_table_for_people(
    letter: str, only: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    only(letter)
    assert __main__.main(["demo"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert max(len(line) for line in lines) <= 100
    rows = [line for line in lines if line.endswith("   holds")]
    assert len({len(line) for line in rows}) == 1  # aligned
    assert lines[-1].startswith(f"{len(rows)} of {len(rows)} promises hold")
    assert not {"\x1b", "\r"} & set(shown.out + shown.err)  # no terminal here
    assert shown.err.startswith("[1/1] ")


def test_on_a_terminal_the_progress_line_goes_again(
    only: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only("d")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert __main__.main(["demo"]) == 0
    assert capsys.readouterr().err.endswith(" ...\r\x1b[K")


@pytest.mark.parametrize(
    ("script", "output"),
    [
        ("race_conditions.py", "library  holds: 5,000 swept"),
        ("quickstart.py", "loads=1"),
        ("stale_related.py 500", "holds: never an old page"),
    ],
)
def test_an_example_runs_on_its_own(script: str, output: str) -> None:
    name, *arguments = script.split()
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=market.environment(),
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert output in done.stdout


# ---- without it


@pytest.mark.parametrize(("letter", "module"), [("a", files), ("b", market), ("c", promises)])
def test_without_the_decorator_the_exit_status_is_1(
    letter: str,
    module: Any,
    only: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only(letter)
    monkeypatch.setattr(module, "race_safe_cached", undecorated)
    monkeypatch.setattr(market, "SCALE", replace(SMALL, more_calls=400))
    status, document = run_json(capsys)
    assert status == 1
    assert document["holds"] is False
    expected = {
        "a": {"times a file was opened (audit hook)"},
        "b": {
            "requests to the origin (its log) = loads",
            "mean response time, 10 times better",
            "hit rate >= 92 %, counted by the callers",
            "memory always under 0.1 MB, by evicting",
        },
        "c": {"loads"},
    }
    assert expected[letter] <= set(broken(document))


def test_with_a_naive_read_through_cache_the_next_reader_sees_the_old_price(
    only: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only("d")
    monkeypatch.setattr(promises, "AsyncSafeCache", lambda _: promises.NaiveReadThrough())
    status, document = run_json(capsys)
    assert status == 1
    assert len(broken(document)) == 2


def test_with_the_shared_task_recipe_everybody_fails_with_the_leader(
    only: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only("c")
    monkeypatch.setattr(promises, "race_safe_cached", lambda *_: promises.shared_task)
    status, document = run_json(capsys)
    assert status == 1
    assert broken(document) == ["the others that fail with it"]


def test_a_cache_that_forgets_reasons_breaks_the_promise(
    only: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Forgetful(AsyncSafeCache):
        async def lookup(self, key: Any) -> Lookup[Any]:
            found = await super().lookup(key)
            if found.hit:
                return found
            return Lookup(
                hit=False, value=MISSING, reason=MissReason.ABSENT, age=None, ttl_left=None
            )

    only("e")
    monkeypatch.setattr(promises, "AsyncSafeCache", Forgetful)
    status, document = run_json(capsys)
    assert status == 1
    assert len(broken(document)) == 3  # all but "never there"


@pytest.mark.parametrize(
    ("telling", "naive"),
    [
        ("move_with_library", "move_naive"),
        ("sum_with_library", "sum_naive"),
        ("sweep_with_library", "sweep_naive"),
    ],
)
def test_a_race_that_the_library_would_lose_breaks_its_promise(
    telling: str,
    naive: str,
    only: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only("f")
    example = races.example()
    monkeypatch.setattr(example, telling, getattr(example, naive))
    status, document = run_json(capsys)
    assert status == 1
    assert len(broken(document)) == 1
    assert example.main() == 1  # alone, it says so as well


def test_a_part_that_raises_is_a_broken_promise_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: report.Progress) -> report.Report:
        raise ValueError("no such luck")

    last = _demo.PARTS[3]
    monkeypatch.setattr(_demo, "PARTS", (_demo.Part("x", "unlucky", fail), last))
    assert __main__.main(["demo"]) == 1
    shown = capsys.readouterr()
    assert "no such luck" in shown.err
    assert "BROKEN in x: the part runs to its end" in shown.out
    assert "d. The stale write" in shown.out


def test_a_demo_of_nothing_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_demo, "PARTS", ())
    status, document = run_json(capsys)
    assert (status, document["holds"]) == (1, False)


# ---- part b: what is counted, and what is promised about it


def quote(symbol: str = "S0000", *, version: int = 1, clock: float = 0.0) -> market.Quote:
    return market.Quote(symbol, 50.0, version, clock, received=0.0, load_seconds=0.1)


def told() -> Iterator[tuple[str, report.Report]]:
    """Yield part b's report of made-up measurements: first good, then with one thing wrong."""

    def callers(**changes: Any) -> market.Callers:
        async def ask(_: str) -> market.Quote:
            return quote()

        it = market.Callers(market.Market(client.Client("", 0)), ask, 3.0, lambda: 0)
        for name, value in changes.items():
            setattr(it, name, value)
        return it

    scale = market.Scale(calls=100, more_calls=900, max_memory_bytes=1_000_000)
    plain = market.Half(callers(waits=[0.1] * 100), 0.1, 100, 100, ["127.0.0.1"], 1.0)
    good = {"waits": [0.005] * 1000, "hits": 950, "samples": [990_000] * 1000}
    cached = market.Half(callers(**good), 0.02, 20, 50, ["127.0.0.1"], 1.0)
    library = market.Library(loads=50, evictions=7, hit_rate=95.0)
    yield "", market.told(scale, plain, cached, library)

    def wrong(**changes: Any) -> report.Report:
        half = replace(cached, callers=callers(**(good | changes)))
        return market.told(scale, plain, half, library)

    yield "mean response", wrong(waits=[0.011] * 1000)
    yield "mean response", wrong(waits=[])
    yield "errors", wrong(errors=1)
    yield "prices too old", wrong(wrong=1)
    yield "memory always", wrong(samples=[990_000] * 999 + [1_000_001])
    yield "memory within", wrong(samples=[990_000] * 999 + [900_000])
    yield (
        "hit rate >=",
        market.told(
            scale,
            plain,
            replace(cached, callers=callers(**(good | {"hits": 919}))),
            replace(library, hit_rate=92.0),
        ),
    )
    yield "hit rate by", market.told(scale, plain, cached, replace(library, hit_rate=99.0))
    yield "memory always", market.told(scale, plain, cached, replace(library, evictions=0))
    yield "requests to", market.told(scale, plain, cached, replace(library, loads=49))
    yield "requests to", market.told(scale, plain, replace(cached, first_requests=100), library)
    yield "peers", market.told(scale, plain, replace(cached, peers=["192.0.2.1"]), library)


def test_each_promise_of_part_b_breaks_when_its_number_is_wrong() -> None:
    for begins, told_report in told():
        wrong = [promise.text for promise in told_report.promises if not promise.holds]
        assert [text[: len(begins)] for text in wrong] == ([begins] if begins else []), wrong


async def test_callers_notice_prices_that_are_too_old_or_go_back() -> None:
    now = asyncio.get_running_loop().time()  # the same clock as time.monotonic
    answers = itertools.chain(
        [
            quote(version=5, clock=now),
            quote(version=6, clock=now),
            quote(version=5, clock=now),  # goes back
            quote(version=6, clock=now - 4.0),  # older than ttl and load
            quote("S0001", version=9, clock=now),  # another symbol's
        ]
    )

    async def ask(_: str) -> market.Quote:
        return next(answers)

    callers = market.Callers(market.Market(client.Client("", 0)), ask, 3.0, lambda: 7)
    await callers.ask_for(["S0000"] * 4, callers=1)
    assert (callers.wrong, callers.updates, callers.errors) == (2, 1, 0)
    await callers.ask_for(["S0000"], callers=1)
    assert callers.wrong == 3
    assert callers.samples == [7] * 5


async def test_callers_count_errors_and_go_on() -> None:
    async def ask(_: str) -> market.Quote:
        raise OSError

    callers = market.Callers(market.Market(client.Client("", 0)), ask, 3.0, lambda: 0)
    await callers.ask_for(["S0000"] * 10, callers=3)
    assert (callers.errors, callers.waits) == (10, [])


def test_the_same_symbols_are_drawn_every_time() -> None:
    first = market.draw(market.Scale())
    assert first == market.draw(market.Scale())
    assert len(set(first)) > 2_000


# ---- the origin


def test_the_origin_counts_answers_and_ends_with_its_user() -> None:
    async def use(address: market.Address) -> dict[str, object]:
        async with client.Client(*address) as http:
            one = await asyncio.gather(*(http.get("/price/S0001") for _ in range(5)))
            assert {answer["symbol"] for answer in one} == {"S0001"}
            await http.get("/price/S0002")
            with pytest.raises(client.HttpError, match="404"):
                await http.get("/nothing")
            return await http.get("/log")

    with market.origin_process(0.01) as address:
        log = asyncio.run(use(address))
    assert log["by_symbol"] == {"S0001": 5, "S0002": 1}
    assert log["requests"] == 6
    assert log["peers"] == ["127.0.0.1"]
    assert log["connections"] == 5  # kept alive and used again
    with pytest.raises(ConnectionError):
        asyncio.run(client.Client(*address).get("/log"))


def test_the_origin_ends_when_its_user_fails() -> None:
    listened: list[market.Address] = []
    with pytest.raises(ZeroDivisionError), market.origin_process(0.01) as address:
        listened.append(address)
        raise ZeroDivisionError
    with pytest.raises(ConnectionError):
        asyncio.run(client.Client(*listened[0]).get("/log"))


def test_the_origin_ends_when_its_user_is_killed() -> None:
    """It holds our end of the pipe for errors, so reading that to its end waits for it."""
    program = (
        "import os\n"
        "from async_safe_cache._demo.market import origin_process\n"
        "with origin_process(0.01):\n"
        "    os._exit(7)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, env=market.environment()
    ) as process:
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (7, b"")


# ---- the command line


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        __main__.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("async-safe-cache ")


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--loud"]])
def test_a_wrong_command_line_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        __main__.main(arguments)
    assert ended.value.code == 2
    assert "usage: async-safe-cache" in capsys.readouterr().err


def test_ctrl_c_ends_the_demo_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: report.Progress) -> report.Report:
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo, "PARTS", (_demo.Part("x", "interrupted", interrupt),))
    assert __main__.main(["demo"]) == 130
    assert "Traceback" not in capsys.readouterr().err
