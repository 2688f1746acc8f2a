"""What a set of heads is worth: D and choices without it, beside random sets of as many heads in the same layers.

An ablated head writes, at every position and in both runs of a pair, what the ablation
says (``circuit.forward.ablation``): the other persona's value (resample), a mean, nothing. What is
left of D is [m(x_A) - m(x_B)] with the heads ablated over the same without. With
the other persona's values it goes from 1 to -1, since all heads and MLPs exchanged is
the personas exchanged: it is 1 - noising - denoising of the set.

p = (1 + b) / (1 + B), b of B random sets leaving at most as much of D as the chosen one
(Phipson and Smyth 2010, arXiv:1603.05766). Heads that are chosen for their effect are to be chosen on other pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from persona_circuits import metrics
from persona_circuits.circuit.errors import GraphError, OptionError
from persona_circuits.circuit.evaluation import other_sets
from persona_circuits.circuit.forward import (
    CONSTANT,
    Prepared,
    make_ablation,
    patched_nodes,
    per_pass,
    portions,
    prepare_each,
)
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import Clusters, is_zero
from persona_circuits.circuit.storage import Kept
from persona_circuits.circuit.task import Batch, Row, batches
from persona_circuits.persona.data import Estimate, Example, ExampleFile, ratio_of_means
from persona_circuits.persona.explanation import margins
from persona_circuits.persona.patching.options import PatchOptions
from persona_circuits.persona.streams import id_table

__all__ = ["HeadAblation", "ablate_heads", "finite_margins", "parse_heads"]

Heads = tuple[int, ...]
"""Places among the graph's sources."""


@dataclass(frozen=True)
class HeadAblation:
    """A set of heads ablated, and random sets of as many heads in each layer.

    ``left`` is the share of D that is left. ``changed`` is the share of prompts whose most likely
    candidate is another than the whole model's, ``own`` the share that chooses its own persona's answer, of the whole
    model ``own_before``. ``p`` is of D, ``p_changed`` of the choices. ``random_left`` and ``random_changed``
    have one value per random set, the first none where the pairs' mean D is zero.
    """

    heads: tuple[str, ...]
    ablation: str
    split: str
    n_pairs: int
    divergence: float
    left: Estimate
    changed: float
    own: float
    own_before: float
    random_left: tuple[float, ...]
    random_changed: tuple[float, ...]
    p: float
    p_changed: float
    left_by_pair: NDArray[np.float64]
    passes: int
    runs: int


def parse_heads(graph: Graph, names: Sequence[str], top: int | None = None) -> Heads:
    """The heads of these names.

    Raises:
        OptionError: a name is no head of this model, or more heads are asked for than there are.
    """
    n_heads = graph.n_layers * graph.n_heads
    if top is not None and top >= n_heads:
        raise OptionError(f"--ablate-top {top}: the model has {n_heads} heads; take fewer, so that others are left")
    try:
        heads = tuple(dict.fromkeys(graph.src_index(name) for name in names))
    except GraphError as error:
        raise OptionError(f"--ablate: {error}") from error
    for name, src in zip(dict.fromkeys(names), heads, strict=True):
        if graph.src_nodes[src].kind != "head":
            raise OptionError(f"--ablate {name}: only heads can be ablated here, such as a0.h1")
    return heads


def ablate_heads(
    model: Model,
    file: ExampleFile,
    rows: Sequence[Row],
    training: Sequence[Row],
    heads: Heads,
    options: PatchOptions,
    *,
    kept: Kept,
    progress: Progress,
) -> HeadAblation:
    """Ablate the heads, and random sets, on the pairs of ``file``.

    Parameters
    ----------
    rows
        Those pairs in both directions.
    training
        Rows from which an ablation's constants are taken.
    kept
        What a stopped study did; what is done here is added.

    Raises
    ------
    OptionError
        There is no other set of as many heads in the same layers.
    TaskError
        The pairs lack what the ablation needs.
    """
    sets = [heads, *other_sets(model.graph, heads, options.n_random, options.seed)]
    if len(sets) == 1:
        raise OptionError(
            "the heads to ablate are all heads of their layers, so there are no others of the same layers to compare "
            "with; leave one out"
        )
    source = batches(training, options.batch_size, model.device) if options.ablation in CONSTANT else []
    method = make_ablation(options.ablation, model, source)
    groups = batches(rows, options.batch_size, model.device)
    ablated = _Ablated(model, file.examples, sets, len(rows))
    for done, group in enumerate(groups, 1):
        for item in prepare_each(model, [group], method):
            ablated.add(item, kept)
        progress(done, len(groups))
    return _outcome(model.graph, file, heads, options, ablated)


