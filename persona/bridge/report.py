"""The bridge from persona vectors to a circuit as files, figures and rows of tables; and the files that it reads.

bridge.json           summary: shares by layer, overlaps, the nodes after one layer, with what they were made from
layers.csv            a line per layer: the circuit's share of the projection, beside random sets of nodes
nodes.csv             a line per part of the stream after the chosen layer: what it writes along the vector
overlaps.csv          a line per two or three sets of nodes
bridge.safetensors    what every part writes, per pair and layer; metadata ``about`` names the axes
bridge.html, *.png    the figures

Read are: a circuit (``circuit.json``, EAP-IG's JSON, or a list of nodes), the movers of ``patch``
(``patch.json``), and the neurons of ``neurons`` (``neurons.json``); of each its folder will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError, GraphError
from persona_circuits.circuit.figures import (
    GREY,
    PALETTE,
    Bars,
    Chart,
    Curve,
    bar_chart,
    interval,
    line_chart,
    plain,
    write_arrays,
    write_csv,
    write_figures,
)
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import faults_of, read_circuit
from persona_circuits.circuit.storage import Kind, is_whole, read_json, write_json
from persona_circuits.circuit.table import Column, Table
from persona_circuits.persona.bridge.bridge import Bridge, NodeSet, SetOverlap, Share
from persona_circuits.persona.bridge.parts import MATCHINGS
from persona_circuits.persona.lens.readout import component_names
from persona_circuits.persona.lens.report import component_map

__all__ = [
    "bridge_figures",
    "bridge_tables",
    "fingerprint_of",
    "read_movers",
    "read_neuron_mlps",
    "read_nodes",
    "write_bridge",
]

FORMAT = "persona-circuits/bridge"
MOST = 12  # writers in the table


def _percent(ends: Any) -> str:
    low, high = (ends[0], ends[1]) if isinstance(ends, tuple) else (ends.low, ends.high)
    return f"{low:.0%}, {high:.0%}"


def _chance(share: Share, matching: str) -> Any:
    """Mean, low end, high end and p of random sets; None where only one can be drawn."""
    drawn = share.chance.get(matching)
    return None if drawn is None or drawn[3] is None else drawn


LAYERS = (
    Column("after", "layer"),
    Column("projection", "projection", "+.3f"),
    Column("circuit", lambda one: f"{one.n_circuit} of {one.n_nodes}"),
    Column("share", "share.value", ".1%"),
    Column("95 %", "share.interval", _percent),
    Column("by layer", lambda one: _chance(one.share, "layer"), lambda chance: _percent(chance[1:])),
    Column("p", lambda one: _chance(one.share, "layer"), lambda chance: f"{chance[3]:.3g}"),
    Column("by type", lambda one: _chance(one.share, "type"), lambda chance: _percent(chance[1:])),
    Column("p", lambda one: _chance(one.share, "type"), lambda chance: f"{chance[3]:.3g}"),
    Column("written", "written.value", ".1%"),
    Column("p", lambda one: _chance(one.written, "type"), lambda chance: f"{chance[3]:.3g}"),
)
"""The circuit's share after every block; the middle 95 % of random sets and p, where more than one can be drawn."""
NODES = (
    Column("node", "node"),
    Column("writes", "writes", "+.3f"),
    Column("95 %", lambda row: interval(row["low"], row["high"])),
    Column("share", "share", "+.1%"),
    Column("in", lambda row: ", ".join(name for name in ("circuit", "movers", "neurons") if row[name])),
)
OVERLAPS = (
    Column("sets", lambda row: " + ".join(row["names"]) + (" (by layer)" if row["by"] == "layers" else "")),
    Column("sizes", lambda row: ", ".join(map(str, row["sizes"]))),
    Column("of", "universe"),
    Column("shared", lambda row: len(row["shared"])),
    Column("chance", "expected", ".2f"),
    Column("p", "p", ".3g"),
    Column("which", lambda row: " ".join(row["shared"][:6]) + (" …" if len(row["shared"]) > 6 else "")),
)


class CircuitNodes:
    """The names of a circuit's nodes, and its file's record, None where that is a bare list or EAP-IG's."""

    def __init__(self, names: Sequence[str], record: Mapping[str, Any] | None, path: Path) -> None:
        self.names, self.record, self.path = tuple(names), record, path

    def of(self, graph: Graph) -> NodeSet:
        """The nodes as places of a graph.

        Raises:
            FileError: a node is not in this graph.
        """
        return NodeSet("circuit", _places(self.names, graph, self.path), _sources(graph), str(self.path))


def read_nodes(path: str | Path) -> CircuitNodes:
    """Read the nodes of a circuit from any of its files.

    Raises:
        FileError: the file is missing, broken, or at fault.
    """
    path = Path(path)
    path = path / "circuit.json" if path.is_dir() else path
    content = _json(path, "a circuit")
    if set(content) == {"nodes"}:
        if faults := faults_of(path):
            raise FileError(f"{path} is no list of nodes: {faults[0]}")
        return CircuitNodes(content["nodes"], None, path)
    stored = read_circuit(path)
    return CircuitNodes(stored.circuit.src_names(), stored.record, path)


