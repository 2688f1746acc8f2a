"""The picture of a circuit."""

from persona_circuits.circuit.drawing.render import DrawReport, Marks, check_picture, draw, to_agraph
from persona_circuits.circuit.drawing.style import FORMATS, GROUP_LOOKS

__all__ = ["FORMATS", "GROUP_LOOKS", "DrawReport", "Marks", "check_picture", "draw", "to_agraph"]
