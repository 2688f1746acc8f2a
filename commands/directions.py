"""Directions of personas: vectors, steer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from persona_circuits.commands.options import (
    BaselineOption,
    BatchOption,
    DeviceOption,
    DtypeOption,
    FittingOption,
    JsonOption,
    MaxNewOption,
    MaxQuestionsOption,
    ModelOption,
    PairsOption,
    PersonasOption,
    QuestionsOption,
    QuestionWordingsOption,
    SamplesOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    TemplateOption,
    TopPOption,
    WordingsOption,
)
from persona_circuits.commands.parts import named_two
from persona_circuits.commands.speech import exchanges_of, journalled, respond_here
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    lines_of,
    load,
    model_name,
    numbers_of,
    path_and_name,
    print_table,
    progress_bars,
    refuse_idle,
    say,
    say_drawn,
    shipped_or,
    texts_of,
)

__all__: list[str] = []


def vectors(
    context: typer.Context,
    model: ModelOption = None,
    responses: Annotated[
        Path | None,
        typer.Option("--responses", help="responses.jsonl of the respond command. (default: made here, as it would)"),
    ] = None,
    personas: PersonasOption = None,
    questions: QuestionsOption = None,
    template: TemplateOption = None,
    cue: Annotated[str | None, typer.Option(help="What the response follows. (default: the template's)")] = None,
    layer: Annotated[int | None, typer.Option(help="Block, from 0, behind which the vectors are shown.")] = None,
    layer_fraction: Annotated[
        float | None, typer.Option(help="The same as a share of the blocks; all are read and kept. (default: 0.5)")
    ] = None,
    compare_with: Annotated[
        list[Path] | None, typer.Option("--compare", help="Folder of another model's vectors; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/vectors"
    ),
    wordings: WordingsOption = 1,
    question_wordings: QuestionWordingsOption = 1,
    samples: SamplesOption = 1,
    max_questions: MaxQuestionsOption = None,
    baseline: BaselineOption = None,
    max_new_tokens: MaxNewOption = 48,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 1.0,
    stop: StopOption = None,
    n_permutations: Annotated[int, typer.Option(help="Of personas, when models are compared.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of responses and permutations.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Mean activations of a model as every persona: cosines, components, assistant axis, other models beside."""
    with errors_as_exit_codes() as kept:
        said_here = ["personas", "questions", "wordings", "question_wordings", "samples", "max_questions"]
        said_here += ["max_new_tokens", "temperature", "top_p", "stop"]
        refuse_idle(
            context,
            (responses is None, "responses made here, without --responses", said_here),
            (temperature > 0, "--temperature above 0", ["top_p"]),
            (bool(compare_with), "--compare", ["n_permutations"]),
        )
        from persona_circuits.circuit.storage import check_output_file, check_output_folder, replace_folder
        from persona_circuits.circuit.task import resolve
        from persona_circuits.persona.responses import Sampling, baseline_of, open_template, read_responses
        from persona_circuits.persona.streams import chosen_layer
        from persona_circuits.persona.vectors import geometry_of, persona_vectors, read_vectors, write_vectors

        plan: dict[str, Any] = {"wordings": wordings, "question_wordings": question_wordings, "samples": samples}
        plan |= {"max_questions": max_questions}
        sampling = Sampling(max_new_tokens, temperature, top_p, seed, texts_of(stop)).checked()
        others = [read_vectors(path) for path in compare_with or ()]
        said = None if responses is None else read_responses(responses)
        wanted, about = ((), {}) if said else exchanges_of(model, personas, questions, baseline, **plan)
        check_output_folder(out)
        check_output_folder(out / "cache")
        check_output_file(out / "journal.jsonl", makes_folder=True)
        kept.append(lambda: journalled(out))
        with progress_bars() as stage:
            loaded = load(stage, shipped_or(model), revision, device, dtype)
            at = chosen_layer(loaded.graph.n_layers, layer, layer_fraction)
            if said is None:
                made, record = respond_here(loaded, wanted, template, cue, sampling, out, batch_size, stage, stop)
                said, about = made.responses, record | {"sources": about}
            else:
                about = {"responses": str(responses)}
            form = open_template(template and resolve(template), loaded.tokenizer, cue=cue)
            reading = stage("reading the residual stream")
            found = persona_vectors(loaded, said, form, cache=out / "cache", batch_size=batch_size, progress=reading)
            geometry = geometry_of(found, at, baseline_of(found.personas, baseline))
            comparison = _compared(geometry, others, layer_fraction, n_permutations, seed) if others else None
            stage("files and figures")
            with replace_folder(out) as staging:
                write_vectors(geometry, about, staging, comparison=comparison)
        _print_vectors(geometry, comparison, out, about, as_json)


