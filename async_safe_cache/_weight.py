"""Bytes of a value, within a budget of work.

`sys.getsizeof` sees the shell of a container alone, and a full walk of a large
value stalls the loop. So the walk goes deep but not wide: a container of more
than 32 members is measured by 32 of them, spread evenly, and about a thousand
objects are looked at in all. Each container gets a share of what is left; what
the share does not reach is estimated from what it did reach:

    bytes = shell + members (a shared object once) + unreached shells x ratio
    ratio   bytes per byte of shell of the siblings measured, without the first:
            the first pays for what all of them share

Most values are small. What fits the budget and is made of common types is seen whole,
in one loop that shares out nothing; the walk begins where that loop gives up.

Invariant: `weigh` never recurses, raises no `Exception` and keeps nothing. It asks
the garbage collector for the members of an object, so no property runs and no
`__dict__` comes to life; of the user's code only `__sizeof__`, `nbytes` and `base` run.

Not counted: what every process holds anyway (None, small integers), the names of
attributes, and what a C library allocates and does not report. A list that repeats
a thousand objects or more may pass for a list of different ones: too heavy, on the
safe side. One giant among many dwarfs can be missed.

Sources: pympler's asizeof for what belongs to an object; Chao (1984) for how many
objects a sample of references stands for.
"""

import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from contextvars import Context
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from gc import get_referents
from itertools import islice, pairwise
from logging import Logger
from operator import is_
from sys import getsizeof, maxsize
from typing import Any, Final, cast, final

__all__ = ["weigh", "weigh_key"]

BUDGET: Final = 1_024  # objects looked at, overdrawn by two or three containers at most
SAMPLE: Final = 32  # members that stand for all
SAMPLE_REPEATED: Final = 256  # the same, where some occur more than once
REACH: Final = 4_096  # members of a dict, set or deque that are stepped over to find them
HASHED: Final = 8_192  # bytes up to which hashing all plain values costs less than their ids
OVERDRAFT: Final = 64  # what a container may take beyond its share to measure one member at all

_PLAIN: Final[frozenset[Any]] = frozenset({str, int, float, bytes, bool, types.NoneType})
_LEAVES: Final = _PLAIN.union(
    (complex, bytearray, date, datetime, time, timedelta, Decimal),
    # What these refer to is the program, not the value.
    (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType),
    (types.MethodWrapperType, types.FrameType, types.TracebackType),
    (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, Context),
)
_PROGRAM: Final = (type, Logger)  # likewise, with their subclasses
_MAPPINGS: Final[frozenset[Any]] = frozenset({dict, OrderedDict, defaultdict})
_SEQUENCES: Final[frozenset[Any]] = frozenset({list, tuple})
_CONTAINERS: Final = _MAPPINGS | _SEQUENCES | {set, frozenset, deque}
# By id: the interpreter has one of each for as long as it lives.
_FREE: Final = frozenset(map(id, (None, True, False, "", b"", (), *range(-5, 257))))
# What a subclass can dress as an object by its `__sizeof__`.
_OTHERS: Final = (dict, list, set, frozenset, deque, *_PROGRAM)
_class_of: Final = cast("Callable[[object], Any]", type)
_FLOAT: Final = getsizeof(0.5)
_HEADER: Final = getsizeof([]) - [].__sizeof__()  # the garbage collector's, of each container
_INLINE: Final = 1 << 4  # Py_TPFLAGS_MANAGED_DICT: attributes lie in a block that no object owns


def weigh(value: object) -> tuple[int, bool]:
    """Return the bytes that *value* keeps alive, and whether that is an estimate.

    Never raises: a `__sizeof__` that fails, or a container that changes meanwhile,
    makes an estimate. Where a class writes `__sizeof__` in Python or reports `nbytes`,
    the larger of that and of what is found counts.

    Complexity: O(1): about 2,000 objects looked at, whatever the size.
    """
    cls = type(value)
    if cls is str or cls is bytes or cls is int or cls is float or cls is bool or value is None:
        return value.__sizeof__(), False  # `getsizeof` would add no header, either
    size = _all_of(value)
    if size is not None:
        return size, False
    return _Walk().weigh(value)


