"""The picture of a circuit."""

from persona_circuits.circuit.drawing.render import DrawReport, check_picture, draw, to_agraph
from persona_circuits.circuit.drawing.style import FORMATS

__all__ = ["FORMATS", "DrawReport", "check_picture", "draw", "to_agraph"]
