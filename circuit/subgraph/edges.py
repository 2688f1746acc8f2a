"""A circuit: the set of edges of a graph that is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np

from persona_circuits.circuit.errors import GraphError
from persona_circuits.circuit.graph import INPUT, LOGITS, Edge, Graph, Node
from persona_circuits.circuit.printable import html_table
from persona_circuits.circuit.scores import Scores

__all__ = ["Circuit", "from_networkx", "to_networkx"]


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """The kept edges of ``graph``; ``mask`` is bool, shape ``[n_src, n_dst]``, read-only.

    A circuit is a set of edges: ``edge in circuit``, ``for edge in circuit``, ``len(circuit)``, and ``a & b``,
    ``a | b`` and ``a - b`` of circuits of one graph.

    Examples
    --------
    >>> from persona_circuits import Circuit, Graph
    >>> circuit = Circuit.of(Graph(2, 2), ["input->m0", "m0->logits"])
    >>> circuit
    Circuit(2 of 46 edges, 3 of 8 nodes; 2 layers, 2 heads)
    >>> "m0->logits" in circuit, [str(edge) for edge in circuit - Circuit.of(circuit.graph, ["input->m0"])]
    (True, ['m0->logits'])
    """

    graph: Graph
    mask: np.ndarray

    def __post_init__(self) -> None:
        mask = np.array(self.mask, dtype=bool)
        if mask.shape != self.graph.valid.shape:
            raise GraphError(f"circuit mask of shape {mask.shape}, expected {self.graph.valid.shape}")
        if (mask & ~self.graph.valid).any():
            src, dst = np.argwhere(mask & ~self.graph.valid)[0].tolist()
            raise GraphError(f"circuit keeps {self.graph.edge(src, dst)}, which is not an edge of this graph")
        mask.setflags(write=False)
        object.__setattr__(self, "mask", mask)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.graph == other.graph and bool((self.mask == other.mask).all())

    def __hash__(self) -> int:
        return hash((self.graph, self.mask.tobytes()))

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.edges())

    def __contains__(self, edge: Edge | str) -> bool:
        return bool(self.mask[self.graph.index(edge)])

    def __and__(self, other: Circuit) -> Circuit:
        """The edges of both."""
        return Circuit(self.graph, self.mask & self._mask_of(other))

    def __or__(self, other: Circuit) -> Circuit:
        """The edges of either."""
        return Circuit(self.graph, self.mask | self._mask_of(other))

    def __sub__(self, other: Circuit) -> Circuit:
        """The edges of this circuit that the other lacks."""
        return Circuit(self.graph, self.mask & ~self._mask_of(other))

    def _mask_of(self, other: Circuit) -> np.ndarray:
        if other.graph != self.graph:
            shapes = [f"{circuit.graph.n_layers} layers of {circuit.graph.n_heads} heads" for circuit in (self, other)]
            raise GraphError(f"circuits of two graphs, {' and '.join(shapes)}; edges are shared within one model only")
        return other.mask

    def __repr__(self) -> str:
        graph = self.graph
        counts = f"{len(self):,} of {graph.n_edges:,} edges, {len(self.nodes()):,} of {graph.n_src + 1:,} nodes"
        return f"Circuit({counts}; {graph.n_layers} layers, {graph.n_heads} heads)"

    def _repr_html_(self) -> str:
        slots = {node: [str(edge.src) for edge in self if edge.dst == node] for node in self.nodes()[::-1]}
        rows = [(node, len(sources), ", ".join(sources)) for node, sources in slots.items() if sources]
        return html_table(repr(self), ("node", "edges", "reads"), rows)

    def to_networkx(self, scores: Scores | None = None) -> nx.DiGraph:
        """The circuit as a directed graph over node names; see the function ``to_networkx``."""
        return to_networkx(self, scores)

    @classmethod
    def full(cls, graph: Graph) -> Circuit:
        """Every edge."""
        return cls(graph, graph.valid)

    @classmethod
    def empty(cls, graph: Graph) -> Circuit:
        """No edge."""
        return cls(graph, np.zeros_like(graph.valid))

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[Edge | str]) -> Circuit:
        """The circuit of the given edges.

        Raises:
            GraphError: an edge is not in the graph.
        """
        mask = np.zeros_like(graph.valid)
        for edge in edges:
            mask[graph.index(edge)] = True
        return cls(graph, mask)

    @classmethod
    def at(cls, graph: Graph, src: np.ndarray, dst: np.ndarray) -> Circuit:
        """The circuit of the edges at these rows and columns."""
        mask = np.zeros_like(graph.valid)
        mask[src, dst] = True
        return cls(graph, mask)

    def edges(self) -> list[Edge]:
        """The kept edges, by slot in topological order, then by source."""
        return [self.graph.edge(src, dst) for dst, src in np.argwhere(self.mask.T).tolist()]

    def edge_names(self) -> list[str]:
        """The names of ``edges``, in that order."""
        sources, slots = self.graph.src_names, self.graph.slot_names
        return [f"{sources[src]}->{slots[dst]}" for dst, src in np.argwhere(self.mask.T).tolist()]

    def nodes(self) -> list[Node]:
        """The nodes at either end of a kept edge: sources in order, ``logits`` last."""
        graph = self.graph
        ends = self.mask.any(axis=1) | graph.sources_of(self.mask.any(axis=0))
        nodes = [graph.src_nodes[src] for src in np.flatnonzero(ends).tolist()]
        return [*nodes, LOGITS] if self.mask[:, -1].any() else nodes

    def src_names(self) -> list[str]:
        """What ``real_circuits_1.json`` lists: ``input`` first, then the kept sources in order."""
        return ["input", *(str(node) for node in self.nodes() if node not in (INPUT, LOGITS))]

    def complement(self) -> Circuit:
        """The edges of the graph that are not kept."""
        return Circuit(self.graph, self.graph.valid & ~self.mask)

    def without_dead_ends(self) -> Circuit:
        """Drop nodes without an in-edge or an out-edge and edges without an end, to a fixed point.

        What is left lies on a path from ``input`` to ``logits``; it may be empty.
        """
        mask = self.mask.copy()
        while True:
            alive = _live_sources(self.graph, mask)
            pruned = mask & alive[:, None] & self.graph.slots_of(alive)[None, :]
            if (pruned == mask).all():
                return Circuit(self.graph, pruned)
            mask = pruned


def _live_sources(graph: Graph, mask: np.ndarray) -> np.ndarray:
    """Sources that are read by something and, but for ``input``, read something themselves."""
    read = graph.sources_of(mask.any(axis=0))
    read[0] = True
    return np.asarray(read & mask.any(axis=1))


def to_networkx(circuit: Circuit, scores: Scores | None = None) -> nx.DiGraph:
    """The circuit as a directed graph over node names.

    A DiGraph holds one edge per pair of nodes, so the slots of a head are attributes of it: ``slots`` is such as
    ``"qk"`` (empty where the destination is no head) and the scores are ``score_q``, ``score_k``, ``score_v`` or
    ``score``. ``weight`` is the largest absolute score, 1 without scores. The graph's own attributes hold the shape, so
    that ``from_networkx`` needs nothing else.

    Parameters
    ----------
    scores
        Of the edges, in metric units.

    Returns
    -------
    A ``networkx.DiGraph``.

    Examples
    --------
    >>> graph = to_networkx(Circuit.of(Graph(2, 2), ["input->a0.h1<q>", "input->a0.h1<k>", "a0.h1->logits"]))
    >>> graph["input"]["a0.h1"]["slots"], sorted(graph)
    ('qk', ['a0.h1', 'input', 'logits'])
    """
    graph = circuit.graph
    result = nx.DiGraph(n_layers=graph.n_layers, n_heads=graph.n_heads, parallel=graph.parallel)
    for node in circuit.nodes():
        result.add_node(str(node), kind=node.kind, layer=node.layer, head=node.head)
    for edge in circuit.edges():
        data = result.get_edge_data(str(edge.src), str(edge.dst)) or {"slots": "", "weight": 0.0}
        data["slots"] += edge.slot or ""
        if scores is not None:
            score = scores[edge]
            data[f"score_{edge.slot}" if edge.slot else "score"] = score
            data["weight"] = max(data["weight"], abs(score))
        else:
            data["weight"] = 1.0
        result.add_edge(str(edge.src), str(edge.dst), **data)
    return result


def from_networkx(graph: nx.DiGraph) -> Circuit:
    """The circuit that ``to_networkx`` made this graph of.

    Raises:
        GraphError: the shape is missing, or an edge is not in the graph.
    """
    missing = {"n_layers", "n_heads", "parallel"} - set(graph.graph)
    if missing:
        raise GraphError(f"the networkx graph lacks the attributes {', '.join(sorted(missing))}")
    shape = graph.graph
    names = [
        f"{src}->{dst}<{slot}>" if slot else f"{src}->{dst}"
        for src, dst, slots in graph.edges(data="slots")
        for slot in (slots or [""])
    ]
    return Circuit.of(Graph(int(shape["n_layers"]), int(shape["n_heads"]), bool(shape["parallel"])), names)
