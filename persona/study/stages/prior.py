"""Stage ``prior`` of a study: collapse with the model's default taken away, the persona's words untouched.

bias        the candidates' log probabilities under no persona, in other wordings of the question, are subtracted from
            the row's; beside the same numbers in another order, and on paraphrases of one persona
direction   at two thirds of the depth the stream at the answer loses what lies along the question's default: its
            neutral stream in other wordings minus that of other questions; beside random directions and those of
            other questions, the stream moved as far

What the effect predicts: the choices of the same two personas and question in other wordings with the bias taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persona_circuits.circuit.figures import write_csv
from persona_circuits.circuit.storage import Kept, search_of
from persona_circuits.circuit.task import Task, encode
from persona_circuits.persona.behaviour import PARAPHRASE, PairMeasure, grouped_rows, measure_pairs
from persona_circuits.persona.data import examples_of
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.explanation.runs import Both, both_runs, margins, prefix_of, replay
from persona_circuits.persona.steering.passes import evenly
from persona_circuits.persona.study.context import NO_WORDINGS, PASSES, Context
from persona_circuits.persona.study.numbers import Estimates, StageNumbers
from persona_circuits.persona.study.stages.figures import write_levels

__all__ = ["run_prior"]

DEPTH = 2 / 3
N_RANDOM = {"random": 100, "other": 10}
AT_ONCE = 64
SHOWN = {
    "as it is": "prior.bias.before.collapse",
    "without the bias": "prior.bias.collapse",
    "in other wordings": "prior.bias.predicted",
    "without the bias in another order": "prior.bias.random.collapse",
    "paraphrases": "prior.before.paraphrase",
    "paraphrases without the bias": "prior.bias.paraphrase",
    "without the direction": "prior.direction.collapse",
    "without random directions": "prior.direction.random.collapse",
    "without other questions' directions": "prior.direction.other.collapse",
}
Values = NDArray[np.float64]


def run_prior(context: Context, folder: Path) -> StageNumbers:
    """Both interventions on rows of which there are other wordings."""
    numbers = StageNumbers("prior/pairs.csv")
    if context.wordings is None:
        numbers.notes.append(NO_WORDINGS)
        return numbers
    defaults = _Defaults(context)
    rows = _chosen(context, defaults)
    if len(rows) < 2:
        numbers.notes.append(f"prior: {len(rows)} rows have a neutral prompt in other wordings of their question")
        return numbers
    table = _bias(numbers, context, defaults, rows)
    table |= _direction(numbers, context, defaults, rows)
    names = [m.item.pair.id for m, _ in rows]
    lines = [{"id": name, **{key: values[i] for key, values in table.items()}} for i, name in enumerate(names)]
    write_csv(lines, folder / "pairs.csv")
    write_levels(folder, "prior", "Collapse with the default taken away", numbers.numbers, SHOWN)
    return numbers


class _Defaults:
    """Neutral prompts by question and wording: the candidates' log probabilities, and the stream at the answer."""

    def __init__(self, context: Context) -> None:
        asked: dict[tuple[str, object], Item] = {}
        for item in _own_items(context):
            if text := item.pair.neutral:
                unasked = replace(item.pair.bare(), clean=text, corrupt=text)
                asked.setdefault((item.question, item.pair.row.get("wording")), replace(item, pair=unasked))
        self.model, self.asked = context.model, asked
        size, items = context.options.batch_size, [*asked.values()]
        measures = measure_pairs(context.model, items, alike=True, batch_size=size) if items else ()
        self.log_probs = {key: np.array(m.log_probs_a) for key, m in zip(asked, measures, strict=True)}
        self.layer = round(context.model.graph.n_layers * DEPTH)
        self.streams = dict(zip(asked, self._streams(items, size), strict=True)) if items else {}

    def _streams(self, items: Sequence[Item], size: int) -> Values:
        rows = encode(Task(tuple(item.pair for item in items), "neutral prompts", ""), self.model, alike=True)
        streams = np.zeros((len(rows), self.model.d_model))
        for both in both_runs(self.model, rows, size, gradients=False):
            streams[list(both.batch.indices)] = both.clean.streams[self.layer][:, -1].cpu().double().numpy()
        return streams

    def elsewhere(self, item: Item) -> list[tuple[str, object]]:
        """The neutral prompts of the item's question in other wordings than its own."""
        own = item.pair.row.get("wording")
        return [key for key in self.asked if key[0] == item.question and key[1] != own]

    def level(self, item: Item) -> Values:
        """The candidates' mean log probabilities there, centred."""
        level = np.mean([self.log_probs[key] for key in self.elsewhere(item)], axis=0)
        return level - level.mean()

    def direction(self, item: Item) -> tuple[Values, Values]:
        """Of length one, from the middle of other questions' streams to this question's; and that middle."""
        own = np.mean([self.streams[key] for key in self.elsewhere(item)], axis=0)
        middle = np.mean([stream for key, stream in self.streams.items() if key[0] != item.question], axis=0)
        return (own - middle) / np.linalg.norm(own - middle), middle


