"""A plain model of the cache, and steps that the cache and the model take side by side.

The model is dicts and the words of the contract: it expires eagerly, evicts the least
recently used entry, remembers reasons, and never asks the library for anything. Only
what an entry weighs is measured once, from outside: `memory_bytes` of an empty cache
that was given it.

Around every step a sweep may be forced, before or after it: it must not change any
answer.

    python -m tests.model_steps --steps 1000000 --seed 0
"""

import argparse
import asyncio
import functools
import itertools
import math
import random
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from async_safe_cache import (
    MISSING,
    AsyncSafeCache,
    MissReason,
    RemovalCause,
    race_safe_cached,
)
from async_safe_cache._tasks import EAGER

from .virtual import VirtualClock, at_once

REMEMBERED: Final = 256
"""Removals whose reason is surely remembered."""

Housekeeping = Literal["before", "after", "never"]
Place = tuple[str, Hashable]
"""Where a value is: "raw", "later" (an `async def`) or "here" (a `def`), and the key there."""

SPACES: Final = ("raw", "later", "here")
KEYS: Final = (0, 1, 2, "a", b"a", ("a", 1), 1.5, "x" * 60)
TTLS: Final = (None, 0.25, 0.5, 1.0, 1.5, 3.0, 20.0)
SIZES: Final = (0, 10, 100, 1_000, 3_000, 10_000)
UNWEIGHABLE: Final = -1
"""Size of a value for which the weigher raises."""

FENCES: Final = ("set", "clear", "clear here", "expire", "delete")

FIRST: Final = 100
RANGE: Final = 40
"""At most so many keys in one `fill`: more than any single write frees when they are due."""

MANY: Final = 1_000
"""Keys where there are many: more than the removals that are remembered."""


class Refused(Exception):
    """A failure that is remembered."""


class Broken(Exception):
    """A failure that is not."""


