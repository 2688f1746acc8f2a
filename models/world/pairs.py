"""Prompt pairs of the persona world: one question under two personas, of equal token length.

The main files hold pairs whose personas prefer different options. Their axes:

    contrast    strong, mild: the generator's persona divergence |D| of the pair
    bias        low, high: the question's generic prior, levels 0 and 1 against 2 and 3
    placement   early, late: the description before or after two filler sentences
    held_out    none, combination, description, wording: what the training text never showed

The answers are what either persona would choose if there were no generic prior, so
they stay different where the prior makes both personas answer alike. Controls have
no persona effect to find, or one that must not be found:

    paraphrase  two descriptions of one persona; answers: its first and second choice
    irrelevant  two personas whose traits have no bearing on the question (or a question
                that ignores the persona); answers: the first and second of all options
    neighbour   personas only mentioned of somebody else; answers: as if they were asked

Prior pairs turn it round: one persona, two questions of strong and different defaults.
The answers are the default of the first question and another option of the second, the
wrong answers the default of the second and another option of the first:

    margin = 1/2 [l(default 1) - l(other 1)] - 1/2 [l(default 2) - l(other 2)]

A question raises its own options above all other words, whatever its prior: here that
cancels, as each question has one option on either side. The persona is indifferent
between the two options of either question, so it has no part in the margin.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from persona_circuits.models.world.text import (
    DESCRIPTION_FRAMES,
    MENTION_FRAMES,
    WORDING_FRAMES,
    descriptions,
    fillers,
    held_out_description,
    held_out_wording,
    mentions,
    prompt,
    wordings,
)
from persona_circuits.models.world.world import Persona, Question, World

__all__ = [
    "MILD",
    "STRONG",
    "Met",
    "Row",
    "bias_of",
    "contrast_of",
    "control_pairs",
    "demo_pairs",
    "main_pairs",
    "pair_key",
    "placed",
    "prior_pairs",
    "row_of",
]

# Persona divergence in logits: a strong pair has at least, a mild pair at most (and at least 1).
STRONG = 5.0
MILD = 3.75
CELLS = tuple(product(("strong", "mild"), ("low", "high"), ("early", "late")))
Row = dict[str, Any]


def main_pairs(world: World, name: str, *, n: int, held_out: tuple[str, ...] = ("none",)) -> list[Row]:
    """`n` pairs spread evenly over contrast, bias, placement and what is held out; no pair twice."""
    rng = random.Random(f"pairs/{name}")
    rows: list[Row] = []
    used: set[tuple[str, str, str]] = set()
    axes = [(*cell, fresh) for fresh in held_out for cell in CELLS]
    for index in range(n):
        contrast, bias, placement, fresh = axes[index % len(axes)]
        a, b, question = _drawn(world, rng, contrast, bias, fresh, used)
        used = used | {pair_key(a, b, question)}
        frame, wording = _wordings(world, (a, b), question, fresh, rng)
        lines = rng.sample(fillers(), 2)
        texts = (prompt(placed(descriptions(p)[frame], lines, placement), wordings(question)[wording]) for p in (a, b))
        axis = {"contrast": contrast, "bias": bias, "placement": placement, "control": "none", "held_out": fresh}
        rows.append(row_of(world, f"{name}-{index:03d}", name, texts, Met((a, b), question), axis))
    return rows


def demo_pairs(world: World) -> list[Row]:
    """32 short pairs of one token length, strong contrast, little prior; splits train and test."""
    rng = random.Random("pairs/demo")
    rows: list[Row] = []
    used: set[tuple[str, str, str]] = set()
    asked: set[str] = set()
    while len(rows) < 32:
        a, b, question = _drawn(world, rng, "strong", "low", "none", used)
        if question.id in asked or " " in question.noun or not _differ(world, a, b, question):
            continue
        frames = {held_out_description(world, p) for p in (a, b)}
        wording = next(i for i in (0, 2) if i != held_out_wording(world, question))
        if 0 in frames:
            continue
        split = "train" if len(rows) < 16 else "test"
        texts = (prompt([descriptions(p)[0]], wordings(question)[wording]) for p in (a, b))
        axis = {"contrast": "strong", "bias": "low", "placement": "early", "control": "none", "held_out": "none"}
        rows.append(row_of(world, f"demo-{len(rows):03d}", split, texts, Met((a, b), question), axis))
        used = used | {pair_key(a, b, question)}
        asked = asked | {question.id} if len(rows) % 16 else set()
    return rows


def control_pairs(world: World, *, each: int, draw: str = "pairs") -> list[Row]:
    """`each` pairs of every control; another name of the draw gives other pairs."""
    makers: dict[str, Callable[[World, random.Random], Iterator[tuple]]] = {
        "paraphrase": _paraphrases,
        "irrelevant": _irrelevants,
        "neighbour": _neighbours,
    }
    rows: list[Row] = []
    for control, maker in makers.items():
        drawn = maker(world, random.Random(f"{draw}/{control}"))
        for index in range(each):
            placement = ("early", "late")[index % 2]
            personas, texts, question, wording, lines, choices = next(drawn)
            prompts = (prompt(placed(text, lines, placement), wording) for text in texts)
            axis = {"contrast": "none", "bias": bias_of(question), "placement": placement, "control": control}
            axis["held_out"] = "none"
            met = Met(personas, question, choices)
            rows.append(row_of(world, f"{control}-{index:03d}", "test", prompts, met, axis))
    return rows


def prior_pairs(world: World, *, each: int = 32) -> list[Row]:
    """`each` short pairs per split: one persona, two questions of level 2 or 3 with other defaults.

    Train has three fifths of the questions of either level and half of the personas, test the others.
    """
    rng = random.Random("pairs/prior")
    rows: list[Row] = []
    for split, questions, personas in _prior_splits(world, rng):
        used: set[tuple[str, str]] = set()
        while len(used) < each:
            persona, both = rng.choice(personas), tuple(rng.sample(questions, 2))
            key = (persona.id, "~".join(sorted(question.id for question in both)))
            row = None if key in used else _prior_row(world, f"prior-{len(rows):03d}", split, persona, both, rng)
            if row is not None:
                used = used | {key}
                rows.append(row)
    return rows


def _prior_splits(world: World, rng: random.Random) -> list[tuple[str, list[Question], list[Persona]]]:
    """Questions with a strong default and a noun of one word, and personas, of train and of test."""
    questions: tuple[list[Question], list[Question]] = ([], [])
    for level in (2, 3):
        answerable = [
            q for q in world.questions if q.prior_level == level and not q.ignores_persona and " " not in q.noun
        ]
        rng.shuffle(answerable)
        cut = round(0.6 * len(answerable))
        questions[0].extend(answerable[:cut])
        questions[1].extend(answerable[cut:])
    personas = [p for p in world.personas if held_out_description(world, p) != 0]
    rng.shuffle(personas)
    return [("train", questions[0], personas[::2]), ("test", questions[1], personas[1::2])]


def _prior_row(
    world: World, identifier: str, split: str, persona: Persona, both: tuple[Question, ...], rng: random.Random
) -> Row | None:
    """The pair of two questions under one persona; None where training lacks one, or the persona takes a side."""
    wording = next((i for i in (0, 2) if i not in {held_out_wording(world, q) for q in both}), None)
    others = [_indifferent(world, persona, question) for question in both]
    if wording is None or not all(others) or any(world.is_held_out(persona, q) for q in both):
        return None
    clean, corrupt = (prompt([descriptions(persona)[0]], wordings(question)[wording]) for question in both)
    defaults = [f" {question.words[question.default]}" for question in both]
    chosen = [rng.choice(options) for options in others]
    against = [f" {question.words[option]}" for question, option in zip(both, chosen, strict=True)]
    shares = [world.probabilities(persona, question) for question in both]
    leads = [
        float(np.log(share[question.default] / share[option]))
        for share, question, option in zip(shares, both, chosen, strict=True)
    ]
    return {
        "id": identifier,
        "clean": clean,
        "corrupt": corrupt,
        "answers": [defaults[0], against[1]],
        "wrong_answers": [defaults[1], against[0]],
        "persona_a": persona.id,
        "persona_b": persona.id,
        "question": "~".join(question.id for question in both),
        "split": split,
        "domain": "~".join(question.domain for question in both),
        "contrast": "prior",
        "bias": "high",
        "placement": "early",
        "control": "prior",
        "held_out": "none",
        "prior_level": min(question.prior_level for question in both),
        "candidates": [f" {word}" for question in both for word in question.words],
        "generator": {
            "p_a": [round(value, 6) for value in shares[0]],
            "p_b": [round(value, 6) for value in shares[1]],
            "leads": [round(lead, 6) for lead in leads],
            "collapses": False,
        },
    }


def _indifferent(world: World, persona: Persona, question: Question) -> list[int]:
    """The options that the persona likes exactly as much as the question's default."""
    utilities = world.utilities(persona, question)
    level = utilities[question.default]
    return [i for i in np.flatnonzero(np.isclose(utilities, level)).tolist() if i != question.default]


