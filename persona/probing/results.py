"""Choices of a probing study, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from persona_circuits.persona.data import Estimate
from persona_circuits.persona.probing.fit import Scored
from persona_circuits.persona.probing.geometry import Place
from persona_circuits.persona.probing.options import ProbeOptions
from persona_circuits.persona.streams import point_names

__all__ = ["ANSWER", "Cell", "Controls", "ProbeStudy"]

ANSWER = "prompt-end"


@dataclass(frozen=True)
class Controls:
    """Balanced accuracies; intervals of ``shuffled`` and ``task`` are the least and the most of the repeats.

    ``dropped`` is None at the persona's own end, which is not there without the persona.
    """

    shuffled: Estimate
    task: Estimate
    dropped: Estimate | None
    length: Estimate

    def selectivity(self, balanced: float) -> float:
        """How much better the probe is than one that could only learn each type's label by heart."""
        return balanced - self.task.value


@dataclass(frozen=True, eq=False)
class Cell:
    """One target, held out in one way, at one position.

    ``curve`` is by point. ``best`` joins the folds' predictions, each at the layer that was
    best on its training part; ``layers`` are those points, ``layer`` the most common of them.
    ``classes`` are the names of the labels. ``directions`` are the probe's at ``layer``, fitted
    on all examples; None for preference, whose weights are of products. ``n_targets`` is above
    one for the mean over traits.
    """

    target: str
    kind: str
    hold_out: str
    position: str
    n: int
    n_classes: int
    n_groups: int
    curve: tuple[Scored, ...]
    best: Scored
    layers: tuple[int, ...]
    controls: Controls
    classes: tuple[str, ...] = ()
    directions: Float[np.ndarray, "direction d_model"] | None = None
    n_targets: int = 1

    @property
    def layer(self) -> int:
        """The point that most folds chose, the first of equals."""
        return max(sorted(set(self.layers)), key=self.layers.count)

    @property
    def chance(self) -> float:
        """The balanced accuracy of guessing."""
        return 1.0 / self.n_classes


@dataclass(frozen=True, eq=False)
class ProbeStudy:
    """Everything that was measured.

    ``at`` says how many blocks have run at each point; cells and places count points by
    their index in it. ``resampled`` says what intervals over all prompts are drawn over.
    ``cka`` is between all points of all positions, position by position.
    """

    model: str
    fingerprint: str
    sources: tuple[tuple[str, str], ...]
    options: ProbeOptions
    n_layers: int
    at: tuple[int, ...]
    positions: tuple[str, ...]
    n_examples: int
    n_personas: int
    n_questions: int
    resampled: str
    cells: tuple[Cell, ...]
    traits: tuple[Cell, ...]
    places: tuple[Place, ...]
    cka: Float[np.ndarray, "place place"]
    notes: tuple[str, ...]

    @property
    def points(self) -> tuple[str, ...]:
        """The names of the points, ``embedding`` first."""
        names = point_names(self.n_layers)
        return tuple(names[point] for point in self.at)
