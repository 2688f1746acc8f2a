"""A limit on memory: the predicted peak against torch's allocator, and the same numbers from smaller batches."""

import dataclasses
import json
import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import sys

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from families import FAMILIES, network_of
from transformers import AutoTokenizer
from typer.testing import CliRunner

from persona_circuits.circuit.attribution import eap, eap_ig
from persona_circuits.circuit.cost import (
    PROCESS_BYTES,
    Budget,
    held_bytes,
    parse_bytes,
    shown_bytes,
    sizes,
    state_bytes,
)
from persona_circuits.circuit.discovery import Options, discover, stages
from persona_circuits.circuit.errors import ModelError, OptionError
from persona_circuits.circuit.forward import measure, prepare, prepare_each
from persona_circuits.circuit.model import load_model, wrap_model
from persona_circuits.circuit.profiling import peak_bytes
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import METRICS

LOGIT_DIFF = METRICS["logit-diff"]
TOKENS, ROWS = 48, 6
SIZES = {
    "vocab_size": 128,
    "hidden_size": 96,
    "n_embd": 96,
    "num_hidden_layers": 3,
    "n_layer": 3,
    "num_attention_heads": 8,
    "n_head": 8,
    "intermediate_size": 256,
    "n_inner": 256,
    "moe_intermediate_size": 128,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "head_dim": 12,
}
MEASURED = ("gpt2", "gemma2", "mixtral")


def larger(name):
    """A family at a size where attribution takes more than its bookkeeping."""
    family = FAMILIES[name]
    options = {key: SIZES.get(key, value) for key, value in family.options.items()}
    if "layer_types" in options:
        options["layer_types"] = ["sliding_attention", "full_attention", "full_attention"]
    return network_of(dataclasses.replace(family, options=options))


def limited(name, limit):
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")
    return wrap_model(larger(name), tokenizer, name=name, max_memory=limit)


def score_peak(budget, tokens, rows, *, steps=None):
    """Predicted bytes while so many prompts are scored at a time, weights included."""
    return budget.fixed + rows * state_bytes(budget.arch, tokens, budget.dtype, steps=steps)


def batch_of(rows=ROWS, swapped=False):
    clean, corrupt = torch.randint(1, 128, (2, rows, TOKENS), generator=torch.Generator().manual_seed(1))
    if swapped:
        both = torch.stack([clean, corrupt], 1)[: rows // 2]
        clean, corrupt = both.flatten(0, 1), both.flip(1).flatten(0, 1)
    answers = torch.arange(1, rows + 1)[:, None]
    return Batch(tuple(range(rows)), clean, corrupt, answers, answers + 20)


@pytest.mark.parametrize("name", MEASURED)
def test_measured_peaks_stay_below_the_limit_and_near_the_prediction(name):
    """Allocator peaks of EAP, EAP-IG and circuits under a limit that leaves room for about half of the batch."""
    free = limited(name, 1 << 40)
    each = sizes.state_bytes(free.budget.arch, TOKENS, "float32")
    model = limited(name, free.budget.fixed + int(4.5 * each))
    assert model.budget.score_rows(TOKENS) == 4
    for swapped in (True, False)[: 2 if name == "gpt2" else 1]:
        batch = batch_of(swapped=swapped)
        steps = {"eap": None, "eap-ig": 3}
        works = {
            "eap": lambda batch=batch: eap(model, [batch], LOGIT_DIFF),
            "eap-ig": lambda batch=batch: eap_ig(model, [batch], LOGIT_DIFF, steps=3),
        }
        for method, work in works.items():
            work()
            weights = model.budget.fixed - model.budget.process
            found = weights + peak_bytes(work, "cpu")
            rows = min(ROWS, model.budget.score_rows(TOKENS, steps=steps[method]))
            predicted = score_peak(model.budget, TOKENS, rows, steps=steps[method]) - model.budget.process
            assert found <= predicted <= model.budget.limit - model.budget.process, (method, swapped, found / predicted)
            assert found > 0.48 * predicted, (method, swapped, found / predicted)
    masks = [model.graph.valid & (np.random.default_rng(i).random(model.graph.valid.shape) < 0.5) for i in range(6)]
    patched = lambda: measure(model, prepare_each(model, [batch]), masks, LOGIT_DIFF)  # noqa: E731
    patched()
    assert model.budget.fixed + peak_bytes(patched, "cpu") <= model.budget.limit


def test_corrupt_prompts_that_are_clean_elsewhere_take_more_and_are_counted():
    free = limited("gpt2", 1 << 40)
    each = sizes.state_bytes(free.budget.arch, TOKENS, "float32")
    model = limited("gpt2", free.budget.fixed + int(4.5 * each))
    clean = batch_of().clean
    answers = torch.arange(1, ROWS + 1)[:, None]
    chain = Batch(tuple(range(ROWS)), clean, clean.roll(-1, 0), answers, answers + 20)  # each one's corrupt is the next
    work = lambda: eap(model, [chain], LOGIT_DIFF)  # noqa: E731
    work()
    assert model.budget.fixed + peak_bytes(work, "cpu") <= model.budget.limit
    np.testing.assert_allclose(work().values, eap(free, [chain], LOGIT_DIFF).values, atol=1e-4)


def test_without_the_limit_the_peak_is_above_it():
    """The control: the same batch with no limit takes more."""
    free = limited("gpt2", 1 << 40)
    limit = free.budget.fixed + int(4.5 * sizes.state_bytes(free.budget.arch, TOKENS, "float32"))
    twice = batch_of(rows=12)
    work = lambda: eap(free, [twice], LOGIT_DIFF)  # noqa: E731
    work()
    assert free.budget.fixed + peak_bytes(work, "cpu") > limit


def test_a_limit_changes_no_number(tiny_task):
    whole = load_model(DATA / "tiny-gpt2", dtype="float64")
    arch = load_model(DATA / "tiny-gpt2", dtype="float64", max_memory=1 << 40).budget
    limit = arch.fixed + int(4.2 * sizes.state_bytes(arch.arch, 16, "float64"))
    small = load_model(DATA / "tiny-gpt2", dtype="float64", max_memory=limit)
    batch = batch_of_tiny(whole, tiny_task)
    seen = []
    attribution = sys.modules[eap.__module__]
    original = attribution.gradient_passes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attribution, "gradient_passes", lambda m, b, *more: seen.append(len(b)) or original(m, b, *more))
        ours = eap(small, [batch], LOGIT_DIFF)
    assert max(seen) < len(batch)
    assert len(seen) > 1
    np.testing.assert_allclose(ours.values, eap(whole, [batch], LOGIT_DIFF).values, atol=1e-12)
    masks = [whole.graph.valid & (np.random.default_rng(i).random(whole.graph.valid.shape) < 0.5) for i in range(3)]
    found = [measure(model, prepare_each(model, [batch]), masks, LOGIT_DIFF) for model in (small, whole)]
    np.testing.assert_allclose(*found, atol=1e-12)


