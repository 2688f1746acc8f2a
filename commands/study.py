"""The whole study: study."""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.table import Column, Table
from persona_circuits.commands.index import index
from persona_circuits.commands.options import JsonOption, Loading, OutOption, Source
from persona_circuits.commands.signature import Without, with_options
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    load,
    path_and_name,
    print_table,
    progress_bars,
    say,
    show,
)
from persona_circuits.persona.study.options import StudyOptions

__all__: list[str] = []


@with_options
def study(
    context: typer.Context,
    *,
    source: Source,
    controls: Annotated[
        Path | None, typer.Option("--null", help="More pairs, of which the controls are taken (key 'control').")
    ] = None,
    variants: Annotated[
        Path | None, typer.Option("--variants", help="Pairs said in other ways: keys 'variant' and 'base'.")
    ] = None,
    prior_pairs: Annotated[
        Path | None, typer.Option("--prior-pairs", help="Pairs for the generic prior, of the prior-pairs command.")
    ] = None,
    frames: Annotated[
        Path | None, typer.Option("--frames", help="The pairs in frames, of vary --frame: of whom the persona is said.")
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
    options: StudyOptions,
    out: OutOption = Path("runs/study"),
    loading: Annotated[Loading, Without("max_memory", "fitting")],
    as_json: JsonOption = False,
) -> None:
    """Run every stage on one model: behaviour, causes, probes, circuits, steering; numbers, predictions, report."""
    with errors_as_exit_codes() as kept:
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.persona.study import load_plan, run_study

        options, name = options.checked(), source.name()
        files = _study_files(source.pairs, controls, variants, prior_pairs, personas, frames)
        plans = [load_plan(path) for path in plan or ()]
        check_output_folder(out)
        stages = tuple(part.strip() for part in only.split(",")) if only else ()
        kept.append(lambda: f"the stages that were finished are kept in {out}")
        with progress_bars() as stage:
            loaded = load(stage, name, loading, partial(_check_files, files))
            found = run_study(loaded, files, out, options=options, only=stages, plans=plans, stage=stage)
            if not options.compact:
                index(context, out, name, notes=[f"{one.name}: {note}" for one in found.stages for note in one.notes])
        written = [f"{out}/: numbers.json, numbers.csv, report.md, a folder per stage"]
        show(as_json, found.record, lambda: _print_study(found), out=out, written=written)


def _study_files(pairs: Path | None, *others: Path | None) -> Any:
    """The files of a study, the shipped model's where no pairs are given."""
    from persona_circuits.persona.study import StudyFile, StudyFiles

    shipped = ("study_world_controls", "study_world_variants", "pairs_prior", "personas")
    more = []
    for given, default in zip_longest(others, shipped):
        path, label = path_and_name(given, f"datasets/{default}.jsonl" if default and pairs is None else None)
        more.append(None if path is None else StudyFile.at(path, label))
    return StudyFiles(StudyFile.at(*path_and_name(pairs, "datasets/study_world.jsonl")), *more)


def _check_files(files: Any, reader: Any) -> None:
    """That the pairs that every stage is about fit a tokenizer; what else does not is a note of its stage."""
    from persona_circuits.persona.data import examples_of, items_of

    examples_of(items_of(files.pairs.task(), files.pairs.path), reader)


def _print_study(found: Any) -> None:
    columns = (
        Column("stage", "name"),
        Column("numbers", lambda one: len(one.numbers), ","),
        Column("", lambda one: "finished before" if one.reused else "run"),
        Column("notes", lambda one: len(one.notes)),
    )
    print_table(Table(f"study of {found.model}", columns, found.stages))
    for plan, outcomes in found.plans:
        told = (Column("id", "id"), Column("outcome", "outcome"), Column("numbers", "why", "; ".join))
        print_table(Table(f"predictions of {plan.source}", told, outcomes, 3))
    for one in found.stages:
        for note in one.notes:
            say(f"note: {one.name}: {note}")
    if found.missing:
        say(f"not run     {', '.join(found.missing)}")
