"""Speed is measured elsewhere; here stands that the right things are measured, counted, and written down.

The meter is held to allocations and pauses of known size, the paper estimates to a count of the
operations that torch really runs, and every command of ``benchmarks/`` runs on the smallest shapes.
"""

import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from test_cli import call, fails
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from persona_circuits.circuit.attribution import eap, eap_ig
from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.profiling import (
    BenchOptions,
    Cost,
    acdc_sample,
    bare_forward,
    bare_passes,
    bench,
    cost_of,
    costs_of,
    held_bytes,
    one_batch,
    peak_bytes,
    process_peak_bytes,
    seconds_of,
)
from persona_circuits.circuit.profiling import benchmark as bench_module
from persona_circuits.circuit.task import batches, encode
from persona_circuits.metrics import METRICS

sys.path.insert(0, str(ROOT / "benchmarks"))

import estimate
import formats
import gpu
import growth
import methods
import natural
import tables
from shapes import GPT2, GPU_SHAPES, GROUPED, SMALL, Shape, rows_of
from steps import AcdcRun, all_edges_in_order, circuit_sizes, full_forwards, kl_threshold, many_circuits, one_circuit

LOGIT_DIFF = METRICS["logit-diff"]
MEGA = 1_000_000
TINY, PAIRS = DATA / "tiny-gpt2", DATA / "tiny_pairs.json"


# --- the meter -----------------------------------------------------------------------------------


