"""Knockouts: what is lost when parts of a circuit and of the model are removed, and what takes over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # whose parts are loaded when they are used: scipy.stats takes a second
from jaxtyping import Float

from persona_circuits.circuit.evaluation.completeness.share_intervals import (
    MOST_EXHAUSTIVE,
    N_SIGNS,
    NOT_APPLICABLE,
    Share,
    growth_p,
    shares,
)
from persona_circuits.circuit.evaluation.measurements import Measurements
from persona_circuits.circuit.statistics import Clusters, is_zero
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["BackupSearch", "Cut", "Knockout", "Study"]

N_CONTROLS = 5
FEWEST_TO_SPLIT = 4
MOST_INTERVALS = 20
"""Number of nodes outside that get an interval, those that grow most; nodes that take over always do."""


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


@dataclass(frozen=True)
class Cut:
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


class Study:
    """One circuit's measurements; every value is per pair."""

    def __init__(self, measured: Measurements, circuit: Circuit, clusters: Clusters | None, seed: int) -> None:
        self.measured, self.circuit, self.graph, self.seed = measured, circuit, circuit.graph, seed
        whole = [Circuit.full(self.graph), Circuit.empty(self.graph), circuit, circuit.complement()]
        self.full, self.empty, self.alone, self.without = measured.of(subgraph.mask for subgraph in whole)
        self.span = self.full - self.empty
        self.clusters = clusters or Clusters(len(self.span), None, None)

    def share(self, values: Float[np.ndarray, " pair"]) -> Share:
        return self.shares(values[None])[0]

    def shares(self, values: Float[np.ndarray, "row pair"]) -> tuple[Share, ...]:
        return shares(values, self.span, clusters=self.clusters, seed=self.seed)

    def rng(self, use: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(use,)))

    def random_nodes(self, inside: Sequence[int], count: int) -> list[Cut]:
        draws = self.rng(0).random((count, len(inside))) < 0.5
        cuts = [tuple(node for node, taken in zip(inside, row, strict=True) if taken) for row in draws.tolist()]
        return [Cut(f"random nodes {i}", nodes) for i, nodes in enumerate(cuts, 1) if nodes]

    def random_edges(self, count: int) -> list[Cut]:
        places, rng = np.argwhere(self.circuit.mask), self.rng(3)
        named = enumerate([places[rng.random(len(places)) < 0.5] for _ in range(count)], 1)
        return [Cut(f"random edges {i}", edges=tuple(map(tuple, cut.tolist()))) for i, cut in named if len(cut)]

    def nothing_cut(self) -> Knockout:
        """The gap of the circuit without a knockout."""
        return self._knockout("none", Cut("nothing"), self.alone - self.empty, self.span)

    def knockouts(self, kind: str, cuts: Sequence[Cut]) -> tuple[list[Knockout], Float[np.ndarray, "cut pair"]]:
        """Each part knocked out, and the gaps per pair."""
        of_circuit, of_model = self._both(cuts)
        knockouts = [self._knockout(kind, cut, of_circuit[i], of_model[i]) for i, cut in enumerate(cuts)]
        return knockouts, of_circuit - of_model

    def greedy(self, inside: Sequence[int], n_steps: int, n_candidates: int) -> tuple[list[Knockout], Knockout | None]:
        """Every step's knockout, measured on pairs that did not choose it, and the largest on those that did."""
        rng, knockouts, sizes = self.rng(1), [], []
        choosing, held = self._halves(rng)
        nodes: tuple[int, ...] = ()
        for step in range(1, min(n_steps, len(inside)) + 1):
            tried = rng.permutation([node for node in inside if node not in nodes])[:n_candidates].tolist()
            cuts = [Cut(f"greedy {step}", (*nodes, node)) for node in tried]
            of_circuit, of_model = self._both(cuts)
            gaps = np.abs((of_circuit - of_model)[:, choosing].mean(1))
            best = int(gaps.argmax())
            nodes = cuts[best].nodes
            sizes.append(gaps[best])
            knockouts.append(self._knockout("greedy", cuts[best], of_circuit[best], of_model[best], held))
        return knockouts, knockouts[int(np.argmax(sizes))] if knockouts else None

    def backup(
        self,
        types: Sequence[Cut],
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
        cuts = [Cut("circuit", edges=places), *types]
        left = np.stack([self.without, *(self.measured.of(cut.of(self.graph.valid) for cut in types) if types else [])])
        f_left = self.shares(left - self.empty)
        in_circuit = [0.0, *(x.f_circuit for x in by_type)]
        order = sorted(range(len(cuts)), key=lambda i: in_circuit[i] - f_left[i].value)
        searched = [i for i in order if abs(f_left[i].value) > negligible][:n_parts]
        nodes = self._growth([cuts[i] for i in searched], left[searched], outside, alpha, negligible)
        parts = [
            self._part(cuts[i], left[i], f_left[i], [x for x in nodes if x.part == cuts[i].name], outside)
            if i in searched
            else Part(cuts[i].name, self._names(cuts[i].nodes), f_left[i], False)
            for i in order
        ]
        return _conclusion(parts, nodes, self.clusters, alpha, negligible)

    def _growth(
        self,
        cuts: Sequence[Cut],
        left: Float[np.ndarray, "part pair"],
        outside: Sequence[int],
        alpha: float,
        negligible: float,
    ) -> list[Backup]:
        if not cuts:
            return []
        valid, scale = self.graph.valid, float(self.span.mean())
        singles = [Cut(str(self.graph.src_nodes[node]), (node,)) for node in outside]
        before = self.full - self.measured.of(single.of(valid) for single in singles)
        after = [
            left[i] - self.measured.of(single.of(cut.of(valid)) for single in singles) for i, cut in enumerate(cuts)
        ]
        growth = np.concatenate([values - before for values in after])
        p = growth_p(growth * np.sign(scale) - negligible * abs(scale), seed=self.seed, clusters=self.clusters)
        adjusted = scipy.stats.false_discovery_control(p)
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
        self, cut: Cut, left: Float[np.ndarray, " pair"], f_left: Share, nodes: Sequence[Backup], outside: Sequence[int]
    ) -> Part:
        """The nodes found for a part, knocked out together, beside as many others."""
        backups = [self.graph.src_index(x.node) for x in nodes if x.takes_over]
        names = self._names(cut.nodes)
        if not backups:
            return Part(cut.name, names, f_left, True)
        others = [node for node in outside if node not in backups]
        rng, sets = self.rng(2), [backups]
        if len(others) >= len(backups):
            sets += [rng.permutation(others)[: len(backups)].tolist() for _ in range(N_CONTROLS)]
        masks = (Cut("", tuple(x)).of(cut.of(self.graph.valid)) for x in sets)
        joint, *controls = self.shares(left - self.measured.of(masks))
        control = float(np.mean([x.value for x in controls])) if controls else None
        confirmed = joint.interval is not None and joint.interval.low > max(0.0, control or 0.0)
        return Part(cut.name, names, f_left, True, self._names(backups), joint, control, confirmed)

    def _both(self, cuts: Sequence[Cut]) -> tuple[Float[np.ndarray, "cut pair"], Float[np.ndarray, "cut pair"]]:
        """What the circuit and the model still do with each part knocked out."""
        if not cuts:
            return np.zeros((0, len(self.span))), np.zeros((0, len(self.span)))
        of_circuit, of_model = (
            self.measured.of(cut.of(mask) for cut in cuts) for mask in (self.circuit.mask, self.graph.valid)
        )
        return of_circuit - self.empty, of_model - self.empty

    def _knockout(
        self,
        kind: str,
        cut: Cut,
        of_circuit: Float[np.ndarray, " pair"],
        of_model: Float[np.ndarray, " pair"],
        pairs: np.ndarray | None = None,
    ) -> Knockout:
        chosen = np.arange(len(self.span)) if pairs is None else pairs
        drawn = self.clusters if pairs is None else self.clusters.among(chosen)
        span = self.span[chosen]
        return Knockout(
            kind=kind,
            name=cut.name,
            nodes=self._names(cut.nodes),
            n_edges=int((self.circuit.mask & ~cut.of(self.circuit.mask)).sum()),
            f_circuit=float(of_circuit[chosen].mean() / span.mean()),
            f_model=float(of_model[chosen].mean() / span.mean()),
            gap=shares((of_circuit - of_model)[None, chosen], span, clusters=drawn, seed=self.seed)[0],
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


def _conclusion(
    parts: Sequence[Part], nodes: Sequence[Backup], clusters: Clusters, alpha: float, negligible: float
) -> BackupSearch:
    taking = [part for part in parts if part.found]
    if not nodes:
        sentence = f"Whatever part of the circuit is gone, the model does less than {negligible:.0%} of what it did."
        return BackupSearch("none found", sentence, tuple(parts))
    if taking:
        told = "; ".join(_told(part) for part in taking)
        return BackupSearch("found", f"Nodes outside take over: {told}.", tuple(parts), tuple(nodes))
    n_pairs = clusters.n
    least = 0.5**n_pairs if n_pairs <= MOST_EXHAUSTIVE else 1 / (1 + N_SIGNS)
    least = max(least, 0.5**clusters.independent)
    if least * len(nodes) > alpha:
        pairs = "1 pair" if n_pairs == 1 else f"{n_pairs} pairs"
        sentence = f"With {pairs} no single node out of {len(nodes)} tested could be told from chance."
        return BackupSearch("undecided", sentence, tuple(parts), tuple(nodes))
    where = ", ".join(part.name for part in parts if part.searched)
    most = f"{nodes[0].node} with {nodes[0].growth.value:+.1%} without {nodes[0].part}"
    sentence = (
        f"No node outside is shown to grow by more than {negligible:.0%} (searched without: {where}); the most: {most}."
    )
    return BackupSearch("none found", sentence, tuple(parts), tuple(nodes))


def _told(part: Part) -> str:
    assert part.joint is not None
    names = ", ".join(part.found[:5]) + (" and others" if len(part.found) > 5 else "")
    control = "" if part.control is None else f", as many others {part.control:.1%}"
    verdict = "confirmed" if part.confirmed else "not confirmed"
    return f"without {part.name} {names}, which together do {part.joint.value:.1%} of the whole{control} ({verdict})"
