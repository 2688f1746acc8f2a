"""Rows as tensors: which rows share a batch, and how prompts of unequal length are padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.circuit.task.aligning import alignment
from persona_circuits.circuit.task.encoding import Row
from persona_circuits.circuit.task.forms import FormTable, form_table

__all__ = ["Batch", "batches"]

OUTSIDE = "between"
"""The name of the part for tokens between two parts of a prompt."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as tensors on the model's device; answers padded with -1.

    Rows of one length have no padding. Otherwise prompts are padded on the left, ``*_padding`` tokens each, and
    ``corrupt_to_clean`` and ``neutral_to_clean`` say what of the other prompt stands against each place of the clean
    one; None where every place stands against itself. ``spans`` numbers the part that a place of the clean prompt
    belongs to, an index of ``span_names``; padding is -1. ``ids`` are the pairs'. ``forms`` are there where the rows'
    options are sets of them, ``weights`` where rows are weighed.
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
    forms: FormTable | None = None
    weights: Float[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, row: int) -> str:
        """The name of a row in messages: its pair's id."""
        return f"pair {self.ids[row]}" if self.ids else f"row {self.indices[row]}"

    @property
    def place(self) -> str:
        """Which rows these are, among all of one study."""
        return ",".join(map(str, self.indices))

    def halves(self) -> tuple[Batch, Batch]:
        """The first and the second half of the rows."""
        middle = (len(self) + 1) // 2
        return self._rows(slice(0, middle)), self._rows(slice(middle, None))

    def parts(self, n: int) -> tuple[Batch, ...]:
        """``n`` rows at a time; an even number, so that both directions of a pair stay together where they are two."""
        n = n - n % 2 or 1
        return (self,) if len(self) <= n else tuple(self._rows(slice(i, i + n)) for i in range(0, len(self), n))

    @property
    def n_read(self) -> int:
        """How many of the last positions the answer is read from."""
        return 1 if self.forms is None else self.forms.n_read

    @property
    def n_tokens(self) -> int:
        """Of the longest of a row's prompts."""
        return max(x.shape[1] for x in (self.clean, self.corrupt, self.neutral) if x is not None)

    def _rows(self, some: slice) -> Batch:
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        names = parts.pop("span_names")
        cut: dict[str, Any] = {name: value if value is None else value[some] for name, value in parts.items()}
        return Batch(**cut, span_names=names)


def batches(
    rows: Sequence[Row], batch_size: int, device: torch.device | str, *, uneven: bool | None = None
) -> list[Batch]:
    """At most ``batch_size`` rows at a time, from the shortest to the longest, order kept within a length.

    Rows of one length make a batch, so that nothing is padded.

    Parameters
    ----------
    rows
        Of ``encode``.
    device
        Where the tensors lie; the model's.
    uneven
        Rows of several lengths fill a batch, padded on the left; the default where the prompts of a pair differ in
        length.

    Returns
    -------
    The batches; every row is in one of them.
    """
    if uneven is None:
        uneven = any(len(set(_lengths(row))) > 1 for row in rows)
    names = tuple(dict.fromkeys(name for row in rows for name in _part_names(row)))
    by_length: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=_lengths):
        by_length.setdefault((row.forms is None, () if uneven else _lengths(row)), []).append(row)
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
        form_table(forms, device) if (forms := [row.forms for row in rows if row.forms is not None]) else None,
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
