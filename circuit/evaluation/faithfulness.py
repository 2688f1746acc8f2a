"""How much of the behaviour a circuit explains, with the raw terms beside every ratio.

    f(C) = (m(C) - m(empty)) / (m(full) - m(empty))

The headline is the ratio of means over pairs. The mean of the pairs' ratios is a different number, and so is their
median, which is robust to pairs with a tiny effect: both are reported beside it. Both directions of a swapped pair
belong to one pair: they are averaged first and resampled together. Pairs that share personas or questions are resampled
by those, where the pair file names them (``circuit.statistics.intervals``).

A ratio means something beside controls that could have been as high: random circuits with as many
edges per layer and kind, so that they read the embedding through layer 0 as the circuit does; the
complement, which is nearly always cut off from the embedding, also with those reads; and the whole
model without one edge, as a single one can carry everything: at most ``N_TRIED`` edges are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.evaluation.at_parts import random_at_parts
from persona_circuits.circuit.evaluation.matched import Matched, matched_circuits
from persona_circuits.circuit.forward import Prepared, Rounding, measure, tolerance
from persona_circuits.circuit.graph import Edge
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.printable import html_table, signed
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Interval, PairSample, is_zero
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit
from persona_circuits.metrics import Metric

__all__ = ["N_TRIED", "Faithfulness", "FaithfulnessReport", "evaluate", "median_of_ratios", "own_ratios", "pairwise"]

WIDEST = 2.0
"""An interval of f wider than this, or one that contains 0, says nothing about a circuit."""
PRECISE = 0.25
"""Half the width of an interval that would."""

N_TRIED = 4
"""Most edges to cut alone: what the first MLP reads, and the strongest."""


@dataclass(frozen=True, repr=False)
class Faithfulness:
    """One circuit's faithfulness.

    ``m`` is the mean metric. ``ratio_of_means`` and ``mean_of_ratios`` are None where
    the behaviour to explain, m(full) - m(empty), is zero; pairs whose own is zero are
    left out of the mean and the median of ratios (``n_ratios`` are in). Zero is what rounding alone may leave
    (``circuit.forward.rounding``), for a pair also less than 1e-4 of the mean.
    """

    n_edges: int
    m: float
    ratio_of_means: float | None
    interval: Interval | None
    mean_of_ratios: float | None
    n_ratios: int
    median_of_ratios: float | None = None

    def __repr__(self) -> str:
        return f"Faithfulness({self.shown}, {self.n_edges:,} edges, m {signed(self.m)})"

    @property
    def shown(self) -> str:
        """f and its interval, in words."""
        if self.ratio_of_means is None:
            return "f undefined"
        bounds = "" if self.interval is None else f" [{self.interval.low:.3f}, {self.interval.high:.3f}]"
        return f"f {self.ratio_of_means:.3f}{bounds}"


@dataclass(frozen=True, repr=False)
class FaithfulnessReport:
    """A circuit, its complement and random circuits of its size on a set of pairs.

    ``random_mean`` and ``random_sd`` are over the random circuits' ``ratio_of_means``; ``random`` holds each.
    ``effect_interval`` is of m(full) - m(empty), which with persona metrics and the corrupt ablation is D.
    ``random_gap`` is the circuit's ratio of means minus ``random_mean``, on the same pairs and draws. ``resampled``
    says what the intervals are drawn over, ``rounding`` how far rounding alone moves the metric. ``n_reversed`` counts
    the pairs on which m(full) is below m(empty): with persona metrics and the corrupt ablation those of negative D. The
    random circuits are matched, ``matching`` says how. ``complement_with_reads`` keeps what layer 0 reads of ``input``
    too; ``without_edge`` is the whole model without ``edge``, the one of ``n_tried`` edges of the circuit whose loss
    alone changes f most. Of a circuit whose edges are at parts of the prompt ``everywhere`` is the circuit that has the
    same edges at all parts; its random circuits go through other heads.
    """

    metric: str
    split: str
    n_pairs: int
    m_full: float
    m_empty: float
    circuit: Faithfulness
    complement: Faithfulness
    random: tuple[float, ...]
    random_mean: float | None
    random_sd: float | None
    effect_interval: Interval | None = None
    random_gap: float | None = None
    random_gap_interval: Interval | None = None
    resampled: str = "pairs"
    n_reversed: int | None = None
    rounding: float = 0.0
    matching: Matched | None = None
    complement_with_reads: Faithfulness | None = None
    edge: str | None = None
    without_edge: Faithfulness | None = None
    n_tried: int = 0
    everywhere: Faithfulness | None = None

    def __repr__(self) -> str:
        random = "" if self.random_mean is None else f"; random circuits {self.random_mean:.3f}"
        where = f"{self.n_pairs} pairs ({self.split}), {self.metric}"
        return f"FaithfulnessReport({self.circuit.shown} of {self.circuit.n_edges:,} edges on {where}{random})"

    def _repr_html_(self) -> str:
        named = {"circuit": self.circuit, "complement": self.complement}
        if self.without_edge is not None:
            named[f"all but {self.edge}"] = self.without_edge
        rows = [(name, f"{part.n_edges:,}", signed(part.m), part.shown) for name, part in named.items()]
        if self.random_mean is not None:
            rows.append((f"random ({len(self.random)})", f"{self.circuit.n_edges:,}", "", f"f {self.random_mean:.3f}"))
        return html_table(repr(self), ("", "edges", "m", "faithfulness"), rows)

    @property
    def caution(self) -> str:
        """A warning where these pairs do not determine how faithful the circuit is; else empty."""
        known, effect = self.circuit.interval, self.effect_interval
        if self.circuit.ratio_of_means is None or self.n_pairs < 2:
            return ""
        if known is None:
            return (
                "these pairs do not tell how faithful the circuit is: the effect itself cannot be told from 0 on them, "
                "so f has no interval; take pairs with a larger effect, or more of them"
            )
        if known.low > 0 and known.high <= WIDEST:
            return ""
        needed = math.ceil(self.n_pairs * ((known.high - known.low) / 2 / PRECISE) ** 2)
        small = " and the effect itself may be 0" if effect is not None and effect.low <= 0 <= effect.high else ""
        return (
            f"these pairs do not tell how faithful the circuit is: the interval runs from {known.low:.2f} to "
            f"{known.high:.2f}{small}; about {needed:,} pairs like these would bring it within {PRECISE:g} of f"
        )

    @property
    def reversal(self) -> str:
        """A warning where the contrast as a whole is reversed; else empty."""
        if self.m_full >= self.m_empty:
            return ""
        return (
            f"reversed: m(full) is below m(empty) by {self.m_empty - self.m_full:.3f}, so the model prefers the wrong "
            "answers more under the clean prompts; see whether answers and wrong_answers, or clean and corrupt, are "
            "the wrong way round"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as the circuit file holds them."""
        matching = self.matching.as_dict() if self.matching else None
        record = {**asdict(replace(self, matching=None)), "random": list(self.random), "matching": matching}
        if self.everywhere is None:
            del record["everywhere"]
        return record


