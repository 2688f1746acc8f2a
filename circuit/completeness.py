"""What a circuit leaves out: the rest of the model, and what happens when a part of the circuit is knocked out.

    complement   F(M without C): what the model still does without the circuit's edges
    knockouts    F(C without K) - F(M without K) for parts K of the circuit: a complete circuit breaks
                 as the model breaks (Wang et al. 2022, arXiv:2211.00593, section 4)
    backup       nodes outside the circuit that do more once nodes of the circuit are knocked out

F(X) = (m(X) - m(empty)) / (m(full) - m(empty)), a ratio of means over pairs. Knocking out a
node cuts every edge that leaves it. K is drawn at random (each node, or each edge, with
chance 1/2), is all of one type (heads, MLPs, heads of one layer), or is grown greedily to
make the gap large. What is chosen for being large is too large by chance: the greedy K
is chosen on one half of the pairs and its gap measured on the other.

The backup search measures the effect of every node outside, F(X) - F(X without it), in the
whole model and in the model with a part K of the circuit knocked out, and tests per
node that it grows by more than a negligible share, with the false discovery rate
held over all nodes and parts (Benjamini and Hochberg 1995). What is found is then knocked
out together, beside as many other nodes: only what is lost then was theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from circuit.errors import OptionError
from circuit.graph import Graph
from circuit.measurements import Measurements, Source
from circuit.model import Model
from circuit.patching import Progress
from circuit.subgraph import Circuit
from circuit.uncertainty import Clusters, Interval, interval, is_zero, ratio_interval
from metrics import Metric

__all__ = [
    "Backup",
    "BackupSearch",
    "CompletenessReport",
    "Knockout",
    "Part",
    "Share",
    "completeness_report",
    "growth_p",
    "shares",
]

NOT_APPLICABLE = "not applicable"
N_CONTROLS = 5
MOST_EXHAUSTIVE = 16
"""Up to so many pairs all signs are tried in the sign-flip test, else ``N_SIGNS`` random ones."""
N_SIGNS = 50_000
SIGNS_AT_A_TIME = 4096
FEWEST_TO_SPLIT = 4
MOST_INTERVALS = 20
"""Of the nodes outside those that grow most have an interval, and those that are found to take over."""


@dataclass(frozen=True)
class Share:
    """A ratio of means over pairs with its 95 % bootstrap interval; none from a single pair."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Knockout:
    """A part K of the circuit knocked out of the circuit and out of the model.

    ``kind`` is ``none`` (nothing is knocked out), ``random nodes``, ``random edges``, ``type`` or ``greedy``;
    ``nodes`` is empty for edges. ``gap`` is ``f_circuit`` - ``f_model``, on ``n_pairs`` pairs.
    """

    kind: str
    name: str
    nodes: tuple[str, ...]
    n_edges: int
    f_circuit: float
    f_model: float
    gap: Share
    n_pairs: int


@dataclass(frozen=True)
class Part:
    """A part of the circuit whose absence was searched for backup.

    ``f_left`` is what the model does without it. ``joint`` is what it loses when the nodes found to take
    over are knocked out as well, ``control`` the mean of that for as many other nodes outside. ``confirmed`` says
    that the loss is above zero by its interval, and above the control.
    """

    name: str
    nodes: tuple[str, ...]
    f_left: Share
    searched: bool
    found: tuple[str, ...] = ()
    joint: Share | None = None
    control: float | None = None
    confirmed: bool = False


@dataclass(frozen=True)
class Backup:
    """A node outside the circuit, with its effect as a share of m(full) - m(empty) before and after a part is gone.

    ``p`` is of H0 that it grows by no more than a negligible share, ``p_adjusted`` after
    Benjamini and Hochberg over all nodes and parts.
    """

    node: str
    part: str
    before: float
    after: float
    growth: Share
    p: float
    p_adjusted: float
    takes_over: bool


