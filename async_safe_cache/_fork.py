"""A forked child: which caches there are, and their locks across the fork.

Only the thread that forks lives on in the child. Whatever another thread had half
done stays half done for ever, and a lock it held stays locked. So the fork waits for
the lock of every cache, in the order in which they were made, and holds them all:

    before     take every lock                         -> no write is half done
    in parent  give them back
    in child   each cache lets go of what belongs to the parent's threads and loops;
               give them back

A finaliser may fork while its thread holds a lock and another thread, that forks
too, waits for it. So the wait has an end: a cache whose lock could not be had, or that
another thread made meanwhile, starts the child torn: empty, its lock broken open.

What belongs to the parent's tasks is kept, not freed: to free a coroutine runs its
`finally` blocks, and one that is run in the child too would close the parent's
connections.
"""

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from weakref import WeakMethod

__all__ = ["hold", "inherit"]

_log = logging.getLogger("async_safe_cache")

PATIENCE: Final = 10.0
"""Seconds that a fork waits for the lock of one cache; a write holds it for microseconds."""

Lock = Any
"""A threading.RLock, which the stubs know as a function."""


Forked = Callable[[bool], Iterable[object]]
"""Called in the child, locked, with whether the state is torn; returns what is the parent's."""

# In the order in which they were made; bounded by the caches that are alive.
_heirs: dict[int, tuple[Callable[[], Forked | None], Lock]] = {}
_numbers = itertools.count()
_parents: list[object] = []  # grows by what ran at the fork, once in the life of a child


class _Forks(threading.local):
    """The forks that this thread is about to make, the innermost last."""

    def __init__(self) -> None:
        self.held: list[dict[int, Lock]] = []


_forks = _Forks()


def inherit(forked: Forked, lock: Lock) -> None:
    """Let the owner of *lock* live on in every child, where its method *forked* is called.

    Holds the owner weakly.
    """
    number = next(_numbers)
    _heirs[number] = WeakMethod(forked, lambda _: _heirs.pop(number, None)), lock


def hold(lock: Lock) -> None:
    """Hold a module's own *lock* across every fork."""
    _heirs[next(_numbers)] = lambda: None, lock


def _living() -> Iterator[tuple[int, Callable[[], Forked | None], Lock]]:
    for number in tuple(_heirs):  # not items(): to make pairs may collect a cache in between
        heir = _heirs.get(number)
        if heir is not None:
            yield number, *heir


def _before() -> None:
    held: dict[int, Lock] = {}
    _forks.held.append(held)
    for number, _, lock in _living():
        held[number] = lock if lock.acquire(timeout=PATIENCE) else None


def _in_parent() -> None:
    held = _forks.held.pop() if _forks.held else {}  # imported while another thread forked
    _release(held)


def _in_child() -> None:
    held = _forks.held.pop() if _forks.held else {}  # imported while another thread forked
    for number, reference, lock in _living():
        torn = held.get(number) is None
        if torn:
            lock._at_fork_reinit()
            lock.acquire()
            held[number] = lock
        forked = reference()
        try:
            if forked is not None:
                _parents.extend(forked(torn))
        except Exception as error:  # noqa: BLE001 - the other caches, and the locks, come first
            _log.warning("a cache did not survive a fork: %s", type(error).__name__)
    _release(held)


def _release(held: dict[int, Lock]) -> None:
    for lock in reversed(held.values()):
        if lock is not None:
            lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
