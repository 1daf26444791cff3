"""Warming: values are loaded before they are asked for, and every one is accounted for.

    register        calls of decorated functions, or keys with a loader
    warm            all of them that are not fresh, once
    warm_popular    what was read most and is not fresh
    replay_hot_set  what was read most before the process was started again
    background      what is due, popular or predicted, until stopped

All loads share one budget. None overwrites what is newer, none takes the place of what is
read more, and their ttls are staggered, so that what was loaded together does not expire
together.
"""

import functools
import heapq
import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime, time, timedelta
from itertools import chain, count
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, Unpack
from weakref import ref

import anyio
import anyio.lowlevel
import anyio.to_thread

from ._cache import AsyncSafeCache
from ._engine import State
from ._function import CachedFunction
from ._keys import Key
from ._marks import Place
from ._pace import Pace
from ._popularity import PopularCall
from ._prediction import Predictor
from ._refresher import Refresher, Scheduled
from ._schedule import At, Every
from ._target import Target
from ._warmth import Warmth
from .errors import CacheClosedError, UnsupportedKeyError
from .options import (
    DECORATED,
    UNSET,
    LoadOptions,
    Tags,
    Ttl,
    Unset,
    check_bound,
    check_callable,
    check_fraction,
    check_known,
    check_seconds,
)
from .outcomes import WarmingReport

if TYPE_CHECKING:
    from ._hot_set import HotCall

__all__ = ["CacheWarmingStrategy"]

_log = logging.getLogger("async_safe_cache")

Progress = Callable[[int, int], object]
"""Called with how many calls are done, and of how many."""

SLICE: Final = 50
"""Calls that are looked at between two turns of the loop."""

QUICK: Final = 0.001
"""Seconds that a load of unknown, or no, length counts as."""


