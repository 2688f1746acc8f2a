"""The same personas' vectors twice, in spaces of one width: raw cosines, and with the mean over personas subtracted.

For a reference that should be the same up to rounding, a quantised model, or the same model again: vectors of
models that were trained apart have no coordinates in common, whatever their width. Raw vectors share most of what
they are with every persona's, so their cosines are high for any two; centred ones tell personas apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.table import Column, Table
from persona_circuits.persona.vectors.comparison import Compared
from persona_circuits.persona.vectors.vectors import centred

__all__ = ["Likeness", "likeness", "likeness_table"]

LIKENESS = (Column("persona", "persona"), Column("cosine", "raw", ".5f"), Column("centred", "centred", ".5f"))


@dataclass(frozen=True)
class Likeness:
    """One persona's cosines with itself; ``centred`` is nan where there is one persona, or a vector is the mean."""

    persona: str
    raw: float
    centred: float


def likeness(own: Compared, other: Compared) -> tuple[Likeness, ...]:
    """The personas that both have, in the order of ``own``.

    Raises:
        TaskError: the vectors have not one width, or no persona in common.
    """
    if own.vectors.shape[1] != other.vectors.shape[1]:
        raise TaskError(
            f"vectors of {own.name} have {own.vectors.shape[1]} numbers, those of {other.name} "
            f"{other.vectors.shape[1]}: they have no cosine; compare models of different widths with --compare"
        )
    names = [name for name in own.personas if name in other.personas]
    if not names:
        raise TaskError(f"{own.name} and {other.name} have no persona in common")
    tables = [side.vectors[[side.personas.index(name) for name in names]] for side in (own, other)]
    raw, middle = (_cosines(*sides) for sides in (tables, [centred(table) for table in tables]))
    return tuple(map(Likeness, names, raw.tolist(), middle.tolist()))


def likeness_table(found: Sequence[Likeness]) -> Table:
    """A row per persona."""
    return Table("every persona's vector beside its other", LIKENESS, found)


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.divide((first * second).sum(1), lengths, out=np.full(len(first), np.nan), where=lengths > 0)
