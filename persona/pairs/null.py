"""Pairs in which there is nothing to find: two paraphrases of one persona, asked what an actual pair is asked.

Question, template, filler and answers are those of the actual pair, one paraphrase is its own where
that is possible. The persona is A's and B's in turn. Of each pair come two null pairs: one of equal
token length, whose divergence is the paraphrase null, and with ``right`` one of unequal length: as
unequal as the pair itself, or as another one of the file where the pair is equal, or by chance where
all are. A wording that the source sets aside is left out: a model that does not know it would not give a null.
No two null pairs ask the same prompts for the same answers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, permutations
from typing import Any

from persona_circuits.persona.data import Persona
from persona_circuits.persona.pairs.forms import usable
from persona_circuits.persona.pairs.matching import Case, Drop, Setting, check_sides, pair_row

__all__ = ["Made", "NullPairs", "length_differences", "null_pairs"]

KINDS = ("equal", "unequal")


@dataclass(frozen=True)
class Made:
    """An actual pair: what it was made of, and its row."""

    case: Case
    row: Mapping[str, Any]


@dataclass(frozen=True)
class NullPairs:
    """The rows; for how many pairs there was none of a kind; and the personas that never had one, by the reason."""

    rows: tuple[dict[str, Any], ...]
    missing: Mapping[str, int]
    personas: Mapping[str, tuple[str, ...]]

    def about(self) -> dict[str, Any]:
        """What a report says of them."""
        counts = {kind: sum(row["unequal"] == (kind == "unequal") for row in self.rows) for kind in KINDS}
        return {
            "pairs": len(self.rows),
            **counts,
            "by_tokens": length_differences(self.rows),
            "pairs_without": dict(self.missing),
            "personas_without": {why: list(names) for why, names in self.personas.items()},
        }


def null_pairs(pairs: Sequence[Made], setting: Setting) -> NullPairs:
    """The null pairs of these pairs; none at all where no persona has two paraphrases that fit."""
    kinds = KINDS if setting.align == "right" else KINDS[:1]
    gaps = cycle([known for pair in pairs if (known := _gap(pair.row))] or [None])
    log = _Log()
    turns = {name: turn for turn, name in enumerate(dict.fromkeys(map(_asked, pairs)))}
    for pair in pairs:
        turn = turns[_asked(pair)]
        for kind in kinds:
            gap: int | None = 0 if kind == "equal" else _gap(pair.row) or next(gaps)
            drawn = _drawn(pair, turn, gap, kind, setting)
            if not any(log.take(persona, kind, rows) for persona, rows in drawn):
                log.missing[kind] = log.missing.get(kind, 0) + 1
    return NullPairs(tuple(log.rows), log.missing, _without(pairs, kinds, log))


def _asked(pair: Made) -> tuple[str, ...]:
    """What all variants of a pair have in common: their null pairs are of one and the same persona."""
    names = (str(pair.row.get(name, "")) for name in ("persona_a", "persona_b", "question", "template", "split"))
    return tuple(names)


def _base(pair: Made) -> str:
    """The pair's id, whatever the order of its options: all orders of a pair have the same null pairs."""
    return str(pair.row.get("orders_of", pair.row["id"]))


def length_differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows differ by how many tokens, from little to much; those of equal length are not counted."""
    gaps = sorted(abs(gap) for row in rows if (gap := _gap(row)))
    return {str(gap): gaps.count(gap) for gap in dict.fromkeys(gaps)}


def _gap(row: Mapping[str, Any]) -> int:
    """How many tokens ``corrupt`` is longer than ``clean``."""
    return row.get("n_tokens_corrupt", row["n_tokens"]) - row["n_tokens"]


@dataclass
class _Log:
    """The null pairs so far, and which personas gave some; the only mutable state here."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    has_pairs: dict[tuple[str, str], bool] = field(default_factory=dict)
    _known: set[frozenset[str]] = field(default_factory=set)

    def take(self, persona: Persona, kind: str, rows: Iterator[dict[str, Any]]) -> bool:
        """Take the first of these rows that there is not yet; whether there was one."""
        for row in rows:
            key = frozenset((row["clean"], row["corrupt"], row["answers"][0], row["wrong_answers"][0]))
            if key not in self._known:
                self._known.add(key)
                self.rows.append(row)
                self.has_pairs[persona.name, kind] = True
                return True
        self.has_pairs.setdefault((persona.name, kind), False)
        return False


