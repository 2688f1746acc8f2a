"""The causal test that goes with each verdict, run on the model.

    no collapse        patching    inside the model A's stream in one part of the prompt (the persona, what lies
                                   between it and the answer, these two, or the answer) is put into B's run, and
                                   B's into A's: for one and the same part and layer each run must then choose what
                                   the other one chose
    prior dominance    gain        in every layer, the difference between the personas in what attention brings to
                                   the answer is multiplied by g, and all that reads it is recomputed: above the
                                   predicted gain the choices must differ, below it they must not. Also reported:
                                   the same for the final stream alone, which is close to arithmetic
    cancellation       ablation    the strongest nodes that contribute against the persona write the mean of both
                                   runs at the answer, all that reads them is recomputed: D must be restored;
                                   beside it the same with random nodes, as many of each layer
    weak or transient  nearness    attention on the persona is raised everywhere after it: D must be restored
    bottleneck         steering    at the answer, where the persona's signal first reaches half of its maximum, a
                                   push along the readout (the gradient of m) must restore D, and a push as long
                                   along the personas' own difference must not

Each can fail. ``says`` holds the numbers of a test, in logits unless they are gains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from persona_circuits import metrics
from persona_circuits.circuit.forward import Prefix
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.circuit.storage import Kept, packed, unpacked
from persona_circuits.circuit.task import Batch, Row, batches
from persona_circuits.persona.explanation.inside import Inside
from persona_circuits.persona.explanation.runs import (
    NO_MASK,
    Both,
    Removed,
    at_last,
    both_of,
    can_come_nearer,
    margins,
    nearer,
    prefix_of,
    replay,
    scaled,
)
from persona_circuits.persona.explanation.verdicts import Thresholds
from persona_circuits.persona.streams import id_table

__all__ = ["TESTS", "Asked", "Outcome", "flip_gain", "run_test"]

TESTS = {
    "no collapse": "patching",
    "prior dominance": "gain",
    "cancellation": "ablation",
    "weak or transient": "nearness",
    "bottleneck": "steering",
}


N_RANDOM = 8
RANDOM = "agrees with random nodes"
"""Of ``says``: the share of random sets of nodes, as many of each layer, with which the test would agree."""


@dataclass(frozen=True)
class Asked:
    """A pair to be tested: its ids, its candidates' ids, what is inside, and the D to be restored."""

    row: Row
    candidates: tuple[int, ...]
    inside: Inside
    flip_gain: float
    restored: float


@dataclass(frozen=True)
class Outcome:
    """What a test found; ``why`` in words. ``agrees`` is None where it was not run."""

    test: str
    agrees: bool | None
    says: Mapping[str, float]
    why: str = ""


def run_test(
    model: Model,
    test: str,
    asked: Sequence[Asked],
    thresholds: Thresholds,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> tuple[Outcome, ...]:
    """One of the five tests on every pair, in the order of ``asked``; ``kept`` has what a stopped study did."""
    runner = _RUNNERS[test]
    by_index = {item.row.index: item for item in asked}
    results: dict[int, Outcome] = {}
    kept = kept or Kept(None, "")

    def outcomes(batch: Batch) -> dict[str, NDArray[np.uint8]]:
        both, items = both_of(model, batch, gradients=test == "steering"), [by_index[index] for index in batch.indices]
        return {"outcomes": packed([asdict(outcome) for outcome in runner(model, both, items, thresholds)])}

    for batch in batches([item.row for item in asked], batch_size, model.device):
        done = unpacked(kept.of(f"{test} {batch.place}", partial(outcomes, batch))["outcomes"])
        results |= {index: Outcome(**outcome) for index, outcome in zip(batch.indices, done, strict=True)}
        (progress or untold)(len(results), len(asked))
    return tuple(results[item.row.index] for item in asked)


def flip_gain(log_probs_a: Sequence[float], log_probs_b: Sequence[float]) -> float:
    """How much the persona effect must grow until the two personas choose differently, over all candidates.

    With the candidates' mean logits l and half differences d, gain g gives A the logits
    l + g d and B l - g d. Which candidate is largest along l + g d only moves to larger d as g
    grows, so the choices are the same up to a gain and differ beyond it. For two candidates it is
    g* = 2|b| / |D|. 1 is the model as it is; infinite where the personas do not differ.
    """
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (log_probs_a, log_probs_b))
    level, slope = (a + b) / 2, (a - b) / 2
    top = int(level.argmax())
    rise, deficit = slope - slope[top], level[top] - level
    crossing = torch.where(rise != 0, deficit / rise.abs().clamp(min=1e-300), torch.inf)
    return float(crossing.min())


