"""Many keys, one load: who shares it, who is told what, who may cancel it."""

import asyncio
import gc
import threading
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest

from async_safe_cache import (
    AsyncSafeCache,
    CacheClosedError,
    LoadCancelledError,
    MissReason,
    RecursiveLoadError,
    UnsupportedKeyError,
    _dead_loops,
    race_safe_cached,
)
from async_safe_cache._bulk import Bulk
from async_safe_cache._engine import bypass
from async_safe_cache._flights import Flight, Group, current_flight
from async_safe_cache._journal import MOST, Journal

from .test_cancellation import with_cache
from .virtual import Loader, VirtualClock, VirtualLoop, run_virtual, settle

Main = Callable[[AsyncSafeCache], Coroutine[Any, Any, None]]


class ManyLoader:
    """A scripted loader of many keys: says what it was asked for, waits, gives or raises."""

    def __init__(
        self,
        value: Callable[[Any], object] = str,
        *,
        seconds: float = 1.0,
        error: BaseException | None = None,
        omits: tuple[object, ...] = (),
        extras: Mapping[Any, object] = MappingProxyType({}),
        cleans_for: float = 0.0,
    ) -> None:
        self.value = value
        self.seconds = seconds
        self.error = error
        self.omits = omits
        self.extras = extras
        self.cleans_for = cleans_for
        self.asked: list[list[Any]] = []
        self.cancelled = 0

    async def __call__(self, absent: list[Any]) -> dict[Any, Any]:
        self.asked.append(absent)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(self.cleans_for)
            raise
        if self.error is not None:
            raise self.error
        given = {key: self.value(key) for key in absent if key not in self.omits}
        return given | dict(self.extras)


def counts(cache: AsyncSafeCache) -> tuple[int, int, int, int, int]:
    """Return hits, misses, joins, loads, failed loads."""
    stats = cache.stats()
    return stats.hits, stats.misses, stats.coalesced, stats.loads, stats.load_errors