def evaluate(
    model: Model,
    prepared: Callable[[], Iterable[Prepared]],
    metric: Metric,
    circuit: Circuit | SpanCircuit,
    sample: PairSample,
    *,
    n_random: int = 10,
    scores: Scores | None = None,
) -> FaithfulnessReport:
    """Faithfulness of a circuit, of its complement, and of random circuits like it.

    Takes 5 + ``n_random`` patched passes over the pairs, and ``N_TRIED`` more at most for single edges.

    Parameters
    ----------
    prepared
        Gives the batches; called once.
    n_random
        Number of random circuits, each with as many edges per layer and kind, and like the circuit without dead ends.
    sample
        The name of the pairs and what they share; its seed is that of the random circuits too.
    scores
        Of the circuit's edges: those with the largest |score| are tried alone.
    """
    matched: Matched | None = None
    tried: list[Edge] = []
    others: Sequence[Circuit | SpanCircuit]
    if isinstance(circuit, SpanCircuit):
        others = random_at_parts(circuit, n_random, seed=sample.seed)
    else:
        tried, matched = _alone(circuit, scores), matched_circuits(circuit, n_random, seed=sample.seed)
        others = matched.circuits
    values = _measured(model, prepared, metric, circuit, tried, others)
    span, faithfulness = values.full - values.empty, partial(_faithfulness, values, sample)
    largest = int(np.abs(values.without.mean(axis=1) - values.full.mean()).argmax()) if tried else None
    rest, wide = circuit.complement(), _everywhere(circuit)
    return FaithfulnessReport(
        metric=metric.name,
        split=sample.split,
        n_pairs=len(span),
        m_full=float(values.full.mean()),
        m_empty=float(values.empty.mean()),
        circuit=faithfulness(values.circuit, len(circuit)),
        complement=faithfulness(values.complement, len(rest)),
        **_beside_random(values, sample, [len(other) for other in others]),
        effect_interval=sample.ratio(span, np.ones_like(span)),
        resampled=sample.over(len(span)).describe(),
        n_reversed=int((span < 0).sum()),
        rounding=values.rounding,
        matching=matched,
        complement_with_reads=faithfulness(values.with_reads, len(_with_reads(rest))),
        edge=None if largest is None else str(tried[largest]),
        without_edge=None if largest is None else faithfulness(values.without[largest], model.graph.n_edges - 1),
        n_tried=len(tried),
        everywhere=None if wide is None else faithfulness(values.everywhere[0], len(wide)),
    )


def _beside_random(measured: _Measured, sample: PairSample, sizes: Sequence[int]) -> dict[str, Any]:
    """The random circuits' f, and how far the circuit is above their mean."""
    every = [_faithfulness(measured, sample, m, size) for m, size in zip(measured.random, sizes, strict=True)]
    known = [faithfulness.ratio_of_means for faithfulness in every if faithfulness.ratio_of_means is not None]
    if not known:
        return {"random": (), "random_mean": None, "random_sd": None}
    gap, span = measured.circuit - measured.random.mean(axis=0), measured.full - measured.empty
    return {
        "random": tuple(known),
        "random_mean": float(np.mean(known)),
        "random_sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "random_gap": float(gap.mean() / span.mean()),
        "random_gap_interval": sample.ratio(gap, span),
    }


