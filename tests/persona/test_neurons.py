"""Contrastive neurons: against bare Hugging Face hooks in float64, a planted neuron, and numpy written out."""

import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import CRAFTGPT, DATA, ROOT
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from persona_circuits.circuit.errors import ModelError, OptionError, TaskError
from persona_circuits.circuit.model import wrap_model
from persona_circuits.cli import app
from persona_circuits.models.planted import planted_models, write_planted
from persona_circuits.persona.data import examples_of, load_examples
from persona_circuits.persona.neurons import (
    COARSE,
    ROUNDING,
    Change,
    NeuronOptions,
    Paraphrases,
    ablated,
    at_rounding,
    effect_size,
    grouped_means,
    held_out_files,
    neuron_figures,
    neurons_of,
    overlap,
    pooled,
    rank_neurons,
    ranks,
    read_neurons,
    study_neurons,
    tables,
    tokens_at,
    write_neurons,
)
from persona_circuits.persona.neurons.ranking import score_of
from tests.families import FAMILIES, network_of

PAIRS = DATA / "tiny_pairs.json"
QUICK = NeuronOptions(top_k=5, n_random=9, max_pairs=4, n_draws=20, least=2)


@pytest.fixture(scope="module")
def found(tiny64):
    return load_examples(PAIRS, tiny64, label="tiny pairs")


@pytest.fixture(scope="module")
def bare():
    """The tiny model as Hugging Face loads it, in float64; nothing of this project has touched it."""
    return AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2", dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def study(tiny64, found):
    return study_neurons(tiny64, found, options=QUICK)


def hooked(network, ids, hooks):
    """Logits at the last token under bare hooks: of each module a function of its input (pre) or output."""
    handles = []
    for module, change, is_input in hooks:
        if is_input:
            handles.append(module.register_forward_pre_hook(lambda _m, x, f=change: (f(x[0]),)))
        else:
            handles.append(module.register_forward_hook(lambda _m, _i, out, f=change: f(out)))
    try:
        with torch.no_grad():
            return network(torch.tensor([list(ids)])).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def recorded(network, ids, module, *, is_input):
    seen = []
    hooked(network, ids, [(module, lambda x: (seen.append(x), x)[1], is_input)])
    return seen[0][0]


# Reading


@pytest.mark.parametrize(("hook", "module", "is_input"), [("post", "c_proj", True), ("pre", "c_fc", False)])
def test_neurons_are_what_bare_hooks_see(tiny64, found, bare, hook, module, is_input):
    neurons = neurons_of(tiny64, hook)
    read = read_neurons(tiny64, found.examples, neurons, "persona-mean", batch_size=3)
    whole = np.zeros(len(neurons))
    for place, one in enumerate(found.examples):
        for layer, block in enumerate(bare.transformer.h):
            values = recorded(bare, one.placed.ids, getattr(block.mlp, module), is_input=is_input).numpy()
            at = tokens_at(one.placed, "persona-mean")
            assert len(at) > 1
            np.testing.assert_allclose(read.values[place, neurons.own(layer)], values[at].mean(0), atol=1e-12)
            whole[neurons.own(layer)] += values.mean(0)
    np.testing.assert_allclose(read.everywhere, whole / len(found.examples), atol=1e-12)


@pytest.mark.parametrize("position", ["persona-end", "question-end", "prompt-end", "question-mean"])
def test_positions_are_read_apart(tiny64, found, bare, position):
    neurons = neurons_of(tiny64, "post", [1])
    read = read_neurons(tiny64, found.examples[:2], neurons, position)
    one = found.examples[1].placed
    values = recorded(bare, one.ids, bare.transformer.h[1].mlp.c_proj, is_input=True).numpy()
    at = tokens_at(one, position)
    others = {"persona-end", "question-end", "prompt-end", "question-mean"} - {position}
    assert all(at != tokens_at(one, other) for other in others)
    np.testing.assert_allclose(read.values[1], values[at].mean(0), atol=1e-12)