class CacheWarmingStrategy:
    """Keeps calls of one cache warm. May be subclassed.

    Making one lets the cache count which calls are read most, from then on; see
    docs/warming.md for what that costs.

    Args:
        cache: The cache.
        concurrency: Loads at once, at most; errors and slow loads lower it for a while.
        rate: Load starts per second, at most; None: no limit.
        popular: Calls whose reads are counted, at most; 0 counts none.
        stagger: Fraction by which chance shortens the ttl of what is loaded here.
        load_timeout: Seconds after which a load counts as failed here.
        wall_clock: Returns the local time, for `at=`.

    Raises:
        TypeError: An option is of a type that it cannot have.
        ValueError: An option is outside its range.
    """

    def __init__(
        self,
        cache: AsyncSafeCache,
        *,
        concurrency: int = 8,
        rate: float | None = None,
        popular: int = 10_000,
        stagger: float = 0.1,
        load_timeout: float | timedelta = 60.0,
        wall_clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        if not isinstance(cache, AsyncSafeCache):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"cache must be an AsyncSafeCache, not {type(cache).__name__}")
        check_callable("wall_clock", wall_clock, "a callable that returns the local datetime")
        limit = check_bound("popular", popular)
        if limit is None:
            raise TypeError("popular must be an int from 0: how many calls are counted")
        self.cache = cache
        self._stagger = check_fraction("stagger", stagger, "how much of a ttl chance may cut off")
        self._timeout = check_seconds("load_timeout", load_timeout)
        self._wall = wall_clock
        self._pace = Pace(concurrency=concurrency, rate=rate, clock=cache._engine.clock)
        self._targets: dict[Place, Target] = {}  # bounded by what is registered
        self._warmth = Warmth()
        self._refresher: Refresher | None = None
        self._scheduled: dict[Place, Scheduled] = {}  # as above
        self._predictor: Predictor | None = None
        if limit:
            cache._functions.measure_popularity(limit)
        cache._warmths[:] = [each for each in cache._warmths if each() is not None]
        cache._warmths.append(ref(self._warmth))

    def __repr__(self) -> str:
        running = self._refresher is not None and self._refresher.job.running
        state = "refreshing" if running else "idle"
        return (
            f"<{type(self).__name__} of {self.cache.name!r}, {len(self._targets)} calls, {state}>"
        )

    # -- what is to be warm

    def register(
        self,
        target: Callable[..., Any] | Iterable[object],
        calls: Iterable[object] | Callable[..., Any],
        *,
        every: float | timedelta | None = None,
        at: str | time | Sequence[str | time] | None = None,
        jitter: float = 0.0,
        priority: float = 0.0,
        ttl: Ttl | Unset = UNSET,
        tags: Tags | Unset = UNSET,
        **freshness: Unpack[LoadOptions],
    ) -> int:
        """Keep calls warm; return how many. All or none of them are taken.

        One that is registered already is replaced.

            warming.register(get_price, [("AAPL",), ("MSFT",)], every=30, jitter=0.1)
            warming.register(["rates", "rules"], load, every=60, ttl=90)

        Args:
            target: A decorated function, or a bound method of one; or raw keys.
            calls: Of a function: a tuple of arguments each, or a mapping of keyword
                arguments. Of keys: their loader, as for `get_or_load`; its `LoadContext`
                says which key.
            every: Seconds, or a timedelta, after which the background refresh loads each
                again, fresh or not; counted from the end of its last load.
            at: Times of day, "09:30" or a datetime.time, one or several, at which it does.
            jitter: Fraction by which chance shortens *every*, and the ttl, if that is more
                than the strategy's `stagger`.
            priority: The highest is loaded first.
            ttl: Of keys: seconds that their values stay fresh. A function has its own.
            tags: Of keys: tags of their values.
            freshness: Of keys: as for `get_or_load`.

        Raises:
            TypeError: *target* is neither, a call cannot be bound, or an option is of a
                wrong type.
            ValueError: An option is outside its range, or the function belongs to another
                cache.
            UnsupportedKeyError: An argument, or a key, cannot be part of a key.
        """
        check_known("register", freshness, LoadOptions)
        plan = None if every is None else Every(every, jitter)
        times = None if at is None else At(at)
        check_fraction("jitter", jitter, "how much of every, and of a ttl, chance may cut off")
        if isinstance(priority, bool) or not isinstance(priority, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"priority must be a number, not {type(priority).__name__}")
        if math.isnan(priority):
            raise ValueError("priority=nan must be a number: the highest is loaded first")
        own = {"ttl": ttl, "tags": tags, **freshness}
        found = self._resolve(target, calls, own, max(jitter, self._stagger))
        targets = {each.place: each for each in found}
        scheduled: list[Scheduled] = []
        if plan is not None or times is not None:
            scheduled = [Scheduled(each, plan, times) for each in targets.values()]
            now = self.cache._engine.clock()
            for one in scheduled:
                one.plan(now, self._wall)
        for place, each in targets.items():
            each.priority = float(priority)
            self._take(each)
            self._scheduled.pop(place, None)
        self._scheduled.update((one.target.place, one) for one in scheduled)
        return len(targets)

    def _resolve(
        self, target: Any, calls: Any, own: Mapping[str, Any], jitter: float
    ) -> list[Target]:
        """Return the targets of one registration, each checked."""
        if hasattr(target, DECORATED):
            given = [name for name, value in own.items() if value is not UNSET]
            if given:
                raise TypeError(
                    f"{given[0]} is an option of keys: a decorated function has its own, "
                    "give it to race_safe_cached"
                )
            if callable(calls) or not isinstance(calls, Iterable):
                raise TypeError(
                    "calls of a decorated function must be an iterable of tuples of arguments, "
                    f"not {type(calls).__name__}"
                )
            several: Iterable[object] = calls  # pyright: ignore[reportUnknownVariableType]
            return [self._of_call(target, call, jitter) for call in several]
        if callable(target):
            name = getattr(target, "__qualname__", type(target).__name__)
            raise TypeError(
                f"{name} is not decorated with race_safe_cached: nothing keeps its value"
            )
        if isinstance(target, (str, bytes)) or not isinstance(target, Iterable):
            raise TypeError(
                "target must be a decorated function, or an iterable of keys, "
                f"not {type(target).__name__}"
            )
        options = self.cache._options.but(**own)
        if jitter > options.jitter:
            options = options.but(jitter=jitter)
        keys: Iterable[object] = target  # pyright: ignore[reportUnknownVariableType]
        return [Target.of_key(self.cache, key, calls, options) for key in keys]

    def _of_call(self, fn: Any, call: object, jitter: float) -> Target:
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(call, tuple):
            args = call  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(call, Mapping):
            kwargs = dict(call)  # pyright: ignore[reportUnknownArgumentType]
        else:
            raise TypeError(
                f"each call must be a tuple of arguments, as in [('AAPL',), ('MSFT',)], or a "
                f"mapping of keyword arguments, not {type(call).__name__}"
            )
        name = getattr(fn, "__qualname__", type(fn).__name__)
        try:
            function, values = self.cache._bound(fn, args, kwargs)
        except UnsupportedKeyError:
            raise
        except TypeError as error:
            why = str(error).partition(") ")[2] or "its arguments do not fit"
            raise TypeError(f"a registered call of {name} cannot be bound: {why}") from None
        return Target.of_call(function, values, jitter)

    def _take(self, target: Target) -> None:
        """Let *target* be one of those that are to be warm."""
        known = self._targets.get(target.place)
        if known is None:
            self._warmth.wanted += 1
        else:
            target.warm = known.warm
        self._targets[target.place] = target

    # -- once

    async def warm(
        self,
        *,
        timeout: float | timedelta | None = None,
        progress: Progress | bool | None = None,
    ) -> WarmingReport:
        """Load everything that is registered and not fresh, the highest priority first.

        Args:
            timeout: Seconds that it may take: what is left then is skipped.
            progress: Called with (done, total); True draws a bar, with the extra
                `async-safe-cache[progress]`.

        Raises:
            CacheClosedError: The cache is closed.
            ImportError: A bar is asked for, and rich is not installed.
        """
        targets = sorted(self._targets.values(), key=lambda target: -target.priority)
        return await self._load(targets, timeout, progress)

    async def warm_popular(
        self,
        limit: int = 100,
        *,
        timeout: float | timedelta | None = None,
        progress: Progress | bool | None = None,
    ) -> WarmingReport:
        """Load the calls that were read most and are not fresh, the most valuable first.

        Value is reads x load time. Known are calls of decorated functions since this
        strategy was made; a read counts half after ten minutes.

        Args:
            limit: Calls at most.
            timeout: As for `warm`.
            progress: As for `warm`.

        Raises:
            TypeError: *limit* is no int.
            ValueError: *limit* is negative.
            CacheClosedError: The cache is closed.
        """
        most = check_bound("limit", limit)
        engine = self.cache._engine
        now = engine.clock()

        def absent(call: PopularCall) -> bool:
            return engine.peek(*call.place, now) is None

        found = await self._popular(math.inf if most is None else most, absent)
        found.sort(key=lambda item: -item[1] * max(item[2], QUICK))
        targets = [Target.of_popular(call, self._stagger) for call, _, _ in found]
        return await self._load([each for each in targets if each is not None], timeout, progress)

    async def _popular(
        self, limit: float, wanted: Callable[[PopularCall], bool]
    ) -> list[tuple[PopularCall, float, float]]:
        """Return the most read of the *wanted* calls, with reads and load time. In slices."""
        popularity = self.cache._engine.store.popularity
        now = self.cache._engine.clock()
        best: list[tuple[float, int, PopularCall]] = []
        number = 0
        for part in () if popularity is None else popularity.slices(SLICE):
            for call in part:
                if popularity is None or not wanted(call):
                    continue
                number += 1
                item = popularity.worth(call.place, now), -number, call
                if len(best) < limit:
                    heapq.heappush(best, item)
                elif best:
                    heapq.heappushpop(best, item)
            await anyio.lowlevel.checkpoint()
        best.sort(key=lambda item: item[:2], reverse=True)
        return [(call, reads, call.seconds) for reads, _, call in best]

    async def _load(
        self,
        targets: Sequence[Target],
        timeout: float | timedelta | None,
        progress: Progress | bool | None,
        unknown: int = 0,
    ) -> WarmingReport:
        """Load *targets* in their order, within the budget."""
        cache, engine = self.cache, self.cache._engine
        engine.admit()
        seconds = None if timeout is None else check_seconds("timeout", timeout, zero=True)
        begun = engine.clock()
        run = _Run(targets)
        with _shown(progress, run.total) as tell:
            run.tell = tell
            with anyio.move_on_after(seconds):
                async with anyio.create_task_group() as group:
                    for _ in range(min(self._pace.concurrency, run.total)):
                        group.start_soon(self._work, run)
        for target in run.left.values():
            run.skipped.setdefault(target.key, "time")
        if engine.state is State.CLOSED and not run.done:
            raise CacheClosedError(cache.name)
        return WarmingReport(
            loaded=tuple(run.loaded),
            skipped=run.skipped,
            failed=run.failed,
            seconds=max(0.0, engine.clock() - begun),
            unknown=unknown,
        )

    async def _work(self, run: "_Run") -> None:
        for target in run.queue:
            why: str | None = None
            error: Exception | None = None
            try:
                why = await self._load_one(target)
            except Exception as caught:  # noqa: BLE001 - reported, with its key
                error = caught
            run.conclude(target, why, error)
            if why == "gone":
                self._lost(target)
            if error is None and why in (None, "fresh"):
                self._found_warm(target)
            await anyio.lowlevel.checkpoint()  # what needs no await must not hold up the loop

    async def _load_one(self, target: Target) -> str | None:
        """Load one call; return why it was not loaded, or not stored."""
        cache, clock = self.cache, self.cache._engine.clock
        if target.gone:
            return "gone"
        if target.fresh(cache, clock()) is not None:
            return "fresh"
        if self._crowded(target):
            return "no room"
        async with self._pace.turn() as turn:
            if target.fresh(cache, clock()) is not None:
                turn.skip()
                return "fresh"
            with anyio.fail_after(self._timeout):
                value = await target.load(cache)
        entry = target.fresh(cache, clock())
        if entry is None:
            return "no room" if self._crowded(target) else "not stored"
        return None if entry.value is value else "fresh"

    def _lost(self, target: Target) -> None:
        """Let go of a target that can never be loaded again: nobody is to wait for it."""
        if self._targets.get(target.place) is target:
            del self._targets[target.place]
            self._scheduled.pop(target.place, None)
            self._warmth.wanted -= 1
            self._warmth.warm -= target.warm

    def _crowded(self, target: Target) -> bool:
        store = self.cache._engine.store
        now = self.cache._engine.clock()
        with store.lock:
            return store.crowded(*target.place, now)

    def _found_warm(self, target: Target) -> None:
        known = self._targets.get(target.place)
        if known is not None and not known.warm:
            known.warm = True
            self._warmth.warm += 1

    # -- in the background

    async def start_background_refresh(
        self,
        *,
        interval: float | timedelta = 1.0,
        predictive: bool = False,
        least: float = 0.25,
        fan_out: int = 2,
    ) -> None:
        """Keep warm, from now on and in this loop, what is scheduled and what is popular.

        Starts the cache's sweeper, too; ends with `stop()` or with the cache.

        Args:
            interval: Seconds between two looks at what is due.
            predictive: Load what is likely to be read next, too: see docs/warming.md for
                when that helps. Each hit then costs a call more. Of several strategies of
                a cache the one that was started last predicts.
            least: Probability from which it is likely.
            fan_out: Calls that are loaded ahead after one read, at most.

        Raises:
            ValueError: An option is outside its range.
            CacheClosedError: The cache is closed.
        """
        seconds = check_seconds("interval", interval)
        share = check_fraction("least", least, "the probability from which a call is loaded ahead")
        after = check_bound("fan_out", fan_out)
        if not after:
            raise ValueError(f"fan_out={fan_out} must be an int from 1: calls after one read")
        cache = self.cache
        popularity = cache._engine.store.popularity
        if predictive and popularity is None:
            raise ValueError(
                "predictive=True needs popular above 0: what can be loaded ahead are the calls "
                "whose reads are counted"
            )
        cache._engine.admit()
        while self._refresher is not None:  # somebody else may have started one meanwhile
            await self.stop()
        cache._engine.admit()
        now = cache._engine.clock()
        for each in self._scheduled.values():
            each.plan(now, self._wall)
        taken = {job.name for job in cache._jobs()}
        names = chain(["refresher"], (f"refresher {number}" for number in count(2)))
        refresher = self._refresher = Refresher(
            cache,
            self._pace,
            name=next(name for name in names if name not in taken),
            interval=seconds,
            timeout=self._timeout,
            jitter=self._stagger,
            wall=self._wall,
            warmed=self._found_warm,
            lost=self._lost,
        )
        refresher.scheduled = self._scheduled
        if predictive and popularity is not None:
            predictor = self._predictor = refresher.predictor = Predictor(
                refresher.predict,
                cache._engine.clock,
                cache._engine.store.lock,
                states=max(1, popularity.limit),
                least=share,
                limit=after,
            )
            cache._functions.show_reads(predictor.hit, predictor.read)
        cache._sweeper.followers.append(refresher.job)
        await cache.start()
        refresher.job.start()

    def stats(self) -> dict[str, Any]:
        """Return what it does and did, JSON-ready.

        `registered` calls and how many of them are `warm`; `budget`; and, while the background
        refresh runs, `refresher`, with `prediction` (predictions, useful, precision, recall)
        if it is predictive. Health shows the same under `background`.
        """
        refresher = self._refresher
        return {
            "registered": self._warmth.wanted,
            "warm": self._warmth.warm,
            "budget": self._pace.report(),
            "refresher": None if refresher is None else refresher.report(),
        }

    async def stop(self, timeout: float | timedelta = 5.0) -> None:
        """End the background refresh; loads that somebody else waits for go on.

        Idempotent: a second caller waits for the end, too.

        Args:
            timeout: Seconds that it may take.
        """
        seconds = check_seconds("timeout", timeout, zero=True)
        refresher = self._refresher
        if refresher is None:
            return
        predictor, self._predictor = self._predictor, None
        popularity = self.cache._engine.store.popularity
        # Unless another strategy predicts by now.
        if predictor is not None and popularity and popularity.observer == predictor.read:
            self.cache._functions.show_reads(None, None)
        await refresher.job.stop(seconds)
        # Until here it follows: who closes the cache meanwhile waits for its end, too.
        if self._refresher is refresher:
            self._refresher = None
            self.cache._sweeper.followers.remove(refresher.job)

    # -- over a restart

    async def save_hot_set(self, path: "str | PathLike[str]", *, limit: int = 1_000) -> int:
        """Write the calls that were read most to a file, to be replayed; return how many.

        Functions' names and their arguments, no values: nothing in it becomes stale, and
        nothing in it is secret unless an argument is. It is written whole or not at all, and
        readable by its owner only. Calls of methods, and with arguments that are no plain
        values, are left out.

        Args:
            path: The file.
            limit: Calls at most.

        Raises:
            OSError: The file cannot be written; the old one is as it was.
        """
        from ._hot_set import HotCall, write_hot_set

        most = check_bound("limit", limit)
        calls: list[HotCall] = []
        for call, reads, seconds in await self._popular(
            math.inf if most is None else most, lambda call: call.owner is None
        ):
            function = call.function()
            if function is not None:
                calls.append(HotCall(function.name, call.values, reads, seconds))
        write = functools.partial(write_hot_set, path, self.cache.name, calls)
        written, _ = await anyio.to_thread.run_sync(write)
        return written

    async def replay_hot_set(
        self,
        path: "str | PathLike[str]",
        *,
        timeout: float | timedelta | None = None,
        progress: Progress | bool | None = None,
    ) -> WarmingReport:
        """Load what a hot set names and is not fresh, the most valuable first.

        Its functions must be decorated by now: what is not is counted in `unknown`.

        Args:
            path: The file that `save_hot_set` wrote, of a cache of this name.
            timeout: As for `warm`.
            progress: As for `warm`.

        Raises:
            HotSetError: The file is truncated, altered, of another version or of another
                application; nothing was loaded.
            FileNotFoundError: There is none.
            CacheClosedError: The cache is closed.
        """
        from ._hot_set import read_hot_set

        self.cache._engine.admit()
        read = functools.partial(read_hot_set, path, self.cache.name)
        targets: list[Target] = []
        unknown = 0
        popularity = self.cache._engine.store.popularity
        for call in await anyio.to_thread.run_sync(read):
            if not (len(targets) + unknown + 1) % SLICE:
                await anyio.lowlevel.checkpoint()
            target = self._replayed(call)
            if target is None:
                unknown += 1
                continue
            if popularity is not None:
                with self.cache._engine.store.lock:
                    popularity.read(target.place, call.reads)
                    popularity.took(target.place, call.seconds)
            targets.append(target)
        return await self._load(targets, timeout, progress, unknown)

    def _replayed(self, call: "HotCall") -> Target | None:
        """Return the target of a call from a file; None if it cannot be made here."""
        fn = self.cache._functions.named(call.function)
        function: CachedFunction | None = None if fn is None else getattr(fn, DECORATED)
        if (
            function is None
            or function.is_method
            or function.is_keyed_method
            or len(function.parameters) != len(call.arguments)
        ):
            return None
        try:
            target = Target.of_call(function, call.arguments, self._stagger)
        except Exception:  # noqa: BLE001 - what a key is made of is the user's: it fails alone
            return None
        function.note(*target.place, call.arguments)
        # What is registered stays as it is, with its times.
        known = self._targets.get(target.place)
        if known is None:
            self._take(target)
        return known or target


