"""Scores by part of the prompt, and circuits by contrast, as tables, arrays and heat maps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from persona_circuits.circuit.attribution import ScoreParts
from persona_circuits.circuit.evaluation.dissociation import Specificity
from persona_circuits.circuit.evaluation.spans import SpanStudy, span_rows
from persona_circuits.circuit.figures import heat_map, write_arrays, write_csv, write_figures
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.subgraph import Circuit

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "write_spans",
    "write_specificity",
]


def write_spans(parts: ScoreParts, study: SpanStudy, circuit: Circuit, folder: Path, *, title: str) -> None:
    """Write ``spans.safetensors`` (every edge), ``spans.csv`` (kept edges), ``span_layers.csv`` and the heat maps.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    axes = {"spans": parts.names, "axes": {"scores": ["span", "src", "dst"], "entry": ["layer", "span"]}}
    arrays = {"scores": parts.values, "entry": study.entry, "persistence": study.persistence}
    write_arrays(arrays, axes, folder / "spans.safetensors")
    write_csv(span_rows(parts, circuit.mask), folder / "spans.csv")
    write_csv(study.rows(), folder / "span_layers.csv")
    write_figures(span_figures(study), folder, page="spans.html", title=title)


def write_specificity(found: Specificity, folder: Path) -> None:
    """Write ``specificity.json``, ``specificity.csv`` and the matrix as a heat map.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    write_json(found.as_dict(), folder / "specificity.json")
    write_csv(found.as_dict()["cells"], folder / "specificity.csv")
    figure = heat_map(
        found.matrix().tolist(),
        found.names,
        found.names,
        title="What is left of a contrast when a circuit is ablated",
        x="contrast",
        y="circuit ablated",
        unit="share of the effect",
        numbers=".2f",
    )
    # From nothing left to all of it: colours that followed the data would make a dissociation of any differences.
    values = found.matrix()
    most = max(1.0, float(np.abs(np.nan_to_num(values)).max()))
    figure.update_traces(zmin=-most, zmax=most, zmid=None)
    write_figures({"specificity": figure}, folder, page="specificity.html", title="Specificity", notes=found.findings)


def span_figures(study: SpanStudy) -> dict[str, Figure]:
    """Entry shares, where edges from ``input`` enter, and causal persistence, by layer and part."""
    layers = [*(str(layer) for layer in range(len(study.entry) - 1)), "logits"]
    named = partial(heat_map, x="part of the prompt", y="layer", numbers=".2f")
    return {
        "span-persistence": named(
            study.persistence.tolist(),
            layers,
            study.names,
            title="Causal persistence: what the stream into a layer carries of the divergence",
            unit="share of D",
        ),
        "span-entry": named(
            study.entry.tolist(),
            layers,
            study.names,
            title="Where a layer reads the contrast: share of |score| of its edges",
            unit="share",
            diverging=False,
        ),
        "span-input": named(
            study.from_input.tolist(),
            layers,
            study.names,
            title="Where the contrast enters: share of |score| of the edges that leave input",
            unit="share",
            diverging=False,
        ),
    }
