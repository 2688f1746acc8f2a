from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import pairs_that_begin_alike
from tests_reference import Reference

from persona_circuits.circuit.attribution import eap
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.forward import measure, patched_logits, prepare, prepare_each
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode
from persona_circuits.metrics import METRICS


@pytest.fixture(scope="module")
def prepared(tiny, tiny_task):
    return [prepare(tiny, batch) for batch in batches(encode(tiny_task, tiny), 3, "cpu")]


def random_mask(graph, seed, share):
    return graph.valid & (np.random.default_rng(seed).random(graph.valid.shape) < share)


def tensor(*masks):
    return torch.from_numpy(np.stack(masks))


def test_plain_run_gives_the_hosts_logits(tiny, prepared):
    for item in prepared:
        torch.testing.assert_close(item.clean.logits, tiny.logits(item.batch.clean)[:, -1], atol=1e-5, rtol=1e-5)


def test_contributions_and_biases_sum_to_the_stream(tiny, prepared):
    run = prepared[0].clean
    biases = sum(block.bridge.attn.o.bias for block in tiny.blocks)
    torch.testing.assert_close(run.contributions.sum(0) + biases, run.streams[-1], atol=1e-5, rtol=1e-5)


def test_full_circuit_is_clean_and_empty_circuit_is_corrupt(tiny, prepared):
    full, empty = Circuit.full(tiny.graph).mask, Circuit.empty(tiny.graph).mask
    for item in prepared:
        logits = patched_logits(tiny, item, tensor(full, empty))
        torch.testing.assert_close(logits[0], item.clean.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[1], item.corrupt.logits, atol=1e-5, rtol=1e-5)
        alone = patched_logits(tiny, item, tensor(full))
        torch.testing.assert_close(alone[0], item.clean.logits, atol=0, rtol=0)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_equals_the_edge_by_edge_reference_in_float64(tiny64, tiny_task, share):
    reference = Reference(load_network())
    for item in (prepare(tiny64, batch) for batch in batches(encode(tiny_task, tiny64), 8, "cpu")):
        masks = [random_mask(tiny64.graph, seed, share) for seed in range(2)]
        ours = patched_logits(tiny64, item, tensor(*masks))
        corrupt = reference.plain(item.batch.corrupt)
        for mask, logits in zip(masks, ours, strict=True):
            cut = Circuit(tiny64.graph, mask).complement()
            theirs = reference.run(item.batch.clean, corrupt, {str(edge): 0.0 for edge in cut.edges()})["logits"]
            torch.testing.assert_close(logits, theirs, atol=1e-9, rtol=1e-9)


