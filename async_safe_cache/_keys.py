"""A value becomes a key: canonical, typed, free of collisions.

Python holds 1, 1.0 and True equal; a cache must not. Every accepted value has
one *canonical form*:

    plain   str, int, bytes, None     the value itself
    other   everything else           (type, *parts), parts canonical or builtin scalars

    1 -> 1      True -> (bool, True)      (1, [True]) -> (tuple, 1, (list, (bool, True)))

Equal values of one type have equal forms; different values and different types
have different ones. No caller can pass a form off as a value: a form begins with
a type, and types are not accepted values.

Invariant: a form holds builtin immutables and types whose metaclass compares by
identity, so hashing and comparing forms never runs code of the user's and they
can be looked up under a lock. User code (`__cache_key__`, a registered function,
`utcoffset`) runs only here; what it raises, the caller gets.

Within one type, equal means what Python's `==` means: 0.0 is -0.0,
Decimal("1.0") is Decimal("1.00"), a naive time ignores `fold`, a `timezone`
ignores its name, and fields that a class leaves out of its comparison are left
out here. Two rules differ, because Python's answer depends on who asks:

    aware datetime   is its instant: equal instants share a key in any zone; the
                     two readings of a repeated hour (`fold`) are two instants
    ZoneInfo         is its key; a `time` in a zone without a fixed offset keeps
                     the zone, where Python compares the digits alone

Sources: the typed keys of functools.lru_cache; PEP 495; netstrings (djb) for the
encoding.
"""

import cmath
import dataclasses
import ipaddress
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum
from fractions import Fraction
from hashlib import blake2b
from operator import attrgetter, methodcaller
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from threading import RLock
from types import NoneType
from typing import Any, Final, NoReturn, TypeAlias, TypeVar, final
from uuid import UUID
from weakref import WeakKeyDictionary
from zoneinfo import ZoneInfo

from .errors import UnsupportedKeyError

__all__ = [
    "PLAIN",
    "Call",
    "DataKey",
    "Key",
    "Kind",
    "apart",
    "call_key",
    "canonical",
    "digest",
    "encode",
    "register_key_type",
]

DataKey: TypeAlias = str | int | bytes | None | tuple[object, ...]
Kind: TypeAlias = type | tuple[type, ...] | None

PLAIN: Final[frozenset[type]] = frozenset({str, int, bytes, NoneType})
MAX_DEPTH: Final = 100
# A list that holds one list twice, which holds another twice, ... is short but endless to walk.
MAX_PARTS: Final = 1_000_000

_T = TypeVar("_T")
_MICROSECOND: Final = timedelta(microseconds=1)


@final
class Call:
    """Marks the key of a call with several arguments, not all of them plain."""


# ---- one walk over one value


@final
class _Walk:
    """What one call of `canonical` knows on its way down."""

    __slots__ = ("depth", "parameter", "parts", "raw")

    def __init__(self, parameter: str, *, raw: bool) -> None:
        self.parameter = parameter
        self.raw = raw
        self.depth = 0
        self.parts = 0

    def form(self, value: object) -> DataKey:
        cls = type(value)
        if cls is str or cls is int or cls is bytes or value is None:
            return value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
        meta = type(cls)
        # Before anything looks the class up: a lookup hashes it.
        if meta is not type and not _compares_by_identity(meta):
            raise self.refusal(value, "its metaclass redefines equality or hashing of classes")
        make = _FORMS.get(cls) or _plan_of(cls)
        if make is None:
            raise self.refusal(value, "its equality and its parts are not known to the cache")
        if self.depth == MAX_DEPTH:
            reason = f"it is nested deeper than {MAX_DEPTH} levels or contains itself"
            raise self.refusal(value, reason)
        self.depth += 1  # not restored by an error: that ends the walk
        form = make(value, self)
        self.depth -= 1
        return form

    def forms(self, values: Sequence[object]) -> tuple[DataKey, ...]:
        self.parts += len(values)
        if self.parts > MAX_PARTS:
            raise self.refusal(values, f"the argument has more than {MAX_PARTS:,} parts")
        return tuple(map(self.form, values))

    def mutable(self, value: object, members: Iterable[_T]) -> tuple[_T, ...]:
        if self.raw:
            raise self.refusal(value, "a raw key is a hashable value, and this one can change")
        return tuple(members)  # one moment, while other threads change it

    def refusal(self, value: object, reason: str) -> UnsupportedKeyError:
        return UnsupportedKeyError(
            parameter=self.parameter, type_name=_display_name(type(value)), reason=reason
        )


