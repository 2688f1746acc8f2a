"""Figures of a study that no single command draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_circuits.circuit.figures import Chart, Curve, Points, bar_chart, line_chart, write_figures
from persona_circuits.persona.study.numbers import Number

__all__ = ["across_figure", "level_figure", "write_levels"]


def level_figure(numbers: Mapping[str, Number], title: str) -> Chart:
    """A point per number, with its interval where it has one, in their order."""
    names = [f"{name} ({number.n})" if number.n is not None else name for name, number in numbers.items()]
    values, low, high = ([getattr(number, end) for number in numbers.values()] for end in ("value", "low", "high"))
    unit = next(iter(numbers.values())).unit
    points = Points("", values, names, low, high)
    return bar_chart([points], title=title, x=unit, y="level (pairs)", across=True)


def write_levels(folder: Path, name: str, title: str, numbers: Mapping[str, Number], chosen: Mapping[str, str]) -> None:
    """A figure of those of the chosen numbers that there are, by what they are to be called."""
    rows = {text: numbers[key] for text, key in chosen.items() if key in numbers}
    if rows:
        write_figures({name: level_figure(rows, title)}, folder, page=f"{name}.html", title=title)


def across_figure(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """The share of D that each frame's persona tokens bring over, by layer; dashed where the persona is the same."""
    curves = []
    for kind, dash in (("share", "solid"), ("null", "dot")):
        for frame in dict.fromkeys(row["frame"] for row in rows):
            own = [row for row in rows if row["frame"] == frame and row["what"] == kind]
            if kind == "share" or any(float(row["value"] or 0) for row in own):
                values = {key: [None if row.get(key) in (None, "") else float(row[key]) for row in own]
                          for key in ("value", "low", "high")}  # fmt: skip
                name = frame if kind == "share" else f"{frame}, the same persona"
                low, high = (
                    values[end] if kind == "share" and frame in ("you", "friend") else () for end in ("low", "high")
                )
                layers = [int(row["layer"]) for row in own]
                curves.append(Curve(name, layers, values["value"], low, high, dash=dash))
    title = "persona effect (D) that the persona's tokens of a frame bring into 'you'"
    return line_chart(curves, title=title, x="layer", y="share of the persona effect (D)")