@pytest.mark.parametrize("hook", ["post", "pre", "gate"])
@pytest.mark.parametrize("family", ["llama3.2", "phi3", "gemma2"])
def test_gated_families_give_their_own_projections(tiny64, family, hook):
    """Two networks of one seed: one is wrapped, the other stays bare. In float32, which is the bare one's own."""
    model = wrap_model(network_of(FAMILIES[family]), tiny64.tokenizer, name=family)
    bare = network_of(FAMILIES[family])
    neurons = neurons_of(model, hook, [1])
    ids = [3, 5, 7, 11, 13]
    mlp = bare.model.layers[1].mlp
    if hook == "post":
        values = recorded(bare, ids, mlp.down_proj, is_input=True)
    elif family == "phi3":
        both = recorded(bare, ids, mlp.gate_up_proj, is_input=False)
        values = both.chunk(2, dim=-1)[0 if hook == "gate" else 1]
    else:
        values = recorded(bare, ids, mlp.gate_proj if hook == "gate" else mlp.up_proj, is_input=False)
    found = {}
    with model.blocks[1].on_neurons(hook, lambda x: found.update(x=x)):
        model.forward(torch.tensor([ids]))
    torch.testing.assert_close(found["x"][0], values, atol=2e-6, rtol=0)
    assert float(values.abs().max()) > 0.1
    assert len(neurons) == values.shape[-1]


def test_layers_without_such_neurons_are_refused(tiny64):
    with pytest.raises(ModelError, match=r"layer 0: the MLP has no gate; use --hook post"):
        neurons_of(tiny64, "gate")
    experts = wrap_model(network_of(FAMILIES["mixtral"]), tiny64.tokenizer, name="mixtral")
    with pytest.raises(ModelError, match=r"mixtral: layer 0 is a mixture of experts"):
        neurons_of(experts, "post")
    with pytest.raises(OptionError, match="--layer 7 is not one of 0 to 2"):
        neurons_of(tiny64, "post", [7])


def test_a_down_projection_that_is_not_last_is_refused(tiny64, monkeypatch):
    """The check is no identity: an MLP that does something to what its down projection writes is told."""
    mlp = tiny64.blocks[0].bridge.mlp
    host = mlp.original_component.forward
    monkeypatch.setattr(mlp.original_component, "forward", lambda x: host(x) * 2)
    with pytest.raises(ModelError, match="its neurons cannot be told"):
        neurons_of(tiny64, "post")


# Ablation


def by_hand(bare, one, other, kind, chosen, means, places, partners):
    """m of one prompt under an ablation, from bare hooks alone. ``chosen``: numbers by layer."""
    hooks = []
    for layer, numbers in chosen.items():
        module = bare.transformer.h[layer].mlp.c_proj
        partner = recorded(bare, other.placed.ids, module, is_input=True)

        def change(x, layer=layer, numbers=numbers, partner=partner):
            x = x.clone()
            for here, there in zip(places, partners, strict=True):
                for number in numbers:
                    value = {"zero": 0.0, "mean": means[layer][number]}.get(kind)
                    x[0, here, number] = partner[there, number] if value is None else value
            return x

        hooks.append((module, change, True))
    logits = hooked(bare, one.placed.ids, hooks)
    return float(logits[list(one.sides[0])].mean() - logits[list(one.sides[1])].mean())


