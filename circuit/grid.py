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
grid are grids of two prompts. Only a metric that is linear in the logits can be taken apart so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuit import ranks
from circuit.attribution import BLOCK_BYTES, ScoreParts
from circuit.errors import OptionError, TaskError, listed
from circuit.finite import check_finite, of_prompts
from circuit.gradients import Ends, differentiated, gradients_at_slots
from circuit.graph import Graph
from circuit.model import Model
from circuit.patching import Progress
from circuit.runs import prefix_of, run
from circuit.scores import Scores
from circuit.task import (
    Reader,
    Row,
    Task,
    answer_id,
    encode,
    lost_differences,
    prompt_faults,
    token_ids,
    with_swap_rows,
)
from metrics import METRICS, Metric

__all__ = [
    "LINEAR",
    "RULES",
    "Grid",
    "GridPair",
    "Passes",
    "grid_eap",
    "grid_of_personas",
    "grid_of_texts",
    "grid_parts",
    "grids_of",
    "passes_of",
    "separate_passes",
    "task_grids",
]

LINEAR = ("persona-divergence", "logit-diff")
"""The metrics that are differences of logits."""
RULES = ("clean", "both-ends")
GRID_BYTES = 1 << 30
"""Bound on the node contributions of a grid that are held at a time; about twice that is used."""
PRODUCT_BYTES = 1 << 25
"""Bound on the gradients that products per pair are taken with at a time; more than a cache holds gains nothing."""

Contrast = tuple[tuple[int, float], ...]
"""A linear function of the logits: tokens and their weights, by token."""


@dataclass(frozen=True)
class GridPair:
    """An ordered pair of a grid: the places of its prompts, and token ids; ``index`` is the row's."""

    index: int
    clean: int
    corrupt: int
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """One question under n personas: the prompts as token ids, all of one length, and the pairs among them.

    Examples:
        >>> grid = grid_of_personas([(5, 1, 9), (5, 2, 9), (5, 3, 9)], [7, 7, 8])
        >>> [(pair.clean, pair.corrupt) for pair in grid.pairs]  # the first two agree: no contrast
        [(0, 2), (1, 2), (2, 0), (2, 1)]
    """

    prompts: tuple[tuple[int, ...], ...]
    pairs: tuple[GridPair, ...]
    personas: tuple[str, ...] = ()
    question: str = ""

    def __post_init__(self) -> None:
        faults = []
        if len({len(ids) for ids in self.prompts}) != 1:
            faults.append("its prompts must have one length; pairs of unequal length are scored one by one")
        if not self.pairs:
            faults.append("it has no pair: no two personas prefer different candidates")
        for pair in self.pairs:
            name = f"pair {pair.index} ({pair.clean}, {pair.corrupt})"
            if not {pair.clean, pair.corrupt} <= set(range(len(self.prompts))):
                faults.append(f"{name} names a prompt that is not there; there are {len(self.prompts)}")
            if not pair.answers or not pair.wrong_answers:
                faults.append(f"{name} needs answers and wrong answers")
            elif set(pair.answers) & set(pair.wrong_answers):
                faults.append(f"{name} has an answer that is a wrong answer too, so no contrast")
        if self.personas and len(self.personas) != len(self.prompts):
            faults.append(f"{len(self.personas)} names for {len(self.prompts)} prompts")
        if faults:
            raise TaskError(listed(f"the grid of question {self.question!r} cannot be used:", faults))

    @cached_property
    def candidates(self) -> tuple[int, ...]:
        """All tokens that stand in a pair, in increasing order."""
        return tuple(sorted({token for pair in self.pairs for token in (*pair.answers, *pair.wrong_answers)}))

    @property
    def first_difference(self) -> int:
        """The first position at which two of the prompts differ; before it all nodes say the same."""
        same = (len(set(column)) == 1 for column in zip(*self.prompts, strict=True))
        return next((i for i, agrees in enumerate(same) if not agrees), len(self.prompts[0]) - 1)


@dataclass(frozen=True)
class Passes:
    """Passes over single prompts."""

    forwards: int
    backwards: int


