"""Every option, validated once, at the call that gives it.

A `CacheOptions` is complete: each level (cache, decorator, call) makes the next
one with `but()`, which checks what is given and leaves the rest as it is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextvars import ContextVar
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal, Self, TypedDict, final

__all__ = [
    "AUTO",
    "UNSET",
    "AlertThresholds",
    "CacheOptions",
    "Dependencies",
    "KeyOptions",
    "LoadOptions",
    "NegativeTtl",
    "Tags",
    "Ttl",
    "Unset",
    "check_bound",
    "check_callable",
    "check_choice",
    "check_fraction",
    "check_known",
    "check_seconds",
    "check_sources",
    "check_tags",
    "check_ttl",
]


class Unset(Enum):
    """Type of `UNSET`: the option is taken from the level above."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET

Ttl = float | timedelta | None
"""Seconds or a timedelta; None: for ever."""

NegativeTtl = Ttl | Callable[[Exception], Ttl]
"""How long a failure is remembered; or a callable of the exception that says so."""


Tags = str | Sequence[str] | AbstractSet[str]
"""One tag or several: str of 1 to 256 characters, 64 at most."""

Dependencies = object
"""What a value depends on: a key, a call as (function, *arguments), a decorated function that
takes no arguments; or a list, tuple or set of these. (A tuple is never itself a key here.)"""

DECORATED: Final = "__async_safe_cache__"
"""The attribute by which a decorated function is known."""

AUTO: Final = -1.0
"""Of `refresh_ahead`: by chance, from how long the load took."""

MOST_MEMOS: Final = 64
"""Combinations of plain options of which is remembered what they led to."""

MOST_TAGS: Final = 64
LONGEST_TAG: Final = 256
MOST_SOURCES: Final = 64


def _number(name: str, value: object, meaning: str) -> float:
    """Return *value* as a float, or raise: no bool, no str, no NaN."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {meaning}, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if math.isnan(number):
        raise ValueError(f"{name}=nan must be {meaning}")
    return number


def check_ttl(name: str, value: object) -> float | None:
    """Return a ttl in seconds, or None for ever (None and inf)."""
    if value is None:
        return None
    meaning = "seconds above 0, a timedelta above 0, or None for ever"
    seconds = _number(name, value, meaning)
    if seconds <= 0:
        raise ValueError(f"{name}={value!r} must be {meaning}")
    return None if math.isinf(seconds) else seconds


def check_seconds(name: str, value: object, *, zero: bool = False) -> float:
    """Return a finite number of seconds, above 0 (or from 0)."""
    meaning = f"finite seconds {'from' if zero else 'above'} 0, or such a timedelta"
    seconds = _number(name, value, meaning)
    if math.isinf(seconds) or seconds < 0 or (seconds == 0 and not zero):
        raise ValueError(f"{name}={value!r} must be {meaning}")
    return seconds


def check_fraction(name: str, value: object, meaning: str) -> float:
    """Return a number from 0 to 1."""
    if isinstance(value, timedelta):
        raise TypeError(f"{name} must be between 0 and 1: {meaning}, not timedelta")
    number = _number(name, value, f"between 0 and 1: {meaning}")
    if not 0 <= number <= 1:
        raise ValueError(f"{name}={value!r} must be between 0 and 1: {meaning}")
    return number


def check_bound(name: str, value: object) -> int | None:
    """Return a bound: an int from 0 (0 stores nothing), or None for no bound."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int from 0, or None, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name}={value} must be 0 (store nothing), above 0, or None (no bound)")
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return *value* if it is one of *choices*."""
    if isinstance(value, str) and value in choices:
        return value
    expected = " or ".join(repr(each) for each in choices)
    shown = f"={value!r}" if isinstance(value, str) else f" of type {type(value).__name__}"
    error = ValueError if isinstance(value, str) else TypeError
    raise error(f"{name}{shown} must be {expected}")


def check_callable(name: str, value: object, meaning: str) -> None:
    """Raise unless *value* can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be {meaning}, not {type(value).__name__}")


