"""Whether a legal order exists for the operations of one key.

Each operation becomes one or two moments (a load: its begin and its landing), each
between the numbers of its call and its return. The machine is two words: the value
that the key holds, and the load that may be joined.

Depth first over the moments that no other one must precede, never twice into one
pair of (moments chosen, state). A moment that changes nothing and is right where it
stands is chosen at once: taken from any legal order and put here, it leaves that
order legal. So only concurrent *changes* of one key branch, and a history of a few
tasks is decided in one pass.

What did not return, or raised, may have happened or not: its moments are not needed.
A landing is needed from the first answer that has its value, and before that answer.

Sources: Wing & Gong, "Testing and verifying concurrent objects" (1993); Lowe,
"Testing for linearizability" (2017), for the memory of states.
"""

from collections.abc import Hashable, Iterator, Mapping
from enum import Enum, auto
from typing import Any, Final, NamedTuple, NoReturn, final

from ._operation import NEVER, Act, Operation, Outcome, table, text

__all__ = ["HistoryError", "Verdict"]

_SEARCHED: Final = 1_000_000
"""States after which a search gives up rather than run for hours."""


class HistoryError(AssertionError):
    """No legal order of the operations of one key exists.

    Attributes:
        key: The key.
        operations: Its operations, in the order of their calls.
        why: Why no order exists.
    """

    def __init__(self, key: object, operations: "list[Operation]", why: str, table: str) -> None:
        super().__init__(
            f"no legal order exists for the {len(operations)} operations of key {text(key)}: "
            f"{why}\n{table}"
        )
        self.key = key
        self.operations = operations
        self.why = why


# -- the search


class Step(Enum):
    """What a moment does to the machine."""

    SEE = auto()  # the value is the one seen, or the load that may be joined gives it
    MISS = auto()
    HAS = auto()
    WRITE = auto()
    REMOVE = auto()
    BEGIN = auto()
    LAND = auto()


@final
class Point(NamedTuple):
    """One moment to be chosen.

    Attributes:
        low: It comes after this number.
        high: And before this one.
        step: What happens then.
        operation: Whose moment it is.
        what: The value seen or written.
        joins: Loads that may be joined instead.
        hit: Whether the value itself may be seen.
        needed: Whether it surely happened.
        found: Whether a removal says that something was there; None: it does not tell.
    """

    low: float
    high: float
    step: Step
    operation: Operation
    what: Any = None
    joins: frozenset[Operation] = frozenset()
    hit: bool = True
    needed: bool = True
    found: bool | None = None


Node = tuple[int, int, Any, Any, int]
"""Moments chosen, as bits; the first not chosen; value; load; overlaps still allowed."""


