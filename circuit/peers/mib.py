"""The layout of submissions to the circuit track of MIB (Mueller et al. 2025, arXiv:2504.13151), in and out.

A submission has one folder per task and model, such as ``ioi_gpt2/``, which holds either

    importances.json      the importance of every edge, or of every node
    nine *.json           circuits with at most .1, .2, .5, 1, 2, 5, 10, 20 and 50 % of all edges

Each file is EAP-IG's JSON: ``cfg`` with n_layers, n_heads, parallel_attn_mlp and d_model, ``nodes``
and ``edges`` by name with ``in_graph`` and, for importances, ``score``. Importances are of the
opposite sign of our scores: MIB attributes a loss, -m, so that an edge whose corruption lowers the
metric is positive. MIB takes PyTorch's pickles (``.pt``) too; they are neither written nor read here.

MIB's f, CPR and CMD are those of ``circuit.evaluation.curves.report``: the first int(k n) edges, dead ends dropped, f a
ratio of means, trapezoids over the requested shares (not over those left). Its evaluation has a switch
for a logarithmic axis, ``area(..., log=True)``. Beside f it reports how many edges are left, each
weighted by the share of its source's neurons that are kept; without neurons that is their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from persona_circuits.circuit.errors import FileError, ModelError
from persona_circuits.circuit.evaluation.curves import SHARES, NodeScores, Scorer, ranked_edges
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import read_circuit
from persona_circuits.circuit.model import load_reader
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import Kind, is_number, read_json, replace_folder, write_json
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["read_submission", "stream_width", "weighted_edge_count", "write_circuits", "write_importances"]

IMPORTANCES = "importances.json"
SUBMISSION = Kind("file of a submission")
NO_SCORE = float("nan")


def write_importances(scores: Scores | NodeScores, folder: str | Path, *, d_model: int) -> None:
    """Write ``importances.json`` of edges, or of nodes, into a folder of a submission, in MIB's sign.

    A node without a score is written without one: MIB always keeps it.

    Raises:
        FileError: the folder cannot be written.
    """
    with replace_folder(folder) as staging:
        write_json(_content(scores, Circuit.empty(scores.graph), d_model), staging / IMPORTANCES, indent=None)


def write_circuits(scores: Scores, folder: str | Path, *, d_model: int, signed: bool = False) -> None:
    """Write the nine circuits of the shares below 1 into a folder of a submission, without dead ends.

    Raises:
        FileError: the folder cannot be written.
    """
    src, dst = ranked_edges(scores, signed=signed)
    with replace_folder(folder) as staging:
        for share in SHARES[:-1]:
            n = int(share * len(src))
            circuit = Circuit.at(scores.graph, src[:n], dst[:n]).without_dead_ends()
            write_json(_content(None, circuit, d_model), staging / f"circuit-{share:g}.json", indent=None)


def read_submission(path: str | Path) -> Scorer:
    """Read one folder of a submission, or one file of importances, as what gives a curve.

    Returns
    -------
    ``Scores`` or ``NodeScores``, in our sign, or the nine circuits.

    Raises
    ------
    FileError
        There is no JSON, or neither one of importances nor nine circuits; a file is at fault; neurons
        have scores of their own, which no pass here can tell apart.
    """
    path = Path(path)
    files = [path] if not path.is_dir() else sorted(path.glob("*.json"))
    if not files or path.suffix.lower() in (".pt", ".pth"):
        pickles = path.suffix.lower() in (".pt", ".pth") or (path.is_dir() and any(path.glob("*.pt")))
        why = "PyTorch pickles are not read here; write JSON with to_json of EAP-IG" if pickles else "no JSON is there"
        raise FileError(f"{path} cannot be read as a submission to MIB: {why}")
    if len(files) == 1:
        return _importances(files[0])
    if len(files) != len(SHARES) - 1:
        raise FileError(f"{path} holds {len(files)} JSON files; expected one of importances, or nine circuits")
    return tuple(_circuit(file) for file in files)


def weighted_edge_count(circuit: Circuit, neurons: Bool[np.ndarray, "src d_model"] | None = None) -> float:
    """The number of edges, each counting as the share of its source's neurons that are kept; all where None."""
    if neurons is None:
        return float(len(circuit))
    return float(circuit.mask.sum(axis=1) @ neurons.mean(axis=1))


def stream_width(model: str) -> int:
    """``d_model`` of a Hugging Face model, from its configuration alone.

    Raises:
        ModelError: there is no such model, or its configuration does not say.
    """
    try:
        return int(load_reader(model)[0].get_text_config().hidden_size)
    except Exception as error:  # on damaged files the library fails in every way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"MIB's files name the width of the residual stream, and the configuration of {model} does not give it "
            f"({reason}); run where that model is"
        ) from error


def _content(scores: Scores | NodeScores | None, circuit: Circuit, d_model: int) -> dict[str, Any]:
    graph, inside = circuit.graph, {str(node) for node in circuit.nodes()}
    names = [*map(str, graph.src_nodes), "logits"]
    nodes: dict[str, dict[str, Any]] = {name: {"in_graph": name in inside} for name in names}
    edges: dict[str, dict[str, Any]] = {
        str(edge): {"in_graph": bool(circuit.mask[graph.index(edge)])} for edge in graph.edges()
    }
    if isinstance(scores, Scores):
        for name, score in scores.as_dict().items():
            edges[name]["score"] = 0.0 - score
    elif scores is not None:
        for name, score in zip(names[:-1], scores.values.tolist(), strict=True):
            nodes[name] |= {} if np.isnan(score) else {"score": 0.0 - score}
    if not isinstance(scores, Scores):
        edges = {name: {"score": 0.0, **info} for name, info in edges.items()}
    return {"cfg": _config(graph, d_model), "nodes": nodes, "edges": edges}


def _config(graph: Graph, d_model: int) -> dict[str, Any]:
    shape = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel}
    return {**shape, "d_model": d_model}


def _importances(path: Path) -> Scores | NodeScores:
    stored = read_circuit(path)
    if stored.record is not None:
        raise FileError(f"{path} is a circuit.json of this program, not a submission to MIB")
    assert stored.scores is not None
    graph, nodes = stored.circuit.graph, _nodes(path)
    if stored.scores.values.any():
        return Scores(graph, 0.0 - stored.scores.values)
    values = [nodes.get(str(node), {}).get("score", NO_SCORE) for node in graph.src_nodes]
    if not all(is_number(value) for value in values if value is not NO_SCORE):
        raise FileError(f"{path}: the score of a node is not a number")
    if np.isnan(values).all():
        raise FileError(f"{path} gives no edge and no node an importance; a single file of a submission must")
    return NodeScores(graph, 0.0 - np.array(values, dtype=np.float64))


def _circuit(path: Path) -> Circuit:
    stored = read_circuit(path)
    if stored.record is not None:
        raise FileError(f"{path} is a circuit.json of this program, not a circuit of a submission to MIB")
    _nodes(path)
    return stored.circuit


def _nodes(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """``nodes`` of a file that ``read_circuit`` has checked, as far as that goes."""
    nodes = read_json(path, SUBMISSION)["nodes"]
    if not isinstance(nodes, dict) or not all(isinstance(info, dict) for info in nodes.values()):
        raise FileError(f"{path}: nodes: expected an object of objects, as EAP-IG writes it")
    if any("neurons" in info or "neurons_scores" in info for info in nodes.values()):
        raise FileError(f"{path} tells neurons apart; circuits here are made of edges and nodes")
    return nodes
