"""What EAP, EAP-IG and ACDC would cost on a model: arithmetic, from its sizes alone.

For one prompt of T tokens, L layers, H heads of width h, G key-value heads, model width d, MLP width
f, vocabulary V, with g = 3 matrices in a gated MLP and 2 in a plain one (2 operations per multiply-add):

    layers    P(G) = 2 T L (2 d H h + 2 d G h + g d f)         all weight matrices
    attention A    = 4 T^2 L H h                               scores and their product with v
    logits    U(n) = 2 n d V                                   n positions
    bare forward   = P(G) + A + U(T)
    bare backward  = P(G) + 2 A + U(T)                         to the embeddings; no weight gradients
    floor          = 2 forwards + 1 backward
    unread    E    = 2 (T - 1) (d H h + g d f)                 behind the last attention, at all but the last position
    EAP            = 2 (P(H) + A + U(1) - E) + (P(H) + 2 A + U(1) - E - 2 T 3 d H h)
                   + 2 T L H h d                               every head's own result, of both runs' difference
                   + 3 * 2 T L H h d                           gradients at every head's q, k and v streams
                   + 2 T d (sum over layers of n_l (3 H + 1) + n_src)   the scores

n_l is how many sources reach layer l's MLP. The engine repeats keys and values to one head
each (G = H), and takes logits and what lies behind the last attention at the last position only. m steps of
EAP-IG take the first two forwards and the heads' results once, and for each step one forward, the
backward, the gradients and the scores. The backward pass ends at the first layer's q, k and v.

Memory beside the weights, per prompt, in numbers of the format:

    S = n_src T d                           what every source writes in one run
    K = L T (2 d + 3 H h) + T d             streams, and projections of all layers
    A = L T (6 H h + c f + 3 n d) + b L H T^2   what autograd keeps besides of one forward pass
    R = L T (3 H h + d) + T d               gradients at all projections and MLP inputs
    Z = L T (H h + d) + T d                 what the parts of one run wrote, heads not told apart
    W = T (H d + 4 H h + c f) + 3 H T^2     one layer at work
    EAP      = max(S + K + A + 4 Z + 2 H T^2, 1.6 S + K + R + 2 Z)
    EAP-IG   = max(S + K + 4 Z + W, S + 2 K + A + 2 Z, 1.6 S + 2 K + R + 2 Z)
    runs     = 2 (S + K + Z) + W            both plain runs of a pair, 4 (...) + W where a cut edge carries neither
    circuit  = 2 S + T (14 H d + 6 d + 6 H h + c f) + 3 H T^2     one patched pass, for each circuit in it

f is the MLP width that a token passes (c = 7 in experts, else 4 if it is gated and 5 if not), n the
norms of a layer beyond two, and b = 1.3, or 2.6 where attention scores are capped. The constants are
bounds on what torch's allocator counts for the families that the tests build. Times divide operations by the
device's peak times an assumed efficiency, or bytes by its bandwidth where that is longer. They are
estimates; no time here was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuit.errors import ModelError
from circuit.graph import Graph

__all__ = [
    "DEVICES",
    "FORMATS",
    "H200",
    "MODELS",
    "STATE_BYTES",
    "WEIGHT_BYTES",
    "Architecture",
    "Device",
    "Estimate",
    "StepCost",
    "acdc_flops",
    "architecture_of",
    "backward_flops",
    "circuit_bytes",
    "eap_flops",
    "estimate",
    "floor_flops",
    "forward_flops",
    "held_bytes",
    "run_bytes",
    "score_flops",
    "state_bytes",
    "step_costs",
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
"""Those of ``model.DTYPES`` to estimate; the second holds weights short and computes in float32."""
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


def score_flops(arch: Architecture, tokens: int) -> int:
    """The products of differences and gradients, for all edges."""
    graph = arch.graph
    per_layer = sum(graph.n_reaching(graph.mlp_slot_of(layer)) for layer in range(arch.layers))
    return 2 * tokens * arch.d_model * (per_layer * (3 * arch.heads + 1) + graph.n_src)


def eap_flops(arch: Architecture, tokens: int, *, steps: int | None = None) -> int:
    """EAP, or EAP-IG of so many steps, as the engine does it."""
    sizes = {"kv_heads": arch.heads, "logits": 1}
    attention = arch.heads * arch.d_head * arch.d_model
    unread = 2 * (tokens - 1) * (arch.passed_matrices(0) // arch.layers - attention)
    forward = forward_flops(arch, tokens, **sizes) - unread
    backward = backward_flops(arch, tokens, **sizes) - unread - 2 * tokens * 3 * attention
    results = 2 * tokens * arch.layers * attention
    once = 2 * forward + results
    each = backward + 3 * results + score_flops(arch, tokens)
    return once + each if steps is None else once + steps * (forward + each)


def acdc_flops(arch: Architecture, tokens: int, *, waste: float) -> float:
    """Every edge tried once and a share of them again; a pass runs half of the layers on average, on one prompt."""
    half = forward_flops(arch, tokens, kv_heads=arch.heads, logits=1) / 2
    return arch.graph.n_edges * (1 + waste) * half


def state_bytes(arch: Architecture, tokens: int, dtype: str, *, steps: int | None = None) -> int:
    """What EAP, or EAP-IG of so many steps, holds per prompt beside the weights; see the module's text."""
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
    """So many plain runs of one prompt, kept with what every source writes."""
    kept = runs * (_sources(arch, tokens) + _kept(arch, tokens) + _written(arch, tokens) + arch.vocab)
    return (kept + _working(arch, tokens)) * STATE_BYTES[dtype]