_Form: TypeAlias = Callable[[Any, _Walk], tuple[object, ...]]

# A metaclass may redefine these names; the descriptors of `type` read past it.
_module = type.__dict__["__module__"].__get__
_qualname = type.__dict__["__qualname__"].__get__


def _display_name(cls: type) -> str:
    module = _module(cls)
    return f"{_qualname(cls)}" if module == "builtins" else f"{module}.{_qualname(cls)}"


def _compares_by_identity(meta: Any) -> bool:
    return meta.__eq__ is type.__eq__ and meta.__hash__ is type.__hash__


# ---- the accepted types of the standard library


def _number(value: float | complex | Decimal, walk: _Walk) -> tuple[object, ...]:
    # Not `!=`: a signaling NaN raises when it is compared.
    if value.is_nan() if isinstance(value, Decimal) else cmath.isnan(value):
        raise walk.refusal(value, "NaN is not equal to itself")
    return (type(value), value)


def _dict(value: dict[object, object], walk: _Walk) -> tuple[object, ...]:
    items = walk.mutable(value, value.items())
    forms = walk.forms([part for item in items for part in item])
    return (dict, _bag(zip(forms[::2], forms[1::2], strict=True)))


def _bag(members: Iterable[object]) -> frozenset[object]:
    """The members without their order, each with its count if any occurs twice.

    Members that Python tells apart can have one form (two objects with one
    `__cache_key__`). A pair (form, count) is no form: it does not begin with a type.
    """
    members = tuple(members)
    bag = frozenset(members)
    return bag if len(bag) == len(members) else frozenset(Counter(members).items())


def _range(value: range, _: _Walk) -> tuple[object, ...]:
    if not value:
        return (range,)
    first, last = value[0], value[-1]  # not len(): it overflows where these do not
    return (range, first) if first == last else (range, first, last, value.step)


def _moment(value: datetime | time, walk: _Walk) -> tuple[object, ...]:
    # Microseconds, as an int: an instant near year 1 or 9999 may have no datetime in UTC.
    day = value.toordinal() if isinstance(value, datetime) else 0
    seconds = ((day * 24 + value.hour) * 60 + value.minute) * 60 + value.second
    reading = seconds * 1_000_000 + value.microsecond
    if value.tzinfo is None:
        return (type(value), "naive", reading)
    offset = value.utcoffset()
    if offset is None:
        return (type(value), "zone", reading, walk.form(value.tzinfo))
    # Unbound: utcoffset is user code and may return a subclass.
    return (type(value), "utc", reading - timedelta.__floordiv__(offset, _MICROSECOND))


def _zone(value: ZoneInfo, walk: _Walk) -> tuple[object, ...]:
    if type(value.key) is not str:
        raise walk.refusal(value, "a ZoneInfo without a key has no name to be known by")
    return (ZoneInfo, value.key)


def _windows_path(value: PureWindowsPath, _: _Walk) -> tuple[object, ...]:
    # The drive by itself: older versions print a drive and a folder named like one alike.
    return (type(value), value.drive.lower(), str(value).lower())


def _by_text(value: object, _: _Walk) -> tuple[object, ...]:
    """For types whose text is one to one with their value."""
    return (type(value), str(value))


