"""Edge scores: how much the metric moves when one edge carries its ablated value.

    eap         delta_s . grad_d at the clean run (Syed et al. 2023, arXiv:2310.10348)
    eap-ig      the gradient averaged between the ablated and the clean embeddings
                (EAP-IG inputs, Hanna et al. 2024, arXiv:2403.17806)
    exact       one patched forward pass per edge
    random      the control

with delta_s = ablated - clean output of the source, summed over positions and
averaged over prompts. Neither split copies of the residual stream nor gradients
of parameters are taken: the gradient at a head's stream is the norm's Jacobian
transposed times W_Q g_q, and all edges into a layer are one matrix product.

A score is a sum over prompts and positions, so it can be given in parts: per
prompt, or per named part of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuit import ranks
from circuit.ablation import Ablation, corrupt
from circuit.errors import OptionError
from circuit.finite import check_finite
from circuit.gradients import Ends, differentiated, gradients_at_slots
from circuit.graph import Graph
from circuit.model import Context, Model
from circuit.patching import Progress, first_difference, in_halves, is_plain, is_unpadded, measure_rows, prepare_each
from circuit.runs import Prefix, Run, Written, changes, prefix_of, run, targets_of
from circuit.scores import Scores
from circuit.task import Batch
from metrics import Metric, Targets

__all__ = [
    "ACTIVATIONS",
    "IG_RULES",
    "METHODS",
    "PARTS",
    "ActivationCost",
    "Completeness",
    "ScoreParts",
    "activation_cost",
    "completeness_of",
    "eap",
    "eap_ig",
    "exact",
    "random_scores",
    "score",
    "score_parts",
]

METHODS = ("eap", "eap-ig", "exact", "random")
IG_RULES = ("midpoint", "authors")
PARTS = ("row", "span")
ACTIVATIONS = ("float32", "bfloat16")
SHORT: dict[str, Any] = {"contributions": False, "answer_only": True}
"""A run of which only what it wrote and what the answer depends on is wanted."""
BLOCK_BYTES = 1 << 26
"""Least bound on the gradients at heads' streams that are held at a time, where none is given."""


@dataclass(frozen=True, eq=False)
class ScoreParts:
    """Scores that add up to those of all prompts and positions.

    ``values`` is ``[part, src, dst]``, rows in float32, spans in float64. ``by="row"``: part i is the score of the row
    with index i alone, and the whole is their mean. ``by="span"``: part i is what the
    positions of the part ``names[i]`` of the prompts give, and the whole is their sum.
    """

    graph: Graph
    by: str
    names: tuple[str, ...]
    values: Float[np.ndarray, "part src dst"]

    def total(self) -> Scores:
        """The scores of all prompts and positions."""
        whole = self.values.astype(np.float64)
        return Scores(self.graph, whole.mean(axis=0) if self.by == "row" else whole.sum(axis=0))


def score(
    model: Model,
    batches: Sequence[Batch],
    metric: Metric,
    *,
    method: str = "eap-ig",
    steps: int = 5,
    rule: str = "midpoint",
    seed: int = 0,
    ablation: Ablation | None = None,
    max_bytes: int | None = None,
    activations: str = "float32",
    progress: Progress | None = None,
) -> Scores:
    """Scores by the method's name; options that a method does not have are not looked at.

    ``activations="bfloat16"`` multiplies matrices in that format (torch's autocast) and
    adds up in float32; ``activation_cost`` says what that does to the scores.

    Raises:
        OptionError: the method or an option of it is unknown or makes no sense.
    """
    more: dict[str, Any] = {"ablation": ablation, "max_bytes": max_bytes, "progress": progress}
    if method in ("eap", "eap-ig"):
        with _activations(model, activations):
            if method == "eap":
                return eap(model, batches, metric, **more)
            return eap_ig(model, batches, metric, steps=steps, rule=rule, **more)
    if method == "exact":
        return exact(model, batches, metric, ablation=ablation, progress=progress)
    if method == "random":
        return random_scores(model.graph, seed=seed)
    raise OptionError(f"method {method!r} is not one of {', '.join(METHODS)}")


