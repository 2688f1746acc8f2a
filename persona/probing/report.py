"""The probes as files, figures and rows of a table.

probe.json           everything but the arrays, with what it was made from
probes.csv           a line per target, hold-out and position: the headline, and its controls
curves.csv           a line per target, hold-out, position and layer
geometry.csv         a line per position and layer: signal to noise, CKA, RSA
probe.safetensors    the probes' directions, CKA between all layers and positions; metadata ``about`` names the axes
probe.html, *.png    the figures
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.figures import (
    GREY,
    PALETTE,
    Axis,
    Bars,
    Chart,
    Curve,
    heat_map,
    line_panels,
    picked,
    plain,
    write_arrays,
    write_csv,
    write_figures,
)
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.table import Column, Table, comma
from persona_circuits.persona.probing.geometry import Place
from persona_circuits.persona.probing.options import KINDS
from persona_circuits.persona.probing.results import Cell, ProbeStudy

__all__ = ["probe_figures", "probe_record", "probe_tables", "write_probes"]

FORMAT = "persona-circuits/probe"
PROBES = (
    Column("target", lambda row: f"{row['target']} ({row['n_targets'] if row['n_targets'] > 1 else row['n_classes']})"),
    Column("held out", "hold_out"),
    Column("position", "position"),
    Column("after", "after"),
    Column("acc.", "best.accuracy.value", ".2f"),
    Column("bal.", "best.balanced.value", ".2f"),
    Column("95 %", "best.balanced", comma()),
    Column("AUC", "best.auc.value", ".2f"),
    Column("shuf.", "controls.shuffled.value", ".2f"),
    Column("task", "controls.task.value", ".2f"),
    Column("drop.", "controls.dropped.value", ".2f"),
    Column("length", "controls.length.value", ".2f"),
)
"""The mean over traits stands for all of them; in brackets the number of classes, or of traits. The controls' balanced
accuracies: shuffled labels, control task, without the persona's text, length only."""
GEOMETRY = (
    Column("position", "position"),
    Column("after", "after"),
    Column("share", "geometry.share.value", ".2f"),
    Column("95 %", "geometry.share", comma()),
    Column("SNR", "geometry.ratio", lambda ratio: "" if np.isnan(ratio) else f"{ratio:.2f}"),
    Column("CKA persona", "cka_persona", ".2f"),
    Column("CKA answer", "cka_answer", ".2f"),
    Column("RSA traits", "rsa_traits", lambda one: f"{one.value:.2f} (p {one.p:.3f})"),
    Column("RSA answer", "rsa_answer", lambda one: f"{one.value:.2f} (p {one.p:.3f})"),
)
SCORES = ("accuracy", "balanced", "auc")
CONTROLS = ("shuffled", "task", "dropped", "length")
ENDS = ("value", "low", "high")
ACCURACY = Axis("balanced accuracy", ends=(0.0, 1.02))


def write_probes(study: ProbeStudy, folder: str | Path) -> None:
    """Write all files into ``folder``, which must exist.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    folder = Path(folder)
    write_json(probe_record(study), folder / "probe.json")
    write_csv([_cell_record(study, cell) for cell in _all(study)], folder / "probes.csv")
    write_csv([row for cell in _all(study) for row in _curve_records(study, cell)], folder / "curves.csv")
    write_csv([_place_record(study, place) for place in study.places], folder / "geometry.csv")
    arrays, axes = _arrays(study)
    write_arrays(arrays, axes, folder / "probe.safetensors")
    title = f"Probes: {Path(study.model).name}, {Path(study.sources[0][0]).name}"
    write_figures(probe_figures(study), folder, page="probe.html", title=title, notes=study.notes)


def probe_record(study: ProbeStudy) -> dict[str, Any]:
    """Everything but the arrays, as plain values for JSON."""
    return plain(
        {
            "format": FORMAT,
            "version": 1,
            "model": {"name": study.model, "fingerprint": study.fingerprint},
            "sources": [{"source": source, "sha256": sha256} for source, sha256 in study.sources],
            "options": study.options,
            "n_prompts": study.n_examples,
            **picked(study, "n_personas", "n_questions", "resampled", "points", "positions"),
            "probes": [{**_cell_record(study, cell), "curve": _curve_records(study, cell)} for cell in _all(study)],
            "geometry": [_place_record(study, place) for place in study.places],
            "notes": study.notes,
        }
    )


def probe_tables(study: ProbeStudy) -> list[Table]:
    """The probes beside their controls; and for every position the point with the persona's largest share."""
    title = f"probes of {study.model}: {study.n_examples} prompts, {study.n_personas} personas"
    cells = [vars(cell) | {"after": study.points[cell.layer]} for cell in study.cells]
    best = []
    for index, position in enumerate(study.positions):
        here = [place for place in study.places if place.position == index]
        most = max(here, key=lambda place: np.nan_to_num(place.geometry.share.value, nan=-np.inf))
        best.append(vars(most) | {"position": position, "after": study.points[most.point]})
    by = "intervals   by leaving out one persona, and one question, at a time: variances of both added"
    return [
        Table(f"{title}, {study.n_questions} questions", PROBES, cells, 4, [f"intervals   over {study.resampled}"]),
        Table("geometry of personas, at the layer of their largest share", GEOMETRY, best, 2, [by]),
    ]


def probe_figures(study: ProbeStudy) -> dict[str, Chart]:
    """The figures that this study has data for, by name."""
    figures = {f"probe-{kind}": _curves(study, kind) for kind in KINDS}
    figures |= {"probe-controls": _controls(study), "probe-geometry": _geometry(study), "probe-cka": _cka(study)}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _all(study: ProbeStudy) -> tuple[Cell, ...]:
    return (*study.cells, *study.traits)


