"""Calibrations as files, JSON: thresholds that were set once on controls, and are read for every later run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError, listed
from persona_circuits.circuit.storage import (
    Kind,
    decoded,
    is_number,
    is_texts,
    is_whole,
    json_of,
    read_bytes,
    write_json,
)
from persona_circuits.persona.explanation.calibration import CLAIMS, Calibration, Cut, Rate
from persona_circuits.persona.explanation.verdicts import Null

__all__ = ["calibration_record", "load_calibration", "write_calibration"]

FORMAT = "persona-circuits/calibration"
CALIBRATION = Kind("calibration")
NULLS = ("sigma_0", "signal_answer", "stronger_side")
SHARES = ("rate", "promise")
LIMITS = ("share", "lower", "upper")


def write_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write it, to be read by ``load_calibration``.

    Raises:
        FileError: the file cannot be written.
    """
    write_json(calibration_record(calibration), path)


def calibration_record(calibration: Calibration) -> dict[str, Any]:
    """Everything but where it was read from."""
    record = {name: value for name, value in asdict(calibration).items() if name not in ("source", "sha256")}
    return {"format": FORMAT, "version": 1} | record


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration.

    Raises:
        FileError: it cannot be read, or something in it is missing or not what it should be; all faults are listed.
    """
    raw = read_bytes(path, CALIBRATION)
    record = json_of(decoded(raw, path, CALIBRATION), path, CALIBRATION)
    if faults := _faults(record):
        raise FileError(listed(f"calibration {path} has {len(faults)} fault(s):", faults))
    return Calibration(
        fingerprint=record["fingerprint"],
        thresholds=record["thresholds"],
        average=record["average"],
        causal=record["causal"],
        null=Null(**{name: record["null"][name] for name in ("n", *NULLS)}),
        cuts={name: Cut(**{key: record["cuts"][name][key] for key in Cut.__dataclass_fields__}) for name in CLAIMS},
        training=tuple(record["training"]),
        held_out=tuple(Rate(**{key: rate[key] for key in Rate.__dataclass_fields__}) for rate in record["held_out"]),
        withheld=tuple(record["withheld"]),
        source=str(path),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _faults(record: Any) -> list[str]:
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        return [f'expected an object with "format": "{FORMAT}"']
    faults = [f"{name!r} must be text" for name in ("fingerprint", "thresholds") if not is_texts([record.get(name)])]
    faults += [
        f"{name!r} must be true or false" for name in ("average", "causal") if not isinstance(record.get(name), bool)
    ]
    faults += [f"{name!r} must be a list of text" for name in ("training", "withheld") if not _texts(record.get(name))]
    null, cuts, rates = (record.get(name) for name in ("null", "cuts", "held_out"))
    if not isinstance(null, Mapping) or not is_whole(null.get("n")) or not _all(null, NULLS, _number_or_none):
        faults.append(f"'null' must hold a whole number n, and {', '.join(NULLS)}, numbers from 0 on or null")
    if not isinstance(cuts, Mapping):
        return [*faults, "'cuts' must be an object of cuts by verdict"]
    missing = [name for name in CLAIMS if not _cut(cuts, name)]
    faults += [f"'cuts' must have {name!r}: least, rate, promise, n, clusters" for name in missing]
    if not isinstance(rates, list) or not all(map(_is_rate, rates)):
        faults.append("'held_out' must be a list of rates: verdict, kind, pairs, n, clusters, share, lower, upper")
    return faults


def _cut(cuts: Mapping[str, Any], name: str) -> bool:
    cut = cuts.get(name)
    return (
        isinstance(cut, Mapping)
        and _all(cut, ("least",), _number_or_none)
        and _all(cut, SHARES, _share)
        and _all(cut, ("n", "clusters"), is_whole)
    )


def _is_rate(rate: Any) -> bool:
    return (
        isinstance(rate, Mapping)
        and rate.get("verdict") in CLAIMS
        and is_texts([rate.get("kind")])
        and _all(rate, ("pairs", "n", "clusters"), is_whole)
        and _all(rate, LIMITS, _share)
    )


def _all(values: Mapping[str, Any], names: tuple[str, ...], fits: Any) -> bool:
    return all(name in values and fits(values[name]) for name in names)


def _number_or_none(value: Any) -> bool:
    return value is None or (is_number(value) and value >= 0)


def _share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _texts(value: Any) -> bool:
    return isinstance(value, list) and (not value or is_texts(value))
