"""Automated circuit discovery for persona divergence in transformers.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Batch": "circuit.task",
    "Circuit": "circuit.subgraph",
    "Discovery": "circuit.discovery",
    "Edge": "circuit.graph",
    "FaithfulnessReport": "circuit.faithfulness",
    "Graph": "circuit.graph",
    "Model": "circuit.model",
    "Node": "circuit.graph",
    "Options": "circuit.discovery",
    "PersonaCircuitsError": "circuit.errors",
    "PromptPair": "circuit.task",
    "Scores": "circuit.scores",
    "Task": "circuit.task",
    "acdc": "circuit.pruning",
    "batches": "circuit.task",
    "discover": "circuit.discovery",
    "eap": "circuit.attribution",
    "eap_ig": "circuit.attribution",
    "encode": "circuit.task",
    "evaluate_on": "circuit.discovery",
    "exact": "circuit.attribution",
    "greedy": "circuit.pruning",
    "load_model": "circuit.model",
    "load_task": "circuit.task",
    "measure": "circuit.patching",
    "patched_logits": "circuit.patching",
    "prepare": "circuit.patching",
    "random_scores": "circuit.attribution",
    "read_circuit": "circuit.files",
    "threshold": "circuit.pruning",
    "top_n": "circuit.pruning",
    "with_swap_rows": "circuit.task",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
