"""An update, and the old value comes back: why, how often, and what ends it.

A page is made from a user's row. The service updates the row, then deletes what is
cached of it: first the row, then the page. Now and then the page shows the old name
all the same, for as long as it is cached; nobody can say when. It is a matter of order:

    1. a page is being made: it has read the old row, and waits for its template
    2. the row is updated; row and page are deleted; the page is not there yet
    3. the page is ready, and is stored: the old name, for a whole ttl

And between the two deletes a reader gets the new row beside the old page.

Here the same reader and the same updater run in many orders, chosen by the explorer:
with a dict and a lock per key, and with an `AsyncSafeCache` that was told on what the
page depends.

    python examples/stale_related.py [SCHEDULES]
"""

import asyncio
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from async_safe_cache import AsyncSafeCache
from async_safe_cache.testing import explore, pause


class Cache(Protocol):
    """What the service needs of a cache."""

    async def load(self, key: str, loader: Callable[[], Awaitable[Any]]) -> Any:
        """Return the value of *key*, loaded if it is absent."""

    async def changed(self) -> None:
        """Let go of everything that was made from the row."""


class DictAndLock:
    """A dict, a lock per key, and one delete for each thing that is known to depend on it."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def load(self, key: str, loader: Callable[[], Awaitable[Any]]) -> Any:
        """Load once for all who ask: the lock sees to that, and to nothing else."""
        async with self.locks[key]:
            if key not in self.data:
                self.data[key] = await loader()
            return self.data[key]

    async def changed(self) -> None:
        """Delete the row, then the page."""
        self.data.pop("row", None)
        await pause()  # the log line, the metric, the other server
        self.data.pop("page", None)


class Dependent:
    """The library: the page depends on the row, and a change of the row is one call."""

    def __init__(self) -> None:
        self.cache = AsyncSafeCache()

    async def load(self, key: str, loader: Callable[[], Awaitable[Any]]) -> Any:
        """Load once for all who ask, with what the value depends on."""
        source = "row" if key == "page" else ()
        return await self.cache.get_or_load(key, loader, depends_on=source)

    async def changed(self) -> None:
        """Delete the row; everything behind it goes in the same step."""
        await self.cache.delete("row")


@dataclass
class Tally:
    """What came of all runs."""

    runs: int = 0
    old_page: int = 0
    mixed: int = 0


async def one_run(new_cache: Callable[[], Cache], tally: Tally) -> None:
    """Let a reader and the updater run beside each other, then look at what is left."""
    cache, database = new_cache(), {"name": "old"}

    async def load_row() -> str:
        name = database["name"]
        await pause()
        return name

    async def load_page() -> str:
        name = await cache.load("row", load_row)
        await pause()  # the template
        return f"page of {name}"

    async def reader() -> bool:
        """Look at the row, then at the page; tell whether they contradict each other."""
        await pause()
        row = await cache.load("row", load_row)
        page = await cache.load("page", load_page)
        return row == "new" and page == "page of old"

    async def updater() -> None:
        await pause()
        database["name"] = "new"
        await cache.changed()

    found = await asyncio.gather(reader(), updater(), reader())
    tally.runs += 1
    tally.mixed += any(found)
    tally.old_page += await cache.load("page", load_page) == "page of old"


def told(new_cache: Callable[[], Cache], schedules: int) -> Tally:
    """Run it in so many orders."""
    tally = Tally()

    async def scenario() -> None:
        await one_run(new_cache, tally)

    # Only orders that asyncio can make: answers come at different times, nothing else varies.
    explore(scenario, schedules=schedules, policy="fifo")
    return tally


def main(schedules: int = 10_000) -> int:
    """Tell the story twice; 0 if it ended as it should."""
    print("a row is updated, a page is made from it; then: is the page of the old row?\n")
    print(f"{'':34}{'schedules':>10}{'the old page stays':>21}{'new row, old page':>20}")
    tallies: list[Tally] = []
    tellings: tuple[tuple[str, Callable[[], Cache]], ...] = (
        ("dict and lock, two deletes", DictAndLock),
        ("AsyncSafeCache, depends_on=", Dependent),
    )
    for name, new_cache in tellings:
        tally = partial(told, new_cache, schedules)()
        print(f"{name:34}{tally.runs:>10,}{tally.old_page:>21,}{tally.mixed:>20,}")
        tallies.append(tally)
    without, with_library = tallies
    holds = without.old_page > 0 and not (with_library.old_page or with_library.mixed)
    print("\nholds: never an old page" if holds else "\nFAILED")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
