"""Where a response's tokens stand in what the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.task import token_ids, unknown_pieces
from persona_circuits.persona.data import Template
from persona_circuits.persona.responses.plan import Response, rendered

__all__ = ["SpokenTokens", "spoken_tokens"]


@dataclass(frozen=True)
class SpokenTokens:
    """A prompt and its response as one row of token ids; the response's tokens are ``[start, len(ids))``.

    ``merged`` says that the response's first token holds the end of the prompt, too, which
    happens where a text from elsewhere is appended to a prompt that does not end at a token's edge.
    ``unknown`` is text of the response that the tokenizer cannot write, so that the model does not see it.
    """

    ids: tuple[int, ...]
    start: int
    merged: bool = False
    unknown: str = ""


def spoken_tokens(
    response: Response, model: Model, template: Template | None = None, *, anew: bool = False
) -> SpokenTokens:
    """The row of ids that ends with the response, and where the response begins in it.

    What this very model said is taken as the tokens that it said, after the prompt that it was said to; with
    ``anew`` that of the template stands in where it is another one. Other texts are tokenized with their prompt as
    one text; the response begins with the first token that holds any of its characters, so its first token is always
    in.

    Raises:
        OptionError: the response is not this model's and there is no template; or the tokenizer
            gives no offsets where they are needed.
    """
    prompt = "" if template is None else rendered(template, response.exchange.system, response.exchange.user)
    own = bool(response.prompt_ids) and response.fingerprint == model.fingerprint
    if own and (not anew or prompt == response.prompt):
        return SpokenTokens((*response.prompt_ids, *response.ids), len(response.prompt_ids))
    if template is None:
        raise OptionError(
            f"the responses are of {response.model or 'another model'}, not of {model.name}; "
            "give --template to put them after prompts of this one"
        )
    before, whole = token_ids(prompt, model), token_ids(prompt + response.text, model)
    merged = whole[: len(before)] != before
    start = _first_token_of(prompt, response.text, whole, model) if merged else len(before)
    unknown = unknown_pieces(prompt + response.text, whole, model)
    return SpokenTokens(tuple(whole), start, merged, next((text for at, text in unknown.items() if at >= start), ""))


def _first_token_of(prompt: str, text: str, ids: Sequence[int], model: Model) -> int:
    """The first token that reaches beyond the prompt's characters."""
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise OptionError("this tokenizer gives no offsets, which the response's span needs; use the fast tokenizer")
    for special in (True, False):
        read = tokenizer(prompt + text, add_special_tokens=special, return_offsets_mapping=True)
        if list(read["input_ids"])[: len(ids)] == list(ids):
            ends = [end for _, end in read["offset_mapping"][: len(ids)]]
            return next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
    raise AssertionError("the ids were made by this tokenizer, one way or the other")
