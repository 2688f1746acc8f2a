"""datasets/pairs_prior.jsonl: what every pair promises, and that its margin holds the prior and not the topic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.task import encode, load_task
from persona_circuits.models.world import (
    PRIOR,
    build_world,
    descriptions,
    held_out_description,
    held_out_wording,
    prompt,
    wordings,
)

ROOT = Path(__file__).parents[2]
FILE = ROOT / "datasets" / "pairs_prior.jsonl"
WORLD = build_world()
PERSONAS = {persona.id: persona for persona in WORLD.personas}
QUESTIONS = {question.id: question for question in WORLD.questions}


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def model():
    return load_model(ROOT / "models" / "persona-world", device="cpu")


def asked(row):
    """The two questions, and for each its default and the option that it is set against."""
    first, second = (QUESTIONS[name] for name in row["question"].split("~"))
    (default_1, other_2), (default_2, other_1) = row["answers"], row["wrong_answers"]
    return (first, default_1.strip(), other_1.strip()), (second, default_2.strip(), other_2.strip())


def test_either_question_has_its_default_against_another_of_its_options(rows):
    for row in rows:
        for question, default, other in asked(row):
            assert question.prior_level >= 2
            assert default == question.words[question.default]
            assert other in question.words
            assert other != default


def test_one_persona_asks_both_and_likes_either_question_s_two_options_equally(rows):
    for row in rows:
        assert row["persona_a"] == row["persona_b"]
        persona = PERSONAS[row["persona_a"]]
        for (question, default, other), lead in zip(asked(row), row["generator"]["leads"], strict=True):
            utilities = dict(zip(question.words, WORLD.utilities(persona, question), strict=True))
            assert utilities[default] == pytest.approx(utilities[other])
            assert lead == pytest.approx(PRIOR[question.prior_level])


def test_the_prompts_differ_in_the_question_alone_and_training_has_shown_all_of_it(rows):
    for row in rows:
        persona = PERSONAS[row["persona_a"]]
        assert held_out_description(WORLD, persona) != 0
        for side, (question, _, _) in zip(("clean", "corrupt"), asked(row), strict=True):
            shown = [i for i in range(5) if i != held_out_wording(WORLD, question)]
            prompts = [prompt([descriptions(persona)[0]], wordings(question)[i]) for i in shown]
            assert row[side] in prompts
            assert not WORLD.is_held_out(persona, question)


def test_train_and_test_share_neither_personas_nor_questions(rows):
    seen = [
        {part for row in rows if row["split"] == split for part in (row["persona_a"], *row["question"].split("~"))}
        for split in ("train", "test")
    ]
    assert all(len(side) > 15 for side in seen)
    assert not seen[0] & seen[1]
    assert [sum(row["split"] == split for row in rows) for split in ("train", "test")] == [32, 32]


def test_no_pair_occurs_twice_in_either_direction(rows):
    assert len({frozenset((row["clean"], row["corrupt"])) for row in rows}) == len(rows)


def test_the_shipped_model_s_divergence_is_the_generator_s_prior(rows, model):
    """Every D is above 0, and on average the prior that the generator gives the defaults, to a fifth of it."""
    found = divergences(model, load_task(FILE))
    leads = np.array([np.mean(row["generator"]["leads"]) for row in rows])
    assert found.min() > 0
    assert found.mean() == pytest.approx(leads.mean(), rel=0.2)
    assert np.corrcoef(found, leads)[0, 1] > 0.8


def test_two_words_would_measure_the_topic_and_four_do_not(model, tmp_path):
    """Without any prior, an option of one question against one of the other differs hugely; four words do not."""
    plain = [q for q in WORLD.questions if q.prior_level == 0 and not q.ignores_persona and " " not in q.noun]
    persona = next(p for p in WORLD.personas if held_out_description(WORLD, p) != 0)
    lines = {"two": [], "four": []}
    for first, second in zip(plain[::2], plain[1::2], strict=False):
        words = [[f" {q.words[i]}" for i in indifferent(persona, q)[:2]] for q in (first, second)]
        if min(map(len, words)) < 2:
            continue
        (a, x), (b, y) = words
        texts = {
            side: prompt([descriptions(persona)[0]], wordings(q)[0])
            for side, q in (("clean", first), ("corrupt", second))
        }
        lines["two"].append({**texts, "answers": [a], "wrong_answers": [b]})
        lines["four"].append({**texts, "answers": [a, y], "wrong_answers": [b, x]})
    found = {}
    for name, many in lines.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, many)))
        found[name] = divergences(model, load_task(path))
    assert len(lines["two"]) >= 8
    assert found["two"].min() > 10
    assert abs(found["four"]).max() < 2
    assert abs(found["four"].mean()) < 0.3


def indifferent(persona, question):
    """Options that the persona likes equally, the largest set of them."""
    utilities = np.round(WORLD.utilities(persona, question), 6)
    best = max(set(utilities), key=lambda value: (utilities == value).sum())
    return np.flatnonzero(utilities == best).tolist()


def divergences(model, task):
    """m(clean) - m(corrupt) of every pair, m the mean of the answers' logits less that of the wrong answers'."""
    values = []
    for row in encode(task, model):
        logits = model.logits(torch.tensor([row.clean, row.corrupt]))[:, -1].double()
        margins = logits[:, list(row.answers)].mean(1) - logits[:, list(row.wrong_answers)].mean(1)
        values.append(float(margins[0] - margins[1]))
    return np.array(values)
