"""The residual stream as the whole model runs: read after every block, or changed after some.

Layer l is the stream after block l, from 0; the last layer is what the final norm reads.
The model's own forward pass runs, cache and all; nothing else of it is touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.model import Model, of_prompts
from persona_circuits.circuit.model.finite import check_finite

__all__ = ["Change", "chosen_layer", "mean_streams", "on_streams"]

Change = Callable[[Float[Tensor, "batch pos d_model"]], Tensor | None]


@contextlib.contextmanager
def on_streams(model: Model, changes: Mapping[int, Change]) -> Iterator[None]:
    """Within the block the stream after each named layer goes through its function.

    A function gets ``[batch, pos, d_model]`` and returns what takes its place, or None to leave it.
    """
    handles = []
    try:
        for layer, change in changes.items():
            point = model.bridge.blocks[layer].hook_out
            handles.append(point.register_forward_hook(_as_hook(change)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean_streams(
    model: Model, tokens: Int[Tensor, "batch pos"], inside: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch layer d_model"]:
    """The mean stream after every block over each row's marked positions, from one forward pass.

    Rows have one length and no padding; every row has a position marked. The sums are of
    float32 at least, whatever the weights are.

    Raises:
        ModelError: one is not finite.
    """
    by_layer: dict[int, Tensor] = {}
    share = inside.to(torch.promote_types(model.dtype, torch.float32))
    share = share / share.sum(1, keepdim=True)

    def reading(layer: int) -> Change:
        def read(stream: Tensor) -> None:
            by_layer[layer] = torch.einsum("bp,bpd->bd", share.to(stream.device), stream.to(share.dtype)).cpu()

        return read

    with on_streams(model, {layer: reading(layer) for layer in range(model.graph.n_layers)}):
        model.logits(tokens)
    means = torch.stack([by_layer[layer] for layer in range(model.graph.n_layers)], dim=1)
    check_finite(means, of_prompts(model, tokens), "streams")
    return means


def chosen_layer(n_layers: int, layer: int | None, fraction: float | None) -> int:
    """The layer that is named, or the one after which that fraction of the blocks lies.

    Without either, fraction 0.5: the layer after half of the blocks. Fraction f of n blocks is after
    int(n f + .5) of them, halves rounded up, which is ``hidden_states[int(n * f + .5)]`` of transformers; where that
    is none, after the first.

    Raises:
        OptionError: both are given, or one is out of range.
    """
    if layer is not None and fraction is not None:
        raise OptionError("give --layer or --layer-fraction, not both")
    if layer is not None:
        if not 0 <= layer < n_layers:
            raise OptionError(f"layer {layer} is not one of 0 to {n_layers - 1}")
        return layer
    share = 0.5 if fraction is None else fraction
    if not 0 < share <= 1:
        raise OptionError(f"layer fraction {share:g} is not in (0, 1]")
    return max(0, int(share * n_layers + 0.5) - 1)


def _as_hook(change: Change) -> Callable[[Any, Any, Tensor], Tensor | None]:
    return lambda _module, _inputs, stream: change(stream)
