"""What EAP, EAP-IG and ACDC would cost on a model: arithmetic, from its sizes alone.

For one prompt of T tokens, L layers, H heads of width h, G key-value heads, model width d, MLP width
f, vocabulary V, with g = 3 matrices in a gated MLP and 2 in a plain one (2 operations per multiply-add):

    layers    P(G) = 2 T L (2 d H h + 2 d G h + g d f)         all weight matrices
    attention A    = 4 T^2 L H h                               scores and their product with v
    logits    U(n) = 2 n d V                                   n positions
    bare forward   = P(G) + A + U(T)
    bare backward  = P(G) + 2 A + U(T)                         to the embeddings; no weight gradients
    floor          = 2 forwards + 1 backward
    unread    E    = 2 (T - 1) (d H h + g d f)                 after the last attention, at all but the last position
    EAP            = 2 (P(H) + A + U(1) - E) + (P(H) + 2 A + U(1) - E - 2 T 3 d H h)
                   + 2 T L H h d                               every head's own result, of both runs' difference
                   + 3 * 2 T L H h d                           gradients at every head's q, k and v streams
                   + 2 T d (sum over layers of n_l (3 H + 1) + n_src)   the scores

n_l is how many sources reach layer l's MLP. The engine repeats keys and values to one head
each (G = H), and takes logits and what lies after the last attention at the last position only. m steps of
EAP-IG take the first two forwards and the heads' results once, and for each step one forward, the
backward, the gradients and the scores. The backward pass ends at the first layer's q, k and v.

Memory beside the weights, per prompt, in numbers of the format:

    S = n_src T d                           what every source writes in one run
    K = L T (2 d + 3 H h) + T d             streams, and projections of all layers
    A = L T (6 H h + c f + 3 n d) + b L H T^2   what autograd keeps besides of one forward pass
    R = L T (3 H h + d) + T d               gradients at all projections and MLP inputs
    Z = L T (H h + d) + T d                 what the parts of one run wrote, before heads are separated
    W = T (H d + 4 H h + c f) + 3 H T^2     one layer at work
    EAP      = max(S + K + A + 4 Z + 2 H T^2, 1.6 S + K + R + 2 Z)
    EAP-IG   = max(S + K + 4 Z + W, S + 2 K + A + 2 Z, 1.6 S + 2 K + R + 2 Z)
    runs     = 2 (S + K + Z) + W            both plain runs of a pair, 4 (...) + W where a cut edge carries neither
    circuit  = 2 S + T (14 H d + 6 d + 6 H h + c f) + 3 H T^2     one patched pass, for each circuit in it

f is the MLP width that a token passes (c = 7 in experts, else 4 if it is gated and 5 if not), n the norms of a layer
beyond two, and b = 1.3, or 2.6 where attention scores are capped. The constants are bounds on what torch's allocator
counts for the families that the tests build. Times divide operations by the device's peak times an assumed efficiency,
or bytes by its bandwidth where that is longer. They are estimates; no time here was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from persona_circuits.circuit.cost.sizes import (
    H200,
    STATE_BYTES,
    Architecture,
    Device,
    _sources,
    backward_flops,
    circuit_bytes,
    floor_flops,
    forward_flops,
    run_bytes,
    state_bytes,
    traffic_bytes,
    weight_bytes,
)

__all__ = [
    "Estimate",
    "Job",
    "StepCost",
    "acdc_flops",
    "eap_flops",
    "estimate",
    "held_bytes",
    "runs_of_scores",
    "score_flops",
    "step_costs",
]


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


def runs_of_scores(arch: Architecture, tokens: int, method: str, *, steps: int) -> float:
    """How many times the operations of both plain runs of a pair its scores by that method take.

    Other backward rules cost what EAP does; exact scores a pass for each edge, of half of the layers on average.
    """
    plain = 2 * forward_flops(arch, tokens, kv_heads=arch.heads, logits=1)
    if method == "exact":
        return arch.graph.n_edges / 4
    if method == "atp-star":  # queries and keys of each source are made again, a sixth of a layer
        return eap_flops(arch, tokens, steps=arch.layers) / plain + arch.graph.n_src / 12
    points = {
        "eap-ig": steps,
        "eap-ig-activations": (2 * arch.layers + 1) * steps,
        "ceap": steps + 1,
        "clean-corrupted": 2,
    }.get(method)
    return eap_flops(arch, tokens, steps=points) / plain


def acdc_flops(arch: Architecture, tokens: int, *, waste: float) -> float:
    """Every edge tried once and a share of them again; a pass runs half of the layers on average, on one prompt."""
    half = forward_flops(arch, tokens, kv_heads=arch.heads, logits=1) / 2
    return arch.graph.n_edges * (1 + waste) * half


def held_bytes(arch: Architecture, lengths: Sequence[int], dtype: str, *, runs: int = 2) -> int:
    """Bytes of the runs of prompts of these lengths together, and of every source's difference, as ACDC needs."""
    sources = sum(_sources(arch, tokens) for tokens in lengths) * STATE_BYTES[dtype]
    return sum(run_bytes(arch, tokens, dtype, runs=runs) for tokens in lengths) + sources


