"""Circuits on disk: written atomically, read strictly, checked with every fault named.

    circuit.json            the rich file; its JSON Schema is circuit/schemas/circuit.schema.json
    real_circuits_1.json    exactly {"nodes": ["input", "a0.h1", …]}
    scores.safetensors      every edge's score
    EAP-IG's JSON           {"cfg", "nodes", "edges"}, in and out
    GraphML                 out, for Gephi, Cytoscape and the like

Only ``circuit.json`` and EAP-IG's JSON hold edges; a list of nodes is no circuit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from persona_circuits.circuit.errors import FileError, GraphError, listed
from persona_circuits.circuit.graph import LOGITS, Graph, parse_node
from persona_circuits.circuit.io.validation import schema
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import (
    Kind,
    atomic,
    is_number,
    is_whole,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
)
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit, Spans, SpanScores, to_networkx

__all__ = [
    "StoredCircuit",
    "circuit_record",
    "faults_of",
    "made_of",
    "read_circuit",
    "read_scores",
    "schema_faults",
    "with_parts",
    "write_circuit",
    "write_eap_ig",
    "write_graphml",
    "write_nodes",
    "write_scores",
]

FORMAT = "persona-circuits/circuit"
CIRCUIT = Kind("circuit file")
SCORES = Kind("score file", expected="a scores.safetensors of discover")
MADE = "made of"


@dataclass(frozen=True)
class StoredCircuit:
    """A circuit read from a file.

    ``scores`` are those of the edges the file names. ``record`` is the rich file as it stands, None for EAP-IG's JSON.
    """

    circuit: Circuit
    scores: Scores | None
    record: dict[str, Any] | None
    path: Path

    @property
    def fringe(self) -> Circuit | None:
        """The edges that the file marks as fringe (``evaluation.stability``), or else abstaining; None if none is."""
        edges = (self.record or {"edges": []})["edges"]
        for key, faint in (("part", "fringe"), ("stays", False)):
            if marked := [item for item in edges if key in item]:
                return Circuit.of(self.circuit.graph, (item["edge"] for item in marked if item[key] == faint))
        return None

    @property
    def at_parts(self) -> SpanCircuit | None:
        """At which parts of the prompt the edges are kept, where not at all."""
        if self.record is None or "spans" not in self.record:
            return None
        return _at_parts(self.record, self.circuit.graph)

    @property
    def kept(self) -> Circuit | SpanCircuit:
        """What is to be measured: the circuit, its edges at their parts where they have any."""
        return self.at_parts or self.circuit

    def model_name(self) -> str | None:
        """The model that the file says the circuit is of."""
        return self.record["model"]["name"] if self.record else None


def circuit_record(circuit: Circuit, scores: Scores | None, about: Mapping[str, Any]) -> dict[str, Any]:
    """What ``circuit.json`` holds: the circuit itself, and ``about`` it the remaining keys of the schema."""
    nodes = [str(node) for node in circuit.nodes()]
    known = [None] * len(circuit) if scores is None else scores.values.T[circuit.mask.T].tolist()
    edges = [{"edge": edge, "score": score} for edge, score in zip(circuit.edge_names(), known, strict=True)]
    counts = {
        "nodes": len(nodes),
        "edges": len(edges),
        "graph_nodes": circuit.graph.n_src + 1,
        "graph_edges": circuit.graph.n_edges,
    }
    return {"format": FORMAT, "version": 1, **about, "counts": counts, "nodes": nodes, "edges": edges}


def with_parts(record: dict[str, Any], circuit: SpanCircuit, scores: SpanScores) -> dict[str, Any]:
    """The record with the parts of the prompt at which every edge is kept, and its score there."""
    edges = []
    for item in record["edges"]:
        place = circuit.graph.index(item["edge"])
        here = circuit.spans_of(*place)
        own = {name: float(scores.values[(scores.spans.names.index(name), *place)]) for name in here}
        edges.append({**item, "spans": own})
    return {**record, "edges": edges, "spans": circuit.as_dict()}


def read_circuit(path: str | Path) -> StoredCircuit:
    """Read ``circuit.json`` or EAP-IG's JSON.

    Parameters
    ----------
    path
        The file, or the folder of a run with a ``circuit.json`` in it.

    Returns
    -------
    The circuit, the scores of its edges, and the record that the file holds.

    Raises
    ------
    FileError
        It is missing, broken, of another kind, or faulty; all faults are listed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "circuit.json"
    content = read_json(path, CIRCUIT)
    faults = _faults(content)
    if faults:
        raise FileError(listed(f"circuit file {path} has {len(faults)} fault(s):", faults))
    if _kind(content) == "nodes":
        raise FileError(
            f"{path} lists nodes only; a circuit needs its edges: give the circuit.json that was written beside it"
        )
    return _from_eap_ig(content, path) if _kind(content) == "eap-ig" else _from_record(content, path)


