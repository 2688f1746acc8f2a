"""A task: prompt pairs read from a file, checked against a model's tokenizer, and batched.

Two formats are read. JSON Lines, one pair a line, with the keys ``clean``,
``corrupt``, ``answers``, ``wrong_answers`` and, if wanted, ``id``, ``persona_a``,
``persona_b``, ``question``, ``split``; and auto-circuit's JSON, ``{"prompts": [...]}``
with the same four keys in every prompt. ``neutral``, the question under no persona,
and ``spans``, the named parts of the prompts, are read where they are there. Other
keys are kept out of the way.

Both prompts of a pair must have the same number of tokens, unless they are aligned
on the right, and every answer must be exactly one token *in its context*. All
faults of a file are reported at once, with their lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuit.alignment import alignment, shared_ends
from circuit.errors import OptionError, TaskError, listed

__all__ = [
    "ALIGNMENTS",
    "Batch",
    "PromptPair",
    "Reader",
    "Row",
    "Span",
    "Task",
    "answer_id",
    "batches",
    "encode",
    "load_task",
    "lost_differences",
    "prompt_faults",
    "token_ids",
    "token_offsets",
    "unknown_pieces",
    "with_swap_rows",
]

TEXT_KEYS = ("id", "persona_a", "persona_b", "question", "split")
ALIGNMENTS = ("equal", "right")
OUTSIDE = "between"
"""What the tokens between two parts of a prompt count to."""


@runtime_checkable
class Reader(Protocol):
    """What reading prompts asks of a model; a ``Model`` is one, and so is a tokenizer with a name and a size."""

    name: str
    tokenizer: Any
    n_context: int | None


@dataclass(frozen=True)
class Span:
    """A named part of a prompt: tokens ``start`` to ``end``, that one left out."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class PromptPair:
    """One question under persona A (``clean``) and persona B (``corrupt``).

    ``answers`` are the preference tokens of A, ``wrong_answers`` those of B, as
    text that continues the prompt (so usually with a leading space). ``neutral`` is
    the question under no persona. ``spans`` and ``corrupt_spans`` are the parts of
    either prompt. ``axes`` are the remaining keys whose values are texts, numbers or
    truth values, as texts. ``line`` is the place in the file, from 1.
    """

    clean: str
    corrupt: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    id: str = ""
    persona_a: str = ""
    persona_b: str = ""
    question: str = ""
    split: str = ""
    neutral: str = ""
    spans: tuple[Span, ...] = ()
    corrupt_spans: tuple[Span, ...] = ()
    axes: tuple[tuple[str, str], ...] = ()
    line: int = 0

    def axis(self, name: str) -> str:
        """The value of one key of the file, of those above or of ``axes``; empty where the pair has none."""
        return str(getattr(self, name)) if name in TEXT_KEYS else dict(self.axes).get(name, "")


