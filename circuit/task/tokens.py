"""Texts as a tokenizer's ids, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

__all__ = [
    "Reader",
    "beyond_embedding",
    "lost_differences",
    "many_token_ids",
    "n_vocab_of",
    "prompt_faults",
    "token_ids",
    "token_offsets",
    "unknown_pieces",
    "without_end",
]


@runtime_checkable
class Reader(Protocol):
    """What encoding prompts needs of a model: a ``Model``, or a tokenizer with a name and a size."""

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def n_context(self) -> int | None: ...


def n_vocab_of(reader: Reader) -> int:
    """How many embeddings a model has, or as many as its tokenizer has tokens."""
    size = getattr(reader, "n_vocab", None)
    return len(reader.tokenizer) if size is None else int(size)


def token_ids(text: str, model: Reader) -> list[int]:
    """The tokenizer's own ids, special tokens as it adds them in front.

    Never a second BOS before one in the text, and nothing after the text: a model that reads EOS is done.
    """
    bos = model.tokenizer.bos_token
    has_own_bos = bool(bos) and text.startswith(bos)
    ids = list(model.tokenizer(text, add_special_tokens=not has_own_bos)["input_ids"])
    return without_end(ids, text, model.tokenizer)


def without_end(ids: list[int], text: str, tokenizer: Any) -> list[int]:
    """The ids without those that the tokenizer appends to every text, as with ``add_eos_token``."""
    if not ids or ids[-1] not in _ends(tokenizer):
        return ids
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    begin = next((i for i in range(len(ids) - len(plain) + 1) if ids[i : i + len(plain)] == plain), None)
    return ids if begin is None or not plain else ids[: begin + len(plain)]


def _ends(tokenizer: Any) -> set[int]:
    return {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}


def prompt_faults(ids: list[int], model: Reader) -> list[str]:
    """What is wrong with a prompt's ids: an extra BOS, more than the context holds, tokens without an embedding."""
    faults = []
    bos, eos = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        faults.append("a prompt starts with two BOS tokens; take one out of the text")
    elif bos is not None and bos != eos and (place := _inner_bos(ids, bos, eos)) is not None:
        faults.append(f"a prompt holds BOS inside, at token {place}; take it out of the text or the template")
    if model.n_context and len(ids) > model.n_context:
        faults.append(f"a prompt has {len(ids)} tokens, the model's context holds {model.n_context}")
    return faults + beyond_embedding(ids, model)


def _inner_bos(ids: Sequence[int], bos: int, eos: int | None) -> int | None:
    """The first place of a BOS after other tokens; each turn of a conversation may begin with one, once an EOS has
    ended the turn before it, whatever stands between the two (ChatML puts a line break there)."""
    ended = False
    for place, token in enumerate(ids):
        if token == bos and place and not ended:
            return place
        ended = token == eos or (ended and token != bos)
    return None


def beyond_embedding(ids: Sequence[int], model: Reader) -> list[str]:
    """Tokens of which the tokenizer knows and the model does not, as when they were added to the tokenizer alone."""
    size = getattr(model, "n_vocab", None)
    if size is None or not ids or max(ids) < size:
        return []
    return [
        f"token {model.tokenizer.convert_ids_to_tokens(token)} (id {token}) is beyond the model's {size:,} embeddings; "
        "use words that it has a token for, or resize its embeddings and train them"
        for token in sorted({token for token in ids if token >= size})
    ]


def lost_differences(prompts: Mapping[str, Sequence[int]], model: Reader) -> list[str]:
    """What some of the prompts say and others do not, and the tokenizer can only write as its unknown token.

    ``prompts`` are texts with their ids. Prompts that differ there only are one and the same to the model. Unknown
    tokens common to all, such as a template's letters, hide no difference and are allowed.
    """
    pieces = [{piece.strip() for piece in unknown_pieces(text, ids, model).values()} for text, ids in prompts.items()]
    lost = {piece for some in pieces for piece in some if not all(piece in other for other in pieces)}
    return [
        f"the tokenizer cannot write {piece[:40]!r}, in which prompts differ; use words (and case) that it knows"
        for piece in sorted(lost)
    ]


def unknown_pieces(text: str, ids: Sequence[int], model: Reader) -> dict[int, str]:
    """By their places the tokens that stand for text which the tokenizer cannot write, with that text.

    A tokenizer may use one token for what it does not know and for something that it does, such as a space; and one
    without offsets does not say which text a token stands for.
    """
    tokenizer = model.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in ids or not getattr(tokenizer, "is_fast", False):
        return {}
    offsets, unknown_text = token_offsets(text, ids, model), tokenizer.decode([unknown])
    pieces = {i: text[slice(*offsets[i])] for i, token in enumerate(ids) if token == unknown}
    return {i: piece for i, piece in pieces.items() if piece.strip() and piece != unknown_text}


def token_offsets(text: str, ids: Sequence[int], model: Reader) -> list[tuple[int, int]]:
    """The characters that each of the text's tokens stands for; ``ids`` are those of ``token_ids``."""
    variants = (
        model.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True) for special in (True, False)
    )
    n = len(ids)  # the tokenizer may append an EOS, which is not part of the text
    return next(variant["offset_mapping"][:n] for variant in variants if list(variant["input_ids"])[:n] == list(ids))


def many_token_ids(texts: Sequence[str], tokenizer: Any) -> dict[str, list[int]]:
    """The ids that ``token_ids`` gives each text, in two calls of the tokenizer."""
    if not getattr(tokenizer, "is_fast", False):
        return {}
    bos, ends = tokenizer.bos_token, _ends(tokenizer)
    ids_by_text: dict[str, list[int]] = {}
    for special in (True, False):
        some = [text for text in texts if (bool(bos) and text.startswith(bos)) != special]
        if some:
            read = tokenizer(some, add_special_tokens=special, return_attention_mask=False)["input_ids"]
            ids_by_text |= {text: list(ids) for text, ids in zip(some, read, strict=True)}
    ended = {text: ids for text, ids in ids_by_text.items() if ends.intersection(ids[-1:])}
    return ids_by_text | {text: without_end(ids, text, tokenizer) for text, ids in ended.items()}
