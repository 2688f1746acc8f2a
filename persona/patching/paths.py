"""Path patching: what one node hands directly to another, put into the other persona's run.

Only the edge from sender to receiver carries the other run's value; all other readers of the sender
read what it writes in this run, and what the receiver then writes is computed anew
(Wang et al. 2022, arXiv:2211.00593; Goldowsky-Dill et al. 2023, arXiv:2304.05969). In the graph here
MLPs are nodes, so a path through an MLP is a path of two edges and not a direct one. A
receiver is ``logits``, an MLP, a head's ``<q>``, ``<k>`` or ``<v>``, or a head, which is all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from persona_circuits.circuit.errors import GraphError, OptionError
from persona_circuits.circuit.forward import Prepared, patched_logits, per_pass, portions, prepare_each
from persona_circuits.circuit.graph import INPUT, SLOTS, Edge, Graph, parse_edge, parse_node
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.storage import Kept
from persona_circuits.circuit.task import Batch
from persona_circuits.persona.data import Estimate, ratio_of_means
from persona_circuits.persona.explanation import margins

__all__ = ["Paths", "parse_paths", "patch_paths"]

TOGETHER = "together"
"""All senders to a receiver at once; without named senders all that the receiver reads."""


@dataclass(frozen=True)
class PathPlan:
    """Which paths: the senders' places among the sources, and each receiver's slots by its name."""

    senders: tuple[int, ...]
    receivers: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, eq=False)
class Paths:
    """Effects of paths. Senders end with ``together``.

    ``values`` are in logits, ``[direction, sender, receiver, pair]``, nan where a sender does not
    come before a receiver; ``shares`` the estimates by direction, ``[sender][receiver]``.
    """

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    values: NDArray[np.float64]
    shares: Mapping[str, tuple[tuple[Estimate | None, ...], ...]]
    passes: int
    runs: int


def parse_paths(graph: Graph, senders: Sequence[str], receivers: Sequence[str]) -> PathPlan | None:
    """The paths of these names; all sources where no sender is named, None where no receiver is.

    Raises:
        OptionError: a name is not one of this model's, or a sender comes before no receiver.
    """
    if not receivers:
        return None
    try:
        sources = tuple(dict.fromkeys(graph.src_index(name) for name in senders)) or tuple(range(graph.n_src))
    except GraphError as error:
        raise OptionError(f"--from: {error}") from error
    try:
        targets = tuple((name, _slots(graph, name)) for name in dict.fromkeys(receivers))
    except GraphError as error:
        raise OptionError(f"--to: {error}") from error
    for src in sources if senders else ():
        if not any(graph.valid[src, list(slots)].any() for _, slots in targets):
            raise OptionError(
                f"--from {graph.src_nodes[src]}: it comes before none of {', '.join(receivers)}, so no path leads there"
            )
    for name, slots in targets:
        if not graph.valid[np.ix_(sources, slots)].any():
            raise OptionError(f"--to {name}: none of the senders comes before it")
    return PathPlan(sources, targets)


def patch_paths(
    model: Model,
    groups: Sequence[Batch],
    plan: PathPlan,
    divergence: Float[np.ndarray, " pair"],
    clusters: Clusters,
    *,
    seed: int = 0,
    kept: Kept,
    progress: Progress,
) -> Paths:
    """Every path on every pair, in both directions.

    Parameters
    ----------
    groups
        Batches of the pairs' rows in both directions.
    divergence
        D of every pair, in the rows' order.
    kept
        What a stopped study did; what is done here is added.

    Returns
    -------
    The effect of every path, in shares of D, with intervals.
    """
    n_senders, n_receivers = len(plan.senders) + 1, len(plan.receivers)
    values = np.full((2 * len(divergence), n_senders, n_receivers), np.nan)
    passes = runs = 0
    for done, group in enumerate(groups):
        for item in prepare_each(model, [group]):
            passes, runs = passes + 2, runs + 2 * len(item.batch)
            for place, (receiver, slots) in enumerate(plan.receivers):
                make = partial(_of_receiver, model, item, plan.senders, slots)
                result = kept.of(f"paths {receiver} {item.batch.place}", make)
                values[np.array(item.batch.indices)[:, None], result["senders"], place] = result["moved"]
                passes, runs = passes + int(result["passes"][0]), runs + result["moved"].size
                progress(done * n_receivers + place + 1, len(groups) * n_receivers)
    by_direction = np.stack([values[0::2], values[1::2]]).transpose(0, 2, 3, 1)
    numerators = {"noising": by_direction[0], "denoising": by_direction[1], "both": by_direction.mean(0)}
    shares = {name: _shares(numerator, divergence, clusters, seed) for name, numerator in numerators.items()}
    names = (*(str(model.graph.src_nodes[src]) for src in plan.senders), TOGETHER)
    return Paths(names, tuple(name for name, _ in plan.receivers), by_direction, shares, passes, runs)


def _slots(graph: Graph, name: str) -> tuple[int, ...]:
    """The slots that a receiver's name stands for."""
    if name.endswith(">"):
        edge = parse_edge(f"{INPUT}->{name}")
        return (graph.index(edge)[1],)
    node = parse_node(name)
    slots = SLOTS if node.kind == "head" else (None,)
    return tuple(graph.index(Edge(INPUT, node, slot))[1] for slot in slots)


def _of_receiver(model: Model, item: Prepared, senders: Sequence[int], slots: Sequence[int]) -> dict[str, NDArray[Any]]:
    """What each sender's path moves, ``[row, sender]``, places among the senders, ``together`` last; and the passes."""
    graph = model.graph
    reach = [place for place, src in enumerate(senders) if graph.valid[src, list(slots)].any()]
    sets = [*([senders[place]] for place in reach), list(senders)]
    base = margins(item.clean.logits.double(), item.batch)
    all_moved, passes = [], 0
    for span in portions(len(sets), per_pass(model, item, graph.n_src + 6 * graph.n_heads)):
        masks = np.repeat(graph.valid[None], span.stop - span.start, axis=0)
        for mask, sources in zip(masks, sets[span], strict=True):
            mask[np.ix_(sources, slots)] = False
        logits = patched_logits(model, item, torch.from_numpy(masks).to(model.device))
        moved = [(base - margins(part.double(), item.batch)).cpu().numpy() for part in logits]
        check_finite(np.stack(moved, axis=1), item.batch.name, "margins")
        all_moved += moved
        passes += 1
    return {"senders": np.array([*reach, len(senders)]), "moved": np.stack(all_moved, 1), "passes": np.array([passes])}


def _shares(
    numerators: Float[np.ndarray, "sender receiver pair"],
    divergence: Float[np.ndarray, " pair"],
    clusters: Clusters,
    seed: int,
) -> tuple[tuple[Estimate | None, ...], ...]:
    known = np.isfinite(numerators).all(-1)
    estimates = iter(ratio_of_means(numerators[known], divergence, clusters, seed=seed))
    return tuple(tuple(next(estimates) if is_known else None for is_known in row) for row in known.tolist())
