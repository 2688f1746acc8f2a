"""What the model says: respond, rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import BatchSize, Option
from persona_circuits.commands.index import result_folder
from persona_circuits.commands.options import MODEL, JsonOption, Loading, OutOption
from persona_circuits.commands.signature import Only, Without, with_options
from persona_circuits.commands.terminal import (
    errors_as_exit_codes,
    load,
    print_table,
    progress_bars,
    refuse_idle,
    say,
    shipped_or,
    show,
)
from persona_circuits.persona.responses.options import EndpointOptions, Plan, RatingOptions, Sampling

__all__ = ["Asked", "Form", "check_journal", "exchanges_of", "respond_locally"]

ASKING = ("base_url", "api_key", "concurrency", "max_retries", "timeout", "deadline", "max_bytes", "limit_field")
"""Options of asking an endpoint, by their parameters' names."""
RUNNING = ("device", "dtype", "revision", "batch_size")
"""Of running a model here."""


@dataclass(frozen=True)
class Asked(Plan):
    """The personas and questions, how often each is asked, and the baseline persona."""

    personas: Annotated[
        Path | None,
        Option(
            "JSON Lines, CSV, or assistant-axis JSON (file or folder). (default: the shipped model's; with --model "
            "datasets/vector_personas.jsonl)"
        ),
    ] = None
    questions: Annotated[
        Path | None,
        Option(
            "JSON Lines, CSV, or assistant-axis JSON. (default: the shipped model's; with --model "
            "datasets/vector_questions.jsonl)"
        ),
    ] = None
    baseline: Annotated[str | None, Option("Persona to compare with. (default: 'default', or no persona at all)")] = (
        None
    )


@dataclass(frozen=True)
class Form:
    """The model that answers, how a prompt is written, and how many are run at a time."""

    model: Annotated[str | None, Option(MODEL)] = None
    template: Annotated[
        str | None, Option("raw, chat, or a file. (default: chat if the tokenizer has one, else raw)")
    ] = None
    cue: Annotated[str | None, Option("What the response follows. (default: the template's)")] = None
    batch_size: BatchSize = 32

    def opened(self, tokenizer: Any) -> Any:
        """The template of that name, for this tokenizer."""
        from persona_circuits.circuit.task import resolve
        from persona_circuits.persona.responses import open_template

        return open_template(self.template and resolve(self.template), tokenizer, cue=self.cue)


@dataclass(frozen=True)
class Endpoint(EndpointOptions):
    """A model behind an endpoint, and how to query it."""

    endpoint_model: Annotated[str | None, Option("Ask this model of an OpenAI-compatible endpoint.")] = None
    system_turn: Annotated[
        bool, Option("Send the persona as the endpoint's system message, or before the user's text.")
    ] = True
    rater_prompt: Annotated[
        Path | None, Option("The rater's prompt, with {persona}, {question}, {reply}. (default: our own)")
    ] = None


@dataclass(frozen=True)
class Rated(RatingOptions):
    """What is rated, and how."""

    responses: Annotated[Path, Option("responses.jsonl of the respond command, or lines like it.")] = Path(
        "runs/responses/responses.jsonl"
    )


@with_options
def respond(
    context: typer.Context,
    *,
    asked: Asked,
    form: Form,
    out: OutOption = Path("runs/responses"),
    sampling: Sampling,
    asking: Annotated[Endpoint, Without("rater_prompt")],
    loading: Annotated[Loading, Only("device", "dtype", "revision")],
    as_json: JsonOption = False,
) -> None:
    """Have a model, here or behind an endpoint, answer questions as every persona; goes on where it was stopped."""
    with errors_as_exit_codes() as kept:
        refuse_idle(
            context,
            (asking.endpoint_model is not None, "--endpoint-model", [*ASKING, "system_turn"]),
            (asking.endpoint_model is None, "a model that is run here", ["cue", *RUNNING]),
            (sampling.temperature > 0, "--temperature above 0", ["top_p"]),
        )
        _check_one_model(asking, form)
        wanted, sources = exchanges_of(form.model or asking.endpoint_model, asked)
        sampling = sampling.checked()
        check_journal(out, kept)
        if asking.endpoint_model:
            responses, about = _respond_remotely(asking.endpoint_model, asking, wanted, out, sampling)
        else:
            with progress_bars() as stage:
                loaded = load(stage, shipped_or(form.model), loading, lambda reader: form.opened(reader.tokenizer))
                responses, about = respond_locally(loaded, wanted, form, sampling, out, stage)
        _show_responses(context, responses, about | {"sources": sources}, out, asked.baseline, as_json)


