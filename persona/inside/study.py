"""What the nodes of a circuit do, as plain values for the page.

On all pairs of the held-out split, up to ``MOST_PAIRS``:

    direct effect   of a node on D: what it writes at the answer's place, read in the direction of the options'
                    difference with each run's own final-norm scale, under A less under B (``persona.lens``); over all
                    nodes and attention biases they sum to D
    lens            D read off the stream after every block

and on one of them, the pair whose D is the median one:

    attention       pattern, size of what is moved, and the direct effect by key (``heads``)
    tokens          logits at the answer's place with the node's output less those without it, centred
    neurons         an MLP's direct effect by neuron: activation times gradient, exact as the down projection is linear
    signal          |h_A - h_B| over the mean of both lengths, by point and token counted from the end
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.graph import Node
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Row, Task, encode
from persona_circuits.persona.inside.heads import attention_of
from persona_circuits.persona.lens.readout import read_out
from persona_circuits.persona.streams import trace

__all__ = ["look_inside"]

MOST_PAIRS, MOST_HEADS = 16, 64
"""Pairs that are averaged; heads with their attention, those of the largest direct effect."""
N_TOKENS, N_NEURONS, N_WORDS = 5, 8, 3


@dataclass(frozen=True, eq=False)
class _Side:
    """One prompt: its streams ``[point, pos, d_model]``, what sources wrote at the answer's place, and the read-out."""

    ids: tuple[int, ...]
    streams: Float[Tensor, "point pos d_model"]
    parts: Float[Tensor, "src d_model"]
    reader: Float[Tensor, " d_model"]

    @property
    def direct(self) -> Float[Tensor, " src"]:
        return self.parts @ self.reader


