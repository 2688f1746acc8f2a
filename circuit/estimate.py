"""What EAP, EAP-IG and ACDC would cost on a model: arithmetic, from its sizes alone.

For one prompt of T tokens, L layers, H heads of width h, G key-value heads, model width d, MLP width
f, vocabulary V, with g = 3 matrices in a gated MLP and 2 in a plain one (2 operations per multiply-add):

    layers    P(G) = 2 T L (2 d H h + 2 d G h + g d f)         all weight matrices
    attention A    = 4 T^2 L H h                               scores and their product with v
    logits    U(n) = 2 n d V                                   n positions
    bare forward   = P(G) + A + U(T)
    bare backward  = P(G) + 2 A + U(T)                         to the embeddings; no weight gradients
    floor          = 2 forwards + 1 backward
    EAP            = 2 (P(H) + A + U(1)) + (P(H) + 2 A + U(1) - 2 T 3 d H h)
                   + 2 * 2 T L H h d                           every head's own result, in both runs
                   + 3 * 2 T L H h d                           gradients at every head's q, k and v streams
                   + 2 T d (sum over layers of n_l (3 H + 1) + n_src)   the scores

n_l is how many sources reach layer l's MLP. The engine repeats keys and values to one head
each (G = H) and takes logits at the last position only. m steps of EAP-IG take the first two forwards
once, and for each step one forward with its heads' results, the backward, the gradients and the
scores. The backward pass ends at the first layer's q, k and v.

Memory beside the weights, per prompt: three tensors [n_src, T, d] (what every source writes in both
runs, and the difference), and what autograd keeps of one forward pass. Times divide operations by the
device's peak times an assumed efficiency, or bytes by its bandwidth where that is longer. They are
estimates; nothing here was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from circuit.errors import ModelError
from circuit.graph import Graph

__all__ = [
    "BYTES",
    "DEVICES",
    "H200",
    "MODELS",
    "Architecture",
    "Device",
    "Estimate",
    "acdc_flops",
    "architecture_of",
    "backward_flops",
    "eap_flops",
    "estimate",
    "floor_flops",
    "forward_flops",
    "score_flops",
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

    @property
    def graph(self) -> Graph:
        """Its nodes and edges."""
        return Graph(self.layers, self.heads)

    def matrices(self, kv_heads: int) -> int:
        """Weights of all layers' matrices, with so many key-value heads."""
        attention = 2 * self.d_model * self.heads * self.d_head + 2 * self.d_model * kv_heads * self.d_head
        return self.layers * (attention + (3 if self.gated else 2) * self.d_model * self.d_mlp)

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


BYTES = {"float32": 4, "bfloat16": 2}
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
    Architecture("Gemma-2-27B", 46, 32, 16, 128, 4608, 36864, 256000),
)


def forward_flops(arch: Architecture, tokens: int, *, kv_heads: int, logits: int) -> int:
    """One forward pass on one prompt, with logits at so many positions."""
    layers = 2 * tokens * arch.matrices(kv_heads)
    return layers + _attention(arch, tokens) + 2 * logits * arch.d_model * arch.vocab


def _attention(arch: Architecture, tokens: int) -> int:
    return 4 * tokens * tokens * arch.layers * arch.heads * arch.d_head


def backward_flops(arch: Architecture, tokens: int, *, kv_heads: int, logits: int) -> int:
    """Its backward pass to the activations: one product per weight matrix, two per product of attention."""
    layers = 2 * tokens * arch.matrices(kv_heads)
    return layers + 2 * _attention(arch, tokens) + 2 * logits * arch.d_model * arch.vocab


def floor_flops(arch: Architecture, tokens: int) -> int:
    """Two bare forwards and one bare backward."""
    sizes = {"kv_heads": arch.kv_heads, "logits": tokens}
    return 2 * forward_flops(arch, tokens, **sizes) + backward_flops(arch, tokens, **sizes)


def score_flops(arch: Architecture, tokens: int) -> int:
    """The products of differences and gradients, for all edges."""
    graph = arch.graph
    per_layer = sum(graph.n_reaching(graph.mlp_slot_of(layer)) for layer in range(arch.layers))
    return 2 * tokens * arch.d_model * (per_layer * (3 * arch.heads + 1) + graph.n_src)


def eap_flops(arch: Architecture, tokens: int, *, steps: int | None = None) -> int:
    """EAP, or EAP-IG of so many steps, as the engine does it."""
    sizes = {"kv_heads": arch.heads, "logits": 1}
    forward = forward_flops(arch, tokens, **sizes)
    first = 2 * tokens * 3 * arch.heads * arch.d_head * arch.d_model
    backward = backward_flops(arch, tokens, **sizes) - first
    results = 2 * tokens * arch.layers * arch.heads * arch.d_head * arch.d_model
    once = 2 * (forward + results)
    each = backward + 3 * results + score_flops(arch, tokens)
    return once + each if steps is None else once + steps * (forward + results + each)


