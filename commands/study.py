"""The whole study: study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.commands.options import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PairsOption,
    SeedOption,
)
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    load,
    model_name,
    path_and_name,
    print_table,
    progress_bars,
    say,
)

__all__: list[str] = []


def study(
    model: ModelOption = None,
    pairs: PairsOption = None,
    controls: Annotated[
        Path | None, typer.Option("--controls", help="More pairs, of which the controls are taken (key 'control').")
    ] = None,
    variants: Annotated[
        Path | None, typer.Option("--variants", help="Pairs said in other ways: keys 'variant' and 'base'.")
    ] = None,
    prior_pairs: Annotated[
        Path | None, typer.Option("--prior-pairs", help="Pairs for the generic prior, of the prior-pairs command.")
    ] = None,
    personas: Annotated[
        Path | None, typer.Option(help="Personas with traits and wordings, for probes. (default: the shipped ones)")
    ] = None,
    plan: Annotated[
        list[Path] | None, typer.Option("--plan", help="Predictions, JSON, made before the run; may be repeated.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Stages to run, apart by commas; see docs/study.md. (default: all)")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Of the circuits, as a share of |D|.")] = 0.003,
    target_faithfulness: Annotated[float, typer.Option(help="Of the smallest circuit.")] = 0.9,
    max_pairs: Annotated[
        int, typer.Option(help="Pairs at most where many circuits are tried; four times as many are steered.")
    ] = 16,
    n_random: Annotated[int, typer.Option(help="Random circuits beside each faithfulness.")] = 3,
    probe_every: Annotated[int, typer.Option(help="Probe behind every so many blocks.")] = 2,
    n_resamples: Annotated[int, typer.Option(help="Draws of bootstraps and permutations.")] = 2000,
    quick: Annotated[bool, typer.Option("--quick", help="The least of everything, to see that it runs.")] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="All pairs, and the tests as evaluate makes them: hours on a CPU.")
    ] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Keep tables, circuits and a few pictures: what can be committed.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/study"
    ),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Run every stage on one model: behaviour, causes, probes, circuits, steering; numbers, predictions, report."""
    with errors_as_exit_codes() as kept:
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.persona.study import StudyOptions, load_plan, run_study

        options = StudyOptions(
            n_resamples=n_resamples,
            n_random=n_random,
            max_pairs=max_pairs,
            threshold=threshold,
            target=target_faithfulness,
            probe_every=probe_every,
            quick=quick,
            thorough=thorough,
            compact=compact,
            seed=seed,
            batch_size=batch_size,
        ).checked()
        name = model_name(model, pairs)
        files = _study_files(pairs, controls, variants, prior_pairs, personas)
        plans = [load_plan(path) for path in plan or ()]
        check_output_folder(out)
        stages = tuple(part.strip() for part in only.split(",")) if only else ()
        kept.append(lambda: f"the stages that were finished are kept in {out}")
        with progress_bars() as stage:
            loaded = load(stage, name, revision, device, dtype)
            found = run_study(loaded, files, out, options=options, only=stages, plans=plans, stage=stage)
        _print_study(found, out, as_json)


def _study_files(pairs: Path | None, *others: Path | None) -> Any:
    """The files of a study, the shipped model's where no pairs are given."""
    from persona_circuits.persona.study import StudyFile, StudyFiles

    shipped = ("study_world_controls", "study_world_variants", "pairs_prior", "personas")
    more = []
    for given, default in zip(others, shipped, strict=True):
        path, label = path_and_name(given, f"datasets/{default}.jsonl" if pairs is None else None)
        more.append(None if path is None else StudyFile.at(path, label))
    return StudyFiles(StudyFile.at(*path_and_name(pairs, "datasets/study_world.jsonl")), *more)


def _print_study(found: Any, out: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"out": str(out), **found.record()}))
        return
    rows = [
        (one.name, f"{len(one.numbers):,}", "finished before" if one.reused else "run", str(len(one.notes)))
        for one in found.stages
    ]
    print_table(f"study of {found.model}", ("stage", "numbers", "", "notes"), rows, texts=1)
    for plan, outcomes in found.plans:
        cells = [(one.id, one.outcome, "; ".join(one.why)) for one in outcomes]
        print_table(f"predictions of {plan.source}", ("id", "outcome", "numbers"), cells, texts=3)
    for one in found.stages:
        for note in one.notes:
            say(f"note: {one.name}: {note}")
    if found.missing:
        say(f"not run     {', '.join(found.missing)}")
    say(f"written to  {out}/: numbers.json, numbers.csv, report.md, a folder per stage")
