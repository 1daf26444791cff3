"""What a call says of the value that it stores, besides how long it stays fresh."""

import sys
from typing import Final, final

from ._entries import Facts, Namespace
from ._keys import DataKey
from ._links import Link
from ._weight import weigh_key

__all__ = ["FACTS_OVERHEAD", "KEPT_OVERHEAD", "LINK_OVERHEAD", "TAG_OVERHEAD", "Marks", "Place"]

FACTS_OVERHEAD: Final = 192
"""Bytes of an entry that has more facts than a generation."""

KEPT_OVERHEAD: Final = 288
"""Bytes of an entry that is kept past its ttl, with its place in the index of these."""

TAG_OVERHEAD: Final = 592
"""Bytes that one tag of one entry costs at the worst, when no other entry has it."""

LINK_OVERHEAD: Final = 1_024
"""Bytes that one dependency costs at the worst, when it is the only one of its source."""

Place = tuple[Namespace, DataKey]
"""Where something is stored."""


@final
class Marks:
    """What one call says of its value; checked, and computed outside the lock.

    Attributes:
        tags: Each once.
        sources: What the value depends on.
        version: What it is stored under, and may be read under.
        added: Where a loader puts the tags that it adds, until it ends; None if it cannot.
        window: Seconds that the value is kept past its ttl.
    """

    __slots__ = ("added", "sources", "tags", "version", "window")

    def __init__(
        self,
        tags: tuple[str, ...] = (),
        sources: tuple[Place, ...] = (),
        version: object = None,
        added: list[str] | None = None,
        window: float = 0.0,
    ) -> None:
        self.tags = tags
        self.sources = sources
        self.version = version
        self.added = added
        self.window = window

    def all_tags(self) -> tuple[str, ...]:
        """Return the tags, with those that the loader has added by now."""
        if not self.added:
            return self.tags
        return tuple(dict.fromkeys((*self.tags, *self.added)))

    def weight(self) -> int:
        """Return the bytes that these facts of an entry are accounted for."""
        tags = sum([TAG_OVERHEAD + sys.getsizeof(tag) for tag in self.all_tags()])
        sources = sum([LINK_OVERHEAD + weigh_key(key) for _, key in self.sources])
        kept = KEPT_OVERHEAD if self.window else 0
        return FACTS_OVERHEAD + kept + tags + sources

    def facts(self, generation: int, link: Link | None) -> Facts:
        """Return the same as facts of an entry, which takes over *link*."""
        return Facts(generation, self.all_tags(), link, self.version, self.window)