def faults_of(path: str | Path, graph: Graph | None = None) -> list[str]:
    """Every fault of a circuit file of any kind, or of a ``scores.safetensors``, each with its place.

    With a ``graph`` the nodes must also be of that graph. What this finds no fault with, every command reads.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".safetensors":
            own = read_scores(path).graph
            return [] if graph in (None, own) else [f"the scores are of {_describe(own)}, expected {_describe(graph)}"]
        return _faults(read_json(path / "circuit.json" if path.is_dir() else path, CIRCUIT), graph)
    except FileError as error:
        return [str(error)]


def write_circuit(record: Mapping[str, Any], path: str | Path) -> None:
    """Write ``circuit.json`` from a ``circuit_record``, after checking it."""
    faults = _faults(dict(record))
    assert not faults, listed("the program made a circuit record that its own schema refuses:", faults)
    write_json(record, path)


def write_nodes(circuit: Circuit, path: str | Path) -> None:
    """Write ``real_circuits_1.json``: the sources of the circuit, ``input`` first."""
    write_json({"nodes": circuit.src_names()}, path)


def write_scores(scores: Scores, path: str | Path, *, made: Mapping[str, Any] | None = None) -> None:
    """Write all scores as safetensors, float64 ``[n_src, n_dst]``, with the graph's shape and what they are made of."""
    from safetensors.numpy import save

    shape = np.array([scores.graph.n_layers, scores.graph.n_heads, scores.graph.parallel], dtype=np.int64)
    about = None if made is None else {MADE: json.dumps(made, sort_keys=True)}
    write_bytes(save({"graph": shape, "scores": np.ascontiguousarray(scores.values)}, metadata=about), path)


def made_of(path: str | Path) -> dict[str, Any] | None:
    """What the scores of a file were made of; None where it does not say.

    Raises:
        FileError: the file is missing or holds no tensors.
    """
    try:
        made = json.loads(read_tensors(path, SCORES, only=()).metadata.get(MADE, "null"))
    except ValueError:
        return None
    return made if isinstance(made, dict) else None


def read_scores(path: str | Path) -> Scores:
    """Read what ``write_scores`` wrote.

    Raises:
        FileError: the file is missing or holds something else.
    """
    tensors = read_tensors(path, SCORES, only=("graph", "scores")).arrays
    shape, values = tensors.get("graph"), tensors.get("scores")
    if shape is None or values is None or shape.dtype.kind not in "iu" or shape.size != 3:
        raise SCORES.faulty(path, "cannot be used (it has no 'graph' of three whole numbers, or no 'scores')")
    try:
        layers, heads, parallel = (int(value) for value in shape.ravel())
        return Scores(Graph(layers, heads, bool(parallel)), values)
    except GraphError as error:
        raise SCORES.faulty(path, f"cannot be used ({error})") from error


def write_eap_ig(circuit: Circuit, scores: Scores | None, path: str | Path, *, d_model: int | None = None) -> None:
    """Write EAP-IG's JSON: every node and edge of the graph with ``in_graph`` and, for edges, ``score``.

    Scores keep our sign, which is theirs too when their metric is ours. Without scores every edge scores zero.
    """
    graph = circuit.graph
    inside = set(circuit.nodes())
    config = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel}
    head = {
        "cfg": config | ({"d_model": d_model} if d_model else {}),
        "nodes": {str(node): {"in_graph": node in inside} for node in (*graph.src_nodes, LOGITS)},
    }
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head).removesuffix("}") + ', "edges": {')
        file.writelines(_eap_ig_edges(circuit, scores))
        file.write("}}\n")


