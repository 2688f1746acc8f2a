"""Logistic probes, tested on held-out examples only; every choice is made on the training folds.

For one target, one way of holding out, and one position:

1. The examples are divided into folds so that no group (question, wording, …) is in two of them.
   The two prompts of a pair are nearly the same and have opposite labels, so a fold is not
   fitted on the partner of a prompt that it tests: it would learn to be wrong.
2. The training part of a fold is divided again in the same way. These inner folds give each
   layer's balanced accuracy and, for two classes, the threshold that maximises it.
3. A probe fitted on the whole training part, with that threshold, predicts the test part.
4. The fold's layer is the one that is best on the inner folds; the headline number joins the
   predictions of all folds, each at its own layer. No test example has influenced it.

Features are standardised on the training part. With more features than examples they are
first turned into the span of the training examples, which leaves the fit as it is (the
penalty does not see a rotation) and makes it fast.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from persona_circuits.circuit.statistics import Clusters, interval
from persona_circuits.persona.data import Estimate
from persona_circuits.persona.probing.folds import Features, Fold, Labels, Places, Sample

__all__ = [
    "Predicted",
    "Scored",
    "balanced_accuracy",
    "cross_validate",
    "joined",
    "mean_scores",
    "predict_chosen",
    "probe_directions",
    "ratio",
    "score",
]

ROUNDING = 1e-9  # of shares
Statistic = Callable[[Float[np.ndarray, "draw example"]], Float[np.ndarray, " draw"]]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What probes predict for the examples that they were not fitted on.

    ``fold`` is -1 for examples that no fold tests. ``scores`` are log odds for two classes
    (one column), log probabilities otherwise; they are comparable within a fold only. ``tied`` examples have
    uninformative scores: the probe gives every example the same one, or theirs is the threshold itself. They
    count as correct at the chance level, one in the number of classes.
    """

    labels: Labels
    predicted: Labels
    scores: Float[np.ndarray, "example column"]
    fold: Labels
    tied: Bool[np.ndarray, " example"]

    @property
    def correct(self) -> Float[np.ndarray, " example"]:
        """Whether each prediction is correct: 1, 0, or the chance level for a tie."""
        return _correct(self.predicted, self.labels, self.tied, max(2, self.scores.shape[1]))


@dataclass(frozen=True)
class Scored:
    """Accuracy, balanced accuracy and area under the ROC curve, with 95 % intervals.

    For more than two classes the area is the mean over classes, each against the rest.
    ``places`` are the tested examples, in order, and ``measures`` give the three under weights of those.
    """

    accuracy: Estimate
    balanced: Estimate
    auc: Estimate
    places: Places
    measures: tuple[Statistic, ...]


class _Settings(NamedTuple):
    """How the probes of one target are fitted."""

    n_classes: int
    penalty: float
    symmetric: bool

    @property
    def has_threshold(self) -> bool:
        return self.n_classes == 2 and not self.symmetric

    @property
    def n_columns(self) -> int:
        return 1 if self.n_classes == 2 else self.n_classes

    def nothing_yet(self, labels: Labels) -> Predicted:
        """Predictions to be filled in, fold by fold."""
        n = len(labels)
        scores, fold, tied = np.zeros((n, self.n_columns)), np.full(n, -1, np.int64), np.zeros(n, dtype=bool)
        return Predicted(labels, np.zeros(n, np.int64), scores, fold, tied)


def cross_validate(
    layers: Sequence[Features], labels: Labels, folds: Sequence[Fold], *, penalty: float, symmetric: bool = False
) -> tuple[list[Predicted], list[int]]:
    """Predictions at every layer, and the layer of every fold that is best within its training part.

    Parameters
    ----------
    layers
        Features of all examples at each layer.
    penalty
        scikit-learn's ``C``: the inverse of the strength of the squared penalty.
    symmetric
        Turning the sign of an example's features swaps its label: no intercept, no
        centring, and the threshold is zero.
    """
    settings = _Settings(int(labels.max()) + 1, penalty, symmetric)
    predictions = [settings.nothing_yet(labels) for _ in layers]
    chosen = []
    for turn, fold in enumerate(folds):
        quality = []
        for predicted, features in zip(predictions, layers, strict=True):
            accuracy, threshold = _inner_accuracy(features, labels, fold, settings)
            quality.append(accuracy)
            _predict(predicted, features, fold, turn, threshold, settings)
        chosen.append(int(np.argmax(quality)))
    return predictions, chosen