@dataclass(frozen=True)
class BackupSearch:
    """Parts tried, and the nodes outside by growth, largest first."""

    decision: str
    sentence: str
    parts: tuple[Part, ...] = ()
    nodes: tuple[Backup, ...] = ()


NOT_SEARCHED = BackupSearch(NOT_APPLICABLE, "Backup was not searched for.")


@dataclass(frozen=True)
class CompletenessReport:
    """Complement, knockouts and backup of one circuit on one set of pairs.

    ``circuit`` and ``complement`` are F; None where m(full) = m(empty) and nothing is defined.
    ``mean_gap`` is the mean |gap| over random knockouts of nodes, ``worst`` the random or
    type knockout with the largest |gap|, ``greedy`` the greedy one that was chosen.
    """

    metric: str
    n_pairs: int
    n_edges: int
    m_full: float
    m_empty: float
    circuit: Share | None
    complement: Share | None
    mean_gap: Share | None
    worst: Knockout | None
    greedy: Knockout | None
    knockouts: tuple[Knockout, ...]
    backup: BackupSearch
    quick: bool
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as files hold them."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The headline numbers in words."""
        if self.circuit is None or self.complement is None:
            return self.backup.sentence
        parts = [
            f"The circuit does {self.circuit.value:.1%} of what the model does, the model without it "
            f"{self.complement.value:.1%}"
        ]
        if self.mean_gap is not None:
            parts.append(
                f"with random parts knocked out circuit and model differ by {self.mean_gap.value:.1%} on average"
            )
        if self.worst is not None:
            parts.append(f"by {abs(self.worst.gap.value):.1%} at most ({self.worst.name})")
        if self.greedy is not None:
            parts.append(
                f"by {abs(self.greedy.gap.value):.1%} for the part chosen to differ ({', '.join(self.greedy.nodes)})"
            )
        return "; ".join(parts) + "."

    def rows(self) -> list[dict[str, Any]]:
        """A row per headline number, for tables."""
        named = [
            ("circuit F(C)", self.circuit),
            ("complement F(M without C)", self.complement),
            ("mean |gap|, random knockouts of nodes", self.mean_gap),
            ("largest gap, random or type", None if self.worst is None else self.worst.gap),
            ("greedy gap, held-out pairs", None if self.greedy is None else self.greedy.gap),
        ]
        return [{"number": name, "value": share.value, **_bounds(share)} for name, share in named if share is not None]

    def knockout_rows(self) -> list[dict[str, Any]]:
        """A row per knockout."""
        return [
            {"kind": one.kind, "name": one.name, "edges": one.n_edges, "f_circuit": one.f_circuit}
            | {"f_model": one.f_model, "gap": one.gap.value, **_bounds(one.gap), "pairs": one.n_pairs}
            for one in self.knockouts
        ]

    def backup_rows(self) -> list[dict[str, Any]]:
        """A row per node outside and part searched, the largest growth first."""
        return [
            {"node": one.node, "part": one.part, "before": one.before, "after": one.after}
            | {"growth": one.growth.value, **_bounds(one.growth), "p": one.p, "p_adjusted": one.p_adjusted}
            | {"takes_over": one.takes_over}
            for one in self.backup.nodes
        ]


