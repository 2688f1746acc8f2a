"""A task read from a pair file: JSON Lines, or auto-circuit's JSON.

JSON Lines hold one pair per line, with the keys ``clean``, ``corrupt``, ``answers``, ``wrong_answers`` and, if wanted,
``id``, ``persona_a``, ``persona_b``, ``question``, ``split``; auto-circuit's JSON is ``{"prompts": [...]}`` with the
same four keys in every prompt. ``neutral``, the question under no persona, ``spans``, the named parts of the prompts,
and ``forms``, texts that options may take, are read where they are there. All faults of a file are reported at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import TaskError, listed, meant
from persona_circuits.circuit.storage import (
    Kind,
    NotJson,
    decoded,
    is_text,
    is_texts,
    is_whole,
    json_lines,
    parse_json,
    read_bytes,
    table_kind,
)
from persona_circuits.circuit.task.pairs import TEXT_KEYS, PromptPair, Span, Task

__all__ = ["PAIRS", "load_task", "task_of", "task_of_items"]

TEXTS, ANSWERS = ("clean", "corrupt"), ("answers", "wrong_answers")
OPTIONAL = (*TEXT_KEYS, "neutral", "spans", "forms")
"""Keys whose null counts as absent."""
PARTS = ("control", "variant")
"""Keys of rows that are compared with each other: one text may stand in several of these parts, as a control does."""
PAIRS = Kind("pair file", TaskError)
READ = "one JSON object per line, or an array of them, with the keys clean, corrupt, answers and wrong_answers"
ONE_VALUE = re.compile(r"\s*(\[|\{\s*\"prompts\")")
"""First characters of a file that is a single JSON value and not JSON Lines."""


def load_task(path: str | Path, *, label: str | None = None) -> Task:
    """Read a pair file, JSON Lines or auto-circuit's JSON.

    Parameters
    ----------
    label
        What results call it, if not ``path``.

    Returns
    -------
    The pairs, each once.

    Raises
    ------
    TaskError
        The file is missing or any of its pairs is malformed; every fault is listed with its line.
    """
    return task_of(read_bytes(path, PAIRS), path, label=label)


def task_of(content: bytes, path: str | Path, *, label: str | None = None) -> Task:
    """The same of a file's content that was read before.

    Raises:
        TaskError: as ``load_task``.
    """
    path = Path(path)
    text = decoded(content, path, PAIRS)
    faults: list[str] = []
    items = list(_pair_items(text, faults))
    _check_kind(path, text, items)
    digest = hashlib.sha256(content).hexdigest()
    return _task(items, faults, f"pair file {path}", label or str(path), digest, "one JSON object a line")


def faults_of_pairs(path: str | Path) -> list[str]:
    """Every fault of a pair file, each with its place; empty where ``load_task`` reads it."""
    faults: list[str] = []
    try:
        text = decoded(read_bytes(path, PAIRS), Path(path), PAIRS)
        items = list(_pair_items(text, faults))
        _check_kind(Path(path), text, items)
    except TaskError as error:
        return [str(error)]
    pairs = [pair for where, line, item in items if (pair := _parse_pair(item, where, line, faults)) is not None]
    faults += _repeated_ids(pairs)
    return faults if faults or pairs else ["holds no pairs; expected one JSON object per line"]


def task_of_items(items: Iterable[Mapping[str, Any]], source: str) -> Task:
    """A task of pairs in memory, checked as a file's are; a single answer need not stand in a list.

    Raises:
        TaskError: any of the pairs is malformed; every fault is listed with its place.
    """
    rows = [_with_lists(item) for item in items]
    places = [(f"pair {i}", i, row) for i, row in enumerate(rows, 1)]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
    return _task(places, [], source, source, digest, "at least one mapping")


def _with_lists(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    lists = {key: _as_list(item[key]) for key in ANSWERS if key in item}
    forms = item.get("forms")
    if isinstance(forms, Mapping):
        lists["forms"] = {name: _as_list(some) for name, some in forms.items()}
    return {**item, **lists}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


def _task(
    items: Sequence[tuple[str, int, Any]], faults: list[str], what: str, source: str, digest: str, expected: str
) -> Task:
    pairs = [pair for where, line, item in items if (pair := _parse_pair(item, where, line, faults)) is not None]
    faults += _repeated_ids(pairs)
    if faults:
        raise TaskError(listed(f"{what} has {len(faults)} fault(s):", faults))
    if not pairs:
        raise TaskError(f"{what} holds no pairs; expected {expected}")
    kept = _said_once(pairs)
    return Task(kept, source, digest, repeated=len(pairs) - len(kept))


def _said_once(pairs: Sequence[PromptPair]) -> tuple[PromptPair, ...]:
    """The pairs without those that repeat the prompts and answers of an earlier one in the same split.

    They would add nothing but weight, and make every interval narrower than the data does.
    """
    seen: dict[tuple[Any, ...], PromptPair] = {}
    for pair in pairs:
        answers = (frozenset(pair.answers), frozenset(pair.wrong_answers), pair.forms)
        texts = (pair.clean, pair.corrupt, *answers, pair.neutral)
        parts = (str(pair.row.get(key)) for key in PARTS)
        seen.setdefault((*texts, pair.split, *parts), pair)
    return tuple(seen.values())


def _pair_items(text: str, faults: list[str]) -> Iterator[tuple[str, int, Any]]:
    """The raw pairs of a file's text, in any of its formats, with their places and numbers; others go to ``faults``.

    A pair's number is its line or, in an array of pairs and in auto-circuit's JSON, its place there, from 1.
    """
    try:
        whole = parse_json(text) if text.lstrip()[:1] in ("{", "[") else None
    except NotJson as error:
        if "\n{" not in text.strip() or ONE_VALUE.match(text):
            faults += _whole_faults(error)
            return
        whole = None
    named = "prompt" if isinstance(whole, dict) else "pair"
    pairs = whole.get("prompts") if isinstance(whole, dict) else whole
    if isinstance(pairs, list):
        yield from ((f"{named} {i}", i, item) for i, item in enumerate(pairs, 1))
    elif isinstance(whole, dict) and "prompts" in whole:
        faults.append("'prompts' must be a list of pairs")
    elif isinstance(whole, dict):
        number = text[: len(text) - len(text.lstrip())].count("\n") + 1
        if "clean" in whole:
            yield f"line {number}", number, whole
        else:
            faults.append(f'line {number}: expected {{"prompts": [...]}}, or {READ}')
    else:
        yield from ((f"line {number}", number, item) for number, item in json_lines(text, faults))


def _whole_faults(error: NotJson) -> list[str]:
    if error.at is None:
        return error.faults
    return [f"line {error.at[0]}: not JSON ({error.faults[0]} at column {error.at[1]})"]


def _check_kind(path: Path, text: str, items: Sequence[tuple[str, int, Any]]) -> None:
    """One sentence on a file that is no pair file at all, in the place of a fault for each of its lines.

    Raises:
        TaskError: it is a table, or auto-circuit's prompts as token ids.
    """
    if not items and (kind := table_kind(text)):
        first = next(line for line in text.split("\n") if line.strip())
        ids = " (EAP-IG's, whose answers are token ids)" if "correct_idx" in first else ""
        raise TaskError(
            f"pair file {path} is {kind}{ids} that begins {first.strip()[:80]!r}; pairs are read as {READ} "
            "(docs/pairs.md)"
        )
    prompts = [item.get("clean") for _, _, item in items if isinstance(item, dict)]
    if prompts and all(isinstance(prompt, list) for prompt in prompts):
        raise TaskError(
            f"pair file {path} holds prompts as tokens (lists, as in auto-circuit's tracr files), which are not read, "
            f"since they fit one tokenizer only; decode them to text: {READ} are read"
        )


def _parse_pair(item: Any, where: str, line: int, faults: list[str]) -> PromptPair | None:
    if not isinstance(item, dict):
        faults.append(f"{where}: expected an object with clean, corrupt, answers, wrong_answers, got {_shape(item)}")
        return None
    row, item = item, {key: value for key, value in item.items() if value is not None or key not in OPTIONAL}
    own_faults = [
        *(f"{key!r} must be a non-empty string{_near(key, item)}" for key in TEXTS if not is_text(item.get(key))),
        *(
            f"{key!r} must be a non-empty list of strings{_near(key, item)}"
            for key in ANSWERS
            if not is_texts(item.get(key))
        ),
        *(
            f"{key!r} must be a string or a whole number"
            for key in TEXT_KEYS
            if not isinstance(item.get(key, ""), str | int) or isinstance(item.get(key), bool)
        ),
        *(["'neutral' must be a non-empty string"] if not is_text(item.get("neutral", "-")) else []),
        *_span_faults(item.get("spans", {})),
        *_form_faults(item.get("forms", {})),
    ]
    if own_faults:
        faults += [f"{where}: {fault}" for fault in own_faults]
        return None
    extra = {key: str(item[key]) for key in TEXT_KEYS if key in item}
    answers, wrong = tuple(item["answers"]), tuple(item["wrong_answers"])
    extra.setdefault("id", str(line))
    spans, corrupt_spans = (_spans(item.get("spans", {}).get(side, {})) for side in ("clean", "corrupt"))
    return PromptPair(
        item["clean"],
        item["corrupt"],
        answers,
        wrong,
        **extra,
        neutral=item.get("neutral", ""),
        forms=tuple((name, tuple(some)) for name, some in item["forms"].items()) if "forms" in item else None,
        spans=spans,
        corrupt_spans=corrupt_spans,
        axes=tuple(_axes(item)),
        line=line,
        unit=where.split()[0],
        row=row,
    )


def _near(key: str, item: Mapping[str, Any]) -> str:
    """The misspelt key that is there in the place of one that is not."""
    return (
        ""
        if key in item
        else meant(key, (str(other) for other in item if other not in (*TEXTS, *ANSWERS))).replace(
            "did you mean", "is it the key"
        )
    )


def _axes(item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    known = {*TEXT_KEYS, "clean", "corrupt", "neutral"}
    for key, value in item.items():
        if key not in known and isinstance(value, str | int | float | bool):
            yield key, str(value).lower() if isinstance(value, bool) else str(value)


def _span_faults(value: Any) -> list[str]:
    """``{"clean": {name: {"tokens": [start, end]}}, "corrupt": …}`` and nothing else."""
    sides = value if isinstance(value, dict) else {"": None}
    parts = [part for side in sides.values() for part in (side.values() if isinstance(side, dict) else [None])]
    good = all(isinstance(part, dict) and _is_range(part.get("tokens")) for part in parts)
    return [] if good else ["'spans' must give every part's 'tokens' as [start, end] for clean and corrupt"]


def _form_faults(value: Any) -> list[str]:
    """``{option: [form, ...]}``, texts that follow the prompt."""
    good = isinstance(value, dict) and all(name and is_texts(some) for name, some in value.items())
    return [] if good else ["'forms' must give a non-empty list of texts for every option that it names"]


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_whole, value)) and value[0] <= value[1]


def _spans(parts: dict[str, Any]) -> tuple[Span, ...]:
    spans = (Span(name, *part["tokens"]) for name, part in parts.items())
    return tuple(span for span in spans if span.end > span.start)


def _shape(value: Any) -> str:
    return {list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def _repeated_ids(pairs: Sequence[PromptPair]) -> list[str]:
    seen: dict[str, int] = {}
    faults = []
    for pair in pairs:
        if pair.id in seen:
            faults.append(f"{pair.unit} {pair.line}: id {pair.id!r} is already used in {pair.unit} {seen[pair.id]}")
        seen.setdefault(pair.id, pair.line)
    return faults
