"""Stage ``behaviour`` of a study: what the personas do to the answers, and what paraphrases and controls do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.persona.behaviour import CollapseStudy, PairMeasure, StudyOptions, summarise, write_collapse
from persona_circuits.persona.study.context import Context
from persona_circuits.persona.study.numbers import Estimates, Found, slug

__all__ = ["MEASURES", "mean_of", "run_behaviour"]

SOURCE = "behaviour/collapse.json"
N_EXAMPLES = 3
N_TOP = 4
MEASURES: Mapping[str, tuple[Callable[[PairMeasure], float], str, str]] = {
    "divergence": (lambda one: one.divergence, "mean D", "logits"),
    "divergence_abs": (lambda one: abs(one.divergence), "mean |D|", "logits"),
    "prior_abs": (lambda one: abs(one.prior), "mean |b|", "logits"),
    "collapse": (lambda one: float(one.collapses), "share of pairs with one most likely answer", "share"),
    "agree": (lambda one: float(one.agrees), "share of pairs with |b| >= |D|/2", "share"),
    "reversed": (lambda one: float(one.divergence < 0), "share of pairs with D < 0", "share"),
    "own": (
        lambda one: float(chooses_own(one)),
        "share of pairs in which each persona chooses its own answer",
        "share",
    ),
    "choice_information": (lambda one: one.jensen_shannon, "mean information of the persona about the choice", "nats"),
    "soft_collapse": (lambda one: one.soft_collapse, "mean of 1 - I/Imax", "share"),
    "mass": (lambda one: (one.mass_a + one.mass_b) / 2, "mean probability of all candidates", "share"),
    "low_mass": (lambda one: float(one.low_mass), "share of pairs with candidate mass below 0.2", "share"),
}
MEDIANS: Mapping[str, tuple[Callable[[PairMeasure], float], str]] = {
    "pdr": (lambda one: one.prior_dominance, "median prior dominance |b| / (|b| + |D|/2)"),
    "required_gain": (lambda one: one.required_gain, "median required gain 2|b|/|D|"),
}
RANGES = {"share": (0.0, 1.0), "nats": (0.0, np.inf)}
COMPARED = ("divergence", "divergence_abs", "collapse", "choice_information")


def run_behaviour(context: Context, folder: Path) -> Found:
    """The behavioural study as the ``collapse`` command makes it, its files in ``folder``, and its numbers."""
    options = context.options
    how = StudyOptions("all", options.batch_size, options.n_resamples, seed=options.seed).checked()
    sources = tuple((file.label, file.sha256) for file in (context.files.pairs, context.files.controls) if file)
    model = context.model
    study = summarise(context.measures, how, model=model.name, fingerprint=model.fingerprint, sources=sources)
    write_collapse(study, folder)
    found = behaviour_numbers(study, **context.draws)
    found.extras["examples"] = examples_of([row.measure for row in study.pairs])
    return found


def behaviour_numbers(study: CollapseStudy, *, n_resamples: int = 2000, seed: int = 0) -> Found:
    """The numbers of a behavioural study: all pairs, each control, and all pairs against each control."""
    found = Found()
    draws = {"n_resamples": n_resamples, "seed": seed}
    main = [row.measure for row in study.pairs]
    groups = {"all": main}
    for row in study.control_pairs:
        groups.setdefault(slug(row.measure.item.control), []).append(row.measure)
    for name, measures in groups.items():
        _group(found, name, measures, study.sigma_0, draws)
    for name, measures in groups.items():
        if name != "all":
            _against(found, name, main, measures, draws)
    found.add("behaviour.sigma_0", study.sigma_0, "spread of D over paraphrases", unit="logits", n=study.n_paraphrases,
              source=SOURCE)  # fmt: skip
    shares = [one.prior_share for one in study.questions if one.prior_share is not None]
    if shares:
        about = {"n": len(shares), "unit": "share", "source": SOURCE}
        prior = float(np.mean(shares))
        found.add("behaviour.prior_share", prior, "share of the candidates' variance due to the prior", **about)
        found.add("behaviour.persona_share", 1 - prior, "share of the candidates' variance due to the persona", **about)
    found.notes += study.notes
    return found


def chooses_own(one: PairMeasure) -> bool:
    """Each persona's most likely candidate is among its own declared answers."""
    pair = one.item.pair
    return one.choice_a in pair.answers and one.choice_b in pair.wrong_answers