def _patching(model: Model, both: Both, items: Sequence[Asked], thresholds: Thresholds) -> list[Outcome]:
    own = list(zip(*(_choices(run.logits, items) for run in both.runs), strict=True))
    moved: list[list[str]] = [[] for _ in items]
    shares: list[dict[str, float]] = [{} for _ in items]
    for layer in _inner_layers(model.graph.n_layers, thresholds.patched_layers):
        for name, marked in _patched_places(both).items():
            logits = _exchanged(model, both, layer, marked)
            chosen = zip(*(_choices(values, items) for values in logits), strict=True)
            for i, (new, share) in enumerate(zip(chosen, _persistence(both, logits[1]), strict=True)):
                place = f"{name} at {layer}"
                shares[i][f"P {place}"] = share
                moved[i] += [place] if own[i][0] != own[i][1] and new == own[i][::-1] else []
    return [
        Outcome("patching", bool(where), says, f"moved by: {', '.join(where) or 'no part of the prompt'}")
        for where, says in zip(moved, shares, strict=True)
    ]


def _inner_layers(n_layers: int, parts: Sequence[float]) -> list[int]:
    """Layers at these parts of the depth, neither the first stream nor, if there is another, the last."""
    return sorted({max(1, min(n_layers - 1, round(n_layers * part))) for part in parts})


def _patched_places(both: Both) -> dict[str, Bool[Tensor, "batch pos"]]:
    answer = torch.zeros_like(both.inside)
    answer[:, -1] = True
    parts = {"persona": both.inside, "between": both.between, "answer": answer}
    return parts | {"persona and between": both.inside | both.between}


def _exchanged(model: Model, both: Both, layer: int, marked: Bool[Tensor, "batch pos"]) -> list[Tensor]:
    """Logits of both runs with the other one's stream at the marked places."""
    a, b = both.runs
    return [
        replay(
            model, torch.where(marked[..., None], other.streams[layer], run.streams[layer]), run.context, layer=layer
        )
        for run, other in ((a, b), (b, a))
    ]


def _persistence(both: Both, patched: Float[Tensor, "batch vocab"]) -> list[float]:
    """P = [m(x_B with A's stream) - m(x_B)] / D."""
    m_a, m_b = (margins(run.logits, both.batch) for run in both.runs)
    return ((margins(patched, both.batch) - m_b) / (m_a - m_b)).tolist()


def _gain(model: Model, both: Both, items: Sequence[Asked], thresholds: Thresholds) -> list[Outcome]:
    gains = torch.tensor([item.flip_gain for item in items], device=both.inside.device)
    finite = gains.nan_to_num(posinf=1.0).to(model.dtype)
    ends = (finite * thresholds.gain_margin, finite / thresholds.gain_margin)
    inside = [_apart(scaled(model, both, gain), items) for gain in ends]
    final = [_apart(_drawn_apart(model, both, gain), items) for gain in ends]
    outcomes = []
    for i, item in enumerate(items):
        if item.flip_gain == float("inf"):
            outcomes.append(Outcome("gain", None, {}, "the personas do not differ; no gain separates their choices"))
            continue
        agrees, at_the_end = (above[i] and not below[i] for above, below in (inside, final))
        says = {"gain": item.flip_gain, "agrees in the final stream": float(at_the_end)}
        outcomes.append(Outcome("gain", agrees, says, _gain_says(item.flip_gain, inside[0][i], inside[1][i])))
    return outcomes


