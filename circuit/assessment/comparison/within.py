"""A comparison within a time: half of it for what chance shares, half for each circuit on the other's pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from persona_circuits.circuit.assessment.budget import OWN, SAFE, Workload, pace_of, plan, spread_over
from persona_circuits.circuit.assessment.comparison.sides import Side
from persona_circuits.circuit.assessment.comparison.statistics import Ground
from persona_circuits.circuit.assessment.comparison.study import compare
from persona_circuits.circuit.discovery import MeasureOptions, evaluate_on, split_of
from persona_circuits.circuit.task import Task

__all__ = [
    "draws_within",
    "grounds_within",
]

LEAST_DRAWS = 20
MEASURED = 3
"""Circuits on every ground: A, B, and what they share."""


def draws_within(a: Side, b: Side, n_draws: int, seconds: float) -> tuple[int, list[str]]:
    """So many draws of chance as fit into half of the time, and what is left out."""
    tried = 2
    pace = pace_of(lambda: compare(a, b, n_draws=tried), tried)
    n = min(n_draws, max(LEAST_DRAWS, int(SAFE * seconds / 2 / max(pace, 1e-9))))
    return n, [f"left out by --budget: {n_draws - n} of {n_draws} draws of chance"] if n < n_draws else []


def grounds_within(
    a: Side, grounds: Sequence[Ground], setting: MeasureOptions, seconds: float
) -> tuple[list[Ground], MeasureOptions, list[str]]:
    """The grounds with so many pairs, and the setting with so many random circuits, as fit into the other half."""
    found, notes, n_random = [], [], setting.n_random
    for ground in grounds:
        own = replace(setting.settled(ground.record), n_random=0, train_split=ground.record["task"]["split"], where=())
        split = split_of(ground.task, own.split, "test")
        few = replace(ground, task=shortened(ground.task, split, 2))
        pace = pace_of(lambda: evaluate_on(few.model, few.task, a.circuit, own), 2 * OWN)  # noqa: B023  (called here)
        work = Workload(len(ground.task.of_split(split).pairs), setting.n_random)
        ours = plan(work, seconds / 2 / len(grounds) / MEASURED, pace)
        n_random = min(n_random, ours.n_random)
        found.append(replace(ground, task=shortened(ground.task, split, ours.n_pairs)))
        if ours.left_out:
            notes.append(f"left out by --budget, on {ground.name}'s pairs: {', '.join(ours.left_out)}")
    return found, replace(setting, n_random=n_random), notes


def shortened(task: Task, split: str, n: int) -> Task:
    """The task with so many pairs of one split, spread over it; those of other splits stay."""
    part = task.of_split(split)
    kept = {pair.id for pair in spread_over(part, n).pairs} | ({pair.id for pair in task.pairs} - _ids(part))
    return replace(task, pairs=tuple(pair for pair in task.pairs if pair.id in kept))


def _ids(task: Task) -> set[str]:
    return {pair.id for pair in task.pairs}
