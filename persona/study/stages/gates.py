"""Stage ``gates`` of a study: circuits by learned gates, of the persona in two frames and of the prior.

YOU/, FRIEND/, PRIOR/   the circuit: gates trained on train, all numbers on held-out pairs

Each is measured on the pairs of every frame and of the prior, beside random circuits of its size.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from persona_circuits.circuit.discovery import Discovery, MeasureOptions, evaluate_on
from persona_circuits.circuit.task import PromptPair, Task
from persona_circuits.persona.study.context import NO_FRAMES, Context, some_of
from persona_circuits.persona.study.numbers import StageNumbers
from persona_circuits.persona.study.stages.circuit import compared, search
from persona_circuits.persona.study.stages.circuit_numbers import faithfulness_of
from persona_circuits.persona.study.stages.figures import write_levels

__all__ = ["run_gates"]

SEARCHED = ("you", "friend")
MEASURED = ("you", "again", "friend", "nobody")


def run_gates(context: Context, folder: Path) -> StageNumbers:
    """A circuit for each of ``SEARCHED`` and for the prior, each on the pairs of all."""
    numbers = StageNumbers()
    if context.files.frames is None:
        numbers.notes.append(NO_FRAMES)
        return numbers
    whole = context.files.frames.task()
    grounds = {name: whole.where(variant=name) for name in MEASURED if _has(whole, name)}
    if context.prior is not None:
        grounds["prior"] = context.prior
    grounds = {name: _some(context, task) for name, task in grounds.items()}
    options, circuits = context.options, {}
    size = min(options.gate_edges, context.model.graph.n_edges)
    how: dict[str, Any] = {"method": "eap", "prune": "learn", "top_n": size, "train_steps": options.gate_steps}
    for name in (*SEARCHED, "prior"):
        if name in grounds:
            with numbers.attempt(f"circuit of {name}"):
                circuits[name] = search(context, grounds[name], folder / name, n_random=options.n_random, **how)
    for name, circuit in circuits.items():
        _own(numbers, name, circuit)
        for other, task in grounds.items():
            if other != name:
                _on(context, numbers, name, circuit, other, task)
    _compared(numbers)
    names = {f"{name} on {other}": f"gates.{name}.f.{'own' if name == other else f'on_{other}'}"
             for name in circuits for other in grounds}  # fmt: skip
    names |= {f"random, of the size of {name}": f"gates.{name}.f.random" for name in circuits}
    write_levels(folder, "gates", "Faithfulness of circuits on held-out pairs", numbers.numbers, names)
    for a, b in combinations(circuits, 2):
        _shared(context, numbers, (a, circuits[a]), (b, circuits[b]))
    return numbers


def _has(task: Task, frame: str) -> bool:
    return any(pair.axis("variant") == frame for pair in task.pairs)


def _some(context: Context, task: Task) -> Task:
    """Twice ``max_pairs`` to search on, as many as ``max_pairs`` to measure on."""
    n, parts = context.options.max_pairs, list[PromptPair]()
    for split, count in zip(dict.fromkeys(context.fitted_and_held_out), (2 * n, n), strict=False):
        parts += some_of(task.of_split(split), count).pairs
    return replace(task, pairs=tuple(parts))


def _own(numbers: StageNumbers, name: str, discovery: Discovery) -> None:
    source, circuit, last = f"gates/{name}/circuit.json", discovery.circuit, discovery.reports[-1]
    numbers.add(f"gates.{name}.edges", len(circuit), "edges", n=circuit.graph.n_edges, source=source)
    what = f"faithfulness on its own pairs ({last.split}): ratio of means"
    faithfulness_of(numbers, f"gates.{name}.f.own", last.circuit, what, last.n_pairs, source)
    about: dict[str, Any] = {"n": last.n_pairs, "source": source}
    numbers.add(f"gates.{name}.f.own.median", last.circuit.median_of_ratios, "the same: median of ratios", **about)
    random = {"n": len(last.random), "source": source}
    numbers.add(f"gates.{name}.f.random", last.random_mean, "mean over matched random circuits", **random)
    numbers.add(f"gates.{name}.f.random.most", max(last.random, default=None), "the best of these", **random)


def _on(context: Context, numbers: StageNumbers, name: str, discovery: Discovery, other: str, task: Task) -> None:
    options = context.options
    setting = MeasureOptions(batch_size=options.batch_size, n_random=options.n_random, seed=options.seed)
    with numbers.attempt(f"circuit of {name} on pairs of {other}"):
        report = evaluate_on(context.model, task, discovery.circuit, setting, stage=context.stage)
        place, source = f"gates.{name}.f.on_{other}", f"gates/{name}/circuit.json"
        what = f"faithfulness of the circuit of {name} on held-out pairs of {other}"
        faithfulness_of(numbers, place, report.circuit, what, report.n_pairs, source)
        n = len(report.random)
        numbers.add(f"{place}.random", report.random_mean, "mean over random circuits there", n=n, source=source)


def _compared(numbers: StageNumbers) -> None:
    """What the predictions ask: the circuit of you on the friend's pairs, of the friend's own; and on the prior's."""
    values = {name: number.value for name, number in numbers.numbers.items()}
    you, friend, prior = (values.get(f"gates.{name}") for name in ("you.f.own", "friend.f.own", "you.f.on_prior"))
    on_friend, source = values.get("gates.you.f.on_friend"), "gates/you/circuit.json"
    if on_friend is not None and friend:
        what = "f of the circuit of you on the friend's pairs / that of the friend's own"
        numbers.add("gates.you.f.on_friend_of_own", on_friend / friend, what, source=source)
    if you is not None and prior is not None:
        what = "f of the circuit of you on its own pairs minus that on the prior's"
        numbers.add("gates.you.f.own_minus_prior", you - prior, what, source=source)


def _shared(
    context: Context, numbers: StageNumbers, first: tuple[str, Discovery], second: tuple[str, Discovery]
) -> None:
    """Edges of both, beside chance: a description of two circuits, not of what each edge does."""
    overlap = compared(context, first, second).edges
    place, source = f"gates.{first[0]}.shared_with_{second[0]}", f"gates/{second[0]}/circuit.json"
    numbers.add(f"{place}.jaccard", overlap.jaccard, "edges of both over edges of either", unit="share", source=source)
    if (null := overlap.exchanged) is not None:
        text = "edges of both with heads exchanged within layers; p of as many"
        numbers.add(f"{place}.exchanged", null.mean, text, n=null.n, p=null.p, source=source)
        numbers.add(f"{place}.edges", overlap.shared, "edges of both", n=min(overlap.a, overlap.b), source=source)
