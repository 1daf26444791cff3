"""Health: what the counters mean, and what to do about it.

`Recent` keeps snapshots of the counters every 10 seconds for 5 minutes and a
histogram of what callers waited in between; `report` turns counters into a
status, alerts with advice and a dict that is ready for JSON. Constant in time
and memory. A slice begins with the first event after 10 seconds other than a hit
(hits tell nobody); so its edges are that exact and no more.
"""

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, final

from .options import AlertThresholds
from .outcomes import CacheStats

__all__ = ["Recent", "report"]

SLICE: Final = 10.0
WINDOW: Final = 300.0
MINUTE: Final = 60.0
FIRST_CALLS: Final = 1_000
PER_OCTAVE: Final = 8  # histogram steps, of equal width: each 6 to 12 % of what it holds


@final
class _Slice:
    __slots__ = ("begin", "stats", "waits")

    def __init__(self, begin: float, stats: CacheStats) -> None:
        self.begin = begin
        self.stats = stats
        self.waits: dict[int, int] = {}  # bounded: 8 per octave of a float's range


@final
class Recent:
    """The last five minutes.

    Attributes:
        fresh: What callers waited and nobody has counted yet, in seconds: to wait
            costs its caller one append. Bounded by who waited since the last landing.
    """

    def __init__(self, now: float) -> None:
        count = int(WINDOW / SLICE) + 1
        self._slices: deque[_Slice] = deque([_Slice(now, CacheStats())], maxlen=count)
        self.fresh: list[float] = []
        self.next = now + SLICE
        self.last = now

    def roll(self, now: float, snapshot: Callable[[], CacheStats]) -> None:
        """Note an event, before it is counted; begin a new slice when the last one is over."""
        if now >= self.next:
            self.count_waits()
            # What was counted until now happened at the last event at the latest.
            self._slices.append(_Slice(self.last, snapshot()))
            self.next = now + SLICE
        self.last = now

    def count_waits(self) -> None:
        """Locked. Count those who waited; a burst waits alike, and costs little more than one."""
        fresh = self.fresh
        waits = fresh[:]
        del fresh[: len(waits)]  # not clear(): others append meanwhile
        waits = sorted(each for each in waits if 0 < each < math.inf)  # not what a clock made up
        counts = self._slices[-1].waits
        place = 0
        while place < len(waits):
            mantissa, exponent = math.frexp(waits[place])  # mantissa from 1/2 to 1
            step = PER_OCTAVE * exponent + int(2 * PER_OCTAVE * mantissa)
            after = max(place + 1, bisect_left(waits, _upto(step), place))
            counts[step] = counts.get(step, 0) + after - place
            place = after

    def since(self, now: float, window: float) -> tuple[float, CacheStats]:
        """Return when the slice began that reaches back *window* seconds, and its counters."""
        for each in reversed(self._slices):
            if now - each.begin >= window:
                return each.begin, each.stats
        oldest = self._slices[0]
        return oldest.begin, oldest.stats

    def eviction_rate(self, now: float, stats: CacheStats) -> float:
        """Return evictions per minute, of about the last minute."""
        begin, then = self.since(now, MINUTE)
        return (stats.evictions - then.evictions) * MINUTE / max(MINUTE, now - begin)

    def response_time(self, now: float, stats: CacheStats) -> float:
        """Locked. Return the p95 of waits in 5 minutes, in ms; who did not wait counts 0."""
        self.count_waits()
        begin, then = self.since(now, WINDOW)
        waits: Counter[int] = Counter()
        for each in self._slices:
            if each.begin >= begin:
                waits.update(each.waits)
        above = max(stats.calls - then.calls, waits.total()) * 0.05
        for step in sorted(waits, reverse=True):
            above -= waits[step]
            if above < 0:
                return round(_upto(step) * 1000, 4)
        return 0.0


def _upto(step: int) -> float:
    """Return the seconds at which *step* of the histogram ends."""
    exponent, part = divmod(step - PER_OCTAVE, PER_OCTAVE)
    return math.ldexp((PER_OCTAVE + part + 1) / (2 * PER_OCTAVE), exponent)


