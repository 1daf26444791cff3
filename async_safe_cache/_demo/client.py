"""A small HTTP/1.1 client: keep-alive connections to one address, used again.

As much of HTTP as part b needs: GET, a Content-Length, a JSON object as answer.
"""

import asyncio
import json
from typing import Self, cast

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpError(Exception):
    """The server answered with something else than 200."""


class Client:
    """Sends requests over as many connections as are needed at once."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[Connection] = []  # at most the number of requests ever running at once

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close every connection."""
        while self._idle:
            _, writer = self._idle.pop()
            writer.close()
            await writer.wait_closed()

    async def get(self, path: str) -> dict[str, object]:
        """Return the JSON object at *path*.

        Raises:
            HttpError: the status is not 200.
            OSError: the server cannot be reached.
        """
        connection = (
            self._idle.pop()
            if self._idle
            else await asyncio.open_connection(self._host, self._port)
        )
        try:
            answer = await self._exchange(connection, path)
        except BaseException:
            # Half an answer may be left in the connection: nobody may use it again.
            connection[1].close()
            raise
        self._idle.append(connection)
        return answer

    async def _exchange(self, connection: Connection, path: str) -> dict[str, object]:
        reader, writer = connection
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(fields["content-length"]))
        if head[0].split(" ")[1] != "200":
            raise HttpError(f"{path}: {head[0]}")
        return cast("dict[str, object]", json.loads(body))
