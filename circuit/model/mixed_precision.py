"""Weights held in a short format and computed with in float32: a part's weights are long only while it runs.

What autograd keeps of such weights for its backward pass is the short ones, from which the long ones are
made again when they are needed. So the float32 copy of one part at a time is all that is added, and
every number is that of a float32 model with the rounded weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["SHORT", "Held"]

SHORT = (torch.bfloat16, torch.float16)


class Held:
    """The parts of one network whose weights are short; ``long`` is entered while one of them runs."""

    def __init__(self) -> None:
        self._live: dict[int, Tensor] = {}  # of every long copy there is: where it lies, and the short one

    @contextlib.contextmanager
    def long(self, part: torch.nn.Module) -> Iterator[None]:
        """The part's weights in float32 for the time of a block, but for those that are long already."""
        short = [(weight, weight.data) for weight in dict.fromkeys(part.parameters()) if weight.dtype in SHORT]
        places = []
        try:
            for weight, data in short:
                weight.data = data.float()
                places.append(weight.data.untyped_storage().data_ptr())
                self._live[places[-1]] = data
            with torch.autograd.graph.saved_tensors_hooks(self._keep, _lengthened):
                yield
        finally:
            for place in places:
                self._live.pop(place, None)
            for weight, data in short:
                weight.data = data

    def while_it_runs(self, part: torch.nn.Module) -> tuple[Any, Any]:
        """Make the part's own calls enter ``long``, until the hooks that are returned are removed."""
        entered: list[contextlib.AbstractContextManager[None]] = []

        def before(*_: Any) -> None:
            entered.append(self.long(part))
            entered[-1].__enter__()

        def after(*_: Any) -> None:
            entered.pop().__exit__(None, None, None)

        return part.register_forward_pre_hook(before), part.register_forward_hook(after, always_call=True)

    def _keep(self, saved: Tensor) -> Any:
        """What autograd keeps: in place of a long copy, or of a view of one, the short weight and the view's shape."""
        short = self._live.get(saved.untyped_storage().data_ptr())
        return saved if short is None else (short, saved.size(), saved.stride(), saved.storage_offset())


def _lengthened(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    short, *view = kept
    return short.float().as_strided(*view)
