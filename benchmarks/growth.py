"""How time and memory of EAP grow: with edges (layers and heads), with tokens, with prompts.

    python benchmarks/growth.py                  # or: make bench-growth
    python benchmarks/growth.py --tiny           # tries the code

One axis is varied at a time, bare passes beside EAP at every point, and the slope of a straight line
through the points on log-log axes says with which power a cost grows. Writes a table into the
README, growth.png beside it, and with --out all numbers as JSON.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import Shape
from steps import LOGIT_DIFF
from tables import README, machine_line, markdown_table, replace_section

from persona_circuits.circuit.attribution import eap
from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.profiling import Cost, bare_passes, costs_of, machine
from persona_circuits.circuit.storage import atomic, write_json

BASE = Shape("base", "gpt2", 4, 8, 256, 1024, 1000, tokens=32, pairs=8)
FLOOR, EAP = "floor", "EAP"
COSTS: dict[str, Callable[[Any], Any]] = {
    "floor, s": lambda point: point.floor.median,
    "EAP, s": lambda point: point.eap.median,
    "floor, MB": lambda point: point.floor.peak_bytes,
    "EAP, MB": lambda point: point.eap.peak_bytes,
}
COLOURS = {FLOOR: "#8a8a8a", EAP: "#0072b2"}


@dataclass(frozen=True)
class Point:
    """One shape's costs; ``value`` is where it stands on its axis."""

    axis: str
    value: int
    n_edges: int
    floor: Cost
    eap: Cost


@dataclass(frozen=True)
class Axis:
    """What is varied, and the shapes along it."""

    name: str
    shapes: tuple[Shape, ...]
    value: Callable[[Shape], int]


def axes(base: Shape = BASE, *, doublings: int = 4) -> tuple[Axis, ...]:
    """Layers and heads (each counted in edges), tokens and prompts, doubled from half the base's size or less on."""
    layers = tuple(replace(base, layers=2 << i) for i in range(doublings))
    heads = tuple(replace(base, heads=4 << i) for i in range(doublings))
    tokens = tuple(replace(base, tokens=16 << i) for i in range(doublings))
    prompts = tuple(replace(base, pairs=2 << i) for i in range(doublings + 1))
    return (
        Axis("edges, by layers", layers, _edges),
        Axis("edges, by heads", heads, _edges),
        Axis("tokens", tokens, lambda shape: shape.tokens),
        Axis("prompts", prompts, lambda shape: shape.pairs),
    )


def _edges(shape: Shape) -> int:
    from persona_circuits.circuit.graph import Graph

    return Graph(shape.layers, shape.heads).n_edges


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; 2 on a problem with a file or a device."""
    args = _parse(argv)
    torch.set_num_threads(args.threads)
    base = replace(BASE.tiny(), heads=4) if args.tiny else BASE
    chosen = axes(base, doublings=2 if args.tiny else args.doublings)
    try:
        points = [point for axis in chosen for point in measured(axis, args.device, args.rounds)]
        text = growth_section(points, machine(args.device))
        print(text)
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_json([as_row(point) for point in points], args.out)
        if args.readme is not None:
            with atomic(args.readme.parent / "growth.png") as temporary:
                temporary.write_bytes(picture(points))
            replace_section(args.readme, "bench-growth", text)
    except (PersonaCircuitsError, RuntimeError) as error:
        print(f"growth.py: {error}", file=sys.stderr)
        return 2
    return 0


def measured(axis: Axis, device: str, rounds: int) -> list[Point]:
    """The costs of every shape of an axis."""
    return [_point(axis, shape, device, rounds) for shape in axis.shapes]


def _point(axis: Axis, shape: Shape, device: str, rounds: int) -> Point:
    network, model, batch = shape.network(device), shape.model(device), shape.batch(device)
    steps = {FLOOR: bare_passes(network, batch), EAP: lambda: eap(model, [batch], LOGIT_DIFF)}
    costs = costs_of(steps, device, rounds=rounds)
    return Point(axis.name, axis.value(shape), model.graph.n_edges, costs[FLOOR], costs[EAP])


def slope(values: Sequence[float], costs: Sequence[float]) -> float:
    """The power with which a cost grows: the slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def growth_section(points: Sequence[Point], where: dict[str, Any]) -> str:
    """A line about the machine, the table, the slopes, and the picture."""
    columns = ("", "", "floor, s", "EAP, s", "EAP / floor", "floor, MB", "EAP, MB", "EAP / floor")
    table = markdown_table(columns, [_cells(point) for point in points])
    base = f"{BASE.layers} layers, {BASE.heads} heads, width {BASE.d_model}, {BASE.pairs} pairs of {BASE.tokens} tokens"
    names = list(dict.fromkeys(point.axis for point in points))
    slopes = [_slopes(name, [point for point in points if point.axis == name]) for name in names]
    powers = markdown_table(("grows with", *COSTS), slopes)
    return (
        f"{machine_line(where)} Where an axis is not varied: {base}.\n\n{table}\n\n"
        f"Powers (slope of the line through the points, both axes logarithmic):\n\n{powers}\n\n"
        "![time and memory against edges, tokens and prompts, both axes logarithmic](growth.png)"
    )


