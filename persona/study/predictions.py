"""Predictions that were written down before a study, held against its numbers.

A plan is a JSON list:

    {"id": "H1.a", "says": "…", "number": "behaviour.all.collapse", "is": ">=", "value": 0.5, "else": "refuted"}
    {"id": "H1.b", "says": "…", "all": [{"number": …, "is": …, "value": …}, …]}

    >=, <=, between          the number itself: supported, or what ``else`` says (refuted if it says nothing)
    interval above, below    the whole 95 % interval lies on that side: supported; all of it on the other side: what
                             ``else`` says; across: undecided
    interval within          the interval lies in [low, high]; all of it outside: what ``else`` says; across: undecided
    p below                  p, corrected where there is a correction, is below the value: supported, else undecided

Of several conditions one that is refuted refutes. Else, where a number is absent, or has no interval or p that is
asked for, the prediction is not tested; else one condition that is undecided leaves it open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError, listed
from persona_circuits.circuit.figures import plain
from persona_circuits.circuit.storage import Kind, decoded, json_of, read_bytes
from persona_circuits.persona.study.numbers import Number

__all__ = ["Outcome", "Plan", "load_plan", "outcome_records", "outcomes"]

SUPPORTED, REFUTED, UNDECIDED, NOT_TESTED = OUTCOMES = ("supported", "refuted", "undecided", "not tested")
PLAN = Kind("plan")
ONE = (">=", "<=", "interval above", "interval below", "p below")
TWO = ("between", "interval within")
CONDITION: dict[str, Any] = {
    "number": {"type": "string", "minLength": 1},
    "is": {"enum": [*ONE, *TWO]},
    "value": {
        "anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}]
    },
}
SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["id", "says"],
        "properties": {
            "id": {"type": "string", "minLength": 1},
            "says": {"type": "string", "minLength": 1},
            "else": {"enum": [REFUTED, UNDECIDED]},
            "all": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": list(CONDITION),
                    "properties": CONDITION,
                    "additionalProperties": False,
                },
            },
            **CONDITION,
        },
        "oneOf": [{"required": ["all"], "not": {"anyOf": [{"required": [key]} for key in CONDITION]}},
                  {"required": list(CONDITION), "not": {"required": ["all"]}}],
        "additionalProperties": False,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """What one number is to be; ``value`` is a number or, for ``TWO``, the two ends."""

    number: str
    is_: str
    value: tuple[float, ...]


@dataclass(frozen=True)
class Prediction:
    """A prediction with all of its conditions; ``otherwise`` is what a miss counts as."""

    id: str
    says: str
    conditions: tuple[Condition, ...]
    otherwise: str


@dataclass(frozen=True)
class Plan:
    """The predictions of a file, in its order; ``sha256`` is the file's."""

    predictions: tuple[Prediction, ...]
    source: str
    sha256: str


@dataclass(frozen=True)
class Outcome:
    """What came of a prediction, and the numbers that decided it in words, a part per condition."""

    id: str
    says: str
    outcome: str
    why: tuple[str, ...]


def load_plan(path: str | Path, *, label: str | None = None) -> Plan:
    """Read a plan; ``label`` is what results call it, if not ``path``.

    Raises:
        FileError: it cannot be read, or a prediction is malformed; all faults are named with their places.
    """
    name = label or str(path)
    raw = read_bytes(path, PLAN, label=name)
    content = json_of(decoded(raw, name, PLAN), name, PLAN)
    if faults := _faults(content):
        raise FileError(listed(f"plan {name} has {len(faults)} fault(s):", faults))
    return Plan(tuple(_prediction(row) for row in content), name, hashlib.sha256(raw).hexdigest())


def outcomes(plan: Plan, numbers: Mapping[str, Number]) -> tuple[Outcome, ...]:
    """What the numbers say of every prediction, in the plan's order."""
    return tuple(_outcome(prediction, numbers) for prediction in plan.predictions)


def outcome_records(plan: Plan, found: Sequence[Outcome]) -> dict[str, Any]:
    """A plan with its outcomes as plain values."""
    counts = {name: sum(outcome.outcome == name for outcome in found) for name in OUTCOMES}
    return plain({"source": plan.source, "sha256": plan.sha256, "counts": counts, "predictions": [
        asdict(outcome) for outcome in found]})  # fmt: skip