def _gain_says(gain: float, above: bool, below: bool) -> str:
    return f"gain {gain:.2f}: choices {'differ' if above else 'agree'} above, {'differ' if below else 'agree'} below"


def _ablation(model: Model, both: Both, items: Sequence[Asked], thresholds: Thresholds) -> list[Outcome]:
    chosen = torch.stack([_opposing(item.inside.contributions, thresholds.ablated_share) for item in items])
    mean = torch.stack([run.contributions[:, :, -1] for run in both.runs]).mean(0)
    d = _divergence(both, [run.logits for run in both.runs]).tolist()
    before = [prefix_of(model, run) for run in both.runs]
    after = _without(model, both, before, chosen, mean).tolist()
    layers = torch.tensor([node.layer for node in model.graph.src_nodes])
    keys = [item.row.index for item in items]
    random = [_alike(chosen, layers, keys, draw) for draw in range(N_RANDOM)]
    drawn = [_without(model, both, before, nodes, mean).tolist() for nodes in random]
    outcomes = []
    for i, (item, n) in enumerate(zip(items, chosen.sum(1).tolist(), strict=True)):
        others = [values[i] for values in drawn]
        says = {"D": d[i], "D without": after[i], "nodes": float(n), "D without random": float(np.mean(others))}
        says[RANDOM] = float(np.mean([d[i] < item.restored <= value for value in others]))
        why = f"D {d[i]:+.2f} to {after[i]:+.2f} without {n} nodes, {np.mean(others):+.2f} without random ones"
        outcomes.append(Outcome("ablation", d[i] < item.restored <= after[i], says, why))
    return outcomes


def _without(
    model: Model,
    both: Both,
    before: Sequence[Prefix],
    chosen: Bool[Tensor, "batch src"],
    mean: Float[Tensor, "src batch d_model"],
) -> Float[Tensor, " batch"]:
    """D where the chosen nodes write the mean of both runs at the answer."""
    removed = Removed(chosen.to(mean.device), mean)
    logits = []
    for run, prefix in zip(both.runs, before, strict=True):
        start = run.streams[0][:, -1:] + removed.shift(slice(0, 1), run.contributions[:1, :, -1])[:, None]
        logits.append(replay(model, start, run.context, removed=removed, before=prefix))
    return _divergence(both, logits)


def _alike(
    chosen: Bool[Tensor, "batch src"], layers: Int[Tensor, " src"], keys: Sequence[int], draw: int
) -> Bool[Tensor, "batch src"]:
    """For every row as many nodes of each layer, drawn at random; by the row's own number, whatever its batch."""
    drawn = torch.zeros_like(chosen)
    for i, key in enumerate(keys):
        rng = np.random.default_rng((key, draw))
        for layer in layers[chosen[i]].unique().tolist():
            own = torch.nonzero(layers == layer)[:, 0]
            count = int(chosen[i, own].sum())
            drawn[i, own[torch.from_numpy(rng.permutation(len(own))[:count])]] = True
    return drawn


def _nearness(model: Model, both: Both, items: Sequence[Asked], thresholds: Thresholds) -> list[Outcome]:
    if not can_come_nearer(both.clean.context):
        return [Outcome("nearness", None, {}, NO_MASK)] * len(items)
    now = _divergence(both, [run.logits for run in both.runs]).tolist()
    nearer_d = {
        boost: _divergence(
            both, [replay(model, run.streams[0], nearer(run.context, both, boost)) for run in both.runs]
        ).tolist()
        for boost in thresholds.nearness
    }
    outcomes = []
    for i, item in enumerate(items):
        best = max(nearer_d, key=lambda boost: nearer_d[boost][i])
        says = {"D": now[i]} | {f"D at {boost:g}": values[i] for boost, values in nearer_d.items()}
        why = f"D {now[i]:+.2f} to {nearer_d[best][i]:+.2f} at attention logits {best:g} higher"
        outcomes.append(Outcome("nearness", now[i] < item.restored <= nearer_d[best][i], says, why))
    return outcomes