def bulk(cache: AsyncSafeCache, keys: Any, load: Any, **options: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(cache.get_or_load_many(keys, load, **options))


def single(cache: AsyncSafeCache, key: Any, load: Any, **options: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(cache.get_or_load(key, load, **options))


# -- what is asked of the loader, and what the caller gets


def test_only_new_distinct_absent_keys_are_loaded_once_in_first_seen_order(
    clock: VirtualClock,
) -> None:
    """Fifty keys: 20 hit, one asked for twice, one in flight by others."""

    async def main(cache: AsyncSafeCache) -> None:
        for key in range(31, 51):
            await cache.set(key, f"hit {key}")
        other = Loader("of another", seconds=3)
        flying = single(cache, 10, other)
        await settle()
        load = ManyLoader()
        keys = [3, *range(50, 0, -1), 3]
        got = await cache.get_or_load_many(keys, load)
        assert list(got) == [3, *(key for key in range(50, 0, -1) if key != 3)]
        assert load.asked == [[3, *(key for key in range(30, 0, -1) if key not in (3, 10))]]
        assert got[10] == await flying == "of another"
        assert (got[3], got[40]) == ("3", "hit 40")
        assert other.calls == 1
        # 20 hits; 29 misses and the other's one; one join; two loads.
        assert counts(cache) == (20, 30, 1, 2, 0)
        assert await cache.get_many(range(1, 51)) == {key: got[key] for key in range(1, 51)}

    with_cache(main, clock)


def test_no_key_calls_nothing(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader()
        assert await cache.get_or_load_many([], load) == {}
        await cache.get_or_load_many(["a"], load)
        assert await cache.get_or_load_many(iter(["a"]), load) == {"a": "a"}
        assert load.asked == [["a"]], "nor does a hit"
        await cache.aclose()
        with pytest.raises(CacheClosedError):
            await cache.get_or_load_many([], load)

    with_cache(main, clock)


@pytest.mark.parametrize("load", [None, {"a": 1}, "load"])
def test_what_cannot_be_called_is_refused_at_the_door(load: Any, clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        for keys in ([], ["a"]):
            with pytest.raises(TypeError, match="load_many must be"):
                await cache.get_or_load_many(keys, load)
        assert counts(cache) == (0, 0, 0, 0, 0)

    with_cache(main, clock)


def test_keys_that_one_dict_cannot_tell_apart_are_refused(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader()
        with pytest.raises(ValueError, match=r"get_or_load_many got two keys .* such as 1 and"):
            await cache.get_or_load_many([1, True], load)
        with pytest.raises(UnsupportedKeyError):
            await cache.get_or_load_many([1, object()], load)
        with pytest.raises(ValueError, match="ttl"):
            await cache.get_or_load_many([1], load, ttl=0)
        assert load.asked == []

    with_cache(main, clock)


def test_a_plain_function_may_load_and_any_mapping_may_answer(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        def load(absent: list[int]) -> Mapping[int, str]:
            assert len(asyncio.all_tasks()) == 2, "it runs in a task of the cache's own"
            running = cache._engine.flights.running
            assert {flight.task for flight in running} == {asyncio.current_task()}
            return MappingProxyType(OrderedDict((key, str(key)) for key in reversed(absent)))

        assert await cache.get_or_load_many([1, 2, 3], load) == {1: "1", 2: "2", 3: "3"}
        assert list(await cache.get_or_load_many([3, 4], load)) == [3, 4]

    with_cache(main, clock)


@pytest.mark.parametrize("given", [["a"], None, "a", 5, iter(())])
def test_what_is_no_mapping_is_a_type_error_for_all_who_wait(
    given: object, clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def load(absent: list[str]) -> Any:
            await asyncio.sleep(1)
            return given

        many = bulk(cache, ["a", "b"], load)
        await settle()
        one = single(cache, "b", Loader())
        for task in (many, one):
            with pytest.raises(TypeError, match="must return a mapping of keys to values, not"):
                await task
        assert len(cache) == 0
        assert counts(cache) == (0, 2, 1, 1, 1)

    with_cache(main, clock)


def test_the_list_is_the_loaders_own(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def load(absent: list[int]) -> dict[int, int]:
            answer = dict.fromkeys(absent, 0)
            absent.clear()
            return answer

        assert await cache.get_or_load_many([1, 2], load) == {1: 0, 2: 0}

    with_cache(main, clock)


def test_an_omitted_key_is_absent_for_its_caller_and_is_asked_for_again(
    clock: VirtualClock,
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(omits=("b",))
        for _ in range(2):
            assert await cache.get_or_load_many(["a", "b", "c"], load) == {"a": "a", "c": "c"}
        assert load.asked == [["a", "b", "c"], ["b"]]
        assert (await cache.lookup("b")).reason is MissReason.ABSENT
        assert counts(cache)[3:] == (2, 0)

    with_cache(main, clock)


def test_a_single_caller_of_an_omitted_key_runs_its_own_loader(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        many = bulk(cache, ["a", "b"], ManyLoader(omits=("b",)))
        await settle()
        own = Loader("own", seconds=1)
        ones = [single(cache, "b", own) for _ in range(3)]
        assert await many == {"a": "a"}
        assert await asyncio.gather(*ones) == ["own"] * 3
        assert own.calls == 1
        assert counts(cache) == (0, 2, 3, 2, 0), "each call is counted once"

    with_cache(main, clock)


def test_who_had_only_joined_an_omitted_key_asks_its_own_loader(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        first = bulk(cache, ["a", "b"], ManyLoader(omits=("b",)))
        await settle()
        load = ManyLoader(lambda key: f"second {key}")
        second = bulk(cache, ["b", "c", "a"], load)
        assert await first == {"a": "a"}
        assert await second == {"b": "second b", "c": "second c", "a": "a"}
        assert load.asked == [["c"], ["b"]], "one call a round"
        assert counts(cache) == (0, 3, 2, 3, 0)

    with_cache(main, clock)


def test_keys_that_nobody_asked_for_are_dropped(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(extras={"x": 1, object(): 2, frozenset(): 3})
        assert await cache.get_or_load_many(["a"], load) == {"a": "a"}
        assert len(cache) == 1

    with_cache(main, clock)


def test_an_answer_for_true_is_none_for_one(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        def load(absent: list[Any]) -> dict[Any, str]:
            return {True: "wrong", (1.0, 2): "wrong"}

        assert await cache.get_or_load_many([1, (1, 2)], load) == {}
        assert await cache.get_or_load_many([True, (1.0, 2)], load) == {
            True: "wrong",
            (1.0, 2): "wrong",
        }

    with_cache(main, clock)


def test_two_objects_with_one_cache_key_are_one_key(clock: VirtualClock) -> None:
    class User:
        def __cache_key__(self) -> str:
            return "user"

    async def main(cache: AsyncSafeCache) -> None:
        first, second = User(), User()
        load = ManyLoader(lambda _: "value")
        got = await cache.get_or_load_many([first, second], load)
        assert got == {first: "value", second: "value"}
        assert load.asked == [[first]]
        assert counts(cache) == (0, 1, 0, 1, 0)

    with_cache(main, clock)


def test_the_keys_of_decorated_calls_are_keys_too(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        calls: list[int] = []

        @race_safe_cached(cache, "row")
        async def row(number: int) -> str:
            calls.append(number)
            await asyncio.sleep(5)
            return f"row {number}"

        keys = [cache.key_for(row, number) for number in range(3)]
        running = asyncio.create_task(row(0))
        await settle()
        many = bulk(cache, keys, ManyLoader(lambda _: "of many", seconds=9))
        await settle()
        joined = asyncio.create_task(row(2))
        assert await many == {keys[0]: "row 0", keys[1]: "of many", keys[2]: "of many"}
        assert await running == "row 0"
        assert (await joined, await row(1), await row(2)) == ("of many",) * 3
        assert calls == [0]

    with_cache(main, clock)


def test_each_value_lives_its_ttl_from_the_end_of_the_load(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(seconds=50)
        await cache.get_or_load_many(range(200), load, ttl=10, jitter=0.5)
        left = {(await cache.lookup(key)).ttl_left for key in range(200)}
        assert len(left) > 100, "chance shortens each on its own"
        assert all(each is not None and 5 <= each <= 10 for each in left)
        await asyncio.sleep(10)
        assert len(cache) == 0
        await cache.get_or_load_many(["a"], load, ttl=10)
        assert (await cache.lookup("a")).ttl_left == 10

    with_cache(main, clock)


# -- sharing


def test_single_callers_join_the_load_of_many(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        many = bulk(cache, ["a", "b"], ManyLoader(seconds=2))
        await settle()
        own = Loader("own")
        assert await asyncio.gather(*(single(cache, "b", own) for _ in range(3))) == ["b"] * 3
        assert await many == {"a": "a", "b": "b"}
        assert own.calls == 0
        assert counts(cache) == (0, 2, 3, 1, 0)

    with_cache(main, clock)


@pytest.mark.parametrize("late", [False, True])
def test_two_that_overlap_load_no_key_twice(late: bool, clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        first, second = (ManyLoader(seconds=seconds) for seconds in ((5, 2) if late else (2, 5)))
        one = bulk(cache, ["a", "b", "c"], first)
        two = bulk(cache, ["d", "c", "b"], second)
        assert await one == {"a": "a", "b": "b", "c": "c"}
        assert await two == {"d": "d", "c": "c", "b": "b"}
        assert (first.asked, second.asked) == ([["a", "b", "c"]], [["d"]])
        assert counts(cache) == (0, 4, 2, 2, 0)

    with_cache(main, clock)


def test_in_opposite_order_they_share_too(clock: VirtualClock) -> None:
    """Each waits for a key of the other's: no deadlock, for callers are no loads."""

    async def main(cache: AsyncSafeCache) -> None:
        ones = [single(cache, key, Loader(key, seconds=1)) for key in "ad"]
        await settle()
        first, second = ManyLoader(), ManyLoader()
        one, two = bulk(cache, "abc", first), bulk(cache, "dcb", second)
        assert await one == {"a": "a", "b": "b", "c": "c"}
        assert await two == {"d": "d", "c": "c", "b": "b"}
        assert (first.asked, second.asked) == ([["b", "c"]], [])
        await asyncio.gather(*ones)

    with_cache(main, clock)


def test_a_load_of_another_thread_is_shared_both_ways(clock: VirtualClock) -> None:
    cache = AsyncSafeCache()
    begun, go = threading.Event(), threading.Event()
    answers: list[Any] = []

    def elsewhere() -> None:
        async def load(absent: list[str]) -> dict[str, str]:
            begun.set()
            while not go.is_set():
                await asyncio.sleep(0.001)
            return {key: f"elsewhere {key}" for key in absent}

        answers.append(asyncio.run(cache.get_or_load_many(["a", "b"], load)))

    async def main() -> None:
        many = asyncio.create_task(cache.get_or_load_many(["b", "a", "c"], load_here))
        one = asyncio.create_task(cache.get_or_load("b", Loader("own")))
        await asyncio.sleep(0.01)
        go.set()
        assert await many == {"b": "elsewhere b", "a": "elsewhere a", "c": "here"}
        assert await one == "elsewhere b"

    def load_here(absent: list[str]) -> dict[str, str]:
        assert absent == ["c"]
        return {"c": "here"}

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert begun.wait(10)
    asyncio.run(main())
    thread.join(10)
    assert answers == [{"a": "elsewhere a", "b": "elsewhere b"}]
    assert cache.stats().loads == 2


# -- failures


def test_a_failure_costs_one_load_and_reaches_all_as_it_was(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        error = ValueError("no")
        load = ManyLoader(error=error)
        tasks = [bulk(cache, ["a", "b", "c"], load), bulk(cache, ["c", "b"], load)]
        await settle()
        tasks += [single(cache, key, Loader()) for key in "abc"]
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(each is error for each in got)
        assert load.asked == [["a", "b", "c"]]
        assert counts(cache) == (0, 3, 5, 1, 1)
        assert len(cache) == 0
        assert error.__context__ is None
        assert await cache.get_or_load_many(["a"], ManyLoader()) == {"a": "a"}

    with_cache(main, clock)


def test_a_failure_holds_no_frames_of_other_callers_and_does_not_grow(
    clock: VirtualClock,
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        error = ValueError("no")
        load = ManyLoader(error=error)

        async def caller() -> list[str]:
            try:
                await cache.get_or_load_many(["a", "b"], load)
            except ValueError:
                names = []
                step = error.__traceback__
                while step is not None:
                    names.append(step.tb_frame.f_code.co_name)
                    step = step.tb_next
                return names
            return []

        lists = await asyncio.gather(*(caller() for _ in range(5)))
        for names in lists:
            assert names == lists[0]
            assert names.count("caller") == names.count("__call__") == 1

    with_cache(main, clock)


def test_no_frame_outlives_the_handlers(clock: VirtualClock) -> None:
    class Large:
        pass

    held: list[weakref.ref[Large]] = []
    flights: list[weakref.ref[Flight]] = []

    async def main() -> None:
        cache = AsyncSafeCache(clock=clock)

        async def fails(absent: list[str]) -> dict[str, str]:
            large = Large()
            held.append(weakref.ref(large))
            await asyncio.sleep(1)
            raise ValueError(absent)

        async def gives(absent: list[str]) -> dict[str, Large]:
            flights.extend(map(weakref.ref, cache._engine.flights.running))
            await asyncio.sleep(1)
            large = Large()
            held.append(weakref.ref(large))
            return dict.fromkeys(absent, large)

        async def caller(load: Any) -> None:
            try:
                await cache.get_or_load_many(["a", "b"], load)
            except ValueError:
                pass

        await asyncio.gather(*(caller(fails) for _ in range(3)))
        await settle()
        assert held.pop()() is None
        await asyncio.gather(*(caller(gives) for _ in range(3)))
        await cache.clear()
        await settle()
        assert held.pop()() is None, "a cycle keeps a value alive"
        assert [each() for each in flights] == [None] * 2, "a cycle keeps a flight alive"

    gc.collect()
    gc.disable()
    try:
        run_virtual(main(), clock)
    finally:
        gc.enable()


def test_the_first_failing_flight_in_time_is_raised_and_the_others_are_left(
    clock: VirtualClock,
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        late = single(cache, "a", Loader(KeyError("late"), seconds=9))
        soon = single(cache, "b", Loader(ValueError("soon"), seconds=3))
        kept = single(cache, "c", Loader("value", seconds=9))
        await settle()
        load = ManyLoader(seconds=60)
        with pytest.raises(ValueError, match="soon"):
            await cache.get_or_load_many(["a", "d", "b", "c"], load)
        assert clock.now == 1003
        await settle()
        assert load.cancelled == 1, "nobody else waits for it"
        assert await kept == "value"
        await asyncio.gather(late, soon, return_exceptions=True)

    with_cache(main, clock)


def test_an_own_load_that_others_need_goes_on_when_a_joined_one_fails(
    clock: VirtualClock,
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        soon = single(cache, "b", Loader(ValueError("soon"), seconds=3))
        await settle()
        load = ManyLoader(seconds=60)
        many = bulk(cache, ["a", "b", "d"], load)
        await settle()
        one = single(cache, "d", Loader("own"))
        with pytest.raises(ValueError, match="soon"):
            await many
        assert await one == "d"
        assert await cache.get("a") == "a"
        await asyncio.gather(soon, return_exceptions=True)

    with_cache(main, clock)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), StopIteration()])
def test_a_load_that_stops_itself_stops_nobody(error: BaseException, clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        def load(absent: list[str]) -> dict[str, str]:
            raise error

        many = bulk(cache, ["a", "b"], load)
        one = single(cache, "b", Loader())
        expected = LoadCancelledError if isinstance(error, asyncio.CancelledError) else RuntimeError
        for task in (many, one):
            with pytest.raises(expected) as caught:
                await task
            assert caught.value.__cause__ is error
        assert counts(cache)[3:] == (1, 1)

    with_cache(main, clock)


def test_an_interrupt_ends_the_program_and_leaves_the_cache_clean(clock: VirtualClock) -> None:
    cache = AsyncSafeCache(clock=clock)

    async def main() -> None:
        def load(absent: list[str]) -> dict[str, str]:
            raise KeyboardInterrupt

        one = single(cache, "b", Loader())
        await cache.get_or_load_many(["a", "b"], load)
        await one

    with pytest.raises(KeyboardInterrupt):
        run_virtual(main(), clock)
    assert not cache._engine.flights.running
    with_cache(lambda _: _loads_again(cache), clock)


async def _loads_again(cache: AsyncSafeCache) -> None:
    assert await cache.get_or_load_many(["a"], ManyLoader()) == {"a": "a"}


def test_a_failure_is_remembered_at_each_key(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(error=KeyError("nobody"))
        asked = cache.get_or_load_many(["a", "b"], load, negative={KeyError: 10})
        with pytest.raises(KeyError):
            await asked
        for key in "ab":
            with pytest.raises(KeyError, match="nobody"):
                await cache.get_or_load(key, Loader())
        before = counts(cache)
        other = ManyLoader()
        with pytest.raises(KeyError, match="nobody"):
            await cache.get_or_load_many(["c", "a"], other)
        assert other.asked == [], "what fails anyhow loads nothing"
        assert counts(cache) == (before[0] + 1, *before[1:])
        await asyncio.sleep(10)
        assert await cache.get_or_load_many(["c", "a"], other) == {"c": "c", "a": "a"}

    with_cache(main, clock)


def test_a_value_for_one_use_fails_its_key_only(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(lambda key: iter(()) if key == "b" else key)
        many = bulk(cache, ["a", "b", "c"], load)
        await settle()
        ones = [single(cache, key, Loader()) for key in "abc"]
        with pytest.raises(TypeError, match="can be used only once"):
            await many
        got = await asyncio.gather(*ones, return_exceptions=True)
        assert (got[0], type(got[1]), got[2]) == ("a", TypeError, "c")
        assert await cache.get_many("abc") == {"a": "a", "c": "c"}
        assert counts(cache)[3:] == (1, 1), "one load, and it failed in part"

    with_cache(main, clock)


def test_a_value_whose_weigher_fails_fails_its_key_only(clock: VirtualClock) -> None:
    def weigh(value: object) -> int:
        if value == "b":
            raise ArithmeticError("no weight")
        return 1

    async def main(cache: AsyncSafeCache) -> None:
        with pytest.raises(ArithmeticError):
            await cache.get_or_load_many("abc", ManyLoader())
        assert await cache.get_many("abc") == {"a": "a", "c": "c"}
        assert (await cache.lookup("b")).reason is MissReason.REJECTED
        assert counts(cache)[3:] == (1, 1)

    with_cache(main, clock, weigher=weigh)


def test_an_interrupt_in_a_weigher_strands_nobody(clock: VirtualClock) -> None:
    def weigh(value: object) -> int:
        if value == "b":
            raise KeyboardInterrupt
        return 1

    cache = AsyncSafeCache(clock=clock, weigher=weigh)
    with pytest.raises(KeyboardInterrupt):
        run_virtual(cache.get_or_load_many("abc", ManyLoader()), clock)
    assert not cache._engine.flights.running
    assert not cache._engine.journals


def test_an_end_that_is_stopped_strands_nobody(clock: VirtualClock) -> None:
    def weigh(value: object) -> int:
        if value == "b":
            raise asyncio.CancelledError
        return 1

    async def main(cache: AsyncSafeCache) -> None:
        many = bulk(cache, "abc", ManyLoader())
        await settle()
        one = single(cache, "b", Loader("own"))
        with pytest.raises(LoadCancelledError):
            await many
        assert await one == "own", "it loads for itself"

    with_cache(main, clock, weigher=weigh)


def test_a_bug_at_the_end_is_told_to_all(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        def put(*_: object) -> bool:
            raise RuntimeError("a bug")

        monkeypatch.setattr(cache._engine.store, "put", put)
        tasks = [bulk(cache, "abc", ManyLoader()), single(cache, "b", Loader())]
        for task in tasks:
            with pytest.raises(RuntimeError, match="a bug"):
                await task
        assert counts(cache)[3:] == (1, 1)

    with_cache(main, clock)


def test_a_load_whose_task_is_cancelled_before_it_begins_tells_its_callers(
    clock: VirtualClock,
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def cancel() -> None:
            for task in asyncio.all_tasks():
                if task.get_name().startswith("load of keys"):
                    task.cancel()

        load = ManyLoader()
        many = bulk(cache, "ab", load)
        await asyncio.create_task(cancel())
        with pytest.raises(LoadCancelledError):
            await many
        assert load.asked == []

    with_cache(main, clock)


def test_a_load_that_the_collector_closes_is_ended_by_the_next_write(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        many = bulk(cache, "ab", ManyLoader(), store_extras=True)
        await settle()
        (task,) = (each for each in asyncio.all_tasks() if each.get_name().startswith("load of"))
        closing: Any = task.get_coro()
        closing.close()
        await cache.set("other", 1)
        with pytest.raises(LoadCancelledError):
            await many
        assert not cache._engine.journals
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with_cache(main, clock)


def test_a_caller_that_the_collector_closes_leaves_at_the_next_write(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(seconds=50)
        caller: Any = cache.get_or_load_many("ab", load)
        caller.send(None)
        await settle()
        caller.close()
        assert load.cancelled == 0
        await cache.set("other", 1)
        await settle()
        assert load.cancelled == 1

    with_cache(main, clock)


def test_a_cache_that_closes_while_the_task_is_made_ends_the_load(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        def make(loop: Any, coroutine: Any, **options: Any) -> Any:
            cache._closing.shut(drain=False)
            cache._closing.finish()
            return asyncio.Task(coroutine, loop=loop, **options)

        load = ManyLoader()
        many = bulk(cache, "ab", load)
        asyncio.get_running_loop().set_task_factory(make)
        with pytest.raises(CacheClosedError):
            await many
        await settle()
        assert load.asked == []

    with_cache(main, clock)


def test_a_task_that_cannot_be_made_fails_for_all_who_wait(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        def make(loop: Any, coroutine: Any, **options: Any) -> Any:
            raise MemoryError("no task")

        many = bulk(cache, "ab", ManyLoader())
        loop = asyncio.get_running_loop()
        loop.set_task_factory(make)
        with pytest.raises(MemoryError, match="no task"):
            await many
        loop.set_task_factory(None)
        assert await cache.get_or_load_many("ab", ManyLoader()) == {"a": "a", "b": "b"}

    with_cache(main, clock)


def test_values_that_do_not_fit_are_given_and_not_stored(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        for _ in range(2):
            assert await cache.get_or_load_many("ab", ManyLoader()) == {"a": "a", "b": "b"}
        assert len(cache) == 0
        assert cache.stats().loads == 2

    with_cache(main, clock, max_entries=0)


def test_a_clock_that_fails_at_the_end_strands_nobody(clock: VirtualClock) -> None:
    broken = False

    def time() -> float:
        if broken:
            raise OSError("no clock")
        return clock.now

    async def main() -> None:
        nonlocal broken
        cache = AsyncSafeCache(clock=time)
        many = bulk(cache, "ab", ManyLoader())
        await settle()
        broken = True
        assert await many == {"a": "a", "b": "b"}
        broken = False
        assert len(cache) == 0

    run_virtual(main(), clock)


# -- fences


@pytest.mark.parametrize(
    "write",
    [
        lambda cache: cache.delete("b"),
        lambda cache: cache.expire("b"),
        lambda cache: cache.set("b", "newer"),
    ],
)
def test_an_invalidated_key_answers_and_is_not_stored_and_the_others_are(
    write: Callable[[AsyncSafeCache], Awaitable[Any]], clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        many = bulk(cache, "abc", ManyLoader(seconds=5))
        await settle()
        one = single(cache, "b", Loader("own"))
        await settle()
        await write(cache)
        newer = await cache.get("b")
        after = single(cache, "b", Loader("after"))
        assert await after == (newer or "after")
        assert await many == {"a": "a", "b": "b", "c": "c"}
        assert await one == "b", "who waited before has its answer"
        assert await cache.get_many("abc") == {"a": "a", "b": newer or "after", "c": "c"}

    with_cache(main, clock)


def test_a_clear_keeps_all_of_it_out(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        many = bulk(cache, "abc", ManyLoader(seconds=5))
        await settle()
        await cache.clear()
        assert await many == {"a": "a", "b": "b", "c": "c"}
        assert len(cache) == 0

    with_cache(main, clock)


# -- cancellation


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("seconds", [0, 1])
def test_cancelled_at_every_await_it_leaves_nothing(
    step: int, seconds: float, clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(seconds=seconds)
        flying = single(cache, "c", Loader("c", seconds=0.5 * seconds))
        await settle()
        many = bulk(cache, "abc", load)
        await settle(step)
        many.cancel()
        got = (await asyncio.gather(many, return_exceptions=True))[0]
        assert isinstance(got, asyncio.CancelledError) or (not seconds and len(got) == 3)
        assert await flying == "c"
        await settle()
        assert len(load.asked) == load.cancelled or not seconds
        assert await cache.get_or_load_many("abc", ManyLoader()) == {"a": "a", "b": "b", "c": "c"}

    with_cache(main, clock)


@pytest.mark.parametrize("step", range(6))
def test_single_callers_keep_their_values_when_the_caller_of_many_leaves(
    step: int, clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader()
        many = bulk(cache, "abc", load)
        ones = [single(cache, "b", Loader("own")) for _ in range(2)]
        await settle(step)
        many.cancel()
        got = await asyncio.gather(*ones)
        assert got == (["own"] * 2 if not load.asked and step == 0 else ["b"] * 2)
        if load.asked:
            assert await cache.get_many("abc") == {"a": "a", "b": "b", "c": "c"}
            assert load.cancelled == 0
        await asyncio.gather(many, return_exceptions=True)

    with_cache(main, clock)


def test_a_key_whose_waiter_left_may_be_joined_while_others_are_needed(
    clock: VirtualClock,
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(seconds=5)
        many = bulk(cache, "abc", load)
        await settle()
        one = single(cache, "b", Loader("own"))
        await settle()
        many.cancel()
        await settle()
        late = single(cache, "a", Loader("own"))
        again = bulk(cache, "ca", ManyLoader())
        await settle()
        one.cancel()
        assert await late == "a"
        assert await again == {"c": "c", "a": "a"}
        assert (len(load.asked), load.cancelled) == (1, 0)
        await asyncio.gather(many, one, return_exceptions=True)

    with_cache(main, clock)


def test_the_last_waiter_of_all_keys_takes_the_load_along(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(seconds=50)
        many = bulk(cache, "abc", load)
        await settle()
        ones = [single(cache, key, Loader("own")) for key in "cba"]
        await settle()
        many.cancel()
        for one in ones:
            await settle()
            assert load.cancelled == 0
            one.cancel()
        await settle()
        assert load.cancelled == 1
        assert counts(cache)[3:] == (0, 0), "a load that was only stopped is none"
        await asyncio.gather(many, *ones, return_exceptions=True)

    with_cache(main, clock)


def test_a_load_that_may_finish_ends_and_stores_what_nobody_waits_for(
    clock: VirtualClock,
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(seconds=5)
        many = bulk(cache, "ab", load, on_abandon="finish")
        await settle()
        many.cancel()
        await asyncio.sleep(6)
        assert await cache.get_many("ab") == {"a": "a", "b": "b"}
        doomed = ManyLoader(seconds=5)
        many = bulk(cache, "cd", doomed, on_abandon="finish")
        await settle()
        many.cancel()
        await settle()
        await cache.delete("c")
        await settle()
        assert doomed.cancelled == 0, "the other key will be stored"
        await cache.delete("d")
        await settle()
        assert doomed.cancelled == 1

    with_cache(main, clock)


def test_a_fence_on_the_only_key_still_waited_for_changes_nothing_for_its_waiter(
    clock: VirtualClock,
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(seconds=5)
        many = bulk(cache, "ab", load)
        await settle()
        one = single(cache, "a", Loader("own"))
        await settle()
        many.cancel()
        await settle()
        await cache.delete("a", "b")
        assert await one == "a"
        assert len(cache) == 0
        await asyncio.gather(many, return_exceptions=True)

    with_cache(main, clock)


@pytest.mark.parametrize("many", [False, True])
def test_newcomers_wait_for_the_clean_up_of_an_abandoned_load(
    many: bool, clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(seconds=50, cleans_for=2)
        left = bulk(cache, "ab", load)
        await settle()
        left.cancel()
        await settle()
        if many:
            fresh = ManyLoader(seconds=0)
            assert await cache.get_or_load_many("cba", fresh) == {"c": "c", "b": "b", "a": "a"}
            assert fresh.asked == [["c"], ["b", "a"]]
            loop: Any = asyncio.get_running_loop()
            assert [each for each in loop._scheduled if not each.cancelled()] == []
        else:
            assert await cache.get_or_load("b", Loader("own")) == "own"
        assert clock.now == 1002
        assert cache.stats().overlapping_loads == 0

    with_cache(main, clock)


def test_a_key_that_was_waited_out_is_counted_once(clock: VirtualClock) -> None:
    """A miss when it was first looked at; that it hits in the second round is no other call."""

    async def main(cache: AsyncSafeCache) -> None:
        left = bulk(cache, "ab", ManyLoader(seconds=50, cleans_for=2))
        await settle()
        left.cancel()
        await settle()
        before = counts(cache)
        many = bulk(cache, "ac", ManyLoader(seconds=5))
        one = single(cache, "a", Loader("own"))
        assert await many == {"a": "own", "c": "c"}
        assert await one == "own"
        assert counts(cache) == (0, before[1] + 3, 0, 2, 0)
        assert clock.now == 1005

    with_cache(main, clock)


def test_a_clean_up_too_slow_is_overtaken_by_one_load(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(seconds=50, cleans_for=20)
        left = bulk(cache, "abc", load)
        await settle()
        left.cancel()
        await settle()
        fresh = ManyLoader(seconds=0)
        got = await cache.get_or_load_many("cba", fresh, cancel_grace=3)
        assert got == {"c": "c", "b": "b", "a": "a"}
        assert clock.now == 1003
        assert fresh.asked == [["c", "b", "a"]]
        assert cache.stats().overlapping_loads == 1
        assert len(caplog.records) == 1
        await asyncio.sleep(30)
        assert await cache.get("a") == "a"

    with_cache(main, clock)


def test_a_caller_that_waits_for_a_clean_up_may_leave(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        left = bulk(cache, "ab", ManyLoader(seconds=50, cleans_for=2))
        await settle()
        left.cancel()
        await settle()
        second = bulk(cache, "ab", ManyLoader())
        await settle()
        second.cancel()
        await asyncio.gather(left, second, return_exceptions=True)
        assert clock.now == 1000
        await asyncio.sleep(3)

    with_cache(main, clock)


def test_leaving_ten_thousand_keys_costs_what_they_are(clock: VirtualClock) -> None:
    """Whether the load is needed is asked for each key, and looked for once around."""
    looks = 0

    class Watched(dict[Any, Any]):
        def __bool__(self) -> bool:
            nonlocal looks
            looks += 1
            return len(self) > 0

    group = Group()
    flights = [Flight((None, number), "f", None) for number in range(1_000)]
    for flight in flights:
        flight.waiters = Watched({object(): None})
        group.add(flight)
    for flight in flights:
        assert group.needed()
        flight.waiters.clear()
    assert group.abandoned()
    assert not group.abandoned(), "once"
    assert looks < 5_000


async def test_a_caller_of_many_that_is_collected_leaves_nothing() -> None:
    cache = AsyncSafeCache()
    loop = asyncio.new_event_loop()
    task = loop.create_task(cache.get_or_load_many("ab", ManyLoader(seconds=60)))
    await asyncio.to_thread(loop.run_until_complete, asyncio.sleep(0.01))
    for each in asyncio.all_tasks(loop):
        each._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    del task, each
    gc.collect()
    assert await cache.get_or_load_many("ab", ManyLoader(seconds=0)) == {"a": "a", "b": "b"}
    assert not cache._engine.flights.running


# -- recursion


@pytest.mark.parametrize("key", ["a", "b", "c"])
@pytest.mark.parametrize("many", [False, True])
def test_a_load_that_awaits_any_of_its_own_keys_is_told_so(
    key: str, many: bool, clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def load(absent: list[str]) -> dict[str, str]:
            async def inner() -> Any:
                if many:
                    return await cache.get_or_load_many(["x", key], ManyLoader())
                return await cache.get_or_load(key, Loader())

            await asyncio.create_task(inner())
            return {}

        with pytest.raises(RecursiveLoadError):
            await cache.get_or_load_many("abc", load)
        assert counts(cache)[:3] == (0, 3, 0), "what was refused opened nothing"

    with_cache(main, clock)


@pytest.mark.parametrize("alone", [False, True])
def test_a_circle_through_any_keys_of_two_loads_is_told_so(
    alone: bool, clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def first(absent: list[str]) -> dict[str, str]:
            await asyncio.sleep(1)
            if alone:
                return {key: await cache.get_or_load("d", Loader("d")) for key in absent}
            return dict.fromkeys(absent, await cache.get_or_load_many("xd", ManyLoader()))

        async def second(absent: list[str]) -> dict[str, str]:
            await asyncio.sleep(2)
            return await cache.get_or_load_many("by", ManyLoader())

        async def third() -> str:
            await asyncio.sleep(3)
            return await cache.get_or_load("b", Loader("b"))

        one, two = bulk(cache, "ab", first), bulk(cache, "cd", second)
        got = await asyncio.gather(one, two, return_exceptions=True)
        assert [type(each) for each in got] == [RecursiveLoadError] * 2
        one, three = bulk(cache, "ab", first), single(cache, "d", third)
        got = await asyncio.gather(one, three, return_exceptions=True)
        assert [type(each) for each in got] == [RecursiveLoadError] * 2

    with_cache(main, clock)


def test_loads_that_need_keys_of_each_other_without_a_circle_go_on(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def load(absent: list[int]) -> dict[int, int]:
            below = [key // 2 for key in absent if key > 1]
            got = await cache.get_or_load_many(dict.fromkeys(below), load) if below else {}
            return {key: 1 + got.get(key // 2, 0) for key in absent}

        got = await cache.get_or_load_many(range(64, 128), load)
        assert got == dict.fromkeys(range(64, 128), 7)

    with_cache(main, clock)


def test_a_load_is_known_to_wait_only_for_what_it_waits_for_now(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def load(absent: list[str]) -> dict[str, str]:
            flight = current_flight.get()
            assert flight is not None
            await cache.get_or_load_many("xy", ManyLoader())
            assert not flight.waits_on
            with pytest.raises(ValueError, match="no"):
                await cache.get_or_load_many("z", ManyLoader(error=ValueError("no")))
            assert not flight.waits_on
            return {}

        await cache.get_or_load_many("ab", load)

    with_cache(main, clock)


def test_a_load_that_has_ended_is_no_part_of_a_circle(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        late: list[asyncio.Task[Any]] = []

        async def load(absent: list[str]) -> dict[str, str]:
            async def later() -> Any:
                await asyncio.sleep(5)
                return await cache.get_or_load_many("ab", ManyLoader())

            late.append(asyncio.create_task(later()))
            return {}

        assert await cache.get_or_load_many("ab", load) == {}
        assert await late[0] == {"a": "a", "b": "b"}

    with_cache(main, clock)


# -- the life of caches and loops


@pytest.mark.parametrize("on_abandon", ["cancel", "finish"])
def test_closing_answers_all_and_ends_the_load(on_abandon: str, clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(seconds=50, extras={"x": "x"})
        many = bulk(cache, "ab", load, store_extras=True, on_abandon=on_abandon)
        one = single(cache, "b", Loader())
        await settle()
        await cache.aclose()
        for task in (many, one):
            with pytest.raises(CacheClosedError):
                await task
        assert load.cancelled == 1
        with pytest.raises(CacheClosedError):
            await cache.get_or_load_many("a", load)
        await cache.start()
        assert len(cache) == 0
        await cache.aclose()

    with_cache(main, clock)


def test_a_load_that_will_not_be_cancelled_stores_nothing_after_the_close(
    clock: VirtualClock,
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        async def load(absent: list[str]) -> dict[str, str]:
            try:
                await asyncio.sleep(50)
            except asyncio.CancelledError:
                await asyncio.sleep(20)
            return dict.fromkeys([*absent, "x"], "old")

        many = bulk(cache, "ab", load, store_extras=True)
        await settle()
        await cache.aclose(timeout=1)
        await cache.start()
        await asyncio.sleep(30)
        assert len(cache) == 0
        await asyncio.gather(many, return_exceptions=True)
        await cache.aclose()

    with_cache(main, clock)


def test_draining_lets_it_end(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        many = bulk(cache, "ab", ManyLoader(seconds=2))
        await settle()
        await cache.aclose(drain=True)
        assert await many == {"a": "a", "b": "b"}

    with_cache(main, clock)


def test_the_end_of_one_function_ends_only_its_keys(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        @race_safe_cached(cache, "f")
        async def f(number: int) -> str:
            return "own"

        load = ManyLoader(lambda _: "of many", seconds=5)
        mine = cache.key_for(f, 1)
        many = bulk(cache, [mine, "a"], load)
        await settle()
        one = single(cache, "a", Loader())
        await settle()
        closing: Any = f
        await closing.cache_close()
        with pytest.raises(CacheClosedError):
            await many
        assert await one == "of many", "the load of the other key goes on"
        with pytest.raises(CacheClosedError):
            await cache.get_or_load_many(["b", mine], load)
        assert len(load.asked) == 1

    with_cache(main, clock)


def test_when_the_last_function_that_anybody_waits_for_ends_so_does_the_load(
    clock: VirtualClock,
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        @race_safe_cached(cache, "f")
        async def f(number: int) -> str:
            return "own"

        load = ManyLoader(seconds=5)
        many = bulk(cache, [cache.key_for(f, 1), "a"], load)
        await settle()
        one = asyncio.create_task(f(1))
        await settle()
        many.cancel()
        await settle()
        closing: Any = f
        await closing.cache_close()
        with pytest.raises(CacheClosedError):
            await one
        await settle()
        assert load.cancelled == 1
        await asyncio.gather(many, return_exceptions=True)
        await cache.get_or_load_many(
            ["b"], ManyLoader(extras={cache.key_for(f, 1): "extra"}), store_extras=True
        )
        assert len(cache) == 1, "nothing is stored for a function that has ended"

    with_cache(main, clock)


def test_a_load_that_may_finish_ends_with_the_function_it_is_for(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        @race_safe_cached(cache, "f")
        async def f(number: int) -> str:
            return "own"

        load = ManyLoader(seconds=5)
        keys = [cache.key_for(f, number) for number in range(3)]
        many = bulk(cache, keys, load, on_abandon="finish")
        await settle()
        many.cancel()
        await settle()
        closing: Any = f
        await closing.cache_close()
        await settle()
        assert load.cancelled == 1
        await asyncio.gather(many, return_exceptions=True)

    with_cache(main, clock)


def test_while_caching_is_off_it_loads_alone_and_stores_nothing(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(extras={"x": "x"})
        with bypass(cache._engine):
            both = [bulk(cache, "ab", load, store_extras=True) for _ in range(2)]
            assert await asyncio.gather(*both) == [{"a": "a", "b": "b"}] * 2

            async def own(absent: list[str]) -> dict[str, str]:
                return await cache.get_or_load_many(absent[1:], own) if absent else {}

            with pytest.raises(RecursiveLoadError):
                await cache.get_or_load_many("ab", own)
        assert load.asked == [["a", "b"]] * 2
        assert len(cache) == 0

    with_cache(main, clock)


@pytest.fixture
def other(clock: VirtualClock) -> Iterator[VirtualLoop]:
    """Return a loop that runs when it is told to."""
    loop = VirtualLoop(clock)
    yield loop
    if not loop.is_closed():
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(settle())
        loop.close()


@pytest.mark.parametrize("closed", [False, True])
def test_who_waits_elsewhere_takes_over_from_a_dead_loop(
    closed: bool, clock: VirtualClock, other: VirtualLoop
) -> None:
    cache = AsyncSafeCache(clock=clock)
    theirs = other.create_task(cache.get_or_load_many("abc", ManyLoader(seconds=9)))
    other.run_until_complete(settle())

    async def main() -> None:
        if closed:
            for task in asyncio.all_tasks(other):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            other.close()
        load = ManyLoader(lambda key: f"taken over {key}")
        got = await cache.get_or_load_many("cad", load)
        assert got == {"c": "taken over c", "a": "taken over a", "d": "taken over d"}
        assert load.asked == ([["c", "a", "d"]] if closed else [["d"], ["c", "a"]])
        assert clock.now == (1001 if closed else 1002 + 0)
        assert not cache._engine.guards._guards

    run_virtual(main(), clock)
    del theirs


def test_a_loop_that_dies_while_it_is_looked_at_leads_nobody_astray(
    clock: VirtualClock, other: VirtualLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = AsyncSafeCache(clock=clock)
    theirs = other.create_task(cache.get_or_load_many("ab", ManyLoader(seconds=9)))
    other.run_until_complete(settle())
    look = Bulk._look

    def looked(*args: Any) -> Any:
        found = look(*args)
        with cache._engine.store.lock:
            assert len(cache._engine.flights.bury(other)[1]) <= 1, "one task, whatever the keys"
        return found

    monkeypatch.setattr(Bulk, "_look", looked)

    async def main() -> None:
        assert await cache.get_or_load_many("ba", ManyLoader()) == {"b": "b", "a": "a"}
        assert clock.now == 1001, "nobody waited for the clean-up of the dead"

    run_virtual(main(), clock)
    theirs.cancel()


def test_waiting_for_many_flights_of_one_loop_takes_one_look(
    clock: VirtualClock, other: VirtualLoop
) -> None:
    cache = AsyncSafeCache(clock=clock)
    theirs = other.create_task(cache.get_or_load_many(range(100), ManyLoader(seconds=9)))
    other.run_until_complete(settle())

    async def main() -> None:
        many = bulk(cache, range(100), ManyLoader())
        await settle()
        assert len(cache._engine.guards._guards) == 1
        many.cancel()
        await asyncio.gather(many, return_exceptions=True)
        assert not cache._engine.guards._guards

    run_virtual(main(), clock)
    assert _dead_loops.LOOK == 1.0
    theirs.cancel()


def test_it_works_where_tasks_begin_at_once(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        factory = getattr(asyncio, "eager_task_factory", None)
        if factory is None:
            pytest.skip("eager tasks came with 3.12")
        asyncio.get_running_loop().set_task_factory(factory)

        def load(absent: list[str]) -> dict[str, int]:
            running = cache._engine.flights.running
            assert {flight.task for flight in running} == {asyncio.current_task()}
            return dict.fromkeys(absent, 1)

        got = await cache.get_or_load_many("ab", load)
        assert got == {"a": 1, "b": 1}
        error = ValueError("no")
        with pytest.raises(ValueError, match="no"):
            await cache.get_or_load_many("cd", ManyLoader(seconds=0, error=error))

    with_cache(main, clock)


# -- what nobody asked for


def test_what_nobody_asked_for_is_stored_if_one_wants_it(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        extras = {"x": "extra", "y": iter(()), object(): "no key", "kept": "extra"}
        load = ManyLoader(extras=extras)
        await cache.set("kept", "older")
        got = await cache.get_or_load_many(["a"], load, store_extras=True, ttl=10)
        assert got == {"a": "a"}
        assert await cache.get_many(["a", "x", "y", "kept"]) == {
            "a": "a",
            "x": "extra",
            "kept": "older",
        }
        assert (await cache.lookup("x")).ttl_left == 10
        assert not cache._engine.journals

    with_cache(main, clock)


@pytest.mark.parametrize(
    "write",
    [
        lambda cache: cache.delete("x"),
        lambda cache: cache.expire("x"),
        lambda cache: cache.clear(),
    ],
)
def test_an_extra_is_not_stored_where_something_happened_meanwhile(
    write: Callable[[AsyncSafeCache], Awaitable[Any]], clock: VirtualClock
) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(extras={"x": "old", "y": "y"})
        many = bulk(cache, ["a"], load, store_extras=True)
        await settle()
        await write(cache)
        await many
        assert await cache.get("x") is None
        many = bulk(cache, ["b"], load, store_extras=True)
        await settle()
        await cache.set("x", "gone")
        await cache.delete("x")
        await many
        assert await cache.get_many("xy") == {"y": "y"}

    with_cache(main, clock)


def test_an_extra_is_not_stored_beside_a_flight(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        flying = single(cache, "x", Loader("newer", seconds=5))
        await cache.get_or_load_many(["a"], ManyLoader(extras={"x": "old"}), store_extras=True)
        assert await cache.get("x") is None
        assert await flying == await cache.get("x") == "newer"

    with_cache(main, clock)


def test_extras_leave_first_when_there_is_no_room(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        load = ManyLoader(extras={"x": "x", "y": "y"})
        await cache.get_or_load_many("ab", load, store_extras=True)
        assert await cache.get_many("abxy") == {"a": "a", "b": "b"}

    with_cache(main, clock, max_entries=2)


def test_a_function_that_is_cleared_notes_it_for_its_calls(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        @race_safe_cached(cache, "f")
        async def f(number: int) -> str:
            return "own"

        key = cache.key_for(f, 1)
        load = ManyLoader(extras={key: "old"})
        many = bulk(cache, "a", load, store_extras=True)
        await settle()
        clearing: Any = f
        clearing.cache_clear()
        await many
        assert await f(1) == "own"

    with_cache(main, clock)


def test_a_journal_past_its_bound_knows_only_anything() -> None:
    journal = Journal()
    for number in range(MOST):
        journal.note(number)
        journal.note(0)
    assert journal.changed(5)
    assert not journal.changed("other")
    journal.note("one more")
    assert journal.changed("other")
    assert not journal._places
    journal.note("again")
    assert not journal._places


# -- when it is over


def test_each_key_is_one_call_and_waits_are_measured(clock: VirtualClock) -> None:
    async def main(cache: AsyncSafeCache) -> None:
        await cache.set("hit", 1)
        flying = single(cache, "j", Loader("j", seconds=1))
        await settle()
        await cache.get_or_load_many(["hit", "j", "a", "b", "a"], ManyLoader(seconds=2))
        await flying
        assert counts(cache) == (1, 3, 1, 2, 0)
        assert cache.stats().calls == 5
        assert cache.stats().misses_by_reason["ABSENT"] == 3
        assert cache.health()["cache_stats"]["in_flight"] == 0
        for number in range(4):
            keys = range(300 * number, 300 * number + 300)
            await cache.get_or_load_many(keys, ManyLoader(seconds=2))
            assert cache._engine.recent.fresh == [2.0] * 300

    with_cache(main, clock)
