"""Curves, areas and sizes, each against the definition written out slowly."""

import itertools
import json
import math
import re
from copy import copy
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import DATA
from scipy import stats
from tests_reference import Reference
from typer.testing import CliRunner

from persona_circuits.circuit.assessment import CurveOptions, curve_study, read_scorer
from persona_circuits.circuit.attribution import eap, eap_ig, random_scores
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import GraphError, OptionError
from persona_circuits.circuit.evaluation import pairwise
from persona_circuits.circuit.evaluation.curves import (
    SHARES,
    CurveKinds,
    NodeScores,
    Pool,
    area,
    curve_report,
    measured,
    pareto,
    ranked_edges,
    smallest,
    sweep,
)
from persona_circuits.circuit.forward import make_ablation, measure, prepare
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import write_scores
from persona_circuits.circuit.pruning import threshold, top_n
from persona_circuits.circuit.reporting import area_rows, curve_records, curve_rows, size_rows
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Clusters, PairSample, ratio_interval
from persona_circuits.circuit.subgraph import Circuit, to_networkx
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.cli import app
from persona_circuits.metrics import METRICS

METRIC = METRICS["persona-divergence"]
TINY, PAIRS = str(DATA / "tiny-gpt2"), str(DATA / "tiny_pairs.json")


@pytest.fixture(scope="module")
def groups(tiny, tiny_task):
    return batches(with_swap_rows(encode(tiny_task, tiny)), 8, "cpu")


@pytest.fixture(scope="module")
def prepared(tiny, groups):
    return [prepare(tiny, group) for group in groups]


@pytest.fixture(scope="module")
def scores(tiny, groups):
    return eap_ig(tiny, groups, METRIC)


def report(model, prepared, scorers, metric=METRIC, marks=None, seed=0, clusters=None, progress=None, **kinds):
    wanted = CurveKinds(**{"n_random": 0, **kinds})
    more = {"marks": marks, "progress": progress}
    return curve_report(model, lambda: prepared, metric, scorers, wanted, PairSample("all", clusters, seed), **more)


@pytest.fixture(scope="module")
def found(tiny, prepared, scores):
    return report(tiny, prepared, {"eap-ig": scores}, levels=("edge", "node"), n_random=4, seed=3)


def pairs_under(model, prepared, masks, metric=METRIC):
    return pairwise(measure(model, prepared, masks, metric), metric)


def slow_area(values):
    widths = [b - a for a, b in itertools.pairwise(SHARES)]
    return sum(w * (a + b) / 2 for w, a, b in zip(widths, values, values[1:], strict=False))


def slow_f(model, prepared, masks, metric=METRIC):
    """f of every mask, each measured by itself."""
    full, empty = (pairs_under(model, prepared, [c.mask], metric).mean() for c in ends(model.graph))
    return [(pairs_under(model, prepared, [mask], metric).mean() - empty) / (full - empty) for mask in masks]


def ends(graph):
    return Circuit.full(graph), Circuit.empty(graph)


def curve_of(found, level, order, scorer="eap-ig"):
    return next(c for c in found.curves if (c.scorer, c.level, c.order) == (scorer, level, order))


def test_area_is_the_trapezoid():
    values = [0.0, 0.1, 0.3, 0.2, 0.5, 0.7, 0.9, 1.2, 1.1, 1.0]
    assert area(SHARES, values) == pytest.approx(slow_area(values))
    assert area((0.1, 1.0), [1.0, 3.0], log=True) == pytest.approx(2 * math.log(10))
    assert area(SHARES, np.array([values, np.ones(10)])) == pytest.approx([slow_area(values), 0.999])


@pytest.mark.parametrize("signed", [False, True])
def test_the_order_of_edges_is_that_of_top_n(signed):
    graph = Graph(2, 3)
    rounded = Scores(graph, random_scores(graph, seed=2).values.round(1))
    src, dst = ranked_edges(rounded, signed=signed)
    for n in range(1, graph.n_edges + 1, 5):
        mask = np.zeros_like(graph.valid)
        mask[src[:n], dst[:n]] = True
        assert Circuit(graph, mask).without_dead_ends() == top_n(rounded, n, signed=signed)


@pytest.mark.parametrize("order", ["absolute", "signed"])
def test_edge_curves_are_those_of_the_definition(tiny, prepared, scores, found, order):
    curve = curve_of(found, "edge", order)
    n = tiny.graph.n_edges
    circuits = [
        top_n(scores, int(share * n), signed=order == "signed") if int(share * n) else Circuit.empty(tiny.graph)
        for share in SHARES
    ]
    f = slow_f(tiny, prepared, [circuit.mask for circuit in circuits])
    assert [point.asked for point in curve.points] == [int(share * n) for share in SHARES]
    assert [point.n_edges for point in curve.points] == [len(circuit) for circuit in circuits]
    assert [point.n_nodes for point in curve.points] == [len(circuit.nodes()) for circuit in circuits]
    assert [point.faithfulness for point in curve.points] == pytest.approx(f, abs=2e-6)
    assert curve.cpr == pytest.approx(slow_area(f), abs=2e-6)
    assert curve.cmd == pytest.approx(slow_area([abs(1 - value) for value in f]), abs=2e-6)
    assert any(point.n_edges < point.asked for point in curve.points), "no dead end was dropped: nothing was tested"


