"""Scores of edges: EAP, EAP-IG, exact patching, and persona grids."""

from persona_circuits.circuit.attribution.atp_star import atp_star
from persona_circuits.circuit.attribution.eap import (
    ACTIVATIONS,
    IG_RULES,
    ceap,
    clean_corrupted,
    eap,
    eap_by_definition,
    eap_ig,
    eap_ig_activations,
)
from persona_circuits.circuit.attribution.ensemble import mean_of
from persona_circuits.circuit.attribution.exact import exact
from persona_circuits.circuit.attribution.grid import Grid, GridPair, Passes, grid_of_personas, grid_of_texts, grids_of
from persona_circuits.circuit.attribution.grid_scores import LINEAR, grid_eap, grid_parts, passes_of
from persona_circuits.circuit.attribution.methods import (
    METHODS,
    ActivationCost,
    Completeness,
    Scoring,
    activation_cost,
    completeness_of,
    random_scores,
    score,
    score_parts,
)
from persona_circuits.circuit.attribution.neurons import NeuronScores, ablated_neurons, neuron_scores
from persona_circuits.circuit.attribution.parts import ScoreParts

__all__ = [
    "ACTIVATIONS",
    "IG_RULES",
    "LINEAR",
    "METHODS",
    "ActivationCost",
    "Completeness",
    "Grid",
    "GridPair",
    "NeuronScores",
    "Passes",
    "ScoreParts",
    "Scoring",
    "ablated_neurons",
    "activation_cost",
    "atp_star",
    "ceap",
    "clean_corrupted",
    "completeness_of",
    "eap",
    "eap_by_definition",
    "eap_ig",
    "eap_ig_activations",
    "exact",
    "grid_eap",
    "grid_of_personas",
    "grid_of_texts",
    "grid_parts",
    "grids_of",
    "mean_of",
    "neuron_scores",
    "passes_of",
    "random_scores",
    "score",
    "score_parts",
]
