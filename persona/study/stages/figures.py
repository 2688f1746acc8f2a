"""Figures of a study that no single command draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from persona_circuits.circuit.figures import laid_out
from persona_circuits.circuit.figures.plots import PALETTE
from persona_circuits.persona.study.numbers import Number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "level_figure",
]


def level_figure(numbers: Mapping[str, Number], title: str) -> Figure:
    """A point per number, with its interval where it has one, in their order."""
    from plotly.graph_objects import Bar, Figure

    names = [f"{name} ({one.n})" if one.n is not None else name for name, one in numbers.items()]
    values = [one.value for one in numbers.values()]
    up = [0.0 if one.high is None else one.high - one.value for one in numbers.values()]
    down = [0.0 if one.low is None else one.value - one.low for one in numbers.values()]
    bar = Bar(x=names, y=values, marker={"color": PALETTE[0]}, showlegend=False)
    bar.error_y = {"array": up, "arrayminus": down, "color": "#444444", "thickness": 1}
    unit = next(iter(numbers.values())).unit
    figure = laid_out(Figure(bar), title, "level (pairs)", unit)
    return figure.update_xaxes(tickangle=-60, type="category")
