"""Pairs for the generic prior: one persona, two questions whose defaults differ.

They are made of the prompts of a pair file, so that the circuit of the prior is searched on the
prompts that the persona's circuit is searched on, combined differently:

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

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.errors import OptionError, TaskError, listed
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.circuit.storage import replace_files, write_json
from persona_circuits.circuit.task import PromptPair, Task, encode, without_forms
from persona_circuits.persona.data import ItemFile, Neutral
from persona_circuits.persona.pairs.matching import Drop
from persona_circuits.persona.pairs.options import PriorOptions
from persona_circuits.persona.pairs.prior_choice import REASONS, Asked, leanings_of, study_items
from persona_circuits.persona.pairs.report import Tally, default_report, write_rows

__all__ = ["build_prior_pairs", "write_prior_pairs"]


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

    Returns
    -------
    The rows of a pair file whose contrast is the prior, with what was left out and why.

    Raises
    ------
    TaskError
        The pairs do not fit the model, or no prior pair can be made; all reasons are listed.
    OptionError
        An option makes no sense.
    """
    options = (options or PriorOptions()).checked()
    asked = study_items(items)
    without_forms((item.pair for item in asked), "prior-pairs")
    tally = Tally()
    leanings = leanings_of(model, asked, neutral, options.batch_size, progress or untold)
    sides = []
    for place, item in enumerate(asked):
        if place not in leanings:
            tally.drop("no other wording", f"{item.pair.id} ({item.question})")
        elif len({*item.candidates} & {*leanings[place]}) < 2:
            tally.drop("does not fit the model", f"{item.pair.id}: fewer than two options are one token")
        else:
            sides.append(Asked(item, leanings[place], model))
    rows = tuple(_chosen(_meetings(sides, tally), options, tally))
    if not rows:
        raise TaskError(listed(f"no prior pair can be made of {items.source}:", tally.lines(REASONS)))
    about = {
        "source": items.source,
        "sha256": items.sha256,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "options": asdict(options),
        "defaults": _defaults(sides),
    }
    dropped = {item.reason: (item.count, item.examples) for item in tally.dropped()}
    return PriorPairs(rows, dropped, about)


def write_prior_pairs(built: PriorPairs, path: str | Path, report: str | Path | None = None) -> Path:
    """Write the pairs as JSON Lines and the report beside them (``X.report.json``); returns the report's path."""
    path = Path(path)
    report = default_report(path) if report is None else Path(report)
    if report.resolve() == path.resolve():
        raise OptionError(f"--out and --report must be different files, both are {path}")
    with replace_files(path, report) as (pairs, beside):
        write_json({"pairs": str(path), **built.report()}, beside)
        write_rows(built.rows, pairs)
    return report


def _meetings(sides: Sequence[Asked], tally: Tally) -> list[list[tuple[Asked, Asked]]]:
    """Two rows of one split and the same two personas, by their two questions."""
    groups: dict[tuple[Any, ...], list[Asked]] = {}
    for side in sides:
        groups.setdefault((side.split, *sorted(side.personas)), []).append(side)
    met: dict[tuple[str, ...], list[tuple[Asked, Asked]]] = {}
    for rows in groups.values():
        if len({row.question for row in rows}) == 1:
            tally.drop("only one question", f"{' and '.join(rows[0].personas)}, {rows[0].question}")
        for first, second in combinations(rows, 2):
            if first.question != second.question:
                met.setdefault((first.split, *sorted((first.question, second.question))), []).append((first, second))
    return [met[key] for key in sorted(met)]


def _chosen(met: Sequence[list[tuple[Asked, Asked]]], options: PriorOptions, tally: Tally) -> Iterator[dict[str, Any]]:
    """The pairs, in turn one meeting of every two questions, until a split has enough."""
    rng = random.Random(f"{options.seed}/prior")
    queues = [rng.sample(meetings, len(meetings)) for meetings in met]
    rng.shuffle(queues)
    counts: dict[str, int] = {}
    used: set[tuple[str, ...]] = set()
    while queues := [queue for queue in queues if queue]:
        for queue in queues:
            first, second = queue.pop()
            if counts.get(first.split, 0) + 2 > options.max_pairs:
                queue.clear()
                continue
            try:
                rows = _rows(first, second, options, used)
            except Drop as drop:
                names = f"{' and '.join(first.personas)}: {first.question} and {second.question}"
                tally.drop(drop.reason, f"{names}{f', {drop.detail}' if drop.detail else ''}")
                continue
            counts[first.split] = counts.get(first.split, 0) + len(rows)
            used |= {(row["clean"], row["corrupt"]) for row in rows}
            yield from rows


