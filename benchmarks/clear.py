"""How long does the event loop stand still while a million entries go at once?

python -m benchmarks.clear [--rounds N] [--json PATH] [--check]
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from .peers import OURS, PEERS, Ours, installed
from .runner import Case, Question, Run, Ticker, forget_collections, main, spread

QUESTION: Final = Question(
    name="clear",
    question="How long does the event loop stand still while a million entries go at once?",
    workload="1,000,000 entries of one decorated function, int keys; then, in a running loop, "
    "clear(), fn.cache_clear(), fn.cache_close(), invalidate(fn, key) of one key, aclose(); the "
    "cache is filled anew for each. The stall is the longest turn of the loop from the call "
    "until 200 turns and 0.2 s after it, seen by a callback that runs in every turn: in CPU time "
    "of the process, and beside it in wall time",
    rivals="cachebox (LRUCache.clear())",
    floor="dict: dict.clear() of a dict of lists of one value, which is one step",
    not_measured="the collector of cycles: it ran before, and is on (gc); what the objects that "
    "are dropped do in their own __del__",
    rounds=1,
)

ENTRIES: Final = 1_000_000


async def full(entries: int, **options: Any) -> tuple[Any, Any]:
    """Return a cache of ours, full of *entries* of one function, and the function."""
    from async_safe_cache import race_safe_cached

    cache = cast("Ours", PEERS[OURS]).cache(max_memory_bytes=None, **options)

    @race_safe_cached(cache, ttl=3600)
    async def square(key: int) -> int:
        return key * key

    with forget_collections():
        for key in range(entries):
            await cache.set(cache.key_for(square, key), key)
    assert square.cache_info().currsize == entries
    return cache, square


async def _clear(cache: Any, fn: Any) -> None:
    await cache.clear()


async def _cache_clear(cache: Any, fn: Any) -> None:
    fn.cache_clear()


async def _cache_close(cache: Any, fn: Any) -> None:
    await fn.cache_close()


async def _invalidate(cache: Any, fn: Any) -> None:
    assert await cache.invalidate(fn, 1)


async def _aclose(cache: Any, fn: Any) -> None:
    await cache.aclose()


WAYS: Final[dict[str, Callable[[Any, Any], Awaitable[None]]]] = {
    "clear()": _clear,
    "fn.cache_clear()": _cache_clear,
    "fn.cache_close()": _cache_close,
    "invalidate(fn, key)": _invalidate,
    "aclose()": _aclose,
}


async def _stall(end: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Return the longest turn, in ms of CPU and of wall time."""
    async with Ticker() as ticker:
        await end()
        for _ in range(200):
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)
    return ticker.cpu, ticker.wall


async def _ours(way: str, entries: int) -> tuple[float, float]:
    cache, fn = await full(entries)
    stall = await _stall(lambda: WAYS[way](cache, fn))
    if way != "invalidate(fn, key)":
        assert len(cache) == 0
    return stall


async def _dict(entries: int) -> tuple[float, float]:
    with forget_collections():
        known = {key: [key] for key in range(entries)}

    async def end() -> None:
        known.clear()

    return await _stall(end)


async def _cachebox(entries: int) -> tuple[float, float]:
    import cachebox

    with forget_collections():
        known: Any = cachebox.LRUCache(entries)
        for key in range(entries):
            known[key] = [key]

    async def end() -> None:
        known.clear()

    return await _stall(end)


def measure(run: Run) -> list[Case]:
    """Return the stalls of each way to let entries go."""
    entries = run.size(ENTRIES, 100)
    programs: dict[str, Callable[[], Any]] = {
        way: lambda way=way: _ours(way, entries) for way in WAYS
    }
    if installed(["cachebox"]):
        programs["cachebox: clear()"] = lambda: _cachebox(entries)
    programs["dict: clear()"] = lambda: _dict(entries)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for number in range(run.rounds):
        for name, program in programs.items():
            run.say(f"{name}: {entries:,} entries, round {number + 1}")
            with asyncio.Runner(debug=False) as runner:
                seen[name].append(runner.run(program()))
    cases = []
    for part, kind in enumerate(("CPU", "wall")):
        figures = {name: spread([each[part] for each in all_]) for name, all_ in seen.items()}
        name = f"longest stall, {kind}"
        cases.append(Case(name, f"ms {kind} in one turn of the loop", run.rounds, figures))
    for way in WAYS:
        cases[0].fact(f"ms, {way}", cases[0].figures[way].median, "<=", 20, aim=5)
    return cases


if __name__ == "__main__":
    sys.exit(main(QUESTION, measure))
