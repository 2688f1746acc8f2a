"""The world's tokenizer: byte-level BPE in which every word of the world is one token.

The byte-level alphabet is complete, so that any text can be tokenized. The merges are
trained on the list of the world's distinct words, each once, until every word is one
token. No token is added automatically; `<|endoftext|>` separates documents.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from persona_circuits.circuit.storage import write_text
from persona_circuits.models.world.text import all_lines
from persona_circuits.models.world.world import World

__all__ = ["END", "N_POSITIONS", "build_tokenizer", "save_tokenizer"]

END = "<|endoftext|>"
N_POSITIONS = 128
# Plain strings and a class name that transformers 4 and 5 both know.
SETTINGS = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "bos_token": END,
    "clean_up_tokenization_spaces": False,
    "eos_token": END,
    "model_max_length": N_POSITIONS,
    "pad_token": END,
    "padding_side": "right",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": END,
}


def build_tokenizer(world: World) -> Tokenizer:
    """Train the tokenizer on the world's words; always the same for the same world."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=20_000, special_tokens=[END], initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(_words(world), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into the folder."""
    write_text(tokenizer.to_str(pretty=True), folder / "tokenizer.json")
    text = json.dumps(SETTINGS, indent=2, sort_keys=True) + "\n"
    write_text(text, folder / "tokenizer_config.json")


def _words(world: World) -> list[str]:
    """The world's distinct words, each with its leading space where it has one."""
    split = ByteLevel(add_prefix_space=False, use_regex=True)
    spans = {line[start:end] for line in all_lines(world) for _, (start, end) in split.pre_tokenize_str(line)}
    return sorted(spans)
