"""The model's persona divergence on the pair files, beside the generator's.

D = [log p(answer) - log p(wrong answer)] under the clean prompt, minus the same under
the corrupt one. In the controls the generator's D is 0, so only the model's size counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from persona_circuits.circuit.errors import FileError
from persona_circuits.models.training.network import next_token_logits

__all__ = ["PairQuality", "divergences", "pair_groups", "pair_quality"]

AXES = {"train": (), "test": ("contrast", "bias", "placement", "held_out"), "controls": ("control",), "demo": ()}


@dataclass(frozen=True)
class PairQuality:
    """Persona divergences of a group of pairs; correlation and sign only where the generator's D varies."""

    n: int
    generator_mean: float
    model_mean: float
    model_mean_size: float
    correlation: float | None
    same_sign: float | None


def pair_groups(datasets: Path) -> dict[str, list[dict]]:
    """The pair files' rows: every file but controls as a whole, then by its axes."""
    groups: dict[str, list[dict]] = {}
    for name, axes in AXES.items():
        path = datasets / f"pairs_{name}.jsonl"
        if not path.exists():
            raise FileError(f"there is no {path}; write it with: python -m persona_circuits.models.world.data")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if name != "controls":
            groups[name] = rows
        for axis in axes:
            for row in rows:
                groups.setdefault(f"{name}, {axis} {row[axis]}", []).append(row)
    return groups


def pair_quality(model: GPT2LMHeadModel, tokenizer: Tokenizer, rows: Sequence[dict]) -> PairQuality:
    """The measures of one group of pairs."""
    predicted = divergences(model, tokenizer, rows)
    truth = np.array([row["generator"]["divergence"] for row in rows])
    varies = bool(np.ptp(truth) > 1e-6)
    return PairQuality(
        n=len(rows),
        generator_mean=float(truth.mean()),
        model_mean=float(predicted.mean()),
        model_mean_size=float(np.abs(predicted).mean()),
        correlation=float(np.corrcoef(predicted, truth)[0, 1]) if varies else None,
        same_sign=float(np.mean(np.sign(predicted) == np.sign(truth))) if varies else None,
    )


def divergences(model: GPT2LMHeadModel, tokenizer: Tokenizer, rows: Sequence[dict]) -> np.ndarray:
    """The model's persona divergence of every pair, in logits, `(n,)`."""
    margins = []
    for side in ("clean", "corrupt"):
        logits = next_token_logits(model, [tokenizer.encode(row[side]).ids for row in rows]).numpy()
        chosen = [[tokenizer.encode(row[key][0]).ids[0] for row in rows] for key in ("answers", "wrong_answers")]
        every = np.arange(len(rows))
        margins.append(logits[every, chosen[0]] - logits[every, chosen[1]])
    return margins[0] - margins[1]
