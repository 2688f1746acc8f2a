"""Measures of a circuit: faithfulness and its controls."""

from persona_circuits.circuit.evaluation.attending import MOST_PAIRS, OpenedHeads, attended, head_parts, heads_of
from persona_circuits.circuit.evaluation.by_pair import (
    GroupSearch,
    PairRow,
    PairSignal,
    PairsView,
    divergences_of,
    measured_pairs,
    pairs_view,
)
from persona_circuits.circuit.evaluation.certificates import Certificate, Removal, Units, certify, with_certificate
from persona_circuits.circuit.evaluation.dissociation import Cell, Specificity, specificity
from persona_circuits.circuit.evaluation.faithfulness import (
    N_TRIED,
    Faithfulness,
    FaithfulnessReport,
    evaluate,
    pairwise,
)
from persona_circuits.circuit.evaluation.groups import Averages, group_pairs
from persona_circuits.circuit.evaluation.matched import (
    MATCHINGS,
    cells_of,
    matched_circuits,
    matched_outside,
    random_circuits,
)
from persona_circuits.circuit.evaluation.measurements import Measurements
from persona_circuits.circuit.evaluation.missed import Missed, missed
from persona_circuits.circuit.evaluation.neurons import (
    OpenedMlps,
    described,
    fewest,
    measured_neurons,
    mlps_of,
    neuron_sets,
    random_neurons,
)
from persona_circuits.circuit.evaluation.node_sets import NodeSet, NodeSets, Share, measured_sets, other_sets
from persona_circuits.circuit.evaluation.null import NullRun, null_run
from persona_circuits.circuit.evaluation.paths import PathShare, PathShares, measured_paths
from persona_circuits.circuit.evaluation.scores_by_pair import PairScores, Rule, pair_scores
from persona_circuits.circuit.evaluation.signal import Signal, SignalWatch, signal_of
from persona_circuits.circuit.evaluation.spans import SpanStudy, entry_shares, persistence, span_rows, span_study
from persona_circuits.circuit.evaluation.transfers import Transfer, transfer, transfer_within

__all__ = [
    "MATCHINGS",
    "MOST_PAIRS",
    "N_TRIED",
    "Averages",
    "Cell",
    "Certificate",
    "Faithfulness",
    "FaithfulnessReport",
    "GroupSearch",
    "Measurements",
    "Missed",
    "NodeSet",
    "NodeSets",
    "NullRun",
    "OpenedHeads",
    "OpenedMlps",
    "PairRow",
    "PairScores",
    "PairSignal",
    "PairsView",
    "PathShare",
    "PathShares",
    "Removal",
    "Rule",
    "Share",
    "Signal",
    "SignalWatch",
    "SpanStudy",
    "Specificity",
    "Transfer",
    "Units",
    "attended",
    "cells_of",
    "certify",
    "described",
    "divergences_of",
    "entry_shares",
    "evaluate",
    "fewest",
    "group_pairs",
    "head_parts",
    "heads_of",
    "matched_circuits",
    "matched_outside",
    "measured_neurons",
    "measured_pairs",
    "measured_paths",
    "measured_sets",
    "missed",
    "mlps_of",
    "neuron_sets",
    "null_run",
    "other_sets",
    "pair_scores",
    "pairs_view",
    "pairwise",
    "persistence",
    "random_circuits",
    "random_neurons",
    "signal_of",
    "span_rows",
    "span_study",
    "specificity",
    "transfer",
    "transfer_within",
    "with_certificate",
]
