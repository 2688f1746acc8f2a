"""Activation patching: against bare Hugging Face models, the edge-by-edge reference, and planted circuits."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CRAFTGPT, DATA, ROOT
from safetensors.numpy import load_file
from scipy import stats
from tests_reference import Reference
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from persona_circuits.circuit.errors import FileError, OptionError, TaskError
from persona_circuits.circuit.evaluation import other_sets
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.statistics import (
    Clusters,
    detectable_ratio,
    ratio_interval,
    ratio_intervals,
    ratio_p_values,
)
from persona_circuits.circuit.storage import Kept
from persona_circuits.circuit.task import load_task
from persona_circuits.cli import app
from persona_circuits.models.planted import planted_models, write_planted
from persona_circuits.persona.data import load_examples
from persona_circuits.persona.patching import (
    ANSWER,
    EVERYWHERE,
    PatchOptions,
    Site,
    ablation_lines,
    parse_heads,
    parse_paths,
    patch_figures,
    patch_tables,
    study_patching,
    write_patch,
)

PAIRS = DATA / "tiny_pairs.json"
TINY = DATA / "tiny-gpt2"
EVERY = PatchOptions(
    at=("stream", "attn", "mlps", "heads", "head-parts"),
    senders=("input", "a0.h1", "m0", "a1.h2"),
    receivers=("logits", "a2.h1<v>", "m2", "a2.h0"),
    ablate=("a0.h1", "a2.h3"),
)


@pytest.fixture(scope="module")
def found(tiny64):
    return load_examples(PAIRS, tiny64, label="tiny pairs")


@pytest.fixture(scope="module")
def study(tiny64, found):
    return study_patching(tiny64, found, found, options=EVERY)


@pytest.fixture(scope="module")
def network():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64, attn_implementation="eager").eval()


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def margin(logits, one):
    """Of persona A's answers over B's, whichever prompt this is."""
    own, other = (float(logits[list(ids)].mean()) for ids in (one.answers, one.others))
    return own - other if one.is_clean else other - own


def plain(network, ids, **more):
    with torch.no_grad():
        return network(torch.tensor([ids]), **more)


# Sites


def test_shares_are_those_of_tensors_replaced_in_the_bare_model(study, found, network):
    """A head at the answer and the stream into a block, on every pair and in both directions, by hooks."""
    width = network.config.n_embd // network.config.n_head
    module = network.transformer.h[1].attn.c_proj
    site = study.effects.sites.index(Site("head", 1, ANSWER, 2))
    for pair in range(len(found.items)):
        a, b = found.examples[2 * pair : 2 * pair + 2]
        margins = []
        for one, other in ((a, b), (b, a)):
            seen = []
            handle = module.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0].clone()))
            plain(network, other.placed.ids)
            handle.remove()

            def change(_module, args, seen=seen):
                x = args[0].clone()
                x[:, -1, 2 * width : 3 * width] = seen[0][:, -1, 2 * width : 3 * width]
                return (x,)

            handle = module.register_forward_pre_hook(change)
            margins.append(margin(plain(network, one.placed.ids).logits[0, -1], one))
            handle.remove()
        m_a, m_b = (margin(plain(network, one.placed.ids).logits[0, -1], one) for one in (a, b))
        assert study.divergence[pair] == pytest.approx(m_a - m_b, abs=1e-10)
        noising, denoising = m_a - margins[0], margins[1] - m_b
        np.testing.assert_allclose(study.effects.values[:, site, pair], [noising, denoising], atol=1e-10)
    mean = study.effects.values.mean(2)
    for place, name in enumerate(("noising", "denoising")):
        assert study.effects.shares[name][site].value == pytest.approx(mean[place, site] / study.divergence.mean())


def test_everything_is_all_of_d_and_the_last_stream_at_the_answer_too(study):
    def value(kind, layer, part, direction="denoising"):
        return study.effects.share(direction, Site(kind, layer, part)).value

    assert study.effects.everything == pytest.approx(1.0, abs=1e-12)
    for direction in ("noising", "denoising", "both"):
        assert value("stream", 3, ANSWER, direction) == pytest.approx(1.0, abs=1e-12)
    for part in study.parts:
        if part != ANSWER:
            assert value("stream", 3, part) == pytest.approx(0.0, abs=1e-12)
    assert value("stream", 0, "before") == pytest.approx(0.0, abs=1e-12)  # the same tokens stand there
    whole = study.effects.values[:, [study.effects.sites.index(Site("stream", 2, part)) for part in study.parts]]
    assert np.abs(whole).max() > 1e-3


def test_noising_is_denoising_with_the_personas_exchanged(tiny64, study, tmp_path):
    rows = json.loads(PAIRS.read_text())["prompts"]
    turned = {"clean": "corrupt", "corrupt": "clean", "answers": "wrong_answers", "wrong_answers": "answers"}
    path = written(tmp_path / "turned.jsonl", *({turned[key]: row[key] for key in turned} for row in rows))
    other = load_examples(path, tiny64)
    back = study_patching(tiny64, other, other, options=EVERY)
    np.testing.assert_allclose(back.divergence, study.divergence, atol=1e-10)
    np.testing.assert_allclose(back.effects.values, study.effects.values[::-1], atol=1e-10)
    np.testing.assert_allclose(back.paths.values, study.paths.values[::-1], atol=1e-10)
    assert np.abs(study.effects.values[0] - study.effects.values[1]).max() > 1e-2  # the two are not one number


def test_attention_on_the_persona_is_the_bare_models(study, found, network):
    for i, one in enumerate(found.examples):
        a, b = (found.examples[2 * (i // 2) + turn].placed.ids for turn in (0, 1))
        differs = [place for place, (x, y) in enumerate(zip(a, b, strict=True)) if x != y and place < len(a) - 1]
        inside = slice(differs[0], differs[-1] + 1) if differs else slice(0, 0)
        patterns = plain(network, one.placed.ids, output_attentions=True).attentions
        expected = [layer[0, :, -1, inside].sum(-1).numpy() for layer in patterns]
        np.testing.assert_allclose(study.attention[i % 2, i // 2], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "movers", "against"),
    [
        ("copy", {"a1.h1"}, set()),
        ("two-hop", {"a1.h3"}, set()),
        ("prior", {"a0.h1"}, set()),
        ("cancel", {"a1.h0"}, {"a2.h1"}),
        ("keys", {"a1.h0"}, set()),
        ("weak", {"a1.h1"}, set()),
        ("bottleneck", {"a0.h1"}, set()),
    ],
)
def test_the_planted_heads_are_the_movers_and_nothing_else_is(name, movers, against, tmp_path):
    planted = next(one for one in planted_models() if one.name == name)
    write_planted(planted, tmp_path / name)
    model = load_model(tmp_path / name)
    pairs = load_examples(tmp_path / name / "pairs.jsonl", model)
    found = study_patching(model, pairs, pairs, options=PatchOptions(at=("heads",)))
    assert {one.head for one in found.movers if one.is_mover} == movers
    assert {one.head for one in found.movers if one.p_adjusted <= 0.05} == movers | against
    top = found.movers[0]
    assert top.head in movers
    assert top.denoising.value > 0.9
    attention = min(top.attention_a, top.attention_b)  # it looks at the persona, but where that fades with distance
    assert attention < 0.05 if name == "weak" else attention > 0.1


def test_movers_are_ranked_and_the_negligible_are_none(tiny64, found):
    rows = load_task(PAIRS)
    assert len(rows.pairs) == len(found.items)
    loose = study_patching(tiny64, found, found, options=PatchOptions(at=("heads",), negligible=0.0, alpha=0.99))
    values = [one.denoising.value for one in loose.movers]
    assert values == sorted(values, reverse=True)
    strict = study_patching(tiny64, found, found, options=PatchOptions(at=("heads",), negligible=0.9, alpha=0.99))
    assert sum(one.is_mover for one in strict.movers) < sum(one.is_mover for one in loose.movers)
    assert all(a.p <= b.p for a in loose.movers for b in strict.movers if a.head == b.head)
    assert all(one.p_adjusted >= one.p for one in loose.movers)


# Parts of the prompt


def test_parts_say_which_tokens_are_patched(tiny64, found, tmp_path):
    options = PatchOptions(at=("stream",), parts="named")
    named = study_patching(tiny64, found, found, options=options)
    assert named.parts == ("persona-end", ANSWER)  # not every prompt has a question
    with pytest.raises(OptionError, match="prompts of one length"):
        study_patching(tiny64, found, found, options=replace(options, parts="positions"))
    rows = json.loads(PAIRS.read_text())["prompts"][:1]
    one = load_examples(written(tmp_path / "one.jsonl", *rows), tiny64)
    single = study_patching(tiny64, one, one, options=replace(options, parts="positions"))
    length = len(one.examples[0].placed.ids)
    assert [part.split()[0] for part in single.parts] == [*map(str, range(length - 1)), ANSWER]
    assert single.parts[1] == "1 are"  # both prompts have this token
    assert single.parts[3] == "3"  # happy, sad
    table = patch_tables(single)[0]
    assert len(table.labels) == 9 < len(single.parts)
    assert table.labels[-1] == ANSWER
    assert {len(row) for row in table.cells()} == {9}
    at = one.examples[0].placed.places["persona-end"]
    for layer in range(4):
        sites = Site("stream", layer, single.parts[at]), Site("stream", layer, "persona-end")
        first = single.effects.values[:, single.effects.sites.index(sites[0]), 0]
        second = named.effects.values[:, named.effects.sites.index(sites[1]), 0]
        np.testing.assert_allclose(first, second, atol=1e-10)


def test_spans_of_the_file_are_its_parts(tiny64, tmp_path):
    row = json.loads(PAIRS.read_text())["prompts"][0]
    spans = {"persona": {"tokens": [0, 5]}, "answer": {"tokens": [5, 11]}}
    path = written(tmp_path / "pairs.jsonl", {**row, "spans": {"clean": spans, "corrupt": spans}})
    one = load_examples(path, tiny64)
    found = study_patching(tiny64, one, one, options=PatchOptions(at=("stream", "heads")))
    assert found.parts == ("persona", "answer (span)", "between", ANSWER)
    assert found.attention is not None
    assert found.effects.share("both", Site("stream", 0, "persona")).value == pytest.approx(1.0)


# Paths


def test_paths_are_those_of_the_edge_by_edge_reference(study, found, network):
    """Every sender to every receiver, in float64, on the first three pairs and in both directions."""
    reference = Reference(network)
    graph = study.graph
    everyone = {"a2.h0": [f"a2.h0<{slot}>" for slot in "qkv"]}
    for pair in range(3):
        sides = found.examples[2 * pair : 2 * pair + 2]
        runs = [reference.plain(torch.tensor([one.placed.ids])) for one in sides]
        for i, sender in enumerate(study.paths.senders):
            names = [str(node) for node in graph.src_nodes] if sender == "together" else [sender]
            names = [name for name in names if sender != "together" or name in study.paths.senders]
            for j, receiver in enumerate(study.paths.receivers):
                cut = {f"{name}->{slot}": 0.0 for name in names for slot in everyone.get(receiver, [receiver])}
                for turn, one in enumerate(sides):
                    ids = torch.tensor([one.placed.ids])
                    patched = reference.run(ids, runs[1 - turn], cut)["logits"][0]
                    sign = 1 if turn == 0 else -1
                    expected = sign * (margin(runs[turn]["logits"][0], one) - margin(patched, one))
                    assert study.paths.values[turn, i, j, pair] == pytest.approx(expected, abs=1e-9)
    assert np.nanmax(np.abs(study.paths.values[:, :-1])) > 1e-2


def test_all_senders_to_the_logits_are_d(tiny64, found):
    options = PatchOptions(at=(), receivers=("logits", "m1"))
    paths = study_patching(tiny64, found, found, options=options).paths
    assert paths.senders == (*map(str, tiny64.graph.src_nodes), "together")
    assert paths.shares["denoising"][-1][0].value == pytest.approx(1.0, abs=1e-12)
    late = paths.senders.index("a2.h0")
    assert paths.shares["both"][late][1] is None  # it comes behind m1
    assert np.isnan(paths.values[:, late, 1]).all()


@pytest.mark.parametrize(
    ("senders", "receivers", "says"),
    [
        (("a9.h0",), ("logits",), r"--from: node a9.h0 is not in this model"),
        (("logits",), ("logits",), "--from: logits is not a source"),
        (("m0",), ("a1.h1<w>",), "--to: "),
        (("m0",), ("m1<q>",), "--to: .*takes no <q>"),
        (("m0",), ("input",), "--to: "),
        (("a2.h0",), ("m1",), "--from a2.h0: it comes before none of m1"),
    ],
)
def test_paths_that_cannot_be_are_refused(senders, receivers, says):
    with pytest.raises(OptionError, match=says):
        parse_paths(Graph(3, 4), senders, receivers)


# Ablation


def test_ablated_heads_are_those_of_the_bare_model_without_them(tiny64, found, network):
    """Zero ablation by hooks: D left on every pair, and how many prompts choose another candidate."""
    options = PatchOptions(at=(), ablate=("a0.h1", "a2.h3"), ablation="zero")
    one = study_patching(tiny64, found, found, options=options).ablation
    width = network.config.n_embd // network.config.n_head
    handles = []
    before = [plain(network, side.placed.ids).logits[0, -1] for side in found.examples]
    for layer, head in ((0, 1), (2, 3)):

        def change(_module, args, head=head):
            x = args[0].clone()
            x[..., head * width : (head + 1) * width] = 0
            return (x,)

        handles.append(network.transformer.h[layer].attn.c_proj.register_forward_pre_hook(change))
    after = [plain(network, side.placed.ids).logits[0, -1] for side in found.examples]
    for handle in handles:
        handle.remove()
    margins = np.array([margin(logits, side) for logits, side in zip(after, found.examples, strict=True)])
    np.testing.assert_allclose(one.left_by_pair, margins[0::2] - margins[1::2], atol=1e-10)
    choices = [
        [int(logits[list(side.candidates)].argmax()) for logits, side in zip(run, found.examples, strict=True)]
        for run in (before, after)
    ]
    assert one.changed == np.mean(np.array(choices[0]) != np.array(choices[1]))
    own = [side.candidates[i] in side.answers for i, side in zip(choices[1], found.examples, strict=True)]
    assert one.own == np.mean(own)


def test_what_is_left_is_one_minus_noising_and_denoising(tiny64, found):
    """With the other persona's values, for a single head at all positions."""
    options = PatchOptions(at=("heads",), ablate=("a1.h2",))
    study = study_patching(tiny64, found, found, options=options)
    site = Site("head", 1, EVERYWHERE, 2)
    moved = sum(study.effects.share(direction, site).value for direction in ("noising", "denoising"))
    assert study.ablation.left.value == pytest.approx(1 - moved, abs=1e-10)
    mean = study_patching(tiny64, found, found, options=replace(options, at=(), ablation="mean")).ablation
    zero = study_patching(tiny64, found, found, options=replace(options, at=(), ablation="zero")).ablation
    values = [study.ablation.left.value, mean.left.value, zero.left.value]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-4  # each ablation is its own


