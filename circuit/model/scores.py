"""What a head's attention to a key is made of: its score, which is linear in the query and in the key.

The score that a softmax is taken of is q . k after rotations, times a scale, with masks and position biases added. With
the scale of every norm frozen at its value in this run (that before attention, those of queries and keys), q and k are
sums over the sources of the stream and a rest: biases of norms, of projections, and of attention's outputs before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.graph import Slot
from persona_circuits.circuit.model.block import Block, Context
from persona_circuits.circuit.model.norm import frozen_gain
from persona_circuits.circuit.model.rules import SOFTMAXES
from persona_circuits.circuit.model.stubs import stubbed_forward

__all__ = ["score_terms"]

AT_ONCE = 16
"""Sources whose terms are computed in one call of the host's attention."""
BOUND = 1e-3
"""How far the terms of a score may miss it, relative to the largest score; in float64 a millionth of that."""


def score_terms(
    block: Block, stream: Float[Tensor, "1 pos d_model"], written: Float[Tensor, "src pos d_model"], context: Context
) -> tuple[Float[Tensor, "term head pos"], Float[Tensor, "term head pos"], Float[Tensor, "head pos"]]:
    """Scores of all heads at the last position, as sums over what makes the query, and over what makes the keys.

    Parameters
    ----------
    stream
        What enters the layer, of one prompt.
    written
        What every source before the layer adds to it.

    Returns
    -------
    Terms of the query, terms of the keys, each in the order of the sources with the rest last, and the scores, in each
    case minus what masks and positions add. Keys that the mask leaves out have -inf as a score, and terms of 0.

    Raises
    ------
    ModelError
        Scores of this architecture are not linear in the query and in the key (a soft cap, say).
    """
    if "ln1" in block.bridge.submodules and block.pullback is None:
        raise ModelError(f"layer {block.layer}: the norm before attention has no scale that could be frozen")
    normed = block.attn_norm(stream)
    slots: tuple[Slot, Slot] = ("q", "k")
    q, k = (block.project(slot, normed) for slot in slots)
    q = q[:, -1:]
    parts = {slot: _parts(block, slot, stream, written, whole) for slot, whole in zip(slots, (q, k), strict=True)}
    gains: dict[Any, Tensor] = {}
    plain = _scores(block, q, k, context, lambda norm, x: gains.setdefault(norm, frozen_gain(norm, x)) * x)
    held: Callable[[Any, Tensor], Tensor] = lambda norm, x: gains[norm] * x  # noqa: E731
    nothing = _scores(block, torch.zeros_like(q), k, context, held)
    masked = nothing[0] <= torch.finfo(torch.float16).min
    whole = (plain - nothing)[0].masked_fill(masked, 0.0)

    def terms(some: Tensor, of_query: bool) -> Tensor:
        sums = []
        for each in some.split(AT_ONCE):
            other = (k if of_query else q).expand(len(each), -1, -1, -1)
            own_q, own_k = (each, other) if of_query else (other, each)
            sums.append(_scores(block, own_q, own_k, context, held) - nothing)
        return torch.cat(sums).masked_fill(masked, 0.0)

    query, key = terms(parts["q"], True), terms(parts["k"], False)
    bound = BOUND * float(whole.abs().max()) * (1e-6 if whole.dtype == torch.float64 else 1.0)
    if not all(bool(((term.sum(0) - whole).abs() <= bound + 1e-9).all()) for term in (query, key)):
        raise ModelError(
            f"layer {block.layer}: the scores of attention are not sums over what makes queries and keys in this "
            "architecture; why its heads attend cannot be told"
        )
    return query, key, whole.masked_fill(masked, float("-inf"))


def _parts(
    block: Block, slot: Slot, stream: Tensor, written: Tensor, whole: Float[Tensor, "1 place head d_head"]
) -> Float[Tensor, "term place head d_head"]:
    """Queries or keys of every source alone, with the norm's scale frozen, and what is left of the whole."""
    n, form = whole.shape[1], block.pullback if "ln1" in block.bridge.submodules else None
    writes = written[:, -n:]
    if form is not None:
        centred = writes - writes.mean(-1, keepdim=True) if form.centred else writes
        writes = centred * form.parts(stream[:, -n:])[1] * form.weight
    own = torch.einsum("spd,hde->sphe", writes, block.weights[slot].to(writes))
    return torch.cat([own, whole - own.sum(0, keepdim=True)])


def _scores(
    block: Block, q: Tensor, k: Tensor, context: Context, norm: Callable[[Any, Tensor], Tensor]
) -> Float[Tensor, "rows head pos"]:
    """What the host's softmax is taken of at the last query; ``norm`` stands for the norms of queries and keys."""
    attn, seen = block.bridge.attn, _Seen()
    own = [part for name, part in attn.submodules.items() if name in ("q_norm", "k_norm")]
    stubs = {part: (lambda x, part=part: _without(part, norm, x)) for part in own}
    with torch.no_grad(), stubbed_forward(stubs), seen:
        block.attention(q, k, torch.zeros_like(k), context)
    if len(seen.found) != 1 or seen.found[0].dim() != 4:
        raise ModelError(f"layer {block.layer}: its attention runs without a softmax of torch's that could be read")
    return seen.found[0][:, :, -1, : k.shape[1]].to(q)


def _without(part: Any, norm: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
    """``norm`` in place of the part's own forward pass, which it may call."""
    stub = part.__dict__.pop("forward")
    try:
        return norm(part, x)
    finally:
        part.__dict__["forward"] = stub


class _Seen(TorchFunctionMode):
    """What every softmax of torch's is taken of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in SOFTMAXES:
            self.found.append(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)
