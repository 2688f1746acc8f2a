"""Circuits chosen by scores alone: a threshold, the largest, grown from the logits."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np

from persona_circuits.circuit.choices import PRUNERS
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["PRUNERS", "check_n", "check_tau", "greedy", "ranked_edges", "strength_of", "threshold", "top_n"]


def threshold(scores: Scores, tau: float) -> Circuit:
    """The edges with ``|score| >= tau``, without dead ends.

    Parameters
    ----------
    tau
        In units of the metric.

    Returns
    -------
    The circuit; it may be empty.

    Raises
    ------
    OptionError
        ``tau`` is negative or not a number.

    Examples
    --------
    >>> scores = Scores.of(Graph(2, 2), {"input->m0": -3.0, "m0->logits": 2.0, "input->m1": 5.0})
    >>> threshold(scores, 1.0).edge_names()
    ['input->m0', 'm0->logits']
    """
    check_tau(tau)
    return Circuit(scores.graph, (np.abs(scores.values) >= tau) & scores.graph.valid).without_dead_ends()


def top_n(scores: Scores, n: int, *, signed: bool = False) -> Circuit:
    """The ``n`` edges with the largest |score|, without dead ends; ties go to the earlier edge.

    Parameters
    ----------
    signed
        Take the most negative scores first instead: those whose corruption lowers the metric, the order of MIB's CPR
        (arXiv:2504.13151) with the opposite sign.

    Returns
    -------
    The circuit, of ``n`` edges or fewer.

    Raises
    ------
    OptionError
        ``n`` is not between 1 and the number of edges.
    """
    check_n(n, scores.graph)
    src, dst = ranked_edges(scores, signed=signed)
    return Circuit.at(scores.graph, src[:n], dst[:n]).without_dead_ends()


def ranked_edges(scores: Scores, *, signed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Sources and slots of all edges, best first; ties go to the earlier edge."""
    src, dst = np.nonzero(scores.graph.valid)
    order = np.lexsort((src, dst, -strength_of(scores.values[src, dst], signed)))
    return src[order], dst[order]


def strength_of(values: np.ndarray, signed: bool) -> np.ndarray:
    """What edges or nodes are ranked by: |score|, or with ``signed`` the most negative score first."""
    return -values if signed else np.abs(values)


def greedy(scores: Scores, n: int, *, signed: bool = False) -> Circuit:
    """``n`` edges grown backward from ``logits``, always adding the strongest that the circuit can use.

    An edge can be used once its destination is ``logits`` or a node that already writes into the circuit. What does not
    reach back to ``input`` is dropped at the end, so that the circuit may hold fewer than ``n`` edges.

    Parameters
    ----------
    signed
        As for ``top_n``.

    Returns
    -------
    The circuit, every edge of it on a path from ``input`` to ``logits``.

    Raises
    ------
    OptionError
        ``n`` is not between 1 and the number of edges.
    """
    graph = scores.graph
    check_n(n, graph)
    strength = strength_of(scores.values, signed)
    mask = np.zeros_like(graph.valid)
    seen = np.zeros(graph.n_src, dtype=bool)
    heap = _candidates(graph, strength, [graph.n_dst - 1])
    heapq.heapify(heap)
    while heap and n:
        _, dst, src = heapq.heappop(heap)
        mask[src, dst] = True
        n -= 1
        if not seen[src]:
            seen[src] = True
            for candidate in _candidates(graph, strength, graph.slots_by_source[src]):
                heapq.heappush(heap, candidate)
    return Circuit(graph, mask).without_dead_ends()


def check_tau(tau: float) -> None:
    """Raise ``OptionError`` unless ``tau`` is a finite number that is not negative."""
    if not (math.isfinite(tau) and tau >= 0):
        raise OptionError(f"threshold must be a number that is not negative, got {tau}")


def check_n(n: int, graph: Graph) -> None:
    """Check that so many edges can be kept.

    Raises:
        OptionError: the graph has fewer, or it is none.
    """
    if not 1 <= n <= graph.n_edges:
        raise OptionError(f"the number of edges to keep must be from 1 to {graph.n_edges}, got {n}")


def _candidates(graph: Graph, strength: np.ndarray, slots: Sequence[int]) -> list[tuple[float, int, int]]:
    return [(-strength[src, dst], dst, src) for dst in slots for src in range(graph.n_reaching(dst))]
