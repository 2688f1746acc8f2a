"""The metric of many circuits on every pair: in parts, with progress, and a file to resume from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.evaluation.faithfulness import pairwise
from persona_circuits.circuit.forward import Prepared, Rounding, measure, search_on
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.storage import Kept
from persona_circuits.metrics import Metric

__all__ = ["Measurements", "Source"]

Source = Callable[[], Iterable[Prepared]]
"""Gives this process's batches, afresh at every call."""
PART = 16
"""Circuits measured per run over the batches."""


class Measurements:
    """The metric of circuits, per pair; what was measured before the program was stopped is read from ``state``.

    Parameters
    ----------
    total
        Number of circuits to be measured, or its upper bound, for ``progress``.
    state
        File for what has been measured, written at most twice a minute; ``done`` removes
        it. One of another model, metric, ablation or other prompts is not used.
    """

    def __init__(
        self,
        model: Model,
        prepared: Source,
        metric: Metric,
        *,
        total: int = 0,
        progress: Progress | None = None,
        state: Path | None = None,
    ) -> None:
        self.model, self.prepared, self.metric = model, prepared, metric
        self.total, self.progress = total, progress
        self.n_done, self.n_pairs = 0, 0
        self._watch = Rounding(model, metric)
        self.kept = Kept(state, search_on(model, prepared(), metric) if state else "")

    def of(self, masks: Iterable[np.ndarray]) -> Float[np.ndarray, "mask pair"]:
        """What each circuit scores; both directions of a swapped pair averaged."""
        items, values = iter(masks), []
        while part := list(islice(items, PART)):
            values.append(self._part(part))
            self.n_done += len(part)
            if self.progress is not None:
                self.progress(self.n_done, max(self.total, self.n_done))
        if values:
            self.n_pairs = values[0].shape[1]
        return np.concatenate(values) if values else np.zeros((0, self.n_pairs))

    @property
    def rounding(self) -> float:
        """How far rounding alone moves the metric on these pairs, once something is measured."""
        known = self.kept.part("rounding")
        return float(known["floor"][0]) if known else self._watch.floor

    def done(self) -> None:
        """Finish: complete the progress bar and remove the state file."""
        if self.progress is not None:
            self.progress(max(self.total, self.n_done), max(self.total, self.n_done))
        self.kept.done()

    def _part(self, masks: list[np.ndarray]) -> Float[np.ndarray, "mask pair"]:
        key = hashlib.sha256(b"".join(np.packbits(mask).tobytes() for mask in masks)).hexdigest()
        return self.kept.of(key, lambda: {"values": self._measured(masks)})["values"]

    def _measured(self, masks: list[np.ndarray]) -> Float[np.ndarray, "mask pair"]:
        prepared = self._watch.watched(self.prepared()) if not self._watch.floor else self.prepared()
        values = pairwise(measure(self.model, prepared, masks, self.metric), self.metric)
        self.kept.of("rounding", lambda: {"floor": np.array([self._watch.floor])})
        return values
