"""Stage ``causes`` of a study: why pairs collapse or do not, how often causal tests agree, and verdicts are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from persona_circuits.persona.data import ItemFile
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.explanation import (
    CLAIMS,
    PLACES,
    TESTS,
    VERDICTS,
    Explained,
    ExplainOptions,
    Explanation,
    explain,
    fits,
    write_calibration,
    write_explanation,
)
from persona_circuits.persona.explanation.calibration import cluster_of
from persona_circuits.persona.study.context import Context, axes_of
from persona_circuits.persona.study.numbers import Estimates, StageNumbers, slug

__all__ = ["run_causes"]

MEANS = {"signal_persona": "signal_persona", "signal_answer": "signal_answer", "alignment": "alignment",
         "kappa": "cancellation"}  # fmt: skip


def run_causes(context: Context, folder: Path) -> StageNumbers:
    """Every pair explained as the ``explain`` command does, its files in ``folder``, and its numbers."""
    options = context.options
    by = tuple(axes_of(context.main)) or ("question",)
    how = ExplainOptions(by, "all", options.batch_size, options.n_resamples, True, options.seed)
    controls, state = _controls(context), context.kept("explain.state")
    new: Literal["new"] | None = None if context.wordings is None else "new"
    study = explain(
        context.model,
        context.studied,
        controls=controls,
        calibration=new,
        options=how,
        state=state,
        stage=context.stage,
    )
    write_explanation(study, folder)
    if study.calibration is not None:
        write_calibration(study.calibration, folder / "calibration.json")
    numbers = causes_numbers(study, axes_of(context.main), **context.draws)
    _rates(numbers, study, **context.draws)
    numbers.extras["verdicts"] = {row.item.pair.id: [row.verdict.name, row.verdict.why] for row in study.pairs}
    return numbers


def causes_numbers(
    study: Explanation, axes: Mapping[str, Sequence[str]], *, n_resamples: int = 2000, seed: int = 0
) -> StageNumbers:
    """Shares of verdicts by group, causal tests, truth, and the signal by layer (``where.signal``, ``where.eta``)."""
    numbers, draws = StageNumbers("causes/explain.json"), {"n_resamples": n_resamples, "seed": seed}
    rows = study.pairs
    subjects: dict[str, Sequence[Explained]] = {"all": rows}
    subjects["collapsed"] = [row for row in rows if row.measure.collapses]
    for row in study.control_pairs:
        name = f"control.{slug(row.item.control)}"
        subjects[name] = [*subjects.get(name, ()), row]
    for axis, values in axes.items():
        for value in values:
            subjects[f"{slug(axis)}.{slug(value)}"] = [row for row in rows if row.label(axis) == value]
    for name, here in subjects.items():
        if here:
            _shares(numbers, name, here, draws)
    _means(numbers, rows, draws)
    _tests(numbers, rows, study)
    _truth(numbers, study, draws)
    _by_layer(numbers, rows)
    numbers.notes += study.notes
    return numbers


def _controls(context: Context) -> ItemFile | None:
    """The file's controls, and, with several wordings, pairs of two personas that have the same declared answer."""
    file = context.controls
    if context.wordings is None:
        return file
    controls = file or replace(context.wordings, items=())
    return replace(controls, items=(*controls.items, *same_side(context.wordings.items)))


def same_side(items: Sequence[Item]) -> list[Item]:
    """Pairs made of these prompts: two personas with the same declared answer to the question, a row for each two."""
    sides: dict[tuple[str, object, object, tuple[str, ...], tuple[str, ...]], list[tuple[str, str, Item]]] = {}
    for item in items:
        source = item.pair
        key = (item.question, source.row.get("wording"), source.row.get("n_tokens"), item.candidates)
        sides.setdefault((*key, source.answers), []).append((source.persona_a, source.clean, item))
        sides.setdefault((*key, source.wrong_answers), []).append((source.persona_b, source.corrupt, item))
    by_name: dict[tuple[str, ...], Item] = {}
    for (_, _, _, _, own), prompts in sides.items():
        for (a, clean, item), (b, corrupt, _) in combinations(prompts, 2):
            name = tuple(sorted((a, b)))
            if a == b or name in by_name:
                continue
            others = tuple(text for text in item.candidates if text not in own)[:1]
            about = {"persona_a": a, "persona_b": b, "id": f"same {len(by_name)}", "control": "same side"}
            pair = replace(item.pair.bare(), clean=clean, corrupt=corrupt, answers=own, wrong_answers=others,
                           row={**item.pair.row, **about}, id=about["id"], persona_a=a, persona_b=b)  # fmt: skip
            by_name[name] = Item(pair, item.candidates, {**item.axes, "control": "same side"})
    return [*by_name.values()]


