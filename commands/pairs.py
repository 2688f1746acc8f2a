"""Pair files: pairs, vary, prior-pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.commands.options import JsonOption, Loading, ModelOption
from persona_circuits.commands.signature import Only, with_options
from persona_circuits.commands.terminal import (
    by_token_count,
    errors_as_exit_codes,
    load,
    print_table,
    progress_bars,
    say,
    show,
)
from persona_circuits.persona.pairs.options import PairOptions, PriorOptions

__all__: list[str] = []

PairFile = Annotated[Path, typer.Option("--out", help="Pair file to write, .jsonl.")]
ReportFile = Annotated[Path | None, typer.Option("--report", help="What was dropped and why. (default: beside --out)")]


@with_options
def pairs(
    *,
    personas: Annotated[Path, typer.Option(help="Personas: JSON Lines, CSV, or assistant-axis JSON (file or folder).")],
    questions: Annotated[Path, typer.Option(help="Questions: JSON Lines, CSV, or a file of the Anthropic evals.")],
    out: PairFile,
    model: ModelOption = None,
    template: Annotated[str, typer.Option(help="raw, chat (the tokenizer's own), or a file.")] = "raw",
    cue: Annotated[str | None, typer.Option(help="What the answer follows. (default: the template's)")] = None,
    contrast: Annotated[str, typer.Option(help="all, opposed, or a CSV file persona_a,persona_b.")] = "all",
    answers: Annotated[
        Path | None, typer.Option(help="CSV persona,question,option: preferences that the questions do not hold.")
    ] = None,
    report: ReportFile = None,
    options: PairOptions,
    null: Annotated[
        Path | None,
        typer.Option(
            help="Also write pairs of two paraphrases of one persona. (default with --align right: beside --out)"
        ),
    ] = None,
    neutral_wordings: Annotated[
        Path | None, typer.Option(help="One neutral wording a line, for --add-neutral. (default: see docs/pairs.md)")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build prompt pairs for a model's tokenizer from personas, questions and templates."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.task import MODEL, resolve
        from persona_circuits.persona.data import load_templates, load_tokenizer, sources
        from persona_circuits.persona.pairs import build_pairs, read_neutral_wordings, write_pairs

        worded, quiet = neutral_wordings is not None, null is not None or options.align == "right"
        options = replace(options, neutral=options.neutral or worded, null=quiet).checked()
        people, asked = _people_and_questions(personas, questions, answers)
        meetings = contrast if contrast in ("all", "opposed") else sources.read_contrast(contrast)
        nobody = read_neutral_wordings(neutral_wordings) if neutral_wordings is not None else ()
        _check_places(out, report, null, options)
        reader = load_tokenizer(model or MODEL)
        forms = load_templates(resolve(template), reader.tokenizer, cue=cue)
        built = build_pairs(people, asked, reader, forms, contrast=meetings, options=options, neutral_wordings=nobody)
        given = {"personas": str(personas), "questions": str(questions), "answers": answers and str(answers)}
        files = write_pairs(built, out, report, null, pairs=str(out), sources=given | {"contrast": contrast})
        found, names = built.report(), {name: str(path) for name, path in files.items()}
        show(as_json, lambda: names | found, lambda: _print_built(built, found), written=list(names.values()))


def _people_and_questions(personas: Path, questions: Path, answers: Path | None) -> tuple[Any, Any]:
    from persona_circuits.circuit.task import resolve
    from persona_circuits.persona.data import sources

    people, asked = sources.read_personas(resolve(str(personas))), sources.read_questions(resolve(str(questions)))
    if answers is None:
        return people, asked
    return people, sources.with_answers(asked, sources.read_answers(answers), people)


def _check_places(out: Path, report: Path | None, null: Path | None, options: PairOptions) -> None:
    """That every file can be written, before any work."""
    from persona_circuits.circuit.storage import check_output_file
    from persona_circuits.persona.pairs import default_null, default_report

    for path in (out, report or default_report(out), (null or default_null(out)) if options.null else None):
        if path is not None:
            check_output_file(path, makes_folder=True)


def _print_built(built: Any, found: dict[str, Any]) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in found["kept_by_split"].items())
    say(f"kept        {found['kept']:,} pairs{f' ({splits})' if splits else ''}")
    say(f"held out    {found['splits']['held_out']}")
    if found["unequal"]["pairs"]:
        say(f"unequal     {found['unequal']['pairs']:,} pairs, by {by_token_count(found['unequal'])}")
    if "null" in found:
        _print_null(found["null"])
    if "neutral" in found:
        counts = ", ".join(f"{len(texts):,} of {source}" for source, texts in found["neutral"].items())
        say(f"neutral     wordings: {counts}")
    if built.dropped:
        rows = [(item.reason, item.examples[0], f"{item.count:,}") for item in built.dropped]
        print_table("dropped", ("reason", "for example", "combinations"), rows, texts=2)
    for why, count in found["not_tried"].items():
        say(f"not tried   {count:,} combinations {why}")
    for key, says in (
        ("leaks", "options in a persona's text"),
        ("candidates_left_out", "options that are no candidate here"),
        ("wordings_left_out", "wordings left out"),
    ):
        if found[key]:
            say(f"note        {len(found[key]):,} {says}; see the report")


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
    rules: Annotated[Path, typer.Option("--rules", help="JSON: variants by name, each a list of substitutions.")],
    out: PairFile,
    model: ModelOption = None,
    split: Annotated[str | None, typer.Option(help="Pairs of one split only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say the same pairs in other ways: late, repeated, intense, as a mention, by rules of substitution."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.storage import check_output_file, working_folder
        from persona_circuits.circuit.task import MODEL, resolve
        from persona_circuits.persona.data import load_tokenizer
        from persona_circuits.persona.pairs import read_rules, vary, write_rows

        named = read_rules(resolve(str(rules)))
        check_output_file(out, makes_folder=True)
        found = vary(resolve(str(pairs)), named, load_tokenizer(model or MODEL), split=split)
        with working_folder(out.parent):
            write_rows(found.rows, out)
        dropped = {reason: list(ids) for reason, ids in found.dropped.items()}
        record = {"bases": len(found.rows) // len(named), "variants": list(named), "dropped": dropped}
        show(as_json, lambda: record, lambda: _print_varied(record), out=out, written=[out])


def _print_varied(found: dict[str, Any]) -> None:
    say(f"kept        {found['bases']:,} bases in {len(found['variants'])} variants: {', '.join(found['variants'])}")
    if found["dropped"]:
        rows = [(reason, ids[0], f"{len(ids):,}") for reason, ids in found["dropped"].items()]
        print_table("dropped", ("reason", "for example", "bases"), rows, texts=2)


@with_options
def prior_pairs(
    *,
    pairs: Annotated[Path, typer.Option("--pairs", help="Persona pairs, whose prompts are met another way.")],
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
        beside, found = write_prior_pairs(built, out, report), built.report()
        record = {"report": str(beside), **found}
        show(as_json, lambda: record, lambda: _print_prior_pairs(found), out=out, written=[out, beside])


def _print_prior_pairs(found: dict[str, Any]) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in found["kept_by_split"].items())
    forms = ", ".join(f"{name} {count}" for name, count in found["kept_by_form"].items())
    say(f"kept        {found['kept']:,} pairs{f' ({splits})' if splits else ''}; form: {forms}")
    lead, contrast = found["mean_lead"], found["mean_expected"]
    say(f"no persona  a default leads by {lead:.2f} logits on average; contrast {contrast:.2f}")
    if found["dropped"]:
        rows = [(item["reason"], item["examples"][0], f"{item['count']:,}") for item in found["dropped"]]
        print_table("dropped", ("reason", "for example", "rows or meetings"), rows, texts=2)
