"""Directions of personas: vectors, steer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from persona_circuits.circuit.options import Option
from persona_circuits.circuit.table import Table
from persona_circuits.commands.index import result_folder
from persona_circuits.commands.options import JsonOption, Loading, OutOption, Source
from persona_circuits.commands.parts import named_two
from persona_circuits.commands.signature import But, Only, Without, with_options
from persona_circuits.commands.speech import Asked, Form, check_journal, exchanges_of, respond_locally
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    lines_of,
    load,
    path_and_name,
    print_table,
    print_tables,
    progress_bars,
    refuse_idle,
    say,
    say_drawn,
    shipped_or,
    show,
)
from persona_circuits.persona.responses.options import Sampling
from persona_circuits.persona.steering.options import SteerOptions
from persona_circuits.persona.vectors.options import VectorOptions

__all__: list[str] = []


@dataclass(frozen=True)
class Heard(Asked):
    """What is asked, unless responses are given."""

    responses: Annotated[
        Path | None, Option("responses.jsonl of the respond command. (default: made here, as it would)")
    ] = None


@dataclass(frozen=True)
class Compared(VectorOptions):
    """Options of vectors, and the vectors to compare them with."""

    compare_with: Annotated[
        tuple[Path, ...], Option("Folder of another model's vectors; may be repeated.", name="--compare")
    ] = ()
    reference: Annotated[
        Path | None, Option("Reference that these vectors should equal at one layer: a folder or vectors.safetensors.")
    ] = None


@with_options
def vectors(
    context: typer.Context,
    *,
    asked: Heard,
    form: Annotated[Form, Only("model", "template", "cue")],
    out: OutOption = Path("runs/vectors"),
    sampling: Annotated[Sampling, Without("seed")],
    options: Compared,
    loading: Annotated[Loading, Only("device", "dtype", "revision")],
    as_json: JsonOption = False,
) -> None:
    """Mean activations of a model as every persona: cosines, components, assistant axis, other models beside."""
    with errors_as_exit_codes() as kept:
        _refuse_idle(context, sampling, asked, options)
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.persona.responses import read_responses, write_responses
        from persona_circuits.persona.streams import chosen_layer
        from persona_circuits.persona.vectors import read_vectors, write_vectors
        from persona_circuits.persona.vectors.report import vector_record

        sampling = replace(sampling, seed=options.seed).checked()
        form = replace(form, batch_size=options.batch_size)
        others = [read_vectors(path) for path in options.compare_with]
        should_be = None if options.reference is None else read_vectors(options.reference)
        responses = asked.responses
        said = None if responses is None else read_responses(responses)
        wanted, about = ((), {}) if said else exchanges_of(form.model, asked)
        check_journal(out, kept)
        check_output_folder(out / "cache")
        with progress_bars() as stage:
            loaded = load(stage, shipped_or(form.model), loading, lambda reader: form.opened(reader.tokenizer))
            at = chosen_layer(loaded.graph.n_layers, options.layer, options.layer_fraction)
            if said is None:
                made, record = respond_locally(loaded, wanted, form, sampling, out, stage)
                said, about = made.responses, record | {"sources": about}
            else:
                about = {"responses": str(responses)}
            geometry = _geometry(loaded, said, asked, form, options, at, out / "cache", stage)
            comparison = _compared(geometry, others, options) if others else None
            beside = _likenesses(geometry, [*others, *([] if should_be is None else [should_be])])
            stage("files and figures")
            with result_folder(context, out, loaded.name, notes=geometry.notes) as staging:
                write_vectors(geometry, about, staging, comparison=comparison)
                if responses is None:
                    write_responses(said, staging / "responses.jsonl")
        tables = partial(_print_vectors, geometry, comparison, beside)
        record = partial(vector_record, geometry, about, comparison, beside)
        show(as_json, record, tables, out=out, notes=geometry.notes)
        if should_be is not None:
            _require_likeness(beside[-1], options.min_cosine)


def _geometry(
    model: Any,
    said: Any,
    asked: Heard,
    form: Form,
    options: Compared,
    at: int,
    cache: Path,
    stage: Callable[[str], Any],
) -> Any:
    """The vectors at layer ``at`` where one was asked for, else at the most reliable one."""
    from persona_circuits.persona.responses import baseline_of
    from persona_circuits.persona.vectors import geometry_of, most_reliable_layer, persona_vectors

    anew = asked.responses is not None and (form.template is not None or form.cue is not None)
    settings: dict[str, Any] = {"cache": cache, "batch_size": options.batch_size, "anew": anew}
    tell = stage("reading the residual stream")
    vectors = persona_vectors(model, said, form.opened(model.tokenizer), **settings, progress=tell)
    if options.layer is None and options.layer_fraction is None:
        best = most_reliable_layer(vectors)
        at = at if best is None else best
    return geometry_of(vectors, at, baseline_of(vectors.personas, asked.baseline))


def _likenesses(geometry: Any, others: Sequence[Any]) -> list[Any]:
    """Every persona's cosines with each reference at the layer shown; None where widths or layers differ."""
    from persona_circuits.persona.vectors import StoredVectors, likeness

    compared, likenesses = StoredVectors(geometry.vectors, geometry.layer, geometry.baseline).compared(), []
    for other in others:
        alike = other.vectors.means.shape[1:] == geometry.vectors.means.shape[1:]
        likenesses.append(likeness(compared, other.compared(geometry.layer)) if alike else None)
    return likenesses


