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

from persona_circuits.circuit.pruning.acdc import AcdcResult as AcdcResult
from persona_circuits.circuit.pruning.acdc import Trials as Trials
from persona_circuits.circuit.pruning.acdc import acdc as acdc
from persona_circuits.circuit.pruning.acdc import acdc_by_definition as acdc_by_definition
from persona_circuits.circuit.pruning.finish import Finished as Finished
from persona_circuits.circuit.pruning.finish import Terms as Terms
from persona_circuits.circuit.pruning.finish import finish as finish
from persona_circuits.circuit.pruning.learn import Learned as Learned
from persona_circuits.circuit.pruning.learn import Schedule as Schedule
from persona_circuits.circuit.pruning.learn import learn as learn
from persona_circuits.circuit.pruning.select import PRUNERS as PRUNERS
from persona_circuits.circuit.pruning.select import check_n as check_n
from persona_circuits.circuit.pruning.select import check_tau as check_tau
from persona_circuits.circuit.pruning.select import greedy as greedy
from persona_circuits.circuit.pruning.select import ranked_edges as ranked_edges
from persona_circuits.circuit.pruning.select import strength_of as strength_of
from persona_circuits.circuit.pruning.select import threshold as threshold
from persona_circuits.circuit.pruning.select import top_n as top_n
