"""Tests of a circuit as a whole: equivalence, independence, sufficiency, partial necessity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from persona_circuits.circuit.evaluation.hypothesis.outcomes import (
    ALPHA,
    EPS,
    FAILED,
    NOT_APPLICABLE,
    PASSED,
    QUANTILE,
    UNDECIDED,
    Outcome,
)
from persona_circuits.circuit.statistics import Clusters, Permutations, permutations_of

__all__ = ["counted", "equivalence", "hsic", "independence", "partial_necessity", "sufficiency"]

DETECTABLE, POWER = 0.5, 0.8
"""Independence passes where a correlation of this size would have been found with this chance."""
ELEMENTS = 1 << 22  # of permuted kernel matrices in memory at a time


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

    The statistic is the share of pairs above, pairs within ``negligible`` counting one half. p is the chance of a share
    as far from 1/2 at the edge of H0, P = 1/2 + eps, where it is largest (Shi et al. 2024, arXiv:2410.13032, section
    3); the circuit fails where it is small. ``details`` hold ``p_shown``, that of the opposite H0, |P - 1/2| >= eps,
    whose rejection shows equivalence: only then does the circuit pass. Two one-sided tests, each by exact bounds of the
    shares above and below (Clopper and Pearson 1934). ``p_strict`` is p where only ``tie`` makes a tie, ``eps_shown``
    the smallest eps at which the circuit would have passed, ``fails_from`` the least share that would have failed.

    With ``clusters`` both go by the number of pairs that would tell as much if they shared nothing, ``n_effective``,
    and are no smaller than if all pairs of a cluster agreed: (1/2 + eps)^k and (1 - 2 eps)^k for k clusters.
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
    decision, why = _evenness(p, p_shown, eps, alpha)
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
            f"{n - above - below} of {counted(n, 'pair')}: {why}; {_equivalence_could(eps_shown, fails_from)}."
        ),
        details={
            **{"n_above": above, "n_below": below, "n_ties": n - above - below, "n_effective": n_effective},
            **{"eps": eps, "eps_shown": eps_shown, "fails_from": fails_from, "p_strict": p_strict, "p_shown": p_shown},
            "mean_difference": float((circuit - model).mean()),
        },
        could_show=could_show,
    )


def _evenness(p: float, p_shown: float, eps: float, alpha: float) -> tuple[str, str]:
    """The decision, and why."""
    if p <= alpha:
        return FAILED, f"an even chance within {eps:g} is rejected (p = {p:.2g})"
    if p_shown <= alpha:
        return PASSED, f"an even chance within {eps:g} is shown (p = {p_shown:.2g})"
    return UNDECIDED, f"an even chance within {eps:g} is neither rejected (p = {p:.2g}) nor shown"


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
    permutations of what is exchangeable (``statistics.permutations``), (1 + b) / (1 + B). Effects within ``negligible``
    are none: a complement that has none on any pair is independent of everything. Where nothing is rejected the circuit
    passes only if a correlation of .5 would have been found four times in five; ``detectable`` is the size that would.
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
            f"Without the circuit the model does nothing on any of {counted(n, 'pair')} (within {negligible:.3g})."
        )
        shows = f"effects above {negligible:.3g}"
        return Outcome(
            statistic=0.0, p=1.0, decision=PASSED, sentence=sentence, details=details, could_show=shows, **result
        )
    rest = f"the complement's effect is {complement.mean():+.3g} where the model's is {model.mean():+.3g}"
    among = permutations_of(n) if clusters is None else clusters.permutations
    if cannot := _no_dependence_can_show(effect, model, tie, among, n_permutations, alpha):
        decision, why, could = cannot
        absent: dict[str, Any] = {"statistic": None, "p": None, "details": details}
        return Outcome(decision=decision, sentence=f"{why}; {rest}.", could_show=could, **absent, **result)
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
    result |= {"statistic": statistic, "p": p, "details": details}
    return Outcome(decision=decision, sentence=sentence, could_show=f"a correlation of {detectable:.2f}", **result)


def _no_dependence_can_show(
    effect: Float[np.ndarray, " pair"],
    model: Float[np.ndarray, " pair"],
    tie: float,
    among: Permutations,
    n_permutations: int,
    alpha: float,
) -> tuple[str, str, str] | None:
    """A decision without a test, why, and what it could have shown; None where there is something to test."""
    n = len(model)
    for values, what in ((effect, "complement"), (model, "model")):
        if np.ptp(values) <= tie and n > 1:
            why = f"The {what} has the same effect on every pair, so dependence cannot show"
            return NOT_APPLICABLE, why, ""
    least = max(1 / (1 + n_permutations), among.least_p)
    if least <= alpha:
        return None
    why = f"With {counted(n, 'pair')} and {n_permutations} permutations of {among.what} p cannot fall below {least:.2g}"
    return UNDECIDED, why, "nothing"


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
    observed = float((k * other).sum())
    rng = np.random.default_rng(seed)
    at_least, n = 0, len(x)
    block = max(1, ELEMENTS // n**2)
    for start in range(0, n_permutations, block):
        size = min(block, n_permutations - start)
        orders = among.draws(rng, size)
        drawn = np.einsum("ij,bij->b", k, other[orders[:, :, None], orders[:, None, :]])
        at_least += int((drawn >= observed - 1e-9 * abs(observed)).sum())
    return observed / n**2, (1 + at_least) / (1 + n_permutations)


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
    how: dict[str, Any] = {"is_same": is_same, "alpha": alpha, "quantile": quantile, "tie": tie}
    return _against_random(SUFFICIENCY, float(np.abs(circuit - model).mean()), distances, **how)


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
    how: dict[str, Any] = {"is_same": (), "alpha": alpha, "quantile": quantile, "tie": tie}
    return _against_random(NECESSITY, float(np.abs(complement - model).mean()), effects, **how)


class _Question(NamedTuple):
    """A test against random circuits, and its words; ``sign`` is 1 where large values are good."""

    name: str
    hypothesis: str
    sign: int
    says: str
    what: str
    as_much: str


SUFFICIENCY = _Question(
    "sufficiency",
    "the circuit is no closer to the model than matched random circuits",
    -1,
    "The circuit is {value:.3g} from the model",
    "matched random circuit",
    "are as close",
)
NECESSITY = _Question(
    "necessity",
    "knocking the circuit out changes the model no more than knocking out matched random edges outside it",
    1,
    "Knocking the circuit out changes the model by {value:.3g}",
    "matched random edge set",
    "do as much",
)


def _against_random(
    question: _Question,
    value: float,
    random: Float[np.ndarray, " random"],
    *,
    is_same: Sequence[bool],
    alpha: float,
    quantile: float,
    tie: float,
) -> Outcome:
    """The rank of a value among those of random circuits."""
    n, (name, hypothesis, sign, template, what, as_much) = len(random), question
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
        decision, why = UNDECIDED, f", but {counted(n, what)} are too few for level {alpha:g}"
    elif others <= alpha:
        decision, why = UNDECIDED, f", but {same.sum()} of them are the circuit itself: too few circuits match it"
    else:
        decision, why = FAILED, ""
    best = random.max() if sign > 0 else random.min()
    sentence = (
        f"{template.format(value=value)}; {b} of {counted(n, what)} {as_much}, the best {best:.3g}, "
        f"the median {np.median(random):.3g} (p = {p:.2g}){why}."
    )
    most = math.floor(alpha * (1 + n) + 1e-9) - 1
    could_show = f"at most {most} of {n} {as_much.removeprefix('are ')}" if most >= 0 else "nothing"
    details = {
        "n_random": n,
        "n_as_good": b,
        "most_as_good": most if most >= 0 else None,
        "n_same": int(same.sum()),
        "p_quantile": float(scipy.stats.binom.sf(n - b - 1, n, quantile)),
        "quantile": quantile,
        "random_best": float(best),
        "random_median": float(np.median(random)),
    }
    result |= {"details": details, "could_show": could_show}
    return Outcome(statistic=value, p=p, decision=decision, sentence=sentence, **result)


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
    return float(scipy.special.betainc(max(k, 1e-9), n - k + 1, 0.5 + eps))


def _bound(above: float, below: float, n: float, alpha: float) -> float:
    """A bound on |P - 1/2|, at one-sided level ``alpha`` on either side."""
    ends = []
    for more, fewer in ((above, below), (below, above)):
        high = scipy.special.betaincinv(more + 1, n - more, 1 - alpha / 2) if more < n else 1.0
        low = scipy.special.betaincinv(fewer, n - fewer + 1, alpha / 2) if fewer > 0 else 0.0
        ends.append(float(high - low) / 2)
    return max(ends)


def _p_of_equal(above: float, below: float, n: float, eps: float) -> float:
    """The level at which the bound just reaches eps; 1 where it is beyond at every level."""

    def beyond(alpha: float) -> float:
        return _bound(above, below, n, alpha) - eps

    least, most = 1e-12, 1.0
    if beyond(most) >= 0:
        return 1.0
    return float(scipy.optimize.brentq(beyond, least, most)) if beyond(least) > 0 else least


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
    return (
        float(np.tanh((scipy.stats.norm.ppf(1 - alpha / 2) + scipy.stats.norm.ppf(POWER)) * spread))
        if spread > 0
        else 1.0
    )


def _two_sided(n: int, gap: int, eps: float) -> float:
    """P(|2 K - n| >= gap) for K binomial with n draws of chance 1/2 + eps."""
    least = -(-(n + gap) // 2)
    return (
        1.0
        if gap <= 0
        else float(scipy.special.bdtrc(least - 1, n, 0.5 + eps) + scipy.special.bdtr(n - least, n, 0.5 + eps))
    )


def _kernel(x: Float[np.ndarray, " pair"]) -> Float[np.ndarray, "pair pair"]:
    gaps = np.abs(x[:, None] - x[None, :])
    positive = gaps[gaps > 0]
    width = np.median(positive) if len(positive) else 1.0
    return np.exp(-((gaps / width) ** 2) / 2)


def _centred(kernel: Float[np.ndarray, "pair pair"]) -> Float[np.ndarray, "pair pair"]:
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


def counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
