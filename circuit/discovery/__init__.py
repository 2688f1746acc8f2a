"""The search for a circuit, from prompt pairs to a circuit with its record."""

from persona_circuits.circuit.discovery.options import Options, Stage
from persona_circuits.circuit.discovery.own_metrics import AnyMetric, metric_of
from persona_circuits.circuit.discovery.search import Discovery, discover, evaluate_on, report_of
from persona_circuits.circuit.discovery.tasks import ablation_for, batches_of, pairs_of, split_of

__all__ = [
    "AnyMetric",
    "Discovery",
    "Options",
    "Stage",
    "ablation_for",
    "batches_of",
    "discover",
    "evaluate_on",
    "metric_of",
    "pairs_of",
    "report_of",
    "split_of",
]