def _drawn(
    world: World, rng: random.Random, contrast: str, bias: str, fresh: str, used: set[tuple[str, str, str]]
) -> tuple[Persona, Persona, Question]:
    """A pair of personas and a question that fit the axes and are not in `used`."""
    while True:
        question = rng.choice(world.questions)
        a, b = rng.sample(world.personas, 2)
        wanted = [world.is_held_out(p, question) == (fresh == "combination") for p in (a, b)]
        same_frame = held_out_description(world, a) == held_out_description(world, b)
        if pair_key(a, b, question) in used or not all(wanted) or (fresh == "description" and not same_frame):
            continue
        if bias_of(question) == bias and contrast_of(world, a, b, question) == contrast:
            return a, b, question


def pair_key(a: Persona, b: Persona, question: Question) -> tuple[str, str, str]:
    """What two pairs share if they ask the same two personas the same question."""
    return min(a.id, b.id), max(a.id, b.id), question.id


def contrast_of(world: World, a: Persona, b: Persona, question: Question) -> str | None:
    """`strong` or `mild`, or None for what lies between and for personas that prefer the same or nothing."""
    first, second = world.preferred(a, question), world.preferred(b, question)
    if first is None or second is None or first == second:
        return None
    difference = world.utilities(a, question) - world.utilities(b, question)
    divergence = difference[first] - difference[second]
    if divergence >= STRONG:
        return "strong"
    return "mild" if 1.0 <= divergence <= MILD else None


