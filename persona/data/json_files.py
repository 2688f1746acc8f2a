"""Personas and questions from JSON and JSON Lines, in this project's form and in others'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import TaskError, cut
from persona_circuits.circuit.storage import (
    NotJson,
    is_text,
    is_whole,
    json_lines,
    parse_json,
    read_json,
    read_text,
    table_kind,
)
from persona_circuits.persona.data.csv_files import PERSONA_HEADER, SOURCE
from persona_circuits.persona.data.surveys import (
    is_outcomes,
    is_statements,
    outcome_questions,
    statement_personas,
    statement_questions,
)
from persona_circuits.persona.data.values import (
    EVAL_KEYS,
    TRAIT_FRAMES,
    Faults,
    Item,
    Persona,
    Question,
    checked_question,
    distinct_texts,
    has_text,
    is_numbers,
    is_texts,
    keys_of,
    signed,
)

__all__ = ["axis_personas", "axis_questions", "json_question", "json_rows", "jsonl_personas", "poles_of"]


def json_rows(path: Path, header: tuple[str, ...], faults: Faults) -> Iterator[Item]:
    """The objects of a JSON Lines file; ``header``, its columns as CSV, is named where this is a table."""
    text = read_text(path, SOURCE)
    if kind := table_kind(text):
        raise TaskError(
            f"{path} is {kind}; {path.suffix or 'a file without a suffix'} is read as one JSON object a line, and a "
            f"table only from a .csv separated by commas with the header {','.join(header)} (docs/pairs.md)"
        )
    for number, item in json_lines(text, faults):
        if isinstance(item, dict):  # null says as much as an absent key
            yield f"line {number}", {key: value for key, value in item.items() if value is not None}
        else:
            faults.add(f"line {number}", "expected an object")


def jsonl_personas(path: Path, faults: Faults) -> list[Persona]:
    items = list(json_rows(path, PERSONA_HEADER, faults))
    if items and "answer_matching_behavior" in items[0][1]:
        return _eval_personas(path.stem)
    poles = poles_of(path)
    return [persona for item in items if (persona := _json_persona(item, poles, faults)) is not None]


def _json_persona(item: Item, poles: Mapping[str, str], faults: Faults) -> Persona | None:
    """A line of this project's ``personas.jsonl``: ``id`` or ``name``, ``descriptions`` or ``wordings``, ``traits``."""
    where, row = item
    name, wordings = row.get("id", row.get("name")), row.get("descriptions", row.get("wordings"))
    traits, opposite, held_out = row.get("traits", {}), row.get("opposite", ""), row.get("held_out_description")
    wrong = []
    if not has_text(name):
        wrong.append(f"expected the keys id and descriptions (or name and wordings), got {keys_of(row)}")
    elif not is_texts(wordings):
        wrong.append("'descriptions' must be a non-empty list of non-empty strings")
    if not is_numbers(traits):
        wrong.append("'traits' must be an object of numbers")
    domain = row.get("kind", row.get("domain", ""))
    if not isinstance(domain, str):
        wrong.append("'kind' must say in words what kind of persona it is")
    if not isinstance(opposite, str):
        wrong.append("'opposite' must be the name of a persona")
    if held_out is not None and is_texts(wordings) and not is_whole(held_out, 0, len(wordings) - 1):
        wrong.append(f"'held_out_description' must be the index of a description, got {held_out!r}")
    for fault in wrong:
        faults.add(where, fault)
    if wrong:
        return None
    distinct = distinct_texts(wordings)
    place = None if held_out is None else distinct.index(wordings[held_out].strip())
    return Persona(name, distinct, signed(traits, poles), opposite, held_out=place, domain=domain)


def poles_of(path: Path) -> dict[str, str]:
    """The positive pole of every negative one, from a ``templates.json`` with ``traits`` beside the file."""
    beside = path.with_name("templates.json")
    if not beside.is_file():
        return {}
    content = read_json(beside, SOURCE)
    traits: Any = content.get("traits", []) if isinstance(content, dict) else None
    good = isinstance(traits, list) and all(
        isinstance(trait, dict) and is_text(trait.get("negative")) and is_text(trait.get("positive"))
        for trait in traits
    )
    if not good:
        raise TaskError(f"{beside}: 'traits' must be a list of objects with 'positive' and 'negative'")
    return {trait["negative"]: trait["positive"] for trait in traits}


def _eval_personas(trait: str) -> list[Persona]:
    """The two sides of an Anthropic evals file, whose name is the trait."""
    words = trait.replace("-", " ").replace("_", " ")
    names = trait, f"not-{trait}"
    return [
        Persona(name, tuple(frame[side].format(words) for frame in TRAIT_FRAMES), opposite=names[1 - side])
        for side, name in enumerate(names)
    ]


def axis_personas(path: Path, faults: Faults) -> list[Persona]:
    """Role JSON gives one persona; trait JSON, which has ``neg`` too, gives two that are opposed."""
    content = _whole_json(path, faults)
    if is_statements(content):
        return statement_personas(content)
    instructions: Any = content.get("instruction") if isinstance(content, dict) else None
    if not isinstance(instructions, list) or not all(isinstance(item, dict) for item in instructions):
        if content is not None:
            faults.add(
                path.name, "expected 'instruction', a list of objects with 'pos' (roles) or 'pos' and 'neg' (traits)"
            )
        return []
    sides = ("pos", "neg") if any("neg" in item for item in instructions) else ("pos",)
    for i, item in enumerate(instructions):
        for side in sides:
            if not isinstance(item.get(side), str):
                faults.add(path.name, f"instruction[{i}].{side} must be a string")
    names = (path.stem, f"not-{path.stem}")
    opposites = names[::-1] if len(sides) == 2 else ("",)
    return [
        _axis_persona(name, [item.get(side) for item in instructions], opposite, path.name, faults)
        for name, side, opposite in zip(names, sides, opposites, strict=False)
    ]