def grid_of_personas(
    prompts: Sequence[Sequence[int]],
    preferences: Sequence[int],
    *,
    personas: Sequence[str] = (),
    question: str = "",
    first_index: int = 0,
) -> Grid:
    """All ordered pairs of personas that prefer different tokens, numbered from ``first_index``.

    ``prompts`` are token ids, ``preferences`` each persona's declared token. Personas with
    the same preference make no pair: their contrast is no contrast.

    Raises:
        TaskError: the prompts differ in length, or all personas prefer the same.
    """
    if len(preferences) != len(prompts):
        raise TaskError(f"a grid needs one preference a persona, got {len(preferences)} for {len(prompts)} prompts")
    met = [(a, b) for a in range(len(prompts)) for b in range(len(prompts)) if preferences[a] != preferences[b]]
    pairs = tuple(GridPair(first_index + i, a, b, (preferences[a],), (preferences[b],)) for i, (a, b) in enumerate(met))
    return Grid(tuple(tuple(ids) for ids in prompts), pairs, tuple(personas), question)


def grid_of_texts(
    model: Reader,
    prompts: Mapping[str, str],
    preferences: Mapping[str, str],
    *,
    question: str = "",
    first_index: int = 0,
) -> Grid:
    """A grid from texts: the prompt of every persona, and what it prefers, as text that continues the prompt.

    Raises:
        TaskError: prompts differ in length or do not fit the model, a persona has no
            preference, a candidate is not the same one token behind every prompt, or two
            candidates are one token. All are listed.
    """
    faults = [f"persona {name!r} has no preference" for name in prompts if name not in preferences]
    encoded = {name: token_ids(text, model) for name, text in prompts.items()}
    for name, ids in encoded.items():
        faults += [f"persona {name!r}: {fault}" for fault in prompt_faults(ids, model)]
    faults += lost_differences({text: encoded[name] for name, text in prompts.items()}, model)
    if len(lengths := {len(ids) for ids in encoded.values()}) > 1:
        faults.append(f"the prompts have {min(lengths)} to {max(lengths)} tokens; choose wordings of equal length")
    tokens: dict[str, int] = {}
    for answer in dict.fromkeys(preferences[name] for name in prompts if name in preferences):
        found = {answer_id(text, encoded[name], answer, model, faults) for name, text in prompts.items()}
        if len(found) > 1:
            faults.append(f"answer {answer!r} is not the same token behind every prompt")
        token = found.pop() or 0
        if (other := next((text for text, known in tokens.items() if token and known == token), None)) is not None:
            faults.append(f"answers {other!r} and {answer!r} are one token here")
        tokens[answer] = token
    if faults:
        raise TaskError(listed(f"question {question!r} makes no grid:", list(dict.fromkeys(faults))))
    chosen = [tokens[preferences[name]] for name in prompts]
    names = tuple(prompts)
    return grid_of_personas(
        [encoded[name] for name in names], chosen, personas=names, question=question, first_index=first_index
    )


def task_grids(task: Task, model: Reader, *, swap_rows: bool = True) -> tuple[Grid, ...]:
    """The grids that the pairs of a file form, each pair in both directions with ``swap_rows``.

    Raises:
        TaskError: as ``encode`` does.
    """
    rows = encode(task, model)
    names: dict[tuple[int, ...], str] = {}
    questions: dict[tuple[int, ...], str] = {}
    for row, pair in zip(rows, task.pairs, strict=True):
        names |= {row.clean: pair.persona_a, row.corrupt: pair.persona_b}
        questions[row.clean] = pair.question
    return tuple(
        Grid(
            grid.prompts,
            grid.pairs,
            tuple(names[ids] for ids in grid.prompts),
            next((questions[ids] for ids in grid.prompts if ids in questions), ""),
        )
        for grid in grids_of(with_swap_rows(rows) if swap_rows else rows)
    )


def grids_of(rows: Sequence[Row]) -> tuple[Grid, ...]:
    """Rows that share prompts, directly or through others, put together: the fewest runs that give all of them.

    A prompt that stands in several rows, on either side, is one run. The order is that of the rows.

    Raises:
        TaskError: the prompts of a row differ in length.
    """
    shared = nx.Graph()
    for row in rows:
        shared.add_edge(row.clean, row.corrupt)
    owner = {ids: i for i, group in enumerate(nx.connected_components(shared)) for ids in group}
    members: dict[int, list[Row]] = {}
    for row in rows:
        members.setdefault(owner[row.clean], []).append(row)
    return tuple(_grid_of(group) for group in members.values())


