"""What a circuit leaves out: the rest of the model, and what happens when a part of the circuit is knocked out.

    complement   F(M without C): what the model still does without the circuit's edges
    knockouts    F(C without K) - F(M without K) for parts K of the circuit: a complete circuit breaks
                 as the model breaks (Wang et al. 2022, arXiv:2211.00593, section 4)
    backup       nodes outside the circuit that do more once nodes of the circuit are knocked out

F(X) = (m(X) - m(empty)) / (m(full) - m(empty)), a ratio of means over pairs. Knocking out a node cuts every edge that
leaves it. K is drawn at random (each node, or each edge, with chance 1/2), is all of one type (heads, MLPs, heads of
one layer), or is grown greedily to make the gap large. Such a selected gap is biased upwards, so the greedy K is chosen
on one half of the pairs and its gap measured on the other.

The backup search measures the effect of every node outside, F(X) - F(X without it), in the whole model and in the model
with a part K of the circuit knocked out, and tests per node that it grows by more than a negligible share, controlling
the false discovery rate over all nodes and parts (Benjamini and Hochberg 1995). The nodes found are then knocked out
together, with as many other nodes as a control: only what is lost then was theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.completeness.share_intervals import NOT_APPLICABLE, Share
from persona_circuits.circuit.evaluation.completeness.study import BackupSearch, Cut, Knockout, Study
from persona_circuits.circuit.evaluation.measurements import Measurements, Source
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.options import PlainNumbers
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import Clusters, interval, is_zero
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = ["CompletenessOptions", "CompletenessReport", "completeness_report"]

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
            {"kind": knockout.kind, "name": knockout.name, "edges": knockout.n_edges, "f_circuit": knockout.f_circuit}
            | {
                "f_model": knockout.f_model,
                "gap": knockout.gap.value,
                **_bounds(knockout.gap),
                "pairs": knockout.n_pairs,
            }
            for knockout in self.knockouts
        ]

    def backup_rows(self) -> list[dict[str, Any]]:
        """A row per node outside and part searched, the largest growth first."""
        return [
            {"node": node.node, "part": node.part, "before": node.before, "after": node.after}
            | {"growth": node.growth.value, **_bounds(node.growth), "p": node.p, "p_adjusted": node.p_adjusted}
            | {"takes_over": node.takes_over}
            for node in self.backup.nodes
        ]


@dataclass(frozen=True)
class CompletenessOptions(PlainNumbers):
    """What is knocked out.

    Parameters
    ----------
    n_random
        Random knockouts of nodes, and as many of edges.
    n_steps, n_candidates
        Of the greedy knockout: nodes added, and nodes tried for each.
    n_parts
        Parts of the circuit whose absence is searched for backup, starting with those that the model needs most.
    alpha
        False discovery rate of the backup search.
    negligible
        Growth of a node's effect, as a share of m(full) - m(empty), that does not count as taking over.
    quick
        5 random knockouts, 2 greedy steps of 4 candidates, no backup search.
    """

    n_random: int = 20
    n_steps: int = 4
    n_candidates: int = 10
    n_parts: int = 3
    alpha: float = 0.05
    negligible: float = 0.01
    seed: int = 0
    quick: bool = False

    def checked(self) -> CompletenessOptions:
        """These options, with small numbers where ``quick`` is set.

        Raises:
            OptionError: a level, share or number is impossible.
        """
        for name, number, least in (
            ("random knockouts", self.n_random, 0),
            ("greedy steps", self.n_steps, 0),
            ("greedy candidates", self.n_candidates, 1),
            ("parts", self.n_parts, 0),
        ):
            if number < least:
                raise OptionError(f"the number of {name} must be at least {least}, got {number}")
        if not 0 < self.alpha < 1:
            raise OptionError(f"alpha must lie between 0 and 1, got {self.alpha:g}")
        if not 0 <= self.negligible < 1:
            raise OptionError(f"the share that is negligible must be at least 0 and below 1, got {self.negligible:g}")
        if not self.quick:
            return self
        few = {"n_random": 5, "n_steps": 2, "n_candidates": 4, "n_parts": 0}
        return replace(self, **{name: min(getattr(self, name), most) for name, most in few.items()})


def completeness_report(
    model: Model,
    prepared: Source,
    metric: Metric,
    circuit: Circuit,
    options: CompletenessOptions | None = None,
    *,
    clusters: Clusters | None = None,
    progress: Progress | None = None,
    state: Path | None = None,
) -> CompletenessReport:
    """How much of the behaviour lies outside the circuit, as it is and when parts of the circuit are gone.

    Parameters
    ----------
    prepared
        Gives the batches; called once for every 64 circuits measured, so a list is best where memory allows.
    clusters
        Personas and questions that pairs share, for the intervals; without it pairs are resampled.
    progress
        Called with the number of circuits measured and its upper bound.
    state
        File in which measurements are saved, to resume from after a stop; removed at the end.

    Raises
    ------
    OptionError
        A level, share or number is impossible.
    """
    options = (options or CompletenessOptions()).checked()
    n_parts, seed = options.n_parts, options.seed
    graph = model.graph
    inside = [graph.src_index(node) for node in circuit.nodes() if node.kind in ("head", "mlp")]
    outside = [node for node in range(1, graph.n_src) if node not in inside]
    types = _types(graph, inside)
    total = 4 + 2 * (2 * options.n_random + len(types) + options.n_steps * options.n_candidates)
    total += (len(types) + 1 + (1 + n_parts) * len(outside)) if n_parts else 0
    measured = Measurements(model, prepared, metric, total=total, progress=progress, state=state)
    study = Study(measured, circuit, clusters, seed)
    facts = {"metric": metric.name, "n_edges": len(circuit), "quick": options.quick, "seed": seed, **_ends(study)}
    if is_zero(study.span, measured.rounding):
        measured.done()
        return _undefined(facts)
    random, gaps = study.knockouts("random nodes", study.random_nodes(inside, options.n_random))
    by_edges, _ = study.knockouts("random edges", study.random_edges(options.n_random))
    by_type, _ = study.knockouts("type", types)
    greedy, chosen = study.greedy(inside, options.n_steps, options.n_candidates)
    backup = NOT_SEARCHED
    if n_parts:
        backup = study.backup(types, by_type, outside, n_parts, options.alpha, options.negligible)
    measured.done()
    drawn = (*random, *by_edges, *by_type)
    return CompletenessReport(
        circuit=study.share(study.alone - study.empty),
        complement=study.share(study.without - study.empty),
        mean_gap=_mean_absolute(gaps, study.span, study.clusters, seed),
        worst=max(drawn, key=lambda knockout: abs(knockout.gap.value), default=None),
        greedy=chosen,
        knockouts=(study.nothing_cut(), *drawn, *greedy),
        backup=backup,
        **facts,
    )


def _ends(study: Study) -> dict[str, Any]:
    """The number of pairs, and the metric of the full and of the empty circuit."""
    means = {"m_full": float(study.full.mean()), "m_empty": float(study.empty.mean())}
    return {"n_pairs": len(study.span), **means}


def _types(graph: Graph, inside: Sequence[int]) -> list[Cut]:
    """All heads, all MLPs, and the heads of every layer, as far as the circuit has them."""
    nodes = {place: graph.src_nodes[place] for place in inside}
    groups: dict[str, list[int]] = {}
    for place, node in nodes.items():
        groups.setdefault("heads" if node.kind == "head" else "MLPs", []).append(place)
        if node.kind == "head":
            groups.setdefault(f"heads of layer {node.layer}", []).append(place)
    return [Cut(name, tuple(places)) for name, places in groups.items()]


def _mean_absolute(
    gaps: Float[np.ndarray, "cut pair"], span: Float[np.ndarray, " pair"], clusters: Clusters, seed: int
) -> Share | None:
    """Mean over knockouts of the |gap|, with its interval over pairs."""
    if not len(gaps):
        return None

    def mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.abs(weights @ gaps.T / (weights @ span)[:, None]).mean(1)

    return Share(float(mean(np.full((1, len(span)), 1 / len(span)))[0]), interval(mean, clusters, seed=seed))


def _undefined(facts: dict[str, Any]) -> CompletenessReport:
    sentence = "With every edge ablated the metric is the same as with none: no share of it is defined."
    absent: dict[str, Any] = dict.fromkeys(("circuit", "complement", "mean_gap", "worst", "greedy"))
    return CompletenessReport(knockouts=(), backup=BackupSearch(NOT_APPLICABLE, sentence), **absent, **facts)


def _bounds(share: Share) -> dict[str, float | None]:
    interval = share.interval
    return {"low": None if interval is None else interval.low, "high": None if interval is None else interval.high}
