"""What the model is asked to say: personas, questions, samples, and their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import check_least
from persona_circuits.persona.data import FIELDS, Persona, Question, Template, load_templates
from persona_circuits.persona.data.templates import CHAT, has_chat
from persona_circuits.persona.responses.options import Plan

__all__ = ["Exchange", "Response", "Responses", "Said", "baseline_of", "exchanges", "open_template", "rendered"]

BASELINE = "default"


@dataclass(frozen=True)
class Exchange:
    """One question put to one persona: who, which wordings (from 0), which of several samples, and the two texts.

    ``system`` is the persona's text and may be empty; ``user`` the question.
    """

    persona: str
    wording: int
    question: str
    question_wording: int
    sample: int
    system: str
    user: str


@dataclass(frozen=True)
class Response:
    """What was said. ``finish`` is ``stop`` (by itself) or ``length``, or what an endpoint calls it.

    Of a local model ``prompt`` is the prompt as rendered, ``prompt_ids`` its tokens and ``ids`` those
    of the response, without an end token; of an endpoint they are empty. ``condition`` is how the model was steered.
    """

    exchange: Exchange
    text: str
    finish: str
    model: str
    fingerprint: str = ""
    prompt: str = ""
    prompt_ids: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    condition: str = ""


@dataclass(frozen=True)
class Responses:
    """All responses in the order of the exchanges, how many were made now and remembered, and what failed."""

    responses: tuple[Response, ...]
    made: int
    remembered: int
    failures: Mapping[str, int]


@dataclass(frozen=True)
class Said:
    """A continuation: its tokens without an end token, their text up to a stop text, and why it ended."""

    ids: tuple[int, ...]
    text: str
    finish: str


def exchanges(
    personas: Sequence[Persona],
    questions: Sequence[Question],
    *,
    wordings: int = Plan.wordings,
    question_wordings: int = Plan.question_wordings,
    samples: int = Plan.samples,
    max_questions: int | None = Plan.max_questions,
    baseline: bool = True,
) -> tuple[Exchange, ...]:
    """Every persona with every question: the first wordings of each (0: all of them), each ``samples`` times.

    With ``baseline`` the questions are also put under no persona at all, once per question
    wording and sample, as the persona ``default``; where the source has one of that name,
    it is that one and nothing is added.

    Raises:
        OptionError: a count is out of range.
    """
    plan = Plan(wordings, question_wordings, samples, max_questions)
    check_least(plan, wordings=0, question_wordings=0, samples=1, max_questions=1)
    people = list(personas)
    if baseline and BASELINE not in {persona.name for persona in people}:
        people.insert(0, Persona(BASELINE, ("",)))
    return tuple(
        Exchange(persona.name, i, question.id, j, sample, system, user)
        for persona in people
        for i, system in enumerate(persona.wordings[: wordings or None])
        for question in questions[:max_questions]
        for j, user in enumerate(question.wordings[: question_wordings or None])
        for sample in range(samples)
    )


def baseline_of(personas: Sequence[str], named: str | None = None) -> str | None:
    """The persona that others are compared with: the named one, else ``default`` where it is there.

    Raises:
        OptionError: the named one is not among the personas.
    """
    if named is not None and named not in personas:
        raise OptionError(f"persona {named!r} is not among {', '.join(dict.fromkeys(personas))}")
    return named or (BASELINE if BASELINE in personas else None)


def open_template(spec: str | None, tokenizer: Any, *, cue: str | None = None) -> Template:
    """The first template that ``spec`` names; without one the tokenizer's chat template, or raw where it has none.

    Raises:
        OptionError: ``chat`` is asked and the tokenizer has no chat template, or it cannot be rendered.
        TaskError: the file cannot be read or is no template.
    """
    return load_templates(spec or ("chat" if has_chat(tokenizer) else "raw"), tokenizer, cue=cue)[0]


def rendered(template: Template, system: str, user: str, cue: str | None = None) -> str:
    """The prompt of a persona's text and an open question; a chat template's turn is the question, or a file's."""
    values = {**dict.fromkeys(FIELDS, ""), "persona": system, "question": user}
    values["cue"] = template.cue if cue is None else cue
    if not system:  # a persona that stands in a line with other text takes its space along
        template = replace(template, text=template.text.replace("{persona} ", "{persona}"))
    if template.chat and template.text.removeprefix("{persona}\n\n") == CHAT:
        turn = "{persona}\n\n{question}" if system and not template.system else "{question}"
        template = replace(template, text=turn)
    return template.render(values).text
