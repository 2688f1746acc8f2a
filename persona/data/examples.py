"""The prompts of a pair file as examples: each with its persona, question, template, wording, and named positions.

A pair gives two examples, its ``clean`` prompt first. What a file does not say is taken
from the text: the template is what stands around the question, the wording is the
persona's text. With a file of personas the wording is its number there, so that the same
form of different personas has one name.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import OptionError, TaskError, listed
from persona_circuits.circuit.task import (
    ALIKE,
    Forms,
    PromptPair,
    Reader,
    Task,
    answer_id,
    lost_differences,
    misfit,
    n_vocab_of,
    overlap_of_prompts,
    read_forms,
    token_ids,
    without_forms,
)
from persona_circuits.circuit.task import fitting as those_that_fit
from persona_circuits.persona.data.items import Item, ItemFile, load_items
from persona_circuits.persona.data.positions import POSITIONS, Placed, locate, seen
from persona_circuits.persona.data.values import Persona

__all__ = ["Example", "ExampleFile", "examples_of", "firsts", "leak", "load_examples", "shared_positions", "told_once"]


@dataclass(frozen=True)
class Example:
    """One prompt. ``pair`` is the place of its pair among the file's, ``is_clean`` its side.

    ``answers`` and ``others`` are the ids of what this prompt's persona is to prefer and of
    what the other one is to prefer; ``candidates`` those of all options, in the file's order. Where options are sets of
    ``forms``, ids count from the size of the vocabulary on, in the order of ``forms.names``.
    """

    pair: int
    is_clean: bool
    placed: Placed
    persona: str
    question: str
    template: str
    wording: str
    split: str
    answers: tuple[int, ...]
    others: tuple[int, ...]
    candidates: tuple[int, ...]
    forms: Forms | None = None

    @property
    def sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The pair's answers, persona A's first, whichever prompt this is."""
        return (self.answers, self.others) if self.is_clean else (self.others, self.answers)


@dataclass(frozen=True)
class ExampleFile:
    """The examples of a pair file, two for each of ``items``; ``sha256`` is the file's."""

    items: tuple[Item, ...]
    examples: tuple[Example, ...]
    source: str
    sha256: str

    @property
    def uneven(self) -> int:
        """How many pairs have prompts of different length."""
        first, second = self.examples[::2], self.examples[1::2]
        return sum(len(a.placed.ids) != len(b.placed.ids) for a, b in zip(first, second, strict=True))

    def once(self, position: str) -> ExampleFile:
        """The first of all pairs with the same two streams at a position, which is so where their prompts agree so far.

        The question comes later; where pairs are left out, the remaining ones name none.
        """
        kept = firsts([seen(example.placed, position) for example in self.examples])
        if len(kept) == len(self.items):
            return self
        examples = [
            replace(self.examples[2 * i + side], pair=n, question="") for n, i in enumerate(kept) for side in (0, 1)
        ]
        return replace(self, items=tuple(self.items[i] for i in kept), examples=tuple(examples))


def load_examples(path: str | Path, reader: Reader, *, label: str | None = None, **how: Any) -> ExampleFile:
    """Read a pair file and lay its prompts out for one tokenizer, as ``examples_of`` does.

    ``label`` is what results call the file, if not ``path``.

    Raises:
        TaskError: the file cannot be read, or as ``examples_of``.
        OptionError: as ``examples_of``.
    """
    return examples_of(load_items(path, label=label), reader, **how)


