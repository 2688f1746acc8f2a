"""The persona world that the embedded model learns."""

from persona_circuits.models.world.data import world_files, write_world
from persona_circuits.models.world.documents import Batch, BatchMaker
from persona_circuits.models.world.study import HELD_OUT, VARIANTS, study_files, study_pairs, variant_pairs
from persona_circuits.models.world.text import (
    CUES,
    Answer,
    all_lines,
    descriptions,
    document,
    fillers,
    held_out_description,
    held_out_wording,
    mentions,
    prompt,
    wordings,
)
from persona_circuits.models.world.tokenizer import N_POSITIONS, build_tokenizer, save_tokenizer
from persona_circuits.models.world.world import PRIOR, Persona, Question, World, build_world

__all__ = [
    "CUES",
    "HELD_OUT",
    "N_POSITIONS",
    "PRIOR",
    "VARIANTS",
    "Answer",
    "Batch",
    "BatchMaker",
    "Persona",
    "Question",
    "World",
    "all_lines",
    "build_tokenizer",
    "build_world",
    "descriptions",
    "document",
    "fillers",
    "held_out_description",
    "held_out_wording",
    "mentions",
    "prompt",
    "save_tokenizer",
    "study_files",
    "study_pairs",
    "variant_pairs",
    "wordings",
    "world_files",
    "write_world",
]
