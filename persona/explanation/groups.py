"""An explained pair, and groups of them: by a key of their rows, or all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_circuits.persona.behaviour import PairMeasure
from persona_circuits.persona.data import Estimate, two_way_mean
from persona_circuits.persona.data.items import Item, shared_by
from persona_circuits.persona.explanation.causal import Outcome
from persona_circuits.persona.explanation.inside import Inside
from persona_circuits.persona.explanation.null import CausalTest, expected_agreement
from persona_circuits.persona.explanation.verdicts import VERDICTS, Numbers, Verdict

__all__ = ["Explained", "Group", "group_of", "groups_by", "is_label"]


@dataclass(frozen=True)
class Explained:
    """One pair: what it does, what is inside, the verdict and its test.

    ``flip_gain`` is how much the persona effect must grow until the choices differ, over all candidates; ``expected``
    is the class that the file expects, None where it does not say.
    """

    keys: Mapping[str, Any]
    measure: PairMeasure
    inside: Inside
    numbers: Numbers
    flip_gain: float
    verdict: Verdict
    outcome: Outcome
    expected: str | None

    @property
    def item(self) -> Item:
        """The pair with its candidates and axes."""
        return self.measure.item

    def label(self, key: str) -> str:
        """The pair's value of a key; its id for ``pair``, empty where it has none."""
        if key == "pair":
            return self.item.pair.id
        if key == "question":
            return self.item.question
        return str(self.keys[key]) if is_label(self.keys.get(key)) else ""


@dataclass(frozen=True)
class Group:
    """Some pairs together: means, but medians of gain and access, which have long tails.

    ``verdict`` is the one that the majority has, ``undecided`` without one; ``share`` the
    share of the most frequent. ``agree``, ``disagree`` and ``not_run`` count causal tests, ``null_agree`` is the
    share that would agree by what the same tests find on paraphrases. ``confirmed`` says whether the verdict's own
    test agrees on most of the pairs that have it here, and over all pairs more often than on paraphrases; None where
    it was not run.
    """

    by: str
    value: str
    n: int
    verdict: str
    share: float
    verdicts: Mapping[str, int]
    divergence: Estimate
    prior: float
    flip_gain: float
    signal_persona: float
    signal_answer: float
    alignment: float
    aligned: float
    access: float | None
    cancellation: float | None
    mass: float
    agree: int
    disagree: int
    not_run: int
    null_agree: float | None
    confirmed: bool | None

    @property
    def headline(self) -> str:
        """The verdict, but ``unconfirmed`` where the numbers say one that its own causal test does not bear out."""
        return "unconfirmed" if self.confirmed is False else self.verdict


Tests = Mapping[str, CausalTest]


def groups_by(
    key: str, rows: Sequence[Explained], *, majority: float, tests: Tests, n_resamples: int, seed: int
) -> tuple[Group, ...]:
    """One group per value of a key, in order of appearance for ``pair``, else in alphabetic order."""
    values = dict.fromkeys(row.label(key) for row in rows)
    ordered = list(values) if key == "pair" else sorted(values)
    draws: dict[str, Any] = {"majority": majority, "tests": tests, "n_resamples": n_resamples, "seed": seed}
    return tuple(
        group_of(key, value or "not given", [row for row in rows if row.label(key) == value], **draws)
        for value in ordered
    )


def group_of(
    key: str, value: str, rows: Sequence[Explained], *, majority: float, tests: Tests, n_resamples: int, seed: int
) -> Group:
    """A summary of one pair or more. A verdict needs more than ``majority`` of the pairs."""
    names = [row.verdict.name for row in rows]
    counts = {name: names.count(name) for name in VERDICTS if name in names}
    most = max(counts, key=lambda name: counts[name])
    share = counts[most] / len(rows)
    verdict = most if share > majority else "undecided"
    agrees = [row.outcome.agrees for row in rows]
    d, shared = [row.measure.divergence for row in rows], shared_by([row.item for row in rows])
    estimate = two_way_mean(d, *shared, n_resamples=n_resamples, seed=seed)
    assert estimate is not None, "a group has pairs"
    return Group(
        by=key,
        value=value,
        n=len(rows),
        verdict=verdict,
        share=share,
        verdicts=counts,
        divergence=estimate,
        prior=float(np.mean([abs(row.measure.prior) for row in rows])),
        flip_gain=float(np.median([row.flip_gain for row in rows])),
        signal_persona=float(np.mean([row.numbers.signal_persona for row in rows])),
        signal_answer=float(np.mean([row.numbers.signal_answer for row in rows])),
        alignment=float(np.mean([row.numbers.alignment for row in rows])),
        aligned=float(np.mean([row.numbers.aligned for row in rows])),
        access=_of_known(np.median, [row.numbers.access for row in rows]),
        cancellation=_of_known(np.mean, [row.numbers.cancellation for row in rows]),
        mass=float(np.mean([row.numbers.mass for row in rows])),
        agree=agrees.count(True),
        disagree=agrees.count(False),
        not_run=agrees.count(None),
        null_agree=expected_agreement([row.outcome for row in rows], tests),
        confirmed=_confirmed(verdict, rows, tests),
    )


def _confirmed(verdict: str, rows: Sequence[Explained], tests: Tests) -> bool | None:
    agrees = [row.outcome.agrees for row in rows if row.verdict.name == verdict and row.outcome.agrees is not None]
    own = next((test for test in tests.values() if test.cause == verdict), None)
    if own is None or not agrees:
        return None
    return 2 * sum(agrees) > len(agrees) and (not own.ran or own.tells)


def _of_known(statistic: Callable[[list[float]], Any], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistic(known)) if known else None


def is_label(value: Any) -> bool:
    """Whether a value of a row can tell pairs apart: text or a number."""
    return isinstance(value, str | int | float)