def _chosen(context: Context, defaults: _Defaults) -> list[tuple[PairMeasure, list[PairMeasure]]]:
    """Rows, evenly taken, with those of the same personas and question in other wordings."""
    items, groups = _own_items(context), list[tuple[Item, ...]]()
    for group in grouped_rows(items):
        first, *rest = (items[place] for place in group)
        others = [other for other in rest if other.pair.row.get("wording") != first.pair.row.get("wording")]
        if others and defaults.elsewhere(first):
            groups.append((first, *others))
    if len({first.question for first, *_ in groups}) < 2:
        return []
    groups = evenly(groups, 2 * context.options.max_pairs)
    asked = iter(_asked(context, [replace(item, pair=item.pair.bare()) for group in groups for item in group]))
    return [(next(asked), [next(asked) for _ in others]) for _, *others in groups]


def _own_items(context: Context) -> list[Item]:
    assert context.wordings is not None
    return [item for item in context.wordings.items if item.control == "none"]


def _asked(context: Context, items: Sequence[Item]) -> tuple[PairMeasure, ...]:
    return measure_pairs(context.model, items, batch_size=context.options.batch_size, progress=context.stage("asking"))


def _bias(
    numbers: StageNumbers, context: Context, defaults: _Defaults, rows: Sequence[tuple[PairMeasure, list[PairMeasure]]]
) -> dict[str, Values]:
    measures = [m for m, _ in rows]
    levels = [defaults.level(m.item) for m in measures]
    sides = [_sides([m]) for m in measures]
    before, after = (_outcomes(measures, sides, by) for by in ([np.zeros_like(x) for x in levels], levels))
    rng = np.random.default_rng(context.options.seed)
    draws = ([rng.permutation(x) for x in levels] for _ in range(N_RANDOM["random"]))
    random = np.stack([_outcomes(measures, sides, by) for by in draws])
    _enter(numbers, context, [m.item for m in measures], "bias", before, after, {"random": random})
    expected = _outcomes(measures, [_sides(others) for _, others in rows], levels)[:, 0]
    estimates = Estimates([m.item for m in measures], **context.draws)
    what = "collapse that other wordings predict once the default is taken away"
    numbers.add("prior.bias.predicted", what=what, unit="share", **estimates.share(expected))
    what = "share of pairs that do as other wordings predict"
    numbers.add("prior.bias.agree", what=what, unit="share", **estimates.share(expected == after[:, 0]))
    a, b = expected.mean(), after[:, 0].mean()
    numbers.add("prior.bias.agree_chance", a * b + (1 - a) * (1 - b), "the same by chance", unit="share")
    controls = [] if context.controls is None else [c for c in context.controls.items if c.control == PARAPHRASE]
    controls = [item for item in controls if defaults.elsewhere(item)]
    null = _asked(context, evenly(controls, PASSES * context.options.max_pairs)) if controls else ()
    if null:
        estimates = Estimates([m.item for m in null], **context.draws)
        bounds = [defaults.level(m.item) for m in null]
        for key, by in (("before", [np.zeros_like(x) for x in bounds]), ("bias", bounds)):
            shares = estimates.share(_outcomes(null, [_sides([m]) for m in null], by)[:, 0])
            what = "collapse of two paraphrases of one persona" + (", the default taken away" if key == "bias" else "")
            numbers.add(f"prior.{key}.paraphrase", what=what, unit="share", **shares)
    return {"collapse": before[:, 0], "collapse_bias": after[:, 0], "predicted": expected}


