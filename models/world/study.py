"""Pair files of the study, drawn anew from the persona world.

    python -m persona_circuits.models.world.study [--out DIR]

`study_world.jsonl` has a train split to search on and a test split whose pairs are new to the
search in one named way (`held_out`), though nothing in them is new to the model:

    pair        the personas, questions, descriptions and wordings of train, other combinations
    persona     personas that train does not have
    question    questions of train's domains that train does not have
    template    descriptions and wordings that train does not have
    domain      questions of domains that train does not have

Each is spread evenly over contrast, bias and placement, as `models.world.pairs` defines them.

`study_world_variants.jsonl` says the same thing in other ways: pairs of one `base` have the same
personas, question, wording and answers, and differ in how the persona is brought up (`variant`):

    identity    "You are a fit athlete.", then two filler sentences
    near        no filler
    far         six filler sentences, more than the training text ever has
    late        the filler first
    rich        the longest description: adjective, role, past and habit
    repeated    two descriptions of the persona, a filler sentence between; never in the training text
    mention     "Your neighbour is a fit athlete.": nobody is described
    distractor  identity, and the other persona as the neighbour

By the generator all of a base have one divergence, and `mention` has none.

`study_world_controls.jsonl`: other draws of the controls of `models.world.pairs`.

`study2_world*.jsonl` are a second draw, for what a first look at the others suggested: test pairs
and controls as above, and `study2_world_mentions.jsonl`, 96 pairs in which both personas are only
mentioned. `study3_world.jsonl` is a third draw, train and test, with other personas, questions and
words on either side.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from persona_circuits.models.world.data import json_lines, write_and_print
from persona_circuits.models.world.pairs import Met, Row, bias_of, contrast_of, control_pairs, pair_key, placed, row_of
from persona_circuits.models.world.text import (
    MENTION_FRAMES,
    descriptions,
    fillers,
    held_out_description,
    held_out_wording,
    mentions,
    prompt,
    wordings,
)
from persona_circuits.models.world.world import Persona, Question, World

__all__ = ["HELD_OUT", "VARIANTS", "study_files", "study_pairs", "variant_pairs"]

HELD_OUT = ("pair", "persona", "question", "template", "domain")
VARIANTS = ("identity", "near", "far", "late", "rich", "repeated", "mention", "distractor")
CELLS = tuple(product(("strong", "mild"), ("low", "high"), ("early", "late")))
NEW_DOMAINS = ("drink", "values")
NEW_FRAMES, NEW_WORDINGS = (4, 5), (3, 4)
AGAIN, RICH = 5, 6  # "People call you …", and the longest description
TRAIN_PER_CELL, TEST_PER_CELL, BASES_PER_CELL = 12, 4, 12
Taken = set[tuple[str, str, str]]


@dataclass(frozen=True)
class Part:
    """What pairs may be made of."""

    personas: tuple[Persona, ...]
    questions: tuple[Question, ...]
    frames: tuple[int, ...]
    asked: tuple[int, ...]


def study_files(world: World) -> dict[str, str]:
    """Name and exact content of every file."""
    rows = {
        "study_world.jsonl": study_pairs(world),
        "study_world_controls.jsonl": control_pairs(world, each=40, draw="study"),
        "study_world_variants.jsonl": variant_pairs(world),
        "study2_world.jsonl": [row for row in study_pairs(world, draw="study2") if row["split"] == "test"],
        "study2_world_controls.jsonl": control_pairs(world, each=40, draw="study2"),
        "study2_world_mentions.jsonl": mention_pairs(world, draw="study2"),
        "study3_world.jsonl": study_pairs(world, draw="study3"),
    }
    return {name: json_lines(file_rows) for name, file_rows in rows.items()}


def study_pairs(world: World, *, draw: str = "study") -> list[Row]:
    """96 pairs to search on and 160 to test on, 32 for every way of being new; no pair twice."""
    rng = random.Random(f"{draw}/pairs")
    train, parts = _parts(world, rng)
    taken: Taken = set()
    rows = [
        _pair(world, rng, f"train-{i:03d}", "train", "none", train, CELLS[i % len(CELLS)], taken)
        for i in range(TRAIN_PER_CELL * len(CELLS))
    ]
    for name in HELD_OUT:
        for i in range(TEST_PER_CELL * len(CELLS)):
            rows.append(_pair(world, rng, f"{name}-{i:03d}", "test", name, parts[name], CELLS[i % len(CELLS)], taken))
    return rows


def variant_pairs(world: World) -> list[Row]:
    """48 bases, spread evenly over contrast and bias, in every variant."""
    rng = random.Random("study/variants")
    personas = tuple(p for p in world.personas if held_out_description(world, p) not in (0, AGAIN, RICH))
    everything = Part(personas, world.questions, (0,), tuple(range(5)))
    taken: Taken = set()
    rows = []
    for i in range(BASES_PER_CELL * 4):
        contrast, bias = list(product(("strong", "mild"), ("low", "high")))[i % 4]
        a, b, question, _, wording = _drawn(world, rng, everything, contrast, bias, taken)
        filler = rng.sample(fillers(), 6)
        axis = {"contrast": contrast, "bias": bias, "control": "none", "held_out": "none"}
        for variant in VARIANTS:
            texts = [_lines(variant, persona, other, filler) for persona, other in ((a, b), (b, a))]
            prompts = (prompt(lines, wordings(question)[wording]) for lines in texts)
            marks = {**axis, "placement": "late" if variant == "late" else "early"}
            marks |= {"variant": variant, "base": f"base-{i:02d}"}
            met = Met((a, b), question, nobody=variant == "mention")
            rows.append(row_of(world, f"base-{i:02d}/{variant}", "test", prompts, met, marks))
    return rows


def mention_pairs(world: World, *, draw: str) -> list[Row]:
    """96 pairs of personas that are only mentioned, spread evenly over contrast and bias."""
    rng = random.Random(f"{draw}/mentions")
    everything = Part(world.personas, world.questions, tuple(range(RICH + 1)), tuple(range(5)))
    taken: Taken = set()
    rows = []
    for i in range(96):
        contrast, bias = list(product(("strong", "mild"), ("low", "high")))[i % 4]
        a, b, question, _, wording = _drawn(world, rng, everything, contrast, bias, taken)
        lines, frame = rng.sample(fillers(), 2), rng.randrange(len(MENTION_FRAMES))
        prompts = (prompt([mentions(p)[frame], *lines], wordings(question)[wording]) for p in (a, b))
        axis = {"contrast": contrast, "bias": bias, "placement": "early", "control": "none", "held_out": "none"}
        rows.append(row_of(world, f"mention-{i:02d}", "test", prompts, Met((a, b), question, nobody=True), axis))
    return rows


def main(argv: list[str] | None = None) -> int:
    """The command line; prints the names of the files."""
    return write_and_print("study", __doc__, study_files, argv)


def _parts(world: World, rng: random.Random) -> tuple[Part, dict[str, Part]]:
    """What train is made of, and what each part of test is."""
    personas = rng.sample(world.personas, len(world.personas))
    old, new = tuple(personas[:32]), tuple(personas[32:])
    answerable = [q for q in world.questions if not q.ignores_persona]
    known = [q for q in answerable if q.domain not in NEW_DOMAINS]
    questions = rng.sample(known, len(known))
    cut = round(len(questions) * 2 / 3)
    frames = tuple(i for i in range(RICH) if i not in NEW_FRAMES)
    words = tuple(i for i in range(5) if i not in NEW_WORDINGS)
    train = Part(old, tuple(questions[:cut]), frames, words)
    domain = tuple(q for q in answerable if q.domain in NEW_DOMAINS)
    return train, {
        "pair": train,
        "persona": Part(new, train.questions, frames, words),
        "question": Part(old, tuple(questions[cut:]), frames, words),
        "template": Part(old, train.questions, NEW_FRAMES, NEW_WORDINGS),
        "domain": Part(old, domain, frames, words),
    }


def _pair(
    world: World,
    rng: random.Random,
    name: str,
    split: str,
    held_out: str,
    part: Part,
    cell: tuple[str, str, str],
    taken: Taken,
) -> Row:
    """The next pair of a cell, which is then taken."""
    contrast, bias, placement = cell
    a, b, question, frame, wording = _drawn(world, rng, part, contrast, bias, taken)
    lines = rng.sample(fillers(), 2)
    prompts = (prompt(placed(descriptions(p)[frame], lines, placement), wordings(question)[wording]) for p in (a, b))
    axis = {"contrast": contrast, "bias": bias, "placement": placement, "control": "none", "held_out": held_out}
    return row_of(world, name, split, prompts, Met((a, b), question), axis)


def _drawn(
    world: World, rng: random.Random, part: Part, contrast: str, bias: str, taken: Taken
) -> tuple[Persona, Persona, Question, int, int]:
    """Two personas, a question, a description and a wording that fit; all of them known to the model."""
    for _ in range(100_000):
        question = rng.choice(part.questions)
        a, b = rng.sample(part.personas, 2)
        frames = _known(part.frames, {held_out_description(world, p) for p in (a, b)})
        wordings = _known(part.asked, {held_out_wording(world, question)})
        if pair_key(a, b, question) in taken or not frames or not wordings:
            continue
        if any(world.is_held_out(p, question) for p in (a, b)):
            continue
        if bias_of(question) == bias and contrast_of(world, a, b, question) == contrast:
            taken.add(pair_key(a, b, question))
            return a, b, question, rng.choice(frames), rng.choice(wordings)
    raise AssertionError(f"no pair is left of contrast {contrast} and bias {bias}")


def _known(indices: Sequence[int], new: set[int]) -> list[int]:
    return [index for index in indices if index not in new]


def _lines(variant: str, persona: Persona, other: Persona, filler: Sequence[str]) -> list[str]:
    """The lines before the question."""
    short = descriptions(persona)[0]
    two = list(filler[:2])
    return {
        "identity": [short, *two],
        "near": [short],
        "far": [short, *filler],
        "late": [*two, short],
        "rich": [descriptions(persona)[RICH], *two],
        "repeated": [short, filler[0], descriptions(persona)[AGAIN], filler[1]],
        "mention": [mentions(persona)[0], *two],
        "distractor": [short, mentions(other)[0], *two],
    }[variant]


if __name__ == "__main__":
    raise SystemExit(main())
