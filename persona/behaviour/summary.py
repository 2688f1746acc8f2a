"""Summaries of a collapse study, by group and by question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from persona_circuits import metrics
from persona_circuits.circuit.figures import picked
from persona_circuits.circuit.task import forms_left_out
from persona_circuits.persona.behaviour.measure import PairMeasure
from persona_circuits.persona.behaviour.options import StudyOptions
from persona_circuits.persona.behaviour.orders import incomplete, order_effect
from persona_circuits.persona.behaviour.results import (
    AXES,
    PARAPHRASE,
    CollapseStudy,
    Group,
    PairRow,
    QuestionSummary,
    Summary,
)
from persona_circuits.persona.behaviour.wordings import null_divergences, usual_rows
from persona_circuits.persona.data import Estimate, sign_flip, two_way_difference, two_way_mean
from persona_circuits.persona.data.items import shared_by
from persona_circuits.persona.data.words import mean_words, said

__all__ = ["summarise"]

FEW_CLUSTERS = 8
SHARE = (0.0, 1.0)
NORMAL_MEDIAN = 1.4826022185056018  # standard deviation over median absolute value, of a normal distribution about 0


def summarise(
    measures: Sequence[PairMeasure],
    options: StudyOptions,
    *,
    model: str,
    fingerprint: str = "",
    sources: tuple[tuple[str, str], ...] = (),
) -> CollapseStudy:
    """The study from its measures, no model involved."""
    alike, usual = [m for m in measures if m.item.control == PARAPHRASE], usual_rows(measures)
    null, sigma = null_divergences(alike, usual), _sigma(alike, usual)
    sigmas = {n: _sigma(alike, n) for n in {len(m.row_divergences) for m in measures}}
    rows = tuple(_row(measure, sigmas[len(measure.row_divergences)], options.bias_cut) for measure in measures)
    main = tuple(row for row in rows if row.measure.item.control == "none")
    others = tuple(row for row in rows if row.measure.item.control != "none")
    paraphrases = [row for row in others if row.measure.item.control == PARAPHRASE]
    return CollapseStudy(
        model=model,
        fingerprint=fingerprint,
        sources=sources,
        options=options,
        sigma_0=sigma,
        sigma_0_interval=_sigma_interval(paraphrases, null, options),
        sigma_0_median=float(np.median(np.abs(null)) * NORMAL_MEDIAN) if null else None,
        n_paraphrases=len(null),
        overall=_group("all", "all", main, paraphrases, options, sigma),
        groups=tuple(_groups(main, paraphrases, options, sigma)),
        controls=tuple(_control_groups(others, options, sigma)),
        questions=_questions(main, paraphrases),
        placement=_placement(main, options),
        pairs=main,
        control_pairs=others,
        notes=(*_notes(main, sigma), *_short_null(main, alike)),
        rows_per_pair=usual,
        order_effect=order_effect([row.measure for row in main]),
        words=mean_words([row.measure.words for row in main]),
    )


def _sigma(paraphrases: Sequence[PairMeasure], n_rows: int) -> float | None:
    """The spread of D over paraphrases, each the mean over so many rows."""
    null = torch.tensor(null_divergences(paraphrases, max(n_rows, 1)), dtype=torch.float64)
    return metrics.paraphrase_null(null).item() if len(null) else None


def _short_null(main: Sequence[PairRow], paraphrases: Sequence[PairMeasure]) -> list[str]:
    rows = [len(row.measure.row_divergences) for row in main]
    short = sum(len(m.row_divergences) < min(rows) for m in paraphrases)
    if not short:
        return []
    return [
        f"{short} of {len(paraphrases)} paraphrase groups have fewer rows than any pair ({min(rows)}): their mean D "
        "varies more than that of pairs, so sigma_0 is too large rather than too small"
    ]


def _sigma_interval(paraphrases: Sequence[PairRow], null: Sequence[float], options: StudyOptions) -> Estimate | None:
    """The roots of the ends of the mean square's interval."""
    shared = shared_by([row.measure.item for row in paraphrases])
    draws: dict[str, Any] = {"n_resamples": options.n_resamples, "seed": options.seed}
    estimate = two_way_mean([value**2 for value in null], *shared, within=(0.0, math.inf), **draws)
    if estimate is None:
        return None
    ends = (None if end is None else end**0.5 for end in (estimate.low, estimate.high))
    return Estimate(estimate.value**0.5, *ends)


