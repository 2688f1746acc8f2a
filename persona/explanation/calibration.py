"""How often a verdict falls on controls, in which there is no persona to find, and thresholds that keep it rare.

Controls (paraphrases of one persona, irrelevant and nonsense personas, ones of the same side) are halved by persona
pair. On the training half each verdict gets the least strength at which it is given:

    no collapse, prior dominance, reversed    |D|
    cancellation                              the stronger of the two opposed sides
    bottleneck                                the signal at the answer
    weak or transient                         the signal at the persona: it is there, and does not arrive

A control counts where its numbers give the verdict, the verdict's own causal test agrees, and the strength is
reached. Rates are means over persona pairs, of the share of each one's rows. A persona pair that is drawn like C
others has the verdict at a rate of at most (sum of their shares + 1) / (C + 1) (hierarchical conformal inference,
Lee, Barber and Willett 2023, arXiv:2306.06342); that is the promise, and must be within the level, and so must the
rate of each kind of controls. With fewer than 19 persona pairs nothing can be promised at .05: the verdict is not
given. What the held-out half has is measured with the thresholds fixed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from persona_circuits.persona.data.items import Item
from persona_circuits.persona.explanation.groups import Explained
from persona_circuits.persona.explanation.verdicts import Null, Verdict

__all__ = [
    "CLAIMS",
    "LEVEL",
    "STRENGTHS",
    "Calibration",
    "Cut",
    "Rate",
    "calibrated",
    "cluster_of",
    "cuts_of",
    "half_of",
    "rates_of",
    "withheld_of",
]

LEVEL = 0.05
CLAIMS = ("no collapse", "prior dominance", "reversed", "cancellation", "weak or transient", "bottleneck")
"""The verdicts that say something of a persona; the others say that nothing can be said."""
STRENGTHS: Mapping[str, tuple[str, Callable[[Explained], float | None]]] = {
    **{name: ("|D|", lambda row: abs(row.numbers.divergence)) for name in CLAIMS[:3]},
    "cancellation": ("side", lambda row: row.numbers.stronger_side),
    "weak or transient": ("signal", lambda row: row.numbers.signal_persona),
    "bottleneck": ("signal", lambda row: row.numbers.signal_answer),
}


@dataclass(frozen=True)
class Cut:
    """The least strength at which a verdict is given, None where none can be promised; ``clusters`` are persona pairs.

    ``rate`` is the training controls' own, ``promise`` the most that holds for a further persona pair like them.
    """

    least: float | None
    rate: float
    promise: float
    n: int
    clusters: int


@dataclass(frozen=True)
class Rate:
    """Of the controls of a kind (``all`` together), ``pairs`` of ``n`` have a verdict.

    ``share`` is a mean over clusters; ``upper`` and ``lower`` are one-sided 95 % limits (Clopper and
    Pearson) by whole clusters.
    """

    verdict: str
    kind: str
    pairs: int
    n: int
    clusters: int
    share: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Calibration:
    """Thresholds of one model, and the null that they were made with; ``training`` are the controls' persona pairs.

    ``average`` and ``causal`` are the options of the run, ``thresholds`` the SHA-256 of the thresholds' file;
    ``withheld`` verdicts had more held-out controls than chance gives. ``held_out`` are the rates measured then.
    """

    fingerprint: str
    thresholds: str
    average: bool
    causal: bool
    null: Null
    cuts: Mapping[str, Cut]
    training: tuple[str, ...]
    held_out: tuple[Rate, ...] = ()
    withheld: tuple[str, ...] = ()
    source: str = ""
    sha256: str = ""

    def gives(self, verdict: str) -> bool:
        """Whether the verdict is given at all on this model."""
        return verdict not in CLAIMS or (self.cuts[verdict].least is not None and verdict not in self.withheld)


def half_of(items: Sequence[Item], *, seed: int = 0) -> frozenset[str]:
    """The persona pairs of the controls' training half: of every kind every other one, in an order drawn by name."""
    kinds: dict[str, set[str]] = {}
    for item in items:
        if item.control != "none":
            kinds.setdefault(item.control, set()).add(cluster_of(item))
    ordered = (
        sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()) for names in kinds.values()
    )
    return frozenset(name for names in ordered for name in names[::2])


def cluster_of(item: Item) -> str:
    """What rows of one kind share: their control and their persona pair."""
    return f"{item.control}: {item.persona_pair}"


