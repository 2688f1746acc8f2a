"""Choices of an explanation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers, Resamples, Seed, check_least

__all__ = ["ExplainOptions"]


@dataclass(frozen=True)
class ExplainOptions(PlainNumbers):
    """What is explained and how; fixed before the run. ``by`` are keys of the rows, or ``pair``.

    Without ``causal`` no causal test is run.
    """

    by: Annotated[
        tuple[str, ...], Option("pair, question, … any key of the rows; may be repeated. (default: question)")
    ] = ("question",)
    split: Annotated[str, Option("Pairs to explain; controls are taken of every split of --null.")] = "all"
    batch_size: BatchSize = 32
    n_resamples: Resamples = 2000
    causal: Annotated[bool, Option("Run the causal test that goes with each verdict.")] = True
    seed: Seed = 0
    average: Annotated[
        bool, Option("One verdict per persona pair and question: of the mean over paraphrases and wordings.")
    ] = False

    def checked(self) -> ExplainOptions:
        """These options, or an OptionError where a number is out of its range."""
        check_least(self, batch_size=1, n_resamples=1, seed=0)
        return self
