"""What paraphrases of one persona show, as the null of every number and of every causal test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from persona_circuits import metrics
from persona_circuits.persona.behaviour import PARAPHRASE, PairMeasure, null_divergences
from persona_circuits.persona.explanation.causal import RANDOM, TESTS, Outcome
from persona_circuits.persona.explanation.inside import Inside
from persona_circuits.persona.explanation.verdicts import Null, Thresholds

__all__ = ["CausalTest", "causal_test", "expected_agreement", "null_of"]

LEVEL = 0.05


@dataclass(frozen=True)
class CausalTest:
    """How often the test of a cause agrees on the pairs that have it, and on all paraphrases.

    ``p`` is Fisher's exact one, of agreeing no more often than on paraphrases, as if pairs were independent; None
    without paraphrases. ``random_share`` is how often it would agree with random nodes in the place of those
    ablated; None where it ablates none.
    """

    cause: str
    test: str
    agree: int
    ran: int
    null_agree: int
    null_ran: int
    p: float | None
    random_share: float | None = None

    @property
    def null_share(self) -> float | None:
        """Of paraphrases, the share on which it agrees."""
        return self.null_agree / self.null_ran if self.null_ran else None

    @property
    def tells(self) -> bool:
        """Whether it agrees on pairs more often than on paraphrases, as far as there are any."""
        return self.p is None or self.p <= LEVEL


def null_of(
    measures: Sequence[PairMeasure], insides: Sequence[Inside], thresholds: Thresholds, *, n_rows: int = 1
) -> Null:
    """The null of the paraphrases among these; sigma_0 of means over ``n_rows`` where several rows were averaged."""
    places = [place for place, measure in enumerate(measures) if measure.item.control == PARAPHRASE]
    if not places:
        return Null()
    d = torch.tensor(null_divergences([measures[place] for place in places], n_rows), dtype=torch.float64)
    signals = [insides[place].most("answer") for place in places]
    sides = [insides[place].stronger_side for place in places]
    quantiles = (float(np.quantile(values, thresholds.null_share, method="higher")) for values in (signals, sides))
    return Null(len(places), metrics.paraphrase_null(d).item(), *quantiles)


def causal_test(cause: str, own: Sequence[Outcome], null: Sequence[Outcome]) -> CausalTest:
    """Counts of both, and the p of their difference."""
    agree, ran, null_agree, null_ran = (number for outcomes in (own, null) for number in _counts(outcomes))
    p = None
    if ran and null_ran:
        table = [[agree, ran - agree], [null_agree, null_ran - null_agree]]
        p = float(stats.fisher_exact(table, alternative="greater").pvalue)
    random = [outcome.says[RANDOM] for outcome in own if RANDOM in outcome.says]
    share = float(np.mean(random)) if random else None
    return CausalTest(cause, TESTS[cause], agree, ran, null_agree, null_ran, p, share)


def expected_agreement(outcomes: Sequence[Outcome], tests: Mapping[str, CausalTest]) -> float | None:
    """The share of these outcomes that would agree if each agreed as often as its test does on paraphrases."""
    shares = [
        tests[outcome.test].null_share for outcome in outcomes if outcome.agrees is not None and outcome.test in tests
    ]
    known = [share for share in shares if share is not None]
    return float(np.mean(known)) if known else None


def _counts(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    known = [outcome.agrees for outcome in outcomes if outcome.agrees is not None]
    return sum(known), len(known)