def _respond_remotely(model: str, asking: Endpoint, wanted: Any, out: Path, sampling: Sampling) -> Any:
    """The responses of a model behind an endpoint, and what they were made with."""
    from persona_circuits.persona.responses import Journal, endpoint, respond_remotely

    place = endpoint(model, asking)
    with progress_bars() as stage, Journal(out / "journal.jsonl") as journal:
        settings: dict[str, Any] = {"sampling": sampling, "system_turn": asking.system_turn}
        responses = respond_remotely(place, wanted, journal, **settings, progress=stage(f"asking {model}"))
    return responses, {"model": model, "address": place.address, "system_turn": asking.system_turn}


@with_options
def rate(
    context: typer.Context,
    *,
    options: Rated,
    form: Annotated[Form, Only("model", "template", "cue")],
    asking: Annotated[Endpoint, Without("system_turn")],
    out: OutOption = Path("runs/rate"),
    loading: Annotated[Loading, Only("device", "dtype", "revision")],
    as_json: JsonOption = False,
) -> None:
    """Rate how much of a persona shows in responses: by a model behind an endpoint, or offline by likelihoods."""
    with errors_as_exit_codes() as kept:
        endpoint_options = [*ASKING, "rater_prompt", "control", "max_answer_tokens"]
        refuse_idle(
            context,
            (asking.endpoint_model is not None, "--endpoint-model", endpoint_options),
            (asking.endpoint_model is None, "a model that is run here", ["cue", "neutral", *RUNNING]),
        )
        from persona_circuits.persona.responses import rating, rating_record, read_responses, write_ratings

        _check_one_model(asking, form)
        responses = read_responses(options.responses)
        check_journal(out, kept)
        with progress_bars() as stage:
            if asking.endpoint_model:
                ratings, about = _rate_remotely(asking.endpoint_model, asking, responses, options, out, stage)
            else:
                loaded = load(stage, shipped_or(form.model), loading, lambda reader: form.opened(reader.tokenizer))
                ratings, about = _rate_locally(loaded, responses, options, form, stage)
            about = {"responses": str(options.responses), **about}
            whole, groups = rating.summarise_ratings(ratings, n_resamples=options.n_resamples, seed=options.seed)
            stage("files and figures")
            summary = (whole, *groups)
            with result_folder(context, out, str(about["model"])) as staging:
                write_ratings(ratings, summary, about, staging)
        show(as_json, lambda: rating_record(ratings, summary, about), lambda: _print_ratings(ratings, summary), out=out)


def _rate_remotely(
    model: str, asking: Endpoint, responses: Any, options: RatingOptions, out: Path, stage: Callable[[str], Any]
) -> Any:
    """Ratings by a model behind an endpoint, and what they were made with."""
    from persona_circuits.persona.responses import Journal, endpoint, rating

    place, prompt = endpoint(model, asking), rating.rater_prompt(asking.rater_prompt)
    with Journal(out / "journal.jsonl") as journal:
        settings: dict[str, Any] = {
            "prompt": prompt,
            "control": options.control,
            "max_tokens": options.max_answer_tokens,
        }
        ratings = rating.rate_remotely(place, responses, journal, **settings, progress=stage(f"asking {model}"))
    return ratings, {"model": model, "address": place.address, "prompt": prompt}


def _rate_locally(model: Any, responses: Any, options: RatingOptions, form: Form, stage: Callable[[str], Any]) -> Any:
    """Ratings by a local model's likelihoods, and what they were made with."""
    from persona_circuits.persona.responses import rating

    template = form.opened(model.tokenizer)
    about = {"model": model.name, "fingerprint": model.fingerprint, "template": template.about()}
    settings = {"neutral": options.neutral, "batch_size": options.batch_size, "progress": stage("likelihoods")}
    return rating.rate_offline(model, responses, template, **settings), about | {"neutral": options.neutral}


