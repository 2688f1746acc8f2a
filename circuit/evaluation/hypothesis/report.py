"""Five tests of the claim that a circuit is responsible for a behaviour (Shi et al. 2024, arXiv:2410.13032).

With s(X) the metric of a pair under circuit X, M the whole model, C the circuit:

    equivalence    H0 |P(s(C) > s(M)) - 1/2| < eps: the circuit is above the model as often as below
    independence   H0 what M without C still does is independent of what M does
    sufficiency    H0 C is no closer to M than random circuits matched by layer, type and size
    necessity      H0 knocking C out of M changes no more than knocking out matched random edges outside C
    minimality     H0 every edge, alone removed from C, changes more than a random edge does, per edge

The first two and the last state what a good circuit does, so the circuit *fails* where H0 is rejected; for sufficiency
and necessity it *passes* where H0 is rejected. A circuit does not pass because a test had no power: equivalence passes
where the opposite H0, |P - 1/2| >= eps, is rejected (two one-sided tests), independence where a correlation of .5 would
have been found four times in five. What could not have come out otherwise on so few pairs or random circuits is
``undecided``, a test without an object ``not applicable``. The five p-values are corrected for each other (Holm 1979):
a decision that rests on a rejection at level ``alpha`` alone, and not at ``alpha`` after correction, is ``undecided``.
Every test says what it could have shown.

Where this differs from the paper and its code:

- The indicator of s(C) > s(M) is tested, not the mean difference, and ties count one
  half: a circuit that equals the model passes.
- Differences below a ``negligible`` share (1 %) of m(full) - m(empty) are ties: a sign
  test calls every systematic difference a failure, however small. The p without that
  allowance is reported too.
- Pairs that share personas or questions are not independent: equivalence counts as many pairs as would tell
  as much if they shared nothing (Korn and Graubard 1998), and independence permutes only what is
  exchangeable (``circuit.statistics.permutations``). ``docs/statistics.md`` has the levels by simulation.
- Ties are what rounding leaves (``circuit.forward.rounding``), in units of the metric.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.hypothesis.edge_tests import EdgeTest, minimality
from persona_circuits.circuit.evaluation.hypothesis.outcomes import (
    ALPHA,
    EPS,
    NEGLIGIBLE,
    NOT_APPLICABLE,
    QUANTILE,
    UNDECIDED,
    Outcome,
    holm,
)
from persona_circuits.circuit.evaluation.hypothesis.tests import (
    equivalence,
    independence,
    partial_necessity,
    sufficiency,
)
from persona_circuits.circuit.evaluation.matched import Matched, matched_circuits, matched_outside
from persona_circuits.circuit.evaluation.measurements import Measurements, Source
from persona_circuits.circuit.figures import picked
from persona_circuits.circuit.forward import tolerance
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.options import PlainNumbers
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.storage import frame_of
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = ["HypothesisOptions", "HypothesisReport", "corrected", "hypothesis_tests"]

QUICK_RANDOM, QUICK_PERMUTATIONS, QUICK_EDGES = 19, 199, 10
"""With 19 random circuits the least p is 1/20, just enough at level .05, but not for one of five tests."""


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
                **picked(outcome, "decision", "statistic", "p", "p_holm", "alpha", "could_show"),
                "says": outcome.sentence,
            }
            for outcome in self.outcomes
        ]

    def __repr__(self) -> str:
        decisions = ", ".join(f"{outcome.name} {outcome.decision}" for outcome in self.outcomes)
        return f"HypothesisReport({self.n_edges} edges on {self.n_pairs} pairs: {decisions})"

    def to_frame(self) -> Any:
        """A pandas table with a row per edge tested for minimality, the least necessary first.

        Raises:
            OptionError: pandas is not installed.
        """
        return frame_of(self.edge_rows(), [field.name for field in fields(EdgeTest)])

    def edge_rows(self) -> list[dict[str, Any]]:
        """A row per edge tested for minimality, the least necessary first."""
        return [asdict(edge) for edge in sorted(self.edges, key=lambda edge: (edge.share, edge.change, edge.edge))]


@dataclass(frozen=True)
class HypothesisOptions(PlainNumbers):
    """How the tests are made.

    Parameters
    ----------
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
    quick
        19 random circuits, 199 permutations, 10 edges: seconds instead of minutes on a small model. Sufficiency
        and necessity have their numbers, but so few random circuits leave them undecided.
    """

    n_random: int = 100
    n_permutations: int = 1000
    alpha: float = ALPHA
    eps: float = EPS
    quantile: float = QUANTILE
    negligible: float = NEGLIGIBLE
    max_edges: int = 500
    seed: int = 0
    quick: bool = False

    def checked(self) -> HypothesisOptions:
        """These options, with small numbers where ``quick`` is set.

        Raises:
            OptionError: a level, share or number is impossible.
        """
        for name, number in (
            ("random circuits", self.n_random),
            ("permutations", self.n_permutations),
            ("edges to test", self.max_edges),
        ):
            if number < 1:
                raise OptionError(f"the number of {name} must be at least 1, got {number}")
        shares = (("alpha", self.alpha, 1.0), ("eps", self.eps, 0.5), ("the quantile", self.quantile, 1.0))
        for name, share, most in shares:
            if not 0 < share < most:
                raise OptionError(f"{name} must lie between 0 and {most:g}, got {share:g}")
        if not 0 <= self.negligible < 1:
            raise OptionError(f"the share that is negligible must be at least 0 and below 1, got {self.negligible:g}")
        if not self.quick:
            return self
        few = {"n_random": QUICK_RANDOM, "n_permutations": QUICK_PERMUTATIONS, "max_edges": QUICK_EDGES}
        return replace(self, **{name: min(getattr(self, name), most) for name, most in few.items()})


def hypothesis_tests(
    model: Model,
    prepared: Source,
    metric: Metric,
    circuit: Circuit,
    options: HypothesisOptions | None = None,
    *,
    clusters: Clusters | None = None,
    progress: Progress | None = None,
    state: Path | None = None,
) -> HypothesisReport:
    """Every test of the module on the pairs of ``prepared``.

    Parameters
    ----------
    prepared
        Gives the batches; called once for every 64 circuits measured, so a list is best where memory allows.
    clusters
        Personas and questions that the pairs share; pairs count as independent without it.
    progress
        Called with the number of circuits measured and their total.
    state
        File in which measurements are saved, to resume from after a stop; removed at the end.

    Raises
    ------
    OptionError
        A level, share or number is impossible.
    """
    options = (options or HypothesisOptions()).checked()
    drawn = _Drawn.of(circuit, options.n_random, options.max_edges, options.seed)
    measured = Measurements(model, prepared, metric, total=drawn.n_circuits, progress=progress, state=state)
    values = _measured(measured, circuit, drawn)

    tie, clusters = tolerance(values.full - values.empty, measured.rounding), clusters or Clusters(values.n, None, None)
    least = max(options.negligible * float(np.abs((values.full - values.empty).mean())), tie)
    level: dict[str, Any] = {"alpha": options.alpha, "quantile": options.quantile, "tie": tie}
    common: dict[str, Any] = {"alpha": options.alpha, "negligible": least, "tie": tie, "clusters": clusters}
    how: dict[str, Any] = {"eps": options.eps, "n_permutations": options.n_permutations, "seed": options.seed}
    outcomes, edges = _outcomes(values, circuit, drawn, level, common, **how)
    outcomes, edges = _applicable(
        outcomes, edges, metric, _nothing_to_test(values.full, values.empty, measured.rounding)
    )
    return HypothesisReport(
        metric=metric.name,
        n_pairs=values.n,
        n_edges=len(circuit),
        **values.means(),
        negligible=least,
        quick=options.quick,
        seed=options.seed,
        random=drawn.matched.as_dict(),
        outside=drawn.outside.as_dict(),
        outcomes=corrected(outcomes),
        edges=edges,
        rounding=measured.rounding,
        resampled=clusters.describe(),
    )


def _outcomes(
    measured: _Measured,
    circuit: Circuit,
    drawn: _Drawn,
    level: dict[str, Any],
    common: dict[str, Any],
    *,
    eps: float,
    n_permutations: int,
    seed: int,
) -> tuple[tuple[Outcome, ...], tuple[EdgeTest, ...]]:
    """The five tests, and every tested edge's own."""
    names = [str(circuit.graph.edge(*place)) for place in drawn.tested]
    minimal, edges = minimality(measured.changes, measured.random_changes, names, n_edges=len(circuit), **level)
    left, whole = measured.without - measured.empty, measured.full - measured.empty
    same = [other == circuit for other in drawn.matched.circuits]
    return (
        equivalence(measured.alone, measured.full, eps=eps, **common),
        independence(left, whole, n_permutations=n_permutations, seed=seed, **common),
        sufficiency(measured.alone, measured.full, measured.random, is_same=same, **level),
        partial_necessity(measured.without, measured.full, measured.random_without, **level),
        minimal,
    ), edges


