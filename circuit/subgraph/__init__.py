"""A circuit: the set of edges of a graph that is kept, everywhere or at parts of the prompt."""

from persona_circuits.circuit.subgraph.edges import Circuit, from_networkx, to_networkx
from persona_circuits.circuit.subgraph.spans import SpanCircuit, Spans, SpanScores

__all__ = ["Circuit", "SpanCircuit", "SpanScores", "Spans", "from_networkx", "to_networkx"]
