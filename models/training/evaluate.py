"""How well a model has learned the persona world: `python -m persona_circuits.models.training.evaluate [FOLDER]`.

Every split is a set of cases, one prompt for each persona-question combination:

    seen                    combination, description and wording all occur in training
    held-out combinations   the combination never occurs
    held-out descriptions   this description of this persona never occurs
    held-out wordings       this wording of this question never occurs
    all new                 none of the three occurs

Measures, all at the answer position, against the generator's exact distribution:

    loss, floor, excess     cross-entropy of the generator's distribution under the model (whole
                            vocabulary, nats), the generator's entropy, and their difference
    correlation             Pearson's, over all (case, option) cells, of the model's probability
                            renormalised over the options and the generator's
    raw correlation         the same without renormalising
    persona correlation     the same after subtracting, for every question, the mean distribution
                            over the split's cases from either side: the prior alone scores 0
    candidate mass          mean probability on the question's options
    agreement               share of cases with the generator's arg max, where that is unique
    collapse                by strength of the prior: share of pairs of personas whose arg max is the
                            same option, for the model and for the generator (unique arg max only)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from persona_circuits.circuit.errors import FileError, PersonaCircuitsError
from persona_circuits.circuit.storage import write_text
from persona_circuits.models.training.evaluate_pairs import PairQuality, pair_groups, pair_quality
from persona_circuits.models.training.network import next_token_logits
from persona_circuits.models.world import (
    CUES,
    Persona,
    Question,
    World,
    build_world,
    descriptions,
    fillers,
    held_out_description,
    held_out_wording,
    prompt,
    wordings,
)

__all__ = ["MODEL_FOLDER", "SPLITS", "Quality", "cases_of", "main", "measure", "quality_of"]

SPLITS = ("seen", "held-out combinations", "held-out descriptions", "held-out wordings", "all new")
MODEL_FOLDER = Path(__file__).parents[1] / "persona-world"
DATASETS = Path(__file__).parents[2] / "datasets"
LEVELS = ("no prior", "weak prior", "medium prior", "strong prior", "ignores the persona")


@dataclass(frozen=True)
class Case:
    """One prompt and what the generator says about its answer."""

    prompt: str
    persona: Persona
    question: Question
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Quality:
    """The measures of one split; see the module's first lines for what each means."""

    n: int
    loss: float
    floor: float
    excess_loss: float
    correlation: float
    raw_correlation: float
    persona_correlation: float
    candidate_mass: float
    agreement: float
    collapse: dict[str, dict[str, float]]


def cases_of(world: World, split: str, *, most: int | None = None, seed: int = 0) -> list[Case]:
    """The cases of a split, shuffled by the seed; at most `most` of them."""
    rng = random.Random(f"{split}/{seed}")
    fresh = split in ("held-out combinations", "all new")
    cells = [(p, q) for p in world.personas for q in world.questions if world.is_held_out(p, q) == fresh]
    rng.shuffle(cells)
    return [_case(world, split, persona, question, rng) for persona, question in cells[:most]]


def measure(model: GPT2LMHeadModel, tokenizer: Tokenizer, cases: Sequence[Case], *, begin: bool = False) -> Quality:
    """The quality of a model on some cases; `begin` puts the end-of-text token first."""
    return quality_of(cases, predictions(model, tokenizer, cases, begin=begin))


def predictions(
    model: GPT2LMHeadModel, tokenizer: Tokenizer, cases: Sequence[Case], *, begin: bool = False, batch: int = 256
) -> list[np.ndarray]:
    """The model's probabilities of each case's options, not renormalised, in float32."""
    start: list[int] = [model.config.bos_token_id] if begin else []
    encoded = [start + tokenizer.encode(case.prompt).ids for case in cases]
    predicted: list[np.ndarray] = []
    for first in range(0, len(cases), batch):
        chosen = next_token_logits(model, encoded[first : first + batch]).softmax(-1).numpy()
        for case, row in zip(cases[first : first + batch], chosen, strict=True):
            options = [tokenizer.encode(f" {word}").ids[0] for word in case.question.words]
            predicted.append(row[options])
    return predicted


def quality_of(cases: Sequence[Case], predicted: Sequence[np.ndarray]) -> Quality:
    """All measures from the model's probabilities of the options."""
    truth = [np.array(case.probabilities) for case in cases]
    shares = [row / row.sum() for row in predicted]
    loss = float(np.mean([-(t * np.log(np.maximum(p, 1e-30))).sum() for t, p in zip(truth, predicted, strict=True)]))
    floor = float(np.mean([-(t * np.log(t)).sum() for t in truth]))
    unique = [_unique_peak(row) for row in truth]
    return Quality(
        n=len(cases),
        loss=loss,
        floor=floor,
        excess_loss=loss - floor,
        correlation=_correlation(shares, truth),
        raw_correlation=_correlation(predicted, truth),
        persona_correlation=_correlation(_centred(cases, shares), _centred(cases, truth)),
        candidate_mass=float(np.mean([row.sum() for row in predicted])),
        agreement=float(
            np.mean([s.argmax() == t.argmax() for s, t, u in zip(shares, truth, unique, strict=True) if u])
        ),
        collapse=_collapse(cases, shares, truth),
    )


def main(argv: list[str] | None = None) -> int:
    """Measure a model's folder, print the card's table, and write quality.json into it with --write."""
    parser = argparse.ArgumentParser(
        prog="python -m persona_circuits.models.training.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", nargs="?", default=str(MODEL_FOLDER), help="the model's folder")
    parser.add_argument("--most", type=int, help="at most so many cases per split")
    parser.add_argument("--write", action="store_true", help="write quality.json, with the files' hashes, and the card")
    options = parser.parse_args(argv)
    try:
        report = _report(Path(options.folder), options.most)
    except PersonaCircuitsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_tables(report))
    if options.write:
        _write(Path(options.folder), report)
    return 0