def _name(cell: Cell) -> str:
    return f"trait (mean of {cell.n_targets})" if cell.n_targets > 1 else cell.target


def _cell_record(study: ProbeStudy, cell: Cell) -> dict[str, Any]:
    return {
        **picked(cell, "target", "kind", "n_targets", "hold_out", "position"),
        "after": study.points[cell.layer],
        "point": study.at[cell.layer],
        "points_by_fold": [study.at[layer] for layer in cell.layers],
        **picked(cell, "n", "n_classes", "n_groups", "chance"),
        **picked(cell.best, *SCORES),
        "selectivity": cell.controls.selectivity(cell.best.balanced.value),
        "controls": picked(cell.controls, *CONTROLS),
    }


def _curve_records(study: ProbeStudy, cell: Cell) -> list[dict[str, Any]]:
    where = picked(cell, "target", "hold_out", "position")
    return [
        {**where, "point": point, "after": after, **picked(scored, *SCORES)}
        for point, after, scored in zip(study.at, study.points, cell.curve, strict=True)
    ]


def _place_record(study: ProbeStudy, place: Place) -> dict[str, Any]:
    return {
        "position": study.positions[place.position],
        "point": study.at[place.point],
        "after": study.points[place.point],
        **picked(place.geometry, "signal", "noise", "share"),
        "signal_to_noise": place.geometry.ratio,
        **picked(place, "cka_persona", "cka_answer", "rsa_traits", "rsa_answer"),
    }


def _arrays(study: ProbeStudy) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Directions of the first way of holding out, by target and position."""
    arrays: dict[str, np.ndarray] = {"cka": study.cka}
    directions: dict[str, Any] = {}
    for cell in _all(study):
        name = f"direction/{cell.target}/{cell.position}"
        if cell.directions is not None and name not in arrays:
            arrays[name] = cell.directions.astype(np.float32)
            classes = cell.classes[1:] if cell.n_classes == 2 else cell.classes
            directions[name] = {"point": study.at[cell.layer], "classes": classes}
    places = [f"{study.positions[place.position]} {study.points[place.point]}" for place in study.places]
    axes = {"cka": "place place", "place": places, "direction": "class d_model", "directions": directions}
    return arrays, axes


def _curves(study: ProbeStudy, kind: str) -> Chart | None:
    """Balanced accuracy by layer, a panel per way of holding out, a line per position."""
    cells = [cell for cell in study.cells if cell.kind == kind]
    if not cells:
        return None
    panels: dict[str, list[Curve]] = {}
    for cell in cells:
        y, low, high = ([getattr(scored.balanced, end) for scored in cell.curve] for end in ENDS)
        curve = Curve(cell.position, study.points, y, low, high, colour=_colour(study, cell))
        panels.setdefault(f"held out by {cell.hold_out}", []).append(curve)
    for name, curves in panels.items():
        chance = next(cell.chance for cell in cells if name.endswith(cell.hold_out))
        flat = [chance] * len(study.points)
        curves.append(Curve("chance", study.points, flat, dash="dash", colour=GREY, markers=False))
    title = f"Probe for {_name(cells[0]) if kind == 'trait' else kind}: balanced accuracy by layer"
    return line_panels(panels, title=title, x="residual stream after", y=ACCURACY)


def _colour(study: ProbeStudy, cell: Cell) -> str:
    return PALETTE[study.positions.index(cell.position) % len(PALETTE)]


def _controls(study: ProbeStudy) -> Chart:
    """The headline beside its controls, a panel per position."""
    names = {"probe": "probe", "shuffled": "shuffled labels", "task": "control task"}
    names |= {"dropped": "without the persona", "length": "length only"}
    panels: dict[str, list[Bars]] = {}
    for position in study.positions:
        cells = [cell for cell in study.cells if cell.position == position]
        x = [f"{cell.kind}, {cell.hold_out}" for cell in cells]
        for key, label in names.items():
            values = [cell.best.balanced if key == "probe" else getattr(cell.controls, key) for cell in cells]
            y, low, high = (
                [None if estimate is None else getattr(estimate, name) for estimate in values] for name in ENDS
            )
            ends = (low, high) if key == "probe" else ()
            panels.setdefault(position, []).append(Bars(label, x, y, *ends))
    title = "Probes and their controls, each at the layer chosen on the training folds"
    return line_panels(panels, title=title, x="", y=ACCURACY, columns=1)


def _geometry(study: ProbeStudy) -> Chart:
    """Signal to noise, CKA and RSA by layer, a line per position."""

    def curves(value: Any) -> list[Curve]:
        lines = []
        for place, position in enumerate(study.positions):
            values = [value(item) for item in study.places if item.position == place]
            y = [None if item is None or item != item else item for item in values]
            lines.append(Curve(position, study.points, y))
        return lines

    panels = {
        "persona's share of the variance": curves(lambda one: one.geometry.share.value),
        "CKA with who the persona is": curves(lambda one: one.cka_persona),
        "CKA with the last layer at the answer": curves(lambda one: one.cka_answer),
    }
    for key, title in (("rsa_traits", "RSA with the traits"), ("rsa_answer", "RSA with the last layer at the answer")):
        if any(getattr(place, key) is not None for place in study.places):
            panels[title] = curves(lambda one, key=key: getattr(one, key) and getattr(one, key).value)
    return line_panels(panels, title="Geometry of personas, centred per question", x="residual stream after", y="")


def _cka(study: ProbeStudy) -> Chart:
    names = [f"{study.positions[place.position]}, {study.points[place.point]}" for place in study.places]
    title = "Likeness (linear CKA) between layers and positions, centred per question, without bias"
    values = np.clip(study.cka, -1, 1).tolist()
    return heat_map(values, names, names, title=title, unit="likeness (CKA)", upward=True)
