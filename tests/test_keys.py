"""Keys: different values never share one, equal values of one type always do."""

import cmath
import copy
import dataclasses
import enum
import gc
import ipaddress
import itertools
import numbers
import os
import pickle
import random
import subprocess
import sys
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_safe_cache import _keys
from async_safe_cache._keys import (
    Call,
    Key,
    call_key,
    canonical,
    digest,
    encode,
    register_key_type,
)
from async_safe_cache.errors import CacheError, UnsupportedKeyError

SECRET = "hunter2"
BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")


class Color(enum.Enum):
    RED = 1
    GREEN = 2
    ALIAS = 1  # noqa: PIE796  # an alias is its member


class Fruit(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    ONE = "1"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: object
    y: object


class Vector(NamedTuple):
    x: object
    y: object


class Swapped(namedtuple("Swapped", "x y")):  # noqa: PYI024  # a NamedTuple takes no __iter__
    def __iter__(self) -> Iterator[object]:
        return iter(())


@dataclasses.dataclass(frozen=True)
class Span:
    low: object
    high: object
    note: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    low: object
    high: object


@attrs.frozen
class Money:
    amount: object
    currency: str = attrs.field(default="EUR", eq=str.lower)
    note: str = attrs.field(default="", eq=False)


class Hooked:
    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __cache_key__(self) -> object:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class OtherHooked(Hooked):
    pass


class Loud:
    """Whatever a dict or a message may call, fails."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __hash__(self) -> int:
        raise AssertionError("hashed")

    def __repr__(self) -> str:
        raise AssertionError("shown")

    __str__ = __repr__


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers ends with it."""
    monkeypatch.setattr(_keys, "_registered", dict(_keys._registered))
    monkeypatch.setattr(_keys, "_plans", weakref.WeakKeyDictionary())


# ---- different values never share a key

DIFFERENT: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 255, 256, -256, 2**64, -(2**64), 10**50),
    *(0.0, 1.0, 1.5, float("inf"), float("-inf"), 1j, 1 + 0j, complex(0, 2)),
    *("", "1", "a", "a:b", "None", "True", "\ud800", "e\u0301", "\xe9", "a\0", "a\r\nb", "*", "?"),
    *("tuple", "s1:a", "builtins:list", "a\0b", "[a]", "{a}"),
    *(b"", b"1", b"a", b"\0", b"\0\0"),
    *(Decimal(0), Decimal(1), Decimal("1.5"), Decimal("1E+1"), Decimal(-1), Decimal("Infinity")),
    *(Decimal("-Infinity"), Fraction(1), Fraction(3, 2), UUID(int=1), UUID(int=2)),
    *(
        (),
        (1,),
        ((1,),),
        (1, 1),
        (1.0,),
        (True,),
        ("1",),
        (None,),
        ("a", "b"),
        ("ab",),
        ("a:b", "c"),
    ),
    *(
        ("a", "b:c"),
        ("a", ""),
        ("", "a"),
        (("a",), "b"),
        ("a", ("b",)),
        ((), ()),
        ("1", 1),
        (1, "1"),
    ),
    *([], [1], [[1]], [1, 1], [True], ["1"], {}, {1: 1}, {1: True}, {True: 1}, {"1": 1}, {1: [1]}),
    *({1: 2, 3: 4}, {1: 4, 3: 2}, set(), {1}, {True}, {"1"}, {(1,)}, {1, 2}),
    *(frozenset(), frozenset({1}), frozenset({frozenset({1})}), frozenset({frozenset()})),
    *(frozenset({(1, 1)}), ((1, 1),), [(1, 1)], {(1, 1)}),
    *(range(0), range(1), range(1, 2), range(3), range(0, 3, 2), range(2**70), range(2**71)),
    *(date(2020, 1, 1), date(2020, 1, 2), datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)),
    *(datetime(2020, 1, 1, 0, 0, 0, 1), datetime.min, datetime.max, timedelta(0), timedelta(1)),
    *(timedelta(microseconds=1), timedelta.max, timedelta.min),
    *(time(0), time(1), time(1, tzinfo=UTC), time(1, tzinfo=BERLIN), time(1, tzinfo=NEW_YORK)),
    *(UTC, timezone(timedelta(hours=1)), BERLIN, NEW_YORK, ZoneInfo("UTC")),
    *(PurePosixPath("a"), PurePosixPath("A"), PurePosixPath("/a"), PureWindowsPath("a"), Path("a")),
    *(PureWindowsPath("c:a"), PureWindowsPath("c:/a"), PureWindowsPath("./c:a"), Path("a/b")),
    *(ipaddress.ip_address("1.2.3.4"), ipaddress.ip_address("::1"), ipaddress.ip_address("::1%e")),
    *(ipaddress.ip_network("1.2.3.4/32"), ipaddress.ip_network("1.2.3.0/24")),
    *(ipaddress.ip_interface("1.2.3.4/24"), ipaddress.ip_interface("1.2.3.4/32")),
    *(ipaddress.ip_interface("::1/64"), ipaddress.ip_network("::/64")),
    *(Color.RED, Color.GREEN, Fruit.RED, Level.LOW, Word.ONE, Right.READ, Right.WRITE, Right(3)),
    *(
        Right(0),
        Point(1, 2),
        Point(2, 1),
        Vector(1, 2),
        (1, 2),
        [1, 2],
        Swapped(1, 2),
        Swapped(2, 1),
    ),
    *(Span(1, 2), Range(1, 2), Span(1, 2.0), Span(1, "2"), Span([1], 2), Span((1,), 2)),
    *(Money(1), Money(1.0), Money(1, "USD"), Hooked(1), Hooked("1"), Hooked((1,)), OtherHooked(1)),
]