@pytest.mark.parametrize("position", ["persona-end", "question-mean", None])
def test_ablations_are_those_of_bare_hooks(tiny64, bare, tmp_path, position):
    """Pairs of unequal length among them: tokens without a partner keep their own value under ``swap``."""
    rows = [("you are a happy cook.", "you are a sad cook."), ("you are a happy happy cook.", "you are a sad cook.")]
    path = tmp_path / "pairs.jsonl"
    answers = {"answers": [" blue"], "wrong_answers": [" red"]}
    texts = [{"clean": f"{a} red or blue? answer:", "corrupt": f"{b} red or blue? answer:"} for a, b in rows]
    path.write_text("".join(json.dumps({**text, **answers}) + "\n" for text in texts))
    found = load_examples(path, tiny64)
    neurons = neurons_of(tiny64, "post")
    read = read_neurons(tiny64, found.examples, neurons, "prompt-end")
    rng = np.random.default_rng(0)
    sets = rng.random((3, len(neurons))) < 0.2
    sets[1, neurons.own(0)] = False
    kinds = ("zero", "mean", "swap")
    means = read.values.mean(0)
    before, after = ablated(tiny64, found, neurons, sets, Change(kinds, position, means), batch_size=2)
    for pair in range(2):
        a, b = found.examples[2 * pair : 2 * pair + 2]
        sides = [by_hand(bare, one, one, "zero", {}, {}, [], []) for one in (a, b)]
        assert before[pair] == pytest.approx(sides[0] - sides[1], abs=1e-10)
        for k, kind in enumerate(kinds):
            for row, marks in enumerate(sets):
                chosen = {layer: np.flatnonzero(marks[neurons.own(layer)]) for layer in range(3)}
                by_layer = {layer: means[neurons.own(layer)] for layer in range(3)}
                margins = []
                for one, other in ((a, b), (b, a)):
                    mine, theirs = (
                        tokens_at(x.placed, position) if position else list(range(len(x.placed.ids)))
                        for x in (one, other)
                    )
                    n = min(len(mine), len(theirs)) if kind == "swap" else len(mine)
                    partners = theirs[-n:] if kind == "swap" else mine
                    margins.append(by_hand(bare, one, other, kind, chosen, by_layer, mine[-n:], partners))
                assert after[k, row, pair] == pytest.approx(margins[0] - margins[1], abs=1e-9), (kind, row, pair)
    assert np.abs(after - before).max() > 1e-3


def test_a_planted_neuron_is_found_and_carries_d(tmp_path):
    """who -> a0.h1 -> m1's first neuron -> answer; the other MLP gives every persona the same."""
    planted = next(one for one in planted_models() if one.name == "prior")
    write_planted(planted, tmp_path / "prior")
    model = planted.model(dtype="float64")
    found = load_examples(tmp_path / "prior" / "pairs.jsonl", model)
    options = NeuronOptions(top_k=3, kinds=(), n_draws=20)
    study = study_neurons(model, found, options=options)
    assert [study.neurons.name(place) for place in study.selected] == ["m1.n0"]
    prior = study.neurons.own(2).start
    assert study.ranking.rounding[prior]
    assert not study.silent[prior]  # it is active, and alike for all
    assert "1 neurons differ by more than rounding" in " ".join(study.notes)
    sets = np.zeros((2, len(study.neurons)), dtype=bool)
    sets[0, study.neurons.own(1).start] = True
    sets[1, prior] = True
    read = read_neurons(model, found.examples, study.neurons, "prompt-end")
    kinds = ("zero", "mean", "swap")
    change = Change(kinds, "prompt-end", read.values.mean(0))
    before, after = ablated(model, found, study.neurons, sets, change)
    assert before.mean() > 0.5
    np.testing.assert_allclose(after[0, 0] / before, 0.0, atol=0.02)
    np.testing.assert_allclose(after[1, 0] / before, 0.0, atol=0.02)
    np.testing.assert_allclose(after[2, 0] / before, -1.0, atol=0.02)
    np.testing.assert_allclose(after[1:, 1] / before, 1.0, atol=0.02)
    with pytest.raises(OptionError, match=r"layer 1 has 1 of the selected neurons and 0 others.*lower --top-k"):
        study_neurons(model, found, options=NeuronOptions(n_random=3, n_draws=20))


# Statistics


def test_two_identical_prompts_are_refused(tiny, tmp_path):
    path = tmp_path / "same.jsonl"
    prompts = [f"you are a {who} cook. red or blue? answer:" for who in ("happy", "sad", "calm")]
    row = {"answers": [" blue"], "wrong_answers": [" red"]}
    path.write_text("".join(json.dumps({"clean": text, "corrupt": text, **row}) + "\n" for text in prompts))
    with pytest.raises(TaskError, match="clean and corrupt are the same tokens"):
        load_examples(path, tiny)


