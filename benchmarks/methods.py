"""Every scorer and pruner on the same pairs: how many edges they need, and what those are worth on pairs held out.

    python benchmarks/methods.py --page docs/methods.md
    python benchmarks/methods.py --model FOLDER --pairs FILE --page docs/methods.md

A row is a whole ``discover``: the smallest circuit that reaches the target on the training pairs, measured on the
test pairs beside random circuits of its own size. CMD is over the standard shares of edges, on the test pairs. CPU
seconds are of the process, scoring and pruning together, measuring left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tables import markdown_table, replace_section

from persona_circuits.circuit.assessment import CurveOptions, curve_study
from persona_circuits.circuit.discovery import Discovery, Options, discover
from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.model import Model, load_model
from persona_circuits.circuit.task import MODEL, Task, load_task, resolve
from persona_circuits.circuit.task.shipped_files import PAIRS

SCORERS = ("eap", "relp", "gim", "eap-ig")
LEARN = "eap-ig, learned gates"
COLUMNS = (
    "model",
    "pairs",
    "method",
    "edges",
    "of",
    "f, training",
    "f, held out",
    "95 % interval",
    "median of ratios",
    "random, matched",
    "CMD",
    "CPU s",
)


@dataclass(frozen=True)
class Row:
    """A method's smallest circuit on one model."""

    method: str
    found: Discovery
    seconds: float
    cmd: float | None


def rows_of(model: Model, task: Task, target: float, steps: int, n_random: int) -> list[Row]:
    """Every method on one model, the control last."""
    options = CurveOptions(scorers=(*SCORERS, "random"), orders=("absolute",), n_random=n_random)
    study = curve_study(model, task, options)
    cmd = {curve.scorer: curve.cmd for curve in study.report.curves}
    cmd["random"] = next((band.cmd.mean for band in study.report.bands if band.cmd is not None), None)
    rows = [
        _row(name, model, task, Options(method=name, target_faithfulness=target, n_random=n_random), cmd.get(name))
        for name in SCORERS
    ]
    learned = Options(prune="learn", target_faithfulness=target, train_steps=steps, n_random=n_random)
    rows.append(_row(LEARN, model, task, learned, None))
    return [*rows, _row("random", model, task, Options(method="random", target_faithfulness=target), cmd["random"])]


def _row(name: str, model: Model, task: Task, options: Options, cmd: float | None) -> Row:
    begun, spent = time.process_time(), 0.0

    def stage(what: str) -> Callable[[int, int], None]:
        nonlocal spent
        if what.startswith("faithfulness on") and not spent:  # measuring begins
            spent = time.process_time() - begun
        return lambda *_: None

    found = discover(model, task, options, stage=stage)
    return Row(name, found, spent or time.process_time() - begun, cmd)


def table(results: dict[tuple[str, str], list[Row]]) -> str:
    """All models' rows as Markdown."""
    cells = []
    for (model, pairs), rows in results.items():
        for row in rows:
            train, held_out = row.found.reports[0].circuit, row.found.reports[-1]
            f, graph = held_out.circuit, row.found.circuit.graph
            interval = f.interval
            cells.append(
                (
                    *(model, pairs, row.method, f"{len(row.found.circuit):,}", f"{graph.n_edges:,}"),
                    *(_number(train.ratio_of_means), _number(f.ratio_of_means)),
                    "" if interval is None else f"{interval.low:.2f} to {interval.high:.2f}",
                    *(_number(f.median_of_ratios), _number(held_out.random_mean), _number(row.cmd)),
                    f"{row.seconds:.0f}",
                )
            )
    return markdown_table(COLUMNS, cells, texts=3)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 for bad input."""
    parser = argparse.ArgumentParser(description="Every scorer and pruner on the same pairs.")
    parser.add_argument("--model", action="append", help="folder, name or hub name; may be repeated")
    parser.add_argument("--pairs", action="append", help="pair file, one for each model")
    parser.add_argument("--target", type=float, default=0.8, help="faithfulness on the training pairs")
    parser.add_argument("--train-steps", type=int, default=200, help="of learned gates")
    parser.add_argument("--n-random", type=int, default=10)
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    args = parser.parse_args(argv)
    models, pairs = args.model or [MODEL], args.pairs or [PAIRS]
    if len(models) != len(pairs):
        parser.error("give a --pairs for every --model")
    results = {}
    try:
        for name, file in zip(models, pairs, strict=True):
            model, task = load_model(resolve(name), label=Path(name).name), load_task(resolve(file))
            key = (Path(name).name, Path(file).stem)
            results[key] = rows_of(model, task, args.target, args.train_steps, args.n_random)
            print(table({key: results[key]}), flush=True)
    except PersonaCircuitsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.page:
        replace_section(args.page, "methods", table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