def _require_likeness(likenesses: Any, bar: float | None) -> None:
    """Enforce ``--min-cosine``."""
    from persona_circuits.circuit.errors import TaskError

    if likenesses is None:
        raise TaskError("--reference holds vectors of another depth or width: they have no cosine with these")
    low = [row for row in likenesses if bar is not None and not row.raw >= bar]
    for row in low:
        say(f"{row.persona}: cosine {row.raw:.5f} with the reference is below the bar of {bar:g}", err=True)
    if low:
        raise typer.Exit(1)


def _refuse_idle(context: typer.Context, sampling: Sampling, asked: Heard, options: Compared) -> None:
    said_here = ["personas", "questions", "wordings", "question_wordings", "samples", "max_questions"]
    said_here += ["max_new_tokens", "temperature", "top_p", "stop"]
    refuse_idle(
        context,
        (asked.responses is None, "responses made here, without --responses", said_here),
        (sampling.temperature > 0, "--temperature above 0", ["top_p"]),
        (bool(options.compare_with), "--compare", ["n_permutations"]),
        (options.reference is not None, "--reference", ["min_cosine"]),
    )


def _compared(geometry: Any, others: Sequence[Any], options: VectorOptions) -> Any:
    """This model's personas beside the others', each at the layer that it was studied at, or all at one fraction."""
    from persona_circuits.persona.streams import chosen_layer
    from persona_circuits.persona.vectors import StoredVectors, compare_models

    fraction = options.layer_fraction
    compared = StoredVectors(geometry.vectors, geometry.layer, geometry.baseline).compared()
    layers = [None if fraction is None else chosen_layer(side.vectors.n_layers, None, fraction) for side in others]
    sides = [compared, *(side.compared(at) for side, at in zip(others, layers, strict=True))]
    return compare_models(sides, n_permutations=options.n_permutations, seed=options.seed)


def _print_vectors(geometry: Any, comparison: Any, beside: Sequence[Any]) -> None:
    from persona_circuits.persona.vectors import likeness_table, vector_tables

    print_tables(vector_tables(geometry, comparison))
    print_tables(likeness_table(rows) for rows in beside if rows is not None)


@dataclass(frozen=True)
class Steered:
    """Along which direction which pairs are steered, and how many of them are continued in words."""

    fit: Annotated[
        Path | None, Option("Pairs to fit directions on. (default: the train split, or the shipped train pairs)")
    ] = None
    direction: Annotated[
        str | None,
        Option(
            "contrast, personas, pooled, pair, readout, a folder of vectors, or FILE.safetensors:NAME[:ROW], as a "
            "probe's. (default: contrast if both personas are fitted on as a pair, else personas, else pooled)"
        ),
    ] = None
    toward: Annotated[str | None, Option("With a folder of vectors: the persona to steer to.")] = None
    away: Annotated[str | None, Option("And the one to steer away from.")] = None
    neutral: Annotated[
        Path | None, Option("Neutral prompts, one a line. (default: the pairs' without the persona)")
    ] = None
    split: Annotated[str | None, Option("Pairs to steer. (default: test, or all if no split is named)")] = None
    max_pairs: Annotated[int, Option("Pairs to steer at most, evenly taken.")] = 48
    generate: Annotated[int, Option("Pairs whose prompts are continued, before and after.", min=0)] = 8
    groups: Annotated[
        Path | None, Option("Named sets of nodes, as the page saves them: what their part of the direction does.")
    ] = None