def wrappings(value: Any) -> list[Any]:
    return [
        value,
        (value,),
        [value],
        {1: value},
        Span(value, None),
        Point(None, value),
        (0, (value,)),
    ]


def test_values_that_differ_in_value_or_type_have_different_keys() -> None:
    keys = [canonical(value, "x") for value in DIFFERENT]
    for a, b in itertools.combinations(range(len(keys)), 2):
        assert keys[a] != keys[b], (DIFFERENT[a], DIFFERENT[b])
    assert len(set(keys)) == len(keys)
    assert len({encode(key) for key in keys}) == len(keys)
    assert len({digest(key) for key in keys}) == len(keys)


def test_values_differ_inside_of_containers_as_they_do_outside() -> None:
    keys = [canonical(form, "x") for value in DIFFERENT for form in wrappings(value)]
    # Three of the wrappings are values of the list above: (1,), [1], (None,) and so on.
    allowed = {canonical(value, "x") for value in DIFFERENT}
    seen: Counter[Any] = Counter(keys)
    assert all(count == 1 or key in allowed for key, count in seen.items())
    assert len({encode(key) for key in seen}) == len(seen)


def test_a_key_cannot_be_imitated_by_a_value() -> None:
    """Forms begin with types; a user who writes one out is refused, not confused."""
    for value in (True, 1.5, (1, True), [1], {1: 2}, Color.RED, Span(1, 2)):
        with pytest.raises(UnsupportedKeyError):
            canonical(canonical(value, "x"), "x")
    with pytest.raises(UnsupportedKeyError):
        call_key(((Call, 1, (bool, True)),), ("x",))


def test_a_call_of_several_arguments_is_not_a_call_of_one_tuple() -> None:
    calls: list[tuple[object, ...]] = [
        *((), ((),), (1,), ((1,),), (1, 2), ((1, 2),), ([1, 2],), (True,), (1, True), ((1, True),)),
        *(
            ("a:b", "c"),
            ("a", "b:c"),
            ("a", ""),
            ("", "a"),
            (("a",), "b"),
            ("a", ("b",)),
            ("a", b"b"),
        ),
        *((None,), (None, None), ("1",), (1.0,), (1, 1.0), (1.0, 1), (True, 1)),
    ]
    keys = [call_key(values, ("x",) * len(values))[0] for values in calls]
    assert len(set(keys)) == len(keys)
    assert len({encode(key) for key in keys}) == len(keys)


# ---- equal values of one type share one

