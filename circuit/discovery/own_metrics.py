"""The metric of a search: one of the named ones, or a function of the caller's own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from persona_circuits.circuit.errors import OptionError, meant
from persona_circuits.circuit.options import AnyMetric
from persona_circuits.metrics import METRICS, Metric, Targets

__all__ = ["AnyMetric", "metric_of"]


def metric_of(given: AnyMetric) -> Metric:
    """The metric of that name, or one's own: a ``Metric``, or a function (logits, targets) -> numbers.

    A function is given the logits at the answer, ``[batch, vocab]``, and ``metrics.Targets``, and returns ``[batch]``.
    Every pair counts as it stands, in one direction; for both directions or a unit make a ``Metric`` of it.

    Raises:
        OptionError: there is no metric of that name; or, once it is called, it does not give one number per prompt.
    """
    if isinstance(given, str):
        if given not in METRICS:
            raise OptionError(
                f"metric {given!r} is not one of {', '.join(METRICS)}; a circuit that was found with a function of "
                f"your own is measured from Python, with metric=function{meant(given, METRICS)}"
            )
        return METRICS[given]
    own = given if isinstance(given, Metric) else Metric(getattr(given, "__name__", "own metric"), given, "own units")
    return own if own in METRICS.values() else replace(own, function=partial(_one_a_prompt, own))


def _one_a_prompt(metric: Metric, logits: Tensor, targets: Targets) -> Tensor:
    values = metric.function(logits, targets)
    if not isinstance(values, Tensor) or values.shape != (len(logits),):
        got = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise OptionError(
            f"metric {metric.name} gave {got} for {len(logits)} prompt(s), expected one number per prompt, a tensor of "
            f"shape ({len(logits)},); leave out the mean or sum over prompts"
        )
    return values
