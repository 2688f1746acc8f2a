"""Formats as files, as a figure, and as rows of a table.

formats.json    everything, with what it was made from
formats.csv     a line per format
formats.html    the figure; needs no network
formats.png     D and mass of every format, D of a friend and 2 sigma_0 beside it
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from persona_circuits.circuit.figures import Axis, Bars, Chart, Panel, Points, plain, write_csv, write_figures
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.table import Column, Table, comma
from persona_circuits.persona.data import said
from persona_circuits.persona.formats.study import FormatStudy
from persona_circuits.persona.pairs.report import Built

__all__ = ["format_table", "formats_record", "headline", "with_calibration", "write_formats"]

FORMAT = "persona-circuits/formats"
COLUMNS = (
    Column("format", "name"),
    Column("n", "n"),
    Column("mass", "mass", ".2f"),
    Column("D", "divergence.value", "+.2f"),
    Column("95 %", "divergence", comma()),
    Column("sigma_0", "sigma_0", ".2f"),
    Column("friend", "friend", "+.2f"),
    Column("order", "order_effect", ".2f"),
    Column("collapse", "collapse", ".2f"),
    Column("answer", "named", ".2f"),
)


def format_table(study: FormatStudy) -> Table:
    """A row per format, the recommended one again on the held-out pairs."""
    rows = []
    for row in [*study.rows, *([study.held_out] if study.held_out else [])]:
        mark = ", held out" if row.split == "test" else " *" if row.format == study.best else ""
        rows.append(vars(row) | {"name": f"{row.format}{mark}"})
    return Table(f"formats on {study.model} (* recommended)", COLUMNS, rows)


def headline(study: FormatStudy) -> str:
    """What is recommended, and why."""
    best = next(row for row in study.rows if row.format == study.best)
    least = study.options.min_mass
    if best.mass < least:
        return (
            f"no format has a mass of {least:g}; --format {best.format} has the largest D, with a mass of "
            f"{best.mass:.2f}: try candidates that the model itself names (pairs --mine-candidates)"
        )
    return f"use --format {best.format}: the largest D of the formats with a mass of at least {least:g}"


def formats_record(study: FormatStudy) -> dict[str, Any]:
    """Everything that was found, as plain values for JSON."""
    return plain(
        {
            "format": FORMAT,
            "version": 1,
            "model": {"name": study.model, "fingerprint": study.fingerprint},
            "options": asdict(study.options),
            "recommended": study.best,
            "says": headline(study),
            "formats": list(study.rows),
            "held_out": study.held_out,
            "skipped": dict(study.skipped),
        }
    )


def with_calibration(built: Built, study: FormatStudy) -> Built:
    """The pairs with what their format was chosen by in their report."""
    shown = ", ".join(f"{row.format} {row.divergence.value:+.2f} ({row.mass:.2f})" for row in study.rows)
    says = f"{study.best}, of D (and mass) on {study.rows[0].n} training pairs: {shown}"
    return replace(built, about={**built.about, "calibration": {**formats_record(study), "says": says}})


def write_formats(study: FormatStudy, folder: str | Path) -> None:
    """Write all files into ``folder``, which must exist.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    folder, record = Path(folder), formats_record(study)
    write_json(record, folder / "formats.json")
    rows = [_cells(row) for row in (*record["formats"], *filter(None, [record["held_out"]]))]
    write_csv(rows, folder / "formats.csv")
    title = f"Formats: {Path(study.model).name}"
    write_figures({"formats": _figure(study)}, folder, page="formats.html", title=title, notes=[headline(study)])


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    spread = row["divergence"]
    flat = {key: value for key, value in row.items() if key not in ("divergence", "words")}
    ends = {"divergence": spread["value"], "divergence_low": spread["low"], "divergence_high": spread["high"]}
    flat["answer"] = " ".join(flat["answer"].split())
    return {"format": flat.pop("format"), **ends, **flat, "words": said(row["words"])}


def _figure(study: FormatStudy) -> Chart:
    names = [row.format for row in study.rows]
    d = [row.divergence for row in study.rows]
    effect = Points(
        "persona effect (D)", names, [e.value for e in d], [_or(e.low, e) for e in d], [_or(e.high, e) for e in d]
    )
    friend = Points("of a friend (D)", names, [row.friend for row in study.rows], symbol="square")
    null = Points(
        "paraphrases (2 sigma_0)", names, [None if r.sigma_0 is None else 2 * r.sigma_0 for r in study.rows], symbol="x"
    )
    mass = Bars("on options (mass)", names, [row.mass for row in study.rows])
    panels = [Panel([effect, friend, null], y=Axis("logits")), Panel([mass], y=Axis("probability of the options"))]
    return Chart("Persona divergence and candidate mass by format", panels)


def _or(end: float | None, estimate: Any) -> float:
    return estimate.value if end is None else end
