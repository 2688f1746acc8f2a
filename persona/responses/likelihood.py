"""How likely a model finds a text after a prompt, and how much the text repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.model import Model, of_prompts
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.persona.responses.tokens import SpokenTokens
from persona_circuits.persona.streams import grouped

__all__ = ["log_likelihoods", "perplexity", "repetition"]

N_GRAM = 3


def log_likelihoods(
    model: Model, rows: Sequence[SpokenTokens], *, batch_size: int = 32, progress: Progress | None = None
) -> list[Float[np.ndarray, " token"]]:
    """Log probability, in nats, of every token of each response, given all before it.

    A response must not begin at the very first token: nothing predicts that one.
    """
    by_row: list[Float[np.ndarray, " token"]] = [np.empty(0)] * len(rows)
    done = 0
    for group in grouped([len(row.ids) for row in rows], batch_size):
        tokens = torch.tensor([rows[i].ids for i in group], device=model.device)
        every = _of_next(model, tokens)
        check_finite(every, of_prompts(model, tokens), "log probabilities")
        for i, values in zip(group, every, strict=True):
            assert rows[i].start >= 1, "something stands before the response"
            by_row[i] = values[rows[i].start - 1 :]
        done += len(group)
        (progress or untold)(done, len(rows))
    return by_row


def perplexity(values: Float[np.ndarray, " token"]) -> float:
    """exp of minus the mean log probability; nan of no token."""
    return float(np.exp(-values.mean())) if len(values) else float("nan")


def repetition(ids: Sequence[int]) -> float:
    """Share of the trigrams that occurred before, from 0; nan where there are fewer than two trigrams."""
    grams = [tuple(ids[i : i + N_GRAM]) for i in range(len(ids) - N_GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else float("nan")


def _of_next(model: Model, tokens: Tensor) -> Float[np.ndarray, "batch pos"]:
    logits = model.logits(tokens)[:, :-1]
    at = tokens[:, 1:, None]
    chosen = logits.gather(-1, at)[..., 0].float() - logits.float().logsumexp(-1)
    return chosen.cpu().double().numpy()
