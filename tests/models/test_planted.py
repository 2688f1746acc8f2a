"""The hand-written models do what their text says, first by the host's own logits, then edge by edge."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from persona_circuits.circuit.assessment import support
from persona_circuits.circuit.attribution import exact
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.task import batches, encode, load_task, with_swap_rows
from persona_circuits.metrics import METRICS
from persona_circuits.models.planted import D_MODEL, OPTIONS, STEADY, STRENGTHS, planted_models, write_planted

PLANTED = {planted.name: planted for planted in planted_models()}
every = pytest.mark.parametrize("name", PLANTED)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    made = {}
    return lambda name: made.setdefault(name, PLANTED[name].model())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def option_logits(network, tokenizer, texts):
    """The host's logits ``[text, vocab]`` after prompts of one length, and those of plain, golden and usual."""
    with torch.no_grad():
        logits = network(torch.tensor([tokenizer(text)["input_ids"] for text in texts])).logits[:, -1]
    return logits, logits[:, [tokenizer(option)["input_ids"][0] for option in OPTIONS]].double().numpy()


def margins(network, tokenizer, pairs):
    """l(answer) - l(wrong answer) under the clean and under the corrupt prompt; ``[pair, 2]``."""
    signs = [1 if pair.answers[0] == OPTIONS[0] else -1 for pair in pairs]
    sides = [[pair.clean for pair in pairs], [pair.corrupt for pair in pairs]]
    both = [option_logits(network, tokenizer, texts)[1] for texts in sides]
    return np.stack([signs * (logits[:, 0] - logits[:, 1]) for logits in both], axis=1)


def divergence(network, tokenizer, pairs):
    return float(-np.diff(margins(network, tokenizer, pairs)).mean())


def exact_scores(planted, model, metric, pairs):
    rows = encode(replace(planted.task, pairs=pairs), model)
    rows = with_swap_rows(rows) if metric.swap_rows else rows
    return exact(model, batches(rows, 64, "cpu"), metric)


def answer_of_keys(strength):
    """What a1.h0 of `keys` writes for a persona word: its value against the first word's -1."""
    return sigmoid(2 * strength) * strength - (1 - sigmoid(2 * strength))


def designed(name):
    """D in logits, from the text of the construction alone."""
    strengths = np.array(STRENGTHS)
    fading = np.mean([sigmoid(4.5 - 0.7 * distance) for distance in (14, 10, 15)])
    return {
        "cancel": 4 * 0.3,
        "keys": 2 * np.mean(answer_of_keys(strengths) - answer_of_keys(-strengths)),
        "weak": 4 * fading,
        "bottleneck": 4 * (0.1 + 0.002 * 6),
    }.get(name, 4.0)


@every
def test_the_divergence_is_the_one_designed(name, model):
    network, tokenizer = PLANTED[name].build(), model(name).tokenizer
    assert divergence(network, tokenizer, PLANTED[name].pairs) == pytest.approx(designed(name), rel=2e-3)


@every
def test_choices_collapse_where_the_cause_says_so(name, model):
    planted, choices = PLANTED[name], {}
    cases = [
        (text, own[0])
        for pair in planted.pairs
        for text, own in ((pair.clean, pair.answers), (pair.corrupt, pair.wrong_answers))
    ]
    logits, options = option_logits(planted.build(), model(name).tokenizer, [text for text, _ in cases])
    for (_, own), chosen in zip(cases, options.argmax(axis=1), strict=True):
        choices.setdefault(own, set()).add(OPTIONS[chosen])
    assert (np.exp(options - logits.logsumexp(1, keepdim=True).double().numpy()).sum(axis=1) > 0.9).all()
    to_default = {" plain": {" usual"}, " golden": {" usual"}}
    expected = {
        "no collapse": {" plain": {" plain"}, " golden": {" golden"}},
        "prior dominance": {" plain": {" plain"}, " golden": {" plain"}},
    }
    assert choices == expected.get(planted.cause, to_default)


def test_the_prior_is_three_times_the_persona(model):
    both = margins(PLANTED["prior"].build(), model("prior").tokenizer, PLANTED["prior"].pairs)
    prior = np.abs(both.mean(axis=1))
    assert prior == pytest.approx(6, rel=1e-3)
    assert (prior >= -np.diff(both)[:, 0] / 2).all()


@every
def test_corrupting_a_true_edge_matters_and_any_other_does_not(name, model):
    planted = PLANTED[name]
    for dtype in ("float32", "float64"):
        engine = model(name) if dtype == "float32" else planted.model(dtype=dtype)
        scores = exact_scores(planted, engine, METRICS["persona-divergence"], planted.pairs)
        size = abs(designed(name))
        assert support(scores, size, share=0.01) == planted.true_edges
        assert support(scores, size, share=0.001) == planted.true_edges


