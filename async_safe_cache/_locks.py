"""Locks per key for the user's own critical sections, across tasks, loops and threads.

A *request* names places (keys) and a mode. Each place grants in the order of the
asking, and a request is granted when all of its places have granted it:

    ask     join every place at once, under one lock  -> granted, or wait
    advance the first in the queue fits beside who holds the place -> it holds, too
    leave   holder or waiter, in whatever way         -> out of every place; advance each

Requests that wait, wait for earlier ones only: between two of them, `lock(a, b)` and
`lock(b, a)`, there is no cycle, whatever the order of the keys. A reader queues behind
a writer that came before it, so neither starves. Cycles need a holder that asks again
(nested blocks). Each ask from inside a block looks for one, through

    request -> who is before it in its places -> what those wait for, if they wait
                                              -> what asks from inside their blocks, if they hold

and the ask that would close the cycle raises. A load inherits the grants of its first
caller, which waits for it: what the load asks for is asked from inside the caller's block.

The internal lock is plain, and nothing waits for anything while it is held. Who leaves
does not even wait for it: the collector may close a block whose loop died in any
thread, in the middle of anything. It hands its request to `_left`; whoever holds the
lock takes it out before, or right after.

Cost: O(places) to ask and to leave; a contended ask from inside a block O(requests).

Source: FIFO reader-writer queues (Courtois, Heymans, Parnas 1971, third problem);
the wait-for graph of databases; fencing tokens as of Chubby's sequencers.
"""

import asyncio
import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, Final, final

from ._flights import Loop, release, running_loop, wake
from ._waits import Waits, part_of_a_load
from .errors import LockDeadlockError
from .outcomes import LockGrant

__all__ = ["Holding", "Locks", "inherited"]

LOOK: Final = 1.0
"""Seconds between two looks of a waiter whether the loop of another one is closed."""

inherited: "ContextVar[tuple[_Request, ...]]" = ContextVar("async_safe_cache_grants", default=())
"""The grants inside which this code runs, in this task or where its context was copied."""


@final
class _Place:
    """One key: who holds it, and who waits for it, in order."""

    __slots__ = ("held", "shared", "waiting")

    def __init__(self) -> None:
        self.held: dict[_Request, None] = {}
        self.shared = False  # whether those who hold it share it
        self.waiting: OrderedDict[_Request, None] = OrderedDict()

    def advance(self) -> "list[_Request]":
        """Locked. Let in who is next; return whom it was the last place of."""
        granted: list[_Request] = []
        while self.waiting:
            request = next(iter(self.waiting))
            if self.held and not (self.shared and request.shared):
                break
            del self.waiting[request]
            self.held[request] = None
            self.shared = request.shared
            request.missing.discard(self)
            if not request.missing:
                granted.append(request)
        return granted

    def before(self, request: "_Request") -> "Iterator[_Request]":
        """Locked. Yield whom *request* waits for here, itself waiting; the latest last."""
        if not (self.shared and request.shared):
            yield from self.held
        for other in self.waiting:
            if other.number >= request.number:
                return
            if not (other.shared and request.shared):
                yield other


@final
class _Request:
    """One ask for some places.

    Attributes:
        number: Grows in the order of asking.
        places: What it asks for.
        missing: Those that have not granted it.
        carried: The grants that end only after this request does: of this task, and of
            the caller that waits for this load. Bounded by the nesting.
        inside: The waiting requests that carry this one. Bounded by the tasks.
        token: Of the grant; 0 before.
        left: It is out of every place, or about to be taken out.
    """

    __slots__ = (
        "carried", "inside", "left", "loop", "missing", "number", "places", "shared",
        "task", "token", "waiter",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        task: "asyncio.Task[Any]",
        shared: bool,
        carried: "tuple[_Request, ...]",
    ) -> None:
        self.loop = loop
        self.task = task
        self.shared = shared
        self.carried = carried
        self.number = 0
        self.token = 0
        self.places: dict[Hashable, _Place] = {}
        self.missing: set[_Place] = set()
        self.inside: set[_Request] = set()
        self.waiter: asyncio.Future[Any] | None = None
        self.left = False