def completeness_report(
    model: Model,
    prepared: Source,
    metric: Metric,
    circuit: Circuit,
    *,
    n_random: int = 20,
    n_steps: int = 4,
    n_candidates: int = 10,
    n_parts: int = 3,
    alpha: float = 0.05,
    negligible: float = 0.01,
    clusters: Clusters | None = None,
    seed: int = 0,
    quick: bool = False,
    progress: Progress | None = None,
    state: Path | None = None,
) -> CompletenessReport:
    """How much of the behaviour lies outside the circuit, as it is and when parts of the circuit are gone.

    Parameters
    ----------
    prepared
        Gives the batches; called once for every 64 circuits measured, so a list is best
        where memory allows.
    n_random
        Random knockouts of nodes, and as many of edges.
    n_steps, n_candidates
        Of the greedy knockout: nodes added, and nodes tried for each.
    n_parts
        Parts of the circuit whose absence is searched for backup, those first that the
        model needs most.
    alpha
        False discovery rate of the backup search.
    negligible
        Growth of a node's effect, as a share of m(full) - m(empty), that is no taking over.
    clusters
        Personas and questions that pairs share, for the intervals; pairs alone without it.
    quick
        5 random knockouts, 2 greedy steps of 4 candidates, no backup search.
    progress
        Called with the circuits measured and the most that there can be.
    state
        File in which measurements are kept, to go on from after a stop; removed at the end.

    Raises
    ------
    OptionError
        A level, share or number is impossible.
    """
    _check(n_random, n_steps, n_candidates, n_parts, alpha, negligible)
    if quick:
        n_random, n_steps, n_candidates, n_parts = min(n_random, 5), min(n_steps, 2), min(n_candidates, 4), 0
    graph = model.graph
    inside = [graph.src_index(node) for node in circuit.nodes() if node.kind in ("head", "mlp")]
    outside = [node for node in range(1, graph.n_src) if node not in inside]
    types = _types(graph, inside)
    total = 4 + 2 * (2 * n_random + len(types) + n_steps * n_candidates)
    total += (len(types) + 1 + (1 + n_parts) * len(outside)) if n_parts else 0
    measured = Measurements(model, prepared, metric, total=total, progress=progress, state=state)
    study = _Study(measured, circuit, clusters, seed)
    about: dict[str, Any] = {
        "metric": metric.name,
        "n_pairs": len(study.span),
        "n_edges": len(circuit),
        "m_full": float(study.full.mean()),
        "m_empty": float(study.empty.mean()),
        "quick": quick,
        "seed": seed,
    }
    if is_zero(study.span, measured.rounding):
        measured.done()
        return _undefined(about)
    random, gaps = study.knockouts("random nodes", study.random_nodes(inside, n_random))
    by_edges, _ = study.knockouts("random edges", study.random_edges(n_random))
    by_type, _ = study.knockouts("type", types)
    greedy, chosen = study.greedy(inside, n_steps, n_candidates)
    backup = study.backup(types, by_type, outside, n_parts, alpha, negligible) if n_parts else NOT_SEARCHED
    measured.done()
    drawn = (*random, *by_edges, *by_type)
    return CompletenessReport(
        circuit=study.share(study.alone - study.empty),
        complement=study.share(study.without - study.empty),
        mean_gap=_mean_absolute(gaps, study.span, study.clusters, seed),
        worst=max(drawn, key=lambda one: abs(one.gap.value), default=None),
        greedy=chosen,
        knockouts=(study.nothing_cut(), *drawn, *greedy),
        backup=backup,
        **about,
    )