FORGOTTEN_AFTER: Final = 1.0
"""Seconds that a `Refused` is remembered."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value like no other, of a chosen weight."""

    number: int
    size: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What a cache is made with, and when it is swept."""

    max_entries: int | None = None
    max_memory_bytes: int | None = None
    default_ttl: float | None = None
    housekeeping: Housekeeping = "never"
    many_keys: bool = False
    expiring: bool = True


# -- the model


@dataclass(slots=True)
class Held:
    """One entry of the model: a value, or a failure that is remembered."""

    what: Value | Exception
    weight: int
    born: float
    deadline: float

    @property
    def is_value(self) -> bool:
        return isinstance(self.what, Value)


class Model:
    """What the contract says, in dicts."""

    def __init__(self, settings: Settings, clock: VirtualClock) -> None:
        self.clock = clock
        self.max_entries = _bound(settings.max_entries)
        self.max_bytes = _bound(settings.max_memory_bytes)
        self.live: OrderedDict[Place, Held] = OrderedDict()  # least recently used first
        # Why it was removed, and by which operation; the last removal last.
        self.reasons: OrderedDict[Place, tuple[MissReason, int]] = OrderedDict()
        self.moment = 0
        self.bytes = 0
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()
        self.coalesced: Counter[str] = Counter()
        self.loads: Counter[str] = Counter()
        self.load_errors: Counter[str] = Counter()
        self.misses_by_reason: Counter[MissReason] = Counter()
        self.evictions: Counter[str] = Counter()
        self.rejected = 0
        self.removed: Counter[RemovalCause] = Counter()
        self.doubtful = 0

    def pass_time(self) -> None:
        """Take out what is expired: at its ttl exactly, it is."""
        now = self.clock.now
        for place in [place for place, held in self.live.items() if held.deadline <= now]:
            self.drop(place, RemovalCause.EXPIRED)

    def note(self, place: Place, reason: MissReason) -> None:
        self.reasons[place] = (reason, self.moment)
        self.reasons.move_to_end(place)

    def drop(self, place: Place, cause: RemovalCause) -> None:
        held = self.live.pop(place)
        self.bytes -= held.weight
        self.removed[cause] += 1
        if cause is not RemovalCause.REPLACED:
            self.note(place, MissReason(cause))

    def remembers(self, place: Place) -> bool:
        """Tell whether the removal of *place* is surely among the last.

        What one operation removes has no order, and an expired entry is removed when
        a write or a sweep gets to it: it may have become the latest of the removals.
        """
        if len(self.reasons) <= REMEMBERED or place not in self.reasons:
            return True
        moment = self.reasons[place][1]
        later = sum(
            reason is MissReason.EXPIRED or number >= moment
            for reason, number in self.reasons.values()
        )
        return later <= REMEMBERED

    def edge(self) -> Place | None:
        """Return the removal that is just remembered, if there are more."""
        if len(self.reasons) <= REMEMBERED:
            return None
        return next(itertools.islice(reversed(self.reasons), REMEMBERED - 1, None))

    def reason(self, place: Place) -> MissReason:
        return self.reasons[place][0] if place in self.reasons else MissReason.ABSENT

    # -- one method for each thing that is done; each says what the answer must be

    def peek(self, place: Place) -> Held | None:
        held = self.live.get(place)
        return held if held is not None and held.is_value else None

    def read(self, place: Place) -> Held | MissReason:
        """One call that loads nothing: a hit is the latest use of its entry."""
        held = self.live.get(place)
        if held is not None:
            self.live.move_to_end(place)
        if held is not None and held.is_value:
            self.hits[place[0]] += 1
            return held
        # A remembered failure is no value: there is none.
        return self.miss(place, MissReason.ABSENT if held is not None else self.reason(place))

    def miss(self, place: Place, reason: MissReason) -> MissReason:
        self.misses[place[0]] += 1
        if not self.remembers(place):
            self.doubtful += 1
        self.misses_by_reason[reason] += 1
        return reason

    def call(self, place: Place) -> Held | None:
        """One call that loads when there is nothing; a remembered failure is a hit."""
        held = self.live.get(place)
        if held is None:
            self.miss(place, self.reason(place))
            return None
        self.live.move_to_end(place)
        self.hits[place[0]] += 1
        return held

    def store(self, place: Place, what: Value | Exception, weight: int, ttl: float | None) -> None:
        if weight > self.max_bytes or self.max_entries < 1:
            if place in self.live:
                self.drop(place, RemovalCause.REJECTED)
            self.rejected += 1
            self.note(place, MissReason.REJECTED)
            return
        if place in self.live:
            self.drop(place, RemovalCause.REPLACED)
        while True:
            over_bytes = self.bytes + weight > self.max_bytes
            if not over_bytes and len(self.live) < self.max_entries:
                break
            self.evictions["max_memory_bytes" if over_bytes else "max_entries"] += 1
            self.drop(next(iter(self.live)), RemovalCause.EVICTED)
        now = self.clock.now
        self.live[place] = Held(what, weight, now, math.inf if ttl is None else now + ttl)
        self.bytes += weight

    def landed(
        self, place: Place, value: Value | Exception, weight: int, ttl: float | None
    ) -> None:
        """A load has ended that nobody shut out."""
        self.counted(place, value)
        if isinstance(value, Value) and value.size == UNWEIGHABLE:
            self.rejected += 1
            self.note(place, MissReason.REJECTED)
        elif isinstance(value, Value):
            self.store(place, value, weight, ttl)
        elif isinstance(value, Refused) and place not in self.live:
            self.store(place, value, weight, FORGOTTEN_AFTER)

    def counted(self, place: Place, value: Value | Exception) -> None:
        self.loads[place[0]] += 1
        good = isinstance(value, Value) and value.size != UNWEIGHABLE
        self.load_errors[place[0]] += not good

    def remove(self, places: Sequence[Place], reason: MissReason, loading: Place | None) -> int:
        """Remove *places*; the load of *loading* is shut out if it is among them."""
        count = 0
        for place in places:
            count += self.peek(place) is not None
            if place in self.live:
                self.drop(place, RemovalCause(reason))
            elif place == loading:
                self.note(place, reason)
        return count

    def clear(self, space: str | None, loading: Place | None) -> None:
        for place in list(self.live):
            if space is None or place[0] == space:
                self.drop(place, RemovalCause.CLEARED)
        if loading is not None and (space is None or loading[0] == space):
            self.note(loading, MissReason.CLEARED)

    def touch(self, place: Place, ttl: float | None) -> bool:
        held = self.peek(place)
        if held is None:
            return False
        held.deadline = math.inf if ttl is None else self.clock.now + ttl
        self.live.move_to_end(place)
        return True


def _bound(bound: int | None) -> float:
    return math.inf if bound is None else bound


# -- what entries weigh, measured from outside


@functools.cache
def _weight_without_value(kind: type, key: Hashable, failure: bool) -> int:
    del kind  # only tells 1 from 1.0
    probe = AsyncSafeCache(max_memory_bytes=None, weigher=lambda _: 0)
    if not failure:
        at_once(probe.set(key, None))
        return probe.memory_bytes

    @race_safe_cached(probe, "probe", negative={Refused: None})
    def fails(x: object) -> None:
        raise Refused

    try:
        fails(key)
    except Refused:
        pass
    return probe.memory_bytes


def weight_of(place: Place, what: Value | Exception) -> int:
    """Return what an entry weighs."""
    key = place[1]
    if isinstance(what, Value):
        return _weight_without_value(type(key), key, False) + what.size
    return _weight_without_value(type(key), key, True)


# -- side by side


class Pair:
    """A cache and its model; each step is done with both, and the answers must agree."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = VirtualClock()
        self.model = Model(settings, self.clock)
        self.numbers = 0
        self.results: list[Value | Exception] = []  # of the next loads of the functions
        self.inside: Callable[[], Any] | None = None  # what the next load does on its way
        self.cache = cache = AsyncSafeCache(
            max_entries=settings.max_entries,
            max_memory_bytes=settings.max_memory_bytes,
            default_ttl=settings.default_ttl,
            weigher=lambda value: value.size,
            clock=self.clock,
            negative={Refused: FORGOTTEN_AFTER},
        )

        @race_safe_cached(cache, "later", ttl=2.0)
        async def later(x: object) -> Value:
            return await self.load()

        @race_safe_cached(cache, "here", ttl=None)
        def here(x: object) -> Value:
            return at_once(self.load())

        self.functions: dict[str, Any] = {"later": later, "here": here}
        self.ttl_of = {"raw": settings.default_ttl, "later": 2.0, "here": None}

    # -- parts

    def value(self, size: int) -> Value:
        self.numbers += 1
        return Value(self.numbers, size)

    async def load(self) -> Value:
        result = self.results.pop()
        if self.inside is not None:
            inside, self.inside = self.inside, None
            await inside()
        if isinstance(result, Exception):
            raise result
        return result

    def result(self, size: int, failure: type[Exception] | None) -> Value | Exception:
        """Return what a load is to give: a value, or a failure with a number of its own."""
        value = self.value(size)
        return value if failure is None else failure(value.number)

    def key(self, place: Place) -> Any:
        """Return the key that the cache's keyed methods take for *place*."""
        space, key = place
        return key if space == "raw" else self.functions[space].cache_key(key)

    def sweep(self, when: Housekeeping) -> None:
        """Free everything that is due, if it is time to."""
        if self.settings.housekeeping == when:
            self.sweep_all()

    def sweep_all(self) -> None:
        while self.cache._engine.sweep(self.clock(), 3):
            pass

    def begin(self) -> None:
        self.model.moment += 1
        self.model.pass_time()
        self.sweep("before")

    def end(self) -> None:
        self.sweep("after")
        self.compare()

    def compare(self) -> None:
        """What must be so at any time, swept or not."""
        cache, model = self.cache, self.model
        model.pass_time()
        assert len(cache) == len(model.live)
        assert model.bytes <= cache.memory_bytes <= model.max_bytes
        stats = cache.stats()
        found = (stats.hits, stats.misses, stats.coalesced, stats.loads, stats.load_errors)
        told = (model.hits, model.misses, model.coalesced, model.loads, model.load_errors)
        assert found == tuple(each.total() for each in told)
        assert stats.calls == stats.hits + stats.misses + stats.coalesced
        assert stats.rejected == model.rejected
        assert stats.evictions == model.evictions.total()
        assert stats.evictions_by_cause == {
            cause: model.evictions[cause] for cause in ("max_entries", "max_memory_bytes")
        }
        if not model.doubtful:
            assert stats.misses_by_reason == {
                str(reason): model.misses_by_reason[reason] for reason in MissReason
            }

    def compare_all(self) -> None:
        """The same, and what is exact once everything expired is freed."""
        self.compare()
        cache, model = self.cache, self.model
        held = dict.fromkeys(SPACES, 0)
        for space, _ in model.live:
            held[space] += 1
        for name, fn in self.functions.items():
            info = cache.info(fn)
            assert info.hits == model.hits[name]
            assert info.misses == model.misses[name]
            assert info.coalesced == model.coalesced[name]
            assert info.loads == model.loads[name]
            assert info.load_errors == model.load_errors[name]
            assert info.in_flight == 0
            assert info.entries >= held[name]
        health = at_once(cache.get_health_info())["cache_stats"]
        assert health["entries"] == len(model.live)
        cache.check()
        if self.settings.housekeeping == "after":
            assert cache.memory_bytes == model.bytes
            assert cache.stats().removals_by_cause == {
                str(cause): model.removed[cause] for cause in RemovalCause
            }
            assert all(cache.info(fn).entries == held[name] for name, fn in self.functions.items())

    # -- reads

    async def get(self, place: Place) -> None:
        self.begin()
        told = self.model.read(place)
        found = await self.cache.get(self.key(place), MISSING)
        assert found is (told.what if isinstance(told, Held) else MISSING)
        self.end()

    async def lookup(self, place: Place) -> None:
        self.begin()
        model = self.model
        sure = model.remembers(place)
        told = model.read(place)
        found = await self.cache.lookup(self.key(place))
        if isinstance(told, Held):
            left = told.deadline - self.clock.now
            assert (found.hit, found.reason, found.stale) == (True, None, False)
            assert found.value is told.what
            assert found.age == self.clock.now - told.born
            assert found.ttl_left == (None if left == math.inf else left)
        else:
            assert (found.hit, found.value, found.age, found.ttl_left) == (
                False,
                MISSING,
                None,
                None,
            )
            assert found.reason == told or (not sure and found.reason is MissReason.ABSENT)
        self.end()

    async def peek(self, place: Place) -> None:
        self.begin()
        told = self.model.peek(place)
        assert self.cache.peek(self.key(place)) is (MISSING if told is None else told.what)
        if place[0] != "raw":
            assert self.functions[place[0]].cache_contains(place[1]) == (told is not None)
        self.end()

    async def get_many(self, places: Sequence[Place]) -> None:
        self.begin()
        told = {
            self.key(place): held.what
            for place in dict.fromkeys(places)
            if isinstance(held := self.model.read(place), Held)
        }
        found = await self.cache.get_many([self.key(place) for place in places])
        assert list(found.items()) == list(told.items())
        self.end()

    # -- loads

    async def ask(self, place: Place, ttl: float | None, in_call: bool) -> Any:
        """Call what loads *place*."""
        space, key = place
        if space == "raw":
            return await self.cache.get_or_load(key, self.load, ttl=ttl)
        value = self.functions[space](key) if in_call else None
        if in_call:
            return await value if space == "later" else value
        # The same place by its Key, with a loader of the call's own.
        return await self.cache.get_or_load(self.key(place), self.load, ttl=ttl)

    def ttl_asked(self, place: Place, ttl: float | None, in_call: bool) -> float | None:
        return self.ttl_of[place[0]] if in_call and place[0] != "raw" else ttl

    async def get_or_load(
        self,
        place: Place,
        size: int,
        failure: type[Exception] | None,
        ttl: float | None,
        in_call: bool,
        callers: int = 1,
    ) -> None:
        """Load by *callers* at once; all but the first join.

        Or they hit, where a load that needs no await is over before they ask.
        """
        self.begin()
        model = self.model
        result = self.result(size, failure)
        self.results = [result]
        if callers == 1 or place[0] == "here":
            callers = 1
            answers = [await _answer(self.ask(place, ttl, in_call))]
        else:
            asked = [_answer(self.ask(place, ttl, in_call)) for _ in range(callers)]
            answers = await asyncio.gather(*asked)
        held = model.call(place)
        if held is None:
            model.landed(
                place, result, weight_of(place, result), self.ttl_asked(place, ttl, in_call)
            )
            over = EAGER and isinstance(result, Value) and place in model.live
            for _ in range(callers - 1):
                if over:
                    model.call(place)
                else:
                    model.coalesced[place[0]] += 1
        else:
            for _ in range(callers - 1):
                model.call(place)
            result = held.what
        assert len(self.results) == (held is not None), "loaded as often as told"
        for answer in answers:
            _agree(answer, result, same_object=held is None or held.is_value)
        self.end()

    async def fill(self, first: int, count: int, ttl: float | None) -> None:
        """Write many keys, so that many expire together."""
        self.begin()
        for key in range(first, first + count):
            value = self.value(0)
            await self.cache.set(key, value, ttl=ttl)
            self.model.store(("raw", key), value, weight_of(("raw", key), value), ttl)
        self.end()

    async def fenced_load(
        self,
        place: Place,
        size: int,
        failure: type[Exception] | None,
        fence: str,
        fence_size: int,
    ) -> None:
        """Load, and on the way shut that very load out; it answers, and stores nothing."""
        self.begin()
        model = self.model
        held = model.call(place)
        if held is not None:
            answer = await _answer(self.ask(place, None, True))
            _agree(answer, held.what, same_object=held.is_value)
            self.end()
            return
        result = self.result(size, failure)
        self.results = [result]
        value = self.value(fence_size)

        async def inside() -> None:
            key = self.key(place)
            if fence == "set":
                await self.cache.set(key, value)
                model.store(place, value, weight_of(place, value), self.ttl_of["raw"])
            elif fence == "clear":
                await self.cache.clear()
                model.clear(None, place)
            elif fence == "clear here" and place[0] != "raw":
                self.functions[place[0]].cache_clear()
                model.clear(place[0], place)
            elif fence == "expire":
                assert await self.cache.expire(key) == 0
                model.remove([place], MissReason.EXPIRED, place)
            else:
                assert await self.cache.delete(key) == 0
                model.remove([place], MissReason.DELETED, place)

        self.inside = inside
        answer = await _answer(self.ask(place, None, True))
        _agree(answer, result, same_object=True)
        model.counted(place, result)
        self.end()

    async def refresh(self, place: Place, size: int, failure: type[Exception] | None) -> None:
        """Load a call, fresh or not; it counts as no call."""
        if place[0] != "later":
            return
        self.begin()
        result = self.result(size, failure)
        self.results = [result]
        answer = await _answer(self.cache.refresh(self.functions["later"], place[1]))
        _agree(answer, result, same_object=True)
        self.model.landed(place, result, weight_of(place, result), self.ttl_of["later"])
        self.end()

    # -- writes

    async def set(self, place: Place, size: int, ttl: float | None, default_ttl: bool) -> None:
        self.begin()
        value = self.value(size)
        if default_ttl:
            ttl = self.settings.default_ttl
            await self.cache.set(self.key(place), value)
        else:
            await self.cache.set(self.key(place), value, ttl=ttl)
        self.model.store(place, value, weight_of(place, value), ttl)
        self.end()

    async def set_unweighable(self, place: Place) -> None:
        """The weigher raises, and nothing changes."""
        self.begin()
        try:
            await self.cache.set(self.key(place), self.value(UNWEIGHABLE))
        except ValueError:
            pass
        else:
            raise AssertionError("the weigher's error did not reach the caller")
        self.end()

    async def delete(self, places: Sequence[Place]) -> None:
        self.begin()
        told = self.model.remove(places, MissReason.DELETED, None)
        assert await self.cache.delete(*map(self.key, places)) == told
        self.end()

    async def expire(self, places: Sequence[Place]) -> None:
        self.begin()
        told = self.model.remove(places, MissReason.EXPIRED, None)
        assert await self.cache.expire(*map(self.key, places)) == told
        self.end()

    async def invalidate(self, place: Place, synchronous: bool) -> None:
        if place[0] == "raw":
            return
        self.begin()
        told = bool(self.model.remove([place], MissReason.DELETED, None))
        fn = self.functions[place[0]]
        if synchronous:
            assert fn.cache_invalidate(place[1]) is told
        else:
            assert await self.cache.invalidate(fn, place[1]) is told
        self.end()

    async def touch(self, place: Place, ttl: float | None) -> None:
        self.begin()
        told = self.model.touch(place, ttl)
        assert await self.cache.touch(self.key(place), ttl) is told
        self.end()

    async def clear(self, space: str) -> None:
        """Clear everything, or one function."""
        self.begin()
        if space == "raw":
            await self.cache.clear()
            self.model.clear(None, None)
        else:
            fn = self.functions[space]
            fn.cache_clear()
            self.model.clear(space, None)
            assert fn.cache_info()[:2] == (0, 0)
        self.end()

    async def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.begin()
        self.end()


