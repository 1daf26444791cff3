"""Events: what became of entries and loads, told to whoever asked.

    note     under the lock, where it happens: who listens now, and how to make the record
    deliver  after the operation, outside every lock, in the thread whose operation it was

Each thread delivers what its own operations caused, in their order, and waits for
nobody else's listeners. What a listener causes itself is appended and comes when its
turn comes: one loop delivers, however deep the calls. With no listener the store's
`events` is None, and that is all an operation looks at.

A note holds keys, causes and names: never a value, nor what could lead to one.

Source: Guava's removal notifications, which are queued under the lock and told after it.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from inspect import iscoroutine, iscoroutinefunction
from typing import Any, Final, Protocol, final

from ._entries import Namespace
from ._keys import PLAIN, DataKey, Key
from .options import check_callable, check_choice
from .outcomes import Invalidated, Loaded, LoadFailed, Refreshed, RemovalCause, Removed

__all__ = ["EVENTS", "Events"]

_log = logging.getLogger("async_safe_cache")

EVENTS: Final = ("loaded", "load_failed", "refreshed", "removed", "invalidated")

MOST: Final = 10_000
"""Events of one thread that wait to be delivered; what comes then is dropped and counted."""


class _Source(Protocol):
    """What the events are of: a store."""

    lock: threading.RLock
    events: "Events | None"
    is_mine: Callable[[], bool]


@final
class _Subscription:
    """One callback; None once unsubscribed, also to the events that still wait."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[Any], object]) -> None:
        self.callback: Callable[[Any], object] | None = callback


_Listeners = tuple[_Subscription, ...]


class _Here(threading.local):
    """What is to be delivered by this thread."""

    def __init__(self) -> None:
        self.delivering = False
        # Who listened when it happened, and what makes the record. Bounded by MOST.
        self.pending: deque[tuple[_Listeners, Callable[[], object]]] = deque()


@final
class Events:
    """The listeners of one cache, and what they are yet to be told.

    Attributes:
        errors: Calls of a listener that raised.
        dropped: Events that were told to nobody, because too many waited.
    """

    def __init__(self, store: _Source, raw: Namespace) -> None:
        self.errors = 0
        self.dropped = 0
        self._store = store
        self._raw = raw
        # The tuples are replaced, never changed: a note keeps the one of its moment.
        # Bounded by the subscriptions.
        self._listeners: dict[str, _Listeners] = dict.fromkeys(EVENTS, ())
        self._here = _Here()
        self._is_mine = store.is_mine

    def subscribe(self, event: str, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Call *callback* with every record of *event* from now on; return what ends that."""
        check_choice("event", event, EVENTS)
        check_callable("callback", callback, "a callable that takes the event")
        if iscoroutinefunction(callback) or iscoroutinefunction(type(callback).__call__):
            raise TypeError(
                f"callback of {event!r} must be a plain function, not a coroutine function: nobody "
                "could await it; let it put the event into an asyncio.Queue that a task reads"
            )
        mine = _Subscription(callback)
        with self._store.lock:
            self._listeners[event] += (mine,)
            self._store.events = self

        def unsubscribe() -> None:
            """Call it no more; nothing happens the second time."""
            with self._store.lock:
                _callback, mine.callback = mine.callback, None  # dies after the lock
                self._listeners[event] = tuple(
                    each for each in self._listeners[event] if each is not mine
                )
                if not any(self._listeners.values()):
                    self._store.events = None

        return unsubscribe

    # -- noting, all of it locked

    def loaded(
        self,
        space: Namespace,
        key: DataKey,
        kind: object,
        seconds: float | None,
        *,
        stored: bool,
        refresh: bool,
    ) -> None:
        """Note that a load ended with a value."""
        event, record = ("refreshed", Refreshed) if refresh else ("loaded", Loaded)
        self._note(event, lambda: record(self._key(space, key, kind), seconds, stored))

    def load_failed(self, space: Namespace, key: DataKey, kind: object, error: str) -> None:
        """Note that a load ended with an *error* of that type."""
        self._note("load_failed", lambda: LoadFailed(self._key(space, key, kind), error))

    def removed(self, space: Namespace, key: DataKey, kind: object, cause: RemovalCause) -> None:
        """Note that an entry left the store."""
        self._note("removed", lambda: Removed(self._key(space, key, kind), cause))

    def invalidated(
        self,
        cause: RemovalCause,
        removed: int,
        places: Sequence[tuple[Namespace, DataKey]] = (),
        tags: tuple[str, ...] = (),
        function: str | None = None,
    ) -> None:
        """Note that somebody asked for entries to go."""
        self._note(
            "invalidated",
            lambda: Invalidated(
                cause, tuple(self._key(*place, None) for place in places), tags, function, removed
            ),
        )

    def _note(self, event: str, make: Callable[[], object]) -> None:
        listeners = self._listeners[event]
        if not listeners:
            return
        pending = self._here.pending
        if len(pending) < MOST:
            pending.append((listeners, make))
        else:
            self.dropped += 1

    def _key(self, space: Namespace, key: DataKey, kind: object) -> object:
        """Return what the keyed methods take for the entry at *key*."""
        if space is self._raw and type(key) in PLAIN:
            return key
        return Key(space, key, kind, space.name)

    # -- delivering, outside the lock

    def deliver(self) -> None:
        """Call the listeners of what this thread's operations have caused.

        Raises:
            BaseException: What a listener raised that is no Exception; what it was
                not told yet comes with the thread's next operation.
        """
        here = self._here
        # Again, as long as there is something: a finaliser may have run at the very end.
        while here.pending and not here.delivering and not self._is_mine():
            here.delivering = True
            try:
                # A context of its own: listeners are part of no load, and pin no request.
                Context().run(self._drain, here.pending)
            finally:
                here.delivering = False

    def _drain(self, pending: deque[tuple[_Listeners, Callable[[], object]]]) -> None:
        while pending:
            listeners, make = pending.popleft()
            record = make()
            for listener in listeners:
                callback = listener.callback
                if callback is not None:
                    self._call(callback, record)

    def _call(self, callback: Callable[[Any], object], record: object) -> None:
        try:
            result = callback(record)
            if iscoroutine(result):
                result.close()
                raise TypeError("a listener must be a plain function, not one that is awaited")
        except Exception as error:  # noqa: BLE001 - not the error of whoever caused the event
            self.errors += 1  # one step under the GIL, as with Counters.hits
            name, what = type(record).__name__, type(error).__name__
            _log.warning("a listener failed with %s at %s", what, name)

    def forget(self) -> None:
        """In a forked child: tell nobody what happened in the parent, and count from 0."""
        self._here.pending.clear()  # those of other threads are not here
        self.errors = self.dropped = 0
