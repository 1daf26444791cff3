"""The file of a hot set: exact or refused, whole or the old one."""

import contextlib
import enum
import ipaddress
import json
import math
import os
import random
import signal
import stat
import struct
import sys
import threading
import time as clocks
import traceback
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from hashlib import sha256
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import async_safe_cache
from async_safe_cache import CacheError, HotSetError, _forms, _hot_set
from async_safe_cache._forms import MAX_DEPTH, MAX_LINE
from async_safe_cache._hot_set import MAX_FILE, HotCall, read_hot_set, write_hot_set

SECRET = "hunter2"
BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")


def hot(*arguments: object, function: str = "m.f", reads: float = 2.0) -> HotCall:
    return HotCall(function, arguments, reads, 0.5)


def temporaries(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir() if each.name.startswith(".hot_set-")]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a path that the examples of one property write over and over."""
    return tmp_path_factory.mktemp("hot") / "set"


def exact(value: Any) -> object:
    """Return what tells *value* from all others, types included, whatever `==` says."""
    cls = type(value)
    if cls is float:
        return (cls, struct.pack("<d", value))
    if cls is complex:
        return (cls, exact(value.real), exact(value.imag))
    if cls is Decimal:
        return (cls, value.as_tuple())
    if cls is datetime or cls is time:
        bare = value.replace(tzinfo=None, fold=0)
        return (cls, bare, value.fold, exact(value.tzinfo))
    if cls is timezone:
        return (cls, value.utcoffset(None), value.tzname(None))
    if cls is ZoneInfo:
        return (cls, value.key)
    if cls is range:
        return (cls, value.start, value.stop, value.step)
    if isinstance(value, PurePath):
        return (cls, value.drive, value.root, value.parts)
    if cls is tuple or cls is list:
        return (cls, *map(exact, value))
    if cls is dict:
        return (cls, *[(exact(k), exact(v)) for k, v in value.items()])
    if cls is set or cls is frozenset:
        return (cls, frozenset(map(exact, value)))
    return (cls, value)


# ---- what comes back is what was written

surrogates = st.text(st.sampled_from('a\ud83d\ude00\udcff\U0001f600é\x00"\\[]{}\n'))
strings = st.text() | st.text(st.characters(exclude_categories=[])) | surrogates
whole = st.integers() | st.builds(lambda n, by: n << by, st.integers(), st.integers(0, 9000))
floats = st.floats(allow_nan=False)
offsets = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))
zones = (
    st.sampled_from([None, UTC, BERLIN, NEW_YORK, ZoneInfo("Etc/GMT+5")])
    | st.builds(timezone, offsets)
    | st.builds(timezone, offsets, strings)
)
paths = st.lists(st.text(st.sampled_from("ab.:/\\ \udcff"), max_size=5), max_size=4)
scopes = st.sampled_from(["", "%eth0", "%1"])
plain = (
    st.none()
    | st.booleans()
    | strings
    | whole
    | floats
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.builds(complex, floats, floats)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
    | st.dates()
    | st.datetimes(timezones=zones)
    | st.builds(lambda t, fold: t.replace(fold=fold), st.datetimes(), st.sampled_from([0, 1]))
    | st.builds(
        lambda t, z, fold: t.replace(tzinfo=z, fold=fold), st.times(), zones, st.integers(0, 1)
    )
    | st.timedeltas()
    | zones
    | st.builds(lambda parts: PurePosixPath(*parts), paths)
    | st.builds(lambda parts: Path(*parts), paths)
    | st.sampled_from(["C:\\a\\b", "\\\\host\\share\\x", "a/b", "c:x", ""]).map(PureWindowsPath)
    | st.ip_addresses()
    | st.builds(lambda a, s: ipaddress.IPv6Address(f"{a}{s}"), st.ip_addresses(v=6), scopes)
    | st.builds(lambda a, n: ipaddress.ip_interface((a, n)), st.ip_addresses(), st.integers(0, 32))
    | st.builds(
        lambda a, n: ipaddress.ip_network((a, n), strict=False),
        st.ip_addresses(),
        st.integers(0, 32),
    )
    | st.builds(range, whole, whole, whole.filter(bool))
)
hashables = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=6,
)
arguments = st.recursive(
    hashables,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.sets(hashables, max_size=4)
    ),
    max_leaves=8,
)


@given(name=strings, given=st.lists(arguments, max_size=3))
@settings(max_examples=300, deadline=None)
def test_every_accepted_argument_comes_back_exact(
    scratch: Path, name: str, given: list[object]
) -> None:
    """In type and value, at every level."""
    call = HotCall(name, tuple(given), 3.0, 0.25)
    assert write_hot_set(scratch, "shop", [call]) == (1, 0)
    [back] = read_hot_set(scratch, "shop")
    assert (back.function, back.reads, back.seconds) == (name, 3.0, 0.25)
    assert exact(back.arguments) == exact(call.arguments)


SAMPLES: list[object] = [
    None,
    True,
    0,
    2**64,
    -(10**6000),
    0.1,
    -0.0,
    math.inf,
    -math.inf,
    5e-324,
    "",
    "\ud800",
    "\ud83d\ude00",
    "\U0001f600",
    "[{" * 200,
    b"",
    b"\x00\xff",
    complex(-0.0, math.inf),
    Decimal("1.00"),
    Decimal("-0E+3"),
    Decimal("-Infinity"),
    Decimal("1E+999999"),
    Fraction(-3, 7),
    UUID(int=7),
    date.min,
    datetime.max,
    datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=BERLIN),
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23), "far")),
    time(1, 2, 3, 4, tzinfo=NEW_YORK, fold=1),
    timedelta.max,
    timedelta.min,
    UTC,
    timezone(timedelta(microseconds=1)),
    BERLIN,
    Path("/etc/hosts"),
    PurePosixPath("//a/../b"),
    PureWindowsPath("C:\\Users"),
    ipaddress.ip_address("10.0.0.1"),
    ipaddress.ip_address("fe80::1%eth0"),
    ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_network("fe80::/64"),
    ipaddress.ip_interface("10.0.0.1/8"),
    ipaddress.ip_interface("fe80::1%eth0/64"),
    range(5, -(10**30), -3),
    range(0),
    (),
    [[]],
    {"b": 1, "a": {1: [2], (1, b"x"): None}},
    {1, "1", frozenset({2.0})},
    frozenset(),
]


@pytest.mark.parametrize("value", SAMPLES, ids=lambda value: type(value).__name__)
def test_each_type_comes_back_exact(tmp_path: Path, value: object) -> None:
    """The corners by name; the property above may miss one."""
    assert write_hot_set(tmp_path / "set", "shop", [hot(value, [value])]) == (1, 0)
    [back] = read_hot_set(tmp_path / "set", "shop")
    assert exact(back.arguments) == exact((value, [value]))


def test_every_type_of_the_table_has_a_sample() -> None:
    """A type that is added to it is proved, too; no path of the other system can be made."""
    foreign = {PosixPath, WindowsPath} - {type(Path())}
    assert {kind.cls for kind in _forms._KINDS} - foreign == {*map(type, SAMPLES)} - {
        bool,
        type(None),
    }


def test_a_path_of_the_other_system_comes_back_as_a_pure_one() -> None:
    """It can be named here, not opened."""
    foreign = PureWindowsPath if os.name == "posix" else PurePosixPath
    name = "WindowsPath" if os.name == "posix" else "PosixPath"
    back = _forms.value([name, "a"])
    assert type(back) is foreign
    assert back == foreign("a")
    assert type(_forms.value([type(Path()).__name__, "a"])) is type(Path())


def test_a_set_is_read_where_the_limit_of_digits_is_the_lowest(tmp_path: Path) -> None:
    """The writer's limit may have been another: no number in the file meets either."""
    before = sys.get_int_max_str_digits()
    numbers = [10**n for n in (300, 640, 641, 5000)]
    try:
        sys.set_int_max_str_digits(640)
        assert write_hot_set(tmp_path / "set", "shop", [hot(*numbers)]) == (1, 0)
        [back] = read_hot_set(tmp_path / "set", "shop")
    finally:
        sys.set_int_max_str_digits(before)
    assert back.arguments == tuple(numbers)


