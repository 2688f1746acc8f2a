"""Personas, questions, templates and the positions of their tokens."""

from persona_circuits.persona.data.examples import (
    Example,
    ExampleFile,
    examples_of,
    leak,
    load_examples,
    shared_positions,
)
from persona_circuits.persona.data.formats import (
    examples_without,
    first_person,
    listing,
    load_format,
    shown_options,
)
from persona_circuits.persona.data.items import ItemFile, Neutral, items_of, load_items, load_neutral, neutral_prompts
from persona_circuits.persona.data.positions import POSITIONS, Placed, locate, without_persona
from persona_circuits.persona.data.prompts import (
    Encoded,
    TokenizerOnly,
    candidates,
    encode_prompt,
    load_tokenizer,
    prompt_faults,
)
from persona_circuits.persona.data.sources import (
    read_answers,
    read_contrast,
    read_personas,
    read_questions,
    with_answers,
)
from persona_circuits.persona.data.statistics import (
    Estimate,
    clusters_of,
    drawn_over,
    ratio_of_means,
    sign_flip,
    two_way_difference,
    two_way_mean,
)
from persona_circuits.persona.data.templates import FIELDS, PARTS, Prompt, Template, load_templates, option_list
from persona_circuits.persona.data.values import Persona, Question, preferred
from persona_circuits.persona.data.words import N_WORDS, Words, mean_words, said, top_words

__all__ = [
    "FIELDS",
    "N_WORDS",
    "PARTS",
    "POSITIONS",
    "Encoded",
    "Estimate",
    "Example",
    "ExampleFile",
    "ItemFile",
    "Neutral",
    "Persona",
    "Placed",
    "Prompt",
    "Question",
    "Template",
    "TokenizerOnly",
    "Words",
    "candidates",
    "clusters_of",
    "drawn_over",
    "encode_prompt",
    "examples_of",
    "examples_without",
    "first_person",
    "items_of",
    "leak",
    "listing",
    "load_examples",
    "load_format",
    "load_items",
    "load_neutral",
    "load_templates",
    "load_tokenizer",
    "locate",
    "mean_words",
    "neutral_prompts",
    "option_list",
    "preferred",
    "prompt_faults",
    "ratio_of_means",
    "read_answers",
    "read_contrast",
    "read_personas",
    "read_questions",
    "said",
    "shared_positions",
    "shown_options",
    "sign_flip",
    "top_words",
    "two_way_difference",
    "two_way_mean",
    "with_answers",
    "without_persona",
]
