"""Choices of what is said, and how."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.options import BatchSize, Option, PlainNumbers, check_choices, check_least

__all__ = ["LIMITS", "EndpointOptions", "Plan", "RatingOptions", "Sampling"]

LIMITS = ("max_tokens", "max_completion_tokens")


def _texts(given: list[str]) -> tuple[str, ...]:
    """Stop texts as they were meant: a shell makes it hard to give a line feed."""
    return tuple(text.replace("\\n", "\n") for text in given)


@dataclass(frozen=True)
class Sampling(PlainNumbers):
    """How responses are drawn. Temperature 0 takes the most likely token; ``stop`` ends a response and is left out."""

    max_new_tokens: Annotated[int, Option("Tokens of a response at most.")] = 48
    temperature: Annotated[float, Option("Sampling temperature; 0: the most likely token.")] = 0.7
    top_p: Annotated[float, Option("Sample among the tokens that hold this share.")] = 1.0
    seed: Annotated[int, Option("Seed of the responses.", min=0)] = 0
    stop: Annotated[
        tuple[str, ...],
        Option(
            "Text that ends a response; may be repeated. (default: \\n, none for chat)", given=list[str], read=_texts
        ),
    ] = ()

    def checked(self) -> Sampling:
        """These options, or an OptionError where a number is out of its range."""
        check_least(self, max_new_tokens=1, temperature=0, seed=0)
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top-p is {self.top_p:g}; it must be above 0 and at most 1")
        if not all(self.stop):
            raise OptionError("a stop text is empty; it would end every response before its first token")
        return self


@dataclass(frozen=True)
class Plan(PlainNumbers):
    """What is asked: how many wordings of everything, of how many questions, how often."""

    wordings: Annotated[int, Option("Wordings of each persona; 0: all.")] = 1
    question_wordings: Annotated[int, Option("Wordings of each question; 0: all.")] = 1
    samples: Annotated[int, Option("Responses to every prompt.")] = 1
    max_questions: Annotated[int | None, Option("Use only this many questions, the first ones.")] = None


@dataclass(frozen=True)
class EndpointOptions(PlainNumbers):
    """How an OpenAI-compatible endpoint is asked; its address and key are the environment's where they are None.

    ``timeout`` bounds each wait for the server, ``deadline`` an answer with all its tries, both in seconds.
    ``limit_field``: newer models of OpenAI know ``max_completion_tokens`` only, other servers mostly ``max_tokens``.
    """

    base_url: Annotated[str | None, Option("The endpoint's address. (default: $OPENAI_BASE_URL, else OpenAI's)")] = (
        field(default=None, repr=False)
    )
    api_key: Annotated[str | None, Option("Better left to $OPENAI_API_KEY: other users of a machine see options.")] = (
        field(default=None, repr=False)
    )
    concurrency: Annotated[int, Option("Requests to the endpoint at a time.")] = 8
    max_retries: Annotated[int, Option("Retries after status 429 or 5xx, or a lost connection.")] = 8
    timeout: Annotated[float, Option("Seconds to wait for an answer to begin or continue.")] = 120.0
    deadline: Annotated[float, Option("Seconds for the whole of an answer, with all tries; then it has failed.")] = (
        900.0
    )
    max_bytes: Annotated[int, Option("Largest reply in bytes; a longer one counts as failed.")] = 4 * 2**20
    limit_field: Annotated[str, Option("What the endpoint calls the limit of an answer's length.", choices=LIMITS)] = (
        "max_tokens"
    )

    def checked(self) -> EndpointOptions:
        """These options, or an OptionError where a number is out of its range."""
        check_choices(self)
        check_least(self, concurrency=1, max_retries=0, max_bytes=1)
        for name in ("timeout", "deadline"):
            if not 0 < getattr(self, name) <= threading.TIMEOUT_MAX:
                raise OptionError(
                    f"{name} is {getattr(self, name):g} s; it must be above 0, and no more than centuries"
                )
        return self


@dataclass(frozen=True)
class RatingOptions(PlainNumbers):
    """How responses are rated, by a model behind an endpoint or by likelihoods."""

    neutral: Annotated[str, Option("Text in the persona's place to compare with, offline.", name="--neutral-text")] = ""
    control: Annotated[bool, Option("Have each response rated as another persona's too.")] = True
    max_answer_tokens: Annotated[int, Option("Tokens of a rater's answer at most.", min=1)] = 16
    n_resamples: Annotated[int, Option("Draws of the bootstraps.")] = 2000
    seed: Annotated[int, Option("Seed of the bootstraps.", min=0)] = 0
    batch_size: BatchSize = 32
