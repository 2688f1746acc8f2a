"""Minimality: every edge of a circuit against edges of random circuits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # whose parts are loaded when they are used: scipy.stats takes a second
from jaxtyping import Float

from persona_circuits.circuit.evaluation.hypothesis.outcomes import (
    ALPHA,
    FAILED,
    NOT_APPLICABLE,
    PASSED,
    QUANTILE,
    UNDECIDED,
    Outcome,
    holm,
)
from persona_circuits.circuit.evaluation.hypothesis.tests import counted

__all__ = ["EdgeTest", "minimality"]


@dataclass(frozen=True)
class EdgeTest:
    """Minimality of one edge.

    ``change`` is the mean over pairs of |s(C) - s(C without the edge)|, ``share`` that of random edges that change
    less. ``p`` is of H0 that the share is at least the quantile, ``p_holm`` corrected for the number of edges; at or
    below the level the edge is ``superfluous``.
    """

    edge: str
    change: float
    share: float
    p: float
    p_holm: float
    superfluous: bool


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

    Per edge H0: it changes more than a random edge with probability at least ``quantile``. p is binomial, from the
    number of random edges that it beats; over edges Holm's correction holds the chance of calling any edge of a minimal
    circuit superfluous at ``alpha`` (Shi et al. 2024, arXiv:2410.13032, section 3, whose code leaves it out).

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
    raw = scipy.stats.binom.cdf(beaten, len(random), quantile)
    adjusted = holm(raw)
    edges = tuple(
        EdgeTest(name, float(change), float(k / len(random)), float(p), float(p_holm), bool(p_holm <= alpha))
        for name, change, k, p, p_holm in zip(names, changes, beaten, raw, adjusted, strict=True)
    )
    superfluous = [edge.edge for edge in edges if edge.superfluous]
    weakest = min(edges, key=lambda edge: (edge.share, edge.change))
    of = f"{len(edges)} of {n_edges} edges" if n_edges and n_edges > len(edges) else counted(len(edges), "edge")
    decision, why = _superfluous(superfluous, len(edges), of, len(random), quantile, alpha)
    detectable = _detectable_share(len(random), len(edges), quantile, alpha)
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


def _superfluous(
    names: Sequence[str], n_tested: int, of: str, n_random: int, quantile: float, alpha: float
) -> tuple[str, str]:
    """The decision on all edges, and why."""
    if names:
        some = ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
        return FAILED, f"{len(names)} of {of} tested matter less than random ones do: {some}"
    if scipy.stats.binom.cdf(0, n_random, quantile) * n_tested > alpha:
        return UNDECIDED, f"{counted(n_random, 'random edge')} are too few to reject any of {of}"
    return PASSED, f"none of {of} tested is shown to matter less than random ones do"


def _detectable_share(n_random: int, n_tested: int, quantile: float, alpha: float) -> float | None:
    """The largest share of random edges that an edge may beat and still be called superfluous; None: no share."""
    k = np.arange(n_random + 1)
    undetected = k[scipy.stats.binom.cdf(k, n_random, quantile) * n_tested <= alpha]
    return float(undetected.max() / n_random) if len(undetected) else None
