"""Two circuits of one graph: what they share beyond chance, and where their scores agree or oppose each other.

1. Both are read, with every edge's score where the file beside the circuit has it.
2. What was set differently when they were found is listed; another graph is refused.
3. Overlap of edges and of nodes, as Jaccard's index, beside two kinds of chance:

       random      random circuits of the same size (``circuit.evaluation.faithfulness``): the whole graph is alike
       exchanged   one of the two with the heads of every layer exchanged at random: the same circuit as to
                   layers, types, degrees and size, in other heads. MLPs and ``input`` stay where they are

4. Rank correlation of the scores (Spearman), over all edges and over those of either circuit.
5. Edges whose scores have opposite signs, beside what shuffled scores would give.
6. If wanted, each circuit's faithfulness on either one's pairs.

Every p is a permutation p, (1 + b) / (1 + B) with b of B draws at least as extreme (Phipson and
Smyth 2010, arXiv:1603.05766). Edges of one path are scored alike, so the signs of a
circuit's edges are fewer independent facts than there are edges: read their p as a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.assessment.comparison.sides import (
    LABELS,
    SECTIONS,
    Setting,
    Side,
    groups,
    relative_scores,
    settings_apart,
)
from persona_circuits.circuit.assessment.comparison.statistics import (
    Correlation,
    Ground,
    Overlap,
    Signs,
    all_correlations,
    all_overlaps,
    all_signs,
)
from persona_circuits.circuit.assessment.options import ComparisonOptions
from persona_circuits.circuit.discovery import MeasureOptions, evaluate_on
from persona_circuits.circuit.drawing import DrawReport, Marks, draw
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import FaithfulnessReport
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.progress import Progress, Stage, untold
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["Comparison", "compare", "cross_faithfulness", "draw_difference"]


@dataclass(frozen=True)
class CrossCell:
    """A circuit measured on the pairs of one side, in that side's model and metric."""

    circuit: str
    pairs: str
    report: FaithfulnessReport


@dataclass(frozen=True, eq=False)
class Comparison:
    """All of it. ``settings`` differ apart from the pairs; ``notes`` are what a reader must know.

    ``cross`` is the result of ``cross_faithfulness``, empty until it is computed.
    """

    a: Side
    b: Side
    settings: tuple[Setting, ...]
    notes: tuple[str, ...]
    edges: Overlap
    nodes: Overlap
    correlations: tuple[Correlation, ...]
    signs: tuple[Signs, ...]
    cross: tuple[CrossCell, ...] = ()

    def with_cross(self, cells: Sequence[CrossCell], notes: Sequence[str] = ()) -> Comparison:
        """The same with cross-faithfulness, or with notes on why it is not there."""
        return replace(self, cross=tuple(cells), notes=(*self.notes, *notes))

    def edge_rows(self) -> list[dict[str, Any]]:
        """Every edge of either circuit: its group, a key of ``GROUPS``, and both scores (None where unknown)."""
        return [
            {"edge": edge, "group": group, "score_a": first, "score_b": second}
            for group, circuit in groups(self.a, self.b).items()
            for edge, first, second in zip(
                circuit.edge_names(), _scores_of(self.a, circuit), _scores_of(self.b, circuit), strict=True
            )
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "a": _side_record(self.a),
            "b": _side_record(self.b),
            "settings": [asdict(item) for item in self.settings],
            "notes": list(self.notes),
            "overlap": {"edges": asdict(self.edges), "nodes": asdict(self.nodes)},
            "correlations": [asdict(item) for item in self.correlations],
            "signs": [{**asdict(item), "opposite": item.opposite} for item in self.signs],
            "cross_faithfulness": [
                {"circuit": cell.circuit, "pairs": cell.pairs, "report": cell.report.as_dict()} for cell in self.cross
            ],
            "edges": self.edge_rows(),
        }


def compare(
    a: Side, b: Side, *, n_draws: int = ComparisonOptions.n_draws, seed: int = 0, progress: Progress | None = None
) -> Comparison:
    """Compare two circuits of the same graph.

    Parameters
    ----------
    n_draws
        Draws of every kind of chance.
    progress
        Called with the number of draws done and their total.

    Raises
    ------
    OptionError
        The graphs differ in shape, or ``n_draws`` is below 1.
    """
    if n_draws < 1:
        raise OptionError(f"--n-draws must be at least 1, got {n_draws}")
    _check_graphs(a, b)
    progress = progress or untold
    seeds = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(seeds[0])
    moves = [np.ix_(*a.circuit.graph.permuted_heads(rng)) for _ in range(n_draws)]
    edges, nodes = all_overlaps(a.circuit, b.circuit, moves, seed, progress)
    return Comparison(
        a=a,
        b=b,
        settings=settings_apart(a, b),
        notes=_notes(a, b),
        edges=edges,
        nodes=nodes,
        correlations=all_correlations(a, b, moves),
        signs=all_signs(a, b, n_draws, np.random.default_rng(seeds[1])),
    )


