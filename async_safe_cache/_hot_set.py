"""The file of a hot set: the calls that were read most, to be loaded again after a restart.

It holds names of functions and arguments, never values: nothing in it can be stale,
and nothing is secret but the arguments.

    line 1   {"format", "version", "application", "calls", "bytes", "sha256", "header"}
    then     one line per call, the most valuable first: [function, reads, seconds, *arguments]

`bytes` and `sha256` are of all lines but the first, `header` is the SHA-256 of the first
without `header`. So a file that was cut or changed anywhere is refused, as a whole.

JSON has six kinds of values, Python has more. Each argument has one form:

    itself           None, bool, str, int, finite float
    [type, *parts]   everything else; parts are forms

    (1, Decimal("2.50"))  ->  ["tuple", 1, ["Decimal", "2.50"]]

The types are those of one table, which reading looks up by name: data never chooses what
is imported or called. A call with an argument of any other type, subclasses of these
included, is not written.

Invariant: what is written can be read. Each line is read back before it is kept, for one
that cannot be read would cost the whole file.

Sources: PEP 495 (fold); the atomic replacement of POSIX rename(2), with fsync(2).
"""

import io
import ipaddress
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from hashlib import sha256
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import NoneType
from typing import Any, Final, NamedTuple, NoReturn, cast, final
from uuid import UUID
from zoneinfo import ZoneInfo

from .errors import HotSetError

__all__ = ["HotCall", "read_hot_set", "write_hot_set"]

FORMAT: Final = "async_safe_cache hot set"
VERSION: Final = 1

MAX_FILE: Final = 64 * 1024**2
"""Bytes of a file."""

MAX_CALLS: Final = 1_000_000
"""Calls in a file."""

MAX_LINE: Final = 64 * 1024
"""Bytes of a line: of one call, or of the header."""

MAX_DEPTH: Final = 64
"""Levels of one argument."""


@dataclass(frozen=True, slots=True)
class HotCall:
    """A call that was read often.

    Attributes:
        function: Name of the function.
        arguments: What it was called with; not shown by `repr`.
        reads: How often it was read.
        seconds: How long its load took.
    """

    function: str
    arguments: tuple[object, ...] = field(repr=False)
    reads: float
    seconds: float


class _LeftOutError(Exception):
    """An argument has no form, or none that is small enough."""


class _UnknownZoneError(Exception):
    """A time zone that this system has no data for: nothing is wrong with the file."""


# What the constructors of the table raise about parts that no form of theirs has.
_DAMAGE: Final = (ValueError, TypeError, ArithmeticError)


# ---- the types: taken apart, put together


class _Kind(NamedTuple):
    cls: type
    apart: Callable[[Any], Iterable[object]]
    together: Callable[..., object]
    # The types that each part may have, all exact; None: any parts.
    parts: tuple[tuple[type, ...], ...] | None


_TEXT: Final = ((str,),)
_ZONES: Final = (NoneType, timezone, ZoneInfo)
# Without a dot: no name leads out of the folder, or is taken for a module's.
_ZONE_NAME: Final = re.compile(r"[\w+-]+(?:/[\w+-]+)*", re.ASCII)


def _decimal_parts(value: Decimal) -> tuple[object, ...]:
    if value.is_nan():
        raise _LeftOutError
    return (str(value),)


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
        raise _UnknownZoneError from None


def _windows_path_parts(value: PureWindowsPath) -> tuple[object, ...]:
    text = str(value)
    again = PureWindowsPath(text)
    # Some versions print a folder named like a drive as if it were one.
    if (again.drive, again.parts) != (value.drive, value.parts):
        raise _LeftOutError
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
    _Kind(
        str,
        lambda value: (value.encode("utf-8", "surrogatepass").hex(),),
        lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
        _TEXT,
    ),
    _Kind(int, lambda value: (f"{value:x}",), lambda text: int(text, 16), _TEXT),
    _Kind(float, lambda value: (str(value),), _infinity, _TEXT),
    _Kind(bytes, lambda value: (value.hex(),), bytes.fromhex, _TEXT),
    _Kind(complex, lambda value: (value.real, value.imag), complex, ((float,), (float,))),
    _Kind(Decimal, _decimal_parts, _decimal, _TEXT),
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
    # tuple(): one moment, while other threads change it.
    _Kind(tuple, tuple, lambda *parts: parts, None),
    _Kind(list, tuple, lambda *parts: [*parts], None),
    _Kind(
        dict, lambda value: [part for item in tuple(value.items()) for part in item], _dict, None
    ),
    _Kind(set, tuple, _members(set), None),
    _Kind(frozenset, tuple, _members(frozenset), None),
)
_BY_TYPE: Final = {kind.cls: kind for kind in _KINDS}
_BY_NAME: Final = {kind.cls.__name__: kind for kind in _KINDS}
_SIZED: Final = frozenset({str, bytes, tuple, list, dict, set, frozenset})