def _row(measure: PairMeasure, sigma: float | None, cut: float) -> PairRow:
    declared = measure.item.axes.get("bias", "")
    bias, source = (declared, "file") if declared else ("unknown", "none")
    if measure.neutral is not None:
        bias, source = "high" if measure.neutral.lead >= cut else "low", "neutral"
    return PairRow(measure, bias, source, _outcome(measure, sigma))


def _outcome(measure: PairMeasure, sigma: float | None) -> str:
    if sigma is not None and abs(measure.divergence) < 2 * sigma:
        return "no signal"
    if measure.divergence < 0:
        return "reversed"
    return "collapse" if measure.collapses else "apart"


def _groups(
    main: Sequence[PairRow], paraphrases: Sequence[PairRow], options: StudyOptions, sigma: float | None
) -> list[Group]:
    """One group per value of every axis on which the pairs differ, values in alphabetic order."""
    groups = []
    for axis in AXES:
        values = sorted({row.axis(axis) for row in main})
        for value in values if len(values) > 1 else ():
            inside = [row for row in main if row.axis(axis) == value]
            groups.append(_group(axis, value or "not given", inside, paraphrases, options, sigma))
    return groups


def _control_groups(others: Sequence[PairRow], options: StudyOptions, sigma: float | None) -> list[Group]:
    names = dict.fromkeys(row.measure.item.control for row in others)
    return [
        _group("control", name, [r for r in others if r.measure.item.control == name], (), options, sigma)
        for name in names
    ]


def _group(
    axis: str,
    value: str,
    rows: Sequence[PairRow],
    paraphrases: Sequence[PairRow],
    options: StudyOptions,
    sigma: float | None,
) -> Group:
    matched = [row for row in paraphrases if row.axis(axis) == value]
    beside = matched or paraphrases
    control = _summary(beside, options, sigma) if beside else None
    return Group(axis, value, _summary(rows, options, sigma), control, bool(matched) or axis == "all")


