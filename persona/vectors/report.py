"""Persona vectors as files, figures and rows of a table.

vectors.safetensors   means [persona, layer, d_model], halves [2, persona, layer, d_model] and, with
                      a baseline, axis [layer, d_model]; metadata ``about`` says whose and of what
vectors.json          every number of the chosen layer, curves over layers, the comparison
personas.csv          a line per persona
cosines.csv           centred cosines, a line per persona
layers.csv            a line per layer
cache/                what has been read off the model, a file per persona
vectors.html, *.png   the figures
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.figures import (
    GREY,
    PALETTE,
    Axis,
    Bars,
    Cells,
    Chart,
    Curve,
    Panel,
    Points,
    bar_chart,
    chart,
    heat_map,
    line_chart,
    plain,
    write_arrays,
    write_csv,
    write_figures,
)
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.table import Column, Table
from persona_circuits.persona.vectors.comparison import Comparison
from persona_circuits.persona.vectors.storage import Geometry, about_vectors, persona_records, vector_record
from persona_circuits.persona.vectors.vectors import assistant_axis

__all__ = ["vector_figures", "vector_tables", "write_vectors"]

PERSONAS = (
    Column("persona", "persona"),
    Column("nearest", lambda row: f"{row['nearest']} {row['nearest_cosine']:+.2f}"),
    Column("farthest", lambda row: f"{row['farthest']} {row['farthest_cosine']:+.2f}"),
    Column("responses", "responses"),
    Column("tokens", "tokens"),
    Column("length", "length", ".2f"),
    Column("halves", "halves", "+.2f"),
    Column("axis", "axis", "+.2f"),
    Column("PC 1", lambda row: row.get("pc1"), "+.2f"),
    Column("PC 2", lambda row: row.get("pc2"), "+.2f"),
)
"""``length`` is of the centred vector, ``halves`` the cosine of the vector's two halves, ``axis`` the place between the
mean of all others (0) and the baseline (1)."""
LAYERS = (
    Column("layer", "shown"),
    Column("halves agree", "own", "+.2f"),
    Column("with others", "others", "+.2f"),
    Column("identified", "identified", ".2f"),
    Column("PC 1", "pc1", ".2f"),
    Column("PCs for 80 %", "components_80"),
    Column("|cos(axis, PC 1)|", "axis_pc1", "+.2f"),
)


def write_vectors(
    found: Geometry, about: Mapping[str, Any], folder: str | Path, *, comparison: Comparison | None = None
) -> None:
    """Write all files into ``folder``, which must exist; ``about`` is what the responses were made from.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    folder, vectors = Path(folder), found.vectors
    record = vector_record(found, about, comparison)
    write_json(record, folder / "vectors.json")
    write_csv(record["personas"], folder / "personas.csv")
    write_csv(record["layers"], folder / "layers.csv")
    names = vectors.personas
    table = [
        {"persona": name, **dict(zip(names, row, strict=True))} for name, row in zip(names, found.cosines, strict=True)
    ]
    write_csv(table, folder / "cosines.csv")
    arrays = {"means": vectors.means.astype(np.float32), "halves": vectors.halves.astype(np.float32)}
    if found.baseline is not None:
        arrays["axis"] = assistant_axis(vectors, found.baseline).astype(np.float32)
    write_arrays(arrays, about_vectors(found), folder / "vectors.safetensors")
    title = f"Persona vectors of {Path(vectors.model).name} after block {found.layer}"
    figures = vector_figures(found, comparison)
    write_figures(figures, folder, page="vectors.html", title=title, notes=found.notes)


def vector_tables(found: Geometry, comparison: Comparison | None = None) -> list[Table]:
    """A row per persona and per layer, of which the chosen one is marked; a row per two models."""
    vectors = found.vectors
    title = f"{len(vectors.personas)} persona vectors of {vectors.model} after block {found.layer}, "
    layers = [{**row, "shown": f"{row['layer']}{' *' * (row['layer'] == found.layer)}"} for row in found.layers]
    tables = [
        Table(f"{title}{len(vectors.questions)} questions", PERSONAS, plain(persona_records(found)), 3),
        Table("by layer (* shown above)", LAYERS, plain(layers)),
    ]
    return tables if comparison is None else [*tables, _comparison_table(comparison)]


def _comparison_table(comparison: Comparison) -> Table:
    names = [f"{Path(name).name}, layer {at}" for name, at in zip(comparison.models, comparison.layers, strict=True)]
    similarity, p = plain(comparison.similarity), comparison.p
    rows = [(f"{names[j]} / {names[i]}", similarity[i][j], p[i, j]) for i in range(len(names)) for j in range(i)]
    columns = ("models", Column("rho", 1, "+.2f"), Column("p", 2, ".4f"))
    return Table(f"how alike models arrange {len(comparison.personas)} personas", columns, rows)


def vector_figures(found: Geometry, comparison: Comparison | None = None) -> dict[str, Chart]:
    """The figures by name."""
    figures = {"cosines": _cosine_figure(found), "components": _component_figure(found)}
    figures["explained"] = _explained_figure(found)
    if found.positions is not None:
        figures["axis"] = _axis_figure(found)
    figures["layers"] = _layer_figure(found)
    if comparison is not None:
        figures["models"] = _models_figure(comparison)
        figures["joint-components"] = _joint_figure(comparison)
    return figures


