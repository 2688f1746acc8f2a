"""Choices of the studies of circuits."""

from __future__ import annotations

from dataclasses import dataclass

from persona_circuits.circuit.discovery import AnyMetric
from persona_circuits.circuit.options import PlainNumbers

__all__ = [
    "EvaluationOptions",
]


@dataclass(frozen=True)
class EvaluationOptions(PlainNumbers):
    """What a circuit is put to; ``metric``, ``ablation``, ``align`` and ``where`` are its own where they are not given.

    ``split`` is of the pairs measured on (``test`` if there is one, else all). ``by`` are keys of the pairs: it is
    measured on every value of each, beside circuits outside it; by default on those of the usual keys that split the
    pairs. ``n_random`` random circuits stand beside the faithfulness, ``n_tested`` beside the hypothesis tests;
    ``n_resamples`` of the pairs, or ``orders`` of ACDC, tell its stability. ``quick``: few random circuits,
    permutations, edges and resamples, and pairs grouped by EAP scores.
    """

    metric: AnyMetric | None = None
    ablation: str | None = None
    align: str | None = None
    split: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    n_random: int = 10
    seed: int = 0
    batch_size: int = 32
    by: tuple[str, ...] | None = None
    orders: int = 3
    quick: bool = False
    n_tested: int = 100
    n_resamples: int = 200
