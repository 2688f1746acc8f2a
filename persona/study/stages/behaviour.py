"""Stage ``behaviour`` of a study: what the personas do to the answers, and what paraphrases and controls do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.persona.behaviour import CollapseStudy, PairMeasure, StudyOptions, summarise, write_collapse
from persona_circuits.persona.study.context import Context
from persona_circuits.persona.study.numbers import Estimates, StageNumbers, slug

__all__ = ["MEASURES", "mean_of", "run_behaviour"]

N_EXAMPLES = 3
N_TOP = 4
MEASURES: Mapping[str, tuple[Callable[[PairMeasure], float], str, str]] = {
    "divergence": (lambda m: m.divergence, "mean D", "logits"),
    "divergence_abs": (lambda m: abs(m.divergence), "mean |D|", "logits"),
    "prior_abs": (lambda m: abs(m.prior), "mean |b|", "logits"),
    "collapse": (lambda m: float(m.collapses), "share of pairs with one most likely answer", "share"),
    "agree": (lambda m: float(m.agrees), "share of pairs with |b| >= |D|/2", "share"),
    "reversed": (lambda m: float(m.divergence < 0), "share of pairs with D < 0", "share"),
    "own": (lambda m: float(chooses_own(m)), "share of pairs in which each persona chooses its own answer", "share"),
    "choice_information": (lambda m: m.jensen_shannon, "mean information of the persona about the choice", "nats"),
    "soft_collapse": (lambda m: m.soft_collapse, "mean of 1 - I/Imax", "share"),
    "mass": (lambda m: (m.mass_a + m.mass_b) / 2, "mean probability of all candidates", "share"),
    "low_mass": (lambda m: float(m.low_mass), "share of pairs with candidate mass below 0.2", "share"),
}
MEDIANS: Mapping[str, tuple[Callable[[PairMeasure], float], str]] = {
    "pdr": (lambda m: m.prior_dominance, "median prior dominance |b| / (|b| + |D|/2)"),
    "required_gain": (lambda m: m.required_gain, "median required gain 2|b|/|D|"),
}
RANGES = {"share": (0.0, 1.0), "nats": (0.0, np.inf)}
COMPARED = ("divergence", "divergence_abs", "collapse", "choice_information")


def run_behaviour(context: Context, folder: Path) -> StageNumbers:
    """The behavioural study as the ``collapse`` command makes it, its files in ``folder``, and its numbers."""
    options = context.options
    how = StudyOptions("all", options.batch_size, options.n_resamples, seed=options.seed).checked()
    sources = tuple((file.label, file.sha256) for file in (context.files.pairs, context.files.controls) if file)
    model = context.model
    study = summarise(context.measures, how, model=model.name, fingerprint=model.fingerprint, sources=sources)
    write_collapse(study, folder)
    numbers = behaviour_numbers(study, **context.draws)
    numbers.extras["examples"] = examples_of([row.measure for row in study.pairs])
    return numbers


def behaviour_numbers(study: CollapseStudy, *, n_resamples: int = 2000, seed: int = 0) -> StageNumbers:
    """The numbers of a behavioural study: all pairs, each control, and all pairs against each control."""
    numbers = StageNumbers("behaviour/collapse.json")
    draws = {"n_resamples": n_resamples, "seed": seed}
    main = [row.measure for row in study.pairs]
    groups = {"all": main}
    for row in study.control_pairs:
        groups.setdefault(slug(row.measure.item.control), []).append(row.measure)
    for name, measures in groups.items():
        _group(numbers, name, measures, study.sigma_0, draws)
    for name, measures in groups.items():
        if name != "all":
            _against(numbers, name, main, measures, draws)
    n = study.n_paraphrases
    numbers.add("behaviour.sigma_0", study.sigma_0, "spread of D over paraphrases", unit="logits", n=n)
    shares = [m.prior_share for m in study.questions if m.prior_share is not None]
    if shares:
        about = {"n": len(shares), "unit": "share"}
        prior = float(np.mean(shares))
        numbers.add("behaviour.prior_share", prior, "share of the candidates' variance due to the prior", **about)
        what = "share of the candidates' variance due to the persona"
        numbers.add("behaviour.persona_share", 1 - prior, what, **about)
    numbers.notes += study.notes
    return numbers


def chooses_own(measure: PairMeasure) -> bool:
    """Each persona's most likely candidate is among its own declared answers."""
    pair = measure.item.pair
    return measure.choice_a in pair.answers and measure.choice_b in pair.wrong_answers


