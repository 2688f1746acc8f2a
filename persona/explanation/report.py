"""Explanations as files and as rows of tables.

explain.json           everything, with what it was made from: every threshold, and its file's SHA-256
pairs.csv              a line per pair, controls after the study's own
groups.csv             a line per group
rates.csv              how often controls have each verdict, a line per verdict and kind of controls
confusion.csv          expected classes by verdicts, where the rows say how they were generated
explain.html, *.png    the figures
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from persona_circuits.circuit.figures import picked, plain, write_csv
from persona_circuits.circuit.storage import write_json
from persona_circuits.persona.data import drawn_over
from persona_circuits.persona.data.items import shared_by
from persona_circuits.persona.explanation.calibration import CLAIMS, STRENGTHS, Cut
from persona_circuits.persona.explanation.calibration_file import calibration_record
from persona_circuits.persona.explanation.figures import write_explain_figures
from persona_circuits.persona.explanation.groups import Explained, Group
from persona_circuits.persona.explanation.inside import PLACES, Inside
from persona_circuits.persona.explanation.study import Explanation
from persona_circuits.persona.explanation.verdicts import VERDICTS

__all__ = [
    "TESTED",
    "confusion_rows",
    "explain_record",
    "group_rows",
    "rate_table",
    "table_columns",
    "test_rows",
    "write_explanation",
]

FORMAT = "persona-circuits/explain"
NUMBERS = ("n", "D", "|b|", "gain", "signal", "eta", "kappa", "mass", "test; paraphrases")
TESTED = ("cause", "test", "agrees on pairs", "with random nodes", "on paraphrases", "p")
STRONGEST = 5
KEYS = ("domain", "contrast", "bias", "placement", "prior_level", "held_out")


def write_explanation(found: Explanation, folder: str | Path) -> None:
    """Write all files into ``folder``, which must exist.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    folder = Path(folder)
    record = explain_record(found)
    write_json(record, folder / "explain.json")
    write_csv([_line(row) for row in record["pairs"]], folder / "pairs.csv")
    write_csv(record["groups"], folder / "groups.csv")
    if record["rates"]:
        write_csv(record["rates"], folder / "rates.csv")
    if found.agreement is not None:
        write_csv([{"expected": name, **row} for name, row in found.agreement.table.items()], folder / "confusion.csv")
    write_explain_figures(found, folder)


def explain_record(found: Explanation) -> dict[str, Any]:
    """Everything that was found, as plain values for JSON."""
    thresholds = asdict(found.thresholds)
    about = {"source": thresholds.pop("source"), "sha256": thresholds.pop("sha256"), "values": thresholds}
    return plain(
        {
            "format": FORMAT,
            "version": 1,
            "model": {"name": found.model, "fingerprint": found.fingerprint},
            "sources": [{"source": source, "sha256": sha256} for source, sha256 in found.sources],
            "options": asdict(found.options),
            "thresholds": about,
            **picked(found, "null", "tests", "rates"),
            "calibration": None if found.calibration is None else calibration_record(found.calibration),
            "notes": found.notes,
            "resampled": drawn_over(*shared_by([row.item for row in found.pairs])),
            "agreement": found.agreement,
            "groups": [
                {"headline": group.headline, **asdict(group)}
                for group in (found.overall, *found.groups, *found.controls)
            ],
            "pairs": [_pair(row, found.nodes) for row in (*found.pairs, *found.control_pairs)],
        }
    )


def table_columns(by: str) -> tuple[str, ...]:
    """The columns of ``group_rows`` for groups by this key."""
    return (by, "verdict", *NUMBERS)


