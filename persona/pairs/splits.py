"""Who meets whom, what is held out for testing, and in which order combinations are tried.

Chance comes from the seed alone. A meeting or question that no declared preferences can make
a pair of is never chosen for testing, since nothing would be tested by it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from persona_circuits.circuit.errors import OptionError, TaskError, listed
from persona_circuits.persona.data import Persona, Question, Template, preferred
from persona_circuits.persona.pairs.options import PairOptions

__all__ = ["Meeting", "Split", "divided", "in_turn", "meetings", "training_meetings"]

Meeting = tuple[Persona, Persona]
Asked = tuple[Question, tuple[int, ...]]  # a question and the indices of its wordings


@dataclass(frozen=True)
class Split:
    """Who meets, what they are asked, and how many pairs are wanted; the name is empty where nothing is held out."""

    name: str
    meetings: tuple[Meeting, ...]
    asked: tuple[Asked, ...]
    quota: int


def meetings(personas: Sequence[Persona], contrast: str | Sequence[tuple[str, str]]) -> tuple[Meeting, ...]:
    """Pairs of personas: ``all``, the ``opposed`` ones, or pairs of names.

    Raises:
        TaskError: there are fewer than two personas, or the contrast names some that are not there.
    """
    known = {persona.name: persona for persona in personas}
    if len(known) < 2:
        names = ", ".join(known) or "none"
        raise TaskError(f"a pair needs two personas, the source holds {len(known)} ({names}); add one")
    if contrast == "all":
        return tuple(combinations(personas, 2))
    if contrast == "opposed":
        return _opposed(personas)
    if isinstance(contrast, str):
        raise OptionError(f"contrast must be all, opposed or pairs of names, got {contrast!r}")
    if missing := [name for pair in contrast for name in pair if name not in known]:
        faults = [f"no persona is called {name!r}" for name in dict.fromkeys(missing)]
        raise TaskError(listed(f"the contrast names {len(faults)} unknown persona(s):", faults))
    return tuple((known[a], known[b]) for a, b in contrast)


def divided(
    met: Sequence[Meeting], questions: Sequence[Question], *, seed: int, share: float, most: int
) -> tuple[list[Split], dict[str, Any]]:
    """Train and test, and what a report says of them.

    Held out are a share of the meetings and, of every question with paraphrases, a share of its
    wordings (the one that the source sets aside, if it says so); of questions with one wording
    a share of the questions. At least one each; what there is only one of stays in both.
    ``most`` pairs are wanted in all.
    """
    whole = [Split("", tuple(met), tuple((q, tuple(range(len(q.wordings)))) for q in questions), most)]
    if not share:
        return whole, {"test_share": 0, "held_out": "nothing: no splits were asked"}
    met_live, asked_live = _live(met, questions)
    if most < 2 or not any(met_live):
        return whole, {"test_share": share, "held_out": "nothing: a split needs two pairs"}
    train, test = _divided(met, met_live, share, f"{seed}/meetings")
    asked, tested = _divided_questions(questions, asked_live, share, seed)
    shared = not test, not tested
    if all(shared):
        return whole, {"test_share": share, "held_out": "nothing: there is one persona pair and one question wording"}
    quota = min(max(1, round(most * share)), most - 1)
    splits = [
        Split("train", tuple(train), tuple(asked), most - quota),
        Split("test", tuple(test or train), tuple(tested or asked), quota),
    ]
    return splits, _statement(splits, shared, share)


def training_meetings(met: Sequence[Meeting], options: PairOptions) -> tuple[Meeting, ...]:
    """The meetings that ``divided`` leaves in train where all of them have different preferences."""
    if not options.test_share:
        return tuple(met)
    return tuple(_divided(met, [True] * len(met), options.test_share, f"{options.seed}/meetings")[0])


def in_turn(
    split: Split, templates: Sequence[Template], seed: int
) -> Iterator[tuple[Meeting, Question, tuple[int, ...], Template]]:
    """Every combination once; each question goes through the shuffled meetings from a place of its own."""
    cells = list(product(split.asked, templates))
    met = list(split.meetings)
    random.Random(f"{seed}/order/{split.name}").shuffle(met)
    for turn in range(len(met)):
        for place, ((question, indices), template) in enumerate(cells):
            start = place * len(met) // len(cells)
            yield met[(turn + start) % len(met)], question, indices, template


def _opposed(personas: Sequence[Persona]) -> tuple[Meeting, ...]:
    later = {persona.name: (i, persona) for i, persona in enumerate(personas)}
    pairs = [
        (persona, later[persona.opposite][1])
        for i, persona in enumerate(personas)
        if persona.opposite in later and later[persona.opposite][0] > i
    ]
    if not pairs:
        raise TaskError("no persona names another of the source as its opposite; use --contrast all, or a file")
    return tuple(pairs)


def _live(met: Sequence[Meeting], questions: Sequence[Question]) -> tuple[list[bool], dict[str, bool]]:
    """Which meetings differ in some question's preference, and in which questions any personas do."""
    personas = {persona.name: persona for meeting in met for persona in meeting}
    likes = {name: [preferred(question, p) for question in questions] for name, p in personas.items()}
    met_live = [
        any(x is not None and y is not None and x != y for x, y in zip(likes[a.name], likes[b.name], strict=True))
        for a, b in met
    ]
    asked = {question.id: len({own[i] for own in likes.values()} - {None}) > 1 for i, question in enumerate(questions)}
    return met_live, asked


def _divided(items: Sequence[Any], live: Sequence[bool], share: float, seed: str) -> tuple[list[Any], list[Any]]:
    """Items in two lists, order kept; the second is empty where fewer than two are live."""
    able = [i for i, flag in enumerate(live) if flag]
    n = max(0, min(max(1, round(share * len(able))), len(able) - 1))
    chosen = set(random.Random(seed).sample(able, n))
    return [item for i, item in enumerate(items) if i not in chosen], [items[i] for i in sorted(chosen)]


def _divided_questions(
    questions: Sequence[Question], live: Mapping[str, bool], share: float, seed: int
) -> tuple[list[Asked], list[Asked]]:
    single = [question for question in questions if len(question.wordings) == 1]
    asked = [(question, (0,)) for question in single]
    train, test = _divided(asked, [live[question.id] for question in single], share, f"{seed}/questions")
    for question in questions:
        if len(question.wordings) > 1:
            places = range(len(question.wordings))
            kept, held_out = _divided(places, [True] * len(places), share, f"{seed}/wordings/{question.id}")
            if question.held_out is not None:
                kept, held_out = [i for i in places if i != question.held_out], [question.held_out]
            train.append((question, tuple(kept)))
            test.append((question, tuple(held_out)))
    return train, test


def _statement(splits: Sequence[Split], shared: tuple[bool, bool], share: float) -> dict[str, Any]:
    personas = "the one persona pair is in both" if shared[0] else "persona pairs (a persona may be in both)"
    questions = "the one question wording is in both" if shared[1] else "question wordings"
    counts = {
        split.name: {
            "persona_pairs": len(split.meetings),
            "questions": len(split.asked),
            "question_wordings": sum(len(indices) for _, indices in split.asked),
        }
        for split in splits
    }
    return {"test_share": share, "held_out": f"{personas}; {questions}", **counts}