def mean_of(estimates: Estimates, key: str, measures: Sequence[PairMeasure]) -> dict[str, Any]:
    """The mean of one of ``MEASURES``, its interval within the range that it can have."""
    value, _, unit = MEASURES[key]
    within = (0.0, np.inf) if key.endswith("_abs") else RANGES.get(unit, (-np.inf, np.inf))
    return estimates.mean([value(m) for m in measures], within=within)


def examples_of(measures: Sequence[PairMeasure]) -> list[dict[str, Any]]:
    """Pairs to show: that of the largest D among those with two choices, and the largest and least of the others."""
    apart = sorted((m for m in measures if not m.collapses), key=lambda m: -m.divergence)
    same = sorted((m for m in measures if m.collapses), key=lambda m: -m.divergence)
    chosen = [("apart", m) for m in apart[:1]] + [("collapse", m) for m in same[:1]]
    chosen += [("collapse", m) for m in same[-1:] if len(same) > 1]
    return [{"kind": kind, **_example(m)} for kind, m in chosen[:N_EXAMPLES]]


def _example(measure: PairMeasure) -> dict[str, Any]:
    pair = measure.item.pair
    sides = [(pair.clean, pair.persona_a, measure.log_probs_a), (pair.corrupt, pair.persona_b, measure.log_probs_b)]
    return {
        "id": pair.id,
        "answers": [*pair.answers],
        "wrong_answers": [*pair.wrong_answers],
        "divergence": measure.divergence,
        "prior": measure.prior,
        "sides": [
            {"prompt": prompt, "persona": persona, "top": _top(measure.item.candidates, log_probs)}
            for prompt, persona, log_probs in sides
        ],
    }


def _top(candidates: Sequence[str], log_probs: Sequence[float]) -> list[tuple[str, float]]:
    order = sorted(range(len(candidates)), key=lambda place: -log_probs[place])
    return [(candidates[place], float(np.exp(log_probs[place]))) for place in order[:N_TOP]]


def _group(
    numbers: StageNumbers, name: str, measures: Sequence[PairMeasure], sigma: float | None, draws: Mapping[str, int]
) -> None:
    estimates = Estimates([m.item for m in measures], **draws)
    numbers.add(f"behaviour.{name}.n", len(measures), "pairs")
    for key, (value, what, unit) in MEASURES.items():
        p = estimates.flips([value(m) for m in measures]) if key == "divergence" else None
        about: dict[str, Any] = {"what": f"{what}; p: sign flips" if p is not None else what, "unit": unit, "p": p}
        numbers.add(f"behaviour.{name}.{key}", **about, **mean_of(estimates, key, measures))
    for key, (value, what) in MEDIANS.items():
        values = [value(m) for m in measures]
        numbers.add(f"behaviour.{name}.{key}", what=what, **estimates.median(values))
    if sigma is not None:
        quiet = [float(abs(m.divergence) < 2 * sigma) for m in measures]
        what = "share of pairs with |D| < 2 sigma_0"
        numbers.add(f"behaviour.{name}.no_signal", what=what, unit="share", **estimates.share(quiet))


def _against(
    numbers: StageNumbers,
    name: str,
    main: Sequence[PairMeasure],
    others: Sequence[PairMeasure],
    draws: Mapping[str, int],
) -> None:
    every = [*main, *others]
    estimates = Estimates([m.item for m in every], **draws)
    is_main = np.arange(len(every)) < len(main)
    for key in COMPARED:
        value, what, unit = MEASURES[key]
        about: dict[str, Any] = {"what": f"{what}: the study's pairs minus {name}", "unit": unit}
        difference = estimates.difference([value(m) for m in every], is_main)
        numbers.add(f"behaviour.all_minus_{name}.{key}", **about, **difference)