def test_orders_and_ends_differ_as_they_should(found):
    absolute, signed = (curve_of(found, "edge", order) for order in ("absolute", "signed"))
    assert absolute.cpr != signed.cpr
    for curve in found.curves:
        assert curve.points[-1].faithfulness == 1.0
    assert absolute.points[0].n_edges == 0
    assert absolute.points[0].faithfulness == 0.0


def test_intervals_are_those_of_resampled_pairs(tiny, prepared, scores, found):
    curve = curve_of(found, "edge", "absolute")
    masks = [(top_n(scores, p.asked) if p.asked else Circuit.empty(tiny.graph)).mask for p in curve.points]
    values = pairs_under(tiny, prepared, [*masks, Circuit.full(tiny.graph).mask, Circuit.empty(tiny.graph).mask])
    full, empty = values[-2], values[-1]
    for point, own in zip(curve.points, values, strict=False):
        slow = PairSample(seed=3).ratio(own - empty, full - empty)
        # the interval is wider than the plain bootstrap's, and so is what rounding of m moves its ends by
        assert (point.interval.low, point.interval.high) == pytest.approx((slow.low, slow.high), rel=1e-5, abs=5e-6)

    def shares(weight):
        return [(weight @ own - weight @ empty) / (weight @ full - weight @ empty) for own in values[:10]]

    def cpr(weight):
        return slow_area(shares(weight))

    def cmd(weight):
        return slow_area([abs(1 - value) for value in shares(weight)])

    for interval, number in ((curve.cpr_interval, cpr), (curve.cmd_interval, cmd)):
        per_draw = [number(weight) for weight in widened(number)]
        low, high = np.percentile(per_draw, [2.5, 97.5])
        assert (interval.low, interval.high) == pytest.approx((low, high), rel=5e-5, abs=5e-6)


def widened(number, n=8):
    """Draws of eight pairs, moved away from equal weights until the number spreads as a t interval is wide."""
    equal, step = np.full(n, 1 / n), 1e-6 * (np.eye(n) - 1 / n)
    influence = np.array([(number(equal + one) - number(equal - one)) / 2e-6 for one in step])
    influence -= influence.mean()
    draws = Clusters(n, None, None).draws(seed=3)
    wanted = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * influence.std(ddof=1) / n**0.5
    return equal + wanted / (draws @ influence).std() * (draws - equal)


def test_intervals_are_drawn_over_what_the_pairs_share(tiny, prepared, scores, found):
    clusters = Clusters.named([*"abcdabcd"], [*"efghfghe"], [*"qrstqrst"])
    shared = report(tiny, prepared, {"eap-ig": scores}, clusters=clusters, seed=3)
    assert clusters.by != "pairs"
    assert shared.resampled == clusters.describe()
    own, plain = (curve_of(one, "edge", "absolute") for one in (shared, found))
    assert own.cpr == pytest.approx(plain.cpr)
    assert own.cpr_interval.by == own.cmd_interval.by == own.points[-2].interval.by == clusters.by
    assert own.cpr_interval.low != plain.cpr_interval.low
    masks = [top_n(scores, own.points[-2].asked).mask, *(c.mask for c in ends(tiny.graph))]
    circuit, full, empty = pairs_under(tiny, prepared, masks)
    slow = ratio_interval(circuit - empty, full - empty, clusters, seed=3)
    assert own.points[-2].interval.low == pytest.approx(slow.low, rel=1e-4)
    rows = sweep(tiny, {"all": lambda: prepared}, METRIC, scores, clusters={"all": clusters}).points
    assert rows[-1].intervals["all"].by == clusters.by


@pytest.mark.parametrize("order", ["absolute", "signed"])
def test_node_curves_are_those_of_the_definition(tiny, prepared, scores, found, order):
    graph = tiny.graph
    totals = zip(graph.src_names, scores.values.sum(axis=1).tolist(), strict=True)
    sums = {name: value for name, value in totals if name != "input"}
    ranked = sorted(sums, key=lambda name: -abs(sums[name]) if order == "absolute" else sums[name])
    curve = curve_of(found, "node", order)
    masks = []
    for point in curve.points:
        kept = {"input", "logits", *ranked[: int(point.share * len(ranked))]}
        edges = [edge for edge in graph.edges() if str(edge.src) in kept and str(edge.dst) in kept]
        masks.append(Circuit.of(graph, on_paths(graph, edges)).mask)
    assert [point.n_edges for point in curve.points] == [int(mask.sum()) for mask in masks]
    assert [point.faithfulness for point in curve.points] == pytest.approx(slow_f(tiny, prepared, masks), abs=2e-6)
    assert found.n_units == {"edge": 262, "node": 15}