class _Run:
    """What one warming has done."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.left: dict[Place, Target] = {target.place: target for target in targets}
        self.queue: Iterator[Target] = iter(list(self.left.values()))
        self.total = len(self.left)
        self.loaded: list[Key] = []
        self.skipped: dict[Key, str] = {}
        self.failed: dict[Key, Exception] = {}
        self.done = 0
        self.tell: Progress | None = None

    def conclude(self, target: Target, why: str | None, error: Exception | None) -> None:
        """Note what became of *target*."""
        self.left.pop(target.place, None)
        self.done += 1
        if error is not None:
            self.failed[target.key] = error
        elif why is None:
            self.loaded.append(target.key)
        else:
            self.skipped[target.key] = why
        if self.tell is not None:
            try:
                self.tell(self.done, self.total)
            except Exception as caught:  # noqa: BLE001 - a report, not a part of the work
                self.tell = None
                _log.warning("progress failed with %s: it is told no more", type(caught).__name__)


@contextmanager
def _bar(total: int) -> Generator[Progress]:
    try:
        from rich.progress import Progress as Bar
    except ImportError as error:
        raise ImportError(
            "progress=True draws a bar with rich, which is not installed: "
            "pip install 'async-safe-cache[progress]', or give progress=callable(done, total)"
        ) from error
    with Bar() as bar:
        task = bar.add_task("warming", total=total)
        yield lambda done, _: bar.update(task, completed=done)


def _shown(progress: Progress | bool | None, total: int) -> Any:
    """Return a block that gives whom to tell of the progress."""
    if progress is True:
        return _bar(total)
    if progress is None or progress is False:
        return nullcontext()
    check_callable("progress", progress, "a callable(done, total), or True for a bar")
    return nullcontext(progress)