def _differ(world: World, a: Persona, b: Persona, question: Question) -> bool:
    """True where the two personas' most likely answers differ, prior included."""
    first, second = (int(np.argmax(world.probabilities(p, question))) for p in (a, b))
    return first == world.preferred(a, question) and second == world.preferred(b, question)


def bias_of(question: Question) -> str:
    """`high` for prior levels 2 and 3, else `low`."""
    return "high" if question.prior_level >= 2 else "low"


def _wordings(
    world: World, personas: tuple[Persona, Persona], question: Question, fresh: str, rng: random.Random
) -> tuple[int, int]:
    """Indices of the description and the wording, known or new to the model as `fresh` says."""
    new = {held_out_description(world, p) for p in personas}
    known = [index for index in range(len(DESCRIPTION_FRAMES)) if index not in new]
    frame = new.pop() if fresh == "description" else rng.choice(known)
    held_out = held_out_wording(world, question)
    others = [index for index in range(len(WORDING_FRAMES)) if index != held_out]
    return frame, held_out if fresh == "wording" else rng.choice(others)


def _paraphrases(world: World, rng: random.Random) -> Iterator[tuple]:
    """Two descriptions of one persona: the second and sixth frame have equal length."""
    while True:
        persona, question = rng.choice(world.personas), rng.choice(world.questions)
        choice = world.preferred(persona, question)
        if held_out_description(world, persona) in (1, 5) or world.is_held_out(persona, question) or choice is None:
            continue
        texts = [descriptions(persona)[frame] for frame in (1, 5)]
        second = next(i for i in _ranked(world.probabilities(persona, question)) if i != choice)
        yield (persona, persona), texts, question, *_asked(world, question, rng), (choice, second)