# ---- a call and its line


@final
class _Forms:
    """Forms of the values of one line, which end when they cannot fit into it."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_LINE

    def form(self, value: object, depth: int = 0) -> object:
        """Return the form of *value*, which is *depth* levels down.

        Raises:
            _LeftOutError: It has none, or more of it than a line can hold.
        """
        cls = type(value)
        # Before anything looks the class up: a metaclass of the user's may hash it.
        kind = _BY_TYPE.get(cls) if type(cls) is type or cls is Fraction else None
        # What follows is counted before it is made. A list that holds one list twice,
        # which holds another twice, ... is short but endless to walk.
        self.left -= 1
        if self.left < (len(cast("Any", value)) if cls in _SIZED else 0):
            raise _LeftOutError
        if value is None or cls is bool:
            return value
        if cls is str:
            self.left -= len(cast("str", value))
            if _is_unicode(cast("str", value)):
                return value
        elif cls is int:
            bits = cast("int", value).bit_length()
            if bits <= 1024:  # fewer digits than the lowest limit that int() can be given
                return value
            self.left -= bits // 4
        elif cls is float:
            if math.isfinite(cast("float", value)):
                return value
            if math.isnan(cast("float", value)):
                raise _LeftOutError
        if kind is None or depth == MAX_DEPTH or self.left < 0:
            raise _LeftOutError
        return [cls.__name__, *[self.form(part, depth + 1) for part in kind.apart(value)]]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _value(form: object) -> object:
    """Return the value of a form.

    Raises:
        ValueError, TypeError, ArithmeticError: It is none.
        _UnknownZoneError: It names a time zone that is unknown here.
    """
    if isinstance(form, dict):
        raise ValueError
    if not isinstance(form, list):
        return form
    name, *parts = cast("list[object]", form)
    kind = _BY_NAME.get(cast("str", name))
    if kind is None:
        raise ValueError
    values = [_value(part) for part in parts]
    if kind.parts is not None and (
        len(values) != len(kind.parts)
        or any(type(value) not in types for value, types in zip(values, kind.parts, strict=True))
    ):
        raise ValueError
    return kind.together(*values)


_encode = json.JSONEncoder(separators=(",", ":")).encode
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACKET: Final = re.compile(r"[\[\]{}]")


def _refuse(_: str) -> NoReturn:
    raise ValueError


def _parse(line: bytes) -> object:
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


def _measure(number: float) -> float:
    """Return *number*; what a strange clock measured counts as nothing."""
    return float(number) if 0 <= number <= sys.float_info.max else 0.0


def _line(call: HotCall) -> bytes | None:
    forms = _Forms()
    try:
        line = _encode(
            [
                forms.form(call.function),
                _measure(call.reads),
                _measure(call.seconds),
                *[forms.form(argument) for argument in call.arguments],
            ]
        ).encode("ascii")
        _call(line + b"\n")
    except (_LeftOutError, _UnknownZoneError, *_DAMAGE):
        return None
    return line + b"\n"


def _call(line: bytes) -> HotCall:
    parsed = _parse(line)
    if not isinstance(parsed, list):
        raise TypeError
    function, reads, seconds, *arguments = [_value(form) for form in cast("list[object]", parsed)]
    if not (isinstance(function, str) and isinstance(reads, float) and isinstance(seconds, float)):
        raise TypeError
    if not (0 <= reads < math.inf and 0 <= seconds < math.inf):
        raise ValueError
    return HotCall(function, tuple(arguments), reads, seconds)


# ---- the file


def _header(application: str, calls: object, size: object, digest: object) -> bytes:
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "application": _Forms().form(application),
        "calls": calls,
        "bytes": size,
        "sha256": digest,
    }
    fields["header"] = sha256(_encode(fields).encode()).hexdigest()
    return _encode(fields).encode() + b"\n"


_BEGINNING: Final = _encode({"format": FORMAT}).encode()[:-1]


def write_hot_set(
    path: str | os.PathLike[str], application: str, calls: Iterable[HotCall]
) -> tuple[int, int]:
    """Write *calls* to a file, in place of the one that is there. Blocks: call it in a thread.

    The file is there whole, or the old one stays. It is readable by its owner only.
    Calls beyond `MAX_CALLS` or `MAX_FILE`, the least valuable ones, are not written.

    Args:
        path: The file.
        application: Its owner's name, which a reader has to know.
        calls: In any order; written by reads x seconds, then by name.

    Returns:
        How many were written; how many were left out because an argument cannot be.

    Raises:
        OSError: The file cannot be written.
        ValueError: *application* is too long for a line.

    Complexity: O(n log n) of the calls, and the bytes of the file in memory.
    """
    path = os.fspath(path)
    try:
        room = MAX_FILE - len(_header(application, MAX_CALLS, MAX_FILE, sha256().hexdigest()))
    except _LeftOutError:
        room = 0
    if room < MAX_FILE - MAX_LINE:
        raise ValueError(f"application is too long: its line in the file holds {MAX_LINE:,} bytes")
    ranked = sorted(calls, key=_rank)
    lines: list[bytes] = []
    left_out = 0
    digest = sha256()
    size = 0
    for call in ranked:
        line = _line(call)
        if line is None:
            left_out += 1
            continue
        if len(lines) == MAX_CALLS or size + len(line) > room:
            break
        lines.append(line)
        digest.update(line)
        size += len(line)
    _replace(path, [_header(application, len(lines), size, digest.hexdigest()), *lines])
    return len(lines), left_out


def _rank(call: HotCall) -> tuple[float, str]:
    return (-_measure(call.reads) * _measure(call.seconds), call.function)


def _replace(path: str, lines: list[bytes]) -> None:
    folder = os.path.dirname(path) or os.curdir
    # A name of its own in the same file system, created with mode 0600.
    handle, temporary = tempfile.mkstemp(prefix=".hot_set-", suffix=".tmp", dir=folder)
    try:
        with open(handle, "wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    # Not every system can sync a folder; the new file is in place either way.
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def read_hot_set(path: str | os.PathLike[str], application: str) -> list[HotCall]:
    """Return the calls of a file, the most valuable first. Blocks: call it in a thread.

    A call in a time zone that this system does not know is left out.

    Args:
        path: The file.
        application: The name that it was written under.

    Raises:
        HotSetError: It is not a whole and unaltered hot set of *application*.
        OSError: It cannot be read: FileNotFoundError if it is not there.

    Complexity: O(bytes), which are bounded, in time and in memory.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE:
            raise HotSetError(path, "too large")
        line = file.readline(MAX_LINE + 1)
        count, size, digest = _read_header(path, application, line)
        body = file.read(size + 1)
    if len(body) < size:
        raise HotSetError(path, "truncated")
    if len(body) > size or sha256(body).hexdigest() != digest:
        raise HotSetError(path, "altered")
    calls = _read_calls(body)
    # Outside of the handler: what was caught there may show an argument.
    if calls is None or len(calls) != count:
        raise HotSetError(path, "altered")
    return [call for call in calls if call is not None]


