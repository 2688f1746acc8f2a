"""A comparison within a time: half of it for what chance shares, half for each circuit on the other's pairs.

Both are planned from a timed part of the work, and stopped where they take longer than predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from persona_circuits.circuit.assessment.budget import OWN, SAFE, Clock, Workload, pace_of, plan, spread_over
from persona_circuits.circuit.assessment.comparison.sides import Side
from persona_circuits.circuit.assessment.comparison.statistics import Ground
from persona_circuits.circuit.assessment.comparison.study import Comparison, CrossCell, compare, cross_faithfulness
from persona_circuits.circuit.discovery import MeasureOptions, evaluate_on, split_of
from persona_circuits.circuit.progress import Stage, about, first_told, untold_stage
from persona_circuits.circuit.task import Task

__all__ = ["compare_in_time", "cross_in_time"]

LEAST_DRAWS = 20
MEASURED = 3
"""Circuits on every ground: A, B, and what they share."""


def compare_in_time(
    a: Side, b: Side, n_draws: int, clock: Clock, *, seed: int = 0, stage: Stage = untold_stage
) -> tuple[Comparison, list[str]]:
    """The comparison with as many random draws as fit half of the time, and what is left out."""
    tried, done = 2, 0
    pace = pace_of(lambda: compare(a, b, n_draws=tried), tried)
    n = int(min(n_draws, max(LEAST_DRAWS, SAFE * clock.left / 2 / max(pace, 1e-9))))
    half = Clock(max(clock.left, 0.0) / 2, clock.now)
    told = half.watched(stage)(f"random circuits{about(n * pace)}")

    def counted(now: int, total: int) -> None:
        nonlocal done
        done = max(1, now * n // max(total, 1))
        told(now, total)

    comparison = half.within("", lambda: compare(a, b, n_draws=n, seed=seed, progress=counted))
    if comparison is None:  # half of the draws takes half as long again
        n = max(tried, done // 2)
        comparison = compare(a, b, n_draws=n, seed=seed)
    return comparison, [f"left out by --budget: {n_draws - n} of {n_draws} draws of chance"] if n < n_draws else []


def cross_in_time(
    a: Side, b: Side, grounds: Sequence[Ground], setting: MeasureOptions, clock: Clock, *, stage: Stage = untold_stage
) -> tuple[tuple[CrossCell, ...], list[str]]:
    """Each circuit on so many pairs of every ground, beside so many random ones, as there is time for."""
    crossed: list[CrossCell] = []
    notes: list[str] = []
    for place, ground in enumerate(grounds):
        here = Clock(max(clock.left, 0.0) / (len(grounds) - place), clock.now)
        cells, short = _cross_on(a, b, ground, setting, here, stage)
        crossed += cells
        notes += [f"left out by --budget, on {ground.name}'s pairs: {', '.join(short)}"] if short else []
    return tuple(crossed), notes


def _cross_on(
    a: Side, b: Side, ground: Ground, setting: MeasureOptions, clock: Clock, stage: Stage
) -> tuple[tuple[CrossCell, ...], tuple[str, ...]]:
    """The circuits on one ground, and what is left out there."""
    own = replace(setting.settled(ground.record), n_random=0, train_split=ground.record["task"]["split"], where=())
    split = split_of(ground.task, own.split, "test")
    few = shortened(ground.task, split, 2)
    pace = pace_of(lambda: evaluate_on(ground.model, few, a.circuit, own), 2 * OWN)
    work = Workload(len(ground.task.of_split(split).pairs), setting.n_random)
    affordable = plan(work, clock.left / MEASURED, pace)
    part = replace(ground, task=shortened(ground.task, split, affordable.n_pairs))
    timed = first_told(clock.watched(stage), "three circuits", MEASURED * affordable.alone(pace))
    reduced = replace(setting, n_random=affordable.n_random)
    cells = clock.within("", lambda: cross_faithfulness(a, b, [part], reduced, stage=timed))
    return ((), ("all of it",)) if cells is None else (cells, affordable.left_out)


def shortened(task: Task, split: str, n: int) -> Task:
    """The task with so many pairs of one split, spread over it; those of other splits stay."""
    part = task.of_split(split)
    dropped = {pair.id for pair in part.pairs} - {pair.id for pair in spread_over(part, n).pairs}
    return replace(task, pairs=tuple(pair for pair in task.pairs if pair.id not in dropped))
