"""Steering along a direction."""

from persona_circuits.persona.steering.options import Bound, Outcome, SteeredPrompts, SteeringStudy, SteerOptions
from persona_circuits.persona.steering.passes import (
    added,
    some_pairs,
    steered_logits,
    steered_prompts,
    without_direction,
)
from persona_circuits.persona.steering.report import (
    BOUNDS,
    TABLE,
    TEXTS,
    bound_rows,
    outcome_rows,
    steering_figures,
    text_rows,
    write_steering,
)
from persona_circuits.persona.steering.study import study_steering
from persona_circuits.persona.steering.text import generate_steered, readability, steered_layers

__all__ = [
    "BOUNDS",
    "TABLE",
    "TEXTS",
    "Bound",
    "Outcome",
    "SteerOptions",
    "SteeredPrompts",
    "SteeringStudy",
    "added",
    "bound_rows",
    "generate_steered",
    "outcome_rows",
    "readability",
    "some_pairs",
    "steered_layers",
    "steered_logits",
    "steered_prompts",
    "steering_figures",
    "study_steering",
    "text_rows",
    "without_direction",
    "write_steering",
]
