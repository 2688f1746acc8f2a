import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DATA
from scipy import stats
from tests_reference import Reference

from persona_circuits.circuit.attribution import Scoring, eap, eap_ig, score_parts
from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.evaluation import null_run
from persona_circuits.circuit.forward import measure, patched_logits, prepare, run
from persona_circuits.circuit.model import wrap_model
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import (
    PromptPair,
    Task,
    alignment,
    batches,
    encode,
    load_task,
    shared_ends,
    token_ids,
    with_swap_rows,
)
from persona_circuits.metrics import METRICS

LOGIT_DIFF = METRICS["logit-diff"]

UNEQUAL = [
    ("you are a cook. you choose red or blue? answer:", "you are a very sad cook. you choose red or blue? answer:"),
    (
        "you are a kind and calm judge. you choose tea or coffee? answer:",
        "you are angry. you choose tea or coffee? answer:",
    ),
    (
        "you are a bold pilot. you choose cats or dogs? answer:",
        "you are a shy farmer. you choose cats or dogs? answer:",
    ),
]
ANSWERS = [(" blue", " red"), (" coffee", " tea"), (" dogs", " cats")]


@pytest.fixture(scope="module")
def unequal():
    pairs = [
        PromptPair(clean, corrupt, (a,), (b,), id=str(i), persona_a="A", persona_b="B", line=i)
        for i, ((clean, corrupt), (a, b)) in enumerate(zip(UNEQUAL, ANSWERS, strict=True), 1)
    ]
    return Task(tuple(pairs), "unequal", "0" * 64)


