"""Figures and tables that every report is made of."""

from persona_circuits.circuit.figures.plots import (
    DIVERGING,
    GREY,
    MISSING,
    Curve,
    figure_page,
    heat_map,
    laid_out,
    line_chart,
    line_panels,
    write_figures,
)
from persona_circuits.circuit.figures.png import png_bytes
from persona_circuits.circuit.figures.tables import (
    csv_lines,
    csv_rows,
    csv_text,
    flat,
    interval,
    markdown_cell,
    markdown_code,
    markdown_table,
    plain,
    write_arrays,
    write_csv,
)

__all__ = [
    "DIVERGING",
    "GREY",
    "MISSING",
    "Curve",
    "csv_lines",
    "csv_rows",
    "csv_text",
    "figure_page",
    "flat",
    "heat_map",
    "interval",
    "laid_out",
    "line_chart",
    "line_panels",
    "markdown_cell",
    "markdown_code",
    "markdown_table",
    "plain",
    "png_bytes",
    "write_arrays",
    "write_csv",
    "write_figures",
]