def _summary(rows: Sequence[PairRow], options: StudyOptions, sigma: float | None) -> Summary:
    measures = [row.measure for row in rows]
    personas, questions = shared_by([measure.item for measure in measures])
    draws = {"n_resamples": options.n_resamples, "seed": options.seed}

    def mean(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
        estimate = two_way_mean(values, personas, questions, within=within, **draws)
        assert estimate is not None, "a group has pairs"
        return estimate

    d = [measure.divergence for measure in measures]
    p_zero = sign_flip(d, personas, questions, **draws)
    assert p_zero is not None, "a group has pairs"
    return Summary(
        n=len(rows),
        n_persona_pairs=len({measure.item.persona_pair for measure in measures}),
        n_questions=len(set(questions)),
        divergence=mean(d),
        p_zero=p_zero,
        prior=mean([measure.prior for measure in measures]),
        dominance=_quartiles([measure.prior_dominance for measure in measures]),
        collapse=mean([float(measure.collapses) for measure in measures], SHARE),
        agree=_mean([measure.agrees for measure in measures]),
        reversed=_mean([measure.divergence < 0 for measure in measures]),
        no_signal=None if sigma is None else _mean([row.outcome == "no signal" for row in rows]),
        jensen_shannon=mean([measure.jensen_shannon for measure in measures], (0.0, math.inf)),
        soft_collapse=_mean([measure.soft_collapse for measure in measures]),
        mass=_mean([(measure.mass_a + measure.mass_b) / 2 for measure in measures]),
        low_mass=_mean([measure.low_mass for measure in measures]),
    )


def _quartiles(values: Sequence[float]) -> tuple[float, float, float] | None:
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return None
    low, middle, high = np.percentile(known, (25, 50, 75))
    return float(low), float(middle), float(high)


def _mean(values: Sequence[float | bool]) -> float:
    return float(np.mean(values))


def _questions(main: Sequence[PairRow], paraphrases: Sequence[PairRow]) -> tuple[QuestionSummary, ...]:
    names = sorted({row.measure.item.question for row in main})
    return tuple(
        _question(name, *([r for r in rows if r.measure.item.question == name] for rows in (main, paraphrases)))
        for name in names
    )


def _question(name: str, rows: Sequence[PairRow], paraphrases: Sequence[PairRow]) -> QuestionSummary:
    measures, controls = [row.measure for row in rows], [row.measure for row in paraphrases]
    leads = [measure.neutral.lead for measure in measures if measure.neutral is not None]
    logits = _persona_logits(measures)
    biases = {row.bias for row in rows}
    return QuestionSummary(
        question=name,
        domain=measures[0].item.axes.get("domain", ""),
        n=len(measures),
        n_personas=len({p for m in measures for p in (m.item.pair.persona_a, m.item.pair.persona_b) if p}),
        divergence=_mean([measure.divergence for measure in measures]),
        prior=_mean([measure.prior for measure in measures]),
        neutral_lead=_mean(leads) if leads else None,
        bias=biases.pop() if len(biases) == 1 else "mixed",
        collapse=_mean([measure.collapses for measure in measures]),
        mass=_mean([(measure.mass_a + measure.mass_b) / 2 for measure in measures]),
        **_many_personas(logits),
        paraphrase_n=len(controls),
        paraphrase_collapse=_mean([m.collapses for m in controls]) if controls else None,
        paraphrase_soft_collapse=_mean([m.soft_collapse for m in controls]) if controls else None,
    )


def _persona_logits(measures: Sequence[PairMeasure]) -> torch.Tensor | None:
    """``[persona, candidate]``, each the mean over its prompts; None without two personas and one candidate list."""
    order = sorted(measures[0].item.candidates)
    if any(sorted(measure.item.candidates) != order for measure in measures):
        return None
    by_persona: dict[str, list[list[float]]] = {}
    for measure in measures:
        pair = measure.item.pair
        for persona, side in ((pair.persona_a, "a"), (pair.persona_b, "b")):
            by_persona.setdefault(persona, []).append(measure.log_probs(side, order))
    if len(by_persona) < 2 or "" in by_persona:
        return None
    means = [np.mean(by_persona[persona], axis=0).tolist() for persona in sorted(by_persona)]
    return torch.tensor(means, dtype=torch.float64)


def _many_personas(logits: torch.Tensor | None) -> dict[str, float | None]:
    measures = {
        **picked(metrics, "modal_share", "effective_preferences", "choice_information", "soft_collapse"),
        "prior_share": lambda values: metrics.variance_shares(values).prior,
    }
    return {name: None if logits is None else measure(logits).item() for name, measure in measures.items()}


def _placement(main: Sequence[PairRow], options: StudyOptions) -> Estimate | None:
    placed = [row for row in main if row.axis("placement") in ("early", "late")]
    d, is_late = [row.measure.divergence for row in placed], [row.axis("placement") == "late" for row in placed]
    shared = shared_by([row.measure.item for row in placed])
    return two_way_difference(d, is_late, *shared, n_resamples=options.n_resamples, seed=options.seed)


def _notes(main: Sequence[PairRow], sigma: float | None) -> list[str]:
    """What a reader of the numbers must know."""
    notes = []
    if sigma is None:
        notes.append("no paraphrase controls: sigma_0 is unknown, so no pair can be called 'no signal'")
    sources = {row.bias_source for row in main}
    for source, text in (
        ("file", "the bias bin is the pair file's own where no neutral wording was left"),
        ("none", "the bias bin is unknown where there is neither a neutral wording nor a 'bias' in the file"),
    ):
        if source in sources:
            notes.append(f"{text} ({sum(row.bias_source == source for row in main)} of {len(main)} pairs)")
    divergences = [row.measure.divergence for row in main]
    if turned := sum(value < 0 for value in divergences):
        notes.append(f"D is below zero on {turned} of {len(main)} pairs: their personas prefer the other way")
    if sum(divergences) < 0:
        notes.append("the mean D is below zero: see whether clean and corrupt, or both answers, changed places")
    low = sum(row.measure.low_mass for row in main)
    if low:
        instead = said(mean_words([row.measure.words for row in main]), 3)
        notes.append(
            f"{low} of {len(main)} pairs have candidate mass below 0.2: there the question is at fault; over all pairs "
            f"the model would rather say {instead}: see persona-circuits formats"
        )
    if few := incomplete([row.measure for row in main]):
        notes.append(
            f"{few} of {len(main)} pairs list their options and are not asked in all cyclic orders: one order is no "
            "measurement, since the place in the list counts, too"
        )
    n_personas = len({row.measure.item.persona_pair for row in main})
    if n_personas < FEW_CLUSTERS:
        least = 2.0 ** (1 - n_personas)
        notes.append(f"{n_personas} persona pair(s) only: the p of D = 0 can hardly fall below {least:.2g}")
    notes += forms_left_out([row.measure.left_out for row in main])
    if any(row.measure.item.names_no_more for row in main):
        notes.append("some pairs name no further candidates: collapse there is over the two declared sides alone")
    return notes
