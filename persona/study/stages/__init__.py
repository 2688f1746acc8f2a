"""The stages of a study."""

from persona_circuits.persona.study.stages.behaviour import run_behaviour
from persona_circuits.persona.study.stages.causes import run_causes
from persona_circuits.persona.study.stages.circuit import run_circuit
from persona_circuits.persona.study.stages.contrasts import permuted, run_contrasts
from persona_circuits.persona.study.stages.frames import run_frames
from persona_circuits.persona.study.stages.patch import run_patch
from persona_circuits.persona.study.stages.steering import run_steering
from persona_circuits.persona.study.stages.where import run_where

__all__ = [
    "permuted",
    "run_behaviour",
    "run_causes",
    "run_circuit",
    "run_contrasts",
    "run_frames",
    "run_patch",
    "run_steering",
    "run_where",
]
