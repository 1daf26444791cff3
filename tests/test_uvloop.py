"""The same stories in uvloop's event loop."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ["test_flights.py", "test_load_errors.py", "test_decorator.py", "test_cache.py"]
RUN = """\
import asyncio, sys, pytest, uvloop
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")
def test_flights_failures_and_decorated_functions_in_uvloop() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *(str(HERE / name) for name in FILES)],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3_000:]
    assert " passed" in done.stdout