def test_random_sets_are_others_of_the_same_layers():
    graph = Graph(4, 8)
    heads = parse_heads(graph, ("a1.h0", "a1.h3", "a3.h7"))
    layers = [graph.src_nodes[src].layer for src in heads]
    found = other_sets(graph, heads, 100, seed=0)
    assert len({frozenset(one) for one in found}) == 100
    assert frozenset(heads) not in map(frozenset, found)
    assert all([graph.src_nodes[src].layer for src in one] == layers for one in found)
    assert found == other_sets(graph, heads, 100, seed=0) != other_sets(graph, heads, 100, seed=1)
    few = other_sets(Graph(4, 3), parse_heads(Graph(4, 3), ("a1.h0", "a2.h0")), 100, seed=0)
    assert len({frozenset(one) for one in few}) == len(few) == 8
    assert other_sets(Graph(2, 2), (1, 2), 10, seed=0) == []
    every = np.array([src for one in found for src in one])
    assert {graph.src_nodes[src].head for src in every if graph.src_nodes[src].layer == 3} == set(range(8))


def test_the_planted_head_is_worth_more_than_others(tmp_path):
    """The positive control, and its counterpart: a bystander head is worth nothing."""
    planted = next(one for one in planted_models() if one.name == "two-hop")
    write_planted(planted, tmp_path / "model")
    model = load_model(tmp_path / "model")
    pairs = load_examples(tmp_path / "model" / "pairs.jsonl", model)
    top = study_patching(model, pairs, pairs, options=PatchOptions(at=("heads",), ablate_top=1)).ablation
    assert top.heads == ("a1.h3",)
    assert top.left.value == pytest.approx(-1.0, abs=1e-3)
    assert top.p == 0.25  # three others, none as strong
    assert (top.changed, top.p_changed) == (1.0, 0.25)
    idle = study_patching(model, pairs, pairs, options=PatchOptions(at=(), ablate=("a1.h2",))).ablation
    assert idle.left.value == pytest.approx(1.0, abs=1e-3)
    assert idle.p > 0.25
    assert idle.changed == 0


