"""Geometry: each estimate against its definition written out, and against data whose answer is known."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from persona_circuits.persona.probing import (
    centred_by_group,
    grouped_hsic,
    indicators,
    linear_cka,
    persona_distances,
    rank_correlation,
    signal_to_noise,
    unbiased_hsic,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def paired(n_questions, seed=0):
    """Two prompts per question."""
    return np.repeat([f"q{i}" for i in range(n_questions)], 2).tolist(), rng(seed)


def world(seed, *, n_questions=30, n_personas=12, d=5, signal=1.0, noise=2.0):
    """Streams that are question plus persona plus noise, and who asks what."""
    draw = rng(seed)
    persona, question = draw.normal(size=(n_personas, d)) * signal, draw.normal(size=(n_questions, d)) * 3
    who, what, rows = [], [], []
    for q in range(n_questions):
        for p in draw.choice(n_personas, 2, replace=False):
            rows.append(question[q] + persona[p] + draw.normal(size=d) * noise)
            who.append(f"p{p}")
            what.append(f"q{q}")
    return np.array(rows), who, what, persona


def test_centring_takes_each_groups_mean():
    x = rng().normal(size=(5, 3)).astype(np.float32)
    centred = centred_by_group(x, ["a", "b", "a", "b", "a"])
    np.testing.assert_allclose(centred[[0, 2, 4]], x[[0, 2, 4]] - x[[0, 2, 4]].astype(float).mean(0), atol=1e-6)
    np.testing.assert_allclose(centred[[1, 3]].sum(0), 0, atol=1e-6)


def test_unbiased_hsic_is_its_definition():
    """Song et al.'s U-statistic over distinct indices, written out."""
    n = 6
    k, m = (np.cov(rng(seed).normal(size=(n, 4))) for seed in (1, 2))
    two = np.mean([k[i, j] * m[i, j] for i, j in itertools.permutations(range(n), 2)])
    four = np.mean([k[i, j] * m[q, r] for i, j, q, r in itertools.permutations(range(n), 4)])
    three = np.mean([k[i, j] * m[i, q] for i, j, q in itertools.permutations(range(n), 3)])
    assert unbiased_hsic(k, m) == pytest.approx(two + four - 2 * three, abs=1e-12)
    assert unbiased_hsic(k + 7.0, m) == pytest.approx(unbiased_hsic(k, m), abs=1e-10)
    with pytest.raises(ValueError, match="at least 4 rows, got 3"):
        unbiased_hsic(k[:3, :3], m[:3, :3])


def test_grouped_hsic_counts_products_of_two_groups_only():
    groups = ["a", "b", "a", "c"]
    k, m = (rng(seed).normal(size=(4, 4)) for seed in (1, 2))
    apart = np.array([[a != b for b in groups] for a in groups])
    expected = np.mean([k[i, j] * m[i, j] for i, j in itertools.permutations(range(4), 2) if groups[i] != groups[j]])
    assert grouped_hsic(k, m, apart) == pytest.approx(expected)
    assert np.isnan(grouped_hsic(k, m, np.zeros((4, 4), dtype=bool)))


@pytest.mark.parametrize("grouped", [False, True])
def test_cka_knows_rotations_and_scales(grouped):
    groups, draw = paired(15)
    x = draw.normal(size=(30, 6))
    turn = np.linalg.qr(draw.normal(size=(6, 6)))[0]
    groups = groups if grouped else None
    assert linear_cka(x, 3.0 * x @ turn + 5.0, groups) == pytest.approx(1.0)
    stretched = linear_cka(x, x * np.array([100.0, 1, 1, 1, 1, 1]), groups)
    assert 0.2 < stretched < 0.95


def test_cka_after_centring_pairs_is_zero_for_unrelated_streams():
    """The usual estimator is not: it takes the tie of a pair's two prompts for likeness."""
    usual, own = [], []
    for seed in range(100):
        groups, draw = paired(20, seed)
        x, y = draw.normal(size=(40, 10)), draw.normal(size=(40, 8))
        usual.append(linear_cka(centred_by_group(x, groups), centred_by_group(y, groups)))
        own.append(linear_cka(x, y, groups))
    assert abs(np.mean(own)) < 4 * np.std(own) / 10
    assert np.mean(usual) > 0.1


def test_cka_without_variance_that_repeats_is_undefined():
    groups, _ = paired(10)
    flat = np.zeros((20, 3))
    assert np.isnan(linear_cka(flat, rng().normal(size=(20, 3)), groups))


def test_signal_and_noise_are_found_without_bias():
    found, truth = [], []
    for seed in range(80):
        x, who, what, persona = world(seed)
        found.append(signal_to_noise([x], who, what)[0])
        pairs = zip(who[::2], who[1::2], strict=True)
        truth.append(np.mean([((persona[int(a[1:])] - persona[int(b[1:])]) ** 2).sum() / 2 for a, b in pairs]))
    assert np.mean([one.noise for one in found]) == pytest.approx(5 * 4.0, rel=0.05)
    assert np.mean([one.signal for one in found]) == pytest.approx(np.mean(truth), rel=0.1)
    covered = np.mean(
        [one.share.low <= real / (real + 20) <= one.share.high for one, real in zip(found, truth, strict=True)]
    )
    assert covered >= 0.9
    none = [signal_to_noise([x], who, what)[0].signal for x, who, what, _ in (world(i, signal=0.0) for i in range(80))]
    assert abs(np.mean(none)) < 4 * np.std(none) / np.sqrt(80)


