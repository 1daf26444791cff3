"""What the store holds: entries, the namespaces they lie in, and what is counted of them.

An entry is complete before it is published in its namespace, and is never changed
into another one afterwards: a hit reads it without a lock.
"""

from collections.abc import Callable
from math import inf
from types import CellType
from typing import Any, Final, final
from weakref import ref

from ._keys import DataKey
from ._links import Link

__all__ = ["Counters", "Entry", "Facts", "Kept", "Namespace"]

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
        linked: Whether its fast lookup asks `Facts.current`. Where it does not, an
            entry with dependencies has no kind.
        described: Whether every entry that is put here has `Facts`: a lookup reads them.
        counted: Whether hits of each entry are counted, by `Entry.used`.
        ahead: `refresh_ahead` of its function: its hits look at `Entry.since`.
        window: Seconds that a value is kept past its ttl, unless a call says otherwise.
        copier: Makes the copy that a hit hands out; None: the stored object itself.
        version: What its values are stored under, unless a call says otherwise.
    """

    __slots__ = (
        "__weakref__",
        "ahead",
        "bytes",
        "closed",
        "copier",
        "counted",
        "counters",
        "data",
        "described",
        "linked",
        "name",
        "owner",
        "store",
        "timed",
        "version",
        "window",
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
        self.linked = False
        self.described = False
        self.counted = False
        self.ahead: float | None = None
        self.window = 0.0
        self.copier: Callable[[Any], Any] | None = None
        self.version: object = None
        self.bytes = 0
        self.data: dict[DataKey, Entry] = {}  # bounded by the store


@final
class Kept:
    """Keeps an entry past its deadline, until one of its own.

    Attributes:
        deadline: When the entry is to be freed.
        space: Where the entry is. Not the entry itself, whose facts hold this: no cycle.
        key: Its key there.
        stale: Whether it is due no more as an entry, but as this: it is past its ttl.
    """

    __slots__ = ("deadline", "key", "space", "stale")

    def __init__(self, deadline: float, space: "Namespace", key: DataKey) -> None:
        self.deadline = deadline
        self.space = space
        self.key = key
        self.stale = False


@final
class Facts:
    """What few entries have besides their value.

    Attributes:
        generation: See `Entry.facts`.
        tags: In the order given, each once.
        link: What it depends on, if anything.
        version: What its value was stored under.
        window: Seconds that it is kept past its ttl.
        kept: What keeps it past its ttl; None where nothing does.
        born: When it was stored, where `Entry.since` says something else.
        seconds: How long its load took, if it was loaded.
        failures: Loads of its key that have failed in a row since it was stored.
        retry: No load is tried before, as long as it can be served.
    """

    __slots__ = (
        "born",
        "failures",
        "generation",
        "kept",
        "link",
        "retry",
        "seconds",
        "tags",
        "version",
        "window",
    )

    def __init__(
        self,
        generation: int,
        tags: tuple[str, ...],
        link: Link | None,
        version: object,
        window: float = 0.0,
    ) -> None:
        self.generation = generation
        self.tags = tags
        self.link = link
        self.version = version
        self.window = window
        self.kept: Kept | None = None
        self.born = 0.0
        self.seconds = 0.0
        self.failures = 0
        self.retry = -inf

    def current(self) -> bool:
        """Tell whether nothing that it depends on has changed since."""
        link = self.link
        return link is None or link.current()


@final
class Entry:
    """One stored value. Only its times, `kind` and what `Facts` say change once published.

    Filled in by `Store.put`: a constructor of its own would double what it costs.

    Attributes:
        since: When it was stored; of an entry with a deadline, its time to live,
            an object that many entries share; where hits look ahead, the moment from which
            they have more to do, at the latest its deadline.
        used: Set by a hit, for the order; where hits are counted, how many there were, in
            one step under the GIL as `Counters.hits`.
        place: Of the order alone.
        facts: The generation in which it was stored, an int that all entries of that
            generation share; or `Facts`, if there is, or will be, more to say.
    """

    __slots__ = (
        "deadline",
        "facts",
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
    used: int
    place: Any
    facts: int | Facts

    @property
    def generation(self) -> int:
        """The store's generation when it was stored."""
        facts = self.facts
        return facts.generation if isinstance(facts, Facts) else facts

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags."""
        facts = self.facts
        return facts.tags if isinstance(facts, Facts) else ()

    @property
    def link(self) -> Link | None:
        """What it depends on."""
        facts = self.facts
        return facts.link if isinstance(facts, Facts) else None

    @property
    def version(self) -> object:
        """What its value was stored under."""
        facts = self.facts
        return facts.version if isinstance(facts, Facts) else self.space.version

    @property
    def handed(self) -> Any:
        """What a hit hands out. Runs the user's code where a copy is made."""
        copier = self.space.copier
        return self.value if copier is None else copier(self.value)

    def kept(self, now: float) -> Kept | None:
        """Return what keeps it, past its ttl, at this moment."""
        facts = self.facts
        kept = facts.kept if isinstance(facts, Facts) else None
        return kept if kept is not None and kept.deadline > now else None

    @property
    def born(self) -> float:
        """When it was stored, but for the rounding of one subtraction."""
        facts = self.facts
        if self.space.ahead is not None and isinstance(facts, Facts):
            return facts.born
        return self.since if self.deadline == inf else self.deadline - self.since