def test_a_set_is_read_in_a_decimal_context_that_traps_nothing(tmp_path: Path) -> None:
    """Neither its precision nor its traps touch what is read."""
    value = Decimal("1.23456789")
    with localcontext(Context(prec=2, traps=[])):
        assert write_hot_set(tmp_path / "set", "shop", [hot(value)]) == (1, 0)
        [back] = read_hot_set(tmp_path / "set", "shop")
        with pytest.raises(ValueError):
            _forms.value(["Decimal", "nonsense"])
    assert back.arguments == (value,)


# ---- what is left out


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    ONE = "1"


class Point(NamedTuple):
    x: int


@dataclass(frozen=True)
class Frozen:
    x: int


class Text(str):
    pass


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        raise AssertionError("code of the user's ran")


class Meta(type):
    def __hash__(cls) -> int:
        raise AssertionError("code of the user's ran")


class Odd(metaclass=Meta):
    pass


def loop() -> list[object]:
    it: list[object] = []
    it.append(it)
    return it


def nested(levels: int) -> object:
    it: object = 1
    for _ in range(levels):
        it = [it]
    return it


def doubling() -> object:
    it: object = []
    for _ in range(MAX_DEPTH - 1):
        it = [it, it]
    return it


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        complex(0, math.nan),
        Decimal("NaN"),
        Decimal("sNaN"),
        Color.RED,
        Level.LOW,
        Word.ONE,
        Point(1),
        Frozen(1),
        Text("x"),
        OrderedDict(a=1),
        bytearray(b"x"),
        object(),
        object,
        len,
        Odd(),
        Odd,
        datetime(2025, 1, 1, tzinfo=Zone()),
        loop(),
        nested(MAX_DEPTH + 1),
        "x" * MAX_LINE,
        "\0" * (MAX_LINE // 6),  # one character, six in JSON
        "\ud800" * (MAX_LINE // 4),
        b"x" * (MAX_LINE // 2),
        1 << (4 * MAX_LINE),
        [None] * (MAX_LINE // 5),
        Path("x" * MAX_LINE),
        Decimal("1" * MAX_LINE),
        range(1 << (4 * MAX_LINE)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_call_with_an_argument_that_has_no_form_is_left_out(
    tmp_path: Path, value: object
) -> None:
    """And counted; the others are written."""
    calls = [hot(1), hot(value), hot((2, [value])), hot(k for k in "ab"), hot(3)]
    assert write_hot_set(tmp_path / "set", "shop", calls) == (2, 3)
    assert [call.arguments for call in read_hot_set(tmp_path / "set", "shop")] == [(1,), (3,)]


def test_the_deepest_and_the_largest_that_is_accepted_comes_back(tmp_path: Path) -> None:
    """The bounds are where they are said to be."""
    frame = len(_hot_set._line(hot("")) or b"")
    most = "x" * (MAX_LINE - frame)
    assert write_hot_set(tmp_path / "set", "shop", [hot(nested(MAX_DEPTH)), hot(most)]) == (2, 0)
    deep, large = read_hot_set(tmp_path / "set", "shop")
    assert deep.arguments == (nested(MAX_DEPTH),)
    assert large.arguments == (most,)
    assert write_hot_set(tmp_path / "set", "shop", [hot(most + "x")]) == (0, 1)


def test_a_short_argument_that_is_endless_to_walk_is_left_out_at_once(tmp_path: Path) -> None:
    """Each list holds the one below it twice, 63 levels down: 2 ** 63 leaves."""
    begun = clocks.process_time()
    assert write_hot_set(tmp_path / "set", "shop", [hot(doubling())]) == (0, 1)
    assert clocks.process_time() - begun < 5


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**7,
        b"x" * 10**7,
        1 << 10**8,
        [None] * 10**6,
        dict.fromkeys(range(10**6)),
        ["x" * 1000] * 30_000,
        ["\ud800" * 1000] * 30_000,
        [b"x" * 1000] * 30_000,
        [1 << 10_000] * 30_000,
        [0.5] * 60_000,
        [["x" * 1000] * 100] * 300,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_large_argument_is_left_out_before_it_is_copied(tmp_path: Path, value: object) -> None:
    """One, or one and the same many times over: its line would have been of megabytes."""
    tracemalloc.start()
    try:
        assert write_hot_set(tmp_path / "set", "shop", [hot(value)]) == (0, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80 * MAX_LINE


def test_a_call_that_could_not_be_read_back_is_left_out(tmp_path: Path) -> None:
    """Two keys of a dict can be one to who reads them, in a single zone.

    Two ZoneInfos of one name hold both readings of a repeated hour apart; read from a
    file, the name is one ZoneInfo, and the readings are equal. Written, the line would
    have cost the whole file.
    """
    hour = datetime(2025, 10, 26, 2, 30)
    apart = {
        hour.replace(tzinfo=BERLIN): 1,
        hour.replace(tzinfo=ZoneInfo.no_cache("Europe/Berlin"), fold=1): 2,
    }
    assert len(apart) == 2
    assert write_hot_set(tmp_path / "set", "shop", [hot(apart), hot(1)]) == (1, 1)
    assert len(read_hot_set(tmp_path / "set", "shop")) == 1


def test_a_windows_folder_named_like_a_drive_is_exact_or_left_out(tmp_path: Path) -> None:
    """Some versions print both alike."""
    path = PureWindowsPath("./c:")
    written, _ = write_hot_set(tmp_path / "set", "shop", [hot(path)])
    back = [call.arguments[0] for call in read_hot_set(tmp_path / "set", "shop")]
    assert [*map(exact, back)] == [exact(path)] * written


def test_arguments_that_change_while_they_are_written_are_of_one_moment(tmp_path: Path) -> None:
    """Another thread adds to the dict and to the set; neither write fails."""
    table: dict[object, object] = {n: n for n in range(2000)}
    group: set[object] = set(range(2000))
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for n in range(2000, 2500):
                table[n] = n
                group.add(n)
            for n in range(2000, 2500):
                del table[n]
                group.discard(n)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(30):
            assert write_hot_set(tmp_path / "set", "shop", [hot(table, group)]) == (1, 0)
            assert len(read_hot_set(tmp_path / "set", "shop")) == 1
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


# ---- order, bounds, the record


def test_calls_are_written_by_reads_times_seconds_then_by_name(tmp_path: Path) -> None:
    """Those equal in both stay in the order in which they were given."""
    calls = [
        HotCall("b", (1,), 10.0, 0.1),
        HotCall("a", (2,), 1.0, 1.0),
        HotCall("z", (3,), 2.0, 3.0),
        HotCall("a", (4,), 4.0, 0.25),
        HotCall("a", (5,), 100.0, 0.0),
    ]
    write_hot_set(tmp_path / "set", "shop", iter(calls))
    back = read_hot_set(tmp_path / "set", "shop")
    assert [call.arguments for call in back] == [(3,), (2,), (4,), (1,), (5,)]
    assert back == sorted(calls, key=lambda call: (-call.reads * call.seconds, call.function))


def test_many_calls_are_sorted_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sort of all would stop every event loop of the process; the order is the same."""
    rng = random.Random(7)
    names = ("a", "b")
    calls = [hot(n, function=rng.choice(names), reads=float(rng.randrange(9))) for n in range(5000)]
    sizes: list[int] = []

    def spy(given: Any, key: Any) -> list[Any]:
        made = sorted(given, key=key)
        sizes.append(len(made))
        return made

    monkeypatch.setattr(_hot_set, "sorted", spy, raising=False)
    write_hot_set(tmp_path / "set", "shop", calls)
    assert read_hot_set(tmp_path / "set", "shop") == sorted(
        calls, key=lambda call: (-call.reads, call.function)
    )
    assert (sum(sizes), max(sizes)) == (5000, 1000)


@pytest.mark.parametrize("strange", [math.nan, math.inf, -1.0, 10**400])
def test_what_a_strange_clock_measured_counts_as_nothing(tmp_path: Path, strange: float) -> None:
    """The call is kept, as the least valuable one."""
    calls = [HotCall("m.f", (1,), 1.0, strange), HotCall("m.f", (2,), strange, 1.0), hot(3)]
    assert write_hot_set(tmp_path / "set", "shop", calls) == (3, 0)
    back = [(call.reads, call.seconds) for call in read_hot_set(tmp_path / "set", "shop")]
    assert back == [(2.0, 0.5), (1.0, 0.0), (0.0, 1.0)]


def test_the_least_valuable_calls_beyond_the_bounds_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of calls, and of bytes."""
    calls = [hot(n, "x" * 1000, reads=float(n)) for n in range(100)]
    monkeypatch.setattr(_hot_set, "MAX_CALLS", 3)
    assert write_hot_set(tmp_path / "set", "shop", calls) == (3, 0)
    assert [call.arguments[0] for call in read_hot_set(tmp_path / "set", "shop")] == [99, 98, 97]
    monkeypatch.setattr(_hot_set, "MAX_CALLS", 1000)
    monkeypatch.setattr(_hot_set, "MAX_FILE", MAX_LINE + 10_500)
    assert write_hot_set(tmp_path / "set", "shop", calls) == (10, 0)
    assert len(read_hot_set(tmp_path / "set", "shop")) == 10


def test_an_empty_set_is_a_file(tmp_path: Path) -> None:
    """Nothing was hot: that can be said, too."""
    assert write_hot_set(tmp_path / "set", "shop", []) == (0, 0)
    assert read_hot_set(tmp_path / "set", "shop") == []


def test_repr_shows_no_arguments() -> None:
    """They may be secret."""
    call = hot(SECRET)
    assert SECRET not in repr(call)
    assert "m.f" in repr(call)
    assert call != hot("other")


# ---- what is refused


def forge(path: Path, lines: list[bytes], **fields: object) -> None:
    """Write a file whose sums are right, whatever its lines say."""
    body = b"".join(lines)
    said: dict[str, Any] = {
        "calls": len(lines),
        "size": len(body),
        "digest": sha256(body).hexdigest(),
        **fields,
    }
    path.write_bytes(_hot_set._header("shop", **said) + body)


def problem(path: Path, application: str = "shop") -> str:
    with pytest.raises(HotSetError) as caught:
        read_hot_set(path, application)
    assert caught.value.path == str(path)
    # Nothing that was caught on the way is kept: it might show an argument.
    assert caught.value.__context__ is None
    return caught.value.problem


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a file of two calls."""
    path = tmp_path / "set"
    write_hot_set(path, "shop", [hot(SECRET, [1.5, None]), hot(Decimal("2.5"), reads=1.0)])
    return path


def test_a_file_cut_at_any_byte_is_truncated(small: Path) -> None:
    """From none at all to all but one."""
    whole_file = small.read_bytes()
    for length in range(len(whole_file)):
        small.write_bytes(whole_file[:length])
        assert problem(small) == "truncated", length
    small.write_bytes(whole_file)
    assert len(read_hot_set(small, "shop")) == 2


@pytest.mark.parametrize("change", [1, 0x20, 0x80, 0xFF])
def test_a_file_altered_at_any_byte_is_refused(small: Path, change: int) -> None:
    """In the header as in the body; also where JSON would read the same."""
    whole_file = small.read_bytes()
    told = set()
    for index in range(len(whole_file)):
        altered = bytearray(whole_file)
        altered[index] ^= change
        small.write_bytes(altered)
        told.add(problem(small))
    assert "altered" in told


def test_a_file_with_a_byte_more_or_less_is_refused(small: Path) -> None:
    """Wherever it is, and if it is blank."""
    whole_file = small.read_bytes()
    for index in range(len(whole_file)):
        small.write_bytes(whole_file[:index] + whole_file[index + 1 :])
        problem(small)
        for extra in (b" ", b"\n", whole_file[index : index + 1]):
            small.write_bytes(whole_file[:index] + extra + whole_file[index:])
            problem(small)
    small.write_bytes(whole_file + b"\n")
    assert problem(small) == "altered"


def test_lines_that_changed_places_are_refused(small: Path) -> None:
    """Each is right by itself."""
    header, first, second = small.read_bytes().splitlines(keepends=True)
    small.write_bytes(header + second + first)
    assert problem(small) == "altered"


def test_an_application_altered_into_the_reader_s_is_refused(small: Path) -> None:
    """The header has a digest of its own."""
    small.write_bytes(small.read_bytes().replace(b'"shop"', b'"chop"'))
    assert problem(small, "shop") == "application"
    assert problem(small, "chop") == "altered"


def test_a_file_of_another_application_is_refused(small: Path) -> None:
    """Its function names might be ours by accident."""
    assert problem(small, "bank") == "application"
    assert problem(small, "") == "application"


def test_the_name_of_an_application_is_any_short_text(tmp_path: Path) -> None:
    """Two surrogates are no emoji, a StrEnum is its text."""
    for name in ("", "\ud83d\ude00", "\U0001f600", "é" * 1024, '[{"\\'):
        write_hot_set(tmp_path / "set", name, [hot(1)])
        assert len(read_hot_set(tmp_path / "set", name)) == 1
        assert problem(tmp_path / "set", "x") == "application"
    write_hot_set(tmp_path / "set", Word.ONE, [hot(1)])
    assert len(read_hot_set(tmp_path / "set", "1")) == 1
    write_hot_set(tmp_path / "set", "\ud83d\ude00", [])
    assert problem(tmp_path / "set", "\U0001f600") == "application"
    for use in (
        lambda name: write_hot_set(tmp_path / "set", name, []),
        lambda name: read_hot_set(tmp_path / "set", name),
    ):
        with pytest.raises(ValueError, match="1,024"):
            use("x" * 1025)


def test_a_file_of_another_version_is_refused_before_anything_else(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else a later version writes, its format and number stay where they are."""
    monkeypatch.setattr(_hot_set, "VERSION", 2)
    write_hot_set(small, "bank", [hot(1)])
    monkeypatch.undo()
    assert problem(small) == "version"
    small.write_bytes(small.read_bytes()[:-1])
    assert problem(small) == "version"
    small.write_bytes(b'{"version":2,"format":"async_safe_cache hot set","new":[[]]}\n\x00\xff')
    assert problem(small) == "version"


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"hello",
        b"hello\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b'{"format":"other"}\n',
        b'{"format":["async_safe_cache hot set"]}\n',
        b"\x80\x04N.",
        b"SQLite format 3\x00",
        b"[" * MAX_LINE + b"\n",
        b"[" * 200_000,
        b'{"a":' * 1000 + b"\n",
        b"x" * 200_000,
        b"1" * 60_000 + b"\n",
    ],
    ids=lambda content: repr(content[:24]),
)
def test_a_file_that_is_no_hot_set_is_refused_as_such(tmp_path: Path, content: bytes) -> None:
    """Text, JSON, a pickle, a database, and bombs of brackets and digits."""
    (tmp_path / "set").write_bytes(content)
    assert problem(tmp_path / "set") == "not a hot set"


@pytest.mark.parametrize("rest", [b"x\n", b"}", b'"application":1,}\n', b"x" * 200_000])
def test_a_file_that_began_as_a_hot_set_was_altered(tmp_path: Path, rest: bytes) -> None:
    """Its first line is no JSON any more, or has no end where one must be."""
    (tmp_path / "set").write_bytes(_hot_set._BEGINNING + b"," + rest)
    assert problem(tmp_path / "set") == ("truncated" if rest == b"}" else "altered")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path, small: Path) -> None:
    """By its size; and by what its header says, which the reading must trust."""
    with small.open("r+b") as file:
        file.truncate(MAX_FILE)
    assert problem(small) == "altered"
    with small.open("r+b") as file:
        file.truncate(MAX_FILE + 1)
    assert problem(small) == "too large"
    forge(tmp_path / "forged", [], calls=1_000_001)
    assert problem(tmp_path / "forged") == "too large"
    forge(tmp_path / "forged", [], size=10**18)
    assert problem(tmp_path / "forged") == "too large"


@pytest.mark.parametrize(
    "fields",
    [
        {"calls": 0},
        {"calls": 2},
        {"calls": -1},
        {"calls": "1"},
        {"calls": True},
        {"calls": 1.0},
        {"calls": None},
        {"calls": [[]]},
        {"size": -1},
        {"size": -9},
        {"size": 1e300},
        {"size": "17"},
        {"size": None},
        {"digest": None},
        {"digest": "0"},
        {"digest": {}},
    ],
    ids=str,
)
def test_a_header_that_says_something_else_is_refused(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    """Though its own digest is right."""
    forge(tmp_path / "set", [b'["m.f",1.0,1.0]\n'])
    assert len(read_hot_set(tmp_path / "set", "shop")) == 1
    forge(tmp_path / "set", [b'["m.f",1.0,1.0]\n'], **fields)
    assert problem(tmp_path / "set") == "altered"


BAD_FORMS = [
    "[]",
    "{}",
    "NaN",
    "Infinity",
    "[[]]",
    "[{}]",
    '["unknown"]',
    '["object"]',
    '["eval","1"]',
    '["_str","61"]',
    '["bool",1]',
    '["NoneType"]',
    "[null,1]",
    "[1,2]",
    '[["list"],2]',
    '["str"]',
    '["str",1]',
    '["str","6"]',
    '["str","zz"]',
    '["str","ff"]',
    '["int"]',
    '["int",5]',
    '["int","x"]',
    '["int",""]',
    '["float","nan"]',
    '["float","1.0"]',
    '["float",1.0]',
    '["bytes","f"]',
    '["bytes",5]',
    '["bytes","ff","ff"]',
    '["complex",1,2]',
    '["complex","1","2"]',
    '["complex",1.0]',
    '["Decimal",1]',
    '["Decimal","x"]',
    '["Decimal","NaN"]',
    '["Decimal","sNaN"]',
    '["Decimal","1E+99999999999999999999999"]',
    '["Decimal","1E-99999999999999999999999"]',
    '["Fraction",1,0]',
    '["Fraction","1",2]',
    '["Fraction",1.0,2]',
    '["Fraction",true,2]',
    '["UUID","x"]',
    '["UUID",1]',
    '["date","2025-13-01"]',
    '["date",1]',
    '["datetime","2025-01-01T00:00:00"]',
    '["datetime","2025-01-01T00:00:00",2,null]',
    '["datetime","2025-01-01T00:00:00",99999999999999999999,null]',
    '["datetime","2025-01-01T00:00:00",true,null]',
    '["datetime","2025-01-01T00:00:00",0,"UTC"]',
    '["datetime","2025-01-01T00:00:00+01:00",0,null]',
    '["time","25:00:00",0,null]',
    '["time","01:00:00+01:00",0,null]',
    '["timedelta",1,2]',
    '["timedelta",1.5,0,0]',
    '["timedelta",9999999999,0,0]',
    '["timedelta",99999999999999999999999,0,0]',
    '["timezone",["timedelta",1,0,0],"x"]',
    '["timezone",5,"x"]',
    '["timezone",["timedelta",0,60,0],null]',
    '["ZoneInfo",null]',
    '["ZoneInfo",""]',
    '["ZoneInfo","../../etc/passwd"]',
    '["ZoneInfo","/etc/localtime"]',
    '["ZoneInfo","Europe/Berlin/"]',
    '["ZoneInfo","os.path"]',
    '["ZoneInfo","a\\u0000b"]',
    '["PosixPath",1]',
    '["PosixPath","a","b"]',
    '["IPv4Address",5]',
    '["IPv4Address","1.2.3.256"]',
    '["IPv6Address","1.2.3.4"]',
    '["IPv6Address","::1%"]',
    '["IPv4Network","10.0.0.1/8"]',
    '["IPv4Interface","10.0.0.1/33"]',
    '["range",1]',
    '["range",1,2,0]',
    '["range",1.0,2,3]',
    '["dict",1]',
    '["dict",1,2,3]',
    '["dict",1,2,1.0,2]',
    '["dict",["list"],2]',
    '["set",1,1]',
    '["set",["list"]]',
    '["set",1,true]',
    '["frozenset",["dict"]]',
    '["tuple",["unknown"]]',
    "1" * 5000,
    '["int","' + "f" * 70_000 + '"]',
    "[" * 60_000 + "]" * 60_000,
    "[" * 60_000,
    '{"a":' * 10_000 + "1" + "}" * 10_000,
    '["list",' * (MAX_DEPTH + 1) + "1" + "]" * (MAX_DEPTH + 1),
]


@pytest.mark.parametrize("form", BAD_FORMS, ids=lambda form: form[:60])
def test_a_form_that_no_writer_makes_is_refused(tmp_path: Path, form: str) -> None:
    """Though every sum of the file is right."""
    if form.startswith('["list",["list"') or form == "1" * 5000:
        ok = form.replace('["list",', "", 1)[:-1] if form[0] == "[" else "1" * 300
        forge(tmp_path / "set", [f'["m.f",1.0,1.0,{ok}]\n'.encode()])
        assert len(read_hot_set(tmp_path / "set", "shop")) == 1  # one less is right
    forge(tmp_path / "set", [f'["m.f",1.0,1.0,"{SECRET}",{form},"{SECRET}"]\n'.encode()])
    assert problem(tmp_path / "set") == "altered"


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"null\n",
        b"{}\n",
        b"[]\n",
        b'["m.f"]\n',
        b'["m.f",1.0]\n',
        b'["m.f",1,1.0]\n',
        b'["m.f",1.0,true]\n',
        b'["m.f",-1.0,1.0]\n',
        b'["m.f",1.0,1e999]\n',
        b'["m.f",1.0,NaN]\n',
        b'["m.f",["float","inf"],1.0]\n',
        b"[null,1.0,1.0]\n",
        b'[["bytes",""],1.0,1.0]\n',
        b'["m.f",1.0,1.0]["m.f",1.0,1.0]\n',
        b'["m.f",1.0,1.0\n',
        b'["m.f\xff",1.0,1.0]\n',
        '["é",1.0,1.0]\n'.encode(),
        '["m.f",1.0,1.0]\n'.encode("utf-16"),
        b'\xef\xbb\xbf["m.f",1.0,1.0]\n',
        b'["m.f",1.0,1.0,"a\\x"]\n',
    ],
    ids=repr,
)
def test_a_line_that_no_writer_makes_is_refused(tmp_path: Path, line: bytes) -> None:
    """The others of the file are not used either."""
    forge(tmp_path / "set", [b'["m.f",1.0,1.0,1]\n', line])
    assert problem(tmp_path / "set") == "altered"


ACCEPTED = {kind.cls for kind in _forms._KINDS} | {bool, type(None)}


def types_in(value: object) -> Iterator[type]:
    yield type(value)
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, tuple | list | set | frozenset):
        for each in value:
            yield from types_in(each)


atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(
        ["0", "1.5", "ff", "-1", "inf", "2025-01-01", "12:00", "UTC", "::1", "1.2.3.4/8"]
    )
)
anything = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.builds(
            lambda tag, parts: [tag, *parts],
            st.sampled_from([kind.cls.__name__ for kind in _forms._KINDS]),
            st.lists(inner, max_size=4),
        )
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=10,
)


