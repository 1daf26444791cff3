"""Helpers for tests of code that caches: a loader that obeys, counted loads, a switch.

    ScriptedLoader     stands for what is slow: answers by a script, stops when told, counts
    assert_one_load    exactly one load happened in this block
    caching_disabled   every call in this block is a real load

They know nothing of pytest, and need no virtual time, though they like it.
"""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, cast, final

from async_safe_cache._cache import AsyncSafeCache
from async_safe_cache._engine import bypass
from async_safe_cache._function import ATTRIBUTE, CachedFunction, function_of
from async_safe_cache._loader import LoadContext
from async_safe_cache.options import check_seconds

from ._loop import pause

__all__ = ["ScriptedLoader", "after", "assert_loads", "assert_one_load", "caching_disabled"]

_PATIENCE: Final = 5.0  # real seconds that a thread waits for another one


@final
class _Answer(NamedTuple):
    """One line of a script: what a run gives or raises, and after how many seconds."""

    result: object
    seconds: float


def after(seconds: float, result: object) -> Any:
    """Return a line for the script of a `ScriptedLoader`: *result*, after so many *seconds*.

    Raises:
        TypeError, ValueError: *seconds* is no finite number from 0.
    """
    return _Answer(result, check_seconds("seconds", seconds, zero=True))


