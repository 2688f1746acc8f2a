"""Scores by part of the prompt, and circuits by contrast, as tables, arrays and heat maps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.attribution import ScoreParts
from persona_circuits.circuit.drawing import Marks, draw
from persona_circuits.circuit.evaluation.dissociation import Specificity
from persona_circuits.circuit.evaluation.spans import SpanStudy, span_rows
from persona_circuits.circuit.figures import Chart, heat_map, write_arrays, write_csv, write_figures
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit

__all__ = ["edges_at_parts", "edges_by_part", "write_spans", "write_specificity"]

MOST_PARTS = 4  # colours of edges in a picture


def write_spans(
    parts: ScoreParts, study: SpanStudy, circuit: Circuit | SpanCircuit, folder: Path, *, title: str
) -> None:
    """Write ``spans.safetensors`` (every edge), ``spans.csv`` (kept edges), ``span_layers.csv``, and the pictures.

    ``span-graph`` is the circuit with every edge in the colour of the part of the prompt that gives most of its score;
    where edges are kept at some parts alone, ``graph`` shows these.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    axes = {"spans": parts.names, "axes": {"scores": ["span", "src", "dst"], "entry": ["layer", "span"]}}
    arrays = {"scores": parts.values, "entry": study.entry, "persistence": study.persistence}
    write_arrays(arrays, axes, folder / "spans.safetensors")
    edges = circuit.circuit if isinstance(circuit, SpanCircuit) else circuit
    rows = span_rows(parts, edges.mask)
    if isinstance(circuit, SpanCircuit):
        places = [circuit.graph.index(row["edge"]) for row in rows]
        rows = [{**row, "kept at": ", ".join(circuit.spans_of(*at))} for row, at in zip(rows, places, strict=True)]
    write_csv(rows, folder / "spans.csv")
    write_csv(study.rows(), folder / "span_layers.csv")
    write_figures(span_figures(study), folder, page="spans.html", title=title)
    how: dict[str, Any] = {"scores": parts.total(), "marks": Marks(edges_by_part(parts, edges)), "title": title}
    for suffix in ("svg", "png"):
        draw(edges, folder / f"span-graph.{suffix}", **how)


def edges_by_part(parts: ScoreParts, circuit: Circuit) -> dict[str, Circuit]:
    """The circuit's edges by the part with the largest ``|score|``: the parts of most edges, the others together."""
    largest = np.where(circuit.mask, np.abs(parts.values).argmax(0), -1)
    return _most(circuit, {name: largest == place for place, name in enumerate(parts.names)})


def edges_at_parts(circuit: SpanCircuit) -> dict[str, Circuit]:
    """The edges by the parts that they are kept at: the sets of parts of most edges, the others together."""
    codes = np.tensordot(1 << np.arange(len(circuit.mask)), circuit.mask, 1)
    named = {
        code: " + ".join(name for i, name in enumerate(circuit.spans.names) if code >> i & 1)
        for code in np.unique(codes[codes > 0]).tolist()
    }
    return _most(circuit.circuit, {name: codes == code for code, name in named.items()})


def _most(circuit: Circuit, groups: dict[str, np.ndarray]) -> dict[str, Circuit]:
    order = sorted((name for name in groups if groups[name].any()), key=lambda name: -int(groups[name].sum()))
    shown = order if len(order) <= MOST_PARTS else order[: MOST_PARTS - 1]
    circuits = {name: Circuit(circuit.graph, groups[name]) for name in shown}
    rest = [groups[name] for name in order[len(shown) :]]
    return circuits | ({"other parts": Circuit(circuit.graph, np.logical_or.reduce(rest))} if rest else {})


def write_specificity(specificity: Specificity, folder: Path) -> None:
    """Write ``specificity.json``, ``specificity.csv`` and the matrix as a heat map.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    write_json(specificity.as_dict(), folder / "specificity.json")
    write_csv(specificity.as_dict()["cells"], folder / "specificity.csv")
    # A fixed colour scale from 0 to 1: one that followed the data would make any differences look like a dissociation.
    most = max(1.0, float(np.abs(np.nan_to_num(specificity.matrix())).max()))
    figure = heat_map(
        specificity.matrix().tolist(),
        specificity.names,
        specificity.names,
        title="What is left of a contrast when a circuit is ablated",
        x="contrast",
        y="circuit ablated",
        unit="share of the effect",
        numbers=".2f",
        ends=(-most, most),
    )
    write_figures(
        {"specificity": figure}, folder, page="specificity.html", title="Specificity", notes=specificity.findings
    )


def span_figures(study: SpanStudy) -> dict[str, Chart]:
    """Entry shares, where edges from ``input`` enter, and causal persistence, by layer and part."""
    layers = [*(str(layer) for layer in range(len(study.entry) - 1)), "logits"]
    named = partial(heat_map, x="part of the prompt", y="layer", numbers=".2f", upward=True)
    return {
        "span-persistence": named(
            study.persistence.tolist(),
            layers,
            study.names,
            title="Causal persistence: what the stream into a layer carries of the divergence",
            unit="share of the persona effect (D)",
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