def read_movers(path: str | Path, graph: Graph) -> NodeSet:
    """The heads that ``patch`` calls movers, out of all heads.

    Raises:
        FileError: the file holds no movers, or those of another model's shape.
    """
    path, content = _result(path, "patch", "movers", lambda row: isinstance(row.get("head"), str))
    names = [row["head"] for row in content["movers"] if row.get("is_mover")]
    universe = _places([row["head"] for row in content["movers"]], graph, path)
    return NodeSet("movers", _places(names, graph, path), universe, str(path))


def read_neuron_mlps(path: str | Path, graph: Graph) -> NodeSet:
    """The MLPs that hold a neuron which ``neurons`` selected, out of those of the layers it looked at.

    Raises:
        FileError: the file holds no selected neurons, or those of another model's shape.
    """
    path, content = _result(path, "neurons", "selected", lambda row: is_whole(row.get("layer")), "layers")
    nodes = _places([f"m{row['layer']}" for row in content["selected"]], graph, path)
    universe = _places([f"m{row['layer']}" for row in content["layers"]], graph, path)
    return NodeSet("neurons", nodes, universe, str(path))


def fingerprint_of(path: str | Path) -> str:
    """The fingerprint of the model that a result of ``patch`` or ``neurons`` names; empty where it names none."""
    path = Path(path)
    candidates = [path / f"{name}.json" for name in ("patch", "neurons")] if path.is_dir() else [path]
    for file in candidates:
        if file.is_file():
            model = _json(file, "a result").get("model")
            return str(model.get("fingerprint", "")) if isinstance(model, dict) else ""
    return ""


def write_bridge(bridge: Bridge, folder: str | Path) -> None:
    """Write all files into ``folder``, which must exist.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    folder = Path(folder)
    write_json(bridge_record(bridge), folder / "bridge.json")
    write_csv([asdict(row) for row in bridge.layers], folder / "layers.csv")
    write_csv(_node_records(bridge), folder / "nodes.csv")
    write_csv([_overlap_record(bridge, row) for row in bridge.overlaps], folder / "overlaps.csv")
    axes = {
        "parts": "pair layer part",
        "projections": "pair layer",
        "part": component_names(bridge.graph),
        "pair": bridge.pairs,
    }
    write_arrays({"parts": bridge.parts, "projections": bridge.projections}, axes, folder / "bridge.safetensors")
    write_figures(bridge_figures(bridge), folder, page="bridge.html", title=_title(bridge), notes=bridge.notes)


def bridge_record(bridge: Bridge) -> dict[str, Any]:
    """The summary, as plain values for JSON."""
    sets = {"circuit": bridge.circuit, "movers": bridge.movers, "neurons": bridge.neurons}
    return plain(
        {
            "format": FORMAT,
            "version": 1,
            "model": {"name": bridge.model, "fingerprint": bridge.fingerprint},
            "sources": {name: {"source": a, "sha256": b} for name, (a, b) in bridge.sources.items()},
            "options": bridge.options,
            "direction": bridge.direction,
            "layer": bridge.layer,
            "n_pairs": len(bridge.pairs),
            "clusters": bridge.clusters,
            "conserved": bridge.conserved,
            "error": float(f"{bridge.error:.3g}"),
            "sets": {name: _set_record(bridge, item) for name, item in sets.items() if item is not None},
            "layers": bridge.layers,
            "nodes": _node_records(bridge),
            "overlaps": [_overlap_record(bridge, item) for item in bridge.overlaps],
            "notes": bridge.notes,
        }
    )


def bridge_tables(bridge: Bridge) -> list[Table]:
    """The circuit's share after every block, the parts that write most after the chosen one, and overlaps."""
    title = "share of the vector's projection that the circuit's nodes write, beside random sets of nodes"
    return [
        Table(title, LAYERS, bridge.layers),
        Table(f"largest writers after block {bridge.layer}", NODES, _node_records(bridge)[:MOST]),
        Table("overlap of sets of nodes", OVERLAPS, [_overlap_record(bridge, item) for item in bridge.overlaps]),
    ]


def bridge_figures(bridge: Bridge) -> dict[str, Chart]:
    """The figures, by name."""
    return {
        "bridge-shares": _share_figure(bridge),
        "bridge-nodes": _node_figure(bridge),
        "bridge-map": _map_figure(bridge),
    }


def _json(path: Path, what: str) -> dict[str, Any]:
    kind = Kind("file", FileError, what)
    content = read_json(path, kind)
    if not isinstance(content, dict):
        raise kind.faulty(path, "holds no JSON object")
    return content


