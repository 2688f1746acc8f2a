"""The whole study: study."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.options import Option
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


@dataclass(frozen=True)
class Sources(Source):
    """The model and all files of a study."""

    controls: Annotated[
        Path | None, Option("More pairs, of which the controls are taken (key 'control').", name="--null")
    ] = None
    variants: Annotated[Path | None, Option("Pairs said in other ways: keys 'variant' and 'base'.")] = None
    prior_pairs: Annotated[Path | None, Option("Pairs for the generic prior, of the prior-pairs command.")] = None
    personas: Annotated[
        Path | None, Option("Personas with traits and wordings, for probes. (default: the shipped ones)")
    ] = None
    frames: Annotated[Path | None, Option("The pairs in frames, of vary --frame: of whom the persona is said.")] = None
    wordings: Annotated[
        Path | None, Option("Pairs in several wordings, of pairs --variants --add-neutral: for causes.")
    ] = None

    def files(self) -> Any:
        """The paths; the shipped model's where no pairs are given."""
        from persona_circuits.persona.study import StudyFile, StudyFiles

        shipped = ("study_world_controls", "study_world_variants", "pairs_prior", "personas", None, None)
        more = []
        for chosen, default in zip(list(vars(self).values())[2:], shipped, strict=True):
            path, label = path_and_name(chosen, f"datasets/{default}.jsonl" if default and self.shipped else None)
            more.append(None if path is None else StudyFile.at(path, label))
        return StudyFiles(StudyFile.at(*path_and_name(self.pairs, "datasets/study_world.jsonl")), *more)


@dataclass(frozen=True)
class Stages:
    """Which stages are run, and what was predicted."""

    plan: Annotated[tuple[Path, ...], Option("Predictions, JSON, made before the run; may be repeated.")] = ()
    only: Annotated[str | None, Option("Stages to run, separated by commas; see docs/study.md. (default: all)")] = None

    def names(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.only.split(",")) if self.only else ()


@with_options
def study(
    context: typer.Context,
    *,
    source: Sources,
    stages: Stages,
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
        files, plans = source.files(), [load_plan(path) for path in stages.plan]
        check_output_folder(out)
        kept.append(lambda: f"the stages that were finished are kept in {out}")
        with progress_bars() as stage:
            loaded = load(stage, name, loading, partial(_check_files, files))
            result = run_study(loaded, files, out, options=options, only=stages.names(), plans=plans, stage=stage)
            if not options.compact:
                index(context, out, name, notes=[f"{x.name}: {note}" for x in result.stages for note in x.notes])
        written = [f"{out}/: numbers.json, numbers.csv, report.md, a folder per stage"]
        show(as_json, result.record, lambda: _print_study(result), out=out, written=written)


def _check_files(files: Any, reader: Any) -> None:
    """Check that the pairs common to all stages fit a tokenizer; other misfits become notes of their stages."""
    from persona_circuits.persona.data import examples_of, items_of

    examples_of(items_of(files.pairs.task(), files.pairs.path), reader)


def _print_study(result: Any) -> None:
    columns = (
        Column("stage", "name"),
        Column("numbers", lambda stage: len(stage.numbers), ","),
        Column("", lambda stage: "finished before" if stage.reused else "run"),
        Column("notes", lambda stage: len(stage.notes)),
    )
    print_table(Table(f"study of {result.model}", columns, result.stages))
    for plan, outcomes in result.plans:
        predicted = (Column("id", "id"), Column("outcome", "outcome"), Column("numbers", "why", "; ".join))
        print_table(Table(f"predictions of {plan.source}", predicted, outcomes, 3))
    for stage in result.stages:
        for note in stage.notes:
            say(f"note: {stage.name}: {note}")
    if result.missing:
        say(f"not run     {', '.join(result.missing)}")
