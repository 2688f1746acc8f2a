"""Choices of a steering study."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers, Seed, check_least, numbers_of

__all__ = ["SteerOptions"]

POSITIONS = ("prompt-end", "persona-end", "question-end", "question-word", "all")
DEPTHS = (0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class SteerOptions(PlainNumbers):
    """What is steered and how; fixed before the run.

    ``layers`` are steered one at a time, or all at once if ``together``. ``positions`` is
    where the direction is added: at the ``prompt-end`` and every token after it, at one named token of the prompt, or
    at ``all``; it is fitted where it is added, for ``all`` at the prompt's end.
    """

    layers: Annotated[
        tuple[int, ...], Option("Block, from 0, to add after; may be repeated. (default: four, evenly)", name="--layer")
    ] = ()
    strengths: Annotated[
        tuple[float, ...],
        Option("Above 0, separated by commas; each is used with both signs.", given=str, read=numbers_of),
    ] = (0.5, 1.0, 2.0, 4.0)
    positions: Annotated[
        str,
        Option(
            "Where to fit and add: prompt-end (and every token after it), a named token, or all tokens.",
            choices=POSITIONS,
        ),
    ] = "prompt-end"
    together: Annotated[bool, Option("All layers at once, not one at a time.")] = False
    ablate: Annotated[bool, Option("Also take the direction out, from each layer on.")] = True
    n_controls: Annotated[int, Option("Random directions of either kind to compare with.")] = 3
    kl_bound: Annotated[float, Option("Bound on the mean KL on neutral prompts, in nats.")] = 0.1
    n_resamples: Annotated[int, Option("Draws of the bootstraps.")] = 2000
    seed: Seed = 0
    batch_size: BatchSize = 32

    @property
    def named(self) -> bool:
        """Whether the direction is added at one named token of each prompt."""
        return self.positions not in ("prompt-end", "all")

    @property
    def fitted_at(self) -> str:
        """The named position whose streams directions are fitted on."""
        return self.positions if self.named else "prompt-end"

    def over(self, n_layers: int) -> SteerOptions:
        """These options, with four layers evenly over the depth where none is named."""
        from persona_circuits.persona.streams import chosen_layer

        return self if self.layers else replace(self, layers=tuple(chosen_layer(n_layers, None, at) for at in DEPTHS))

    def checked(self) -> SteerOptions:
        """These options, with layers and strengths sorted.

        Raises:
            OptionError: a number is out of range, or nothing would be steered.
        """
        if not self.layers or not self.strengths:
            raise OptionError("nothing to steer: name a layer and a strength")
        if min(self.strengths) <= 0 or not all(map(math.isfinite, self.strengths)):
            raise OptionError("strengths must be above 0; each is used with both signs")
        if self.positions not in POSITIONS:
            raise OptionError(f"positions {self.positions!r} is not one of {', '.join(POSITIONS)}")
        check_least(self, n_controls=1, n_resamples=1, batch_size=1, seed=0)
        if not self.kl_bound > 0:
            raise OptionError(f"kl-bound is {self.kl_bound:g} nats; it must be above 0")
        return replace(self, layers=tuple(sorted(set(self.layers))), strengths=tuple(sorted(set(self.strengths))))
