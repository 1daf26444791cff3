"""What the cache answers: lookups, reasons, causes, counters. All frozen."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any, Final, Generic, Self, TypeVar, final

__all__ = [
    "MISSING",
    "CacheStats",
    "Explanation",
    "FunctionInfo",
    "Invalidated",
    "LoadFailed",
    "Loaded",
    "LockGrant",
    "Lookup",
    "MissReason",
    "Missing",
    "Refreshed",
    "RemovalCause",
    "Removed",
    "WarmingReport",
]

V_co = TypeVar("V_co", covariant=True)


class Missing(Enum):
    """Type of `MISSING`, the only value that means *no value*."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing.MISSING


class MissReason(StrEnum):
    """Why a read found nothing.

    The cause of a removal is remembered for the last max(256, live entries)
    removals, at most 65,536; when its record was dropped, the reason is ABSENT.
    """

    ABSENT = "ABSENT"
    EXPIRED = "EXPIRED"
    EVICTED = "EVICTED"
    DELETED = "DELETED"
    TAG_INVALIDATED = "TAG_INVALIDATED"
    CLEARED = "CLEARED"
    REJECTED = "REJECTED"
    """Too large, its weigher failed, or it was skipped."""
    VERSION_MISMATCH = "VERSION_MISMATCH"
    UNREADABLE = "UNREADABLE"
    BYPASSED = "BYPASSED"
    """Caching was switched off, or not possible at that moment."""


class RemovalCause(StrEnum):
    """Why an entry left the store."""

    EXPIRED = "EXPIRED"
    EVICTED = "EVICTED"
    DELETED = "DELETED"
    """By its key, or because something that it depends on was written or invalidated."""
    TAG_INVALIDATED = "TAG_INVALIDATED"
    CLEARED = "CLEARED"
    REJECTED = "REJECTED"
    """A newer value was too large to store; the older one may not stay."""
    REPLACED = "REPLACED"
    COLLECTED = "COLLECTED"
    """The instance or the function that owned it is gone."""


@final
@dataclass(frozen=True, slots=True)
class Lookup(Generic[V_co]):
    """The answer of `AsyncSafeCache.lookup`.

    Attributes:
        hit: Whether there is a fresh value.
        value: The stored object itself, fresh or stale, or `MISSING`.
        reason: Why there is no fresh one; None on a hit.
        age: Seconds since the value was stored; None if there is none.
        ttl_left: Seconds it stays fresh: 0 if it is stale, None if there is none or it
            never expires.
        stale: Whether the value is past its ttl, and kept for stale_while_revalidate or
            stale_if_error.
    """

    hit: bool
    value: V_co | Missing
    reason: MissReason | None
    age: float | None
    ttl_left: float | None
    stale: bool = False

    def __repr__(self) -> str:
        # The value may be a secret, and long.
        if self.hit:
            return f"Lookup(hit, age={self.age}, ttl_left={self.ttl_left})"
        stale = f", stale, age={self.age}" if self.stale else ""
        return f"Lookup(miss, reason={self.reason}{stale})"


@final
@dataclass(frozen=True, slots=True)
class LockGrant:
    """What a lock gives to its holder.

    Attributes:
        token: Fencing token: grows with every grant of the cache. A store that remembers
            the largest one it saw can refuse who comes late.
        ttl: Seconds that the grant is good for; None: until the block ends.
    """

    token: int
    ttl: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything known about a key: the answer of `AsyncSafeCache.explain`. `str()` is for people.

    Attributes:
        name: Of the function or the cache that the key belongs to.
        hit: Whether a read would be a hit now.
        reason: Why it would not; None if it would.
        age: Seconds since the value was stored; None if there is none.
        ttl_left: Seconds it stays fresh; None if there is none, or for ever.
        stale_left: Seconds that it is kept past its ttl, if it is stale now.
        weight: Bytes it is accounted for; None if there is none.
        tags: Its tags.
        depends_on: How many keys and calls it depends on.
        dependents: How many keys depend on it, directly.
        generation: The cache's generation when it was stored; None if there is none.
        version: What it was stored under.
        remembered_failure: Type name of a failure that is remembered in its place.
        last_removal: Why an earlier value was removed, as long as that is remembered.
        last_load_error: Type name of the failure of the last load that failed.
        in_flight: "running", "cancelling" or None: a load of it.
        waiters: Callers that wait for that load.
    """

    name: str
    hit: bool
    reason: MissReason | None
    age: float | None
    ttl_left: float | None
    stale_left: float | None
    weight: int | None
    tags: tuple[str, ...]
    depends_on: int
    dependents: int
    generation: int | None
    version: object
    remembered_failure: str | None
    last_removal: MissReason | None
    last_load_error: str | None
    in_flight: str | None
    waiters: int

    def __str__(self) -> str:
        known = ((each.name, getattr(self, each.name)) for each in fields(self))
        return "\n".join(f"{name:>18}  {value}" for name, value in known if value not in (None, ()))

    def __repr__(self) -> str:
        return f"<Explanation of a key of {self.name}>"  # tags may name a user


@final
@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """Counters of one decorated function, over all its instances.

    Attributes:
        name: Prefix, or module and qualified name.
        hits: Calls answered from memory.
        misses: Calls that started a load.
        coalesced: Calls that joined a running load.
        loads: Loads that ended, refreshes included.
        load_errors: Those of them that failed.
        entries: Entries held now.
        in_flight: Loads running now.
    """

    name: str
    hits: int
    misses: int
    coalesced: int
    loads: int
    load_errors: int
    entries: int
    in_flight: int


@final
@dataclass(frozen=True, slots=True)
class Loaded:
    """A load ended with a value.

    Attributes:
        key: The raw key itself if it is a str, int, bytes or None; otherwise a
            `Key`, which every keyed method takes.
        seconds: How long it took; None if the clock failed.
        stored: Whether the value is in the cache now: not if an invalidation came
            meanwhile, nor if it was too large.
    """

    key: object = field(repr=False)  # it may be a secret, in every event
    seconds: float | None
    stored: bool


@final
@dataclass(frozen=True, slots=True)
class Refreshed:
    """The same, of a load that a refresh began."""

    key: object = field(repr=False)
    seconds: float | None
    stored: bool


@final
@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A load, or a refresh, ended with an exception.

    Attributes:
        key: As in `Loaded`.
        error: The name of the exception's type; its message may hold a secret.
    """

    key: object = field(repr=False)
    error: str