@pytest.fixture(scope="module")
def rotary():
    """A seeded two-layer Llama with grouped heads, on the tiny model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    network = LlamaForCausalLM(config).double()
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.2 if parameter.dim() > 1 else 0.1).add_(1.0 if parameter.dim() == 1 else 0.0)
    return wrap_model(network, tokenizer, name="rotary")


def test_ends_are_shared_and_the_middle_is_aligned_on_the_right():
    assert shared_ends([1, 2, 3, 9], [1, 2, 4, 5, 9]) == (2, 1)
    assert shared_ends([1, 1], [1, 1, 1]) == (2, 0)
    shares = alignment([1, 7, 8, 5, 9], [1, 6, 9])
    expected = [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(shares, expected)
    wide = alignment([1, 7, 8, 5, 9], [1, 4, 6, 9])
    np.testing.assert_array_equal(wide[1], [0, 0.5, 0.5, 0])
    np.testing.assert_array_equal(wide[2:4], [[0, 1, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(
        alignment([1, 2, 9], [1, 4, 5, 6, 9]), [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    )


def test_alignment_of_one_length_is_the_identity_and_rows_always_sum_to_one():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (rng.integers(0, 3, rng.integers(1, 8)).tolist() for _ in range(2))
        shares = alignment(a, b)
        torch.testing.assert_close(shares.sum(1), torch.ones(len(a)))
        if len(a) == len(b):
            torch.testing.assert_close(shares, torch.eye(len(a)))


@pytest.mark.parametrize("name", ["tiny64", "rotary"])
def test_padded_prompts_are_run_as_if_alone(request, unequal, name):
    model = request.getfixturevalue(name)
    (batch,) = batches(encode(unequal, model, align="right"), 8, "cpu")
    assert batch.clean_padding is not None
    item = prepare(model, batch)
    host = model.logits(batch.clean, batch.clean_padding)[:, -1]
    close = {"tiny64": 1e-11, "rotary": 1e-5}[name]  # rotations are float32 in any model
    for row, index in enumerate(batch.indices):
        pair = unequal.pairs[index]
        for text, found in ((pair.clean, item.clean), (pair.corrupt, item.corrupt)):
            alone = model.logits(torch.tensor([token_ids(text, model)]))[0, -1]
            torch.testing.assert_close(found.logits[row], alone, atol=close, rtol=1e-9)
        if name == "tiny64":  # a Llama's float64 softmax of a row that is masked throughout is nan
            torch.testing.assert_close(host[row], item.clean.logits[row], atol=close, rtol=1e-9)


@pytest.mark.parametrize("name", ["tiny64", "rotary"])
def test_full_is_clean_and_empty_is_corrupt_for_prompts_of_unequal_length(request, unequal, name):
    model = request.getfixturevalue(name)
    rows = with_swap_rows(encode(unequal, model, align="right"))
    for item in (prepare(model, batch) for batch in batches(rows, 4, "cpu")):
        masks = np.stack([Circuit.full(model.graph).mask, Circuit.empty(model.graph).mask])
        full, empty = patched_logits(model, item, torch.from_numpy(masks))
        torch.testing.assert_close(full, item.clean.logits, atol=1e-10, rtol=1e-9)
        torch.testing.assert_close(empty, item.corrupt.logits, atol=1e-10, rtol=1e-9)


def aligned_by_hand(model, pair, tokens_of):
    """What stands against each clean place, by loops: ends on ends, last persona token on last, means before."""
    a, b = token_ids(pair.clean, model), token_ids(pair.corrupt, model)
    begin = 0
    while a[begin] == b[begin]:
        begin += 1
    end = 0
    while a[-1 - end] == b[-1 - end] and min(len(a), len(b)) - begin > end:
        end += 1
    rows = []
    for place in range(len(a)):
        if place < begin:
            rows.append(tokens_of[place])
            continue
        other = place - len(a) + len(b)
        middle = tokens_of[begin : len(b) - end]
        rows.append(tokens_of[other] if other >= begin else middle.mean(0) if len(middle) else tokens_of[begin - 1])
    return torch.stack(rows)


def test_circuits_of_unequal_prompts_equal_the_edge_by_edge_reference(tiny64, unequal):
    """The reference gets each pair alone, unpadded, with the corrupt values moved to the clean places by hand."""
    from transformers import AutoModelForCausalLM

    reference = Reference(AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2"))
    wpe = reference.weights["transformer.wpe.weight"]
    (batch,) = batches(encode(unequal, tiny64, align="right"), 8, "cpu")
    item = prepare(tiny64, batch)
    masks = [
        tiny64.graph.valid & (np.random.default_rng(seed).random(tiny64.graph.valid.shape) < share)
        for seed, share in enumerate((0.05, 0.3, 0.8))
    ]
    ours = patched_logits(tiny64, item, torch.from_numpy(np.stack(masks)))
    for row, index in enumerate(batch.indices):
        pair = unequal.pairs[index]
        clean, corrupt = (torch.tensor([token_ids(t, tiny64)]) for t in (pair.clean, pair.corrupt))
        values = {name: value[0] for name, value in reference.plain(corrupt).items() if name != "logits"}
        values["input"] = values["input"] + wpe[: corrupt.shape[1]]
        moved = {name: aligned_by_hand(tiny64, pair, value)[None] for name, value in values.items()}
        moved["input"] = moved["input"] - wpe[: clean.shape[1]]
        for number, mask in enumerate(masks):
            cut = Circuit(tiny64.graph, mask).complement()
            theirs = reference.run(clean, moved, {str(edge): 0.0 for edge in cut.edges()})["logits"][0]
            torch.testing.assert_close(ours[number, row], theirs, atol=1e-9, rtol=1e-9)


def agreement_with_exact(model, groups, n_edges):
    """Pearson's r of EAP-IG's scores with exact patching, over the edges that EAP-IG puts first."""
    scores = eap_ig(model, groups, LOGIT_DIFF, steps=5).values
    edges = sorted(np.argwhere(model.graph.valid).tolist(), key=lambda e: -abs(scores[tuple(e)]))[:n_edges]
    masks = [model.graph.valid.copy() for _ in edges]
    for mask, edge in zip(masks, edges, strict=True):
        mask[tuple(edge)] = False
    items = [prepare(model, batch) for batch in groups]
    values = measure(model, items, [model.graph.valid, *masks], LOGIT_DIFF).mean(axis=1)
    return stats.pearsonr(values[1:] - values[0], [scores[tuple(e)] for e in edges]).statistic


def test_aligned_scores_agree_with_exact_patching_as_well_as_equal_length_ones():
    """Learned positions: the same personas in a shorter and a longer wording, on the model that is shipped."""
    from persona_circuits.circuit.model import load_model

    model = load_model(DATA.parent.parent / "models" / "persona-world")
    people = {
        row["id"]: row["descriptions"]
        for row in map(json.loads, (DATA.parent.parent / "datasets" / "personas.jsonl").read_text().splitlines())
    }
    pairs = [p for p in load_task(DATA.parent.parent / "datasets" / "pairs_demo.jsonl").pairs if not p.neutral][:3]
    longer = [replace(p, corrupt=people[p.persona_b][1] + p.corrupt[p.corrupt.index("\n") :], spans=()) for p in pairs]
    found = []
    for some in (pairs, longer):
        rows = encode(Task(tuple(some), "pairs", "0" * 64), model, align="right")
        found.append(agreement_with_exact(model, batches(with_swap_rows(rows), 8, "cpu", uneven=True), 60))
    assert all(len(row.clean) != len(row.corrupt) for row in rows)
    assert found[1] > 0.85
    assert found[1] > found[0] - 0.05


def test_aligned_scores_agree_with_exact_patching_where_positions_are_rotations(rotary, unequal, tiny_task):
    found = [
        agreement_with_exact(rotary, batches(with_swap_rows(encode(task, rotary, align="right")), 8, "cpu"), 200)
        for task in (tiny_task, unequal)
    ]
    assert found[1] > 0.8
    assert found[1] > found[0] - 0.05


def test_alignment_on_the_left_would_be_worse(tiny64, unequal):
    """The trap itself: with the padding on the right, the common end no longer stands against itself."""
    (batch,) = batches(encode(unequal, tiny64, align="right"), 8, "cpu")
    wrong = torch.zeros_like(batch.corrupt_to_clean)
    for row, (first, second) in enumerate(
        (len(token_ids(p.clean, tiny64)), len(token_ids(p.corrupt, tiny64))) for p in unequal.pairs
    ):
        n, m = wrong.shape[1:]
        for place in range(first):
            wrong[row, n - first + place, m - second + min(place, second - 1)] = 1.0
    bad = replace(batch, corrupt_to_clean=wrong)
    masks = [
        Circuit.of(tiny64.graph, [e]).complement().mask
        for e in ("input->m0", "m0->m1", "m1->logits", "input->a0.h1<v>")
    ]
    moved = [measure(tiny64, [prepare(tiny64, b)], masks, LOGIT_DIFF) for b in (batch, bad)]
    assert np.abs(moved[0] - moved[1]).max() > 1e-3


def test_uneven_batches_give_the_same_scores_as_prompts_of_one_length(tiny64, tiny_task):
    rows = with_swap_rows(encode(tiny_task, tiny64))
    even, uneven = (batches(rows, 5, "cpu", uneven=flag) for flag in (False, True))
    assert len(uneven) < len(even)
    for score in (eap, eap_ig):
        ours = score(tiny64, uneven, LOGIT_DIFF).values
        np.testing.assert_allclose(ours, score(tiny64, even, LOGIT_DIFF).values, atol=1e-11)
    masks = [Circuit.of(tiny64.graph, ["input->m0", "m0->m2", "m2->logits"]).mask]
    values = [measure(tiny64, (prepare(tiny64, b) for b in groups), masks, LOGIT_DIFF) for groups in (even, uneven)]
    np.testing.assert_allclose(values[0], values[1], atol=1e-11)


def test_scores_by_span_and_by_row_add_up_to_the_whole(tiny64, unequal):
    text = {"persona": (2, 5), "cue": (6, 8)}
    spans = tuple(replace_span(name, *at) for name, at in text.items())
    task = replace(
        unequal, pairs=tuple(replace(p, spans=spans, corrupt_spans=spans, persona_b="A") for p in unequal.pairs)
    )
    groups = batches(with_swap_rows(encode(task, tiny64, align="right")), 2, "cpu")
    whole = eap_ig(tiny64, groups, LOGIT_DIFF, steps=2).values
    by_span = score_parts(tiny64, groups, LOGIT_DIFF, Scoring(steps=2), by="span")
    assert by_span.names == ("persona", "cue", "between")
    np.testing.assert_allclose(by_span.total().values, whole, atol=1e-12)
    by_row = score_parts(tiny64, groups, LOGIT_DIFF, Scoring(steps=2), by="row")
    np.testing.assert_allclose(by_row.total().values, whole, atol=1e-6)
    for index in range(len(task.pairs)):
        alone = batches(encode(replace(task, pairs=(task.pairs[index],)), tiny64, align="right"), 1, "cpu")
        found = by_row.values[by_row.names.index(str(2 * index))]
        np.testing.assert_allclose(found, eap_ig(tiny64, alone, LOGIT_DIFF, steps=2).values, atol=1e-6)


def replace_span(name, start, end):
    from persona_circuits.circuit.task import Span

    return Span(name, start, end)


def test_a_span_holds_what_its_positions_give(tiny64, tiny_task):
    """Edges into the logits read the last position only, so all their score lies in the part that holds it."""
    from persona_circuits.circuit.task import Span

    pairs = []
    for pair in tiny_task.pairs:
        n = len(token_ids(pair.clean, tiny64))
        spans = (Span("start", 0, n - 1), Span("end", n - 1, n))
        pairs.append(replace(pair, spans=spans, corrupt_spans=spans))
    groups = batches(encode(replace(tiny_task, pairs=tuple(pairs)), tiny64), 4, "cpu")
    parts = score_parts(tiny64, groups, LOGIT_DIFF, Scoring("eap"), by="span")
    last = tiny64.graph.n_dst - 1
    assert not parts.values[parts.names.index("start")][:, last].any()
    assert np.abs(parts.values[parts.names.index("end")][:, last]).max() > 0
    with pytest.raises(OptionError, match="expected row or span"):
        score_parts(tiny64, groups, LOGIT_DIFF, Scoring("exact"), by="span")


def test_unequal_prompts_are_refused_unless_aligned_and_need_a_common_end(tiny64, unequal):
    with pytest.raises(TaskError, match=r"line 1 .*clean prompt has .* use --align right"):
        encode(unequal, tiny64)
    apart = replace(unequal.pairs[0], corrupt="you are a sad cook")
    with pytest.raises(TaskError, match="do not end in the same token"):
        encode(replace(unequal, pairs=(apart,)), tiny64, align="right")
    with pytest.raises(OptionError, match="--align 'left' is not one of equal, right"):
        encode(unequal, tiny64, align="left")


def test_another_question_is_no_persona_contrast(tiny64, tmp_path):
    row = {
        "clean": "you are a happy cook. you choose red or blue? answer:",
        "corrupt": "you are a sad cook. you choose red or tea? answer:",
        "answers": [" blue"], "wrong_answers": [" red"], "persona_a": "A", "persona_b": "B",
        "spans": {side: {"persona": {"chars": [0, 20], "tokens": [0, 6]}} for side in ("clean", "corrupt")},
    }  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(TaskError, match="differ outside the persona"):
        encode(load_task(path), tiny64)
    row["spans"]["clean"]["persona"]["tokens"] = [0, 99]
    path.write_text(json.dumps(row))
    with pytest.raises(TaskError, match="ends at token 99 of a prompt"):
        encode(load_task(path), tiny64)
    row["spans"] = {"clean": {"persona": [0, 6]}}
    path.write_text(json.dumps(row))
    with pytest.raises(TaskError, match="'spans' must give every part's 'tokens'"):
        load_task(path)


def test_null_run_compares_unequal_paraphrases_with_equal_ones(tiny64, unequal, tiny_task):
    same = [replace(p, persona_a="A", persona_b="A", id=f"e{p.line}") for p in tiny_task.pairs]
    others = [replace(p, persona_b="A") for p in unequal.pairs[:2]]
    found = null_run(tiny64, Task((*same, *others), "null", "0" * 64))
    assert (found.n_equal, found.n_unequal) == (len(same), 2)
    gaps = []
    for pair in same:
        logits = [tiny64.logits(torch.tensor([token_ids(t, tiny64)]))[0, -1] for t in (pair.clean, pair.corrupt)]
        a, b = (token_ids(pair.clean + t[0], tiny64)[-1] for t in (pair.answers, pair.wrong_answers))
        gaps.append(float((logits[0][a] - logits[0][b]) - (logits[1][a] - logits[1][b])))
    assert found.sigma_0 == pytest.approx(np.sqrt(np.mean(np.square(gaps))), rel=1e-9)
    assert found.unequal > 0
    assert found.p_larger is None
    assert -1 <= found.gap_correlation <= 1
    assert 0 <= found.p_gap <= 1
    with pytest.raises(TaskError, match="are two personas"):
        null_run(tiny64, unequal)


def test_run_of_padded_rows_can_be_repeated(tiny64, unequal):
    """A context of a padded batch fits whole copies of it, as patched passes need."""
    (batch,) = batches(encode(unequal, tiny64, align="right"), 8, "cpu")
    embedded, context = tiny64.start(batch.clean, batch.clean_padding)
    once, twice = run(tiny64, embedded, context), run(tiny64, embedded.repeat(2, 1, 1), context)
    torch.testing.assert_close(twice.logits, once.logits.repeat(2, 1), atol=1e-12, rtol=1e-12)
