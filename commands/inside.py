"""Where the persona is inside the model: probe, lens, patch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.options import Option
from persona_circuits.commands.index import result_folder
from persona_circuits.commands.options import JsonOption, Loading, OutOption, Source
from persona_circuits.commands.signature import Without, with_options
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    fitted_task,
    kept_in,
    load,
    path_and_name,
    print_tables,
    progress_bars,
    read_task,
    refuse_idle,
    say,
    show,
    two_splits,
)
from persona_circuits.persona.lens.options import LensOptions
from persona_circuits.persona.patching.options import PatchOptions
from persona_circuits.persona.probing.options import ProbeOptions

__all__: list[str] = []

TokensOption = Annotated[
    tuple[str, str] | None,
    typer.Option("--tokens", help="Two words, the first persona's and the second's, for the pairs' own answers."),
]


@dataclass(frozen=True)
class Probed(Source):
    """The model, the pairs, and what is known of their personas."""

    test_pairs: Annotated[Path | None, Option("Pairs of a second file, held out as 'split'.")] = None
    personas: Annotated[
        Path | None, Option("Personas with traits and wordings, as for pairs. (default: the shipped ones)")
    ] = None
    split: Annotated[str, Option("Pairs to use.")] = "all"


@with_options
def probe(
    context: typer.Context,
    *,
    source: Probed,
    out: OutOption = Path("runs/probe"),
    options: ProbeOptions,
    loading: Annotated[Loading, Without("max_memory")],
    as_json: JsonOption = False,
) -> None:
    """Probe every layer for who the persona is, its traits and its preference, with controls; RSA, CKA and noise."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.persona.data import examples_of, load_examples, load_items, read_personas
        from persona_circuits.persona.probing import probe_record, probe_tables, study_probes, write_probes

        options, name = options.checked(), source.name()
        path, label = path_and_name(source.pairs, "datasets/pairs_test.jsonl")
        people, _ = path_and_name(source.personas, "datasets/personas.jsonl" if source.shipped else None)
        personas = read_personas(people) if people else ()
        check_output_folder(out)
        with progress_bars() as stage:
            settings: dict[str, Any] = {"personas": personas, "fitting": loading.fitting}
            items = load_items(path or "", label=label)
            loaded = load(stage, name, loading, lambda reader: examples_of(items, reader, split=source.split))
            examples = examples_of(items, loaded, split=source.split, **settings)
            test = load_examples(source.test_pairs, loaded, **settings) if source.test_pairs else None
            study = study_probes(loaded, examples, test=test, personas=personas, options=options, stage=stage)
            stage("files and figures")
            with result_folder(context, out, name, notes=study.notes) as staging:
                write_probes(study, staging)
        tables = probe_tables(study)
        show(as_json, lambda: probe_record(study), lambda: print_tables(tables), out=out, notes=study.notes)


@with_options
def lens(
    context: typer.Context,
    *,
    source: Source,
    tokens: TokensOption = None,
    out: OutOption = Path("runs/lens"),
    split: Annotated[str, typer.Option(help="Pairs to read.")] = "all",
    options: LensOptions,
    loading: Annotated[Loading, Without("max_memory")],
    as_json: JsonOption = False,
) -> None:
    """Read preferences off every layer (logit lens), say where they are decided, and which nodes write them."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.persona.data import examples_of, load_items
        from persona_circuits.persona.lens import lens_record, lens_tables, study_lens, write_lens

        options, name = options.checked(), source.name()
        path, label = path_and_name(source.pairs, "datasets/pairs_test.jsonl")
        check_output_folder(out)
        with progress_bars() as stage:
            items = load_items(path or "", label=label)
            read = partial(examples_of, items, split=split, tokens=tokens, fitting=loading.fitting, takes_forms=True)
            loaded = load(stage, name, loading, read)
            examples = read(loaded)
            study = study_lens(loaded, examples, tokens=tokens, options=options, progress=stage("reading layers"))
            stage("files and figures")
            with result_folder(context, out, name, notes=study.notes) as staging:
                write_lens(study, staging)
        show(as_json, lambda: lens_record(study), lambda: print_tables(lens_tables(study)), out=out, notes=study.notes)


@dataclass(frozen=True)
class Patched(Source):
    """The model, the pairs and how they are read, and which are patched and which ablated on."""

    tokens: Annotated[
        tuple[str, str] | None, Option("Two words, the first persona's and the second's, for the pairs' own answers.")
    ] = None
    null: Annotated[Path | None, Option("Pairs of paraphrases of one persona: how large D is without signal.")] = None
    train_split: Annotated[str | None, Option("Pairs to patch. (default: train, or all if no split is named)")] = None
    eval_split: Annotated[str | None, Option("Pairs to ablate on. (default: test, or all if no split is named)")] = None


@with_options
def patch(
    context: typer.Context,
    *,
    source: Patched,
    options: PatchOptions,
    out: OutOption = Path("runs/patch"),
    loading: Annotated[Loading, Without("max_memory")],
    as_json: JsonOption = False,
) -> None:
    """Patch streams, heads, MLPs and paths from one persona's run into the other's; rank the heads that carry it."""
    with errors_as_exit_codes() as kept:
        cut = bool(options.ablate) or options.ablate_top is not None
        refuse_idle(
            context,
            (cut, "--ablate or --ablate-top", ["ablation", "n_random", "eval_split"]),
            ("heads" in options.at, "--at heads", ["negligible"]),
        )
        from persona_circuits.circuit.storage import check_output_folder, working_folder
        from persona_circuits.persona.patching import patch_record, study_patching, write_patch

        options, name = options.checked(), source.name()
        quiet = read_task(source.null) if source.null else None
        check_output_folder(out)
        state = out / "patch.state"
        kept.append(kept_in(state))
        with progress_bars() as stage, working_folder(out):
            fit = options.align if loading.fitting else None
            splits = source.pairs, source.train_split, source.eval_split
            loaded = load(stage, name, loading, lambda reader: two_splits(reader, *splits, fit, source.tokens))
            examples, held_out = two_splits(loaded, *splits, fit, source.tokens)
            quiet = fitted_task(quiet, loaded, options.align, loading.fitting)
            study = study_patching(loaded, examples, held_out, options=options, null=quiet, state=state, stage=stage)
            stage("files and figures")
            with result_folder(context, out, name, notes=study.notes) as staging:
                write_patch(study, staging)
        show(as_json, lambda: patch_record(study), lambda: _print_patch(study), out=out, notes=study.notes)


def _print_patch(study: Any) -> None:
    from persona_circuits.persona.patching import ablation_lines, patch_tables

    mean = study.mean_divergence
    ends = "" if mean.low is None else f" ({mean.low:+.3f} to {mean.high:+.3f})"
    say(f"divergence  {mean.value:+.3f} logits{ends} on {len(study.items)} pairs")
    if study.below_null is not None:
        count = int(study.below_null.sum())
        say(f"null        |D| is below 2 sigma_0 = {2 * study.null.sigma_0:.3f} on {count} pairs")
    print_tables(patch_tables(study))
    for line in ablation_lines(study):
        say(line)
    say(f"intervals   over {study.resampled}")
    say(f"passes      {study.passes} forward passes, {study.runs} prompts in them")