def _faults(content: Any) -> list[str]:
    from jsonschema import Draft202012Validator

    faults = []
    for error in sorted(Draft202012Validator(SCHEMA).iter_errors(content), key=lambda e: [str(p) for p in e.path]):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        says = error.message[:200]
        if error.validator == "oneOf":
            says = "give either number, is and value, or all, a list of such conditions"
        faults.append(f"{place.lstrip('.') or 'file'}: {says}")
    if faults:
        return faults
    for i, row in enumerate(content):
        for condition in row.get("all", [row]):
            faults += [f"[{i}] ({row['id']}): {fault}" for fault in _value_faults(condition)]
    names = [row["id"] for row in content]
    faults += [f"id {name!r} stands there {names.count(name)} times" for name in dict.fromkeys(names)
               if names.count(name) > 1]  # fmt: skip
    return faults


def _value_faults(condition: Mapping[str, Any]) -> list[str]:
    kind, value = condition["is"], condition["value"]
    if kind in TWO:
        good = isinstance(value, list) and value[0] <= value[1]
        return [] if good else [f"{kind!r} needs a value [low, high], got {value}"]
    return [f"{kind!r} needs one number, got {value}"] if isinstance(value, list) else []


def _prediction(row: Mapping[str, Any]) -> Prediction:
    conditions = tuple(_condition(condition) for condition in row.get("all", [row]))
    return Prediction(row["id"], row["says"], conditions, row.get("else", REFUTED))


def _condition(row: Mapping[str, Any]) -> Condition:
    value = row["value"]
    ends = value if isinstance(value, list) else [value]
    return Condition(row["number"], row["is"], tuple(float(end) for end in ends))


def _outcome(prediction: Prediction, numbers: Mapping[str, Number]) -> Outcome:
    judged = [_judged(condition, numbers, prediction.otherwise) for condition in prediction.conditions]
    names = [outcome for outcome, _ in judged]
    decided = next((name for name in (REFUTED, NOT_TESTED, UNDECIDED) if name in names), SUPPORTED)
    return Outcome(prediction.id, prediction.says, decided, tuple(why for _, why in judged))


def _judged(condition: Condition, numbers: Mapping[str, Number], otherwise: str) -> tuple[str, str]:
    number = numbers.get(condition.number)
    wanted = f"{condition.is_} {' to '.join(f'{value:g}' for value in condition.value)}"
    if number is None:
        return NOT_TESTED, f"{condition.number} is absent; wanted: {wanted}"
    shown = f"{condition.number} = {number.value:.4g}"
    if condition.is_ == "p below":
        p = number.p if number.p_holm is None else number.p_holm
        if p is None:
            return NOT_TESTED, f"{shown} has no p; wanted: {wanted}"
        return SUPPORTED if p < condition.value[0] else UNDECIDED, f"{shown}, p {p:.3g}; wanted: {wanted}"
    if not condition.is_.startswith("interval"):
        return SUPPORTED if _holds(condition, number.value) else otherwise, f"{shown}; wanted: {wanted}"
    if number.low is None or number.high is None:
        return NOT_TESTED, f"{shown} has no interval; wanted: {wanted}"
    shown = f"{shown} ({number.low:.4g} to {number.high:.4g})"
    return _of_interval(condition, number.low, number.high, otherwise), f"{shown}; wanted: {wanted}"


def _holds(condition: Condition, value: float) -> bool:
    first, last = condition.value[0], condition.value[-1]
    return {">=": value >= first, "<=": value <= first, "between": first <= value <= last}[condition.is_]


def _of_interval(condition: Condition, low: float, high: float, otherwise: str) -> str:
    first, last = condition.value[0], condition.value[-1]
    inside = {"interval above": low > first, "interval below": high < first,
              "interval within": first <= low and high <= last}[condition.is_]  # fmt: skip
    outside = {"interval above": high <= first, "interval below": low >= first,
               "interval within": high < first or low > last}[condition.is_]  # fmt: skip
    return SUPPORTED if inside else otherwise if outside else UNDECIDED
