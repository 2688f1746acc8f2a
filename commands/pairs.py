"""Pair files: pairs, vary, prior-pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.choices import PROMPT_FORMATS
from persona_circuits.circuit.options import Option
from persona_circuits.circuit.table import Column, Table
from persona_circuits.commands.index import result_folder
from persona_circuits.commands.options import JsonOption, Loading, ModelOption, OutOption
from persona_circuits.commands.signature import Only, Without, with_options
from persona_circuits.commands.terminal import (
    by_token_count,
    errors_as_exit_codes,
    load,
    print_table,
    progress_bars,
    refuse_idle,
    say,
    show,
)
from persona_circuits.persona.formats.options import FormatOptions
from persona_circuits.persona.pairs.options import PairOptions, PriorOptions

__all__: list[str] = []

PairFile = Annotated[Path, typer.Option("--file", help="Pair file to write, .jsonl.")]
ReportFile = Annotated[Path | None, typer.Option("--report", help="What was dropped and why. (default: beside --file)")]


@dataclass(frozen=True)
class Material:
    """The personas, and the questions put to them."""

    personas: Annotated[Path, Option("Personas: JSON Lines, CSV, or assistant-axis JSON (file or folder).")]
    questions: Annotated[Path, Option("Questions: JSON Lines, CSV, or a file of the Anthropic evals.")]
    answers: Annotated[
        Path | None, Option("CSV persona,question,option: preferences that the questions do not hold.")
    ] = None
    contrast: Annotated[str, Option("all, opposed, or a CSV file persona_a,persona_b.")] = "all"


@dataclass(frozen=True)
class Natural(Material):
    """The shipped personas and questions, where no others are given."""

    personas: Annotated[Path, Option("Personas, as of pairs.")] = Path("datasets/natural_personas.jsonl")
    questions: Annotated[Path, Option("Questions, as of pairs.")] = Path("datasets/natural_questions.jsonl")
    contrast: Annotated[str, Option("all, opposed, or a CSV file persona_a,persona_b.")] = "opposed"


@dataclass(frozen=True)
class Wording:
    """How a question is put."""

    template: Annotated[
        str | None, Option("raw, chat (the tokenizer's own), or a file. (default: raw; with --model the best --format)")
    ] = None
    form: Annotated[
        str | None,
        Option(
            "How the question is put, in the place of --template; see docs/pairs.md.",
            name="--format",
            choices=PROMPT_FORMATS,
        ),
    ] = None
    cue: Annotated[str | None, Option("What the answer follows. (default: the template's)")] = None
    neutral_wordings: Annotated[
        Path | None, Option("One neutral wording a line, for --add-neutral. (default: see docs/pairs.md)")
    ] = None


@dataclass(frozen=True)
class Declared:
    """Whether the model itself says who prefers what."""

    asks: Annotated[
        bool, Option("Let the model declare who prefers what, on a wording that no pair has.", name="--ask-model")
    ] = False
    mines: Annotated[
        bool, Option("The same, with the model's own top answers as candidates.", name="--mine-candidates")
    ] = False


@dataclass(frozen=True)
class Written:
    """The files of pairs."""

    out: Annotated[Path, Option("Pair file to write, .jsonl.", name="--file")]
    report: Annotated[Path | None, Option("What was dropped and why. (default: beside --file)")] = None
    null: Annotated[
        Path | None,
        Option("Also write pairs of two paraphrases of one persona. (default with --align right: beside --file)"),
    ] = None


@with_options
def pairs(
    context: typer.Context,
    *,
    material: Material,
    files: Written,
    model: ModelOption = None,
    wording: Wording,
    options: PairOptions,
    declared: Declared,
    as_json: JsonOption = False,
) -> None:
    """Build prompt pairs for a model's tokenizer from personas, questions and templates."""
    with errors_as_exit_codes():
        form, cue, ask = wording.form, wording.cue, declared.asks or declared.mines
        alone = (form is None, "a template of one's own, without --format", ["template"])
        refuse_idle(context, alone, (not declared.mines, "options of the source", ["asks"]))
        from persona_circuits.circuit.task import MODEL, resolve
        from persona_circuits.persona.data import load_format, load_templates, load_tokenizer
        from persona_circuits.persona.formats import with_calibration
        from persona_circuits.persona.pairs import build_pairs, marked, read_neutral_wordings, write_pairs

        neutral = wording.neutral_wordings
        quiet = files.null is not None or options.align == "right"
        options = replace(options, neutral=options.neutral or neutral is not None, null=quiet).checked()
        people, questions = _people_and_questions(material.personas, material.questions, material.answers)
        meetings = _meetings(material.contrast)
        nobody = () if neutral is None else read_neutral_wordings(neutral)
        _check_places(files, options)
        reader = load_tokenizer(model or MODEL)
        tried = None
        if wording.template is None and form is None and model is not None and not ask:
            tried = _calibrated(model, people, questions, meetings, options)
            form = None if tried is None else tried.best
        if form is None:
            forms = load_templates(resolve(wording.template or "raw"), reader.tokenizer, cue=cue)
        else:
            forms = (load_format(form, reader.tokenizer, cue=cue),)
        settings: dict[str, Any] = {"contrast": meetings, "options": options}
        answers = _asked_model(model or MODEL, people, questions, forms[0], declared.mines, settings) if ask else None
        questions = questions if answers is None else answers.questions
        built = build_pairs(people, questions, reader, forms, neutral_wordings=nobody, **settings)
        built = built if answers is None else marked(built, answers)
        built = built if tried is None else with_calibration(built, tried)
        sources = {name: value and str(value) for name, value in vars(material).items()}
        written = write_pairs(built, files.out, files.report, files.null, pairs=str(files.out), sources=sources)
        record, names = built.report(), {name: str(path) for name, path in written.items()}
        show(as_json, lambda: names | record, lambda: _print_built(built, record), written=list(names.values()))


