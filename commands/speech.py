"""What the model says: respond, rate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.commands.options import (
    BaselineOption,
    BatchOption,
    ConcurrencyOption,
    DeviceOption,
    DtypeOption,
    EndpointOption,
    JsonOption,
    KeyOption,
    LimitOption,
    MaxNewOption,
    MaxQuestionsOption,
    ModelOption,
    PersonasOption,
    QuestionsOption,
    QuestionWordingsOption,
    RetriesOption,
    SamplesOption,
    StopOption,
    TemperatureOption,
    TemplateOption,
    TimeoutOption,
    TopPOption,
    UrlOption,
    WordingsOption,
)
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    load,
    print_table,
    progress_bars,
    refuse_idle,
    say,
    shipped_or,
    texts_of,
)

__all__ = [
    "exchanges_of",
    "journalled",
    "respond_here",
]

DeadlineOption = Annotated[
    float, typer.Option("--deadline", help="Seconds for the whole of an answer, with all tries; then it has failed.")
]
BytesOption = Annotated[int, typer.Option("--max-bytes", help="Bytes of a reply at most; then it has failed.")]
ASKING = ("base_url", "api_key", "concurrency", "max_retries", "timeout", "deadline", "max_bytes", "limit_field")
"""Options of asking an endpoint, by their parameters' names."""
RUNNING = ("device", "dtype", "revision", "batch_size")
"""Of running a model here."""


