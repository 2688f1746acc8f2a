"""Stage ``attention`` of a study: every place after the persona attends to it more.

Attention logits on the tokens that differ are raised in all heads; nothing else is touched. Beside it stand as
many other tokens after the persona (at random, the mean over draws), and paraphrases of one persona, treated likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from persona_circuits.circuit.figures import write_csv
from persona_circuits.circuit.storage import Kept, search_of
from persona_circuits.circuit.task import Task, encode
from persona_circuits.persona.behaviour import PARAPHRASE
from persona_circuits.persona.data import examples_of
from persona_circuits.persona.data.items import Item, ItemFile
from persona_circuits.persona.explanation.runs import NO_MASK, Both, both_runs, can_come_nearer, margins, nearer, replay
from persona_circuits.persona.steering.passes import evenly
from persona_circuits.persona.study.context import PASSES, Context
from persona_circuits.persona.study.numbers import Estimates, StageNumbers
from persona_circuits.persona.study.stages.figures import write_levels

__all__ = ["run_attention"]

BOOSTS = (1, 2)
"""Added to attention logits."""
DRAWS = 3
SOURCE = "attention/pairs.csv"
Values = NDArray[np.float64]


def run_attention(context: Context, folder: Path) -> StageNumbers:
    """D and collapse of held-out pairs and of paraphrases, with more attention on the persona and elsewhere."""
    numbers = StageNumbers(SOURCE)
    controls = () if context.controls is None else context.controls.items
    paraphrases = [item for item in controls if item.control == PARAPHRASE]
    n = PASSES * context.options.max_pairs
    sets = {"pairs": (context.pairs, evenly(context.main, n)), "paraphrase": (context.controls, evenly(paraphrases, n))}
    rows = []
    for kind, (file, items) in sets.items():
        if file is None or len(items) < 2:
            numbers.notes.append(f"attention: fewer than two rows of {kind}")
            continue
        values = _measured(context, replace(file, items=tuple(items)), kind)
        if values is None:
            numbers.notes.append(f"attention: {NO_MASK}")
            return numbers
        _enter(numbers, context, items, kind, values)
        columns = {f"{what} {name}": each for name, two in values.items()
                   for what, each in zip(("D", "collapse"), two, strict=True)}  # fmt: skip
        rows += [{"id": item.pair.id, "of": kind, **{key: each[i] for key, each in columns.items()}}
                 for i, item in enumerate(items)]  # fmt: skip
    if rows:
        write_csv(rows, folder / "pairs.csv")
    shown = {"as it is": "attention.before.collapse"}
    for boost in BOOSTS:
        shown |= {f"+{boost} on the persona": f"attention.{boost}.collapse",
                  f"+{boost} elsewhere": f"attention.{boost}.elsewhere.collapse"}  # fmt: skip
    shown |= {"paraphrases": "attention.before.paraphrase.collapse"}
    shown |= {f"paraphrases, +{boost} on what differs": f"attention.{boost}.paraphrase.collapse" for boost in BOOSTS}
    write_levels(folder, "attention", "Collapse with more attention on the persona", numbers.numbers, shown)
    return numbers


def _measured(context: Context, file: ItemFile, kind: str) -> dict[str, Values] | None:
    """``[2, pair]`` by setting: D, and whether both choose one candidate; None where attention takes no such mask."""
    encoded = encode(Task(tuple(item.pair.bare() for item in file.items), file.source, ""), context.model)
    candidates = [example.candidates for example in examples_of(file, context.model).examples[::2]]
    settings = ["before", *(f"{boost}{where}" for boost in BOOSTS for where in ("", " elsewhere"))]
    values = {name: np.zeros((2, len(file.items))) for name in settings}
    progress, done = context.stage(f"raising attention, {kind}"), 0
    with Kept(context.kept(f"{kind}.state"), search_of(context.digest("attention"))) as kept:
        for both in both_runs(context.model, list(encoded), context.options.batch_size, gradients=False):
            if not can_come_nearer(both.clean.context):
                return None
            ids = [list(candidates[i]) for i in both.batch.indices]
            for name, each in kept.of(f"{both.batch.place}", partial(_batch, context, both, ids)).items():
                values[name][:, list(both.batch.indices)] = each
            progress(done := done + len(both.batch), len(file.items))
    return values


def _batch(context: Context, both: Both, candidates: Sequence[list[int]]) -> dict[str, Values]:
    results = {"before": _outcome(both, [run.logits for run in both.runs], candidates)}
    elsewhere = [_elsewhere(both, (context.options.seed, draw)) for draw in range(DRAWS)]
    for boost in BOOSTS:
        results[f"{boost}"] = _raised(context, both, boost, candidates)
        drawn = [_raised(context, other, boost, candidates) for other in elsewhere]
        results[f"{boost} elsewhere"] = np.mean(drawn, axis=0)
    return results


def _elsewhere(both: Both, seed: tuple[int, ...]) -> Both:
    """As many places as the persona has, drawn from those after it (all, if there are fewer), for every row."""
    chosen = torch.zeros_like(both.inside)
    for i, (row, index) in enumerate(zip(both.between, both.batch.indices, strict=True)):
        places = np.random.default_rng((*seed, index)).permutation(torch.nonzero(row)[:, 0].cpu().numpy())
        chosen[i, places[: int(both.inside[i].sum())]] = True
    return replace(both, inside=chosen)


def _raised(context: Context, both: Both, boost: int, candidates: Sequence[list[int]]) -> Values:
    logits = [replay(context.model, run.streams[0], nearer(run.context, both, boost)) for run in both.runs]
    return _outcome(both, logits, candidates)


def _outcome(both: Both, logits: Sequence[torch.Tensor], candidates: Sequence[list[int]]) -> Values:
    divergence = torch.sub(*(margins(each, both.batch) for each in logits)).cpu().double().numpy()
    same = [float(a[ids].argmax() == b[ids].argmax()) for a, b, ids in zip(*logits, candidates, strict=True)]
    return np.stack([divergence, np.array(same)])


def _enter(
    numbers: StageNumbers, context: Context, items: Sequence[Item], kind: str, values: dict[str, Values]
) -> None:
    estimates, of = Estimates(items, **context.draws), "" if kind == "pairs" else f".{kind}"
    before, collapsed = values["before"]
    what = "share of pairs with one most likely answer"
    numbers.add(f"attention.before{of}.collapse", what=what, unit="share", **estimates.share(collapsed))
    for boost in BOOSTS:
        for where in ("", "elsewhere"):
            after, same = values[f"{boost} {where}".strip()]
            name = ".".join(filter(None, (f"attention.{boost}{of}", where)))
            tokens = "as many other tokens" if where else "the tokens of the persona"
            text = f"with {boost} added to attention logits on {tokens}"
            if kind == "pairs":
                ratio = estimates.ratio(after, before)
                numbers.add(f"{name}.divergence_ratio", what=f"mean D {text} / mean D", **ratio)
            ratio = estimates.ratio(np.abs(after), np.abs(before))
            numbers.add(f"{name}.divergence_abs_ratio", what=f"mean |D| {text} / mean |D|", **ratio)
            share = estimates.share(same)
            numbers.add(f"{name}.collapse", what=f"{what}, {text}", unit="share", **share)
            change = estimates.mean(same - collapsed, within=(-1.0, 1.0))
            numbers.add(f"{name}.collapse_change", what=f"{what}: {text}, minus before", unit="share", **change)