def batch_of_tiny(model, task):
    from persona_circuits.circuit.task import batches, encode, with_swap_rows

    found = batches(with_swap_rows(encode(task, model)), 32, "cpu")
    return max(found, key=len)


def test_a_3b_class_model_by_arithmetic():
    """More rows would exceed the limit, fewer would not; half-size weights leave room for more."""
    arch = sizes.MODELS[0]
    weights = {name: sizes.weight_bytes(arch, name) for name in sizes.FORMATS}
    long, held = (Budget(24 << 30, weights[name], arch, name) for name in ("float32", "bfloat16-weights"))
    for budget in (long, held):
        rows = budget.score_rows(64)
        assert score_peak(budget, 64, rows) <= budget.limit < score_peak(budget, 64, rows + 1)
        assert 1 <= budget.circuit_rows(64) <= rows
        assert budget.circuits(64, budget.circuit_rows(64)) >= 1
    assert held.score_rows(64) > 1.5 * long.score_rows(64)
    with pytest.raises(ModelError, match=r"weights of Llama-3.2-3B take 1\d\.\d\d GiB in float32.*--dtype bfloat16-w"):
        Budget(8 << 30, weights["float32"], arch, "float32")
    with pytest.raises(ModelError, match="a single prompt of 4096 tokens takes about"):
        long.score_rows(4096)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 << 30), ("1.5 gb", 1_500_000_000), ("500MB", 500_000_000), ("64KiB", 65536), ("4096", 4096)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "8 apples", "1e9"])
def test_what_is_no_size(text):
    with pytest.raises(OptionError, match="write one such as 8GiB"):
        parse_bytes(text)


def test_shown():
    assert (shown_bytes(3 << 30), shown_bytes(1 << 19)) == ("3.00 GiB", "0.5 MiB")


def test_acdc_and_learned_constants_say_what_they_cannot_hold(tiny_task):
    free = load_model(DATA / "tiny-gpt2", max_memory=1 << 40).budget
    model = load_model(DATA / "tiny-gpt2", max_memory=free.fixed + 6 * sizes.state_bytes(free.arch, 12, "float32"))
    with pytest.raises(ModelError, match=r"ACDC keeps the runs of all 16 prompts: .* use fewer pairs"):
        discover(model, tiny_task, Options(prune="acdc", threshold=0.1))
    with pytest.raises(OptionError, match="cannot be kept within --max-memory"):
        discover(model, tiny_task, Options(ablation="optimal"))


