"""What personas do to choices, and why they may not: collapse, explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.commands.options import (
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
    in_processes,
    load,
    model_name,
    path_and_name,
    print_table,
    progress_bars,
    refuse_idle,
    say,
    say_drawn,
)

__all__: list[str] = []


def collapse(
    context: typer.Context,
    model: ModelOption = None,
    pairs: PairsOption = None,
    controls: Annotated[
        Path | None, typer.Option("--controls", help="More pairs, of which the controls are taken (key 'control').")
    ] = None,
    neutral: Annotated[
        Path | None, typer.Option("--neutral", help="Wordings without a persona, JSON Lines; for b0 and the bias bin.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/collapse"
    ),
    split: Annotated[
        str, typer.Option(help="Pairs to study; controls are taken of every split of --controls.")
    ] = "all",
    bias_cut: Annotated[
        float, typer.Option(help="Bias is high where the default leads by so many logits under no persona.")
    ] = 1.5,
    n_resamples: Annotated[int, typer.Option(help="Draws of bootstraps and permutations.")] = 2000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure where personas collapse into one answer: divergence, prior, collapse and mass of every pair."""
    with errors_as_exit_codes(), in_processes() as first:
        refuse_idle(context, (neutral is not None or pairs is None, "--neutral", ["bias_cut"]))
        from persona_circuits.circuit.storage import check_output_folder, replace_folder
        from persona_circuits.persona.behaviour import StudyOptions, fitting_items, study_collapse, write_collapse
        from persona_circuits.persona.data import load_items, load_neutral

        options = StudyOptions(split, batch_size, n_resamples, bias_cut, seed).checked()
        name = model_name(model, pairs)
        shipped = pairs is None
        path, label = path_and_name(pairs, "datasets/pairs_test.jsonl")
        beside, called = path_and_name(controls, "datasets/pairs_controls.jsonl" if shipped else None)
        plain, _ = path_and_name(neutral, "datasets/questions.jsonl" if shipped else None)
        items = load_items(path, label=label)
        more = load_items(beside, label=called) if beside else None
        wordings = load_neutral(plain) if plain else ()
        check_output_folder(out)
        with progress_bars() as stage:
            loaded = load(stage, name, revision, device, dtype)
            if fitting:
                items, more = fitting_items(items, loaded), more and fitting_items(more, loaded)
            study = study_collapse(
                loaded, items, controls=more, neutral=wordings, options=options, progress=stage("asking")
            )
            if first:
                stage("files and figures")
                with replace_folder(out) as staging:
                    write_collapse(study, staging)
        if first:
            _print_collapse(study, out, as_json)


def explain(
    model: ModelOption = None,
    pairs: PairsOption = None,
    controls: Annotated[
        Path | None,
        typer.Option("--controls", help="More pairs, of which the controls are taken; paraphrases give sigma_0."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="pair, question, … any key of the rows; may be repeated. (default: question)"),
    ] = None,
    thresholds: Annotated[
        Path | None, typer.Option("--thresholds", help="Thresholds, JSON, fixed before the run. (default: shipped)")
    ] = None,
    causal: Annotated[bool, typer.Option(help="Run the causal test that goes with each verdict.")] = True,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/explain"
    ),
    split: Annotated[
        str, typer.Option(help="Pairs to explain; controls are taken of every split of --controls.")
    ] = "all",
    n_resamples: Annotated[int, typer.Option(help="Draws of bootstraps and permutations.")] = 2000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say why each pair collapses or not: numbers, a verdict by fixed thresholds, and a causal test of it."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.storage import check_output_folder, replace_folder
        from persona_circuits.persona.behaviour import fitting_items
        from persona_circuits.persona.data import load_items
        from persona_circuits.persona.explanation import ExplainOptions, load_thresholds, write_explanation
        from persona_circuits.persona.explanation import explain as explain_pairs

        options = ExplainOptions(tuple(by or ("question",)), split, batch_size, n_resamples, causal, seed).checked()
        limits, name, shipped = load_thresholds(thresholds), model_name(model, pairs), pairs is None
        path, label = path_and_name(pairs, "datasets/pairs_test.jsonl")
        beside, called = path_and_name(controls, "datasets/pairs_controls.jsonl" if shipped else None)
        study, more = load_items(path, label=label), load_items(beside, label=called) if beside else None
        check_output_folder(out)
        with progress_bars() as stage:
            loaded = load(stage, name, revision, device, dtype)
            if fitting:
                study, more = fitting_items(study, loaded), more and fitting_items(more, loaded)
            found = explain_pairs(loaded, study, controls=more, thresholds=limits, options=options, stage=stage)
            stage("files and figures")
            with replace_folder(out) as staging:
                write_explanation(found, staging)
        _print_explanation(found, out, as_json)


def _print_explanation(found: Any, out: Path, as_json: bool) -> None:
    from persona_circuits.persona.explanation import confusion_rows, explain_record, group_rows, table_columns

    if as_json:
        record = explain_record(found)
        del record["pairs"]
        typer.echo(json.dumps({"out": str(out), **record}))
        return
    parts = {"all": [found.overall], **{key: [g for g in found.groups if g.by == key] for key in found.options.by}}
    for key, groups in (parts | {"control": found.controls}).items():
        if groups:
            title = f"why personas collapse in {found.model}" if key == "all" else f"by {key}"
            print_table(title, table_columns(key), group_rows(groups), texts=2)
    items = [row.measure.item for row in found.pairs]
    say_drawn([item.personas for item in items], [item.pair.question for item in items])
    columns, rows = confusion_rows(found)
    if rows:
        print_table("verdicts by what the generator sets", columns, rows, texts=1)
        given = found.agreement
        kappa = "undefined" if given.kappa is None else f"{given.kappa:.3f}"
        say(
            f"agreement   {given.share:.3f} of {given.n} pairs (by chance {given.chance:.3f}), "
            f"Cohen's kappa {kappa}, permutation p {given.p:.2g}"
        )
    if found.sigma_0 is not None:
        say(f"sigma_0     {found.sigma_0:.3f} logits over {found.n_paraphrases} paraphrase pairs")
    say(f"thresholds  {found.thresholds.source}, sha256 {found.thresholds.sha256[:12]}…")
    for note in found.notes:
        say(f"note: {note}")
    say(f"written to  {out}/")


def _print_collapse(study: Any, out: Path, as_json: bool) -> None:
    from persona_circuits.persona.behaviour import TABLE, collapse_record, group_rows

    if as_json:
        record = collapse_record(study)
        del record["pairs"], record["questions"]
        typer.echo(json.dumps({"out": str(out), **record}))
        return
    print_table(f"persona collapse of {study.model}", TABLE, group_rows(study), texts=1)
    items = [row.measure.item for row in study.pairs]
    say_drawn([item.personas for item in items], [item.pair.question for item in items])
    if study.sigma_0 is not None:
        say(
            f"sigma_0     {study.sigma_0:.3f} logits over {study.n_paraphrases} paraphrase pairs; "
            "last column: D and collapse of paraphrases"
        )
    for note in study.notes:
        say(f"note: {note}")
    say(f"written to  {out}/")