def _meetings(contrast: str) -> Any:
    """Which personas meet, by name or as a file lists them."""
    from persona_circuits.persona.data import sources

    return contrast if contrast in ("all", "opposed") else sources.read_contrast(contrast)


def _calibrated(name: str, people: Any, questions: Any, meetings: Any, options: PairOptions) -> Any:
    """The formats compared on a few training pairs; None if none suits this model and these questions."""
    from persona_circuits.circuit.errors import TaskError
    from persona_circuits.persona.formats import calibrated

    with progress_bars() as stage:
        loaded = load(stage, name, Loading())
        try:
            return calibrated(loaded, people, questions, contrast=meetings, like=options, stage=stage)
        except TaskError as error:
            say(f"format      raw: {str(error).splitlines()[0]}")
            return None


def _asked_model(name: str, people: Any, questions: Any, form: Any, mines: bool, settings: dict[str, Any]) -> Any:
    """The preferences that the model declares, asked in wordings that no pair will have."""
    from persona_circuits.persona.pairs import ask_model, meetings

    with progress_bars() as stage:
        loaded = load(stage, name, Loading())
        met = meetings(people, settings["contrast"])
        ask = {"mine": mines, "options": settings["options"], "progress": stage("asking the model")}
        return ask_model(loaded, met, questions, form, **ask)


def _people_and_questions(personas: Path, questions: Path, answers: Path | None) -> tuple[Any, Any]:
    from persona_circuits.circuit.task import resolve
    from persona_circuits.persona.data import sources

    people, items = sources.read_personas(resolve(str(personas))), sources.read_questions(resolve(str(questions)))
    if answers is None:
        return people, items
    return people, sources.with_answers(items, sources.read_answers(answers), people)


def _check_places(files: Written, options: PairOptions) -> None:
    """Check, before any work, that every file can be written."""
    from persona_circuits.circuit.storage import check_output_file
    from persona_circuits.persona.pairs import default_null, default_report

    null = (files.null or default_null(files.out)) if options.null else None
    for path in (files.out, files.report or default_report(files.out), null):
        if path is not None:
            check_output_file(path, makes_folder=True)