def _read_header(path: str, application: str, line: bytes) -> tuple[int, int, object]:
    begins = line[: len(_BEGINNING)]
    if len(line) <= MAX_LINE and not line.endswith(b"\n"):
        raise HotSetError(path, "truncated" if _BEGINNING.startswith(begins) else "not a hot set")
    try:
        parsed = _parse(line)
    except ValueError:
        parsed = None
    header = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
    if header.get("format") != FORMAT:
        raise HotSetError(path, "altered" if begins == _BEGINNING else "not a hot set")
    if header.get("version") != VERSION:
        raise HotSetError(path, "version")
    if header.get("application") != _Forms().form(application):
        raise HotSetError(path, "application")
    count, size, digest = header.get("calls"), header.get("bytes"), header.get("sha256")
    # Byte by byte: nothing in the line is without meaning.
    if line != _header(application, count, size, digest):
        raise HotSetError(path, "altered")
    if not isinstance(count, int) or not isinstance(size, int) or min(count, size) < 0:
        raise HotSetError(path, "altered")
    if count > MAX_CALLS or size > MAX_FILE:
        raise HotSetError(path, "too large")
    return count, size, digest


def _read_calls(body: bytes) -> list[HotCall | None] | None:
    """Return the calls, None in place of one in an unknown zone; None if a line is damaged."""
    calls: list[HotCall | None] = []
    try:
        for line in io.BytesIO(body):
            try:
                calls.append(_call(line))
            except _UnknownZoneError:
                calls.append(None)
    except _DAMAGE:
        return None
    return calls
