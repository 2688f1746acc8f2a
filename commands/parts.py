"""Which parts of the model carry a persona: neurons, bridge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import Option
from persona_circuits.commands.index import result_folder
from persona_circuits.commands.options import LATEST, JsonOption, Loading, OutOption, Source
from persona_circuits.commands.signature import Without, with_options
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    load,
    own_pairs,
    path_and_name,
    print_tables,
    progress_bars,
    refuse_idle,
    say,
    shipped_or,
    show,
    warn_of_other_weights,
)
from persona_circuits.persona.bridge.options import BridgeOptions
from persona_circuits.persona.neurons.options import NeuronOptions

__all__ = ["named_two"]


def named_two(toward: str | None, away: str | None) -> tuple[str, str] | None:
    if (toward is None) != (away is None):
        raise OptionError("--toward and --away go together: a direction leads from one persona to the other")
    return None if toward is None or away is None else (toward, away)


@with_options
def neurons(
    context: typer.Context,
    *,
    source: Source,
    test_pairs: Annotated[
        Path | None,
        typer.Option("--test-pairs", help="Held-out pairs. (default: those of --pairs whose split is not train)"),
    ] = None,
    null: Annotated[
        Path | None,
        typer.Option("--null", help="Pairs of two wordings of one persona ('control': 'paraphrase'), as pairs writes."),
    ] = None,
    options: NeuronOptions,
    out: OutOption = Path("runs/neurons"),
    loading: Annotated[Loading, Without("max_memory")],
    as_json: JsonOption = False,
) -> None:
    """Find the MLP neurons that tell two personas apart: a null, cross-validation, ablation beside random ones."""
    with errors_as_exit_codes():
        refuse_idle(context, (options.answers, "pairs with answers", ["kinds", "everywhere", "n_random", "max_pairs"]))
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.persona.data import examples_of, load_items, load_unanswered
        from persona_circuits.persona.neurons import held_out_files, neuron_record, study_neurons, write_neurons

        options, name = options.checked(), source.name()
        files = {
            "pairs": path_and_name(source.pairs, "datasets/pairs_train.jsonl"),
            "held_out": path_and_name(test_pairs, "datasets/pairs_test.jsonl" if source.shipped else None),
            "null": path_and_name(null, "datasets/pairs_controls.jsonl" if source.shipped else None),
        }
        check_output_folder(out)
        with progress_bars() as stage:
            read = load_items if options.answers else load_unanswered
            items = {key: read(path, label=label) for key, (path, label) in files.items() if path}
            loaded = load(stage, name, loading, lambda reader: [examples_of(item, reader) for item in items.values()])
            examples = {key: examples_of(item, loaded, fitting=loading.fitting) for key, item in items.items()}
            dropped = _left_out(items, examples)
            study = study_neurons(loaded, *held_out_files(**examples), options=options, dropped=dropped, stage=stage)
            stage("files and figures")
            with result_folder(context, out, name, notes=study.notes) as staging:
                write_neurons(study, staging)
        show(as_json, lambda: neuron_record(study), lambda: _print_neurons(study), out=out, notes=study.notes)


def _left_out(items: dict[str, Any], examples: dict[str, Any]) -> dict[str, int]:
    """How many pairs, held-out ones included, do not fit the model, and how many are controls."""
    studied = [key for key in ("pairs", "held_out") if key in examples]
    misfit = sum(len(items[key].items) - len(examples[key].items) for key in studied)
    controls = sum(item.control != "none" for key in studied for item in examples[key].items)
    return {"do not fit the model": misfit, "controls": controls}


def _print_neurons(study: Any) -> None:
    from persona_circuits.persona.neurons import has_intervals, headline, pair_line, tables

    say(headline(study))
    say(f"pairs       {pair_line(study)}")
    print_tables(tables(study))
    if has_intervals(study):
        say(f"intervals   over {study.clusters}")


@dataclass(frozen=True)
class Measured:
    """The model and the pairs, where they are not the circuit's own, and the two ends of the direction."""

    model: Annotated[str | None, Option("Hugging Face folder or hub name. (default: the one the circuit names)")] = None
    pairs: Annotated[Path | None, Option("Pairs for directions and test. (default: the circuit's)")] = None
    test_pairs: Annotated[
        Path | None, Option("Held-out pairs. (default: those of --pairs whose split is not train)")
    ] = None
    toward: Annotated[str | None, Option("With a file of vectors: the persona that the direction leads to.")] = None
    away: Annotated[str | None, Option("And the one that it leads away from.")] = None


