"""Would other pairs have given another circuit: edges that stay, and edges that come and go.

Pairs are resampled, the kept scores of each pair (``circuit.pair_scores``) are averaged anew and
pruned by the circuit's own rule, threshold as a share of that resample's own effect included. No
model is run. Over resamples:

    frequency   how often an edge is selected
    Jaccard     edges that two resamples share over edges that either has, mean over all pairs of resamples
    core        edges of the circuit selected in at least 90 % of the resamples; the other edges are its fringe

Resampled twice: ``pairs`` (each pair for itself) and, where the pair file names them, clusters: personas and
questions are drawn, and the weights are scaled so that scores vary as the cluster-robust variance
says (``circuit.uncertainty``), without the small-sample widening of an interval. Clusters go first where they
can be drawn: other personas and questions are what a circuit should survive.

A bootstrap of n pairs holds about 63 % of them, so it shows how much the selection moves, not how right it is:
a rule that always selects the same wrong edges is stable.

ACDC has no scores to resample; what it finds depends on the order in which edges are tried.
``order_dependence`` repeats it in random orders that keep to its rule: no edge before those its reader writes to.
There frequency, Jaccard, core and fringe are over orders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse

from circuit import ranks
from circuit.errors import OptionError
from circuit.graph import Edge, Graph
from circuit.model import Model
from circuit.pair_scores import PairScores, Rule
from circuit.patching import Prepared, Progress
from circuit.pruning import acdc
from circuit.reading import read_state, state_metadata, tell_damaged
from circuit.storage import write_bytes
from circuit.subgraph import Circuit
from circuit.uncertainty import Clusters
from metrics import Metric

__all__ = [
    "CORE",
    "N_RESAMPLES",
    "STABLE",
    "OrderDependence",
    "Resampling",
    "StabilityReport",
    "jaccard_of",
    "mean_jaccard",
    "order_dependence",
    "order_report",
    "stability_report",
]

N_RESAMPLES = 200
CORE = 0.9
"""Share of resamples in which an edge of the core is selected."""
STABLE = 0.8
"""Mean pairwise Jaccard below which a circuit is called unstable."""


@dataclass(frozen=True, eq=False)
class Resampling:
    """What one way of resampling gave.

    ``by`` is what was drawn. ``frequency[src, dst]`` is the share of resamples that select an edge.
    ``jaccard`` is the mean over pairs of resamples, ``low`` and ``high`` the 5th and the 95th percentile,
    ``to_circuit`` the mean against the circuit itself; None where no resample selects an edge. ``n_empty`` resamples
    select none. ``sizes`` are the least, the median and the largest number of edges.
    """

    by: str
    n_resamples: int
    n_empty: int
    frequency: Float[np.ndarray, "src dst"]
    jaccard: float | None
    low: float | None
    high: float | None
    to_circuit: float | None
    sizes: tuple[int, float, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the frequencies."""
        names = ("by", "n_resamples", "n_empty", "jaccard", "low", "high", "to_circuit")
        return {**{name: getattr(self, name) for name in names}, "sizes": list(self.sizes)}


