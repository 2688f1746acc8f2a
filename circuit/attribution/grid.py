"""Persona grids: every pair of a question's personas from one run of each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx

from persona_circuits.circuit.errors import TaskError, listed
from persona_circuits.circuit.task import Reader, Row, answer_id, lost_differences, prompt_faults, token_ids

__all__ = ["Contrast", "Grid", "GridPair", "Passes", "grid_of_personas", "grid_of_texts", "grids_of"]

Contrast = tuple[tuple[int, float], ...]
"""A linear function of the logits: tokens and their weights, by token."""


@dataclass(frozen=True)
class GridPair:
    """An ordered pair of a grid: the places of its prompts, and token ids; ``index`` is the row's."""

    index: int
    clean: int
    corrupt: int
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """One question under n personas: the prompts as token ids, all of one length, and the pairs among them.

    Examples:
        >>> grid = grid_of_personas([(5, 1, 9), (5, 2, 9), (5, 3, 9)], [7, 7, 8])
        >>> [(pair.clean, pair.corrupt) for pair in grid.pairs]  # the first two agree: no contrast
        [(0, 2), (1, 2), (2, 0), (2, 1)]
    """

    prompts: tuple[tuple[int, ...], ...]
    pairs: tuple[GridPair, ...]
    personas: tuple[str, ...] = ()
    question: str = ""

    def __post_init__(self) -> None:
        faults = []
        if len({len(ids) for ids in self.prompts}) != 1:
            faults.append("its prompts must have one length; pairs of unequal length are scored one by one")
        if not self.pairs:
            faults.append("it has no pair: no two personas prefer different candidates")
        for pair in self.pairs:
            name = f"pair {pair.index} ({pair.clean}, {pair.corrupt})"
            if not {pair.clean, pair.corrupt} <= set(range(len(self.prompts))):
                faults.append(f"{name} names a prompt that is not there; there are {len(self.prompts)}")
            if not pair.answers or not pair.wrong_answers:
                faults.append(f"{name} needs answers and wrong answers")
            elif set(pair.answers) & set(pair.wrong_answers):
                faults.append(f"{name} has an answer that is a wrong answer too, so no contrast")
        if self.personas and len(self.personas) != len(self.prompts):
            faults.append(f"{len(self.personas)} names for {len(self.prompts)} prompts")
        if faults:
            raise TaskError(listed(f"the grid of question {self.question!r} cannot be used:", faults))

    @cached_property
    def candidates(self) -> tuple[int, ...]:
        """All tokens that stand in a pair, in increasing order."""
        return tuple(sorted({token for pair in self.pairs for token in (*pair.answers, *pair.wrong_answers)}))

    @property
    def first_difference(self) -> int:
        """The first position at which two of the prompts differ; before it all nodes have the same values."""
        same = (len(set(column)) == 1 for column in zip(*self.prompts, strict=True))
        return next((i for i, agrees in enumerate(same) if not agrees), len(self.prompts[0]) - 1)


@dataclass(frozen=True)
class Passes:
    """Passes over single prompts."""

    forwards: int
    backwards: int


def grid_of_personas(
    prompts: Sequence[Sequence[int]],
    preferences: Sequence[int],
    *,
    personas: Sequence[str] = (),
    question: str = "",
    first_index: int = 0,
) -> Grid:
    """All ordered pairs of personas that prefer different tokens, numbered from ``first_index``.

    ``prompts`` are token ids, ``preferences`` each persona's declared token. Personas with
    the same preference make no pair, as nothing distinguishes their answers.

    Raises:
        TaskError: the prompts differ in length, or all personas prefer the same.
    """
    if len(preferences) != len(prompts):
        raise TaskError(f"a grid needs one preference per persona, got {len(preferences)} for {len(prompts)} prompts")
    met = [(a, b) for a in range(len(prompts)) for b in range(len(prompts)) if preferences[a] != preferences[b]]
    pairs = tuple(GridPair(first_index + i, a, b, (preferences[a],), (preferences[b],)) for i, (a, b) in enumerate(met))
    return Grid(tuple(tuple(ids) for ids in prompts), pairs, tuple(personas), question)


def grid_of_texts(
    model: Reader,
    prompts: Mapping[str, str],
    preferences: Mapping[str, str],
    *,
    question: str = "",
    first_index: int = 0,
) -> Grid:
    """A grid from texts: the prompt of every persona, and what it prefers, as text that continues the prompt.

    Raises:
        TaskError: prompts differ in length or do not fit the model, a persona has no
            preference, a candidate is not the same single token after every prompt, or two
            candidates are one token. All are listed.
    """
    faults = [f"persona {name!r} has no preference" for name in prompts if name not in preferences]
    encoded = {name: token_ids(text, model) for name, text in prompts.items()}
    for name, ids in encoded.items():
        faults += [f"persona {name!r}: {fault}" for fault in prompt_faults(ids, model)]
    faults += lost_differences({text: encoded[name] for name, text in prompts.items()}, model)
    if len(lengths := {len(ids) for ids in encoded.values()}) > 1:
        faults.append(f"the prompts have {min(lengths)} to {max(lengths)} tokens; choose wordings of equal length")
    tokens: dict[str, int] = {}
    for answer in dict.fromkeys(preferences[name] for name in prompts if name in preferences):
        answer_ids = {answer_id(text, encoded[name], answer, model, faults) for name, text in prompts.items()}
        if len(answer_ids) > 1:
            faults.append(f"answer {answer!r} is not the same token after every prompt")
        token = answer_ids.pop() or 0
        if (other := next((text for text, known in tokens.items() if token and known == token), None)) is not None:
            faults.append(f"answers {other!r} and {answer!r} are one token here")
        tokens[answer] = token
    if faults:
        raise TaskError(listed(f"question {question!r} makes no grid:", list(dict.fromkeys(faults))))
    chosen = [tokens[preferences[name]] for name in prompts]
    names = tuple(prompts)
    return grid_of_personas(
        [encoded[name] for name in names], chosen, personas=names, question=question, first_index=first_index
    )


def grids_of(rows: Sequence[Row]) -> tuple[Grid, ...]:
    """Group rows that share prompts, directly or through others, into grids: the fewest runs that cover all rows.

    A prompt that stands in several rows, on either side, is one run. The order is that of the rows.

    Raises:
        TaskError: the prompts of a row differ in length.
    """
    shared = nx.Graph()
    for row in rows:
        shared.add_edge(row.clean, row.corrupt)
    owner = {ids: i for i, group in enumerate(nx.connected_components(shared)) for ids in group}
    members: dict[int, list[Row]] = {}
    for row in rows:
        members.setdefault(owner[row.clean], []).append(row)
    return tuple(_grid_of(group) for group in members.values())


def _grid_of(rows: Sequence[Row]) -> Grid:
    place = {ids: i for i, ids in enumerate(dict.fromkeys(ids for row in rows for ids in (row.clean, row.corrupt)))}
    pairs = tuple(
        GridPair(row.index, place[row.clean], place[row.corrupt], row.answers, row.wrong_answers) for row in rows
    )
    return Grid(tuple(place), pairs)
