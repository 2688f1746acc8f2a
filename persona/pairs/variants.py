"""The same pairs in other words: every prompt of a pair file rewritten by named rules.

A variant is a list of substitutions, each a regular expression and what takes its place, done
in turn on the clean and on the corrupt prompt, once each:

    {"identity": [], "intense": [["you are a", "you are a very"]], "late": [["(you .*?\\.) (.*?)_", "\\2 \\1_"]]}

A rewritten pair keeps its answers, candidates and keys and gets two more: ``variant``, the rule's
name, and ``base``, the id of the pair that it was made of, so that variants can be compared pair by
pair. ``spans`` are dropped, since rewriting moves them. A base that fails any check in any
variant is dropped whole: what is compared is the same pairs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import OptionError, TaskError, cut, listed
from persona_circuits.circuit.storage import Kind, read_json
from persona_circuits.circuit.task import Reader, answer_id, prompt_faults, token_ids
from persona_circuits.persona.data import load_items

__all__ = ["Unfit", "Varied", "checked_row", "read_rules", "rows_of", "varied", "vary"]

Rules = Mapping[str, Sequence[tuple[re.Pattern[str], str]]]
RULES = Kind("rules", OptionError, "variants by name")
DROPPED_KEYS = ("spans", "n_tokens", "template")


@dataclass(frozen=True)
class Varied:
    """The rewritten rows, variants of a base together, and why bases were dropped: reason -> ids of bases."""

    rows: tuple[Mapping[str, Any], ...]
    dropped: Mapping[str, tuple[str, ...]]


def read_rules(path: str | Path) -> Rules:
    """Rules from JSON: ``{"variant": [["pattern", "replacement"], …], …}``.

    Raises:
        OptionError: the file is not that, or a pattern is no regular expression; all faults are listed.
    """
    record = read_json(path, RULES)
    if not isinstance(record, dict) or not record:
        raise OptionError(f'rules {path}: expected an object {{"variant": [["pattern", "replacement"], …]}}')
    faults: list[str] = []
    rules = {name: _compiled(name, steps, faults) for name, steps in record.items()}
    if faults:
        raise OptionError(listed(f"rules {path} have {len(faults)} fault(s):", faults))
    return rules


def vary(pairs: str | Path, rules: Rules, reader: Reader, *, split: str | None = None) -> Varied:
    """Every pair of a JSON Lines file (of one split, if given) in every variant, checked as ``circuit.task`` checks.

    Raises:
        TaskError: the file cannot be read, there is no such split, or no base is left (with the reasons).
    """

    def variants(base: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [_rewritten(base, name, steps, reader) for name, steps in rules.items()]

    return varied(rows_of(pairs, split), variants, f"no pair of {pairs} is left in every variant:")


class Unfit(Exception):
    """Why a base cannot be put in one of the variants."""


def varied(
    bases: Sequence[Mapping[str, Any]],
    variants: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    headline: str,
) -> Varied:
    """All variants of every base that can be said in all of them.

    Raises:
        TaskError: there is none; ``headline`` and the reasons.
    """
    rows: list[Mapping[str, Any]] = []
    dropped: dict[str, list[str]] = {}
    for base in bases:
        try:
            rows += variants(base)
        except Unfit as fault:
            dropped.setdefault(str(fault), []).append(str(base["id"]))
    if not rows:
        reasons = [f"{len(ids)} × {reason} (such as {ids[0]})" for reason, ids in dropped.items()]
        raise TaskError(listed(headline, reasons))
    return Varied(tuple(rows), {reason: tuple(ids) for reason, ids in dropped.items()})


def _compiled(name: str, steps: Any, faults: list[str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    compiled = []
    for step in steps if isinstance(steps, list) else [steps]:
        if not (isinstance(step, list) and len(step) == 2 and all(isinstance(part, str) for part in step)):
            faults.append(f"{name}: expected a list of [pattern, replacement], got {cut(repr(step), 80)}")
            continue
        try:
            compiled.append((re.compile(step[0]), step[1]))
            compiled[-1][0].sub(step[1], "")
        except (re.error, IndexError, OverflowError, RecursionError) as error:
            faults.append(f"{name}: {step[0]!r} is no regular expression: {error}")
    return tuple(compiled)


def rows_of(pairs: str | Path | Sequence[Mapping[str, Any]], split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a pair file, or of pairs in memory, of one split if given, each with an id.

    Raises:
        TaskError: the file cannot be read, or there is no such split.
    """
    if isinstance(pairs, str | Path):
        rows = [{**item.pair.row, "id": item.pair.id} for item in load_items(pairs).items]
    else:
        rows = [dict(row) for row in pairs]
    bases = [row for row in rows if split in (None, row.get("split"))]
    if not bases:
        raise TaskError(f"pair file {pairs} has no pair{f' of split {split}' if split else ''}; check the file")
    return bases


def _rewritten(
    row: Mapping[str, Any], name: str, steps: Sequence[tuple[re.Pattern[str], str]], reader: Reader
) -> Mapping[str, Any]:
    return checked_row(row, name, tuple(_applied(row[side], name, steps) for side in ("clean", "corrupt")), reader)


def checked_row(row: Mapping[str, Any], name: str, prompts: tuple[str, ...], reader: Reader) -> Mapping[str, Any]:
    """The row with these prompts in place of its own, clean and corrupt.

    Raises:
        Unfit: they are not of equal length, or an answer is not one token there.
    """
    clean, corrupt = prompts
    ids = [token_ids(text, reader) for text in (clean, corrupt)]
    if len(ids[0]) != len(ids[1]):
        raise Unfit(f"{name}: prompts of unequal length")
    answers = [] if "forms" in row else [*row["answers"], *row["wrong_answers"], *row.get("candidates", ())]
    for text, tokens in zip((clean, corrupt), ids, strict=True):
        faults = prompt_faults(tokens, reader)
        for answer in dict.fromkeys(answers):
            answer_id(text, tokens, answer, reader, faults)
        if faults:
            raise Unfit(f"{name}: {faults[0]}")
    kept = {key: value for key, value in row.items() if key not in DROPPED_KEYS}
    kept |= {"orders_of": f"{row['orders_of']}/{name}"} if "orders_of" in row else {}
    return {**kept, "id": f"{row['id']}/{name}", "clean": clean, "corrupt": corrupt, "variant": name, "base": row["id"]}


def _applied(text: str, name: str, steps: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in steps:
        text, count = pattern.subn(replacement, text)
        if count != 1:
            raise Unfit(f"{name}: {pattern.pattern!r} is found {count} times, expected once")
    return text
