"""Functions from logits to one number per prompt, pair or question. A leaf: torch and nothing else of this project."""

from metrics.choice import (
    candidate_logits,
    candidate_mass,
    choice_information,
    choice_shares,
    effective_preferences,
    entropy,
    hard_collapse,
    modal_share,
    soft_collapse,
)
from metrics.contract import METRICS, Metric, Targets
from metrics.divergences import jensen_shannon, kl
from metrics.margins import logit_diff, persona_divergence, prob_diff
from metrics.persona import (
    cancellation,
    neutral_prior,
    paraphrase_null,
    persona_margin,
    prior,
    prior_dominance,
    required_gain,
)
from metrics.variance import VarianceShares, centred, variance_shares

__all__ = [
    "METRICS",
    "Metric",
    "Targets",
    "VarianceShares",
    "cancellation",
    "candidate_logits",
    "candidate_mass",
    "centred",
    "choice_information",
    "choice_shares",
    "effective_preferences",
    "entropy",
    "hard_collapse",
    "jensen_shannon",
    "kl",
    "logit_diff",
    "modal_share",
    "neutral_prior",
    "paraphrase_null",
    "persona_divergence",
    "persona_margin",
    "prior",
    "prior_dominance",
    "prob_diff",
    "required_gain",
    "soft_collapse",
    "variance_shares",
]
