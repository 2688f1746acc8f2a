"""Inside the nodes of a circuit: what heads attend to and move, what nodes promote, neurons, the stream's depth."""

from persona_circuits.persona.inside.heads import Attention, attention_of
from persona_circuits.persona.inside.study import look_inside

__all__ = ["Attention", "attention_of", "look_inside"]
