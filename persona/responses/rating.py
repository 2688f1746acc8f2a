"""How much of a persona shows in what was said: rated by a model behind an endpoint, or by the model itself, offline.

    autorater   a shipped prompt, a scale from 0 to 3, and an answer that is read strictly: one line
                ``Rating: N``. Anything else is counted as unparsable and is not guessed at.
    offline     log p(response | persona's prompt) - log p(response | neutral prompt), under the model,
                in nats; above zero the persona makes the response more likely. Beside it the same for
                the prompt of another persona, which must be lower if the number means anything.

The control of both is the rotation of personas: every response is also rated as if it were of
the next persona in the list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.storage import Kind, read_text
from persona_circuits.persona.data import Estimate, Template, two_way_mean
from persona_circuits.persona.responses.journal import Journal
from persona_circuits.persona.responses.likelihood import log_likelihoods
from persona_circuits.persona.responses.options import RatingOptions
from persona_circuits.persona.responses.plan import Exchange, Response, rendered
from persona_circuits.persona.responses.remote import Chat, Endpoint, ask
from persona_circuits.persona.responses.tokens import SpokenTokens, spoken_tokens

__all__ = [
    "PersonaRating",
    "Rated",
    "Ratings",
    "parsed",
    "rate_offline",
    "rate_remotely",
    "rater_prompt",
    "summarise_ratings",
]

HIGHEST = 3
RATER_PROMPT = Kind("rater prompt")
ANSWER = re.compile(r"\s*Rating:[ \t]*([0-3])[ \t]*\s*")
FIELDS = ("persona", "question", "reply")


@dataclass(frozen=True)
class Rated:
    """One response's rating and that of the same response as another persona's; None where there is none.

    Of the autorater 0 to 3, and ``said`` is its own answer. Offline the difference in log
    likelihood to the neutral prompt, over the whole response, in nats; ``per_token`` the same
    per token.
    """

    response: Response
    rating: float | None
    control: float | None
    per_token: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Ratings:
    """All ratings. ``unparsable`` are answers that were no rating, ``failures`` requests without an answer,
    ``left_out`` responses that could not be rated; with their counts."""

    rater: str
    unit: str
    rated: tuple[Rated, ...]
    unparsable: int
    failures: Mapping[str, int]
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class PersonaRating:
    """One persona: mean rating, mean of the control, and share of responses rated above their own control."""

    persona: str
    n: int
    rating: Estimate | None
    control: Estimate | None
    above_control: float | None
    unrated: int


def rater_prompt(path: str | Path | None = None) -> str:
    """The rater's prompt, the shipped one without a path; it has the fields {persona}, {question} and {reply}.

    Raises:
        FileError: the file cannot be read.
        OptionError: a field is missing.
    """
    if path is None:
        return resources.files("persona_circuits.persona.responses").joinpath("rater_prompt.txt").read_text("utf-8")
    text = read_text(path, RATER_PROMPT)
    if missing := [name for name in FIELDS if f"{{{name}}}" not in text]:
        raise OptionError(f"rater prompt {path} has no {{{missing[0]}}}; it needs {', '.join(FIELDS)}")
    return text


def parsed(answer: str) -> int | None:
    """The rating in ``Rating: N``, N from 0 to 3, with nothing else in the answer but white space; else None."""
    match = ANSWER.fullmatch(answer)
    return int(match[1]) if match else None


def rate_remotely(
    place: Endpoint,
    responses: Sequence[Response],
    journal: Journal,
    *,
    prompt: str | None = None,
    control: bool = RatingOptions.control,
    max_tokens: int = RatingOptions.max_answer_tokens,
    progress: Progress | None = None,
) -> Ratings:
    """Ratings by a model behind an endpoint, at temperature 0; the baseline's empty persona is not rated.

    Returns
    -------
    A rating for every response with a persona, as the judge gave it.

    Raises
    ------
    EndpointError
        The endpoint ends the run.
    TaskError
        There is no response of a persona with a text.
    """
    text = rater_prompt() if prompt is None else prompt
    own = [r for r in responses if r.exchange.system]
    if not own:
        raise TaskError("there is no response of a persona with a text; nothing can be rated")
    rotated = _rotated(own) if control else {}
    asked = [_rating_request(text, r.exchange.system, r, max_tokens) for r in own]
    beside = [
        _rating_request(text, rotated[r.exchange.persona].system, r, max_tokens)
        for r in own
        if r.exchange.persona in rotated
    ]
    result = ask(place, [*asked, *beside], journal, progress=progress)
    answers = ["" if r is None else r.text for r in result.answers]
    values = [None if r is None else parsed(r.text) for r in result.answers]
    unparsable = sum(r is not None and parsed(r.text) is None for r in result.answers)
    controls = iter(values[len(own) :])
    rated = []
    for r, answer, value in zip(own, answers, values, strict=False):
        other = next(controls) if r.exchange.persona in rotated else None
        rated.append(Rated(r, _number(value), _number(other), said=answer))
    skipped = len(responses) - len(own)
    left_out = {"no persona's text": skipped} if skipped else {}
    return Ratings(
        f"{place.model} at {place.address}", f"0 to {HIGHEST}", tuple(rated), unparsable, result.failures, left_out
    )


def rate_offline(
    model: Model,
    responses: Sequence[Response],
    template: Template,
    *,
    neutral: str = RatingOptions.neutral,
    batch_size: int = RatingOptions.batch_size,
    progress: Progress | None = None,
) -> Ratings:
    """Ratings by the model's own likelihoods; ``neutral`` is the text in the place of the persona's, none by default.

    The responses' own token ids are used where they are this model's.

    Returns
    -------
    A rating for every response that can be rated, in the ratings' ``unit``.

    Raises
    ------
    OptionError
        This model's responses were made with another template.
    TaskError
        There is no response that can be rated.
    """
    own = [response for response in responses if response.exchange.system and response.exchange.system != neutral]
    _same_template(own, model, template)
    rotated = _rotated(own)
    rows: list[SpokenTokens] = []
    kept: list[Response] = []
    left_out = {"no persona's text": len(responses) - len(own), "empty": 0, "not in this tokenizer's words": 0}
    left_out["too long"] = 0
    for response in own:
        texts = [response.exchange.system, neutral]
        texts += [rotated[response.exchange.persona].system] if response.exchange.persona in rotated else []
        variants = [_under(response, text, model, template) for text in texts]
        if any(row.start >= len(row.ids) for row in variants) or not response.text.strip():
            left_out["empty"] += 1
        elif any(row.unknown for row in variants):
            left_out["not in this tokenizer's words"] += 1
        elif model.n_context and max(len(row.ids) for row in variants) > model.n_context:
            left_out["too long"] += 1
        else:
            kept.append(response)
            rows += variants
    if not kept:
        raise TaskError(
            "there is no response of a persona with a text that is not empty, is in the tokenizer's words and fits the "
            "model's context"
        )
    sums = [values.sum() for values in log_likelihoods(model, rows, batch_size=batch_size, progress=progress)]
    rated, place = [], 0
    for response in kept:
        width = 3 if response.exchange.persona in rotated else 2
        with_persona, plain, *other = sums[place : place + width]
        n_tokens = len(rows[place].ids) - rows[place].start
        control = float(other[0] - plain) if other else None
        rated.append(Rated(response, float(with_persona - plain), control, float(with_persona - plain) / n_tokens))
        place += width
    counts = {why: count for why, count in left_out.items() if count}
    return Ratings(model.name, "nats", tuple(rated), 0, {}, counts)


def summarise_ratings(
    ratings: Ratings, *, n_resamples: int = RatingOptions.n_resamples, seed: int = RatingOptions.seed
) -> tuple[PersonaRating, tuple[PersonaRating, ...]]:
    """Over all personas, and per persona, or condition of steered texts, in order of appearance, with bootstraps."""
    by = [r.response.condition or r.response.exchange.persona for r in ratings.rated]
    names = list(dict.fromkeys(by))

    def summary(name: str, own: Sequence[Rated]) -> PersonaRating:
        compared = [r for r in own if r.rating is not None and r.control is not None]
        above = [(r.rating or 0.0) > (r.control or 0.0) for r in compared]
        return PersonaRating(
            name,
            len(own),
            _mean(own, [r.rating for r in own], n_resamples, seed),
            _mean(own, [r.control for r in own], n_resamples, seed),
            float(np.mean(above)) if above else None,
            sum(r.rating is None for r in own),
        )

    by_name = [[r for r, own in zip(ratings.rated, by, strict=True) if own == name] for name in names]
    return summary("all", ratings.rated), tuple(summary(name, own) for name, own in zip(names, by_name, strict=True))


def _rotated(responses: Sequence[Response]) -> dict[str, Exchange]:
    """For each persona an exchange of the next one in the list, the first after the last; none of a single persona."""
    first: dict[str, Exchange] = {}
    for response in responses:
        first.setdefault(response.exchange.persona, response.exchange)
    names = list(first)
    return {name: first[names[(i + 1) % len(names)]] for i, name in enumerate(names)} if len(names) > 1 else {}


def _rating_request(text: str, persona: str, response: Response, max_tokens: int) -> Chat:
    values = {"persona": persona, "question": response.exchange.user, "reply": response.text.strip()}
    # In one pass: a reply that holds "{question}" must not be filled in again.
    filled = re.sub(r"\{(persona|question|reply)\}", lambda match: values[match[1]], text)
    return Chat((("user", filled),), max_tokens, temperature=0.0)


def _under(response: Response, system: str, model: Model, template: Template) -> SpokenTokens:
    """The response after the prompt of another persona's text; its own ids are kept where they are this model's."""
    if system == response.exchange.system:
        return spoken_tokens(response, model, template)
    exchange = replace(response.exchange, system=system)
    plain = replace(response, exchange=exchange, prompt_ids=(), ids=(), fingerprint="")
    if not (response.ids and response.fingerprint == model.fingerprint):
        return spoken_tokens(plain, model, template)
    before = spoken_tokens(replace(plain, text=""), model, template).ids
    return SpokenTokens((*before, *response.ids), len(before))


def _same_template(responses: Sequence[Response], model: Model, template: Template) -> None:
    for response in responses:
        if response.prompt and response.fingerprint == model.fingerprint:
            here = rendered(template, response.exchange.system, response.exchange.user)
            if here != response.prompt:
                raise OptionError(
                    f"the responses were made with another template: theirs gives {response.prompt!r}, this one "
                    f"{here!r}; give the same --template and --cue"
                )


def _mean(own: Sequence[Rated], values: Sequence[float | None], n_resamples: int, seed: int) -> Estimate | None:
    known = [(value, r.response.exchange) for value, r in zip(values, own, strict=True) if value is not None]
    if not known:
        return None
    personas, questions = [item.persona for _, item in known], [item.question for _, item in known]
    return two_way_mean([value for value, _ in known], personas, questions, n_resamples=n_resamples, seed=seed)


def _number(value: int | None) -> float | None:
    return None if value is None else float(value)
