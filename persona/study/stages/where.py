"""Stage ``where`` of a study: what can be read at which layer and position, and what the stream there still does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from persona_circuits.circuit.discovery import pairs_of
from persona_circuits.circuit.evaluation import persistence
from persona_circuits.circuit.figures import heat_map, write_csv, write_figures
from persona_circuits.circuit.statistics import Clusters, Interval, PairSample
from persona_circuits.circuit.storage import Kept, search_of
from persona_circuits.metrics import METRICS
from persona_circuits.persona.data import shared_positions
from persona_circuits.persona.lens import LensOptions, LensStudy, study_lens, write_lens
from persona_circuits.persona.probing import ProbeOptions, ProbeStudy, study_probes, write_probes
from persona_circuits.persona.study.context import PASSES, Context, some_of
from persona_circuits.persona.study.numbers import StageNumbers, slug

__all__ = ["run_where"]

PARTS = ("before", "contrast", "after", "last")
HALF = 0.5


def run_where(context: Context, folder: Path) -> StageNumbers:
    """Probes, the logit lens and causal persistence, each with its files in a folder of its name."""
    numbers = StageNumbers()
    with Kept(context.kept("where.state"), search_of(context.digest("where"))) as kept:
        for name, run in (("persistence", partial(_persistence, kept)), ("probe", _probe), ("lens", _lens)):
            (folder / name).mkdir()
            with numbers.attempt(name):
                run(context, folder / name, numbers)
            if not any((folder / name).iterdir()):
                (folder / name).rmdir()
    return numbers


def probe_numbers(numbers: StageNumbers, study: ProbeStudy) -> None:
    """Every probe at its chosen layer with its controls; traits as their mean."""
    source = "where/probe/probes.csv"
    for cell in study.cells:
        name = f"where.probe.{slug(cell.kind)}.{slug(cell.hold_out)}.{slug(cell.position)}"
        best, controls = cell.best.balanced, cell.controls
        what = f"balanced accuracy of {cell.kind}, held out by {cell.hold_out}, at {cell.position}"
        numbers.add(f"{name}.balanced", best.value, what, estimate=best, unit="share", n=cell.n, source=source)
        numbers.add(f"{name}.chance", cell.chance, "by guessing", unit="share", source=source)
        layer, text = study.at[cell.layer], "layer chosen on training folds"
        numbers.add(f"{name}.layer", layer, text, unit="layer", source=source)
        selectivity = controls.selectivity(best.value)
        numbers.add(f"{name}.selectivity", selectivity, "probe minus control task", unit="share", source=source)
        for key in ("shuffled", "task", "dropped", "length"):
            control = getattr(controls, key)
            if control is not None:
                what = f"balanced accuracy of the control {key}"
                numbers.add(f"{name}.{key}", control.value, what, estimate=control, unit="share", source=source)
    numbers.notes += [f"probe: {note}" for note in study.notes]


def lens_numbers(numbers: StageNumbers, study: LensStudy) -> None:
    """D by layer at the last token, where it is decided, and which kinds of nodes write it."""
    place, n = len(study.positions) - 1, len(study.items)
    for layer, row in enumerate(study.curves["divergence"]):
        what = f"D read by the logit lens after {layer} blocks"
        about = {"unit": "logits", "n": n, "source": "where/lens/curves.csv"}
        numbers.add(f"where.lens.divergence.{layer}", row[place].value, what, estimate=row[place], **about)
    decided = study.decisions
    for key, what in (
        ("pivot", "first layer with half of D"),
        ("jump", "block that moves D most"),
        ("stable_from", "layer from which D keeps its sign"),
    ):
        values = [x for decision in decided if (x := getattr(decision, key)) is not None]
        _median(numbers, f"where.lens.{key}", values, what)
    choices = [max(decision.choice_a, decision.choice_b) for decision in decided]
    _median(numbers, "where.lens.choice", choices, "layer from which both choices stay")
    _parts(numbers, study)
    numbers.notes += [f"lens: {note}" for note in study.notes]


def persistence_numbers(
    numbers: StageNumbers,
    names: Sequence[str],
    values: np.ndarray,
    intervals: Sequence[Sequence[Interval | None]],
    n: int,
) -> None:
    """Causal persistence by part and layer, and where the last token and the contrast hold half."""
    source = "where/persistence/persistence.csv"
    for t, part in enumerate(names):
        for layer in range(len(values)):
            what = f"share of D in the stream into layer {layer} at: {part}"
            about = {"estimate": intervals[layer][t], "unit": "share", "n": n, "source": source}
            numbers.add(f"where.persistence.{slug(part)}.{layer}", float(values[layer, t]), what, **about)
    for part, name, last in (("last", "answer_half", False), ("contrast", "contrast_half", True)):
        here = np.flatnonzero(values[:, names.index(part)] >= HALF).tolist() if part in names else []
        if len(here):
            what = f"{'last' if last else 'first'} layer at which {part} holds half of the causal effect"
            numbers.add(f"where.persistence.{name}", int(here[-1 if last else 0]), what, unit="layer", source=source)


def _probe(context: Context, folder: Path, numbers: StageNumbers) -> None:
    """Unless thorough, held out by question and by split alone, at the persona's end and the prompt's."""
    options, examples = context.options, context.examples()
    every = context.model.graph.n_layers if options.quick else options.probe_every
    draws = max(100, options.n_resamples // 4)
    how = ProbeOptions(every=every, n_resamples=draws, batch_size=options.batch_size, seed=options.seed)
    if not options.thorough:
        there = shared_positions(examples)
        positions = tuple(name for name in ("persona-end", "prompt-end") if name in there)
        is_split = context.fitted_and_held_out == ("train", "test")
        how = replace(
            how, hold_outs=("question", "split") if is_split else ("question",), positions=positions, folds=3, repeats=1
        )
    study = study_probes(context.model, examples, personas=context.personas, options=how, stage=context.stage)
    write_probes(study, folder)
    probe_numbers(numbers, study)


def _lens(context: Context, folder: Path, numbers: StageNumbers) -> None:
    options = context.options
    how = LensOptions((), options.batch_size, options.n_resamples, options.seed)
    study = study_lens(
        context.model,
        context.examples(context.fitted_and_held_out[1]),
        options=how,
        progress=context.stage("reading layers"),
    )
    write_lens(study, folder)
    lens_numbers(numbers, study)


def _persistence(kept: Kept, context: Context, folder: Path, numbers: StageNumbers) -> None:
    metric, options = METRICS["persona-divergence"], context.options
    task = some_of(context.plain_task, PASSES * options.max_pairs)
    context.stage("causal persistence")
    prepared = pairs_of(context.model, task, metric, batch_size=options.batch_size)
    batches = list(prepared())
    present = {name for item in batches for name in item.batch.span_names}
    names = tuple(name for name in PARTS if name in present)
    sample = PairSample(clusters=Clusters.of(task.pairs), seed=options.seed)
    values, intervals = persistence(context.model, batches, metric, names, sample, kept)
    layers = [*map(str, range(len(values) - 1)), "final"]
    rows = [
        {"layer": layer, "part": name, "persistence": values[i, t]}
        | {end: getattr(intervals[i][t], end, None) for end in ("low", "high", "by")}
        for i, layer in enumerate(layers)
        for t, name in enumerate(names)
    ]
    write_csv(rows, folder / "persistence.csv")
    figure = heat_map(
        values.tolist(),
        layers,
        list(names),
        title="Share of the persona effect that comes with the stream (causal persistence)",
        x="part of the prompt",
        y="into layer",
        unit="share of the persona effect (D)",
        numbers=".2f",
        upward=True,
    )
    write_figures({"persistence": figure}, folder, page="persistence.html", title="Causal persistence")
    persistence_numbers(numbers, names, values, intervals, len(task.pairs))


def _median(numbers: StageNumbers, name: str, values: Sequence[int], what: str) -> None:
    if values:
        about = {"unit": "layer", "n": len(values), "source": "where/lens/pairs.csv"}
        low, middle, high = (float(x) for x in np.percentile(values, (25, 50, 75)))
        numbers.add(name, middle, f"{what}: median pair (middle half {low:g} to {high:g})", **about)


def _parts(numbers: StageNumbers, study: LensStudy) -> None:
    """What heads, MLPs, the embedding and the attention biases write straight into the answer, as shares of D."""
    attribution, graph = study.attribution, study.graph
    if not attribution.conserved:
        return
    sums = attribution.values.sum(0)
    if abs(sums.sum()) < 1e-9:
        return
    kinds = [{"head": "heads", "mlp": "mlps"}.get(node.kind, node.kind) for node in graph.src_nodes]
    kinds += ["biases"] * graph.n_layers
    for kind in ("heads", "mlps", "input", "biases"):
        share = float(sum(x for x, name in zip(sums, kinds, strict=True) if name == kind) / sums.sum())
        what = f"direct contributions of {kind} to D, as a share of D"
        numbers.add(f"where.lens.from.{kind}", share, what, unit="share", source="where/lens/components.csv")
