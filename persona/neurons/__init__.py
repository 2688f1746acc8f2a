"""Neurons that tell personas apart, and what goes without them."""

from persona_circuits.persona.neurons.figures import neuron_figures
from persona_circuits.persona.neurons.options import NeuronOptions
from persona_circuits.persona.neurons.ranking import (
    COARSE,
    ROUNDING,
    at_rounding,
    effect_size,
    grouped_means,
    overlap,
    pooled,
    rank_neurons,
    ranks,
)
from persona_circuits.persona.neurons.report import (
    ablation_rows,
    has_intervals,
    headline,
    neuron_record,
    tables,
    write_neurons,
)
from persona_circuits.persona.neurons.runs import ablated, neurons_of, read_neurons, tokens_at
from persona_circuits.persona.neurons.study import held_out_files, study_neurons

__all__ = [
    "COARSE",
    "ROUNDING",
    "NeuronOptions",
    "ablated",
    "ablation_rows",
    "at_rounding",
    "effect_size",
    "grouped_means",
    "has_intervals",
    "headline",
    "held_out_files",
    "neuron_figures",
    "neuron_record",
    "neurons_of",
    "overlap",
    "pooled",
    "rank_neurons",
    "ranks",
    "read_neurons",
    "study_neurons",
    "tables",
    "tokens_at",
    "write_neurons",
]
