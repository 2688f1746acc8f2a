"""The bridge: parts against bare Hugging Face hooks, planted writers, chance counted out, and the files it reads."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import wrap_model
from persona_circuits.cli import app
from persona_circuits.models.planted import planted_models, write_planted
from persona_circuits.persona.bridge import (
    BridgeOptions,
    NodeSet,
    bridge_figures,
    bridge_tables,
    build_bridge,
    fingerprint_of,
    random_sets,
    read_movers,
    read_neuron_mlps,
    read_nodes,
    three_way,
    write_bridge,
)
from persona_circuits.persona.data import load_examples
from persona_circuits.persona.streams import trace
from tests.families import FAMILIES, network_of

PAIRS = DATA / "tiny_pairs.json"
QUICK = BridgeOptions(n_random=200)


def nodes(graph, *names, label="circuit"):
    return NodeSet(label, frozenset(map(graph.src_index, names)), frozenset(range(1, graph.n_src)), "by hand")


@pytest.fixture(scope="module")
def found(tiny64):
    return load_examples(PAIRS, tiny64, label="tiny pairs")


@pytest.fixture(scope="module")
def study(tiny64, found):
    circuit = nodes(tiny64.graph, "input", "a0.h1", "m0", "a2.h3")
    return build_bridge(tiny64, circuit, found, options=QUICK)


# Decomposition


def written_by_hand(network, ids, place):
    """What every head and MLP adds at one token, ``[part, d_model]`` in the graph's order, from bare hooks."""
    seen = {}
    handles = []
    for layer, block in enumerate(network.transformer.h):
        handles.append(
            block.attn.c_proj.register_forward_pre_hook(lambda _m, x, at=layer: seen.update({("z", at): x[0]}))
        )
        handles.append(block.mlp.register_forward_hook(lambda _m, _i, out, at=layer: seen.update({("m", at): out})))
    try:
        with torch.no_grad():
            states = network(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
    finally:
        for handle in handles:
            handle.remove()
    parts = [states[0][0, place]]
    for layer, block in enumerate(network.transformer.h):
        z = seen["z", layer][0, place].view(4, -1)
        weight = block.attn.c_proj.weight.view(4, z.shape[1], -1)
        parts += [z[head] @ weight[head] for head in range(4)]
        parts.append(seen["m", layer][0, place])
    return torch.stack(parts).detach().numpy()


@pytest.mark.parametrize("position", ["persona-end", "prompt-end"])
def test_parts_are_what_bare_hooks_see_along_the_pooled_difference(tiny64, found, position):
    """v written out: the mean of A - B over the pairs, of length one; heads by their slices of the output matrix."""
    found = found.once(position)
    bare = AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2", dtype=torch.float64).eval()
    places = [one.placed.places[position] for one in found.examples]
    written = np.stack(
        [written_by_hand(bare, one.placed.ids, at) for one, at in zip(found.examples, places, strict=True)]
    )
    apart = written[::2] - written[1::2]
    options = BridgeOptions(position=position, direction="pooled", n_random=10)
    study = build_bridge(tiny64, nodes(tiny64.graph, "input"), found, options=options)
    n = apart.shape[1]
    for layer in range(3):
        upstream = 1 + 5 * (layer + 1)
        vector = apart[:, :upstream].sum(1).mean(0)
        vector = vector / np.linalg.norm(vector)
        np.testing.assert_allclose(study.parts[:, layer, :upstream], apart[:, :upstream] @ vector, atol=1e-10)
        np.testing.assert_allclose(study.projections[:, layer], (apart[:, :upstream].sum(1) @ vector), atol=1e-10)
        assert (study.parts[:, layer, upstream:n] == 0).all()


@pytest.mark.parametrize("family", ["gpt2", "llama3.2", "gemma2", "neox, parallel"])
@pytest.mark.parametrize("position", ["persona-end", "prompt-end"])
def test_the_parts_sum_to_the_projection(tiny64, family, position):
    """With a norm after components (Gemma 2) every run has gains of its own; they are in the parts."""
    fitting = network_of(FAMILIES[family])
    fitting.resize_token_embeddings(len(tiny64.tokenizer), mean_resizing=False)
    fitting.config.architectures = [type(fitting).__name__]
    model = wrap_model(fitting.double(), tiny64.tokenizer, name=family)
    file = load_examples(PAIRS, model)
    study = build_bridge(model, nodes(model.graph, "input"), file, options=BridgeOptions(position, n_random=10))
    assert study.conserved
    assert study.error < 1e-6
    assert np.abs(study.projections).max() > 1e-3


def test_conservation_fails_when_a_head_is_left_out(tiny64, found, monkeypatch):
    """The check is no identity."""

    def without_a_head(*arguments, **settings):
        seen = trace(*arguments, **settings)
        seen.parts[2] = 0
        return seen

    monkeypatch.setattr("persona_circuits.persona.bridge.parts.trace", without_a_head)
    study = build_bridge(tiny64, nodes(tiny64.graph, "input"), found, options=QUICK)
    assert not study.conserved
    assert "the parts miss the projection" in " ".join(study.notes)


def test_planted_writers_write_all_of_it_and_the_others_nothing(tmp_path):
    """copy: a1.h1 brings the persona to the answer, a0.h0 brings it to where nobody reads; nobody else writes it."""
    planted = next(one for one in planted_models() if one.name == "copy")
    write_planted(planted, tmp_path / "copy")
    model = planted.model(dtype="float64")
    file = load_examples(tmp_path / "copy" / "pairs.jsonl", model)
    options = BridgeOptions(n_random=400, top_k=2, direction="pooled")
    study = build_bridge(model, nodes(model.graph, "input", "a0.h0", "a1.h1"), file, options=options)
    assert study.layers[1].share.value == pytest.approx(1.0, abs=1e-3)
    assert study.layers[1].written.value == pytest.approx(1.0, abs=1e-3)
    assert study.movers.nodes == {model.graph.src_index("a0.h0"), model.graph.src_index("a1.h1")}
    # one head of two in either layer: a quarter of the draws is the circuit itself
    assert study.layers[1].share.chance["layer"][3] == pytest.approx(0.25, abs=0.07)
    others = build_bridge(model, nodes(model.graph, "input", "a0.h1", "a1.h0"), file, options=options)
    assert others.layers[1].share.value == pytest.approx(0.0, abs=1e-3)
    assert others.layers[1].share.chance["layer"][3] == 1.0
    alone = build_bridge(model, nodes(model.graph, "input", "a1.h1"), file, options=options)
    assert alone.layers[0].share.value == pytest.approx(0.0, abs=1e-3)
    assert 0.1 < alone.layers[1].share.value < 0.9


def test_shares_are_ratios_of_means_written_out(study, tiny64):
    graph = tiny64.graph
    inside = [graph.src_index(name) for name in ("input", "a0.h1", "m0", "a2.h3")]
    for layer in range(3):
        own = study.parts[:, layer]
        total = own.sum(1).mean()
        assert study.layers[layer].share.value == pytest.approx(own[:, inside].sum(1).mean() / total)
        size = np.abs(own.mean(0))
        assert study.layers[layer].written.value == pytest.approx(size[inside].sum() / size.sum())
    assert [one.n_circuit for one in study.layers] == [3, 3, 4]
    assert [one.n_nodes for one in study.layers] == [6, 11, 16]


# Chance


def test_random_sets_match_by_layer_or_by_type():
    graph = Graph(3, 4)
    chosen = np.zeros(graph.n_src, dtype=bool)
    chosen[[graph.src_index(name) for name in ("input", "a0.h1", "a0.h2", "m0", "a1.h3", "m2")]] = True
    by_layer = random_sets(graph, chosen, 2, "layer", n=300, seed=0)
    by_type = random_sets(graph, chosen, 2, "type", n=300, seed=0)
    heads = {at: np.arange(graph.n_src)[graph.heads_of(at)] for at in range(3)}
    mlps = [graph.mlp_of(at) for at in range(3)]
    assert by_layer[:, 0].all()
    assert by_type[:, 0].all()
    for at, count in enumerate((2, 1, 0)):
        assert (by_layer[:, heads[at]].sum(1) == count).all()
    assert (by_layer[:, mlps] == [True, False, True]).all()
    assert (by_type[:, np.concatenate(list(heads.values()))].sum(1) == 3).all()
    assert (by_type[:, mlps].sum(1) == 2).all()
    assert len({row.tobytes() for row in by_type[:, mlps]}) == 3
    below = random_sets(graph, chosen, 0, "type", n=50, seed=0)
    assert (below.sum(1) == 4).all()
    assert not below[:, graph.heads_of(1).start :].any()
    counts = by_layer[:, heads[0]].mean(0)
    np.testing.assert_allclose(counts, 0.5, atol=0.12)


def test_p_of_the_share_is_the_rank_among_all_sets(study, tiny64):
    """All 16 sets with a head of layer 0 and one of layer 2 counted out."""
    graph, own = tiny64.graph, study.parts[:, 2, : tiny64.graph.n_src].mean(0)
    fixed = own[0] + own[graph.mlp_of(0)]
    first, last = (own[graph.heads_of(at)] for at in (0, 2))
    value = fixed + first[1] + last[3]
    total = study.projections[:, 2].mean()
    every = [(fixed + a + b) / total for a, b in itertools.product(first, last)]
    exact = np.mean([one >= value / total - 1e-12 for one in every])
    mean, _, _, p = study.layers[2].share.chance["layer"]
    assert p == pytest.approx(exact, abs=0.12)
    assert mean == pytest.approx(np.mean(every), abs=0.1)
    assert study.layers[0].share.chance["layer"][3] is not None


def test_three_way_chance_is_counted_out():
    universe, sizes, shared = 5, (3, 2, 3), 1
    found = [
        len(set(a) & set(b) & set(c))
        for a, b, c in itertools.product(*(itertools.combinations(range(universe), size) for size in sizes))
    ]
    expected, p = three_way(sizes, shared, universe)
    assert expected == pytest.approx(np.mean(found))
    assert p == pytest.approx(np.mean([one >= shared for one in found]))


# Sets and files


def result(path, command, **content):
    path.write_text(json.dumps({"format": f"persona-circuits/{command}", "model": {"fingerprint": "f"}, **content}))
    return path


def test_movers_are_heads_and_neurons_are_mlps(tiny64, found, tmp_path):
    graph = tiny64.graph
    rows = [{"head": f"a{at}.h{head}", "is_mover": (at, head) == (2, 3)} for at in range(3) for head in range(4)]
    movers = read_movers(result(tmp_path / "patch.json", "patch", movers=rows), graph)
    assert movers.nodes == {graph.src_index("a2.h3")}
    assert len(movers.universe) == 12
    selected = [{"layer": 1, "neuron": 3}, {"layer": 1, "neuron": 9}]
    layers = [{"layer": at} for at in range(3)]
    neurons = read_neuron_mlps(result(tmp_path / "neurons.json", "neurons", selected=selected, layers=layers), graph)
    assert neurons.nodes == {graph.src_index("m1")}
    assert fingerprint_of(tmp_path) == "f"
    circuit = nodes(graph, "input", "a2.h3", "m1")
    study = build_bridge(tiny64, circuit, found, movers=movers, neurons=neurons, options=QUICK)
    by_name = {one.names: one for one in study.overlaps}
    assert set(by_name) == {("circuit", "movers"), ("circuit", "neurons"), ("movers", "neurons")}
    heads_and_mlps = by_name["movers", "neurons"]
    assert (heads_and_mlps.by, heads_and_mlps.shared, heads_and_mlps.universe, heads_and_mlps.p) == ("layers", (), 3, 1)
    assert by_name["circuit", "movers"].p == pytest.approx(1 / 12)
    assert by_name["circuit", "neurons"].p == pytest.approx(1 / 3)
    assert "they are compared by their layers" in " ".join(study.notes)
    direct = build_bridge(tiny64, circuit, found, neurons=neurons, options=QUICK)
    assert ("circuit", "movers", "neurons") in {one.names for one in direct.overlaps}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not JSON: .*; expected the patch.json"),
        ("[]", "holds no JSON object"),
        ('{"format": "persona-circuits/lens"}', "has no movers; expected the patch.json of the patch command"),
        (
            '{"format": "persona-circuits/patch", "movers": [{"head": "a9.h0", "is_mover": true}]}',
            "is of another model's shape: node a9.h0 is not in this model",
        ),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, message):
    path = tmp_path / "given.json"
    path.write_text(content)
    with pytest.raises(FileError, match=message):
        read_movers(path, Graph(3, 4))
    with pytest.raises(FileError, match=r"cannot be read .*; expected the neurons\.json"):
        read_neuron_mlps(tmp_path, Graph(3, 4))


