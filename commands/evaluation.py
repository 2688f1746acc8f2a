"""Putting circuits to the test: evaluate, specificity."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.assessment.options import EvaluationOptions
from persona_circuits.circuit.discovery.options import MeasureOptions
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import Option
from persona_circuits.circuit.table import Table
from persona_circuits.commands.index import result_folder
from persona_circuits.commands.options import LATEST, BarOption, CircuitArgument, JsonOption, Loading, PairsOption
from persona_circuits.commands.printing import print_tests
from persona_circuits.commands.signature import Only, Without, with_options
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    fitted_task,
    in_processes,
    load,
    own_pairs,
    print_table,
    progress_bars,
    read_task,
    refuse_idle,
    require,
    revision_of,
    say,
    show,
    warn_of_other_weights,
)

__all__: list[str] = []


@dataclass(frozen=True)
class Asked:
    """What ``evaluate`` reads, leaves out and writes."""

    model: Annotated[str | None, Option("Hugging Face folder or hub name. (default: the one the circuit names)")] = None
    null: Annotated[
        Path | None,
        Option(
            "Pairs of paraphrases of one persona: |D| within twice their spread is flat. (default: the shipped "
            "model's, for it)"
        ),
    ] = None
    only_faithfulness: Annotated[bool, Option("No tests beyond faithfulness and random circuits.")] = False
    save: Annotated[bool, Option("Write the answer into the circuit's file.")] = True
    report: Annotated[Path | None, Option("Write the report to this JSON file too.")] = None
    tables: Annotated[Path | None, Option("Folder for every table as CSV, and figures; made if not there.")] = None
    strongest: Annotated[
        int | None,
        Option("Edges of the run's picture, where it is drawn again. (default: as many as can be followed)", min=1),
    ] = None


@with_options
def evaluate(
    context: typer.Context,
    *,
    circuit: CircuitArgument = LATEST,
    pairs: PairsOption = None,
    asked: Asked,
    options: EvaluationOptions,
    min_faithfulness: BarOption = None,
    loading: Loading,
    as_json: JsonOption = False,
) -> None:
    """Put a circuit to the test: faithfulness, hypothesis tests, completeness, stability, single pairs, transfer."""
    begun = time.monotonic()
    with errors_as_exit_codes() as kept, in_processes() as first:
        stored = _opened(context, circuit, asked)
        name = asked.model or stored.model_name()
        if name is None:
            raise OptionError(f"{circuit} does not say which model it is of; give --model")
        task = read_task(pairs or own_pairs(stored.record))
        quiet = read_task(asked.null) if asked.null is not None else None
        _check_places(stored, asked)
        state = _state_beside(stored.path)
        kept.append(lambda: f"what is measured so far is kept in {state}" if _begun(state) else "")
        options = options.settled(stored.record).checked()
        with progress_bars() as stage:
            pinned = loading.revision or revision_of(stored.record, asked.model)
            from persona_circuits.circuit.assessment import evaluate_circuit
            from persona_circuits.circuit.discovery import check_pairs

            few = loading.fitting or bool((stored.record or {"task": {}})["task"].get("unfit"))
            fits: dict[str, Any] = {"where": options.where, "align": options.align}
            how_loaded = replace(loading, revision=pinned, fitting=few)
            loaded = load(
                stage, name, how_loaded, lambda reader: check_pairs(task, reader, (options.split, "test"), **fits)
            )
            warn_of_other_weights(stored.record, loaded)
            from persona_circuits.circuit.task import fitting as those_that_fit

            task = those_that_fit(task, loaded, align=str(options.align)) if loading.fitting else task
            if options.budget is not None:  # reading and loading are part of it
                options = replace(options, budget=max(1e-3, options.budget - (time.monotonic() - begun)))
            tested = not asked.only_faithfulness
            evaluation = evaluate_circuit(
                loaded, stored, task, options, null=quiet, tested=tested, state=state, stage=stage
            )
        if first:
            for note in evaluation.notes:
                say(f"note: {note}", err=True)
            _write(evaluation, stored, asked, title=f"{circuit}, {evaluation.task.source}")
            show(as_json, evaluation.as_dict, lambda: _print_evaluation(evaluation))
        require(evaluation.report.circuit.ratio_of_means, min_faithfulness)


def _opened(context: typer.Context, circuit: Path, asked: Asked) -> Any:
    """The circuit; options that would have no effect are refused."""
    tests = ["by", "orders", "quick", "budget", "certify"]
    refuse_idle(
        context,
        (not asked.only_faithfulness, "an evaluation without --only-faithfulness", tests),
        (asked.save, "a picture that is drawn again, without --no-save", ["strongest"]),
    )
    from persona_circuits.circuit.io import read_circuit
    from persona_circuits.circuit.storage import settle

    settle(circuit if circuit.is_dir() else circuit.parent)
    stored = read_circuit(circuit)
    method = (stored.record or {}).get("method", {})
    scored = method.get("prune") in ("threshold", "top-n", "greedy") and not method.keys() & {"finish", "of"}
    searched = method.get("prune") in ("acdc", "eap-acdc") and "finish" not in method
    refuse_idle(
        context,
        (stored.record is not None, "a circuit.json; what else is read is never written", ["save"]),
        (searched, "a circuit found by ACDC", ["orders"]),
        (scored, "a circuit that was pruned by scores", ["certify"]),
    )
    extra = [name for name, path in (("--null", asked.null), ("--tables", asked.tables)) if path]
    if asked.only_faithfulness and extra:
        raise OptionError(f"{extra[0]} has no effect with --only-faithfulness; leave one of them out")
    return stored


def _check_places(stored: Any, asked: Asked) -> None:
    """Check, before any work, that every output can be written."""
    from persona_circuits.circuit.storage import check_output_file, check_output_folder

    if asked.tables is not None:
        check_output_folder(asked.tables)
    for path in (stored.path if asked.save and stored.record is not None else None, asked.report):
        if path is not None:
            check_output_file(path)


def _write(evaluation: Any, stored: Any, asked: Asked, title: str) -> None:
    """Write every output asked for."""
    from persona_circuits.circuit.reporting import title_of, write_tests
    from persona_circuits.circuit.storage import replace_folder, write_json

    if asked.save and evaluation.record is not None:
        evaluation.save(stored.path, strongest=asked.strongest)
    if asked.report is not None:
        write_json(evaluation.as_dict(), asked.report)
    if asked.tables is not None:
        with replace_folder(asked.tables) as staging:
            write_tests(evaluation.results, staging, title=title_of(evaluation.record) or title)


def _print_evaluation(evaluation: Any) -> None:
    from persona_circuits.circuit.reporting import faithfulness_table

    print_table(faithfulness_table(evaluation.report))
    if evaluation.results is not None:
        print_tests(evaluation.results, evaluation.record, evaluation.report.resampled)
    if evaluation.shared is not None and evaluation.shared.note:
        say(f"\n{evaluation.shared.note}")


def _state_beside(path: Path) -> Path | None:
    """Where an unfinished evaluation is saved; None if nothing can be written beside the circuit's file."""
    from persona_circuits.circuit.errors import WriteError
    from persona_circuits.circuit.storage import check_output_file

    state = path.with_name(f"{path.name}.state")
    try:
        check_output_file(state)
    except WriteError:
        return None
    return state


