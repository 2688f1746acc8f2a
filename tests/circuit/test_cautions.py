"""Where pairs do not tell how faithful a circuit is, that is said, with how many more would."""

import numpy as np
import pytest

from persona_circuits.circuit.evaluation import FaithfulnessReport
from persona_circuits.circuit.evaluation.faithfulness import Faithfulness
from persona_circuits.circuit.statistics import Clusters, Interval, ratio_interval, ratio_intervals


def report(low, high, *, n=8, effect=(1.0, 2.0)):
    shown = None if low is None else Interval(low, high)
    circuit = Faithfulness(10, 0.5, 0.5, shown, 0.5, n)
    ends = Interval(*effect)
    return FaithfulnessReport("kl", "test", n, 1.0, 0.0, circuit, circuit, (), None, None, effect_interval=ends)


def test_a_narrow_interval_needs_no_word():
    assert report(0.4, 0.7).caution == ""
    assert report(0.4, 2.0).caution == ""


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.9), (0.1, 2.1), (-4.3, 4.4)])
def test_a_wide_one_says_how_many_pairs_would_do(low, high):
    says = report(low, high).caution
    assert f"from {low:.2f} to {high:.2f}" in says
    needed = int(says.split("about ")[1].split(" pairs")[0].replace(",", ""))
    assert (high - low) / 2 * (8 / needed) ** 0.5 == pytest.approx(0.25, rel=0.05)
    assert "may be 0" in report(low, high, effect=(-1.0, 2.0)).caution


def test_no_interval_is_said_too():
    assert "the effect itself cannot be told from 0" in report(None, None).caution
    assert report(None, None, n=1).caution == ""


def test_a_ratio_whose_denominator_may_be_zero_has_no_interval():
    """Two pairs of which one has no effect: draws of the other sign would come back from beyond the pole."""
    clusters = Clusters.named([""] * 2, [""] * 2, [""] * 2)
    top, bottom = np.array([3.0, 4.9]), np.array([5.1, 7.2])
    assert ratio_interval(top, bottom, clusters) is None
    assert ratio_intervals(top[None], bottom, clusters) == (None,)
    rng = np.random.default_rng(0)
    weak, strong = rng.standard_normal(12), 3 + rng.standard_normal(12)
    twelve = Clusters.named([""] * 12, [""] * 12, [""] * 12)
    assert ratio_interval(weak, weak - weak.mean() + 0.05, twelve) is None
    found = ratio_interval(0.5 * strong, strong, twelve)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))