def weigh_key(data: Any) -> int:
    """Return the bytes of a canonical data key, exactly; types are not counted."""
    cls = _class_of(data)
    if cls is str or cls is int or cls is bytes or data is None:
        return data.__sizeof__()  # type: ignore[no-any-return]
    total: int = 0
    if cls is tuple and len(data) <= SAMPLE:
        total = data.__sizeof__() + _HEADER
        for part in data:
            cls = _class_of(part)
            if cls is str or cls is int or part is None or cls is float or cls is bool:
                total += part.__sizeof__()
            elif cls is not type:
                break
        else:
            if len(set(data)) == len(data):  # else one object may stand there twice
                return total
    total = 0
    seen: set[int] = set()
    rest: list[Any] = [data]
    for part in rest:
        if id(part) in seen:
            continue
        seen.add(id(part))
        cls = _class_of(part)
        if cls is tuple or cls is frozenset:
            total += part.__sizeof__() + _HEADER
            rest += part
        elif cls in _PLAIN:
            total += part.__sizeof__()
        elif not isinstance(part, type):
            total += getsizeof(part)
    return total


def _all_of(value: Any) -> int | None:
    """Return the bytes of a small value of common types, all of it seen; None: walk it.

    The rules of the walk in one loop: nothing has to be shared out or estimated. Runs no
    `__sizeof__` of the user's.
    """
    shells: list[Any] = [value]  # all that is not plain; grows
    seen: set[int] = set()
    plain: list[Any] = []
    free: list[Any] = []  # those among them that cost nothing
    names: list[Any] = []  # of the last dict
    known: Any = None  # the last class that passed as an object
    left = BUDGET
    size: int = 0
    plain_size: int = 0
    try:
        for shell in shells:
            if id(shell) in seen:
                continue
            seen.add(id(shell))
            cls = _class_of(shell)
            if cls in _MAPPINGS:
                count = len(shell)
                if count > SAMPLE:
                    return None
                size += shell.__sizeof__() + _HEADER
                parts = [*shell.values()]
                before, names = names, [*shell]
                if not len(names) == len(parts) == count:
                    return None  # changed meanwhile
                # The rows of a table share their names, which were seen in the first one.
                if len(names) != len(before) or not all(map(is_, names, before)):
                    parts += names
                    left -= len(names)
            elif cls in _CONTAINERS:
                count = len(shell)
                if count > SAMPLE:
                    return None
                if not shell and id(shell) in _FREE and shell is not value:
                    continue
                size += shell.__sizeof__() + _HEADER
                parts = [*shell]
                if len(parts) != count:
                    return None
            elif cls in _LEAVES:
                size += getsizeof(shell)
                continue
            elif cls is known or _is_object(cls):
                known = cls
                size += getsizeof(shell)
                parts = [part for part in get_referents(shell) if part is not cls]
                left -= len(parts)
                if len(parts) > SAMPLE:
                    return None
                if issubclass(cls, tuple):
                    if len(parts) != tuple.__len__(shell):  # pyright: ignore[reportUnknownMemberType]
                        return None  # attributes beside its members
                elif cls.__flags__ & _INLINE:
                    size += 24 + 8 * len(parts)
            else:
                return None
            if left < 0:
                return None
            count = len(shells)
            for part in parts:
                cls = _class_of(part)
                if cls is str:
                    plain_size += part.__sizeof__()
                elif cls is int:
                    if part > 256 or part < -5:
                        plain_size += part.__sizeof__()
                    else:
                        free.append(part)
                elif cls is float:
                    plain_size += _FLOAT
                elif cls is bytes and part:
                    plain_size += part.__sizeof__()
                elif part is None or cls is bool or cls is bytes:
                    free.append(part)
                else:
                    shells.append(part)
            if len(shells) > count:
                parts = [part for part in parts if type(part) in _PLAIN]
                # Paid in advance: a value that is too large is known before it is read.
                left -= sum([len(new) for new in shells[count:] if type(new) in _CONTAINERS])
            plain += parts
        if plain_size < HASHED:
            # Different by value are different objects, and ids cost twice as much as values.
            different = set(plain)
            count = len(plain)
            if free:
                count -= len(free) - len(set(free))
            if len(different) == count and "" not in different:
                return size + plain_size
    except Exception:  # noqa: BLE001  # changed meanwhile by another thread, or the user's code
        return None
    once = {id(part): part for part in plain}
    size += sum([part.__sizeof__() for at, part in once.items() if at not in _FREE])
    return size


