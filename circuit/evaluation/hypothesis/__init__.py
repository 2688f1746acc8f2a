"""Hypothesis tests of a circuit."""

from persona_circuits.circuit.evaluation.hypothesis.edge_tests import minimality
from persona_circuits.circuit.evaluation.hypothesis.outcomes import holm
from persona_circuits.circuit.evaluation.hypothesis.report import (
    HypothesisOptions,
    HypothesisReport,
    corrected,
    hypothesis_tests,
)
from persona_circuits.circuit.evaluation.hypothesis.tests import (
    equivalence,
    hsic,
    independence,
    partial_necessity,
    sufficiency,
)

__all__ = [
    "HypothesisOptions",
    "HypothesisReport",
    "corrected",
    "equivalence",
    "holm",
    "hsic",
    "hypothesis_tests",
    "independence",
    "minimality",
    "partial_necessity",
    "sufficiency",
]
