"""Choices of a neuron study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers, Seed, check_choices, check_least

__all__ = ["HOOKS", "KINDS", "POOLS", "NeuronOptions"]

HOOKS = ("post", "pre", "gate")
"""The keys of ``circuit.model.NEURON_HOOKS``."""
POOLS = ("mean", "rms")
RANKS = ("z", "difference")
KINDS = ("zero", "mean", "swap")


@dataclass(frozen=True)
class NeuronOptions(PlainNumbers):
    """``layers``: all if empty. ``everywhere``: neurons are changed at every token, not at the position alone.

    ``max_pairs`` is how many held-out pairs are ablated, ``least`` how many pairs a group has at
    least, ``level`` that of false discoveries, ``n_draws`` the draws of the null.
    """

    layers: Annotated[tuple[int, ...], Option("May be repeated. (default: all)", name="--layer")] = ()
    hook: Annotated[
        str, Option("What the MLP's down projection reads; what its up or gate projection writes.", choices=HOOKS)
    ] = "post"
    position: Annotated[
        str, Option("persona-end, question-end, question-word, prompt-end; persona-mean, question-mean.")
    ] = "prompt-end"
    pool: Annotated[
        str, Option("mean: A is of one kind throughout; rms: any two personas, in whatever order.", choices=POOLS)
    ] = "mean"
    rank_by: Annotated[
        str, Option("z: difference over its spread; difference: its absolute size alone.", choices=RANKS)
    ] = "z"
    top_k: Annotated[int, Option("Neurons to select.")] = 20
    level: Annotated[float, Option("Level at which false discoveries are controlled.")] = 0.05
    kinds: Annotated[
        tuple[str, ...],
        Option(
            "zero, mean or swap; may be repeated. (default: all)",
            name="--ablation",
            given=list[str],
            read=lambda given: tuple(dict.fromkeys(given)),
        ),
    ] = KINDS
    everywhere: Annotated[
        bool,
        Option(
            "Change neurons at the position, or everywhere.",
            name="--ablate-at",
            given=Literal["position", "all"],
            read=lambda at: at == "all",
            shown="position",
        ),
    ] = False
    n_random: Annotated[int, Option("Random sets of neurons to ablate.")] = 100
    max_pairs: Annotated[int, Option("Held-out pairs to ablate on.")] = 32
    least: Annotated[int, Option("Pairs of a group in cross-validation, at least.", name="--min-group")] = 4
    n_draws: Annotated[int, Option("Draws of the null.")] = 200
    answers: Annotated[
        bool, Option("Pairs have answers to measure D on; without, they need none and nothing is ablated.")
    ] = True
    batch_size: BatchSize = 32
    seed: Seed = 0

    def checked(self) -> NeuronOptions:
        """These options.

        Raises:
            OptionError: one of them makes no sense.
        """
        from persona_circuits.persona.neurons.runs import NEURON_POSITIONS

        check_choices(self)
        if not self.answers and self.kinds:
            return replace(self, kinds=()).checked()
        if self.position not in NEURON_POSITIONS:
            raise OptionError(f"--position {self.position!r} is not one of {', '.join(NEURON_POSITIONS)}")
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise OptionError(f"--ablation {unknown[0]!r} is not one of {', '.join(KINDS)}")
        check_least(self, top_k=1, n_random=1, max_pairs=1, least=2, n_draws=10, batch_size=1)
        if not 0 < self.level < 1:
            raise OptionError(f"--level must be between 0 and 1, got {self.level:g}")
        return self
