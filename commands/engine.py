"""The engine itself: crosscheck, bench, models, inspect, ground-truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.commands.options import (
    LATEST,
    AlignOption,
    BatchOption,
    CircuitArgument,
    DeviceOption,
    DtypeOption,
    FittingOption,
    JsonOption,
    MaxMemoryOption,
    ModelOption,
    PairsOption,
    SeedOption,
)
from persona_circuits.commands.printing import print_calibration
from persona_circuits.commands.terminal import (
    duration,
    errors_as_exit_codes,
    fitted_task,
    load,
    model_name,
    own_pairs,
    print_table,
    progress_bars,
    read_task,
    refuse_idle,
    refuse_revision,
    say,
    warn_of_other_weights,
)

__all__: list[str] = []


def crosscheck(
    context: typer.Context,
    run: CircuitArgument = LATEST,
    pairs: PairsOption = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Hugging Face folder. (default: the one the circuit names)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Pairs to use. (default: those searched on)")] = None,
    n_pairs: Annotated[int, typer.Option(help="Pairs at most; 0: all of them.")] = 32,
    steps: Annotated[int | None, typer.Option(help="Points of EAP-IG. (default: the run's, else 5)")] = None,
    mask_ig: Annotated[bool, typer.Option(help="auto-circuit's own integrated gradients too.")] = True,
    scores: Annotated[
        Path | None, typer.Option(help="Do not run auto-circuit; compare with its scores in this .safetensors.")
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(help="auto-circuit's environment. (default: $PERSONA_CIRCUITS_PEERS, else what make peers makes)"),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Exit with 1 if a difference exceeds this share of the largest score.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the results. (default: the run's)")] = None,
    batch_size: BatchOption = 16,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have auto-circuit compute a run's scores and its circuit's faithfulness again, and compare edge by edge."""
    with errors_as_exit_codes():
        run_there = ["pairs", "model", "split", "n_pairs", "steps", "mask_ig", "peers", "out", "batch_size", "fitting"]
        refuse_idle(context, (scores is None, "a run of auto-circuit, without --scores", run_there))
        from persona_circuits.circuit.errors import OptionError
        from persona_circuits.circuit.io import read_circuit
        from persona_circuits.circuit.peers import (
            CrosscheckOptions,
            check_model,
            compare_with_file,
            peers_python,
            write_crosscheck,
        )
        from persona_circuits.circuit.peers import crosscheck as check
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.circuit.task import resolve

        stored = read_circuit(run)
        if scores is not None:
            _print_agreements([found := compare_with_file(stored, scores)], as_json)
            _require_agreement([found], tolerance)
            return
        name = model or stored.model_name()
        if name is None:
            raise OptionError(f"{run} does not say which model it is of; give --model")
        options = CrosscheckOptions(split, n_pairs, batch_size, steps, mask_ig).checked()
        check_model(resolve(name))
        python, task = peers_python(peers), read_task(pairs or own_pairs(stored.record))
        folder = out or stored.path.parent
        check_output_folder(out or folder.absolute())
        with progress_bars() as stage:
            loaded = load(stage, name, None, "cpu", "float32")
            warn_of_other_weights(stored.record, loaded)
            task = fitted_task(
                task, loaded, "equal", fitting or bool((stored.record or {"task": {}})["task"].get("unfit"))
            )
            result = check(loaded, resolve(name), stored, task, python, options, stage=stage)
        write_crosscheck(result, folder)
        _print_crosscheck(result, folder, as_json)
        _require_agreement(result.scores, tolerance)


def _print_crosscheck(result: Any, folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"out": str(folder), **result.as_dict()}))
        return
    from persona_circuits.circuit.peers import CONVENTIONS, circuit_rows

    pairs = result.pairs
    say(f"pairs       {pairs['n_pairs']} of {pairs['of']} ({pairs['split']}) of {pairs['source']}")
    say(f"there       {', '.join(f'{name} {version}' for name, version in result.versions.items())}")
    _print_agreements(result.scores, as_json=False)
    title = f"circuit of {result.circuit.n_edges:,} edges, {result.metric}"
    print_table(title, ("", "here", "auto-circuit", "difference"), circuit_rows(result), texts=1)
    print_table("conventions", ("", "here", "auto-circuit"), CONVENTIONS, texts=3)
    for note in result.notes:
        say(f"note: {note}")
    say(f"written to  {folder / 'crosscheck.json'}, {folder / 'crosscheck.csv'}")


def _print_agreements(agreements: Sequence[Any], as_json: bool) -> None:
    from dataclasses import asdict

    from persona_circuits.circuit.peers import AGREEMENT_COLUMNS, agreement_rows

    if as_json:
        typer.echo(json.dumps([asdict(item) for item in agreements]))
        return
    print_table("scores of all edges, here and there", AGREEMENT_COLUMNS, agreement_rows(agreements), texts=1)


