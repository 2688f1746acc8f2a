"""Pair by pair: what a single faithfulness number hides.

    distribution   quantiles of the pairs' own f, the worst pairs by name, ratio of means beside mean of ratios
    flat pairs     those whose |D| is within the null, 2 sigma_0, and those without an effect m(full) - m(empty) to
                   explain: their f is noise, and they stand apart. D, in logits, is of the plain runs: the log odds
                   of the two answers under persona A minus those under B, whatever the metric and the ablation
    groups         pairs whose own edge scores differ in kind, with the circuit's faithfulness in each, so that
                   a mixture of circuits is not passed off as one

Groups are searched for among the pairs that are not flat. The pairs' score vectors are normalised, clustered by
Ward's method, and cut into the number of groups with the largest mean silhouette. One group is a possible answer:
two groups must explain more of the variance than they do in data of the same mean and covariance without groups, drawn
from a normal distribution and treated the same way (SigClust, Liu, Hayes, Nobel and Marron 2008). In that test B draws
give p = (1 + b) / (1 + B).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit import parallel
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.faithfulness import pairwise
from persona_circuits.circuit.evaluation.groups import LEAST_PAIRS, Averages, Grouping, PairGroup, group_pairs
from persona_circuits.circuit.evaluation.scores_by_pair import PairScores, Rule
from persona_circuits.circuit.forward import Prepared, Rounding, measure, tolerance
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import Clusters, PairSample, is_zero
from persona_circuits.circuit.storage import frame_of
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import PromptPair
from persona_circuits.metrics import METRICS, Metric

__all__ = ["GroupSearch", "PairRow", "PairSignal", "PairsView", "divergences_of", "measured_pairs", "pairs_view"]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class PairRow:
    """One pair: its D in logits (None where it is not known), its effect m(full) - m(empty), its f (None where it
    has no effect), its group, from 0 (None where none was sought)."""

    id: str
    persona_a: str
    persona_b: str
    question: str
    divergence: float | None
    effect: float
    faithfulness: float | None
    flat: bool
    group: int | None


@dataclass(frozen=True, eq=False, repr=False)
class PairsView:
    """A circuit pair by pair; ``rows`` in the order of the pairs.

    ``null`` is the bound on |D| (on |effect| where D is not given) of flat pairs and ``null_source`` where it comes
    from. ``quantiles`` are of the f of pairs that are not flat, None where all are. ``worst`` are those of them
    furthest from f = 1.
    """

    null: float
    null_source: str
    every: Averages
    signal: Averages
    flat: Averages
    quantiles: dict[str, float] | None
    rows: tuple[PairRow, ...]
    worst: tuple[PairRow, ...]
    grouping: Grouping | None
    groups: tuple[PairGroup, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        n_flat = sum(row.flat for row in self.rows)
        f = self.signal.ratio_of_means
        return f"PairsView({len(self.rows)} pairs, {n_flat} flat; f of the others {'-' if f is None else f'{f:.3f}'})"

    def to_frame(self) -> Any:
        """A pandas table with a row per pair: id, personas, question, D, effect, f, whether it is flat, its group.

        Raises:
            OptionError: pandas is not installed.
        """
        return frame_of([asdict(row) for row in self.rows], [field.name for field in fields(PairRow)])

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        names = ("n_groups", "n_best", "explained", "silhouette", "p")
        return {
            "null": self.null,
            "null_source": self.null_source,
            "every": asdict(self.every),
            "signal": asdict(self.signal),
            "flat": asdict(self.flat),
            "quantiles": self.quantiles,
            "worst": [asdict(row) for row in self.worst],
            "grouping": None if self.grouping is None else {name: getattr(self.grouping, name) for name in names},
            "groups": [asdict(group) for group in self.groups],
            "notes": list(self.notes),
            "pairs": [asdict(row) for row in self.rows],
        }


@dataclass(frozen=True, eq=False)
class PairSignal:
    """What distinguishes pairs with an effect from flat ones.

    ``divergences`` is D of each pair in logits, as ``divergences_of`` gives it. ``sigma_0`` is the spread of D over
    paraphrases of one persona, in logits (``evaluation.null``): pairs with |D| within twice that are flat; without it
    only those within rounding are. ``rounding`` is how far that alone moves the metric (``circuit.forward.rounding``).
    """

    divergences: Float[np.ndarray, " pair"] | None = None
    sigma_0: float | None = None
    rounding: float = 0.0


@dataclass(frozen=True, eq=False)
class GroupSearch:
    """Groups are sought by the pairs' ``scores``; the ``rule``, if there is one, prunes each group's own, to compare.

    ``n_draws`` are those of the test for groups.
    """

    scores: PairScores
    rule: Rule | None = None
    n_draws: int = 199
    seed: int = 0


def pairs_view(
    values: Float[np.ndarray, "three pair"],
    pairs: Sequence[PromptPair],
    circuit: Circuit,
    *,
    signal: PairSignal | None = None,
    sought: GroupSearch | None = None,
    n_worst: int = 10,
    progress: Progress | None = None,
) -> PairsView:
    """Analyse every pair on its own; no model is run.

    Parameters
    ----------
    values
        The metric of each pair under the full, the empty and this circuit, as ``measured_pairs`` gives it.
    pairs
        The pairs, in the same order.
    signal
        What distinguishes pairs with an effect from flat ones.
    sought
        How to search for groups; without it there is no search.

    Raises
    ------
    OptionError
        Values, pairs and scores are not of the same pairs, or a number is out of range.
    """
    signal = signal or PairSignal()
    _check(values, pairs, signal, sought)
    full, empty, own = values
    effect, moved, divergences = full - empty, own - empty, signal.divergences
    least = tolerance(effect, signal.rounding)
    d = effect if divergences is None else divergences
    null = max(2 * (signal.sigma_0 or 0.0), tolerance(d, signal.rounding if divergences is None else 0.0))
    flat = (np.abs(d) <= null) | (np.abs(effect) <= least)
    grouping = None
    if sought is not None:
        how: dict[str, Any] = {"n_draws": sought.n_draws, "seed": sought.seed, "progress": progress}
        grouping = group_pairs(sought.scores, np.flatnonzero(~flat), **how)
    known = [None] * len(pairs) if divergences is None else divergences.tolist()
    rows = tuple(
        _row(pair, known[i], effect[i], moved[i], bool(flat[i]), grouping, i, least) for i, pair in enumerate(pairs)
    )
    ratios = moved[~flat] / effect[~flat]
    by_distance = sorted((row for row in rows if not row.flat), key=lambda row: -abs(1 - (row.faithfulness or 0.0)))
    groups: tuple[PairGroup, ...] = ()
    if grouping is not None and sought is not None:
        members = [np.flatnonzero(grouping.labels == label) for label in range(grouping.n_groups)]
        groups = tuple(_group(effect, moved, pairs, circuit, sought, places, least) for places in members)
    return PairsView(
        null=null,
        null_source="rounding" if signal.sigma_0 is None else "2 sigma_0 of |D|",
        every=_averages(effect, moved, least),
        signal=_averages(effect[~flat], moved[~flat], least),
        flat=_averages(effect[flat], moved[flat], least),
        quantiles=_quantiles(ratios),
        rows=rows,
        worst=tuple(by_distance[:n_worst]),
        grouping=grouping,
        groups=groups,
        notes=tuple(_notes(null, flat, grouping, groups, sought.scores.floor if sought else 0.0)),
    )


def measured_pairs(
    model: Model, prepared: Iterable[Prepared], metric: Metric, circuit: Circuit, *, watch: Rounding | None = None
) -> Float[np.ndarray, "three pair"]:
    """The metric of each pair under the full, the empty and this circuit; both directions averaged.

    ``watch`` inspects the batches as they pass.
    """
    masks = [Circuit.full(model.graph).mask, Circuit.empty(model.graph).mask, circuit.mask]
    return pairwise(measure(model, prepared if watch is None else watch.watched(prepared), masks, metric), metric)


def divergences_of(prepared: Iterable[Prepared], *, swapped: bool) -> Float[np.ndarray, " pair"]:
    """D of each pair in logits, from the plain runs; ``swapped``: every pair stands there in both directions."""
    margin = METRICS["logit-diff"]
    gaps: dict[int, float] = {}
    for item in prepared:
        gap = margin(item.clean.logits, item.targets) - margin(item.corrupt.logits, item.targets)
        gaps |= dict(zip(item.batch.indices, gap.cpu().double().tolist(), strict=True))
    gaps = parallel.gathered(gaps)
    values = np.array([gaps[index] for index in sorted(gaps)])
    return values.reshape(-1, 2).mean(axis=1) if swapped else values


def _row(
    pair: PromptPair,
    divergence: float | None,
    effect: float,
    moved: float,
    flat: bool,
    grouping: Grouping | None,
    place: int,
    least: float,
) -> PairRow:
    group = None if grouping is None or grouping.labels[place] < 0 else int(grouping.labels[place])
    f = float(moved / effect) if abs(effect) > least else None
    name = pair.id or f"{pair.unit} {pair.line}"
    return PairRow(name, pair.persona_a, pair.persona_b, pair.question, divergence, float(effect), f, flat, group)


def _averages(effect: np.ndarray, moved: np.ndarray, least: float) -> Averages:
    usable = np.abs(effect) > least
    ratios = moved[usable] / effect[usable]
    mean = float(effect.mean()) if len(effect) else None
    return Averages(
        n_pairs=len(effect),
        effect=mean,
        ratio_of_means=float(moved.mean() / mean) if mean is not None and not is_zero(effect, least) else None,
        mean_of_ratios=float(ratios.mean()) if len(ratios) else None,
        median_of_ratios=float(np.median(ratios)) if len(ratios) else None,
    )


def _quantiles(ratios: np.ndarray) -> dict[str, float] | None:
    if not len(ratios):
        return None
    return {f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(ratios, QUANTILES), strict=True)}


def _group(
    effect: np.ndarray,
    moved: np.ndarray,
    pairs: Sequence[PromptPair],
    circuit: Circuit,
    sought: GroupSearch,
    places: np.ndarray,
    least: float,
) -> PairGroup:
    inside = [pairs[i] for i in places]
    own = None
    if sought.rule is not None:
        weights = np.zeros(len(pairs))
        weights[places] = 1 / len(places)
        own = sought.rule.circuit(sought.scores.mean(weights), float(effect[places].mean()))
    joint = 0 if own is None else int((own.mask | circuit.mask).sum())
    averages = _averages(effect[places], moved[places], least)
    known, sample = averages.ratio_of_means is not None, PairSample(clusters=Clusters.of(inside), seed=sought.seed)
    return PairGroup(
        averages=averages,
        interval=sample.ratio(moved[places], effect[places]) if known else None,
        personas=_most([name for pair in inside for name in (pair.persona_a, pair.persona_b)]),
        questions=_most([pair.question for pair in inside]),
        own_edges=None if own is None else len(own),
        own_jaccard=int((own.mask & circuit.mask).sum()) / joint if own is not None and joint else None,
    )


def _most(names: Sequence[str], count: int = 5) -> tuple[tuple[str, int], ...]:
    """The most frequent names with their counts, equal ones by name."""
    return tuple(sorted(Counter(filter(None, names)).items(), key=lambda item: (-item[1], item[0]))[:count])


def _notes(
    null: float, flat: np.ndarray, grouping: Grouping | None, groups: Sequence[PairGroup], floor: float
) -> Iterable[str]:
    """What a reader of the numbers must know."""
    if flat.any():
        yield f"{int(flat.sum())} of {len(flat)} pairs have no effect beyond the null ({null:.3g}); they are apart"
    if grouping is not None and grouping.p is None and grouping.n_groups:
        yield f"fewer than {LEAST_PAIRS} pairs with an effect: no search for groups"
    if len(groups) > 1:
        parts = [f"{_number(group.averages.ratio_of_means)} on {group.averages.n_pairs}" for group in groups]
        p = grouping.p if grouping is not None and grouping.p is not None else 1.0
        yield (
            f"the pairs fall into {len(groups)} groups that use different edges (p = {p:.3g}): "
            f"faithfulness {', '.join(parts)} pairs; the circuit is of their mixture"
        )
    if floor:
        yield f"scores of single pairs below {floor:.3g} were not kept, so groups rest on the larger ones"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _check(values: np.ndarray, pairs: Sequence[PromptPair], signal: PairSignal, sought: GroupSearch | None) -> None:
    if values.shape != (3, len(pairs)):
        raise OptionError(
            f"values of shape {values.shape} for {len(pairs)} pairs; expected those of the full, the empty and this "
            f"circuit, (3, {len(pairs)})"
        )
    divergences, sigma_0 = signal.divergences, signal.sigma_0
    if sought is not None and len(sought.scores) != len(pairs):
        raise OptionError(f"{len(sought.scores)} pairs are scored but {len(pairs)} measured; give the same pairs")
    if divergences is not None and len(divergences) != len(pairs):
        raise OptionError(f"D is given for {len(divergences)} pairs of {len(pairs)}; give it for the same pairs")
    if sigma_0 is not None and not (np.isfinite(sigma_0) and sigma_0 >= 0):
        raise OptionError(f"sigma_0 is a spread, so a number that is not negative; got {sigma_0}")
    if sought is not None and sought.n_draws < 19:
        raise OptionError(f"{sought.n_draws} draws cannot give a p below .05; use at least 19")