@pytest.mark.parametrize("ablation", ["corrupt", "zero", "mean"])
def test_discovery_under_a_limit_finds_the_same_circuit(tiny_task, ablation):
    free = load_model(DATA / "tiny-gpt2", max_memory=1 << 40).budget
    limit = free.fixed + 12 * sizes.state_bytes(free.arch, 14, "float32")
    options = Options(method="eap", ablation=ablation, threshold=0.01)
    found = [discover(load_model(DATA / "tiny-gpt2", max_memory=given), tiny_task, options) for given in (limit, None)]
    assert (found[0].circuit.mask == found[1].circuit.mask).all()
    assert found[0].reports[-1].m_full == pytest.approx(found[1].reports[-1].m_full, abs=1e-5)


@pytest.mark.parametrize("name", MEASURED)
def test_what_acdc_holds_is_estimated_and_said(name, caplog, monkeypatch):
    """Allocator's count of all runs and differences held together, against the estimate and the note."""
    model = wrap_model(larger(name), AutoTokenizer.from_pretrained(DATA / "tiny-gpt2"), name=name)
    batch, kept = batch_of(), []
    prepare(model, batch)
    keep = lambda: kept.extend(item.with_differences() for item in prepare_each(model, [batch]))  # noqa: E731
    found = peak_bytes(keep, "cpu")
    expected = held_bytes(model.architecture(), [TOKENS] * ROWS, "float32")
    assert 0.6 * expected < found <= expected, found / expected
    stages._check_held(model, [batch], None)
    assert not caplog.records
    monkeypatch.setattr(stages, "MUCH_BYTES", expected - 1)
    stages._check_held(model, [batch], None)
    assert f"exact pruning keeps the runs of all 6 prompts: about {shown_bytes(expected)}" in caplog.text


WHOLE = """
import sys, torch
torch.set_num_threads(1)
from persona_circuits import METRICS, Batch, eap, load_model
model = load_model(sys.argv[1], max_memory=int(sys.argv[2]))
clean, corrupt = torch.randint(1, 64, (2, 24, 100), generator=torch.Generator().manual_seed(0))
answers = torch.arange(24)[:, None]
rows = model.budget.score_rows(100)
eap(model, [Batch(tuple(range(24)), clean, corrupt, answers, answers + 20)], METRICS["logit-diff"])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(rows, int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
def test_the_whole_process_stays_below_the_limit(tmp_path):
    """A model of 80 MB in a process of its own: the largest resident set, libraries and loading included.

    Not getrusage's, which a child has from the process that started it.
    """
    import shutil
    import subprocess
    import sys

    if not sys.platform.startswith("linux"):
        pytest.skip("the largest resident set is read from /proc")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6}
    more = {"num_attention_heads": 8, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**sizes, **more)).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "tiny-gpt2" / file, tmp_path)
    limit = 900 << 20
    done = subprocess.run(
        [sys.executable, "-c", WHOLE, str(tmp_path), str(limit)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows, peak = map(int, done.stdout.split())
    assert rows < 24
    assert 0.6 * limit < peak <= limit, peak / limit


@pytest.fixture
def command():
    from persona_circuits import cli

    return lambda *args: CliRunner().invoke(cli.app, [str(arg) for arg in args])


def test_the_option_on_the_command_line(command, tmp_path):
    common = (
        "discover",
        "--scores",
        "new",
        "--model",
        DATA / "tiny-gpt2",
        "--pairs",
        DATA / "tiny_pairs.json",
        "--method",
        "eap",
    )
    done = command(*common, "--max-memory", str(PROCESS_BYTES + (2 << 20)), "--json", "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    free = command(*common, "--json", "--out", tmp_path / "b")
    limited, unlimited = (json.loads(one.stdout) for one in (done, free))
    assert limited["counts"]["edges"]
    assert [limited[key] for key in ("counts", "nodes", "tau")] == [
        unlimited[key] for key in ("counts", "nodes", "tau")
    ]
    for size, says in (("500MB", "Python and its libraries 600.0 MiB"), ("some", "is no size")):
        done = command(*common, "--max-memory", size, "--out", tmp_path / "c")
        assert done.exit_code == 2
        assert says in done.output


def test_running_out_of_memory_is_said_on_the_command_line(tmp_path):
    """In a process of its own, as a user sees it: the batch is halved, the command goes on and says so."""
    import subprocess
    import sys

    code = (
        "import sys, torch\nfrom persona_circuits import cli, eap\n"
        "a = sys.modules[eap.__module__]\nwhole = a.gradient_passes\n"
        "def passes(model, batch, *more):\n"
        "    if len(batch) > 4: raise torch.OutOfMemoryError('CUDA out of memory')\n"
        "    return whole(model, batch, *more)\n"
        "a.gradient_passes = passes\n"
        "sys.argv = ['persona-circuits', *sys.argv[1:]]\n"
        "cli.main()\n"
    )
    options = ["discover", "--model", DATA / "tiny-gpt2", "--pairs", DATA / "tiny_pairs.json", "--out", tmp_path / "o"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, options)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "out of memory with" in done.stderr
    assert "going on with" in done.stderr