@given(forms=st.lists(anything, max_size=3))
@settings(max_examples=500, deadline=None)
def test_whatever_a_line_says_it_is_a_call_or_refused(scratch: Path, forms: list[object]) -> None:
    """No other error, and no value of a type that the table does not have."""
    forge(scratch, [json.dumps(["m.f", 1.0, 1.0, *forms]).encode() + b"\n"])
    calls: list[HotCall] = []
    with contextlib.suppress(HotSetError):
        calls = read_hot_set(scratch, "shop")
    for call in calls:
        assert {*types_in(call.arguments)} - {tuple} <= ACCEPTED
        assert write_hot_set(scratch, "shop", [call]) == (1, 0)
        [back] = read_hot_set(scratch, "shop")
        assert exact(back.arguments) == exact(call.arguments)


@pytest.mark.parametrize(
    "line",
    [
        b'"' + b'\\"' * 32_000 + b"\n",
        b'["' + b'\\"' * 32_000 + b"\n",
        b"\\" * 65_000 + b"\n",
        b'""' * 32_000 + b"\n",
    ],
    ids=lambda line: repr(line[:12]),
)
def test_a_line_takes_time_by_its_length_only(tmp_path: Path, line: bytes) -> None:
    """Quotes and backslashes without an end: a search from each took half a minute."""
    forge(tmp_path / "set", [line] * 10)
    begun = clocks.process_time()
    assert problem(tmp_path / "set") == "altered"
    assert clocks.process_time() - begun < 2


