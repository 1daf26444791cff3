"""Traces to judge eviction by: seeded synthetic ones, and a loader for real ones.

A trace is a list of requests, each the number of a key. The same seed gives the same
trace on every Python version. Real traces are read where they lie:

    *.trace.xz      int32 keys (cache2k; the byte order does not matter to a hit ratio)
    *.lis.zst       lines "start count 0 number": blocks start .. start + count - 1 (ARC)
"""

import heapq
import lzma
import shutil
import subprocess
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate, count
from pathlib import Path
from random import Random
from typing import NamedTuple

LONGEST = 1_500_000
"""Requests taken of a real trace."""


class Trace(NamedTuple):
    """Requests, and the weight of a key where keys differ in weight."""

    name: str
    requests: list[int]
    weight: Callable[[int], int] | None = None


def synthetic(length: int = 60_000) -> Iterator[Trace]:
    """Yield traces of *length* requests, each of one pattern that policies differ in."""
    keys = length // 10
    for exponent in (0.8, 1.0, 1.2):
        draw = _zipf(keys, exponent, Random(1))
        yield Trace(f"zipf {exponent}", [draw() for _ in range(length)])
    for turn in (10, 3):
        # Every `length / turn` requests the popular keys make way for keys of the middle ...
        draw, shift = _zipf(keys, 1.0, Random(2)), keys // turn
        moved = [draw() + number * turn // length * shift for number in range(length)]
        yield Trace(f"zipf shifting {turn} times", moved)
    draw = _zipf(keys, 1.0, Random(3))  # ... here, a little with every request
    yield Trace("zipf drifting", [draw() + number // 20 for number in range(length)])
    yield Trace("scans and zipf", _scans(length, _zipf(keys, 1.0, Random(4))))
    yield Trace("loop", [number % (keys // 4) for number in range(length)])
    yield Trace("read twice", _echoes(length, Random(5), keys // 4))
    draw, fresh, chance = _zipf(keys, 0.9, Random(6)), count(keys), Random(7)
    wonders = [next(fresh) if chance.random() < 0.6 else draw() for _ in range(length)]
    yield Trace("one-hit wonders", wonders)
    yield Trace("read twice and zipf", _mixed(length, keys))
    draw = _zipf(keys, 1.0, Random(9))
    yield Trace("zipf, weighted", [draw() for _ in range(length)], weight_of)


def weight_of(key: int) -> int:
    """Return 100 to 100,000 bytes, many small ones and few large, the same for the same key."""
    return int(100 * 1000 ** (Random(key).random() ** 3))


def real(folder: Path) -> Iterator[Trace]:
    """Yield the traces of *folder*, by name."""
    for path in sorted(folder.iterdir()):
        name = path.name.split(".")[0]
        if path.name.endswith(".trace.xz"):
            requests = array("i")
            requests.frombytes(lzma.decompress(path.read_bytes()))
            yield Trace(name, requests[:LONGEST].tolist())
        elif path.name.endswith(".lis.zst"):
            yield Trace(name, _blocks(_unpacked(path))[:LONGEST])


def _blocks(text: str) -> list[int]:
    blocks: list[int] = []
    for line in text.splitlines():
        start, number, *_ = map(int, line.split())
        blocks.extend(range(start, start + number))
    return blocks


def _unpacked(path: Path) -> str:
    program = shutil.which("zstd")
    if program is None:
        raise SystemExit(f"{path.name} needs the program zstd; install it or leave the file out")
    return subprocess.run([program, "-dc", path], capture_output=True, text=True, check=True).stdout


def _zipf(keys: int, exponent: float, random: Random) -> Callable[[], int]:
    """Return what draws a key: the one of rank r is `1 / r**exponent` as popular as the first."""
    shares = list(accumulate(1 / rank**exponent for rank in range(1, keys + 1)))
    return lambda: bisect_left(shares, random.random() * shares[-1])


def _scans(length: int, draw: Callable[[], int]) -> list[int]:
    """Two thirds as drawn; then a third of keys in a row that nobody reads again."""
    requests: list[int] = []
    part = length // 50
    for fresh in range(1_000_000, 2_000_000, part):
        requests += (draw() for _ in range(2 * part))
        requests += range(fresh, fresh + part)
        if len(requests) >= length:
            break
    return requests[:length]


def _echoes(length: int, random: Random, longest: int) -> list[int]:
    """Every key is read twice, up to *longest* requests apart, and never again."""
    requests: list[int] = []
    due: list[tuple[int, int]] = []
    for key in count():
        while due and due[0][0] <= len(requests):
            requests.append(heapq.heappop(due)[1])
        if len(requests) >= length:
            return requests[:length]
        requests.append(key)
        heapq.heappush(due, (len(requests) + random.randrange(20, longest), key))
    raise AssertionError("count() does not end")


def _mixed(length: int, keys: int) -> list[int]:
    """Half a zipf, half keys that are read twice and never again."""
    draw, echoes, chance = (
        _zipf(keys, 1.0, Random(8)),
        _echoes(length, Random(5), keys // 4),
        Random(7),
    )
    echo = iter(echoes)
    return [keys + next(echo) if chance.random() < 0.5 else draw() for _ in range(length)]