def passes_of(grids: Sequence[Grid], *, rule: str = "clean") -> Passes:
    """How many prompts ``grid_eap`` takes forward, and backward, for all pairs of these grids."""
    bases = [basis for grid in grids for basis in _Terms.of(grid, rule).bases]
    return Passes(len(bases), sum(len(basis) for basis in bases))


def separate_passes(grids: Sequence[Grid], *, rule: str = "clean") -> Passes:
    """The same where every pair is scored on its own."""
    n_pairs = sum(len(grid.pairs) for grid in grids)
    return Passes(2 * n_pairs, n_pairs * (2 if rule == "both-ends" else 1))


def grid_eap(
    model: Model,
    grids: Sequence[Grid],
    metric: Metric = METRICS["persona-divergence"],
    *,
    rule: str = "clean",
    batch_size: int = 32,
    max_bytes: int = GRID_BYTES,
    progress: Progress | None = None,
) -> Scores:
    """EAP scores, mean over all pairs of all grids: what ``circuit.attribution.eap`` gives for the same rows.

    Parameters
    ----------
    grids
        With more than one process, this process' own.
    rule
        ``clean`` takes the gradient at the clean run; ``both-ends`` the mean of those at the clean and
        the corrupt run, the trapezoid rule of EAP-IG's integral with its two end points. Over pairs
        in both directions the two have one mean, since the swapped row has its gradient at the other
        end; they differ pair by pair, and over pairs in one direction.
    batch_size
        Prompts per pass.
    max_bytes
        Bound on the node contributions held at a time, though ``batch_size`` prompts always are. A grid
        that is larger is divided, and prompts on both sides of a division are run again.

    Raises
    ------
    OptionError
        The metric is not a difference of logits, or the rule is unknown.
    TaskError
        There is no pair.
    """
    total = np.zeros(model.graph.valid.shape)
    for terms, ends in _packs(model, grids, metric, rule, batch_size, max_bytes, progress):
        total += _summed(model, terms, ends)
    return Scores(model.graph, ranks.summed(total) / _check_count(sum(len(grid.pairs) for grid in grids)))