@every
def test_the_circuit_has_no_dead_ends_and_its_nodes_are_the_true_ones(name, model):
    circuit = PLANTED[name].circuit(model(name).graph)
    assert circuit.without_dead_ends() == circuit
    assert list(PLANTED[name].true_nodes) == circuit.src_names()


def test_prior_edges_carry_the_prior_and_nothing_of_the_persona(model):
    planted = PLANTED["prior"]
    scores = exact_scores(planted, model("prior"), METRICS["logit-diff"], planted.control_pairs)
    assert support(scores, 6.0, share=0.01) == support(scores, 6.0, share=0.001) == planted.prior_edges
    assert not planted.prior_edges & planted.true_edges


@every
def test_only_cancel_cancels(name, model):
    planted = PLANTED[name]
    scores = exact_scores(planted, model(name), METRICS["persona-divergence"], planted.pairs)
    into_logits = scores.values[:, -1]
    kappa = 1 - abs(into_logits.sum()) / np.abs(into_logits).sum()
    assert kappa == pytest.approx(1 - 0.3 / 5.7 if name == "cancel" else 0, abs=1e-3)


def test_a_late_persona_restores_what_weak_loses(model):
    network, tokenizer, planted = PLANTED["weak"].build(), model("weak").tokenizer, PLANTED["weak"]
    late = divergence(network, tokenizer, planted.control_pairs)
    assert late == pytest.approx(4 * sigmoid(4.5 - 0.7 * 4), rel=2e-3)
    assert late > 20 * divergence(network, tokenizer, planted.pairs)


@pytest.mark.parametrize(("name", "least", "most"), [("copy", 3.9, 4.1), ("bottleneck", 1.0, 1.4)])
def test_a_louder_persona_does_not_pass_the_bottleneck(name, least, most, model):
    planted, tokenizer, network = PLANTED[name], model(name).tokenizer, PLANTED[name].build()
    before = divergence(network, tokenizer, planted.pairs)
    network.transformer.wte.weight.data[:, 2:4] *= 4  # the feature `who`
    assert least < divergence(network, tokenizer, planted.pairs) / before < most


@every
def test_the_norms_scale_is_constant_to_two_in_ten_thousand(name, model):
    network, scales = PLANTED[name].build(), []
    norms = [n for block in network.transformer.h for n in (block.ln_1, block.ln_2)]
    for norm in (*norms, network.transformer.ln_f):
        norm.register_forward_pre_hook(lambda _module, args: scales.append(args[0].std(-1, correction=0)))
    option_logits(network, model(name).tokenizer, [pair.clean for pair in PLANTED[name].pairs])
    ratio = torch.cat([scale.flatten() for scale in scales]) / (STEADY * (2 / D_MODEL) ** 0.5)
    assert ratio.min() > 1 - 1e-6
    assert ratio.max() < 1 + 2e-4


@every
def test_pairs_are_valid_and_of_both_directions_and_several_places(name, model):
    planted = PLANTED[name]
    rows = encode(planted.task, model(name))
    assert len(rows) == 12
    assert {pair.answers for pair in planted.pairs} == {(" plain",), (" golden",)}
    differing = [[i for i, (a, b) in enumerate(zip(row.clean, row.corrupt, strict=True)) if a != b] for row in rows]
    assert all(len(places) == 1 for places in differing)
    assert len({places[0] for places in differing}) == 3
    assert not any(word in OPTIONS for row in planted.pairs for word in row.clean.split())
    assert planted.task.splits == ("train", "test")
    encode(replace(planted.task, pairs=planted.control_pairs), model(name))


@every
def test_a_written_folder_loads_as_the_same_model_and_task(name, model, tmp_path):
    planted = PLANTED[name]
    write_planted(planted, tmp_path / name)
    loaded, task = load_model(tmp_path / name), load_task(tmp_path / name / "pairs.jsonl")
    assert task.pairs == planted.pairs
    assert task.sha256 == planted.task.sha256
    assert encode(task, loaded) == encode(planted.task, model(name))
    assert loaded.fingerprint == model(name).fingerprint
    for batch in batches(encode(task, loaded), 64, "cpu"):
        assert torch.equal(loaded.logits(batch.clean), model(name).logits(batch.clean))
    truth = json.loads((tmp_path / name / "truth.json").read_text())
    assert set(truth["edges"]) == planted.true_edges
    assert truth["nodes"] == list(planted.true_nodes)
    assert (tmp_path / name / "control.jsonl").exists() == bool(planted.control_pairs)


def test_building_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    PLANTED["copy"].build()
    assert torch.equal(torch.rand(3), expected)