def score_parts(
    model: Model,
    batches: Sequence[Batch],
    metric: Metric,
    *,
    by: str,
    method: str = "eap-ig",
    steps: int = 5,
    rule: str = "midpoint",
    ablation: Ablation | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> ScoreParts:
    """EAP or EAP-IG scores per row or per named part of the prompts, exact ones per row, at the cost of the plain ones.

    Raises:
        OptionError: the method has no parts, or an option makes no sense.
    """
    if by == "row" and method == "exact":
        return _exact_rows(model, batches, metric, ablation, progress)
    if by not in PARTS or method not in ("eap", "eap-ig"):
        raise OptionError(f"scores per {by} of --method {method}: expected row or span, of eap or eap-ig")
    points = _points_of(metric, method, steps, rule)
    names = _part_names(batches, by)
    values = np.zeros((len(names), *model.graph.valid.shape), dtype=np.float32 if by == "row" else np.float64)
    n_rows = _n_rows(batches)
    place = {name: i for i, name in enumerate(names)}

    def of_batch(batch: Batch) -> np.ndarray:
        cells, first = _cells_of(batch, by), first_difference(batch, ablation)
        total = np.zeros((len(cells), *model.graph.valid.shape))
        masks = [mask[:, first:] for _, mask in cells]

        def add(ends: Ends, delta: Tensor, share: float) -> None:
            total[:] += _scores_at(model, ends, delta, max_bytes=max_bytes, cells=masks) * share

        _passes(model, batch, metric, points, ablation, first, add)
        values[[place[name] for name, _ in cells]] += total if by == "row" else total / n_rows
        return total

    for done, batch in enumerate(batches, 1):
        for part in _fitting(model, batch, points, ablation):
            in_halves(of_batch, part)
        _report(progress, done, len(batches))
    if by == "span":
        return ScoreParts(model.graph, by, names, ranks.summed(values))
    return _rows_of_all({int(name): value for name, value in zip(names, values, strict=True)}, model.graph)


def eap(
    model: Model,
    batches: Sequence[Batch],
    metric: Metric,
    *,
    ablation: Ablation | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Edge attribution patching: two forward passes and one backward pass for all edges.

    Raises:
        OptionError: the metric's gradient is zero at the clean run (KL).
    """
    return _whole(model, batches, metric, _points_of(metric, "eap", 1, "midpoint"), ablation, max_bytes, progress)


def eap_ig(
    model: Model,
    batches: Sequence[Batch],
    metric: Metric,
    *,
    steps: int = 5,
    rule: str = "midpoint",
    ablation: Ablation | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """EAP with the gradient averaged over ``steps`` points between ablated and clean embeddings.

    ``rule="midpoint"`` takes the points (k - 1/2)/steps, k = 1..steps; ``"authors"``
    takes (k - 1)/steps, from the ablated end on, as the published code does. The
    scores of the edges that leave ``input`` sum to m(corrupt) - m(clean) in the limit
    of many steps (with the corrupt ablation; others change more than the embeddings).

    Raises:
        OptionError: ``steps`` is less than one or the rule is unknown.
    """
    return _whole(model, batches, metric, _points_of(metric, "eap-ig", steps, rule), ablation, max_bytes, progress)


def exact(
    model: Model,
    batches: Sequence[Batch],
    metric: Metric,
    *,
    ablation: Ablation | None = None,
    progress: Progress | None = None,
) -> Scores:
    """m(edge ablated) - m(clean) for every edge, by a patched pass from the edge's layer on."""
    graph = model.graph
    total, done = np.zeros(graph.valid.shape), 0
    for item in prepare_each(model, batches, ablation):
        whole = metric(item.clean.logits, item.targets).cpu().double().sum().item()
        for slot in range(graph.n_dst):
            masks = _LazyMasks(graph, slot)
            total[: len(masks), slot] += sum(measure_rows(model, [item], masks, metric).values()) - whole
            done += len(masks)
            _report(progress, done, graph.n_edges * len(batches))
    return Scores(graph, ranks.summed(total) / _n_rows(batches))


def _exact_rows(
    model: Model, batches: Sequence[Batch], metric: Metric, ablation: Ablation | None, progress: Progress | None
) -> ScoreParts:
    """What ``exact`` averages, row by row."""
    graph, done = model.graph, 0
    found: dict[int, np.ndarray] = {}
    for item in prepare_each(model, batches, ablation):
        whole = metric(item.clean.logits, item.targets).cpu().double().numpy()
        rows = np.zeros((len(item.batch), *graph.valid.shape), dtype=np.float32)
        for slot in range(graph.n_dst):
            masks = _LazyMasks(graph, slot)
            columns = measure_rows(model, [item], masks, metric)
            for i, index in enumerate(item.batch.indices):
                rows[i, : len(masks), slot] = columns[index] - whole[i]
            done += len(masks)
            _report(progress, done, graph.n_edges * len(batches))
        found |= dict(zip(item.batch.indices, rows, strict=True))
    return _rows_of_all(found, graph)


def _rows_of_all(found: dict[int, np.ndarray], graph: Graph) -> ScoreParts:
    """Every process's rows, in the order of their index."""
    every = ranks.gathered(found)
    order = sorted(every)
    return ScoreParts(graph, "row", tuple(map(str, order)), np.stack([every[index] for index in order]))


@dataclass(frozen=True)
class ActivationCost:
    """Scores in a shorter format against float32: Pearson's r, and the largest difference over the largest score."""

    activations: str
    n_prompts: int
    correlation: float
    largest: float


def activation_cost(
    model: Model, batch: Batch, metric: Metric, activations: str, *, method: str = "eap", **how: Any
) -> ActivationCost:
    """What ``activations`` costs in agreement, on one batch.

    Raises:
        OptionError: the model is not in float32, or there is no such format.
    """
    valid = model.graph.valid
    long, short = (
        score(model, [batch], metric, method=method, activations=name, **how).values[valid]
        for name in ("float32", activations)
    )
    r = float(np.corrcoef(long, short)[0, 1]) if long.any() and short.any() else float("nan")
    return ActivationCost(
        activations, len(batch), r, float(np.abs(long - short).max() / max(np.abs(long).max(), 1e-12))
    )


@dataclass(frozen=True)
class Completeness:
    """What EAP-IG's points leave open: the scores of the edges that leave ``input`` sum to the effect in the limit.

    The completeness of integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365). ``attributed`` is that sum,
    ``effect`` m(ablated) - m(clean), and ``gap`` the difference as a share of |effect|. Where the path between the
    embeddings does not end in the ablated run, ``effect`` and ``gap`` are None and ``reason`` says why.
    """

    steps: int
    attributed: float
    effect: float | None = None
    gap: float | None = None
    reason: str = ""

    MOST = 0.05

    @property
    def wide(self) -> bool:
        """Whether the gap is larger than 5 %."""
        return self.gap is not None and self.gap > self.MOST

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as the circuit file holds them."""
        return {"attributed": self.attributed, "effect": self.effect, "gap": self.gap, "reason": self.reason}


def completeness_of(
    scores: Scores, batches: Sequence[Batch], whole: float, *, steps: int, ablation: str = "corrupt"
) -> Completeness:
    """How far EAP-IG's scores miss ``-whole``, m(full) - m(empty) on the same prompts, at no further pass.

    It holds where a run from the ablated embeddings is the ablated run: the corrupt or the neutral prompt's, of the
    clean one's length. With constants, and with prompts of unequal length, more is ablated than the embeddings.
    """
    attributed = float(scores.values[0].sum())
    moved = {"corrupt": "corrupt_to_clean", "neutral": "neutral_to_clean"}.get(ablation)
    if moved is None:
        return Completeness(steps, attributed, reason=f"--ablation {ablation} changes more than the embeddings")
    if any(getattr(batch, moved) is not None for batch in batches):
        return Completeness(steps, attributed, reason="prompts of unequal length are moved onto each other's places")
    gap = abs(attributed + whole) / abs(whole) if whole else None
    return Completeness(steps, attributed, -whole, gap, "" if whole else "the ablation has no effect")


def random_scores(graph: Graph, *, seed: int) -> Scores:
    """Standard normal scores, the control."""
    return Scores(graph, np.random.default_rng(seed).standard_normal(graph.valid.shape))


class _LazyMasks(Sequence[np.ndarray]):
    """For every edge into one slot, the mask of all edges but that one; made when asked for."""

    def __init__(self, graph: Graph, slot: int) -> None:
        self.graph, self.slot = graph, slot

    def __len__(self) -> int:
        return self.graph.n_reaching(self.slot)

    def __getitem__(self, src: int) -> np.ndarray:  # type: ignore[override]
        if not 0 <= src < len(self):
            raise IndexError(src)
        mask = self.graph.valid.copy()
        mask[src, self.slot] = False
        return mask


def _activations(model: Model, name: str) -> AbstractContextManager[Any]:
    if name not in ACTIVATIONS:
        raise OptionError(f"--activations {name!r} is not one of {', '.join(ACTIVATIONS)}")
    if name == "float32":
        return nullcontext()
    if model.dtype != torch.float32:
        raise OptionError(f"--activations {name} needs --dtype float32, the model is in {model.dtype}")
    return torch.autocast(model.device.type, torch.bfloat16)


def _points_of(metric: Metric, method: str, steps: int, rule: str) -> tuple[float, ...] | None:
    """Where between the ablated (0) and the clean (1) embeddings the gradient is taken; None: at the clean run."""
    if method == "eap":
        if metric.flat_at_clean:
            raise OptionError(
                f"metric {metric.name} has zero gradient at the clean run, so plain EAP would score every edge zero; "
                "use --method eap-ig or exact, or --metric persona-divergence"
            )
        return None
    if steps < 1:
        raise OptionError(f"EAP-IG needs at least one step, got --steps {steps}")
    if rule not in IG_RULES:
        raise OptionError(f"integration rule {rule!r} is not one of {', '.join(IG_RULES)}")
    return tuple((k + (0.5 if rule == "midpoint" else 0.0)) / steps for k in range(steps))


def _passes(
    model: Model,
    batch: Batch,
    metric: Metric,
    points: tuple[float, ...] | None,
    ablation: Ablation | None,
    first: int,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """Call ``use`` per point with the differentiated run, delta from position ``first`` on, and the point's share."""
    if not is_unpadded(batch, ablation):
        _general_passes(model, batch, metric, points, ablation or corrupt, use)
    elif points is None:
        _one_pass(model, batch, metric, first, use)
    else:
        _passes_between(model, batch, metric, points, first, use)


def _one_pass(
    model: Model, batch: Batch, metric: Metric, first: int, use: Callable[[Ends, Tensor, float], None]
) -> None:
    """At the clean run.

    Positions that both prompts share are run once where there is a way: in a pass of their own, or in the
    corrupt run, which then goes first. The clean run has no gradient there.
    """
    embedded, context = model.start(batch.clean)
    n_late = embedded.shape[1] - first
    before, other = prefix_of(model, batch.clean[:, :first]), None
    if first and before is None and len(_shared_prompts(batch)[1]) == len(batch):
        with torch.no_grad():
            at = run(model, *model.start(batch.corrupt), **SHORT)
        check_finite(at.logits, batch.name)
        other, before = at.written.late(n_late), Prefix.of(at, first)
        del at
    late = embedded if before is None else embedded[:, first:]
    with torch.enable_grad():
        clean = run(model, late.detach().requires_grad_(), context, before=before, **SHORT)
    check_finite(clean.logits, batch.name)
    ends = _differentiated(model, clean, metric, targets_of(batch, clean.logits)).late(n_late)
    written = clean.written.late(n_late)
    del clean  # its graph is not held beside what comes
    delta = changes(model, written, other or _corrupt_written(model, batch, written, before))
    del written, other
    use(ends, delta, 1.0)


def _passes_between(
    model: Model,
    batch: Batch,
    metric: Metric,
    points: tuple[float, ...],
    first: int,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """Between the corrupt and the clean embeddings, from the first position at which these differ on."""
    embedded, context = model.start(batch.clean)
    with torch.no_grad():
        clean = run(model, embedded, context, **SHORT)
    check_finite(clean.logits, batch.name)
    targets, before, embedded = targets_of(batch, clean.logits), Prefix.of(clean, first), embedded[:, first:]
    written = clean.written.late(embedded.shape[1])
    del clean
    other = _corrupt_written(model, batch, written, before)
    start, delta = other.embedded, changes(model, written, other)
    del written, other
    for point in points:
        ends = _between(model, metric, targets, start + point * (embedded - start), context, before)
        use(ends, delta, 1.0 / len(points))
        del ends  # not held beside the next graph


def _general_passes(
    model: Model,
    batch: Batch,
    metric: Metric,
    points: tuple[float, ...] | None,
    ablation: Ablation,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """The same for any ablation and for rows that are padded, of all positions."""
    embedded, context = model.start(batch.clean, batch.clean_padding)
    with torch.set_grad_enabled(points is None):
        clean = run(model, embedded.detach().requires_grad_(points is None), context)
    check_finite(clean.logits, batch.name)
    targets = targets_of(batch, clean.logits)
    ends = _differentiated(model, clean, metric, targets) if points is None else None
    clean = clean.without_graph()
    ablated = ablation(model, batch, clean)
    start, delta = ablated.streams[0], ablated.contributions - clean.contributions
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
            embedded, context = model.start(batch.corrupt[missing])
            own = None if before is None else before.rows(missing)
            late = embedded if before is None else embedded[:, -n_late:]
            at = run(model, late, context, before=own, **SHORT)
        check_finite(at.logits, lambda row: batch.name(missing[row]))
        more = at.written.late(n_late)
        other = more if len(missing) == len(batch) else other.joined(more)
    return other if len(missing) == len(batch) else other.rows(place)


def _shared_prompts(batch: Batch) -> tuple[list[int], list[int]]:
    """Where each corrupt prompt stands among the clean ones and those missing there; and rows that have the latter."""
    where = {tuple(ids): i for i, ids in enumerate(batch.clean.tolist())}
    place: list[int] = []
    missing: list[int] = []
    for row, ids in enumerate(map(tuple, batch.corrupt.tolist())):
        if ids not in where:
            where[ids] = len(batch) + len(missing)
            missing.append(row)
        place.append(where[ids])
    return place, missing


def _whole(
    model: Model,
    batches: Sequence[Batch],
    metric: Metric,
    points: tuple[float, ...] | None,
    ablation: Ablation | None,
    max_bytes: int | None,
    progress: Progress | None,
) -> Scores:
    def of_batch(batch: Batch) -> np.ndarray:
        first = first_difference(batch, ablation)
        total = np.zeros(model.graph.valid.shape)

        def add(ends: Ends, delta: Tensor, share: float) -> None:
            total[:] += _scores_at(model, ends, delta, max_bytes=max_bytes)[0] * share

        _passes(model, batch, metric, points, ablation, first, add)
        return total

    total = np.zeros(model.graph.valid.shape)
    for done, batch in enumerate(batches, 1):
        for part in _fitting(model, batch, points, ablation):
            total += sum(in_halves(of_batch, part))
        _report(progress, done, len(batches))
    return Scores(model.graph, ranks.summed(total) / _n_rows(batches))


def _fitting(
    model: Model, batch: Batch, points: tuple[float, ...] | None, ablation: Ablation | None
) -> tuple[Batch, ...]:
    """The batch, or parts of it whose scores fit the model's budget."""
    if model.budget is None:
        return (batch,)
    steps = None if points is None else len(points)
    return batch.parts(model.budget.score_rows(batch.n_tokens, steps=steps, plain=is_plain(batch, ablation)))


def _scores_at(
    model: Model,
    ends: Ends,
    delta: Float[Tensor, "src batch late d_model"],
    *,
    max_bytes: int | None,
    cells: Sequence[Bool[Tensor, "batch late"]] | None = None,
) -> Float[np.ndarray, "part src dst"]:
    """Sum of delta . gradient over prompts and positions, for every edge, the gradient at one run.

    With ``cells`` a sum over each of these sets of places instead. Heads are taken as many
    at a time as keep the gradients at their streams within ``max_bytes``, by default within
    a quarter of what the differences hold.
    """
    graph = model.graph

    def parts_of(values: Float[Tensor, "n batch pos d_model"]) -> list[Float[Tensor, "n cells"]]:
        if cells is None:
            return [values.flatten(1)]
        return [values[:, mask[:, -values.shape[2] :]].flatten(1) for mask in cells]

    flat = parts_of(delta)
    at_answer = parts_of(delta[:, :, -1:])
    scores = torch.zeros(len(flat), *graph.valid.shape, dtype=torch.float64)

    if max_bytes is None:
        max_bytes = max(0 if model.budget else BLOCK_BYTES, delta.numel() * delta.element_size() // 4)
    for slots, gradient in gradients_at_slots(model, ends, max_bytes=max_bytes):
        n_sources = graph.n_reaching(slots.stop - 1)
        there = flat if gradient.shape[2] == delta.shape[2] else at_answer
        for i, (deltas, part) in enumerate(zip(there, parts_of(gradient), strict=True)):
            scores[i, :n_sources, slots] = (deltas[:n_sources] @ part.T).cpu().double()
    return np.where(graph.valid, scores.numpy(), 0.0)


def _part_names(batches: Sequence[Batch], by: str) -> tuple[str, ...]:
    if by == "row":
        return tuple(str(index) for index in sorted(index for batch in batches for index in batch.indices))
    here = {(i, name): name for batch in batches for i, name in enumerate(batch.span_names)}
    return tuple(dict.fromkeys(name for _, name in sorted(ranks.gathered(here).items())))


def _cells_of(batch: Batch, by: str) -> list[tuple[str, Bool[Tensor, "batch pos"]]]:
    """The places of a batch that belong to each part; places that are padding belong to none."""
    if by == "span":
        assert batch.spans is not None
        return [(name, batch.spans == batch.span_names.index(name)) for name in batch.span_names]
    rows = torch.arange(len(batch), device=batch.clean.device)[:, None].expand(batch.clean.shape)
    return [(str(index), rows == i) for i, index in enumerate(batch.indices)]


def _n_rows(batches: Sequence[Batch]) -> int:
    """Of all processes."""
    return int(ranks.summed(np.array([sum(len(batch) for batch in batches)], dtype=np.float64))[0])


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
