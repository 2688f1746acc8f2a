"""What personas do to choices, and why they may not: collapse, explain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.options import Option
from persona_circuits.circuit.table import Table
from persona_circuits.commands.index import result_folder
from persona_circuits.commands.options import JsonOption, Loading, OutOption, Source
from persona_circuits.commands.signature import Without, with_options
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    in_processes,
    kept_in,
    load,
    path_and_name,
    print_table,
    progress_bars,
    refuse_idle,
    say,
    say_drawn,
    show,
)
from persona_circuits.persona.behaviour.options import StudyOptions
from persona_circuits.persona.explanation.options import ExplainOptions

__all__: list[str] = []


@with_options
def collapse(
    context: typer.Context,
    *,
    source: Source,
    controls: Annotated[
        Path | None, typer.Option("--null", help="More pairs, of which the controls are taken (key 'control').")
    ] = None,
    neutral: Annotated[
        Path | None, typer.Option("--neutral", help="Wordings without a persona, JSON Lines; for b0 and the bias bin.")
    ] = None,
    out: OutOption = Path("runs/collapse"),
    options: StudyOptions,
    loading: Annotated[Loading, Without("max_memory")],
    as_json: JsonOption = False,
) -> None:
    """Measure where personas collapse into one answer: divergence, prior, collapse and mass of every pair."""
    with errors_as_exit_codes(), in_processes() as first:
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.persona.behaviour import (
            check_items,
            collapse_record,
            fitting_items,
            study_collapse,
            write_collapse,
        )
        from persona_circuits.persona.data import load_neutral

        options, name = options.checked(), source.name()
        items, more = _items(source.pairs, controls, source)
        has_neutral = neutral is not None or source.shipped or any(item.pair.neutral for item in items.items)
        refuse_idle(context, (has_neutral, "--neutral, or pairs with a 'neutral' of their own,", ["bias_cut"]))
        plain, _ = _file(neutral, "questions", source)
        wordings = load_neutral(plain) if plain else ()
        check_output_folder(out)
        with progress_bars() as stage:
            fits = {"split": options.split, "align": options.align}
            loaded = load(stage, name, loading, lambda reader: check_items(items, reader, **fits))
            if loading.fitting:
                items, more = (file and fitting_items(file, loaded, align=options.align) for file in (items, more))
            settings = {"controls": more, "neutral": wordings, "options": options, "progress": stage("asking")}
            study = study_collapse(loaded, items, **settings)
            if first:
                stage("files and figures")
                with result_folder(context, out, name, notes=study.notes) as staging:
                    write_collapse(study, staging)
        if first:
            record, tables = partial(collapse_record, study), partial(_print_collapse, study)
            show(as_json, lambda: _without(record(), "pairs", "questions"), tables, out=out, notes=study.notes)


@dataclass(frozen=True)
class Limits:
    """What verdicts are compared with: controls, thresholds, and thresholds set on the controls."""

    controls: Annotated[
        Path | None, Option("More pairs, of which the controls are taken; paraphrases give sigma_0.", name="--null")
    ] = None
    thresholds: Annotated[Path | None, Option("Thresholds, JSON, fixed before the run. (default: shipped)")] = None
    calibration: Annotated[
        Path | None, Option("Thresholds set on controls: read if there, else set on half of --null.")
    ] = None


@with_options
def explain(
    context: typer.Context,
    *,
    source: Source,
    limits: Limits,
    out: OutOption = Path("runs/explain"),
    options: ExplainOptions,
    loading: Annotated[Loading, Without("max_memory")],
    as_json: JsonOption = False,
) -> None:
    """Say why each pair collapses or not: numbers, a verdict by fixed thresholds, and a causal test of it."""
    with errors_as_exit_codes() as kept:
        from persona_circuits.circuit.storage import check_output_file, check_output_folder, working_folder
        from persona_circuits.persona.behaviour import check_items, fitting_items
        from persona_circuits.persona.explanation import explain as explain_pairs
        from persona_circuits.persona.explanation import explain_record, load_calibration, load_thresholds

        options = options.checked()
        thresholds, calibration, name = load_thresholds(limits.thresholds), limits.calibration, source.name()
        set_before = load_calibration(calibration) if calibration and calibration.exists() else None
        if calibration and not set_before:
            check_output_file(calibration)
        study, more = _items(source.pairs, limits.controls, source)
        check_output_folder(out)
        state = out / "explain.state"
        kept.append(kept_in(state))
        with progress_bars() as stage, working_folder(out):
            loaded = load(stage, name, loading, lambda reader: check_items(study, reader, split=options.split))
            if loading.fitting:
                study, more = (file and fitting_items(file, loaded) for file in (study, more))
            settings: dict[str, Any] = {"controls": more, "thresholds": thresholds, "options": options}
            settings["calibration"] = set_before or ("new" if calibration else None)
            explanation = explain_pairs(loaded, study, **settings, state=state, stage=stage)
            stage("files and figures")
            _write_explanation(context, explanation, out, name, None if set_before else calibration)
        tables = partial(_print_explanation, explanation)
        show(as_json, lambda: _without(explain_record(explanation), "pairs"), tables, out=out, notes=explanation.notes)


def _write_explanation(context: typer.Context, result: Any, out: Path, name: str, calibration: Path | None) -> None:
    """Write the files, and the thresholds that this run set."""
    from persona_circuits.persona.explanation import write_calibration, write_explanation

    with result_folder(context, out, name, notes=result.notes) as staging:
        write_explanation(result, staging)
    if calibration and result.calibration:
        write_calibration(result.calibration, calibration)


def _items(pairs: Path | None, controls: Path | None, source: Source) -> list[Any]:
    """The pairs and the controls; None where no controls were given."""
    from persona_circuits.persona.data import load_items

    files = _file(pairs, "pairs_test", source), _file(controls, "pairs_controls", source)
    return [load_items(path, label=label) if path else None for path, label in files]


def _file(path: Path | None, name: str, source: Source) -> tuple[str | None, str | None]:
    """Path and name of a file: the one that is given, else the shipped one where the pairs are the shipped ones."""
    return path_and_name(path, f"datasets/{name}.jsonl" if source.shipped else None)


def _without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A record without its entries per pair, for printing."""
    return {key: value for key, value in record.items() if key not in keys}