def _without(pairs: Sequence[Made], kinds: Sequence[str], log: _Log) -> dict[str, tuple[str, ...]]:
    """The personas that were asked for null pairs and have no paraphrases for them, by what they lack."""
    met = {persona.name: len(persona.wordings) for pair in pairs for persona in (pair.case.a, pair.case.b)}
    lacking = {"a second paraphrase": tuple(name for name, n in met.items() if n < 2)}
    for kind in kinds:
        never = (name for name, n in met.items() if n > 1 and log.has_pairs.get((name, kind)) is False)
        lacking[f"two paraphrases of {kind} length"] = tuple(never)
    return {what: names for what, names in lacking.items() if names}


def _drawn(
    pair: Made, turn: int, gap: int | None, kind: str, setting: Setting
) -> Iterator[tuple[Persona, Iterator[dict[str, Any]]]]:
    """For either persona of an actual pair, whose turn it is first, the null pairs that it allows, the best first."""
    used = ((pair.case.a, pair.row["wording_a"]), (pair.case.b, pair.row["wording_b"]))
    for persona, wording in used[:: -1 if turn % 2 else 1]:
        case = replace(pair.case, a=persona, b=persona)
        rng = random.Random(f"{setting.seed}/null/{_base(pair)}/{kind}/{persona.name}")
        yield persona, _rows(pair, case, _paraphrases(case, wording, gap, kind, setting, rng), kind, setting)


def _paraphrases(
    case: Case, own: int, gap: int | None, kind: str, setting: Setting, rng: random.Random
) -> list[tuple[int, int]]:
    """Places of two paraphrases whose prompts differ in length about as much as wanted, the best first."""
    lengths = [len(setting.side(case, text)[1].ids) for text in case.a.wordings]
    leaking = [bool(case.leaks(text)) for text in case.a.wordings]

    def cost(two: tuple[int, int]) -> tuple[Any, ...]:
        i, j = two
        off = 0 if gap is None else abs(lengths[j] - lengths[i] - gap)
        return leaking[i] or leaking[j], off, own not in two, rng.random()

    usable = [i for i, leaks in enumerate(leaking) if i != case.a.held_out and not (leaks and setting.leaks == "drop")]
    places = [(i, j) for i, j in permutations(usable, 2) if (lengths[i] == lengths[j]) == (kind == "equal")]
    return sorted(places, key=cost)


def _rows(
    pair: Made, case: Case, choices: Sequence[tuple[int, int]], kind: str, setting: Setting
) -> Iterator[dict[str, Any]]:
    for places in choices:
        row = _row(pair, case, places, kind, setting)
        if row is not None:
            yield row


def _row(pair: Made, case: Case, places: tuple[int, int], kind: str, setting: Setting) -> dict[str, Any] | None:
    """The null pair, None where a prompt has a fault or an answer of the actual pair is none here."""
    first, second = (setting.side(case, text) for text in case.texts(places))
    try:
        check_sides((first, second), setting)
    except Drop:
        return None
    answers = pair.row["answers"][0], pair.row["wrong_answers"][0]
    candidates = usable((first, second), [text.strip() for text in pair.row["candidates"]], case, setting)
    if not all(answer in candidates.ids for answer in answers):
        return None
    leaked = dict.fromkeys(option for text in case.texts(places) for option in case.leaks(text))
    row = pair_row(case, places, (first, second), answers, list(candidates.ids), list(leaked), align=setting.align)
    split = {"split": pair.row["split"]} if "split" in pair.row else {}
    name = f"{_base(pair)}/{case.a.name}/{kind}"
    own = {"id": name, "control": "paraphrase", "unequal": kind == "unequal"} | case.about_order(
        name, row.get("options", ())
    )
    return row | own | split | candidates.key()