def test_many_circuits_at_once_are_the_circuits_one_by_one(tiny, prepared):
    masks = [random_mask(tiny.graph, seed, share) for seed, share in enumerate((0.05, 0.5, 0.95))]
    together = patched_logits(tiny, prepared[0], tensor(*masks))
    for mask, logits in zip(masks, together, strict=True):
        torch.testing.assert_close(patched_logits(tiny, prepared[0], tensor(mask))[0], logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("way", ["whole", "one by one", "few rows"])
def test_no_way_of_going_through_a_pass_changes_it(tiny64, monkeypatch, share, way):
    """Positions that both prompts share run again, streams taken one by one, sources added up a few at a time."""
    item = prepare(tiny64, pairs_that_begin_alike(50))
    assert item.first == 3
    masks = tensor(*(random_mask(tiny64.graph, seed, share) for seed in range(2)))
    with monkeypatch.context() as patch:
        patch.setattr("persona_circuits.circuit.model.block.CACHED_BYTES", 0 if way == "one by one" else 1 << 30)
        patch.setattr("persona_circuits.circuit.forward.patched.ROWS_AT_A_TIME", 3 if way == "few rows" else 1 << 30)
        other = replace(item, first=0) if way == "whole" else item
        for some in (masks, masks[:1]):
            expected = patched_logits(tiny64, item, some)
            torch.testing.assert_close(patched_logits(tiny64, other, some), expected, atol=1e-10, rtol=1e-10)


def test_positions_before_the_first_difference_are_not_run(tiny, monkeypatch):
    widths = set()
    block = type(tiny.blocks[0])
    original = block.mlp
    monkeypatch.setattr(block, "mlp", lambda self, x: widths.add((self.layer, x.shape[-2])) or original(self, x))
    item = prepare(tiny, pairs_that_begin_alike(50, length=9, shared=3))
    widths.clear()
    patched_logits(tiny, item, tensor(random_mask(tiny.graph, 0, 0.5)))
    last = tiny.graph.n_layers - 1
    assert widths == {(layer, 6) for layer in range(last)} | {(last, 1)}


def test_memory_of_a_pass_is_kept_on_a_cpu_and_let_go_of(tiny):
    first = tiny.scratch(3, 40)
    assert tiny.scratch(2, 5).data_ptr() == first.data_ptr()
    assert tiny.scratch(5, 40).shape == (5, 40)
    tiny.forget()
    assert tiny._scratch is None


def test_only_layers_from_the_first_cut_edge_on_are_run(tiny, prepared, monkeypatch):
    ran = []
    block = type(tiny.blocks[0])
    attention = block.attention
    monkeypatch.setattr(block, "attention", lambda self, *a: ran.append(self.layer) or attention(self, *a))
    for edge, layers in (("input->logits", []), ("m0->a2.h1<q>", [2]), ("input->m0", [0, 1, 2])):
        ran.clear()
        patched_logits(tiny, prepared[0], tensor(Circuit.of(tiny.graph, [edge]).complement().mask))
        assert ran == layers


def test_what_no_circuit_reads_is_not_run(tiny, prepared, monkeypatch):
    ran = []
    block = type(tiny.blocks[0])
    for name in ("attention", "mlp"):
        original = getattr(block, name)
        note = lambda self, *a, original=original, name=name: ran.append((name, self.layer)) or original(self, *a)  # noqa: E731
        monkeypatch.setattr(block, name, note)
    edges = ["input->m0", "m0->a2.h1<v>", "a2.h1->logits"]
    circuit = Circuit.of(tiny.graph, edges)
    both = patched_logits(tiny, prepared[0], tensor(circuit.mask, Circuit.empty(tiny.graph).mask))
    assert ran == [("mlp", 0), ("attention", 2)]
    ran.clear()
    torch.testing.assert_close(both[1], prepared[0].corrupt.logits, atol=1e-5, rtol=1e-5)
    alone = patched_logits(tiny, prepared[0], tensor(Circuit.empty(tiny.graph).mask))
    torch.testing.assert_close(alone[0], prepared[0].corrupt.logits, atol=0, rtol=0)
    assert ran == []
    assert not torch.allclose(both[0], prepared[0].corrupt.logits, atol=1e-4)


def test_measure_orders_columns_by_row_and_does_not_depend_on_memory(tiny, tiny_task, prepared):
    masks = [random_mask(tiny.graph, seed, 0.5) for seed in range(5)]
    metric = METRICS["logit-diff"]
    values = measure(tiny, prepared, masks, metric)
    assert values.shape == (5, len(tiny_task.pairs))
    np.testing.assert_allclose(measure(tiny, prepared, masks, metric, max_bytes=1), values, atol=1e-5)
    reordered = measure(tiny, [prepare(tiny, b) for b in batches(encode(tiny_task, tiny), 1, "cpu")], masks, metric)
    np.testing.assert_allclose(reordered, values, atol=1e-5)


def test_circuits_of_auto_circuit_score_the_same(tiny, prepared, frozen):
    peer = frozen("autocircuit_tiny")
    masks = [Circuit.of(tiny.graph, circuit["edges"]).mask for circuit in peer["circuits"]]
    ours = measure(tiny, prepared, masks, METRICS["logit-diff"]).mean(axis=1)
    np.testing.assert_allclose(ours, [circuit["mean_logit_diff"] for circuit in peer["circuits"]], atol=2e-5)


def test_stubs_and_hooks_are_gone_after_success_and_after_an_exception(tiny, prepared, monkeypatch):
    def state():
        modules = list(tiny.bridge.modules())
        return [("forward" in vars(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]

    before = state()
    patched_logits(tiny, prepared[0], tensor(random_mask(tiny.graph, 0, 0.5)))
    tiny.start(prepared[0].batch.clean)
    assert state() == before

    def fails(*_args, **_kwargs):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(tiny.bridge.blocks[1].attn, "_reconstruct_attention", fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        patched_logits(tiny, prepared[0], tensor(random_mask(tiny.graph, 0, 0.5)))
    monkeypatch.undo()
    with pytest.raises((RuntimeError, IndexError)):
        tiny.start(torch.full((1, 3), 10**6))
    assert state() == before


def load_network():
    from conftest import DATA
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2")


def limited(monkeypatch, model, most):
    """The device holds ``most`` rows of an MLP's input at a time."""
    block = type(model.blocks[0])
    original = block.mlp

    def mlp(self, x):
        if x.numel() // (x.shape[-1] * x.shape[-2]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, x)

    monkeypatch.setattr(block, "mlp", mlp)


def test_out_of_memory_halves_the_batch_and_says_so(tiny64, tiny_task, monkeypatch, caplog):
    groups = batches(encode(tiny_task, tiny64), 8, "cpu", uneven=True)
    masks = [random_mask(tiny64.graph, seed, 0.5) for seed in range(5)]
    metric = METRICS["logit-diff"]
    expected = measure(tiny64, list(prepare_each(tiny64, groups)), masks, metric)
    scores = eap(tiny64, groups, metric).values
    limited(monkeypatch, tiny64, 3)
    np.testing.assert_allclose(measure(tiny64, prepare_each(tiny64, groups), masks, metric), expected, atol=1e-10)
    np.testing.assert_allclose(eap(tiny64, groups, metric).values, scores, atol=1e-10)
    assert "out of memory with 8 prompts at a time; going on with 4" in caplog.text
    assert "circuits at a time" in caplog.text


def test_a_prompt_that_does_not_fit_is_said_so(tiny64, tiny_task, monkeypatch):
    groups = batches(encode(tiny_task, tiny64), 8, "cpu")
    limited(monkeypatch, tiny64, 0)
    with pytest.raises(ModelError, match=r"a single prompt of .* does not fit the memory"):
        list(prepare_each(tiny64, groups))
