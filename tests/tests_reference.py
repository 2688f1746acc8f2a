"""An independent forward pass: GPT-2 from its weights, edge by edge, by name, in float64.

Written from the definition and nothing else of the project. Every edge has a
weight alpha: 1 takes the current value of the source, 0 the corrupt one.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Reference:
    """A GPT2LMHeadModel's weights, and the functions of its components."""

    def __init__(self, network) -> None:
        self.config = network.config
        self.weights = {name: value.detach().double() for name, value in network.state_dict().items()}
        self.d_head = self.config.n_embd // self.config.n_head
        self.activation = {"relu": torch.relu, "gelu_new": _gelu_new, "linear": lambda x: x}[
            self.config.activation_function
        ]

    def sources_before(self, layer: int) -> list[str]:
        names = ["input"]
        for i in range(layer):
            names += [f"a{i}.h{h}" for h in range(self.config.n_head)] + [f"m{i}"]
        return names

    def plain(self, ids: Tensor) -> dict[str, Tensor]:
        """Every node's output, and the logits, with no edge corrupted."""
        return self.run(ids, None, {})

    def run(self, ids: Tensor, corrupt: Mapping[str, Tensor] | None, alpha: Mapping[str, Tensor | float]):
        """Outputs by node name with edges that have an alpha mixed; edges without one are kept."""
        value: dict[str, Tensor] = {"input": self.weights["transformer.wte.weight"][ids]}
        fixed = self.weights["transformer.wpe.weight"][: ids.shape[1]].expand_as(value["input"])

        def stream(sources: list[str], slot: str) -> Tensor:
            total = fixed
            for source in sources:
                share = alpha.get(f"{source}->{slot}", 1.0)
                mixed = value[source]
                if not (isinstance(share, float) and share == 1.0):
                    mixed = share * value[source] + (1.0 - share) * corrupt[source]
                total = total + mixed
            return total

        for layer in range(self.config.n_layer):
            before = self.sources_before(layer)
            heads = {}
            for head in range(self.config.n_head):
                name = f"a{layer}.h{head}"
                heads[name] = self.head(layer, head, *(stream(before, f"{name}<{slot}>") for slot in "qkv"))
            value |= heads
            fixed = fixed + self.weights[f"transformer.h.{layer}.attn.c_proj.bias"]
            value[f"m{layer}"] = self.mlp(layer, stream([*before, *heads], f"m{layer}"))
        last = stream(self.sources_before(self.config.n_layer), "logits")
        normed = self.norm("transformer.ln_f", last)
        value["logits"] = (normed @ self.weights["lm_head.weight"].T)[:, -1]
        return value

    def head(self, layer: int, head: int, q_in: Tensor, k_in: Tensor, v_in: Tensor) -> Tensor:
        d, n = self.d_head, self.config.n_embd
        place = f"transformer.h.{layer}.attn"
        weight, bias = self.weights[f"{place}.c_attn.weight"], self.weights[f"{place}.c_attn.bias"]
        columns = [slice(i * n + head * d, i * n + (head + 1) * d) for i in range(3)]
        q, k, v = (
            self.norm(f"transformer.h.{layer}.ln_1", x) @ weight[:, at] + bias[at]
            for x, at in zip((q_in, k_in, v_in), columns, strict=True)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(d)
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(hidden, -math.inf).softmax(-1)
        return pattern @ v @ self.weights[f"{place}.c_proj.weight"][head * d : (head + 1) * d]

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        place = f"transformer.h.{layer}"
        w = self.weights
        pre = self.norm(f"{place}.ln_2", x) @ w[f"{place}.mlp.c_fc.weight"] + w[f"{place}.mlp.c_fc.bias"]
        return self.activation(pre) @ w[f"{place}.mlp.c_proj.weight"] + w[f"{place}.mlp.c_proj.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.config.layer_norm_epsilon).sqrt()
        return centred / scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def _gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