def _compared(geometry: Any, others: Sequence[Any], fraction: float | None, n_permutations: int, seed: int) -> Any:
    """This model's personas beside the others', each at the layer that it was studied at, or all at one fraction."""
    from persona_circuits.persona.streams import chosen_layer
    from persona_circuits.persona.vectors import StoredVectors, compare_models

    own = StoredVectors(geometry.vectors, geometry.layer, geometry.baseline).compared()
    layers = [None if fraction is None else chosen_layer(side.vectors.n_layers, None, fraction) for side in others]
    sides = [own, *(side.compared(at) for side, at in zip(others, layers, strict=True))]
    return compare_models(sides, n_permutations=n_permutations, seed=seed)


def _print_vectors(geometry: Any, comparison: Any, out: Path, about: dict[str, Any], as_json: bool) -> None:
    from persona_circuits.persona.vectors import report as files

    if as_json:
        typer.echo(json.dumps({"out": str(out), **files.vector_record(geometry, about, comparison)}))
        return
    found = geometry.vectors
    title = f"{len(found.personas)} persona vectors of {found.model} behind block {geometry.layer}, "
    title += f"{len(found.questions)} questions"
    print_table(title, files.TABLE, files.persona_rows(geometry), texts=3)
    print_table("by layer (* shown above)", files.LAYERS, files.layer_rows(geometry), texts=1)
    if comparison is not None:
        title = f"how alike models arrange {len(comparison.personas)} personas"
        print_table(title, files.COMPARED, files.comparison_rows(comparison), texts=1)
    for note in geometry.notes:
        say(f"note: {note}")
    say(f"written to  {out}/")


