"""The engine itself: crosscheck, bench, models, inspect, ground-truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.discovery.options import Options
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import Option
from persona_circuits.circuit.peers.options import CrosscheckOptions
from persona_circuits.circuit.profiling.options import BenchOptions, InspectOptions
from persona_circuits.circuit.table import Column, Table
from persona_circuits.commands.options import LATEST, PAIRS, CircuitArgument, JsonOption, Loading, Source
from persona_circuits.commands.printing import print_calibration
from persona_circuits.commands.signature import Only, with_options
from persona_circuits.commands.terminal import (
    duration,
    errors_as_exit_codes,
    fitted_task,
    load,
    own_pairs,
    print_table,
    print_tables,
    progress_bars,
    read_task,
    refuse_idle,
    refuse_revision,
    say,
    show,
    warn_of_other_weights,
)

__all__: list[str] = []


@dataclass(frozen=True)
class Other:
    """What the run is compared with: its pairs and model, or others, in auto-circuit, or auto-circuit's scores."""

    pairs: Annotated[Path | None, Option(PAIRS)] = None
    model: Annotated[str | None, Option("Hugging Face folder. (default: the one the circuit names)")] = None
    scores: Annotated[Path | None, Option("Do not run auto-circuit; compare with its scores in this .safetensors.")] = (
        None
    )
    peers: Annotated[
        Path | None,
        Option("auto-circuit's environment. (default: $PERSONA_CIRCUITS_PEERS, else what make peers makes)"),
    ] = None
    tolerance: Annotated[
        float | None, Option("Exit with 1 if a difference exceeds this share of the largest score.")
    ] = None