@final
class Locks:
    """The locks of one cache.

    Attributes:
        waits: How long was waited for them.
    """

    def __init__(self) -> None:
        self.waits = Waits()
        self._lock = threading.Lock()
        self._places: dict[Hashable, _Place] = {}  # bounded by the requests
        self._requests: dict[Loop, dict[_Request, None]] = {}  # bounded by the callers
        self._left: deque[_Request] = deque()  # emptied by whoever has the lock
        self._numbers = itertools.count(1)
        self._tokens = itertools.count(1)

    def holding(self, places: Iterable[Hashable], *, shared: bool = False) -> "Holding":
        """Return a block that holds *places*, alone or with others that share, to enter once.

        Raises:
            ValueError: there are no places.
        """
        keys = tuple(dict.fromkeys(places))
        if not keys:
            raise ValueError("lock() needs at least one key: what is to be held")
        return Holding(self, keys, shared=shared)

    def forget(self) -> None:
        """In a forked child. Let go of the parent's requests; tokens go on growing."""
        for requests in self._requests.values():
            for request in requests:
                request.left = True
        self.waits = Waits()
        self._lock = threading.Lock()
        self._places, self._requests = {}, {}
        self._left = deque()

    def check(self) -> None:
        """Recompute what must hold. O(requests).

        Raises:
            AssertionError: it does not.
        """
        with self._changing():
            known = {each for requests in self._requests.values() for each in requests}
            seen: set[_Request] = set()
            for key, place in self._places.items():
                numbers = [request.number for request in place.waiting]
                first = next(iter(place.waiting), None)
                sound = (
                    (place.held or place.waiting)
                    and (len(place.held) < 2 or place.shared)
                    and all(request.shared == place.shared for request in place.held)
                    and numbers == sorted(numbers)
                    # Who is next does not fit, or it would be in.
                    and (not first or (place.held and not (place.shared and first.shared)))
                    and all(place in request.missing for request in place.waiting)
                    and not any(place in request.missing for request in place.held)
                )
                here = {*place.held, *place.waiting}
                if not sound or any(request.places.get(key) is not place for request in here):
                    raise AssertionError("broken invariant of the locks: of a place")
                seen |= here
            if seen != known or any(request.left for request in known):
                raise AssertionError("broken invariant of the locks: of the requests")
            for request in known:
                granted = not request.missing
                waits_inside = all(request in each.inside for each in request.carried)
                if granted != bool(request.token) or not (granted or waits_inside):
                    raise AssertionError("broken invariant of the locks: of a request")

    # -- under the lock

    @contextmanager
    def _changing(self) -> "Generator[list[_Request], None, None]":
        """Hold the lock; afterwards wake who was added to the list that this yields."""
        granted: list[_Request] = []
        try:
            with self._lock:
                self._take_out(granted)
                yield granted
        finally:
            self._wake(granted)
            self._drain()

    def _drain(self) -> None:
        """Take out who left, unless somebody else has the lock, who will."""
        while self._left and self._lock.acquire(blocking=False):
            granted: list[_Request] = []
            try:
                self._take_out(granted)
            finally:
                self._lock.release()
            self._wake(granted)

    def _take_out(self, granted: list[_Request]) -> None:
        """Locked. Take out of their places all who left."""
        while self._left:
            request = self._left.popleft()
            requests = self._requests.get(request.loop, {})
            if request not in requests:
                continue
            del requests[request]
            if not requests:
                del self._requests[request.loop]
            for each in request.carried:
                each.inside.discard(request)
            for key, place in request.places.items():
                place.held.pop(request, None)
                place.waiting.pop(request, None)
                self._advance(place, granted)
                if not place.held and not place.waiting:
                    del self._places[key]

    def _advance(self, place: _Place, granted: list[_Request]) -> None:
        """Locked. Let in who is next."""
        for request in place.advance():
            request.token = next(self._tokens)
            for each in request.carried:
                each.inside.discard(request)
            granted.append(request)

    @staticmethod
    def _wake(granted: list[_Request]) -> None:
        wake({each.waiter: each.loop for each in granted if each.waiter is not None}, None)

    def _leave(self, request: _Request) -> None:
        """Take *request* out, whether it waits or holds; from anywhere, at any moment."""
        if not request.left:
            request.left = True
            self._left.append(request)
        self._drain()

    def _bury(self, granted: list[_Request]) -> None:
        """Locked. Take out the requests of loops that are closed. O(loops + taken out)."""
        for loop in [each for each in self._requests if each.is_closed()]:
            for request in self._requests[loop]:
                request.left = True
                self._left.append(request)
        self._take_out(granted)

    def _ask(self, request: _Request, keys: tuple[Hashable, ...]) -> None:
        """Queue *request* for *keys*, and grant what can be granted at once."""
        with self._changing() as granted:
            if any(key in each.places for each in request.carried for key in keys):
                raise LockDeadlockError(held=True)
            requests = self._requests.get(request.loop)
            if requests is None:
                # Rare, so it is the moment to look for what dead loops left behind.
                self._bury(granted)
                requests = self._requests[request.loop] = {}
            requests[request] = None
            request.number = next(self._numbers)
            for key in keys:
                place = self._places.get(key)
                if place is None:
                    place = self._places[key] = _Place()
                request.places[key] = place
                request.missing.add(place)
                place.waiting[request] = None
            for each in request.carried:
                each.inside.add(request)
            for place in request.places.values():
                self._advance(place, granted)
            if request.missing and len(self._requests) > 1:
                self._bury(granted)
            if not request.missing:
                return
            if request.carried and self._closes_a_cycle(request):
                request.left = True
                self._left.append(request)
                raise LockDeadlockError(held=False)
            request.waiter = request.loop.create_future()

    @staticmethod
    def _closes_a_cycle(request: _Request) -> bool:
        """Locked. Tell whether *request*, the newest, waits for what waits for it.

        A cycle comes back to it through what it carries. Where a place was looked through
        for a later request, it holds nothing new for an earlier one of the same mode, and
        nothing for a reader that it did not hold for a writer.
        """
        carried = set(request.carried)
        looked: dict[_Place, list[int]] = {}  # up to which number: for a writer, for a reader
        seen = {request}
        stack = [request]
        while stack:
            each = stack.pop()
            found: list[_Request] = [*each.inside]
            for place in each.missing:
                upto = looked.setdefault(place, [0, 0])
                if each.number > upto[each.shared]:
                    upto[1] = max(upto[1], each.number)
                    if not each.shared:
                        upto[0] = each.number
                    found += place.before(each)
            for other in found:
                if other in carried:
                    return True
                if other not in seen:
                    seen.add(other)
                    stack.append(other)
        return False

    # -- waiting

    async def _wait(self, request: _Request) -> None:
        """Wait until *request* is granted."""
        loop = request.loop
        begin = loop.time()
        try:
            while (waiter := self._look(request)) is not None:
                timer: asyncio.TimerHandle | None = None
                if len(self._requests) > 1:  # else all die with this loop
                    timer = loop.call_later(LOOK, release, waiter, context=Context())
                try:
                    await waiter
                finally:
                    if timer is not None:
                        timer.cancel()
        finally:
            with self._changing():
                self.waits.add(loop.time() - begin)

    def _look(self, request: _Request) -> "asyncio.Future[Any] | None":
        """Look whether *request* is granted now, or return what to wait for."""
        with self._changing() as granted:
            if request.missing and len(self._requests) > 1:
                self._bury(granted)
            if not request.missing:
                request.waiter = None
            elif request.waiter is None or request.waiter.done():
                request.waiter = request.loop.create_future()
            return request.waiter


