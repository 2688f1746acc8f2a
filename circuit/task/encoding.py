"""A task as token ids, checked against a model's tokenizer.

Both prompts of a pair must have the same number of tokens, unless they are aligned on the
right, and every answer must be exactly one token *in its context*. All faults are reported
at once, with their lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from persona_circuits.circuit.choices import ALIGNMENTS
from persona_circuits.circuit.errors import OptionError, TaskError, listed
from persona_circuits.circuit.task.aligning import shared_ends
from persona_circuits.circuit.task.pairs import PromptPair, Span, Task

__all__ = [
    "ALIGNMENTS",
    "ALIKE",
    "Reader",
    "Row",
    "answer_id",
    "beyond_embedding",
    "encode",
    "fitting",
    "lost_differences",
    "misfit",
    "prompt_faults",
    "token_ids",
    "token_offsets",
    "unknown_pieces",
    "with_swap_rows",
    "without_end",
]

ALIKE = "clean and corrupt are the same tokens, so nothing can differ between them; take the pair out"


@runtime_checkable
class Reader(Protocol):
    """What reading prompts asks of a model; a ``Model`` is one, and so is a tokenizer with a name and a size."""

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def n_context(self) -> int | None: ...


@dataclass(frozen=True)
class Row:
    """A pair as token ids; ``index`` is the place among all rows; ``neutral`` is empty where the file has none.

    ``id`` is the pair's, for messages.
    """

    index: int
    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]
    neutral: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    corrupt_spans: tuple[Span, ...] = ()
    id: str = ""


def encode(task: Task, model: Reader, *, align: str = "equal", alike: bool = False) -> tuple[Row, ...]:
    """Token ids of every pair, checked.

    Parameters
    ----------
    align
        ``"equal"`` wants the same number of tokens in both prompts of a pair; with ``"right"`` they may differ in
        length, as long as they end alike.
    alike
        Both prompts of a pair may be the same tokens.

    Returns
    -------
    A row per pair, in their order.

    Raises
    ------
    OptionError
        There is no such alignment.
    TaskError
        Prompts of a pair differ in length, or have no common end to be aligned on, an answer is not one token in its
        context, an answer stands on both sides or twice on one, both prompts are the same tokens, a prompt has a BOS
        too many, is longer than the model's context or holds a token without an embedding, a span lies outside its
        prompt. All are listed.
    """
    rows, faults = _encoded(task, model, align, alike)
    if faults:
        raise TaskError(misfit(task.source, model.name, len(rows), rows.count(None), faults))
    return tuple(row for row in rows if row is not None)


def fitting(task: Task, model: Reader, *, align: str = "equal") -> Task:
    """The pairs that fit a model; ``unfit`` counts the others.

    Raises:
        OptionError: there is no such alignment.
        TaskError: none fits; what is wrong is listed.
    """
    rows, faults = _encoded(task, model, align, alike=False)
    kept = tuple(pair for pair, row in zip(task.pairs, rows, strict=True) if row is not None)
    if not kept:
        raise TaskError(misfit(task.source, model.name, len(rows), len(rows), faults))
    return replace(task, pairs=kept, unfit=task.unfit + len(rows) - len(kept))


def misfit(source: str, name: str, n: int, unfit: int, faults: Sequence[str]) -> str:
    """The message on pairs that do not fit: how many, what is wrong, and how to go on with the others."""
    said = listed(f"{source} does not fit {name}: {unfit:,} of {n:,} pairs do not, {len(faults):,} fault(s):", faults)
    left = n - unfit
    way = f"to go on with the {left:,} that fit, use --fitting, or write them with inspect --write-fitting"
    return f"{said}\n  {way}" if left else said


def _encoded(task: Task, model: Reader, align: str, alike: bool) -> tuple[list[Row | None], list[str]]:
    """A row for every pair, None where it does not fit, and all faults."""
    if align not in ALIGNMENTS:
        raise OptionError(f"--align {align!r} is not one of {', '.join(ALIGNMENTS)}")
    faults: list[str] = []
    rows: list[Row | None] = []
    for start in range(0, len(task.pairs), AT_ONCE):
        some = task.pairs[start : start + AT_ONCE]
        known = _many_token_ids(_texts(some), model.tokenizer)
        rows += [_encode_pair(start + i, pair, model, known, align, alike, faults) for i, pair in enumerate(some)]
    return rows, faults


def with_swap_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Every row followed by itself seen from persona B, so that the generic prior cancels in the mean.

    Returns
    -------
    Twice as many rows; the two directions of pair i are rows 2 i and 2 i + 1.
    """
    return tuple(
        replace(row, index=2 * row.index + turn, **(_swapped(row) if turn else {})) for row in rows for turn in (0, 1)
    )


def _swapped(row: Row) -> dict[str, Any]:
    return {
        "clean": row.corrupt,
        "corrupt": row.clean,
        "answers": row.wrong_answers,
        "wrong_answers": row.answers,
        "spans": row.corrupt_spans,
        "corrupt_spans": row.spans,
    }