@pytest.mark.parametrize(("epsilon", "units"), [(2.0**-52, ROUNDING), (2.0**-23, ROUNDING), (2.0**-7, COARSE)])
def test_rounding_is_a_multiple_of_the_formats_spacing(epsilon, units):
    largest = np.array([100.0, 1.0, 0.0, 5.0])
    layers = np.array([0, 0, 0, 1])
    bound = units * epsilon
    root = np.sqrt((100**2 + 1) / 3)
    size = np.array([bound * 100, bound * root * 1.01, 0.0, bound * 5 * 1.01])
    assert at_rounding(size, largest, layers, epsilon).tolist() == [True, False, True, False]
    assert at_rounding(size * 1.1, largest, layers, epsilon).tolist() == [False, False, True, False]
    assert not at_rounding(size[:2], largest[:2], layers[:2], epsilon / 4).any()


def test_q_is_benjamini_and_hochbergs_and_p_a_permutation_p():
    """Both written out: p over all flips' Z of all neurons, q the smallest level at which a neuron is kept."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, 7))
    x[:, 2] += 3.0
    groups = np.repeat(np.arange(4), 3)
    rounding = np.array([False] * 6 + [True])
    found = rank_neurons(x, groups, rounding, NeuronOptions(n_draws=50, seed=5))
    means = np.stack([x[groups == g].mean(0) for g in range(4)])
    spread = np.sqrt((means**2).mean(0))
    scale = spread + np.median(spread[:6])
    z = np.abs(means.mean(0)) / scale
    np.testing.assert_allclose(found.z[:6], z[:6])
    signs = np.random.default_rng(5).choice((-1.0, 1.0), size=(50, 4))
    draws = [np.abs(sum(s * row for s, row in zip(flip, means, strict=True)) / 4) / scale for flip in signs]
    every = np.concatenate([draw[:6] for draw in draws])
    p = [(1 + (every >= value * (1 - 1e-9)).sum()) / (1 + len(every)) for value in z[:6]]
    np.testing.assert_allclose(found.p[:6], p)
    order = np.argsort(p)
    q = np.empty(6)
    least = 1.0
    for place in reversed(range(6)):
        least = min(least, p[order[place]] * 6 / (place + 1))
        q[order[place]] = least
    np.testing.assert_allclose(found.q[:6], q)
    assert np.isnan([found.z[6], found.p[6], found.q[6]]).all()
    assert 6 not in found.order
    assert found.order[0] == 2


@pytest.mark.parametrize("by", ["z", "difference"])
@pytest.mark.parametrize("paraphrases", [True, False])
def test_what_is_selected_is_ranked_first_by_the_cross_validation_of_the_same_pairs(by, paraphrases):
    rng = np.random.default_rng(2)
    scale = rng.lognormal(size=90)
    x, groups, rounding = rng.normal(size=(24, 90)) * scale, np.repeat(np.arange(6), 4), np.arange(90) == 3
    null = Paraphrases(rng.normal(size=(12, 90)) * rng.lognormal(size=90), np.arange(12)) if paraphrases else None
    found = rank_neurons(x, groups, rounding, NeuronOptions(rank_by=by, n_draws=20), null=null)
    places = ranks(score_of(x, groups, found, "mean"))
    assert [int(places[place]) for place in found.order] == list(range(1, 90))
    assert places[3] == 0
    if by == "difference":
        means = np.abs(np.stack([x[groups == g].mean(0) for g in range(6)]).mean(0))
        assert found.order[0] == np.argmax(np.where(rounding, 0, means))


def test_pools_differ_where_couples_disagree():
    """A neuron that goes one way for half of the couples and the other way for the rest: ``rms`` alone sees it."""
    x = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [1.0, -1.0]])
    means = grouped_means(x, np.array([0, 0, 1, 1]))
    assert pooled(means, "mean").tolist() == [1.0, 0.0]
    assert pooled(means, "rms").tolist() == [1.0, 1.0]
    np.testing.assert_allclose(effect_size(x)[1], 0.0)
    assert np.isnan(effect_size(x)[0])


@pytest.mark.parametrize("pool", ["mean", "rms"])
def test_the_paraphrase_null_is_uniform_where_there_is_nothing_and_small_where_there_is(pool):
    """Personas that differ as paraphrases do give q no discovery; one that differs more is found."""
    rng = np.random.default_rng(3)
    spread = rng.lognormal(size=400)
    null = Paraphrases(rng.normal(size=(24, 400)) * spread, np.arange(24))
    x = rng.normal(size=(20, 400)) * spread
    rounding = np.zeros(400, dtype=bool)
    options = NeuronOptions(pool=pool, n_draws=100)
    nothing = rank_neurons(x, np.arange(20), rounding, options, null=null)
    assert (nothing.q > 0.05).all()
    assert 0.35 < nothing.p.mean() < 0.75
    x[:, 7] += 6 * (spread[7] + np.median(spread))
    assert rank_neurons(x, np.arange(20), rounding, options, null=null).q[7] < 0.05


def test_personas_without_a_common_direction_have_an_rms_and_no_mean():
    """Ten times a paraphrase's difference, of random sign: every neuron tells personas apart, none has a mean."""
    rng = np.random.default_rng(4)
    x, null = 10 * rng.normal(size=(20, 300)), rng.normal(size=(24, 300))
    wordings, quiet, options = Paraphrases(null, np.arange(24)), np.zeros(300, dtype=bool), NeuronOptions(n_draws=100)

    def ranked(x, options=options, null=wordings):
        return rank_neurons(x, np.arange(20), quiet, options, null=null)

    assert (ranked(x, replace(options, pool="rms")).q < 0.05).all()
    mean = ranked(x)
    assert (mean.q > 0.05).all()
    assert mean.null == "paraphrase and sign-flip"
    x[:, 5] = np.abs(x[:, 5])
    assert ranked(x).order[0] == 5
    small = x / 100
    small[:, 6] = 0.1  # steady, but no more than a wording makes
    assert ranked(small, null=None).q[6] < 0.05
    assert ranked(small).q[6] > 0.05