def test_a_bomb_of_brackets_is_refused_at_any_recursion_limit(tmp_path: Path) -> None:
    """The parser of JSON would go down as deep as it is allowed, or the stack ends."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        for form in ("[" * 65_000, '{"a":' * 13_000, '["list",' * 8_000):
            forge(tmp_path / "set", [f"{form}\n".encode()])
            assert problem(tmp_path / "set") == "altered"
    finally:
        sys.setrecursionlimit(before)


def test_a_call_in_a_zone_that_this_system_does_not_know_is_left_out(tmp_path: Path) -> None:
    """Another machine wrote it: the file is in order, this call cannot be made."""
    for name in ("Mars/Olympus", "Europe", "x" * 5000):
        moment = f'["datetime","2025-01-01T00:00:00",0,["ZoneInfo","{name}"]]'
        lines = [f'["m.f",1.0,1.0,{form}]\n'.encode() for form in ("1", moment, "2")]
        forge(tmp_path / "set", lines)
        back = [call.arguments for call in read_hot_set(tmp_path / "set", "shop")]
        assert back == [(1,), (2,)]


def test_an_error_shows_no_argument(tmp_path: Path) -> None:
    """Not in its message, nor in what Python prints of an exception and of what led to it."""
    for form in (f'["Fraction","{SECRET}",1]', f'["IPv4Address","{SECRET}"]', f'"{SECRET}", x'):
        forge(tmp_path / "set", [f'["m.f",1.0,1.0,{form}]\n'.encode()])
        with pytest.raises(HotSetError) as caught:
            read_hot_set(tmp_path / "set", "shop")
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_every_problem_is_told_with_its_remedy() -> None:
    """What happened, what it means, what to do."""
    problems = ["truncated", "altered", "version", "application", "too large", "not a hot set"]
    messages = {str(HotSetError("hot.set", each)) for each in problems}
    assert len(messages) == 6
    for message in messages:
        assert message.startswith("'hot.set' ")
        assert "nothing of it was used; " in message
    assert issubclass(HotSetError, CacheError)
    assert issubclass(HotSetError, ValueError)
    assert "HotSetError" in async_safe_cache.__all__


# ---- on the disk


def test_a_missing_file_and_a_folder_are_errors_of_the_system(tmp_path: Path) -> None:
    """As open() raises them."""
    with pytest.raises(FileNotFoundError):
        read_hot_set(tmp_path / "missing", "shop")
    with pytest.raises(OSError):
        read_hot_set(tmp_path, "shop")
    with pytest.raises(FileNotFoundError):
        write_hot_set(tmp_path / "missing" / "set", "shop", [])
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        write_hot_set(tmp_path / "file" / "set", "shop", [])
    with pytest.raises(OSError):
        write_hot_set(tmp_path, "shop", [])
    assert (tmp_path / "file").read_text() == "x"
    assert temporaries(tmp_path) == temporaries(tmp_path.parent) == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_a_folder_or_file_without_permission_is_an_error_of_the_system(tmp_path: Path) -> None:
    """As open() raises it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write_hot_set(folder / "set", "shop", [])
    (folder / "set").chmod(0)
    with pytest.raises(PermissionError):
        read_hot_set(folder / "set", "shop")
    folder.chmod(0)
    try:
        with pytest.raises(PermissionError):
            read_hot_set(folder / "set", "shop")
        with pytest.raises(PermissionError):
            write_hot_set(folder / "set", "shop", [])
    finally:
        folder.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """Arguments may be secret; also if a file that others could read was there before."""
    path = tmp_path / "set"
    path.write_text("old")
    path.chmod(0o666)
    before = os.umask(0)
    try:
        write_hot_set(path, "shop", [hot(SECRET)])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_path_may_be_relative_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is in the folder of the process."""
    monkeypatch.chdir(tmp_path)
    write_hot_set("set", "shop", [hot(1)])
    assert len(read_hot_set("set", "shop")) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["set"]
    with pytest.raises(HotSetError) as caught:
        read_hot_set(Path("set"), "bank")
    assert caught.value.path == "set"


def test_the_file_is_on_the_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut leaves an empty file in place of a good one; then the folder."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle: int) -> None:
        mode = os.fstat(handle).st_mode
        steps.append("fsync folder" if stat.S_ISDIR(mode) else f"fsync {os.fstat(handle).st_size}")
        fsync(handle)

    def note_replace(source: str, target: str) -> None:
        assert len(read_hot_set(source, "shop")) == 1
        assert os.path.dirname(source) == os.path.dirname(target)  # of one file system
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_hot_set(tmp_path / "set", "shop", [hot(1)])
    size = (tmp_path / "set").stat().st_size
    folder = ["fsync folder"] if os.name == "posix" else []
    assert steps == [f"fsync {size}", "replace", *folder]


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "no space"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_fails_leaves_the_old_file(
    small: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    """And nothing beside it."""
    before = small.read_bytes()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(type(error)):
        write_hot_set(small, "shop", [hot(n) for n in range(100)])
    monkeypatch.undo()
    assert small.read_bytes() == before
    assert [each.name for each in small.parent.iterdir()] == [small.name]


@pytest.mark.skipif(os.name != "posix", reason="a limit of POSIX")
def test_a_disk_that_is_full_in_the_middle_leaves_the_old_file(small: Path) -> None:
    """A real write that fails after some bytes."""
    import resource

    before = small.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="large"):
            write_hot_set(small, "shop", [hot(n, "x" * 100) for n in range(1000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert small.read_bytes() == before
    assert [each.name for each in small.parent.iterdir()] == [small.name]


def test_calls_that_fail_to_come_leave_the_old_file(small: Path) -> None:
    """The iterable is the caller's."""
    before = small.read_bytes()

    def calls() -> Iterator[HotCall]:
        yield hot(1)
        raise LookupError

    with pytest.raises(LookupError):
        write_hot_set(small, "shop", calls())
    assert small.read_bytes() == before
    assert [each.name for each in small.parent.iterdir()] == [small.name]


