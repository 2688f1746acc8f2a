"""Exact patching: every edge's own effect, from one patched forward pass per edge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution.eap import n_rows_of, report
from persona_circuits.circuit.attribution.parts import ScoreParts
from persona_circuits.circuit.forward import Ablation, Prepared, measure_rows, prepare_each
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric

__all__ = ["exact", "exact_rows", "rows_of_all"]


def exact(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    *,
    ablation: Ablation | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Exact patching: m(edge ablated) - m(clean) for every edge, by a patched pass from the edge's layer on.

    Parameters
    ----------
    batches, metric, ablation
        As for ``eap``.
    progress
        Called with the number of edges done and their total, over all batches.

    Returns
    -------
    The exact score of every edge, in the metric's unit, mean over prompts.

    Examples
    --------
    >>> scores = exact(model, batches(encode(task, model), 8, "cpu"), METRICS["logit-diff"])
    >>> round(scores["a1.h3->logits"], 2)
    -4.0
    """
    graph = model.graph
    total, done = np.zeros(graph.valid.shape), 0
    for item in prepare_each(model, batches, ablation):
        whole = metric(item.clean.logits, item.targets).cpu().double().sum().item()
        for slot in range(graph.n_dst):
            masks = _LazyMasks(graph, slot)
            total[: len(masks), slot] += sum(measure_rows(model, [item], masks, metric).values()) - whole
            done += len(masks)
            report(progress, done, graph.n_edges * len(batches))
    return Scores(graph, parallel.summed(total) / n_rows_of(batches))


def exact_rows(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    ablation: Ablation | None,
    progress: Progress | None,
) -> ScoreParts:
    """What ``exact`` averages, row by row."""
    graph, done = model.graph, 0
    rows_by_index: dict[int, np.ndarray] = {}
    for item in prepare_each(model, batches, ablation):
        whole = metric(item.clean.logits, item.targets).cpu().double().numpy()
        rows = np.zeros((len(item.batch), *graph.valid.shape), dtype=np.float32)
        for slot in range(graph.n_dst):
            masks = _LazyMasks(graph, slot)
            columns = measure_rows(model, [item], masks, metric)
            for i, index in enumerate(item.batch.indices):
                rows[i, : len(masks), slot] = columns[index] - whole[i]
            done += len(masks)
            report(progress, done, graph.n_edges * len(batches))
        rows_by_index |= dict(zip(item.batch.indices, rows, strict=True))
    return rows_of_all(rows_by_index, graph)


def rows_of_all(rows: dict[int, np.ndarray], graph: Graph) -> ScoreParts:
    """Every process's rows, in the order of their index."""
    every = parallel.gathered(rows)
    order = sorted(every)
    return ScoreParts(graph, "row", tuple(map(str, order)), np.stack([every[index] for index in order]))


class _LazyMasks(Sequence[np.ndarray]):
    """For every edge into one slot, the mask of all edges but that one; made lazily."""

    def __init__(self, graph: Graph, slot: int) -> None:
        self.graph, self.slot = graph, slot

    def __len__(self) -> int:
        return self.graph.n_reaching(self.slot)

    def __getitem__(self, src: int) -> np.ndarray:  # type: ignore[override]
        if not 0 <= src < len(self):
            raise IndexError(src)
        mask = self.graph.valid.copy()
        mask[src, self.slot] = False
        return mask
