"""The persona world in English: descriptions, questions, prompts and training documents.

A text is a list of lines. A prompt describes a persona, may hold filler and a mention
of somebody else, and ends in a question and an answer cue, so that the next token is
an option with its leading space:

    You are a fit athlete.
    There was fog over the river.
    Q: Which dessert do you prefer?
    A: fruit

Every line begins after a line feed or at the very start, so its tokens do not depend
on its neighbours: lines can change places without changing their tokens.

A training document asks several questions of one persona, each answer drawn from the
generator's distribution. One description of each persona and one wording of each
question never occur in training, nor do the world's held-out combinations.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from persona_circuits.models.world.lexicon import FILLER
from persona_circuits.models.world.world import Persona, Question, World

__all__ = [
    "CUES",
    "DESCRIPTION_FRAMES",
    "MENTION_FRAMES",
    "WORDING_FRAMES",
    "Answer",
    "all_lines",
    "descriptions",
    "document",
    "fillers",
    "held_out_description",
    "held_out_wording",
    "mentions",
    "ordinary_document",
    "prompt",
    "wordings",
]

DESCRIPTION_FRAMES = (
    "You are {an_adjective} {role}.",
    "You are {a_role}, and you {habit}.",
    "Imagine that you are {a_role} who once {past}.",
    "You once {past}, and now you {habit}.",
    "As {an_adjective} {role} you {habit}.",
    "People call you {adjective}, because you {habit}.",
    "You are {an_adjective} {role}, you once {past}, and these days you {habit}.",
)
MENTION_FRAMES = (
    "Your neighbour is {an_adjective} {role}.",
    "Your cousin is {a_role} who once {past}.",
    "Next door lives {an_adjective} {role}.",
    "You have met {a_role} who once {past}.",
)
WORDING_FRAMES = (
    "Which {noun} do you prefer?",
    "{situation}, which {noun} would you choose?",
    "What is your favourite {noun}?",
    "{situation}, what do you go for?",
    "Name the {noun} that you like best.",
)
# What stands before the question, and the cue that the answer follows.
CUES = (("Q: ", "A:"), ("", "I would choose"), ("Someone asks: ", "My answer is"))


@dataclass(frozen=True)
class Answer:
    """The end of a question in a document: the answer's word and the distribution it was drawn from."""

    word: str
    words: tuple[str, ...]
    probabilities: tuple[float, ...]
    persona: str | None = None
    question: str = ""


def descriptions(persona: Persona) -> tuple[str, ...]:
    """Seven ways to say that the reader is this persona, of different wording and length."""
    return tuple(_framed(frame, persona) for frame in DESCRIPTION_FRAMES)


def mentions(persona: Persona) -> tuple[str, ...]:
    """Four ways to mention this persona as somebody else."""
    return tuple(_framed(frame, persona) for frame in MENTION_FRAMES)


def wordings(question: Question) -> tuple[str, ...]:
    """Five ways to ask a question; the fourth leaves its noun out."""
    return tuple(frame.format(noun=question.noun, situation=question.situation) for frame in WORDING_FRAMES)


def held_out_description(world: World, persona: Persona) -> int:
    """Index of the description that training never shows for this persona."""
    return world.personas.index(persona) % len(DESCRIPTION_FRAMES)


def held_out_wording(world: World, question: Question) -> int:
    """Index of the wording that training never shows for this question."""
    return world.questions.index(question) % len(WORDING_FRAMES)


def fillers() -> tuple[str, ...]:
    """Sentences that have no bearing on any preference."""
    return tuple(FILLER.strip().splitlines())


def prompt(lines: list[str], wording: str, *, cue: int = 0) -> str:
    """A whole prompt: the lines before, the question, and the answer cue."""
    before, after = CUES[cue]
    return "\n".join([*lines, before + wording, after])


def document(world: World, rng: random.Random, *, mentioned: float = 0.25) -> Iterator[str | Answer]:
    """An endless document about one persona or nobody: lines, and answers after their cues.

    The caller stops at the length that it needs. About one document in eight describes
    nobody or only somebody else; there the generic prior alone answers.
    """
    persona = rng.choice(world.personas) if rng.random() < 0.86 else None
    before = [_description(world, persona, rng)] if persona else []
    if rng.random() < (mentioned if persona else 0.7):
        before.append(rng.choice(mentions(rng.choice(world.personas))))
    before += rng.sample(fillers(), rng.choice((0, 0, 1, 1, 2)))
    rng.shuffle(before)
    if persona and rng.random() < 0.08:
        yield from _asked(world, None, rng)
    yield from before
    while True:
        yield from _asked(world, persona, rng)


def ordinary_document(world: World, rng: random.Random) -> Iterator[str]:
    """An endless run of ordinary sentences about the same world."""
    while True:
        yield _ordinary(world, rng)


def all_lines(world: World) -> list[str]:
    """Every line that can occur but for ordinary sentences' combinations: for building the tokenizer."""
    lines = list(fillers())
    for persona in world.personas:
        lines += [*descriptions(persona), *mentions(persona), f"The {persona.role}"]
    for question in world.questions:
        questions = wordings(question)
        lines += [before + wording for wording in questions for before, _ in CUES]
        lines += [f"{cue} {word}" for word in question.words for _, cue in CUES]
    rng = random.Random(0)
    return lines + [_ordinary(world, rng) for _ in range(4000)]


def _framed(frame: str, persona: Persona) -> str:
    return frame.format(
        a_role=_a(persona.role),
        an_adjective=_a(persona.adjective),
        role=persona.role,
        adjective=persona.adjective,
        habit=persona.habit,
        past=persona.past,
    )


def _description(world: World, persona: Persona, rng: random.Random) -> str:
    shown = list(descriptions(persona))
    del shown[held_out_description(world, persona)]
    return rng.choice(shown)


def _asked(world: World, persona: Persona | None, rng: random.Random) -> Iterator[str | Answer]:
    question = rng.choice(world.questions)
    while persona and world.is_held_out(persona, question):
        question = rng.choice(world.questions)
    texts = list(wordings(question))
    del texts[held_out_wording(world, question)]
    before, cue = rng.choice(CUES)
    yield before + rng.choice(texts)
    yield cue
    probabilities = world.probabilities(persona, question)
    word = rng.choices(question.words, probabilities)[0]
    yield Answer(word, question.words, probabilities, persona.id if persona else None, question.id)


def _ordinary(world: World, rng: random.Random) -> str:
    persona, question = rng.choice(world.personas), rng.choice(world.questions)
    option = rng.choice(question.options)
    kind = rng.randrange(6)
    if kind == 0:
        return _trait_sentence(world, question, rng)
    return (
        f"The {persona.role} once {persona.past}.",
        f"{question.situation}, the {persona.role} thought about the {question.noun}.",
        f"For the {question.noun} there is {_listing(question.words)}.",
        f"The {persona.role} and the {rng.choice(world.personas).role} talk about {option.word}.",
        rng.choice(fillers()),
    )[kind - 1]


def _trait_sentence(world: World, question: Question, rng: random.Random) -> str:
    leaning = [(o.word, t, v) for o in question.options for t, v in zip(world.traits, o.affinity, strict=True) if v]
    if not leaning:
        return f"Nobody minds which {question.noun} it is."
    word, trait, value = rng.choice(leaning)
    pole = trait.positive if value > 0 else trait.negative
    return f"People who are {pole} like {word} as their {question.noun}."


def _listing(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
