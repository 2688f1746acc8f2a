"""How much of a circuit is legible on paper: crossings of lines, and letters that are scaled down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from persona_circuits.circuit.drawing.legend import background
from persona_circuits.circuit.drawing.page import Page
from persona_circuits.circuit.drawing.routing import Points, route
from persona_circuits.circuit.drawing.style import Chosen
from persona_circuits.circuit.figures.paper import TALLEST, WIDTHS
from persona_circuits.circuit.graph import Graph

__all__ = ["SIZES", "Layout", "crossings"]

SIZES = (150, 120, 100, 80, 65, 50, 40, 32, 25, 20, 16, 12, 9, 7, 5, 1)  # numbers of edges that are tried
MOST_CROSSINGS = 2.0  # of a line with others, per edge
PAGE = (7.5, 10.0)  # inches of a page that is no paper's
LEAST_SCALE = 0.5  # names of 10 points then have 5
SLICE = 3.0  # points from one height at which lines are looked at to the next


@dataclass(frozen=True)
class Layout:
    """The layout of a picture: page, curves of the edges, background; and how legible it is.

    ``scale`` is what a paper's page and columns leave of its size, 1 at most.
    """

    chosen: Chosen
    page: Page
    curves: list[Points]
    behind: Mapping[str, str]
    scale: float

    @classmethod
    def of(cls, graph: Graph, chosen: Chosen, title: str, width: str = "") -> Layout:
        """With the legend where it leaves the picture larger within a paper's ``width``, or on a page."""
        page = Page.of(graph, chosen)
        wide, tall = (WIDTHS[width], TALLEST) if width else PAGE
        tried = [background(page, chosen, title, below=below) for below in (False, True)]
        scales = [_scale(behind["bb"], 72 * wide, 72 * tall) for behind in tried]
        place = scales.index(max(scales))
        return cls(chosen, page, route(page, chosen), tried[place], scales[place])

    @property
    def legible(self) -> bool:
        """Whether lines can be followed and names be read; an edge of a bundle counts as its share of that line."""
        edges, bundles = self.chosen.edges, self.page.bundles
        sizes = Counter(bundles.values())
        shares = [1 / sizes[bundles[edge]] if edge in bundles else 1.0 for edge in edges]
        return self.scale >= LEAST_SCALE and crossings(self.curves, shares) <= MOST_CROSSINGS * len(edges)


def _scale(bounds: str, wide: float, tall: float) -> float:
    left, low, right, high = map(float, bounds.split(","))
    return min(1.0, wide / (right - left), tall / (high - low))


def crossings(curves: Sequence[Points], shares: Sequence[float]) -> float:
    """How often curves cross one another; those that touch and part on the same side do not.

    ``shares`` are the weights of curves, smaller where several share a line over most of their way.
    """
    if not curves:
        return 0.0
    count = np.array(shares)
    heights = np.arange(0.0, max(curve[-1][1] for curve in curves), SLICE)
    sides, total = np.zeros((len(curves), len(curves))), 0.0
    for places in np.stack([_at(curve, heights) for curve in curves], axis=1):
        there = np.nan_to_num(np.sign(places[:, None] - places[None]))
        total += float(count @ (sides * there < 0) @ count) / 2
        sides = np.where(there, there, sides * ~np.isnan(places[:, None] + places[None]))
    return total


def _at(curve: Points, heights: np.ndarray) -> np.ndarray:
    """x of a curve at the given heights, nan where it is not; curves never go down."""
    points, t = np.array(curve), np.linspace(0, 1, 9)[:, None]
    ends = [points[i : len(points) - 3 + i : 3] for i in range(4)]
    weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
    xy = sum(w[None] * p[:, None] for w, p in zip(weights, ends, strict=True)).reshape(-1, 2)
    level = xy[:, 1] + 1e-9 * np.arange(len(xy))  # a horizontal piece needs an order too
    return np.interp(heights, level, xy[:, 0], left=np.nan, right=np.nan)
