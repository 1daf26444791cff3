"""One of the two services as a process: uvicorn on a free port of loopback.

    python -m examples.market_data.serve http://127.0.0.1:8001 [--plain] [--faster 15]

It prints its port, and ends when its standard input ends.
"""

import argparse
import asyncio
import logging
import socket
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from .prices import Freshness, OriginClient
from .process import HOST, stdin_ended
from .service import Service
from .service_plain import plain_app


async def serve(app: FastAPI) -> None:
    """Serve *app* until standard input ends."""
    with socket.create_server((HOST, 0), backlog=512) as listening:
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1)
        )
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        print(listening.getsockname()[1], flush=True)
        ended = asyncio.create_task(stdin_ended())
        await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        server.should_exit = True
        await serving


def main() -> None:
    """Read the arguments, make the service, serve."""
    parser = argparse.ArgumentParser(description="Candles over HTTP, on loopback.")
    parser.add_argument("origin", help="URL of the origin")
    parser.add_argument("--plain", action="store_true", help="without the library")
    parser.add_argument("--faster", type=float, default=1, help="values age so much faster")
    parser.add_argument("--hot-set", type=Path, help="file that names what was read most")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # the table tells what fails; so would /cache/health
    freshness = Freshness().faster(options.faster)
    origin = OriginClient(options.origin, name="without" if options.plain else "with")
    asyncio.run(
        serve(
            plain_app(origin, freshness)
            if options.plain
            else Service(origin, freshness, options.hot_set).app()
        )
    )


if __name__ == "__main__":
    main()
