"""A user's loader, as a call without arguments."""

import inspect
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, cast, final

from .options import check_tags

__all__ = ["LoadContext", "call_of"]


@final
class LoadContext:
    """What a loader that asks for it is told.

    Attributes:
        key: The key, as the caller gave it.
        tags: The tags that the loader has added.
    """

    __slots__ = ("key", "tags")

    def __init__(self, key: object) -> None:
        self.key = key
        self.tags: list[str] = []

    def add_tags(self, *tags: str) -> None:
        """Give the value that is being loaded more tags; when the load has ended, to no effect.

        Raises:
            TypeError: One is no str.
            ValueError: One is empty or too long, or there are too many.
        """
        self.tags[:] = check_tags("tags", [*self.tags, *tags])

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
