"""Which calls are read most: a bounded table of calls, with their reads and load times.

Hits are counted at their entry, by the compiled wrapper, in one step; an entry that
leaves hands its count to the table, and so does every call that is no hit. Older reads
count less: half as much after `HALF_LIFE` seconds.

The table holds what it takes to make the call again: the function, weakly, and the
arguments; of a method the instance, weakly, and the others.

    full    of the SAMPLE that were looked at least recently the least read one leaves,
            the others lose half of their reads: an approximated LFU with ageing

Source: the sampled eviction of Redis's LFU.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, final
from weakref import ref

__all__ = ["PopularCall", "Popularity"]

HALF_LIFE: Final = 600.0
"""Seconds after which a read counts half."""

SAMPLE: Final = 8

Place = tuple[Any, Any]
"""A namespace and a key in it; see `_marks`, which is above this."""


@final
class PopularCall:
    """A call of a decorated function.

    Attributes:
        place: Where its value is stored.
        function: What is known of the function; dead when that is gone.
        owner: The instance of a method; dead when that is gone.
        values: The arguments, without the instance.
        seconds: How long the load of the last entry that left took.
    """

    __slots__ = ("_at", "_reads", "function", "owner", "place", "seconds", "values")

    def __init__(
        self,
        place: Place,
        function: "ref[Any]",
        owner: "ref[Any] | None",
        values: tuple[Any, ...],
        now: float,
    ) -> None:
        self.place = place
        self.function = function
        self.owner = owner
        self.values = values
        self.seconds = 0.0
        self._reads = 0.0
        self._at = now

    def __repr__(self) -> str:
        return f"<PopularCall, {self._reads:.3g} reads>"  # arguments may be secrets

    def add(self, reads: float, now: float) -> None:
        """Count *reads* more."""
        self._reads = self.reads(now) + reads
        self._at = now

    def reads(self, now: float) -> float:
        """Return its reads, the older ones counting less."""
        age = now - self._at
        return self._reads * 0.5 ** (age / HALF_LIFE) if age > 0 else self._reads

    def age(self) -> None:
        """Let what was read until now count half."""
        self._reads /= 2


@final
class Popularity:
    """The calls that are read most. Complexity: O(1) each, but for walking through all.

    All but `calls` is called with the store's lock held.

    Attributes:
        now: When a call was counted last: no clock, which may be the user's, runs here.
        observer: Is told of each read: the place, whether it was a hit, the time.
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self.now = now
        self.observer: Callable[[Place, bool, float], object] | None = None
        self._calls: OrderedDict[Place, PopularCall] = OrderedDict()  # bounded by limit

    def note(
        self, place: Place, function: "ref[Any]", owner: "ref[Any] | None", values: tuple[Any, ...]
    ) -> None:
        """Take in a call, if it is not in yet."""
        calls = self._calls
        if place in calls or self.limit < 1:
            return
        if len(calls) >= self.limit:
            self._make_room()
        calls[place] = PopularCall(place, function, owner, values, self.now)

    def see(self, place: Place, hit: bool, now: float) -> None:
        """See a read that did not come by the fast lookup; one that is no hit is counted."""
        self.now = now
        if not hit:
            self.read(place, 1)
        if self.observer is not None:
            self.observer(place, hit, now)

    def read(self, place: Place, reads: float, seconds: float = 0.0) -> None:
        """Count *reads* of a call that is in, which took *seconds* to load."""
        call = self._calls.get(place)
        if call is not None:
            call.add(reads, self.now)
            if seconds:
                call.seconds = seconds

    def get(self, place: Place) -> PopularCall | None:
        """Return the call at *place*, if it is in. One step under the GIL."""
        return self._calls.get(place)

    def worth(self, place: Place, now: float) -> float:
        """Return the reads of a call: those in the table, if it is in, and those at its entry."""
        call = self._calls.get(place)
        held = _at_entry(place, "reads")
        return held if call is None else call.reads(now) + held

    def seconds(self, call: PopularCall) -> float:
        """Return how long the last load of *call* took; 0 if that is not known."""
        return _at_entry(call.place, "seconds") or call.seconds

    def forget(self, place: Place) -> None:
        """Take a call out."""
        self._calls.pop(place, None)

    def _make_room(self) -> None:
        now = self.now
        oldest = list(islice(self._calls.values(), SAMPLE))
        least = min(oldest, key=lambda call: self.worth(call.place, now))
        del self._calls[least.place]
        for call in oldest:
            if call is not least:
                call.age()
                self._calls.move_to_end(call.place)

    def calls(self) -> list[PopularCall]:
        """Return all calls. O(calls), in one step of C."""
        return list(self._calls.values())

    def __iter__(self) -> Iterator[PopularCall]:
        return iter(self.calls())

    def __contains__(self, place: object) -> bool:
        return place in self._calls

    def __len__(self) -> int:
        return len(self._calls)

    def check(self) -> None:
        """Raise AssertionError unless the table is sound."""
        if len(self._calls) > self.limit:
            raise AssertionError("broken invariant of the popularity: more calls than its limit")
        for place, call in self._calls.items():
            if call.place != place:
                raise AssertionError("broken invariant of the popularity: a call misplaced")


def _at_entry(place: Place, fact: str) -> float:
    """Return a number that the facts of the entry at *place* hold; 0 if there is none."""
    entry = place[0].data.get(place[1])
    return 0.0 if entry is None else getattr(entry.facts, fact, 0.0)