def examples_of(
    items: ItemFile,
    reader: Reader,
    *,
    split: str = "all",
    tokens: tuple[str, str] | None = None,
    personas: Sequence[Persona] = (),
    fitting: bool = False,
    align: str | None = None,
    takes_forms: bool = False,
) -> ExampleFile:
    """The prompts of a pair file that was read, laid out for one tokenizer.

    Parameters
    ----------
    reader
        The model, or anything else with its tokenizer.
    tokens
        Two words that take the place of every pair's answers and candidates: the first
        persona's and the second's.
    personas
        Who the personas are; gives wordings their numbers.
    fitting
        Go on with the pairs that fit, and say in ``source`` how many do; with ``align`` those of which both
        prompts can be run side by side too, one of ``circuit.task.batching.ALIGNMENTS``.
    takes_forms
        Options may be sets of forms; else such pairs are refused.

    Raises
    ------
    TaskError
        The file has no such split, an answer is not one token in its context, or a prompt has two BOS tokens
        or is too long; all faults are listed.
    OptionError
        ``tokens`` are no two single tokens after every prompt.
    """
    chosen = items.of_split(split)
    if not takes_forms or tokens is not None:
        without_forms((item.pair for item in chosen.items), "this command" if tokens is None else "--tokens")
    wordings = {(persona.name, text): str(i) for persona in personas for i, text in enumerate(persona.wordings)}
    faults: list[str] = []
    fit: list[Item] = []
    examples: list[Example] = []
    able = _side_by_side(chosen, reader, align) if fitting and align else chosen.items
    for item in able:
        own = _examples(len(fit), item, reader, tokens, wordings, faults)
        examples += own
        fit += [item] if own else []
    if fitting and fit:
        chosen, faults = chosen.only(fit), []
    if faults and tokens is not None:
        headline = (
            f"--tokens: each word must be one token after every prompt of {chosen.source}; {len(faults)} fault(s):"
        )
        raise OptionError(listed(headline, faults, most=4))
    if faults:
        raise TaskError(misfit(chosen.source, reader.name, len(chosen.items), len(chosen.items) - len(fit), faults))
    return ExampleFile(chosen.items, tuple(examples), chosen.source, chosen.sha256)


def firsts(keys: Sequence[Hashable]) -> list[int]:
    """The indices of pairs whose two keys no earlier pair has; ``keys`` are those of both sides in turn."""
    first_at: dict[tuple[Hashable, Hashable], int] = {}
    for i, pair in enumerate(zip(keys[::2], keys[1::2], strict=True)):
        first_at.setdefault(pair, i)
    return [*first_at.values()]


def told_once(found: ExampleFile, position: str) -> tuple[str, ...]:
    """A note where ``once`` leaves pairs out."""
    kept, n = len(found.once(position).items), len(found.items)
    says = f"{position}: {n} pairs have {kept} pairs of different streams there, each of which is counted once"
    return (says,) if kept < n else ()


def leak(fitted: ExampleFile, measured: ExampleFile) -> str:
    """A note where pairs measured on have prompts, as tokens, that were fitted on; empty where none have."""
    sides = [
        [(first.placed.ids, second.placed.ids) for first, second in zip(f.examples[::2], f.examples[1::2], strict=True)]
        for f in (fitted, measured)
    ]
    overlap = overlap_of_prompts(*sides)
    if overlap.held_out:
        return ""
    return (
        f"not held out: {overlap.pairs} of the {overlap.n_pairs} pairs measured on have the prompts of pairs that were "
        "selected or fitted on, whatever their ids"
    )


def _side_by_side(items: ItemFile, reader: Reader, align: str) -> list[Item]:
    task = Task(tuple(item.pair for item in items.items), items.source, items.sha256)
    able = {pair.id for pair in those_that_fit(task, reader, align=align).pairs}
    return [item for item in items.items if item.pair.id in able]