def test_overlap_is_hypergeometric():
    """Every way to draw 3 of 6 counted: sharing 2 or more with a list of 3."""
    import itertools

    draws = [len({0, 1, 2} & set(draw)) for draw in itertools.combinations(range(6), 3)]
    found = overlap([0, 1, 2], [1, 2, 5], 6)
    assert (found.shared, found.expected, found.jaccard) == (2, 1.5, 0.5)
    assert found.p == pytest.approx(np.mean([shared >= 2 for shared in draws]))
    assert overlap([], [], 6).jaccard is None
    assert ranks(np.array([0.5, np.nan, 2.0])).tolist() == [2, 0, 1]


# The study


def test_differences_and_effects_are_numpys(tiny64, found, study):
    read = read_neurons(tiny64, found.examples, study.neurons, "prompt-end")
    x = read.values[::2] - read.values[1::2]
    np.testing.assert_allclose(study.fit.difference, x.mean(0), atol=1e-12)
    np.testing.assert_allclose(study.fit.effect, x.mean(0) / x.std(0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(study.means[0] - study.means[1], study.fit.difference, atol=1e-12)
    assert len(study.selected) == 5
    assert study.held is None
    assert study.notes[0].startswith("not held out")


def test_random_sets_have_the_selections_layers_and_none_of_its_neurons(tiny64, found, study, monkeypatch):

    seen = {}

    def spy(*arguments, **settings):
        seen["sets"] = arguments[3]
        return ablated(*arguments, **settings)

    monkeypatch.setattr("persona_circuits.persona.neurons.ablation.ablated", spy)
    again = study_neurons(tiny64, found, options=QUICK)
    own, others = seen["sets"][0], seen["sets"][1:]
    assert np.flatnonzero(own).tolist() == sorted(study.selected)
    layers = study.neurons.layers
    for row in others:
        assert not (row & own).any()
        assert np.bincount(layers[row], minlength=3).tolist() == np.bincount(layers[own], minlength=3).tolist()
    assert len({row.tobytes() for row in others}) > 1
    assert [one.change for one in again.ablations] == [one.change for one in study.ablations]
    for one in study.ablations:
        extreme = (np.abs(one.random) >= abs(one.change) * (1 - 1e-9)).sum()
        assert one.p == (1 + extreme) / 10
        assert one.change == pytest.approx((one.after - one.before).mean())


def test_selection_sees_the_fitting_pairs_alone(tmp_path, tiny64):
    """Held-out pairs may be anything: the selection stays what it is."""
    rows = json.loads(PAIRS.read_text())["prompts"]
    for place, row in enumerate(rows):
        row["split"] = "train" if place < 5 else "test"
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in rows))
    swapped = [
        row | {"clean": row["corrupt"], "corrupt": row["clean"]} if row["split"] == "test" else row for row in rows
    ]
    second.write_text("".join(json.dumps(row) + "\n" for row in swapped))
    a, b = (
        study_neurons(tiny64, *held_out_files(load_examples(path, tiny64)), options=QUICK) for path in (first, second)
    )
    assert a.selected == b.selected
    assert (a.fit.n_pairs, a.held.n_pairs) == (5, 3)
    np.testing.assert_allclose(a.held.difference, -b.held.difference, atol=1e-12)
    assert len(a.ablated_pairs) == 3