@final
@dataclass(frozen=True, slots=True)
class Removed:
    """An entry left the store.

    Attributes:
        key: As in `Loaded`.
        cause: Why.
    """

    key: object = field(repr=False)
    cause: RemovalCause


@final
@dataclass(frozen=True, slots=True)
class Invalidated:
    """Somebody asked for entries to go. With no keys, tags or function: for all of them.

    Attributes:
        cause: DELETED, EXPIRED (by `expire`) or CLEARED.
        keys: The keys that were named, as in `Loaded`.
        tags: The tags that were named.
        function: The name of the function that was cleared, closed or replaced.
        removed: How many entries that removed; in a clear, expired ones that nobody
            had freed yet included.
    """

    cause: RemovalCause
    keys: tuple[object, ...] = field(repr=False)
    tags: tuple[str, ...] = field(repr=False)
    function: str | None
    removed: int


def _no_counts() -> Mapping[str, int]:
    return MappingProxyType({})


@final
@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters of a cache at one moment; subtract two for what came between.

    hits + misses + coalesced = calls, always.

    Attributes:
        hits: Calls answered from memory.
        misses: Calls that found nothing: single reads, and calls that started a load.
        coalesced: Calls that joined a running load.
        loads: Loads that ended, refreshes included; cancelled ones are none.
        load_errors: Those of them that failed.
        load_timeouts: Those of them that load_timeout has ended.
        stale_served: Stale values that callers were given: at once, after a failure or
            after a timeout.
        overlapping_loads: Loads started beside one that did not end in time.
        evictions: Live entries removed to hold a bound.
        rejected: Values that were returned and not stored.
        estimated_weights: Stored values whose bytes are partly an estimate.
        inconsistent_reads: Fresh entries older than the last change of something they depend
            on, met by a read and not served: always 0, or this library has a fault.
        misses_by_reason: Misses for each `MissReason`.
        removals_by_cause: Removed entries for each `RemovalCause`; those of a large
            clear when their memory is freed.
        evictions_by_cause: Evictions for each bound that asked for them.
    """

    hits: int = 0
    misses: int = 0
    coalesced: int = 0
    loads: int = 0
    load_errors: int = 0
    load_timeouts: int = 0
    stale_served: int = 0
    overlapping_loads: int = 0
    evictions: int = 0
    rejected: int = 0
    estimated_weights: int = 0
    inconsistent_reads: int = 0
    misses_by_reason: Mapping[str, int] = field(default_factory=_no_counts)
    removals_by_cause: Mapping[str, int] = field(default_factory=_no_counts)
    evictions_by_cause: Mapping[str, int] = field(default_factory=_no_counts)

    @property
    def calls(self) -> int:
        """Calls of any kind: hits + misses + coalesced."""
        return self.hits + self.misses + self.coalesced

    @property
    def hit_rate(self) -> float:
        """Hits in percent of calls; 0 before the first call."""
        return 100.0 * self.hits / self.calls if self.calls else 0.0

    @property
    def error_rate(self) -> float:
        """Failed loads in percent of loads; 0 before the first load."""
        return 100.0 * self.load_errors / self.loads if self.loads else 0.0

    def __sub__(self, earlier: Self) -> Self:
        """Return what was counted between *earlier* and this moment."""
        change: dict[str, Any] = {}
        for each in fields(self):
            new, old = getattr(self, each.name), getattr(earlier, each.name)
            change[each.name] = (
                new - old
                if isinstance(new, int)
                else MappingProxyType({name: new[name] - old.get(name, 0) for name in new})
            )
        return type(self)(**change)


@final
@dataclass(frozen=True, slots=True)
class WarmingReport:
    """What became of every call that was to be warmed.

    Attributes:
        loaded: Keys that were loaded and stored.
        skipped: Keys that were not loaded, or not stored, with why: "fresh", "no room"
            (only in place of something that is read more), "time" (the budget was spent),
            "not stored" (invalidated meanwhile, or skipped), "gone" (closed or collected).
        failed: Keys whose load failed, with the exception.
        seconds: How long all of it took.
        unknown: Calls of a replayed hot set that cannot be made here: no such function is
            decorated, or it takes other arguments now.
    """

    loaded: tuple[Any, ...] = field(repr=False)
    skipped: Mapping[Any, str] = field(repr=False)
    failed: Mapping[Any, Exception] = field(repr=False)
    seconds: float = 0.0
    unknown: int = 0

    def __str__(self) -> str:
        text = (
            f"{len(self.loaded)} loaded, {len(self.skipped)} skipped, {len(self.failed)} failed "
            f"in {self.seconds:.1f} s"
        )
        return f"{text}, {self.unknown} unknown" if self.unknown else text
