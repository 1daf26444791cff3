"""Processes that say where they listen, and that cannot outlive who started them.

A child prints its port as its first line of output and ends when its standard
input ends. The parent holds the other end of that pipe; the system closes it
however the parent dies. So nothing is left running: not after Ctrl-C, not
after `kill -9`.
"""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

HOST = "127.0.0.1"
PATIENCE = 5.0  # seconds for a child to end in order, before it is killed


async def stdin_ended() -> None:
    """Return when standard input has ended."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def read() -> None:
        while os.read(0, 1024):
            pass
        try:
            loop.call_soon_threadsafe(ended.set)
        except RuntimeError:
            pass  # the loop is over, and so is the process

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()


@contextmanager
def child(module: str, *arguments: str) -> Generator[int]:
    """Run a module of this package as a process, yield its port, and end it whatever happens."""
    root = str(Path(__file__).parents[2])
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.{module}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search},
        start_new_session=True,  # Ctrl-C is for the parent, which ends its children in order
    )
    try:
        announced = process.stdout.readline() if process.stdout else b""
        if not announced:
            raise RuntimeError(f"the process of {module}.py did not start; see its error above")
        yield int(announced)
    finally:
        try:
            process.communicate(timeout=PATIENCE)  # closes its standard input
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