def check_tags(name: str, value: object) -> tuple[str, ...]:
    """Return tags as a tuple, each once, in the order given. Shows no tag: it may name a user."""
    meaning = f"a str or a sequence of str, each of 1 to {LONGEST_TAG} characters"
    if isinstance(value, str):
        value = (value,)
    several: Any = value
    if isinstance(several, (bytes, bytearray, memoryview)) or not isinstance(
        several, (Sequence, AbstractSet)
    ):
        raise TypeError(f"{name} must be {meaning}, not {type(several).__name__}")  # pyright: ignore[reportUnknownArgumentType]
    given: list[str] = []
    tag: Any
    for tag in several:  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(tag, str):
            kind: str = type(tag).__name__  # pyright: ignore[reportUnknownArgumentType]
            raise TypeError(f"{name} must be {meaning}; one of them is of type {kind}")
        if not 0 < len(tag) <= LONGEST_TAG:
            raise ValueError(f"{name} must be {meaning}; one of them has {len(tag)}")
        given.append(str.__str__(tag))  # a subclass of str may hash as it likes
    tags = tuple(dict.fromkeys(given))
    if len(tags) > MOST_TAGS:
        raise ValueError(f"{name} must be at most {MOST_TAGS} tags, not {len(tags)}")
    return tags


def check_sources(name: str, value: object) -> tuple[object, ...]:
    """Return what a value depends on as a tuple of keys and calls; these are not looked into."""
    items: Any = value
    call = isinstance(value, tuple) and bool(items) and callable(items[0])
    several = isinstance(value, (list, tuple, set, frozenset)) and not call
    sources: tuple[object, ...] = tuple(items) if several else (items,)
    if len(sources) > MOST_SOURCES:
        raise ValueError(f"{name} must be at most {MOST_SOURCES} keys or calls, not {len(sources)}")
    return sources


def _check_window(name: str, value: object) -> float:
    """Return how long past its ttl a value may be served, in seconds; None: not at all."""
    if value is None:
        return 0.0
    meaning = "seconds above 0, such a timedelta, inf for ever, or None"
    seconds = _number(name, value, meaning)
    if seconds <= 0:
        raise ValueError(f"{name}={value!r} must be {meaning}")
    return seconds


def _check_timeout(name: str, value: object) -> float | None:
    return None if value is None else check_seconds(name, value)


def _check_backoff(name: str, value: object) -> float | None:
    return None if value is None else check_seconds(name, value, zero=True)


def _check_refresh_ahead(value: object) -> float | None:
    meaning = "the fraction of ttl after which a read refreshes"
    if value is None:
        return None
    if isinstance(value, str):
        if value == "auto":
            return AUTO
        raise ValueError(f'refresh_ahead={value!r} must be "auto", or between 0 and 1: {meaning}')
    fraction = check_fraction("refresh_ahead", value, meaning)
    if fraction in {0.0, 1.0}:
        raise ValueError(
            f"refresh_ahead={value!r} must be above 0 and below 1: {meaning}; at 0 every read "
            "would, at 1 none"
        )
    return fraction


def _check_variables(name: str, value: object) -> tuple["ContextVar[Any]", ...]:
    """Return context variables as a tuple, each once."""
    meaning = "a ContextVar or a sequence of them"
    several: Any = (value,) if isinstance(value, ContextVar) else value
    if isinstance(several, (str, bytes)) or not isinstance(several, (Sequence, AbstractSet)):
        raise TypeError(f"{name} must be {meaning}, not {type(several).__name__}")
    each: Any
    for each in several:  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(each, ContextVar):
            kind: str = type(each).__name__  # pyright: ignore[reportUnknownArgumentType]
            raise TypeError(f"{name} must be {meaning}; one of them is of type {kind}")
    return tuple(dict.fromkeys(several))  # pyright: ignore[reportUnknownArgumentType]


def _check_version(value: object) -> object:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise TypeError(f"version must be an int, a str or None, not {type(value).__name__}")
    return value