async def _answer(asked: Any) -> Any:
    """Return what was returned or raised."""
    try:
        return await asked
    except (Refused, Broken, ValueError) as error:
        return error


def _agree(answer: Any, told: Value | Exception, *, same_object: bool) -> None:
    """The very object, or the twin of a failure that is remembered."""
    if isinstance(told, Value) and told.size == UNWEIGHABLE:
        assert type(answer) is ValueError
        return
    assert answer is told if same_object else answer is not told
    assert type(answer) is type(told)
    if isinstance(told, Exception):
        assert answer.args == told.args


# -- steps chosen by a seed


def settings_of(chance: random.Random) -> Settings:
    """Choose how the next cache is made."""
    return Settings(
        max_entries=chance.choice([None, None, None, None, 0, 1, 2, 5, 30]),
        max_memory_bytes=chance.choice([None, None, 0, 1_000, 3_000, 10_000, 10_000, 30_000]),
        default_ttl=chance.choice([None, 1.5]),
        housekeeping=chance.choice(["before", "after", "never"]),
        many_keys=chance.random() < 0.3,
        expiring=chance.random() < 0.75,
    )


STEPS: Final = {
    "get": 12,
    "lookup": 14,
    "peek": 3,
    "get_many": 5,
    "set": 14,
    "load": 16,
    "fenced_load": 3,
    "refresh": 3,
    "delete": 6,
    "expire": 3,
    "invalidate": 2,
    "touch": 3,
    "clear": 1,
    "fill": 3,
    "crowd": 3,
    "set_unweighable": 1,
    "wait": 11,
}
"""How often each step is taken; each round changes that for itself."""


