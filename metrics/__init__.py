"""Functions from logits to one number per prompt. A leaf: torch and nothing else of this project."""

from metrics.contract import METRICS, Metric, Targets
from metrics.divergences import kl
from metrics.margins import logit_diff, persona_divergence, prob_diff

__all__ = ["METRICS", "Metric", "Targets", "kl", "logit_diff", "persona_divergence", "prob_diff"]
