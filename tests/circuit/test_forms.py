"""Options of several forms and tokens, against one plain pass of another forward for every token of every form."""

import copy
import itertools

import numpy as np
import pytest
import torch
from conftest import DATA
from families import save
from tests_reference import Reference

from persona_circuits.circuit.attribution import Scoring, eap, eap_by_definition, eap_ig, exact, score_parts
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import ModelError, TaskError
from persona_circuits.circuit.forward import patched_logits, patched_nodes, prepare
from persona_circuits.circuit.forward.gated import gated_logits
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.task import Forms, FormTable, Task, batches, encode, form_table, forms_of, with_swap_rows
from persona_circuits.metrics import METRICS, candidate_mass, with_options

DIVERGENCE = METRICS["persona-divergence"]
BLUE, RED = (" blue", " a happy blue", " sun or rain", " sun or red"), (" red", " a happy red", " a sad cook")
PROMPTS = (
    ("you are a happy cook. you choose red or blue? answer:", "you are a sad cook. you choose red or blue? answer:"),
    ("we are a kind nurse. you choose sun or rain? answer:", "they are a tired nurse. you choose sun or rain? answer:"),
)


@pytest.fixture(scope="module")
def forms_task():
    """Two pairs whose prompts differ in length, so that batches of both are padded; the second has fewer forms."""
    first, second = ({"clean": clean, "corrupt": corrupt} for clean, corrupt in PROMPTS)
    return Task.from_pairs(
        [
            {**first, "answers": [" blue"], "wrong_answers": [" red"], "forms": {" blue": BLUE, " red": RED}},
            {**second, "answers": [" rain"], "wrong_answers": [" sun"], "forms": {" rain": [" rain", " happy rain"]}},
        ]
    )


