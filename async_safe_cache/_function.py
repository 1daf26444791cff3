"""A decorated function: its name, its namespaces, its way from a call to a key.

A plain function has one namespace; a method has one per instance, found by
identity and held weakly: the entry proves it (`owner() is instance`), so an id
used again for another object finds nothing.
"""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, final
from weakref import ref

from ._entries import Counters, Namespace
from ._keys import DataKey, apart, call_key, canonical
from ._store import Store
from .errors import UnsupportedKeyError
from .options import DECORATED, CacheOptions

__all__ = ["ATTRIBUTE", "CachedFunction", "Later", "function_of"]

Later = Callable[[list[object]], object]
"""A clean-up that the next write does; what it drops goes into the list."""

ATTRIBUTE = DECORATED
"""Where a wrapper keeps its `CachedFunction`."""


@final
class CachedFunction:
    """What the cache knows about one decorated function.

    Attributes:
        name: Prefix, or module and qualified name.
        explicit: Whether the name is a prefix that the user chose.
        instances: Namespaces of a method by id of their owner; bounded by the
            live instances.
        closed: `cache_close` was called.
        counted: Whether hits are counted at each entry.
        counting: Returns the source of a wrapper that does so.
    """

    __slots__ = (
        "__weakref__",
        "bind",
        "closed",
        "collected",
        "compute",
        "counted",
        "counters",
        "counting",
        "explicit",
        "forgotten",
        "identity",
        "instances",
        "invoke",
        "is_async",
        "is_keyed_method",
        "is_method",
        "key_function",
        "name",
        "options",
        "orphaned",
        "parameters",
        "simple",
        "space",
        "store",
    )

    def __init__(
        self,
        *,
        name: str,
        explicit: bool,
        identity: tuple[str, str, object],
        store: Store,
        later: "deque[Later]",
        drop: Callable[[Namespace, list[object]], object],
        parameters: tuple[str, ...],
        is_async: bool,
        is_method: bool,
        has_key: bool,
        options: CacheOptions,
        counted: bool = False,
    ) -> None:
        self.name = name
        self.explicit = explicit
        self.identity = identity
        self.store = store
        varying = tuple(f"vary_on {each.name}" for each in options.vary_on)
        self.parameters = (*parameters, *varying)
        self.is_async = is_async
        self.is_method = is_method and not has_key
        self.is_keyed_method = is_method and has_key
        self.simple = not is_method and not has_key
        self.key_function: Callable[[tuple[Any, ...]], object] | None = None
        self.options = options
        self.counters = Counters()
        self.closed = False
        self.counted = counted
        self.space = self.new_space()
        self.instances: dict[int, Namespace] = {}
        self.forgotten = (0, 0)
        # A collected instance is cleaned up by the next write, outside the callback.
        self.collected = partial(_collected, self.instances, later, drop)
        self.orphaned = partial(_orphaned, later, drop)
        self.counting: Callable[[bool], str]
        self.bind: Callable[..., tuple[Any, ...]]
        self.invoke: Callable[[tuple[Any, ...]], Any]
        self.compute: Callable[[Callable[..., Any], tuple[Any, ...]], Any]

    def info(self) -> tuple[int, int]:
        """Return hits, joins included, and misses, as functools counts them."""
        counts = self.counters
        return (
            counts.hits + counts.coalesced - self.forgotten[0],
            counts.misses - self.forgotten[1],
        )

    def forget_info(self) -> None:
        """Let `info` count from 0 again; the cache's own counters go on."""
        self.forgotten = (0, 0)
        self.forgotten = self.info()

    @property
    def timed(self) -> bool:
        """Whether its entries have a deadline unless somebody else gives them one."""
        return self.options.ttl is not None

    def new_space(self, owner: "ref[object] | None" = None) -> Namespace:
        """Return an empty namespace of this function."""
        space = Namespace(self.store, self.name, self.counters, owner)
        space.closed = self.closed
        space.timed = self.timed
        space.linked = bool(self.options.depends_on)
        space.ahead = self.options.refresh_ahead if self.timed else None
        space.window = self.options.window
        space.copier = self.options.copier
        space.counted = self.counted
        space.described = space.linked or space.ahead is not None or space.window > 0
        space.version = self.options.version
        return space

    def space_of(self, instance: object) -> Namespace:
        """Return the namespace of *instance*, a new one if it has none."""
        space = self.instances.get(id(instance))
        if space is not None and space.owner is not None and space.owner() is instance:
            return space
        try:
            owner = ref(instance, partial(self.collected, id(instance)))
        except TypeError:
            raise UnsupportedKeyError(
                self.parameters[0],
                type(instance).__name__,
                "the instance of a cached method must allow weak references: "
                "add '__weakref__' to its __slots__",
            ) from None
        with self.store.lock:
            space = self.instances.get(id(instance))
            if space is None or space.owner is None or space.owner() is not instance:
                if space is not None:
                    # Its owner is gone, and its clean-up would look for it in vain.
                    self.orphaned(space)
                space = self.new_space(owner)
                self.instances[id(instance)] = space
        return space

    def address(self, values: tuple[Any, ...]) -> tuple[Namespace, DataKey, object]:
        """Return where a call with these normalised *values* is stored.

        Raises:
            UnsupportedKeyError: An argument cannot be part of a key.
            Exception: Whatever `key=` raised.
        """
        if self.simple:
            return self.space, *call_key(values, self.parameters)
        if self.key_function is not None:
            chosen = self.key_function(values)
            if self.options.vary_on:
                chosen = (chosen, *values[-len(self.options.vary_on) :])
            key = canonical(chosen, f"key= of {self.name}", raw=True)
            return self.space, key, None
        key, kind = call_key(values[1:], self.parameters[1:])
        return self.space_of(values[0]), key, kind

    def count_reads(self) -> None:
        """Let hits of its entries be counted."""
        with self.store.lock:
            self.counted = True
            for space in self.spaces():
                if not space.counted:
                    space.counted = True
                    for entry in space.data.values():
                        entry.used = False  # it was a mark until now

    def note(self, space: Namespace, key: DataKey, values: tuple[Any, ...]) -> None:
        """Let the popularity of the call of *values* be known, if it is asked for."""
        popularity = self.store.popularity
        place = space, key
        if popularity is None or place in popularity or self.store.is_mine():
            return  # the last: a finaliser's call, maybe in the middle of another one's note
        try:
            owner, arguments = self.parted(space, values)
        except TypeError:
            return
        with self.store.lock:
            popularity.note(place, ref(self), owner, arguments)

    def parted(
        self, space: Namespace, values: tuple[Any, ...]
    ) -> tuple["ref[Any] | None", tuple[Any, ...]]:
        """Return the instance of a method, weakly, and the other arguments, to call it later.

        Their caller may use a list again for something else, so they are copies.

        Raises:
            TypeError: The instance cannot be weakly referenced.
        """
        if self.is_method:
            return space.owner, apart(values[1:])
        if self.is_keyed_method:
            return ref(values[0]), apart(values[1:])
        return None, apart(values)

    def spaces(self) -> Iterable[Namespace]:
        """Return all namespaces of the function."""
        return (self.space, *tuple(self.instances.values()))


def _collected(
    instances: dict[int, Namespace],
    later: "deque[Later]",
    drop: Callable[[Namespace, list[object]], object],
    number: int,
    owner: "ref[object]",
) -> None:
    def clean_up(dropped: list[object]) -> None:
        space = instances.get(number)
        if space is not None and space.owner is owner:
            del instances[number]
            drop(space, dropped)

    later.append(clean_up)


def _orphaned(
    later: "deque[Later]", drop: Callable[[Namespace, list[object]], object], space: Namespace
) -> None:
    later.append(partial(drop, space))


def function_of(fn: object) -> tuple[CachedFunction, tuple[object, ...]]:
    """Return what is known of the decorated *fn*, and its instance if it is bound.

    Raises:
        TypeError: *fn* is not a decorated function.
    """
    function = getattr(fn, ATTRIBUTE, None)
    if not isinstance(function, CachedFunction):
        raise TypeError(
            f"{getattr(fn, '__qualname__', type(fn).__name__)} is not decorated with "
            "race_safe_cached"
        )
    instance = getattr(fn, "__self__", None)
    return function, () if instance is None else (instance,)
