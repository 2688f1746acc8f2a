"""ACDC: try to remove every edge in reverse topological order, keep those that matter (arXiv:2304.14997).

    H = G                                                      the whole graph
    for every node v of H, from logits back to the input:
        for every parent w of v, the last first:
            if KL(G || H without w->v) - KL(G || H) < tau:     nothing is lost
                H = H without w->v
    drop dead ends

(Conmy et al. 2023, Algorithm 1.) ``acdc_by_definition`` is this, one patched pass per edge. ``acdc`` decides the same
from fewer passes: several edges share one, each tried as if those before it had gone, and decisions
hold up to and including the first edge that must stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import Prepared, masks_per_pass, measure, search_on
from persona_circuits.circuit.graph import Edge
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.pruning.select import check_tau
from persona_circuits.circuit.storage import Kept
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import METRICS, Metric

__all__ = ["AcdcResult", "Trials", "acdc", "acdc_by_definition"]

MEMORY = 16
"""Number of recent decisions from which ACDC estimates how many edges stay."""


@dataclass(frozen=True)
class AcdcResult:
    """A circuit and what finding it cost.

    ``passes`` are patched passes over all prompts, ``evaluated`` the candidate circuits in them and ``wasted`` those
    whose assumption did not hold. ``changes`` holds, per edge tried, the change that its removal made when it was tried
    (``nan`` for edges not tried).
    """

    circuit: Circuit
    changes: np.ndarray
    passes: int
    evaluated: int
    wasted: int


def acdc_by_definition(model: Model, prepared: Sequence[Prepared], metric: Metric, tau: float) -> Circuit:
    """The algorithm as printed in the paper, for readers and tests; ``acdc`` finds the same circuit."""
    graph, H = model.graph, model.graph.valid.copy()
    m_of_H = _mean(model, prepared, [H], metric)[0]
    for edge in reversed(list(graph.edges())):
        H[graph.index(edge)] = False
        m_without = _mean(model, prepared, [H], metric)[0]
        if loss(metric, m_of_H, m_without) < tau:
            m_of_H = m_without
        else:
            H[graph.index(edge)] = True
    return Circuit(graph, H).without_dead_ends()


def loss(metric: Metric, m: float, m_without: float) -> float:
    """What an edge's removal costs: the growth of KL, whose metric is -KL; of any other metric the size of its change.

    The signed rule would optimise other metrics instead of explaining the model.
    """
    return m - m_without if metric is METRICS["kl"] else abs(m - m_without)


def _mean(model: Model, prepared: Sequence[Prepared], masks: Sequence[np.ndarray], metric: Metric) -> np.ndarray:
    """The metric of every circuit, mean over all prompts."""
    return measure(model, prepared, masks, metric).mean(axis=1)


@dataclass(frozen=True)
class Trials:
    """How ACDC tries edges.

    ``order`` is the order in which they are tried, on which the result depends; by default slots in reverse topological
    order and, within a slot, the last source first. ``candidates`` are tried per pass at most, each under the
    assumption that those before it are removed; decisions up to and including the first that must stay are valid, the
    rest is tried again. Fewer are tried where many edges stay, and the circuit is the same for any number. By default
    128 on an accelerator, where a pass costs time, and on a CPU, where a wasted circuit does, as many as share a pass,
    at most 8.
    """

    order: Sequence[Edge] | None = None
    candidates: int | None = None


def acdc(
    model: Model,
    prepared: Sequence[Prepared],
    metric: Metric,
    tau: float,
    start: Circuit | None = None,
    *,
    trials: Trials | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> AcdcResult:
    """Remove every edge whose removal costs less than ``tau`` (Conmy et al. 2023, arXiv:2304.14997), many at a time.

    With ``kl`` an edge goes iff KL(full || C without it) - KL(full || C) < tau; with
    any other metric iff the absolute change is < tau.

    Parameters
    ----------
    prepared
        All prompts, kept in memory for the whole search.
    tau
        In units of the metric.
    start
        The circuit to prune; all edges by default.
    trials
        The order in which edges are tried, and how many in one pass.
    state
        File in which the search saves its state, at most twice a minute. If it exists and belongs to
        the same search, the search resumes from it; it is removed at the end.

    Returns
    -------
    The circuit, the change that each removal made, and what the search cost.

    Raises
    ------
    OptionError
        ``tau`` is negative or not a number, or ``candidates`` is below one.

    Examples
    --------
    >>> prepared = [prepare(model, batch) for batch in batches(encode(task, model), 8, "cpu")]
    >>> acdc(model, prepared, METRICS["logit-diff"], 0.1).circuit.edge_names()
    ['input->m0', 'm0->a1.h3<v>', 'a1.h3->logits']
    """
    check_tau(tau)
    order, candidates = (trials or Trials()).order, (trials or Trials()).candidates
    if candidates is None:
        candidates = candidates_of(model, prepared)
    if candidates < 1:
        raise OptionError(f"ACDC needs at least one candidate per pass, got {candidates}")
    if model.budget is None:
        prepared = [item.with_differences() for item in prepared]
    mask = (Circuit.full(model.graph) if start is None else start).mask.copy()
    places = _reverse_topological(mask) if order is None else [model.graph.index(edge) for edge in order]
    search = _AcdcSearch(model, prepared, metric, tau, mask, candidates)
    search.run(places, state, progress)
    circuit = Circuit(model.graph, search.mask).without_dead_ends()
    return AcdcResult(circuit, search.changes, search.passes, search.evaluated, search.wasted)


def candidates_of(model: Model, prepared: Sequence[Prepared]) -> int:
    if model.device.type != "cpu":
        return 128
    return min([8, *(masks_per_pass(model, item) for item in prepared)])


class _AcdcSearch:
    """The running state of ACDC; ``mask`` is the circuit so far, ``rate`` the recent share of edges that stay."""

    def __init__(
        self, model: Model, prepared: Sequence[Prepared], metric: Metric, tau: float, mask: np.ndarray, candidates: int
    ) -> None:
        self.model, self.prepared, self.metric, self.tau, self.mask = model, prepared, metric, tau, mask
        self.candidates = candidates
        self.changes = np.full(mask.shape, np.nan)
        self.done = self.passes = self.evaluated = self.wasted = 0
        self.rate = 1.0 / candidates
        self.current = self._values([mask])[0]

    def run(self, places: Sequence[tuple[int, int]], state: Path | None, progress: Progress | None) -> None:
        what = (self.model, self.prepared, self.metric, self.tau, self.current, places)
        with Kept(state, search_on(*what) if state else "") as kept:
            self._resume(kept.part("acdc"))
            while self.done < len(places):
                self.done += self._decide(places[self.done : self.done + self._width()])
                if state:
                    kept.add({"acdc": self._arrays()})
                if progress is not None:
                    progress(self.done, len(places))

    def _width(self) -> int:
        """As many as are expected to hold together half the time: few where many edges stay."""
        return max(1, min(self.candidates, int(0.7 / max(self.rate, 1e-9))))

    def _decide(self, places: Sequence[tuple[int, int]]) -> int:
        """Try some edges at once, each without those before it; returns the number of valid decisions."""
        values = self._values(list(_without_one_after_another(self.mask, places)))
        for i, place in enumerate(places):
            change = float(loss(self.metric, self.current, values[i]))
            self.changes[place] = change
            stays = not change < self.tau
            self.rate += (float(stays) - self.rate) / MEMORY
            if stays:
                self.wasted += len(places) - i - 1
                return i + 1
            self.mask[place] = False
            self.current = values[i]
        return len(places)

    def _values(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        self.passes += 1
        self.evaluated += len(masks)
        return _mean(self.model, self.prepared, masks, self.metric)

    def _arrays(self) -> dict[str, np.ndarray]:
        counts = [self.done, self.passes, self.evaluated, self.wasted]
        values = np.array([self.current, self.rate])
        return {"mask": self.mask.copy(), "changes": self.changes.copy(), "counts": np.array(counts), "values": values}

    def _resume(self, state: Mapping[str, np.ndarray]) -> None:
        if state:
            self.mask, self.changes = state["mask"].copy(), state["changes"].copy()
            self.done, self.passes, self.evaluated, self.wasted = state["counts"].tolist()
            self.current, self.rate = state["values"].tolist()


def _without_one_after_another(mask: np.ndarray, places: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """The circuit without the first edge, without the first two, and so on."""
    for place in places:
        mask = mask.copy()
        mask[place] = False
        yield mask


def _reverse_topological(mask: np.ndarray) -> list[tuple[int, int]]:
    return [(src, dst) for dst, src in np.argwhere(mask.T)[::-1].tolist()]
