"""What a model is before any long work: its nodes, what each method would cost on it, and whether a pair file fits.

Sizes come from the configuration, so no weights are needed; times and memory are the
arithmetic of ``circuit.cost.passes``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from persona_circuits.circuit.cost import (
    DEVICES,
    FORMATS,
    Architecture,
    Device,
    Job,
    StepCost,
    architecture_of,
    step_costs,
    weight_bytes,
)
from persona_circuits.circuit.errors import ModelError, OptionError, TaskError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Origin, load_model, load_skeleton, origin_at
from persona_circuits.circuit.profiling.options import InspectOptions
from persona_circuits.circuit.task import Task, encode, fitting

__all__ = ["inspect_model"]


@dataclass(frozen=True)
class PairFit:
    """Whether a pair file fits a tokenizer and a context; ``fault`` is empty if it does.

    ``fitting`` are the ids of the pairs that do, ``repeated`` counts rows that say what others before them say.
    """

    source: str
    n_pairs: int
    longest: int
    fault: str = ""
    fitting: tuple[str, ...] = ()
    repeated: int = 0


@dataclass(frozen=True)
class Inspection:
    """Sizes, graph and cost of one model; ``costs`` of every step by number format, within ``limit`` bytes.

    ``comes_apart`` is whether the loaded weights passed the engine's own check, None where
    only the configuration was read; ``fault`` is the reason if they did not. ``origin`` is the quantised file that the
    weights are from, where that is known.
    """

    architecture: Architecture
    n_context: int | None
    graph: Graph
    tokens: int
    prompts: int
    device: Device
    costs: dict[str, tuple[StepCost, ...]]
    limit: int | None = None
    comes_apart: bool | None = None
    fault: str = ""
    pairs: PairFit | None = None
    origin: Origin | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        arch, graph = self.architecture, self.graph
        return {
            "architecture": {**asdict(arch), "parameters": arch.parameters},
            "n_context": self.n_context,
            "graph": {"sources": graph.n_src, "slots": graph.n_dst, "edges": graph.n_edges, "parallel": graph.parallel},
            "assumed": {
                "tokens": self.tokens,
                "prompts": self.prompts,
                "device": self.device.name,
                "max_memory": self.limit,
            },
            "cost": [
                {"dtype": dtype, "weights_bytes": weight_bytes(arch, dtype), "steps": [asdict(step) for step in steps]}
                for dtype, steps in self.costs.items()
            ],
            "origin": self.origin.as_dict() if self.origin else None,
            "comes_apart": self.comes_apart,
            "fault": self.fault,
            "pairs": _as_counts(self.pairs) if self.pairs else None,
        }


@dataclass
class _Reader:
    tokenizer: Any
    name: str
    n_context: int | None
    n_vocab: int


def inspect_model(
    name: str,
    options: InspectOptions | None = None,
    *,
    task: Task | None = None,
    revision: str | None = None,
    label: str | None = None,
    max_memory: int | None = None,
) -> Inspection:
    """Sizes and estimates from the configuration; unless ``config_only`` the weights are loaded on the CPU and checked.

    With a ``task`` they are not, unless ``config_only`` is False.

    Parameters
    ----------
    task
        Pairs to check against the tokenizer and the context; their number, in both directions, and
        their longest prompt then stand for ``prompts`` and ``tokens``.
    max_memory
        Bytes that weights and work may take, if less than the device has.

    Raises
    ------
    ModelError
        There is no configuration, or with ``task`` no tokenizer.
    OptionError
        The device is unknown, or a number is not positive.
    """
    options = options or InspectOptions()
    tokens, prompts = options.tokens, options.prompts
    chosen = next((device for device in DEVICES if device.name == options.device), None)
    if chosen is None:
        raise OptionError(f"--on {options.device!r} is not one of {', '.join(device.name for device in DEVICES)}")
    if tokens < 2 or prompts < 1:
        raise OptionError(f"at least 2 tokens and 1 prompt, got {tokens} and {prompts}")
    network, tokenizer = load_skeleton(name, revision=revision)
    config = network.config.get_text_config()
    n_context = int(getattr(config, "max_position_embeddings", 0) or 0) or None
    arch = architecture_of(network, label or name)
    fit = _fit(task, _Reader(tokenizer, label or name, n_context, arch.vocab), options.align) if task else None
    if fit and not fit.fault:
        tokens, prompts = fit.longest, 2 * fit.n_pairs
    inspection = Inspection(
        arch,
        n_context,
        arch.graph,
        tokens,
        prompts,
        chosen,
        {dtype: step_costs(arch, dtype, Job(tokens, prompts), device=chosen, limit=max_memory) for dtype in FORMATS},
        max_memory,
        pairs=fit,
        origin=origin_at(name),
    )
    alone = task is not None if options.config_only is None else options.config_only
    return inspection if alone else _checked(inspection, name, revision)


def _checked(inspection: Inspection, name: str, revision: str | None) -> Inspection:
    try:
        model = load_model(name, revision=revision, device="cpu")
    except ModelError as error:
        return replace(inspection, comes_apart=False, fault=str(error))
    return replace(inspection, comes_apart=True, graph=model.graph)


def _fit(task: Task, reader: _Reader, align: str) -> PairFit:
    if reader.tokenizer is None:
        raise ModelError(f"model {reader.name} comes without a tokenizer, so pairs cannot be checked against it")
    try:
        fit = fitting(task, reader, align=align)
    except TaskError as error:
        return PairFit(task.source, len(task.pairs), 0, str(error), repeated=task.repeated)
    rows = encode(fit, reader, align=align)
    fault = ""
    if fit.unfit:
        try:
            encode(task, reader, align=align)
        except TaskError as error:
            fault = str(error)
    longest = max(len(ids) for row in rows for ids in (row.clean, row.corrupt))
    return PairFit(task.source, len(task.pairs), longest, fault, tuple(row.id for row in rows), task.repeated)


def _as_counts(fit: PairFit) -> dict[str, Any]:
    return {**asdict(fit), "fitting": len(fit.fitting)}