@final
class ScriptedLoader:
    """A loader that answers by a script, can be held at a gate, and counts what happens to it.

    Call it with anything: `get_or_load(key, loader)`, `await loader(symbol)` in a
    function of yours, `get_or_load(key, loader.with_context)` to be given the
    `LoadContext`, `loader.sync(...)` for a plain `def`.

    Args:
        script: What the runs give, one after the other; the last one repeats. An
            exception (or its class) is raised. `after(seconds, result)` answers
            late. Nothing: each run gives "value".
        seconds: What every line without `after` takes, in the loop's time (in
            `sync` in real time); 0 still lets others run, as `pause` does.

    Attributes:
        calls: Runs that began: the sum of the next four.
        running: Runs that have not ended.
        returned: Runs that gave a value.
        raised: Runs that raised what the script says.
        cancelled: Runs that were cancelled, or whose loop died.
        most_at_once: The largest `running` there was.
        arguments: What each run was called with: (args, kwargs).

    Safe to be called from several threads and loops.
    """

    def __init__(self, *script: object, seconds: float = 0.0) -> None:
        every = check_seconds("seconds", seconds, zero=True)
        lines = script or ("value",)
        self._script = [
            line if isinstance(line, _Answer) else _Answer(line, every) for line in lines
        ]
        self.calls = 0
        self.running = 0
        self.returned = 0
        self.raised = 0
        self.cancelled = 0
        self.most_at_once = 0
        self.arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []  # bounded by the calls
        # Re-entrant: the collector may close a run whose loop died while this thread is inside.
        self._lock = threading.RLock()
        self._holding = False
        self._gate: list[Future[None]] = []  # one per run that is held
        self._watchers: list[tuple[int, Future[None]]] = []  # one per caller of `held`

    def __repr__(self) -> str:
        return f"<ScriptedLoader: {self.calls} calls, {self.running} running>"

    # -- being called

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the next line of the script."""
        answer, gate = self._begin(args, kwargs)
        try:
            if gate is not None:
                await asyncio.wrap_future(gate)
            if answer.seconds:
                await asyncio.sleep(answer.seconds)
            else:
                await pause()
        except BaseException:
            self._leave(gate)
            raise
        return self._give(answer.result)

    async def with_context(self, context: LoadContext) -> Any:
        """Run the next line of the script, as a loader that asks for its `LoadContext`."""
        return await self(context)

    def sync(self, *args: Any, **kwargs: Any) -> Any:
        """Run the next line of the script in this thread, as a plain `def`."""
        answer, gate = self._begin(args, kwargs)
        try:
            if gate is not None:
                gate.result()
            time.sleep(answer.seconds)
        except BaseException:
            self._leave(gate)
            raise
        return self._give(answer.result)

    # -- the gate

    def hold(self) -> None:
        """Stop every run that begins from now on, before it answers, until it is let go."""
        with self._lock:
            self._holding = True

    def let_go(self, runs: int | None = None) -> int:
        """Let held runs answer; return how many were let go.

        Args:
            runs: So many, the longest held first, and go on holding; None: all, and hold no more.
        """
        with self._lock:
            if runs is None:
                self._holding = False
            count = len(self._gate) if runs is None else runs
            free, self._gate = self._gate[:count], self._gate[count:]
        return sum(map(_open, free))

    async def held(self, runs: int = 1) -> None:
        """Wait until at least so many *runs* are held."""
        await asyncio.wrap_future(self._watch(runs))

    def held_here(self, runs: int = 1, timeout: float = _PATIENCE) -> None:
        """Block this thread until at least so many *runs* are held.

        Raises:
            TimeoutError: They were not, after *timeout* real seconds.
        """
        try:
            self._watch(runs).result(timeout)
        except TimeoutError:
            raise TimeoutError(
                f"after {timeout} s {len(self._gate)} runs are held, not {runs}: "
                "call hold() before the load begins"
            ) from None

    # -- inside

    def _begin(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_Answer, "Future[None] | None"]:
        with self._lock:
            answer = self._script[min(self.calls, len(self._script) - 1)]
            self.calls += 1
            self.running += 1
            self.most_at_once = max(self.most_at_once, self.running)
            self.arguments.append((args, kwargs))
            if not self._holding:
                return answer, None
            gate: Future[None] = Future()
            self._gate.append(gate)
            enough = [watcher for runs, watcher in self._watchers if runs <= len(self._gate)]
            self._watchers = [each for each in self._watchers if each[1] not in enough]
        for watcher in enough:
            _open(watcher)
        return answer, gate

    def _watch(self, runs: int) -> "Future[None]":
        watcher: Future[None] = Future()
        with self._lock:
            if len(self._gate) < runs:
                self._watchers.append((runs, watcher))
                return watcher
        _open(watcher)
        return watcher

    def _give(self, result: object) -> Any:
        error = _error(result)
        if error is None:
            self._count("returned")
            return result
        self._count("raised")
        # The same object may be raised again and again: nothing of an older raise may grow.
        raise error.with_traceback(None)

    def _leave(self, gate: "Future[None] | None") -> None:
        """Take a run that was cancelled away from its gate."""
        with self._lock:
            if gate in self._gate:
                self._gate.remove(gate)
            self._count("cancelled")

    def _count(self, end: str) -> None:
        with self._lock:
            self.running -= 1
            setattr(self, end, getattr(self, end) + 1)


def _error(result: Any) -> BaseException | None:
    """Return what is to be raised, if a script says so by an exception or its class."""
    if inspect.isclass(result) and issubclass(result, BaseException):
        return result()
    return result if isinstance(result, BaseException) else None


def _open(gate: "Future[None]") -> bool:
    """Let whoever waits at *gate* go on; False if it has left."""
    if not gate.set_running_or_notify_cancel():
        return False
    gate.set_result(None)
    return True


# -- counted loads


@final
class _Count(NamedTuple):
    """What has been counted of one loader, function or cache until now."""

    loads: int
    story: dict[str, int]


def _of_loader(loader: ScriptedLoader) -> _Count:
    return _Count(loader.calls, {"runs": loader.calls, "cancelled": loader.cancelled})


def _of_function(function: CachedFunction, parameters: Callable[[], dict[str, Any]]) -> _Count:
    # A load is counted when it ends; one that has not ended yet was begun all the same.
    counts = function.counters
    return _Count(
        counts.loads + parameters()["tasks"],
        {"hits": counts.hits, "joined": counts.coalesced, "misses": counts.misses},
    )


def _of_cache(cache: AsyncSafeCache) -> _Count:
    engine = cache._engine
    with engine.store.lock:
        stats = engine.stats()
        return _Count(
            stats.loads + len(engine.flights.running),
            {
                "hits": stats.hits,
                "joined": stats.coalesced,
                "misses": stats.misses,
                **stats.misses_by_reason,
            },
        )


def _counter(of: object) -> tuple[str, Callable[[], _Count]]:
    """Return the name of *of*, and what counts its loads."""
    if isinstance(of, ScriptedLoader):
        return "the loader", partial(_of_loader, of)
    if isinstance(of, AsyncSafeCache):
        return f"the cache {of.name!r}", partial(_of_cache, of)
    if hasattr(of, ATTRIBUTE):
        function, _ = function_of(of)
        return function.name, partial(_of_function, function, cast("Any", of).cache_parameters)
    raise TypeError(
        "loads are counted of a ScriptedLoader, a function decorated with race_safe_cached, "
        f"or an AsyncSafeCache, not of {getattr(of, '__qualname__', type(of).__name__)}"
    )


@contextmanager
def assert_loads(loads: int, of: object) -> Generator[None]:
    """Fail unless exactly so many *loads* of *of* begin in the block.

    One that all its callers left, and that was cancelled therefore, counts for
    a `ScriptedLoader` only.

    Args:
        loads: From 0.
        of: A `ScriptedLoader`, a decorated function (of a method: all instances
            together), or an `AsyncSafeCache`.

    Raises:
        AssertionError: There were more, or fewer; it says what the calls met with.
        TypeError: *of* is something else; *loads* is no int.
        ValueError: *loads* is negative.

    An exception of the block goes through, and nothing is counted.
    """
    __tracebackhide__ = True
    if isinstance(loads, bool) or not isinstance(loads, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"loads must be an int, not {type(loads).__name__}")
    if loads < 0:
        raise ValueError(f"loads={loads} must not be negative")
    name, count = _counter(of)
    before = count()
    yield
    now = count()
    seen = now.loads - before.loads
    if seen == loads:
        return
    grown = {what: n - before.story[what] for what, n in now.story.items()}
    story = ", ".join(f"{what} {n}" for what, n in grown.items() if n) or "no call at all"
    advice = (
        "calls share a load when they are equal and the load still runs, or its value is "
        "stored and fresh"
        if seen > loads
        else "a value that was stored before the block, or a load that ran already, needs no load"
    )
    raise AssertionError(
        f"{seen} {_loads(seen)} of {name} in the block, {loads} expected ({story}): {advice}"
    )


def assert_one_load(of: object) -> AbstractContextManager[None]:
    """Fail unless exactly one load of *of* begins in the block; see `assert_loads`.

    `with assert_one_load(get_price): ...`
    """
    return assert_loads(1, of)


def _loads(number: int) -> str:
    return "load" if number == 1 else "loads"


# -- the switch


@contextmanager
def caching_disabled(cache: AsyncSafeCache | None = None) -> Generator[None]:
    """Switch caching off for the block: every call in it is a load of its own.

    Nothing is stored, nothing is served, nothing is joined: coalescing is off
    too (a cache with max_entries=0 stores nothing and still coalesces). Every
    miss has the reason BYPASSED. Loads run as they always do, in tasks of the
    cache's own, so cancellation, errors and recursion are what they were.

    The cache is cleared when the block begins, and loads that run then are
    fenced; it is empty when the block ends. Blocks may be nested and may overlap.

    Args:
        cache: The one it is about; None: every cache of the process, also those
            that are made in the block.

    Raises:
        TypeError: *cache* is no AsyncSafeCache.

    Complexity: O(loads + namespaces + what is freed), once, when the block begins.
    """
    if cache is not None and not isinstance(cache, AsyncSafeCache):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"cache must be an AsyncSafeCache or None, not {type(cache).__name__}")
    with bypass(None if cache is None else cache._engine):
        yield