def on_paths(graph, edges):
    """Those edges that lie on a path from input to logits."""
    net = to_networkx(Circuit.of(graph, edges))
    if not {"input", "logits"} <= set(net):
        return []
    alive = (nx.descendants(net, "input") | {"input"}) & (nx.ancestors(net, "logits") | {"logits"})
    return [edge for edge in edges if {str(edge.src), str(edge.dst)} <= alive]


def test_the_sum_over_outgoing_edges_is_the_node_s_own_attribution(tiny64, tiny_task):
    """The derivative of m when all that a node says is mixed with the corrupt value, in an independent forward."""
    from transformers import GPT2LMHeadModel

    reference = Reference(GPT2LMHeadModel.from_pretrained(TINY))
    batch = batches(encode(tiny_task, tiny64)[:1], 1, "cpu")[0]
    nodes = NodeScores.of(eap(tiny64, [batch], METRICS["logit-diff"])).values
    corrupt = reference.plain(batch.corrupt)
    answers = int(batch.answers[0, 0]), int(batch.wrong_answers[0, 0])
    for index in (2, 5, 9, 14):
        node = str(tiny64.graph.src_nodes[index])
        amount = torch.zeros((), dtype=torch.float64, requires_grad=True)
        alpha = {str(edge): 1.0 - amount for edge in tiny64.graph.edges() if str(edge.src) == node}
        logits = reference.run(batch.clean, corrupt, alpha)["logits"][0]
        slope = torch.autograd.grad(logits[answers[0]] - logits[answers[1]], amount)[0]
        assert float(slope) == pytest.approx(nodes[index], abs=1e-8)
        assert abs(nodes[index]) > 1e-6


def test_all_circuits_are_measured_in_one_call_and_each_once(tiny, prepared, scores, monkeypatch):
    calls = []

    def counted(model, items, masks, metric, **options):
        calls.append([np.packbits(mask).tobytes() for mask in masks])
        return measure(model, items, masks, metric, **options)

    monkeypatch.setattr("persona_circuits.circuit.evaluation.curves.nested.measure", counted)
    told = []
    report(
        tiny,
        prepared,
        {"a": scores, "b": scores},
        n_random=3,
        levels=("edge", "node"),
        marks={"it": top_n(scores, 30)},
        progress=lambda done, total: told.append((done, total)),
    )
    assert len(calls) == 1
    assert len(set(calls[0])) == len(calls[0])
    assert (len(calls[0]), len(calls[0])) in told
    sizes = [np.unpackbits(np.frombuffer(one, dtype=np.uint8)).sum() for one in calls[0]]
    assert sizes == sorted(sizes)


def test_two_names_of_one_scorer_have_one_curve(tiny, prepared, scores):
    both = report(tiny, prepared, {"a": scores, "b": Scores(scores.graph, 2 * scores.values)})
    for order in ("absolute", "signed"):
        a, b = (curve_of(both, "edge", order, name) for name in "ab")
        assert replace(a, scorer="b") == b
    turned = report(tiny, prepared, {"a": scores, "b": Scores(scores.graph, -scores.values)})
    a, b = (curve_of(turned, "edge", "absolute", name) for name in "ab")
    assert replace(a, scorer="b") == b
    assert curve_of(turned, "edge", "signed", "a").cpr != curve_of(turned, "edge", "signed", "b").cpr


def test_the_band_of_random_orders(tiny, prepared, scores, found):
    again = report(tiny, prepared, {}, levels=("edge", "node"), n_random=4, seed=3)
    other = report(tiny, prepared, {}, levels=("edge", "node"), n_random=4, seed=4)
    assert again.bands == found.bands
    assert again.bands != other.bands
    edge = found.bands[0]
    assert (edge.level, edge.n, len(edge.points)) == ("edge", 4, 10)
    assert edge.points[-1].faithfulness.low == edge.points[-1].faithfulness.high == 1.0
    assert edge.points[-1].n_edges == 262
    for point in edge.points:
        assert point.faithfulness.low <= point.faithfulness.mean <= point.faithfulness.high
    alone = [report(tiny, prepared, {}, n_random=n, seed=3).bands[0].cpr for n in (1, 2, 3, 4)]
    draws = [alone[0].mean, *((n + 1) * alone[n].mean - n * alone[n - 1].mean for n in (1, 2, 3))]
    assert (edge.cpr.low, edge.cpr.high) == pytest.approx((min(draws), max(draws)))
    assert edge.cpr.mean == pytest.approx(np.mean(draws))
    assert report(tiny, prepared, {"eap-ig": scores}).bands == ()


