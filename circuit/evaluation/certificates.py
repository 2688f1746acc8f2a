"""Certificates: which edges stay whichever R personas or questions are removed.

The pairs' kept scores are averaged and pruned again by the circuit's own rule; no model is run. Removing a persona or a
question removes every pair that it occurs in.

    exhaustive   every set of 1 to R of them is taken away, where there are few enough sets: an edge *stays* if every
                 one of these circuits has it. This is about the rule itself, and sure.
    smoothing    otherwise (deletion smoothing: certified circuits, arXiv:2602.22968; randomised ablation,
                 arXiv:1911.09272). The smoothed rule keeps an edge that most circuits of k units drawn from those there
                 are have. With q = C(n - R, k) / C(n, k), the chance that a draw misses R given units,

                     p(all) <= q p(R taken away) + 1 - q

                 so that p(R taken away) > 1/2 wherever p(all) > 1 - q / 2, which is tested with draws at a level that
                 is shared out over the circuit's edges (Bonferroni): all that stay together do so with the confidence.

An edge that is not certified *abstains*: it is not said to go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from scipy import special

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.scores_by_pair import PairScores, Rule
from persona_circuits.circuit.graph import Edge
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import PromptPair

__all__ = ["Certificate", "Removal", "Units", "certify", "with_certificate"]

MOST_SETS = 3000
"""Largest number of sets that are all tried."""
N_DRAWS = 2000
KEPT = 2 / 3
"""Share of the units that a draw keeps."""
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Units:
    """What may be taken away, by name, and which of them every pair needs."""

    names: tuple[str, ...]
    needed: Bool[np.ndarray, "pair unit"]
    by: str

    @classmethod
    def of(cls, pairs: Sequence[PromptPair]) -> Units:
        """The personas and questions that the pairs name; where none does, the pairs themselves."""
        named = [
            {*(f"persona {x}" for x in (pair.persona_a, pair.persona_b) if x)}
            | ({f"question {pair.question}"} if pair.question else set())
            for pair in pairs
        ]
        kinds = [
            kind for kind in ("persona", "question") if any(x.startswith(f"{kind} ") for own in named for x in own)
        ]
        if not kinds:
            return cls(tuple(pair.id or f"pair {pair.line}" for pair in pairs), np.eye(len(pairs), dtype=bool), "pairs")
        names = tuple(sorted(set().union(*named)))
        needed = np.array([[name in own for name in names] for own in named])
        return cls(names, needed, " and ".join(f"{kind}s" for kind in kinds))

    def left(self, kept: Bool[np.ndarray, " unit"]) -> Bool[np.ndarray, " pair"]:
        """The pairs that need none but these."""
        return ~(self.needed & ~kept).any(axis=1)


@dataclass(frozen=True, eq=False)
class Certificate:
    """Which edges of the circuit stay when any ``radius`` of ``n_units`` are taken away.

    ``counts`` says in how many of the ``n`` circuits an edge is: of those of all sets (``way`` exhaustive), or of drawn
    units (smoothing), of ``kept`` units each. ``empty`` counts sets that leave no pair.
    """

    circuit: Circuit
    rule: str
    radius: int
    by: str
    n_units: int
    n_pairs: int
    way: str
    n: int
    empty: int
    counts: Int[np.ndarray, "src dst"]
    kept: int = 0

    @property
    def stays(self) -> Circuit:
        """The certified edges."""
        if self.way == "exhaustive":
            sure = self.counts == self.n
        else:
            sure = p_of(self.counts, self.n, self.bar) <= (1 - CONFIDENCE) / max(1, len(self.circuit))
        return Circuit(self.circuit.graph, self.circuit.mask & sure)

    @property
    def abstains(self) -> Circuit:
        """The circuit's other edges."""
        return self.circuit - self.stays

    @property
    def bar(self) -> float:
        """The share of draws that an edge must be in, in truth."""
        return 1 - comb(self.n_units - self.radius, self.kept) / comb(self.n_units, self.kept) / 2

    @property
    def confidence(self) -> float:
        """The confidence that every edge said to stay does."""
        return 1.0 if self.way == "exhaustive" else CONFIDENCE

    def share(self, edge: Edge | str) -> float:
        """The share of the circuits that have an edge."""
        return float(self.counts[self.circuit.graph.index(edge)] / self.n)

    @property
    def sentence(self) -> str:
        """The result in words."""
        tried = f"all {self.n:,} sets taken away" if self.way == "exhaustive" else f"{self.n:,} draws of {self.kept}"
        what = "of the rule" if self.way == "exhaustive" else "of the vote of such draws"
        sentence = (
            f"{len(self.stays):,} of {len(self.circuit):,} edges stay when any {self.radius} of {self.n_units} "
            f"{self.by} are taken away, {len(self.abstains):,} abstain "
            f"({tried}; {what}, confidence {self.confidence:g})"
        )
        return sentence + (f"; {self.empty:,} of these leave no pair" if self.empty else "")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, edges apart."""
        names = ("rule", "radius", "by", "n_units", "n_pairs", "way", "n", "empty", "confidence")
        fields = {name: getattr(self, name) for name in names}
        return {**fields, "kept": self.kept or None, "stays": len(self.stays), "abstains": len(self.abstains)}


def with_certificate(record: Mapping[str, Any], certificate: Certificate | None) -> dict[str, Any]:
    """The circuit's record with the certificate, and with every edge marked; without one as it is."""
    if certificate is None:
        return dict(record)
    stays = certificate.stays
    edges = [
        {**item, "stays": item["edge"] in stays, "kept": certificate.share(item["edge"])} for item in record["edges"]
    ]
    return {**record, "certificate": certificate.as_dict(), "edges": edges}