def _eap_ig_edges(circuit: Circuit, scores: Scores | None) -> Iterator[str]:
    """All edges as JSON, slot by slot, as a large graph has millions and need not be in memory at once."""
    graph = circuit.graph
    for dst, slot in enumerate(graph.slot_names):
        n = graph.n_reaching(dst)
        values = [0.0] * n if scores is None else scores.values[:n, dst].tolist()
        edges = {
            f"{source}->{slot}": {"score": score, "in_graph": kept}
            for source, score, kept in zip(graph.src_names, values, circuit.mask[:n, dst].tolist(), strict=False)
        }
        yield (", " if dst else "") + json.dumps(edges)[1:-1]


def write_graphml(circuit: Circuit, scores: Scores | None, path: str | Path) -> None:
    """Write the circuit as GraphML; attributes as in ``to_networkx``."""
    with atomic(path) as temporary:
        nx.write_graphml(to_networkx(circuit, scores), temporary, named_key_ids=True)


def _kind(content: Any) -> str:
    if isinstance(content, dict) and set(content) == {"nodes"}:
        return "nodes"
    if isinstance(content, dict) and {"cfg", "nodes", "edges"} <= set(content):
        return "eap-ig"
    return "circuit"


def _faults(content: Any, graph: Graph | None = None) -> list[str]:
    kind = _kind(content)
    if kind == "nodes":
        return _node_list_faults(content["nodes"], graph)
    return _eap_ig_faults(content) if kind == "eap-ig" else _record_faults(content, graph)


def _node_list_faults(nodes: Any, graph: Graph | None) -> list[str]:
    if not isinstance(nodes, list) or not all(isinstance(name, str) for name in nodes):
        return ["nodes: expected a list of node names"]
    faults, places = [], []
    for i, name in enumerate(nodes):
        try:
            node = parse_node(name)
            if graph is not None:
                graph.src_index(node)
        except GraphError as error:
            faults.append(f"nodes[{i}]: {error}")
            continue
        if name == "logits":
            faults.append(f"nodes[{i}]: logits is not a source and does not belong here")
        places.append((node.layer, node.kind == "mlp", node.head))
    if nodes[:1] != ["input"]:
        faults.append(f"nodes[0]: expected input first, got {nodes[0] if nodes else 'an empty list'}")
    if len(set(nodes)) < len(nodes):
        repeated = sorted(name for name, count in Counter(nodes).items() if count > 1)
        faults.append(f"nodes: {', '.join(repeated)} more than once")
    if places != sorted(places):
        faults.append("nodes: not in layer order (heads by number, then the MLP, layer by layer)")
    return faults


def _record_faults(content: Any, graph: Graph | None) -> list[str]:
    if faults := schema_faults(content, schema()):
        return faults
    try:
        own = _record_graph(content)
    except GraphError as error:
        return [f"model: {error}"]
    if graph is not None and graph != own:
        faults.append(f"model: the circuit is of {_describe(own)}, expected {_describe(graph)}")
    edges = [item["edge"] for item in content["edges"]]
    for i, name in enumerate(edges):
        try:
            own.index(name)
        except GraphError as error:
            faults.append(f"edges[{i}].edge: {error}")
    if faults:
        return faults
    if len(set(edges)) < len(edges):
        faults.append(f"edges: {len(edges) - len(set(edges))} named more than once")
    circuit = Circuit.of(own, edges)
    if content["nodes"] != [str(node) for node in circuit.nodes()]:
        faults.append("nodes: not the ends of the edges in topological order")
    faults += _part_faults(content, own)
    if (stability := content.get("stability")) is not None:
        for part in ("core", "fringe"):
            marked = sum(item.get("part") == part for item in content["edges"])
            if marked != stability[part]:
                faults.append(f"stability.{part}: {stability[part]}, expected {marked}, the edges so marked")
    expected = {
        "nodes": len(circuit.nodes()),
        "edges": len(circuit),
        "graph_nodes": own.n_src + 1,
        "graph_edges": own.n_edges,
    }
    faults += [
        f"counts.{key}: {content['counts'][key]}, expected {value}"
        for key, value in expected.items()
        if content["counts"][key] != value
    ]
    return faults


def _at_parts(record: Mapping[str, Any], graph: Graph) -> SpanCircuit:
    parts = record["spans"]
    names = tuple(parts["names"])
    spans = Spans(
        names,
        tuple(tuple(name in row for name in names) for row in parts["sees"]),
        tuple(name in parts["read"] for name in names),
    )
    mask = np.zeros((len(names), *graph.valid.shape), dtype=bool)
    for item in record["edges"]:
        for name in item["spans"]:
            mask[(names.index(name), *graph.index(item["edge"]))] = True
    return SpanCircuit(graph, spans, mask)


