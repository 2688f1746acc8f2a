"""Every scorer and pruner on the same pairs: how many edges they need, and what those are worth on pairs held out.

    python benchmarks/methods.py --page docs/methods.md
    python benchmarks/methods.py --model FOLDER --pairs FILE --page docs/methods.md

A row is a whole ``discover``: the smallest circuit that reaches the target on the training pairs, measured on the
test pairs beside random circuits of its own size. CMD is over the standard shares of edges, on the test pairs. CPU
seconds are of the process, scoring and pruning together, measuring left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables import markdown_table, replace_section

from persona_circuits.circuit.assessment import CurveOptions, curve_study
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.model import Model, load_model
from persona_circuits.circuit.task import MODEL, Task, load_task, resolve
from persona_circuits.circuit.task.shipped_files import PAIRS

SCORERS = ("eap", "relp", "gim", "atp-star", "clean-corrupted", "ceap", "eap-ig")
LEARN = "eap-ig, learned gates"
FINISH = 0.002
"""Share of |D| that an edge must be worth after an exact finish."""
OTHERS: dict[str, dict[str, Any]] = {
    "mean of eap-ig, gim": {"method": "mean-of", "of": ("eap-ig", "gim")},
    LEARN: {"prune": "learn"},
    "eap-ig, finish": {"finish": FINISH},
    f"{LEARN}, finish": {"prune": "learn", "finish": FINISH},
}
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


class Kept:
    """Rows by what they are of, in a file if there is one: a run that was stopped goes on."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}

    def of(self, key: str, make: Callable[[], Any]) -> Any:
        """What is kept, else what is made now."""
        if key not in self.rows:
            self.rows[key] = make()
            if self.path:
                self.path.write_text(json.dumps(self.rows, indent=1))
        return self.rows[key]


def rows_of(model: Model, task: Task, args: argparse.Namespace, kept: Kept) -> list[list[str]]:
    """Every method on one model, the control last."""
    same: dict[str, Any] = {"target_faithfulness": args.target, "n_random": args.n_random}
    key = f"{model.fingerprint} {task.sha256} {args.target} {args.n_random}"
    cmd = kept.of(f"{key} CMD {SCORERS}", lambda: _areas(model, task, args.n_random))
    asked = {name: {"method": name} for name in SCORERS} | OTHERS | {"random": {"method": "random"}}
    rows = []
    for name, options in asked.items():
        steps = {"train_steps": args.train_steps} if options.get("prune") == "learn" else {}
        wanted = Options(**same, **options, **steps)
        rows.append(kept.of(f"{key} {wanted!r}", lambda n=name, w=wanted: _row(n, model, task, w, cmd.get(n))))
        print(*rows[-1], sep=" | ", flush=True)
    return rows


def _areas(model: Model, task: Task, n_random: int) -> dict[str, float | None]:
    """CMD of every scorer, and the mean of random ones."""
    options = CurveOptions(scorers=(*SCORERS, "random"), orders=("absolute",), n_random=n_random)
    study = curve_study(model, task, options)
    cmd = {curve.scorer: curve.cmd for curve in study.report.curves}
    return {**cmd, "random": next((band.cmd.mean for band in study.report.bands if band.cmd is not None), None)}


def _row(name: str, model: Model, task: Task, options: Options, cmd: float | None) -> list[str]:
    """A method's smallest circuit on one model, as cells."""
    begun, spent = time.process_time(), 0.0

    def stage(what: str) -> Callable[[int, int], None]:
        nonlocal spent
        if what.startswith("faithfulness on") and not spent:  # measuring begins
            spent = time.process_time() - begun
        return lambda *_: None

    found = discover(model, task, options, stage=stage)
    train, held_out = found.reports[0].circuit, found.reports[-1]
    f, interval = held_out.circuit, held_out.circuit.interval
    return [
        *(name, f"{len(found.circuit):,}", f"{found.circuit.graph.n_edges:,}"),
        *(_number(train.ratio_of_means), _number(f.ratio_of_means)),
        "" if interval is None else f"{interval.low:.2f} to {interval.high:.2f}",
        *(_number(f.median_of_ratios), _number(held_out.random_mean), _number(cmd)),
        f"{spent or time.process_time() - begun:.0f}",
    ]


def table(results: dict[tuple[str, str], list[list[str]]]) -> str:
    """All models' rows as Markdown."""
    cells = [(*key, *row) for key, rows in results.items() for row in rows]
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
    parser.add_argument("--kept", type=Path, help="file in which rows are kept, so that a stopped run goes on")
    args = parser.parse_args(argv)
    models, pairs = args.model or [MODEL], args.pairs or [PAIRS]
    if len(models) != len(pairs):
        parser.error("give a --pairs for every --model")
    results, kept = {}, Kept(args.kept)
    try:
        for name, file in zip(models, pairs, strict=True):
            model, task = load_model(resolve(name), label=Path(name).name), load_task(resolve(file))
            key = (Path(name).name, Path(file).stem)
            results[key] = rows_of(model, task, args, kept)
            print(table({key: results[key]}), flush=True)
    except PersonaCircuitsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.page:
        replace_section(args.page, "methods", table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