@final
class Verdict:
    """The decision about one key.

    Args:
        key: The key.
        operations: Its operations, in the order of their calls.
        lossless: Nothing may vanish by itself.
        negative: Failures may be remembered.
        elsewhere: Which write or load of other keys gave a value or an error.
    """

    def __init__(
        self,
        key: Hashable,
        operations: list[Operation],
        *,
        lossless: bool,
        negative: bool,
        elsewhere: Mapping[Any, Operation],
    ) -> None:
        self.key = key
        self.operations = operations
        self.lossless = lossless
        self.negative = negative
        self.elsewhere = elsewhere
        self.sources: dict[Any, Operation] = {}
        self.failed: dict[Any, list[Operation]] = {}
        for each in operations:
            if each.act is Act.WRITE or each.act is Act.LOAD:
                other = self.sources.setdefault(each.given, each)
                if other is not each:
                    raise ValueError(
                        f"{other!r} and {each!r} wrote equal values: which of them a read saw "
                        "cannot be told; use History.fresh"
                    )
            if each.act is Act.LOAD and each.outcome is Outcome.ERROR:
                self.failed.setdefault(each.result, []).append(each)
        self.points = sorted(self._points(), key=lambda point: (point.low, point.high))
        self.needed = sum(1 << n for n, point in enumerate(self.points) if point.needed)
        # Those that may have happened: after their end they cannot any more.
        self.passing = [
            n for n, point in enumerate(self.points) if not point.needed and point.high != NEVER
        ]

    def decide(self, overlapping: int) -> int:
        """Return how many overlaps the legal order needs, at most *overlapping*.

        Raises:
            HistoryError: There is no legal order.
        """
        allowed = 0
        while True:
            stuck = self._search(allowed)
            if stuck is None:
                return allowed
            if allowed >= overlapping:
                self._refuse(stuck)
            allowed += 1

    # -- moments

    def _points(self) -> Iterator[Point]:
        seen = self._first_seen()
        for each in self.operations:
            low, high = each.begin, each.end
            match each.act, each.outcome:
                case Act.LOAD, _:
                    begun = -1.0 if each.leader is None else each.leader.begin
                    yield Point(begun, low, Step.BEGIN, each)
                    if high != NEVER:
                        first = seen.get(each, NEVER)
                        yield Point(high, first, Step.LAND, each, needed=first != NEVER)
                case Act.WRITE, outcome:
                    done = outcome is Outcome.DONE
                    yield Point(low, high, Step.WRITE, each, each.given, needed=done)
                case ((Act.REMOVE | Act.CLEAR), outcome):
                    done = outcome is Outcome.DONE
                    found = None if each.result is None or not done else bool(each.result)
                    yield Point(low, high, Step.REMOVE, each, needed=done, found=found)
                case (Act.USE, Outcome.DONE) if each.result:
                    yield Point(low, high, Step.HAS, each)
                case (Act.USE, Outcome.DONE) | ((Act.READ | Act.CALL), Outcome.MISS):
                    yield Point(low, high, Step.MISS, each)
                case act, Outcome.VALUE:
                    source = self._source_of(each)
                    calls = act is Act.CALL or act is Act.REFRESH
                    joins = frozenset((source,) if calls and source.act is Act.LOAD else ())
                    hit = act is not Act.REFRESH
                    yield Point(low, high, Step.SEE, each, each.result, joins, hit)
                case ((Act.CALL | Act.REFRESH), Outcome.ERROR):
                    # An error of no load is the cache's own: a refusal, which changes nothing.
                    if each.result in self.failed:
                        joins = frozenset(self.failed[each.result])
                        hit = self.negative and each.act is Act.CALL
                        yield Point(low, high, Step.SEE, each, each.result, joins, hit)
                    elif each.result in self.elsewhere:
                        self._foreign(each)
                case _:
                    pass

    def _first_seen(self) -> dict[Operation, float]:
        """Return when each load's outcome was first handed out: it had landed by then."""
        seen: dict[Operation, float] = {}
        for each in self.operations:
            if each.act is Act.LOAD:
                continue
            load: Operation | None = None
            if each.outcome is Outcome.VALUE:
                load = self.sources.get(each.result)
            elif each.outcome is Outcome.ERROR:
                failed = self.failed.get(each.result, ())
                load = failed[0] if len(failed) == 1 else None
            if load is not None and load.act is Act.LOAD:
                seen[load] = min(seen.get(load, NEVER), each.end)
        # Seen before it ended: refused later, with better words.
        return {load: end for load, end in seen.items() if end > load.end}

    def _source_of(self, read: Operation) -> Operation:
        source = self.sources.get(read.result)
        if source is None:
            self._foreign(read)
        if source.begin > read.end:
            self._fail(f"{read!r} {answered(read)} before {source!r} began", read)
        if source.act is Act.LOAD and source.end > read.end:
            self._fail(f"{read!r} {answered(read)} before the end of {source!r}", read)
        return source

    def _foreign(self, read: Operation) -> NoReturn:
        """Refuse an answer that came from no operation of this key."""
        other = self.elsewhere.get(read.result)
        if other is None:
            self._fail(f"{read!r} {answered(read)}, which nothing of this key gave", read)
        self._fail(f"{read!r} {answered(read)}, which is another key's: of {other!r}", read)

    # -- depth first

    def _search(self, overlapping: int) -> Node | None:
        """Return None when there is a legal order, else the node that got farthest."""
        begin = self._settled((0, 0, None, None, overlapping))
        best, most = begin, begin[0].bit_count()
        known = {self._memo(begin)}
        stack = [begin]
        while stack:
            node = stack.pop()
            moves = self._moves(node)
            if moves is None:
                return None
            count = node[0].bit_count()
            if count > most:
                best, most = node, count
            # The last one pushed is tried first: what must happen soonest.
            for move in moves:
                settled = self._settled(move)
                memo = self._memo(settled)
                if memo not in known:
                    known.add(memo)
                    stack.append(settled)
            if len(known) > _SEARCHED:
                raise RuntimeError(
                    f"the history of key {text(self.key)} has too many concurrent changes to be "
                    f"decided: {_SEARCHED:,} states were searched; use more keys or fewer tasks"
                )
        return best

    @staticmethod
    def _memo(node: Node) -> tuple[Any, ...]:
        return node[0], node[2], node[3], node[4]

    def _candidates(self, done: int, first: int) -> list[int]:
        """Return the moments that may come next: no needed one must come before them."""
        points = self.points
        horizon = NEVER
        found: list[int] = []
        for place in range(first, len(points)):
            point = points[place]
            if point.low >= horizon:
                break
            if done >> place & 1:
                continue
            found.append(place)
            if point.needed and point.high < horizon:
                horizon = point.high
        if self.passing:
            last = (n for n in range(len(points) - 1, -1, -1) if done >> n & 1)
            now = points[next(last, 0)].low
            found = [place for place in found if points[place].high > now]
        return found

    def _settled(self, node: Node) -> Node:
        """Choose every moment that changes nothing and is right now."""
        done, first, value, load, allowed = node
        points = self.points
        again = True
        while again:
            again = False
            for place in self._candidates(done, first):
                point = points[place]
                if self._unmoving(point, value, load) and not self._too_soon(done, point):
                    done |= 1 << place
                    again = True
        while done >> first & 1:
            first += 1
        return done, first, value, load, allowed

    def _too_soon(self, done: int, point: Point) -> bool:
        """Tell whether something that may have happened would have to come before *point*."""
        return any(
            not done >> place & 1 and self.points[place].high <= point.low for place in self.passing
        )

    def _unmoving(self, point: Point, value: Any, load: Any) -> bool:
        step = point.step
        if step is Step.SEE:
            return (point.hit and value == point.what) or load in point.joins
        if step is Step.MISS:
            return value is None or value in self.failed
        if step is Step.HAS:
            return value is not None and value not in self.failed
        if step is Step.LAND:
            return load is not point.operation  # it was shut out: it only answers
        return False

    def _moves(self, node: Node) -> list[Node] | None:
        """Return what can come next, the most urgent last; None when nothing needed is left."""
        done, first, value, load, allowed = node
        points = self.points
        candidates = self._candidates(done, first)
        if done & self.needed == self.needed:
            return None
        lossless = self.lossless
        held = value is not None and value not in self.failed
        moves: list[Node] = []
        for place in sorted(candidates, key=lambda place: -points[place].high):
            point = points[place]
            step = point.step
            after = done | 1 << place
            if step is Step.WRITE:
                moves.append((after, first, point.what, None, allowed))
            elif step is Step.REMOVE:
                if held:
                    if point.found is not False or not lossless:
                        moves.append((after, first, None, None, allowed))
                elif point.found is not True:
                    moves.append((after, first, None, None, allowed))
            elif step is Step.LAND:
                moves += [
                    (after, first, landed, None, allowed) for landed in self._landed(point, value)
                ]
            elif step is Step.BEGIN:
                if load is None:
                    leader = point.operation.leader
                    background = leader is None or leader.act is Act.REFRESH
                    if background or value is None:
                        moves.append((after, first, value, point.operation, allowed))
                    elif not held or not lossless:
                        moves.append((after, first, None, point.operation, allowed))
                elif load.end == NEVER and load.loop is not None and load.loop.is_closed():
                    moves.append((done, first, value, None, allowed))
                elif allowed:
                    moves.append((done, first, value, None, allowed - 1))
            elif step is Step.MISS:
                if held and not lossless:
                    moves.append((after, first, None, load, allowed))
            elif not self._unmoving(point, value, load):
                continue
            else:
                moves.append((after, first, value, load, allowed))
        return moves

    def _landed(self, point: Point, value: Any) -> list[Any]:
        """Return what the key may hold after a load that nobody shut out has ended."""
        load = point.operation
        if load.outcome is Outcome.VALUE:
            # Nobody saw it: everybody may have left before, and then it is not stored.
            return [load.given] if point.needed else [value, load.given]
        if load.outcome is Outcome.ERROR and self.negative:
            held = value is not None and value not in self.failed
            return [value] if held else [value, load.result]
        return [value]

    # -- words

    def _refuse(self, stuck: Node) -> NoReturn:
        done, _, value, load, _ = stuck
        left = [
            point
            for place, point in enumerate(self.points)
            if point.needed and not done >> place & 1
        ]
        point = min(left, key=lambda point: point.high)
        stale = self._stale()
        if stale is not None:
            self._fail(*stale)
        holds = "nothing" if value is None else repr(value)
        operation = point.operation
        runs = "" if load is None else f", while {load!r} runs"
        match point.step:
            case Step.BEGIN if load is not None:
                why = (
                    f"{operation!r} began while {load!r} could be joined: neither a write, nor an "
                    "invalidation, nor an overlap that the cache counted came between"
                )
            case Step.BEGIN:
                why = f"{operation!r} began although the key held {holds}, which nothing removed"
            case Step.MISS:
                why = (
                    f"{operation!r} found nothing although the key held {holds}, "
                    "which nothing removed"
                )
            case Step.SEE if not point.hit:
                joined = "and it could join no load that gives that"
                why = f"{operation!r} {answered(operation)}, {joined}"
            case _:
                held = f"where the key can only hold {holds}{runs}"
                why = f"{operation!r} {answered(operation)}, {held}"
        self._fail(why, operation)

    def _stale(self) -> tuple[str, Operation] | None:
        """Return a read of a value that had been removed or replaced before it began."""
        fences = [
            each
            for each in self.operations
            if each.act in (Act.WRITE, Act.REMOVE, Act.CLEAR) and each.outcome is Outcome.DONE
        ]
        for read in self.operations:
            source = self.sources.get(read.result) if read.outcome is Outcome.VALUE else None
            if source is None or read.act is Act.LOAD:
                continue
            for fence in fences:
                before = source.begin if source.act is Act.LOAD else source.end
                if before < fence.begin and fence.end < read.begin:
                    hidden = f"which {fence!r} had hidden before the read began"
                    return f"{read!r} gave {read.result!r} of {source!r}, {hidden}", read
        return None

    def _fail(self, why: str, mark: Operation) -> NoReturn:
        raise HistoryError(self.key, self.operations, why, table(self.operations, mark))


def answered(operation: Operation) -> str:
    """Return what *operation* did in the end, as a verb."""
    return operation.answer if operation.outcome is Outcome.ERROR else f"gave {operation.answer}"
