"""A discovery as files: the circuit, its nodes, all scores, the picture, and optional results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_circuits.circuit.discovery.summary import summary
from persona_circuits.circuit.drawing import GROUP_LOOKS, Marks, draw
from persona_circuits.circuit.evaluation.span_files import edges_at_parts, write_spans
from persona_circuits.circuit.figures import write_csv
from persona_circuits.circuit.io import by_source
from persona_circuits.circuit.io import circuits as files

if TYPE_CHECKING:
    from persona_circuits.circuit.discovery.search import Discovery

__all__ = ["title_of", "write_discovery"]


def write_discovery(discovery: Discovery, folder: Path, *, strongest: int | None = None) -> None:
    """Write all files into ``folder``, which must exist.

    The picture has the ``strongest`` edges at most, or as many as can be followed.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    files.write_circuit(discovery.record, folder / "circuit.json")
    files.write_nodes(discovery.circuit, folder / "real_circuits_1.json")
    if discovery.scores is not None:
        files.write_scores(discovery.scores, folder / "scores.safetensors", made=discovery.made_of)
    title = title_of(discovery.record)
    fringe = None if discovery.certificate is None else discovery.certificate.abstains
    parts = {} if discovery.sets is None else by_source(discovery.circuit, discovery.sets.groups)
    groups = parts if 0 < len(parts) <= len(GROUP_LOOKS) else None
    if discovery.at_parts is not None:
        groups = edges_at_parts(discovery.at_parts) or None
    how: dict[str, Any] = {"scores": discovery.scores, "strongest": strongest, "title": title}
    for suffix in ("svg", "png"):
        draw(discovery.circuit, folder / f"graph.{suffix}", marks=Marks(groups, fringe), **how)
    files.write_json(summary(discovery), folder / "summary.json")
    if discovery.parts is not None and discovery.spans is not None:
        write_spans(discovery.parts, discovery.spans, discovery.at_parts or discovery.circuit, folder, title=title)
    if discovery.heads is not None:
        files.write_json(discovery.heads.as_dict(), folder / "heads.json")
    if discovery.opened is not None:
        files.write_json(discovery.opened.as_dict(), folder / "neurons.json")
        write_csv(discovery.opened.rows(), folder / "neurons.csv")
        write_csv(discovery.opened.edges(), folder / "neuron_edges.csv")
    if discovery.sweep is not None:
        from persona_circuits.circuit.evaluation.curves.sweep_files import write_sweep

        write_sweep(discovery.sweep, folder, title=title)


def title_of(record: Mapping[str, Any] | None) -> str:
    """The line above a picture: model, metric and pair file; empty for a circuit of which nothing is known."""
    if record is None:
        return ""
    model, task = record["model"], record["task"]
    origin = model.get("origin")
    origin_note = f" (quantised {origin['quantisation']}, dequantised)" if origin else ""
    return f"{Path(model['name']).name}{origin_note}: {task['metric']}, {Path(task['source']).name}"
