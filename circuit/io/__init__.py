"""Circuits and scores as files, in this program's form and in others'."""

from persona_circuits.circuit.io.circuits import (
    StoredCircuit,
    circuit_record,
    faults_of,
    made_of,
    read_circuit,
    read_scores,
    write_circuit,
    write_eap_ig,
    write_graphml,
    write_nodes,
    write_scores,
)
from persona_circuits.circuit.io.validation import schema

__all__ = [
    "StoredCircuit",
    "circuit_record",
    "faults_of",
    "made_of",
    "read_circuit",
    "read_scores",
    "schema",
    "write_circuit",
    "write_eap_ig",
    "write_graphml",
    "write_nodes",
    "write_scores",
]
