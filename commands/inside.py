"""Where the persona is inside the model: probe, lens, patch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from persona_circuits.commands.options import (
    AblationName,
    AlignOption,
    BatchOption,
    DeviceOption,
    DtypeOption,
    FittingOption,
    JsonOption,
    ModelOption,
    PairsOption,
    PositionsOption,
    SeedOption,
)
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    fitted_task,
    load,
    model_name,
    names_of,
    path_and_name,
    print_table,
    progress_bars,
    read_task,
    refuse_idle,
    say,
    say_drawn,
    two_splits,
)

__all__: list[str] = []


def probe(
    model: ModelOption = None,
    pairs: PairsOption = None,
    test_pairs: Annotated[
        Path | None, typer.Option("--test-pairs", help="Pairs of a second file, held out as 'split'.")
    ] = None,
    personas: Annotated[
        Path | None, typer.Option(help="Personas with traits and wordings, as for pairs. (default: the shipped ones)")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(help="identity, trait or preference; may be repeated. (default: all there are)"),
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(help="question, template, wording, persona or split; may be repeated. (default: all there are)"),
    ] = None,
    positions: PositionsOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/probe"
    ),
    split: Annotated[str, typer.Option(help="Pairs to use.")] = "all",
    every: Annotated[int, typer.Option(help="Probe behind every so many blocks, the last always.")] = 1,
    folds: Annotated[int, typer.Option(help="Folds at most; no group is in two of them.")] = 5,
    penalty: Annotated[float, typer.Option(help="C of the logistic regression: smaller is a stronger penalty.")] = 0.1,
    repeats: Annotated[int, typer.Option(help="Shuffles of the labels, and control tasks.")] = 3,
    n_resamples: Annotated[int, typer.Option(help="Draws of bootstraps and permutations.")] = 500,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Probe every layer for who the persona is, its traits and its preference, with controls; RSA, CKA and noise."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.storage import check_output_folder, replace_folder
        from persona_circuits.persona.data import load_examples, read_personas
        from persona_circuits.persona.probing import ProbeOptions, study_probes, write_probes

        options = ProbeOptions(
            targets=tuple(targets or ()),
            hold_outs=tuple(hold_out or ()),
            positions=tuple(positions or ()),
            every=every,
            folds=folds,
            penalty=penalty,
            repeats=repeats,
            n_resamples=n_resamples,
            batch_size=batch_size,
            seed=seed,
        ).checked()
        name = model_name(model, pairs)
        path, label = path_and_name(pairs, "datasets/pairs_test.jsonl")
        people, _ = path_and_name(personas, "datasets/personas.jsonl" if pairs is None else None)
        who = read_personas(people) if people else ()
        check_output_folder(out)
        with progress_bars() as stage:
            loaded = load(stage, name, revision, device, dtype)
            found = load_examples(path or "", loaded, label=label, split=split, personas=who, fitting=fitting)
            test = None if test_pairs is None else load_examples(test_pairs, loaded, personas=who, fitting=fitting)
            study = study_probes(loaded, found, test=test, personas=who, options=options, stage=stage)
            stage("files and figures")
            with replace_folder(out) as staging:
                write_probes(study, staging)
        _print_probes(study, out, as_json)


def _print_probes(study: Any, out: Path, as_json: bool) -> None:
    from persona_circuits.persona.probing import GEOMETRY, TABLE, geometry_rows, probe_record, probe_rows

    if as_json:
        typer.echo(json.dumps({"out": str(out), **probe_record(study)}))
        return
    title = f"probes of {study.model}: {study.n_examples} prompts, {study.n_personas} personas"
    print_table(f"{title}, {study.n_questions} questions", TABLE, probe_rows(study), texts=4)
    say(f"intervals   over {study.n_personas} personas and {study.n_questions} questions, both drawn with replacement")
    print_table("geometry of personas, at the layer of their largest share", GEOMETRY, geometry_rows(study), texts=2)
    for note in study.notes:
        say(f"note: {note}")
    say(f"written to  {out}/")


def lens(
    model: ModelOption = None,
    pairs: PairsOption = None,
    tokens: Annotated[
        tuple[str, str] | None,
        typer.Option("--tokens", help="Two words, the first persona's and the second's, for the pairs' own answers."),
    ] = None,
    positions: PositionsOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/lens"
    ),
    split: Annotated[str, typer.Option(help="Pairs to read.")] = "all",
    n_resamples: Annotated[int, typer.Option(help="Draws of the bootstraps.")] = 2000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read preferences off every layer (logit lens), say where they are decided, and which nodes write them."""
    with errors_as_exit_codes():
        from persona_circuits.circuit.storage import check_output_folder, replace_folder
        from persona_circuits.persona.data import load_examples
        from persona_circuits.persona.lens import LensOptions, study_lens, write_lens

        options = LensOptions(tuple(positions or ()), batch_size, n_resamples, seed).checked()
        name = model_name(model, pairs)
        path, label = path_and_name(pairs, "datasets/pairs_test.jsonl")
        check_output_folder(out)
        with progress_bars() as stage:
            loaded = load(stage, name, revision, device, dtype)
            found = load_examples(path or "", loaded, label=label, split=split, tokens=tokens, fitting=fitting)
            study = study_lens(loaded, found, tokens=tokens, options=options, progress=stage("reading layers"))
            stage("files and figures")
            with replace_folder(out) as staging:
                write_lens(study, staging)
        _print_lens(study, out, as_json)


