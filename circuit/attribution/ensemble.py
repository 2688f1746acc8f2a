"""Several scorers as one: the mean of their scores, each made comparable first.

    scale   a scorer's scores over their root mean square
    rank    sign(score) times the share of edges that are no stronger

Scorers err on different edges; ensembles of them won the circuit track of BlackboxNLP's 2025 shared task on MIB
(arXiv:2504.13151). The mean has no unit, so a share of |D| is no threshold for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy  # whose parts are loaded when they are used: scipy.stats takes a second

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.scores import Scores

__all__ = ["mean_of"]


def mean_of(scores: Sequence[Scores], by: str = "scale") -> Scores:
    """The mean of several scorers' scores of one graph, each normalised.

    Raises
    ------
    OptionError
        There is none, or ``by`` is unknown.

    Examples
    --------
    >>> one, other = (Scores.of(Graph(1, 1), {"input->m0": x, "m0->logits": y}) for x, y in ((3.0, 1.0), (-10.0, 70.0)))
    >>> mean_of([one, other], "rank")["m0->logits"]
    0.9375
    """
    if not scores:
        raise OptionError("an ensemble needs at least one scorer")
    if by not in ("scale", "rank"):
        raise OptionError(f"scores are made comparable by scale or rank, got {by!r}")
    valid = scores[0].graph.valid
    values = np.zeros(valid.shape)
    for part in scores:
        values[valid] += _normalised(part.values[valid], by) / len(scores)
    return Scores(scores[0].graph, values)


def _normalised(values: np.ndarray, by: str) -> np.ndarray:
    if by == "rank":
        return np.sign(values) * scipy.stats.rankdata(np.abs(values), method="max") / len(values)
    size = float(np.sqrt((values**2).mean()))
    return values / size if size else values
