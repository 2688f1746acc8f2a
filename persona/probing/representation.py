"""The geometry of personas in the residual stream: RSA, linear CKA, and signal against noise.

Everything is centred per question first, so that what is compared is what the persona
changes. Centring ties the prompts of one question to each other: of two prompts, one is
minus the other. Two representations that have nothing else in common share that tie, and
the usual unbiased estimators, which leave out the diagonal alone, report similarity where
there is none. Here every estimate uses products of prompts of different questions only;
these are independent after centring, so the estimates are unbiased.

With X the centred streams, K = X X^T, and sums over prompts i, j of different questions:

    HSIC(K, L)   sum K_ij L_ij: the squared cross-covariance, after Song et al. 2012
    linear CKA   HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), arXiv:1905.00414
    RSA          Spearman correlation of distances between personas with other distances;
                 distances are cross-validated over questions (Walther et al. 2016)

Signal and noise are those of a two-way analysis of variance, stream = question + persona +
rest: the noise is what persona and question do not explain, per degree of freedom; the
signal is the variance within a question less the noise. No sum over questions is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int

from persona_circuits.persona.data import Estimate
from persona_circuits.persona.probing.fit import ratio

__all__ = [
    "Correlation",
    "Geometry",
    "centred_by_group",
    "grouped_hsic",
    "indicators",
    "linear_cka",
    "persona_distances",
    "rank_correlation",
    "signal_to_noise",
    "unbiased_hsic",
]

Matrix = Float[np.ndarray, "example example"]
ROUNDING = 1e-6


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho over ``n`` personas' distances, with the p of a permutation of the personas (Mantel 1967)."""

    value: float
    p: float
    n: int


LEAST_NOISE = 1e-9  # of the signal: variances of rounding in float32, which differ by what ran beside, are far below


@dataclass(frozen=True)
class Geometry:
    """Persona signal at one layer and position: variances summed over dimensions, and the persona's share of both.

    The variances are unbiased, so a signal of nothing is as often below zero as above.
    """

    signal: float
    noise: float
    share: Estimate

    @property
    def ratio(self) -> float:
        """Signal to noise; nan where the noise is estimated at zero, but for rounding, or less.

        So it is where nothing of the question has been read yet: every prompt of a persona has one stream.
        """
        return self.signal / self.noise if self.noise > LEAST_NOISE * self.signal else float("nan")


def centred_by_group(values: Float[np.ndarray, "example d"], groups: Sequence[str]) -> Float[np.ndarray, "example d"]:
    """Each row minus the mean of its group, in float64; zero throughout where all that is left is float32 rounding."""
    member = indicators(groups)
    x = values.astype(np.float64)
    centred = x - member @ ((member.T @ x) / member.sum(0)[:, None])
    return centred if np.abs(centred).max() > ROUNDING * np.abs(x).max() else np.zeros_like(centred)


def indicators(names: Sequence[str] | np.ndarray) -> Float[np.ndarray, "example name"]:
    """One column per name, 1 where the example has it; names in sorted order."""
    distinct, codes = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    return np.eye(len(distinct))[codes]


def linear_cka(
    x: Float[np.ndarray, "example d"], y: Float[np.ndarray, "example e"], groups: Sequence[str] | None = None
) -> float:
    """Linear CKA without bias: 1 for the same geometry, 0 on average for unrelated ones, so it can be below zero.

    With ``groups`` (the questions) rows are centred per group and the estimate is
    ``grouped_hsic``; without them it is ``unbiased_hsic``. nan where either side has no
    variance that repeats.
    """
    if groups is None:
        a, b = x.astype(np.float64), y.astype(np.float64)
        estimate = unbiased_hsic
    else:
        a, b = centred_by_group(x, groups), centred_by_group(y, groups)
        estimate = partial(grouped_hsic, apart=_apart(groups))
    first, second = a @ a.T, b @ b.T
    norms = estimate(first, first), estimate(second, second)
    return float(estimate(first, second) / np.sqrt(np.prod(norms))) if min(norms) > 0 else float("nan")


def unbiased_hsic(first: Matrix, second: Matrix) -> float:
    """The unbiased estimator of HSIC for independent rows (Song et al. 2012, equation 5); any constant may be added.

    Raises:
        ValueError: fewer than four rows.
    """
    n = len(first)
    if n < 4:
        raise ValueError(f"the unbiased estimator needs at least 4 rows, got {n}")
    k, m = first - np.diag(np.diag(first)), second - np.diag(np.diag(second))
    middle = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float(((k * m).sum() + middle - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)) / (n * (n - 3)))


def grouped_hsic(first: Matrix, second: Matrix, apart: Bool[np.ndarray, "example example"]) -> float:
    """Mean of K_ij L_ij over examples of different groups, of rows that are centred within their group."""
    return float((first * second)[apart].mean()) if apart.any() else float("nan")


