"""Which parts of the model carry it: neurons, bridge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from persona_circuits.commands.options import (
    LATEST,
    BatchOption,
    DeviceOption,
    DtypeOption,
    FittingOption,
    JsonOption,
    ModelOption,
    PairsOption,
    SeedOption,
)
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    load,
    model_name,
    own_pairs,
    path_and_name,
    print_table,
    progress_bars,
    refuse_idle,
    say,
    shipped_or,
    warn_of_other_weights,
)

__all__ = [
    "named_two",
]


def named_two(toward: str | None, away: str | None) -> tuple[str, str] | None:
    from persona_circuits.circuit.errors import OptionError

    if (toward is None) != (away is None):
        raise OptionError("--toward and --away go together: a direction leads from one persona to the other")
    return None if toward is None or away is None else (toward, away)


def neurons(
    model: ModelOption = None,
    pairs: PairsOption = None,
    test_pairs: Annotated[
        Path | None,
        typer.Option("--test-pairs", help="Held-out pairs. (default: those of --pairs whose split is not train)"),
    ] = None,
    null: Annotated[
        Path | None,
        typer.Option("--null", help="Pairs of two wordings of one persona ('control': 'paraphrase'), as pairs writes."),
    ] = None,
    layer: Annotated[list[int] | None, typer.Option("--layer", help="May be repeated. (default: all)")] = None,
    hook: Annotated[
        Literal["post", "pre", "gate"],
        typer.Option(help="What the MLP's down projection reads; what its up or gate projection writes."),
    ] = "post",
    position: Annotated[
        str,
        typer.Option(help="persona-end, question-end, question-word, prompt-end; persona-mean, question-mean."),
    ] = "prompt-end",
    pool: Annotated[
        Literal["mean", "rms"],
        typer.Option(help="mean: A is of one kind throughout; rms: any two personas, in whatever order."),
    ] = "mean",
    top_k: Annotated[int, typer.Option("--top-k", help="Neurons to select.")] = 20,
    level: Annotated[float, typer.Option("--level", help="Of false discoveries.")] = 0.05,
    ablation: Annotated[
        list[str] | None, typer.Option("--ablation", help="zero, mean or swap; may be repeated. (default: all)")
    ] = None,
    at: Annotated[
        Literal["position", "all"], typer.Option("--ablate-at", help="Change neurons at the position, or everywhere.")
    ] = "position",
    n_random: Annotated[int, typer.Option("--n-random", help="Random sets of neurons to ablate.")] = 100,
    max_pairs: Annotated[int, typer.Option("--max-pairs", help="Held-out pairs to ablate on.")] = 32,
    min_group: Annotated[int, typer.Option("--min-group", help="Pairs of a group in cross-validation, at least.")] = 4,
    n_draws: Annotated[int, typer.Option("--n-draws", help="Draws of the null.")] = 200,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/neurons"
    ),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the MLP neurons that tell two personas apart: a null, cross-validation, ablation beside random ones."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.storage import check_output_folder, replace_folder
        from persona_circuits.persona.data import load_examples
        from persona_circuits.persona.neurons import NeuronOptions, held_out_files, study_neurons, write_neurons

        options = NeuronOptions(
            layers=tuple(layer or ()),
            hook=hook,
            position=position,
            pool=pool,
            top_k=top_k,
            level=level,
            kinds=("zero", "mean", "swap") if ablation is None else tuple(dict.fromkeys(ablation)),
            everywhere=at == "all",
            n_random=n_random,
            max_pairs=max_pairs,
            least=min_group,
            n_draws=n_draws,
            batch_size=batch_size,
            seed=seed,
        ).checked()
        name = model_name(model, pairs)
        shipped = pairs is None
        files = {
            "pairs": path_and_name(pairs, "datasets/pairs_train.jsonl"),
            "held_out": path_and_name(test_pairs, "datasets/pairs_test.jsonl" if shipped else None),
            "null": path_and_name(null, "datasets/pairs_controls.jsonl" if shipped else None),
        }
        check_output_folder(out)
        with progress_bars() as stage:
            loaded = load(stage, name, revision, device, dtype)
            found = {
                key: load_examples(path, loaded, label=label, fitting=fitting)
                for key, (path, label) in files.items()
                if path
            }
            study = study_neurons(loaded, *held_out_files(**found), options=options, stage=stage)
            stage("files and figures")
            with replace_folder(out) as staging:
                write_neurons(study, staging)
        _print_neurons(study, out, as_json)


def _print_neurons(study: Any, out: Path, as_json: bool) -> None:
    from persona_circuits.persona.neurons import has_intervals, headline, neuron_record, tables

    if as_json:
        typer.echo(json.dumps({"out": str(out), **neuron_record(study)}))
        return
    say(headline(study))
    for title, columns, rows, texts in tables(study):
        print_table(title, columns, rows, texts=texts)
    if has_intervals(study):
        say(f"intervals   over {study.clusters}")
    for note in study.notes:
        say(f"note: {note}")
    say(f"written to  {out}/")


def bridge(
    context: typer.Context,
    circuit: Annotated[
        Path, typer.Argument(help="circuit.json, its folder, EAP-IG's JSON, or a list of nodes.")
    ] = LATEST,
    model: Annotated[
        str | None, typer.Option(help="Hugging Face folder or hub name. (default: the one the circuit names)")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Pairs for directions and test. (default: the circuit's)")
    ] = None,
    test_pairs: Annotated[
        Path | None,
        typer.Option("--test-pairs", help="Held-out pairs. (default: those of --pairs whose split is not train)"),
    ] = None,
    movers: Annotated[
        Path | None, typer.Option("--movers", help="patch.json, or its folder. (default: the largest writers here)")
    ] = None,
    neurons: Annotated[Path | None, typer.Option("--neurons", help="neurons.json, or its folder.")] = None,
    position: Annotated[
        str, typer.Option(help="persona-end, question-end, question-word or prompt-end.")
    ] = "prompt-end",
    layer: Annotated[
        int | None, typer.Option("--layer", help="Where nodes are listed and movers taken. (default: the last)")
    ] = None,
    direction: Annotated[
        str, typer.Option(help="personas, pooled, pair, or a file, as for steer. (default: by the pairs)")
    ] = "",
    toward: Annotated[str | None, typer.Option("--toward", help="Persona of a file of vectors.")] = None,
    away: Annotated[str | None, typer.Option("--away", help="Persona of a file of vectors, the other end.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Movers to take where no file names them.")] = 10,
    n_random: Annotated[int, typer.Option("--n-random", help="Random sets of nodes.")] = 1000,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/bridge"
    ),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """From persona vectors to a circuit: who writes the vector, the circuit's share, overlap with other findings."""
    with errors_as_exit_codes():
        refuse_idle(context, (movers is None, "movers that are found here, without --movers", ["top_k"]))
        from persona_circuits.circuit.errors import OptionError
        from persona_circuits.circuit.storage import check_output_folder, replace_folder
        from persona_circuits.circuit.task.shipped_files import PAIRS
        from persona_circuits.persona.bridge import BridgeOptions, build_bridge
        from persona_circuits.persona.bridge import report as files
        from persona_circuits.persona.data import load_examples
        from persona_circuits.persona.neurons import held_out_files

        options = BridgeOptions(
            position, layer, direction, named_two(toward, away), top_k, n_random, batch_size, seed
        ).checked()
        stored = files.read_nodes(circuit)
        name = model or (stored.record["model"]["name"] if stored.record else None)
        if name is None and pairs is not None:
            raise OptionError(f"{stored.path} does not say which model it is of; give --model")
        given = str(pairs) if pairs is not None else own_pairs(stored.record) if stored.record or model else PAIRS
        check_output_folder(out)
        with progress_bars() as stage:
            loaded = load(stage, shipped_or(name), revision, device, dtype)
            warn_of_other_weights(stored.record, loaded)
            named = stored.of(loaded.graph)
            sets = {
                "movers": files.read_movers(movers, loaded.graph) if movers else None,
                "neurons": files.read_neuron_mlps(neurons, loaded.graph) if neurons else None,
            }
            from persona_circuits.circuit.task import resolve

            found = load_examples(resolve(given), loaded, label=given, fitting=fitting)
            held = load_examples(test_pairs, loaded, fitting=fitting) if test_pairs else None
            fit, measured, _ = held_out_files(found, held)
            study = build_bridge(loaded, named, fit, measured, options=options, stage=stage, **sets)
            stage("files and figures")
            with replace_folder(out) as staging:
                files.write_bridge(study, staging)
        _print_bridge(study, out, as_json)
        for path in (movers, neurons):
            if path and files.fingerprint_of(path) not in ("", loaded.fingerprint):
                say(f"note: {path} is of other weights than {loaded.name} has", err=True)


def _print_bridge(study: Any, out: Path, as_json: bool) -> None:
    from persona_circuits.persona.bridge import report as files

    if as_json:
        typer.echo(json.dumps({"out": str(out), **files.bridge_record(study)}))
        return
    say(f"direction   {study.direction}, at {study.options.position}; {len(study.pairs)} pairs")
    title = "share of the vector's projection that the circuit's nodes write, beside random sets of nodes"
    print_table(title, files.LAYERS, files.layer_rows(study), texts=1)
    print_table(f"largest writers behind block {study.layer}", files.NODES, files.node_rows(study), texts=1)
    print_table("overlap of sets of nodes", files.OVERLAPS, files.overlap_rows(study), texts=1)
    say(f"movers      {study.movers.source}")
    say(f"conserved   the parts sum to the projection within {study.error:.1e} of the largest stream")
    say(f"intervals   over {study.clusters}")
    for note in study.notes:
        say(f"note: {note}")
    say(f"written to  {out}/")
