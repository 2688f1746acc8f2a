"""Model shapes with random weights, and random pairs for them: what the benchmarks run on.

Nothing is downloaded, and no number depends on what a model has learned. The tokenizer is the
shipped model's and only there because a model has one; pairs are token ids.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from persona_circuits.circuit.model import DTYPES, Model, wrap_model
from persona_circuits.circuit.task import MODEL, Batch, resolve

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its pairs; ``kv_heads`` below ``heads`` means grouped queries."""

    name: str
    family: str
    layers: int
    heads: int
    d_model: int
    d_mlp: int
    vocab: int
    kv_heads: int = 0
    pairs: int = 8
    tokens: int = 24
    std: float = 0.06  # of the weights; at the usual .02 no edge matters more than rounding does

    @property
    def title(self) -> str:
        """What the tables call it."""
        groups = f" in {self.kv_heads} groups" if self.kv_heads else ""
        return (
            f"{self.name}: {self.layers} layers, {self.heads} heads{groups}, width {self.d_model}, vocabulary "
            f"{self.vocab:,}; {self.pairs} pairs of {self.tokens} tokens"
        )

    def config(self) -> Any:
        """The Hugging Face config."""
        from transformers import GPT2Config, LlamaConfig

        context = max(128, self.tokens)
        if self.family == "gpt2":
            return GPT2Config(
                vocab_size=self.vocab,
                n_positions=context,
                n_embd=self.d_model,
                n_layer=self.layers,
                n_head=self.heads,
                n_inner=self.d_mlp,
                initializer_range=self.std,
                bos_token_id=0,
                eos_token_id=0,
            )
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.d_model,
            intermediate_size=self.d_mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            max_position_embeddings=context,
            initializer_range=self.std,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=True,
        )

    def network(self, device: Any = "cpu", dtype: str = "float32", *, seed: int = 0) -> Any:
        """The bare Hugging Face model with random weights and frozen parameters."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        with torch.device(device):
            network = AutoModelForCausalLM.from_config(self.config())
        return network.to(DTYPES[dtype]).eval().requires_grad_(False)

    def model(self, device: Any = "cpu", dtype: str = "float32", *, seed: int = 0) -> Model:
        """The same weights, taken apart by the engine."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL))
        return wrap_model(self.network(device, dtype, seed=seed), tokenizer, name=self.name, device=device)

    def batch(self, device: Any = "cpu", *, seed: int = 1, pairs: int | None = None) -> Batch:
        """Random pairs that differ in three tokens from the fourth on; the answers of a pair differ."""
        generator = torch.Generator().manual_seed(seed)
        count, half = pairs or self.pairs, self.vocab // 2

        def ids(low: int, high: int, width: int) -> torch.Tensor:
            return torch.randint(low, high, (count, width), generator=generator)

        clean = ids(0, self.vocab, self.tokens)
        corrupt = clean.clone()
        place = slice(3, min(6, self.tokens - 1))
        corrupt[:, place] = ids(0, self.vocab, len(range(*place.indices(self.tokens))))
        answers, wrong = ids(0, half, 1), ids(half, self.vocab, 1)
        clean, corrupt, answers, wrong = (tensor.to(device) for tensor in (clean, corrupt, answers, wrong))
        return Batch(tuple(range(count)), clean, corrupt, answers, wrong)

    def save(self, folder: Path, *, seed: int = 0) -> Path:
        """The model as a Hugging Face folder, for other programs."""
        self.network(seed=seed).save_pretrained(folder)
        for name in TOKENIZER_FILES:
            shutil.copy(Path(resolve(MODEL)) / name, folder / name)
        return folder

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def tiny(self) -> Shape:
        """Two layers of two heads with the same options, to try the code and not the speed."""
        kv_heads = 1 if self.kv_heads else 0
        return replace(
            self,
            layers=2,
            heads=2,
            kv_heads=kv_heads,
            d_model=16,
            d_mlp=32,
            vocab=60,
            tokens=8,
            pairs=min(4, self.pairs),
        )


def rows_of(batch: Batch) -> list[dict[str, list[int]]]:
    """The pairs of a batch as other programs take them: token ids."""
    keys = ("clean", "corrupt", "answers", "wrong_answers")
    return [{key: getattr(batch, key)[i].tolist() for key in keys} for i in range(len(batch))]


GPT2 = Shape("GPT-2 small", "gpt2", 12, 12, 768, 3072, 5000)
GPT2_64 = replace(GPT2, name="GPT-2 small, longer", tokens=64)
GROUPED = Shape("grouped queries", "llama", 8, 16, 512, 1536, 5000, kv_heads=4)
SMOLLM2 = Shape("SmolLM2 135M", "llama", 30, 9, 576, 1536, 49152, kv_heads=3, tokens=40)
SMALL = Shape("small", "gpt2", 4, 4, 64, 256, 500, std=0.2)

GPU_SHAPES = {
    "gpt2-small": Shape("GPT-2 small", "gpt2", 12, 12, 768, 3072, 50257, pairs=200),
    "gpt2-medium": Shape("GPT-2 medium", "gpt2", 24, 16, 1024, 4096, 50257, pairs=200),
    "llama-3b": Shape("Llama 3B", "llama", 28, 24, 3072, 8192, 128256, kv_heads=8, pairs=200),
}


def main() -> None:
    """Print the shapes as JSON."""
    print(
        json.dumps(
            [shape.as_dict() for shape in (GPT2, GPT2_64, GROUPED, SMOLLM2, SMALL, *GPU_SHAPES.values())], indent=1
        )
    )


if __name__ == "__main__":
    main()
