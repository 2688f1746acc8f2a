"""The bound on what was missed: against all edges patched, and its coverage."""

import numpy as np
import pytest
from scipy import stats

from persona_circuits.circuit.attribution import exact
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.missed import missed, most_of
from persona_circuits.circuit.forward import prepare
from persona_circuits.circuit.io import read_circuit
from persona_circuits.circuit.pruning import top_n
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode
from persona_circuits.metrics import METRICS

DIFF = METRICS["logit-diff"]


def test_with_every_edge_outside_checked_it_is_what_exact_patching_says(tiny64, tiny_task):
    rows = batches(encode(tiny_task, tiny64)[:1], 8, "cpu")
    scores, prepared = exact(tiny64, rows, DIFF), [prepare(tiny64, batch) for batch in rows]
    circuit = top_n(scores, 40)
    outside = np.where(circuit.complement().mask, scores.values, 0.0)
    tau = float(np.sort(np.abs(outside[circuit.complement().mask]))[-6])
    found = missed(tiny64, prepared, DIFF, circuit, tau * (1 - 1e-9), 10_000)
    assert found.n_checked == found.n_outside == tiny64.graph.n_edges - len(circuit)
    assert found.n_found == found.most == 6
    assert abs(found.largest) == pytest.approx(np.abs(outside).max())
    assert scores[found.edge] == pytest.approx(found.largest)
    assert missed(tiny64, prepared, DIFF, Circuit.full(tiny64.graph), tau, 5) is None


@pytest.mark.parametrize(("n_all", "n_drawn", "n_true"), [(400, 60, 0), (400, 60, 20), (400, 60, 150), (30, 29, 2)])
def test_it_holds_as_often_as_it_says(n_all, n_drawn, n_true):
    """Over many draws; and one edge more would have been excluded."""
    rng = np.random.default_rng(0)
    found = rng.hypergeometric(n_true, n_all - n_true, n_drawn, size=2000)
    most = np.array([most_of(n_all, n_drawn, k) for k in range(n_drawn + 1)])
    assert (most[found] < n_true).sum() <= stats.binom.ppf(0.999, 2000, 0.05)
    for k in range(0, n_drawn, 7):
        if most[k] < n_all - (n_drawn - k):
            assert stats.hypergeom.cdf(k, n_all, most[k] + 1, n_drawn) <= 0.05
        assert stats.hypergeom.cdf(k, n_all, most[k], n_drawn) > 0.05


def test_a_search_says_it_and_writes_it(tiny, tiny_task, tmp_path):
    options = Options(method="eap", checks=9, metric="logit-diff", threshold=0.2, n_random=0)
    found = discover(tiny, tiny_task, options)
    assert found.missed.n_checked == 9
    assert found.missed.tau == found.tau
    assert found.missed.n_outside == tiny.graph.n_edges - len(found.circuit)
    found.write(tmp_path)
    assert read_circuit(tmp_path).record["missed"] == found.missed.as_dict()
    with pytest.raises(OptionError, match="at least 1, got 0"):
        Options(checks=0).checked()