def respond(
    context: typer.Context,
    model: ModelOption = None,
    personas: PersonasOption = None,
    questions: QuestionsOption = None,
    template: TemplateOption = None,
    cue: Annotated[str | None, typer.Option(help="What the response follows. (default: the template's)")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/responses"
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
    endpoint_model: EndpointOption = None,
    base_url: UrlOption = None,
    api_key: KeyOption = None,
    concurrency: ConcurrencyOption = 8,
    max_retries: RetriesOption = 8,
    timeout: TimeoutOption = 120.0,
    deadline: DeadlineOption = 900.0,
    max_bytes: BytesOption = 4 * 2**20,
    limit_field: LimitOption = "max_tokens",
    system_turn: Annotated[bool, typer.Option(help="Persona as system turn of an endpoint, or before the user's.")] = (
        True
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the responses.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Have a model, here or behind an endpoint, answer questions as every persona; goes on where it was stopped."""
    with errors_as_exit_codes() as kept:
        refuse_idle(
            context,
            (endpoint_model is not None, "--endpoint-model", [*ASKING, "system_turn"]),
            (endpoint_model is None, "a model that is run here", ["cue", *RUNNING]),
            (temperature > 0, "--temperature above 0", ["top_p"]),
        )
        from persona_circuits.circuit.errors import OptionError
        from persona_circuits.circuit.storage import check_output_file, check_output_folder
        from persona_circuits.persona.responses import Journal, Sampling, endpoint, respond_remotely

        if endpoint_model and (model or template):
            raise OptionError("--endpoint-model asks an endpoint, --model and --template are of a local one: choose")
        plan: dict[str, Any] = {"wordings": wordings, "question_wordings": question_wordings, "samples": samples}
        plan |= {"max_questions": max_questions}
        wanted, sources = exchanges_of(model or endpoint_model, personas, questions, baseline, **plan)
        sampling = Sampling(max_new_tokens, temperature, top_p, seed, texts_of(stop)).checked()
        check_output_folder(out)
        check_output_file(out / "journal.jsonl", makes_folder=True)
        kept.append(lambda: journalled(out))
        if endpoint_model:
            place = endpoint(
                endpoint_model,
                base_url=base_url,
                key=api_key,
                concurrency=concurrency,
                max_retries=max_retries,
                timeout=timeout,
                deadline=deadline,
                max_bytes=max_bytes,
                limit=limit_field,
            )
            with progress_bars() as stage, Journal(out / "journal.jsonl") as journal:
                tell = stage(f"asking {endpoint_model}")
                found = respond_remotely(
                    place, wanted, journal, sampling=sampling, system_turn=system_turn, progress=tell
                )
            about = {"model": endpoint_model, "address": place.address, "system_turn": system_turn}
        else:
            with progress_bars() as stage:
                loaded = load(stage, shipped_or(model), revision, device, dtype)
                found, about = respond_here(loaded, wanted, template, cue, sampling, out, batch_size, stage, stop)
        _write_responses(found, about | {"sources": sources}, out, baseline, as_json)


def rate(
    context: typer.Context,
    responses: Annotated[
        Path, typer.Option("--responses", help="responses.jsonl of the respond command, or lines like it.")
    ] = Path("runs/responses/responses.jsonl"),
    model: Annotated[
        str | None,
        typer.Option("--model", help="Rate offline by this model's own likelihoods. (default: the shipped model)"),
    ] = None,
    template: TemplateOption = None,
    cue: Annotated[str | None, typer.Option(help="What the response follows. (default: the template's)")] = None,
    neutral: Annotated[str, typer.Option(help="Text in the persona's place to compare with, offline.")] = "",
    endpoint_model: EndpointOption = None,
    rater_prompt: Annotated[
        Path | None, typer.Option("--rater-prompt", help="Has {persona}, {question}, {reply}. (default: our own)")
    ] = None,
    control: Annotated[bool, typer.Option(help="Have each response rated as another persona's too.")] = True,
    max_answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a rater's answer at most.")] = 16,
    base_url: UrlOption = None,
    api_key: KeyOption = None,
    concurrency: ConcurrencyOption = 8,
    max_retries: RetriesOption = 8,
    timeout: TimeoutOption = 120.0,
    deadline: DeadlineOption = 900.0,
    max_bytes: BytesOption = 4 * 2**20,
    limit_field: LimitOption = "max_tokens",
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")] = Path(
        "runs/rate"
    ),
    n_resamples: Annotated[int, typer.Option(help="Draws of the bootstraps.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstraps.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Rate how much of a persona shows in responses: by a model behind an endpoint, or offline by likelihoods."""
    with errors_as_exit_codes() as kept:
        refuse_idle(
            context,
            (endpoint_model is not None, "--endpoint-model", [*ASKING, "rater_prompt", "control", "max_answer_tokens"]),
            (endpoint_model is None, "a model that is run here", ["cue", "neutral", *RUNNING]),
        )
        from persona_circuits.circuit.errors import OptionError
        from persona_circuits.circuit.storage import check_output_file, check_output_folder, replace_folder
        from persona_circuits.circuit.task import resolve
        from persona_circuits.persona.responses import (
            Journal,
            endpoint,
            open_template,
            rating,
            read_responses,
            write_ratings,
        )

        if endpoint_model and (model or template):
            raise OptionError("--endpoint-model asks an endpoint, --model and --template are of a local one: choose")
        said = read_responses(responses)
        check_output_folder(out)
        check_output_file(out / "journal.jsonl", makes_folder=True)
        kept.append(lambda: journalled(out))
        about: dict[str, Any] = {"responses": str(responses)}
        with progress_bars() as stage:
            if endpoint_model:
                place = endpoint(
                    endpoint_model,
                    base_url=base_url,
                    key=api_key,
                    concurrency=concurrency,
                    max_retries=max_retries,
                    timeout=timeout,
                    deadline=deadline,
                    max_bytes=max_bytes,
                    limit=limit_field,
                )
                prompt = rating.rater_prompt(rater_prompt)
                about |= {"model": endpoint_model, "address": place.address, "prompt": prompt}
                with Journal(out / "journal.jsonl") as journal:
                    tell = stage(f"asking {endpoint_model}")
                    found = rating.rate_remotely(
                        place,
                        said,
                        journal,
                        prompt=prompt,
                        control=control,
                        max_tokens=max_answer_tokens,
                        progress=tell,
                    )
            else:
                loaded = load(stage, shipped_or(model), revision, device, dtype)
                form = open_template(template and resolve(template), loaded.tokenizer, cue=cue)
                about |= {"model": loaded.name, "fingerprint": loaded.fingerprint, "template": form.about()}
                about |= {"neutral": neutral}
                tell = stage("likelihoods")
                found = rating.rate_offline(loaded, said, form, neutral=neutral, batch_size=batch_size, progress=tell)
            whole, each = rating.summarise_ratings(found, n_resamples=n_resamples, seed=seed)
            stage("files and figures")
            with replace_folder(out) as staging:
                write_ratings(found, (whole, *each), about, staging)
        _print_ratings(found, (whole, *each), about, out, as_json)


def _print_ratings(found: Any, summary: Any, about: dict[str, Any], out: Path, as_json: bool) -> None:
    from persona_circuits.persona.responses import rating_record, rating_rows
    from persona_circuits.persona.responses.rating_report import TABLE

    if as_json:
        typer.echo(json.dumps({"out": str(out), **rating_record(found, summary, about)}))
        return
    title = f"{len(found.rated):,} responses rated by {found.rater} ({found.unit})"
    print_table(title, TABLE, rating_rows(summary), texts=1)
    if found.unparsable:
        say(f"unparsable  {found.unparsable:,} answers of the rater are no rating; they are not guessed at")
    for kind, counts in (("failed", found.failures), ("left out", found.left_out)):
        for reason, count in counts.items():
            say(f"{kind:<11} {count:,}: {reason}")
    say(f"written to  {out}/")


def exchanges_of(
    model: str | None, personas: Path | None, questions: Path | None, baseline: str | None, **plan: Any
) -> Any:
    """What is asked, and of which files it is made: the shipped model's own, or the general ones of any other."""
    from persona_circuits.circuit.task import resolve
    from persona_circuits.persona.data import read_personas, read_questions
    from persona_circuits.persona.responses import baseline_of, exchanges

    kind = "" if model is None else "vector_"
    names = [
        str(given) if given else f"datasets/{kind}{what}.jsonl"
        for given, what in ((personas, "personas"), (questions, "questions"))
    ]
    people, asked = read_personas(resolve(names[0])), read_questions(resolve(names[1]))
    wanted = exchanges(people, asked, **plan)
    baseline_of([item.persona for item in wanted], baseline)
    return wanted, dict(zip(("personas", "questions"), names, strict=True)) | plan


def respond_here(
    loaded: Any,
    wanted: Any,
    template: str | None,
    cue: str | None,
    sampling: Any,
    out: Path,
    batch_size: int,
    stage: Callable[[str], Any],
    stop: list[str] | None,
) -> Any:
    """The local model's responses, kept in the folder's journal, and what they were made with."""
    from dataclasses import asdict, replace

    from persona_circuits.circuit.task import resolve
    from persona_circuits.persona.responses import Journal, open_template
    from persona_circuits.persona.responses import respond as answer

    form = open_template(template and resolve(template), loaded.tokenizer, cue=cue)
    if stop is None and not form.chat:
        sampling = replace(sampling, stop=("\n",))
    with Journal(out / "journal.jsonl") as journal:
        tell = stage("responses")
        found = answer(loaded, wanted, form, journal, sampling=sampling, batch_size=batch_size, progress=tell)
    about = {"model": loaded.name, "fingerprint": loaded.fingerprint, "template": form.about()}
    return found, about | {"sampling": asdict(sampling)}


def _write_responses(found: Any, about: dict[str, Any], out: Path, baseline: str | None, as_json: bool) -> None:
    from persona_circuits.circuit.storage import replace_folder
    from persona_circuits.persona.responses import summarise, summary_rows, write_response_study
    from persona_circuits.persona.responses.report import TABLE

    with replace_folder(out) as staging:
        write_response_study(found, about, staging, baseline=baseline)
    summaries = summarise(found.responses, baseline)
    counts = {"made": found.made, "remembered": found.remembered, "failures": dict(found.failures)}
    if as_json:
        typer.echo(json.dumps({"out": str(out), "n": len(found.responses), **counts, **about}))
        return
    print_table(f"{len(found.responses):,} responses of {about['model']}", TABLE, summary_rows(summaries), texts=2)
    say(f"made now    {found.made:,}; remembered {found.remembered:,}")
    for reason, count in found.failures.items():
        say(f"failed      {count:,}: {reason}")
    say(f"written to  {out}/")


def journalled(out: Path) -> str:
    """How many answers a stopped command leaves for the next."""
    path = out / "journal.jsonl"
    n = path.read_bytes().count(b"\n") if path.is_file() else 0
    return f"{n:,} answers are kept in {path}" if n else ""
