"""What EAP, EAP-IG and ACDC would cost on models too large to run here: arithmetic, printed with its terms.

python benchmarks/estimate.py [--tokens 64] [--pairs 200] [--efficiency 0.4]

The formulas are those of ``circuit.cost.passes``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tables import README, markdown_table, replace_section

from persona_circuits.circuit.cost import (
    DEVICES,
    FORMATS,
    H200,
    MODELS,
    Architecture,
    Device,
    Estimate,
    Job,
    acdc_flops,
    backward_flops,
    eap_flops,
    estimate,
    floor_flops,
    forward_flops,
    passes,
    score_flops,
    state_bytes,
    step_costs,
    weight_bytes,
)
from persona_circuits.circuit.errors import PersonaCircuitsError

__all__ = [
    "FORMATS",
    "H200",
    "MODELS",
    "Architecture",
    "Device",
    "Estimate",
    "acdc_flops",
    "backward_flops",
    "eap_flops",
    "estimate",
    "floor_flops",
    "forward_flops",
    "main",
    "score_flops",
    "section",
    "state_bytes",
    "weight_bytes",
]


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


def time_table(job: Job) -> str:
    """Times on one and on eight devices."""
    columns = ("", "format", "devices", "prompts at once", "floor, s", "EAP, s", "EAP-IG, s", "ACDC, h")
    rows = []
    for arch in MODELS:
        for dtype in FORMATS:
            for devices in (1, 8):
                found = estimate(arch, dtype, job, devices=devices)
                fits = found.prompts_at_once > 0
                times = (found.floor_seconds, found.eap_seconds, found.ig_seconds, found.acdc_hours)
                cells = [_number(value) for value in times] if fits else ["does not fit"] * 4
                rows.append((arch.name, dtype, str(devices), str(found.prompts_at_once), *cells))
    return markdown_table(columns, rows, texts=2)


def step_table(arch: Architecture, device: Device, price: float) -> str:
    """Every step in every format on one device at a price of its hour, on the defaults' prompts."""
    rows = []
    for dtype in FORMATS:
        for step in step_costs(arch, dtype, device=device):
            fits = step.prompts_at_once > 0
            times = [_minutes(step.seconds), f"{step.seconds / 3600 * price:,.2f}"] if fits else ["", ""]
            at_once = f"{step.prompts_at_once:,}" if fits else "none fits"
            rows.append((dtype, step.step, f"{step.bytes_per_prompt / 1e9:.3g}", at_once, *times))
    columns = ("format", "step", "per prompt, GB", "prompts at once", "time", "cost")
    said = (
        f"{arch.name} on one {device.name} at {price:.2f} an hour, 400 prompts of 64 tokens: weights of "
        + ", ".join(f"{weight_bytes(arch, dtype) / 1e9:.1f} GB in {dtype}" for dtype in FORMATS)
    )
    return f"{said}.\n\n{markdown_table(columns, rows, texts=2)}"


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:,.0f} s"
        if seconds < 120
        else f"{seconds / 60:,.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:,.0f} h"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def section(tokens: int, pairs: int, efficiency: float) -> str:
    """What the command prints and writes."""
    formulas = (passes.__doc__ or "").split("\n\n", 1)[1].strip()
    assumed = (
        f"Prompts of {tokens} tokens; {pairs} pairs in both directions, so {2 * pairs} prompt pairs; EAP-IG in 5 "
        f"steps; ACDC on 16 prompt pairs with 30 % of all trials for nothing. {H200.name}: "
        f"{H200.peak['float32'] / 1e12:.1f} TFLOP/s in float32 (no TF32), {H200.peak['bfloat16'] / 1e12:.1f} in "
        f"bfloat16 (dense), {H200.memory / 1e9:.0f} GB, {H200.bandwidth / 1e12:.1f} TB/s; {efficiency:.0%} of the "
        "peak assumed. Prompts are split over devices; each holds all weights, and one sum over all devices joins "
        "the scores."
    )
    times = time_table(Job(tokens, 2 * pairs, efficiency=efficiency))
    return f"{size_table(tokens)}\n\n{assumed}\n\n{times}\n\nHow it is counted:\n\n```\n{formulas}\n```"


def main(argv: list[str] | None = None) -> int:
    """Print the estimate and write its section; 2 on bad input."""
    parser = argparse.ArgumentParser(description="What larger models would cost, on paper.")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of the device's peak")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--gpu-page", type=Path, help="write the steps of a 3B model into this page too")
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
            if args.gpu_page:
                replace_section(args.gpu_page, "gpu-cost", step_table(MODELS[0], DEVICES[0], 0.40))
    except PersonaCircuitsError as error:
        print(f"estimate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