def test_marks_are_measured_beside_the_curves(tiny, prepared, scores):
    mark = report(tiny, prepared, {}, marks={"found": top_n(scores, 60)}).marks[0]
    assert (mark.name, mark.n_edges) == ("found", len(top_n(scores, 60)))
    assert mark.share == pytest.approx(mark.n_edges / 262)
    assert mark.faithfulness == pytest.approx(slow_f(tiny, prepared, [top_n(scores, 60).mask])[0], abs=2e-6)


def test_any_ablation_and_any_metric(tiny, groups, scores):
    for name, metric in (("zero", METRICS["kl"]), ("mean", METRICS["logit-diff"])):
        items = [prepare(tiny, group, make_ablation(name, tiny, groups)) for group in groups]
        curve = report(tiny, items, {"eap-ig": scores}, metric, orders=("absolute",)).curves[0]
        masks = [(top_n(scores, p.asked) if p.asked else Circuit.empty(tiny.graph)).mask for p in curve.points]
        slow = slow_f(tiny, items, masks, metric)
        assert [point.faithfulness for point in curve.points] == pytest.approx(slow, abs=1e-5), name
        assert curve.cpr_interval.low <= curve.cpr <= curve.cpr_interval.high


def test_one_pair_and_two_pairs(tiny, tiny_task, scores):
    for n in (1, 2):
        rows = with_swap_rows(encode(tiny_task, tiny)[:n])
        items = [prepare(tiny, batch) for batch in batches(rows, 8, "cpu")]
        found = report(tiny, items, {"eap-ig": scores}, n_random=2)
        curve = found.curves[0]
        assert found.n_pairs == n
        assert curve.points[5].interval is None  # two pairs do not tell the effect itself from 0
        assert (curve.cpr_interval is None) == (curve.cmd_interval is None) == (n == 1)
        assert curve.cpr is not None
        assert area_rows(found, "edge")
        assert smallest(tiny, lambda items=items: items, METRIC, scores, 0.9).faithfulness >= 0.9
        assert sweep(tiny, {"all": lambda items=items: items}, METRIC, scores).points[-1].faithfulness == {"all": 1.0}


def test_where_the_metric_is_constant_nothing_is_defined(tiny, groups, scores):
    same = [prepare(tiny, replace(group, corrupt=group.clean)) for group in groups]
    found = report(tiny, same, {"eap-ig": scores}, levels=("edge", "node"), n_random=2, marks={"m": top_n(scores, 9)})
    for curve in found.curves:
        assert (curve.cpr, curve.cpr_interval, curve.cmd, curve.cmd_interval) == (None, None, None, None)
        assert all(point.faithfulness is None and point.interval is None for point in curve.points)
    assert (found.bands[0].cpr, found.marks[0].faithfulness) == (None, None)
    assert "undefined" in area_rows(found, "edge")[0]
    assert "undefined" in curve_rows(found, "node")[0]
    assert json.dumps(found.as_dict())
    for search in (
        lambda: smallest(tiny, lambda: same, METRIC, scores, 0.9),
        lambda: sweep(tiny, {"all": lambda: same}, METRIC, scores),
    ):
        with pytest.raises(OptionError, match="nothing for a circuit to be faithful to"):
            search()


def nine(scores):
    n = scores.graph.n_edges
    return tuple(
        top_n(scores, int(share * n)) if int(share * n) else Circuit.empty(scores.graph) for share in SHARES[:-1]
    )


def test_circuits_that_are_given_make_a_curve_of_their_own(tiny, prepared, scores, found):
    shuffled = tuple(reversed(nine(scores)))
    own = report(tiny, prepared, {"given": shuffled}, levels=("edge", "node")).curves
    assert [(curve.level, curve.order) for curve in own] == [("edge", "given")]
    same = curve_of(found, "edge", "absolute")
    assert [p.faithfulness for p in own[0].points] == pytest.approx([p.faithfulness for p in same.points], abs=2e-6)
    assert own[0].cpr == pytest.approx(same.cpr, abs=2e-6)


