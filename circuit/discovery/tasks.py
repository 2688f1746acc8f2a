"""Batches, splits and ablations of a task: what every study of a circuit begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from persona_circuits.circuit import parallel
from persona_circuits.circuit.discovery.options import MeasureOptions
from persona_circuits.circuit.discovery.own_metrics import metric_of
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import CONSTANT, Ablation, Prepared, make_ablation, prepare_each
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.options import Where
from persona_circuits.circuit.progress import Stage, untold_stage
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit
from persona_circuits.circuit.task import Batch, Reader, Row, Task, batches, encode, with_swap_rows
from persona_circuits.metrics import Metric

__all__ = [
    "ablation_for",
    "batches_of",
    "check_graph",
    "check_pairs",
    "named_ablation",
    "own_rows",
    "pairs_of",
    "rows_of",
    "split_of",
]


def named_ablation(name: str, model: Model, groups: Sequence[Batch], stage: Stage) -> Ablation | None:
    """The ablation of that name, with its constants from ``groups``; None for the corrupt one, which needs nothing."""
    if name == "corrupt":
        return None
    progress = stage(f"{name} ablation") if name in CONSTANT else None
    if model.budget is not None:
        if name == "optimal":
            raise OptionError(
                "--ablation optimal learns on 16 prompts at a time and cannot be kept within --max-memory; use another "
                "ablation, or leave --max-memory out"
            )
        longest = max((batch.n_tokens for batch in groups), default=1)
        groups = [part for batch in groups for part in batch.parts(model.budget.circuit_rows(longest, plain=False))]
    return make_ablation(name, model, groups, progress=progress)


def ablation_for(model: Model, task: Task, setting: MeasureOptions, stage: Stage | None = None) -> Ablation | None:
    """The setting's ablation; its constants are of ``train_split`` (``train`` if there is one, else all pairs)."""
    setting = setting.settled()
    name, metric = str(setting.ablation), metric_of(setting.metric)
    source: Sequence[Row] = ()
    if name in CONSTANT:
        task = task.where(**dict(setting.where))
        train = task.of_split(split_of(task, setting.train_split, "train"))
        source = rows_of(encode(train, model, align=str(setting.align)), metric)
    groups = batches(own_rows(source, metric), setting.batch_size, model.device)
    return named_ablation(name, model, groups, stage or untold_stage)


def pairs_of(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    align: str = "equal",
    ablation: Ablation | None = None,
    batch_size: int = 32,
) -> Callable[[], Iterator[Prepared]]:
    """A function that yields a task's batches, prepared one after the other.

    Raises:
        TaskError: the pairs do not fit the model.
    """
    groups = batches_of(model, task, metric, align=align, batch_size=batch_size)
    return lambda: prepare_each(model, groups, ablation)


def batches_of(model: Model, task: Task, metric: Metric, *, align: str = "equal", batch_size: int = 32) -> list[Batch]:
    """This process's batches of a task, with both directions of each pair where the metric needs them.

    Raises:
        TaskError: the pairs do not fit the model.
    """
    rows = rows_of(encode(task, model, align=align), metric)
    return batches(own_rows(rows, metric), batch_size, model.device)


def check_graph(circuit: Circuit | SpanCircuit, model: Model) -> None:
    """Check that a circuit is of this model's graph.

    Raises:
        OptionError: it is of another one.
    """
    own, graph = circuit.graph, model.graph
    if own != graph:
        raise OptionError(
            f"the circuit is of a model with {own.n_layers} layers and {own.n_heads} heads, but {model.name} has "
            f"{graph.n_layers} and {graph.n_heads}; give the model it was found in"
        )


def check_pairs(
    task: Task, reader: Reader, *splits: tuple[str | None, str], where: Where = (), align: str = "equal"
) -> None:
    """Check that the pairs of some splits, each given as the requested and the default name, fit a tokenizer.

    Raises:
        TaskError: there is no such split or key, or some do not fit; all faults are listed.
    """
    chosen = task.where(**dict(where))
    for name in dict.fromkeys(split_of(chosen, requested, usual) for requested, usual in splits):
        encode(chosen.of_split(name), reader, align=align)


def split_of(task: Task, wanted: str | None, default: str) -> str:
    """The split to use: the requested one, else ``default`` if the file has it, else all pairs."""
    return wanted if wanted is not None else default if default in task.splits else "all"


def rows_of(rows: Sequence[Row], metric: Metric) -> tuple[Row, ...]:
    return with_swap_rows(rows) if metric.swap_rows else tuple(rows)


def own_rows(rows: Sequence[Row], metric: Metric) -> tuple[Row, ...]:
    """This process's rows; both directions of a pair stay together, as they share their forward passes."""
    width = 2 if metric.swap_rows else 1
    pairs = [rows[i : i + width] for i in range(0, len(rows), width)]
    return tuple(row for pair in parallel.share(pairs) for row in pair)
