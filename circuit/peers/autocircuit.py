"""auto-circuit's files: prompt pairs in its JSON, scores in its layout.

auto-circuit (Miller et al. 2024, arXiv:2407.08734) keeps the scores of all edges as one tensor
for every module that reads the residual stream:

    blocks.{l}.hook_q_input, hook_k_input, hook_v_input    [head, src]
    blocks.{l}.hook_mlp_in                                 [src]
    blocks.{L-1}.hook_resid_post                           [src]     the last stream, our ``logits``

Sources are counted as here: the input, then layer by layer the heads and the MLP. A score is its gradient of -m, summed
over batches: the sign is turned, and a file made from several batches is to be divided by their number. auto-circuit
saves with PyTorch's pickles, which are not read here; ``benchmarks/peers/convert_scores.py`` turns them into
safetensors, and back, inside auto-circuit's own environment.

It writes edges as ``A0.1->A2.3.Q``, ``Resid Start->MLP 0``, ``MLP 1->Resid End``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from persona_circuits.circuit.errors import FileError, GraphError, listed
from persona_circuits.circuit.graph import INPUT, LOGITS, SLOTS, Edge, Graph, Node
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import Kind, read_tensors, write_bytes, write_json
from persona_circuits.circuit.task import Task, without_forms

__all__ = [
    "autocircuit_name",
    "from_prune_scores",
    "prune_scores",
    "read_autocircuit_scores",
    "write_autocircuit_pairs",
    "write_autocircuit_scores",
]

SCORES = Kind("score file", expected="auto-circuit's scores as safetensors")
_SLOT_MODULE = re.compile(r"blocks\.(0|[1-9][0-9]{0,8})\.hook_([qkv])_input\Z")


def write_autocircuit_pairs(task: Task, path: str | Path) -> None:
    """Write pairs as auto-circuit's dataset JSON, ``{"prompts": [...]}``; ``load_task`` reads it too.

    auto-circuit knows no splits, ids or personas; they are left out.

    Raises:
        TaskError: options are sets of forms, of which it knows nothing.
    """
    without_forms(task.pairs, "auto-circuit")
    prompts = [
        {
            "clean": pair.clean,
            "corrupt": pair.corrupt,
            "answers": list(pair.answers),
            "wrong_answers": list(pair.wrong_answers),
        }
        for pair in task.pairs
    ]
    write_json({"prompts": prompts}, path)


def write_autocircuit_scores(scores: Scores, path: str | Path) -> None:
    """Write scores as auto-circuit's, by module, in safetensors (float32, which its masks are).

    Raises:
        GraphError: attention and MLP run in parallel.
    """
    from safetensors.numpy import save

    data = save({name: values.astype(np.float32) for name, values in prune_scores(scores).items()})
    write_bytes(data, path)


def read_autocircuit_scores(path: str | Path, *, n_batches: int = 1) -> Scores:
    """Read auto-circuit's scores by module from safetensors, in this project's sign and scale.

    Parameters
    ----------
    n_batches
        How many batches auto-circuit added up.

    Raises
    ------
    FileError
        The file is missing, a pickle, or does not hold every module of a model.
    """
    path = Path(path)
    if path.suffix.lower() in (".pkl", ".pt", ".pth"):
        raise FileError(
            f"{path} is a PyTorch pickle, which is not read here; in auto-circuit's environment run "
            f"benchmarks/peers/convert_scores.py {path.name} {path.stem}.safetensors"
        )
    try:
        return from_prune_scores(read_tensors(path, SCORES).arrays, n_batches=n_batches)
    except GraphError as error:
        raise FileError(f"score file {path}: {error}") from error


def prune_scores(scores: Scores) -> dict[str, np.ndarray]:
    """Scores as auto-circuit holds them, in its sign; float64.

    Raises:
        GraphError: attention and MLP run in parallel, which auto-circuit orders differently.
    """
    graph = scores.graph
    return {
        name: np.ascontiguousarray(-scores.values[:n_sources, slots].T.reshape(*shape))
        for name, (slots, n_sources, shape) in _modules(graph).items()
    }


def from_prune_scores(tensors: Mapping[str, np.ndarray], *, n_batches: int = 1) -> Scores:
    """Scores from auto-circuit's, by module; the graph is read off the shapes.

    Raises:
        GraphError: a module is missing, has another shape than its place asks for, or holds a number that is not
            finite (auto-circuit's ACDC marks what it keeps with infinity).
    """
    graph = _graph_of(tensors)
    expected = _modules(graph)
    faults = [f"{name} is missing" for name in expected if name not in tensors]
    faults += [f"{name} is not a module of this model" for name in tensors if name not in expected]
    faults += [
        f"{name} has the shape {list(tensors[name].shape)}, expected {list(shape)}"
        for name, (_, _, shape) in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if faults:
        raise GraphError(listed(f"{len(faults)} fault(s) in auto-circuit's scores:", faults))
    values = np.zeros(graph.valid.shape)
    for name, (slots, n_sources, _) in expected.items():
        flat = np.asarray(tensors[name], dtype=np.float64).reshape(-1, n_sources)
        values[:n_sources, slots] = -flat.T / n_batches
    return Scores(graph, values)


def autocircuit_name(edge: Edge) -> str:
    """auto-circuit's name of an edge.

    Examples:
        >>> from persona_circuits.circuit.graph import parse_edge
        >>> autocircuit_name(parse_edge("a0.h1->a2.h3<q>"))
        'A0.1->A2.3.Q'
    """
    return f"{_peer_node(edge.src)}->{_peer_node(edge.dst)}" + (f".{edge.slot.upper()}" if edge.slot else "")


def _modules(graph: Graph) -> dict[str, tuple[slice, int, tuple[int, ...]]]:
    """For every module that reads: its slots here, how many sources reach it, and the shape of its scores."""
    if graph.parallel:
        raise GraphError(
            "attention and MLP of this model run in parallel; auto-circuit's layout of such models is not mapped"
        )
    modules: dict[str, tuple[slice, int, tuple[int, ...]]] = {}
    for layer in range(graph.n_layers):
        start = graph.head_slots_of(layer).start
        for i, slot in enumerate(SLOTS):
            slots = slice(start + i * graph.n_heads, start + (i + 1) * graph.n_heads)
            n_sources = graph.n_reaching(start)
            modules[f"blocks.{layer}.hook_{slot}_input"] = (slots, n_sources, (graph.n_heads, n_sources))
        place = graph.mlp_slot_of(layer)
        n_sources = graph.n_reaching(place)
        modules[f"blocks.{layer}.hook_mlp_in"] = (slice(place, place + 1), n_sources, (n_sources,))
    last = graph.n_dst - 1
    modules[f"blocks.{graph.n_layers - 1}.hook_resid_post"] = (slice(last, last + 1), graph.n_src, (graph.n_src,))
    return modules


def _graph_of(tensors: Mapping[str, np.ndarray]) -> Graph:
    layers = [int(match[1]) for name in tensors if (match := _SLOT_MODULE.match(name))]
    first = tensors.get("blocks.0.hook_q_input")
    if not layers or first is None or first.ndim != 2:
        raise GraphError(
            "not auto-circuit's scores of a factorized model with separate q, k and v: "
            "expected a tensor [head, src] called blocks.0.hook_q_input"
        )
    return Graph(max(layers) + 1, first.shape[0])


def _peer_node(node: Node) -> str:
    if node == INPUT:
        return "Resid Start"
    if node == LOGITS:
        return "Resid End"
    return f"A{node.layer}.{node.head}" if node.kind == "head" else f"MLP {node.layer}"
