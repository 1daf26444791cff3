"""Users who do not wait for each other: requests at a steady rate, each one timed.

A request begins when its turn comes, whether or not the ones before it were
answered, and its time counts from then. Otherwise a slow service would be
asked less, and would look better than it is to those who use it.
"""

import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .prices import OTHERS, POPULAR, TIMEFRAMES
from .process import HOST

PATIENCE = 3.0  # seconds until a user goes away


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes:
        seconds: From its turn to its end.
        age: Seconds since the origin gave the value; None: there was no value, an error.
    """

    seconds: float
    age: float | None


def percentile(samples: Sequence[Sample], percent: float) -> float:
    """Return the seconds that *percent* of all requests did not exceed, errors included."""
    ordered = sorted(sample.seconds for sample in samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


def draw(count: int) -> list[str]:
    """Return the paths asked for, by Zipf's law over the symbols: the same at every run."""
    symbols = (*POPULAR, *OTHERS)
    weights = list(accumulate(1 / rank for rank in range(1, len(symbols) + 1)))
    chance = random.Random(20)
    chosen = chance.choices(symbols, cum_weights=weights, k=count)
    return [f"/candles/{symbol}/{chance.choice(TIMEFRAMES)}" for symbol in chosen]


async def fetch(port: int, path: str, method: str = "GET") -> tuple[int, Any]:
    """Return status and JSON of one request, made over a connection of its own."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        body = await reader.readexactly(int(fields["content-length"]))
        return int(head[0].split(" ")[1]), json.loads(body)
    finally:
        writer.close()


async def ask(port: int, path: str, turn: float) -> Sample:
    """Ask as a user does, who counts from *turn* and goes away after a while."""
    try:
        async with asyncio.timeout(PATIENCE):
            status, answer = await fetch(port, path)
    except (OSError, EOFError, TimeoutError):
        return Sample(time.monotonic() - turn, None)
    seconds = time.monotonic() - turn
    return Sample(seconds, time.time() - answer["as_of"] if status == 200 else None)


async def steadily(
    ports: Sequence[int], paths: Sequence[str], rate: float, users: asyncio.TaskGroup
) -> list[list[asyncio.Task[Sample]]]:
    """Ask every service for *paths*, *rate* of them a second; return who asked each of them.

    Does not wait for the last answers: whoever comes next does not either.
    """
    begin = time.monotonic()
    asked: list[list[asyncio.Task[Sample]]] = [[] for _ in ports]
    for number, path in enumerate(paths):
        turn = begin + number / rate
        await asyncio.sleep(turn - time.monotonic())
        for port, tasks in zip(ports, asked, strict=True):
            tasks.append(users.create_task(ask(port, path, turn)))
    return asked