@dataclass(frozen=True)
class Task:
    """The pairs of a file; ``sha256`` is the file's."""

    pairs: tuple[PromptPair, ...]
    source: str
    sha256: str

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in order of appearance; empty where none is named."""
        return tuple(dict.fromkeys(pair.split for pair in self.pairs if pair.split))

    def of_split(self, split: str) -> Task:
        """The pairs of one split; ``all`` gives every pair.

        Raises:
            TaskError: the file has no such split.
        """
        if split == "all":
            return self
        chosen = tuple(pair for pair in self.pairs if pair.split == split)
        if not chosen:
            known = ", ".join(self.splits) or "none: no pair has a 'split'"
            raise TaskError(f"{self.source} has no pair of split {split!r}; its splits are: {known}")
        return replace(self, pairs=chosen)

    def where(self, **values: str) -> Task:
        """The pairs whose keys have these values, such as ``domain="food"``.

        Raises:
            TaskError: there is none.
        """
        chosen = tuple(pair for pair in self.pairs if all(pair.axis(key) == value for key, value in values.items()))
        if chosen:
            return replace(self, pairs=chosen)
        for key in values:
            found = sorted({pair.axis(key) for pair in self.pairs} - {""})
            if not found:
                raise TaskError(f"no pair of {self.source} has a {key!r}; give a key of its rows")
            if values[key] not in found:
                raise TaskError(f"no pair of {self.source} has {key} {values[key]!r}; there are: {', '.join(found)}")
        wanted = " and ".join(f"{key} {value!r}" for key, value in values.items())
        raise TaskError(f"no pair of {self.source} has {wanted} together")

    def groups(self, key: str) -> dict[str, Task]:
        """The pairs by the value of a key, in order of appearance; pairs without it are in no group.

        Raises:
            TaskError: no pair has the key.
        """
        values = [value for value in dict.fromkeys(pair.axis(key) for pair in self.pairs) if value]
        if not values:
            raise TaskError(f"no pair of {self.source} has a {key!r}; give a key of its rows")
        return {value: self.where(**{key: value}) for value in values}


@dataclass(frozen=True)
class Row:
    """A pair as token ids; ``index`` is the place among all rows; ``neutral`` is empty where the file has none."""

    index: int
    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]
    neutral: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    corrupt_spans: tuple[Span, ...] = ()


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as tensors on the model's device; answers padded with -1.

    Rows of one length have no padding. Otherwise prompts are padded on the left,
    ``*_padding`` tokens each, and ``corrupt_to_clean`` and ``neutral_to_clean`` say
    what of the other prompt stands against each place of the clean one; None where
    every place stands against itself. ``spans`` numbers the part that a place of the
    clean prompt belongs to, an index of ``span_names``; padding is -1.
    """

    indices: tuple[int, ...]
    clean: Int[Tensor, "batch pos"]
    corrupt: Int[Tensor, "batch corrupt_pos"]
    answers: Int[Tensor, "batch n_answers"]
    wrong_answers: Int[Tensor, "batch n_wrong"]
    clean_padding: Int[Tensor, " batch"] | None = None
    corrupt_padding: Int[Tensor, " batch"] | None = None
    corrupt_to_clean: Float[Tensor, "batch pos corrupt_pos"] | None = None
    neutral: Int[Tensor, "batch neutral_pos"] | None = None
    neutral_padding: Int[Tensor, " batch"] | None = None
    neutral_to_clean: Float[Tensor, "batch pos neutral_pos"] | None = None
    spans: Int[Tensor, "batch pos"] | None = None
    span_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    def halves(self) -> tuple[Batch, Batch]:
        """The first and the second half of the rows."""
        middle = (len(self) + 1) // 2
        return self._rows(slice(0, middle)), self._rows(slice(middle, None))

    def parts(self, n: int) -> tuple[Batch, ...]:
        """``n`` rows at a time; an even number, so that both directions of a pair stay together where they are two."""
        n = n - n % 2 or 1
        return (self,) if len(self) <= n else tuple(self._rows(slice(i, i + n)) for i in range(0, len(self), n))

    @property
    def n_tokens(self) -> int:
        """Of the longest of a row's prompts."""
        return max(x.shape[1] for x in (self.clean, self.corrupt, self.neutral) if x is not None)

    def _rows(self, some: slice) -> Batch:
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        names = parts.pop("span_names")
        cut: dict[str, Any] = {name: value if value is None else value[some] for name, value in parts.items()}
        return Batch(**cut, span_names=names)


