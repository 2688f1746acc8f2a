"""Sizes of a model, and what its passes take in operations and bytes, worked out on paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.graph import Graph

__all__ = [
    "DEVICES",
    "FORMATS",
    "H200",
    "MODELS",
    "STATE_BYTES",
    "Architecture",
    "Device",
    "architecture_of",
    "backward_flops",
    "circuit_bytes",
    "floor_flops",
    "forward_flops",
    "run_bytes",
    "state_bytes",
    "traffic_bytes",
    "weight_bytes",
]


@dataclass(frozen=True)
class Architecture:
    """Sizes of a transformer; weights of norms are left out, as they do not matter."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    vocab: int
    gated: bool = True
    tied: bool = True
    active: int = 0
    """MLP width that one token passes, where it is not all of ``d_mlp``."""
    norms: int = 2
    capped: bool = False

    @property
    def passed(self) -> int:
        """MLP width that one token passes."""
        return self.active or self.d_mlp

    @property
    def graph(self) -> Graph:
        """Its nodes and edges."""
        return Graph(self.layers, self.heads)

    def matrices(self, kv_heads: int) -> int:
        """Weights of all layers' matrices, with so many key-value heads."""
        return self._matrices(kv_heads, self.d_mlp)

    def passed_matrices(self, kv_heads: int) -> int:
        """Of these the weights that one token is multiplied with."""
        return self._matrices(kv_heads, self.passed)

    def _matrices(self, kv_heads: int, width: int) -> int:
        attention = 2 * self.d_model * self.heads * self.d_head + 2 * self.d_model * kv_heads * self.d_head
        return self.layers * (attention + (3 if self.gated else 2) * self.d_model * width)

    @property
    def parameters(self) -> int:
        """All weights, embeddings included."""
        return self.matrices(self.kv_heads) + (1 if self.tied else 2) * self.vocab * self.d_model


@dataclass(frozen=True)
class Device:
    """Peaks of one accelerator: dense operations per second by format, bytes, bytes per second, and of its links."""

    name: str
    peak: dict[str, float]
    memory: float
    bandwidth: float
    link: float


FORMATS = ("float32", "bfloat16-weights", "bfloat16")
"""The formats of ``model.DTYPES`` to estimate; the second has half-precision weights and computes in float32."""
WEIGHT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "bfloat16-weights": 2}
STATE_BYTES = {**WEIGHT_BYTES, "bfloat16-weights": 4}
H200 = Device("H200", {"float32": 66.9e12, "bfloat16": 989.4e12}, 141e9, 4.8e12, 450e9)
DEVICES = (
    Device("RTX 4090", {"float32": 82.6e12, "bfloat16": 165.2e12}, 24e9, 1.008e12, 32e9),
    Device("A100 80GB", {"float32": 19.5e12, "bfloat16": 312e12}, 80e9, 2.039e12, 300e9),
    Device("H100 80GB", {"float32": 66.9e12, "bfloat16": 989.4e12}, 80e9, 3.35e12, 450e9),
    H200,
)
"""Dense peaks of the makers' data sheets, without TF32."""
MODELS = (
    Architecture("Llama-3.2-3B", 28, 24, 8, 128, 3072, 8192, 128256),
    Architecture("Llama-3.1-8B", 32, 32, 8, 128, 4096, 14336, 128256, tied=False),
    Architecture("Gemma-2-27B", 46, 32, 16, 128, 4608, 36864, 256000, norms=4, capped=True),
)


def forward_flops(arch: Architecture, tokens: int, *, kv_heads: int, logits: int) -> int:
    """One forward pass on one prompt, with logits at so many positions."""
    layers = 2 * tokens * arch.passed_matrices(kv_heads)
    return layers + _attention(arch, tokens) + 2 * logits * arch.d_model * arch.vocab


def _attention(arch: Architecture, tokens: int) -> int:
    return 4 * tokens * tokens * arch.layers * arch.heads * arch.d_head


def backward_flops(arch: Architecture, tokens: int, *, kv_heads: int, logits: int) -> int:
    """Its backward pass to the activations: one product per weight matrix, two per product of attention."""
    layers = 2 * tokens * arch.passed_matrices(kv_heads)
    return layers + 2 * _attention(arch, tokens) + 2 * logits * arch.d_model * arch.vocab


def floor_flops(arch: Architecture, tokens: int) -> int:
    """Two bare forwards and one bare backward."""
    sizes = {"kv_heads": arch.kv_heads, "logits": tokens}
    return 2 * forward_flops(arch, tokens, **sizes) + backward_flops(arch, tokens, **sizes)


def state_bytes(arch: Architecture, tokens: int, dtype: str, *, steps: int | None = None) -> int:
    """Bytes per prompt beside the weights of EAP, or EAP-IG of so many steps; see the module's text."""
    sources, kept, written = _sources(arch, tokens), _kept(arch, tokens), _written(arch, tokens)
    norms = 3 * max(0, arch.norms - 2) * arch.d_model
    wide = 6 * arch.heads * arch.d_head + _mlp_width(arch) + norms
    graph = arch.layers * tokens * (wide + (2.6 if arch.capped else 1.3) * arch.heads * tokens)
    gradients = tokens * (arch.layers * (3 * arch.heads * arch.d_head + arch.d_model) + arch.d_model)
    products = 1.6 * sources + kept + gradients + 2 * written
    if steps is None:
        numbers = max(sources + kept + graph + 4 * written + 2 * arch.heads * tokens * tokens, products)
    else:
        ends = sources + kept + 4 * written + _working(arch, tokens)
        numbers = max(ends, sources + kept + graph + written, products + kept)
    return int((numbers + 4 * arch.vocab) * STATE_BYTES[dtype])


