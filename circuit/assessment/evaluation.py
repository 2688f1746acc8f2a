"""Everything that a circuit has to stand: faithfulness, hypothesis tests, completeness, stability, pairs, transfer.

1. *stability*: the search's own pairs are resampled, or ACDC's order changed (``circuit.assessment.stability``)
2. *hypothesis tests* and *completeness* on the pairs asked for
3. *pairs*: the same circuit pair by pair, flat pairs apart, groups of pairs that use other edges
4. *transfer*: the circuit on all of these pairs and on every value of their keys, beside circuits outside it

What is found goes into the circuit's file, with what it was measured on, so that a
circuit is never seen without it. Stability is of the search, not of the pairs asked for: it stands at the top of the
file, with frequency and part (core or fringe) at every edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.assessment.stability import (
    ORDERS,
    Searched,
    marked_record,
    rule_of,
    scores_of,
    search_again,
)
from persona_circuits.circuit.discovery import pairs_of
from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.evaluation import (
    FaithfulnessReport,
    NullRun,
    PairScores,
    PairsView,
    Transfer,
    divergences_of,
    measured_pairs,
    null_run,
    pairs_view,
    transfer,
)
from persona_circuits.circuit.evaluation.completeness import CompletenessReport, completeness_report
from persona_circuits.circuit.evaluation.hypothesis import HypothesisReport, hypothesis_tests
from persona_circuits.circuit.evaluation.stability import N_RESAMPLES
from persona_circuits.circuit.forward import Ablation, Rounding
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, untold_stage
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Overlap, Task
from persona_circuits.metrics import METRICS, Metric

__all__ = [
    "Battery",
    "battery",
    "with_evaluation",
]

AXES = ("held_out", "domain", "template", "placement")
"""Keys of the pairs by which transfer is looked at where no other is asked for."""
DRAWS, QUICK_DRAWS = 199, 39
"""Of the test for groups of pairs."""
NOT_SEARCHED = Searched(None, reason="it is not said how the circuit was found")


@dataclass(frozen=True, eq=False)
class Battery:
    """The tests of one circuit on one set of pairs.

    ``transfer`` is by the values of keys of the pairs; under ``pairs`` it is all of them. ``null`` is the run on
    paraphrases, if one was asked for, and ``searched`` the stability of the circuit's search, if its file was given.
    """

    tests: HypothesisReport
    completeness: CompletenessReport
    transfer: Mapping[str, tuple[Transfer, ...]]
    pairs: PairsView
    null: NullRun | None = None
    searched: Searched = NOT_SEARCHED

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as the circuit's file holds them; stability apart."""
        return {
            "tests": self.tests.as_dict(),
            "completeness": self.completeness.as_dict(),
            "pairs": self.pairs.as_dict(),
            "null": None if self.null is None else self.null.as_dict(),
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
    search: Task | None = None,
    record: Mapping[str, Any] | None = None,
    null: Task | None = None,
    n_random: int = 100,
    n_resamples: int = N_RESAMPLES,
    n_orders: int = ORDERS,
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
    search, record
        The whole pair file that the circuit was found on, and the circuit's file, for its stability; without them
        it is not known.
    null
        Pairs of two paraphrases of one persona: D is flat within twice its spread over them.
    n_random
        Random circuits of the hypothesis tests.
    n_resamples, n_orders
        Of the stability: resamples of the pairs, and random orders where the circuit is ACDC's.
    quick
        Few random circuits, permutations, edges and resamples; pairs are grouped by their EAP scores.
    state
        Measurements are kept beside this path, to go on from after a stop.

    Raises
    ------
    TaskError, OptionError
        A key that no pair has; an impossible number.
    """
    stage = stage or untold_stage
    measured, clusters = METRICS[metric], Clusters.of(task.pairs)
    how: dict[str, Any] = {"align": align, "ablation": ablation, "batch_size": batch_size}
    pairs = pairs_of(model, task, measured, **how)
    quiet = null_run(model, null, align=align, batch_size=batch_size) if null is not None else None
    common: dict[str, Any] = {"seed": seed, "quick": quick}
    names = ("search", "tests", "complete")
    kept = {name: None if state is None else state.with_name(f"{state.name}.{name}") for name in names}
    searched = NOT_SEARCHED
    if search is not None and record is not None:
        more: dict[str, Any] = {"n_resamples": n_resamples, "n_orders": n_orders, "batch_size": batch_size}
        searched = search_again(model, search, circuit, record, state=kept["search"], stage=stage, **more, **common)
    tests = hypothesis_tests(
        model,
        pairs,
        measured,
        circuit,
        n_random=n_random,
        clusters=clusters,
        state=kept["tests"],
        progress=stage("tests"),
        **common,
    )
    complete = completeness_report(
        model,
        pairs,
        measured,
        circuit,
        clusters=clusters,
        state=kept["complete"],
        progress=stage("completeness"),
        **common,
    )
    setting = {"metric": metric, "ablation": ablation is None, "align": align}
    known = _same_pairs(searched.scores, search, record, task, setting)
    method = {"scores": "eap"} if quick else (record or {}).get("method")
    scores = known or scores_of(model, task, measured, method=method, stage=stage, **how)
    watch = Rounding(model, measured)
    values = measured_pairs(model, pairs(), measured, circuit, watch=watch)
    view = pairs_view(
        values,
        task.pairs,
        circuit,
        scores=scores,
        rule=rule_of(record),
        divergences=divergences_of(pairs(), swapped=measured.swap_rows),
        sigma_0=None if quiet is None else quiet.sigma_0,
        rounding=watch.floor,
        n_draws=QUICK_DRAWS if quick else DRAWS,
        seed=seed,
        progress=stage("groups of pairs"),
    )
    return Battery(
        tests, complete, _transfers(model, task, circuit, measured, by, how, common, stage), view, quiet, searched
    )


def _transfers(
    model: Model,
    task: Task,
    circuit: Circuit,
    metric: Metric,
    by: Sequence[str] | None,
    how: Mapping[str, Any],
    common: Mapping[str, Any],
    stage: Callable[[str], Progress],
) -> dict[str, tuple[Transfer, ...]]:
    """On all pairs, and on those of every value of the keys."""
    found: dict[str, tuple[Transfer, ...]] = {}
    for key in ("pairs", *(_axes(task) if by is None else by)):
        parts = {"all": task} if key == "pairs" else task.groups(key)
        grounds = {value: pairs_of(model, part, metric, **how) for value, part in parts.items()}
        clusters = {value: Clusters.of(part.pairs) for value, part in parts.items()}
        more = {"clusters": clusters, "n_outside": 3 if common["quick"] else 10, "seed": common["seed"]}
        tell = stage("transfer" if key == "pairs" else f"transfer by {key}")
        found[key] = transfer(model, circuit, grounds, metric, progress=tell, **more)
    return found


def _same_pairs(
    scores: PairScores | None,
    search: Task | None,
    record: Mapping[str, Any] | None,
    task: Task,
    setting: Mapping[str, Any],
) -> PairScores | None:
    """The search's scores, where these are its pairs and its setting."""
    if scores is None or search is None or record is None:
        return None
    about = record["task"]
    own = {"metric": about["metric"], "ablation": record["ablation"] == "corrupt", "align": about["align"]}
    searched = search.where(**about.get("where", {})).of_split(about["split"])
    return scores if own == setting and setting["ablation"] and searched.pairs == task.pairs else None


def with_evaluation(
    record: Mapping[str, Any],
    task: Task,
    split: str,
    report: FaithfulnessReport,
    results: Battery | None,
    shared: Overlap | None = None,
    **stamp: Any,
) -> dict[str, Any]:
    """The circuit's record with this evaluation; an earlier one of the same pairs, split and setting gives way.

    ``shared`` is what its pairs have in common with those searched on, where these are known. Its stability, and
    frequency and part of every edge, are written where they are known.
    """
    what = {"source": task.source, "sha256": task.sha256, "split": split, **stamp}
    earlier = [
        one for one in record.get("evaluations", []) if any(one.get(key) != value for key, value in what.items())
    ]
    known = {} if shared is None else {"held_out": shared.held_out, "shared": shared.as_dict()}
    new = {**what, **task.counts, **known, "faithfulness": report.as_dict(), **(results.as_dict() if results else {})}
    how = {"seed": stamp.get("seed", 0), "quick": stamp.get("quick", False)}
    marked = marked_record(record, results.searched.report if results else None, **how)
    return {**marked, "evaluations": [*earlier, new]}


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