def _print_built(built: Any, record: dict[str, Any]) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in record["kept_by_split"].items())
    say(f"kept        {record['kept']:,} pairs{f' ({splits})' if splits else ''}")
    say(f"held out    {record['splits']['held_out']}")
    if "calibration" in record:
        say(f"format      {record['calibration']['says']}")
    if record["unequal"]["pairs"]:
        say(f"unequal     {record['unequal']['pairs']:,} pairs, by {by_token_count(record['unequal'])}")
    if "null" in record:
        _print_null(record["null"])
    if "asked" in record:
        from persona_circuits.persona.data import said

        say(f"it says     {said(record['asked']['words'])}")
        say(f"declared    by the model, in {len(record['asked']['wordings'])} wordings that no pair has")
    if "neutral" in record:
        counts = ", ".join(f"{len(texts):,} of {source}" for source, texts in record["neutral"].items())
        say(f"neutral     wordings: {counts}")
    if built.dropped:
        print_table(_dropped("combinations", [(item.reason, item.examples[0], item.count) for item in built.dropped]))
    for why, count in record["not_tried"].items():
        say(f"not tried   {count:,} combinations {why}")
    for key, says in (
        ("leaks", "options in a persona's text"),
        ("candidates_left_out", "options that are no candidate here"),
        ("wordings_left_out", "wordings left out"),
    ):
        if record[key]:
            say(f"note        {len(record[key]):,} {says}; see the report")


def _print_null(null: dict[str, Any]) -> None:
    counts = f"{null['equal']:,} of equal length, {null['unequal']:,} of unequal"
    by = f", by {by_token_count(null)}" if null["by_tokens"] else ""
    say(f"null        {null['pairs']:,} pairs of one persona's paraphrases ({counts}{by})")
    for kind, count in null["pairs_without"].items():
        if count:
            say(f"note        {count:,} pair(s) have no null pair of {kind} length of their own")
    for why, names in null["personas_without"].items():
        shown = ", ".join([*names[:5], *(["…"] if len(names) > 5 else [])])
        say(f"note        {len(names):,} persona(s) have not {why}: {shown}")