def steer(
    context: typer.Context,
    model: ModelOption = None,
    pairs: PairsOption = None,
    fit: Annotated[
        Path | None,
        typer.Option(
            "--fit", help="Pairs to fit directions on. (default: the train split, or the shipped train pairs)"
        ),
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option(
            help="personas, pooled, pair, readout, a folder of vectors, or FILE.safetensors:NAME[:ROW], as a probe's. "
            "(default: personas if all are fitted on, else pooled)"
        ),
    ] = None,
    toward: Annotated[str | None, typer.Option(help="With a folder of vectors: the persona to steer to.")] = None,
    away: Annotated[str | None, typer.Option(help="And the one to steer away from.")] = None,
    layers: Annotated[
        list[int] | None,
        typer.Option("--layer", help="Block, from 0, to add behind; may be repeated. (default: four, evenly)"),
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="All layers at once, not one at a time.")] = False,
    positions: Annotated[
        Literal["prompt-end", "all"], typer.Option(help="The prompt's last token and all after it, or all tokens.")
    ] = "prompt-end",
    strengths: Annotated[
        str, typer.Option(help="Above 0, apart by commas; each is used with both signs.")
    ] = "0.5,1,2,4",
    ablate: Annotated[bool, typer.Option(help="Also take the direction out, from each layer on.")] = True,
    n_controls: Annotated[int, typer.Option(help="Random directions of either kind to compare with.")] = 3,
    kl_bound: Annotated[float, typer.Option(help="Bound on the mean KL on neutral prompts, in nats.")] = 0.1,
    neutral: Annotated[
        Path | None,
        typer.Option(help="Neutral prompts, one a line. (default: the pairs' without the persona)"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Pairs to steer. (default: test, or all if no split is named)")
    ] = None,
    max_pairs: Annotated[int, typer.Option(help="Pairs to steer at most, evenly taken.")] = 48,
    generate: Annotated[int, typer.Option(min=0, help="Pairs whose prompts are continued, before and after.")] = 8,
    max_new_tokens: MaxNewOption = 48,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    stop: StopOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/steer"
    ),
    n_resamples: Annotated[int, typer.Option(help="Draws of the bootstraps.")] = 2000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    fitting: FittingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add a direction to the residual stream: persona effect, KL, flips against the required gain, what is said."""
    with errors_as_exit_codes():
        refuse_idle(
            context,
            (generate > 0, "--generate above 0", ["max_new_tokens", "temperature", "top_p", "stop"]),
            (temperature > 0, "--temperature above 0", ["top_p"]),
            (layers is None or len(set(layers)) > 1, "more than one --layer", ["together"]),
        )
        from dataclasses import replace

        from persona_circuits.circuit.storage import check_output_folder, replace_folder
        from persona_circuits.persona.data import examples_of
        from persona_circuits.persona.responses import Sampling
        from persona_circuits.persona.steering import (
            SteerOptions,
            generate_steered,
            some_pairs,
            study_steering,
            write_steering,
        )
        from persona_circuits.persona.streams import chosen_layer
        from persona_circuits.persona.vectors import default_kind

        numbers = numbers_of(strengths)
        sampling = Sampling(max_new_tokens, temperature, top_p, seed, texts_of(stop)).checked()
        name, named = model_name(model, pairs), named_two(toward, away)
        asked, fitted, splits = _steered_and_fitted(pairs, fit, split)
        plain = lines_of(neutral)
        check_output_folder(out)
        with progress_bars() as stage:
            loaded = load(stage, name, revision, device, dtype)
            n = loaded.graph.n_layers
            chosen = tuple(layers or (chosen_layer(n, None, share) for share in (0.25, 0.5, 0.75, 0.9)))
            options = SteerOptions(
                chosen,
                numbers,
                positions,
                together,
                ablate,
                n_controls,
                kl_bound,
                n_resamples,
                seed,
                batch_size,
            ).checked()
            here = examples_of(asked[0], loaded, split=splits[0], fitting=fitting)
            there = examples_of(fitted[0], loaded, split=splits[1], fitting=fitting)
            kind = direction or default_kind(there.examples, here.examples)
            study = study_steering(
                loaded,
                some_pairs(here, max_pairs),
                there,
                kind,
                options,
                toward=named,
                neutral=plain,
                progress=stage("steering"),
            )
            texts: Any = ()
            if generate:
                telling = stage("texts before and after")
                if stop is None and not loaded.tokenizer.chat_template:
                    sampling = replace(sampling, stop=("\n",))
                texts = generate_steered(
                    loaded, study, study.streams, n_pairs=generate, sampling=sampling, progress=telling
                )
            stage("files and figures")
            about = {"pairs": asked[1], "split": splits[0], "fitted_on": fitted[1], "fitting_split": splits[1]}
            with replace_folder(out) as staging:
                write_steering(study, texts, about, staging)
        _print_steering(study, texts, about, out, as_json)


def _steered_and_fitted(pairs: Path | None, fit: Path | None, split: str | None) -> Any:
    """The pairs to steer and those to fit on, with their names, and the split of each."""
    from persona_circuits.persona.data import load_items

    path, label = path_and_name(pairs, "datasets/pairs_test.jsonl")
    asked = load_items(path, label=label), label
    known = {item.pair.split for item in asked[0].items}
    steered = split or ("test" if "test" in known else "all")
    if fit is not None or pairs is None:
        path, label = path_and_name(fit, "datasets/pairs_train.jsonl")
        return asked, (load_items(path, label=label), label), (steered, "all")
    return asked, asked, (steered, "train" if "train" in known and steered != "train" else "all")


def _print_steering(study: Any, texts: Any, about: dict[str, Any], out: Path, as_json: bool) -> None:
    from persona_circuits.persona.steering import report as files

    if as_json:
        typer.echo(json.dumps({"out": str(out), **files.steering_record(study, texts, about)}))
        return
    title = f"steering {study.model} along {study.directions.kind}, {len(study.prompts)} pairs"
    print_table(f"{title}, at {study.options.positions}", files.TABLE, files.outcome_rows(study), texts=1)
    title = f"largest strength with KL within {study.options.kl_bound:g} nats"
    print_table(title, files.BOUNDS, files.bound_rows(study), texts=1)
    say_drawn(study.prompts.personas, study.prompts.questions)
    if texts:
        where = "+".join(map(str, texts[0].layers))
        title = f"{len(texts)} texts, steered behind layer {where}; perplexity is the unsteered model's"
        print_table(title, files.TEXTS, files.text_rows(texts), texts=1)
    for note in study.notes:
        say(f"note: {note}")
    say(f"written to  {out}/")