def report(
    *,
    name: str,
    closed: bool,
    stats: CacheStats,
    entries: int,
    in_flight: int,
    memory_bytes: int,
    max_memory_bytes: float,
    eviction_rate: float,
    response_time: float,
    listener_errors: int,
    events_dropped: int,
    lock_waits: tuple[int, float, float],
    background: dict[str, dict[str, object]],
    advice: dict[str, str],
    loads: tuple[float, int, int],
    thresholds: AlertThresholds,
) -> dict[str, object]:
    """Return the health of a cache, ready for JSON."""
    bounded = 0 < max_memory_bytes < math.inf
    usage = 100.0 * memory_bytes / max_memory_bytes if bounded else 0.0
    alerts: list[dict[str, object]] = []

    def alert(what: str, observed: float, threshold: float, unit: str, advice: str) -> None:
        alerts.append(
            {
                "name": what,
                "observed": round(observed, 4),
                "threshold": threshold,
                "unit": unit,
                "advice": advice,
            }
        )

    def past(observed: float, threshold: float | None) -> bool:
        return threshold is not None and observed > threshold

    low = thresholds.hit_rate_low
    if low is not None and stats.calls >= FIRST_CALLS and stats.hit_rate < low:
        alert(
            "hit_rate",
            stats.hit_rate,
            low,
            "%",
            "read misses_by_reason: EXPIRED asks for a longer ttl, EVICTED for a larger bound, "
            "ABSENT for fewer distinct keys or for warming",
        )
    if past(stats.error_rate, thresholds.error_rate_high):
        alert(
            "error_rate",
            stats.error_rate,
            thresholds.error_rate_high or 0,
            "% of loads",
            "the loaders fail: look at the origin; negative= remembers failures that are answers",
        )
    if past(response_time, thresholds.response_time_high):
        alert(
            "response_time",
            response_time,
            thresholds.response_time_high or 0,
            "ms",
            "callers wait for slow loads: make the origin faster, keep values longer, "
            "or load them before they are asked for",
        )
    evicting = past(eviction_rate, thresholds.eviction_rate_high)
    if evicting:
        alert(
            "eviction_rate",
            eviction_rate,
            thresholds.eviction_rate_high or 0,
            "per minute",
            "the working set is larger than the cache: raise max_memory_bytes or max_entries, "
            "or cache less",
        )
    full = evicting and past(usage, thresholds.memory_usage_high)
    if full:
        alert(
            "memory_usage",
            usage,
            thresholds.memory_usage_high or 0,
            "%",
            "live entries are evicted because memory is full: raise max_memory_bytes, "
            "or store smaller values",
        )
    oldest, most_waiters, hung = loads
    if past(oldest, thresholds.oldest_load_high):
        alert(
            "oldest_load",
            oldest,
            thresholds.oldest_load_high or 0,
            "s",
            "a load does not end, and whoever asks for its key waits for it: look at the origin, "
            "and give load_timeout= so that the key becomes free again",
        )
    if hung:
        alert(
            "hung_loads",
            hung,
            0,
            "loads",
            "loads were told to end by load_timeout and do not: a loader blocks its loop, or "
            "swallows its cancellation",
        )
    for job, state in background.items():
        if not closed and state["wanted"] and (state["failing"] or not state["running"]):
            alert(
                job,
                float(str(state["failing"])),
                0,
                "failed runs" if state["running"] else "stopped",
                f"the {job} {'fails' if state['running'] else 'has stopped'}: "
                f"{advice[job]}, and see last_error",
            )
    status = "closed" if closed else "warning" if full else "degraded" if alerts else "healthy"
    return {
        "name": name,
        "status": status,
        "alerts": alerts,
        "cache_stats": {
            "hit_rate": round(stats.hit_rate, 4),
            "memory_mb": round(memory_bytes / 1024**2, 6),
            "memory_usage": round(usage, 4),
            "memory_bytes": memory_bytes,
            "entries": entries,
            "in_flight": in_flight,
            "hits": stats.hits,
            "misses": stats.misses,
            "coalesced": stats.coalesced,
            "calls": stats.calls,
            "loads": stats.loads,
            "load_errors": stats.load_errors,
            "load_timeouts": stats.load_timeouts,
            "stale_served": stats.stale_served,
            "overlapping_loads": stats.overlapping_loads,
            "oldest_load_seconds": round(oldest, 6),
            "most_waiters": most_waiters,
            "hung_loads": hung,
            "rejected": stats.rejected,
            "estimated_weights": stats.estimated_weights,
            "inconsistent_reads": stats.inconsistent_reads,
            "lock_waits": lock_waits[0],
            "lock_wait_seconds": round(lock_waits[1], 6),
            "longest_lock_wait_seconds": round(lock_waits[2], 6),
            "evictions": stats.evictions,
            "eviction_rate": round(eviction_rate, 4),
            "error_rate": round(stats.error_rate, 4),
            "response_time_ms": response_time,
            "misses_by_reason": dict(stats.misses_by_reason),
            "evictions_by_cause": dict(stats.evictions_by_cause),
            "removals_by_cause": dict(stats.removals_by_cause),
            "listener_errors": listener_errors,
            "events_dropped": events_dropped,
        },
        "background": background,
    }
