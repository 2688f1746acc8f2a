"""Why a pair collapses: the verdict, from its numbers and from thresholds that are fixed beforehand.

The rows of the table are asked in this order, the first that fits is the verdict.
"Below" is |D| < 2 sigma_0 (the floor stands for it where there are no paraphrases),
"one choice" is of all candidates:

    not a preference    candidate mass too low under either persona
    reversed            D < 0 and not below
    no collapse         D not below, two choices
    prior dominance     D not below, one choice, eta high, kappa low
    cancellation        kappa high, and the stronger side alone would make a choice
    weak or transient   little persona signal at the answer, or D limited by attention to the persona
    bottleneck          persona signal at the answer, eta low
    undecided           all else

The last three causes are of a D that is below. Where D is a signal but smaller than the
floor, and prior dominance is ruled out by kappa or eta, cancellation and bottleneck are
asked as well: what cancels or blocks the persona shrinks the paraphrases with it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError, listed
from persona_circuits.circuit.storage import Kind, decoded, is_number, json_of, read_bytes

__all__ = [
    "VERDICTS",
    "Numbers",
    "Thresholds",
    "Verdict",
    "judge",
    "load_thresholds",
]

FORMAT = "persona-circuits/thresholds"
SHIPPED = "persona/explanation/thresholds.json"
THRESHOLDS = Kind("thresholds")
CAUSES = ("no collapse", "prior dominance", "cancellation", "weak or transient", "bottleneck")
VERDICTS = (*CAUSES, "not a preference", "reversed", "undecided")
SHARES = ("candidate_mass", "cancellation", "majority", "ablated_share", "patched_layers")
FACTORS = ("gain_margin", "amplification")
LISTS = ("nearness", "patched_layers")


@dataclass(frozen=True)
class Thresholds:
    """Every number that a verdict or a causal test depends on; the file says why each. ``sha256`` is the file's."""

    candidate_mass: float
    null_sd: float
    divergence_floor: float
    signal: float
    access: float
    alignment_sd: float
    cancellation: float
    conservation: float
    majority: float
    gain_margin: float
    nearness: tuple[float, ...]
    amplification: float
    ablated_share: float
    patched_layers: tuple[float, ...]
    source: str
    sha256: str

    def null(self, sigma_0: float | None) -> float:
        """The least |D| that is a signal, in logits."""
        return self.divergence_floor if sigma_0 is None else self.null_sd * sigma_0

    def restored(self, sigma_0: float | None) -> float:
        """The least D that a causal test has to bring about, in logits."""
        return max(self.divergence_floor, self.null(sigma_0))

    def aligned(self, d_model: int) -> float:
        """The least eta that is high in a stream of this width."""
        return self.alignment_sd / math.sqrt(d_model)


@dataclass(frozen=True)
class Numbers:
    """What a verdict is made of. Logits, but for shares and ratios; None where a number cannot be known.

    ``null`` is the least |D| that is a signal and ``aligned`` the least eta that is high
    here; ``stronger_side`` is the sum of the contributions of one sign, the larger of the two.
    """

    divergence: float
    null: float
    mass: float
    one_choice: bool
    signal_persona: float
    signal_answer: float
    access: float | None
    alignment: float
    aligned: float
    cancellation: float | None
    stronger_side: float | None


@dataclass(frozen=True)
class Verdict:
    """One of ``VERDICTS``, and the numbers that decided it in words."""

    name: str
    why: str


def judge(numbers: Numbers, thresholds: Thresholds) -> Verdict:
    """The first row of the table that fits."""
    d, null = numbers.divergence, numbers.null
    if numbers.mass < thresholds.candidate_mass:
        return Verdict("not a preference", f"candidate mass {numbers.mass:.2f} < {thresholds.candidate_mass:g}")
    if abs(d) < null:
        return _lost(numbers, thresholds) or Verdict("undecided", f"|D| {abs(d):.2f} < {null:.2f}; no cause shows")
    if d < 0:
        return Verdict("reversed", f"D {d:+.2f} <= {-null:+.2f}")
    if not numbers.one_choice:
        return Verdict("no collapse", f"D {d:+.2f} >= {null:.2f}; two choices")
    cancels = _cancels(numbers, thresholds)
    if numbers.alignment >= numbers.aligned and not _is_high(numbers.cancellation, thresholds.cancellation):
        return Verdict("prior dominance", f"D {d:+.2f} >= {null:.2f}; one choice; eta {numbers.alignment:.2f}")
    if d < thresholds.divergence_floor:
        found = cancels or _blocked(numbers, thresholds)
        if found is not None:
            return found
    return Verdict("undecided", f"D {d:+.2f} >= {null:.2f}; one choice; but {_odd(numbers)}")


