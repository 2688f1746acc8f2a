"""Divergences between next-token distributions, over the vocabulary or over candidates alone.

Over candidates: give what ``metrics.candidate_logits`` returns. A logit of -inf is a
token that cannot be chosen; where both sides have it, it counts for nothing.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

__all__ = ["jensen_shannon", "kl"]

LN_2 = 0.6931471805599453
RULED_OUT = -1e4  # its exponential is 0 in every format, and unlike -inf it has a gradient


def kl(reference: Float[Tensor, "*batch vocab"], logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """KL(reference || model), in nats; zero exactly where both are the same.

    Infinite where the model rules out a token that the reference does not. Logits may
    have any leading dimensions; the last one is the vocabulary or the candidates.
    """
    return _kl(reference.log_softmax(-1), logits.log_softmax(-1))


def jensen_shannon(
    logits_a: Float[Tensor, "*batch vocab"], logits_b: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Jensen-Shannon divergence in nats, from 0 (the same) to ln 2 (nothing in common); symmetric.

    The mean of both KL divergences to the even mixture (Lin 1991). Over candidates it is
    the choice information of two personas.
    """
    log_p, log_q = (side.log_softmax(-1).clamp(min=RULED_OUT) for side in (logits_a, logits_b))
    mixture = log_p.logaddexp(log_q) - LN_2
    return ((_kl(log_p, mixture) + _kl(log_q, mixture)) / 2).clamp(0.0, LN_2)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    gap = (log_p - log_q).masked_fill(log_p.isneginf(), 0.0)
    return (log_p.exp() * gap).sum(-1)
