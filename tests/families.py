"""Model families built from their Hugging Face configurations: two layers, four heads, random weights.

    python -m tests.families --table     run the oracles on every family, write the tables of docs/models.md and README

A family here is an architecture of the host library with the switches that make it hard.
Nothing is downloaded; the weights are drawn from a seed, large enough that every part matters.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DATA = Path(__file__).resolve().parent / "data"
VOCAB, WIDTH, HEADS, D_HEAD, D_MLP, CONTEXT = 64, 24, 4, 6, 40, 32


@dataclass(frozen=True)
class Family:
    """A configuration by its Hugging Face class; ``examples`` are models that have it, ``parts`` what is hard in it.

    ``no_reference`` says why there is no edge-by-edge comparison, ``refused`` why the model is refused.
    """

    config: str
    options: dict[str, Any]
    examples: str
    parts: tuple[str, ...] = ()
    no_reference: str = ""
    refused: str = ""

    def make_config(self) -> Any:
        """The Hugging Face config."""
        import transformers

        return getattr(transformers, self.config)(**self.options)

    def has(self, part: str) -> bool:
        """Whether one of the hard parts begins like this."""
        return any(one.startswith(part) for one in self.parts)


def _sizes(**more: Any) -> dict[str, Any]:
    """What most configurations call their sizes."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": D_MLP,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        **more,
    }


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}
GROUPED = {"num_key_value_heads": 2}
GEMMA3 = _sizes(**GROUPED, **MIXED, head_dim=8, query_pre_attn_scalar=5)
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT2Config",
        {
            "vocab_size": VOCAB,
            "n_positions": CONTEXT,
            "n_embd": WIDTH,
            "n_layer": 2,
            "n_head": HEADS,
            "n_inner": D_MLP,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "GPT-2, small to XL; DistilGPT-2",
        ("learned positions",),
    ),
    "llama2": Family("LlamaConfig", _sizes(tie_word_embeddings=False), "Llama 2 7B, 13B; Vicuna", ("rotary",)),
    "llama3.2": Family(
        "LlamaConfig",
        _sizes(**GROUPED, rope_parameters=LLAMA3, tie_word_embeddings=True),
        "Llama 3, 3.1, 3.2",
        ("rotary, scaled", "grouped queries", "tied embeddings"),
    ),
    "qwen2.5": Family(
        "Qwen2Config",
        _sizes(**GROUPED, tie_word_embeddings=True),
        "Qwen 2, 2.5",
        ("grouped queries", "attention biases", "tied embeddings"),
    ),
    "qwen3": Family("Qwen3Config", _sizes(**GROUPED, head_dim=8), "Qwen 3", ("grouped queries", "query and key norms")),
    "gemma": Family(
        "GemmaConfig", _sizes(num_key_value_heads=1, head_dim=8), "Gemma 1", ("one key-value head", "embedding scale")
    ),
    "gemma2": Family(
        "Gemma2Config",
        _sizes(
            **GROUPED,
            **MIXED,
            head_dim=8,
            query_pre_attn_scalar=5,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        "Gemma 2",
        ("norms after components", "soft caps", "sliding and global layers", "embedding scale"),
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        GEMMA3,
        "Gemma 3 1B; the text part of 4B to 27B",
        ("norms after components", "query and key norms", "sliding and global layers", "two rotary bases"),
    ),
    "gemma3, multimodal": Family(
        "Gemma3Config",
        {"text_config": GEMMA3, "vision_config": VISION, "mm_tokens_per_image": 4},
        "Gemma 3 4B, 12B, 27B",
        ("text part of a multimodal model",),
    ),
    "mistral": Family(
        "MistralConfig", _sizes(**GROUPED, sliding_window=3), "Mistral 7B v0.1", ("grouped queries", "sliding window")
    ),
    "olmo": Family("OlmoConfig", _sizes(clip_qkv=1.0), "OLMo 1", ("norms without weights", "clipped q, k, v")),
    "olmo2": Family("Olmo2Config", _sizes(), "OLMo 2", ("norms after components only", "query and key norms")),
    "olmo2, grouped": Family(
        "Olmo2Config",
        _sizes(**GROUPED),
        "OLMo 2 32B",
        ("norms after components only", "query and key norms", "grouped queries"),
        no_reference="one norm over the keys of all groups has no per-head keys to compare with",
    ),
    "olmo3": Family(
        "Olmo3Config",
        _sizes(**MIXED),
        "OLMo 3",
        ("norms after components only", "query and key norms", "sliding and global layers"),
    ),
    "neox, parallel": Family(
        "GPTNeoXConfig",
        _sizes(rotary_pct=0.34, use_parallel_residual=True),
        "Pythia, GPT-NeoX",
        ("parallel attention and MLP", "partial rotary"),
    ),
    "neox, sequential": Family(
        "GPTNeoXConfig",
        _sizes(rotary_pct=0.34, use_parallel_residual=False),
        "StableLM-alpha, RedPajama",
        ("partial rotary",),
    ),
    "gpt-neo": Family(
        "GPTNeoConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_layers": 2,
            "num_heads": HEADS,
            "intermediate_size": D_MLP,
            "max_position_embeddings": CONTEXT,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 3,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "GPT-Neo; TinyStories",
        ("unscaled attention", "local attention", "learned positions"),
    ),
    "gptj": Family(
        "GPTJConfig",
        {
            "vocab_size": VOCAB,
            "n_positions": CONTEXT,
            "n_embd": WIDTH,
            "n_layer": 2,
            "n_head": HEADS,
            "rotary_dim": 4,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "GPT-J",
        ("parallel attention and MLP", "partial rotary, interleaved", "one norm for both"),
    ),
    "phi": Family(
        "PhiConfig",
        _sizes(partial_rotary_factor=0.34),
        "Phi 1, 1.5, 2",
        ("parallel attention and MLP", "partial rotary", "one norm for both", "biased unembedding"),
    ),
    "phi3": Family(
        "Phi3Config",
        _sizes(**GROUPED, pad_token_id=0),
        "Phi 3, 3.5, 4",
        ("joint q, k, v projection", "grouped queries"),
    ),
    "mixtral": Family(
        "MixtralConfig",
        _sizes(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
        "Mixtral",
        ("mixture of experts",),
    ),
    "qwen3-moe": Family(
        "Qwen3MoeConfig",
        _sizes(**GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
        "Qwen 3 30B-A3B",
        ("mixture of experts", "query and key norms"),
    ),
    "granite": Family(
        "GraniteConfig",
        _sizes(
            **GROUPED, embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.3
        ),
        "Granite 3",
        ("embedding scale", "logit scale", "scaled branches"),
    ),
    "cohere": Family(
        "CohereConfig",
        _sizes(**GROUPED, logit_scale=0.5),
        "Command R",
        ("logit scale", "parallel attention and MLP", "one norm for both"),
    ),
    "stablelm": Family(
        "StableLmConfig", _sizes(num_key_value_heads=4, partial_rotary_factor=0.34), "StableLM 2", ("partial rotary",)
    ),
    "gpt-oss": Family(
        "GptOssConfig",
        _sizes(
            **GROUPED,
            **MIXED,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        "gpt-oss",
        ("mixture of experts", "attention sinks"),
    ),
}


REFUSED: dict[str, Family] = {
    "opt": Family(
        "OPTConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "ffn_dim": D_MLP,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": WIDTH,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        "OPT",
        ("learned positions",),
        refused="the MLP is no module of its own",
    ),
    "falcon": Family(
        "FalconConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "ffn_hidden_size": D_MLP,
            "multi_query": True,
            "parallel_attn": True,
            "new_decoder_architecture": False,
            "alibi": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "Falcon 7B",
        ("parallel attention and MLP", "one key-value head, joint projection"),
        refused="keys and values of all heads are one joint projection that cannot be repeated per head",
    ),
    "bloom": Family(
        "BloomConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "n_layer": 2,
            "n_head": HEADS,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "BLOOM",
        ("ALiBi",),
        refused="the MLP adds the residual stream inside itself",
    ),
}


def network_of(family: Family, *, seed: int = 0, std: float = 0.25) -> Any:
    """A causal language model of this configuration, its weights drawn anew."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(seed)
    config = family.make_config()
    kind = AutoModelForCausalLM
    if hasattr(config, "vision_config"):
        kind = AutoModelForImageTextToText
    network = kind.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            centre = 1.0 if "norm" in name and weight.dim() == 1 and "bias" not in name else 0.0
            weight.copy_(centre + std * torch.randn(weight.shape, generator=generator))
    return network.eval()


def save(name: str, folder: Path) -> Path:
    """Write a family's model and the tiny tokenizer into a folder, as they come from the hub."""
    network_of({**FAMILIES, **REFUSED}[name]).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "tiny-gpt2" / file, folder)
    return folder


CHECKS = {
    "test_logits_are_hugging_faces": "logits",
    "test_full_circuit_is_clean_and_empty_is_corrupt": "full and empty",
    "test_edge_by_edge_reference": "edge by edge, EAP = autograd",
    "test_exact_patching_is_eap_to_first_order": "exact = EAP, first order",
    "test_acdc_in_batches_is_acdc_edge_by_edge": "ACDC batched",
    "test_padded_prompts_are_the_prompts_alone": "padding",
    "test_zero_ablation_edge_by_edge": "zero ablation, edge by edge",
    "test_circuits_share_a_pass_at_any_batch_size": "aligned right, passes shared",
    "test_streams_and_parts_for_lens_probes_and_vectors": "streams",
    "test_lens_probes_vectors_and_neurons_run": "lens, probes, vectors, neurons",
}
RECORD = DATA.parent.parent / "circuit" / "profiling" / "families.json"
PAGE = DATA.parent.parent / "docs" / "models.md"
README = DATA.parent.parent / "README.md"
START, END = "<!-- families: written by python -m tests.families --table -->", "<!-- end of families -->"


class _Outcomes:
    """A pytest plugin that keeps what came of every check of every family."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        match = re.search(r"::(test_\w+)\[(.+)\]$", report.nodeid)
        if match is None or match[1] not in CHECKS or (report.when != "call" and report.outcome == "passed"):
            return
        self.found.setdefault(match[2], {})[CHECKS[match[1]]] = report.outcome


def run_checks() -> dict[str, Any]:
    """Run the tests of all families; what ``circuit/profiling/families.json`` holds."""
    from importlib.metadata import version

    import pytest

    outcomes = _Outcomes()
    file = Path(__file__).resolve().parent / "circuit" / "test_families.py"
    pytest.main(["-q", str(file)], plugins=[outcomes])
    families = [
        {
            "name": name,
            "architecture": _architecture(family),
            "examples": family.examples,
            "parts": list(family.parts),
            "checks": {check: outcomes.found.get(name, {}).get(check, "not run") for check in CHECKS.values()},
            "note": family.no_reference,
        }
        for name, family in FAMILIES.items()
    ]
    refused = [
        {"name": name, "architecture": _architecture(family), "examples": family.examples, "reason": family.refused}
        for name, family in REFUSED.items()
    ]
    versions = {name: version(name) for name in ("torch", "transformers", "transformer_lens")}
    return {"versions": versions, "families": families, "refused": refused}


def _architecture(family: Family) -> str:
    return type(network_of(family)).__name__


def table(record: dict[str, Any]) -> str:
    """The families and their checks as a Markdown table."""
    sign = {"passed": "yes", "skipped": "—", "failed": "**no**", "not run": "not run"}
    checks = list(CHECKS.values())
    rows = [
        [one["name"], one["examples"], ", ".join(one["parts"]), *(sign[one["checks"][check]] for check in checks)]
        for one in record["families"]
    ]
    head = ["family", "models", "what is hard in it", *checks]
    lines = [head, ["---"] * 3 + [":-:"] * len(checks), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def short_table(record: dict[str, Any]) -> str:
    """A row for each family: how many of the checks it passed, and which it did not."""
    lines = ["| family | models | checks passed | what is hard in it |", "| --- | --- | --- | --- |"]
    for one in record["families"]:
        checks = one["checks"]
        passed = sum(found == "passed" for found in checks.values())
        other = [f"{name} {found}" for name, found in checks.items() if found != "passed"]
        says = ": ".join(filter(None, [f"{passed} of {len(checks)}", "; ".join(other)]))
        lines.append(f"| {one['name']} | {one['examples']} | {says} | {', '.join(one['parts'])} |")
    return "\n".join(lines)


def _write(page: Path, text: str) -> None:
    before, rest = page.read_text().split(START)
    page.write_text(f"{before}{START}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def main(argv: list[str] | None = None) -> int:
    """Run the checks and write the record and the table; 1 if a check failed."""
    parser = argparse.ArgumentParser(description="What works on which model family.")
    parser.add_argument("--table", action="store_true", help="write families.json, docs/models.md and README")
    args = parser.parse_args(argv)
    record = run_checks()
    text = table(record)
    print(text)
    if args.table:
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        _write(PAGE, text)
        _write(README, short_table(record))
    results = {value for one in record["families"] for value in one["checks"].values()}
    return 1 if results & {"failed", "not run"} else 0


if __name__ == "__main__":
    sys.exit(main())
