"""Two circuits of one graph: what they share beyond chance, and where their scores agree or oppose each other.

1. Both are read, with every edge's score where the file beside the circuit has it.
2. What was set differently when they were found is listed; another graph is refused.
3. Overlap of edges and of nodes, as Jaccard's index, beside two kinds of chance:

       random      random circuits of the same size (``circuit.faithfulness``): the whole graph is alike
       exchanged   one of the two with the heads of every layer exchanged at random: the same circuit as to
                   layers, types, degrees and size, in other heads. MLPs and ``input`` stay where they are

4. Rank correlation of the scores (Spearman), over all edges and over those of either circuit.
5. Edges whose scores have opposite signs, beside what shuffled scores would give.
6. If wanted, each circuit's faithfulness on either one's pairs.

Every p is a permutation p, (1 + b) / (1 + B) with b of B draws at least as extreme (Phipson and
Smyth 2010, arXiv:1603.05766). Edges of one path are scored alike, so the signs of a
circuit's edges are fewer independent facts than there are edges: read their p as a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuit.discovery import Stage, evaluate_on
from circuit.draw import DrawReport, draw
from circuit.errors import FileError, OptionError
from circuit.faithfulness import FaithfulnessReport
from circuit.files import StoredCircuit, read_circuit, read_scores
from circuit.graph import Graph
from circuit.matched import random_circuits
from circuit.model import Model
from circuit.scores import Scores
from circuit.subgraph import Circuit
from circuit.task import Task

__all__ = [
    "GROUPS",
    "Comparison",
    "Correlation",
    "CrossCell",
    "Ground",
    "Null",
    "Overlap",
    "Setting",
    "Side",
    "Signs",
    "compare",
    "cross_faithfulness",
    "draw_difference",
    "groups",
    "read_side",
    "relative_scores",
    "settings_apart",
]

LABELS = {"shared": "in both", "opposite": "in both, opposite signs", "only_a": "only in A", "only_b": "only in B"}
GROUPS = tuple(LABELS)

Progress = Callable[[int, int], None]
Move = tuple[np.ndarray, ...]
"""What ``numpy.ix_`` gives: where every value of an array ``[src, dst]`` comes from."""

# What follows from a search rather than being set for it; and what says which pairs it ran on.
OUTCOMES = {"format", "version", "task.divergence", "method.tau"}
PAIRS = {"task.source", "task.sha256", "task.n_pairs"}
NAMES = {"model.name", "model.revision"}  # of the same weights, by their fingerprint
SECTIONS = ("model", "task", "method")
STAMP = ("direction", "averaging", "order")  # the rest of the stamp stands in those sections


@dataclass(frozen=True, eq=False)
class Side:
    """A circuit to compare: ``scored`` says which edges ``scores`` has a number for.

    ``record`` is its file's content, None where that says nothing of how it was found.
    """

    name: str
    circuit: Circuit
    scores: Scores | None = None
    scored: Bool[np.ndarray, "src dst"] | None = None
    record: Mapping[str, Any] | None = None

    @cached_property
    def known(self) -> Bool[np.ndarray, "src dst"]:
        """Which edges have a score: those of ``scored``, else all of them, or none without scores."""
        graph = self.circuit.graph
        if self.scores is None:
            return np.zeros_like(graph.valid)
        return graph.valid if self.scored is None else self.scored & graph.valid


@dataclass(frozen=True)
class Setting:
    """A setting that differs; ``key`` as in ``circuit.json``, such as ``task.metric``."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Null:
    """What chance gives: mean and standard deviation over ``n`` draws, and the p of as much or more."""

    n: int
    mean: float
    sd: float
    p: float