def load_task(path: str | Path, *, label: str | None = None) -> Task:
    """Read a pair file, JSON Lines or auto-circuit's JSON; ``label`` is what results call it, if not ``path``.

    Raises:
        TaskError: the file is missing or any of its pairs is malformed; every
            fault is listed with its line.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise TaskError(f"pair file {path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"pair file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    faults: list[str] = []
    pairs = [
        pair
        for where, line, item in _items(path, text, faults)
        if (pair := _parse_pair(item, where, line, faults)) is not None
    ]
    faults += _repeated_ids(pairs)
    if faults:
        raise TaskError(listed(f"pair file {path} has {len(faults)} fault(s):", faults))
    if not pairs:
        raise TaskError(f"pair file {path} holds no pairs; expected one JSON object a line")
    return Task(tuple(pairs), label or str(path), hashlib.sha256(raw).hexdigest())


def encode(task: Task, model: Reader, *, align: str = "equal") -> tuple[Row, ...]:
    """Token ids of every pair, checked.

    With ``align="right"`` the prompts of a pair may differ in length, as long as they
    end alike; ``"equal"`` wants the same number of tokens.

    Raises:
        OptionError: there is no such alignment.
        TaskError: prompts of a pair differ in length, or have no common end to be
            aligned on, an answer is not one token in its context, an answer stands on
            both sides, a prompt starts with two BOS tokens or is longer than the
            model's context, a span lies outside its prompt. All are listed.
    """
    if align not in ALIGNMENTS:
        raise OptionError(f"--align {align!r} is not one of {', '.join(ALIGNMENTS)}")
    faults: list[str] = []
    rows = [_encode_pair(i, pair, reader, align, faults) for i, (pair, reader) in enumerate(_read_ahead(task, model))]
    if faults:
        raise TaskError(listed(f"{task.source} does not fit {model.name}: {len(faults)} fault(s):", faults))
    return tuple(row for row in rows if row is not None)


def with_swap_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Every row followed by itself seen from persona B, so that the generic prior cancels in the mean."""
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


def batches(
    rows: Sequence[Row], batch_size: int, device: torch.device | str, *, uneven: bool | None = None
) -> list[Batch]:
    """At most ``batch_size`` rows at a time, from the shortest to the longest, order kept within a length.

    Rows of one length make a batch, so that nothing is padded. With ``uneven`` rows of
    several lengths fill a batch, padded on the left; the default where the prompts of a
    pair differ in length.
    """
    if uneven is None:
        uneven = any(len(set(_lengths(row))) > 1 for row in rows)
    names = tuple(dict.fromkeys(name for row in rows for name in _part_names(row)))
    by_length: dict[tuple[int, ...], list[Row]] = {}
    for row in sorted(rows, key=_lengths):
        by_length.setdefault(() if uneven else _lengths(row), []).append(row)
    return [
        _batch(group[start : start + batch_size], device, names)
        for group in by_length.values()
        for start in range(0, len(group), batch_size)
    ]


def _part_names(row: Row) -> list[str]:
    """The parts of both prompts, and OUTSIDE where a token of either is in none."""
    sides = ((row.clean, row.spans), (row.corrupt, row.corrupt_spans))
    covered = [len({i for span in spans for i in range(span.start, span.end)}) == len(ids) for ids, spans in sides]
    return [*(span.name for _, spans in sides for span in spans), *([] if all(covered) else [OUTSIDE])]


def _lengths(row: Row) -> tuple[int, ...]:
    return len(row.clean), len(row.corrupt), len(row.neutral) or len(row.clean)


def _items(path: Path, text: str, faults: list[str]) -> Iterator[tuple[str, int, Any]]:
    """The raw pairs with where they stand; broken JSON goes to ``faults``."""
    whole = _as_auto_circuit(text)
    if whole is not None:
        if not isinstance(whole["prompts"], list):
            faults.append("'prompts' must be a list of pairs")
            return
        yield from ((f"prompt {i}", i, item) for i, item in enumerate(whole["prompts"], 1))
        return
    if path.suffix == ".json" and text.lstrip().startswith("{") and "\n{" not in text.strip():
        faults.append(_json_fault(text) or 'expected {"prompts": [...]} in a .json file')
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", number, json.loads(line)
            except json.JSONDecodeError as error:
                faults.append(f"line {number}: not JSON ({error.msg} at column {error.colno})")


def _as_auto_circuit(text: str) -> dict[str, Any] | None:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return None
    return whole if isinstance(whole, dict) and "prompts" in whole else None


def _json_fault(text: str) -> str | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: not JSON ({error.msg} at column {error.colno})"
    return None