def grid_parts(
    model: Model,
    grids: Sequence[Grid],
    metric: Metric = METRICS["persona-divergence"],
    *,
    rule: str = "clean",
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
    for terms, ends in _packs(model, grids, metric, rule, batch_size, max_bytes, progress):
        _add_pairs(model, terms, ends, values, place)
    _check_count(len(place))
    values[:, ~model.graph.valid] = 0.0
    if ranks.size() > 1:
        every = ranks.gathered({index: values[i] for index, i in place.items()})
        place = {index: i for i, index in enumerate(sorted(every))}
        values = np.stack([every[index] for index in place])
    return ScoreParts(model.graph, "row", tuple(map(str, place)), values)


def _check_count(n_pairs: int) -> float:
    """The pairs of all processes."""
    total = float(ranks.summed(np.array([n_pairs], dtype=np.float64))[0])
    if not total:
        raise TaskError("there are no grids to score; give at least one pair")
    return total


def _grid_of(rows: Sequence[Row]) -> Grid:
    place = {ids: i for i, ids in enumerate(dict.fromkeys(ids for row in rows for ids in (row.clean, row.corrupt)))}
    pairs = tuple(
        GridPair(row.index, place[row.clean], place[row.corrupt], row.answers, row.wrong_answers) for row in rows
    )
    return Grid(tuple(place), pairs)


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
    """Prompts with all that is asked of their runs, those with the most backward passes first.

    ``bases[r]`` are the contrasts that are taken back at run r, ``shares[r][contrast]``
    how every contrast that its terms need is made of them.
    """

    prompts: tuple[tuple[int, ...], ...]
    terms: tuple[_Term, ...]
    bases: tuple[tuple[Contrast, ...], ...]
    shares: tuple[Mapping[Contrast, np.ndarray], ...]
    first: int

    @classmethod
    def of(cls, grid: Grid, rule: str) -> _Terms:
        """What one grid asks."""
        found = [term for pair in grid.pairs for term in _terms_of(pair, rule)]
        needed: list[dict[Contrast, None]] = [{} for _ in grid.prompts]
        for term in found:
            needed[term.at][term.contrast] = None
        bases, shares = zip(*(_basis(tuple(contrasts)) for contrasts in needed), strict=True)
        return cls(grid.prompts, tuple(found), bases, shares, grid.first_difference)

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
        """Of what runs' contributions the difference consists that a direction's gradient meets, for the first rows."""
        weights = np.zeros((n_rows, len(self.prompts)))
        for term in self.terms:
            if term.at < n_rows:
                share = term.weight * self.shares[term.at][term.contrast][direction]
                weights[term.at, term.other] += share
                weights[term.at, term.at] -= share
        return weights


@dataclass(frozen=True, eq=False)
class _Ends:
    """What the passes leave behind, from the first differing position on.

    ``streams[l]`` enters layer l's attention, ``[run, pos, d_model]``. ``gradients[j]`` are those of the
    j-th contrast of each run's basis, as ``circuit.gradients.Ends`` has them, for the runs that have a
    j-th: always the first.
    """

    contributions: Float[Tensor, "src run pos d_model"]
    streams: tuple[Float[Tensor, "run pos d_model"], ...]
    gradients: tuple[tuple[Tensor, ...], ...]


def _packs(
    model: Model,
    grids: Sequence[Grid],
    metric: Metric,
    rule: str,
    batch_size: int,
    max_bytes: int,
    progress: Progress | None,
) -> Iterator[tuple[_Terms, _Ends]]:
    """Grids of one length, as many as fill a batch, with their passes; larger ones alone."""
    if metric.name not in LINEAR:
        raise OptionError(
            f"a persona grid takes the metric apart into logits, which {metric.name} is not linear in; "
            f"use --metric {' or '.join(LINEAR)}, or score the pairs one by one"
        )
    if rule not in RULES:
        raise OptionError(f"rule {rule!r} of a grid is not one of {', '.join(RULES)}")
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
            terms = _Terms.together([_Terms.of(grid, rule) for grid in pack])
            yield terms, _ends(model, terms, batch_size)
            done += len(terms.prompts)
            if progress is not None:
                progress(done, n_runs)


def _filled(grids: Sequence[Grid], batch_size: int) -> Iterator[list[Grid]]:
    pack: list[Grid] = []
    for grid in grids:
        if pack and sum(len(one.prompts) for one in (*pack, grid)) > batch_size:
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
        if low == high:  # with a neighbour, whose prompts are run with these anyhow
            low, high = (low, low + 1) if low + 1 < n_groups else (low - 1, low)
        parts.setdefault((low, high), []).append(pair)
    return [_part_of(grid, pairs) for pairs in parts.values()]


def _part_of(grid: Grid, pairs: Sequence[GridPair]) -> Grid:
    old = sorted({i for pair in pairs for i in (pair.clean, pair.corrupt)})
    new = {i: j for j, i in enumerate(old)}
    moved = tuple(GridPair(p.index, new[p.clean], new[p.corrupt], p.answers, p.wrong_answers) for p in pairs)
    return Grid(tuple(grid.prompts[i] for i in old), moved)


def _terms_of(pair: GridPair, rule: str) -> list[_Term]:
    weights: dict[int, float] = {}
    for tokens, sign in ((pair.answers, 1.0), (pair.wrong_answers, -1.0)):
        for token in tokens:
            weights[token] = weights.get(token, 0.0) + sign / len(tokens)
    # A contrast and its opposite need one backward pass.
    turn = 1.0 if weights[min(weights)] > 0 else -1.0
    contrast = tuple((token, turn * weights[token]) for token in sorted(weights))
    if rule == "clean":
        return [_Term(pair.index, pair.clean, pair.corrupt, contrast, turn)]
    return [
        _Term(pair.index, pair.clean, pair.corrupt, contrast, turn / 2),
        _Term(pair.index, pair.corrupt, pair.clean, contrast, -turn / 2),
    ]


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
        at, found = _pass(model, terms.prompts[some], terms.bases[some], terms.first)
        contributions.append(at[0])
        streams.append(at[1])
        for direction, values in zip(gradients, found, strict=False):
            direction.append(values)
    joined = [tuple(torch.cat(parts) for parts in zip(*direction, strict=True)) for direction in gradients]
    return _Ends(
        torch.cat(contributions, dim=1),
        tuple(torch.cat(parts) for parts in zip(*streams, strict=True)),
        tuple(joined),
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
    """Contributions and streams of some runs, and the gradients of their contrasts, without what autograd kept."""
    tokens = torch.tensor([list(ids) for ids in prompts], device=model.device)
    embedded, context = model.start(tokens)
    before, n_late, n_directions = prefix_of(model, tokens[:, :first]), tokens.shape[1] - first, len(bases[0])
    embedded = embedded if before is None else embedded[:, first:]
    with torch.set_grad_enabled(n_directions > 0):
        at = run(model, embedded.detach().requires_grad_(n_directions > 0), context, before=before)
        check_finite(at.logits, of_prompts(model, prompts))
        found = []
        for direction in range(n_directions):
            value = _value(at.logits, [basis[direction] for basis in bases])
            ends = differentiated(model, at, value, retain=direction + 1 < n_directions)
            found.append(list(ends.late(n_late).gradients))
    return (at.contributions[:, :, -n_late:], [stream.detach()[:, -n_late:] for stream in at.streams[:-1]]), found


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
    model: Model,
    terms: _Terms,
    ends: _Ends,
    values: Float[np.ndarray, "pair src dst"],
    place: Mapping[int, int],
) -> None:
    """Add every term to its pair's scores: a product per run, contrast and layer of sources."""
    asked: dict[tuple[int, Contrast], list[_Term]] = {}
    for term in terms.terms:
        asked.setdefault((term.at, term.contrast), []).append(term)
    sample = ends.contributions[0, 0]
    n_rows = max(1, PRODUCT_BYTES // (model.graph.n_dst * sample.numel() * sample.element_size()))
    rows = list(asked)
    for some in (rows[i : i + n_rows] for i in range(0, len(rows), n_rows)):
        at = [run for run, _ in some]
        gradients = _combined(ends, at, [terms.shares[run][contrast] for run, contrast in some])
        streams = tuple(stream[at] for stream in ends.streams)
        at_slots = gradients_at_slots(model, Ends(streams, gradients), max_bytes=BLOCK_BYTES)
        for slots, gradient in _joined(at_slots):
            for i, key in enumerate(some):
                _add_products(model, ends, asked[key], slots, gradient[i].flatten(1), values, place)


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
        # Subtracted before the product: what two runs have in common is much larger than what they do not.
        runs = ends.contributions[sources]
        differences = runs.index_select(1, others).sub_(runs[:, at : at + 1])
        found = differences.flatten(2).flatten(0, 1) @ gradient[reached.start - slots.start :].T
        parts = found.view(len(runs), len(terms), -1).transpose(0, 1).cpu().float().numpy()
        values[where, sources, reached] += parts * weights


def _source_groups(graph: Graph) -> Iterator[tuple[slice, int]]:
    """The input, then the sources of each layer, with the first slot that one of them reaches."""
    yield slice(0, 1), 0
    for layer in range(graph.n_layers):
        yield slice(graph.heads_of(layer).start, graph.mlp_of(layer) + 1), graph.mlp_slot_of(layer)


def _combined(ends: _Ends, at: Sequence[int], shares: Sequence[np.ndarray]) -> list[Tensor]:
    """Gradients of contrasts at some runs, from those of the runs' bases."""
    found = []
    for parts in zip(*ends.gradients, strict=True):
        rows = []
        for row, weights in zip(at, shares, strict=True):
            # zero weights are left out: a basis contrast is itself, to the last digit
            used = [float(w) * part[row] for w, part in zip(weights, parts, strict=False) if w]
            rows.append(torch.stack(used).sum(0) if len(used) > 1 else used[0])
        found.append(torch.stack(rows))
    return found


def _joined(
    parts: Iterator[tuple[slice, Float[Tensor, "slot run pos d_model"]]],
) -> Iterator[tuple[slice, Float[Tensor, "run slot pos d_model"]]]:
    """Slots that follow one another put together, up to ``PRODUCT_BYTES``: few large products are faster."""
    held: list[Tensor] = []
    start = stop = 0
    for slots, gradient in parts:
        if held and sum(x.nbytes for x in held) + gradient.nbytes > PRODUCT_BYTES:
            yield slice(start, stop), torch.cat(held, dim=1)
            held, start = [], stop
        held.append(gradient.transpose(0, 1))
        stop = slots.stop
    yield slice(start, stop), torch.cat(held, dim=1)