def _check_one_model(asking: Endpoint, form: Form) -> None:
    if asking.endpoint_model and (form.model or form.template):
        raise OptionError("--endpoint-model asks an endpoint, --model and --template are of a local one: choose")


def check_journal(out: Path, kept: list[Callable[[], str]]) -> None:
    """Check that the folder and its journal can be written; when stopped, say what the journal holds."""
    from persona_circuits.circuit.storage import check_output_file, check_output_folder

    check_output_folder(out)
    check_output_file(out / "journal.jsonl", makes_folder=True)
    kept.append(lambda: journalled(out))


def _print_ratings(ratings: Any, summary: Any) -> None:
    from persona_circuits.persona.responses import rating_table

    print_table(rating_table(ratings, summary))
    if ratings.unparsable:
        say(f"unparsable  {ratings.unparsable:,} answers of the rater are no rating; they are not guessed at")
    for kind, counts in (("failed", ratings.failures), ("left out", ratings.left_out)):
        for reason, count in counts.items():
            say(f"{kind:<11} {count:,}: {reason}")


def exchanges_of(model: str | None, asked: Asked) -> Any:
    """The exchanges, and the files they are made from: the shipped model's own, or for any other the general ones."""
    from persona_circuits.circuit.task import resolve
    from persona_circuits.persona.data import read_personas, read_questions
    from persona_circuits.persona.responses import baseline_of, exchanges

    kind = "" if model is None else "vector_"
    names = [
        str(path) if path else f"datasets/{kind}{what}.jsonl"
        for path, what in ((asked.personas, "personas"), (asked.questions, "questions"))
    ]
    people, questions = read_personas(resolve(names[0])), read_questions(resolve(names[1]))
    plan = {field.name: getattr(asked, field.name) for field in fields(Plan)}
    wanted = exchanges(people, questions, **plan)
    baseline_of([item.persona for item in wanted], asked.baseline)
    return wanted, dict(zip(("personas", "questions"), names, strict=True)) | plan


def respond_locally(
    loaded: Any, wanted: Any, form: Form, sampling: Sampling, out: Path, stage: Callable[[str], Any]
) -> Any:
    """The local model's responses, kept in the folder's journal, and what they were made with.

    A response that follows no chat template ends with its line, unless other texts were asked for.
    """
    from persona_circuits.persona.responses import Journal
    from persona_circuits.persona.responses import respond as answer

    template = form.opened(loaded.tokenizer)
    if not sampling.stop and not template.chat:
        sampling = replace(sampling, stop=("\n",))
    with Journal(out / "journal.jsonl") as journal:
        settings = {"sampling": sampling, "batch_size": form.batch_size, "progress": stage("responses")}
        responses = answer(loaded, wanted, template, journal, **settings)
    about = {"model": loaded.name, "fingerprint": loaded.fingerprint, "template": template.about()}
    return responses, about | {"sampling": asdict(sampling)}


def _show_responses(
    context: typer.Context, responses: Any, about: dict[str, Any], out: Path, baseline: str | None, as_json: bool
) -> None:
    from persona_circuits.persona.responses import summarise, write_response_study

    with result_folder(context, out, about["model"]) as staging:
        write_response_study(responses, about, staging, baseline=baseline)
    summaries = summarise(responses.responses, baseline)
    counts = {"made": responses.made, "remembered": responses.remembered, "failures": dict(responses.failures)}
    record = {"n": len(responses.responses), **counts, **about}
    show(as_json, lambda: record, lambda: _print_responses(responses, about["model"], summaries), out=out)


def _print_responses(responses: Any, model: str, summaries: Any) -> None:
    from persona_circuits.persona.responses import summary_table

    print_table(summary_table(f"{len(responses.responses):,} responses of {model}", summaries))
    say(f"made now    {responses.made:,}; remembered {responses.remembered:,}")
    for reason, count in responses.failures.items():
        say(f"failed      {count:,}: {reason}")


def journalled(out: Path) -> str:
    """How many answers a stopped command leaves for the next run."""
    path = out / "journal.jsonl"
    n = path.read_bytes().count(b"\n") if path.is_file() else 0
    return f"{n:,} answers are kept in {path}" if n else ""
