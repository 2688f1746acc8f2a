"""The computational graph of a transformer: its nodes, its edges, and their names.

A *source* writes into the residual stream, a *slot* reads from it:

    sources   input, then per layer  a{l}.h0 … a{l}.h{H-1}, m{l}
    slots     per layer  a{l}.h*<q>, a{l}.h*<k>, a{l}.h*<v>, m{l},  then  logits

An edge joins a source to a slot that comes after it. Heads of a layer reach the MLP of the same layer unless attention
and MLP run in parallel. The convention, names included, is that of Hanna et al. 2024 (arXiv:2403.17806).

Names are parsed and printed in this module alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Literal

import numpy as np

from persona_circuits.circuit.errors import GraphError

__all__ = ["INPUT", "LOGITS", "SLOTS", "Edge", "Graph", "Node", "Slot", "parse_edge", "parse_node"]

Kind = Literal["input", "head", "mlp", "logits"]
Slot = Literal["q", "k", "v"]
SLOTS: tuple[Slot, ...] = ("q", "k", "v")
MAX_CELLS = 10**9
"""Largest table of sources and slots, 8 bytes per score; 126 layers of 128 heads have 789 million cells."""
_HEAD = re.compile(r"a(0|[1-9][0-9]{0,8})\.h(0|[1-9][0-9]{0,8})\Z")
_MLP = re.compile(r"m(0|[1-9][0-9]{0,8})\Z")
_EDGE = re.compile(r"(?P<src>[^<>]+)->(?P<dst>[^<>]+?)(?:<(?P<slot>[qkv])>)?\Z")


@dataclass(frozen=True)
class Node:
    """One component: the embedding, an attention head, an MLP block, or the output."""

    kind: Kind
    layer: int = -1
    head: int = -1

    def __str__(self) -> str:
        if self.kind == "head":
            return f"a{self.layer}.h{self.head}"
        return f"m{self.layer}" if self.kind == "mlp" else self.kind


INPUT = Node("input")
LOGITS = Node("logits")


@dataclass(frozen=True)
class Edge:
    """What ``src`` writes, as read by ``dst``; ``slot`` is set exactly when ``dst`` is a head."""

    src: Node
    dst: Node
    slot: Slot | None = None

    def __str__(self) -> str:
        return f"{self.src}->{self.dst}" + (f"<{self.slot}>" if self.slot else "")


def parse_node(name: str) -> Node:
    """The node called ``name``.

    Raises:
        GraphError: ``name`` is not of the form ``input``, ``a{layer}.h{head}``,
            ``m{layer}`` or ``logits``.

    Examples:
        >>> parse_node("a3.h2")
        Node(kind='head', layer=3, head=2)
    """
    if name in ("input", "logits"):
        return INPUT if name == "input" else LOGITS
    if match := _HEAD.match(name):
        return Node("head", int(match[1]), int(match[2]))
    if match := _MLP.match(name):
        return Node("mlp", int(match[1]))
    raise GraphError(
        f"{name!r} is not a node name; expected input, a{{layer}}.h{{head}}, m{{layer}} or logits, such as a3.h2 or m0"
    )


def parse_edge(name: str) -> Edge:
    """The edge called ``name``.

    Raises:
        GraphError: ``name`` is not of the form ``src->dst``, with ``<q>``, ``<k>`` or ``<v>`` after it exactly
            when ``dst`` is a head.

    Examples:
        >>> str(parse_edge("a0.h1->a3.h2<k>"))
        'a0.h1->a3.h2<k>'
    """
    match = _EDGE.match(name)
    if match is None:
        raise GraphError(f"{name!r} is not an edge name; expected src->dst such as a0.h1->a3.h2<k> or m0->logits")
    edge = Edge(parse_node(match["src"]), parse_node(match["dst"]), match["slot"])  # type: ignore[arg-type]
    if (edge.dst.kind == "head") != (edge.slot is not None):
        need = "needs <q>, <k> or <v> after it" if edge.slot is None else "takes no <q>, <k> or <v>"
        raise GraphError(f"edge {name!r}: the destination {edge.dst} {need}")
    return edge


@dataclass(frozen=True)
class Graph:
    """The graph of a transformer of ``n_layers`` layers with ``n_heads`` heads each.

    ``parallel`` says that attention and MLP of a layer read the same residual
    stream, so that heads do not reach the MLP of their own layer.

    Examples:
        >>> gpt2_small = Graph(n_layers=12, n_heads=12)
        >>> gpt2_small.n_src, gpt2_small.n_dst, gpt2_small.n_edges
        (157, 445, 32491)
    """

    n_layers: int
    n_heads: int
    parallel: bool = False

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise GraphError(f"{name} of a graph must be a whole number, got {value!r}")
        if self.n_layers < 1 or self.n_heads < 1:
            raise GraphError(
                f"a graph needs at least one layer and one head, got n_layers={self.n_layers}, n_heads={self.n_heads}"
            )
        if self.n_src * self.n_dst > MAX_CELLS:
            raise GraphError(
                f"a graph of {self.n_layers} layers with {self.n_heads} heads has {self.n_src} sources and "
                f"{self.n_dst} slots; at most {MAX_CELLS:,} pairs of them are supported"
            )

    @property
    def n_src(self) -> int:
        """Number of sources, ``1 + n_layers (n_heads + 1)``."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_dst(self) -> int:
        """Number of slots, ``n_layers (3 n_heads + 1) + 1``."""
        return self.n_layers * (3 * self.n_heads + 1) + 1

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.valid.sum())

    @cached_property
    def src_nodes(self) -> tuple[Node, ...]:
        """All sources in topological order, ``input`` first."""
        nodes = [INPUT]
        for layer in range(self.n_layers):
            nodes += [Node("head", layer, head) for head in range(self.n_heads)]
            nodes.append(Node("mlp", layer))
        return tuple(nodes)

    @cached_property
    def dst_slots(self) -> tuple[tuple[Node, Slot | None], ...]:
        """All slots in topological order: per layer q, k, v of every head, then the MLP; ``logits`` last."""
        slots: list[tuple[Node, Slot | None]] = []
        for layer in range(self.n_layers):
            slots += [(Node("head", layer, head), slot) for slot in SLOTS for head in range(self.n_heads)]
            slots.append((Node("mlp", layer), None))
        return (*slots, (LOGITS, None))

    @cached_property
    def src_names(self) -> tuple[str, ...]:
        """The names of ``src_nodes``; with ``slot_names`` an edge's name is ``src->slot``."""
        return tuple(map(str, self.src_nodes))

    @cached_property
    def slot_names(self) -> tuple[str, ...]:
        """The names of ``dst_slots``, as they follow the arrow of an edge: ``a0.h1<q>``, ``m0``, ``logits``."""
        return tuple(f"{node}<{slot}>" if slot else str(node) for node, slot in self.dst_slots)

    @cached_property
    def valid(self) -> np.ndarray:
        """Which source reaches which slot; bool, shape ``[n_src, n_dst]``, read-only."""
        reach = np.array([self.n_reaching(slot) for slot in range(self.n_dst)])
        valid = np.arange(self.n_src)[:, None] < reach[None, :]
        valid.setflags(write=False)
        return valid

    @cached_property
    def slots_by_source(self) -> tuple[tuple[int, ...], ...]:
        """The slots through which each source reads: none for ``input``, three for a head, one for an MLP."""
        slots: list[tuple[int, ...]] = [()]
        for layer in range(self.n_layers):
            first = self.head_slots_of(layer).start
            slots += [tuple(first + i * self.n_heads + head for i in range(len(SLOTS))) for head in range(self.n_heads)]
            slots.append((self.mlp_slot_of(layer),))
        return tuple(slots)

    @cached_property
    def source_of_slot(self) -> np.ndarray:
        """The source that reads through each slot; ``n_src`` for ``logits``, which is no source. Read-only."""
        sources = np.full(self.n_dst, self.n_src)
        for src, slots in enumerate(self.slots_by_source):
            sources[list(slots)] = src
        sources.setflags(write=False)
        return sources

    def slots_of(self, sources: np.ndarray) -> np.ndarray:
        """The slots of the given sources, bool ``[n_src]``, and ``logits``; bool, shape ``[n_dst]``."""
        return np.append(sources, True)[self.source_of_slot]

    def sources_of(self, slots: np.ndarray | np.bool) -> np.ndarray:
        """The sources that read through the given slots, bool ``[n_dst]``; bool, shape ``[n_src]``."""
        sources = np.zeros(self.n_src + 1, dtype=bool)
        sources[self.source_of_slot[slots]] = True
        return sources[:-1]

    def permuted_heads(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sources and slots with the heads of every layer permuted at random, which maps the graph onto itself."""
        sources, slots = np.arange(self.n_src), np.arange(self.n_dst)
        for layer in range(self.n_layers):
            order = rng.permutation(self.n_heads)
            sources[self.heads_of(layer)] = sources[self.heads_of(layer)][order]
            of_heads = slots[self.head_slots_of(layer)].reshape(len(SLOTS), self.n_heads)
            slots[self.head_slots_of(layer)] = of_heads[:, order].ravel()
        return sources, slots

    def n_reaching(self, slot: int) -> int:
        """How many of the first sources reach this slot; they are always a prefix of ``src_nodes``."""
        layer, place = divmod(slot, 3 * self.n_heads + 1)
        if layer == self.n_layers:
            return self.n_src
        before = 1 + layer * (self.n_heads + 1)
        is_mlp = place == 3 * self.n_heads
        return before + self.n_heads if is_mlp and not self.parallel else before

    def heads_of(self, layer: int) -> slice:
        """The sources that are this layer's heads."""
        start = 1 + layer * (self.n_heads + 1)
        return slice(start, start + self.n_heads)

    def mlp_of(self, layer: int) -> int:
        """The source that is this layer's MLP."""
        return (layer + 1) * (self.n_heads + 1)

    def head_slots_of(self, layer: int) -> slice:
        """The slots of this layer's heads: q of all heads, then k, then v."""
        start = layer * (3 * self.n_heads + 1)
        return slice(start, start + 3 * self.n_heads)

    def mlp_slot_of(self, layer: int) -> int:
        """The slot of this layer's MLP."""
        return layer * (3 * self.n_heads + 1) + 3 * self.n_heads

    def slot_layer(self, slot: int) -> int:
        """The layer of a slot; ``n_layers`` for ``logits``."""
        return slot // (3 * self.n_heads + 1)

    def index(self, edge: Edge | str) -> tuple[int, int]:
        """Row and column of an edge in arrays of shape ``[n_src, n_dst]``.

        Raises:
            GraphError: the edge is not in this graph.
        """
        if isinstance(edge, str):
            if (place := self._place_of(edge)) is not None:
                return place
            edge = parse_edge(edge)
        if edge.src == LOGITS:
            raise GraphError(f"edge {edge}: logits writes nothing, it cannot be a source")
        if edge.dst == INPUT:
            raise GraphError(f"edge {edge}: input reads nothing, it cannot be a destination")
        src, dst = self.src_index(edge.src), self._slot_index(edge)
        if not self.valid[src, dst]:
            raise GraphError(
                f"edge {edge}: {edge.src} does not come before {edge.dst}"
                + (" (attention and MLP are parallel in this model)" if self.parallel else "")
            )
        return src, dst

    def _place_of(self, name: str) -> tuple[int, int] | None:
        """Row and column by the two halves of a name, without parsing it; None for names to be parsed for faults."""
        sources, slots = self._places
        src, _, dst = name.partition("->")
        row, column = sources.get(src), slots.get(dst)
        return (row, column) if row is not None and column is not None and self.valid[row, column] else None

    @cached_property
    def _places(self) -> tuple[dict[str, int], dict[str, int]]:
        return tuple({name: i for i, name in enumerate(names)} for names in (self.src_names, self.slot_names))  # type: ignore[return-value]

    def src_index(self, node: Node | str) -> int:
        """Place of a source in ``src_nodes``.

        Raises:
            GraphError: the node is not a source of this graph.
        """
        node = parse_node(node) if isinstance(node, str) else node
        if node == INPUT:
            return 0
        if node == LOGITS:
            raise GraphError("logits is not a source; sources are input, a{layer}.h{head} and m{layer}")
        self._check_node(node)
        return self.heads_of(node.layer).start + node.head if node.kind == "head" else self.mlp_of(node.layer)

    def _slot_index(self, edge: Edge) -> int:
        node = edge.dst
        if node == LOGITS:
            return self.n_dst - 1
        self._check_node(node)
        if node.kind == "mlp":
            return self.mlp_slot_of(node.layer)
        assert edge.slot is not None, "parse_edge and edge() never leave a head without a slot"
        return self.head_slots_of(node.layer).start + SLOTS.index(edge.slot) * self.n_heads + node.head

    def _check_node(self, node: Node) -> None:
        if not (0 <= node.layer < self.n_layers and (node.kind == "mlp" or 0 <= node.head < self.n_heads)):
            raise GraphError(
                f"node {node} is not in this model, which has layers 0 to {self.n_layers - 1} "
                f"and heads 0 to {self.n_heads - 1}"
            )

    def edge(self, src: int, dst: int) -> Edge:
        """The edge at a row and a column; the inverse of ``index``."""
        node, slot = self.dst_slots[dst]
        return Edge(self.src_nodes[src], node, slot)

    def edges(self) -> Iterator[Edge]:
        """All edges, by slot in topological order, then by source."""
        for dst in range(self.n_dst):
            for src in range(self.n_reaching(dst)):
                yield self.edge(src, dst)
