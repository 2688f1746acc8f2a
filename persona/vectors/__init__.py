"""Persona vectors and the assistant axis."""

from persona_circuits.persona.vectors.comparison import Compared, compare_models
from persona_circuits.persona.vectors.directions import (
    Directions,
    controls,
    default_kind,
    find_directions,
    prompt_end_streams,
)
from persona_circuits.persona.vectors.report import (
    COMPARED,
    LAYERS,
    TABLE,
    comparison_rows,
    layer_rows,
    persona_rows,
    vector_figures,
    write_vectors,
)
from persona_circuits.persona.vectors.storage import StoredVectors, geometry_of, read_vectors
from persona_circuits.persona.vectors.vectors import (
    PersonaVectors,
    assistant_axis,
    axis_positions,
    cosines,
    persona_vectors,
    principal_components,
    reliability,
    tree,
)

__all__ = [
    "COMPARED",
    "LAYERS",
    "TABLE",
    "Compared",
    "Directions",
    "PersonaVectors",
    "StoredVectors",
    "assistant_axis",
    "axis_positions",
    "compare_models",
    "comparison_rows",
    "controls",
    "cosines",
    "default_kind",
    "find_directions",
    "geometry_of",
    "layer_rows",
    "persona_rows",
    "persona_vectors",
    "principal_components",
    "prompt_end_streams",
    "read_vectors",
    "reliability",
    "tree",
    "vector_figures",
    "write_vectors",
]