def predict_chosen(
    layers: Sequence[Features],
    labels: Labels,
    folds: Sequence[Fold],
    chosen: Sequence[int],
    *,
    penalty: float,
    symmetric: bool = False,
) -> Predicted:
    """Predictions with every fold's layer given: for controls, which are asked at the layers that the probe chose."""
    settings = _Settings(int(labels.max()) + 1, penalty, symmetric)
    predicted = settings.nothing_yet(labels)
    for turn, (fold, layer) in enumerate(zip(folds, chosen, strict=True)):
        threshold = _inner_accuracy(layers[layer], labels, fold, settings)[1] if settings.has_threshold else 0.0
        _predict(predicted, layers[layer], fold, turn, threshold, settings)
    return predicted


def probe_directions(features: Features, labels: Labels, *, penalty: float) -> Float[np.ndarray, "direction feature"]:
    """The probe fitted on all examples, as directions of length one in the features' own units.

    One direction for two classes, towards the second; else one per class. Zero where no feature varies.
    """
    centred = features - features.mean(0)
    scale = _scale(centred)
    x = centred / scale
    basis = np.linalg.svd(x, full_matrices=False)[2].T if x.shape[1] > x.shape[0] else np.eye(x.shape[1])
    probe = _fitted(x @ basis, labels, penalty)
    directions = probe.coef_ @ basis.T / scale
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.divide(directions, length, out=np.zeros_like(directions), where=length > 0)


def joined(by_layer: Sequence[Predicted], chosen: Sequence[int]) -> Predicted:
    """The predictions of every fold at its own layer."""
    first = by_layer[0]
    copies = first.predicted.copy(), first.scores.copy(), first.fold, first.tied.copy()
    predicted = Predicted(first.labels, *copies)
    for turn, layer in enumerate(chosen):
        here = first.fold == turn
        for name in ("predicted", "scores", "tied"):
            getattr(predicted, name)[here] = getattr(by_layer[layer], name)[here]
    return predicted


def score(found: Predicted, sample: Sample, here: Places | None = None) -> Scored:
    """The three measures over all tested examples; ``here`` are the places of the examples among the sample's."""
    tested = np.flatnonzero(found.fold >= 0)
    return _scored(_measures(found), tested if here is None else here[tested], sample)


def balanced_accuracy(predicted: Predicted) -> float:
    """The balanced accuracy over all tested examples, without an interval."""
    return float(_measures(predicted)[1](np.ones((1, int((predicted.fold >= 0).sum()))))[0])


def mean_scores(several: Sequence[Scored], sample: Sample) -> Scored:
    """The mean over several targets, under the same draws of all examples that any of them tests."""
    places = np.unique(np.concatenate([x.places for x in several]))
    inside = [np.searchsorted(places, x.places) for x in several]

    def mean_of(turn: int) -> Statistic:
        return lambda weights: np.mean(
            [x.measures[turn](weights[:, columns]) for x, columns in zip(several, inside, strict=True)], axis=0
        )

    return _scored(tuple(mean_of(turn) for turn in range(3)), places, sample)


def _measures(predicted: Predicted) -> tuple[Statistic, ...]:
    """Accuracy, balanced accuracy and area under weights of the tested examples."""
    here = predicted.fold >= 0
    labels, fold, scores = predicted.labels[here], predicted.fold[here], predicted.scores[here]
    correct = predicted.correct[here]
    return (
        lambda w: ratio(w @ correct, w.sum(1)),
        lambda w: _balanced(w, labels, correct),
        lambda w: _auc(w, labels, scores, fold),
    )


