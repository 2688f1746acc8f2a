"""Learned masks: a gate on every edge, trained so that few open ones preserve the model's behaviour.

    gate = clamp(1.2 sigmoid((log u - log(1 - u) + a) / beta) - 0.1, 0, 1)      u uniform, one a for every edge
    loss = mean of ((m(gated) - m(full)) / mean |m(full) - m(empty)|)^2 + price log(expected open gates / size)^2

Hard concrete gates (Louizos et al. 2018, arXiv:1712.01312) on edges, as in Edge Pruning (Bhaskar et al. 2024,
arXiv:2406.16778). They start from scores, and the target size shrinks from the number of edges open at the start to
the final one: a score looks at one edge with all others in place, a gate at what edges do together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit import parallel
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import Ablation, KeptRuns, Prepared, bare, first_difference
from persona_circuits.circuit.forward.gated import gated_bytes, gated_logits
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.pruning.select import check_n, top_n
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import Kept, search_of
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric

__all__ = ["Learned", "Schedule", "learn"]

BETA, LEAST, MOST = 2 / 3, -0.1, 1.1
"""Temperature of hard concrete gates, and the interval they are stretched to before they are clamped."""
OPEN = BETA * math.log(-LEAST / MOST)
"""P(gate > 0) is sigmoid(a - OPEN)."""
SURE, SHUT = 2.0, -9.0
"""Initial logits of the strongest edges' gates and of all others."""
PRICE = 4.0
WIDE = 8
"""Gates open at the start, as a multiple of the final size."""
SHRINKING = 0.6
"""Share of the steps after which the target size is the final one."""
TIES = 1e-9
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Schedule:
    """How gates are trained.

    Parameters
    ----------
    n
        Edges to keep at the end.
    steps
        Of Adam, each on as many prompts as fit ``max_bytes``.
    rate
        Adam's learning rate, in units of a gate's logit.
    seed
        Of the gates' noise and of the prompts' order.
    max_bytes
        Bound on the memory of a differentiated pass.
    """

    n: int
    steps: int = 200
    rate: float = 0.15
    seed: int = 0
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True, eq=False)
class Learned:
    """The circuit of the ``n`` edges whose gates are most likely open, and that likelihood for every edge."""

    circuit: Circuit
    open: Scores


