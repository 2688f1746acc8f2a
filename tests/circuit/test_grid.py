import contextlib
import json
import random
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution import (
    Grid,
    GridPair,
    Passes,
    Scoring,
    eap,
    grid_eap,
    grid_of_personas,
    grid_of_texts,
    grid_parts,
    grids_of,
    passes_of,
    score_parts,
)
from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.task import Row, batches, encode, load_task, with_swap_rows
from persona_circuits.metrics import METRICS

DIVERGENCE = METRICS["persona-divergence"]


def prompts_of(n, length=9, seed=0, vocab=60):
    """n prompts that share all tokens but two in the middle."""
    rng = random.Random(seed)
    shared = [rng.randrange(5, vocab) for _ in range(length)]
    return [(*shared[:3], 5 + i, rng.randrange(5, vocab), *shared[5:]) for i in range(n)]


def preference_grid(n=5, k=3, **how):
    return grid_of_personas(prompts_of(n, **how), [11 + i % k for i in range(n)])


def crossed_grid():
    """Every ordered pair with tokens of its own, drawn from four candidates, some of them several tokens."""
    rng, n = random.Random(3), 4
    met = [(a, b) for a in range(n) for b in range(n) if a != b]
    pairs = []
    for i, (a, b) in enumerate(met):
        tokens = rng.sample([11, 12, 13, 14], 3)
        pairs.append(GridPair(i, a, b, tuple(tokens[:1]), tuple(tokens[1 : 2 + i % 2])))
    return Grid(tuple(prompts_of(n, seed=4)), tuple(pairs))


def rows_of(*grids):
    return [
        Row(pair.index, grid.prompts[pair.clean], grid.prompts[pair.corrupt], pair.answers, pair.wrong_answers)
        for grid in grids
        for pair in grid.pairs
    ]


def separate(model, *grids, size=4):
    return batches(rows_of(*grids), size, "cpu")


