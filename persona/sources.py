"""Personas and questions read from the files that people have: one reader each, the format found by looking.

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

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from circuit.errors import TaskError, cut, listed
from circuit.reading import (
    Kind,
    NotJson,
    is_number,
    is_text,
    is_whole,
    json_lines,
    parse_json,
    read_json,
    read_text,
    table_kind,
)

__all__ = [
    "Persona",
    "Question",
    "preferred",
    "read_answers",
    "read_contrast",
    "read_personas",
    "read_questions",
    "with_answers",
]

# What says of a trait of the Anthropic evals that somebody has it, or has it not.
TRAIT_FRAMES = (
    ('People describe you as high in "{}".', 'People describe you as low in "{}".'),
    ('You score high on "{}".', 'You score low on "{}".'),
    ('The label "{}" fits you well.', 'The label "{}" fits you badly.'),
)
PERSONA_HEADER, QUESTION_HEADER = ("name", "wording"), ("id", "wording", "options")
SOURCE = Kind("source", TaskError)
EVAL_KEYS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")

Item = tuple[str, Any]  # where it stands, and what stands there


@dataclass(frozen=True)
class Persona:
    """Somebody to be, in paraphrases; ``opposite`` names the persona that is its contrary, if the source says so.

    ``held_out`` is the index of the wording that the source sets aside.
    """

    name: str
    wordings: tuple[str, ...]
    traits: Mapping[str, float] = field(default_factory=dict)
    opposite: str = ""
    notes: tuple[str, ...] = ()
    held_out: int | None = None


@dataclass(frozen=True)
class Question:
    """A choice to make, in paraphrases; without ``options`` it is open and makes no pair.

    ``prefers`` gives the option of each persona (None: it has none); ``affinities`` the pull of
    each trait on each option, for personas that ``prefers`` does not name. ``held_out`` is the
    index of the wording that the source sets aside, ``cue`` the question's own answer cue, ``domain``
    what it is about, a key of the pairs.
    """

    id: str
    wordings: tuple[str, ...]
    options: tuple[str, ...]
    prefers: Mapping[str, str | None] = field(default_factory=dict)
    affinities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    held_out: int | None = None
    cue: str | None = None
    domain: str = ""


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


def read_personas(path: str | Path) -> tuple[Persona, ...]:
    """The personas of a file, or of a folder of assistant-axis JSON.

    Raises:
        TaskError: the source cannot be read, is of no known format or has faults; all are listed.
    """
    path, faults = Path(path), _Faults()
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        found = [persona for file in files for persona in _axis_personas(file, faults)]
    elif path.suffix.lower() == ".json":
        found = _axis_personas(path, faults)
    elif path.suffix.lower() == ".csv":
        found = _csv_personas(path, faults)
    else:
        found = _jsonl_personas(path, faults)
    faults.extend(_repeated("persona", (persona.name for persona in found)))
    return _checked(found, faults, path, "personas")


def read_questions(path: str | Path) -> tuple[Question, ...]:
    """The questions of a file.

    Raises:
        TaskError: the source cannot be read, is of no known format or has faults; all are listed.
    """
    path, faults = Path(path), _Faults()
    if path.suffix.lower() == ".csv":
        found = [_csv_question(item, faults) for item in _csv_rows(path, QUESTION_HEADER, faults)]
    elif path.suffix.lower() == ".json":
        found = _axis_questions(path, faults)
    else:
        poles = _poles(path)
        found = [_json_question(item, path, poles, faults) for item in _json_lines(path, QUESTION_HEADER, faults)]
    merged = _merged(question for question in found if question is not None)
    faults.extend(_repeated("question", (question.id for question in merged)))
    return _checked(merged, faults, path, "questions")


def read_answers(path: str | Path) -> dict[tuple[str, str], str]:
    """Option by persona and question, from CSV with the header persona,question,option.

    Raises:
        TaskError: the file cannot be read or has faults; all are listed.
    """
    path, faults = Path(path), _Faults()
    answers: dict[tuple[str, str], str] = {}
    for where, row in _csv_rows(path, ("persona", "question", "option"), faults):
        key = row["persona"], row["question"]
        if answers.setdefault(key, row["option"]) != row["option"]:
            faults.add(where, f"{key[0]} already prefers {answers[key]!r} in question {key[1]}")
    _checked(list(answers), faults, path, "answers")
    return answers


def read_contrast(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Pairs of persona names, from CSV with the header persona_a,persona_b.

    Raises:
        TaskError: the file cannot be read or has faults; all are listed.
    """
    path, faults = Path(path), _Faults()
    pairs = []
    for where, row in _csv_rows(path, ("persona_a", "persona_b"), faults):
        pairs.append((row["persona_a"], row["persona_b"]))
        if row["persona_a"] == row["persona_b"]:
            faults.add(where, f"{row['persona_a']} cannot be contrasted with itself")
        elif {*pairs[-1]} in [{*pair} for pair in pairs[:-1]]:
            faults.add(where, f"the pair {' and '.join(pairs[-1])} occurs twice")
    return _checked(pairs, faults, path, "persona pairs")


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


