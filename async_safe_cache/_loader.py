"""A user's loader, as a call without arguments."""

import inspect
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, cast, final

__all__ = ["LoadContext", "call_of"]


@final
class LoadContext:
    """What a loader that asks for it is told.

    Attributes:
        key: The key, as the caller gave it.
    """

    __slots__ = ("key",)

    def __init__(self, key: object) -> None:
        self.key = key

    def __repr__(self) -> str:
        return "LoadContext()"


def call_of(loader: Any, key: object) -> Callable[[], Any]:
    """Return *loader* as a call without arguments.

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
            return cast("Callable[[], Any]", loader)
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
    return partial(loader, LoadContext(key)) if needed else cast("Callable[[], Any]", loader)
