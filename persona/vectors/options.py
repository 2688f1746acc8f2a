"""Choices of a study of persona vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers

__all__ = ["VectorOptions"]


@dataclass(frozen=True)
class VectorOptions(PlainNumbers):
    """At which layer persona vectors are shown, and what they are compared with; all layers are read and kept."""

    layer: Annotated[
        int | None, Option("Block, from 0, after which the vectors are shown. (default: the most reliable)")
    ] = None
    layer_fraction: Annotated[float | None, Option("The same as a share of the blocks; all are read and kept.")] = None
    min_cosine: Annotated[
        float | None, Option("Exit with 1 where a persona's raw cosine with --reference is below. (default: no bar)")
    ] = None
    n_permutations: Annotated[int, Option("Permutations of personas when models are compared.")] = 2000
    seed: Annotated[int, Option("Seed of responses and permutations.", min=0)] = 0
    batch_size: BatchSize = 32