def test_a_circuit_may_be_a_list_of_nodes(tmp_path):
    path = tmp_path / "nodes.json"
    path.write_text('{"nodes": ["input", "a0.h1", "m2"]}')
    given = read_nodes(path)
    assert given.record is None
    assert given.of(Graph(3, 4)).nodes == {0, 2, 15}
    with pytest.raises(FileError, match="is of another model's shape"):
        given.of(Graph(2, 4))
    path.write_text('{"nodes": ["m2"]}')
    with pytest.raises(FileError, match="expected input first"):
        read_nodes(path)


def test_options_and_positions_that_make_no_sense(tiny64, found):
    circuit = nodes(tiny64.graph, "input")
    with pytest.raises(OptionError, match="--layer 3 is not one of 0 to 2"):
        build_bridge(tiny64, circuit, found, options=BridgeOptions(layer=3))
    with pytest.raises(OptionError, match="--position 'start' is not one of persona-end"):
        BridgeOptions(position="start").checked()
    with pytest.raises(OptionError, match=r"question-end: there is no such place in prompt 5 \(id 5\)"):
        build_bridge(tiny64, circuit, found, options=BridgeOptions(position="question-end"))
    with pytest.raises(OptionError, match="--n-random must be at least 1"):
        BridgeOptions(n_random=0).checked()