def test_the_peak_is_what_is_held_at_one_time():
    """4 + 8 MB together, 4 freed, 2 more: the peak is 12, whatever is allocated in all."""

    def step():
        a = torch.empty(MEGA)
        b = torch.empty(2 * MEGA)
        del a
        c = torch.empty(MEGA // 2)
        return b, c

    step()
    assert peak_bytes(step, "cpu") == 12 * MEGA


def test_the_peak_sees_what_autograd_keeps():
    weight = torch.ones(1000, 1000)

    def forward(grad):
        x = torch.ones(1000, 1000, requires_grad=grad)
        for _ in range(4):
            x = (x @ weight).tanh()
        return x

    kept, dropped = (peak_bytes(lambda grad=grad: forward(grad), "cpu") for grad in (True, False))
    assert kept >= 5 * 4 * MEGA
    assert dropped <= 3 * 4 * MEGA


def test_what_was_there_before_does_not_count():
    before = torch.empty(10 * MEGA)
    assert peak_bytes(lambda: torch.empty(MEGA), "cpu") == 4 * MEGA
    assert len(before) == 10 * MEGA


def test_time_is_wall_time_and_the_median_the_middle():
    assert seconds_of(lambda: time.sleep(0.05), "cpu") >= 0.05
    assert Cost((3.0, 1.0, 2.0)).median == 2.0


def test_rounds_are_taken_in_turn():
    calls = []
    costs = costs_of({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, "cpu", rounds=2, memory=False)
    assert calls == ["a", "b"] * 3  # one round to warm up
    assert [len(cost.seconds) for cost in costs.values()] == [2, 2]
    assert costs["a"].peak_bytes is None
    assert cost_of(lambda: torch.empty(MEGA), "cpu", rounds=1).peak_bytes == 4 * MEGA


def test_the_process_holds_more_than_this():
    assert process_peak_bytes() > 50 * MEGA


def test_a_shared_storage_is_held_once():
    x = torch.empty(MEGA)
    assert held_bytes([x, x[: MEGA // 2], x.view(1000, 1000), torch.empty(MEGA)]) == 8 * MEGA


# --- what is measured ----------------------------------------------------------------------------


def test_the_floor_is_two_forwards_and_a_backward(tiny, tiny_task):
    """Its gradient is the embeddings' of the metric, against central differences; and it counts three passes."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64).eval().requires_grad_(False)
    batch = batches(encode(tiny_task, tiny), 4, "cpu")[-1]
    gradient = bare_passes(network, batch)()
    embedded = network.get_input_embeddings()(batch.clean).detach()
    rng = torch.Generator().manual_seed(0)
    direction = torch.randn(embedded.shape, generator=rng, dtype=torch.float64)

    def value(step):
        logits = network(inputs_embeds=embedded + step * direction).logits[:, -1]
        right, wrong = (logits.gather(1, ids) for ids in (batch.answers, batch.wrong_answers))
        return (right.mean(1) - wrong.mean(1)).sum().item()

    numeric = (value(1e-5) - value(-1e-5)) / 2e-5
    assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-6)
    passes = []
    handle = network.transformer.h[0].register_forward_hook(lambda *_: passes.append(1))
    bare_passes(network, batch)()
    assert len(passes) == 2
    bare_forward(network, batch)()
    assert len(passes) == 3
    handle.remove()


@pytest.mark.parametrize("graph", [Graph(12, 12), Graph(4, 4), Graph(2, 2, parallel=True)])
def test_the_sample_is_acdcs_order_with_holes_of_equal_width(graph):
    order = [graph.edge(s, d) for d in reversed(range(graph.n_dst)) for s in reversed(range(graph.n_reaching(d)))]
    places = {edge: i for i, edge in enumerate(order)}
    sample = acdc_sample(graph, 24, runs=4)
    found = [places[edge] for edge in sample]
    assert found == sorted(set(found))
    assert len(found) == 24
    gaps = [b - a for a, b in itertools.pairwise(found) if b - a > 1]
    assert len(gaps) == 3
    assert max(gaps) - min(gaps) <= 2
    assert acdc_sample(graph, 10**9) == order


def test_one_batch_is_the_largest_group_of_a_length(tiny, tiny_task):
    groups = batches(encode(tiny_task, tiny), 100, "cpu")
    batch = one_batch(tiny, tiny_task, 100)
    assert len(batch) == max(map(len, groups))
    assert len(one_batch(tiny, tiny_task, 2)) == 2


def test_a_report_of_the_tiny_model(tiny_task):
    stages = []
    options = BenchOptions(rounds=2, edges=40, acdc_edges=12)
    report = bench(str(TINY), tiny_task, options, device="cpu", stage=stages.append)
    floor, scores, ig, forward, circuit = report.lines
    assert floor.ratio == forward.ratio == 1.0
    assert scores.ratio == pytest.approx(scores.cost.median / floor.cost.median)
    assert ig.ratio == pytest.approx(ig.cost.median / (5 * floor.cost.median))
    assert circuit.ratio == pytest.approx(circuit.cost.median / forward.cost.median)
    assert circuit.what == "one random circuit of 40 edges"
    assert all(len(line.cost.seconds) == 2 and line.cost.peak_bytes > 0 for line in report.lines)
    weights = sum(w.nbytes for w in _weights())
    assert report.weights["bare"] == pytest.approx(weights, rel=0.01)
    assert report.acdc.n_edges == 12
    assert report.acdc.of_edges == 262
    assert report.acdc.evaluated >= 12
    assert report.acdc.projected == pytest.approx(report.acdc.seconds / 12 * 262)
    assert stages == [f"loading {TINY}", "EAP, EAP-IG, one circuit", "ACDC", "bare passes"]
    json.dumps(report.as_dict(), allow_nan=False)


def _weights():
    from safetensors.torch import load_file

    return load_file(TINY / "model.safetensors").values()


@pytest.mark.parametrize(
    "options",
    [{"n_pairs": 0}, {"rounds": 0}, {"steps": 0}, {"edges": 0}, {"candidates": 0}, {"acdc_edges": -1}, {"share": 0.0}],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(OptionError, match="must"):
        BenchOptions(**options).checked()


def test_the_command(tmp_path):
    run = ["bench", "--model", TINY, "--pairs", PAIRS, "--rounds", "1", "--device", "cpu"]
    done = call(*run, "--acdc-edges", "12", "--out", tmp_path / "bench.json")
    assert done.exit_code == 0, done.output
    for part in (
        "two forwards and one backward, bare",
        "EAP, all 262 edges",
        "5 floors",
        "12 of 262 edges",
        "circuits/s",
    ):
        assert part in done.stdout
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["format"] == "persona-circuits/bench"
    assert record["machine"]["threads"] == torch.get_num_threads()
    printed = json.loads(call(*run, "--acdc-edges", "0", "--json").stdout)
    assert printed["acdc"] is None
    assert printed["model"] == record["model"]


def test_the_commands_bad_input(tmp_path):
    fails("--rounds must be at least 1", "bench", "--rounds", "0")
    fails("needs --pairs", "bench", "--model", TINY)
    fails("does not exist", "bench", "--model", "/no/such/model", "--pairs", PAIRS)
    (tmp_path / "bad.jsonl").write_text("{}\n")
    fails("fault", "bench", "--model", TINY, "--pairs", tmp_path / "bad.jsonl")


def test_no_pairs_are_no_batch(tiny, tiny_task):
    from dataclasses import replace

    with pytest.raises(TaskError, match="no pairs"):
        one_batch(tiny, replace(tiny_task, pairs=()), 8)


def test_processors_have_names():
    assert bench_module.machine("cpu")["name"]


# --- shapes and steps ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [GPT2, GROUPED, SMALL, *GPU_SHAPES.values()], ids=lambda shape: shape.name)
def test_shapes_build_and_their_pairs_differ(shape):
    small = shape.tiny()
    model, batch = small.model(), small.batch()
    assert model.graph == Graph(2, 2)
    differs = (batch.clean != batch.corrupt).any(dim=0)
    assert not differs[:3].any()
    assert differs.any()
    assert not differs[-1]
    assert (batch.answers != batch.wrong_answers).all()
    assert rows_of(batch)[1]["clean"] == batch.clean[1].tolist()
    np.testing.assert_allclose(model.logits(batch.clean), small.network()(batch.clean).logits, atol=1e-5)


def test_the_steps_measure_circuits(monkeypatch):
    """The full forwards run every layer for every edge, and many circuits are as many as they say."""
    import steps as module

    from persona_circuits.circuit.forward import patched_logits, prepare

    model = SMALL.model()
    item = prepare(model, SMALL.batch())
    seen = []

    def spy(model, item, kept):
        seen.append(kept)
        return patched_logits(model, item, kept)

    monkeypatch.setattr(module, "patched_logits", spy)
    edges = acdc_sample(model.graph, 6)
    full_forwards(model, item, edges)()
    assert len(seen) == 6
    for kept, edge in zip(seen, edges, strict=True):
        assert not kept[0][model.graph.index(edge)]
        assert not kept[0, 0, 0]
        assert int(kept.sum()) == model.graph.n_edges - 2
    seen.clear()
    assert one_circuit(model, item, 100)().shape == (1, *item.clean.logits.shape)
    assert int(seen[0].sum()) == 100
    sizes = circuit_sizes(model)
    assert many_circuits(model, item, sizes, 2)().shape == (2 * len(sizes), len(item.batch))
    run = AcdcRun(model, item, all_edges_in_order(model), kl_threshold(item, 0.01))
    assert {str(edge) for edge in run().circuit.edges()} <= run.kept(run())


# --- tables --------------------------------------------------------------------------------------


def _result(name, median, **extra):
    stats = {"median": median, "min": median / 2, "max": 2 * median, "rounds": 3}
    machine = {"device": "cpu", "name": "a processor", "cores": 4, "threads": 2, "versions": {"torch": "9.9"}}
    info = {"name": name, "what": f"what {name} is", "shape": "a shape", "machine": machine, "per": 1}
    return {"stats": stats, "extra_info": info | extra}


def test_the_section_of_the_cpu_suite():
    results = {
        "benchmarks": [
            _result("floor", 2.0, peak_bytes=5 * MEGA),
            _result("EAP", 3.0, beside="floor", ratios=[1.6, 1.2, 1.5], agreement="close"),
            _result("circuits", 100.0, beside="forward", ratios=[0.5], per=100),
        ]
    }
    text = tables.bench_section(results)
    assert "a processor (cpu), 2 threads of 4 cores; torch 9.9" in text
    assert "**a shape**" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| what")]
    assert [row[4] for row in rows] == ["", "1.50 × floor (1.20 to 1.60)", "0.50 × forward"]
    assert rows[0][1:4] == ["2", "1 to 4", "3"]
    assert rows[0][5] == "5.0"
    assert rows[2][1:3] == ["1", "0.5 to 2"]
    assert "close" in rows[1][6]


def test_a_section_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- a:begin -->\nold\n<!-- a:end -->\nbetween\n<!-- b:begin -->\n<!-- b:end -->\nafter\n")
    tables.replace_section(path, "a", "new\n")
    tables.replace_section(path, "a", "new")
    assert path.read_text() == (
        "before\n<!-- a:begin -->\nnew\n<!-- a:end -->\nbetween\n<!-- b:begin -->\n<!-- b:end -->\nafter\n"
    )
    with pytest.raises(tables.FileError, match="no section"):
        tables.replace_section(path, "c", "x")
    with pytest.raises(tables.FileError, match="cannot be read"):
        tables.replace_section(tmp_path / "none.md", "a", "x")


def test_bad_results_are_said(tmp_path, capsys):
    (tmp_path / "empty.json").write_text('{"benchmarks": []}')
    for name in ("none.json", "empty.json"):
        assert tables.main([str(tmp_path / name), "--readme", str(tmp_path / "README.md")]) == 2
    assert "no benchmark was run" in capsys.readouterr().err


def test_the_readme_has_a_place_for_every_table(tmp_path):
    path = tmp_path / "README.md"
    path.write_text((ROOT / "benchmarks" / "README.md").read_text())
    for name in ("bench", "bench-gpu", "bench-growth", "bench-estimate"):
        tables.replace_section(path, name, "x")


# --- estimates -----------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts the operations of matrix products as torch runs them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _counted(step):
    with Operations() as found:
        step()
    return found.count


SHAPES = [
    Shape("grouped", "llama", 4, 6, 48, 80, 100, kv_heads=2, pairs=1, tokens=12),
    Shape("plain", "gpt2", 5, 4, 48, 80, 100, pairs=1, tokens=9),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name)
def counted(request):
    """A shape, its architecture for the estimate, and a batch whose prompts differ from the first token on."""
    shape = request.param
    groups = shape.kv_heads or shape.heads
    arch = estimate.Architecture(
        shape.name,
        shape.layers,
        shape.heads,
        groups,
        shape.d_model // shape.heads,
        shape.d_model,
        shape.d_mlp,
        shape.vocab,
        gated=shape.family == "llama",
    )
    batch = shape.batch()
    batch.corrupt[:, 0] = (batch.clean[:, 0] + 1) % shape.vocab
    return shape, arch, batch


def test_the_floors_operations_are_those_that_torch_counts(counted):
    shape, arch, batch = counted
    network = shape.network()
    network.set_attn_implementation("eager")
    assert estimate.floor_flops(arch, shape.tokens) == _counted(bare_passes(network, batch))


def test_eaps_operations_are_those_that_torch_counts(counted):
    """To a tenth: what the engine leaves out or adds as it grows is no matter of the estimate's."""
    shape, arch, batch = counted
    model = shape.model()
    found = _counted(lambda: eap(model, [batch], LOGIT_DIFF))
    assert estimate.eap_flops(arch, shape.tokens) == pytest.approx(found, rel=0.1)
    found = _counted(lambda: eap_ig(model, [batch], LOGIT_DIFF, steps=3))
    assert estimate.eap_flops(arch, shape.tokens, steps=3) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize(
    ("place", "parameters", "edges"), [(0, 3.2126e9, 693_267), (1, 8.0300e9, 1_592_881), (2, 27.226e9, None)]
)
def test_sizes_of_the_models_are_the_published_ones(place, parameters, edges):
    arch = estimate.MODELS[place]
    assert arch.parameters == pytest.approx(parameters, rel=1e-4)
    if edges is not None:
        assert arch.graph.n_edges == edges


def test_a_forward_pass_by_hand():
    """One layer, one head of width 2, model 2, MLP 3, vocabulary 5, 2 tokens."""
    arch = estimate.Architecture("x", 1, 1, 1, 2, 2, 3, 5, gated=False)
    matrices = 4 * 2 * 2 + 2 * 2 * 3
    attention = 4 * 2 * 2 * 2
    assert estimate.forward_flops(arch, 2, kv_heads=1, logits=1) == 2 * 2 * matrices + attention + 2 * 2 * 5
    assert estimate.backward_flops(arch, 2, kv_heads=1, logits=0) == 2 * 2 * matrices + 2 * attention
    # two sources (input, the head) reach the MLP in 4 slots' product, and three reach the logits
    assert estimate.score_flops(arch, 2) == 2 * 2 * 2 * (2 * 4 + 3)
    assert estimate.weight_bytes(arch, "bfloat16") == 2 * (matrices + 5 * 2)


def test_more_devices_take_less_time_and_shorter_formats_less_room():
    arch = estimate.MODELS[1]
    one, eight = (estimate.estimate(arch, "float32", devices=n) for n in (1, 8))
    assert one.eap_seconds == pytest.approx(8 * eight.eap_seconds, rel=0.01)
    assert one.floor_seconds < one.eap_seconds < one.ig_seconds
    short = estimate.estimate(arch, "bfloat16")
    assert short.prompts_at_once > 2 * one.prompts_at_once
    assert short.eap_seconds < one.eap_seconds / 5
    small = estimate.Device("small", estimate.H200.peak, 20e9, 1e12, 1e11)
    assert estimate.estimate(arch, "float32", device=small).prompts_at_once == 0


def test_memory_per_prompt_is_near_what_the_allocator_counts(counted):
    shape, arch, batch = counted
    model = shape.model()
    eap(model, [batch], LOGIT_DIFF)
    found = peak_bytes(lambda: eap(model, [batch], LOGIT_DIFF), "cpu")
    # The estimate is of padded and ablated prompts too: what every source writes is held beside autograd's graph.
    assert 0.5 < estimate.state_bytes(arch, shape.tokens, "float32") / found < 2.2


def test_the_estimate_prints_its_arithmetic_and_writes_it(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text("<!-- bench-estimate:begin -->\n<!-- bench-estimate:end -->\n")
    assert estimate.main(["--readme", str(path)]) == 0
    printed = capsys.readouterr().out
    for part in ("693,267", "1,592,881", "Gemma-2-27B", "P(G) = 2 T L (2 d H h", "40% of the peak"):
        assert part in printed
        assert part in path.read_text()
    assert estimate.main(["--tokens", "1"]) == 2


def test_the_costs_on_the_page_are_what_the_command_writes(tmp_path):
    costs = tmp_path / "gpu.md"
    costs.write_text("<!-- gpu-cost:begin -->\n<!-- gpu-cost:end -->\n")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench-estimate:begin -->\n<!-- bench-estimate:end -->\n")
    assert estimate.main(["--readme", str(readme), "--gpu-page", str(costs)]) == 0
    assert costs.read_text().strip() in (ROOT / "docs" / "gpu.md").read_text()
    assert readme.read_text().strip() in (ROOT / "benchmarks" / "README.md").read_text()


def test_the_table_of_methods_has_a_row_for_each_and_says_what_eap_ig_is_beaten_by(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- mine:begin -->\n<!-- mine:end -->\n")
    left = [name for name in (*methods.SCORERS, *methods.OTHERS) if name not in ("eap", "eap-ig")]
    given = ["--model", str(DATA / "tiny-gpt2"), "--pairs", str(DATA / "tiny_pairs.json"), "--n-random", "2"]
    given += [part for name in left for part in ("--without", name)]
    assert methods.main([*given, "--page", str(page), "--section", "mine", "--kept", str(tmp_path / "kept.json")]) == 0
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| tiny-gpt2")]
    assert [row[2] for row in rows] == ["eap", "eap-ig", "random"]
    for row in rows:
        half, most, nearly = (int(cell) for cell in row[3:6])
        assert 0 < half <= most <= nearly <= 262
        assert float(row[7]) >= 0.8
    assert rows[2][-2] == "0"
    capsys.readouterr()
    given += ["--kept", str(tmp_path / "kept.json"), "--figures", str(tmp_path)]
    assert methods.main(given) == 0  # nothing is computed again
    assert (tmp_path / "methods-tiny-gpt2.png").stat().st_size > 10_000
    row = {"method": "eap-ig", "at .8": "1,000", "CMD": "0.050"}
    others = [{"method": "a", "at .8": "500", "CMD": ""}, {"method": "b", "at .8": "501", "CMD": "0.049"}]
    assert (
        "half of the 1,000 edges of eap-ig at .8 need a (500); a CMD below its 0.050 have b (0.049)"
        in methods.claims("m", [row, *others])
    )
    assert "need none; a CMD below its 0.050 have none" in methods.claims("m", [row])


def test_formats_compares_whole_discoveries(tmp_path, capsys):
    """float32 is itself exactly; held weights differ, all of bfloat16 differs more."""
    page = tmp_path / "page.md"
    page.write_text("<!-- bench-formats:begin -->\n<!-- bench-formats:end -->\n")
    given = ["--model", str(DATA / "tiny-gpt2"), "--pairs", str(DATA / "tiny_pairs.json"), "--method", "eap"]
    assert formats.main([*given, "--threshold", "0.05", "--page", str(page)]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in rows] == ["float32", "bfloat16-weights", "float32", "bfloat16"]
    assert rows[0][4:6] == ["1.000000", "0"]
    assert 0 < float(rows[1][5]) < float(rows[3][5])
    assert "| tiny-gpt2 | bfloat16-weights |" in page.read_text()
    assert formats.main(["--model", str(tmp_path), "--pairs", str(DATA / "tiny_pairs.json")]) == 2
    assert "config.json" in capsys.readouterr().err


# --- the other commands, on the smallest shapes ----------------------------------------------------


def test_without_cuda_the_gpu_benchmark_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no CUDA device here" in capsys.readouterr().err


def test_the_gpu_benchmark_on_a_cpu(tmp_path, capsys):
    path, out = tmp_path / "README.md", tmp_path / "gpu.json"
    path.write_text("<!-- bench-gpu:begin -->\n<!-- bench-gpu:end -->\n")
    options = ["--device", "cpu", "--tiny", "--rounds", "1", "--shapes", "gpt2-small", "llama-3b", "--pairs", "3"]
    assert gpu.main([*options, "--batch-size", "2", "--readme", str(path), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [(row["shape"]["name"], row["dtype"]) for row in found["rows"]] == [
        (name, dtype) for name in ("GPT-2 small", "Llama 3B") for dtype in ("float32", "bfloat16")
    ]
    for row in found["rows"]:
        assert set(row["costs"]) == {"floor", "forward", "EAP", "EAP-IG", "circuit"}
        assert all(cost["median"] > 0 and cost["peak_bytes"] > 0 for cost in row["costs"].values())
    assert found["rows"][1]["agreement"]["pearson"] > 0.99
    assert 0 < found["rows"][1]["agreement"]["relative"] < 0.1  # bfloat16 is not float32
    acdc = found["acdc"]
    assert acdc["n_edges"] == 46
    assert acdc["evaluated"] >= 46
    assert acdc["tau"] > 0
    for part in ("| GPT-2 small | bfloat16 |", "ACDC over all 46 edges", "Llama 3B: 2 layers, 2 heads in 1 groups"):
        assert part in path.read_text()


def test_splitting_a_batch_keeps_every_pair():
    batch = SMALL.batch(pairs=5)
    parts = gpu.split(batch, 2)
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.corrupt for part in parts]), batch.corrupt)
    assert [index for part in parts for index in part.indices] == list(range(5))


def test_what_does_not_fit_runs_in_parts():
    shape = GPU_SHAPES["llama-3b"]
    assert gpu.pairs_at_once(shape, "cpu", "float32", 200) == 1
    assert gpu.pairs_at_once(SMALL, "cpu", "float32", 200) == 200


def test_growth_on_the_smallest_shapes(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text("<!-- bench-growth:begin -->\n<!-- bench-growth:end -->\n")
    out = tmp_path / "growth.json"
    assert growth.main(["--tiny", "--rounds", "1", "--readme", str(path), "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert {row["axis"] for row in rows} == {"edges, by layers", "edges, by heads", "tokens", "prompts"}
    prompts = [row for row in rows if row["axis"] == "prompts"]
    peaks = [row["EAP"]["peak_bytes"] for row in prompts]
    assert [row["value"] for row in prompts] == [2, 4, 8]
    assert peaks[2] / peaks[1] == pytest.approx(2, rel=0.2)  # memory is a count, and grows with the prompts
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "Powers" in path.read_text()


def test_the_power_of_a_power_law():
    values = [1.0, 2.0, 4.0, 8.0]
    assert growth.slope(values, [3 * v**1.5 for v in values]) == pytest.approx(1.5)


@pytest.mark.slow
def test_the_whole_suite_on_the_smallest_shapes(tmp_path):
    """make bench, in small: every benchmark runs, and the tables are written from its results."""
    results, readme = tmp_path / "bench.json", tmp_path / "README.md"
    readme.write_text("<!-- bench:begin -->\n<!-- bench:end -->\n")
    inherited = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    shapes = ["-k", "not longer and not SmolLM2"]
    suite = ["-m", "pytest", "benchmarks", "--tiny", f"--benchmark-json={results}", "-q", *shapes]
    done = subprocess.run([sys.executable, *suite], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert tables.main([str(results), "--readme", str(readme)]) == 0
    text = readme.read_text()
    for part in ("**grouped queries: ", "EAP, all 46 edges", "TransformerLens: EAP", "× (5 × floor)", "for nothing"):
        assert part in text


def test_the_page_of_real_models_takes_the_numbers_of_collapse_on_all_pairs(tmp_path, capsys):
    page, run = tmp_path / "page.md", tmp_path / "chat-cue"
    run.mkdir()
    page.write_text("before\n<!-- more-pairs:begin -->\nold\n<!-- more-pairs:end -->\nafter\n")
    all_pairs = {"n": 60, "mass": 0.068, "divergence": {"value": 2.447, "low": -1.148, "high": 4.506}, "p_zero": 0.0098}
    groups = [{"summary": {**all_pairs, "collapse": {"value": 0.65}}}, {"summary": {}}]
    record = {"model": {"name": "/x/smollm2"}, "sigma_0": 0.789, "groups": groups}
    (run / "collapse.json").write_text(json.dumps(record))
    assert natural.main(["--collapse", str(run), "--page", str(page)]) == 0
    row = "| smollm2 | `chat-cue` | 60 | 0.07 | +2.45 | -1.15, 4.51 | 0.010 | 0.79 | 0.65 |"
    assert row in page.read_text().splitlines()
    assert "old" not in page.read_text()
    (run / "collapse.json").unlink()
    assert natural.main(["--collapse", str(run)]) == 2
    assert "natural.py: " in capsys.readouterr().err