def _is_object(cls: Any) -> bool:
    """Whether an instance is its shell and what the collector sees of it, or a named tuple."""
    return (
        cls.__sizeof__ is object.__sizeof__
        and not issubclass(cls, _OTHERS)
        and (issubclass(cls, tuple) or not hasattr(cls, "nbytes"))
    )


@final
class _Node:
    """A container on the way down: what is known of it and what is to be measured."""

    __slots__ = ("bytes", "done", "least", "shell", "stands", "stop", "todo")

    def __init__(self, shell: int, stop: int) -> None:
        self.shell = shell
        self.bytes = float(shell)
        self.least = 0
        self.stop = stop  # the budget it must leave to others
        self.todo: list[tuple[object, int]] = []  # members to measure, and their shells
        self.stands = 0.0  # bytes of shells that `todo` stands for
        self.done: list[tuple[int, float]] = []  # shell and bytes of each member measured

    def total(self) -> float:
        if not self.todo and not self.done:
            return max(self.bytes, self.least)
        rest = self.done[1:] or self.done
        ratio = sum(size for _, size in rest) / max(1, sum(shell for shell, _ in rest))
        unreached = self.stands - sum(shell for shell, _ in self.done)
        found = self.bytes + sum(size for _, size in self.done) + unreached * max(1.0, ratio)
        return max(found, self.least)


