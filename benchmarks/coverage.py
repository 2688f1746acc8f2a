"""Coverage of the intervals and level of the tests, by simulation of data whose truth is known; writes a docs page.

python benchmarks/coverage.py --page docs/statistics.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from persona_circuits.circuit.evaluation.completeness import growth_p
from persona_circuits.circuit.evaluation.hypothesis import equivalence, hsic
from persona_circuits.circuit.statistics import Clusters, ratio_interval, ratio_intervals

BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
SIZES = (4, 8, 16, 64)
SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: np.exp(0.5 * rng.normal(size=shape)) - np.exp(0.125),
}
"""Noise of mean zero; the skewed one is log-normal, of skewness 1.75."""


def designs() -> dict[str, Clusters]:
    """Which personas and questions 64 pairs, or 16, share."""
    named = {
        "8 x 8 crossed": [(f"a{i}", f"b{i}", f"q{j}") for i in range(8) for j in range(8)],
        "4 nested, 16 pairs each": [(f"a{i}", f"b{i}", f"q{i}.{j}") for i in range(4) for j in range(16)],
        "4 x 4 crossed": [(f"a{i}", f"b{i}", f"q{j}") for i in range(4) for j in range(4)],
        "nothing shared": [(f"a{i}", f"b{i}", f"q{i}") for i in range(64)],
    }
    return {name: Clusters.named(*zip(*rows, strict=True)) for name, rows in named.items()}


def shared_noise(clusters: Clusters, rng: np.random.Generator, share: float) -> np.ndarray:
    """One number per pair, of variance one; ``share`` of it is of persona pairs and questions, in equal parts."""
    personas, questions = clusters.all_named
    assert personas is not None
    assert questions is not None
    parts = [rng.normal(size=1 + int(codes.max()))[codes] for codes in (personas[0], questions)]
    own = rng.normal(size=clusters.n)
    return (share / 2) ** 0.5 * (parts[0] + parts[1]) + (1 - share) ** 0.5 * own


def coverage_of_means(shape: str, n: int, repeats: int, *, seed: int = 0) -> float:
    """How often the interval of a mean holds the true one; every fifty samples have draws of their own."""
    values = 1 + SHAPES[shape](np.random.default_rng([seed, n]), (repeats, n))
    hits = 0
    for i, part in enumerate(np.array_split(values, max(1, repeats // 50))):
        found = ratio_intervals(part, np.ones(n), Clusters(n, None, None), n_draws=1000, seed=seed + i)
        hits += sum(one is not None and one.low <= 1 <= one.high for one in found)
    return hits / repeats


def coverage_of_ratios(shape: str, n: int, repeats: int, *, seed: int = 0) -> float:
    """How often the interval of a ratio of means, true value .8, holds it: noise of both, and of a pair's own share."""
    rng, hits = np.random.default_rng([seed, n, 1]), 0
    for i in range(repeats):
        below = 3 + SHAPES[shape](rng, (n,))
        above = 0.8 * below + 0.5 * SHAPES[shape](rng, (n,))
        found = ratio_interval(above, below, Clusters(n, None, None), n_draws=500, seed=i)
        hits += found is not None and found.low <= 0.8 <= found.high
    return hits / repeats


def level_of_independence(clusters: Clusters, share: float, repeats: int, *, permute_all: bool = False) -> float:
    """How often two numbers that have nothing to do with each other are called dependent at level .05."""
    rng, rejected = np.random.default_rng(1), 0
    among = Clusters(clusters.n, None, None).permutations if permute_all else clusters.permutations
    for i in range(repeats):
        x, y = (shared_noise(clusters, rng, share) for _ in range(2))
        rejected += hsic(x, y, n_permutations=99, seed=i, among=among)[1] <= 0.05
    return rejected / repeats


def level_of_equivalence(clusters: Clusters, share: float, repeats: int, *, alone: bool = False) -> float:
    """How often a circuit that is above the model with chance .6, the edge of H0, fails."""
    rng, failed = np.random.default_rng(2), 0
    for _ in range(repeats):
        signs = np.where(shared_noise(clusters, rng, share) < 0.2533, 1.0, -1.0)
        found = equivalence(signs, np.zeros(clusters.n), clusters=None if alone else clusters)
        failed += found.decision == "failed"
    return failed / repeats


def level_of_growth(clusters: Clusters, share: float, repeats: int, *, alone: bool = False) -> float:
    """How often a node that does not grow is found to, at level .05."""
    rng = np.random.default_rng(3)
    growth = np.stack([shared_noise(clusters, rng, share) for _ in range(repeats)])
    return float((growth_p(growth, clusters=None if alone else clusters) <= 0.05).mean())


def table(repeats: int) -> Iterator[str]:
    """All of it, as Markdown."""
    error = (0.05 * 0.95 / repeats) ** 0.5
    yield f"Coverage of 95 % intervals over plain pairs ({repeats} samples each; standard error {error:.3f}):"
    yield ""
    yield "| pairs | mean, normal | mean, skewed | ratio of means, normal | ratio of means, skewed |"
    yield "|---|---|---|---|---|"
    for n in SIZES:
        cells = [of(shape, n, repeats) for of in (coverage_of_means, coverage_of_ratios) for shape in SHAPES]
        yield f"| {n} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"
    yield ""
    yield "Level of the tests where H0 holds and four fifths of the variance are shared, .05 being asked for (in"
    yield "brackets: if pairs counted as independent):"
    yield ""
    yield "| what pairs share | independence | equivalence, at the edge | growth outside |"
    yield "|---|---|---|---|"
    for name, clusters in designs().items():
        cells = [
            (
                level_of_independence(clusters, 0.8, repeats),
                level_of_independence(clusters, 0.8, repeats, permute_all=True),
            ),
            (level_of_equivalence(clusters, 0.8, repeats), level_of_equivalence(clusters, 0.8, repeats, alone=True)),
            (level_of_growth(clusters, 0.8, repeats), level_of_growth(clusters, 0.8, repeats, alone=True)),
        ]
        yield f"| {name} | " + " | ".join(f"{mine:.3f} ({plain:.3f})" for mine, plain in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, required=True, help="the page whose table is written anew")
    parser.add_argument("--repeats", type=int, default=1000)
    options = parser.parse_args()
    text = options.page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    options.page.write_text(f"{before}{BEGIN}\n" + "\n".join(table(options.repeats)) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