def _part_faults(content: Mapping[str, Any], graph: Graph) -> list[str]:
    spans, edges = content.get("spans"), content["edges"]
    if spans is None:
        named = [item["edge"] for item in edges if "spans" in item]
        return [f"spans: missing, and {named[0]} is kept at some"] if named else []
    names = set(spans["names"])
    faults = [f"edges[{i}].spans: missing" for i, item in enumerate(edges) if "spans" not in item]
    for i, item in enumerate(edges):
        faults += [f"edges[{i}].spans: {name!r} is not one of spans.names" for name in {*item.get("spans", ())} - names]
    if (
        len(spans["sees"]) != len(names)
        or not {*spans["read"], *(part for row in spans["sees"] for part in row)} <= names
    ):
        faults.append("spans: sees and read must be of the parts that names lists")
    if faults:
        return faults
    try:
        circuit = _at_parts(content, graph)
    except GraphError as error:
        return [f"spans: {error}"]
    counts = {key: circuit.as_dict()[key] for key in ("edges", "graph_edges")}
    return [f"spans.{key}: {spans[key]}, expected {value}" for key, value in counts.items() if spans[key] != value]


def _eap_ig_faults(content: dict[str, Any]) -> list[str]:
    config = content["cfg"]
    if not isinstance(config, dict) or not all(is_whole(config.get(key)) for key in ("n_layers", "n_heads")):
        return ["cfg: expected an object with the whole numbers n_layers and n_heads"]
    if not isinstance(config.get("parallel_attn_mlp", False), bool):
        return ["cfg.parallel_attn_mlp: expected true or false"]
    if not isinstance(content["edges"], dict):
        return ["edges: expected an object of edge names"]
    try:
        graph = _eap_ig_graph(content)
    except GraphError as error:
        return [f"cfg: {error}"]
    faults = []
    for name, info in content["edges"].items():
        try:
            graph.index(name)
        except GraphError as error:
            faults.append(f"edges[{name!r}]: {error}")
        if not isinstance(info, dict) or not isinstance(info.get("in_graph"), bool):
            faults.append(f"edges[{name!r}].in_graph: expected true or false")
        elif not is_number(info.get("score", 0.0)):
            faults.append(f"edges[{name!r}].score: expected a number")
    return faults


def schema_faults(content: Any, schema: Mapping[str, Any]) -> list[str]:
    """The violations of a JSON Schema by a value, each with its place; 2.0 is not a whole number."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    types = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    validator = extend(Draft202012Validator, type_checker=types)(schema)
    errors = sorted(validator.iter_errors(content), key=lambda error: [str(part) for part in error.absolute_path])
    return [f"{_place(error.absolute_path)}: {error.message[:200]}" for error in errors]


def _place(path: Any) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "file"


def _record_graph(record: Mapping[str, Any]) -> Graph:
    model = record["model"]
    return Graph(model["n_layers"], model["n_heads"], model["parallel"])


def _eap_ig_graph(content: Mapping[str, Any]) -> Graph:
    config = content["cfg"]
    return Graph(config["n_layers"], config["n_heads"], bool(config.get("parallel_attn_mlp", False)))


def _describe(graph: Graph) -> str:
    return f"{graph.n_layers} layers with {graph.n_heads} heads" + (" (parallel)" if graph.parallel else "")


def _from_record(content: dict[str, Any], path: Path) -> StoredCircuit:
    graph = _record_graph(content)
    known = {item["edge"]: item["score"] for item in content["edges"] if item["score"] is not None}
    circuit = Circuit.of(graph, (item["edge"] for item in content["edges"]))
    return StoredCircuit(circuit, Scores.of(graph, known) if known else None, content, path)


def _from_eap_ig(content: dict[str, Any], path: Path) -> StoredCircuit:
    graph = _eap_ig_graph(content)
    edges = content["edges"]
    circuit = Circuit.of(graph, (name for name, info in edges.items() if info["in_graph"]))
    scores = Scores.of(graph, {name: float(info.get("score", 0.0)) for name, info in edges.items()})
    return StoredCircuit(circuit, scores, None, path)
