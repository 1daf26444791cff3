"""A task that begins at once, where Python can do that.

From 3.12 on a task may run its first step while it is made: a load that needs no
await then ends without a turn of the loop. Who made the loop, or a task factory,
may want tasks of another class; then they make them, in their own way.

Source: asyncio.eager_task_factory (3.12), which would change every task of the loop.
"""

import asyncio
import inspect
import sys
from collections.abc import Coroutine
from contextvars import Context
from enum import Enum, auto
from functools import lru_cache
from typing import Any, Final

__all__ = ["EAGER", "asked", "start"]

EAGER: Final = sys.version_info >= (3, 12)
"""Whether tasks of this Python can begin at once."""


class _Way(Enum):
    """How a class of loops makes a task that begins at once."""

    ITSELF = auto()
    """By `create_task`, which takes `eager_start`."""

    PLAIN = auto()
    """As asyncio does: a plain `asyncio.Task`."""

    NOT = auto()
    """Its tasks are its own affair."""


@lru_cache(maxsize=32)
def _way(loop_type: Any) -> _Way:
    create = loop_type.create_task
    if not EAGER:
        return _Way.NOT
    if create is asyncio.BaseEventLoop.create_task or loop_type.__module__.startswith("uvloop"):
        return _Way.PLAIN
    try:
        # By name: one that takes any option may hand it on to one that does not know it.
        itself = "eager_start" in inspect.signature(create).parameters
    except (TypeError, ValueError):
        itself = False  # written in C
    return _Way.ITSELF if itself else _Way.NOT


def start(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, None],
    *,
    name: str,
    context: Context,
    eager: bool,
) -> "asyncio.Task[None]":
    """Return a task of *loop*, the running one, that runs *coroutine* in *context*.

    With *eager* its first step is over when this returns, if that is possible here. Not
    while the caller handles an exception: that would be the context of what is raised
    in the first step, and the caller's secrets in the traceback of others.
    """
    if eager and EAGER and sys.exception() is None and loop.get_task_factory() is None:
        kind: Any = type(loop)
        # Who replaced `create_task` of one loop wants to see its tasks.
        way = _Way.NOT if "create_task" in getattr(loop, "__dict__", ()) else _way(kind)
        # The stubs of 3.11 know no eager_start.
        task_type: Any = asyncio.Task
        itself: Any = loop.create_task
        task: asyncio.Task[None]
        if way is _Way.PLAIN:
            task = task_type(coroutine, loop=loop, name=name, context=context, eager_start=True)
            return task
        if way is _Way.ITSELF:
            task = itself(coroutine, name=name, context=context, eager_start=True)
            return task
    return loop.create_task(coroutine, name=name, context=context)


def asked(task: "asyncio.Task[None]") -> None:
    """Ask *task*, which is over, for its exception, so that nobody is told that none did."""
    if not task.cancelled():
        task.exception()
