"""Choices of a study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers, Resamples, Seed, check_least

__all__ = ["StudyOptions"]


@dataclass(frozen=True)
class StudyOptions(PlainNumbers):
    """How the study is made; fixed before the run.

    ``n_random`` random circuits stand beside a faithfulness; where many circuits are tried (hypothesis tests,
    completeness, the smallest circuit, ACDC) it is on ``max_pairs`` pairs at most, evenly taken, and so are causal
    persistence and steering. ``probe_every``: a probe after every so many blocks. ``quick`` asks for the least of
    everything, ``thorough`` for the tests of ``evaluate`` as they are by default. ``compact`` keeps tables,
    circuits and a few pictures.
    """

    n_resamples: Resamples = 2000
    n_random: Annotated[int, Option("Random circuits beside each faithfulness.")] = 3
    max_pairs: Annotated[
        int, Option("Pairs at most where many circuits are tried; four times as many are steered.")
    ] = 16
    steps: int = 5
    threshold: Annotated[float, Option("Of the circuits, as a share of |D|.")] = 0.003
    target: Annotated[float, Option("Of the smallest circuit.", name="--target-faithfulness")] = 0.9
    frame_edges: Annotated[int, Option("Edges of the circuit of each frame; 0: no circuits.")] = 300
    gate_edges: Annotated[int, Option("Edges of the circuits of learned gates.")] = 700
    gate_steps: Annotated[int, Option("Steps in which their gates are trained.")] = 60
    least_mass: Annotated[
        float, Option("Mean probability of all options below which only behaviour is studied. 0: go on anyway.")
    ] = 0.05
    probe_every: Annotated[int, Option("Probe after every so many blocks.")] = 2
    quick: Annotated[bool, Option("The least of everything, to see that it runs.")] = False
    thorough: Annotated[bool, Option("All pairs, and the tests as evaluate makes them: hours on a CPU.")] = False
    compact: Annotated[bool, Option("Keep tables, circuits and a few pictures: what can be committed.")] = False
    seed: Seed = 0
    batch_size: BatchSize = 32

    def checked(self) -> StudyOptions:
        """These options, the least of everything where ``quick``; an OptionError where a number is out of range."""
        check_least(self, n_resamples=1, n_random=1, max_pairs=1, steps=1, batch_size=1, frame_edges=0, seed=0)
        check_least(self, gate_edges=1, gate_steps=1, probe_every=1)
        if not 0 < self.threshold < 1 or not 0 < self.target <= 1:
            raise OptionError(
                f"threshold {self.threshold:g} and target {self.target:g} are shares: above 0, the target at most 1"
            )
        if not 0 <= self.least_mass <= 1:
            raise OptionError(f"--least-mass is {self.least_mass:g}; it is a probability, from 0 to 1")
        if self.quick and self.thorough:
            raise OptionError("--quick and --thorough contradict each other; give one of them")
        if not self.quick:
            return self
        return replace(self, n_resamples=min(self.n_resamples, 200), n_random=1, max_pairs=min(self.max_pairs, 4),
                       steps=2, gate_steps=2)  # fmt: skip
