"""Dependencies: whose change invalidates whom.

A *node* stands for a place (a key of a namespace, with or without an entry), an edge
leads from a source to who depends on it. An entry, or a load, holds a `Link`: its own
node, its sources, and the generation in which its value began to be computed.

    declare   a load begins, or a value is set: its edges are there before its value
    change    a source was written or invalidated: everything behind it, at any
              distance, is to be removed, and its load fenced; cycles end where they began
    release   the entry or the load is gone, and with it its edges

Edges of an entry that was evicted or has expired are kept while somebody depends on it:
a -> b -> c, and b is evicted; a change of a still reaches c. Beyond MOST_KEPT of them
the oldest node counts as changed: to invalidate too much is allowed, too little never.

A link can also tell whether it is `current`: no source changed since its generation.
That is the same promise kept a second time, by whoever reads.
"""

from collections.abc import Collection, Hashable, Iterable
from typing import Final, final

__all__ = ["MOST_KEPT", "Link", "Links", "Node"]

MOST_KEPT: Final = 4_096
"""Edges of entries that are gone, kept for those who depend on them."""


@final
class Node:
    """One place that depends on others, or others on it.

    Attributes:
        place: What it stands for.
        changed: The generation of its last change; 0 for none.
        dependents: Who depends on it, with the number of edges.
        links: Declarations of it that live.
        kept: Sources of declarations that are gone; bounded by MOST_KEPT in all.
    """

    __slots__ = ("changed", "dependents", "kept", "links", "place")

    def __init__(self, place: Hashable) -> None:
        self.place = place
        self.changed = 0
        self.dependents: dict[Node, int] = {}
        self.links = 0
        self.kept: dict[Node, None] = {}


@final
class Link:
    """What one value depends on."""

    __slots__ = ("generation", "node", "sources")

    def __init__(self, node: Node, sources: tuple[Node, ...], generation: int) -> None:
        self.node = node
        self.sources = sources
        self.generation = generation

    def current(self) -> bool:
        """Tell whether no source changed since. O(sources)."""
        generation = self.generation
        return all(source.changed <= generation for source in self.sources)