@dataclass(frozen=True, eq=False)
class _Measured:
    """The metric of every pair under the circuit and its controls; ``without`` lacks one edge each."""

    full: Float[np.ndarray, " pair"]
    empty: Float[np.ndarray, " pair"]
    circuit: Float[np.ndarray, " pair"]
    complement: Float[np.ndarray, " pair"]
    with_reads: Float[np.ndarray, " pair"]
    without: Float[np.ndarray, "edge pair"]
    random: Float[np.ndarray, "circuit pair"]
    everywhere: Float[np.ndarray, "_ pair"]
    rounding: float


def _measured(
    model: Model,
    prepared: Callable[[], Iterable[Prepared]],
    metric: Metric,
    circuit: Circuit | SpanCircuit,
    tried: Sequence[Edge],
    random: Sequence[Circuit | SpanCircuit],
) -> _Measured:
    """All circuits in one run over the pairs."""
    graph, rest, wide = model.graph, circuit.complement(), _everywhere(circuit)
    full, empty = replace(circuit, mask=circuit.mask | rest.mask), replace(circuit, mask=np.zeros_like(rest.mask))
    fixed = [full, empty, circuit, rest, _with_reads(rest), *([] if wide is None else [wide])]
    without = [Circuit.of(graph, [edge]).complement() for edge in tried]
    masks = [drawn if isinstance(drawn, SpanCircuit) else drawn.mask for drawn in (*fixed, *without, *random)]
    watch = Rounding(model, metric)
    values = pairwise(measure(model, watch.watched(prepared()), masks, metric), metric)
    first = len(fixed) + len(tried)
    m_full, m_empty, own, others, reads = values[:5]
    more = values[len(fixed) : first], values[first:], values[5 : len(fixed)]
    return _Measured(m_full, m_empty, own, others, reads, *more, watch.floor)


def _with_reads(circuit: Circuit | SpanCircuit) -> Circuit | SpanCircuit:
    """The circuit and all that layer 0 reads of ``input``."""
    mask = circuit.mask.copy()
    mask[..., 0, : circuit.graph.mlp_slot_of(0) + 1] = True
    return replace(circuit, mask=mask)


def _everywhere(circuit: Circuit | SpanCircuit) -> SpanCircuit | None:
    """The same edges at all parts of the prompt; None where they are there already."""
    return SpanCircuit.everywhere(circuit.circuit, circuit.spans) if isinstance(circuit, SpanCircuit) else None


def _alone(circuit: Circuit, scores: Scores | None) -> list[Edge]:
    """Edges of the circuit, one of which may carry everything: the first MLP's read of ``input``, then by |score|.

    Where edges have no scores, what else leaves ``input``, in the order of the graph.
    """
    edges, graph = circuit.edges(), circuit.graph
    first = [edge for edge in edges if graph.index(edge) == (0, graph.mlp_slot_of(0))]
    if scores is None:
        others = [edge for edge in edges if graph.index(edge)[0] == 0]
    else:
        others = sorted(edges, key=lambda edge: -abs(scores[edge]))
    return list(dict.fromkeys([*first, *others]))[:N_TRIED]


def pairwise(values: np.ndarray, metric: Metric) -> np.ndarray:
    """From one value per row to one per pair: the two directions of a swapped pair are averaged; ``[mask, pair]``."""
    return values.reshape(len(values), -1, 2).mean(axis=2) if metric.swap_rows else values


def _faithfulness(measured: _Measured, sample: PairSample, values: np.ndarray, n_edges: int) -> Faithfulness:
    span, moved = measured.full - measured.empty, values - measured.empty
    ratios = own_ratios(moved, span, measured.rounding)
    defined = not is_zero(span, measured.rounding)
    return Faithfulness(
        n_edges=n_edges,
        m=float(values.mean()),
        ratio_of_means=float(moved.mean() / span.mean()) if defined else None,
        interval=sample.ratio(moved, span) if defined else None,
        mean_of_ratios=float(ratios.mean()) if len(ratios) else None,
        n_ratios=len(ratios),
        median_of_ratios=median_of_ratios(moved, span, measured.rounding),
    )


def own_ratios(moved: np.ndarray, span: np.ndarray, rounding: float = 0.0) -> np.ndarray:
    """Each pair's own ratio; pairs whose own span is zero are left out."""
    usable = np.abs(span) > tolerance(span, rounding)
    return moved[usable] / span[usable]


def median_of_ratios(moved: np.ndarray, span: np.ndarray, rounding: float = 0.0) -> float | None:
    """The median of the pairs' own ratios; None where no pair has one."""
    ratios = own_ratios(moved, span, rounding)
    return float(np.median(ratios)) if len(ratios) else None
