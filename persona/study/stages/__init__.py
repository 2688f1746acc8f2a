"""The stages of a study."""

from persona_circuits.persona.study.stages.across import run_across
from persona_circuits.persona.study.stages.behaviour import run_behaviour
from persona_circuits.persona.study.stages.causes import run_causes
from persona_circuits.persona.study.stages.circuit import run_circuit
from persona_circuits.persona.study.stages.contrasts import permuted, run_contrasts
from persona_circuits.persona.study.stages.frames import run_frames
from persona_circuits.persona.study.stages.gates import run_gates
from persona_circuits.persona.study.stages.patch import run_patch
from persona_circuits.persona.study.stages.prediction import run_prediction
from persona_circuits.persona.study.stages.prior import run_prior
from persona_circuits.persona.study.stages.steering import run_steering
from persona_circuits.persona.study.stages.where import run_where

__all__ = [
    "permuted",
    "run_across",
    "run_behaviour",
    "run_causes",
    "run_circuit",
    "run_contrasts",
    "run_frames",
    "run_gates",
    "run_patch",
    "run_prediction",
    "run_prior",
    "run_steering",
    "run_where",
]
