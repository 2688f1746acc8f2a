"""How fast the engine is on a model and on pairs of the user's own, as multiples of bare passes.

    floor       two forward passes and one backward pass of the bare host model, parameters frozen
    EAP         against the floor
    EAP-IG      m steps against m floors
    circuits    one forward pass with a circuit's complement corrupted, against one bare forward
    ACDC        a sample of edges in ACDC's own order, spread evenly over the graph

The steps are the engine's public functions on one batch of pairs of equal length.
Times hold for one machine and one run; only the ratios carry over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from persona_circuits.circuit.attribution import eap, eap_ig
from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.evaluation import random_circuits
from persona_circuits.circuit.figures import picked
from persona_circuits.circuit.forward import divergence, patched_logits, prepare, targets_of
from persona_circuits.circuit.graph import Edge, Graph
from persona_circuits.circuit.model import DTYPES, Model, host_options, load_model
from persona_circuits.circuit.profiling.meter import Cost, Step, costs_of, seconds_of
from persona_circuits.circuit.profiling.options import BenchOptions
from persona_circuits.circuit.progress import untold_stage
from persona_circuits.circuit.pruning import Trials, acdc
from persona_circuits.circuit.table import Column, Table
from persona_circuits.circuit.task import Batch, Task, batches, encode, resolve
from persona_circuits.metrics import METRICS, Metric

__all__ = [
    "acdc_row",
    "acdc_sample",
    "bare_forward",
    "bare_passes",
    "bench",
    "bench_table",
    "held_bytes",
    "machine",
    "one_batch",
]

FORMAT = "persona-circuits/bench"
METRIC = METRICS["logit-diff"]  # its gradient is not zero at the clean run, and one batch needs no swap rows


@dataclass(frozen=True)
class Line:
    """One step: its cost, and as a multiple of ``times`` runs of the line called ``against``."""

    what: str
    cost: Cost
    against: str
    times: int
    ratio: float


@dataclass(frozen=True)
class AcdcCost:
    """ACDC on a sample of edges; ``seconds`` is wall time, ``n_edges`` what it tried of ``of_edges`` in the graph."""

    n_edges: int
    of_edges: int
    tau: float
    seconds: float
    passes: int
    evaluated: int
    wasted: int
    kept: int

    @property
    def projected(self) -> float:
        """Seconds for all edges at this rate; the sample is spread evenly over the graph."""
        return self.seconds / self.n_edges * self.of_edges


@dataclass(frozen=True)
class BenchReport:
    """The measurements and the machine. ``weights`` are the bytes of the bare and of the decomposed model."""

    model: dict[str, Any]
    pairs: dict[str, Any]
    machine: dict[str, Any]
    weights: dict[str, int]
    lines: tuple[Line, ...]
    acdc: AcdcCost | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lines = [{**asdict(line), "median": line.cost.median} for line in self.lines]
        cost = None if self.acdc is None else {**asdict(self.acdc), "projected": self.acdc.projected}
        return {
            "format": FORMAT,
            "version": 1,
            **picked(self, "model", "pairs", "machine", "weights"),
            "lines": lines,
            "acdc": cost,
        }


def bench(
    name: str,
    task: Task,
    options: BenchOptions,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    label: str | None = None,
    stage: Callable[[str], Any] | None = None,
) -> BenchReport:
    """Measure the engine, then the bare model, so that only one of the two is in memory at a time.

    Parameters
    ----------
    name, revision, device, dtype, label
        As for ``load_model``.
    task
        The pairs; the largest group of pairs of one length is used, at most ``n_pairs`` of it.
    stage
        Called with the name of what begins.

    Raises
    ------
    OptionError, ModelError, TaskError
        Before any long work.
    """
    options = options.checked()
    stage = stage or untold_stage
    stage(f"loading {label or name}")
    model = load_model(resolve(name), revision=revision, device=device, dtype=dtype, label=label or name)
    batch = one_batch(model, task, options.n_pairs)
    where, weights = model.device, {"engine": held_bytes(_tensors_of(model))}
    facts = _about(model)
    stage("EAP, EAP-IG, one circuit")
    costs = _engine_costs(model, batch, options)
    cost = None
    if options.acdc_edges:
        stage("ACDC")
        cost = acdc_cost(model, batch, options)
    del model
    stage("bare passes")
    network = load_bare(name, revision=revision, device=where, dtype=dtype)
    weights["bare"] = held_bytes([*network.parameters(), *network.buffers()])
    steps = {FLOOR: bare_passes(network, batch), FORWARD: bare_forward(network, batch)}
    bare = costs_of(steps, where, rounds=options.rounds)
    pairs = {"source": task.source, "n_pairs": len(batch), "n_tokens": batch.clean.shape[1]}
    return BenchReport(facts, pairs, machine(where), weights, _lines(bare, costs, options), cost)


FLOOR = "two forwards and one backward, bare"
FORWARD = "one forward, bare"


def bench_table(report: BenchReport) -> Table:
    """A row per step; the last column compares peaks, weights included."""
    peaks = {line.what: line.cost.peak_bytes for line in report.lines}
    columns = (
        Column("", "what"),
        Column("s, median", "cost.median", ".4g"),
        Column("fastest", lambda line: min(line.cost.seconds), ".4g"),
        Column("slowest", lambda line: max(line.cost.seconds), ".4g"),
        Column("×", "ratio", ".2f"),
        Column("of", _compared_with),
        Column("peak MB", lambda line: None if (peak := line.cost.peak_bytes) is None else peak / 1e6, ",.1f"),
        Column("×", lambda line: _peak_ratio(report.weights, line, peaks[line.against])),
    )
    model, pairs = report.model, report.pairs
    title = f"{model['name']}, {model['dtype']}, {pairs['n_pairs']} pairs of {pairs['n_tokens']} tokens"
    return Table(title, columns, report.lines)


def _compared_with(line: Line) -> str:
    return "forward" if line.against == FORWARD else "floor" if line.times == 1 else f"{line.times} floors"


def _peak_ratio(weights: dict[str, int], line: Line, baseline: int | None) -> str:
    if line.cost.peak_bytes is None or baseline is None:
        return ""
    own = weights["bare" if line.what == line.against else "engine"] + line.cost.peak_bytes
    return f"{own / (weights['bare'] + baseline):.2f}"


def acdc_row(report: BenchReport) -> str:
    """What ACDC's sample cost, in one line."""
    cost = report.acdc
    assert cost is not None
    return (
        f"ACDC        {cost.n_edges} of {cost.of_edges:,} edges tried in {cost.seconds:.3g} s: "
        f"{cost.passes / cost.seconds:.1f} passes/s, {cost.evaluated / cost.seconds:.1f} circuits/s, {cost.wasted} for "
        f"nothing, {cost.kept} edges kept; all edges at this rate: {cost.projected:,.0f} s"
    )


