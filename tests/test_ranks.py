"""The same command with one process and with two: what they write must be the same."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import DATA, ROOT

from persona_circuits.circuit import parallel


def launch(arguments, n):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    command = [sys.executable, "cli.py"]
    if n > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(n),
            "--master-port",
            str(port),
        ]
        command = [*torchrun, "cli.py"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["--by-span", "--ablation", "mean", "--scores", "new", "--threshold", "0.003"],
        ["--prune", "acdc", "--threshold", "0.05", "--metric", "kl", "--threshold-on", "score"],
    ],
    ids=["scores", "acdc"],
)
def test_two_processes_find_what_one_finds(tmp_path, more):
    from persona_circuits.circuit.io import read_circuit, read_scores

    base = ["discover", "--model", str(DATA / "tiny-gpt2"), "--pairs", str(DATA / "tiny_pairs.json")]
    base += ["--batch-size", "3", "--n-random", "3", "--force", "--json"]
    printed = {}
    for n in (1, 2):
        done = launch([*base, *more, "--out", str(tmp_path / str(n))], n)
        assert done.returncode == 0, done.stderr
        printed[n] = json.loads(done.stdout)
    one, two = (read_circuit(tmp_path / str(n)) for n in (1, 2))
    assert one.circuit == two.circuit
    assert two.record["faithfulness"][0]["m_full"] == pytest.approx(one.record["faithfulness"][0]["m_full"], abs=1e-6)
    for name in ("circuit", "complement"):
        first, second = (record.record["faithfulness"][0][name] for record in (one, two))
        assert second["ratio_of_means"] == pytest.approx(first["ratio_of_means"], abs=1e-5)
        assert second["interval"] == pytest.approx(first["interval"], abs=1e-5)
    assert printed[2]["divergence"] == pytest.approx(printed[1]["divergence"], abs=1e-6)
    if "--by-span" in more:
        scores = [read_scores(tmp_path / str(n) / "scores.safetensors").values for n in (1, 2)]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
        layers = [(tmp_path / str(n) / "span_layers.csv").read_text().splitlines() for n in (1, 2)]
        assert layers[0][0] == layers[1][0]
        assert len(layers[0]) == len(layers[1])


@pytest.mark.slow
def test_two_processes_evaluate_and_report_an_error_once_each(tmp_path):
    base = ["discover", "--model", str(DATA / "tiny-gpt2"), "--pairs", str(tmp_path / "none.jsonl")]
    done = launch(base, 2)
    assert done.returncode != 0
    assert done.stderr.count("error: pair file") == 2
    assert "rank 1: error: pair file" in done.stderr


def test_with_one_process_nothing_is_shared():
    assert parallel.launched() == 1
    assert parallel.is_first()
    assert list(parallel.share([1, 2, 3])) == [1, 2, 3]
    assert parallel.gathered({1: "a"}) == {1: "a"}
    values = np.array([1.0])
    assert parallel.summed(values) is values
