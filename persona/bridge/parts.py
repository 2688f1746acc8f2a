"""A direction's parts: what every node writes along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # whose parts are loaded when they are used: scipy.stats takes a second
import torch
from jaxtyping import Bool, Float

from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, Stage
from persona_circuits.persona.bridge.options import BridgeOptions
from persona_circuits.persona.data import Example, ExampleFile
from persona_circuits.persona.streams import grouped, trace
from persona_circuits.persona.vectors import Directions, default_kind, find_directions

__all__ = ["MATCHINGS", "TOLERANCE", "decomposed_run", "random_sets", "three_way", "up_to"]

MATCHINGS = ("layer", "type")
TOLERANCE = 1e-4  # of what the parts may miss, relative to the largest stream


def contributions(
    graph: Graph, differences: Float[np.ndarray, "pair part d_model"], unit: Float[np.ndarray, "pair layer d_model"]
) -> Float[np.ndarray, "pair layer part"]:
    """c of every part onto the direction after every block; zero where the part comes after it."""
    values = np.einsum("ncd,nld->nlc", differences, unit)
    return values * _upstream(graph)[None]


def random_sets(
    graph: Graph, chosen: Bool[np.ndarray, " src"], layer: int, matching: str, *, n: int, seed: int
) -> Bool[np.ndarray, "draw src"]:
    """Sets of nodes up to ``layer`` with as many heads and MLPs as ``chosen``; ``matching`` as in the module's head."""
    rng = np.random.default_rng(seed)
    here = chosen & up_to(graph, layer)
    sets = np.zeros((n, graph.n_src), dtype=bool)
    sets[:, 0] = here[0]
    for cell in _cells(graph, layer, matching):
        count = int(here[cell].sum())
        if count:
            order = rng.random((n, len(cell))).argsort(1)[:, :count]
            np.put_along_axis(sets, np.asarray(cell)[order], True, axis=1)
    return sets


def three_way(sizes: Sequence[int], shared: int, universe: int) -> tuple[float, float]:
    """How many nodes three random sets of these sizes share on average, and the p of as many as ``shared`` or more."""
    a, b, c = sizes
    both = np.arange(min(a, b) + 1)
    weights = scipy.stats.hypergeom.pmf(both, universe, a, b)
    p = float(np.sum(weights * scipy.stats.hypergeom.sf(shared - 1, universe, both, c)))
    return a * b * c / universe**2, min(p, 1.0)


@dataclass(frozen=True, eq=False)
class _Decomposed:
    """Directions, what every part writes along them, the projections, and what the parts miss of these."""

    directions: Directions
    parts: Float[np.ndarray, "pair layer part"]
    projections: Float[np.ndarray, "pair layer"]
    error: float


def decomposed_run(
    model: Model, fit: ExampleFile, held: ExampleFile | None, options: BridgeOptions, stage: Stage
) -> _Decomposed:
    measured = held or fit
    streams, parts = _streams_and_parts(model, measured.examples, options, stage("nodes"))
    fitted = streams if held is None else _streams_and_parts(model, fit.examples, options, stage("directions"))[0]
    directions = find_directions(
        options.direction or default_kind(fit.examples, measured.examples),
        fit.examples,
        fitted[:, 1:],
        measured.examples,
        streams[:, 1:],
        toward=options.toward,
        fingerprint=model.fingerprint,
    )
    unit = directions.vectors / np.linalg.norm(directions.vectors, axis=-1, keepdims=True)
    written = contributions(model.graph, parts[::2] - parts[1::2], unit)
    projections = np.einsum("pld,pld->pl", (streams[::2] - streams[1::2])[:, 1:], unit)
    missed = float(np.abs(written.sum(2) - projections).max()) / float(np.abs(streams).max())
    return _Decomposed(directions, written, projections, missed)


def _streams_and_parts(
    model: Model, examples: Sequence[Example], options: BridgeOptions, progress: Progress
) -> tuple[Float[np.ndarray, "example point d_model"], Float[np.ndarray, "example part d_model"]]:
    """The stream at the position after every block (the embedding first), and what every part wrote there."""
    graph, done = model.graph, 0
    streams = np.empty((len(examples), graph.n_layers + 1, model.d_model))
    parts = np.empty((len(examples), graph.n_src + graph.n_layers, model.d_model))
    for group in grouped([len(example.placed.ids) for example in examples], options.batch_size):
        tokens = torch.tensor([examples[i].placed.ids for i in group], device=model.device)
        at = torch.tensor([examples[i].placed.places[options.position] for i in group], device=model.device)
        traced = trace(model, tokens, at[:, None], with_parts=True, parts_at=at)
        assert traced.parts is not None
        assert traced.biases is not None
        streams[group] = traced.streams[:, :, 0].transpose(0, 1).double().cpu().numpy()
        parts[group] = torch.cat([traced.parts, traced.biases]).transpose(0, 1).double().cpu().numpy()
        done += len(group)
        progress(done, len(examples))
    return streams, parts


def _upstream(graph: Graph) -> Bool[np.ndarray, "layer part"]:
    """Which parts are in the stream after each block."""
    layers = np.array([*(node.layer for node in graph.src_nodes), *range(graph.n_layers)])
    return layers[None] <= np.arange(graph.n_layers)[:, None]


def up_to(graph: Graph, layer: int) -> Bool[np.ndarray, " src"]:
    return _upstream(graph)[layer, : graph.n_src]


def _cells(graph: Graph, layer: int, matching: str) -> list[list[int]]:
    """Groups of nodes; from each, as many are drawn as are chosen in it."""
    layers = range(layer + 1)
    heads = [list(range(*graph.heads_of(at).indices(graph.n_src))) for at in layers]
    mlps = [graph.mlp_of(at) for at in layers]
    if matching == "layer":
        return [*heads, *([mlp] for mlp in mlps)]
    return [[head for group in heads for head in group], mlps]
