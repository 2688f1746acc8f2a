"""What EAP, EAP-IG and ACDC would cost on models too large to run here: arithmetic, printed with its terms.

    python benchmarks/estimate.py [--tokens 64] [--pairs 200] [--efficiency 0.4]

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

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from tables import README, markdown_table, replace_section

from circuit.errors import PersonaCircuitsError
from circuit.graph import Graph


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

    def seconds(flops: float) -> float:
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


def size_table(tokens: int) -> str:
    """The sizes of the models, and operations per prompt."""
    columns = ["", "parameters", "sources", "slots", "edges", "floor, TFLOP", "EAP", "EAP / floor", "scores' share"]
    columns += ["state, GB, float32", "weights, GB, float32"]
    rows = []
    for arch in MODELS:
        floor, eap = floor_flops(arch, tokens), eap_flops(arch, tokens)
        graph = arch.graph
        rows.append(
            (
                arch.name,
                f"{arch.parameters / 1e9:.2f} G",
                f"{graph.n_src:,}",
                f"{graph.n_dst:,}",
                f"{graph.n_edges:,}",
                f"{floor / 1e12:.2f}",
                f"{eap / 1e12:.2f}",
                f"{eap / floor:.2f}",
                f"{score_flops(arch, tokens) / eap:.0%}",
                f"{state_bytes(arch, tokens, 'float32') / 1e9:.2f}",
                f"{weight_bytes(arch, 'float32') / 1e9:.1f}",
            )
        )
    return markdown_table(columns, rows)


def time_table(**options: float) -> str:
    """Times on one and on eight devices."""
    columns = ("", "format", "devices", "prompts at once", "floor, s", "EAP, s", "EAP-IG, s", "ACDC, h")
    rows = []
    for arch in MODELS:
        for dtype in BYTES:
            for devices in (1, 8):
                found = estimate(arch, dtype, devices=devices, **options)  # type: ignore[arg-type]
                fits = found.prompts_at_once > 0
                times = (found.floor_seconds, found.eap_seconds, found.ig_seconds, found.acdc_hours)
                cells = [_number(value) for value in times] if fits else ["does not fit"] * 4
                rows.append((arch.name, dtype, str(devices), str(found.prompts_at_once), *cells))
    return markdown_table(columns, rows, texts=2)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def section(tokens: int, pairs: int, efficiency: float) -> str:
    """What the command prints and writes."""
    formulas = (__doc__ or "").split("\n\n", 2)[2].strip()
    assumed = (
        f"Prompts of {tokens} tokens; {pairs} pairs in both directions, so {2 * pairs} prompt pairs; EAP-IG in 5 "
        f"steps; ACDC on 16 prompt pairs with 30 % of all trials for nothing. {H200.name}: "
        f"{H200.peak['float32'] / 1e12:.1f} TFLOP/s in float32 (no TF32), {H200.peak['bfloat16'] / 1e12:.1f} in "
        f"bfloat16 (dense), {H200.memory / 1e9:.0f} GB, {H200.bandwidth / 1e12:.1f} TB/s; {efficiency:.0%} of the "
        "peak assumed. Prompts are split over devices; each holds all weights, and one sum over all devices joins "
        "the scores."
    )
    times = time_table(tokens=tokens, prompts=2 * pairs, efficiency=efficiency)
    return f"{size_table(tokens)}\n\n{assumed}\n\n{times}\n\nHow it is counted:\n\n```\n{formulas}\n```"


def main(argv: list[str] | None = None) -> int:
    """Print the estimate and write its section; 2 on bad input."""
    parser = argparse.ArgumentParser(description="What larger models would cost, on paper.")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of the device's peak")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args(argv)
    if args.tokens < 2 or args.pairs < 1 or not 0 < args.efficiency <= 1:
        print("estimate.py: at least 2 tokens, 1 pair, and an efficiency above 0 and up to 1", file=sys.stderr)
        return 2
    text = section(args.tokens, args.pairs, args.efficiency)
    print(text)
    try:
        if not args.no_write:
            replace_section(args.readme, "bench-estimate", text)
    except PersonaCircuitsError as error:
        print(f"estimate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