_FORMS: Final[dict[type, _Form]] = {
    bool: lambda value, _: (bool, value),
    float: _number,
    complex: _number,
    Decimal: _number,
    tuple: lambda value, walk: (tuple, *walk.forms(value)),
    list: lambda value, walk: (list, *walk.forms(walk.mutable(value, value))),
    dict: _dict,
    set: lambda value, walk: (set, _bag(walk.forms(walk.mutable(value, value)))),
    frozenset: lambda value, walk: (frozenset, _bag(walk.forms(tuple(value)))),
    range: _range,
    # int(): the parts of these two may be integers of a foreign class.
    Fraction: lambda value, _: (Fraction, int(value.numerator), int(value.denominator)),
    UUID: lambda value, _: (UUID, int(value.int)),
    date: lambda value, _: (date, value.toordinal()),
    datetime: _moment,
    time: _moment,
    timedelta: lambda value, _: (timedelta, value // _MICROSECOND),
    timezone: lambda value, _: (timezone, value.utcoffset(None) // _MICROSECOND),
    ZoneInfo: _zone,
    PureWindowsPath: _windows_path,
    WindowsPath: _windows_path,
    **dict.fromkeys((PurePosixPath, PosixPath), _by_text),
    **dict.fromkeys((ipaddress.IPv4Address, ipaddress.IPv6Address), _by_text),
    **dict.fromkeys((ipaddress.IPv4Network, ipaddress.IPv6Network), _by_text),
    **dict.fromkeys((ipaddress.IPv4Interface, ipaddress.IPv6Interface), _by_text),
}


# ---- classes of the user's: hooks first, then structure

_registered: dict[type, Callable[[Any], object]] = {}  # one per register_key_type
_registering: Final = RLock()  # a finaliser in the middle of it may register, too
# Replaced, not cleared, by a registration: a thread that plans by the old one then
# writes into a dict that nobody reads. Weak, and no plan holds its class.
_plans: WeakKeyDictionary[type, _Form] = WeakKeyDictionary()

_ENUMS: Final[frozenset[type]] = frozenset({Enum, IntEnum, StrEnum, Flag, IntFlag})


def register_key_type(cls: type[_T], fn: Callable[[_T], object]) -> None:
    """Accept instances of *cls* and its subclasses as keys and arguments.

    The key of a value is its type and what *fn* returns for it, so *fn* must tell
    apart all that differ, in subclasses too. Of `__cache_key__` methods and registered
    classes the nearest in the method resolution order counts, before the structure
    of an Enum, NamedTuple or dataclass. The last registration of a class wins.

    Args:
        cls: A class that the cache does not accept by itself.
        fn: Called with the value; returns any accepted value. What it raises
            reaches the caller of the cache.

    Raises:
        TypeError: *cls* is not a class, its metaclass redefines equality or
            hashing of classes, or *fn* is not callable.
        ValueError: *cls* is accepted already, or is `object`.
    """
    global _registered, _plans
    # The signature says so; a caller without a type checker learns it here.
    if not isinstance(cls, type):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError("register_key_type: cls must be a class")
    if not _compares_by_identity(type(cls)):
        raise TypeError(
            f"register_key_type: the metaclass of {_display_name(cls)} redefines equality or "
            "hashing of classes; a key compares types by identity"
        )
    if not callable(fn):
        raise TypeError("register_key_type: fn must be callable: value -> accepted value")
    if cls is object:
        raise ValueError("register_key_type: object would accept everything; name the class")
    if cls in PLAIN or cls in _FORMS or cls in _ENUMS:
        raise ValueError(
            f"register_key_type: {_display_name(cls)} is accepted as it is, "
            "and every cache relies on its one form; register a subclass"
        )
    with _registering:
        _registered = {**_registered, cls: fn}
        _plans = WeakKeyDictionary()


def _plan_of(cls: type) -> _Form | None:
    plans = _plans
    plan = plans.get(cls)
    if plan is None:
        plan = _make_plan(cls)
        # A refusal is not kept: the class may yet gain a __cache_key__.
        if plan is not None:
            plans[cls] = plan
    return plan


def _make_plan(cls: type[Any]) -> _Form | None:
    for base in cls.__mro__:
        if (fn := _registered.get(base)) is not None:
            return _read_by(fn)
        if "__cache_key__" in vars(base):
            return _read_by(methodcaller("__cache_key__"))
    if issubclass(cls, Flag):
        return _read_by(attrgetter("_value_"))  # a composite has no name of its own
    if issubclass(cls, Enum):
        return _member
    if tuple in cls.__mro__:
        return _named_tuple if isinstance(getattr(cls, "_fields", None), tuple) else None
    # Any other subclass of a builtin is more than its fields.
    if any(base in PLAIN or base in _FORMS for base in cls.__mro__):
        return None
    # The class itself, not a base: a subclass may hold what its base does not compare.
    own = vars(cls)
    params = own.get("__dataclass_params__")
    if params is not None and params.frozen and params.eq:
        return _fields_plan([(f.name, None) for f in dataclasses.fields(cls) if f.compare])
    if "__attrs_attrs__" in own and "__eq__" in own:
        # What attrs asks to know a frozen class; its public `inspect` came only in 25.4.
        setter: object = cls.__setattr__
        if getattr(setter, "__module__", "") == "attr._make" and (
            getattr(setter, "__name__", "") == "_frozen_setattrs"
        ):
            return _fields_plan([(a.name, a.eq_key) for a in own["__attrs_attrs__"] if a.eq])
    return None


def _read_by(read: Callable[[Any], object]) -> _Form:
    def plan(value: object, walk: _Walk) -> tuple[object, ...]:
        return (type(value), walk.form(read(value)))

    return plan


def _member(value: Enum, walk: _Walk) -> tuple[object, ...]:
    cls, name = type(value), value._name_
    # `_missing_` can make members that the class does not list: no name is theirs alone.
    if type(name) is not str or cls._member_map_.get(name) is not value:
        raise walk.refusal(value, "this member is not listed in its Enum")
    return (cls, name)


def _named_tuple(value: tuple[object, ...], walk: _Walk) -> tuple[object, ...]:
    if getattr(value, "__dict__", None):
        raise walk.refusal(value, "it carries attributes beside its fields")
    # Past an __iter__ of the class's own.
    fields: list[object] = [*tuple.__iter__(value)]  # pyright: ignore[reportUnknownMemberType]
    return (type(value), *walk.forms(fields))


def _fields_plan(fields: list[tuple[str, Callable[[Any], object] | None]]) -> _Form:
    def plan(value: object, walk: _Walk) -> tuple[object, ...]:
        parts = [getattr(value, name) for name, _ in fields]
        for index, (_, compared_by) in enumerate(fields):
            if compared_by is not None:
                parts[index] = compared_by(parts[index])
        return (type(value), *walk.forms(parts))

    return plan


# ---- the doors


def canonical(value: object, parameter: str, *, raw: bool = False) -> DataKey:
    """Return the canonical form of *value*.

    Args:
        value: Any accepted value.
        parameter: The name that an error gives it.
        raw: Refuse lists, dicts and sets at any depth: raw keys are hashable.

    Raises:
        UnsupportedKeyError: *value* or a part of it is not accepted, is NaN, is
            nested deeper than 100 levels, contains itself, or has more than
            1,000,000 parts. It names the parameter and the type, no value.
        Exception: whatever `__cache_key__`, a registered function or `utcoffset` raised.

    Complexity: O(parts); a plain value is returned at once.
    """
    cls = type(value)
    if cls is str or cls is int or cls is bytes or value is None:
        return value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
    return _Walk(parameter, raw=raw).form(value)


def call_key(values: tuple[object, ...], names: tuple[str, ...]) -> tuple[DataKey, Kind]:
    """Return the key of a call and the types by which a fast lookup confirms it.

    One argument is its canonical form; several plain ones (or none) are the raw tuple,
    any others (Call, *forms). The kind is the type of the one plain argument or the
    tuple of types of several; None otherwise, and no fast lookup finds that entry.

    Args:
        values: The bound arguments in the order of the signature.
        names: Their names, for errors; as many as *values*.

    Raises:
        UnsupportedKeyError: an argument is refused, as in `canonical`.
    """
    if len(values) == 1:
        value = values[0]
        cls = type(value)
        if cls is str or cls is int or cls is bytes or value is None:
            return value, cls  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
        return _Walk(names[0], raw=False).form(value), None
    # By identity, not `in PLAIN`: a lookup would run a metaclass's __hash__.
    for value in values:
        cls = type(value)
        if cls is not str and cls is not int and cls is not bytes and value is not None:
            break
    else:
        return values, tuple(map(type, values))
    return (Call, *(canonical(v, n) for v, n in zip(values, names, strict=True))), None


def apart(value: Any) -> Any:
    """Return *value*, an accepted one, with lists, dicts and sets that nobody else can change."""
    cls: object = type(value)  # pyright: ignore[reportUnknownVariableType]
    if cls is list:
        return list(map(apart, value.copy()))
    if cls is tuple:
        return tuple(map(apart, value))
    if cls is dict:
        return {key: apart(each) for key, each in value.copy().items()}
    return value.copy() if cls is set else value


@final
@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Key:
    """The opaque key of one entry, of this process; its repr shows no part of the data.

    Equal when the data are equal and the space is the same object.

    Attributes:
        space: The namespace that the entry belongs to, by identity.
        data: A canonical form, or the raw tuple of a call's plain arguments.
        kind: The second result of `call_key`, or None.
        name: Name of the function or the cache, for people.
    """

    space: object
    data: DataKey
    kind: object
    name: str

    def __eq__(self, other: object) -> bool:
        if type(other) is not Key:
            return NotImplemented
        return self.space is other.space and self.data == other.data

    def __hash__(self) -> int:
        return hash((id(self.space), self.data))

    def __repr__(self) -> str:
        return f"<Key of {self.name}>"

    def __deepcopy__(self, _: object = None) -> "Key":
        return self

    __copy__ = __deepcopy__

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Key belongs to its cache and process and cannot be pickled")


# ---- keys that leave the process


def encode(data: object) -> bytes:
    """Return the bytes of a canonical form: stable, injective, self-delimiting.

    The same in every process and under every PYTHONHASHSEED. Each part is a tag,
    the length of its body, a colon and the body. Equal forms encode equally:
    -0.0 as 0.0, Decimal("1.00") as Decimal("1"). A class of the user's stands as
    module:qualname; two classes of one such name (made by one function, or before
    and after a reload) are one here, and only here.

    Complexity: O(parts), plus sorting the members of sets and dicts.
    """
    tag, body_of = _ENCODERS.get(type(data), _TYPE_ENCODER)
    body = body_of(data)
    return b"%b%d:%b" % (tag, len(body), body)


def digest(data: object) -> bytes:
    """Return 16 bytes (BLAKE2b) of `encode`: equal for equal forms."""
    return blake2b(encode(data), digest_size=16).digest()


def _encode_decimal(value: Decimal) -> bytes:
    # Not normalize(): it rounds to the precision of the current context.
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return b"-inf" if sign else b"inf"
    kept = bytes(digits).rstrip(b"\0")
    if not kept:
        return b"0"
    return b"%b%d:%b" % (b"-" if sign else b"+", exponent + len(digits) - len(kept), kept)


def _encode_type(cls: type) -> bytes:
    # The accepted types by their bare name: where the standard library keeps them has moved.
    if cls in _FORMS or cls is Call:
        return cls.__name__.encode()
    return f"{_module(cls)}:{_qualname(cls)}".encode("utf-8", "surrogatepass")


_Encoder: TypeAlias = tuple[bytes, Callable[[Any], bytes]]
_TYPE_ENCODER: Final[_Encoder] = (b"t", _encode_type)
_ENCODERS: Final[dict[type, _Encoder]] = {
    NoneType: (b"n", lambda _: b""),
    bool: (b"?", lambda value: b"1" if value else b"0"),
    int: (b"i", lambda value: value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)),
    str: (b"s", lambda value: value.encode("utf-8", "surrogatepass")),
    bytes: (b"b", lambda value: value),
    # + 0.0 turns -0.0 into 0.0 and changes nothing else.
    float: (b"f", lambda value: struct.pack(">d", value + 0.0)),
    complex: (b"c", lambda value: struct.pack(">dd", value.real + 0.0, value.imag + 0.0)),
    Decimal: (b"d", _encode_decimal),
    tuple: (b"(", lambda value: b"".join(map(encode, value))),
    frozenset: (b"{", lambda value: b"".join(sorted(map(encode, value)))),
}
