"""Circuits and scorers side by side: curves, compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.assessment.options import ComparisonOptions, CurveOptions
from persona_circuits.circuit.choices import RULED, STEPPED
from persona_circuits.circuit.discovery.options import MeasureOptions
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import Option
from persona_circuits.circuit.printable import signed
from persona_circuits.commands.index import result_folder
from persona_circuits.commands.options import Drawn, JsonOption, Loading, Source
from persona_circuits.commands.signature import Only, Without, with_options
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    fitted_task,
    in_processes,
    load,
    own_pairs,
    print_tables,
    progress_bars,
    read_task,
    refuse_idle,
    say,
    show,
    shown_text,
    warn_of_other_weights,
)

__all__ = ["all_scores"]


@with_options
def curves(
    context: typer.Context,
    *,
    run: Annotated[
        Path | None,
        typer.Argument(help="circuit.json or its folder: its model, pairs and settings; its scores are one scorer."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Hugging Face folder or hub name. (default: the run's, else the shipped one)"),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Prompt pairs. (default: the run's, else the shipped model's)")
    ] = None,
    options: CurveOptions,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("runs/curves"),
    loading: Loading,
    as_json: JsonOption = False,
) -> None:
    """Faithfulness over circuits of all sizes, for any number of scorers: CPR, CMD, tables and figures."""
    with errors_as_exit_codes(), in_processes() as first:
        from persona_circuits.circuit.assessment import curve_study
        from persona_circuits.circuit.discovery import check_pairs
        from persona_circuits.circuit.io import read_circuit
        from persona_circuits.circuit.storage import check_output_folder

        stored = read_circuit(run) if run else None
        record = stored.record if stored is not None else None
        task = read_task(pairs or (own_pairs(record) if record else None))
        options, scores_of = _with_run(options, stored, task, model)
        _refuse_idle(context, options)
        options = options.checked()
        name = model or (stored.model_name() if stored is not None else None)
        check_output_folder(out)
        with progress_bars() as stage:
            few = loading.fitting or bool(record and record["task"].get("unfit"))
            splits = (options.train_split, "train"), (options.eval_split, "test")
            fits: dict[str, Any] = {"where": options.where, "align": options.align}
            name = Source(name, pairs).name() if record is None else str(name)
            settings = replace(loading, fitting=few)
            loaded = load(stage, name, settings, lambda reader: check_pairs(task, reader, *splits, **fits))
            warn_of_other_weights(record, loaded)
            task = fitted_task(task, loaded, str(options.align), few)
            marks = {"circuit": stored.circuit} if stored is not None else None
            study = curve_study(loaded, task, options, given=scores_of, marks=marks, stage=stage)
            if first:
                stage("files and figures")
                _write_curves(context, study, out)
        if first:
            show(as_json, study.as_dict, lambda: _print_curves(study), out=out)


def _with_run(options: CurveOptions, stored: Any, task: Any, model: str | None) -> tuple[CurveOptions, dict[str, Any]]:
    """Options not given are the run's, whose own scorer is not run again; and the scores that exist already."""
    from persona_circuits.circuit.assessment import read_scorer

    record = stored.record if stored is not None else None
    named, scores_of = _scorers(options.scorers, read_scorer)
    if stored is not None and (scores := all_scores(stored)) is not None:
        scores_of = {_run_name(stored): scores, **scores_of}
    where: tuple[Any, ...] = ()
    if record is not None and task.sha256 == record["task"].get("sha256"):
        where = tuple(record["task"].get("where", {}).items())
        if model in (None, stored.model_name()):
            named = tuple(scorer for scorer in named if not _repeats_run(record, options, scorer))
    return replace(options.settled(record), scorers=named, where=options.where or where), scores_of


def _refuse_idle(context: typer.Context, options: CurveOptions) -> None:
    run = bool(set(options.scorers) - {"random"}) or options.ablation in ("mean", "span-mean", "optimal")
    refuse_idle(
        context,
        (bool({*STEPPED} & {*options.scorers}), f"a scorer of {', '.join(STEPPED)}", ["steps"]),
        ("random" in options.scorers, "the scorer random", ["n_random"]),
        (run, "a scorer that is run, or constants, on these", ["train_split"]),
    )


