"""A persona grid against its pairs one by one: 20 personas of the shipped data on one question, 3 candidates.

    separate     eap on all 380 ordered pairs, in batches of 10 pairs that share no prompt
    ordinary     eap on the same rows in the order of the file, in batches of 32 rows
    grid         grid_eap on the same pairs
    per pair     grid_parts: a score per edge and pair

A pair of personas with different declared preferences is asked about these two; where both
prefer the same, about it and the next candidate, so that all 380 pairs count. Passes are counted
as single prompts that go forward or backward, by wrapping the functions that take them.
Run it as ``python benchmarks/grid_speed.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from persona_circuits.circuit.attribution import Grid, GridPair, eap, grid_eap, grid_of_texts, grid_parts, passes_of
from persona_circuits.circuit.model import Model, load_model
from persona_circuits.circuit.profiling import Cost, Step, costs_of, machine
from persona_circuits.circuit.task import MODEL, Batch, Row, batches, resolve, shipped, token_ids
from persona_circuits.metrics import METRICS
from persona_circuits.persona.data import Persona, Question, preferred, read_personas, read_questions

METRIC = METRICS["persona-divergence"]
PROMPT = "{persona}\nQ: {question}\nA:"
N_CANDIDATES = 3


@dataclass(frozen=True)
class Line:
    """What one way took: prompts forward and backward, seconds, and its share of the separate pairs' time."""

    what: str
    forwards: int
    backwards: int
    cost: Cost
    share: float


@dataclass(frozen=True)
class GridSpeed:
    """One comparison; ``errors`` are the largest differences from the separate pairs' scores, over their largest."""

    model: str
    question: str
    n_personas: int
    n_pairs: int
    n_declared: int
    n_tokens: int
    n_different: int
    lines: tuple[Line, ...]
    errors: dict[str, float]
    machine: dict[str, Any]


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description="time a persona grid against its pairs one by one")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--personas", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    if options.personas < 4 or options.personas % 2:
        parser.error("--personas must be even and at least 4, so that everyone can meet someone in every round")
    torch.set_num_threads(options.threads)
    model = load_model(resolve(options.model), device=options.device, label=options.model)
    found = grid_speed(model, n_personas=options.personas, rounds=options.rounds)
    print(table(found))
    if options.out:
        options.out.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")


def grid_speed(model: Model, *, n_personas: int = 20, rounds: int = 3) -> GridSpeed:
    """Take the three ways in turn, ``rounds`` times."""
    declared, question = shipped_grid(model, n_personas)
    grid = with_all_pairs(declared)
    separate, ordinary = separate_batches(grid, model), batches(rows_of(grid), 32, model.device)
    steps: dict[str, Step] = {
        "separate": lambda: eap(model, separate, METRIC),
        "ordinary": lambda: eap(model, ordinary, METRIC),
        "grid": lambda: grid_eap(model, [grid], METRIC),
        "grid, per pair": lambda: grid_parts(model, [grid], METRIC),
    }
    passes, results = {}, {}
    for name, step in steps.items():
        with counting(model) as count:
            results[name] = step()
        passes[name] = (count["forward"], count["backward"])
    assert passes["grid"] == (passes_of([grid]).forwards, passes_of([grid]).backwards)
    assert passes["separate"] == (2 * len(grid.pairs), len(grid.pairs))
    reference = results["separate"].values
    errors = {
        name: float(np.abs(values - reference).max() / np.abs(reference).max())
        for name, values in (
            ("grid", results["grid"].values),
            ("grid, per pair", results["grid, per pair"].total().values),
        )
    }
    costs = costs_of(steps, model.device, rounds=rounds)
    base = costs["separate"].median
    lines = tuple(Line(name, *passes[name], costs[name], costs[name].median / base) for name in steps)
    different = len(grid.prompts[0]) - grid.first_difference
    return GridSpeed(
        model.name,
        question,
        len(grid.prompts),
        len(grid.pairs),
        len(declared.pairs),
        len(grid.prompts[0]),
        different,
        lines,
        errors,
        machine(model.device),
    )


def table(found: GridSpeed) -> str:
    """The comparison as text."""
    head = (
        f"{found.model}, {found.question!r}: {found.n_personas} personas, {found.n_pairs} ordered pairs "
        f"({found.n_declared} of different preference), {N_CANDIDATES} candidates, {found.n_tokens} tokens "
        f"({found.n_different} from the first difference on)"
    )
    lines = [f"{'':<16} forwards  backwards  s, median   fastest   slowest   of separate   peak MB"]
    for line in found.lines:
        peak = "" if line.cost.peak_bytes is None else f"{line.cost.peak_bytes / 1e6:,.0f}"
        lines.append(
            f"{line.what:<16} {line.forwards:>8}  {line.backwards:>9}  {line.cost.median:>9.3g}  "
            f"{min(line.cost.seconds):>8.3g}  {max(line.cost.seconds):>8.3g}  {line.share:>11.1%}  {peak:>8}"
        )
    errors = ", ".join(f"{name} {error:.1e}" for name, error in found.errors.items())
    return "\n".join([head, *lines, f"largest difference from separate, of the largest score: {errors}"])


