"""Forward passes: plain ones, patched ones, and the metric of either."""

from persona_circuits.circuit.forward.ablation import (
    ABLATIONS,
    CONSTANT,
    Ablation,
    ablated_by,
    corrupt,
    make_ablation,
    mean,
    optimal,
    zero,
)
from persona_circuits.circuit.forward.measuring import measure, measure_rows
from persona_circuits.circuit.forward.nodes import patched_nodes, patched_stream, per_pass, portions
from persona_circuits.circuit.forward.patched import masks_per_pass, patched_logits
from persona_circuits.circuit.forward.plain import (
    Prefix,
    Run,
    Written,
    changes,
    prefix_of,
    run,
    run_clean,
    run_corrupt,
    targets_of,
)
from persona_circuits.circuit.forward.prepared import (
    Prepared,
    divergence,
    effects,
    first_difference,
    in_halves,
    is_plain,
    is_unpadded,
    prepare,
    prepare_each,
)
from persona_circuits.circuit.forward.rounding import Rounding, tolerance

__all__ = [
    "ABLATIONS",
    "CONSTANT",
    "Ablation",
    "Prefix",
    "Prepared",
    "Rounding",
    "Run",
    "Written",
    "ablated_by",
    "changes",
    "corrupt",
    "divergence",
    "effects",
    "first_difference",
    "in_halves",
    "is_plain",
    "is_unpadded",
    "make_ablation",
    "masks_per_pass",
    "mean",
    "measure",
    "measure_rows",
    "optimal",
    "patched_logits",
    "patched_nodes",
    "patched_stream",
    "per_pass",
    "portions",
    "prefix_of",
    "prepare",
    "prepare_each",
    "run",
    "run_clean",
    "run_corrupt",
    "targets_of",
    "tolerance",
    "zero",
]
