"""Prompt pairs, their named parts, and the task that they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, overload

from persona_circuits.circuit.errors import TaskError, meant
from persona_circuits.circuit.printable import html_table

__all__ = ["TEXT_KEYS", "PromptPair", "Span", "Task", "without_forms"]

TEXT_KEYS = ("id", "persona_a", "persona_b", "question", "split")


@dataclass(frozen=True)
class Span:
    """A named part of a prompt: tokens ``start`` to ``end``, that one left out."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class PromptPair:
    """One question under persona A (``clean``) and persona B (``corrupt``).

    ``answers`` are the preference tokens of A, ``wrong_answers`` those of B, as text that continues the prompt (so
    usually with a leading space). ``neutral`` is the question under no persona. ``forms``, where they are given, are
    texts that each of its options may take, any number of tokens; without them an answer is one token. ``spans`` and
    ``corrupt_spans`` are the parts of either prompt. ``axes`` are the remaining keys whose values are texts, numbers or
    truth values, as texts. ``line`` is the place in the file, from 1, counted in ``unit``. ``row`` is what the file, or
    the mapping in memory, holds, every key of it.
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
    forms: tuple[tuple[str, tuple[str, ...]], ...] | None = None
    spans: tuple[Span, ...] = ()
    corrupt_spans: tuple[Span, ...] = ()
    axes: tuple[tuple[str, str], ...] = ()
    line: int = 0
    unit: str = "line"
    row: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def place(self) -> str:
        """Its name in messages: its place in the file, and its id."""
        return f"{self.unit} {self.line} (id {self.id})"

    def bare(self) -> PromptPair:
        """Without its neutral prompt and its parts."""
        return replace(self, neutral="", spans=(), corrupt_spans=())

    def axis(self, name: str) -> str:
        """The value of one key of the file, of those above or of ``axes``; empty where the pair has none."""
        return str(getattr(self, name)) if name in TEXT_KEYS else dict(self.axes).get(name, "")


@dataclass(frozen=True, repr=False)
class Task:
    """The pairs of a file, or of memory (``from_pairs``); ``sha256`` is the file's, or that of the pairs.

    ``len(task)``, ``task[3]`` and ``task[:8]`` are as of a sequence; a slice is a task.

    ``repeated`` counts rows of the file that say the same as one before them, ``unfit`` those that ``fitting`` left
    out; neither are among ``pairs``.
    """

    pairs: tuple[PromptPair, ...]
    source: str
    sha256: str
    repeated: int = 0
    unfit: int = 0

    @classmethod
    def from_pairs(cls, pairs: Iterable[Mapping[str, Any]], *, source: str = "pairs in memory") -> Task:
        """A task of pairs in memory.

        Parameters
        ----------
        pairs
            Mappings with the keys of a pair file's rows: ``clean``, ``corrupt``, ``answers`` and ``wrong_answers``
            (a list of texts each, or one text), and any others, such as ``split`` or ``domain``.
        source
            What results call it.

        Returns
        -------
        The pairs, each once.

        Raises
        ------
        TaskError
            Any of the pairs is malformed; every fault is listed with its place.

        Examples
        --------
        >>> from persona_circuits import Task
        >>> pair = {"clean": "You are a cook. Red or blue?", "corrupt": "You are a poet. Red or blue?"}
        >>> Task.from_pairs([{**pair, "answers": " red", "wrong_answers": " blue"}])
        Task(1 pair of pairs in memory)
        """
        from persona_circuits.circuit.task.reading import task_of_items

        return task_of_items(pairs, source)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PromptPair]:
        return iter(self.pairs)

    @overload
    def __getitem__(self, place: int) -> PromptPair: ...
    @overload
    def __getitem__(self, place: slice) -> Task: ...
    def __getitem__(self, place: int | slice) -> PromptPair | Task:
        """One pair, or a task of some."""
        return replace(self, pairs=self.pairs[place]) if isinstance(place, slice) else self.pairs[place]

    def __repr__(self) -> str:
        counts = [f"{name} {sum(pair.split == name for pair in self.pairs)}" for name in self.splits]
        pairs = f"{len(self)} pair{'' if len(self) == 1 else 's'} of {self.source}"
        return f"Task({': '.join([pairs, ', '.join(counts)]) if counts else pairs})"

    def _repr_html_(self) -> str:
        columns = ("id", "clean", "corrupt", "answers", "wrong_answers", "split")
        rows = [[getattr(pair, name) for name in columns] for pair in self.pairs[:5]]
        return html_table(f"{self!r}{', the first 5' if len(self) > 5 else ''}", columns, rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on rows of the file that are not used."""
        singular, plural = (
            "pair says the same as one before it and is",
            "pairs say the same as others before them and are",
        )
        return (
            *([f"{self.repeated} {singular if self.repeated == 1 else plural} left out"] if self.repeated else []),
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
            known = sorted({pair.axis(key) for pair in self.pairs} - {""})
            if not known:
                raise self._without(key)
            if values[key] not in known:
                near = meant(str(values[key]), known)
                raise TaskError(
                    f"no pair of {self.source} has {key} {values[key]!r}; there are: {', '.join(known)}{near}"
                )
        conditions = " and ".join(f"{key} {value!r}" for key, value in values.items())
        raise TaskError(f"no pair of {self.source} has {conditions} together")

    def _without(self, key: str) -> TaskError:
        keys = dict.fromkeys(name for pair in self.pairs for name in (*TEXT_KEYS, *dict(pair.axes)))
        return TaskError(f"no pair of {self.source} has a {key!r}; give a key of its rows{meant(key, keys)}")

    def groups(self, key: str) -> dict[str, Task]:
        """The pairs by the value of a key, in order of appearance; pairs without it are in no group.

        Raises:
            TaskError: no pair has the key.
        """
        values = [value for value in dict.fromkeys(pair.axis(key) for pair in self.pairs) if value]
        if not values:
            raise self._without(key)
        return {value: self.where(**{key: value}) for value in values}


def without_forms(pairs: Iterable[PromptPair], what: str) -> None:
    """Refuse pairs whose options are sets of forms, where ``what`` reads one token of each.

    Raises:
        TaskError: there is one.
    """
    for pair in pairs:
        if pair.forms is not None:
            raise TaskError(
                f"{pair.place} gives its options 'forms', and {what} reads one token of each; take 'forms' out of the "
                "pairs, or build them without --forms"
            )
