"""What a circuit leaves out: knockouts and backups."""

from persona_circuits.circuit.evaluation.completeness.report import (
    CompletenessOptions,
    CompletenessReport,
    completeness_report,
)
from persona_circuits.circuit.evaluation.completeness.share_intervals import growth_p, shares

__all__ = ["CompletenessOptions", "CompletenessReport", "completeness_report", "growth_p", "shares"]
