"""Options as sets of forms: built by ``pairs --forms``, and read by collapse and the lens as passes one by one do."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import DATA

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.task import Task, encode
from persona_circuits.persona.behaviour import measure_pairs
from persona_circuits.persona.data import Persona, Question, Template, examples_of, items_of, load_tokenizer
from persona_circuits.persona.lens import LensOptions, study_lens
from persona_circuits.persona.pairs import PairOptions, build_pairs
from persona_circuits.persona.pairs.forms import surface_forms

PERSONAS = (
    Persona("cook", ("you are a happy cook.", "you are a calm cook.")),
    Persona("judge", ("you are a sad judge.", "you are a bold judge.")),
)
DRINK = Question(
    "drink",
    ("you like tea or milk?",),
    ("tea", "sad milk", "coffee", "the coffee", "red", "red sun"),
    {"cook": "tea", "judge": "sad milk"},
    forms={"tea": ("green tea",)},
)
PLAIN = Template("plain", "{persona} {question} answer:")
ASKED = PairOptions(test_share=0.0, forms=True, null=True)


@pytest.fixture(scope="module")
def reader():
    return load_tokenizer(str(DATA / "tiny-gpt2"))


@pytest.fixture(scope="module")
def built(reader):
    return build_pairs(PERSONAS, [DRINK], reader, PLAIN, options=ASKED)


@pytest.fixture(scope="module")
def items(built):
    return items_of(Task.from_pairs(built.rows))


def one_by_one(model, row, prompt, streams=None):
    """Log probability of every option, a pass of the host for each token; or of what ``streams`` makes of ids."""

    def run(ids):
        with torch.no_grad():
            return model.logits(torch.tensor([ids]))[0, -1] if streams is None else streams(ids)

    return torch.stack(
        [
            torch.stack(
                [
                    sum(run([*prompt, *form[:n]]).log_softmax(-1)[token] for n, token in enumerate(form))
                    for form in forms
                ]
            ).logsumexp(0)
            for forms in row.forms.forms
        ]
    )


def test_pairs_have_the_forms_that_a_tokenizer_can_tell_apart(built, reader):
    (row,) = built.rows
    assert row["answers"] == [" tea"]
    assert row["wrong_answers"] == [" sad milk"]
    # "the coffee" is a form of two options, "red" begins another one in all of its forms; upper case is unknown here.
    assert row["candidates"] == [" tea", " sad milk", " coffee", " red sun"]
    assert row["forms"][" coffee"] == [" coffee", " a coffee"]
    assert row["forms"][" tea"] == [" tea", " a tea", " the tea", " green tea", " a green tea", " the green tea"]
    assert row["forms"][" sad milk"] == [" sad milk", " a sad milk", " the sad milk"]
    (left_out,) = [one["what"] for one in built.about["candidates_left_out"] if "begins" in one["what"]][:1]
    assert left_out == "drink: ' red' begins more than one of ' red', ' red sun'"


def test_null_pairs_have_them_too(built):
    assert {row["control"] for row in built.null.rows} == {"paraphrase"}
    assert all(row["forms"] == built.rows[0]["forms"] for row in built.null.rows)


def test_options_of_several_tokens_make_no_pair_without_forms(reader):
    with pytest.raises(TaskError, match="candidate of several tokens"):
        build_pairs(PERSONAS, [DRINK], reader, PLAIN, options=dataclasses.replace(ASKED, forms=False, null=False))


def test_what_an_option_may_look_like():
    assert surface_forms("pastry", lead="")[:10] == (
        "pastry", "Pastry", "a pastry", "A pastry", "the pastry", "The pastry",
        "pastries", "Pastries", "the pastries", "The pastries",
    )  # fmt: skip
    assert {" an apple", " apples", "apples"} <= set(surface_forms("apple"))
    assert " dishes" in surface_forms("dish")
    assert not any("glassess" in form for form in surface_forms("glasses"))
    assert {" stew", " the stew"} <= set(surface_forms("soup", ("stew",)))
    assert surface_forms("A", letters=True) == (" A", "A")


def test_collapse_is_passes_one_by_one(tiny64, items):
    (item,) = items.items
    (found,) = measure_pairs(tiny64, [item])
    asked = dataclasses.replace(item.pair, answers=item.candidates, wrong_answers=())
    (row,) = encode(Task((asked,), "", ""), tiny64)
    sides = [one_by_one(tiny64, row, list(prompt)) for prompt in row.prompts]
    assert found.log_probs_a == pytest.approx(sides[0].tolist(), abs=1e-10)
    assert found.log_probs_b == pytest.approx(sides[1].tolist(), abs=1e-10)
    assert found.mass_a == pytest.approx(sides[0].exp().sum().item(), abs=1e-12)
    (a, b, *_), (c, d, *_) = sides
    assert found.divergence == pytest.approx(((a - b) - (c - d)).item(), abs=1e-10)
    assert found.choice_a == item.candidates[int(sides[0].argmax())]


def test_the_lens_reads_every_layer_as_passes_one_by_one(tiny64, items):
    found = examples_of(items, tiny64, takes_forms=True)
    study = study_lens(tiny64, found, options=LensOptions(n_resamples=100))
    row = found.examples[0]

    def at(point):
        def read(ids):
            states = tiny64.bridge.original_model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            return tiny64.unembed(states[point][0, -1][None])[0]

        return read

    for point in range(len(tiny64.blocks)):
        values = one_by_one(tiny64, row, list(row.placed.ids), at(point))
        by_name = dict(zip(row.forms.names, values, strict=True))
        expected = torch.stack([by_name[name] for name in items.items[0].candidates])
        assert study.log_probs[0, 0, point, 0] == pytest.approx(expected.numpy(), abs=1e-9)
        margin = by_name[" tea"] - by_name[" sad milk"]
        assert study.margin[0, 0, point, 0] == pytest.approx(margin.item(), abs=1e-9)
    (measured,) = measure_pairs(tiny64, items.items)
    assert study.divergence[0, -1, 0] == pytest.approx(measured.divergence, abs=1e-9)
    assert study.log_probs[0, 0, -1, 0] == pytest.approx(measured.log_probs_a, abs=1e-9)
    assert not study.attribution.conserved
    assert np.isfinite(study.kl).all()
    with pytest.raises(OptionError, match="read at prompt-end alone"):
        study_lens(tiny64, found, options=LensOptions(positions=("persona-end",)))


def test_what_reads_one_token_of_each_option_says_so(tiny64, items):
    with pytest.raises(TaskError, match="'forms', and this command reads one token of each"):
        examples_of(items, tiny64)
