"""Stage ``across`` of a study: the persona's tokens of one frame put into another.

The stream at the tokens in which the two personas differ is taken from a prompt of a frame (``Your friend is a
monk``) and put into the frame ``you`` of the other persona (``You are a soldier``), layer by layer. ``share`` is how
much of D it brings over, in both directions; ``null`` is the same with the frame alone changed, the persona not. The
layer is the last one at which the tokens of ``you`` itself bring over half on train; shares are of held-out pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from persona_circuits.circuit.figures import write_csv, write_figures
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.storage import Kept, search_of
from persona_circuits.circuit.task import Batch, Row, Task, batches, encode
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.explanation.runs import Both, both_of, margins, replay
from persona_circuits.persona.steering.passes import evenly
from persona_circuits.persona.study.context import NO_FRAMES, Context
from persona_circuits.persona.study.numbers import Estimates, StageNumbers
from persona_circuits.persona.study.stages.figures import across_figure

__all__ = ["run_across"]

YOU, FRAMES = "you", ("you", "friend", "book", "nobody")
HALF = 0.5
LAYERS, SPARSE = 10, 3
"""So many layers are tried on train; every third of them on held-out pairs."""
Values = NDArray[np.float64]


def run_across(context: Context, folder: Path) -> StageNumbers:
    """The shares of D by frame and layer, and those at the layer that train chooses."""
    numbers = StageNumbers("across/across.csv")
    if context.frames is None:
        numbers.notes.append(NO_FRAMES)
        return numbers
    bases = _aligned(context)
    fitted, held_out = context.fitted_and_held_out
    n_layers = context.model.graph.n_layers
    layers = [*range(0, n_layers + 1, max(1, n_layers // LAYERS))]
    with Kept(context.kept("across.state"), search_of(context.digest("across"))) as kept:
        own = _some(context, bases, fitted)
        if min(len(own), len(_some(context, bases, held_out))) < 2:
            numbers.notes.append("across: too few pairs have the tokens that differ in one place in all frames")
            return numbers
        chosen = _last_half(_moved(context, own, [YOU], layers, kept)[YOU], layers)
        what = "last layer at which the persona's tokens in you bring over half of D, on train"
        numbers.add("across.layer", chosen, what, unit="layer", n=len(own))
        layers = sorted({*layers[::SPARSE], *([] if chosen is None else [chosen])})
        there = _some(context, bases, held_out)
        names = [name for name in FRAMES if name in there[0]]
        values = _moved(context, there, names, layers, kept)
    _numbers(numbers, context, [base[YOU] for base in there], values, layers, chosen, folder)
    return numbers


def _some(context: Context, bases: Sequence[dict[str, Item]], split: str) -> list[dict[str, Item]]:
    """Bases of a split, at most twice ``max_pairs``, evenly taken."""
    own = [base for base in bases if split in ("all", base[YOU].pair.split)]
    return evenly(own, 2 * context.options.max_pairs)


def _last_half(values: Values, layers: Sequence[int]) -> int | None:
    whole = values[:, 0].mean()
    shares = values[:, 1::2].mean(0) / whole if whole else np.zeros(len(layers))
    return max((layer for layer, share in zip(layers, shares, strict=True) if share >= HALF), default=None)


def _aligned(context: Context) -> list[dict[str, Item]]:
    """Bases whose differing tokens stand as far from the prompt's end in every frame."""
    assert context.frames is not None
    bases: dict[str, dict[str, Item]] = {}
    for item in context.frames.items:
        if (name := item.pair.axis("variant")) in FRAMES:
            bases.setdefault(item.pair.axis("base"), {})[name] = item
    most = max(map(len, bases.values()), default=0)
    whole = [base for base in bases.values() if len(base) == most and YOU in base]
    places = [{_span(row) for row in _rows(context, [*base.values()])} for base in whole]
    return [base for base, spans in zip(whole, places, strict=True) if len(spans) == 1]


def _rows(context: Context, items: Sequence[Item]) -> list[Row]:
    assert context.frames is not None
    return list(encode(Task(tuple(item.pair for item in items), context.frames.source, ""), context.model))


