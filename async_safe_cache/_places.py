"""Where the keys that users give are stored: raw keys, `Key`s, and what a value depends on."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final, TypeVar, cast, final

from ._entries import Namespace
from ._function import function_of
from ._keys import PLAIN, DataKey, Key, canonical
from ._marks import Marks, Place
from .options import DECORATED, UNSET, CacheOptions, check_sources, check_tags
from .outcomes import MISSING

__all__ = ["Places"]

K = TypeVar("K")

_PLAIN: Final = PLAIN


@final
class Places:
    """The keys of one cache."""

    def __init__(
        self, name: str, store: object, raw: Namespace, vary_on: tuple["ContextVar[Any]", ...] = ()
    ) -> None:
        self.name = name
        self.store = store
        self.raw = raw
        self.vary_on = vary_on

    def of(self, key: object) -> tuple[Namespace, DataKey, object]:
        """Return where *key* is stored: namespace, data key, kind."""
        cls = type(key)
        if cls is Key:
            known = cast("Key", key)
            space = known.space
            if not isinstance(space, Namespace) or space.store is not self.store:
                raise ValueError(f"{known!r} belongs to another cache than {self.name!r}")
            return space, known.data, known.kind
        if self.vary_on:
            varied = key, *[variable.get(MISSING) for variable in self.vary_on]
            return self.raw, canonical(varied, "key", raw=True), None
        data = canonical(key, "key", raw=True)
        return self.raw, data, cls if cls in _PLAIN else None

    def several(self, caller: str, keys: Iterable[K]) -> dict[K, tuple[Namespace, DataKey, object]]:
        """Return where *keys* are stored, by the keys as given, in first-seen order.

        Raises:
            ValueError: Python holds two of them equal and the cache does not.
        """
        places: dict[K, tuple[Namespace, DataKey, object]] = {}
        for key in keys:
            place = self.of(key)
            if places.setdefault(key, place)[:2] != place[:2]:
                raise ValueError(
                    f"{caller} got two keys that Python holds equal and the cache tells apart, "
                    "such as 1 and True: ask for them in two calls"
                )
        return places

    def marks(
        self,
        options: CacheOptions,
        place: Place,
        call: Callable[[Callable[..., Any]], Any] | None = None,
        added: list[str] | None = None,
        version: object = UNSET,
    ) -> Marks | None:
        """Return what is to be stored at *place* besides the value; None for nothing.

        Args:
            options: What the call says.
            place: Where its value is stored.
            call: Calls an option that is computed from the call's arguments, with them.
            added: Where the loader puts the tags that it adds, if it can.
            version: Of this call alone; that of the function, or of the cache, if not given.

        Raises:
            TypeError: A computed option is of a wrong type.
            ValueError: It is out of range; or a value depends on itself, or on another cache's.
            Exception: Whatever a computed option raised.
        """
        space = place[0]
        if version is UNSET:
            version = space.version
        window = max(options.window, space.window)  # who reads decides how much of it counts
        if not (options.tags or options.depends_on or added is not None):
            # An entry where hits read its facts has them in any case, and pays for them.
            described = space.described or window or options.ahead
            plain = version == space.version and not described
            return None if plain else Marks(version=version, window=window)
        tags = options.tags
        if callable(tags):
            tags = check_tags("tags", _computed("tags", tags, call))
        depends_on = options.depends_on
        if callable(depends_on):
            depends_on = check_sources("depends_on", _computed("depends_on", depends_on, call))
        sources = tuple(dict.fromkeys(map(self._source, depends_on)))
        if place in sources:
            raise ValueError("depends_on names the entry itself, which would invalidate itself")
        return Marks(tags, sources, version, added, window)

    def _source(self, source: Any) -> Place:
        """Return the place of one thing that a value depends on: a key or a call."""
        call: tuple[Any, ...] = source if isinstance(source, tuple) and source else (source,)  # pyright: ignore[reportUnknownVariableType]
        fn, arguments = call[0], call[1:]
        if not hasattr(fn, DECORATED):
            return self.of(source)[:2]  # pyright: ignore[reportUnknownArgumentType]
        function, instance = function_of(fn)
        if function.store is not self.store:
            raise ValueError(
                f"depends_on names {function.name}, which belongs to another cache than "
                f"{self.name!r}: a change there is not seen here"
            )
        return function.address(function.bind(*instance, *arguments))[:2]


def _computed(
    name: str, option: Callable[..., Any], call: Callable[[Callable[..., Any]], Any] | None
) -> Any:
    if call is None:
        raise TypeError(
            f"{name} can be computed from the arguments of a decorated call only: "
            "give the value itself here"
        )
    return call(option)
