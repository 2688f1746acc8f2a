"""Is there anything to find? The effect of the persona on the pairs to search on, before any edge is scored.

A search returns a circuit whatever the pairs hold. What it returns explains an effect only if there is one: larger
than it would be by chance over other pairs, and larger than what two paraphrases of one persona do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit import parallel
from persona_circuits.circuit.evaluation.null import NullRun
from persona_circuits.circuit.forward import Prepared
from persona_circuits.circuit.statistics import Clusters, Interval, interval, weighted_mean
from persona_circuits.metrics import Metric, Targets

__all__ = ["Signal", "SignalWatch", "signal_of"]

ENOUGH, TOO_SMALL, TOO_FEW, REVERSED, UNKNOWN = "enough", "too small", "too few pairs", "reversed", "unknown"
LEVEL = 0.05
HARDLY = 10
"""Where this many times the pairs would be needed, it is the effect that is too small, not the pairs too few."""
MOST = 1_000_000
POWERED = 1.96 + 0.84
"""The |t| that a two-sided test at .05 needs for a power of .8 (normal approximation)."""


@dataclass(frozen=True)
class Signal:
    """The effect m(clean) - m(corrupt) over pairs, in the metric's units, and whether it justifies a search.

    ``p`` is two-sided, of a mean effect of zero, over personas and questions where they are named. ``mass`` is the
    probability of the answers and wrong answers together, averaged over pairs and both prompts. ``sigma_0`` is the
    size of the effect between paraphrases of one persona, in logits, None without such pairs. ``needed`` is how many
    pairs like these would show the effect four times out of five.
    """

    n_pairs: int
    effect: float
    interval: Interval | None
    p: float | None
    reversed: int
    mass: float
    sigma_0: float | None
    needed: int | None
    verdict: str

    @property
    def enough(self) -> bool:
        """Whether a search is worth its time; also where a single pair leaves it open."""
        return self.verdict in (ENOUGH, UNKNOWN)

    @property
    def nothing(self) -> bool:
        """Whether a circuit would explain chance, or wording: the interval holds zero, or paraphrases do as much."""
        if self.verdict == TOO_SMALL and self.sigma_0 is not None and abs(self.effect) <= self.sigma_0:
            return True
        chance = self.interval is not None and self.interval.low <= 0 <= self.interval.high
        return self.verdict in (TOO_SMALL, TOO_FEW) and chance

    @property
    def shown(self) -> str:
        """The effect with its interval."""
        within = "" if self.interval is None else f" [{self.interval.low:+.3g}, {self.interval.high:+.3g}]"
        return f"the effect is {self.effect:+.3g}{within} on {self.n_pairs} pair(s)"

    @property
    def sentence(self) -> str:
        """The verdict for people."""
        return {
            ENOUGH: "enough to search on",
            UNKNOWN: "one pair has no interval: whether other pairs have this effect cannot be said",
            REVERSED: "the effect is reversed: answers and wrong answers seem to have changed places",
            TOO_SMALL: self._too_small(),
            TOO_FEW: f"too few pairs to show the effect (p {self.p or 1:.2g}): about {self.needed or 0:,} like these "
            "would do",
        }[self.verdict]

    def _too_small(self) -> str:
        if self.sigma_0 is not None and abs(self.effect) <= self.sigma_0:
            return (
                f"the effect is too small: paraphrases of one persona differ by {self.sigma_0:.3g} (sigma_0), so a "
                "circuit would explain wording; choose personas or a prompt format that move the answer more"
            )
        pairs = f"about {self.needed:,}" if self.needed else "over a million"
        return (
            f"the effect is too small beside its spread: {pairs} pairs like these would be needed to show it; choose "
            "personas or a prompt format that move the answer more"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the results."""
        return asdict(self)


def signal_of(
    effects: Float[np.ndarray, " pair"],
    mass: float,
    clusters: Clusters,
    *,
    null: NullRun | None = None,
    rounding: float = 0.0,
    seed: int = 0,
) -> Signal:
    """The signal in the pairs' effects.

    Parameters
    ----------
    effects
        m(clean) - m(corrupt) of every pair, in the order of ``clusters``.
    null
        The same between paraphrases; its sigma_0 is compared where ``effects`` are logits too.
    rounding
        Effects below it count as none.
    """
    effect, n = float(effects.mean()), len(effects)
    sigma = null.sigma_0 if null is not None else None
    if n < 2:
        return Signal(n, effect, None, None, int((effects < 0).sum()), mass, sigma, None, UNKNOWN)
    influence = effects - effect
    bounds = interval(lambda w: weighted_mean(w, effects), clusters, influence=influence, seed=seed)
    p = clusters.p_value(abs(effect), influence, rounding)
    needed = _needed(effect, clusters.spread(influence[:, None]), n)
    if abs(effect) <= rounding or (sigma is not None and abs(effect) <= sigma):
        verdict = TOO_SMALL
    elif p <= LEVEL:
        verdict = ENOUGH if effect > 0 else REVERSED
    else:
        verdict = TOO_FEW if needed is not None and needed <= HARDLY * n else TOO_SMALL
    return Signal(n, effect, bounds, p, int((effects < 0).sum()), mass, sigma, needed, verdict)


def _needed(effect: float, spread: float, n: int) -> int | None:
    """Pairs for a power of .8, the spread of the mean falling with the root of their number; None beyond a million."""
    n_needed = n * (POWERED * spread / abs(effect)) ** 2 if effect else math.inf
    return max(n, math.ceil(n_needed)) if n_needed <= MOST else None


class SignalWatch:
    """The effect and the answers' probability of every pair, from passes that are run anyway."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._seen: dict[int, list[tuple[float, float]]] = {}

    def watched(self, prepared: Iterable[Prepared]) -> Iterator[Prepared]:
        """The same batches, each inspected as it passes."""
        directions = 2 if self.metric.swap_rows else 1
        for item in prepared:
            sides = (item.clean.logits, item.corrupt.logits)
            clean, corrupt = (self.metric(logits, item.targets).double() for logits in sides)
            clean_mass, corrupt_mass = (_mass(logits, item.targets) for logits in sides)
            mass = (clean_mass + corrupt_mass) / 2
            rows = zip(item.batch.indices, (clean - corrupt).tolist(), mass.tolist(), strict=True)
            for index, gap, share in rows:
                self._seen.setdefault(index // directions, []).append((gap, share))
            yield item

    def effects(self) -> Float[np.ndarray, " pair"]:
        """m(clean) - m(corrupt) of every pair of all processes."""
        seen = parallel.gathered(self._seen)
        return np.array([np.mean(seen[index], axis=0)[0] for index in sorted(seen)])

    def signal(self, clusters: Clusters, *, null: NullRun | None = None, rounding: float = 0.0) -> Signal:
        """The answers' probability over all processes' pairs, once all batches have passed."""
        seen = parallel.gathered(self._seen)
        values = np.array([np.mean(seen[index], axis=0) for index in sorted(seen)])
        logits = null if self.metric.unit == "logits" else None
        return signal_of(values[:, 0], float(values[:, 1].mean()), clusters, null=logits, rounding=rounding)


def _mass(logits: Float[Tensor, "batch vocab"], targets: Targets) -> Float[Tensor, " batch"]:
    """The probability of all answers and wrong answers; padding of rows with fewer of them counts for nothing."""
    ids = torch.cat([targets.answers, targets.wrong_answers], dim=-1)
    chances = (logits.gather(-1, ids.clamp(min=0)) - logits.logsumexp(-1, keepdim=True)).double().exp()
    return (chances * (ids >= 0)).sum(-1)
