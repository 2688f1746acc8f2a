"""Prompts as a tokenizer sees them: ids, the tokens of each part, and candidates as they follow a prompt.

The rules are those of ``circuit.task.batching``, by its own functions: no second BOS, and a
candidate is exactly one token more after the very prompt that it follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from persona_circuits.circuit import task
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.model import load_reader
from persona_circuits.circuit.task import Reader, answer_id, resolve, token_ids, token_offsets, unknown_pieces
from persona_circuits.persona.data.templates import PARTS, Prompt

__all__ = ["Encoded", "TokenizerOnly", "candidates", "encode_prompt", "load_tokenizer", "prompt_faults"]

OPENING = "([{\"'“‘«"
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")


@dataclass(frozen=True)
class TokenizerOnly:
    """What reading prompts asks of a model, without its weights: the tokenizer, how much the context holds, and words.

    ``n_vocab`` is the number of its embeddings.
    """

    tokenizer: Any
    name: str = "the model"
    n_context: int | None = None
    n_vocab: int | None = None


@dataclass(frozen=True)
class Encoded:
    """A prompt's ids and the tokens, ``[start, end)``, of its spans; ``unknown`` is the first word it cannot write."""

    ids: tuple[int, ...]
    tokens: Mapping[str, tuple[int, int]]
    unknown: str = ""


@dataclass(frozen=True)
class Candidates:
    """Options as text that continues a prompt, with their one token, and what is wrong with the others.

    Where options are sets of ``forms`` they have no token of their own (-1); ``notes`` say which forms are left out.
    """

    ids: Mapping[str, int]
    faults: Mapping[str, tuple[str, str]]  # reason and sentence
    forms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def key(self) -> dict[str, Any]:
        """What a row of a pair file says of them."""
        return {"forms": {name: list(some) for name, some in self.forms.items()}} if self.forms else {}


def load_tokenizer(name: str, *, revision: str | None = None) -> TokenizerOnly:
    """The tokenizer of a model folder or hub name; the weights stay where they are.

    Raises:
        ModelError: there is no tokenizer, or it cannot be loaded.
    """
    config, tokenizer = load_reader(resolve(name), revision=revision, need_tokenizer=True)
    # Transformers would warn of the first prompt that is too long; here that is a reason in the report.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    inner = getattr(config, "text_config", None) or config
    sizes = [size for key in CONTEXT_KEYS if isinstance(size := getattr(inner, key, None), int)]
    n_vocab = getattr(inner, "vocab_size", None)
    return TokenizerOnly(
        tokenizer,
        name=name,
        n_context=sizes[0] if sizes else None,
        n_vocab=n_vocab if isinstance(n_vocab, int) else None,
    )


def encode_prompt(prompt: Prompt, reader: Reader) -> Encoded:
    """Ids of a prompt and the tokens of its spans.

    A token that lies in two spans belongs to the first of them; prefix and cue take the tokens
    before the first and after the last part, so a BOS that the tokenizer adds is prefix.

    Raises:
        OptionError: the tokenizer does not say which characters a token stands for.
    """
    tokenizer, ids = reader.tokenizer, token_ids(prompt.text, reader)
    if not getattr(tokenizer, "is_fast", False):
        raise OptionError("this tokenizer gives no offsets, which the spans need; use the model's fast tokenizer")
    tokens = _token_spans(prompt.spans, token_offsets(prompt.text, ids, reader))
    pieces = unknown_pieces(prompt.text, ids, reader)
    parts = (i for name in PARTS for i in range(*tokens[name]))
    return Encoded(tuple(ids), tokens, next((pieces[i] for i in parts if i in pieces), ""))


def prompt_faults(encoded: Encoded, reader: Reader) -> list[str]:
    """What ``circuit.task`` finds wrong with these ids, such as a second BOS, or more than the context holds."""
    return task.prompt_faults(list(encoded.ids), reader)


def candidates(prompts: Sequence[tuple[Prompt, Encoded]], options: Sequence[str], reader: Reader) -> Candidates:
    """Every option as one token after every one of the prompts, or the fault that it has.

    An option gets a leading space unless the prompt ends in white space or an opening bracket.
    """
    lead = leads(prompts[0][0])
    ids: dict[str, int] = {}
    faults: dict[str, tuple[str, str]] = {}
    for option in options:
        answer = f"{lead}{option}"
        wrong: list[str] = []
        tokens = {answer_id(prompt.text, list(encoded.ids), answer, reader, wrong) for prompt, encoded in prompts}
        token = tokens.pop() if len(tokens) == 1 else None
        if wrong:
            faults[answer] = ("candidate merges" if "merges" in wrong[0] else "candidate of several tokens", wrong[0])
        elif token is None or token == reader.tokenizer.unk_token_id:
            faults[answer] = ("unknown word", f"the tokenizer cannot write the candidate {answer!r}")
        elif token in ids.values():
            faults[answer] = ("candidates of one token", f"{answer!r} is the same token as another candidate")
        else:
            ids[answer] = token
    return Candidates(ids, faults)


def leads(prompt: Prompt) -> str:
    """The space between a prompt and an option, or nothing."""
    return "" if prompt.text[-1:].isspace() or prompt.text[-1:] in OPENING else " "


def _token_spans(
    spans: Mapping[str, tuple[int, int]], offsets: Sequence[tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    parts = sorted((spans[name], name) for name in PARTS if spans[name][0] < spans[name][1])
    tokens: dict[str, tuple[int, int]] = {}
    cursor = 0
    for (start, end), name in parts:
        first = next((i for i in range(cursor, len(offsets)) if offsets[i][1] > start), len(offsets))
        cursor = next((i for i in range(first, len(offsets)) if offsets[i][0] >= end), len(offsets))
        tokens[name] = (first, cursor)
    head = tokens[parts[0][1]][0]
    missing = {name: (head, head) for name in PARTS if name not in tokens}
    return {"prefix": (0, head), **missing, **tokens, "cue": (cursor, len(offsets))}
