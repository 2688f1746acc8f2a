"""Pair files made from personas and questions."""

from persona_circuits.persona.pairs.build import PairOptions, build_pairs
from persona_circuits.persona.pairs.matching import leak_finder
from persona_circuits.persona.pairs.neutral import built_in_wordings, read_neutral_wordings
from persona_circuits.persona.pairs.prior import build_prior_pairs, write_prior_pairs
from persona_circuits.persona.pairs.prior_choice import PriorOptions
from persona_circuits.persona.pairs.report import default_null, default_report, write_pairs, write_rows
from persona_circuits.persona.pairs.variants import read_rules, vary

__all__ = [
    "PairOptions",
    "PriorOptions",
    "build_pairs",
    "build_prior_pairs",
    "built_in_wordings",
    "default_null",
    "default_report",
    "leak_finder",
    "read_neutral_wordings",
    "read_rules",
    "vary",
    "write_pairs",
    "write_prior_pairs",
    "write_rows",
]