@pytest.fixture(scope="module")
def reference():
    from transformers import AutoModelForCausalLM

    return Reference(AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2"))


def log_probability(run, forms):
    """log sum over forms of the product of their tokens' probabilities, ``run`` gives the logits."""
    values = [sum(run(form[:n]).log_softmax(-1)[token] for n, token in enumerate(form)) for form in forms]
    return torch.stack(values).logsumexp(0)


def margin(reference, row, alpha):
    """m of one row, of passes over prompt and beginning of a form, edges weighed as ``alpha`` says."""
    prompt, other = row.prompts

    def run(begun):
        ids = torch.tensor([[*prompt, *begun]])
        corrupt = reference.plain(torch.tensor([[*other, *begun]]))
        return reference.run(ids, corrupt, alpha)["logits"][0]

    first, second = (log_probability(run, forms) for forms in row.forms.forms)
    return first - second if row.answers < row.wrong_answers else second - first


def ones(graph):
    return {str(edge): torch.ones((), dtype=torch.float64, requires_grad=True) for edge in graph.edges()}


@pytest.mark.parametrize("uneven", [False, True])
def test_scores_are_the_gradients_of_passes_one_by_one(tiny64, forms_task, reference, uneven):
    rows, graph = with_swap_rows(encode(forms_task, tiny64)), tiny64.graph
    expected = {}
    for row in rows:
        alpha = ones(graph)
        margin(reference, row, alpha).backward()
        expected[str(row.index)] = -np.array([alpha[str(edge)].grad.item() for edge in graph.edges()])
    groups = batches(rows, 4, "cpu", uneven=uneven)
    assert len(groups) == (1 if uneven else 2)
    parts = score_parts(tiny64, groups, DIVERGENCE, Scoring("eap"), by="row")
    for name, values in zip(parts.names, parts.values, strict=True):
        found = np.array([values[graph.index(edge)] for edge in graph.edges()])
        assert np.abs(found - expected[name]).max() < 1e-6 * np.abs(expected[name]).max()  # rows are float32
    whole = sum(expected.values()) / len(rows)
    ours = eap(tiny64, groups, DIVERGENCE).as_dict()
    assert np.allclose([ours[str(edge)] for edge in graph.edges()], whole, rtol=0, atol=1e-11)


def test_eap_is_the_central_difference_of_the_patched_margin(tiny64, forms_task, reference):
    """No autograd: the other forward with one edge a little corrupted."""
    (row, _), graph, step = encode(forms_task, tiny64), tiny64.graph, 1e-4
    scores = eap(tiny64, batches([row], 4, "cpu"), DIVERGENCE)
    for edge in ("input->a0.h1<v>", "a0.h2->m1", "m0->a2.h3<k>", "m1->a2.h0<q>", "a1.h0->logits", "m2->logits"):
        weights = (torch.tensor(1.0 + sign * step, dtype=torch.float64) for sign in (-1, 1))
        up, down = (margin(reference, row, {edge: weight}) for weight in weights)
        assert scores[edge] == pytest.approx(((up - down) / (2 * step)).item(), abs=1e-6)
    assert max(abs(scores[str(edge)]) for edge in graph.edges()) > 1e-2


@pytest.mark.parametrize("uneven", [False, True])
def test_eap_ig_is_its_definition_over_several_positions(tiny64, forms_task, uneven):
    rows = with_swap_rows(encode(forms_task, tiny64))
    points = (1 / 6, 3 / 6, 5 / 6)
    expected = eap_by_definition(tiny64, batches(rows, 1, "cpu"), DIVERGENCE, points).values
    found = eap_ig(tiny64, batches(rows, 4, "cpu", uneven=uneven), DIVERGENCE, steps=3).values
    assert np.abs(found - expected).max() < 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize("uneven", [False, True])
def test_patched_passes_are_passes_one_by_one(tiny64, forms_task, reference, uneven):
    rows, graph = encode(forms_task, tiny64), tiny64.graph
    masks = np.random.default_rng(0).random((3, *graph.valid.shape)) < 0.6
    masks = np.stack([*masks, graph.valid, np.zeros_like(graph.valid)]) & graph.valid
    for batch in batches(rows, 4, "cpu", uneven=uneven):
        item = prepare(tiny64, batch)
        logits = patched_logits(tiny64, item, torch.from_numpy(masks))
        for kept, found in zip(masks, logits, strict=True):
            weights = {str(edge): float(kept[graph.index(edge)]) for edge in graph.edges()}
            expected = [margin(reference, rows[index], weights).item() for index in batch.indices]
            assert DIVERGENCE(found, item.targets).tolist() == pytest.approx(expected, abs=1e-10)
            gated = gated_logits(tiny64, item, torch.from_numpy(kept).double())
            assert torch.allclose(gated, found, atol=1e-9)


def test_the_exact_score_and_a_patched_node_are_passes_one_by_one(tiny64, forms_task, reference):
    (row, _), graph = encode(forms_task, tiny64), tiny64.graph
    (batch,) = batches([row], 4, "cpu")
    scores, whole = exact(tiny64, [batch], DIVERGENCE), margin(reference, row, {}).item()
    for edge in ("input->a0.h1<v>", "m0->a2.h3<k>", "m2->logits"):
        assert scores[edge] == pytest.approx(margin(reference, row, {edge: 0.0}).item() - whole, abs=1e-10)
    item, chosen = prepare(tiny64, batch), torch.zeros(1, graph.n_src, dtype=torch.bool)
    chosen[0, graph.src_index("a1.h2")] = True
    (found,) = patched_nodes(tiny64, item, chosen, torch.ones(1, *batch.clean.shape, dtype=torch.bool))
    cut = {str(edge): 0.0 for edge in graph.edges() if str(edge).startswith("a1.h2->")}
    assert DIVERGENCE(found, item.targets).item() == pytest.approx(margin(reference, row, cut).item(), abs=1e-10)


def test_the_value_of_an_option_is_what_begins_with_its_forms(tiny64, forms_task):
    """Every continuation of three tokens is enumerated: those that begin with a form add up to the option."""
    row, vocab = encode(forms_task, tiny64)[0], tiny64.n_vocab
    prompt, pairs = list(row.prompts[0]), list(itertools.product(range(vocab), repeat=2))
    with torch.no_grad():
        first = tiny64.logits(torch.tensor([prompt]))[0, -1].log_softmax(-1)
        second = tiny64.logits(torch.tensor([[*prompt, a] for a in range(vocab)]))[:, -1].log_softmax(-1)
        third = torch.cat(
            [
                tiny64.logits(torch.tensor([[*prompt, *pair] for pair in pairs[start : start + 500]]))[:, -1]
                for start in range(0, len(pairs), 500)
            ]
        ).log_softmax(-1)
    of_three = (first[:, None, None] + second[:, :, None] + third.view(vocab, vocab, vocab)).exp()
    assert of_three.sum().item() == pytest.approx(1)
    (batch,) = batches([row], 4, "cpu")
    item = prepare(tiny64, batch)
    found = item.clean.logits.softmax(-1)[0]
    for number, forms in enumerate(row.forms.forms):
        chance = sum(of_three[form].sum().item() for form in forms)
        assert found[vocab + number].item() == pytest.approx(chance, rel=1e-9)
    assert candidate_mass(item.clean.logits, torch.tensor([[vocab, vocab + 1]])).item() == pytest.approx(
        found[vocab:].sum().item()
    )
    sun = encode(forms_task, tiny64)[1].forms.forms[1][0][0]  # begins two forms of the first option, is none
    taken = sum(of_three[form].sum().item() for form in row.forms.forms[0] if form[0] == sun)
    assert found[sun].item() == pytest.approx(first[sun].exp().item() - taken, rel=1e-9)
    assert found.sum().item() == pytest.approx(1)


def test_one_form_of_one_token_is_the_token(tiny64, tiny_task):
    """Nothing changes where a file says of every option what it is without being said."""
    plain = tiny_task[:2]
    said = Task.from_pairs(
        [
            {
                **{key: getattr(pair, key) for key in ("clean", "corrupt", "answers", "wrong_answers")},
                "forms": {text: [text] for text in (*pair.answers, *pair.wrong_answers)},
            }
            for pair in plain
        ]
    )
    one, other = (eap(tiny64, batches(encode(task, tiny64), 4, "cpu"), DIVERGENCE).values for task in (plain, said))
    assert np.array_equal(one, other)


def test_forms_are_counted_once_and_for_one_option_alone():
    found = forms_of(
        {"cake": [(1,), (1, 2), (3, 4)], "ice": [(5,), (5, 8)], "ice cream": [(5, 6), (3, 4), (5, 6, 7)]},
        {(1,): "cake", (1, 2): "cakes", (3, 4): "sweet", (5,): "ice", (5, 8): "ices", (5, 6): "ice cream"},
    )
    assert dict(zip(found.names, found.forms, strict=True)) == {
        "cake": ((1,),),  # "cakes" begins with it, and the shared form is nobody's
        "ice": ((5, 8),),  # "ice" begins the other option
        "ice cream": ((5, 6),),
    }
    assert sorted(found.left_out) == [
        "'ice' begins more than one of 'ice', 'ice cream'",
        "'sweet' stands for 'cake', 'ice cream'",
    ]
    assert found.nodes == ((5,),)
    assert found.forced == (5,)


def test_rows_of_a_table_read_alone_as_together():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 9).double()
    places = torch.tensor([[[0, 1], [0, 0]], [[1, 2], [1, 0]]])
    tokens = torch.tensor([[[1, 2], [4, -1]], [[3, 4], [-1, -1]]])
    options = torch.tensor([[0, 1], [0, -1]])
    both = with_options(logits, places, tokens, options, 2)
    each = [slice(0, 1), slice(1, 2)]
    alone = [with_options(logits[i], places[i], tokens[i], options[i], 2) for i in each]
    assert torch.equal(both, torch.cat(alone))
    assert torch.allclose(both.softmax(-1).sum(-1), torch.ones(2).double())
    assert both[1, -1].item() < -9e3  # the second row has one option


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"forms": {" blue": [" red"]}}, "has no form that can be counted (' red' stands for ' blue', ' red')"),
        ({"forms": {" blue": ["xyzzy"]}}, "merges with the prompt's last token|has no token for"),
        ({"answers": [" red"], "forms": {}}, "is both an answer and a wrong answer"),
        ({"forms": {" blue": [" blue or" * 12]}}, "the model's context holds 32"),
        ({"forms": [" blue"]}, "'forms' must give a non-empty list of texts"),
        ({"forms": {" blue": []}}, "'forms' must give a non-empty list of texts"),
    ],
)
def test_forms_that_cannot_be_read_are_refused(tiny64, forms_task, change, said):
    row = {**forms_task.pairs[0].row, **change}
    with pytest.raises(TaskError) as caught:
        encode(Task.from_pairs([row]), tiny64)
    assert any(part in str(caught.value) for part in said.split("|"))


