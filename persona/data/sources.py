"""Personas and questions read from common files: a reader for each format, which is told from the content.

    personas   this project's JSON Lines; CSV; assistant-axis role and trait JSON, a file or a
               folder of them; a persona file of the Anthropic evals (the trait and its opposite)
    questions  this project's JSON Lines; CSV; a persona file of the Anthropic evals; the questions
               of assistant-axis, which are open: they hold no options
    answers    CSV persona,question,option: what a persona prefers, where the questions do not say
    contrast   CSV persona_a,persona_b: which personas meet

Every fault of a source is listed with its place before anything is used. What a source
holds but cannot be a wording (an empty prompt, a placeholder) stands in the persona's ``notes``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import TaskError, listed
from persona_circuits.persona.data.csv_files import QUESTION_HEADER, csv_personas, csv_question, csv_rows
from persona_circuits.persona.data.json_files import (
    axis_personas,
    axis_questions,
    json_question,
    json_rows,
    jsonl_personas,
    poles_of,
)
from persona_circuits.persona.data.values import Faults, Persona, Question, checked, repeated

__all__ = ["read_answers", "read_contrast", "read_personas", "read_questions", "with_answers"]


def read_personas(path: str | Path) -> tuple[Persona, ...]:
    """The personas of a file, or of a folder of assistant-axis JSON.

    Returns
    -------
    The personas, in the order of the source.

    Raises
    ------
    TaskError
        The source cannot be read, is of no known format or has faults; all are listed.
    """
    path, faults = Path(path), Faults()
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        personas = [persona for file in files for persona in axis_personas(file, faults)]
    elif path.suffix.lower() == ".json":
        personas = axis_personas(path, faults)
    elif path.suffix.lower() == ".csv":
        personas = csv_personas(path, faults)
    else:
        personas = jsonl_personas(path, faults)
    faults.extend(repeated("persona", (persona.name for persona in personas)))
    return checked(personas, faults, path, "personas")


def read_questions(path: str | Path) -> tuple[Question, ...]:
    """The questions of a file.

    Returns
    -------
    The questions, in the order of the file.

    Raises
    ------
    TaskError
        The source cannot be read, is of no known format or has faults; all are listed.
    """
    path, faults = Path(path), Faults()
    if path.suffix.lower() == ".csv":
        questions: Sequence[Question | None] = [
            csv_question(item, faults) for item in csv_rows(path, QUESTION_HEADER, faults)
        ]
    elif path.suffix.lower() == ".json":
        questions = axis_questions(path, faults)
    else:
        poles = poles_of(path)
        questions = [json_question(item, path, poles, faults) for item in json_rows(path, QUESTION_HEADER, faults)]
    merged = _merged(question for question in questions if question is not None)
    faults.extend(repeated("question", (question.id for question in merged)))
    return checked(merged, faults, path, "questions")


def read_answers(path: str | Path) -> dict[tuple[str, str], str]:
    """Option by persona and question, from CSV with the header persona,question,option.

    Raises:
        TaskError: the file cannot be read or has faults; all are listed.
    """
    path, faults = Path(path), Faults()
    answers: dict[tuple[str, str], str] = {}
    for where, row in csv_rows(path, ("persona", "question", "option"), faults):
        key = row["persona"], row["question"]
        if answers.setdefault(key, row["option"]) != row["option"]:
            faults.add(where, f"{key[0]} already prefers {answers[key]!r} in question {key[1]}")
    checked(list(answers), faults, path, "answers")
    return answers


def read_contrast(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Pairs of persona names, from CSV with the header persona_a,persona_b.

    Raises:
        TaskError: the file cannot be read or has faults; all are listed.
    """
    path, faults = Path(path), Faults()
    pairs = []
    for where, row in csv_rows(path, ("persona_a", "persona_b"), faults):
        pairs.append((row["persona_a"], row["persona_b"]))
        if row["persona_a"] == row["persona_b"]:
            faults.add(where, f"{row['persona_a']} cannot be contrasted with itself")
        elif {*pairs[-1]} in [{*pair} for pair in pairs[:-1]]:
            faults.add(where, f"the pair {' and '.join(pairs[-1])} occurs twice")
    return checked(pairs, faults, path, "persona pairs")


def with_answers(
    questions: Sequence[Question], answers: Mapping[tuple[str, str], str], personas: Sequence[Persona]
) -> tuple[Question, ...]:
    """The questions with these preferences on top of their own; an open question takes its options from them.

    Raises:
        TaskError: an answer names a persona, a question or an option that is not there; all are listed.
    """
    known, names = {question.id: question for question in questions}, {persona.name for persona in personas}
    faults = [f"{name}, {asked}: no such persona" for name, asked in answers if name not in names]
    faults += [f"{name}, {asked}: no such question" for name, asked in answers if asked not in known]
    faults += [
        f"{name}, {asked}: {option!r} is not one of the options {', '.join(known[asked].options)}"
        for (name, asked), option in answers.items()
        if asked in known and known[asked].options and option not in known[asked].options
    ]
    if faults:
        raise TaskError(listed(f"the answers have {len(faults)} fault(s):", faults))
    return tuple(_answered(question, answers) for question in questions)


def _answered(question: Question, answers: Mapping[tuple[str, str], str]) -> Question:
    own = {name: option for (name, asked), option in answers.items() if asked == question.id}
    options = question.options or tuple(dict.fromkeys(own.values()))
    return replace(question, options=options, prefers={**question.prefers, **own})


def _merged(questions: Iterable[Question]) -> list[Question]:
    """Rows of CSV that repeat a question's id and options are its paraphrases."""
    merged: dict[Any, Question] = {}
    for question in questions:
        key = (question.id, question.options)
        known = merged.get(key)
        wordings = tuple(dict.fromkeys([*(known.wordings if known else ()), *question.wordings]))
        prefers = {**(known.prefers if known else {}), **question.prefers}
        merged[key] = replace(known or question, wordings=wordings, prefers=prefers)
    return list(merged.values())