def _cells(point: Point) -> tuple[str, ...]:
    floor, own = point.floor, point.eap
    times = (f"{floor.median:.3g}", f"{own.median:.3g}", f"{own.median / floor.median:.2f}")
    memory = ("", "", "")
    if floor.peak_bytes is not None and own.peak_bytes is not None:
        peaks = (f"{floor.peak_bytes / 1e6:,.1f}", f"{own.peak_bytes / 1e6:,.1f}")
        memory = (*peaks, f"{own.peak_bytes / floor.peak_bytes:.2f}")
    return (point.axis, f"{point.value:,}", *times, *memory)


def _slopes(name: str, points: Sequence[Point]) -> tuple[str, ...]:
    values = [point.value for point in points]
    costs = [[cost(point) for point in points] for cost in COSTS.values()]
    return (name, *("" if None in row else f"{slope(values, row):.2f}" for row in costs))


def as_row(point: Point) -> dict[str, Any]:
    """Plain values for JSON."""
    costs = {name: {"seconds": list(c.seconds), "peak_bytes": c.peak_bytes} for name, c in _costs(point).items()}
    return {"axis": point.axis, "value": point.value, "n_edges": point.n_edges, **costs}


def picture(points: Sequence[Point]) -> bytes:
    """Time above, memory below, a column per axis; both axes logarithmic. PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point.axis for point in points))
    figure = Figure(figsize=(3.2 * len(names), 5.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(names), sharex="col", sharey="row", squeeze=False)
    for column, name in enumerate(names):
        own = [point for point in points if point.axis == name]
        _draw(grid[0][column], own, lambda cost: cost.median)
        _draw(grid[1][column], own, lambda cost: None if cost.peak_bytes is None else cost.peak_bytes / 1e6)
        grid[1][column].set_xlabel(name)
    grid[0][0].set_ylabel("s")
    grid[1][0].set_ylabel("peak, MB, without weights")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Any, points: Sequence[Point], number: Callable[[Cost], float | None]) -> None:
    for line, label in ((FLOOR, "two forwards, one backward, bare"), (EAP, "EAP")):
        pairs = [(p.value, y) for p in points if (y := number(_costs(p)[line])) is not None]
        axes.plot(*zip(*pairs, strict=True), "o-", label=label, color=COLOURS[line]) if pairs else None
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(True, which="both", color="#eeeeee")
    axes.set_xticks([p.value for p in points], [f"{p.value:,}" for p in points], rotation=30)
    axes.minorticks_off()


def _costs(point: Point) -> dict[str, Cost]:
    return {FLOOR: point.floor, EAP: point.eap}


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How time and memory of EAP grow.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--doublings", type=int, default=4, help="points per axis")
    parser.add_argument("--tiny", action="store_true", help="smallest shapes")
    parser.add_argument("--out", type=Path, help="JSON file with all numbers")
    parser.add_argument("--readme", type=Path, default=None, help=f"README to write into, such as {README.name}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
