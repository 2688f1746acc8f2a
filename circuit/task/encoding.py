"""A task as token ids, checked against a model's tokenizer.

Both prompts of a pair must have the same number of tokens, unless they are aligned on the right, and every answer must
be exactly one token *in its context*. All faults are reported at once, with their lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from persona_circuits.circuit.choices import ALIGNMENTS
from persona_circuits.circuit.errors import OptionError, TaskError, listed
from persona_circuits.circuit.task.aligning import shared_ends
from persona_circuits.circuit.task.form_reading import options_of, read_forms
from persona_circuits.circuit.task.forms import Forms
from persona_circuits.circuit.task.pairs import PromptPair, Span, Task
from persona_circuits.circuit.task.tokens import (
    Reader,
    beyond_embedding,
    lost_differences,
    many_token_ids,
    n_vocab_of,
    prompt_faults,
    token_ids,
)

__all__ = ["ALIGNMENTS", "ALIKE", "Row", "answer_id", "encode", "fitting", "misfit", "with_swap_rows"]

ALIKE = "clean and corrupt are the same tokens, so nothing can differ between them; take the pair out"


@dataclass(frozen=True)
class Row:
    """A pair as token ids; ``index`` is the place among all rows; ``neutral`` is empty where the file has none.

    ``id`` is the pair's, for messages. Where the options are sets of ``forms``, answers count from the size of the
    vocabulary on, in the order of ``forms.names``, and every prompt ends in ``forms.forced``.
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
    forms: Forms | None = None

    @property
    def prompts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Clean and corrupt, without what stands after them."""
        n = 0 if self.forms is None else len(self.forms.forced)
        return self.clean[: len(self.clean) - n], self.corrupt[: len(self.corrupt) - n]


def encode(task: Task, model: Reader, *, align: str = "equal", alike: bool = False) -> tuple[Row, ...]:
    """Token ids of every pair, checked.

    Parameters
    ----------
    align
        ``"equal"`` requires the same number of tokens in both prompts of a pair; with ``"right"`` they may differ in
        length if they share an ending.
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
        context, an answer stands on both sides or twice on one, both prompts are the same tokens, a prompt has an extra
        BOS, is longer than the model's context or holds a token without an embedding, a span lies outside its prompt.
        All are listed.
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
    message = listed(
        f"{source} does not fit {name}: {unfit:,} of {n:,} pairs do not, {len(faults):,} fault(s):", faults
    )
    left = n - unfit
    way = f"to go on with the {left:,} that fit, use --fitting, or write them with inspect --write-fitting"
    return f"{message}\n  {way}" if left else message


def _encoded(task: Task, model: Reader, align: str, alike: bool) -> tuple[list[Row | None], list[str]]:
    """A row for every pair, None where it does not fit, and all faults."""
    if align not in ALIGNMENTS:
        raise OptionError(f"--align {align!r} is not one of {', '.join(ALIGNMENTS)}")
    faults: list[str] = []
    rows: list[Row | None] = []
    for start in range(0, len(task.pairs), AT_ONCE):
        some = task.pairs[start : start + AT_ONCE]
        known = many_token_ids(_texts(some), model.tokenizer)
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
    """The texts that ``_encode_pair`` needs as ids, each once: prompts, and prompts with every answer after them."""
    ends = [("", *(form for _, some in options_of(pair) for form in some)) for pair in pairs]
    prompts = [(pair.clean, pair.corrupt, *([pair.neutral] if pair.neutral else [])) for pair in pairs]
    return list(dict.fromkeys(a + b for some, own in zip(prompts, ends, strict=True) for a in some for b in own))


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
        return _added(ids, read(prompt + text), prompt, text, model, own_faults)

    clean, corrupt = read(pair.clean), read(pair.corrupt)
    neutral = read(pair.neutral) if pair.neutral else []
    own_faults = [fault for ids in (clean, corrupt, neutral) for fault in prompt_faults(ids, model)]
    own_faults += (lost := lost_differences({pair.clean: clean, pair.corrupt: corrupt}, model))
    if clean == corrupt and not alike and not lost:
        own_faults.append(ALIKE)
    own_faults += _length_faults(clean, {"corrupt": corrupt} | ({"neutral": neutral} if neutral else {}), align)
    own_faults += _span_faults(((clean, pair.spans), (corrupt, pair.corrupt_spans)))
    own_faults += _other_tokens(pair, clean, corrupt)
    prompts = [(pair.clean, clean), (pair.corrupt, corrupt), *([(pair.neutral, neutral)] if neutral else [])]
    forms: Forms | None = None
    sides: list[list[int | None]] = [[-1], [-1]]
    if pair.forms is None:
        sides = [[added(pair.clean, clean, text) for text in texts] for texts in (pair.answers, pair.wrong_answers)]
        for prompt, ids in prompts[1:]:
            for text in (*pair.answers, *pair.wrong_answers):
                added(prompt, ids, text)
        own_faults += _side_faults(sides, model)
    else:
        forms = read_forms(pair, [(ids, prompt, read) for prompt, ids in prompts], model, own_faults)
    if own_faults:
        faults += [f"{pair.place}: {fault}" for fault in dict.fromkeys(own_faults)]
        return None
    answers, wrong = (tuple(i for i in side if i is not None) for side in sides)
    spans = pair.spans or _spans_by_difference(clean, corrupt)
    corrupt_spans = pair.corrupt_spans or _spans_by_difference(corrupt, clean)
    row = Row(index, tuple(clean), tuple(corrupt), answers, wrong, tuple(neutral), spans, corrupt_spans, pair.id)
    return row if forms is None else _with_forms(row, forms, len(pair.answers), model)