def _sides(measures: Sequence[PairMeasure]) -> tuple[Values, Values]:
    """The candidates' mean log probabilities under A and under B."""
    return (np.mean([m.log_probs_a for m in measures], axis=0), np.mean([m.log_probs_b for m in measures], axis=0))


def _outcomes(
    measures: Sequence[PairMeasure], sides: Sequence[tuple[Values, Values]], less: Sequence[Values]
) -> Values:
    """``[pair, 2]``: whether both choose one candidate, and whether each chooses its own declared answer."""
    outcomes = [_outcome(m.item, a - by, b - by) for m, (a, b), by in zip(measures, sides, less, strict=True)]
    return np.array(outcomes, dtype=np.float64)


def _outcome(item: Item, a: Values, b: Values) -> tuple[bool, bool]:
    first, second = (item.candidates[int(np.argmax(x))] for x in (a, b))
    return first == second, first in item.pair.answers and second in item.pair.wrong_answers


def _direction(
    numbers: StageNumbers, context: Context, defaults: _Defaults, rows: Sequence[tuple[PairMeasure, list[PairMeasure]]]
) -> dict[str, Values]:
    items = [m.item for m, _ in rows]
    assert context.wordings is not None
    file = replace(context.wordings, items=tuple(items))
    candidates = [example.candidates for example in examples_of(file, context.model).examples[::2]]
    encoded = encode(Task(tuple(item.pair.bare() for item in items), file.source, ""), context.model)
    cases = _Cases(context, defaults, items, [tuple(ids) for ids in candidates])
    every = {name: np.zeros((n, len(items), 3)) for name, n in {"none": 1, "own": 1, **N_RANDOM}.items()}
    progress, done = context.stage("taking the default's direction out"), 0
    with Kept(context.kept("prior.state"), search_of(context.digest("prior"))) as kept:
        for both in both_runs(context.model, list(encoded), context.options.batch_size, gradients=False):
            for name, values in kept.of(f"{both.batch.place}", partial(cases.of, both)).items():
                every[name][:, list(both.batch.indices)] = values
            progress(done := done + len(both.batch), len(items))
    before, after = every["none"][0], every["own"][0]
    _enter(numbers, context, items, "direction", before, after, {name: every[name] for name in N_RANDOM})
    numbers.add("prior.direction.layer", defaults.layer, "layer of it", unit="layer")
    left = Estimates(items, **context.draws).ratio(after[:, 2], before[:, 2])
    numbers.add("prior.direction.divergence_left", what="D left, of D before", **left)
    for name in N_RANDOM:
        mean = every[name][:, :, 2].mean() / before[:, 2].mean()
        what = f"the same with {_words(name)}, mean"
        numbers.add(f"prior.direction.{name}.divergence_left", mean, what, n=N_RANDOM[name])
    return {"collapse_direction": after[:, 0], "divergence": before[:, 2], "divergence_direction": after[:, 2]}


