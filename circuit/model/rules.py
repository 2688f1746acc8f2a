"""Backward rules: the same forward pass, and in place of its gradient one that sees past saturation.

A gradient is the slope at one point. Where a norm divides by what it is given, a softmax is saturated, or two factors
carry one signal, the slope says little about the effect of ablating a component. Rules leave every number of
the forward pass as it is and change the backward pass:

    relp    layer-wise relevance propagation (Rezaei Jafari et al. 2025, arXiv:2508.21258): norms as linear maps with
            the scale they have in this run, attention weights as constants, f(x)/x for an activation's slope, and
            half of the gradient to each of the two factors of a gate
    gim     gradient interaction modifications (Edin et al. 2025, arXiv:2505.17630): norms likewise, the softmax of
            attention taken back at temperature 2, a quarter of the gradient to queries and to keys, half to values
            and to each of the two factors of a gate

As attention weights are constants to ``relp``, edges into queries and keys score 0 there. A soft cap on logits keeps
its slope under both.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.model.norm import Pullback, direct
from persona_circuits.circuit.model.stubs import stubbed_forward

__all__ = ["RULES", "Rules"]

SOFTMAXES = (torch.nn.functional.softmax, torch.softmax, Tensor.softmax)
PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
SMALL = 1e-6
"""For smaller |x|, f(x)/x is taken at this distance from zero, with the sign of x."""


@dataclass(frozen=True)
class Rules:
    """The backward pass of each kind of part; by default the plain gradient.

    Parameters
    ----------
    freeze_norms
        Norms, those of queries and keys too, are linear maps with the scale of the run.
    temperature
        Of the softmax of attention in the backward pass; infinite: attention weights are constants.
    ratios
        The backward pass of an activation uses f(x)/x in place of its slope.
    gate
        Share of the gradient that each of the two factors of a gated MLP gets.
    query_key, value
        Share of the gradient that queries and keys, and values, get.
    """

    freeze_norms: bool = False
    temperature: float = 1.0
    ratios: bool = False
    gate: float = 1.0
    query_key: float = 1.0
    value: float = 1.0

    def norm(self, norm: Any) -> Callable[[Tensor], Tensor]:
        """The norm, under these rules.

        Raises
        ------
        ModelError
            It is no layer norm and no root-mean-square norm.
        """
        return _frozen(norm) if self.freeze_norms else direct(norm)

    def projected(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as attention reads them."""
        return _share(q, self.query_key), _share(k, self.query_key), _share(v, self.value)

    @contextlib.contextmanager
    def in_attention(self, attention: Any) -> Iterator[None]:
        """While a layer's attention runs.

        Raises
        ------
        ModelError
            It ran without a softmax that could be reached.
        """
        norms = [part for name, part in attention.submodules.items() if name in ("q_norm", "k_norm")]
        seen = _Softmax(self.temperature)
        with stubbed_forward({norm: self.norm(norm.original_component) for norm in norms}), seen:
            yield
        if self.temperature != 1.0 and not seen.count:
            raise ModelError("the attention of this model runs without a softmax of torch's, so backward rules miss it")

    @contextlib.contextmanager
    def in_mlp(self, mlp: Any) -> Iterator[None]:
        """While a layer's MLP runs.

        Raises
        ------
        ModelError
            It is a mixture of experts, or its activation is no module of its own.
        """
        module = mlp.original_component
        activations = [part for part in module.modules() if _is_activation(part)]
        if hasattr(module, "experts") or not activations:
            what = "is a mixture of experts" if hasattr(module, "experts") else "has no activation of its own"
            raise ModelError(f"the MLP of this model {what}, for which there are no backward rules; use eap or eap-ig")
        gates = _Gates(self.gate)
        stubs = {part: gates.passed_over(_ratio_of(part) if self.ratios else part.forward) for part in activations}
        with stubbed_forward(stubs), gates:
            yield


RULES = {
    "relp": Rules(freeze_norms=True, temperature=math.inf, ratios=True, gate=0.5),
    "gim": Rules(freeze_norms=True, temperature=2.0, gate=0.5, query_key=0.25, value=0.5),
}
"""By the name of the method."""


def _frozen(norm: Any) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        form = Pullback.of(norm, x.shape[-1], x)
        if form is None:
            name = type(getattr(norm, "original_component", norm)).__name__
            raise ModelError(f"{name} is no norm whose scale could be frozen; use eap or eap-ig")
        with torch.no_grad():
            value, rate = direct(norm)(x), form.parts(x)[1]
        # The linear map minus its own value is zero; only its gradient remains.
        line = (x - x.mean(-1, keepdim=True) if form.centred else x) * rate * form.weight
        return value + (line - line.detach())

    return apply


def _is_activation(part: torch.nn.Module) -> bool:
    """Whether it is a function of numbers alone: no weights, nothing inside, and no dropout."""
    idle = isinstance(part, torch.nn.Dropout | torch.nn.Identity | torch.nn.ModuleList)
    return not idle and not list(part.children()) and not list(part.parameters()) and not list(part.buffers())


def _ratio_of(part: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    own = part.forward
    return lambda x: _Ratio.apply(x, own)


class _Ratio(torch.autograd.Function):
    """An activation whose backward pass uses f(x)/x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        away = torch.where(x.abs() < SMALL, torch.full_like(x, SMALL).copysign(x), x)
        ctx.save_for_backward(function(away) / away)
        return function(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


class _Warm(torch.autograd.Function):
    """A softmax with a backward pass at another temperature, without the factor 1/T, as in the method's own code."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, dim: int, temperature: float) -> Tensor:
        ctx.dim, ctx.temperature = dim, temperature
        ctx.save_for_backward(scores)
        return scores.softmax(dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (scores,) = gradients, ctx.saved_tensors
        if math.isinf(ctx.temperature):
            return torch.zeros_like(scores), None, None
        weights = (scores / ctx.temperature).softmax(ctx.dim)
        return weights * (gradient - (gradient * weights).sum(ctx.dim, keepdim=True)), None, None


class _Softmax(TorchFunctionMode):
    """Every softmax of torch's within a block."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature, self.count = temperature, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in SOFTMAXES:
            return func(*args, **kwargs)
        self.count += 1
        if self.temperature == 1.0:
            return func(*args, **kwargs)
        scores, *rest = args or (kwargs["input"],)
        dim = kwargs["dim"] if "dim" in kwargs else rest[0]
        dtype = kwargs.get("dtype")
        return _Warm.apply(scores if dtype is None else scores.to(dtype), dim, self.temperature)


class _Gates(TorchFunctionMode):
    """Products of two factors that both depend on the input, as in gates; those within activations are left alone."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.inside = share, 0

    def passed_over(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def apply(*args: Any, **kwargs: Any) -> Tensor:
            self.inside += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.inside -= 1

        return apply

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.inside or self.share == 1.0 or func not in PRODUCTS:
            return out
        factors = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
        return _share(out, self.share) if len(factors) == 2 and factors[0].shape == factors[1].shape else out


def _share(x: Tensor, share: float) -> Tensor:
    """The same values, with a share of the gradient."""
    return x if share == 1.0 or not x.requires_grad else _Share.apply(x, share)


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.share, None