def test_files_tables_and_figures(study, tmp_path):
    write_bridge(study, tmp_path)
    record = json.loads((tmp_path / "bridge.json").read_text())
    assert record["format"] == "persona-circuits/bridge"
    assert record["conserved"]
    assert len(record["layers"]) == 3
    arrays = load_file(tmp_path / "bridge.safetensors")
    np.testing.assert_allclose(arrays["parts"].sum(2), arrays["projections"], atol=1e-9)
    layers, nodes, overlaps = (table.cells() for table in bridge_tables(study))
    assert len(layers) == 3
    assert nodes[0][0] == record["nodes"][0]["node"]
    assert len(overlaps) == 1
    for name in bridge_figures(study):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_the_command_on_the_shipped_list_of_nodes(tmp_path):
    out = tmp_path / "out"
    arguments = ["bridge", str(ROOT / "real_circuits_1.json"), "--n-random", "50", "--layer", "10", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "largest writers after block 10" in done.output
    record = json.loads((out / "bridge.json").read_text())
    assert record["conserved"]
    assert "--n-random 50" in (out / "index.html").read_text()
    assert record["layer"] == 10
    assert record["n_pairs"] == 16
    refused = CliRunner().invoke(app, [*arguments, "--movers", str(tmp_path / "none.json")])
    assert refused.exit_code == 2
    assert "cannot be read" in refused.output
