"""Stage ``frames`` of a study: whom the prompt describes as the persona, and whether the same edges carry it.

frames.csv      D of the same pairs in every frame, beside their D in the frame ``you``
pairs.csv       D of every pair in every frame
FRAME/          the circuit of the frame, found on train and measured on test, for the frames of ``SEARCHED``

The frame ``again`` (the persona in other words of equal meaning) says what a change of words alone does: a
frame differs from ``you`` only where it does so by more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.discovery import Discovery, MeasureOptions, evaluate_on
from persona_circuits.circuit.figures import write_csv, write_figures
from persona_circuits.circuit.task import Task
from persona_circuits.persona.behaviour import PairMeasure, measure_pairs
from persona_circuits.persona.study.context import NO_FRAMES, Context, some_of
from persona_circuits.persona.study.numbers import Estimates, StageNumbers, number_rows, slug, with_holm
from persona_circuits.persona.study.stages.behaviour import MEASURES, mean_of
from persona_circuits.persona.study.stages.circuit import compared, search
from persona_circuits.persona.study.stages.circuit_numbers import faithfulness_of
from persona_circuits.persona.study.stages.figures import level_figure

__all__ = ["frame_numbers", "run_frames"]

YOU = "you"
SEARCHED = (YOU, "again", "friend", "nobody")
"""Frames that get a circuit of their own: the persona, its paraphrase, somebody else, nobody."""
PAIRS = "frames/pairs.csv"
MEANT = ("divergence", "collapse", "mass")


def run_frames(context: Context, folder: Path) -> StageNumbers:
    """Behaviour in every frame, and a circuit of some."""
    numbers = StageNumbers()
    file = context.frames
    if file is None:
        numbers.notes.append(NO_FRAMES)
        return numbers
    held_out = context.fitted_and_held_out[1]
    items = [item for item in file.items if held_out in ("all", item.pair.split)]
    how: dict[str, Any] = {"source": file.source, "batch_size": context.options.batch_size}
    measures = measure_pairs(context.model, items, progress=context.stage("asking in every frame"), **how)
    frame_numbers(numbers, measures, context.draws)
    _write_pairs(measures, folder)
    if context.options.frame_edges:
        with numbers.attempt("circuits of frames"):
            _circuits(context, numbers, folder)
    numbers.numbers = with_holm(numbers.numbers)
    write_csv(number_rows(numbers.numbers), folder / "frames.csv")
    _figure(numbers, folder)
    return numbers


def frame_numbers(numbers: StageNumbers, measures: Sequence[PairMeasure], draws: Mapping[str, int]) -> None:
    """Every frame against ``you`` on the same pairs; pairs that are not there in both are left out."""
    you = {m.item.pair.axis("base"): m for m in measures if m.item.pair.axis("variant") == YOU}
    for name in dict.fromkeys(m.item.pair.axis("variant") for m in measures):
        own = [m for m in measures if m.item.pair.axis("variant") == name and m.item.pair.axis("base") in you]
        if own:
            _frame(numbers, name, own, [you[m.item.pair.axis("base")] for m in own], draws)


def _frame(
    numbers: StageNumbers,
    name: str,
    own: Sequence[PairMeasure],
    partners: Sequence[PairMeasure],
    draws: Mapping[str, int],
) -> None:
    estimates = Estimates([m.item for m in own], **draws)
    place = f"frames.{slug(name)}"
    here, there = (np.array([m.divergence for m in rows]) for rows in (own, partners))
    numbers.add(f"{place}.n", len(own), "pairs", source=PAIRS)
    for key in MEANT:
        _, what, unit = MEASURES[key]
        p = estimates.flips(here) if key == "divergence" else None
        text = f"{what}; p: sign flips" if p is not None else what
        numbers.add(f"{place}.{key}", what=text, unit=unit, p=p, source=PAIRS, **mean_of(estimates, key, own))
    if name == YOU:
        return
    about: dict[str, Any] = {"source": PAIRS}
    what = f"mean D of {name} / mean D of {YOU}"
    numbers.add(f"{place}.divergence_ratio", what=what, **about, **estimates.ratio(here, there))
    what = f"mean D: {name} minus {YOU}, paired; p: sign flips"
    p = estimates.flips(here - there)
    difference = estimates.mean(here - there)
    numbers.add(f"{place}.divergence_difference", what=what, unit="logits", p=p, **about, **difference)
    if min(here.std(), there.std()) > 0:
        what = f"correlation over pairs of D of {name} and of {YOU}"
        numbers.add(f"{place}.correlation", float(np.corrcoef(here, there)[0, 1]), what, n=len(own), **about)


def _circuits(context: Context, numbers: StageNumbers, folder: Path) -> None:
    """A circuit of equally many edges for each frame; that of ``you`` on every frame's held-out pairs too."""
    assert context.files.frames is not None
    assert context.frames is not None
    options, whole = context.options, context.files.frames.task()
    asked = {item.pair.line for item in context.frames.items}
    whole = replace(whole, pairs=tuple(pair for pair in whole.pairs if pair.line in asked))
    n = min(options.frame_edges, context.model.graph.n_edges)
    searches: dict[str, tuple[Discovery, Task]] = {}
    for name in SEARCHED:
        task = whole.where(variant=name) if any(pair.axis("variant") == name for pair in whole.pairs) else None
        if task is not None:
            part = _measurable(context, task)
            how: dict[str, Any] = {"n_random": options.n_random, "prune": "top-n", "top_n": n}
            searches[name] = search(context, part, folder / name, **how), part
            _own(numbers, name, searches[name][0])
    you = searches.pop(YOU)[0]
    setting = MeasureOptions(batch_size=options.batch_size, n_random=options.n_random, seed=options.seed)
    for name, (other, task) in searches.items():
        source = f"frames/{name}/circuit.json"
        report = evaluate_on(context.model, task, you.circuit, setting, stage=context.stage)
        what = f"faithfulness of the circuit of {YOU} on pairs of {name}"
        faithfulness_of(numbers, f"frames.{name}.f.of_you", report.circuit, what, report.n_pairs, source)
        comparison = compared(context, (YOU, you), (name, other))
        for kind, overlap in (("edges", comparison.edges), ("nodes", comparison.nodes)):
            place, what = f"frames.{slug(name)}.{kind}", f"{kind} shared with the circuit of {YOU}"
            numbers.add(f"{place}_jaccard", overlap.jaccard, f"{what}, of all of either", unit="share", source=source)
            numbers.add(f"{place}_shared", overlap.shared, what, n=min(overlap.a, overlap.b), source=source)
            if (null := overlap.exchanged) is not None:
                text = f"{what}, with heads exchanged within layers; p of as many"
                numbers.add(f"{place}_shared_exchanged", null.mean, text, n=null.n, p=null.p, source=source)