def _applicable(
    outcomes: tuple[Outcome, ...], edges: tuple[EdgeTest, ...], metric: Metric, reason: str | None
) -> tuple[tuple[Outcome, ...], tuple[EdgeTest, ...]]:
    """The same where there is something to test; none of them for a ``reason``, and not all with every metric."""
    if reason is not None:
        return tuple(_not_applicable(outcome, reason) for outcome in outcomes), ()
    if metric.flat_at_clean:
        reason = f"{metric.name} measures the distance from the model itself, so no circuit can be above it"
        return (_not_applicable(outcomes[0], reason), *outcomes[1:]), edges
    return outcomes, edges


@dataclass(frozen=True, eq=False)
class _Drawn:
    """The circuits that one is compared with: random ones like it, others outside it, and it with added or lost edges.

    ``inflated`` are masks of the circuit with each random one added, ``lacking`` the same without an edge, and
    ``tested`` the places of the circuit's edges that are removed one by one.
    """

    matched: Matched
    outside: Matched
    inflated: list[np.ndarray]
    lacking: list[np.ndarray]
    tested: list[tuple[int, int]]

    @classmethod
    def of(cls, circuit: Circuit, n_random: int, max_edges: int, seed: int) -> _Drawn:
        matched, outside = (draw(circuit, n_random, seed=seed) for draw in (matched_circuits, matched_outside))
        return cls(matched, outside, *_inflated(circuit, matched, seed), _tested(circuit, max_edges, seed))

    @property
    def n_circuits(self) -> int:
        """The number of circuits to measure, including the circuit, its complement, the full and the empty one."""
        return 4 + len(self.matched.circuits) + len(self.outside.circuits) + 2 * len(self.inflated) + len(self.tested)