@dataclass(frozen=True)
class Overlap:
    """How many edges (or nodes) two circuits share.

    ``jaccard`` is shared / union, None where both are empty; ``possible`` is the largest
    that their sizes allow. ``random`` and ``exchanged`` are of the number shared, None
    where a circuit is empty; of ``random`` it is the less favourable of one circuit
    against random ones of the other's size.
    """

    a: int
    b: int
    shared: int
    jaccard: float | None
    possible: float | None
    random: Null | None
    exchanged: Null | None


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho of two circuits' scores over ``n`` edges; None where either is constant there.

    ``absolute`` is that of |score|. The nulls exchange heads within their layers and take
    the edges anew each time: over the union of two circuits chance is below zero, as an
    edge that is weak in both is in neither. They are None unless both have scored every edge.
    """

    over: str
    n: int
    signed: float | None
    absolute: float | None
    null_signed: Null | None
    null_absolute: Null | None


@dataclass(frozen=True)
class Signs:
    """Edges scored in both, not 0: how many with opposite signs, and how many by chance.

    ``minus_plus`` are below zero in A and above in B: they carry what A's pairs contrast
    and work against what B's do. ``expected`` is the mean over shuffled scores of B;
    ``p_more`` and ``p_fewer`` the p of at least and of at most as many. None without edges.
    """

    over: str
    n: int
    minus_plus: int
    plus_minus: int
    expected: float | None
    p_more: float | None
    p_fewer: float | None

    @property
    def opposite(self) -> int:
        """Edges of opposite sign."""
        return self.minus_plus + self.plus_minus


@dataclass(frozen=True, eq=False)
class Ground:
    """Pairs to measure on, in this model, with the metric and ablation of the search that ``record`` is of."""

    name: str
    model: Model
    task: Task
    record: Mapping[str, Any]


@dataclass(frozen=True)
class CrossCell:
    """A circuit measured on the pairs of one side, in that side's model and metric."""

    circuit: str
    pairs: str
    report: FaithfulnessReport


@dataclass(frozen=True, eq=False)
class Comparison:
    """All of it. ``settings`` differ apart from the pairs; ``notes`` are what a reader must know.

    ``cross`` is what ``cross_faithfulness`` gives, empty until it is asked for.
    """

    a: Side
    b: Side
    settings: tuple[Setting, ...]
    notes: tuple[str, ...]
    edges: Overlap
    nodes: Overlap
    correlations: tuple[Correlation, ...]
    signs: tuple[Signs, ...]
    cross: tuple[CrossCell, ...] = ()

    def with_cross(self, cells: Sequence[CrossCell], notes: Sequence[str] = ()) -> Comparison:
        """The same with cross-faithfulness, or with notes on why it is not there."""
        return replace(self, cross=tuple(cells), notes=(*self.notes, *notes))

    def edge_rows(self) -> list[dict[str, Any]]:
        """Every edge of either circuit: its group, a key of ``GROUPS``, and both scores (None where unknown)."""
        return [
            {"edge": edge, "group": group, "score_a": first, "score_b": second}
            for group, circuit in groups(self.a, self.b).items()
            for edge, first, second in zip(
                circuit.edge_names(), _scores_of(self.a, circuit), _scores_of(self.b, circuit), strict=True
            )
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "a": _side_record(self.a),
            "b": _side_record(self.b),
            "settings": [asdict(item) for item in self.settings],
            "notes": list(self.notes),
            "overlap": {"edges": asdict(self.edges), "nodes": asdict(self.nodes)},
            "correlations": [asdict(item) for item in self.correlations],
            "signs": [{**asdict(item), "opposite": item.opposite} for item in self.signs],
            "cross_faithfulness": [
                {"circuit": cell.circuit, "pairs": cell.pairs, "report": cell.report.as_dict()} for cell in self.cross
            ],
            "edges": self.edge_rows(),
        }


def read_side(path: str | Path) -> Side:
    """Read a circuit file or the folder that ``discover`` wrote, with every edge's score if it lies beside it.

    Scores beside the circuit that are not those of its file are left alone.

    Raises:
        FileError: the circuit file is missing or at fault.
    """
    stored = read_circuit(path)
    every = _scores_beside(stored)
    if every is not None:
        return Side(str(path), stored.circuit, every, None, stored.record)
    return Side(str(path), stored.circuit, stored.scores, _scored(stored), stored.record)