def cross_faithfulness(
    a: Side, b: Side, grounds: Sequence[Ground], setting: MeasureOptions | None = None, *, stage: Stage | None = None
) -> tuple[CrossCell, ...]:
    """Either circuit, and what they share, on the held-out pairs of every ground (``test`` if there is one, else all).

    Metric, ablation and alignment are the ground's. ``shared`` is without dead ends, so it may be empty where edges are
    shared; no random circuits stand beside it.

    Raises:
        OptionError, TaskError: a ground's pairs do not fit its model, or the model's graph is another one.
    """
    shared = Circuit(a.circuit.graph, a.circuit.mask & b.circuit.mask).without_dead_ends()
    circuits = {"A": a.circuit, "B": b.circuit, "shared": shared}
    cells = []
    for ground in grounds:
        own = replace(
            (setting or MeasureOptions()).settled(ground.record), train_split=ground.record["task"]["split"], where=()
        )
        for name, circuit in circuits.items():
            how = replace(own, n_random=0) if name == "shared" else own
            report = evaluate_on(ground.model, ground.task, circuit, how, stage=stage)
            cells.append(CrossCell(name, ground.name, report))
    return tuple(cells)


def draw_difference(
    comparison: Comparison, path: str | Path, *, strongest: int | None = None, title: str = ""
) -> DrawReport:
    """The union of both circuits, edges coloured by ``groups``; parameters as in ``circuit.drawing.draw``.

    Width is the larger of an edge's two |score|, each as a share of that side's largest.
    """
    a, b = comparison.a, comparison.b
    parts = {LABELS[name]: part for name, part in groups(a, b).items()}
    union = Circuit(a.circuit.graph, a.circuit.mask | b.circuit.mask)
    return draw(
        union,
        path,
        scores=relative_scores(a, b),
        strongest=strongest,
        title=title or f"A {a.name}, B {b.name}",
        marks=Marks(parts, scale="share of the largest |score|"),
    )


def _check_graphs(a: Side, b: Side) -> None:
    first, second = a.circuit.graph, b.circuit.graph
    if first != second:
        raise OptionError(
            f"{a.name} is a circuit of {_shape(first)} and {b.name} one of {_shape(second)}: they have no edges "
            "in common; compare circuits of models of one shape"
        )


def _shape(graph: Graph) -> str:
    return f"{graph.n_layers} layers with {graph.n_heads} heads" + (" (parallel)" if graph.parallel else "")


def _notes(a: Side, b: Side) -> tuple[str, ...]:
    unknown = [side.name for side in (a, b) if side.record is None]
    notes = [f"{name} does not say how it was found, so its settings are not compared" for name in unknown]
    if len(a.circuit) != len(b.circuit):
        notes.append(
            f"the circuits have {len(a.circuit):,} and {len(b.circuit):,} edges: their Jaccard index cannot be "
            "above what those sizes allow"
        )
    notes += [f"{side.name} is an empty circuit" for side in (a, b) if not len(side.circuit)]
    for side in (a, b):
        stability = (side.record or {}).get("stability") or {}
        if stability.get("unstable"):
            notes.append(
                f"{side.name} is unstable: resampled (by {stability['by']}) its search gives circuits with a mean "
                f"Jaccard index of {stability['jaccard']:.2f} among each other"
            )
    if not (a.known.sum() == b.known.sum() == a.circuit.graph.n_edges):
        notes.append("not every edge has a score on both sides: correlations have no chance level beside them")
    return tuple(notes)


# --- overlap ---------------------------------------------------------------------------------


def _scores_of(side: Side, circuit: Circuit) -> list[float | None]:
    """This side's scores of a circuit's edges, in their order; None where it has none."""
    if side.scores is None:
        return [None] * len(circuit)
    inside = circuit.mask.T
    pairs = zip(side.scores.values.T[inside].tolist(), side.known.T[inside].tolist(), strict=True)
    return [score if known else None for score, known in pairs]


def _side_record(side: Side) -> dict[str, Any]:
    settings = {key: side.record[key] for key in (*SECTIONS, "ablation", "seed")} if side.record else None
    return {"name": side.name, "edges": len(side.circuit), "scored": int(side.known.sum()), "about": settings}