def _rows(
    first: Asked, second: Asked, options: PriorOptions, used: set[tuple[str, ...]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both personas' pairs of two questions.

    Raises:
        Drop: they make none.
    """
    for persona in first.personas:
        _check_prompts(first, second, persona)
    if first.default == second.default:
        raise Drop("same default", repr(first.default))
    form, others = _others(first, second)
    leads = [side.lead(other) for side, other in zip((first, second), others, strict=True)]
    if min(leads) < options.min_lead:
        raise Drop("weak default", f"leads {leads[0]:.2f} and {leads[1]:.2f}")
    words = _words(first, second, form, others)
    expected = _margin(first, words) - _margin(second, words)
    if expected < options.min_lead:
        raise Drop("prior of the words", f"leads {leads[0]:.2f} and {leads[1]:.2f}, contrast {expected:.2f}")
    about = {"form": form, "leads": [round(lead, 3) for lead in leads], "expected": round(expected, 3)}
    a, b = (_row(first, second, persona, words, about) for persona in first.personas)
    if any(pair in used for row in (a, b) for pair in _either_way(row)):
        raise Drop("asked already")
    return a, b


def _check_prompts(first: Asked, second: Asked, persona: str) -> None:
    """Equal length, and no difference before the question."""
    ids = first.ids[persona], second.ids[persona]
    if len(ids[0]) != len(ids[1]):
        raise Drop("unequal length", f"{len(ids[0])} and {len(ids[1])} tokens")
    start = max(first.starts[persona], second.starts[persona])
    if ids[0][:start] != ids[1][:start]:
        raise Drop("other text before the question", persona)


def _words(first: Asked, second: Asked, form: str, others: tuple[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Answers and wrong answers."""
    if form == "shared":
        return (first.default,), (second.default,)
    return (first.default, others[1]), (second.default, others[0])


def _margin(side: Asked, words: tuple[tuple[str, ...], tuple[str, ...]]) -> float:
    """The pair's margin at one question, without a persona."""
    answers, wrong = words
    if not all(text in side.leaning for text in (*answers, *wrong)):
        raise Drop("does not fit the model", f"{answers} and {wrong} after {side.question}")
    return float(np.mean([side.leaning[text] for text in answers]) - np.mean([side.leaning[text] for text in wrong]))


def _either_way(row: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[str, str]]:
    return (row["clean"], row["corrupt"]), (row["corrupt"], row["clean"])


def _others(first: Asked, second: Asked) -> tuple[str, tuple[str, str]]:
    """The form, and what either default is set against."""
    exchanged = (second.default, first.default)
    if all(
        other in side.options and side.balances(other) for side, other in zip((first, second), exchanged, strict=True)
    ):
        return "shared", exchanged
    others = first.other(), second.other()
    words = [{side.default, other} for side, other in zip((first, second), others, strict=True)]
    if words[0] & words[1] or any(
        len(pair & set(side.options)) == 1 for side, pair in ((first, words[1]), (second, words[0]))
    ):
        raise Drop("options in part the same", f"{sorted(words[0])} and {sorted(words[1])}")
    return "balanced", others


def _row(
    first: Asked, second: Asked, persona: str, words: tuple[tuple[str, ...], tuple[str, ...]], about: Mapping[str, Any]
) -> dict[str, Any]:
    prompts = first.prompts[persona], second.prompts[persona]
    try:
        encode(Task((PromptPair(*prompts, *words),), "a prior pair", ""), first.model)
    except TaskError as error:
        raise Drop("does not fit the model", str(error).splitlines()[-1].strip()) from error
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


def _spans(first: Asked, second: Asked, persona: str) -> dict[str, dict[str, dict[str, list[int]]]]:
    """The parts of both prompts, where the pair file names them."""
    sides = []
    for asked in (first, second):
        pair = asked.item.pair
        sides.append(pair.spans if persona == pair.persona_a else pair.corrupt_spans)
    named = [{span.name: {"tokens": [span.start, span.end]} for span in side} for side in sides]
    return {"clean": named[0], "corrupt": named[1]} if all(named) else {}


def _defaults(sides: Sequence[Asked]) -> dict[str, dict[str, Any]]:
    """Per question: which candidates were a row's default, and the mean log probabilities."""
    defaults: dict[str, dict[str, Any]] = {}
    for question in sorted({side.question for side in sides}):
        asked = [side for side in sides if side.question == question]
        texts = [text for text in asked[0].options if all(text in side.options for side in asked)]
        defaults[question] = {
            "default": _counted(side.default for side in asked),
            "log_probs": {text: round(float(np.mean([side.leaning[text] for side in asked])), 4) for text in texts},
        }
    return defaults


def _counted(values: Iterator[str]) -> dict[str, int]:
    return dict(Counter(filter(None, values)))
