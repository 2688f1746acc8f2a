"""Choices of a bridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers, Seed, check_least

__all__ = ["BridgeOptions"]


@dataclass(frozen=True)
class BridgeOptions(PlainNumbers):
    """``layer`` is where nodes are listed and movers taken from, the last if None; shares are of every layer.

    ``direction`` is as for steering, chosen by the pairs if empty. ``top_k`` movers are taken where no file names them.
    """

    position: Annotated[str, Option("persona-end, question-end, question-word or prompt-end.")] = "prompt-end"
    layer: Annotated[int | None, Option("Where nodes are listed and movers taken. (default: the last)")] = None
    direction: Annotated[str, Option("personas, pooled, pair, or a file, as for steer. (default: by the pairs)")] = ""
    toward: tuple[str, str] | None = None
    top_k: Annotated[int, Option("Movers to take where no file names them.")] = 10
    n_random: Annotated[int, Option("Random sets of nodes.")] = 1000
    batch_size: BatchSize = 32
    seed: Seed = 0

    def checked(self) -> BridgeOptions:
        """These options.

        Raises:
            OptionError: one of them makes no sense.
        """
        from persona_circuits.persona.data import POSITIONS

        if self.position not in POSITIONS:
            raise OptionError(f"--position {self.position!r} is not one of {', '.join(POSITIONS)}")
        check_least(self, top_k=1, n_random=1, batch_size=1)
        return self