def _parse_pair(item: Any, where: str, line: int, faults: list[str]) -> PromptPair | None:
    if not isinstance(item, dict):
        faults.append(f"{where}: expected an object with clean, corrupt, answers, wrong_answers, got {_shape(item)}")
        return None
    found = [
        *(f"{key!r} must be a non-empty string" for key in ("clean", "corrupt") if not _is_text(item.get(key))),
        *(
            f"{key!r} must be a non-empty list of strings"
            for key in ("answers", "wrong_answers")
            if not _is_texts(item.get(key))
        ),
        *(f"{key!r} must be a string or a number" for key in TEXT_KEYS if not isinstance(item.get(key, ""), str | int)),
        *(["'neutral' must be a non-empty string"] if not _is_text(item.get("neutral", "-")) else []),
        *_span_faults(item.get("spans", {})),
    ]
    if found:
        faults += [f"{where}: {fault}" for fault in found]
        return None
    extra = {key: str(item[key]) for key in TEXT_KEYS if key in item}
    answers, wrong = tuple(item["answers"]), tuple(item["wrong_answers"])
    extra.setdefault("id", str(line))
    spans, corrupt_spans = (_spans(item.get("spans", {}).get(side, {})) for side in ("clean", "corrupt"))
    return PromptPair(
        item["clean"],
        item["corrupt"],
        answers,
        wrong,
        **extra,
        neutral=item.get("neutral", ""),
        spans=spans,
        corrupt_spans=corrupt_spans,
        axes=tuple(_axes(item)),
        line=line,
    )


def _axes(item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    known = {*TEXT_KEYS, "clean", "corrupt", "neutral"}
    for key, value in item.items():
        if key not in known and isinstance(value, str | int | float | bool):
            yield key, str(value).lower() if isinstance(value, bool) else str(value)


def _span_faults(value: Any) -> list[str]:
    """``{"clean": {name: {"tokens": [start, end]}}, "corrupt": …}`` and nothing else."""
    sides = value if isinstance(value, dict) else {"": None}
    parts = [part for side in sides.values() for part in (side.values() if isinstance(side, dict) else [None])]
    good = all(isinstance(part, dict) and _is_range(part.get("tokens")) for part in parts)
    return [] if good else ["'spans' must give every part's 'tokens' as [start, end] for clean and corrupt"]


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
        and 0 <= value[0] <= value[1]
    )


def _spans(parts: dict[str, Any]) -> tuple[Span, ...]:
    found = (Span(name, *part["tokens"]) for name, part in parts.items())
    return tuple(span for span in found if span.end > span.start)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_text(item) for item in value)


def _shape(value: Any) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")


def _repeated_ids(pairs: Sequence[PromptPair]) -> list[str]:
    seen: dict[str, int] = {}
    faults = []
    for pair in pairs:
        if pair.id in seen:
            faults.append(f"line {pair.line}: id {pair.id!r} is already used in line {seen[pair.id]}")
        seen.setdefault(pair.id, pair.line)
    return faults


AT_ONCE = 2000
"""Pairs whose texts are tokenized together."""


class _ReadAhead:
    """A reader, and its tokenizer, that take the ids of some texts from what was tokenized before, all at once.

    Whatever else is asked of them is asked of those behind them, attributes once.
    """

    def __init__(self, behind: Any, **known: Any) -> None:
        self.__dict__.update(known, behind=behind)

    def __getattr__(self, name: str) -> Any:
        return self.__dict__.setdefault(name, getattr(self.__dict__["behind"], name))

    def __call__(self, text: Any, *, add_special_tokens: bool = True, **options: Any) -> Any:
        ids = None if options or not isinstance(text, str) else self.known.get((text, add_special_tokens))
        return {"input_ids": ids} if ids is not None else self.behind(
            text, add_special_tokens=add_special_tokens, **options
        )  # fmt: skip


def _read_ahead(task: Task, model: Reader) -> Iterator[tuple[PromptPair, Reader]]:
    """Every pair with a reader that knows its texts: one call of the tokenizer for thousands of texts, not one each."""
    like = {"name": model.name, "n_context": model.n_context}
    for start in range(0, len(task.pairs), AT_ONCE):
        some = task.pairs[start : start + AT_ONCE]
        tokenizer = _ReadAhead(model.tokenizer, known=_many_token_ids(_texts(some), model.tokenizer))
        yield from ((pair, reader) for reader in [_ReadAhead(model, tokenizer=tokenizer, **like)] for pair in some)


