"""A discovery as files: the circuit, its nodes, all scores, the picture, and what was asked for besides."""

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


def write_discovery(found: Discovery, folder: Path, *, strongest: int | None = None) -> None:
    """Write all files into ``folder``, which must exist.

    The picture has the ``strongest`` edges at most, or as many as can be followed.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    files.write_circuit(found.record, folder / "circuit.json")
    files.write_nodes(found.circuit, folder / "real_circuits_1.json")
    if found.scores is not None:
        files.write_scores(found.scores, folder / "scores.safetensors", made=found.made_of)
    title = title_of(found.record)
    fringe = None if found.certificate is None else found.certificate.abstains
    parts = {} if found.sets is None else by_source(found.circuit, found.sets.groups)
    groups = parts if 0 < len(parts) <= len(GROUP_LOOKS) else None
    if found.at_parts is not None:
        groups = edges_at_parts(found.at_parts) or None
    how: dict[str, Any] = {"scores": found.scores, "strongest": strongest, "title": title}
    for suffix in ("svg", "png"):
        draw(found.circuit, folder / f"graph.{suffix}", marks=Marks(groups, fringe), **how)
    files.write_json(summary(found), folder / "summary.json")
    if found.parts is not None and found.spans is not None:
        write_spans(found.parts, found.spans, found.at_parts or found.circuit, folder, title=title)
    if found.heads is not None:
        files.write_json(found.heads.as_dict(), folder / "heads.json")
    if found.opened is not None:
        files.write_json(found.opened.as_dict(), folder / "neurons.json")
        write_csv(found.opened.rows(), folder / "neurons.csv")
        write_csv(found.opened.edges(), folder / "neuron_edges.csv")
    if found.sweep is not None:
        from persona_circuits.circuit.evaluation.curves.sweep_files import write_sweep

        write_sweep(found.sweep, folder, title=title)


def title_of(record: Mapping[str, Any] | None) -> str:
    """The line above a picture: model, metric and pair file; empty for a circuit of which nothing is known."""
    if record is None:
        return ""
    model, task = record["model"], record["task"]
    origin = model.get("origin")
    made = f" (quantised {origin['quantisation']}, dequantised)" if origin else ""
    return f"{Path(model['name']).name}{made}: {task['metric']}, {Path(task['source']).name}"