def test_a_search_takes_them_from_scores_to_faithfulness(tiny64, forms_task, reference):
    rows = with_swap_rows(encode(forms_task, tiny64))
    found = discover(tiny64, forms_task, Options(method="eap", prune="top-n", top_n=60, n_random=2))
    values = [margin(reference, row, {}).item() for row in rows]
    assert found.divergence == pytest.approx(np.mean(values) * 2, abs=1e-9)  # the other direction is the corrupt run
    kept = {str(edge): float(str(edge) in found.circuit.edge_names()) for edge in tiny64.graph.edges()}
    alone = np.mean([margin(reference, row, kept).item() for row in rows])
    empty = -np.mean(values)
    f = (alone - empty) / (np.mean(values) - empty)
    assert found.reports[-1].circuit.ratio_of_means == pytest.approx(f, abs=1e-9)


def test_an_architecture_that_reads_branches_otherwise_is_refused(tiny64, forms_task, monkeypatch):
    """Its masks are its own: as if a branch saw the other ones."""
    other = copy.copy(tiny64)
    other._reads_forms = False
    monkeypatch.setattr(FormTable, "branched", lambda self, mask: mask)
    (batch, _) = batches(encode(forms_task, other), 4, "cpu")
    with pytest.raises(ModelError, match="does not read forms of several tokens side by side"):
        other.start(batch.clean, batch.clean_padding, batch.forms)