def _check_negative(value: object) -> Mapping[type[Exception], NegativeTtl]:
    meaning = "a mapping of exception classes to a ttl or a callable(exception) -> ttl"
    if value is None:
        return MappingProxyType({})
    if not isinstance(value, Mapping):
        raise TypeError(f"negative must be {meaning}, not {type(value).__name__}")
    entries: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
    checked: dict[type[Exception], Any] = {}
    for kind, ttl in entries.items():
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"negative must be {meaning}; a key of it is no Exception class")
        checked[kind] = ttl if callable(ttl) else check_ttl(f"negative[{kind.__name__}]", ttl)
    return MappingProxyType(checked)


class LoadOptions(TypedDict, total=False):
    """Options of freshness and of values, as a call, a function or a cache takes them.

    See `CacheOptions` for what each means. In seconds, or as a timedelta.
    """

    stale_while_revalidate: float | timedelta | None | Unset
    stale_if_error: float | timedelta | None | Unset
    refresh_ahead: float | Literal["auto"] | None | Unset
    soft_timeout: float | timedelta | None | Unset
    hard_timeout: float | timedelta | None | Unset
    load_timeout: float | timedelta | None | Unset
    error_backoff: float | timedelta | None | Unset
    copy: Literal["none", "shallow", "deep"] | Unset
    skip: Callable[[Any], bool] | None | Unset
    context: Literal["caller", "isolated"] | Unset
    propagate: ContextVar[Any] | Sequence[ContextVar[Any]] | Unset


class KeyOptions(LoadOptions, total=False):
    """The same, and what changes the key: for all that ask for a key, not for one call."""

    vary_on: ContextVar[Any] | Sequence[ContextVar[Any]] | Unset


def check_known(caller: str, given: Mapping[str, object], options: Any) -> None:
    """Raise TypeError for what is *given* to *caller* and is none of its *options*, a TypedDict."""
    known: frozenset[str] = options.__optional_keys__
    for name in given.keys() - known:
        raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}")


_COPIERS: Final[dict[str, Callable[[Any], Any] | None]] = {
    "none": None,
    "shallow": copy,
    "deep": deepcopy,
}


def _no_failures() -> Mapping[type[Exception], NegativeTtl]:
    return MappingProxyType({})


