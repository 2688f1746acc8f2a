"""Would other pairs have given another circuit: edges that stay, and edges that come and go.

Pairs are resampled, the kept scores of each pair (``circuit.evaluation.scores_by_pair``) are averaged anew and pruned
by the circuit's own rule, threshold as a share of that resample's own effect included. No model is run. Over resamples:

    frequency   how often an edge is selected
    Jaccard     edges that two resamples share over edges that either has, mean over all pairs of resamples
    core        edges of the circuit selected in at least 90 % of the resamples; the other edges are its fringe

Resampled twice: ``pairs`` (each pair independently) and, where the pair file names them, clusters: personas and
questions are drawn, and the weights are scaled so that scores vary as the cluster-robust variance
says (``circuit.statistics.intervals``), without the small-sample widening of an interval. Clusters go first where they
can be drawn: other personas and questions are what a circuit should survive.

A bootstrap of n pairs holds about 63 % of them, so it shows how much the selection moves, not how right it is:
a rule that always selects the same wrong edges is stable.

ACDC has no scores to resample; what it finds depends on the order in which edges are tried.
``order_dependence`` repeats it in random orders that keep to its rule: no edge before those its reader writes to.
There frequency, Jaccard, core and fringe are over orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.scores_by_pair import PairScores, Rule
from persona_circuits.circuit.evaluation.stability.orders import OrderDependence
from persona_circuits.circuit.evaluation.stability.resampling import (
    CORE,
    N_RESAMPLES,
    STABLE,
    Resampling,
    jaccard_of,
    resampling_of,
)
from persona_circuits.circuit.figures import picked
from persona_circuits.circuit.graph import Edge
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["StabilityReport", "order_report", "stability_report"]


@dataclass(frozen=True, eq=False)
class StabilityReport:
    """How a circuit holds under resampling, or ACDC's under another order.

    ``resamplings`` are by clusters, if they can be drawn, then by pairs; the first one decides. For ACDC there is
    none, and ``order`` decides. ``agreement`` is the Jaccard of the circuit with what its rule makes of these pairs'
    scores, 1 where they are the pairs it was found on. ``floor`` is that of the scores.
    """

    circuit: Circuit
    rule: str
    n_pairs: int
    agreement: float | None
    floor: float
    resamplings: tuple[Resampling, ...]
    notes: tuple[str, ...]
    order: OrderDependence | None = None

    @property
    def jaccard(self) -> float | None:
        """Mean pairwise Jaccard of what decides; None where nothing could be resampled or selected."""
        decides = self._decides
        return None if decides is None else decides.jaccard

    @property
    def by(self) -> str | None:
        """What was drawn where it decides: personas and questions, pairs, or orders; None where nothing was."""
        return self.resamplings[0].by if self.resamplings else None if self.order is None else "orders"

    @property
    def unstable(self) -> bool | None:
        """Whether that is under .8; None where it is not known."""
        return None if self.jaccard is None else self.jaccard < STABLE

    @property
    def core(self) -> Circuit:
        """The edges of the circuit that at least 90 % of the resamples select."""
        return Circuit(self.circuit.graph, self.circuit.mask & (self.frequency >= CORE))

    @property
    def fringe(self) -> Circuit:
        """The circuit's other edges; none where nothing could be resampled, as nothing is known of them."""
        known = self._decides is not None
        return Circuit(self.circuit.graph, self.circuit.mask & (self.frequency < CORE) & known)

    @property
    def frequency(self) -> Float[np.ndarray, "src dst"]:
        """Of what decides; zero where there is nothing."""
        decides = self._decides
        return np.zeros(self.circuit.mask.shape) if decides is None else decides.frequency

    @property
    def _decides(self) -> Resampling | OrderDependence | None:
        return self.resamplings[0] if self.resamplings else self.order

    @property
    def sentence(self) -> str:
        """The result in words."""
        if self.jaccard is None:
            return f"Stability is not known: {'; '.join(self.notes) or 'nothing was resampled'}."
        how = f"{self.order.n_orders + 1} orders of ACDC" if self.order and not self.resamplings else self._drawn()
        verdict = "unstable" if self.unstable else "stable"
        return (
            f"The circuit is {verdict}: mean pairwise Jaccard {self.jaccard:.3f} over {how}; {len(self.core):,} of its "
            f"{len(self.circuit):,} edges are core (in at least {CORE:.0%}), {len(self.fringe):,} fringe."
        )

    def rows(self, *, least: float = 0.5) -> list[dict[str, Any]]:
        """One row per edge of the circuit, and per other edge that at least ``least`` of the resamples select."""
        graph, core = self.circuit.graph, self.core
        shown = self.circuit.mask | (self.frequency >= least)
        rows = []
        for dst, src in np.argwhere(shown.T).tolist():
            where = "core" if core.mask[src, dst] else "fringe" if self.circuit.mask[src, dst] else "outside"
            frequencies = {
                f"frequency by {resampling.by}": float(resampling.frequency[src, dst])
                for resampling in self.resamplings
            }
            if self.order is not None:
                frequencies["frequency by orders"] = float(self.order.frequency[src, dst])
            rows.append({"edge": str(graph.edge(src, dst)), "part": where, **frequencies})
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The ``stability`` of a circuit's file: plain values, edges apart."""
        return {
            **picked(self, "rule", "n_pairs", "by", "jaccard", "unstable"),
            "core": len(self.core),
            "fringe": len(self.fringe),
            "agreement": self.agreement,
            "floor": self.floor,
            "resamplings": [resampling.as_dict() for resampling in self.resamplings],
            "order": None if self.order is None else self.order.as_dict(),
            "notes": list(self.notes),
        }

    def of_edge(self, edge: Edge | str) -> float | None:
        """The frequency of an edge, None where nothing could be resampled."""
        known = self._decides is not None
        return float(self.frequency[self.circuit.graph.index(edge)]) if known else None

    def _drawn(self) -> str:
        first = self.resamplings[0]
        return f"{first.n_resamples} resamples of {first.by}"


