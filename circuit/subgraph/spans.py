"""A circuit whose edges name a part of the prompt: it keeps an edge at the positions of some parts and not of others.

An edge s->d *at* part t is what s writes at the positions of t, as d reads it there. Information moves

    from position to position   through heads alone: what a head's k and v read at a part u reaches what it writes at
                                every part t of which a position is at or after one of u, in some prompt
    within a position           through everything else: an MLP, and a head's q, read at t and write at t
    out                         at the positions that the answer is read from, which edges into ``logits`` are of

A sliding window or the branches of several forms let a head see less than that; what is dropped is what no prompt of
any such model can use. The parts are the pair file's (``task``), or those that a pair's tokens tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_circuits.circuit import parallel
from persona_circuits.circuit.errors import GraphError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.subgraph.edges import Circuit

if TYPE_CHECKING:
    from persona_circuits.circuit.task import Batch

__all__ = ["SpanCircuit", "SpanScores", "Spans"]


@dataclass(frozen=True)
class Spans:
    """Parts of prompts. ``sees[t][u]``: a position of t is at or after one of u; ``read[t]``: t holds an answer's.

    Examples
    --------
    >>> Spans(("persona", "cue"), ((True, False), (True, True)), (False, True)).shown
    'persona, cue'
    """

    names: tuple[str, ...]
    sees: tuple[tuple[bool, ...], ...]
    read: tuple[bool, ...]

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Spans:
        """The parts of these prompts, of all processes, in the order of the pair file."""
        facts: dict[tuple[int, str, str], bool] = {}
        for batch in batches:
            assert batch.spans is not None, "batches number the parts of their prompts"
            names, read = batch.span_names, batch.spans.shape[1] - batch.n_read
            facts |= {(i, name, ""): True for i, name in enumerate(names)}
            for row in batch.spans.tolist():
                ends = {i: (row.index(i), len(row) - 1 - row[::-1].index(i)) for i in set(row) - {-1}}
                facts |= {
                    (i, names[i], f"sees {names[j]}"): True
                    for i, (_, last) in ends.items()
                    for j, (first, _) in ends.items()
                    if first <= last
                }
                facts |= {(i, names[i], "read"): True for i, (_, last) in ends.items() if last >= read}
        facts = parallel.gathered(facts)
        names = tuple(dict.fromkeys(name for _, name in sorted({(i, name) for i, name, _ in facts})))
        known = {(name, what) for _, name, what in facts}
        sees = tuple(tuple((name, f"sees {other}") in known for other in names) for name in names)
        return cls(names, sees, tuple((name, "read") in known for name in names))

    @property
    def shown(self) -> str:
        """Their names."""
        return ", ".join(self.names)

    def valid(self, graph: Graph) -> np.ndarray:
        """Which edges there are at which part; bool ``[part, src, dst]``."""
        valid = np.repeat(graph.valid[None], len(self.names), 0)
        valid[~np.array(self.read, dtype=bool), :, -1] = False
        return valid


@dataclass(frozen=True, eq=False, repr=False)
class SpanCircuit:
    """The kept edges at every part of the prompts; ``mask`` is bool ``[part, n_src, n_dst]``, read-only."""

    graph: Graph
    spans: Spans
    mask: np.ndarray

    def __post_init__(self) -> None:
        mask, valid = np.array(self.mask, dtype=bool), self.spans.valid(self.graph)
        if mask.shape != valid.shape:
            raise GraphError(f"circuit mask of shape {mask.shape}, expected {valid.shape}")
        if (mask & ~valid).any():
            part, src, dst = np.argwhere(mask & ~valid)[0].tolist()
            raise GraphError(f"no edge {self.graph.edge(src, dst)} is at the part {self.spans.names[part]!r}")
        mask.setflags(write=False)
        object.__setattr__(self, "mask", mask)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SpanCircuit) or (self.graph, self.spans) != (other.graph, other.spans):
            return False
        return bool((self.mask == other.mask).all())

    def __hash__(self) -> int:
        return hash((self.graph, self.spans, self.mask.tobytes()))

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __repr__(self) -> str:
        return f"SpanCircuit({len(self):,} edges at parts of the prompt ({self.spans.shown}) of {self.circuit!r})"

    @classmethod
    def everywhere(cls, circuit: Circuit, spans: Spans) -> SpanCircuit:
        """The circuit that has its edges at all parts."""
        return cls(circuit.graph, spans, circuit.mask & spans.valid(circuit.graph))

    @cached_property
    def circuit(self) -> Circuit:
        """The edges that are kept anywhere."""
        return Circuit(self.graph, np.asarray(self.mask.any(0)))

    def complement(self) -> SpanCircuit:
        """What is not kept."""
        return SpanCircuit(self.graph, self.spans, self.spans.valid(self.graph) & ~self.mask)

    def at(self, names: Sequence[str]) -> np.ndarray:
        """The kept edges at the parts that other prompts have, in their order; nothing at parts not known here."""
        none = np.zeros_like(self.graph.valid)
        own = dict(zip(self.spans.names, self.mask, strict=True))
        return np.stack([own.get(name, none) for name in names])

    def spans_of(self, src: int, dst: int) -> list[str]:
        """The parts at which an edge is kept."""
        return [name for name, here in zip(self.spans.names, self.mask[:, src, dst], strict=True) if here]

    def without_dead_ends(self) -> SpanCircuit:
        """What lies on a path from ``input`` to ``logits`` that information can take; it may be empty."""
        graph, mask = self.graph, self.mask
        sees = np.array(self.spans.sees, dtype=bool).reshape(len(mask), len(mask))
        while True:
            alive = _reading(graph, mask, sees) & np.asarray(mask.any(2))
            pruned = mask & alive[:, :, None] & _used(graph, alive, sees)[:, None, :]
            if (pruned == mask).all():
                return SpanCircuit(graph, self.spans, mask)
            mask = pruned

    def as_dict(self) -> dict[str, Any]:
        """The parts, as stored in the circuit's file, whose edges say at which parts they are kept."""
        spans = self.spans
        sees = [[name for name, seen in zip(spans.names, row, strict=True) if seen] for row in spans.sees]
        read = [name for name, here in zip(spans.names, spans.read, strict=True) if here]
        possible = int(spans.valid(self.graph).sum())
        return {"names": list(spans.names), "sees": sees, "read": read, "edges": len(self), "graph_edges": possible}