SUMMER = datetime(2024, 7, 1, 12, tzinfo=UTC)
SAME: list[tuple[Any, Any]] = [
    (0.0, -0.0),
    (complex(0.0, -0.0), complex(-0.0, 0.0)),
    (Decimal("1.0"), Decimal("1.00")),
    (Decimal(100), Decimal("1E+2")),
    (Decimal(0), Decimal("-0.000")),
    (Decimal("1." + "3" * 60), Decimal("1." + "3" * 60 + "000")),
    (Fraction(2, 4), Fraction(1, 2)),
    ({1, 2, 3}, {3, 2, 1}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (range(0), range(5, 2)),
    (range(1, 2), range(1, 9, 100)),
    (range(0, 3, 2), range(0, 4, 2)),
    (range(2**70, 2**70 + 5, 2), range(2**70, 2**70 + 6, 2)),
    (SUMMER, SUMMER.astimezone(BERLIN)),
    (SUMMER.astimezone(NEW_YORK), SUMMER.astimezone(timezone(timedelta(hours=3)))),
    (datetime(2024, 1, 1, fold=0), datetime(2024, 1, 1, fold=1)),
    (time(12, tzinfo=UTC), time(13, tzinfo=timezone(timedelta(hours=1)))),
    (UTC, timezone(timedelta(0), "named")),
    (BERLIN, ZoneInfo.no_cache("Europe/Berlin")),
    (timedelta(days=1), timedelta(hours=24)),
    (UUID(int=5), UUID(str(UUID(int=5)))),
    (PureWindowsPath("C:/Temp"), PureWindowsPath("c:\\temp")),
    (PurePosixPath("a//b/./c"), PurePosixPath("a/b/c")),
    (ipaddress.ip_address("::0:1"), ipaddress.ip_address("::1")),
    (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("10.0.0.0/255.0.0.0")),
    (Color.RED, Color.ALIAS),
    (Right.READ | Right.WRITE, Right(3)),
    (Span(1, 2, "a"), Span(1, 2, "b")),
    (Money(1, "EUR", "a"), Money(1, "eur", "b")),
    (Point(1, [2]), Point(1, [2])),
    (Hooked([1]), Hooked([1])),
]


@pytest.mark.parametrize(("a", "b"), SAME, ids=lambda value: type(value).__name__)
def test_equal_values_of_one_type_share_a_key(a: Any, b: Any) -> None:
    for one, other in zip(wrappings(a), wrappings(b), strict=True):
        first, second = canonical(one, "x"), canonical(other, "x")
        assert first == second
        assert hash(first) == hash(second)
        assert encode(first) == encode(second)
        assert digest(first) == digest(second)
        assert len(digest(first)) == 16


def test_the_two_readings_of_a_repeated_hour_are_two_instants() -> None:
    """Python compares them as equal; the hour between them is real."""
    first = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN)
    second = first.replace(fold=1)
    assert first == second
    assert canonical(first, "x") != canonical(second, "x")
    assert canonical(second, "x") == canonical(datetime(2024, 10, 27, 1, 30, tzinfo=UTC), "x")


def test_instants_beyond_the_calendar_have_keys() -> None:
    for edge, hours in ((datetime.min, 14), (datetime.max, -14)):
        offset = timezone(timedelta(hours=hours))
        here = edge.replace(tzinfo=offset)
        there = edge.replace(
            tzinfo=timezone(timedelta(hours=hours - 1 if hours > 0 else hours + 1))
        )
        assert canonical(here, "x") != canonical(there, "x") != canonical(edge, "x")


class Odd(tzinfo):
    def __init__(self, offset: object) -> None:
        self.offset = offset

    def utcoffset(self, _: object) -> Any:
        if isinstance(self.offset, BaseException):
            raise self.offset
        return self.offset

    def dst(self, _: object) -> None:
        return None

    def tzname(self, _: object) -> str:
        return SECRET


class Minutes(timedelta):
    def __floordiv__(self, _: object) -> Any:
        return Loud()


def test_time_zones_of_the_users_own_count_by_their_offset() -> None:
    moment = datetime(2020, 1, 1, 12, tzinfo=Odd(Minutes(hours=1)))
    assert canonical(moment, "x") == canonical(datetime(2020, 1, 1, 11, tzinfo=UTC), "x")
    with pytest.raises(ZeroDivisionError):
        canonical(datetime(2020, 1, 1, tzinfo=Odd(ZeroDivisionError())), "x")
    with pytest.raises(UnsupportedKeyError, match="Odd") as caught:
        canonical(time(1, tzinfo=Odd(None)), "when")
    assert SECRET not in str(caught.value)


def test_members_that_share_a_key_still_count() -> None:
    """Two objects with one `__cache_key__` are two members of a set."""
    one, two = Hooked(1), Hooked(1)
    assert canonical({one}, "x") != canonical({one, two}, "x")
    assert canonical({one, two}, "x") == canonical({two, one}, "x")
    assert canonical(frozenset({one, two}), "x") != canonical(frozenset({one}), "x")
    assert canonical({one: 1, two: 1}, "x") != canonical({one: 1}, "x")
    assert canonical({one: 1, two: 2}, "x") == canonical({one: 2, two: 1}, "x")


# ---- properties

SCALARS: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 300, 0.0, -0.0, 1.0, 2.0, 1 + 0j, 0j),
    *("", "0", "1", "a", "b", "a:b", b"", b"0", b"1", b"a", Decimal(1), Decimal("1.0"), Decimal(0)),
    *(
        Fraction(1),
        Fraction(1, 2),
        date(2020, 1, 1),
        datetime(2020, 1, 1),
        timedelta(1),
        UUID(int=1),
    ),
    *(
        SUMMER,
        SUMMER.astimezone(BERLIN),
        range(0),
        range(1, 1),
        range(1),
        Color.RED,
        Fruit.RED,
        Level.LOW,
    ),
    *(Path("a"), PurePosixPath("a"), Right.READ, Word.ONE),
]