def _result(
    path: str | Path, command: str, key: str, good: Callable[[Mapping[str, Any]], bool], *more: str
) -> tuple[Path, dict[str, Any]]:
    """A result's path and content; ``good`` says of each row of ``key``, and of ``more``, whether it is one."""
    path = Path(path)
    path = path / f"{command}.json" if path.is_dir() else path
    content = _json(path, f"the {command}.json of the {command} command")
    kind = Kind("file", FileError, f"the {command}.json of the {command} command")
    if content.get("format") != f"persona-circuits/{command}" or not content.get(key):
        raise kind.faulty(path, f"has no {key}")
    for name in (key, *more):
        rows = content.get(name)
        if not isinstance(rows, list) or not all(isinstance(row, dict) and good(row) for row in rows):
            raise kind.faulty(path, f"has other {name} than the command writes")
    return path, content


def _places(names: Sequence[str], graph: Graph, path: Path) -> frozenset[int]:
    try:
        return frozenset(graph.src_index(name) for name in names)
    except GraphError as error:
        raise FileError(f"{path} is of another model's shape: {error}") from error


def _sources(graph: Graph) -> frozenset[int]:
    """All nodes that write but ``input``, which every circuit has."""
    return frozenset(range(1, graph.n_src))


def _title(bridge: Bridge) -> str:
    return f"Persona vector and circuit: {Path(bridge.model).name}, {Path(bridge.sources['pairs'][0]).name}"


def _set_record(bridge: Bridge, node_set: NodeSet) -> dict[str, Any]:
    names = [str(bridge.graph.src_nodes[place]) for place in sorted(node_set.nodes)]
    return {"name": node_set.name, "source": node_set.source, "nodes": names, "universe": len(node_set.universe)}


def _overlap_record(bridge: Bridge, overlap: SetOverlap) -> dict[str, Any]:
    nodes = bridge.graph.src_nodes
    shared = [f"layer {at}" if overlap.by == "layers" else str(nodes[at]) for at in overlap.shared]
    return asdict(overlap) | {"shared": shared}


def _node_records(bridge: Bridge) -> list[dict[str, Any]]:
    """The parts up to the chosen layer, the largest first; ``share`` is of the mean projection."""
    written, total = bridge.parts[:, bridge.layer].mean(0), bridge.projections[:, bridge.layer].mean()
    sets = {"circuit": bridge.circuit, "movers": bridge.movers, "neurons": bridge.neurons}
    rows = []
    for place, name in enumerate(component_names(bridge.graph)):
        if _layer_of(bridge.graph, place) <= bridge.layer:
            around = bridge.intervals[place]
            row = {"node": name, "writes": float(written[place]), "share": written[place] / total if total else None}
            row |= {"low": around.low if around else None, "high": around.high if around else None}
            rows.append(row | {key: node_set is not None and place in node_set.nodes for key, node_set in sets.items()})
    return sorted(rows, key=lambda row: -abs(row["writes"]))


def _layer_of(graph: Graph, part: int) -> int:
    return graph.src_nodes[part].layer if part < graph.n_src else part - graph.n_src


def _share_figure(bridge: Bridge) -> Chart:
    """The circuit's share by layer, random sets' middle 95 % as bands."""
    layers, shares = [str(entry.layer) for entry in bridge.layers], [entry.share for entry in bridge.layers]
    low, high = ([getattr(x.interval, end, None) for x in shares] for end in ("low", "high"))
    curves = [Curve("circuit", layers, [x.value for x in shares], low, high)]
    for matching, colour in zip(MATCHINGS, (PALETTE[1], GREY), strict=True):
        bands = [x.chance.get(matching, (None,) * 4) for x in shares]
        mean, low, high = ([row[place] for row in bands] for place in range(3))
        curves.append(Curve(f"random, by {matching}", layers, mean, low, high, dash="dot", colour=colour))
    title = f"Share of the persona vector's projection that the circuit writes ({bridge.options.position})"
    return line_chart(curves, title=title, x="after block", y="share of the projection")


def _node_figure(bridge: Bridge, most: int = 25) -> Chart:
    """The largest writers after the chosen layer, those of the circuit apart."""
    rows = _node_records(bridge)[:most]
    names, bars = [row["node"] for row in rows], []
    for inside, name, colour in ((True, "in the circuit", PALETTE[0]), (False, "not in it", GREY)):
        values = [row["writes"] if row["circuit"] == inside else None for row in rows]
        bars.append(Bars(name, names, values, colour=colour))
    title = f"What nodes write along the persona vector after block {bridge.layer} ({bridge.options.position})"
    return bar_chart(bars, title=title, x="node", y="projection (A - B)", stacked=True)


def _map_figure(bridge: Bridge) -> Chart:
    """Heads, the MLP and the attention bias of every layer, along the vector after the chosen one."""
    means = bridge.parts[:, bridge.layer].mean(0)
    title = f"Along the persona vector after block {bridge.layer} (input {means[0]:+.2f}, sum {means.sum():+.2f})"
    return component_map(bridge.graph, means, bridge.layer + 1, title=title, unit="projection")
