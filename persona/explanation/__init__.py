"""Why a pair collapses: a verdict, and the causal test that must agree."""

from persona_circuits.persona.explanation.causal import TESTS, Asked, flip_gain, run_test
from persona_circuits.persona.explanation.figures import explain_figures
from persona_circuits.persona.explanation.groups import Explained, group_of
from persona_circuits.persona.explanation.inside import PLACES, look_inside
from persona_circuits.persona.explanation.report import (
    confusion_rows,
    explain_record,
    group_rows,
    table_columns,
    write_explanation,
)
from persona_circuits.persona.explanation.runs import margins, replay
from persona_circuits.persona.explanation.study import ExplainOptions, Explanation, explain
from persona_circuits.persona.explanation.truth import NO_EFFECT, agreement, expected_of, fits
from persona_circuits.persona.explanation.verdicts import VERDICTS, Numbers, Verdict, judge, load_thresholds

__all__ = [
    "NO_EFFECT",
    "PLACES",
    "TESTS",
    "VERDICTS",
    "Asked",
    "ExplainOptions",
    "Explained",
    "Explanation",
    "Numbers",
    "Verdict",
    "agreement",
    "confusion_rows",
    "expected_of",
    "explain",
    "explain_figures",
    "explain_record",
    "fits",
    "flip_gain",
    "group_of",
    "group_rows",
    "judge",
    "load_thresholds",
    "look_inside",
    "margins",
    "replay",
    "run_test",
    "table_columns",
    "write_explanation",
]
