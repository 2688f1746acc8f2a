"""Every model family against Hugging Face, an edge-by-edge reference, autograd and exact patching."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from conftest import DATA
from families import FAMILIES, REFUSED, save
from generic_reference import GenericReference
from transformers import AutoModelForCausalLM, AutoTokenizer

from persona_circuits.circuit.attribution import eap, eap_by_definition, eap_ig, exact
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.forward import Prefix, measure, patched_logits, prepare, run, zero
from persona_circuits.circuit.model import load_model, nothing_installed
from persona_circuits.circuit.pruning import Trials, acdc
from persona_circuits.circuit.task import Batch, Row, batches
from persona_circuits.metrics import METRICS
from persona_circuits.persona.data import Template, load_examples
from persona_circuits.persona.lens import LensOptions, study_lens
from persona_circuits.persona.neurons import NeuronOptions, study_neurons
from persona_circuits.persona.probing import ProbeOptions, study_probes
from persona_circuits.persona.responses import Exchange, Response, spoken_tokens
from persona_circuits.persona.streams import collect, trace
from persona_circuits.persona.vectors import persona_vectors

NAMES = list(FAMILIES)
LOGIT_DIFF = METRICS["logit-diff"]
TOLERANCE = 2e-5
"""Of logits, in float64: some norms and rotations of the host compute in float32 whatever the weights are in."""


@pytest.fixture(scope="module", autouse=True)
def nothing_is_installed():
    """The host library runs pip in some cases; a model that needs that must fail here."""
    import subprocess

    def refuse(*args, **_):
        raise AssertionError(f"something would be installed: {args}")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("check_call", "run", "Popen"):
            patch.setattr(subprocess, name, refuse)
        yield


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """From a name to the model, loaded from a folder, and the host's own network."""

    words = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")

    @cache
    def load(name):
        folder = save(name, tmp_path_factory.mktemp("family"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        if network._can_set_experts_implementation():
            network.set_experts_implementation("eager")
        model = load_model(folder, dtype="float64")
        model.tokenizer = words  # some families' own tokenizer classes make something else of its file
        return model, network.eval().requires_grad_(False)

    return load


def pair_of_prompts(length=7, rows=2, shared=2):
    """Pairs whose first tokens are the same."""
    clean, corrupt = torch.randint(0, 64, (2, rows, length), generator=torch.Generator().manual_seed(1))
    corrupt[:, :shared] = clean[:, :shared]
    answers = torch.arange(1, rows + 1)[:, None]
    return Batch(tuple(range(rows)), clean, corrupt, answers, answers + 10)


def score_of(logits, batch):
    rows = torch.arange(len(batch))
    return (logits[rows, batch.answers[:, 0]] - logits[rows, batch.wrong_answers[:, 0]]).mean()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_hugging_faces(name, family):
    model, network = family(name)
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(model.logits(tokens), expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(model.forward(tokens), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama3.2", "gemma2", "neox, parallel"])
def test_eap_and_eap_ig_are_their_definition(name, family):
    """Plain autograd with a stream for every head, with norms after components and side by side ones too."""
    model, _ = family(name)
    batch = pair_of_prompts()
    for found, points in (
        (eap(model, [batch], LOGIT_DIFF), (1.0,)),
        (eap_ig(model, [batch], LOGIT_DIFF, steps=2), (0.25, 0.75)),
    ):
        expected = eap_by_definition(model, [batch], LOGIT_DIFF, points).values
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(found.values, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_full_circuit_is_clean_and_empty_is_corrupt(name, family):
    model, network = family(name)
    batch = pair_of_prompts()
    valid = torch.from_numpy(model.graph.valid.copy())
    full, empty = patched_logits(model, prepare(model, batch), torch.stack([valid, torch.zeros_like(valid)]))
    with torch.no_grad():
        clean, corrupt = (network(tokens).logits[:, -1] for tokens in (batch.clean, batch.corrupt))
    assert (clean - corrupt).abs().max() > 0.1
    torch.testing.assert_close(full, clean, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(empty, corrupt, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_edge_by_edge_reference(name, family):
    """Random circuits, and every single edge's gradient by autograd through the reference."""
    model, network = family(name)
    if FAMILIES[name].no_reference:
        pytest.skip(FAMILIES[name].no_reference)
    graph, batch = model.graph, pair_of_prompts()
    reference = GenericReference(network, parallel=graph.parallel)
    with torch.no_grad():
        clean, logits = reference.plain(batch.clean)
        corrupt, _ = reference.plain(batch.corrupt)
    item = prepare(model, batch)
    torch.testing.assert_close(item.clean.logits, logits, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(item.clean.contributions, clean, atol=TOLERANCE, rtol=0)
    rng = np.random.default_rng(0)
    masks = [graph.valid & (rng.random(graph.valid.shape) < share) for share in (0.5, 0.9, 0.1)]
    found = patched_logits(model, item, torch.from_numpy(np.stack(masks)))
    for mask, ours in zip(masks, found, strict=True):
        with torch.no_grad():
            _, expected = reference.run(batch.clean, corrupt, torch.from_numpy(mask).double())
        torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)
    alpha = torch.ones(graph.valid.shape, dtype=torch.float64, requires_grad=True)
    _, logits = reference.run(batch.clean, corrupt, alpha)
    (slope,) = torch.autograd.grad(score_of(logits, batch), alpha)
    scores, expected = eap(model, [batch], LOGIT_DIFF).values, -slope.numpy()
    assert np.abs(expected).max() > 1e-2
    assert np.abs(scores - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_exact_patching_is_eap_to_first_order(name, family):
    """Between two nearly equal embeddings."""
    model, _ = family(name)
    ours = model.bridge.original_model.get_input_embeddings().weight
    kept = ours[6].clone()
    clean = pair_of_prompts().clean.clone()
    clean[clean == 6] = 7
    clean[:, 2] = 5
    corrupt = clean.clone()
    corrupt[:, 2] = 6
    batch = Batch((0, 1), clean, corrupt, torch.tensor([[1], [2]]), torch.tensor([[11], [12]]))
    with torch.no_grad():
        ours[6] = ours[5] + 3e-4 * torch.randn(ours.shape[1], generator=torch.Generator().manual_seed(2))
    try:
        first, whole = (f(model, [batch], LOGIT_DIFF).values for f in (eap, exact))
    finally:
        with torch.no_grad():
            ours[6] = kept
    assert np.abs(whole).max() > 1e-6
    assert np.abs(first - whole).max() < 2e-2 * np.abs(whole).max()


@pytest.mark.parametrize("name", NAMES)
def test_acdc_in_batches_is_acdc_edge_by_edge(name, family):
    model, _ = family(name)
    item = prepare(model, pair_of_prompts())
    edges = [edge for i, edge in enumerate(reversed(list(model.graph.edges()))) if i % 6 == 0]
    one, many = (acdc(model, [item], LOGIT_DIFF, 0.05, trials=Trials(order=edges, candidates=n)) for n in (1, 8))
    assert (one.circuit.mask == many.circuit.mask).all()
    np.testing.assert_allclose(one.changes, many.changes, atol=TOLERANCE)
    assert (~np.isnan(one.changes)).any()


@pytest.mark.parametrize("name", NAMES)
def test_padded_prompts_are_the_prompts_alone(name, family):
    model, _ = family(name)
    generator = torch.Generator().manual_seed(3)
    ids = lambda n: tuple(torch.randint(1, 64, (n,), generator=generator).tolist())  # noqa: E731
    rows = [Row(i, ids(n), ids(n), (1,), (2,)) for i, n in enumerate((5, 8, 6))]
    together = batches(rows, 3, "cpu", uneven=True)
    alone = batches(rows, 1, "cpu")
    masks = [model.graph.valid & (np.random.default_rng(0).random(model.graph.valid.shape) < 0.7)]
    found = [
        (measure(model, [prepare(model, batch) for batch in group], masks, LOGIT_DIFF), eap(model, group, LOGIT_DIFF))
        for group in (together, alone)
    ]
    assert len(together) == 1
    np.testing.assert_allclose(found[0][0], found[1][0], atol=TOLERANCE)
    np.testing.assert_allclose(found[0][1].values, found[1][1].values, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_zero_ablation_edge_by_edge(name, family):
    """Nothing in place of what is cut: streams of zeros are zeros, whichever norms read them and stand after them."""
    model, network = family(name)
    if FAMILIES[name].no_reference:
        pytest.skip(FAMILIES[name].no_reference)
    graph, batch = model.graph, pair_of_prompts()
    reference = GenericReference(network, parallel=graph.parallel)
    nothing = torch.zeros(graph.n_src, *batch.clean.shape, model.d_model, dtype=torch.float64)
    nothing[0] = model.positions(batch.clean)
    rng = np.random.default_rng(0)
    masks = [graph.valid & (rng.random(graph.valid.shape) < share) for share in (0.0, 0.1, 0.5, 0.9)]
    found = patched_logits(model, prepare(model, batch, zero), torch.from_numpy(np.stack(masks)))
    for mask, ours in zip(masks, found, strict=True):
        with torch.no_grad():
            _, expected = reference.run(batch.clean, nothing, torch.from_numpy(mask).double())
        torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found[0][0], found[0][1], atol=TOLERANCE, rtol=0)  # with nothing kept prompts are alike


UNEVEN = ((7, 10), (11, 8), (9, 9))
"""Tokens of a clean and of a corrupt prompt."""


@pytest.mark.parametrize("name", NAMES)
def test_circuits_share_a_pass_at_any_batch_size(name, family):
    """Prompts of unequal length, aligned on the right: alone or padded beside others, one circuit a pass or all."""
    model, _ = family(name)
    generator = torch.Generator().manual_seed(3)
    ids = lambda n: tuple(torch.randint(1, 64, (n,), generator=generator).tolist())  # noqa: E731
    end = ids(3)
    rows = [Row(i, ids(n - 3) + end, ids(m - 3) + end, (1,), (2,)) for i, (n, m) in enumerate(UNEVEN)]
    valid = model.graph.valid
    some = [valid & (np.random.default_rng(i).random(valid.shape) < share) for i, share in enumerate((0.7, 0.1))]
    masks = [np.zeros_like(valid), *some]
    for ablation in (None, zero):
        found = []
        for size in (1, 2, 3):
            prepared = [prepare(model, batch, ablation) for batch in batches(rows, size, "cpu")]
            found += [measure(model, prepared, masks, LOGIT_DIFF, max_bytes=bound) for bound in (None, 1)]
        assert np.ptp(found[0], axis=0).min() > 1e-3
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_streams_and_parts_for_lens_probes_and_vectors(name, family):
    """The streams between blocks are the host's hidden states, and parts and biases add up to the last one."""
    model, network = family(name)
    tokens = pair_of_prompts().clean
    with torch.no_grad():
        hidden = network(tokens, output_hidden_states=True).hidden_states
    seen = trace(model, tokens, torch.tensor([[3, 6], [3, 6]]), with_parts=True)
    for point in range(model.graph.n_layers):
        torch.testing.assert_close(seen.streams[point], hidden[point][:, [3, 6]], atol=TOLERANCE, rtol=0)
    logits = model.unembed(seen.streams[-1][:, 1])
    torch.testing.assert_close(logits, model.logits(tokens)[:, -1], atol=TOLERANCE, rtol=0)
    if not FAMILIES[name].has("norms behind"):
        whole = seen.parts.sum(0) + seen.biases.sum(0)
        torch.testing.assert_close(whole, seen.streams[-1][:, 1], atol=TOLERANCE, rtol=0)


def _lens(model, network, found):
    """The last point is Hugging Face's logits, pair by pair; attributions add up to D or are said not to."""
    study = study_lens(model, found, options=LensOptions(n_resamples=100))
    one, place = found.examples[0], study.positions.index("prompt-end")
    with torch.no_grad():
        logits = network(torch.tensor([one.placed.ids])).logits[0, -1]
    answers, others = (list(ids) for ids in ((one.answers, one.others) if one.is_clean else (one.others, one.answers)))
    margin = logits[answers].mean() - logits[others].mean()
    assert study.margin[0, 0, -1, place] == pytest.approx(float(margin), abs=TOLERANCE)
    capped = bool(getattr(network.config.get_text_config(), "final_logit_softcapping", None))
    assert study.attribution.conserved != capped
    assert any("miss D" in note for note in study.notes) == capped


def _probes(model, network, found):
    """The streams that probes are fitted on are Hugging Face's, and every cell has a number."""
    study = study_probes(model, found, options=ProbeOptions(n_resamples=100, repeats=1, folds=2))
    assert study.points[0] == "embedding"
    assert study.cells
    assert study.cka[1, 1] == pytest.approx(1.0)
    ids = found.examples[0].placed.ids
    with torch.no_grad():
        hidden = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
    seen = collect(model, [ids], [[len(ids) - 1]])[0]
    for point in range(model.graph.n_layers):
        torch.testing.assert_close(seen[point, 0].double(), hidden[point][0, -1], atol=TOLERANCE, rtol=1e-6)


def _vectors(model, network, _found):
    """A persona's vector is the mean of Hugging Face's stream behind a block over the tokens that were said."""
    raw = Template("plain", "{persona} {question}")  # in the tokenizer's own words
    said = [_answer(who, asked, text) for who, text in (("happy", " red"), ("sad", " blue tea")) for asked in ("cats",)]
    found = persona_vectors(model, said, raw)
    spoken = spoken_tokens(said[1], model, raw)
    with torch.no_grad():
        hidden = network(torch.tensor([list(spoken.ids)]), output_hidden_states=True).hidden_states
    expected = hidden[1][0, spoken.start :].mean(0).numpy()
    np.testing.assert_allclose(found.means[1, 0], expected, atol=TOLERANCE)


def _answer(persona, question, text):
    asked = Exchange(persona, 0, question, 0, 0, f"you are {persona}.", f"you like {question}?")
    return Response(asked, text, "stop", "m")


def _neurons(model, _network, found):
    """Selection, ranks and ablations run; in a mixture of experts it is said why there are none."""
    config = model.bridge.original_model.config.get_text_config()
    experts = any(getattr(config, name, None) for name in ("num_local_experts", "num_experts"))
    options = NeuronOptions(n_random=2, max_pairs=2, top_k=2)
    if experts:
        with pytest.raises(ModelError, match="mixture of experts"):
            study_neurons(model, found, options=options)
        return
    study = study_neurons(model, found, options=options)
    assert len(study.ablations) == len(options.kinds)


PATHS = {"lens": _lens, "probes": _probes, "vectors": _vectors, "neurons": _neurons}
"""What is asked of the persona inside a model, by the command's name; each takes the model, the host's, and pairs."""


@pytest.mark.parametrize("name", NAMES)
def test_lens_probes_vectors_and_neurons_run(name, family):
    model, network = family(name)
    found = load_examples(DATA / "tiny_pairs.json", model)
    for check in PATHS.values():
        check(model, network, found)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("opt", "no MLP that is a function of the residual stream alone"),
        ("bloom", "no MLP that is a function of the residual stream alone"),
        ("falcon", "key-value heads"),
    ],
)
def test_what_does_not_come_apart_is_refused_with_the_reason(name, says, tmp_path):
    with pytest.raises(ModelError, match=says):
        load_model(save(name, tmp_path))
    assert name in REFUSED


# The hard parts, one by one: each test shows that the part matters in its family, and is carried along.


def network_without(name, tmp_path, **options):
    """The family's weights under other options; what the model would be if a part were left out."""
    from transformers import AutoConfig

    folder = save(name, tmp_path)
    config = AutoConfig.from_pretrained(folder)
    for key, value in options.items():
        setattr(config.get_text_config(), key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float64, attn_implementation="eager"
        ).eval()


PARTS = {
    "rotary positions": ("llama2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e-6}}),
    "rope scaling": ("llama3.2", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "partial rotary positions": (
        "phi",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
    ),
    "soft cap on attention": ("gemma2", {"attn_logit_softcapping": None}),
    "soft cap on logits": ("gemma2", {"final_logit_softcapping": None}),
    "sliding window": ("mistral", {"sliding_window": None}),
    "sliding layers among global ones": ("gemma3", {"layer_types": ["full_attention", "full_attention"]}),
    "parallel attention and MLP": ("neox, parallel", {"use_parallel_residual": False}),
    "logit scale": ("cohere", {"logit_scale": 1.0}),
    "scaled branches": ("granite", {"residual_multiplier": 1.0}),
    "embedding multiplier": ("granite", {"embedding_multiplier": 1.0}),
    "clipped queries, keys and values": ("olmo", {"clip_qkv": None}),
}


@pytest.mark.parametrize("part", PARTS)
def test_part_matters_and_is_carried_along(part, family, tmp_path):
    name, options = PARTS[part]
    model, network = family(name)
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, without = network(tokens).logits, network_without(name, tmp_path, **options)(tokens).logits
    assert (expected - without).abs().max() > 1e-2
    torch.testing.assert_close(model.forward(tokens), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["llama3.2", "qwen2.5", "phi3", "gemma"])
def test_grouped_queries_have_keys_and_values_of_their_own(name, family):
    """Two heads of one group: cutting the value edge of the one is not cutting that of the other."""
    model, network = family(name)
    graph, block = model.graph, model.blocks[0]
    assert all(block.weights[slot].shape[0] == graph.n_heads for slot in "qkv")
    assert model.bridge.original_model.config.get_text_config().num_key_value_heads == graph.n_heads
    assert network.config.get_text_config().num_key_value_heads < graph.n_heads
    scores = exact(model, [pair_of_prompts()], LOGIT_DIFF).values
    first, second = (scores[graph.index(f"input->a0.h{h}<v>")] for h in (0, 1))
    assert abs(first - second) > 1e-6


def test_attention_biases_matter(family, tmp_path):
    """Without them the family's weights give other logits; with them the parts give the model's."""
    model, network = family("qwen2.5")
    tokens = pair_of_prompts().clean
    bare = network_without("qwen2.5", tmp_path)
    with torch.no_grad():
        for name, weight in bare.named_parameters():
            if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
                weight.zero_()
        assert (bare(tokens).logits - network(tokens).logits).abs().max() > 1e-2
        torch.testing.assert_close(model.forward(tokens), network(tokens).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("cached_bytes", [0, 1 << 30])
def test_heads_that_read_their_own_streams_have_biases_of_their_own(cached_bytes, family, monkeypatch):
    """Head by head, and together."""
    monkeypatch.setattr("persona_circuits.circuit.model.block.CACHED_BYTES", cached_bytes)
    model, _ = family("qwen2.5")
    block = model.blocks[0]
    assert all(block.biases[slot].abs().max() > 0.1 for slot in "qkv")
    streams = torch.randn(4, 2, 5, model.d_model, dtype=torch.float64)
    expected = torch.stack([block.project("k", block.attn_norm(x))[:, :, h] for h, x in enumerate(streams)], 2)
    for heads in ([0, 1, 2, 3], [1, 3]):
        found = torch.zeros_like(expected)
        block.project_own("k", streams[heads], torch.tensor(heads), found)
        torch.testing.assert_close(
            found[:, :, heads], expected[:, :, heads], atol=1e-6, rtol=0
        )  # the host norms in float32
        assert not found[:, :, [h for h in range(4) if h not in heads]].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_behind_a_prefix_is_the_end_of_the_whole_run(name, family):
    model, _ = family(name)
    tokens = pair_of_prompts().clean
    embedded, context = model.start(tokens)
    with torch.no_grad():
        whole = run(model, embedded, context)
        behind = run(model, embedded[:, 3:], context, before=Prefix.of(whole, 3))
        short = {"contributions": False, "answer_only": True}
        answer = run(model, embedded[:, 3:], context, before=Prefix.of(whole, 3), **short)
    close = {"atol": 1e-6, "rtol": 0}  # some families rotate in float32
    torch.testing.assert_close(behind.contributions, whole.contributions[:, :, 3:], **close)
    torch.testing.assert_close(behind.logits, whole.logits, **close)
    torch.testing.assert_close(answer.logits, whole.logits, **close)
    for layer, (q, k, v) in enumerate(whole.qkv):
        for found, expected in zip(behind.qkv[layer], (q, k, v), strict=True):
            torch.testing.assert_close(found, expected[:, 3:], **close)
    assert [len(x[0]) for x in answer.written.z] == [4] * (len(whole.qkv) - 1) + [1]


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "olmo2"])
def test_query_and_key_norms_are_in_attention(name, family):
    """Twice the query is no other attention where queries are normed."""
    model, _ = family(name)
    _, context = model.start(pair_of_prompts().clean)
    q, k, v = torch.randn(3, 2, 7, 4, model.blocks[0].weights["q"].shape[2], dtype=torch.float64)
    once, twice = (model.blocks[0].attention(x, k, v, context) for x in (q, 2 * q))
    torch.testing.assert_close(once, twice, atol=1e-4, rtol=0)
    plain = family("llama2")[0]
    _, context = plain.start(pair_of_prompts().clean)
    q, k, v = torch.randn(3, 2, 7, 4, 6, dtype=torch.float64)
    once, twice = (plain.blocks[0].attention(x, k, v, context) for x in (q, 2 * q))
    assert (once - twice).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2", "olmo3"])
def test_norms_behind_components_divide_between_heads(name, family):
    """Heads and the rest add up to what attention adds: with the scale of that run, head by head."""
    model, _ = family(name)
    block = model.blocks[0]
    z = torch.randn(2, 5, 4, block.W_O.shape[1], dtype=torch.float64)
    whole, shares = block.attn_out(z), block.head_results(z)
    torch.testing.assert_close(shares.sum(0), whole, atol=1e-5, rtol=0)
    assert (block.head_results(2 * z) - 2 * shares).abs().max() > 1e-2


def test_attention_of_gpt_neo_is_not_scaled(family):
    """softmax(q k) v by hand, without 1/sqrt(d_head), and with a window in the second layer."""
    model, _ = family("gpt-neo")
    _, context = model.start(pair_of_prompts().clean)
    q, k, v = torch.randn(3, 2, 7, 4, 6, dtype=torch.float64)
    places = torch.arange(7)
    for layer, window in ((0, 7), (1, 3)):
        hidden = (places[:, None] < places) | (places[:, None] - places >= window)
        pattern = torch.einsum("bqhd,bkhd->bhqk", q, k).masked_fill(hidden, -torch.inf).softmax(-1)
        expected = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        torch.testing.assert_close(model.blocks[layer].attention(q, k, v, context), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "tied"), [("llama3.2", True), ("llama2", False)])
def test_tied_and_untied_embeddings(name, tied, family):
    network = family(name)[0].bridge.original_model
    into, out = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    assert torch.equal(into, out) == tied


def test_embedding_scale_is_in_the_input(family):
    model, network = family("gemma")
    tokens = pair_of_prompts().clean
    stream, _ = model.start(tokens)
    table = network.state_dict()["model.embed_tokens.weight"]
    torch.testing.assert_close(stream, table[tokens] * 24**0.5, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "gpt-oss"])
def test_a_mixture_of_experts_is_one_node(name, family):
    model, network = family(name)
    assert model.graph.n_src == 1 + 2 * (4 + 1)
    x = torch.randn(2, 5, model.d_model, dtype=torch.float64)
    layer = network.get_decoder().layers[0]
    with torch.no_grad():
        out = layer.mlp(layer.post_attention_layernorm(x))
    torch.testing.assert_close(
        model.blocks[0].mlp(x), out[0] if isinstance(out, tuple) else out, atol=TOLERANCE, rtol=0
    )


def test_a_multimodal_model_is_its_text_part(family):
    """No image tower in memory, the text part's class and configuration, and its weights' fingerprint."""
    model, network = family("gemma3, multimodal")
    host = model.bridge.original_model
    assert type(host).__name__ == "Gemma3ForCausalLM"
    assert not any("vision" in name for name, _ in host.named_parameters())
    assert any("vision" in name for name, _ in network.named_parameters())
    assert host.config.num_hidden_layers == model.graph.n_layers == 2


def test_loading_cannot_install_anything(monkeypatch):
    """Where the host library finds no image processor it installs one with pip; it is kept from looking."""
    from transformer_lens.model_bridge.sources.transformers import source

    looked = []
    monkeypatch.setattr(source, "load_modality_processor", lambda *_: looked.append("in"))
    with nothing_installed():
        source.load_modality_processor("bridge", "config", "name", False, None)
    assert not looked
    source.load_modality_processor("bridge")
    assert looked == ["in"]