@pytest.mark.parametrize(
    ("says", "scorer", "options"),
    [
        ("gives 8 circuits", lambda scores: nine(scores)[1:], {}),
        ("a circuit of 262 edges stands for the share 0.5", lambda s: (*nine(s)[:8], Circuit.full(s.graph)), {}),
        ("use --level edge", nine, {"levels": ("node",)}),
        ("use --level node", NodeScores.of, {}),
        ("2 layers and 2 heads", lambda _: random_scores(Graph(2, 2), seed=0), {}),
        ("--level 'neuron' is not one of edge, node", lambda s: s, {"levels": ("neuron",)}),
        ("--order 'up' is not one of", lambda s: s, {"orders": ("up",)}),
        ("no level of the curves was given", lambda s: s, {"levels": ()}),
        ("must not be negative, got -1", lambda s: s, {"n_random": -1}),
    ],
)
def test_what_cannot_be_a_curve_is_refused(tiny, prepared, scores, says, scorer, options):
    with pytest.raises(OptionError, match=re.escape(says)):
        report(tiny, prepared, {"x": scorer(scores)}, **options)


def test_node_scores_have_one_number_per_source(scores):
    nodes = NodeScores.of(scores)
    assert math.isnan(nodes.values[0])
    assert nodes.values[3] == pytest.approx(scores.values[3].sum())
    with pytest.raises(ValueError, match="read-only"):
        nodes.values[1] = 0.0
    with pytest.raises(GraphError, match=r"shape \(3,\), expected \(16,\)"):
        NodeScores(scores.graph, np.zeros(3))


def test_a_node_with_a_score_for_input_counts_it(tiny, prepared, scores):
    """MIB's baselines score ``input`` too; it is then a unit like others, and without it nothing works."""
    values = NodeScores.of(scores).values.copy()
    values[0] = 0.0
    curve = report(tiny, prepared, {"x": NodeScores(tiny.graph, values)}, levels=("node",), orders=("absolute",))
    assert [point.asked for point in curve.curves[0].points][-2:] == [8, 16]
    assert curve.curves[0].points[-2].n_edges == 0


@pytest.fixture(scope="module")
def every_size(tiny, prepared, scores):
    """f of the first n edges, for every n."""
    pool = Pool(tiny.graph)
    src, dst = ranked_edges(scores)
    places = []
    for n in range(tiny.graph.n_edges + 1):
        mask = np.zeros_like(tiny.graph.valid)
        mask[src[:n], dst[:n]] = True
        places.append(pool.add(mask))
    return measured(tiny, prepared, METRIC, pool).f[np.array(places)]


@pytest.mark.parametrize("target", [0.05, 0.3, 0.6, 0.9, 0.99, 1.0])
def test_the_smallest_circuit_reaches_the_target_and_one_edge_less_does_not(tiny, prepared, scores, every_size, target):
    found = smallest(tiny, lambda: prepared, METRIC, scores, target)
    assert found.circuit == top_n(scores, found.n)
    assert found.faithfulness == pytest.approx(every_size[found.n], abs=2e-6)
    assert every_size[found.n] >= target - 2e-6
    assert every_size[found.n - 1] < target
    for size in found.tried:
        assert size.faithfulness == pytest.approx(every_size[size.n], abs=2e-6)
        assert size.n >= found.n or size.faithfulness < target
    assert found.relapses == tuple(s.n for s in found.tried if s.n > found.n and s.faithfulness < target)
    assert json.dumps(found.as_dict())


def test_with_a_grid_of_every_size_it_is_the_smallest_of_all(tiny, prepared, scores, every_size):
    for target in (0.3, 0.9):
        found = smallest(tiny, lambda: prepared, METRIC, scores, target, n_grid=5000)
        assert found.n == int(np.argmax(every_size >= target))


@pytest.mark.parametrize(("target", "up_to"), [(0.3, 0.3), (0.8, 0.5), (0.99, 0.2), (0.99, 0.0)])
def test_a_search_among_the_first_edges_reaches_the_target_or_says_that_none_of_them_does(
    tiny, prepared, scores, every_size, target, up_to
):
    """Against every size there is."""
    most = max(50, int(up_to * tiny.graph.n_edges))
    found = smallest(tiny, lambda: prepared, METRIC, scores, target, up_to=up_to)
    assert found.most == most
    assert max(size.n for size in found.tried) <= most
    assert found.reached == bool((every_size[: most + 1] >= target).any())
    if found.reached:
        assert every_size[found.n - 1] < target <= every_size[found.n] + 2e-6
    else:
        assert found.faithfulness == max(size.faithfulness for size in found.tried)
        assert max(size.n for size in found.tried) == most


def test_in_a_large_graph_the_size_is_known_to_half_a_percent(tiny, monkeypatch):
    """f is a known function of the number of edges: it takes few sizes, whatever its form."""
    from persona_circuits.circuit.evaluation.curves import sizes

    scores, model = random_scores(Graph(30, 9), seed=0), copy(tiny)
    model.graph = scores.graph
    for form in (lambda share: share**0.1, lambda share: share, lambda share: share**4, lambda share: share > 0.017):
        monkeypatch.setattr(
            sizes._Search,
            "try_sizes",
            lambda self, new, form=form: self.known.update({n: (n, float(form(n / self.n_edges))) for n in new}),
        )
        found = smallest(model, list, METRIC, scores, 0.8)
        exact = next(n for n in range(1, scores.graph.n_edges + 1) if form(n / scores.graph.n_edges) >= 0.8)
        assert exact <= found.n <= 1.006 * exact
        assert len(found.tried) < 40