@final
class _Walk:
    """One weighing."""

    __slots__ = ("estimated", "held", "left", "seen")

    def __init__(self) -> None:
        self.left = BUDGET
        self.estimated = False
        self.seen: set[int] = set()
        self.held: list[object] = []  # what was seen stays alive, so that its id stays its own

    def weigh(self, value: object) -> tuple[int, bool]:
        self.seen.add(id(value))
        path = [self.open(value, self.shell(value), 0)]
        while True:
            node = path[-1]
            # Without a first member measured, nothing would be known of what lies below.
            if node.todo and self.left > (node.stop if node.done else node.stop - OVERDRAFT):
                # Golden section: whenever the budget ends, those measured were spread.
                at = int(len(node.done) * 0.618 % 1 * len(node.todo))
                child, shell = node.todo.pop(at)
                share = (self.left - node.stop) // (len(node.todo) + 1)
                opened = self.open(child, shell, max(node.stop, self.left - share))
                if opened.todo:
                    path.append(opened)
                else:
                    node.done.append((shell, opened.total()))
                continue
            self.estimated |= bool(node.todo)
            total = node.total()
            path.pop()
            if not path:
                return int(total), self.estimated
            path[-1].done.append((node.shell, total))

    def shell(self, value: object) -> int:
        try:
            return getsizeof(value)
        except Exception:  # noqa: BLE001  # the user's __sizeof__
            self.estimated = True
            return object.__sizeof__(value)

    def open(self, value: object, shell: int, stop: int) -> _Node:
        node = _Node(shell, stop)
        cls = type(value)
        try:
            if cls in _CONTAINERS:
                self.open_container(node, value, cls)
            elif cls not in _LEAVES and not issubclass(cls, _PROGRAM):
                self.open_object(node, value, cls)
        except Exception:  # noqa: BLE001  # changed meanwhile by another thread, or the user's code
            self.estimated = True
        return node

    def open_container(self, node: _Node, value: Any, base: Any) -> None:
        size: int = base.__len__(value)
        if base in _MAPPINGS:
            self.sample(node, size, lambda: base.values(value))
            self.sample(node, size, lambda: base.keys(value))
        elif type(value) in _SEQUENCES:
            self.sample(node, size, lambda: value)
        else:
            self.sample(node, size, lambda: base.__iter__(value))
        if type(value) not in _CONTAINERS:
            # A subclass has attributes, too. The collector would list all members with them.
            extra = get_referents(value) if size <= SAMPLE else [getattr(value, "__dict__", None)]
            extra = [part for part in extra if part is not type(value)]
            self.look(node, extra, len(extra))

    def open_object(self, node: _Node, value: Any, cls: type) -> None:
        if isinstance(cls.__sizeof__, types.FunctionType):
            # Written in Python, it may have counted the members already.
            node.least, node.bytes = node.shell, float(object.__sizeof__(value))
        for ancestor in cls.__mro__:
            if ancestor in _CONTAINERS:
                self.open_container(node, value, ancestor)
                return
        members = [part for part in get_referents(value) if part is not cls]
        if cls.__flags__ & _INLINE:
            node.bytes += 24 + 8 * len(members)
        self.sample(node, len(members), lambda: members)
        if hasattr(cls, "nbytes"):
            # A buffer or an array: what it reports, or the object whose memory it shows.
            base = value.obj if cls is memoryview else getattr(value, "base", None)
            if base is None or id(base) not in self.seen:
                node.least = max(node.least, min(int(value.nbytes), maxsize))
            self.look(node, [base], 1)
            # An array of references does not report what they refer to.
            self.estimated |= bool(getattr(getattr(value, "dtype", None), "hasobject", False))

    def sample(self, node: _Node, size: int, read: Callable[[], Any]) -> None:
        if size <= SAMPLE:
            self.look(node, list(read()), size)
            return
        picked = _pick(read(), size, SAMPLE)
        counted = [id(part) for part in picked if id(part) not in _FREE]
        if len(set(counted)) < len(counted):
            # Some stand there more than once: only a larger sample says how many different ones.
            picked = _pick(read(), size, min(size, SAMPLE_REPEATED))
        self.look(node, picked, size)

    def look(self, node: _Node, members: Sequence[object], size: int) -> None:
        """Count the leaves among *members*, which stand for *size*; keep the rest to do."""
        if not members:
            return
        self.left -= min(len(members), 2 * SAMPLE)
        ids = set(map(id, members))
        fresh = members
        if len(ids) < len(members) or not (ids.isdisjoint(self.seen) and ids.isdisjoint(_FREE)):
            unseen = ids - self.seen - _FREE
            fresh = list({id(part): part for part in members if id(part) in unseen}.values())
        self.seen |= ids
        self.held.append(members)
        if len(members) >= size:
            self.add(node, fresh, 1.0)
            return
        self.estimated = True
        times = Counter(map(id, members))
        once = [part for part in fresh if times[id(part)] == 1]
        often = [part for part in fresh if times[id(part)] > 1]
        twice = sum(times[id(part)] == 2 for part in often)
        scale = size / len(members)
        if 6 * twice > len(once):
            # Many repeat: few objects, not many different ones (Chao, bias-corrected).
            scale = min(scale, 1 + (len(once) - 1) / (2 * (twice + 1)))
        self.add(node, once, max(1.0, scale))
        self.add(node, often, 1.0)

    def add(self, node: _Node, parts: Sequence[object], scale: float) -> None:
        kinds = set(map(type, parts))
        if kinds <= _LEAVES:
            # No header for the collector to add: the type's own method, five times faster.
            kind: Any = kinds.pop() if len(kinds) == 1 else None
            node.bytes += scale * sum(map(kind.__sizeof__ if kind in _PLAIN else getsizeof, parts))
            return
        for part in parts:
            shell = self.shell(part)
            if type(part) in _LEAVES:
                node.bytes += scale * shell
            else:
                node.todo.append((part, shell))
                node.stands += scale * shell


def _spread(size: int, count: int) -> list[int]:
    """One index of each of *count* parts, at changing places: data have periods, too."""
    cuts = [i * size // count for i in range(count + 1)]
    return [low + i * 2_654_435_761 % (high - low) for i, (low, high) in enumerate(pairwise(cuts))]


def _pick(members: Any, size: int, count: int) -> list[Any]:
    if type(members) in _SEQUENCES:
        return [members[i] for i in _spread(size, count)]
    rest = iter(members)
    picked: list[Any] = []
    at = 0
    for index in _spread(min(size, REACH), count):
        picked.extend(islice(rest, index - at, index - at + 1))
        at = index + 1
    return picked
