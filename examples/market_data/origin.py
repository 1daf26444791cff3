"""The origin: candles over HTTP, in one of several moods.

    GET  /candles/SYMBOL/TIMEFRAME   the candles of this moment, as the mood allows
    POST /mood/MOOD                  changes the mood; requests that run keep theirs
    GET  /counts                     {client: requests for candles}, by the header X-Client

| mood     | what happens to a request for candles                                   |
|----------|-------------------------------------------------------------------------|
| normal   | answered after 20 ms                                                    |
| slow     | answered after 300 to 600 ms                                            |
| failing  | by turns a 500 and a reset connection                                   |
| hanging  | never answered                                                          |
| dripping | answered one byte every 50 ms: each read gets something, so the timeout |
|          | of a read never fires                                                   |

A symbol is made of capitals; any other is not listed, and a 404. It listens on
loopback only; plain asyncio, no extra needed.

    python -m examples.market_data.origin
"""

import asyncio
import json
import random
import socket
import struct
import time
import zlib
from collections import Counter
from typing import Literal, get_args

from .process import HOST, stdin_ended

Mood = Literal["normal", "slow", "failing", "hanging", "dripping"]
MOODS: tuple[Mood, ...] = get_args(Mood)

SECONDS = {"1m": 60, "5m": 300, "15m": 900}
CANDLES = 20  # in each answer
DRIP = 0.05  # seconds between two bytes


class _Reset(Exception):
    """The connection ends without an answer."""


class Origin:
    """Answers requests, and counts them."""

    def __init__(self) -> None:
        self._mood: Mood = "normal"
        self._failures = 0
        self._counts: Counter[str] = Counter()  # one entry per client program
        self._chance = random.Random()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until either side ends it."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                path = head[0].split(" ")[1]
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                drips = path.startswith("/candles/") and self._mood == "dripping"
                status, answer = await self._answer(path, fields.get("x-client", ""), reader)
                body = json.dumps(answer).encode()
                whole = (
                    f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n".encode() + body
                )  # fmt: skip
                for start in range(0, len(whole), 1 if drips else len(whole)):
                    writer.write(whole[start : start + 1] if drips else whole)
                    await writer.drain()
                    await asyncio.sleep(DRIP if drips else 0)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the origin ends
        except _Reset:
            # Closed with no time to linger, a connection is reset.
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        finally:
            writer.close()

    async def _answer(
        self, path: str, client: str, reader: asyncio.StreamReader
    ) -> tuple[str, dict[str, object]]:
        match path.split("/")[1:]:
            case ["candles", symbol, timeframe]:
                self._counts[client] += 1
                if await self._suffer(reader):
                    return "500 Internal Server Error", {"error": "the exchange is down"}
                if not (symbol.isascii() and symbol.isupper()) or timeframe not in SECONDS:
                    return "404 Not Found", {"error": "not listed"}
                return "200 OK", candles(symbol, timeframe, time.time())
            case ["mood", mood] if mood in MOODS:
                self._mood = mood
                return "200 OK", {"mood": mood}
            case ["counts"]:
                return "200 OK", dict(self._counts)
            case _:
                return "404 Not Found", {"error": "no such resource"}

    async def _suffer(self, reader: asyncio.StreamReader) -> bool:
        """Do to a request what the mood does; return whether it fails."""
        match self._mood:
            case "normal":
                await asyncio.sleep(0.02)
            case "slow":
                await asyncio.sleep(self._chance.uniform(0.3, 0.6))
            case "failing":
                self._failures += 1
                if self._failures % 2:
                    return True
                raise _Reset
            case "hanging":
                await reader.read()  # until the client has gone
                raise ConnectionResetError
            case "dripping":
                pass
        return False


def candles(symbol: str, timeframe: str, now: float) -> dict[str, object]:
    """Return the last candles of *symbol*: a walk that is the same whenever it is asked for."""
    length = SECONDS[timeframe]
    rows: list[list[float]] = []
    for number in range(int(now // length) - CANDLES + 1, int(now // length) + 1):
        walk = zlib.crc32(f"{symbol}/{timeframe}/{number}".encode())
        begin, end = 90 + walk % 2_000 / 100, 90 + (walk >> 11) % 2_000 / 100
        high, low = max(begin, end) + 0.5, min(begin, end) - 0.5
        rows.append([number * length, begin, high, low, end, walk % 9_000])
    return {"symbol": symbol, "timeframe": timeframe, "as_of": now, "candles": rows}


async def main() -> None:
    """Serve until standard input ends."""
    server = await asyncio.start_server(Origin().serve, HOST, 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stdin_ended()
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
