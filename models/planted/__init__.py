"""Models wired by hand, whose circuits are known."""

from persona_circuits.models.planted.circuits import Planted, planted_models, write_planted
from persona_circuits.models.planted.network import D_MODEL, STEADY, Hand
from persona_circuits.models.planted.vocabulary import EARLY, OPTIONS, STRENGTHS

__all__ = ["D_MODEL", "EARLY", "OPTIONS", "STEADY", "STRENGTHS", "Hand", "Planted", "planted_models", "write_planted"]