def _measurable(context: Context, task: Task) -> Task:
    """All pairs to search on, and some of those to measure on: many circuits are tried there."""
    fitted, held_out = context.fitted_and_held_out
    if context.options.thorough or fitted == held_out:
        return task
    some = some_of(task.of_split(held_out), context.options.max_pairs)
    return replace(task, pairs=(*task.of_split(fitted).pairs, *some.pairs))


def _own(numbers: StageNumbers, name: str, search: Discovery) -> None:
    source, last = f"frames/{name}/circuit.json", search.reports[-1]
    numbers.add(f"frames.{name}.edges", len(search.circuit), "edges of its circuit", source=source)
    what = f"faithfulness of its own circuit ({last.split})"
    faithfulness_of(numbers, f"frames.{name}.f.own", last.circuit, what, last.n_pairs, source)
    what = "mean over matched random circuits"
    n = len(last.random)
    numbers.add(f"frames.{name}.f.random", last.random_mean, what, unit="share", n=n, source=source)


def _write_pairs(measures: Sequence[PairMeasure], folder: Path) -> None:
    rows = [
        {"base": m.item.pair.axis("base"), "frame": m.item.pair.axis("variant"), "divergence": m.divergence}
        | {"prior": m.prior, "collapses": m.collapses, "mass": (m.mass_a + m.mass_b) / 2}
        for m in measures
    ]
    write_csv(rows, folder / "pairs.csv")


def _figure(numbers: StageNumbers, folder: Path) -> None:
    """Mean D by frame with its interval."""
    rows = {name.split(".")[1]: number for name, number in numbers.numbers.items() if name.endswith(".divergence")}
    write_figures({"frames": level_figure(rows, "Mean D by frame")}, folder, page="frames.html", title="Frames",
                  notes=numbers.notes)  # fmt: skip
