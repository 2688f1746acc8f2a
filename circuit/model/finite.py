"""Whether what a model computes is finite: one check for logits, streams and metrics.

Activations can overflow in half precision: logits are then nan or infinite, and what is computed from them
(an argmax, a share, a p-value) may look like a result. Every pass that is read goes through ``check_finite``, once,
where its numbers are about to leave the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persona_circuits.circuit.errors import ModelError

__all__ = ["Name", "check_finite", "of_prompts"]

SHOWN = 60
"""Characters of a prompt that a message shows, the last ones."""
Name = Callable[[int], str]
"""From the place of a row to what messages call it."""


def check_finite(values: Tensor | np.ndarray, name: Name, what: str = "logits") -> None:
    """Refuse values of which any is nan or infinite; the first axis is the rows', ``name`` says what they are called.

    Raises:
        ModelError: names the first such row.
    """
    if not values.shape[0] or _is_finite(values):
        return
    rows = torch.as_tensor(values).reshape(len(values), -1)
    bad = (~rows.isfinite()).nonzero()[0].tolist()
    raise ModelError(
        f"the {what} of {name(bad[0])} are {rows[tuple(bad)].item()}; {what} must be finite. Load the model in float32 "
        "if it ran in half precision"
    )


def of_prompts(model: Any, prompts: Sequence[Sequence[int]] | Tensor) -> Name:
    """Calls rows by the end of their prompts, in the words of the model's tokenizer."""

    def name(row: int) -> str:
        ids = [int(token) for token in prompts[row]]
        text = "" if model.tokenizer is None else model.tokenizer.decode(ids)
        return f"the prompt {text if len(text) <= SHOWN else '…' + text[-SHOWN:]!r}" if text else f"prompt {row + 1}"

    return name


def _is_finite(values: Tensor | np.ndarray) -> bool:
    """By the least and the largest value, which are nan where any is: no copy is made of what may be large."""
    if not values.size if isinstance(values, np.ndarray) else not values.numel():
        return True
    if isinstance(values, np.ndarray):
        return bool(np.isfinite(values.min()) and np.isfinite(values.max()))
    return bool(torch.stack(values.detach().aminmax()).isfinite().all())
