"""The background refresher: keeps what is scheduled, predicted or popular warm, within a budget.

    collect   every interval: what is due, walked through in slices; the most valuable of it
              into the queue, at most QUEUE
    work      as many workers as the budget has turns take the most valuable one each

A call is due

    scheduled   at its times, read or not; never twice at once: the next time counts from
                the end of the load
    predicted   when what comes before it was read
    popular     when it was read since it was stored, and its ttl is nearly over. So what
                nobody reads any more is not loaded again

One load per key runs at a time, and a key that fails is left alone for longer each time.
Nothing here is needed for a read to be right.
"""

import asyncio
import heapq
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import count
from typing import Final, final

import anyio

from ._background import Background
from ._backoff import Backoffs
from ._cache import AsyncSafeCache
from ._marks import Place
from ._pace import Pace
from ._popularity import PopularCall
from ._prediction import Predictor
from ._schedule import At, Every
from ._target import Target
from .errors import CacheClosedError

__all__ = ["Refresher", "Scheduled"]

_log = logging.getLogger("async_safe_cache")

QUEUE: Final = 1_000
"""Due calls that wait for a worker; the others are found again by the next collection."""

SLICE: Final = 50
"""Calls that are looked at between two turns of the loop: well below 1 ms."""

PREDICTED: Final = 1_000
"""Predictions that wait; the oldest is dropped."""

FIRST_BACKOFF: Final = 1.0

# What is taken first: what somebody scheduled, what is about to be read, what may be.
_SCHEDULED: Final = 2
_PREDICTED: Final = 1
_POPULAR: Final = 0


@final
class Scheduled:
    """A target, and when it is due.

    Attributes:
        due: Clock's time of the next load, for `every`.
        moment: The same by the wall clock, for `at`.
    """

    __slots__ = ("at", "due", "every", "moment", "target")

    def __init__(self, target: Target, every: Every | None, at: At | None) -> None:
        self.target = target
        self.every = every
        self.at = at
        self.due = math.inf
        self.moment: datetime | None = None

    def plan(self, now: float, wall: Callable[[], datetime]) -> None:
        """Find the next time after this moment."""
        self.due = math.inf if self.every is None else self.every.next(now)
        if self.at is not None:
            self.moment = self.at.next(wall())

    def late(self, now: float, wall: datetime | None) -> float:
        """Return for how many seconds it has been due; negative: it is not yet."""
        late = now - self.due
        if self.moment is not None and wall is not None:
            late = max(late, (_aware(wall) - self.moment).total_seconds())
        return late


def _aware(wall: datetime) -> datetime:
    return wall if wall.tzinfo is not None else wall.astimezone()


_Due = tuple[int, float, int, Scheduled | PopularCall, float]
"""Class, value, a number, what is due, and the deadline of the entry that it is to replace."""

_Item = tuple[int, float, int, Target, Scheduled | None, float]
"""In the queue: class and value, both negative, a number, what, of which schedule, and the
deadline of the entry that it is to replace (0.0: none)."""