def _print_explanation(result: Any) -> None:
    from persona_circuits.persona.explanation import (
        LEVEL,
        TESTED,
        confusion_rows,
        group_rows,
        rate_table,
        table_columns,
        test_rows,
    )

    null = result.null
    parts = {"all": [result.overall], **{key: [g for g in result.groups if g.by == key] for key in result.options.by}}
    for key, groups in (parts | {"control": result.controls}).items():
        if groups:
            title = f"why personas collapse in {result.model}" if key == "all" else f"by {key}"
            print_table(Table(title, table_columns(key), group_rows(groups), 2))
    items = [row.measure.item for row in result.pairs]
    say_drawn([item.personas for item in items], [item.pair.question for item in items])
    if tested := test_rows(result):
        print_table(Table("causal tests", TESTED, tested, 2))
    columns, rows = rate_table(result)
    if rows:
        qualifier = " that it was not set on" if result.calibration is not None else ""
        title = f"how often controls{qualifier}, without a persona to find, have a verdict"
        print_table(Table(title, columns, rows, 2))
        if result.calibration is not None:
            given = result.calibration.source or "set on half of the controls by persona pair; the others are held out"
            say(f"calibration {given}; a verdict is given where at most {LEVEL:g} of controls have it")
    columns, rows = confusion_rows(result)
    if rows:
        print_table(Table("verdicts by what the generator sets", columns, rows))
        agreement = result.agreement
        kappa = "undefined" if agreement.kappa is None else f"{agreement.kappa:.3f}"
        say(
            f"agreement   {agreement.share:.3f} of {agreement.n} pairs (by chance {agreement.chance:.3f}), "
            f"Cohen's kappa {kappa}, p {agreement.p:.2g} by permuting {agreement.permuted}"
        )
    if null.n:
        say(
            f"paraphrases {null.n} pairs: sigma_0 {null.sigma_0:.3f} logits; more than they have is a signal at the "
            f"answer from {null.signal_answer:.2f} and one side of {null.stronger_side:.2f} logits"
        )
    say(f"eta         high from {result.thresholds.alignment_sd:g} times its root mean square over random token pairs")
    say(f"thresholds  {result.thresholds.source}, sha256 {result.thresholds.sha256[:12]}…")


def _print_collapse(study: Any) -> None:
    from persona_circuits.persona.behaviour import group_table, prediction_table
    from persona_circuits.persona.data import said

    print_table(group_table(study))
    items = [row.measure.item for row in study.pairs]
    say_drawn([item.personas for item in items], [item.pair.question for item in items])
    if (prediction := study.prediction) is not None:
        print_table(prediction_table(prediction))
        say(
            f"held out    {prediction.n_persona_pairs} persona pairs and {prediction.n_questions} questions, a fold of "
            f"either at a time; {prediction.left_out} rows have no other wording"
        )
    say(f"it says     {said(study.words)}")
    if study.order_effect is not None:
        say(f"order       {study.order_effect:.3f} logits of spread between orders of the options (averaged in D)")
    if study.options.average:
        say(f"averaged    a pair is the mean over its paraphrases and wordings, mostly {study.rows_per_pair}")
    if study.sigma_0 is not None:
        around = study.sigma_0_interval
        ends = "" if around is None or around.low is None else f" [{around.low:.3f}, {around.high:.3f}]"
        say(
            f"sigma_0     {study.sigma_0:.3f}{ends} logits over {study.n_paraphrases} paraphrase pairs, "
            f"{study.sigma_0_median:.3f} by their median; "
            "last column: D and collapse of paraphrases"
        )
