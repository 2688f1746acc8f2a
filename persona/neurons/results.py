"""Choices of a neuron study, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.statistics import Interval
from persona_circuits.persona.neurons.options import NeuronOptions
from persona_circuits.persona.neurons.ranking import Overlap, Ranking
from persona_circuits.persona.neurons.runs import Neurons

__all__ = ["GROUP_KINDS", "SOURCES", "Ablation", "Group", "NeuronStudy", "Side"]

GROUP_KINDS = ("personas", "persona domain", "domain", "template", "wording")
SOURCES = {"fit": "pairs", "held": "held_out", "null": "null"}


@dataclass(frozen=True, eq=False)
class Side:
    """Differences A - B over some pairs: mean, effect size, T, Z (nan where not ranked); intervals of the selected."""

    n_pairs: int
    difference: Float[np.ndarray, " neuron"]
    effect: Float[np.ndarray, " neuron"]
    size: Float[np.ndarray, " neuron"]
    z: Float[np.ndarray, " neuron"]
    intervals: tuple[Interval | None, ...] = ()


@dataclass(frozen=True, eq=False)
class Group:
    """One group of pairs. ``overlap`` is of the list from the other fitting pairs with the group's own.

    ``median_rank`` is of the others' list in this group, out of ``overlap.universe``; ``same_sign`` the share of
    it whose difference has the others' sign (nan for ``rms``, which has none); ``rho`` Spearman's over all
    ranked neurons' differences, for ``rms`` their Z. ``own`` is the group's list, ``ranks`` the places of the
    selected neurons in it.
    """

    kind: str
    name: str
    held_out: bool
    n_pairs: int
    overlap: Overlap
    median_rank: float
    same_sign: float
    rho: float
    own: tuple[int, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Ablation:
    """D, in logits, with the selected neurons changed, and with random ones.

    ``change`` is the mean of D changed - D, ``kept`` the ratio of their means; ``random`` are the changes
    by the random sets, ``p`` the share of them that change D as much in size: (1 + b) / (1 + B).
    """

    kind: str
    before: Float[np.ndarray, " pair"]
    after: Float[np.ndarray, " pair"]
    random: Float[np.ndarray, " set"]
    change: float
    change_interval: Interval | None
    kept: float | None
    kept_interval: Interval | None
    p: float


@dataclass(frozen=True, eq=False)
class NeuronStudy:
    """Everything that was measured; ``selected`` are the places of the top neurons among ``neurons``, best first.

    ``means`` are of A's and of B's prompts over the fitting pairs. ``held`` is None where nothing was held out.
    ``dropped`` counts pairs that took no part, by what kept them out.
    """

    model: str
    fingerprint: str
    graph: Graph
    sources: dict[str, tuple[str, str]]
    options: NeuronOptions
    neurons: Neurons
    ranking: Ranking
    means: Float[np.ndarray, "side neuron"]
    silent: Bool[np.ndarray, " neuron"]
    fit: Side
    held: Side | None
    selected: tuple[int, ...]
    groups: tuple[Group, ...]
    ablations: tuple[Ablation, ...]
    ablated_pairs: tuple[str, ...]
    clusters: str
    n_null: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())

    @property
    def n_discovered(self) -> int:
        """Neurons with q at or below the level."""
        return int((self.ranking.q <= self.options.level).sum())