def test_without_a_size_the_search_is_for_most_of_the_effect_in_few_edges(tiny, tiny_task, tmp_path):
    """By the files too; what none of them reaches is said with the sizes that were tried."""
    assert Options(threshold=0.1).checked().target_faithfulness is None
    assert Options(prune="acdc").checked().threshold == Options(prune="eap-acdc").checked().threshold == 0.003
    asked = Options(n_random=0, steps=2).checked()
    assert (asked.target_faithfulness, asked.up_to) == (0.8, 0.05)
    assert asked.checked() == asked
    found = discover(tiny, tiny_task, asked)
    assert found.circuit == top_n(found.scores, found.smallest.n)
    assert found.smallest.most == 50
    found.write(tmp_path / "a")
    method = json.loads((tmp_path / "a" / "circuit.json").read_text())["method"]
    said = {"most": 50, "reached": found.smallest.reached, "tried": len(found.smallest.tried)}
    assert (method["prune"], method["target_faithfulness"], method["target_search"]) == ("top-n", 0.8, said)
    stamp = found.record["stamp"]["size"]
    assert stamp == (
        "smallest with faithfulness >= 0.8" if said["reached"] else "largest faithfulness of up to 50 edges"
    )
    out = ["--out", tmp_path / "b", "--model", TINY, "--pairs", PAIRS, "--n-random", "0"]
    done = call("discover", "--force", *out, "--method", "random")
    assert done.exit_code == 0, done.output
    assert "no circuit of up to 50 edges reaches f 0.8 on the pairs searched on; the best of them, f" in done.stdout
    assert "nested circuits by |score|, on the pairs searched on" in done.stdout
    target = json.loads((tmp_path / "b" / "summary.json").read_text())["target"]
    assert (target["reached"], target["confirmed"], target["tried"][-1]["n"]) == (False, None, 50)


def test_the_search_tries_few_sizes_and_the_same_circuit_once(tiny, prepared, scores, monkeypatch):
    from persona_circuits.circuit.evaluation.curves import sizes

    seen = []

    def counted(model, items, metric, pool, **options):
        seen.extend(pool.circuit(place) for place in range(2, len(pool)))
        return measured(model, items, metric, pool, **options)

    monkeypatch.setattr(sizes, "measured", counted)
    found = smallest(tiny, lambda: prepared, METRIC, scores, 0.6)
    assert len(found.tried) < 25
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("target", [0.0, -0.5, 1.01, math.nan])
def test_impossible_targets(tiny, prepared, scores, target):
    with pytest.raises(OptionError, match="above 0 and at most 1"):
        smallest(tiny, lambda: prepared, METRIC, scores, target)


def test_a_planted_circuit_is_found_at_its_own_size():
    from persona_circuits.circuit.attribution import exact
    from persona_circuits.models.planted import planted_models

    planted = next(one for one in planted_models() if one.name == "two-hop")
    model = planted.model()
    groups = batches(with_swap_rows(encode(planted.task, model)), 8, "cpu")
    items = [prepare(model, group) for group in groups]
    truth = Circuit.of(model.graph, planted.true_edges)
    found = smallest(model, lambda: items, METRIC, exact(model, groups, METRIC), 0.95)
    assert found.circuit == truth
    assert found.n == len(truth)


def test_a_sweep_is_nested_thresholds_with_their_front(tiny, prepared, scores):
    parts = {"a": lambda: prepared[:1], "b": lambda: prepared[1:]}
    found = sweep(tiny, parts, METRIC, scores, n_thresholds=12)
    before = Circuit.empty(tiny.graph)
    full, empty = (pairs_under(tiny, prepared[:1], [c.mask]).mean() for c in ends(tiny.graph))
    for point in found.points:
        circuit = threshold(scores, point.tau)
        assert not (before.mask & ~circuit.mask).any()
        assert (point.n_edges, point.n_nodes) == (len(circuit), len(circuit.nodes()))
        assert point.asked == int((np.abs(scores.values[tiny.graph.valid]) >= point.tau).sum())
        assert point.share == pytest.approx(point.tau / abs(full - empty))
        for name, part in (("a", prepared[:1]), ("b", prepared[1:])):
            assert point.faithfulness[name] == pytest.approx(slow_f(tiny, part, [circuit.mask])[0], abs=2e-6)
        before = circuit
    assert len({point.n_edges for point in found.points}) == len(found.points)
    assert found.points[-1].faithfulness == {"a": 1.0, "b": 1.0}
    for point in found.points:
        loss = abs(1 - point.faithfulness["a"])
        beaten = any(
            other.n_edges <= point.n_edges and abs(1 - other.faithfulness["a"]) < loss for other in found.points
        )
        assert point.on_front != beaten
    assert found.n_pairs == {
        name: len(pairs_under(tiny, part(), [Circuit.full(tiny.graph).mask])[0]) for name, part in parts.items()
    }


