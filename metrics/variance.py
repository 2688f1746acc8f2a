"""How much of the logits' variance over candidates is the same under every persona.

Logits are centred over the candidates, since a shift of all of them changes no choice.
The mean over personas is the generic prior, what is left is the persona's own part:

    l_pc - mean_c l_pc  =  prior_c + persona_pc,     sum over p, c of squares adds up

With two personas and two candidates the parts are b/2 and D/4 in size, so that the prior's
share is b^2 / (b^2 + D^2/4).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["VarianceShares", "centred", "variance_shares"]


@dataclass(frozen=True, eq=False)
class VarianceShares:
    """Shares of the variance over personas and candidates, each in [0, 1], together 1."""

    prior: Float[Tensor, "*batch"]
    persona: Float[Tensor, "*batch"]


def centred(logits: Float[Tensor, "*batch candidate"]) -> Float[Tensor, "*batch candidate"]:
    """Logits minus their mean over the candidates. There must be no padding: its -inf has no mean."""
    return logits - logits.mean(-1, keepdim=True)


def variance_shares(logits: Float[Tensor, "*batch persona candidate"]) -> VarianceShares:
    """Split the candidates' logits of one question into what all personas share and the rest.

    One persona gives a prior of 1. Logits that are flat under every persona, and so
    hold no variance, give nan. No padding.
    """
    values = centred(logits)
    prior = values.mean(-2, keepdim=True)
    squares_prior = prior.expand_as(values).square().sum((-2, -1))
    squares_persona = (values - prior).square().sum((-2, -1))
    total = squares_prior + squares_persona
    return VarianceShares(squares_prior / total, squares_persona / total)
