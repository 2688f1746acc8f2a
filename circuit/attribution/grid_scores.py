"""Edge scores of persona grids: n personas on one question, every ordered pair, from n forward passes.

The EAP score of a pair (A clean, B corrupt, answer a, wrong answer b) is bilinear in its two runs,

    score_AB = sum over positions of (z_B - z_A) . (g_A[a] - g_A[b])

with z what a source writes and g_A[c] the gradient of candidate c's logit at run A, at the slot's
stream. So the runs are those of the prompts, not of the pairs:

1. One forward pass per prompt gives its z.
2. The contrasts a - b of all pairs that start at A sum to zero over the K candidates, so they are
   made of at most K - 1 of them: as many backward passes per prompt give every gradient needed.
3. Where pairs share their contrast, sum_B (z_B - z_A) is one vector, and all edges into a layer are
   one matrix product for all pairs. Scores per pair take a product each, and no further pass.

Separate pairs take two forward passes and one backward pass each, n(n - 1) times. Pairs that form no
grid are grids of two prompts. Only metrics that are linear in the logits decompose like this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution.eap import BLOCK_BYTES
from persona_circuits.circuit.attribution.gradients import Ends, differentiated, gradients_at_slots
from persona_circuits.circuit.attribution.grid import Contrast, Grid, GridPair, Passes
from persona_circuits.circuit.attribution.parts import ScoreParts
from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.forward import prefix_of, run
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model, of_prompts
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.scores import Scores
from persona_circuits.metrics import METRICS, Metric

__all__ = ["LINEAR", "grid_eap", "grid_parts", "passes_of"]

LINEAR = ("persona-divergence", "logit-diff")
"""The metrics that are differences of logits."""
GRID_BYTES = 1 << 30
"""Bound on the bytes of a grid's node contributions in memory at a time; about twice that is used."""
PRODUCT_BYTES = 1 << 25
"""Bound on the bytes of gradients in one product of scores per pair; more than fits the cache gains nothing."""


def passes_of(grids: Sequence[Grid]) -> Passes:
    """How many prompts ``grid_eap`` takes forward, and backward, for all pairs of these grids."""
    bases = [basis for grid in grids for basis in _Terms.of(grid).bases]
    return Passes(len(bases), sum(len(basis) for basis in bases))


def grid_eap(
    model: Model,
    grids: Sequence[Grid],
    metric: Metric = METRICS["persona-divergence"],
    *,
    batch_size: int = 32,
    max_bytes: int = GRID_BYTES,
    progress: Progress | None = None,
) -> Scores:
    """EAP scores, mean over all pairs of all grids: what ``circuit.attribution.methods.eap`` gives for the same rows.

    Parameters
    ----------
    grids
        With more than one process, this process' own.
    batch_size
        Prompts per pass.
    max_bytes
        Bound on the bytes of node contributions in memory at a time, at least those of ``batch_size`` prompts. A grid
        that is larger is divided, and prompts on both sides of a division are run again.

    Raises
    ------
    OptionError
        The metric is not a difference of logits.
    TaskError
        There is no pair.
    """
    total = np.zeros(model.graph.valid.shape)
    for terms, ends in _packs(model, grids, metric, batch_size, max_bytes, progress):
        total += _summed(model, terms, ends)
    return Scores(model.graph, parallel.summed(total) / _check_count(sum(len(grid.pairs) for grid in grids)))


def grid_parts(
    model: Model,
    grids: Sequence[Grid],
    metric: Metric = METRICS["persona-divergence"],
    *,
    batch_size: int = 32,
    max_bytes: int = GRID_BYTES,
    progress: Progress | None = None,
) -> ScoreParts:
    """The scores of every pair alone, from the passes of ``grid_eap``: parts by row, named by the pairs' ``index``.

    Raises:
        OptionError: as ``grid_eap``; or two pairs have one index.
    """
    indices = [pair.index for grid in grids for pair in grid.pairs]
    if len(set(indices)) < len(indices):
        raise OptionError("scores per pair need pairs of different index; give every grid another first_index")
    place = {index: i for i, index in enumerate(sorted(indices))}
    values = np.zeros((len(indices), *model.graph.valid.shape), dtype=np.float32)
    for terms, ends in _packs(model, grids, metric, batch_size, max_bytes, progress):
        _add_pairs(model, terms, ends, values, place)
    _check_count(len(place))
    values[:, ~model.graph.valid] = 0.0
    if parallel.size() > 1:
        every = parallel.gathered({index: values[i] for index, i in place.items()})
        place = {index: i for i, index in enumerate(sorted(every))}
        values = np.stack([every[index] for index in place])
    return ScoreParts(model.graph, "row", tuple(map(str, place)), values)


