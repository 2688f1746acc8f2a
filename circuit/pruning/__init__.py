"""From scores to a circuit."""

from persona_circuits.circuit.pruning.acdc import AcdcResult, acdc
from persona_circuits.circuit.pruning.select import PRUNERS, check_tau, greedy, slots_by_source, threshold, top_n

__all__ = ["PRUNERS", "AcdcResult", "acdc", "check_tau", "greedy", "slots_by_source", "threshold", "top_n"]
