"""From scores, or from the model itself, to a circuit.

    threshold    keep |score| >= tau
    top-n        keep the n largest |score| (or, signed, the n largest scores)
    greedy       grow backward from logits, best edge first, so that the circuit is connected
    acdc         try to remove every edge in reverse topological order, keep those that matter
    eap-acdc     threshold first, then ACDC on what is left, with the same tau on both
    learn        train a gate on every edge, from the scores to a size

and after any of them ``finish``: edges go and come back until no single change pays.

After each of them dead ends are dropped to a fixed point; the result may be empty.
"""

from persona_circuits.circuit.pruning.acdc import AcdcResult, Trials, acdc, acdc_by_definition
from persona_circuits.circuit.pruning.finish import Finished, Terms, finish
from persona_circuits.circuit.pruning.learn import Learned, Schedule, learn
from persona_circuits.circuit.pruning.select import (
    PRUNERS,
    check_n,
    check_tau,
    greedy,
    ranked_edges,
    strength_of,
    threshold,
    top_n,
)

__all__ = [
    "PRUNERS",
    "AcdcResult",
    "Finished",
    "Learned",
    "Schedule",
    "Terms",
    "Trials",
    "acdc",
    "acdc_by_definition",
    "check_n",
    "check_tau",
    "finish",
    "greedy",
    "learn",
    "ranked_edges",
    "strength_of",
    "threshold",
    "top_n",
]
