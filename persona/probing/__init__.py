"""Linear probes and the geometry of streams."""

from persona_circuits.persona.probing.fit import (
    Predicted,
    cross_validate,
    joined,
    mean_scores,
    predict_chosen,
    probe_directions,
    score,
)
from persona_circuits.persona.probing.folds import Sample, explicit_fold, folds_by_group
from persona_circuits.persona.probing.options import ProbeOptions, ProbeStudy
from persona_circuits.persona.probing.report import (
    GEOMETRY,
    TABLE,
    geometry_rows,
    probe_figures,
    probe_record,
    probe_rows,
    write_probes,
)
from persona_circuits.persona.probing.representation import (
    Correlation,
    centred_by_group,
    grouped_hsic,
    indicators,
    linear_cka,
    persona_distances,
    rank_correlation,
    signal_to_noise,
    unbiased_hsic,
)
from persona_circuits.persona.probing.study import study_probes

__all__ = [
    "GEOMETRY",
    "TABLE",
    "Correlation",
    "Predicted",
    "ProbeOptions",
    "ProbeStudy",
    "Sample",
    "centred_by_group",
    "cross_validate",
    "explicit_fold",
    "folds_by_group",
    "geometry_rows",
    "grouped_hsic",
    "indicators",
    "joined",
    "linear_cka",
    "mean_scores",
    "persona_distances",
    "predict_chosen",
    "probe_directions",
    "probe_figures",
    "probe_record",
    "probe_rows",
    "rank_correlation",
    "score",
    "signal_to_noise",
    "study_probes",
    "unbiased_hsic",
    "write_probes",
]
