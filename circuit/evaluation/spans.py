"""Where in the prompt a contrast is carried: scores by part of the prompt, and the effect of the stream there.

Entry share: of all |score| of edges into a layer, the share that lies on each part of the prompt. An edge's score is
split over positions, so this says at which tokens a layer reads the contrast from.

Causal persistence P(l, t) = [m(x_B with h_(l,t) from x_A) - m(x_B)] / [m(x_A) - m(x_B)]: the share of the divergence
that comes with the residual stream into layer l at part t. With swapped rows both directions are in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution import ScoreParts
from persona_circuits.circuit.evaluation.faithfulness import pairwise
from persona_circuits.circuit.forward import Prepared, patched_stream
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.statistics import Interval, PairSample, is_zero
from persona_circuits.circuit.storage import Kept
from persona_circuits.metrics import Metric

__all__ = ["SpanStudy", "entry_shares", "persistence", "span_rows", "span_study"]


@dataclass(frozen=True, eq=False)
class SpanStudy:
    """Shares and persistence by layer and part of the prompt.

    ``entry[l, t]`` (l up to ``n_layers``, the last for edges into the logits) is nan where no edge into the layer has a
    score. ``from_input[l, t]`` is the share of all |score| of edges that leave ``input``. ``persistence[l, t]`` is of
    the stream into layer l, the last of that into the final norm; ``intervals`` are over what pairs share.
    """

    names: tuple[str, ...]
    entry: Float[np.ndarray, "layer span"]
    from_input: Float[np.ndarray, "layer span"]
    persistence: Float[np.ndarray, "layer span"]
    intervals: tuple[tuple[Interval | None, ...], ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer and part, for tables."""
        layers = [*(str(i) for i in range(len(self.entry) - 1)), "logits"]
        return [
            {
                "layer": layer,
                "span": name,
                "entry_share": _plain(self.entry[i, t]),
                "from_input": _plain(self.from_input[i, t]),
                "persistence": _plain(self.persistence[i, t]),
                "low": None if (bounds := self.intervals[i][t]) is None else bounds.low,
                "high": None if bounds is None else bounds.high,
                "over": None if bounds is None else bounds.by,
            }
            for i, layer in enumerate(layers)
            for t, name in enumerate(self.names)
        ]


def span_study(
    model: Model, parts: ScoreParts, prepared: Iterable[Prepared], metric: Metric, sample: PairSample | None = None
) -> SpanStudy:
    """Entry shares from scores by span, and the persistence of the stream, which runs the model."""
    entry, from_input = entry_shares(parts)
    values, intervals = persistence(model, prepared, metric, parts.names, sample or PairSample())
    return SpanStudy(parts.names, entry, from_input, values, intervals)


def entry_shares(parts: ScoreParts) -> tuple[Float[np.ndarray, "layer span"], Float[np.ndarray, "layer span"]]:
    """Shares of |score| by the layer that reads and the part it lies on: of all edges, and of those from ``input``."""
    graph = parts.graph
    sizes = np.abs(parts.values)
    by_layer = np.stack([sizes[:, :, slots].sum((1, 2)) for slots in _slots_of_layers(graph)])
    from_input = np.stack([sizes[:, 0, slots].sum(1) for slots in _slots_of_layers(graph)])
    whole = by_layer.sum(1, keepdims=True)
    shares = np.divide(by_layer, whole, out=np.full_like(by_layer, np.nan), where=whole > 0)
    return shares, from_input / from_input.sum() if from_input.any() else from_input


def persistence(
    model: Model,
    prepared: Iterable[Prepared],
    metric: Metric,
    names: tuple[str, ...],
    sample: PairSample,
    kept: Kept | None = None,
) -> tuple[Float[np.ndarray, "layer span"], tuple[tuple[Interval | None, ...], ...]]:
    """Causal persistence by layer and part, and its intervals.

    Raises nothing: a divergence of zero gives nan.
    """
    n_layers, kept = model.graph.n_layers, kept or Kept(None, "")
    columns: dict[int, np.ndarray] = {}
    for item in prepared:
        effects = kept.of(f"persistence {item.batch.place}", partial(_moved, model, item, metric, names))
        columns |= dict(zip(item.batch.indices, effects["moved"], strict=True))
    columns = parallel.gathered(columns)
    values = pairwise(np.stack([columns[i] for i in sorted(columns)]).T, metric)
    whole, moved = values[0], values[1:].reshape(n_layers + 1, len(names), -1)
    intervals = tuple(tuple(sample.ratio(cell, whole) for cell in layer) for layer in moved)
    mean = whole.mean()
    ratios = moved.mean(-1) / mean if not is_zero(whole) else np.full(moved.shape[:2], np.nan)
    return ratios, intervals


def span_rows(parts: ScoreParts, kept: np.ndarray) -> list[dict[str, Any]]:
    """The scores of kept edges by part of the prompt, for tables."""
    places = np.argwhere(kept)
    return [
        {"edge": str(parts.graph.edge(src, dst)), "score": float(parts.values[:, src, dst].sum())}
        | {name: float(parts.values[t, src, dst]) for t, name in enumerate(parts.names)}
        for src, dst in places.tolist()
    ]


def _moved(model: Model, item: Prepared, metric: Metric, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Per row m(clean) - m(corrupt), and m(clean) - m(clean with the other's stream) by layer and part."""
    batch, ablated, clean = item.batch, item.ablated, item.clean
    assert batch.spans is not None
    base = metric(clean.logits, item.targets)
    effects = [base - metric(ablated.logits, item.targets)]
    masks = torch.stack(
        [batch.spans == batch.span_names.index(n) if n in batch.span_names else batch.spans < -1 for n in names]
    )
    for layer in range(model.graph.n_layers + 1):
        effects += [base - metric(part, item.targets) for part in patched_stream(model, item, layer, masks)]
    values = torch.stack(effects, dim=1).cpu().double().numpy()
    check_finite(values, item.batch.name, f"values of {metric.name}")
    return {"moved": values}


def _slots_of_layers(graph: Graph) -> list[slice]:
    width = 3 * graph.n_heads + 1
    places = [graph.mlp_slot_of(layer) for layer in range(graph.n_layers)]
    return [*(slice(place + 1 - width, place + 1) for place in places), slice(graph.n_dst - 1, graph.n_dst)]


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