def one_batch(model: Model, task: Task, n_pairs: int) -> Batch:
    """The largest group of pairs of one length as one batch of at most ``n_pairs``.

    Raises:
        TaskError: the pairs do not fit the model, or there are none.
    """
    groups = batches(encode(task, model), n_pairs, model.device)
    if not groups:
        raise TaskError(f"{task.source} holds no pairs to measure with")
    return max(groups, key=len)


def bare_passes(network: Any, batch: Batch, metric: Metric = METRIC) -> Step:
    """The floor: a forward pass on the corrupt prompts, one on the clean ones, and its backward pass to the embeddings.

    ``network`` is a Hugging Face causal language model whose parameters ask for no gradients.
    """

    def step() -> Tensor:
        with torch.no_grad():
            network(batch.corrupt, use_cache=False)
            embedded = network.get_input_embeddings()(batch.clean)
        embedded.requires_grad_()
        logits = network(inputs_embeds=embedded, use_cache=False).logits[:, -1]
        return torch.autograd.grad(metric(logits, targets_of(batch, logits)).sum(), embedded)[0]

    return step


def bare_forward(network: Any, batch: Batch) -> Step:
    """One forward pass on the clean prompts."""

    def step() -> Tensor:
        with torch.no_grad():
            return network(batch.clean, use_cache=False).logits

    return step