def acdc_flops(arch: Architecture, tokens: int, *, waste: float) -> float:
    """Every edge tried once and a share of them again; a pass runs half of the layers on average, on one prompt."""
    half = forward_flops(arch, tokens, kv_heads=arch.heads, logits=1) / 2
    return arch.graph.n_edges * (1 + waste) * half


def state_bytes(arch: Architecture, tokens: int, dtype: str) -> int:
    """What EAP holds per prompt beside the weights: three times every source's output, and autograd's share."""
    per_layer = 2 * arch.d_model + 4 * arch.heads * arch.d_head + 3 * arch.d_mlp + 2 * arch.heads * tokens
    gradients = 3 * 3 * arch.heads * arch.d_model  # of one layer's streams: gradient, normed, and their sum
    kept = 3 * arch.graph.n_src * arch.d_model + arch.layers * per_layer + gradients
    return kept * tokens * BYTES[dtype]


def weight_bytes(arch: Architecture, dtype: str) -> int:
    """The weights as the engine holds them, keys and values repeated."""
    repeated = arch.matrices(arch.heads) - arch.matrices(arch.kv_heads)
    return (arch.parameters + repeated) * BYTES[dtype]


def traffic_bytes(arch: Architecture, tokens: int, dtype: str, prompts: int) -> int:
    """Bytes that EAP must at least move for a batch: the weights three times, every source's output once per layer."""
    graph = arch.graph
    reads = sum(graph.n_reaching(graph.mlp_slot_of(layer)) for layer in range(arch.layers))
    contributions = (reads + 6 * graph.n_src) * arch.d_model * tokens * BYTES[dtype]
    return 3 * weight_bytes(arch, dtype) + prompts * contributions


@dataclass(frozen=True)
class Estimate:
    """One model in one format on so many devices; seconds are for all prompts, ``prompts_at_once`` per device.

    ``prompts_at_once`` 0 means that the weights do not fit one device.
    """

    arch: Architecture
    dtype: str
    devices: int
    prompts_at_once: int
    floor_seconds: float
    eap_seconds: float
    ig_seconds: float
    acdc_hours: float


def estimate(
    arch: Architecture,
    dtype: str,
    *,
    device: Device = H200,
    devices: int = 1,
    tokens: int = 64,
    prompts: int = 400,
    steps: int = 5,
    acdc_prompts: int = 16,
    efficiency: float = 0.4,
    waste: float = 0.3,
) -> Estimate:
    """Times from operations and bytes; prompts are split over devices, each of which holds all weights."""
    room = 0.9 * device.memory - weight_bytes(arch, dtype)
    at_once = max(0, int(room // state_bytes(arch, tokens, dtype)))
    share = -(-prompts // devices)
    rate = device.peak[dtype] * efficiency
    batches = -(-share // max(1, at_once))
    moved = share * traffic_bytes(arch, tokens, dtype, 1) - (share - batches) * 3 * weight_bytes(arch, dtype)
    joined = 2 * arch.graph.n_src * arch.graph.n_dst * 8 / device.link if devices > 1 else 0.0

    def seconds(flops: int | float) -> float:
        return max(share * flops / rate, moved / device.bandwidth) + joined

    trials = acdc_flops(arch, tokens, waste=waste) * acdc_prompts / (rate * min(devices, acdc_prompts))
    return Estimate(
        arch,
        dtype,
        devices,
        at_once,
        seconds(floor_flops(arch, tokens)),
        seconds(eap_flops(arch, tokens)),
        seconds(eap_flops(arch, tokens, steps=steps)),
        trials / 3600,
    )


def architecture_of(network: Any, name: str) -> Architecture:
    """The sizes of a Hugging Face causal language model; it may be on the meta device.

    Whatever the layers' matrices hold beside attention counts as the MLP, all experts included.

    Raises:
        ModelError: the configuration does not say how many layers, heads or dimensions there are.
    """
    import torch

    config = network.config.get_text_config()
    found = {key: getattr(config, key, None) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")}
    if lacking := [key for key, value in found.items() if not value]:
        raise ModelError(f"{name}: its configuration has no {' and no '.join(lacking)}; expected a transformer's")
    layers, heads, width = (int(value) for value in found.values() if value)
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
    return Architecture(
        name, layers, heads, kv_heads, d_head, width, mlp // ((3 if gated else 2) * width), table.shape[0], gated, tied
    )