class Steps:
    """Chooses the steps of one round.

    Each round has its own mixture of steps, times to live and sizes ("swarm testing"):
    what is rare on the average is then common somewhere. A store that is full of
    entries that are due needs a round that seldom clears and seldom deletes.
    """

    def __init__(self, pair: Pair, chance: random.Random) -> None:
        self.pair = pair
        # random() and indexing: choice() and randrange() would take most of the time.
        self.draw = chance.random
        self.deck = [
            name
            for name, often in STEPS.items()
            for _ in range(math.ceil(often * chance.choice([0.1, 0.5, 1, 2])))
        ]
        ttls = TTLS if pair.settings.expiring else (None,)
        self.ttls = chance.choices(ttls, k=chance.randint(1, 4))
        self.sizes = chance.choices(SIZES, k=chance.randint(1, 4))
        self.keys, self.width = (0.7, MANY) if pair.settings.many_keys else (0.3, RANGE)

    def one(self, of: Sequence[Any]) -> Any:
        return of[int(self.draw() * len(of))]

    def place(self) -> Place:
        if self.draw() < self.keys:
            return "raw", FIRST + int(self.draw() * self.width)
        return self.one(SPACES), self.one(KEYS)

    def places(self) -> list[Place]:
        return [self.place() for _ in range(int(self.draw() * 6))]

    def size(self) -> int:
        return self.one(SIZES if self.draw() < 0.1 else self.sizes)

    def result(self) -> tuple[int, type[Exception] | None]:
        """Return what a load gives: the size of its value, or the failure instead."""
        size = UNWEIGHABLE if self.draw() < 0.02 else self.size()
        return size, self.one((None, None, None, None, Refused, Broken))

    async def take(self) -> None:
        """Take one step."""
        pair, draw, one, place = self.pair, self.draw, self.one, self.place
        match one(self.deck):
            case "get":
                await pair.get(place())
            case "lookup":
                await pair.lookup((pair.model.edge() if draw() < 0.2 else None) or place())
            case "peek":
                await pair.peek(place())
            case "get_many":
                await pair.get_many(self.places())
            case "set":
                await pair.set(place(), self.size(), one(self.ttls), draw() < 0.3)
            case "load":
                callers = 1 + int(draw() * 4) if draw() < 0.2 else 1
                in_call = draw() < 0.7
                await pair.get_or_load(place(), *self.result(), one(self.ttls), in_call, callers)
            case "fenced_load":
                await pair.fenced_load(place(), *self.result(), one(FENCES), self.size())
            case "refresh":
                await pair.refresh(("later", one(KEYS)), *self.result())
            case "delete" | "expire" as name:
                places = self.places()
                await getattr(pair, name)(places)
                if places:
                    await pair.lookup(one(places))
            case "invalidate":
                await pair.invalidate(place(), draw() < 0.5)
            case "touch":
                await pair.touch(place(), one(self.ttls))
            case "clear":
                await pair.clear(one(SPACES))
            case "fill":
                count = 1 + int(draw() * RANGE)
                first = FIRST + int(draw() * (self.width - count + 1))
                await pair.fill(first, count, one(self.ttls))
            case "crowd":
                # Many are due at once, among live ones; one is removed, or a heavy one comes.
                count = 5 + int(draw() * 10)
                first = FIRST + int(draw() * (self.width - count + 1))
                await pair.fill(first, count, 0.25)
                await pair.wait(0.25)
                if draw() < 0.5:
                    await pair.set(place(), one(SIZES), None, False)
                else:
                    due: Place = ("raw", first + int(draw() * count))
                    await pair.delete([due])
                    await pair.lookup(due)
            case "set_unweighable":
                await pair.set_unweighable(place())
            case _:
                await pair.wait(one((0.0, 0.25, 0.25, 0.5, 1.0, 3.0)))


