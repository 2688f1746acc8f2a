"""What personas do to choices, and how often nothing."""

from persona_circuits.persona.behaviour.collapse import study_collapse
from persona_circuits.persona.behaviour.figures import (
    collapse_figures,
    divergence_by_placement,
    divergence_by_prior,
)
from persona_circuits.persona.behaviour.measure import PairMeasure, fitting_items, measure_pairs
from persona_circuits.persona.behaviour.options import PARAPHRASE, CollapseStudy, StudyOptions
from persona_circuits.persona.behaviour.report import TABLE, collapse_record, group_rows, write_collapse
from persona_circuits.persona.behaviour.summary import summarise

__all__ = [
    "PARAPHRASE",
    "TABLE",
    "CollapseStudy",
    "PairMeasure",
    "StudyOptions",
    "collapse_figures",
    "collapse_record",
    "divergence_by_placement",
    "divergence_by_prior",
    "fitting_items",
    "group_rows",
    "measure_pairs",
    "study_collapse",
    "summarise",
    "write_collapse",
]
