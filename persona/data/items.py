"""What a behavioural study asks: the pairs of a file with their candidates and axes, and neutral wordings.

Keys that a pair file may have besides those of ``circuit.task.batching``:

    candidates   all options of the question, as text that continues the prompt;
                 without it they are the answers and the wrong answers
    placement, contrast, bias, control, domain, held_out, prior_level   axes: any text or number

``control`` is ``none`` (or absent) for the pairs of the study and names the control
otherwise; ``paraphrase`` are two descriptions of one persona.

Neutral wordings ask without a persona. A file of them is JSON Lines of any of these forms:

    {"question": "home-house", "wording": "Name a house.", "prompt": "Q: Name a house.\nA:"}
    {"id": "home-house", "wordings": ["Which house do you prefer?", "Name a house."]}

The second form has no prompts: a wording takes the place of the pair's own in the
pair's prompt, of which everything before the line of the question is left out. The rows of a pair file with neutral
prompts (``pairs --add-neutral``) do as well: what ``clean`` and ``neutral`` end in is the wording.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import OptionError, TaskError, listed
from persona_circuits.circuit.storage import Kind, decoded, json_lines, read_bytes, read_json_lines
from persona_circuits.circuit.task import PromptPair, Task, load_task
from persona_circuits.circuit.task.reading import task_of_items

__all__ = [
    "Item",
    "ItemFile",
    "Neutral",
    "items_of",
    "load_items",
    "load_neutral",
    "load_unanswered",
    "neutral_prompts",
    "shared_by",
]

PAIRS = Kind("pair file", TaskError)
NEUTRAL = Kind("file of neutral wordings", TaskError)
AXES = ("contrast", "bias", "placement", "held_out", "prior_level", "domain", "control")


@dataclass(frozen=True)
class Item:
    """A pair with all candidates of its question, in the file's order, and its axes."""

    pair: PromptPair
    candidates: tuple[str, ...]
    axes: Mapping[str, str]

    @property
    def control(self) -> str:
        """The control that this pair is, ``none`` for a pair of the study itself."""
        return self.axes.get("control", "none")

    @property
    def names_no_more(self) -> bool:
        """Whether the row does not say if its question has options besides the two sides' answers."""
        declared = (*self.pair.answers, *self.pair.wrong_answers)
        return self.candidates == declared and "candidates" not in self.pair.row

    @property
    def question(self) -> str:
        """The question's name, or the pair's id where the file names none."""
        return self.pair.question or f"pair {self.pair.id}"

    @property
    def personas(self) -> tuple[str, str]:
        """The two personas, or the pair's id for both where the file names none."""
        if not (self.pair.persona_a and self.pair.persona_b):
            return f"pair {self.pair.id}", f"pair {self.pair.id}"
        return self.pair.persona_a, self.pair.persona_b

    @property
    def persona_pair(self) -> str:
        """The two personas in no order, or the pair's id where the file names none."""
        if not (self.pair.persona_a and self.pair.persona_b):
            return f"pair {self.pair.id}"
        return " / ".join(sorted((self.pair.persona_a, self.pair.persona_b)))


@dataclass(frozen=True)
class ItemFile:
    """The items of a pair file; ``sha256`` is the file's."""

    items: tuple[Item, ...]
    source: str
    sha256: str

    def of_split(self, split: str) -> ItemFile:
        """The items of one split; ``all`` gives every item.

        Raises:
            TaskError: the file has no such split.
        """
        if split == "all":
            return self
        chosen = tuple(item for item in self.items if item.pair.split == split)
        if not chosen:
            known = ", ".join(dict.fromkeys(item.pair.split for item in self.items if item.pair.split))
            raise TaskError(f"{self.source} has no pair of split {split!r}; its splits are: {known or 'none'}")
        return replace(self, items=chosen)

    def with_tokens(self, tokens: tuple[str, str]) -> ItemFile:
        """The same prompts with these two words for every pair's answers and candidates.

        Raises:
            OptionError: the words are one.
        """
        first, second = tokens
        if first == second:
            raise OptionError(f"--tokens {first!r} {second!r}: give two different words")
        items = (
            replace(item, pair=replace(item.pair, answers=(first,), wrong_answers=(second,)), candidates=tokens)
            for item in self.items
        )
        return replace(self, items=tuple(items))

    def only(self, fit: Sequence[Item]) -> ItemFile:
        """Those of the items that fit a model; ``source`` says how many do, wherever it is named."""
        if len(fit) == len(self.items):
            return self
        source = f"{self.source} ({len(fit)} of {len(self.items)} pairs, that fit)"
        return replace(self, items=tuple(fit), source=source)