@final
class Holding:
    """A block that holds places. It belongs to the task that enters it, once."""

    __slots__ = ("_keys", "_locks", "_request", "_shared")

    def __init__(self, locks: Locks, keys: tuple[Hashable, ...], *, shared: bool) -> None:
        self._locks = locks
        self._keys = keys
        self._shared = shared
        self._request: _Request | None = None

    async def __aenter__(self) -> LockGrant:
        if self._request is not None:
            raise RuntimeError("this lock block was entered before; call lock() for each block")
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a lock belongs to a task, and none runs here")
        around = tuple(each for each in inherited.get() if not each.left)
        loading = part_of_a_load()
        carried = tuple(each for each in around if loading or each.task is task)
        self._request = request = _Request(loop, task, self._shared, carried)
        locks = self._locks
        locks._ask(request, self._keys)
        if request.waiter is not None:
            try:
                await locks._wait(request)
            except BaseException:
                locks._leave(request)
                raise
        inherited.set((*around, request))
        return LockGrant(request.token)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        request = self._request
        if request is None:
            raise RuntimeError("this lock block was not entered")
        # A generator may be closed in another task, and a dead task's frames by the collector.
        if kind is not GeneratorExit and not request.task.done() and not request.left:
            here = running_loop()
            if here is None or asyncio.current_task(here) is not request.task:
                raise RuntimeError("a lock is released by the task that holds it, and by no other")
        inherited.set(tuple(each for each in inherited.get() if each is not request))
        self._locks._leave(request)
