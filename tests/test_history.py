"""The history checker itself: legal histories pass, each kind of illegal one is refused."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from async_safe_cache import AsyncSafeCache, race_safe_cached
from async_safe_cache.testing._history import History, HistoryError
from async_safe_cache.testing._operation import Act, Fresh, Operation, Outcome

from .virtual import at_once


class Told:
    """A history told event by event; every operation is of key "k" unless said otherwise."""

    def __init__(self, **options: bool) -> None:
        self.history = History(**options)

    def asks(self, name: str, act: Act, key: str = "k") -> Operation:
        return self.history.begin(name, act, key)

    def sets(self, key: str = "k") -> Operation:
        return self.history.begin("set", Act.WRITE, key, self.history.fresh(key))

    def loads(self, leader: Operation | None = None, key: str = "k") -> Operation:
        load = self.history.begin("load", Act.LOAD, key, self.history.fresh(key))
        load.leader = leader
        return load

    def set_at_once(self, key: str = "k") -> Operation:
        operation = self.sets(key)
        operation.returned(Outcome.DONE)
        return operation

    def deletes_at_once(self, removed: int | None = None, key: str = "k") -> None:
        self.asks("delete", Act.REMOVE, key).returned(Outcome.DONE, removed)

    def reads_at_once(self, source: Operation | None, key: str = "k") -> None:
        sees(self.asks("get", Act.READ, key), source)

    def calls(self, key: str = "k") -> Operation:
        return self.asks("call", Act.CALL, key)


def sees(read: Operation, source: Operation | None) -> None:
    if source is None:
        read.returned(Outcome.MISS)
    else:
        read.returned(Outcome.VALUE, source.given)


def ends(load: Operation) -> None:
    load.returned(Outcome.VALUE, load.given)


def refused(told: Told, *words: str) -> None:
    with pytest.raises(HistoryError) as caught:
        told.history.check()
    for word in words:
        assert word in str(caught.value), str(caught.value)


# -- one story each


def test_reads_between_two_writes_see_the_first_and_after_both_the_second() -> None:
    told = Told(lossless=True)
    told.reads_at_once(None)
    first = told.set_at_once()
    told.reads_at_once(first)
    second = told.set_at_once()
    told.reads_at_once(second)
    told.deletes_at_once(removed=1)
    told.deletes_at_once(removed=0)
    told.reads_at_once(None)
    told.history.check()


def test_a_read_during_a_write_may_see_the_value_before_it_or_the_one_it_writes() -> None:
    for second_wins in (False, True):
        told = Told(lossless=True)
        first = told.set_at_once()
        second = told.sets()
        told.reads_at_once(second if second_wins else first)
        second.returned(Outcome.DONE)
        told.reads_at_once(second)
        told.history.check()


def test_a_value_seen_after_its_removal_returned_is_refused() -> None:
    told = Told()
    first = told.set_at_once()
    told.deletes_at_once()
    told.reads_at_once(first)
    refused(told, "get [5..6] gave k#1 of set k#1 [1..2]", "delete [3..4] had hidden")


def test_a_value_seen_after_a_newer_write_returned_is_refused() -> None:
    told = Told()
    first = told.set_at_once()
    told.set_at_once()
    told.reads_at_once(first)
    refused(told, "set k#2 [3..4] had hidden")


def test_a_clear_hides_the_values_of_every_key() -> None:
    told = Told()
    told.set_at_once("other")
    first = told.set_at_once()
    told.asks("clear", Act.CLEAR).returned(Outcome.DONE)
    told.reads_at_once(first)
    refused(told, "clear [5..6] had hidden")


def test_a_value_of_another_key_is_refused() -> None:
    told = Told()
    other = told.set_at_once("other")
    told.reads_at_once(other)
    refused(told, "another key's: of set other#1 [1..2]")


def test_a_failure_of_another_keys_load_is_refused() -> None:
    told = Told()
    other = told.calls("other")
    load = told.loads(other, "other")
    load.raised(ValueError("of the other"))
    other.raised(ValueError("of the other"))
    told.calls().raised(ValueError("of the other"))
    refused(told, "another key's")


def test_a_value_from_nowhere_is_refused() -> None:
    told = Told()
    told.set_at_once()
    told.asks("get", Act.READ).returned(Outcome.VALUE, Fresh("k", 99))
    refused(told, "k#99, which nothing of this key gave")


def test_a_value_seen_before_its_write_began_is_refused() -> None:
    told = Told()
    read = told.asks("get", Act.READ)
    read.returned(Outcome.VALUE, Fresh("k", 1))
    told.set_at_once()
    refused(told, "before set k#1 [3..4] began")


def test_a_value_seen_before_its_load_ended_is_refused() -> None:
    told = Told()
    call = told.calls()
    load = told.loads(call)
    sees(call, load)
    ends(load)
    refused(told, "before the end of load")


def test_two_reads_one_after_the_other_must_not_see_new_then_old() -> None:
    told = Told()
    first, second = told.sets(), told.sets()
    told.reads_at_once(second)
    told.reads_at_once(first)
    told.reads_at_once(second)
    first.returned(Outcome.DONE)
    second.returned(Outcome.DONE)
    refused(told, "get [7..8]", "can only hold k#1")


def test_two_concurrent_writes_must_have_one_order_for_all_who_read() -> None:
    told = Told(lossless=True)
    first, second = told.sets(), told.sets()
    one, two = told.asks("get", Act.READ), told.asks("get", Act.READ)
    sees(one, first)
    sees(two, second)
    first.returned(Outcome.DONE)
    second.returned(Outcome.DONE)
    told.reads_at_once(first)
    told.history.check()
    told.reads_at_once(second)
    refused(told, "get [11..12] gave k#2, where the key can only hold k#1")


def test_a_write_that_was_overtaken_must_not_come_back_over_a_newer_one() -> None:
    told = Told()
    slow = told.sets()
    told.reads_at_once(slow)
    told.set_at_once()
    told.reads_at_once(slow)
    slow.returned(Outcome.DONE)
    refused(told, "get [6..7]")


def test_a_miss_that_nothing_explains_is_refused_only_where_nothing_may_vanish() -> None:
    for lossless in (False, True):
        told = Told(lossless=lossless)
        told.set_at_once()
        told.reads_at_once(None)
        if lossless:
            refused(told, "found nothing although the key held k#1")
        else:
            told.history.check()


def test_a_value_that_vanished_must_not_come_back() -> None:
    told = Told(lossless=False)
    first = told.set_at_once()
    told.reads_at_once(None)
    told.reads_at_once(first)
    refused(told, "get [5..6] gave k#1")


def test_a_value_that_a_load_found_missing_must_not_come_back() -> None:
    told = Told(lossless=False)
    first = told.set_at_once()
    caller = told.calls()
    told.loads(caller).raised(ValueError("one"))
    caller.raised(ValueError("one"))
    told.history.check()
    told.reads_at_once(first)
    refused(told, "get [7..8] gave k#1")


def test_callers_during_a_load_join_it_and_later_ones_see_its_value() -> None:
    told = Told(lossless=True)
    leader, joiner = told.calls(), told.calls()
    load = told.loads(leader)
    ends(load)
    sees(joiner, load)
    sees(leader, load)
    told.reads_at_once(load)
    told.history.check()


def test_two_loads_that_could_both_be_joined_are_refused() -> None:
    told = Told()
    one, two = told.calls(), told.calls()
    first = told.loads(one)
    second = told.loads(two)
    ends(first)
    ends(second)
    sees(one, first)
    sees(two, second)
    refused(told, "load k#2", "began while load k#1", "could be joined")


def test_an_overlap_that_the_cache_counted_is_legal_and_one_more_is_not() -> None:
    told = Told()
    loads = []
    for _ in range(3):
        leader = told.calls()
        loads.append(told.loads(leader))
        leader.returned(Outcome.CANCELLED)
    for load in loads:
        load.returned(Outcome.CANCELLED)
    told.history.check(overlapping=2)
    with pytest.raises(HistoryError):
        told.history.check(overlapping=1)


@pytest.mark.parametrize("fence", ["delete", "set"])
def test_a_fence_lets_a_second_load_begin_beside_the_first(fence: str) -> None:
    told = Told(lossless=True)
    leader = told.calls()
    first = told.loads(leader)
    if fence == "delete":
        told.deletes_at_once(removed=0)
    else:
        told.set_at_once()
        told.deletes_at_once(removed=1)
    newcomer = told.calls()
    second = told.loads(newcomer)
    ends(second)
    sees(newcomer, second)
    told.reads_at_once(second)
    ends(first)
    sees(leader, first)
    told.reads_at_once(second)
    told.history.check()


def test_who_waited_when_the_fence_came_gets_the_old_value_and_no_newcomer_does() -> None:
    for newcomer_joins in (False, True):
        told = Told()
        leader = told.calls()
        load = told.loads(leader)
        told.deletes_at_once()
        newcomer = told.calls()
        ends(load)
        sees(leader, load)
        if newcomer_joins:
            sees(newcomer, load)
            refused(told, "delete [3..4] had hidden")
        else:
            newcomer.raised(RuntimeError("refused at the door"))
            told.history.check()


def test_a_fenced_value_that_is_stored_is_refused() -> None:
    told = Told()
    leader = told.calls()
    load = told.loads(leader)
    told.deletes_at_once()
    ends(load)
    sees(leader, load)
    told.reads_at_once(load)
    refused(told, "get [7..8] gave k#1 of load k#1", "delete [3..4] had hidden")


def test_nobody_joins_a_refresh_that_a_removal_shut_out() -> None:
    for newcomer_joins in (False, True):
        told = Told(lossless=True)
        told.set_at_once()
        refresh = told.asks("refresh", Act.REFRESH)
        load = told.loads(refresh)
        told.deletes_at_once(removed=1)
        newcomer = told.calls()
        second = load if newcomer_joins else told.loads(newcomer)
        ends(load)
        if newcomer_joins:
            sees(newcomer, load)
            refused(told, "call [7..9] gave k#2", "delete [5..6] had hidden")
        else:
            ends(second)
            sees(newcomer, second)
            told.reads_at_once(second)
            told.history.check()


def test_a_load_over_a_value_that_is_there_is_refused_where_nothing_may_vanish() -> None:
    told = Told(lossless=True)
    told.set_at_once()
    caller = told.calls()
    load = told.loads(caller)
    ends(load)
    sees(caller, load)
    refused(told, "began although the key held k#1")


def test_a_refresh_loads_over_a_value_that_is_there_and_must_not_give_it() -> None:
    for gives_the_old in (False, True):
        told = Told(lossless=True)
        old = told.set_at_once()
        refresh = told.asks("refresh", Act.REFRESH)
        load = told.loads(refresh)
        told.reads_at_once(old)
        ends(load)
        sees(refresh, old if gives_the_old else load)
        if gives_the_old:
            refused(told, "refresh [3..8] gave k#1, and it could join no load that gives that")
        else:
            told.reads_at_once(load)
            told.history.check()


def test_the_value_of_a_load_is_stored_before_anybody_gets_it() -> None:
    told = Told(lossless=True)
    leader = told.calls()
    load = told.loads(leader)
    ends(load)
    sees(leader, load)
    told.reads_at_once(None)
    refused(told, "found nothing although the key held k#1")


def test_a_load_that_everybody_left_may_be_stored_or_not() -> None:
    for stored in (False, True):
        told = Told(lossless=True)
        leader = told.calls()
        load = told.loads(leader)
        leader.returned(Outcome.CANCELLED)
        ends(load)
        told.reads_at_once(load if stored else None)
        told.history.check()


def test_a_load_that_everybody_left_and_that_was_not_stored_makes_room_for_the_next() -> None:
    told = Told(lossless=True)
    leader = told.calls()
    load = told.loads(leader)
    leader.returned(Outcome.CANCELLED)
    ends(load)
    newcomer = told.calls()
    second = told.loads(newcomer)
    ends(second)
    sees(newcomer, second)
    told.history.check()


@pytest.mark.parametrize("closed", [False, True])
def test_a_load_that_died_with_its_loop_makes_room_for_the_next(closed: bool) -> None:
    told = Told()
    loop = asyncio.new_event_loop()
    load = told.loads(told.calls())
    load.loop = loop
    if closed:
        loop.close()
    newcomer = told.calls()
    second = told.loads(newcomer)
    ends(second)
    sees(newcomer, second)
    if closed:
        told.history.check()
    else:
        refused(told, "began while load k#1 [", "could be joined")
    loop.close()


def test_a_failure_reaches_all_who_joined_and_nobody_later() -> None:
    for later in (False, True):
        told = Told(lossless=True)
        leader, joiner = told.calls(), told.calls()
        load = told.loads(leader)
        load.raised(ValueError("one"))
        leader.raised(ValueError("one"))
        joiner.raised(ValueError("one"))
        told.reads_at_once(None)
        if later:
            told.calls().raised(ValueError("one"))
            refused(told, "call [9..10] raised ValueError('one',), and it could join no load")
        else:
            told.history.check()


def test_a_remembered_failure_may_be_raised_later_where_failures_are_remembered() -> None:
    told = Told(negative=True)
    leader = told.calls()
    load = told.loads(leader)
    load.raised(ValueError("one"))
    leader.raised(ValueError("one"))
    told.calls().raised(ValueError("one"))
    told.history.check()
    told.deletes_at_once()
    told.calls().raised(ValueError("one"))
    refused(told, "call [9..10] raised")


@pytest.mark.parametrize("removed", [0, 1])
def test_a_removal_must_tell_truly_whether_something_was_there(removed: int) -> None:
    told = Told(lossless=True)
    if not removed:
        told.set_at_once()
    told.deletes_at_once(removed)
    refused(told, f"delete [{1 if removed else 3}", f"gave {removed}")


def test_a_write_that_raised_may_have_happened_but_not_later() -> None:
    for happened in (False, True):
        told = Told(lossless=True)
        first = told.set_at_once()
        failed = told.sets()
        failed.raised(RuntimeError("out of memory"))
        told.reads_at_once(failed if happened else first)
        told.reads_at_once(failed if happened else first)
        told.history.check()
        told.reads_at_once(first if happened else failed)
        refused(told, "get [9..10]")


def test_a_write_that_raised_may_be_what_a_concurrent_read_saw_and_a_removal_took() -> None:
    told = Told(lossless=True)
    delete, read = told.asks("delete", Act.REMOVE), told.asks("get", Act.READ)
    failed = told.sets()
    failed.raised(RuntimeError("out of memory"))
    told.reads_at_once(None)
    sees(read, failed)
    delete.returned(Outcome.DONE, 1)
    told.history.check()


def test_equal_values_of_one_key_are_refused_before_anything_is_decided() -> None:
    history = History()
    for _ in range(2):
        history.begin("set", Act.WRITE, "k", 7).returned(Outcome.DONE)
    with pytest.raises(ValueError, match="use History"):
        history.check()


def test_the_table_shows_every_operation_of_the_key_and_marks_the_one_in_question() -> None:
    told = Told()
    first = told.set_at_once()
    told.set_at_once("other")
    told.deletes_at_once(removed=1)
    told.reads_at_once(first)
    with pytest.raises(HistoryError) as caught:
        told.history.check()
    assert str(caught.value).splitlines()[1:] == [
        "   call  return  operation  answer",
        "      1       2  set k#1    done",
        "      5       6  delete     1",
        ">     7       8  get        k#1",
    ]
    assert caught.value.key == "k"
    assert len(caught.value.operations) == 3


# -- against a search without any cleverness


Moment = tuple[float, float, str, Operation]


def moments(operations: list[Operation]) -> list[Moment]:
    found: list[Moment] = []
    for each in operations:
        if each.act is Act.LOAD:
            # Landed before anybody has its value.
            seen = [
                other.end
                for other in operations
                if other.act is not Act.LOAD and other.result == each.given
            ]
            found.append((each.leader.begin if each.leader else -1, each.begin, "begin", each))
            found.append((each.end, min(seen, default=1e9), "land", each))
        else:
            found.append((each.begin, each.end, each.name, each))
    return found


def right(order: tuple[Moment, ...], unstored: frozenset[Operation]) -> bool:
    """Tell whether the plain machine gives every answer of *order*."""
    value: Any = None
    running: Operation | None = None
    low = -1.0
    for begin, end, name, each in order:
        low = max(low, begin)
        if end < low:
            return False
        if name == "set":
            value, running = each.given, None
        elif name == "delete":
            if each.result != int(value is not None):
                return False
            value, running = None, None
        elif name == "begin":
            if running is not None or value is not None:
                return False
            running = each
        elif name == "land":
            if running is each:
                value, running = value if each in unstored else each.given, None
        elif name == "get":
            if value != (each.result if each.outcome is Outcome.VALUE else None):
                return False
        elif value != each.result and (running is None or running.given != each.result):
            return False
    return True


def has_an_order(operations: list[Operation]) -> bool:
    every = moments(operations)
    unseen = [each for _, end, name, each in every if name == "land" and end == 1e9]
    return any(
        right(order, frozenset(unstored))
        for order in itertools.permutations(every)
        for count in range(len(unseen) + 1)
        for unstored in itertools.combinations(unseen, count)
    )


def numbered(events: list[tuple[float, Callable[[int], None]]]) -> None:
    """Number what happened in the order of its times."""
    for number, (_, note) in enumerate(sorted(events, key=lambda event: event[0]), 1):
        note(number)


def began(operation: Operation) -> Callable[[int], None]:
    return lambda number: setattr(operation, "begin", number)


def ended(operation: Operation) -> Callable[[int], None]:
    return lambda number: setattr(operation, "end", number)


def test_it_finds_an_order_exactly_where_trying_every_order_finds_one() -> None:
    chance = random.Random(5)
    verdicts = [0, 0]
    while sum(verdicts) < 400:
        told = Told(lossless=True)
        operations: list[Operation] = []
        events: list[tuple[float, Callable[[int], None]]] = []
        sources: list[Operation] = []
        for _ in range(chance.randint(2, 5)):
            name = chance.choice(["set", "delete", "get", "get", "call"])
            begin = chance.random()
            end = begin + chance.random() * chance.choice([0.1, 0.5])
            if name == "set":
                operation = told.set_at_once()
                sources.append(operation)
            elif name == "call":
                operation = told.calls()
                if chance.random() < 0.7 and len(operations) < 4:
                    load = told.loads(operation)
                    ends(load)
                    half = begin + (end - begin) / 2
                    events += [(begin + 1e-9, began(load)), (half, ended(load))]
                    operations.append(load)
                    sources.append(load)
            else:
                operation = told.asks(name, Act.READ if name == "get" else Act.REMOVE)
            events += [(begin, began(operation)), (end, ended(operation))]
            operations.append(operation)
        for operation in operations:
            if operation.name == "get":
                sees(operation, chance.choice([None, *sources]))
            elif operation.name == "call":
                if not sources:
                    break
                sees(operation, chance.choice(sources))
            elif operation.name == "delete":
                operation.returned(Outcome.DONE, chance.randint(0, 1))
        else:
            if len(moments(operations)) > 6:
                continue
            numbered(events)
            expected = has_an_order(operations)
            try:
                told.history.check()
                found = True
            except HistoryError:
                found = False
            assert found == expected, told.history.operations
            verdicts[found] += 1
    assert min(verdicts) > 40, verdicts


# -- generated from the machine itself


def generated(chance: random.Random, length: int, *, lossless: bool) -> Told:
    """Run the machine step by step, then stretch every operation around its moment."""
    told = Told(lossless=lossless)
    history = told.history
    events: list[tuple[float, Callable[[int], None]]] = []
    value: dict[str, Operation | None] = {}
    running: dict[str, Operation] = {}
    flying: dict[Operation, tuple[float, list[tuple[Operation, float]]]] = {}

    def stretch() -> float:
        return chance.random() * chance.choice([0.3, 3, 10])

    def interval(operation: Operation, now: float, until: float | None = None) -> None:
        events.append((now - stretch(), began(operation)))
        events.append(((now if until is None else until) + stretch(), ended(operation)))

    def land(load: Operation, now: float) -> None:
        opened, joined = flying.pop(load)
        if running.get(key := str(load.key)) is load:
            value[key] = load
            del running[key]
        ends(load)
        spare = (now - opened) / 3
        events.append((opened + chance.random() * spare, began(load)))
        events.append((now - chance.random() * spare, ended(load)))
        for call, since in joined:
            sees(call, load)
            interval(call, since, now)

    for now in range(1, length + 1):
        key = chance.choice(["k", "k", "l"])
        held = value.get(key)
        step = chance.choice(["set", "delete", "get", "get", "call", "call", "land", "lose"])
        if step == "set":
            operation = told.set_at_once(key)
            value[key] = operation
            running.pop(key, None)
            interval(operation, now)
        elif step == "delete":
            operation = history.begin("delete", Act.REMOVE, key)
            operation.returned(Outcome.DONE, int(held is not None))
            value[key] = None
            running.pop(key, None)
            interval(operation, now)
        elif step == "get":
            operation = history.begin("get", Act.READ, key)
            sees(operation, held)
            interval(operation, now)
        elif step == "call":
            operation = told.calls(key)
            if held is not None:
                sees(operation, held)
                interval(operation, now)
            else:
                load = running.get(key)
                if load is None:
                    load = running[key] = told.loads(operation, key)
                    flying[load] = (now, [])
                flying[load][1].append((operation, now))
        elif step == "land" and flying:
            land(chance.choice(list(flying)), now)
        elif step == "lose" and not lossless:
            value[key] = None
    for load in list(flying):
        land(load, length + 1)
    numbered(events)
    return told


def hidden_read(told: Told, chance: random.Random) -> tuple[Operation, Operation] | None:
    """Return a read, and a value that was hidden for good before it began."""
    done = [each for each in told.history.operations if each.outcome is not Outcome.OPEN]
    fences = [each for each in done if each.act in (Act.WRITE, Act.REMOVE)]
    found = [
        (read, source)
        for read in done
        if read.act in (Act.READ, Act.CALL)
        for source in done
        if source.act in (Act.WRITE, Act.LOAD) and source.key == read.key
        for fence in fences
        if fence.key == read.key
        and (source.begin if source.act is Act.LOAD else source.end) < fence.begin
        and fence.end < read.begin
    ]
    return chance.choice(found) if found else None


def test_every_history_of_the_machine_passes_and_with_one_hidden_value_fails() -> None:
    broken = 0
    for seed in range(400):
        chance = random.Random(seed)
        told = generated(chance, chance.choice([5, 20, 80]), lossless=bool(seed % 2))
        told.history.check()
        swap = hidden_read(told, chance)
        if swap is not None:
            read, source = swap
            sees_hidden = Outcome.VALUE, source.given
            read.outcome, read.result = sees_hidden
            with pytest.raises(HistoryError):
                told.history.check()
            broken += 1
    assert broken > 200


def test_long_histories_with_many_concurrent_changes_are_decided_in_few_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("async_safe_cache.testing._verdict._SEARCHED", 20_000)
    for seed in range(20):
        generated(random.Random(seed), 1_000, lossless=bool(seed % 2)).history.check()


# -- recording


def test_a_watched_cache_records_what_it_is_asked_and_answers_as_the_cache_does() -> None:
    cache = AsyncSafeCache()
    history = History(lossless=True)
    watched = history.watch(cache)
    value = history.fresh("a")

    async def story() -> None:
        assert await watched.get("a", "nothing") == "nothing"
        await watched.set("a", value)
        assert await watched.get("a") is value
        assert (await watched.lookup("a")).value is value
        assert watched.peek("b", None) is None
        assert await watched.get_many(["a", "b"]) == {"a": value}
        assert await watched.touch("a", 5)
        assert await watched.expire("a", "b") == 1
        loaded = await watched.get_or_load("a", history.loader("a"))
        assert await watched.get_or_load("a", history.loader("a")) is loaded
        assert await watched.delete("a") == 1
        await watched.clear()
        await watched.aclose()

    asyncio.run(story())
    history.check()
    assert [f"{each.name} {each.answer}" for each in history.operations] == [
        "get miss",
        "set done",
        "get a#1",
        "lookup a#1",
        "peek miss",
        "get_many a#1",
        "get_many miss",
        "touch True",
        "expire done",
        "expire done",
        "get_or_load a#2",
        "load a#2",
        "get_or_load a#2",
        "delete 1",
        "clear done",
        "aclose done",
    ]
    assert history.operations[11].leader is history.operations[10]


def test_a_watched_function_shares_its_keys_with_the_controls_of_its_cache() -> None:
    cache = AsyncSafeCache()
    history = History(lossless=True)
    watched = history.watch(cache)

    @race_safe_cached(cache)
    def here(x: int) -> Any:
        return history.loader_here(here.cache_key(x))()  # type: ignore[attr-defined]

    @race_safe_cached(cache)
    async def later(x: int) -> Any:
        return await history.loader(later.cache_key(x))()  # type: ignore[attr-defined]

    here_too, later_too = history.function(here), history.function(later)

    async def story() -> None:
        first = await later_too(1)
        assert here_too(1) != first
        assert await later_too(x=1) is first
        assert await watched.refresh(later_too, 1) != first
        assert here_too.cache_contains(1)
        assert here_too.cache_invalidate(1)
        assert not here_too.cache_contains(1)
        assert await watched.invalidate(later_too, 1)
        assert not await watched.invalidate(later_too, 1)
        later_too.cache_clear()

    asyncio.run(story())
    history.check()
    assert {len(found) for found in _by_key(history).values()} == {5, 7}
    # The same, had the invalidation been forgotten by the cache:
    last = max((each for each in history.operations if each.act is Act.LOAD), key=_begin)
    assert last.key == later.cache_key(1)  # type: ignore[attr-defined]
    history.begin("get", Act.READ, last.key).returned(Outcome.VALUE, last.given)
    with pytest.raises(HistoryError, match="had hidden before the read began"):
        history.check()


def test_clearing_a_method_removes_the_keys_of_every_instance_and_of_nothing_else() -> None:
    cache = AsyncSafeCache()
    history = History(lossless=True)

    class Shop:
        @race_safe_cached(cache, method=True)
        def price(self, x: int) -> Any:
            return history.loader_here(Shop.price.cache_key(self, x))()  # type: ignore[attr-defined]

    price = history.function(Shop.price)
    one, two = Shop(), Shop()
    values = [price(one, 1), price(two, 1), price(two, 1)]
    assert values[1] is values[2]
    assert values[0] != values[1]
    at_once(history.watch(cache).set("raw", history.fresh("raw")))
    price.cache_clear()
    assert at_once(history.watch(cache).get("raw")) is not None
    values.append(price(one, 1))
    assert values[-1] not in values[:-1]
    history.check()
    at_once(history.watch(cache).clear())
    assert price(one, 1) not in values
    history.check()


def _begin(operation: Operation) -> float:
    return operation.begin


def _by_key(history: History) -> dict[Any, list[Operation]]:
    found: dict[Any, list[Operation]] = {}
    for each in history.operations:
        if each.act is not Act.CLEAR:
            found.setdefault(each.key, []).append(each)
    return found


async def test_a_load_knows_who_began_it_and_nobody_else() -> None:
    cache = AsyncSafeCache()
    history, other = History(), History()
    watched = history.watch(cache)

    async def body() -> None:
        await history.loader("b")()
        await other.loader("a")()

    await watched.get_or_load("a", history.loader("a", body))
    call, load, inner = history.operations
    assert (load.leader, inner.leader) == (call, None)
    assert other.operations[0].leader is None
    history.check()


async def test_a_cancelled_and_a_failed_call_are_recorded_as_such() -> None:
    cache = AsyncSafeCache()
    history = History(lossless=True)
    watched = history.watch(cache)

    async def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await watched.get_or_load("a", history.loader("a", fails))
    task = asyncio.create_task(watched.get_or_load("a", history.loader("a", asyncio.Event().wait)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    history.check()
    assert [each.answer for each in history.operations] == [
        "raised ValueError('no',)",
        "raised ValueError('no',)",
        "cancelled",
        "cancelled",
    ]


async def test_a_cache_that_forgets_its_fences_is_found_out() -> None:
    """The checker's own proof: a small cache with the classic race, stale set after delete."""

    class Careless:
        def __init__(self) -> None:
            self.values: dict[str, Any] = {}

        async def call(self, key: str, load: Callable[[], Awaitable[Any]]) -> Any:
            if key not in self.values:
                self.values[key] = await load()
            return self.values[key]

    history, cache = History(), Careless()
    go = asyncio.Event()
    load = history.loader("k", go.wait)

    async def call() -> None:
        operation = history.begin("call", Act.CALL, "k")
        operation.returned(Outcome.VALUE, await cache.call("k", load))

    first = asyncio.create_task(call())
    await asyncio.sleep(0)
    delete = history.begin("delete", Act.REMOVE, "k")
    cache.values.pop("k", None)
    delete.returned(Outcome.DONE)
    go.set()
    await first
    history.check()
    await call()
    with pytest.raises(HistoryError, match="had hidden before the read began"):
        history.check()


def test_keys_that_python_holds_equal_and_the_cache_tells_apart_have_histories_of_their_own() -> (
    None
):
    cache = AsyncSafeCache()
    history = History(lossless=True)
    watched = history.watch(cache)
    at_once(watched.set(1, "one"))
    assert at_once(watched.get(True)) is None
    assert at_once(watched.get(1.0)) is None
    assert at_once(watched.get(1)) == "one"
    history.check()
