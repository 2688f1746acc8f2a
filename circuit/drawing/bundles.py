"""Edges that run together: one stroke up to a horizontal bar beside a row of nodes, where they split or join.

::

    a0.h0 ─┐ ┌─ a0.h1            edges of one look that leave a row for one port join above that row;
           └─┴────────── m0      edges of one look that leave a node for one row split below that row
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from persona_circuits.circuit.drawing.style import Chosen
from persona_circuits.circuit.graph import INPUT, LOGITS, Edge, Node

__all__ = ["Bundle", "bundles_of", "by_gap"]

FEWEST = 2  # edges of a bundle


class Bundle(NamedTuple):
    """Edges of one ``look`` between a ``node`` (and its port) and a ``row``; they split there, or else join there.

    ``gap`` is where their bar lies: below the row of that number, counted from ``input``.
    """

    node: Node
    slot: str | None
    row: int
    look: tuple[str, str] | None
    parts: bool

    @property
    def gap(self) -> int:
        return self.row if self.parts else self.row + 1


def bundles_of(chosen: Chosen, rows: Sequence[Sequence[Node]]) -> dict[Edge, Bundle]:
    """The larger of the two bundles that an edge may be in, if it has enough edges.

    What leaves ``input`` for the next row, or enters ``logits``, goes straight up: those are bars already.
    """
    row_of = {node: place for place, row in enumerate(rows) for node in row}
    groups: dict[Bundle, list[Edge]] = defaultdict(list)
    for edge in chosen.edges:
        look = None if chosen.scores is None and chosen.groups is None else chosen.look(edge)
        first, last = row_of[edge.src], row_of[edge.dst]
        if edge.dst == LOGITS or (edge.src == INPUT and last == first + 1):
            continue
        groups[Bundle(edge.src, None, last, look, True)].append(edge)
        if edge.src != INPUT:
            groups[Bundle(edge.dst, edge.slot, first, look, False)].append(edge)
    bundles: dict[Any, Bundle] = {}
    for bundle, edges in sorted(groups.items(), key=lambda item: len(item[1])):
        if len(edges) >= FEWEST:
            bundles |= dict.fromkeys(edges, bundle)
    left = _sizes(bundles)  # an edge that went to a larger bundle may have left one alone
    return {edge: bundle for edge, bundle in bundles.items() if left[bundle] >= FEWEST}


def by_gap(bundles: Mapping[Edge, Bundle]) -> dict[int, list[Bundle]]:
    """The bundles whose bars lie below each row, those of most edges first: their bars are nearest to their nodes."""
    by_gap: dict[int, list[Bundle]] = defaultdict(list)
    for bundle, _ in sorted(_sizes(bundles).items(), key=lambda item: (-item[1], str(item[0]))):
        by_gap[bundle.gap].append(bundle)
    return by_gap


def _sizes(bundles: Mapping[Edge, Bundle]) -> dict[Bundle, int]:
    sizes: dict[Bundle, int] = defaultdict(int)
    for bundle in bundles.values():
        sizes[bundle] += 1
    return sizes