class _Faults(list[str]):
    def add(self, where: str, what: str) -> None:
        self.append(f"{where}: {what}")


def _checked(found: Sequence[Any], faults: _Faults, path: Path, kind: str) -> tuple[Any, ...]:
    if faults:
        raise TaskError(listed(f"{path} has {len(faults)} fault(s):", faults))
    if not found:
        raise TaskError(f"{path} holds no {kind}; see docs/pairs.md for the formats that are read")
    return tuple(found)


def _repeated(kind: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [
        f"{kind} {name!r} occurs {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1
    ]


def _merged(questions: Iterable[Question]) -> list[Question]:
    """Rows of CSV that repeat a question's id and options are its paraphrases."""
    found: dict[Any, Question] = {}
    for question in questions:
        key = (question.id, question.options)
        known = found.get(key)
        wordings = tuple(dict.fromkeys([*(known.wordings if known else ()), *question.wordings]))
        prefers = {**(known.prefers if known else {}), **question.prefers}
        found[key] = replace(known or question, wordings=wordings, prefers=prefers)
    return list(found.values())


def _json_lines(path: Path, header: tuple[str, ...], faults: _Faults) -> Iterator[Item]:
    """The objects of a JSON Lines file; ``header`` is what such a file has as CSV, and told where this is a table."""
    text = read_text(path, SOURCE)
    if found := table_kind(text):
        raise TaskError(
            f"{path} is {found}; {path.suffix or 'a file without a suffix'} is read as one JSON object a line, and a "
            f"table only from a .csv apart by commas with the header {','.join(header)} (docs/pairs.md)"
        )
    for number, item in json_lines(text, faults):
        if isinstance(item, dict):  # null says as much as an absent key
            yield f"line {number}", {key: value for key, value in item.items() if value is not None}
        else:
            faults.add(f"line {number}", "expected an object")


def _csv_rows(path: Path, header: tuple[str, ...], faults: _Faults) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, stripped; the columns of ``header`` are filled in every row."""
    text = read_text(path, SOURCE)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        if missing := [name for name in header if name not in columns]:
            found = table_kind(text)
            if found and not found.endswith("commas"):
                raise TaskError(
                    f"{path} is {found}; a .csv is read apart by commas, with the header {','.join(header)} "
                    "(docs/pairs.md)"
                )
            faults.add("line 1", f"no column {', '.join(missing)}; expected the header {','.join(header)}")
            return
        reader.fieldnames = columns
        for cells in reader:
            where = f"line {reader.line_num}"
            if None in cells:
                faults.add(where, f"more cells than the {len(columns)} of the header; put a text with commas in quotes")
                continue
            row = {name: (cell or "").strip() for name, cell in cells.items()}
            if empty := [name for name in header if not row[name] and name != "options"]:
                faults.add(where, f"{', '.join(empty)} is empty")
            else:
                yield where, row
    except csv.Error as error:
        faults.add(f"line {reader.line_num}", f"not CSV ({error})")


def _csv_personas(path: Path, faults: _Faults) -> list[Persona]:
    wordings: dict[str, list[str]] = {}
    for where, row in _csv_rows(path, PERSONA_HEADER, faults):
        own = wordings.setdefault(row["name"], [])
        if row["wording"] in own:
            faults.add(where, f"{row['name']} has this wording already")
        own.append(row["wording"])
    return [Persona(name, tuple(own)) for name, own in wordings.items()]


def _csv_question(item: tuple[str, dict[str, str]], faults: _Faults) -> Question | None:
    """``options`` apart by |; ``prefers`` as ``monk=tea|actor=wine`` and ``cue`` are columns that may be absent."""
    where, row = item
    options = tuple(cell.strip() for cell in row["options"].split("|")) if row["options"] else ()
    prefers: dict[str, str | None] = {}
    for cell in filter(None, row.get("prefers", "").split("|")):
        name, sign, option = (part.strip() for part in cell.partition("="))
        if not sign:
            faults.add(where, f"prefers: expected persona=option, got {cell!r}")
        prefers[name] = option
    return _question(where, row["id"], (row["wording"],), options, faults, prefers=prefers, cue=row.get("cue") or None)


def _jsonl_personas(path: Path, faults: _Faults) -> list[Persona]:
    items = list(_json_lines(path, PERSONA_HEADER, faults))
    if items and "answer_matching_behavior" in items[0][1]:
        return _eval_personas(path.stem)
    poles = _poles(path)
    return [persona for item in items if (persona := _json_persona(item, poles, faults)) is not None]


def _json_persona(item: Item, poles: Mapping[str, str], faults: _Faults) -> Persona | None:
    """A line of this project's ``personas.jsonl``: ``id`` or ``name``, ``descriptions`` or ``wordings``, ``traits``."""
    where, row = item
    name, wordings = row.get("id", row.get("name")), row.get("descriptions", row.get("wordings"))
    traits, opposite, held_out = row.get("traits", {}), row.get("opposite", ""), row.get("held_out_description")
    found = []
    if not _is_text(name):
        found.append(f"expected the keys id and descriptions (or name and wordings), got {_keys(row)}")
    elif not _is_texts(wordings):
        found.append("'descriptions' must be a non-empty list of non-empty strings")
    if not _is_numbers(traits):
        found.append("'traits' must be an object of numbers")
    if not isinstance(opposite, str):
        found.append("'opposite' must be the name of a persona")
    if held_out is not None and _is_texts(wordings) and not is_whole(held_out, 0, len(wordings) - 1):
        found.append(f"'held_out_description' must be the index of a description, got {held_out!r}")
    for fault in found:
        faults.add(where, fault)
    if found:
        return None
    distinct = _distinct(wordings)
    place = None if held_out is None else distinct.index(wordings[held_out].strip())
    return Persona(name, distinct, _signed(traits, poles), opposite, held_out=place)


def _poles(path: Path) -> dict[str, str]:
    """The positive pole of every negative one, from a ``templates.json`` with ``traits`` beside the file."""
    beside = path.with_name("templates.json")
    if not beside.is_file():
        return {}
    content = read_json(beside, SOURCE)
    traits = content.get("traits", []) if isinstance(content, dict) else None
    good = isinstance(traits, list) and all(
        isinstance(trait, dict) and is_text(trait.get("negative")) and is_text(trait.get("positive"))
        for trait in traits
    )
    if not good:
        raise TaskError(f"{beside}: 'traits' must be a list of objects with 'positive' and 'negative'")
    return {trait["negative"]: trait["positive"] for trait in traits}


def _signed(values: Mapping[str, int | float], poles: Mapping[str, str]) -> dict[str, float]:
    """Numbers by trait, a negative pole as its positive one with the other sign."""
    return {poles.get(name, name): float(-value if name in poles else value) for name, value in values.items()}


def _eval_personas(trait: str) -> list[Persona]:
    """The two sides of an Anthropic evals file, whose name is the trait."""
    words = trait.replace("-", " ").replace("_", " ")
    names = trait, f"not-{trait}"
    return [
        Persona(name, tuple(frame[side].format(words) for frame in TRAIT_FRAMES), opposite=names[1 - side])
        for side, name in enumerate(names)
    ]


def _axis_personas(path: Path, faults: _Faults) -> list[Persona]:
    """Role JSON gives one persona; trait JSON, which has ``neg`` too, gives two that are opposed."""
    content = _whole_json(path, faults)
    instructions = content.get("instruction") if isinstance(content, dict) else None
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


def _axis_persona(name: str, prompts: list[Any], opposite: str, where: str, faults: _Faults) -> Persona:
    usable = [text.strip() for text in prompts if _is_text(text) and "{" not in text]
    notes = [f"{name}: an empty prompt is left out" for text in prompts if isinstance(text, str) and not text.strip()]
    notes += [f"{name}: a prompt with a placeholder is left out: {text}" for text in prompts if "{" in str(text)]
    if not usable and all(isinstance(text, str) for text in prompts):
        faults.add(where, f"{name} has no prompt that can be used")
    return Persona(name, _distinct(usable), opposite=opposite, notes=tuple(notes))


def _axis_questions(path: Path, faults: _Faults) -> list[Question]:
    """The open questions that a role or trait file holds."""
    content = _whole_json(path, faults)
    texts = content.get("questions") if isinstance(content, dict) else None
    if not _is_texts(texts):
        if content is not None:
            faults.add(path.name, "expected 'questions', a list of strings")
        return []
    return [Question(f"{path.stem}-{i}", (text.strip(),), ()) for i, text in enumerate(texts)]


def _whole_json(path: Path, faults: _Faults) -> Any:
    try:
        return parse_json(read_text(path, SOURCE))
    except NotJson as error:
        where = f"line {error.at[0]}: " if error.at else ""
        column = f" at column {error.at[1]}" if error.at else ""
        for fault in error.faults:
            faults.add(path.name, f"{where}not JSON ({fault}{column})")
        return None


def _json_question(item: Item, path: Path, poles: Mapping[str, str], faults: _Faults) -> Question | None:
    _, row = item
    if "answer_matching_behavior" in row or "statement" in row:
        return _eval_question(item, path.stem, faults)
    if "question" in row and "wordings" not in row:
        return _open_question(item, faults)
    return _own_question(item, poles, faults)


def _eval_question(item: Item, trait: str, faults: _Faults) -> Question | None:
    """A statement of the Anthropic evals: who has the trait gives one answer, who has it not the other."""
    where, row = item
    if wrong := [key for key in EVAL_KEYS if not _is_text(row.get(key))]:
        faults.add(where, f"{', '.join(wrong)} must be a non-empty string")
        return None
    text, yes, no = (row[key].strip() for key in EVAL_KEYS)
    number = int(where.split()[1])
    options = tuple(sorted((yes, no), reverse=True))
    return _question(where, f"{trait}-{number:04d}", (text,), options, faults, prefers={trait: yes, f"not-{trait}": no})


def _open_question(item: Item, faults: _Faults) -> Question | None:
    """A line of assistant-axis' extraction questions: ``question`` and a number."""
    where, row = item
    if not _is_text(row["question"]) or not isinstance(row.get("id"), str | int):
        faults.add(where, "'question' must be a non-empty string, 'id' a number or a string")
        return None
    return Question(str(row["id"]), (row["question"].strip(),), ())


def _own_question(item: Item, poles: Mapping[str, str], faults: _Faults) -> Question | None:
    """A line of this project's ``questions.jsonl``; options are words, or objects with ``word`` and ``affinity``."""
    where, row = item
    options = row.get("options", [])
    if not _is_text(row.get("id")) or not _is_texts(row.get("wordings")) or not isinstance(options, list):
        faults.add(where, f"expected the keys id, wordings and options, got {_keys(row)}")
        return None
    options = [option if isinstance(option, dict) else {"word": option} for option in options]
    if not all(_is_text(option.get("word")) and _is_numbers(option.get("affinity", {})) for option in options):
        faults.add(where, "an option must be a word, or an object with 'word' and, if wanted, numbers in 'affinity'")
        return None
    affinities = {o["word"].strip(): _signed(o["affinity"], poles) for o in options if "affinity" in o}
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
    if not isinstance(cue, str | None) or not isinstance(domain, str | int | float):
        faults.add(where, "'cue' must be a string, 'domain' a string or a number")
        return None
    words, distinct = tuple(option["word"].strip() for option in options), _distinct(row["wordings"])
    place = distinct.index(row["wordings"][held_out].strip()) if is_place else None
    extra = {"prefers": prefers, "affinities": affinities, "held_out": place, "cue": cue, "domain": str(domain)}
    return _question(where, row["id"], distinct, words, faults, **extra)


def _question(
    where: str, name: str, wordings: tuple[str, ...], options: tuple[str, ...], faults: _Faults, **extra: Any
) -> Question:
    """A question whose options are distinct and hold what the personas prefer; what is not goes to ``faults``."""
    if options and (len(options) < 2 or len(set(options)) < len(options) or not all(options)):
        faults.add(where, f"expected two or more different options, got {', '.join(map(repr, options))}")
    for persona, option in extra.get("prefers", {}).items():
        if option is not None and option not in options:
            faults.add(where, f"{persona} prefers {option!r}, which is not one of the options")
    return Question(name, wordings, options, **extra)


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.strip() for text in texts))


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(row) or "none"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_text(item) for item in value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))