def _cosine_figure(geometry: Geometry) -> Chart:
    """The tree on the left, the heat map in its order on the right."""
    from scipy.cluster.hierarchy import dendrogram

    order, n = list(geometry.order), len(geometry.order)
    names = tuple(geometry.vectors.personas[i] for i in order)
    drawn = dendrogram(geometry.tree, no_plot=True)
    tree = [
        Curve("", distances, [(place - 5) / 10 for place in places], colour="#555555", markers=False)
        for distances, places in zip(drawn["dcoord"], drawn["icoord"], strict=True)
    ]
    beside = Panel(tree, x=Axis("1 - cosine", falls=True), y=Axis(ends=(-0.5, n - 0.5), bare=True))
    cells = Cells(geometry.cosines[np.ix_(order, order)].tolist(), names, names, "cosine", ends=(-1.0, 1.0))
    title = f"Cosines of centred persona vectors after block {geometry.layer}"
    return Chart(title, (beside, Panel((cells,))), 2, (0.16, 0.84))


def _component_figure(geometry: Geometry) -> Chart:
    """The first two components; a baseline that would squeeze all others into a corner is left out."""
    scores, explained = geometry.components.scores, geometry.components.explained
    names = geometry.vectors.personas
    shown = [i for i in range(len(names)) if not (names[i] == geometry.baseline and _far_off(scores, i))]
    second = scores[:, 1] if scores.shape[1] > 1 else np.zeros(len(scores))
    values = () if geometry.positions is None else geometry.positions[shown].tolist()
    texts: dict[str, Any] = {"labels": [names[i] for i in shown], "values": values}
    texts |= {"unit": "place on the axis", "colour": PALETTE[0]}
    points = Points("personas", scores[shown, 0].tolist(), second[shown].tolist(), **texts)
    without = "" if geometry.baseline is None else f" (fitted without {geometry.baseline})"
    if len(shown) < len(names):
        without = f" ({geometry.baseline} is far off and not shown)"
    labels = [f"PC {k + 1} ({explained[k]:.0%} of variance)" if k < len(explained) else "" for k in (0, 1)]
    title = f"Principal components of persona vectors after block {geometry.layer}{without}"
    return chart([points], title=title, x=labels[0], y=labels[1])


def _far_off(scores: Float[np.ndarray, "persona component"], place: int) -> bool:
    others = np.delete(scores[:, :2], place, axis=0)
    return bool(np.abs(scores[place, :2]).max() > 2 * np.abs(others).max())


def _explained_figure(geometry: Geometry) -> Chart:
    explained = geometry.components.explained[:20]
    bars = Bars("share", [str(k + 1) for k in range(len(explained))], explained.tolist())
    return bar_chart([bars], title="Variance explained by each component", x="component", y="share of variance")


def _axis_figure(geometry: Geometry) -> Chart:
    assert geometry.positions is not None
    order = np.argsort(-geometry.positions, kind="stable")
    names = [geometry.vectors.personas[i] for i in order]
    values = geometry.positions[order].tolist()
    marks = [name == geometry.baseline for name in names]
    bars = [
        Bars(label, names, [x if mark == wanted else None for mark, x in zip(marks, values, strict=True)])
        for label, wanted in (("personas", False), ("baseline", True))
    ]
    title = f"Personas on the axis from the others' mean (0) to {geometry.baseline} (1), block {geometry.layer}"
    return bar_chart(bars, title=title, x="place on the axis", y="persona", across=True, stacked=True)


def _layer_figure(geometry: Geometry) -> Chart:
    at = [float(layer) for layer in range(len(geometry.layers))]
    curves = [("halves agree", "own"), ("halves of different personas", "others"), ("identified", "identified")]
    curves += [("variance on PC 1", "pc1"), ("|cos(axis, PC 1)|", "axis_pc1")]
    drawn = [Curve(name, at, [row[key] for row in geometry.layers]) for name, key in curves]
    drawn = [curve for curve in drawn if any(value is not None for value in curve.y)]
    return line_chart(drawn, title="Persona vectors by layer", x="after block", y="cosine or share")


def _models_figure(comparison: Comparison) -> Chart:
    names = [f"{i + 1}: {Path(name).name}" for i, name in enumerate(comparison.models)]
    title = "How alike the models arrange the personas: rank correlation of their distances"
    return heat_map(
        comparison.similarity.tolist(), names, names, title=title, unit="rank correlation (rho)", numbers="+.2f"
    )


def _joint_figure(comparison: Comparison) -> Chart:
    """Each persona once per model on the first two joint components, a line between its places."""
    scores = comparison.scores
    marks: list[Curve | Points] = [
        Curve("", scores[:, i, 0].tolist(), scores[:, i, 1].tolist(), colour=GREY, markers=False)
        for i in range(len(comparison.personas))
    ]
    for m, name in enumerate(comparison.models):
        labels = list(comparison.personas) if m == 0 else ()
        places = (scores[m, :, 0].tolist(), scores[m, :, 1].tolist())
        marks.append(Points(f"{m + 1}: {Path(name).name}", *places, labels=labels))
    x, y = (f"joint component {k + 1} ({comparison.explained[k]:.0%})" for k in (0, 1))
    return chart(marks, title="Joint principal components", x=x, y=y)