def _span(row: Row) -> tuple[int, int]:
    """The first and the last of the differing tokens, counted from the end."""
    differ = [i for i, (a, b) in enumerate(zip(row.clean[::-1], row.corrupt[::-1], strict=True)) if a != b]
    return differ[-1], differ[0]


def _moved(
    context: Context, bases: Sequence[dict[str, Item]], names: Sequence[str], layers: Sequence[int], kept: Kept
) -> dict[str, Values]:
    """By frame ``[pair, 1 + 2 * layer]``: D in ``you``, and of each layer what is moved, by the persona and by none."""
    rows = {name: _rows(context, [base[name] for base in bases]) for name in names}
    moved = {name: np.zeros((len(bases), 1 + 2 * len(layers))) for name in names}
    progress = context.stage("patching the persona of one frame into another")
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(bases)):
        groups.setdefault(tuple(len(rows[name][i].clean) for name in names), []).append(i)
    size, done = context.options.batch_size, 0
    for at in [group[k : k + size] for group in groups.values() for k in range(0, len(group), size)]:
        same = {name: batches([rows[name][i] for i in at], size, context.model.device)[0] for name in names}
        key = f"{len(names)} {at[0]}"
        for name, values in kept.of(key, partial(_patched, context, same, layers)).items():
            moved[name][at] = values
        progress(done := done + len(at), len(bases))
    return moved


def _patched(context: Context, frames: dict[str, Batch], layers: Sequence[int]) -> dict[str, Values]:
    model, batch = context.model, frames[YOU]
    own = both_of(model, batch, gradients=False)
    whole = torch.sub(*(margins(run.logits, batch) for run in own.runs))
    by_frame: dict[str, Values] = {}
    for name, other in frames.items():
        source = own if name == YOU else both_of(model, other, gradients=False)
        columns = [whole]
        for layer in layers:
            columns.append(_half(model, own, source, layer, exchanged=True))
            columns.append(_half(model, own, source, layer, exchanged=False) if name != YOU else 0 * whole)
        by_frame[name] = torch.stack(columns, 1).cpu().double().numpy()
    return by_frame


def _half(model: Model, own: Both, source: Both, layer: int, *, exchanged: bool) -> torch.Tensor:
    """How far the margins of both runs move toward the personas that the streams are of; half of their sum."""
    others, signs = (source.runs[::-1], (-1, 1)) if exchanged else (source.runs, (1, -1))
    moved = []
    for run, other, sign in zip(own.runs, others, signs, strict=True):
        base, patch = run.streams[layer], other.streams[layer]
        patch = torch.nn.functional.pad(patch, (0, 0, max(0, base.shape[1] - patch.shape[1]), 0))[:, -base.shape[1] :]
        stream = torch.where(own.inside[..., None], patch, base)
        logits = replay(model, stream, run.context, layer=layer)
        moved.append(sign * (margins(logits, own.batch) - margins(run.logits, own.batch)))
    return torch.stack(moved).sum(0) / 2


def _numbers(
    numbers: StageNumbers,
    context: Context,
    items: Sequence[Item],
    values: dict[str, Values],
    layers: Sequence[int],
    chosen: int | None,
    folder: Path,
) -> None:
    """Every layer's shares in the file, those of the chosen layer as numbers."""
    estimates, rows = Estimates(items, **context.draws), []
    for name, here in values.items():
        for i, layer in enumerate(layers):
            for place, key in ((1 + 2 * i, "share"), (2 + 2 * i, "null")):
                ratio = estimates.ratio(here[:, place], here[:, 0])
                rows.append({"frame": name, "layer": layer, "what": key, **ratio})
                if layer == chosen and (key == "share" or name != YOU):
                    persona = "the other persona's tokens" if key == "share" else "the same persona's tokens"
                    text = f"share of D that {persona} of {name} bring into you at that layer"
                    numbers.add(f"across.{name}.{key}", what=text, unit="share", **ratio)
            if layer == chosen and name != YOU:
                text = f"what {name} brings over there / what you does"
                ratio = estimates.ratio(here[:, 1 + 2 * i], values[YOU][:, 1 + 2 * i])
                numbers.add(f"across.{name}.of_you", what=text, **ratio)
    write_csv(rows, folder / "across.csv")
    write_figures({"across": across_figure(rows)}, folder, page="across.html", title="Frames put into one another")
