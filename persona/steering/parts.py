"""How much of steering named sets of nodes account for: their part of the direction, added alone or left out.

The stream after a block is the sum of all that nodes up to there wrote, and a direction that is measured on streams is
linear in them. So it is the sum of its nodes' parts, each measured in the same way on what the node wrote there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import other_sets
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.circuit.table import Column, Table
from persona_circuits.persona.data import Example, ExampleFile
from persona_circuits.persona.steering.results import Beside, Bound, SetPart, SteeringStudy
from persona_circuits.persona.steering.runs import Run
from persona_circuits.persona.steering.study import unsteered
from persona_circuits.persona.streams import grouped, trace
from persona_circuits.persona.vectors import MEASURED, measured_directions, place_of

__all__ = ["check_has_parts", "part_table", "set_parts"]


def set_parts(
    model: Model,
    study: SteeringStudy,
    steered: ExampleFile,
    fitting: ExampleFile,
    groups: Mapping[str, Sequence[str]],
    *,
    progress: Progress = untold,
) -> tuple[SetPart, ...]:
    """Every set at every bound of the study, beside as many random sets as it has controls.

    Parameters
    ----------
    steered, fitting
        The pairs of the study.
    groups
        Nodes by the names of sets; ``logits``, which writes nothing, has no part in them.

    Raises
    ------
    OptionError
        The study's direction is not measured on streams, so that nodes have no parts of it.
    """
    kind, options, graph = study.directions.kind, study.options, model.graph
    check_has_parts(kind)
    drawn = []
    for nodes in groups.values():
        chosen = tuple(graph.src_index(name) for name in nodes if name != "logits")
        drawn.append([chosen, *other_sets(graph, chosen, options.n_controls, options.seed)])
    members = _members(graph, [item for node_sets in drawn for item in node_sets], options.layers)
    at = options.fitted_at
    on_fitting = on_steered = _written(model, fitting.examples, members, at, options.batch_size)
    if kind == "pair" and fitting is not steered:
        on_steered = _written(model, steered.examples, members, at, options.batch_size)
    parts = np.stack([
        measured_directions(kind, fitting.examples, item, steered.examples, other)
        for item, other in zip(on_fitting, on_steered, strict=True)
    ])  # fmt: skip
    reference = unsteered(model, study.prompts, options.batch_size)[1]
    run = Run(model, study.prompts, options, study.plain, reference, progress)
    run.total = 12 * len(study.prompts) * len(members) * len(study.bounds)
    results = []
    for bound in study.bounds:
        values = iter(_values(run, study, bound, parts))
        for (name, nodes), node_sets in zip(groups.items(), drawn, strict=True):
            measures = zip(*(next(values) for _ in node_sets), strict=True)
            besides = (Beside(float(value), tuple(map(float, others))) for value, *others in measures)
            results.append(SetPart(name, tuple(nodes), bound.layers, bound.strength, bound.outcome.gain, *besides))
    return tuple(results)


def check_has_parts(kind: str) -> None:
    """Make sure, before work, that directions of a kind are sums of what nodes wrote.

    Raises:
        OptionError: they are not.
    """
    if kind not in MEASURED:
        raise OptionError(
            f"--groups splits a direction that is measured on the model's streams: {', '.join(MEASURED)}; "
            f"--direction {kind} is not one of them"
        )


def _members(graph: Graph, sets: Sequence[Sequence[int]], layers: Sequence[int]) -> Bool[np.ndarray, "set layer src"]:
    """Which sources write a set's part of the stream after each layer."""
    inside = np.array([[src in chosen for src in range(graph.n_src)] for chosen in sets])
    before = np.array([[node.layer <= layer for node in graph.src_nodes] for layer in layers])
    return inside[:, None] & before


def _written(
    model: Model,
    examples: Sequence[Example],
    members: Bool[np.ndarray, "set layer src"],
    position: str,
    batch_size: int,
) -> Float[np.ndarray, "set example layer d_model"]:
    """What each set wrote at the named token of every prompt."""
    written = np.empty((len(members), len(examples), members.shape[1], model.d_model))
    for group in grouped([len(example.placed.ids) for example in examples], batch_size):
        tokens = torch.tensor([examples[i].placed.ids for i in group], device=model.device)
        at = torch.tensor([place_of(examples[i], position) for i in group], device=model.device)
        parts = trace(model, tokens, at[:, None], with_parts=True, parts_at=at).parts
        assert parts is not None, "they were asked for"
        written[:, group] = np.einsum("gls,sbd->gbld", members.astype(float), parts.double().cpu().numpy())
    return written


def _values(
    run: Run, study: SteeringStudy, bound: Bound, parts: Float[np.ndarray, "set pair layer d_model"]
) -> list[tuple[float, float, float]]:
    """Every set's share of the direction, and the gains with its part alone and with all but its part."""
    places = {layer: study.options.layers.index(layer) for layer in bound.layers}
    whole = {layer: study.directions.vectors[:, layer] for layer in places}
    size = sum(float((vector**2).sum()) for vector in whole.values())
    steps, shares = [], []
    for part in parts:
        added = {layer: part[:, place] for layer, place in places.items()}
        steps += [(added, bound.strength), ({layer: whole[layer] - added[layer] for layer in added}, bound.strength)]
        shares.append(sum(float((added[layer] * whole[layer]).sum()) for layer in added) / size)
    gains = [run.gain(measured.margins(1)) for measured in run.measure(steps)]
    return list(zip(shares, gains[::2], gains[1::2], strict=True))


def part_table(study: SteeringStudy) -> Table:
    """A row per set and layer: what is added of the direction, and the gain that this leaves."""
    title = (
        f"parts of the direction that sets of nodes write, at the strength of KL within {study.options.kl_bound:g} nats"
    )
    notes = [
        "of direction: length of the set's part along the direction, over the direction's; all nodes' add up to 1",
        "gain alone: with the set's part added and no more; gain without: with all but that part",
        "random: sets of as many heads of each layer and MLPs of any, least to most",
    ]
    return Table(title, COLUMNS, study.sets, 1, notes)


def _random(name: str) -> Column:
    def span(part: SetPart) -> str:
        values = getattr(part, name).random
        return f"{min(values):+.2f}…{max(values):+.2f}" if values else "no other set"

    return Column("random", span)


COLUMNS = (
    Column("set", "name"),
    Column("nodes", lambda one: len(one.nodes)),
    Column("layer", lambda one: "+".join(map(str, one.layers))),
    Column("strength", "strength", ".3g"),
    Column("gain", "gain", "+.2f"),
    Column("of direction", "share.value", "+.2f"),
    _random("share"),
    Column("gain alone", "alone.value", "+.2f"),
    _random("alone"),
    Column("gain without", "without.value", "+.2f"),
    _random("without"),
)