def _with_forms(row: Row, forms: Forms, n_answers: int, model: Reader) -> Row:
    """The row with the tokens after its prompts that its forms are read from."""
    n_vocab, forced = n_vocab_of(model), forms.forced
    ids = tuple(range(n_vocab, n_vocab + len(forms.names)))
    more: dict[str, Any] = {
        side: (*ids_of, *forced) for side in ("clean", "corrupt", "neutral") if (ids_of := getattr(row, side))
    }
    spans: dict[str, Any] = {
        name: (*getattr(row, name), *([Span("forms", start, start + len(forced))] if forced else []))
        for name, start in (("spans", len(row.clean)), ("corrupt_spans", len(row.corrupt)))
    }
    return replace(row, answers=ids[:n_answers], wrong_answers=ids[n_answers:], forms=forms, **more, **spans)


def _length_faults(clean: list[int], others: Mapping[str, list[int]], align: str) -> list[str]:
    faults = []
    for name, other in others.items():
        if len(other) != len(clean) and align == "equal":
            faults.append(
                f"the clean prompt has {len(clean)} tokens and the {name} one {len(other)}; "
                "choose wordings of equal length, or use --align right"
            )
        elif len(other) != len(clean) and not shared_ends(clean, other)[1]:
            faults.append(f"the clean and the {name} prompt do not end in the same token; there is nothing to align on")
    return faults


def _span_faults(sides: Iterable[tuple[list[int], tuple[Span, ...]]]) -> list[str]:
    return [
        f"part {span.name!r} ends at token {span.end} of a prompt of {len(ids)}; these spans are of another tokenizer"
        for ids, spans in sides
        for span in spans
        if span.end > len(ids)
    ]


def _side_faults(sides: Sequence[list[int | None]], model: Reader) -> list[str]:
    """Tokens that stand on both sides, or twice on one."""
    faults = []
    if both := {i for i in sides[0] if i is not None} & set(sides[1]):
        names = ", ".join(repr(model.tokenizer.decode([i])) for i in sorted(both))
        faults.append(f"{names} is both an answer and a wrong answer")
    for side in sides:
        there = [i for i in side if i is not None]
        faults += [
            f"answer {model.tokenizer.decode([i])!r} stands {there.count(i)} times on one side; name every token once"
            for i in dict.fromkeys(there)
            if there.count(i) > 1
        ]
    return faults


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


def answer_id(prompt: str, ids: list[int], answer: str, model: Reader, faults: list[str]) -> int | None:
    """The one token that ``answer`` adds after ``prompt``; anything else is a fault."""
    return _added(ids, token_ids(prompt + answer, model), prompt, answer, model, faults)


def _added(ids: list[int], joined: list[int], prompt: str, answer: str, model: Reader, faults: list[str]) -> int | None:
    """The one token that ``joined``, the ids of prompt and answer, has after the prompt's."""
    if joined[: len(ids)] != ids:
        faults.append(f"answer {answer!r} merges with the prompt's last token; {_unmerged(prompt, answer)}")
    elif len(joined) != len(ids) + 1:
        pieces = model.tokenizer.convert_ids_to_tokens(joined[len(ids) :])
        shown = ", ".join(map(repr, pieces))
        faults.append(f"answer {answer!r} is {len(pieces)} tokens here ({shown}), expected one; or give it 'forms'")
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