AT_ONCE = 2000
"""Pairs whose texts are tokenized together."""


def _texts(pairs: Sequence[PromptPair]) -> list[str]:
    """What ``_encode_pair`` asks the ids of, each once: the prompts, and the prompts with every answer behind them."""
    ends = [("", *pair.answers, *pair.wrong_answers) for pair in pairs]
    prompts = [(pair.clean, pair.corrupt, *([pair.neutral] if pair.neutral else [])) for pair in pairs]
    return list(dict.fromkeys(a + b for some, own in zip(prompts, ends, strict=True) for a in some for b in own))


def _many_token_ids(texts: Sequence[str], tokenizer: Any) -> dict[str, list[int]]:
    """The ids that ``token_ids`` gives each text, in two calls of the tokenizer."""
    if not getattr(tokenizer, "is_fast", False):
        return {}
    bos, ends = tokenizer.bos_token, _ends(tokenizer)
    found: dict[str, list[int]] = {}
    for special in (True, False):
        some = [text for text in texts if (bool(bos) and text.startswith(bos)) != special]
        if some:
            read = tokenizer(some, add_special_tokens=special, return_attention_mask=False)["input_ids"]
            found |= {text: list(ids) for text, ids in zip(some, read, strict=True)}
    ended = {text: ids for text, ids in found.items() if ends.intersection(ids[-1:])}
    return found | {text: without_end(ids, text, tokenizer) for text, ids in ended.items()}


def _encode_pair(
    index: int,
    pair: PromptPair,
    model: Reader,
    known: Mapping[str, list[int]],
    align: str,
    alike: bool,
    faults: list[str],
) -> Row | None:
    """The row of a pair; ``known`` are the ids of texts that were tokenized before."""

    def read(text: str) -> list[int]:
        return ids if (ids := known.get(text)) is not None else token_ids(text, model)

    def added(prompt: str, ids: list[int], text: str) -> int | None:
        return _added(ids, read(prompt + text), prompt, text, model, found)

    clean, corrupt = read(pair.clean), read(pair.corrupt)
    neutral = read(pair.neutral) if pair.neutral else []
    found = [fault for ids in (clean, corrupt, neutral) for fault in prompt_faults(ids, model)]
    found += (lost := lost_differences({pair.clean: clean, pair.corrupt: corrupt}, model))
    if clean == corrupt and not alike and not lost:
        found.append(ALIKE)
    found += _length_faults(clean, {"corrupt": corrupt} | ({"neutral": neutral} if neutral else {}), align)
    found += _span_faults(((clean, pair.spans), (corrupt, pair.corrupt_spans)))
    found += _other_tokens(pair, clean, corrupt)
    sides = [[added(pair.clean, clean, text) for text in texts] for texts in (pair.answers, pair.wrong_answers)]
    for prompt, ids in ((pair.corrupt, corrupt), *([(pair.neutral, neutral)] if neutral else [])):
        for text in (*pair.answers, *pair.wrong_answers):
            added(prompt, ids, text)
    found += _side_faults(sides, model)
    if found:
        faults += [f"{pair.place}: {fault}" for fault in dict.fromkeys(found)]
        return None
    answers, wrong = (tuple(i for i in side if i is not None) for side in sides)
    spans = pair.spans or _spans_by_difference(clean, corrupt)
    corrupt_spans = pair.corrupt_spans or _spans_by_difference(corrupt, clean)
    return Row(index, tuple(clean), tuple(corrupt), answers, wrong, tuple(neutral), spans, corrupt_spans, pair.id)


def _length_faults(clean: list[int], others: Mapping[str, list[int]], align: str) -> list[str]:
    found = []
    for name, other in others.items():
        if len(other) != len(clean) and align == "equal":
            found.append(
                f"the clean prompt has {len(clean)} tokens and the {name} one {len(other)}; "
                "choose wordings of equal length, or use --align right"
            )
        elif len(other) != len(clean) and not shared_ends(clean, other)[1]:
            found.append(f"the clean and the {name} prompt do not end in the same token; there is nothing to align on")
    return found


def _span_faults(sides: Iterable[tuple[list[int], tuple[Span, ...]]]) -> list[str]:
    return [
        f"part {span.name!r} ends at token {span.end} of a prompt of {len(ids)}; these spans are of another tokenizer"
        for ids, spans in sides
        for span in spans
        if span.end > len(ids)
    ]


def _side_faults(sides: Sequence[list[int | None]], model: Reader) -> list[str]:
    """Tokens that stand on both sides, or twice on one."""
    found = []
    if both := {i for i in sides[0] if i is not None} & set(sides[1]):
        names = ", ".join(repr(model.tokenizer.decode([i])) for i in sorted(both))
        found.append(f"{names} is both an answer and a wrong answer")
    for side in sides:
        there = [i for i in side if i is not None]
        found += [
            f"answer {model.tokenizer.decode([i])!r} stands {there.count(i)} times on one side; name every token once"
            for i in dict.fromkeys(there)
            if there.count(i) > 1
        ]
    return found