def shared_by(items: Sequence[Item]) -> tuple[list[tuple[str, str]], list[str]]:
    """The personas and the question of each pair, by which pairs are not independent of each other."""
    return [item.personas for item in items], [item.question for item in items]


@dataclass(frozen=True)
class Neutral:
    """One wording of a question; ``prompt`` is None where it is to be made from a pair's."""

    question: str
    wording: str
    prompt: str | None = None


def load_items(path: str | Path, *, label: str | None = None) -> ItemFile:
    """Read a pair file with its candidates and axes; ``label`` is what results call it, if not ``path``.

    Raises:
        TaskError: any pair, candidate list or axis is malformed; all faults are listed.
    """
    return items_of(load_task(path, label=label), path)


def load_unanswered(path: str | Path, *, label: str | None = None) -> ItemFile:
    """The prompts of a pair file, JSON Lines, whose rows need no answers; answers that it has are ignored.

    Raises:
        TaskError: any pair is malformed otherwise; all faults are listed.
    """
    raw, faults = read_bytes(path, PAIRS), list[str]()
    rows = [row for _, row in json_lines(decoded(raw, path, PAIRS), faults)]
    if faults:
        raise TaskError(listed(f"pair file {path} has {len(faults)} fault(s):", faults))
    nothing = {"answers": ["A"], "wrong_answers": ["B"], "candidates": ["A", "B"]}
    task = task_of_items([{**row, **nothing} if isinstance(row, dict) else row for row in rows], str(path))
    read = items_of(task, path)
    items = (replace(item, pair=replace(item.pair, answers=(), wrong_answers=()), candidates=()) for item in read.items)
    return ItemFile(tuple(items), label or str(path), hashlib.sha256(raw).hexdigest())


def items_of(task: Task, path: str | Path = "") -> ItemFile:
    """The pairs of a task with their candidates and axes; ``path`` is what messages call its file, if not its source.

    Raises:
        TaskError: any candidate list or axis is malformed; all faults are listed.
    """
    faults: list[str] = []
    items = tuple(_item(pair, faults) for pair in task.pairs)
    if faults:
        raise TaskError(listed(f"pair file {path or task.source} has {len(faults)} fault(s):", faults))
    repeats = f" ({task.repeated} repeated left out)" if task.repeated else ""
    return ItemFile(items, task.source + repeats, task.sha256)


def load_neutral(path: str | Path) -> tuple[Neutral, ...]:
    """Read neutral wordings.

    Raises:
        TaskError: the file is missing, or a line is of neither form; all faults are listed.
    """
    faults: list[str] = []
    wordings = tuple(
        neutral for line, row in read_json_lines(path, NEUTRAL, faults) for neutral in _neutrals(line, row, faults)
    )
    if faults:
        raise TaskError(listed(f"file of neutral wordings {path} has {len(faults)} fault(s):", faults))
    if not wordings:
        raise TaskError(f"file of neutral wordings {path} is empty; expected one JSON object a line")
    return wordings