def _texts(pairs: Sequence[PromptPair]) -> list[str]:
    """What ``_encode_pair`` asks the ids of, each once: the prompts, and the prompts with every answer behind them."""
    ends = [("", *pair.answers, *pair.wrong_answers) for pair in pairs]
    prompts = [(pair.clean, pair.corrupt, *([pair.neutral] if pair.neutral else [])) for pair in pairs]
    return list(dict.fromkeys(a + b for some, own in zip(prompts, ends, strict=True) for a in some for b in own))


def _many_token_ids(texts: Sequence[str], tokenizer: Any) -> dict[tuple[str, bool], list[int]]:
    """The ids that ``token_ids`` asks a tokenizer for, by text and with special tokens or without, in two calls."""
    if not getattr(tokenizer, "is_fast", False):
        return {}
    bos = tokenizer.bos_token
    found: dict[tuple[str, bool], list[int]] = {}
    for special in (True, False):
        some = [text for text in texts if (bool(bos) and text.startswith(bos)) != special]
        if some:
            read = tokenizer(some, add_special_tokens=special, return_attention_mask=False)["input_ids"]
            found |= {(text, special): list(ids) for text, ids in zip(some, read, strict=True)}
    return found


def _encode_pair(index: int, pair: PromptPair, model: Reader, align: str, faults: list[str]) -> Row | None:
    clean, corrupt = token_ids(pair.clean, model), token_ids(pair.corrupt, model)
    neutral = token_ids(pair.neutral, model) if pair.neutral else []
    found = [fault for ids in (clean, corrupt, neutral) for fault in prompt_faults(ids, model)]
    found += lost_differences({pair.clean: clean, pair.corrupt: corrupt}, model)
    for name, other in (("corrupt", corrupt), *([("neutral", neutral)] if neutral else [])):
        if len(other) != len(clean) and align == "equal":
            found.append(
                f"the clean prompt has {len(clean)} tokens and the {name} one {len(other)}; "
                "choose wordings of equal length, or use --align right"
            )
        elif len(other) != len(clean) and not shared_ends(clean, other)[1]:
            found.append(f"the clean and the {name} prompt do not end in the same token; there is nothing to align on")
    for ids, spans in ((clean, pair.spans), (corrupt, pair.corrupt_spans)):
        found += [
            f"part {span.name!r} ends at token {span.end} of a prompt of {len(ids)}; "
            "these spans are of another tokenizer"
            for span in spans
            if span.end > len(ids)
        ]
    found += _other_tokens(pair, clean, corrupt)
    sides = [
        [answer_id(pair.clean, clean, text, model, found) for text in texts]
        for texts in (pair.answers, pair.wrong_answers)
    ]
    for prompt, ids in ((pair.corrupt, corrupt), *([(pair.neutral, neutral)] if neutral else [])):
        for text in (*pair.answers, *pair.wrong_answers):
            answer_id(prompt, ids, text, model, found)
    if both := {i for i in sides[0] if i is not None} & set(sides[1]):
        names = ", ".join(repr(model.tokenizer.decode([i])) for i in sorted(both))
        found.append(f"{names} is both an answer and a wrong answer")
    if found:
        faults += [f"line {pair.line} (id {pair.id}): {fault}" for fault in dict.fromkeys(found)]
        return None
    answers, wrong = (tuple(i for i in side if i is not None) for side in sides)
    spans = pair.spans or _spans_by_difference(clean, corrupt)
    corrupt_spans = pair.corrupt_spans or _spans_by_difference(corrupt, clean)
    return Row(index, tuple(clean), tuple(corrupt), answers, wrong, tuple(neutral), spans, corrupt_spans)


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
    """The tokenizer's own ids, special tokens as it adds them, but never a second BOS before one in the text."""
    bos = model.tokenizer.bos_token
    has_own_bos = bool(bos) and text.startswith(bos)
    return list(model.tokenizer(text, add_special_tokens=not has_own_bos)["input_ids"])


def prompt_faults(ids: list[int], model: Reader) -> list[str]:
    """What is wrong with a prompt's ids: two BOS tokens, or more than the context holds."""
    faults = []
    bos = model.tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        faults.append("a prompt starts with two BOS tokens; take one out of the text")
    if model.n_context and len(ids) > model.n_context:
        faults.append(f"a prompt has {len(ids)} tokens, the model's context holds {model.n_context}")
    return faults