def shipped_grid(model: Model, n_personas: int) -> tuple[Grid, str]:
    """Personas of the shipped data with one token length and three preferences, as evenly as can be."""
    personas = read_personas(shipped("datasets/personas.jsonl"))
    questions = read_questions(shipped("datasets/questions.jsonl"))
    for question in questions:
        chosen = _chosen(question, personas, model, n_personas)
        if chosen:
            asked = question.wordings[0]
            prompts = {name: PROMPT.format(persona=text, question=asked) for name, (text, _) in chosen.items()}
            wanted = {name: f" {option}" for name, (_, option) in chosen.items()}
            return grid_of_texts(model, prompts, wanted, question=question.id), asked
    raise SystemExit(f"no question has {n_personas} personas of one length with {N_CANDIDATES} preferences")


def _chosen(
    question: Question, personas: Sequence[Persona], model: Model, n_personas: int
) -> dict[str, tuple[str, str]] | None:
    """A wording and the preference of each persona, or None where there are too few."""
    wants = {persona.name: preferred(question, persona) for persona in personas}
    options = [option for option, _ in Counter(filter(None, wants.values())).most_common(N_CANDIDATES)]
    for length in sorted({len(token_ids(text, model)) for persona in personas for text in persona.wordings}):
        by_option: dict[str, list[tuple[str, str]]] = {option: [] for option in options}
        for persona in personas:
            text = next((text for text in persona.wordings if len(token_ids(text, model)) == length), None)
            if text and wants[persona.name] in by_option:
                by_option[wants[persona.name]].append((persona.name, text))
        least = n_personas // N_CANDIDATES
        if len(options) == N_CANDIDATES and all(len(who) > least for who in by_option.values()):
            in_turn = ((who[i][0], (who[i][1], option)) for i in range(least + 1) for option, who in by_option.items())
            return dict(islice(in_turn, n_personas))
    return None


def with_all_pairs(grid: Grid) -> Grid:
    """Every ordered pair; two personas of one preference are asked about it and the next candidate."""
    prefers = {pair.clean: pair.answers[0] for pair in grid.pairs}
    candidates, n = grid.candidates, len(grid.prompts)
    other = dict(zip(candidates, (*candidates[1:], candidates[0]), strict=True))
    pairs = []
    for a in range(n):
        for b in (b for b in range(n) if b != a):
            wrong = prefers[b] if prefers[b] != prefers[a] else other[prefers[a]]
            pairs.append(GridPair(len(pairs), a, b, (prefers[a],), (wrong,)))
    return Grid(grid.prompts, tuple(pairs), grid.personas, grid.question)


def rows_of(grid: Grid) -> list[Row]:
    """The pairs as the ordinary path takes them."""
    return [
        Row(pair.index, grid.prompts[pair.clean], grid.prompts[pair.corrupt], pair.answers, pair.wrong_answers)
        for pair in grid.pairs
    ]


def separate_batches(grid: Grid, model: Model) -> list[Batch]:
    """All ordered pairs of an even number of personas, each batch a round in which everyone meets one other."""
    rows, n = (
        {(pair.clean, pair.corrupt): row for pair, row in zip(grid.pairs, rows_of(grid), strict=True)},
        len(grid.prompts),
    )
    found = []
    for turn in range(n - 1):
        circle = [0, *(1 + (i + turn) % (n - 1) for i in range(n - 1))]
        met = [(circle[i], circle[n - 1 - i]) for i in range(n // 2)]
        for order in (met, [(b, a) for a, b in met]):
            found += batches([rows[pair] for pair in order], n // 2, model.device)
    return found


@contextlib.contextmanager
def counting(model: Model) -> Iterator[Counter[str]]:
    """Count prompts that go forward and backward: rows that start, and rows of the scalars that are taken back."""
    count: Counter[str] = Counter()
    start, grad = model.start, torch.autograd.grad

    def counted_start(tokens, *rest):
        count["forward"] += len(tokens)
        return start(tokens, *rest)

    def counted_grad(outputs, inputs, *rest, **more):
        if outputs.dim() == 0:  # the metric; gradients through a norm alone start from vectors
            count["backward"] += len(inputs[0])
        return grad(outputs, inputs, *rest, **more)

    model.start, torch.autograd.grad = counted_start, counted_grad
    try:
        yield count
    finally:
        del model.start
        torch.autograd.grad = grad


if __name__ == "__main__":
    main()