def _require_agreement(agreements: Sequence[Any], tolerance: float | None) -> None:
    if tolerance is None:
        return
    far = [item for item in agreements if item.same_quantity and not item.relative <= tolerance]
    for item in far:
        say(f"{item.what}: {item.relative:.2g} of the largest score at {item.at}, above {tolerance:g}", err=True)
    if far:
        raise typer.Exit(1)


def bench(
    context: typer.Context,
    model: ModelOption = None,
    pairs: PairsOption = None,
    n_pairs: Annotated[int, typer.Option(help="Pairs of one length, in one batch.")] = 8,
    rounds: Annotated[int, typer.Option(help="Timed rounds of each step.")] = 3,
    steps: Annotated[int, typer.Option(help="Points of EAP-IG.")] = 5,
    edges: Annotated[int, typer.Option(help="Edges of the random circuit.")] = 200,
    acdc_edges: Annotated[int, typer.Option(help="Edges that ACDC tries, spread over the graph; 0: none.")] = 96,
    candidates: Annotated[
        int | None,
        typer.Option(help="Edges that ACDC tries per pass. (default: as many as share one, at most 8; GPU: 128)"),
    ] = None,
    share: Annotated[float, typer.Option(help="ACDC's threshold as a share of |m(full) - m(empty)|.")] = 0.003,
    out: Annotated[Path | None, typer.Option("--out", help="Write the report to this JSON file too.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time scores, a circuit and ACDC on a model of your own against bare forward and backward passes."""
    with errors_as_exit_codes():
        refuse_idle(context, (acdc_edges > 0, "--acdc-edges above 0", ["candidates", "share"]))
        import os

        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the memory counter's notes, read when torch is loaded
        from persona_circuits.circuit.profiling import BenchOptions
        from persona_circuits.circuit.storage import check_output_file, write_json

        options = BenchOptions(n_pairs, rounds, steps, edges, acdc_edges, candidates, share, seed).checked()
        name, task = model_name(model, pairs), read_task(pairs)
        if out is not None:
            check_output_file(out)
        from persona_circuits.circuit.profiling import bench as measure

        with progress_bars() as stage:
            where: dict[str, Any] = {"revision": revision, "device": device, "dtype": dtype}
            report = measure(name, task, options, stage=stage, **where)
        if out is not None:
            write_json(report.as_dict(), out)
        _print_bench(report, as_json)


def _print_bench(report: Any, as_json: bool) -> None:
    from persona_circuits.circuit.profiling import COLUMNS, acdc_row, bench_rows

    if as_json:
        typer.echo(json.dumps(report.as_dict()))
        return
    place, pairs = report.machine, report.pairs
    say(f"{place['name']}, {place['threads']} thread(s), torch {place['versions']['torch']}")
    title = f"{report.model['name']}, {report.model['dtype']}, {pairs['n_pairs']} pairs of {pairs['n_tokens']} tokens"
    print_table(title, COLUMNS, bench_rows(report), texts=1)
    if report.acdc is not None:
        say(f"\n{acdc_row(report)}")


def models(as_json: JsonOption = False) -> None:
    """List the model families that the tests cover, and what came of each check."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.profiling import supported_families

        found = supported_families()
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return
        checks = list(found["families"][0]["checks"])
        sign = {"passed": "yes", "skipped": "-", "failed": "no"}
        cells = [
            (one["name"], one["examples"], *(sign.get(one["checks"][check], "?") for check in checks))
            for one in found["families"]
        ]
        print_table("tested", ("family", "models", *map(str, range(1, len(checks) + 1))), cells, texts=2)
        say("\n".join(f"{i}  {check}" for i, check in enumerate(checks, 1)))
        refused = [(one["name"], one["examples"], one["reason"]) for one in found["refused"]]
        print_table("refused", ("family", "models", "reason"), refused, texts=3)
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        say(
            f"\nrandom weights in each architecture; with {versions}. Any other model is tried, and refused\n"
            "with the reason if it does not come apart: persona-circuits inspect MODEL"
        )


def inspect(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hugging Face folder or hub name.")],
    pairs: Annotated[Path | None, typer.Option("--pairs", help="Prompt pairs to check against the tokenizer.")] = None,
    align: AlignOption = "equal",
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Read the configuration and no weights; the check is left out.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Tokens of a prompt. (with --pairs: the longest)")] = 64,
    prompts: Annotated[int, typer.Option(help="Prompt pairs, both directions. (with --pairs: the file's)")] = 400,
    on: Annotated[str, typer.Option("--on", help="GPU: RTX 4090, A100 80GB, H100 80GB or H200.")] = "H200",
    max_memory: MaxMemoryOption = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0.0, help="What an hour of that GPU costs: prices of every step.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    write_fitting: Annotated[
        Path | None, typer.Option("--write-fitting", help="Pair file to write: those of --pairs that fit, .jsonl.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a model's shape and graph, what each method would cost, and whether a pair file fits; 1 if it does not."""
    with errors_as_exit_codes():
        refuse_idle(
            context,
            (pairs is not None, "--pairs", ["align"]),
            (pairs is None, "prompts that no --pairs tell", ["tokens", "prompts"]),
            (not as_json, "the table, without --json", ["price"]),
        )
        from persona_circuits.circuit.cost import parse_bytes
        from persona_circuits.circuit.errors import OptionError
        from persona_circuits.circuit.profiling import inspect_model
        from persona_circuits.circuit.task import resolve

        if write_fitting is not None and pairs is None:
            raise OptionError("--write-fitting needs --pairs, the file of which the fitting pairs are written")
        refuse_revision(resolve(model), revision)
        task = read_task(pairs) if pairs else None
        limit = None if max_memory is None else parse_bytes(max_memory)
        options: dict[str, Any] = {"tokens": tokens, "prompts": prompts, "device": on, "align": align, "task": task}
        options |= {"config_only": config_only, "max_memory": limit}
        found = inspect_model(resolve(model), label=model, revision=revision, **options)
        if as_json:
            typer.echo(json.dumps(found.as_dict(), indent=2))
        else:
            _print_inspection(found, price)
        if write_fitting is not None:
            _write_fitting(task, found.pairs, write_fitting)
        if found.comes_apart is False or (found.pairs and found.pairs.fault and write_fitting is None):
            raise typer.Exit(1)


def _write_fitting(task: Any, fit: Any, out: Path) -> None:
    """The rows of a pair file that fit, all their keys with them, as JSON Lines."""
    from persona_circuits.circuit.errors import TaskError
    from persona_circuits.circuit.storage import write_text

    if not fit.fitting:
        raise TaskError(f"no pair of {fit.source} fits, so {out} is not written; choose other wordings")
    wanted = set(fit.fitting)
    lines = [json.dumps(pair.row) for pair in task.pairs if pair.id in wanted]
    write_text("".join(f"{line}\n" for line in lines), out)
    say(f"written to  {out}: {len(lines):,} of {fit.n_pairs:,} pairs", err=True)


def _print_inspection(found: Any, price: float | None) -> None:
    arch, graph = found.architecture, found.graph
    say(
        f"{arch.name}: {arch.layers} layers, {arch.heads} heads of width {arch.d_head} ({arch.kv_heads} key-value), "
        f"width {arch.d_model}, MLP {arch.d_mlp}, vocabulary {arch.vocab:,}, context {found.n_context or 'unknown'}\n"
        f"parameters {arch.parameters / 1e9:.3g} G; {graph.n_src:,} sources, {graph.n_dst:,} slots, "
        f"{graph.n_edges:,} edges{' if attention and MLP are not parallel' if found.comes_apart is None else ''}"
    )
    says = {None: "not tried: only the configuration was read", True: "yes", False: found.fault}
    say(f"comes apart into nodes: {says[found.comes_apart]}")
    _print_costs(found, price)
    if found.pairs is not None:
        fit = found.pairs
        fine = f"{fit.n_pairs:,} pairs of {fit.source} fit, {fit.longest} tokens at most"
        say(f"\npairs: {fit.fault or fine}")
        if fit.repeated:
            say(f"note: {fit.repeated} rows say the same as others before them; they are left out everywhere")


def _print_costs(found: Any, price: float | None) -> None:
    """Memory, time and, if an hour has a price, money for every step in every format."""
    from persona_circuits.circuit.cost import weight_bytes

    rows = []
    for dtype, steps in found.costs.items():
        for i, one in enumerate(steps):
            fits = one.prompts_at_once > 0
            head = (dtype, f"{weight_bytes(found.architecture, dtype) / 1e9:.3g}") if i == 0 else ("", "")
            money = () if price is None else (f"{one.seconds / 3600 * price:,.2f}" if fits else "-",)
            size, at_once = f"{one.bytes_per_prompt / 1e9:.3g}", f"{one.prompts_at_once:,}" if fits else "none fits"
            rows.append((*head, one.step, size, at_once, duration(one.seconds) if fits else "-", *money))
    columns = ("format", "weights, GB", "step", "per prompt, GB", "prompts at once", "time")
    title = f"estimated for {found.prompts:,} prompts of {found.tokens} tokens on one {found.device.name}"
    title += "" if found.limit is None else f" within {found.limit / 1e9:.3g} GB"
    print_table(title, (*columns, *(() if price is None else ("cost",))), rows, texts=3)


def ground_truth(
    steps: Annotated[int, typer.Option(help="Points of EAP-IG.")] = 5,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run every scorer and pruner on the planted models, whose circuits are known by construction."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.assessment import calibrate
        from persona_circuits.models.planted import planted_models

        with progress_bars() as stage:
            rows = calibrate(planted_models(), steps=steps, seed=seed, progress=stage("planted models"))
        print_calibration(rows, as_json)
