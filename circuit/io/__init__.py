"""Circuits and scores as files, in this program's form and in others'."""

from persona_circuits.circuit.io.circuits import (
    StoredCircuit,
    circuit_record,
    faults_of,
    made_of,
    read_circuit,
    read_scores,
    schema_faults,
    with_parts,
    write_circuit,
    write_eap_ig,
    write_graphml,
    write_nodes,
    write_scores,
)
from persona_circuits.circuit.io.groups import by_source, read_groups
from persona_circuits.circuit.io.validation import page_schema, schema

__all__ = [
    "StoredCircuit",
    "by_source",
    "circuit_record",
    "faults_of",
    "made_of",
    "page_schema",
    "read_circuit",
    "read_groups",
    "read_scores",
    "schema",
    "schema_faults",
    "with_parts",
    "write_circuit",
    "write_eap_ig",
    "write_graphml",
    "write_nodes",
    "write_scores",
]