def compare(a: Side, b: Side, *, n_draws: int = 200, seed: int = 0, progress: Progress | None = None) -> Comparison:
    """Compare two circuits of the same graph.

    Parameters
    ----------
    n_draws
        Draws of every kind of chance.
    progress
        Called with the draws done and all of them.

    Raises
    ------
    OptionError
        The graphs differ in shape, or ``n_draws`` is below 1.
    """
    if n_draws < 1:
        raise OptionError(f"--n-draws must be at least 1, got {n_draws}")
    _check_graphs(a, b)
    progress = progress or (lambda _done, _total: None)
    seeds = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(seeds[0])
    moves = [_exchange(a.circuit.graph, rng) for _ in range(n_draws)]
    edges, nodes = _overlaps(a.circuit, b.circuit, moves, seed, progress)
    return Comparison(
        a=a,
        b=b,
        settings=settings_apart(a, b),
        notes=_notes(a, b),
        edges=edges,
        nodes=nodes,
        correlations=_correlations(a, b, moves),
        signs=_all_signs(a, b, n_draws, np.random.default_rng(seeds[1])),
    )


def cross_faithfulness(
    a: Side,
    b: Side,
    grounds: Sequence[Ground],
    *,
    batch_size: int = 32,
    n_random: int = 10,
    seed: int = 0,
    stage: Stage | None = None,
) -> tuple[CrossCell, ...]:
    """Either circuit, and what they share, on the held-out pairs of every ground (``test`` if there is one, else all).

    ``shared`` is without dead ends, so it may be empty where edges are shared; no random circuits stand beside it.

    Raises:
        OptionError, TaskError: a ground's pairs do not fit its model, or the model's graph is another one.
    """
    shared = Circuit(a.circuit.graph, a.circuit.mask & b.circuit.mask).without_dead_ends()
    circuits = {"A": a.circuit, "B": b.circuit, "shared": shared}
    return tuple(
        CrossCell(
            name,
            ground.name,
            evaluate_on(
                ground.model,
                ground.task,
                circuit,
                metric=ground.record["task"]["metric"],
                ablation=ground.record["ablation"],
                align=ground.record["task"]["align"],
                train_split=ground.record["task"]["split"],
                batch_size=batch_size,
                n_random=0 if name == "shared" else n_random,
                seed=seed,
                stage=stage,
            ),
        )
        for ground in grounds
        for name, circuit in circuits.items()
    )


def settings_apart(a: Side, b: Side) -> tuple[Setting, ...]:
    """What was set differently when the circuits were found, apart from the pairs; empty if either is unknown."""
    if a.record is None or b.record is None:
        return ()
    first, second = _leaves(a.record), _leaves(b.record)
    beside = OUTCOMES | PAIRS | (NAMES if first["model.fingerprint"] == second["model.fingerprint"] else set())
    keys = [key for key in dict.fromkeys([*first, *second]) if key not in beside]
    return tuple(Setting(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key))


def groups(a: Side, b: Side) -> dict[str, Circuit]:
    """Every edge of either circuit in one of ``GROUPS``: shared (of one sign, or unknown), shared with
    opposite signs, only A's, only B's."""
    graph, first, second = a.circuit.graph, a.circuit.mask, b.circuit.mask
    both = first & second
    opposite = both & _opposite(a, b)
    parts = (both & ~opposite, opposite, first & ~second, second & ~first)
    return {name: Circuit(graph, part) for name, part in zip(GROUPS, parts, strict=True)}


def relative_scores(a: Side, b: Side) -> Scores | None:
    """For a picture of both: the larger of an edge's |score| as shares of either side's largest; None without scores.

    Two circuits' scores may be in other units or of other sizes; shares are alike.
    """
    shares = [
        np.where(side.known, np.abs(side.scores.values), 0.0) / largest
        for side in (a, b)
        if side.scores is not None and (largest := np.abs(side.scores.values[side.known]).max(initial=0.0)) > 0
    ]
    return Scores(a.circuit.graph, np.maximum.reduce(shares)) if shares else None


