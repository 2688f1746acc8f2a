"""Everything that a circuit has to stand: faithfulness, hypothesis tests, completeness, transfer.

What is found goes into the circuit's file, with what it was measured on, so that a
circuit is never seen without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit.ablation import Ablation
from circuit.completeness import CompletenessReport, completeness_report
from circuit.discovery import pairs_of
from circuit.errors import TaskError
from circuit.faithfulness import FaithfulnessReport
from circuit.hypothesis import HypothesisReport, hypothesis_tests
from circuit.model import Model
from circuit.patching import Progress
from circuit.subgraph import Circuit
from circuit.task import Task
from circuit.transfer import Transfer, transfer
from metrics import METRICS

__all__ = ["AXES", "Battery", "battery", "with_evaluation"]

AXES = ("held_out", "domain", "template", "placement")
"""Keys of the pairs by which transfer is looked at where no other is asked for."""


@dataclass(frozen=True, eq=False)
class Battery:
    """The tests of one circuit on one set of pairs; ``transfer`` by the values of keys of the pairs."""

    tests: HypothesisReport
    completeness: CompletenessReport
    transfer: Mapping[str, tuple[Transfer, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as the circuit's file holds them."""
        return {
            "tests": self.tests.as_dict(),
            "completeness": self.completeness.as_dict(),
            "transfer": {key: [part.as_dict() for part in parts] for key, parts in self.transfer.items()},
        }


def battery(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    metric: str,
    ablation: Ablation | None = None,
    align: str = "equal",
    by: Sequence[str] | None = None,
    n_random: int = 100,
    batch_size: int = 32,
    seed: int = 0,
    quick: bool = False,
    state: Path | None = None,
    stage: Callable[[str], Progress] | None = None,
) -> Battery:
    """Run all of it on the pairs of ``task``.

    Parameters
    ----------
    by
        Keys of the pairs; the circuit is measured on every value of each, beside circuits
        outside it. By default those of ``AXES`` that split the pairs.
    quick
        Few random circuits, permutations and edges.
    state
        Measurements are kept beside this path, to go on from after a stop.

    Raises
    ------
    TaskError, OptionError
        A key that no pair has; an impossible number.
    """
    stage = stage or (lambda _name: lambda _done, _total: None)
    measured = METRICS[metric]
    how: dict[str, Any] = {"align": align, "ablation": ablation, "batch_size": batch_size}
    pairs = pairs_of(model, task, measured, **how)
    common: dict[str, Any] = {"seed": seed, "quick": quick}
    kept = {name: None if state is None else state.with_name(f"{state.name}.{name}") for name in ("tests", "complete")}
    tests = hypothesis_tests(
        model, pairs, measured, circuit, n_random=n_random, state=kept["tests"], progress=stage("tests"), **common
    )
    complete = completeness_report(
        model, pairs, measured, circuit, state=kept["complete"], progress=stage("completeness"), **common
    )
    found: dict[str, tuple[Transfer, ...]] = {}
    for key in _axes(task) if by is None else by:
        stage(f"transfer by {key}")
        grounds = {value: pairs_of(model, part, measured, **how) for value, part in task.groups(key).items()}
        found[key] = transfer(model, circuit, grounds, measured, n_outside=3 if quick else 10, seed=seed)
    return Battery(tests, complete, found)


def with_evaluation(
    record: Mapping[str, Any], task: Task, split: str, report: FaithfulnessReport, results: Battery | None, **stamp: Any
) -> dict[str, Any]:
    """The circuit's record with this evaluation; an earlier one of the same pairs, split and setting gives way."""
    what = {"source": task.source, "sha256": task.sha256, "split": split, **stamp}
    earlier = [
        one for one in record.get("evaluations", []) if any(one.get(key) != value for key, value in what.items())
    ]
    new = {**what, "faithfulness": report.as_dict(), **(results.as_dict() if results else {})}
    return {**record, "evaluations": [*earlier, new]}


def _axes(task: Task) -> list[str]:
    """Of the usual keys those by which these pairs fall into several parts."""
    found = []
    for key in AXES:
        try:
            groups = task.groups(key)
        except TaskError:
            continue
        if len(groups) > 1:
            found.append(key)
    return found
