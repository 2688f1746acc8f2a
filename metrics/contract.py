"""What a metric is: logits at the answer position in, one number per prompt out, higher is better, unreduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.metrics.divergences import kl
from persona_circuits.metrics.margins import logit_diff, prob_diff

__all__ = ["METRICS", "Metric", "Targets"]


@dataclass(frozen=True, eq=False)
class Targets:
    """What the prompts of a batch are measured against.

    ``answers`` and ``wrong_answers`` are token ids, rows of unequal number padded
    with -1. ``reference`` are the whole model's logits on the clean prompts, for
    metrics that compare distributions. ``weights`` are for metrics whose rows are weighed.
    """

    answers: Int[Tensor, "batch n_answers"]
    wrong_answers: Int[Tensor, "batch n_wrong"]
    reference: Float[Tensor, "batch vocab"]
    weights: Float[Tensor, " batch"] | None = None


@dataclass(frozen=True)
class Metric:
    """A named metric and what the rest of the program must know of it.

    ``swap_rows``: every pair is used in both directions. ``flat_at_clean``: its
    gradient is zero at the clean run, so that plain EAP sees nothing.
    """

    name: str
    function: Callable[[Tensor, Targets], Tensor]
    unit: str
    swap_rows: bool = False
    flat_at_clean: bool = False

    def __call__(self, logits: Float[Tensor, "batch vocab"], targets: Targets) -> Float[Tensor, " batch"]:
        """One number per prompt, in ``unit``."""
        return self.function(logits, targets)


METRICS = {
    "persona-divergence": Metric(
        "persona-divergence",
        lambda logits, targets: logit_diff(logits, targets.answers, targets.wrong_answers),
        "logits",
        swap_rows=True,
    ),
    "logit-diff": Metric(
        "logit-diff", lambda logits, targets: logit_diff(logits, targets.answers, targets.wrong_answers), "logits"
    ),
    "prob-diff": Metric(
        "prob-diff", lambda logits, targets: prob_diff(logits, targets.answers, targets.wrong_answers), "probability"
    ),
    "kl": Metric("kl", lambda logits, targets: -kl(targets.reference, logits), "-nats", flat_at_clean=True),
}