@dataclass(frozen=True, eq=False)
class _Measured:
    """The metric of every pair under each of them; changes are means over pairs, by removing one edge."""

    full: Float[np.ndarray, " pair"]
    empty: Float[np.ndarray, " pair"]
    alone: Float[np.ndarray, " pair"]
    without: Float[np.ndarray, " pair"]
    random: Float[np.ndarray, "circuit pair"]
    random_without: Float[np.ndarray, "outside pair"]
    random_changes: Float[np.ndarray, " random"]
    changes: Float[np.ndarray, " edge"]

    @property
    def n(self) -> int:
        return len(self.full)

    def means(self) -> dict[str, float]:
        """Of all pairs, as the report names them."""
        named = {"m_full": self.full, "m_empty": self.empty, "m_circuit": self.alone, "m_complement": self.without}
        return {name: float(values.mean()) for name, values in named.items()}


def _measured(measured: Measurements, circuit: Circuit, drawn: _Drawn) -> _Measured:
    whole = [Circuit.full(circuit.graph), Circuit.empty(circuit.graph), circuit, circuit.complement()]
    full, empty, alone, without = measured.of(subgraph.mask for subgraph in whole)
    random = measured.of(subgraph.mask for subgraph in drawn.matched.circuits)
    random_without = measured.of(subgraph.complement().mask for subgraph in drawn.outside.circuits)
    random_changes = _changes(measured.of(drawn.inflated), measured.of(drawn.lacking))
    changes = _changes(alone[None], measured.of(_lacking(circuit.mask, place) for place in drawn.tested))
    measured.done()
    return _Measured(full, empty, alone, without, random, random_without, random_changes, changes)


def corrected(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """The tests with p-values corrected for each other (Holm); what is rejected without it alone is undecided."""
    places = [i for i, outcome in enumerate(outcomes) if outcome.p is not None]
    adjusted = holm(np.array([outcomes[i].deciding for i in places], dtype=float))
    decided = list(outcomes)
    for i, p in zip(places, adjusted.tolist(), strict=True):
        outcome, deciding = outcomes[i], outcomes[i].deciding
        decided[i] = replace(outcome, p_holm=p)
        if deciding is not None and deciding <= outcome.alpha < p:
            sentence = f"{outcome.sentence} Corrected for {len(places)} tests p is {p:.2g}: undecided."
            fewest = math.ceil(len(places) / outcome.alpha - 1e-9) - 1
            if outcome.details.get("n_random", fewest) < fewest and outcome.name != "minimality":
                sentence = f"{sentence[:-1]}; it takes at least {fewest} random ones."
            decided[i] = replace(decided[i], decision=UNDECIDED, sentence=sentence)
    return tuple(decided)


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
    absent: dict[str, Any] = {"statistic": None, "p": None, "details": {}, "could_show": ""}
    return replace(outcome, decision=NOT_APPLICABLE, sentence=sentence, **absent)