@pytest.mark.skipif(os.name != "posix", reason="folders of POSIX")
def test_a_folder_that_cannot_be_synced_does_not_fail_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is in place by then; and no handle is left open."""
    fsync = os.fsync
    opened: list[int] = []

    def fail(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            opened.append(handle)
            raise OSError(22, "not here")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    assert write_hot_set(tmp_path / "set", "shop", [hot(1)]) == (1, 0)
    assert len(read_hot_set(tmp_path / "set", "shop")) == 1
    with pytest.raises(OSError):
        os.fstat(opened[0])


def test_of_writers_at_once_the_last_one_wins_and_no_file_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader beside them finds one whole set at every moment."""
    path = tmp_path / "set"
    replace = os.replace
    order: list[str] = []
    lock = threading.Lock()
    owner: dict[int, str] = {}

    def note_replace(source: str, target: str) -> None:
        with lock:
            replace(source, target)
            order.append(owner[threading.get_ident()])

    monkeypatch.setattr(os, "replace", note_replace)
    failed: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failed.append(error)

    def writer(name: str, seed: int) -> Callable[[], None]:
        def job() -> None:
            owner[threading.get_ident()] = name
            rng = random.Random(seed)
            for _ in range(15):
                count = rng.randint(50, 300)
                calls = [hot(count, "x" * rng.randint(0, 200), function=name) for _ in range(count)]
                assert write_hot_set(path, "shop", calls) == (count, 0)

        return job

    done = threading.Event()

    def reader() -> None:
        while not done.is_set():
            calls = read_hot_set(path, "shop")
            assert len({call.function for call in calls}) == 1
            assert {call.arguments[0] for call in calls} == {len(calls)}

    write_hot_set_first(path, owner)
    writers = [threading.Thread(target=guarded, args=(writer(f"w{n}", n),)) for n in range(6)]
    watcher = threading.Thread(target=guarded, args=(reader,))
    for thread in (watcher, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    watcher.join()
    assert failed == []
    assert len(order) == 1 + 6 * 15
    assert read_hot_set(path, "shop")[0].function == order[-1]
    assert [each.name for each in tmp_path.iterdir()] == ["set"]


def write_hot_set_first(path: Path, owner: dict[int, str]) -> None:
    owner[threading.get_ident()] = "first"
    write_hot_set(path, "shop", [hot(1, function="first")])
