"""Choices of a collapse study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.options import (
    Alignment,
    BatchSize,
    Option,
    PlainNumbers,
    Resamples,
    Seed,
    check_choices,
    check_least,
)

__all__ = ["StudyOptions"]


@dataclass(frozen=True)
class StudyOptions(PlainNumbers):
    """How the study is made; fixed before the run.

    ``bias_cut`` is in logits: the bias is high where the most likely candidate, asked
    under no persona, leads the mean of the others by at least so much.
    """

    split: Annotated[str, Option("Pairs to study; controls are taken of every split of --null.")] = "all"
    batch_size: BatchSize = 32
    n_resamples: Resamples = 2000
    bias_cut: Annotated[float, Option("Bias is high where the default leads by so many logits under no persona.")] = 1.5
    seed: Seed = 0
    align: Alignment = "equal"
    average: Annotated[
        bool, Option("One measure per persona pair and question: the mean over paraphrases and wordings.")
    ] = False
    predict: Annotated[bool, Option("Predict collapse of held-out pairs from other wordings, beside rivals.")] = False

    def checked(self) -> StudyOptions:
        """These options, or an OptionError where a number is out of its range."""
        check_choices(self)
        check_least(self, batch_size=1, n_resamples=1, seed=0)
        return self
