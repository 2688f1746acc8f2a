"""Stage ``prediction`` of a study: whether collapse follows from what is known of a pair in other wordings."""

from __future__ import annotations

from pathlib import Path

from persona_circuits.circuit.figures import write_csv
from persona_circuits.persona.behaviour import predicted
from persona_circuits.persona.study.context import NO_WORDINGS, Context
from persona_circuits.persona.study.numbers import Found, slug
from persona_circuits.persona.study.stages.figures import write_levels

__all__ = ["run_prediction"]

SOURCE = "prediction/predictors.csv"


def run_prediction(context: Context, folder: Path) -> Found:
    """What ``collapse --predict`` says, on the pairs in several wordings with neutral prompts."""
    found = Found()
    if context.wordings is None:
        found.notes.append(NO_WORDINGS)
        return found
    told = predicted(context.worded, **context.draws)
    found.add("prediction.n", told.n, "rows predicted, each from other wordings", source=SOURCE)
    found.add("prediction.collapsed", told.collapsed, "of these have one choice", n=told.n, source=SOURCE)
    found.add("prediction.persona_pairs", told.n_persona_pairs, "persona pairs", source=SOURCE)
    found.add("prediction.questions", told.n_questions, "questions", source=SOURCE)
    rows = []
    for one in told.predictors:
        name, about = f"prediction.{slug(one.name)}", {"unit": "nats", "n": told.n, "source": SOURCE}
        found.add(f"{name}.loss", one.loss.value, f"held-out log loss of {one.name}", estimate=one.loss, **about)
        what = f"log loss of the majority minus that of {one.name}; p: sign flips"
        found.add(f"{name}.gain", one.gain.value, what, estimate=one.gain, p=one.p, **about)
        row = {"predictor": one.name, "loss": one.loss.value, "gain": one.gain.value, "p": one.p}
        if one.behind is not None:
            what = f"log loss of {one.name} minus that of lead and effect"
            found.add(f"{name}.behind", one.behind.value, what, estimate=one.behind, **about)
        rows.append(row)
    write_csv(rows, folder / "predictors.csv")
    chosen = {one.name: f"prediction.{slug(one.name)}.loss" for one in told.predictors}
    write_levels(folder, "prediction", "Held-out log loss of collapse, by what predicts it", found.numbers, chosen)
    return found
