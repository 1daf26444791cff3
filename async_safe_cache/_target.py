"""A call to be kept warm: what it takes to load it for nobody."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import Token
from typing import Any, final
from weakref import ref

from ._cache import AsyncSafeCache
from ._entries import Entry
from ._function import CachedFunction
from ._keys import Key, apart
from ._loader import call_of
from ._marks import Place
from ._popularity import PopularCall
from .errors import CacheClosedError
from .options import CacheOptions
from .outcomes import MISSING

__all__ = ["Target"]


@final
class Target:
    """One call of a decorated function, or one raw key with its loader.

    An instance whose method is called is held weakly.

    Attributes:
        place: Where its value is stored.
        kind: Of its key.
        name: Of the function, or the cache.
        priority: The highest first.
        warm: Whether it was loaded, or found fresh, once.
    """

    __slots__ = (
        "_call",
        "_function",
        "_key",
        "_options",
        "_owner",
        "_values",
        "kind",
        "name",
        "place",
        "priority",
        "warm",
    )

    def __init__(self, place: Place, kind: object, name: str, options: CacheOptions) -> None:
        self.place = place
        self.kind = kind
        self.name = name
        self.priority = 0.0
        self.warm = False
        # Nobody is handed the value, and nobody who waits loses patience.
        self._options = options.but(copy="none", hard_timeout=None, default=True)
        self._function: CachedFunction | None = None
        self._owner: ref[Any] | None = None
        self._values: tuple[Any, ...] = ()
        self._key: object = None
        self._call: Callable[..., Any] | None = None

    def __repr__(self) -> str:
        return f"<Target of {self.name}>"  # arguments may be secrets

    @classmethod
    def of_call(
        cls, function: CachedFunction, values: tuple[Any, ...], jitter: float = 0.0
    ) -> "Target":
        """Return the call of *function* with these normalised *values*, the instance included.

        Raises:
            UnsupportedKeyError: An argument cannot be part of a key.
        """
        space, key, kind = function.address(values)
        options = function.options
        if jitter > options.jitter:
            options = options.but(jitter=jitter)
        target = cls((space, key), kind, function.name, options)
        target._function = function
        target._owner, target._values = function.parted(space, values)
        return target

    @classmethod
    def of_popular(cls, call: PopularCall, jitter: float = 0.0) -> "Target | None":
        """Return the same for a call that is known to be popular; None if it cannot be made.

        Nor can it where it is not the same call any more: an argument has changed.
        """
        function = call.function()
        owner = None if call.owner is None else call.owner()
        if function is None or (owner is None and call.owner is not None) or function.closed:
            return None
        values = call.values if owner is None else (owner, *call.values)
        try:
            target = cls.of_call(function, values, jitter)
        except Exception:  # noqa: BLE001 - what a key is made of is the user's: it fails alone
            return None
        return target if target.place == call.place else None

    @classmethod
    def of_key(
        cls,
        cache: AsyncSafeCache,
        key: object,
        loader: Callable[..., Any],
        options: CacheOptions,
    ) -> "Target":
        """Return raw *key* with its *loader*.

        Raises:
            UnsupportedKeyError: *key* cannot be a key.
            TypeError: *loader* cannot be called as one.
        """
        call_of(loader, key)
        space, data, kind = cache._place(key)
        cache._places.marks(options, (space, data))
        target = cls((space, data), kind, space.name, options)
        target._key, target._call = key, loader
        target._values = tuple(variable.get(MISSING) for variable in options.vary_on)
        return target

    @property
    def key(self) -> Key:
        """The `Key` that every keyed method takes."""
        return Key(*self.place, self.kind, self.name)

    @property
    def gone(self) -> bool:
        """Whether it cannot be loaded any more."""
        function = self._function
        return (self._owner is not None and self._owner() is None) or (
            function is not None and function.closed
        )

    def fresh(self, cache: AsyncSafeCache, now: float) -> Entry | None:
        """Return its fresh entry."""
        return cache._engine.peek(*self.place, now)

    async def load(self, cache: AsyncSafeCache) -> Any:
        """Load it now, fresh or not, and return the value.

        It is stored where it displaces nothing that is read more.

        Raises:
            CacheClosedError: Its function, its instance or the cache is closed or gone.
            Exception: Whatever its loader raised.
        """
        with self._varied():
            return await self._load(cache, cache._engine.store.heat(*self.place))

    @contextmanager
    def _varied(self) -> Generator[None]:
        """Let the context variables that are part of the key be what they were for it."""
        varied = self._options.vary_on
        tokens: list[Token[Any]] = []
        for variable, value in zip(
            varied, self._values[len(self._values) - len(varied) :], strict=True
        ):
            tokens.append(variable.set(value))
        try:
            yield
        finally:
            for variable, token in zip(varied, tokens, strict=True):
                variable.reset(token)

    async def _load(self, cache: AsyncSafeCache, heat: float) -> Any:
        function = self._function
        options, loads = self._options, cache._loads
        if function is None:
            call, told = call_of(self._call, self._key)
            added = None if told is None else told.tags
            marks = cache._places.marks(options, self.place, added=added)
            return await loads.load(
                *self.place, self.kind, call, (), options, marks, told, refresh=True, heat=heat
            )
        owner = None if self._owner is None else self._owner()
        if self.gone:
            raise CacheClosedError(self.name)
        values = self._values if self.kind is not None else apart(self._values)
        values = values if owner is None else (owner, *values)
        if self.kind is None and function.address(values)[:2] != self.place:
            raise ValueError(
                f"an argument of a call of {self.name} is not what it was when the call was "
                "registered: its value would be stored as that of another call"
            )
        function.note(*self.place, values)
        return await loads.load(
            *self.place,
            self.kind,
            function.invoke,
            (values,),
            options,
            cache._marks_of(function, values, self.place),
            refresh=True,
            in_thread=not function.is_async,
            heat=heat,
        )