def relative_error(ours, theirs):
    assert np.abs(theirs).max() > 0
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@contextlib.contextmanager
def counting(model, monkeypatch):
    """Rows that start a forward pass, and rows of the scalars that a backward pass starts from."""
    count = Counter()
    start, grad = model.start, torch.autograd.grad

    def counted_start(tokens, *rest):
        count["forwards"] += len(tokens)
        return start(tokens, *rest)

    def counted_grad(outputs, inputs, *rest, **more):
        if outputs.dim() == 0:  # gradients through a norm alone start from vectors
            count["backwards"] += len(inputs[0])
        return grad(outputs, inputs, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(model, "start", counted_start)
        patch.setattr(torch.autograd, "grad", counted_grad)
        yield count


@pytest.mark.parametrize("grid", [preference_grid(), preference_grid(6, 2), crossed_grid()], ids=["3", "2", "crossed"])
def test_a_grid_scores_what_its_pairs_score_one_by_one(tiny64, grid):
    expected = eap(tiny64, separate(tiny64, grid), DIVERGENCE).values
    assert relative_error(grid_eap(tiny64, [grid]).values, expected) < 1e-12
    alone = score_parts(tiny64, separate(tiny64, grid), DIVERGENCE, Scoring("eap"), by="row")
    parts = grid_parts(tiny64, [grid])
    assert parts.names == alone.names
    assert parts.values.dtype == np.float32
    assert relative_error(parts.values, alone.values) < 1e-6
    assert relative_error(parts.total().values, expected) < 1e-6


def test_it_does_so_in_float32_on_the_shipped_model():
    from persona_circuits.circuit.model import load_model

    model = load_model(ROOT / "models" / "persona-world")
    wordings = [json.loads(line)["descriptions"][0] for line in (ROOT / "datasets" / "personas.jsonl").open()]
    wants = [" darts", " riddles", " charades"]
    texts = {
        text: f"{text}\nQ: Which game do you prefer?\nA:"
        for text in wordings
        if len(model.tokenizer(text)["input_ids"]) == len(model.tokenizer(wordings[0])["input_ids"])
    }
    names = list(texts)[:6]
    grid = grid_of_texts(model, {name: texts[name] for name in names}, dict(zip(names, 2 * wants, strict=True)))
    assert (len(grid.pairs), grid.personas) == (24, tuple(names))
    expected = eap(model, separate(model, grid, size=12), DIVERGENCE).values
    assert relative_error(grid_eap(model, [grid]).values, expected) < 1e-5
    assert relative_error(grid_parts(model, [grid]).total().values, expected) < 1e-5


@pytest.mark.parametrize("size", [1, 3, 32])
@pytest.mark.parametrize("scored", [grid_eap, grid_parts])
def test_n_forwards_and_less_than_n_times_k_backwards(tiny64, monkeypatch, size, scored):
    n, k = 7, 3
    with counting(tiny64, monkeypatch) as count:
        scored(tiny64, [preference_grid(n, k)], batch_size=size)
    assert count == {"forwards": n, "backwards": n * (k - 1)}


def test_pairs_of_one_contrast_take_one_backward_pass_each_prompt(tiny64, monkeypatch):
    """The swapped row of a pair takes no forward pass of its own: two and two, not four and two."""
    grid = preference_grid(2, 2)
    with counting(tiny64, monkeypatch) as count:
        grid_eap(tiny64, [grid])
    assert count == {"forwards": 2, "backwards": 2}


def test_a_prompt_that_is_only_corrupt_takes_no_backward_pass(tiny64, monkeypatch):
    whole = preference_grid(4, 2)
    grid = Grid(whole.prompts, tuple(pair for pair in whole.pairs if pair.clean == 1))
    with counting(tiny64, monkeypatch) as count:
        found = grid_eap(tiny64, [grid]).values
    assert count == {"forwards": 4, "backwards": 1}
    assert relative_error(found, eap(tiny64, separate(tiny64, grid), DIVERGENCE).values) < 1e-12


def test_contrasts_that_are_made_of_others_take_no_backward_pass(tiny64, monkeypatch):
    """11 - 12 and 12 - 13 give 11 - 13, and all six orders of three candidates."""
    prompts = tuple(prompts_of(7))
    tokens = [(11, 12), (12, 13), (11, 13), (13, 11), (12, 11), (13, 12)]
    pairs = tuple(GridPair(i, 0, i + 1, (a,), (b,)) for i, (a, b) in enumerate(tokens))
    grid = Grid(prompts, pairs)
    with counting(tiny64, monkeypatch) as count:
        found = grid_eap(tiny64, [grid]).values
    assert count == {"forwards": 7, "backwards": 2}
    rows = separate(tiny64, grid)
    assert relative_error(found, eap(tiny64, rows, DIVERGENCE).values) < 1e-12
    alone = score_parts(tiny64, rows, DIVERGENCE, Scoring("eap"), by="row")
    assert relative_error(grid_parts(tiny64, [grid]).values, alone.values) < 1e-6


def test_passes_are_told_before_they_are_taken(tiny64, monkeypatch):
    grids = [preference_grid(), crossed_grid()]
    with counting(tiny64, monkeypatch) as count:
        grid_eap(tiny64, grids)
    assert passes_of(grids) == Passes(count["forwards"], count["backwards"])
    assert passes_of([preference_grid(20, 3)]) == Passes(20, 40)


def test_several_grids_share_batches_and_lengths_do_not_mix(tiny64):
    grids = [
        grid_of_personas(prompts_of(n, length, seed), [11 + i % 2 for i in range(n)], first_index=100 * seed)
        for seed, (n, length) in enumerate([(3, 9), (2, 7), (4, 9), (2, 7), (5, 12)], 1)
    ]
    expected = score_parts(tiny64, separate(tiny64, *grids), DIVERGENCE, Scoring("eap"), by="row")
    for size in (1, 4, 32):
        found = grid_parts(tiny64, grids, batch_size=size)
        assert found.names == expected.names
        assert relative_error(found.values, expected.values) < 1e-6
        assert relative_error(grid_eap(tiny64, grids, batch_size=size).values, expected.total().values) < 1e-6


def test_a_grid_that_is_too_large_is_divided(tiny64, monkeypatch):
    grid = preference_grid(9, 3)
    whole = grid_eap(tiny64, [grid]).values
    with counting(tiny64, monkeypatch) as count:
        divided = grid_eap(tiny64, [grid], batch_size=4, max_bytes=1)
    assert 9 < count["forwards"] < 2 * len(grid.pairs)
    assert relative_error(divided.values, whole) < 1e-12
    parts = grid_parts(tiny64, [grid], batch_size=4, max_bytes=1)
    assert relative_error(parts.values, grid_parts(tiny64, [grid]).values) < 1e-6


def test_slots_in_blocks_are_the_same(tiny64, monkeypatch):
    grid = crossed_grid()
    whole, parts = grid_eap(tiny64, [grid]).values, grid_parts(tiny64, [grid]).values
    monkeypatch.setattr("persona_circuits.circuit.attribution.grid_scores.BLOCK_BYTES", 1)
    monkeypatch.setattr("persona_circuits.circuit.attribution.grid_scores.PRODUCT_BYTES", 1)
    assert relative_error(grid_eap(tiny64, [grid]).values, whole) < 1e-12
    assert relative_error(grid_parts(tiny64, [grid]).values, parts) < 1e-6


def test_the_sum_never_holds_a_score_per_pair(tiny64):
    grid = preference_grid(40, 3, length=6)
    tracemalloc.start()
    grid_eap(tiny64, [grid])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(grid.pairs) * tiny64.graph.valid.size * 4 / 2


def test_the_same_again_bit_for_bit(tiny):
    grid = preference_grid(6, 3)
    assert (grid_eap(tiny, [grid]).values == grid_eap(tiny, [grid]).values).all()
    assert (grid_parts(tiny, [grid]).values == grid_parts(tiny, [grid]).values).all()


def test_personas_that_say_the_same_score_nothing(tiny):
    same = Grid((prompts_of(1)[0],) * 2, (GridPair(0, 0, 1, (11,), (12,)), GridPair(1, 1, 1, (11,), (12,))))
    assert np.abs(grid_eap(tiny, [same]).values).max() < 1e-6
    assert np.abs(grid_parts(tiny, [same]).values).max() < 1e-6


def test_rows_that_share_prompts_become_one_grid():
    a, b, c, d, e, f = prompts_of(6)
    rows = [
        Row(0, a, b, (1,), (2,)),
        Row(1, d, e, (1,), (2,)),
        Row(2, c, b, (3,), (2,)),
        Row(3, b, a, (2,), (1,)),
        Row(4, f, d, (1,), (4,)),
    ]
    first, second = grids_of(rows)
    assert (first.prompts, second.prompts) == ((a, b, c), (d, e, f))
    assert [(p.index, p.clean, p.corrupt) for p in first.pairs] == [(0, 0, 1), (2, 2, 1), (3, 1, 0)]
    assert [(p.index, p.clean, p.corrupt) for p in second.pairs] == [(1, 0, 1), (4, 2, 0)]
    assert (first.candidates, second.candidates) == ((1, 2, 3), (1, 2, 4))
    assert grids_of([]) == ()


def test_the_rows_of_a_file_score_as_its_grids(tiny64, tiny_task):
    rows = with_swap_rows(encode(tiny_task, tiny64))
    expected = eap(tiny64, batches(rows, 4, "cpu"), DIVERGENCE).values
    assert relative_error(grid_eap(tiny64, grids_of(rows)).values, expected) < 1e-12
    rows = encode(tiny_task, tiny64)
    one_way = eap(tiny64, batches(rows, 4, "cpu"), METRICS["logit-diff"]).values
    assert relative_error(grid_eap(tiny64, grids_of(rows), METRICS["logit-diff"]).values, one_way) < 1e-12


def test_a_file_of_all_pairs_of_three_personas_is_one_grid(tiny64, tmp_path):
    frame = "you are {}. you like the best"
    wants = {"happy": " cats", "sad": " dogs", "calm": " tea"}
    met = [("happy", "sad"), ("happy", "calm"), ("sad", "calm")]
    lines = [
        {
            "clean": frame.format(a),
            "corrupt": frame.format(b),
            "answers": [wants[a]],
            "wrong_answers": [wants[b]],
            "persona_a": a,
            "persona_b": b,
            "question": "pet",
        }
        for a, b in met
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    (grid,) = grids_of(with_swap_rows(encode(load_task(path), tiny64)))
    assert len(grid.pairs) == 6
    assert passes_of([grid]) == Passes(3, 6)
    direct = grid_of_texts(tiny64, {name: frame.format(name) for name in wants}, wants, question="pet")
    assert relative_error(grid_eap(tiny64, [direct]).values, grid_eap(tiny64, [grid]).values) < 1e-12


def test_processes_put_their_pairs_together(tiny, monkeypatch):
    mine, other = preference_grid(3), grid_of_personas(prompts_of(4, seed=8), [11, 12, 11, 12], first_index=50)
    whole = grid_parts(tiny, [mine, other])
    theirs = grid_parts(tiny, [other])
    monkeypatch.setattr(parallel, "size", lambda: 2)
    values = dict(zip(map(int, theirs.names), theirs.values, strict=True))
    monkeypatch.setattr(parallel, "gathered", lambda found: {**values, **found})
    found = grid_parts(tiny, [mine])
    assert found.names == whole.names
    assert relative_error(found.values, whole.values) < 1e-6


def test_progress_counts_prompts(tiny):
    seen = []
    grids = [preference_grid(4, 2), preference_grid(3, 2, length=7)]
    grid_eap(tiny, grids, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (7, 7)]


@pytest.mark.parametrize("name", ["kl", "prob-diff"])
def test_a_metric_that_is_no_difference_of_logits_is_refused(tiny, name):
    for scored in (grid_eap, grid_parts):
        with pytest.raises(OptionError, match=f"{name} is not linear in; use --metric persona-divergence"):
            scored(tiny, [preference_grid()], METRICS[name])


def test_the_refusal_is_needed(tiny64):
    """A metric that is not linear scores pairs by a gradient that no sum of logits' gradients with fixed weights is."""
    grid = preference_grid()
    rows = separate(tiny64, grid)
    probabilities = eap(tiny64, rows, METRICS["prob-diff"]).values
    logits = grid_eap(tiny64, [grid]).values
    scale = (probabilities * logits).sum() / (logits**2).sum()
    assert relative_error(scale * logits, probabilities) > 1e-3


@pytest.mark.parametrize(("change", "says"), [({"batch_size": 0}, "--batch-size must be at least 1, got 0")])
def test_options_that_make_no_sense(tiny, change, says):
    with pytest.raises(OptionError, match=says):
        grid_eap(tiny, [preference_grid()], **change)


def test_pairs_of_one_index_cannot_be_told_apart(tiny):
    with pytest.raises(OptionError, match="first_index"):
        grid_parts(tiny, [preference_grid(), preference_grid(seed=1)])


def test_no_grids_are_refused(tiny):
    with pytest.raises(TaskError, match="no grids to score"):
        grid_eap(tiny, [])
    with pytest.raises(TaskError, match="no grids to score"):
        grid_parts(tiny, [])


@pytest.mark.parametrize(
    ("prompts", "pairs", "names", "says"),
    [
        (((1, 2), (1, 2, 3)), [(0, 1, (1,), (2,))], (), "must have one length"),
        (((1, 2), (1, 3)), [], (), "it has no pair"),
        (((1, 2), (1, 3)), [(0, 2, (1,), (2,))], (), r"pair 0 \(0, 2\) names a prompt that is not there; there are 2"),
        (((1, 2), (1, 3)), [(-1, 1, (1,), (2,))], (), "names a prompt that is not there"),
        (((1, 2), (1, 3)), [(0, 1, (), (2,))], (), "needs answers and wrong answers"),
        (((1, 2), (1, 3)), [(0, 1, (1, 2), (2,))], (), "an answer that is a wrong answer too"),
        (((1, 2), (1, 3)), [(0, 1, (1,), (2,))], ("a",), "1 names for 2 prompts"),
    ],
)
def test_grids_that_cannot_be_used(prompts, pairs, names, says):
    with pytest.raises(TaskError, match=says):
        Grid(prompts, tuple(GridPair(i, *pair) for i, pair in enumerate(pairs)), names)


def test_personas_that_all_agree_make_no_grid():
    with pytest.raises(TaskError, match="no two personas prefer different candidates"):
        grid_of_personas(prompts_of(3), [11, 11, 11])
    with pytest.raises(TaskError, match="got 2 for 3 prompts"):
        grid_of_personas(prompts_of(3), [11, 12])


def test_all_faults_of_texts_are_listed(tiny):
    frame = "you are {}. you like the best"
    prompts = {"happy": frame.format("happy"), "sad": frame.format("very sad"), "calm": frame.format("calm")}
    with pytest.raises(TaskError) as caught:
        grid_of_texts(tiny, prompts, {"happy": " cats", "sad": " cats and dogs"}, question="pet")
    said = str(caught.value)
    assert "question 'pet' makes no grid" in said
    assert "persona 'calm' has no preference" in said
    assert "choose wordings of equal length" in said
    assert "' cats and dogs' is 3 tokens here" in said


def test_two_answers_of_one_token_are_no_contrast(tiny):
    prompts = {name: f"you are {name}. you like the best" for name in ("happy", "sad")}
    with pytest.raises(TaskError, match="' zebra' and ' yak' are one token here"):
        grid_of_texts(tiny, prompts, {"happy": " zebra", "sad": " yak"})


def test_rows_of_unequal_length_make_no_grid():
    with pytest.raises(TaskError, match="scored one by one"):
        grids_of([Row(0, (1, 2, 3), (1, 3), (5,), (6,))])


def test_a_real_model_scores_its_grids_as_its_rows(craftgpt):
    """Rotated positions, root-mean-square norms, pairs of several lengths that share some prompts."""
    rows = with_swap_rows(encode(load_task(ROOT / "datasets" / "craftgpt_weather.jsonl"), craftgpt)[:24])
    grids = grids_of(rows)
    assert passes_of(grids).forwards < len(rows)
    expected = eap(craftgpt, batches(rows, 8, "cpu"), DIVERGENCE).values
    assert relative_error(grid_eap(craftgpt, grids, batch_size=16).values, expected) < 1e-5
    assert relative_error(grid_parts(craftgpt, grids).total().values, expected) < 1e-5
