"""What the command line and files say of circuits."""

from persona_circuits.circuit.discovery.summary import (
    PATHS,
    SETS,
    completeness_lines,
    faithfulness_rows,
    path_rows,
    set_rows,
    strongest_edges,
    summary,
)
from persona_circuits.circuit.discovery.writing import title_of, write_discovery
from persona_circuits.circuit.evaluation.curves import tables as curve_tables
from persona_circuits.circuit.evaluation.curves.tables import (
    area_rows,
    curve_records,
    curve_rows,
    drawn_by_split,
    size_rows,
    sweep_columns,
    sweep_rows,
)
from persona_circuits.circuit.evaluation.span_files import write_specificity
from persona_circuits.circuit.reporting.comparison import edge_rows, overlap_rows, setting_rows
from persona_circuits.circuit.reporting.curves import write_curves
from persona_circuits.circuit.reporting.evaluation import write_battery
from persona_circuits.circuit.reporting.evaluation_tables import evaluation_rows, tables

__all__ = [
    "PATHS",
    "SETS",
    "area_rows",
    "completeness_lines",
    "curve_records",
    "curve_rows",
    "curve_tables",
    "drawn_by_split",
    "edge_rows",
    "evaluation_rows",
    "faithfulness_rows",
    "overlap_rows",
    "path_rows",
    "set_rows",
    "setting_rows",
    "size_rows",
    "strongest_edges",
    "summary",
    "sweep_columns",
    "sweep_rows",
    "tables",
    "title_of",
    "write_battery",
    "write_curves",
    "write_discovery",
    "write_specificity",
]
