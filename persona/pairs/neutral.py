"""The same question under no persona: wordings that stand in a persona's place and say nothing of anybody's taste.

1. A list that is given, one wording a line, and nothing else. Without it:
2. The paraphrases of personas called ``neutral`` or ``default``, as assistant-axis calls its own.
3. The template's own list (``persona.data.templates``); where it has none, a built-in one: "You are a
   person.", and longer ones made of it.

Of those that hold no option of the question, the nearest in length is taken; among equally near
ones that of the earlier source, and of one source by chance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations, islice, product
from pathlib import Path

from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.storage import Kind, read_text
from persona_circuits.circuit.task import Reader, token_ids
from persona_circuits.persona.data import Encoded, Persona, Prompt, Template
from persona_circuits.persona.pairs.matching import Case, Drop, Setting, Side, check_sides

__all__ = [
    "NeutralSide",
    "Neutrals",
    "built_in_wordings",
    "neutral_side",
    "neutrals",
    "read_neutral_wordings",
    "without_neutral",
]

WORDINGS = Kind("list of neutral wordings", TaskError)
NEUTRAL_NAMES = ("neutral", "default")
BUILT_IN = "the built-in list"
HEADS = (
    "You are somebody.",
    "You are a person.",
    "You are just a person.",
    "You are one of many people.",
    "You are a person like any other.",
    "You are a person who has a name.",
    "You are a person who lives in a place.",
)
TAILS = (
    "You are here.",
    "You have a name.",
    "You live in a place.",
    "You talk like other people.",
    "You are neither young nor old.",
    "There is nothing special about you.",
    "Nothing more is known about who you are.",
)
MOST_TAILS = 6
N_TRIED = 24


@dataclass(frozen=True)
class NeutralSide:
    """A neutral wording, where it comes from, and its prompt."""

    source: str
    wording: str
    prompt: Prompt
    encoded: Encoded


@dataclass(frozen=True)
class Neutrals:
    """Neutral wordings: ``given`` ones, those of neutral ``personas``; ``width`` is a text's tokens by itself."""

    given: tuple[str, ...] = ()
    personas: tuple[Persona, ...] = ()
    width: Callable[[str], int] = field(default=len, repr=False)

    def of(self, template: Template) -> dict[str, tuple[str, ...]]:
        """The wordings for a template by their source."""
        if self.given:
            return {"--neutral-wordings": self.given}
        marked = {f"persona {persona.name}": persona.wordings for persona in self.personas}
        return marked | ({"the template": template.neutral} if template.neutral else {BUILT_IN: built_in_wordings()})


def read_neutral_wordings(path: str | Path) -> tuple[str, ...]:
    """Wordings from a text file, one a line; empty lines are left out.

    Raises:
        TaskError: the file cannot be read or holds none.
    """
    lines = read_text(path, WORDINGS).split("\n")
    wordings = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not wordings:
        raise TaskError(f"{path} holds no neutral wording; write one a line, such as: You are a person.")
    return wordings


def without_neutral(personas: Sequence[Persona]) -> tuple[tuple[Persona, ...], tuple[Persona, ...]]:
    """The personas, and the neutral ones among them by name."""
    neutral = tuple(persona for persona in personas if persona.name.lower() in NEUTRAL_NAMES)
    return tuple(persona for persona in personas if persona not in neutral), neutral


def neutrals(given: Sequence[str], personas: Sequence[Persona], reader: Reader) -> Neutrals:
    """Neutral wordings and how many tokens each has by itself."""
    return Neutrals(tuple(given), tuple(personas), lru_cache(maxsize=None)(lambda text: len(token_ids(text, reader))))


@lru_cache(maxsize=1)
def built_in_wordings() -> tuple[str, ...]:
    """Every way to go on from one of ``HEADS`` with up to ``MOST_TAILS`` of ``TAILS``, from short to long."""
    ends = [tails for n in range(MOST_TAILS + 1) for tails in combinations(TAILS, n)]
    return tuple(" ".join((head, *tails)) for tails, head in product(ends, HEADS))


def neutral_side(
    case: Case, wordings: tuple[int, int], sides: tuple[Side, Side], neutrals: Neutrals, setting: Setting
) -> NeutralSide:
    """The neutral wording nearest in length to both prompts, and its prompt.

    With ``equal`` it has exactly their length. Which one of equally near ones it is
    depends on seed, question and template only.

    Raises:
        Drop: there is none, or none without a fault.
    """
    own = case.texts(wordings)
    sources = neutrals.of(case.template)
    if all(text == text.lower() for text in own):
        sources |= {BUILT_IN: tuple(text.lower() for text in sources.get(BUILT_IN, ()))}
    faults: list[Drop] = []
    for source, text in islice(_usable(case, _nearest(case, own, sources, neutrals, setting.seed)), N_TRIED):
        prompt, encoded = setting.side(case, text)
        try:
            check_sides((sides[0], (prompt, encoded)), setting)
        except Drop as drop:
            faults.append(drop)
            continue
        return NeutralSide(source, text, prompt, encoded)
    raise _drop(faults, f"{len(sides[0][1].ids)} tokens, from {', '.join(neutrals.of(case.template))}")


def _drop(faults: Sequence[Drop], where: str) -> Drop:
    other = next((fault for fault in faults if fault.reason != "unequal length"), None)
    if faults and other is None:
        return Drop("no neutral wording of equal length", where)
    return Drop(
        "no neutral wording", f"{where}: {f'{other.reason}, {other.detail}' if other else 'each holds an option'}"
    )


def _nearest(
    case: Case, own: tuple[str, str], sources: Mapping[str, Sequence[str]], neutrals: Neutrals, seed: int
) -> list[tuple[str, str]]:
    """Source and text, the nearest in length first; what stands around a text adds the same length to each."""
    rng = random.Random(f"{seed}/neutral/{case.question.id}/{case.template.name}")
    widths = [neutrals.width(text) for text in own]
    ranked = [
        (sum(abs(neutrals.width(text) - width) for width in widths), rank, rng.random(), source, text)
        for rank, (source, texts) in enumerate(sources.items())
        for text in texts
    ]
    return [(source, text) for *_, source, text in sorted(ranked)]


def _usable(case: Case, candidates: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Those that hold no option and repeat no line of the filler."""
    for source, text in candidates:
        if not case.leaks(text) and not any(line in case.filler for line in text.split("\n")):
            yield source, text
