"""The null run: two paraphrases of one persona, between which there is nothing to find.

Their divergence should be zero but for the wording. Paraphrases of equal length give
sigma_0, the spread to be expected; those of unequal length must stay within it,
otherwise the length itself, not the persona, moves the preference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy  # whose parts are loaded when they are used: scipy.stats takes a second

from persona_circuits.circuit import parallel
from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.forward import run_clean, run_corrupt, targets_of
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.task import Task, batches, encode
from persona_circuits.metrics import METRICS

__all__ = ["NullRun", "null_run"]


@dataclass(frozen=True)
class NullRun:
    """D over paraphrases of one persona, in logits.

    ``sigma_0`` is the root mean square over pairs of equal length (None without any), ``unequal`` the same over pairs
    of unequal length. ``within`` is the share of the unequal ones with |D| < 2 sigma_0. ``p_larger`` is Levene's test
    (medians) that unequal pairs spread more, one-sided, and ``p_shift`` the signed-rank test that their D is not
    centred at zero. ``gap_correlation`` is Spearman's between |D| and the difference in length, over all pairs,
    ``p_gap`` its p: the fairest of the three, as longer paraphrases say other things too. None with fewer than three
    pairs.
    """

    source: str
    n_equal: int
    n_unequal: int
    sigma_0: float | None
    unequal: float | None
    within: float | None
    p_larger: float | None
    p_shift: float | None
    gap_correlation: float | None
    p_gap: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the results."""
        return asdict(self)


def null_run(model: Model, task: Task, *, align: str = "right", batch_size: int = 32) -> NullRun:
    """Run the model on both paraphrases of every pair.

    Raises:
        TaskError: a pair is of two personas.
    """
    if other := next((pair for pair in task.pairs if pair.persona_a != pair.persona_b), None):
        raise TaskError(
            f"{task.source}, {other.place}: {other.persona_a!r} and {other.persona_b!r} are two personas; the null "
            "run takes two paraphrases of one"
        )
    rows = encode(task, model, align=align)
    by_row: dict[int, float] = {}
    margin = METRICS["logit-diff"]
    for batch in batches(parallel.share(rows), batch_size, model.device):
        clean, corrupt = run_clean(model, batch).logits, run_corrupt(model, batch).logits
        targets = targets_of(batch, clean)
        gap = margin(clean, targets) - margin(corrupt, targets)
        by_row |= dict(zip(batch.indices, gap.cpu().double().tolist(), strict=True))
    by_row = parallel.gathered(by_row)
    equal, unequal = (
        np.array([by_row[row.index] for row in rows if (len(row.clean) == len(row.corrupt)) is same])
        for same in (True, False)
    )
    gaps = [abs(len(row.clean) - len(row.corrupt)) for row in rows]
    sizes = [abs(by_row[row.index]) for row in rows]
    rank = scipy.stats.spearmanr(gaps, sizes) if len(rows) > 2 and len(set(gaps)) > 1 and len(set(sizes)) > 1 else None
    sigma = float(np.sqrt(np.mean(equal**2))) if len(equal) else None
    enough = len(equal) > 2 and len(unequal) > 2 and bool(np.ptp(equal)) and bool(np.ptp(unequal))
    return NullRun(
        task.source,
        len(equal),
        len(unequal),
        sigma,
        float(np.sqrt(np.mean(unequal**2))) if len(unequal) else None,
        float(np.mean(np.abs(unequal) < 2 * sigma)) if sigma and len(unequal) else None,
        _larger(unequal, equal) if enough else None,
        float(scipy.stats.wilcoxon(unequal).pvalue) if len(unequal) > 2 and np.any(unequal) else None,
        None if rank is None else float(rank.statistic),
        None if rank is None else float(rank.pvalue),
    )


def _larger(wide: np.ndarray, narrow: np.ndarray) -> float:
    """One-sided Levene test with medians (Brown and Forsythe) that ``wide`` spreads more."""
    p = float(scipy.stats.levene(wide, narrow, center="median").pvalue)
    spreads = [float(np.abs(x - np.median(x)).mean()) for x in (wide, narrow)]
    return p / 2 if spreads[0] >= spreads[1] else 1 - p / 2
