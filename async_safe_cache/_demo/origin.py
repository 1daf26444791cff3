"""The origin of part b: a market-data server over HTTP, a process of its own.

    GET /price/SYMBOL   the price of this moment, after a delay
    GET /clock          the origin's clock: seconds since it started
    GET /log            what it was asked: requests by symbol, connections, peers

Every price changes every *tick* seconds. It listens on loopback only, says where
(address and port) in its first line of output, and ends when its standard input
ends: it cannot outlive the process that started it, however that one dies.

    python -m async_safe_cache._demo.origin --delay 0.1
"""

import argparse
import asyncio
import json
import os
import threading
import time
import zlib
from collections import Counter

HOST = "127.0.0.1"


class Origin:
    """Answers requests and keeps the log of them."""

    def __init__(self, delay: float, tick: float) -> None:
        self._delay = delay
        self._tick = tick
        self._started = time.monotonic()
        self._requests: Counter[str] = Counter()  # one entry per symbol of the market
        self._peers: set[str] = set()  # addresses without ports
        self._connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until the client closes it."""
        self._connections += 1
        self._peers.add(str(writer.get_extra_info("peername")[0]))
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                status, answer = await self._answer(head.split(b" ", 2)[1].decode())
                body = json.dumps(answer).encode()
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _answer(self, path: str) -> tuple[str, dict[str, object]]:
        match path.split("/")[1:]:
            case ["price", symbol]:
                self._requests[symbol] += 1
                await asyncio.sleep(self._delay)
                return "200 OK", self._quote(symbol)
            case ["clock"]:
                return "200 OK", {"clock": self._clock()}
            case ["log"]:
                return "200 OK", {
                    "requests": self._requests.total(),
                    "by_symbol": dict(self._requests),
                    "connections": self._connections,
                    "peers": sorted(self._peers),
                }
            case _:
                return "404 Not Found", {"error": "no such resource"}

    def _clock(self) -> float:
        return time.monotonic() - self._started

    def _quote(self, symbol: str) -> dict[str, object]:
        """Return the price of *symbol* now: a walk that anyone can compute again."""
        clock = self._clock()
        version = int(clock / self._tick)
        cents = 5_000 + zlib.crc32(f"{symbol}:{version}".encode()) % 1_000
        return {"symbol": symbol, "price": cents / 100, "version": version, "clock": clock}


async def main(delay: float, tick: float) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def wait_for_end() -> None:
        while os.read(0, 1024):
            pass
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    server = await asyncio.start_server(Origin(delay, tick).serve, HOST, 0, backlog=512)
    host, port = server.sockets[0].getsockname()
    print(host, port, flush=True)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A market-data server on loopback.")
    parser.add_argument(
        "--delay", type=float, default=0.1, help="seconds until a price is answered"
    )
    parser.add_argument("--tick", type=float, default=0.5, help="seconds until prices change")
    options = parser.parse_args()
    asyncio.run(main(options.delay, options.tick))
