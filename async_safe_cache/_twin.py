"""A second exception equal to a first one, which holds nobody's frames.

A remembered failure is raised for hours. Were it one object, the frames of
whoever it was raised for last, and with them a request or an event loop, would
live as long. So each raise gets a twin. Where none can be made that tells all
that the first one told, the exception is its own twin.
"""

import copy
from typing import Any, Final

__all__ = ["twin"]

# The descriptors themselves: a class may forbid setting attributes on its exceptions.
_ARGS: Final[Any] = BaseException.__dict__["args"]
_CAUSE: Final[Any] = BaseException.__dict__["__cause__"]
_SUPPRESS: Final[Any] = BaseException.__dict__["__suppress_context__"]

DEPTH: Final = 8
"""Causes of causes that are followed; further ones are dropped."""


def twin(error: BaseException, depth: int = DEPTH) -> BaseException:
    """Return an equal exception that was never raised, or *error* itself.

    Classes of the user's are made without running their `__init__` again.
    Complexity: O(attributes), for each cause.
    """
    kind: type[BaseException] = type(error)
    native = next(cls for cls in kind.__mro__ if cls.__module__ == "builtins")
    if any(cls.__dict__.get("__slots__") for cls in kind.__mro__[: kind.__mro__.index(native)]):
        return error
    try:
        made: Any
        if native.__basicsize__ == BaseException.__basicsize__:
            made = kind.__new__(kind, *error.args)
            _ARGS.__set__(made, error.args)
        elif kind is native and not issubclass(kind, BaseExceptionGroup):
            made = copy.copy(error)  # its fields of C are known to its own __reduce__
        else:
            return error
        made.__dict__.update(error.__dict__)
    except Exception:  # noqa: BLE001 - a class with a __new__ of its own
        return error
    if type(made) is not kind or made is error:
        return error
    if "__notes__" in made.__dict__:
        made.__dict__["__notes__"] = list(made.__dict__["__notes__"])
    cause = error.__cause__
    if cause is not None and depth:
        _CAUSE.__set__(made, twin(cause, depth - 1))
    _SUPPRESS.__set__(made, error.__suppress_context__)
    result: BaseException = made
    return result
