"""Named sets of nodes, as the page saves them: ``{"format": "persona-circuits/groups", "groups": {name: [node]}}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from persona_circuits.circuit.errors import FileError, GraphError, listed
from persona_circuits.circuit.graph import Graph, parse_node
from persona_circuits.circuit.storage import Kind, is_text, is_texts, read_json
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["GROUPS", "by_source", "read_groups"]

FORMAT = "persona-circuits/groups"
GROUPS = Kind(
    "file of groups", expected='{"format": "persona-circuits/groups", "version": 1, "groups": {name: [node]}}'
)


def read_groups(path: str | Path, graph: Graph | None = None) -> dict[str, list[str]]:
    """The groups of a file, nodes by name; with a ``graph`` every node must be of it.

    Raises:
        FileError: the file is missing, of another kind, or names what is no node; all faults are listed.
    """
    content = read_json(path, GROUPS)
    groups = content.get("groups") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(groups, dict):
        raise FileError(f"{path} is no {GROUPS.noun}; expected {GROUPS.expected}")
    faults = []
    for name, nodes in groups.items():
        if not is_text(name) or not is_texts(nodes):
            faults.append(f"groups[{name!r}]: expected a list of node names")
            continue
        for node in nodes:
            try:
                parsed = parse_node(node)
                if graph is not None and node != "logits":
                    graph.src_index(parsed)
            except GraphError as error:
                faults.append(f"groups[{name!r}]: {error}")
    if faults:
        raise FileError(listed(f"{path} has {len(faults)} fault(s):", faults))
    return {name: list(dict.fromkeys(nodes)) for name, nodes in groups.items()}


def by_source(circuit: Circuit, groups: Mapping[str, Sequence[str]]) -> dict[str, Circuit]:
    """A circuit's edges by the first group that their source is in; those of none are called ``others``."""
    left, circuits = circuit, {}
    for name, nodes in groups.items():
        chosen = set(nodes)
        own = Circuit.of(circuit.graph, (edge for edge in left if str(edge.src) in chosen))
        if len(own):
            circuits[name], left = own, left - own
    return circuits | ({"others": left} if len(left) else {})
