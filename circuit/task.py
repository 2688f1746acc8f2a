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
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuit.alignment import alignment, shared_ends
from circuit.errors import OptionError, TaskError, listed
from circuit.reading import (
    Kind,
    NotJson,
    decoded,
    is_text,
    is_texts,
    is_whole,
    json_lines,
    parse_json,
    read_bytes,
    table_kind,
)

__all__ = [
    "ALIGNMENTS",
    "ALIKE",
    "Batch",
    "PromptPair",
    "Reader",
    "Row",
    "Span",
    "Task",
    "answer_id",
    "batches",
    "beyond_embedding",
    "encode",
    "fitting",
    "load_task",
    "lost_differences",
    "misfit",
    "pair_items",
    "prompt_faults",
    "token_ids",
    "token_offsets",
    "unknown_pieces",
    "with_swap_rows",
    "without_end",
]

TEXT_KEYS = ("id", "persona_a", "persona_b", "question", "split")
OPTIONAL = (*TEXT_KEYS, "neutral", "spans")
"""Keys whose null is read as if they were not there."""
ALIGNMENTS = ("equal", "right")
PAIRS = Kind("pair file", TaskError)
READ = "one JSON object a line, or an array of them, with the keys clean, corrupt, answers and wrong_answers"
ONE_VALUE = re.compile(r"\s*(\[|\{\s*\"prompts\")")
"""How a file begins that is one JSON value and not one a line."""
ALIKE = "clean and corrupt are the same tokens, so nothing can differ between them; take the pair out"
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
    truth values, as texts. ``line`` is the place in the file, from 1, counted in ``unit``.
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
    unit: str = "line"

    @property
    def place(self) -> str:
        """What messages call it: by its place in the file, and its id."""
        return f"{self.unit} {self.line} (id {self.id})"

    def axis(self, name: str) -> str:
        """The value of one key of the file, of those above or of ``axes``; empty where the pair has none."""
        return str(getattr(self, name)) if name in TEXT_KEYS else dict(self.axes).get(name, "")


@dataclass(frozen=True)
class Task:
    """The pairs of a file; ``sha256`` is the file's.

    ``repeated`` counts rows of the file that say the same as one before them, ``unfit`` those that ``fitting`` left
    out; neither are among ``pairs``.
    """

    pairs: tuple[PromptPair, ...]
    source: str
    sha256: str
    repeated: int = 0
    unfit: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of rows of the file that are not used."""
        one, many = "pair says the same as one before it and is", "pairs say the same as others before them and are"
        return (
            *([f"{self.repeated} {one if self.repeated == 1 else many} left out"] if self.repeated else []),
            *([f"{self.unfit} of {self.n_read} pairs do not fit and are left out"] if self.unfit else []),
        )

    @property
    def n_read(self) -> int:
        """How many pairs there are, those that do not fit among them."""
        return len(self.pairs) + self.unfit

    @property
    def counts(self) -> dict[str, int]:
        """How many rows of the file are not used, by why, where there are any; as records hold it."""
        return {name: n for name in ("repeated", "unfit") if (n := getattr(self, name))}

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


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as tensors on the model's device; answers padded with -1.

    Rows of one length have no padding. Otherwise prompts are padded on the left,
    ``*_padding`` tokens each, and ``corrupt_to_clean`` and ``neutral_to_clean`` say
    what of the other prompt stands against each place of the clean one; None where
    every place stands against itself. ``spans`` numbers the part that a place of the
    clean prompt belongs to, an index of ``span_names``; padding is -1. ``ids`` are the pairs'.
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
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, row: int) -> str:
        """What messages call a row: its pair's id."""
        return f"pair {self.ids[row]}" if self.ids else f"row {self.indices[row]}"

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
    raw = read_bytes(path, PAIRS)
    text = decoded(raw, path, PAIRS)
    faults: list[str] = []
    items = list(pair_items(text, faults))
    _check_kind(path, text, items)
    pairs = [pair for where, line, item in items if (pair := _parse_pair(item, where, line, faults)) is not None]
    faults += _repeated_ids(pairs)
    if faults:
        raise TaskError(listed(f"pair file {path} has {len(faults)} fault(s):", faults))
    if not pairs:
        raise TaskError(f"pair file {path} holds no pairs; expected one JSON object a line")
    kept = _said_once(pairs)
    return Task(kept, label or str(path), hashlib.sha256(raw).hexdigest(), repeated=len(pairs) - len(kept))


