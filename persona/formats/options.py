"""Choices of a study of formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.choices import PROMPT_FORMATS
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers, Resamples, check_choices, check_least

__all__ = ["FormatOptions"]


@dataclass(frozen=True)
class FormatOptions(PlainNumbers):
    """How formats are compared. ``formats`` are all where none is named; ``n_answers`` answers are spelt out."""

    formats: Annotated[
        tuple[str, ...], Option(f"{', '.join(PROMPT_FORMATS)}; may be repeated. (default: all)", name="--format")
    ] = ()
    max_pairs: Annotated[int, Option("Pairs to measure every format on.", min=2)] = 16
    min_mass: Annotated[float, Option("Probability of the options that a recommended format has.", min=0)] = 0.05
    n_answers: Annotated[int, Option("Prompts of every format whose answer is spelt out.", min=0)] = 8
    test_share: Annotated[float, Option("Share of persona pairs and wordings held out, as of pairs.", min=0)] = 0.2
    batch_size: BatchSize = 8
    n_resamples: Resamples = 2000
    seed: Annotated[int, Option("Seed of splits, order and wordings, as of pairs.", min=0)] = 0

    def checked(self) -> FormatOptions:
        """These options, or an OptionError where a name is unknown or a number out of its range."""
        check_choices(self)
        if unknown := [name for name in self.formats if name not in PROMPT_FORMATS]:
            raise OptionError(f"--format {unknown[0]!r} is not one of {', '.join(PROMPT_FORMATS)}")
        check_least(self, max_pairs=1, batch_size=1, n_resamples=1)
        if not 0 < self.test_share < 1:
            raise OptionError(f"--test-share must be above 0 and below 1, got {self.test_share:g}")
        return self

    @property
    def chosen(self) -> tuple[str, ...]:
        """The formats to measure."""
        return self.formats or PROMPT_FORMATS