def shared_positions(found: ExampleFile, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The named positions that every prompt has, in their order; of ``wanted`` those, or an error.

    Raises:
        OptionError: a wanted position is unknown, or a prompt does not have it.
    """
    if unknown := [name for name in wanted if name not in POSITIONS]:
        raise OptionError(f"--positions: {unknown[0]!r} is not one of {', '.join(POSITIONS)}")
    shared = [name for name in POSITIONS if all(name in example.placed.places for example in found.examples)]
    for name in wanted:
        if name not in shared:
            example = next(example for example in found.examples if name not in example.placed.places)
            place = found.items[example.pair].pair.place
            raise OptionError(
                f"--positions {name}: there is no such place in {place} (persona and question are found by "
                "'spans', or by comparing the two prompts); leave this position out, or build the file with the "
                "pairs command"
            )
    return tuple(name for name in shared if not wanted or name in wanted)


def _examples(
    place: int,
    item: Item,
    reader: Reader,
    tokens: tuple[str, str] | None,
    wordings: Mapping[tuple[str, str], str],
    faults: list[str],
) -> list[Example]:
    pair, row = item.pair, item.pair.row
    own: list[str] = []
    sides = locate(pair, reader, row.get("spans"), own)
    own += (lost := lost_differences({side.text: side.ids for side in sides}, reader))
    if sides[0].ids == sides[1].ids and not lost:
        own.append(ALIKE)
    texts = (pair.answers, pair.wrong_answers) if tokens is None else ((tokens[0],), (tokens[1],))
    candidates = item.candidates if tokens is None else tokens
    forms = None if pair.forms is None else _forms(item, sides, reader, own)
    if forms is not None:
        ids = [{text: n_vocab_of(reader) + i for i, text in enumerate(forms.names)}] * 2
    else:
        ids = [_ids(pair, side, (*texts[0], *texts[1], *candidates), reader, own) for side in sides]
        own += [] if own else _answer_faults(texts, ids, reader)
    faults += [f"{pair.place}: {fault}" for fault in dict.fromkeys(own)]
    if own:
        return []
    first, second = (tuple(ids[0][text] for text in side) for side in texts)
    people = (pair.persona_a, pair.persona_b)
    return [
        Example(
            pair=place,
            is_clean=turn == 0,
            placed=side,
            persona=people[turn],
            question=item.question,
            template=str(row.get("template") or side.frame),
            wording=_wording(row.get(f"wording_{'ab'[turn]}"), people[turn], side.persona, wordings),
            split=pair.split,
            answers=(first, second)[turn],
            others=(second, first)[turn],
            candidates=tuple(ids[0][text] for text in candidates),
            forms=forms,
        )
        for turn, side in enumerate(sides)
    ]


def _forms(item: Item, sides: Sequence[Placed], reader: Reader, faults: list[str]) -> Forms:
    """Those of all candidates, after both prompts."""
    pair = item.pair
    rest = tuple(text for text in item.candidates if text not in pair.wrong_answers)
    prompts = [(list(side.ids), side.text, lambda text: token_ids(text, reader)) for side in sides]
    return read_forms(replace(pair, answers=rest), prompts, reader, faults)


def _ids(pair: PromptPair, side: Placed, texts: Sequence[str], reader: Reader, faults: list[str]) -> dict[str, int]:
    """The one token of every word after this prompt, by the rule of ``circuit.task``; never by the word alone."""
    ids = {text: answer_id(side.text, list(side.ids), text, reader, faults) for text in dict.fromkeys(texts)}
    unknown = reader.tokenizer.unk_token_id
    faults += [
        f"the tokenizer has no token for {text!r}; use a word (and case) that it knows"
        for text, token in ids.items()
        if token is not None and token == unknown
    ]
    return {text: token for text, token in ids.items() if token is not None}


def _answer_faults(
    texts: tuple[tuple[str, ...], tuple[str, ...]], ids: Sequence[Mapping[str, int]], reader: Reader
) -> list[str]:
    if ids[0] != ids[1]:
        return ["an answer is another token after the clean than after the corrupt prompt; let both end alike"]
    shared = {ids[0][text] for text in texts[0]} & {ids[0][text] for text in texts[1]}
    if len(set(ids[0].values())) < len(ids[0]) and not shared:
        return ["two candidates are the same token"]
    return [f"{reader.tokenizer.decode([token])!r} is the answer of both personas" for token in sorted(shared)]


def _wording(given: Any, persona: str, text: str, known: Mapping[tuple[str, str], str]) -> str:
    return str(given) if given is not None else known.get((persona, text), text)