@dataclass(frozen=True, eq=False)
class SpanScores:
    """A score of every edge at every part, ``[part, src, dst]``: what the positions of the part give of the edge's."""

    graph: Graph
    spans: Spans
    values: np.ndarray

    def threshold(self, tau: float) -> SpanCircuit:
        """Edges at the parts where their ``|score| >= tau``, without dead ends."""
        return self._circuit((np.abs(self.values) >= tau) & self.spans.valid(self.graph))

    def top_n(self, n: int) -> SpanCircuit:
        """The ``n`` largest |score| of edges at parts, without dead ends; ties go to earlier part, slot and source."""
        mask = np.zeros_like(self.values, dtype=bool)
        mask[tuple(place[:n] for place in self._ranked)] = True
        return self._circuit(mask)

    @property
    def n_edges(self) -> int:
        """How many edges at parts there are."""
        return int(self.spans.valid(self.graph).sum())

    @cached_property
    def _ranked(self) -> tuple[np.ndarray, ...]:
        part, src, dst = np.nonzero(self.spans.valid(self.graph))
        order = np.lexsort((src, dst, part, -np.abs(self.values[part, src, dst])))
        return part[order], src[order], dst[order]

    def _circuit(self, mask: np.ndarray) -> SpanCircuit:
        return SpanCircuit(self.graph, self.spans, mask).without_dead_ends()


def _reading(graph: Graph, mask: np.ndarray, sees: np.ndarray) -> np.ndarray:
    """Sources that read something of what they write at a part; bool ``[part, src]``."""
    slots = np.asarray(mask.any(1))
    reading = np.zeros(mask.shape[:2], dtype=bool)
    reading[:, 0] = True
    for layer in range(graph.n_layers):
        q, k, v = np.split(slots[:, graph.head_slots_of(layer)], 3, axis=1)
        reading[:, graph.heads_of(layer)] = q | sees @ (k | v)
        reading[:, graph.mlp_of(layer)] = slots[:, graph.mlp_slot_of(layer)]
    return reading


def _used(graph: Graph, alive: np.ndarray, sees: np.ndarray) -> np.ndarray:
    """Slots whose reads at a part can reach what these sources write; bool ``[part, dst]``."""
    used = np.ones((len(alive), graph.n_dst), dtype=bool)
    for layer in range(graph.n_layers):
        heads = alive[:, graph.heads_of(layer)]
        moved = sees.T @ heads
        used[:, graph.head_slots_of(layer)] = np.concatenate([heads, moved, moved], axis=1)
        used[:, graph.mlp_slot_of(layer)] = alive[:, graph.mlp_of(layer)]
    return used