def test_listed_options_in_one_order_alone_are_told_of(tiny64, forms_task, caplog):
    row = {"orders_of": "p", "order": 0, "options": ["red", "blue"]}
    task = Task.from_pairs([{**forms_task.pairs[0].row, **row}])
    options = Options(method="eap", prune="top-n", top_n=30, n_random=1)
    discover(tiny64, task, options)
    assert "1 of 1 pairs list their options and are not asked in all cyclic orders" in caplog.text
    caplog.clear()
    both = [{**task.pairs[0].row, "id": str(order), "order": order} for order in (0, 1)]
    discover(tiny64, Task.from_pairs([both[0], {**both[1], "neutral": both[1]["corrupt"]}]), options)
    assert "cyclic orders" not in caplog.text


@pytest.mark.parametrize("name", ["gemma3", "gpt-neo"])
def test_branches_are_chains_in_windows_too(name, tmp_path):
    """A window of three tokens, and an architecture whose windows nobody outside sees."""
    model = load_model(save(name, tmp_path), dtype="float64")
    forms = Forms(("one", "other"), (((5, 6, 7), (9, 1)), ((6, 5, 2, 3), (8, 4))))
    table, padding = form_table([forms, forms], "cpu"), torch.tensor([0, 3])
    prompts = torch.randint(0, 64, (2, 14), generator=torch.Generator().manual_seed(1))
    joined = torch.cat([prompts, torch.tensor(forms.forced).expand(2, -1)], 1)
    if name == "gpt-neo":
        with pytest.raises(ModelError, match="does not read forms of several tokens side by side"):
            model.start(joined, padding, table)
        return
    ends = [torch.tensor(node, dtype=torch.long).expand(2, -1) for node in ((), *forms.nodes)]
    one_by_one = [model.logits(torch.cat([prompts, end], 1), padding)[:, -1] for end in ends]
    together = model.forward(joined, padding, table)[:, -table.n_read :]
    assert torch.allclose(together, torch.stack(one_by_one, 1), atol=1e-9)
