"""The strongest paths of a circuit: a path is as strong as its weakest edge.

For every node the strongest path to it and from it is known after one walk over the edges either way, as a path's
strength is the least of its parts' (the widest path of a graph without cycles).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from persona_circuits.circuit.graph import INPUT, LOGITS, Edge, Node

__all__ = ["strongest_paths"]


def strongest_paths(edges: Sequence[Edge], sizes: np.ndarray) -> Iterator[set[int]]:
    """Of every edge the path through it whose weakest edge is strongest; the strongest paths first.

    Parameters
    ----------
    edges
        In topological order, each on a path from ``input`` to ``logits``.
    sizes
        The strength of each edge, ``[edge]``: its ``|score|``.

    Yields
    ------
    The path's edges, as places in ``edges``; two edges may give the same path.

    Examples
    --------
    >>> edges = [parse_edge(name) for name in ("input->m0", "input->m1", "m0->m1", "m1->logits")]
    >>> [sorted(path) for path in strongest_paths(edges, np.array([3.0, 1.0, 2.0, 4.0]))]
    [[0, 2, 3], [0, 2, 3], [0, 2, 3], [1, 3]]
    """
    before, after = _widest(edges, sizes, back=False), _widest(edges, sizes, back=True)
    weakest = [min(sizes[i], before[e.src][0], after[e.dst][0]) for i, e in enumerate(edges)]
    for i in sorted(range(len(edges)), key=lambda i: (-weakest[i], -sizes[i], i)):
        path, node = {i}, edges[i].src
        while node != INPUT:
            path.add(before[node][1])
            node = edges[before[node][1]].src
        node = edges[i].dst
        while node != LOGITS:
            path.add(after[node][1])
            node = edges[after[node][1]].dst
        yield path


def _widest(edges: Sequence[Edge], sizes: np.ndarray, *, back: bool) -> dict[Node, tuple[float, int]]:
    """By node the weakest edge of the strongest path to it from an end of the model, and that path's next edge."""
    widest: dict[Node, tuple[float, int]] = {LOGITS if back else INPUT: (np.inf, -1)}
    for i in range(len(edges) - 1, -1, -1) if back else range(len(edges)):
        own, other = (edges[i].src, edges[i].dst) if back else (edges[i].dst, edges[i].src)
        size = min(float(sizes[i]), widest[other][0])
        if own not in widest or size > widest[own][0]:
            widest[own] = (size, i)
    return widest
