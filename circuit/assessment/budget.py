"""Work within a time budget: one pass is timed, and as much is planned as should fit, the most informative first.

First comes the faithfulness on a few pairs, then more pairs, then random circuits beside it, then the tests in their
quick form, and last the search repeated on resampled pairs. What does not fit is left out and reported. A plan rests on
one timed pass, and machines may slow down: a ``Clock`` ends work that would not finish in time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from persona_circuits.circuit.progress import Progress, Stage
from persona_circuits.circuit.task import Task

__all__ = ["Clock", "OutOfTime", "Plan", "Workload", "least", "pace_of", "plan", "spread_over"]

Item = TypeVar("Item")
Result = TypeVar("Result")
SAFE = 0.6
"""Share of the time to plan for, as passes vary and input and output take time too."""
LEAST, FEW, ENOUGH = 2, 4, 16
"""Pairs measured in any case, pairs before anything else is measured, and pairs that precede everything else."""
LEAST_RANDOM = 3
SEARCHED = "the search repeated on resampled pairs"
OWN = 6
"""Passes of a pair for its faithfulness alone: both plain runs, the circuit, its complement, and an edge alone."""


class OutOfTime(Exception):
    """The time is up, or would be before the next step ends."""


class Clock:
    """The time that is left, without end where ``seconds`` is None.

    It is checked between two steps of some work, and raises ``OutOfTime`` where the next step, if as long as the last,
    would end too late. ``left_out`` names the work that was skipped.
    """

    def __init__(self, seconds: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.now, self.left_out = now, list[str]()
        self._step = now()
        self.end = math.inf if seconds is None else self._step + seconds

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - self.now()

    def step(self) -> None:
        """Mark the start of another step."""
        before, self._step = self._step, self.now()
        if 2 * self._step - before > self.end:
            raise OutOfTime

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, each of which is a step."""
        for item in items:
            self.step()
            yield item

    def within(self, what: str, work: Callable[[], Result], seconds: float = 0.0) -> Result | None:
        """The result of the work; None where it would take more ``seconds`` than are left, or ran out of time."""
        self._step = self.now()
        try:
            if self.left > seconds:
                return work()
        except OutOfTime:
            pass
        self.left_out.append(what)
        return None

    def watched(self, stage: Stage) -> Stage:
        """The same stages, every report of which is a step."""

        def begun(name: str) -> Progress:
            report = stage(name)

            def progress(done: int, total: int) -> None:
                report(done, total)
                if done < total:
                    self.step()

            return progress

        return begun


@dataclass(frozen=True)
class Workload:
    """The requested work: ``tests`` is in passes per pair, ``search`` in passes of the whole repeated search."""

    n_pairs: int
    n_random: int
    tests: int = 0
    search: int = 0


@dataclass(frozen=True)
class Plan:
    """The part of the work to do; ``left_out`` says what is not done."""

    n_pairs: int
    n_random: int
    tested: bool
    searched: bool
    left_out: tuple[str, ...]

    def passes(self, work: Workload) -> int:
        """How many passes that takes."""
        each = OWN + self.n_random + (work.tests if self.tested else 0)
        return self.n_pairs * each + (work.search if self.searched else 0)

    def alone(self, pace: float) -> float:
        """Seconds of the faithfulness alone."""
        return self.n_pairs * (OWN + self.n_random) * pace

    def told(self, work: Workload) -> Plan:
        """The plan, with a list of the work it leaves out."""
        return replace(self, left_out=_left_out(self, work))


def plan(work: Workload, seconds: float, pace: float) -> Plan:
    """The most of the work that should fit into so many seconds, where a pass of one pair takes ``pace``."""
    room = SAFE * seconds / max(pace, 1e-9)
    few = min(work.n_pairs, FEW)
    current = Plan(few, 0, False, False, ())
    for share in (
        lambda trial: replace(trial, n_random=min(work.n_random, LEAST_RANDOM)),
        lambda trial: replace(trial, n_pairs=_most(trial, work, room, min(work.n_pairs, ENOUGH))),
        lambda trial: replace(trial, tested=work.tests > 0),
        lambda trial: replace(trial, n_random=work.n_random),
        lambda trial: replace(trial, n_pairs=_most(trial, work, room, work.n_pairs)),
        lambda trial: replace(trial, searched=work.search > 0),
    ):
        more = share(current)
        current = more if more.passes(work) <= room else current
    return current.told(work)


def least(work: Workload) -> Plan:
    """The faithfulness of a few pairs, and nothing else."""
    return Plan(min(work.n_pairs, LEAST), 0, False, False, ()).told(work)


def _most(current: Plan, work: Workload, room: float, most: int) -> int:
    """Pairs that fit, not fewer than there are already."""
    each = replace(current, n_pairs=1).passes(work)
    return max(current.n_pairs, int(min(most, room // each)))


def _left_out(current: Plan, work: Workload) -> tuple[str, ...]:
    left_out = []
    if current.n_pairs < work.n_pairs:
        left_out.append(f"{work.n_pairs - current.n_pairs} of {work.n_pairs} pairs")
    if current.n_random < work.n_random:
        left_out.append(f"{work.n_random - current.n_random} of {work.n_random} random circuits")
    if work.tests and not current.tested:
        left_out.append("tests beyond faithfulness")
    if work.search and not current.searched:
        left_out.append(SEARCHED)
    return tuple(left_out)


def pace_of(measure: Callable[[], object], passes: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one pass of one pair, from a measurement that takes so many."""
    start = clock()
    measure()
    return (clock() - start) / passes


def spread_over(task: Task, n: int) -> Task:
    """A fixed random sample of ``n`` pairs of a task; regular steps might select pairs of one question only."""
    if n >= len(task.pairs):
        return task
    places = np.random.default_rng(0).choice(len(task.pairs), n, replace=False)
    return replace(task, pairs=tuple(task.pairs[i] for i in sorted(places.tolist())))
