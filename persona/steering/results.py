"""Choices of a steering study, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from persona_circuits.persona.data import Estimate
from persona_circuits.persona.steering.options import SteerOptions
from persona_circuits.persona.streams import Change
from persona_circuits.persona.vectors import Directions

__all__ = [
    "REFINEMENTS",
    "SINGLE_TOKENS",
    "Beside",
    "Bound",
    "Cell",
    "Changes",
    "Margins",
    "Measured",
    "Outcome",
    "SetPart",
    "SteeredPrompts",
    "SteeringStudy",
    "Vectors",
]

REFINEMENTS = 4
SINGLE_TOKENS = 4  # rows of one cached token that share a pass, for each row of a whole prompt
Cell = tuple[int, int]  # a variant and a prompt, by their places
Changes = Callable[[Sequence[Cell]], Mapping[int, Change]]
Vectors = Mapping[int, np.ndarray]  # by layer, a row per pair
Margins = Float[np.ndarray, "2 pair"]  # A's prompts, B's prompts


@dataclass(frozen=True, eq=False)
class SteeredPrompts:
    """The prompts of all pairs: A's, B's, and the neutral one of each pair, with the two tokens' ids.

    ``sides[k]`` are the ids of A's (0) and B's (1) prompts; ``answers[k]`` those of the
    tokens that A's and B's persona is to prefer, several of a side averaged. ``places`` are the tokens of ``all`` at
    which one is steered, ``said`` A's text and the question's.
    """

    sides: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
    neutral: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
    texts: tuple[tuple[str, ...], tuple[str, ...]]  # of the neutral prompts, and of B's
    personas: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    places: tuple[int, ...] = ()
    said: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.neutral)

    def place(self, pair: int, is_b: bool) -> int:
        """The token at which a pair's neutral or B's prompt is steered."""
        return self.places[pair + 2 * len(self) * is_b]

    @property
    def all(self) -> tuple[tuple[int, ...], ...]:
        """Every pair's neutral prompt, then every A's, then every B's."""
        return (*self.neutral, *self.sides[0], *self.sides[1])


@dataclass(frozen=True, eq=False)
class Measured:
    """One direction's raw measurements: margins of both sides under +s v and -s v, and the KL under both."""

    plus: Margins
    minus: Margins
    kl: Float[np.ndarray, "2 pair"]

    def margins(self, sign: int) -> Margins:
        """A steered by sign s v, B by -sign s v."""
        return np.stack([self.plus[0], self.minus[1]]) if sign > 0 else np.stack([self.minus[0], self.plus[1]])


@dataclass(frozen=True)
class Outcome:
    """One layer, direction and signed strength over all pairs.

    ``draw`` numbers the controls; the direction itself has -1. ``strength`` is None for ablation.
    ``switched``: share of prompts whose margin has another sign than unsteered. Of the
    ``n_asked`` pairs with D > 0 unsteered ``above`` is the share whose gain is above their g*,
    ``agree`` the share whose answers differ exactly when it is. Of the ``n_collapsed`` among them
    whose answers agree unsteered ``flipped`` is the share whose answers differ now. None where there is no such pair.
    """

    layers: tuple[int, ...]
    control: str
    draw: int
    strength: float | None
    divergence: Estimate
    gain: float
    prior_shift: float
    parted: float
    switched: float
    kl: Estimate
    n_asked: int
    above: float | None
    agree: float | None
    n_collapsed: int
    flipped: float | None


@dataclass(frozen=True)
class Bound:
    """The largest strength whose mean KL on neutral prompts is within the bound, and what it does.

    ``is_largest``: even the largest strength of the sweep is within, so a larger one may be, too.
    ``gains`` are those of the controls at the same strength.
    """

    layers: tuple[int, ...]
    strength: float
    is_largest: bool
    outcome: Outcome
    gains: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Beside:
    """A set's value, and that of every random set."""

    value: float
    random: tuple[float, ...]


@dataclass(frozen=True)
class SetPart:
    """What a set of nodes gives of the direction after some layers, at the strength where the whole has its ``gain``.

    ``share`` is the length of its part along the direction, over the direction's: the shares of all nodes add up to 1.
    ``alone`` is the gain with its part added and no more, ``without`` that with all but its part.
    """

    name: str
    nodes: tuple[str, ...]
    layers: tuple[int, ...]
    strength: float
    gain: float
    share: Beside
    alone: Beside
    without: Beside


@dataclass(frozen=True, eq=False)
class SteeringStudy:
    """Everything that was found; ``sets`` where named sets of nodes were asked for (``set_parts``).

    ``margins`` and ``kl`` are those of the direction, of every pair, by layers; strengths are
    signed and in order in ``margins``, unsigned (and both signs on the next axis) in ``kl``.
    ``streams`` are the fitting prompts' at their ends, ``first_personas`` those of side A.
    """

    model: str
    fingerprint: str
    options: SteerOptions
    directions: Directions
    prompts: SteeredPrompts
    ids: tuple[str, ...]
    first_personas: tuple[str, ...]
    streams: Float[np.ndarray, "example layer d_model"]
    plain: Margins
    outcomes: tuple[Outcome, ...]
    bounds: tuple[Bound, ...]
    margins: Mapping[str, Float[np.ndarray, "signed 2 pair"]]
    kl: Mapping[str, Float[np.ndarray, "strength 2 pair"]]
    held_out: bool
    notes: tuple[str, ...]
    sets: tuple[SetPart, ...] = ()