@with_options
def crosscheck(
    context: typer.Context,
    *,
    run: CircuitArgument = LATEST,
    other: Other,
    options: CrosscheckOptions,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the results. (default: the run's)")] = None,
    loading: Annotated[Loading, Only("fitting")],
    as_json: JsonOption = False,
) -> None:
    """Have auto-circuit compute a run's scores and its circuit's faithfulness again, and compare edge by edge."""
    with errors_as_exit_codes():
        run_there = ["pairs", "model", "split", "n_pairs", "steps", "mask_ig", "peers", "out", "batch_size", "fitting"]
        refuse_idle(context, (other.scores is None, "a run of auto-circuit, without --scores", run_there))
        from persona_circuits.circuit.io import read_circuit
        from persona_circuits.circuit.peers import agreement_table, compare_with_file, write_crosscheck
        from persona_circuits.circuit.storage import check_output_folder

        stored = read_circuit(run)
        if other.scores is not None:
            agreements = [compare_with_file(stored, other.scores)]
            show(as_json, lambda: [asdict(x) for x in agreements], lambda: print_table(agreement_table(agreements)))
            _require_agreement(agreements, other.tolerance)
            return
        name = other.model or stored.model_name()
        if name is None:
            raise OptionError(f"{run} does not say which model it is of; give --model")
        folder = out or stored.path.parent
        check_output_folder(out or folder.absolute())
        task = read_task(other.pairs or own_pairs(stored.record))
        result = _crosschecked(stored, name, task, other.peers, options.checked(), loading.fitting)
        write_crosscheck(result, folder)
        written = [folder / "crosscheck.json", folder / "crosscheck.csv"]
        extra = {"out": folder, "notes": result.notes, "written": written}
        show(as_json, result.as_dict, lambda: _print_crosscheck(result), **extra)
        _require_agreement(result.scores, other.tolerance)


def _crosschecked(
    stored: Any, name: str, task: Any, peers: Path | None, options: CrosscheckOptions, fitting: bool
) -> Any:
    """auto-circuit's results on the same pairs, computed in its own environment."""
    from persona_circuits.circuit.peers import check_model, peers_python
    from persona_circuits.circuit.peers import crosscheck as check
    from persona_circuits.circuit.task import resolve

    check_model(resolve(name))
    python = peers_python(peers)
    with progress_bars() as stage:
        loaded = load(stage, name, Loading(device="cpu"))
        warn_of_other_weights(stored.record, loaded)
        few = fitting or bool((stored.record or {"task": {}})["task"].get("unfit"))
        task = fitted_task(task, loaded, "equal", few)
        return check(loaded, resolve(name), stored, task, python, options, stage=stage)


def _print_crosscheck(result: Any) -> None:
    from persona_circuits.circuit.peers import CONVENTIONS, agreement_table, circuit_table

    pairs = result.pairs
    say(f"pairs       {pairs['n_pairs']} of {pairs['of']} ({pairs['split']}) of {pairs['source']}")
    say(f"there       {', '.join(f'{name} {version}' for name, version in result.versions.items())}")
    print_tables((agreement_table(result.scores), circuit_table(result)))
    print_table(Table("conventions", ("", "here", "auto-circuit"), CONVENTIONS, 3))


def _require_agreement(agreements: Sequence[Any], tolerance: float | None) -> None:
    if tolerance is None:
        return
    far = [item for item in agreements if item.same_quantity and not item.relative <= tolerance]
    for item in far:
        say(f"{item.what}: {item.relative:.2g} of the largest score at {item.at}, above {tolerance:g}", err=True)
    if far:
        raise typer.Exit(1)


@with_options
def bench(
    context: typer.Context,
    *,
    source: Source,
    options: BenchOptions,
    report: Annotated[Path | None, typer.Option("--report", help="Write the report to this JSON file too.")] = None,
    loading: Annotated[Loading, Only("device", "dtype", "revision")],
    as_json: JsonOption = False,
) -> None:
    """Time scores, a circuit and ACDC on a model of your own against bare forward and backward passes."""
    with errors_as_exit_codes():
        refuse_idle(context, (options.acdc_edges > 0, "--acdc-edges above 0", ["candidates", "share"]))
        import os

        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the memory counter's notes, read when torch is loaded
        from persona_circuits.circuit.storage import check_output_file, write_json

        options = options.checked()
        name, task = source.name(), read_task(source.pairs)
        if report is not None:
            check_output_file(report)
        from persona_circuits.circuit.profiling import bench as measure

        with progress_bars() as stage:
            where: dict[str, Any] = {"revision": loading.revision, "device": loading.device, "dtype": loading.dtype}
            measurement = measure(name, task, options, stage=stage, **where)
        if report is not None:
            write_json(measurement.as_dict(), report)
        show(as_json, measurement.as_dict, lambda: _print_bench(measurement))


def _print_bench(report: Any) -> None:
    from persona_circuits.circuit.profiling import acdc_row, bench_table

    place = report.machine
    say(f"{place['name']}, {place['threads']} thread(s), torch {place['versions']['torch']}")
    print_table(bench_table(report))
    if report.acdc is not None:
        say(f"\n{acdc_row(report)}")


def models(as_json: JsonOption = False) -> None:
    """List the model families that the tests cover, and what came of each check."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.profiling import supported_families

        families = supported_families()
        show(as_json, lambda: families, lambda: _print_families(families), indent=2)


def _print_families(families: Any) -> None:
    checks = list(families["families"][0]["checks"])
    sign = {"passed": "yes", "skipped": "-", "failed": "no"}
    cells = [
        (family["name"], family["examples"], *(sign.get(family["checks"][check], "?") for check in checks))
        for family in families["families"]
    ]
    columns = ("family", "models", *map(str, range(1, len(checks) + 1)))
    print_table(Table("tested", columns, cells, 2))
    say("\n".join(f"{i}  {check}" for i, check in enumerate(checks, 1)))
    reasons = (Column("family", "name"), Column("models", "examples"), Column("reason", "reason"))
    print_table(Table("refused", reasons, families["refused"], 3))
    versions = ", ".join(f"{name} {version}" for name, version in families["versions"].items())
    say(
        f"\nrandom weights in each architecture; with {versions}. Any other model is tried, and refused\n"
        "with the reason if it does not come apart: persona-circuits inspect MODEL"
    )


@with_options
def inspect(
    context: typer.Context,
    *,
    model: Annotated[str, typer.Argument(help="Hugging Face folder, GGUF file, name of a fetched model, or hub name.")],
    pairs: Annotated[Path | None, typer.Option("--pairs", help="Prompt pairs to check against the tokenizer.")] = None,
    options: InspectOptions,
    price: Annotated[
        float | None, typer.Option("--price", min=0.0, help="Price of an hour on that GPU: costs of every step.")
    ] = None,
    write_fitting: Annotated[
        Path | None, typer.Option("--write-fitting", help="Pair file to write: those of --pairs that fit, .jsonl.")
    ] = None,
    loading: Annotated[Loading, Only("max_memory", "revision")],
    as_json: JsonOption = False,
) -> None:
    """Print a model's shape and graph, what each method would cost, and whether a pair file fits; 1 if it does not."""
    with errors_as_exit_codes():
        refuse_idle(
            context,
            (pairs is not None, "--pairs", ["align"]),
            (pairs is None, "a job without --pairs", ["tokens", "prompts"]),
            (not as_json, "the table, without --json", ["price"]),
        )
        from persona_circuits.circuit.cost import parse_bytes
        from persona_circuits.circuit.profiling import inspect_model
        from persona_circuits.circuit.task import resolve

        if write_fitting is not None and pairs is None:
            raise OptionError("--write-fitting needs --pairs, the file whose fitting pairs are written")
        refuse_revision(resolve(model), loading.revision)
        task = read_task(pairs) if pairs else None
        limit = None if loading.max_memory is None else parse_bytes(loading.max_memory)
        settings: dict[str, Any] = {"label": model, "revision": loading.revision, "max_memory": limit}
        inspection = inspect_model(resolve(model), options, task=task, **settings)
        show(as_json, inspection.as_dict, lambda: _print_inspection(inspection, price), indent=2)
        if write_fitting is not None:
            _write_fitting(task, inspection.pairs, write_fitting)
        if inspection.comes_apart is False or (inspection.pairs and inspection.pairs.fault and write_fitting is None):
            raise typer.Exit(1)


def _write_fitting(task: Any, fit: Any, out: Path) -> None:
    """Write the rows of a pair file that fit, with all their keys, as JSON Lines."""
    from persona_circuits.circuit.errors import TaskError
    from persona_circuits.circuit.storage import write_text

    if not fit.fitting:
        raise TaskError(f"no pair of {fit.source} fits, so {out} is not written; choose other wordings")
    wanted = set(fit.fitting)
    lines = [json.dumps(pair.row) for pair in task.pairs if pair.id in wanted]
    write_text("".join(f"{line}\n" for line in lines), out)
    say(f"written to  {out}: {len(lines):,} of {fit.n_pairs:,} pairs", err=True)


def _print_inspection(result: Any, price: float | None) -> None:
    arch, graph = result.architecture, result.graph
    say(
        f"{arch.name}: {arch.layers} layers, {arch.heads} heads of width {arch.d_head} ({arch.kv_heads} key-value), "
        f"width {arch.d_model}, MLP {arch.d_mlp}, vocabulary {arch.vocab:,}, "
        f"context {result.n_context or 'unknown'}\n"
        f"parameters {arch.parameters / 1e9:.3g} G; {graph.n_src:,} sources, {graph.n_dst:,} slots, "
        f"{graph.n_edges:,} edges{' if attention and MLP are not parallel' if result.comes_apart is None else ''}"
    )
    if result.origin is not None:
        say(f"weights: {result.origin.sentence}")
    says = {None: "not tried: only the configuration was read", True: "yes", False: result.fault}
    say(f"comes apart into nodes: {says[result.comes_apart]}")
    _print_costs(result, price)
    if result.pairs is not None:
        fit = result.pairs
        fine = f"{fit.n_pairs:,} pairs of {fit.source} fit, {fit.longest} tokens at most"
        say(f"\npairs: {fit.fault or fine}")
        if fit.repeated:
            say(f"note: {fit.repeated} rows repeat earlier ones; they are left out everywhere")


def _print_costs(result: Any, price: float | None) -> None:
    """Memory, time and, if a price per hour is given, cost of every step in every format."""
    from persona_circuits.circuit.cost import weight_bytes

    rows = []
    for dtype, steps in result.costs.items():
        for i, cost in enumerate(steps):
            fits = cost.prompts_at_once > 0
            head = (dtype, f"{weight_bytes(result.architecture, dtype) / 1e9:.3g}") if i == 0 else ("", "")
            money = () if price is None else (f"{cost.seconds / 3600 * price:,.2f}" if fits else "-",)
            size, at_once = f"{cost.bytes_per_prompt / 1e9:.3g}", f"{cost.prompts_at_once:,}" if fits else "none fits"
            rows.append((*head, cost.step, size, at_once, duration(cost.seconds) if fits else "-", *money))
    columns = ("format", "weights, GB", "step", "per prompt, GB", "prompts at once", "time")
    title = f"estimated for {result.prompts:,} prompts of {result.tokens} tokens on one {result.device.name}"
    title += "" if result.limit is None else f" within {result.limit / 1e9:.3g} GB"
    print_table(Table(title, (*columns, *(() if price is None else ("cost",))), rows, 3))


@with_options
def ground_truth(*, options: Annotated[Options, Only("steps", "seed")], as_json: JsonOption = False) -> None:
    """Run every scorer and pruner on the planted models, whose circuits are known by construction."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.assessment import calibrate
        from persona_circuits.models.planted import planted_models

        with progress_bars() as stage:
            tell = stage("planted models")
            rows = calibrate(planted_models(), steps=options.steps, seed=options.seed, progress=tell)
        show(as_json, lambda: [row.as_dict() for row in rows], lambda: print_calibration(rows))