def look_inside(
    model: Model, task: Task, circuit: Circuit, *, align: str = "equal", progress: Progress | None = None
) -> dict[str, Any]:
    """What ``inside.json`` holds; ``page`` shows it.

    Parameters
    ----------
    task
        Pairs; those of the split ``test`` are looked at, or all where there is none.
    circuit
        Its nodes are looked into.

    Raises
    ------
    TaskError
        The pairs do not fit the model.
    """
    split = "test" if "test" in task.splits else "all"
    part = task.of_split("test") if split == "test" else task
    rows = encode(part, model, align=align)[:MOST_PAIRS]
    divergences, direct, lens = [], [], []
    for done, row in enumerate(rows, 1):
        a, b = (_side(model, row, turn) for turn in (0, 1))
        direct.append((a.direct - b.direct).double().cpu().numpy())
        lens.append([x - y for x, y in zip(_margins(model, a, row), _margins(model, b, row), strict=True)])
        divergences.append(lens[-1][-1])
        (progress or untold)(done, len(rows) + 1)
    mean, whole = np.mean(direct, 0), float(np.mean(divergences))
    middle = int(np.argsort(divergences)[(len(rows) - 1) // 2])
    row = rows[middle]
    sides = _side(model, row, 0), _side(model, row, 1)
    pair = part.pairs[row.index]
    nodes = [node for node in circuit.nodes() if node.kind in ("head", "mlp")]
    record = {
        "fingerprint": model.fingerprint,
        "split": split,
        "n_pairs": len(rows),
        "divergence": whole,
        "example": {
            "id": pair.id,
            "tokens_a": _texts(model, row.clean),
            "tokens_b": _texts(model, row.corrupt),
            "answers": list(pair.answers),
            "wrong_answers": list(pair.wrong_answers),
            "divergence": divergences[middle],
        },
        "nodes": _nodes(model, row, sides, nodes, mean, whole),
        "signal": _signal(*sides),
        "lens": _lens(model, sides, np.mean(lens, 0)),
    }
    (progress or untold)(len(rows) + 1, len(rows) + 1)
    return record


def _side(model: Model, row: Row, turn: int) -> _Side:
    ids = (row.clean, row.corrupt)[turn]
    tokens = torch.tensor([ids], device=model.device)
    places = torch.arange(len(ids), device=model.device)[None]
    seen = trace(model, tokens, places, with_parts=True)
    assert seen.parts is not None
    answers, wrong = (torch.tensor([list(texts)], device=model.device) for texts in (row.answers, row.wrong_answers))
    reader = read_out(model, seen.streams[-1, :, -1], answers, wrong)[0]
    return _Side(ids, seen.streams[:, 0], seen.parts[:, 0], reader)


def _margins(model: Model, side: _Side, row: Row) -> list[float]:
    """m read off the stream at the answer's place after every block."""
    with torch.no_grad():
        logits = model.unembed(side.streams[:, -1]).double()
    return (logits[:, list(row.answers)].mean(-1) - logits[:, list(row.wrong_answers)].mean(-1)).tolist()


def _nodes(
    model: Model, row: Row, sides: tuple[_Side, _Side], nodes: Sequence[Node], mean: np.ndarray, whole: float
) -> dict[str, Any]:
    places = {node: model.graph.src_index(node) for node in nodes}
    strongest = sorted((node for node in nodes if node.kind == "head"), key=lambda node: -abs(mean[places[node]]))
    entries: dict[str, Any] = {}
    for node in nodes:
        effect = float(mean[places[node]])
        entries[str(node)] = {"direct": {"mean": _short(effect), "share": _short(effect / whole) if whole else None}}
        for key, side in zip("ab", sides, strict=True):
            up, down = _promoted(model, side, places[node])
            entries[str(node)] |= {f"up_{key}": up, f"down_{key}": down}
        if node.kind == "mlp" and (neurons := _neurons(model, sides, node.layer)):
            entries[str(node)]["neurons"] = neurons
    _add_attention(model, row, sides, strongest[:MOST_HEADS], entries)
    return entries


def _add_attention(
    model: Model, row: Row, sides: tuple[_Side, _Side], heads: Sequence[Node], entries: dict[str, Any]
) -> None:
    for layer in sorted({node.layer for node in heads}):
        for key, side in zip("ab", sides, strict=True):
            tokens = torch.tensor([side.ids], device=model.device)
            with torch.no_grad():
                seen = attention_of(model.blocks[layer], side.streams[layer][None], model.start(tokens)[1], side.reader)
            for node in (n for n in heads if n.layer == layer):
                entries[str(node)] |= {
                    f"pattern_{key}": _bytes(seen.pattern[node.head]),
                    f"values_{key}": [_short(value) for value in seen.sizes[node.head].tolist()],
                    f"moved_{key}": [_short(value) for value in seen.moved[node.head].tolist()],
                }
    for node in heads:
        entries[str(node)]["spans"] = _by_span(row, entries[str(node)])


def _by_span(row: Row, node: dict[str, Any]) -> list[list[Any]]:
    """What is moved from each part of the prompt, under A less under B."""
    shares: dict[str, float] = {}
    for key, sign, spans in (("moved_a", 1.0, row.spans), ("moved_b", -1.0, row.corrupt_spans)):
        for span in spans:
            shares[span.name] = shares.get(span.name, 0.0) + sign * sum(node[key][span.start : span.end])
    return [[name, _short(value)] for name, value in shares.items()]


def _promoted(model: Model, side: _Side, src: int) -> tuple[list[list[Any]], list[list[Any]]]:
    """Tokens whose logits rise and fall the most with what a source writes at the answer's place."""
    final = side.streams[-1, -1]
    with torch.no_grad():
        logits = model.unembed(torch.stack([final, final - side.parts[src]]))
    change = (logits[0] - logits[1]).float()
    change = change - change.mean()
    n = min(N_TOKENS, len(change))
    return _named(model, change.topk(n)), _named(model, (-change).topk(n), sign=-1.0)


def _named(model: Model, top: Any, sign: float = 1.0) -> list[list[Any]]:
    names = _texts(model, top.indices.tolist())
    return [[name, _short(sign * value)] for name, value in zip(names, top.values.tolist(), strict=True)]


def _neurons(model: Model, sides: tuple[_Side, _Side], layer: int) -> list[dict[str, Any]]:
    """An MLP's neurons of the largest direct effect on D; none where the layer's cannot be told."""
    try:
        a, b = (_by_neuron(model, side, layer) for side in sides)
    except ModelError:
        return []
    chosen = (a - b).abs().topk(min(N_NEURONS, len(a))).indices.tolist()
    return [
        {"neuron": i, "direct": _short(float(a[i] - b[i])), "a": _short(float(a[i])), "b": _short(float(b[i]))}
        for i in chosen
    ]


def _by_neuron(model: Model, side: _Side, layer: int) -> Float[Tensor, " neuron"]:
    """What each neuron adds to the read-out at the answer's place."""
    block, kept = model.blocks[layer], []

    def keep(values: Tensor) -> Tensor:
        kept.append(values.detach().requires_grad_())
        return kept[-1]

    resid = side.streams[layer][None]
    with torch.no_grad():
        z = block.attention(
            *(block.project(slot, block.attn_norm(resid)) for slot in "qkv"),
            model.start(torch.tensor([side.ids], device=model.device))[1],
        )
        entering = resid if block.parallel else resid + block.attn_out(z)
    with torch.enable_grad(), block.on_neurons("post", keep):
        (block.mlp(entering[:, -1:])[0, -1] @ side.reader).backward()
    values = kept[-1]
    assert values.grad is not None
    return (values * values.grad).detach().reshape(-1).double().cpu()


def _signal(a: _Side, b: _Side) -> list[list[float]]:
    """|h_A - h_B| over the mean of both lengths, by point and token, counted from the end."""
    n = min(len(a.ids), len(b.ids))
    first, second = a.streams[:, -n:].double(), b.streams[:, -n:].double()
    size = (first.norm(dim=-1) + second.norm(dim=-1)) / 2
    share = (first - second).norm(dim=-1) / size.clamp_min(1e-12)
    return [[_short(value) for value in line] for line in share.tolist()]


def _lens(model: Model, sides: tuple[_Side, _Side], divergence: np.ndarray) -> list[dict[str, Any]]:
    """D after every block, over all pairs, and what either prompt of the example would be answered there."""
    words = []
    for side in sides:
        with torch.no_grad():
            top = model.unembed(side.streams[:, -1]).topk(N_WORDS).indices.tolist()
        words.append([_texts(model, ids) for ids in top])
    return [
        {"divergence": _short(float(value)), "top_a": a, "top_b": b}
        for value, a, b in zip(divergence, *words, strict=True)
    ]


def _texts(model: Model, ids: Sequence[int]) -> list[str]:
    return [model.tokenizer.decode([i]) for i in ids]


def _bytes(pattern: Float[Tensor, "query key"]) -> str:
    """Shares as bytes, in base64: 255 is all of the attention."""
    shares = (pattern.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return base64.b64encode(np.ascontiguousarray(shares).tobytes()).decode()


def _short(value: float) -> float:
    """A number as the page shows it, in four digits."""
    return float(f"{value:.4g}")
