"""The whole study of one model."""

from persona_circuits.persona.study.bias import derived_bias, with_bias
from persona_circuits.persona.study.context import Context, StudyFile, StudyFiles, StudyOptions, axes_of, some_of
from persona_circuits.persona.study.numbers import Estimates, Found, Number, number_rows, slug, with_holm
from persona_circuits.persona.study.predictions import load_plan, outcome_records, outcomes
from persona_circuits.persona.study.report import shown
from persona_circuits.persona.study.run import STAGES, run_study

__all__ = [
    "STAGES",
    "Context",
    "Estimates",
    "Found",
    "Number",
    "StudyFile",
    "StudyFiles",
    "StudyOptions",
    "axes_of",
    "derived_bias",
    "load_plan",
    "number_rows",
    "outcome_records",
    "outcomes",
    "run_study",
    "shown",
    "slug",
    "some_of",
    "with_bias",
    "with_holm",
]
