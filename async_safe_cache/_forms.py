"""Arguments in a file: every accepted value has one form in JSON, and comes back from it exact.

JSON has six kinds of values, Python has more:

    itself           None, bool, str, int, finite float
    [type, *parts]   everything else; parts are forms

    (1, Decimal("2.50"))  ->  ["tuple", 1, ["Decimal", "2.50"]]

The types are those of one table, which reading looks up by name: data never chooses what
is imported or called. A value of any other type, subclasses of these included, has no
form; nor has what is too deep or too large. NaN has one that reading refuses.

Invariant: no text makes reading do more than its length allows, or raise what is not
named here. Neither way runs code of the user's.

Source: PEP 495 (fold).
"""

import ipaddress
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import NoneType
from typing import Any, Final, NoReturn, cast, final
from uuid import UUID
from zoneinfo import ZoneInfo

__all__ = [
    "DAMAGE",
    "MAX_LINE",
    "Forms",
    "NoFormError",
    "UnknownZoneError",
    "dump",
    "parse",
    "value",
]

MAX_LINE: Final = 64 * 1024
"""Bytes of a line of JSON."""

MAX_DEPTH: Final = 64
"""Levels of one value."""

DAMAGE: Final = (ValueError, TypeError, ArithmeticError)
"""What reading raises about a form that is none, as the constructors of the types do."""


class NoFormError(Exception):
    """A value has no form, or none that is small enough."""


class UnknownZoneError(Exception):
    """A time zone that this system has no data for: nothing is wrong with the form."""


# ---- the types: taken apart, put together


@dataclass(frozen=True, slots=True)
class _Kind:
    cls: type
    apart: Callable[[Any], Iterable[object]]
    together: Callable[..., object]
    # The types that each part may have, all exact; None: any parts.
    parts: tuple[tuple[type, ...], ...] | None


_TEXT: Final = ((str,),)
_ZONES: Final = (NoneType, timezone, ZoneInfo)
# Without a dot: no name leads out of the folder, or is taken for a module's.
_ZONE_NAME: Final = re.compile(r"[\w+-]+(?:/[\w+-]+)*", re.ASCII)


def _str(text: str) -> str:
    return bytes.fromhex(text).decode("utf-8", "surrogatepass")


def _int(text: str) -> int:
    return int(text, 16)


def _decimal(text: str) -> Decimal:
    made = Decimal(text)
    if made.is_nan():  # also what a context that traps nothing makes of nonsense
        raise ValueError
    return made


def _infinity(text: str) -> float:
    made = float(text)
    if not math.isinf(made):
        raise ValueError
    return made


def _moment_parts(value: datetime | time) -> tuple[object, ...]:
    return (value.replace(tzinfo=None, fold=0).isoformat(), value.fold, value.tzinfo)


def _moment(cls: Any) -> Callable[..., object]:
    def together(text: str, fold: int, zone: timezone | ZoneInfo | None) -> object:
        made = cls.fromisoformat(text)
        if made.tzinfo is not None:
            raise ValueError
        return made.replace(tzinfo=zone, fold=fold)

    return together


def _timezone(offset: timedelta, name: str) -> timezone:
    made = timezone(offset)
    return made if made.tzname(None) == name else timezone(offset, name)


def _zone(name: str) -> ZoneInfo:
    if _ZONE_NAME.fullmatch(name) is None:
        raise ValueError
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise UnknownZoneError from None


def _windows_path_parts(value: PureWindowsPath) -> tuple[object, ...]:
    text = str(value)
    again = PureWindowsPath(text)
    # Some versions print a folder named like a drive as if it were one.
    if (again.drive, again.parts) != (value.drive, value.parts):
        raise NoFormError
    return (text,)


def _dict(*parts: object) -> dict[object, object]:
    made = dict(zip(parts[::2], parts[1::2], strict=True))
    if 2 * len(made) != len(parts):
        raise ValueError
    return made


def _members(cls: Callable[[Iterable[object]], Any]) -> Callable[..., object]:
    def together(*parts: object) -> object:
        made = cls(parts)
        if len(made) != len(parts):
            raise ValueError
        return made

    return together


def _by_text(cls: type, made: type | None = None) -> _Kind:
    """For types whose text is one to one with their value."""
    return _Kind(cls, lambda value: (str(value),), made or cls, _TEXT)