def draw_difference(comparison: Comparison, path: str | Path, *, strongest: int = 200, title: str = "") -> DrawReport:
    """The union of both circuits, edges coloured by ``groups``; the parameters are those of ``circuit.draw.draw``.

    Width is the larger of an edge's two |score|, each as a share of that side's largest.
    """
    a, b = comparison.a, comparison.b
    parts = {LABELS[name]: part for name, part in groups(a, b).items()}
    union = Circuit(a.circuit.graph, a.circuit.mask | b.circuit.mask)
    return draw(
        union,
        path,
        scores=relative_scores(a, b),
        strongest=strongest,
        title=title or f"A {a.name}, B {b.name}",
        groups=parts,
        scale="share of the largest |score|",
    )


def _scores_beside(stored: StoredCircuit) -> Scores | None:
    """Every edge's score, where ``scores.safetensors`` lies beside ``circuit.json`` and is of the same search."""
    beside = stored.path.parent / "scores.safetensors"
    if stored.record is None or stored.scores is None or not beside.is_file():
        return None
    try:
        every = read_scores(beside)
    except FileError:
        return None
    mask = stored.circuit.mask
    same = every.graph == stored.circuit.graph and np.allclose(every.values[mask], stored.scores.values[mask])
    return every if same else None


def _scored(stored: StoredCircuit) -> Bool[np.ndarray, "src dst"] | None:
    if stored.record is None:  # EAP-IG's JSON names every edge with its score
        return None
    graph = stored.circuit.graph
    return Circuit.of(graph, (item["edge"] for item in stored.record["edges"] if item["score"] is not None)).mask


def _check_graphs(a: Side, b: Side) -> None:
    first, second = a.circuit.graph, b.circuit.graph
    if first != second:
        raise OptionError(
            f"{a.name} is a circuit of {_shape(first)} and {b.name} one of {_shape(second)}: they have no edges "
            "in common; compare circuits of models of one shape"
        )


def _shape(graph: Graph) -> str:
    return f"{graph.n_layers} layers with {graph.n_heads} heads" + (" (parallel)" if graph.parallel else "")


