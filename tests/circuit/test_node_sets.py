"""Named sets of nodes: what each carries, against passes that exchange the nodes themselves, and what discover says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import DATA
from typer.testing import CliRunner

from persona_circuits.circuit.evaluation import measured_sets, other_sets
from persona_circuits.circuit.forward import patched_nodes, prepare
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import faults_of
from persona_circuits.circuit.page import read_page
from persona_circuits.circuit.statistics import PairSample
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.cli import app
from persona_circuits.metrics import METRICS

METRIC = METRICS["persona-divergence"]
GROUPS = {"movers": ["a0.h1", "a1.h0", "m1"], "words": ["m0", "logits"]}


@pytest.fixture(scope="module")
def prepared(tiny64, tiny_task):
    return [prepare(tiny64, group) for group in batches(with_swap_rows(encode(tiny_task, tiny64)), 8, "cpu")]


def exchanged(model, prepared, sources):
    """The metric's mean with these sources writing the other prompt's values in a plain pass."""
    chosen = torch.zeros(1, model.graph.n_src, dtype=torch.bool)
    chosen[0, sources] = True
    found = []
    for item in prepared:
        everywhere = torch.ones(1, *item.batch.clean.shape, dtype=torch.bool)
        found.append(METRIC(patched_nodes(model, item, chosen, everywhere)[0], item.targets).double())
    return float(torch.cat(found).mean())


def test_without_and_alone_are_what_exchanging_the_nodes_gives(tiny64, prepared):
    graph = tiny64.graph
    circuit = Circuit.full(graph)
    found = measured_sets(tiny64, prepared, METRIC, circuit, GROUPS, PairSample(), n_random=5)
    full, empty = exchanged(tiny64, prepared, []), exchanged(tiny64, prepared, list(range(graph.n_src)))
    for one in found.sets:
        own = [graph.src_index(name) for name in one.nodes if name != "logits"]
        rest = sorted(set(range(1, graph.n_src)) - set(own))
        without, alone = exchanged(tiny64, prepared, own), exchanged(tiny64, prepared, rest)
        assert one.lost.value == pytest.approx((full - without) / (full - empty), abs=1e-9)
        assert one.alone.value == pytest.approx((alone - empty) / (full - empty), abs=1e-9)
        assert one.of_circuit == pytest.approx(one.lost.value)
        assert one.n_edges == int(circuit.mask[own].sum())
        beaten = sum(value >= one.lost.value for value in one.lost.random)
        assert one.lost.p == pytest.approx((1 + beaten) / (1 + len(one.lost.random)))
        assert len(one.lost.random) == len(one.alone.random) > 0
    assert found.groups == {name: list(nodes) for name, nodes in GROUPS.items()}


def test_random_sets_have_as_many_heads_of_each_layer_and_mlps_of_any():
    graph = Graph(4, 8)
    chosen = tuple(graph.src_index(name) for name in ("input", "a1.h0", "a1.h3", "m1", "m3"))
    found = other_sets(graph, chosen, 50, seed=0)
    assert len({frozenset(one) for one in found}) == 50
    for one in found:
        nodes = [graph.src_nodes[src] for src in one]
        assert sum(node.kind == "mlp" for node in nodes) == 2
        assert [node.layer for node in nodes if node.kind == "head"] == [1, 1]
        assert 0 in one
        assert frozenset(one) != frozenset(chosen)
    mlps = {graph.src_nodes[src].layer for one in found for src in one if graph.src_nodes[src].kind == "mlp"}
    assert mlps == {0, 1, 2, 3}
    assert other_sets(graph, (0,), 5, seed=0) == []


def test_discover_says_what_named_sets_carry(tmp_path):
    held = tmp_path / "groups.json"
    held.write_text(json.dumps({"format": "persona-circuits/groups", "version": 1, "groups": GROUPS}))
    base = ["discover", "--model", str(DATA / "tiny-gpt2"), "--pairs", str(DATA / "tiny_pairs.json"), "--report"]
    base += ["--n-random", "3", "--threshold", "0.02", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*base, "--groups", str(held)])
    assert done.exit_code == 0, done.output
    assert "named sets of nodes" in done.output
    record = json.loads((tmp_path / "run" / "circuit.json").read_text())
    assert faults_of(tmp_path / "run" / "circuit.json") == []
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["node_sets"] == record["node_sets"]
    edges = [item["edge"] for item in record["edges"]]
    for one in record["node_sets"]["sets"]:
        assert one["n_edges"] == sum(edge.split("->")[0] in one["nodes"] for edge in edges)
        assert f"{one['lost']['value']:z.3f}" in done.output
        assert len(one["lost"]["random"]) > 0
        assert np.isfinite(one["alone"]["value"])
    assert read_page(tmp_path / "run" / "page.html")["groups"] == GROUPS
    assert "movers" in (tmp_path / "run" / "graph.svg").read_text()
    bad = tmp_path / "bad.json"
    bad.write_text(held.read_text().replace("a1.h0", "a9.h0"))
    done = CliRunner().invoke(app, [*base, "--groups", str(bad)])
    assert done.exit_code == 2
    assert "a9.h0" in done.output