def test_everywhere_is_another_ablation(tiny64, found, study):
    other = study_neurons(tiny64, found, options=replace(QUICK, everywhere=True))
    assert other.selected == study.selected
    assert abs(other.ablations[2].change - study.ablations[2].change) > 1e-4


def test_files_and_figures(study, tmp_path):
    write_neurons(study, tmp_path)
    record = json.loads((tmp_path / "neurons.json").read_text())
    assert record["format"] == "persona-circuits/neurons"
    assert [row["rank"] for row in record["selected"]] == [1, 2, 3, 4, 5]
    with (tmp_path / "neurons.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in record["selected"]]
    arrays = load_file(tmp_path / "neurons.safetensors")
    assert len(arrays["q"]) == record["counts"]["neurons"]
    text = (tmp_path / "neurons.md").read_text()
    assert f"| {record['selected'][0]['name']} |" in text
    assert "## Ablation" in text
    assert len(list(tables(study))[-1].cells()) == 3
    for name in neuron_figures(study):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_where_nothing_is_significant_no_figure_marks_what_is_selected(study):
    def said(one):
        return json.dumps({name: asdict(figure) for name, figure in neuron_figures(one).items()}, default=list)

    ranking = study.ranking
    for q, marked in ((0.0, True), (1.0, False)):
        one = replace(study, ranking=replace(ranking, q=np.full_like(ranking.q, q)), held=study.held or study.fit)
        assert (one.n_discovered > 0) is marked
        assert ("selected" in said(one).lower()) is marked
        assert {"neurons-transfer", "neurons-ablation"} <= neuron_figures(one).keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hook": "middle"}, "--hook 'middle' is not one of post, pre, gate"),
        ({"position": "start"}, "--position 'start' is not one of persona-end"),
        ({"kinds": ("noise",)}, "--ablation 'noise' is not one of zero, mean, swap"),
        ({"top_k": 0}, "--top-k must be at least 1"),
        ({"least": 1}, "--min-group must be at least 2"),
        ({"level": 1.0}, "--level must be between 0 and 1"),
    ],
)
def test_options_that_make_no_sense(given, message):
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        NeuronOptions(**given).checked()


def test_rms_needs_paraphrases_and_the_null_enough_personas(tiny64, found):
    with pytest.raises(OptionError, match="--pool rms needs paraphrase pairs"):
        study_neurons(tiny64, found, options=NeuronOptions(pool="rms"))
    with pytest.raises(TaskError, match="the null needs 4"):
        study_neurons(tiny64, found, null=load_examples(PAIRS, tiny64), options=QUICK)


