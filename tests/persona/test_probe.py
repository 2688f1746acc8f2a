"""Probes: the machinery against scikit-learn, what must not leak, and the study on the shipped model."""

import csv
import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from conftest import DATA, ROOT
from safetensors.numpy import load_file
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.statistics import Clusters, interval
from persona_circuits.cli import app
from persona_circuits.persona.data import load_examples, read_personas, without_persona
from persona_circuits.persona.probing import (
    Predicted,
    ProbeOptions,
    Sample,
    cross_validate,
    explicit_fold,
    folds_by_group,
    joined,
    mean_scores,
    predict_chosen,
    probe_directions,
    probe_figures,
    probe_record,
    probe_tables,
    score,
    study_probes,
    write_probes,
)
from persona_circuits.persona.probing import fit as probe_fit
from persona_circuits.persona.streams import read as activations

SPEC = importlib.util.spec_from_file_location("coverage_of", ROOT / "benchmarks" / "coverage.py")
coverage = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(coverage)
DATASETS = ROOT / "datasets"
ALONE = Sample([""] * 200, [""] * 200, n_draws=100)
QUICK = {"n_resamples": 100, "repeats": 2, "every": 4}


def rng(seed=0):
    return np.random.default_rng(seed)


def planted(n=60, d=10, layers=3, at=1, seed=0, strength=3.0):
    """Two classes in groups of six, apart along the first axis at one layer only."""
    draw = rng(seed)
    labels = draw.integers(0, 2, n).astype(np.int64)
    groups = [f"g{i // 6}" for i in range(n)]
    found = [draw.normal(size=(n, d)) for _ in range(layers)]
    found[at][:, 0] += strength * (2 * labels - 1)
    return found, labels, groups


def folds_of(groups, pairs=None, **more):
    pairs = list(range(len(groups))) if pairs is None else pairs
    return folds_by_group(groups, pairs, [str(i) for i in range(len(groups))], **more)


# Folds


def test_no_group_and_no_pair_is_on_two_sides():
    groups = [f"g{i % 7}" for i in range(84)]
    pairs = [i // 2 for i in range(84)]
    folds = folds_of(groups, pairs)
    assert len(folds) == 5
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(84))
    for fold in folds:
        for fit, held in ((fold.train, fold.test), *fold.inner):
            assert not {groups[i] for i in fit} & {groups[i] for i in held}
            assert not {pairs[i] for i in fit} & {pairs[i] for i in held}
        assert all(set(part) <= set(fold.train) for split in fold.inner for part in split)


