"""Five tests of the claim that a circuit is responsible for a behaviour (Shi et al. 2024, arXiv:2410.13032).

With s(X) the metric of a pair under circuit X, M the whole model, C the circuit:

    equivalence    H0 |P(s(C) > s(M)) - 1/2| < eps: the circuit is above the model as often as below
    independence   H0 what M without C still does is independent of what M does
    sufficiency    H0 C is no closer to M than random circuits matched by layer, type and size
    necessity      H0 knocking C out of M changes no more than knocking out matched random edges outside C
    minimality     H0 every edge, alone removed from C, changes more than a random edge does, per edge

The first two and the last state what a good circuit does, so the circuit *fails* where
H0 is rejected; for sufficiency and necessity it *passes* where H0 is rejected. A circuit does
not pass because a test had no power: equivalence passes where the opposite H0, |P - 1/2| >= eps, is
rejected (two one-sided tests), independence where a correlation of .5 would have been found four times in five.
What could not have come out otherwise on so few pairs or random circuits is ``undecided``,
what has no object ``not applicable``. The five p-values are corrected for each other (Holm 1979): a
decision that rests on a rejection at level ``alpha`` alone, and not at ``alpha`` after correction, is ``undecided``.
Every test says what it could have shown.

Where this differs from the paper and its code:

- The indicator of s(C) > s(M) is tested, not the mean difference, and ties count one
  half: a circuit that equals the model passes.
- Differences below a ``negligible`` share (1 %) of m(full) - m(empty) are ties: a sign
  test calls every systematic difference a failure, one of a millionth as well. The p
  without that allowance stands beside it.
- Pairs that share personas or questions are not independent: equivalence counts as many pairs as would tell
  as much if they shared nothing (Korn and Graubard 1998), and independence permutes only what is
  exchangeable (``circuit.permutations``). ``docs/statistics.md`` has the levels by simulation.
- Ties are what rounding leaves (``circuit.rounding``), in units of the metric.
- Independence is tested on m - m(empty). With the corrupt ablation the raw metrics of model and
  of an empty complement are D/2 and -D/2, as dependent as can be.
- p-values from B random draws are (1 + b) / (1 + B), never 0. The paper's
  binomial test against a quantile stands beside them.
- Necessity compares with random edges outside the circuit: of a chain every
  random set that shares one edge with it does as much.
- The random edges of minimality come from matched random circuits, removed
  from the circuit inflated by one; alone such a circuit does nothing and any edge would
  beat its edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize, special, stats

from circuit.errors import OptionError
from circuit.matched import Matched, matched_circuits, matched_outside
from circuit.measurements import Measurements, Source
from circuit.model import Model
from circuit.patching import Progress
from circuit.permutations import Permutations, permutations_of
from circuit.rounding import tolerance
from circuit.subgraph import Circuit
from circuit.uncertainty import Clusters
from metrics import Metric

__all__ = [
    "EdgeTest",
    "HypothesisReport",
    "Outcome",
    "equivalence",
    "holm",
    "hsic",
    "hypothesis_tests",
    "independence",
    "minimality",
    "partial_necessity",
    "sufficiency",
]

PASSED, FAILED, UNDECIDED, NOT_APPLICABLE = "passed", "failed", "undecided", "not applicable"
ALPHA, EPS, QUANTILE, NEGLIGIBLE = 0.05, 0.1, 0.9, 0.01
QUICK_RANDOM, QUICK_PERMUTATIONS, QUICK_EDGES = 19, 199, 10
"""With 19 random circuits the least p is 1/20, just enough at level .05, but not for one of five tests."""
DETECTABLE, POWER = 0.5, 0.8
"""Independence passes where a correlation of this size would have been found with this chance."""
ELEMENTS = 1 << 22  # of permuted kernel matrices held at a time


@dataclass(frozen=True)
class Outcome:
    """One test: what was tested at which level, what came out, and in words.

    ``decision`` is about the circuit: passed, failed, undecided or not applicable. ``p_holm`` is the p that the
    decision goes by, corrected for the other tests of the circuit; ``could_show`` what the sample could have shown.
    """

    name: str
    hypothesis: str
    alpha: float
    statistic: float | None
    p: float | None
    decision: str
    sentence: str
    details: dict[str, Any] = field(default_factory=dict)
    p_holm: float | None = None
    could_show: str = ""

    @property
    def deciding(self) -> float | None:
        """The p that a rejection goes by: of equivalence the smaller one of its two opposite hypotheses."""
        return self.p if self.p is None else min(self.p, self.details.get("p_shown", 1.0))


@dataclass(frozen=True)
class EdgeTest:
    """Minimality of one edge.

    ``change`` is the mean over pairs of |s(C) - s(C without the edge)|, ``share`` that of
    random edges that change less. ``p`` is of H0 that the share is at least the
    quantile, ``p_holm`` corrected for the number of edges; at or below the level the edge
    is ``superfluous``.
    """

    edge: str
    change: float
    share: float
    p: float
    p_holm: float
    superfluous: bool


@dataclass(frozen=True, eq=False)
class HypothesisReport:
    """All tests of one circuit on one set of pairs."""

    metric: str
    n_pairs: int
    n_edges: int
    m_full: float
    m_empty: float
    m_circuit: float
    m_complement: float
    negligible: float
    quick: bool
    seed: int
    random: dict[str, Any]
    outside: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    edges: tuple[EdgeTest, ...]
    rounding: float = 0.0
    resampled: str = "pairs"

    def __getitem__(self, name: str) -> Outcome:
        """The test of that name."""
        return next(outcome for outcome in self.outcomes if outcome.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as files hold them."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """A row per test, for tables."""
        return [
            {
                "test": outcome.name,
                "decision": outcome.decision,
                "statistic": outcome.statistic,
                "p": outcome.p,
                "p_holm": outcome.p_holm,
                "alpha": outcome.alpha,
                "could_show": outcome.could_show,
                "says": outcome.sentence,
            }
            for outcome in self.outcomes
        ]

    def edge_rows(self) -> list[dict[str, Any]]:
        """A row per edge tested for minimality, the least necessary first."""
        return [asdict(edge) for edge in sorted(self.edges, key=lambda edge: (edge.share, edge.change, edge.edge))]


def hypothesis_tests(
    model: Model,
    prepared: Source,
    metric: Metric,
    circuit: Circuit,
    *,
    n_random: int = 100,
    n_permutations: int = 1000,
    alpha: float = ALPHA,
    eps: float = EPS,
    quantile: float = QUANTILE,
    negligible: float = NEGLIGIBLE,
    max_edges: int = 500,
    clusters: Clusters | None = None,
    seed: int = 0,
    quick: bool = False,
    progress: Progress | None = None,
    state: Path | None = None,
) -> HypothesisReport:
    """Every test of the module on the pairs of ``prepared``.

    Parameters
    ----------
    prepared
        Gives the batches; called once for every 64 circuits measured, so a list is best
        where memory allows.
    n_random
        Matched random circuits, for sufficiency, necessity and minimality.
    n_permutations
        Of the pairs, for independence.
    eps
        How far from an even chance still counts as even.
    quantile
        Share of random edges that an edge has to beat, and of random circuits in the
        paper's form of sufficiency and necessity.
    negligible
        Share of |m(full) - m(empty)| up to which a difference on a pair counts as none.
    max_edges
        More edges than that are not all tested for minimality but a random choice of them.
    clusters
        Personas and questions that the pairs share; pairs count as independent without it.
    quick
        19 random circuits, 199 permutations, 10 edges: seconds instead of minutes on a small model. Sufficiency
        and necessity have their numbers, but so few random circuits leave them undecided.
    progress
        Called with the circuits measured and all that there are to measure.
    state
        File in which measurements are kept, to go on from after a stop; removed at the end.

    Raises
    ------
    OptionError
        A level, share or number is impossible.
    """
    _check(n_random, n_permutations, alpha, eps, quantile, negligible, max_edges)
    if quick:
        n_random, n_permutations = min(n_random, QUICK_RANDOM), min(n_permutations, QUICK_PERMUTATIONS)
        max_edges = min(max_edges, QUICK_EDGES)
    matched, outside = (draw(circuit, n_random, seed=seed) for draw in (matched_circuits, matched_outside))
    inflated, lacking = _inflated(circuit, matched, seed)
    tested = _tested(circuit, max_edges, seed)
    total = 4 + len(matched.circuits) + len(outside.circuits) + 2 * len(inflated) + len(tested)
    measured = Measurements(model, prepared, metric, total=total, progress=progress, state=state)
    whole = [Circuit.full(model.graph), Circuit.empty(model.graph), circuit, circuit.complement()]
    full, empty, alone, without = measured.of(one.mask for one in whole)
    random = measured.of(one.mask for one in matched.circuits)
    random_without = measured.of(one.complement().mask for one in outside.circuits)
    random_changes = _changes(measured.of(inflated), measured.of(lacking))
    changes = _changes(alone[None], measured.of(_without_each(circuit, tested)))
    measured.done()

    tie, clusters = tolerance(full - empty, measured.rounding), clusters or Clusters(len(full), None, None)
    least = max(negligible * float(np.abs((full - empty).mean())), tie)
    level: dict[str, Any] = {"alpha": alpha, "quantile": quantile, "tie": tie}
    common: dict[str, Any] = {"alpha": alpha, "negligible": least, "tie": tie, "clusters": clusters}
    names = [str(model.graph.edge(*place)) for place in tested]
    minimal, edges = minimality(changes, random_changes, names, n_edges=len(circuit), **level)
    outcomes: tuple[Outcome, ...] = (
        equivalence(alone, full, eps=eps, **common),
        independence(without - empty, full - empty, n_permutations=n_permutations, seed=seed, **common),
        sufficiency(alone, full, random, is_same=[one == circuit for one in matched.circuits], **level),
        partial_necessity(without, full, random_without, **level),
        minimal,
    )
    if (reason := _nothing_to_test(full, empty, measured.rounding)) is not None:
        outcomes, edges = tuple(_not_applicable(outcome, reason) for outcome in outcomes), ()
    elif metric.flat_at_clean:
        reason = f"{metric.name} measures the distance from the model itself, so no circuit can be above it"
        outcomes = (_not_applicable(outcomes[0], reason), *outcomes[1:])
    outcomes = corrected(outcomes)
    return HypothesisReport(
        metric=metric.name,
        n_pairs=len(full),
        n_edges=len(circuit),
        m_full=float(full.mean()),
        m_empty=float(empty.mean()),
        m_circuit=float(alone.mean()),
        m_complement=float(without.mean()),
        negligible=least,
        quick=quick,
        seed=seed,
        random=matched.as_dict(),
        outside=outside.as_dict(),
        outcomes=outcomes,
        edges=edges,
        rounding=measured.rounding,
        resampled=clusters.describe(),
    )


def corrected(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """The tests with p-values corrected for each other (Holm); what is rejected without it alone is undecided."""
    places = [i for i, one in enumerate(outcomes) if one.p is not None]
    adjusted = holm(np.array([outcomes[i].deciding for i in places], dtype=float))
    found = list(outcomes)
    for i, p in zip(places, adjusted.tolist(), strict=True):
        one, deciding = outcomes[i], outcomes[i].deciding
        found[i] = replace(one, p_holm=p)
        if deciding is not None and deciding <= one.alpha < p:
            sentence = f"{one.sentence} Corrected for {len(places)} tests p is {p:.2g}: undecided."
            fewest = math.ceil(len(places) / one.alpha - 1e-9) - 1
            if one.details.get("n_random", fewest) < fewest and one.name != "minimality":
                sentence = f"{sentence[:-1]}; it takes at least {fewest} random ones."
            found[i] = replace(found[i], decision=UNDECIDED, sentence=sentence)
    return tuple(found)


def equivalence(
    circuit: Float[np.ndarray, " pair"],
    model: Float[np.ndarray, " pair"],
    *,
    eps: float = EPS,
    alpha: float = ALPHA,
    negligible: float = 0.0,
    tie: float = 0.0,
    clusters: Clusters | None = None,
) -> Outcome:
    """Whether the circuit scores above the model as often as below: H0 |P(s(C) > s(M)) - 1/2| < eps.

    The statistic is the share of pairs above, pairs within ``negligible`` counting one half. p is
    the chance of a share as far from 1/2 at the edge of H0, P = 1/2 + eps, where it is
    largest (Shi et al. 2024, arXiv:2410.13032, section 3); the circuit fails where it is small.
    ``details`` hold ``p_shown``, that of the opposite H0, |P - 1/2| >= eps, whose rejection shows equivalence: only
    then does the circuit pass. Two one-sided tests, each by exact bounds of the shares above and
    below (Clopper and Pearson 1934). ``p_strict`` is p where only ``tie`` makes a tie, ``eps_shown`` the smallest
    eps at which the circuit would have passed, ``fails_from`` the least share that would have failed.

    With ``clusters`` both go by the number of pairs that would tell as much if they shared nothing,
    ``n_effective``, and are no smaller than if every cluster had one mind: (1/2 + eps)^k and
    (1 - 2 eps)^k for k clusters.
    """
    n, clusters = len(model), clusters or Clusters(len(model), None, None)
    above, below = _above_below(circuit - model, negligible)
    p, p_strict = (
        _p_of_unequal(*_above_below(circuit - model, least), circuit - model, least, eps, clusters)
        for least in (negligible, tie)
    )
    n_effective = _effective(circuit - model, negligible, clusters)
    part = n_effective / n
    p_shown = _p_of_equal(above * part, below * part, n_effective, eps)
    p_shown = max(p_shown, (1 - 2 * eps) ** clusters.independent)
    share = (1 + (above - below) / n) / 2
    eps_shown = max(
        _bound(above * part, below * part, n_effective, alpha), (1 - alpha ** (1 / clusters.independent)) / 2
    )
    fails_from = _fails_from(n_effective, eps, alpha, clusters)
    if p <= alpha:
        decision, why = FAILED, f"an even chance within {eps:g} is rejected (p = {p:.2g})"
    elif p_shown <= alpha:
        decision, why = PASSED, f"an even chance within {eps:g} is shown (p = {p_shown:.2g})"
    else:
        decision, why = UNDECIDED, f"an even chance within {eps:g} is neither rejected (p = {p:.2g}) nor shown"
    could_show = f"even within {eps_shown:.2g}; uneven " + (f"from {fails_from:.0%}" if fails_from else "at no share")
    return Outcome(
        name="equivalence",
        hypothesis=f"|P(s(C) > s(M)) - 1/2| < {eps:g}",
        alpha=alpha,
        statistic=share,
        p=p,
        decision=decision,
        sentence=(
            f"The circuit scores above the model on {above}, below it on {below} and within {negligible:.3g} of it on "
            f"{n - above - below} of {_counted(n, 'pair')}: {why}; {_equivalence_could(eps_shown, fails_from)}."
        ),
        details={
            "n_above": above,
            "n_below": below,
            "n_ties": n - above - below,
            "n_effective": n_effective,
            "eps": eps,
            "eps_shown": eps_shown,
            "fails_from": fails_from,
            "p_strict": p_strict,
            "p_shown": p_shown,
            "mean_difference": float((circuit - model).mean()),
        },
        could_show=could_show,
    )


def independence(
    complement: Float[np.ndarray, " pair"],
    model: Float[np.ndarray, " pair"],
    *,
    n_permutations: int = 1000,
    alpha: float = ALPHA,
    negligible: float = 0.0,
    tie: float = 0.0,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> Outcome:
    """Whether what the complement still does, m - m(empty), is independent of what the model does.

    The statistic is the Hilbert-Schmidt independence criterion with Gaussian kernels (Gretton et al. 2007), p from
    permutations of what is exchangeable (``circuit.permutations``), (1 + b) / (1 + B). Effects within ``negligible``
    are none: a complement that has none on any pair is independent of everything. Where nothing is
    rejected the circuit passes only if a correlation of .5 would have been found four times in five;
    ``detectable`` is the size that would.
    """
    n = len(model)
    effect = np.where(np.abs(complement) <= negligible, 0.0, complement)
    result: dict[str, Any] = {
        "name": "independence",
        "hypothesis": "what the model without the circuit does is independent of what the model does",
        "alpha": alpha,
    }
    details: dict[str, Any] = {
        "mean_effect_of_complement": float(complement.mean()),
        "mean_effect_of_model": float(model.mean()),
        "largest_effect_of_complement": float(np.abs(complement).max()),
    }
    if not effect.any():
        sentence = (
            f"Without the circuit the model does nothing on any of {_counted(n, 'pair')} (within {negligible:.3g})."
        )
        shows = f"effects above {negligible:.3g}"
        return Outcome(
            statistic=0.0, p=1.0, decision=PASSED, sentence=sentence, details=details, could_show=shows, **result
        )
    result |= {"statistic": None, "p": None, "details": details}
    rest = f"the complement's effect is {complement.mean():+.3g} where the model's is {model.mean():+.3g}"
    for values, what in ((effect, "complement"), (model, "model")):
        if np.ptp(values) <= tie and n > 1:
            sentence = f"The {what} has the same effect on every pair, so dependence cannot show; {rest}."
            return Outcome(decision=NOT_APPLICABLE, sentence=sentence, **result)
    among = permutations_of(n) if clusters is None else clusters.permutations
    least = max(1 / (1 + n_permutations), among.least_p)
    if least > alpha:
        sentence = (
            f"With {_counted(n, 'pair')} and {n_permutations} permutations of {among.what} p cannot fall below "
            f"{least:.2g}; {rest}."
        )
        return Outcome(decision=UNDECIDED, sentence=sentence, could_show="nothing", **result)
    statistic, p = hsic(effect, model, n_permutations=n_permutations, seed=seed, among=among)
    detectable = _detectable(effect, model, among, alpha, seed)
    details |= {"permuted": among.what, "n_permuted": len(among.places), "detectable": detectable}
    if p <= alpha:
        decision, verb = FAILED, "depends on"
    else:
        decision, verb = PASSED if detectable <= DETECTABLE else UNDECIDED, "does not show dependence on"
    sentence = (
        f"What the model does without the circuit {verb} what it does as a whole (p = {p:.2g}, {among.what} permuted); "
        f"a correlation of {detectable:.2f} would have been found four times in five; {rest}."
    )
    result |= {"statistic": statistic, "p": p}
    return Outcome(decision=decision, sentence=sentence, could_show=f"a correlation of {detectable:.2f}", **result)


def hsic(
    x: Float[np.ndarray, " pair"],
    y: Float[np.ndarray, " pair"],
    *,
    n_permutations: int = 1000,
    seed: int = 0,
    among: Permutations | None = None,
) -> tuple[float, float]:
    """The Hilbert-Schmidt independence criterion of two samples and its permutation p, (1 + b) / (1 + B).

    tr(K H L H) / n^2, the biased estimate (Gretton et al. 2007, "A kernel statistical test
    of independence"), with Gaussian kernels whose widths are the median distances between
    different values of x and of y each. 0 and 1 where either is constant. ``among`` are the permutations, of all pairs
    if it is not given; pairs that they do not touch have no part in the numbers.
    """
    among = permutations_of(len(x)) if among is None else among
    x, y = x[among.places], y[among.places]
    k, other = _centred(_kernel(x)), _kernel(y)
    found = float((k * other).sum())
    rng = np.random.default_rng(seed)
    at_least, n = 0, len(x)
    block = max(1, ELEMENTS // n**2)
    for start in range(0, n_permutations, block):
        size = min(block, n_permutations - start)
        orders = among.draws(rng, size)
        drawn = np.einsum("ij,bij->b", k, other[orders[:, :, None], orders[:, None, :]])
        at_least += int((drawn >= found - 1e-9 * abs(found)).sum())
    return found / n**2, (1 + at_least) / (1 + n_permutations)


def sufficiency(
    circuit: Float[np.ndarray, " pair"],
    model: Float[np.ndarray, " pair"],
    random: Float[np.ndarray, "random pair"],
    *,
    is_same: Sequence[bool] = (),
    alpha: float = ALPHA,
    quantile: float = QUANTILE,
    tie: float = 0.0,
) -> Outcome:
    """Whether the circuit is closer to the model than matched random circuits are.

    The statistic is the mean over pairs of |s(C) - s(M)|; p is (1 + b) / (1 + N) with b of N random
    circuits at least as close. ``is_same`` marks random circuits that are the circuit itself. ``details``
    hold the paper's ``p_quantile``: of H0 that it is closer than at most a ``quantile`` of random circuits.
    """
    distances = np.abs(random - model).mean(1) if len(random) else np.zeros(0)
    return _against_random(
        "sufficiency",
        "the circuit is no closer to the model than matched random circuits",
        float(np.abs(circuit - model).mean()),
        distances,
        sign=-1,
        is_same=is_same,
        alpha=alpha,
        quantile=quantile,
        tie=tie,
        words=("The circuit is {value:.3g} from the model", "matched random circuit", "are as close"),
    )


def partial_necessity(
    complement: Float[np.ndarray, " pair"],
    model: Float[np.ndarray, " pair"],
    random: Float[np.ndarray, "random pair"],
    *,
    alpha: float = ALPHA,
    quantile: float = QUANTILE,
    tie: float = 0.0,
) -> Outcome:
    """Whether knocking out the circuit changes the model more than knocking out matched random edges outside it.

    ``complement`` and ``random`` are the model's scores with the circuit, and with each
    random set of edges, cut out; the sets are different ones. The statistic is the mean over
    pairs of |s(M without C) - s(M)|, p and ``details`` are as for ``sufficiency``.
    """
    effects = np.abs(random - model).mean(1) if len(random) else np.zeros(0)
    return _against_random(
        "necessity",
        "knocking the circuit out changes the model no more than knocking out matched random edges outside it",
        float(np.abs(complement - model).mean()),
        effects,
        sign=1,
        is_same=(),
        alpha=alpha,
        quantile=quantile,
        tie=tie,
        words=("Knocking the circuit out changes the model by {value:.3g}", "matched random edge set", "do as much"),
    )


def minimality(
    changes: Float[np.ndarray, " edge"],
    random: Float[np.ndarray, " random"],
    names: Sequence[str],
    *,
    alpha: float = ALPHA,
    quantile: float = QUANTILE,
    tie: float = 0.0,
    n_edges: int | None = None,
) -> tuple[Outcome, tuple[EdgeTest, ...]]:
    """Whether every edge changes more than random edges do when it alone is removed.

    Per edge H0: it changes more than a random edge with probability at least ``quantile``.
    p is binomial, from the number of random edges that it beats; over edges Holm's
    correction holds the chance of calling any edge of a minimal circuit superfluous at
    ``alpha`` (Shi et al. 2024, arXiv:2410.13032, section 3, whose code leaves it out).

    Parameters
    ----------
    changes, random
        Mean |change| by removing each edge, and by removing random edges.
    n_edges
        Edges of the circuit, if ``names`` are only some of them.
    """
    hypothesis = f"every edge changes more than a random one with probability at least {quantile:g}"
    result: dict[str, Any] = {"name": "minimality", "hypothesis": hypothesis, "alpha": alpha}
    if not len(changes) or not len(random):
        what = "no edge" if not len(changes) else "no edge outside it to compare with"
        sentence = f"The circuit has {what}."
        return Outcome(statistic=None, p=None, decision=NOT_APPLICABLE, sentence=sentence, **result), ()
    beaten = (changes[:, None] > random[None, :] + tie).sum(1)
    raw = stats.binom.cdf(beaten, len(random), quantile)
    adjusted = holm(raw)
    edges = tuple(
        EdgeTest(name, float(change), float(k / len(random)), float(p), float(p_holm), bool(p_holm <= alpha))
        for name, change, k, p, p_holm in zip(names, changes, beaten, raw, adjusted, strict=True)
    )
    superfluous = [edge.edge for edge in edges if edge.superfluous]
    weakest = min(edges, key=lambda edge: (edge.share, edge.change))
    of = f"{len(edges)} of {n_edges} edges" if n_edges and n_edges > len(edges) else _counted(len(edges), "edge")
    if superfluous:
        some = ", ".join(superfluous[:5]) + (" and others" if len(superfluous) > 5 else "")
        decision, why = FAILED, f"{len(superfluous)} of {of} tested matter less than random ones do: {some}"
    elif stats.binom.cdf(0, len(random), quantile) * len(edges) > alpha:
        decision, why = UNDECIDED, f"{_counted(len(random), 'random edge')} are too few to reject any of {of}"
    else:
        decision, why = PASSED, f"none of {of} tested is shown to matter less than random ones do"
    k = np.arange(len(random) + 1)
    found = k[stats.binom.cdf(k, len(random), quantile) * len(edges) <= alpha]
    detectable = float(found.max() / len(random)) if len(found) else None
    could_show = "nothing" if detectable is None else f"edges that beat at most {detectable:.0%} of random ones"
    power = "" if detectable is None else f", and one that beats at most {detectable:.0%} of them would have been found"
    sentence = (
        f"{why[0].upper()}{why[1:]}; the weakest, {weakest.edge}, beats {weakest.share:.0%} of random edges{power}."
    )
    details = {
        "n_tested": len(edges),
        "n_random": len(random),
        "n_superfluous": len(superfluous),
        "n_beating_all": int((beaten == len(random)).sum()),
        "quantile": quantile,
        "detectable": detectable,
        "superfluous": superfluous,
        "random_median": float(np.median(random)),
        "random_quantile": float(np.quantile(random, quantile)),
    }
    p = float(min(adjusted))
    result |= {"details": details, "could_show": could_show}
    outcome = Outcome(statistic=float(len(superfluous)), p=p, decision=decision, sentence=sentence, **result)
    return outcome, edges


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Holm's step-down adjusted p-values: those at or below alpha are rejected with family-wise error alpha."""
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def _against_random(
    name: str,
    hypothesis: str,
    value: float,
    random: Float[np.ndarray, " random"],
    *,
    sign: int,
    is_same: Sequence[bool],
    alpha: float,
    quantile: float,
    tie: float,
    words: tuple[str, str, str],
) -> Outcome:
    """The rank of a value among those of random circuits; ``sign`` is 1 where large values are good."""
    n, (says, what, as_much) = len(random), words
    result: dict[str, Any] = {"name": name, "hypothesis": hypothesis, "alpha": alpha}
    if not n:
        sentence = "There is no other circuit of this size to compare with."
        return Outcome(statistic=value, p=None, decision=NOT_APPLICABLE, sentence=sentence, **result)
    same = np.array(is_same, dtype=bool) if len(is_same) else np.zeros(n, dtype=bool)
    as_good = sign * random >= sign * value - tie
    p, b = (1 + int(as_good.sum())) / (1 + n), int(as_good.sum())
    others = (1 + int(as_good[~same].sum())) / (1 + int((~same).sum()))
    if p <= alpha:
        decision, why = PASSED, ""
    elif 1 / (1 + n) > alpha:
        decision, why = UNDECIDED, f", but {_counted(n, what)} are too few for level {alpha:g}"
    elif others <= alpha:
        decision, why = UNDECIDED, f", but {same.sum()} of them are the circuit itself: too few circuits match it"
    else:
        decision, why = FAILED, ""
    best = random.max() if sign > 0 else random.min()
    sentence = (
        f"{says.format(value=value)}; {b} of {_counted(n, what)} {as_much}, the best {best:.3g}, "
        f"the median {np.median(random):.3g} (p = {p:.2g}){why}."
    )
    most = math.floor(alpha * (1 + n) + 1e-9) - 1
    could_show = f"at most {most} of {n} {as_much.removeprefix('are ')}" if most >= 0 else "nothing"
    details = {
        "n_random": n,
        "n_as_good": b,
        "most_as_good": most if most >= 0 else None,
        "n_same": int(same.sum()),
        "p_quantile": float(stats.binom.sf(n - b - 1, n, quantile)),
        "quantile": quantile,
        "random_best": float(best),
        "random_median": float(np.median(random)),
    }
    result |= {"details": details, "could_show": could_show}
    return Outcome(statistic=value, p=p, decision=decision, sentence=sentence, **result)


def _inflated(circuit: Circuit, matched: Matched, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The circuit with each random one added, and the same lacking one edge, drawn from those added."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    whole, lacking = [], []
    for other in matched.circuits:
        added = np.argwhere(other.mask & ~circuit.mask)
        if len(added):
            whole.append(circuit.mask | other.mask)
            lacking.append(_lacking(whole[-1], added[rng.integers(len(added))]))
    return whole, lacking


def _tested(circuit: Circuit, most: int, seed: int) -> list[tuple[int, int]]:
    """Places of the circuit's edges, in order; a random choice of them where there are more than ``most``."""
    places = [(src, slot) for slot, src in np.argwhere(circuit.mask.T).tolist()]
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))
    chosen = np.sort(rng.permutation(len(places))[:most])
    return [places[i] for i in chosen]


