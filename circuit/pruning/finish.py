"""An exact finish: edges go and come back, one at a time by patched passes, until none of them pays.

    cost of C = mean over prompts of |m(C) - m(full)| + tau x edges of C
    in turn for every edge outside that may come back, the strongest first, and every edge of C, the weakest first:
        flip it; keep the change if that lowers the cost
    until a whole turn changes nothing

An edge that goes takes with it what then leads nowhere; one that comes back brings the strongest edge that connects
it, at either end. At the end the circuit is a local optimum: every edge is worth tau or more, counting what would go
with it, and none that may come back is. With ``kl`` an edge goes as in ACDC (arXiv:2304.14997), whose loss is the same;
what ACDC decides once is asked again here, as an edge's worth depends on the others. As there several edges share a
pass, each tried as if the decisions before it were known, and those hold up to and including the first guessed wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import Prepared, measure, search_on
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.pruning.acdc import MEMORY, candidates_of
from persona_circuits.circuit.pruning.select import check_tau
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import Kept
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = ["Finished", "Terms", "finish"]

MOST_TURNS = 20
"""The search stops after so many, settled or not."""


@dataclass(frozen=True, eq=False)
class Finished:
    """The circuit, and what it took.

    ``tau`` is what every edge is worth, in the metric's units; ``loss`` the mean of |m(C) - m(full)|, before and after.
    ``gone`` and ``back`` count edges of the first circuit that are not in the last one, and the other way round.
    ``settled``: a whole turn changed nothing.
    """

    circuit: Circuit
    tau: float
    loss_before: float
    loss: float
    gone: int
    back: int
    passes: int
    evaluated: int
    settled: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the circuit."""
        return {name: value for name, value in vars(self).items() if name != "circuit"}


@dataclass(frozen=True)
class Terms:
    """What a finish asks of edges.

    ``tau`` is what one must be worth, in units of the metric; ``least`` is the faithfulness, a ratio of means on these
    prompts, below which no change goes: a start below it may only rise towards it. ``candidates`` as in ``Trials``.
    """

    tau: float
    least: float | None = None
    candidates: int | None = None


