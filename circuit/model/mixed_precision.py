"""Weights stored in half precision and computed with in float32: a part's weights are upcast only while it runs.

For the backward pass autograd keeps the half-precision weights and upcasts them again when it needs them. The only
extra memory is the float32 copy of one part at a time, and every number is that of a float32 model with the rounded
weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["HALF_PRECISION", "Upcasting"]

HALF_PRECISION = (torch.bfloat16, torch.float16)


class Upcasting:
    """The parts of one network whose weights are in half precision; ``on`` is entered while one of them runs."""

    def __init__(self) -> None:
        self._originals: dict[int, Tensor] = {}  # half-precision weights, by the data pointer of their float32 copy

    @contextlib.contextmanager
    def on(self, part: torch.nn.Module) -> Iterator[None]:
        """Within the block the part's weights are in float32."""
        weights = dict.fromkeys(part.parameters())
        originals = [(weight, weight.data) for weight in weights if weight.dtype in HALF_PRECISION]
        pointers = []
        try:
            for weight, data in originals:
                weight.data = data.float()
                pointers.append(weight.data.untyped_storage().data_ptr())
                self._originals[pointers[-1]] = data
            with torch.autograd.graph.saved_tensors_hooks(self._keep, _upcast):
                yield
        finally:
            for pointer in pointers:
                self._originals.pop(pointer, None)
            for weight, data in originals:
                weight.data = data

    def while_it_runs(self, part: torch.nn.Module) -> tuple[Any, Any]:
        """Make the part's own calls enter ``on``, until the hooks that are returned are removed."""
        entered: list[contextlib.AbstractContextManager[None]] = []

        def before(*_: Any) -> None:
            entered.append(self.on(part))
            entered[-1].__enter__()

        def after(*_: Any) -> None:
            entered.pop().__exit__(None, None, None)

        return part.register_forward_pre_hook(before), part.register_forward_hook(after, always_call=True)

    def _keep(self, saved: Tensor) -> Any:
        """What autograd keeps: for a float32 copy, or a view of one, the original weight and the view's shape."""
        original = self._originals.get(saved.untyped_storage().data_ptr())
        return saved if original is None else (original, saved.size(), saved.stride(), saved.storage_offset())


def _upcast(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    original, *view = kept
    return original.float().as_strided(*view)
