"""What many circuits score on every pair: in parts, with progress, and a file to go on from after a stop."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit import parallel as ranks
from persona_circuits.circuit.evaluation.faithfulness import pairwise
from persona_circuits.circuit.forward import Prepared, Rounding, measure
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.storage import read_state, state_metadata, tell_damaged, write_bytes
from persona_circuits.metrics import Metric

__all__ = [
    "Measurements",
    "Source",
]

Source = Callable[[], Iterable[Prepared]]
"""Gives this process's batches, anew at every call."""
PART = 16
"""Circuits for which the batches are gone through once: the source is called once for each part."""
SAVE_SECONDS = 30.0
ROUNDING = "rounding"
"""The key, beside those of the parts, under which the state file keeps how far rounding moves the metric."""


class Measurements:
    """The metric of circuits, per pair; what was measured before the program was stopped is read from ``state``.

    Parameters
    ----------
    total
        Number of circuits that will be asked for, or the most it can be, for ``progress``.
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
        self.total, self.progress, self.state = total, progress, state
        self.n_done, self.n_pairs, self.saved = 0, 0, time.monotonic()
        self._watch = Rounding(model, metric)
        self.search = self._search() if state else ""
        self.known = ranks.gathered(read_state(state, self.search) if ranks.is_first() else {}) if state else {}

    def of(self, masks: Iterable[np.ndarray]) -> Float[np.ndarray, "mask pair"]:
        """What each circuit scores; both directions of a swapped pair averaged."""
        items, found = iter(masks), []
        while part := list(islice(items, PART)):
            found.append(self._part(part))
            self.n_done += len(part)
            if self.progress is not None:
                self.progress(self.n_done, max(self.total, self.n_done))
        if found:
            self.n_pairs = found[0].shape[1]
        return np.concatenate(found) if found else np.zeros((0, self.n_pairs))

    @property
    def rounding(self) -> float:
        """How far rounding alone moves the metric on these pairs, once something is measured."""
        return float(self.known[ROUNDING][0]) if ROUNDING in self.known else self._watch.floor

    def done(self) -> None:
        """There is no more to measure: the bar is full, and the state file goes."""
        if self.progress is not None:
            self.progress(max(self.total, self.n_done), max(self.total, self.n_done))
        if self.state and ranks.is_first():
            self.state.unlink(missing_ok=True)

    def _part(self, masks: list[np.ndarray]) -> Float[np.ndarray, "mask pair"]:
        if not self.state:
            return self._measured(masks)
        key = hashlib.sha256(b"".join(np.packbits(mask).tobytes() for mask in masks)).hexdigest()
        if key in self.known and (self.known[key].ndim != 2 or len(self.known[key]) != len(masks)):
            tell_damaged(self.state, "it does not hold measurements of these circuits")
            del self.known[key]
        if key not in self.known:
            self.known[key] = self._measured(masks)
            if ranks.is_first() and time.monotonic() - self.saved > SAVE_SECONDS:
                self._save()
        return self.known[key]

    def _measured(self, masks: list[np.ndarray]) -> Float[np.ndarray, "mask pair"]:
        prepared = self._watch.watched(self.prepared()) if not self._watch.floor else self.prepared()
        found = pairwise(measure(self.model, prepared, masks, self.metric), self.metric)
        if self.state:
            self.known.setdefault(ROUNDING, np.array([self._watch.floor]))
        return found

    def _search(self) -> str:
        """Of the model, the metric, the prompts of all processes and what cut edges carry."""
        digest = hashlib.sha256(f"{self.model.fingerprint} {self.metric.name}".encode())
        for item in self.prepared():
            digest.update(item.batch.clean.cpu().numpy().tobytes() + item.batch.corrupt.cpu().numpy().tobytes())
            digest.update(item.batch.answers.cpu().numpy().tobytes() + item.batch.wrong_answers.cpu().numpy().tobytes())
            digest.update(item.ablated.logits.float().cpu().numpy().tobytes())
        own = digest.hexdigest()
        return hashlib.sha256("".join(sorted(ranks.gathered({own: own}))).encode()).hexdigest()

    def _save(self) -> None:
        from safetensors.numpy import save

        assert self.state is not None
        write_bytes(save(self.known, metadata=state_metadata(self.search, self.known)), self.state)
        self.saved = time.monotonic()
