"""Functions from logits to one number per prompt, pair or question. A leaf: torch and nothing else of this project."""

from persona_circuits.metrics.choice import (
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
from persona_circuits.metrics.collapse import (
    cancellation,
    neutral_prior,
    paraphrase_null,
    persona_margin,
    prior,
    prior_dominance,
    required_gain,
)
from persona_circuits.metrics.contract import METRICS, Metric, Targets
from persona_circuits.metrics.divergences import jensen_shannon, kl
from persona_circuits.metrics.forms import with_options
from persona_circuits.metrics.margins import logit_diff, persona_divergence, prob_diff
from persona_circuits.metrics.variance import VarianceShares, centred, variance_shares

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
    "with_options",
]
