"""Pairs for the generic prior: one persona, two questions whose defaults differ.

They are made of the prompts of a pair file, so that the circuit of the prior is searched on the
prompts that the persona's circuit is searched on, met another way:

1. The default of a question is the candidate that the model likes best without a persona, by the
   mean log probability over wordings other than those of the row. No prompt that ends up in a pair is asked.
2. Two rows of one split, of the same two personas and of two questions, make two pairs: under either
   persona the first question is ``clean`` and the second ``corrupt``. The prompts of a pair have equal
   token length and differ from the question on.
3. Each default is set against another option of its own question, so that a margin has four words:

       m = 1/2 [l(default 1) - l(other 1)] - 1/2 [l(default 2) - l(other 2)]

   A question raises its own options above all other words even where it prefers none of them. That is
   no prior, and it cancels, as it lifts a default and its other option alike. Where both defaults are
   options of both questions (``form`` is ``shared``, else ``balanced``), each is the other one's other
   option, and m = l(default 1) - l(default 2).
4. The two personas' own preferences cancel in the mean over their two pairs: where the default is what one of
   them prefers, the other option is what the other one prefers (the margin is then b of the row),
   else it is the least likely option that neither prefers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from circuit.errors import OptionError, TaskError, listed
from circuit.finite import check_finite, of_prompts
from circuit.model import Model
from circuit.options import PlainNumbers
from circuit.storage import replace_files, write_json, write_text
from circuit.task import PromptPair, Task, beyond_embedding, encode, token_ids, without_end
from persona.items import Item, ItemFile, Neutral, neutral_prompts

__all__ = ["REASONS", "PriorOptions", "PriorPairs", "build_prior_pairs", "write_prior_pairs"]

Progress = Callable[[int, int], None]
N_EXAMPLES = 5
REASONS = {
    "no other wording": "the default is unknown: --neutral has no wording of the question but the row's own",
    "only one question": "the two personas are asked one question only in this split",
    "same default": "both questions have the same default",
    "unequal length": "the two prompts differ in token length",
    "other text before the question": "the two prompts differ before the question: another wording or other filler",
    "no other option": "every option but the default is preferred by one of the personas and not the other",
    "options in part the same": "one question has one of the other's two options, so its lift would not cancel",
    "weak default": "without a persona the default leads the other option by less than --min-lead",
    "prior of the words": "without a persona the contrast is below --min-lead: the default leads as much behind "
    "the other question, so its prior is not the question's",
    "does not fit the model": "a word is not one token behind the other question's prompt",
    "asked already": "the same persona and questions are in another pair",
}


@dataclass(frozen=True)
class PriorOptions(PlainNumbers):
    """How prior pairs are chosen: ``min_lead`` in logits without a persona, ``max_pairs`` per split."""

    min_lead: float = 1.0
    max_pairs: int = 64
    batch_size: int = 32
    seed: int = 0

    def checked(self) -> PriorOptions:
        """These options.

        Raises:
            OptionError: one of them makes no sense.
        """
        if not self.min_lead >= 0:
            raise OptionError(f"--min-lead must not be negative, got {self.min_lead:g}")
        if self.max_pairs < 2:
            raise OptionError(f"--max-pairs must be at least 2, one for either persona, got {self.max_pairs}")
        if self.batch_size < 1:
            raise OptionError(f"--batch-size must be at least 1, got {self.batch_size}")
        return self


@dataclass(frozen=True)
class PriorPairs:
    """The rows of a pair file; ``dropped`` has a count and examples per reason, ``about`` the rest of the report."""

    rows: tuple[dict[str, Any], ...]
    dropped: Mapping[str, tuple[int, tuple[str, ...]]]
    about: Mapping[str, Any]

    def report(self) -> dict[str, Any]:
        """What is written beside the pairs."""
        return {
            "kept": len(self.rows),
            "kept_by_split": _counted(row.get("split", "") for row in self.rows),
            "kept_by_form": _counted(row["form"] for row in self.rows),
            "mean_lead": round(float(np.mean([row["leads"] for row in self.rows])), 4),
            "mean_expected": round(float(np.mean([row["expected"] for row in self.rows])), 4),
            "dropped": [
                {"reason": reason, "count": count, "examples": list(examples), "meaning": REASONS[reason]}
                for reason, (count, examples) in self.dropped.items()
            ],
            **self.about,
        }


def build_prior_pairs(
    model: Model,
    items: ItemFile,
    neutral: Sequence[Neutral],
    *,
    options: PriorOptions | None = None,
    progress: Progress | None = None,
) -> PriorPairs:
    """Make prior pairs of a persona pair file for a model.

    Parameters
    ----------
    neutral
        Wordings of the questions, of which those that a row does not use say what its default is.
    progress
        Called with the neutral prompts asked and all of them.

    Raises
    ------
    TaskError
        The pairs do not fit the model, or no prior pair can be made; all reasons are listed.
    OptionError
        An option makes no sense.
    """
    options = (options or PriorOptions()).checked()
    asked = _study_items(items)
    tally = _Tally()
    leanings = _leanings(model, asked, neutral, options.batch_size, progress or _silent)
    sides = []
    for place, item in enumerate(asked):
        if place not in leanings:
            tally.drop("no other wording", f"{item.pair.id} ({item.question})")
        elif len({*item.candidates} & {*leanings[place]}) < 2:
            tally.drop("does not fit the model", f"{item.pair.id}: fewer than two options are one token")
        else:
            sides.append(_Asked(item, leanings[place], model))
    rows = tuple(_chosen(_meetings(sides, tally), options, tally))
    if not rows:
        raise TaskError(listed(f"no prior pair can be made of {items.source}:", tally.lines()))
    about = {
        "source": items.source,
        "sha256": items.sha256,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "options": asdict(options),
        "defaults": _defaults(sides),
    }
    return PriorPairs(rows, tally.dropped(), about)


def write_prior_pairs(built: PriorPairs, path: str | Path, report: str | Path | None = None) -> Path:
    """Write the pairs as JSON Lines and the report beside them (``X.report.json``); returns the report's path."""
    path = Path(path)
    report = path.with_suffix(".report.json") if report is None else Path(report)
    if report.resolve() == path.resolve():
        raise OptionError(f"--out and --report must be different files, both are {path}")
    with replace_files(path, report) as (pairs, beside):
        write_json({"pairs": str(path), **built.report()}, beside)
        write_text("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in built.rows), pairs)
    return report


@dataclass
class _Tally:
    """What was dropped; the one thing here that grows."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, example: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < N_EXAMPLES:
            shown.append(example)

    def dropped(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        order = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        return {reason: (self.counts[reason], tuple(self.examples[reason])) for reason in order}

    def lines(self) -> list[str]:
        found = self.dropped().items()
        return [f"{n} × {reason}: {REASONS[reason]} (such as {shown[0]})" for reason, (n, shown) in found]


class _Drop(Exception):
    """Two rows make no prior pairs: the reason, a key of REASONS, and what is special here."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class _Asked:
    """A row of the pair file: its prompts by persona, what the personas prefer, and how the model leans without one."""

    def __init__(self, item: Item, leaning: Mapping[str, float], model: Model) -> None:
        pair = item.pair
        self.item, self.leaning, self.model = item, leaning, model
        self.options = tuple(text for text in item.candidates if text in leaning)
        self.question, self.split = pair.question, pair.split
        self.personas = (pair.persona_a, pair.persona_b)
        self.prompts = dict(zip(self.personas, (pair.clean, pair.corrupt), strict=True))
        self.ids = {persona: token_ids(prompt, model) for persona, prompt in self.prompts.items()}
        self.starts = dict(zip(self.personas, _starts(pair, *self.ids.values()), strict=True))
        self.preferred = (set(pair.answers), set(pair.wrong_answers))
        self.default = max(self.options, key=lambda text: leaning[text])

    def lead(self, other: str) -> float:
        """Logits by which the default leads the other option without a persona."""
        return self.leaning[self.default] - self.leaning[other]

    def balances(self, other: str) -> bool:
        """Whether default and other option are both preferred, by one persona each, or by neither."""
        default, another = ([text in side for side in self.preferred] for text in (self.default, other))
        return sum(default) == sum(another) and (default != another or not any(default))

    def other(self) -> str:
        """The other option: step 4 of the module."""
        rest = [text for text in self.options if text != self.default and self.balances(text)]
        if not rest:
            raise _Drop("no other option", self.question)
        return min(rest, key=lambda text: self.leaning[text])


def _study_items(items: ItemFile) -> list[Item]:
    """The rows with two personas and a question, controls left out.

    Raises:
        TaskError: there are none.
    """
    found = [
        item
        for item in items.items
        if item.control == "none" and item.pair.question and item.pair.persona_a != item.pair.persona_b
    ]
    if not found:
        raise TaskError(
            f"{items.source} has no pair that names its question and two personas "
            "('question', 'persona_a', 'persona_b'); build one with persona-circuits pairs"
        )
    return found


def _leanings(
    model: Model,
    items: Sequence[Item],
    neutral: Sequence[Neutral],
    batch_size: int,
    progress: Progress,
) -> dict[int, dict[str, float]]:
    """Per item with another wording: mean log probability without a persona of every option of the whole file.

    An option that is not one token behind one of the prompts is left out.
    """
    wordings = tuple(neutral)
    prompts = {place: found for place, item in enumerate(items) if (found := neutral_prompts(item, wordings))}
    unique = list(dict.fromkeys(prompt for found in prompts.values() for prompt in found))
    options = list(dict.fromkeys(text for item in items for text in item.candidates))
    known = _log_probs(model, unique, options, batch_size, progress)
    return {
        place: {
            text: float(np.mean([known[prompt][text] for prompt in found]))
            for text in options
            if all(text in known[prompt] for prompt in found)
        }
        for place, found in prompts.items()
    }


def _log_probs(
    model: Model, prompts: Sequence[str], options: Sequence[str], batch_size: int, progress: Progress
) -> dict[str, dict[str, float]]:
    """Per prompt: log probability over the whole vocabulary of every option that is one token there."""
    by_length: dict[int, list[tuple[str, list[int]]]] = {}
    for prompt in prompts:
        ids = token_ids(prompt, model)
        by_length.setdefault(len(ids), []).append((prompt, ids))
    found: dict[str, dict[str, float]] = {}
    for group in by_length.values():
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            tokens = torch.tensor([ids for _, ids in part], device=model.device)
            answers = model.logits(tokens)[:, -1].cpu().double().log_softmax(-1)
            check_finite(answers, of_prompts(model, tokens))
            for (prompt, ids), row in zip(part, answers, strict=True):
                found[prompt] = {text: float(row[i]) for text, i in _answer_ids(prompt, ids, options, model).items()}
            progress(len(found), len(prompts))
    return found


def _answer_ids(prompt: str, ids: list[int], options: Sequence[str], model: Model) -> dict[str, int]:
    """The options that are one token behind the prompt; the rule is ``circuit.task.answer_id``'s, for many at once."""
    own_bos = bool(model.tokenizer.bos_token) and prompt.startswith(model.tokenizer.bos_token)
    texts = [prompt + text for text in options]
    joined = model.tokenizer(texts, add_special_tokens=not own_bos)["input_ids"]
    joined = [without_end(list(after), text, model.tokenizer) for text, after in zip(texts, joined, strict=True)]
    return {
        text: after[-1]
        for text, after in zip(options, joined, strict=True)
        if len(after) == len(ids) + 1 and after[:-1] == ids and not beyond_embedding(after[-1:], model)
    }


def _silent(done: int, total: int) -> None:
    """No progress is wanted."""


def _starts(pair: PromptPair, clean: Sequence[int], corrupt: Sequence[int]) -> tuple[int, int]:
    """The first token of either prompt's question; where the file has no spans, the first one after the personas."""
    spans = [next((s.start for s in side if s.name == "question"), None) for side in (pair.spans, pair.corrupt_spans)]
    if spans[0] is not None and spans[1] is not None:
        return spans[0], spans[1]
    same = 0
    while same < min(len(clean), len(corrupt)) and clean[-1 - same] == corrupt[-1 - same]:
        same += 1
    return len(clean) - same, len(corrupt) - same


def _meetings(sides: Sequence[_Asked], tally: _Tally) -> list[list[tuple[_Asked, _Asked]]]:
    """Two rows of one split and the same two personas, by their two questions."""
    groups: dict[tuple[Any, ...], list[_Asked]] = {}
    for side in sides:
        groups.setdefault((side.split, *sorted(side.personas)), []).append(side)
    met: dict[tuple[str, ...], list[tuple[_Asked, _Asked]]] = {}
    for rows in groups.values():
        if len({row.question for row in rows}) == 1:
            tally.drop("only one question", f"{' and '.join(rows[0].personas)}, {rows[0].question}")
        for first, second in combinations(rows, 2):
            if first.question != second.question:
                met.setdefault((first.split, *sorted((first.question, second.question))), []).append((first, second))
    return [met[key] for key in sorted(met)]


def _chosen(
    met: Sequence[list[tuple[_Asked, _Asked]]], options: PriorOptions, tally: _Tally
) -> Iterator[dict[str, Any]]:
    """The pairs, in turn one meeting of every two questions, until a split has enough."""
    rng = random.Random(f"{options.seed}/prior")
    queues = [rng.sample(meetings, len(meetings)) for meetings in met]
    rng.shuffle(queues)
    made: dict[str, int] = {}
    used: set[tuple[str, ...]] = set()
    while queues := [queue for queue in queues if queue]:
        for queue in queues:
            first, second = queue.pop()
            if made.get(first.split, 0) + 2 > options.max_pairs:
                queue.clear()
                continue
            try:
                rows = _rows(first, second, options, used)
            except _Drop as drop:
                names = f"{' and '.join(first.personas)}: {first.question} and {second.question}"
                tally.drop(drop.reason, f"{names}{f', {drop.detail}' if drop.detail else ''}")
                continue
            made[first.split] = made.get(first.split, 0) + len(rows)
            used |= {(row["clean"], row["corrupt"]) for row in rows}
            yield from rows


def _rows(
    first: _Asked, second: _Asked, options: PriorOptions, used: set[tuple[str, ...]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both personas' pairs of two questions.

    Raises:
        _Drop: they make none.
    """
    for persona in first.personas:
        _check_prompts(first, second, persona)
    if first.default == second.default:
        raise _Drop("same default", repr(first.default))
    form, others = _others(first, second)
    leads = [side.lead(other) for side, other in zip((first, second), others, strict=True)]
    if min(leads) < options.min_lead:
        raise _Drop("weak default", f"leads {leads[0]:.2f} and {leads[1]:.2f}")
    words = _words(first, second, form, others)
    expected = _margin(first, words) - _margin(second, words)
    if expected < options.min_lead:
        raise _Drop("prior of the words", f"leads {leads[0]:.2f} and {leads[1]:.2f}, contrast {expected:.2f}")
    about = {"form": form, "leads": [round(lead, 3) for lead in leads], "expected": round(expected, 3)}
    a, b = (_row(first, second, persona, words, about) for persona in first.personas)
    if any(pair in used for row in (a, b) for pair in _either_way(row)):
        raise _Drop("asked already")
    return a, b


def _check_prompts(first: _Asked, second: _Asked, persona: str) -> None:
    """Equal length, and no difference before the question."""
    ids = first.ids[persona], second.ids[persona]
    if len(ids[0]) != len(ids[1]):
        raise _Drop("unequal length", f"{len(ids[0])} and {len(ids[1])} tokens")
    start = max(first.starts[persona], second.starts[persona])
    if ids[0][:start] != ids[1][:start]:
        raise _Drop("other text before the question", persona)


def _words(
    first: _Asked, second: _Asked, form: str, others: tuple[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Answers and wrong answers."""
    if form == "shared":
        return (first.default,), (second.default,)
    return (first.default, others[1]), (second.default, others[0])


def _margin(side: _Asked, words: tuple[tuple[str, ...], tuple[str, ...]]) -> float:
    """The pair's margin at one question, without a persona."""
    answers, wrong = words
    if not all(text in side.leaning for text in (*answers, *wrong)):
        raise _Drop("does not fit the model", f"{answers} and {wrong} behind {side.question}")
    return float(np.mean([side.leaning[text] for text in answers]) - np.mean([side.leaning[text] for text in wrong]))


def _either_way(row: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[str, str]]:
    return (row["clean"], row["corrupt"]), (row["corrupt"], row["clean"])


def _others(first: _Asked, second: _Asked) -> tuple[str, tuple[str, str]]:
    """The form, and what either default is set against."""
    exchanged = (second.default, first.default)
    if all(
        other in side.options and side.balances(other) for side, other in zip((first, second), exchanged, strict=True)
    ):
        return "shared", exchanged
    others = first.other(), second.other()
    words = [{side.default, other} for side, other in zip((first, second), others, strict=True)]
    if words[0] & words[1] or any(
        len(theirs & set(mine.options)) == 1 for mine, theirs in ((first, words[1]), (second, words[0]))
    ):
        raise _Drop("options in part the same", f"{sorted(words[0])} and {sorted(words[1])}")
    return "balanced", others


def _row(
    first: _Asked,
    second: _Asked,
    persona: str,
    words: tuple[tuple[str, ...], tuple[str, ...]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    prompts = first.prompts[persona], second.prompts[persona]
    try:
        encode(Task((PromptPair(*prompts, *words),), "a prior pair", ""), first.model)
    except TaskError as error:
        raise _Drop("does not fit the model", str(error).splitlines()[-1].strip()) from error
    spans = _spans(first, second, persona)
    return {
        "id": f"{persona}/{first.question}~{second.question}/{first.item.pair.id}",
        "clean": prompts[0],
        "corrupt": prompts[1],
        "answers": list(words[0]),
        "wrong_answers": list(words[1]),
        "persona_a": persona,
        "persona_b": persona,
        "question": f"{first.question}~{second.question}",
        **({"split": first.split} if first.split else {}),
        "candidates": list(dict.fromkeys([*first.options, *second.options])),
        "contrast": "prior",
        "control": "prior",
        **about,
        "n_tokens": len(first.ids[persona]),
        **({"spans": spans} if spans else {}),
    }


def _spans(first: _Asked, second: _Asked, persona: str) -> dict[str, dict[str, dict[str, list[int]]]]:
    """The parts of both prompts, where the pair file names them."""
    sides = []
    for asked in (first, second):
        pair = asked.item.pair
        sides.append(pair.spans if persona == pair.persona_a else pair.corrupt_spans)
    named = [{span.name: {"tokens": [span.start, span.end]} for span in side} for side in sides]
    return {"clean": named[0], "corrupt": named[1]} if all(named) else {}


def _defaults(sides: Sequence[_Asked]) -> dict[str, dict[str, Any]]:
    """Per question: which candidates were a row's default, and the mean log probabilities."""
    found: dict[str, dict[str, Any]] = {}
    for question in sorted({side.question for side in sides}):
        mine = [side for side in sides if side.question == question]
        texts = [text for text in mine[0].options if all(text in side.options for side in mine)]
        found[question] = {
            "default": _counted(side.default for side in mine),
            "log_probs": {text: round(float(np.mean([side.leaning[text] for side in mine])), 4) for text in texts},
        }
    return found


def _counted(values: Iterator[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        if value:
            found[value] = found.get(value, 0) + 1
    return found
