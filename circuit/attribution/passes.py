"""The differentiated runs behind scores: at the clean prompt, between two prompts, or along the path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.attribution.gradients import Ends, differentiated
from persona_circuits.circuit.forward import (
    Ablation,
    Held,
    Prefix,
    Prepared,
    Run,
    Written,
    bare,
    changes,
    corrupt,
    is_unpadded,
    prefix_of,
    prepare,
    run,
    targets_of,
)
from persona_circuits.circuit.model import Context, Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric, Targets

__all__ = ["Apart", "ApartOfAll", "Path", "gradient_passes"]

SHORT: dict[str, Any] = {"contributions": False, "answer_only": True}
"""Options of a run of which only its outputs and what the answer depends on are needed."""


class Path(tuple[float, ...]):
    """Points in order, where a source is scored by what it changes from one to the next."""


class Apart(tuple[float, ...]):
    """Points of one component after the other, the others as in the clean run (``_passes_apart``)."""

    every = False
    """Whether an edge uses the gradients of all of these runs, not only of those that interpolate its source."""


class ApartOfAll(Apart):
    """The same as the published code has it."""

    every = True


def gradient_passes(
    model: Model,
    batch: Batch | Prepared,
    metric: Metric,
    points: tuple[float, ...] | None,
    ablation: Ablation | None,
    first: int,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """Call ``use`` per point with the differentiated run, delta from position ``first`` on, and the point's share.

    The plain runs of a prepared batch are reused.
    """
    item, batch = batch if isinstance(batch, Prepared) else None, bare(batch)
    if isinstance(points, Path):
        _passes_along(model, batch, item, metric, points, ablation, first, use)
    elif isinstance(points, Apart):
        _passes_apart(model, item or prepare(model, batch, ablation), metric, points, first, use)
    elif not is_unpadded(batch, ablation):
        _general_passes(model, batch, item, metric, points, ablation or corrupt, use)
    elif points is None:
        _one_pass(model, batch, item, metric, first, use)
    else:
        _passes_between(model, batch, item, metric, points, first, use)


def _one_pass(
    model: Model,
    batch: Batch,
    item: Prepared | None,
    metric: Metric,
    first: int,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """At the clean run.

    Positions that both prompts share are run once where possible: in a pass of their own, or in the corrupt run,
    which then comes first. The clean run has no gradient there.
    """
    embedded, context = model.start(batch.clean, None, batch.forms)
    n_late = embedded.shape[1] - first
    if item is None:
        before, other = prefix_of(model, batch.clean[:, :first]), None
    else:
        before, other = item.before, item.corrupt.written.answer_only(context.n_read).late(n_late)
    if first and before is None and len(_shared_prompts(batch)[1]) == len(batch):
        with torch.no_grad():
            at = run(model, *model.start(batch.corrupt, None, batch.forms), **SHORT)
        check_finite(at.logits, batch.name)
        other, before = at.written.late(n_late), Prefix.of(at, first)
        del at
    late = embedded if before is None else embedded[:, first:]
    with torch.enable_grad():
        clean = run(model, late.detach().requires_grad_(), context, before=before, **SHORT)
    check_finite(clean.logits, batch.name)
    ends = _differentiated(model, clean, metric, targets_of(batch, clean.logits)).late(n_late)
    written = clean.written.late(n_late)
    del clean  # frees its graph
    delta = changes(model, written, other or _corrupt_written(model, batch, written, before))
    del written, other
    use(ends, delta, 1.0)


def _passes_between(
    model: Model,
    batch: Batch,
    item: Prepared | None,
    metric: Metric,
    points: tuple[float, ...],
    first: int,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """Between the corrupt and the clean embeddings, from the first position at which these differ on."""
    clean = _clean_run(model, batch) if item is None else item.clean
    n_late = clean.streams[0].shape[1] - first
    embedded, context = clean.streams[0][:, first:], clean.context
    targets, before = targets_of(batch, clean.logits), Prefix.of(clean, first)
    written = clean.written.late(n_late) if item is None else clean.written.answer_only(context.n_read).late(n_late)
    del clean
    if item is None:
        other = _corrupt_written(model, batch, written, before)
    else:
        other = item.corrupt.written.answer_only(context.n_read).late(n_late)
    start, delta = other.embedded, changes(model, written, other)
    del written, other
    for point in points:
        ends = _between(model, metric, targets, start + point * (embedded - start), context, before)
        use(ends, delta, 1.0 / len(points))
        del ends  # frees its graph before the next one


def _passes_along(
    model: Model,
    batch: Batch,
    item: Prepared | None,
    metric: Metric,
    points: Path,
    ablation: Ablation | None,
    first: int,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """The trapezoid rule between neighbouring points, from the clean embeddings to the ablated ones."""
    if plain := is_unpadded(batch, ablation):
        clean = _clean_run(model, batch) if item is None else item.clean
        start = model.start(batch.corrupt, None, batch.forms)[0][:, first:]
    else:
        with torch.no_grad():
            clean = (
                run(model, *model.start(batch.clean, batch.clean_padding, batch.forms)) if item is None else item.clean
            )
        start = ((ablation or corrupt)(model, batch, clean) if item is None else item.ablated).streams[0]
    embedded, context = clean.streams[0][:, first if plain else 0 :], clean.context
    targets, before = targets_of(batch, clean.logits), Prefix.of(clean, first) if plain else None
    del clean
    held: Ends | None = None
    written: list[Written] = []
    for point in points:
        with torch.enable_grad():
            between = (start + point * (embedded - start)).requires_grad_()
            at = run(model, between, context, before=before, **SHORT)
        written = [*written[-2:], at.written]
        if held is not None:
            use(held, changes(model, written[0], written[-1]), 0.5)
        held = _differentiated(model, at, metric, targets)
        del at
    assert held is not None
    use(held, changes(model, written[-2], written[-1]), 0.5)


def _passes_apart(
    model: Model, item: Prepared, metric: Metric, points: Apart, first: int, use: Callable[[Ends, Tensor, float], None]
) -> None:
    """The embeddings, a layer's attention and its MLP in turn, each interpolated between its outputs in both runs.

    The component's output is fixed: no gradient passes through it.
    """
    graph, n_late = model.graph, item.clean.streams[0].shape[1] - first
    delta, start = item.ablated.contributions - item.clean.contributions, item.clean.streams[0]
    components = [slice(0, 1)]
    for layer in range(graph.n_layers):
        components += [graph.heads_of(layer), slice(graph.mlp_of(layer), graph.mlp_of(layer) + 1)]
    for some in components:
        own = delta if points.every else torch.zeros_like(delta)
        own[some] = delta[some]
        for point in points:
            change = (1 - point) * delta[some].sum(0)
            with torch.enable_grad():
                between = (start + change if some.start == 0 else start.clone()).requires_grad_()
                held = None if some.start == 0 else Held(some.start, change)
                at = run(model, between, item.clean.context, held=held, **SHORT)
            ends = _differentiated(model, at, metric, item.targets).late(n_late)
            use(ends, own[:, :, first:], 1.0 / len(points) / (len(components) if points.every else 1))
            del at, ends


def _clean_run(model: Model, batch: Batch) -> Run:
    embedded, context = model.start(batch.clean, None, batch.forms)
    with torch.no_grad():
        clean = run(model, embedded, context, **SHORT)
    check_finite(clean.logits, batch.name)
    return clean


def _general_passes(
    model: Model,
    batch: Batch,
    item: Prepared | None,
    metric: Metric,
    points: tuple[float, ...] | None,
    ablation: Ablation,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """The same for any ablation and for padded rows, over all positions."""
    if item is not None and points is not None:
        clean = item.clean
    else:
        embedded, context = model.start(batch.clean, batch.clean_padding, batch.forms)
        with torch.set_grad_enabled(points is None):
            clean = run(model, embedded.detach().requires_grad_(points is None), context)
        check_finite(clean.logits, batch.name)
    targets = targets_of(batch, clean.logits)
    ends = _differentiated(model, clean, metric, targets) if points is None else None
    clean = clean.without_graph()
    ablated = ablation(model, batch, clean) if item is None else item.ablated
    embedded, context, start = clean.streams[0], clean.context, ablated.streams[0]
    delta = ablated.contributions - clean.contributions
    del clean, ablated
    if ends is not None:
        use(ends, delta, 1.0)
    for point in points or ():
        ends = _between(model, metric, targets, start + point * (embedded - start), context, None)
        use(ends, delta, 1.0 / len(points or ()))
        del ends


def _between(
    model: Model,
    metric: Metric,
    targets: Targets,
    embedded: Float[Tensor, "batch late d_model"],
    context: Context,
    before: Prefix | None,
) -> Ends:
    """A run from embeddings between two prompts', differentiated."""
    with torch.enable_grad():
        at = run(model, embedded.requires_grad_(), context, before=before, **SHORT)
    return _differentiated(model, at, metric, targets)


