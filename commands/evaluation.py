"""Putting circuits to the test: evaluate, specificity."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.commands.options import (
    LATEST,
    AblationName,
    BarOption,
    BatchOption,
    CircuitArgument,
    DeviceOption,
    DtypeOption,
    FittingOption,
    JsonOption,
    MaxMemoryOption,
    MetricName,
    PairsOption,
    RandomOption,
    SeedOption,
    WhereOption,
)
from persona_circuits.commands.printing import picture_title, print_battery, print_report
from persona_circuits.commands.terminal import (
    conditions_of,
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
    warn_of_other_weights,
)

__all__ = []


def evaluate(
    context: typer.Context,
    circuit: CircuitArgument = LATEST,
    pairs: PairsOption = None,
    model: Annotated[
        str | None, typer.Option(help="Hugging Face folder or hub name. (default: the one the circuit names)")
    ] = None,
    metric: Annotated[
        MetricName | None, typer.Option(help="What the circuit is to explain. (default: the circuit's)")
    ] = None,
    ablation: Annotated[
        AblationName | None, typer.Option(help="What an edge outside the circuit carries. (default: the circuit's)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Pairs to measure on. (default: test, or all)")] = None,
    where: WhereOption = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by", help="Measure on every value of this key of the pairs; may be repeated. (default: the usual)"
        ),
    ] = None,
    null: Annotated[
        Path | None,
        typer.Option(
            "--null",
            help="Pairs of paraphrases of one persona: |D| within twice their spread is flat. (default: the shipped "
            "model's, for it)",
        ),
    ] = None,
    orders: Annotated[
        int, typer.Option("--orders", min=0, help="Random orders in which ACDC's search is repeated; 0: none.")
    ] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few random circuits, permutations and edges: seconds instead of minutes.")
    ] = False,
    only_faithfulness: Annotated[
        bool, typer.Option("--only-faithfulness", help="No tests beyond faithfulness and random circuits.")
    ] = False,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Write the answer into the circuit's file.")] = True,
    n_random: RandomOption = 10,
    min_faithfulness: BarOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the report to this JSON file too.")] = None,
    tables: Annotated[
        Path | None, typer.Option("--tables", help="Folder for every table as CSV, and figures; made if not there.")
    ] = None,
    strongest: Annotated[int, typer.Option(min=1, help="Edges of the run's picture, where it is drawn again.")] = 150,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    max_memory: MaxMemoryOption = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put a circuit to the test: faithfulness, hypothesis tests, completeness, stability, single pairs, transfer."""
    with errors_as_exit_codes() as kept, in_processes() as first:
        refuse_idle(
            context,
            (not only_faithfulness, "an evaluation without --only-faithfulness", ["by", "orders", "quick"]),
            (save, "a picture that is drawn again, without --no-save", ["strongest"]),
        )
        from persona_circuits.circuit.errors import OptionError
        from persona_circuits.circuit.io import read_circuit
        from persona_circuits.circuit.storage import check_output_file, check_output_folder, settle, write_json

        settle(circuit if circuit.is_dir() else circuit.parent)
        stored = read_circuit(circuit)
        searched = (stored.record or {}).get("method", {}).get("prune") in ("acdc", "eap-acdc")
        refuse_idle(
            context,
            (stored.record is not None, "a circuit.json; what else is read is never written", ["save"]),
            (searched, "a circuit found by ACDC", ["orders"]),
        )
        name = model or stored.model_name()
        if name is None:
            raise OptionError(f"{circuit} does not say which model it is of; give --model")
        if only_faithfulness and (left := [one for one, given in (("--null", null), ("--tables", tables)) if given]):
            raise OptionError(f"{left[0]} has no effect with --only-faithfulness; leave one of them out")
        task = read_task(pairs or own_pairs(stored.record))
        quiet = None if only_faithfulness else _null_task(null, name)
        if tables is not None:
            check_output_folder(tables)
        for path in (stored.path if save and stored.record is not None else None, out):
            if path is not None:
                check_output_file(path)
        state = _state_beside(stored.path)
        kept.append(lambda: f"what is measured so far is kept in {state}" if _begun(state) else "")
        about = stored.record or {"task": {"metric": "persona-divergence", "align": "equal"}, "ablation": "corrupt"}
        setting = {"metric": metric or about["task"]["metric"], "ablation": ablation or about["ablation"]}
        conditions = dict(conditions_of(where)) or about["task"].get("where", {})
        with progress_bars() as stage:
            loaded = load(stage, name, revision or revision_of(stored.record, model), device, dtype, max_memory)
            warn_of_other_weights(stored.record, loaded)
            from persona_circuits.circuit.discovery import ablation_for, evaluate_on, split_of

            how: dict[str, Any] = {
                "align": about["task"]["align"],
                "batch_size": batch_size,
                "seed": seed,
                "stage": stage,
            }
            searched = _searched_task(stored.record, task)
            few = fitting or bool(about["task"].get("unfit"))
            same = searched is task
            task, quiet = (fitted_task(one, loaded, how["align"], few) for one in (task, quiet))
            searched = task if same else fitted_task(searched, loaded, how["align"], few)
            chosen = task.where(**conditions)
            chosen = chosen.of_split(split_of(chosen, split, "test"))
            shared = _shared_with_search(stored.record, searched, chosen, loaded)
            more: dict[str, Any] = {"n_random": n_random, "scores": stored.scores, **setting, **how}
            report = evaluate_on(loaded, task, stored.circuit, split=split, where=conditions, **more)
            results = None
            if not only_faithfulness:
                from persona_circuits.circuit.assessment import battery

                made = ablation_for(
                    setting["ablation"], loaded, task, metric=setting["metric"], where=conditions, **how
                )
                results = battery(
                    loaded,
                    chosen,
                    stored.circuit,
                    metric=setting["metric"],
                    ablation=made,
                    by=by,
                    search=searched,
                    record=stored.record,
                    null=quiet,
                    n_orders=orders,
                    quick=quick,
                    state=state,
                    **how,
                )
        record = stored.record
        if save and first and record is not None:
            from persona_circuits.circuit.assessment import with_evaluation

            stamp = {"model": loaded.name, "fingerprint": loaded.fingerprint, "where": conditions, **setting}
            stamp |= {"align": how["align"], "seed": seed, "quick": quick}
            record = with_evaluation(record, task, report.split, report, results, shared, **stamp)
            _save_evaluation(record, stored, strongest)
        found = {**report.as_dict(), **({"stability": _stability(results), **results.as_dict()} if results else {})}
        found |= task.counts
        found |= {} if shared is None else {"held_out": shared.held_out, "shared": shared.as_dict()}
        if out is not None and first:
            write_json(found, out)
        if tables is not None and results is not None and first:
            from persona_circuits.circuit.reporting import write_battery
            from persona_circuits.circuit.storage import replace_folder

            with replace_folder(tables) as staging:
                write_battery(results, staging, title=picture_title(record) or f"{circuit}, {task.source}")
        if first and as_json:
            typer.echo(json.dumps(found))
        elif first:
            print_report(report, as_json=False)
            if results is not None:
                print_battery(results, record)
            if shared is not None and shared.note:
                say(f"\n{shared.note}")
        require(report.circuit.ratio_of_means, min_faithfulness)


