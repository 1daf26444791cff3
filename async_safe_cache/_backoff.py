"""How long to wait after a failure: twice as long after each one in a row."""

import random as _random
from collections.abc import Callable
from typing import Final

__all__ = ["delay"]

DOUBLINGS: Final = 5


def delay(first: float, failures: int, random: Callable[[], float] = _random.random) -> float:
    """Return the seconds to wait after the last of *failures* in a row.

    *first* x 2^(failures-1), at most 32 x *first*, shortened by chance by up to a tenth.
    """
    if failures < 1:
        return 0.0
    return first * 2.0 ** min(failures - 1, DOUBLINGS) * (1 - 0.1 * random())
