"""Which nodes write a persona's direction."""

from persona_circuits.persona.bridge.bridge import NodeSet, build_bridge
from persona_circuits.persona.bridge.parts import BridgeOptions, random_sets, three_way
from persona_circuits.persona.bridge.report import (
    bridge_figures,
    fingerprint_of,
    layer_rows,
    node_rows,
    overlap_rows,
    read_movers,
    read_neuron_mlps,
    read_nodes,
    write_bridge,
)

__all__ = [
    "BridgeOptions",
    "NodeSet",
    "bridge_figures",
    "build_bridge",
    "fingerprint_of",
    "layer_rows",
    "node_rows",
    "overlap_rows",
    "random_sets",
    "read_movers",
    "read_neuron_mlps",
    "read_nodes",
    "three_way",
    "write_bridge",
]