def _check_count(n_pairs: int) -> float:
    """The pairs of all processes."""
    total = float(parallel.summed(np.array([n_pairs], dtype=np.float64))[0])
    if not total:
        raise TaskError("there are no grids to score; give at least one pair")
    return total


@dataclass(frozen=True)
class _Term:
    """A share of a pair's score: ``weight`` times (z_other - z_at) . the gradient of ``contrast`` at run ``at``."""

    index: int
    at: int
    other: int
    contrast: Contrast
    weight: float


@dataclass(frozen=True, eq=False)
class _Terms:
    """Prompts with everything their runs must provide, those with the most backward passes first.

    ``bases[r]`` are the contrasts differentiated at run r, ``shares[r][contrast]`` the coefficients that express
    each contrast its terms need in this basis.
    """

    prompts: tuple[tuple[int, ...], ...]
    terms: tuple[_Term, ...]
    bases: tuple[tuple[Contrast, ...], ...]
    shares: tuple[Mapping[Contrast, np.ndarray], ...]
    first: int

    @classmethod
    def of(cls, grid: Grid) -> _Terms:
        """The terms of one grid."""
        terms = [_term_of(pair) for pair in grid.pairs]
        needed: list[dict[Contrast, None]] = [{} for _ in grid.prompts]
        for term in terms:
            needed[term.at][term.contrast] = None
        bases, shares = zip(*(_basis(tuple(contrasts)) for contrasts in needed), strict=True)
        return cls(grid.prompts, tuple(terms), bases, shares, grid.first_difference)

    @classmethod
    def together(cls, several: Sequence[_Terms]) -> _Terms:
        """Several grids' prompts of one length, sorted by the number of backward passes."""
        runs = [(i, r) for i, part in enumerate(several) for r in range(len(part.prompts))]
        runs.sort(key=lambda where: -len(several[where[0]].bases[where[1]]))
        place = {where: i for i, where in enumerate(runs)}
        moved = [
            _Term(t.index, place[i, t.at], place[i, t.other], t.contrast, t.weight)
            for i, part in enumerate(several)
            for t in part.terms
        ]
        return cls(
            tuple(several[i].prompts[r] for i, r in runs),
            tuple(moved),
            tuple(several[i].bases[r] for i, r in runs),
            tuple(several[i].shares[r] for i, r in runs),
            min(part.first for part in several),
        )

    def mixture(self, direction: int, n_rows: int) -> Float[np.ndarray, "row run"]:
        """Weights of runs' contributions in the difference that a direction's gradient multiplies, first rows."""
        weights = np.zeros((n_rows, len(self.prompts)))
        for term in self.terms:
            if term.at < n_rows:
                share = term.weight * self.shares[term.at][term.contrast][direction]
                weights[term.at, term.other] += share
                weights[term.at, term.at] -= share
        return weights


@dataclass(frozen=True, eq=False)
class _Ends:
    """The results of the passes, from the first differing position on.

    ``streams[l]`` enters layer l's attention, ``[run, pos, d_model]``. ``gradients[j]`` are those of the
    j-th contrast of each run's basis, as ``circuit.attribution.gradients.Ends`` has them, for the runs that have a
    j-th: always the first.
    """

    contributions: Float[Tensor, "src run pos d_model"]
    streams: tuple[Float[Tensor, "run pos d_model"], ...]
    gradients: tuple[tuple[Tensor, ...], ...]


