"""A transformer as a sum of nodes."""

from persona_circuits.circuit.model.block import NEURON_HOOKS, Block, Context
from persona_circuits.circuit.model.finite import of_prompts
from persona_circuits.circuit.model.float64 import Wide
from persona_circuits.circuit.model.gguf import check_reader
from persona_circuits.circuit.model.loading import (
    DTYPES,
    host_options,
    load_model,
    load_reader,
    load_skeleton,
    origin_at,
    wrap_model,
    write_dense,
)
from persona_circuits.circuit.model.mixed_precision import HALF_PRECISION, Upcasting
from persona_circuits.circuit.model.model import Model
from persona_circuits.circuit.model.neurons import Hidden, Neurons, OpenBlock
from persona_circuits.circuit.model.norm import Pullback
from persona_circuits.circuit.model.origin import Origin, origin_of, sha256_of
from persona_circuits.circuit.model.rules import RULES, Rules
from persona_circuits.circuit.model.scores import score_terms
from persona_circuits.circuit.model.stubs import nothing_installed

__all__ = [
    "DTYPES",
    "HALF_PRECISION",
    "NEURON_HOOKS",
    "RULES",
    "Block",
    "Context",
    "Hidden",
    "Model",
    "Neurons",
    "OpenBlock",
    "Origin",
    "Pullback",
    "Rules",
    "Upcasting",
    "Wide",
    "check_reader",
    "host_options",
    "load_model",
    "load_reader",
    "load_skeleton",
    "nothing_installed",
    "of_prompts",
    "origin_at",
    "origin_of",
    "score_terms",
    "sha256_of",
    "wrap_model",
    "write_dense",
]
