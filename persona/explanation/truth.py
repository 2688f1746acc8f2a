"""How far verdicts agree with what is known of the pairs: the setting of the generator that made them.

A pair file may have a ``generator`` in its rows, ``{"divergence": D, "collapses": bool}``, what
the text's own model says of the pair. From it follows what the verdict should be:

    no persona effect   D = 0: nothing that tells the personas apart may be found, whatever
                        the cause is (weak or transient, bottleneck, cancellation)
    reversed            D < 0
    prior dominance     one most likely answer for both personas
    no collapse         two

Paraphrase controls are left out: sigma_0 is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_circuits.circuit.statistics import Clusters

__all__ = ["NO_EFFECT", "Agreement", "agreement", "expected_of", "fits"]

NO_EFFECT = "no persona effect"
TRUTHS = ("no collapse", "prior dominance", NO_EFFECT, "reversed")
LOST = ("weak or transient", "bottleneck", "cancellation")
ZERO = 1e-6


@dataclass(frozen=True)
class Agreement:
    """The confusion table of expected classes by verdicts, counts, and what it comes to.

    ``share`` of the pairs have the verdict that was expected, ``chance`` is the share that
    shuffled verdicts have; ``kappa`` is Cohen's (1960), None where only one class is expected and
    found; ``p`` the share of ``n_permutations`` permutations, and the table itself, that agree as
    often, of what is exchangeable where pairs share personas and questions (``circuit.statistics.permutations``):
    ``permuted`` says of what.
    """

    table: Mapping[str, Mapping[str, int]]
    n: int
    share: float
    chance: float
    kappa: float | None
    p: float
    n_permutations: int
    permuted: str


def expected_of(keys: Mapping[str, Any]) -> str | None:
    """The class that a row of a pair file expects; None where the row does not say, or is a paraphrase control."""
    generator = keys.get("generator")
    if not isinstance(generator, Mapping) or keys.get("control") == "paraphrase":
        return None
    d, collapses = generator.get("divergence"), generator.get("collapses")
    if isinstance(d, bool) or not isinstance(d, int | float) or not isinstance(collapses, bool):
        return None
    if abs(d) < ZERO:
        return NO_EFFECT
    if d < 0:
        return "reversed"
    return "prior dominance" if collapses else "no collapse"


def fits(expected: str, verdict: str) -> bool:
    """Whether a verdict is what was expected."""
    return _class_of(verdict) == expected


def agreement(
    expected: Sequence[str],
    verdicts: Sequence[str],
    *,
    clusters: Clusters | None = None,
    n_permutations: int = 2000,
    seed: int = 0,
) -> Agreement | None:
    """Compare verdicts with what was expected, pair by pair, over what pairs share; None without pairs."""
    if not expected:
        return None
    rows = [name for name in TRUTHS if name in expected]
    columns = list(dict.fromkeys(sorted(verdicts)))
    pairs = list(zip(expected, verdicts, strict=True))
    truth, classes = np.array(expected), np.array([_class_of(verdict) for verdict in verdicts])
    hits = int((truth == classes).sum())
    among = (clusters or Clusters(len(pairs), None, None)).permutations
    wanted, given = truth[among.places], classes[among.places]
    moved = given[among.draws(np.random.default_rng(seed), n_permutations)]
    at_least = int(((moved == wanted).sum(1) >= (given == wanted).sum()).sum())
    chance = float(sum((truth == name).mean() * (classes == name).mean() for name in set(truth)))
    return Agreement(
        table={row: {column: pairs.count((row, column)) for column in columns} for row in rows},
        n=len(pairs),
        share=hits / len(pairs),
        chance=chance,
        kappa=None if chance == 1.0 else (hits / len(pairs) - chance) / (1 - chance),
        p=(1 + at_least) / (1 + n_permutations),
        n_permutations=n_permutations,
        permuted=among.what,
    )


def _class_of(verdict: str) -> str:
    return NO_EFFECT if verdict in LOST else verdict
