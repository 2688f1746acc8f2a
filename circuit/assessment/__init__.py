"""Whole studies of circuits: the tests of one, two beside each other, curves, planted truth."""

from persona_circuits.circuit.assessment.curves import CurveOptions, CurveStudy, curve_study, read_scorer
from persona_circuits.circuit.assessment.evaluating import Evaluation, evaluate_circuit
from persona_circuits.circuit.assessment.evaluation import Battery, battery, with_evaluation
from persona_circuits.circuit.assessment.ground_truth import BAR, GroundTruth, calibrate, support
from persona_circuits.circuit.assessment.options import EvaluationOptions
from persona_circuits.circuit.assessment.stability import marked_record, rule_of, search_again

__all__ = [
    "BAR",
    "Battery",
    "CurveOptions",
    "CurveStudy",
    "Evaluation",
    "EvaluationOptions",
    "GroundTruth",
    "battery",
    "calibrate",
    "curve_study",
    "evaluate_circuit",
    "marked_record",
    "read_scorer",
    "rule_of",
    "search_again",
    "support",
    "with_evaluation",
]