def learn(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    scores: Scores | None,
    schedule: Schedule,
    *,
    ablation: Ablation | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Train a gate on every edge, from scores to a circuit of ``schedule.n`` edges without dead ends.

    Parameters
    ----------
    batches
        The training prompts.
    scores
        The strongest ``8 n`` edges start open, the stronger the more; all others start almost shut. Without scores
        all start open, which takes more steps.
    state
        File in which the gates are saved, at most twice a minute; training resumes from it. Removed at the end.

    Returns
    -------
    The circuit, and how likely each gate is open, by which circuits of other sizes can be chosen.

    Raises
    ------
    OptionError
        The size is not between 1 and the number of edges, or several processes share the work.
    """
    check_n(schedule.n, model.graph)
    if parallel.size() > 1:
        raise OptionError("learned masks are trained by one process; run --prune learn without torchrun")
    if schedule.steps < 1:
        raise OptionError(f"training takes at least one step, got {schedule.steps}")
    training = _Training(model, batches, metric, scores, schedule, ablation)
    training.run(state, progress)
    chance = torch.sigmoid(training.logits.detach().double() - OPEN).cpu().numpy()
    if scores is not None:  # gates that were never opened are in the order of their scores
        chance += TIES * np.abs(scores.values) / max(np.abs(scores.values).max(), np.finfo(float).tiny)
    chances = Scores(model.graph, np.where(model.graph.valid, chance, 0.0))
    return Learned(top_n(chances, schedule.n), chances)


class _Training:
    """Gates, their optimiser and their noise; ``step`` is how many steps were made."""

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch | Prepared],
        metric: Metric,
        scores: Scores | None,
        schedule: Schedule,
        ablation: Ablation | None,
    ) -> None:
        self.model, self.metric, self.schedule = model, metric, schedule
        self.start = np.full(model.graph.valid.shape, SURE) if scores is None else _start(scores, schedule.n)
        self.runs = KeptRuns(model, _parts(model, batches, ablation, schedule.max_bytes), ablation)
        self.valid = torch.from_numpy(model.graph.valid.copy()).to(model.device)
        self.logits = torch.from_numpy(self.start).float().to(model.device).requires_grad_()
        self.optimiser = torch.optim.Adam([self.logits], lr=schedule.rate)
        self.first_size = float(self._size().detach())
        self.step = 0
        self.scale = self._scale()

    def _scale(self) -> float:
        """mean |m(full) - m(empty)| over all prompts."""
        gaps = [
            (self.metric(item.clean.logits, item.targets) - self.metric(item.ablated.logits, item.targets)).abs()
            for item in self.runs()
        ]
        scale = float(torch.cat(gaps).mean())
        if not scale > 0:
            raise OptionError(
                "the metric is the same with every edge ablated as with none, so there is nothing that gates could "
                "keep; use other pairs"
            )
        return scale

    def _size(self) -> Float[Tensor, ""]:
        """Expected open gates."""
        return torch.sigmoid(self.logits - OPEN)[self.valid].sum()

    def _gates(self, noise: torch.Generator) -> Float[Tensor, "src dst"]:
        u = torch.rand(self.logits.shape, generator=noise).clamp(1e-6, 1 - 1e-6).to(self.logits.device)
        soft = torch.sigmoid((u.log() - (-u).log1p() + self.logits) / BETA)
        return (soft * (MOST - LEAST) + LEAST).clamp(0, 1) * self.valid

    def wanted(self, step: int) -> float:
        """The target size at a step: shrinking by a constant factor, then the final one."""
        done = min(1.0, (step + 1) / (SHRINKING * self.schedule.steps))
        return self.first_size * (self.schedule.n / self.first_size) ** done

    def run(self, state: Path | None, progress: Progress | None) -> None:
        with Kept(state, self._search()) as kept:
            self._resume(kept.part("gates"))
            while self.step < self.schedule.steps:
                self._one(self.step)
                self.step += 1
                kept.add({"gates": self._arrays()})
                if progress is not None:
                    progress(self.step, self.schedule.steps)

    def _one(self, step: int) -> None:
        """A step depends on its number and the gates alone, so that interrupted training resumes identically."""
        order = np.random.default_rng([self.schedule.seed, step // len(self.runs)]).permutation(len(self.runs))
        noise = torch.Generator().manual_seed(self.schedule.seed * 1_000_003 + step)
        self.optimiser.zero_grad()
        n_rows = 0
        with torch.enable_grad():
            gates = self._gates(noise)
            at = gates.detach().requires_grad_()
            for item in self.runs.of(int(order[step % len(self.runs)])):
                gap = self.metric(gated_logits(self.model, item, at.to(self.model.dtype)), item.targets)
                gap = (gap - self.metric(item.clean.logits, item.targets)) / self.scale
                gap.square().sum().backward()
                n_rows += len(item)
            assert at.grad is not None
            gates.backward(at.grad / n_rows)
            (PRICE * (self._size() / self.wanted(step)).log().square()).backward()
        self.optimiser.step()

    def _search(self) -> str:
        """What identifies this training."""
        model, start = self.model.fingerprint, self.start.tobytes()
        return search_of(model, self.metric.name, self.schedule, len(self.runs), self.scale, start)

    def _arrays(self) -> dict[str, np.ndarray]:
        """Copies of everything the next step depends on."""
        own = self.optimiser.state[self.logits]
        tensors = {"logits": self.logits.detach(), "first": own["exp_avg"], "second": own["exp_avg_sq"]}
        return {"step": np.array([self.step]), **{name: x.cpu().numpy().copy() for name, x in tensors.items()}}

    def _resume(self, state: dict[str, np.ndarray]) -> None:
        if not state:
            return
        self.step = int(state["step"][0])
        logits, first, second = (
            torch.from_numpy(state[name]).to(self.logits) for name in ("logits", "first", "second")
        )
        with torch.no_grad():
            self.logits.copy_(logits)
        step = torch.tensor(float(self.step))
        self.optimiser.state[self.logits] = {"step": step, "exp_avg": first, "exp_avg_sq": second}


def _start(scores: Scores, n: int) -> Float[np.ndarray, "src dst"]:
    """Initial gates: the strongest edges from likely open to undecided, by rank."""
    valid = scores.graph.valid
    out = np.full(valid.shape, SHUT)
    src, dst = np.nonzero(valid)
    some = np.argsort(-np.abs(scores.values[src, dst]), kind="stable")[: WIDE * n]
    out[src[some], dst[some]] = np.linspace(SURE, -SURE, len(some))
    return out


def _parts(
    model: Model, batches: Sequence[Batch | Prepared], ablation: Ablation | None, max_bytes: int
) -> list[Batch | Prepared]:
    """Batches of as many rows as fit a differentiated pass within the bound; whole ones keep their plain runs."""
    items: list[Batch | Prepared] = []
    for item in batches:
        batch = bare(item)
        n_late = batch.n_tokens - first_difference(item, ablation)
        parts = batch.parts(max(2, max_bytes // gated_bytes(model, n_late)))
        items += [item] if len(parts) == 1 else parts
    return items