@with_options
def steer(
    context: typer.Context,
    *,
    source: Source,
    asked: Steered,
    options: SteerOptions,
    sampling: Annotated[Sampling, Without("seed"), But(temperature=0.0)],
    out: OutOption = Path("runs/steer"),
    loading: Annotated[Loading, Without("max_memory")],
    as_json: JsonOption = False,
) -> None:
    """Add a direction to the residual stream: persona effect, KL, flips against the required gain, what is said."""
    with errors_as_exit_codes():
        _refuse_idle_steering(context, asked.generate, sampling.temperature, options.layers)
        from persona_circuits.circuit.io import read_groups
        from persona_circuits.circuit.storage import check_output_folder
        from persona_circuits.persona.steering import (
            check_has_parts,
            set_parts,
            some_pairs,
            study_steering,
            write_steering,
        )
        from persona_circuits.persona.steering.report import steering_record
        from persona_circuits.persona.vectors import default_kind

        sampling = replace(sampling, seed=options.seed).checked()
        name, named = source.name(), named_two(asked.toward, asked.away)
        here, there = _steered_and_fitted(source.pairs, asked.fit, asked.split)
        plain = lines_of(asked.neutral)
        if asked.groups and asked.direction:
            check_has_parts(asked.direction)
        check_output_folder(out)
        with progress_bars() as stage:
            both = here, there
            loaded = load(stage, name, loading, lambda reader: [side.examples(reader, False) for side in both])
            options = options.over(loaded.graph.n_layers).checked()
            steered, fitted = (side.examples(loaded, loading.fitting) for side in both)
            steered = some_pairs(steered, asked.max_pairs)
            sets = read_groups(asked.groups, loaded.graph) if asked.groups else {}
            kind = asked.direction or default_kind(fitted.examples, steered.examples)
            settings: dict[str, Any] = {"toward": named, "neutral": plain, "progress": stage("steering")}
            study = study_steering(loaded, steered, fitted, kind, options, **settings)
            if sets:
                parts = set_parts(loaded, study, steered, fitted, sets, progress=stage("sets of nodes"))
                study = replace(study, sets=parts)
            texts = _continued(loaded, study, asked.generate, sampling, stage)
            stage("files and figures")
            about = {"pairs": here.label, "split": here.split, "fitted_on": there.label, "fitting_split": there.split}
            with result_folder(context, out, name, notes=study.notes) as staging:
                write_steering(study, texts, about, staging)
        tables = partial(_print_steering, study, texts)
        show(as_json, lambda: steering_record(study, texts, about), tables, out=out, notes=study.notes)


def _refuse_idle_steering(context: typer.Context, n_texts: int, temperature: float, layers: Sequence[int]) -> None:
    refuse_idle(
        context,
        (n_texts > 0, "--generate above 0", ["max_new_tokens", "temperature", "top_p", "stop"]),
        (temperature > 0, "--temperature above 0", ["top_p"]),
        (not layers or len(set(layers)) > 1, "more than one --layer", ["together"]),
    )


def _continued(model: Any, study: Any, n_pairs: int, sampling: Sampling, stage: Callable[[str], Any]) -> Any:
    """Texts before and after; what follows no chat template ends with its line, unless other texts were asked for."""
    from persona_circuits.persona.steering import generate_steered

    if not n_pairs:
        return ()
    if not sampling.stop and not model.tokenizer.chat_template:
        sampling = replace(sampling, stop=("\n",))
    tell = stage("texts before and after")
    return generate_steered(model, study, study.streams, n_pairs=n_pairs, sampling=sampling, progress=tell)


class Place(NamedTuple):
    """The pairs of a file, what results call it, and which split of it is used."""

    items: Any
    label: str | None
    split: str

    def examples(self, model: Any, fitting: bool) -> Any:
        from persona_circuits.persona.data import examples_of

        return examples_of(self.items, model, split=self.split, fitting=fitting)


def _steered_and_fitted(pairs: Path | None, fit: Path | None, split: str | None) -> tuple[Place, Place]:
    """The pairs to steer and those to fit on."""
    from persona_circuits.persona.data import load_items

    path, label = path_and_name(pairs, "datasets/pairs_test.jsonl")
    source = load_items(path, label=label), label
    known = {item.pair.split for item in source[0].items}
    steered = split or ("test" if "test" in known else "all")
    if fit is not None or pairs is None:
        path, label = path_and_name(fit, "datasets/pairs_train.jsonl")
        return Place(*source, steered), Place(load_items(path, label=label), label, "all")
    return Place(*source, steered), Place(*source, "train" if "train" in known and steered != "train" else "all")


def _print_steering(study: Any, texts: Any) -> None:
    from persona_circuits.persona.steering import part_table
    from persona_circuits.persona.steering import report as files

    title = f"steering {study.model} along {study.directions.kind}, {len(study.prompts)} pairs"
    print_table(Table(f"{title}, at {study.options.positions}", files.TABLE, files.outcome_rows(study)))
    title = f"largest strength with KL within {study.options.kl_bound:g} nats"
    print_table(Table(title, files.BOUNDS, files.bound_rows(study)))
    if study.sets:
        print_table(part_table(study))
    say_drawn(study.prompts.personas, study.prompts.questions)
    if texts:
        where = "+".join(map(str, texts[0].layers))
        title = f"{len(texts)} texts, steered after layer {where}; perplexity is the unsteered model's"
        print_table(Table(title, files.TEXTS, files.text_rows(texts)))
