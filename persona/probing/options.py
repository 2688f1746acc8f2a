"""Choices of a probing study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers, Positions, Resamples, Seed, check_least

__all__ = ["HOLD_OUTS", "KINDS", "ProbeOptions"]

KINDS = ("identity", "trait", "preference")
HOLD_OUTS = ("question", "template", "wording", "persona", "split")


@dataclass(frozen=True)
class ProbeOptions(PlainNumbers):
    """``targets``, ``hold_outs`` and ``positions``: all that the file has, if empty.

    ``every`` leaves out layers: every so many blocks, the first and the last point always.
    ``penalty`` is scikit-learn's C. ``repeats`` counts the shuffles, and the control tasks.
    """

    targets: Annotated[
        tuple[str, ...], Option("identity, trait or preference; may be repeated. (default: all there are)")
    ] = ()
    hold_outs: Annotated[
        tuple[str, ...],
        Option(
            "question, template, wording, persona or split; may be repeated. (default: all there are)",
            name="--hold-out",
        ),
    ] = ()
    positions: Positions = ()
    every: Annotated[int, Option("Probe after every so many blocks, the last always.")] = 1
    folds: Annotated[int, Option("Folds at most; no group is in two of them.")] = 5
    penalty: Annotated[float, Option("C of the logistic regression: smaller is a stronger penalty.")] = 0.1
    repeats: Annotated[int, Option("Shuffles of the labels, and control tasks.")] = 3
    n_resamples: Resamples = 500
    batch_size: BatchSize = 32
    seed: Seed = 0

    def checked(self) -> ProbeOptions:
        """These options.

        Raises:
            OptionError: one of them makes no sense.
        """
        for option, names, known in (("targets", self.targets, KINDS), ("hold-out", self.hold_outs, HOLD_OUTS)):
            if unknown := [name for name in names if name not in known]:
                raise OptionError(f"--{option}: {unknown[0]!r} is not one of {', '.join(known)}")
        check_least(self, every=1, folds=2, repeats=1, n_resamples=100, batch_size=1)
        if not self.penalty > 0:
            raise OptionError(f"--penalty must be above 0, got {self.penalty:g}")
        return self
