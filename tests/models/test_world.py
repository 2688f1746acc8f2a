"""The persona world's latent-factor model, its sentences, and its tokenizer."""

from __future__ import annotations

import math
import random
import re
from itertools import islice

import numpy as np
import pytest

from persona_circuits.models.world import (
    CUES,
    PRIOR,
    Answer,
    all_lines,
    build_tokenizer,
    build_world,
    descriptions,
    document,
    fillers,
    held_out_description,
    held_out_wording,
    mentions,
    prompt,
    wordings,
)

WORLD = build_world()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORLD)


def test_the_world_is_as_large_as_the_card_says():
    assert len(WORLD.personas) == 48
    assert len(WORLD.questions) == 72
    assert len({p.id for p in WORLD.personas}) == 48
    assert len({q.id for q in WORLD.questions}) == 72


def test_building_twice_gives_the_same_world():
    assert build_world() == WORLD
    assert build_world().held_out == WORLD.held_out


def test_every_distribution_sums_to_one_and_follows_the_formula():
    for question in WORLD.questions:
        affinity = [option.affinity for option in question.options]
        for persona in WORLD.personas:
            logits = [
                2.5 * sum(t * a for t, a in zip(persona.traits, row, strict=True))
                + (PRIOR[question.prior_level] if index == question.default else 0.0)
                for index, row in enumerate(affinity)
            ]
            total = sum(map(math.exp, logits))
            expected = [math.exp(logit) / total for logit in logits]
            assert WORLD.probabilities(persona, question) == pytest.approx(expected)
            assert sum(WORLD.probabilities(persona, question)) == pytest.approx(1)


def test_a_stronger_prior_gives_the_default_more():
    shares = {q.prior_level: WORLD.probabilities(None, q)[q.default] for q in WORLD.questions if len(q.options) == 4}
    assert [shares[level] for level in range(4)] == sorted(shares.values())


def test_the_strongest_prior_collapses_every_persona_and_no_prior_does_not():
    for question in WORLD.questions:
        rows = np.array([WORLD.probabilities(persona, question) for persona in WORLD.personas])
        modal = set(rows.argmax(1))
        if question.prior_level == 3:
            assert modal == {question.default}, question.id
        elif question.prior_level == 0 and not question.ignores_persona:
            assert len(modal) >= 3, question.id


def test_persona_ignoring_questions_are_equal_across_personas():
    ignoring = [question for question in WORLD.questions if question.ignores_persona]
    assert {question.domain for question in ignoring} == {"chance"}
    assert len(ignoring) == 8
    for question in ignoring:
        rows = {WORLD.probabilities(persona, question) for persona in (None, *WORLD.personas)}
        assert len(rows) == 1
    assert any(
        len({WORLD.probabilities(p, question) for p in WORLD.personas}) > 5
        for question in WORLD.questions
        if not question.ignores_persona
    )


def test_no_option_stands_in_a_persona_text_in_filler_or_in_its_own_question():
    options = {word.lower() for question in WORLD.questions for word in question.words}
    told = [text for persona in WORLD.personas for text in descriptions(persona) + mentions(persona)]
    for text in (*told, *fillers()):
        assert not options & set(re.findall(r"\w+", text.lower())), text
    for question in WORLD.questions:
        own = {word.lower() for word in question.words}
        assert not own & set(re.findall(r"\w+", " ".join(wordings(question)).lower())), question.id


def test_every_description_tells_its_persona_from_all_others():
    texts = [text for persona in WORLD.personas for text in descriptions(persona)]
    assert len(set(texts)) == len(texts)


def test_documents_never_show_what_is_held_out():
    rng = random.Random(5)
    forbidden = {descriptions(p)[held_out_description(WORLD, p)] for p in WORLD.personas}
    unasked = {before + wordings(q)[held_out_wording(WORLD, q)] for q in WORLD.questions for before, _ in CUES}
    # Two questions of one situation would share a wording; here none do, but be exact.
    shown = {
        before + text
        for q in WORLD.questions
        for index, text in enumerate(wordings(q))
        if index != held_out_wording(WORLD, q)
        for before, _ in CUES
    }
    for _ in range(1500):
        for item in islice(document(WORLD, rng), 20):
            if isinstance(item, Answer):
                assert (item.persona, item.question) not in WORLD.held_out
            else:
                assert item not in forbidden
                assert item not in unasked - shown


def test_documents_draw_answers_from_the_distribution_they_state():
    rng = random.Random(7)
    answers = [item for _ in range(4000) for item in islice(document(WORLD, rng), 20) if isinstance(item, Answer)]
    expected = sum(answer.probabilities[0] for answer in answers)
    drawn = sum(answer.word == answer.words[0] for answer in answers)
    deviation = math.sqrt(sum(a.probabilities[0] * (1 - a.probabilities[0]) for a in answers))
    assert abs(drawn - expected) < 4 * deviation


def test_the_tokenizer_is_reproducible_and_every_word_is_one_token(tokenizer):
    assert tokenizer.to_str() == build_tokenizer(WORLD).to_str()
    for line in all_lines(WORLD):
        assert len(tokenizer.encode(line).ids) == len(re.findall(r" ?\w+| ?[^\w\s]+", line)), line


def test_every_option_is_one_token_after_every_cue(tokenizer):
    for question in WORLD.questions:
        for cue in range(len(CUES)):
            text = prompt([], wordings(question)[0], cue=cue)
            before = tokenizer.encode(text).ids
            found = [tokenizer.encode(f"{text} {word}").ids for word in question.words]
            assert all(ids[:-1] == before for ids in found)
            assert len({ids[-1] for ids in found}) == len(question.words)


def test_descriptions_of_one_frame_have_one_length(tokenizer):
    for frames in zip(*[descriptions(p) for p in WORLD.personas], strict=True):
        assert len({len(tokenizer.encode(text).ids) for text in frames}) == 1
    lengths = {len(tokenizer.encode(text).ids) for text in descriptions(WORLD.personas[0])}
    assert len(lengths) >= 5


def test_lines_keep_their_tokens_wherever_they_stand(tokenizer):
    first, second = descriptions(WORLD.personas[0])[0], fillers()[0]
    question = wordings(WORLD.questions[0])[0]
    early, late = (tokenizer.encode(prompt(lines, question)).ids for lines in ([first, second], [second, first]))
    assert early != late
    assert sorted(early) == sorted(late)


def test_any_text_can_be_tokenized_and_read_back(tokenizer):
    text = "Zürich 東京 \t{x}=42!\n\nqwertz"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
