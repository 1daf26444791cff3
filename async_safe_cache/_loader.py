"""A user's loader: as a call without arguments, what it sees, and what it may say."""

import inspect
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from types import FunctionType
from typing import Any, Generic, TypeVar, cast, final

from .options import UNSET, CacheOptions, Ttl, Unset, check_tags, check_ttl
from .outcomes import MISSING, Missing, MissReason

__all__ = ["LoadContext", "NotModified", "Skipped", "call_of", "isolated"]

V = TypeVar("V")


@final
class NotModified:
    """Returned by a loader: the value that is held is still the right one."""

    __slots__ = ("of",)

    def __init__(self, of: "LoadContext") -> None:
        self.of = of


@final
class Skipped(Generic[V]):
    """Returned by a loader: *value* is for those who wait, and is not to be stored."""

    __slots__ = ("value",)

    def __init__(self, value: V) -> None:
        self.value = value


@final
class LoadContext:
    """What a loader that asks for it is told, and what it may say of its value.

    Attributes:
        key: The key, as the caller gave it.
        stale_value: The value that is held, past its ttl or about to be refreshed; MISSING
            if there is none.
        reason: Why the value is loaded; None if a fresh one is refreshed.
        deadline: When load_timeout ends this load, in the time of the running loop, as
            `asyncio.timeout_at` takes it; None: never.
        attempt: 1, and one more for each load of the held value that has failed in a row.
        ttl: Seconds (or timedelta) that the value is to stay fresh, None for ever; not set:
            as the options say.
        tags: The tags that the loader has added; may be assigned.
    """

    __slots__ = ("_held", "_tags", "_ttl", "attempt", "deadline", "key", "reason", "stale_value")

    def __init__(self, key: object) -> None:
        self.key = key
        self.stale_value: Any | Missing = MISSING
        self.reason: MissReason | None = MissReason.ABSENT
        self.deadline: float | None = None
        self.attempt = 1
        self._ttl: float | None | Unset = UNSET
        self._tags: list[str] = []
        self._held: tuple[str, ...] = ()

    def brief(
        self, reason: MissReason | None, value: object, tags: tuple[str, ...], failures: int
    ) -> None:
        """Say why the load begins, and what is held: *value*, with *tags*, after *failures*."""
        self.reason = reason
        self.stale_value = value
        self.attempt = failures + 1
        self._held = tags

    def unwrap(self, value: Any) -> tuple[Any, bool]:
        """Return the value that the loader means by *value*, and whether it is to be stored."""
        if isinstance(value, NotModified) and value.of is self:
            self._tags[:] = dict.fromkeys((*self._held, *self._tags))
            return self.stale_value, True
        if isinstance(value, Skipped):
            held: Skipped[Any] = value  # pyright: ignore[reportUnknownVariableType]
            return held.value, False
        return value, True

    @property
    def ttl(self) -> float | None | Unset:
        """Seconds that the value is to stay fresh, if the loader has said so.

        Raises:
            TypeError: What is assigned is no number of seconds.
            ValueError: It is not above 0.
        """
        return self._ttl

    @ttl.setter
    def ttl(self, ttl: Ttl) -> None:
        self._ttl = check_ttl("ttl", ttl)

    @property
    def tags(self) -> list[str]:
        """The tags that the loader has added.

        Raises:
            TypeError: What is assigned is no str and no sequence of them.
            ValueError: One is empty or too long, or there are too many.
        """
        return self._tags

    @tags.setter
    def tags(self, tags: str | Sequence[str]) -> None:
        self._tags[:] = check_tags("tags", tags)  # the same list: the cache holds it, too

    def add_tags(self, *tags: str) -> None:
        """Give the value that is being loaded more tags; when the load has ended, to no effect.

        Raises:
            TypeError: One is no str.
            ValueError: One is empty or too long, or there are too many.
        """
        self.tags = [*self._tags, *tags]

    def not_modified(self) -> Any:
        """Return what a loader returns to say that `stale_value` is still the right value.

        It is stored again, with a new ttl and the tags that it had.

        Raises:
            ValueError: There is no such value.
        """
        if self.stale_value is MISSING:
            raise ValueError(
                "not_modified() needs a value that is held, and there is none: "
                "look at stale_value first, and return the value itself"
            )
        return NotModified(self)

    def skip(self, value: V) -> V:
        """Return what a loader returns to answer with *value* and store nothing.

        What is held stays as it is.
        """
        return cast("V", Skipped(value))

    def __repr__(self) -> str:
        return "LoadContext()"


def call_of(loader: Any, key: object) -> tuple[Callable[[], Any], LoadContext | None]:
    """Return *loader* as a call without arguments, and the context that it asks for.

    Raises:
        TypeError: It cannot be called with nothing or with one `LoadContext`.
    """
    if not callable(loader):
        raise TypeError(
            f"loader must be a callable that takes nothing or one LoadContext, "
            f"not {type(loader).__name__}"
        )
    if isinstance(loader, FunctionType):
        code = loader.__code__
        needed = code.co_argcount - len(loader.__defaults__ or ())
        named = code.co_kwonlyargcount - len(loader.__kwdefaults__ or ())
    else:
        try:
            parameters = inspect.signature(loader).parameters.values()
        except ValueError:  # a builtin that does not tell
            return cast("Callable[[], Any]", loader), None
        required = [
            each.kind
            for each in parameters
            if each.default is each.empty
            and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        ]
        named = required.count(inspect.Parameter.KEYWORD_ONLY)
        needed = len(required) - named
    if needed > 1 or named:
        raise TypeError(
            f"loader needs {needed + named} arguments, but it is called with nothing or "
            "with one LoadContext: wrap it, as in `lambda: fetch(symbol)`"
        )
    if not needed:
        return cast("Callable[[], Any]", loader), None
    context = LoadContext(key)
    return partial(loader, context), context


def isolated(options: CacheOptions) -> Context:
    """Return a context that knows of the running one no more than the options name."""
    context = Context()
    for variable in (*options.vary_on, *options.propagate):
        value = variable.get(MISSING)
        if value is not MISSING:
            context.run(variable.set, value)
    return context