def stability_report(
    scores: PairScores,
    circuit: Circuit,
    rule: Rule,
    *,
    clusters: Clusters | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> StabilityReport:
    """Resample the pairs' scores and select edges again.

    Parameters
    ----------
    scores
        Of the pairs the circuit was found on.
    circuit
        What core and fringe are parts of.
    rule
        The one the circuit was made with.
    clusters
        Which of the pairs share personas and questions, in the same order.
    n_resamples
        Of each kind; at least 100 for a number to report.

    Raises
    ------
    OptionError
        Fewer than two resamples, or scores, circuit and clusters that do not belong together.
    """
    _check(scores, circuit, clusters, n_resamples)
    plain = Clusters(len(scores), None, None)
    ways = [] if len(scores) < 2 else [plain] if clusters is None or clusters.by == "pairs" else [clusters, plain]
    resamplings = []
    for turn, way in enumerate(ways):
        circuits = _selected(scores, rule, way, n_resamples, seed)
        masks = _stacked(circuits, turn * n_resamples, len(ways) * n_resamples, progress)
        resamplings.append(resampling_of(way.by, masks, circuit))
    repeated = rule.circuit(scores.mean(), float(scores.whole.mean()))
    agreement = jaccard_of(repeated, circuit)
    notes = _notes(scores, rule, clusters, agreement, resamplings)
    return StabilityReport(circuit, str(rule), len(scores), agreement, scores.floor, tuple(resamplings), tuple(notes))


def order_report(circuit: Circuit, order: OrderDependence, rule: str, n_pairs: int) -> StabilityReport:
    """What ``order_dependence`` found, as the stability of ACDC's circuit."""
    note = (
        f"ACDC decides by running the model, so pairs are not resampled; its dependence on the order of edges is "
        f"shown, over {order.n_orders + 1} runs"
    )
    return StabilityReport(circuit, rule, n_pairs, None, 0.0, (), (note,), order)


def _check(scores: PairScores, circuit: Circuit, clusters: Clusters | None, n_resamples: int) -> None:
    if n_resamples < 2:
        raise OptionError(f"{n_resamples} resample(s) cannot be compared; give at least 2, 100 for a number to report")
    if scores.graph != circuit.graph:
        raise OptionError(f"the scores are of {scores.graph}, the circuit of {circuit.graph}; give one model's")
    if clusters is not None and clusters.n != len(scores):
        raise OptionError(f"{len(scores)} pairs are scored but clusters given for {clusters.n}; give the same pairs")


def _selected(scores: PairScores, rule: Rule, way: Clusters, n: int, seed: int) -> Iterator[Circuit]:
    """The circuit of every resample."""
    weights = way.weights(_influence(scores), n_draws=n, seed=seed)
    for row in weights:
        yield rule.circuit(scores.mean(row), float(row @ scores.whole))


def _influence(scores: PairScores) -> Float[np.ndarray, "pair number"]:
    """What each pair adds to the mean scores, of mean zero, in as many numbers as there are pairs.

    Variances added over numbers are those added over edges: the products between pairs are the same.
    """
    gram = scores.gram()
    gram = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
    sizes, basis = np.linalg.eigh(gram)
    return basis * np.sqrt(np.maximum(sizes, 0.0))


def _stacked(circuits: Iterator[Circuit], done: int, total: int, progress: Progress | None) -> sparse.csr_array:
    """``[resample, edge]``, edges in the order of the graph's places, src by src."""
    places, n_edges = [], 0
    for turn, circuit in enumerate(circuits, 1):
        places.append(np.flatnonzero(circuit.mask))
        n_edges = circuit.mask.size
        if progress is not None:
            progress(done + turn, total)
    ends = np.cumsum([0, *map(len, places)])
    return sparse.csr_array((np.ones(ends[-1]), np.concatenate(places), ends), shape=(len(places), n_edges))


def _notes(
    scores: PairScores,
    rule: Rule,
    clusters: Clusters | None,
    agreement: float | None,
    resamplings: Sequence[Resampling],
) -> Iterator[str]:
    """What a reader of the numbers must know."""
    if len(scores) < 2:
        yield "one pair only: there is nothing to resample"
    elif clusters is None or clusters.by == "pairs":
        why = f" ({clusters.note})" if clusters is not None and clusters.note else ""
        yield f"pairs are resampled as if they shared neither personas nor questions{why}"
    elif clusters.note:
        yield clusters.note
    if any(resampling.jaccard is None for resampling in resamplings):
        yield "the rule selects no edge in any resample"
    if agreement is not None and agreement < 1:
        yield f"the rule makes another circuit of these pairs' scores (Jaccard {agreement:.3f})"
    if scores.floor:
        yield f"scores of single pairs below {scores.floor:.3g} were not kept; a mean score is off by less than that"
        tau = rule.tau if rule.share is None else rule.share * abs(float(scores.whole.mean()))
        if tau is not None and scores.floor > 0.1 * tau:
            yield f"that is more than a tenth of the threshold ({tau:.3g}): allow more memory"