@pytest.mark.parametrize(
    ("costs", "losses", "front"),
    [
        ([1, 2, 3], [0.9, 0.5, 0.1], {0, 1, 2}),
        ([1, 2, 3], [0.5, 0.5, 0.6], {0}),
        ([2, 2, 1], [0.3, 0.2, 0.9], {1, 2}),
        ([2, 2], [0.3, 0.3], {0, 1}),
        ([], [], set()),
    ],
)
def test_pareto(costs, losses, front):
    assert pareto(costs, losses) == front


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("--threshold and --target-faithfulness", {"threshold": 0.1}),
        ("--top-n and --target-faithfulness", {"top_n": 5, "prune": "top-n"}),
        ("--prune greedy chooses others", {"prune": "greedy"}),
        ("--prune acdc chooses others", {"prune": "acdc"}),
        ("above 0 and at most 1", {"target_faithfulness": 1.5}),
    ],
)
def test_a_target_stands_alone(says, options):
    with pytest.raises(OptionError, match=says):
        Options(**{"target_faithfulness": 0.9, **options}).checked()
    with pytest.raises(OptionError, match="--sweep puts edges in the order of their scores"):
        Options(prune="acdc", sweep=True).checked()


def split_task(tiny_task):
    pairs = tuple(replace(p, split="train" if i < 5 else "test") for i, p in enumerate(tiny_task.pairs))
    return replace(tiny_task, pairs=pairs)


def test_discovery_by_target_says_whether_held_out_pairs_confirm_it(tiny64, tiny_task):
    task = split_task(tiny_task)
    found = discover(tiny64, task, Options(target_faithfulness=0.9, n_random=1, sweep=True))
    assert found.circuit == found.smallest.circuit == top_n(found.scores, found.smallest.n)
    assert found.reports[0].circuit.ratio_of_means == pytest.approx(found.smallest.faithfulness, abs=1e-6)
    assert found.confirmed is (found.reports[1].circuit.ratio_of_means >= 0.9)
    method = found.record["method"]
    assert (method["prune"], method["top_n"], method["threshold"]) == ("top-n", found.smallest.n, None)
    assert method["target_faithfulness"] == 0.9
    assert list(found.sweep.n_pairs.items()) == [("train", 5), ("test", 3)]
    seen = discover(tiny64, tiny_task, Options(target_faithfulness=0.5, n_random=0))
    assert seen.confirmed is None


def test_a_study_scores_on_one_split_and_measures_on_the_other(tiny, tiny_task):
    task = split_task(tiny_task)
    study = curve_study(tiny, task, CurveOptions(scorers=("eap", "random"), n_random=2))
    train = batches(with_swap_rows(encode(task.of_split("train"), tiny)), 32, "cpu")
    np.testing.assert_allclose(study.scores["eap"].values, eap(tiny, train, METRIC).values, atol=1e-9)
    assert (study.report.split, study.report.n_pairs) == ("test", 3)
    assert (study.about["scored_on"], study.about["held_out"]) == ("train", True)
    assert [band.n for band in study.report.bands] == [2]
    rows = curve_records(study.report)
    assert len(rows) == 2 * 10 + 10
    assert {row["order"] for row in rows} == {"absolute", "signed", "random"}
    assert size_rows(study.report, "edge")[0][2:] == tuple(str(int(share * 262)) for share in SHARES[:-1])
    everything = curve_study(tiny, tiny_task, CurveOptions(scorers=("eap",), metric="logit-diff", ablation="mean"))
    assert everything.about["held_out"] is False


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("--scorers 'eapp' is not one of eap, .* or a file", {"scorers": ("eapp",)}),
        ("--metric kl has zero gradient", {"metric": "kl"}),
        ("--n-random must be at least 1", {"n_random": 0}),
        ("--ablation 'none'", {"ablation": "none"}),
        ("two scorers are called eap", {}),
    ],
)
def test_options_of_a_study(tiny, tiny_task, scores, says, options):
    with pytest.raises(OptionError, match=says):
        curve_study(tiny, tiny_task, CurveOptions(**options), given={"eap": scores})


