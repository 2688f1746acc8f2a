"""Chosen heads in detail: what their queries and keys, and their values, carry, and why they attend where they do.

Parts: the circuit without what a head's query and key read, so that it attends as in the ablated run, and without what
its value reads, so that it moves what is there in that run.

Attention: the score of a key at the answer's place, q . k before the softmax, is a sum over the sources that write the
query, and over those that write the key, with the scales of norms frozen (``model.scores``). Their mean over all keys
is subtracted, as attention depends on differences alone, and scores are averaged over a part of the prompt, weighted by
the head's attention to each of its tokens. The report gives persona A's run minus persona B's, mean over pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from persona_circuits.circuit.evaluation.faithfulness import pairwise
from persona_circuits.circuit.evaluation.node_sets import Share, nodes_named, share_of
from persona_circuits.circuit.figures import plain
from persona_circuits.circuit.forward import Prepared, measure, run
from persona_circuits.circuit.graph import Graph, Node, Slot
from persona_circuits.circuit.model import Model, score_terms
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Interval, PairSample, interval, weighted_mean
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Row
from persona_circuits.metrics import Metric

__all__ = ["Attended", "HeadPart", "OpenedHeads", "attended", "head_parts", "heads_of"]

PARTS: dict[str, tuple[Slot, ...]] = {"query-key": ("q", "k"), "value-output": ("v",)}
REST = "biases"
MOST_PAIRS = 16
"""Pairs whose attention is decomposed."""


@dataclass(frozen=True)
class HeadPart:
    """A head's query and key, or its value: the circuit's edges into it, their scores, and what is lost without."""

    head: str
    part: str
    n_edges: int
    score: float | None
    lost: Share


@dataclass(frozen=True)
class Attended:
    """A head and a part of the prompt: how much of the attention it has, the score, and what makes the difference.

    ``query`` and ``key`` are of every source and of what belongs to none (``biases``); either sums to ``score``, A
    minus B. ``attention_a`` and ``attention_b`` are shares of the attention at the answer. ``interval`` is that of
    ``score`` over pairs, None where some pairs have no such part.
    """

    head: str
    span: str
    attention_a: float
    attention_b: float
    score: float
    interval: Interval | None
    query: Mapping[str, float]
    key: Mapping[str, float]


@dataclass(frozen=True)
class OpenedHeads:
    """``parts`` on ``n_pairs`` pairs of a split, ``attended`` on ``n_attended`` of them."""

    parts: tuple[HeadPart, ...]
    attended: tuple[Attended, ...]
    split: str
    n_pairs: int
    n_attended: int
    drawn_over: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in ``heads.json``."""
        return {"format": "persona-circuits/heads", "version": 1, **plain(self)}


def heads_of(names: Sequence[str], graph: Graph) -> list[Node]:
    """Heads by their nodes' names.

    Raises
    ------
    OptionError
        One is no head of this graph.
    """
    last = f"a{graph.n_layers - 1}.h{graph.n_heads - 1}"
    return nodes_named("open-heads", names, graph, "head", "head", f"a0.h0 to {last}")


def head_parts(
    model: Model,
    prepared: Iterable[Prepared],
    metric: Metric,
    circuit: Circuit,
    scores: Scores | None,
    heads: Sequence[Node],
    sample: PairSample,
) -> tuple[HeadPart, ...]:
    """What the circuit loses without what a head's query and key read, and without what its value does."""
    graph, named = model.graph, []
    masks = [Circuit.full(graph).mask, Circuit.empty(graph).mask, circuit.mask]
    for head in heads:
        for part, names in PARTS.items():
            slots = [
                place for place, (node, slot) in enumerate(graph.dst_slots) if node == head and slot in tuple(names)
            ]
            inside = circuit.mask[:, slots]
            score = None if scores is None else float(scores.values[:, slots][inside].sum())
            named.append((str(head), part, int(inside.sum()), score))
            masks.append(circuit.mask.copy())
            masks[-1][:, slots] = False
    full, empty, own, *without = pairwise(measure(model, prepared, masks, metric), metric)
    lost = [share_of((own - row)[None], full - empty, sample) for row in without]
    return tuple(HeadPart(*about, share) for about, share in zip(named, lost, strict=True))


def attended(
    model: Model, rows: Sequence[Row], heads: Sequence[Node], sample: PairSample, *, progress: Progress | None = None
) -> tuple[Attended, ...]:
    """Why heads attend to each part of the prompt, under A minus under B; one prompt at a time.

    Parameters
    ----------
    rows
        One of each pair, A's prompt as the clean one.

    Raises
    ------
    ModelError
        Scores of this architecture are no such sums.
    """
    total: dict[tuple[Node, str], list[np.ndarray]] = {}
    for done, row in enumerate(rows, 1):
        sides = [_side(model, row, turn, heads) for turn in (0, 1)]
        for place in sorted(sides[0].keys() & sides[1].keys(), key=str):
            total.setdefault(place, []).append(np.stack([side[place] for side in sides]))
        if progress is not None:
            progress(done, len(rows))
    by_head = []
    for (head, span), values in total.items():
        a, b = np.mean(values, 0)
        n = model.graph.n_reaching(model.graph.head_slots_of(head.layer).start) + 1
        names = (*model.graph.src_names[: n - 1], REST)
        share_a, change = a[0], a - b
        query, key = (dict(zip(names, change[2 + i * n : 2 + (i + 1) * n].tolist(), strict=True)) for i in (0, 1))
        each = np.array([entry[0, 1] - entry[1, 1] for entry in values])
        known = None
        if 1 < len(each) == len(rows):
            known = interval(partial(weighted_mean, values=each), sample.over(len(each)), seed=sample.seed)
        by_head.append(Attended(str(head), span, float(share_a), float(b[0]), float(change[1]), known, query, key))
    order = [str(head) for head in heads]
    return tuple(
        sorted(by_head, key=lambda entry: (order.index(entry.head), -max(entry.attention_a, entry.attention_b)))
    )


def _side(
    model: Model, row: Row, turn: int, heads: Sequence[Node]
) -> dict[tuple[Node, str], Float[np.ndarray, " number"]]:
    """By head and part of one prompt: attention, score, the query's terms and the keys'."""
    tokens = torch.tensor([row.prompts[turn]], device=model.device)
    spans = (row.spans, row.corrupt_spans)[turn]
    with torch.no_grad():
        at = run(model, *model.start(tokens))
    sides = {}
    for layer in sorted({head.layer for head in heads}):
        n = model.graph.n_reaching(model.graph.head_slots_of(layer).start)
        with torch.no_grad():
            terms = score_terms(model.blocks[layer], at.streams[layer], at.contributions[:n, 0], at.context)
        query, key, score = (term.double().cpu().numpy() for term in terms)
        for head in (head for head in heads if head.layer == layer):
            own = np.concatenate([score[head.head][None], query[:, head.head], key[:, head.head]])
            seen = np.isfinite(own[0])
            own[:, seen] -= own[:, seen].mean(1, keepdims=True)
            pattern = np.where(seen, np.exp(own[0] - own[0][seen].max()), 0.0)
            pattern /= pattern.sum()
            for name in dict.fromkeys(span.name for span in spans):
                places = [i for span in spans if span.name == name for i in range(span.start, span.end) if seen[i]]
                share = pattern[places].sum()
                if places and share > 0:
                    sides[head, name] = np.concatenate([[share], own[:, places] @ (pattern[places] / share)])
    return sides