def _spans_by_difference(ids: list[int], other: list[int]) -> tuple[Span, ...]:
    """The parts of a prompt whose file names none: what differs, what is before and after it, and the last token."""
    begin, end = shared_ends(ids, other)
    last = len(ids) - 1
    marks = (("before", 0, begin), ("contrast", begin, len(ids) - end), ("after", len(ids) - end, last))
    spans = [Span(name, start, min(stop, last)) for name, start, stop in marks if start < min(stop, last)]
    return (*spans, Span("last", last, last + 1))


def _other_tokens(pair: PromptPair, clean: list[int], corrupt: list[int]) -> list[str]:
    """A persona contrast must change nothing but the persona, where the file says where that is."""
    if pair.persona_a == pair.persona_b:
        return []
    outside = []
    for ids, spans in ((clean, pair.spans), (corrupt, pair.corrupt_spans)):
        persona = next((span for span in spans if span.name == "persona"), None)
        if persona is None:
            return []
        outside.append(ids[: persona.start] + ids[persona.end :])
    return [] if outside[0] == outside[1] else ["clean and corrupt differ outside the persona; ask the same question"]


def token_ids(text: str, model: Reader) -> list[int]:
    """The tokenizer's own ids, special tokens as it adds them in front.

    Never a second BOS before one in the text, and nothing behind the text: a model that reads EOS is done.
    """
    bos = model.tokenizer.bos_token
    has_own_bos = bool(bos) and text.startswith(bos)
    ids = list(model.tokenizer(text, add_special_tokens=not has_own_bos)["input_ids"])
    return without_end(ids, text, model.tokenizer)


def without_end(ids: list[int], text: str, tokenizer: Any) -> list[int]:
    """The ids less those that the tokenizer appends to every text, as with ``add_eos_token``."""
    if not ids or ids[-1] not in _ends(tokenizer):
        return ids
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    begin = next((i for i in range(len(ids) - len(plain) + 1) if ids[i : i + len(plain)] == plain), None)
    return ids if begin is None or not plain else ids[: begin + len(plain)]


def _ends(tokenizer: Any) -> set[int]:
    return {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}


def prompt_faults(ids: list[int], model: Reader) -> list[str]:
    """What is wrong with a prompt's ids: a BOS too many, more than the context holds, tokens without an embedding."""
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

    ``prompts`` are texts with their ids. Prompts that differ there only are one and the same to the model. What all
    of them hold, such as a template's letters, takes no difference away and is let pass.
    """
    pieces = [{one.strip() for one in unknown_pieces(text, ids, model).values()} for text, ids in prompts.items()]
    lost = {one for some in pieces for one in some if not all(one in other for other in pieces)}
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
    offsets, said = token_offsets(text, ids, model), tokenizer.decode([unknown])
    pieces = {i: text[slice(*offsets[i])] for i, token in enumerate(ids) if token == unknown}
    return {i: piece for i, piece in pieces.items() if piece.strip() and piece != said}


def token_offsets(text: str, ids: Sequence[int], model: Reader) -> list[tuple[int, int]]:
    """The characters that each of the text's tokens stands for; ``ids`` are those of ``token_ids``."""
    variants = (
        model.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True) for special in (True, False)
    )
    n = len(ids)  # the tokenizer may append an EOS, which is none of the text's
    return next(variant["offset_mapping"][:n] for variant in variants if list(variant["input_ids"])[:n] == list(ids))


def answer_id(prompt: str, ids: list[int], answer: str, model: Reader, faults: list[str]) -> int | None:
    """The one token that ``answer`` adds behind ``prompt``; anything else is a fault."""
    return _added(ids, token_ids(prompt + answer, model), prompt, answer, model, faults)


def _added(ids: list[int], joined: list[int], prompt: str, answer: str, model: Reader, faults: list[str]) -> int | None:
    """The one token that ``joined``, the ids of prompt and answer, has behind the prompt's."""
    if joined[: len(ids)] != ids:
        faults.append(f"answer {answer!r} merges with the prompt's last token; {_unmerged(prompt, answer)}")
    elif len(joined) != len(ids) + 1:
        pieces = model.tokenizer.convert_ids_to_tokens(joined[len(ids) :])
        faults.append(f"answer {answer!r} is {len(pieces)} tokens here ({', '.join(map(repr, pieces))}), expected one")
    elif beyond := beyond_embedding(joined[-1:], model):
        faults += [f"answer {answer!r}: {fault}" for fault in beyond]
    else:
        return joined[-1]
    return None


def _unmerged(prompt: str, answer: str) -> str:
    """What to do about an answer that merges with the prompt; a tokenizer may keep spaces at the ends of words."""
    if not answer[:1].isspace():
        return "start it with a space or change the cue"
    if prompt[-1:].isspace():
        return "the prompt ends in a space and the answer starts with one: leave one of them out"
    return "this tokenizer keeps a space with the word before it: move the answer's space to the end of the prompt"