def _shared_with_search(record: dict[str, Any] | None, searched: Any, chosen: Any, model: Any) -> Any:
    """What the pairs have in common with those that the circuit was found on; None where these are not known."""
    from persona_circuits.circuit.task import overlap_of_tasks

    if record is None or searched is None or searched.sha256 != record["task"]["sha256"]:
        return None
    found_on = searched.where(**record["task"].get("where", {})).of_split(record["task"]["split"])
    return overlap_of_tasks(found_on, chosen, model)


def _null_task(null: Path | None, model: str) -> Any:
    """Paraphrases of one persona: those of the file, or the shipped ones for the shipped model."""
    from persona_circuits.circuit.task import CONTROLS, MODEL

    if null is not None:
        return read_task(null)
    return read_task(CONTROLS).where(control="paraphrase") if model == MODEL else None


def _searched_task(record: dict[str, Any] | None, task: Any) -> Any:
    """The whole pair file of the circuit's search; None where other pairs are asked for and its stability is known.

    Where that file is not here it is the task in hand, and the reason is given later.
    """
    from persona_circuits.circuit.errors import TaskError

    if record is None or task.sha256 == record["task"]["sha256"]:
        return task
    if "stability" in record and not record["stability"]["quick"]:
        return None
    try:
        return read_task(record["task"]["source"])
    except TaskError:
        return task


def _stability(results: Any) -> dict[str, Any]:
    report = results.searched.report
    return {"reason": results.searched.reason} if report is None else report.as_dict()


def _state_beside(path: Path) -> Path | None:
    """Where a circuit's evaluation is kept until it is whole; None where nothing can be written beside the file."""
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