_KINDS: Final = (
    # The first three only for what is not a form itself. A pair of surrogates is two
    # characters to Python and one to JSON; digits beyond a limit are refused by int().
    _Kind(str, lambda value: (value.encode("utf-8", "surrogatepass").hex(),), _str, _TEXT),
    _Kind(int, lambda value: (f"{value:x}",), _int, _TEXT),
    _Kind(float, lambda value: (str(value),), _infinity, _TEXT),
    _Kind(bytes, lambda value: (value.hex(),), bytes.fromhex, _TEXT),
    _Kind(complex, lambda value: (value.real, value.imag), complex, ((float,), (float,))),
    _Kind(Decimal, lambda value: (str(value),), _decimal, _TEXT),
    # int(): the parts may be integers of a foreign class.
    _Kind(
        Fraction,
        lambda value: (int(value.numerator), int(value.denominator)),
        Fraction,
        ((int,), (int,)),
    ),
    _Kind(UUID, lambda value: (value.hex,), UUID, _TEXT),
    _Kind(date, lambda value: (value.isoformat(),), date.fromisoformat, _TEXT),
    _Kind(datetime, _moment_parts, _moment(datetime), ((str,), (int,), _ZONES)),
    _Kind(time, _moment_parts, _moment(time), ((str,), (int,), _ZONES)),
    _Kind(
        timedelta,
        lambda value: (value.days, value.seconds, value.microseconds),
        timedelta,
        ((int,), (int,), (int,)),
    ),
    _Kind(
        timezone,
        lambda value: (value.utcoffset(None), value.tzname(None)),
        _timezone,
        ((timedelta,), (str,)),
    ),
    _Kind(ZoneInfo, lambda value: (value.key,), _zone, _TEXT),
    # A path of the other system can be named, not opened.
    _by_text(PurePosixPath),
    _by_text(PosixPath, PosixPath if os.name == "posix" else PurePosixPath),
    _Kind(PureWindowsPath, _windows_path_parts, PureWindowsPath, _TEXT),
    _Kind(
        WindowsPath,
        _windows_path_parts,
        WindowsPath if os.name == "nt" else PureWindowsPath,
        _TEXT,
    ),
    _by_text(ipaddress.IPv4Address),
    _by_text(ipaddress.IPv6Address),
    _by_text(ipaddress.IPv4Network),
    _by_text(ipaddress.IPv6Network),
    _by_text(ipaddress.IPv4Interface),
    _by_text(ipaddress.IPv6Interface),
    _Kind(
        range, lambda value: (value.start, value.stop, value.step), range, ((int,), (int,), (int,))
    ),
    # copy() and tuple(): one moment, while other threads change it.
    _Kind(tuple, tuple, lambda *parts: parts, None),
    _Kind(list, tuple, lambda *parts: [*parts], None),
    _Kind(
        dict, lambda value: [part for item in value.copy().items() for part in item], _dict, None
    ),
    _Kind(set, lambda value: value.copy(), _members(set), None),
    _Kind(frozenset, tuple, _members(frozenset), None),
)
_BY_TYPE: Final = {kind.cls: kind for kind in _KINDS}
_BY_NAME: Final = {kind.cls.__name__: kind for kind in _KINDS}
_SIZED: Final = frozenset({str, bytes, tuple, list, dict, set, frozenset})


# ---- values and forms


@final
class Forms:
    """Makes the forms of one line; the values end when they cannot fit into it."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_LINE

    def form(self, value: object, depth: int = 0) -> object:
        """Return the form of *value*, which is *depth* levels down.

        Raises:
            NoFormError: It has none, or more of it than a line can hold.
        """
        cls = type(value)
        self.left -= 1
        if value is None or cls is bool:
            return value
        # Before anything looks the class up: a metaclass of the user's may hash it.
        kind = _BY_TYPE.get(cls) if type(cls) is type or cls is Fraction else None
        if kind is None:
            raise NoFormError
        # What follows is counted before it is made. A list that holds one list twice,
        # which holds another twice, ... is short but endless to walk.
        size = len(cast("Any", value)) if cls in _SIZED else 0
        if cls is int:
            size = cast("int", value).bit_length() // 4
        if self.left < size:
            raise NoFormError
        if cls is str and _is_unicode(cast("str", value)):
            self.left -= size
            return value
        # Fewer digits than the lowest limit that int() can be given.
        if cls is int and size <= 256:
            return value
        if cls is float and math.isfinite(cast("float", value)):
            return value
        if depth == MAX_DEPTH:
            raise NoFormError
        return [cls.__name__, *[self.form(part, depth + 1) for part in kind.apart(value)]]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def value(form: object) -> object:
    """Return the value of a form.

    Raises:
        ValueError, TypeError, ArithmeticError: It is none.
        UnknownZoneError: It names a time zone that is unknown here.
    """
    if form is None or isinstance(form, bool | str | int | float):
        return form
    if not isinstance(form, list):
        raise TypeError
    name, *parts = cast("list[object]", form)
    kind = _BY_NAME.get(cast("str", name))
    if kind is None:
        raise ValueError
    values = [value(part) for part in parts]
    if kind.parts is not None:
        for part, types in zip(values, kind.parts, strict=True):
            if type(part) not in types:
                raise ValueError
    return kind.together(*values)


# ---- JSON

_encode = json.JSONEncoder(separators=(",", ":")).encode
# Without its end, too: to look for one from every quote would take quadratic time.
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?')
_BRACKET: Final = re.compile(r"[\[\]{}]")


def dump(form: object) -> bytes:
    """Return *form*, or what is made of forms, as JSON without a line end."""
    return _encode(form).encode("ascii")


def _refuse(_: str) -> NoReturn:
    raise ValueError


def parse(line: bytes) -> object:
    """Return what a line of JSON says; a ValueError if it says nothing or is too deep."""
    if len(line) > MAX_LINE:
        raise ValueError
    text = line.decode("ascii")
    # The parser of JSON goes down as deep as the text does: first see how deep.
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH + 1:
            raise ValueError
    parsed: object = json.loads(text, parse_constant=_refuse)
    return parsed
