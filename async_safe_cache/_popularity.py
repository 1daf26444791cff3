"""Which calls are read most: a bounded table of calls, with their reads and load times.

Hits are counted at their entry, by the compiled wrapper, in one step; an entry that
leaves hands its count to the table, and so does every call that is no hit. Older reads
count less: half as much after `HALF_LIFE` seconds.

The table holds what it takes to make the call again: the function, weakly, and the
arguments; of a method the instance, weakly, and the others.

    full    of the SAMPLE under the hand of a clock the least read one leaves, the others
            lose half of their reads: an approximated LFU with ageing

The calls lie in a list, too, to be walked through in slices.

Source: the sampled eviction of Redis's LFU; CLOCK (Corbato 1968).
"""

from collections.abc import Callable, Iterator
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
        seconds: How long its last load took.
        index: Where it lies in the list; of the table alone.
    """

    __slots__ = ("_at", "_reads", "function", "index", "owner", "place", "seconds", "values")

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
        self.index = 0
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

    All but `slices` and `get` is called with the store's lock held.

    Attributes:
        now: When a call was counted last: no clock, which may be the user's, runs here.
        observer: Is told of each read: the place, whether it was a hit, the time.
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self.now = now
        self.observer: Callable[[Place, bool, float], object] | None = None
        self._calls: dict[Place, PopularCall] = {}  # bounded by limit, as is the list
        self._list: list[PopularCall] = []
        self._hand = 0

    def note(
        self, place: Place, function: "ref[Any]", owner: "ref[Any] | None", values: tuple[Any, ...]
    ) -> None:
        """Take in a call, if it is not in yet."""
        calls = self._calls
        if place in calls or self.limit < 1:
            return
        if len(calls) >= self.limit:
            self._make_room()
        calls[place] = call = PopularCall(place, function, owner, values, self.now)
        call.index = len(self._list)
        self._list.append(call)

    def see(self, place: Place, hit: bool, now: float) -> None:
        """See a read that did not come by the fast lookup; one that is no hit is counted."""
        self.now = now
        if not hit:
            self.read(place, 1)
        if self.observer is not None:
            self.observer(place, hit, now)

    def read(self, place: Place, reads: float) -> None:
        """Count *reads* of a call that is in."""
        call = self._calls.get(place)
        if call is not None:
            call.add(reads, self.now)

    def took(self, place: Place, seconds: float) -> None:
        """Note how long the load of a call took that is in."""
        call = self._calls.get(place)
        if call is not None:
            call.seconds = seconds

    def get(self, place: Place) -> PopularCall | None:
        """Return the call at *place*, if it is in. One step under the GIL."""
        return self._calls.get(place)

    def worth(self, place: Place, now: float) -> float:
        """Return the reads of a call: those in the table, if it is in, and those at its entry."""
        call = self._calls.get(place)
        entry = place[0].data.get(place[1])
        held = 0 if entry is None else entry.used
        return held if call is None else call.reads(now) + held

    def forget(self, place: Place) -> None:
        """Take a call out: the last one of the list takes its place there."""
        call = self._calls.pop(place, None)
        if call is not None:
            last = self._list.pop()
            if last is not call:
                self._list[call.index] = last
                last.index = call.index

    def _make_room(self) -> None:
        now = self.now
        if self._hand >= len(self._list):
            self._hand = 0
        sample = self._list[self._hand : self._hand + SAMPLE]
        self._hand += SAMPLE
        least = min(sample, key=lambda call: self.worth(call.place, now))
        for call in sample:
            if call is not least:
                call.age()
        self.forget(least.place)

    def slices(self, size: int) -> Iterator[list[PopularCall]]:
        """Walk through all calls, *size* of them at a time, while others come and go.

        One that comes or goes meanwhile may be left out, or met twice. A copy of all would
        be one object that the collector walks whenever it looks at what is young.
        """
        begin = 0
        while part := self._list[begin : begin + size]:
            yield part
            begin += size

    def __iter__(self) -> Iterator[PopularCall]:
        return iter(self._list.copy())

    def __contains__(self, place: object) -> bool:
        return place in self._calls

    def __len__(self) -> int:
        return len(self._calls)

    def check(self) -> None:
        """Raise AssertionError unless the table is sound."""
        if len(self._calls) > self.limit or len(self._calls) != len(self._list):
            raise AssertionError("broken invariant of the popularity: more calls than its limit")
        for place, call in self._calls.items():
            if call.place != place or self._list[call.index] is not call:
                raise AssertionError("broken invariant of the popularity: a call misplaced")
