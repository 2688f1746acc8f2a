"""The same data in another unit: a metric times any factor has the same verdicts, shares, intervals and p-values."""

from dataclasses import replace

import numpy as np
import pytest

from persona_circuits.circuit.discovery import Options
from persona_circuits.circuit.discovery.stages import _tau
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import evaluate, measured_pairs, pairs_view, transfer
from persona_circuits.circuit.evaluation.completeness import CompletenessOptions, completeness_report
from persona_circuits.circuit.evaluation.hypothesis import (
    HypothesisOptions,
    equivalence,
    hypothesis_tests,
    independence,
    minimality,
    partial_necessity,
    sufficiency,
)
from persona_circuits.circuit.forward import Rounding, effects, prepare
from persona_circuits.circuit.statistics import Clusters, PairSample
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS
from persona_circuits.models.planted import planted_models

METRIC = METRICS["persona-divergence"]
UNITS = [2.0**-10, 2.0**10]
"""Powers of two: not even the last bit of a number changes."""


@pytest.fixture(scope="module")
def planted():
    case = next(one for one in planted_models() if one.name == "cancel")
    model = case.model()
    rows = with_swap_rows(encode(case.task, model))
    edges = {"input->a1.h0<v>", "a1.h0->logits"}
    return (
        model,
        [prepare(model, batch) for batch in batches(rows, 32, "cpu")],
        Circuit.of(model.graph, edges),
        case.task,
    )


def in_unit(unit):
    return replace(METRIC, function=lambda logits, targets: unit * METRIC.function(logits, targets))


def reports(planted, metric):
    model, prepared, circuit, task = planted
    clusters = Clusters.of(task.pairs)
    source = lambda: prepared  # noqa: E731
    few = CompletenessOptions(n_random=3, n_steps=1, n_candidates=2, n_parts=1)
    values = measured_pairs(model, prepared, metric, circuit)
    return {
        "faithfulness": evaluate(model, source, metric, circuit, PairSample(clusters=clusters), n_random=2).as_dict(),
        "tests": hypothesis_tests(
            model, source, metric, circuit, HypothesisOptions(n_random=19, n_permutations=99), clusters=clusters
        ).as_dict(),
        "completeness": completeness_report(model, source, metric, circuit, few, clusters=clusters).as_dict(),
        "transfer": [one.as_dict() for one in transfer(model, circuit, {"all": source}, metric, n_outside=2)],
        "pairs": pairs_view(values, task.pairs, circuit).as_dict(),
    }


IN_UNITS = {
    *("m", "m_full", "m_empty", "m_circuit", "m_complement", "effect", "rounding", "negligible", "null"),
    *("mean_difference", "mean_effect_of_complement", "mean_effect_of_model", "largest_effect_of_complement"),
    *(
        "random_best",
        "random_median",
        "random_quantile",
        "change",
        "effect_interval",
        "sentence",
        "could_show",
        "notes",
    ),
}


def without_units(value, key=""):
    """Everything that has no unit; texts name numbers that have one."""
    if key in IN_UNITS:
        return None
    if isinstance(value, dict):
        named = value.get("name") in ("sufficiency", "necessity")  # their statistic is a distance
        return {k: without_units(v, "m" if named and k == "statistic" else k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_units(one) for one in value]
    return value


def flat(value, path=""):
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in flat(one, f"{path}.{key}").items()}
    if isinstance(value, list):
        return {k: v for i, one in enumerate(value) for k, v in flat(one, f"{path}.{i}").items()}
    return {path: value}


@pytest.mark.parametrize("unit", UNITS)
def test_every_report_is_the_same_in_another_unit(planted, unit):
    one, other = (flat(without_units(reports(planted, metric))) for metric in (METRIC, in_unit(unit)))
    assert one.keys() == other.keys()
    for path, value in one.items():
        if isinstance(value, float):
            assert other[path] == pytest.approx(value, rel=1e-9, abs=1e-12), path
        else:
            assert other[path] == value, path


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_single_tests_decide_the_same_in_another_unit(unit):
    rng = np.random.default_rng(0)
    model, circuit, random = rng.normal(2, 1, 40), rng.normal(2, 1, 40), rng.normal(2, 1, (99, 40))
    changes, others = rng.exponential(size=8), rng.exponential(size=100)
    names = [str(i) for i in range(8)]

    def outcomes(u):
        return [
            equivalence(u * circuit, u * model, negligible=u * 0.02, tie=u * 1e-4),
            independence(u * circuit, u * model, negligible=u * 0.02, tie=u * 1e-4, n_permutations=99),
            sufficiency(u * circuit, u * model, u * random, tie=u * 1e-4),
            partial_necessity(u * circuit, u * model, u * random, tie=u * 1e-4),
            minimality(u * changes, u * others, names, tie=u * 1e-4)[0],
        ]

    for one, other in zip(outcomes(1.0), outcomes(unit), strict=True):
        assert (one.decision, one.p) == (other.decision, pytest.approx(other.p))


def test_a_share_of_a_tiny_effect_is_a_threshold_and_a_share_of_rounding_is_none(planted):
    model, prepared, *_ = planted
    options = Options(threshold=0.1, threshold_on="share")
    for unit in (1.0, *UNITS):
        metric = in_unit(unit)
        watch = Rounding(model, metric)
        _, whole = effects(watch.watched(prepared), metric)
        assert _tau(options, whole, watch.floor) == pytest.approx(0.1 * abs(whole))
        with pytest.raises(OptionError, match="the same with every edge ablated"):
            _tau(options, 0.5 * watch.floor, watch.floor)


def test_rounding_is_measured_in_the_metrics_unit_and_covers_what_passes_differ_by(planted):
    model, prepared, circuit, _ = planted
    floors = []
    for unit in (1.0, *UNITS):
        watch = Rounding(model, in_unit(unit))
        together = measured_pairs(model, prepared, in_unit(unit), circuit, watch=watch)
        assert 0 < watch.floor < 1e-4 * np.abs(together[0] - together[1]).mean()
        floors.append(watch.floor / unit)
    assert floors == pytest.approx([floors[0]] * 3)
