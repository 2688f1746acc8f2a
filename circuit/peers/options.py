"""Choices of a crosscheck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers

__all__ = ["CrosscheckOptions"]


@dataclass(frozen=True)
class CrosscheckOptions(PlainNumbers):
    """``split`` None is the one that the run searched on; ``n_pairs`` 0 takes all of its pairs."""

    split: Annotated[str | None, Option("Pairs to use. (default: those searched on)")] = None
    n_pairs: Annotated[int, Option("Pairs at most; 0: all of them.")] = 32
    batch_size: BatchSize = 16
    steps: Annotated[int | None, Option("Points of EAP-IG. (default: the run's, else 5)")] = None
    mask_ig: Annotated[bool, Option("auto-circuit's own integrated gradients too.")] = True

    def checked(self) -> CrosscheckOptions:
        """These options.

        Raises:
            OptionError: a number is too small.
        """
        if self.n_pairs < 0 or self.batch_size < 1 or (self.steps is not None and self.steps < 1):
            raise OptionError(
                "--n-pairs must not be negative, --batch-size and --steps at least 1, got "
                f"{self.n_pairs}, {self.batch_size} and {self.steps}"
            )
        return self
