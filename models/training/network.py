"""The embedded model's architecture and a training pass that is fast on a CPU.

The model is transformers' own `GPT2LMHeadModel`. `logits_at` computes the same
function over the same parameters with fewer and larger operations, takes the
vocabulary's logits only where they are needed, and runs its matrix products in
bfloat16 where asked; a test compares it with the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

__all__ = ["build_model", "logits_at", "next_token_logits"]


def build_model(
    *, vocab_size: int, d_model: int, n_positions: int, n_layers: int = 12, n_heads: int = 12, seed: int = 0
) -> GPT2LMHeadModel:
    """A fresh GPT-2 with dropout 0 and seeded weights; leaves the global random state alone."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=n_positions,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=n_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        architectures=["GPT2LMHeadModel"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def logits_at(
    model: GPT2LMHeadModel, ids: Int[Tensor, "batch pos"], rows: Int[Tensor, " n"], *, bfloat16: bool = True
) -> Float[Tensor, "n vocab"]:
    """Next-token logits at chosen positions, `rows` counting through the flattened batch."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bfloat16):
        hidden = model.transformer.wte(ids) + model.transformer.wpe.weight[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, -1e9, device=ids.device).triu(1)
        for block in model.transformer.h:
            hidden = hidden + _attention(block, hidden, mask)
            hidden = hidden + _mlp(block, hidden)
        chosen = model.transformer.ln_f(hidden.flatten(0, 1)[rows])
        return (chosen @ model.transformer.wte.weight.T).float()


@torch.no_grad()
def next_token_logits(model: GPT2LMHeadModel, texts: Sequence[Sequence[int]]) -> Float[Tensor, "n vocab"]:
    """The model's own next-token logits after each text, on the CPU; padding stands to the right, unseen."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=model.device)
    ends = torch.tensor([len(text) - 1 for text in texts], device=model.device)
    mask = (torch.arange(longest, device=model.device) <= ends[:, None]).long()
    hidden = model.transformer(ids, attention_mask=mask).last_hidden_state
    return model.lm_head(hidden[torch.arange(len(texts)), ends]).float().cpu()


def _attention(block: GPT2Block, hidden: Tensor, mask: Tensor) -> Tensor:
    batch, length, width = hidden.shape
    heads = block.attn.num_heads
    split = block.attn.c_attn(block.ln_1(hidden)).view(batch, length, 3, heads, width // heads)
    query, key, value = split.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, length, -1).unbind(0)
    pattern = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=(width // heads) ** -0.5).softmax(-1)
    mixed = (pattern.to(value.dtype) @ value).view(batch, heads, length, -1).transpose(1, 2)
    return block.attn.c_proj(mixed.reshape(batch, length, width))


def _mlp(block: GPT2Block, hidden: Tensor) -> Tensor:
    inner = F.gelu(block.mlp.c_fc(block.ln_2(hidden)), approximate="tanh")
    return block.mlp.c_proj(inner)