def vary(
    pairs: Annotated[Path, typer.Option("--pairs", help="Prompt pairs, JSON Lines with ids.")],
    out: PairFile,
    rules: Annotated[
        Path | None, typer.Option("--rules", help="JSON: variants by name, each a list of substitutions.")
    ] = None,
    frame: Annotated[
        list[str] | None,
        typer.Option(
            help="you, again, friend, book, past, not or nobody: of whom the persona is said; may be repeated."
        ),
    ] = None,
    personas: Annotated[
        Path | None, typer.Option(help="For --frame again: the personas, whose paraphrases it takes.")
    ] = None,
    model: ModelOption = None,
    split: Annotated[str | None, typer.Option(help="Pairs of one split only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say the same pairs in other ways: of a friend, of nobody, denied; or late, repeated, by rules of substitution."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.choices import FRAMES
        from persona_circuits.circuit.errors import OptionError
        from persona_circuits.circuit.storage import check_output_file, working_folder
        from persona_circuits.circuit.task import MODEL, resolve
        from persona_circuits.persona.data import load_tokenizer, read_personas
        from persona_circuits.persona.pairs import framed, read_rules, vary, write_rows

        if (rules is None) == (not frame):
            raise OptionError(f"give --frame ({', '.join(FRAMES)}) or --rules FILE, one of the two")
        named: Any = tuple(dict.fromkeys(frame or ())) if rules is None else read_rules(resolve(str(rules)))
        check_output_file(out, makes_folder=True)
        where, reader = resolve(str(pairs)), load_tokenizer(model or MODEL)
        if rules is None:
            known = read_personas(resolve(str(personas))) if personas else ()
            varied = framed(where, named, reader, split=split, personas=known)
        elif personas:
            raise OptionError("--personas is for --frame again; --rules takes none")
        else:
            varied = vary(where, named, reader, split=split)
        with working_folder(out.parent):
            write_rows(varied.rows, out)
        dropped = {reason: list(ids) for reason, ids in varied.dropped.items()}
        record = {"bases": len(varied.rows) // len(named), "variants": list(named), "dropped": dropped}
        if rules is None:
            record["matched"] = sum(bool(row["frame_matched"]) for row in varied.rows) // len(named)
        show(as_json, lambda: record, lambda: _print_varied(record), out=out, written=[out])


def _print_varied(record: dict[str, Any]) -> None:
    say(f"kept        {record['bases']:,} bases in {len(record['variants'])} variants: {', '.join(record['variants'])}")
    if "matched" in record:
        say(f"matched     {record['matched']:,} of {record['bases']:,} have the same number of tokens in all frames")
    if record["dropped"]:
        print_table(_dropped("bases", [(reason, ids[0], len(ids)) for reason, ids in record["dropped"].items()]))


@with_options
def formats(
    context: typer.Context,
    *,
    model: Annotated[str, typer.Option("--model", help="Hugging Face folder or hub name.")],
    material: Annotated[Natural, Without("answers")],
    options: FormatOptions,
    out: OutOption = Path("runs/formats"),
    loading: Annotated[Loading, Only("device", "dtype", "revision")],
    as_json: JsonOption = False,
) -> None:
    """Measure every format of a question on a model, and recommend one: mass, D beside its null, order effect."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.persona.formats import formats_record, study_formats, write_formats

        options = options.checked()
        people, questions = _people_and_questions(material.personas, material.questions, None)
        meetings = _meetings(material.contrast)
        check_output_folder(out)
        with progress_bars() as stage:
            loaded = load(stage, model, loading)
            study = study_formats(loaded, people, questions, contrast=meetings, options=options, stage=stage)
            stage("files and figures")
            with result_folder(context, out, loaded.name) as staging:
                write_formats(study, staging)
        show(as_json, lambda: formats_record(study), lambda: _print_formats(study), out=out)


def _print_formats(study: Any) -> None:
    from persona_circuits.persona.data import said
    from persona_circuits.persona.formats import format_table, headline

    print_table(format_table(study))
    for row in study.rows:
        say(f"it says     {said(row.words, 3)}  ({row.format})")
    for name, why in study.skipped.items():
        say(f"skipped     {name}: {why}")
    say("friend, order: D of a friend, spread over orders; answer: share of answers that begin with the choice")
    say(headline(study))


@with_options
def prior_pairs(
    *,
    pairs: Annotated[Path, typer.Option("--pairs", help="Persona pairs, whose prompts are paired differently.")],
    neutral: Annotated[
        Path, typer.Option("--neutral", help="Wordings without a persona, JSON Lines; they tell a question's default.")
    ],
    out: PairFile,
    model: ModelOption = None,
    report: ReportFile = None,
    options: PriorOptions,
    loading: Annotated[Loading, Only("device", "dtype", "revision")],
    as_json: JsonOption = False,
) -> None:
    """Pair the prompts of a persona for the generic prior: one persona, two questions with other defaults."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.storage import check_output_file
        from persona_circuits.circuit.task import MODEL, resolve
        from persona_circuits.persona.data import load_items, load_neutral
        from persona_circuits.persona.pairs import build_prior_pairs, default_report, write_prior_pairs

        options = options.checked()
        items = load_items(resolve(str(pairs)), label=str(pairs))
        wordings = load_neutral(resolve(str(neutral)))
        check_output_file(out, makes_folder=True)
        check_output_file(report or default_report(out), makes_folder=True)
        with progress_bars() as stage:
            loaded = load(stage, model or MODEL, loading)
            built = build_prior_pairs(loaded, items, wordings, options=options, progress=stage("defaults"))
        beside, counts = write_prior_pairs(built, out, report), built.report()
        record = {"report": str(beside), **counts}
        show(as_json, lambda: record, lambda: _print_prior_pairs(counts), out=out, written=[out, beside])


def _print_prior_pairs(counts: dict[str, Any]) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in counts["kept_by_split"].items())
    forms = ", ".join(f"{name} {count}" for name, count in counts["kept_by_form"].items())
    say(f"kept        {counts['kept']:,} pairs{f' ({splits})' if splits else ''}; form: {forms}")
    lead, contrast = counts["mean_lead"], counts["mean_expected"]
    say(f"no persona  a default leads by {lead:.2f} logits on average; contrast {contrast:.2f}")
    if counts["dropped"]:
        rows = [(item["reason"], item["examples"][0], item["count"]) for item in counts["dropped"]]
        print_table(_dropped("rows or meetings", rows))


def _dropped(what: str, rows: list[tuple[str, str, int]]) -> Table:
    """A row per reason for dropping: the reason, an example, and the count."""
    return Table("dropped", ("reason", "for example", Column(what, 2, ",")), rows, 2)