def _begun(state: Path | None) -> bool:
    return state is not None and any(state.parent.glob(f"{glob.escape(state.name)}*"))


@with_options
def specificity(
    context: typer.Context,
    *,
    circuits: Annotated[list[Path], typer.Argument(help="Two or more circuits, one per contrast: run folders.")],
    names: Annotated[
        str | None, typer.Option("--names", help="Names of the contrasts, with commas. (default: the folders')")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Hugging Face folder or hub name. (default: the one they name)")
    ] = None,
    setting: Annotated[MeasureOptions, Only("split", "seed", "batch_size")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for specificity.json, CSV and heat map.")] = None,
    loading: Annotated[Loading, Without("revision")],
    as_json: JsonOption = False,
) -> None:
    """Ablate every circuit on every contrast: each should break its own and leave the others."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.storage import check_output_folder

        stored = _contrasts(circuits, names)
        records = [run.record for run in stored.values()]
        tasks = [read_task(own_pairs(record)) for record in records]
        _check_graphs(list(stored.values()))
        if out is not None:
            check_output_folder(out)
        with progress_bars() as stage:
            pinned = replace(loading, revision=revision_of(records[0], model))
            check = partial(_check_contrasts, records, tasks, setting)
            loaded = load(stage, model or records[0]["model"]["name"], pinned, check)
            from persona_circuits.circuit.evaluation import specificity as matrix

            contrasts, clusters = {}, {}
            for (label, run), every in zip(stored.items(), tasks, strict=True):
                contrasts[label], clusters[label] = _ground(run, every, loaded, setting, loading.fitting, stage)
            tell = stage("every circuit on every contrast")
            result = matrix(loaded, contrasts, clusters=clusters, seed=setting.seed, progress=tell)
        if out is not None:
            from persona_circuits.circuit.reporting import write_specificity

            with result_folder(context, out, loaded.name) as staging:
                write_specificity(result, staging)
        show(as_json, result.as_dict, lambda: _print_specificity(result))


def _contrasts(paths: list[Path], names: str | None) -> dict[str, Any]:
    """The circuits by the names of their contrasts."""
    from persona_circuits.circuit.io import read_circuit

    stored = [read_circuit(path) for path in paths]
    labels = names.split(",") if names else [path.parent.name if path.is_file() else path.name for path in paths]
    if len(stored) < 2 or len(set(labels)) != len(stored):
        raise OptionError("specificity needs two or more circuits with names of their own; give --names a,b,c")
    return dict(zip(labels, stored, strict=True))


def _check_graphs(stored: list[Any]) -> None:
    if other := next((run for run in stored if run.circuit.graph != stored[0].circuit.graph), None):
        raise OptionError(f"{other.path} is a circuit of another graph than {stored[0].path}; give one model's")


def _check_contrasts(records: Sequence[Any], tasks: Sequence[Any], setting: MeasureOptions, reader: Any) -> None:
    """Check that the pairs of every contrast fit a tokenizer, unless its circuit was found on fitting ones alone."""
    from persona_circuits.circuit.discovery import check_pairs

    for about, task in zip((record["task"] for record in records), tasks, strict=True):
        if not about.get("unfit"):
            where = tuple(about.get("where", {}).items())
            check_pairs(task, reader, (setting.split, "test"), where=where, align=about["align"])


def _ground(
    stored: Any, task: Any, model: Any, setting: MeasureOptions, fitting: bool, stage: Callable[[str], Any]
) -> Any:
    """A circuit, its pairs and its metric, and the clusters that its pairs are resampled by."""
    from persona_circuits.circuit.discovery import ablation_for, pairs_of, split_of
    from persona_circuits.circuit.statistics import Clusters
    from persona_circuits.metrics import METRICS

    warn_of_other_weights(stored.record, model)
    about = stored.record["task"]
    task = fitted_task(task, model, about["align"], fitting or bool(about.get("unfit")))
    settled = replace(setting, train_split=about["split"]).settled(stored.record)
    chosen = task.where(**dict(settled.where))
    chosen = chosen.of_split(split_of(chosen, settled.split, "test"))
    made, metric = ablation_for(model, task, settled, stage), METRICS[about["metric"]]
    pairs = pairs_of(model, chosen, metric, ablation=made, align=about["align"], batch_size=settled.batch_size)
    return (stored.circuit, pairs, metric), Clusters.of(chosen.pairs)


def _print_specificity(result: Any) -> None:
    cells = {(cell.circuit, cell.contrast): cell for cell in result.cells}
    rows = []
    for circuit in result.names:
        row = [circuit]
        for contrast in result.names:
            cell = cells[circuit, contrast]
            bounds = f" ({cell.interval.low:.2f} to {cell.interval.high:.2f})" if cell.interval else ""
            median = f"; median {cell.median_of_ratios:.2f}" if cell.median_of_ratios is not None else ""
            row.append("undefined" if cell.left is None else f"{cell.left:.2f}{bounds}{median}")
        rows.append(row)
    columns = ("ablated circuit of", *(f"left of {name}" for name in result.names))
    note = "what is left is a ratio of means; beside it the median of the pairs' own ratios"
    print_table(Table("what is left of a contrast when a circuit is ablated", columns, rows, 1, [note]))
    for name, over in result.resampled.items():
        say(f"intervals of {name} over {over}")
    for text in result.findings:
        say(text)