@final
@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What holds for one load; call > decorator > cache.

    Attributes:
        ttl: Seconds a value stays fresh, from the end of its load; None: for ever.
        jitter: Shortens ttl by up to this fraction, at random; never lengthens it.
        on_abandon: What happens to a load when its last waiter has left:
            "cancel" it, or let it "finish" and store.
        cancel_grace: Seconds that a newcomer waits for a cancelled load's clean-up.
        negative: Exception class -> ttl: that failure is remembered and raised again.
        after_close: What a decorated function does when the cache is closed:
            raise an "error", or "call" the original.
        version: A value stored under another version is a miss; None reads every one.
        tags: Of the value; or a callable of the call's arguments.
        depends_on: Keys and calls whose change invalidates the value; or a callable.
        stale_while_revalidate: Seconds past its ttl in which a value is served at once, while
            one load behind it brings the next; 0: not at all.
        stale_if_error: Seconds past its ttl in which a value is served if its load fails, or
            takes longer than a timeout; 0: not at all.
        refresh_ahead: Fraction of ttl after which a read begins a load behind it; `AUTO`, the
            same by chance, the sooner the longer a load takes; None: not at all.
        soft_timeout: Seconds after which a caller takes a stale value, if one is kept; without
            a window none is, and the caller waits on.
        hard_timeout: Seconds after which a caller waits no longer.
        load_timeout: Seconds after which a load is cancelled.
        error_backoff: Seconds after a failed load in which a value at hand is served without
            another try; doubles with each failure in a row, up to 32 times; 0: none. None: 1 s
            for loads behind a value, and none for callers who wait.
        copy: What a caller is handed: the stored object, or a "shallow" or "deep" copy.
        skip: Tells of a value whether it is to be returned and not stored.
        vary_on: Context variables whose values are part of the key.
        context: What a load sees: the context of its first "caller", or an "isolated" one.
        propagate: Context variables that an isolated load still sees.
    """

    ttl: float | None = None
    jitter: float = 0.0
    on_abandon: str = "cancel"
    cancel_grace: float = 5.0
    negative: Mapping[type[Exception], NegativeTtl] = field(default_factory=_no_failures)
    after_close: str = "error"
    version: object = None
    tags: tuple[str, ...] | Callable[..., Tags] = ()
    depends_on: tuple[object, ...] | Callable[..., Dependencies] = ()
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    refresh_ahead: float | None = None
    soft_timeout: float | None = None
    hard_timeout: float | None = None
    load_timeout: float | None = None
    error_backoff: float | None = None
    copy: Literal["none", "shallow", "deep"] = "none"
    skip: Callable[[Any], bool] | None = None
    vary_on: tuple["ContextVar[Any]", ...] = ()
    context: Literal["caller", "isolated"] = "caller"
    propagate: tuple["ContextVar[Any]", ...] = ()
    plain: bool = field(default=True, init=False)
    """Whether a value is fresh or nothing, and nobody waits but for the end of a load."""
    _memo: dict[Any, Any] = field(
        default_factory=dict[Any, Any], init=False, compare=False, repr=False
    )
    copier: Callable[[Any], Any] | None = field(default=None, init=False)
    """Makes the copy that a caller is handed; None: it is handed the object itself."""

    def __post_init__(self) -> None:
        """Derive what is asked for at every load."""
        windows = self.stale_while_revalidate or self.stale_if_error
        patience = self.soft_timeout or self.hard_timeout
        plain = not (windows or patience or self.refresh_ahead or self.load_timeout)
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "copier", _COPIERS[self.copy])

    def _refuse_contradictions(self, given: Mapping[str, object]) -> None:
        """Raise ValueError if what was *given*, at one call or function, contradicts the rest."""
        for name in ("stale_while_revalidate", "stale_if_error", "refresh_ahead"):
            if given.get(name) and self.ttl is None:
                raise ValueError(
                    f"{name} needs a ttl: a value without one is fresh for ever; give ttl=, "
                    f"or leave {name} out"
                )
        for longer in ("hard_timeout", "load_timeout"):
            soft, other = self.soft_timeout, getattr(self, longer)
            named = "soft_timeout" in given or longer in given
            if named and soft is not None and other is not None and soft > other:
                raise ValueError(
                    f"soft_timeout={soft} must not be above {longer}={other}: it would never come"
                )

    @property
    def window(self) -> float:
        """Seconds past its ttl for which a value is kept."""
        return 0.0 if self.ttl is None else max(self.stale_while_revalidate, self.stale_if_error)

    @property
    def ahead(self) -> bool:
        """Whether a read may begin the next load before the ttl is over."""
        return self.refresh_ahead is not None and self.ttl is not None

    def is_answer(self, error: BaseException) -> bool:
        """Tell whether *error* is named in `negative`: a result, for which no stale one stands."""
        return bool(self.negative) and any(kind in self.negative for kind in type(error).__mro__)

    def but(self, *, default: bool = False, **given: Any) -> Self:
        """Return these options with the given ones in their place, checked.

        Options that need each other may stand alone at a cache, with *default*: a function
        or a call gives the other one. What plain values led to is remembered.

        Raises:
            TypeError: An option is of a type that it cannot have, or there is none such.
            ValueError: An option is outside its range, or contradicts another one.
        """
        asked = [each for each in given.items() if each[1] is not UNSET]
        if not asked:
            return self
        memo: tuple[tuple[str, Any, Any], ...] | None = None
        if not default:
            # With the types: True is no 1 here.
            memo = tuple([(name, value, _kind(value)) for name, value in asked])
            for _, value, kind in memo:
                if kind not in _PLAIN and (kind is not tuple or value):
                    memo = None
                    break
            else:
                known: Self | None = self._memo.get(memo)
                if known is not None:
                    return known
        changed: dict[str, Any] = {}
        for name, value in asked:
            check = _CHECKS.get(name)
            if check is None:
                raise TypeError(
                    f"there is no option {name!r}; see CacheOptions for those there are"
                )
            changed[name] = check(name, value)
        options = replace(self, **changed)
        if not default:
            options._refuse_contradictions(changed)
        if memo is not None:
            if len(self._memo) >= MOST_MEMOS:
                self._memo.clear()
            self._memo[memo] = options
        return options

    def negative_ttl(self, error: BaseException) -> float | None | Unset:
        """Return how long *error* is remembered; UNSET: not at all.

        The most specific class decides. Runs the user's callable, if it is one.
        """
        for kind in type(error).__mro__:
            if kind in self.negative and isinstance(error, Exception):
                ttl = self.negative[kind]
                if not callable(ttl):
                    return check_ttl("negative", ttl)
                return check_ttl(f"negative[{kind.__name__}]()", ttl(error))
        return UNSET


def _check_options_tags(name: str, value: object) -> object:
    return value if callable(value) else check_tags(name, value)


def _check_depends_on(name: str, value: object) -> object:
    computed = callable(value) and not hasattr(value, DECORATED)
    return value if computed else check_sources(name, value)


def _check_skip(name: str, value: object) -> object:
    if value is not None:
        check_callable(name, value, "a callable(value) that is true for what is not kept")
    return value


_kind: Callable[[object], Any] = type

_PLAIN: Final = frozenset({int, float, str, type(None), timedelta, bool})

_CHECKS: Final[dict[str, Callable[[str, Any], object]]] = {
    "ttl": check_ttl,
    "jitter": partial(check_fraction, meaning="how much of ttl chance may cut off"),
    "on_abandon": partial(check_choice, choices=("cancel", "finish")),
    "cancel_grace": partial(check_seconds, zero=True),
    "negative": lambda _, value: _check_negative(value),
    "after_close": partial(check_choice, choices=("error", "call")),
    "version": lambda _, value: _check_version(value),
    "tags": _check_options_tags,
    "depends_on": _check_depends_on,
    "stale_while_revalidate": _check_window,
    "stale_if_error": _check_window,
    "refresh_ahead": lambda _, value: _check_refresh_ahead(value),
    "soft_timeout": _check_timeout,
    "hard_timeout": _check_timeout,
    "load_timeout": _check_timeout,
    "error_backoff": _check_backoff,
    "copy": partial(check_choice, choices=("none", "shallow", "deep")),
    "skip": _check_skip,
    "vary_on": _check_variables,
    "context": partial(check_choice, choices=("caller", "isolated")),
    "propagate": _check_variables,
}
"""What makes the value of an option, by its name, of the one that is given."""


@final
@dataclass(frozen=True, slots=True)
class AlertThresholds:
    """Where health begins to complain; None switches one off.

    Attributes:
        hit_rate_low: Percent of calls, after the first 1,000 calls.
        memory_usage_high: Percent of max_memory_bytes.
        error_rate_high: Percent of loads.
        response_time_high: Milliseconds, p95 of what callers waited in 5 minutes.
        eviction_rate_high: Evictions per minute.
        oldest_load_high: Seconds for which the oldest load runs.
    """

    hit_rate_low: float | None = 70.0
    memory_usage_high: float | None = 90.0
    error_rate_high: float | None = 1.0
    response_time_high: float | None = 200.0
    eviction_rate_high: float | None = 100.0
    oldest_load_high: float | None = 60.0

    def __post_init__(self) -> None:
        """Check every threshold."""
        percents = ("hit_rate_low", "memory_usage_high", "error_rate_high")
        for name in (*percents, "response_time_high", "eviction_rate_high", "oldest_load_high"):
            value: object = getattr(self, name)
            if value is None:
                continue
            meaning = "a number from 0, or None to switch it off"
            if isinstance(value, timedelta):
                raise TypeError(f"{name} must be {meaning}, not timedelta")
            number = _number(name, value, meaning)
            if number < 0 or (name in percents and number > 100):
                limit = " and at most 100 (percent)" if name in percents else ""
                raise ValueError(f"{name}={value!r} must be {meaning}{limit}")