def neutral_prompts(item: Item, wordings: tuple[Neutral, ...]) -> tuple[str, ...]:
    """Prompts that put the item's question without a persona: the row's, and those in other wordings than its own.

    Empty where there is no other wording, or where the question cannot be taken out of
    the pair's prompt: its last lines, from that of the question on, must be the same in
    both prompts, which they are not if the persona stands there. The pair's own neutral prompt, where its row has
    one, comes first.
    """
    pair = item.pair
    same_question = [n for n in wordings if n.question == pair.question and pair.question]
    own = [n.wording for n in same_question if n.wording in pair.clean or n.wording in pair.corrupt]
    others = [n for n in same_question if n.wording not in own]
    frame = _question_lines(pair, max(own, key=len)) if own else None
    made = (n.prompt or (frame and frame[0] + n.wording + frame[1]) for n in others)
    return tuple(dict.fromkeys(prompt for prompt in (pair.neutral, *made) if prompt))


def _question_lines(pair: PromptPair, wording: str) -> tuple[str, str] | None:
    """What stands before and after the wording in the last lines of both prompts, from the wording's line on."""
    ends = set()
    for prompt in (pair.clean, pair.corrupt):
        before, match, after = prompt.rpartition(wording)
        ends.add((before[before.rfind("\n") + 1 :], after) if match else None)
    return ends.pop() if len(ends) == 1 else None


def _item(pair: PromptPair, faults: list[str]) -> Item:
    raw, declared = pair.row, (*pair.answers, *pair.wrong_answers)
    candidates = raw.get("candidates", list(declared))
    wrong = [*_candidate_faults(candidates, declared), *_axis_faults(raw)]
    faults += [f"{pair.place}: {fault}" for fault in wrong]
    axes = {key: str(raw[key]) for key in AXES if raw.get(key) is not None}
    return Item(pair, declared if wrong else tuple(candidates), axes)


def _candidate_faults(candidates: Any, declared: tuple[str, ...]) -> list[str]:
    if not isinstance(candidates, list) or not all(isinstance(text, str) and text for text in candidates):
        return ["'candidates' must be a list of strings"]
    faults = [] if len(set(candidates)) == len(candidates) else ["a candidate is listed twice"]
    missing = [text for text in declared if text not in candidates]
    return [*faults, *(f"{text!r} is an answer but no candidate; add it to 'candidates'" for text in missing)]


def _axis_faults(raw: Mapping[str, Any]) -> list[str]:
    return [f"{key!r} must be a string or a number" for key in AXES if isinstance(raw.get(key), list | dict)]


def _neutrals(line: int, row: Any, faults: list[str]) -> tuple[Neutral, ...]:
    row = row if isinstance(row, dict) else {}
    if _are_texts(row.get("question"), row.get("wording"), row.get("prompt")):
        if row["wording"] not in row["prompt"]:
            faults.append(f"line {line}: the wording {row['wording']!r} does not stand in its prompt")
        return (Neutral(row["question"], row["wording"], row["prompt"]),)
    if _are_texts(row.get("question"), row.get("neutral"), row.get("clean")):
        wording = _common_end(row["neutral"], row["clean"])
        if not wording:
            faults.append(f"line {line}: 'clean' and 'neutral' do not end in the same words, those of the question")
        return (Neutral(row["question"], wording, row["neutral"]),)
    wordings = row.get("wordings")
    if isinstance(wordings, list) and _are_texts(row.get("id"), *wordings):
        return tuple(Neutral(row["id"], wording) for wording in wordings)
    keys = "question, wording and prompt, or id and wordings, or question, neutral and clean"
    faults.append(f"line {line}: expected the keys {keys}, all text")
    return ()


def _are_texts(*values: Any) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _common_end(first: str, second: str) -> str:
    """The sentences, else the words, in which both texts end: the question as it is put in both prompts."""
    backwards = zip(first[::-1], second[::-1], strict=False)
    end = "".join(a for a, _ in takewhile(lambda two: two[0] == two[1], backwards))[::-1]
    cut = re.search(r"[.!?\n]\s*", end) or re.search(r"\s+", end)
    return end[cut.end() :] if cut else ""
