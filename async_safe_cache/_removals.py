"""The removal record: why a key that was here is gone.

A miss asks it for the true reason, whatever the sweeper or the evictor did a
moment before. It holds the last removals in their order, oldest first, and
costs no memory of its own account: every live entry's overhead pays for one
record in advance, and there are never more records than max(256, entries held
at the time), 65,536 at most.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, final

from .outcomes import MissReason

__all__ = ["LEAST", "MOST", "RemovalRecord"]

LEAST: Final = 256
MOST: Final = 65_536


@final
class RemovalRecord:
    """Key -> reason, of the last removals. Complexity: O(1), amortised."""

    __slots__ = ("_reasons",)

    def __init__(self) -> None:
        self._reasons: OrderedDict[Hashable, MissReason] = OrderedDict()  # bounded by add()

    def add(self, key: Hashable, reason: MissReason, live: int) -> None:
        """Remember why *key* is gone; *live* entries were held a moment before."""
        reasons = self._reasons
        reasons[key] = reason
        reasons.move_to_end(key)
        self.shrink(live)

    def shrink(self, live: int) -> None:
        """Drop the oldest records beyond the bound, two at a time: never a stall.

        Every write does it, so that a store that is filled again after it was
        cleared never pays for more records than its entries have paid for.
        """
        keep = min(max(LEAST, live), MOST)
        for _ in range(2):
            if len(self._reasons) > keep:
                self._reasons.popitem(last=False)

    def reason(self, key: Hashable) -> MissReason:
        """Return why *key* is gone; ABSENT when nothing is known."""
        return self._reasons.get(key, MissReason.ABSENT)

    def forget(self) -> None:
        """Drop every record."""
        self._reasons.clear()

    def __len__(self) -> int:
        return len(self._reasons)
