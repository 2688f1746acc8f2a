"""Coverage of the intervals and level of the tests, by simulation of data whose truth is known; writes a docs page.

python benchmarks/coverage.py --page docs/statistics.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

from persona_circuits.circuit.evaluation.completeness import growth_p
from persona_circuits.circuit.evaluation.hypothesis import equivalence, hsic
from persona_circuits.circuit.statistics import Clusters, ratio_interval, ratio_intervals
from persona_circuits.circuit.task import PromptPair
from persona_circuits.persona.data import sign_flip, two_way_difference, two_way_mean
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.neurons.options import NeuronOptions
from persona_circuits.persona.neurons.ranking import rank_neurons
from persona_circuits.persona.probing import Sample, cross_validate, folds_by_group, joined, score
from persona_circuits.persona.study.stages.contrasts import permuted, shared_p

SIZES = (4, 8, 16, 64)
PROBED = (4, 8, 30)
PERSONAS = (6, 8, 10)
LEVELS = ("questions", "couples", "two personas")
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


def coverage_of_probes(n_personas: int, repeats: int, *, n_questions: int = 6) -> tuple[float, float, float]:
    """How often intervals of a probe's accuracy, balanced accuracy and area hold their means over all repeats.

    Two poles, half of the personas each; features are the pole, the persona's own, the question's, and noise. Personas
    and questions are drawn anew, and the probe is fitted anew, held out by question.
    """
    rows = np.array([(p, q) for p in range(n_personas) for q in range(n_questions)])
    personas, questions = [f"p{p}" for p in rows[:, 0]], [f"q{q}" for q in rows[:, 1]]
    folds = folds_by_group(questions, list(range(len(rows))), questions, n_outer=2, n_inner=2)
    labels, found = (rows[:, 0] % 2).astype(np.int64), []
    for i in range(repeats):
        rng = np.random.default_rng([i, n_personas])
        x = 0.8 * rng.normal(size=(n_personas, 6))[rows[:, 0]] + 0.5 * rng.normal(size=(n_questions, 6))[rows[:, 1]]
        x += rng.normal(size=x.shape)
        x[:, 0] += 1.2 * (2 * labels - 1)
        probes = joined(*cross_validate([x], labels, folds, penalty=0.1))
        result = score(probes, Sample(personas, questions, n_draws=300, seed=i))
        found.append([(one.value, one.low, one.high) for one in (result.accuracy, result.balanced, result.auc)])
    values, low, high = np.moveaxis(np.array(found, dtype=np.float64), 2, 0)
    truth = values.mean(0)
    accuracy, balanced, auc = ((low <= truth) & (truth <= high)).mean(0).tolist()
    return accuracy, balanced, auc


Couples = tuple[np.ndarray, list[tuple[str, str]], list[str]]


def couples(n_personas: int, n_questions: int = 4) -> Couples:
    """Every two of the personas under every question: codes ``[pair, 3]``, and names."""
    rows = np.array([(a, b, q) for a, b in combinations(range(n_personas), 2) for q in range(n_questions)])
    return rows, [(f"p{a}", f"p{b}") for a, b, _ in rows], [f"q{q}" for *_, q in rows]


def persona_effects(rows: np.ndarray, rng: np.random.Generator, *, sign: float) -> np.ndarray:
    """A number per pair of mean zero: what both personas and the question add, u_i + ``sign`` u_j + v_q, and noise."""
    persona, question = rng.normal(size=1 + int(rows[:, :2].max())), 0.5 * rng.normal(size=1 + int(rows[:, 2].max()))
    noise = 0.5 * rng.normal(size=len(rows))
    return persona[rows[:, 0]] + sign * persona[rows[:, 1]] + question[rows[:, 2]] + noise


def means_over_couples(n_personas: int, repeats: int, *, sign: float) -> tuple[float, float]:
    """Coverage of the mean's interval, and level of ``sign_flip``: collapse, explain, lens, steer and study."""
    rows, personas, questions = couples(n_personas)
    covered = rejected = 0
    for i in range(repeats):
        values = persona_effects(rows, np.random.default_rng([4, i, n_personas]), sign=sign).tolist()
        found = two_way_mean(values, personas, questions, n_resamples=200, seed=i)
        covered += found.low <= 0 <= found.high
        rejected += sign_flip(values, personas, questions, n_resamples=199, seed=i) <= 0.05
    return covered / repeats, rejected / repeats


