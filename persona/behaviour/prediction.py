"""Whether collapse on unseen pairs follows from what is known of them without their own rows.

    lead      how far the most likely candidate stands above the others under no persona, in other wordings
    effect    |D| of the same two personas and question in other wordings

Nothing of a row's own logits is used for it. Rivals are the effect alone, the lead alone, the places of the two
answers among the candidates and of the persona, the format, and the majority (no predictor at all). Each is a
logistic regression; its loss on a row is of a fit to rows that share neither the row's persona pair nor its question:
both are divided into folds, and every fold of one is held out with every fold of the other. A persona may
occur with another one in the rows fitted on. Losses are -log of the probability of what happened, in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.statistics import cluster_codes
from persona_circuits.persona.behaviour.measure import PairMeasure
from persona_circuits.persona.behaviour.wordings import grouped_rows
from persona_circuits.persona.data import Estimate, sign_flip, two_way_mean
from persona_circuits.persona.data.items import shared_by

__all__ = ["Prediction", "Predictor", "known_elsewhere", "predicted"]

FOLDS = 5
LEAST = 4
OURS = "lead and effect"


@dataclass(frozen=True)
class Predictor:
    """One predictor: mean held-out log loss, and how much less that is than the majority's; p of no difference.

    ``behind`` is how much more its loss is than that of lead and effect; None for these themselves.
    """

    name: str
    loss: Estimate
    gain: Estimate
    p: float
    behind: Estimate | None


@dataclass(frozen=True)
class Prediction:
    """Of ``n`` rows ``collapsed`` have one choice; ``left_out`` have no other wording to be predicted from."""

    n: int
    collapsed: int
    left_out: int
    n_persona_pairs: int
    n_questions: int
    predictors: tuple[Predictor, ...]


def predicted(measures: Sequence[PairMeasure], *, n_resamples: int = 2000, seed: int = 0) -> Prediction:
    """Predict the collapse of every row that has other wordings beside it.

    Raises
    ------
    TaskError
        Too few rows have other wordings, or there are too few persona pairs or questions to hold out.
    """
    main = [m for m in measures if m.item.control == "none"]
    known = known_elsewhere(main)
    rows = [m for m, values in zip(main, known, strict=True) if values is not None]
    x = np.array([values for values in known if values is not None], dtype=np.float64).reshape(-1, 2)
    pairs, n_pairs = cluster_codes([m.item.persona_pair for m in rows])
    asked, n_questions = cluster_codes([m.item.question for m in rows])
    if min(n_pairs, n_questions) < LEAST:
        raise TaskError(
            f"collapse can be predicted of {len(rows)} of {len(main)} rows, {n_pairs} persona pairs and {n_questions} "
            f"questions; {LEAST} of each are needed. A row needs a neutral wording (--neutral, or neutral prompts of "
            "other wordings) and another wording of its persona pair and question (pairs --variants)"
        )
    y = np.array([m.collapses for m in rows])
    features = {
        OURS: x,
        "effect alone": x[:, 1:],
        "lead alone": x[:, :1],
        "position": _positions(rows),
        "format": _formats(rows),
        "majority": np.zeros((len(rows), 0)),
    }
    folds = _held_out(pairs, n_pairs, asked, n_questions, seed)
    losses = {name: _losses(values, y, folds) for name, values in features.items()}
    shared = shared_by([m.item for m in rows])

    def mean(values: Float[np.ndarray, " row"]) -> Estimate:
        estimate = two_way_mean(values.tolist(), *shared, n_resamples=n_resamples, seed=seed)
        assert estimate is not None, "there are rows"
        return estimate

    def predictor(name: str, loss: Float[np.ndarray, " row"]) -> Predictor:
        less = losses["majority"] - loss
        p = sign_flip(less.tolist(), *shared, n_resamples=n_resamples, seed=seed)
        assert p is not None, "there are rows"
        return Predictor(name, mean(loss), mean(less), p, None if name == OURS else mean(loss - losses[OURS]))

    predictors = tuple(predictor(name, loss) for name, loss in losses.items())
    return Prediction(len(rows), int(y.sum()), len(main) - len(rows), n_pairs, n_questions, predictors)


def known_elsewhere(measures: Sequence[PairMeasure]) -> list[tuple[float, float] | None]:
    """Lead and effect of each row by others than itself; None where there are none.

    The lead is of the neutral wordings that the row does not use; where its neutral prompt is its own wording's, of the
    other rows of the question in other wordings. The effect is |mean D| of the rows that differ in wording from it.
    """
    groups = {place: group for group in grouped_rows([measure.item for measure in measures]) for place in group}
    by_question: dict[str, list[int]] = {}
    for place, measure in enumerate(measures):
        by_question.setdefault(measure.item.question, []).append(place)
    known: list[tuple[float, float] | None] = []
    for place, measure in enumerate(measures):
        others = [measures[i] for i in groups[place] if _other_wording(measure, measures[i])]
        lead = _lead(
            measure, [measures[i] for i in by_question[measure.item.question] if _other_wording(measure, measures[i])]
        )
        effect = abs(float(np.mean([other.divergence for other in others]))) if others else None
        known.append(None if lead is None or effect is None else (lead, effect))
    return known


def _lead(measure: PairMeasure, others: Sequence[PairMeasure]) -> float | None:
    if measure.neutral is not None and not measure.item.pair.neutral:
        return measure.neutral.lead
    leads = [other.neutral.lead for other in others if other.neutral is not None]
    return float(np.mean(leads)) if leads else None


def _other_wording(measure: PairMeasure, other: PairMeasure) -> bool:
    """Another wording of the question where rows say which, else another prompt."""
    pair, reference = measure.item.pair, other.item.pair
    if "wording" in pair.row and "wording" in reference.row:
        return bool(pair.row["wording"] != reference.row["wording"])
    return pair.clean != reference.clean and pair.corrupt != reference.corrupt


def _positions(rows: Sequence[PairMeasure]) -> Float[np.ndarray, "row 3"]:
    """Places of the two answers among the candidates, from 0 to 1, and whether the persona stands late."""
    positions = []
    for measure in rows:
        order, last = measure.item.candidates, max(1, len(measure.item.candidates) - 1)
        places = (order.index(side[0]) / last for side in (measure.item.pair.answers, measure.item.pair.wrong_answers))
        positions.append([*places, float(measure.item.axes.get("placement") == "late")])
    return np.array(positions)


def _formats(rows: Sequence[PairMeasure]) -> Float[np.ndarray, "row format"]:
    codes, n = cluster_codes([str(m.item.pair.row.get("template", "")) for m in rows])
    return np.eye(n)[codes]


def _held_out(
    pairs: np.ndarray, n_pairs: int, asked: np.ndarray, n_questions: int, seed: int
) -> list[tuple[Bool[np.ndarray, " row"], Bool[np.ndarray, " row"]]]:
    """Rows to fit on and rows to test on: of a fold of persona pairs and one of questions, against rows of neither."""
    rng = np.random.default_rng(seed)
    codes = ((pairs, n_pairs), (asked, n_questions))
    folds = [rng.permutation(n)[clusters] % min(FOLDS, n) for clusters, n in codes]
    cells = [(folds[0] == i, folds[1] == j) for i in np.unique(folds[0]) for j in np.unique(folds[1])]
    return [(~pair & ~question, pair & question) for pair, question in cells if (pair & question).any()]


def _losses(
    x: Float[np.ndarray, "row feature"],
    y: Bool[np.ndarray, " row"],
    folds: Sequence[tuple[Bool[np.ndarray, " row"], Bool[np.ndarray, " row"]]],
) -> Float[np.ndarray, " row"]:
    losses = np.zeros(len(y))
    for fit, test in folds:
        share = _probability(x[fit], y[fit], x[test])
        losses[test] = -np.log(np.where(y[test], share, 1 - share))
    return losses


def _probability(
    x: Float[np.ndarray, "fit feature"], y: Bool[np.ndarray, " fit"], new: Float[np.ndarray, "test feature"]
) -> Float[np.ndarray, " test"]:
    """Of collapse; the fitted rows' share, one row of each kind added, where nothing tells them apart."""
    share = (y.sum() + 1) / (len(y) + 2)
    spread = x.std(0)
    varies = spread > 0
    if not varies.any() or y.all() or not y.any():
        return np.full(len(new), share)
    from sklearn.linear_model import LogisticRegression

    scaled = [(values[:, varies] - x[:, varies].mean(0)) / spread[varies] for values in (x, new)]
    probability = LogisticRegression().fit(scaled[0], y).predict_proba(scaled[1])[:, 1]
    return np.clip(probability, 1e-6, 1 - 1e-6)