class _Ablated:
    """Margins and choices of every row, of the whole model first and then under every set."""

    def __init__(self, model: Model, examples: Sequence[Example], sets: Sequence[Heads], n_rows: int) -> None:
        self.model, self.examples, self.sets = model, examples, sets
        self.margin = np.zeros((len(sets) + 1, n_rows))
        self.choice = np.zeros((len(sets) + 1, n_rows), dtype=np.int64)
        self.own = np.zeros((len(sets) + 1, n_rows), dtype=bool)
        self.passes = self.runs = 0

    def add(self, item: Prepared, kept: Kept) -> None:
        at, n_rows = list(item.batch.indices), len(item.batch)
        self._put(slice(0, 1), at, self._read(item.clean.logits[None], item))
        for span in portions(len(self.sets), per_pass(self.model, item, 3 * self.model.graph.n_heads + 8)):
            name = f"ablated {span.start} {span.stop} {item.batch.place}"
            self._put(slice(span.start + 1, span.stop + 1), at, kept.of(name, partial(self._without, item, span)))
            self.passes, self.runs = self.passes + 1, self.runs + (span.stop - span.start) * n_rows
        self.passes, self.runs = self.passes + 2, self.runs + 2 * n_rows

    def _without(self, item: Prepared, span: slice) -> dict[str, NDArray[Any]]:
        """Ablate several sets in one pass."""
        chosen = torch.zeros(span.stop - span.start, self.model.graph.n_src, dtype=torch.bool, device=self.model.device)
        for i, heads in enumerate(self.sets[span]):
            chosen[i, list(heads)] = True
        everywhere = torch.ones(len(chosen), *item.batch.clean.shape, dtype=torch.bool, device=chosen.device)
        return self._read(patched_nodes(self.model, item, chosen, everywhere), item)

    def _put(self, sets: slice, at: list[int], measured: Mapping[str, NDArray[Any]]) -> None:
        for name, values in (("margin", self.margin), ("choice", self.choice), ("own", self.own)):
            values[sets, at] = measured[name]

    def _read(self, many: Iterable[Float[Tensor, "batch vocab"]], item: Prepared) -> dict[str, NDArray[Any]]:
        """Margins, choices and whether these are the persona's own, ``[set, row]``."""
        examples = [self.examples[index] for index in item.batch.indices]
        ids = id_table([example.candidates for example in examples])
        margin, choice, is_own = [], [], []
        for logits in many:
            best = metrics.candidate_logits(logits, ids.to(logits.device)).argmax(-1).tolist()
            margin.append(finite_margins(logits, item.batch))
            choice.append(best)
            is_own.append([example.candidates[i] in example.answers for example, i in zip(examples, best, strict=True)])
        return {"margin": np.stack(margin), "choice": np.array(choice), "own": np.array(is_own)}


def _outcome(graph: Graph, file: ExampleFile, heads: Heads, options: PatchOptions, ablated: _Ablated) -> HeadAblation:
    clusters = Clusters.of([item.pair for item in file.items])
    pairs = ablated.margin[:, 0::2] + ablated.margin[:, 1::2]
    divergence, means = pairs[0], pairs.mean(1)
    defined = not is_zero(divergence)
    changed = (ablated.choice[1:] != ablated.choice[0]).mean(1)
    splits = sorted({item.pair.split for item in file.items})
    return HeadAblation(
        heads=tuple(str(graph.src_nodes[src]) for src in heads),
        ablation=options.ablation,
        split=" and ".join(filter(None, splits)) or "all",
        n_pairs=len(divergence),
        divergence=float(means[0]),
        left=ratio_of_means(pairs[1:2], divergence, clusters, seed=options.seed)[0],
        changed=float(changed[0]),
        own=float(ablated.own[1].mean()),
        own_before=float(ablated.own[0].mean()),
        random_left=tuple((means[2:] / means[0]).tolist()) if defined else (),
        random_changed=tuple(map(float, changed[1:])),
        p=_rank(-np.sign(means[0]) * means[1:]),
        p_changed=_rank(changed),
        left_by_pair=pairs[1],
        passes=ablated.passes,
        runs=ablated.runs,
    )


def finite_margins(logits: Float[Tensor, "batch vocab"], batch: Batch) -> NDArray[np.float64]:
    """The margin of every row, in float64 on the CPU.

    Raises:
        ModelError: one is not finite.
    """
    values = margins(logits.double(), batch).cpu().numpy()
    check_finite(values, batch.name, "margins")
    return values


def _rank(values: NDArray[np.float64]) -> float:
    """p of the first value among all: (1 + how many of the others are as large) / (1 + how many others)."""
    return float((1 + (values[1:] >= values[0]).sum()) / len(values))
