"""Formats: ways to put a question whose answer is one word, for chat models and for plain ones.

| format | prompt | persona |
|---|---|---|
| ``cue`` | question, and an answer begun by the question's cue | second person |
| ``first-person`` | the cue alone, after who speaks | first person |
| ``interview`` | an interview: who are you, then the question; the answer begun by the cue | first person |
| ``few-shot`` | three questions answered in one word, then the question | second person |
| ``chat-cue`` | the tokenizer's chat template, the answer begun by the cue | system turn |
| ``options`` | the options listed after the question, the answer begun by the cue | second person, or system turn |
| ``letters`` | the options with letters, which are what is answered | second person, or system turn |

The last two are the tokenizer's chat template where it has one. They list options in some order, so a pair
is asked in all cyclic orders. Where a chat template has no system turn the persona heads the user's turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from persona_circuits.circuit.choices import PROMPT_FORMATS
from persona_circuits.circuit.errors import OptionError
from persona_circuits.persona.data.templates import Style, Template, chat_template, has_chat, option_list

__all__ = ["examples_without", "first_person", "listing", "load_format", "shown_options"]

CUE = "My answer is"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
N_EXAMPLES = 3
EXAMPLES = (
    ("What is the capital of Italy?", "Rome"),
    ("What is the opposite of hard?", "soft"),
    ("How many legs does a spider have?", "eight"),
    ("What is the first month of the year?", "January"),
    ("Which planet do we live on?", "Earth"),
    ("What do you write with?", "ink"),
)
"""Questions of which nobody's taste decides the answer."""


@dataclass(frozen=True)
class _Form:
    """A format's text for a plain model and, where it is a chat, the user's turn; its cue and its style."""

    text: str = ""
    turn: str = ""
    cue: str = CUE
    style: Style = field(default_factory=Style)


FORMS = {
    "cue": _Form("{persona}\n{filler}\nQuestion: {question}\nAnswer: {cue}"),
    "first-person": _Form("{persona} {cue}", style=Style(first_person=True, needs_cue=True)),
    "interview": _Form(
        "Interviewer: Who are you?\nGuest: {persona}\nInterviewer: {question}\nGuest: {cue}",
        style=Style(first_person=True),
    ),
    "few-shot": _Form(
        "{filler}\n{persona}\nQuestion: {question}\nAnswer:{cue}", cue="", style=Style(own_cue=True, examples=EXAMPLES)
    ),
    "chat-cue": _Form(turn="{filler}\n{question}"),
    "options": _Form(
        "{persona}\n{filler}\nQuestion: {question} Choose one: {options}.\nAnswer: {cue}",
        "{filler}\n{question} Choose one: {options}.",
        style=Style(lists=True),
    ),
    "letters": _Form(
        "{persona}\n{filler}\nQuestion: {question}\n{options}\n{cue}",
        "{filler}\n{question}\n{options}\nAnswer with one letter.",
        cue="Answer:",
        style=Style(lists=True, letters=True, own_cue=True),
    ),
}
FIRST = (
    (r"\byou are\b", "I am"),
    (r"\byou were\b", "I was"),
    (r"\byou're\b", "I'm"),
    (r"\byour\b", "my"),
    (r"\byours\b", "mine"),
    (r"\byourself\b", "myself"),
    (r"\b(to|for|of|with|at|by|from|about|around|than|describe|call) you\b", r"\1 me"),
    (r"\byou\b", "I"),
)


def load_format(name: str, tokenizer: Any, *, cue: str | None = None) -> Template:
    """The template of a format for a tokenizer; ``cue`` takes the place of the format's, not of a question's own.

    Raises:
        OptionError: there is no such format, or it is a chat and the tokenizer has no chat template.
    """
    if name not in FORMS:
        raise OptionError(f"--format {name!r} is not one of {', '.join(PROMPT_FORMATS)}")
    form = FORMS[name]
    given = form.cue if cue is None else cue
    if form.turn and (has_chat(tokenizer) or not form.text):
        return chat_template(tokenizer, name=name, text=form.turn, cue=given, style=form.style)
    return Template(name, form.text, given, style=form.style)


def first_person(text: str) -> str:
    """A description of "you" in the first person, word by word; meant for short descriptions.

    >>> first_person("You are a cook, and your food speaks for you.")
    'I am a cook, and my food speaks for me.'
    """
    for pattern, said in FIRST:
        text = re.sub(pattern, said, text, flags=re.IGNORECASE)
    return re.sub(r"(^|[.!?]\s+)(my)\b", lambda match: match[1] + "My", text)


def shown_options(options: Sequence[str], style: Style) -> tuple[str, ...]:
    """What the answer says for each option: its letter where options have letters."""
    return tuple(LETTERS[: len(options)]) if style.letters else tuple(options)


def listing(options: Sequence[str], style: Style) -> str:
    """The options as the prompt lists them.

    >>> listing(("cake", "fruit"), Style(letters=True))
    'A. cake\\nB. fruit'
    """
    if not style.letters:
        return option_list(options)
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def examples_without(options: Sequence[str], examples: Sequence[tuple[str, str]]) -> str:
    """The first examples that name no option, in the words of ``few-shot``."""
    named = re.compile("|".join(rf"(?<!\w){re.escape(option)}(?!\w)" for option in options), re.IGNORECASE)
    kept = [example for example in examples if not (options and named.search(" ".join(example)))]
    return "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in kept[:N_EXAMPLES])