def finish(
    model: Model,
    prepared: Sequence[Prepared],
    metric: Metric,
    start: Circuit,
    terms: Terms,
    *,
    scores: Scores | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Remove edges and bring edges back until no single change pays.

    Parameters
    ----------
    prepared
        All prompts, kept in memory for the whole search.
    scores
        Say in which order edges are tried, and which may come back: those of ``start``, and as many again that are the
        strongest outside. Without scores those of ``start`` alone, from the logits back.
    state
        File in which the search saves its state, to resume from; removed at the end.
    progress
        Called with the number of edges tried since the last change and their total.

    Returns
    -------
    The circuit, without dead ends, and what was done.

    Raises
    ------
    OptionError
        ``terms.tau`` is negative or not a number, or ``candidates`` is below one.
    """
    check_tau(terms.tau)
    if terms.candidates is not None and terms.candidates < 1:
        raise OptionError(f"a finish needs at least one candidate per pass, got {terms.candidates}")
    if model.budget is None:
        prepared = [item.with_differences() for item in prepared]
    start = start.without_dead_ends()
    search = _Finish(model, prepared, metric, terms, scores, start.mask)
    before = search.loss
    places = _places(start, scores)
    settled = search.run(places, state, progress)
    circuit = Circuit(model.graph, search.mask)
    counts = {"gone": len(start - circuit), "back": len(circuit - start)}
    costs = {"passes": search.passes, "evaluated": search.evaluated}
    return Finished(circuit, terms.tau, before, search.loss, **counts, **costs, settled=settled)


def _places(start: Circuit, scores: Scores | None) -> list[tuple[int, int]]:
    """As many edges outside the circuit as it has, the strongest first, then its own, the weakest first."""
    inside = [(int(src), int(dst)) for dst, src in np.argwhere(start.mask.T)[::-1]]
    if scores is None:
        return inside
    strength = np.abs(scores.values)
    inside.sort(key=lambda place: strength[place])
    src, dst = np.nonzero(scores.graph.valid & ~start.mask)
    some = np.argsort(-strength[src, dst], kind="stable")[: len(inside)]
    return list(zip(src[some].tolist(), dst[some].tolist(), strict=True)) + inside


class _Finish:
    """The running state; ``mask`` is the circuit so far, without dead ends, ``loss`` and ``f`` are its own."""

    def __init__(
        self,
        model: Model,
        prepared: Sequence[Prepared],
        metric: Metric,
        terms: Terms,
        scores: Scores | None,
        mask: Bool[np.ndarray, "src dst"],
    ) -> None:
        self.model, self.prepared, self.metric = model, prepared, metric
        self.tau, self.least, self.candidates = (
            terms.tau,
            terms.least,
            terms.candidates or candidates_of(model, prepared),
        )
        self.strength = np.abs(scores.values) if scores is not None else np.zeros(mask.shape)
        self.mask = mask.copy()
        self.at = self.quiet = self.passes = self.evaluated = 0
        self.rate = 0.5  # the recent share of changes that were made
        ends = [Circuit.full(model.graph).mask, Circuit.empty(model.graph).mask]
        self.full, self.empty = measure(model, prepared, ends, metric)
        self.loss, self.f = self._values([self.mask])[0]

    def run(self, places: Sequence[tuple[int, int]], state: Path | None, progress: Progress | None) -> bool:
        """Whether a whole turn changed nothing."""
        n = len(places)
        what = (self.model, self.prepared, self.metric, self.tau, self.least, places, self.loss)
        with Kept(state, search_on(*what) if state else "") as kept:
            self._resume(kept.part("finish"))
            while self.quiet < n and self.at < MOST_TURNS * n:
                width = min(self._width(), n - self.quiet)
                self._decide([places[(self.at + i) % n] for i in range(width)])
                kept.add({"finish": self._arrays()})
                if progress is not None:
                    progress(min(self.quiet, n), n)
        return self.quiet >= n

    def _width(self) -> int:
        """As many as are expected to hold together half the time."""
        return max(1, min(self.candidates, int(0.7 / max(min(self.rate, 1 - self.rate), 1e-9))))

    def _decide(self, places: Sequence[tuple[int, int]]) -> None:
        """Try some edges at once, each as if all before it had been changed, or none had; keep what proves right."""
        changed = self.rate > 0.5
        masks, base = [], self.mask
        for place in places:
            masks.append(self._flipped(base, place))
            base = masks[-1] if changed else base
        for mask, (loss, f) in zip(masks, self._values(masks), strict=True):
            self.at += 1
            if better := self._pays(mask, loss, f):
                self.mask, self.loss, self.f, self.quiet = mask, loss, f, 0
            else:
                self.quiet += 1
            self.rate += (float(better) - self.rate) / MEMORY
            if better != changed:
                return

    def _pays(self, mask: Bool[np.ndarray, "src dst"], loss: float, f: float) -> bool:
        more = int(mask.sum()) - int(self.mask.sum())
        if self.least is not None and f < min(self.least, self.f):
            return False
        return more != 0 and loss + self.tau * more < self.loss

    def _flipped(self, mask: Bool[np.ndarray, "src dst"], place: tuple[int, int]) -> Bool[np.ndarray, "src dst"]:
        """The circuit with the edge out of it, or in it and connected, without dead ends."""
        mask = mask.copy()
        mask[place] = not mask[place]
        if mask[place]:
            connect(self.model.graph, mask, self.strength, place)
        return Circuit(self.model.graph, mask).without_dead_ends().mask

    def _values(self, masks: Sequence[np.ndarray]) -> list[tuple[float, float]]:
        """The mean of |m - m(full)|, and f, of every circuit; those of the current circuit are known."""
        known = [self.evaluated > 0 and bool((mask == self.mask).all()) for mask in masks]
        new = [mask for mask, seen in zip(masks, known, strict=True) if not seen]
        measured: Iterator[tuple[float, float]] = iter(())
        if new:
            self.passes += 1
            self.evaluated += len(new)
            values = measure(self.model, self.prepared, new, self.metric)
            effect = float((self.full - self.empty).mean())
            f = (values - self.empty).mean(axis=1) / effect if effect else np.zeros(len(new))
            measured = iter(zip(np.abs(values - self.full).mean(axis=1).tolist(), f.tolist(), strict=True))
        return [(self.loss, self.f) if seen else next(measured) for seen in known]

    def _arrays(self) -> dict[str, np.ndarray]:
        counts = [self.at, self.quiet, self.passes, self.evaluated]
        return {"mask": self.mask, "counts": np.array(counts), "values": np.array([self.loss, self.f, self.rate])}

    def _resume(self, state: dict[str, Any]) -> None:
        if state:
            self.mask = state["mask"].copy()
            self.at, self.quiet, self.passes, self.evaluated = state["counts"].tolist()
            self.loss, self.f, self.rate = state["values"].tolist()


def connect(
    graph: Graph, mask: Bool[np.ndarray, "src dst"], strength: Float[np.ndarray, "src dst"], place: tuple[int, int]
) -> None:
    """Put the strongest edge into ``mask`` that connects the source of an edge to the input, and its reader onward."""
    src, dst = place
    slots = graph.slots_by_source
    reader = int(graph.source_of_slot[dst])
    if src and not mask[:, list(slots[src])].any():
        _add_strongest(mask, strength, [(source, slot) for slot in slots[src] for source in _fed(graph, mask, slot)])
    if reader < graph.n_src and not mask[reader].any():
        used = np.flatnonzero(mask.any(axis=0) & graph.valid[reader]).tolist()
        _add_strongest(mask, strength, [(reader, slot) for slot in {*used, graph.n_dst - 1} if slot != dst])


def _fed(graph: Graph, mask: Bool[np.ndarray, "src dst"], slot: int) -> list[int]:
    """Sources that may write to a slot: the input and those that read something."""
    reading = graph.sources_of(mask.any(axis=0))
    reading[0] = True
    return np.flatnonzero(reading[: graph.n_reaching(slot)]).tolist()


def _add_strongest(
    mask: Bool[np.ndarray, "src dst"], strength: Float[np.ndarray, "src dst"], places: Sequence[tuple[int, int]]
) -> None:
    if places:
        mask[max(sorted(places), key=lambda place: strength[place])] = True
