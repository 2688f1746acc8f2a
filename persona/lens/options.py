"""Choices of a lens study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers, Positions, Seed, check_least

__all__ = ["LensOptions"]


@dataclass(frozen=True)
class LensOptions(PlainNumbers):
    """``positions`` are the named positions to look at, all that every prompt has if empty."""

    positions: Positions = ()
    batch_size: BatchSize = 32
    n_resamples: Annotated[int, Option("Draws of the bootstraps.")] = 2000
    seed: Seed = 0

    def checked(self) -> LensOptions:
        """These options.

        Raises:
            OptionError: one of them makes no sense.
        """
        check_least(self, batch_size=1, n_resamples=100)
        return self