@dataclass(frozen=True)
class Job:
    """What is to be done: prompts and their length, points of EAP-IG, the prompts of ACDC.

    ``efficiency`` is the share of the peak that is reached, ``waste`` that of ACDC's circuits which are tried again.
    """

    tokens: int = 64
    prompts: int = 400
    steps: int = 5
    acdc_prompts: int = 16
    efficiency: float = 0.4
    waste: float = 0.3


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
    arch: Architecture, dtype: str, job: Job | None = None, *, device: Device = H200, devices: int = 1
) -> Estimate:
    """Times from operations and bytes; prompts are split over devices, each of which holds all weights."""
    job = job or Job()
    tokens, room = job.tokens, 0.9 * device.memory - weight_bytes(arch, dtype)
    at_once = max(0, int(room // state_bytes(arch, tokens, dtype)))
    share = -(-job.prompts // devices)
    rate = device.peak["float32" if STATE_BYTES[dtype] == 4 else dtype] * job.efficiency
    batches = -(-share // max(1, at_once))
    moved = share * traffic_bytes(arch, tokens, dtype, 1) - (share - batches) * 3 * weight_bytes(arch, dtype)
    joined = 2 * arch.graph.n_src * arch.graph.n_dst * 8 / device.link if devices > 1 else 0.0

    def seconds(flops: int | float) -> float:
        return max(share * flops / rate, moved / device.bandwidth) + joined

    trials = acdc_flops(arch, tokens, waste=job.waste) * job.acdc_prompts / (rate * min(devices, job.acdc_prompts))
    return Estimate(
        arch,
        dtype,
        devices,
        at_once,
        seconds(floor_flops(arch, tokens)),
        seconds(eap_flops(arch, tokens)),
        seconds(eap_flops(arch, tokens, steps=job.steps)),
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
    arch: Architecture, dtype: str, job: Job | None = None, *, device: Device = H200, limit: int | None = None
) -> tuple[StepCost, ...]:
    """Every method and what follows it, on one device, within ``limit`` bytes or nine tenths of its memory.

    Exact patching tries every edge on all prompts, ACDC on its own; a circuit's faithfulness is both
    plain runs, the circuit, its complement with and without layer 0's reads, four single edges, ten random circuits
    and the two ends; a patched pass is counted as a whole forward.
    """
    job = job or Job()
    whole, tokens, prompts = estimate(arch, dtype, job, device=device), job.tokens, job.prompts
    rate = device.peak["float32" if STATE_BYTES[dtype] == 4 else dtype] * job.efficiency
    room = (0.9 * device.memory if limit is None else min(limit, 0.9 * device.memory)) - weight_bytes(arch, dtype)
    forward = prompts * forward_flops(arch, tokens, kv_heads=arch.heads, logits=1) / rate
    runs = run_bytes(arch, tokens, dtype)
    per_circuit = runs + circuit_bytes(arch, tokens, dtype)
    steps = (
        ("EAP", state_bytes(arch, tokens, dtype), whole.eap_seconds),
        (f"EAP-IG, {job.steps} points", state_bytes(arch, tokens, dtype, steps=job.steps), whole.ig_seconds),
        ("exact patching", per_circuit, acdc_flops(arch, tokens, waste=0.0) * prompts / rate),
        (f"ACDC on {job.acdc_prompts} prompts", per_circuit, 3600 * whole.acdc_hours),
        ("a circuit's faithfulness", per_circuit, 21 * forward),
        ("1,000 more circuits", per_circuit, 1000 * forward),
    )
    return tuple(StepCost(name, each, max(0, int(room // each)), seconds) for name, each, seconds in steps)