def _packs(
    model: Model, grids: Sequence[Grid], metric: Metric, batch_size: int, max_bytes: int, progress: Progress | None
) -> Iterator[tuple[_Terms, _Ends]]:
    """Grids of one length, as many as fill a batch, with their passes; larger ones alone."""
    if metric.name not in LINEAR:
        raise OptionError(
            f"a persona grid takes the metric apart into logits, which {metric.name} is not linear in; "
            f"use --metric {' or '.join(LINEAR)}, or score the pairs one by one"
        )
    if batch_size < 1:
        raise OptionError(f"--batch-size must be at least 1, got {batch_size}")
    each = model.graph.n_src * model.d_model * torch.finfo(model.dtype).bits // 8
    whole = [
        part
        for grid in grids
        for part in _divided(grid, max(2, batch_size, max_bytes // (each * len(grid.prompts[0]))))
    ]
    n_runs, done = sum(len(grid.prompts) for grid in whole), 0
    whole.sort(key=lambda grid: len(grid.prompts[0]))
    for _, group in groupby(whole, key=lambda grid: len(grid.prompts[0])):
        for pack in _filled(list(group), batch_size):
            terms = _Terms.together([_Terms.of(grid) for grid in pack])
            yield terms, _ends(model, terms, batch_size)
            done += len(terms.prompts)
            if progress is not None:
                progress(done, n_runs)


def _filled(grids: Sequence[Grid], batch_size: int) -> Iterator[list[Grid]]:
    pack: list[Grid] = []
    for grid in grids:
        if pack and sum(len(waiting.prompts) for waiting in (*pack, grid)) > batch_size:
            yield pack
            pack = []
        pack.append(grid)
    yield pack


def _divided(grid: Grid, most: int) -> list[Grid]:
    """The same pairs in grids of at most ``most`` prompts: every two groups of prompts meet in one of them."""
    if len(grid.prompts) <= most:
        return [grid]
    size = most // 2
    n_groups = -(-len(grid.prompts) // size)
    parts: dict[tuple[int, int], list[GridPair]] = {}
    for pair in grid.pairs:
        low, high = sorted((pair.clean // size, pair.corrupt // size))
        if low == high:  # together with a neighbour, whose prompts are in the same pass anyway
            low, high = (low, low + 1) if low + 1 < n_groups else (low - 1, low)
        parts.setdefault((low, high), []).append(pair)
    return [_part_of(grid, pairs) for pairs in parts.values()]


def _part_of(grid: Grid, pairs: Sequence[GridPair]) -> Grid:
    old = sorted({i for pair in pairs for i in (pair.clean, pair.corrupt)})
    new = {i: j for j, i in enumerate(old)}
    moved = tuple(GridPair(p.index, new[p.clean], new[p.corrupt], p.answers, p.wrong_answers) for p in pairs)
    return Grid(tuple(grid.prompts[i] for i in old), moved)


def _term_of(pair: GridPair) -> _Term:
    weights: dict[int, float] = {}
    for tokens, sign in ((pair.answers, 1.0), (pair.wrong_answers, -1.0)):
        for token in tokens:
            weights[token] = weights.get(token, 0.0) + sign / len(tokens)
    # A contrast and its opposite need one backward pass.
    turn = 1.0 if weights[min(weights)] > 0 else -1.0
    contrast = tuple((token, turn * weights[token]) for token in sorted(weights))
    return _Term(pair.index, pair.clean, pair.corrupt, contrast, turn)


def _basis(contrasts: tuple[Contrast, ...]) -> tuple[tuple[Contrast, ...], dict[Contrast, np.ndarray]]:
    """The first of the contrasts that are independent of one another, and every contrast as a sum of these."""
    if len(contrasts) < 2:
        return contrasts, {contrast: np.ones(1) for contrast in contrasts}
    tokens = sorted({token for contrast in contrasts for token, _ in contrast})
    vectors = np.array([[dict(contrast).get(token, 0.0) for token in tokens] for contrast in contrasts])
    chosen: list[int] = []
    for i in range(len(contrasts)):
        if np.linalg.matrix_rank(vectors[[*chosen, i]]) > len(chosen):
            chosen.append(i)
    shares = np.linalg.lstsq(vectors[chosen].T, vectors.T)[0].T
    shares[chosen] = np.eye(len(chosen))
    return tuple(contrasts[i] for i in chosen), dict(zip(contrasts, shares, strict=True))


def _ends(model: Model, terms: _Terms, batch_size: int) -> _Ends:
    """One forward pass per prompt, and one backward pass per contrast of its basis."""
    contributions, streams = [], []
    gradients: list[list[list[Tensor]]] = [[] for _ in terms.bases[0]]
    for some in _blocks(terms, batch_size):
        at, derivatives = _pass(model, terms.prompts[some], terms.bases[some], terms.first)
        contributions.append(at[0])
        streams.append(at[1])
        for direction, values in zip(gradients, derivatives, strict=False):
            direction.append(values)
    joined = [tuple(torch.cat(parts) for parts in zip(*direction, strict=True)) for direction in gradients]
    return _Ends(
        torch.cat(contributions, dim=1), tuple(torch.cat(parts) for parts in zip(*streams, strict=True)), tuple(joined)
    )


def _blocks(terms: _Terms, batch_size: int) -> Iterator[slice]:
    """Batches of runs that take the same number of backward passes."""
    start = 0
    for _, group in groupby(terms.bases, key=len):
        end = start + len(list(group))
        yield from (slice(i, min(i + batch_size, end)) for i in range(start, end, batch_size))
        start = end


def _pass(
    model: Model, prompts: Sequence[Sequence[int]], bases: Sequence[Sequence[Contrast]], first: int
) -> tuple[tuple[Tensor, list[Tensor]], list[list[Tensor]]]:
    """Contributions and streams of some runs, and the gradients of their contrasts, without autograd graphs."""
    tokens = torch.tensor([list(ids) for ids in prompts], device=model.device)
    embedded, context = model.start(tokens)
    before, n_late, n_directions = prefix_of(model, tokens[:, :first]), tokens.shape[1] - first, len(bases[0])
    embedded = embedded if before is None else embedded[:, first:]
    with torch.set_grad_enabled(n_directions > 0):
        at = run(model, embedded.detach().requires_grad_(n_directions > 0), context, before=before)
        check_finite(at.logits, of_prompts(model, prompts))
        derivatives = []
        for direction in range(n_directions):
            value = _value(at.logits, [basis[direction] for basis in bases])
            ends = differentiated(model, at, value, retain=direction + 1 < n_directions)
            derivatives.append(list(ends.late(n_late).gradients))
    return (at.contributions[:, :, -n_late:], [stream.detach()[:, -n_late:] for stream in at.streams[:-1]]), derivatives


def _value(logits: Float[Tensor, "batch vocab"], contrasts: Sequence[Contrast]) -> Float[Tensor, ""]:
    """The sum over rows of each row's contrast."""
    width = max(map(len, contrasts))
    padded = [[*contrast, *[(0, 0.0)] * (width - len(contrast))] for contrast in contrasts]
    tokens = torch.tensor([[token for token, _ in row] for row in padded], device=logits.device)
    weights = torch.tensor([[weight for _, weight in row] for row in padded], device=logits.device, dtype=logits.dtype)
    return (logits.gather(1, tokens) * weights).sum()


def _summed(model: Model, terms: _Terms, ends: _Ends) -> Float[np.ndarray, "src dst"]:
    """The sum of all pairs' scores: per direction one mixture of all runs' contributions."""
    graph = model.graph
    scores = torch.zeros(graph.valid.shape, dtype=torch.float64)
    runs = ends.contributions.flatten(2)
    for direction, gradients in enumerate(ends.gradients):
        weights = torch.from_numpy(terms.mixture(direction, len(gradients[-1]))).to(runs.dtype).to(runs.device)
        differences = (weights @ runs).flatten(1)
        streams = [stream[: len(gradients[0])] for stream in ends.streams]
        for slots, gradient in gradients_at_slots(model, Ends(streams, gradients), max_bytes=BLOCK_BYTES):
            n_sources = graph.n_reaching(slots.stop - 1)
            scores[:n_sources, slots] += (gradient.flatten(1) @ differences[:n_sources].T).T.cpu().double()
    return np.where(graph.valid, scores.numpy(), 0.0)


def _add_pairs(
    model: Model, terms: _Terms, ends: _Ends, values: Float[np.ndarray, "pair src dst"], place: Mapping[int, int]
) -> None:
    """Add every term to its pair's scores: a product per run, contrast and layer of sources."""
    terms_of_row: dict[tuple[int, Contrast], list[_Term]] = {}
    for term in terms.terms:
        terms_of_row.setdefault((term.at, term.contrast), []).append(term)
    sample = ends.contributions[0, 0]
    n_rows = max(1, PRODUCT_BYTES // (model.graph.n_dst * sample.numel() * sample.element_size()))
    rows = list(terms_of_row)
    for some in (rows[i : i + n_rows] for i in range(0, len(rows), n_rows)):
        at = [run for run, _ in some]
        gradients = _combined(ends, at, [terms.shares[run][contrast] for run, contrast in some])
        streams = tuple(stream[at] for stream in ends.streams)
        at_slots = gradients_at_slots(model, Ends(streams, gradients), max_bytes=BLOCK_BYTES)
        for slots, gradient in _joined(at_slots):
            for i, key in enumerate(some):
                _add_products(model, ends, terms_of_row[key], slots, gradient[i].flatten(1), values, place)


def _add_products(
    model: Model,
    ends: _Ends,
    terms: Sequence[_Term],
    slots: slice,
    gradient: Float[Tensor, "slot cell"],
    values: Float[np.ndarray, "pair src dst"],
    place: Mapping[int, int],
) -> None:
    """The products of terms that share a run and a contrast with some slots' gradients."""
    graph = model.graph
    where, at = [place[t.index] for t in terms], terms[0].at
    others = torch.tensor([t.other for t in terms], device=gradient.device)
    weights = np.array([t.weight for t in terms], dtype=np.float32)[:, None, None]
    for sources, first in _source_groups(graph):
        reached = slice(max(first, slots.start), slots.stop)
        if reached.start >= reached.stop:
            return
        # Subtract before the product: what two runs share is much larger than their difference.
        runs = ends.contributions[sources]
        differences = runs.index_select(1, others).sub_(runs[:, at : at + 1])
        products = differences.flatten(2).flatten(0, 1) @ gradient[reached.start - slots.start :].T
        parts = products.view(len(runs), len(terms), -1).transpose(0, 1).cpu().float().numpy()
        values[where, sources, reached] += parts * weights


def _source_groups(graph: Graph) -> Iterator[tuple[slice, int]]:
    """The input, then the sources of each layer, with the first slot that one of them reaches."""
    yield slice(0, 1), 0
    for layer in range(graph.n_layers):
        yield slice(graph.heads_of(layer).start, graph.mlp_of(layer) + 1), graph.mlp_slot_of(layer)


def _combined(ends: _Ends, at: Sequence[int], shares: Sequence[np.ndarray]) -> list[Tensor]:
    """Gradients of contrasts at some runs, from those of the runs' bases."""
    combined = []
    for parts in zip(*ends.gradients, strict=True):
        rows = []
        for row, weights in zip(at, shares, strict=True):
            # zero weights are skipped, so that a basis contrast is reproduced exactly
            used = [float(w) * part[row] for w, part in zip(weights, parts, strict=False) if w]
            rows.append(torch.stack(used).sum(0) if len(used) > 1 else used[0])
        combined.append(torch.stack(rows))
    return combined


def _joined(
    parts: Iterator[tuple[slice, Float[Tensor, "slot run pos d_model"]]],
) -> Iterator[tuple[slice, Float[Tensor, "run slot pos d_model"]]]:
    """Merge consecutive slots up to ``PRODUCT_BYTES``: few large products are faster."""
    held: list[Tensor] = []
    start = stop = 0
    for slots, gradient in parts:
        if held and sum(x.nbytes for x in held) + gradient.nbytes > PRODUCT_BYTES:
            yield slice(start, stop), torch.cat(held, dim=1)
            held, start = [], stop
        held.append(gradient.transpose(0, 1).clone())
        stop = slots.stop
    yield slice(start, stop), torch.cat(held, dim=1)
