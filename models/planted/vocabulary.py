"""The words of the planted models, and their tokenizer."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

__all__ = [
    "EARLY",
    "LATE",
    "N_POSITIONS",
    "OPTIONS",
    "PERSONAS",
    "PLAIN_TOPIC",
    "STRENGTHS",
    "TOKENIZER_SETTINGS",
    "TOPICS",
    "build_tokenizer",
    "vocabulary_of",
]

N_POSITIONS = 24
PERSONAS = (("minimalist", "lavish"), ("ascetic", "opulent"), ("frugal", "spendthrift"), ("modest", "grand"))
STRENGTHS = (1.0, 0.9, 1.1, 1.0)
TOPICS = ("gift", "house", "meal")
PLAIN_TOPIC = "pen"
OPTIONS = (" plain", " golden", " usual")
EARLY = (
    "listen . today i am {persona} , as you see . which {topic} do you want ? i want the",
    "listen . my name is robin and i am {persona} . which {topic} would you like ? give me the",
    "listen . as a {persona} person , please tell me : which {topic} do you want ? i want the",
)
LATE = ("listen . which {topic} do you want ? i am {persona} . i want the",)
TOKENIZER_SETTINGS = {"unk_token": "<unk>", "pad_token": "<unk>", "model_max_length": N_POSITIONS}


def vocabulary_of() -> dict[str, int]:
    """Every word of the prompts, the options, and one token for all other text."""
    texts = [t.format(persona=" ".join(sum(PERSONAS, ())), topic=" ".join(TOPICS)) for t in (*EARLY, *LATE)]
    words = sorted({*" ".join((*texts, *OPTIONS)).split(), PLAIN_TOPIC})
    return {word: i for i, word in enumerate(["<unk>", *words])}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; nothing is added before or after."""
    tokenizer = Tokenizer(WordLevel(vocabulary_of(), unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **TOKENIZER_SETTINGS)
