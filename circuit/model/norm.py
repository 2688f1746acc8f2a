"""Norms: gradients taken back through them, and their scale in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model.stubs import unchanged

__all__ = ["Pullback", "direct", "frozen_gain", "norm_of"]

EPSILONS = ("eps", "variance_epsilon", "epsilon")
"""What the constant under a norm's root is called, in torch and in the host's models."""


@dataclass(frozen=True, eq=False)
class Pullback:
    """Gradients taken back through heads' projections W and the norm before them.

    The norm is y = w n + b, n = c / r, r = sqrt(mean(c^2) + eps), with c = x, or x less its mean. A
    gradient g at what a head projects is at its stream, with u = w (W g),

        (u - mean(u) - n mean(n u)) / r

    where the second term is there if the norm centres. Both means are taken where g is, in d_head numbers
    and not in d_model: mean(u) = g . mean(w W), and mean(n u) d_model = g . (projected - shift), as the head
    projects W^T (w n) + shift. Autograd gives the same from a copy of x for every head.
    """

    weight: Float[Tensor, " d_model"]
    eps: float
    centred: bool
    means: dict[str, Float[Tensor, "head d_head"]] = field(default_factory=dict, repr=False)
    shifts: dict[str, Float[Tensor, "head d_head"]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_block(cls, block: Any, like: Tensor) -> Pullback | None:
        """That of a block which has a norm before attention; None where the norm has no form that is known."""
        form = cls.of(block.bridge.ln1, block.W_O.shape[-1], like)
        with torch.no_grad():
            return None if form is None else form.of_projections(block)

    def of_projections(self, block: Any) -> Pullback:
        """The same form with what the projections after the norm make of its parts."""
        zero = block.attn_norm(torch.zeros(1, 1, len(self.weight)).to(self.weight))
        shifts: dict[str, Tensor] = {slot: block.project(slot, zero)[0, 0] for slot in SLOTS}
        return replace(
            self,
            means={
                s: torch.einsum("d,hdk->hk", self.weight, w.to(zero)) / len(zero[0, 0])
                for s, w in block.weights.items()
            },
            shifts=shifts,
        )

    def along(
        self,
        slot: str,
        gradient: Float[Tensor, "batch pos head d_head"],
        projected: Float[Tensor, "batch _ head d_head"],
    ) -> Float[Tensor, "batch pos head"]:
        """mean(n u) of every head."""
        return (gradient * (projected - self.shifts[slot])).sum(-1) / len(self.weight)

    def write(
        self,
        slot: str,
        gradient: Float[Tensor, "batch pos head d_head"],
        along: Float[Tensor, "batch pos head"],
        x: tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos 1"]],
        weights: Float[Tensor, "head d_model d_head"],
        out: Float[Tensor, "head batch pos d_model"],
        some: slice,
    ) -> None:
        """Some heads' gradients at their streams, into ``out``; ``x`` is what ``parts`` makes of these."""
        normed, rate = x
        heads, d_model, d_head = weights.shape
        # One more column, for the mean: the product subtracts it.
        matrix = weights.new_empty(heads, d_model, d_head + self.centred)
        torch.mul(weights, self.weight[:, None], out=matrix[..., :d_head])
        vectors = gradient.new_empty(heads, *normed.shape[:-1], d_head + self.centred)
        gradient = gradient * rate[..., None]
        vectors[..., :d_head] = gradient.permute(2, 0, 1, 3)
        if self.centred:
            matrix[..., d_head] = -1.0
            vectors[..., d_head] = (gradient * self.means[slot][some]).sum(-1).permute(2, 0, 1)
        torch.bmm(vectors.flatten(1, 2), matrix.transpose(1, 2), out=out.flatten(1, 2))
        out.addcmul_(normed, (along * rate).permute(2, 0, 1)[..., None], value=-1)

    def project(
        self,
        slot: str,
        x: Float[Tensor, "row d_model"],
        weights: Float[Tensor, "d_model d_head"],
        head: int,
        out: Float[Tensor, "row d_head"],
    ) -> None:
        """A head's projection of its own stream, without computing the normed stream; for norms that do not centre."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        torch.mm(x, weights * self.weight[:, None], out=out)
        out.mul_((length.square() / x.shape[-1] + self.eps).rsqrt()).add_(self.shifts[slot][head])

    def parts(self, x: Float[Tensor, "*rows d_model"]) -> tuple[Tensor, Tensor]:
        """``n`` and 1 / r."""
        centred = x - x.mean(-1, keepdim=True) if self.centred else x
        rate = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return centred * rate, rate

    @classmethod
    def of(cls, norm: Any, d_model: int, like: Tensor) -> Pullback | None:
        """The form of a norm that reproduces its values on random streams; None where none does."""
        module = getattr(norm, "original_component", norm)
        eps = _epsilon(module)
        own = getattr(module, "weight", None)
        ones = torch.ones(d_model, device=like.device, dtype=like.dtype)
        x = torch.randn(4, d_model, generator=torch.Generator().manual_seed(0)).to(like) * 3 + 1
        with torch.no_grad():
            expected, shift = norm(x), norm(torch.zeros_like(x))
            for weight in (ones,) if own is None else (own.detach(), own.detach() + 1):
                for centred in (True, False):
                    form = cls(weight.to(like), eps or 0.0, centred)
                    output = weight * form.parts(x)[0] + shift
                    if eps is not None and bool(((output - expected).abs() <= 1e-5 * expected.abs().max()).all()):
                        return form
        return None


def norm_of(bridge: Any, name: str) -> Callable[[Tensor], Tensor]:
    """The norm of that name, the identity where a block has none."""
    return direct(getattr(bridge, name)) if name in bridge.submodules else unchanged


def direct(norm: Any) -> Callable[[Tensor], Tensor]:
    """The norm; torch's fused layer norm where there is one, as the host's makes five passes over memory."""
    own = getattr(norm, "original_component", norm)
    return own if type(own) is torch.nn.LayerNorm else norm


def frozen_gain(norm: Any, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    """The factor by which a root-mean-square norm multiplies each coordinate of ``x``.

    Such a norm is r(x) w x with one number r = 1 / sqrt(mean(x^2) + eps) per row. Its weight w is what it gives
    for a large constant vector; r is then the exact ratio of two parallel vectors. Where x is zero, or so
    small that its square is, there is no ratio, and r is computed: 1 / sqrt(eps) at zero.
    """
    weight = norm(torch.full_like(x[..., :1, :].reshape(-1, x.shape[-1])[:1], 1e4)).view(-1)
    direction = weight * x
    squares, tiny = direction.square().sum(-1, keepdim=True), torch.finfo(x.dtype).tiny
    scale = (norm(x) * direction).sum(-1, keepdim=True) / squares.clamp(min=tiny)
    # The least eps is that with which zero has a root in the format.
    eps = _epsilon(norm.original_component) or tiny
    own = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt().to(x.dtype)
    return torch.where(squares < tiny, own, scale) * weight


def _epsilon(norm: torch.nn.Module) -> float | None:
    """The constant under a norm's root, None where it has none by a name that is known."""
    return next((float(value) for name in EPSILONS if (value := getattr(norm, name, None)) is not None), None)