@dataclass(frozen=True)
class Others:
    """Results of other analyses to compare the circuit with."""

    movers: Annotated[Path | None, Option("patch.json, or its folder. (default: the largest writers here)")] = None
    neurons: Annotated[Path | None, Option("neurons.json, or its folder.")] = None


@with_options
def bridge(
    context: typer.Context,
    *,
    circuit: Annotated[
        Path, typer.Argument(help="circuit.json, its folder, EAP-IG's JSON, or a list of nodes.")
    ] = LATEST,
    measured: Measured,
    others: Others,
    options: BridgeOptions,
    out: OutOption = Path("runs/bridge"),
    loading: Annotated[Loading, Without("max_memory")],
    as_json: JsonOption = False,
) -> None:
    """From persona vectors to a circuit: who writes the vector, the circuit's share, overlap with other findings."""
    with errors_as_exit_codes():
        refuse_idle(context, (others.movers is None, "movers that are found here, without --movers", ["top_k"]))
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.persona.bridge import report as files

        options = replace(options, toward=named_two(measured.toward, measured.away)).checked()
        stored = files.read_nodes(circuit)
        name, given = _model_and_pairs(stored, measured.model, measured.pairs)
        check_output_folder(out)
        set_files = vars(others)
        study = _bridged(stored, name, (given, measured.test_pairs), set_files, options, loading, out, context)
        show(as_json, lambda: files.bridge_record(study), lambda: _print_bridge(study), out=out, notes=study.notes)
        for path in filter(None, set_files.values()):
            if files.fingerprint_of(path) not in ("", study.fingerprint):
                say(f"note: {path} is of other weights than {study.model} has", err=True)


def _model_and_pairs(stored: Any, model: str | None, pairs: Path | None) -> tuple[str | None, str]:
    """The names of the model and the pairs: those asked for, else those that the nodes' file names."""
    from persona_circuits.circuit.task.shipped_files import PAIRS

    name = model or (stored.record["model"]["name"] if stored.record else None)
    if name is None and pairs is not None:
        raise OptionError(f"{stored.path} does not say which model it is of; give --model")
    return name, str(pairs) if pairs is not None else own_pairs(stored.record) if stored.record or model else PAIRS


def _bridged(
    stored: Any,
    name: str | None,
    pairs: tuple[str, Path | None],
    set_files: dict[str, Path | None],
    options: BridgeOptions,
    loading: Loading,
    out: Path,
    context: typer.Context,
) -> Any:
    """The study, once its files are written."""
    from persona_circuits.circuit.task import resolve
    from persona_circuits.persona.bridge import build_bridge
    from persona_circuits.persona.bridge import report as files
    from persona_circuits.persona.data import examples_of, load_items
    from persona_circuits.persona.neurons import held_out_files

    given, test = pairs
    items = [load_items(resolve(given), label=given), *([load_items(test)] if test else [])]
    with progress_bars() as stage:
        loaded = load(stage, shipped_or(name), loading, lambda reader: [examples_of(item, reader) for item in items])
        warn_of_other_weights(stored.record, loaded)
        readers = {"movers": files.read_movers, "neurons": files.read_neuron_mlps}
        sets = {key: readers[key](path, loaded.graph) if path else None for key, path in set_files.items()}
        fit, measured, _ = held_out_files(*(examples_of(item, loaded, fitting=loading.fitting) for item in items))
        study = build_bridge(loaded, stored.of(loaded.graph), fit, measured, options=options, stage=stage, **sets)
        stage("files and figures")
        with result_folder(context, out, loaded.name, notes=study.notes) as staging:
            files.write_bridge(study, staging)
    return study


def _print_bridge(study: Any) -> None:
    from persona_circuits.persona.bridge import report as files

    say(f"direction   {study.direction}, at {study.options.position}; {len(study.pairs)} pairs")
    print_tables(files.bridge_tables(study))
    say(f"movers      {study.movers.source}")
    say(f"conserved   the parts sum to the projection within {study.error:.1e} of the largest stream")
    say(f"intervals   over {study.clusters}")