def _rates(numbers: StageNumbers, study: Explanation, **draws: int) -> None:
    """How often controls that set no threshold have each verdict, and which verdicts may be given."""
    if (calibration := study.calibration) is None:
        return
    for rate in study.rates:
        name = f"causes.rate.{slug(rate.verdict)}.{slug(rate.kind)}"
        what = f"share of held-out controls ({rate.kind}) with {rate.verdict}"
        what += "; two one-sided 95 % limits by persona pair"
        about = {"low": rate.lower, "high": rate.upper, "n": rate.n, "source": "causes/rates.csv"}
        numbers.add(name, rate.share, what, unit="share", **about)
    for verdict, cut in calibration.cuts.items():
        name = f"causes.cut.{slug(verdict)}"
        numbers.add(f"{name}.given", calibration.gives(verdict), f"whether {verdict} is given on this model")
        numbers.add(f"{name}.least", cut.least, "least strength at which it is given", n=cut.n)
        what = "rate that the training controls promise"
        numbers.add(f"{name}.promise", cut.promise, what, unit="share", n=cut.clusters)
    rows = study.pairs
    share = Estimates([row.item for row in rows], **draws).share([float(row.verdict.name in CLAIMS) for row in rows])
    what = "share of pairs with a verdict that says something of a persona"
    numbers.add("causes.claimed", what=what, unit="share", **share)
    training = set(calibration.training)
    controls = [row for row in study.control_pairs if cluster_of(row.item) not in training]
    if controls:
        claimed = [float(row.verdict.name in CLAIMS) for row in controls]
        share = Estimates([row.item for row in controls], **draws).share(claimed)
        numbers.add("causes.claimed.controls", what="the same of held-out controls", unit="share", **share)
        gap = numbers.numbers["causes.claimed"].value - numbers.numbers["causes.claimed.controls"].value
        numbers.add("causes.claimed_minus_controls", gap, "the one share minus the other", unit="share")


def _shares(numbers: StageNumbers, subject: str, rows: Sequence[Explained], draws: Mapping[str, int]) -> None:
    estimates = Estimates([row.item for row in rows], **draws)
    numbers.add(f"causes.{subject}.n", len(rows), "pairs")
    for verdict in VERDICTS:
        share = estimates.share([float(row.verdict.name == verdict) for row in rows])
        what = f"share of pairs whose verdict is {verdict}"
        numbers.add(f"causes.{subject}.{slug(verdict)}", what=what, unit="share", **share)


def _means(numbers: StageNumbers, rows: Sequence[Explained], draws: Mapping[str, int]) -> None:
    estimates = Estimates([row.item for row in rows], **draws)
    for key, field in MEANS.items():
        values = [np.nan if (x := getattr(row.numbers, field)) is None else x for row in rows]
        numbers.add(f"causes.all.{key}", what=f"mean {key}", **estimates.mean(values))
    access = [np.nan if row.numbers.access is None else row.numbers.access for row in rows]
    numbers.add("causes.all.access", what="median access d ln|D| / dc", **estimates.median(access))


def _tests(numbers: StageNumbers, rows: Sequence[Explained], study: Explanation) -> None:
    ran = [row for row in rows if row.outcome.agrees is not None]
    groups = {slug(verdict): [row for row in ran if row.verdict.name == verdict] for verdict in TESTS} | {"all": ran}
    for name, here in groups.items():
        if here:
            share = float(np.mean([bool(row.outcome.agrees) for row in here]))
            what = "share of causal tests that agree with the verdict"
            numbers.add(f"causes.test.{name}", share, what, unit="share", n=len(here))
    for test in study.tests.values():
        if test.ran and test.null_ran:
            what = f"share of paraphrases on which the same test agrees; p: pairs against these ({test.test})"
            name = f"causes.test.{slug(test.cause)}.paraphrases"
            numbers.add(name, test.null_share, what, unit="share", n=test.null_ran, p=test.p)


def _truth(numbers: StageNumbers, study: Explanation, draws: Mapping[str, int]) -> None:
    """Over the study's pairs and its controls except paraphrases; interval of the share, p by permuted verdicts."""
    given = study.agreement
    if given is None:
        return
    judged = [row for row in (*study.pairs, *study.control_pairs) if row.expected is not None]
    right = [float(fits(str(row.expected), row.verdict.name)) for row in judged]
    share = Estimates([row.item for row in judged], **draws).share(right)
    what = f"share of verdicts that are what the generator sets; p: by permuting {given.permuted}"
    numbers.add("causes.truth.share", what=what, unit="share", p=given.p, **share)
    numbers.add("causes.truth.chance", given.chance, "share by chance", unit="share", n=given.n)
    numbers.add("causes.truth.kappa", given.kappa, "Cohen's kappa of verdict and generator", n=given.n)
    numbers.add("causes.truth.correct", sum(right), "verdicts that are what the generator sets", n=given.n)
    numbers.add("causes.truth.n", given.n, "verdicts that the generator can judge")


def _by_layer(numbers: StageNumbers, rows: Sequence[Explained]) -> None:
    """Signal and readout alignment by layer, means over pairs."""
    for place in PLACES:
        curve = np.mean([row.inside.signal[place] for row in rows], axis=0)
        _curve(numbers, f"where.signal.{place}", curve.tolist(), f"mean signal at the {place}", len(rows))
        numbers.add(f"where.signal.{place}.most", float(curve.max()), "the largest of any layer")
        numbers.add(f"where.signal.{place}.most_at", int(curve.argmax()), "the layer of it", unit="layer")
    eta = np.mean([row.inside.alignment for row in rows], axis=0)
    _curve(numbers, "where.eta", eta.tolist(), "mean readout alignment at the answer", len(rows))


def _curve(numbers: StageNumbers, name: str, values: Sequence[float], what: str, n: int) -> None:
    for layer, value in enumerate(values):
        numbers.add(f"{name}.{layer}", float(value), f"{what}, layer {layer}", n=n)