def cuts_of(controls: Sequence[Explained], *, level: float = LEVEL) -> dict[str, Cut]:
    """The cut of every claim on the training controls."""
    return {name: _cut(name, controls, level) for name in CLAIMS}


def calibrated(row: Explained, calibration: Calibration) -> Explained:
    """The pair with its verdict as far as it is given."""
    name = row.verdict.name
    if name not in CLAIMS:
        return row
    cut, (what, _) = calibration.cuts[name], STRENGTHS[name]
    why = ""
    if not calibration.gives(name):
        why = "which is not given on this model"
    elif not _passes(row, name):
        why = "but its causal test does not agree"
    elif cut.least is not None and _strength(row, name) < cut.least:
        why = f"but {what} {_strength(row, name):.3g} < {cut.least:.3g}, from which on controls rarely have it"
    return replace(row, verdict=Verdict("undecided", f"{name} by numbers ({row.verdict.why}), {why}")) if why else row


def rates_of(controls: Sequence[Explained]) -> tuple[Rate, ...]:
    """How often controls have each claim, by kind, all kinds first; nothing without controls."""
    kinds = dict.fromkeys(row.item.control for row in controls)
    groups = {"all": list(controls), **{kind: [row for row in controls if row.item.control == kind] for kind in kinds}}
    return tuple(_rate(name, kind, own) for name in CLAIMS for kind, own in groups.items() if own)


def withheld_of(rates: Sequence[Rate], *, level: float = LEVEL) -> tuple[str, ...]:
    """The verdicts that held-out controls have more often than the level, by more than so few of them can by chance."""
    return tuple(dict.fromkeys(rate.verdict for rate in rates if rate.lower > level))


def _cut(name: str, controls: Sequence[Explained], level: float) -> Cut:
    kinds = sorted({row.item.control for row in controls})
    strengths = np.array([_strength(row, name) if _passes(row, name) else -np.inf for row in controls])
    shares = Shares([cluster_of(row.item) for row in controls])
    of_kind = [np.array([row.item.control == kind for row in controls]) for kind in kinds]
    n, clusters = len(controls), shares.n
    for least in (-np.inf, *np.nextafter(np.unique(strengths[np.isfinite(strengths)]), np.inf)):
        marked = strengths >= least if np.isfinite(least) else np.isfinite(strengths)
        total = shares.of(marked).sum()
        promise = float((total + 1) / (clusters + 1))
        if promise <= level and all(shares.among(marked, own) <= level for own in of_kind):
            return Cut(float(max(least, 0.0)), float(total / clusters), promise, n, clusters)
    return Cut(None, 0.0, 1 / (clusters + 1), n, clusters)


class Shares:
    """Rows of clusters, by name: of each cluster the share of its rows that are marked."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.codes = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
        self.n = len(self.names)
        self.sizes = np.bincount(self.codes, minlength=self.n)

    def of(self, marked: np.ndarray) -> np.ndarray:
        """By cluster."""
        return np.bincount(self.codes, weights=marked, minlength=self.n) / np.maximum(self.sizes, 1)

    def among(self, marked: np.ndarray, own: np.ndarray) -> float:
        """Mean over the clusters of which rows are ``own``; a cluster's rows all are or none is."""
        return float(self.of(marked)[np.unique(self.codes[own])].mean())


def _rate(name: str, kind: str, controls: Sequence[Explained]) -> Rate:
    has = np.array([row.verdict.name == name for row in controls])
    shares = Shares([cluster_of(row.item) for row in controls])
    by_cluster = shares.of(has)
    few, many = math.floor(by_cluster.sum() + 1e-9), math.ceil(by_cluster.sum() - 1e-9)
    lower = float(stats.beta.ppf(0.05, few, shares.n - few + 1)) if few else 0.0
    upper = float(stats.beta.ppf(0.95, many + 1, shares.n - many)) if many < shares.n else 1.0
    return Rate(name, kind, int(has.sum()), len(controls), shares.n, float(by_cluster.mean()), lower, upper)


def _passes(row: Explained, name: str) -> bool:
    """The numbers give this verdict, and its causal test agrees, where it has one and tests were run."""
    if row.verdict.name != name:
        return False
    return not row.outcome.test or row.outcome.agrees is True or row.outcome.why == "not asked for"


def _strength(row: Explained, name: str) -> float:
    strength = STRENGTHS[name][1](row)
    return -math.inf if strength is None else strength
