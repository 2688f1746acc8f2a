"""The search for a circuit, from prompt pairs to a circuit with its record."""

from persona_circuits.circuit.discovery.options import Options
from persona_circuits.circuit.discovery.search import Discovery, discover, evaluate_on
from persona_circuits.circuit.discovery.tasks import ablation_for, batches_of, pairs_of, split_of

__all__ = [
    "Discovery",
    "Options",
    "ablation_for",
    "batches_of",
    "discover",
    "evaluate_on",
    "pairs_of",
    "split_of",
]