@dataclass(frozen=True, eq=False)
class OrderDependence:
    """ACDC in its own order and in ``n_orders`` random ones.

    ``sizes`` are the circuits' numbers of edges, its own order's first. ``jaccard`` is the mean over pairs of runs, its
    own order's among them; ``to_circuit`` the mean of the random ones against its own. ``frequency`` is the share of
    runs that keep an edge; ``always`` counts edges kept in every run, ``ever`` those kept in any. ``passes`` is what
    the runs cost here.
    """

    n_orders: int
    tau: float
    sizes: tuple[int, ...]
    jaccard: float | None
    to_circuit: float | None
    frequency: Float[np.ndarray, "src dst"]
    always: int
    ever: int
    passes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the frequencies."""
        names = ("n_orders", "tau", "jaccard", "to_circuit", "always", "ever", "passes")
        return {**{name: getattr(self, name) for name in names}, "sizes": list(self.sizes)}


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
        """The headline in words."""
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
            frequencies = {f"frequency by {one.by}": float(one.frequency[src, dst]) for one in self.resamplings}
            if self.order is not None:
                frequencies["frequency by orders"] = float(self.order.frequency[src, dst])
            rows.append({"edge": str(graph.edge(src, dst)), "part": where, **frequencies})
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The ``stability`` of a circuit's file: plain values, edges apart."""
        return {
            "rule": self.rule,
            "n_pairs": self.n_pairs,
            "by": self.by,
            "jaccard": self.jaccard,
            "unstable": self.unstable,
            "core": len(self.core),
            "fringe": len(self.fringe),
            "agreement": self.agreement,
            "floor": self.floor,
            "resamplings": [one.as_dict() for one in self.resamplings],
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
        Of each kind; at least 100 for a number that is to be reported.

    Raises
    ------
    OptionError
        Fewer than two resamples, or scores, circuit and clusters that do not belong together.
    """
    _check(scores, circuit, clusters, n_resamples)
    plain = Clusters(len(scores), None, None)
    ways = [] if len(scores) < 2 else [plain] if clusters is None or clusters.by == "pairs" else [clusters, plain]
    found = []
    for turn, way in enumerate(ways):
        circuits = _selected(scores, rule, way, n_resamples, seed)
        masks = _stacked(circuits, turn * n_resamples, len(ways) * n_resamples, progress)
        found.append(_resampling(way.by, masks, circuit))
    again = rule.circuit(scores.mean(), float(scores.whole.mean()))
    agreement = jaccard_of(again, circuit)
    notes = _notes(scores, rule, clusters, agreement, found)
    return StabilityReport(circuit, str(rule), len(scores), agreement, scores.floor, tuple(found), tuple(notes))


def order_report(circuit: Circuit, order: OrderDependence, rule: str, n_pairs: int) -> StabilityReport:
    """What ``order_dependence`` found, as the stability of ACDC's circuit."""
    note = (
        f"ACDC decides by running the model, so pairs are not resampled; its dependence on the order of edges is "
        f"shown, over {order.n_orders + 1} runs"
    )
    return StabilityReport(circuit, rule, n_pairs, None, 0.0, (), (note,), order)


def order_dependence(
    model: Model,
    prepared: Sequence[Prepared],
    metric: Metric,
    tau: float,
    *,
    start: Circuit | None = None,
    default: Circuit | None = None,
    n_orders: int = 3,
    candidates: int | None = None,
    seed: int = 0,
    state: Path | None = None,
    progress: Progress | None = None,
) -> OrderDependence:
    """Run ACDC again in random orders; each run costs what the search itself did.

    Parameters
    ----------
    prepared, metric, tau, start, candidates
        As for ``acdc``.
    default
        What ACDC found in its own order, if that is known; otherwise it is run once more.
    state
        Beside this path the run in progress keeps its state and finished ones their circuits, to go on from after
        a stop; all of it is removed at the end.

    Raises
    ------
    OptionError
        No order is asked for.
    """
    if n_orders < 1:
        raise OptionError(f"ACDC in {n_orders} random orders tells nothing; ask for at least one")
    mask = (Circuit.full(model.graph) if start is None else start).mask
    rng = np.random.default_rng(seed)
    random = [_random_order(model.graph, mask, rng) for _ in range(n_orders)]
    orders = random if default is not None else [None, *random]
    circuits, passes = [] if default is None else [default], 0
    kept = _Kept(state, model, prepared, metric, f"{tau!r} {seed} {n_orders}", mask)
    for turn, edges in enumerate(orders):
        if (known := kept.of(turn)) is None:
            how: dict[str, Any] = {"start": start, "order": edges, "candidates": candidates, "state": kept.path(turn)}
            found = acdc(model, prepared, metric, tau, progress=_share_of(progress, turn, len(orders)), **how)
            known = found.circuit
            passes += found.passes
            kept.add(turn, known)
        circuits.append(known)
    kept.done()
    masks = np.array([one.mask for one in circuits])
    to_default = [value for one in circuits[1:] if (value := jaccard_of(one, circuits[0])) is not None]
    return OrderDependence(
        n_orders=n_orders,
        tau=tau,
        sizes=tuple(map(len, circuits)),
        jaccard=mean_jaccard(sparse.csr_array(masks.reshape(len(masks), -1))),
        to_circuit=float(np.mean(to_default)) if to_default else None,
        frequency=masks.mean(axis=0),
        always=int(masks.all(axis=0).sum()),
        ever=int(masks.any(axis=0).sum()),
        passes=passes,
    )


def mean_jaccard(masks: sparse.csr_array) -> float | None:
    """Mean Jaccard over pairs of rows of ``[circuit, edge]``; two empty ones are left out, None if all are."""
    found = _jaccards(masks)
    return float(found.mean()) if len(found) else None


def jaccard_of(first: Circuit, second: Circuit) -> float | None:
    """Edges that both have over edges that either has; None where both are empty."""
    joint = int((first.mask | second.mask).sum())
    return int((first.mask & second.mask).sum()) / joint if joint else None


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
    for turn, one in enumerate(circuits, 1):
        places.append(np.flatnonzero(one.mask))
        n_edges = one.mask.size
        if progress is not None:
            progress(done + turn, total)
    ends = np.cumsum([0, *map(len, places)])
    return sparse.csr_array((np.ones(ends[-1]), np.concatenate(places), ends), shape=(len(places), n_edges))


def _resampling(by: str, masks: sparse.csr_array, circuit: Circuit) -> Resampling:
    found = _jaccards(masks)
    own = sparse.csr_array(circuit.mask.reshape(1, -1).astype(np.float64))
    sizes = masks.sum(axis=1)
    shared = (masks @ own.T).toarray()[:, 0]
    joint = sizes + len(circuit) - shared
    to_circuit = shared[joint > 0] / joint[joint > 0]
    low, high = np.percentile(found, [5, 95]).tolist() if len(found) else (None, None)
    return Resampling(
        by=by,
        n_resamples=masks.shape[0],
        n_empty=int((sizes == 0).sum()),
        frequency=(masks.sum(axis=0) / masks.shape[0]).reshape(circuit.mask.shape),
        jaccard=float(found.mean()) if len(found) else None,
        low=low,
        high=high,
        to_circuit=float(to_circuit.mean()) if len(to_circuit) else None,
        sizes=(int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
    )


def _jaccards(masks: sparse.csr_array) -> Float[np.ndarray, " both"]:
    masks = masks.astype(np.float64)
    shared, sizes = (masks @ masks.T).toarray(), masks.sum(axis=1)
    first, second = np.triu_indices(len(sizes), k=1)
    joint = sizes[first] + sizes[second] - shared[first, second]
    return shared[first, second][joint > 0] / joint[joint > 0]


def _notes(
    scores: PairScores, rule: Rule, clusters: Clusters | None, agreement: float | None, found: Sequence[Resampling]
) -> Iterator[str]:
    """What a reader of the numbers must know."""
    if len(scores) < 2:
        yield "one pair only: there is nothing to resample"
    elif clusters is None or clusters.by == "pairs":
        why = f" ({clusters.note})" if clusters is not None and clusters.note else ""
        yield f"pairs are resampled as if they shared neither personas nor questions{why}"
    elif clusters.note:
        yield clusters.note
    if any(one.jaccard is None for one in found):
        yield "the rule selects no edge in any resample"
    if agreement is not None and agreement < 1:
        yield f"the rule makes another circuit of these pairs' scores (Jaccard {agreement:.3f})"
    if scores.floor:
        yield f"scores of single pairs below {scores.floor:.3g} were not kept; a mean score is off by less than that"
        tau = rule.tau if rule.share is None else rule.share * abs(float(scores.whole.mean()))
        if tau is not None and scores.floor > 0.1 * tau:
            yield f"that is more than a tenth of the threshold ({tau:.3g}): allow more memory"


class _Kept:
    """Circuits of finished runs, in a file until all are there; one of another search is not used."""

    def __init__(
        self,
        state: Path | None,
        model: Model,
        prepared: Sequence[Prepared],
        metric: Metric,
        setting: str,
        mask: Bool[np.ndarray, "src dst"],
    ) -> None:
        self.state, self.graph = state, model.graph
        digest = hashlib.sha256(f"{model.fingerprint} {metric.name} {setting}".encode() + np.packbits(mask).tobytes())
        for item in prepared:
            digest.update(
                item.batch.clean.cpu().numpy().tobytes() + item.ablated.logits.float().cpu().numpy().tobytes()
            )
        own = digest.hexdigest()
        self.search = hashlib.sha256("".join(sorted(ranks.gathered({own: own}))).encode()).hexdigest()
        self.found = ranks.gathered(self._read() if ranks.is_first() else {}) if state else {}

    def of(self, turn: int) -> Circuit | None:
        """What the run of that number found, None where it is still to do."""
        mask = self.found.get(str(turn))
        return None if mask is None else Circuit(self.graph, mask)

    def path(self, turn: int) -> Path | None:
        """Where the run of that number keeps its own state."""
        return None if self.state is None else self.state.with_name(f"{self.state.name}.{turn}")

    def add(self, turn: int, circuit: Circuit) -> None:
        """Remember a finished run."""
        self.found[str(turn)] = circuit.mask.copy()
        if self.state is not None and ranks.is_first():
            from safetensors.numpy import save

            write_bytes(save(self.found, metadata=state_metadata(self.search, self.found)), self.state)

    def _read(self) -> dict[str, np.ndarray]:
        assert self.state is not None
        found = read_state(self.state, self.search)
        if any(mask.shape != self.graph.valid.shape or mask.dtype != np.bool_ for mask in found.values()):
            tell_damaged(self.state, "it does not hold circuits of this model")
            return {}
        return found

    def done(self) -> None:
        """All runs are known: the file goes."""
        if self.state is not None and ranks.is_first():
            self.state.unlink(missing_ok=True)


def _random_order(graph: Graph, mask: Bool[np.ndarray, "src dst"], rng: np.random.Generator) -> list[Edge]:
    """The edges of ``mask`` so that none comes before those that its reader writes to, otherwise at random.

    Slots whose nodes write to one another stand in layers, so edges are shuffled within a layer's heads, within
    its MLP (both together where they read one stream), and within the logits.
    """
    places = []
    for slots in _levels(graph):
        into = np.argwhere(mask[:, slots])
        rng.shuffle(into)
        places += [(int(src), int(slot) + slots.start) for src, slot in into]
    return [graph.edge(src, dst) for src, dst in places]


def _levels(graph: Graph) -> Iterator[slice]:
    """Slots from the logits down; within each none of the nodes writes to another's."""
    yield slice(graph.n_dst - 1, graph.n_dst)
    for layer in reversed(range(graph.n_layers)):
        heads, mlp = graph.head_slots_of(layer), graph.mlp_slot_of(layer)
        yield from [slice(heads.start, mlp + 1)] if graph.parallel else [slice(mlp, mlp + 1), heads]


def _share_of(progress: Progress | None, turn: int, total: int) -> Progress | None:
    if progress is None:
        return None
    tell = progress
    return lambda done, whole: tell(turn * whole + done, total * whole)
