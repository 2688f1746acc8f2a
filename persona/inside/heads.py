"""What a head looks at, and what it moves from there into the answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Block, Context

__all__ = ["Attention", "attention_of"]


@dataclass(frozen=True, eq=False)
class Attention:
    """All heads of a layer on one prompt.

    ``pattern`` is how much a query takes of each key's value, ``sizes`` how long what is taken of a key is in the
    stream, ``moved`` what each key adds to the read-out at the last position: summed over keys, the head's direct
    effect, as attention is linear in its values.
    """

    pattern: Float[Tensor, "head query key"]
    sizes: Float[Tensor, "head key"]
    moved: Float[Tensor, "head key"]


def attention_of(
    block: Block, resid: Float[Tensor, "1 pos d_model"], context: Context, read_out: Float[Tensor, " d_model"]
) -> Attention:
    """Attention of one layer, given the stream into it and the direction in which the answer is read.

    The pattern is what comes out where values are unit vectors, as many keys at a time as a head is wide: so it is the
    host's own attention, whatever masks, caps or sinks that has.
    """
    normed = block.attn_norm(resid)
    q, k, v = (block.project(slot, normed) for slot in SLOTS)
    _, pos, heads, width = v.shape
    parts = []
    for start in range(0, pos, width):
        n = min(width, pos - start)
        unit = v.new_zeros(1, pos, heads, width)
        unit[0, range(start, start + n), :, range(n)] = 1.0
        parts.append(block.attention(q, k, unit, context)[0, :, :, :n])
    pattern = torch.cat(parts, -1).transpose(0, 1)
    written = torch.einsum("khe,hed->hkd", v[0], block.W_O.to(v.dtype))
    readers = block.head_readers(block.attention(q, k, v, context)[:, -1:], read_out[None, None])[0, 0]
    moved = pattern[:, -1] * torch.einsum("khe,he->hk", v[0], readers)
    return Attention(pattern, written.norm(dim=-1), moved)
