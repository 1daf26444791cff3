"""What the store holds: entries, the namespaces they lie in, and what is counted of them.

An entry is complete before it is published in its namespace, and is never changed
into another one afterwards: a hit reads it without a lock.
"""

from math import inf
from types import CellType
from typing import Any, Final, final
from weakref import ref

from ._keys import DataKey

__all__ = ["Counters", "Entry", "Namespace"]

_COUNTED: Final = ("coalesced", "load_errors", "loads", "misses")


@final
class Counters:
    """What is counted per function.

    Hits grow without the lock: `x += 1` on a slot or a closure's cell is one step
    under the GIL, because CPython changes threads at calls and backward jumps
    only. The others grow under the store's lock.

    Attributes:
        fast_hits: The cell in which the compiled wrapper counts its own hits.
        other_hits: All other hits.
    """

    __slots__ = (*_COUNTED, "fast_hits", "other_hits")

    def __init__(self) -> None:
        self.fast_hits = CellType(0)
        self.other_hits = 0
        self.misses = 0
        self.coalesced = 0
        self.loads = 0
        self.load_errors = 0

    @property
    def hits(self) -> int:
        """All hits."""
        fast: int = self.fast_hits.cell_contents
        return self.other_hits + fast

    def forget(self) -> None:
        """Count from 0 again."""
        self.other_hits -= self.hits
        for name in _COUNTED:
            setattr(self, name, 0)

    def add(self, other: "Counters") -> None:
        """Add the counts of *other*."""
        self.other_hits += other.hits
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@final
class Namespace:
    """The entries of one function, of one instance of a method, or of all raw keys.

    Attributes:
        store: The store that it belongs to, by identity.
        bytes: What its entries weigh.
        closed: Its function was closed: no load of it may begin.
        timed: Whether its fast lookup looks at deadlines. Where it does not, an
            entry with a deadline has no kind, so that no fast lookup finds it.
    """

    __slots__ = (
        "__weakref__",
        "bytes",
        "closed",
        "counters",
        "data",
        "name",
        "owner",
        "store",
        "timed",
    )

    def __init__(
        self, store: object, name: str, counters: Counters, owner: "ref[object] | None" = None
    ) -> None:
        self.store = store
        self.name = name
        self.counters = counters
        self.owner = owner
        self.closed = False
        self.timed = True
        self.bytes = 0
        self.data: dict[DataKey, Entry] = {}  # bounded by the store


@final
class Entry:
    """One stored value. Only its times and `kind` change after it was published.

    Filled in by `Store.put`: a constructor of its own would double what it costs.

    Attributes:
        since: When it was stored; of an entry with a deadline, its time to live,
            an object that many entries share.
        used: Set by a hit; of the order alone, as is `place`.
    """

    __slots__ = (
        "deadline",
        "key",
        "kind",
        "place",
        "since",
        "space",
        "used",
        "value",
        "weight",
    )

    space: Namespace
    key: DataKey
    kind: object
    value: object
    weight: int
    since: float
    deadline: float
    used: bool
    place: Any

    @property
    def born(self) -> float:
        """When it was stored, but for the rounding of one subtraction."""
        return self.since if self.deadline == inf else self.deadline - self.since
