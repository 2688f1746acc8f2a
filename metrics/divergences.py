"""Divergences between next-token distributions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

__all__ = ["kl"]


def kl(reference: Float[Tensor, "batch vocab"], logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
    """KL(reference || model) over the vocabulary, in nats; zero exactly where both are the same."""
    p, q = reference.log_softmax(-1), logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
