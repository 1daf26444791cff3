"""The whole story: one origin, two services, the same users; the origin has a bad day.

All are processes of their own and speak HTTP over sockets. Both services get
the same requests at the same moments, and ask the same origin. Values age
faster than on a real day, so that the story fits in half a minute; nobody's
patience is shorter.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

from .measure import Sample, draw, fetch, percentile, steadily
from .process import child

SIDES = ("without", "with")
DAY = (  # what the phase is called, and the mood of the origin
    ("normal", "normal"),
    ("slow", "slow"),
    ("failing", "failing"),
    ("hanging", "hanging"),
    ("back", "normal"),
)
SECONDS = 30.0
RATE = 50.0  # requests a second, to each service
FASTER = 15.0
READY = 20.0  # seconds until a service must be ready


@dataclass(frozen=True, slots=True)
class Row:
    """What the users of one side saw in one phase."""

    phase: str
    side: str
    samples: Sequence[Sample]
    loads: int

    @property
    def errors(self) -> int:
        """Requests without a value."""
        return sum(sample.age is None for sample in self.samples)

    def __str__(self) -> str:
        p50, p95, p99 = (f"{percentile(self.samples, p) * 1e3:,.0f} ms" for p in (50, 95, 99))
        oldest = max((sample.age or 0 for sample in self.samples), default=0)
        return (
            f"{self.phase:9}{self.side:8}{len(self.samples):9}"
            f"{self.errors / max(1, len(self.samples)):8.1%}{p50:>10}{p95:>10}{p99:>10}"
            f"{oldest:9.1f} s{self.loads:8}"
        )


HEADER = (
    f"{'origin':9}{'library':8}{'requests':>9}{'errors':>8}{'p50':>10}{'p95':>10}{'p99':>10}"
    f"{'oldest':>11}{'loads':>8}"
)


def progress(text: str) -> None:
    """Tell people who wait what happens now."""
    line = f"\r\x1b[K{text}" if sys.stderr.isatty() else f"{text}\n" if text else ""
    print(line, end="", file=sys.stderr, flush=True)


async def ready(port: int) -> None:
    """Wait until the service at *port* says that it is ready."""
    async with asyncio.timeout(READY):
        while True:
            try:
                status, _ = await fetch(port, "/ready")
            except OSError:
                status = 0  # it does not listen yet
            if status == 200:
                return
            await asyncio.sleep(0.05)


async def tell(origin: int, ports: Sequence[int], seconds: float, rate: float) -> list[Row]:
    """Live through the day; return what was seen."""
    await asyncio.gather(*map(ready, ports))
    each = max(1, round(seconds * rate / len(DAY)))
    paths = iter(draw(each * len(DAY)))
    seen: list[tuple[str, str, list[asyncio.Task[Sample]], int]] = []
    _, before = await fetch(origin, "/counts")
    async with asyncio.TaskGroup() as users:
        for number, (phase, mood) in enumerate(DAY, start=1):
            progress(f"[{number}/{len(DAY)}] the origin is {phase} ...")
            await fetch(origin, f"/mood/{mood}", "POST")
            asked = await steadily(ports, list(islice(paths, each)), rate, users)
            _, after = await fetch(origin, "/counts")
            for side, tasks in zip(SIDES, asked, strict=True):
                seen.append((phase, side, tasks, after.get(side, 0) - before.get(side, 0)))
            before = after
    return [
        Row(phase, side, [task.result() for task in tasks], loads)
        for phase, side, tasks, loads in seen
    ]


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table, a pair of lines for each phase."""
    yield HEADER
    for row in rows:
        yield str(row)
        if row.side == SIDES[-1]:
            yield ""


def conclude(rows: Sequence[Row]) -> int:
    """Print the table; return 1 if a user of the library saw an error."""
    print(*lines(rows), sep="\n")
    failed = sum(row.errors for row in rows if row.side == "with")
    print(f"{failed} errors for the users of the library, whatever the origin did")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell the story; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.market_data", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole day")
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    options = parser.parse_args(arguments)
    progress("[0] starting three processes ...")
    try:
        with ExitStack() as processes:
            origin = processes.enter_context(child("origin"))
            url, faster = f"http://127.0.0.1:{origin}", f"--faster={FASTER}"
            ports = [
                processes.enter_context(child("serve", url, faster, *plain))
                for plain in (["--plain"], [])
            ]
            rows = asyncio.run(tell(origin, ports, options.seconds, options.rate))
            progress(f"[{len(DAY)}/{len(DAY)}] ending three processes ...")
    except KeyboardInterrupt:
        return 130
    finally:
        progress("")
    return conclude(rows)