def acdc_cost(model: Model, batch: Batch, options: BenchOptions) -> AcdcCost:
    """ACDC on ``acdc_sample``, every other edge kept."""
    item = prepare(model, batch)
    tau = options.share * abs(divergence([item], METRIC))
    order = acdc_sample(model.graph, options.acdc_edges)
    results: list[Any] = []
    trials = Trials(order, options.candidates)
    seconds = seconds_of(lambda: results.append(acdc(model, [item], METRIC, tau, trials=trials)), model.device)
    kept = sum(not results[0].changes[model.graph.index(edge)] < tau for edge in order)
    return AcdcCost(
        len(order), model.graph.n_edges, tau, seconds, results[0].passes, results[0].evaluated, results[0].wasted, kept
    )


def acdc_sample(graph: Graph, count: int, *, runs: int = 6) -> list[Edge]:
    """About ``count`` edges in ACDC's order: runs of neighbours, spread evenly over the graph.

    The cost of a pass grows from the first edges (into ``logits``, no layer to run) to the last (all layers), and
    neighbours share passes: so neither the first edges nor scattered single ones stand for all.
    """
    order = [(src, dst) for dst in reversed(range(graph.n_dst)) for src in reversed(range(graph.n_reaching(dst)))]
    size = max(1, count // runs)
    if count >= len(order) or size * runs >= len(order):
        return [graph.edge(*place) for place in order]
    middles = [(2 * run + 1) * len(order) // (2 * runs) for run in range(runs)]
    return [graph.edge(*place) for middle in middles for place in order[middle - size // 2 :][:size]]


def load_bare(name: str, *, revision: str | None, device: torch.device | str, dtype: str) -> Any:
    """The Hugging Face model as anyone would load it, with frozen parameters."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        place, options = host_options(resolve(name), revision)
        network: Any = AutoModelForCausalLM.from_pretrained(place, dtype=DTYPES[dtype], **options)
    finally:
        if shows_bars:
            logging.enable_progress_bar()
    return network.to(device).eval().requires_grad_(False)


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of some tensors, every storage counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def machine(device: torch.device | str) -> dict[str, Any]:
    """Device, processor, threads and versions: what a time depends on."""
    import os
    from importlib.metadata import version

    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else _processor()
    packages = ("torch", "transformers", "transformer-lens", "numpy")
    return {
        "device": kind,
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in packages},
    }


def _processor() -> str:
    import platform

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _about(model: Model) -> dict[str, Any]:
    graph = model.graph
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "dtype": model.format,
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "d_model": model.d_model,
        "n_edges": graph.n_edges,
    }


def _tensors_of(model: Model) -> list[Tensor]:
    own = [tensor for block in model.blocks for tensor in (*block.weights.values(), *block.biases.values(), block.W_O)]
    network = model.bridge.original_model
    return [*network.parameters(), *network.buffers(), *(tensor for tensor in own if tensor is not None)]


def _engine_costs(model: Model, batch: Batch, options: BenchOptions) -> dict[str, Cost]:
    """EAP, EAP-IG, and one random circuit of the wanted size."""
    n_edges = min(options.edges, model.graph.n_edges)
    item = prepare(model, batch)
    mask = random_circuits(model.graph, n_edges, 1, seed=options.seed)[0].mask
    kept = torch.from_numpy(mask.copy())[None].to(model.device)
    steps: dict[str, Step] = {
        f"EAP, all {model.graph.n_edges:,} edges": lambda: eap(model, [batch], METRIC),
        f"EAP-IG, {options.steps} steps": lambda: eap_ig(model, [batch], METRIC, steps=options.steps),
        f"one random circuit of {n_edges:,} edges": lambda: patched_logits(model, item, kept),
    }
    return costs_of(steps, model.device, rounds=options.rounds, before_peak=model.forget)


def _lines(bare: dict[str, Cost], engine: dict[str, Cost], options: BenchOptions) -> tuple[Line, ...]:
    names = list(engine)
    plan: Sequence[tuple[str, Cost, str, int]] = [
        (FLOOR, bare[FLOOR], FLOOR, 1),
        (names[0], engine[names[0]], FLOOR, 1),
        (names[1], engine[names[1]], FLOOR, options.steps),
        (FORWARD, bare[FORWARD], FORWARD, 1),
        (names[2], engine[names[2]], FORWARD, 1),
    ]
    return tuple(
        Line(what, cost, against, times, cost.median / (times * bare[against].median))
        for what, cost, against, times in plan
    )
