"""Why a pair collapses: the verdict, from its numbers and from thresholds that are fixed beforehand.

The rows of the table are tried in this order; the first that fits is the verdict.
"Below" is |D| < 2 sigma_0 (the floor stands for it where there are no paraphrases),
"one choice" is of all candidates. Without it nothing has collapsed, and there is no cause to find:

    not a preference    candidate mass too low under either persona
    reversed            D < 0 and not below
    no collapse         D not below, two choices
    cancellation        D below, one choice; kappa high, and one side alone would make a choice and is
                        stronger than in paraphrases
    weak or transient   D below, one choice; no more persona signal at the answer than of paraphrases, or D
                        limited by attention to the persona
    bottleneck          D below, one choice; more persona signal at the answer, eta no higher than by chance
    prior dominance     D not below, one choice, eta above chance
    undecided           all else

Where D is a signal but smaller than the floor, cancellation is asked before prior dominance, and bottleneck
after it: what cancels or blocks the persona shrinks the paraphrases with it.
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

__all__ = ["VERDICTS", "Null", "Numbers", "Thresholds", "Verdict", "judge", "load_thresholds"]

FORMAT = "persona-circuits/thresholds"
SHIPPED = "persona/explanation/thresholds.json"
THRESHOLDS = Kind("thresholds")
CAUSES = ("no collapse", "prior dominance", "cancellation", "weak or transient", "bottleneck")
VERDICTS = (*CAUSES, "not a preference", "reversed", "undecided")
SHARES = ("candidate_mass", "null_share", "cancellation", "majority", "ablated_share", "patched_layers")
FACTORS = ("gain_margin", "amplification")
LISTS = ("nearness", "patched_layers")


@dataclass(frozen=True)
class Thresholds:
    """Every number that a verdict or a causal test depends on; the file says why each. ``sha256`` is the file's."""

    candidate_mass: float
    null_sd: float
    null_share: float
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

    def aligned(self, chance: float, d_model: int) -> float:
        """The least eta that is high where random pairs of tokens have this root mean square.

        Where no other token is moved at all, as in models wired by hand, that of random directions stands for it.
        """
        return self.alignment_sd * (chance or 1 / math.sqrt(d_model))


@dataclass(frozen=True)
class Null:
    """What paraphrases of one persona do, ``n`` of them; the numbers are None where there are none.

    ``sigma_0`` is the spread of their D, ``signal_answer`` and ``stronger_side`` are the ``null_share`` quantiles
    of theirs.
    """

    n: int = 0
    sigma_0: float | None = None
    signal_answer: float | None = None
    stronger_side: float | None = None


@dataclass(frozen=True)
class Numbers:
    """What a verdict is made of. Logits, but for shares and ratios; None where a number cannot be known.

    ``null`` is the least |D| that is a signal, ``aligned`` the least eta that is high here, ``arrived`` the least
    signal at the answer and ``opposed`` the least stronger side that is more than paraphrases have;
    ``stronger_side`` is the sum of the contributions of one sign, the larger of the two.
    """

    divergence: float
    null: float
    mass: float
    one_choice: bool
    signal_persona: float
    signal_answer: float
    arrived: float
    access: float | None
    alignment: float
    aligned: float
    cancellation: float | None
    stronger_side: float | None
    opposed: float


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
        if not numbers.one_choice:
            return Verdict("undecided", f"|D| {abs(d):.2f} < {null:.2f}, but two choices: nothing collapses")
        return _lost(numbers, thresholds) or Verdict("undecided", f"|D| {abs(d):.2f} < {null:.2f}; no cause shows")
    if d < 0:
        return Verdict("reversed", f"D {d:+.2f} <= {-null:+.2f}")
    if not numbers.one_choice:
        return Verdict("no collapse", f"D {d:+.2f} >= {null:.2f}; two choices")
    small = d < thresholds.divergence_floor
    if small and (cause := _cancels(numbers, thresholds)):
        return cause
    eta = f"eta {numbers.alignment:.3f}"
    if numbers.alignment >= numbers.aligned:
        why = f"D {d:+.2f} >= {null:.2f}; one choice; {eta} >= {numbers.aligned:.3f}"
        return Verdict("prior dominance", why)
    if small and (cause := _blocked(numbers)):
        return cause
    why = f"D {d:+.2f} >= {null:.2f}; one choice; but {eta} < {numbers.aligned:.3f}"
    return Verdict("undecided", why)


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
    return Thresholds(**values, source=SHIPPED if path is None else str(path), sha256=hashlib.sha256(raw).hexdigest())


def _lost(numbers: Numbers, thresholds: Thresholds) -> Verdict | None:
    """Where the persona's effect went; the causes of a D that is below."""
    low = f"|D| {abs(numbers.divergence):.2f} < {numbers.null:.2f}"
    if cause := _cancels(numbers, thresholds):
        return cause
    if numbers.signal_answer < numbers.arrived:
        signal = f"signal at the answer {numbers.signal_answer:.2f} < {numbers.arrived:.2f}"
        return Verdict("weak or transient", f"{low}; {signal}")
    if _is_high(numbers.access, thresholds.access):
        return Verdict("weak or transient", f"{low}; access {numbers.access:.2f} >= {thresholds.access:g}")
    return _blocked(numbers)


def _cancels(numbers: Numbers, thresholds: Thresholds) -> Verdict | None:
    strong = _is_high(numbers.stronger_side, numbers.opposed)
    if not (strong and _is_high(numbers.cancellation, thresholds.cancellation)):
        return None
    side = f"one side {numbers.stronger_side:.2f} >= {numbers.opposed:.2f}"
    return Verdict("cancellation", f"kappa {numbers.cancellation:.2f} >= {thresholds.cancellation:g}; {side}")


def _blocked(numbers: Numbers) -> Verdict | None:
    if numbers.signal_answer < numbers.arrived or numbers.alignment >= numbers.aligned:
        return None
    signal = f"signal at the answer {numbers.signal_answer:.2f} >= {numbers.arrived:.2f}"
    return Verdict("bottleneck", f"{signal}; eta {numbers.alignment:.3f} < {numbers.aligned:.3f}")


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