def _save_evaluation(record: dict[str, Any], stored: Any, strongest: int) -> None:
    """The answer into the circuit's file; where pictures of it lie beside it, they are drawn again with its marks."""
    from persona_circuits.circuit.drawing import draw as picture
    from persona_circuits.circuit.io import read_circuit, write_circuit
    from persona_circuits.circuit.storage import replace_folder

    with replace_folder(stored.path.parent) as staging:
        write_circuit(record, staging / stored.path.name)
        marked = read_circuit(staging / stored.path.name)
        for name in ("graph.svg", "graph.png") if marked.fringe is not None else ():
            if stored.path.with_name(name).exists():
                how: dict[str, Any] = {"scores": marked.scores, "strongest": strongest, "title": picture_title(record)}
                picture(marked.circuit, staging / name, fringe=marked.fringe, **how)


def specificity(
    circuits: Annotated[list[Path], typer.Argument(help="Two or more circuits, one per contrast: run folders.")],
    names: Annotated[
        str | None, typer.Option("--names", help="Names of the contrasts, with commas. (default: the folders')")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Hugging Face folder or hub name. (default: the one they name)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Pairs to measure on. (default: test, or all)")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for specificity.json, CSV and heat map.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    max_memory: MaxMemoryOption = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ablate every circuit on every contrast: each should break its own and leave the others."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.errors import OptionError
        from persona_circuits.circuit.io import read_circuit
        from persona_circuits.circuit.storage import check_output_folder, replace_folder

        stored = [read_circuit(path) for path in circuits]
        labels = names.split(",") if names else [path.parent.name if path.is_file() else path.name for path in circuits]
        if len(stored) < 2 or len(set(labels)) != len(stored):
            raise OptionError("specificity needs two or more circuits with names of their own; give --names a,b,c")
        tasks = [read_task(own_pairs(one.record)) for one in stored]
        records = [one.record for one in stored if one.record is not None]  # all: without one there are no pairs
        if other := next((one for one in stored if one.circuit.graph != stored[0].circuit.graph), None):
            raise OptionError(f"{other.path} is a circuit of another graph than {stored[0].path}; give one model's")
        if out is not None:
            check_output_folder(out)
        with progress_bars() as stage:
            pinned = revision_of(records[0], model)
            loaded = load(stage, model or records[0]["model"]["name"], pinned, device, dtype, max_memory)
            from persona_circuits.circuit.discovery import ablation_for, pairs_of, split_of
            from persona_circuits.circuit.evaluation import specificity as matrix
            from persona_circuits.circuit.statistics import Clusters
            from persona_circuits.metrics import METRICS

            contrasts, clusters = {}, {}
            for label, one, record, every in zip(labels, stored, records, tasks, strict=True):
                warn_of_other_weights(record, loaded)
                about = record["task"]
                task = fitted_task(every, loaded, about["align"], fitting or bool(about.get("unfit")))
                how = {"align": about["align"], "batch_size": batch_size}
                conditions = about.get("where", {})
                chosen = task.where(**conditions)
                chosen = chosen.of_split(split_of(chosen, split, "test"))
                more = {"metric": about["metric"], "where": conditions, "train_split": about["split"], "stage": stage}
                made = ablation_for(record["ablation"], loaded, task, **more, **how)
                pairs = pairs_of(loaded, chosen, METRICS[about["metric"]], ablation=made, **how)
                contrasts[label] = (one.circuit, pairs, METRICS[about["metric"]])
                clusters[label] = Clusters.of(chosen.pairs)
            tell = stage("every circuit on every contrast")
            found = matrix(loaded, contrasts, clusters=clusters, seed=seed, progress=tell)
        if out is not None:
            from persona_circuits.circuit.reporting import write_specificity

            with replace_folder(out) as staging:
                write_specificity(found, staging)
        _print_specificity(found, as_json)


def _print_specificity(found: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    cells = {(cell.circuit, cell.contrast): cell for cell in found.cells}
    rows = []
    for circuit in found.names:
        row = [circuit]
        for contrast in found.names:
            cell = cells[circuit, contrast]
            bounds = f" ({cell.interval.low:.2f} to {cell.interval.high:.2f})" if cell.interval else ""
            row.append("undefined" if cell.left is None else f"{cell.left:.2f}{bounds}")
        rows.append(row)
    columns = ("ablated circuit of", *(f"left of {name}" for name in found.names))
    print_table("what is left of a contrast when a circuit is ablated", columns, rows, texts=1)
    for text in found.findings:
        say(text)