@final
class Links:
    """All dependencies of one cache.

    Complexity: declare and release O(sources); change O(what it returns and its edges).
    """

    __slots__ = ("_edges", "_kept", "nodes")

    def __init__(self) -> None:
        # Bounded by the edges, and so by the entries, the loads and MOST_KEPT.
        self.nodes: dict[Hashable, Node] = {}
        self._kept: dict[Node, None] = {}  # nodes with kept edges, the oldest first
        self._edges = 0  # kept ones

    def declare(self, place: Hashable, sources: Collection[Hashable], generation: int) -> Link:
        """Note that *place* depends on *sources*, from *generation* on."""
        node = self._node(place)
        node.links += 1
        found = tuple(map(self._node, sources))
        for source in found:
            source.dependents[node] = source.dependents.get(node, 0) + 1
        return Link(node, found, generation)

    def release(self, link: Link) -> None:
        """Let go of *link*, whose value is gone; once for each."""
        node = link.node
        node.links -= 1
        loose = [node]
        for source in link.sources:
            if node.dependents and source not in node.kept:
                node.kept[source] = None
                self._kept[node] = None
                self._edges += 1
            else:
                self._loosen(source, node)
                loose.append(source)
        self._tidy(loose)

    def change(self, place: Hashable, generation: int, *, keep: bool = False) -> list[Hashable]:
        """Note a change of *place*; return the places that depend on it, directly or not.

        The caller removes them all. With *keep* it may spare some, which must still
        be reached by changes of what lies before *place*.
        """
        node = self.nodes.get(place)
        if node is None:
            return []
        seen = _reached([node])
        for each in seen:
            each.changed = generation
        if not keep:
            # Nobody is left behind these nodes: nothing to keep edges for.
            self._tidy([*seen, *(source for each in seen for source in self._forget_kept(each))])
        return [each.place for each in seen if each is not node]

    def behind(self, places: Iterable[Hashable]) -> set[Hashable]:
        """Return what changes of *places* would reach, and *places* that have a node."""
        return {
            each.place
            for each in _reached([self.nodes[place] for place in places if place in self.nodes])
        }

    def excess(self) -> Hashable | None:
        """Return the oldest place with kept edges if there are too many: it counts as changed."""
        return next(iter(self._kept)).place if self._edges > MOST_KEPT else None

    def within(self, spaces: Collection[object]) -> list[Hashable]:
        """Return the places of *spaces* that somebody depends on. O(nodes)."""
        return [
            place
            for place, node in self.nodes.items()
            if node.dependents and isinstance(place, tuple) and place[0] in spaces
        ]

    def _node(self, place: Hashable) -> Node:
        node = self.nodes.get(place)
        if node is None:
            node = self.nodes[place] = Node(place)
        return node

    def _loosen(self, source: Node, node: Node) -> None:
        """Take one edge away."""
        edges = source.dependents[node] - 1
        if edges:
            source.dependents[node] = edges
        else:
            del source.dependents[node]

    def _tidy(self, nodes: list[Node]) -> None:
        """Forget which of *nodes*, and of their sources, nobody needs any more."""
        while nodes:
            node = nodes.pop()
            if not node.dependents:
                nodes += self._forget_kept(node)
                if not node.links and self.nodes.get(node.place) is node:
                    del self.nodes[node.place]
            elif node.kept and not node.links:
                for each in self._stranded(node):
                    nodes += (each, *self._forget_kept(each))

    def _stranded(self, node: Node) -> Collection[Node]:
        """Return *node* and all behind it if no value is left there: a cycle that keeps itself.

        O(1) mostly: edges are kept for somebody, who is found at once.
        """
        seen: dict[Node, None] = {node: None}
        waiting = [node]
        while waiting:
            for dependent in waiting.pop().dependents:
                if dependent.links:
                    return ()
                if dependent not in seen:
                    seen[dependent] = None
                    waiting.append(dependent)
        return seen

    def _forget_kept(self, node: Node) -> Collection[Node]:
        """Take the kept edges of *node* away; return the sources, which may be bare now."""
        if not node.kept:
            return ()
        del self._kept[node]
        kept, node.kept = node.kept, {}
        self._edges -= len(kept)
        for source in kept:
            self._loosen(source, node)
        return kept

    def check(self, links: Iterable[Link]) -> None:
        """Raise AssertionError unless *links* are exactly what is declared. O(edges)."""
        edges: dict[tuple[Node, Node], int] = {}
        declared: dict[Node, int] = {}
        for link in links:
            declared[link.node] = declared.get(link.node, 0) + 1
            for source in link.sources:
                edges[source, link.node] = edges.get((source, link.node), 0) + 1
        for node in self._kept:
            for source in node.kept:
                edges[source, node] = edges.get((source, node), 0) + 1
        held = {
            (node, dependent): count
            for node in self.nodes.values()
            for dependent, count in node.dependents.items()
        }
        _claim(held == edges, "the edges are those of the living links, and the kept ones")
        _claim(sum(len(node.kept) for node in self._kept) == self._edges, "kept edges are counted")
        for place, node in self.nodes.items():
            _claim(node.place == place, "a node is found under its place")
            _claim(node.links == declared.get(node, 0), "declarations of each node")
            _claim(bool(node.links or node.dependents), "a node nobody needs is gone")
            _claim(bool(node.kept) == (node in self._kept), "kept edges are known")
            _claim(not node.kept or bool(node.dependents), "edges are kept for somebody")


def _reached(waiting: list[Node]) -> dict[Node, None]:
    """Return *waiting*, which is used up, and all who depend on them, directly or not."""
    seen = dict.fromkeys(waiting)
    while waiting:
        for dependent in waiting.pop().dependents:
            if dependent not in seen:
                seen[dependent] = None
                waiting.append(dependent)
    return seen


def _claim(holds: bool, invariant: str) -> None:
    if not holds:
        raise AssertionError(f"broken invariant of the links: {invariant}")