def _irrelevants(world: World, rng: random.Random) -> Iterator[tuple]:
    while True:
        question = rng.choice(world.questions)
        a, b = rng.sample(world.personas, 2)
        if any(world.utilities(p, question).any() or world.is_held_out(p, question) for p in (a, b)):
            continue
        if 0 in {held_out_description(world, p) for p in (a, b)}:
            continue
        texts = [descriptions(p)[0] for p in (a, b)]
        first, second = _ranked(world.probabilities(a, question))[:2]
        yield (a, b), texts, question, *_asked(world, question, rng), (first, second)


def _neighbours(world: World, rng: random.Random) -> Iterator[tuple]:
    used: set[tuple[str, str, str]] = set()
    while True:
        a, b, question = _drawn(world, rng, "strong", "low", "none", used)
        used = used | {pair_key(a, b, question)}
        frame = rng.randrange(len(MENTION_FRAMES))
        texts = [mentions(p)[frame] for p in (a, b)]
        choices = (world.preferred(a, question), world.preferred(b, question))
        yield (a, b), texts, question, *_asked(world, question, rng), choices


def _asked(world: World, question: Question, rng: random.Random) -> tuple[str, list[str]]:
    """A wording that training shows, and one filler sentence."""
    held_out = held_out_wording(world, question)
    wording = rng.choice([text for index, text in enumerate(wordings(question)) if index != held_out])
    return wording, rng.sample(fillers(), 1)


def _ranked(probabilities: tuple[float, ...]) -> list[int]:
    return sorted(range(len(probabilities)), key=lambda index: -probabilities[index])


def placed(description: str, lines: list[str], placement: str) -> list[str]:
    """The lines with the description before them (early) or after them (late)."""
    return [description, *lines] if placement == "early" else [*lines, description]


class Met(NamedTuple):
    """Personas and a question; ``choices`` replace their preferences; with ``nobody``, they are only mentioned."""

    personas: tuple[Persona, Persona]
    question: Question
    choices: tuple[int, int] | None = None
    nobody: bool = False


def row_of(world: World, identifier: str, split: str, prompts: Iterable[str], met: Met, axis: Mapping[str, str]) -> Row:
    """One line of a pair file."""
    (clean, corrupt), (personas, question, choices, nobody) = prompts, met
    a, b = personas
    first, second = choices or _wishes(world, personas, question)
    nobody = nobody or axis["control"] == "neighbour"
    shares = [world.probabilities(None if nobody else p, question) for p in personas]
    margins = [float(np.log(share[first] / share[second])) for share in shares]
    return {
        "id": identifier,
        "clean": clean,
        "corrupt": corrupt,
        "answers": [f" {question.words[first]}"],
        "wrong_answers": [f" {question.words[second]}"],
        "persona_a": a.id,
        "persona_b": b.id,
        "question": question.id,
        "split": split,
        "domain": question.domain,
        **axis,
        "prior_level": question.prior_level,
        "candidates": [f" {word}" for word in question.words],
        "generator": {
            "p_a": [round(value, 6) for value in shares[0]],
            "p_b": [round(value, 6) for value in shares[1]],
            "divergence": round(margins[0] - margins[1], 6) + 0.0,
            "collapses": _ranked(shares[0])[0] == _ranked(shares[1])[0],
        },
    }


def _wishes(world: World, personas: tuple[Persona, Persona], question: Question) -> tuple[int, int]:
    """What the two prefer; such pairs are drawn of personas that each prefer something."""
    first, second = (world.preferred(persona, question) for persona in personas)
    assert first is not None
    assert second is not None
    return first, second
