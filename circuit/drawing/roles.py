"""What heads do in a circuit, where its scores make that plain: read the input, write the answer, or neither."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from persona_circuits.circuit.graph import Node
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["ROLES", "Role", "roles_of"]

PLAIN = 2 / 3  # of |score|; at most the rest of it is plainly not


class Role(NamedTuple):
    """How a head of a role looks, and what the legend says of it. Heads of a layer stand in the order of ``ROLES``."""

    fill: str
    style: str
    says: tuple[str, ...]


READER, BOTH, BETWEEN, UNCLEAR, WRITER = "reader", "both", "between", "", "writer"
ROLES = {
    READER: Role("#E1EAF5", "filled", ("reads the input: 2/3 of what", "enters comes from there")),
    BOTH: Role("#EADFF0", "filled,bold", ("both",)),
    BETWEEN: Role("#FFFFFF", "filled,dashed", ("between: at most 1/3 of either",)),
    UNCLEAR: Role("#FFF6DC", "filled", ()),
    WRITER: Role("#FBDCCB", "filled,bold", ("writes the answer: 2/3 of what", "leaves goes to the logits")),
}


def roles_of(circuit: Circuit, scores: Scores | None) -> dict[Node, str]:
    """The role of every head whose edges' ``|score|`` make one plain; none where all have the same one.

    A head reads the input where at least two thirds of the ``|score|`` that enters it are on edges from ``input``, and
    does not where at most a third is; it writes the answer by those that leave it for ``logits``.

    Examples
    --------
    >>> graph = Graph(2, 1)
    >>> names = ["input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits"]
    >>> circuit, scores = Circuit.of(graph, names), Scores(graph, graph.valid.astype(float))
    >>> {str(node): role for node, role in roles_of(circuit, scores).items()}
    {'a0.h0': 'reader', 'a1.h0': 'writer'}
    """
    if scores is None:
        return {}
    sizes, graph, roles = np.abs(scores.values) * circuit.mask, circuit.graph, {}
    for src, node in enumerate(graph.src_nodes):
        slots = list(graph.slots_by_source[src])
        into, out = sizes[:, slots].sum(), sizes[src].sum()
        if node.kind != "head" or not into or not out:
            continue
        shares = sizes[0, slots].sum() / into, sizes[src, -1] / out
        if all(max(share, 1 - share) >= PLAIN for share in shares):
            reads, writes = (share >= PLAIN for share in shares)
            roles[node] = BOTH if reads and writes else READER if reads else WRITER if writes else BETWEEN
    return roles if len(set(roles.values())) > 1 else {}
