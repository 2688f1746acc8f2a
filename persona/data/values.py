"""Personas and questions as they are read, and the faults of a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from persona_circuits.circuit.errors import TaskError, listed
from persona_circuits.circuit.storage import is_number

__all__ = [
    "EVAL_KEYS",
    "TRAIT_FRAMES",
    "Faults",
    "Item",
    "Persona",
    "Question",
    "checked",
    "checked_question",
    "distinct_texts",
    "has_text",
    "is_numbers",
    "is_texts",
    "keys_of",
    "preferred",
    "repeated",
    "signed",
]

# What says of a trait of the Anthropic evals that somebody has it, or has it not.
TRAIT_FRAMES = (
    ('People describe you as high in "{}".', 'People describe you as low in "{}".'),
    ('You score high on "{}".', 'You score low on "{}".'),
    ('The label "{}" fits you well.', 'The label "{}" fits you badly.'),
)
EVAL_KEYS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
Item = tuple[str, Any]  # where it stands, and what stands there


@dataclass(frozen=True)
class Persona:
    """A persona, in paraphrases; ``opposite`` names its contrary, if the source says so.

    ``held_out`` is the index of the wording that the source sets aside, ``domain`` what kind of persona it is.
    """

    name: str
    wordings: tuple[str, ...]
    traits: Mapping[str, float] = field(default_factory=dict)
    opposite: str = ""
    notes: tuple[str, ...] = ()
    held_out: int | None = None
    domain: str = ""


@dataclass(frozen=True)
class Question:
    """A question, in paraphrases; without ``options`` it is open and makes no pair.

    ``prefers`` gives the option of each persona (None: it has none); ``affinities`` the pull of
    each trait on each option, for personas that ``prefers`` does not name. ``held_out`` is the
    index of the wording that the source sets aside, ``cue`` the question's own answer cue, ``cues`` one for each
    wording, ``domain`` what it is about, a key of the pairs. ``forms`` are other words for options.
    """

    id: str
    wordings: tuple[str, ...]
    options: tuple[str, ...]
    prefers: Mapping[str, str | None] = field(default_factory=dict)
    affinities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    held_out: int | None = None
    cue: str | None = None
    domain: str = ""
    cues: tuple[str, ...] = ()
    forms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def cue_of(self, wording: int) -> str | None:
        """The answer cue after a wording; None where the question has none of its own."""
        return self.cues[wording] if self.cues else self.cue

    def keeping(self, places: Sequence[int]) -> Question:
        """The same question in these of its wordings only."""
        held = places.index(self.held_out) if self.held_out in places else None
        cues = tuple(self.cues[i] for i in places) if self.cues else ()
        return replace(self, wordings=tuple(self.wordings[i] for i in places), cues=cues, held_out=held)


def preferred(question: Question, persona: Persona) -> str | None:
    """The option that the source declares for this persona; None where there is none, or a tie.

    Where the source gives traits and affinities it is the option with the largest
    <traits, affinity>. No model is asked.
    """
    if persona.name in question.prefers:
        return question.prefers[persona.name]
    if not question.affinities or not persona.traits:
        return None
    pulls = [
        sum(persona.traits.get(trait, 0.0) * value for trait, value in question.affinities.get(option, {}).items())
        for option in question.options
    ]
    best = [i for i, pull in enumerate(pulls) if math.isclose(pull, max(pulls), abs_tol=1e-8)]
    return question.options[best[0]] if len(best) == 1 else None


class Faults(list[str]):
    def add(self, where: str, what: str) -> None:
        self.append(f"{where}: {what}")


def checked(entries: Sequence[Any], faults: Faults, path: Path, kind: str) -> tuple[Any, ...]:
    if faults:
        raise TaskError(listed(f"{path} has {len(faults)} fault(s):", faults))
    if not entries:
        raise TaskError(f"{path} holds no {kind}; see docs/pairs.md for the formats that are read")
    return tuple(entries)


def repeated(kind: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [
        f"{kind} {name!r} occurs {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1
    ]


def signed(values: Mapping[str, int | float], poles: Mapping[str, str]) -> dict[str, float]:
    """Numbers by trait, a negative pole as its positive one with the other sign."""
    return {poles.get(name, name): float(-value if name in poles else value) for name, value in values.items()}


def checked_question(
    where: str, name: str, wordings: tuple[str, ...], options: tuple[str, ...], faults: Faults, **extra: Any
) -> Question:
    """A question whose options are distinct and hold what the personas prefer; what is not goes to ``faults``."""
    if options and (len(options) < 2 or len(set(options)) < len(options) or not all(options)):
        faults.add(where, f"expected two or more different options, got {', '.join(map(repr, options))}")
    for persona, option in extra.get("prefers", {}).items():
        if option is not None and option not in options:
            faults.add(where, f"{persona} prefers {option!r}, which is not one of the options")
    return Question(name, wordings, options, **extra)


def distinct_texts(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.strip() for text in texts))


def keys_of(row: Mapping[str, Any]) -> str:
    return ", ".join(row) or "none"


def has_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(has_text(item) for item in value)


def is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))