def shares(
    values: Float[np.ndarray, "row pair"],
    span: Float[np.ndarray, " pair"],
    *,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> tuple[Share, ...]:
    """Each row's mean as a share of the mean of ``span``, with its interval; pairs are drawn without ``clusters``."""
    drawn = clusters or Clusters(len(span), None, None)
    return tuple(Share(float(row.mean() / span.mean()), ratio_interval(row, span, drawn, seed=seed)) for row in values)


def growth_p(
    growth: Float[np.ndarray, "node pair"], *, seed: int = 0, clusters: Clusters | None = None
) -> Float[np.ndarray, " node"]:
    """One-sided sign-flip p per node, of H0 that its growth is symmetric about zero or below.

    With at most 16 pairs the share of all 2^n sign patterns whose mean is at least the
    one found; with more, (1 + b) / (1 + B) over B = 50,000 random patterns. With n pairs p is at least 2^-n.
    Pairs that share personas or questions are not flipped each for itself with right: with ``clusters`` p is no smaller
    than that of a t test with their spread, nor than 2^-k with k independent clusters.
    """
    p = _flipped(growth, seed)
    if clusters is None or clusters.by == "pairs":
        return p
    means = growth.mean(1)
    shared = [clusters.p_above(float(mean), row - mean) for mean, row in zip(means, growth, strict=True)]
    return np.maximum(np.maximum(p, shared), 0.5**clusters.independent)


def _flipped(growth: Float[np.ndarray, "node pair"], seed: int) -> Float[np.ndarray, " node"]:
    n = growth.shape[1]
    found = growth.sum(1) - 1e-9 * np.abs(growth).sum(1)
    at_least, tried = np.zeros(len(growth)), 0
    for signs in _signs(n, seed):
        at_least += (signs @ growth.T >= found).sum(0)
        tried += len(signs)
    return at_least / tried if n <= MOST_EXHAUSTIVE else (1 + at_least) / (1 + tried)


@dataclass(frozen=True)
class _Cut:
    """What a knockout cuts: all edges that leave some nodes, or some edges of the circuit."""

    name: str
    nodes: tuple[int, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()

    def of(self, mask: np.ndarray) -> np.ndarray:
        """The mask without what is cut."""
        kept = mask.copy()
        kept[list(self.nodes)] = False
        if self.edges:
            kept[tuple(np.transpose(self.edges))] = False
        return kept


class _Study:
    """One circuit's measurements; every value is per pair."""

    def __init__(self, measured: Measurements, circuit: Circuit, clusters: Clusters | None, seed: int) -> None:
        self.measured, self.circuit, self.graph, self.seed = measured, circuit, circuit.graph, seed
        whole = [Circuit.full(self.graph), Circuit.empty(self.graph), circuit, circuit.complement()]
        self.full, self.empty, self.alone, self.without = measured.of(one.mask for one in whole)
        self.span = self.full - self.empty
        self.clusters = clusters or Clusters(len(self.span), None, None)

    def share(self, values: Float[np.ndarray, " pair"]) -> Share:
        return self.shares(values[None])[0]

    def shares(self, values: Float[np.ndarray, "row pair"]) -> tuple[Share, ...]:
        return shares(values, self.span, clusters=self.clusters, seed=self.seed)

    def rng(self, use: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(use,)))

    def random_nodes(self, inside: Sequence[int], count: int) -> list[_Cut]:
        draws = self.rng(0).random((count, len(inside))) < 0.5
        cuts = [tuple(node for node, taken in zip(inside, row, strict=True) if taken) for row in draws.tolist()]
        return [_Cut(f"random nodes {i}", nodes) for i, nodes in enumerate(cuts, 1) if nodes]

    def random_edges(self, count: int) -> list[_Cut]:
        places, rng = np.argwhere(self.circuit.mask), self.rng(3)
        named = enumerate([places[rng.random(len(places)) < 0.5] for _ in range(count)], 1)
        return [_Cut(f"random edges {i}", edges=tuple(map(tuple, cut.tolist()))) for i, cut in named if len(cut)]

    def nothing_cut(self) -> Knockout:
        """The gap that the circuit has as it is."""
        return self._knockout("none", _Cut("nothing"), self.alone - self.empty, self.span)

    def knockouts(self, kind: str, cuts: Sequence[_Cut]) -> tuple[list[Knockout], Float[np.ndarray, "cut pair"]]:
        """Each part knocked out, and the gaps per pair."""
        mine, whole = self._both(cuts)
        found = [self._knockout(kind, cut, mine[i], whole[i]) for i, cut in enumerate(cuts)]
        return found, mine - whole

    def greedy(self, inside: Sequence[int], n_steps: int, n_candidates: int) -> tuple[list[Knockout], Knockout | None]:
        """Every step's knockout, measured on pairs that did not choose it, and the largest on those that did."""
        rng, found, sizes = self.rng(1), [], []
        choosing, held = self._halves(rng)
        nodes: tuple[int, ...] = ()
        for step in range(1, min(n_steps, len(inside)) + 1):
            tried = rng.permutation([node for node in inside if node not in nodes])[:n_candidates].tolist()
            cuts = [_Cut(f"greedy {step}", (*nodes, node)) for node in tried]
            mine, whole = self._both(cuts)
            gaps = np.abs((mine - whole)[:, choosing].mean(1))
            best = int(gaps.argmax())
            nodes = cuts[best].nodes
            sizes.append(gaps[best])
            found.append(self._knockout("greedy", cuts[best], mine[best], whole[best], held))
        return found, found[int(np.argmax(sizes))] if found else None

    def backup(
        self,
        types: Sequence[_Cut],
        by_type: Sequence[Knockout],
        outside: Sequence[int],
        n_parts: int,
        alpha: float,
        negligible: float,
    ) -> BackupSearch:
        """Nodes outside that grow when a part is gone, first the parts that the model does better without."""
        if not outside:
            return BackupSearch(NOT_APPLICABLE, "Every node is in the circuit.")
        places = tuple((src, slot) for src, slot in np.argwhere(self.circuit.mask).tolist())
        cuts = [_Cut("circuit", edges=places), *types]
        left = np.stack([self.without, *(self.measured.of(cut.of(self.graph.valid) for cut in types) if types else [])])
        f_left = self.shares(left - self.empty)
        in_circuit = [0.0, *(one.f_circuit for one in by_type)]
        order = sorted(range(len(cuts)), key=lambda i: in_circuit[i] - f_left[i].value)
        searched = [i for i in order if abs(f_left[i].value) > negligible][:n_parts]
        nodes = self._growth([cuts[i] for i in searched], left[searched], outside, alpha, negligible)
        parts = [
            self._part(cuts[i], left[i], f_left[i], [one for one in nodes if one.part == cuts[i].name], outside)
            if i in searched
            else Part(cuts[i].name, self._names(cuts[i].nodes), f_left[i], False)
            for i in order
        ]
        return _conclusion(parts, nodes, self.clusters, alpha, negligible)

    def _growth(
        self,
        cuts: Sequence[_Cut],
        left: Float[np.ndarray, "part pair"],
        outside: Sequence[int],
        alpha: float,
        negligible: float,
    ) -> list[Backup]:
        if not cuts:
            return []
        valid, scale = self.graph.valid, float(self.span.mean())
        singles = [_Cut(str(self.graph.src_nodes[node]), (node,)) for node in outside]
        before = self.full - self.measured.of(one.of(valid) for one in singles)
        after = [left[i] - self.measured.of(one.of(cut.of(valid)) for one in singles) for i, cut in enumerate(cuts)]
        growth = np.concatenate([values - before for values in after])
        p = growth_p(growth * np.sign(scale) - negligible * abs(scale), seed=self.seed, clusters=self.clusters)
        adjusted = stats.false_discovery_control(p)
        means = growth.mean(1) / scale
        order = np.argsort(-means, kind="stable").tolist()
        known = [i for place, i in enumerate(order) if place < MOST_INTERVALS or adjusted[i] <= alpha]
        growths = {i: Share(float(means[i]), None) for i in order} | dict(
            zip(known, self.shares(growth[known]), strict=True)
        )
        befores, afters = np.tile(before.mean(1), len(cuts)) / scale, np.concatenate(after).mean(1) / scale
        return [
            Backup(
                node=singles[i % len(singles)].name,
                part=cuts[i // len(singles)].name,
                before=float(befores[i]),
                after=float(afters[i]),
                growth=growths[i],
                p=float(p[i]),
                p_adjusted=float(adjusted[i]),
                takes_over=bool(adjusted[i] <= alpha),
            )
            for i in order
        ]

    def _part(
        self,
        cut: _Cut,
        left: Float[np.ndarray, " pair"],
        f_left: Share,
        nodes: Sequence[Backup],
        outside: Sequence[int],
    ) -> Part:
        """The nodes found for a part, knocked out together, beside as many others."""
        found = [self.graph.src_index(one.node) for one in nodes if one.takes_over]
        names = self._names(cut.nodes)
        if not found:
            return Part(cut.name, names, f_left, True)
        others = [node for node in outside if node not in found]
        rng, sets = self.rng(2), [found]
        if len(others) >= len(found):
            sets += [rng.permutation(others)[: len(found)].tolist() for _ in range(N_CONTROLS)]
        masks = (_Cut("", tuple(one)).of(cut.of(self.graph.valid)) for one in sets)
        joint, *controls = self.shares(left - self.measured.of(masks))
        control = float(np.mean([one.value for one in controls])) if controls else None
        confirmed = joint.interval is not None and joint.interval.low > max(0.0, control or 0.0)
        return Part(cut.name, names, f_left, True, self._names(found), joint, control, confirmed)

    def _both(self, cuts: Sequence[_Cut]) -> tuple[Float[np.ndarray, "cut pair"], Float[np.ndarray, "cut pair"]]:
        """What the circuit and the model still do with each part knocked out."""
        if not cuts:
            return np.zeros((0, len(self.span))), np.zeros((0, len(self.span)))
        mine, whole = (self.measured.of(cut.of(mask) for cut in cuts) for mask in (self.circuit.mask, self.graph.valid))
        return mine - self.empty, whole - self.empty

    def _knockout(
        self,
        kind: str,
        cut: _Cut,
        mine: Float[np.ndarray, " pair"],
        whole: Float[np.ndarray, " pair"],
        pairs: np.ndarray | None = None,
    ) -> Knockout:
        chosen = np.arange(len(self.span)) if pairs is None else pairs
        drawn = self.clusters if len(chosen) == len(self.span) else Clusters(len(chosen), None, None)
        span = self.span[chosen]
        return Knockout(
            kind=kind,
            name=cut.name,
            nodes=self._names(cut.nodes),
            n_edges=int((self.circuit.mask & ~cut.of(self.circuit.mask)).sum()),
            f_circuit=float(mine[chosen].mean() / span.mean()),
            f_model=float(whole[chosen].mean() / span.mean()),
            gap=shares((mine - whole)[None, chosen], span, clusters=drawn, seed=self.seed)[0],
            n_pairs=len(chosen),
        )

    def _halves(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Pairs that choose, and pairs that are measured; all for both where a half is too small or shows nothing."""
        order = rng.permutation(len(self.span))
        halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        flat = any(is_zero(self.span[half], self.measured.rounding) for half in halves if len(half))
        return halves if len(order) >= FEWEST_TO_SPLIT and not flat else (np.sort(order), np.sort(order))

    def _names(self, nodes: Sequence[int]) -> tuple[str, ...]:
        return tuple(str(self.graph.src_nodes[node]) for node in nodes)


def _types(graph: Graph, inside: Sequence[int]) -> list[_Cut]:
    """All heads, all MLPs, and the heads of every layer, as far as the circuit has them."""
    nodes = {place: graph.src_nodes[place] for place in inside}
    groups: dict[str, list[int]] = {}
    for place, node in nodes.items():
        groups.setdefault("heads" if node.kind == "head" else "MLPs", []).append(place)
        if node.kind == "head":
            groups.setdefault(f"heads of layer {node.layer}", []).append(place)
    return [_Cut(name, tuple(places)) for name, places in groups.items()]


def _mean_absolute(
    gaps: Float[np.ndarray, "cut pair"], span: Float[np.ndarray, " pair"], clusters: Clusters, seed: int
) -> Share | None:
    """Mean over knockouts of the |gap|, with its interval over pairs."""
    if not len(gaps):
        return None

    def mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.abs(weights @ gaps.T / (weights @ span)[:, None]).mean(1)

    return Share(float(mean(np.full((1, len(span)), 1 / len(span)))[0]), interval(mean, clusters, seed=seed))


def _signs(n: int, seed: int) -> Iterator[Float[np.ndarray, "pattern pair"]]:
    if n <= MOST_EXHAUSTIVE:
        for start in range(0, 2**n, SIGNS_AT_A_TIME):
            codes = np.arange(start, min(start + SIGNS_AT_A_TIME, 2**n))
            yield 1.0 - 2.0 * (codes[:, None] >> np.arange(n) & 1)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, N_SIGNS, SIGNS_AT_A_TIME):
        yield rng.choice((-1.0, 1.0), size=(min(SIGNS_AT_A_TIME, N_SIGNS - start), n))


def _conclusion(
    parts: Sequence[Part], nodes: Sequence[Backup], clusters: Clusters, alpha: float, negligible: float
) -> BackupSearch:
    taking = [part for part in parts if part.found]
    if not nodes:
        says = f"Whatever part of the circuit is gone, the model does less than {negligible:.0%} of what it did."
        return BackupSearch("none found", says, tuple(parts))
    if taking:
        told = "; ".join(_told(part) for part in taking)
        return BackupSearch("found", f"Nodes outside take over: {told}.", tuple(parts), tuple(nodes))
    n_pairs = clusters.n
    least = 0.5**n_pairs if n_pairs <= MOST_EXHAUSTIVE else 1 / (1 + N_SIGNS)
    least = max(least, 0.5**clusters.independent)
    if least * len(nodes) > alpha:
        pairs = "1 pair" if n_pairs == 1 else f"{n_pairs} pairs"
        says = f"With {pairs} no single node out of {len(nodes)} tested could be told from chance."
        return BackupSearch("undecided", says, tuple(parts), tuple(nodes))
    where = ", ".join(part.name for part in parts if part.searched)
    most = f"{nodes[0].node} with {nodes[0].growth.value:+.1%} without {nodes[0].part}"
    says = (
        f"No node outside is shown to grow by more than {negligible:.0%} (searched without: {where}); the most: {most}."
    )
    return BackupSearch("none found", says, tuple(parts), tuple(nodes))


def _told(part: Part) -> str:
    assert part.joint is not None
    names = ", ".join(part.found[:5]) + (" and others" if len(part.found) > 5 else "")
    control = "" if part.control is None else f", as many others {part.control:.1%}"
    verdict = "confirmed" if part.confirmed else "not confirmed"
    return f"without {part.name} {names}, which together do {part.joint.value:.1%} of the whole{control} ({verdict})"


def _undefined(about: dict[str, Any]) -> CompletenessReport:
    says = "With every edge ablated the metric is the same as with none: no share of it is defined."
    nothing: dict[str, Any] = dict.fromkeys(("circuit", "complement", "mean_gap", "worst", "greedy"))
    return CompletenessReport(knockouts=(), backup=BackupSearch(NOT_APPLICABLE, says), **nothing, **about)


def _bounds(share: Share) -> dict[str, float | None]:
    interval = share.interval
    return {"low": None if interval is None else interval.low, "high": None if interval is None else interval.high}


def _check(n_random: int, n_steps: int, n_candidates: int, n_parts: int, alpha: float, negligible: float) -> None:
    for name, number, least in (
        ("random knockouts", n_random, 0),
        ("greedy steps", n_steps, 0),
        ("greedy candidates", n_candidates, 1),
        ("parts", n_parts, 0),
    ):
        if number < least:
            raise OptionError(f"the number of {name} must be at least {least}, got {number}")
    if not 0 < alpha < 1:
        raise OptionError(f"alpha must lie between 0 and 1, got {alpha:g}")
    if not 0 <= negligible < 1:
        raise OptionError(f"the share that is negligible must be at least 0 and below 1, got {negligible:g}")
