"""The most likely next tokens of a model, whatever the candidates are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["N_WORDS", "Words", "mean_words", "said", "top_words"]

N_WORDS = 10
Words = tuple[tuple[str, float], ...]
"""Tokens as text, each with its probability, the most likely first."""


def top_words(
    logits: Float[Tensor, " vocab"], tokenizer: Any, n: int = N_WORDS, *, names: Mapping[int, str] | None = None
) -> Words:
    """The ``n`` most likely tokens after one prompt, from its logits; ``names`` name columns that are no tokens."""
    top = torch.softmax(logits, -1).topk(min(n, logits.shape[-1]))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    names = names or {}
    return tuple((names.get(token) or tokenizer.decode([token]), probability) for token, probability in pairs)


def mean_words(prompts: Sequence[Words], n: int = N_WORDS) -> Words:
    """The most likely words over several prompts; one that is not among the first of a prompt counts nothing there."""
    total: dict[str, float] = {}
    for words in prompts:
        for text, probability in words:
            total[text] = total.get(text, 0.0) + probability / len(prompts)
    return tuple(sorted(total.items(), key=lambda item: -item[1])[:n])


def said(words: Sequence[Any], n: int = 5) -> str:
    """``' a' 0.31, ' the' 0.12``, as a report shows ``Words``, or their form in a JSON file."""
    return ", ".join(f"{text!r} {probability:.2f}" for text, probability in words[:n])