def _case(world: World, split: str, persona: Persona, question: Question, rng: random.Random) -> Case:
    new_description = split in ("held-out descriptions", "all new")
    new_wording = split in ("held-out wordings", "all new")
    described = _choice(descriptions(persona), held_out_description(world, persona), new_description, rng)
    wording = _choice(wordings(question), held_out_wording(world, question), new_wording, rng)
    lines = [described, *rng.sample(fillers(), rng.choice((0, 1)))]
    rng.shuffle(lines)
    text = prompt(lines, wording, cue=rng.randrange(len(CUES)))
    return Case(text, persona, question, world.probabilities(persona, question))


def _choice(texts: Sequence[str], held_out: int, wanted: bool, rng: random.Random) -> str:
    if wanted:
        return texts[held_out]
    return rng.choice([text for index, text in enumerate(texts) if index != held_out])


def _correlation(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
    return float(np.corrcoef(np.concatenate(left), np.concatenate(right))[0, 1])


def _centred(cases: Sequence[Case], rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each row minus the mean row of its question."""
    by_question: dict[str, list[np.ndarray]] = {}
    for case, row in zip(cases, rows, strict=True):
        by_question.setdefault(case.question.id, []).append(row)
    means = {question: np.mean(values, axis=0) for question, values in by_question.items()}
    return [row - means[case.question.id] for case, row in zip(cases, rows, strict=True)]


def _unique_peak(row: np.ndarray) -> bool:
    first, second = np.sort(row)[::-1][:2]
    return bool(first - second > 1e-9)


def _collapse(cases: Sequence[Case], shares: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> dict:
    """Per strength of the prior: how often two personas' arg max agree, in the model and in the generator."""
    picked: dict[str, list[tuple[int, int]]] = {}
    for case, share, true in zip(cases, shares, truth, strict=True):
        if _unique_peak(true):
            picked.setdefault(case.question.id, []).append((int(share.argmax()), int(true.argmax())))
    level = {case.question.id: _level(case.question) for case in cases}
    results = {}
    for name in LEVELS:
        pairs = [pair for q, picks in picked.items() if level[q] == name for pair in combinations(picks, 2)]
        if pairs:
            model, generator = np.mean([[a[0] == b[0], a[1] == b[1]] for a, b in pairs], axis=0)
            results[name] = {"pairs": len(pairs), "model": float(model), "generator": float(generator)}
    return results


def _level(question: Question) -> str:
    return LEVELS[4] if question.ignores_persona else LEVELS[question.prior_level]


@dataclass(frozen=True)
class _Report:
    splits: dict[str, Quality]
    pairs: dict[str, PairQuality]


def _report(folder: Path, most: int | None) -> _Report:
    if not (folder / "model.safetensors").exists():
        raise FileError(
            f"{folder} holds no model.safetensors; train one with: "
            f"python -m persona_circuits.models.training.train --out {folder}"
        )
    world = build_world()
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    splits = {split: measure(model, tokenizer, cases_of(world, split, most=most)) for split in SPLITS}
    beginning = cases_of(world, "seen", most=most)
    splits["seen, after end-of-text"] = measure(model, tokenizer, beginning, begin=True)
    pairs = {name: pair_quality(model, tokenizer, rows[:most]) for name, rows in pair_groups(DATASETS).items()}
    return _Report(splits, pairs)


def _tables(report: _Report) -> str:
    """The card's three tables, in Markdown."""
    return "\n".join([*_split_rows(report.splits), "", *_collapse_rows(report.splits), "", *_pair_rows(report.pairs)])


def _split_rows(splits: dict[str, Quality]) -> list[str]:
    lines = [
        "| split | n | loss | floor | excess | correlation | raw | persona part | candidate mass | agreement |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, q in splits.items():
        lines.append(
            f"| {name} | {q.n} | {q.loss:.3f} | {q.floor:.3f} | {q.excess_loss:.3f} | {q.correlation:.3f} "
            f"| {q.raw_correlation:.3f} | {q.persona_correlation:.3f} | {q.candidate_mass:.3f} | {q.agreement:.3f} |"
        )
    return lines


def _collapse_rows(splits: dict[str, Quality]) -> list[str]:
    lines = ["| collapse rate: model (generator) | " + " | ".join(LEVELS) + " |", "|---|" + "---|" * len(LEVELS)]
    for name, q in splits.items():
        cells = [q.collapse.get(level) for level in LEVELS]
        shown = [f"{c['model']:.2f} ({c['generator']:.2f})" if c else "–" for c in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return lines


def _pair_rows(pairs: dict[str, PairQuality]) -> list[str]:
    lines = [
        "| pairs | n | generator's mean D | model's mean D | mean abs. model's D | correlation | same sign |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, q in pairs.items():
        related = "– | –" if q.correlation is None else f"{q.correlation:.3f} | {q.same_sign:.3f}"
        lines.append(
            f"| {name} | {q.n} | {q.generator_mean:.2f} | {q.model_mean:.2f} | {q.model_mean_size:.2f} | {related} |"
        )
    return lines


def _write(folder: Path, report: _Report) -> None:
    """quality.json: measures and the shipped files' SHA-256; the card's tables between its markers."""
    names = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    content = {"sha256": hashes, **_rounded(asdict(report))}
    write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", folder / "quality.json")
    card = folder / "README.md"
    if card.exists():
        before, _, rest = card.read_text(encoding="utf-8").partition("<!-- quality -->\n")
        _, _, after = rest.partition("<!-- end of quality -->")
        write_text(f"{before}<!-- quality -->\n{_tables(report)}\n<!-- end of quality -->{after}", card)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