def _said_once(pairs: Sequence[PromptPair]) -> tuple[PromptPair, ...]:
    """The pairs less those whose prompts and answers stand before them in the same split.

    They would add nothing but weight, and make every interval narrower than the data does.
    """
    seen: dict[tuple[Any, ...], PromptPair] = {}
    for pair in pairs:
        said = (pair.clean, pair.corrupt, frozenset(pair.answers), frozenset(pair.wrong_answers), pair.neutral)
        seen.setdefault((*said, pair.split), pair)
    return tuple(seen.values())


def encode(task: Task, model: Reader, *, align: str = "equal", alike: bool = False) -> tuple[Row, ...]:
    """Token ids of every pair, checked.

    With ``align="right"`` the prompts of a pair may differ in length, as long as they
    end alike; ``"equal"`` wants the same number of tokens.

    Raises:
        OptionError: there is no such alignment.
        TaskError: prompts of a pair differ in length, or have no common end to be
            aligned on, an answer is not one token in its context, an answer stands on
            both sides or twice on one, both prompts are the same tokens (unless they may be
            ``alike``), a prompt has a BOS too many, is longer than the model's context or holds a
            token without an embedding, a span lies outside its prompt. All are listed.
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
    able = enumerate(_read_ahead(task, model))
    return [_encode_pair(i, pair, reader, align, alike, faults) for i, (pair, reader) in able], faults


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


def pair_items(text: str, faults: list[str]) -> Iterator[tuple[str, int, Any]]:
    """The raw pairs of a file's text, in any of its formats, with their places and numbers; others go to ``faults``.

    A pair's number is its line or, in an array of pairs and in auto-circuit's JSON, its place there, from 1.
    """
    try:
        whole = parse_json(text) if text.lstrip()[:1] in ("{", "[") else None
    except NotJson as error:
        if "\n{" not in text.strip() or ONE_VALUE.match(text):
            faults += _whole_faults(error)
            return
        whole = None
    named = "prompt" if isinstance(whole, dict) else "pair"
    pairs = whole.get("prompts") if isinstance(whole, dict) else whole
    if isinstance(pairs, list):
        yield from ((f"{named} {i}", i, item) for i, item in enumerate(pairs, 1))
    elif isinstance(whole, dict) and "prompts" in whole:
        faults.append("'prompts' must be a list of pairs")
    elif isinstance(whole, dict):
        number = text[: len(text) - len(text.lstrip())].count("\n") + 1
        if "clean" in whole:
            yield f"line {number}", number, whole
        else:
            faults.append(f'line {number}: expected {{"prompts": [...]}}, or {READ}')
    else:
        yield from ((f"line {number}", number, item) for number, item in json_lines(text, faults))


def _whole_faults(error: NotJson) -> list[str]:
    if error.at is None:
        return error.faults
    return [f"line {error.at[0]}: not JSON ({error.faults[0]} at column {error.at[1]})"]


def _check_kind(path: Path, text: str, items: Sequence[tuple[str, int, Any]]) -> None:
    """One sentence on a file that is no pair file at all, in the place of a fault for each of its lines.

    Raises:
        TaskError: it is a table, or auto-circuit's prompts as token ids.
    """
    if not items and (found := table_kind(text)):
        first = next(line for line in text.split("\n") if line.strip())
        ids = " (EAP-IG's, whose answers are token ids)" if "correct_idx" in first else ""
        raise TaskError(
            f"pair file {path} is {found}{ids} that begins {first.strip()[:80]!r}; pairs are read as {READ} "
            "(docs/pairs.md)"
        )
    prompts = [item.get("clean") for _, _, item in items if isinstance(item, dict)]
    if prompts and all(isinstance(prompt, list) for prompt in prompts):
        raise TaskError(
            f"pair file {path} holds prompts as tokens (lists, as in auto-circuit's tracr files), which are not read, "
            f"since they fit one tokenizer only; decode them to text: {READ} are read"
        )


def _parse_pair(item: Any, where: str, line: int, faults: list[str]) -> PromptPair | None:
    if not isinstance(item, dict):
        faults.append(f"{where}: expected an object with clean, corrupt, answers, wrong_answers, got {_shape(item)}")
        return None
    item = {key: value for key, value in item.items() if value is not None or key not in OPTIONAL}
    found = [
        *(f"{key!r} must be a non-empty string" for key in ("clean", "corrupt") if not is_text(item.get(key))),
        *(
            f"{key!r} must be a non-empty list of strings"
            for key in ("answers", "wrong_answers")
            if not is_texts(item.get(key))
        ),
        *(
            f"{key!r} must be a string or a whole number"
            for key in TEXT_KEYS
            if not isinstance(item.get(key, ""), str | int) or isinstance(item.get(key), bool)
        ),
        *(["'neutral' must be a non-empty string"] if not is_text(item.get("neutral", "-")) else []),
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
        unit=where.split()[0],
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
    return isinstance(value, list) and len(value) == 2 and all(map(is_whole, value)) and value[0] <= value[1]


def _spans(parts: dict[str, Any]) -> tuple[Span, ...]:
    found = (Span(name, *part["tokens"]) for name, part in parts.items())
    return tuple(span for span in found if span.end > span.start)


def _shape(value: Any) -> str:
    return {list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def _repeated_ids(pairs: Sequence[PromptPair]) -> list[str]:
    seen: dict[str, int] = {}
    faults = []
    for pair in pairs:
        if pair.id in seen:
            faults.append(f"{pair.unit} {pair.line}: id {pair.id!r} is already used in {pair.unit} {seen[pair.id]}")
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


def _encode_pair(index: int, pair: PromptPair, model: Reader, align: str, alike: bool, faults: list[str]) -> Row | None:
    clean, corrupt = token_ids(pair.clean, model), token_ids(pair.corrupt, model)
    neutral = token_ids(pair.neutral, model) if pair.neutral else []
    found = [fault for ids in (clean, corrupt, neutral) for fault in prompt_faults(ids, model)]
    found += (lost := lost_differences({pair.clean: clean, pair.corrupt: corrupt}, model))
    if clean == corrupt and not alike and not lost:
        found.append(ALIKE)
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
    for ids in sides:
        known = [i for i in ids if i is not None]
        found += [
            f"answer {model.tokenizer.decode([i])!r} stands {known.count(i)} times on one side; name every token once"
            for i in dict.fromkeys(known)
            if known.count(i) > 1
        ]
    if found:
        faults += [f"{pair.place}: {fault}" for fault in dict.fromkeys(found)]
        return None
    answers, wrong = (tuple(i for i in side if i is not None) for side in sides)
    spans = pair.spans or _spans_by_difference(clean, corrupt)
    corrupt_spans = pair.corrupt_spans or _spans_by_difference(corrupt, clean)
    return Row(index, tuple(clean), tuple(corrupt), answers, wrong, tuple(neutral), spans, corrupt_spans, pair.id)


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
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    if not ids or ids[-1] not in ends:
        return ids
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    begin = next((i for i in range(len(ids) - len(plain) + 1) if ids[i : i + len(plain)] == plain), None)
    return ids if begin is None or not plain else ids[: begin + len(plain)]


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
    """The first place of a BOS behind other tokens; turns of a conversation may each begin with one, behind an EOS."""
    return next((i for i in range(1, len(ids)) if ids[i] == bos and ids[i - 1] != eos), None)


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
    n = len(ids)  # the tokenizer may append an EOS, which is none of the text's
    return next(variant["offset_mapping"][:n] for variant in variants if list(variant["input_ids"])[:n] == list(ids))


def answer_id(prompt: str, ids: list[int], answer: str, model: Reader, faults: list[str]) -> int | None:
    """The one token that ``answer`` adds behind ``prompt``; anything else is a fault."""
    joined = token_ids(prompt + answer, model)
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
        tuple(row.id for row in rows) if all(row.id for row in rows) else (),
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
