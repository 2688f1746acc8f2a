"""What circuit.json says of a search."""

from __future__ import annotations

from typing import Any

import torch

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution import Completeness
from persona_circuits.circuit.choices import RULED, STEPPED
from persona_circuits.circuit.discovery.options import ORDERS, Options
from persona_circuits.circuit.discovery.values import Controls, Effect, Measured, Pruned, Setting
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.task import Task
from persona_circuits.metrics import Metric

__all__ = ["description"]


def description(
    setting: Setting, task: Task, effect: Effect, pruned: Pruned, measured: Measured, controls: Controls
) -> dict[str, Any]:
    """What ``circuit.json`` holds about the circuit: model, pairs, method, faithfulness, versions."""
    options = setting.options
    return {
        "model": _model(setting.model),
        "task": _task(setting, task, effect.divergence),
        "method": _method(options, effect.tau, pruned, controls.completeness),
        "ablation": options.ablation,
        "seed": options.seed,
        "stamp": _stamp(options, setting.metric, setting.train.split, pruned),
        "faithfulness": [report.as_dict() for report in measured.reports],
        **({} if controls.missed is None else {"missed": controls.missed.as_dict()}),
        **({} if measured.sets is None else {"node_sets": measured.sets.as_dict()}),
        "versions": _versions(),
        "computation": {
            "threads": torch.get_num_threads(),
            "batch_size": options.batch_size,
            "processes": parallel.size(),
        },
    }


def _model(model: Model) -> dict[str, Any]:
    origin = {} if model.origin is None else {"origin": model.origin.as_dict()}
    return {
        "name": model.name,
        "revision": model.revision,
        "dtype": model.format,
        "fingerprint": model.fingerprint,
        "n_layers": model.graph.n_layers,
        "n_heads": model.graph.n_heads,
        "parallel": model.graph.parallel,
        **origin,
    }


def _task(setting: Setting, task: Task, divergence: float) -> dict[str, Any]:
    metric = setting.metric
    return {
        "source": task.source,
        "sha256": task.sha256,
        "split": setting.train.split,
        "n_pairs": len(setting.train.task.pairs),
        "metric": metric.name,
        "unit": metric.unit,
        "swap_rows": metric.swap_rows,
        "align": setting.options.align,
        "where": dict(setting.options.where),
        "divergence": divergence,
        **task.counts,
    }


def _method(options: Options, tau: float | None, pruned: Pruned, summed: Completeness | None) -> dict[str, Any]:
    scored = options.prune != "acdc"
    uses_ig, own = scored and options.method in RULED, {options.method, *options.of}
    steps = options.steps if scored and own & {*STEPPED} else None
    method: dict[str, Any] = {
        "scores": options.method if scored else None,
        "steps": steps,
        "ig_rule": options.ig_rule if uses_ig else None,
        "prune": options.prune,
        "threshold": options.threshold,
        "threshold_on": options.threshold_on if options.threshold is not None else None,
        "tau": tau,
        "top_n": options.top_n,
    }
    if scored and options.weigh != "pairs":
        method["weigh"] = options.weigh
    if options.resolution == "span":
        method["resolution"] = "span"
    if scored and options.method == "mean-of":
        method |= {"of": list(options.of), "normalise": options.normalise}
    if options.prune == "learn":
        first = pruned.circuit.graph.n_edges > options.nodes_above
        method |= {"train_steps": options.train_steps, "nodes_first": first}
    if pruned.finished is not None:
        method["finish"] = {"share": options.finish, **pruned.finished.as_dict()}
    if (least := pruned.smallest) is not None:
        prune = "learn" if options.prune == "learn" else "top-n"
        method |= {"prune": prune, "top_n": least.n, "target_faithfulness": least.target}
        if options.up_to < 1:
            method["target_search"] = {"most": least.most, "reached": least.reached, "tried": len(least.tried)}
    return method if summed is None else {**method, "completeness": summed.as_dict()}


def _stamp(options: Options, metric: Metric, split: str, pruned: Pruned) -> dict[str, Any]:
    """What two circuits must share to be compared number by number."""
    searched, least = options.prune in ("acdc", "eap-acdc"), pruned.smallest
    if least is not None and not least.reached:
        size = f"largest faithfulness of up to {least.most} edges"
    elif options.target_faithfulness is not None:
        size = f"smallest with faithfulness >= {options.target_faithfulness:g}"
    elif options.top_n is not None:
        size = f"{options.top_n} edges"
    else:
        size = f"threshold {options.threshold:g}" + (" of the effect" if options.threshold_on == "share" else "")
    if options.resolution == "span":
        size += ", of edges at parts of the prompt"
    if options.finish is not None:
        size += f", finished to {options.finish:g} of the effect"
    both = ", both directions" if metric.swap_rows else ""
    alike = ", couples alike" if options.weigh == "couples" else ""
    return {
        "ablation": options.ablation,
        "metric": metric.name,
        "direction": "noising",
        "averaging": f"scores: mean over pairs{both}{alike}; f: ratio of means",
        "split": split,
        "size": size,
        "order": "reverse topological, last source first" if searched else ORDERS[options.prune],
        "seed": options.seed,
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("persona-circuits", "torch", "transformer-lens", "transformers", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
