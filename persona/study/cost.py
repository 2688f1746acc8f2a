"""How long a stage of a study may take and how much memory: from the time of one prompt, by what each stage does."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping

from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.forward.gated import gated_bytes
from persona_circuits.circuit.progress import duration
from persona_circuits.circuit.pruning.learn import MAX_BYTES
from persona_circuits.circuit.task import Task, encode
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.explanation import beyond_asking
from persona_circuits.persona.explanation.runs import both_runs
from persona_circuits.persona.study.context import PASSES, Context

__all__ = ["prompts_of", "told"]

SEARCH, STEP = 4, 6
"""A gradient costs so many passes as one prompt does, all nodes' outputs held; a prompt of a step of gates so many."""


def told(stage: str, context: Context) -> list[str]:
    """What is appended to the stage's name once: about how long it takes here, and memory."""
    try:
        seconds = prompts_of(stage, context) * _seconds(context)
    except PersonaCircuitsError:  # the stage itself says why these pairs cannot be asked
        return []
    if not seconds:
        return []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    size = _bytes_held(stage, context) + peak
    return [f" (about {duration(seconds)}, {size / 2**30:.1f} GiB)"]


def prompts_of(stage: str, context: Context) -> int | float:
    """How many passes of one prompt a stage does, about."""
    return CALLS[stage](context)


def _n(context: Context) -> tuple[int, int]:
    """Pairs to search on and pairs to measure on."""
    splits = [context.task.of_split(name).pairs for name in context.fitted_and_held_out]
    return len(splits[0]), len(splits[1])


def _searches(context: Context, circuits: int) -> int | float:
    """So many circuits, each with its random ones."""
    train, few = _n(context)[0], context.options.max_pairs
    return circuits * 2 * (SEARCH * context.options.steps * train + (2 + context.options.n_random) * (train + few))


def _frames(context: Context) -> int | float:
    asked = 0 if context.frames is None else 2 * len(context.frames.items)
    return asked and asked + bool(context.options.frame_edges) * _searches(context, 4)


def _where(context: Context) -> int | float:
    train, test = _n(context)
    layers = context.model.graph.n_layers
    return 2 * (train + test) * 2 + 2 * min(test, PASSES * context.options.max_pairs) * 4 * layers / 2


def _gates(context: Context) -> int | float:
    """Each circuit is scored, trained, and measured on its own pairs and those of the other frames and the prior."""
    if context.frames is None:
        return 0
    options, few, prior = context.options, context.options.max_pairs, context.prior is not None
    rows = max(2, MAX_BYTES // gated_bytes(context.model, _longest(context)))
    trained = 2 * SEARCH * 2 * few + options.gate_steps * STEP * min(rows, 4 * few)
    measured = 2 * (2 + options.n_random) * few * (6 + prior)
    return (2 + prior) * (trained + measured)


def _patch(context: Context) -> int | float:
    train, test = (min(n, PASSES * context.options.max_pairs) for n in _n(context))
    heads = context.model.graph.n_layers * context.model.graph.n_heads
    return 2 * train * heads + 2 * test * 40


def _wordings(times: int) -> Callable[[Context], int | float]:
    return lambda context: 0 if context.wordings is None else times * len(context.wordings.items)


def _items(context: Context) -> list[Item]:
    """The pairs to measure on, and the controls."""
    controls = () if context.controls is None else context.controls.items
    return [*context.pairs.of_split(context.fitted_and_held_out[1]).items, *controls]


def _causes(context: Context) -> int | float:
    items = _items(context)
    return 2 * len(items) * (1 + beyond_asking(items))


CALLS: Mapping[str, Callable[[Context], int | float]] = {
    "behaviour": lambda context: 2 * len(_items(context)),
    "contrasts": lambda context: 0 if context.variants is None else 2 * len(context.variants.items),
    "frames": _frames,
    "attention": lambda context: 2 * 2 * PASSES * context.options.max_pairs * 9,
    "across": lambda context: 0 if context.frames is None else 90 * context.options.max_pairs,
    "prediction": _wordings(3),
    "causes": _causes,
    "prior": lambda context: 0 if context.wordings is None else 200 * context.options.max_pairs,
    "where": _where,
    "gates": _gates,
    "circuit": lambda context: _searches(context, 6),
    "steering": lambda context: 2 * min(_n(context)[1], PASSES * context.options.max_pairs) * 60,
    "patch": _patch,
}


def _seconds(context: Context) -> int | float:
    """Of one prompt, by a batch of the study's own; measured once, as time of this process, whatever runs beside it."""
    if context.seconds is None:
        pairs = context.task.pairs[: context.options.batch_size]
        rows = encode(Task(pairs, context.task.source, ""), context.model, alike=True)
        started = time.thread_time()
        n = sum(2 * len(both.batch) for both in both_runs(context.model, rows, len(pairs), gradients=False))
        context.seconds = (time.thread_time() - started) / n
    return context.seconds


def _bytes_held(stage: str, context: Context) -> int:
    """Streams of a batch; where edges are scored every node's output and its gradient too."""
    model = context.model
    arrays = 3 * model.graph.n_src if stage in ("frames", "gates", "circuit", "causes") else 3 * model.graph.n_layers
    return 4 * arrays * context.options.batch_size * _longest(context) * model.d_model


def _longest(context: Context) -> int:
    """Tokens of the longest prompt, about."""
    return max((int(item.pair.row.get("n_tokens", 64)) for item in context.pairs.items), default=64)