def lost_differences(prompts: Mapping[str, Sequence[int]], model: Reader) -> list[str]:
    """What some of the prompts say and others do not, and the tokenizer can only write as its unknown token.

    ``prompts`` are texts with their ids. Prompts that differ there only are one and the same to the model. What all
    of them hold, such as a template's letters, takes no difference away and is let pass.
    """
    pieces = [{one.strip() for one in unknown_pieces(text, ids, model).values()} for text, ids in prompts.items()]
    lost = set().union(*pieces) - set.intersection(*pieces) if pieces else set()
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
    return next(variant["offset_mapping"] for variant in variants if list(variant["input_ids"]) == list(ids))


def answer_id(prompt: str, ids: list[int], answer: str, model: Reader, faults: list[str]) -> int | None:
    """The one token that ``answer`` adds behind ``prompt``; anything else is a fault."""
    joined = token_ids(prompt + answer, model)
    if joined[: len(ids)] != ids:
        faults.append(f"answer {answer!r} merges with the prompt's last token; start it with a space or change the cue")
    elif len(joined) != len(ids) + 1:
        pieces = model.tokenizer.convert_ids_to_tokens(joined[len(ids) :])
        faults.append(f"answer {answer!r} is {len(pieces)} tokens here ({', '.join(map(repr, pieces))}), expected one")
    else:
        return joined[-1]
    return None


def _batch(rows: Sequence[Row], device: torch.device | str, names: tuple[str, ...]) -> Batch:
    def table(lists: Sequence[tuple[int, ...]]) -> Tensor:
        width = max(len(ids) for ids in lists)
        return torch.tensor([[*ids, *[-1] * (width - len(ids))] for ids in lists], device=device)

    clean, clean_padding = _padded([row.clean for row in rows], device)
    corrupt, corrupt_padding = _padded([row.corrupt for row in rows], device)
    has_neutral = all(row.neutral for row in rows)
    neutral, neutral_padding = _padded([row.neutral for row in rows], device) if has_neutral else (None, None)
    return Batch(
        tuple(row.index for row in rows),
        clean,
        corrupt,
        table([row.answers for row in rows]),
        table([row.wrong_answers for row in rows]),
        clean_padding,
        corrupt_padding,
        _aligned([(row.clean, row.corrupt) for row in rows], device),
        neutral,
        neutral_padding,
        _aligned([(row.clean, row.neutral) for row in rows], device) if has_neutral else None,
        _span_table(rows, names, device),
        names,
    )


def _padded(prompts: Sequence[tuple[int, ...]], device: torch.device | str) -> tuple[Tensor, Tensor | None]:
    """Prompts side by side, padded on the left with token 0, and how many tokens are padding; None where none is."""
    width = max(map(len, prompts))
    padding = [width - len(ids) for ids in prompts]
    tokens = torch.tensor([[0] * gap + list(ids) for gap, ids in zip(padding, prompts, strict=True)], device=device)
    return tokens, torch.tensor(padding, device=device) if any(padding) else None


def _aligned(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], device: torch.device | str) -> Tensor | None:
    if all(len(first) == len(second) for first, second in pairs):
        return None
    n, m = (max(map(len, side)) for side in zip(*pairs, strict=True))
    shares = torch.zeros(len(pairs), n, m)
    for row, (first, second) in enumerate(pairs):
        shares[row, n - len(first) :, m - len(second) :] = alignment(first, second)
    return shares.to(device)


def _span_table(rows: Sequence[Row], names: tuple[str, ...], device: torch.device | str) -> Tensor:
    width = max(len(row.clean) for row in rows)
    table = torch.full((len(rows), width), -1)
    for i, row in enumerate(rows):
        start = width - len(row.clean)
        table[i, start:] = names.index(OUTSIDE) if OUTSIDE in names else -1
        for span in row.spans:
            table[i, start + span.start : start + span.end] = names.index(span.name)
    return table.to(device)
