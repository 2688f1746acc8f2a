"""Figures of a study that no single command draws."""

from __future__ import annotations

from collections.abc import Mapping

from persona_circuits.circuit.figures import Chart, Points, bar_chart
from persona_circuits.persona.study.numbers import Number

__all__ = [
    "level_figure",
]


def level_figure(numbers: Mapping[str, Number], title: str) -> Chart:
    """A point per number, with its interval where it has one, in their order."""
    names = [f"{name} ({one.n})" if one.n is not None else name for name, one in numbers.items()]
    values, low, high = ([getattr(one, end) for one in numbers.values()] for end in ("value", "low", "high"))
    unit = next(iter(numbers.values())).unit
    points = Points("", values, names, low, high)
    return bar_chart([points], title=title, x=unit, y="level (pairs)", across=True)
