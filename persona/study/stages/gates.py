"""Stage ``gates`` of a study: circuits by learned gates, of the persona in two frames and of the prior.

YOU/, FRIEND/, PRIOR/   the circuit: gates trained on train, all numbers on held-out pairs

Each is measured on the pairs of every frame and of the prior, beside random circuits of its size.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from persona_circuits.circuit.assessment.comparison import Side, compare
from persona_circuits.circuit.discovery import Discovery, MeasureOptions, evaluate_on
from persona_circuits.circuit.task import PromptPair, Task
from persona_circuits.persona.study.context import Context, some_of
from persona_circuits.persona.study.numbers import Found
from persona_circuits.persona.study.stages.circuit import search
from persona_circuits.persona.study.stages.circuit_numbers import faithfulness_of
from persona_circuits.persona.study.stages.figures import write_levels

__all__ = ["run_gates"]

SEARCHED = ("you", "friend")
MEASURED = ("you", "again", "friend", "nobody")


def run_gates(context: Context, folder: Path) -> Found:
    """A circuit for each of ``SEARCHED`` and for the prior, each on the pairs of all."""
    found = Found()
    if context.files.frames is None:
        found.notes.append("no pairs in frames; give a file of 'vary --frame' with --frames")
        return found
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
            with found.attempt(f"circuit of {name}"):
                circuits[name] = search(context, grounds[name], folder / name, n_random=options.n_random, **how)
    for name, one in circuits.items():
        _own(found, name, one)
        for other, task in grounds.items():
            if other != name:
                _on(context, found, name, one, other, task)
    _compared(found)
    names = {f"{name} on {other}": f"gates.{name}.f.{'own' if name == other else f'on_{other}'}"
             for name in circuits for other in grounds}  # fmt: skip
    names |= {f"random, of the size of {name}": f"gates.{name}.f.random" for name in circuits}
    write_levels(folder, "gates", "Faithfulness of circuits on held-out pairs", found.numbers, names)
    for a, b in combinations(circuits, 2):
        _shared(context, found, (a, circuits[a]), (b, circuits[b]))
    return found


def _has(task: Task, frame: str) -> bool:
    return any(pair.axis("variant") == frame for pair in task.pairs)


def _some(context: Context, task: Task) -> Task:
    """Twice ``max_pairs`` to search on, as many as ``max_pairs`` to measure on."""
    n, parts = context.options.max_pairs, list[PromptPair]()
    for split, count in zip(dict.fromkeys(context.fitted_and_held_out), (2 * n, n), strict=False):
        parts += some_of(task.of_split(split), count).pairs
    return replace(task, pairs=tuple(parts))


def _own(found: Found, name: str, one: Discovery) -> None:
    source, last = f"gates/{name}/circuit.json", one.reports[-1]
    found.add(f"gates.{name}.edges", len(one.circuit), "edges", n=one.circuit.graph.n_edges, source=source)
    what = f"faithfulness on its own pairs ({last.split}): ratio of means"
    faithfulness_of(found, f"gates.{name}.f.own", last.circuit, what, last.n_pairs, source)
    about: dict[str, Any] = {"n": last.n_pairs, "source": source}
    found.add(f"gates.{name}.f.own.median", last.circuit.median_of_ratios, "the same: median of ratios", **about)
    random = {"n": len(last.random), "source": source}
    found.add(f"gates.{name}.f.random", last.random_mean, "mean over matched random circuits", **random)
    found.add(f"gates.{name}.f.random.most", max(last.random, default=None), "the best of these", **random)


def _on(context: Context, found: Found, name: str, one: Discovery, other: str, task: Task) -> None:
    options = context.options
    setting = MeasureOptions(batch_size=options.batch_size, n_random=options.n_random, seed=options.seed)
    with found.attempt(f"circuit of {name} on pairs of {other}"):
        report = evaluate_on(context.model, task, one.circuit, setting, stage=context.stage)
        place, source = f"gates.{name}.f.on_{other}", f"gates/{name}/circuit.json"
        what = f"faithfulness of the circuit of {name} on held-out pairs of {other}"
        faithfulness_of(found, place, report.circuit, what, report.n_pairs, source)
        n = len(report.random)
        found.add(f"{place}.random", report.random_mean, "mean over random circuits there", n=n, source=source)


def _compared(found: Found) -> None:
    """What the predictions ask: the circuit of you on the friend's pairs, of the friend's own; and on the prior's."""
    values = {name: number.value for name, number in found.numbers.items()}
    you, friend, prior = (values.get(f"gates.{name}") for name in ("you.f.own", "friend.f.own", "you.f.on_prior"))
    on_friend, source = values.get("gates.you.f.on_friend"), "gates/you/circuit.json"
    if on_friend is not None and friend:
        what = "f of the circuit of you on the friend's pairs / that of the friend's own"
        found.add("gates.you.f.on_friend_of_own", on_friend / friend, what, source=source)
    if you is not None and prior is not None:
        what = "f of the circuit of you on its own pairs minus that on the prior's"
        found.add("gates.you.f.own_minus_prior", you - prior, what, source=source)


def _shared(context: Context, found: Found, one: tuple[str, Discovery], other: tuple[str, Discovery]) -> None:
    """Edges of both, beside chance: a description of two circuits, not of what each edge does."""
    sides = [Side(name, it.circuit, it.scores, None, it.record) for name, it in (one, other)]
    draws = 20 if context.options.quick else 200
    progress = context.stage("chance overlap")
    both = compare(sides[0], sides[1], n_draws=draws, seed=context.options.seed, progress=progress).edges
    place, source = f"gates.{one[0]}.shared_with_{other[0]}", f"gates/{other[0]}/circuit.json"
    found.add(f"{place}.jaccard", both.jaccard, "edges of both over edges of either", unit="share", source=source)
    if (null := both.exchanged) is not None:
        text = "edges of both with heads exchanged within layers; p of as many"
        found.add(f"{place}.exchanged", null.mean, text, n=null.n, p=null.p, source=source)
        found.add(f"{place}.edges", both.shared, "edges of both", n=min(both.a, both.b), source=source)
