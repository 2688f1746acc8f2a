"""What the model, or one behind an endpoint, says; and its ratings."""

from persona_circuits.persona.responses.generate import continuations, respond, respond_remotely
from persona_circuits.persona.responses.journal import Journal
from persona_circuits.persona.responses.likelihood import log_likelihoods, perplexity, repetition
from persona_circuits.persona.responses.plan import (
    Exchange,
    Response,
    Responses,
    Said,
    Sampling,
    baseline_of,
    exchanges,
    open_template,
    rendered,
)
from persona_circuits.persona.responses.rating import (
    Rated,
    Ratings,
    parsed,
    rate_offline,
    rate_remotely,
    rater_prompt,
    summarise_ratings,
)
from persona_circuits.persona.responses.rating_report import rating_figures, rating_record, rating_rows, write_ratings
from persona_circuits.persona.responses.remote import Chat, EndpointError, ask, endpoint
from persona_circuits.persona.responses.report import (
    read_responses,
    summarise,
    summary_rows,
    write_response_study,
    write_responses,
)
from persona_circuits.persona.responses.scrubbing import PART, bare_address, scrubbed, secrets_of
from persona_circuits.persona.responses.tokens import SpokenTokens, spoken_tokens

__all__ = [
    "PART",
    "Chat",
    "EndpointError",
    "Exchange",
    "Journal",
    "Rated",
    "Ratings",
    "Response",
    "Responses",
    "Said",
    "Sampling",
    "SpokenTokens",
    "ask",
    "bare_address",
    "baseline_of",
    "continuations",
    "endpoint",
    "exchanges",
    "log_likelihoods",
    "open_template",
    "parsed",
    "perplexity",
    "rate_offline",
    "rate_remotely",
    "rater_prompt",
    "rating_figures",
    "rating_record",
    "rating_rows",
    "read_responses",
    "rendered",
    "repetition",
    "respond",
    "respond_remotely",
    "scrubbed",
    "secrets_of",
    "spoken_tokens",
    "summarise",
    "summarise_ratings",
    "summary_rows",
    "write_ratings",
    "write_response_study",
    "write_responses",
]
