"""What the final norm and the unembedding make of a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from persona_circuits import metrics
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model

__all__ = ["Decision", "component_names", "decision", "read_out", "read_out_direction"]

N_SKETCHES = 8  # read-outs from which the norm's scale is found


@dataclass(frozen=True)
class Decision:
    """Where D is decided: points count blocks that ran, ``jump`` is a block; None where D is 0 or does not move."""

    pivot: int | None
    jump: int | None
    stable_from: int | None
    choice_a: int
    choice_b: int


def component_names(graph: Graph) -> tuple[str, ...]:
    """What D is shared among: ``input`` (with positions), heads, MLPs, then ``b0`` …, the attention biases."""
    return (*map(str, graph.src_nodes), *(f"b{layer}" for layer in range(graph.n_layers)))


def decision(divergence: Float[np.ndarray, " point"], choices_a: Sequence[int], choices_b: Sequence[int]) -> Decision:
    """The decision of one pair, from D by point and the most likely candidates by point."""
    final = divergence[-1]
    signed = divergence * np.sign(final)
    steps = np.diff(signed)
    moved = final != 0
    return Decision(
        pivot=int(np.argmax(signed >= abs(final) / 2)) if moved else None,
        jump=int(np.argmax(steps)) if moved and steps.max(initial=0.0) > 0 else None,
        stable_from=_stable_from(signed > 0) if moved else None,
        choice_a=_stable_from(np.asarray(choices_a) == choices_a[-1]),
        choice_b=_stable_from(np.asarray(choices_b) == choices_b[-1]),
    )


def read_out(
    model: Model,
    resid: Float[Tensor, "batch d_model"],
    answers: Int[Tensor, "batch n_answers"],
    wrong_answers: Int[Tensor, "batch n_wrong"],
) -> Float[Tensor, "batch d_model"]:
    """The direction v of each row in which the final stream is read: m(resid) = v . resid + constant.

    The norm's scale is that of ``resid`` and held fixed, so v shares the margin among what
    was added to the stream. The constant (the biases' margin) depends on the answers alone.
    """
    slope = _slope_at_zero(model, resid, lambda logits: metrics.logit_diff(logits, answers, wrong_answers))
    return slope * _norm_scale(model, resid)[:, None]


def read_out_direction(
    model: Model, answers: Int[Tensor, "batch n_answers"], wrong_answers: Int[Tensor, "batch n_wrong"]
) -> Float[Tensor, "batch d_model"]:
    """The direction of ``read_out`` but for the norm's scale, the same for every stream; length one."""
    like = torch.zeros(len(answers), model.d_model, device=model.device, dtype=model.dtype)
    slope = _slope_at_zero(model, like, lambda logits: metrics.logit_diff(logits, answers, wrong_answers))
    return slope / slope.norm(dim=-1, keepdim=True)


def _slope_at_zero(
    model: Model, like: Float[Tensor, "batch d_model"], functional: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch d_model"]:
    """The gradient of a functional of the logits, one number a row, where the stream is zero."""
    with torch.enable_grad():
        zero = torch.zeros_like(like, requires_grad=True)
        (slope,) = torch.autograd.grad(functional(model.unembed(zero)).sum(), zero)
    return slope


def _norm_scale(model: Model, resid: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
    """r(resid) / r(0), by least squares over a few random read-outs that have nothing to do with the answers."""
    with torch.no_grad():
        at_x, at_zero = model.unembed(resid), model.unembed(torch.zeros_like(resid[:1]))
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(N_SKETCHES, at_x.shape[-1], generator=generator, dtype=torch.float64)
    weights = weights.to(device=at_x.device, dtype=at_x.dtype)
    slopes = torch.cat([_slope_at_zero(model, resid[:1], partial(torch.matmul, other=w)) for w in weights])
    moved, linear = (at_x - at_zero) @ weights.T, resid @ slopes.T
    return (moved * linear).sum(-1) / linear.square().sum(-1)


def _stable_from(holds: NDArray[np.bool_]) -> int:
    """The first place from which on all hold; the last one always does."""
    broken = np.flatnonzero(~holds)
    return int(broken[-1]) + 1 if len(broken) else 0