def test_signal_and_noise_are_those_of_a_two_way_analysis_of_variance():
    """Against ordinary least squares with dummies, dimension by dimension."""
    x, who, what, _ = world(2)
    design = np.concatenate([indicators(what), indicators(who)], axis=1)
    rest = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    noise = (rest**2).sum() / (len(x) - np.linalg.matrix_rank(design))
    within = x - indicators(what) @ np.linalg.lstsq(indicators(what), x, rcond=None)[0]
    signal = (within**2).sum() / (len(x) - 30) - noise
    first, second = signal_to_noise([x, 2 * x], who, what)
    assert (first.signal, first.noise) == (pytest.approx(signal), pytest.approx(noise))
    assert first.ratio == pytest.approx(signal / noise)
    assert second.share.value == pytest.approx(first.share.value)
    assert second.share.low == pytest.approx(first.share.low)


def test_a_persona_that_is_all_there_is_has_the_whole_share():
    x, who, what, _ = world(1, noise=0.0)
    (found,) = signal_to_noise([x], who, what)
    assert found.share.value == pytest.approx(1.0)
    assert found.share.low == pytest.approx(1.0)
    assert np.isnan(found.ratio) or found.ratio > 1e9


def test_signal_without_freedom_is_undefined():
    x = rng().normal(size=(4, 3))
    (found,) = signal_to_noise([x], ["a", "b", "c", "d"], ["one", "one", "two", "two"])
    assert np.isnan(found.share.value)
    assert found.share.low is None
    assert np.isnan(found.ratio)


def test_distances_between_personas_are_unbiased():
    total, truth = 0.0, 0.0
    for seed in range(100):
        x, who, what, persona = world(seed, n_questions=60, n_personas=4)
        names, found = persona_distances(x, who, what)
        assert names == ("p0", "p1", "p2", "p3")
        assert np.allclose(found, found.T)
        assert np.allclose(np.diag(found), 0)
        centred = persona - persona.mean(0)
        truth += ((centred[:, None] - centred[None]) ** 2).sum(-1)
        total += found
    upper = np.triu_indices(4, 1)
    # Centring by question shrinks every difference alike; noise must not add to the distances.
    ratio = total[upper] / truth[upper]
    assert ratio.std() < 0.1
    x, who, what, _ = world(0, n_questions=60, n_personas=4, signal=0.0)
    many = [persona_distances(*world(i, n_questions=60, n_personas=4, signal=0.0)[:3])[1][upper] for i in range(60)]
    assert abs(np.mean(many)) < 4 * np.std(many) / np.sqrt(60)


def test_a_persona_of_one_question_is_left_out():
    x, who, what, _ = world(0)
    who = ["alone", *who[1:]]
    assert "alone" not in persona_distances(x, who, what)[0]


def test_rank_correlation_is_spearmans_and_its_p_a_permutations():
    points = rng(3).normal(size=(8, 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    noisy = distances + rng(4).normal(size=(8, 8)) * 0.1
    noisy = noisy + noisy.T
    upper = np.triu_indices(8, 1)
    found = rank_correlation(distances, noisy, n_permutations=200, seed=0)
    assert found.value == pytest.approx(spearmanr(distances[upper], noisy[upper]).statistic)
    assert found.p == pytest.approx(1 / 201)
    assert found.n == 8
    other = rng(5).normal(size=(8, 8))
    assert rank_correlation(distances, other + other.T, n_permutations=200, seed=0).p > 0.05
    assert rank_correlation(distances[:3, :3], noisy[:3, :3], n_permutations=10, seed=0) is None
    assert rank_correlation(np.ones((5, 5)), noisy[:5, :5], n_permutations=10, seed=0) is None


def test_indicators_are_one_column_a_name():
    np.testing.assert_array_equal(indicators(["b", "a", "b"]), [[0, 1], [1, 0], [0, 1]])


def test_noise_that_is_rounding_gives_no_ratio():
    """One stream for every prompt of a persona, but for what runs beside do to its last bits."""
    draw = np.random.default_rng(0)
    personas, questions = [f"p{i % 4}" for i in range(24)], [f"q{i // 4}" for i in range(24)]
    same = np.tile(draw.normal(size=(4, 8)), (6, 1)) * (1 + 1e-7 * draw.normal(size=(24, 8)))
    (found,) = signal_to_noise([same], personas, questions)
    assert found.noise > 0
    assert np.isnan(found.ratio)
    (real,) = signal_to_noise([same + 0.1 * draw.normal(size=(24, 8))], personas, questions)
    assert 10 < real.ratio < 1000