def test_a_partner_in_the_training_part_would_teach_the_opposite():
    """The two prompts of a pair are alike and labelled against each other: with partners apart, accuracy falls to 0."""
    x = np.repeat(rng().normal(size=(30, 40)), 2, axis=0)
    labels, groups = np.tile([0, 1], 30), [f"g{(i + i // 2) % 2}" for i in range(60)]
    pairs = [i // 2 for i in range(60)]
    leaky = folds_of(groups)
    found, chosen = cross_validate([x], labels, leaky, penalty=10.0)
    assert score(joined(found, chosen), ALONE).accuracy.value < 0.2
    assert folds_of(groups, pairs) == ()  # every partner is on the other side: nothing is left to fit on


def test_one_group_gives_no_folds():
    assert folds_of(["one"] * 10) == ()


def test_an_explicit_fold_keeps_its_sides():
    (fold,) = explicit_fold([0, 1, 2, 3], [4, 5], ["a", "a", "b", "b", "c", "c"], list(range(6)))
    assert (fold.train.tolist(), fold.test.tolist()) == ([0, 1, 2, 3], [4, 5])
    assert {tuple(sorted(held)) for _, held in fold.inner} == {(0, 1), (2, 3)}


# Nothing of the test part is looked at


@pytest.mark.parametrize("what", ["labels", "features"])
def test_layer_and_threshold_come_from_the_training_part_alone(what):
    """Turning the test part over, in labels or in features, changes no layer, no threshold and no other prediction."""
    layers, labels, groups = planted(strength=0.7)
    fold = folds_of(groups)[0]
    found, chosen = cross_validate(layers, labels, [fold], penalty=0.1)
    turned, other = labels.copy(), [x.copy() for x in layers]
    if what == "labels":
        turned[fold.test] = 1 - turned[fold.test]
    else:
        for x in other:
            x[fold.test] = 100.0
    again, same = cross_validate(other, turned, [fold], penalty=0.1)
    assert same == chosen
    for before, after in zip(found, again, strict=True):
        if what == "labels":
            np.testing.assert_array_equal(before.predicted, after.predicted)
            np.testing.assert_array_equal(before.scores, after.scores)
    thresholds = [
        probe_fit._inner_accuracy(x, y, fold, probe_fit._Settings(2, 0.1, False))
        for x, y in ((layers[1], labels), (other[1], turned))
    ]
    assert thresholds[0] == thresholds[1]


def test_a_threshold_of_the_training_part_does_not_follow_the_test_part():
    """Test scores all lie above the training threshold: the choice that looks at them would be right throughout."""
    draw = rng(1)
    labels = np.array([0, 1] * 30)
    x = np.stack([2.0 * labels + draw.normal(size=60) * 0.1, draw.normal(size=60)], axis=1)
    x[40:, 0] += 10.0
    fold = explicit_fold(range(40), range(40, 60), [str(i // 4) for i in range(60)], list(range(60)))
    found, chosen = cross_validate([x], labels, fold, penalty=1.0)
    best = joined(found, chosen)
    result = score(best, ALONE)
    assert result.balanced.value == pytest.approx(0.5)
    assert result.auc.value == pytest.approx(1.0)


@pytest.mark.slow
def test_the_planted_layer_is_chosen_and_read():
    layers, labels, groups = planted()
    found, chosen = cross_validate(layers, labels, folds_of(groups), penalty=0.1)
    assert chosen == [1] * 5
    best = score(joined(found, chosen), Sample(groups, groups, n_draws=100))
    assert best.balanced.value > 0.95
    assert best.balanced.low <= best.balanced.value <= best.balanced.high
    assert all(score(found[layer], ALONE).balanced.value < 0.75 for layer in (0, 2))
    shuffled = [
        score(predict_chosen(layers, rng(seed).permutation(labels), folds_of(groups), chosen, penalty=0.1), ALONE)
        for seed in range(10)
    ]
    assert abs(np.mean([one.balanced.value for one in shuffled]) - 0.5) < 0.12


def test_headline_and_controls_use_the_layer_of_their_own_fold():
    layers, labels, groups = planted()
    folds = folds_of(groups)
    found, _ = cross_validate(layers, labels, folds, penalty=0.1)
    chosen = [0, 1, 2, 1, 0]
    best = joined(found, chosen)
    again = predict_chosen(layers, labels, folds, chosen, penalty=0.1)
    np.testing.assert_array_equal(best.predicted, again.predicted)
    np.testing.assert_allclose(best.scores, again.scores)
    for turn, (fold, layer) in enumerate(zip(folds, chosen, strict=True)):
        np.testing.assert_array_equal(best.predicted[fold.test], found[layer].predicted[fold.test])
        assert (best.fold[fold.test] == turn).all()


# The fit


@pytest.mark.parametrize("d", [6, 100])
def test_the_fit_is_scikit_learns_on_standardised_features(d):
    """With more features than examples it is made in the span of the training examples, and is the same."""
    draw = rng(2)
    x, held = draw.normal(size=(40, d)) * 5 + 3, draw.normal(size=(7, d))
    x[:, -1] = held[:, -1] = 2.0  # a feature that does not vary
    y = (x[:, 0] + draw.normal(size=40) > 3).astype(np.int64)
    scaler = StandardScaler().fit(x)
    plain = LogisticRegression(C=0.1, max_iter=10000, tol=1e-8).fit(scaler.transform(x), y)
    expected = plain.decision_function(scaler.transform(held))
    found = probe_fit._scores(x, y, held, probe_fit._Settings(2, 0.1, False))
    np.testing.assert_allclose(found[:, 0], expected, atol=0.02)
    many = draw.integers(0, 3, 40).astype(np.int64)
    plain = LogisticRegression(C=0.1, max_iter=10000, tol=1e-8).fit(scaler.transform(x), many)
    expected = plain.predict_log_proba(scaler.transform(held))
    np.testing.assert_allclose(
        probe_fit._scores(x, many, held, probe_fit._Settings(3, 0.1, False)), expected, atol=0.02
    )


def test_a_symmetric_probe_turns_with_its_features():
    x, y = rng(3).normal(size=(40, 5)), np.arange(40) % 2
    x[:, 0] += 2.0 * (2 * y - 1)
    turned, flip = x.copy(), np.arange(0, 40, 3)
    turned[flip] *= -1
    other = y.copy()
    other[flip] = 1 - other[flip]
    held = rng(4).normal(size=(6, 5))
    first, second = (
        probe_fit._scores(a, b, held, probe_fit._Settings(2, 0.1, True)) for a, b in ((x, y), (turned, other))
    )
    np.testing.assert_allclose(first, second, atol=1e-6)
    np.testing.assert_allclose(probe_fit._scores(x, y, -held, probe_fit._Settings(2, 0.1, True)), -first, atol=1e-12)


def test_a_class_that_is_not_there_to_be_learned_is_not_predicted():
    x, y = rng().normal(size=(20, 3)), np.arange(20) % 2 * 2
    found = probe_fit._scores(x, y, x, probe_fit._Settings(3, 0.1, False))
    assert np.isneginf(found[:, 1]).all()
    only = probe_fit._scores(x, np.ones(20, np.int64), x, probe_fit._Settings(2, 0.1, False))
    assert (only > 0.0).all() or (only == 0).all()


@pytest.mark.parametrize("d", [6, 80])
def test_directions_point_at_what_was_planted(d):
    x, y = rng(5).normal(size=(60, d)), np.arange(60) % 2
    x[:, 2] += 4.0 * y
    (direction,) = probe_directions(x * 7.0, y, penalty=0.1)
    assert direction[2] == max(direction)
    assert direction[2] > 1.4 * np.sort(np.abs(direction))[-2]
    assert np.linalg.norm(direction) == pytest.approx(1.0)
    many = np.arange(60) % 3
    assert probe_directions(x, many, penalty=0.1).shape == (3, d)
    assert not probe_directions(np.ones((60, d)), y, penalty=0.1).any()


def test_the_threshold_is_the_best_cut():
    scores, labels = np.array([0.1, 0.4, 0.5, 0.9, 2.0]), np.array([0, 1, 0, 1, 1])
    cut = probe_fit._threshold(scores, labels)
    qualities = {c: balanced_accuracy_score(labels, scores > c) for c in np.arange(-0.5, 3, 0.05)}
    assert balanced_accuracy_score(labels, scores > cut) == pytest.approx(max(qualities.values()))


# Scores


def predicted(n=60, columns=1, seed=0):
    draw = rng(seed)
    labels = draw.integers(0, max(2, columns), n)
    scores = draw.normal(size=(n, columns)) + (labels[:, None] if columns == 1 else np.eye(columns)[labels])
    guess = (scores[:, 0] > 0.5).astype(np.int64) if columns == 1 else scores.argmax(1)
    return Predicted(labels.astype(np.int64), guess.astype(np.int64), scores, np.zeros(n, np.int64), np.zeros(n, bool))


def test_scores_are_scikit_learns_weights_included():
    found = predicted()
    weights = np.stack([np.ones(60), rng(1).integers(0, 4, 60).astype(float)])
    draws = [measure(weights) for measure in score(found, ALONE).measures]
    for row, w in enumerate(weights):
        assert draws[0][row] == pytest.approx(np.average(found.predicted == found.labels, weights=w))
        expected = balanced_accuracy_score(found.labels, found.predicted, sample_weight=w)
        assert draws[1][row] == pytest.approx(expected)
        assert draws[2][row] == pytest.approx(roc_auc_score(found.labels, found.scores[:, 0], sample_weight=w))


def test_the_area_for_many_classes_is_each_against_the_rest():
    found = predicted(columns=4)
    expected = np.mean([roc_auc_score(found.labels == i, found.scores[:, i]) for i in range(4)])
    assert score(found, ALONE).auc.value == pytest.approx(expected)


def test_scores_of_different_folds_are_not_compared():
    """A probe of another fold may be shifted; within each fold the order is right."""
    labels = np.array([0, 1, 0, 1])
    scores = np.array([[0.0], [1.0], [10.0], [11.0]])
    found = Predicted(labels, labels, scores, np.array([0, 0, 1, 1]), np.zeros(4, bool))
    assert score(found, ALONE).auc.value == 1.0
    assert roc_auc_score(labels, scores[:, 0]) == 0.75


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_features_that_never_vary_are_at_chance_whatever_the_folds(n_classes, symmetric):
    """Folds of unlike classes: the intercept, or the threshold, would tell them apart from the training part alone."""
    if symmetric and n_classes > 2:
        return
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1] + ([2] * 4 if n_classes == 3 else []))
    groups = np.repeat(["a", "b", "c", "d"], len(labels) // 4).tolist()
    folds = folds_by_group(groups, list(range(len(labels))), groups, n_outer=4)
    same = np.zeros((len(labels), 3)) if symmetric else np.full((len(labels), 3), 7.0)
    found, chosen = cross_validate([same], labels, folds, penalty=0.1, symmetric=symmetric)
    best = joined(found, chosen)
    assert best.tied[best.fold >= 0].all()
    assert score(best, Sample([""] * len(labels), groups, n_draws=50)).balanced.value == pytest.approx(1 / n_classes)


def test_what_tells_the_classes_is_not_tied():
    x, y = rng(3).normal(size=(40, 5)), np.arange(40) % 2
    x[:, 0] += 4.0 * y
    folds = folds_by_group([str(i % 4) for i in range(40)], list(range(40)), [str(i) for i in range(40)], n_outer=4)
    found, chosen = cross_validate([x], y, folds, penalty=0.1)
    assert not joined(found, chosen).tied.any()


def test_what_no_fold_tested_does_not_count():
    found = predicted()
    found.fold[30:] = -1
    half = Predicted(*(getattr(found, one.name)[:30] for one in dataclasses.fields(found)))
    assert score(found, ALONE).accuracy.value == score(half, ALONE).accuracy.value


def test_intervals_are_those_of_the_engine_over_personas_and_questions():
    """Of accuracy: the mean of what is right, over the same clusters and draws, cut at 1."""
    found = predicted()
    first, second = [f"p{i % 6}" for i in range(60)], [f"q{i // 12}" for i in range(60)]
    right = (found.predicted == found.labels).astype(float)
    clusters = Clusters.named(first, first, second)
    known = interval(lambda w: w @ right, clusters, n_draws=200, seed=3)
    accuracy = score(found, Sample(first, second, n_draws=200, seed=3)).accuracy
    assert (accuracy.low, accuracy.high) == pytest.approx((known.low, min(1.0, known.high)), abs=1e-6)
    here = np.arange(0, 60, 2)
    part = Predicted(*(getattr(found, one.name)[here] for one in dataclasses.fields(found)))
    some = Sample(first, second, n_draws=200)
    assert some.among(here) is some.among(here.copy())
    own = Sample([first[i] for i in here], [second[i] for i in here], n_draws=200)
    assert score(part, some, here).accuracy == score(part, own).accuracy


def test_where_all_is_right_the_interval_is_that_of_as_many_successes_as_clusters():
    labels, scores = np.tile([0, 1], 12), np.tile([[-1.0], [1.0]], (12, 1))
    found = Predicted(labels, labels, scores, np.zeros(24, np.int64), np.zeros(24, bool))
    sample = Sample([f"p{i // 4}" for i in range(24)], [f"q{i % 4}" for i in range(24)])
    independent = sample.clusters.independent
    least = float(stats.beta.ppf(0.025, independent, 1))  # Clopper and Pearson
    result = score(found, sample)
    for one in (result.accuracy, result.balanced, result.auc):
        assert (one.value, one.low, one.high) == pytest.approx((1.0, least, 1.0))
    assert 2 < independent < 6


def test_the_mean_over_targets_is_resampled_together():
    several = [score(predicted(seed=seed), ALONE) for seed in range(3)]
    mean = mean_scores(several, ALONE)
    assert mean.accuracy.value == pytest.approx(np.mean([one.accuracy.value for one in several]))
    assert mean.accuracy.high - mean.accuracy.low < np.mean([one.accuracy.high - one.accuracy.low for one in several])


@pytest.mark.slow
@pytest.mark.parametrize("n_personas", [4, 8, 30])
def test_intervals_of_probes_cover_what_they_should(n_personas):
    """Fitted and tested anew on personas and questions drawn anew; the truth is the mean over all of that."""
    found = coverage.coverage_of_probes(n_personas, 100)
    assert min(found) >= 0.86  # .92 less two standard errors
    assert 0.9 <= np.mean(found) <= 0.98


# The study


@pytest.fixture(scope="module")
def world():
    from persona_circuits.circuit.model import load_model

    return load_model(ROOT / "models" / "persona-world")


@pytest.fixture(scope="module")
def people():
    return read_personas(DATASETS / "personas.jsonl")


@pytest.fixture(scope="module")
def found(world, people):
    return load_examples(DATASETS / "pairs_demo.jsonl", world, label="datasets/pairs_demo.jsonl", personas=people)


@pytest.fixture(scope="module")
def study(world, people, found):
    options = ProbeOptions(positions=("persona-end", "prompt-end"), hold_outs=("question",), folds=3, **QUICK)
    return study_probes(world, found, personas=people, options=options)


def cell(study, target, hold_out, position):
    (one,) = [c for c in study.cells if (c.kind, c.hold_out, c.position) == (target, hold_out, position)]
    return one


@pytest.mark.slow
def test_the_shipped_model_turns_a_persona_into_a_preference(study):
    """At the answer's place the preference is there late and is not there early."""
    answer = cell(study, "preference", "question", "prompt-end")
    assert answer.best.balanced.value > 0.9
    assert study.points == ("embedding", "block 3", "block 7", "block 11")
    assert answer.curve[1].balanced.value < 0.75
    assert min(answer.layers) >= 2
    place = {(study.positions[one.position], study.points[one.point]): one for one in study.places}
    assert place["persona-end", "block 3"].geometry.share.low > 0.3
    first, early, last = (place["prompt-end", name] for name in ("embedding", "block 3", "block 11"))
    assert last.cka_persona > early.cka_persona + 0.1
    assert last.cka_answer == pytest.approx(1.0)
    assert np.isnan(first.cka_persona)  # the same token at the same place in every prompt
    assert np.isnan(first.geometry.share.value)
    assert first.rsa_answer is None


def test_controls_are_at_chance_where_nothing_leaks(study):
    """The prompts of a pair without their persona are one prompt: no probe can tell their labels apart."""
    one = cell(study, "preference", "question", "prompt-end")
    assert one.controls.dropped.value == pytest.approx(0.5, abs=0.005)  # one prompt is in two pairs, and counted once
    assert one.controls.length.value == pytest.approx(0.5)
    assert abs(one.controls.shuffled.value - 0.5) < 0.3
    assert cell(study, "preference", "question", "persona-end").controls.dropped is None
    assert not [note for note in study.notes if "length" in note]


def test_prompts_that_are_the_same_so_far_are_one_example_there_and_in_one_fold(study, found):
    """At the persona's end one text is one stream, whatever is asked: seen in training, it would be known by heart."""
    texts = {(one.persona, one.placed.persona) for one in found.examples}
    own = [one for one in study.traits if one.position == "persona-end"]
    assert own
    assert all(one.n <= len(texts) < 64 for one in own)
    assert not [one for one in study.cells if (one.kind, one.position) == ("identity", "persona-end")]
    assert any(f"64 prompts have {len(texts)} different streams" in note for note in study.notes)
    assert (
        "not held out by question at persona-end: fewer than two classes are in two questions (identity)" in study.notes
    )
    both = [cell(study, "preference", "question", name).n for name in ("persona-end", "prompt-end")]
    assert both == [63, 63]  # the same stream is read for other answers; one prompt is in two pairs


def test_one_wording_a_persona_makes_the_control_task_the_probe_itself(study):
    one = cell(study, "identity", "question", "prompt-end")
    assert one.controls.task.value == pytest.approx(one.best.balanced.value)
    assert any("each persona has one wording" in note for note in study.notes)


def test_traits_are_one_probe_each_and_their_mean(study):
    mean = cell(study, "trait", "question", "prompt-end")
    own = [c for c in study.traits if (c.hold_out, c.position) == ("question", "prompt-end")]
    assert mean.n_targets == len(own) > 3
    assert mean.best.balanced.value == pytest.approx(np.mean([one.best.balanced.value for one in own]))
    assert all(one.directions.shape == (1, 144) for one in own)
    assert mean.directions is None


def test_padding_on_one_label_only_is_caught_and_none_is_made_here(world, tmp_path, monkeypatch):
    """Words in front of one label's prompts only, as padding one side puts there: the length control gives it away.

    Prompts of unequal length are run apart, each as its own tokens and nothing else.
    """
    rows = [json.loads(line) for line in (DATASETS / "pairs_demo.jsonl").read_text().splitlines()]
    for row in rows:
        row["clean"] = "The moon looks bright just now.\n" + row["clean"]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run: list[list[int]] = []
    own = activations.trace
    monkeypatch.setattr(activations, "trace", lambda model, ids, at: run.extend(ids.tolist()) or own(model, ids, at))
    uneven = load_examples(path, world)
    options = ProbeOptions(("preference",), ("question",), ("prompt-end",), folds=3, **QUICK)
    study = study_probes(world, uneven, options=options)
    bare = [without_persona(one.placed, world).ids for one in uneven.examples]
    assert len(set(map(len, run))) > 2
    assert set(map(tuple, run)) == {one.placed.ids for one in uneven.examples} | set(bare)
    assert study.cells[0].controls.length.value == 1.0
    assert any("prompt length alone tells it (balanced accuracy 1.00)" in note for note in study.notes)
    assert "32 of 32 pairs have prompts of different length" in study.notes


@pytest.mark.slow
def test_a_second_file_is_held_out_whole_but_for_prompts_seen(world, people, found, tmp_path):
    options = ProbeOptions(("preference",), ("split",), ("prompt-end",), **QUICK)
    lines = [*(DATASETS / "pairs_test.jsonl").read_text().splitlines()[:12]]
    lines += (DATASETS / "pairs_demo.jsonl").read_text().splitlines()[:5]
    path = tmp_path / "other.jsonl"
    path.write_text("\n".join(lines))
    other = load_examples(path, world, label="other")
    study = study_probes(world, found, test=other, options=options)
    assert study.cells[0].n == 24
    assert [source for source, _ in study.sources] == ["datasets/pairs_demo.jsonl", "other"]
    with pytest.raises(OptionError, match="no train and test split"):
        study_probes(world, found, test=found, options=options)  # every prompt has been seen


@pytest.mark.slow
def test_what_cannot_be_held_out_is_said(world, found):
    options = ProbeOptions(("identity",), ("question", "template"), ("prompt-end",), folds=2, **QUICK)
    study = study_probes(world, found, options=options)
    assert "not held out by template: there is only one template" in study.notes
    with pytest.raises(OptionError, match="no probe can be fitted: not held out by template"):
        study_probes(world, found, options=ProbeOptions(("identity",), ("template",), **QUICK))


def test_a_file_without_names_gives_preference_alone(tiny):
    found = load_examples(DATA / "tiny_pairs.json", tiny)
    study = study_probes(tiny, found, options=ProbeOptions(folds=2, **QUICK))
    assert {one.kind for one in study.cells} == {"preference"}
    assert any("does not name its personas" in note for note in study.notes)
    assert all(place.rsa_traits is None for place in study.places)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": ("mood",)}, "--targets: 'mood' is not one of identity, trait, preference"),
        ({"hold_outs": ("layer",)}, "--hold-out: 'layer' is not one of"),
        ({"every": 0}, "--every must be at least 1"),
        ({"folds": 1}, "--folds must be at least 2"),
        ({"repeats": 0}, "--repeats must be at least 1"),
        ({"penalty": 0.0}, "--penalty must be above 0"),
        ({"n_resamples": 3}, "--n-resamples must be at least 100"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(OptionError, match=says):
        ProbeOptions(**options).checked()


# Files and the command line


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("probe")
    write_probes(study, path)
    return path


def test_the_same_study_gives_the_same_files(study, folder, tmp_path):
    write_probes(study, tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    pictures = [f"{name}.png" for name in probe_figures(study)]
    others = ["curves.csv", "geometry.csv", "probe.html", "probe.json", "probe.safetensors", "probes.csv"]
    assert names == sorted([*pictures, *others])
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(FileError):
        write_probes(study, tmp_path / "absent")


def test_files_hold_what_was_measured(study, folder):
    rows = list(csv.DictReader((folder / "probes.csv").open()))
    assert len(rows) == len(study.cells) + len(study.traits)
    first = study.cells[0]
    assert float(rows[0]["balanced.value"]) == pytest.approx(first.best.balanced.value, abs=1e-6)
    assert float(rows[0]["selectivity"]) == pytest.approx(
        first.best.balanced.value - first.controls.task.value, abs=1e-6
    )
    curves = list(csv.DictReader((folder / "curves.csv").open()))
    assert len(curves) == 4 * len(rows)
    arrays = load_file(folder / "probe.safetensors")
    assert arrays["cka"].shape == (8, 8)
    np.testing.assert_allclose(np.diag(arrays["cka"])[[1, 3, 5, 7]], 1.0)
    assert arrays["direction/identity/prompt-end"].shape[1] == 144
    np.testing.assert_allclose(np.linalg.norm(arrays["direction/identity/prompt-end"], axis=1), 1.0, atol=1e-5)
    record = json.loads((folder / "probe.json").read_text())
    assert record["probes"][0]["curve"][0]["after"] == "embedding"
    probes, geometry = probe_tables(study)
    assert [row[5] for row in probes.cells()] == [f"{cell.best.balanced.value:.2f}" for cell in study.cells]
    assert [row[0] for row in geometry.cells()] == list(study.positions)


def test_the_same_seed_gives_the_same_study(world, found):
    options = ProbeOptions(("preference",), ("question",), ("prompt-end",), folds=2, **QUICK)
    first, second = (probe_record(study_probes(world, found, options=options)) for _ in range(2))
    assert first == second


def call(*arguments):
    return CliRunner().invoke(app, ["probe", *map(str, arguments)])


@pytest.mark.slow
def test_the_command_writes_and_prints(tmp_path):
    model = ["--model", DATA / "tiny-gpt2", "--pairs", DATA / "tiny_pairs.json", "--n-resamples", 100, "--folds", 2]
    done = call(*model, "--out", tmp_path / "out", "--targets", "preference", "--hold-out", "question", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert {row["hold_out"] for row in record["probes"]} == {"question"}
    assert (tmp_path / "out" / "probe.html").is_file()
    done = call(*model, "--out", tmp_path / "out", "--positions", "prompt-end", "--hold-out", "question")
    assert "written to" in done.stdout
    assert "no trait probes" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", DATA / "tiny-gpt2"], "--model needs --pairs"),
        (["--targets", "mood"], "'mood' is not one of"),
        (["--personas", DATA / "absent.jsonl"], "absent.jsonl"),
        (["--model", DATA / "tiny-gpt2", "--pairs", DATA / "tiny_pairs.json", "--hold-out", "split"], "--test-pairs"),
        (["--test-pairs", DATA / "tiny_pairs.json"], "does not fit models/persona-world"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_two(arguments, says, tmp_path):
    done = call(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()