def _axis_persona(name: str, prompts: list[Any], opposite: str, where: str, faults: Faults) -> Persona:
    usable = [text.strip() for text in prompts if has_text(text) and "{" not in text]
    notes = [f"{name}: an empty prompt is left out" for text in prompts if isinstance(text, str) and not text.strip()]
    notes += [f"{name}: a prompt with a placeholder is left out: {text}" for text in prompts if "{" in str(text)]
    if not usable and all(isinstance(text, str) for text in prompts):
        faults.add(where, f"{name} has no prompt that can be used")
    return Persona(name, distinct_texts(usable), opposite=opposite, notes=tuple(notes))


def axis_questions(path: Path, faults: Faults) -> list[Question]:
    """The open questions that a role or trait file holds; or those of a survey's items."""
    content = _whole_json(path, faults)
    if is_statements(content):
        return statement_questions(content, faults)
    if is_outcomes(content):
        return outcome_questions(content)
    texts: Any = content.get("questions") if isinstance(content, dict) else None
    if not is_texts(texts):
        if content is not None:
            faults.add(path.name, "expected 'questions', a list of strings")
        return []
    return [Question(f"{path.stem}-{i}", (text.strip(),), ()) for i, text in enumerate(texts)]


def _whole_json(path: Path, faults: Faults) -> Any:
    try:
        return parse_json(read_text(path, SOURCE))
    except NotJson as error:
        where = f"line {error.at[0]}: " if error.at else ""
        column = f" at column {error.at[1]}" if error.at else ""
        for fault in error.faults:
            faults.add(path.name, f"{where}not JSON ({fault}{column})")
        return None


def json_question(item: Item, path: Path, poles: Mapping[str, str], faults: Faults) -> Question | None:
    _, row = item
    if "answer_matching_behavior" in row or "statement" in row:
        return _eval_question(item, path.stem, faults)
    if "question" in row and "wordings" not in row:
        return _open_question(item, faults)
    return _own_question(item, poles, faults)


def _eval_question(item: Item, trait: str, faults: Faults) -> Question | None:
    """A statement of the Anthropic evals: whoever has the trait gives one answer, whoever lacks it the other."""
    where, row = item
    if wrong := [key for key in EVAL_KEYS if not has_text(row.get(key))]:
        faults.add(where, f"{', '.join(wrong)} must be a non-empty string")
        return None
    text, yes, no = (row[key].strip() for key in EVAL_KEYS)
    number = int(where.split()[1])
    options = tuple(sorted((yes, no), reverse=True))
    return checked_question(
        where, f"{trait}-{number:04d}", (text,), options, faults, prefers={trait: yes, f"not-{trait}": no}
    )


def _open_question(item: Item, faults: Faults) -> Question | None:
    """A line of assistant-axis' extraction questions: ``question`` and a number."""
    where, row = item
    if not has_text(row["question"]) or not isinstance(row.get("id"), str | int):
        faults.add(where, "'question' must be a non-empty string, 'id' a number or a string")
        return None
    return Question(str(row["id"]), (row["question"].strip(),), ())


def _own_question(item: Item, poles: Mapping[str, str], faults: Faults) -> Question | None:
    """A line of this project's ``questions.jsonl``; options are words, or objects with ``word`` and ``affinity``."""
    where, row = item
    options = row.get("options", [])
    if not has_text(row.get("id")) or not is_texts(row.get("wordings")) or not isinstance(options, list):
        faults.add(where, f"expected the keys id, wordings and options, got {keys_of(row)}")
        return None
    options = [option if isinstance(option, dict) else {"word": option} for option in options]
    if not all(has_text(option.get("word")) and is_numbers(option.get("affinity", {})) for option in options):
        faults.add(where, "an option must be a word, or an object with 'word' and, if wanted, numbers in 'affinity'")
        return None
    if not all(is_texts(option.get("forms", ["-"])) for option in options):
        faults.add(where, "the 'forms' of an option must be a non-empty list of words that mean the same")
        return None
    affinities = {o["word"].strip(): signed(o["affinity"], poles) for o in options if "affinity" in o}
    held_out, prefers = row.get("held_out_wording"), row.get("prefers", {})
    is_place = is_whole(held_out, 0, len(row["wordings"]) - 1)
    if held_out is not None and not is_place:
        faults.add(where, f"'held_out_wording' must be the index of a wording, got {held_out!r}")
    if not isinstance(prefers, dict):
        faults.add(where, "'prefers' must be an object from persona to option")
        prefers = {}
    for name, option in prefers.items():
        if not isinstance(option, str | None):
            faults.add(where, f"{name} prefers {cut(repr(option), 80)}, which is no option's name")
    prefers = {name: option for name, option in prefers.items() if isinstance(option, str | None)}
    cue, domain = row.get("cue"), row.get("domain", "")
    words, distinct = tuple(option["word"].strip() for option in options), distinct_texts(row["wordings"])
    cues = tuple(cue) if is_texts(cue) else ()
    if not (isinstance(cue, str | None) or len(cues) == len(distinct)) or not isinstance(domain, str | int | float):
        faults.add(where, "'cue' must be a string, or one for each wording, 'domain' a string or a number")
        return None
    place = distinct.index(row["wordings"][held_out].strip()) if is_place else None
    extra: dict[str, Any] = {"prefers": prefers, "affinities": affinities, "held_out": place, "domain": str(domain)}
    extra |= {"cues": cues} if cues else {"cue": cue}
    extra["forms"] = {o["word"].strip(): distinct_texts(o["forms"]) for o in options if "forms" in o}
    return checked_question(where, row["id"], distinct, words, faults, **extra)