def _differentiated(model: Model, at: Run, metric: Metric, targets: Targets) -> Ends:
    with torch.enable_grad():
        value = metric(at.logits, targets).sum()
    return differentiated(model, at, value)


def _corrupt_written(model: Model, batch: Batch, clean: Written, before: Prefix | None) -> Written:
    """What a run of the corrupt prompts writes, at the positions of ``clean``, which is what the clean prompts' does.

    A corrupt prompt that is a clean prompt of the batch, as the swapped row of a pair has it,
    is not run again, and one that stands in several rows is run once.
    """
    place, missing = _shared_prompts(batch)
    n_late = clean.embedded.shape[1]
    other = clean
    if missing:
        with torch.no_grad():
            forms = None if batch.forms is None else batch.forms[missing]
            embedded, context = model.start(batch.corrupt[missing], None, forms)
            own = None if before is None else before.rows(missing)
            late = embedded if before is None else embedded[:, -n_late:]
            at = run(model, late, context, before=own, **SHORT)
        check_finite(at.logits, lambda row: batch.name(missing[row]))
        more = at.written.late(n_late)
        other = more if len(missing) == len(batch) else other.joined(more)
    return other if len(missing) == len(batch) else other.rows(place)


def _shared_prompts(batch: Batch) -> tuple[list[int], list[int]]:
    """The place of each corrupt prompt among the clean ones and those missing there; and the rows of the latter."""
    tails = [b"" if batch.forms is None else batch.forms.key(row) for row in range(len(batch))]
    where = {(*ids, tail): i for i, (ids, tail) in enumerate(zip(batch.clean.tolist(), tails, strict=True))}
    place: list[int] = []
    missing: list[int] = []
    for row, ids in enumerate((*ids, tail) for ids, tail in zip(batch.corrupt.tolist(), tails, strict=True)):
        if ids not in where:
            where[ids] = len(batch) + len(missing)
            missing.append(row)
        place.append(where[ids])
    return place, missing
