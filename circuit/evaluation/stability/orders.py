"""How far an exact search depends on the order in which it tries edges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.stability.resampling import jaccard_of, mean_jaccard
from persona_circuits.circuit.forward import Prepared, search_on
from persona_circuits.circuit.graph import Edge, Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.pruning import Trials, acdc
from persona_circuits.circuit.storage import Kept
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = ["OrderDependence", "order_dependence", "random_orders"]


@dataclass(frozen=True, eq=False)
class OrderDependence:
    """ACDC in its own order and in ``n_orders`` random ones.

    ``sizes`` are the circuits' numbers of edges, its own order's first. ``jaccard`` is the mean over pairs of runs, its
    own order's among them; ``to_circuit`` the mean of the random ones against its own. ``frequency`` is the share of
    runs that keep an edge; ``always`` counts edges kept in every run, ``ever`` those kept in any. ``passes`` is what
    the runs cost here.
    """

    n_orders: int
    tau: float
    sizes: tuple[int, ...]
    jaccard: float | None
    to_circuit: float | None
    frequency: Float[np.ndarray, "src dst"]
    always: int
    ever: int
    passes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the frequencies."""
        names = ("n_orders", "tau", "jaccard", "to_circuit", "always", "ever", "passes")
        return {**{name: getattr(self, name) for name in names}, "sizes": list(self.sizes)}


def order_dependence(
    model: Model,
    prepared: Sequence[Prepared],
    metric: Metric,
    tau: float,
    orders: Sequence[Sequence[Edge]],
    *,
    default: Circuit | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> OrderDependence:
    """Run ACDC again in random orders; each run costs what the search itself did.

    Parameters
    ----------
    prepared, metric, tau
        As for ``acdc``.
    orders
        All edges to start with, in random orders (``random_orders``).
    default
        What ACDC found in its own order, if that is known; otherwise it is run once more.
    state
        Next to this path the run in progress saves its state and finished runs their circuits, to resume from after
        a stop; all of it is removed at the end.

    Raises
    ------
    OptionError
        No order is requested.
    """
    if not orders:
        raise OptionError("ACDC in no random order tells nothing; ask for at least one")
    start = Circuit.of(model.graph, orders[0])
    circuits, passes = [] if default is None else [default], 0
    turns = [*([None] if default is None else []), *orders]
    with Kept(state, search_on(model, prepared, metric, tau, orders) if state else "") as kept:
        for turn, edges in enumerate(turns):

            def run(turn: int = turn, edges: Sequence[Edge] | None = edges) -> dict[str, np.ndarray]:
                nonlocal passes
                own = None if state is None else state.with_name(f"{state.name}.{turn}")
                how: dict[str, Any] = {"state": own, "progress": _share_of(progress, turn, len(turns))}
                search = acdc(model, prepared, metric, tau, start, trials=Trials(edges), **how)
                passes += search.passes
                return {"mask": search.circuit.mask}

            circuits.append(Circuit(model.graph, kept.of(str(turn), run)["mask"]))
    masks = np.array([circuit.mask for circuit in circuits])
    to_default = [value for circuit in circuits[1:] if (value := jaccard_of(circuit, circuits[0])) is not None]
    return OrderDependence(
        n_orders=len(orders),
        tau=tau,
        sizes=tuple(map(len, circuits)),
        jaccard=mean_jaccard(sparse.csr_array(masks.reshape(len(masks), -1))),
        to_circuit=float(np.mean(to_default)) if to_default else None,
        frequency=masks.mean(axis=0),
        always=int(masks.all(axis=0).sum()),
        ever=int(masks.any(axis=0).sum()),
        passes=passes,
    )


def random_orders(start: Circuit, n: int, *, seed: int = 0) -> list[list[Edge]]:
    """The edges of a circuit in so many random orders in which ACDC may try them."""
    rng = np.random.default_rng(seed)
    return [_random_order(start.graph, start.mask, rng) for _ in range(n)]


def _random_order(graph: Graph, mask: Bool[np.ndarray, "src dst"], rng: np.random.Generator) -> list[Edge]:
    """The edges of ``mask`` so that none comes before those that its reader writes to, otherwise at random.

    Slots whose nodes write to one another stand in layers, so edges are shuffled within a layer's heads, within
    its MLP (both together where they read one stream), and within the logits.
    """
    places = []
    for slots in _levels(graph):
        into = np.argwhere(mask[:, slots])
        rng.shuffle(into)
        places += [(int(src), int(slot) + slots.start) for src, slot in into]
    return [graph.edge(src, dst) for src, dst in places]


def _levels(graph: Graph) -> Iterator[slice]:
    """Slots from the logits down; within each none of the nodes writes to another's."""
    yield slice(graph.n_dst - 1, graph.n_dst)
    for layer in reversed(range(graph.n_layers)):
        heads, mlp = graph.head_slots_of(layer), graph.mlp_slot_of(layer)
        yield from [slice(heads.start, mlp + 1)] if graph.parallel else [slice(mlp, mlp + 1), heads]


def _share_of(progress: Progress | None, turn: int, total: int) -> Progress | None:
    if progress is None:
        return None
    report = progress
    return lambda done, whole: report(turn * whole + done, total * whole)
