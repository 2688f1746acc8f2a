"""The persona world: a latent-factor model of who prefers what.

1. A persona has a vector of traits t in [-1, 1]^8; most entries are 0.
2. An option o of question q has a vector of affinities a_o, entries -1, 0 or +1.
3. A question has a generic prior: its default option gets PRIOR[level] logits, the
   others 0. The level runs from 0 (no prior) to 3 (the default wins under everyone).
4. The logits of the options under persona p are  GAIN * <t_p, a_o> + prior_o,  and
   the answer is drawn from their softmax. Questions of the domain `chance` have no
   affinities, so they ignore the persona. Without a persona t = 0: the prior alone.

Everything here is exact: no sampling, no text. Some persona-question combinations
are held out of the training text (`World.held_out`), chosen by a fixed seed.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from persona_circuits.models.world import lexicon as world_lexicon

__all__ = ["GAIN", "PRIOR", "Persona", "Question", "World", "build_world"]

GAIN = 2.5
PRIOR = (0.0, 1.0, 2.2, 5.5)
HELD_OUT_SHARE = 0.12
HELD_OUT_SEED = 20


@dataclass(frozen=True)
class Trait:
    """One latent axis and the words for its two ends."""

    letter: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Persona:
    """Who is asked: the words that describe them, and their traits in the order of `World.traits`."""

    id: str
    role: str
    adjective: str
    habit: str
    past: str
    traits: tuple[float, ...]


@dataclass(frozen=True)
class Option:
    """One answer and its affinity to each trait."""

    word: str
    affinity: tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """What is asked: its words, its options, and the strength (0 to 3) of its generic prior."""

    id: str
    domain: str
    noun: str
    situation: str
    options: tuple[Option, ...]
    prior_level: int
    default: int

    @property
    def words(self) -> tuple[str, ...]:
        """The options' words, in order."""
        return tuple(option.word for option in self.options)

    @property
    def ignores_persona(self) -> bool:
        """True where no option has an affinity to any trait."""
        return not any(value for option in self.options for value in option.affinity)


@dataclass(frozen=True)
class World:
    """All traits, personas and questions, and the distributions that follow from them."""

    traits: tuple[Trait, ...]
    personas: tuple[Persona, ...]
    questions: tuple[Question, ...]

    def probabilities(self, persona: Persona | None, question: Question) -> tuple[float, ...]:
        """Exact distribution over the question's options, `(n_options,)`; `None` is nobody in particular."""
        return self._table[persona.id if persona else None, question.id]

    def utilities(self, persona: Persona, question: Question) -> np.ndarray:
        """The persona's own part of the logits, without the generic prior, `(n_options,)`."""
        affinity = np.array([option.affinity for option in question.options])
        return GAIN * affinity @ np.array(persona.traits)

    def prior(self, question: Question) -> np.ndarray:
        """The generic prior's part of the logits, `(n_options,)`."""
        logits = np.zeros(len(question.options))
        logits[question.default] = PRIOR[question.prior_level]
        return logits

    def preferred(self, persona: Persona, question: Question) -> int | None:
        """The option that the persona's own part of the logits likes best; None at a tie."""
        utilities = self.utilities(persona, question)
        best = np.flatnonzero(np.isclose(utilities, utilities.max()))
        return int(best[0]) if len(best) == 1 else None

    def is_held_out(self, persona: Persona, question: Question) -> bool:
        """True where this combination never occurs in the training text."""
        return (persona.id, question.id) in self.held_out

    @cached_property
    def held_out(self) -> frozenset[tuple[str, str]]:
        """The (persona, question) combinations kept out of the training text."""
        cells = [(p.id, q.id) for p in self.personas for q in self.questions]
        return frozenset(random.Random(HELD_OUT_SEED).sample(cells, round(HELD_OUT_SHARE * len(cells))))

    @cached_property
    def _table(self) -> dict[tuple[str | None, str], tuple[float, ...]]:
        table: dict[tuple[str | None, str], tuple[float, ...]] = {}
        for question in self.questions:
            prior = self.prior(question)
            table[None, question.id] = _softmax(prior)
            for persona in self.personas:
                table[persona.id, question.id] = _softmax(self.utilities(persona, question) + prior)
        return table


def build_world() -> World:
    """The world that the authored tables of `models.world.lexicon` describe."""
    traits = tuple(Trait(*row) for row in _rows(world_lexicon.TRAITS))
    letters = "".join(trait.letter for trait in traits)
    return World(
        traits=traits,
        personas=tuple(_persona(row, letters) for row in _rows(world_lexicon.PERSONAS)),
        questions=tuple(_question(row, letters) for row in _rows(world_lexicon.QUESTIONS)),
    )


def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def _persona(row: list[str], letters: str) -> Persona:
    role, adjective, traits, habit, past = row
    return Persona(role, role, adjective, habit, past, _vector(traits, letters))


def _question(row: list[str], letters: str) -> Question:
    domain, noun, situation, prior, listed = row
    options = tuple(_option(cell, letters) for cell in listed.split(","))
    level, _, default = prior.partition(" ")
    words = [option.word for option in options]
    identifier = f"{domain}-{noun.replace(' ', '-')}"
    return Question(identifier, domain, noun, situation, options, int(level), words.index(default) if default else 0)


def _option(cell: str, letters: str) -> Option:
    word, *affinity = cell.split()
    signs = " ".join(f"{letter}{sign}1" for sign, letter in map(tuple, affinity))
    return Option(word, _vector(signs, letters))


def _vector(text: str, letters: str) -> tuple[float, ...]:
    values = {letter: float(number) for letter, number in re.findall(r"(\w)([+-][\d.]+)", text)}
    return tuple(values.get(letter, 0.0) for letter in letters)


def _softmax(logits: np.ndarray) -> tuple[float, ...]:
    weights = np.exp(logits - logits.max())
    return tuple(float(weight) for weight in weights / weights.sum())