def _inner_accuracy(features: Features, labels: Labels, fold: Fold, settings: _Settings) -> tuple[float, float]:
    """Balanced accuracy within the training part, and the threshold that gives it."""
    places, scores, same = [], [], []
    for fit, held in fold.inner:
        places.append(held)
        held_scores, constant = _held_scores(features, labels, fit, held, settings)
        scores.append(held_scores)
        same.append(np.full(len(held), constant))
    if not places:
        return 0.0, 0.0
    held_labels, values, constants = labels[np.concatenate(places)], np.concatenate(scores), np.concatenate(same)
    threshold = _threshold(values[:, 0], held_labels) if settings.has_threshold else 0.0
    predicted, tied = _decide(values, threshold)
    correct = _correct(predicted, held_labels, tied | constants, settings.n_classes)
    return float(_balanced(np.ones((1, len(held_labels))), held_labels, correct)[0]), threshold


def _threshold(scores: Float[np.ndarray, " held"], labels: Int[np.ndarray, " held"]) -> float:
    """The cut between two neighbouring scores with the largest balanced accuracy; of equals, the one nearest zero."""
    ordered = np.unique(scores)
    cuts = np.concatenate([[ordered[0] - 1.0], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1.0]])
    above = scores[None] > cuts[:, None]
    right = [side[:, labels == label].mean(1) for label, side in ((1, above), (0, ~above)) if label in labels]
    quality = np.sum(right, axis=0)
    best = np.flatnonzero(quality >= quality.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best]))]])


def _predict(into: Predicted, features: Features, fold: Fold, turn: int, threshold: float, settings: _Settings) -> None:
    scores, same = _held_scores(features, into.labels, fold.train, fold.test, settings)
    predicted, tied = _decide(scores, threshold)
    into.scores[fold.test], into.predicted[fold.test], into.tied[fold.test] = (scores, predicted, tied | same)
    into.fold[fold.test] = turn


def _held_scores(
    features: Features, labels: Labels, fit: Places, held: Places, settings: _Settings
) -> tuple[Float[np.ndarray, "held column"], bool]:
    """Scores of the held-out examples, and whether the probe scores all examples, fitted ones included, the same."""
    both = np.concatenate([held, fit])
    scores = _scores(features[fit], labels[fit], features[both], settings)
    known = scores[:, np.isfinite(scores).all(0)]
    return scores[: len(held)], bool((np.ptp(known, axis=0) < ROUNDING).all())


def _decide(
    scores: Float[np.ndarray, "held column"], threshold: float
) -> tuple[Int[np.ndarray, " held"], Bool[np.ndarray, " held"]]:
    """Classes, and which scores are the threshold's own."""
    if scores.shape[1] > 1:
        return scores.argmax(1), np.zeros(len(scores), dtype=bool)
    return (scores[:, 0] > threshold).astype(np.int64), scores[:, 0] == threshold


def _correct(
    predicted: Labels, labels: Labels, tied: Bool[np.ndarray, " example"], n_classes: int
) -> Float[np.ndarray, " example"]:
    return np.where(tied, 1 / n_classes, predicted == labels)


def _scores(
    fit: Features, labels: Labels, held: Float[np.ndarray, "held feature"], settings: _Settings
) -> Float[np.ndarray, "held column"]:
    """Log odds for two classes, else log probabilities, with -inf for classes absent from the training part."""
    classes, n_columns = np.unique(labels), settings.n_columns
    if len(classes) < 2:
        only = np.where(np.arange(settings.n_classes) == classes[0], 0.0, -np.inf)
        return np.tile(only, (len(held), 1))[:, -n_columns:]
    centre = np.zeros(fit.shape[1]) if settings.symmetric else fit.mean(0)
    scale = _scale(fit - centre)
    x, y = (fit - centre) / scale, (held - centre) / scale
    if x.shape[1] > x.shape[0]:
        basis = np.linalg.svd(x, full_matrices=False)[2].T
        x, y = x @ basis, y @ basis
    probe = _fitted(x, labels, settings.penalty, fit_intercept=not settings.symmetric)
    if settings.n_classes == 2:
        return probe.decision_function(y)[:, None]
    scores = np.full((len(held), n_columns), -np.inf)
    scores[:, classes] = probe.predict_log_proba(y)
    return scores