@dataclass(frozen=True)
class Removal:
    """Any ``radius`` units are taken away: every set of them, up to ``most_sets``; with more, ``n_draws`` are drawn."""

    radius: int
    seed: int = 0
    most_sets: int = MOST_SETS
    n_draws: int = N_DRAWS


def certify(
    scores: PairScores,
    circuit: Circuit,
    rule: Rule,
    units: Units,
    removal: Removal,
    *,
    progress: Progress | None = None,
) -> Certificate:
    """Certify of every edge whether it stays when any ``radius`` units are taken away.

    Parameters
    ----------
    scores
        Of the pairs the circuit was found on, one row each, in the order of ``units``.
    rule
        The one the circuit was made with.

    Raises
    ------
    OptionError
        The radius is not from 1 to one below the number of units, or the scores are of other pairs.
    """
    n_units, radius = len(units.names), removal.radius
    if not 1 <= radius < n_units:
        raise OptionError(
            f"--certify {radius}: there are {n_units} {units.by}, so give how many of them may go, from 1 to "
            f"{n_units - 1}"
        )
    if len(scores) != len(units.needed) or scores.graph != circuit.graph:
        raise OptionError("the scores are of other pairs, or of another model, than the certificate is asked for")
    n_sets = sum(comb(n_units, size) for size in range(1, radius + 1))
    exhaustive, kept = n_sets <= removal.most_sets, max(1, min(n_units - radius, round(KEPT * n_units)))
    n = n_sets if exhaustive else removal.n_draws
    every = _all_sets(n_units, radius) if exhaustive else _draws(n_units, kept, n, removal.seed)
    counts, empty = np.zeros(circuit.mask.shape, dtype=np.int64), 0
    for done, chosen in enumerate(every, 1):
        left = units.left(chosen)
        empty += not left.any()
        counts += _circuit(scores, rule, left).mask
        if progress is not None:
            progress(done, n)
    way = ("exhaustive", n, empty, counts) if exhaustive else ("smoothing", n, empty, counts, kept)
    return Certificate(circuit, str(rule), radius, units.by, n_units, len(scores), *way)


def _all_sets(n_units: int, radius: int) -> Iterator[Bool[np.ndarray, " unit"]]:
    """What is left, for every set of one to ``radius`` units."""
    for size in range(1, radius + 1):
        for gone in combinations(range(n_units), size):
            left = np.ones(n_units, dtype=bool)
            left[list(gone)] = False
            yield left


def _draws(n_units: int, kept: int, n_draws: int, seed: int) -> Iterator[Bool[np.ndarray, " unit"]]:
    rng = np.random.default_rng(seed)
    for _ in range(n_draws):
        left = np.zeros(n_units, dtype=bool)
        left[rng.permutation(n_units)[:kept]] = True
        yield left


def _circuit(scores: PairScores, rule: Rule, left: Bool[np.ndarray, " pair"]) -> Circuit:
    """What the rule makes of these pairs; nothing of none."""
    if not left.any():
        return Circuit.empty(scores.graph)
    return rule.circuit(scores.mean(left / left.sum()), float(scores.whole[left].mean()))


def p_of(counts: Int[np.ndarray, "src dst"], n: int, bar: float) -> np.ndarray:
    """The chance of so many or more of ``n`` draws where the true share is no more than the bar."""
    return np.where(counts > 0, special.betainc(np.maximum(counts, 1), n - counts + 1, bar), 1.0)
