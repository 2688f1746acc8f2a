"""Write the persona world as data: `python -m persona_circuits.models.world.data [--out DIR]`.

Rewrites every file of `datasets/` that this world owns, byte for byte the same each
time: personas, questions, templates, pair files, and the dataset card with counts
and hashes. The source is `lexicon.py`, `world.py` and `text.py` beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from persona_circuits.circuit.storage import write_text
from persona_circuits.models.world.lexicon import FILLER
from persona_circuits.models.world.pairs import MILD, STRONG, Row, control_pairs, demo_pairs, main_pairs, prior_pairs
from persona_circuits.models.world.text import (
    CUES,
    DESCRIPTION_FRAMES,
    MENTION_FRAMES,
    WORDING_FRAMES,
    descriptions,
    held_out_description,
    held_out_wording,
    mentions,
    wordings,
)
from persona_circuits.models.world.world import GAIN, PRIOR, World, build_world

__all__ = ["json_lines", "world_files", "write_and_print", "write_world"]

DATASETS = Path(__file__).parents[2] / "datasets"


def world_files(world: World) -> dict[str, str]:
    """Name and exact content of every file, the card last."""
    pairs = {
        "pairs_train.jsonl": main_pairs(world, "train", n=200),
        "pairs_validation.jsonl": main_pairs(world, "validation", n=80),
        "pairs_test.jsonl": main_pairs(world, "test", n=120, held_out=("combination", "description", "wording")),
        "pairs_controls.jsonl": control_pairs(world, each=40),
        "pairs_demo.jsonl": demo_pairs(world),
        "pairs_prior.jsonl": prior_pairs(world),
    }
    files = {
        "personas.jsonl": json_lines(_personas(world)),
        "questions.jsonl": json_lines(_questions(world)),
        "templates.json": json.dumps(_templates(world), indent=2) + "\n",
        **{name: json_lines(rows) for name, rows in pairs.items()},
    }
    return {**files, "README.md": _card(world, files, pairs)}


def write_world(out: Path, files: Callable[[World], Mapping[str, str]] = world_files) -> list[Path]:
    """Write every file into the folder, each atomically; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in files(build_world()).items():
        write_text(text, out / name)
        paths.append(out / name)
    return paths


def main(argv: list[str] | None = None) -> int:
    """The command line; prints the names of the files."""
    return write_and_print("data", __doc__, world_files, argv)


def write_and_print(
    module: str, about: str, files: Callable[[World], Mapping[str, str]], argv: list[str] | None = None
) -> int:
    """The command line of a module that writes data."""
    prog = f"python -m persona_circuits.models.world.{module}"
    parser = argparse.ArgumentParser(prog=prog, description=about.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DATASETS, help="folder to write into (default: datasets/)")
    for path in write_world(parser.parse_args(argv).out, files):
        print(path)
    return 0


def _personas(world: World) -> list[Row]:
    return [
        {
            "id": persona.id,
            "role": persona.role,
            "adjective": persona.adjective,
            "habit": persona.habit,
            "past": persona.past,
            "traits": _named(world, persona.traits),
            "strength": "strong" if max(map(abs, persona.traits)) == 1 else "mild",
            "descriptions": list(descriptions(persona)),
            "held_out_description": held_out_description(world, persona),
            "mentions": list(mentions(persona)),
            "held_out_questions": [q.id for q in world.questions if world.is_held_out(persona, q)],
        }
        for persona in world.personas
    ]


def _questions(world: World) -> list[Row]:
    return [
        {
            "id": question.id,
            "domain": question.domain,
            "noun": question.noun,
            "situation": question.situation,
            "options": [{"word": o.word, "affinity": _named(world, o.affinity)} for o in question.options],
            "prior_level": question.prior_level,
            "default": question.words[question.default] if question.prior_level else None,
            "ignores_persona": question.ignores_persona,
            "wordings": list(wordings(question)),
            "held_out_wording": held_out_wording(world, question),
        }
        for question in world.questions
    ]


def _templates(world: World) -> Row:
    return {
        "descriptions": list(DESCRIPTION_FRAMES),
        "mentions": list(MENTION_FRAMES),
        "wordings": list(WORDING_FRAMES),
        "cues": [{"before_question": before, "answer_cue": cue} for before, cue in CUES],
        "filler": FILLER.strip().splitlines(),
        "traits": [{"letter": t.letter, "positive": t.positive, "negative": t.negative} for t in world.traits],
        "gain": GAIN,
        "prior_logits_by_level": list(PRIOR),
    }


def _named(world: World, values: Sequence[float]) -> dict[str, float]:
    """Non-zero entries under the name of the pole that they lean to, all positive."""
    return {
        (trait.positive if value > 0 else trait.negative): abs(value)
        for trait, value in zip(world.traits, values, strict=True)
        if value
    }


