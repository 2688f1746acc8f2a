"""The results of the stages of a search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persona_circuits.circuit.attribution import ActivationCost, Completeness, ScoreParts
from persona_circuits.circuit.discovery.options import Options
from persona_circuits.circuit.evaluation import (
    FaithfulnessReport,
    Missed,
    NodeSets,
    PairScores,
    PathShares,
    Signal,
    SpanStudy,
)
from persona_circuits.circuit.evaluation.curves import Smallest, Sweep
from persona_circuits.circuit.forward import Ablation, KeptRuns
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage
from persona_circuits.circuit.pruning import Finished
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Clusters, PairSample
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit, SpanScores
from persona_circuits.circuit.task import Overlap, Row, Task
from persona_circuits.metrics import Metric

__all__ = ["Controls", "Effect", "Measured", "Part", "Pruned", "Scored", "Setting"]


@dataclass(frozen=True, eq=False)
class Part:
    """The pairs of one split, their rows as token ids, and this process's share of them, run plain once."""

    split: str
    task: Task
    rows: tuple[Row, ...]
    runs: KeptRuns

    def sample(self, seed: int) -> PairSample:
        """How intervals are drawn over them."""
        return PairSample(self.split, self.clusters, seed)

    @property
    def clusters(self) -> Clusters:
        """Which pairs share personas and questions."""
        return Clusters.of(self.task.pairs)


@dataclass(frozen=True, eq=False)
class Setting:
    """The inputs of a search: ``test`` is ``train`` where the pairs have no splits. ``shared`` is their overlap."""

    model: Model
    metric: Metric
    options: Options
    stage: Stage
    ablation: Ablation | None
    train: Part
    test: Part
    shared: Overlap

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those to measure on, each split once."""
        return (self.train,) if self.test.split == self.train.split else (self.train, self.test)


@dataclass(frozen=True)
class Effect:
    """m(clean) - m(corrupt), m(full) - m(empty), and the threshold in the metric's units, None where there is none.

    ``signal`` is whether the pairs hold an effect worth a search, ``seconds`` what the plain runs took. ``weights`` are
    those of the pairs in the scores, where they have any, and ``scored`` is m(full) - m(empty) in what is scored.
    """

    divergence: float
    whole: float
    tau: float | None
    signal: Signal
    seconds: float = 0.0
    weights: np.ndarray | None = None
    scored: float = 0.0


@dataclass(frozen=True, eq=False)
class Scored:
    """Every edge's score, also by part of the prompt or by pair if requested; all None for plain ACDC."""

    scores: Scores | None
    parts: ScoreParts | None = None
    pairs: PairScores | None = None
    at_parts: SpanScores | None = None


@dataclass(frozen=True, eq=False)
class Pruned:
    """The circuit; what ACDC cost; the search for the smallest, where a faithfulness was aimed at; the exact finish.

    ``at_parts`` says at which parts of the prompt the circuit has its edges, where not at all of them.
    """

    circuit: Circuit
    acdc_cost: dict[str, int] | None = None
    smallest: Smallest | None = None
    finished: Finished | None = None
    at_parts: SpanCircuit | None = None

    @classmethod
    def of(cls, kept: Circuit | SpanCircuit, least: Smallest | None = None) -> Pruned:
        """By scores alone."""
        if isinstance(kept, SpanCircuit):
            return cls(kept.circuit, smallest=least, at_parts=kept)
        return cls(kept, smallest=least)


@dataclass(frozen=True, eq=False)
class Measured:
    """Faithfulness by split, with random circuits, the complement and single edges beside it; nested circuits.

    ``paths`` are the strongest ones, on the pairs of the last split; None without scores. ``sets`` are named nodes.
    """

    reports: tuple[FaithfulnessReport, ...]
    sweep: Sweep | None
    paths: PathShares | None = None
    sets: NodeSets | None = None


@dataclass(frozen=True, eq=False)
class Controls:
    """EAP-IG's completeness, the cost of half precision, where the contrast persists, and a bound on missed edges."""

    completeness: Completeness | None
    cost: ActivationCost | None
    spans: SpanStudy | None
    missed: Missed | None = None
