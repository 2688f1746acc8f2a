"""Residual streams: read and changed."""

from persona_circuits.persona.streams.edit import Change, chosen_layer, mean_streams, on_streams
from persona_circuits.persona.streams.read import collect, grouped, id_table, point_names, trace

__all__ = [
    "Change",
    "chosen_layer",
    "collect",
    "grouped",
    "id_table",
    "mean_streams",
    "on_streams",
    "point_names",
    "trace",
]