@pytest.mark.slow
def test_the_command_with_the_shipped_paraphrases(tmp_path):
    runner = CliRunner()
    out = tmp_path / "out"
    arguments = ["neurons", "--layer", "9", "--pool", "rms", "--n-random", "5", "--max-pairs", "3", "--n-draws", "10"]
    pairs = ["--pairs", str(ROOT / "datasets/pairs_demo.jsonl"), "--null", str(ROOT / "datasets/pairs_controls.jsonl")]
    done = runner.invoke(app, [*arguments, *pairs, "--ablation", "swap", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "against 40 paraphrase pairs" in done.output
    record = json.loads((out / "neurons.json").read_text())
    assert record["null"] == {"kind": "paraphrase", "pairs": 40, "couples": record["null"]["couples"]}
    assert {row["layer"] for row in record["selected"]} == {9}
    assert [row["kind"] for row in record["ablations"]] == ["swap"]
    refused = runner.invoke(app, [*arguments, *pairs, "--hook", "gate", "--out", str(out)])
    assert refused.exit_code == 2
    assert "has no gate" in refused.output


@pytest.mark.slow
def test_craftgpts_swap_moves_d_more_than_random_neurons_do(craftgpt):
    assert CRAFTGPT.is_dir()
    file = load_examples(ROOT / "datasets" / "craftgpt_weather.jsonl", craftgpt)
    options = NeuronOptions(n_random=39, max_pairs=12, kinds=("swap",))
    study = study_neurons(craftgpt, *held_out_files(file), options=options)
    (swap,) = study.ablations
    assert swap.p <= 0.05
    assert swap.change < 0
    assert study.silent.sum() > 1000  # ReLU: most neurons are off
    assert study.ranking.rounding.sum() >= study.silent.sum()


def test_pairs_without_answers_are_read_and_nothing_is_ablated(tmp_path, tiny64, study):
    """The same neurons as with answers; what took no part is counted."""
    from persona_circuits.cli import app
    from persona_circuits.persona.data import load_unanswered

    rows = json.loads(PAIRS.read_text())["prompts"]
    bare = [{key: row[key] for key in ("clean", "corrupt")} for row in rows]
    path = tmp_path / "bare.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in bare))
    found = examples_of(load_unanswered(path), tiny64)
    without = study_neurons(tiny64, found, options=replace(QUICK, answers=False))
    assert without.ablations == ()
    np.testing.assert_allclose(without.fit.difference, study.fit.difference)
    assert "nothing was ablated" in without.notes[0]
    given = ["neurons", "--model", str(DATA / "tiny-gpt2"), "--pairs", str(path), "--no-answers", "--top-k", "3"]
    longer = {"clean": bare[0]["clean"] + " zzz", "corrupt": bare[0]["clean"] + " zzz"}  # one prompt: no pair
    path.write_text("".join(json.dumps(row) + "\n" for row in [*bare, longer]))
    done = CliRunner().invoke(app, [*given, "--fitting", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "8 fitted on, 0 held out; 1 do not fit the model" in done.output.replace("\n", " ")
    assert json.loads((tmp_path / "out" / "neurons.json").read_text())["dropped"]["do not fit the model"] == 1


def test_persona_domains_are_groups_and_small_groups_are_counted(tmp_path, tiny64):
    rows = json.loads(PAIRS.read_text())["prompts"]
    kinds = ["profession"] * 3 + ["value"] * 3 + ["way of life"] * (len(rows) - 6)
    path = tmp_path / "pairs.jsonl"
    lines = [row | {"persona_domain": kind} for row, kind in zip(rows, kinds, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    found = study_neurons(tiny64, load_examples(path, tiny64), options=replace(QUICK, least=3))
    own = [group for group in found.groups if group.kind == "persona domain"]
    assert [(group.name, group.n_pairs) for group in own] == [("profession", 3), ("value", 3)]
    assert found.dropped["in a group below --min-group"] >= len(rows) - 6
