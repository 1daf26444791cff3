"""How much of what is to be kept warm has been loaded once: for readiness probes."""

from typing import final

__all__ = ["Warmth"]


@final
class Warmth:
    """The count of one who keeps calls warm.

    Attributes:
        wanted: Calls that are to be warm.
        warm: Those of them that were loaded, or found fresh, once.
    """

    __slots__ = ("__weakref__", "wanted", "warm")

    def __init__(self) -> None:
        self.wanted = 0
        self.warm = 0