def _scale(features: Features) -> Float[np.ndarray, " feature"]:
    """Root mean squares, 1 where a feature does not vary."""
    spread = np.sqrt((features**2).mean(0))
    return np.where(spread < 1e-9 * max(1.0, float(np.abs(features).max())), 1.0, spread)


def _fitted(x: Features, labels: Labels, penalty: float, **settings: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # many personas in a small file are what is asked for
        warnings.filterwarnings("ignore", message="The number of unique classes")
        return LogisticRegression(C=penalty, max_iter=1000, tol=1e-3, **settings).fit(x, labels)


def _balanced(
    weights: Float[np.ndarray, "draw example"],
    labels: Int[np.ndarray, " example"],
    correct: Float[np.ndarray, " example"],
) -> Float[np.ndarray, " draw"]:
    """Mean over classes of the share correct; classes absent from a draw are left out of its mean."""
    member = np.eye(int(labels.max()) + 1)[labels]
    recall = ratio(weights @ (member * correct[:, None]), weights @ member)
    known = np.isfinite(recall)
    return ratio(np.where(known, recall, 0.0).sum(1), known.sum(1))


def _auc(
    weights: Float[np.ndarray, "draw example"],
    labels: Int[np.ndarray, " example"],
    scores: Float[np.ndarray, "example column"],
    fold: Int[np.ndarray, " example"],
) -> Float[np.ndarray, " draw"]:
    """Share of (positive, negative) pairs within a fold that the scores order correctly; ties count half."""
    areas = []
    for label, column in [(1, 0)] if scores.shape[1] == 1 else [(i, i) for i in range(scores.shape[1])]:
        right, total = np.zeros(len(weights)), np.zeros(len(weights))
        for turn in np.unique(fold):
            inside, other = (np.flatnonzero((fold == turn) & ((labels == label) == side)) for side in (True, False))
            if len(inside) and len(other):
                a, b = scores[inside, column][:, None], scores[other, column][None]
                ordered = (a > b) + 0.5 * (a == b)
                right += ((weights[:, inside] @ ordered) * weights[:, other]).sum(1)
                total += weights[:, inside].sum(1) * weights[:, other].sum(1)
        areas.append(ratio(right, total))
    every = np.stack(areas)
    known = np.isfinite(every)
    return ratio(np.where(known, every, 0.0).sum(0), known.sum(0))


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient; nan where the divisor is not above zero."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


def _scored(measures: tuple[Statistic, ...], places: Places, sample: Sample) -> Scored:
    accuracy, balanced, auc = (_estimate(measure, sample.among(places), sample) for measure in measures)
    return Scored(accuracy, balanced, auc, places, measures)


def _estimate(statistic: Statistic, clusters: Clusters, sample: Sample) -> Estimate:
    """The number and its interval, cut at 0 and 1.

    Where all that is tested is right (or wrong) nothing varies: the other end is then the exact one (Clopper and
    Pearson 1934) of as many successes as there are independent clusters.
    """
    value = float(statistic(np.full((1, clusters.n), 1 / clusters.n))[0])
    bounds = interval(statistic, clusters, n_draws=sample.n_draws, seed=sample.seed) if np.isfinite(value) else None
    if bounds is None:
        return Estimate(value, None, None)
    if bounds.high - bounds.low < ROUNDING and min(value, 1 - value) < ROUNDING:
        least = 0.025 ** (1 / clusters.independent)
        return Estimate(value, *((least, 1.0) if value > 0.5 else (0.0, 1 - least)))
    return Estimate(value, max(0.0, bounds.low), min(1.0, bounds.high))
