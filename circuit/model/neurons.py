"""An MLP as a sum of neurons: what each writes and reads, and a block in which some of them write another run's values.

An MLP adds sum over i of h_i w_i, and a bias: h_i is what the down projection reads, after a gate the product of both
halves, and w_i that projection's weights. Where a norm follows, a neuron's share is what it writes after that norm with
the scale that the norm has in this run, as a head's is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.model.block import NEURON_HOOKS, Block

__all__ = ["Hidden", "Neurons", "OpenBlock"]


@dataclass(frozen=True, eq=False)
class Hidden:
    """An MLP's neurons in one run, and the ``gain`` between what they write and what reaches the stream."""

    values: Float[Tensor, "*rows pos neuron"]
    gain: Float[Tensor, "*rows pos _"]


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of one layer's MLP: ``writes`` is what each writes, ``reads`` what each half of it reads."""

    block: Block
    writes: Float[Tensor, "neuron d_model"]
    bias: Float[Tensor, " d_model"]
    reads: Mapping[str, Float[Tensor, "d_model neuron"]]

    @classmethod
    def of(cls, block: Block) -> Neurons:
        """Those of a block.

        Raises
        ------
        ModelError
            Its MLP is not one down projection of what one or two other projections read.
        """
        block.n_neurons("post")
        mlp = block.bridge.mlp
        halves = [name for name in NEURON_HOOKS if name != "post" and NEURON_HOOKS[name] in mlp.submodules]
        writes, bias = _linear(block, mlp.out)
        return cls(block, writes, bias, {name: _linear(block, getattr(mlp, NEURON_HOOKS[name]))[0] for name in halves})

    def __len__(self) -> int:
        return len(self.writes)

    def at(self, x: Float[Tensor, "*rows pos d_model"]) -> Hidden:
        """In a run in which the MLP reads this stream."""
        seen: list[Tensor] = []
        with torch.no_grad(), self.block.on_neurons("post", seen.append):
            self.block.mlp(x)
        return self.hidden(seen[0].view(*x.shape[:-1], -1).to(x))

    def hidden(self, values: Float[Tensor, "*rows pos neuron"]) -> Hidden:
        """These values with their gain."""
        written = values @ self.writes.to(values) + self.bias.to(values)
        return Hidden(values, self.block.mlp_gain(written))

    def written(self, at: Hidden, some: Int[Tensor, " some"]) -> Float[Tensor, "*rows pos d_model"]:
        """What some neurons add to the stream."""
        return at.values[..., some] @ self.writes[some].to(at.values) * at.gain

    def products(
        self,
        clean: Hidden,
        other: Hidden,
        direction: Float[Tensor, "*more batch pos d_model"],
        some: Int[Tensor, " some"] | slice = slice(None),
    ) -> Float[Tensor, "*more batch pos some"]:
        """What each neuron writes in the ``other`` run minus what it writes in the clean one, along a direction."""
        n, weights = direction.shape[-2], self.writes[some].T.to(direction)
        before, after = (at.values[:, -n:, some] for at in (clean, other))
        gains = [at.gain[:, -n:] for at in (clean, other)]
        if gains[0].shape[-1] == 1:  # no norm after the MLP: one factor for both
            return direction @ weights * ((after - before) * gains[0])
        return (direction * gains[1]) @ weights * after - (direction * gains[0]) @ weights * before

    def read(
        self, x: Float[Tensor, "*rows pos d_model"], direction: Float[Tensor, "*rows pos d_model"]
    ) -> dict[str, Float[Tensor, "*rows pos neuron"]]:
        """The gradient at every half of every neuron of what the MLP adds along a direction."""
        seen: dict[str, Tensor] = {}
        with torch.enable_grad(), contextlib.ExitStack() as hooks:
            for name in self.reads:
                hooks.enter_context(self.block.on_neurons(name, lambda value, name=name: seen.update({name: value})))  # type: ignore[misc]
            out = self.block.mlp(x.detach().requires_grad_())
            gradients = torch.autograd.grad(out, list(seen.values()), direction)
        return {name: value.view(*x.shape[:-1], -1).to(x) for name, value in zip(seen, gradients, strict=True)}

    def at_input(
        self,
        x: Float[Tensor, "*rows pos d_model"],
        gradients: Mapping[str, Float[Tensor, "*rows pos neuron"]],
        some: Int[Tensor, " some"],
    ) -> Float[Tensor, "some *rows pos d_model"]:
        """Gradients of ``read`` taken back to the stream through each of some neurons; summed over all, the MLP's."""
        halves = [(gradients[name][..., some], weights[:, some].T.to(x)) for name, weights in self.reads.items()]
        outer = [g.movedim(-1, 0)[..., None] * w[(slice(None), *[None] * (x.dim() - 1))] for g, w in halves]
        normed = outer[0] if len(outer) == 1 else outer[0] + outer[1]
        with torch.enable_grad():
            each = x.detach().expand_as(normed).clone().requires_grad_()
            return torch.autograd.grad(self.block.mlp_norm(each), each, normed)[0]


@dataclass(frozen=True, eq=False)
class OpenBlock(Block):
    """A block in whose MLP some neurons, ``dropped``, write ``instead``, whatever the MLP reads."""

    neurons: Neurons | None = None
    dropped: Int[Tensor, " some"] | None = field(default=None, repr=False)
    instead: Float[Tensor, "batch pos d_model"] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, neurons: Neurons, dropped: Int[Tensor, " some"], instead: Float[Tensor, "batch pos d_model"]
    ) -> OpenBlock:
        own: dict[str, Any] = {field.name: getattr(neurons.block, field.name) for field in fields(Block)}
        return cls(**own, neurons=neurons, dropped=dropped, instead=instead)

    def mlp(self, x: Float[Tensor, "*rows pos d_model"]) -> Float[Tensor, "*rows pos d_model"]:
        assert self.neurons is not None
        assert self.dropped is not None
        assert self.instead is not None
        seen: list[Tensor] = []
        with self.on_neurons("post", seen.append):
            out = super().mlp(x)
        own = self.neurons.hidden(seen[0].view(*x.shape[:-1], -1).to(x))
        return out - self.neurons.written(own, self.dropped) + self.instead[:, -x.shape[-2] :]


def _linear(block: Block, projection: Any) -> tuple[Float[Tensor, "in out"], Float[Tensor, " out"]]:
    """A projection's weights, so that it gives x @ weights + bias, and this bias.

    Raises
    ------
    ModelError
        It does not.
    """
    module = projection.original_component
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2:
        raise ModelError(f"layer {block.layer}: the weights of the MLP's {type(module).__name__} cannot be read")
    weight = weight.detach().T if isinstance(module, torch.nn.Linear) else weight.detach()
    x = torch.randn(1, 1, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        bias, output = projection(torch.zeros_like(x))[0, 0], projection(x)[0, 0]
    if not torch.allclose(x[0, 0] @ weight + bias, output, rtol=1e-2, atol=1e-2 * float(output.abs().max())):
        raise ModelError(f"layer {block.layer}: the MLP's {type(module).__name__} is no product with its weights")
    return weight.float() if block.upcasting is not None else weight, bias
