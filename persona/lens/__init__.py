"""The logit lens along the depth."""

from persona_circuits.persona.lens.readout import component_names, decision, read_out, read_out_direction
from persona_circuits.persona.lens.report import (
    COMPONENTS,
    TABLE,
    component_rows,
    curve_rows,
    decision_lines,
    lens_figures,
    lens_record,
    write_lens,
)
from persona_circuits.persona.lens.study import LensOptions, LensStudy, study_lens

__all__ = [
    "COMPONENTS",
    "TABLE",
    "LensOptions",
    "LensStudy",
    "component_names",
    "component_rows",
    "curve_rows",
    "decision",
    "decision_lines",
    "lens_figures",
    "lens_record",
    "read_out",
    "read_out_direction",
    "study_lens",
    "write_lens",
]
