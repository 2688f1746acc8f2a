"""Remake the frozen oracle data of the tests.

Runs inside the environment that setup.sh makes:

    PYTHON benchmarks/peers/make_frozen.py [--out tests/data] [--craftgpt FOLDER]

1. tiny-gpt2/: a seeded 3-layer GPT-2 with a word-level tokenizer, as a Hugging Face folder.
2. tiny_pairs.json, craftgpt_pairs.json: prompt pairs in auto-circuit's format.
3. autocircuit_tiny.json, autocircuit_tiny_mask_ig.json, autocircuit_tiny_eap_ig.json,
   autocircuit_tiny_acdc.json, autocircuit_craftgpt.json: auto-circuit's numbers for them (autocircuit_scores.py).

The craftgpt numbers are skipped, saying so, where that model's folder is absent.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from autocircuit_scores import BadInput, autocircuit_result, write_json

ROOT = Path(__file__).resolve().parents[2]
SEED = 20240
WEIGHT_STD = 0.35
FIRST_WORDS = ("you", "we", "they", "she")
SPACED_WORDS = (
    "are is a an the not very happy sad calm angry tired bold shy kind cook judge nurse pilot "
    "farmer and now today do does you he she like want choose or red blue green tea coffee milk "
    "cats dogs sun rain north south early late answer best drink colour pet says"
)
MARKS = ("<end>", "<unk>", ".", ",", "?", ":")

# fmt: off
# Answers are named so that the metric is higher on the clean prompt.
TINY_PAIRS = (  # clean, corrupt, answer, wrong answer
    ("you are a happy cook. you choose red or blue? answer:",
     "you are a sad cook. you choose red or blue? answer:", " blue", " red"),
    ("you are a calm judge. you choose tea or coffee? answer:",
     "you are a angry judge. you choose tea or coffee? answer:", " coffee", " tea"),
    ("you are a bold pilot. you choose cats or dogs? answer:",
     "you are a shy farmer. you choose cats or dogs? answer:", " dogs", " cats"),
    ("we are a kind nurse. you choose sun or rain? answer:",
     "they are a tired nurse. you choose sun or rain? answer:", " rain", " sun"),
    ("she is very happy today, and she says the best drink is",
     "she is not happy today, and she says the best drink is", " tea", " milk"),
    ("she is a very calm pilot now. the best colour is",
     "she is a very angry judge now. the best colour is", " red", " green"),
    ("they like the north", "they like the south", " late", " early"),
    ("you want coffee and a farmer does not. the best pet:",
     "you want milk and a farmer does not. the best pet:", " dogs", " cats"),
)
# fmt: on
CRAFTGPT_PROMPT = "_[inst] you are a {} person. {}_[/inst] {}"
CRAFTGPT_PAIRS = (  # clean persona, corrupt persona, question, start of the reply, answers
    ("happy", "sad", "how do you feel about the weather?", "the weather is", " nice", " gloomy"),
    ("happy", "angry", "how do you feel about the weather?", "the weather is", " sunny", " not"),
    ("sad", "calm", "how do you feel about the weather?", "the weather is", " cloudy", " nice"),
    ("tired", "happy", "how do you feel about the weather?", "the weather is", " quite", " lovely"),
    ("sad", "happy", "how was your day?", "my day was", " not", " good"),
    ("angry", "calm", "do you like music?", "i", " prefer", " love"),
)


def main(argv: list[str] | None = None) -> int:
    """Write every frozen file; 2 when something cannot be made."""
    args = _parse(argv)
    os.environ.setdefault("TQDM_DISABLE", "1")
    out, craftgpt = Path(args.out), Path(args.craftgpt)
    try:
        out.mkdir(parents=True, exist_ok=True)
        make_tiny_model(out / "tiny-gpt2")
        write_json(out / "tiny_pairs.json", pairs_json(TINY_PAIRS))
        write_json(out / "craftgpt_pairs.json", pairs_json(craftgpt_rows()))
        tiny = (out / "tiny-gpt2", out / "tiny_pairs.json")
        freeze(out / "autocircuit_tiny.json", *tiny)
        freeze(out / "autocircuit_tiny_mask_ig.json", *tiny, method="mask-ig")
        freeze(out / "autocircuit_tiny_eap_ig.json", *tiny, method="eap-ig")
        freeze(out / "autocircuit_tiny_acdc.json", *tiny, method="acdc", tau=0.005)
        if craftgpt.is_dir():
            freeze(out / "autocircuit_craftgpt.json", craftgpt, out / "craftgpt_pairs.json")
        else:
            print(f"skipped autocircuit_craftgpt.json: no folder {craftgpt}")
    except (BadInput, OSError) as error:
        print(f"make_frozen.py: {error}", file=sys.stderr)
        return 2
    return 0


def make_tiny_model(folder: Path) -> None:
    """Save the seeded tiny GPT-2 and its tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    words = vocabulary()
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=32,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_inner=64,
        activation_function="gelu_new",
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_scale = ".ln_" in name and name.endswith("weight")
            parameter.copy_(WEIGHT_STD * noise + (1.0 if is_norm_scale else 0.0))
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(folder, words)


def vocabulary() -> list[str]:
    """Every token of the tiny model; a word inside a sentence carries its space."""
    spaced = [" " + word for word in SPACED_WORDS.split()]
    return [*MARKS, *FIRST_WORDS, *spaced]


def save_tokenizer(folder: Path, words: list[str]) -> None:
    """A word-level tokenizer that adds no token by itself, readable by transformers 4 and 5."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    table = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[a-z]+|[.,?:]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<end>",
        "eos_token": "<end>",
        "unk_token": "<unk>",
        "model_max_length": 32,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)


def pairs_json(rows) -> dict:
    """auto-circuit's prompt file: one answer and one wrong answer per pair."""
    return {
        "prompts": [
            {"clean": clean, "corrupt": corrupt, "answers": [right], "wrong_answers": [wrong]}
            for clean, corrupt, right, wrong in rows
        ]
    }


def craftgpt_rows():
    """Clean, corrupt, answer and wrong answer of each craftgpt pair, in its chat format."""
    for clean, corrupt, question, reply, right, wrong in CRAFTGPT_PAIRS:
        prompts = [CRAFTGPT_PROMPT.format(word, question, reply) for word in (clean, corrupt)]
        yield (*prompts, right, wrong)


def freeze(path: Path, folder: Path, pairs: Path, **options) -> None:
    """Run auto-circuit and write its numbers, with one line of summary."""
    result = autocircuit_result(folder, pairs, **options)
    write_json(path, result)
    circuits = ", ".join(f"{c['mean_logit_diff']:.4f}" for c in result["circuits"])
    print(
        f"{path.name}: {result['n_edges']} edges, clean {result['clean_mean']:.4f}, "
        f"corrupt {result['corrupt_mean']:.4f}, circuits {circuits}"
    )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(ROOT / "tests" / "data"))
    parser.add_argument("--craftgpt", default=str(ROOT.parent / "shared" / "models" / "craftgpt-5m"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