def test_scorers_that_do_not_fit_are_refused_before_any_work(tiny, tiny_task, monkeypatch):
    monkeypatch.setattr(
        "persona_circuits.circuit.assessment.curves.encode", lambda *_, **__: pytest.fail("work was begun")
    )
    with pytest.raises(OptionError, match="scorer mine is of a model with 2 layers"):
        curve_study(tiny, tiny_task, CurveOptions(), given={"mine": random_scores(Graph(2, 2), seed=0)})
    with pytest.raises(OptionError, match="names no scorer"):
        curve_study(tiny, tiny_task, CurveOptions(scorers=()))


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_command_writes_tables_and_figures(tmp_path, scores):
    write_scores(scores, tmp_path / "mine.safetensors")
    run, out = tmp_path / "run", tmp_path / "curves"
    options = ["--model", TINY, "--pairs", PAIRS]
    assert call("discover", *options, "--out", run, "--threshold", "0.05").exit_code == 0
    args = ["--scorers", f"eap,random,{tmp_path / 'mine.safetensors'}", "--level", "both", "--n-random", "2"]
    done = call("curves", run, *args, "--out", out)
    assert done.exit_code == 0, done.output
    for part in (
        "run run",
        "mine",
        "random (2)",
        "CPR",
        "circuit",
        "not held out",
        "262 edges",
        "15 nodes",
        "medians of the pairs' own ratios",
        "intervals over ",
    ):
        assert part in done.stdout
    figures = [f"faithfulness-{level}{left}.png" for level in ("edge", "node") for left in ("-left", "")]
    written = ["curves.csv", "curves.html", "curves.json", *figures, "index.html", "scores-eap.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == written
    kept = json.loads((out / "curves.json").read_text())
    assert {curve["scorer"] for curve in kept["curves"]} == {"run run", "eap", "mine"}
    assert kept["marks"][0]["name"] == "circuit"
    again = tmp_path / "again"
    assert call("curves", run, *args, "--out", again).exit_code == 0
    for name in written:
        assert (again / name).read_bytes() == (out / name).read_bytes(), name
    assert isinstance(read_scorer(run), Scores)


def test_the_scorer_of_a_run_is_drawn_once_wherever_its_pairs_are_named(tmp_path):
    run, copy, fewer = tmp_path / "run", tmp_path / "copy.json", tmp_path / "fewer.json"
    text = (DATA / "tiny_pairs.json").read_text()
    copy.write_text(text)
    fewer.write_text(json.dumps({**(whole := json.loads(text)), "prompts": whole["prompts"][:-1]}))
    options = ["--model", TINY, "--pairs", PAIRS, "--n-random", "1", "--threshold", "0.05", "--method", "eap"]
    assert call("discover", *options, "--out", run).exit_code == 0

    def scorers(*more):
        done = call("curves", run, "--scorers", "eap", "--json", *more, "--out", tmp_path / "curves")
        assert done.exit_code == 0, done.output
        return {curve["scorer"] for curve in json.loads(done.stdout)["curves"]}

    assert scorers() == scorers("--pairs", copy) == {"run run"}
    assert scorers("--pairs", fewer) == {"run run", "eap"}


def test_the_command_prints_json(tmp_path):
    done = call(
        "curves",
        "--model",
        TINY,
        "--pairs",
        PAIRS,
        "--scorers",
        "eap",
        "--order",
        "signed",
        "--json",
        "--out",
        tmp_path,
    )
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert [(curve["scorer"], curve["order"]) for curve in printed["curves"]] == [("eap", "signed")]
    assert printed["bands"] == []


def test_discover_by_target_with_a_sweep(tmp_path):
    out = tmp_path / "x"
    options = ["--model", TINY, "--pairs", PAIRS, "--n-random", "1", "--out", out]
    done = call("discover", *options, "--target-faithfulness", "0.8", "--sweep")
    assert done.exit_code == 0, done.output
    assert re.search(r"target      f >= 0.8: 0\.\d+|1\.\d+", done.stdout)
    assert "nested circuits" in done.stdout
    assert {"sweep.csv", "sweep.html", "sweep.json", "sweep.png"} <= {path.name for path in out.iterdir()}
    target = json.loads((out / "summary.json").read_text())["target"]
    assert target["faithfulness"] >= 0.8
    assert target["confirmed"] is None
    assert call("validate", out / "circuit.json").exit_code == 0


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("is not one of eap", ["curves", "--scorers", "nothing"]),
        ("needs --pairs", ["curves", "--model", TINY]),
        ("cannot be read", ["curves", "no-such-run"]),
        ("no JSON is there", ["curves", "--scorers", str(DATA / ".." / "circuit")]),
        ("--target-faithfulness", ["discover", "--target-faithfulness", "2"]),
        ("--threshold and --target", ["discover", "--target-faithfulness", "0.9", "--threshold", "0.1"]),
    ],
)
def test_bad_input_ends_with_two(says, arguments):
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert re.search(says, done.stderr), done.stderr
