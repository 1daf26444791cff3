"""Edges and fences alone, each beside a plain model that looks through everything."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_safe_cache import _tags
from async_safe_cache._links import Link, Links
from async_safe_cache._tags import TagFences


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    place = st.integers(0, 5)
    declare = st.tuples(st.just("declare"), place, st.sets(place, min_size=1, max_size=3))
    release = st.tuples(st.just("release"), st.integers(0, 50))
    change = st.tuples(st.just("change"), place, st.booleans())
    return draw(st.lists(st.one_of(declare, declare, release, change), max_size=40))


class PlainLinks:
    """The same, told as a set of edges that is looked through each time."""

    def __init__(self) -> None:
        self.living: list[Link] = []
        self.ghosts: set[tuple[Any, Any]] = set()  # edges of what is gone

    def edges(self) -> set[tuple[Any, Any]]:
        return self.ghosts | {edge for each in self.living for edge in edges_of(each)}

    def behind(self, place: Any) -> set[Any]:
        """Return what a change of *place* reaches; itself too, if it lies in a cycle."""
        edges, waiting = self.edges(), [place]
        seen: set[Any] = set()
        while waiting:
            before = waiting.pop()
            for source, at in edges:
                if source == before and at not in seen:
                    seen.add(at)
                    waiting.append(at)
        return seen

    def release(self, link: Link) -> None:
        self.living.remove(link)
        self.ghosts |= edges_of(link)
        self.forget_ghosts()

    def forget_ghosts(self) -> None:
        """Keep those edges only behind which somebody lives."""
        alive = {each.node.place for each in self.living}
        needed = {at for _, at in self.ghosts if self.behind(at) & alive}
        self.ghosts = {(source, at) for source, at in self.ghosts if at in needed}


def edges_of(link: Link) -> set[tuple[Any, Any]]:
    return {(source.place, link.node.place) for source in link.sources}


@given(lives())
def test_a_change_reaches_all_that_depends_on_it_through_whatever_is_gone(
    steps: list[tuple[Any, ...]],
) -> None:
    links, plain = Links(), PlainLinks()
    for generation, (step, *rest) in enumerate(steps, 1):
        if step == "declare":
            place, sources = rest[0], rest[1] - {rest[0]}
            if sources:
                plain.living.append(links.declare(place, sources, generation))
        elif step == "release" and plain.living:
            link = plain.living[rest[0] % len(plain.living)]
            links.release(link)
            plain.release(link)
        elif step == "change":
            place, keep = rest
            needed = plain.behind(place) - {place}
            behind = set(links.change(place, generation, keep=keep))
            alive = {each.node.place for each in plain.living}
            assert behind & alive == needed & alive
            for link in plain.living:
                stale = {place, *behind} & {each.place for each in link.sources}
                assert not (stale and link.current() and link.generation < generation)
            if not keep:  # the caller removes them all
                plain.ghosts = {(a, at) for a, at in plain.ghosts if at not in {place, *behind}}
                for link in [each for each in plain.living if each.node.place in behind]:
                    links.release(link)
                    plain.release(link)
                plain.forget_ghosts()
        links.check(plain.living)
    for link in tuple(plain.living):
        links.release(link)
        plain.living.remove(link)
        links.check(plain.living)
    assert not links.nodes, "nothing is left when nobody depends on anything"


def test_a_cycle_of_places_that_are_gone_is_kept_for_whoever_lives_behind_it() -> None:
    links = Links()
    there, back = links.declare("a", ["b"], 1), links.declare("b", ["a"], 1)
    behind = links.declare("c", ["b"], 1)
    links.release(there)
    links.release(back)
    links.check([behind])
    assert "c" in links.change("a", 2)
    links.release(behind)
    assert not links.nodes


TAGS = st.sets(st.sampled_from("abcd"), min_size=1, max_size=2)


@given(st.lists(st.tuples(TAGS, st.booleans()), max_size=30), st.integers(0, 3))
def test_fences_hold_back_all_they_must_and_within_their_bound_nothing_else(
    steps: list[tuple[set[str], bool]], bound: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tags, "MOST_FENCES", bound)
        fences = TagFences()
        raised: dict[str, int] = {}
        collapsed = False
        for generation, (tags, down) in enumerate(steps, 1):
            fences.put_up(tags, generation)
            raised |= dict.fromkeys(tags, generation)
            collapsed |= len(raised) > bound
            for tag in "abcde":
                for begun in range(generation + 1):
                    held = fences.hold_back((tag,), begun)
                    must = begun < raised.get(tag, 0)
                    assert held or not must, "too little never"
                    assert held is must or collapsed, "too much beyond the bound only"
            assert not fences.hold_back((), 0), "what has no tags is nobody's"
            assert not fences.hold_back(tuple("abcde"), generation), "who began later is free"
            if down:
                fences.take_down()
                raised, collapsed = {}, False
