"""Circuits of several contrasts, each ablated on each: what is specific to its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from persona_circuits.circuit.evaluation.faithfulness import median_of_ratios
from persona_circuits.circuit.evaluation.transfers import INTACT, Pairs, measured
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import Clusters, Interval, PairSample, is_zero
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = ["Cell", "Specificity", "specificity"]


@dataclass(frozen=True)
class Cell:
    """What is left of a contrast when a circuit is ablated: f of the circuit's complement on it.

    ``left`` is a ratio of means, ``median_of_ratios`` of the pairs' own.
    """

    circuit: str
    contrast: str
    left: float | None
    interval: Interval | None
    median_of_ratios: float | None = None


@dataclass(frozen=True)
class Specificity:
    """The matrix of circuits and contrasts, and what it says; ``resampled`` is what intervals are drawn over."""

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    findings: tuple[str, ...]
    resampled: dict[str, str] = field(default_factory=dict)

    def matrix(self) -> np.ndarray:
        """``[circuit, contrast]``; nan where a contrast has no effect to explain."""
        left = [np.nan if cell.left is None else cell.left for cell in self.cells]
        return np.array(left).reshape(len(self.names), len(self.names))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def specificity(
    model: Model,
    contrasts: Mapping[str, tuple[Circuit, Pairs, Metric]],
    *,
    clusters: Mapping[str, Clusters] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Specificity:
    """Ablate each contrast's circuit on each contrast's pairs, with the contrast's own metric.

    ``clusters`` say by contrast which of its pairs share personas and questions, for the intervals.
    """
    names = tuple(contrasts)
    masks = [Circuit.full(model.graph).mask, Circuit.empty(model.graph).mask]
    masks += [circuit.complement().mask for circuit, _, _ in contrasts.values()]
    columns, resampled = [], {}
    for name, (_, pairs, metric) in contrasts.items():
        values, rounding = measured(model, pairs(), masks, metric)
        full, empty, *others = values
        sample = PairSample(name, (clusters or {}).get(name), seed)
        resampled[name] = sample.over(len(full)).describe()
        columns.append(
            [
                _cell(own, sample, alone - empty, full - empty, rounding)
                for own, alone in zip(names, others, strict=True)
            ]
        )
        if progress is not None:
            progress(len(columns), len(names))
    cells = tuple(columns[j][i] for i in range(len(names)) for j in range(len(names)))
    return Specificity(names, cells, tuple(_findings(names, cells)), resampled)


def _cell(circuit: str, sample: PairSample, moved: np.ndarray, span: np.ndarray, rounding: float) -> Cell:
    if is_zero(span, rounding):
        return Cell(circuit, sample.split, None, None)
    left, bounds = float(moved.mean() / span.mean()), sample.ratio(moved, span)
    return Cell(circuit, sample.split, left, bounds, median_of_ratios(moved, span, rounding))


def _findings(names: Sequence[str], cells: Sequence[Cell]) -> list[str]:
    """A sentence for every circuit that does not break its own contrast, or breaks another's."""
    findings = []
    for cell in cells:
        text = _finding(cell)
        if text is not None and text not in findings:
            findings.append(text)
    return findings or [f"every circuit breaks its own contrast and leaves at least {INTACT} of the others"]


def _finding(cell: Cell) -> str | None:
    """What speaks against a dissociation in this cell; None where nothing does."""
    if cell.left is None:
        return f"{cell.contrast}: no effect to explain, so nothing can be said of the circuit of {cell.circuit}"
    low, high = (cell.interval.low, cell.interval.high) if cell.interval else (cell.left, cell.left)
    bounds = f" (95 % interval {low:.2f} to {high:.2f})"
    ablating = f"ablating the circuit of {cell.circuit} leaves"
    if cell.circuit == cell.contrast:
        if cell.left >= INTACT:
            return f"not necessary: {ablating} {cell.left:.2f} of its own effect"
        return (
            f"not shown to be necessary: {ablating} {cell.left:.2f} of its own effect{bounds}"
            if high >= INTACT
            else None
        )
    if cell.left < INTACT:
        return f"no dissociation: {ablating} only {cell.left:.2f} of {cell.contrast}"
    if cell.left > 1 / INTACT:
        return f"no dissociation: {ablating} {cell.left:.2f} of {cell.contrast}, more than there was"
    if low < INTACT or high > 1 / INTACT:
        return f"dissociation not shown: {ablating} {cell.left:.2f} of {cell.contrast}{bounds}"
    return None