def signal_to_noise(
    streams: Sequence[Float[np.ndarray, "example d"]], personas: Sequence[str], questions: Sequence[str]
) -> tuple[Geometry, ...]:
    """Between-persona against within-persona variance, of each of several streams of the same prompts.

    The interval of the share is from the jackknife over questions and that over personas,
    their variances added, and so rather too wide than too narrow. A bootstrap would draw
    prompts twice and take their likeness for signal. nan where personas and questions
    leave no degree of freedom, or nothing varies.
    """
    grams = np.stack([(x := centred_by_group(values, questions)) @ x.T for values in streams]).reshape(len(streams), -1)
    who, what = (np.asarray(names, dtype=object).astype(str) for names in (personas, questions))
    everything = np.ones(len(who), dtype=bool)
    signal, noise = _variances(grams, who, what, everything)
    spread = np.zeros(len(streams))
    for names in (who, what):
        left_out = [_share(*_variances(grams, who, what, names != name)) for name in np.unique(names)]
        spread += _jackknife_variance(np.stack(left_out))
    share, reach = _share(signal, noise), 1.96 * np.sqrt(spread)
    return tuple(
        Geometry(
            float(signal[i]),
            float(noise[i]),
            Estimate(
                float(share[i]),
                float(share[i] - reach[i]) if np.isfinite(reach[i]) else None,
                float(share[i] + reach[i]) if np.isfinite(reach[i]) else None,
            ),
        )
        for i in range(len(streams))
    )


def _variances(
    grams: Float[np.ndarray, "stream cell"], who: np.ndarray, what: np.ndarray, keep: Bool[np.ndarray, " example"]
) -> tuple[Float[np.ndarray, " stream"], Float[np.ndarray, " stream"]]:
    """Signal and noise, from the streams' Grams: both are sums over cells of a Gram with weights of their own."""
    member = indicators(what[keep])
    within = np.eye(int(keep.sum())) - (member / member.sum(0)) @ member.T
    basis, sizes, _ = np.linalg.svd(within @ indicators(who[keep]), full_matrices=False)
    basis = basis[:, sizes > 1e-9]
    freedom = len(member) - member.shape[1], len(member) - member.shape[1] - basis.shape[1]
    if freedom[1] < 1:
        return np.full(len(grams), np.nan), np.full(len(grams), np.nan)
    weights = np.zeros((2, len(keep), len(keep)))
    weights[:, np.outer(keep, keep)] = within.ravel(), (within - basis @ basis.T).ravel()
    total, rest = (grams @ weights.reshape(2, -1).T / freedom).T
    return total - rest, rest


def _share(signal: Float[np.ndarray, " stream"], noise: Float[np.ndarray, " stream"]) -> Float[np.ndarray, " stream"]:
    return ratio(signal, signal + noise)


def _jackknife_variance(left_out: Float[np.ndarray, "part stream"]) -> Float[np.ndarray, " stream"]:
    """The jackknife's variance; zero for a single part, since none can be left out."""
    n = len(left_out)
    return (n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0) if n > 1 else np.zeros(left_out.shape[1])


def persona_distances(
    x: Float[np.ndarray, "example d"], personas: Sequence[str], questions: Sequence[str]
) -> tuple[tuple[str, ...], Float[np.ndarray, "persona persona"]]:
    """Squared distances between personas, each product over two different questions; unbiased, so they can be negative.

    Personas that do not meet two questions, or of which two never meet different ones, are left out.
    """
    centred, separate = centred_by_group(x, questions), _apart(questions).astype(np.float64)
    member, names = indicators(personas), np.unique(np.asarray(personas, dtype=object).astype(str))
    gram = ratio(member.T @ ((centred @ centred.T) * separate) @ member, member.T @ separate @ member)
    keep = np.isfinite(np.diag(gram))
    while keep.any() and not np.isfinite(gram[np.ix_(keep, keep)]).all():
        missing = (~np.isfinite(gram[:, keep])).sum(1) * keep
        keep[int(missing.argmax())] = False
    gram, diagonal = gram[np.ix_(keep, keep)], np.diag(gram)[keep]
    return tuple(names[keep].tolist()), diagonal[:, None] + diagonal[None] - 2 * gram


def rank_correlation(
    first: Float[np.ndarray, "persona persona"],
    second: Float[np.ndarray, "persona persona"],
    *,
    n_permutations: int,
    seed: int,
) -> Correlation | None:
    """Spearman's rho of two distance matrices, one-sided p against permuted personas; None below four personas."""
    from scipy.stats import rankdata

    n = len(first)
    if n < 4:
        return None
    upper = np.triu_indices(n, 1)
    ranks = [rankdata(matrix[upper]) for matrix in (first, second)]
    a, b = ((rank - rank.mean()) for rank in ranks)
    scale = np.sqrt((a @ a) * (b @ b))
    if not scale > 0:
        return None
    table = np.zeros((n, n))
    table[upper] = b
    table += table.T
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(n) for _ in range(n_permutations))
    rho = float(a @ b / scale)
    extreme = sum(float(a @ table[np.ix_(order, order)][upper] / scale) >= rho - 1e-12 for order in orders)
    return Correlation(rho, (1 + extreme) / (1 + n_permutations), n)


def _apart(groups: Sequence[str]) -> Bool[np.ndarray, "example example"]:
    """Which examples are of different groups."""
    codes: Int[np.ndarray, " example"] = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    return codes[:, None] != codes[None]
