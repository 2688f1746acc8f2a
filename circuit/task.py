"""A task: prompt pairs read from a file, checked against a model's tokenizer, and batched.

Two formats are read. JSON Lines, one pair a line, with the keys ``clean``,
``corrupt``, ``answers``, ``wrong_answers`` and, if wanted, ``id``, ``persona_a``,
``persona_b``, ``question``, ``split``; and auto-circuit's JSON, ``{"prompts": [...]}``
with the same four keys in every prompt. Other keys are kept out of the way.

Both prompts of a pair must have the same number of tokens and every answer must
be exactly one token *in its context*. All faults of a file are reported at once,
with their lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from circuit.errors import TaskError, listed

__all__ = [
    "Batch",
    "PromptPair",
    "Reader",
    "Row",
    "Task",
    "answer_id",
    "batches",
    "encode",
    "load_task",
    "prompt_faults",
    "token_ids",
    "with_swap_rows",
]

TEXT_KEYS = ("id", "persona_a", "persona_b", "question", "split")


@runtime_checkable
class Reader(Protocol):
    """What reading prompts asks of a model; a ``Model`` is one, and so is a tokenizer with a name and a size."""

    name: str
    tokenizer: Any
    n_context: int | None


@dataclass(frozen=True)
class PromptPair:
    """One question under persona A (``clean``) and persona B (``corrupt``).

    ``answers`` are the preference tokens of A, ``wrong_answers`` those of B, as
    text that continues the prompt (so usually with a leading space). ``line`` is
    the place in the file, from 1.
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
    line: int = 0


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


@dataclass(frozen=True)
class Row:
    """A pair as token ids; ``index`` is the row's place among all rows."""

    index: int
    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one length, as tensors on the model's device; answers padded with -1."""

    indices: tuple[int, ...]
    clean: Int[Tensor, "batch pos"]
    corrupt: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch n_answers"]
    wrong_answers: Int[Tensor, "batch n_wrong"]

    def __len__(self) -> int:
        return len(self.indices)


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


def encode(task: Task, model: Reader) -> tuple[Row, ...]:
    """Token ids of every pair, checked.

    Raises:
        TaskError: prompts of a pair differ in length, an answer is not one token
            in its context, an answer stands on both sides, a prompt starts with
            two BOS tokens or is longer than the model's context. All are listed.
    """
    faults: list[str] = []
    rows = [_encode_pair(i, pair, model, faults) for i, pair in enumerate(task.pairs)]
    if faults:
        raise TaskError(listed(f"{task.source} does not fit {model.name}: {len(faults)} fault(s):", faults))
    return tuple(row for row in rows if row is not None)


def with_swap_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Every row followed by itself seen from persona B, so that the generic prior cancels in the mean."""
    return tuple(
        replace(row, index=2 * row.index + turn, **(_swapped(row) if turn else {})) for row in rows for turn in (0, 1)
    )


def _swapped(row: Row) -> dict[str, tuple[int, ...]]:
    return {
        "clean": row.corrupt,
        "corrupt": row.clean,
        "answers": row.wrong_answers,
        "wrong_answers": row.answers,
    }


def batches(rows: Sequence[Row], batch_size: int, device: torch.device | str) -> list[Batch]:
    """Rows grouped by length (so nothing is padded), at most ``batch_size`` at a time, order kept within a length."""
    by_length: dict[int, list[Row]] = {}
    for row in rows:
        by_length.setdefault(len(row.clean), []).append(row)
    return [
        _batch(group[start : start + batch_size], device)
        for _, group in sorted(by_length.items())
        for start in range(0, len(group), batch_size)
    ]


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
    ]
    if found:
        faults += [f"{where}: {fault}" for fault in found]
        return None
    extra = {key: str(item[key]) for key in TEXT_KEYS if key in item}
    answers, wrong = tuple(item["answers"]), tuple(item["wrong_answers"])
    extra.setdefault("id", str(line))
    return PromptPair(item["clean"], item["corrupt"], answers, wrong, line=line, **extra)


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


def _encode_pair(index: int, pair: PromptPair, model: Reader, faults: list[str]) -> Row | None:
    clean, corrupt = token_ids(pair.clean, model), token_ids(pair.corrupt, model)
    found = [*prompt_faults(clean, model), *prompt_faults(corrupt, model)]
    if len(clean) != len(corrupt):
        found.append(
            f"the clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}; "
            "choose wordings of equal length"
        )
    sides = [
        [answer_id(pair.clean, clean, text, model, found) for text in texts]
        for texts in (pair.answers, pair.wrong_answers)
    ]
    for text in (*pair.answers, *pair.wrong_answers):
        answer_id(pair.corrupt, corrupt, text, model, found)
    if both := {i for i in sides[0] if i is not None} & set(sides[1]):
        names = ", ".join(repr(model.tokenizer.decode([i])) for i in sorted(both))
        found.append(f"{names} is both an answer and a wrong answer")
    if found:
        faults += [f"line {pair.line} (id {pair.id}): {fault}" for fault in dict.fromkeys(found)]
        return None
    answers, wrong = (tuple(i for i in side if i is not None) for side in sides)
    return Row(index, tuple(clean), tuple(corrupt), answers, wrong)


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


def _batch(rows: Sequence[Row], device: torch.device | str) -> Batch:
    def table(lists: Sequence[tuple[int, ...]]) -> Tensor:
        width = max(len(ids) for ids in lists)
        return torch.tensor([[*ids, *[-1] * (width - len(ids))] for ids in lists], device=device)

    return Batch(
        tuple(row.index for row in rows),
        table([row.clean for row in rows]),
        table([row.corrupt for row in rows]),
        table([row.answers for row in rows]),
        table([row.wrong_answers for row in rows]),
    )