def same(a: Any, b: Any) -> bool:
    """Equal, and of one type all the way down: written without the code under test."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            any(same(key, other) and same(value, b[other]) for other in b)
            for key, value in a.items()
        )
    if isinstance(a, Span | Range):
        return same((a.low, a.high), (b.low, b.high))
    return bool(a == b)


def agree(a: Any, b: Any) -> None:
    first, second = canonical(a, "x"), canonical(b, "x")
    expected = same(a, b)
    assert (first == second) is expected, (a, b)
    assert (encode(first) == encode(second)) is expected, (a, b)
    if expected:
        assert hash(first) == hash(second)


hashable = st.recursive(
    st.sampled_from(SCALARS) | st.integers(-3, 3) | st.text("ab:", max_size=2),
    lambda inner: (
        st.tuples(inner)
        | st.tuples(inner, inner)
        | st.frozensets(inner, max_size=3)
        | st.builds(Span, inner, inner)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=6,
)
anything = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.sets(hashable, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Range, inner, inner)
    ),
    max_leaves=8,
)
wide = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(),
    st.binary(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.timedeltas(),
    st.times(),
    st.dates(),
    st.uuids(),
    st.ip_addresses(),
)


@settings(deadline=None, max_examples=400)
@given(anything, anything)
def test_any_two_values_share_a_key_exactly_when_they_are_the_same(a: Any, b: Any) -> None:
    agree(a, b)
    agree(a, copy.deepcopy(a))


@settings(deadline=None, max_examples=300)
@given(wide, wide)
def test_any_two_scalars_share_a_key_exactly_when_they_are_equal(a: Any, b: Any) -> None:
    for one, other in ((a, b), (a, copy.copy(a))):
        first, second = canonical(one, "x"), canonical(other, "x")
        assert (encode(first) == encode(second)) is (first == second)
        if not isinstance(one, datetime):  # an aware one is its instant: see above
            assert (first == second) is same(one, other)


@settings(deadline=None)
@given(st.text("./\\:aA", max_size=6), st.text("./\\:aA", max_size=6))
def test_paths_share_a_key_when_python_holds_them_equal(a: str, b: str) -> None:
    for cls in (PurePosixPath, PureWindowsPath):
        one, other = canonical(cls(a), "x"), canonical(cls(b), "x")
        if one == other:
            assert cls(a) == cls(b)
        elif cls is PurePosixPath or sys.version_info >= (3, 12):
            # 3.11 holds some paths equal that name different files.
            assert cls(a) != cls(b)


def scramble(rng: random.Random, depth: int, *, hashable_only: bool = False) -> Any:
    kind = rng.randrange(10)
    if depth == 0 or kind < 4:
        return rng.choice(SCALARS)
    size = rng.randrange(3)
    if kind < 6:
        return tuple(scramble(rng, depth - 1, hashable_only=hashable_only) for _ in range(size))
    if kind == 6 or hashable_only:
        return frozenset(scramble(rng, depth - 1, hashable_only=True) for _ in range(size))
    if kind == 7:
        return [scramble(rng, depth - 1) for _ in range(size)]
    if kind == 8:
        return {scramble(rng, depth - 1, hashable_only=True) for _ in range(size)}
    return {
        scramble(rng, depth - 1, hashable_only=True): scramble(rng, depth - 1) for _ in range(size)
    }


def test_a_million_random_pairs_have_no_collision() -> None:
    rng = random.Random(20240229)
    values = [scramble(rng, 3) for _ in range(2_000)]
    forms = [canonical(value, "x") for value in values]
    codes = [encode(form) for form in forms]
    equal = 0
    for _ in range(1_000_000):
        a, b = rng.randrange(2_000), rng.randrange(2_000)
        expected = same(values[a], values[b])
        assert (forms[a] == forms[b]) is expected, (values[a], values[b])
        assert (codes[a] == codes[b]) is expected, (values[a], values[b])
        equal += expected
    assert 10_000 < equal < 500_000  # both answers were asked for


STABLE = """
import random, sys
from tests.test_keys import DIFFERENT, SAME, canonical, call_key, digest, encode, scramble
rng = random.Random(7)
values = DIFFERENT + [a for a, _ in SAME] + [scramble(rng, 3) for _ in range(300)]
print(*(encode(canonical(value, "x")).hex() for value in values), sep="\\n")
print(*(digest(call_key((value, 1), ("x", "y"))[0]).hex() for value in values), sep="\\n")
"""


def test_encodings_are_the_same_in_every_process() -> None:
    """Whatever the seed of str hashes, and so the order of sets."""
    outputs = set()
    for seed in ("0", "1", "4294967295"):
        done = subprocess.run(
            [sys.executable, "-c", STABLE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            cwd=os.path.dirname(os.path.dirname(__file__)),
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) > 500


def test_encodings_are_pinned() -> None:
    """They may lie in other processes and on disks: a change here needs a new version."""
    pinned: dict[str, Any] = {
        "n0:": None,
        "s3:a:b": "a:b",
        "i1:\x01": 1,
        "i2:\x01\x00": 256,
        "b1:1": b"1",
        "(11:t4:bool?1:1": True,
        "(23:t5:tuple(11:t4:bool?1:1": (True,),
        "(22:t4:dict{11:(8:s1:ai1:\x01": {"a": 1},
        "(17:t7:Decimald4:+1:\x01": Decimal("10.0"),
        "(16:t7:Decimald3:inf": Decimal("Infinity"),
        f"({len(__name__) + 16}:t{len(__name__) + 6}:{__name__}:Colors3:RED": Color.RED,
    }
    for text, value in pinned.items():
        assert encode(canonical(value, "x")).decode("latin-1") == text


def frames(code: bytes) -> list[bytes]:
    """Take an encoding apart by nothing but its own lengths."""
    found = []
    while code:
        head, _, rest = code.partition(b":")
        size = int(head[1:])
        assert len(rest) >= size
        found.append(head[:1] + rest[:size])
        code = rest[size:]
    return found


def test_encodings_end_by_themselves() -> None:
    for value in DIFFERENT:
        code = encode(canonical(value, "x"))
        assert len(frames(code)) == 1
        assert len(frames(code + code + encode("tail"))) == 3


# ---- what is refused


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Ratio:
    numerator, denominator = Number(3), Number(2)


numbers.Rational.register(Ratio)


@dataclasses.dataclass
class Mutable:
    x: int


@dataclasses.dataclass(frozen=True, eq=False)
class Identical:
    x: int


class Undecorated(Span):
    pass


@dataclasses.dataclass(frozen=True)
class Dressed(str):
    x: int = 0


@attrs.define
class MutableMoney:
    x: int


@attrs.frozen(eq=False)
class IdenticalMoney:
    x: int


class UndecoratedMoney(Money):
    pass


class Comparing(type):
    def __eq__(cls, other: object) -> bool:
        return True

    def __hash__(cls) -> int:
        return hash(str)


class Lying(type):
    __hash__ = Comparing.__hash__

    def __getattribute__(cls, name: str) -> Any:
        raise ZeroDivisionError


class Equating(type):
    __hash__ = type.__hash__

    def __eq__(cls, other: object) -> bool:
        return type(other) is Equating


class Chameleon(metaclass=Comparing):
    pass


@dataclasses.dataclass(frozen=True)
class Equal(metaclass=Equating):
    x: int = 1


class Liar(metaclass=Lying):
    pass


@dataclasses.dataclass(frozen=True)
class FrozenChameleon(metaclass=Comparing):
    x: int = 1


class Shapeless(enum.Enum):
    ONE = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        made = object.__new__(cls)
        made._name_, made._value_ = "ONE", value
        return made


def loaded() -> Swapped:
    point = Swapped(1, 2)
    point.extra = 3  # type: ignore[attr-defined]
    return point


def keyless_zone() -> ZoneInfo:
    import zoneinfo

    for folder in zoneinfo.TZPATH:
        if (path := Path(folder, "Europe/Berlin")).exists():
            with path.open("rb") as file:
                return ZoneInfo.from_file(file)
    pytest.skip("no time zone files")


REFUSED: dict[str, Any] = {
    "nan": lambda: float("nan"),
    "complex nan": lambda: complex(1, float("nan")),
    "complex nan, real": lambda: complex(float("nan"), 1),
    "decimal nan": lambda: Decimal("NaN"),
    "decimal signaling nan": lambda: Decimal("sNaN"),
    "object": object,
    "loud object": Loud,
    "type": lambda: int,
    "function": lambda: lambda: None,
    "generator": lambda: iter(()),
    "ellipsis": lambda: ...,
    "slice": lambda: slice(1),
    "bytearray": lambda: bytearray(b"x"),
    "memoryview": lambda: memoryview(b"x"),
    "module": lambda: os,
    "subclass of str": lambda: Text(SECRET),
    "subclass of int": lambda: Number(1),
    "ordered dict": OrderedDict,
    "default dict": lambda: defaultdict(int),
    "counter": Counter,
    "struct sequence": lambda: os.stat("."),
    "namedtuple with attributes": loaded,
    "mutable dataclass": lambda: Mutable(1),
    "dataclass by identity": lambda: Identical(1),
    "subclass of a dataclass": lambda: Undecorated(1, 2),
    "dataclass on a str": lambda: Dressed(),
    "mutable attrs": lambda: MutableMoney(1),
    "attrs by identity": lambda: IdenticalMoney(1),
    "subclass of attrs": lambda: UndecoratedMoney(1),
    "class that equals str": Chameleon,
    "dataclass that equals its like": Equal,
    "class that hides its name": Liar,
    "member of a strange name": lambda: next(iter(enum.Enum("E", [(Text("A"), 1)]))),
    "dataclass with such a metaclass": FrozenChameleon,
    "member not listed": lambda: Shapeless(SECRET),
    "zone without a key": keyless_zone,
    "hook that returns an object": lambda: Hooked(object()),
    "hook that returns nan": lambda: Hooked(float("nan")),
    "a key": lambda: Key(None, 1, int, "f"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_values_name_the_parameter_and_the_type_alone(name: str) -> None:
    for wrap in (
        lambda v: v,
        lambda v: (1, v),
        lambda v: [v],
        lambda v: {1: [v]},
        lambda v: Span(v, 1),
    ):
        value = wrap(REFUSED[name]())
        with pytest.raises(UnsupportedKeyError) as caught:
            canonical(value, "the_parameter")
        error = caught.value
        assert isinstance(error, TypeError)
        assert isinstance(error, CacheError)
        assert error.parameter == "the_parameter"
        assert "the_parameter" in str(error)
        assert error.type_name in str(error)
        assert SECRET not in str(error)
        assert "0x" not in str(error)


def test_the_type_named_is_that_of_the_part_refused() -> None:
    with pytest.raises(UnsupportedKeyError) as caught:
        canonical({"a": (1, [Text(SECRET)])}, "x")
    assert caught.value.type_name == f"{__name__}.Text"
    with pytest.raises(UnsupportedKeyError) as caught:
        canonical((1, float("nan")), "x")
    assert caught.value.type_name == "float"


def test_raw_keys_are_hashable_at_every_depth() -> None:
    for value in (1, "a", (1, (2, frozenset({3}))), Span(1, (2,)), Color.RED, None, 1.5):
        assert canonical(value, "key", raw=True) == canonical(value, "key")
    for value in ([], {}, set(), (1, []), Span(1, {}), Point(1, {2}), (((set(),),),), Hooked([1])):
        canonical(value, "key")
        with pytest.raises(UnsupportedKeyError, match="key"):
            canonical(value, "key", raw=True)


def test_a_key_does_not_change_with_the_list_it_was_made_of() -> None:
    value = [1, {"a": {2}}]
    before = canonical(value, "x")
    copied = encode(before)
    value.append(3)
    value[1]["a"].add(9)  # type: ignore[index]
    assert encode(before) == copied
    assert canonical(value, "x") != before


def nested(depth: int, wrap: Any = lambda inner: [inner]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


WRAPS: list[Any] = [
    lambda inner: [inner],
    lambda inner: (inner, 1),
    lambda inner: {"k": inner},
    lambda inner: frozenset({inner}),
    lambda inner: Span(inner, 1),
    lambda inner: Point(1, inner),
    Hooked,
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_hundred_levels_are_accepted_and_one_more_is_not(wrap: Any) -> None:
    one, two = (canonical(nested(100, wrap), "x") for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert encode(one) == encode(two)
    with pytest.raises(UnsupportedKeyError, match="100 levels"):
        canonical(nested(101, wrap), "x")


def test_bottomless_values_are_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    canonical([0] * (_keys.MAX_PARTS - 1), "x")
    with pytest.raises(UnsupportedKeyError, match="1,000,000 parts"):
        canonical([[0] * 10_000] * 100, "x")
    monkeypatch.setattr(_keys, "MAX_PARTS", 20_000)
    loop: list[Any] = [1]
    loop.append(loop)
    ring: dict[str, Any] = {}
    ring["a"] = [ring, ring]
    me = Hooked(None)
    me.answer = me
    twice: list[Any] = []
    for _ in range(60):  # 2**60 members, 60 levels
        twice = [twice, twice]
    for value in (loop, ring, me, (loop,), nested(100_000), twice):
        with pytest.raises(UnsupportedKeyError, match=r"levels|parts"):
            canonical(value, "x")


# ---- user code


def test_what_a_hook_raises_reaches_the_caller() -> None:
    for error in (ValueError("mine"), RecursionError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            canonical([Hooked(error)], "x")
        assert caught.value is error


def test_a_hook_may_change_the_container_it_lies_in() -> None:
    """So may another thread: the members of one moment make the key."""

    class Greedy:
        def __init__(self, grow: Any) -> None:
            self.grow = grow

        def __cache_key__(self) -> int:
            self.grow()
            return 1

    members: set[Any] = set()
    members.add(Greedy(lambda: members.add(object())))
    table: dict[Any, Any] = {}
    table[1] = Greedy(lambda: table.update({len(table) + 1: object()}))
    row: list[Any] = []
    row.append(Greedy(lambda: row.append(object())))
    for value in (members, table, row):
        canonical(value, "x")
        assert len(value) == 2


def test_hooks_are_found_on_the_class_and_inherited() -> None:
    assert canonical(Hooked(1), "x") == (Hooked, 1)
    assert canonical(OtherHooked(True), "x") == (OtherHooked, (bool, True))
    plain = Loud()
    plain.__cache_key__ = lambda: 1  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedKeyError):
        canonical(plain, "x")


def test_a_hook_comes_before_the_structure() -> None:
    @dataclasses.dataclass(frozen=True)
    class Row:
        id: int
        cells: object

        def __cache_key__(self) -> int:
            return self.id

    assert canonical(Row(1, object()), "x") == (Row, 1)


@pytest.mark.usefixtures("registry")
class TestRegistration:
    def test_a_registered_class_is_accepted_with_its_subclasses(self) -> None:
        class Base:
            def __init__(self, x: object) -> None:
                self.x = x

        class Derived(Base):
            pass

        with pytest.raises(UnsupportedKeyError):
            canonical(Derived(1), "x")
        register_key_type(Base, lambda value: value.x)
        assert canonical(Base(1), "x") == (Base, 1)
        assert canonical(Derived([True]), "x") == (Derived, (list, (bool, True)))
        with pytest.raises(UnsupportedKeyError, match="param"):
            canonical(Derived(object()), "param")

    def test_the_nearest_rule_counts_and_the_last_registration(self) -> None:
        class Base:
            pass

        class Middle(Base):
            def __cache_key__(self) -> str:
                return "hook"

        class Leaf(Middle):
            pass

        register_key_type(Base, lambda _: "base")
        assert canonical(Leaf(), "x") == (Leaf, "hook")
        register_key_type(Leaf, lambda _: "leaf")
        assert canonical(Leaf(), "x") == (Leaf, "leaf")
        register_key_type(Leaf, lambda _: "later")
        assert canonical(Leaf(), "x") == (Leaf, "later")
        assert canonical(Middle(), "x") == (Middle, "hook")
        assert canonical(Base(), "x") == (Base, "base")

    def test_a_registration_comes_before_the_structure(self) -> None:
        assert canonical(Color.RED, "x") == (Color, "RED")
        register_key_type(Color, lambda color: color.value)
        assert canonical(Color.RED, "x") == (Color, 1)

    def test_what_it_raises_reaches_the_caller(self) -> None:
        register_key_type(Loud, lambda _: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            canonical([Loud()], "x")

    def test_subclasses_of_builtins_can_be_registered(self) -> None:
        register_key_type(Text, str)
        assert canonical(Text("a"), "x") == (Text, "a")
        assert canonical(Text("a"), "x") != canonical("a", "x")

    @pytest.mark.parametrize(
        ("cls", "fn", "error"),
        [
            (str, repr, ValueError),
            (bool, repr, ValueError),
            (list, repr, ValueError),
            (dict, repr, ValueError),
            (datetime, repr, ValueError),
            (type(None), repr, ValueError),
            (enum.Enum, repr, ValueError),
            (object, repr, ValueError),
            ("Text", repr, TypeError),
            (list[int], repr, TypeError),
            (Text, None, TypeError),
            (Chameleon, repr, TypeError),
        ],
    )
    def test_arguments_are_checked(self, cls: Any, fn: Any, error: type[Exception]) -> None:
        before = dict(_keys._registered)
        with pytest.raises(error, match="register_key_type"):
            register_key_type(cls, fn)
        assert _keys._registered == before

    def test_threads_lose_no_registration(self) -> None:
        classes = [type(f"C{i}", (), {}) for i in range(200)]
        start = threading.Barrier(4)

        def register(part: list[type]) -> None:
            start.wait()
            for cls in part:
                register_key_type(cls, lambda _: "known")
                canonical(cls(), "x")

        threads = [threading.Thread(target=register, args=(classes[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(canonical(cls(), "x") == (cls, "known") for cls in classes)


def test_a_class_that_gains_a_hook_is_accepted_from_then_on() -> None:
    class Late:
        pass

    with pytest.raises(UnsupportedKeyError):
        canonical(Late(), "x")
    Late.__cache_key__ = lambda self: 1  # type: ignore[attr-defined]
    assert canonical(Late(), "x") == (Late, 1)


def test_classes_are_not_kept_alive_by_what_is_known_of_them() -> None:
    def use() -> list[weakref.ref[type]]:
        hooked = type("Hook", (), {"__cache_key__": lambda self: 1})
        framed = dataclasses.make_dataclass("Framed", ["x"], frozen=True)
        coloured = enum.Enum("Coloured", ["RED"])
        canonical([hooked(), framed(1), coloured["RED"], Point(1, 2)], "x")
        return [weakref.ref(hooked), weakref.ref(framed), weakref.ref(coloured)]

    refs = use()
    gc.collect()
    assert [ref() for ref in refs] == [None, None, None]


def test_neither_hashing_nor_comparing_a_key_runs_user_code() -> None:
    """Members of sets and keys of dicts are taken apart, never hashed again."""

    @dataclasses.dataclass(frozen=True)
    class Tripwire:
        x: object

        armed = False

        def __eq__(self, other: object) -> bool:
            assert not Tripwire.armed
            return self is other

        def __hash__(self) -> int:
            assert not Tripwire.armed
            return 1

    value = {Tripwire(1): [Tripwire(2)], Tripwire(3): {Tripwire(4)}}
    other = {Tripwire(3): {Tripwire(4)}, Tripwire(1): [Tripwire(2)]}
    Tripwire.armed = True
    one, two = canonical(value, "x"), canonical(other, "x")
    assert one == two
    assert {one: 1}[two] == 1
    assert builtins_only(one)


def builtins_only(form: Any) -> bool:
    if isinstance(form, type):
        return type(form).__eq__ is type.__eq__ and type(form).__hash__ is type.__hash__
    if type(form) in {tuple, frozenset}:
        return all(map(builtins_only, form))
    return type(form) in {str, int, bytes, type(None), bool, float, complex, Decimal}


def test_forms_hold_builtin_immutables_and_types_alone() -> None:
    odd = [
        Fraction(Ratio()),  # type: ignore[arg-type]
        UUID(int=Number(3)),
        range(Number(1), Number(5)),
        time(1, tzinfo=Odd(Minutes(hours=1))),
        enum.Enum("E", [("A", Number(1))])["A"],  # type: ignore[index]
    ]
    for value in [*DIFFERENT, *odd]:
        assert builtins_only(canonical(value, "x")), value


def test_classes_of_one_name_differ_here_and_agree_in_their_encoding() -> None:
    def make() -> Any:
        @dataclasses.dataclass(frozen=True)
        class Local:
            x: int

        return Local(1)

    one, two = canonical(make(), "x"), canonical(make(), "x")
    assert one != two
    assert encode(one) == encode(two)


# ---- calls


@pytest.mark.parametrize(
    ("values", "key", "kind"),
    [
        ((), (), ()),
        (("a",), "a", str),
        ((1,), 1, int),
        ((b"a",), b"a", bytes),
        ((None,), None, type(None)),
        (("a", 1), ("a", 1), (str, int)),
        ((None, b"", 1), (None, b"", 1), (type(None), bytes, int)),
        ((True,), (bool, True), None),
        (((1, 2),), (tuple, 1, 2), None),
        ((1, True), (Call, 1, (bool, True)), None),
        ((1.5, "a"), (Call, (float, 1.5), "a"), None),
        (("a", Level.LOW), (Call, "a", (Level, "LOW")), None),
    ],
)
def test_a_call_has_a_key_and_the_types_that_confirm_it(values: Any, key: Any, kind: Any) -> None:
    found, types = call_key(values, tuple("xyz"[: len(values)]))
    assert found == key
    assert (
        [*map(type, found)] == [*map(type, key)]
        if isinstance(key, tuple)
        else type(found) is type(key)
    )
    assert types == kind


def test_the_raw_tuple_of_plain_arguments_is_the_key_itself() -> None:
    values = ("a", 1)
    assert call_key(values, ("x", "y"))[0] is values


def test_the_argument_at_fault_is_named() -> None:
    for values in ((1, object(), 2.5), (1.5, Text(SECRET), 1), (1, Chameleon(), object())):
        with pytest.raises(UnsupportedKeyError) as caught:
            call_key(values, ("first", "second", "third"))
        assert caught.value.parameter == "second"
    with pytest.raises(UnsupportedKeyError) as caught:
        call_key((cmath.nan,), ("only",))
    assert caught.value.parameter == "only"


def test_a_class_that_claims_to_be_str_is_not_plain() -> None:
    """A lookup of its type in a set would ask the type, and it would say yes."""
    with pytest.raises(UnsupportedKeyError):
        call_key((Chameleon(),), ("x",))
    with pytest.raises(UnsupportedKeyError):
        call_key((Chameleon(), 1), ("x", "y"))


# ---- Key


def test_keys_are_equal_by_space_and_data() -> None:
    space, other = [1], [1]
    key = Key(space, ("a", 1), (str, int), "f")
    assert key == Key(space, ("a", 1), None, "g")
    assert hash(key) == hash(Key(space, ("a", 1), None, "g"))
    assert key != Key(other, ("a", 1), (str, int), "f")
    assert key != Key(space, ("a", 2), (str, int), "f")
    assert key != ("a", 1)
    assert {key: 1}[Key(space, ("a", 1), None, "f")] == 1


def test_keys_show_their_name_alone() -> None:
    key = Key(None, f"token={SECRET}", str, "prices.get")
    assert repr(key) == str(key) == f"{key}" == "<Key of prices.get>"


def test_keys_cannot_be_changed_or_pickled_but_copied() -> None:
    key = Key([1], (list, 1), None, "f")
    with pytest.raises(AttributeError):
        key.data = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del key.data  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        key.extra = 1  # type: ignore[attr-defined]
    assert not hasattr(key, "__dict__")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(key, protocol)
    assert copy.copy(key) is key
    assert copy.deepcopy({key: 1}) == {key: 1}
