"""The axis ``bias`` of pairs whose file does not have it, derived from what the model prefers under no persona.

Where rows have a ``neutral`` prompt and no row a ``bias``: b0 of a row is the mean margin of its two
declared answers after the neutral prompts of the same question in other wordings, so that no row's own prompt has a
say in its bias; after its own where there is no other. The bias is ``high`` where |b0| is
above the median over all rows, else ``low``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np

from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage
from persona_circuits.circuit.task import PromptPair
from persona_circuits.persona.behaviour import measure_pairs
from persona_circuits.persona.data import ItemFile, Neutral
from persona_circuits.persona.data.items import Item

__all__ = ["DerivedBias", "derived_bias", "with_bias"]


@dataclass(frozen=True)
class DerivedBias:
    """``levels`` by the row's line; ``own`` rows had no neutral prompt but their own; ``cut`` is the median |b0|."""

    levels: Mapping[int, str]
    cut: float
    own: int

    @property
    def note(self) -> str:
        """What a reader must know."""
        text = (
            f"the axis bias is derived: |b0| under no persona, in other wordings of the question, above or below the "
            f"median over rows ({self.cut:.2f} logits)"
        )
        return text + (f"; {self.own} rows have no other wording and their own stands in" if self.own else "")


def derived_bias(
    model: Model, file: ItemFile, *, batch_size: int = 32, stage: Stage | None = None
) -> DerivedBias | None:
    """The bias of every row that is no control; None where a row has a bias already or has no neutral prompt.

    Raises:
        TaskError: a neutral prompt does not fit the model.
    """
    items = [item for item in file.items if item.control == "none"]
    if not items or any(item.axes.get("bias") or not item.pair.neutral for item in items):
        return None
    progress = stage("asking without a persona") if stage else None
    wordings = dict.fromkeys(Neutral(item.question, _wording(item.pair), item.pair.neutral) for item in items)
    how: dict[str, Any] = {"source": file.source, "batch_size": batch_size}
    unasked = [replace(item, pair=replace(item.pair, neutral="")) for item in items]  # not by its own wording
    measures = measure_pairs(model, unasked, neutral=tuple(wordings), progress=progress, **how)
    alone = [item for item, m in zip(items, measures, strict=True) if m.neutral is None]
    own = measure_pairs(model, [_under_nobody(item) for item in alone], alike=True, **how) if alone else ()
    b0 = {m.item.pair.line: m.neutral.margin for m in measures if m.neutral is not None}
    b0 |= {m.item.pair.line: m.prior for m in own}
    cut = float(np.median(np.abs(list(b0.values()))))
    levels = {line: "high" if abs(margin) > cut else "low" for line, margin in b0.items()}
    return DerivedBias(levels, cut, len(alone))


def with_bias(file: ItemFile, bias: DerivedBias | None) -> ItemFile:
    """The file with the derived bias as an axis and a key of its rows; as it is without one."""
    if bias is None:
        return file
    return replace(file, items=tuple(_with_level(item, bias.levels.get(item.pair.line)) for item in file.items))


def _with_level(item: Item, level: str | None) -> Item:
    if level is None:
        return item
    pair = replace(item.pair, row={**item.pair.row, "bias": level})
    return replace(item, pair=pair, axes={**item.axes, "bias": level})


def _wording(pair: PromptPair) -> str:
    """How the pair asks: the common end of its prompts and the neutral one, from the first whole sentence on."""
    texts = (pair.clean, pair.corrupt, pair.neutral)
    end = texts[0][len(texts[0]) - shared_end(texts) :]
    starts = [place + 2 for mark in (". ", "? ", "! ") if (place := end.find(mark)) >= 0]
    starts += [place + 1] if (place := end.find("\n")) >= 0 else []
    return end[min(starts) :] if starts and min(starts) < len(end) else end


def shared_end(texts: Sequence[str]) -> int:
    """How many characters the texts have in common at their end."""
    alike = (len(set(chars)) == 1 for chars in zip(*(reversed(text) for text in texts), strict=False))
    return sum(1 for _ in takewhile(bool, alike))


def _under_nobody(item: Item) -> Item:
    return replace(item, pair=replace(item.pair, clean=item.pair.neutral, corrupt=item.pair.neutral))
