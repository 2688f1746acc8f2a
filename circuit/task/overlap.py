"""What two sets of pairs have in common, by the tokens of their prompts: ids, labels and order say nothing here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from persona_circuits.circuit.task.encoding import Row
from persona_circuits.circuit.task.pairs import Task
from persona_circuits.circuit.task.tokens import Reader, token_ids

__all__ = ["Overlap", "overlap", "overlap_of_prompts", "overlap_of_tasks"]

Prompts = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Overlap:
    """How many pairs measured on are among those searched on, in either direction, and how many prompts are."""

    pairs: int
    n_pairs: int
    prompts: int
    n_prompts: int

    @property
    def held_out(self) -> bool:
        """No pair is in both."""
        return not self.pairs

    @property
    def note(self) -> str:
        """A note on what is shared; empty where nothing is."""
        if self.pairs == self.n_pairs:
            return "not held out: the circuit was measured on pairs that it was found on; name splits in the file"
        if self.pairs:
            return (
                f"not held out: {self.pairs} of the {self.n_pairs} pairs that the circuit was measured on have the "
                "prompts of pairs that it was found on, whatever their ids; take them out of one of the splits"
            )
        if self.prompts:
            return (
                f"held out as pairs; {self.prompts} of the {self.n_prompts} prompts measured on stand in pairs that "
                "the circuit was found on, beside other prompts"
            )
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def overlap(searched: Sequence[Row], measured: Sequence[Row]) -> Overlap:
    """The pairs and prompts of ``measured`` that ``searched`` holds too."""
    return overlap_of_prompts(*([row.prompts for row in rows] for rows in (searched, measured)))


def overlap_of_tasks(searched: Task, measured: Task, model: Reader) -> Overlap:
    """The same of pairs that are not encoded yet, whether or not all of them fit."""
    return overlap_of_prompts(
        *(
            [(tuple(token_ids(pair.clean, model)), tuple(token_ids(pair.corrupt, model))) for pair in task.pairs]
            for task in (searched, measured)
        )
    )


def overlap_of_prompts(searched: Sequence[Prompts], measured: Sequence[Prompts]) -> Overlap:
    """The same of pairs of prompts as token ids."""
    pairs, other_pairs = ({frozenset(pair) for pair in some} for some in (measured, searched))
    prompts, other = ({ids for pair in some for ids in pair} for some in (measured, searched))
    return Overlap(len(pairs & other_pairs), len(pairs), len(prompts & other), len(prompts))