# Uncertainty


def test_many_intervals_are_each_the_one_of_its_own():
    rng = np.random.default_rng(0)
    tops, below = rng.normal(0.3, 1, (4, 30)), rng.normal(2, 0.5, 30)
    shared = [[f"{kind}{i % n}" for i in range(30)] for kind, n in (("p", 7), ("q", 5), ("k", 6))]
    for clusters in (Clusters.named(*[[""] * 30] * 3), Clusters.named(*shared)):
        for top, both in zip(tops, ratio_intervals(tops, below, clusters, seed=1), strict=True):
            alone = ratio_interval(top, below, clusters, seed=1)
            assert (both.low, both.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
            assert both.by == alone.by
    assert ratio_intervals(tops, below - below.mean(), clusters) == (None,) * 4


def test_p_values_are_the_t_tests_where_nothing_is_shared():
    rng = np.random.default_rng(0)
    tops, below = rng.normal(0.4, 1, (5, 25)), np.full(25, 2.0)
    found = ratio_p_values(tops, below, Clusters.named(*[[""] * 25] * 3))
    np.testing.assert_allclose(found, [stats.ttest_1samp(top, 0).pvalue for top in tops], rtol=1e-9)
    wider = ratio_p_values(tops, below, Clusters.named(*[[""] * 25] * 3), negligible=0.1)
    assert (wider > found).all()


def test_p_values_hold_their_level_where_personas_and_questions_are_shared():
    """No effect, but one of every persona and question: a t test over pairs would reject far too often."""
    rng = np.random.default_rng(0)
    n, names = (
        60,
        [[f"{kind}{i}" for i in rng.integers(0, count, 60)] for kind, count in (("p", 9), ("p", 9), ("q", 8))],
    )
    clusters = Clusters.named(*names)
    effects = {name: rng.normal(0, 1, 300) for name in sorted({name for side in names for name in side})}
    values = rng.normal(0, 0.5, (300, n)) + sum(np.stack([effects[name] for name in side], axis=1) for side in names)
    assert (ratio_p_values(values, np.ones(n), clusters) <= 0.05).mean() < 0.08
    assert np.mean([stats.ttest_1samp(row, 0).pvalue <= 0.05 for row in values]) > 0.2


def test_what_would_have_survived_is_where_the_test_turns():
    """A head of that share, its spread unchanged, has just the p asked for; simulated, half of such heads are found."""
    rng = np.random.default_rng(1)
    clusters, level = Clusters.named([""] * 30, [""] * 30, [""] * 30), 0.05 / 144
    values = rng.normal(0, 1, (5, 30))
    needed = detectable_ratio(values[:1], np.ones(30), clusters, level=level, negligible=0.1)
    moved = values[:1] - values[:1].mean() + np.array([[needed], [0.99 * needed], [1.01 * needed]])
    p = ratio_p_values(moved, np.ones(30), clusters, negligible=0.1)
    assert p[0] == pytest.approx(level, rel=1e-6)
    assert p[1] > level > p[2]
    plain = detectable_ratio(values[:1], np.ones(30), clusters, level=level)
    assert plain == pytest.approx(stats.t.isf(level / 2, 29) * values[0].std(ddof=1) / np.sqrt(30))
    each = rng.normal(plain, values[0].std(ddof=1), (400, 30))
    assert np.mean(ratio_p_values(each, np.ones(30), clusters) <= level) == pytest.approx(0.5, abs=0.1)


def test_where_no_head_survives_it_is_said_what_would_have(tiny64, found):
    few = study_patching(tiny64, found, found, options=PatchOptions(at=("heads",)))
    assert not any(one.is_mover for one in few.movers)
    assert few.detectable > 0.1
    assert any(f"no head survives the correction over 12 heads; one would have needed a share of D of about "
               f"{few.detectable:.2f}" in note for note in few.notes)  # fmt: skip
    assert study_patching(tiny64, found, found, options=PatchOptions(at=("stream",))).detectable is None


# Files and the command line


@pytest.mark.slow
def test_the_same_study_gives_the_same_files(study, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_patch(study, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    tables = ["ablation.csv", "movers.csv", "pairs.csv", "paths.csv", "sites.csv"]
    pictures = [f"{name}.png" for name in patch_figures(study)]
    assert len(pictures) == 8
    assert names == sorted([*tables, *pictures, "patch.html", "patch.json", "patch.safetensors"])
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    arrays = load_file(tmp_path / "first" / "patch.safetensors")
    np.testing.assert_array_equal(arrays["sites"], study.effects.values)
    rows = list(csv.DictReader((tmp_path / "first" / "sites.csv").open()))
    assert len(rows) == len(study.effects.sites)
    last = next(row for row in rows if (row["site"], row["part"]) == ("stream 3", "answer"))
    assert float(last["denoising.value"]) == 1.0
    paths = list(csv.DictReader((tmp_path / "first" / "paths.csv").open()))
    assert {row["to"] for row in paths} == {"logits", "a2.h1<v>", "m2", "a2.h0"}
    record = json.loads((tmp_path / "first" / "patch.json").read_text())
    assert record["everything"] == 1.0
    assert record["ablation"]["heads"] == ["a0.h1", "a2.h3"]
    assert record["runs"] > record["passes"] > 0
    with pytest.raises(FileError):
        write_patch(study, tmp_path / "absent")


def test_the_tables_hold_the_studys_numbers(study):
    stream, movers, paths = patch_tables(study)
    assert [row[0] for row in stream.cells()] == ["block 0", "block 1", "block 2", "logits"]
    assert [row[0] for row in movers.cells()] == [one.head for one in study.movers[:10]]
    assert movers.cells()[0][2] == f"{study.movers[0].denoising.value:+.2f}"
    assert {row[1] for row in paths.cells()} == set(study.paths.receivers)
    assert ablation_lines(study)[0].startswith("ablated     a0.h1, a2.h3 (corrupt) on 8 pairs")


def test_prompts_of_unequal_length_need_alignment(tiny64, tmp_path):
    row = json.loads(PAIRS.read_text())["prompts"][0]
    longer = {**row, "clean": row["clean"].replace("happy", "happy happy")}
    pairs = load_examples(written(tmp_path / "pairs.jsonl", longer, {**row, "id": "2"}), tiny64)
    with pytest.raises(TaskError, match="use --align right"):
        study_patching(tiny64, pairs, pairs, options=PatchOptions(at=("stream",)))
    options = PatchOptions(at=("stream", "heads"), align="right")
    study = study_patching(tiny64, pairs, pairs, options=options)
    alone = load_examples(written(tmp_path / "one.jsonl", row), tiny64)
    even = study_patching(tiny64, alone, alone, options=replace(options, align="equal"))
    np.testing.assert_allclose(study.divergence[1], even.divergence[0], atol=1e-9)
    site = Site("head", 1, ANSWER, 0)
    both = (one.effects.values[:, one.effects.sites.index(site), -1] for one in (study, even))
    np.testing.assert_allclose(*both, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("part", [r"sites \d+ ", "ablated ", "paths "])
def test_a_stopped_study_goes_on_to_the_same_numbers(part, study, tiny64, found, tmp_path, monkeypatch):
    """Stopped in the middle of each kind of work; what is done is not done again."""
    made, state = [], tmp_path / "patch.state"
    real = Kept.of

    def stop(self, name, make):
        if re.match(part, name) and sum(bool(re.match(part, one)) for one in made) == 2:
            raise KeyboardInterrupt
        return real(self, name, lambda: made.append(name) or make())

    how = {"options": replace(EVERY, batch_size=2), "state": state}
    monkeypatch.setattr(Kept, "of", stop)
    with pytest.raises(KeyboardInterrupt):
        study_patching(tiny64, found, found, **how)
    before = list(made)
    assert state.is_file()
    monkeypatch.setattr(Kept, "of", lambda self, name, make: real(self, name, lambda: made.append(name) or make()))
    again = study_patching(tiny64, found, found, **how)
    assert len(before) >= 2
    assert len(set(made)) == len(made) > len(before)
    assert not state.exists()
    whole = study_patching(tiny64, found, found, options=how["options"])
    np.testing.assert_array_equal(again.effects.values, whole.effects.values)
    np.testing.assert_array_equal(again.paths.values, whole.paths.values)
    assert again.ablation.random_left == whole.ablation.random_left
    assert (again.passes, again.runs) == (whole.passes, whole.runs)
    np.testing.assert_allclose(whole.effects.values, study.effects.values, atol=1e-10)


def test_the_state_of_another_study_is_not_taken(tiny64, found, tmp_path, monkeypatch):
    state, real = tmp_path / "patch.state", Kept.add

    def stop(self, parts):
        real(self, parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        study_patching(tiny64, found, found, options=PatchOptions(at=("stream",)), state=state)
    first = state.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        study_patching(tiny64, found, found, options=PatchOptions(at=("stream",), seed=1), state=state)
    assert state.read_bytes() != first
    assert b"sites 1 " not in state.read_bytes()  # its own first part only


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch):
    real = Kept.add

    def stop(self, parts):
        real(self, parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "add", stop)
    out = tmp_path / "out"
    done = call("--model", TINY, "--pairs", PAIRS, "--out", out, "--at", "stream")
    assert done.exit_code == 130
    assert f"stopped: what is done so far is kept in {out / 'patch.state'}" in done.stderr
    assert "the same command goes on from there" in done.stderr
    monkeypatch.undo()
    assert call("--model", TINY, "--pairs", PAIRS, "--out", out, "--at", "stream").exit_code == 0
    assert not (out / "patch.state").exists()


def call(*arguments):
    return CliRunner().invoke(app, ["patch", *map(str, arguments)])


def test_the_command_writes_and_prints(tmp_path):
    model = ["--model", TINY, "--pairs", PAIRS, "--out", tmp_path / "out"]
    row = json.loads(PAIRS.read_text())["prompts"][0]
    same = {"clean": row["clean"], "corrupt": row["clean"].replace("you are", "they are")}
    null = written(tmp_path / "null.jsonl", {**row, **same, "persona_a": "cook", "persona_b": "cook"})
    done = call(*model, "--at", "stream", "--null", null)
    assert done.exit_code == 0, done.output
    assert re.search(r"\|D\| is below 2 sigma_0 = \d\.\d+ on \d pairs", done.stdout)
    assert "logits" in done.stdout
    assert "persona movers" not in done.stdout
    done = call(*model, "--at", "none", "--to", "logits", "--from", "m0,m1", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert [row["from"] for row in record["paths"]] == ["m0", "m1", "together"]
    assert record["sites"] == []
    assert (tmp_path / "out" / "patch.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--at", "heads,neurons"], "--at 'neurons' is not one of stream, attn"),
        (["--at", "none"], "nothing to do"),
        (["--from", "m0"], "--from names the senders of paths and needs --to"),
        (["--ablate", "m0"], "only heads can be ablated"),
        (["--ablate", "a0.h9"], "--ablate: node a0.h9 is not in this model"),
        (["--ablate", "a0.h1", "--ablate-top", 2], "give one of them"),
        (["--ablate-top", 0], "--ablate-top must be at least 1"),
        (["--ablate-top", 12], "the model has 12 heads"),
        (["--ablate-top", 2, "--at", "stream"], "add heads to --at"),
        (["--ablation", "zero"], "it is for --ablate or --ablate-top"),
        (["--ablate-top", 2, "--n-random", 0], "--n-random must be at least 1"),
        (["--negligible", 1], "--negligible is a share of D"),
        (["--ablate", "a0.h0,a0.h1,a0.h2,a0.h3"], "all heads of their layers"),
        (["--parts", "positions"], "--parts positions needs prompts of one length"),
        (["--ablate", "a0.h1", "--ablation", "neutral"], "needs a 'neutral' prompt"),
        (["--train-split", "dev"], "no pair of split 'dev'"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_two(arguments, says, tmp_path):
    done = call("--model", TINY, "--pairs", PAIRS, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_movers_found_on_training_pairs_are_worth_more_than_random_heads_on_others():
    model = load_model(ROOT / "models" / "persona-world")
    path = ROOT / "datasets" / "pairs_demo.jsonl"
    train, test = (load_examples(path, model, split=split) for split in ("train", "test"))
    study = study_patching(model, train, test, options=PatchOptions(at=("heads",), ablate_top=5))
    assert len(study.ablation.random_left) == 100
    assert study.ablation.split == "test"
    assert study.ablation.p == pytest.approx(1 / 101)
    assert study.ablation.left.high < 0.5


@pytest.mark.skipif(not CRAFTGPT.is_dir(), reason="craftgpt-5m is not at ../shared/models")
def test_a_real_model_reaches_all_of_d(craftgpt):
    pairs = load_examples(ROOT / "datasets" / "craftgpt_weather.jsonl", craftgpt, split="test")
    study = study_patching(craftgpt, pairs, pairs, options=PatchOptions(at=("stream",), receivers=("logits",)))
    assert study.effects.everything == pytest.approx(1.0, abs=1e-4)
    end = Site("stream", craftgpt.graph.n_layers, ANSWER)
    assert study.effects.share("denoising", end).value == pytest.approx(1.0, abs=1e-4)
    assert study.paths.shares["both"][-1][0].value == pytest.approx(1.0, abs=1e-4)


def test_two_words_take_the_place_of_every_pairs_answers(tiny64):
    """The same examples as ``lens --tokens`` reads, and in every pair, which patching encodes anew."""
    from persona_circuits.persona.data import examples_of, load_examples, load_items

    words = (" blue", " red")
    items = load_items(DATA / "tiny_pairs.json").with_tokens(words)
    assert {(item.pair.answers, item.pair.wrong_answers) for item in items.items} == {((" blue",), (" red",))}
    with_tokens = load_examples(DATA / "tiny_pairs.json", tiny64, tokens=words)
    assert [(one.answers, one.others) for one in examples_of(items, tiny64).examples] == [
        (one.answers, one.others) for one in with_tokens.examples
    ]
    with pytest.raises(OptionError, match="give two different words"):
        items.with_tokens((" blue", " blue"))
