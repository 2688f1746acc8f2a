"""What a circuit leaves out: knockouts and backups."""

from persona_circuits.circuit.evaluation.completeness.report import CompletenessReport, completeness_report
from persona_circuits.circuit.evaluation.completeness.share_intervals import growth_p, shares

__all__ = ["CompletenessReport", "completeness_report", "growth_p", "shares"]
