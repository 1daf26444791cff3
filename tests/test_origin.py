"""An origin of real sockets that hangs, resets, drips and answers 500.

In real time: what is under test is that no state of a socket keeps a caller longer than it
is ready to wait. The bounds are wide enough for a busy machine.
"""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from async_safe_cache import AsyncSafeCache, LoadTimeoutError, race_safe_cached

HARD = 0.25
LATE = 0.75
"""How much later than it should a busy machine may wake a caller."""

MOODS = ("hangs", "resets", "drips", "fails", "refuses", "half a reply")


class Origin:
    """A server of HTTP whose mood can be changed."""

    def __init__(self) -> None:
        self.mood = "well"
        self.requests = 0
        self.version = 1
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            body = str(self.version).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            if self.mood == "hangs":
                await asyncio.sleep(3600)
            elif self.mood == "resets":
                # Closed with nothing lingering: a reset, not an end.
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            elif self.mood == "drips":
                for byte in head + body:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.5)
            elif self.mood == "fails":
                writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
            elif self.mood == "half a reply":
                writer.write(head[:12])
            else:
                writer.write(head + body)
            await writer.drain()
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort() if self.mood == "resets" else writer.close()

    async def fetch(self) -> int:
        """Ask the origin, as a client without a timeout of its own does."""
        port = 1 if self.mood == "refuses" else self.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: origin\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head:
                raise RuntimeError("the origin answered 500")
            length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
            return int(await reader.readexactly(length))
        finally:
            writer.close()


@asynccontextmanager
async def origin() -> AsyncIterator[Origin]:
    it = Origin()
    server = await asyncio.start_server(it.answer, "127.0.0.1", 0)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # those that hang
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("mood", MOODS)
async def test_no_caller_waits_beyond_its_hard_timeout(mood: str) -> None:
    async with origin() as server, AsyncSafeCache() as cache:

        @race_safe_cached(cache, ttl=60, hard_timeout=HARD, load_timeout=5)
        async def read() -> int:
            return await server.fetch()

        server.mood = mood
        begun = time.monotonic()
        results = await asyncio.gather(*(read() for _ in range(50)), return_exceptions=True)
        assert time.monotonic() - begun < HARD + LATE
        assert all(isinstance(each, Exception) for each in results)
        if mood in ("hangs", "drips"):
            assert {type(each) for each in results} == {LoadTimeoutError}
        server.mood = "well"
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await read() == 1
                    break
                except LoadTimeoutError:
                    continue
        cache.check()


@pytest.mark.parametrize("mood", MOODS)
async def test_none_sees_an_error_while_a_stale_value_is_allowed(mood: str) -> None:
    """Whatever the origin does, for as long as it does it; and its return is noticed."""
    async with origin() as server, AsyncSafeCache() as cache:

        @race_safe_cached(
            cache,
            ttl=0.05,
            stale_if_error=60,
            soft_timeout=0.1,
            hard_timeout=HARD,
            load_timeout=0.4,
            cancel_grace=0.1,
            error_backoff=0.05,
        )
        async def read() -> int:
            return await server.fetch()

        assert await read() == 1
        await asyncio.sleep(0.06)
        server.mood, server.version = mood, 2
        end = time.monotonic() + 0.6
        longest = 0.0
        served = 0
        while time.monotonic() < end:
            begun = time.monotonic()
            results = await asyncio.gather(*(read() for _ in range(10)), return_exceptions=True)
            longest = max(longest, time.monotonic() - begun)
            assert set(results) == {1}
            served += len(results)
            await asyncio.sleep(0.01)
        assert longest < HARD + LATE
        assert server.requests < served / 5, "nor is it asked by everybody"
        server.mood = "well"
        async with asyncio.timeout(10):
            while await read() != 2:
                await asyncio.sleep(0.02)
        cache.check()
        assert cache.stats().stale_served >= served - 1
