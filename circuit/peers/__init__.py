"""Other programs: their files, and their numbers beside ours."""

from persona_circuits.circuit.peers.agreement import (
    AGREEMENT_COLUMNS,
    CONVENTIONS,
    CrosscheckOptions,
    agreement,
    agreement_rows,
    circuit_rows,
    compare_with_file,
    crosscheck,
    write_crosscheck,
)
from persona_circuits.circuit.peers.autocircuit import (
    autocircuit_name,
    from_prune_scores,
    prune_scores,
    read_autocircuit_scores,
    write_autocircuit_pairs,
    write_autocircuit_scores,
)
from persona_circuits.circuit.peers.mib import (
    read_submission,
    stream_width,
    weighted_edge_count,
    write_circuits,
    write_importances,
)
from persona_circuits.circuit.peers.process import AutoCircuit, autocircuit_rows, check_model, peers_python

__all__ = [
    "AGREEMENT_COLUMNS",
    "CONVENTIONS",
    "AutoCircuit",
    "CrosscheckOptions",
    "agreement",
    "agreement_rows",
    "autocircuit_name",
    "autocircuit_rows",
    "check_model",
    "circuit_rows",
    "compare_with_file",
    "crosscheck",
    "from_prune_scores",
    "peers_python",
    "prune_scores",
    "read_autocircuit_scores",
    "read_submission",
    "stream_width",
    "weighted_edge_count",
    "write_autocircuit_pairs",
    "write_autocircuit_scores",
    "write_circuits",
    "write_crosscheck",
    "write_importances",
]