def group_rows(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """A row per group: means, but the median gain. ``signal`` is at the persona and at the answer.

    The verdict is ``unconfirmed`` where its own causal test does not bear it out. ``eta`` is beside
    what is high there. ``test`` counts the causal tests that agree, of those that were run, and the share of
    paraphrases on which the same tests do.
    """
    return [_table_row(group) for group in groups]


def test_rows(found: Explanation) -> list[tuple[str, ...]]:
    """A row per causal test that was run on the study's pairs, columns as in ``TESTED``."""
    return [
        (
            test.cause,
            test.test,
            f"{test.agree} of {test.ran}",
            "" if test.random_share is None else f"{test.random_share:.0%}",
            f"{test.null_agree} of {test.null_ran}" if test.null_ran else "none given",
            "" if test.p is None else f"{test.p:.2g}",
        )
        for test in found.tests.values()
        if test.ran
    ]


def rate_table(found: Explanation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """How often controls have each verdict, columns and rows: with a calibration those that it was not set on.

    Rates are means over persona pairs, ``at most`` is the upper limit of 95 %. ``promise`` is the most that holds for
    a further persona pair like those that the calibration was set on.
    """
    calibration, rows = found.calibration, []
    kinds = [rate.kind for rate in found.rates if rate.verdict == CLAIMS[0]]
    for name in CLAIMS if found.rates or calibration else ():
        own = {rate.kind: rate for rate in found.rates if rate.verdict == name}
        rows.append(
            (
                name if calibration is None or calibration.gives(name) else f"{name}: not given",
                *(() if calibration is None else _cut_cells(name, calibration.cuts[name])),
                *(f"{own[kind].pairs} of {own[kind].n}" for kind in kinds),
                *((f"{own['all'].share:.3f}", f"{own['all'].upper:.3f}") if own else ()),
            )
        )
    promised, rated = ("from", "promise") if calibration else (), ("rate", "at most") if kinds else ()
    return ("verdict", *promised, *kinds, *rated), rows


def _cut_cells(name: str, cut: Cut) -> tuple[str, str]:
    least = "" if cut.least is None else f"{STRENGTHS[name][0]} {cut.least:.2f}"
    return least, f"{cut.promise:.3f} of {cut.clusters}"


def confusion_rows(found: Explanation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row per verdict, a column per expected class; nothing where nothing is expected."""
    if found.agreement is None:
        return (), []
    table = found.agreement.table
    names = [name for name in VERDICTS if any(name in row for row in table.values())]
    return ("verdict", *table), [(name, *(str(row.get(name, 0)) for row in table.values())) for name in names]


def _table_row(group: Group) -> tuple[str, ...]:
    ran = group.agree + group.disagree
    share = "" if group.n == 1 else f" {group.share:.0%}"
    shown = group.verdict + share
    alike = "" if group.null_agree is None else f"; {group.null_agree:.0%}"
    return (
        group.value,
        shown if group.confirmed is not False else f"{group.headline} ({shown})",
        str(group.n),
        f"{group.divergence.value:+.2f}",
        f"{group.prior:.2f}",
        _short(group.flip_gain),
        f"{group.signal_persona:.2f}, {group.signal_answer:.2f}",
        f"{group.alignment:.3f}, {group.aligned:.3f}",
        _short(group.cancellation),
        f"{group.mass:.2f}",
        f"{group.agree} of {ran}{alike}" if ran else "",
    )


def _short(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "" if value is None else "inf"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _pair(row: Explained, nodes: Sequence[str]) -> dict[str, Any]:
    pair, measure, inside = row.item.pair, row.measure, row.inside
    return {
        "id": pair.id,
        "line": pair.line,
        "question": row.item.question,
        **picked(pair, "persona_a", "persona_b", "split"),
        "control": row.item.control,
        **{key: row.label(key) for key in KEYS},
        "verdict": row.verdict.name,
        "why": row.verdict.why,
        "expected": row.expected,
        "test": row.outcome.test,
        "agrees": row.outcome.agrees,
        "test_found": row.outcome.why,
        "test_numbers": row.outcome.says,
        "divergence": measure.divergence,
        "null": row.numbers.null,
        **picked(measure, "prior", "required_gain"),
        "flip_gain": row.flip_gain,
        **picked(measure, "choice_a", "choice_b"),
        **picked(row.numbers, "mass", "signal_persona", "signal_answer", "arrived", "access"),
        **picked(row.numbers, "alignment", "aligned", "cancellation", "stronger_side", "opposed"),
        "inside": _inside(inside, nodes),
    }


def _inside(inside: Inside, nodes: Sequence[str]) -> dict[str, Any]:
    order = sorted(range(len(nodes)), key=lambda place: -abs(inside.contributions[place]))
    above, below = inside.sides
    return {
        "persona_tokens": inside.persona,
        "n_tokens": inside.n_tokens,
        "signal": {place: inside.signal[place] for place in PLACES},
        "alignment": inside.alignment,
        "for_persona": above,
        "against_persona": below,
        "strongest": {nodes[place]: inside.contributions[place] for place in order[:STRONGEST]},
        **picked(inside, "remainder", "conservation", "slope"),
    }


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair for CSV: without the numbers per layer."""
    inside = row["inside"]
    kept = ("for_persona", "against_persona", "remainder", "conservation", "slope")
    return {key: value for key, value in row.items() if key not in ("inside", "test_numbers")} | {
        key: inside[key] for key in kept
    }