def mean_of(estimates: Estimates, key: str, measures: Sequence[PairMeasure]) -> dict[str, Any]:
    """The mean of one of ``MEASURES``, its interval within the range that it can have."""
    value, _, unit = MEASURES[key]
    within = (0.0, np.inf) if key.endswith("_abs") else RANGES.get(unit, (-np.inf, np.inf))
    return estimates.mean([value(one) for one in measures], within=within)


def examples_of(measures: Sequence[PairMeasure]) -> list[dict[str, Any]]:
    """Pairs to show: that of the largest D among those with two choices, and the largest and least of the others."""
    apart = sorted((one for one in measures if not one.collapses), key=lambda one: -one.divergence)
    same = sorted((one for one in measures if one.collapses), key=lambda one: -one.divergence)
    chosen = [("apart", one) for one in apart[:1]] + [("collapse", one) for one in same[:1]]
    chosen += [("collapse", one) for one in same[-1:] if len(same) > 1]
    return [{"kind": kind, **_example(one)} for kind, one in chosen[:N_EXAMPLES]]


def _example(one: PairMeasure) -> dict[str, Any]:
    pair = one.item.pair
    sides = [(pair.clean, pair.persona_a, one.log_probs_a), (pair.corrupt, pair.persona_b, one.log_probs_b)]
    return {
        "id": pair.id,
        "answers": [*pair.answers],
        "wrong_answers": [*pair.wrong_answers],
        "divergence": one.divergence,
        "prior": one.prior,
        "sides": [
            {"prompt": prompt, "persona": persona, "top": _top(one.item.candidates, log_probs)}
            for prompt, persona, log_probs in sides
        ],
    }


def _top(candidates: Sequence[str], log_probs: Sequence[float]) -> list[tuple[str, float]]:
    order = sorted(range(len(candidates)), key=lambda place: -log_probs[place])
    return [(candidates[place], float(np.exp(log_probs[place]))) for place in order[:N_TOP]]


def _group(
    found: Found, name: str, measures: Sequence[PairMeasure], sigma: float | None, draws: Mapping[str, int]
) -> None:
    estimates = Estimates([one.item for one in measures], **draws)
    found.add(f"behaviour.{name}.n", len(measures), "pairs", source=SOURCE)
    for key, (value, what, unit) in MEASURES.items():
        p = estimates.flips([value(one) for one in measures]) if key == "divergence" else None
        about: dict[str, Any] = {
            "what": f"{what}; p: sign flips" if p is not None else what,
            "unit": unit,
            "source": SOURCE,
            "p": p,
        }
        found.add(f"behaviour.{name}.{key}", **about, **mean_of(estimates, key, measures))
    for key, (value, what) in MEDIANS.items():
        values = [value(one) for one in measures]
        found.add(f"behaviour.{name}.{key}", what=what, source=SOURCE, **estimates.median(values))
    if sigma is not None:
        quiet = [float(abs(one.divergence) < 2 * sigma) for one in measures]
        what = "share of pairs with |D| < 2 sigma_0"
        found.add(f"behaviour.{name}.no_signal", what=what, unit="share", source=SOURCE, **estimates.share(quiet))


def _against(
    found: Found, name: str, main: Sequence[PairMeasure], others: Sequence[PairMeasure], draws: Mapping[str, int]
) -> None:
    both = [*main, *others]
    estimates = Estimates([one.item for one in both], **draws)
    is_main = np.arange(len(both)) < len(main)
    for key in COMPARED:
        value, what, unit = MEASURES[key]
        about: dict[str, Any] = {"what": f"{what}: the study's pairs minus {name}", "unit": unit, "source": SOURCE}
        difference = estimates.difference([value(one) for one in both], is_main)
        found.add(f"behaviour.all_minus_{name}.{key}", **about, **difference)