class StepError(AssertionError):
    """The cache and the model disagree.

    Attributes:
        seed: The seed of the round.
        steps: The step of that round at which they did.
    """

    def __init__(self, seed: str, steps: int, settings: Settings) -> None:
        super().__init__(
            f"the cache and its model disagree at step {steps} of the round with seed {seed!r} "
            f"({settings}); to see it again: await play_round({seed!r}, {steps + 1})"
        )
        self.seed = seed
        self.steps = steps


async def play_round(seed: str, steps: int) -> None:
    """Take *steps* steps with one cache.

    Raises:
        StepError: The cache and the model disagree; its cause says in what.
    """
    chance = random.Random(seed)
    pair = Pair(settings_of(chance))
    steps_of = Steps(pair, chance)
    number = 0
    try:
        for number in range(steps):
            await steps_of.take()
            if number % 50 == 0:
                pair.compare_all()
        pair.compare_all()
    except Exception as error:
        raise StepError(seed, number, pair.settings) from error


ROUND: Final = 500


async def play(
    steps: int, seed: object, progress: Callable[[int, float], None] | None = None
) -> None:
    """Take *steps* steps, with a new cache every so many of them.

    Raises:
        StepError: The cache and the model disagree.
    """
    began = time.perf_counter()
    for number, done in enumerate(range(0, steps, ROUND)):
        await play_round(f"{seed}.{number}", min(ROUND, steps - done))
        if progress is not None:
            progress(min(done + ROUND, steps), time.perf_counter() - began)


def main() -> int:
    """Take as many steps as asked for; 1 when the cache and the model disagree."""
    parser = argparse.ArgumentParser(prog="python -m tests.model_steps", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shown = 0.0

    def progress(done: int, seconds: float) -> None:
        nonlocal shown
        if seconds - shown >= 5 or done == given.steps:
            shown = seconds
            left = seconds / done * (given.steps - done)
            print(
                f"{done:>10,} of {given.steps:,} steps, {done / seconds:,.0f} a second, "
                f"{left:,.0f} s left",
                flush=True,
            )

    try:
        asyncio.run(play(given.steps, given.seed, progress), debug=False)
    except StepError as error:
        cause = error.__cause__
        print(f"{error}\n{type(cause).__name__}: {cause}", file=sys.stderr)
        return 1
    print(f"the cache and its model agree over {given.steps:,} steps (seed {given.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
