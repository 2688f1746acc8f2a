"""What is timed, once for all benchmarks: the engine's public functions as steps without arguments.

The bare passes they are compared with are ``circuit.profiling.benchmark.bare_passes`` and ``bare_forward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from persona_circuits.circuit.evaluation import random_circuits
from persona_circuits.circuit.forward import Prepared, divergence, measure, patched_logits
from persona_circuits.circuit.graph import Edge
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.profiling import Step
from persona_circuits.circuit.pruning import AcdcResult, Trials, acdc
from persona_circuits.metrics import METRICS

LOGIT_DIFF, KL = METRICS["logit-diff"], METRICS["kl"]


@dataclass(frozen=True)
class Beside:
    """What a step is measured against: run once before every round of it, so that both meet the same machine.

    The ratio is to ``times`` of it; ``name`` says so in the table.
    """

    name: str
    step: Step
    times: float = 1.0


def mask_tensor(model: Model, mask: np.ndarray) -> torch.Tensor:
    """One circuit as ``patched_logits`` takes it."""
    return torch.from_numpy(mask.copy())[None].to(model.device)


def one_circuit(model: Model, item: Prepared, n_edges: int, *, seed: int = 0) -> Step:
    """One patched forward pass with a random circuit."""
    kept = mask_tensor(model, random_circuits(model.graph, n_edges, 1, seed=seed)[0].mask)
    return lambda: patched_logits(model, item, kept)


def many_circuits(model: Model, item: Prepared, sizes: Sequence[int], each: int) -> Step:
    """``each`` random circuits of every size, measured as the program does it: as many per pass as memory allows."""
    masks = [c.mask for i, size in enumerate(sizes) for c in random_circuits(model.graph, size, each, seed=i)]
    return lambda: measure(model, [item], masks, LOGIT_DIFF)


def circuit_sizes(model: Model) -> tuple[int, ...]:
    """Five sizes from a thousandth of all edges to 60 %, at least one path long."""
    return tuple(max(8, round(share * model.graph.n_edges)) for share in (0.002, 0.006, 0.03, 0.1, 0.6))


def single_edges(model: Model, item: Prepared, edges: Sequence[Edge]) -> Step:
    """Exact patching of some edges: each corrupted alone."""
    masks = []
    for edge in edges:
        mask = model.graph.valid.copy()
        mask[model.graph.index(edge)] = False
        masks.append(mask)
    return lambda: measure(model, [item], masks, LOGIT_DIFF)


def full_forwards(model: Model, item: Prepared, edges: Sequence[Edge]) -> Step:
    """What ACDC costs without batches and without a start at the edge's layer: every layer, for every edge.

    An edge into the first head is cut too, so that the pass starts at the first layer; a
    measure of cost, not of circuits.
    """
    masks = []
    for edge in edges:
        mask = model.graph.valid.copy()
        mask[model.graph.index(edge)] = mask[0, 0] = False
        masks.append(mask_tensor(model, mask))

    def step() -> None:
        for mask in masks:
            KL(patched_logits(model, item, mask)[0], item.targets)

    return step


@dataclass(frozen=True)
class AcdcRun:
    """ACDC over some edges in a given order, all others kept; ``results`` fills as it is run."""

    model: Model
    item: Prepared
    edges: Sequence[Edge]
    tau: float
    candidates: int | None = None

    def __call__(self) -> AcdcResult:
        return acdc(self.model, [self.item], KL, self.tau, trials=Trials(order=self.edges, candidates=self.candidates))

    def kept(self, result: AcdcResult) -> set[str]:
        """Names of the tried edges that must stay."""
        index = self.model.graph.index
        return {str(edge) for edge in self.edges if not result.changes[index(edge)] < self.tau}


def kl_threshold(item: Prepared, share: float) -> float:
    """A threshold as a share of KL(full || empty), so that it means the same for all random weights."""
    return share * abs(divergence([item], KL))


def all_edges_in_order(model: Model) -> list[Edge]:
    """Every edge, in the order in which ACDC tries them."""
    graph = model.graph
    return [graph.edge(s, d) for d in reversed(range(graph.n_dst)) for s in reversed(range(graph.n_reaching(d)))]


def acdc_text(result: Any, n_edges: int) -> str:
    """Passes, circuits and waste of a result, in one phrase."""
    return f"{result.passes} passes and {result.evaluated} circuits ({result.wasted} for nothing) for {n_edges} edges"