def held_bytes(arch: Architecture, lengths: Sequence[int], dtype: str, *, runs: int = 2) -> int:
    """The runs of prompts of these lengths, held together, and every source's difference, as ACDC does."""
    sources = sum(_sources(arch, tokens) for tokens in lengths) * STATE_BYTES[dtype]
    return sum(run_bytes(arch, tokens, dtype, runs=runs) for tokens in lengths) + sources


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
    """The weights as the engine holds them, keys and values repeated."""
    repeated = arch.matrices(arch.heads) - arch.matrices(arch.kv_heads)
    return (arch.parameters + repeated) * WEIGHT_BYTES[dtype]


def traffic_bytes(arch: Architecture, tokens: int, dtype: str, prompts: int) -> int:
    """Bytes that EAP must at least move for a batch: the weights three times, every source's output once per layer."""
    graph = arch.graph
    reads = sum(graph.n_reaching(graph.mlp_slot_of(layer)) for layer in range(arch.layers))
    contributions = (reads + 6 * graph.n_src) * arch.d_model * tokens * STATE_BYTES[dtype]
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
    rate = device.peak["float32" if STATE_BYTES[dtype] == 4 else dtype] * efficiency
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


@dataclass(frozen=True)
class StepCost:
    """One step on all prompts: bytes per prompt beside the weights, prompts at a time (0: none fits), and seconds."""

    step: str
    bytes_per_prompt: int
    prompts_at_once: int
    seconds: float


def step_costs(
    arch: Architecture,
    dtype: str,
    *,
    device: Device = H200,
    tokens: int = 64,
    prompts: int = 400,
    steps: int = 5,
    acdc_prompts: int = 16,
    limit: int | None = None,
    efficiency: float = 0.4,
    waste: float = 0.3,
) -> tuple[StepCost, ...]:
    """Every method and what follows it, on one device, within ``limit`` bytes or nine tenths of its memory.

    Exact patching tries every edge on all prompts, ACDC on ``acdc_prompts``; a circuit's faithfulness is both
    plain runs, the circuit, its complement with and without layer 0's reads, four single edges, ten random circuits
    and the two ends; a patched pass is counted as a whole forward.
    """
    how = {"device": device, "tokens": tokens, "prompts": prompts, "steps": steps, "acdc_prompts": acdc_prompts}
    whole = estimate(arch, dtype, efficiency=efficiency, waste=waste, **how)  # type: ignore[arg-type]
    rate = device.peak["float32" if STATE_BYTES[dtype] == 4 else dtype] * efficiency
    room = (0.9 * device.memory if limit is None else min(limit, 0.9 * device.memory)) - weight_bytes(arch, dtype)
    forward = prompts * forward_flops(arch, tokens, kv_heads=arch.heads, logits=1) / rate
    runs = run_bytes(arch, tokens, dtype)
    one = runs + circuit_bytes(arch, tokens, dtype)
    found = (
        ("EAP", state_bytes(arch, tokens, dtype), whole.eap_seconds),
        (f"EAP-IG, {steps} points", state_bytes(arch, tokens, dtype, steps=steps), whole.ig_seconds),
        ("exact patching", one, acdc_flops(arch, tokens, waste=0.0) * prompts / rate),
        (f"ACDC on {acdc_prompts} prompts", one, 3600 * whole.acdc_hours),
        ("a circuit's faithfulness", one, 21 * forward),
        ("1,000 more circuits", one, 1000 * forward),
    )
    return tuple(StepCost(name, each, max(0, int(room // each)), seconds) for name, each, seconds in found)


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
    d_mlp = mlp // ((3 if gated else 2) * width)
    sizes = (name, layers, heads, kv_heads, d_head, width, d_mlp, table.shape[0], gated, tied)
    return Architecture(*sizes, _active(config, d_mlp), _norms(network, layers), _capped(config))


def _active(config: Any, d_mlp: int) -> int:
    """The MLP width of the experts that a token passes, where there are experts."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    n = next((int(found) for name in names if (found := getattr(config, name, None))), 0)
    each = int(getattr(config, "num_experts_per_tok", None) or 0)
    return -(-d_mlp * each // n) if n and each else 0


def _norms(network: Any, layers: int) -> int:
    return sum("norm" in type(part).__name__.lower() for part in network.modules()) // layers


def _capped(config: Any) -> bool:
    return bool(getattr(config, "attn_logit_softcapping", None))
