"""What a persona does to one preference, and what the generic prior does.

With the margin m(x) = l(pA) - l(pB) of the two declared tokens, x_A the question under
persona A, x_B under persona B and x_N under a neutral one (definitions of this project):

    divergence        D  = m(x_A) - m(x_B)              metrics.persona_divergence
    prior             b  = (m(x_A) + m(x_B)) / 2,  so  m(x_A) = b + D/2,  m(x_B) = b - D/2
    neutral prior     b0 = m(x_N)
    prior dominance   PDR = |b| / (|b| + |D|/2)
    required gain     g* = 2 |b| / |D|

D is the interaction and b the main effect of the tokens in the two-by-two table of
personas and tokens. pA and pB are declared before the run: the run's own most likely
tokens would make D >= 0 by selection.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "cancellation",
    "neutral_prior",
    "paraphrase_null",
    "persona_margin",
    "prior",
    "prior_dominance",
    "required_gain",
]


def persona_margin(
    logits: Float[Tensor, "*batch vocab"], token_a: Int[Tensor, "*batch"], token_b: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """m = l(pA) - l(pB), in logits; the softmax's normaliser cancels.

    ``metrics.logit_diff`` is the same for several answers a side, padded with -1; here
    an id is one token, and there may be any number of leading dimensions.
    """
    at_a, at_b = (logits.gather(-1, ids[..., None])[..., 0] for ids in (token_a, token_b))
    return at_a - at_b


def prior(margin_under_a: Float[Tensor, "*batch"], margin_under_b: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """b: the mean margin of both personas, in logits. Above zero the pair as a whole leans to pA.

    Exchanging the personas leaves it, exchanging the tokens turns its sign.
    """
    return (margin_under_a + margin_under_b) / 2


def neutral_prior(margins: Float[Tensor, "*batch wording"]) -> Float[Tensor, "*batch"]:
    """b0: the mean margin under no persona over neutral wordings of one question, in logits; nan without a wording."""
    return margins.mean(-1)


def prior_dominance(prior: Float[Tensor, "*batch"], divergence: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """PDR = |b| / (|b| + |D|/2), in [0, 1]: 0 the persona decides alone, 1 the prior does.

    At least 1/2 exactly where |b| >= |D|/2, which is where both margins are of one sign
    (or one is zero): both personas lean to the same of the two tokens. D = 0 gives 1;
    b = D = 0 gives nan, since there is nothing to share out.
    """
    return prior.abs() / (prior.abs() + divergence.abs() / 2)


def required_gain(prior: Float[Tensor, "*batch"], divergence: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """g* = 2 |b| / |D|: how many times larger the persona effect must be for the two answers to differ.

    With margins b + g D/2 and b - g D/2 the signs differ for every g > g* and agree for
    every g < g*; 1 is the model as it is. D = 0 gives infinity, b = D = 0 gives nan.
    """
    return 2 * prior.abs() / divergence.abs()


def paraphrase_null(divergences: Float[Tensor, "*batch pair"]) -> Float[Tensor, "*batch"]:
    """sigma_0: the spread of D over pairs of paraphrases of one persona, in logits. |D| < 2 sigma_0 is no signal.

    The root of the mean square about zero: which paraphrase comes first is arbitrary, so
    the null's mean is zero, and the number must not depend on the order. nan without pairs.
    """
    return divergences.square().mean(-1).sqrt()


def cancellation(contributions: Float[Tensor, "*batch edge"]) -> Float[Tensor, "*batch"]:
    """kappa = 1 - |sum a| / sum |a|, in [0, 1]: 0 all contributions pull one way, 1 they cancel.

    ``contributions`` are the edges' into the logits, in the unit of the margin. All zero
    (or none at all) gives 0: nothing works against anything.
    """
    total = contributions.abs().sum(-1)
    share = contributions.sum(-1).abs() / total.masked_fill(total == 0, 1.0)
    return (1 - share).masked_fill(total == 0, 0.0).clamp(0.0, 1.0)
