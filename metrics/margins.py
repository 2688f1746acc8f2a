"""Margins between answers, and the persona divergence that two of them make."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["logit_diff", "persona_divergence", "prob_diff"]


def logit_diff(
    logits: Float[Tensor, "batch vocab"],
    answers: Int[Tensor, "batch n_answers"],
    wrong_answers: Int[Tensor, "batch n_wrong"],
) -> Float[Tensor, " batch"]:
    """Mean logit of the answers minus mean logit of the wrong answers, in logits.

    With one answer each it is the persona margin l(pA) - l(pB): the softmax's
    normaliser cancels. Ids of -1 are padding.
    """
    return _mean_at(logits, answers) - _mean_at(logits, wrong_answers)


def persona_divergence(
    margin_under_a: Float[Tensor, " batch"], margin_under_b: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """D = [l(pA) - l(pB)] under A - [l(pA) - l(pB)] under B, in logits.

    Both margins are of the same two tokens in the same order. D is the log odds
    ratio of persona by token: a prior that does not depend on the persona cancels.
    """
    return margin_under_a - margin_under_b


def prob_diff(
    logits: Float[Tensor, "batch vocab"],
    answers: Int[Tensor, "batch n_answers"],
    wrong_answers: Int[Tensor, "batch n_wrong"],
) -> Float[Tensor, " batch"]:
    """Probability of all answers together minus that of all wrong answers, in [-1, 1]."""
    probabilities = logits.softmax(-1)
    return _sum_at(probabilities, answers) - _sum_at(probabilities, wrong_answers)


def _sum_at(values: Tensor, ids: Tensor) -> Tensor:
    return (values.gather(-1, ids.clamp(min=0)) * (ids >= 0)).sum(-1)


def _mean_at(values: Tensor, ids: Tensor) -> Tensor:
    return _sum_at(values, ids) / (ids >= 0).sum(-1)