@final
class Refresher:
    """The refresher of one strategy.

    Attributes:
        job: The supervised task.
        scheduled: What is due at times. Bounded by who registers it.
        interval: Seconds between two collections.
    """

    def __init__(
        self,
        cache: AsyncSafeCache,
        pace: Pace,
        *,
        name: str,
        interval: float,
        timeout: float,
        jitter: float,
        wall: Callable[[], datetime],
        warmed: Callable[[Target], object],
        lost: Callable[[Target], object],
    ) -> None:
        self.cache = cache
        self.pace = pace
        self.interval = interval
        self.timeout = timeout
        self.jitter = jitter
        self.wall = wall
        self.warmed = warmed
        self.lost = lost
        self.predictor: Predictor | None = None
        self.scheduled: dict[Place, Scheduled] = {}
        self.job = Background(
            name,
            self._run,
            interval,
            cache._engine.clock,
            "reads stay right, but what was kept warm is loaded when it is asked for; "
            "await start_background_refresh() in a running loop",
            self.report,
        )
        self._engine = cache._engine
        self._queue: list[_Item] = []  # a heap; bounded by QUEUE and PREDICTED
        self._numbers = count()
        self._active: set[Place] = set()  # in the queue or at work; bounded by both
        self._predicted: deque[Place] = deque(maxlen=PREDICTED)
        self._backoffs: Backoffs[Place] = Backoffs(FIRST_BACKOFF)
        self._filled = asyncio.Event()
        self._wanted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._working = 0
        self._refreshed = 0
        self._failed = 0
        self._refused = 0
        self._due = 0
        self._lag = 0.0

    def report(self) -> dict[str, object]:
        """Return what it does, JSON-ready."""
        return {
            "refreshed": self._refreshed,
            "failed": self._failed,
            "not_stored": self._refused,
            "backing_off": len(self._backoffs),
            "due": self._due,
            "queued": len(self._queue),
            "working": self._working,
            "lag_seconds": round(self._lag, 6),
            "budget": self.pace.report(),
            "prediction": None if self.predictor is None else self.predictor.report(),
        }

    def predict(self, place: Place) -> None:
        """Ask for a call that is likely to be read next; from any thread."""
        first = not self._predicted
        self._predicted.append(place)
        loop = self._loop
        if first and loop is not None:
            try:
                loop.call_soon_threadsafe(self._wanted.set)
            except RuntimeError:
                pass  # that loop is closed

    # -- the job

    async def _run(self) -> None:
        """Collect and work until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._filled, self._wanted = asyncio.Event(), asyncio.Event()
        self._queue, self._active, self._working = [], set(), 0
        clock = self._engine.clock
        async with anyio.create_task_group() as group:
            for _ in range(min(self.pace.concurrency, QUEUE)):
                group.start_soon(self._work)
            collect_at = -math.inf
            while True:
                now = clock()
                if now >= collect_at or now < collect_at - self.interval:
                    await self._collect(now)
                    self.job.succeeded()
                    collect_at = now + self.interval
                self._take_predicted()
                with anyio.move_on_after(max(0.001, collect_at - clock())):
                    await self._wanted.wait()
                self._wanted.clear()

    async def _collect(self, now: float) -> None:
        """Put what is due into the queue."""
        scheduled = list(self.scheduled.values())
        wall = self.wall() if any(each.at for each in scheduled) else None
        room = max(0, QUEUE - len(self._queue))
        best: list[_Due] = []  # a heap; the least valuable one is the first
        due, lag, number = 0, 0.0, 0
        popularity = self._engine.store.popularity
        if popularity is not None:
            popularity.now = max(popularity.now, now)  # hits alone do not tell it
        for part in self._slices(scheduled):
            for each in part:
                if isinstance(each, Scheduled):
                    if each.target.gone:
                        self.lost(each.target)
                        continue
                    late, value = each.late(now, wall), each.target.priority
                    place, kind, deadline = each.target.place, _SCHEDULED, 0.0
                else:
                    late, value, deadline = self._look_at(each, now)
                    place, kind = each.place, _POPULAR
                if late < 0 or not self._backoffs.ready(place, now):
                    continue
                due += 1
                lag = max(lag, late)
                if place in self._active:
                    continue
                number += 1
                item = (kind, value, -number, each, deadline)
                if len(best) < room:
                    heapq.heappush(best, item)
                elif room:
                    heapq.heappushpop(best, item)
            await asyncio.sleep(0)
        self._due, self._lag = due, lag
        for number, (kind, value, _, each, deadline) in enumerate(best):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            if isinstance(each, Scheduled):
                self._put((-kind, -value, next(self._numbers), each.target, each, deadline))
                continue
            target = Target.of_popular(each, self.jitter)
            if target is None:
                self._forget(each.place)
            else:
                self._put((-kind, -value, next(self._numbers), target, None, deadline))
        self._fill()

    def _slices(self, scheduled: list[Scheduled]) -> Iterator[Sequence[Scheduled | PopularCall]]:
        """Walk through what may be due, a slice at a time."""
        for begin in range(0, len(scheduled), SLICE):
            yield scheduled[begin : begin + SLICE]
        popularity = self._engine.store.popularity
        if popularity is not None:
            yield from popularity.slices(SLICE)

    def _look_at(self, call: PopularCall, now: float) -> tuple[float, float, float]:
        """Return for how long a popular call has been due, its value, and its deadline."""
        space, key = call.place
        entry = space.data.get(key)
        if entry is None or not entry.used or not now < entry.deadline < math.inf:
            return -math.inf, 0.0, 0.0
        life = entry.deadline - entry.born
        ahead = min(life / 2, max(life / 10, 2 * (self.interval + call.seconds)))
        late = now - (entry.deadline - ahead)
        if late >= 0 and self._engine.peek(space, key, now) is None:
            return -math.inf, 0.0, 0.0  # a remembered failure, or of another version
        value = (entry.used + call.reads(now)) * max(call.seconds, 0.001)
        return late, value, entry.deadline

    def _take_predicted(self) -> None:
        """Put into the queue what was predicted and is not fresh."""
        popularity = self._engine.store.popularity
        now = self._engine.clock()
        while self._predicted:
            place = self._predicted.popleft()
            call = None if popularity is None else popularity.get(place)
            if call is None or place in self._active or not self._backoffs.ready(place, now):
                continue
            target = Target.of_popular(call, self.jitter)
            if target is not None and target.fresh(self.cache, now) is None:
                self._put((-_PREDICTED, -call.reads(now), next(self._numbers), target, None, 0.0))
        self._fill()

    def _put(self, item: _Item) -> None:
        place = item[3].place
        if place not in self._active:
            self._active.add(place)
            heapq.heappush(self._queue, item)

    def _fill(self) -> None:
        """Wake the workers."""
        if self._queue:
            self._filled.set()

    def _forget(self, place: Place) -> None:
        popularity = self._engine.store.popularity
        if popularity is not None:
            with self._engine.store.lock:
                popularity.forget(place)

    # -- the work

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._filled.clear()
                await self._filled.wait()
            item = heapq.heappop(self._queue)
            self._working += 1
            try:
                async with self.pace.turn() as turn:
                    if self._overtaken(item):
                        turn.skip()
                    elif not await self._refresh(item):
                        turn.failed()
            finally:
                self._working -= 1
                self._active.discard(item[3].place)
            await asyncio.sleep(0)  # a load that needs no await must not hold up the loop

    def _overtaken(self, item: _Item) -> bool:
        """Tell whether somebody else was faster than the queue."""
        _, _, _, target, scheduled, deadline = item
        entry = target.fresh(self.cache, self._engine.clock())
        return scheduled is None and entry is not None and entry.deadline != deadline

    async def _refresh(self, item: _Item) -> bool:
        """Load one call; tell whether that went well."""
        _, _, _, target, scheduled, _ = item
        place = target.place
        try:
            with anyio.fail_after(self.timeout):
                value = await target.load(self.cache)
        except Exception as error:  # noqa: BLE001 - counted, named, and tried again later
            if isinstance(error, CacheClosedError) and (target.gone or self.cache.closed):
                return True  # nothing is wrong
            self._failed += 1
            now = self._engine.clock()
            again = self._backoffs.failed(place, now)
            if self._backoffs.failures(place) == 1:
                _log.warning(
                    "the refresh of a call of %s failed with %s; it is tried again later",
                    target.name,
                    type(error).__name__,
                )
            if scheduled is not None:
                scheduled.plan(now, self.wall)
                scheduled.due = min(scheduled.due, again)
            return False
        now = self._engine.clock()
        self._backoffs.succeeded(place)
        if scheduled is not None:
            scheduled.plan(now, self.wall)
        entry = target.fresh(self.cache, now)
        if entry is None or entry.value is not value:
            self._refused += 1
        else:
            self._refreshed += 1
        if entry is not None:
            self.warmed(target)
        return True
