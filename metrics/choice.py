"""Choices among a question's candidates: under one persona, and under many.

``logits[..., persona, candidate]`` are one question's candidates under each of its
personas, all of equal weight. The candidates are all of them, not two declared tokens:
a third, default candidate can win under everyone. A logit of -inf (as
``candidate_logits`` gives for padding) is a candidate that cannot be chosen.

    p_k             softmax over the candidates under persona k
    information     I = H(mean of p_k) - mean of H(p_k), in nats
    hard collapse   every persona has the same most likely candidate
    soft collapse   1 - I / I_max,  I_max = ln min(personas, candidates)

In a tie of the most likely candidates the first one counts as chosen, so a tie between
two candidates under two personas reads as collapse: no persona showed a preference.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "candidate_logits",
    "candidate_mass",
    "choice_information",
    "choice_shares",
    "effective_preferences",
    "entropy",
    "hard_collapse",
    "modal_share",
    "soft_collapse",
]


def candidate_logits(
    logits: Float[Tensor, "*batch vocab"], candidates: Int[Tensor, "*batch candidate"]
) -> Float[Tensor, "*batch candidate"]:
    """The candidates' logits; ids of -1 are padding and become -inf."""
    values = logits.gather(-1, candidates.clamp(min=0))
    return values.masked_fill(candidates < 0, -torch.inf)


def candidate_mass(
    logits: Float[Tensor, "*batch vocab"], candidates: Int[Tensor, "*batch candidate"]
) -> Float[Tensor, "*batch"]:
    """Share of the whole vocabulary's probability that lies on the candidates, in [0, 1].

    Ids must be distinct; -1 is padding. Below 0.2 the question is at fault, not the persona.
    """
    return candidate_logits(logits.log_softmax(-1), candidates).exp().sum(-1).clamp(max=1.0)


def entropy(logits: Float[Tensor, "*batch candidate"]) -> Float[Tensor, "*batch"]:
    """H of the softmax, in nats."""
    return _entropy(logits.softmax(-1))


def choice_information(logits: Float[Tensor, "*batch persona candidate"]) -> Float[Tensor, "*batch"]:
    """I(persona; choice), in nats: what the choice tells of the persona, from 0 to ln min(personas, candidates).

    For two personas it is the Jensen-Shannon divergence. One persona gives 0.
    """
    p = logits.softmax(-1)
    return (_entropy(p.mean(-2)) - _entropy(p).mean(-1)).clamp(min=0.0)


def choice_shares(logits: Float[Tensor, "*batch persona candidate"]) -> Float[Tensor, "*batch candidate"]:
    """Share of personas whose most likely candidate is this one; sums to 1."""
    chosen = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
    return chosen.to(logits.dtype).mean(-2)


def modal_share(logits: Float[Tensor, "*batch persona candidate"]) -> Float[Tensor, "*batch"]:
    """Share of personas that choose the most chosen candidate: 1 is hard collapse."""
    return choice_shares(logits).max(-1).values


def effective_preferences(logits: Float[Tensor, "*batch persona candidate"]) -> Float[Tensor, "*batch"]:
    """exp H of the personas' choices: how many candidates are chosen in effect, from 1 (hard collapse) up.

    H is of ``choice_shares``, not of the mean distribution: an undecided model under which
    every persona chooses alike has one preference.
    """
    return _entropy(choice_shares(logits)).exp()


def hard_collapse(logits: Float[Tensor, "*batch persona candidate"]) -> Bool[Tensor, "*batch"]:
    """True where every persona has the same most likely candidate; always true of one persona."""
    chosen = logits.argmax(-1)
    return (chosen == chosen[..., :1]).all(-1)


def soft_collapse(logits: Float[Tensor, "*batch persona candidate"]) -> Float[Tensor, "*batch"]:
    """1 - I / I_max, in [0, 1]: 1 where the choice tells nothing of the persona.

    nan with one persona or one candidate: there is nothing that could be told.
    """
    n_candidates = logits.isneginf().logical_not().any(-2).sum(-1).clamp(max=logits.shape[-2])
    most = n_candidates.to(logits.dtype).log()
    return (1 - choice_information(logits) / most).clamp(0.0, 1.0)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)