def _leaves(record: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a record under its dotted key: the single values, and those of ``SECTIONS``."""
    single = {key: value for key, value in record.items() if not isinstance(value, Mapping | list)}
    nested = {f"{section}.{key}": value for section in SECTIONS for key, value in record[section].items()}
    stamp = {f"stamp.{key}": record.get("stamp", {}).get(key) for key in STAMP}
    return single | nested | stamp


def _notes(a: Side, b: Side) -> tuple[str, ...]:
    notes = [f"{side.name} does not say how it was found, so its settings are not compared" for side in _unknown(a, b)]
    if len(a.circuit) != len(b.circuit):
        notes.append(
            f"the circuits have {len(a.circuit):,} and {len(b.circuit):,} edges: their Jaccard index cannot be "
            "above what those sizes allow"
        )
    notes += [f"{side.name} is an empty circuit" for side in (a, b) if not len(side.circuit)]
    for side in (a, b):
        stability = (side.record or {}).get("stability") or {}
        if stability.get("unstable"):
            notes.append(
                f"{side.name} is unstable: resampled (by {stability['by']}) its search gives circuits with a mean "
                f"Jaccard index of {stability['jaccard']:.2f} among each other"
            )
    if not (a.known.sum() == b.known.sum() == a.circuit.graph.n_edges):
        notes.append("not every edge has a score on both sides: correlations have no chance level beside them")
    return tuple(notes)


def _unknown(a: Side, b: Side) -> list[Side]:
    return [side for side in (a, b) if side.record is None]


# --- overlap ---------------------------------------------------------------------------------


def _exchange(graph: Graph, rng: np.random.Generator) -> Move:
    """Exchanges the heads of every layer at random; ``values[move]`` is what the circuit becomes.

    Heads of a layer have the same sources and the same readers, so this maps the graph onto itself.
    """
    src, dst = np.arange(graph.n_src), np.arange(graph.n_dst)
    for layer in range(graph.n_layers):
        order = rng.permutation(graph.n_heads)
        heads, slots = graph.heads_of(layer), graph.head_slots_of(layer)
        src[heads] = src[heads][order]
        dst[slots] = dst[slots].reshape(-1, graph.n_heads)[:, order].reshape(-1)
    return np.ix_(src, dst)


def _overlaps(a: Circuit, b: Circuit, moves: Sequence[Move], seed: int, progress: Progress) -> tuple[Overlap, Overlap]:
    """Of edges and of nodes."""
    n, observed = len(moves), _counts(a.mask, b.mask)
    edges, nodes = (len(a), len(b)), (int(_nodes(a.mask).sum()), int(_nodes(b.mask).sum()))
    if not (len(a) and len(b)):
        return _overlap(*edges, observed[0], None, None), _overlap(*nodes, observed[1], None, None)
    against_b = _random_draws(a.graph, b.mask, len(a), n, seed, lambda done: progress(done, 2 * n))
    against_a = _random_draws(a.graph, a.mask, len(b), n, seed, lambda done: progress(n + done, 2 * n))
    exchanged = np.array([_counts(a.mask, b.mask[move]) for move in moves], dtype=float)

    def overlap(i: int, sizes: tuple[int, int]) -> Overlap:
        nulls = [_null(float(observed[i]), draws[:, i]) for draws in (against_b, against_a)]
        worse = max(nulls, key=lambda null: (null.p, null.mean))
        return _overlap(*sizes, observed[i], worse, _null(float(observed[i]), exchanged[:, i]))

    return overlap(0, edges), overlap(1, nodes)


def _random_draws(
    graph: Graph, mask: np.ndarray, n_edges: int, n: int, seed: int, progress: Callable[[int], None]
) -> Float[np.ndarray, "draw 2"]:
    """Edges and nodes that random circuits of ``n_edges`` edges share with a circuit."""
    draws = []
    for circuit in random_circuits(graph, n_edges, n, seed=seed):
        draws.append(_counts(mask, circuit.mask))
        progress(len(draws))
    return np.array(draws, dtype=float)


def _counts(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Shared edges and shared nodes."""
    return int((first & second).sum()), int((_nodes(first) & _nodes(second)).sum())


def _nodes(mask: np.ndarray) -> Bool[np.ndarray, " src"]:
    """The sources of a circuit's edges. In a circuit without dead ends these are all its nodes but ``logits``."""
    return np.asarray(mask.any(axis=1))


def _overlap(a: int, b: int, shared: int, random: Null | None, exchanged: Null | None) -> Overlap:
    union = a + b - shared
    return Overlap(
        a=a,
        b=b,
        shared=shared,
        jaccard=shared / union if union else None,
        possible=min(a, b) / max(a, b) if union else None,
        random=random,
        exchanged=exchanged,
    )


def _null(observed: float, draws: np.ndarray) -> Null:
    """Mean, standard deviation and the p of a draw that is as large or larger."""
    beyond = int((draws >= observed - 1e-12).sum())
    spread = float(draws.std(ddof=1)) if len(draws) > 1 else 0.0
    return Null(len(draws), float(draws.mean()), spread, (1 + beyond) / (1 + len(draws)))


# --- scores ----------------------------------------------------------------------------------


def _correlations(a: Side, b: Side, moves: Sequence[Move]) -> tuple[Correlation, ...]:
    """Over all edges that both have scored, and over those of either circuit among them."""
    if a.scores is None or b.scores is None:
        return ()
    known = a.known & b.known
    if not (known == a.circuit.graph.valid).all():
        moves = ()
    everywhere, mine, yours = np.ones_like(known), a.circuit.mask, b.circuit.mask
    return (
        _correlation("all", a.scores, b.scores, known, everywhere, everywhere, moves),
        _correlation("union", a.scores, b.scores, known, mine, yours, moves),
    )


def _correlation(
    over: str, a: Scores, b: Scores, known: np.ndarray, mine: np.ndarray, yours: np.ndarray, moves: Sequence[Move]
) -> Correlation:
    """Over the known edges of either mask, where ``yours`` moves with B's scores."""

    def rho(first: np.ndarray, second: np.ndarray) -> tuple[float | None, Null | None]:
        correlate = _spearman
        if mine.all():  # the same edges in every draw, so they are ranked once
            first, second, correlate = _ranked(first, known), _ranked(second, known), _pearson

        def over_union(values: np.ndarray, mask: np.ndarray) -> float | None:
            where = known & (mine | mask)
            return correlate(first[where], values[where])

        found = over_union(second, yours)
        return found, _null_of(found, [over_union(second[move], yours[move]) for move in moves])

    signed, null_signed = rho(a.values, b.values)
    absolute, null_absolute = rho(abs(a.values), abs(b.values))
    n = int((known & (mine | yours)).sum())
    return Correlation(over, n, signed, absolute, null_signed, null_absolute)


def _null_of(observed: float | None, draws: Sequence[float | None]) -> Null | None:
    usable = [draw for draw in draws if draw is not None]
    return None if observed is None or not usable else _null(observed, np.array(usable))


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's correlation of the ranks, ties at their mean."""
    return _pearson(_ranks(first), _ranks(second))


def _pearson(first: np.ndarray, second: np.ndarray) -> float | None:
    """None for fewer than 3 values or a constant."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranked(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The ranks of the values there, in their places."""
    ranked = np.zeros_like(values)
    ranked[where] = _ranks(values[where])
    return ranked


def _ranks(values: np.ndarray) -> np.ndarray:
    if not len(values):
        return values
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def _all_signs(a: Side, b: Side, n: int, rng: np.random.Generator) -> tuple[Signs, ...]:
    """Over the edges of both circuits, and over those of either."""
    if a.scores is None or b.scores is None:
        return ()
    masks = {"shared": a.circuit.mask & b.circuit.mask, "union": a.circuit.mask | b.circuit.mask}
    return tuple(_signs(a, b, over, mask, n, rng) for over, mask in masks.items())


def _signs(a: Side, b: Side, over: str, mask: np.ndarray, n: int, rng: np.random.Generator) -> Signs:
    assert a.scores is not None
    assert b.scores is not None
    where = mask & a.known & b.known & (a.scores.values != 0) & (b.scores.values != 0)
    first, second = a.scores.values[where] > 0, b.scores.values[where] > 0
    minus_plus, plus_minus = int((~first & second).sum()), int((first & ~second).sum())
    if not len(first):
        return Signs(over, 0, 0, 0, None, None, None)
    draws = (rng.permuted(np.tile(second, (n, 1)), axis=1) != first).sum(axis=1)
    found = minus_plus + plus_minus
    more, fewer = ((1 + int(beyond.sum())) / (1 + n) for beyond in (draws >= found, draws <= found))
    return Signs(over, len(first), minus_plus, plus_minus, float(draws.mean()), more, fewer)


def _opposite(a: Side, b: Side) -> np.ndarray:
    if a.scores is None or b.scores is None:
        return np.zeros_like(a.circuit.mask)
    return a.known & b.known & (a.scores.values * b.scores.values < 0)


def _scores_of(side: Side, circuit: Circuit) -> list[float | None]:
    """This side's scores of a circuit's edges, in their order; None where it has none."""
    if side.scores is None:
        return [None] * len(circuit)
    inside = circuit.mask.T
    pairs = zip(side.scores.values.T[inside].tolist(), side.known.T[inside].tolist(), strict=True)
    return [score if known else None for score, known in pairs]


def _side_record(side: Side) -> dict[str, Any]:
    about = {key: side.record[key] for key in (*SECTIONS, "ablation", "seed")} if side.record else None
    return {"name": side.name, "edges": len(side.circuit), "scored": int(side.known.sum()), "about": about}