def differences_over_couples(n_personas: int, repeats: int, *, levels: str) -> tuple[float, float, float]:
    """Coverage of a difference's interval, level of the study's test, and of shuffled levels alone.

    A level belongs to half of the questions, to persona pairs by chance, or to the pairs of two of the personas.
    """
    rows, personas, questions = couples(n_personas)
    pairs = (
        PromptPair("", "", (), (), persona_a=two[0], persona_b=two[1], question=asked)
        for two, asked in zip(personas, questions, strict=True)
    )
    items = [Item(pair, (), {}) for pair in pairs]
    covered = rejected = shuffled = 0
    for i in range(repeats):
        rng = np.random.default_rng([5, i, n_personas])
        values = persona_effects(rows, rng, sign=1.0)
        chance = rng.random((n_personas, n_personas)) < 0.5
        first = {
            "questions": rows[:, 2] % 2 == 1,
            "couples": chance[rows[:, 0], rows[:, 1]],
            "two personas": (rows[:, :2] < 2).any(1),
        }[levels]
        found = two_way_difference(values.tolist(), first.tolist(), personas, questions, n_resamples=200, seed=i)
        covered += found is not None and (found.low is None or found.low <= 0 <= found.high)
        p, _ = permuted(_gap(values), first.astype(np.int64), items, n_resamples=99, seed=i)
        shuffled += p <= 0.05
        rejected += max(p, shared_p(values, first.astype(np.int64), items)) <= 0.05
    return covered / repeats, rejected / repeats, shuffled / repeats


def _gap(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda codes: np.abs(codes @ values / codes.sum(1) - (1 - codes) @ values / (1 - codes).sum(1))


def level_of_neurons(n_personas: int, repeats: int, *, alone: bool = False) -> float:
    """The share of neurons with p <= .05 where all of them are what personas add, u_i - u_j, and noise."""
    rows, personas, _ = couples(n_personas, 1)
    clusters = None if alone else Clusters.named(*zip(*personas, strict=True), [""] * len(rows))
    found = []
    for i in range(repeats):
        rng = np.random.default_rng([6, i, n_personas])
        neurons = rng.normal(size=(n_personas, 200))
        x = neurons[rows[:, 0]] - neurons[rows[:, 1]] + 0.5 * rng.normal(size=(len(rows), 200))
        quiet = np.zeros(200, dtype=bool)
        ranked = rank_neurons(x, np.arange(len(rows)), quiet, NeuronOptions(n_draws=100, seed=i), clusters=clusters)
        found.append(float((ranked.p <= 0.05).mean()))
    return float(np.mean(found))


def persona_table(repeats: int) -> Iterator[str]:
    """Of the statistics of ``persona/``, as Markdown."""
    yield f"Coverage of 95 % intervals of probes, by personas, under 6 questions ({repeats // 2} samples each):"
    yield ""
    yield "| personas | accuracy | balanced accuracy | area |"
    yield "|---|---|---|---|"
    for n in PROBED:
        yield f"| {n} | " + " | ".join(f"{cell:.3f}" for cell in coverage_of_probes(n, repeats // 2)) + " |"
    yield ""
    yield f"Means over all pairs of personas under 4 questions, effects of personas added or subtracted ({repeats}"
    yield "samples each): coverage, and level of the sign flip:"
    yield ""
    yield "| personas | u_i + u_j | u_i - u_j | neurons, u_i - u_j (couples as if they shared nothing) |"
    yield "|---|---|---|---|"
    for n in PERSONAS:
        cells = [means_over_couples(n, repeats, sign=sign) for sign in (1.0, -1.0)]
        neurons = level_of_neurons(n, 40), level_of_neurons(n, 40, alone=True)
        yield (
            f"| {n} | "
            + " | ".join(f"{a:.3f}, {b:.3f}" for a, b in cells)
            + f" | {neurons[0]:.3f} ({neurons[1]:.3f}) |"
        )
    yield ""
    yield f"Differences of two levels over the same pairs ({repeats // 2} samples each): coverage, and level of the"
    yield "study's test (in brackets: of shuffled levels alone):"
    yield ""
    yield "| personas | " + " | ".join(f"of {name}" for name in LEVELS) + " |"
    yield "|---|---|---|---|"
    for n in PERSONAS:
        found = [differences_over_couples(n, repeats // 2, levels=name) for name in LEVELS]
        yield f"| {n} | " + " | ".join(f"{a:.3f}, {b:.3f} ({c:.3f})" for a, b, c in found) + " |"


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
    parser.add_argument("--page", type=Path, required=True, help="the page whose tables are written anew")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--only", choices=sorted(TABLES), help="of circuit/ or of persona/ alone")
    options = parser.parse_args()
    text = options.page.read_text()
    for name, rows in TABLES.items():
        if options.only in (None, name):
            begin, end = f"<!-- coverage of {name}: begin -->", f"<!-- coverage of {name}: end -->"
            before, after = text.split(begin)[0], text.split(end)[1]
            text = f"{before}{begin}\n" + "\n".join(rows(options.repeats)) + f"\n{end}{after}"
    options.page.write_text(text)


TABLES: dict[str, Callable[[int], Iterator[str]]] = {"circuit": table, "persona": persona_table}

if __name__ == "__main__":
    main()
