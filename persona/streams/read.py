"""The residual stream at named positions, between the blocks; and what every node wrote there at one of them.

``point`` p is the stream after p blocks: 0 enters the first block, p leaves block p - 1
and enters block p, the last one enters the final norm. Prompts are grouped by length and
never padded, so no number depends on what shares a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Model, of_prompts
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.circuit.task import FormTable

__all__ = ["collect", "grouped", "id_table", "point_names", "trace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass, seen at the chosen positions.

    ``streams`` are ``[point, batch, position, d_model]``. ``parts`` is what every source of
    the graph adds at one token, ``[src, batch, d_model]``, and ``biases`` what attention
    adds there besides its heads, ``[layer, batch, d_model]``; both None unless asked for.
    """

    streams: Float[Tensor, "point batch position d_model"]
    parts: Float[Tensor, "src batch d_model"] | None = None
    biases: Float[Tensor, "layer batch d_model"] | None = None


def trace(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    places: Int[Tensor, "batch position"],
    *,
    with_parts: bool = False,
    parts_at: Int[Tensor, " batch"] | None = None,
    forms: FormTable | None = None,
) -> Trace:
    """Run prompts of one length and keep the streams at ``places``, the token index of each named position.

    Heads' results are kept for one token of each prompt, ``parts_at`` or the last, so the cost in
    memory is that of the streams. ``forms`` are there where the rows end in beginnings of options' forms.

    Raises:
        ModelError: a stream is not finite.
    """
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    at = rows.new_full(rows.shape, tokens.shape[1] - 1) if parts_at is None else parts_at[:, None]
    graph = model.graph
    with torch.no_grad():
        resid, context = model.start(tokens, None, forms)
        streams = [resid[rows, places]]
        parts, biases = [resid[rows, at].transpose(0, 1)], []
        for block in model.blocks:
            normed = block.attn_norm(resid)
            q, k, v = (block.project(slot, normed) for slot in SLOTS)
            z = block.attention(q, k, v, context)
            after = resid + block.attn_out(z)
            mlp = block.mlp(resid if block.parallel else after)
            if with_parts:
                here = z[rows, at]
                parts += [block.head_results(here)[:, :, 0], mlp[rows, at].transpose(0, 1)]
                biases.append(block.attn_out(torch.zeros_like(here))[:, 0])
            resid = after + mlp
            streams.append(resid[rows, places])
    seen = torch.stack(streams)
    check_finite(seen.transpose(0, 1), of_prompts(model, tokens), "streams")
    if not with_parts:
        return Trace(seen)
    joined = torch.cat(parts)
    assert len(joined) == graph.n_src, "one part per source of the graph"
    return Trace(seen, joined, torch.stack(biases))


def collect(
    model: Model,
    prompts: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Float[Tensor, "prompt point position d_model"]:
    """Streams of every prompt at its own places, in float32 on the CPU, in the order given.

    Parameters
    ----------
    prompts
        Token ids.
    places
        Of each prompt the token index of each position; as many for all.
    progress
        Called with the number of prompts done and of all.
    """
    n_positions = len(places[0])
    shape = (len(prompts), len(model.blocks) + 1, n_positions, model.d_model)
    streams = torch.empty(shape, dtype=torch.float32)
    done = 0
    for group in grouped([len(ids) for ids in prompts], batch_size):
        tokens = torch.tensor([list(prompts[i]) for i in group], device=model.device)
        at = torch.tensor([list(places[i]) for i in group], device=model.device)
        streams[group] = trace(model, tokens, at).streams.transpose(0, 1).float().cpu()
        done += len(group)
        (progress or untold)(done, len(prompts))
    return streams


def grouped(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places of equal length together, at most ``batch_size`` at a time, the shortest first."""
    for length in sorted(set(lengths)):
        places = [i for i, other in enumerate(lengths) if other == length]
        for start in range(0, len(places), batch_size):
            yield places[start : start + batch_size]


def id_table(lists: Sequence[Sequence[int]], *, width: int = 0) -> Int[Tensor, "row n"]:
    """Lists of token ids as rows of one table, as wide as the longest or as ``width``; -1 stands for nothing."""
    width = max(width, *(len(ids) for ids in lists))
    return torch.tensor([[*ids, *[-1] * (width - len(ids))] for ids in lists])


def point_names(n_layers: int) -> tuple[str, ...]:
    """What stands on an axis for each point: ``embedding``, then ``block 0`` and so on: after that block."""
    return ("embedding", *(f"block {layer}" for layer in range(n_layers)))
