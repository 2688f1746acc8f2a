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
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.figures import plain, write_arrays, write_csv
from persona_circuits.circuit.storage import write_json
from persona_circuits.persona.vectors.comparison import Comparison
from persona_circuits.persona.vectors.storage import Geometry, about_vectors, persona_records, vector_record
from persona_circuits.persona.vectors.vectors import assistant_axis

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "COMPARED",
    "LAYERS",
    "TABLE",
    "comparison_rows",
    "layer_rows",
    "persona_rows",
    "vector_figures",
    "write_vectors",
]

TABLE = ("persona", "nearest", "farthest", "responses", "tokens", "length", "halves", "axis", "PC 1", "PC 2")
LAYERS = ("layer", "halves agree", "with others", "identified", "PC 1", "PCs for 80 %", "|cos(axis, PC 1)|")
COMPARED = ("models", "rho", "p")


def write_vectors(
    found: Geometry, about: Mapping[str, Any], folder: str | Path, *, comparison: Comparison | None = None
) -> None:
    """Write all files into ``folder``, which must exist; ``about`` is what the responses were made from.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    from persona_circuits.circuit.figures import write_figures

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
    title = f"Persona vectors of {Path(vectors.model).name} behind block {found.layer}"
    figures = vector_figures(found, comparison)
    write_figures(figures, folder, page="vectors.html", title=title, notes=found.notes)


def persona_rows(found: Geometry) -> list[tuple[str, ...]]:
    """The table for a terminal, columns as in ``TABLE``: ``length`` is of the centred vector, ``halves`` the cosine
    of the vector's two halves, ``axis`` the place between the mean of all others (0) and the baseline (1)."""
    return [
        (
            row["persona"],
            f"{row['nearest']} {row['nearest_cosine']:+.2f}",
            f"{row['farthest']} {row['farthest_cosine']:+.2f}",
            str(row["responses"]),
            str(row["tokens"]),
            f"{row['length']:.2f}",
            _number(row["halves"]),
            _number(row["axis"]),
            _number(row.get("pc1")),
            _number(row.get("pc2")),
        )
        for row in plain(persona_records(found))
    ]


def layer_rows(found: Geometry) -> list[tuple[str, ...]]:
    """A row per layer, columns as in ``LAYERS``; the chosen layer is marked."""
    return [
        (
            f"{row['layer']}{' *' if row['layer'] == found.layer else ''}",
            _number(row["own"]),
            _number(row["others"]),
            _share(row["identified"]),
            _share(row["pc1"]),
            str(row["components_80"]),
            _number(row["axis_pc1"]),
        )
        for row in plain(list(found.layers))
    ]


