"""Stage ``prediction`` of a study: whether collapse follows from what is known of a pair in other wordings."""

from __future__ import annotations

from pathlib import Path

from persona_circuits.circuit.figures import write_csv
from persona_circuits.persona.behaviour import predicted
from persona_circuits.persona.study.context import NO_WORDINGS, Context
from persona_circuits.persona.study.numbers import StageNumbers, slug
from persona_circuits.persona.study.stages.figures import write_levels

__all__ = ["run_prediction"]


def run_prediction(context: Context, folder: Path) -> StageNumbers:
    """What ``collapse --predict`` says, on the pairs in several wordings with neutral prompts."""
    numbers = StageNumbers("prediction/predictors.csv")
    if context.wordings is None:
        numbers.notes.append(NO_WORDINGS)
        return numbers
    prediction = predicted(context.worded, **context.draws)
    numbers.add("prediction.n", prediction.n, "rows predicted, each from other wordings")
    numbers.add("prediction.collapsed", prediction.collapsed, "of these have one choice", n=prediction.n)
    numbers.add("prediction.persona_pairs", prediction.n_persona_pairs, "persona pairs")
    numbers.add("prediction.questions", prediction.n_questions, "questions")
    rows = []
    for predictor in prediction.predictors:
        name, about = f"prediction.{slug(predictor.name)}", {"unit": "nats", "n": prediction.n}
        loss, gain, p = predictor.loss, predictor.gain, predictor.p
        numbers.add(f"{name}.loss", loss.value, f"held-out log loss of {predictor.name}", estimate=loss, **about)
        what = f"log loss of the majority minus that of {predictor.name}; p: sign flips"
        numbers.add(f"{name}.gain", gain.value, what, estimate=gain, p=p, **about)
        row = {"predictor": predictor.name, "loss": loss.value, "gain": gain.value, "p": p}
        if predictor.behind is not None:
            what = f"log loss of {predictor.name} minus that of lead and effect"
            numbers.add(f"{name}.behind", predictor.behind.value, what, estimate=predictor.behind, **about)
        rows.append(row)
    write_csv(rows, folder / "predictors.csv")
    chosen = {predictor.name: f"prediction.{slug(predictor.name)}.loss" for predictor in prediction.predictors}
    write_levels(folder, "prediction", "Held-out log loss of collapse, by what predicts it", numbers.numbers, chosen)
    return numbers
