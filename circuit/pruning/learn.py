"""Learned masks: a gate on every edge, trained so that few open ones preserve the model's behaviour.

    gate = clamp(1.2 sigmoid((log u - log(1 - u) + a) / beta) - 0.1, 0, 1)      u uniform, one a for every edge
    loss = mean of ((m(gated) - m(full)) / mean |m(full) - m(empty)|)^2 + price log(expected open gates / size)^2

Hard concrete gates (Louizos et al. 2018, arXiv:1712.01312) on edges, as in Edge Pruning (Bhaskar et al. 2024,
arXiv:2406.16778). They start from scores, and the target size shrinks from the number of edges open at the start to
the final one: a score looks at one edge with all others in place, a gate at what edges do together.

Of a graph with many edges nodes are chosen first, by one gate each (as in DiscoGP, Yu et al. 2024, arXiv:2407.03779):
an edge's gate is then the product of its two nodes' gates. Edges get gates of their own between the nodes left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.pruning.select import check_n, top_n
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import Kept, search_of
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric

__all__ = ["NODES_ABOVE", "Learned", "Schedule", "learn"]

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
NODES_ABOVE = 1_000_000
NODE_STEPS = 3
"""One step in so many trains the nodes' gates, where there are any."""
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
    nodes_above
        With more edges than this in the graph the first third of the steps trains gates of nodes, down to nodes with
        about ``8 n`` edges between them.
    """

    n: int
    steps: int = 200
    rate: float = 0.15
    seed: int = 0
    max_bytes: int = MAX_BYTES
    nodes_above: int = NODES_ABOVE


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
    graph, n = model.graph, schedule.n
    measured = _Measured(model, batches, metric, schedule, ablation)
    with Kept(state, measured.search(scores)) as kept:
        within, n_first = graph.valid, 0
        if graph.n_edges > schedule.nodes_above:
            n_first = schedule.steps // NODE_STEPS
            nodes = _Training(measured, _start_of_nodes(graph, scores), WIDE * n, _edges_of(graph, model.device))
            nodes.run("nodes", range(n_first), kept, progress)
            within = _between(graph, nodes.likelihood(), WIDE * n)
        valid = torch.from_numpy(within.copy()).to(model.device)
        edges = _Training(measured, _start(graph, within, scores, n), n, lambda x: x * valid)
        edges.run("gates", range(n_first, schedule.steps), kept, progress)
    chance = edges.likelihood() * within
    if scores is not None:  # gates that were never opened are in the order of their scores
        chance += TIES * np.abs(scores.values) / max(np.abs(scores.values).max(), np.finfo(float).tiny)
    chances = Scores(graph, np.where(graph.valid, chance, 0.0))
    return Learned(top_n(chances, n), chances)


class _Measured:
    """The training prompts' plain runs, and the loss of gates on them."""

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch | Prepared],
        metric: Metric,
        schedule: Schedule,
        ablation: Ablation | None,
    ) -> None:
        self.model, self.metric, self.schedule = model, metric, schedule
        self.runs = KeptRuns(model, _parts(model, batches, ablation, schedule.max_bytes), ablation)
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

    def search(self, scores: Scores | None) -> str:
        """What identifies this training."""
        start = None if scores is None else scores.values.tobytes()
        return search_of(self.model.fingerprint, self.metric.name, self.schedule, len(self.runs), self.scale, start)

    def slope(self, gates: Float[Tensor, "src dst"], step: int) -> Float[Tensor, "src dst"]:
        """The gradient of the loss, without its price, at the gates of all edges, on this step's prompts."""
        order = np.random.default_rng([self.schedule.seed, step // len(self.runs)]).permutation(len(self.runs))
        at, n_rows = gates.detach().requires_grad_(), 0
        for item in self.runs.of(int(order[step % len(self.runs)])):
            gap = self.metric(gated_logits(self.model, item, at.to(self.model.dtype)), item.targets)
            gap = (gap - self.metric(item.clean.logits, item.targets)) / self.scale
            gap.square().sum().backward()
            n_rows += len(item)
        assert at.grad is not None
        return at.grad / n_rows


class _Training:
    """Gates from their initial logits to a size in edges; ``edges`` makes every edge's gate of theirs."""

    def __init__(
        self, measured: _Measured, start: np.ndarray, n: int, edges: Callable[[Tensor], Float[Tensor, "src dst"]]
    ) -> None:
        self.measured, self.n, self.edges = measured, n, edges
        self.logits = torch.from_numpy(start).float().to(measured.model.device).requires_grad_()
        self.optimiser = torch.optim.Adam([self.logits], lr=measured.schedule.rate)
        self.first_size = float(self._size().detach())

    def likelihood(self) -> np.ndarray:
        """How likely each gate is open."""
        return torch.sigmoid(self.logits.detach().double() - OPEN).cpu().numpy()

    def _size(self) -> Float[Tensor, ""]:
        """Expected open edges."""
        return self.edges(torch.sigmoid(self.logits - OPEN)).sum()

    def _gates(self, noise: torch.Generator) -> Float[Tensor, "src dst"]:
        u = torch.rand(self.logits.shape, generator=noise).clamp(1e-6, 1 - 1e-6).to(self.logits.device)
        soft = torch.sigmoid((u.log() - (-u).log1p() + self.logits) / BETA)
        return self.edges((soft * (MOST - LEAST) + LEAST).clamp(0, 1))

    def _wanted(self, done: float) -> float:
        """The target size after a share of the steps: shrinking by a constant factor, then the final one."""
        return self.first_size * (self.n / self.first_size) ** min(1.0, done / SHRINKING)

    def run(self, name: str, steps: range, kept: Kept, progress: Progress | None) -> None:
        """Train in the given steps, of which those kept under the name are done."""
        for step in range(self._resume(kept.part(name), steps.start), steps.stop):
            self._one(step, (step + 1 - steps.start) / len(steps))
            kept.add({name: self._arrays(step + 1)})
            if progress is not None:
                progress(step + 1, self.measured.schedule.steps)

    def _one(self, step: int, done: float) -> None:
        """A step depends on its number and the gates alone, so that interrupted training resumes identically."""
        noise = torch.Generator().manual_seed(self.measured.schedule.seed * 1_000_003 + step)
        self.optimiser.zero_grad()
        with torch.enable_grad():
            gates = self._gates(noise)
            gates.backward(self.measured.slope(gates, step))
            (PRICE * (self._size() / self._wanted(done)).log().square()).backward()
        self.optimiser.step()

    def _arrays(self, step: int) -> dict[str, np.ndarray]:
        """Copies of everything the next step depends on."""
        own = self.optimiser.state[self.logits]
        tensors = {"logits": self.logits.detach(), "first": own["exp_avg"], "second": own["exp_avg_sq"]}
        return {"step": np.array([step]), **{name: x.cpu().numpy().copy() for name, x in tensors.items()}}

    def _resume(self, state: dict[str, np.ndarray], first: int) -> int:
        """The step to go on with."""
        if not state:
            return first
        step = int(state["step"][0])
        logits, first_moment, second = (
            torch.from_numpy(state[name]).to(self.logits) for name in ("logits", "first", "second")
        )
        with torch.no_grad():
            self.logits.copy_(logits)
        made = torch.tensor(float(step - first))
        self.optimiser.state[self.logits] = {"step": made, "exp_avg": first_moment, "exp_avg_sq": second}
        return step


def _edges_of(graph: Graph, device: torch.device | str) -> Callable[[Tensor], Float[Tensor, "src dst"]]:
    """What makes every edge's gate of its nodes' gates; the logits' is 1."""
    owners, valid = (torch.from_numpy(table.copy()).to(device) for table in (graph.source_of_slot, graph.valid))
    return lambda nodes: nodes[:, None] * torch.cat([nodes, nodes.new_ones(1)])[owners] * valid


def _between(graph: Graph, likely: Float[np.ndarray, " src"], n: int) -> np.ndarray:
    """The edges between the fewest nodes, most likely open first and ``input`` before all, that have n edges."""
    rank = np.zeros(graph.n_src + 1, dtype=int)
    rank[1 + np.argsort(-likely[1:], kind="stable")] = np.arange(1, graph.n_src)
    needed = np.maximum(rank[:-1, None], rank[graph.source_of_slot])
    return graph.valid & (needed <= np.sort(needed[graph.valid])[min(n, graph.n_edges) - 1])


def _start_of_nodes(graph: Graph, scores: Scores | None) -> Float[np.ndarray, " src"]:
    """Initial gates of nodes: from likely open to likely shut, by rank of the sum of their edges' scores."""
    if scores is None:
        return np.full(graph.n_src, SURE)
    out = np.empty(graph.n_src)
    out[np.argsort(-np.abs(scores.values.sum(axis=1)), kind="stable")] = np.linspace(SURE, -SURE, graph.n_src)
    return out


def _start(graph: Graph, within: np.ndarray, scores: Scores | None, n: int) -> Float[np.ndarray, "src dst"]:
    """Initial gates of edges: the strongest from likely open to undecided, by rank."""
    if scores is None:
        return np.full(graph.valid.shape, SURE)
    out = np.full(graph.valid.shape, SHUT)
    src, dst = np.nonzero(within)
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