def json_lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _card(world: World, files: dict[str, str], pairs: dict[str, list[Row]]) -> str:
    return CARD.format(
        n_personas=len(world.personas),
        n_descriptions=len(DESCRIPTION_FRAMES),
        n_questions=len(world.questions),
        n_wordings=len(WORDING_FRAMES),
        n_ignoring=sum(question.ignores_persona for question in world.questions),
        n_held_out=len(world.held_out),
        n_cells=len(world.personas) * len(world.questions),
        domains=", ".join(dict.fromkeys(question.domain for question in world.questions)),
        levels=", ".join(f"{n} of level {level}" for level, n in _levels(world)),
        gain=GAIN,
        prior=", ".join(map(str, PRIOR)),
        strong=STRONG,
        mild=MILD,
        files="\n".join(_file_row(name, text) for name, text in files.items()),
        axes="\n".join(_axes_row(name, rows) for name, rows in pairs.items()),
    )


def _levels(world: World) -> list[tuple[int, int]]:
    return sorted(Counter(question.prior_level for question in world.questions).items())


def _file_row(name: str, text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return f"| `{name}` | {text.count(chr(10))} | `{digest}` |"


def _axes_row(name: str, rows: Sequence[Row]) -> str:
    cells = []
    for axis in ("split", "contrast", "bias", "placement", "control", "held_out"):
        counted = Counter(str(row[axis]) for row in rows)
        cells.append(", ".join(f"{value} {n}" for value, n in counted.items()))
    collapsing = sum(row["generator"]["collapses"] for row in rows)
    return f"| `{name}` | {len(rows)} | " + " | ".join(cells) + f" | {collapsing} |"


CARD = """# The persona world as data

Made by `python -m persona_circuits.models.world.data`, which rewrites every file listed here byte for byte;
`study_world*.jsonl` are made by `python -m persona_circuits.models.world.study`, which says what they are, and
`CRAFTGPT.md`, `NATURAL_SMOLLM2.md` and `VECTORS.md` speak of the others.

The source is `models/world/lexicon.py` (words), `models/world/world.py` (the latent-factor
model) and `models/world/text.py` (sentences); do not edit the files here.

All text is invented for this project; no person, survey or model was asked.
Licence: that of the project.

## The world

{n_personas} personas in {n_descriptions} descriptions each; {n_questions} questions in {n_wordings} wordings each
(domains: {domains}; prior strength: {levels}; {n_ignoring} ignore the persona).

The answer to question q under persona p is drawn from softmax({gain} <t_p, a_o> + prior_o)
over the options o: t_p the persona's traits, a_o the option's affinities, prior_o the
generic prior, which adds {prior} logits to the default option at level 0, 1, 2, 3.
At level 3 the default is the most likely answer of every persona: the personas' answers
collapse, though their distributions differ.

Held out from the model's training text: one description of each persona, one wording
of each question, and {n_held_out} of the {n_cells} persona-question combinations.

## Files

| file | lines | SHA-256 |
|---|---|---|
{files}

## Pair files

One pair a line. `clean` asks as persona A, `corrupt` as persona B, in the same number of
tokens under the shipped tokenizer. `answers` and `wrong_answers` are A's and B's options,
one token each in context; `candidates` are all options; `generator` holds the exact
distributions `p_a` and `p_b` over the candidates, the `divergence`
[log p(answer) - log p(wrong answer)] under A minus the same under B, and whether the two
most likely answers are the same (`collapses`). No option occurs in a persona's description.

| file | pairs | split | contrast | bias | placement | control | held_out | collapsing |
|---|---|---|---|---|---|---|---|---|
{axes}

- `contrast`: the generator's divergence: strong at least {strong}, mild 1 to {mild} logits.
- `bias`: the question's generic prior: low is level 0 or 1, high is level 2 or 3.
- `placement`: the description before (early) or after (late) the filler sentences.
- `control`: `paraphrase`: two descriptions of one persona; the answers are its first and
  second choice. `irrelevant`: two personas without bearing on the question; the answers are
  the first two options by probability. `neighbour`: two personas mentioned of somebody else;
  the answers are what those would choose, and the generator ignores them. In all three
  the generator's divergence is 0.
- `held_out`: what the training text never showed: both combinations, both descriptions, or
  the wording.
- In the main files the answers are what either persona would choose without the generic
  prior, so they differ even where the prior makes both answer alike.
- `pairs_demo.jsonl`: short prompts of one token length, strong contrast, little prior, and
  most likely answers that differ: for a quick search of a circuit, with a train and a test split.
- `pairs_prior.jsonl`: the generic prior instead of the persona. `clean` and `corrupt` are the
  prompts of one persona and two questions of level 2 or 3. `answers` are the first question's
  default and another option of the second, `wrong_answers` the second's default and another option
  of the first; the persona likes either question's two options equally. `generator` holds the two
  distributions over either question's own options, and in `leads` the logits by which either
  default leads the other option there. Test has neither a question nor a persona of train.
  `docs/pairs.md` says why the margin has four words.
"""


if __name__ == "__main__":
    raise SystemExit(main())