def run_bytes(arch: Architecture, tokens: int, dtype: str, *, runs: int = 2) -> int:
    """Bytes of so many plain runs of one prompt, with what every source writes."""
    kept = runs * (_sources(arch, tokens) + _kept(arch, tokens) + _written(arch, tokens) + arch.vocab)
    return (kept + _working(arch, tokens)) * STATE_BYTES[dtype]


def circuit_bytes(arch: Architecture, tokens: int, dtype: str) -> int:
    """One circuit on one prompt in a patched pass, beside the runs."""
    width = 14 * arch.heads * arch.d_model + 6 * arch.d_model + 6 * arch.heads * arch.d_head + _mlp_width(arch)
    numbers = 2 * _sources(arch, tokens) + tokens * (width + 3 * arch.heads * tokens)
    return (numbers + 4 * arch.vocab) * STATE_BYTES[dtype]


def _written(arch: Architecture, tokens: int) -> int:
    return tokens * (arch.layers * (arch.heads * arch.d_head + arch.d_model) + arch.d_model)


def _working(arch: Architecture, tokens: int) -> int:
    width = arch.heads * (arch.d_model + 4 * arch.d_head + 3 * tokens) + _mlp_width(arch)
    return tokens * width


def _mlp_width(arch: Architecture) -> int:
    return (7 if arch.active else 4 if arch.gated else 5) * arch.passed


def _sources(arch: Architecture, tokens: int) -> int:
    return arch.graph.n_src * tokens * arch.d_model


def _kept(arch: Architecture, tokens: int) -> int:
    return tokens * (arch.layers * (2 * arch.d_model + 3 * arch.heads * arch.d_head) + arch.d_model)


def weight_bytes(arch: Architecture, dtype: str) -> int:
    """Bytes of the weights as the engine stores them, with keys and values repeated."""
    repeated = arch.matrices(arch.heads) - arch.matrices(arch.kv_heads)
    return (arch.parameters + repeated) * WEIGHT_BYTES[dtype]


def traffic_bytes(arch: Architecture, tokens: int, dtype: str, prompts: int) -> int:
    """Bytes that EAP must at least move for a batch: the weights three times, every source's output once per layer."""
    graph = arch.graph
    reads = sum(graph.n_reaching(graph.mlp_slot_of(layer)) for layer in range(arch.layers))
    contributions = (reads + 6 * graph.n_src) * arch.d_model * tokens * STATE_BYTES[dtype]
    return 3 * weight_bytes(arch, dtype) + prompts * contributions


def architecture_of(network: Any, name: str) -> Architecture:
    """The sizes of a Hugging Face causal language model; it may be on the meta device.

    Whatever the layers' matrices hold beside attention counts as the MLP, all experts included.

    Raises:
        ModelError: the configuration does not say how many layers, heads or dimensions there are.
    """
    import torch

    config = network.config.get_text_config()
    fields = {key: getattr(config, key, None) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")}
    if lacking := [key for key, value in fields.items() if not value]:
        raise ModelError(f"{name}: its configuration has no {' and no '.join(lacking)}; expected a transformer's")
    layers, heads, width = (int(value) for value in fields.values() if value)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    d_head = int(getattr(config, "head_dim", None) or width // heads)
    table = network.get_input_embeddings().weight
    out = network.get_output_embeddings()
    tied = out is None or out.weight is table or bool(getattr(config, "tie_word_embeddings", False))
    outside = {id(part.weight) for part in network.modules() if isinstance(part, torch.nn.Embedding) or part is out}
    inside = sum(p.numel() for p in network.parameters() if p.dim() > 1 and id(p) not in outside)
    mlp = inside // layers - 2 * width * d_head * (heads + kv_heads)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    gated = round(mlp / (width * inner)) != 2
    d_mlp = mlp // ((3 if gated else 2) * width)
    sizes = (name, layers, heads, kv_heads, d_head, width, d_mlp, table.shape[0], gated, tied)
    return Architecture(*sizes, _active(config, d_mlp), _norms(network, layers), _capped(config))


def _active(config: Any, d_mlp: int) -> int:
    """The MLP width of the experts that a token passes, where there are experts."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    n = next((int(value) for name in names if (value := getattr(config, name, None))), 0)
    each = int(getattr(config, "num_experts_per_tok", None) or 0)
    return -(-d_mlp * each // n) if n and each else 0


def _norms(network: Any, layers: int) -> int:
    return sum("norm" in type(part).__name__.lower() for part in network.modules()) // layers


def _capped(config: Any) -> bool:
    return bool(getattr(config, "attn_logit_softcapping", None))