def load_thresholds(path: str | Path | None = None) -> Thresholds:
    """Read a file of thresholds; without a path the one that is shipped.

    Raises:
        FileError: it cannot be read, or a threshold is missing, unknown, without a reason or out of range;
            all faults are listed.
    """
    where = Path(__file__).with_name("thresholds.json") if path is None else Path(path)
    raw = read_bytes(where, THRESHOLDS)
    record = json_of(decoded(raw, where, THRESHOLDS), where, THRESHOLDS)
    faults = _faults(record)
    if faults:
        raise FileError(listed(f"thresholds {where} has {len(faults)} fault(s):", faults))
    given = {name: entry["value"] for name, entry in record["thresholds"].items()}
    values: dict[str, Any] = {
        name: tuple(map(float, value)) if isinstance(value, list) else float(value) for name, value in given.items()
    }
    return Thresholds(
        **values,
        source=SHIPPED if path is None else str(path),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _lost(numbers: Numbers, thresholds: Thresholds) -> Verdict | None:
    """Where the persona's effect went; the causes of a D that is below."""
    low = f"|D| {abs(numbers.divergence):.2f} < {numbers.null:.2f}"
    if found := _cancels(numbers, thresholds):
        return found
    if min(numbers.signal_persona, numbers.signal_answer) < thresholds.signal:
        where = "at the persona" if numbers.signal_persona < thresholds.signal else "at the answer"
        least = min(numbers.signal_persona, numbers.signal_answer)
        return Verdict("weak or transient", f"{low}; signal {where} {least:.2f} < {thresholds.signal:g}")
    if _is_high(numbers.access, thresholds.access):
        return Verdict("weak or transient", f"{low}; access {numbers.access:.2f} >= {thresholds.access:g}")
    return _blocked(numbers, thresholds)


def _cancels(numbers: Numbers, thresholds: Thresholds) -> Verdict | None:
    strong = _is_high(numbers.stronger_side, thresholds.divergence_floor)
    if not (strong and _is_high(numbers.cancellation, thresholds.cancellation)):
        return None
    why = f"kappa {numbers.cancellation:.2f} >= {thresholds.cancellation:g}; one side {numbers.stronger_side:.2f}"
    return Verdict("cancellation", why)


def _blocked(numbers: Numbers, thresholds: Thresholds) -> Verdict | None:
    if numbers.signal_answer < thresholds.signal or numbers.alignment >= numbers.aligned:
        return None
    why = f"signal at the answer {numbers.signal_answer:.2f}; eta {numbers.alignment:.2f} < {numbers.aligned:.2f}"
    return Verdict("bottleneck", why)


def _odd(numbers: Numbers) -> str:
    """What speaks against prior dominance."""
    if numbers.alignment < numbers.aligned:
        return f"eta {numbers.alignment:.2f} < {numbers.aligned:.2f}"
    return f"kappa {numbers.cancellation:.2f}"


def _is_high(value: float | None, least: float) -> bool:
    """An unknown number is not high."""
    return value is not None and value >= least


def _faults(record: Any) -> list[str]:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return [f'expected an object with "format": "{FORMAT}"']
    given = record.get("thresholds")
    if not isinstance(given, dict):
        return ['\'thresholds\' must be an object of {"value": …, "why": …} by name']
    known = [name for name in Thresholds.__dataclass_fields__ if name not in ("source", "sha256")]
    faults = [f"{name!r} is missing" for name in known if name not in given]
    faults += [f"{name!r} is not a threshold; known are {', '.join(known)}" for name in given if name not in known]
    return faults + [fault for name in known if name in given for fault in _entry_faults(name, given[name])]


def _entry_faults(name: str, entry: Any) -> list[str]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("why"), str) or not entry["why"].strip():
        return [f"{name!r} must be an object with 'value' and the reason for it, 'why'"]
    value: Any = entry.get("value")
    if (name in LISTS) != isinstance(value, list):
        return [f"{name!r} is {value!r}; expected {'a list of numbers' if name in LISTS else 'a number'} above 0"]
    values = value if isinstance(value, list) else [value]
    if not values or not all(map(_is_positive, values)):
        return [f"{name!r} is {value!r}; expected {'numbers' if name in LISTS else 'a number'} above 0"]
    if name in SHARES and max(values) > 1:
        return [f"{name!r} is {value!r}; a share is at most 1"]
    if name in FACTORS and min(values) <= 1:
        return [f"{name!r} is {value!r}; it must be above 1"]
    return []


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0
