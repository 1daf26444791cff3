"""The file of a hot set: the calls that were read most, to be loaded again after a restart.

It holds names of functions and arguments, never values: nothing in it can be stale,
and nothing is secret but the arguments.

    line 1   {"format", "version", "application", "calls", "bytes", "sha256", "header"}
    then     one line per call, the most valuable first: [function, reads, seconds, *arguments]

`bytes` and `sha256` are of all lines but the first, `header` is the SHA-256 of the first
without `header`. So a file that was cut or changed anywhere is refused, as a whole.

Arguments are written in the forms of `_forms`. A call with one that has none is not written.

Invariant: what is written can be read. Each line is read back before it is kept, for one
that cannot be read would cost the whole file.

Source: the atomic replacement of POSIX rename(2), with fsync(2).
"""

import heapq
import io
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Final, cast

from ._forms import DAMAGE, MAX_LINE, Forms, NoFormError, UnknownZoneError, dump, parse, value
from .errors import HotSetError

__all__ = ["HotCall", "read_hot_set", "write_hot_set"]

FORMAT: Final = "async_safe_cache hot set"
VERSION: Final = 1

MAX_FILE: Final = 64 * 1024**2
"""Bytes of a file."""

MAX_CALLS: Final = 1_000_000
"""Calls in a file."""

RUN: Final = 1_000
"""Calls that are sorted at once."""

MAX_NAME: Final = 1_024
"""Characters of an application's name."""


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


# ---- a call and its line


def _measure(number: float) -> float:
    """Return *number*; what a strange clock measured counts as nothing."""
    return float(number) if 0 <= number <= sys.float_info.max else 0.0


def _line(call: HotCall) -> bytes | None:
    forms = Forms()
    measures = (_measure(call.reads), _measure(call.seconds))
    try:
        values = (call.function, *measures, *call.arguments)
        line = dump([forms.form(each) for each in values]) + b"\n"
        _call(line)
    except (NoFormError, UnknownZoneError, *DAMAGE):
        return None
    return line


def _call(line: bytes) -> HotCall:
    parsed = parse(line)
    if not isinstance(parsed, list):
        raise TypeError
    function, reads, seconds, *arguments = [value(form) for form in cast("list[object]", parsed)]
    if not (isinstance(function, str) and isinstance(reads, float) and isinstance(seconds, float)):
        raise TypeError
    if not (0 <= reads < math.inf and 0 <= seconds < math.inf):
        raise ValueError
    return HotCall(function, tuple(arguments), reads, seconds)


# ---- the file


def _name(application: str) -> object:
    if len(application) > MAX_NAME:
        raise ValueError(f"application is a name: at most {MAX_NAME:,} characters")
    return Forms().form(str.__str__(application))  # of a StrEnum: its text


def _header(application: str, calls: object, size: object, digest: object) -> bytes:
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "application": _name(application),
        "calls": calls,
        "bytes": size,
        "sha256": digest,
    }
    fields["header"] = sha256(dump(fields)).hexdigest()
    return dump(fields) + b"\n"


_BEGINNING: Final = dump({"format": FORMAT})[:-1]


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
        ValueError: *application* is longer than `MAX_NAME`.

    Complexity: O(n log n) of the calls, and the bytes of the file in memory.
    """
    path = os.fspath(path)
    lines: list[bytes] = []
    left_out = 0
    digest = sha256()
    size = 0
    for call in _ranked(calls):
        line = _line(call)
        if line is None:
            left_out += 1
            continue
        if len(lines) == MAX_CALLS or size + len(line) > MAX_FILE - MAX_LINE:
            break
        lines.append(line)
        digest.update(line)
        size += len(line)
    _replace(path, [_header(application, len(lines), size, digest.hexdigest()), *lines])
    return len(lines), left_out


def _ranked(calls: Iterable[HotCall]) -> Iterator[HotCall]:
    """Sort in runs: no other thread, and no event loop in one, gets a turn during a sort."""
    rest = iter(calls)
    runs = iter(lambda: sorted(islice(rest, RUN), key=_rank), [])
    return heapq.merge(*runs, key=_rank)


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
        ValueError: *application* is longer than `MAX_NAME`.

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
        parsed = parse(line)
    except ValueError:
        parsed = None
    header = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
    if header.get("format") != FORMAT:
        raise HotSetError(path, "altered" if begins == _BEGINNING else "not a hot set")
    if header.get("version") != VERSION:
        raise HotSetError(path, "version")
    if header.get("application") != _name(application):
        raise HotSetError(path, "application")
    count, size, digest = header.get("calls"), header.get("bytes"), header.get("sha256")
    # Byte by byte: nothing in the line is without meaning.
    if line != _header(application, count, size, digest):
        raise HotSetError(path, "altered")
    if type(count) is not int or type(size) is not int or size < 0:
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
            except UnknownZoneError:
                calls.append(None)
    except DAMAGE:
        return None
    return calls