def _scorers(items: Sequence[str], read: Callable[[str], Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of methods, and scores read from files and folders, under a name made of the path."""
    named, scores_of = [], {}
    for item in items:
        path = Path(item)
        if not path.exists():
            named.append(item)
            continue
        plain = path.stem in ("scores", "importances") or path.is_dir()
        name = path.absolute().parent.name if plain and not path.is_dir() else path.absolute().stem
        if name in scores_of:
            raise OptionError(f"--scorers names two sources called {name}; rename one of the files or folders")
        scores_of[name] = read(item)
    return tuple(named), scores_of


def _repeats_run(record: Any, options: CurveOptions, scorer: str) -> bool:
    """Whether a scorer would only make the run's own scores again, and draw one curve twice."""
    made, about = (record or {}).get("method", {}), (record or {}).get("task", {})
    settled = options.settled(record)
    steps = settled.steps if scorer in STEPPED else None, settled.ig_rule if scorer in RULED else None
    same = (made.get("scores"), made.get("steps"), made.get("ig_rule")) == (scorer, *steps)
    same &= (about.get("metric"), (record or {}).get("ablation"), about.get("align")) == (
        settled.metric,
        settled.ablation,
        settled.align,
    )
    same &= not made.keys() & {"of", "weigh"}
    return same and scorer != "random" and settled.train_split in (None, about.get("split")) and not options.where


def _run_name(stored: Any) -> str:
    return f"run {stored.path.absolute().parent.name}"


def _write_curves(context: typer.Context, study: Any, out: Path) -> None:
    from persona_circuits.circuit.reporting import write_curves

    about = study.about
    with result_folder(context, out, about["model"]["name"]) as staging:
        write_curves(study, staging, title=f"{Path(about['model']['name']).name}: {study.report.metric}")


def _print_curves(study: Any) -> None:
    from persona_circuits.circuit.reporting import curve_tables
    from persona_circuits.circuit.task import Overlap

    report = study.report
    say(f"scored on   {study.about['scored_on']}; measured on {report.n_pairs} pairs ({report.split})")
    say(f"m           {report.metric}: full {signed(report.m_full)}, empty {signed(report.m_empty)}")
    print_tables(curve_tables(report))
    say("MIB takes CPR from the signed order and CMD from the absolute one; CPR has no upper bound")
    for mark in report.marks:
        f, median = (shown_text(value, 3) for value in (mark.faithfulness, mark.median_of_ratios))
        say(f"{mark.name:<12}{mark.n_edges:,} edges, {100 * mark.share:.2g} %: f {f}, median of ratios {median}")
    if report.m_full < report.m_empty:
        say("reversed: m(full) is below m(empty); see whether clean and corrupt are the wrong way round")
    shared = Overlap(**study.about["shared"])
    if shared.note:
        say(f"\n{shared.note}")
    say("")


MEASURED = ("pairs_a", "pairs_b", "model", "n_random", "device", "dtype", "max_memory", "batch_size")
"""Options of a comparison that runs a model, by their parameters' names."""


@dataclass(frozen=True)
class Grounds:
    """What both circuits are measured on."""

    pairs_a: Annotated[Path | None, Option("Pairs of A. (default: those its file names)")] = None
    pairs_b: Annotated[Path | None, Option("Pairs of B. (default: those its file names)")] = None
    model: Annotated[str | None, Option("Model to measure both in. (default: those that the files name)")] = None
    no_model: Annotated[bool, Option("Compare the files only; run no model.")] = False


@dataclass(frozen=True)
class Shown:
    """What a comparison writes and prints."""

    report: Annotated[Path | None, Option("Write all of it to this JSON file too.")] = None
    picture: Annotated[Path | None, Option("Draw the difference: .svg, .png, .pdf or .dot.")] = None
    strongest: Drawn = None
    as_json: Annotated[bool, Option("Print one JSON object instead of tables.", name="--json")] = False


@with_options
def compare(
    context: typer.Context,
    *,
    a: Annotated[Path, typer.Argument(help="Circuit A: circuit.json, its folder, or EAP-IG's JSON.")],
    b: Annotated[Path, typer.Argument(help="Circuit B, of a model of the same shape.")],
    ground: Grounds,
    options: ComparisonOptions,
    setting: Annotated[MeasureOptions, Only("n_random", "seed", "batch_size")],
    loading: Annotated[Loading, Without("revision", "fitting")],
    shown: Shown,
) -> None:
    """Compare two circuits: overlap and scores against chance, opposite signs, each on the other's pairs."""
    with errors_as_exit_codes():
        report, picture = shown.report, shown.picture
        drawn = (picture is not None, "a --picture", ["strongest"])
        refuse_idle(context, (not ground.no_model, "a model that is run, without --no-model", MEASURED), drawn)
        from persona_circuits.circuit.assessment.budget import Clock
        from persona_circuits.circuit.assessment.comparison import (
            compare_in_time,
            cross_in_time,
            draw_difference,
            read_side,
        )
        from persona_circuits.circuit.drawing import check_picture
        from persona_circuits.circuit.storage import check_output_file, write_json

        sides, clock = (read_side(a), read_side(b)), Clock(options.budget)
        if report is not None:
            check_output_file(report)
        if picture is not None:
            check_picture(picture)
        with progress_bars() as stage:
            comparison, short = compare_in_time(*sides, options.n_draws, clock, seed=setting.seed, stage=stage)
            if not ground.no_model:
                pair_files = ground.pairs_a, ground.pairs_b
                grounds, notes = _grounds(sides, pair_files, ground.model, stage, loading)
                cross, more = cross_in_time(*sides, grounds, setting, clock, stage=stage)
                comparison, short = comparison.with_cross(cross, notes), [*short, *more]
            comparison = replace(comparison, notes=(*comparison.notes, *short))
            if picture is not None:
                draw_difference(comparison, picture, strongest=shown.strongest)
        if report is not None:
            write_json(comparison.as_dict(), report)
        written = [path for path in (report, picture) if path]
        record = {"written": [str(path) for path in written]}
        show(shown.as_json, lambda: record | comparison.as_dict(), lambda: _print_comparison(comparison, written))


def _grounds(
    sides: Sequence[Any], pairs: Sequence[Path | None], model: str | None, stage: Callable[[str], Any], loading: Loading
) -> tuple[list[Any], list[str]]:
    """The pairs and model that each side's circuit was found on, where available, and notes on those that are not."""
    from persona_circuits.circuit.assessment.comparison import Ground
    from persona_circuits.circuit.errors import ModelError, TaskError

    grounds: list[Any] = []
    notes: list[str] = []
    models: dict[str, Any] = {}
    for letter, side, pair_file in zip("AB", sides, pairs, strict=True):
        if side.record is None:
            notes.append(f"nothing is measured on {letter}'s pairs: {side.name} does not say how it was found")
            continue
        name, source = model or side.record["model"]["name"], pair_file or own_pairs(side.record)
        try:
            task = read_task(source)
            if name not in models:
                models[name] = load(stage, name, replace(loading, revision=side.record["model"]["revision"]))
            about = side.record["task"]
            task = fitted_task(task, models[name], about["align"], bool(about.get("unfit")))
        except (TaskError, ModelError) as error:
            if pair_file is not None or model is not None:
                raise
            reason = str(error).splitlines()[0]
            notes.append(f"nothing is measured on {letter}'s pairs: {reason}; see --pairs-a, --pairs-b and --model")
            continue
        if task.sha256 != side.record["task"]["sha256"]:
            notes.append(f"{task.source} is not, byte for byte, the file that {letter} was found on")
        if models[name].fingerprint != side.record["model"]["fingerprint"]:
            notes.append(f"{letter} was found in other weights than {models[name].name} has")
        grounds.append(Ground(letter, models[name], task, side.record))
    return grounds, notes


def _print_comparison(comparison: Any, written: Sequence[Path]) -> None:
    from persona_circuits.circuit.reporting import comparison_tables

    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        task = side.record["task"] if side.record else None
        about = f": {task['metric']} on {task['n_pairs']} pairs of {task['source']} ({task['split']})" if task else ""
        say(f"{letter}           {side.name}{about}")
    print_tables(comparison_tables(comparison))
    for note in comparison.notes:
        say(f"note: {note}")
    for path in written:
        say(f"written to  {path}")


def all_scores(stored: Any) -> Any:
    """The scores of all edges if they were saved beside the circuit, else those of the circuit's own edges."""
    from persona_circuits.circuit.io import read_scores

    beside = stored.path.parent / "scores.safetensors"
    if stored.record is None or not beside.is_file():
        return stored.scores
    scores = read_scores(beside)
    return scores if scores.graph == stored.circuit.graph else stored.scores