def comparison_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row per two models, columns as in ``COMPARED``."""
    names = [
        f"{Path(name).name}, layer {layer}" for name, layer in zip(comparison.models, comparison.layers, strict=True)
    ]
    return [
        (f"{names[j]} / {names[i]}", _number(comparison.similarity[i, j]), f"{comparison.p[i, j]:.4f}")
        for i in range(len(names))
        for j in range(i)
    ]


def vector_figures(found: Geometry, comparison: Comparison | None = None) -> dict[str, Figure]:
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


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:+.2f}"


def _share(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.2f}"


def _cosine_figure(found: Geometry) -> Figure:
    """The tree on the left, the heat map in its order on the right."""
    from plotly.graph_objects import Heatmap, Scatter
    from plotly.subplots import make_subplots
    from scipy.cluster.hierarchy import dendrogram

    from persona_circuits.circuit.figures import DIVERGING, GREY

    order, n = list(found.order), len(found.order)
    names = [found.vectors.personas[i] for i in order]
    figure = make_subplots(rows=1, cols=2, column_widths=[0.16, 0.84], horizontal_spacing=0.13)
    drawn = dendrogram(found.tree, no_plot=True)
    for distances, places in zip(drawn["dcoord"], drawn["icoord"], strict=True):
        line = {
            "x": distances,
            "y": [(place - 5) / 10 for place in places],
            "mode": "lines",
            "line": {"color": "#555555", "width": 1},
        }
        figure.add_trace(Scatter(**line, showlegend=False, hoverinfo="skip"), row=1, col=1)
    grid, ticks = list(range(n)), {"tickvals": list(range(n)), "ticktext": names, "showgrid": False}
    pairs = [[f"{a} / {b}" for b in names] for a in names]
    cells = {"z": found.cosines[np.ix_(order, order)].tolist(), "colorscale": DIVERGING, "zmin": -1.0, "zmax": 1.0}
    cells |= {"customdata": pairs, "hovertemplate": "%{customdata}: %{z:.2f}<extra></extra>"}
    trace = Heatmap(x=grid, y=grid, colorbar={"title": {"text": "cosine"}}, **cells)
    figure.add_trace(trace, row=1, col=2)
    ends = [-0.5, n - 0.5]
    figure.update_yaxes(range=ends, showticklabels=False, showgrid=False, zeroline=False, row=1, col=1)
    figure.update_xaxes(autorange="reversed", title="1 - cosine", showgrid=False, gridcolor=GREY, row=1, col=1)
    figure.update_yaxes(range=ends, **ticks, row=1, col=2)
    figure.update_xaxes(range=ends, tickangle=-60, **ticks, row=1, col=2)
    title = f"Cosines of centred persona vectors behind block {found.layer}"
    return figure.update_layout(
        title=title, template="none", height=240 + 20 * n, width=420 + 20 * n, margin={"t": 60, "b": 110}
    )


def _component_figure(found: Geometry) -> Figure:
    """The first two components; a baseline that would squeeze all others into a corner is left out."""
    from plotly.graph_objects import Figure, Scatter

    from persona_circuits.circuit.figures import laid_out
    from persona_circuits.circuit.figures.plots import PALETTE

    scores, explained = found.components.scores, found.components.explained
    names = found.vectors.personas
    shown = [i for i in range(len(names)) if not (names[i] == found.baseline and _far_off(scores, i))]
    second = scores[:, 1] if scores.shape[1] > 1 else np.zeros(len(scores))
    marker: dict[str, Any] = {"size": 9, "color": PALETTE[0]}
    if found.positions is not None:
        others = [float(found.positions[i]) for i in shown if names[i] != found.baseline]
        marker |= {"color": found.positions[shown].tolist(), "colorscale": "Viridis", "showscale": True}
        marker |= {"cmin": min(others), "cmax": max(others), "colorbar": {"title": {"text": "place on the axis"}}}
    texts = {"text": [names[i] for i in shown], "textposition": "top center", "textfont": {"size": 10}}
    points = {"x": scores[shown, 0].tolist(), "y": second[shown].tolist(), "mode": "markers+text"}
    trace = Scatter(**points, **texts, marker=marker, showlegend=False)
    without = "" if found.baseline is None else f" (fitted without {found.baseline})"
    if len(shown) < len(names):
        without = f" ({found.baseline} is far off and not shown)"
    labels = [f"PC {k + 1} ({explained[k]:.0%} of variance)" if k < len(explained) else "" for k in (0, 1)]
    title = f"Principal components of persona vectors behind block {found.layer}{without}"
    return laid_out(Figure(trace), title, labels[0], labels[1]).update_layout(height=720)


def _far_off(scores: Float[np.ndarray, "persona component"], place: int) -> bool:
    others = np.delete(scores[:, :2], place, axis=0)
    return bool(np.abs(scores[place, :2]).max() > 2 * np.abs(others).max())


def _explained_figure(found: Geometry) -> Figure:
    from plotly.graph_objects import Bar, Figure

    from persona_circuits.circuit.figures import laid_out
    from persona_circuits.circuit.figures.plots import PALETTE

    explained = found.components.explained[:20]
    places = [str(k + 1) for k in range(len(explained))]
    figure = Figure(Bar(x=places, y=explained.tolist(), name="share", marker={"color": PALETTE[0]}))
    title = "Variance explained by each component"
    return laid_out(figure, title, "component", "share of variance").update_xaxes(type="category", showgrid=False)


def _axis_figure(found: Geometry) -> Figure:
    from plotly.graph_objects import Bar, Figure

    from persona_circuits.circuit.figures import GREY, laid_out
    from persona_circuits.circuit.figures.plots import PALETTE

    assert found.positions is not None
    order = np.argsort(-found.positions, kind="stable")
    names = [found.vectors.personas[i] for i in order]
    colours = [GREY if name == found.baseline else PALETTE[0] for name in names]
    trace = Bar(
        y=names, x=found.positions[order].tolist(), orientation="h", marker={"color": colours}, showlegend=False
    )
    title = f"Personas on the axis from the others' mean (0) to {found.baseline} (1), block {found.layer}"
    figure = laid_out(Figure(trace), title, "place on the axis", "persona")
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, dtick=1)
    return figure.update_layout(height=200 + max(160, 18 * len(names)))


def _layer_figure(found: Geometry) -> Figure:
    from persona_circuits.circuit.figures import Curve, line_chart

    at = [float(layer) for layer in range(len(found.layers))]
    curves = [("halves agree", "own"), ("halves of different personas", "others"), ("identified", "identified")]
    curves += [("variance on PC 1", "pc1"), ("|cos(axis, PC 1)|", "axis_pc1")]
    drawn = [Curve(name, at, [row[key] for row in found.layers]) for name, key in curves]
    drawn = [curve for curve in drawn if any(value is not None for value in curve.y)]
    return line_chart(drawn, title="Persona vectors by layer", x="behind block", y="cosine or share")


def _models_figure(comparison: Comparison) -> Figure:
    from persona_circuits.circuit.figures import heat_map

    names = [f"{i + 1}: {Path(name).name}" for i, name in enumerate(comparison.models)]
    title = "How alike the models arrange the personas: Spearman's rho of their distances"
    return heat_map(comparison.similarity.tolist(), names, names, title=title, x="", y="", unit="rho", numbers="+.2f")


def _joint_figure(comparison: Comparison) -> Figure:
    """Each persona once per model on the first two joint components, a line between its places."""
    from plotly.graph_objects import Figure, Scatter

    from persona_circuits.circuit.figures import GREY, laid_out
    from persona_circuits.circuit.figures.plots import PALETTE

    figure, scores = Figure(), comparison.scores
    for i in range(len(comparison.personas)):
        line = {
            "x": scores[:, i, 0].tolist(),
            "y": scores[:, i, 1].tolist(),
            "mode": "lines",
            "line": {"color": GREY, "width": 1},
        }
        figure.add_trace(Scatter(**line, showlegend=False, hoverinfo="skip"))
    for m, name in enumerate(comparison.models):
        figure.add_trace(
            Scatter(
                x=scores[m, :, 0].tolist(), y=scores[m, :, 1].tolist(), name=f"{m + 1}: {Path(name).name}",
                mode="markers+text" if m == 0 else "markers", text=list(comparison.personas), textposition="top center",
                textfont={"size": 10}, marker={"color": PALETTE[m % len(PALETTE)], "size": 8},
            )
        )  # fmt: skip
    labels = [f"joint component {k + 1} ({comparison.explained[k]:.0%})" for k in (0, 1)]
    laid_out(figure, "Joint principal components", labels[0], labels[1])
    return figure.update_layout(height=720, showlegend=True)
