"""Activation patching by layer, position, head and path."""

from persona_circuits.persona.patching.activation import PatchOptions, PatchStudy, study_patching
from persona_circuits.persona.patching.heads import other_sets, parse_heads
from persona_circuits.persona.patching.paths import parse_paths
from persona_circuits.persona.patching.report import (
    MOVERS,
    PATHS,
    ablation_lines,
    mover_rows,
    patch_figures,
    patch_record,
    path_rows,
    stream_rows,
    stream_table,
    write_patch,
)
from persona_circuits.persona.patching.sites import ANSWER, EVERYWHERE, Site

__all__ = [
    "ANSWER",
    "EVERYWHERE",
    "MOVERS",
    "PATHS",
    "PatchOptions",
    "PatchStudy",
    "Site",
    "ablation_lines",
    "mover_rows",
    "other_sets",
    "parse_heads",
    "parse_paths",
    "patch_figures",
    "patch_record",
    "path_rows",
    "stream_rows",
    "stream_table",
    "study_patching",
    "write_patch",
]
