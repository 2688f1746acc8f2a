"""The engine on an accelerator, against the bare passes there: synchronised times, allocated memory.

    python benchmarks/gpu.py                     # or: make bench-gpu
    python benchmarks/gpu.py --device cpu --tiny # tries the code where there is no CUDA

For every shape and format: the floor, EAP, EAP-IG, one forward, one circuit; the share of the floor that
EAP reaches; and how far the shorter format's scores are from float32's. Then ACDC over all edges of
GPT-2 small's shape to a stated threshold, beside one edge at a time through all layers (timed on
a sample and projected). Weights and pairs are random and the same in every format.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from shapes import GPU_SHAPES, Shape
from steps import LOGIT_DIFF, AcdcRun, all_edges_in_order, circuit_sizes, full_forwards, kl_threshold, one_circuit
from tables import README, machine_line, markdown_table, replace_section

from persona_circuits.circuit.attribution import eap, eap_ig
from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.forward import prepare
from persona_circuits.circuit.peers import agreement
from persona_circuits.circuit.profiling import (
    Cost,
    Step,
    acdc_sample,
    bare_forward,
    bare_passes,
    cost_of,
    costs_of,
    held_bytes,
    machine,
    seconds_of,
)
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.task import Batch

DTYPES = ("float32", "bfloat16")
STEPS = 5


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the section of the README; 2 where there is no such device."""
    args = _parse(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            "gpu.py: torch sees no CUDA device here; run this on a machine with one, "
            "or try the code with --device cpu --tiny",
            file=sys.stderr,
        )
        return 2
    chosen = [GPU_SHAPES[name].tiny() if args.tiny else GPU_SHAPES[name] for name in args.shapes]
    results = measured(
        chosen,
        args.device,
        dtypes=args.dtypes,
        rounds=args.rounds,
        pairs=args.pairs,
        batch_size=args.batch_size,
        acdc_pairs=args.acdc_pairs,
        candidates=args.candidates,
        share=args.share,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    text = gpu_section(results)
    print(text)
    try:
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(results, args.out)
        if args.readme is not None:
            replace_section(args.readme, "bench-gpu", text)
    except PersonaCircuitsError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    return 0


def measured(
    chosen: Sequence[Shape],
    device: str,
    *,
    dtypes: Sequence[str],
    rounds: int,
    pairs: int | None,
    batch_size: int | None,
    acdc_pairs: int,
    candidates: int,
    share: float,
    say: Callable[[str], Any],
) -> dict[str, Any]:
    """Every shape in every format, and ACDC on the first shape in the first format; plain values for JSON."""
    rows: list[dict[str, Any]] = []
    for shape in chosen:
        reference: Scores | None = None
        for dtype in dtypes:
            say(f"{shape.name}, {dtype}")
            row, scores = _one(shape, device, dtype, rounds=rounds, pairs=pairs or shape.pairs, batch_size=batch_size)
            if reference is None:
                reference = scores
            else:
                found = agreement(dtype, reference, scores)
                row["agreement"] = {"with": dtypes[0], "pearson": found.pearson, "relative": found.relative}
            rows.append(row)
    say(f"ACDC, {chosen[0].name}")
    acdc = _acdc(chosen[0], device, dtypes[0], pairs=acdc_pairs, candidates=candidates, share=share)
    return {"machine": machine(device), "rows": rows, "acdc": acdc}


def _one(
    shape: Shape, device: str, dtype: str, *, rounds: int, pairs: int, batch_size: int | None
) -> tuple[dict[str, Any], Scores]:
    """One shape in one format: the bare model first, then the engine, so that one of them is in memory at a time."""
    whole = shape.batch(device, pairs=pairs)
    size = batch_size or pairs_at_once(shape, device, dtype, pairs)
    parts = split(whole, size)
    network = shape.network(device, dtype)
    bare_bytes = held_bytes([*network.parameters(), *network.buffers()])
    steps = {"floor": _over(parts, lambda part: bare_passes(network, part)), "forward": bare_forward(network, parts[0])}
    bare = costs_of(steps, device, rounds=rounds)
    del network, steps
    _free()
    model = shape.model(device, dtype)
    item = prepare(model, parts[0])
    found: list[Scores] = []
    costs = bare | costs_of(
        {
            "EAP": lambda: found.append(eap(model, parts, LOGIT_DIFF)),
            "EAP-IG": lambda: eap_ig(model, parts, LOGIT_DIFF, steps=STEPS),
            "circuit": one_circuit(model, item, circuit_sizes(model)[2]),
        },
        device,
        rounds=rounds,
    )
    row = {
        "shape": shape.as_dict(),
        "title": replace(shape, pairs=pairs).title,
        "n_edges": model.graph.n_edges,
        "circuit_edges": circuit_sizes(model)[2],
        "dtype": dtype,
        "pairs": pairs,
        "pairs_at_once": size,
        "weights": bare_bytes,
        "costs": {name: _plain(cost) for name, cost in costs.items()},
        "agreement": None,
    }
    del model, item, costs
    _free()
    return row, found[0]


def _acdc(shape: Shape, device: str, dtype: str, *, pairs: int, candidates: int, share: float) -> dict[str, Any]:
    model, batch = shape.model(device, dtype), shape.batch(device, pairs=pairs)
    item = prepare(model, batch)
    tau = kl_threshold(item, share)
    sample = acdc_sample(model.graph, 96)
    sequential = cost_of(full_forwards(model, item, sample), device, rounds=1, memory=False).median / len(sample)
    run = AcdcRun(model, item, all_edges_in_order(model), tau, candidates)
    AcdcRun(model, item, sample, tau, candidates)()  # warms up
    found: list[Any] = []
    seconds = seconds_of(lambda: found.append(run()), device)
    result = found[0]
    return {
        "title": replace(shape, pairs=pairs).title,
        "dtype": dtype,
        "n_edges": model.graph.n_edges,
        "kept": len(run.kept(result)),
        "share": share,
        "tau": tau,
        "candidates": candidates,
        "seconds": seconds,
        "passes": result.passes,
        "evaluated": result.evaluated,
        "wasted": result.wasted,
        "sequential_seconds": sequential * model.graph.n_edges,
    }


def split(batch: Batch, size: int) -> list[Batch]:
    """The pairs of a batch, ``size`` at a time."""
    starts = range(0, len(batch), size)
    keys = ("clean", "corrupt", "answers", "wrong_answers")
    return [
        Batch(batch.indices[at : at + size], **{key: getattr(batch, key)[at : at + size] for key in keys})
        for at in starts
    ]


def pairs_at_once(shape: Shape, device: str, dtype: str, pairs: int) -> int:
    """How many pairs EAP can hold at a time in 60 % of the memory that the weights leave (of 4 GB on a CPU)."""
    from estimate import Architecture, state_bytes, weight_bytes

    groups = shape.kv_heads or shape.heads
    d_head = shape.d_model // shape.heads
    sizes = (shape.layers, shape.heads, groups, d_head, shape.d_model, shape.d_mlp, shape.vocab)
    arch = Architecture(shape.name, *sizes, gated=shape.family == "llama")
    memory = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else 4e9
    room = 0.6 * (memory - weight_bytes(arch, dtype))
    return max(1, min(pairs, int(room // state_bytes(arch, shape.tokens, dtype))))


def gpu_section(results: dict[str, Any]) -> str:
    """The tables of the README."""
    columns = ["", "format", "pairs at a time", "floor, s", "EAP, s", "EAP / floor", "share of the floor"]
    columns += [f"EAP-IG, {STEPS} steps", "circuit / forward", "peak MB, floor", "peak MB, EAP", "agreement"]
    table = markdown_table(columns, [_cells(row) for row in results["rows"]], texts=2)
    return f"{machine_line(results['machine'])}\n\n{table}\n\n{_legend(results)}\n\n{_acdc_text(results['acdc'])}"


def _legend(results: dict[str, Any]) -> str:
    titles = dict.fromkeys(
        f"- {row['title']}; {row['n_edges']:,} edges, circuit of {row['circuit_edges']:,}." for row in results["rows"]
    )
    how = (
        f"- EAP-IG over {STEPS} floors. Medians of the rounds, the device idle before and after each; peaks "
        "beyond what was held when the step began, so without weights."
    )
    return "\n".join([*titles, how])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    costs = row["costs"]
    floor, scores = costs["floor"]["median"], costs["EAP"]["median"]
    found = row["agreement"]
    text = ""
    if found is not None:
        pearson = "undefined" if found["pearson"] is None else f"{found['pearson']:.5f}"
        text = (
            f"Pearson {pearson} with {found['with']}, largest difference {found['relative']:.0e} of the largest score"
        )
    return (
        row["title"].split(":")[0],
        row["dtype"],
        str(row["pairs_at_once"]),
        f"{floor:.3g}",
        f"{scores:.3g} ({min(costs['EAP']['seconds']):.3g} to {max(costs['EAP']['seconds']):.3g})",
        f"{scores / floor:.2f}",
        f"{floor / scores:.0%}",
        f"{costs['EAP-IG']['median'] / (STEPS * floor):.2f}",
        f"{costs['circuit']['median'] / costs['forward']['median']:.2f}",
        _megabytes(costs["floor"]["peak_bytes"]),
        _megabytes(costs["EAP"]["peak_bytes"]),
        text,
    )


def _acdc_text(acdc: dict[str, Any]) -> str:
    longer, fewer = acdc["sequential_seconds"] / acdc["seconds"], acdc["n_edges"] / acdc["passes"]
    return (
        f"ACDC over all {acdc['n_edges']:,} edges ({acdc['title']}; {acdc['dtype']}), an edge removed where KL grows "
        f"by less than {acdc['tau']:.3g} ({acdc['share']:g} of KL(full, empty)), {acdc['candidates']} candidates a "
        f"pass: {acdc['seconds']:.1f} s, {acdc['passes']:,} passes ({fewer:.1f} times fewer than edges), "
        f"{acdc['evaluated']:,} circuits of which {acdc['wasted']:,} for nothing, {acdc['kept']:,} edges kept. "
        f"One edge at a time through all layers would take {acdc['sequential_seconds']:,.1f} s, {longer:.1f} times as "
        "long (projected from a sample of edges)."
    )


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.1f}"


def _over(parts: Sequence[Batch], make: Callable[[Batch], Step]) -> Step:
    steps = [make(part) for part in parts]

    def step() -> None:
        for one in steps:
            one()

    return step


def _plain(cost: Cost) -> dict[str, Any]:
    return {"seconds": list(cost.seconds), "median": cost.median, "peak_bytes": cost.peak_bytes}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The engine on an accelerator, against bare passes.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=list(GPU_SHAPES), default=list(GPU_SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, help="(default: the shape's, 200)")
    parser.add_argument("--batch-size", type=int, help="pairs at a time (default: what memory allows)")
    parser.add_argument("--acdc-pairs", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=64, help="edges that ACDC tries per pass")
    parser.add_argument("--share", type=float, default=1e-4, help="ACDC's threshold as a share of KL(full, empty)")
    parser.add_argument("--tiny", action="store_true", help="smallest shapes")
    parser.add_argument("--out", type=Path, help="JSON file with all numbers")
    parser.add_argument("--readme", type=Path, default=None, help=f"README to write into, such as {README.name}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