class _Cases:
    """Every intervention on a batch, ``[draw, pair, 3]``: one choice, own choices, D."""

    def __init__(
        self, context: Context, defaults: _Defaults, items: Sequence[Item], candidates: Sequence[tuple[int, ...]]
    ) -> None:
        self.model, self.items, self.candidates, self.layer = context.model, items, candidates, defaults.layer
        self.own = [defaults.direction(item) for item in items]
        self.seed = context.options.seed

    def of(self, both: Both) -> dict[str, Values]:
        at = list(both.batch.indices)
        own, middle = (np.stack([self.own[i][k] for i in at]) for k in (0, 1))
        return {
            name: np.concatenate(
                [
                    self._run(both, at, own, middle, self._along(own, at, name, draws))
                    for draws in self._chunks(name, at)
                ]
            )
            for name in ("none", "own", *N_RANDOM)
        }

    def _chunks(self, name: str, at: list[int]) -> list[range]:
        n, size = N_RANDOM.get(name, 1), max(1, AT_ONCE // len(at))
        return [range(start, min(n, start + size)) for start in range(0, n, size)]

    def _along(self, own: Values, at: list[int], name: str, draws: range) -> Values:
        """``[draw, row, d_model]``."""
        if name in N_RANDOM:
            return np.stack([[self._drawn(i, draw, name) for i in at] for draw in draws])
        return (own if name == "own" else np.zeros_like(own))[None]

    def _drawn(self, i: int, draw: int, name: str) -> Values:
        rng = np.random.default_rng((self.seed, i, draw))
        if name == "other":
            others = [k for k, item in enumerate(self.items) if item.question != self.items[i].question]
            return self.own[others[int(rng.integers(len(others)))]][0]
        vector = rng.standard_normal(self.model.d_model)
        return vector / np.linalg.norm(vector)

    def _run(self, both: Both, at: list[int], own: Values, middle: Values, along: Values) -> Values:
        """The streams lose, along each of ``along``, as much as they have along the default."""
        logits, of_margin = [], []
        for run in both.runs:
            stream = run.streams[self.layer]
            last = stream[:, -1].cpu().double().numpy()
            much = ((last - middle) * own).sum(-1, keepdims=True)
            moved = torch.from_numpy(last - much * along).to(stream)
            ends = replay(self.model, moved.flatten(0, 1)[:, None], run.context, layer=self.layer,
                          before=prefix_of(self.model, run))  # fmt: skip
            streams = ends.double().unflatten(0, moved.shape[:2])
            logits.append(streams.cpu().numpy())
            of_margin.append(torch.stack([margins(values, both.batch) for values in streams]).cpu().numpy())
        rows = np.zeros((len(along), len(at), 3))
        rows[..., 2] = of_margin[0] - of_margin[1]
        for draw, k in np.ndindex(len(along), len(at)):
            ids = list(self.candidates[at[k]])
            rows[draw, k, :2] = _outcome(self.items[at[k]], *(side[draw, k, ids] for side in logits))
        return rows


def _enter(
    numbers: StageNumbers,
    context: Context,
    items: Sequence[Item],
    name: str,
    before: Values,
    after: Values,
    controls: dict[str, Values],
) -> None:
    """Collapse and own choices before and after, beside controls ``[draw, pair, measure]``; p of as few or as many."""
    estimates = Estimates(items, **context.draws)
    for column, key, sign in ((0, "collapse", 1), (1, "own", -1)):
        what = ("share of pairs with one most likely answer", "share in which each persona chooses its own")[column]
        about: dict[str, Any] = {"unit": "share"}
        numbers.add(f"prior.{name}.before.{key}", what=what, **about, **estimates.share(before[:, column]))
        share = estimates.share(after[:, column])
        rates = {kind: values[:, :, column].mean(1) for kind, values in controls.items()}
        change = estimates.mean(after[:, column] - before[:, column], within=(-1.0, 1.0))
        numbers.add(f"prior.{name}.{key}_change", what=f"{what}: after minus before", **about, **change)
        p = float((1 + (sign * rates["random"] <= sign * after[:, column].mean()).sum()) / (1 + len(rates["random"])))
        text = f"{what}, without the default; p: of random ones"
        numbers.add(f"prior.{name}.{key}", what=text, p=p, **about, **share)
        for kind, values in rates.items():
            text = f"{what}, with {_words(kind) if name == 'direction' else 'the same bias in another order'}, mean"
            numbers.add(f"prior.{name}.{kind}.{key}", float(values.mean()), text, **about | {"n": len(values)})


def _words(kind: str) -> str:
    return {"random": "random directions, moved as far", "other": "other questions' directions, moved as far"}[kind]