def _print_lens(study: Any, out: Path, as_json: bool) -> None:
    from persona_circuits.persona.lens import COMPONENTS, TABLE, component_rows, curve_rows, decision_lines, lens_record

    if as_json:
        typer.echo(json.dumps({"out": str(out), **lens_record(study)}))
        return
    title = f"logit lens of {study.model} at {study.positions[-1]}, {len(study.items)} pairs"
    print_table(title, TABLE, curve_rows(study), texts=1)
    say_drawn([item.personas for item in study.items], [item.pair.question for item in study.items])
    for line in decision_lines(study):
        say(line)
    if study.attribution.conserved:
        print_table("direct logit attribution of D, the largest", COMPONENTS, component_rows(study), texts=1)
        say(f"conserved   the parts sum to D within {study.attribution.error:.1e} logits on every pair")
    for note in study.notes:
        say(f"note: {note}")
    say(f"written to  {out}/")


def patch(
    context: typer.Context,
    model: ModelOption = None,
    pairs: PairsOption = None,
    at: Annotated[
        str, typer.Option("--at", help="What is patched, of stream, attn, mlps, heads, head-parts; or none.")
    ] = "stream,attn,mlps,heads",
    parts: Annotated[
        Literal["spans", "named", "positions"],
        typer.Option("--parts", help="Parts of the prompt: the file's, named single tokens, or every position."),
    ] = "spans",
    senders: Annotated[
        str, typer.Option("--from", help="Nodes that paths start at, such as a5.h2,m3. (default: all that reach --to)")
    ] = "",
    receivers: Annotated[
        str, typer.Option("--to", help="Where direct paths end, such as 'a9.h10<v>,m4,logits'; a head is its q, k, v.")
    ] = "",
    ablate: Annotated[str, typer.Option("--ablate", help="Heads to ablate, such as a9.h10,a10.h5.")] = "",
    ablate_top: Annotated[
        int | None, typer.Option("--ablate-top", help="Ablate the first so many persona movers instead.")
    ] = None,
    ablation: Annotated[AblationName, typer.Option(help="What ablated heads write.")] = "corrupt",
    n_random: Annotated[
        int, typer.Option("--n-random", help="Random sets of as many heads in the same layers to compare with.")
    ] = 100,
    negligible: Annotated[
        float, typer.Option("--negligible", help="Share of D up to which a head is no mover.")
    ] = 0.01,
    null: Annotated[
        Path | None, typer.Option("--null", help="Pairs of paraphrases of one persona: how large D is without signal.")
    ] = None,
    align: AlignOption = "equal",
    train_split: Annotated[
        str | None, typer.Option(help="Pairs to patch. (default: train, or all if no split is named)")
    ] = None,
    eval_split: Annotated[
        str | None, typer.Option(help="Pairs to ablate on. (default: test, or all if no split is named)")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/patch"
    ),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Patch streams, heads, MLPs and paths from one persona's run into the other's; rank the heads that carry it."""
    with errors_as_exit_codes():
        cut = bool(ablate) or ablate_top is not None
        refuse_idle(
            context,
            (cut, "--ablate or --ablate-top", ["ablation", "n_random", "eval_split"]),
            ("heads" in names_of(at), "--at heads", ["negligible"]),
        )
        from persona_circuits.circuit.storage import check_output_folder, replace_folder
        from persona_circuits.persona.patching import PatchOptions, study_patching, write_patch

        options = PatchOptions(
            at=() if at.strip() == "none" else names_of(at),
            parts=parts,
            senders=names_of(senders),
            receivers=names_of(receivers),
            ablate=names_of(ablate),
            ablate_top=ablate_top,
            ablation=ablation,
            n_random=n_random,
            align=align,
            negligible=negligible,
            batch_size=batch_size,
            seed=seed,
        ).checked()
        name = model_name(model, pairs)
        quiet = read_task(null) if null else None
        check_output_folder(out)
        with progress_bars() as stage:
            loaded = load(stage, name, revision, device, dtype)
            found, held_out = two_splits(loaded, pairs, train_split, eval_split, align if fitting else None)
            quiet = fitted_task(quiet, loaded, align, fitting)
            study = study_patching(loaded, found, held_out, options=options, null=quiet, stage=stage)
            stage("files and figures")
            with replace_folder(out) as staging:
                write_patch(study, staging)
        _print_patch(study, out, as_json)


def _print_patch(study: Any, out: Path, as_json: bool) -> None:
    from persona_circuits.persona.patching import (
        MOVERS,
        PATHS,
        ablation_lines,
        mover_rows,
        patch_record,
        path_rows,
        stream_rows,
        stream_table,
    )

    if as_json:
        typer.echo(json.dumps({"out": str(out), **patch_record(study)}))
        return
    mean = study.mean_divergence
    ends = "" if mean.low is None else f" ({mean.low:+.3f} to {mean.high:+.3f})"
    say(f"divergence  {mean.value:+.3f} logits{ends} on {len(study.items)} pairs")
    if study.below_null is not None:
        count = int(study.below_null.sum())
        say(f"null        |D| is below 2 sigma_0 = {2 * study.null.sigma_0:.3f} on {count} pairs")
    if rows := stream_rows(study):
        print_table("share of D that comes with the residual stream", stream_table(study), rows, texts=1)
    if rows := mover_rows(study):
        count = sum(one.is_mover for one in study.movers)
        print_table(f"persona movers: {count} of {len(study.movers)} heads, at the answer", MOVERS, rows, texts=2)
    if rows := path_rows(study):
        print_table("direct paths, the largest to each receiver, and together", PATHS, rows, texts=2)
    for line in ablation_lines(study):
        say(line)
    say(f"intervals   over {study.resampled}")
    say(f"passes      {study.passes} forward passes, {study.runs} prompts in them")
    for note in study.notes:
        say(f"note: {note}")
    say(f"written to  {out}/")
