"""The page's data: the run it is about, others beside it, named groups of nodes, and what nodes do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError, OptionError, listed
from persona_circuits.circuit.io import StoredCircuit, page_schema, read_circuit, read_groups, schema_faults
from persona_circuits.circuit.page.run import INSIDE, run_data
from persona_circuits.circuit.page.verdicts import read_verdicts
from persona_circuits.circuit.storage import Kind, read_json

__all__ = ["FORMAT", "page_data", "page_of_run"]

FORMAT = "persona-circuits/page"


def page_of_run(
    folder: str | Path,
    *,
    name: str | None = None,
    others: Mapping[str, Path] | None = None,
    groups: Path | None = None,
    verdicts: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """The page's data from folders of runs.

    Parameters
    ----------
    others
        Runs to be seen beside this one, by the name they have on the page; of models of the same shape.
    groups
        A file of named groups of nodes.
    verdicts
        A folder of ``explain`` on the same model, whose verdicts are shown beside their causal tests.
    command
        What made the page, as it would be typed.

    Raises
    ------
    FileError
        A file is broken.
    OptionError
        A run is of another graph, or the explanation of other weights.
    """
    first = run_data(folder, name=name)
    runs = [first]
    for label, path in (others or {}).items():
        other = run_data(path, name=label)
        if other["graph"] != first["graph"]:
            raise OptionError(f"{path} is a circuit of a model of another shape; only equal shapes share a page")
        runs.append(other)
    stored = read_circuit(folder)
    inside = _inside(stored)
    named = read_groups(groups, stored.circuit.graph) if groups else {}
    data = page_data(runs, groups=named, inside=inside, command=command)
    if verdicts is not None:
        data["verdicts"] = read_verdicts(verdicts, stored.record)
    if faults := schema_faults(data, page_schema()):
        raise FileError(listed(f"the files beside {stored.path} make no page; {len(faults)} fault(s):", faults))
    return data


def _inside(stored: StoredCircuit) -> Any:
    """What the nodes do, if that is known of just these nodes; a file of an earlier circuit is left out."""
    path = stored.path.parent / INSIDE
    if not path.is_file():
        return None
    content = read_json(path, Kind("file of what nodes do"))
    nodes = {str(node) for node in stored.circuit.nodes() if node.kind in ("head", "mlp")}
    known = content.get("nodes") if isinstance(content, dict) else None
    return content if isinstance(known, dict) and set(known) == nodes else None


def page_data(
    runs: list[dict[str, Any]],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    inside: Mapping[str, Any] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """What ``page_html`` takes."""
    about = runs[0]["about"]
    model = Path(about["model"]["name"]).name if "model" in about else "a circuit"
    metric = f": {about['task']['metric']}" if "task" in about else ""
    return {
        "format": FORMAT,
        "version": 1,
        "title": f"{model}{metric}",
        "command": command,
        "groups": {name: list(nodes) for name, nodes in (groups or {}).items()},
        "inside": inside,
        "runs": runs,
    }