def _without_each(circuit: Circuit, places: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    return (_lacking(circuit.mask, place) for place in places)


def _lacking(mask: np.ndarray, place: Sequence[int] | np.ndarray) -> np.ndarray:
    smaller = mask.copy()
    smaller[tuple(place)] = False
    return smaller


def _changes(
    before: Float[np.ndarray, "#mask pair"], after: Float[np.ndarray, "mask pair"]
) -> Float[np.ndarray, " mask"]:
    return np.abs(before - after).mean(1) if len(after) else np.zeros(0)


def _nothing_to_test(
    full: Float[np.ndarray, " pair"], empty: Float[np.ndarray, " pair"], rounding: float
) -> str | None:
    if np.abs(full - empty).max() > rounding:
        return None
    return (
        "with every edge ablated the metric is the same as with none: there is no behaviour that a circuit could have"
    )


def _not_applicable(outcome: Outcome, reason: str) -> Outcome:
    sentence = f"{reason[0].upper()}{reason[1:]}."
    nothing: dict[str, Any] = {"statistic": None, "p": None, "details": {}, "could_show": ""}
    return replace(outcome, decision=NOT_APPLICABLE, sentence=sentence, **nothing)


def _above_below(difference: Float[np.ndarray, " pair"], negligible: float) -> tuple[int, int]:
    return int((difference > negligible).sum()), int((difference < -negligible).sum())


def _effective(difference: Float[np.ndarray, " pair"], negligible: float, clusters: Clusters) -> float:
    """Pairs that would tell the share above as well if they shared nothing."""
    if clusters.by == "pairs":
        return float(clusters.n)
    signs = np.sign(np.where(np.abs(difference) <= negligible, 0.0, difference)) / 2
    return clusters.effective(signs - signs.mean())


def _p_of_unequal(
    above: int, below: int, difference: Float[np.ndarray, " pair"], negligible: float, eps: float, clusters: Clusters
) -> float:
    """p of H0 |P - 1/2| < eps; with shared personas or questions no smaller than of as many independent pairs."""
    gap = abs(above - below)
    p = _two_sided(clusters.n, gap, eps)
    if clusters.by == "pairs":
        return p
    n = _effective(difference, negligible, clusters)
    return max(p, _tail(n, n * (1 + gap / clusters.n) / 2, eps), (0.5 + eps) ** clusters.independent)


def _tail(n: float, k: float, eps: float) -> float:
    """P(K >= k) of a binomial of chance 1/2 + eps, between whole numbers by the incomplete beta function."""
    return float(special.betainc(max(k, 1e-9), n - k + 1, 0.5 + eps))


def _bound(above: float, below: float, n: float, alpha: float) -> float:
    """How far P may be from 1/2, at one-sided level ``alpha`` on either side."""
    ends = []
    for more, fewer in ((above, below), (below, above)):
        high = special.betaincinv(more + 1, n - more, 1 - alpha / 2) if more < n else 1.0
        low = special.betaincinv(fewer, n - fewer + 1, alpha / 2) if fewer > 0 else 0.0
        ends.append(float(high - low) / 2)
    return max(ends)


def _p_of_equal(above: float, below: float, n: float, eps: float) -> float:
    """The level at which the bound just reaches eps; 1 where it is beyond at every level."""

    def beyond(alpha: float) -> float:
        return _bound(above, below, n, alpha) - eps

    least, most = 1e-12, 1.0
    if beyond(most) >= 0:
        return 1.0
    return float(optimize.brentq(beyond, least, most)) if beyond(least) > 0 else least


def _fails_from(n: float, eps: float, alpha: float, clusters: Clusters) -> float | None:
    """The least share of pairs above that would have been called a failure; None where none would."""
    shares = 1 - np.arange(math.floor(n) // 2) / max(n, 1.0)
    if clusters.by == "pairs":
        p = np.array([_two_sided(clusters.n, round((2 * share - 1) * n), eps) for share in shares])
    else:
        least = (0.5 + eps) ** clusters.independent
        p = np.array([max(least, _tail(n, n * share, eps)) for share in shares])
    failing = shares[p <= alpha]
    return float(failing.min()) if len(failing) else None


def _equivalence_could(eps_shown: float, fails_from: float | None) -> str:
    shown = f"these pairs show evenness within {eps_shown:.2g} and no closer"
    return f"{shown}, and would reject it from {fails_from:.0%} above or below on" if fails_from else shown


def _detectable(
    x: Float[np.ndarray, " pair"], y: Float[np.ndarray, " pair"], among: Permutations, alpha: float, seed: int
) -> float:
    """The correlation that a test at this level finds with chance .8, by the spread of that under permutations.

    1 where x or y does not vary among the pairs that are permuted.
    """
    first, second = (values[among.places] - values[among.places].mean() for values in (x, y))
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    if scale <= 0:
        return 1.0
    orders = among.draws(np.random.default_rng(seed), 200)
    spread = float((second[orders] @ first / scale).std())
    return float(np.tanh((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)) * spread)) if spread > 0 else 1.0


def _two_sided(n: int, gap: int, eps: float) -> float:
    """P(|2 K - n| >= gap) for K binomial with n draws of chance 1/2 + eps."""
    least = -(-(n + gap) // 2)
    return 1.0 if gap <= 0 else float(special.bdtrc(least - 1, n, 0.5 + eps) + special.bdtr(n - least, n, 0.5 + eps))


def _kernel(x: Float[np.ndarray, " pair"]) -> Float[np.ndarray, "pair pair"]:
    gaps = np.abs(x[:, None] - x[None, :])
    positive = gaps[gaps > 0]
    width = np.median(positive) if len(positive) else 1.0
    return np.exp(-((gaps / width) ** 2) / 2)


def _centred(kernel: Float[np.ndarray, "pair pair"]) -> Float[np.ndarray, "pair pair"]:
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _check(
    n_random: int,
    n_permutations: int,
    alpha: float,
    eps: float,
    quantile: float,
    negligible: float,
    max_edges: int,
) -> None:
    for name, number in (("random circuits", n_random), ("permutations", n_permutations), ("edges to test", max_edges)):
        if number < 1:
            raise OptionError(f"the number of {name} must be at least 1, got {number}")
    for name, share, most in (("alpha", alpha, 1.0), ("eps", eps, 0.5), ("the quantile", quantile, 1.0)):
        if not 0 < share < most:
            raise OptionError(f"{name} must lie between 0 and {most:g}, got {share:g}")
    if not 0 <= negligible < 1:
        raise OptionError(f"the share that is negligible must be at least 0 and below 1, got {negligible:g}")