def _steering(model: Model, both: Both, items: Sequence[Asked], thresholds: Thresholds) -> list[Outcome]:
    assert both.gradients is not None, "run_test asks for gradients"
    layers = [_arrival(item.inside.signal["answer"]) for item in items]
    before = [prefix_of(model, run) for run in both.runs]
    steered, amplified = (torch.zeros(len(items), dtype=torch.float64) for _ in range(2))
    for layer in sorted(set(layers)):
        here = torch.tensor([at == layer for at in layers])
        gap = both.difference(layer)[:, -1]
        along = torch.nn.functional.normalize(both.gradients[layer][:, -1], dim=-1)
        pushes = (along * gap.norm(dim=-1, keepdim=True), gap)
        size = (thresholds.amplification - 1) / 2
        for out, push in zip((steered, amplified), pushes, strict=True):
            logits = [
                replay(
                    model,
                    run.streams[layer][:, -1:] + sign * size * push[:, None],
                    run.context,
                    layer=layer,
                    before=prefix,
                )
                for run, prefix, sign in zip(both.runs, before, (1, -1), strict=True)
            ]
            out[here] = _divergence(both, logits)[here]
    return [
        Outcome(
            "steering",
            bool(along >= item.restored > drawn),
            {"layer": float(layer), "D steered": along, "D amplified": drawn},
            f"D {along:+.2f} along the readout, {drawn:+.2f} with the persona amplified",
        )
        for item, layer, along, drawn in zip(items, layers, steered.tolist(), amplified.tolist(), strict=True)
    ]


_RUNNERS = {"patching": _patching, "gain": _gain, "ablation": _ablation, "nearness": _nearness, "steering": _steering}


def _drawn_apart(model: Model, both: Both, gain: Float[Tensor, " batch"]) -> list[Tensor]:
    """Logits of both runs with the answer's final streams at ``gain`` times their difference, about their mean."""
    last = model.graph.n_layers
    push = ((gain - 1) / 2)[:, None] * both.difference(last)[:, -1]
    ends = zip(both.runs, (1, -1), strict=True)
    return [replay(model, at_last(run.streams[last], sign * push), run.context, layer=last) for run, sign in ends]


def _divergence(both: Both, logits: Sequence[Tensor]) -> Float[Tensor, " batch"]:
    a, b = (margins(values, both.batch) for values in logits)
    d = metrics.persona_divergence(a, b).double().cpu()
    check_finite(d, both.batch.name, "margins")
    return d


def _choices(logits: Float[Tensor, "batch vocab"], items: Sequence[Asked]) -> list[int]:
    """The place of each row's most likely candidate."""
    table = id_table([item.candidates for item in items]).to(logits.device)
    return metrics.candidate_logits(logits, table).argmax(-1).tolist()


def _apart(logits: Sequence[Tensor], items: Sequence[Asked]) -> list[bool]:
    a, b = (_choices(values, items) for values in logits)
    return [x != y for x, y in zip(a, b, strict=True)]


def _opposing(contributions: Sequence[float], share: float) -> Bool[Tensor, " src"]:
    """The fewest nodes that make this share of all contributions below zero."""
    against = torch.tensor(contributions, dtype=torch.float64).clamp(max=0).neg()
    ordered, order = against.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    chosen = torch.zeros(len(against), dtype=torch.bool)
    chosen[order] = (ordered > 0) & (before < share * against.sum())
    return chosen


def _arrival(signal: Sequence[float]) -> int:
    """The first layer at which the signal has half of its maximum."""
    return next(layer for layer, value in enumerate(signal) if value >= max(signal) / 2)
