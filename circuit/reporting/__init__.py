"""What the command line and files say of circuits."""

from persona_circuits.circuit.discovery.summary import (
    completeness_lines,
    faithfulness_table,
    head_tables,
    neuron_tables,
    path_table,
    set_table,
    size_table,
    strongest_edges,
    summary,
)
from persona_circuits.circuit.discovery.writing import title_of, write_discovery
from persona_circuits.circuit.evaluation.curves.tables import (
    area_rows,
    curve_records,
    curve_rows,
    curve_tables,
    size_rows,
    sweep_table,
)
from persona_circuits.circuit.evaluation.span_files import write_specificity
from persona_circuits.circuit.reporting.comparison import comparison_tables
from persona_circuits.circuit.reporting.curves import write_curves
from persona_circuits.circuit.reporting.evaluation import write_tests
from persona_circuits.circuit.reporting.evaluation_tables import (
    evaluations_table,
    pair_tables,
    stability_table,
    tables,
    transfer_table,
)

__all__ = [
    "area_rows",
    "comparison_tables",
    "completeness_lines",
    "curve_records",
    "curve_rows",
    "curve_tables",
    "evaluations_table",
    "faithfulness_table",
    "head_tables",
    "neuron_tables",
    "pair_tables",
    "path_table",
    "set_table",
    "size_rows",
    "size_table",
    "stability_table",
    "strongest_edges",
    "summary",
    "sweep_table",
    "tables",
    "title_of",
    "transfer_table",
    "write_curves",
    "write_discovery",
    "write_specificity",
    "write_tests",
]
